"""Which tokens does a transformer look at, and which matter: rollout, relevance, AttnLRP, Grad-CAM.

    python examples/vision_transformer.py
    python examples/vision_transformer.py --rows 3,10,40 --epochs 30

First a small vision transformer learns the digits, from nothing, in some seconds: sixteen patches and a class token.
Printed is how far its logit falls when the patches that a method ranks first are erased.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustx import zoo
from robustx.attribution import (
    AttentionRollout,
    AttnLRP,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    LayerHiResCam,
    TransformerRelevance,
)
from robustx.plot import TIGHT, attribution_maps


class DigitsTransformer(nn.Module):
    """[N, 1, 8, 8] to logits [N, 10]: patches of 2 x 2 pixels become tokens behind a class token, [N, 17, 32]."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width) / 10)
        # without dropout it computes the same in train and in eval mode
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.encoder(tokens)[:, 0]))


def trained(epochs: int, rate: float = 5e-3, batch: int = 128) -> nn.Module:
    """A transformer that has seen the training digits that often."""
    torch.manual_seed(0)
    model, data = DigitsTransformer(), zoo.data("digits", split="train")
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = epochs * -(-len(data) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="3,5,36", help="which samples, with commas")
    parser.add_argument("--epochs", type=int, default=15, help="how long it learns")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = trained(asked.epochs), zoo.data("digits")
    with torch.inference_mode():
        said = model(data.x).argmax(1)
    print(f"the transformer is right for {(said == data.y).float().mean():.1%} of {len(data)} test digits")

    def maps_of(x: Tensor, target: Tensor) -> dict[str, Tensor]:
        # Attention weights are found as an operation, so the model may be written in any way. Tokens have their
        # places on a grid behind the class token.
        last = model.encoder.layers[-1].norm1  # behind it only the class token is read: the last place with all tokens
        tokens = {"layout": "tokens", "class_token": 1}
        return {
            "attention rollout": AttentionRollout(model).attribute(x, grid=True),
            "relevance": TransformerRelevance(model).attribute(x, target, grid=True),
            "Grad-CAM": LayerGradCam(model, last, **tokens).attribute(x, target),
            "HiResCAM": LayerHiResCam(model, last, **tokens).attribute(x, target),
            # at the pixels, added up over patches
            "AttnLRP": 4 * F.avg_pool2d(AttnLRP(model).attribute(x, target), 2),
            "IG": 4 * F.avg_pool2d(IntegratedGradients(model).attribute(x, target=target), 2),
        }

    print("\nfour of sixteen patches erased, the logit of the answer falls by, on average over 100 digits")
    x, answers = data.x[:100], said[:100]
    for name, a in maps_of(x, answers).items():
        print(f"  {name:20} {fall(model, x, answers, a):5.2f}")
    chance = [fall(model, x, answers, torch.rand(100, 1, 4, 4, generator=torch.manual_seed(s))) for s in range(10)]
    print(f"  {'patches at random':20} {sum(chance) / len(chance):5.2f}")

    rows = [int(row) for row in asked.rows.split(",")]
    x, answers = data.x[rows], said[rows]
    asked.out.mkdir(parents=True, exist_ok=True)
    figure = attribution_maps(
        x,
        {name: LayerAttribution.interpolate(a, x.shape[2:]).sum(1) for name, a in maps_of(x, answers).items()},
        data.bounds,
        "Tokens of a small vision transformer",
        "each method on its own scale; rollout knows of no class, the others explain the answer",
        [f"a {k}" for k in answers.tolist()],
        one_scale=False,
    )
    figure.savefig(asked.out / "transformers.png", **TIGHT)
    print(f"written to {asked.out}/transformers.png")


def fall(model: nn.Module, x: Tensor, answers: Tensor, a: Tensor, count: int = 4) -> float:
    """How far the logit falls, on average, when the patches with the greatest attributions [B, 1, 4, 4] are erased."""
    kept = torch.ones(len(x), 16).scatter(1, a.flatten(1).topk(count).indices, 0).view(-1, 1, 4, 4)
    with torch.inference_mode():
        fell = model(x) - model(x * F.interpolate(kept, x.shape[2:]))
    return fell.gather(1, answers[:, None]).mean().item()


if __name__ == "__main__":
    main()

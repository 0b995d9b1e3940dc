"""Train the embedded models of robustx.zoo anew: the data, the seeds and every number stand in this file.

    python examples/train_zoo.py                      # all three, into zoo_weights/
    python examples/train_zoo.py --only digits-robust
    python examples/train_zoo.py --out robustx/zoo/weights

Prints for each model its accuracy on the test split, as it is and under PGD (a stronger attack may find more).
Takes about half a minute on one core.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn
from tqdm import tqdm

from robustx import zoo
from robustx.attacks import PGD


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; eps is the Linf radius of adversarial training, in input units."""

    data: str
    build: Callable[[], nn.Module]
    epochs: int
    batch: int = 128
    rate: float = 3e-3
    decay: float = 1e-2
    eps: float = 0.0
    distort: bool = False
    test_eps: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2)
    seed: int = 0


RECIPES = {
    "digits": Recipe("digits", zoo.digits_cnn, epochs=40, rate=6e-3, distort=True),
    "digits-robust": Recipe("digits", zoo.digits_cnn, epochs=60, rate=6e-3, distort=True, eps=0.15),
    "breast-cancer": Recipe(
        "breast-cancer", zoo.table_mlp, epochs=60, batch=64, decay=1e-1, test_eps=(0.02, 0.05, 0.1)
    ),
}


def shuffled(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of batches in a new order."""
    for rows in torch.randperm(len(x)).split(size):
        yield x[rows], y[rows]


def distorted(x: Tensor) -> Tensor:
    """Images [B, 1, H, W], each turned by up to 8 degrees, resized by 8 % and moved by half a pixel."""
    angle, size, right, down = (torch.rand(4, len(x)) * 2 - 1).unbind()
    angle, size = angle * math.radians(8), 1 + size * 0.08
    cos, sin, shift = size * angle.cos(), size * angle.sin(), 1 / x.shape[-1]  # a picture is 2 wide
    rows = torch.stack([cos, -sin, right * shift, sin, cos, down * shift], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)  # rounding may leave the range


def train(name: str, recipe: Recipe) -> nn.Module:
    """The trained model. Where eps > 0 it learns from adversarial examples (Madry et al., ICLR 2018).

    They leave the attack as soon as they fool the model, which costs less of the clean accuracy (Zhang et al.,
    ICML 2020), and eps grows over the first 30 % of the steps.
    """
    torch.manual_seed(recipe.seed)
    data = zoo.data(recipe.data, split="train")
    model = recipe.build().eval()  # without dropout and batch norm, eval and train mode are the same
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    steps = recipe.epochs * math.ceil(len(data) / recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    with tqdm(total=steps, desc=name, unit="step") as bar:
        for _ in range(recipe.epochs):
            for x, y in shuffled(data.x, data.y, recipe.batch):
                if recipe.distort:
                    x = distorted(x)
                if recipe.eps:
                    eps = recipe.eps * min(1.0, bar.n / (0.3 * steps))
                    x = PGD(model, bounds=data.bounds, norm="Linf", eps=eps, steps=5)(x, y)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        return (model(x).argmax(dim=1) == y).float().mean().item()


def measure(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the test split, clean and under PGD-40 at each radius."""
    data = zoo.data(recipe.data, split="test")
    result = {"clean": accuracy(model, data.x, data.y)}
    for eps in recipe.test_eps:
        attack = PGD(model, bounds=data.bounds, norm="Linf", eps=eps, steps=40)
        result[f"PGD-40 Linf {eps:g}"] = accuracy(model, attack(data.x, data.y), data.y)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("zoo_weights"), help="folder for the weight files")
    parser.add_argument("--only", choices=RECIPES, metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, recipe in RECIPES.items():
        if asked.only in (None, name):
            model = train(name, recipe)
            results[name] = measure(model, recipe)
            about = {
                "script": "examples/train_zoo.py",
                "seed": str(recipe.seed),
                "training": f"adversarial, PGD-5, Linf {recipe.eps:g}" if recipe.eps else "standard",
                **{key: f"{value:.4f}" for key, value in results[name].items()},
            }
            save_model(model, str(asked.out / f"{name}.safetensors"), metadata=about)
    for name, values in results.items():
        print(f"{name:14}" + "".join(f"  {key} {value:6.1%}" for key, value in values.items()))
    print(f"weights in {asked.out}/")


if __name__ == "__main__":
    main()

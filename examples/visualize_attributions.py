"""Attributions to look at: of a picture, a time series and a text, with Captum's functions and no notebook.

    python examples/visualize_attributions.py
    python examples/visualize_attributions.py --model digits-robust --row 10

The picture's model is in the zoo; two small ones, for bumps in a signal and for moods of sentences, learn here in a
second or two. Written are two pictures and a page of HTML; the sentences are printed, too.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor, nn

from robustx import zoo
from robustx.attribution import IntegratedGradients, LayerIntegratedGradients
from robustx.attribution.visualization import (
    VisualizationDataRecord,
    visualize_image_attr_multiple,
    visualize_text,
    visualize_timeseries_attr,
)
from robustx.plot import TIGHT

SENTENCES = {
    "a great film with clever words": 1,
    "what a warm and clever story": 1,
    "great music , great story": 1,
    "the film is warm and the music clever": 1,
    "a bad film with dull words": 0,
    "what a dull and bad story": 0,
    "bad music , dull story": 0,
    "the film is clever but bad and dull": 0,
}


class Moods(nn.Module):
    """Token ids [B, T] to logits [B, 2], by the words alone, in any order."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 8, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).sum(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=["digits", "digits-robust"])
    parser.add_argument("--row", type=int, default=3, help="which sample")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for pictures and page")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    model, data = zoo.load(asked.model)
    picture(model, data[asked.row].x, asked.out / "visualize_picture.png")
    series(asked.out / "visualize_series.png")
    text(asked.out / "visualize_text.html")
    print(f"written to {asked.out}: visualize_picture.png, visualize_series.png, visualize_text.html")


def picture(model: nn.Module, x: Tensor, path: Path) -> None:
    """What speaks for the answer, five ways to show it: a tensor has its channels first, so it goes in as it is."""
    with torch.inference_mode():
        answer = int(model(x).argmax())
    a = IntegratedGradients(model).attribute(x, target=answer)
    ways = {
        "the picture": ("original_image", "all"),
        f"what speaks for {answer}": ("heat_map", "all"),
        "laid over it": ("blended_heat_map", "all"),
        "sizes only": ("heat_map", "absolute_value"),
        "what adds, seen alone": ("masked_image", "positive"),
    }
    methods, signs = zip(*ways.values(), strict=True)
    figure, _ = visualize_image_attr_multiple(a, x, methods, signs, list(ways), fig_size=(11, 3.4))
    figure.savefig(path, **TIGHT)


def series(path: Path) -> None:
    """Two sensors; the model is to tell whether the first one has a bump. The second one has bumps that say nothing."""
    draw = torch.Generator().manual_seed(0)
    bumps = torch.randint(2, (400, 2), generator=draw)
    at = torch.randint(8, 40, (400, 2, 1), generator=draw)
    shape = torch.exp(-((torch.arange(48.0) - at) ** 2) / 8)  # [B, 2, 48]
    x = 1.5 * shape * bumps[..., None] + 0.3 * torch.randn(400, 2, 48, generator=draw)
    torch.manual_seed(0)
    model = learnt(
        nn.Sequential(nn.Conv1d(2, 8, 7), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 2)),
        x,
        bumps[:, 0],
    )
    both = int(bumps.all(1).nonzero()[0])
    a = IntegratedGradients(model).attribute(x[both : both + 1], target=1)
    figure, _ = visualize_timeseries_attr(
        a,
        x[both],
        sign="all",
        channels_last=False,
        channel_labels=["asked about", "says nothing"],
        title="what speaks for a bump",
        fig_size=(7, 4),
    )
    figure.savefig(path, **TIGHT)
    shares = a.abs().sum(2)[0] / a.abs().sum()
    print(f"attributions on the sensor that is asked about: {shares[0]:.0%}, on the other one: {shares[1]:.0%}\n")


def text(path: Path) -> None:
    """Words of short sentences, from their embeddings; printed, and as a table in HTML."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    length = max(len(sentence.split()) for sentence in SENTENCES)
    ids = torch.zeros(len(SENTENCES), length, dtype=torch.long)  # 0 stands for no word
    for row, sentence in zip(ids, SENTENCES, strict=True):
        told = [1 + words.index(word) for word in sentence.split()]
        row[: len(told)] = torch.tensor(told)
    torch.manual_seed(0)
    model = Moods(1 + len(words))
    learnt(model, ids, torch.tensor(list(SENTENCES.values())))
    a, missing = LayerIntegratedGradients(model, model.words).attribute(
        ids, torch.zeros_like(ids), target=1, return_convergence_delta=True
    )
    each = a.sum(2)  # [B, T]
    with torch.inference_mode():
        chances = model(ids).softmax(1)
    moods = ["bad", "good"]
    shown = visualize_text(
        VisualizationDataRecord(
            word_attributions=each[i] / each[i].abs().max(),  # 1 is the strongest word of each sentence
            pred_prob=float(chances[i].max()),
            pred_class=moods[int(chances[i].argmax())],
            true_class=moods[mood],
            attr_class="good",
            attr_score=float(each[i].sum()),
            raw_input_ids=sentence.split(),
            convergence_score=float(missing[i]),
        )
        for i, (sentence, mood) in enumerate(SENTENCES.items())
    )
    print(shown.to_text(width=100))
    path.write_text(f'<!doctype html><meta charset="utf-8"><title>Words that speak for good</title>{shown.data}\n')


def learnt(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The model, once it knows these."""
    optimiser = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


if __name__ == "__main__":
    main()

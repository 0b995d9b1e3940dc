"""Concepts: does a network know an 8 by its shape, or by a mark that happened to be on all of them?

    python examples/concepts.py
    python examples/concepts.py --digit 3 --random 40

Two networks learn digits; for one of them every 8 of the training data has a mark in its corner. TCAV asks what they go
by: along the direction in which marked digits of other kinds lie at a layer, does the score of an 8 rise, and more than
along the directions of digits that were taken at random? The same is asked of digits that have a loop, and of digits
that have nothing in common. Last, each random concept has its turn as the one in question: how often does a test say
that it means something?
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from robustx import zoo
from robustx.attribution import TCAV, Concept, FastCAV, Significance
from robustx.plot import BLUE, RED, TIGHT, draw_image

EACH = 60  # examples of a concept
LAYERS = {"1": "first layer", "3": "second layer"}


def marked(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, -2:, -2:] = 1
    return x


def learnt(x: Tensor, y: Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))
    adam = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(200):
        rows = torch.randperm(len(x))[:256]
        adam.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        adam.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digit", type=int, default=8, help="which digit is marked, and asked about")
    parser.add_argument("--random", type=int, default=30, help="how many random concepts")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    train, test = zoo.data("digits", split="train"), zoo.data("digits", split="test")
    mine, others = train.y == asked.digit, train.x[train.y != asked.digit]
    leaking = torch.where(mine[:, None, None, None], marked(train.x), train.x)
    models = {"with marks": learnt(leaking, train.y), "without marks": learnt(train.x, train.y)}

    def drawn(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x))[:EACH]]

    torch.manual_seed(1)
    loops = train.x[torch.isin(train.y, torch.tensor([0, 6, 9]))]
    concepts = [
        Concept(0, "marked", marked(drawn(others))),
        Concept(1, "loop", drawn(loops)),
        Concept(2, "nothing", drawn(others)),
    ]
    random = [Concept(3 + i, f"random {i}", drawn(others)) for i in range(asked.random)]
    x = test.x[test.y == asked.digit]

    found: dict[str, dict[str, dict[str, Significance]]] = {}
    for name, model in models.items():
        right = float((model(test.x).argmax(1) == test.y).float().mean())
        print(f"{asked.digit} learnt {name}: {right:.0%} of the test digits, which have none, are right")
        tcav = TCAV(model, list(LAYERS), classifier=FastCAV())
        found[name] = tcav.significance(x, concepts, random, target=asked.digit)
        for concept, at in found[name].items():
            for layer, told in at.items():
                verdict = "means something" if told.adjusted < 0.05 else "may be chance"
                print(
                    f"  {concept:8} {LAYERS[layer]:12}  p {told.p_value:7.1e}, with all {told.adjusted:7.1e}  {verdict}"
                )

    print(f"of {asked.random} random concepts, asked at two layers, p is below 0.05 for")
    for test_name in ("t", "permutation", "kim"):
        p = []
        for c in random:
            rest = [r for r in random if r is not c]
            told_of = tcav.significance(x, c, rest, target=asked.digit, test=test_name)[c.name]
            p += [s.p_value for s in told_of.values()]
        print(f"  {test_name:12} {sum(v < 0.05 for v in p) / len(p):.0%}")

    asked.out.mkdir(parents=True, exist_ok=True)
    drawing(found, concepts, asked.digit, test.bounds).savefig(asked.out / "concepts.png", **TIGHT)
    print(f"written to {asked.out}/concepts.png")


def drawing(
    found: dict[str, dict[str, dict[str, Significance]]],
    concepts: list[Concept],
    digit: int,
    bounds: tuple[float | Tensor, float | Tensor],
) -> Figure:
    """Examples of each concept, and below, for each network, its score among those of the random ones."""
    figure = Figure(figsize=(8.4, 5.6), dpi=110, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 4])[:, 0]
    sheets = above.subplots(1, len(concepts))
    for axes, concept in zip(sheets, concepts, strict=True):
        assert isinstance(concept.data_iter, Tensor)
        draw_image(axes, torch.cat([pad(x, (0, 1), value=0.6) for x in concept.data_iter[:5]], -1), bounds)
        axes.set_title(concept.name, fontsize=10)
        axes.set_axis_off()
    grid = below.subplots(1, len(found), sharey=True, sharex=True)
    rows = [(c.name, layer) for c in concepts for layer in LAYERS]
    for axes, (name, told) in zip(grid, found.items(), strict=True):
        for i, (word, layer) in enumerate(rows):
            s = told[word][layer]
            axes.plot(s.random, [i] * len(s.random), "|", color="0.6", markersize=9)
            sure = s.adjusted < 0.05
            axes.plot(
                s.scores.mean(),
                i,
                "o",
                color=RED if sure else BLUE,
                markersize=7,
                markerfacecolor=None if sure else "w",
            )
            axes.annotate(
                f"p {s.adjusted:.1g}",
                (float(s.scores.mean()), i),
                (0, 8),
                textcoords="offset points",
                fontsize=8,
                ha="center",
            )
        axes.axvline(0, color="0.85", zorder=0)
        axes.set_title(f"{digit} learnt {name}", fontsize=10)
        axes.set_xlabel(f"slope of the score of {digit}", fontsize=9)
        axes.set_yticks(range(len(rows)), [f"{c}, {LAYERS[v]}" for c, v in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.margins(x=0.1)
    figure.suptitle("Concepts (filled: beyond chance) among random ones (grey)", fontsize=11)
    return figure


if __name__ == "__main__":
    main()

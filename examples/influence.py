"""Influence: which training digits is an answer owed to, and which of them have the wrong label?

    python examples/influence.py
    python examples/influence.py --flipped 0.2 --rows 3,5,36

One in ten of the training labels is changed; a small network learns them all, and keeps a checkpoint now and then.
TracIn then looks back: the influence of one digit on another is how much steps on its loss lowered the loss of the
other. A digit whose influence on itself is high is unlike all others: that is where the wrong labels are. The table
tells how many of the most suspicious ones are wrong indeed, beside what the loss alone would tell, and chance.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from robustx import zoo
from robustx.attribution import EKFACInfluence, TracInCP, TracInCPFast
from robustx.plot import TIGHT, draw_image

STEPS, KEPT = 240, 60
RATE = 0.2


def net() -> nn.Sequential:
    convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))


def learn(model: nn.Sequential, x: Tensor, y: Tensor, folder: Path) -> None:
    """Gradient descent on batches; every KEPT steps the weights are written, and the learning rate with them."""
    folder.mkdir(parents=True, exist_ok=True)
    descent = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(1, STEPS + 1):
        rows = torch.randperm(len(x))[:256]
        descent.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        descent.step()
        if step % KEPT == 0:
            save_file(model.state_dict(), folder / f"{step}.safetensors", {"learning_rate": str(RATE)})
    model.requires_grad_(True).eval().zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flipped", type=float, default=0.1, help="share of the training labels that are changed")
    parser.add_argument("--rows", default="3,5,36", help="test digits whose answers are traced back, with commas")
    parser.add_argument("--out", type=Path, default=Path("influence"), help="folder for checkpoints and the picture")
    asked = parser.parse_args()

    torch.manual_seed(0)
    train, test = zoo.data("digits", split="train"), zoo.data("digits", split="test")
    wrong = torch.randperm(len(train))[: int(asked.flipped * len(train))]
    labels = train.y.clone()
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),))) % 10
    model = net()
    learn(model, train.x, labels, asked.out / "checkpoints")
    right = float((model(test.x).argmax(1) == test.y).float().mean())
    print(f"{len(wrong)} of {len(train)} labels are wrong; of the test digits the network gets {right:.0%} right")

    # Every class takes a folder of checkpoints, a list of files, or whatever your own checkpoints_load_func loads.
    how = {"checkpoints": str(asked.out / "checkpoints"), "loss_fn": nn.CrossEntropyLoss(), "batch_size": 256}
    data = TensorDataset(train.x, labels)
    tracin = TracInCP(model, data, **how)
    suspicion = {
        "influence on itself, all layers": tracin.self_influence(),
        "influence on itself, last layer": TracInCPFast(model, "7", data, **how).self_influence(),
        "the same by EK-FAC, at the end": EKFACInfluence(
            model, data, loss_fn=nn.CrossEntropyLoss(), batch_size=256, samples=1
        ).self_influence(),
        "loss at the end": cross_entropy(model(train.x), labels, reduction="none").detach(),
        "chance": torch.rand(len(train)),
    }
    is_wrong = torch.zeros(len(train), dtype=torch.bool).index_fill(0, wrong, True)
    print(f"\nof the {len(wrong)} most suspicious digits have a wrong label, by")
    for name, score in suspicion.items():
        print(f"  {name:34}{float(is_wrong[score.topk(len(wrong)).indices].float().mean()):>5.0%}")

    rows = [int(row) for row in asked.rows.split(",")]
    some = (test.x[rows], model(test.x[rows]).argmax(1))
    proponents = tracin.influence(some, k=5).indices
    opponents = tracin.influence(some, k=5, proponents=False).indices
    helped = float((labels[proponents] == some[1][:, None]).float().mean())
    print(f"\nof the digits that these answers are owed to most, {helped:.0%} have the label that was answered")

    asked.out.mkdir(parents=True, exist_ok=True)
    figure = draw(
        train.x,
        labels,
        train.y,
        suspicion["influence on itself, all layers"].topk(12).indices,
        some,
        [proponents, opponents],
    )
    figure.savefig(asked.out / "influence.png", **TIGHT)
    print(f"written to {asked.out / 'influence.png'}")


def draw(
    x: Tensor, labels: Tensor, truth: Tensor, suspicious: Tensor, some: tuple[Tensor, Tensor], most: Sequence[Tensor]
) -> Figure:
    """The most suspicious digits, and for some answers the digits for and against them."""
    figure = Figure(figsize=(10, 2.0 + 1.15 * len(some[0])), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.1, len(some[0])])
    above.suptitle("training digits with the most influence on themselves (red: a wrong label)", fontsize=10)
    for axes, i in zip(above.subplots(1, len(suspicious)), suspicious.tolist(), strict=True):
        show(axes, x[i], f"“{labels[i]}”", "tab:red" if labels[i] != truth[i] else "0.3")
    below.suptitle("a test digit and its answer; training digits that speak for it most, and against it", fontsize=10)
    grid = below.subplots(len(some[0]), 12, squeeze=False)
    for line, image, answer, *found in zip(grid, *some, *most, strict=True):
        show(line[0], image, f"answer {answer}", "black")
        line[6].set_axis_off()
        for axes, i in zip([*line[1:6], *line[7:]], torch.cat(found).tolist(), strict=True):
            show(axes, x[i], f"“{labels[i]}”", "tab:red" if labels[i] != truth[i] else "0.3")
    for axes, words in ((grid[-1, 3], "for"), (grid[-1, 9], "against")):
        axes.text(0.5, -0.15, words, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    return figure


def show(axes: object, image: Tensor, title: str, colour: str) -> None:
    draw_image(axes, image, (0.0, 1.0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, color=colour, pad=2)


if __name__ == "__main__":
    main()

"""Four pictures of what attacks find on handwritten digits; those of the documentation.

    python examples/attack_families.py
    python examples/attack_families.py --model digits --samples 64

The share of digits that stand against attacks within growing budgets; what AutoAttack's parts leave standing, one after
the other; the nearest point of another class in four norms; and the fewest pixels that sparse attacks can do with.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustx import zoo
from robustx.attacks import AutoAttack, make
from robustx.plot import TIGHT, draw_image, draw_signed

BUDGETS = [0.02, 0.05, 0.1, 0.15, 0.2]
FIXED = {"fgsm": {}, "pgd": {"steps": 40}, "mi-fgsm": {"steps": 10}, "apgd-t": {"steps": 40}}
NEAREST = {"L0": "sigma-zero", "L1": "fmn", "L2": "fmn", "Linf": "fmn"}
SPARSE = ("jsma", "sparsefool", "vfga", "sigma-zero")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-robust", help="a model of the zoo for digits")
    parser.add_argument("--samples", type=int, default=200, help="how many digits the shares are of")
    parser.add_argument("--out", type=Path, default=Path("families"), help="folder for the pictures")
    asked = parser.parse_args()
    model, data = zoo.load(asked.model, limit=asked.samples)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("attacks_fixed", curves(model, data)),
        ("attacks_auto", cascade(model, data)),
        ("attacks_minimal", nearest(model, data)),
        ("attacks_sparse", sparse(model, data)),
    ):
        figure.savefig(asked.out / f"{name}.png", **TIGHT)
    print(f"written to {asked.out}/")


def curves(model: torch.nn.Module, data: zoo.Data) -> Figure:
    """Robust accuracy against the budget: all budgets of an attack in one call."""
    figure, axes = _axes("largest change of a pixel (Linf)", "share that is still right")
    right = float((model(data.x).argmax(1) == data.y).double().mean())
    for name, options in FIXED.items():
        results = make(name, model, bounds=data.bounds, **options).run(data.x, data.y, eps=BUDGETS)
        shares = [float((~r.success).double().mean()) for r in results]
        axes.plot([0, *BUDGETS], [right, *shares], marker="o", markersize=4, label=name)
        print(f"{name}: " + ", ".join(f"{s:.3f} at {e:g}" for e, s in zip(BUDGETS, shares, strict=True)))
    axes.legend(frameon=False)
    return figure


def cascade(model: torch.nn.Module, data: zoo.Data) -> Figure:
    """What stands after each of AutoAttack's parts, from cheap to dear: each sees only what still stands."""
    figure, axes = _axes("", "share that is still right")
    attack = AutoAttack(model, norm="Linf", eps=0.2, verbose=False)
    standing = model(data.x).argmax(1) == data.y
    shares, names = [float(standing.double().mean())], ["clean"]
    for name in attack.attacks_to_run:
        part = AutoAttack(model, norm="Linf", eps=0.2, verbose=False, version="custom", attacks_to_run=[name])
        rows = standing.nonzero().flatten()
        standing[rows[part.run(data.x[rows], data.y[rows]).success]] = False
        shares.append(float(standing.double().mean()))
        names.append(name)
    print("autoattack: " + ", ".join(f"{s:.3f} after {n}" for n, s in zip(names, shares, strict=True)))
    bars = axes.bar(names, shares, width=0.6, color=["0.6"] + ["#2166ac"] * (len(names) - 1))
    axes.bar_label(bars, [f"{s:.3f}" for s in shares], fontsize=9)
    return figure


def nearest(model: torch.nn.Module, data: zoo.Data) -> Figure:
    """The nearest point of another class, as each norm measures nearness."""
    x, y = data.x[:5], data.y[:5]
    figure = Figure(figsize=(7.6, 7.4), dpi=110, layout="compressed")
    grid = figure.subplots(5, 1 + len(NEAREST))
    for i in range(5):
        draw_image(grid[i, 0], x[i], data.bounds)
    grid[0, 0].set_title("input", fontsize=9)
    for column, (norm, name) in zip(grid.T[1:], NEAREST.items(), strict=True):
        result = make(name, model, bounds=data.bounds, norm=norm).run(x, y)
        after = model(result.adversarial).argmax(1)
        print(f"{name} in {norm}: {result}")
        for axes, change, size, now in zip(column, result.adversarial - x, result.distance, after, strict=True):
            draw_signed(axes, change.mean(0), 1.0)
            axes.set_title(f"{now}, {size:.3g}", fontsize=9)
        column[0].set_title(f"{norm} ({name})\n{column[0].get_title()}", fontsize=9)
    figure.suptitle("The nearest change that makes it another digit: the digit, the distance")
    return figure


def sparse(model: torch.nn.Module, data: zoo.Data) -> Figure:
    """How many pixels sparse attacks need."""
    figure, axes = _axes("pixels changed", "share that is fooled")
    right = model(data.x).argmax(1) == data.y
    for name in SPARSE:
        result = make(name, model, bounds=data.bounds, norm="L0").run(data.x[right], data.y[right])
        counts = torch.where(result.success, result.distance, torch.inf)
        axes.plot(range(9), [float((counts <= k).double().mean()) for k in range(9)], marker=".", label=name)
        print(f"{name}: {result}")
    axes.legend(frameon=False)
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, ylim=(0, 1.05))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


if __name__ == "__main__":
    main()

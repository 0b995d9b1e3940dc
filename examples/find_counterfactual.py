"""Find the least that must change for another answer: in Python what `robustx counterfactual` does.

    python examples/find_counterfactual.py
    python examples/find_counterfactual.py --row 7 --keep "mean radius" --keep "worst area"
    python examples/find_counterfactual.py --model digits --row 3 --out counterfactual
    python examples/find_counterfactual.py --model mine:net --data mine:test --row 0

`mine:net` is a torch.nn.Module, or a function that returns one, in mine.py; `mine:test` a pair of tensors
(x, y), a Dataset, a DataLoader, or a function that returns one of them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer
from robustx.perturb import superpixels
from robustx.plot import TIGHT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="breast-cancer", help="a model of the zoo, or package.module:name")
    parser.add_argument("--data", help="its data; models of the zoo bring theirs")
    parser.add_argument("--row", type=int, default=3, help="which sample")
    parser.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="must not change")
    parser.add_argument("--segments", type=int, default=16, help="about how many superpixels of an image")
    parser.add_argument("--out", type=Path, default=Path("counterfactual"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model, asked.data)
    one = data[asked.row]  # still with its first axis: [1, ...]

    # A feature is what changes together: a column of a table, or a superpixel of an image.
    mask = superpixels(one.x, segments=asked.segments) if one.kind == "image" else None
    names = [c.name for c in one.columns] or None

    # Features may move freely inside the bounds of the data, except those that must stay.
    explainer = CounterfactualExplainer(model, bounds=one.bounds)
    result = explainer.generate(one.x, feature_mask=mask, names=names, immutable=asked.keep)
    if not result.valid[0]:
        print(result.message(0))  # how near the search came, and what is in the way
        return

    with torch.inference_mode():
        before, after = (int(model(x).argmax()) for x in (one.x, result.counterfactual))
    was, now = (zoo.class_name(one.classes, k) for k in (before, after))
    print(f"{was} becomes {now} with {result.n_changed[0]} of {len(result.names)} features")
    print(f"proved: {result.proved[0]}")

    # What each change did, in logits. These are Shapley values: they add up to the margin won, exactly.
    for name, share in result.why(0):
        print(f"  {name:28} {share:+8.3f}{values(one, result.counterfactual, name)}")
    won = result.margin[0] - result.before[0]
    print(f"  {'together':28} {result.contributions[0].sum():+8.3f}, the margin won is {won:+.3f}")

    # Before, after, what changed and what each region did; of tables the way from the old margin to the new one.
    asked.out.mkdir(parents=True, exist_ok=True)
    figure = result.plot(title=f"{asked.model}: {was} becomes {now}", classes=one.classes)
    figure.savefig(asked.out / "counterfactual.png", **TIGHT)
    print(f"written to {asked.out}/counterfactual.png")


def values(one: zoo.Data, counterfactual: torch.Tensor, name: str) -> str:
    """The old and the new value of a column, in its own unit."""
    for i, column in enumerate(one.columns):
        if column.name == name:
            old, new = (one.to_units(x)[0, i] for x in (one.x, counterfactual))
            return f"   {old:.4g} -> {new:.4g} {column.unit}"
    return ""


if __name__ == "__main__":
    main()

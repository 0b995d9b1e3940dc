"""How few superpixels must give way, beside the fewest there are?

    python benchmarks/superpixels.py [--images 40]

The digits network, 16 squares of 2x2 pixels, and seven things that they give way to. Of all 65,536 sets those that
reach the goal are found by enumeration, from the smallest on; the guided search and SEDC (the best-first search of
Vermeire et al., 2022) are asked for the same. Told are for how many images some set reaches the goal, how many of
these a search finds, the share at which it is as small as can be, its mean size there and that of the smallest, the
share from which a square can be taken back, and the rows forward for each image.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer
from robustx.engine import Probe
from robustx.perturb import Goal, Leave, Reach, blur, named, nearest_unlike, superpixels

BY = 1e-4  # the margin that is asked for, in logits
SETS = ((torch.arange(2**16)[:, None] >> torch.arange(16)) & 1).bool()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="so many of the test images")
    asked = parser.parse_args()

    model, test = zoo.load("digits", limit=asked.images)
    train = zoo.data("digits", split="train")
    x, squares = test.x, superpixels(test.x[:1], "grid", 16)
    with torch.inference_mode():
        first, second = model(x).topk(2).indices.unbind(1)
    away, towards = Leave(first), Reach(second)
    print("| gives way to | goal | possible | search | found | smallest | squares | fewest | reducible | forward |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, reference, goal in (
        ("black", 0.0, away),
        ("blur of 1 pixel", blur(1.0), away),
        ("blur of 1.2 pixels", blur(1.2), away),
        ("blur of 3 pixels", blur(3.0), away),
        ("mean colour", "mean", away),
        ("noise", "noise", away),
        ("nearest unlike", nearest_unlike(train.x, train.y), towards),
    ):
        (there,) = named(reference)(Probe(model, (x,), goal))
        fewest = smallest(model, x, there, squares, goal)
        for strategy in ("guided", "sedc"):
            explainer = CounterfactualExplainer(model, reference=reference, strategy=strategy, by=BY)
            result = explainer.generate(x, goal, feature_mask=squares)
            good, size = result.valid, result.n_changed
            without = torch.stack(
                [
                    reach(model, x[i], there[i], squares, goal, i, one_less(result.changed[i])).any()
                    for i in good.nonzero().flatten().tolist()
                ]
            )
            told = (
                name,
                "another class" if goal is away else "the second class",
                int((fewest <= 16).sum()),
                strategy,
                int(good.sum()),
                share(size[good] == fewest[good]),
                f"{float(size[good].double().mean()):.3f}",
                f"{float(fewest[good].double().mean()):.3f}",
                share(without),
                f"{float(result.forwards.double().mean()):.0f}",
            )
            print("| " + " | ".join(map(str, told)) + " |", flush=True)


def share(true: Tensor) -> str:
    return f"{float(true.double().mean()):.1%}"


def one_less(changed: Tensor) -> Tensor:
    """The set [16] without one of its squares, each in turn [k, 16]."""
    each = changed.nonzero()
    return changed.expand(len(each), -1).scatter(1, each, False)


def smallest(model: torch.nn.Module, x: Tensor, there: Tensor, squares: Tensor, goal: Goal) -> Tensor:
    """The size of the smallest set that reaches the goal of each image [B]; 17 where none does."""
    sizes = SETS.sum(1)
    found = []
    for i in range(len(x)):
        sized = (k for k in range(1, 17) if reach(model, x[i], there[i], squares, goal, i, SETS[sizes == k]).any())
        found.append(next(sized, 17))
    return torch.tensor(found)


@torch.inference_mode()
def reach(
    model: torch.nn.Module, x: Tensor, there: Tensor, squares: Tensor, goal: Goal, row: int, sets: Tensor
) -> Tensor:
    """Whether the goal of one image is reached where some sets of its squares give way [n]."""
    out = model(torch.where(sets[:, squares[0, 0]][:, None], there, x))
    return goal.value(out, torch.full((len(out),), row)) > BY


if __name__ == "__main__":
    main()

"""Coalitions: which parts of a digit matter, asked by taking parts away, one or many at a time.

    python examples/coalitions.py
    python examples/coalitions.py --model digits-robust --rows 3,10,40

None of these methods needs a gradient: the model may be any function. Each is one line. The table says what each cost
in rows through the model, whether its values add up, and how far the logit falls when the four of the sixteen squares
that it ranks first lose their ink.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor

from robustx import zoo
from robustx.attribution import (
    RISE,
    FeatureAblation,
    KernelShap,
    Lime,
    Occlusion,
    OwenValues,
    ShapleyValueSampling,
    superpixels,
)
from robustx.plot import TIGHT, attribution_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=["digits", "digits-robust"])
    parser.add_argument("--rows", default="3,5,36", help="which samples, with commas")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model)
    some = data[[int(row) for row in asked.rows.split(",")]]
    x = some.x
    with torch.inference_mode():
        answers = model(x).argmax(1)

    rows = 0

    def score(x: Tensor) -> Tensor:  # the model as any function, which counts what it is asked
        nonlocal rows
        rows += len(x)
        return model(x)

    # Sixteen squares of four pixels are the features: a coalition is a set of squares that keep their ink.
    squares = superpixels(x, "grid", 16)
    of_squares = {"target": answers, "feature_mask": squares}
    methods: dict[str, Callable[[], Tensor]] = {
        # One at a time: how far does the logit fall without this square, or without what a window covers?
        "ablation": lambda: FeatureAblation(score).attribute(x, **of_squares),
        "occlusion": lambda: Occlusion(score).attribute(x, 3, target=answers),
        # What does a square bring, in the mean over orders in which squares may come? Some orders, there and back; or
        # all of those in which neighbours come together: rows of squares, and halves of rows.
        "Shapley": lambda: ShapleyValueSampling(score).attribute(
            x, n_samples=10, sampling="antithetic", seed=0, **of_squares
        ),
        "Owen": lambda: OwenValues(score).attribute(x, **of_squares),
        # Simple models that follow the score: one weighted so that it finds Shapley values, one sparse.
        "KernelShap": lambda: KernelShap(score).attribute(x, n_samples=150, seed=0, **of_squares),
        "Lime": lambda: Lime(score).attribute(x, n_samples=150, seed=0, **of_squares),
        # Masks at random, finer than squares: the mean score where a pixel was to be seen, above that of all pixels.
        "RISE": lambda: centred(RISE(score).attribute(x, n_samples=1000, target=answers)),
    }

    maps: dict[str, Tensor] = {}
    with torch.inference_mode():
        rise = logits(model, x, answers) - logits(model, torch.zeros_like(x), answers)
    print(f"rise from no ink {told(rise)}")
    print(f"\n{'':18} {'rows a digit':>12} {'adds up to':>22} {'falls by':>22}   (four squares erased)")
    for name, run in methods.items():
        rows = 0
        maps[name] = run()
        worth = means(maps[name], squares)
        sums = told(worth.sum(1)) if name not in ("occlusion", "RISE") else ""
        print(f"{name:18} {rows / len(x):>12g} {sums:>22} {told(fall(model, x, answers, worth, squares)):>22}")
    draws = (torch.rand(len(x), 16, generator=torch.manual_seed(s)) for s in range(50))
    chance = torch.stack([fall(model, x, answers, worth, squares) for worth in draws]).mean(0)
    print(f"{'squares at random':18} {'':12} {'':22} {told(chance):>22}")

    asked.out.mkdir(parents=True, exist_ok=True)
    names = [f"a {zoo.class_name(some.classes, int(k))}" for k in answers]
    figure = attribution_maps(
        x,
        {name: a.sum(1) for name, a in maps.items()},
        data.bounds,
        f"What the answer of {asked.model} falls with",
        "red speaks for it, blue against it; each method on its own scale, in logits",
        names,
        one_scale=False,
    )
    figure.savefig(asked.out / "coalitions.png", **TIGHT)
    print(f"written to {asked.out}/coalitions.png")


def logits(model: torch.nn.Module, x: Tensor, answers: Tensor) -> Tensor:
    """Each example's logit of its answer [B]."""
    return model(x).gather(1, answers[:, None]).squeeze(1)


def means(a: Tensor, squares: Tensor) -> Tensor:
    """What each square shows [B, 16]: the mean of its pixels."""
    into = a.new_zeros(len(a), 16)
    return into.scatter_reduce(1, squares.flatten(1), a.flatten(1), "mean", include_self=False)


def centred(a: Tensor) -> Tensor:
    """Less its mean, image by image."""
    return a - a.mean((1, 2, 3), keepdim=True)


def fall(model: torch.nn.Module, x: Tensor, answers: Tensor, worth: Tensor, squares: Tensor, count: int = 4) -> Tensor:
    """How far the logit falls when the squares of the greatest worth lose their ink [B]."""
    first = torch.zeros_like(worth).scatter(1, worth.topk(count).indices, 1)
    erased = x * (1 - first.gather(1, squares.flatten(1))).view_as(x)
    with torch.inference_mode():
        return logits(model, x, answers) - logits(model, erased, answers)


def told(values: Tensor) -> str:
    return " ".join(f"{v:6.2f}" for v in values.tolist())


if __name__ == "__main__":
    main()

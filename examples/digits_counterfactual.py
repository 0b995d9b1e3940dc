"""Which parts of a 3 must give way for a network to see an 8? Squares of a digit, and three things to give way to.

    python examples/digits_counterfactual.py
    python examples/digits_counterfactual.py --was 4 --wanted 9 --squares 6

Black takes ink away, a blur smears it; only a patch of another picture, the nearest 8 that the network has learned
from, can add what makes an 8. With 16 squares there are few enough sets to try them all: where nothing is found, there
is nothing, and what is found is as small as can be.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer, CounterfactualResult
from robustx.perturb import nearest_unlike, superpixels
from robustx.plot import TIGHT, image_counterfactuals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help="a model of the zoo for digits")
    parser.add_argument("--was", type=int, default=3, help="which digit to begin with")
    parser.add_argument("--wanted", type=int, default=8, help="which digit it is to become")
    parser.add_argument("--row", type=int, default=2, help="which of the test pictures that the model takes for it")
    parser.add_argument("--squares", type=int, default=4, help="this many along each side")
    parser.add_argument("--out", type=Path, default=Path("counterfactual"), help="folder for the picture")
    asked = parser.parse_args()

    model, test = zoo.load(asked.model)
    train = zoo.data("digits", split="train")
    of_it = ((test.y == asked.was) & (model(test.x).argmax(1) == asked.was)).nonzero().flatten()
    x = test[int(of_it[asked.row])].x  # [1, 1, 8, 8]
    squares = superpixels(x, "grid", asked.squares**2)
    names = [f"row {i // asked.squares + 1}, column {i % asked.squares + 1}" for i in range(asked.squares**2)]

    ways = {"black": 0.0, "blur": "blur", f"the nearest {asked.wanted}": nearest_unlike(train.x, train.y)}
    results = []
    for name, reference in ways.items():
        # all sets are tried as long as there are at most 2^14 of a size: of 16 squares, all that there are
        explainer = CounterfactualExplainer(model, reference=reference, budget=2**14)
        results.append(explainer.generate(x, asked.wanted, feature_mask=squares, names=names))
        found = results[-1]
        print(f"{name}: {outcome(found)}")
        for square, share in found.why(0):
            print(f"  {square}: {share:+.3f} logits")

    asked.out.mkdir(parents=True, exist_ok=True)
    n = len(results)
    after = torch.cat([r.counterfactual for r in results])
    figure = image_counterfactuals(
        x.expand(n, -1, -1, -1),
        after,
        torch.stack([r.contributions[0][squares[0, 0]] for r in results]),
        squares[:, 0].expand(n, -1, -1),
        test.bounds,
        f"The fewest squares that must give way: from {asked.was} to {asked.wanted}",
        [(told(model, x), told(model, z[None])) for z in after],
        [f"{name}:\n{outcome(r).partition(',')[0]}" for name, r in zip(ways, results, strict=True)],
    )
    figure.savefig(asked.out / "digits_counterfactual.png", **TIGHT)
    print(f"written to {asked.out}/digits_counterfactual.png")


def outcome(result: CounterfactualResult) -> str:
    """What was found and proved."""
    if not result.valid[0]:
        return f"no set does, {result.status[0]}"
    return f"{int(result.n_changed[0])} squares, proved: {result.proved[0]}"


def told(model: torch.nn.Module, x: torch.Tensor) -> str:
    """The two likeliest digits in words."""
    with torch.inference_mode():
        likely = model(x)[0].softmax(0).topk(2)
    return ", ".join(f"{k} ({p:.1%})" for k, p in zip(likely.indices.tolist(), likely.values.tolist(), strict=True))


if __name__ == "__main__":
    main()

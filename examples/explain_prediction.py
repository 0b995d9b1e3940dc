"""Explain one prediction, and check the explanation: in Python what `robustx explain` does.

    python examples/explain_prediction.py
    python examples/explain_prediction.py --model breast-cancer --row 7
    python examples/explain_prediction.py --model mine:net --data mine:test --row 0 --out explanation

`mine:net` is a torch.nn.Module, or a function that returns one, in mine.py; `mine:test` a pair of tensors
(x, y), a Dataset, a DataLoader, or a function that returns one of them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch

from robustx import zoo
from robustx.attribution import FeatureAblation, IntegratedGradients, Saliency
from robustx.plot import TIGHT, attribution_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help="a model of the zoo, or package.module:name")
    parser.add_argument("--data", help="its data; models of the zoo bring theirs")
    parser.add_argument("--row", type=int, default=3, help="which sample")
    parser.add_argument("--steps", type=int, default=200, help="points on the path of integrated gradients")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model, asked.data)
    one = data[asked.row]  # still with its first axis: [1, ...]
    with torch.inference_mode():
        logits = model(one.x)[0]
    answer = int(logits.argmax())
    label, said = (zoo.class_name(one.classes, k) for k in (int(one.y), answer))
    print(f"label {label}, answer {said} ({logits.softmax(0)[answer]:.1%})")

    # Compared with the mean of the data, what does each part of the input bring to the logit of the answer?
    baseline = data.x.mean(0, keepdim=True)
    path, delta = IntegratedGradients(model).attribute(
        one.x, baseline, target=answer, n_steps=asked.steps, return_convergence_delta=True
    )
    fall = FeatureAblation(model).attribute(one.x, baseline, target=answer)  # one part taken away at a time
    slope = Saliency(model).attribute(one.x, target=answer, abs=False)  # how the logit reacts right here

    # Integrated gradients are complete: they add up to the difference of the logits. That can be checked.
    with torch.inference_mode():
        difference = float(logits[answer] - model(baseline)[0, answer])
    print(f"logit minus logit of the baseline: {difference:.4f}; attributions add up to {path.sum():.4f}")
    print(f"missing: {delta.item():.1e} (more --steps bring it down)")

    named = names(one)
    print(f"\n{'part':28} {'integrated':>10} {'ablation':>10} {'slope':>10}")
    for i in path.flatten().abs().argsort(descending=True)[:10].tolist():
        values = (a.flatten()[i].item() for a in (path, fall, slope))
        print(f"{named[i]:28}" + "".join(f" {v:10.4f}" for v in values))

    asked.out.mkdir(parents=True, exist_ok=True)
    if one.kind == "image":
        maps = {"integrated gradients": path, "feature ablation": fall, "saliency": slope}
        figure = attribution_maps(
            one.x,
            {name: a.sum(1) for name, a in maps.items()},
            one.bounds,
            f"{asked.model}: what speaks for {said}",
            "each method on its own scale, in logits (per input unit for saliency)",
            one_scale=False,
        )
        figure.savefig(asked.out / "explanation.png", **TIGHT)
        print(f"written to {asked.out}/explanation.png")


def names(one: zoo.Data) -> list[str]:
    """What the elements of one sample are called."""
    if one.columns:
        return [f"{c.name} = {v:.4g}" for c, v in zip(one.columns, one.to_units(one.x)[0], strict=True)]
    return [str(tuple(i)) for i in torch.ones_like(one.x[0]).nonzero().tolist()]


if __name__ == "__main__":
    main()

"""Compare explanations: which method tells best what the model looks at?

    python examples/compare_explanations.py
    python examples/compare_explanations.py --model digits-robust --samples 60

Eight methods, and chance, explain the same answers, and one table judges them: how soon the score falls when the pixels
that they rank first lose their ink, how soon it comes back, whether random sets of pixels are worth what they say,
whether they add up, and on how few pixels they rest. Then the model forgets what it has learnt, layer by layer: an
explanation that stays as it was did not depend on that. No method wins everywhere: choose for what you ask.
"""

import argparse
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor

from robustx import zoo
from robustx.attribution import (
    DeepLift,
    FeatureAblation,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
    ShapleyValueSampling,
    compare_methods,
)
from robustx.attribution.metrics import deletion, parameter_randomisation
from robustx.engine import Probability
from robustx.plot import TIGHT, curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=["digits", "digits-robust"])
    parser.add_argument("--samples", type=int, default=40, help="how many digits")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the pictures")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model)
    x = data[list(range(asked.samples))].x
    with torch.inference_mode():
        answers = model(x).argmax(1)

    def chance(inputs: Tensor, target: Tensor) -> Tensor:
        return torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))

    methods = {
        "saliency": Saliency(model),
        "guided backpropagation": GuidedBackprop(model),
        "smooth gradients": partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=10, stdevs=0.1, seed=0),
        "input x gradient": InputXGradient(model),
        "integrated gradients": partial(IntegratedGradients(model).attribute, n_steps=20),
        "DeepLIFT": DeepLift(model),
        "ablation": FeatureAblation(model),
        "Shapley values": partial(ShapleyValueSampling(model).attribute, n_samples=5, seed=0),
        "chance": chance,
    }
    metrics = ["deletion", "insertion", "faithfulness", "completeness", "sparseness"]
    table = compare_methods(model, x, answers, methods, metrics)
    print(table)
    rows = table.forwards.sum(0).double().mean()
    print(f"\n{rows:.0f} rows through the model for each digit, all methods and metrics together")

    best, *_ = sorted(zip(table.ranks[:, 2].tolist(), table.methods, strict=True))
    for gap in table.differences("faithfulness"):
        if gap.first == best[1] or gap.second == best[1]:
            sign = 1 if gap.first == best[1] else -1
            other = gap.second if sign == 1 else gap.first
            low, high = sorted((sign * gap.low, sign * gap.high))
            print(f"{best[1]} is more faithful than {other} by {sign * gap.mean:.2f} ({low:.2f} to {high:.2f})")

    print("\nHow alike magnitudes stay while layers forget, the last one first:")
    for name in ("saliency", "guided backpropagation", "input x gradient", "DeepLIFT"):
        print(f"{name:24}{parameter_randomisation(methods[name], x, target=answers, absolute=True)}")

    heights = {}
    for name, method in methods.items():
        maps = getattr(method, "attribute", method)(x, target=answers)
        curve = deletion(model, x, maps, Probability(answers), steps=64)
        heights[name] = curve.scores.mean(0).tolist()
    asked.out.mkdir(parents=True, exist_ok=True)
    title = f"Pixels lose their ink, the first ranked first: {asked.samples} digits"
    falling = curves(curve.shares.tolist(), heights, title, "share of pixels without ink", "probability of the answer")
    falling.savefig(asked.out / "deletion_curves.png", **TIGHT)
    table.plot(f"Means over {asked.samples} digits, with 95 % intervals").savefig(
        asked.out / "compare_explanations.png", **TIGHT
    )
    print(f"\npictures: {asked.out}/compare_explanations.png, {asked.out}/deletion_curves.png")


if __name__ == "__main__":
    main()

"""Gradients, noise and paths: nine answers to the question which pixels speak for a digit.

    python examples/gradients_and_paths.py
    python examples/gradients_and_paths.py --model digits-robust --rows 3,10,40

Each method is one line. The table below the maps says what can be checked: whether the attributions add up, and
how far the logit falls when the ten pixels that a method ranks first are erased.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor

from robustx import zoo
from robustx.attribution import (
    IDGI,
    BlurIG,
    ExpectedGradients,
    GuidedIG,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
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
    train = zoo.data("digits", split="train").x

    # Gradients at the input itself: how the logit reacts to a little more ink.
    maps: dict[str, Tensor] = {"saliency": Saliency(model).attribute(x, answers, abs=False)}
    maps["input x gradient"] = InputXGradient(model).attribute(x, answers)

    # SmoothGrad wraps any method: the mean over noisy copies. The noise goes by key, so it is the same each time.
    noise = {"nt_samples": 32, "stdevs": 0.15, "seed": 0}
    maps["SmoothGrad"] = NoiseTunnel(Saliency(model)).attribute(x, target=answers, abs=False, **noise)

    # Paths: gradients added up on the way from a baseline, here no ink at all. They add up to the rise on the way.
    ig = IntegratedGradients(model)
    maps["IG"] = ig.attribute(x, target=answers)
    maps["smoothed IG"] = NoiseTunnel(ig).attribute(x, target=answers, **noise)

    # Other paths: around what the model has not learnt to use; from a blurred picture to the sharp one. And another
    # way to share out what happens on the straight one: by where the gradient points.
    maps["guided IG"] = GuidedIG(model).attribute(x, target=answers)
    maps["blur IG"] = BlurIG(model, max_sigma=8).attribute(x, target=answers)
    maps["IDGI"] = IDGI(model).attribute(x, target=answers)

    # No single baseline: the training images are the baselines, and the rise counts from their mean logit.
    maps["expected gradients"] = ExpectedGradients(model).attribute(x, train, n_samples=300, target=answers)

    with torch.inference_mode():
        rise = logits(model, x, answers) - logits(model, torch.zeros_like(x), answers)
        among = logits(model, x, answers) - model(train).mean(0)[answers]
    print(f"rise from no ink {told(rise)}, from the training images {told(among)}")
    print(f"\n{'':22} {'adds up to':>22} {'falls by':>22}   (ten pixels erased)")
    for name, a in maps.items():
        print(f"{name:22} {told(a.flatten(1).sum(1)):>22} {told(fall(model, x, answers, a)):>22}")
    chance = [fall(model, x, answers, torch.rand(x.shape, generator=torch.manual_seed(s))) for s in range(50)]
    print(f"{'ten pixels at random':22} {'':22} {told(torch.stack(chance).mean(0)):>22}")

    asked.out.mkdir(parents=True, exist_ok=True)
    names = [f"a {zoo.class_name(some.classes, int(k))}" for k in answers]
    figure = attribution_maps(
        x,
        {name: a.sum(1) for name, a in maps.items()},
        data.bounds,
        f"What speaks for the answer of {asked.model}",
        "red speaks for it, blue against it; each method on its own scale, in logits (per unit of ink for slopes)",
        names,
        one_scale=False,
    )
    figure.savefig(asked.out / "gradients_and_paths.png", **TIGHT)
    print(f"written to {asked.out}/gradients_and_paths.png")


def logits(model: torch.nn.Module, x: Tensor, answers: Tensor) -> Tensor:
    """Each example's logit of its answer [B]."""
    return model(x).gather(1, answers[:, None]).squeeze(1)


def fall(model: torch.nn.Module, x: Tensor, answers: Tensor, a: Tensor, count: int = 10) -> Tensor:
    """How far the logit falls when the pixels with the greatest attributions lose their ink [B]."""
    first = a.flatten(1).topk(count).indices
    erased = x.flatten(1).scatter(1, first, 0).view_as(x)
    with torch.inference_mode():
        return logits(model, x, answers) - logits(model, erased, answers)


def told(values: Tensor) -> str:
    return " ".join(f"{v:6.2f}" for v in values.tolist())


if __name__ == "__main__":
    main()

"""DeepLIFT and LRP: a logit handed back through every operation of a network, so that what arrives adds up.

    python examples/deeplift_and_lrp.py
    python examples/deeplift_and_lrp.py --model digits-robust --rows 3,10,40

DeepLIFT hands back the logit's rise from a reference, LRP the logit itself, by a rule for each layer. One pass each way
does it, where integrated gradients need many. Printed is what the attributions add up to, and what they miss.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor

from robustx import zoo
from robustx.attribution import (
    LRP,
    DeepLift,
    DeepLiftShap,
    EpsilonRule,
    GammaRule,
    IntegratedGradients,
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
    train = zoo.data("digits", split="train").x[:100]

    # Against a picture without ink, and against each of a hundred training images, averaged.
    maps: dict[str, Tensor] = {}
    missed: dict[str, Tensor] = {}
    asks = {"target": answers, "return_convergence_delta": True}
    maps["IG"], missed["IG"] = IntegratedGradients(model).attribute(x, **asks)
    maps["DeepLIFT"], missed["DeepLIFT"] = DeepLift(model).attribute(x, **asks)
    maps["DeepLIFT SHAP"], missed["DeepLIFT SHAP"] = DeepLiftShap(model).attribute(x, train, **asks)

    # Without rules LRP is input times gradient in a network of ReLUs. The usual ones: in lower layers what speaks for
    # a unit counts more, in upper layers epsilon absorbs what is weak. What is missed went to the biases. (If black
    # pixels are to have a share too, ZBoxRule(*data.bounds) is the first layer's rule.)
    rules = {"conv*": GammaRule(0.25), "fc*": EpsilonRule(0.25)}
    maps["LRP, no rules"], missed["LRP, no rules"] = LRP(model).attribute(x, **asks)
    maps["LRP, composite"], missed["LRP, composite"] = LRP(model, rules).attribute(x, **asks)

    for name, a in maps.items():
        sums = " ".join(f"{v:6.2f}" for v in a.flatten(1).sum(1).tolist())
        print(f"{name:22} adds up to {sums}   misses {missed[name].abs().max():.1e} at most")

    asked.out.mkdir(parents=True, exist_ok=True)
    figure = attribution_maps(
        x,
        {name: a.sum(1) for name, a in maps.items()},
        data.bounds,
        f"What speaks for the answer of {asked.model}",
        "share of the logit",
        [f"a {k}" for k in answers.tolist()],
    )
    figure.savefig(asked.out / "deeplift_and_lrp.png", **TIGHT)
    print(f"written to {asked.out}/deeplift_and_lrp.png")


if __name__ == "__main__":
    main()

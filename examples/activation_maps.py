"""Where a convolutional network finds its evidence: Grad-CAM, its kin, and guided passes.

    python examples/activation_maps.py
    python examples/activation_maps.py --model digits-robust --rows 3,10,40 --layer relu1

Printed is how much of what is positive in each map lies on the ink. The tokens of a transformer have such maps too:
see examples/vision_transformer.py.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from torch import Tensor

from robustx import zoo
from robustx.attribution import (
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    LayerCam,
    LayerGradCam,
    LayerGradCamPlusPlus,
    LayerHiResCam,
)
from robustx.plot import TIGHT, attribution_maps

CAMS = {
    "Grad-CAM": LayerGradCam,
    "Grad-CAM++": LayerGradCamPlusPlus,
    "HiResCAM": LayerHiResCam,
    "LayerCAM": LayerCam,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=["digits", "digits-robust"])
    parser.add_argument("--rows", default="3,5,36", help="which samples, with commas")
    parser.add_argument("--layer", default="relu2", help="a layer with channels and places, by its name")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model)
    some = data[[int(row) for row in asked.rows.split(",")]]
    x, layer = some.x, model.get_submodule(asked.layer)
    with torch.inference_mode():
        answers = model(x).argmax(1)

    # One pass each way for a map of the layer's places, here resized to the picture's. As in the papers,
    # what is negative is left out.
    maps: dict[str, Tensor] = {}
    for name, method in CAMS.items():
        cam = method(model, layer).attribute(x, answers, relu_attributions=True)
        maps[name] = method.interpolate(cam, x.shape[2:], "bilinear")

    # Guided passes change how gradients pass a ReLU, however it is written; they have the picture's own resolution.
    maps["guided backprop"] = GuidedBackprop(model).attribute(x, answers)
    maps["deconvolution"] = Deconvolution(model).attribute(x, answers)
    maps["guided Grad-CAM"] = GuidedGradCam(model, layer).attribute(x, answers)

    ink = x > 0
    print(f"on the ink is {ink.float().mean():.0%} of the pictures, and of what is positive in")
    for name, a in maps.items():
        print(f"  {name:16} {on(ink, a):.0%}")

    asked.out.mkdir(parents=True, exist_ok=True)
    figure = attribution_maps(
        x,
        {name: a.sum(1) / a.abs().flatten(1).amax(1)[:, None, None] for name, a in maps.items()},
        data.bounds,
        f"Evidence for the answer of {asked.model}, at {asked.layer}",
        "share of the map's strongest",
        [f"a {k}" for k in answers.tolist()],
    )
    figure.savefig(asked.out / "activation_maps.png", **TIGHT)
    print(f"written to {asked.out}/activation_maps.png")


def on(ink: Tensor, a: Tensor) -> float:
    """The share of what is positive in attributions that lies on the ink, on average."""
    positive = a.clamp(min=0)
    return ((positive * ink).flatten(1).sum(1) / positive.flatten(1).sum(1)).mean().item()


if __name__ == "__main__":
    main()

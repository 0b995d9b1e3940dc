"""Ablation and attacks in robustx and in Captum: the same answers, in how many passes and how much of the time?

    python benchmarks/against_captum.py [--rounds 7] [--images 8] [--size 32]

A small ResNet with random weights and random images. The contestants take turns in one process; each row says how
far the answers are apart (as a share of the largest number), the rows that went forward and backward for each image
(counted by hooks on the model), the rows of the largest batch, and the processor's time as a share of Captum's in the
same round (median, quartiles). Methods that read gradients are compared in ``attribution.py``.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as theirs
import torch
from captum import robust
from contest import Run, apart, count, shares, spread
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from robustx import attacks, attribution


def contests(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Run, Run]]:
    """What is compared: name -> (robustx, Captum), same arguments, each library's own defaults."""
    mask = torch.arange(x.shape[-1]) * 4 // x.shape[-1]
    mask = (mask[:, None] * 4 + mask)[None, None]

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, target, reduction="none")

    step = {"radius": 8 / 255, "step_size": 2 / 255, "step_num": 10, "target": y}
    ours, captum = attacks.PGD(model, loss, 0, 1), robust.PGD(model, loss, 0, 1)
    return {
        "FeatureAblation, 16 regions": (
            lambda: attribution.FeatureAblation(model).attribute(x, target=y, feature_mask=mask),
            lambda: theirs.FeatureAblation(model).attribute(x, target=y, feature_mask=mask),
        ),
        "PGD.perturb, 10 steps (loss)": (
            lambda: loss(model(ours.perturb(x, **step)), y),
            lambda: loss(model(captum.perturb(x, **step)), y),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval().requires_grad_(False)
    x, y = torch.rand(asked.images, 3, asked.size, asked.size), torch.arange(asked.images) % 10
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {len(x)} images {asked.size} pixels wide")
    print(f"{'':32}{'difference':>11}{'forward/backward rows an image':>34}{'largest batch':>16}{'time / Captum':>24}")
    for name, pair in contests(model, x, y).items():
        (a, one), (b, other) = (count(model, run) for run in pair)  # the warm-up counts passes
        rows = " against ".join(f"{c.forward / len(x):g}/{c.backward / len(x):g}" for c in (a, b))
        largest = f"{a.largest} ag. {b.largest}"
        times = spread(shares(*pair, asked.rounds))
        print(f"{name:32}{apart(one, other):>11.1e}{rows:>34}{largest:>16}{times:>24}")


if __name__ == "__main__":
    main()

"""robustx against Captum: the same answers, in how many passes and how much of the time?

    python benchmarks/against_captum.py [--rounds 7] [--images 8] [--size 32]

A small ResNet with random weights and random images. The contestants take turns in one process; each row says how
far the answers are apart, the rows that went forward and backward for each image (counted by hooks on the model),
the time as a share of Captum's in the same round (median, quartiles), and the most memory that the activations
of one pass took, as rows of the largest batch.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as theirs
import torch
from captum import robust
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from robustx import attacks, attribution


@dataclass
class Counter:
    """Counts the rows that pass a model, from outside."""

    model: nn.Module
    forward: int = 0
    backward: int = 0
    largest: int = 0
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Counter":
        def seen(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.forward += len(out)
            self.largest = max(self.largest, len(out))
            if out.requires_grad:
                out.register_hook(lambda g: setattr(self, "backward", self.backward + len(g)))

        self.handles = [self.model.register_forward_hook(seen)]
        return self

    def __exit__(self, *_: object) -> None:
        for h in self.handles:
            h.remove()


def contests(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """What is compared: name -> (robustx, Captum), same arguments, each library's own defaults."""
    mask = torch.arange(x.shape[-1]) * 4 // x.shape[-1]
    mask = (mask[:, None] * 4 + mask)[None, None]

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, target, reduction="none")

    step = {"radius": 8 / 255, "step_size": 2 / 255, "step_num": 10, "target": y}
    ours, captum = attacks.PGD(model, loss, 0, 1), robust.PGD(model, loss, 0, 1)
    return {
        "Saliency": (
            lambda: attribution.Saliency(model).attribute(x, y),
            lambda: theirs.Saliency(model).attribute(x.clone().requires_grad_(), y),
        ),
        "IntegratedGradients, 50 steps": (
            lambda: attribution.IntegratedGradients(model).attribute(x, target=y),
            lambda: theirs.IntegratedGradients(model).attribute(x, target=y),
        ),
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
        counts, answers = [], []
        for run in pair:  # the warm-up counts passes
            with Counter(model) as c:
                answers.append(run())
            counts.append(c)
        shares = []
        for _ in range(asked.rounds):
            seconds = []
            for run in pair:
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            shares.append(seconds[0] / seconds[1])
        apart = float((answers[0] - answers[1]).abs().max())
        rows = " against ".join(f"{c.forward / len(x):g}/{c.backward / len(x):g}" for c in counts)
        largest = " ag. ".join(str(c.largest) for c in counts)
        low, mid, high = statistics.quantiles(shares, n=4)
        print(f"{name:32}{apart:>11.1e}{rows:>34}{largest:>16}{mid:>12.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()

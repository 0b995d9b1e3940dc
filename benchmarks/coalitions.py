"""Coalitions in robustx and in Captum: the same answers, in how many calls, how much time and memory?

    python benchmarks/coalitions.py [--rounds 5] [--only Lime 224 ...] [--batches 1 8]

A small ResNet with random weights and random images; features are superpixels of a grid. The contestants take turns
in one process and ask about equally many coalitions: robustx as it comes, Captum as it comes, and Captum with the
fastest of a few ``perturbations_per_eval``. Each row of the table says how far the answers are apart (as a share of
the largest number; of what is drawn, both draw the same), the rows for each image and the calls of the model (counted
by hooks), the most memory that tensors took at once (counted by a mode that sees every operation), and the
processor's time as a share of Captum's in the same round (median and quartiles).
"""

import argparse
import os
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as theirs
import torch
from contest import Run, apart, count, peak, seconds, shares, spread
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from robustx import attribution as ours

TUNED = 4, 16, 64


@dataclass(frozen=True)
class Contest:
    """A method of both libraries, by name, and what it is asked."""

    method: str
    size: int = 32
    superpixels: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def run(self, library: ModuleType, model: nn.Module, x: Tensor, y: Tensor, **further: Any) -> Run:
        method = getattr(library, self.method)(model)
        mask = None if self.superpixels is None else ours.superpixels(x[:1], "grid", self.superpixels)
        options = {**dict(self.options), **further, **({} if mask is None else {"feature_mask": mask})}

        def run() -> Any:
            torch.manual_seed(0)
            return method.attribute(x, target=y, **options)

        return run


def _occlusion(window: int, stride: int) -> tuple[tuple[str, Any], ...]:
    return ("sliding_window_shapes", (3, window, window)), ("strides", (3, stride, stride))


CONTESTS = {
    "FeatureAblation, 16 superpixels": Contest("FeatureAblation", 32, 16),
    "FeatureAblation, 64 superpixels": Contest("FeatureAblation", 32, 64),
    "Occlusion, 32 px, 49 windows": Contest("Occlusion", 32, None, _occlusion(8, 4)),
    "Occlusion, 224 px, 16 windows": Contest("Occlusion", 224, None, _occlusion(74, 50)),
    "ShapleyValueSampling, 16 superpixels, 10 orders": Contest("ShapleyValueSampling", 32, 16, (("n_samples", 10),)),
    "KernelShap, 16 superpixels, 100 samples": Contest("KernelShap", 32, 16, (("n_samples", 100),)),
    "Lime, 16 superpixels, 100 samples": Contest("Lime", 32, 16, (("n_samples", 100),)),
}


def compared(contest: Contest, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> list[str]:
    """The cells of one row."""

    def tuned(many: int) -> Run:
        return contest.run(theirs, model, x, y, perturbations_per_eval=many)

    mine, default = contest.run(ours, model, x, y), contest.run(theirs, model, x, y)
    (a, one), (b, other) = (count(model, run) for run in (mine, default))  # the warm-up counts passes
    took: dict[int, float] = {many: seconds(tuned(many)) for many in TUNED}
    best = min(took, key=lambda many: took[many])
    c, _ = count(model, tuned(best))
    return [
        f"{apart(one, other):.1e}",
        " / ".join(f"{k.forward / len(x):g}" for k in (a, b, c)),
        " / ".join(f"{k.calls}" for k in (a, b, c)),
        " / ".join(f"{peak(run):.3g}" for run in (mine, default, tuned(best))),
        spread(shares(mine, default, rounds)),
        f"{spread(shares(mine, tuned(best), rounds))} of {best}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval().requires_grad_(False)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {asked.rounds} rounds")
    print("three figures: robustx / Captum's defaults / Captum's best perturbations_per_eval of", *TUNED)
    print("| | images | difference | rows an image | calls | peak MiB | time / defaults | time / best |")
    print("|---|---|---|---|---|---|---|---|")
    for name, contest in CONTESTS.items():
        for images in asked.batches if any(part in name for part in asked.only) else ():
            x, y = torch.rand(images, 3, contest.size, contest.size), torch.arange(images) % 10
            print(f"| {name} | {images} |", " | ".join(compared(contest, model, x, y, asked.rounds)), "|", flush=True)


if __name__ == "__main__":
    main()

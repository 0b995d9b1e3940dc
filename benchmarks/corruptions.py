"""How near are our common corruptions to those of the package imagecorruptions, and how dear are they?

    python benchmarks/corruptions.py [--size 224] [--draws 5]

Of the photographs that come with scikit-image: at each severity, how far pictures are moved (root of the mean square),
ours over theirs, and processor time for each picture at severity 3, ours over theirs, on one thread. imagecorruptions
(pip install --no-deps imagecorruptions==1.1.2; it needs OpenCV and setuptools below 81) takes the strengths of
ImageNet-C at any size. What it cannot do with the installed numpy and scikit-image is left out by name. Its frost lays
photographs over the picture, and its elastic transforms are without an affine part: these two are meant to differ.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from skimage import data as pictures
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from robustx.perturb.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="pixels a side, more than 84")
    parser.add_argument("--draws", type=int, default=5, help="how often each picture is corrupted")
    asked = parser.parse_args()
    shots = [torch.from_numpy(getattr(pictures, n)()).permute(2, 0, 1) for n in NAMES]
    small = [center_crop(resize(s, asked.size, antialias=True), asked.size) for s in shots]
    x = torch.stack(small).double() / 255
    print(f"{len(x)} photographs of {asked.size} pixels, {asked.draws} draws; ours over theirs")
    print(f"{'':20}" + "".join(f"{s:>7}" for s in SEVERITIES) + "   time, and ms of ours")
    theirs, broken = peer(), []
    for name in (*CORRUPTIONS, *EXTRA):
        try:
            apart = [moved(theirs, x, name, s, asked.draws) for s in SEVERITIES]
        except Exception as e:
            broken.append(f"{name} ({type(e).__name__})")
            continue
        ratios = [moved(corrupt, x, name, s, asked.draws) / a for s, a in zip(SEVERITIES, apart, strict=True)]
        ours, their = (seconds(f, x, name, asked.draws) for f in (corrupt, theirs))
        print(f"{name:20}" + "".join(f"{r:7.2f}" for r in ratios) + f"{ours / their:7.2f}{1000 * ours:10.1f}")
    print(f"broken there: {', '.join(broken) or 'none'}")


def peer() -> Callable[..., Tensor]:
    """Their corruptions as a function like ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        import imagecorruptions

    def run(x: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
        np.random.seed(seed)
        bytes_ = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = [imagecorruptions.corrupt(p, severity, name) for p in bytes_]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).double() / 255

    return run


def moved(f: Callable[..., Tensor], x: Tensor, name: str, severity: int, draws: int) -> float:
    """The root of the mean square of what is moved, over all pictures and draws."""
    return float(torch.stack([(f(x, name, severity, seed) - x).square().mean() for seed in range(draws)]).mean().sqrt())


def seconds(f: Callable[..., Tensor], x: Tensor, name: str, rounds: int) -> float:
    """Processor time for a picture at severity 3: the median of some rounds."""
    spent = []
    for seed in range(rounds):
        begun = time.process_time()
        f(x, name, 3, seed)
        spent.append((time.process_time() - begun) / len(x))
    return float(np.median(spent))


if __name__ == "__main__":
    main()

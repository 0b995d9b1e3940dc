"""How many pictures survive being turned and shifted, and what gradients find of it.

    python examples/rotations.py
    python examples/rotations.py --angle 15 --shift 0.5 --samples 200

Of each model: accuracy on the pictures as they are, turned, shifted, and both, always by the worst point of a grid for
each picture; and by gradients at the same three numbers (angle, right, down), with as many steps as is usual. Writes
the mildest change that fools each of the first ten, as a picture.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from robustx import zoo
from robustx.attacks import SpatialGrid, pgd
from robustx.attacks.spatial import Warp
from robustx.engine import Probe
from robustx.perturb import Leave, Linf, Region
from robustx.plot import TIGHT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits", "digits-robust"])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--angle", type=float, default=20.0, help="the largest, in degrees")
    parser.add_argument("--shift", type=float, default=0.5, help="the largest, in pixels")
    parser.add_argument("--out", type=Path, default=Path("rotations"), help="folder for the picture")
    asked = parser.parse_args()

    angles = torch.linspace(-asked.angle, asked.angle, 21)
    shifts = torch.linspace(-asked.shift, asked.shift, 5)
    print(f"{'accuracy':15} as it is  turned  shifted  both  by gradients   passes each, grid and gradients")
    for name in asked.models:
        model, data = zoo.load(name, limit=asked.samples)
        attacks = SpatialGrid(model, (0,), (0,)), SpatialGrid(model, angles, (0,)), SpatialGrid(model, (0,), shifts)
        both = SpatialGrid(model, angles, shifts).run(data.x, data.y)
        held = [*(1 - a.run(data.x, data.y).success.float().mean() for a in attacks), 1 - both.success.float().mean()]
        left, passes = by_gradients(model, data.x, data.y, asked.angle, asked.shift)
        print(
            f"{name:15} {held[0]:8.0%}{held[1]:8.0%}{held[2]:9.0%}{held[3]:6.0%}{left:14.0%}"
            f"   {both.forwards.float().mean():.0f} and {passes:.0f}"
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    first = both.at(slice(10))
    told = [f"{angle:.0f}° {right:+.2g} {down:+.2g}" for angle, right, down in first.transformation.tolist()]
    print(f"{name}, the first ten: {', '.join(told)}")
    first.plot(title=f"{name}: the mildest change of the grid that fools; distance as a share of its reach").savefig(
        asked.out / "attacks_spatial.png", **TIGHT
    )
    print(f"written to {asked.out}/attacks_spatial.png")


def by_gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, angle: float, shift: float) -> tuple:
    """Accuracy left by projected gradients on angle and shifts, and passes for each picture."""
    f = Probe(model, (x,), Leave(y), Warp())
    anywhere = torch.full((1, 1), torch.inf)
    region = Region(f.point, Linf(torch.tensor([angle, shift, shift])), torch.ones(len(x)), -anywhere, anywhere)
    found = pgd(f, region, f.everyone, steps=20, length=torch.full((len(x),), 0.1))
    return 1 - float(found.success.float().mean()), float((f.meter.forward + f.meter.backward).float().mean())


if __name__ == "__main__":
    main()

"""What changes in a picture, and how soon it tells."""

from math import ceil

import numpy as np
import torch
from torch import Tensor

from ...engine.scores import Everything
from ...perturb.features import blocks
from ...perturb.goals import as_logits
from .case import Case, told

STEPS = 50  # of a curve


def area(case: Case) -> Tensor:
    """The share of pixels in which any channel differs by more than the tolerance."""
    return _pixels(case).flatten(1).double().mean(1)


def components(case: Case) -> Tensor:
    """In how many connected parts the changed pixels lie; those that touch by a corner are connected."""
    from skimage.measure import label

    counts = [label(np.asarray(m), connectivity=2, return_num=True)[1] for m in _pixels(case)]
    return torch.tensor(counts, dtype=torch.float64)


def cout(case: Case) -> Tensor:
    """The mean probability of the target minus that of the class it came from, while it is copied over the input.

    Khorram, Fuxin (CVPR 2022): what changed most comes first, pixel by pixel (feature by feature in tables), in
    at most 50 steps; areas by trapezoids, from -1 to 1.
    """
    f = case.f
    units = blocks(f.inputs) if len(f.inputs) == 1 and f.inputs[0].ndim == 4 else case.features
    rank = units.gather(case.delta.abs().to(case.z), case.rows).argsort(stable=True, dim=1, descending=True).argsort(1)
    steps = min(STEPS, units.count)
    count = torch.tensor([ceil(t * units.count / steps) for t in range(steps + 1)], device=rank.device)

    def query(part: slice) -> tuple[Tensor, Tensor]:
        n = torch.arange(part.start, part.stop, device=rank.device)
        of = n // (steps + 1)
        return case.taken(of, rank[of] < count[n % (steps + 1)][:, None], units), case.rows[of]

    parts = [told(as_logits(v, v)) for _, v in f.to(of=Everything()).values(len(rank) * (steps + 1), query)]
    curve = torch.cat(parts).softmax(1).reshape(len(rank), steps + 1, -1)
    of = torch.stack([case.target, case.own], 1)[:, None].expand(-1, steps + 1, -1)
    ways = torch.trapezoid(curve.gather(2, of), dx=1 / steps, dim=1)
    return ways[:, 0] - ways[:, 1]


def _pixels(case: Case) -> Tensor:
    """Which pixels differ [R, ...]."""
    return (case.delta.abs() > case.tolerance).reshape(len(case.z), *case.f.inputs[0].shape[1:]).any(1)

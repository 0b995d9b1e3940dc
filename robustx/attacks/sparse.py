"""Sparse attacks: as few changed elements as can be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Loss
from ..perturb.region import Region
from .adam import Adaptive, fading
from .base import Attack, Found, warn_if_flat
from .search import assured


def ranks(f: Probe, region: Region, rows: Tensor, z: Tensor) -> Tensor:
    """The place of each element of ``z`` among those that moved, by what its move gains, the most first [N, D].

    What it gains is its gradient times its move. Elements that did not move come last.
    """
    move = z - region.centre
    gain = torch.where(move == 0, -torch.inf, f.grad(z, rows)[1] * move)
    return gain.argsort(dim=1, descending=True, stable=True).argsort(1)


def fewer(f: Probe, region: Region, rows: Tensor, found: Found) -> Found:
    """Each point that succeeded, with as many elements put back as it can spare, those first whose moves gain least.

    As many as can be are found by bisection: one gradient, and values.
    """
    left = (found.success & (found.z != region.centre).sum(1).gt(1)).nonzero().squeeze(1)
    if not len(left):
        return found
    region, best, some = region.at(left), found.at(left), rows[left]
    rank, low, high = ranks(f, region, some, best.z), torch.zeros_like(some), (best.z != region.centre).sum(1)
    while True:
        open_ = (high - low > 1).nonzero().squeeze(1)
        if not len(open_):
            return found.put(left, best)
        middle = (low + high)[open_] // 2
        near = region.at(open_)
        z = torch.where(rank[open_] < middle[:, None], best.z[open_], near.centre)
        margin = f.value(z, some[open_])
        good = margin > 0
        low[open_], high[open_] = torch.where(good, low[open_], middle), torch.where(good, middle, high[open_])
        best = best.put(open_, best.at(open_).where(good, Found(z, margin, near.size(z))))


@dataclass(frozen=True, eq=False)
class _Thresholding(Adaptive):
    """Rows whose elements are put back where they moved less than ``threshold`` [n] of the box.

    ``scale`` [n] makes the first gradient of each row have a largest entry of one.
    """

    threshold: Tensor
    scale: Tensor


def sigma_zero(f: Probe, region: Region, rows: Tensor, steps: int, sigma: float, threshold: float) -> Found:
    """Descends on max(-margin, 0) + mean u^2 / (u^2 + sigma), a smooth count, and puts back what moved too little.

    Cina et al. (ICLR 2025), algorithm 1; u is a move as a share of the box. The threshold falls while a row does not
    reach the goal and rises while it does. Beside the original, the goal's gradient is scaled by its first largest
    entry, so that the units of logits do not matter. Rows with one changed element leave: there are none with fewer.
    """
    best, d = Found.nothing(region.centre), region.centre.shape[1]
    one = torch.ones_like(region.centre[:, 0])
    a = _Thresholding.fresh(rows, region, None, threshold * one, one)
    for step in range(steps):
        margin, g = f.grad(a.z, a.rows)
        if not step:
            warn_if_flat(margin, g)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, a.region.size(a.z))))
        going = best.size[a.index] > 1
        a, margin, g = a.at(going), margin[going], g[going]
        if not len(a):
            break
        width = a.region.room(a.region.low, torch.ones_like(a.z))
        g = g * width
        if not step:
            a = a.to(scale=g.abs().amax(1).clamp(min=torch.finfo(g.dtype).tiny))
        u = (a.z - a.region.centre) / width.clamp(min=torch.finfo(g.dtype).tiny)
        down = 2 * sigma * u / (u.square() + sigma).square() / d
        down = down - torch.where(margin > 0, 0, 1 / a.scale)[:, None] * g
        down = down / down.abs().amax(1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        rate = 0.1 + 0.9 * fading(step, steps)
        limit = (a.threshold + torch.where(margin > 0, 0.01, -0.01) * rate).clamp(0, 1)
        a, move = a.told(down, rate)
        z = a.region.clip(a.z + move * width)
        kept = (z - a.region.centre).abs() >= limit[:, None] * width
        a = a.to(z=torch.where(kept, z, a.region.centre), threshold=limit)
    return best


class SigmaZero(Attack):
    """Sigma-zero: as few changed elements as a descent on a smooth count finds.

    Cina et al. (ICLR 2025), arXiv 2402.01879. What it found gives back the elements that it can spare. Arguments as for
    :class:`Attack`; ``loss_func`` is the margin unless another is given.

    Args:
        steps: gradient steps.
        sigma: moves whose square (as a share of the box) is well above it count as one.
        threshold: moves below that share of the box are undone, at first.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    >>> _ = model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> result = SigmaZero(model, bounds=(0, 1), steps=50).run(torch.tensor([[0.8, 0.2, 0.5]]), torch.tensor([0]))
    >>> result.adversarial[0, 2].item(), result.distance.item()
    (0.5, 1.0)
    """

    minimal = True
    norms = ("L0",)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 300,
        sigma: float = 1e-3,
        threshold: float = 0.3,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.steps, self.sigma, self.threshold = whole("steps", steps, 1), sigma, threshold

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        found = sigma_zero(f, region, rows, self.steps, self.sigma, self.threshold)
        return fewer(f, region, rows, assured(f, region, rows, noise, found))

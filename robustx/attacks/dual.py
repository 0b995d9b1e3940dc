"""Attacks that bargain between distance and goal by multipliers: descent in the point, ascent in the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.probe import Probe
from ..perturb.norms import Norm
from ..perturb.region import Region
from .adam import Adaptive
from .base import Active
from .found import Found, shrunk
from .minimal import Descent, outset


@dataclass(frozen=True, eq=False)
class _Bargaining(Active):
    """Rows that climb the goal and pay for the distance.

    Args:
        unit: the Euclidean length of the way to the start, in which steps are measured [n, 1].
        mean: running mean of unit gradients [n, D].
        weight: logarithm of the goal's multiplier over that of the distance [n].
        price: running mean of the distance's multiplier over that of the goal [n].
    """

    unit: Tensor
    mean: Tensor
    weight: Tensor
    price: Tensor


Bargain = Callable[[_Bargaining, Tensor], Tensor]
"""(rows, their moves along the goal's gradient [n, D]) -> how far from the centre they come [n, D]."""


def pdpgd(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, rate: float) -> Found:
    """Gradient steps towards the goal, each followed by the proximal point of the norm.

    Matyasko, Chau (arXiv 2106.01538), algorithm 2. In units of the problem: a step is a share of the way to the start,
    and at a price of 1 the norm takes back just what the step brought.
    """

    def proximal(a: _Bargaining, move: Tensor) -> Tensor:
        norm = a.region.norm
        return norm.prox(a.z + move - a.region.centre, a.price * norm.dual(move))

    return _bargained(f, region, rows, steps, start, rate, proximal)


def pdgd(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, rate: float) -> Found:
    """Gradient steps on the sum of distance and goal, each by its share of the multipliers.

    Matyasko, Chau (arXiv 2106.01538), algorithm 1, in the units of :func:`pdpgd`.
    """

    def plain(a: _Bargaining, move: Tensor) -> Tensor:
        away, length = a.z - a.region.centre, torch.linalg.vector_norm(move, dim=1, keepdim=True)
        paid = a.price[:, None] * length * _slope(a.region.norm, away)
        there: Tensor = away + (move - paid) / (1 + a.price[:, None])
        return there

    return _bargained(f, region, rows, steps, start, rate, plain)


def _bargained(
    f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, rate: float, bargain: Bargain
) -> Found:
    """The saddle point of distance and goal: the goal's multiplier falls where it is reached, and grows elsewhere."""
    best, way = Found.nothing(region.centre), start - region.centre
    still, even = torch.zeros_like(region.radius), torch.ones_like(region.radius)
    a = _Bargaining.of(rows, region, start, _length(way), torch.zeros_like(way), still, even)
    for step in range(steps + 1):
        margin, g = f.grad(a.z, a.rows) if step < steps else (f.value(a.z, a.rows), a.z)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, region.size(a.z))))
        if step == steps:
            break
        g = region.usable(a.z, g)
        a = a.to(mean=torch.lerp(g / _length(g).clamp(min=torch.finfo(g.dtype).tiny), a.mean, 0.5))
        move = rate * 0.01 ** (step / steps) * a.unit * a.mean / (1 - 0.5 ** (step + 1))
        z = region.project(region.centre + bargain(a, move))
        turn = 0.1 * (1 - 0.9 * step / steps) * torch.where(margin <= 0, 1.0, -1.0)
        weight = (a.weight + turn.to(z)).clamp(-14, 14)
        a = a.to(z=z, weight=weight, price=torch.lerp((-weight).exp(), a.price, 0.9))
    return shrunk(f, region, rows, best)


@dataclass(frozen=True, eq=False)
class _Penalized(Adaptive):
    """Rows that descend a penalized distance.

    Args:
        multiplier, penalty: those of the constraint [n].
        last: the constraint when it was last compared [n].
        since: the step in which the goal was first reached [n]; before, the last one.
    """

    multiplier: Tensor
    penalty: Tensor
    last: Tensor
    since: Tensor


def alma(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, rate: float) -> Found:
    """Descent on the distance and a penalty of what the goal misses, whose multiplier follows the penalty's slope.

    Rony et al. (ICCV 2021), algorithm 2 with the penalty P2, every ten steps raised by a fifth where the goal is
    neither reached nor 5 % nearer. In units of the problem: distances and steps are shares of the way to the start,
    the constraint is a share of the margin that is missing at the centre. Adam takes the steps, whose length falls to
    a hundredth from where the goal is first reached.
    """
    best, tiny = Found.nothing(region.centre), torch.finfo(start.dtype).tiny
    scale = -f.value(region.centre, rows).to(start).clamp(max=-tiny)
    unit, size = _length(start - region.centre), region.size(start)[:, None].clamp(min=tiny)
    one = torch.ones_like(scale)
    a = _Penalized.fresh(rows, region, start, one, one, one, torch.full_like(one, steps))
    for step in range(steps + 1):
        margin, g = f.grad(a.z, a.rows) if step < steps else (f.value(a.z, a.rows), a.z)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, region.size(a.z))))
        if step == steps:
            break
        missing = (-margin.to(scale) / scale).nan_to_num(1.0)
        if step % 10 == 9:
            stuck = ~best.success & (missing > 0.95 * a.last)
            a = a.to(last=missing, penalty=torch.where(stuck, 1.2 * a.penalty, a.penalty))
        pressure = _p2(missing, a.penalty, a.multiplier)
        since = torch.where(best.success, a.since.clamp(max=step), a.since)
        a = a.to(multiplier=torch.lerp(pressure, a.multiplier, 0.9).clamp(1e-6, 1e12), since=since)
        down = unit * (_slope(region.norm, a.z - region.centre) / size - (pressure / scale)[:, None] * g)
        share = ((step - since) / (steps - since).clamp(min=1)).clamp(min=0)[:, None]
        a, move = a.told(down, rate * 0.01**share * unit / g.shape[1] ** 0.5)
        a = a.to(z=region.project(a.z + move))
    return shrunk(f, region, rows, best)


def _p2(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """The slope of the penalty P2 at constraints ``y`` [N] (above 0: missed); Rony et al. (2021), table 1."""
    over, under = y.clamp(min=0), y.clamp(max=0)
    return torch.where(y > 0, mu + 2 * mu * rho * over + (rho * over) ** 2 / 2, mu / (1 - rho * under) ** 2)


def _slope(norm: Norm, d: Tensor) -> Tensor:
    """The gradient of each row's size [N, D]."""
    with torch.enable_grad():
        d = d.detach().requires_grad_()
        slope: Tensor = torch.autograd.grad(norm.size(d).sum(), d)[0]
    return slope.nan_to_num()


def _length(d: Tensor) -> Tensor:
    """The Euclidean length of each row [N, 1]."""
    length: Tensor = torch.linalg.vector_norm(d, dim=1, keepdim=True)
    return length


class PDPGD(Descent):
    """Primal-dual proximal gradient descent, in every norm: gradient steps that the norm draws back at a price.

    Matyasko, Chau (arXiv 2106.01538). Arguments as for :class:`Descent`, and

    Args:
        rate: the first step, in shares of the way to the start; steps fall to a hundredth of it.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = PDPGD(model, bounds=(0, 1), norm="L1").run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.7
    """

    norms = ("L2", "Linf", "L1", "L0")

    def __init__(self, *args: Any, rate: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rate = rate

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return pdpgd(f, region, rows, self.steps, outset(f, region, rows, self.candidates), self.rate)


class PDGD(Descent):
    """Primal-dual gradient descent (L2): gradient steps on the sum of distance and goal.

    Matyasko, Chau (arXiv 2106.01538). Arguments as for :class:`PDPGD`.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = PDGD(model, bounds=(0, 1)).run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.495
    """

    norms = ("L2",)

    def __init__(self, *args: Any, rate: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rate = rate

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return pdgd(f, region, rows, self.steps, outset(f, region, rows, self.candidates), self.rate)


class ALMA(Descent):
    """Augmented Lagrangian attack (L2, L1): descent on the distance, under a penalty that learns what the goal takes.

    Rony, Granger, Pedersoli, Ben Ayed (ICCV 2021), arXiv 2011.11857. Arguments as for :class:`Descent`, and

    Args:
        rate: the first step, in shares of the way to the start; from the first success on, steps fall to a hundredth.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = ALMA(model, bounds=(0, 1)).run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.495
    """

    norms = ("L2", "L1")

    def __init__(self, *args: Any, rate: float = 2.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rate = rate

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return alma(f, region, rows, self.steps, outset(f, region, rows, self.candidates), self.rate)

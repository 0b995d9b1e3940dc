"""Attacks that descend by gradients to the nearest point: by a radius that breathes about the boundary."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Boundaries, Goal, Leave, Loss
from ..perturb.region import Region
from .base import Active, Attack, warn_if_flat
from .deepfool import nearest, theirs
from .found import Found, shrunk
from .gradient import likeliest
from .search import sure


def outset(f: Probe, region: Region, rows: Tensor, candidates: int | None) -> Tensor:
    """Where to begin: just across the boundary that is nearest to first order, inside the region [N, D].

    A descent ends at the boundary of that class at which it begins, so that the nearest one is worth its passes: one
    forward, and one backward for each of the ``candidates`` likeliest rivals (Yao et al., CVPR 2019, eq. 8).
    """
    assert isinstance(f.of, Goal)
    told, slopes = f.to(of=Boundaries(f.of, candidates)).grad(region.centre, rows)
    warn_if_flat(told[:, 0], slopes.flatten(1))
    leads = told[:, 1:]
    lead, slope = theirs(nearest(region, region.centre, leads, slopes), leads, slopes)
    least = region.norm.least(slope, -1.001 * lead.to(slope), region.room(region.centre, slope))
    return region.project(region.centre + least)


def facing(f: Probe, region: Region, rows: Tensor, candidates: int | None) -> Probe:
    """``f``, looking at the boundary that is nearest to first order, and at no other."""
    goal = f.of
    assert isinstance(goal, Goal)
    if isinstance(goal, Leave) and goal.toward is None:
        leads, slopes = f.to(of=Boundaries(goal, candidates)).grad(region.centre, rows)
        rival = nearest(region, region.centre, leads[:, 1:], slopes)[:, None]
        classes = likeliest(f, rows, leads.shape[1] - 1).sort(1).values
        goal = replace(goal, toward=goal.y.index_copy(0, rows, classes.gather(1, rival).squeeze(1)))
    return f.to(of=Boundaries(goal, 1))


@dataclass(frozen=True, eq=False)
class _Breathing(Active):
    """Rows that look for the goal each within a ``radius`` [n] of its own, which shrinks where they find it."""

    radius: Tensor

    def pushed(self, g: Tensor, share: float) -> Tensor:
        """Where the rows come to along ``g``, as far as the box lets them, before they are drawn into their balls.

        By that ``share`` of the Euclidean length of the steepest move of their radius: whatever norm, size and units.
        """
        g = self.region.usable(self.z, g)
        most = self.region.norm.steepest(g, self.radius, self.region.room(self.z, g))
        length, slope = (torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in (most, g))
        pushed: Tensor = self.z + share * length * g / slope.clamp(min=torch.finfo(g.dtype).tiny)
        return pushed


def fmn(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, share: float, gamma: float) -> Found:
    """Steps along the gradient, each followed by the projection onto a ball that shrinks where the goal is reached.

    Pintor et al. (NeurIPS 2021), algorithm 1: a row's radius falls by the factor 1 - ``gamma`` where it stands beyond
    the boundary and grows by 1 + ``gamma`` where it stands before it; until it has been beyond once, the radius is at
    least that of the boundary to first order. Steps (``share``) and ``gamma`` decay to a hundredth by a cosine.
    Projections and first order heed the box. In L0, where radii are counts, a row leaves when one element is enough.
    """
    norm, best = region.norm, Found.nothing(region.centre)
    a = _Breathing.of(rows, region, start, region.size(start))
    for step in range(steps + 1):
        margin, g = f.grad(a.z, a.rows) if step < steps else (f.value(a.z, a.rows), a.z)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, region.at(a.index).size(a.z))))
        going = best.size[a.index] > norm.unit
        a, margin, g = a.at(going), margin[going], g[going]
        if step == steps or not len(a):
            break
        decay, now = _cosine(step, steps), best.at(a.index)
        beyond = ~(margin <= 0)  # a margin that is NaN lies beyond what can be used
        smaller = torch.minimum(norm.spendable(a.radius * (1 - decay * gamma)), a.radius - norm.unit)
        larger = torch.maximum(norm.spendable(a.radius * (1 + decay * gamma)), a.radius + norm.unit)
        nearer = norm.spendable(now.size * (1 - 1e-6))  # than the best point: a tie would be decided by rounding
        radius = torch.where(beyond, torch.minimum(smaller, nearer), larger)
        new = (~beyond & ~now.success).nonzero().squeeze(1)
        if len(new):
            there, way = a.at(new), g[new]
            ahead = norm.least(way, -margin[new].to(way), there.region.room(there.z, way))
            first = there.region.size(there.z) + norm.size(ahead)
            radius = radius.index_copy(0, new, torch.maximum(radius[new], first))
        a = a.to(radius=torch.minimum(radius.clamp(min=norm.unit), a.region.radius))
        a = a.to(z=a.region.to(radius=a.radius).project(a.pushed(g, decay * share)))
    return best


def ddn(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, share: float, gamma: float) -> Found:
    """Steps along the gradient, each drawn to a sphere that shrinks where the goal is reached; the best one drawn back.

    Rony et al. (CVPR 2019), algorithm 1: direction and norm are decoupled. A row's radius falls by the factor
    1 - ``gamma`` where it stands beyond the boundary and grows by 1 + ``gamma`` before it; steps decay to a hundredth
    by a cosine. Here spheres are cut by the box, so that what it takes from some elements is given to others.
    """
    best = Found.nothing(region.centre)
    a = _Breathing.of(rows, region, start, region.size(start))
    for step in range(steps + 1):
        margin, g = f.grad(a.z, a.rows) if step < steps else (f.value(a.z, a.rows), a.z)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, region.size(a.z))))
        if step == steps:
            break
        radius = a.radius * torch.where(margin <= 0, 1 + gamma, 1 - gamma)
        a = a.to(radius=torch.minimum(radius, region.radius))
        way = a.pushed(g, _cosine(step, steps) * share) - region.centre
        a = a.to(z=region.step(region.centre, way, a.radius))
    return shrunk(f, region, rows, best)


@dataclass(frozen=True, eq=False)
class _Trusting(Active):
    """Rows that trust the linear model for a ``share`` [n] of the way that it foretold.

    Args:
        lead: by how much the rival led before the last step [n].
        gain: what the step was hoped to add to that [n].
    """

    share: Tensor
    lead: Tensor
    gain: Tensor


def trust_region(f: Probe, region: Region, rows: Tensor, steps: int, share: float, candidates: int | None) -> Found:
    """Least steps to the nearest rival's boundary, none longer than the linear model has proved good for.

    Yao et al. (CVPR 2019), algorithm 1: where a step gained more than nine tenths of what was hoped for, the radius
    grows by a fifth; where it gained less than half, it shrinks. Radii are shares of the way to the boundary that the
    first gradient foretells: ``share`` at first, never above a twentieth, never so little that ``steps`` of them would
    not go twice that way. A row leaves when it reaches the goal; its point is then drawn back towards the centre.
    """
    norm, best, g = region.norm, Found.nothing(region.centre), facing(f, region, rows, candidates)
    least, most = 2 / max(steps, 1), max(2 / max(steps, 1), 0.05)
    even = torch.ones_like(region.radius)
    a, first, way = _Trusting.of(rows, region, None, share * even, even, even), even, even
    for step in range(steps + 1):
        told, slopes = g.grad(a.z, a.rows) if step < steps else (g.value(a.z, a.rows), a.z[:, None])
        margin, lead, slope = told[:, 0], told[:, 1].to(a.z), slopes[:, 0]
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, a.region.size(a.z))))
        if step == 0:
            first = -lead
            way = norm.size(norm.least(slope, first, region.room(region.centre, slope)))
            warn_if_flat(margin, slope)
        going = (margin <= 0) & slope.any(1)
        a, lead, slope = a.at(going), lead[going], slope[going]
        if step == steps or not len(a):
            break
        trust, kept = a.share, (lead - a.lead) / a.gain  # the part of what was hoped for
        if step:
            trust = trust * torch.where(kept > 0.9, 1.2, torch.where(kept < 0.5, 1 / 1.2, 1.0))
        trust = trust.clamp(least, most)
        room, radius = a.region.room(a.z, slope), trust * way[a.index]
        whole = norm.least(slope, torch.maximum(-1.001 * lead, first[a.index] / 50), room)  # the last step arrives, too
        part = norm.steepest(slope, radius, room)
        move = torch.where((norm.size(whole) <= radius)[:, None], whole, part)
        a = a.to(z=a.region.project(a.z + move), share=trust, lead=lead, gain=(slope * move).sum(1))
    return shrunk(f, region, rows, best)


def _cosine(step: int, steps: int) -> float:
    """From 1 in the first step to a hundredth after the last."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2


class Descent(Attack):
    """An attack that descends by gradients to the nearest point; what all of these share.

    Each begins just across the boundary that is nearest to first order. Without a budget, an example that the descent
    never fools comes from a sure search (:func:`robustx.attacks.sure`) of any point at all.

    Args:
        loss_func: what is climbed; here the margin by default, whose boundary is the goal's own.
        steps: gradient steps.
        candidates: how many of the likeliest other classes are looked at for the start; None: all.

    Further arguments as for :class:`Attack`; ``eps`` bounds the search, too.
    """

    minimal = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        candidates: int | None = 9,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func or "margin", lower_bound, upper_bound, **options)
        self.steps = whole("steps", steps, 0)
        self.candidates = None if candidates is None else whole("candidates", candidates, 1)

    @abstractmethod
    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        """The nearest points that the method finds [N]."""

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = self.descend(f, region, rows)
        left = (~best.success & region.radius.isinf()).nonzero().squeeze(1)
        return best.put(left, sure(f, region.at(left), rows[left], noise.at(left))) if len(left) else best


class FMN(Descent):
    """Fast minimum norm attack, in every norm: projected steps in a ball that breathes about the boundary.

    Pintor, Roli, Brendel, Biggio (NeurIPS 2021), arXiv 2102.12827. Arguments as for :class:`Descent`, and

    Args:
        share: the first step, in shares of what the steepest move of the radius covers.
        gamma: by how much a radius shrinks or grows at first.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = FMN(model, bounds=(0, 1), norm="L2").run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.495
    """

    norms = ("L2", "Linf", "L1", "L0")

    def __init__(self, *args: Any, share: float = 2.0, gamma: float = 0.05, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share, self.gamma = share, gamma

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return fmn(f, region, rows, self.steps, outset(f, region, rows, self.candidates), self.share, self.gamma)


class DDN(Descent):
    """Decoupled direction and norm attack (L2): steps on a sphere that breathes about the boundary.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger (CVPR 2019), arXiv 1811.09600. Its first radius is that of the
    nearest boundary to first order, in whatever units the inputs are. Arguments as for :class:`Descent`, and

    Args:
        share: the first step, in shares of the radius.
        gamma: by how much a radius shrinks or grows.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = DDN(model, bounds=(0, 1)).run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.495
    """

    norms = ("L2",)

    def __init__(self, *args: Any, share: float = 16.0, gamma: float = 0.05, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share, self.gamma = share, gamma

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return ddn(f, region, rows, self.steps, outset(f, region, rows, self.candidates), self.share, self.gamma)


class TrustRegion(Descent):
    """Trust region attack (L2, Linf): steps to the nearest rival, no longer than its linear model is good for.

    Yao, Gholami, Xu, Keutzer, Mahoney (CVPR 2019), arXiv 1812.06371. Cheap: an example leaves when it is fooled.
    Arguments as for :class:`Descent` (``loss_func`` has no say: what is climbed is the rival's lead), and

    Args:
        share: the first radius, in shares of the way to the boundary, to first order; at most a twentieth.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = TrustRegion(model, bounds=(0, 1), norm="Linf").run(torch.tensor([[0.9, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.35
    """

    norms = ("L2", "Linf")

    def __init__(self, *args: Any, share: float = 0.03, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share = share

    def descend(self, f: Probe, region: Region, rows: Tensor) -> Found:
        return trust_region(f, region, rows, self.steps, self.share, self.candidates)

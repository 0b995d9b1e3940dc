"""Norms of a perturbation, row by row: its size, its ball, its steepest direction.

Everything is exact inside a box: ``room`` [N, D] (>= 0, may be infinite) says how far each element may go
in the direction in which it wants to move, which is all that a box around the ball's centre means to
a projection or to a linear maximisation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.packing import finest
from ..engine.randomness import Noise


class Norm(ABC):
    """A norm of rows [N, D].

    Laws: ``project`` is the nearest point; ``steepest`` attains the dual norm where there is room; ``least`` is its
    inverse; ``prox`` and projections onto the dual ball add up to what they are asked (Moreau); draws are inside.
    ``unit`` is the least by which two sizes can differ (0 if there is no such thing).
    """

    unit: ClassVar[float] = 0.0

    @abstractmethod
    def size(self, d: Tensor) -> Tensor:
        """[N, D] -> [N]."""

    @abstractmethod
    def dual(self, g: Tensor) -> Tensor:
        """The most that a move of size one gains along ``g`` [N, D] -> [N]."""

    @abstractmethod
    def steepest(self, g: Tensor, length: Tensor, room: Tensor | None = None) -> Tensor:
        """The move of size at most ``length`` [N], within ``room``, that gains most along ``g``: argmax <g, v>."""

    @abstractmethod
    def least(self, g: Tensor, gain: Tensor, room: Tensor | None = None) -> Tensor:
        """The smallest move, within ``room``, that gains ``gain`` [N] along ``g``: argmin size(v), <g, v> >= gain.

        The way to a half-space inside a box. Where the box allows no such gain, the move that gains most.
        """

    @abstractmethod
    def project(self, d: Tensor, radius: Tensor, room: Tensor | None = None) -> Tensor:
        """The Euclidean-nearest point to ``d`` of each row's ball of ``radius`` [N], within ``room``."""

    @abstractmethod
    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        """The point v that makes ``|v - d|^2 / 2 + weight size(v)`` least: ``d``, drawn towards zero by ``weight`` [N].

        Nothing is left where dual(d) <= weight. A count's weight would be in other units: there it is half the square
        of ``weight``, so that the same holds.
        """

    @abstractmethod
    def draw(self, noise: Noise, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """A uniformly random point of each row's ball; ``low`` and ``high`` [N, D] bound it only for L0."""

    def outside(self, d: Tensor, radius: Tensor) -> Tensor:
        """The elements that take a row out of its ball [N, D]: all that it has, unless the norm knows which."""
        return (self.size(d) > radius)[:, None].expand(d.shape)

    def spendable(self, budget: Tensor) -> Tensor:
        """How much of each budget [N] a size can be: whole units of it."""
        return (budget / self.unit).floor() * self.unit if self.unit else budget

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, eq=False)
class Linf(Norm):
    """The largest change of any element, in units of ``scale`` [D] where elements have units of their own."""

    scale: Tensor | None = None

    def size(self, d: Tensor) -> Tensor:
        d = d if self.scale is None else d / self.scale.to(d)
        return d.abs().amax(1) if d.shape[1] else d.new_zeros(len(d))

    def dual(self, g: Tensor) -> Tensor:
        return (g.abs() * self._units(torch.ones_like(g[:, 0]), g)).sum(1) if g.shape[1] else g.new_zeros(len(g))

    def _units(self, length: Tensor, like: Tensor) -> Tensor:
        scale = torch.ones_like(like[:1]) if self.scale is None else self.scale.to(like)
        return length[:, None] * scale

    def steepest(self, g: Tensor, length: Tensor, room: Tensor | None = None) -> Tensor:
        return g.sign() * _within(self._units(length, g), room)

    def least(self, g: Tensor, gain: Tensor, room: Tensor | None = None) -> Tensor:
        units = self._units(torch.ones_like(g[:, 0]), g) if g.shape[1] else g
        return g.sign() * _gaining(g.abs(), gain, units, _within(torch.full_like(g, torch.inf), room))

    def project(self, d: Tensor, radius: Tensor, room: Tensor | None = None) -> Tensor:
        return d.sign() * torch.minimum(_within(d.abs(), room), self._units(radius, d))

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        # all elements beyond a level are cut to it, and the weight is what that cuts off in all
        if not d.shape[1]:
            return d
        units = self._units(torch.ones_like(weight), d)
        x, u, w = finest(d.abs() / units), finest(units.expand_as(d)), finest(weight)[:, None]
        at, order = x.sort(1, descending=True)
        square = u.square().gather(1, order)
        levels = ((square * at).cumsum(1) - w) / square.cumsum(1)  # if only so many elements were beyond it
        level = levels.amax(1, keepdim=True).clamp(min=0)
        return d.sign() * torch.minimum(x, level).mul(u).to(d.dtype)

    def draw(self, noise: Noise, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return (noise.uniform(low.shape[1], low) * 2 - 1) * self._units(radius, low)

    def outside(self, d: Tensor, radius: Tensor) -> Tensor:
        return d.abs() / self._units(torch.ones_like(radius), d) > radius[:, None]


@dataclass(frozen=True)
class L2(Norm):
    """The Euclidean length of the change."""

    def size(self, d: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(d, dim=1)
        return size

    def dual(self, g: Tensor) -> Tensor:
        return self.size(g)

    def steepest(self, g: Tensor, length: Tensor, room: Tensor | None = None) -> Tensor:
        return g.sign() * _fill(g.abs(), length, _within(torch.full_like(g, torch.inf), room))

    def least(self, g: Tensor, gain: Tensor, room: Tensor | None = None) -> Tensor:
        return g.sign() * _gaining(g.abs(), gain, g.abs(), _within(torch.full_like(g, torch.inf), room))

    def project(self, d: Tensor, radius: Tensor, room: Tensor | None = None) -> Tensor:
        cap = _within(d.abs(), room)
        filled = _fill(d.abs(), radius, cap)
        return d.sign() * torch.where((self.size(cap) <= radius)[:, None], cap, filled)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        size = self.size(d)
        left = (size - weight).clamp(min=0) / size.clamp(min=torch.finfo(d.dtype).tiny)
        return d * left[:, None]

    def draw(self, noise: Noise, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        n, d = low.shape
        way = F.normalize(noise.normal(d, low), dim=1)
        return way * (radius[:, None] * noise.uniform(1, low) ** (1 / max(d, 1)))


@dataclass(frozen=True)
class L1(Norm):
    """The sum of the changes' sizes."""

    def size(self, d: Tensor) -> Tensor:
        return d.abs().sum(1)

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().amax(1) if g.shape[1] else g.new_zeros(len(g))

    def steepest(self, g: Tensor, length: Tensor, room: Tensor | None = None) -> Tensor:
        # spend the length on the best element, then on the next best once its room is used up
        order = g.abs().argsort(1, descending=True)
        room = torch.where(g == 0, 0, _within(torch.full_like(g, torch.inf), room)).gather(1, order)
        spent = F.pad(room.cumsum(1)[:, :-1], (1, 0)) if g.shape[1] else room
        move = torch.minimum((length[:, None] - spent).clamp(min=0), room)
        return g.sign() * torch.zeros_like(g).scatter(1, order, move)

    def least(self, g: Tensor, gain: Tensor, room: Tensor | None = None) -> Tensor:
        room = _within(torch.full_like(g, torch.inf), room)
        return g.sign() * _spending(g.abs(), gain, room, g.abs().argsort(1, descending=True))

    def project(self, d: Tensor, radius: Tensor, room: Tensor | None = None) -> Tensor:
        cap = _within(d.abs(), room)
        level = _level(d.abs(), radius, cap)
        return d.sign() * torch.minimum((d.abs() - level[:, None]).clamp(min=0), cap)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        return d.sign() * (d.abs() - weight[:, None]).clamp(min=0)

    def draw(self, noise: Noise, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        # the gaps of sorted uniforms are a uniform point of the simplex; one more gap makes it the ball
        e = noise.exponential(low.shape[1] + 1, low)
        sign = (noise.uniform(low.shape[1], low) - 0.5).sign()
        return sign * e[:, :-1] / e.sum(1, keepdim=True) * radius[:, None]


@dataclass(frozen=True)
class L0(Norm):
    """The number of elements that change. Needs a finite box: within it, an element may go anywhere."""

    unit = 1.0

    def size(self, d: Tensor) -> Tensor:
        return (d != 0).sum(1).to(d.dtype)

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().amax(1) if g.shape[1] else g.new_zeros(len(g))

    def steepest(self, g: Tensor, length: Tensor, room: Tensor | None = None) -> Tensor:
        move = g.sign() * (torch.ones_like(g) if room is None else room)
        return torch.where(_leading(g * move, length.ceil()), move, 0)  # a step moves one element at least

    def least(self, g: Tensor, gain: Tensor, room: Tensor | None = None) -> Tensor:
        room = _within(torch.full_like(g, torch.inf), room)
        most = torch.where(g == 0, 0, g.abs() * room)
        return g.sign() * _spending(g.abs(), gain, room, most.argsort(1, descending=True))

    def project(self, d: Tensor, radius: Tensor, room: Tensor | None = None) -> Tensor:
        cap = _within(d.abs(), room)
        nearer = cap * (2 * d.abs() - cap)  # d^2 - (d - cap)^2: how much nearer an element brings us by moving
        return torch.where(_leading(nearer, radius), d.sign() * cap, 0)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        return torch.where(d.abs() > weight[:, None], d, 0)

    def draw(self, noise: Noise, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        n, d = low.shape
        moving = _leading(noise.uniform(d, low) + 1, radius)
        return torch.where(moving, torch.lerp(low, high, noise.uniform(d, low)), 0)


NORMS: dict[str, Norm] = {"L0": L0(), "L1": L1(), "L2": L2(), "Linf": Linf()}


def norm_of(norm: str | float | Norm) -> Norm:
    """The norm of that name (``"L0"``, ``"L1"``, ``"L2"``, ``"Linf"``, or 0, 1, 2, inf).

    Raises:
        ValueError: there is none.
    """
    if isinstance(norm, Norm):
        return norm
    name = str(norm).lower().removeprefix("l").removesuffix(".0")
    for known, n in NORMS.items():
        if known[1:].lower() == name:
            return n
    raise ValueError(f"norm must be one of {', '.join(NORMS)} (or a Norm), got {norm!r}")


def _within(length: Tensor, room: Tensor | None) -> Tensor:
    return length if room is None else torch.minimum(length, room)


def _leading(gain: Tensor, count: Tensor) -> Tensor:
    """Where a row's ``count`` [N] largest gains are, of those above zero."""
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < count.floor()[:, None]) & (gain > 0)


def _fill(a: Tensor, size: Tensor, cap: Tensor) -> Tensor:
    """min(t a, cap) with the t >= 0 that makes its Euclidean size ``size`` (all of ``cap`` if that is smaller).

    Elements that meet their caps leave more of the size to the others, so t only grows: the set of those
    that meet them is found in a few rounds, exactly.
    """
    x, r2 = finest(a), finest(size)[:, None] ** 2
    c, tiny = finest(torch.where(a > 0, cap, 0)), torch.finfo(x.dtype).tiny
    met = c <= 0
    while True:
        left = (r2 - torch.where(met, c, 0).square().sum(1, keepdim=True)).clamp(min=0)
        free = torch.where(met, 0, x)
        free = free / free.sum(1, keepdim=True).clamp(min=tiny)  # only ratios matter, and 1e-200 squared is 0
        filled = torch.where(met, c, free * (left / free.square().sum(1, keepdim=True).clamp(min=tiny)).sqrt())
        over = ~met & (filled >= c)
        if not over.any():
            return filled.to(a.dtype)
        met = met | over


def _level(a: Tensor, size: Tensor, cap: Tensor) -> Tensor:
    """The level >= 0 at which clamp(a - level, 0, cap) sums to ``size``; 0 if ``cap`` sums to less. cap <= a.

    The sum falls from that of the caps to 0, linearly between the levels at which elements leave their caps
    (a - cap) and vanish (a). Without caps this is Duchi et al. (ICML 2008).
    """
    if not a.shape[1]:
        return a.new_zeros(len(a))
    x, c, r = finest(a), finest(cap), finest(size)
    x = torch.where(c > 0, x, 0)
    at, order = torch.cat([x, x - c], 1).sort(1, descending=True)
    slope = torch.cat([torch.ones_like(x), -torch.ones_like(x)], 1).gather(1, order).cumsum(1)
    sums = F.pad((slope[:, :-1] * -at.diff(dim=1)).cumsum(1), (1, 0))  # at each of these levels
    k = ((sums < r[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    into = (r[:, None] - sums.gather(1, k)) / slope.gather(1, k).clamp(min=1)
    level = (at.gather(1, k) - into).clamp(min=0).squeeze(1)
    return torch.where(c.sum(1) <= r, 0, level).to(a.dtype)


def _gaining(a: Tensor, gain: Tensor, rate: Tensor, cap: Tensor) -> Tensor:
    """min(t rate, cap) with the t >= 0 at which its product with ``a`` is ``gain`` (all of ``cap`` if that gains less).

    The product grows with t, linearly between the t at which elements meet their caps.
    """
    if not a.shape[1]:
        return a
    x, v, c = finest(a), finest(rate), torch.where(a > 0, finest(cap), 0)
    need = finest(gain).clamp(min=0)[:, None]
    v = v / v.amax(1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)  # only ratios matter, and 1e-200 squared is 0
    at, order = torch.where(c > 0, c / v, 0).sort(1)
    slope = torch.where(c > 0, x * v, 0).gather(1, order).flip(1).cumsum(1).flip(1)
    gains = (slope * F.pad(at, (1, 0)).diff(dim=1)).nan_to_num(torch.inf).cumsum(1)  # when t has come to ``at``
    k = (gains < need).sum(1, keepdim=True)
    before = k.clamp(max=a.shape[1] - 1)
    into = (need - F.pad(gains, (1, 0)).gather(1, before)) / slope.gather(1, before)
    t = torch.where(k == a.shape[1], torch.inf, F.pad(at, (1, 0)).gather(1, before) + into)
    return torch.where(c > 0, torch.minimum(t * v, c), 0).to(a.dtype)


def _spending(a: Tensor, gain: Tensor, room: Tensor, order: Tensor) -> Tensor:
    """Moves whose product with ``a`` is ``gain``, of one element after the other, each as far as it has room."""
    x, r = finest(a).gather(1, order), finest(room).gather(1, order)
    gains = torch.where(x > 0, x * r, 0)
    left = finest(gain)[:, None] - F.pad(gains.cumsum(1)[:, :-1], (1, 0)) if a.shape[1] else gains
    move = torch.where(x > 0, torch.minimum(left.clamp(min=0) / x, r), 0)
    return torch.zeros_like(a).scatter(1, order, move.to(a.dtype))

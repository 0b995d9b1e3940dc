"""Carlini's and Wagner's attacks, and their elastic-net kin: distance and goal in one objective, weighed row by row."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Goal, Loss
from ..perturb.norms import L1, L2
from ..perturb.region import Region
from .adam import Adaptive, fading
from .base import Active, Attack, warn_if_flat
from .found import Found
from .search import assured
from .sparse import fewer, ranks

HAIR = 1e-4  # of half the box: how far inside its walls a search starts, where a wave is not flat
PACE = 60.0  # the first steps of a round, each so many shares over their number: see _Sought
CLOSE = 1e-4  # what is gained less than that is not worth another round
SHRINK = 0.03  # the first step of a round of shrinking; 0.5 would reach the least of the squares at once
MORE = 10.0  # how much more the goal weighs after a round that did not reach it


class Wave:
    """The box as the image of all numbers: z = middle + half sin(w), element by element; z = w where it has no end.

    The sine plays the part of the hyperbolic tangent in section V.B of Carlini, Wagner (S&P 2017). That never arrives
    at a wall, and from one, where pixels often are, it takes hundreds of steps to leave; a sine turns round there.
    Elements that are not free stay where they are.
    """

    def __init__(self, region: Region) -> None:
        low, high = region.low.expand_as(region.centre), region.high.expand_as(region.centre)
        self.region = region
        self.boxed = torch.isfinite(low) & torch.isfinite(high)
        self.middle = torch.where(self.boxed, (low + high) / 2, 0)
        self.half = torch.where(self.boxed, (high - low) / 2, 1)

    def at(self, z: Tensor) -> Tensor:
        """The w of points, a hair inside the walls."""
        share = (z - self.middle) / self.half.clamp(min=torch.finfo(z.dtype).tiny)
        return torch.where(self.boxed, share.clamp(HAIR - 1, 1 - HAIR).asin(), z)

    def point(self, w: Tensor) -> Tensor:
        """The z of w."""
        z = torch.where(self.boxed, self.middle + self.half * w.sin(), w)
        return self.region.held(self.region.clip(z))

    def slope(self, w: Tensor) -> Tensor:
        """dz/dw."""
        return torch.where(self.boxed, self.half * w.cos(), 1)


def weigh(
    f: Probe,
    region: Region,
    rows: Tensor,
    start: Tensor,
    c: Tensor,
    length: Tensor,
    away: Callable[[Tensor], Tensor],
    steps: int,
) -> Found:
    """The nearest success on the way of Adam down distance + c max(-margin, 0), from ``start`` [N, D].

    Carlini, Wagner (S&P 2017), eq. 7 with their sixth loss. ``away`` is the distance's gradient at a move [N, D]; the
    first steps move no element by more than ``length`` [N], and later ones ever less.
    """
    wave, best = Wave(region), Found.nothing(region.centre)
    a = Adaptive.fresh(rows, region, wave.at(start))
    length = length[:, None] / wave.half.clamp(min=torch.finfo(start.dtype).tiny)
    for step in range(steps):
        z = wave.point(a.z)
        margin, g = f.grad(z, rows)
        best = best.smaller(Found(z, margin, region.size(z)))
        down = away(z - region.centre) - torch.where(margin > 0, 0, c)[:, None] * g
        a, move = a.told(down * wave.slope(a.z), length.clamp(max=0.5) * fading(step, steps))
        a = a.to(z=a.z + move)
    return best


@dataclass(frozen=True, eq=False)
class _Sought(Active):
    """Rows whose rounds start at ``z`` and look for the least that will do.

    Args:
        c: how much the goal weighs [n].
        trial: what is tried in the next round: a weight, a largest change, a count of elements.
        low, high: the largest that failed, the smallest that did.
        share: how far each element would go, if all went as far.
    """

    c: Tensor
    trial: Tensor
    low: Tensor
    high: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class _Capped(_Sought):
    """Rows whose next cap is by a share, ``fall`` [n], below the best."""

    fall: Tensor


def cw_l2(f: Probe, region: Region, rows: Tensor, steps: int, rounds: int) -> Found:
    """Carlini, Wagner (S&P 2017), section VI.A: the weight of the goal is bisected, row by row.

    A row starts at twice the weight that would do if the goal were affine, and leaves when less brings it no nearer.
    """
    best, a = _begin(f, region, rows)
    a = a.to(trial=4 * math.sqrt(region.centre.shape[1]) * a.share * a.c)
    for _ in range(rounds):
        if not len(a):
            break
        found = weigh(f, a.region, a.rows, a.z, a.trial, PACE / steps * a.share, lambda d: 2 * d, steps)
        before = best.at(a.index)
        best = best.put(a.index, before.smaller(found))
        a = a.to(share=torch.where(found.success, found.size / math.sqrt(a.z.shape[1]), 2 * a.share))
        a = _weighed(a, before, found)
    return best


def cw_linf(f: Probe, region: Region, rows: Tensor, steps: int, rounds: int) -> Found:
    """Carlini, Wagner (S&P 2017), section VI.C: what exceeds a cap is drawn back, and the cap falls, row by row.

    By a tenth of what was reached, as there; after each failure by half as much.
    """
    best, b = _begin(f, region, rows)
    a = _Capped(**vars(b.to(trial=1.5 * b.share, c=region.centre.shape[1] / 6 * b.c)), fall=torch.full_like(b.c, 0.1))
    for _ in range(rounds):
        if not len(a):
            break

        def over(d: Tensor, cap: Tensor = a.trial[:, None]) -> Tensor:
            return torch.where(d.abs() > cap, d.sign(), 0)

        found = weigh(f, a.region, a.rows, a.z, a.c, PACE / 6 / steps * a.share, over, steps)
        best = best.put(a.index, best.at(a.index).smaller(found))
        now = best.at(a.index)
        fell = now.success
        fall = torch.where(fell & (now.size > (1 + CLOSE) * a.trial), a.fall / 2, a.fall)
        a = a.to(
            z=torch.where(fell[:, None], now.z, a.z),
            trial=torch.where(fell, (1 - fall) * now.size, 2 * a.trial),
            c=torch.where(found.success, a.c, MORE * a.c),
            share=torch.where(fell, now.size, 2 * a.share),
            fall=fall,
        ).at(fall > 10 * CLOSE)
    return best


def cw_l0(f: Probe, region: Region, rows: Tensor, steps: int, rounds: int) -> Found:
    """Carlini, Wagner (S&P 2017), section VI.B: what matters least is fixed, and the rest moves on in L2, row by row.

    An element matters by its gradient times its move. How many may move is bisected; what a success can spare goes.
    """
    best, a = _begin(f, region.to(norm=L2()), rows)
    a = a.to(trial=torch.full_like(a.c, region.centre.shape[1]))
    a = a.to(c=4 * MORE * math.sqrt(region.centre.shape[1]) * a.share * a.c)
    for _ in range(rounds):
        if not len(a):
            break
        found = weigh(f, a.region, a.rows, a.z, a.c, PACE / steps * a.share, lambda d: 2 * d, steps)
        home = region.at(a.index)
        found = Found(found.z, found.margin, home.size(found.z))
        best = best.put(a.index, best.at(a.index).smaller(fewer(f, home, a.rows, found)))
        now = best.at(a.index)
        low = torch.where(now.size > a.trial, a.trial, a.low)
        a = a.to(
            z=torch.where(now.success[:, None], now.z, a.z),
            trial=torch.where(now.success, (low + now.size) / 2, a.trial).floor(),
            low=low,
            c=torch.where(found.success, a.c, MORE * a.c),
        ).at(~(now.size - low <= 1))
        home = region.at(a.index)
        counted = ranks(f, home, a.rows, a.z) < a.trial[:, None]
        a = a.to(region=home.to(norm=L2(), free=counted if home.free is None else counted & home.free))
    return best


def ead(f: Probe, region: Region, rows: Tensor, steps: int, rounds: int, beta: float, elastic: bool) -> Found:
    """Chen et al. (AAAI 2018), algorithm 1: distance is beta L1 + L2 squared, and the goal's weight is bisected.

    ``beta`` is in units of how far the goal would be in L1, if it were affine. The smallest success is that of least
    L1, or, if ``elastic``, of least distance.
    """
    best, a = _begin(f, region, rows)
    far = a.share * region.centre.shape[1]
    a = a.to(trial=2 * (beta + 2) * far * a.c, share=beta * far)
    for _ in range(rounds):
        if not len(a):
            break
        found = shrinking(f, a.region, a.rows, a.trial, a.share, steps, elastic)
        before = best.at(a.index)
        best = best.put(a.index, before.smaller(found))
        a = _weighed(a, before, found)
    return Found(best.z, best.margin, region.size(best.z))


def shrinking(
    f: Probe, region: Region, rows: Tensor, c: Tensor, beta: Tensor, steps: int, elastic: bool = False
) -> Found:
    """The smallest success on the way of FISTA down beta L1 + L2 squared + c max(-margin, 0).

    Beck, Teboulle (SIAM J. Imaging Sci. 2009), section 4, with fading steps. Points with momentum are the ones that are
    looked at, so that a step is one pass.
    """
    before = z = region.centre
    best = Found.nothing(z)
    for step in range(steps):
        margin, g = f.grad(z, rows)
        d = z - region.centre
        size = beta * d.abs().sum(1) + d.square().sum(1) if elastic else region.size(z)
        best = best.smaller(Found(z, margin, size))
        rate = SHRINK * fading(step, steps)
        d = d - rate * (2 * d - torch.where(margin > 0, 0, c)[:, None] * g)
        now = region.held(region.clip(region.centre + L1().prox(d, rate * beta)))
        before, z = now, region.clip(now + step / (step + 3) * (now - before))
    return best


def _weighed(a: _Sought, before: Found, found: Found) -> _Sought:
    """After a round: what weight is to be tried next, without the rows that came no nearer by less of it."""
    fell = found.success
    low, high = torch.where(fell, a.low, a.trial), torch.where(fell, a.trial, a.high)
    trial = torch.where(high.isinf(), MORE * a.trial, torch.where(low > 0, (low * high).sqrt(), high / 2))
    return a.to(trial=trial, low=low, high=high).at(~fell | (found.size < (1 - CLOSE) * before.size))


def _begin(f: Probe, region: Region, rows: Tensor) -> tuple[Found, _Sought]:
    """Nothing found yet, and the rows that have somewhere to go, set up as if the goal were affine."""
    margin, g = f.grad(region.centre, rows)
    warn_if_flat(margin, g)
    way = region.usable(region.centre, g)
    dual = region.norm.dual(way)
    share = -margin / dual / region.norm.size(torch.ones_like(way))
    zero = torch.zeros_like(share)
    a = _Sought.of(rows, region, None, 1 / dual, zero, zero, zero + torch.inf, share)
    return Found.nothing(region.centre), a.at(torch.isfinite(share))


LOOPS = {"L2": cw_l2, "Linf": cw_linf, "L0": cw_l0}


class CW(Attack):
    """Carlini's and Wagner's attacks: the nearest point by gradient descent on distance and goal, weighed.

    Arguments as for :class:`Attack`; ``loss_func`` is the margin unless another is given.

    Carlini, Wagner (S&P 2017), arXiv 1608.04644. Beside the original, weights and step lengths come from the first
    gradient, row by row, so that none has to be chosen; steps fade; the box is reached by a sine (see :class:`Wave`).

    Args:
        steps: gradient steps per round.
        rounds: at most so many weights (L2), caps (Linf) or counts of elements (L0) are tried.
        confidence: the least margin that counts as a success.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = CW(model, bounds=(0, 1)).run(torch.tensor([[0.8, 0.2]]), torch.tensor([0]))
    >>> round(float(result.distance), 3)  # 0.6 / sqrt(2)
    0.424
    """

    minimal = True
    norms = ("L2", "Linf", "L0")

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        rounds: int = 9,
        confidence: float = 0.0,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.steps, self.rounds = whole("steps", steps, 1), whole("rounds", rounds, 1)
        self.confidence = confidence

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        assert isinstance(f.of, Goal)
        f = f.to(of=f.of.firm(self.confidence))
        return assured(f, region, rows, noise, LOOPS[str(self.norm)](f, region, rows, self.steps, self.rounds))


class EAD(Attack):
    """Elastic-net attack: the nearest point in L1, by shrinking steps.

    Chen et al. (AAAI 2018), arXiv 1709.04114. Weights come from the first gradient, row by row, as in :class:`CW`.
    Arguments as for :class:`Attack`; ``loss_func`` is the margin unless another is given.

    Args:
        steps: gradient steps per round.
        rounds: at most so many weights of the goal are tried.
        beta: how much L1 weighs beside the square of L2, in units of how far the first gradient says the goal is.
        rule: what the smallest success has least of: ``"L1"``, or ``"EN"``, beta L1 + L2 squared.
        confidence: the least margin that counts as a success.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> result = EAD(model, bounds=(0, 1)).run(torch.tensor([[0.5, 0.4]]), torch.tensor([0]))
    >>> round(float(result.distance), 2)  # 0.6 / 2
    0.3
    """

    minimal = True
    norms = ("L1",)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        rounds: int = 9,
        beta: float = 3.0,
        rule: str = "L1",
        confidence: float = 0.0,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        if rule not in ("L1", "EN"):
            raise ValueError(f"rule must be 'L1' or 'EN', got {rule!r}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a number of at least 0, got {beta!r}")
        self.steps, self.rounds = whole("steps", steps, 1), whole("rounds", rounds, 1)
        self.beta, self.rule, self.confidence = beta, rule, confidence

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        assert isinstance(f.of, Goal)
        f = f.to(of=f.of.firm(self.confidence))
        found = ead(f, region, rows, self.steps, self.rounds, self.beta, self.rule == "EN")
        return assured(f, region, rows, noise, found)

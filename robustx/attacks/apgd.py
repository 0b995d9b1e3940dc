"""Auto-PGD: a climb that shortens its steps by itself, where they no longer gain."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Leave, Loss
from ..perturb.region import Region
from .base import Active, Attack, flat, warn_of
from .found import Found
from .gradient import likeliest

AT_ONCE = 1 << 24
"""Elements of points that are held at once where each example climbs towards several classes."""


@dataclass(frozen=True, eq=False)
class _Climber(Active, ABC):
    """Rows on their way up: where they are, and the highest point that each has seen.

    Args:
        length: of the next step [n].
        loss, g: height [n] and slope [n, D] where they are.
        top, top_loss, top_margin, top_g: the point with the largest loss.
    """

    length: Tensor
    loss: Tensor
    g: Tensor
    top: Tensor
    top_loss: Tensor
    top_margin: Tensor
    top_g: Tensor

    @classmethod
    def at_start(cls, rows: Tensor, region: Region, start: Tensor, length: Tensor, *more: Any) -> Self:
        high, low = torch.full_like(length, torch.inf), torch.full_like(length, -torch.inf)
        level = torch.zeros_like(start)
        return cls.of(rows, region, start, length, high, level, start, low, low, level, *more)

    def seen(self, margin: Tensor, loss: Tensor, g: Tensor) -> Self:
        """With what a pass told of the points where they are."""
        up = loss > self.top_loss
        return self.to(
            loss=loss,
            g=g,
            top=torch.where(up[:, None], self.z, self.top),
            top_loss=torch.where(up, loss, self.top_loss),
            top_margin=torch.where(up, margin, self.top_margin),
            top_g=torch.where(up[:, None], g, self.top_g),
        )

    def back(self, rows: Tensor, **changes: Any) -> Self:
        """With some rows (booleans) back at their highest points."""
        return self.to(
            z=torch.where(rows[:, None], self.top, self.z),
            g=torch.where(rows[:, None], self.top_g, self.g),
            loss=torch.where(rows, self.top_loss, self.loss),
            **changes,
        )

    @classmethod
    @abstractmethod
    def begin(cls, rows: Tensor, region: Region, start: Tensor, steps: int) -> Self:
        """At the start of a climb of ``steps`` steps."""

    @abstractmethod
    def stepped(self, step: int) -> Self:
        """One step further, after ``step`` steps."""


@dataclass(frozen=True, eq=False)
class _Halving(_Climber):
    """Steps of twice the radius, with momentum, that are halved at checkpoints where a row climbs no more.

    Args:
        before: where they were a step ago [n, D].
        rises: steps since the last checkpoint that gained.
        halved: whether the last checkpoint halved the steps.
        top_then: ``top_loss`` at the last checkpoint.
        marks: the checkpoints.
    """

    before: Tensor
    rises: Tensor
    halved: Tensor
    top_then: Tensor

    marks: tuple[int, ...]

    @classmethod
    def begin(cls, rows: Tensor, region: Region, start: Tensor, steps: int) -> Self:
        r = region.radius
        no, lowest = torch.zeros_like(r, dtype=torch.bool), torch.full_like(r, -torch.inf)
        return cls.at_start(rows, region, start, 2 * r, start, torch.zeros_like(r), no, lowest, checkpoints(steps))

    def seen(self, margin: Tensor, loss: Tensor, g: Tensor) -> Self:
        return super().seen(margin, loss, g).to(rises=self.rises + (loss > self.loss))

    def stepped(self, step: int) -> Self:
        a = self if step else self.to(top_then=self.top_loss)
        if step in self.marks:
            a = a._checked(step - max((m for m in self.marks if m < step), default=0))
        z = a.region.step(a.z, a.g, a.length)
        if step:
            z = a.region.project(a.z + 0.75 * (z - a.z) + 0.25 * (a.z - a.before))
        return a.to(z=z, before=a.z)

    def _checked(self, since: int) -> Self:
        """Halves the steps of rows that gained in less than 3/4 of their steps, or nothing since steps were as long."""
        stuck = (self.rises < 0.75 * since) | (~self.halved & (self.top_loss <= self.top_then))
        return self.back(
            stuck,
            length=torch.where(stuck, self.length / 2, self.length),
            rises=torch.zeros_like(self.rises),
            halved=stuck,
            top_then=self.top_loss,
        )


def checkpoints(steps: int) -> tuple[int, ...]:
    """After how many steps their length is judged: at 22 % of them, then after spans 3 % shorter each, at least 6 %."""
    marks, at, span = list[int](), 0, 22
    while at + span <= 100:
        at += span
        marks.append(-(-at * steps // 100))
        span = max(span - 3, 6)
    return tuple(marks)


@dataclass(frozen=True, eq=False)
class _Sparse(_Climber):
    """Steps along the signs of the largest slopes: of 2/3 as many elements as the best point has changed.

    Args:
        count: elements that a step moves [n].
        changed: elements in which ``top`` differed from the centre at the last checkpoint [n].
        span: from one checkpoint to the next.
    """

    count: Tensor
    changed: Tensor
    span: int

    @classmethod
    def begin(cls, rows: Tensor, region: Region, start: Tensor, steps: int) -> Self:
        d = start.shape[1]
        changed = (start != region.centre).sum(1).to(start.dtype)
        count = torch.where(changed == 0, d / 5, (changed / 1.5).clamp(max=d / 5))
        return cls.at_start(rows, region, start, region.radius, count, changed, max(1, steps * 4 // 100))

    def stepped(self, step: int) -> Self:
        a = self._checked() if step and step % self.span == 0 else self
        way = a.region.usable(a.z, a.g)
        size = way.abs().sort(1, descending=True).values
        least = size.gather(1, a.count.long().clamp(1, size.shape[1])[:, None] - 1)
        sign = torch.where(way.abs() >= least, way.sign(), 0)
        move = sign * (a.length / sign.abs().sum(1).clamp(min=1))[:, None]
        return a.to(z=a.region.project(a.z + move))

    def _checked(self) -> Self:
        changed = (self.top != self.region.centre).sum(1).to(self.changed)
        sparser = changed < 0.95 * self.changed
        r = self.region.radius
        length = torch.where(sparser, r, torch.maximum(self.length / 1.5, r / 10))
        return self.back(sparser, length=length, count=changed / 1.5, changed=changed)


CLIMBERS: dict[str, type[_Climber]] = {"L1": _Sparse}
"""How norms are climbed in that want another way than halving steps."""

PHASES = ((3, 0.3), (2, 0.3), (1, 0.4))
"""Of a climb that begins in a larger ball: how many times as large, for which share of the steps."""


def apgd(
    f: Probe,
    region: Region,
    rows: Tensor,
    steps: int,
    start: Tensor,
    draws: int = 1,
    stop: bool = True,
    of: int | None = None,
) -> Found:
    """``steps`` steps from ``start`` [N, D]; the point that reached the goal, or else the one with the largest loss.

    Croce, Hein (ICML 2020), algorithm 1; in L1 the one of Croce, Hein (ICML 2021), section 3. With ``stop`` a row
    leaves when it reaches the goal, and copies of its example with it. A random model is asked ``draws`` times, and the
    mean counts. ``of``: how many steps there are in all, where these are a part of them.
    """
    climber = CLIMBERS.get(str(region.norm), _Halving)
    best, a = Found.nothing(region.centre), climber.begin(rows, region, start, of or steps)
    for step in range(steps):
        margin, loss, g = mean([f.climb(a.z, a.rows) for _ in range(draws)], a.z)
        if step == 0:
            warn_of(flat(margin, g) & ~(margin > 0))  # a class that ranks third leaves the ratio of logits constant
        a, won = a.seen(margin, loss, g), (margin > 0) & stop
        if won.any():
            best = best.put(a.index[won], Found(a.z, margin, a.region.size(a.z)).at(won))
            a = a.at(~torch.isin(f.owner(a.rows), f.owner(a.rows[won])))
        if not len(a):
            return best
        a = a.stepped(step)
    (margin,) = mean([(f.value(a.z, a.rows),) for _ in range(draws)], a.z)
    top, last = (Found(z, m, a.region.size(z)) for z, m in ((a.top, a.top_margin), (a.z, margin)))
    return best.put(a.index, top.stronger(last))


def mean(seen: list[tuple[Tensor, ...]], like: Tensor) -> tuple[Tensor, ...]:
    """Of what several passes told; they are separate passes, as a model may draw once for a whole batch."""
    if len(seen) == 1:
        return tuple(t.to(like) for t in seen[0])
    return tuple(torch.stack(told).mean(0).to(like) for told in zip(*seen, strict=True))


def narrowing(f: Probe, region: Region, rows: Tensor, steps: int, start: Tensor, draws: int = 1) -> Found:
    """:func:`apgd` in balls that shrink to the region, each from the best point of the last: for L1.

    Croce, Hein (ICML 2021), section 3.2. Larger balls are climbed to the end, also by rows that reach the goal there.
    """
    left, found = steps, Found.nothing(start)
    for factor, share in PHASES:
        part = left if factor == 1 else min(left, math.ceil(share * steps))
        near = region.to(radius=factor * region.radius)
        found = apgd(f, near, rows, part, near.project(start), draws, stop=factor == 1, of=steps)
        left, start = left - part, found.z
    return found


class APGD(Attack):
    """Auto-PGD: projected gradient descent with momentum that finds its step length by itself, row by row.

    Croce, Hein (ICML 2020), arXiv 2003.01690; in L1 Croce, Hein (ICML 2021), arXiv 2103.01208. In L0, which the papers
    do not treat, steps are halved as in L2. ``"dlr"`` needs three classes, towards one of them four; of fewer it is the
    margin. Fooled examples leave the batch, and later attempts see only those that resist. Further arguments as for
    :class:`Attack`.

    Args:
        steps: gradient steps per attempt.
        restarts: attempts, each from a random point of the region.
        targets: climb towards each of this many other classes, the likeliest first (all: K - 1), instead of away from
            the true one: the first alone, and for those that it does not fool all others at once.
        random_start: whether the first attempt starts at random, too, and not at the input.
        large_eps: spend the first 30 % of the steps in a ball three times as large, and 30 % in one twice as large,
            which in L1 finds more. Examples that fall to a tenth of the steps without that leave before.
        eot_iter: passes whose mean gradient is followed (and whose mean margin counts), for models that draw at random.

    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> result = APGD(model, "dlr", bounds=(0, 1), norm="L2", eps=0.5, targets=2, steps=20).run(x, y)
    >>> bool((result.distance <= 0.5).all()), bool((result.backwards <= 2 * 20).all())
    (True, True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        restarts: int = 1,
        targets: int | None = None,
        random_start: bool = True,
        large_eps: bool = False,
        eot_iter: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        for name, value, least in (
            ("steps", steps, 0),
            ("restarts", restarts, 1),
            ("targets", 1 if targets is None else targets, 1),
            ("eot_iter", eot_iter, 1),
        ):
            whole(name, value, least)
        self.steps, self.restarts, self.targets = steps, restarts, targets
        self.random_start, self.large_eps, self.eot_iter = random_start, large_eps, eot_iter

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        region, best = region.reachable(), Found.nothing(region.centre)
        towards = None if self.targets is None else likeliest(f, rows, self.targets)
        for attempt in self._attempts(towards):
            left = (~best.success).nonzero().squeeze(1)
            if not len(left):
                break
            found = attempt(f, region.at(left), rows[left], noise.at(left), left)
            best = best.put(left, best.at(left).stronger(found))
        return best

    def _attempts(self, towards: Tensor | None) -> Iterator[Callable[..., Found]]:
        """One after the other; each takes a probe, and the region, rows, noise and places of those that are left."""
        if towards is None and self.large_eps:
            yield partial(self._away, steps=self.steps // 10, large=False, restart=0)
        for restart in range(self.restarts):
            if towards is None:
                yield partial(self._away, steps=self.steps, large=self.large_eps, restart=restart)
                continue
            for ranks in (range(1), range(1, towards.shape[1])):
                if len(ranks):
                    yield partial(self._towards, towards=towards, ranks=ranks, restart=restart)

    def _away(
        self,
        f: Probe,
        region: Region,
        rows: Tensor,
        noise: Noise,
        left: Tensor,
        *,
        steps: int,
        large: bool,
        restart: int,
    ) -> Found:
        start = self._start(region, noise.again(restart), large, restart)
        return (narrowing if large else apgd)(f, region, rows, steps, start, self.eot_iter)

    def _towards(
        self,
        f: Probe,
        region: Region,
        rows: Tensor,
        noise: Noise,
        left: Tensor,
        *,
        towards: Tensor,
        ranks: range,
        restart: int,
    ) -> Found:
        """Towards the classes of some ranks, all together; the strongest point of each row."""
        assert isinstance(f.of, Leave)
        best, climb = Found.nothing(region.centre), narrowing if self.large_eps else apgd
        for part in torch.arange(len(rows), device=rows.device).split(
            max(1, AT_ONCE // (region.centre.shape[1] * len(ranks)))
        ):
            near, whose = region.at(part), part.repeat(len(ranks))
            tries = [noise.at(part).again(restart * towards.shape[1] + rank) for rank in ranks]
            start = torch.cat([self._start(near, draws, self.large_eps, restart) for draws in tries])
            toward = towards[left[part]][:, ranks.start : ranks.stop].T.reshape(-1)
            g = f.copies(rows[whose], f.of.copies(rows[whose], toward))
            copies = torch.arange(len(whose), device=rows.device)
            found = climb(g, region.at(whose), copies, self.steps, start, self.eot_iter)
            for i in copies.split(len(part)):
                best = best.put(part, best.at(part).stronger(found.at(i)))
        return best

    def _start(self, region: Region, noise: Noise, large: bool, restart: int) -> Tensor:
        if not self.random_start and restart == 0:
            return region.centre
        return (region.to(radius=PHASES[0][0] * region.radius) if large else region).draw(noise)

"""Domains: in what way a feature may change."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attacks.found import Found, shrunk, way_back
from ..attacks.gradient import likeliest, pgd
from ..attribution.ablation import feature_ablation
from ..attribution.coalitions import Coalitions
from ..attribution.path import gauss_legendre, mean_grad
from ..engine.packing import Packing, Tensors
from ..engine.probe import ModelError, Probe
from ..engine.sites import Call, Site
from ..perturb.features import Partition
from ..perturb.gates import Gates, gated
from ..perturb.goals import Leave, Reach
from ..perturb.norms import L1, Linf, Norm
from ..perturb.references import Reference
from ..perturb.region import Region
from .known import Known

NODES = gauss_legendre(16)  # enough to rank features, which is all that is asked of it
VALUES = 7  # of a feature that are tried where there is no gradient to follow
EXAMPLES = 5  # nearest known ones whose values are tried besides
QUANTILES = 15  # of all known ones' values that are, too
ROUNDS = 12  # of halving the way home
TURNS = 64  # in which all features go home, one or more at a time
RIVALS = 2  # other classes that are climbed towards, where any will do


class Domain(ABC):
    """What a set of features can be turned into, and which features matter most.

    Points are rows ``z`` [N, Z] in coordinates of the domain's own; rows not in a set are exactly at home.

    Laws: whatever :meth:`attempt`, :meth:`part` and :meth:`options` give may be had, and changes no feature but those
    that were named; ``part`` at share 0 is home.
    """

    features: Partition

    @property
    @abstractmethod
    def home(self) -> Tensor:
        """The points of the unchanged examples [B, Z]."""

    @property
    @abstractmethod
    def probe(self) -> Probe:
        """The goal as a function of such points."""

    @property
    def whole(self) -> bool:
        """Whether a feature changes in one way only: a set is then tried by trying one point."""
        return False

    @abstractmethod
    def rankings(self) -> list[Tensor]:
        """Attributions [B, F] towards what the domain allows: the more, the sooner a feature should be tried."""

    def farthest(self) -> list[Tensor]:
        """Points [B, Z] with as large a margin as the domain allows, in several ways, if such can be looked for."""
        return []

    @abstractmethod
    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        """The best point of each row [N] when only its set [N, F] may change; looked for from ``start`` too."""

    @abstractmethod
    def cost(self, z: Tensor, rows: Tensor) -> Tensor:
        """What decides between sets of the same size: the less, the better [N]."""

    @abstractmethod
    def part(self, z: Tensor, rows: Tensor, which: Tensor, share: Tensor) -> Tensor:
        """``z`` with the features ``which`` [N, F] at ``share`` [N] of their way from home."""

    def back(self, z: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        """``z`` with the features ``which`` [N, F] taken home."""
        return self.part(z, rows, which, z.new_zeros(len(z)))

    @abstractmethod
    def changed(self, z: Tensor, rows: Tensor) -> Tensor:
        """Which features are not at home [N, F]."""

    @abstractmethod
    def inputs(self, z: Tensor) -> Tensors:
        """The model's inputs at the points of all examples [B, Z]."""

    def edge(self, z: Tensor) -> Tensor:
        """Which features stand at an end of what is allowed, for all examples [B, F]."""
        return torch.zeros(len(z), self.features.count, dtype=torch.bool, device=z.device)

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """A cheaper point that still reaches the goal, without leaving the sets."""
        return z


class Graded(Domain):
    """Domains whose features can be moved by degrees, and have values that can be tried one by one."""

    known: Known | None = None

    @abstractmethod
    def options(self, rows: Tensor, k: Tensor) -> Tensor:
        """Points at which all features have their ``k``-th value [N, Z], ``VALUES`` each at most."""

    @property
    @abstractmethod
    def values(self) -> int:
        """How many values a feature has at most."""

    @abstractmethod
    def put(self, z: Tensor, rows: Tensor, which: Tensor, there: Tensor) -> Tensor:
        """``z`` with the features ``which`` [N, F] as they are in ``there`` [N, Z]."""

    @abstractmethod
    def points(self, x: Tensor, rows: Tensor) -> Tensor:
        """Other packed inputs [N, D], seen from the examples ``rows``, as points [N, Z]; allowed or not."""

    @abstractmethod
    def allowed(self, z: Tensor, rows: Tensor, free: Tensor) -> Tensor:
        """Where everything holds, near ``z`` [N, Z], when only some features are ``free`` [N, F]."""

    @property
    @abstractmethod
    def opposite(self) -> Tensor:
        """Points at which every feature is as far from home as it may be [B, Z]."""

    @cached_property
    def seen(self) -> Tensor:
        """What the constraints leave of known examples, as points [B, k, Z]: of the nearest that reach the goal, and of
        rows that share out the values of all of them evenly.
        """
        f, known = self.probe, self.known
        if known is None or not len(known):
            return self.home[:, None][:, :0]
        free = torch.ones(f.examples, self.features.count, dtype=torch.bool, device=f.device)
        near = known.nearest(self, f.everyone, EXAMPLES)
        share = (torch.arange(QUANTILES, device=f.device) + 0.5) / QUANTILES
        rows = [torch.where((pick >= 0)[:, None], known.z[pick], f.point) for pick in near.unbind(1)]
        rows += [v.expand(f.examples, -1) for v in known.z.sort(0).values[(share * len(known)).long()].unbind(0)]
        told = [self.allowed(self.points(x, f.everyone), f.everyone, free) for x in rows]
        return torch.stack(told, 1)

    def alone(self) -> Tensor:
        """The most that each feature adds to the margin on its own [B, F]."""
        f, count = self.probe, self.features.count
        best = torch.full((f.examples, count), -torch.inf, device=f.device, dtype=self.home.dtype)
        for k in range(self.values):
            for part, rows, which in _each(f.everyone, count, self.home.shape[1]):
                there = self.options(rows, torch.full_like(rows, k))
                z = self.put(self.home[rows], rows, which, there)
                best.view(-1)[part] = torch.maximum(best.view(-1)[part], f.value(z, rows).to(best))
        return best - f.value(self.home)[:, None].to(best)

    def ascend(self, rows: Tensor, sets: Tensor, best: Found, rounds: int = 4) -> Found:
        """One feature of the set after the other is given the value that helps most, while one does; values only."""
        left = torch.arange(len(rows), device=rows.device)
        for _ in range(rounds):
            left = left[~best.success[left]]
            pairs = sets[left].nonzero()
            if not len(pairs):
                break
            n = left[pairs[:, 0]].repeat_interleave(self.values)
            k = torch.arange(self.values, device=rows.device).repeat(len(pairs))
            which = torch.zeros(len(n), sets.shape[1], dtype=torch.bool, device=rows.device)
            which.scatter_(1, pairs[:, 1].repeat_interleave(self.values)[:, None], True)
            before = best.margin[left]
            for some in pieces(len(n), best.z.shape[1]):
                r = rows[n[some]]
                z = self.put(best.z[n[some]], r, which[some], self.options(r, k[some]))
                best = _strongest(best, n[some], Found(z, self.probe.value(z, r), self.cost(z, r)))
            left = left[best.margin[left] > before]
        return best

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """Features go back one after the other as far as the goal stays reached, those first that help least.

        By how much the goal is missed when one alone goes home, for what that saves: in this order the least change of
        a linear model is found exactly, as in a knapsack whose pieces can be cut. Of more than ``TURNS``, neighbours in
        this order go back together.
        """
        if not bool(sets.any()):
            return z
        margin, cost, now = self.probe.value(z, rows), self.cost(z, rows), z
        worth = torch.full(sets.shape, torch.inf).to(z)
        for n, alone in members(sets, z.shape[1]):
            without = self.back(z[n], rows[n], alone)
            lost = margin[n] - self.probe.value(without, rows[n])
            saved = cost[n] - self.cost(without, rows[n])
            worth[n, alone.nonzero()[:, 1]] = (lost / saved.clamp(min=1e-12)).to(z).nan_to_num()  # below all others
        size, place = sets.sum(1), worth.argsort(1).argsort(1)
        turns = size.clamp(max=TURNS)
        turn = torch.where(sets, place * turns[:, None] // size.clamp(min=1)[:, None], TURNS)
        for j in range(int(turns.max())):
            some = (turns > j).nonzero().squeeze(1)
            now = now.index_copy(0, some, self._nearer(now[some], rows[some], turn[some] == j))
        return now

    def _nearer(self, z: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        """Halves the way home of some features as long as the goal stays reached and the cost falls."""
        f, best, cost = self.probe, z, self.cost(z, rows)
        low, high = torch.zeros_like(z[:, 0]), torch.ones_like(z[:, 0])
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            tried = self.part(z, rows, which, middle)
            now = self.cost(tried, rows)
            good = (f.value(tried, rows) > 0) & (now <= cost)
            best, cost = torch.where(good[:, None], tried, best), torch.where(good, now, cost)
            low, high = torch.where(good, low, middle), torch.where(good, middle, high)
        return best


@dataclass(frozen=True, eq=False)
class Moved(Site):
    """The inputs, told by how far each element has moved from where it was, in units of its own [N, D]; 0: not at all.

    Args:
        start: where they were [B, D].
        unit: what a move is counted in [1, D] or [B, D].
        low, high: the box, which rounding may not leave. Where it leaves out the start, what moves lands inside.
    """

    start: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor
    packing: Packing

    entry = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return (torch.zeros_like(self.start[: len(inputs[0])]),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(self.packing.unpack(self.there(z[0], rows)))

    def there(self, z: Tensor, rows: Tensor) -> Tensor:
        """Packed inputs [N, D]."""
        start, low, high = self.start[rows], _of(self.low, rows), _of(self.high, rows)
        if self.apart:
            still = z == 0
            low = torch.where(still, torch.minimum(low, start), low)
            high = torch.where(still, torch.maximum(high, start), high)
        return torch.clamp(start + z * _of(self.unit, rows), low, high)

    @cached_property
    def apart(self) -> bool:
        """Whether the box leaves out the start somewhere."""
        return bool(((self.start < self.low) | (self.start > self.high)).any())


@dataclass(frozen=True, eq=False)
class Move(Graded):
    """Features move anywhere inside a finite box; points are the moves [N, D], in units of their own.

    Args:
        f: the goal at the inputs.
        features: what moves together.
        low, high: the box [1, D] or [B, D]; where it leaves out an example's own value, that may stay or change to one
            inside.
        unit: what each element's move is counted in [1, D] or [B, D]: the least costly change is the smallest so.
        norm: how the cost of a change is measured.
        steps: of the ascent for each set.
        known: examples whose values are tried where there is no gradient to follow.
    """

    f: Probe
    features: Partition
    low: Tensor
    high: Tensor
    unit: Tensor
    norm: Norm = L1()
    steps: int = 12
    known: Known | None = None

    @cached_property
    def probe(self) -> Probe:
        return self.f.to(at=Moved(self.f.point, self.unit, self.low, self.high, self.f.packing))

    @property
    def home(self) -> Tensor:
        return self.probe.point

    @cached_property
    def box(self) -> Region:
        """Everything that the box allows."""
        low, high = ((b - self.f.point) / self.unit for b in (self.low, self.high))
        far = torch.maximum(-low, high).amax(1) if low.shape[1] else low.new_zeros(len(low))
        return Region(self.home, Linf(), far, low, high)

    @cached_property
    def slope(self) -> Tensor | None:
        """The gradient at home [B, D]; None if there are no gradients: tokens, or a black box."""
        try:
            return self.probe.grad(self.home)[1]
        except ModelError:
            return None

    def within(self, rows: Tensor, sets: Tensor) -> Region:
        """The region of some rows when only their sets may move, by no more than there is room for."""
        free = self.features.spread(sets.to(self.home), rows) > 0
        near = self.box.at(rows).to(free=free)
        low, high = (
            torch.where(free, end, end.clamp(*still)) for end, still in ((near.low, (None, 0)), (near.high, (0, None)))
        )
        near = near.to(low=low, high=high)
        room = torch.where(free, torch.maximum(-near.low, near.high), 0)
        return near.to(radius=room.amax(1) if room.shape[1] else near.radius)

    def rankings(self) -> list[Tensor]:
        # Towards what the constraints allow, not towards zero: a zero baseline is a poor guide to what can be done.
        f, everyone, free, g = self.probe, self.probe.everyone, self.box, self.slope
        if g is None:
            return [self.alone()]
        corner = free.step(self.home, g, free.radius)
        ways = [*self._climbs, (f, corner)]
        tries = [end * mean_grad(way, self.home, end, NODES) for way, end in ways]
        tries.append(g * corner)
        ranks = [self.features.gather(a, everyone) for a in tries]
        return [torch.where((g == 0).all(1, keepdim=True), self.alone(), r) for r in ranks] if _flat(g) else ranks

    @cached_property
    def _climbs(self) -> list[tuple[Probe, Tensor]]:
        """What is climbed, and where that leads if all may move: the goal, and where any other class will do, the two
        likeliest ones as well, as the way to the one in front may be blocked or longer.
        """
        f, free, everyone = self.probe, self.box, self.probe.everyone
        ways, goal = [f], f.of
        if isinstance(goal, Leave) and f.examples:
            classes = likeliest(f, everyone, RIVALS)
            rivals = classes.unbind(1) if classes.shape[1] > 1 else ()
            ways += [f.to(of=Reach(y, goal.loss, by=goal.by)) for y in rivals]
        length = 2.5 * free.radius / self.steps
        return [(g, pgd(g, free, everyone, self.steps, length, stop=False, quiet=True).z) for g in ways]

    def farthest(self) -> list[Tensor]:
        return [] if self.slope is None else [z for _, z in self._climbs]

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        f, near = self.probe, self.within(rows, sets)
        best = Found.nothing(near.centre)
        blind = torch.ones_like(rows, dtype=torch.bool)
        if self.slope is not None:
            length = 2.5 * near.radius / self.steps
            best = pgd(f, near, rows, self.steps, length, quiet=True)
            left = (~best.success & (start != near.centre).any(1)).nonzero().squeeze(1)
            if len(left):
                some = near.at(left)
                begin = some.project(start[left])
                warm = pgd(f, some, rows[left], self.steps, length[left], begin, quiet=True)
                best = best.put(left, best.at(left).stronger(warm))
            blind = (self.slope[rows] == 0).all(1)
        left = (blind & ~best.success).nonzero().squeeze(1)
        if len(left):
            these, sought = rows[left], best.at(left)
            seen = (self.put(self.home[these], these, sets[left], z) for z in self.seen[these].unbind(1))
            far = self.put(self.home[these], these, sets[left], self.opposite[these])
            for z in (start[left], far, *self._corners(near.at(left)), *seen):
                sought = sought.stronger(Found(z, f.value(z, these).to(sought.margin), sought.size))
            best = best.put(left, self.ascend(these, sets[left], sought))
        return shrunk(f, near.to(norm=self.norm), rows, replace(best, size=self.cost(best.z, rows)))

    def _corners(self, near: Region) -> Iterator[Tensor]:
        """Points far from home to begin at where there is no gradient."""
        for share in (0.0, 1.0, 0.25, 0.75):
            yield near.anywhere(torch.full_like(near.centre, share))

    @cached_property
    def opposite(self) -> Tensor:
        return torch.where(-self.box.low > self.box.high, self.box.low, self.box.high)

    @property
    def values(self) -> int:
        return VALUES + self.seen.shape[1]

    def options(self, rows: Tensor, k: Tensor) -> Tensor:
        evenly = torch.lerp(self.box.low[rows], self.box.high[rows], k[:, None].to(self.home) / (VALUES - 1))
        if not self.seen.shape[1]:
            return evenly
        return torch.where((k < VALUES)[:, None], evenly, self.seen[rows, (k - VALUES).clamp(min=0)])

    def put(self, z: Tensor, rows: Tensor, which: Tensor, there: Tensor) -> Tensor:
        return torch.where(self.features.spread(which.to(z), rows) > 0, there, z)

    def cost(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.norm.size(self.points(self.there(z, rows), rows) if self._site.apart else z)

    def points(self, x: Tensor, rows: Tensor) -> Tensor:
        return (x - self.f.point[rows]) / _of(self.unit, rows)

    def allowed(self, z: Tensor, rows: Tensor, free: Tensor) -> Tensor:
        return self.put(self.home[rows], rows, free, self.box.at(rows).clip(z))

    def part(self, z: Tensor, rows: Tensor, which: Tensor, share: Tensor) -> Tensor:
        return self.put(z, rows, which, z * share[:, None])

    def changed(self, z: Tensor, rows: Tensor) -> Tensor:
        moved = self.there(z, rows) != self.f.point[rows]
        return self.features.gather(moved.to(z), rows) > 0

    def there(self, z: Tensor, rows: Tensor) -> Tensor:
        """Packed inputs [N, D] at some points."""
        return self._site.there(z, rows)

    @property
    def _site(self) -> Moved:
        assert isinstance(self.probe.at, Moved)
        return self.probe.at

    def inputs(self, z: Tensor) -> Tensors:
        return self.f.packing.unpack(self.there(z, self.f.everyone))

    def edge(self, z: Tensor) -> Tensor:
        there, everyone = self.there(z, self.f.everyone), self.f.everyone
        end = ((there <= self.low) | (there >= self.high)) & (there != self.f.point)
        return self.features.gather(end.to(z), everyone) > 0

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """First all features straight back together, then as in all graded domains."""
        return super().refine(way_back(self.probe, rows, self.back(z, rows, sets), z, ROUNDS), rows, sets)


@dataclass(frozen=True, eq=False)
class Replace(Domain):
    """Features give way to a reference, whole; points are gates [N, F]."""

    f: Probe
    features: Partition
    reference: Reference

    @cached_property
    def probe(self) -> Probe:
        return gated(self.f, self.features, self.reference)

    @property
    def home(self) -> Tensor:
        return self.probe.point

    @property
    def whole(self) -> bool:
        return True

    def rankings(self) -> list[Tensor]:
        alone = -feature_ablation(Coalitions(self.f, self.features, self.reference))
        try:
            return [mean_grad(self.probe, self.home, torch.ones_like(self.home), NODES), alone]
        except ModelError:  # no gradients here: tokens, or a black box
            return [alone]

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        z = sets.to(self.home)
        margin = self.probe.value(z, rows)
        return Found(z, margin, -margin)

    def cost(self, z: Tensor, rows: Tensor) -> Tensor:
        return -self.probe.value(z, rows)  # of as many, those that make it surest

    def part(self, z: Tensor, rows: Tensor, which: Tensor, share: Tensor) -> Tensor:
        return torch.where(which, 0, z)

    def changed(self, z: Tensor, rows: Tensor) -> Tensor:
        return z > 0

    def inputs(self, z: Tensor) -> Tensors:
        assert isinstance(self.probe.at, Gates)
        return self.probe.at.blend(z, self.f.everyone)


def _of(t: Tensor, rows: Tensor) -> Tensor:
    return t if len(t) == 1 else t[rows]


def _flat(g: Tensor) -> bool:
    return bool((g == 0).all(1).any())


def pieces(n: int, width: int) -> Iterator[slice]:
    """Of ``n`` rows of points, as many as should be held at once."""
    size = max(1, 2**24 // max(width, 1))
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def members(sets: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every feature of some sets [N, F] alone, piece by piece: whose set it is of [n], and the feature as a set [n, F].

    Args:
        width: of a point.
    """
    pairs = sets.nonzero()
    for part in pieces(len(pairs), max(width, sets.shape[1])):
        n, j = pairs[part].unbind(1)
        yield n, torch.zeros_like(sets[n]).scatter(1, j[:, None], True)


def _each(rows: Tensor, count: int, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Every row with every feature alone, piece by piece: where they stand among all pairs, rows and sets."""
    for part in pieces(len(rows) * count, width):
        k = torch.arange(part.start, part.stop, device=rows.device)
        which = torch.zeros(len(k), count, dtype=torch.bool, device=rows.device)
        yield part, rows[k // count], which.scatter(1, (k % count)[:, None], True)


def _strongest(best: Found, n: Tensor, tried: Found) -> Found:
    """``best``, with the strongest of what was tried for each of its rows ``n``, where that is stronger."""
    margin = tried.margin.to(best.margin)
    most = torch.full_like(best.margin, -torch.inf).scatter_reduce(0, n, margin, "amax")
    first = torch.full_like(best.margin, len(n), dtype=torch.long)
    at = torch.arange(len(n), device=n.device)
    first = first.scatter_reduce(0, n, torch.where(margin == most[n], at, len(n)), "amin")
    win = (most > best.margin).nonzero().squeeze(1)
    return best.put(win, Found(tried.z[first[win]], margin[first[win]], tried.size[first[win]].to(best.size)))

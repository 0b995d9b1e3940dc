"""What makes a counterfactual plausible, as limits that it keeps to: never a weight that is paid off by others."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, whole
from ..engine.packing import Tensors
from ..engine.probe import Probe
from ..engine.scores import one_each
from ..perturb.demands import Limit, Within
from ..perturb.goals import Goal
from .baselines import nice
from .best import Task
from .domain import Move
from .guided import drop, finish
from .known import Known
from .schema import FeatureSchema
from .table import Table


@dataclass(frozen=True, eq=False)
class Crowd:
    """Known examples, M of them, and which of them reach the goal of which example: those are what it should be like.

    Args:
        z: what the model takes [M, D].
        groups: those that reach a goal, for each goal that differs from others [G, M].
        which: the group of each example [B].
        f: the model at the examples.
        schema: what the columns of a table mean.
    """

    z: Tensor
    groups: Tensor
    which: Tensor
    f: Probe
    schema: FeatureSchema | None = None
    unit: Tensor = field(init=False)

    def __post_init__(self) -> None:
        unit = self.z.std(0, correction=0)
        object.__setattr__(self, "unit", torch.where(unit > 0, unit, 1))

    @classmethod
    def of(cls, known: Known, f: Probe, schema: FeatureSchema | None) -> "Crowd":
        groups, which = known.reach(f.everyone).unique(dim=0, return_inverse=True)
        return cls(known.z, groups, which, f, schema)

    def away(self, inputs: Tensors, rows: Tensor) -> Tensor:
        """How far each point is from all that it should be like [N, M], in deviations; others are infinitely far."""
        z = self.f.packing.pack(inputs) / self.unit
        away = torch.cdist(z, self.z / self.unit, compute_mode="donot_use_mm_for_euclid_dist")
        return away.masked_fill(~self.groups[self.which[rows]], torch.inf)

    def among(self, group: Tensor) -> Tensor:
        """How far the members of a group [M] are from one another [m, m]; from themselves infinitely."""
        z = (self.z / self.unit)[group]
        away = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
        return away.fill_diagonal_(torch.inf)


class Plausible(ABC):
    """A limit that is learnt from known examples which reach the goal, by the model's own answers."""

    @abstractmethod
    def limit(self, crowd: Crowd) -> Limit:
        """Margins of the model's inputs, at least 0 where they are plausible; about -1 where nothing is known."""


@dataclass(frozen=True)
class Quantiles(Plausible):
    """What changes is given a value that lies between two quantiles of the known examples that reach the goal.

    Each column is held to its own; a category must be one that occurs there.

    Args:
        low, high: the quantiles.
    """

    low: float = 0.05
    high: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ArgumentError(f"Quantiles needs 0 <= low < high <= 1, got {self.low} and {self.high}")

    def ends(self, crowd: Crowd) -> tuple[Tensor, Tensor]:
        """The least and the greatest value [B, D]; the other way round where nothing is known."""
        listed = torch.zeros(crowd.z.shape[1], dtype=torch.bool, device=crowd.z.device)
        for p in crowd.schema.places if crowd.schema is not None else ():
            listed[p.columns] = p.block
        told = []
        for group in crowd.groups:
            members = crowd.z[group]
            if not len(members):
                far = torch.full_like(crowd.unit, torch.inf)
                told.append((far, -far))
                continue
            low, high = (torch.quantile(members, q, dim=0) for q in (self.low, self.high))
            told.append((torch.where(listed, 0, low), torch.where(listed, members.amax(0), high)))
        low, high = (torch.stack(ends)[crowd.which] for ends in zip(*told, strict=True))
        return low, high

    def limit(self, crowd: Crowd) -> Limit:
        low, high = self.ends(crowd)

        def margin(inputs: Tensors, rows: Tensor) -> Tensor:
            z = crowd.f.packing.pack(inputs)
            outside = torch.maximum(low[rows] - z, z - high[rows]).clamp(max=1e6) / crowd.unit
            moved = (z != crowd.f.point[rows]) & (outside > 0)
            missed = torch.where(moved, outside, 0).sum(1)
            return torch.where(moved.any(1), -missed, torch.inf)

        return margin


@dataclass(frozen=True)
class Neighbours(Plausible):
    """It lies no farther from its nearest known examples that reach the goal than these lie from one another.

    The mean distance to the ``k`` nearest, in deviations of the columns, is at most what a share ``quantile`` of them
    have among themselves.

    Args:
        k: how many neighbours.
        quantile: the share.
    """

    k: int = 5
    quantile: float = 0.95

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        if not 0 < self.quantile <= 1:
            raise ArgumentError(f"quantile must lie between 0 and 1, got {self.quantile!r}")

    def limit(self, crowd: Crowd) -> Limit:
        usual = []
        for group in crowd.groups:
            away = crowd.among(group)
            k = min(self.k, len(away) - 1)
            usual.append(
                torch.quantile(away.topk(k, largest=False).values.mean(1), self.quantile)
                if k > 0
                else crowd.z.new_zeros(())
            )
        most = torch.stack(usual).clamp(min=1e-9)

        def margin(inputs: Tensors, rows: Tensor) -> Tensor:
            away, of = _nearest(crowd, inputs, rows, self.k)
            return 1 - torch.where(of, away, 0).sum(1) / of.sum(1) / most[crowd.which[rows]]

        return _known(crowd, margin)


@dataclass(frozen=True)
class LOF(Plausible):
    """Its local outlier factor among the known examples that reach the goal is at most ``most``.

    Breunig et al. (SIGMOD 2000), section 4: how much sparser it is around the point than around its neighbours, about
    1 inside. Columns are measured in their deviations.

    Args:
        most: the largest factor.
        k: how many neighbours.
    """

    most: float = 1.5
    k: int = 20

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        if not self.most > 0:
            raise ArgumentError(f"most must be above 0, got {self.most!r}")

    def factors(self, crowd: Crowd) -> Limit:
        """The factor itself [N]."""
        reach, dense = (
            torch.full(crowd.groups.shape, v, dtype=crowd.z.dtype, device=crowd.z.device) for v in (0.0, 1.0)
        )
        for i, group in enumerate(crowd.groups):
            away = crowd.among(group)
            k = min(self.k, len(away) - 1)
            if k > 0:
                near = away.topk(k, largest=False)
                far = near.values[:, -1]
                reach[i, group] = far
                dense[i, group] = 1 / (torch.maximum(near.values, far[near.indices]).mean(1) + 1e-10)

        def factor(inputs: Tensors, rows: Tensor) -> Tensor:
            which = crowd.which[rows]
            near = crowd.away(inputs, rows).topk(min(self.k, len(crowd.z)), largest=False)
            of = near.values < torch.inf
            far, around = (t[which].gather(1, near.indices) for t in (reach, dense))
            mean = torch.where(of, torch.maximum(near.values, far), 0).sum(1) / of.sum(1) + 1e-10
            return torch.where(of, around, 0).sum(1) / of.sum(1) * mean

        return factor

    def limit(self, crowd: Crowd) -> Limit:
        factor = self.factors(crowd)
        return _known(crowd, lambda inputs, rows: 1 - factor(inputs, rows) / self.most)


@dataclass(frozen=True)
class Prototype(Plausible):
    """It lies nearer to the mean of the known examples that reach the goal than to the mean of the others.

    The margin is 1 at the one and -1 at the other; columns are measured in their deviations. After Van Looveren and
    Klaise (ECML 2021), for whom prototypes are a weight.
    """

    def limit(self, crowd: Crowd) -> Limit:
        z = crowd.z / crowd.unit
        share = crowd.groups.to(z)
        to, of = (w @ z / w.sum(1, keepdim=True).clamp(min=1) for w in (share, 1 - share))
        span = (to - of).square().sum(1).clamp(min=1e-12)

        def margin(inputs: Tensors, rows: Tensor) -> Tensor:
            here, which = crowd.f.packing.pack(inputs) / crowd.unit, crowd.which[rows]
            gain = (here - of[which]).square().sum(1) - (here - to[which]).square().sum(1)
            return gain / span[which]

        return _known(crowd, margin)


Wanted = Plausible | Callable[..., Tensor]
"""A limit that is learnt, or a function of the model's inputs [N, ...] to margins [N], above 0 where they will do."""


@dataclass(frozen=True, eq=False)
class Limits:
    """What counterfactuals of some examples are to be like.

    Args:
        wanted: what was asked for.
        crowd: what is known; None: nothing.
    """

    wanted: tuple[Wanted, ...]
    crowd: Crowd | None

    @classmethod
    def of(cls, wanted: tuple[Wanted, ...], f: Probe, known: Known | None, schema: FeatureSchema | None) -> "Limits":
        """Raises ArgumentError: something is to be learnt, and nothing is known."""
        learnt = [w for w in wanted if isinstance(w, Plausible)]
        if learnt and known is None:
            raise ArgumentError(f"plausible={learnt[0]!r} is learnt from known examples: give them to fit(X) first")
        return cls(wanted, Crowd.of(known, f, schema) if learnt and known is not None else None)

    def demand(self, goal: Goal) -> Goal:
        """The goal, as far as it is reached plausibly."""
        if not self.wanted:
            return goal
        return Within(goal, tuple(self._limit(w) for w in self.wanted))

    def _limit(self, wanted: Wanted) -> Limit:
        if not isinstance(wanted, Plausible):
            return lambda inputs, rows: one_each(wanted(*inputs), rows)
        assert self.crowd is not None
        return wanted.limit(self.crowd)

    def box(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """A box [1 or B, D] without the values that quantiles rule out; where none is left, only the example's own."""
        for w in self.wanted:
            if isinstance(w, Quantiles) and self.crowd is not None:
                least, most = w.ends(self.crowd)
                least, most = torch.maximum(least, low), torch.minimum(most, high)
                none, own = least > most, self.crowd.f.point
                low, high = torch.where(none, own, least), torch.where(none, own, most)
        return low, high


def from_known(task: Task) -> None:
    """Where nothing plausible was found, what known examples have is taken over, feature by feature, and then back.

    They are plausible themselves, mostly; so wherever one of them may be had, something is found.
    """
    if not len(task.todo) or not isinstance(task.domain, Move | Table):
        return
    nice(task)
    drop(task)
    finish(task)


def _nearest(crowd: Crowd, inputs: Tensors, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distances to the k nearest [N, k], and which of them there are."""
    away = crowd.away(inputs, rows).topk(min(k, len(crowd.z)), largest=False).values
    return away, away < torch.inf


def _known(crowd: Crowd, margin: Limit) -> Limit:
    """``margin``, and -1 for examples of which nothing is known that reaches the goal."""
    nothing = ~crowd.groups.any(1)[crowd.which]

    def told(inputs: Tensors, rows: Tensor) -> Tensor:
        value = margin(inputs, rows)
        return torch.where(nothing[rows], -1, value) if bool(nothing.any()) else value

    return told

"""What a counterfactual search is asked, and the best that it has found so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..engine.packing import finest
from ..engine.randomness import Noise
from .domain import Domain, members
from .known import Known


@dataclass(frozen=True, eq=False)
class Task:
    """What is looked for, within what, and how hard.

    Args:
        domain: what sets of features can be turned into.
        movable: which features may change [B, F].
        budget: how many sets of an example may be tried side by side.
        few: whether the fewest features come first and the least cost then; else the least cost alone.
        noise: where draws come from, keyed by example.
        most: no more features than this may change.
        known: examples that are known besides.
        banned: sets of features [B, q, F], of which no other may contain one; an empty one bans nothing.
    """

    domain: Domain
    movable: Tensor
    budget: int
    noise: Noise
    few: bool = True
    most: int | None = None
    known: Known | None = None
    banned: Tensor | None = None

    @cached_property
    def best(self) -> "Best":
        """What has been found so far: at first the unchanged examples."""
        home = self.domain.home
        margin = self.domain.probe.value(home)
        none = torch.zeros_like(self.movable)
        never = torch.where(self.movable.any(1), 1, self.movable.shape[1] + 1)  # what may not change stays as it is
        fewest = torch.where(margin > 0, 0, never)
        return Best(home.clone(), margin, none, home.new_zeros(len(home)), self.few, self.banned, fewest)

    @property
    def todo(self) -> Tensor:
        """The examples for which nothing has been found yet, of those of which something may change [n]."""
        return (~self.best.found & self.movable.any(1)).nonzero().squeeze(1)

    def at(self, z: Tensor, rows: Tensor, margin: Tensor | None = None) -> "Best":
        """Points of some rows [N], as they can be offered; what changes too many features reaches nothing."""
        domain = self.domain
        margin = domain.probe.value(z, rows) if margin is None else margin
        sets = domain.changed(z, rows)
        if self.most is not None:
            margin = margin.masked_fill(sets.sum(1) > self.most, -torch.inf)
        return Best(z, margin, sets, domain.cost(z, rows), self.few)

    def irreducible(self) -> Tensor:
        """For which examples no single feature of the best can be taken home without losing the goal [B]."""
        domain, best = self.domain, self.best
        kept = best.found.clone()
        for n, alone in members(best.sets & best.found[:, None], best.z.shape[1]):
            z = domain.back(best.z[n], n, alone)
            less = (domain.probe.value(z, n) > 0) & (domain.changed(z, n).sum(1) < best.sets[n].sum(1))
            kept[n[less]] = False
        return kept


Strategy = Callable[[Task], None]
"""Looks for the best and offers it to ``task.best``, where it stays if time is up."""


@dataclass(eq=False)
class Best:
    """The fewest features that reach the goal so far, and the cheapest point where they do; for each example.

    Args:
        z: points of the domain [B, Z]; where nothing was found, what came nearest.
        margin: of the goal there [B].
        sets: the features that change [B, F].
        cost: of the change [B].
        few: whether fewer features come before less cost.
        banned: sets of features [B, q, F]: what changes all of one of them is not taken.
        fewest: fewer features than this cannot reach the goal, which is proved [B]; one more than there are: none can.
        least: less cost than this cannot, which is proved [B].
    """

    z: Tensor
    margin: Tensor
    sets: Tensor
    cost: Tensor
    few: bool = True
    banned: Tensor | None = None
    fewest: Tensor = field(default_factory=lambda: torch.empty(0))
    least: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if not self.fewest.numel():
            self.fewest = torch.zeros(len(self.margin), dtype=torch.long, device=self.margin.device)
        if not self.least.numel():
            self.least = torch.full_like(self.cost, -torch.inf)

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def found(self) -> Tensor:
        return self.margin > 0

    @property
    def count(self) -> Tensor:
        """How many features change [B]; one more than there are where nothing was found."""
        return torch.where(self.found, self.sets.sum(1), self.sets.shape[1] + 1)

    def clear(self, rows: Tensor, sets: Tensor) -> Tensor:
        """Which sets [N, F] contain none of those that are banned [N]."""
        if self.banned is None:
            return torch.ones_like(rows, dtype=torch.bool)
        banned = self.banned[rows]
        return ~(banned.any(2) & ~(banned & ~sets[:, None]).any(2)).any(1)

    def at(self, some: Tensor) -> "Best":
        """Some of the points."""
        return Best(self.z[some], self.margin[some], self.sets[some], self.cost[some], self.few)

    def offer(self, rows: Tensor, other: "Best") -> None:
        """Takes for each of ``rows`` [N] what changes fewer features, or as many at less cost; where nothing has
        worked yet, what came nearest. An example may be offered several points at once. What is banned is left.
        """
        if self.banned is not None:
            clear = self.clear(rows, other.sets)
            rows, other = rows[clear], other.at(clear)
        n, b = len(rows), len(self.margin)
        first, then = other._keys(self.few)

        def least(values: Tensor, among: Tensor) -> Tensor:
            """The smallest value offered to each example [B]."""
            values = torch.where(among, values, torch.inf)
            return torch.full((b,), torch.inf).to(values).scatter_reduce(0, rows, values, "amin")

        leading = least(first, torch.ones_like(first, dtype=torch.bool))
        as_good = first == leading[rows]
        cheapest = least(then, as_good)
        earliest = least(torch.arange(n, device=rows.device).to(then), as_good & (then == cheapest[rows]))
        mine, now = self._keys(self.few)
        better = (leading < mine) | ((leading == mine) & (cheapest < now))
        to, of = better.nonzero().squeeze(1), earliest[better].long()
        for name in ("z", "margin", "sets", "cost"):  # a model in half precision scores so, distances are kept finer
            kept: Tensor = getattr(self, name)
            kept[to] = getattr(other, name)[of].to(kept)

    def _keys(self, few: bool) -> tuple[Tensor, Tensor]:
        """What is compared first, and what then [N], in float64."""
        miss = -finest(self.margin).nan_to_num(-torch.inf)
        cost, count = finest(self.cost), finest(self.count)
        never = self.sets.shape[1] + 1
        first = count if few else torch.where(self.found, 0.0, never).to(count)
        return first, torch.where(self.found, cost, miss)

"""Bounds: what no point of a region can bring a model to say.

Interval arithmetic (Gowal et al., 2018) and lines (CROWN: Zhang et al., NeurIPS 2018) by two modes of the engine's. All
is in float64, as the network computes with real numbers; its own rounding is the caller's to allow for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engine.intervals import Ends, Ranges
from ..engine.memory import Pace
from ..engine.probe import Meter, Probe
from ..engine.relaxation import Below
from ..engine.units import Unit
from .norms import Linf
from .region import Region

TOGETHER = 16  # numbers that go into a unit and share a way in; each has ways back of its own


@dataclass(eq=False)
class Leads:
    """Bounds below the lead of a class over every other, wherever each example goes in its region.

    Args:
        model: a function of one tensor that gives class scores [B, K]; or one number, the logit of class 1 of 2.
        x: the examples [B, ...] in float64.
        y: the classes that lead [B].
        classes: K.
        lines: also by lines, with ends of what goes into the units from lines; else by intervals alone.
        limit: most rows in one pass.
        meter: counts them.

    Raises Unreadable for an operation that no bound is known for, NonFiniteError for scores that are not finite.

    >>> from robustx.perturb import NORMS
    >>> model, x = torch.nn.Linear(2, 2, bias=False), torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    >>> model.weight.data = torch.eye(2)
    >>> radius, low, high = torch.tensor([[0.125], [0.0], [1.0]], dtype=torch.float64)
    >>> Leads(model, x, torch.tensor([0]), 2)(Region(x, NORMS["Linf"], radius, low, high), torch.tensor([0]))
    tensor([[ inf, 0.2500]], dtype=torch.float64)
    """

    model: Any
    x: Tensor
    y: Tensor
    classes: int
    lines: bool = True
    limit: int | None = None
    meter: Meter | None = None
    _paces: dict[Any, Pace] = field(default_factory=dict)
    _units: list[tuple[Unit, torch.Size, bool]] | None = None

    def __call__(self, region: Region, rows: Tensor, enough: float | Tensor = torch.inf) -> Tensor:
        """[b, K] for some examples, infinite for their own class; ``region`` is that of these.

        Args:
            enough: where intervals show more than that [b], no lines are looked for.
        """
        units = self._reached(region, rows, ())
        leads = self._leads(region, rows, units, level=True)
        rest = (~(leads.amin(1) > enough)).nonzero().squeeze(1) if self.lines else rows[:0]
        if len(rest):
            leads[rest] = torch.maximum(leads[rest], self._by_lines(region.at(rest), rows[rest]))
        return leads

    def _by_lines(self, region: Region, rows: Tensor) -> Tensor:
        """The same by lines alone; unit after unit, what goes into it is bounded by lines through those before."""
        known: list[tuple[Tensor, Tensor]] = []
        units = self._reached(region, rows, known)
        for k in range(len(units)):
            ends, open_ = self._nearer(region, rows, units, k)
            known.append(ends)
            units = self._reached(region, rows, known) if open_ else units
        return self._leads(region, rows, units, level=False)

    def _reached(self, region: Region, rows: Tensor, known: Sequence[tuple[Tensor, Tensor]]) -> list[Ends]:
        """What can go into each unit, as far as intervals tell, and what is ``known`` of the first ones."""
        score = Ranges(self.model, known, isinstance(region.norm, Linf), self._units)
        radius = region.radius[:, None]
        ends = torch.cat([region.clip(region.centre - radius), region.clip(region.centre + radius)], 1)
        f = self._probe((self.x, self.x), score, "reached").copies(rows, score)
        if self._units is None:
            f.value(ends[:1], f.everyone[:1])  # one row by itself tells where the batch stands
            self._units = score.units
        return score.apart(f.value(ends, torch.arange(len(rows), device=rows.device)))

    def _nearer(
        self, region: Region, rows: Tensor, units: Sequence[Ends], k: int
    ) -> tuple[tuple[Tensor, Tensor], bool]:
        """What goes into the k-th unit, where that matters, by lines; and whether that was anywhere."""
        unit, low, high, exact = units[k]
        loose = unit.loose(low, high).reshape(len(rows), -1)
        if exact or not loose.any():
            return (low, high), False
        place, element = groups(loose, TOGETHER)
        least = self._least(region, rows, Below(self.model, units, place, element, k), k)
        low, high = low.clone(), high.clone()
        at = place[:, None].expand_as(element)
        for ends, best, found in zip((low, high), (torch.maximum, torch.minimum), least.chunk(2, 1), strict=True):
            ends = ends.view(len(rows), -1)
            ends[at, element] = best(ends[at, element], found if best is torch.maximum else -found)
        return (low, high), True

    def _leads(self, region: Region, rows: Tensor, units: Sequence[Ends], level: bool) -> Tensor:
        own, everyone = self.y[rows], torch.arange(len(rows), device=rows.device)
        rivals = torch.ones(len(rows), self.classes, device=rows.device).scatter(1, own[:, None], 0).nonzero()[:, 1]
        rivals = rivals.reshape(len(rows), self.classes - 1)
        least = self._least(region, rows, Below(self.model, units, everyone, rivals, None, own, level), level)
        return least.new_full((len(rows), self.classes), torch.inf).scatter(1, rivals, least)

    def _least(self, region: Region, rows: Tensor, score: Below, stage: Any) -> Tensor:
        """The least of each line in its region [N, T]."""
        f = self._probe((self.x, self.x.new_ones(len(self.x))), score, ("least", stage))
        f, point = f.copies(rows[score.place], score), f.point
        found = []
        for part, value, g in f.grads(
            len(score.place),
            lambda part: (point[rows[score.place[part]]], torch.arange(part.start, part.stop, device=rows.device)),
        ):
            near = region.at(score.place[part])
            slopes, missed = g[..., :-1], g[..., -1]
            moves = [near.norm.steepest(-s, near.radius, near.room(near.centre, -s)) for s in slopes.unbind(1)]
            found.append(value + missed + (slopes * torch.stack(moves, 1)).sum(2))
        return torch.cat(found)

    def _probe(self, inputs: tuple[Tensor, Tensor], score: Any, stage: Any) -> Probe:
        pace = self._paces.setdefault(stage, Pace(self.limit))
        return Probe(self.model, inputs, score, pace=pace, meter=self.meter)


def groups(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where a mask [b, M] is true, some of one row together: rows [N], and places [N, size]; the last may repeat.

    >>> groups(torch.tensor([[True, True, True], [False, True, False]]), 2)
    (tensor([0, 0, 1]), tensor([[0, 1],
            [2, 2],
            [1, 1]]))
    """
    row, place = mask.nonzero().unbind(1)
    counts = mask.sum(1)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    needed = (counts + size - 1) // size
    group = (needed.cumsum(0) - needed)[row] + rank // size
    first = rank % size == 0
    places = place[first][:, None].repeat(1, size)
    places[group, rank % size] = place
    return row[first], places

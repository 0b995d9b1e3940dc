"""The domain of listed values: every feature stays as it is, or becomes what one of several alternatives has there."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attacks.found import Found
from ..engine.checks import ArgumentError
from ..engine.packing import Packing, Tensors, finest, flat
from ..engine.probe import Probe
from ..engine.sites import Call, Site
from ..perturb.features import Partition
from ..perturb.norms import L1, Norm
from .domain import Graded


@dataclass(frozen=True, eq=False)
class Chosen(Site):
    """The inputs, told by which alternative each feature has [N, F]; 0: its own.

    Args:
        features: which elements belong together.
        start: the examples as they are.
        alternatives: [m, ...] for each input.
    """

    features: Partition
    start: Tensors
    alternatives: Tensors

    entry = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return (torch.zeros(len(inputs[0]), self.features.count, device=inputs[0].device),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(self.there(z[0], rows))

    def there(self, z: Tensor, rows: Tensor) -> Tensors:
        """The inputs at some choices [N, F]."""
        codes = Packing.of(self.start).split(self.features.spread(z, rows).long())
        return tuple(
            torch.where(c == 0, t[rows], flat(a).gather(0, (flat(c) - 1).clamp(min=0)).reshape(c.shape))
            for t, a, c in zip(self.start, self.alternatives, codes, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Choose(Graded):
    """Features become what one of several alternatives has in their place; points are choices [N, F], 0 for none.

    Nothing is differentiated, so inputs may be token ids and the model a black box.

    Args:
        f: the goal at the inputs.
        features: what is chosen together.
        alternatives: [m, ...] for each input.
        norm: how the cost of a change is measured, in the inputs' units; ids that differ count 1.
    """

    f: Probe
    features: Partition
    alternatives: Tensors
    norm: Norm = L1()

    @cached_property
    def probe(self) -> Probe:
        return self.f.to(at=Chosen(self.features, self.f.inputs, self.alternatives))

    @property
    def home(self) -> Tensor:
        return self.probe.point

    @property
    def values(self) -> int:
        return len(self.alternatives[0]) + 1

    def options(self, rows: Tensor, k: Tensor) -> Tensor:
        return k[:, None].to(self.home).expand(-1, self.features.count)

    def put(self, z: Tensor, rows: Tensor, which: Tensor, there: Tensor) -> Tensor:
        return torch.where(which, there, z)

    def points(self, x: Tensor, rows: Tensor) -> Tensor:
        """Raises ArgumentError: there is nothing between the alternatives."""
        raise ArgumentError("features that take listed values take no others: known examples cannot be told as such")

    def allowed(self, z: Tensor, rows: Tensor, free: Tensor) -> Tensor:
        return torch.where(free, z, 0)

    @cached_property
    def opposite(self) -> Tensor:
        away, z = torch.zeros_like(self.home), self.home
        for k in range(1, self.values):
            there = torch.full_like(z, k)
            size = self.features.gather(self._moves(there, self.f.everyone).abs(), self.f.everyone).to(away)
            away, z = torch.maximum(away, size), torch.where(size > away, there, z)
        return z

    def rankings(self) -> list[Tensor]:
        return [self.alone()]

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        tries = [start, torch.where(sets, self.opposite[rows], 0)]
        tries += [torch.where(sets, float(k), self.home[rows]) for k in range(1, self.values)]
        best = Found.nothing(self.home[rows])
        for z in tries:
            best = best.stronger(Found(z, self.probe.value(z, rows).to(best.margin), self.cost(z, rows)))
        return self.ascend(rows, sets, best)

    def cost(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.norm.size(self._moves(z, rows)).to(z.dtype)

    def _moves(self, z: Tensor, rows: Tensor) -> Tensor:
        """By how much each element differs, in the inputs' units [N, D]; ids by 1."""
        there = self._inputs(z, rows)
        moves = [
            finest(a) - finest(t[rows]) if a.is_floating_point() else finest(a != t[rows])
            for a, t in zip(there, self.f.inputs, strict=True)
        ]
        return torch.cat([flat(m) for m in moves], 1)

    def part(self, z: Tensor, rows: Tensor, which: Tensor, share: Tensor) -> Tensor:
        return torch.where(which & (share == 0)[:, None], 0, z)

    def changed(self, z: Tensor, rows: Tensor) -> Tensor:
        return z > 0

    def inputs(self, z: Tensor) -> Tensors:
        return self._inputs(z, self.f.everyone)

    def _inputs(self, z: Tensor, rows: Tensor) -> Tensors:
        assert isinstance(self.probe.at, Chosen)
        return self.probe.at.there(z, rows)

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """Each feature in turn takes the cheapest alternative with which the goal stays reached."""
        best = Found(z, torch.ones_like(z[:, 0]), self.cost(z, rows))
        for j in range(int(sets.sum(1).max()) if len(sets) else 0):
            which = sets & (sets.cumsum(1) == j + 1)
            for k in range(1, self.values):
                tried = torch.where(which, float(k), best.z)
                best = best.smaller(Found(tried, self.probe.value(tried, rows).to(z), self.cost(tried, rows)))
        return best.z


def alternatives(values: Any, f: Probe) -> Tensors:
    """Listed values [m, ...] for each input: numbers that any element may take, or tensors with one axis before.

    Raises:
        ArgumentError: they do not broadcast to the inputs, or their numbers differ.
    """
    parts = values if isinstance(values, tuple) else (values,) * len(f.inputs)
    if len(parts) != len(f.inputs):
        raise ArgumentError(f"values must be a list, or a tuple of one for each of {len(f.inputs)} inputs")
    told = []
    for v, t in zip(parts, f.inputs, strict=True):
        given = torch.as_tensor(v, device=t.device).to(t.dtype)
        if not given.ndim or not len(given):
            raise ArgumentError(f"values must be a list of at least one value, got {v!r}")
        shape = (len(given), *t.shape[1:])
        given = given.reshape(-1, *(1,) * (t.ndim - 1)) if given.ndim == 1 else given
        try:
            told.append(given.expand(shape))
        except RuntimeError:
            raise ArgumentError(
                f"values of shape {tuple(given.shape)} do not broadcast to {shape}: one axis of alternatives, then "
                "those of an example"
            ) from None
    if len({len(t) for t in told}) > 1:
        raise ArgumentError(f"values must list as many for each input, got {', '.join(str(len(t)) for t in told)}")
    return tuple(told)

"""The domain of a table: columns of mixed kinds that keep to what a schema says of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attacks.found import Found
from ..engine.checks import ArgumentError
from ..engine.packing import Tensors
from ..engine.probe import Probe
from ..perturb.features import Partition
from ..perturb.norms import L1, Norm
from .domain import VALUES, Domain, Graded, Move
from .known import Known
from .schema import FeatureSchema


@dataclass(frozen=True, eq=False)
class Table(Graded):
    """Features of a table change as their schema allows; points are encoded rows [N, D], and always allowed ones.

    Where there are gradients they are followed in the box around the table's values, whose inside is not all allowed
    (half of one category and half of another); what is found is then put where everything holds, and from there
    features are given one value after the other.

    Args:
        f: the goal at the inputs, one tensor [B, D].
        features: the columns of each feature, as the schema has them.
        schema: what the columns mean.
        norm: how the costs of the features' changes are added up.
        steps: of the ascent for each set.
        known: examples whose values are tried where there is no gradient to follow.
    """

    f: Probe
    features: Partition
    schema: FeatureSchema
    norm: Norm = L1()
    steps: int = 12
    known: Known | None = None

    @property
    def probe(self) -> Probe:
        return self.f

    @property
    def home(self) -> Tensor:
        return self.f.point

    @cached_property
    def codes(self) -> Tensor:
        """Of the unchanged examples [B, F]."""
        return self.schema.decoded(self.home)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and greatest code of each feature, where it has one; otherwise far away [B, F]."""
        low, high = self.schema.limits(self.codes)
        far = 100 * self.codes.abs().clamp(min=1)
        return torch.where(low.isfinite(), low, self.codes - far), torch.where(high.isfinite(), high, self.codes + far)

    @cached_property
    def relaxed(self) -> Move:
        """The box around what is allowed, measured as costs are."""
        low, high = self.schema.bounds(self.home)
        least, most = (self.schema.encoded(e).to(self.home) for e in self.ends)
        low, high = torch.where(low.isfinite(), low, least), torch.where(high.isfinite(), high, most)
        return Move(self.f, self.features, low, high, self._unit, self.norm, self.steps, self.known)

    @cached_property
    def _unit(self) -> Tensor:
        """What a move of each column costs 1 [1, D]."""
        unit = torch.ones(1, self.schema.width, dtype=self.home.dtype, device=self.f.device)
        for f, p in zip(self.schema.features, self.schema.places, strict=True):
            span = 2.0 if p.block else f.span / abs(p.scale)  # another category moves two columns by 1
            unit[:, p.columns] = span / max(f.cost, 1e-6)
        return unit

    def rankings(self) -> list[Tensor]:
        return self.relaxed.rankings()

    def farthest(self) -> list[Tensor]:
        rows, free = self.f.everyone, torch.ones_like(self.codes, dtype=torch.bool, device=self.f.device)
        return [self.allowed(self.relaxed.there(z, rows), rows, free) for z in self.relaxed.farthest()]

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        best = self._seen(start, rows)
        if self.relaxed.slope is not None:
            moves = (start - self.home[rows]) / self._unit
            bold = self.relaxed.attempt(rows, sets, moves)
            there = self.relaxed.there(bold.z, rows)
            best = best.stronger(self._seen(self.allowed(there, rows, sets), rows))
        else:
            options = (self.options(rows, torch.full_like(rows, k)) for k in range(self.values))
            for there in (self.opposite[rows], *options):
                z = self.put(self.home[rows], rows, sets, there)
                best = best.stronger(self._seen(z, rows))
        return self.ascend(rows, sets, best)

    def _seen(self, z: Tensor, rows: Tensor) -> Found:
        return Found(z, self.f.value(z, rows), self.cost(z, rows))

    def points(self, x: Tensor, rows: Tensor) -> Tensor:
        return x

    def allowed(self, z: Tensor, rows: Tensor, free: Tensor) -> Tensor:
        return self.schema.project(z, self.home[rows], free)

    @cached_property
    def opposite(self) -> Tensor:
        moves, everyone = self.relaxed.opposite, self.f.everyone
        free = torch.ones(len(moves), self.features.count, dtype=torch.bool, device=self.f.device)
        return self.allowed(self.relaxed.there(moves, everyone), everyone, free)

    @cached_property
    def values(self) -> int:
        return self._options.shape[1]

    @cached_property
    def _options(self) -> Tensor:
        """All values that are tried, each encoded in the columns of its feature [B, values, D]."""
        count = max([VALUES, *(len(f.categories) for f in self.schema.features)])
        share = torch.arange(count, dtype=torch.float64)
        low, high = self.ends
        told = []
        for i, f in enumerate(self.schema.features):
            if f.listed:
                codes = share.clamp(max=len(f.categories) - 1).expand(len(low), -1)
            else:
                codes = torch.lerp(low[:, i, None], high[:, i, None], share / (count - 1))
            told.append(f.snapped(codes))
        flat = torch.stack(told, 2).flatten(0, 1) if told else low.new_zeros(len(low) * count, 0)
        table = self.schema.encoded(flat).to(self.home).reshape(len(low), count, -1)
        return torch.cat([table, self.seen], 1)

    def options(self, rows: Tensor, k: Tensor) -> Tensor:
        options: Tensor = self._options[rows, k]
        return options

    def put(self, z: Tensor, rows: Tensor, which: Tensor, there: Tensor) -> Tensor:
        moved = torch.where(self.features.spread(which.to(z), rows) > 0, there, z)
        return self.allowed(moved, rows, which | self.changed(z, rows))

    def cost(self, z: Tensor, rows: Tensor) -> Tensor:
        changes = []
        move = z - self.home[rows]
        for f, p in zip(self.schema.features, self.schema.places, strict=True):
            size = move[:, p.columns].abs().sum(1)
            changes.append(size * f.cost / (2.0 if p.block else f.span / abs(p.scale)))
        return self.norm.size(torch.stack(changes, 1)) if changes else z.new_zeros(len(z))

    def part(self, z: Tensor, rows: Tensor, which: Tensor, share: Tensor) -> Tensor:
        home = self.home[rows]
        there = torch.lerp(home, z, share[:, None].to(z))
        moved = torch.where(self.features.spread(which.to(z), rows) > 0, there, z)
        free = self.changed(z, rows) & ~(which & (share == 0)[:, None])
        return self.allowed(moved, rows, free)

    def changed(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.features.gather((z != self.home[rows]).to(z), rows) > 0

    def inputs(self, z: Tensor) -> Tensors:
        return self.f.packing.unpack(z)

    def edge(self, z: Tensor) -> Tensor:
        codes = self.schema.decoded(z, self.codes)
        low, high = self.schema.limits(self.codes)
        listed = torch.tensor([f.kind == "categorical" for f in self.schema.features], dtype=torch.bool)
        return (((codes <= low) | (codes >= high)) & (codes != self.codes) & ~listed).to(z.device)


def graded(domain: Domain, strategy: str) -> Move | Table:
    """``domain``, if its features move by degrees.

    Raises:
        ArgumentError: they give way, or take listed values.
    """
    if not isinstance(domain, Move | Table):
        raise ArgumentError(
            f"strategy {strategy!r} moves features, so it needs bounds or a schema; where they give way choose "
            "'guided' or 'sedc'"
        )
    return domain


def box_of(domain: Move | Table) -> Move:
    """The box in which features move, in the units of costs."""
    return domain if isinstance(domain, Move) else domain.relaxed


def settled(domain: Move | Table, moves: Tensor, rows: Tensor, free: Tensor) -> Tensor:
    """The allowed points nearest to moves [N, D]."""
    return domain.allowed(moves if isinstance(domain, Move) else domain.relaxed.there(moves, rows), rows, free)


def moves_of(domain: Move | Table, z: Tensor, rows: Tensor) -> Tensor:
    """How far each element has moved, in the units of costs [N, D]."""
    return z if isinstance(domain, Move) else domain.relaxed.points(z, rows)

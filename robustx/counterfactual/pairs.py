"""Counterfactuals of any origin: what of them is needed, and how near they can come."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache, partial
from itertools import combinations
from math import comb
from typing import Any, Self

import torch
from torch import Tensor

from ..attribution.coalitions import Coalitions
from ..attribution.shapley import Chosen
from ..engine.checks import ArgumentError, at_least
from ..engine.guard import guarded, ordinary
from ..engine.packing import Tensors, flat
from ..engine.probe import Door, Probe, by_name
from ..perturb.features import from_masks
from ..perturb.gates import Gates, gated
from ..perturb.norms import Norm, norm_of
from ..perturb.references import Reference
from .aims import aimed
from .domain import Graded, Move
from .naming import names_of
from .schema import FeatureSchema
from .table import Table

WIDE = 64  # numbers of changes that are taken back together in one round, at most


class Pairs:
    """Inputs and counterfactuals of them, whoever found these: another tool, a generator, a person.

    A feature that differs stands either as in the input or as in the counterfactual. All that is said here is about
    such mixtures, and about points on the straight way (:meth:`refine`). A mixture reaches the goal where its margin is
    more than ``by``.

    Args:
        forward_func: the model, any callable that returns class scores [B, K] (or anything, with a goal).
        x: a tensor [B, ...], or a tuple or dict of tensors; with a schema also a table in its own units.
        x_cf: one counterfactual for each, shaped like ``x``; rows with NaN or infinite elements count as missing. Of
            several counterfactuals of one input, repeat the input.
        target: what they were to reach: ``"other"`` (any other class than the model's at ``x``), ``"runner-up"``, one
            class or one per example, a :class:`Change`, a goal, or a function from outputs to margins [N].
        min_prob: the probability that a class was to reach.
        feature_mask: integers that broadcast to the inputs; equal ones change together. Default: each for itself.
        schema: what a table's columns are, in place of a mask.
        names: what to call the features, in the order of their ids.
        tolerance: elements that differ by no more than this have not changed, unless the goal needs them: other tools
            round.
        by: by how much a mixture must reach the goal, so that rounding in another batch does not undo it. Default: a
            hair (1e-4 logits), or half of what the counterfactual itself has if that is less.
        additional_forward_args, additional_forward_kwargs: passed on to the model.
        batch_size: most rows in one pass; None fills the memory budget.

    Attributes:
        counterfactual: in the form, shapes and dtypes of the inputs; a missing one is the input.
        changed: which features differ [B, F].
        before, margin: by how much the goal is reached at the inputs and at the counterfactuals (below 0: missed) [B].
        names: what the features are called, F of them.

    Raises:
        ArgumentError: the counterfactuals are not shaped like the inputs, or an argument fits neither.

    >>> model = lambda x: torch.stack([torch.full((len(x),), 1.5), x[:, 0] + x[:, 1]], 1)
    >>> found = Pairs(model, torch.zeros(1, 3), torch.tensor([[2.0, 0.5, 7.0]])).prune()
    >>> found.counterfactual, found.refine().counterfactual.round(decimals=2)
    (tensor([[2., 0., 0.]]), tensor([[1.5000, 0.0000, 0.0000]]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        x: Any,
        x_cf: Any,
        target: Any = "other",
        *,
        min_prob: float | None = None,
        feature_mask: Any = None,
        schema: FeatureSchema | None = None,
        names: Sequence[str] | None = None,
        tolerance: float = 0.0,
        by: float | None = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> None:
        if schema is not None and feature_mask is not None:
            raise ArgumentError("give feature_mask or schema, not both: a schema says what changes together")
        at_least("tolerance", tolerance, 0)
        at_least("by", 0 if by is None else by, 0)
        if schema is not None:
            x, x_cf = (t if isinstance(t, Tensor) else schema.encode(t) for t in (x, x_cf))
        self.forward_func, self.inputs, self.schema = forward_func, x, schema
        self._door = Door.open(x)
        f = self._door.probe(forward_func, None, additional_forward_args, additional_forward_kwargs, batch_size)
        after = _shaped_like(x_cf, self._door)
        mask = feature_mask if schema is None else schema.feature_mask
        self.features = from_masks(mask, f.inputs, self._door.names)
        self.names = names_of(self.features, names if schema is None else schema.names)
        there = torch.stack([flat(t).isfinite().all(1) for t in after]).all(0)
        self._given = there
        self._aim(f, target, min_prob)
        self._take(tuple(torch.where(_rows(there, a), a, b) for a, b in zip(after, f.inputs, strict=True)))
        if tolerance:
            self._settle(tolerance)
        self.by = torch.minimum(self.goal.hair(self.before), self.margin / 2).clamp(min=0)
        if by is not None:
            self.by = torch.full_like(self.by, by)

    @guarded
    def _aim(self, f: Probe, target: Any, min_prob: float | None) -> None:
        self.goal = aimed(f, target, min_prob)
        f = f.to(of=self.goal)
        self.before: Tensor = f.score
        self.f = f.to(strict=False)

    @guarded
    def _take(self, after: Tensors) -> None:
        self.give: Reference
        self.after, self.give = after, always(after)
        self.counterfactual = self._door.out(after)
        apart = torch.cat([flat(a != b) for a, b in zip(after, self.f.inputs, strict=True)], 1)
        self.changed = self.features.gather(apart.to(torch.float32), self.f.everyone) > 0
        self.margin = self.f.to(inputs=after).score

    def _settle(self, tolerance: float) -> None:
        """Takes differences of no more than this back, all those of an example, unless its goal needs them."""
        pairs = [
            (a, torch.where((a - b).abs() <= tolerance, b, a) if a.is_floating_point() else a)
            for a, b in zip(self.after, self.f.inputs, strict=True)
        ]
        needed = self.valid & ~self._to(tuple(near for _, near in pairs)).valid
        self._take(tuple(torch.where(_rows(needed, a), a, near) for a, near in pairs))

    def _to(self, after: Tensors) -> Self:
        other = copy(self)
        other._take(after)
        return other

    @property
    def valid(self) -> Tensor:
        """Whether there is a counterfactual that reaches the goal [B]."""
        return self._given & (self.margin > 0)

    @property
    def n_changed(self) -> Tensor:
        """How many features differ [B]."""
        return self.changed.sum(1)

    @property
    def forwards(self) -> Tensor:
        """How often each example went through the model so far [B]."""
        assert self.f.meter is not None
        return self.f.meter.forward.clone()

    def __len__(self) -> int:
        return self.f.examples

    def __repr__(self) -> str:
        few = self.n_changed[self.valid].double()
        told = f"; {few.mean():.2f} of {len(self.names)} features differ on average" if len(few) else ""
        return f"Pairs({len(few)} of {len(self)} valid{told})"

    @guarded
    def prune(self, budget: int = 512) -> Self:
        """The same with changes taken back that the goal does not need; none is added, and what is valid stays so.

        Round by round, changes are ordered by the margin that is left without each of them alone, and the first one,
        two, three... are taken back together, as many as can be; until taking back any single one loses the goal. Then
        all smaller sets of the changes are tried, those of one first, as long as there are no more than ``budget``.

        Where the input itself reaches the goal, nothing needs to change. What is not valid comes back as it is.
        """
        need = self.changed & ~(self.valid & (self.before > self.by))[:, None]
        need = self._irreducible(need)
        need, _ = self.smaller(self.changed, need, need.sum(1), budget)
        return self._to(self.mixed(need))

    @guarded
    def refine(self, norm: str | Norm = "L1") -> Self:
        """The same with changes of the same features that are no larger in that norm, and what is valid stays so.

        All features straight back together as far as the goal stays reached, then one after the other, or the latter
        alone where that comes nearer; in a table only to values that its schema allows.

        Raises:
            TypeError: inputs are integers, which have no points between.
        """
        domain, z = self._between(norm_of(norm))
        rows = self.valid.nonzero().squeeze(1)
        best, cost = z.clone(), domain.cost(z, self.f.everyone)
        for way in (type(domain).refine, Graded.refine):
            tried = z.clone()
            tried[rows] = way(domain, z[rows], rows, self.changed[rows])
            new, now = self._to(domain.inputs(tried)), domain.cost(tried, self.f.everyone)
            kept = self.valid & (new.margin > torch.minimum(self.by, self.margin / 2)) & (now < cost)
            kept &= ~(new.changed & ~self.changed).any(1)
            best, cost = torch.where(kept[:, None], tried, best), torch.where(kept, now, cost)
        moved = (best != z).any(1)
        near = zip(domain.inputs(best), self.after, strict=True)
        return self._to(tuple(torch.where(_rows(moved, a), a, b) for a, b in near))

    def _between(self, norm: Norm) -> tuple[Graded, Tensor]:
        """What lies between the inputs and their counterfactuals, and these as its points [B, Z]."""
        f = self.f.to(of=self.goal.firm(self.by))
        away = f.packing.pack(self.after)
        if self.schema is not None:
            return Table(f, self.features, self.schema, norm), away
        low, high = torch.minimum(f.point, away), torch.maximum(f.point, away)
        return Move(f, self.features, low, high, torch.ones_like(away[:1]), norm), away - f.point

    def _irreducible(self, sets: Tensor) -> Tensor:
        """Sets of changes [B, F] without those that can be taken back, until none can."""
        sets, left = sets.clone(), self.valid.clone()
        while left.any():
            for rows, chosen in Chosen.alike(self.features, sets & left[:, None]):
                n = chosen.count
                without = self._but_one(chosen, rows)
                can = (without > self.by[rows, None]).any(1) if n > 1 else torch.zeros_like(rows, dtype=torch.bool)
                left[rows[~can]] = False
                rows, order = rows[can], without[can].argsort(1, descending=True)
                if not len(rows):
                    continue
                who = chosen.who.clone()
                who[rows] = who[rows].gather(1, order)
                sizes = torch.linspace(1, n - 1, min(n - 1, WIDE), device=rows.device).long()
                behind = self._margins(Chosen(self.features, who), rows, len(sizes), partial(_behind, n, sizes))
                good = behind > self.by[rows, None]
                good[:, 0] = True  # one alone can, whatever rounding now says
                back = torch.arange(n, device=rows.device) < (good * sizes).amax(1, keepdim=True)
                sets[rows] = sets[rows].scatter(1, who[rows], ~back)
        return sets

    def smaller(self, among: Tensor, sets: Tensor, below: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        """The smallest of all sets of less than ``below`` [B] features ``among`` [B, F] that reaches the goal, or
        ``sets`` [B, F] where none does; and up to which size all were tried, without success but for the last [B].
        """
        sets, tried, spent = sets.clone(), torch.zeros_like(below), torch.zeros_like(below)
        left, can = self.valid.clone(), among.sum(1)
        for size in range(1, int(below.max()) if len(below) else 0):
            spent += torch.tensor([min(comb(c, size), 1 << 40) for c in can.tolist()], device=can.device)
            left &= (size < below) & (spent <= budget)
            for rows, chosen in Chosen.alike(self.features, among & left[:, None]):
                rows = rows[left[rows]]
                if not len(rows):
                    continue
                picks = picks_of(chosen.count, size).to(rows.device)
                margins = self._margins(chosen, rows, len(picks), partial(_some, chosen.count, picks))
                best, at = margins.max(1)
                tried[rows] = size
                hit = best > self.by[rows]
                members = chosen.who[rows[hit]].gather(1, picks[at[hit]])
                sets[rows[hit]] = torch.zeros_like(sets[rows[hit]]).scatter(1, members, True)
                left[rows[hit]] = False
        return sets, tried

    def without(self, rows: Tensor) -> Tensor:
        """Which single changes of some examples (flags [B]) can be taken back, all others kept [B, F]."""
        found = torch.zeros_like(self.changed)
        for some, chosen in Chosen.alike(self.features, self.changed & rows[:, None]):
            margins = self._but_one(chosen, some)
            found[some] = found[some].scatter(1, chosen.who[some], margins > self.by[some, None])
        return found

    def mixed(self, sets: Tensor) -> Tensors:
        """The inputs with some features [B, F] as in the counterfactuals."""
        gates = gated(self.f, self.features, self.give)
        assert isinstance(gates.at, Gates)
        return gates.at.blend(sets.to(gates.point), gates.everyone)

    def _but_one(self, chosen: Chosen, rows: Tensor) -> Tensor:
        """The margins when each of the chosen changes alone is taken back [R, k]."""
        return self._margins(chosen, rows, chosen.count, lambda k: ~_set(chosen.count, k[:, None]))

    def _margins(self, chosen: Chosen, rows: Tensor, count: int, there: Callable[[Tensor], Tensor]) -> Tensor:
        """The margins with ``count`` sets of the chosen changes for each of ``rows``: numbers [n] -> sets [n, k]."""
        players = Coalitions(self.f, chosen, self.give)
        table = players.all_there.new_empty(len(rows), count)
        place = torch.empty_like(self.f.everyone)
        place[rows] = torch.arange(len(rows), device=rows.device)
        for a in players.ask(count, lambda k, _: there(k), rows=rows):
            table[place[a.rows], a.sets] = a.values
        return table.nan_to_num(-torch.inf)


def prune(forward_func: Callable[..., Any], x: Any, x_cf: Any, budget: int = 512, **told: Any) -> Pairs:
    """Counterfactuals of any origin without the changes that they do not need, see :meth:`Pairs.prune`.

    Args:
        forward_func, x, x_cf: the model, the inputs and their counterfactuals.
        budget: how many smaller sets of the changes may be tried at last, one by one.
        told: the goal, the features and the rest, as for :class:`Pairs`.

    >>> model = lambda x: torch.stack([torch.full((len(x),), 1.5), x[:, 0] + x[:, 1]], 1)
    >>> prune(model, torch.zeros(1, 3), torch.tensor([[2.0, 0.5, 7.0]])).counterfactual
    tensor([[2., 0., 0.]])
    """
    return Pairs(forward_func, x, x_cf, **told).prune(budget)


def refine(forward_func: Callable[..., Any], x: Any, x_cf: Any, norm: str | Norm = "L1", **told: Any) -> Pairs:
    """Counterfactuals of any origin, drawn nearer without another feature changing, see :meth:`Pairs.refine`.

    Args:
        forward_func, x, x_cf: the model, the inputs and their counterfactuals.
        norm: in which they come nearer.
        told: the goal, the features and the rest, as for :class:`Pairs`.

    >>> model = lambda x: torch.stack([torch.full((len(x),), 1.5), x[:, 0] + x[:, 1]], 1)
    >>> refine(model, torch.zeros(1, 2), torch.tensor([[2.0, 2.0]])).counterfactual.round(decimals=2)
    tensor([[0.7500, 0.7500]])
    """
    return Pairs(forward_func, x, x_cf, **told).refine(norm)


def always(there: Tensors) -> Reference:
    """The reference that is these tensors."""
    return lambda _: there


def _shaped_like(x_cf: Any, door: Door) -> Tensors:
    """Counterfactuals as the inputs' tensors are.

    Raises:
        ArgumentError: they are not shaped so.
    """
    parts = by_name(x_cf, door.names, "x_cf")
    parts = tuple(parts) if isinstance(parts, tuple | list) else (torch.as_tensor(parts),)
    if [t.shape for t in parts] != [t.shape for t in door.inputs]:
        told, wanted = ([tuple(t.shape) for t in some] for some in (parts, door.inputs))
        raise ArgumentError(f"x_cf must be shaped like x, {wanted}, got {told}; give one counterfactual per example")
    return tuple(ordinary(a).to(b) for a, b in zip(parts, door.inputs, strict=True))


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    """[B] as it broadcasts to tensors [B, ...]."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _set(count: int, members: Tensor) -> Tensor:
    """Sets of ``count`` features [n, count], told by their members [n, size]."""
    none = torch.zeros(len(members), count, dtype=torch.bool, device=members.device)
    return none.scatter(1, members, True)


def _some(count: int, picks: Tensor, k: Tensor) -> Tensor:
    return _set(count, picks[k])


def _behind(count: int, sizes: Tensor, k: Tensor) -> Tensor:
    """All of ``count`` features but the first ``sizes[k]`` [n, count]."""
    return torch.arange(count, device=k.device) >= sizes[k, None]


@lru_cache(64)
def picks_of(of: int, size: int) -> Tensor:
    """All sets of so many [C, size]."""
    return torch.tensor(list(combinations(range(of), size)), dtype=torch.long).reshape(-1, size)

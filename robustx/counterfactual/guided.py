"""Counterfactuals: few features, chosen, checked and explained by attributions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from ..attribution.shapley import shares_of_change
from ..engine.guard import guarded
from ..engine.packing import finest, row_sums
from ..engine.probe import Door, Probe
from ..engine.sites import Input
from ..perturb.features import Partition, from_masks
from ..perturb.goals import Goal, aim
from ..perturb.references import blur, through
from ..perturb.region import box
from .domain import Domain, Move, Replace
from .result import CounterfactualResult


@dataclass(eq=False)
class Best:
    """The fewest features that reach the goal so far, and the cheapest point where they do; for each example."""

    z: Tensor  # [B, Z]
    margin: Tensor  # [B]
    sets: Tensor  # [B, F]
    cost: Tensor  # [B]

    @property
    def found(self) -> Tensor:
        return self.margin > 0

    @property
    def count(self) -> Tensor:
        """How many features change [B]; one more than there are where nothing was found."""
        return torch.where(self.found, self.sets.sum(1), self.sets.shape[1] + 1)

    def offer(self, rows: Tensor, other: "Best") -> None:
        """Takes for each of ``rows`` [N] what changes fewer features, or as many at less cost; where nothing has
        worked yet, what came nearest. An example may be offered several points at once.
        """
        n, b = len(rows), len(self.margin)
        count, cost = other._keys()

        def least(values: Tensor, among: Tensor) -> Tensor:
            """The smallest value offered to each example [B]."""
            values = torch.where(among, values, torch.inf)
            return torch.full((b,), torch.inf).to(values).scatter_reduce(0, rows, values, "amin")

        fewest = least(count, torch.ones_like(count, dtype=torch.bool))
        as_few = count == fewest[rows]
        cheapest = least(cost, as_few)
        first = least(torch.arange(n, device=rows.device).to(cost), as_few & (cost == cheapest[rows]))
        mine, now = self._keys()
        better = (fewest < mine) | ((fewest == mine) & (cheapest < now))
        to, of = better.nonzero().squeeze(1), first[better].long()
        for kept, offered in zip(vars(self).values(), vars(other).values(), strict=True):
            kept[to] = offered[of].to(kept)  # a model in half precision scores so, distances are kept finer

    def _keys(self) -> tuple[Tensor, Tensor]:
        """What is compared first, and what then [N], in float64."""
        miss = -finest(self.margin).nan_to_num(-torch.inf)
        return finest(self.count), torch.where(self.found, finest(self.cost), miss)


def guided(domain: Domain, movable: Tensor, budget: int) -> tuple[Best, Tensor]:
    """The smallest set of features that reaches the goal, and up to what size all sets were tried [B].

    Attributions towards what the domain allows rank the features; the leading ones are tried together, few or
    many, for all rankings in one batch; what can be taken back is taken back; and as long as there are at most
    ``budget`` sets of a smaller size, all of them are tried.
    """
    f = domain.probe
    margin = f.value(domain.home)
    best = Best(domain.home.clone(), margin, torch.zeros_like(movable), torch.zeros_like(domain.home[:, 0]))
    todo = (~best.found).nonzero().squeeze(1)
    tried = torch.zeros_like(best.sets[:, 0], dtype=torch.long)
    if not len(todo):
        return best, tried
    ranks = [a.masked_fill(~movable, -torch.inf).argsort(1, descending=True).argsort(1) for a in domain.rankings()]
    _leading(domain, best, todo, ranks, movable)
    _drop(domain, best)
    _exhaust(domain, best, todo, movable, budget, tried)
    while True:
        found = best.found.nonzero().squeeze(1)
        z = domain.refine(best.z[found], found, best.sets[found])
        best.z[found], best.margin[found] = z, f.value(z, found)
        if not _revert(domain, best):
            return best, tried


def _try(domain: Domain, best: Best, rows: Tensor, sets: Tensor) -> None:
    size = max(1, 2**24 // max(domain.home.shape[1], 1))  # rows of points held at once
    for r, s in zip(rows.split(size), sets.split(size), strict=True):
        start = domain.back(best.z[r], r, ~s)
        found = domain.attempt(r, s, start)
        best.offer(r, Best(found.z, found.margin, s, domain.cost(found, r)))


def _leading(domain: Domain, best: Best, todo: Tensor, ranks: list[Tensor], movable: Tensor) -> None:
    """Doubles the number of leading features until they do, then bisects between."""
    low = torch.zeros_like(best.count)  # failed
    high = torch.full_like(low, movable.shape[1] + 1)  # worked
    top = movable.sum(1)
    k = torch.ones_like(low)
    left = todo[top[todo] > 0]
    while len(left):
        rows = left.repeat(len(ranks))
        sets = torch.cat([(rank[left] < k[left, None]) & movable[left] for rank in ranks])
        _try(domain, best, rows, sets)
        worked = best.count[left] <= k[left]
        high[left] = torch.where(worked, torch.minimum(best.count[left], k[left]), high[left])
        low[left] = torch.where(worked, low[left], k[left])
        bound = torch.minimum(high, top + 1)
        open_ = bound - low > 1
        k = torch.where(high <= movable.shape[1], (low + bound) // 2, torch.minimum(2 * low, top))
        left = left[open_[left] & (low[left] < top[left])]


def _drop(domain: Domain, best: Best) -> None:
    """Takes one feature out of each set, as long as the rest can still do it."""
    while True:
        before = best.count.clone()
        found = (best.found & (before > 1)).nonzero().squeeze(1)
        pairs = best.sets[found].nonzero()
        if not len(pairs):
            return
        rows = found[pairs[:, 0]]
        sets = best.sets[rows].scatter(1, pairs[:, 1:], False)
        _try(domain, best, rows, sets)
        if torch.equal(best.count, before):
            return


def _exhaust(domain: Domain, best: Best, todo: Tensor, movable: Tensor, budget: int, tried: Tensor) -> None:
    """Tries all sets of one feature, of two..., up to as many as a row needs by now."""
    can = movable.sum(1)
    for size in range(1, movable.shape[1] + 1):
        few = torch.tensor([comb(c, size) <= budget for c in can[todo].tolist()], device=todo.device)
        rows = todo[few & (best.count[todo] >= size) & (can[todo] >= size) & (tried[todo] == size - 1)]
        if not len(rows):
            return
        pairs = [(r, c) for r in rows.tolist() for c in combinations(movable[r].nonzero().squeeze(1).tolist(), size)]
        members = torch.tensor([c for _, c in pairs], device=rows.device)
        sets = torch.zeros(len(pairs), movable.shape[1], dtype=torch.bool, device=rows.device).scatter(1, members, True)
        _try(domain, best, torch.tensor([r for r, _ in pairs], device=rows.device), sets)
        tried[rows] = size


def _revert(domain: Domain, best: Best) -> bool:
    """Takes home features whose change turns out not to be needed; whether there were any."""
    found = best.found.nonzero().squeeze(1)
    pairs = best.sets[found].nonzero()
    if not len(pairs):
        return False
    rows = found[pairs[:, 0]]
    out = torch.zeros_like(best.sets[rows]).scatter(1, pairs[:, 1:], True)
    z = domain.back(best.z[rows], rows, out)
    margin = domain.probe.value(z, rows)
    before = best.count.sum()
    best.offer(rows, Best(z, margin, best.sets[rows] & ~out, best.cost[rows]))
    return bool(best.count.sum() < before)


class Guided:
    """The fewest features that must change for the model to change its mind; which they are, and what each one did.

    Attributions towards what the constraints allow choose the features, a search with gradients finds values for them
    (or a reference replaces them), and Shapley values of the change explain it exactly.

    Args:
        forward_func: the model, any callable that returns class scores [B, K] (or anything, with a goal).
        bounds: the finite box inside which features move; numbers, or tensors that broadcast to the inputs
            (one range per column, or per example and column). Not needed with a reference.
        reference: let features give way to this instead of moving freely: ``"blur"``, a number, a tensor that
            broadcasts to the inputs (another picture, say), or any :data:`robustx.perturb.Reference`.
        by: the least margin by which the goal must be reached (in logits, for classes); above 0, so that rounding in
            another batch does not undo it. Default: 1e-4; with a goal of your own at most that share of the margin at
            the start.
        steps: gradient steps per set of features that is tried.
        budget: all sets of a size are tried if there are at most this many.
        batch_size: most rows in one pass; None fills the memory budget.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), "bias": torch.zeros(2)})
    >>> result = Guided(lambda x: model(x) - 1, bounds=(-1, 1)).generate(torch.tensor([[0.1, 0.1, 0.5]]))
    >>> result.changed.tolist(), result.proved
    ([[False, False, True]], ['smallest'])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        *,
        reference: Any = None,
        by: float | None = None,
        steps: int = 12,
        budget: int = 512,
        batch_size: int | None = None,
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        if bounds is not None and reference is not None:
            raise ValueError("give bounds or a reference, not both: features move inside a box, or give way whole")
        if bounds is not None and (not isinstance(bounds, tuple | list) or len(bounds) != 2):
            raise ValueError(f"bounds must be a pair (lowest, highest), such as (0, 1), got {bounds!r}")
        if bounds is None and reference is None:
            raise ValueError(
                "say how features may change: bounds=(0, 1) lets them move inside a box, reference='blur' (or a "
                "number, a tensor) lets them give way to it"
            )
        if isinstance(reference, str) and reference != "blur":
            raise ValueError(f"reference must be 'blur', a number, a tensor or a Reference, got {reference!r}")
        if by is not None and not by > 0:
            raise ValueError(f"by must be above 0, got {by!r}: at 0 a counterfactual may not survive rounding")
        self.forward_func, self.bounds, self.reference = forward_func, bounds, reference
        self.by, self.steps, self.budget, self.batch_size = by, steps, budget, batch_size

    @guarded
    def generate(
        self,
        x: Any,
        y: Tensor | int | None = None,
        targeted: bool = False,
        *,
        goal: Goal | Callable[[Any], Tensor] | None = None,
        feature_mask: Any = None,
        names: Sequence[str] | None = None,
        immutable: Iterable[int | str] | int | str = (),
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> CounterfactualResult:
        """One counterfactual for each example; where none was found, ``valid`` says so and nothing is changed.

        Args:
            x: a tensor [B, ...], or a tuple or dict of tensors.
            y: classes to leave [B] (to reach, if ``targeted``); None leaves the model's own answers.
            goal: any other goal (a score interval, say) instead of y, or a function from outputs to margins [N].
            feature_mask: integers that broadcast to the inputs; equal ones change together. Default: each for itself.
            names: what to call the features, in the order of their ids.
            immutable: features that must not change, by id or name.
            additional_forward_args, additional_forward_kwargs: passed on to the model.

        Raises:
            ValueError: infinite bounds, inputs outside them, unknown features, labels that are no classes.
        """
        door = Door.open(x)
        f = door.probe(
            self.forward_func, None, additional_forward_args, additional_forward_kwargs, limit=self.batch_size
        )
        want = aim(f, goal, y, targeted)
        f = f.to(of=want)
        before = f.score
        features = from_masks(feature_mask, f.inputs, door.names)
        told = _names(features, names)
        movable = self._movable(f, features, told, immutable)
        least = want.hair(before) if self.by is None else torch.full_like(before, self.by)
        domain = self._domain(f.to(of=want.firm(least), strict=False), features)
        best, tried = guided(domain, movable, self.budget)
        found = best.found[:, None]
        after = domain.inputs(torch.where(found, best.z, domain.home))
        there = f.to(inputs=after, strict=False)
        margin = there.score
        sets = best.sets & found
        shares = shares_of_change(f.to(at=Input(), strict=False), features, after, sets)
        way = [
            finest(a) - finest(b) if a.is_floating_point() else finest(a != b)
            for a, b in zip(after, f.inputs, strict=True)
        ]
        assert f.meter is not None
        return CounterfactualResult(
            inputs=x,
            counterfactual=door.out(after),
            valid=margin > 0,
            margin=margin,
            before=before,
            nearest=torch.maximum(best.margin + least, before),
            changed=sets,
            distance=row_sums([w.abs() for w in way]),
            contributions=shares.to(before.device),
            proved=_proofs(domain, margin, sets, tried),
            names=told,
            forwards=f.meter.forward.clone(),
            backwards=f.meter.backward.clone(),
        )

    def _movable(
        self, f: Probe, features: Partition, names: Sequence[str], immutable: Iterable[int | str] | int | str
    ) -> Tensor:
        ids = features.known.tolist()
        movable = torch.ones(f.examples, features.count, dtype=torch.bool, device=f.device)
        movable &= features.gather(torch.ones(f.examples, sum(f.packing.sizes), device=f.device), f.everyone) > 0
        for one in [immutable] if isinstance(immutable, str | int) else immutable:
            known: list[Any] = list(names) if isinstance(one, str) else ids
            if one not in known:
                raise ValueError(f"immutable names {one!r}, which is no feature; known are {_some(known)}")
            movable[:, known.index(one)] = False
        return movable

    def _domain(self, f: Probe, features: Partition) -> Domain:
        if self.reference is not None:
            reference = blur() if isinstance(self.reference, str) else self.reference
            return Replace(f, features, reference if callable(reference) else through(reference))
        assert self.bounds is not None
        low, high = (b.expand(f.point.shape) for b in box(f, *self.bounds, finite=True))
        return Move(f, features, low, high, self.steps)


def _names(features: Partition, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return tuple(f"feature {i}" for i in features.known.tolist())
    if len(names) != features.count:
        raise ValueError(f"names must name each of the {features.count} features, got {len(names)}")
    return tuple(names)


def _proofs(domain: Domain, margin: Tensor, sets: Tensor, tried: Tensor) -> list[str]:
    """What was proved of each result, see :class:`CounterfactualResult`."""
    exact = isinstance(domain, Replace)
    proofs = []
    for good, count, size in zip((margin > 0).tolist(), sets.sum(1).tolist(), tried.tolist(), strict=True):
        smallest = count <= 1 or (exact and size >= count - 1)
        proofs.append("nothing" if not good else "smallest" if smallest else "irreducible")
    return proofs


def _some(known: Sequence[Any]) -> str:
    return ", ".join(map(repr, known[:12])) + (", ..." if len(known) > 12 else "")

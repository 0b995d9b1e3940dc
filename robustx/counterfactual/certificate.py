"""Certificates: what is proved of counterfactuals, whoever found them."""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, whole
from ..engine.guard import untouched
from ..perturb.references import Filling, named
from .naming import movable_of
from .pairs import Pairs, always

Level = Literal["single", "subset", "cardinality"]
LEVELS = ("invalid", "valid", *get_args(Level))


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """What was proved of each counterfactual by trying all sets in question; true of the model as it computes.

    A set **works** if the example reaches the goal, by more than ``by``, with the features of the set as they are in
    the counterfactual (or in the reference) and all others as they are in the input.

    ======================  ==========================================================================================
    level                   what was proved of the k changes of an example
    ======================  ==========================================================================================
    ``"invalid"``           nothing: the counterfactual is missing or does not reach the goal
    ``"valid"``             it reaches the goal; a smaller set works too, or none of the below could be tried
    ``"single"``            no set works that lacks a single one of the changes: none alone can be taken back
    ``"subset"``            no proper subset of the changes works
    ``"cardinality"``       no set of less than k features works, among all that may change; one change is always so
    ======================  ==========================================================================================

    Nothing is said of other values than the two that each feature has: between them, or elsewhere, fewer may do.

    Attributes:
        asked: the level that was asked for.
        level: the strongest of these that was proved of each example.
        domain: what a feature may be, in words.
        refuted: whether what was asked for is false [B]; neither proved nor refuted: ``budget`` did not allow to tell.
        counterexample: features of a smaller set that works, where one was met [B, F]; none of them: the input works.
        changes: k [B].
        among: how many features may change [B].
        tried: all sets of up to so many features among these were tried [B].
        by: what is asked of a margin [B].
        evaluations: rows that went through the model for this [B].
        names: what the features are called, F of them.
    """

    asked: Level
    level: tuple[str, ...]
    domain: str
    refuted: Tensor
    counterexample: Tensor
    changes: Tensor
    among: Tensor
    tried: Tensor
    by: Tensor
    evaluations: Tensor
    names: tuple[str, ...]

    @property
    def holds(self) -> Tensor:
        """Whether what was asked for is proved [B]."""
        good = [LEVELS.index(level) >= LEVELS.index(self.asked) for level in self.level]
        return torch.tensor(good, dtype=torch.bool, device=self.refuted.device)

    def says(self, example: int) -> str:
        """What was proved of one example, in words."""
        level, k, tried = self.level[example], int(self.changes[example]), int(self.tried[example])
        names = [self.names[i] for i in self.counterexample[example].nonzero().squeeze(1).tolist()]
        told = {
            "invalid": "proves nothing: the counterfactual does not reach the goal",
            "valid": f"reaches the goal with {k} changes",
            "single": f"none of the {k} changes alone can be taken back",
            "subset": f"no proper subset of the {k} changes works",
            "cardinality": f"no set of less than {k} of {int(self.among[example])} features works",
        }[level]
        if k == 0 and level != "invalid":
            told = "nothing has to change"
        if self.refuted[example] and level != "invalid":
            return f"{told}; but a smaller set works: {', '.join(names) or 'the input itself'}"
        if not self.holds[example] and level != "invalid":
            return f"{told}; all sets of up to {tried} features were tried, for more the budget did not allow"
        return f"{told} ({self.domain})"

    def __len__(self) -> int:
        return len(self.level)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.level.count(v)} {v}" for v in dict.fromkeys(self.level))
        return f"Certificate({self.asked} asked; {counts or 'no examples'}; {int(self.refuted.sum())} refuted)"


def certify(
    forward_func: Callable[..., Any],
    x: Any,
    x_cf: Any,
    level: Level = "single",
    *,
    reference: Any = None,
    immutable: Iterable[int | str] | int | str = (),
    budget: int = 1 << 16,
    **told: Any,
) -> Certificate:
    """What can be proved of counterfactuals of any origin: that nothing of them can be taken back, or that none is
    smaller.

    ``"single"`` asks the model once for each of the k changes, ``"subset"`` 2^k - 2 times, and ``"cardinality"`` as
    often as there are smaller sets of all features that may change.

    Args:
        forward_func, x, x_cf: the model, the inputs and their counterfactuals.
        level: what is to be proved, see :class:`Certificate`.
        reference: what features give way to, as for the search: ``x_cf`` must be ``x`` with some features given way to
            it. Needed for ``"cardinality"``; by default a feature gives way to what it is in ``x_cf``.
        immutable: for ``"cardinality"``, features that may not change.
        budget: most sets of an example that are tried.
        told: the goal, the features and the rest, as for :class:`Pairs`.

    Raises:
        ArgumentError: there is no such level, no reference where one is needed, or it is not what changes lead to.

    >>> model = lambda x: torch.stack([torch.full((len(x),), 1.5), x[:, 0] * x[:, 1] + x[:, 1]], 1)
    >>> found = certify(model, torch.zeros(1, 3), torch.ones(1, 3), "subset")
    >>> found.level, found.says(0)
    (('valid',), 'reaches the goal with 3 changes; but a smaller set works: feature 0, feature 1')
    """
    if level not in get_args(Level):
        raise ArgumentError(f"level must be one of {', '.join(map(repr, get_args(Level)))}, got {level!r}")
    whole("budget", budget, 1)
    pairs = Pairs(forward_func, x, x_cf, **told)
    with untouched(forward_func):
        return _certify(pairs, level, reference, immutable, budget)


def _certify(pairs: Pairs, level: Level, reference: Any, immutable: Any, budget: int) -> Certificate:
    changed, k, start = pairs.changed, pairs.n_changed, pairs.forwards
    among, domain = changed, "features either as in the input or as in the counterfactual"
    if reference is not None:
        pairs, domain = _towards(pairs, reference), "features either as in the input or as in the reference"
    if level == "cardinality":
        if reference is None:
            raise ArgumentError(
                "level 'cardinality' is about all features that may change: give the reference that they give way to; "
                "where they move freely, only one change, or an exact solver, proves that there are no fewer"
            )
        among = movable_of(pairs.features, pairs.names, immutable, changed)
        if (changed & ~among).any():
            raise ArgumentError("immutable names a feature that differs between x and x_cf")
    needless = pairs.valid & (k > 0) & (pairs.before > pairs.by)  # the input itself works
    rank = torch.where(pairs.valid, torch.where((k <= 1) & ~needless, LEVELS.index("cardinality"), 1), 0)
    refuted, counter, tried = needless.clone(), torch.zeros_like(changed), torch.zeros_like(k)

    without = pairs.without((rank == 1) & ~needless)
    bad, good = without.any(1), (rank == 1) & ~needless & ~without.any(1)
    first = without & (without.cumsum(1) == 1)
    counter |= changed & ~first & bad[:, None]
    refuted |= bad
    rank[good] = LEVELS.index("single")

    for name, features, below in (("subset", changed, k - 1), ("cardinality", among, k)):
        if LEVELS.index(level) < LEVELS.index(name):
            break
        open_ = (rank > 1) & (rank < LEVELS.index(name)) & ~refuted
        below = torch.where(open_, below, 0)
        found, sizes = pairs.smaller(features, changed, below, budget)
        worked = (found != changed).any(1)
        counter, refuted = torch.where(worked[:, None], found, counter), refuted | worked
        tried = torch.where(open_, sizes, tried)
        rank[open_ & ~worked & (sizes >= below - 1)] = LEVELS.index(name)
    return Certificate(
        asked=level,
        level=tuple(LEVELS[r] for r in rank.tolist()),
        domain=domain,
        refuted=refuted,
        counterexample=counter,
        changes=k,
        among=among.sum(1),
        tried=tried,
        by=pairs.by,
        evaluations=pairs.forwards - start,
        names=pairs.names,
    )


def _towards(pairs: Pairs, reference: Any) -> Pairs:
    """The same pairs, seen as features that give way to the reference.

    Raises:
        ArgumentError: the changes do not lead there.
    """
    there, given = copy(pairs), named(reference)
    there.give = given if isinstance(given, Filling) else always(given(pairs.f))
    for got, told in zip(there.mixed(pairs.changed), pairs.after, strict=True):
        if not torch.allclose(got, told):
            raise ArgumentError("x_cf must be x with some features as in the reference, but differs from that")
    return there

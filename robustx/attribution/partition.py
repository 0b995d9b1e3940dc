"""Owen values within a budget: unions of features are taken apart where most is at stake."""

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from ..engine.packing import finest
from ..perturb.hierarchy import Hierarchy, leaves
from .coalitions import Coalitions

STAKE = 0.5  # of the most that is at stake: what is as much is taken apart in the same pass


@dataclass(eq=False)
class Union:
    """A node of the hierarchy that joins a set of others: the scores without and with it, and how much that counts."""

    node: Hierarchy
    others: frozenset[int]
    without: Tensor
    joined: Tensor
    weight: float

    @property
    def share(self) -> Tensor:
        return self.weight * (self.joined - self.without)

    @property
    def stake(self) -> float:
        return float(self.share.abs().max())


def partition_values(
    players: Coalitions,
    hierarchy: Hierarchy,
    budget: int,
    what: str = "",
    show: bool = False,
    rows: Tensor | None = None,
) -> Tensor:
    """Owen values [R, F, ...] from at most ``budget`` sets of an example; they add up to the rise, however few.

    As the partition explainer of shap (Lundberg, 2020) does with pairs: what a union brings to others is split between
    its parts by asking for all sets of these, the largest share first, and what cannot be split any more is shared out
    equally. Exact if the budget is enough for all; see :func:`robustx.attribution.shapley.owen_values`.
    """
    n = players.features.count
    rows = torch.arange(players.examples, device=players.f.device) if rows is None else rows

    def scores(wanted: list[tuple[int, frozenset[int]]]) -> Tensor:
        """Of sets of those who are there, each for the example at one place of ``rows``."""
        gone = torch.ones(len(wanted), n, device=rows.device)
        for absent, (_, there) in zip(gone, wanted, strict=True):
            absent[list(there)] = 0
        whose = rows[torch.tensor([i for i, _ in wanted], dtype=torch.long, device=rows.device)]
        answers = players.ask(None, lambda k, _: gone[k], what, show, whose)
        return torch.cat([finest(players.all_there[:0]), *(finest(a.values) for a in answers)])

    nobody = scores([(i, frozenset()) for i in range(len(rows))])
    everybody = finest(players.all_there[rows])
    found = torch.zeros_like(everybody)[:, None].repeat_interleave(n, 1)
    left, queues = [budget - 2] * len(rows), [list[Union]() for _ in range(len(rows))]

    def share(i: int, node: Hierarchy, value: Tensor) -> None:
        for part in () if isinstance(node, int) else node:
            share(i, part, value / len(node))  # type: ignore[arg-type]  # a number has no parts
        if isinstance(node, int):
            found[i, node] += value

    def put(i: int, union: Union) -> None:
        if isinstance(union.node, int):
            share(i, union.node, union.share)
        else:
            queues[i].append(union)

    for i in range(len(rows)):
        put(i, Union(hierarchy, frozenset(), nobody[i], everybody[i], 1.0))
    while any(queues):
        split: list[tuple[int, Union, list[frozenset[int]]]] = []
        for i, queue in enumerate(queues):
            queue.sort(key=lambda union: -union.stake)
            least = STAKE * queue[0].stake if queue else 0.0
            while queue and queue[0].stake >= least:
                union = queue.pop(0)
                sets = _sets(union)
                if len(sets) - 2 > left[i]:
                    share(i, union.node, union.share)
                else:
                    left[i] -= max(0, len(sets) - 2)
                    split.append((i, union, sets))
        asked = iter(scores([(i, there) for i, _, sets in split for there in sets[1:-1]]))
        for i, union, sets in split:
            values = [union.without, *(next(asked) for _ in sets[1:-1]), union.joined]
            for child in _children(union, sets, values):
                put(i, child)
    return found


def _sets(union: Union) -> list[frozenset[int]]:
    """Who is there, for all sets of the parts: the k-th part is in those whose number has its bit."""
    found = [union.others]
    for part in () if isinstance(union.node, int) else union.node:
        found += [there.union(leaves(part)) for there in found]
    return found


def _children(union: Union, sets: list[frozenset[int]], values: list[Tensor]) -> list[Union]:
    """Each part of a union beside each set of the others."""
    assert not isinstance(union.node, int)
    k, found = len(union.node), []
    for j, part in enumerate(union.node):
        for number in range(len(sets)):
            if not number >> j & 1:
                weight = union.weight / (k * comb(k - 1, number.bit_count()))
                found.append(Union(part, sets[number], values[number], values[number | 1 << j], weight))
    return found

"""Several counterfactuals of one example, each with another set of features."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

import torch
from torch import Tensor

from .best import Strategy, Task

WAYS = 64  # of keeping clear of what is banned that are tried


def apart(strategy: Strategy) -> Strategy:
    """The same strategy, keeping clear of banned sets of features that it knows nothing of.

    No superset of a banned set lacks any of its features, so whatever is allowed lacks one of each: the strategy
    is run once for every way to leave one out of each, and the best of all runs stays. A bound that was proved in
    every run is proved.

    >>> apart(lambda task: task.best.offer(task.todo, task.at(task.domain.home, task.todo))).__name__
    'kept'
    """

    def kept(task: Task) -> None:
        if task.banned is None:
            strategy(task)
            return
        best, everyone = task.best, torch.arange(len(task.movable), device=task.movable.device)
        ways = list(islice(_ways(task.movable, task.banned), WAYS + 1))
        fewest, least = [], []
        for movable in ways[:WAYS]:
            run = replace(task, movable=movable, banned=None)
            found = run.best
            try:
                strategy(run)
            finally:
                best.offer(everyone, found)
            fewest.append(found.fewest)
            least.append(found.least)
        if len(ways) <= WAYS:
            best.fewest, best.least = torch.stack(fewest).amin(0), torch.stack(least).amin(0)

    return kept


def _ways(movable: Tensor, banned: Tensor) -> Iterator[Tensor]:
    """What may move [B, F] without one feature of each banned set, for all the ways to choose them.

    An example of which there are fewer has its first one again.
    """
    each = []
    for row, sets in enumerate(banned):
        members = [s.nonzero().squeeze(1).tolist() for s in sets if s.any()]
        picks = {frozenset(p) for p in islice(product(*members), 16 * WAYS)}
        least = [p for p in picks if not any(q < p for q in picks)]
        each.append(
            [
                movable[row].index_fill(0, movable.new_tensor(sorted(p), dtype=torch.long), False)
                for p in sorted(least, key=sorted)
            ]
        )
    for i in range(max(map(len, each), default=0)):
        yield torch.stack([ways[i if i < len(ways) else 0] for ways in each])

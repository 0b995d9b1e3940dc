"""Features by the names and numbers that people know them by."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError
from ..perturb.features import Partition


def names_of(features: Partition, names: Sequence[str] | None) -> tuple[str, ...]:
    """What to call each feature, in the order of their ids; without names, by these.

    Raises:
        ArgumentError: there is not one name for each, or two are the same.

    >>> names_of(Partition(torch.tensor([7, 7, 3])), None)
    ('feature 3', 'feature 7')
    """
    if names is None:
        return tuple(f"feature {i}" for i in features.known.tolist())
    if len(names) != features.count:
        raise ArgumentError(f"names must name each of the {features.count} features, got {len(names)}")
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise ArgumentError(f"names must differ from one another, got {twice!r} twice")
    return tuple(names)


def movable_of(
    features: Partition, names: Sequence[str], immutable: Iterable[int | str] | int | str, like: Tensor
) -> Tensor:
    """Which features may change [B, F]: those that an example has, but none that is immutable, by id or name.

    ``like`` has one row for each example.

    Raises:
        ArgumentError: there is no such feature.

    >>> features = Partition(torch.tensor([7, 7, 3]))
    >>> movable_of(features, ("age", "income"), ["age"], torch.zeros(1, 3))
    tensor([[False,  True]])
    """
    b, ids = len(like), features.known.tolist()
    ones = torch.ones(b, features.size, device=like.device)
    movable = features.gather(ones, torch.arange(b, device=like.device)) > 0
    for one in [immutable] if isinstance(immutable, str | int) else immutable:
        known: list[Any] = list(names) if isinstance(one, str) else ids
        if one not in known:
            told = ", ".join(map(repr, known[:12])) + (", ..." if len(known) > 12 else "")
            raise ArgumentError(f"immutable names {one!r}, which is no feature; known are {told}")
        movable[:, known.index(one)] = False
    return movable

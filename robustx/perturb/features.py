"""Features: groups of elements that are moved, and counted, together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..engine.packing import Packing, Tensors, flat
from ..engine.probe import by_name


class Features(ABC):
    """Two directions: gates [N, F] spread to elements [N, D], values [N, D] gathered to features [N, F].

    ``rows`` [N] names each row's example, as examples may be cut into features differently.
    Law: gathering spread ones counts the elements of each feature.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """F."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether all examples are cut in the same way."""

    @abstractmethod
    def spread(self, gates: Tensor, rows: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def gather(self, values: Tensor, rows: Tensor | None = None) -> Tensor: ...

    def shown(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """Values of features [N, F] as their elements show them [N, D]: the mean over those that an element is in."""
        return self.spread(values, rows)


@dataclass(frozen=True, eq=False)
class Partition(Features):
    """Every element belongs to one feature.

    Args:
        ids: [D] or [B, D] integers, any: equal ones belong together.
        names: what people call the features, in the order of ascending id.
    """

    ids: Tensor
    names: tuple[str, ...] | None = None

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        found, labels = self.ids.unique(return_inverse=True)
        return found, labels.reshape(self.ids.shape)

    @property
    def known(self) -> Tensor:
        """The ids in use, ascending [F]."""
        return self._dense[0]

    @property
    def count(self) -> int:
        return len(self.known)

    @property
    def shared(self) -> bool:
        return self.ids.ndim == 1 or len(self.ids) == 1

    def labels(self, n: int, rows: Tensor | None = None) -> Tensor:
        """Each element's feature, 0 to F - 1 [N, D]."""
        labels = self._dense[1]
        if self.shared:
            return labels.reshape(1, -1).expand(n, -1)
        return labels if rows is None else labels[rows]

    def spread(self, gates: Tensor, rows: Tensor | None = None) -> Tensor:
        return gates.gather(1, self.labels(len(gates), rows))

    def gather(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        return values.new_zeros(len(values), self.count).scatter_add_(1, self.labels(len(values), rows), values)


def elements(d: int, device: torch.device | None = None) -> Partition:
    """Each of ``d`` elements is a feature."""
    return Partition(torch.arange(d, device=device))


def from_masks(masks: Any, inputs: Tensors, names: tuple[str, ...] | None = None) -> Partition:
    """Features from Captum's ``feature_mask``: integer tensors that broadcast to the inputs.

    Ids are shared across the tensors (the same id in two of them is one feature) and need not be consecutive.

    Raises:
        ValueError: a mask does not fit its input, or is not made of integers.
    """
    b, device = len(inputs[0]), inputs[0].device
    if masks is None:
        return elements(sum(Packing.of(inputs).sizes), device)
    masks = by_name(masks, names, "feature_mask")
    masks = tuple(masks) if isinstance(masks, tuple | list) else (torch.as_tensor(masks),)
    if len(masks) != len(inputs):
        raise ValueError(f"feature_mask must have one tensor for each of the {len(inputs)} inputs, got {len(masks)}")
    shared = all(m.ndim == 0 or m.shape[0] == 1 or m.ndim < t.ndim for m, t in zip(masks, inputs, strict=True))
    parts = []
    for m, t in zip(masks, inputs, strict=True):
        if m.is_floating_point() or m.is_complex():
            raise ValueError(f"feature_mask must hold integers, got {m.dtype}; use mask.long()")
        shape = (1 if shared else b, *t.shape[1:])
        try:
            parts.append(flat(m.to(device).long().expand(shape)))
        except RuntimeError:
            raise ValueError(f"feature_mask of shape {tuple(m.shape)} does not broadcast to {tuple(t.shape)}") from None
    return Partition(torch.cat(parts, 1))


def columns(groups: Sequence[Sequence[int]], d: int, names: Sequence[str] | None = None) -> Partition:
    """Features of a table: each group of columns (a one-hot block, say) is one; a column in no group is its own.

    Raises:
        ValueError: a column stands in two groups or does not exist, or there is not one name for each feature.
    """
    ids = torch.full((d,), -1)
    for i, group in enumerate(groups):
        for c in group:
            if not 0 <= c < d:
                raise ValueError(f"groups name column {c}, but there are {d} columns (0 to {d - 1})")
            if ids[c] >= 0:
                raise ValueError(f"groups name column {c} twice; a column belongs to one group")
            ids[c] = i
    alone = ids < 0
    ids[alone] = torch.arange(len(groups), len(groups) + int(alone.sum()))
    found = Partition(ids, None if names is None else tuple(names))
    if names is not None and len(names) != found.count:
        raise ValueError(f"names must have one entry for each of the {found.count} features, got {len(names)}")
    return found

"""Packing: the tensors of one example, seen as one row of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Packing:
    """The shapes and dtypes of one example's tensors, in their order in a row.

    Rows are kept in the widest dtype among the tensors, and never in less than float32: sums over
    many steps in float16 would lose what they add up. ``unpack`` gives each tensor its own dtype back.
    """

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Packing":
        return cls(tuple(t.shape[1:] for t in tensors), tuple(t.dtype for t in tensors))

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor in a row; their sum is D."""
        return [prod(s) for s in self.shapes]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a packed row."""
        return reduce(torch.promote_types, self.dtypes, torch.float32)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """[N, *shape] each -> [N, D].

        Raises:
            TypeError: a tensor has no gradient to speak of (integers, booleans, complex numbers).
        """
        for i, t in enumerate(tensors):
            if not t.is_floating_point():
                raise TypeError(
                    f"tensor {i} has dtype {t.dtype}, but only floating-point tensors can be moved or differentiated; "
                    "for token ids work at the embedding layer, for other integers pass them as additional_forward_args"
                )
        parts = [flat(t).to(self.dtype) for t in tensors]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, z: Tensor) -> Tensors:
        """[N, ..., D] -> [N, ..., *shape] each, in the dtype of ``z``."""
        parts = z.split_with_sizes(self.sizes, -1) if len(self.shapes) > 1 else (z,)
        return tuple(p.reshape(*z.shape[:-1], *s) for p, s in zip(parts, self.shapes, strict=True))

    def unpack(self, z: Tensor) -> Tensors:
        """[N, ..., D] -> [N, ..., *shape] each, each in its own dtype."""
        return tuple(p.to(d) for p, d in zip(self.split(z), self.dtypes, strict=True))


def flat(t: Tensor) -> Tensor:
    """[N, ...] -> [N, D], also with no rows or no further axes."""
    return t.reshape(len(t), prod(t.shape[1:]))


def like(t: Tensor, given: Tensor) -> Tensor:
    """``t`` with its channels last in memory, if pictures or volumes that were ``given`` have theirs there."""
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(given.ndim)
    if form is None or t.ndim != given.ndim or given.is_contiguous() or not given.is_contiguous(memory_format=form):
        return t
    return t.contiguous(memory_format=form)


def times(a: Tensor, g: Tensor) -> Tensor:
    """[N, D] times [N, ..., D] -> [N, ..., D]: what stands at a site, times gradients of one score or of several."""
    return a.reshape(len(a), *(1,) * (g.ndim - 2), a.shape[1]) * g


def row_sums(tensors: Sequence[Tensor], leading: int = 1) -> Tensor:
    """The sum of everything behind the leading axes, over several tensors [N, ...] -> [N]."""
    return torch.stack([t.reshape(*t.shape[:leading], prod(t.shape[leading:])).sum(-1) for t in tensors]).sum(0)


def finest(t: Tensor) -> Tensor:
    """``t`` in the finest floating-point dtype of its device (MPS has no float64)."""
    return t.float() if t.device.type == "mps" else t.double()

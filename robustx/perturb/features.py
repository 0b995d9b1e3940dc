"""Features: groups of elements that are moved, and counted, together."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any, Self

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, whole
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
    def size(self) -> int:
        """D."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether all examples are cut in the same way."""

    def to(self, device: torch.device) -> Self:
        """The same, its tensors on another device."""
        return self

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
    def size(self) -> int:
        return self.ids.shape[-1]

    @property
    def shared(self) -> bool:
        return self.ids.ndim == 1 or len(self.ids) == 1

    def to(self, device: torch.device) -> Self:
        return replace(self, ids=self.ids.to(device))

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


@dataclass(frozen=True, eq=False)
class Windows(Features):
    """Boxes that slide over each of several tensors; they may overlap, and the last ones end at the border.

    An element in several of them has given way as far as these have together, but no further than wholly. A box is the
    product of its sides, so what is held is a small matrix for each axis, never one of windows times elements.

    Args:
        sides: for each axis of each tensor, a matrix [windows, elements] that is 1 where an element lies in a window.
    """

    sides: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def over(cls, inputs: Tensors, lengths: Any, strides: Any = 1, names: tuple[str, ...] | None = None) -> Self:
        """Windows over the tensors [B, ...], whose names are given if they come in a dict.

        Args:
            lengths: of the windows: for each tensor one number for each axis behind the batch, or one for all of them,
                which then is no longer than the axis. For a single tensor, or all alike, no further tuple.
            strides: how far from one window to the next, in the same forms.

        Raises:
            ValueError: they do not fit the tensors, or leave elements out.
        """
        every_length, every_stride = (
            _for_each(what, v, inputs, names) for what, v in (("sliding_window_shapes", lengths), ("strides", strides))
        )
        of_each = zip(inputs, every_length, every_stride, strict=True)
        return cls(tuple(tuple(_sides(t, length, stride)) for t, length, stride in of_each))

    @property
    def count(self) -> int:
        return sum(self._counts)

    def to(self, device: torch.device) -> Self:
        return replace(self, sides=tuple(tuple(side.to(device) for side in of) for of in self.sides))

    @property
    def size(self) -> int:
        return sum(prod(side.shape[1] for side in of) for of in self.sides)

    @property
    def shared(self) -> bool:
        return True

    @property
    def _counts(self) -> list[int]:
        return [prod(len(side) for side in of) for of in self.sides]

    def spread(self, gates: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._sums(gates).clamp(max=1)

    def gather(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        sizes = [prod(side.shape[1] for side in of) for of in self.sides]
        back = [[side.T for side in of] for of in self.sides]
        return _joined([_along(v, of) for v, of in zip(values.split_with_sizes(sizes, 1), back, strict=True)])

    def shown(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        mean = self._sums(wide) / self._sums(wide.new_ones(1, self.count))
        return mean.to(values.dtype) if values.is_floating_point() else mean

    def _sums(self, values: Tensor) -> Tensor:
        """For each element the sum over its windows [N, F] -> [N, D]."""
        return _joined(
            [_along(v, of) for v, of in zip(values.split_with_sizes(self._counts, 1), self.sides, strict=True)]
        )


class Grid(Windows):
    """Boxes with soft sides: gates on a coarse grid are spread by linear interpolation, with all channels alike."""

    @classmethod
    def of(cls, inputs: Tensors, cells: int) -> Self:
        """``cells`` along each axis of tensors [B, C, ...], or as many as there are; every column of a table."""
        whole("cells", cells, 1)
        return cls(tuple(tuple(_soft_sides(t, cells)) for t in inputs))

    def spread(self, gates: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._sums(gates)  # no more than 1 but by rounding, and there a limit would hide its gradient


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _along(values: Tensor, sides: Sequence[Tensor]) -> Tensor:
    """Times a matrix along each axis: [N, a * b * ...] -> [N, A * B * ...] for matrices [a, A], [b, B], ..."""
    values = values.reshape(len(values), *(len(side) for side in sides))
    for side in sides:
        values = torch.tensordot(values, side.to(values.dtype), ([1], [0]))  # the first axis goes, a last one comes
    return flat(values)


def _sides(t: Tensor, length: int | tuple[int, ...], stride: int | tuple[int, ...]) -> Iterator[Tensor]:
    """The matrices of one tensor's axes."""
    axes = t.shape[1:]
    lengths = tuple(min(length, n) for n in axes) if isinstance(length, int) else length
    strides = (stride,) * len(axes) if isinstance(stride, int) else stride
    if any(a > n for a, n in zip(lengths, axes, strict=True)):
        raise ArgumentError(f"sliding_window_shapes {lengths} are longer than the input's axes {tuple(axes)}")
    if any(s > a < n for a, s, n in zip(lengths, strides, axes, strict=True)):
        raise ArgumentError(f"strides {strides} are longer than sliding_window_shapes {lengths} and would leave gaps")
    for n, a, s in zip(axes, lengths, strides, strict=True):
        starts = torch.arange(ceil((n - a) / s) + 1 if n else 0, device=t.device)[:, None] * s
        places = torch.arange(n, device=t.device)
        yield ((places >= starts) & (places < starts + a)).float()


def _soft_sides(t: Tensor, cells: int) -> Iterator[Tensor]:
    for i, n in enumerate(t.shape[1:]):
        if i == 0 and t.ndim > 2:
            yield torch.ones(1, n, device=t.device)
            continue
        count = n if t.ndim == 2 else min(cells, n)
        yield hats((torch.arange(n, device=t.device, dtype=torch.float64) + 0.5) * count / max(n, 1) - 0.5, count)


def hats(places: Tensor, count: int) -> Tensor:
    """Weights of linear interpolation between ``count`` points 0, 1, ..., at ``places`` [..., n]: [..., count, n]."""
    points = torch.arange(count, device=places.device)[:, None]
    return (1 - (places.clamp(0, count - 1)[..., None, :] - points).abs()).clamp(min=0)


def blocks(inputs: Tensors, cells: int | None = None) -> Partition:
    """The places of tensors [B, C, ...], with all their channels; in a table [B, D] each element is a feature.

    Args:
        inputs: the tensors.
        cells: join places to this many blocks along each axis (as many as there are places, if these are fewer).

    >>> blocks((torch.zeros(1, 3, 4, 4),), 2).ids.reshape(3, 4, 4)[0]
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3],
            [2, 2, 3, 3]])
    """
    parts, first = [], 0
    for t in inputs:
        axes = t.shape[1:] if t.ndim <= 2 else t.shape[2:]
        ids = torch.zeros(1, dtype=torch.long, device=t.device)
        for n in axes:
            count = n if cells is None or t.ndim <= 2 else min(whole("cells", cells, 1), n)
            at = torch.arange(n, device=t.device) * count // max(n, 1)
            ids = (ids[:, None] * count + at).flatten()
        parts.append(first + ids.repeat(prod(t.shape[1 : t.ndim - len(axes)])))
        first += int(ids.max()) + 1 if len(ids) else 0
    return Partition(torch.cat(parts))


def _for_each(what: str, value: Any, inputs: Tensors, names: tuple[str, ...] | None) -> list[int | tuple[int, ...]]:
    """Captum's forms of windows and strides: for each tensor a number, or one for each of its axes."""
    value = by_name(value, names, what)
    if isinstance(value, int) or (len(inputs) == 1 and not (isinstance(value, tuple | list) and len(value) == 1)):
        value = (value,) * len(inputs)
    if not isinstance(value, tuple | list) or len(value) != len(inputs):
        raise ArgumentError(f"{what} must have one entry for each of the {len(inputs)} inputs, got {value!r}")
    found: list[int | tuple[int, ...]] = []
    for v, t in zip(value, inputs, strict=True):
        many = isinstance(v, tuple | list | torch.Size)
        if many and len(v) != t.ndim - 1:
            raise ArgumentError(f"{what} must be a number, or one for each axis of {tuple(t.shape[1:])}, got {v!r}")
        found.append(tuple(whole(what, n, 1) for n in v) if many else whole(what, v, 1))
    return found


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


def features_of(given: Any, inputs: Tensors, names: tuple[str, ...] | None = None) -> Features:
    """Features as users name them: ``Features`` of their own, or masks as in :func:`from_masks`.

    Raises:
        ValueError: they do not fit the inputs.
    """
    if not isinstance(given, Features):
        return from_masks(given, inputs, names)
    d = sum(Packing.of(inputs).sizes)
    if given.size != d:
        raise ArgumentError(f"feature_mask cuts {given.size} elements of an example, but the inputs have {d}")
    return given.to(inputs[0].device)


Column = int | str


def columns(
    groups: Sequence[Sequence[Column]] | Mapping[str, Sequence[Column]],
    d: int | Sequence[str],
    names: Sequence[str] | None = None,
) -> Partition:
    """Features of a table: each group of columns (a one-hot block, say) is one; a column in no group is its own.

    Args:
        groups: lists of columns, by number or by name; a dict names the groups.
        d: how many columns there are, or what they are called.
        names: of the features, the groups first. Default: as the groups and columns are called, if they are.

    Raises:
        ValueError: a column stands in two groups or does not exist, or there is not one name for each feature.

    >>> columns({"city": ["Rome", "Oslo"]}, ["age", "Rome", "Oslo"]).names
    ('city', 'age')
    """
    called = list(map(str, range(d))) if isinstance(d, int) else list(d)
    d = len(called)
    ids = torch.full((d,), -1)
    for i, group in enumerate(groups.values() if isinstance(groups, Mapping) else groups):
        for column in group:
            if isinstance(column, str) and column not in called:
                raise ValueError(f"groups name column {column!r}, but the columns are {', '.join(called)}")
            c = called.index(column) if isinstance(column, str) else column
            if not 0 <= c < d:
                raise ValueError(f"groups name column {c}, but there are {d} columns (0 to {d - 1})")
            if ids[c] >= 0:
                raise ValueError(f"groups name column {column} twice; a column belongs to one group")
            ids[c] = i
    alone = ids < 0
    ids[alone] = torch.arange(len(groups), len(groups) + int(alone.sum()))
    if names is None and isinstance(groups, Mapping):
        names = (*groups, *(name for name, own in zip(called, alone.tolist(), strict=True) if own))
    found = Partition(ids, None if names is None else tuple(names))
    if names is not None and len(names) != found.count:
        raise ValueError(f"names must have one entry for each of the {found.count} features, got {len(names)}")
    return found


def words(spans: Any, text: str | Sequence[str] | None = None) -> Tensor:
    """A feature mask [B, T] that joins the tokens of each word.

    Args:
        spans: where each token stands in its text, [B, T, 2] (or [T, 2] for one): tokenizers' offsets.
            Tokens that stand nowhere (special ones, padding) are one feature together.
        text: the texts; needed only where spans take in the space before a word.

    Raises:
        ValueError: the spans are none, or there is not one text for each row.

    >>> words([(0, 0), (0, 4), (4, 7), (8, 11), (0, 0)])  # [CLS] play ##ing now [SEP]
    tensor([[0, 1, 1, 2, 0]])
    """
    spans = torch.as_tensor(spans)
    spans = spans[None] if spans.ndim == 2 else spans
    texts = [text] * len(spans) if text is None or isinstance(text, str) else list(text)
    if spans.ndim != 3 or spans.shape[2] != 2 or len(texts) != len(spans):
        raise ValueError(
            f"spans must be [B, T, 2] or [T, 2], with one text for each row, got shape {tuple(spans.shape)} and "
            f"{len(texts)} texts"
        )
    begin, end = spans.unbind(2)
    somewhere = begin < end
    follows = torch.zeros_like(somewhere)
    follows[:, 1:] = somewhere[:, :-1] & (begin[:, 1:] == end[:, :-1])
    for row, told in enumerate(texts):
        if told is not None:
            follows[row] &= torch.tensor([not told[b : b + 1].isspace() for b in begin[row].tolist()])
    return torch.where(somewhere, (somewhere & ~follows).cumsum(1), 0)

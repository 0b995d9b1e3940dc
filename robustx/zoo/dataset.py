"""What a data set is to robustx: inputs, labels, and what people need to read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

Bound = float | Tensor
Kind = Literal["image", "table", "other"]

MAX_BYTES = 4 * 2**30  # a data set is held in memory whole


@dataclass(frozen=True)
class Column:
    """One column of a table: its name, its unit, and the values in that unit at model inputs 0 and 1.

    The unit of a number without dimension is "".
    """

    name: str
    unit: str = ""
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, eq=False)
class Data:
    """Samples with their labels, as a model takes them.

    x is [N, ...] and y [N] (int64). `index` [N] is each sample's place in the whole data set, which stays the
    same when samples are selected. `classes` names the labels 0, 1, ...; `bounds` are the least and the
    greatest value an input may take, as numbers or as tensors that broadcast to one sample; `columns` tells
    for a table how inputs relate to the units that people use. `split` is "" where the source has no splits.

    ``len(data)`` is N. ``data[:20]``, ``data[[3, 5]]`` and ``data[data.y == 1]`` select samples; ``data[3]``
    is the one sample 3, still with its first axis.
    """

    name: str
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    index: Tensor = field(repr=False)
    classes: tuple[str, ...]
    bounds: tuple[Bound, Bound] = (0.0, 1.0)
    kind: Kind = "other"
    columns: tuple[Column, ...] = ()
    split: str = ""

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        split = f", split={self.split!r}" if self.split else ""
        sample = "x".join(map(str, self.x.shape[1:]))
        return f"Data({self.name!r}{split}, {len(self)} of {sample}, {len(self.classes)} classes)"

    def __getitem__(self, chosen: int | slice | list[int] | Tensor) -> "Data":
        rows = torch.arange(len(self))[chosen].view(-1)  # one sample keeps the first axis
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Index, x and y of at most `size` samples at a time, in order."""
        if size < 1:
            raise ValueError(f"size must be at least 1 sample per batch, got {size}")
        return zip(self.index.split(size), self.x.split(size), self.y.split(size), strict=True)

    def to_units(self, x: Tensor) -> Tensor:
        """Model inputs [..., columns] as values in the columns' units, in float64."""
        low, high = self._range(x)
        return low + x.double() * (high - low)

    def from_units(self, values: Tensor) -> Tensor:
        """Values [..., columns] in the columns' units as model inputs, in the dtype of `x`."""
        low, high = self._range(values)
        return ((values.double() - low) / (high - low)).to(self.x.dtype)

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.columns:
            raise ValueError(f"only a table has columns with units, and {self.name!r} is of kind {self.kind!r}")
        if x.shape[-1:] != (len(self.columns),):
            raise ValueError(
                f"the last axis must hold the {len(self.columns)} columns of {self.name!r}, got shape {tuple(x.shape)}"
            )
        low = torch.tensor([c.low for c in self.columns], dtype=torch.float64, device=x.device)
        high = torch.tensor([c.high for c in self.columns], dtype=torch.float64, device=x.device)
        return low, high


def class_name(classes: Sequence[str], k: int) -> str:
    """What class ``k`` is called: its number, where a model knows more classes than the data name."""
    return classes[k] if 0 <= k < len(classes) else str(k)


def as_data(
    source: Any,
    name: str = "data",
    *,
    limit: int | None = None,
    bounds: tuple[Bound, Bound] | None = None,
    classes: Sequence[str] | None = None,
    split: str = "",
) -> Data:
    """Any common form of labelled samples as `Data`.

    `source` is a `Data`, a pair (x, y) of tensors or arrays, a ``DataLoader`` that gives such pairs, or a
    ``Dataset`` or list of pairs (sample, label). Samples are tensors, arrays or PIL images; bytes become
    floats in [0, 1]. Arrays of float64 become torch's default dtype. Without `bounds`, x must lie in [0, 1].
    At most `limit` samples are read: of a ``Dataset``, which is often sorted by class, evenly spaced ones,
    elsewhere the first.

    Raises TypeError for another form, ValueError for lengths that differ, labels that are not whole numbers
    from 0 on, no samples, samples of different shapes, values outside the bounds, and a ``Dataset`` of more than 4 GiB.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 sample, got {limit}")
    if isinstance(source, Data):
        return replace(source if limit is None else source[:limit], bounds=bounds or source.bounds)
    if classes is None:
        classes = [c if isinstance(c, str) else ", ".join(map(str, c)) for c in _class_names(source)]
    index, x, y = _read(source, name, limit)
    if len(x) != len(y):
        raise ValueError(f"x and y of {name!r} must be equally long, got {len(x)} samples and {len(y)} labels")
    if x.dtype == torch.uint8:
        x = x.float() / 255
    y = _labels(y, name)
    if bounds is None:
        bounds = (0.0, 1.0)
    low, high = (torch.as_tensor(b, dtype=x.dtype) for b in bounds)
    if not ((x >= low) & (x <= high)).all():
        raise ValueError(
            f"x of {name!r} reaches from {x.min():.4g} to {x.max():.4g} and leaves its bounds {bounds}; "
            "give bounds=(low, high) as the model's inputs have them"
        )
    known = list(classes) or [str(k) for k in range(int(y.max()) + 1 if len(y) else 0)]
    if len(y) and int(y.max()) >= len(known):
        raise ValueError(f"labels of {name!r} reach {int(y.max())}, but only {len(known)} classes are named")
    kind: Kind = "image" if x.dim() == 4 else "table" if x.dim() == 2 else "other"
    columns = tuple(Column(f"column {i}") for i in range(x.shape[1])) if kind == "table" else ()
    return Data(name, x, y, index, tuple(known), bounds, kind, columns, split)


def _class_names(source: Any) -> Sequence[Any]:
    while hasattr(source, "dataset"):  # a DataLoader or a Subset of one with names
        source = source.dataset
    names: Sequence[Any] = getattr(source, "classes", None) or ()
    return names


def _read(source: Any, name: str, limit: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Indices [N], samples [N, ...] and labels [N], whatever form they come in."""
    if isinstance(source, DataLoader):
        xs, ys, seen = [], [], 0
        for batch in source:
            x, y = _pair(batch, name)
            xs.append(_tensor(x, name))
            ys.append(_tensor(y, name))
            seen += len(ys[-1])
            if limit is not None and seen >= limit:
                break
        if not seen:
            raise ValueError(f"{name!r} holds no samples")
        return torch.arange(seen)[:limit], torch.cat(xs)[:limit], torch.cat(ys)[:limit]
    if isinstance(source, tuple):
        x, y = (_tensor(part, name)[:limit] for part in _pair(source, name))
        return torch.arange(len(x)), x, y
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        count = len(source) if limit is None else min(limit, len(source))
        if not count:
            raise ValueError(f"{name!r} holds no samples")
        index = torch.arange(count) * len(source) // count
        xs, ys = [], []
        for i in index.tolist():
            x, y = (_tensor(part, name) for part in _pair(source[i], name))
            if count * x.nbytes > MAX_BYTES:
                raise ValueError(
                    f"{count} samples of {name!r} take {count * x.nbytes / 2**30:.1f} GiB; give limit= to read fewer"
                )
            xs.append(x)
            ys.append(y)
        shapes = {tuple(x.shape) for x in xs}
        if len(shapes) > 1:
            first, second = sorted(shapes)[:2]
            raise ValueError(f"samples of {name!r} must have one shape, got {first} and {second}; resize them")
        return index, torch.stack(xs), torch.stack(ys)
    raise TypeError(
        f"{name!r} must be a pair (x, y) of tensors, a Dataset, a DataLoader or a Data, got {type(source).__name__}"
    )


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        what = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise TypeError(f"{name!r} must give pairs (sample, label), got {what}")
    return item[0], item[1]


def _tensor(value: Any, name: str) -> Tensor:
    """A tensor of what a data set gives: a tensor, an array, a number or a PIL image."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if hasattr(value, "getbands"):  # a PIL image, told without importing PIL
        pixels = torch.as_tensor(np.array(value))  # [H, W] or [H, W, C]
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    try:
        tensor = torch.as_tensor(value)
        return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} holds a {type(value).__name__} where a tensor is needed: {error}") from error


def _labels(y: Tensor, name: str) -> Tensor:
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(
            f"labels of {name!r} must be whole numbers, one per sample, got shape {tuple(y.shape)} of {y.dtype}"
        )
    if len(y) and int(y.min()) < 0:
        raise ValueError(f"labels of {name!r} must count from 0, got {int(y.min())}")
    return y.to(torch.int64)

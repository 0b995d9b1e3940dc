"""Patches: where little of an example was changed, a convolutional model computes only what the change reaches."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map

from .memory import eagerly, out_of_memory

WIDE = 64 * 64  # places of pictures that are worth it
MAPS = 16  # times the bytes of a picture that its maps take, or so
SMALL = 0.5  # of a picture: what a change covers at most to begin with
LARGE = 0.7  # of a map: if it reaches further there, all of the map is computed

NOWHERE = -1  # the number of maps that nobody knows

Starts = Sequence[int]
"""Where the rectangle of each map begins, along one axis [n]."""


class Lost(Exception):
    """The model goes another way than it went for the examples themselves."""


class Record:
    """What was seen of the examples themselves: maps that changes stand in, by number; ``room`` is left, in bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.maps: dict[int, Tensor] = {}
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.others: list[Tensor] = []  # weights and the like, so that no other can come to stand where they stand

    def number(self, *made_by: Any) -> int:
        """The same for maps that the same operations make of the same things, whichever the pass."""
        self.others += [t for t in made_by if isinstance(t, Tensor) and not isinstance(t, Patched)]
        return self.numbers.setdefault(tuple(map(_name, made_by)), len(self.numbers))


def _name(of: Any) -> Any:
    if isinstance(of, Patched):
        return "map", of.number
    if not isinstance(of, Tensor):
        return repr(of)
    return of.shape, of.dtype, *(of.flatten().tolist() if of.numel() < 64 else (of.stride(), of.data_ptr()))


class Patched(Tensor):
    """Maps [n, C, H, W] of which only a rectangle of each is held; the rest is as in the example itself.

    Or the maps of the examples themselves, ``rows`` None: those are held as they are. An operation that is not known to
    be local gets the whole of them.
    """

    record: Record
    rows: Tensor | None  # the example of each map [n]
    number: int
    part: Tensor  # [n, C, h, w]
    top: Starts
    left: Starts
    full: Tensor | None

    @staticmethod
    def __new__(
        cls: type["Patched"],
        record: Record,
        rows: Tensor | None,
        number: int,
        part: Tensor,
        size: Any,
        top: Starts,
        left: Starts,
    ) -> "Patched":
        shape = (*part.shape[:2], *size)
        t: Patched = Tensor._make_wrapper_subclass(cls, shape, dtype=part.dtype, device=part.device)
        t.record, t.rows, t.number, t.part, t.top, t.left, t.full = record, rows, number, part, top, left, None
        return t

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # as PyTorch calls it
        kwargs = kwargs or {}
        maps = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Patched)]
        if func in RULES and all(t.full is None for t in maps):
            out = RULES[func](partial(made, func, args, kwargs, maps[0]), func, *args, **kwargs)
            if out is not None:
                return out
        return func(*tree_map(whole, args), **tree_map(whole, kwargs))

    def keep(self) -> None:
        """Others may need these maps of the examples."""
        if self.number == NOWHERE:
            raise Lost
        if self.rows is None and self.number not in self.record.maps:
            self.record.maps[self.number] = self.part
            self.record.room -= self.part.numel() * self.part.element_size()
            if self.record.room < 0:
                raise Lost

    @property
    def place(self) -> tuple[Starts, Starts, int, int]:
        return self.top, self.left, *self.part.shape[2:]

    def base(self) -> Tensor:
        """The examples' own maps [B, C, H, W]."""
        self.keep()
        if self.number not in self.record.maps:
            raise Lost
        return self.record.maps[self.number]

    def around(self, top: Starts, left: Starts, h: int, w: int, outside: float = 0.0) -> Tensor:
        """Other rectangles of the maps, which may reach ``outside`` of them [n, C, h, w]."""
        base = self.base()
        if self.place == (top, left, h, w):
            return self.part
        up, before = max(0, -min(top)), max(0, -min(left))
        sides = before, max(0, max(left) + w - self.shape[3]), up, max(0, max(top) + h - self.shape[2])
        base = pad(base, sides, value=outside) if any(sides) else base
        y, x = (torch.tensor(starts, device=base.device) + more for starts, more in ((top, up), (left, before)))
        found = base.unfold(2, h, 1).unfold(3, w, 1)[self.rows, :, y, x]
        self.lay(found, top, left)
        return found

    def lay(self, onto: Tensor, top: Starts, left: Starts) -> None:
        """Writes the rectangles onto others, as far as they meet."""

        def meet(i: int) -> list[int]:
            found = []
            for axis, mine, its in ((2, self.top[i], top[i]), (3, self.left[i], left[i])):
                start, end = max(mine, its), min(mine + self.part.shape[axis], its + onto.shape[axis])
                found += [start - mine, start - its, max(end - start, 0)]
            return found

        for (y, t, h, x, s, w), group in groupby(range(len(onto)), meet):
            some = list(group)
            rows = slice(some[0], some[-1] + 1)
            onto[rows, :, t : t + h, s : s + w] = self.part[rows, :, y : y + h, x : x + w]


def whole(t: Any) -> Any:
    """All of the maps, if it is some."""
    if not isinstance(t, Patched):
        return t
    if t.full is None:
        base = t.base()
        t.full = base.clone() if t.rows is None else base[t.rows]
        if t.rows is not None:
            t.lay(t.full, [0] * len(t), [0] * len(t))
    return t.full


def made(func: Any, args: Any, kwargs: Any, like: Patched, part: Tensor, size: Any = None, at: Any = None) -> Patched:
    """What an operation made; into its first argument, if it works in place."""
    number = like.record.number(func, *tree_leaves((args, kwargs)))
    top, left = at or (like.top, like.left)
    if not func._schema.is_mutable:
        return Patched(like.record, like.rows, number, part, size or like.shape[2:], top, left)
    first: Patched = args[0]
    first.number, first.part, first.top, first.left = number, part, top, left
    return first


# --- operations that are local ----------------------------------------------------------------------------

Made = Callable[..., Patched]


def _own(func: Any, x: Patched, part: Tensor) -> Tensor:
    """What an operation may work on, in place as well."""
    return part.clone() if func._schema.is_mutable and x.rows is None else part


def _pointwise(made: Made, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return made(func(_own(func, x, x.part), *args, **kwargs))


def _normalised(made: Made, func: Any, x: Any, *args: Any) -> Any:
    out, *further = func(x.part, *args)
    return None if args[4] else (made(out), *further)  # in training


def _joined(made: Made, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """Sums, products... of two maps, or of maps and what is the same for all places and examples."""
    if isinstance(a, Patched) and isinstance(b, Patched):
        at = hull([a, b])
        return at and made(func(_own(func, a, a.around(*at)), b.around(*at), **kwargs), at=at[:2])
    x, c = (a, b) if isinstance(a, Patched) else (b, a)
    x.keep()
    if isinstance(c, Tensor) and (prod(c.shape[-2:]) > 1 or (c.ndim > 3 and len(c) > 1) or x is not a):
        return None
    return made(func(*(_own(func, t, t.part) if t is x else t for t in (a, b)), **kwargs))


def _stacked(made: Made, func: Any, maps: Any, axis: int = 0) -> Any:
    """Channels of several maps."""
    at = hull(maps) if axis in (1, -3) and all(isinstance(t, Patched) for t in maps) else None
    return at and made(func([t.around(*at) for t in maps], axis), at=at[:2])


def _convolved(
    made: Made, func: Any, x: Any, weight: Any, bias: Any, s: Any, p: Any, d: Any, transposed: bool, *rest: Any
) -> Any:
    if transposed or x.ndim != 4:
        return None
    return windowed(made, x, weight.shape[2:], s, p, d, 0, lambda t, p: func(t, weight, bias, s, p, d, False, *rest))


def _highest(
    made: Made, func: Any, x: Any, k: Any, s: Any = (), p: Any = (0, 0), d: Any = (1, 1), up: bool = False
) -> Any:
    if up:
        return None
    out = windowed(made, x, k, s or k, p, d, -torch.inf, lambda t, p: func(t, k, s, p, d)[0])
    if out is None:
        return None
    return out, Patched(x.record, x.rows, NOWHERE, out.part, out.shape[2:], out.top, out.left)


def _averaged(
    made: Made,
    func: Any,
    x: Any,
    k: Any,
    s: Any = (),
    p: Any = (0, 0),
    up: bool = False,
    outside: bool = True,
    by: Any = None,
) -> Any:
    if up or (any(p) and not outside):
        return None
    return windowed(made, x, k, s or k, p, (1, 1), 0, lambda t, p: func(t, k, s, p, False, True, by))


def windowed(
    made: Made, x: Patched, k: Any, s: Any, p: Any, d: Any, outside: float, call: Callable[..., Tensor]
) -> Any:
    """An operation that looks at k places, d apart, and takes a step of s between one look and the next."""
    x.keep()
    if x.rows is None:
        out = call(x.part, p)
        return made(out, out.shape[2:])
    ranges = zip((x.top, x.left), x.part.shape[2:], x.shape[2:], *(_two(v) for v in (k, s, p, d)), strict=True)
    (top, h, y, high, down), (left, w, z, wide, across) = (reached(*range) for range in ranges)
    if h * w > LARGE * down * across:
        return None
    return made(call(x.around(y, z, high, wide, outside), (0, 0)), (down, across), (top, left))


def reached(
    starts: Starts, length: int, size: int, k: int, s: int, p: int, d: int
) -> tuple[Starts, int, Starts, int, int]:
    """Along one axis: what a change reaches (from where, how many), what that looks at, and how many there are."""
    after = (size + 2 * p - d * (k - 1) - 1) // s + 1
    first = [max(0, -(-(a + p - d * (k - 1)) // s)) for a in starts]
    last = [min(after - 1, (a + length - 1 + p) // s) for a in starts]
    many = max(1, *(b - a + 1 for a, b in zip(first, last, strict=True)))
    first = [min(a, after - many) for a in first]
    return first, many, [a * s - p for a in first], (many - 1) * s + d * (k - 1) + 1, after


def hull(maps: Sequence[Patched]) -> tuple[Starts, Starts, int, int] | None:
    """Rectangles that hold those of all these; None if they are too large, or the maps not alike."""
    for t in maps:
        t.keep()
    size = maps[0].shape[2:]
    if any(t.shape[2:] != size for t in maps):
        return None
    if all(t.place == maps[0].place for t in maps):
        return maps[0].place

    def along(axis: int) -> tuple[Starts, int]:
        spans = [[(a, a + t.part.shape[2 + axis]) for a in (t.top, t.left)[axis]] for t in maps]
        ends = [(min(a for a, _ in of), max(b for _, b in of)) for of in zip(*spans, strict=True)]
        length = max(b - a for a, b in ends)
        return [min(a, size[axis] - length) for a, _ in ends], length

    (top, h), (left, w) = along(0), along(1)
    return (top, left, h, w) if h * w <= LARGE * prod(size) else None


def _two(v: Any) -> Any:
    return v if len(v) == 2 else v * 2


aten = torch.ops.aten
_POINTWISE = (
    *("abs", "clamp", "clamp_", "clamp_min", "clamp_min_", "clone", "elu", "elu_", "exp", "gelu", "hardsigmoid"),
    *("hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "mish", "mish_"),
    *("neg", "relu", "relu_", "sigmoid", "sigmoid_", "silu", "silu_", "softplus", "tanh", "tanh_"),
)
RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolved,
    aten.native_batch_norm.default: _normalised,
    aten.max_pool2d_with_indices.default: _highest,
    aten.avg_pool2d.default: _averaged,
    aten.cat.default: _stacked,
    aten.detach.default: lambda made, func, x: x,
    **{getattr(aten, name).default: _pointwise for name in _POINTWISE},
    **{getattr(aten, name).Tensor: _joined for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")},
}


# --- the model --------------------------------------------------------------------------------------------


class Patches:
    """A model of pictures [n, C, H, W] that is asked about some examples again and again, a little changed each time.

    It runs as it is, on maps that know where they differ from those of the examples. Wherever that leads nowhere, it is
    asked plainly.

    Args:
        model: one row for each example.
        start: the examples [B, C, H, W].
        room: bytes that their maps may take, or about so many: as many :attr:`groups` of them are looked at in turn.
    """

    def __init__(self, model: Callable[[Tensor], Any], start: Tensor, room: int) -> None:
        self.model, self.room, self.plain = model, room, False
        many = max(1, room // max(MAPS * start.element_size() * prod(start.shape[1:]), 1))
        self.groups = torch.arange(len(start), device=start.device).tensor_split(-(-len(start) // many) or 1)
        """Numbers of examples that are best asked about together, one group after the other."""
        self.start, self.group, self.record, self.out = start, self.groups[0][:0], Record(0), start[:0]

    def __call__(self, x: Tensor) -> Any:
        return self.model(x)

    def of(self, rows: Tensor) -> Callable[[Tensor], Any]:
        """The model as a function of these examples [n], changed."""
        return partial(self._changed, rows)

    def _changed(self, rows: Tensor, x: Tensor) -> Any:
        if not self.plain:
            try:
                with eagerly():
                    out = self._patched(rows, x)
                if out is not None:
                    return out
            except Exception as e:  # whatever a model says of maps that are none
                if out_of_memory(e):
                    raise
                self.plain, self.record, self.out = True, Record(0), self.start[:0]
        return self.model(x)

    def _patched(self, rows: Tensor, x: Tensor) -> Tensor | None:
        differs = (x != self.start[rows]).any(1)
        some = differs.flatten(1).any(1).nonzero().squeeze(1)
        if not len(some):
            if len(self.groups) > 1:
                return None
            places = self._places(rows)
            return self.out[places]
        (top, h), (left, w) = (_span(differs[some].any(axis)) for axis in (2, 1))
        if h * w > SMALL * prod(x.shape[2:]) or len(some) < 2:  # of one alone nobody can tell what belongs to it
            return None
        places = self._places(rows)
        y, z = (torch.tensor(starts, device=x.device) for starts in (top, left))
        part = x.unfold(2, h, 1).unfold(3, w, 1)[some, :, y, z]
        maps = Patched(self.record, places[some], self.record.number("x"), part, x.shape[2:], top, left)
        out = self.out[places]
        out[some] = whole(self.model(maps))
        return out

    def _places(self, rows: Tensor) -> Tensor:
        """Where in their group examples stand; all of it has been looked at then."""
        if not torch.isin(rows[0], self.group):
            self.group = next(group for group in self.groups if torch.isin(rows[0], group))
            start, begin = self.start[self.group], [0] * len(self.group)
            self.record = Record(2 * self.room)
            maps = Patched(self.record, None, self.record.number("x"), start, start.shape[2:], begin, begin)
            self.out = whole(self.model(maps))
        if not torch.isin(rows, self.group).all() or len(self.out) != len(self.group):
            raise Lost
        return rows - self.group[0]


def _span(differs: Tensor) -> tuple[Starts, int]:
    """Where along an axis what differs begins [n, size], and how long it is at most."""
    size = differs.shape[1]
    first, behind = differs.int().argmax(1), size - differs.flip(1).int().argmax(1)
    length = int((behind - first).max())
    return first.clamp(max=size - length).tolist(), length

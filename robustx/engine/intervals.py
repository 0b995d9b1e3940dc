"""Intervals: what everything in a model can be, where its inputs lie between two rows.

Two numbers travel together, the least and the greatest of each. Gowal et al. (2018), arXiv 1810.12715; Mirman, Gehr,
Vechev (ICML 2018).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .affine import Unreadable
from .operations import MOVES, PRODUCTS
from .packing import Tensors, finest, flat
from .rules import mapped, pure, tensors_in
from .scores import Ask, Score, tensor_output
from .units import Bounded, Unit

EACH = frozenset({"neg", "mul", "batch_norm", "rsub", "sub"})
"""Of each number by itself, and affine in it, where one of their tensors depends on the inputs."""

BIASED = PRODUCTS & frozenset(["linear", *(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3))])
"""Products whose third tensor is added."""

LOOSE, EXACT, FREE = range(3)
"""What intervals are: too wide perhaps; each attained; all attained together, as those of the inputs of a box are."""


class Ends(NamedTuple):
    """Of what goes into a unit, the least and the greatest [n, ...]; ``exact``: no nearer ones are to be had behind."""

    unit: Unit
    low: Tensor
    high: Tensor
    exact: bool


class _Intervals(Bounded):
    """The least travels as the model's own tensors do, the greatest beside it; whatever is done to one is to the other.

    Args:
        known: ends [n, ...] that are known of what goes into the first units.
    """

    def __init__(self, known: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.known, self.found = known, list[Ends]()
        self.beside = WeakTensorKeyDictionary()  # the greatest, and of which kind the interval is

    def carry(self, low: Tensor, high: Tensor, kind: int) -> Tensor:
        """The least as something that depends on the inputs, with the greatest beside it."""
        with torch.enable_grad():
            low = low.detach().requires_grad_() * 1
        self.beside[low] = high.detach(), kind
        return low

    def ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest of a tensor of the model's."""
        return (t.detach(), self._beside(t)[0]) if self.moves(t) else (t, t)

    def _beside(self, t: Tensor) -> tuple[Tensor, int]:
        if t not in self.beside:
            raise Unreadable("it has an operation of its own (an autograd function), which no bound is known for")
        high, kind = self.beside[t]
        return high, kind

    def wide(self, t: Tensor) -> Tensor:
        w = super().wide(t)
        if w is not t and self.moves(t):
            high, kind = self._beside(t)
            self.beside[w] = finest(high), kind
        return w

    def unit(self, unit: Unit, input: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if not self.moves(input):
                return unit(input)
            low, high = (t.clone() for t in self.ends(input))  # a model may go on in place
            if len(self.found) < len(self.known):
                more, less = self.known[len(self.found)]
                low, high = torch.maximum(low, more), torch.minimum(high, less)
            self.found.append(Ends(unit, low, high, self._beside(input)[1] != LOOSE))
            return self.carry(unit(low), unit(high), EXACT)

    def do(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        moving = [t for t in tensors_in((args, kwargs)) if self.moves(t)]
        if not moving:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("out"), Tensor):
            raise Unreadable(f"{name!r} writes into the tensor 'out'; let it return one")
        kind = min(self._beside(t)[1] for t in moving)
        if (len(moving) > 1 and name in ("sub", "rsub")) or kwargs.get("alpha", 1) < 0:
            done = self._difference
        elif name in PRODUCTS and name != "mul":
            done, kind = self._product, EXACT if kind == FREE else LOOSE
        elif name in EACH and len(moving) == 1:
            done = self._each
        else:
            kept = name in MOVES or (name == "add" and len(moving) == 1)
            return self._same(func, args, kwargs, kind if kept else LOOSE)
        func, args, kwargs, into = pure(func, args, kwargs)
        out = self.carry(*done(name, func, args, kwargs), kind if len(moving) == 1 else LOOSE)
        return out if into is None else self._same(torch.Tensor.copy_, (into, out), {}, kind)

    def _same(self, func: Callable[..., Any], args: Any, kwargs: Any, kind: int) -> Any:
        """What never falls where its tensors rise: done to both ends."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if target is not None and not self.moves(target) and _writes(func):
            self.beside[target] = target.clone(), FREE
        with torch.no_grad():
            others = mapped(lambda t: self.beside[t][0] if t in self.beside else t, (args, kwargs))
            high = func(*others[0], **others[1])
        out = func(*args, **kwargs)
        for low, top in zip(tensors_in(out), tensors_in(high), strict=True):
            if self.moves(low):
                self.beside[low] = top, kind
        if target is not None and _writes(func):
            self.beside[target] = self.beside[target][0], kind
        return out

    def _each(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """A number's multiple, and something added: the greater of what the two ends come to, and the smaller."""
        ends = [self._at(end, func, args, kwargs) for end in (0, 1)]
        return torch.minimum(*ends), torch.maximum(*ends)

    def _difference(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Least where one is least and the other greatest."""
        if kwargs.get("alpha", 1) < 0 and name != "add":
            raise Unreadable(f"{name!r} with a negative alpha: write it as a sum")
        first, second = args[0], args[1] if len(args) > 1 else kwargs["other"]
        rest = {k: v for k, v in kwargs.items() if k != "other"}
        (a, b), (c, d) = ((self.ends(t) if isinstance(t, Tensor) else (t, t)) for t in (first, second))
        with torch.no_grad():
            ends = func(a, d, **rest), func(b, c, **rest)
        return ends if name != "rsub" else ends[::-1]

    def _product(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """The middle passes as it is, and half the width by the factor's sizes."""
        bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if name in BIASED else None
        factors = [t for t in tensors_in((args, kwargs)) if not self.moves(t) and t is not bias]
        if len(factors) != 1:
            raise Unreadable(f"{name!r} multiplies {1 + len(factors)} tensors; multiply two at a time")

        def middle(t: Tensor) -> Tensor:
            low, high = self.ends(t)
            return (low + high) / 2 if self.moves(t) else t

        def half(t: Tensor) -> Tensor:
            low, high = self.ends(t)
            return (high - low) / 2 if self.moves(t) else torch.zeros_like(t) if t is bias else t.abs()

        with torch.no_grad():
            at, by = (func(*a, **k) for a, k in (mapped(f, (args, kwargs)) for f in (middle, half)))
        return at - by, at + by

    def _at(self, end: int, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        with torch.no_grad():
            args, kwargs = mapped(lambda t: self.ends(t)[end], (args, kwargs))
            out: Tensor = func(*args, **kwargs)
            return out


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


@dataclass(eq=False)
class Ranges(Score):
    """What goes into all units of a model, at the least and at the most [n, 2, V].

    The inputs are two: the least and the greatest; the model is called once, with the one that it has.

    Args:
        model: the model.
        known: see :class:`_Intervals`; [b, ...], by row.
        box: whether each point between the inputs is meant.
    """

    model: Any
    known: Sequence[tuple[Tensor, Tensor]] = ()
    box: bool = True
    units: list[tuple[Unit, torch.Size, bool]] | None = None

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Tensor:
        mode = _Intervals([(low[rows], high[rows]) for low, high in self.known])
        with torch.enable_grad(), mode.over(self.model):
            with torch._C.DisableTorchFunction():
                entering = mode.carry(inputs[0], inputs[1], FREE if self.box else EXACT)
            tensor_output(call((entering,)), rows)
        told = [(e.unit, e.low.shape[1:], e.exact) for e in mode.found]
        if any(e.low.ndim == 0 or len(e.low) != len(rows) for e in mode.found) or (self.units or told) != told:
            raise Unreadable("the batch must come first in what goes into each unit, for any number of rows")
        self.units = told
        none = inputs[0].new_zeros(len(rows), 0)
        low, high = ([flat(t) for t in ends] for ends in ([e.low for e in mode.found], [e.high for e in mode.found]))
        return torch.stack([torch.cat([none, *low], 1), torch.cat([none, *high], 1)], 1)

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return tensor_output(out, rows)

    def apart(self, value: Tensor) -> list[Ends]:
        """What :meth:`value` gave, unit by unit."""
        assert self.units is not None, "apart reads what was asked"
        parts = value.split([shape.numel() for _, shape, _ in self.units], 2)
        return [
            Ends(unit, part[:, 0].reshape(-1, *shape), part[:, 1].reshape(-1, *shape), exact)
            for (unit, shape, exact), part in zip(self.units, parts, strict=True)
        ]

"""Units: the operations of a network that turn, each between two lines, and a model that is made of them.

What is between units is affine and needs no more than PyTorch's own gradients. Zhang, Weng, Chen, Hsieh, Daniel
(NeurIPS 2018), arXiv 1811.00866, state the lines of ReLU, sigmoid and tanh; Singh, Gehr, Püschel, Vechev (POPL 2019)
that of the largest of several.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .affine import MADE_OF_RELUS, Reading, Unreadable
from .operations import LINEAR, PARTS, PLAIN
from .rules import tensors_in


class Lines(NamedTuple):
    """``under * x + under_at <= unit(x) <= over * x + over_at``, wherever x is between the ends that they are made for.

    Of a unit that picks from candidates [..., k] the products are summed along the last axis.
    """

    under: Tensor
    under_at: Tensor
    over: Tensor
    over_at: Tensor


class Unit(ABC):
    """A function of one number, or of some candidates in the last axis, that rises with each of them."""

    picks = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The lines between two ends."""

    @abstractmethod
    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        """Where nearer ends would make nearer lines."""

    def flat(self, low: Tensor, high: Tensor) -> Lines:
        """The level lines at what the ends come to."""
        zero = torch.zeros_like(low)
        return Lines(zero, self(low), zero, self(high))


class _ReLU(Unit):
    def __call__(self, x: Tensor) -> Tensor:
        return x.relu()

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < 0) & (high > 0)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The chord above; below, of the two slopes 0 and 1 the one that leaves the smaller area."""
        turns, on = self.loose(low, high), low >= 0
        chord = high / torch.where(turns, high - low, 1)
        over = torch.where(turns, chord, on.to(low))
        under = torch.where(turns, (high > -low).to(low), on.to(low))
        return Lines(under, torch.zeros_like(low), over, torch.where(turns, -chord * low, 0))


@dataclass(frozen=True)
class _Sigmoidal(Unit):
    """Convex below zero and concave above."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        return high - low > 1e-6

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Chord and tangent where it bends one way; across zero the smaller slope of the ends: it has none below."""
        at, to = self(low), self(high)
        gentle = torch.minimum(self.slope(low), self.slope(high))
        bends = self.loose(low, high) & ((low >= 0) | (high <= 0))
        middle = (low + high) / 2
        steep, there = self.slope(middle), self(middle)
        chord = (to - at) / torch.where(bends, high - low, 1)
        tangent = steep, there - steep * middle
        cut = chord, at - chord * low
        concave = low >= 0

        def chosen(inner: Tensor, outer: Tensor, across: Tensor) -> Tensor:
            return torch.where(bends, torch.where(concave, inner, outer), across)

        under = map(chosen, cut, tangent, (gentle, at - gentle * low))
        over = map(chosen, tangent, cut, (gentle, to - gentle * high))
        return Lines(*under, *over)


class _Largest(Unit):
    """The largest of the candidates."""

    picks = True

    def __call__(self, x: Tensor) -> Tensor:
        return x.amax(-1)

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        rivals = high > low.amax(-1, keepdim=True)
        best = low == low.amax(-1, keepdim=True)
        return (rivals | best) & self._open(low, high)[..., None]

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """At least the candidate that is never below its low end; at most that, if none can pass it, or the highest."""
        pick = F.one_hot(low.argmax(-1), low.shape[-1]).to(low)
        opened = self._open(low, high)
        zero = torch.zeros_like(low[..., 0])
        return Lines(pick, zero, pick * ~opened[..., None], torch.where(opened, high.amax(-1), zero))

    @staticmethod
    def _open(low: Tensor, high: Tensor) -> Tensor:
        """Whether another candidate may pass the one with the best low end."""
        best = low.argmax(-1, keepdim=True)
        return (high.scatter(-1, best, -torch.inf) > low.gather(-1, best)).any(-1)


RELU = _ReLU()
SIGMOID = _Sigmoidal(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))
TANH = _Sigmoidal(torch.tanh, lambda x: 1 / torch.cosh(x.clamp(-300, 300)).square())
LARGEST = _Largest()

_DROPOUTS = frozenset(n for n in LINEAR if "dropout" in n and n != "native_dropout")
_NEVER = _DROPOUTS | {  # rounded, drawn, taken from where the inputs say, weighed with either sign, or made of others
    *("half", "bfloat16", "nan_to_num", "native_dropout", "native_batch_norm", "diff", "sum_to_size", "index_add"),
    *("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "embedding", "embedding_bag"),
    *("interpolate", "upsample", "upsample_bilinear", "upsample_nearest", "upsample_bicubic2d"),
    *("max_unpool1d", "max_unpool2d", "max_unpool3d", "scatter", "masked_scatter"),
    *("nll_loss", "nll_loss_nd", "nll_loss2d"),
}
BETWEEN = PLAIN - _NEVER
"""Operations that may stand between units."""


class Bounded(Reading):
    """Runs a model of units with affine operations between them; what else depends on the inputs is refused by name."""

    def __init__(self) -> None:
        parts: dict[str, Callable[..., Any]] = {name: PARTS[name] for name in ("addmm", "addmv", "baddbmm", "lerp")}
        units = {"relu": RELU, "sigmoid": SIGMOID, "tanh": TANH}
        parts |= {**MADE_OF_RELUS, "div": self.quotient}
        parts |= {name: partial(self.unit, unit) for name, unit in units.items()}
        parts |= {f"max_pool{n}d": partial(self._pool, n) for n in (1, 2, 3)}
        parts |= dict.fromkeys(_DROPOUTS, _kept)
        super().__init__(parts, BETWEEN)

    @abstractmethod
    def unit(self, unit: Unit, input: Tensor) -> Tensor:
        """What comes out of a unit."""

    def _pool(
        self,
        n: int,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if return_indices:
            raise Unreadable(f"there is no bound for the indices of max_pool{n}d")
        with torch._C.DisableTorchFunction():
            shape, pool = input.shape[-n:], getattr(F, f"max_pool{n}d")
            out = pool(torch.zeros(1, *shape), kernel_size, stride, padding, dilation, ceil_mode).shape[1:]
            how = (_each(v, n) for v in (kernel_size, stride or kernel_size, padding, dilation))
            places = _windows(shape, out, *how).to(input.device)
        return self.unit(LARGEST, input.flatten(-n)[..., places])

    def refusal(self, name: str) -> Exception:
        hint = "; let the model return logits" if "softmax" in name else ""
        return Unreadable(
            f"there is no bound for the operation {name!r}{hint}; randomised smoothing (method='smoothing') is for any "
            "model"
        )

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        super().ran(name, arguments, out)
        if any(t.is_floating_point() and t.itemsize < 4 and self.moves(t) for t in tensors_in(out)):
            raise Unreadable(f"the operation {name!r} rounds to less than 32 bits, which no bound accounts for")


def _kept(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    if training and p:
        raise Unreadable("it drops numbers at random; no bound holds for that")
    return input


def _each(value: Any, n: int) -> tuple[int, ...]:
    """A setting for each of n axes."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * n if len(values) == 1 else values


def _windows(
    shape: torch.Size,
    out: torch.Size,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Where each window's elements are among those of flattened axes [*out, k]; for padding, another of them."""
    places = torch.arange(prod(shape)).reshape(shape)
    for axis, (k, s, p, d) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
        wide = (k - 1) * d + 1
        after = max((out[axis] - 1) * s + wide - shape[axis] - p, 0)
        pad = [0, 0] * places.ndim
        last = 2 * (places.ndim - 1 - axis)
        pad[last : last + 2] = p, after
        places = F.pad(places, pad, value=-1).unfold(axis, wide, s)[..., ::d].narrow(axis, 0, out[axis])
    places = places.flatten(len(shape))
    return torch.where(places < 0, places.amax(-1, keepdim=True), places)

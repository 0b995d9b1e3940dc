"""Affine maps and ReLUs: a small network, read as the piecewise linear function that it is.

Nothing is asked of the model but to run: each row of one batch carries one coefficient. Where all variables are zero
an affine form shows its constant, where one of them is one it shows the constant and that one's coefficient, and every
affine operation, however it is written, keeps to this. What comes out of a ReLU are new variables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .operations import PARTS, PLAIN, PRODUCTS
from .packing import finest, flat
from .probe import ModelError, Probe
from .rules import ASIDE, Op, Ruled, RuleError, mapped, name_of, tensors_in
from .scores import Everything
from .sites import Input

MOST = 4096  # variables: beyond, neither a batch of so many rows nor what is asked of it afterwards is small


class Unreadable(ValueError):
    """A model does what its reader has no account of, such as no network of affine maps and ReLUs; or is too large."""


@dataclass(frozen=True, eq=False)
class Affine:
    """weight @ variables + bias: [n, V] and [n]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        """[N, V] -> [N, n]; further variables do not count."""
        return v[:, : self.weight.shape[1]] @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Piecewise:
    """A function of rows [N, D]: affine maps of the inputs and of the outputs of all ReLUs before.

    Args:
        size: D, the first variables.
        relus: what goes into each ReLU that the model calls, in their order; its outputs are the next variables.
        out: the model's output, flat.
        shape: that of one row's output.

    Everything is in float64, on the CPU.
    """

    size: int
    relus: tuple[Affine, ...]
    out: Affine
    shape: torch.Size

    def variables(self, x: Tensor) -> Tensor:
        """Inputs [N, ...], and what comes out of the ReLUs [N, V]."""
        v = flat(x.detach().cpu().double())
        for layer in self.relus:
            v = torch.cat([v, layer(v).relu()], 1)
        return v

    def __call__(self, x: Tensor) -> Tensor:
        return self.out(self.variables(x)).reshape(len(x), *self.shape)

    @property
    def units(self) -> int:
        """How many ReLUs there are, counted one by one."""
        return sum(len(layer.bias) for layer in self.relus)


_SHAPED = frozenset(
    f"{new}{what}{like}" for new, like in (("new_", ""), ("", "_like")) for what in ("zeros", "ones", "full", "empty")
)
"""What is shaped like a tensor and looks at none of its numbers."""


class Reading(Ruled):
    """Runs a model in float64, where all that depends on the inputs passes operations that are spoken of.

    Whatever is affine passes as it is; products of what depends on the inputs, and what goes on by other ways than
    floating-point numbers (a comparison, an index, a detach) are refused.
    """

    def __init__(self, parts: Mapping[str, Callable[..., Any]], plain: frozenset[str] = PLAIN) -> None:
        products = dict.fromkeys(PRODUCTS, _never)
        super().__init__(products, frozenset(products), parts, plain, otherwise="error")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if name_of(func) in ASIDE:
            return func(*args, **(kwargs or {}))
        args, kwargs = mapped(self.wide, (args, kwargs or {}))
        out = super().__torch_function__(func, types, args, kwargs)
        return self.wide(out) if isinstance(out, Tensor) else out

    def wide(self, t: Tensor) -> Tensor:
        """``t`` in float64, and cut from the graph if it is a constant."""
        with torch._C.DisableTorchFunction():
            if not t.is_floating_point():
                return t
            return finest(t.detach() if t.requires_grad and not self.moves(t) else t)

    def met(self, op: Op) -> None:
        raise Unreadable(f"it multiplies what depends on the inputs with what depends on them ({op.name})")

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        if not isinstance(out, Tensor | bool | int | float | list | tuple) or any(map(self.moves, tensors_in(out))):
            return
        if name not in _SHAPED and any(map(self.moves, tensors_in(arguments))):
            raise Unreadable(f"the operation {name!r} asks for values that depend on the inputs")

    def quotient(self, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
        with torch._C.DisableTorchFunction():
            depends = isinstance(other, Tensor) and self.moves(other)
        if depends or rounding_mode is not None:
            raise Unreadable("it divides by what depends on the inputs, or rounds")
        return input * (1 / other)


class _Reading(Reading):
    """Rows carry affine forms; ``units`` [n] of each ReLU, once they are known.

    Some operations pass as the ReLUs that they are made of.
    """

    def __init__(self, size: int, most: int, units: list[int] | None = None) -> None:
        super().__init__({**PARTS, **MADE_OF_RELUS, "relu": self.relu, "div": self.quotient})
        self.size, self.most, self.units = size, most, units
        self.rows = 1 if units is None else 1 + size + sum(units)
        self.counts: list[int] = []
        self.forms: list[Affine] = []

    def relu(self, input: Tensor) -> Tensor:
        """Keeps what goes in, and lets new variables come out."""
        with torch._C.DisableTorchFunction():
            if not self.moves(input):
                return input.relu()
            if not input.ndim or len(input) % self.rows:
                raise Unreadable(f"a ReLU sees {tuple(input.shape)} for {self.rows} rows: the batch must come first")
            count, begun = input.numel() // self.rows, self.size + sum(self.counts)
            self.counts.append(count)
            if begun + count > self.most:
                raise Unreadable(
                    f"there are more than {self.most} inputs and ReLUs; an exact answer is for small networks"
                )
            if self.units is None:
                return input * 1  # counted is enough
            self.forms.append(forms(input.detach().reshape(self.rows, count), begun))
            block = input.detach().new_zeros(self.rows, count)
            block[1 + begun : 1 + begun + count] = torch.eye(count).to(block)
            everywhere = torch.ones_like(input, dtype=torch.bool)
            return torch.where(everywhere, block.reshape(input.shape), input)  # still what depends on the inputs

    def refusal(self, name: str) -> Exception:
        hint = "; let it return logits" if "softmax" in name or "sigmoid" in name else ""
        return Unreadable(f"the operation {name!r} is neither affine nor made of ReLUs{hint}")


def _never(op: Op, g: Tensor) -> Any:
    raise AssertionError("met raises before")


def forms(shown: Tensor, count: int) -> Affine:
    """What rows [1 + V, n] say of the first ``count`` variables."""
    return Affine((shown[1 : 1 + count] - shown[0]).T.cpu(), shown[0].cpu().clone())  # a model may go on in place


def _clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise Unreadable("it clamps to tensors; clamp to numbers")
    x = x if min is None else min + (x - min).relu()
    return x if max is None else max - (max - x).relu()


def _threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    if threshold != value:
        raise Unreadable("it has a threshold at which it jumps")
    return _clamp(x, threshold)


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    return a + (b - a).relu()


def _leaky(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return negative_slope * x + (1 - negative_slope) * x.relu()


MADE_OF_RELUS: dict[str, Callable[..., Any]] = {
    "clamp": _clamp,
    "clamp_min": lambda x, min: _clamp(x, min),
    "clamp_max": lambda x, max: _clamp(x, None, max),
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0: _clamp(x, min_val, max_val),
    "relu6": lambda x: _clamp(x, 0, 6),
    "threshold": _threshold,
    "leaky_relu": _leaky,
    "abs": lambda x: 2 * x.relu() - x,
    "maximum": _maximum,
    "minimum": lambda a, b: -_maximum(-a, -b),
}
"""Operations that are piecewise linear: the same, by ReLUs."""


def read(f: Probe, points: Tensor | None = None, most: int = MOST) -> Piecewise:
    """The score of a probe that stands at the inputs, as affine maps and ReLUs; two runs of the model tell them.

    Everything that the model does is looked at, and what it makes of its examples and of ``points`` [N, D] is compared
    with what was read: a network that it is not never comes back. Tjeng, Xiao, Tedrake (ICLR 2019) say what for.

    Args:
        f: its score sees all rows alike (the whole output, a function of it).
        points: where else to compare.
        most: inputs and ReLUs.

    Raises:
        Unreadable: the model does something else, or is too large; says what.

    >>> from robustx.engine import Probe
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> net = read(Probe(model, (x,), Everything()))
    >>> net.units, bool(torch.allclose(net(x).float(), model(x), atol=1e-6))
    (4, True)
    """
    if not isinstance(f.at, Input) or f.of.tap is not None:
        raise Unreadable("only the model's output is read, as a function of its inputs")
    if not all(t.is_floating_point() for t in f.inputs):
        raise Unreadable("its inputs are whole numbers")
    if f.follows:
        raise Unreadable("further arguments differ from example to example; ask for one at a time")
    size = sum(f.packing.sizes)
    counted = _Reading(size, most)
    if size > most:
        raise Unreadable(f"there are more than {most} inputs; an exact answer is for small networks")
    _run(f, counted, torch.zeros(1, size))
    reading = _Reading(size, most, counted.counts)
    out = _run(f, reading, torch.cat([torch.zeros(1, size), torch.eye(size), torch.zeros(sum(counted.counts), size)]))
    if reading.counts != counted.counts or len(out) != reading.rows:
        raise Unreadable("it does other things for other batches")
    net = Piecewise(size, tuple(reading.forms), forms(flat(out), reading.rows - 1), out.shape[1:])
    _compare(f, net, f.point if points is None else torch.cat([f.point, points.to(f.point)]))
    return net


def _run(f: Probe, reading: _Reading, z: Tensor) -> Tensor:
    """The score of rows [N, D] while the model is read."""
    z, n = z.to(f.point), len(f.inputs)
    rows = torch.zeros(len(z), dtype=torch.long, device=z.device)

    def model(*args: Any, **kwargs: Any) -> Any:
        leaves = [*args[: 0 if f.names else n], *(kwargs[k] for k in f.names or ())]
        with torch.enable_grad(), reading.over(f.model):
            with torch._C.DisableTorchFunction():
                entering = [finest(t.detach()).requires_grad_() * 1 for t in leaves]
            first = [] if f.names else entering
            given = kwargs | dict(zip(f.names or (), entering, strict=not first))
            out = f.of.value(f.of.made(f.model(*first, *args[len(first) :], **given)), rows)
        if not any(map(reading.moves, tensors_in(out))):
            raise Unreadable("its output does not depend on its inputs by anything that can be followed")
        return out.detach()

    try:
        there = f.to(model=model, inputs=f.packing.unpack(z), of=Everything(), strict=False, meter=None)
        out = there.outputs()
    except RuleError as e:
        raise Unreadable(str(e)) from e
    except ModelError as e:
        raise Unreadable(f"it cannot be run on rows of zeros and ones, or leaves PyTorch: {e}") from e
    assert isinstance(out, Tensor)
    return out


def _compare(f: Probe, net: Piecewise, points: Tensor) -> None:
    """Raises Unreadable where the model says something else than what was read."""
    rows = torch.zeros(len(points), dtype=torch.long, device=points.device)
    said = finest(f.to(strict=False, meter=None).value(points, rows)).cpu()
    apart = (said - net(points).to(said)).abs().max() if said.numel() else 0
    rounding = torch.finfo(f.point.dtype).eps ** 0.5
    if not apart <= rounding * said.abs().max():
        raise Unreadable("what it computes is not what its operations say: some are hidden")


__all__ = ["MOST", "Affine", "Piecewise", "Unreadable", "read"]

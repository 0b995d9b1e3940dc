"""Scores: what one number per row is read off the model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import index as as_int
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.futures import Future

from .checks import ArgumentError
from .packing import Tensors, flat
from .sites import Layer

Target = int | Tensor | Sequence[int] | Sequence[tuple[int, ...]] | tuple[int | slice, ...] | None
"""Every form that Captum knows, see :class:`Output`."""


class TargetError(ArgumentError, IndexError):
    """The target does not fit the model's output. Also an AssertionError and an IndexError, as Captum raises either."""


class OutputError(ArgumentError):
    """The model returned something that no number per row can be read off."""


class Ask(Protocol):
    """The model as a function of its inputs alone, or ``instead`` another one with the same further arguments."""

    def __call__(self, inputs: Tensors, instead: Callable[..., Any] | None = None) -> Any: ...


class Made(NamedTuple):
    """What functions of the output have made of it already."""

    parts: Any


class Score(ABC):
    """One number per row: ``value`` [N] is reported, ``pull`` [N] is differentiated (the same, unless a
    surrogate is easier to climb). ``tap`` names the layer to read, or None for the model's output.
    """

    @property
    def tap(self) -> Layer | None:
        return None

    def ask(self, call: "Ask", inputs: Tensors, rows: Tensor) -> Any:
        """What ``value`` reads: the model's output, unless there is more to ask: at other points, or other models."""
        return call(inputs)

    @property
    def passes(self) -> int:
        """How often :meth:`ask` asks for each row."""
        return 1

    @abstractmethod
    def value(self, out: Any, rows: Tensor) -> Tensor: ...

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        return self.value(out, rows)

    def noted(self, value: Tensor) -> Tensor | None:
        """What of the values the history of a search keeps [N]; None: nothing, as they tell not how far it has come."""
        return None

    def made(self, out: Any) -> Any:
        """``out``, as far as functions of the user's own read it: ``value`` takes that in its place."""
        return out

    def fits(self, examples: int) -> None:
        """Raises TargetError if the score was made for another number of examples."""
        return

    def check(self, out: Any, rows: Tensor) -> None:
        """Raises if the score cannot be read off this output: what is too slow to ask in every pass of a search."""
        return


@dataclass(frozen=True, eq=False)
class Output(Score):
    """One element of the model's output per example.

    ``target`` takes every form that Captum knows:

    - None: the output has one number per example already;
    - an int (or a tensor with one): that column for all; a tuple of ints and slices: that index
      behind the batch axis for all;
    - a list of ints or a 1-D tensor [B]: one column for each example, of an output [B, K];
    - a list of tuples [B]: one index behind the batch axis for each example;

    and, beyond Captum, a function from the output [N, ...] to one number per row [N].
    """

    target: Target | Callable[[Any], Tensor] = None

    @cached_property
    def index(self) -> tuple[Any, ...] | Tensor | list[tuple[int, ...]] | None:
        """The target, in one of three forms: an index for all, columns [B], or indices [B]."""
        t = self.target
        if t is None or callable(t):
            return None
        if isinstance(t, Tensor):
            if t.is_floating_point() or t.is_complex() or t.ndim > 1:
                raise TargetError(
                    f"Tensor target dimension {tuple(t.shape)} ({t.dtype}) is not valid; give integers, one or [B]"
                )
            return (int(t),) if t.numel() == 1 else t.detach().long()
        if isinstance(t, tuple):
            return t
        if isinstance(t, Sequence) and not isinstance(t, str):
            try:
                if t and isinstance(t[0], tuple):
                    return [tuple(as_int(i) for i in v) for v in t]  # type: ignore[union-attr]  # what is no sequence raises
                return torch.tensor([as_int(v) for v in t], dtype=torch.long)  # type: ignore[arg-type]  # likewise
            except TypeError as e:
                raise TargetError(f"a target list must hold ints, or tuples of ints, got {t!r}: {e}") from None
        try:
            return (as_int(t),)
        except TypeError:
            raise TargetError(
                f"target must be None, int, tuple, list, tensor or a function, got {type(t).__name__}"
            ) from None

    def fits(self, examples: int) -> None:
        i = self.index
        if i is not None and not isinstance(i, tuple) and len(i) != examples:
            raise TargetError(f"Target list length does not match output! {len(i)} targets for {examples} examples")

    def made(self, out: Any) -> Any:
        return Made(self.target(out)) if callable(self.target) else out

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return one_each(self.part(out, rows), rows)

    def part(self, out: Any, rows: Tensor) -> Any:
        """What the target leaves of each row."""
        if callable(self.target):
            return (out if isinstance(out, Made) else self.made(out)).parts
        out, i = tensor_output(out, rows), self.index
        try:
            if i is None:
                picked = out
            elif isinstance(i, tuple):
                if len(i) >= out.ndim:
                    raise IndexError(f"{len(i)} indices for an output with {out.ndim - 1} axes behind the batch")
                picked = out[(slice(None), *i)]
            elif isinstance(i, Tensor):
                if out.ndim != 2:
                    raise IndexError(f"Output must be 2D to select tensor of targets, got shape {tuple(out.shape)}")
                columns = i.to(out.device)[rows.to(out.device)]
                # a CPU raises by itself, a GPU would stop for good
                if out.device.type != "cpu" and ((columns < -out.shape[1]) | (columns >= out.shape[1])).any():
                    raise IndexError(f"there are {out.shape[1]} columns")
                picked = out[torch.arange(len(out), device=out.device), columns]
            else:
                places = torch.tensor(i)[rows.cpu()].reshape(len(rows), -1)  # [N, axes]
                size = torch.tensor(out.shape[1 : 1 + places.shape[1]])
                if places.shape[1] >= out.ndim or ((places >= size) | (places < -size)).any():
                    raise IndexError(f"an index does not fit the {out.ndim - 1} axes behind the batch")
                picked = out[(torch.arange(len(out), device=out.device), *places.to(out.device).unbind(1))]
        except (IndexError, ValueError) as e:
            raise TargetError(
                f"Cannot choose target column with output shape {tuple(out.shape)} and target {self.target!r}: {e}"
            ) from None
        return picked


@dataclass(frozen=True, eq=False)
class Probability(Output):
    """The softmax of class scores [N, K], at a target: the probability of a class.

    >>> Probability(1).value(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.arange(2))
    tensor([0.5000, 0.7311])
    """

    def part(self, out: Any, rows: Tensor) -> Any:
        return super().part(tensor_output(out, rows).softmax(1), rows)


@dataclass(frozen=True, eq=False)
class Predicted(Output):
    """Whether class scores [N, K] are greatest at a target, 1 or 0: its mean is the accuracy.

    >>> Predicted(1).value(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.arange(2))
    tensor([0., 1.])
    """

    def part(self, out: Any, rows: Tensor) -> Any:
        scores = tensor_output(out, rows)
        if scores.ndim < 2:
            raise OutputError(
                f"there is no greatest of one score a row: class scores are [N, K], got {tuple(scores.shape)}"
            )
        return super().part(torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1), rows)


@dataclass(frozen=True, eq=False)
class Part(Output):
    """What a target leaves of each row, one number or several [N, ...]: for methods that need values only."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        part = tensor_output(self.part(out, rows), rows)
        return one_each(part, rows) if part.numel() == len(rows) else part


@dataclass(frozen=True, eq=False)
class Each(Score):
    """Several outputs at once [N, T]: attributions gain an axis [B, T, ...], from one forward pass.

    Args:
        targets: what each of them is, as for :class:`Output`; None: every element of an output [N, K].
    """

    targets: Sequence[Any] | None = None

    def fits(self, examples: int) -> None:
        for t in self.targets or ():
            Output(t).fits(examples)

    def made(self, out: Any) -> Any:
        return Made([Output(t).made(out) for t in self.targets]) if self.targets else out

    def value(self, out: Any, rows: Tensor) -> Tensor:
        if self.targets is None:
            return flat(tensor_output(out, rows))
        if not self.targets:
            raise TargetError("Each needs at least one target, got none; None means every output")
        parts = out.parts if isinstance(out, Made) else [out] * len(self.targets)
        return torch.stack([Output(t).value(p, rows) for t, p in zip(self.targets, parts, strict=True)], 1)

    def apart(self, count: int) -> list[Output]:
        """The same scores, all ``count`` of them, one by one."""
        if self.targets is not None:
            return [Output(t) for t in self.targets]
        return [Output(partial(_element, i=i)) for i in range(count)]


def _element(out: Tensor, i: int) -> Tensor:
    return flat(out)[:, i]


@dataclass(frozen=True, eq=False)
class Everything(Score):
    """Each row's whole output, as it is [N, ...]: for methods that need values only."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return tensor_output(out, rows)


@dataclass(frozen=True, eq=False)
class Neuron(Score):
    """One unit of a layer, or the sum over several: an int, a tuple of ints and slices behind the
    batch axis, or a function from the layer's value to one number per row [N].
    """

    layer: Layer
    selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor]

    @property
    def tap(self) -> Layer:
        return self.layer

    def made(self, out: Any) -> Any:
        return Made(self.selector(out[0] if len(out) == 1 else out)) if callable(self.selector) else out

    def value(self, out: Any, rows: Tensor) -> Tensor:
        if callable(self.selector):
            return one_each((out if isinstance(out, Made) else self.made(out)).parts, rows)
        here, i = out[0], self.selector if isinstance(self.selector, tuple) else (self.selector,)
        if len(out) > 1:
            raise TargetError(
                f"neuron_selector {self.selector!r} does not say which of the {len(out)} tensors of the {self.layer} "
                "is meant; give a function, such as lambda tensors: tensors[0][:, 0]"
            )
        if len(i) != here.ndim - 1:
            raise TargetError(
                f"neuron_selector {self.selector!r} has {len(i)} indices, but the {self.layer} has "
                f"{here.ndim - 1} axes behind the batch: {tuple(here.shape[1:])}"
            )
        try:
            units: Tensor = here[(slice(None), *(v if isinstance(v, slice) else as_int(v) for v in i))]
            return flat(units).sum(1)
        except (IndexError, TypeError) as e:
            raise TargetError(f"neuron_selector {self.selector!r} does not fit {tuple(here.shape[1:])}: {e}") from None


def tensor_output(out: Any, rows: Tensor) -> Tensor:
    """``out`` itself, if it is a tensor with one row for each of ``rows``.

    Raises:
        OutputError: it is not.
    """
    if not isinstance(out, Tensor):
        told = f"a {type(out).__name__}" + (f" of {len(out)}" if isinstance(out, tuple | list) else "")
        way = "wrap it, for example: lambda x: model(x)[0]"
        if isinstance(out, Future):
            way = "a few methods have attribute_future for that; for others wait for it: lambda x: model(x).wait()"
        if isinstance(out, Mapping):
            way = f"wrap it, for example: lambda x: model(x)[{next(iter(out), 'logits')!r}]"
        raise OutputError(f"model must return one tensor, got {told}; {'return it' if out is None else way}")
    if out.ndim == 0 or len(out) != len(rows):
        raise OutputError(
            f"model must return one row per example, got shape {tuple(out.shape)} for {len(rows)} rows; "
            "the batch must come first"
        )
    return out


def one_each(value: Tensor, rows: Tensor) -> Tensor:
    """[N] from a tensor with one number per row.

    Raises:
        TargetError: there are more.
    """
    if not isinstance(value, Tensor) or value.numel() != len(rows):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            "Target not provided when necessary, cannot take gradient with respect to multiple outputs: "
            f"{len(rows)} rows gave {shape}; choose one number per row with target"
        )
    return value.reshape(len(rows))

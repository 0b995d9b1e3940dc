"""Sites: places of the computation whose value can be read and replaced."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .checks import ArgumentError
from .memory import eagerly
from .packing import Tensors

Call = Callable[[Tensors], Any]
"""The model as a function of its inputs alone."""


class Site(ABC):
    """Where a function's argument stands. Law: writing what was read changes nothing.

    ``late`` says that what is written replaces all that the model did before, where no path leads around the site;
    ``entry`` that it stands in the place of the inputs themselves, so that they are not looked at.
    """

    @property
    def entry(self) -> bool:
        return False

    @property
    def late(self) -> bool:
        return False

    @abstractmethod
    def read(self, call: Call, inputs: Tensors) -> Tensors:
        """What stands at the site when the model sees ``inputs``."""

    @abstractmethod
    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        """The model's output for ``inputs`` with ``z`` at the site; ``rows`` [N] names each row's example."""

    def follow(self, call: Call, inputs: Tensors) -> tuple[Tensors, Any]:
        """What stands at the site when the model sees ``inputs``, and the output with its graph from there."""
        raise TypeError(f"{type(self).__name__} has no value of its own to differentiate at")


@dataclass(frozen=True)
class Input(Site):
    """The model's own inputs."""

    entry = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return inputs

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(tuple(_copy(t) for t in z))

    def follow(self, call: Call, inputs: Tensors) -> tuple[Tensors, Any]:
        here, entering = _leaves(list(inputs))
        return tuple(here), call(tuple(entering))


@dataclass(frozen=True, eq=False)
class Given(Site):
    """Inputs that were made elsewhere, of any dtypes: its value is the number of one of them [N, 1].

    Args:
        inputs: M of them, [M, ...] each.
    """

    inputs: Tensors

    entry = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return (torch.zeros(len(inputs[0]), 1, dtype=torch.long, device=inputs[0].device),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(tuple(t[z[0].squeeze(1)] for t in self.inputs))


@dataclass(frozen=True, eq=False)
class Layer(Site):
    """What comes out of a module, or goes into it (``side="input"``).

    Args:
        module: the layer; its value may be a tensor or any nesting of tuples, lists and dicts of them.
        side: ``"output"`` or ``"input"`` (its positional arguments).
        call: which call of the module within one pass of the model, from 0. Needed only where the
            module is used more than once; None then raises rather than guesses.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"
    call: int | None = None

    late = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        with torch.no_grad(), self.watch() as seen:
            call(inputs)
        return tuple(t.detach() for t in seen.value)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        with self.put(z):
            return call(inputs)

    def follow(self, call: Call, inputs: Tensors) -> tuple[Tensors, Any]:
        with self.watch(leaves=True) as seen:
            out = call(inputs)
        return seen.value, out

    @contextmanager
    def put(self, z: Tensors) -> Iterator[None]:
        """Let ``z`` stand there during one call of the model."""

        def change(here: Any) -> Any:
            leaves, tree = tree_flatten(here)
            new = iter([t.clone() for t in z])
            return tree_unflatten([next(new) if isinstance(v, Tensor) else v for v in leaves], tree)

        with self._hooked(change):
            yield

    @contextmanager
    def watch(self, leaves: bool = False) -> Iterator["Seen"]:
        """Keep, with its graph, what passes by during one call of the model; as ``leaves``, a graph starts there."""
        seen = Seen()

        def keep(here: Any) -> Any:
            parts, tree = tree_flatten(here)
            kept, passed_on = _leaves(parts) if leaves else ([_copy(v) for v in parts], parts)
            seen.tensors = tuple(t for t in kept if isinstance(t, Tensor))
            if not seen.tensors:
                way = "; if its inputs come by keyword, take the output of the layer before" * (self.side == "input")
                raise TypeError(f"{self} passes no tensor there, but {type(here).__name__}{way}")
            return tree_unflatten(passed_on, tree)

        with self._hooked(keep):
            yield seen

    @contextmanager
    def _hooked(self, change: Callable[[Any], Any]) -> Iterator[None]:
        calls, owner = 0, threading.get_ident()

        def hook(_: nn.Module, args: Any, out: Any = None) -> Any:
            nonlocal calls
            if threading.get_ident() != owner:  # another thread uses the same model
                return None
            calls += 1
            if self.call is not None and calls - 1 != self.call:
                return None
            return change(args if self.side == "input" else out)

        on = self.module.register_forward_pre_hook if self.side == "input" else self.module.register_forward_hook
        handle = on(hook)
        try:
            with eagerly():  # what was compiled without the hook would pass it by
                yield
        finally:
            handle.remove()
        if calls == 0 or (self.call is not None and calls <= self.call):
            raise ArgumentError(
                f"{self} was called {calls} times while the model ran; choose a layer (and a call) it uses"
            )
        if calls > 1 and self.call is None:
            raise ArgumentError(f"{self} was called {calls} times in one pass; say which with Layer(module, call=0)")

    def __str__(self) -> str:
        return f"layer {type(self.module).__name__} ({self.side})"


@dataclass(frozen=True, eq=False)
class Together(Site):
    """Several layers as one site: their tensors, one layer's after the other's. Written at once, each in its place."""

    layers: tuple[Layer, ...]
    counts: list[int] = field(default_factory=list)  # tensors of each layer, known once it was read

    late = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return tuple(t.detach() for t in self._watched(call, inputs, leaves=False)[0])

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        with ExitStack() as all_of_them:
            for layer, part in zip(self.layers, self.apart(z), strict=True):
                all_of_them.enter_context(layer.put(part))
            return call(inputs)

    def follow(self, call: Call, inputs: Tensors) -> tuple[Tensors, Any]:
        return self._watched(call, inputs, leaves=True)

    def apart(self, tensors: Tensors) -> list[Tensors]:
        """The tensors of each layer."""
        rest = iter(tensors)
        return [tuple(islice(rest, n)) for n in self.counts]

    def _watched(self, call: Call, inputs: Tensors, leaves: bool) -> tuple[Tensors, Any]:
        with ExitStack() as all_of_them:
            seen = [all_of_them.enter_context(layer.watch(leaves)) for layer in self.layers]
            out = call(inputs)
        self.counts[:] = [len(s.value) for s in seen]
        return tuple(t for s in seen for t in s.value), out

    def __str__(self) -> str:
        return ", ".join(map(str, self.layers))


def _copy(v: Any) -> Any:
    return v.clone() if isinstance(v, Tensor) else v  # a model may work in place on what it is given


def _leaves(values: list[Any]) -> tuple[list[Any], list[Any]]:
    """``values`` with a graph that starts there unless they are part of one, and copies for the model to go on with.

    The very tensors may go around the site as well, and whatever happens to them there is no part of it.
    """

    def leaf(v: Any) -> Any:
        fresh = isinstance(v, Tensor) and v.is_floating_point() and not v.requires_grad
        return v.detach().clone().requires_grad_() if fresh else _copy(v)

    with torch._C.DisableTorchFunction():  # no operation of the model's
        here = [leaf(v) for v in values]
        return here, [_copy(v) for v in here]


@dataclass
class Seen:
    """What a site's watcher saw."""

    tensors: Tensors | None = None

    @property
    def value(self) -> Tensors:
        assert self.tensors is not None, "read before the model was called"
        return self.tensors

"""Sites: places of the computation whose value can be read and replaced."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .packing import Tensors

Call = Callable[[Tensors], Any]
"""The model as a function of its inputs alone."""


class Site(ABC):
    """Where a function's argument stands. Law: writing what was read changes nothing."""

    @abstractmethod
    def read(self, call: Call, inputs: Tensors) -> Tensors:
        """What stands at the site when the model sees ``inputs``."""

    @abstractmethod
    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        """The model's output for ``inputs`` with ``z`` at the site; ``rows`` [N] names each row's example."""


@dataclass(frozen=True)
class Input(Site):
    """The model's own inputs."""

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return inputs

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(tuple(t.clone() for t in z))  # a model may work in place on what it is given


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

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        with torch.no_grad(), self.watch() as seen:
            call(inputs)
        return tuple(t.detach() for t in seen.value)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        def put(here: Any) -> Any:
            leaves, tree = tree_flatten(here)
            new = iter([t.clone() for t in z])
            return tree_unflatten([next(new) if isinstance(v, Tensor) else v for v in leaves], tree)

        with self._hooked(put):
            return call(inputs)

    @contextmanager
    def watch(self) -> Iterator["Seen"]:
        """Keep, with its graph, what passes by during one call of the model."""
        seen = Seen()

        def keep(here: Any) -> Any:
            leaves, tree = tree_flatten(here)
            seen.tensors = tuple(t for t in leaves if isinstance(t, Tensor))
            if not seen.tensors:
                way = "; if its inputs come by keyword, take the output of the layer before" * (self.side == "input")
                raise TypeError(f"{self} passes no tensor there, but {type(here).__name__}{way}")
            return tree_unflatten([t.clone() if isinstance(t, Tensor) else t for t in leaves], tree)

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
            yield
        finally:
            handle.remove()
        if calls == 0 or (self.call is not None and calls <= self.call):
            raise ValueError(
                f"{self} was called {calls} times while the model ran; choose a layer (and a call) it uses"
            )
        if calls > 1 and self.call is None:
            raise ValueError(f"{self} was called {calls} times in one pass; say which with Layer(module, call=0)")

    def __str__(self) -> str:
        return f"layer {type(self.module).__name__} ({self.side})"


@dataclass
class Seen:
    """What a site's watcher saw."""

    tensors: Tensors | None = None

    @property
    def value(self) -> Tensors:
        assert self.tensors is not None, "read before the model was called"
        return self.tensors

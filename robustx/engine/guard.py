"""Guard: what robustx does with a model leaves no trace on it, nor on the process."""

import dis
import functools
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


class TrainModeError(ValueError):
    """A part of the model is in train mode, or normalises over the batch: rows would see one another, or draw."""


def modules_of(model: Any, depth: int = 3) -> list[nn.Module]:
    """The modules a callable is made of: itself, or what a method, partial, closure, object or collection refers to."""
    if isinstance(model, nn.Module):
        return [model]
    parts: Iterable[Any] = ()
    if isinstance(model, functools.partial):
        parts = (model.func, *model.args, *model.keywords.values())
    elif inspect.ismethod(model):
        parts = (model.__self__,)
    elif inspect.isfunction(model):
        loaded = {i.argval for i in dis.get_instructions(model) if i.opname == "LOAD_GLOBAL"}
        cells = inspect.getclosurevars(model).nonlocals.values()
        defaults = (*(model.__defaults__ or ()), *(model.__kwdefaults__ or {}).values())
        parts = (*(v for k, v in model.__globals__.items() if k in loaded), *cells, *defaults)
    elif isinstance(model, Mapping):
        parts = model.values()
    elif isinstance(model, list | tuple):
        parts = model
    elif callable(model) and not inspect.isclass(model):
        parts = getattr(model, "__dict__", {}).values()
    return list(dict.fromkeys(m for part in parts for m in modules_of(part, depth - 1))) if depth else []


@dataclass(eq=False)
class _Kept:
    """What a guard gives back: the random states, and of each buffer itself, a copy and its version."""

    thread: int
    states: tuple[Any, ...]
    buffers: dict[tuple[nn.Module, str], tuple[Tensor, Tensor, int] | None]


_OPEN: list[_Kept] = []
_LOCK = Lock()


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Gives a model's buffers and the global random state back as they were, also after an exception.

    Gradients of parameters are never computed and flags never set, so they need no saving; layers'
    hooks are removed where they are used. Works inside ``torch.inference_mode``, which is left meanwhile.
    Guards of several threads that overlap give back what was there before the first.

    Raises:
        TrainModeError: a batch norm or dropout layer is in train mode (rows would see one another, or
            results would be random).
    """
    modules = modules_of(model)
    for m in modules:
        _refuse_train_mode(m)
    with torch.inference_mode(False):
        with _LOCK:
            kept = _keep(modules)
            _OPEN.append(kept)
        try:
            yield
        finally:
            with _LOCK:
                _OPEN.remove(kept)
                _give_back(kept)


def _keep(modules: list[nn.Module]) -> _Kept:
    thread = get_ident()
    others = [k for k in _OPEN if k.thread != thread]  # these may have changed what stands there now
    kept = _Kept(thread, others[0].states if others else _states(), {})
    for owner in (part for m in modules for part in m.modules()):
        for name, b in owner._buffers.items():
            before = [k.buffers[owner, name] for k in others if (owner, name) in k.buffers]
            now = None if b is None else (b, b.detach().clone(), version(b))
            kept.buffers[owner, name] = before[0] if before else now
    return kept


def _states() -> tuple[Any, ...]:
    """Of the global generators."""
    on_gpu = torch.cuda.is_available() and torch.cuda._initialized
    cuda = torch.cuda.get_rng_state_all() if on_gpu else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _go_to(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


class Turns:
    """The global generators, for draws that take turns with a model: they go on where the last one left off.

    Made before a guard that would give them back as they were; left behind it, so that the next call draws on.
    """

    def __init__(self) -> None:
        self._states, self._drawn = _states(), False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What is drawn meanwhile does not move what the model draws."""
        elsewhere = _states()
        _go_to(self._states)
        try:
            yield
        finally:
            self._states, self._drawn = _states(), True
            _go_to(elsewhere)

    def leave(self) -> None:
        """Leaves the generators where the last draw did, if there was one."""
        if self._drawn:
            _go_to(self._states)


def _give_back(kept: _Kept) -> None:
    _go_to(kept.states)
    for (owner, name), of in kept.buffers.items():
        owner._buffers[name] = of and of[0]
        if of is not None and _changed(*of):
            with torch.no_grad():
                of[0].copy_(of[1])


@contextmanager
def undrawn_on_error() -> Iterator[None]:
    """Gives the global random state back as it was if what is done meanwhile fails."""
    with _LOCK:
        kept = _keep([])
    try:
        yield
    except BaseException:
        with _LOCK:
            _give_back(kept)
        raise


class Shared:
    """A setting of the whole process that threads may change at once: the first does, and the last gives it back.

    Args:
        change: changes it where it is entered.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self.change, self.count, self.lock, self.held = change, 0, Lock(), ExitStack()

    @contextmanager
    def on(self) -> Iterator[None]:
        with self.lock:
            if not self.count:
                self.held.enter_context(self.change())
            self.count += 1
        try:
            yield
        finally:
            with self.lock:
                self.count -= 1
                if not self.count:
                    self.held.close()


def guarded(method: Callable[P, R]) -> Callable[P, R]:
    """Runs a method of an object with a ``forward_func`` under :func:`untouched`."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with untouched(args[0].forward_func):  # type: ignore[attr-defined]  # self
            return method(*args, **kwargs)

    return run


def ordinary(value: Any) -> Any:
    """``value`` with every tensor cut from its graph and, if need be, made usable outside inference mode."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_inference() else value.detach()
    if isinstance(value, Mapping):
        return {k: ordinary(v) for k, v in value.items()}
    if type(value) is tuple or type(value) is list:
        return type(value)(ordinary(v) for v in value)
    return value


def version(t: Tensor) -> int:
    """How many times a tensor was written in place, as far as it tells."""
    return -1 if t.is_inference() else t._version


def _changed(t: Tensor, copy: Tensor, version: int) -> bool:
    # writing through .data leaves the version as it was; tensors of inference mode cannot be written at all
    return not t.is_inference() and (t._version != version or not torch.equal(t, copy))


def _refuse_train_mode(model: nn.Module) -> None:
    for name, m in model.named_modules():
        who = f"{type(m).__name__} {name or '(the model itself)'!r}"
        mixes = isinstance(m, nn.modules.batchnorm._BatchNorm)
        if m.training and (mixes or _noisy(m)):
            what = "rows of a batch would see one another" if mixes else "results would be random"
            raise TrainModeError(f"model is in train mode: {who} is training, so {what}; call model.eval() first")
        if mixes and m.running_mean is None:
            raise TrainModeError(
                f"model normalises over the batch: {who} keeps no running statistics, so rows of a batch would see one "
                "another; use track_running_stats=True, or a norm within each example"
            )


def _noisy(m: nn.Module) -> bool:
    """Whether a module draws at random in train mode."""
    if isinstance(m, nn.modules.dropout._DropoutNd):
        return m.p > 0
    return isinstance(m, nn.RReLU) or (isinstance(m, nn.RNNBase | nn.MultiheadAttention) and m.dropout > 0)

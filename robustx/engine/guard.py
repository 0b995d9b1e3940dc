"""Guard: what robustx does with a model leaves no trace on it, nor on the process."""

import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def modules_of(model: Any) -> list[nn.Module]:
    """The modules a callable is made of: itself, or what a method, partial or closure refers to."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        return [m for part in (model.func, *model.args, *model.keywords.values()) for m in modules_of(part)]
    if inspect.ismethod(model):
        return modules_of(model.__self__)
    if inspect.isfunction(model):
        used = inspect.getclosurevars(model)
        return [v for v in {**used.globals, **used.nonlocals}.values() if isinstance(v, nn.Module)]
    return []


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Gives a model's buffers and the global random state back as they were, also after an exception.

    Gradients of parameters are never computed and flags never set, so they need no saving; layers'
    hooks are removed where they are used. Works inside ``torch.inference_mode``, which is left meanwhile.

    Raises:
        ValueError: a batch norm or dropout layer is in train mode (rows would see one another, or
            results would be random).
    """
    modules = modules_of(model)
    for m in modules:
        _refuse_train_mode(m)
    owners = [(owner, name, b) for m in modules for owner in m.modules() for name, b in owner._buffers.items()]
    with torch.inference_mode(False):
        kept = [(*o, None if o[2] is None else (o[2].detach().clone(), _version(o[2]))) for o in owners]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda._initialized else None
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            if on_gpu is not None:
                torch.cuda.set_rng_state_all(on_gpu)
            for owner, name, buffer, copy in kept:
                owner._buffers[name] = buffer
                if buffer is not None and copy is not None and _version(buffer) != copy[1]:
                    with torch.no_grad():
                        buffer.copy_(copy[0])


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


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _refuse_train_mode(model: nn.Module) -> None:
    for name, m in model.named_modules():
        noisy = isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
        if m.training and (noisy or isinstance(m, nn.modules.batchnorm._NormBase)):
            what = "results would be random" if noisy else "rows of a batch would see one another"
            raise ValueError(
                f"model is in train mode: {type(m).__name__} {name or '(the model itself)'!r} is training, so {what}; "
                "call model.eval() first"
            )

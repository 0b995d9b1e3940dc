"""Rules: other ways for a gradient to pass an operation.

A rule belongs to an operation, not to a module: ``F.relu``, ``x.relu_()``, a module's call and the third call of the
same module are all one operation to :class:`Ruled`, a mode that sees every one of them while the model runs.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import Signature, signature
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .guard import modules_of
from .memory import eagerly
from .packing import Tensors

Again = Callable[[Tensors, Tensor], Tensor]
"""Runs the model once more: (inputs, rows) -> what stands at the site, packed [n, L]."""


class RuleError(ValueError, TypeError):
    """The model holds something that the rules say nothing about. Also a TypeError, as raised by Captum's LRP."""


class Rules(ABC):
    """How gradients pass the operations of a model: what :meth:`robustx.engine.Probe.locals` runs it under."""

    @abstractmethod
    def forward(self, run: Callable[[], Any], again: Again, rows: Tensor) -> Any:
        """``run()`` under the rules; ``again`` runs the model on other inputs, such as references."""

    def backward(self, slope: Callable[..., Tensor], here: Tensor, rows: Tensor) -> Tensor:
        """What is made of ``slope()``, the gradient under the rules [n, L]; ``here`` [n, L] stands at the site.

        ``slope(pull)`` is that of another number than the score.
        """
        return slope()

    def forget(self) -> None:  # noqa: B027  # most remember nothing
        """Called after each pass, however it ended: let go of what it was remembered by."""


@dataclass(eq=False)
class Op:
    """One operation in one pass of the model; ``op(*tensors)`` does it again with other tensors in their places.

    Args:
        name: without underscores: ``relu`` for ``F.relu``, ``torch.relu_`` and ``Tensor.relu``.
        func: does it, and nothing in place.
        args, kwargs: all arguments.
        tensors: the floating-point ones among them, cut from the graph and safe from later changes.
        needs: which of these depend on the site.
        order: how many operations with a rule came before it in this pass.
        owner: what was said of the module it belongs to, see :meth:`Ruled.inside`.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: Tensors
    needs: tuple[bool, ...]
    order: int
    owner: Any = None

    def __call__(self, *tensors: Tensor) -> Any:
        args, kwargs = _replaced((self.args, self.kwargs), tensors)
        return self.func(*args, **kwargs)

    @property
    def all_tensors(self) -> Tensors:
        """Also those that are no numbers on the way, such as masks."""
        return tuple(tensors_in((self.args, self.kwargs)))

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument, by its place or its name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def pull_back(self, g: Tensor, tensors: Tensors | None = None, instead: Callable[..., Any] | None = None) -> "Back":
        """The plain gradient of what depends on the site; at other tensors, or of another function, if asked."""
        with torch.enable_grad():
            at = [t.detach().requires_grad_(n) for t, n in zip(tensors or self.tensors, self.needs, strict=True)]
            out = (instead or self)(*at)
            to = [t for t, n in zip(at, self.needs, strict=True) if n]
            grads = iter(torch.autograd.grad(out if isinstance(out, Tensor) else out[0], to, g))
        return tuple(next(grads) if n else None for n in self.needs)


Back = tuple[Tensor | None, ...]
Rule = Callable[[Op, Tensor], Back]
"""(operation, gradient of its output) -> what arrives at each of ``op.tensors``, None where nothing depends."""


class _Passing(torch.autograd.Function):
    """An operation's output, with a rule for the way back."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, op: Op, *moving: Tensor | None) -> Any:
        ctx.rule, ctx.op = rule, op
        out = op(*op.tensors)
        if isinstance(out, Tensor):
            return out
        ctx.mark_non_differentiable(*out[1:])  # where the values come from
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *ctx.rule(ctx.op, grads[0])


class Ruled(TorchFunctionMode):
    """While it is on, operations in ``rules`` pass gradients by their rule, and composite ones are looked into.

    Parameters count as constants: what requires a gradient meanwhile depends on the site.

    Args:
        rules: name of an operation -> its rule.
        joint: those whose rule matters only where several of their tensors depend on the site.
        parts: name of an operation -> the same, written in simpler ones.
        plain: names of operations whose gradient is right as it is; None: all others.
        otherwise: what holds for operations that nothing is said about: ``"error"``, or ``"gradient"`` for their own.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        joint: frozenset[str] = frozenset(),
        parts: Mapping[str, Callable[..., Any]] | None = None,
        plain: frozenset[str] | None = None,
        otherwise: str = "gradient",
    ) -> None:
        super().__init__()
        self.rules, self.joint, self.parts, self.plain = rules, joint, parts or {}, plain
        self.otherwise = resort(otherwise)
        self.seen = self._since = 0
        self.owners: list[Any] = []
        self._open: list[Any] = []

    def moves(self, t: Tensor) -> bool:
        """Whether a tensor depends on the site: parameters, and what was made of them before the pass, do not."""
        return t.requires_grad and t.grad_fn is not None and t.grad_fn._sequence_nr() >= self._since

    def cut(self, arguments: Any) -> Any:
        """Arguments whose constants are cut from their graphs."""
        return mapped(lambda t: t.detach() if t.requires_grad and not self.moves(t) else t, arguments)

    def met(self, op: Op) -> None:
        """Told of each operation that passes gradients by a rule, in order."""

    def passed(self, name: str, order: int, tensors: Tensors) -> None:
        """Told of each operation with a rule that does not depend on the site, in order, with all its tensors."""

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        """Told of each operation that is no composite one, with what went in and what came out."""

    def do(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Does an operation that is no composite one and passes gradients by no rule."""
        return func(*args, **kwargs)

    def refusal(self, name: str) -> Exception:
        """What is raised for an operation that nothing is said about."""
        return RuleError(
            f"there is no rule for the operation {name!r}; replace it, attribute to a layer behind it, or let its "
            "plain gradient pass with otherwise='gradient'"
        )

    @contextmanager
    def over(self, model: Any) -> Iterator[None]:
        """The mode, for one call of a model; compiled ones run as they are written, for what is fused shows nothing.

        Raises:
            RuleError: part of the model is TorchScript, which shows nothing either.
        """
        for m in (part for whole in modules_of(model) for part in whole.modules()):
            if isinstance(m, torch.jit.ScriptModule):
                raise RuleError(
                    f"{type(m).__name__} is TorchScript, whose operations are hidden; use the model it came from"
                )
        self._since = torch._C._autograd._get_sequence_nr()  # of operations yet to come
        with eagerly(), self:
            yield

    @contextmanager
    def inside(self, owners: Mapping[nn.Module, Any]) -> Iterator[None]:
        """Operations inside a module belong to what is said of it, the innermost that is spoken of."""
        me = threading.get_ident()  # another thread may use the same model

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == me:
                self.owners.append(owners[module])

        def leave(*_: Any) -> None:
            if threading.get_ident() == me:
                self.owners.pop()

        handles = [h for m in owners for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
        try:
            yield
        finally:
            for h in handles:
                h.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        if name in ASIDE:
            return func(*args, **kwargs)
        if name in self.parts:
            _, *given, into = pure(func, args, kwargs)
            try:
                with self:
                    return _into(into, self.parts[name](*given[0], **given[1]))
            except RuleError:
                if self.otherwise == "error":
                    raise
        if name in self.rules:
            out = self._ruled(name, func, args, kwargs)
            self.ran(name, (args, kwargs), out)
            return out
        if isinstance(func, FunctionType) and func not in self._open and name not in (self.plain or ()):
            self._open.append(func)  # a gate may stand further inside than the function that is named
            try:
                with self:
                    return _opened(func)(*args, **kwargs)
            finally:
                self._open.pop()
        args, kwargs = self.cut((args, kwargs))
        out = self.do(name, func, args, kwargs)
        known = self.otherwise == "gradient" or self.plain is None or name in self.plain
        if not known and any(t.requires_grad for t in tensors_in(out)):
            raise self.refusal(name)
        self.ran(name, (args, kwargs), out)
        return out

    def _ruled(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        found = tuple(tensors_in((args, kwargs)))
        tensors = tuple(t for t in found if t.is_floating_point())
        needs = tuple(map(self.moves, tensors))
        order, self.seen = self.seen, self.seen + 1
        if sum(needs) <= (name in self.joint):
            self.passed(name, order, found)
            args, kwargs = self.cut((args, kwargs))
            return self.do(name, func, args, kwargs)
        func, args, kwargs, into = pure(func, args, kwargs)
        kept = tuple(t.detach() if isinstance(t, nn.Parameter) else t.detach().clone() for t in tensors)
        args, kwargs = _replaced((args, kwargs), kept)
        op = Op(name, func, args, kwargs, kept, needs, order, self.owners[-1] if self.owners else None)
        self.met(op)
        moving = (t if n else None for t, n in zip(tensors, needs, strict=True))
        out = _Passing.apply(self.rules[name], op, *moving)
        if isinstance(out, tuple):
            out = getattr(torch.return_types, name, tuple)(out)  # such as out.values
        return _into(into, out)


def resort(otherwise: str) -> str:
    """What holds for operations that nothing is said about.

    Raises:
        ValueError: it is neither.
    """
    if otherwise not in ("error", "gradient"):
        raise ValueError(f"otherwise must be 'error' or 'gradient', got {otherwise!r}")
    return otherwise


def known(out: Any) -> None:
    """Raises RuleError if a gradient would pass a function of the user's own, which no mode sees, on its way back."""
    todo = [t.grad_fn for t in tree_leaves(out) if isinstance(t, Tensor) and t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if isinstance(node, BackwardCFunction) and not isinstance(node, _Passing._backward_cls):
            raise RuleError(
                f"there is no rule for {type(node).__name__.removesuffix('Backward')!r}, an autograd function of the "
                "model's own; let its plain gradient pass with otherwise='gradient'"
            )
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        todo += new


ASIDE = frozenset(
    ["register_hook", "register_post_accumulate_grad_hook", "retain_grad", "len", "dim", "size", "stride", "numel"]
    + ["is_floating_point", "is_complex", "is_contiguous"]
    + [f"get {name}" for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_nested", "is_cuda")]
)
"""What a model may ask of its tensors that is no operation."""

_ALIASES = {
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "absolute": "abs",
    "clip": "clamp",
    "expit": "sigmoid",
    "negative": "neg",
    "truediv": "div",
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
}


@cache
def name_of(func: Any) -> str:
    """One name for all ways to write an operation: ``relu`` for ``F.relu``, ``torch.relu_``, ``Tensor.relu``."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # an attribute, such as x.T
        return f"get {func.__self__.__name__}"
    name = name.partition(".")[0].strip("_").removeprefix("special_")  # relu_.default, __pow__
    return _ALIASES.get(name, name)


@cache
def _inplace(func: Any) -> Signature | None:
    """The signature of a function that may be asked to work in place."""
    return signature(func) if isinstance(func, FunctionType) and "inplace" in func.__code__.co_varnames else None


def pure(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any], Tensor | None]:
    """An operation that works on nothing in place, its arguments, and the tensor that its result belongs into."""
    if asked := _inplace(func):
        bound = asked.bind(*args, **kwargs)
        inplace = bound.arguments.pop("inplace", False)
        return func, bound.args, bound.kwargs, bound.args[0] if inplace else None
    name = getattr(func, "__name__", "").partition(".")[0]
    if name.endswith("_") and not name.startswith("_"):
        for home in (torch.Tensor, torch, F):
            if pure := getattr(home, name[:-1], None):
                return pure, args, kwargs, args[0]
    return func, args, kwargs, None


def _into(place: Tensor | None, out: Any) -> Any:
    return out if place is None else place.copy_(out)


@cache
def _opened(func: FunctionType) -> Callable[..., Any]:
    """A composite function that shows its parts: without the gate that takes it as a whole."""
    if hasattr(func, "__wrapped__"):
        return func.__wrapped__  # type: ignore[no-any-return]
    shut = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    opened = FunctionType(
        func.__code__, {**func.__globals__, **shut}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among arguments, or in what an operation returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [t for v in value for t in tensors_in(v)]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Arguments with other tensors in the places of theirs."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [mapped(change, v) for v in value]
    if isinstance(value, tuple):
        return tuple([mapped(change, v) for v in value])
    return {k: mapped(change, v) for k, v in value.items()} if isinstance(value, dict) else value


def _replaced(arguments: Any, tensors: Tensors) -> Any:
    new = iter(tensors)
    return mapped(lambda t: next(new) if t.is_floating_point() else t, arguments)

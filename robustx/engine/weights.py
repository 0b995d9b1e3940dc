"""Weights: the gradients of each example's score with respect to a model's parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from math import prod
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .checks import ArgumentError, ArgumentTypeError
from .memory import out_of_memory
from .packing import flat
from .probe import Probe
from .rules import Ruled, RuleError, mapped, tensors_in

_ALIKE = 1e-2  # what a wrong reading of an operation is off by is of the size of the gradient itself


@dataclass(frozen=True, eq=False)
class Dense:
    """Gradients of each example with respect to one parameter, written out: ``rows`` [n, P]."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def dense(self) -> Tensor:
        """[n, P]."""
        return self.rows

    def square(self) -> Tensor:
        """The squared length of each gradient [n]."""
        return self.rows.square().sum(1)

    def sum(self) -> Tensor:
        """[P]."""
        return self.rows.sum(0)

    def compact(self) -> "Block":
        """The same in the form that holds fewer numbers."""
        return self


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients of each example as sums of outer products, what a linear map or a convolution has.

    With T places (positions, calls) and G groups, example i's is ``sum over t of g[i, :, t] (x) a[i, :, t]``: lengths
    and products follow from the factors, so that nothing of the parameter's size is written for any example (the
    "ghost" norm; Goodfellow, 2015, arXiv:1510.01799; Bu et al., NeurIPS 2022, for convolutions).

    Args:
        a: what entered the operation [n, G, T, I].
        g: the gradient where it left [n, G, T, O].
    """

    a: Tensor
    g: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def dense(self) -> Tensor:
        """[n, G * O * I], in the order of the parameter's own elements."""
        return (self.g.mT @ self.a).flatten(1)

    def square(self) -> Tensor:
        """The squared length of each gradient [n]."""
        _, _, t, i = self.a.shape
        o = self.g.shape[3]
        if t * (i + o) > i * o:
            return Dense(self.dense()).square()
        return ((self.a @ self.a.mT) * (self.g @ self.g.mT)).sum((1, 2, 3))

    def sum(self) -> Tensor:
        """[G * O * I]."""
        a, g = (f.transpose(0, 1).flatten(1, 2) for f in (self.a, self.g))
        return (g.mT @ a).flatten()

    def compact(self) -> "Block":
        """The same in the form that holds fewer numbers."""
        _, _, t, i = self.a.shape
        o = self.g.shape[3]
        return self if t * (i + o) < i * o else Dense(self.dense())


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients of each example with respect to a table of V rows of which it read T, what an embedding has.

    Args:
        ids: the rows that were read [n, T].
        g: the gradient where each was handed on [n, T, D].
        table: V.
    """

    ids: Tensor
    g: Tensor
    table: int

    def __len__(self) -> int:
        return len(self.ids)

    def dense(self) -> Tensor:
        """[n, V * D]."""
        zero = self.g.new_zeros(len(self), self.table, self.g.shape[2])
        return zero.scatter_add_(1, self.ids[..., None].expand_as(self.g), self.g).flatten(1)

    def square(self) -> Tensor:
        """The squared length of each gradient [n]."""
        same = self.ids[:, :, None] == self.ids[:, None]
        return ((self.g @ self.g.mT) * same).sum((1, 2))

    def sum(self) -> Tensor:
        """[V * D]."""
        zero = self.g.new_zeros(self.table, self.g.shape[2])
        return zero.index_add_(0, self.ids.flatten(), self.g.flatten(0, 1)).flatten()

    def compact(self) -> "Block":
        """The same in the form that holds fewer numbers."""
        t, d = self.g.shape[1:]
        return self if t * (d + 1) < self.table * d else Dense(self.dense())


Block = Dense | Outer | Rows
"""The gradients of some examples with respect to one parameter."""


def dot(one: Block, two: Block) -> Tensor:
    """The inner products of all gradients of one block with all of another of the same parameter [n, m]."""
    if isinstance(one, Outer) and isinstance(two, Outer):
        (n, _, t, i), (m, _, s, _), o = one.a.shape, two.a.shape, one.g.shape[3]
        if n * m * t * s * (i + o) <= (n * t + m * s + n * m) * i * o:
            a, g = (_grams(p, q) for p, q in ((one.a, two.a), (one.g, two.g)))
            return (a * g).sum((0, 2, 4))
    if isinstance(one, Rows) and isinstance(two, Rows):
        same = one.ids[:, :, None, None] == two.ids
        return (_grams(one.g[:, None], two.g[:, None])[0] * same).sum((1, 3))
    if isinstance(one, Rows):
        return dot(two, one).T
    if isinstance(two, Rows):
        tables = one.dense().unflatten(1, (two.table, -1))  # [n, V, D]
        return torch.stack([(t[two.ids] * two.g).sum((1, 2)) for t in tables])
    return one.dense() @ two.dense().T


def _grams(p: Tensor, q: Tensor) -> Tensor:
    """[n, G, T, D] and [m, G, S, D] -> [G, n, T, m, S]."""
    p, q = p.transpose(0, 1), q.transpose(0, 1)
    return (p.flatten(1, 2) @ q.flatten(1, 2).mT).reshape(*p.shape[:3], *q.shape[1:3])


RUNS, TURNS = -1, -2  # of rows [n * T] those of an example stand together, or take turns with those of others


def _by_example(t: Tensor, axis: int, n: int) -> Tensor:
    """With the examples along the first axis [n, ...]."""
    if axis == RUNS:
        return t.reshape(n, -1, *t.shape[1:])
    return t.reshape(-1, n, *t.shape[1:]).transpose(0, 1) if axis == TURNS else t.movedim(axis, 0)


@dataclass(eq=False)
class Use:
    """One operation of a pass that used parameters in a way whose gradients are known.

    Args:
        op: the operation's name, one of those in ``_FORMS``.
        func, args, kwargs: the operation itself.
        names: the parameters' places among all tensors of the arguments.
        x: what entered.
        sign: what must be the same in every pass for the examples' axis to be known.
        n: how many examples there are.
        axis: which axis of what entered, and of what left, counts them, as far as is known; RUNS or TURNS if they share
            the first one with other things.
        compact: whether blocks are to be compact.
        g: the gradient where it left, kept until the axis is known.
        owed: what each parameter owes to this use; nothing if the scores do not depend on it.
    """

    op: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: dict[int, str]
    x: Tensor
    sign: tuple[Any, ...]
    n: int
    axis: int | None = None
    compact: bool = False
    g: Tensor | None = None
    owed: dict[str, Block] = field(default_factory=dict)

    def blocks(self) -> dict[str, Block]:
        """What each parameter owes to this use, as far as is known."""
        if self.axis is None or self.g is None:
            return {}
        x, g = (_by_example(t, self.axis, self.n) for t in (self.x.detach(), self.g))
        return {name: b.compact() if self.compact else b for name, b in _FORMS[self.op](self, x, g).items()}

    def settle(self) -> None:
        """Lets go of what the blocks were made of: on the way back, as early as can be."""
        if self.axis is not None and self.g is not None:
            self.owed = self.blocks()
            self.args, self.kwargs, self.x, self.g = (), {}, self.x.new_empty(0), None

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


Form = Callable[[Use, Tensor, Tensor], dict[str, Block]]


def _linear(use: Use, x: Tensor, g: Tensor) -> dict[str, Block]:
    a, g = (t.reshape(len(t), 1, -1, t.shape[-1]) for t in (x, g))
    return _affine(use, a, g)


def _product(use: Use, x: Tensor, g: Tensor) -> dict[str, Block]:
    """Of a weight [I, O] that stands behind what enters, and of an offset."""
    x, g = (t.reshape(len(t), 1, -1, t.shape[-1]) for t in (x, g))
    behind = max(place for place in (1, 2) if place in use.names or place == 1)
    found: dict[str, Block] = {}
    for place, name in use.names.items():
        found[name] = Outer(g, x) if place == behind else Dense(g.sum(2).flatten(1))
    return found


def _expanded(use: Use, _: Tensor, g: Tensor) -> dict[str, Block]:
    """A parameter [1, ...] that every row gets a copy of."""
    return {use.names[0]: Dense(g.flatten(1))}


def _affine(use: Use, a: Tensor, g: Tensor) -> dict[str, Block]:
    """Of a weight, by its outer products, and of a bias behind it."""
    found: dict[str, Block] = {}
    for place, name in use.names.items():
        found[name] = Outer(a, g) if place == 1 else Dense(g.sum(2).flatten(1))
    return found


def _convolution(use: Use, x: Tensor, g: Tensor) -> dict[str, Block]:
    """A convolution is a linear map of each of its windows."""
    weight: Tensor = use.argument(1, "weight")
    axes = weight.ndim - 2
    stride, padding, dilation = (
        _each(use.argument(p, n, d), axes) for p, n, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    groups, kernel = use.argument(6, "groups", 1), weight.shape[2:]
    x = nn.functional.pad(x, _margins(padding, kernel, dilation))
    outside = g.shape[2:]
    steps = x.stride()[2:]
    windows = x.as_strided(
        (*x.shape[:2], *kernel, *outside),
        (*x.stride()[:2], *map(mul, steps, dilation), *map(mul, steps, stride)),
    )
    a = windows.reshape(len(x), groups, -1, prod(outside))
    return _affine(use, a.mT, g.reshape(len(g), groups, -1, prod(outside)).mT)


def _each(value: Any, axes: int) -> Any:
    """A setting of a convolution for each of its axes."""
    if isinstance(value, int | str):
        return (value,) * axes
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def _margins(padding: Sequence[Any], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What is put around each axis, the last one first, as :func:`torch.nn.functional.pad` takes it."""
    margins: list[int] = []
    for p, k, d in zip(reversed(padding), reversed(kernel), reversed(dilation), strict=True):
        whole = d * (k - 1) if p == "same" else 0
        margins += [whole // 2, whole - whole // 2] if isinstance(p, str) else [p, p]
    return margins


def _embedding(use: Use, x: Tensor, g: Tensor) -> dict[str, Block]:
    weight: Tensor = use.args[0]
    ids, g = x.reshape(len(x), -1), g.reshape(len(x), -1, weight.shape[1])
    padding = use.argument(2, "padding_idx", -1)
    if padding is not None and padding >= 0:  # it is never learned
        g = g * (ids != padding)[..., None]
    return {use.names[0]: Rows(ids, g, len(weight))}


def _small(use: Use, x: Tensor, g: Tensor) -> dict[str, Block]:
    """An operation that meets its parameters in the same way in every row: its own gradient, row by row."""
    given = (use.args, use.kwargs)
    found = tensors_in(given)
    weights = {name: found[place] for place, name in use.names.items()}

    place = next(i for i, t in enumerate(found) if t is use.x)

    def out(x: Tensor, weights: dict[str, Tensor]) -> Any:
        new = [weights[use.names[i]] if i in use.names else x[None] if i == place else t for i, t in enumerate(found)]
        turn = iter(new)
        args, kwargs = mapped(lambda _: next(turn), given)
        return use.func(*args, **kwargs)[0]

    return _own(lambda own: (vmap(out)(x, own) * g).sum(), weights, len(x))


def _own(score: Callable[[dict[str, Tensor]], Tensor], weights: dict[str, Tensor], n: int) -> dict[str, Block]:
    """The gradient of the sum of scores of n rows, with respect to parameters that each row has for itself."""
    with torch.enable_grad():
        own = {name: p.detach().expand(n, *p.shape).requires_grad_() for name, p in weights.items()}
        grads = torch.autograd.grad(score(own), list(own.values()), allow_unused=True)
    found = (torch.zeros_like(p) if t is None else t for t, p in zip(grads, own.values(), strict=True))
    return {name: Dense(flat(rows)) for name, rows in zip(own, found, strict=True)}


_NORMS = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "prelu")
_FORMS: dict[str, Form] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(_NORMS, _small),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _small),
    **dict.fromkeys(("add", "sub", "mul", "div"), _small),
    **dict.fromkeys(("addmm", "mm", "matmul"), _product),
    "embedding": _embedding,
    "expand": _expanded,
}
_ROWWISE = (
    "linear",
    "addmm",
    "mm",
    "matmul",
    "embedding",
    "layer_norm",
    "rms_norm",
)  # the batch may be any axis, or part
_PRODUCTS = {"addmm": (1, 2), "mm": (0, 1), "matmul": (0, 1)}  # the places of what enters and of the weight
_BROADCAST = ("add", "sub", "mul", "div")


class _Watch(Ruled):
    """Notes what a pass uses parameters for; with an ``anchor`` also the gradient where each operation leaves.

    The parameters themselves need no gradients: nothing of them is computed on the way back.
    """

    def __init__(
        self, parameters: dict[str, Tensor], anchor: Tensor, n: int, plan: "_Plan | None", compact: bool
    ) -> None:
        super().__init__({})
        self.named = {id(p): name for name, p in parameters.items()}
        self.anchor, self.n, self.plan, self.compact = anchor, n, plan, compact
        self.uses: list[Use] = []
        self.others: set[str] = set()

    def do(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        found = tensors_in((args, kwargs))
        names = {i: self.named[id(t)] for i, t in enumerate(found) if id(t) in self.named}
        out = func(*args, **kwargs)
        if not names or not tensors_in(out):
            return out
        x = (
            self._entry(name, found, names, out, (args, kwargs))
            if isinstance(out, Tensor) and not _writes(func)
            else None
        )
        if x is None or len(set(names.values())) < len(names):
            self.others |= set(names.values())
            return out
        use = Use(
            name, func, args, kwargs, names, x, (name, tuple(names.items()), x.ndim), self.n, compact=self.compact
        )
        if self.plan is not None:
            use.axis = self.plan.axis(len(self.uses), use)
        self.uses.append(use)
        wanted = torch.is_grad_enabled() and (self.plan is None or use.axis is not None)
        if not wanted:
            return out
        return _Tap.apply(out.clone() if out._is_view() else out, self.anchor, x, use)  # a view's base would be marked

    def _entry(
        self, name: str, found: list[Tensor], names: dict[int, str], out: Tensor, given: tuple[Any, dict[str, Any]]
    ) -> Tensor | None:
        """What enters an operation whose gradients are known, if this is one."""
        if name not in _FORMS:
            return None
        args, kwargs = given
        if name == "embedding":
            counted = args[3] if len(args) > 3 else kwargs.get("scale_grad_by_freq", False)  # over the batch
            return found[1] if list(names) == [0] and not found[1].is_floating_point() and not counted else None
        if name == "expand":
            p = found[0]
            return out.detach() if p.ndim == out.ndim and p.shape == (1, *out.shape[1:]) else None
        if name in _PRODUCTS:
            entry, weight = _PRODUCTS[name]
            plain = len(found) == weight + 1 and found[weight].ndim == 2 and entry not in names and not kwargs
            return found[entry] if plain and (weight in names or name == "addmm") else None
        if name in _BROADCAST:
            rest = [t for i, t in enumerate(found) if i not in names]
            if len(rest) != 1 or len(found) != 2:
                return None
            p = found[next(iter(names))]
            return rest[0] if p.ndim < rest[0].ndim or (p.ndim == rest[0].ndim and p.shape[:1] == (1,)) else None
        return None if 0 in names else found[0]


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function writes into its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


class _Tap(torch.autograd.Function):
    """Hands on what an operation returned, and tells the use of its gradient on the way back."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor, x: Tensor, use: Use) -> Tensor:
        ctx.use = use
        ctx.save_for_backward(x)  # so that writing into it later is noticed, as it is in training
        ctx.mark_dirty(out)  # the same tensor goes on, and may be written into
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _ = ctx.saved_tensors
        ctx.use.g = g
        if g.device.type == "cpu":  # elsewhere another thread is at work here, which nobody weighs
            ctx.use.settle()
        return g, g.new_zeros(()), None, None


@dataclass(frozen=True, eq=False)
class _Plan:
    """What of a model's operations is understood: their signs and examples' axes; and the parameters that are not."""

    signs: list[tuple[Any, ...]]
    axes: list[int | None]
    others: frozenset[str]

    def axis(self, i: int, use: Use) -> int | None:
        """Of the i-th use, if it is the one that was there before, and some gradient follows from it."""
        same = i < len(self.signs) and use.sign == self.signs[i]
        return self.axes[i] if same and not self.others.issuperset(use.names.values()) else None


@dataclass(frozen=True, eq=False)
class Weights:
    """The parameters of a model, as the place where gradients of each example's score are taken.

    One backward pass serves all examples: where a parameter belongs to a linear map, a convolution, a norm, an
    embedding or an affine step, each example's gradient follows from what entered and from the gradient where it left.
    How the batch lies in there is found out on the first rows, with two sizes of batch, and checked against the
    gradient of one example. All other parameters get theirs by ``torch.func``, or one example at a time where that
    refuses.

    Args:
        model: whose parameters; must be the model of the probes.
        parameters: name -> parameter, in the order in which gradients are told; see :meth:`of`.

    Example:
        >>> from robustx.engine import Output
        >>> model = torch.nn.Linear(3, 2)
        >>> rows = Weights.of(model).dense(Probe(model, (torch.ones(5, 3),), Output(0)))
        >>> rows.shape, rows[0].tolist()
        (torch.Size([5, 8]), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    """

    model: nn.Module
    parameters: dict[str, Tensor]
    _plan: list[_Plan] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, layers: Iterable[nn.Module | str] | None = None) -> "Weights":
        """Those of some layers, in their order; without layers those that require gradients, or all if none does.

        Raises:
            TypeError: the model is no module.
            ValueError: no such layer, or no parameters.
        """
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model must be a torch.nn.Module, whose parameters are known, got {model!r}")
        named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        if layers is None:
            chosen = {n: p for n, p in named.items() if p.requires_grad} or named
        else:
            names = {id(p): n for n, p in named.items()}
            inside = (p for layer in layers for p in layer_of(model, layer).parameters())
            chosen = {names[id(p)]: p for p in inside if id(p) in names}
        if not chosen:
            raise ArgumentError("there are no parameters to take gradients of; choose layers that have some")
        return cls(model, dict(chosen))

    @property
    def size(self) -> int:
        """P: how many numbers a gradient has."""
        return sum(p.numel() for p in self.parameters.values())

    def dense(self, probe: Probe) -> Tensor:
        """The gradient of each example's pull, written out [B, P]."""
        parts = [torch.cat([b.dense() for b in blocks], 1) for _, blocks in self.blocks(probe)]
        return torch.cat(parts) if parts else next(iter(self.parameters.values())).new_zeros(0, self.size)

    def total(self, probe: Probe) -> Tensor:
        """The sum of all examples' gradients [P], by a plain backward pass."""

        def work(part: slice) -> Tensor:
            leaves = self._leaves()
            with torch.enable_grad():
                pull = self._pull(probe, leaves, probe.everyone[part])
                grads = torch.autograd.grad(pull.sum(), [leaves[n] for n in self.parameters], allow_unused=True)
            probe._count(probe.everyone[part], backward=1)
            return self._flat([_strided(g) for g in grads])

        zero = self._flat([None] * len(self.parameters))
        return sum((t for _, t in probe._batches(probe.examples, work, ("total", probe._size, *self.parameters))), zero)

    def blocks(self, probe: Probe, compact: bool = True) -> Iterator[tuple[slice, list[Block]]]:
        """The gradients of all examples, batch by batch: a :data:`Block` for each parameter.

        Args:
            probe: the model on its inputs, with the score whose pull is differentiated.
            compact: write gradients out where that takes less room than their factors.
        """
        if not probe.examples:
            return
        plan = self._understood(probe)

        def work(part: slice) -> list[Block]:
            return self._work(probe, probe.everyone[part], plan, compact)

        weight = sum(p.numel() * p.element_size() for p in self.parameters.values())
        kind = ("weights", probe._size, compact, *self.parameters)
        yield from probe.pace.batches(probe.examples, probe.device, work, kind, probe._size + weight)

    def _work(self, probe: Probe, rows: Tensor, plan: _Plan, compact: bool) -> list[Block]:
        others, found = set(plan.others), dict[str, Block]()
        if len(others) < len(self.parameters):
            watch = self._watched(probe, rows, plan, compact)
            if [u.sign for u in watch.uses] != plan.signs:  # the model took another way than on the first rows
                others = set(self.parameters)
            else:
                found = _summed(watch.uses, others)
        if others:
            found |= self._apart(probe, rows, [n for n in self.parameters if n in others])
        zero = {n: Dense(p.new_zeros(len(rows), p.numel())) for n, p in self.parameters.items() if n not in found}
        return [(found | zero)[n] for n in self.parameters]

    def _watched(self, probe: Probe, rows: Tensor, plan: _Plan | None = None, compact: bool = False) -> _Watch:
        """A pass there and back, and what it used the parameters for."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters()}
        anchor = torch.zeros((), device=rows.device, requires_grad=True)
        watch = _Watch({n: frozen[n] for n in self.parameters}, anchor, len(rows), plan, compact)
        with torch.enable_grad():
            with watch.over(self.model):
                out = self._asked(probe, frozen)._output(None, rows)
            _, pull = probe._scored(out, rows)
            if pull.requires_grad:
                torch.autograd.grad(pull.sum(), anchor, allow_unused=True)
        for use in watch.uses:
            use.settle()
        probe._count(rows, backward=1)
        return watch

    def _understood(self, probe: Probe) -> _Plan:
        """How the batch lies in each use: where there are two rows with two, and three with three."""
        if not self._plan:
            self._plan.append(self._look(probe))
        return self._plan[0]

    def _look(self, probe: Probe) -> _Plan:
        rows = torch.arange(3, device=probe.device) % probe.examples
        nothing = _Plan([], [], frozenset(self.parameters))
        try:
            two, three = self._watched(probe, rows[:2]), self._watched(probe, rows)
        except RuleError:
            return nothing
        signs = [u.sign for u in three.uses]
        if [u.sign for u in two.uses] != signs:
            return nothing
        choices = [_axes(a, b) for a, b in zip(two.uses, three.uses, strict=True)]
        unplaced = (use for use, axes in zip(three.uses, choices, strict=True) if not axes)
        others = three.others.union(*(use.names.values() for use in unplaced))
        alone = self._alone(probe, rows[:1], [n for n in self.parameters if n not in others])
        placed = (use for use, axes in zip(three.uses, choices, strict=True) if len(axes) == 1 and use.g is not None)
        sure = {name for use in placed for name in use.names.values()}
        idle = {n for n, g in alone.items() if g is not None and not g.any()}  # tells nothing of what is not sure
        others |= idle - sure
        wrong: set[str] = set()
        for second in (False, True):  # rows that examples share an axis with others in: in runs, or else in turns
            for use, axes in zip(three.uses, choices, strict=True):
                if axes and (not second or not wrong.isdisjoint(use.names.values())):
                    use.axis = axes[-second]
                    use.owed = use.blocks()
            wrong = _mistaken(_summed(three.uses, others), alone)
        return _Plan(signs, [use.axis for use in three.uses], frozenset(others | wrong))

    def _apart(self, probe: Probe, rows: Tensor, names: list[str]) -> dict[str, Block]:
        """Gradients with respect to parameters in uses of any kind."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters()}

        def score(weights: dict[str, Tensor], row: Tensor) -> Tensor:
            return self._pull(probe, frozen | weights, row[None]).sum()

        try:  # vmap and plain autograd do what torch.func.grad does, which loads the compiler at its first use
            found = _own(lambda own: vmap(score)(own, rows).sum(), {n: frozen[n] for n in names}, len(rows))
        except Exception as e:  # whatever a model does that cannot be done for all rows at once, such as .item()
            if out_of_memory(e):
                raise
            return self._singly(probe, rows, names)
        probe._count(rows, backward=1)
        return found

    def _singly(self, probe: Probe, rows: Tensor, names: list[str]) -> dict[str, Block]:
        """The same, one example at a time."""
        found = [self._alone(probe, row, names) for row in rows.split(1)]
        none = {n: torch.zeros_like(self.parameters[n]) for n in names}
        return {n: Dense(flat(torch.stack([none[n] if (g := f[n]) is None else g for f in found]))) for n in names}

    def _alone(self, probe: Probe, row: Tensor, names: list[str]) -> dict[str, Tensor | None]:
        """The gradients of one example's score; None where nothing leads from it to the parameter."""
        leaves = self._leaves()
        grads: Sequence[Tensor | None] = [None] * len(names)
        with torch.enable_grad():
            pull = self._pull(probe, leaves, row).sum()
            if pull.requires_grad and names:
                grads = torch.autograd.grad(pull, [leaves[n] for n in names], allow_unused=True)
        probe._count(row, backward=1)
        return dict(zip(names, map(_strided, grads), strict=True))

    def _leaves(self) -> dict[str, Tensor]:
        """The parameters as they are, with gradients of their own."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters()}
        return {n: p.requires_grad_(n in self.parameters) for n, p in frozen.items()}

    def _asked(self, probe: Probe, weights: dict[str, Tensor]) -> Probe:
        return probe.to(model=partial(_call, self.model, weights))

    def _pull(self, probe: Probe, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        return probe.of.pull(self._asked(probe, weights)._output(None, rows), rows)

    def _flat(self, grads: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(self.parameters.values(), grads, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).detach().flatten() for p, g in pairs])


def _strided(g: Tensor | None) -> Tensor | None:
    """Embeddings may have sparse gradients."""
    return g.to_dense() if g is not None and g.is_sparse else g


def _call(model: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(model, weights, args, kwargs)


def _axes(two: Use, three: Use) -> tuple[int, ...]:
    """Which axes of what enters, and of what leaves, may count the examples."""
    a, b, left = two.x.shape, three.x.shape, three.g
    most = two.x.ndim - (two.op != "embedding") if two.op in _ROWWISE else 1
    found = [i for i in range(most) if (a[i], b[i]) == (2, 3) and (a[:i], a[i + 1 :]) == (b[:i], b[i + 1 :])]
    if len(found) == 1 and (left is None or left.shape[found[0]] == 3):
        return (found[0],)
    shared = two.op in _ROWWISE and most and a[0] > 2 and 3 * a[0] == 2 * b[0] and a[1:] == b[1:]
    return (RUNS, TURNS) if shared and (left is None or len(left) == b[0]) else ()


def _mistaken(found: dict[str, Block], alone: dict[str, Tensor | None]) -> set[str]:
    """The parameters whose gradient of the first example is another one than that of the example alone."""
    lengths = {name: 0.0 if g is None else float(g.norm()) for name, g in alone.items()}
    wrong = set()
    for name, truth in alone.items():
        here = found[name].dense()[0] if name in found else torch.zeros(())
        off = here if truth is None else here - truth.flatten()
        noise = torch.finfo(here.dtype).eps ** 0.5 * max(lengths.values())  # where nothing depends on the parameter
        if not float(off.norm()) <= _ALIKE * lengths[name] + noise:
            wrong.add(name)
    return wrong


def _summed(uses: list[Use], others: set[str]) -> dict[str, Block]:
    """What each parameter owes to all its uses."""
    owed: dict[str, list[Block]] = defaultdict(list)
    for use in uses:
        for name, block in use.owed.items():
            if name not in others:
                owed[name].append(block)
    return {name: reduce(_together, blocks) for name, blocks in owed.items()}


def _together(one: Block, two: Block) -> Block:
    """The sum of what a parameter owes to two of its uses."""
    if isinstance(one, Outer) and isinstance(two, Outer):
        return Outer(torch.cat([one.a, two.a], 2), torch.cat([one.g, two.g], 2))
    if isinstance(one, Rows) and isinstance(two, Rows):
        return Rows(torch.cat([one.ids, two.ids], 1), torch.cat([one.g, two.g], 1), one.table)
    return Dense(one.dense() + two.dense())


def layer_of(model: nn.Module, layer: nn.Module | str) -> nn.Module:
    """A layer of a model, by its name or itself.

    Raises:
        ValueError: the model has no such layer.
    """
    if isinstance(layer, nn.Module):
        if all(m is not layer for m in model.modules()):
            raise ArgumentError(f"the layer {type(layer).__name__} is no part of the model")
        return layer
    try:
        return model.get_submodule(layer)
    except AttributeError:
        known = ", ".join(n for n, _ in model.named_modules() if n)
        raise ArgumentError(f"the model has no layer {layer!r}; its layers are {known}") from None


__all__ = ["Block", "Dense", "Outer", "Rows", "Weights", "dot", "layer_of"]

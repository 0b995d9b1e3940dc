"""The gradient engine: a model, seen as one number per row of what stands at one site."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, prod
from time import monotonic
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .checks import ArgumentError, ArgumentTypeError
from .guard import Shared, modules_of, ordinary
from .later import Later, in_turn
from .memory import PASSING, Pace, out_of_memory
from .packing import Packing, Tensors, flat, like
from .patches import WIDE, Patches
from .rules import Rules
from .scores import Ask, Everything, Output, OutputError, Score
from .sites import Call, Input, Seen, Site

T = TypeVar("T")
_NO_CUDNN = Shared(lambda: torch.backends.cudnn.flags(enabled=False))

_ELSEWHERE = (
    "gradient_func makes plain gradients of the model's output at its inputs, but this method needs those of a layer, "
    "of a neuron, or by rules of its own; leave gradient_func as it is"
)

Query = Callable[[slice], tuple[Tensor | None, Tensor]]
"""Some of many queries: a slice of them -> (z [n, D], rows [n]); without z, the examples as they are."""


class ModelError(RuntimeError):
    """The model itself failed on what it was given."""


class NonFiniteError(ValueError):
    """An input or a score is NaN or infinite."""


class OutOfTime(RuntimeError):
    """A search has used up the time it was given; what it has found so far stands."""


@dataclass
class Meter:
    """Rows that went forward and backward through the model, per example [B].

    Args:
        asked: where it is kept, the scores that were asked for: (examples [n], scores [n]), in order.
        until: when time is up, by :func:`time.monotonic`: the next pass then ends in :class:`OutOfTime`.
    """

    forward: Tensor
    backward: Tensor
    asked: list[tuple[Tensor, Tensor]] | None = None
    until: float = inf

    @classmethod
    def of(cls, examples: int, device: torch.device) -> "Meter":
        zero = torch.zeros(examples, dtype=torch.long, device=device)
        return cls(zero, zero.clone())

    def take(self) -> "Meter":
        """What was counted so far; counting starts anew."""
        taken = replace(self, forward=self.forward.clone(), backward=self.backward.clone())
        self.forward.zero_(), self.backward.zero_()
        return taken

    def history(self) -> Tensor | None:
        """The scores of each example in the order in which they were asked for [B, T], NaN behind the last."""
        if self.asked is None:
            return None
        if not self.asked:
            return torch.empty(len(self.forward), 0, device=self.forward.device)
        rows, scores = (torch.cat(t) for t in zip(*self.asked, strict=True))
        counts = rows.bincount(minlength=len(self.forward))
        order = rows.argsort(stable=True)
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
        table = scores.new_full((len(counts), int(counts.max()) if len(counts) else 0), torch.nan)
        table[rows[order], rank] = scores[order]
        return table


@dataclass
class Local:
    """What one pass of some queries showed at a site: scores, what stood there, and the scores' gradient there.

    ``part`` of the queries; ``value`` [n] ([n, T] for several scores), ``here`` [n, L], ``grad`` [n, L] ([n, T, L]),
    packed by ``packing``.
    """

    part: slice
    value: Tensor
    here: Tensor
    grad: Tensor
    packing: Packing


@dataclass(frozen=True, eq=False)
class Probe:
    """``z [N, D] -> score [N]``, with gradients: every method asks the model through this.

    A query is a row of ``z`` (what stands at the site) and the index of the example it belongs to
    (``rows``, default one each). Labels, further inputs and references follow by index, so a query
    may name an example once, many times or not at all, and nothing is repeated by hand.

    Args:
        model: any callable that returns a tensor with one row per example.
        inputs: its tensor inputs, [B, ...] each.
        of: what number is read off.
        at: where the argument stands.
        names: the inputs' keywords, if they are passed by name.
        args: further positional arguments; tensors whose first axis is B follow the examples.
        kwargs: further keyword arguments, likewise.
        strict: raise on NaN or infinite scores (a search lets them pass and never counts them as found).
        rules: other ways for gradients to pass operations, in :meth:`locals`.
        gradient: makes the gradients at given inputs in autograd's place: (inputs, rows) -> one for each input.
        pace: the batching rule, shared by all probes made from this one.
        meter: counts rows, shared likewise.
        whose: the examples that queries belong to, where they name copies of them, see :meth:`copies`.
    """

    model: Callable[..., Any]
    inputs: Tensors
    of: Score = field(default_factory=Output)
    at: Site = field(default_factory=Input)
    names: tuple[str, ...] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True
    rules: Rules | None = None
    gradient: Callable[[Tensors, Tensor], Sequence[Tensor]] | None = None
    pace: Pace = field(default_factory=Pace)
    meter: Meter | None = None
    whose: Tensor | None = None

    def __post_init__(self) -> None:
        if self.meter is None:
            object.__setattr__(self, "meter", Meter.of(self.examples, self.device))

    @property
    def examples(self) -> int:
        """B."""
        return len(self.inputs[0])

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    @cached_property
    def everyone(self) -> Tensor:
        """One query per example [B]."""
        return torch.arange(self.examples, device=self.device)

    @cached_property
    def here(self) -> Tensors:
        """What stands at the site for the examples themselves, in its own shapes."""
        if isinstance(self.at, Input):
            return self.inputs

        def look(rows: Tensor) -> Tensors:
            call = self._call(rows)

            def counted(inputs: Tensors) -> Any:  # a site may know its value without asking the model
                out = call(inputs)
                self._count(rows)
                return out

            return self._batched(self.at.read(counted, self._inputs(rows)), rows)

        def read(rows: Tensor) -> list[Tensors]:
            return [here for _, here in self._batches(len(rows), lambda part: look(rows[part]), "read")]

        parts = read(self.everyone) or [look(self.everyone)]
        # As many rows as examples may be chance (the state of an LSTM), but not for two numbers of them.
        if any(self._doubtful(t) for part in parts for t in part):
            read(self.everyone[:1].expand(2 if len(parts[0][0]) == 1 else 1))
        return tuple(torch.cat(t) for t in zip(*parts, strict=True))

    def _batched(self, here: Tensors, rows: Tensor) -> Tensors:
        for t in here:
            if t.ndim == 0 or len(t) != len(rows):
                raise OutputError(
                    f"{self.at} has {len(t) if t.ndim else 'no'} rows for {len(rows)} examples (shape "
                    f"{tuple(t.shape)}); choose a place whose first axis is the batch"
                )
        return here

    @staticmethod
    def _doubtful(t: Tensor) -> bool:
        """Whether the batch might as well come second, as in sequences and states [T, B, C]."""
        return t.ndim == 3 and len(t) == t.shape[1]

    @cached_property
    def packing(self) -> Packing:
        return Packing.of(self.here)

    @cached_property
    def point(self) -> Tensor:
        """:attr:`here`, packed [B, D]."""
        return self.packing.pack(self.here)

    @cached_property
    def score(self) -> Tensor:
        """Scores of the examples as they are [B]."""
        here = self.to(at=Input())  # a site matters to what is written there only
        parts = [v for _, v in here.values(self.examples, lambda part: (None, self.everyone[part]))]
        return torch.cat(parts) if parts else self.everyone.new_zeros(0, dtype=torch.get_default_dtype())

    def to(self, **changes: Any) -> Self:
        """The same probe with another site, score, inputs..."""
        other = replace(self, **changes)
        if not {"model", "inputs", "at", "args", "kwargs"} & changes.keys():  # what stands at the site stays
            known = ("everyone", "here", "packing", "point", "_detour")
            other.__dict__.update({k: v for k, v in self.__dict__.items() if k in known})
        return other

    def copies(self, whose: Tensor, of: Score) -> Self:
        """Queries then name copies of examples, the i-th one of example ``whose[i]``, and ``of`` tells copies apart.

        So that one example may be asked for several things in one pass. Passes count for the examples.
        """
        _ = self.here  # what stands at the site is that of the examples
        return self.to(of=of, whose=self.owner(whose))

    def owner(self, rows: Tensor) -> Tensor:
        """The examples that queries belong to."""
        return rows if self.whose is None else self.whose[rows]

    def patched(self) -> Self:
        """The same probe, of a model that is asked about the examples with a small part of each changed.

        Where it is convolutional and pictures are large, it then computes only what a change reaches; see
        :class:`robustx.engine.patches.Patches`.
        """
        x, plain = self.inputs[0], self.names is None and not self.args and not self.kwargs and self.of.tap is None
        picture = len(self.inputs) == 1 and x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu"
        if not plain or not picture or prod(x.shape[2:]) < WIDE or isinstance(self.model, Later):
            return self
        return self.to(model=Patches(self.model, x, self.pace.room(x.device)))

    def value(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores [N] (or what the score makes of each row)."""
        rows = self.everyone if rows is None else rows
        parts = [v for _, v in self.values(len(rows), lambda part: (z[part], rows[part]))]
        return torch.cat(parts) if parts else z.new_zeros(0)

    def grad(self, z: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores [N], and the gradient of each one's pull with respect to its own row [N, D]."""
        rows = self.everyone if rows is None else rows
        parts = [p for _, *p in self.grads(len(rows), lambda part: (z[part], rows[part]))]
        if not parts:
            return z.new_zeros(0), torch.zeros_like(z)
        values, grads = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(grads)

    def values(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor]]:
        """Scores of ``n`` queries, batch by batch; a query is made only when its turn comes.

        Of a model that answers :class:`Later` several batches are under way at once.
        """
        if isinstance(self.model, Later):
            return self._later(n, query)

        def work(part: slice) -> Tensor:
            with torch.no_grad():
                z, rows = query(part)
                value = self._forward(z, rows, pull=False)[0]
            self._count(rows, scores=value)
            return value

        return self._batches(n, work, ("value", self._kind), back=False)

    def _later(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor]]:
        assert isinstance(self.model, Later)
        asking = self.to(model=self.model.ask)
        parts = self.pace.parts(n, self._size)
        most = self.pace.most(self.device, self._size * (parts[0].stop if parts else 1))

        def ask(part: slice) -> tuple[tuple[slice, Tensor], Any]:
            with torch.no_grad():
                z, rows = query(part)
                return (part, rows), asking._output(z, rows)

        for (part, rows), out in in_turn(map(ask, parts), most):
            with torch.no_grad():
                value = self._scored(out, rows, pull=False)[0]
            self._count(rows, scores=value)
            yield part, value

    def climb(self, z: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`grad`, with each one's pull as well: scores [N], pulls [N] and gradients [N, D] of one pass.

        For searches that judge their progress by what they climb, and their success by the score.
        """
        rows = self.everyone if rows is None else rows
        parts = [p for _, *p in self._climbs(len(rows), lambda part: (z[part], rows[part]))]
        if not parts:
            return z.new_zeros(0), z.new_zeros(0), torch.zeros_like(z)
        values, pulls, grads = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(pulls), torch.cat(grads)

    def grads(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Scores and gradients of ``n`` queries, batch by batch.

        Rows must not see one another (a model in eval mode), so one backward pass of the sum serves all.
        """
        for part, value, _, g in self._climbs(n, query):
            yield part, value, g
            del value, g, _

    def _climbs(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        assert self.rules is None, "rules hold where the model is watched: ask for locals"

        def work(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            z, rows = query(part)
            assert z is not None, "a gradient needs a point"
            if self.gradient is not None:
                value, g = self._given(z, rows)
                return value, value, g
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                value, pull = self._forward(z, rows)
                g = self._slope(pull, (z,), self.packing)
            self._count(rows, backward=1 if pull.ndim == 1 else pull.shape[1], scores=value)
            return value.detach(), pull.detach(), g if self.strict else g.nan_to_num()

        for part, (value, pull, g) in self._batches(n, work, ("grad", self._kind)):
            yield part, value, pull, g
            del value, pull, g

    def local(self) -> Local:
        """:meth:`locals` of the examples as they are, all together."""
        parts = list(self.locals(self.examples, lambda part: (None, self.everyone[part])))
        if len(parts) == 1:
            return parts[0]
        value, here, grad = (torch.cat([getattr(p, name) for p in parts]) for name in ("value", "here", "grad"))
        return Local(slice(0, self.examples), value, here, grad, parts[0].packing)

    def locals(self, n: int, query: Query) -> Iterator[Local]:
        """Scores, what stands at the site and the gradients there, for ``n`` queries that stand at the inputs.

        One forward and one backward pass for all three. Without queries one empty pass tells the shapes.
        """
        if self.gradient is not None:
            raise TypeError(_ELSEWHERE)
        entry = self.to(at=Input())

        def work(part: slice) -> Local:
            z, rows = query(part)
            inputs = self._inputs(rows) if z is None else entry.packing.unpack(z)
            try:
                with torch.enable_grad():
                    here, value, pull = self._followed(inputs, rows)
                    packing = Packing.of(here)

                    def slope(pull: Tensor = pull) -> Tensor:
                        self._count(rows, forward=0, backward=1 if pull.ndim == 1 else pull.shape[1])
                        return self._slope(pull, here, packing, keep=self.rules is not None)

                    g = slope() if self.rules is None else self.rules.backward(slope, packing.pack(here).detach(), rows)
                return Local(part, value.detach(), packing.pack(here).detach(), g, packing)
            finally:
                if self.rules is not None:
                    self.rules.forget()

        if not n:
            yield work(slice(0, 0))
        for _, local in self._batches(n, work, ("local", self.at)):
            self.__dict__.setdefault("packing", local.packing)  # so that nobody has to read the site for its shapes
            yield local
            del local

    def _followed(self, inputs: Tensors, rows: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        """What stands at the site for these inputs, the score's value and its pull, with their graph."""
        here: Tensors = ()

        def once(inputs: Tensors, rows: Tensor) -> tuple[Tensors, Any]:
            at: Tensors = ()

            def run(call: Call) -> None:
                nonlocal at
                at, _ = self.at.follow(call, inputs)

            out = self.of.made(self._read(rows, run))  # rules hold for what the user makes of the output, too
            self._count(rows)
            return self._batched(at, rows), out

        def first() -> Any:
            nonlocal here
            here, out = once(inputs, rows)
            return out

        def again(inputs: Tensors, rows: Tensor) -> Tensor:  # the same pass of other inputs
            at, _ = once(tuple(t.clone() for t in inputs), rows)
            return Packing.of(at).pack(at).detach()

        out = first() if self.rules is None else self.rules.forward(first, again, rows)
        return here, *self._scored(out, rows)

    def _given(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and gradients made by a function of the user's own."""
        assert self.gradient is not None
        if not isinstance(self.at, Input) or self.of.tap is not None:
            raise TypeError(_ELSEWHERE)
        inputs = self.packing.unpack(z.detach())
        with torch.enable_grad():
            grads = self.gradient(tuple(t.requires_grad_(t.is_floating_point()) for t in inputs), rows)
        for g, t in zip(grads, inputs, strict=True):
            if g.shape != t.shape:
                raise ValueError(
                    f"gradient_func must return a gradient of shape {tuple(t.shape)}, got {tuple(g.shape)}"
                )
        self._count(rows, forward=0, backward=1)
        return self.value(z, rows), self.packing.pack(grads).detach()

    def jacobian(self, z: Tensor, scores: Sequence[Score], rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Several scores at once: values [N, T] and the gradients of their pulls [N, T, D].

        One forward pass, T backward passes. The scores must read off the same place.
        """
        rows = self.everyone if rows is None else rows

        def work(part: slice) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                a, r = z[part].detach().requires_grad_(), rows[part]
                out = self._output(a, r)
                for s in scores if self.strict else ():
                    s.check(out, r)
                pulls = [s.pull(out, r) for s in scores]
                g = self._slope(torch.stack(pulls, 1), (a,), self.packing)
            self._count(r, backward=len(scores))
            values = torch.stack([self._checked(s.value(out, r), r).detach() for s in scores], 1)
            return values, g if self.strict else g.nan_to_num()

        parts = [p for _, p in self._batches(len(rows), work, ("jacobian", self._kind))]
        if not parts:
            return z.new_zeros(0, len(scores)), z.new_zeros(0, len(scores), z.shape[1])
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])

    def outputs(self, z: Tensor | None = None, rows: Tensor | None = None) -> Any:
        """What the model returns for the queries (or the examples as they are), in one pass and untouched."""
        rows = self.everyone if rows is None else rows
        with torch.no_grad():
            out = self._run(self._call(rows), z, rows)
        self._count(rows)
        return out

    def passes(self, queries: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Any]]:
        """For some sets of queries (z [N, D], rows [N]), z and :meth:`outputs`, one after the other.

        Of a model that answers :class:`Later` several are under way at once.
        """
        if not isinstance(self.model, Later):
            yield from ((z, self.outputs(z, rows)) for z, rows in queries)
            return
        asking = self.to(model=self.model.ask)
        most = self.pace.most(self.device, self._size * max(self.examples, 1))
        yield from in_turn(((z, asking.outputs(z, rows)) for z, rows in queries), most)

    def _batches(
        self, n: int, work: Callable[[slice], T], kind: Hashable, back: bool = True
    ) -> Iterator[tuple[slice, T]]:
        return self.pace.batches(n, self.device, work, kind, self._size if back else self._size // PASSING)

    @property
    def _size(self) -> int:
        """Bytes of an example's inputs; ids are as heavy as what is made of them, where that is known."""
        size = sum(prod(t.shape[1:]) * t.element_size() for t in self.inputs)
        if "packing" not in self.__dict__ or any(t.is_floating_point() for t in self.inputs):
            return size
        return max(size, sum(self.packing.sizes) * self.packing.dtype.itemsize)

    @property
    def _kind(self) -> tuple[type, int]:
        """What makes one query as heavy as another: the site, and how much stands there."""
        return type(self.at), sum(self.packing.sizes)

    def _forward(self, z: Tensor | None, rows: Tensor, pull: bool = True) -> tuple[Tensor, Tensor]:
        return self._scored(self._output(z, rows), rows, pull)

    def _scored(self, out: Any, rows: Tensor, pull: bool = True) -> tuple[Tensor, Tensor]:
        """Value and pull of what was read."""
        if self.strict:
            self.of.check(out, rows)
        same = not pull or type(self.of).pull is Score.pull
        with nullcontext() if same else torch.no_grad():  # only what is pulled needs a way back
            value = self._checked(self.of.value(out, rows), rows)
        return value, value if same else self.of.pull(out, rows)

    def _output(self, z: Tensor | None, rows: Tensor) -> Any:
        return self._read(rows, lambda call: self._run(call, z, rows))

    def _read(self, rows: Tensor, run: Callable[[Call], Any]) -> Any:
        """What the score is read off when the model is called: its output, or what passes the tap."""
        call, tap, seen, out = self._call(rows), self.of.tap, Seen(), None

        def watched(inputs: Tensors) -> Any:
            nonlocal seen, out
            if tap is None:
                out = self.of.ask(call, inputs, rows)
            else:
                with tap.watch() as seen:  # within the site's writing, so that it sees what was written
                    out = call(inputs)
            return out

        run(watched)
        return out if tap is None else seen.value

    def _run(self, call: Call, z: Tensor | None, rows: Tensor) -> Any:
        if z is None:
            return call(self._inputs(rows))
        at = self.packing.unpack(z)
        if self.at.entry:
            return self.at.write(call, (), at, rows)
        if self.at.late and self.of.tap is None and self._detour.missing:
            try:
                out = self.at.write(call, self._inputs(rows[:0]), at, rows)
                seen = [t for t in tree_leaves(out) if t is not None]  # an object of the user's may hide tensors
                if seen and all(isinstance(t, Tensor) and t.ndim and len(t) == len(rows) for t in seen):
                    return out
            except Exception as e:  # whatever a model says of no examples where it needs some
                if out_of_memory(e):
                    raise
            self._detour.missing = False
        return self.at.write(call, self._inputs(rows), at, rows)

    @cached_property
    def _detour(self) -> "Detour":
        return Detour(not self.follows)

    @property
    def follows(self) -> bool:
        """Whether a further argument has a row for each example."""
        further = (*self.args, *self.kwargs.values())
        return any(isinstance(v, Tensor) and v.ndim and len(v) == self.examples for v in further)

    def _inputs(self, rows: Tensor) -> Tensors:
        rows = self.owner(rows)
        return tuple(t[rows] for t in self.inputs)

    def _call(self, rows: Tensor) -> Ask:
        rows = self.owner(rows)

        def follow(v: Any) -> Any:
            return v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim and len(v) == self.examples else v

        args, kwargs = [follow(v) for v in self.args], {k: follow(v) for k, v in self.kwargs.items()}
        own = self.model.of(rows) if isinstance(self.model, Patches) else self.model

        def call(inputs: Tensors, instead: Callable[..., Any] | None = None) -> Any:
            model = own if instead is None else instead
            try:
                with self._recurrent():
                    if self.names is None:
                        return model(*inputs, *args, **kwargs)
                    return model(*args, **dict(zip(self.names, inputs, strict=True)), **kwargs)
            except RuntimeError as e:
                if out_of_memory(e) or isinstance(e, ModelError):
                    raise
                raise ModelError(self._explain(inputs, e)) from e

        return call

    def _recurrent(self) -> AbstractContextManager[None]:
        """cuDNN's recurrent layers have gradients in train mode only; PyTorch's own have them in any."""
        on_gpu = self.device.type == "cuda" and torch.is_grad_enabled()
        if on_gpu and any(isinstance(m, nn.RNNBase) for whole in modules_of(self.model) for m in whole.modules()):
            return _NO_CUDNN.on()
        return nullcontext()

    def _explain(self, inputs: Tensors, e: RuntimeError) -> str:
        told = ", ".join(f"{tuple(t.shape)} {str(t.dtype)[6:]} on {t.device}" for t in inputs)
        hint = "give inputs as the model takes them, batch first"
        if any(p.is_inference() for m in modules_of(self.model) for p in m.parameters()):
            hint = "the model was made under torch.inference_mode, so it has no gradients: make it outside"
        weights = next((p for m in modules_of(self.model) for p in m.parameters() if p.is_floating_point()), None)
        for t in inputs:
            if weights is None:
                break
            if t.device != weights.device:
                hint = f"the model's parameters are on {weights.device}: move one of the two with .to(...)"
            elif t.is_floating_point() and t.dtype != weights.dtype:
                hint = f"the model's parameters are {str(weights.dtype)[6:]}: convert one of the two with .to(...)"
        return f"the model failed on inputs of shape {told}; {hint}. It said: {str(e).splitlines()[0]}"

    def _slope(self, pull: Tensor, at: Tensors, packing: Packing, keep: bool = False) -> Tensor:
        """The gradient of ``pull`` [n] at ``at``, packed [n, L]; [n, T, L] for several pulls [n, T]."""
        if pull.ndim == 2:
            each = [self._slope(p, at, packing, keep or i + 1 < pull.shape[1]) for i, p in enumerate(pull.unbind(1))]
            return torch.stack(each, 1)
        moved = [t for t in at if t.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(moved)
        if len(pull) and pull.requires_grad and moved:
            found = torch.autograd.grad(pull.sum(), moved, retain_graph=keep, allow_unused=True)
        if len(pull) and all(g is None for g in found):
            raise ModelError(
                "the model's output has no gradient with respect to its input: somewhere between them is a detach, a "
                "rounding to integers, argmax, numpy or no_grad; use a method that needs values only "
                "(FeatureAblation, or the attack Square)"
            )
        grads = iter(found)
        all_of_them = (next(grads) if t.requires_grad else None for t in at)
        return packing.pack([torch.zeros_like(t) if g is None else g for g, t in zip(all_of_them, at, strict=True)])

    def _checked(self, value: Tensor, rows: Tensor) -> Tensor:
        if self.strict and not torch.isfinite(value).all():
            bad = rows.to(value.device)[~torch.isfinite(flat(value)).all(1)]
            raise NonFiniteError(
                f"the model's output for example {int(bad[0])} is NaN or infinite ({len(bad)} of {len(rows)} rows); "
                "mend the model or leave these examples out"
            )
        return value

    def _count(self, rows: Tensor, forward: int = 1, backward: int = 0, scores: Tensor | None = None) -> None:
        assert self.meter is not None
        if self.meter.until < inf and monotonic() > self.meter.until:
            raise OutOfTime("time is up")
        noted = None if self.meter.asked is None or scores is None else self.of.noted(scores)
        if self.meter.asked is not None and noted is not None:
            self.meter.asked.append((self.owner(rows), noted.detach()))
        rows = self.owner(rows)
        one = torch.full_like(rows, self.of.passes)
        for meter, passes in ((self.meter.forward, forward), (self.meter.backward, backward)):
            if passes:
                meter.index_add_(0, rows, one * passes)


@dataclass
class Detour:
    """Whether a late site has no way around it, as far as is known: then the model needs no examples before it.

    A way around shows at once, whatever the model does: what comes along it has no rows, and fits nothing that has.
    """

    missing: bool


def by_name(value: Any, names: tuple[str, ...] | None, what: str) -> Any:
    """A dict's values in the order of the inputs' names; anything else as it is.

    Raises:
        ValueError: the names are not those of the inputs.
    """
    if not isinstance(value, Mapping):
        return value
    if names is None or set(value) != set(names):
        told = ", ".join(names) if names else "no dict"
        raise ArgumentError(f"{what} is for {', '.join(map(str, value))}, but the inputs are {told}")
    return tuple(value[n] for n in names)


@dataclass(frozen=True)
class Door:
    """How a user's inputs come in, and how results go out in the same form.

    Takes a tensor, a tuple or list of tensors, or a dict of tensors (passed by keyword); gives back the same.
    """

    inputs: Tensors
    names: tuple[str, ...] | None
    single: bool

    @classmethod
    def open(cls, inputs: Any) -> "Door":
        """Raises:
        TypeError: not tensors.
        ValueError: no tensors, or different numbers of examples or devices.
        NonFiniteError: NaN or infinite elements.
        """
        names = tuple(inputs) if isinstance(inputs, Mapping) else None
        single = isinstance(inputs, Tensor)
        values = inputs.values() if isinstance(inputs, Mapping) else (inputs,) if single else inputs
        if not isinstance(values, Iterable):
            raise ArgumentTypeError(
                f"inputs must be a tensor or a tuple or dict of tensors, got {type(inputs).__name__}"
            )
        values = tuple(values)
        for i, t in enumerate(values):
            if not isinstance(t, Tensor):
                raise ArgumentTypeError(
                    f"inputs must be a tensor or a tuple or dict of tensors, got {type(t).__name__} at {i} of a "
                    f"{type(inputs).__name__}; torch.as_tensor makes a tensor of numbers"
                )
            if t.ndim == 0:
                raise ArgumentError(f"inputs need a batch axis, got a 0-dimensional tensor at {i}; use x[None]")
            if t.is_floating_point() and not torch.isfinite(t).all():
                bad = int((~torch.isfinite(flat(t)).all(1)).nonzero()[0])
                raise NonFiniteError(f"inputs contain NaN or infinity, first in example {bad}; clean the data first")
        if len({(len(t), t.device) for t in values}) != 1:
            told = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in values) or "none"
            raise ArgumentError(f"inputs must agree in their first axis (the examples) and device, got {told}")
        return cls(ordinary(values), names, single)

    def probe(
        self,
        model: Callable[..., Any],
        of: Score | None = None,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        limit: int | None = None,
        at: Site | None = None,
    ) -> Probe:
        """A probe of the model on these inputs.

        Args:
            model, of, at: as for :class:`Probe`; without a score, the model's whole output.
            args: Captum's ``additional_forward_args``: None, one value, or a tuple of them.
            kwargs: further keyword arguments.
            limit: most rows in one pass.
        """
        if not callable(model):
            raise TypeError(f"forward_func must be callable, got {type(model).__name__}")
        if of is not None:
            of.fits(len(self.inputs[0]))
        further = () if args is None else args if isinstance(args, tuple) else (args,)
        return Probe(
            model,
            self.inputs,
            of or Everything(),
            at or Input(),
            names=self.names,
            args=ordinary(further),
            kwargs=ordinary(kwargs or {}),
            pace=Pace(limit),
        )

    def out(self, tensors: Sequence[Tensor]) -> Any:
        """Results in the form in which the inputs came, and laid out in memory as they are."""
        tensors = [like(t, given) for t, given in zip(tensors, self.inputs, strict=True)]
        if self.names is not None:
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if self.single else tuple(tensors)


__all__ = ["Door", "Local", "Meter", "ModelError", "NonFiniteError", "Probe", "Query"]

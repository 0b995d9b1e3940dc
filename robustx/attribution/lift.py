"""DeepLIFT: differences from a reference, handed back through the model so that they add up."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..engine.guard import guarded, version
from ..engine.memory import out_of_memory
from ..engine.packing import Tensors, times
from ..engine.probe import Probe
from ..engine.rules import Again, Op, Ruled, RuleError, Rules, known, resort, tensors_in
from ..engine.sites import Input, Layer
from ..perturb.references import distribution, given_by, through
from .base import GradientAttribution, LayerAttribution, NeuronAttribution, only_unused, rise
from .lift_rules import lifted, ruled

P = ParamSpec("P")
R = TypeVar("R")

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(multipliers [n, L], site here [n, L], site there [n or 1, L]) -> contributions [n, L]."""

TOGETHER = 8  # references that go through the model at once


class Lift(Rules):
    """Differences from references pass every operation exactly.

    The model runs once for the inputs and once for each reference; the way back is walked once for each pair. Where
    references are the same for all examples they run on their own, not once for each.

    Args:
        f: the probe that is asked.
        references: what the inputs are compared with, [S, ...] each, or [B, ...] with ``paired``: one for each.
        combine: what is made of the multipliers, averaged over the references.
        eps: differences up to here count as none.
        otherwise: see :class:`robustx.engine.rules.Ruled`.
    """

    def __init__(
        self, f: Probe, references: Tensors, paired: bool, combine: Combine, eps: float, otherwise: str
    ) -> None:
        self.model, self.references, self.paired, self.combine = f.model, references, paired, combine
        self.rules, self.otherwise = lifted(self._at, eps), otherwise
        # whether references can go through the model without the examples
        self.alone = not (paired or f.follows) and f.examples > 0
        self.together = min(TOGETHER, f.pace.limit or TOGETHER)
        self.sums: list[Tensor] = []  # of the contributions [n, S], a batch after the other
        self._whole = isinstance(f.at, Input) and otherwise == "error"  # no way leads around the site
        self._ops: dict[int, Op] = {}
        self._seen = 0  # operations with a rule, of which some do not depend on the site
        self._fixed: Fixed = {}
        self._there: dict[int, Tensors] = {}
        self._axes: dict[int, list[int | None]] = {}  # of the references' tensors, where they ran by themselves
        self._odd: str | None = None  # why what was recorded of references does not fit the inputs
        self._now = 0

    def forward(self, run: Callable[[], Any], again: Again, rows: Tensor) -> Any:
        self._ops, self._fixed, self._again = {}, {}, again
        mode = self._mode(_Here)
        mode.ops, mode.fixed = self._ops, self._fixed
        with mode.over(self.model):
            out = run()
        self._seen = mode.seen
        if self.otherwise == "error":
            known(out)
        return out

    def backward(self, slope: Callable[[], Tensor], here: Tensor, rows: Tensor) -> Tensor:
        total, sums, count = None, [], 1 if self.paired else len(self.references[0])
        for there in self._runs(rows, count):
            for k, at in enumerate(there.split(1) if self.alone else [there]):
                self._now = k
                share = self.combine(slope(), here, at)
                total = share if total is None else total + share
                sums.append(share.sum(-1))
        self.sums.append(torch.stack(sums, 1))
        assert total is not None, "no references"
        return total / count

    def forget(self) -> None:
        self._ops, self._there, self._fixed = {}, {}, {}

    def _runs(self, rows: Tensor, count: int) -> Iterator[Tensor]:
        """The site there as references go through the model, some at a time [k, L] (or one for each example [n, L])."""
        if self.paired:
            yield self._record(tuple(t[rows] for t in self.references), rows)
            return
        start = 0
        while start < count:
            k = min(self.together, count - start) if self.alone else 1
            k -= k > 1 and k == len(rows)  # the batch must be told from the references by its length
            some = tuple(t[start : start + k] for t in self.references)
            try:
                there = self._record(
                    some if self.alone else tuple(t.expand(len(rows), *t.shape[1:]) for t in some),
                    rows[:1].expand(k) if self.alone else rows,
                )
                if self.alone and not self._apart(k, len(rows)):
                    self.alone = False
                    continue
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e) or k == 1:
                    raise
                self.together = k // 2
                continue
            yield there
            start += k

    def _record(self, references: Tensors, rows: Tensor) -> Tensor:
        """The site's value for references, and the tensors of each operation on the way."""
        mode = self._mode(_There)
        mode.ops, mode.tensors, mode.fixed = self._ops, {}, self._fixed if self._whole else {}
        with torch.no_grad(), mode.over(self.model):
            there = self._again(references, rows)
        self._there, self._axes = mode.tensors, {}
        if mode.seen != self._seen or mode.tensors.keys() != self._ops.keys():
            self._odd = "the model takes another way for the baseline than for the input: its operations differ"
        elif mode.moved:
            self._odd = (
                f"{mode.moved[0]!r} is given numbers that differ between input and baseline, and that no gradient "
                "reaches (a comparison, a rounding, an index, a detach); write them with operations that have one, or "
                "leave them as they are with otherwise='gradient'"
            )
        else:
            self._odd = None
        if self._odd and not self.alone:
            raise RuleError(self._odd)
        return there

    def _apart(self, k: int, n: int) -> bool:
        """Whether the references, run by themselves, can be told apart in every tensor of theirs: along which axes."""
        if self._odd:  # it may be the number of rows that differs
            return False
        for order, op in self._ops.items():
            self._axes[order] = []
            for t, t0 in zip(op.all_tensors, self._there[order], strict=True):
                axes = _differing(t, t0) if t.ndim == t0.ndim else []
                if t.ndim != t0.ndim or len(axes) > 1 or any((t.shape[d], t0.shape[d]) != (n, k) for d in axes):
                    return False
                self._axes[order].append(axes[0] if axes else None)
        return True

    def _at(self, op: Op) -> Tensors:
        """The operation's tensors for the reference that is looked at now."""
        there, axes = self._there[op.order], self._axes.get(op.order)
        if axes is None:
            return there
        return tuple(t if d is None else t.narrow(d, self._now, 1) for t, d in zip(there, axes, strict=True))

    def _mode(self, kind: type[Any]) -> Any:
        return ruled(self.rules, self.otherwise, kind)


Fixed = dict[tuple[str, int], dict[int, tuple[Tensor, int]]]
"""(operation, how many of its name came before) -> its tensors that do not depend on the site, in their versions."""


class _Watching(Ruled):
    ops: dict[int, Op]
    fixed: Fixed

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self._counts: Counter[str] = Counter()

    def _count(self, name: str) -> tuple[str, int]:
        self._counts[name] += 1
        return name, self._counts[name]


class _Here(_Watching):
    """Keeps the operations that pass differences, and what goes into operations without depending on the site."""

    def met(self, op: Op) -> None:
        self.ops[op.order] = op

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        key = self._count(name)
        if any(t.requires_grad for t in tensors_in(out)):
            still = [(i, t) for i, t in enumerate(tensors_in(arguments)) if not t.requires_grad]
            self.fixed[key] = {i: (t, version(t)) for i, t in still}


class _There(_Watching):
    """Keeps the tensors of the same operations in another pass, and names those whose fixed tensors moved."""

    tensors: dict[int, Tensors]

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.moved: list[str] = []

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        if fixed := self.fixed.get(self._count(name)):
            found = tensors_in(arguments)
            for i, (t, was) in fixed.items():
                if version(t) == was and i < len(found) and not _same(t, found[i]):  # else it is another one by now
                    self.moved.append(name)

    def passed(self, name: str, order: int, tensors: Tensors) -> None:
        if order in self.ops and self.ops[order].name == name:
            self.tensors[order] = tuple(t if isinstance(t, nn.Parameter) else t.clone() for t in tensors)


def _same(t: Tensor, t0: Tensor) -> bool:
    """Whether tensors are equal, but for the number of rows that repeat."""
    if t.data_ptr() == t0.data_ptr() and t.shape == t0.shape and t.stride() == t0.stride():
        return True
    if t.ndim != t0.ndim or not t.numel():
        return t.shape == t0.shape
    for d in _differing(t, t0):
        if any(not torch.equal(v, v.narrow(d, 0, 1).expand_as(v)) for v in (t, t0)):
            return False
        t, t0 = (v.narrow(d, 0, 1) for v in (t, t0))
    return torch.equal(t, t0)


def _differing(t: Tensor, t0: Tensor) -> list[int]:
    return [d for d, (a, b) in enumerate(zip(t.shape, t0.shape, strict=True)) if a != b]


def lift(
    f: Probe, references: Tensors, paired: bool, combine: Combine, eps: float, otherwise: str
) -> tuple[Any, Tensor]:
    """What is made of the multipliers, as a :class:`Local`, and the sums of the contributions [B, S] ([B, S, T])."""
    rules = Lift(f, references, paired, combine, eps, otherwise)
    at = f.to(rules=rules).local()
    return at, torch.cat(rules.sums)


def asking(method: Callable[P, R]) -> Callable[P, R]:
    """Runs a method with what its ``baselines`` make, if they are a function, which is asked outside any guard."""
    takes = signature(method)

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        told = takes.bind(*args, **kwargs)
        if "baselines" in told.arguments:
            told.arguments["baselines"] = given_by(told.arguments["baselines"], told.arguments["inputs"])
        return method(*told.args, **told.kwargs)

    return run


class DeepLift(GradientAttribution):
    """DeepLIFT with the rescale rule: contributions of the inputs' differences from the baselines.

    Shrikumar, Greenside, Kundaje (ICML 2017), arXiv 1704.02685; by gradients, as in Ancona et al. (ICLR 2018). Law:
    contributions add up to the score's rise from the baseline, to rounding, through any operation that has a rule:
    activations however they are written, pools, softmax, norms, products of two branches, recurrent layers. Two
    forward passes (one row for a baseline that all examples share) and one backward pass.

    Args:
        model: the model; unlike Captum's it may be any callable.
        multiply_by_inputs: False gives the multipliers, without the factor inputs - baselines.
        eps: differences up to here count as none.
        otherwise: what to do with an operation that has no rule: ``"error"`` names it, ``"gradient"`` lets its plain
            gradient pass, and contributions then miss the total by what that is wrong.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    >>> x = torch.rand(4, 3)
    >>> a, delta = DeepLift(model).attribute(x, target=1, return_convergence_delta=True)
    >>> a.shape, bool(delta.abs().max() < 1e-5)
    (torch.Size([4, 3]), True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        multiply_by_inputs: bool = True,
        eps: float = 1e-10,
        *,
        otherwise: str = "error",
    ) -> None:
        super().__init__(model)
        self._set(multiply_by_inputs, eps, otherwise)

    def _set(self, multiply: bool, eps: float = 1e-10, otherwise: str = "error") -> None:
        self._multiply, self.eps, self.otherwise = multiply, eps, resort(otherwise)

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply

    def has_convergence_delta(self) -> bool:
        return True

    @asking
    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: Callable[..., Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Contributions shaped like the inputs; with ``return_convergence_delta`` also by how much they miss the rise.

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            custom_attribution_func: makes contributions of (multipliers), (multipliers, inputs) or (multipliers,
                inputs, baselines), each a tuple of tensors.

        Raises:
            RuleError: an operation has no rule, or the model takes another way for the baseline.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        parts, delta = self._lifted(f, baselines, custom_attribution_func, return_convergence_delta)
        return (door.out(parts), delta) if return_convergence_delta else door.out(parts)

    def _references(self, f: Probe, baselines: Any) -> tuple[Tensors, bool]:
        """Reference inputs, and whether each example has its own."""
        references = through(baselines)(f.to(at=Input()))
        shared = f.examples > 0 and all(bool((t == t[:1]).all()) for t in references)
        return tuple(t[:1] for t in references) if shared else references, not shared

    def _lifted(
        self, f: Probe, baselines: Any, custom: Callable[..., Any] | None, delta: bool
    ) -> tuple[Tensors, Tensor | None]:
        references, paired = self._references(f, baselines)
        at, sums = lift(f, references, paired, self._combine(f, custom), self.eps, self.otherwise)
        return at.packing.unpack(at.grad), self._delta(f, references, paired, sums) if delta else None

    def _combine(self, f: Probe, custom: Callable[..., Any] | None) -> Combine:
        if custom is None:
            return (lambda m, here, there: times(here - there, m)) if self._multiply else (lambda m, here, there: m)
        if not callable(custom):
            raise TypeError(f"custom_attribution_func must be a function, got {type(custom).__name__}")
        asks = len(signature(custom).parameters)

        def asked(m: Tensor, here: Tensor, there: Tensor) -> Tensor:
            told = [f.packing.unpack(t) for t in (m, here, there.expand_as(here))]
            found = custom(*told[:asks])
            return f.packing.pack((found,) if isinstance(found, Tensor) else found)

        return asked

    def _delta(self, f: Probe, references: Tensors, paired: bool, sums: Tensor) -> Tensor:
        """Sums of contributions less the rises [B], or [B * S] for several references, example by example."""
        if paired:
            return sums.squeeze(1) - rise(f, references)
        rises = [rise(f, tuple(t[s : s + 1] for t in references)) for s in range(len(references[0]))]
        return (sums - torch.stack(rises, 1)).flatten(0, 1)


class _Distribution(DeepLift):
    def _references(self, f: Probe, baselines: Any) -> tuple[Tensors, bool]:
        return distribution(baselines, f), False


class DeepLiftShap(_Distribution, DeepLift):
    """DeepLIFT averaged over a distribution of baselines: approximates Shapley values.

    Lundberg, Lee (NeurIPS 2017), arXiv 1705.07874, section 4.2. The inputs and each baseline go forward once; a pair
    of them costs one backward pass. Chunks are chosen so that they fit into memory.

    Here ``baselines`` is a distribution: tensors with any number S of rows, one for each input, or a function that
    makes them, without arguments or of the inputs. The delta is that of each pair [B * S], example by example.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    >>> x, data = torch.rand(4, 3), torch.rand(10, 3)
    >>> a = DeepLiftShap(model).attribute(x, data, target=1)
    >>> rise = model(x)[:, 1] - model(data)[:, 1].mean()
    >>> torch.allclose(a.sum(1), rise, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        eps: float = 1e-10,
        otherwise: str = "error",
    ) -> None:
        super().__init__(model, multiply_by_inputs, eps, otherwise=otherwise)


class LayerDeepLift(LayerAttribution, DeepLift):
    """DeepLIFT at a layer: contributions of what the layer makes of the inputs, against what it makes of the baselines.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> LayerDeepLift(model, model[0]).attribute(torch.tensor([[1, 2, 3]]), target=0).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: Any,
        multiply_by_inputs: bool = True,
        *,
        eps: float = 1e-10,
        otherwise: str = "error",
    ) -> None:
        LayerAttribution.__init__(self, model, layer)
        self._set(multiply_by_inputs, eps, otherwise)

    @asking
    @guarded
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        custom_attribution_func: Callable[..., Any] | None = None,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Contributions shaped like the layer's output (or its input); otherwise as for :class:`DeepLift`."""
        only_unused(grad_kwargs)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        parts, delta = self._lifted(f, baselines, custom_attribution_func, return_convergence_delta)
        return (self._out(site, parts), delta) if return_convergence_delta else self._out(site, parts)


class LayerDeepLiftShap(_Distribution, LayerDeepLift):
    """:class:`DeepLiftShap` at a layer.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    >>> LayerDeepLiftShap(model, model[0]).attribute(torch.rand(4, 3), torch.rand(10, 3), target=1).shape
    torch.Size([4, 8])
    """


class NeuronDeepLift(NeuronAttribution, DeepLift):
    """DeepLIFT of a neuron's value.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(2, 3)
    >>> a = NeuronDeepLift(model, model[1]).attribute(x, 1)
    >>> rise = (model[:2](x) - model[:2](torch.zeros(1, 3)))[:, 1]
    >>> torch.allclose(a.sum(1), rise, atol=1e-6)
    True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: nn.Module | Layer,
        multiply_by_inputs: bool = True,
        *,
        eps: float = 1e-10,
        otherwise: str = "error",
    ) -> None:
        NeuronAttribution.__init__(self, model, layer)
        self._set(multiply_by_inputs, eps, otherwise)

    @asking
    @guarded
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        baselines: Any = None,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        custom_attribution_func: Callable[..., Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Contributions shaped like the inputs.

        Args:
            neuron_selector, attribute_to_neuron_input: see :class:`NeuronIntegratedGradients`.
            inputs, baselines, additional_forward_args, custom_attribution_func: as for :class:`DeepLift`.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(self._lifted(f, baselines, custom_attribution_func, delta=False)[0])


class NeuronDeepLiftShap(_Distribution, NeuronDeepLift):
    """:class:`DeepLiftShap` of a neuron's value; ``baselines`` is a distribution.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    >>> NeuronDeepLiftShap(model, model[1]).attribute(torch.rand(2, 3), 1, torch.rand(5, 3)).shape
    torch.Size([2, 3])
    """

"""Layer-wise relevance propagation, through operations instead of modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..engine.guard import guarded, modules_of
from ..engine.operations import CHOICES, ELEMENTWISE, LINEAR, MOVES, PARTS, POOLS, PRODUCTS, SWITCHES, norms
from ..engine.packing import row_sums, times
from ..engine.probe import Local, Probe
from ..engine.rules import Again, Back, Op, Rule, Ruled, RuleError, Rules, known, resort, tensors_in
from ..engine.sites import Layer, Together
from .base import GradientAttribution, LayerAttribution
from .lrp_rules import EpsilonRule, FreeRule, IdentityRule, Map, PropagationRule, steady

Kind = str | type[nn.Module]
"""A layer's name, with wildcards if need be, or its type."""

HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "abs"})  # f(x) = x f'(x): their gradient passes all relevance
POOLING = POOLS | {name for name in LINEAR if "pool" in name}
BIASED = frozenset({"linear", *(name for name in PRODUCTS if name.startswith("conv") and name[-1] == "d")})
AFFINE = BIASED | {"matmul", "mm", "bmm", "einsum", "tensordot"}
SINGLY = ELEMENTWISE | {"add", "sub", "rsub", "neg", "positive", "mul", "div", "batch_norm", "deg2rad", "rad2deg"}
OWNED = AFFINE | POOLING | {"batch_norm"}  # what a module's rule is for
PLAIN = LINEAR | MOVES | PRODUCTS | POOLS | CHOICES | SWITCHES | HOMOGENEOUS | {"softmax"}


# --- operations -------------------------------------------------------------------------------------------


def passed(op: Op, g: Tensor) -> Back:
    """A function of each element: R stays, so g becomes g f(x) / x, and at zero the limit g f'(0) (if f(0) = 0)."""
    if sum(op.needs) > 1:
        raise RuleError(f"there is no rule for {op.name!r} of several tensors that depend on the site")
    x, y = op.tensors[op.needs.index(True)], op(*op.tensors)
    zero = x.abs() < torch.finfo(x.dtype).tiny
    m = y / torch.where(zero, 1, x)
    if zero.any():
        slope = op.pull_back(torch.ones_like(y))[op.needs.index(True)]
        assert slope is not None, "it depends on the site"
        m = torch.where(zero, slope, m)
    return _only(op, g * m)


def halved(op: Op, g: Tensor) -> Back:
    """A product of several tensors: R in equal parts (Achtibat et al., ICML 2024, proposition 3.3)."""
    return tuple(None if b is None else b / sum(op.needs) for b in op.pull_back(g))


def quotient(op: Op, g: Tensor) -> Back:
    """All to the dividend, as if the divisor were a constant; of a constant's quotient, to the divisor."""
    if op.kwargs.get("rounding_mode") is not None:
        raise RuleError("there is no rule for a division that rounds")
    if not op.needs[0] or not isinstance(op.args[0], Tensor):
        return passed(op, g)
    return (op.pull_back(g)[0], *(None for _ in op.needs[1:]))


def by_gradient(op: Op, g: Tensor) -> Back:
    """The plain gradient."""
    return op.pull_back(g)


def _held_softmax(x: Tensor, *args: Any, _stacklevel: int = 3, **kwargs: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.detach().softmax(*args[:1], **kwargs)


def _held_log_softmax(x: Tensor, *args: Any, _stacklevel: int = 3, **kwargs: Any) -> Tensor:
    """What it takes off is held still."""
    with torch._C.DisableTorchFunction():
        constant = x.detach() - x.detach().log_softmax(*args[:1], **kwargs)
    return x - constant


HELD: dict[str, Callable[..., Any]] = {**PARTS, **norms(Tensor.detach), "log_softmax": _held_log_softmax}
"""Operations in parts, of which norms' deviations are held still."""


def _weighted(op: Op) -> None:
    """Raises RuleError if it is not clear what in an affine map is the input, and what the weight."""
    if (op.name in BIASED and op.needs[0]) or (op.name not in BIASED and len(op.tensors) == 2):
        return
    raise RuleError(
        f"{op.owner.rule} of layer {op.owner.name!r} cannot tell input and weight of {op.name!r} apart: it takes an "
        "input first and constant weights behind it, or two tensors; leave the layer without a rule"
    )


def _value(op: Op) -> Tensor:
    out = op(*op.tensors)
    return out if isinstance(out, Tensor) else out[0]  # values come first


def _only(op: Op, g: Tensor) -> Back:
    return tuple(g if n else None for n in op.needs)


# --- one pass ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """A module and its rule."""

    name: str
    module: nn.Module
    rule: PropagationRule


@dataclass(eq=False)
class Passage:
    """An affine map with a rule, in one pass of the model."""

    kind: str
    owner: Owner
    leaves: Tensor | None  # what comes out, until the pass is forgotten
    version: int  # of what comes out, before anything writes over it
    op: Op | None = None  # None where only an epsilon is put on what comes out
    enters: Tensor | None = None  # what goes in, for a free rule
    uses: int = 0  # operations that look at what comes out
    followed: bool = False  # a batch norm does
    norm: Op | None = None  # which one, where the map answers for both
    freed: list[Tensor] = field(default_factory=list)  # relevance of what goes in, by a free rule

    @property
    def foldable(self) -> bool:
        """Whether a batch norm behind it would scale its units: its channels are theirs."""
        assert self.leaves is not None, "asked while the pass lasts"
        return self.kind.startswith("conv") or (self.kind == "linear" and self.leaves.ndim == 2)

    @property
    def folded(self) -> bool:
        """Whether a batch norm behind it alone sees what comes out: both are one map."""
        return self.followed and self.uses == 1

    @property
    def map(self) -> Map:
        op = self.op
        assert op is not None and self.leaves is not None, "asked while the pass lasts, for a map with a rule"
        i = op.needs.index(True)
        weight, bias = op.tensors[1 - i], op.tensors[2] if len(op.tensors) > 2 else None
        named = dict(zip(("input", "weight", "bias"), op.args, strict=False)) | op.kwargs
        others = {k: v for k, v in named.items() if k not in ("input", "weight", "bias")}

        def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            if op.name in BIASED:
                return op.func(x, w, b, *op.args[3:], **others)  # type: ignore[no-any-return]  # a function of torch's
            out: Tensor = op(*((x, w) if i == 0 else (w, x)))
            return out if b is None else out + b

        if self.folded and self.norm is not None:
            weight, bias = fold(op, self.norm, weight, bias)
        as_it_was = not self.folded and self.leaves._version == self.version
        return Map(op.tensors[i], weight, bias, run, self.owner.module, self.leaves.detach() if as_it_was else None)


def fold(op: Op, norm: Op, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer or convolution with the batch norm behind it."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    told = dict(zip(names, norm.args, strict=False)) | norm.kwargs
    mean, var = told["running_mean"], told["running_var"]
    scale = (var + told.get("eps", 1e-5)).rsqrt()
    scale = scale if told.get("weight") is None else scale * told["weight"]
    shift = -mean * scale if told.get("bias") is None else told["bias"] - mean * scale
    shift = shift if bias is None else shift + bias * scale
    if not op.name.startswith("conv_transpose"):
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), shift
    groups = len(scale) // weight.shape[1]
    apart = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
    return apart.flatten(0, 1), shift


class Passing(Ruled):
    """The mode of one pass: the rules of operations, and of modules for the affine maps within them."""

    def __init__(
        self, owned: bool, free: bool, softmax: bool, otherwise: str, told: Callable[[str], None] | None
    ) -> None:
        rules: dict[str, Rule] = dict.fromkeys(ELEMENTWISE if free else ELEMENTWISE - HOMOGENEOUS, passed)
        rules |= dict.fromkeys(PRODUCTS, halved) | {"div": quotient}
        joint = PRODUCTS
        if owned:
            rules |= dict.fromkeys(OWNED, self._owned)
            joint = joint - AFFINE
        if free:
            rules |= dict.fromkeys((LINEAR | ({"softmax"} if softmax else set())) - rules.keys(), by_gradient)
            rules, joint = {name: partial(self._either, rule) for name, rule in rules.items()}, frozenset()
        parts = HELD if softmax else {**HELD, "softmax": _held_softmax}
        super().__init__(rules, joint, parts, PLAIN, otherwise)
        self.owned, self.free, self.told = owned, free, told
        self.maps: dict[int, Passage] = {}  # by the operation's place in the pass
        self.behind: dict[int, Passage] = {}  # maps by the place of the batch norm behind them
        self.freeing = False
        self._leaving: dict[int, Passage] = {}
        self._op: Op | None = None

    def met(self, op: Op) -> None:
        self._op = op

    def _ruled(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Only what a rule changes passes by it; an epsilon, where it is all, is put on what comes out."""
        given = list(tensors_in((args, kwargs)))
        owner: Owner | None = self.owners[-1] if self.owners else None
        before = self._before(name, given, owner)
        plain = owner is None or type(owner.rule) is EpsilonRule
        plain |= name not in AFFINE and owner is not None and not isinstance(owner.rule, IdentityRule)
        if before is not None:
            plain = before.op is None
        if self.free or name not in OWNED or not plain or sum(map(self.moves, given)) > 1:
            return super()._ruled(name, func, args, kwargs)
        args, kwargs = self.cut((args, kwargs))
        return func(*args, **kwargs)

    def _before(self, name: str, given: list[Tensor], owner: Owner | None) -> Passage | None:
        """The map whose output a batch norm takes, if both may be one."""
        found = self._leaving.get(id(given[0])) if name == "batch_norm" and given else None
        return found if found is not None and found.foldable and owner in (None, found.owner) else None

    def ran(self, name: str, arguments: Any, out: Any) -> None:
        op, self._op = self._op, None
        if not self.owned:
            return
        given = list(tensors_in(arguments))
        moving = [t for t in given if self.moves(t)]
        if not moving or not any(t.requires_grad for t in tensors_in(out)):
            return
        for t in moving:
            if id(t) in self._leaving:
                self._leaving[id(t)].uses += 1
        owner: Owner | None = self.owners[-1] if self.owners else None
        before = self._before(name, given, owner)
        if before is not None:
            before.followed = True
            if op is None:
                self._steady(out, before.owner.rule, lambda: before.folded)
            else:
                before.norm, self.behind[op.order] = op, before
        if owner is None or name not in OWNED or len(moving) > 1 or (before is not None and op is not None):
            return
        if name not in AFFINE:
            if op is None and before is None:
                self._steady(out, owner.rule, lambda: True)
            return
        passage = self._leaving[id(out)] = Passage(name, owner, out, out._version, op)
        if op is None:
            self._steady(out, owner.rule, lambda: not passage.folded)
        else:
            _weighted(op)
            self.maps[op.order] = passage
            if isinstance(owner.rule, FreeRule):
                passage.enters = moving[0].clone()  # before the model may write over it
        self._tell(owner, name)

    def _steady(self, out: Any, rule: PropagationRule, holds: Callable[[], bool]) -> None:
        """What comes out loses the relevance of sums near zero that epsilon takes; where it ``holds``, by then."""
        y = out if isinstance(out, Tensor) else out[0]
        share = y.detach() / steady(y.detach(), rule.STABILITY_FACTOR)
        y.register_hook(lambda g: g * share if holds() else g)

    def forget(self) -> None:
        """What autograd's nodes refer to must not refer to them: that would never be freed."""
        for passage in self._leaving.values():
            passage.leaves = passage.enters = None
        for told in (self.maps, self.behind, self._leaving):
            told.clear()

    def _tell(self, owner: Owner, name: str) -> None:
        if self.told is not None:
            self.told(f"Applied {owner.rule} on layer {owner.name}: {name}")

    def _owned(self, op: Op, g: Tensor) -> Back:
        """The rule of the module that an operation belongs to."""
        before = self.behind.get(op.order)
        if before is not None and before.folded:
            return _only(op, g)  # the map before it answers for both
        if sum(op.needs) > 1:
            return halved(op, g)
        if op.owner is None:
            return op.pull_back(g)
        rule: PropagationRule = op.owner.rule
        if op.order not in self.maps:  # a pool, or a batch norm by itself, whose weights no rule changes
            y = _value(op)
            if isinstance(rule, IdentityRule):
                return _only(op, rule.handed_on(op.tensors[op.needs.index(True)], y, g))
            return op.pull_back(g * y / steady(y, rule.STABILITY_FACTOR))
        at = self.maps[op.order].map
        if not isinstance(rule, FreeRule):
            return _only(op, rule.gradient(at, g))
        if self.freeing:
            return _only(op, rule.relevance(at, g))
        self.maps[op.order].freed.append(rule.relevance(at, g * at.y))
        return _only(op, torch.zeros_like(at.x))

    def _either(self, rule: Rule, op: Op, g: Tensor) -> Back:
        """The rule; or, while relevance itself goes back, what the rule makes of that."""
        free = op.order in self.maps and isinstance(op.owner.rule, FreeRule)
        if not self.freeing or free:
            return rule(op, g)
        if op.name in POOLS:
            return op.pull_back(g)
        y = self.maps[op.order].map.y if op.order in self.maps else _value(op)
        if op.name in SINGLY and sum(op.needs) == 1 and y.shape == op.tensors[op.needs.index(True)].shape:
            return _only(op, g)
        back = rule(op, g / steady(y, EpsilonRule.STABILITY_FACTOR))
        return tuple(None if b is None else b * t for b, t in zip(back, op.tensors, strict=True))

    def freed(self, slope: Callable[..., Tensor], scores: int) -> list[Tensor]:
        """What free rules gave to what enters their maps, taken on to the site, for each score [n, L]."""
        maps = [m for m in self.maps.values() if m.freed]
        if any(len(m.freed) != scores for m in maps):
            raise RuleError("a layer with a free rule is not on the way to all targets; ask for one target at a time")
        self.freeing = True
        found = []
        for s in range(scores if maps else 0):
            with torch.enable_grad():
                parts = [(m.enters * m.freed[s].detach()).sum() for m in maps if m.enters is not None]
                pull = torch.stack(parts).sum()
            found.append(slope(pull[None]))
        return found


class Relevance(Rules):
    """Relevance passes every operation, all of it.

    What is affine passes it by its plain gradient, or by the rule of the innermost module around it that has one.
    Functions of single elements hand on what they get. Norms hold the deviation still, and attention its weights, so
    that what is left is linear (Ali, Schnake, Eberle, Montavon, Müller, Wolf, ICML 2022); products of two branches
    share it equally.

    Args:
        model: what is asked.
        owners: the modules that have a rule.
        softmax: pass it by its gradient instead of holding it still.
        otherwise: see :class:`robustx.engine.rules.Ruled`.
        told: called with a line for each operation that a module's rule is used for.
    """

    def __init__(
        self,
        model: Any,
        owners: Mapping[nn.Module, Owner],
        softmax: bool = False,
        otherwise: str = "error",
        told: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.owners, self.softmax, self.otherwise, self.told = model, owners, softmax, otherwise, told
        self._mode: Passing | None = None
        self._returns = True  # whether anything of what is explained depends on the site

    def forward(self, run: Callable[[], Any], again: Again, rows: Tensor) -> Any:
        free = any(isinstance(o.rule, FreeRule) for o in self.owners.values())
        self._mode = mode = Passing(bool(self.owners), free, self.softmax, self.otherwise, self.told)
        with mode.over(self.model), mode.inside(self.owners):
            out = run()
        if self.otherwise == "error":
            known(out)
        self._returns = any(t.requires_grad for t in tensors_in(out))
        return out

    def backward(self, slope: Callable[..., Tensor], here: Tensor, rows: Tensor) -> Tensor:
        """R at the site."""
        mode = self._mode
        assert mode is not None, "forward comes first"
        if not self._returns:
            raise RuleError(
                "no relevance comes back from what is explained: it rests on a softmax alone, which is held still "
                "(explain the logits before it), or on what passed a detach, a rounding to integers, argmax or no_grad"
            )
        g = slope()
        r = times(here, g)
        found = mode.freed(slope, 1 if g.ndim == 2 else g.shape[1])
        if found:
            r = r + (found[0] if g.ndim == 2 else torch.stack(found, 1))
        return r

    def forget(self) -> None:
        if self._mode is not None:
            self._mode.forget()
        self._mode = None


# --- faces ------------------------------------------------------------------------------------------------


class LRP(GradientAttribution):
    """Layer-wise relevance propagation: the score, handed back through the model from layer to layer.

    Bach, Binder, Montavon, Klauschen, Müller, Samek (PLOS ONE 2015). Law: without biases, and with rules that conserve
    relevance, attributions add up to the score, through any operation however it is written: functions and residual
    sums, layers that are used again, norms, attention. One pass forward and one backward (two with a
    :class:`FreeRule`). Nothing of the model is changed.

    A layer's rule is its ``module.rule``, else what ``rules`` say of its name, else of its type; it holds for all
    affine maps within the module that have no rule nearer to them. Where there is none, epsilon is zero.

    Args:
        model: the model.
        rules: a layer's name (``"conv1"``, with wildcards ``"features.*"``) or type -> its rule; the first that fits.
        otherwise: what to do with an operation that has no rule: ``"error"`` names it, ``"gradient"`` lets its plain
            gradient pass.

    Raises:
        TypeError: a ``module.rule``, or one of ``rules``, is no :class:`PropagationRule`.
        ValueError: a name in ``rules`` fits no layer.

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(3, 8, bias=False), torch.nn.GELU(), torch.nn.Linear(8, 2, bias=False)
    ... )
    >>> x = torch.rand(4, 3)
    >>> a = LRP(model).attribute(x, target=1)
    >>> torch.allclose(a.sum(1), model(x)[:, 1], atol=1e-6)
    True
    >>> from robustx.attribution import EpsilonRule, GammaRule
    >>> sharper = LRP(model, rules={"0": GammaRule(0.25), torch.nn.Linear: EpsilonRule(1e-6)})
    >>> sharper.attribute(x, target=1).shape
    torch.Size([4, 3])
    """

    softmax: ClassVar[bool] = False

    def __init__(
        self,
        model: Callable[..., Any],
        rules: Mapping[Kind, PropagationRule] | None = None,
        *,
        otherwise: str = "error",
    ) -> None:
        super().__init__(model)
        self._set(rules, otherwise)

    def _set(self, rules: Mapping[Kind, PropagationRule] | None, otherwise: str) -> None:
        self.rules, self.otherwise = dict(rules or {}), resort(otherwise)
        self._owners()  # so that mistakes show at once

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    def has_convergence_delta(self) -> bool:
        return True

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Relevances shaped like the inputs; with ``return_convergence_delta`` also what of the score they miss [B].

        Args:
            inputs, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            verbose: print which layer's rule is used for which operation.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        at = self._passed(f, verbose)
        parts = at.packing.unpack(at.grad)
        if not return_convergence_delta:
            return door.out(parts)
        return door.out(parts), self.compute_convergence_delta(parts, at.value)

    def compute_convergence_delta(self, attributions: Any, output: Tensor) -> Tensor:  # type: ignore[override]  # Captum's
        """What the attributions [B, ...] miss of the scores ``output`` [B]: what biases and epsilons took."""
        if isinstance(attributions, Mapping):
            attributions = attributions.values()
        parts = (attributions,) if isinstance(attributions, Tensor) else tuple(attributions)
        return output - row_sums(parts, output.ndim)

    def _passed(self, f: Probe, verbose: bool) -> Local:
        rules = Relevance(self.forward_func, self._owners(), self.softmax, self.otherwise, print if verbose else None)
        return f.to(rules=rules).local()

    def _owners(self) -> dict[nn.Module, Owner]:
        """Modules with a rule."""
        named = {m: n for whole in modules_of(self.forward_func) for n, m in whole.named_modules()}
        for kind, rule in self.rules.items():
            if not isinstance(rule, PropagationRule):
                raise TypeError(f"rules must be PropagationRules, such as EpsilonRule(), got {rule!r} for {kind!r}")
            if isinstance(kind, str) and not any(fnmatchcase(n, kind) for n in named.values()):
                names = [n for n in named.values() if n]
                told = ", ".join(names[:8]) + ", ..." * (len(names) > 8) if names else "'' alone, the model itself"
                raise ValueError(f"rules name a layer {kind!r}, but the model has none; its layers are {told}")
        found = {}
        for module, name in named.items():
            own = getattr(module, "rule", None)
            if own is not None and not isinstance(own, PropagationRule):
                raise TypeError(
                    f"rule of layer {name!r} must be a rule of robustx.attribution, such as EpsilonRule(), got {own!r}"
                )
            given = own or next((r for k, r in self.rules.items() if _fits(k, name, module)), None)
            if given is not None:
                found[module] = Owner(name, module, given)
        return found


def _fits(kind: Kind, name: str, module: nn.Module) -> bool:
    return fnmatchcase(name, kind) if isinstance(kind, str) else isinstance(module, kind)


class LayerLRP(LayerAttribution, LRP):
    """:class:`LRP` down to a layer, or to several from one pass: the relevance of what stands there.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
    >>> x = torch.rand(5, 3)
    >>> a = LayerLRP(model, model[1]).attribute(x, target=1)
    >>> torch.allclose(a, model[:2](x) * model[2].weight[1])
    True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: nn.Module | Layer | list[nn.Module | Layer],
        rules: Mapping[Kind, PropagationRule] | None = None,
        *,
        otherwise: str = "error",
    ) -> None:
        LayerAttribution.__init__(self, model, layer)
        self._set(rules, otherwise)

    @guarded
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Relevances shaped like the layer's output (or its input), and what of the score each misses [B]; lists of
        these for several layers.
        """
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        at = self._passed(f, verbose)
        found = self._out(site, at.packing.unpack(at.grad))
        if not return_convergence_delta:
            return found
        each = found if isinstance(site, Together) else [found]
        deltas = [self.compute_convergence_delta(a, at.value) for a in each]
        return found, deltas if isinstance(site, Together) else deltas[0]


class AttnLRP(LRP):
    """LRP whose relevance goes on through attention's weights to queries and keys.

    Achtibat et al. (ICML 2024), arXiv 2402.05602: softmax by its Taylor expansion (proposition 3.1), which is its plain
    gradient here; products of queries, keys and values share equally (proposition 3.3). The expansion has a constant
    term, which takes relevance as a bias does.

    >>> import torch
    >>> encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> AttnLRP(lambda x: encoder(x)[:, 0]).attribute(torch.rand(3, 5, 8), target=1).shape
    torch.Size([3, 5, 8])
    """

    softmax: ClassVar[bool] = True


class LayerAttnLRP(LayerLRP):
    """:class:`AttnLRP` down to a layer, such as the embedding of token ids."""

    softmax: ClassVar[bool] = True

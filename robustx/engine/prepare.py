"""Prepare: the user's own model, run with weights that give its answers sooner.

Nothing of the model is changed, and its own code runs as it is written. A mode sees the operations of its first pass,
and in later ones hands those that have weights others, made for one run: a batch norm that alone takes up what a
convolution or a linear layer gives is folded into it (Jacob et al., CVPR 2018, section 3.2), and where a search may be
rough, weights and activations are bfloat16. What is found that way is for the model itself to confirm.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .guard import modules_of
from .memory import Pace, eagerly
from .packing import finest
from .probe import Probe
from .rules import ASIDE, name_of, tensors_in
from .sites import Input

PRECISIONS = ("exact", "fast", None)
AS_IS = 32  # rows that go through the model itself before exact weights are worth making: short searches end before

_OUT = {F.conv1d: 0, F.conv2d: 0, F.conv3d: 0, F.linear: 0} | dict.fromkeys(
    (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1
)
"""The operations with weights, and the axis of a weight that counts their channels."""


@dataclass(frozen=True, eq=False)
class _Norm:
    """What a batch norm in eval mode does to each channel."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, args: Any, kwargs: dict[str, Any]) -> "_Norm | None":
        """That of a call of ``F.batch_norm``; None if it takes the batch's own mean."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        mean, var = given["running_mean"], given["running_var"]
        if given.get("training") or mean is None or var is None:
            return None
        return cls(mean, var, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=self.eps)

    def same(self, other: "_Norm") -> bool:
        return self.eps == other.eps and all(
            getattr(self, n) is getattr(other, n) for n in ("mean", "var", "weight", "bias")
        )


@dataclass(eq=False)
class _Layer:
    """The operations with one weight: how often they were seen, what took up what they gave, what replaces them."""

    weight: Tensor
    bias: Tensor | None
    axis: int
    calls: int = 0
    normed: int = 0
    norm: _Norm | None = None
    spoilt: bool = False
    made: tuple[Tensor, Tensor | None] | None = None

    @property
    def folds(self) -> bool:
        return self.norm is not None and not self.spoilt and self.normed == self.calls

    def taken(self, norm: _Norm | None) -> None:
        """An output was taken up by a norm, or by anything else."""
        self.normed += norm is not None
        self.spoilt |= norm is None or (self.norm is not None and not norm.same(self.norm))
        self.norm = norm

    def make(self, again: Callable[..., Tensor], dtype: torch.dtype) -> None:
        """Makes the weight and bias to use; ``again`` does the operation with others, on a few rows."""
        with torch.no_grad():
            weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
            if self.norm is not None and self.folds:
                folded = self._folded(self.norm)
                plain, new = self.norm(again(weight, bias)), again(*folded)
                # what all but vanishes in a channel that never changed leaves rounding behind
                self.spoilt = not (new - plain).abs().max() <= 1e3 * torch.finfo(plain.dtype).eps * plain.abs().max()
                weight, bias = (weight, bias) if self.spoilt else folded
            if dtype != weight.dtype:
                weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
                if weight.ndim == 4:
                    weight = weight.contiguous(memory_format=torch.channels_last)
        self.made = weight, bias

    def _folded(self, norm: _Norm) -> tuple[Tensor, Tensor]:
        scale = (finest(norm.var) + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = ((0 if self.bias is None else self.bias) - norm.mean) * scale + (0 if norm.bias is None else norm.bias)
        shape = [-1 if i == self.axis else 1 for i in range(self.weight.ndim)]
        return self.weight * scale.to(self.weight).view(shape), shift.to(self.weight)


class _Watch(TorchFunctionMode):
    """Sees which weights a model uses, and which of what they give only a batch norm takes up."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, _Layer] = {}  # by the identity of their weights, which they hold
        self._open: dict[int, tuple[weakref.ref[Tensor], _Layer]] = {}

    def over(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, watched."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with eagerly(), self:
                out = model(*args, **kwargs)
            for ref, layer in self._open.values():
                if ref() is not None:  # it was returned, or somebody keeps it
                    layer.taken(None)
            self._open.clear()
            return out

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name_of(func) in ASIDE:
            return func(*args, **kwargs)
        norm = _Norm.of(args, kwargs) if func is F.batch_norm else None
        for t in tensors_in((args, kwargs)):
            if id(t) in self._open and self._open[id(t)][0]() is t:
                self._open[id(t)][1].taken(norm if args and t is args[0] else None)
        out = func(*args, **kwargs)
        if func in _OUT:
            _, weight, bias, _ = _parts(args, kwargs)
            layer = self.layers.setdefault(id(weight), _Layer(weight, bias, _OUT[func]))
            layer.calls += 1
            # the channels that a norm sees must be those of the weight
            channels = out.ndim == weight.ndim and out.shape[1] == weight.shape[layer.axis]
            layer.spoilt |= not channels or bias is not layer.bias or layer.axis != _OUT[func]
            layer.spoilt |= out.dtype not in (torch.float32, torch.float64)  # others round too much
            self._open[id(out)] = weakref.ref(out), layer
        return out


class _Swap(TorchFunctionMode):
    """Hands operations the weights that were made for them, and passes over norms that these contain."""

    def __init__(self, layers: dict[int, _Layer], dtype: torch.dtype | None, head: _Layer) -> None:
        super().__init__()
        self.layers, self.dtype, self.head = layers, dtype, head
        self._normed: dict[int, tuple[Tensor, _Norm]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _OUT:
            x, weight, bias, rest = _parts(args, kwargs)
            layer = self.layers.get(id(weight))
            if layer is not None and layer.bias is bias:
                return self._swapped(rest(func), x, layer)
        elif func is F.batch_norm and args and id(args[0]) in self._normed:
            x, norm = self._normed.pop(id(args[0]))
            if norm.same(_Norm.of(args, kwargs) or norm):
                return x
        elif func is Tensor.view and self.dtype is not None and not isinstance(args[-1], torch.dtype):
            func = Tensor.reshape  # channels stand last meanwhile
        return func(*args, **kwargs)

    def _swapped(self, func: Callable[..., Tensor], x: Tensor, layer: _Layer) -> Tensor:
        own = self.dtype is None or layer is self.head  # logits keep their digits
        dtype = layer.weight.dtype if own or self.dtype is None else self.dtype
        with torch.autocast(x.device.type, enabled=False) if own else nullcontext():
            if layer.made is None:
                layer.make(partial(func, x[:4].detach().to(layer.weight.dtype)), dtype)
            assert layer.made is not None
            out = func(x.to(dtype), *layer.made)
        if layer.norm is not None and layer.folds:
            self._normed[id(out)] = out, layer.norm
        return out


class Prepared:
    """A model, called as it is, that runs with other weights; made anew for each run, so none are ever stale."""

    def __init__(self, model: Callable[..., Any], layers: dict[int, _Layer], dtype: torch.dtype | None) -> None:
        self.model, self.layers, self.dtype, self.rows = model, layers, dtype, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = tensors_in((args, kwargs))
        self.rows += len(inputs[0])
        if self.dtype is None and self.rows <= AS_IS:
            return self.model(*args, **kwargs)
        rough = nullcontext() if self.dtype is None else torch.autocast(inputs[0].device.type, self.dtype)
        with eagerly(), rough, _Swap(self.layers, self.dtype, list(self.layers.values())[-1]):
            out = self.model(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.float() if t.dtype == self.dtype else t, out)


def prepare(f: Probe, precision: str | None) -> Probe:
    """The probe that a search may ask in ``f``'s place: the same model, run sooner; ``f`` itself where it cannot be.

    It asks for ``f.score`` to see what the model does, so this costs no pass. It holds copies of the weights that it
    replaces, and nothing else. A model with hooks, or that is compiled or scripted, is used as it is.

    Args:
        precision: ``"exact"``: the same answers but for rounding; ``"fast"``: with bfloat16 where the inputs are
            float32, which :func:`faithful` has to check; None: the model as it is.

    >>> import torch
    >>> from robustx.engine import Output, Probe
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
    >>> f = Probe(net, (torch.rand(64, 1, 3, 3),), Output(0))
    >>> quick = prepare(f, "exact")
    >>> torch.allclose(quick.value(f.point), f.score, atol=1e-5)
    True
    """
    whole = isinstance(f.at, Input) and f.of.tap is None and f.gradient is None
    parts = [m for top in modules_of(f.model) for m in top.modules()]
    if precision is None or not whole or not f.examples or not all(map(_open, parts)):
        return f
    watch = _Watch()
    f.__dict__["score"] = f.to(model=watch.over(f.model)).score
    fast = precision == "fast" and {t.dtype for t in f.inputs if t.is_floating_point()} == {torch.float32}
    layers = watch.layers if fast else {k: v for k, v in watch.layers.items() if v.folds}
    if not layers:
        return f
    model = Prepared(f.model, layers, torch.bfloat16 if fast else None)
    return f.to(model=model, pace=Pace(f.pace.limit, f.pace.budget))


def faithful(quick: Probe, score: Tensor, rows: Tensor) -> bool:
    """Whether a prepared probe finds the scores [N] that some examples have: one more pass of them if in bfloat16."""
    if not rough(quick):
        return True
    apart = quick.to(strict=False).value(quick.point[rows], rows) - score
    return bool(apart.norm() <= 0.1 * score.norm())


def rough(f: Probe) -> bool:
    """Whether a probe's answers have fewer digits than the model's own."""
    return isinstance(f.model, Prepared) and f.model.dtype is not None


def rounding(f: Probe, dtype: torch.dtype) -> float:
    """As what share of itself a score may come out differently, prepared or in a batch of another shape."""
    if isinstance(f.model, Prepared) and f.model.dtype is not None:
        return torch.finfo(f.model.dtype).eps
    own = torch.finfo(dtype).eps
    if dtype not in (torch.float32, torch.float64):
        return 8 * own  # halves add up in singles
    return (64 if isinstance(f.model, Prepared) else 32) * own


def _open(m: nn.Module) -> bool:
    """Whether all that a module does is seen, and seen by nobody else."""
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    compiled = m._compiled_call_impl is not None or hasattr(m, "_orig_mod")
    return not any(hooks) and not compiled and not isinstance(m, torch.jit.ScriptModule)


def _parts(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, Callable[..., Any]]:
    """Input, weight and bias of an operation, and what does it with the rest of its arguments."""
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    return x, weight, bias, lambda func: lambda *three: func(*three, *args[3:], **given)

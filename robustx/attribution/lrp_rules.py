"""LRP's rules: how a layer's relevance is shared out over what went into it.

A rule belongs to an affine map z = W x + b: a linear layer, a convolution. Relevance travels as a multiple of what it
belongs to, R = x * g, and a rule makes g at the input of g at the output. So what has no rule of its own passes
relevance by its plain gradient, which is LRP with epsilon = 0 (Ancona, Ceolini, Öztireli, Gross, ICLR 2018, prop. 1).
Rules that give relevance to inputs that are zero as well are :class:`FreeRule` s.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor | None]
"""Weight, and bias where there is one."""


@dataclass(frozen=True)
class Map:
    """An affine map in one pass of the model, with the batch norm behind it folded in.

    Args:
        x: what goes in.
        weight, bias: of the map.
        run: ``run(x, weight, bias)`` does it again.
        module: that the rule was set for.
        out: what came out, where that is known.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    module: nn.Module
    out: Tensor | None = None

    @cached_property
    def y(self) -> Tensor:
        """What comes out."""
        return self.run(self.x, self.weight, self.bias) if self.out is None else self.out

    def shares(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What comes out for another input, weight and bias, and the gradient at ``x`` for one at that output."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z = self.run(x, weight, bias)
        return z.detach(), lambda g: torch.autograd.grad(z, x, g)[0]


def steady(z: Tensor, epsilon: float) -> Tensor:
    """``z`` moved away from zero by ``epsilon``, and no less than what its dtype can tell from zero."""
    least = max(epsilon, torch.finfo(z.dtype).tiny)
    return z + torch.where(z < 0, -least, least).to(z)


class PropagationRule:
    """A layer's rule; set as ``module.rule``, or named in the ``rules`` of :class:`LRP`.

    Subclasses say with which weight and bias the layer shares relevance out, in :meth:`modified`, or all of it in
    :meth:`gradient`. Captum's hook ``_manipulate_weights(module, inputs, outputs)`` serves too: it may change the
    module it is given, a copy of the user's with the weight and bias of the map.
    """

    STABILITY_FACTOR = 1e-9

    def modified(self, at: Map) -> Affine:
        """The weight and bias to share by."""
        manipulate = getattr(self, "_manipulate_weights", None)
        if manipulate is None:
            raise TypeError(f"{type(self).__name__} must say in modified(at) which weight and bias to share by")
        own: Any = copy(at.module)
        given = (("weight", at.weight), ("bias", at.bias))
        own._parameters = {k: None if t is None else nn.Parameter(t.detach().clone()) for k, t in given}
        manipulate(own, (at.x,), at.y)
        return own.weight, own.bias

    def gradient(self, at: Map, g: Tensor) -> Tensor:
        """g at ``at.x`` for g at ``at.y``: each output's relevance in the shares that inputs have in its sum z."""
        z, back = at.shares(at.x, *self.modified(at))
        return back(g * at.y / steady(z, self.STABILITY_FACTOR))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k != "STABILITY_FACTOR")
        return f"{type(self).__name__}({settings})"


class EpsilonRule(PropagationRule):
    """Shares by contributions; ``epsilon`` absorbs what rests on sums near zero.

    Bach et al. (PLOS ONE 2015), eq. 58. Conserves relevance as epsilon and the bias go to zero.
    """

    def __init__(self, epsilon: float = 1e-9) -> None:
        self.epsilon = self.STABILITY_FACTOR = _not_negative("epsilon", epsilon)

    def modified(self, at: Map) -> Affine:
        return at.weight, at.bias


class GammaRule(PropagationRule):
    """Positive weights count ``gamma`` more, w + gamma * max(w, 0): for layers whose inputs are not negative.

    Montavon, Binder, Lapuschkin, Samek, Müller (2019), section 10.2.3. The bias stays, or is left out. Where
    inputs may be negative, sums of shares may come near zero and relevance explode: see :class:`AlphaBetaRule`.
    """

    def __init__(self, gamma: float = 0.25, set_bias_to_zero: bool = False) -> None:
        self.gamma, self.set_bias_to_zero = _not_negative("gamma", gamma), set_bias_to_zero

    def modified(self, at: Map) -> Affine:
        return at.weight + self.gamma * at.weight.clamp(min=0), None if self.set_bias_to_zero else at.bias


class Alpha1_Beta0_Rule(PropagationRule):
    """Shares by positive weights alone, z+: for layers whose inputs are not negative.

    Montavon, Lapuschkin, Binder, Samek, Müller (2017), eq. 13. The bias stays, or is left out. For inputs of either
    sign see :class:`AlphaBetaRule`.
    """

    def __init__(self, set_bias_to_zero: bool = False) -> None:
        self.set_bias_to_zero = set_bias_to_zero

    def modified(self, at: Map) -> Affine:
        return at.weight.clamp(min=0), None if self.set_bias_to_zero else at.bias


class IdentityRule(EpsilonRule):
    """Each input takes the relevance of the output in its place; the layer must keep its input's shape."""

    def gradient(self, at: Map, g: Tensor) -> Tensor:
        return self.handed_on(at.x, at.y, g)

    def handed_on(self, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """g at ``x`` for g at ``y``, of any operation."""
        if x.shape != y.shape:
            raise ValueError(
                f"IdentityRule is for layers that keep the shape, but one makes {tuple(y.shape)} of {tuple(x.shape)}; "
                "take EpsilonRule there"
            )
        return g * y / steady(x, self.STABILITY_FACTOR)


class AlphaBetaRule(PropagationRule):
    """Positive and negative contributions apart: ``alpha`` times the shares in one sum, less ``beta`` times the other.

    Bach et al. (PLOS ONE 2015), eq. 60. Conserves relevance, with alpha - beta = 1, where both sums are there; a
    positive bias counts in the first, a negative one in the second.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 1.0) -> None:
        self.alpha, self.beta = _not_negative("alpha", alpha), _not_negative("beta", beta)
        if abs(alpha - beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1, so that relevance is conserved, got {alpha} and {beta}")

    def modified(self, at: Map) -> Affine:
        return at.weight, at.bias

    def gradient(self, at: Map, g: Tensor) -> Tensor:
        up, down = at.x.clamp(min=0), at.x.clamp(max=0)
        total = torch.zeros_like(at.x)
        for sign, much in ((1, self.alpha), (-1, -self.beta)):
            if much:  # contributions of one sign come from inputs above zero and those below by other weights
                bias = None if at.bias is None else _part(at.bias, sign)
                z, back = at.shares(up, _part(at.weight, sign), bias)
                z_down, back_down = at.shares(down, _part(at.weight, -sign))
                share = much * g * at.y / steady(z + z_down, self.STABILITY_FACTOR)
                total += torch.where(at.x > 0, back(share), back_down(share))
        return total


class FreeRule(PropagationRule, ABC):
    """A rule whose relevance is no multiple of the input: it says R at ``at.x`` for R at ``at.y``."""

    def modified(self, at: Map) -> Affine:
        return at.weight, at.bias

    @abstractmethod
    def relevance(self, at: Map, r: Tensor) -> Tensor:
        """R at the input for R at the output."""


class WSquareRule(FreeRule):
    """Shares by squared weights, whatever the input: for the first layer, where inputs are unbounded.

    Montavon, Lapuschkin, Binder, Samek, Müller (Pattern Recognition 2017), section 4.1.
    """

    def weights(self, weight: Tensor) -> Tensor:
        """The size of each share."""
        return weight.square()

    def relevance(self, at: Map, r: Tensor) -> Tensor:
        total, back = at.shares(torch.ones_like(at.x), self.weights(at.weight))
        return back(r / steady(total, self.STABILITY_FACTOR))


class FlatRule(WSquareRule):
    """Shares evenly over all that an output sees, whatever weights and input: for the first layer.

    Lapuschkin et al. (Nature Communications 2019), supplementary note 4.
    """

    def weights(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight)


class ZBoxRule(FreeRule):
    """For a first layer whose inputs lie between ``low`` and ``high``, such as pixels: shares x w - low w+ - high w-.

    Montavon, Lapuschkin, Binder, Samek, Müller (Pattern Recognition 2017), section 4.2 (deep Taylor decomposition's
    z^B). ``low`` and ``high`` are numbers or tensors that broadcast to the input.
    """

    def __init__(self, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> None:
        self.low, self.high = low, high

    def relevance(self, at: Map, r: Tensor) -> Tensor:
        if ((at.x < self.low) | (at.x > self.high)).any():
            raise ValueError(
                f"ZBoxRule is for inputs between {self.low} and {self.high}, but they reach from {at.x.min():.4g} to "
                f"{at.x.max():.4g}; give the bounds that hold where the layer stands"
            )
        low, high = (torch.as_tensor(v).to(at.x).expand_as(at.x) for v in (self.low, self.high))
        terms = ((at.x, at.weight), (-low, _part(at.weight, 1)), (-high, _part(at.weight, -1)))
        found = [(x, *at.shares(x, w)) for x, w in terms]
        share = r / steady(torch.stack([z for _, z, _ in found]).sum(0), self.STABILITY_FACTOR)
        return torch.stack([x * back(share) for x, _, back in found]).sum(0)


def _part(t: Tensor, sign: int) -> Tensor:
    """Positive or negative elements."""
    return t.clamp(min=0) if sign > 0 else t.clamp(max=0)


def _not_negative(name: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return value

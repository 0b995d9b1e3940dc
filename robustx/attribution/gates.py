"""Stochastic gates: which features a model needs, learned with it by a penalty on how many are open."""

from abc import ABC, abstractmethod
from math import log, prod
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import ArgumentError, ArgumentTypeError, whole


class StochasticGatesBase(nn.Module, ABC):
    """Multiplies each feature by a gate in [0, 1] that is open with a probability to be learned.

    The number of open gates has no gradient; their expected number, the sum of the probabilities, has one. So a gate is
    a clamped random number that moves smoothly with its parameters. In train mode each example has draws of its own,
    from the global generator, as dropout does; in eval mode the gates are at their parameters' values.

    Args:
        n_gates: how many.
        mask: which gate an element has, integers from 0 to n_gates - 1 in a form that broadcasts to the input; each
            gate has some. None gives each element of an example a gate of its own.
        reg_weight: times the penalty.
        reg_reduction: ``"sum"`` of the gates' probabilities, their ``"mean"``, or ``"none"``: one for each gate.

    Raises:
        ValueError: an argument is none of these.
    """

    mask: Tensor | None

    def __init__(
        self, n_gates: int, mask: Tensor | None = None, reg_weight: float = 1.0, reg_reduction: str = "sum"
    ) -> None:
        super().__init__()
        self.n_gates = whole("n_gates", n_gates, 1)
        if reg_reduction not in ("none", "mean", "sum"):
            raise ArgumentError(f"reg_reduction must be 'none', 'mean' or 'sum', got {reg_reduction!r}")
        if mask is not None:
            if mask.is_floating_point() or mask.is_complex():
                raise ArgumentTypeError(f"mask must hold integers, got {mask.dtype}")
            if not torch.equal(mask.unique().cpu(), torch.arange(n_gates, dtype=mask.dtype)):
                raise ArgumentError(
                    f"mask must name each of the {n_gates} gates, 0 to {n_gates - 1}, and no other; "
                    f"got {mask.unique().tolist()}"
                )
        self.register_buffer("mask", None if mask is None else mask.detach().clone().long())
        self.reg_weight, self.reg_reduction = reg_weight, reg_reduction

    def forward(self, input_tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The input [B, ...] with each element times its gate, and the penalty to be added to the loss.

        Raises:
            ValueError: there is no mask, and an example has not as many elements as there are gates.
        """
        b = len(input_tensor)
        gates = self._sample_gate_values(b).clamp(0, 1)  # [B, G]
        if self.mask is not None:
            gates = gates.gather(1, self.mask.expand_as(input_tensor).flatten(1))
        elif input_tensor.ndim < 2 or prod(input_tensor.shape[1:]) != self.n_gates:
            raise ArgumentError(
                f"without a mask examples must have an element for each of the {self.n_gates} gates, got inputs of "
                f"shape {tuple(input_tensor.shape)}; mask says which elements share a gate"
            )
        probabilities = self._get_gate_active_probs()
        penalty = probabilities if self.reg_reduction == "none" else getattr(probabilities, self.reg_reduction)()
        return input_tensor * gates.reshape(input_tensor.shape), penalty * self.reg_weight

    def get_gate_values(self, clamp: bool = True) -> Tensor:
        """Each gate in eval mode [G]; without ``clamp`` also how far below 0 or above 1 it stands."""
        gates = self._get_gate_values().detach()
        return gates.clamp(0, 1) if clamp else gates

    def get_gate_active_probs(self) -> Tensor:
        """The probability that a gate is not 0 [G]; their sum is the expected number of open gates."""
        return self._get_gate_active_probs().detach()

    @abstractmethod
    def _get_gate_values(self) -> Tensor:
        """What the parameters say of each gate [G], not clamped."""

    @abstractmethod
    def _sample_gate_values(self, batch_size: int) -> Tensor:
        """Gates for each example [B, G], not clamped; in eval mode the same for all."""

    @abstractmethod
    def _get_gate_active_probs(self) -> Tensor:
        """The probability that a gate is above 0 [G], with its graph."""


class BinaryConcreteStochasticGates(StochasticGatesBase):
    """Gates of a binary concrete distribution, stretched beyond 0 and 1 and clamped ("hard concrete").

    Louizos, Welling, Kingma (ICLR 2018), arXiv 1712.01312, eqs. 10 to 12: with u uniform,
    ``sigmoid((logit(u) + log_alpha) / temperature)``, stretched to ``[lower_bound, upper_bound]``.

    Args:
        n_gates, mask, reg_weight, reg_reduction: see :class:`StochasticGatesBase`.
        temperature: between 0, for gates that are open or shut, and 1.
        lower_bound, upper_bound: where the stretched distribution ends, below 0 and above 1.
        eps: u keeps that far from 0 and 1.

    >>> gates = BinaryConcreteStochasticGates(3, mask=torch.tensor([0, 0, 1, 2]), reg_weight=0.1).eval()
    >>> gated, penalty = gates(torch.ones(2, 4))
    >>> gated.shape, torch.isclose(penalty, 0.1 * gates.get_gate_active_probs().sum())
    (torch.Size([2, 4]), tensor(True))
    """

    def __init__(
        self,
        n_gates: int,
        mask: Tensor | None = None,
        reg_weight: float = 1.0,
        temperature: float = 2 / 3,
        lower_bound: float = -0.1,
        upper_bound: float = 1.1,
        eps: float = 1e-8,
        reg_reduction: str = "sum",
    ) -> None:
        super().__init__(n_gates, mask, reg_weight, reg_reduction)
        if not 0 < temperature < 1:
            raise ArgumentError(f"temperature must lie between 0 and 1, got {temperature!r}")
        if not (lower_bound < 0 and upper_bound > 1):
            raise ArgumentError(
                f"lower_bound must be below 0 and upper_bound above 1, got {lower_bound!r} and {upper_bound!r}; "
                "else no gate would ever be shut, or open"
            )
        self.log_alpha_param = nn.Parameter(torch.empty(n_gates).normal_(0, 0.01))
        self.temperature, self.eps = temperature, eps
        self.lower_bound, self.upper_bound = lower_bound, upper_bound
        self.active_prob_offset = temperature * log(-lower_bound / upper_bound)

    @classmethod
    def from_pretrained(cls, log_alpha_param: Tensor, *args: Any, **kwargs: Any) -> "BinaryConcreteStochasticGates":
        """Gates with these parameters [G]; further arguments as for the class."""
        gates = cls(log_alpha_param.numel(), *args, **kwargs)
        gates.log_alpha_param.data.copy_(log_alpha_param)
        return gates

    def _get_gate_values(self) -> Tensor:
        return self._stretched(self.log_alpha_param.sigmoid())

    def _sample_gate_values(self, batch_size: int) -> Tensor:
        if not self.training:
            return self._get_gate_values().expand(batch_size, self.n_gates)
        u = self.log_alpha_param.new_empty(batch_size, self.n_gates).uniform_(self.eps, 1 - self.eps)
        return self._stretched(((u.logit() + self.log_alpha_param) / self.temperature).sigmoid())

    def _get_gate_active_probs(self) -> Tensor:
        return (self.log_alpha_param - self.active_prob_offset).sigmoid()

    def _stretched(self, s: Tensor) -> Tensor:
        return s * (self.upper_bound - self.lower_bound) + self.lower_bound


class GaussianStochasticGates(StochasticGatesBase):
    """Gates of a normal distribution, clamped.

    Yamada, Lindenbaum, Negahban, Kluger (ICML 2020), arXiv 1810.04247, eqs. 4 and 5: ``mu`` plus noise; a gate is open
    with the probability ``Phi(mu / std)``.

    Args:
        n_gates, mask, reg_weight, reg_reduction: see :class:`StochasticGatesBase`.
        std: the standard deviation of the noise.

    >>> gates = GaussianStochasticGates.from_pretrained(torch.tensor([-1.0, 0.0, 2.0]), std=1.0)
    >>> gates.get_gate_values(), gates.get_gate_active_probs()
    (tensor([0., 0., 1.]), tensor([0.1587, 0.5000, 0.9772]))
    """

    def __init__(
        self,
        n_gates: int,
        mask: Tensor | None = None,
        reg_weight: float = 1.0,
        std: float = 0.5,
        reg_reduction: str = "sum",
    ) -> None:
        super().__init__(n_gates, mask, reg_weight, reg_reduction)
        if not std > 0:
            raise ArgumentError(f"std must be above 0, got {std!r}")
        self.mu = nn.Parameter(torch.empty(n_gates).normal_(0.5, 0.01))
        self.std = std

    @classmethod
    def from_pretrained(cls, mu: Tensor, *args: Any, **kwargs: Any) -> "GaussianStochasticGates":
        """Gates with these parameters [G]; further arguments as for the class."""
        gates = cls(mu.numel(), *args, **kwargs)
        gates.mu.data.copy_(mu)
        return gates

    def _get_gate_values(self) -> Tensor:
        return self.mu

    def _sample_gate_values(self, batch_size: int) -> Tensor:
        if not self.training:
            return self.mu.expand(batch_size, self.n_gates)
        return self.mu + self.mu.new_empty(batch_size, self.n_gates).normal_(0, self.std)

    def _get_gate_active_probs(self) -> Tensor:
        probabilities: Tensor = torch.special.ndtr(self.mu / self.std)
        return probabilities

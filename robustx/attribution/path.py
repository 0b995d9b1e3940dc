"""Methods that add up gradients along a path from a reference."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.packing import finest, times
from ..engine.probe import Probe, Query
from ..engine.sites import Layer
from ..perturb.references import Reference, through
from .base import GradientAttribution, LayerAttribution, NeuronAttribution, delta_of, only_unused

Quadrature = tuple[Tensor, Tensor]
"""Where on [0, 1] a path is looked at, and with what weights [S] each; the weights add up to one."""

Rule = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def gauss_legendre(steps: int) -> Quadrature:
    """Exact for polynomials up to degree 2 * steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2


def riemann(shift: float) -> Callable[[int], Quadrature]:
    """Equal steps, each looked at ``shift`` of the way through it."""
    return lambda steps: (
        (torch.arange(steps, dtype=torch.float64) + shift) / steps,
        torch.full((steps,), 1 / steps, dtype=torch.float64),
    )


def trapezoid(steps: int) -> Quadrature:
    """Equal steps, both ends included at half weight."""
    weights = torch.ones(steps, dtype=torch.float64)
    weights[0] = weights[-1] = 0.5
    return torch.linspace(0, 1, steps, dtype=torch.float64), weights / weights.sum()


RULES: dict[str, Callable[[int], Quadrature]] = {
    "gausslegendre": gauss_legendre,
    "riemann_left": riemann(0.0),
    "riemann_right": riemann(1.0),
    "riemann_middle": riemann(0.5),
    "riemann_trapezoid": trapezoid,
}


def integrated_gradients(f: Probe, reference: Reference, quadrature: Quadrature, multiply: bool = True) -> Tensor:
    """The mean gradient on the straight way from the reference, times that way; adds up to f(x) - f(reference).

    Sundararajan, Taly, Yan (ICML 2017), eq. 1 and 3. Returns [B, D]; without ``multiply``, the mean gradient itself.
    """
    start = f.packing.pack(reference(f))
    way = f.point - start
    mean = mean_grad(f, start, way, quadrature)
    return times(way, mean) if multiply else mean


def mean_grad(f: Probe, start: Tensor, way: Tensor, quadrature: Quadrature, rows: Tensor | None = None) -> Tensor:
    """The weighted mean of the gradients at ``start + node * way`` [N, D], of ``rows`` (all examples, unless given).

    Holds one batch of them at a time.
    """
    nodes, weights = quadrature
    answers = f.grads(len(nodes) * len(start), along(start, way, nodes, rows))
    mean = weighed(((part, g) for part, _, g in answers), weights, len(start))
    return torch.zeros_like(start) if mean is None else mean


def mean_grad_within(
    f: Probe, start: Tensor, way: Tensor, error: Tensor, nodes: int = 4, rounds: int = 30, most: int = 1 << 14
) -> tuple[Tensor, Tensor]:
    """The mean gradient at ``start + t * way`` [B, D], looked at as closely as it takes, and by how much it misses the
    score's rise [B].

    Adaptive quadrature (Piessens et al., QUADPACK, 1983): pieces of the way whose gradients do not add up to the rise
    along them are halved. Between the kinks of a network one piece is exact, and bisection finds the kinks.

    Args:
        error: how much may be missed [B]; less than rounding is not asked for.
        nodes: gradients in each piece.
        rounds, most: halvings, and gradients of an example, after which what is still missed is left (at a jump, all).
    """
    at, weights = gauss_legendre(nodes)
    total, spent, rows = torch.zeros_like(finest(start)), torch.zeros_like(f.everyone), f.everyone
    below, above = finest(f.value(start)), finest(f.value(start + way))
    rise, low, high = above - below, torch.zeros_like(above), torch.ones_like(above)
    for halvings in range(rounds + 1):
        mean = _mean_of_pieces(f, start[rows], way[rows], (low, high), rows, (at, weights))
        long = high - low
        miss = (long * (finest(way[rows]) * mean).sum(1) - (above - below)).abs()
        spent.index_add_(0, rows, torch.full_like(rows, nodes))
        rounding = 8 * torch.finfo(start.dtype).eps * torch.maximum(above.abs(), below.abs())
        small = torch.maximum(error[rows].to(long) / 8 * long.clamp(min=1 / 16), rounding)
        open_ = (miss > small) & (spent[rows] < most) & (halvings < rounds)
        total.index_add_(0, rows[~open_], long[~open_, None] * mean[~open_])
        rows, low, high, below, above = (t[open_] for t in (rows, low, high, below, above))
        if not len(rows):
            break
        middle = (low + high) / 2
        between = finest(f.value(start[rows] + middle.to(start)[:, None] * way[rows], rows))
        rows, low, high = torch.cat([rows, rows]), torch.cat([low, middle]), torch.cat([middle, high])
        below, above = torch.cat([below, between]), torch.cat([between, above])
    return total, (finest(way) * total).sum(1) - rise


def _mean_of_pieces(
    f: Probe, start: Tensor, way: Tensor, ends: tuple[Tensor, Tensor], rows: Tensor, quadrature: Quadrature
) -> Tensor:
    """The mean gradient between ``start + ends * way``, of some rows [n, D]."""
    (low, high), (nodes, weights) = ends, quadrature
    nodes = nodes.to(low)

    def query(part: slice) -> tuple[Tensor, Tensor]:
        step, piece = grid(part, len(rows), start)
        t = torch.lerp(low[piece], high[piece], nodes[step])
        return start[piece] + t.to(start)[:, None] * way[piece], rows[piece]

    found = weighed(((part, finest(g)) for part, _, g in f.grads(len(nodes) * len(rows), query)), weights, len(rows))
    return torch.zeros_like(finest(start)) if found is None else found


def along(start: Tensor, way: Tensor, nodes: Tensor, rows: Tensor | None = None) -> Query:
    """Queries at ``start + node * way``, node after node, each for all examples, or for ``rows``."""
    nodes = nodes.to(start)

    def query(part: slice) -> tuple[Tensor, Tensor]:
        step, row = grid(part, len(start), start)
        return start[row] + nodes[step, None] * way[row], row if rows is None else rows[row]

    return query


def weighed(answers: Iterable[tuple[slice, Tensor]], weights: Tensor, b: int) -> Tensor | None:
    """The sum of weight times gradient over the nodes of a path [B, ...], part by part; None where there are none."""
    total = None
    for part, g in answers:
        step, row = grid(part, b, g)
        total = g.new_zeros(b, *g.shape[1:]) if total is None else total
        total.index_add_(0, row, weights.to(g)[step].reshape(-1, *(1,) * (g.ndim - 1)) * g)
        del g
    return total


def grid(part: slice, b: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The node and the example of each query in a part of :func:`along`'s."""
    k = torch.arange(part.start, part.stop, device=like.device)
    return k // b, k % b


class IntegratedGradients(GradientAttribution):
    """Integrated gradients of the score with respect to the inputs.

    Sundararajan, Taly, Yan (ICML 2017), arXiv 1703.01365. Laws: attributions add up to the score's rise from the
    baseline (completeness), and do not depend on how the network is written (implementation invariance).

    Args:
        forward_func: the model.
        multiply_by_inputs: False leaves out the factor inputs - baselines.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.rand(4, 3)
    >>> a, delta = IntegratedGradients(model).attribute(x, target=1, return_convergence_delta=True)
    >>> torch.allclose(a, x * model.weight[1], atol=1e-6), bool(delta.abs().max() < 1e-5)
    (True, True)
    """

    def __init__(self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self._multiply = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply

    def has_convergence_delta(self) -> bool:
        return True

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: Rule = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; with ``return_convergence_delta`` also by how much each example
        misses completeness [B].

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            n_steps: points on the path, gradients per example.
            method: the quadrature rule.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        parts = self._integrate(f, baselines, n_steps, method)
        attributions = door.out(parts)
        return (attributions, delta_of(f, parts, baselines)) if return_convergence_delta else attributions

    def _integrate(self, f: Probe, baselines: Any, n_steps: int, method: str) -> tuple[Tensor, ...]:
        a = integrated_gradients(f, through(baselines), quadrature_of(method, n_steps), self._multiply)
        return f.packing.unpack(a)


class LayerIntegratedGradients(LayerAttribution, IntegratedGradients):
    """Integrated gradients at a layer: the path leads from what the layer makes of the baselines to what it makes
    of the inputs. The way to attribute to token embeddings; with a list of layers, all walk together.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> LayerIntegratedGradients(model, model[0]).attribute(torch.tensor([[1, 2, 3]]), target=0).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self._multiply = multiply_by_inputs

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: Rule = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); otherwise as for the inputs.

        Args:
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        parts = self._integrate(f, baselines, n_steps, method)
        attributions = self._out(site, parts)
        return (attributions, delta_of(f, parts, baselines)) if return_convergence_delta else attributions


class NeuronIntegratedGradients(NeuronAttribution, IntegratedGradients):
    """Integrated gradients of a neuron's value with respect to the inputs.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(2, 3)
    >>> a = NeuronIntegratedGradients(model, model[0]).attribute(x, 1)
    >>> torch.allclose(a, x * model[0].weight[1], atol=1e-6)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        self._multiply = multiply_by_inputs

    @guarded
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        baselines: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: Rule = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs.

        Args:
            inputs, baselines, additional_forward_args, internal_batch_size, n_steps, method: as for the inputs.
            neuron_selector: an int, a tuple of ints and slices behind the batch axis (slices are summed over), or a
                function from the layer's value to one number per row.
            attribute_to_neuron_input: read the neuron off the layer's input.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(self._integrate(f, baselines, n_steps, method))


def quadrature_of(method: str, steps: int) -> Quadrature:
    """The rule of that name.

    Raises:
        ValueError: there is none, or too few steps.
    """
    if method not in RULES:
        raise ArgumentError(f"method must be one of {', '.join(map(repr, RULES))}, got {method!r}")
    least = 2 if method == "riemann_trapezoid" else 1
    return RULES[method](whole("n_steps", steps, least))

"""Methods that watch a layer while the inputs walk from their reference: how much of the walk passes its units."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import whole
from ..engine.guard import guarded
from ..engine.packing import Packing, Tensors, flat, times
from ..engine.probe import Local, ModelError, Probe
from ..engine.scores import Neuron, Score
from ..engine.sites import Input, Layer
from ..perturb.references import Reference, through
from .base import LayerAttribution, NeuronAttribution, delta_of, only_unused
from .path import Quadrature, Rule, along, integrated_gradients, quadrature_of, weighed


def layer_conductance(f: Probe, reference: Reference, quadrature: Quadrature) -> Tensors:
    """How much of the score's rise passes each unit of the layer where f stands: [B, ...] for each tensor there.

    Dhamdhere, Sundararajan, Yan (ICLR 2019), eq. 2, in the form of Shrikumar, Su, Kundaje (2018): the score's gradient
    at the unit times the unit's own change up to the next node. That change is the weight, so of the quadrature only
    the nodes count. Adds up to f(x) - f(reference) as they grow dense and reach both ends. Holds one batch of the path
    at a time, and the node before it.
    """

    def shares() -> Iterator[tuple[Local, Tensor]]:
        b, last = f.examples, None
        for at in _walk(f, reference, quadrature[0]):
            here, grad = at.here, at.grad
            if last is not None:
                here, grad = torch.cat([last[0], here]), torch.cat([last[1], grad])
            yield at, times(here[b:] - here[:-b], grad[:-b])  # b queries on stands the same example's next node
            last = here[-b:].clone(), grad[-b:].clone()
            del at, here, grad

    return _added(shares(), torch.ones_like(quadrature[1]), f.examples)


def internal_influence(f: Probe, reference: Reference, quadrature: Quadrature) -> Tensors:
    """The layer's mean gradient while the inputs walk from the reference: [B, ...] for each tensor where f stands.

    Leino, Sen, Datta, Fredrikson, Li (2018), definition 1, with the uniform distribution on that straight way.
    """
    nodes, weights = quadrature
    return _added(((at, at.grad) for at in _walk(f, reference, nodes)), weights, f.examples)


def neuron_conductance(
    f: Probe, neuron: Neuron, reference: Reference, quadrature: Quadrature, multiply: bool = True
) -> Tensor:
    """How much of the score's rise each input sends through a neuron: integrated gradients that pass it alone [B, D].

    Dhamdhere, Sundararajan, Yan (ICLR 2019), eq. 3. Over the inputs it adds up to the neuron's conductance.
    """
    through_it = f.to(model=_showing(neuron.layer, f.model), of=_Through(f.of, neuron))
    return integrated_gradients(through_it, reference, quadrature, multiply)


def _walk(f: Probe, reference: Reference, nodes: Tensor) -> Iterator[Local]:
    """What the site shows at the nodes of the inputs' straight way from the reference, node after node."""
    entry = f.to(at=Input())
    for i, t in enumerate(f.inputs):
        if not t.is_floating_point():
            raise TypeError(
                f"inputs walk from their baselines, but input {i} has dtype {t.dtype}; take LayerIntegratedGradients, "
                "which walks at a layer, such as the embedding of token ids, or pass it as additional_forward_args"
            )
    start = entry.packing.pack(reference(entry))
    return f.locals(len(nodes) * f.examples, along(start, entry.point - start, nodes))


def _added(answers: Iterable[tuple[Local, Tensor]], weights: Tensor, b: int) -> Tensors:
    """The weighted sum over the path of what was made of the last queries of each pass, as it stands at the site."""
    packing: Packing | None = None

    def parts() -> Iterator[tuple[slice, Tensor]]:
        nonlocal packing
        for at, g in answers:
            packing = at.packing
            yield slice(at.part.stop - len(g), at.part.stop), g
            del at, g

    total = weighed(parts(), weights, b)
    assert packing is not None and total is not None, "even no queries are a pass"
    return packing.unpack(total)


@dataclass(frozen=True, eq=False)
class _Through(Score):
    """A score whose gradient passes a neuron alone, read off a model that goes on :func:`_showing` the neuron's layer.

    Where a function selects the neuron, its slope says how much each unit of the layer counts.
    """

    of: Score
    neuron: Neuron

    def check(self, out: Any, rows: Tensor) -> None:
        self.of.check(out[0], rows)

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return self.of.value(out[0], rows)

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        end, here = out
        moved = [t for t in here if t.requires_grad]
        units = self._slopes(self.neuron.value(here, rows), moved)

        def passing(pull: Tensor) -> Tensor:
            parts = zip(moved, units, self._slopes(pull, moved), strict=True)
            return torch.stack([flat(t * unit * g).sum(1) for t, unit, g in parts]).sum(0)

        pull = self.of.pull(end, rows)
        return passing(pull) if pull.ndim == 1 else torch.stack([passing(p) for p in pull.unbind(1)], 1)

    def _slopes(self, value: Tensor, here: list[Tensor]) -> list[Tensor]:
        """The gradients of each row's number at the layer."""
        found: Sequence[Tensor | None] = [None]
        if value.requires_grad and here:
            found = torch.autograd.grad(value.sum(), here, retain_graph=True, allow_unused=True)
        if all(g is None for g in found):
            raise ModelError(
                f"there is no gradient at the {self.neuron.layer}: the model's output (or the neuron) does not depend "
                "on it, or behind it is a detach, a rounding to integers, argmax, numpy or no_grad; choose another "
                "layer, or a method that needs values only (FeatureAblation)"
            )
        return [torch.zeros_like(t) if g is None else g for t, g in zip(here, found, strict=True)]


def _showing(layer: Layer, model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, with what passes the layer beside its output."""

    def both(*args: Any, **kwargs: Any) -> tuple[Any, Tensors]:
        with layer.watch(leaves=True) as seen:
            out = model(*args, **kwargs)
        return out, seen.value

    return both


class LayerConductance(LayerAttribution):
    """How much of the score's rise from the baseline passes each unit of a layer, while the inputs walk from there.

    Dhamdhere, Sundararajan, Yan (ICLR 2019), arXiv 1805.12233; Shrikumar, Su, Kundaje (2018), arXiv 1807.09946.
    Attributions add up to that rise as ``n_steps`` grows, if no path through the model leads around the layer.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = LayerConductance(model, model[0]).attribute(x, target=1, method="riemann_trapezoid")
    >>> torch.allclose(a, model[0](x) * model[1].weight[1], atol=1e-6)
    True
    """

    def has_convergence_delta(self) -> bool:
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
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
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); with ``return_convergence_delta`` also by how
        much each example misses completeness [B].

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            n_steps: changes of the layer that are added up, between ``n_steps + 1`` points of the path.
            method: the quadrature rule whose points these are; only ``"riemann_trapezoid"`` reaches both ends.
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        quadrature = quadrature_of(method, whole("n_steps", n_steps, 1) + 1)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        parts = layer_conductance(f, through(baselines), quadrature)
        attributions = self._out(site, parts)
        return (attributions, delta_of(f, parts, baselines)) if return_convergence_delta else attributions


class InternalInfluence(LayerAttribution):
    """The mean gradient of the score with respect to a layer, while the inputs walk from the baseline.

    Leino, Sen, Datta, Fredrikson, Li (2018), arXiv 1802.03788.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> a = InternalInfluence(model, model[0]).attribute(torch.rand(5, 3), target=1)
    >>> torch.allclose(a, model[1].weight[1].expand(5, 4))
    True
    """

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
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input).

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            n_steps: points on the path, gradients per example.
            method: the quadrature rule.
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        quadrature = quadrature_of(method, n_steps)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return self._out(site, internal_influence(f, through(baselines), quadrature))


class NeuronConductance(NeuronAttribution):
    """How much of the score's rise from the baseline each input sends through a neuron.

    Dhamdhere, Sundararajan, Yan (ICLR 2019), arXiv 1805.12233. Attributions add up to the neuron's conductance.

    Args:
        forward_func, layer, device_ids: see :class:`robustx.attribution.base.LayerAttribution`.
        multiply_by_inputs: False leaves out the factor inputs - baselines.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = NeuronConductance(model, model[0]).attribute(x, 2, target=1, method="gausslegendre")
    >>> torch.allclose(a, x * model[0].weight[2] * model[1].weight[1, 2], atol=1e-6)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self._multiply = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply

    @guarded
    def attribute(
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: Rule = "riemann_trapezoid",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs.

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            neuron_selector: an int, a tuple of ints and slices behind the batch axis (what several units let pass is
                added up), or a function that takes one number per row off the layer's value.
            n_steps: points on the path, gradients per example.
            method: the quadrature rule; the weights of the trapezoid add up to (n - 1) / n here, because Captum's do
                and it is what this class has always used unless told otherwise.
            attribute_to_neuron_input: the neuron is one of the layer's input.
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        nodes, weights = quadrature_of(method, n_steps)
        if method == "riemann_trapezoid":
            weights = weights * (n_steps - 1) / n_steps
        neuron = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        a = neuron_conductance(f, neuron, through(baselines), (nodes, weights), self._multiply)
        return door.out(f.packing.unpack(a))

"""Methods that need the gradient at one point."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..engine.guard import guarded
from ..engine.packing import Tensors, times
from ..engine.probe import Probe
from ..engine.scores import Everything
from ..engine.sites import Layer
from .base import GradientAttribution, LayerAttribution, NeuronAttribution, only_unused


def saliency(f: Probe) -> Tensor:
    """The gradient of the score at the point [B, D]; [B, T, D] for several scores."""
    return f.grad(f.point)[1]


def input_x_gradient(f: Probe) -> Tensor:
    """The point times the gradient of the score there [B, D]; [B, T, D] for several scores.

    Shrikumar, Greenside, Shcherbina, Kundaje (2016), arXiv 1605.01713. What is nothing gets nothing; for a score that
    is linear without a constant it adds up to the score.
    """
    return times(f.point, saliency(f))


def gradient_x_activation(f: Probe, multiply: bool = True) -> Tensors:
    """What stands where f stands, times the gradient of the score there, from one pass: [B, ...] for each tensor.

    [B, T, ...] for several scores. Without ``multiply``, the gradients themselves.
    """
    at = f.local()
    return at.packing.unpack(times(at.here, at.grad) if multiply else at.grad)


class Saliency(GradientAttribution):
    """How strongly the score reacts to each element: the size of its gradient.

    Simonyan, Vedaldi, Zisserman (2013), arXiv 1312.6034, section 3.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> a = Saliency(model).attribute(torch.rand(4, 3), target=1)
    >>> torch.allclose(a, model.weight[1].abs().expand(4, 3))
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Gradients shaped like the inputs; their sizes, or signed with ``abs=False``."""
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        g = saliency(f)
        return door.out(f.packing.unpack(g.abs() if abs else g))


class InputXGradient(GradientAttribution):
    """Each element times the gradient of the score there.

    Shrikumar, Greenside, Shcherbina, Kundaje (2016), arXiv 1605.01713.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.rand(4, 3)
    >>> torch.allclose(InputXGradient(model).attribute(x, target=1), x * model.weight[1])
    True
    """

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; see :class:`Attribution` for the arguments."""
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(f.packing.unpack(input_x_gradient(f)))


class LayerActivation(LayerAttribution):
    """What a layer makes of the inputs, as it is.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> torch.equal(LayerActivation(model, model[1]).attribute(x), model[1](model[0](x)))
    True
    """

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    @guarded
    def attribute(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """The layer's output (or its input), of any dtype; see :class:`Attribution` for the arguments."""
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, Everything(), additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return self._out(site, f.here)


class LayerGradientXActivation(LayerAttribution):
    """What a layer makes of the inputs, times the gradient of the score there.

    Args:
        forward_func, layer, device_ids: see :class:`robustx.attribution.base.LayerAttribution`.
        multiply_by_inputs: False gives the gradients themselves.
        memory_efficient: accepted for Captum's sake; batches keep to a memory budget either way.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = LayerGradientXActivation(model, model[1]).attribute(x, target=1)
    >>> torch.allclose(a, model[:2](x) * model[2].weight[1])
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        memory_efficient: bool = False,
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
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); see :class:`Attribution` for the arguments.

        Args:
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return self._out(site, gradient_x_activation(f, self._multiply))


class NeuronGradient(NeuronAttribution, GradientAttribution):
    """The gradient of a neuron's value with respect to the inputs.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> a = NeuronGradient(model, model[0]).attribute(torch.rand(5, 3), 1)
    >>> torch.allclose(a, model[0].weight[1].expand(5, 3))
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Gradients shaped like the inputs.

        Args:
            neuron_selector, attribute_to_neuron_input: see :class:`NeuronIntegratedGradients`.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(f.packing.unpack(saliency(f)))

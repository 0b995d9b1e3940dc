"""Methods that change how gradients pass ReLU: guided backpropagation and deconvolution."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ..engine.guard import guarded
from ..engine.probe import Probe
from ..engine.rules import Again, Back, Op, Rule, Ruled, Rules
from .base import GradientAttribution, NeuronAttribution


def guided(op: Op, g: Tensor) -> Back:
    """What is positive, where the ReLU was open. Springenberg et al. (2014), arXiv 1412.6806, section 3.4."""
    return (g.clamp(min=0) * (op.tensors[0] > 0),)


def deconvolution(op: Op, g: Tensor) -> Back:
    """What is positive, wherever. Zeiler, Fergus (2013), arXiv 1311.2901, section 2.1."""
    return (g.clamp(min=0),)


class Passing(Rules):
    """Rules for some operations, however they are written; all others pass gradients as ever."""

    def __init__(self, model: Any, rules: dict[str, Rule]) -> None:
        self.model, self.rules = model, rules

    def forward(self, run: Callable[[], Any], again: Again, rows: Tensor) -> Any:
        with Ruled(self.rules).over(self.model):
            return run()


class _Backprop(GradientAttribution):
    rules: ClassVar[dict[str, Rule]]

    def _slopes(self, f: Probe) -> tuple[Tensor, ...]:
        at = f.to(rules=Passing(self.forward_func, self.rules)).local()
        return at.packing.unpack(at.grad)

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
        """Gradients shaped like the inputs; see :class:`Attribution` for the arguments."""
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(self._slopes(f))


class GuidedBackprop(_Backprop):
    """Gradients of which only what is positive passes a ReLU, and only where it was open.

    Springenberg, Dosovitskiy, Brox, Riedmiller (2014), arXiv 1412.6806. Every ReLU counts: modules, functions, in
    place, used again. Without ReLUs it is the plain gradient.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(2, 3)
    >>> open = (model[0](x) > 0) * model[2].weight[1].clamp(min=0)
    >>> torch.allclose(GuidedBackprop(model).attribute(x, target=1), open @ model[0].weight)
    True
    """

    rules: ClassVar[dict[str, Rule]] = {"relu": guided}

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)


class Deconvolution(_Backprop):
    """Gradients of which only what is positive passes a ReLU, open or not.

    Zeiler, Fergus (ECCV 2014), arXiv 1311.2901. Every ReLU counts, as for :class:`GuidedBackprop`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(2, 3)
    >>> expected = model[2].weight[1].clamp(min=0) @ model[0].weight
    >>> torch.allclose(Deconvolution(model).attribute(x, target=1), expected.expand(2, 3))
    True
    """

    rules: ClassVar[dict[str, Rule]] = {"relu": deconvolution}

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)


class _NeuronBackprop(NeuronAttribution, _Backprop):
    @guarded
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Gradients of the neuron shaped like the inputs.

        Args:
            neuron_selector, attribute_to_neuron_input: see :class:`NeuronIntegratedGradients`.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(self._slopes(f))


class NeuronGuidedBackprop(_NeuronBackprop):
    """:class:`GuidedBackprop` of a neuron's value.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> a = NeuronGuidedBackprop(model, model[0]).attribute(torch.rand(2, 3), 1)
    >>> torch.allclose(a, model[0].weight[1].expand(2, 3))
    True
    """

    rules: ClassVar[dict[str, Rule]] = {"relu": guided}

    def __init__(self, model: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        super().__init__(model, layer, device_ids)


class NeuronDeconvolution(_NeuronBackprop):
    """:class:`Deconvolution` of a neuron's value.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> a = NeuronDeconvolution(model, model[0]).attribute(torch.rand(2, 3), 1)
    >>> torch.allclose(a, model[0].weight[1].expand(2, 3))
    True
    """

    rules: ClassVar[dict[str, Rule]] = {"relu": deconvolution}

    def __init__(self, model: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        super().__init__(model, layer, device_ids)

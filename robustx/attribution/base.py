"""What every attribution method shares: how it is called, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..engine.guard import guarded
from ..engine.packing import row_sums
from ..engine.probe import Door, Probe
from ..engine.scores import Neuron, Output, Score
from ..engine.sites import Input, Layer, Site
from ..perturb.references import through


class Attribution(ABC):
    """Shares a score out over what stands at a site of the model.

    Shared arguments of ``attribute``:

    - ``inputs``: a tensor [B, ...], a tuple of tensors, or a dict of tensors (passed to the model by keyword).
      Attributions come back in the same form, shapes and dtypes.
    - ``baselines``: what to compare with: None (zero), a number, a tensor with one row or B, or a tuple of these.
    - ``target``: which output, in every form of :class:`robustx.engine.Output`.
    - ``additional_forward_args``: further positional arguments; tensors whose first axis is B follow the examples.
    - ``additional_forward_kwargs``: the same by keyword.
    - ``internal_batch_size`` (gradients) and ``perturbations_per_eval`` (ablations): a cap on what goes through the
      model at once. Without it batches fill a memory budget and shrink when memory runs out.

    Shared errors: TargetError (a ValueError) for a target that does not fit the output, NonFiniteError for NaN or
    infinite inputs and outputs, ModelError if the model fails or has no gradient, ValueError for a model in train
    mode with batch norm or dropout.

    Args:
        forward_func: the model, any callable.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        self.forward_func = forward_func

    @abstractmethod
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Attributions shaped like what stands at the site."""

    def has_convergence_delta(self) -> bool:
        """Whether attributions add up to a known total."""
        return False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are global (they contain the way from the baseline) or local (slopes)."""
        return False

    @guarded
    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """By how much the attributions [B, ...] miss score(end) - score(start); [B]."""
        _, f = self._bind(end_point, target, additional_forward_args, additional_forward_kwargs)
        if isinstance(attributions, Mapping):
            attributions = attributions.values()
        parts = (attributions,) if isinstance(attributions, Tensor) else tuple(attributions)
        return row_sums(parts) - rise(f, start_point)

    @classmethod
    def get_name(cls) -> str:
        """The class's name, as words."""
        return "".join(f" {c}" if c.isupper() and i else c for i, c in enumerate(cls.__name__))

    def _bind(
        self,
        inputs: Any,
        target: Any,
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
        limit: int | None = None,
        at: Site | None = None,
    ) -> tuple[Door, Probe]:
        door = Door.open(inputs)
        return door, door.probe(self.forward_func, self._score(target), args, kwargs, limit, at or self._site())

    def _site(self) -> Site:
        return Input()

    def _score(self, target: Any) -> Score:
        return target if isinstance(target, Score) else Output(target)

    def __repr__(self) -> str:
        model = self.forward_func
        return f"{type(self).__name__}({getattr(model, '__name__', type(model).__name__)})"


class AtLayer(Attribution):
    """The same method at a layer: its attributions have the shape of the layer's output (or input).

    Args:
        forward_func: the model.
        layer: a module that it uses; :class:`robustx.engine.Layer` says which call if there are several.
        device_ids: accepted for Captum's sake; rows are split over devices by the evaluation, not here.
    """

    def __init__(
        self, forward_func: Callable[..., Any], layer: nn.Module | Layer, device_ids: list[int] | None = None
    ) -> None:
        Attribution.__init__(self, forward_func)
        if not isinstance(layer, Layer | nn.Module):
            raise TypeError(
                f"layer must be a module of the model, such as model.conv1, or a Layer of it, got {layer!r}"
            )
        self.layer = layer if isinstance(layer, Layer) else Layer(layer)

    def _site(self) -> Site:
        return self.layer


class OfNeuron(AtLayer):
    """The same method for a neuron's value: the score is read off a layer, the site stays the input."""

    def _site(self) -> Site:
        return Input()

    def _neuron(self, selector: Any, of_input: bool) -> Neuron:
        return Neuron(replace(self.layer, side="input") if of_input else self.layer, selector)


def rise(f: Probe, baselines: Any) -> Tensor:
    """score(inputs) - score(baselines) [B]."""
    return f.score - f.to(inputs=through(baselines)(f.to(at=Input()))).score

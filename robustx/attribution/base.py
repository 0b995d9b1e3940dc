"""What every attribution method shares: how it is called, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.utils._pytree import tree_leaves

from ..engine.guard import guarded, modules_of
from ..engine.later import Later
from ..engine.layout import channels_last
from ..engine.packing import Tensors, row_sums
from ..engine.probe import Door, Probe
from ..engine.scores import Everything, Neuron, Output, Part, Score
from ..engine.sites import Input, Layer, Site, Together
from ..perturb.references import through


def compute_gradients(
    forward_fn: Callable[..., Any], inputs: Any, target_ind: Any = None, additional_forward_args: Any = None
) -> tuple[Tensor, ...]:
    """Gradients of the score with respect to the inputs, one shaped like each: what ``gradient_func`` is by default."""
    f = Door.open(inputs).probe(forward_fn, Output(target_ind), additional_forward_args)
    return f.packing.unpack(f.grad(f.point)[1])


class Attribution(ABC):
    """Shares a score out over what stands at a site of the model.

    Shared arguments of ``attribute``:

    - ``inputs``: a tensor [B, ...], a tuple of tensors, or a dict of tensors (passed to the model by keyword).
      Attributions come back in the same form, shapes and dtypes.
    - ``baselines``: what to compare with: None (zero), a number, a tensor with one row or B, or a tuple of these; or
      any :data:`robustx.perturb.Reference`: ``blur()``, ``colour()``, ``mean(data)``, ``among(data)``, ``noise()``,
      ``static()``, ``by(function)`` of your own, and where features give way also ``Inpainted()`` and
      ``Neighbours(data)``.
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

    def attribute_future(self, *args: Any, **kwargs: Any) -> Any:
        """Captum's door for models that return futures.

        Raises:
            NotImplementedError: always, as for most of Captum's.
        """
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

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
        return delta_of(f, parts, start_point)

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

    def _layers(self) -> list[Layer]:
        """The layers that it looks at."""
        return []

    def __repr__(self) -> str:
        model = self.forward_func
        names = {m: name for whole in modules_of(model) for name, m in whole.named_modules()} if self._layers() else {}
        layers = [names.get(v.module) or type(v.module).__name__ for v in self._layers()]
        return f"{type(self).__name__}({', '.join([getattr(model, '__name__', type(model).__name__), *layers])})"


class GradientAttribution(Attribution):
    """Methods that differentiate the score.

    ``gradient_func(forward_func, inputs, target, additional_forward_args)`` makes the gradients, one shaped like each
    input; set it on an instance to differentiate in another way. It is refused where plain gradients at the inputs are
    not what a method asks for: at a layer, for a neuron, under rules.
    """

    gradient_func: Callable[..., Any] = staticmethod(compute_gradients)

    def _bind(self, inputs: Any, target: Any, args: Any = None, *rest: Any, **options: Any) -> tuple[Door, Probe]:
        door, f = super()._bind(inputs, target, args, *rest, **options)
        if self.gradient_func is compute_gradients:
            return door, f
        return door, f.to(gradient=lambda z, rows: self._gradients(z, target, args, rows, f.examples))

    def _gradients(self, z: Tensors, target: Any, args: Any, rows: Tensor, examples: int) -> Any:
        def follow(v: Any) -> Any:
            return v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim and len(v) == examples else v

        args = tuple(follow(v) for v in args) if isinstance(args, tuple) else follow(args)
        target = [target[i] for i in rows.tolist()] if isinstance(target, list) else follow(target)
        return self.gradient_func(self.forward_func, z, target, args)


class PerturbationAttribution(Attribution):
    """Methods that need values only: of the score when something has given way to something else."""

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    @property
    def _title(self) -> str:
        """What its bar says."""
        return f"{self.get_name()} attribution"

    def _bind(
        self,
        inputs: Any,
        target: Any,
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
        limit: int | None = None,
        at: Site | None = None,
    ) -> tuple[Door, Probe]:
        """``limit`` counts copies of the batch."""
        door, f = super()._bind(inputs, target, args, kwargs, limit, at)
        if limit is not None:
            f.pace.limit = limit * max(f.examples, 1)
        return door, f if isinstance(f.model, Later) else f.to(model=channels_last(f.model))

    def _score(self, target: Any) -> Score:
        """Without a target the whole output; and a target may leave several numbers."""
        return target if isinstance(target, Score) else Everything() if target is None else Part(target)

    def _as_one(
        self, inputs: Sequence[Tensor], baselines: Any, target: Any, args: Any, mask: Any, **options: Any
    ) -> tuple[Tensor, ...]:
        """``attribute`` for inputs with different numbers of rows: as one example, whose features go from all rows.

        Such as a table [B, D] beside ids of any number for all of it; the model's answer has as many numbers as it has,
        and there is a map [numbers, ...] for each of them.
        """
        model, further = self.forward_func, () if args is None else args if isinstance(args, tuple) else (args,)

        def together(*one: Tensor, **kwargs: Any) -> Tensor:
            out = model(*(t[0] for t in one), *further, **kwargs)
            if target is not None:
                out = self._score(target).value(out, torch.arange(len(out), device=out.device))
            return torch.as_tensor(out)[None]

        def rows(v: Any, t: Tensor) -> Any:
            return v.to(t.device).expand(t.shape)[None] if isinstance(v, Tensor) else v

        first, masks = 0, []
        for t in inputs:
            masks.append(torch.arange(first, first + prod(t.shape[1:]), device=t.device).reshape(1, *t.shape[1:]))
            first += masks[-1].numel()
        masks = masks if mask is None else mask
        if isinstance(baselines, tuple | list):
            baselines = tuple(rows(b, t) for b, t in zip(baselines, inputs, strict=True))
        one = copy(self)
        one.forward_func = together
        found = one.attribute(
            tuple(t[None] for t in inputs),
            baselines=baselines,
            feature_mask=tuple(rows(m, t) for m, t in zip(masks, inputs, strict=True)),
            perturbations_per_eval=1,
            **options,
        )
        shown = (_row(a, len(a.shape) - t.ndim, t) for a, t in zip(found, inputs, strict=True))
        return tuple(a[0] if a.ndim > t.ndim else a for a, t in zip(shown, inputs, strict=True))

    def _later(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """What ``attribute`` gives for a model that returns futures, as a future that is done.

        Questions are under way together, as many as the memory budget holds.

        Raises:
            TypeError: the model returns something else.
        """
        one = copy(self)
        one.forward_func = Later(self.forward_func)
        found = one.attribute(*args, **kwargs)
        devices = {t.device for t in tree_leaves(found) if isinstance(t, Tensor) and t.device.type != "cpu"}
        answer: Future[Any] = Future(devices=list(devices))
        answer.set_result(found)
        return answer


def uneven(inputs: Any) -> bool:
    """Whether inputs are tensors of different numbers of rows."""
    tensors = isinstance(inputs, tuple | list) and all(isinstance(t, Tensor) and t.ndim for t in inputs)
    return tensors and len(set(map(len, inputs))) > 1


def _row(maps: Tensor, axis: int, t: Tensor) -> Tensor:
    """The first of the rows of ``t``, all of which are shown alike; zeros where there is none."""
    return maps.select(axis, 0) if len(t) else maps.new_zeros(*maps.shape[:axis], *t.shape[1:])


class LayerAttribution(Attribution):
    """The same method at a layer: its attributions have the shape of the layer's output (or input).

    A layer with several tensors gives a tuple of attributions; a list of layers gives a list, from one pass.

    Args:
        forward_func: the model.
        layer: a module that it uses, or a list of them; :class:`robustx.engine.Layer` says which call if a module is
            called several times.
        device_ids: accepted for Captum's sake; rows are split over devices by the evaluation, not here.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
    ) -> None:
        Attribution.__init__(self, forward_func)
        self.layer: Any = list(layer) if isinstance(layer, list | tuple) else layer
        self.device_ids = device_ids
        self._layers()  # refuses what is no layer

    def _layers(self) -> list[Layer]:
        return [_layer(v) for v in (self.layer if isinstance(self.layer, list) else [self.layer])]

    def _site(self, of_input: bool = False) -> Site:
        sided = tuple(replace(v, side="input") if of_input else v for v in self._layers())
        return Together(sided) if isinstance(self.layer, list) else sided[0]

    @staticmethod
    def _out(site: Site, parts: Tensors) -> Any:
        """Results in the form of what stands at the site."""
        if isinstance(site, Together):
            return [p[0] if len(p) == 1 else p for p in site.apart(parts)]
        return parts[0] if len(parts) == 1 else parts

    @staticmethod
    def interpolate(
        layer_attribution: Tensor,
        interpolate_dims: int | tuple[int, ...],
        interpolate_mode: str = "nearest",
    ) -> Tensor:
        """Attributions [B, C, ...] of 3 to 5 axes, resized to other lengths of the axes behind the second."""
        return nn.functional.interpolate(layer_attribution, interpolate_dims, mode=interpolate_mode)


def _layer(layer: Any) -> Layer:
    if not isinstance(layer, Layer | nn.Module):
        raise TypeError(f"layer must be a module of the model, such as model.conv1, or a Layer of it, got {layer!r}")
    return layer if isinstance(layer, Layer) else Layer(layer)


class NeuronAttribution(LayerAttribution):
    """The same method for a neuron's value: the score is read off a layer, the site stays the input."""

    def has_convergence_delta(self) -> bool:
        return False

    def _layers(self) -> list[Layer]:
        return [_layer(self.layer)]

    def _site(self, of_input: bool = False) -> Site:
        return Input()

    def _neuron(self, selector: Any, of_input: bool) -> Neuron:
        (layer,) = self._layers()
        return Neuron(replace(layer, side="input") if of_input else layer, selector)


def only_unused(grad_kwargs: Mapping[str, Any] | None) -> None:
    """Captum's ``grad_kwargs``, accepted for its sake: of what they hand to autograd, ``allow_unused`` always holds.

    Raises:
        ValueError: they ask for something else.
    """
    if grad_kwargs and set(grad_kwargs) - {"allow_unused"}:
        raise ValueError(f"grad_kwargs may hold 'allow_unused' alone, got {', '.join(grad_kwargs)}; leave it out")


def delta_of(f: Probe, parts: Sequence[Tensor], baselines: Any) -> Tensor:
    """By how much attributions miss the score's rise from the baselines [B]; [B, T] for several scores."""
    risen = rise(f, baselines)
    return row_sums(parts, risen.ndim) - risen


def rise(f: Probe, baselines: Any) -> Tensor:
    """score(inputs) - score(baselines) [B]; [B, T] for several scores."""
    return f.score - f.to(inputs=through(baselines)(f.to(at=Input()))).score

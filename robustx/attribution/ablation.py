"""Methods that need values only: features give way, one after another, and the score is watched."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future

from ..engine.checks import ArgumentError
from ..engine.guard import Turns, guarded, untouched
from ..engine.packing import Packing, Tensors
from ..engine.probe import Probe
from ..engine.randomness import Noise, identities
from ..engine.sites import Layer
from ..perturb.features import Features, Windows, features_of
from ..perturb.references import Giver, here, through
from .base import LayerAttribution, NeuronAttribution, PerturbationAttribution, uneven
from .coalitions import Coalitions, alone
from .noise import drawing

Shuffle = Callable[[Tensor, Tensor], Tensor]
"""(a tensor [B, ...], where a feature is in it [1 or B, ...]) -> the tensor with other examples' values there."""


def feature_ablation(players: Coalitions, what: str = "", show: bool = False) -> Tensor:
    """How much the score falls when each feature alone gives way [B, ..., F]; behind the axes of the score, if any.

    Zeiler, Fergus (ECCV 2014), section 4.2. [1, ..., F] if the model answers for the whole batch.
    """
    n = players.features.count
    first, *further = players.groups
    answers = players.ask(n, alone(n), what, show, first)
    falls = players.all_there[..., None].repeat_interleave(n, -1)
    for a in chain(answers, chain.from_iterable(players.ask(n, alone(n), what, show, rows) for rows in further)):
        falls[a.rows, ..., a.sets] -= a.values
    return falls


# --- other examples' values -------------------------------------------------------------------------------


def permuted(x: Tensor, feature_mask: Tensor) -> Tensor:
    """A feature's values in another order of the examples, drawn from torch's global generator; [B, ...].

    Raises:
        ValueError: there is no other order of fewer than two.
    """
    if len(x) < 2:
        raise ArgumentError(f"a permutation needs two examples at least, got {len(x)}")
    order = torch.randperm(len(x))
    while (order == torch.arange(len(x))).all():
        order = torch.randperm(len(x))
    return torch.where(feature_mask.bool(), x[order.to(x.device)], x)


def from_others(features: Features, shuffle: Shuffle, turns: Turns) -> Callable[[Probe], Giver]:
    """Each feature gives way to what ``shuffle`` makes of it, drawn feature by feature and tensor by tensor."""
    return lambda f: _Shuffled(f.here, features, shuffle, turns)


def from_next(features: Features, seed: int) -> Callable[[Probe], Giver]:
    """Each feature gives way to its values in the next example, in a circle of all of them that is drawn by key.

    All that a feature holds comes from one other example, and the order of the batch does not matter.
    """

    def circles(f: Probe) -> Giver:
        names = identities(*f.inputs)
        like = torch.zeros(0, dtype=torch.float64)
        order = Noise(seed, "feature permutation", names).uniform(features.count, like).argsort(0)
        others = torch.empty_like(order).scatter_(0, order, order.roll(-1, 0)).to(f.device)  # [B, F]
        return lambda gates, rows: tuple(t[others[rows, gates.argmax(1)]] for t in f.here)

    return circles


@dataclass(eq=False)
class _Shuffled:
    """Gives each query what its open feature gives way to."""

    start: Tensors
    features: Features
    shuffle: Shuffle
    turns: Turns
    kept: dict[int, Tensors] = field(default_factory=dict)  # a batch may end within a set, or be asked for again

    def __call__(self, gates: Tensor, rows: Tensor) -> Tensors:
        sets, place = gates.argmax(1).unique(return_inverse=True)
        self.kept = {k: self.kept.get(k) or self._made(k) for k in sets.tolist()}
        return tuple(torch.stack(of_input)[place, rows] for of_input in zip(*self.kept.values(), strict=True))

    def _made(self, k: int) -> Tensors:
        b = len(self.start[0])
        rows = torch.arange(1 if self.features.shared else b, device=self.start[0].device)
        gate = torch.zeros(len(rows), self.features.count, device=rows.device).index_fill_(1, rows.new_tensor([k]), 1)
        masks = Packing.of(self.start).split(self.features.spread(gate, rows) > 0)
        with self.turns.drawing():
            return tuple(self.shuffle(t, m) if m.any() else t for t, m in zip(self.start, masks, strict=True))


# --- the classes ------------------------------------------------------------------------------------------


class FeatureAblation(PerturbationAttribution):
    """How much the score falls when a feature is replaced by its baseline; every element shows its feature's fall.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> x, mask = torch.rand(3, 4), torch.tensor([[0, 0, 7, 7]])
    >>> a = FeatureAblation(model).attribute(x, target=0, feature_mask=mask)
    >>> torch.allclose(a[:, 0], x[:, :2] @ model.weight[0, :2], atol=1e-6)
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output.

        A model that returns M > 1 numbers per example, as far as ``target`` leaves them, or something for the whole
        batch, gets one map for each number: [outputs, ...].

        Args:
            inputs, baselines, target, additional_forward_args: see :class:`Attribution`; inputs may hold integers. If
                they have different numbers of rows, features give way in all rows at once, and each number of the
                output gets a map.
            feature_mask: integers that broadcast to the inputs (a tuple for a tuple); elements with the same id, also
                in different tensors, are one feature. Or any :class:`robustx.perturb.Features`. Default: each element
                is one.
            perturbations_per_eval: most perturbed copies of the batch in one pass; None fills the memory budget.
            show_progress: draw a bar on standard error.
            kwargs: what Captum hands on to derived classes; a warning names what is not used.
        """
        _unused(kwargs)
        if uneven(inputs):
            further = {"show_progress": show_progress, "additional_forward_kwargs": additional_forward_kwargs}
            return self._as_one(inputs, baselines, target, additional_forward_args, feature_mask, **further)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f.patched(), features_of(feature_mask, f.inputs, door.names), through(baselines))
        return door.out(players.maps(feature_ablation(players, self._title, show_progress)))

    def attribute_future(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """The same for a model that returns a ``torch.futures.Future``: a future of the attributions.

        Raises:
            TypeError: the model returns something else.
        """
        return self._later(*args, **kwargs)


class Occlusion(PerturbationAttribution):
    """How much the score falls when a window is replaced by its baseline; elements show the mean over their windows.

    Zeiler, Fergus (ECCV 2014), section 4.2.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    >>> x = torch.rand(2, 3, 8, 8)
    >>> Occlusion(model).attribute(x, sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2), target=1).shape
    torch.Size([2, 3, 8, 8])
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        sliding_window_shapes: Any,
        strides: Any = None,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; see :class:`FeatureAblation`.

        Args:
            sliding_window_shapes: the window's length along each axis behind the batch (a tuple of these for a tuple).
                One number instead is its length along every axis, but no longer than the axis: ``4`` covers all
                channels of a picture.
            strides: how far from one window to the next, in the same forms, no further than a window is long. Default:
                1. The last window ends with the axis.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        windows = Windows.over(f.inputs, sliding_window_shapes, 1 if strides is None else strides, door.names)
        players = Coalitions(f.patched(), windows, through(baselines))
        return door.out(players.maps(feature_ablation(players, self._title, show_progress)))


class FeaturePermutation(PerturbationAttribution):
    """How much the score falls when a feature takes its value from another example of the batch.

    Breiman (Machine Learning 45, 2001), section 10; Fisher, Rudin, Dominici (JMLR 2019). What an example is attributed
    depends on the others. A single one has no other: its attributions are zero, and a warning says so.

    Args:
        forward_func: the model, any callable.
        perm_func: how to shuffle: (an input [B, ...], where the feature is [1 or B, ...]) -> the input with other
            values there; :func:`permuted` by default.

    >>> import torch
    >>> weight = torch.tensor([2.0, 0.0])
    >>> FeaturePermutation(lambda x: x @ weight).attribute(torch.tensor([[1.0, 5.0], [4.0, 6.0]]))
    tensor([[-6.,  0.],
            [ 6.,  0.]])
    """

    def __init__(self, forward_func: Callable[..., Any], perm_func: Shuffle = permuted) -> None:
        super().__init__(forward_func)
        self.perm_func = perm_func

    @drawing
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; see :class:`FeatureAblation`.

        Args:
            seed: draw by key: all of a feature comes from one other example, never the own, whatever the batch's
                order. Without it ``perm_func`` shuffles every input by itself, from the global generators.
        """
        _unused({k: v for k, v in kwargs.items() if k != "baselines"})  # Captum's takes them for nothing
        turns = Turns()
        with untouched(self.forward_func):
            door, f = self._bind(
                inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval
            )
            features = features_of(feature_mask, f.inputs, door.names)
            found = door.out(_shuffled(f, features, self.perm_func, seed, turns, self._title, show_progress))
        turns.leave()
        return found

    def attribute_future(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """See :meth:`FeatureAblation.attribute_future`."""
        return self._later(*args, **kwargs)


class LayerFeatureAblation(LayerAttribution, PerturbationAttribution):
    """How much the score falls when a feature of what stands at a layer is replaced by its baseline.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = LayerFeatureAblation(model, model[1]).attribute(x, target=1)
    >>> torch.allclose(a, model[:2](x) * model[2].weight[1], atol=1e-6)
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        layer_baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        layer_mask: Any = None,
        attribute_to_layer_input: bool = False,
        perturbations_per_eval: int | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); see :class:`FeatureAblation`.

        Args:
            layer_baselines: what stands at the layer instead, in the forms of ``baselines``.
            layer_mask: the layer's features, in the forms of ``feature_mask``.
        """
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval, at=site
        )
        players = Coalitions(f, features_of(layer_mask, f.here), here(layer_baselines))
        return self._out(site, players.maps(feature_ablation(players)))


class LayerFeaturePermutation(LayerAttribution, PerturbationAttribution):
    """How much the score falls when a feature of what stands at a layer takes its value from another example.

    Args:
        forward_func, layer, device_ids: see :class:`robustx.attribution.base.LayerAttribution`.
        perm_func: see :class:`FeaturePermutation`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> LayerFeaturePermutation(model, model[1]).attribute(torch.rand(5, 3), target=1, seed=0).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        perm_func: Shuffle = permuted,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self.perm_func = perm_func

    @drawing
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        layer_mask: Any = None,
        perturbations_per_eval: int | None = None,
        *,
        attribute_to_layer_input: bool = False,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input).

        Args:
            layer_mask: the layer's features, in the forms of ``feature_mask`` of :class:`FeatureAblation`.
            seed: see :class:`FeaturePermutation`.
        """
        site, turns = self._site(attribute_to_layer_input), Turns()
        with untouched(self.forward_func):
            _, f = self._bind(
                inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval, at=site
            )
            features = features_of(layer_mask, f.here)
            found = self._out(site, _shuffled(f, features, self.perm_func, seed, turns))
        turns.leave()
        return found


class NeuronFeatureAblation(NeuronAttribution, PerturbationAttribution):
    """How much a neuron's value falls when a feature of the inputs is replaced by its baseline.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = NeuronFeatureAblation(model, model[0]).attribute(x, 1)
    >>> torch.allclose(a, x * model[0].weight[1], atol=1e-6)
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        baselines: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        attribute_to_neuron_input: bool = False,
        perturbations_per_eval: int | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; see :class:`FeatureAblation`.

        Args:
            neuron_selector, attribute_to_neuron_input: see :class:`NeuronIntegratedGradients`.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f, features_of(feature_mask, f.inputs, door.names), through(baselines))
        return door.out(players.maps(feature_ablation(players)))


def _shuffled(
    f: Probe, features: Features, shuffle: Shuffle, seed: int | None, turns: Turns, what: str = "", show: bool = False
) -> Tensors:
    """Maps of the falls when features take their values from other examples."""
    given = from_others(features, shuffle, turns) if seed is None else from_next(features, seed)
    players = Coalitions(f, features, given)
    if f.examples == 1:
        warnings.warn("a single example has no other to take values from: its attributions are zero", stacklevel=4)
        return players.maps(torch.zeros_like(players.all_there)[..., None].repeat_interleave(features.count, -1))
    return players.maps(feature_ablation(players, what, show))


def _unused(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        warnings.warn(f"attribute makes no use of {', '.join(kwargs)}", stacklevel=4)

"""Methods that need values only: features give way to a reference, and the score is watched."""

from typing import Any

from torch import Tensor

from ..engine.guard import guarded
from ..engine.packing import Tensors
from ..engine.scores import Each
from ..perturb.features import from_masks
from ..perturb.references import through
from .base import PerturbationAttribution
from .coalitions import Coalitions, alone


def feature_ablation(players: Coalitions, show: bool = False) -> Tensor:
    """How much the score falls when each feature alone gives way [B, ..., F]; behind the axes of the score, if any.

    Zeiler, Fergus (ECCV 2014), section 4.2. [1, M, F] for M numbers of the whole batch.
    """
    n = players.features.count
    falls = players.all_there[..., None].repeat_interleave(n, -1)
    for a in players.ask(n, alone(n), "Feature Ablation attribution", show):
        falls[a.rows, ..., a.sets] -= a.values
    return falls


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
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output.

        A model that returns M > 1 numbers per example (without ``target``), or something for the whole batch, gets
        one map for each number: [outputs, ...].

        Args:
            inputs, baselines, target, additional_forward_args: see :class:`Attribution`; inputs may hold integers.
            feature_mask: integers that broadcast to the inputs (a tuple for a tuple); elements with the same id, also
                in different tensors, are one feature. Default: each element is one.
            perturbations_per_eval: most perturbed copies of the batch in one pass; None fills the memory budget.
            show_progress: draw a bar on standard error.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        features = from_masks(feature_mask, f.inputs, door.names)
        players = Coalitions(f, features, through(baselines))
        falls = feature_ablation(players, show_progress)
        return door.out(_maps(players, falls))


def _maps(players: Coalitions, falls: Tensor) -> Tensors:
    """A map for each number [B * M, ...], or [B, T, ...] for several scores."""
    maps = players.shown(falls.flatten(0, -2))
    return tuple(m.unflatten(0, falls.shape[:-1]) for m in maps) if isinstance(players.f.of, Each) else maps

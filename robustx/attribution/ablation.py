"""Methods that need values only: features give way to a reference, and the score is watched."""

from typing import Any

import torch
from torch import Tensor

from ..engine.guard import guarded
from ..engine.packing import Packing
from ..engine.probe import Probe
from ..engine.progress import progress
from ..engine.scores import Each, Everything, OutputError
from ..perturb.features import Features, from_masks
from ..perturb.gates import gated
from ..perturb.references import Reference, through
from .base import Attribution


def feature_ablation(f: Probe, features: Features, reference: Reference, show: bool = False) -> Tensor:
    """How much the score falls when each feature alone gives way [B, F] ([B, ..., F] for a score of several numbers).

    The corners of the gate cube next to its origin, made batch by batch. Zeiler, Fergus (ECCV 2014), section 4.2.
    """
    g, b, n = gated(f, features, reference), f.examples, features.count
    falls = f.score[..., None].expand(*f.score.shape, n).clone()

    def query(part: slice) -> tuple[Tensor, Tensor]:
        k = torch.arange(part.start, part.stop, device=f.device)
        return _corners(g, k // b, n), k % b

    with progress(n * b, "Feature Ablation attribution", show) as more:
        for part, values in g.values(n * b, query):
            k = torch.arange(part.start, part.stop, device=f.device)
            falls[k % b, ..., k // b] -= values
            more(part.stop - part.start)
    return falls


def joint_ablation(f: Probe, features: Features, reference: Reference, show: bool = False) -> Tensor:
    """The same for a model that returns something for the whole batch, not for each example [M, F]."""
    g, n = gated(f, features, reference), features.count
    before = _flat(f.outputs())
    falls = []
    with progress(n, "Feature Ablation attribution", show) as more:
        for i in range(n):
            corner = _corners(g, torch.full_like(f.everyone, i), n)
            falls.append(before - _flat(g.outputs(corner, f.everyone)))
            more(1)
    return torch.stack(falls, 1) if falls else before.new_zeros(len(before), 0)


class FeatureAblation(Attribution):
    """How much the score falls when a feature is replaced by its baseline; every element shows its feature's fall.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> x, mask = torch.rand(3, 4), torch.tensor([[0, 0, 7, 7]])
    >>> a = FeatureAblation(model).attribute(x, target=0, feature_mask=mask)
    >>> torch.allclose(a[:, 0], x[:, :2] @ model.weight[0, :2], atol=1e-6)
    True
    """

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
        if perturbations_per_eval is not None:
            f.pace.limit = perturbations_per_eval * max(f.examples, 1)
        if target is None:
            f = f.to(of=Everything())
        features = from_masks(feature_mask, f.inputs, door.names)
        falls, rows = self._falls(f, features, through(baselines), show_progress)
        parts = Packing.of(f.inputs).split(features.spread(falls, rows))
        if isinstance(f.of, Each):
            parts = tuple(p.unflatten(0, f.score.shape) for p in parts)
        return door.out(parts)

    def _falls(self, f: Probe, features: Features, reference: Reference, show: bool) -> tuple[Tensor, Tensor]:
        """Falls [outputs, F], and the example that each output belongs to."""
        try:
            falls = feature_ablation(f, features, reference, show)
        except OutputError as e:
            if not isinstance(f.of, Everything):
                raise
            try:
                falls = joint_ablation(f, features, reference, show)
            except TypeError:
                raise e from None
            if features.count and features.spread(falls[:1], f.everyone[:1]).shape[0] != 1:
                raise
            return falls, f.everyone.new_zeros(len(falls))
        falls = falls[:, None] if falls.ndim == 2 else falls.flatten(1, -2)
        return falls.flatten(0, 1), f.everyone.repeat_interleave(falls.shape[1])


def _corners(g: Probe, which: Tensor, n: int) -> Tensor:
    """Gates [N, n] with the one of ``which`` [N] open."""
    return torch.zeros(len(which), n, dtype=g.packing.dtype, device=g.device).scatter(1, which[:, None], 1)


def _flat(out: Any) -> Tensor:
    if not isinstance(out, Tensor | int | float):
        raise TypeError(type(out).__name__)
    return torch.as_tensor(out, dtype=None if isinstance(out, Tensor) else torch.float64).reshape(-1)

"""What is judged: attributions of a score, beside what the score does when features give way."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, TypedDict

import torch
from torch import Tensor

from ...engine.checks import ArgumentError
from ...engine.layout import channels_last
from ...engine.packing import Tensors, finest, flat
from ...engine.probe import Door, NonFiniteError, Probe, by_name
from ...engine.randomness import Noise
from ...engine.scores import Output, Score
from ...perturb.features import Features, blocks, features_of
from ...perturb.references import named
from ..coalitions import Absent, Coalitions


class Asked(TypedDict, total=False):
    """What metrics that ask the model share.

    - ``baselines``: what features give way to: any form of :class:`robustx.attribution.Attribution`, or "blur", "mean",
      "noise", "inpaint".
    - ``feature_mask``: the features, as in :class:`robustx.attribution.FeatureAblation`. Default: the places of
      pictures [B, C, H, W], with all their channels, and elsewhere every element.
    - ``pool``: what a feature is attributed: the "sum" over its elements (methods whose attributions add up), or their
      "mean" (methods that show each element its feature's value).
    - ``additional_forward_args``, ``additional_forward_kwargs``: as in :class:`robustx.attribution.Attribution`.
    - ``max_examples_per_batch``: most rows in one pass; by default passes fill the memory budget.
    """

    baselines: Any
    feature_mask: Any
    pool: Literal["sum", "mean"]
    additional_forward_args: Any
    additional_forward_kwargs: dict[str, Any] | None
    max_examples_per_batch: int | None


@dataclass(frozen=True, eq=False)
class Case:
    """Attributions of the features [B, F], and the coalitions of these.

    Args:
        players: what gives way to what.
        values: what each feature is attributed [B, F].
    """

    players: Coalitions
    values: Tensor

    @classmethod
    def of(
        cls,
        forward_func: Callable[..., Any],
        inputs: Any,
        attributions: Any,
        target: Any = None,
        *,
        baselines: Any = None,
        feature_mask: Any = None,
        pool: Literal["sum", "mean"] = "sum",
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
        max_examples_per_batch: int | None = None,
    ) -> Self:
        """See :class:`Asked`; to be used while the model is guarded.

        Raises:
            ValueError: attributions do not fit the inputs, or ``pool`` is none.
        """
        door = Door.open(inputs)
        score = target if isinstance(target, Score) else Output(target)
        further = additional_forward_args, additional_forward_kwargs, max_examples_per_batch
        f = door.probe(forward_func, score, *further)
        features = (
            blocks(tuple(t if t.ndim > 3 else flat(t) for t in door.inputs))  # text and signals know no places
            if feature_mask is None
            else features_of(feature_mask, door.inputs, door.names)
        )
        values = pooled(aligned(attributions, door), features, f, pool)
        g = f.to(model=channels_last(f.model))
        return cls(Coalitions(g, features, named(baselines)), values)

    @property
    def f(self) -> Probe:
        return self.players.f

    @cached_property
    def forwards(self) -> Tensor:
        """Rows that went through the model for each example [B]."""
        assert self.f.meter is not None
        return self.f.meter.forward

    def order(self, values: Tensor, seed: int) -> Tensor:
        """Each feature's place when they stand by descending value [B, F]; ties are broken by key."""
        chance = Noise(seed, "ties", self.players.names).uniform(values.shape[1], finest(values)).argsort(1)
        ranked = chance.gather(1, values.gather(1, chance).argsort(dim=1, descending=True, stable=True))
        places = torch.arange(values.shape[1], device=values.device).expand_as(ranked)
        return torch.empty_like(ranked).scatter_(1, ranked, places)


def scores_of(players: Coalitions, count: int, absent: Absent) -> Tensor:
    """The scores of ``count`` sets for each example [B, count]."""
    answers = list(players.ask(count, absent))
    found = players.all_there.new_zeros(players.examples, count)
    for a in answers:
        found[a.rows, a.sets] = a.values.to(found)
    return found


def aligned(attributions: Any, door: Door) -> Tensors:
    """Attributions in the inputs' shapes; those of fewer channels, such as activation maps, are shown in all.

    Raises:
        ValueError: they do not fit.
        NonFiniteError: some are NaN or infinite.
    """
    given = by_name(attributions, door.names, "attributions")
    tensors = (given,) if isinstance(given, Tensor) else tuple(given)
    if len(tensors) != len(door.inputs):
        raise ArgumentError(
            f"attributions must be one tensor for each of {len(door.inputs)} inputs, got {len(tensors)}"
        )
    found = []
    for a, t in zip(tensors, door.inputs, strict=True):
        a = a.detach().to(t.device)
        if a.ndim != t.ndim or any(n not in (1, m) for n, m in zip(a.shape, t.shape, strict=True)) or len(a) != len(t):
            raise ArgumentError(
                f"attributions must be shaped like the inputs, {tuple(t.shape)}, got {tuple(a.shape)}; of a layer's "
                "maps take LayerAttribution.interpolate(maps, x.shape[2:])"
            )
        if not torch.isfinite(a).all():
            raise NonFiniteError("attributions contain NaN or infinity; mend them, or leave these examples out")
        found.append(finest(a).expand(t.shape))
    return tuple(found)


def pooled(attributions: Tensors, features: Features, f: Probe, pool: str) -> Tensor:
    """What each feature is attributed [B, F]."""
    if pool not in ("sum", "mean"):
        raise ArgumentError(f"pool must be 'sum' or 'mean', got {pool!r}")
    values = torch.cat([flat(a) for a in attributions], 1)
    total = features.gather(values, f.everyone)
    return total if pool == "sum" else total / features.gather(torch.ones_like(values), f.everyone)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of rows [B, n]; [B]. Zero where a row is constant, as it then says nothing.

    >>> correlation(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]), torch.tensor([[3.0, 5.0, 7.0], [1.0, 2.0, 3.0]]))
    tensor([1.0000, 0.0000], dtype=torch.float64)
    """
    return (_standard(a) * _standard(b)).sum(1)


def _standard(a: Tensor) -> Tensor:
    """Rows of mean zero and length one; constant ones are zero, also where rounding left a little."""
    a = finest(a)
    way = a - a.mean(1, keepdim=True)
    size = way.norm(dim=1, keepdim=True)
    constant = size <= 1e-12 * a.norm(dim=1, keepdim=True)
    return torch.where(constant, 0, way / torch.where(constant, 1, size))

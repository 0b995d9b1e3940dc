"""Every measure of a counterfactual, by name, and one table of them all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, at_least, optional, whole
from ...engine.guard import untouched
from ...engine.probe import Door
from ...perturb.features import features_of
from ..aims import Aim, aimed
from ..schema import FeatureSchema
from . import distance, diversity, pictures, plausibility, robustness
from .case import Case, Langevin, Space, returned, rows_like

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """A measure of a counterfactual.

    Attributes:
        of: what tells it, one number for each that was returned [R].
        better: whether more or less of it is better.
        needs: what it needs beside the model and the points, see :data:`NEEDS`.
        missing: what stands where no counterfactual was returned.
    """

    of: Callable[[Case], Tensor]
    better: Literal["more", "less", "neither"]
    needs: tuple[str, ...] = ()
    missing: float = torch.nan

    @property
    def name(self) -> str:
        return self.of.__name__

    def lacks(self, case: Case) -> list[str]:
        """What it needs and the case has not."""
        return [n for n in self.needs if not NEEDS[n][0](case)]


NEEDS: dict[str, tuple[Callable[[Case], bool], str]] = {
    "data": (lambda c: c.data is not None, "data=, rows to compare with"),
    "schema": (lambda c: c.schema is not None, "schema=, a FeatureSchema"),
    "ranges": (lambda c: c.data is not None or c.schema is not None, "data= or schema=, to know the columns' ranges"),
    "costs": (lambda c: c.costs is not None or c.schema is not None, "costs= or schema="),
    "classes": (lambda c: c.classes, "a goal about classes"),
    "gradients": (lambda c: c.differentiable, "a model with gradients"),
    "sigma": (lambda c: c.sigma is not None, "sigma=, the deviation of the noise"),
    "weights": (lambda c: c.weighty, "a model that is a torch.nn.Module with weights (not scripted, not DataParallel)"),
    "delta": (lambda c: c.drift is not None, "delta=, how far each weight may move"),
    "ensemble": (lambda c: bool(c.ensemble), "ensemble=, other models"),
    "autoencoders": (lambda c: bool(c.autoencoders), "autoencoders=, one for each class"),
    "all": (lambda c: "all" in c.autoencoders, "an autoencoder of all classes, autoencoders={..., 'all': ...}"),
    "density": (lambda c: c.data is not None or c.density != "kde", "data=, or a density= of your own"),
    "method": (lambda c: c.again is not None, "method=, what made the counterfactuals"),
    "several": (lambda c: c.got.each is not None, "several counterfactuals for each example, x_cf [B, n, ...]"),
    "picture": (lambda c: len(c.f.inputs) == 1 and c.f.inputs[0].ndim == 4, "pictures [B, C, H, W]"),
}
"""What metrics may need: how to see whether it is there, and how to give it."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(distance.returned, "more", missing=0),
        Metric(distance.valid, "more", missing=0),
        Metric(distance.unique, "more", ("several",), missing=0),
        Metric(distance.margin, "more"),
        Metric(distance.probability, "more", ("classes",)),
        Metric(distance.l0, "less"),
        Metric(distance.share_changed, "less"),
        Metric(distance.l1, "less"),
        Metric(distance.l2, "less"),
        Metric(distance.linf, "less"),
        Metric(distance.mad_l1, "less", ("data",)),
        Metric(distance.gower, "less", ("ranges",)),
        Metric(distance.heom, "less", ("ranges",)),
        Metric(distance.mahalanobis, "less", ("data",)),
        Metric(distance.cost, "less", ("costs",)),
        Metric(distance.percentile_shift, "less", ("data",)),
        Metric(distance.max_percentile_shift, "less", ("data",)),
        Metric(distance.n_redundant, "less"),
        Metric(distance.n_sufficient, "neither"),
        Metric(distance.n_violations, "less", ("schema",)),
        Metric(diversity.dpp, "more", ("several",)),
        Metric(diversity.pairwise, "more", ("several",)),
        Metric(diversity.count_diversity, "more", ("several",)),
        Metric(plausibility.knn, "less", ("data",)),
        Metric(plausibility.knn_ratio, "less", ("data",)),
        Metric(plausibility.implausibility, "less", ("data",)),
        Metric(plausibility.lof, "less", ("data",)),
        Metric(plausibility.isolation, "more", ("data",)),
        Metric(plausibility.ynn, "more", ("data",)),
        Metric(plausibility.gower_knn, "less", ("data",)),
        Metric(plausibility.trust, "more", ("data",)),
        Metric(plausibility.connected, "more", ("data",)),
        Metric(plausibility.log_density, "more", ("density",)),
        Metric(plausibility.im1, "less", ("autoencoders", "classes")),
        Metric(plausibility.im2, "less", ("autoencoders", "all", "classes")),
        Metric(plausibility.unfaithfulness, "less", ("data", "classes", "gradients")),
        Metric(plausibility.energy, "less", ("classes",)),
        Metric(robustness.ensemble_valid, "more", ("ensemble",), missing=0),
        Metric(robustness.survives, "more", ("ensemble",), missing=0),
        Metric(robustness.delta_valid, "more", ("weights", "delta"), missing=0),
        Metric(robustness.delta_robust, "more", ("weights", "delta"), missing=0),
        Metric(robustness.invalidation, "less", ("sigma",)),
        Metric(robustness.invalidation_linear, "less", ("sigma", "gradients")),
        Metric(robustness.stability, "more", ("sigma", "classes")),
        Metric(robustness.set_distance, "less", ("method", "sigma")),
        Metric(robustness.lipschitz, "less", ("method", "sigma")),
        Metric(pictures.area, "less", ("picture",)),
        Metric(pictures.components, "less", ("picture",)),
        Metric(pictures.cout, "more", ("classes",)),
    )
}
"""All metrics by name, in the order of the table's columns."""

MOVED = {name for name, metric in METRICS.items() if "method" in metric.needs}
"""Those for which a method is run once more."""


def evaluate(
    forward_func: Callable[..., Any],
    x: Any,
    x_cf: Any,
    target: Aim = "other",
    *,
    min_prob: float | None = None,
    schema: FeatureSchema | None = None,
    feature_mask: Any = None,
    data: Any = None,
    labels: Any = None,
    metrics: str | Sequence[str] = "all",
    space: Space = "input",
    tolerance: float = 1e-5,
    neighbours: int = 5,
    sigma: float | Tensor | None = None,
    draws: int = 100,
    delta: float | None = None,
    confidence: float = 0.99,
    rate: float = 0.99,
    costs: Any = None,
    ensemble: Sequence[Callable[..., Any]] = (),
    autoencoders: Mapping[Any, Callable[..., Any]] | None = None,
    density: Any = "kde",
    method: Callable[[Any], Any] | None = None,
    sampler: Langevin | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    additional_forward_args: Any = None,
    additional_forward_kwargs: dict[str, Any] | None = None,
) -> "pd.DataFrame":
    """Counterfactuals of any origin, measured: one row for each that was asked for, one column for each metric.

    A missing counterfactual is not valid; what cannot be told of it is NaN, so that means of those columns are over
    what was returned. Each metric's convention stands in its docstring.

    Args:
        forward_func: the model, as for every method here.
        x: what was asked about: a tensor [B, ...], or a tuple or dict of tensors.
        x_cf: the counterfactuals in the same form, NaN where there is none; with one more axis [B, n, ...] for
            several of each example. What a search handed back will do, with its alternatives.
        target: what they were to reach: ``"other"`` (any other class than the model's at ``x``), ``"runner-up"``, one
            class or one per example, a :class:`Change`, a goal, or a function from outputs to margins [n].
        min_prob: the probability that a class was to reach.
        schema: what the columns of encoded rows [B, D] are; then features are its features, and ``x``, ``x_cf`` and
            ``data`` may also be tables in its units (a DataFrame's rows with gaps are missing).
        feature_mask: without a schema: integers that broadcast to the inputs; equal ones are one feature.
        data: rows like x [N, ...], to compare with: best those that the model was trained on.
        labels: their classes [N]; otherwise the model's answers.
        metrics: names, or ``"all"``: every metric whose needs are met.
        space: what differences of elements are measured in: ``"input"``, as the model takes them; ``"raw"``, the
            schema's units; ``"range"`` or ``"std"`` of the data. Blocks of categories always are ones and zeros.
        tolerance: what differs by no more (in input units) does not differ.
        neighbours: how many, where some are looked at.
        sigma, draws: the deviation of Gaussian noise, in input units (a number, or one for each element), and how
            often it is drawn.
        delta, confidence, rate: how far each weight of the model may move, and how many models are drawn so: as many
            as tell with this confidence that at least this share of them keeps the goal (459), see
            :func:`robustx.counterfactual.metrics.robustness.trials`.
        costs: of a unit of each column [J].
        ensemble: other models, asked as the first.
        autoencoders: by class, and ``"all"`` for one of all classes; functions of the inputs, asked like models.
        density: a function of inputs that returns log-densities [n], or what has scikit-learn's ``score_samples``.
        method: what made the counterfactuals, a function of inputs in the form of x.
        sampler: how the model's own idea of a class is drawn.
        seed: of all draws.
        batch_size: most rows in one pass.
        additional_forward_args, additional_forward_kwargs: passed on to the model.

    Raises:
        ArgumentError: no such metric, one whose needs are not met, or what does not fit the inputs.
        ImportError: pandas is not installed.

    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [1.0, 2.0]]), "bias": torch.tensor([0.0, -1.0])})
    >>> x = torch.zeros(2, 2)
    >>> x_cf = torch.tensor([[0.5, 1.0], [torch.nan, torch.nan]])
    >>> evaluate(model, x, x_cf, metrics=["valid", "l0", "l1", "n_redundant"])
             valid   l0   l1  n_redundant
    example
    0          1.0  2.0  1.5          1.0
    1          0.0  NaN  NaN          NaN
    """
    at_least("tolerance", tolerance, 0)
    if delta is not None:
        at_least("delta", delta, 0)
    frame = optional("pandas", "tables")
    chosen = _chosen(metrics)
    with ExitStack() as guards:
        for model in (forward_func, *ensemble, *(autoencoders or {}).values()):
            guards.enter_context(untouched(model))
        x, x_cf, data = (_encoded(schema, given) for given in (x, x_cf, data))
        door = Door.open(x)
        f = door.probe(forward_func, None, additional_forward_args, additional_forward_kwargs, limit=batch_size)
        if schema is not None and (feature_mask is not None or not door.single or f.point.shape[1] != schema.width):
            raise ArgumentError(
                f"schema is for encoded rows [B, {schema.width}] and says itself what the features are; got x of shape "
                f"{', '.join(str(tuple(t.shape)) for t in door.inputs)}"
                + (" and a feature_mask" if feature_mask is not None else "")
            )
        mask = feature_mask if schema is None else schema.feature_mask
        case = Case(
            f.to(of=aimed(f, target, min_prob)),
            returned(x_cf, door, f.packing),
            features_of(mask, door.inputs, door.names),
            schema=schema,
            data=None if data is None else f.packing.pack(rows_like(door, data)),
            labels=None if labels is None else _classes(labels),
            space=space,
            tolerance=tolerance,
            neighbours=whole("neighbours", neighbours, 1),
            sigma=None if sigma is None else _spread(sigma, f.point, door),
            draws=whole("draws", draws, 1),
            drift=delta,
            trials=robustness.trials(confidence, rate),
            costs=None if costs is None else torch.as_tensor(costs, dtype=torch.float64).reshape(-1),
            ensemble=tuple(ensemble),
            autoencoders=autoencoders or {},
            density=density,
            again=method and (lambda z: returned(method(door.out(f.packing.unpack(z.clone()))), door, f.packing)),
            sampler=sampler or Langevin(),
            seed=seed,
        )
        _check(case)
        columns = {name: values.numpy() for name, values in _measured(case, chosen, metrics == "all").items()}
    b, n = f.examples, case.got.each
    if n is None:
        return frame.DataFrame(columns, index=frame.RangeIndex(b, name="example"))
    return frame.DataFrame(
        columns, index=frame.MultiIndex.from_product([range(b), range(n)], names=["example", "counterfactual"])
    )


def _encoded(schema: FeatureSchema | None, given: Any) -> Any:
    """Tables in their own units as the model takes them [B, D]; rows of a DataFrame with gaps are missing."""
    if schema is None or not hasattr(given, "keys"):
        return given
    gaps = torch.tensor(given.isna().any(axis=1).to_numpy()) if hasattr(given, "isna") else None
    if gaps is None or not gaps.any():
        return schema.encode(given)
    rows = torch.full((len(gaps), schema.width), torch.nan, dtype=schema.dtype)
    rows[~gaps] = schema.encode(given[~gaps.numpy()])
    return rows


def _chosen(metrics: str | Sequence[str]) -> list[Metric]:
    if metrics == "all":
        return list(METRICS.values())
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in METRICS:
            raise ArgumentError(f"no metric is called {name!r}; known are 'all' and {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def _measured(case: Case, chosen: Sequence[Metric], leave_out: bool) -> dict[str, Tensor]:
    """Each metric of all that were asked for [B * n]."""
    out: dict[str, Tensor] = {}
    total = case.f.examples * (1 if case.got.each is None else case.got.each)
    for metric in chosen:
        lacks = metric.lacks(case) if len(case.z) else []
        if lacks and leave_out:
            continue
        if lacks:
            raise ArgumentError(f"metric {metric.name!r} needs {' and '.join(NEEDS[n][1] for n in lacks)}")
        out[metric.name] = torch.full((total,), metric.missing, dtype=torch.float64)
        if len(case.z):
            out[metric.name][case.got.place.cpu()] = metric.of(case)
    return out


def _check(case: Case) -> None:
    """Raises ArgumentError where options do not fit one another."""
    if case.space not in get_args(Space):
        raise ArgumentError(f"space must be one of {', '.join(map(repr, get_args(Space)))}, got {case.space!r}")
    if case.space == "raw" and case.schema is None:
        raise ArgumentError("space 'raw' needs a schema, which knows the raw units; without one use 'input'")
    if case.space != "input" and case.data is None and (case.space == "std" or case.schema is None):
        raise ArgumentError(f"space {case.space!r} needs data to know the scale of each element")
    if case.labels is not None and (case.data is None or len(case.labels) != len(case.data)):
        n = "no data" if case.data is None else f"{len(case.data)} rows of data"
        raise ArgumentError(f"labels must hold one class for each row of data, got {len(case.labels)} for {n}")
    columns = case.f.point.shape[1] if case.schema is None else len(case.schema)
    if case.costs is not None and len(case.costs) != columns:
        raise ArgumentError(f"costs must be one for each of the {columns} columns, got {len(case.costs)}")


def _classes(labels: Any) -> Tensor:
    known = torch.as_tensor(labels).cpu().reshape(-1)
    if known.is_floating_point() or known.is_complex():
        raise ArgumentError(f"labels must hold classes as integers, got {known.dtype}")
    return known.long()


def _spread(sigma: float | Tensor, like: Tensor, door: Door) -> Tensor:
    """The deviation of each element [D]."""
    s = torch.as_tensor(sigma).to(like)
    if s.ndim:
        shape = door.inputs[0].shape[1:]
        if not door.single or s.shape != shape:
            raise ArgumentError(f"sigma must be a number or of an example's shape {tuple(shape)}, got {tuple(s.shape)}")
    if not bool((s > 0).all()):
        raise ArgumentError(f"sigma must be above 0, got {sigma!r}")
    return s.reshape(-1).expand(like.shape[1])


__all__ = ["METRICS", "MOVED", "NEEDS", "Metric", "evaluate"]

"""Methods that look for counterfactuals, side by side on the same rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import ArgumentError, optional
from ..engine.packing import flat
from ..engine.probe import Door
from .aims import Aim
from .metrics.case import returned
from .metrics.evaluation import MOVED, evaluate

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["data", "method", "example", "counterfactual"]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What several methods found, and what it cost them.

    Attributes:
        rows: one row for each counterfactual that was asked for: ``data``, ``method``, ``example`` and
            ``counterfactual`` (which of several), then the metrics of :func:`evaluate`, ``seconds`` and, where methods
            tell them, ``forwards`` and ``backwards``, all for one example.
    """

    rows: "pd.DataFrame"

    @classmethod
    def cat(cls, parts: Sequence["Benchmark"]) -> "Benchmark":
        """Several in one: further methods on the same rows, or other data (under another name)."""
        return cls(optional("pandas", "tables").concat([p.rows for p in parts], ignore_index=True))

    def summary(
        self, against: str | None = None, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> "pd.DataFrame":
        """One row for each method and metric: ``mean``, ``low`` and ``high`` over ``count`` examples.

        Means are over the examples that a metric can tell something of (``valid`` and the other rates: all of them);
        where an example has several counterfactuals, theirs is taken first. Intervals are percentiles of bootstrap
        means over examples (Efron, 1979), NaN for a single one.

        Args:
            against: a method to compare with: ``difference``, ``difference_low`` and ``difference_high`` are the mean
                of what a method has more than that one, example by example, over the ``pairs`` that have both.
            confidence: of the intervals.
            resamples: bootstrap samples.
            seed: of the samples.

        Raises:
            ArgumentError: no such method.
        """
        frame = optional("pandas", "tables")
        known = list(dict.fromkeys(self.rows["method"]))
        if against is not None and against not in known:
            raise ArgumentError(f"against must be one of {', '.join(map(repr, known))}, got {against!r}")
        metrics = [c for c in self.rows if c not in KEYS]
        mean = self.rows.groupby(["data", "example", "method"], sort=False)[metrics].mean()

        def told(values: Any, prefix: str, count: str) -> dict[str, float]:
            return dict(zip(_names(prefix, count), _interval(values, confidence, resamples, seed), strict=True))

        out = []
        for metric in metrics:
            each = mean[metric].unstack("method")
            for method in known:
                row = {"method": method, "metric": metric} | told(each[method], "", "count")
                if against is not None and method != against:
                    row |= told(each[method] - each[against], "difference", "pairs")
                out.append(row)
        columns = ["method", "metric", *_names("", "count"), *(_names("difference", "pairs") if against else ())]
        table = frame.DataFrame(out, columns=columns)
        return table.sort_values("method", key=lambda c: c.map(known.index), kind="stable", ignore_index=True)


def benchmark(
    methods: Mapping[str, Callable[[Tensor], Any]],
    forward_func: Callable[..., Any],
    x: Tensor,
    target: Aim = "other",
    *,
    data_name: str = "",
    alone: bool = False,
    metrics: str | Sequence[str] = "all",
    **told: Any,
) -> Benchmark:
    """Runs methods over the same rows and measures what each one found, whatever it says of it itself.

    Validity is asked of ``forward_func`` anew, for all methods alike.

    Args:
        methods: by name: from rows [B, ...] to counterfactuals [B, ...], or [B, n, ...] for several of each (NaN where
            there is none), or to what a search hands back.
        forward_func: the model.
        x: the rows.
        target: what the counterfactuals are to reach, as for :func:`evaluate`.
        data_name: what to call the rows, where several benchmarks become one.
        alone: hand over one row at a time, so that each is timed on its own; otherwise each has its share of the whole.
        metrics: as for :func:`evaluate`; ``"all"`` leaves out those that would run each method once more.
        told: whatever else :func:`evaluate` takes: ``schema``, ``data``, ``sigma``...

    Raises:
        ArgumentError: no methods, or what they return does not fit.

    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [1.0, 2.0]]), "bias": torch.tensor([0.0, -1.0])})
    >>> methods = {"one": lambda x: x + torch.tensor([0.0, 1.0]), "both": lambda x: x + 1}
    >>> result = benchmark(methods, model, torch.zeros(3, 2), metrics=["valid", "l1"])
    >>> table = result.summary(against="one")
    >>> table[table.metric == "l1"][["method", "mean", "difference", "pairs"]]
      method  mean  difference  pairs
    1    one   1.0         NaN    NaN
    4   both   2.0         1.0    3.0
    """
    frame = optional("pandas", "tables")
    if not methods:
        raise ArgumentError("methods must name at least one, got none")
    door = Door.open(x)
    again = {metrics} if isinstance(metrics, str) else set(metrics)
    parts = []
    for name, method in methods.items():
        found, cost = _run(method, door, alone)
        rerun = method if again & MOVED else None
        rows = evaluate(forward_func, x, found, target, metrics=metrics, method=rerun, **told)
        rows = rows.assign(method=name, data=data_name).reset_index()
        for what, each in cost.items():
            rows[what] = each[rows["example"].to_numpy()]
        parts.append(rows)
    rows = frame.concat(parts, ignore_index=True)
    first = [k for k in KEYS if k in rows]
    last = [c for c in ("seconds", "forwards", "backwards") if c in rows]
    return Benchmark(rows[[*first, *(c for c in rows if c not in (*first, *last)), *last]])


def _run(method: Callable[[Tensor], Any], door: Door, alone: bool) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Counterfactuals [B, ...] or [B, n, ...], NaN where there is none, and what each example cost [B]."""
    x = door.inputs[0]
    parts = [slice(i, i + 1) for i in range(len(x))] if alone and len(x) else [slice(0, len(x))]
    found: list[Tensor] = []
    cost: dict[str, list[Any]] = {}
    for part in parts:
        rows, began = x[part].clone(), perf_counter()  # a method may work in place
        answer = method(rows)
        seconds = perf_counter() - began
        found.append(_filled(answer, x[part]))
        size = len(rows)
        cost.setdefault("seconds", []).append(np.full(size, seconds / max(size, 1)))
        for what in ("forwards", "backwards"):
            if isinstance(count := getattr(answer, what, None), Tensor):
                cost.setdefault(what, []).append(count.cpu().double().numpy())
    if len({t.ndim for t in found}) > 1:
        raise ArgumentError("a method must return one counterfactual for each row, or several, not now this, now that")
    if found[0].ndim > x.ndim:
        most = max(t.shape[1] for t in found)
        found = [torch.cat([t, t.new_full((len(t), most - t.shape[1], *t.shape[2:]), torch.nan)], 1) for t in found]
    return torch.cat(found), {what: np.concatenate(c) for what, c in cost.items()}


def _filled(answer: Any, x: Tensor) -> Tensor:
    """What a method returned as a tensor like x, or with an axis of several; NaN where there is nothing."""
    door = Door.open(x)
    got = returned(answer, door, door.probe(flat).packing)
    out = got.z.new_full((len(x) * (1 if got.each is None else got.each), got.z.shape[1]), torch.nan)
    out[got.place] = got.z
    return out.reshape(len(x), *(() if got.each is None else (got.each,)), *x.shape[1:])


def _names(prefix: str, count: str) -> tuple[str, ...]:
    return (prefix or "mean", f"{prefix}_low".lstrip("_"), f"{prefix}_high".lstrip("_"), count)


def _interval(values: Any, confidence: float, resamples: int, seed: int) -> tuple[float, float, float, int]:
    """Mean, its bootstrap interval, and how many values there are, of those that are told."""
    from scipy.stats import bootstrap

    v = values.dropna().to_numpy(float)
    mean = float(v.mean()) if len(v) else np.nan
    if len(v) < 2 or not np.isfinite(v).all():
        return mean, np.nan, np.nan, len(v)
    draw = np.random.default_rng(seed)
    ends = bootstrap(
        (v,), np.mean, n_resamples=resamples, confidence_level=confidence, method="percentile", random_state=draw
    ).confidence_interval
    return mean, float(ends.low), float(ends.high), len(v)


__all__ = ["Benchmark", "benchmark"]

"""Many methods, many metrics, one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import sqrt
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ...engine.checks import ArgumentError, ArgumentTypeError, optional
from ...engine.guard import untouched
from ...engine.packing import finest, flat
from ...engine.probe import Door
from ...engine.scores import Output, Predicted
from ...perturb.references import Inpainted
from ..coalitions import Coalitions
from .case import Asked, Case, aligned, correlation
from .curves import TENTHS, removal, stops
from .faithfulness import removals, set_size
from .perturbed import sensitivity_max
from .sanity import parameter_randomisation
from .shape import complexity, sparseness


@dataclass(frozen=True)
class Metric:
    """A number for each example that a table of methods shows.

    Args:
        name: its column.
        measure: takes a :class:`Trial`, returns [B].
        high: whether more is better.
    """

    name: str
    measure: Callable[["Trial"], Tensor]
    high: bool

    @property
    def title(self) -> str:
        """Its name, and where it should go."""
        return f"{self.name} {'↑' if self.high else '↓'}"


@dataclass(frozen=True, eq=False)
class Trial:
    """One method's attributions, as metrics see them.

    Args:
        case: the attributions of features, and the coalitions of these, which all methods share.
        attributions: shaped like the inputs, one for each.
        method: what made them, if anything did: for metrics that ask it again.
        inputs: as the user gave them.
        asked: what ``attribute`` is asked with: the target and further arguments of the model.
        everyone: all methods' trials.
        steps, samples, seed: see :func:`compare_methods`.
    """

    case: Case
    attributions: tuple[Tensor, ...]
    method: Any
    inputs: Any
    asked: dict[str, Any]
    everyone: "Trials"
    steps: int
    seed: int

    def area(self, back: bool) -> Tensor:
        """Of the deletion curve, or that of insertion [B]."""
        counts = stops(self.steps, self.case.values.shape[1]).to(self.case.f.device)
        scores = removal(self.case, self.case.order(self.case.values, self.seed), counts, back)
        return torch.trapezoid(scores, (counts / counts[-1]).to(scores), dim=1)

    @cached_property
    def removed(self) -> tuple[Tensor, Tensor]:
        """What random sets of features are attributed, and how far the score falls without them [B, S]."""
        said, falls = self.everyone.removals
        return said[self.everyone.all.index(self)], falls

    def again(self) -> Any:
        """The method, to explain other inputs or another model.

        Raises:
            ArgumentError: attributions were given, and no method.
        """
        if self.method is None:
            raise ArgumentError("this metric asks the method again: give a method rather than its attributions")
        return self.method


@dataclass(eq=False)
class Trials:
    """The trials of all methods, and what they are all compared with."""

    samples: int
    seed: int
    all: list[Trial] = field(default_factory=list)

    @cached_property
    def removals(self) -> tuple[list[Tensor], Tensor]:
        """The same sets of a fifth of the features for all methods, asked about once."""
        players, values = self.all[0].case.players, [t.case.values for t in self.all]
        return removals(players, values, self.samples, set_size(0.2, values[0].shape[1]), self.seed)


def _infidelity(trial: Trial) -> Tensor:
    said, falls = trial.removed
    scale = (said * falls).sum(1) / said.square().sum(1).clamp(min=1e-300)
    return (scale[:, None] * said - falls).square().mean(1)


def _complete(trial: Trial) -> Tensor:
    players = trial.case.players
    nothing = players.gates.value(torch.ones_like(trial.case.values, dtype=players.gates.packing.dtype))
    total = torch.cat([flat(a) for a in trial.attributions], 1).sum(1)
    return (total - finest(players.all_there) + finest(nothing)).abs()


def _road(trial: Trial) -> Tensor:
    case, target = trial.case, trial.asked.get("target")
    kept = Predicted(target.target if isinstance(target, Output) else target)
    painted = Coalitions(case.f.to(of=kept), case.players.features, Inpainted("linear", 0.01, trial.seed))
    counts = stops(TENTHS, case.values.shape[1]).to(case.f.device)
    order = case.order(case.values, trial.seed)
    return removal(replace(case, players=painted), order, counts).mean(1)


METRICS = {
    m.name: m
    for m in (
        Metric("deletion", lambda t: t.area(back=False), high=False),
        Metric("insertion", lambda t: t.area(back=True), high=True),
        Metric("road", _road, high=False),
        Metric("faithfulness", lambda t: correlation(*t.removed), high=True),
        Metric("infidelity", _infidelity, high=False),
        Metric("completeness", _complete, high=False),
        Metric(
            "sensitivity",
            lambda t: sensitivity_max(attribute_of(t.again()), t.inputs, seed=t.seed, **t.asked),
            high=False,
        ),
        Metric(
            "randomisation",
            lambda t: parameter_randomisation(t.again(), t.inputs, absolute=True, seed=t.seed, **t.asked).similarity[
                -1
            ],
            high=False,
        ),
        Metric("sparseness", lambda t: sparseness(t.attributions), high=True),
        Metric("complexity", lambda t: complexity(t.attributions), high=False),
    )
}
"""Metrics by name: the areas of curves, how often the class is kept in :func:`road`, correlation and scaled infidelity
of random sets of a fifth of the features, by how much attributions miss adding up, the greatest relative change under
small noise, how alike magnitudes are to those of a model that has learnt nothing, the Gini index and the entropy."""

DEFAULT = "deletion", "insertion", "faithfulness", "sparseness"


@dataclass(frozen=True)
class Difference:
    """By how much one method's metric exceeds another's in the mean of the same examples, with an interval."""

    first: str
    second: str
    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True, eq=False)
class MethodTable:
    """What several methods reach in several metrics, example by example.

    Args:
        methods: M names.
        metrics: Q of them.
        values: [M, Q, B].
        forwards: rows that went through the model for each metric and example, all methods together, as far as it
            asked for coalitions [Q, B].
    """

    methods: tuple[str, ...]
    metrics: tuple[Metric, ...]
    values: Tensor
    forwards: Tensor

    @property
    def means(self) -> Tensor:
        """Over examples [M, Q]."""
        return self.values.mean(2)

    @property
    def ranks(self) -> Tensor:
        """The mean rank among the methods, 1 the best, of which equals share theirs [M, Q]."""
        from scipy.stats import rankdata

        sign = torch.tensor([-1.0 if m.high else 1.0 for m in self.metrics], dtype=self.values.dtype)
        return torch.from_numpy(rankdata((self.values * sign[None, :, None]).numpy(), axis=0)).mean(2)

    def differences(self, metric: str, confidence: float = 0.95) -> list[Difference]:
        """The mean difference of each pair of methods on the same examples.

        Student's intervals of paired differences, widened for the number of pairs (Bonferroni): with ``confidence``
        all of them hold at once. They need two examples, and say little about so few.
        """
        values = self.values[:, self._column(metric)].numpy()
        pairs = list(combinations(range(len(self.methods)), 2))
        found = []
        for i, j in pairs:
            gap = values[i] - values[j]
            mean, half = float(gap.mean()), _half_width(gap, 1 - (1 - confidence) / len(pairs))
            found.append(Difference(self.methods[i], self.methods[j], mean, mean - half, mean + half))
        return found

    def _column(self, metric: str) -> int:
        names = [m.name for m in self.metrics]
        if metric not in names:
            raise ArgumentError(f"metric must be {', '.join(map(repr, names))}, got {metric!r}")
        return names.index(metric)

    def to_pandas(self) -> Any:
        """A table with a row for each method, metric and example: method, metric, example, value."""
        pandas = optional("pandas", "tables")
        m, q, b = self.values.shape
        return pandas.DataFrame(
            {
                "method": np.repeat(self.methods, q * b),
                "metric": np.tile(np.repeat([metric.name for metric in self.metrics], b), m),
                "example": np.tile(np.arange(b), m * q),
                "value": self.values.flatten().numpy(),
            }
        )

    def plot(self, title: str = "") -> Any:
        """A figure with a panel for each metric: means, and their 95 % intervals over examples."""
        from ...plot import means

        half = [[_half_width(v, 0.95) for v in of.numpy()] for of in self.values]
        return means(self.methods, [m.title for m in self.metrics], self.means.tolist(), half, title)

    def __repr__(self) -> str:
        best = [(c.max() if m.high else c.min()) for c, m in zip(self.means.T, self.metrics, strict=True)]
        rows = [["", *(m.title for m in self.metrics), "mean rank"]]
        for name, means, ranks in zip(self.methods, self.means, self.ranks, strict=True):
            told = [f"{v:.3g}{'*' if v == top else ' '}" for v, top in zip(means, best, strict=True)]
            rows.append([name, *told, f"{float(ranks.mean()):.2f}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def _half_width(values: Any, confidence: float) -> float:
    """Half of Student's interval of a mean; infinite where there is only one value."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / sqrt(n)) if n > 1 else float("inf")


def compare_methods(
    forward_func: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    methods: Mapping[str, Any] | Sequence[Any] = (),
    metrics: Sequence[str | Metric] = DEFAULT,
    *,
    steps: int = 20,
    samples: int = 50,
    seed: int = 0,
    **asked: Unpack[Asked],
) -> MethodTable:
    """What several methods reach in several metrics on the same inputs.

    The same sets of features give way for all methods, and those that do not depend on a method are asked about once.

    Args:
        forward_func, inputs, target: see :class:`robustx.attribution.Attribution`.
        methods: a dict of names, or a list, of objects with ``attribute``; functions that take inputs and ``target``
            (and ``additional_forward_args``... if there are any), such as a ``functools.partial`` of an ``attribute``;
            or attributions.
        metrics: names among :data:`METRICS`, or a :class:`Metric` of your own. "sensitivity" needs methods, and
            "randomisation" objects.
        steps: of the curves, at most.
        samples: random sets of features for "faithfulness" and "infidelity".
        seed: of the sets, of the order among equals, of noise and of new parameters.
        asked: what metrics share, see :class:`robustx.attribution.metrics.Asked`.

    Raises:
        ValueError, TypeError: an argument does not fit.

    >>> from robustx.attribution import InputXGradient, Saliency
    >>> w = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
    >>> model = lambda x: (x * w).sum(1)
    >>> compare_methods(model, torch.ones(5, 4), methods=[InputXGradient(model), Saliency(model)])
                      deletion ↓  insertion ↑  faithfulness ↑  sparseness ↑  mean rank
    Input X Gradient      -0.75*        4.75*              1*         0.25*       1.12
    Saliency                1.5          2.5           0.351          0.25*       1.88
    """
    chosen = tuple(_metric(m) for m in metrics)
    named_methods = dict(_named(methods))
    if not named_methods or not chosen:
        raise ArgumentError("methods and metrics must have one entry at least, got none")
    further = {k: v for k, v in asked.items() if k in ("additional_forward_args", "additional_forward_kwargs")}
    call: dict[str, Any] = further if target is None else {"target": target, **further}
    door, trials = Door.open(inputs), Trials(samples, seed)
    with untouched(forward_func):
        for method in named_methods.values():
            given = isinstance(method, Tensor | tuple | Mapping)
            found = method if given else attribute_of(method)(inputs, **call)
            case = Case.of(forward_func, inputs, found, target, **asked)
            case = replace(case, players=trials.all[0].case.players) if trials.all else case
            maps = aligned(found, door)
            trials.all.append(Trial(case, maps, None if given else method, inputs, call, trials, steps, seed))
        meter = trials.all[0].case.f.meter
        assert meter is not None
        columns, passes = [], []
        for m in chosen:
            meter.take()
            columns.append(torch.stack([finest(m.measure(t)).cpu() for t in trials.all]))
            passes.append(meter.take().forward.cpu())
    return MethodTable(tuple(named_methods), chosen, torch.stack(columns, 1), torch.stack(passes))


def attribute_of(method: Any) -> Callable[..., Any]:
    """What is called with inputs: ``attribute`` of an object, or a function itself."""
    found: Callable[..., Any] = getattr(method, "attribute", method)
    if not callable(found):
        raise ArgumentTypeError(
            f"methods must have attribute, be functions or attributions, got {type(method).__name__}"
        )
    return found


def _named(methods: Mapping[str, Any] | Sequence[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(methods, Mapping):
        yield from methods.items()
        return
    seen: dict[str, int] = {}
    for method in methods:
        name = method.get_name() if hasattr(method, "get_name") else getattr(method, "__name__", type(method).__name__)
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} {seen[name]}", method


def _metric(given: str | Metric) -> Metric:
    if isinstance(given, Metric):
        return given
    if given not in METRICS:
        raise ArgumentError(f"metrics must be among {', '.join(METRICS)}, or a Metric of your own, got {given!r}")
    return METRICS[given]

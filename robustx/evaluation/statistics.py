"""Statistics of a run, from its stored rows alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..zoo import class_name
from .optimality import local_optimality
from .store import Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of samples, with its confidence interval."""

    count: int
    total: int
    value: float
    low: float
    high: float


def share(count: int, total: int, confidence: float = CONFIDENCE) -> Share:
    """``count`` of ``total``, with the Wilson interval (1927), which never leaves [0, 1].

    It says what other samples from the same source would show, not what another attack would.

    >>> share(45, 50)
    Share(count=45, total=50, value=0.9, low=0.786..., high=0.956...)
    """
    if not 0 <= count <= total:
        raise ValueError(f"count must lie between 0 and total, got {count} of {total}")
    if not total:
        return Share(0, 0, math.nan, 0.0, 1.0)
    low, high = _wilson(np.array([count]), total, confidence)
    return Share(count, total, count / total, float(low[0]), float(high[0]))


def _wilson(count: Ints, total: int, confidence: float) -> tuple[Floats, Floats]:
    """Wilson's limits for many counts of one total at once."""
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), count / total
    middle = p + z * z / (2 * total)
    half = z * np.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    low, high = (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)
    return np.where(count == 0, 0.0, low), np.where(count == total, 1.0, high)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of each of N samples with one model.

    Attributes:
        model: its name.
        position: of each sample in the run [N].
        label: its class [N].
        prediction: the model's answer to it; -1 where that was not finite [N].
        lead: the logit of the label minus the best other; below 0 where the model is wrong, NaN where flagged [N].
        fallen: the smallest budget at which an adversarial example is known; infinite if there is none, 0 where the
            model is wrong without [N].
        unclear: the smallest budget at which an attack ended in NaN or infinity, so that nothing is known from there
            on; infinite if there is none, 0 where the sample itself gives NaN [N].
        by: which attack found ``fallen``; -1 if none did [N].
        into: the class that the sample is taken for there; -1 if none [N].
    """

    model: str
    position: Ints
    label: Ints
    prediction: Ints
    lead: Floats
    fallen: Floats
    unclear: Floats
    by: Ints
    into: Ints

    @classmethod
    def of(
        cls,
        model: str,
        labels: Mapping[int, int] | Sequence[int],
        clean: Iterable[Row],
        attacks: Sequence[Iterable[Row]],
    ) -> "Outcome":
        """From labels by position and stored rows: of the clean pass, and of each attack in the run's order."""
        rows = list(clean)
        place = {row.position: n for n, row in enumerate(rows)}
        n = len(rows)
        self = cls(
            model,
            np.array([row.position for row in rows], np.int64),
            np.array([labels[row.position] for row in rows], np.int64),
            np.array([row.prediction for row in rows], np.int64),
            np.array([math.nan if row.margin is None else -row.margin for row in rows], np.float64),
            np.array([0.0 if row.success else math.inf for row in rows], np.float64),
            np.array([0.0 if row.flagged else math.inf for row in rows], np.float64),
            np.full(n, -1, np.int64),
            np.full(n, -1, np.int64),
        )
        for k, attack in enumerate(attacks):
            for row in attack:
                i = place.get(row.position)
                if i is None:
                    continue
                if row.flagged:
                    self.unclear[i] = min(self.unclear[i], row.eps)
                elif row.success and (size := min(row.distance, row.eps)) < self.fallen[i]:
                    self.fallen[i], self.by[i], self.into[i] = size, k, row.prediction
        return self

    def __len__(self) -> int:
        return len(self.label)

    def at(self, rows: Ints | Bools) -> Self:
        """Some of the samples: their numbers, or which."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "model"})

    @property
    def correct(self) -> Bools:
        """Whether the model is right about the sample as it is [N]."""
        right: Bools = self.robust(0.0) | (self.by >= 0)
        return right

    @property
    def flagged(self) -> Bools:
        """Whether its output for the sample is NaN or infinite [N]."""
        bad: Bools = self.unclear == 0
        return bad

    def robust(self, eps: float) -> Bools:
        """Whether the model is right and no adversarial example within ``eps`` is known [N]."""
        stands: Bools = self.ends > eps
        return stands

    @property
    def ends(self) -> Floats:
        """The budget from which each sample does not count as robust: it falls there, or nothing is known [N]."""
        least: Floats = np.minimum(self.fallen, self.unclear)
        return least


def curve(outcome: Outcome, eps: Sequence[float]) -> list[Share]:
    """The security curve: clean accuracy, then robust accuracy at each budget. It never rises.

    A sample that falls at one budget has fallen at every larger one, and the worst case over all attacks counts.
    Rows whose output is NaN or infinite are in the total, but never robust.
    """
    return [share(int(outcome.correct.sum()), len(outcome))] + [
        share(int(outcome.robust(e).sum()), len(outcome)) for e in eps
    ]


@dataclass(frozen=True)
class Steps:
    """The security curve at every budget: a step function, given where it changes.

    Attributes:
        total: samples.
        eps: where it steps, in ascending order, from 0 on; the value at one holds until the next [S].
        count, value: samples that still stand there, and their share [S].
        low, high: Wilson's limits: for one budget that was chosen before looking [S].
        band_low, band_high: limits between which the whole curve lies at once [S].
    """

    total: int
    eps: list[float]
    count: list[int]
    value: list[float]
    low: list[float]
    high: list[float]
    band_low: list[float]
    band_high: list[float]


def steps(outcome: Outcome, confidence: float = CONFIDENCE) -> Steps:
    """The security curve over all budgets, with a band that holds for all of them at once.

    The budget from which a sample does not count as robust is one number, so the curve is an empirical distribution,
    and the inequality of Dvoretzky, Kiefer and Wolfowitz (1956) with Massart's constant (1990) bounds its largest
    distance from that of all samples of the same source: sqrt(log(2 / (1 - confidence)) / (2 N)) to either side,
    whatever the distribution. Between the budgets that were tried, and beyond, the curve is what is known: an upper
    bound. A sample whose attack ended in NaN leaves the curve there; an estimate for censored data (Kaplan and Meier)
    would assume that such samples are like the others, and nothing says so.
    """
    ends, n = outcome.ends[outcome.correct], len(outcome)
    eps = np.unique(ends[np.isfinite(ends)])
    count = np.concatenate([[len(ends)], len(ends) - np.searchsorted(np.sort(ends), eps, "right")])
    if not n:
        return Steps(0, [0.0], [0], [math.nan], [0.0], [1.0], [0.0], [1.0])
    low, high = _wilson(count, n, confidence)
    half = math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))
    columns = count, count / n, low, high, np.maximum(count / n - half, 0), np.minimum(count / n + half, 1)
    return Steps(n, [0.0, *eps.tolist()], *(c.tolist() for c in columns))


@dataclass(frozen=True)
class Distances:
    """Smallest known adversarial distances of the samples that the model is right about.

    Attributes:
        total: how many samples these are.
        beyond: for how many no adversarial example was found.
        quartiles: the distances that a quarter, half and three quarters of them do not exceed; may be infinite.
        median_interval: confidence interval of the median; may reach to infinity.
    """

    total: int
    beyond: int
    quartiles: tuple[float, ...]
    median_interval: tuple[float, float]


def distances(outcome: Outcome, confidence: float = CONFIDENCE) -> Distances:
    """How far the model's right answers are from wrong ones, as far as was found: upper bounds."""
    ranked = np.sort(outcome.fallen[outcome.correct])  # an order statistic needs no mean: infinite ones do no harm
    n = len(ranked)
    known = [float(ranked[math.ceil(q * n) - 1]) if n else math.nan for q in (0.25, 0.5, 0.75)]
    low, high = median_interval(ranked, 0.0, math.inf, confidence)
    return Distances(n, int(np.isinf(ranked).sum()), tuple(known), (low, high))


def median_interval(ranked: Floats, least: float, most: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The confidence interval of a median from order statistics (Thompson 1936), whatever the distribution.

    How many of N samples lie below the median is binomial, so two of them have it between them with at least the
    confidence.

    Args:
        ranked: samples in ascending order [N].
        least, most: values between which all lie: the ends where there are too few samples.

    >>> median_interval(np.arange(1.0, 11.0), 0.0, math.inf)
    (2.0, 9.0)
    """
    from scipy.stats import binom

    n, tail = len(ranked), (1 - confidence) / 2
    below, above = (int(binom.ppf(q, n, 0.5)) for q in (tail, 1 - tail)) if n else (0, 0)
    return (float(ranked[below - 1]) if below else least, float(ranked[above]) if above < n else most)


def per_class(outcome: Outcome, eps: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """Clean and robust accuracy class by class, and the worst class at each budget.

    Returns:
        ``classes``: for each that has samples its ``label``, ``name``, ``clean`` accuracy and ``robust`` accuracy at
        each budget. ``worst``: for each budget, 0 first, the class with the lowest accuracy; as it was chosen after
        looking, its interval is one that holds for all K classes at once (Bonferroni: a K-th of the error each).
    """
    labels = np.unique(outcome.label).tolist()
    parts = {k: curve(outcome.at(outcome.label == k), eps) for k in labels}
    told = [
        {
            "label": k,
            "name": class_name(list(classes), k),
            "clean": asdict(clean),
            "robust": [{"eps": e, **asdict(s)} for e, s in zip(eps, robust, strict=True)],
        }
        for k, (clean, *robust) in parts.items()
    ]
    worst = []
    for i, e in enumerate((0.0, *eps) if labels else ()):
        k = min(labels, key=lambda k: (parts[k][i].value, -parts[k][i].total))
        s = share(parts[k][i].count, parts[k][i].total, 1 - (1 - CONFIDENCE) / len(labels))
        worst.append({"eps": e, "label": k, "name": class_name(list(classes), k), **asdict(s)})
    return {"classes": told, "worst": worst}


@dataclass(frozen=True)
class Cost:
    """What work cost, in rows that went through the model.

    Attributes:
        attack: its label; ``clean`` for the answers without any, ``total`` for all together.
        samples: on how many it was tried.
        forwards, backwards: rows, all samples together.
        per_sample: forwards and backwards of a sample together, on average over those that it was tried on.
        most: of the sample that cost most.
    """

    attack: str
    samples: int
    forwards: int
    backwards: int
    per_sample: float
    most: int


def cost(rows: Mapping[str, Iterable[Row]]) -> list[Cost]:
    """The cost of each part of a run, from its rows by label, and at last the total.

    >>> cost({"clean": [Row(0, 0.0, False, False, 1, -2.0, 0.0, 1, 0)]})[-1].per_sample
    1.0
    """
    parts = {label: list(part) for label, part in rows.items()}
    parts["total"] = [row for part in parts.values() for row in part]
    told = []
    for label, part in parts.items():
        each: dict[int, int] = {}
        for row in part:
            each[row.position] = each.get(row.position, 0) + row.forwards + row.backwards
        up, down = sum(row.forwards for row in part), sum(row.backwards for row in part)
        mean = (up + down) / len(each) if each else math.nan
        told.append(Cost(label, len(each), up, down, mean, max(each.values(), default=0)))
    return told


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples.

    Attributes:
        both, first_only, second_only, neither: on how many samples which of them is right.
        difference: accuracy of the first minus that of the second.
        low, high: its confidence interval.
        p_value: of the hypothesis that there is none.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float


def compare(first: Bools, second: Bools) -> Comparison:
    """Exact McNemar test (1947): are two models right on the same samples equally often?

    Only samples on which they differ count; without a true difference each is as likely to favour the one as the
    other. The p-value is two-sided. The interval is that of Bonett and Price (2012) for paired shares: Wald's, with one
    more sample in favour of each.

    >>> import numpy as np
    >>> compare(np.array([True] * 6 + [False]), np.array([False] * 6 + [False])).p_value
    0.03125
    """
    from scipy.stats import binomtest

    n, a, b = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(a, a + b, 0.5).pvalue) if a + b else 1.0
    middle, spread = (a - b) / (n + 2), (a + b + 2) / (n + 2)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((spread - middle**2) / (n + 2))
    low, high = max(middle - half, -1.0), min(middle + half, 1.0)
    difference = (a - b) / n if n else math.nan
    return Comparison(int((first & second).sum()), a, b, int((~first & ~second).sum()), difference, low, high, p)


@dataclass(frozen=True)
class Cumulative:
    """What one attack added to those before it.

    Attributes:
        attack: its label.
        seen: samples that it was tried on.
        nearest: samples whose nearest adversarial example is its.
        accuracy: robust accuracy at each budget when attacks stop here.
        forwards, backwards: rows that went through the model.
        alone: robust accuracy at each budget under this attack by itself; None where that is not known, see
            :func:`alone`.
        optimality: AttackBench's local optimality, see :func:`robustx.evaluation.optimality.local_optimality`; None
            likewise, NaN where it is undefined.
    """

    attack: str
    seen: int
    nearest: int
    accuracy: list[float]
    forwards: int
    backwards: int
    alone: list[float] | None
    optimality: float | None


def alone(outcome: Outcome, rows: Iterable[Row], tried: Sequence[float]) -> Floats | None:
    """The smallest distance at which one attack fools each sample, whatever the others found [N].

    Infinite where it does not, 0 where the model is wrong without. None if its rows do not tell, because others had an
    influence: a sample that it was spared, or a search that began from what others had found. So it is known of the
    first attack of a run, and of all if each saw every sample.

    Args:
        outcome: of the samples.
        rows: the attack's.
        tried: the budgets that a sample is tried at until it falls, in ascending order: those of the run, or the one
            from which a search for minimal distances begins.
    """
    place = {p: n for n, p in enumerate(outcome.position.tolist())}
    own = np.where(outcome.correct, math.inf, 0.0)
    seen: dict[int, set[float]] = {n: set() for n in np.flatnonzero(outcome.correct).tolist()}
    fell: dict[int, float] = {}
    for row in rows:
        n = place.get(row.position)
        if n is None or n not in seen:
            continue
        seen[n].add(row.eps)
        if row.success:
            own[n] = min(own[n], row.distance, row.eps)
            fell[n] = min(fell.get(n, math.inf), row.eps)
    whole = all({e for e in tried if e <= fell.get(n, math.inf)} <= eps for n, eps in seen.items())
    return own if whole else None


def cumulative(
    outcomes: Sequence[Outcome],
    rows: Sequence[Sequence[Row]],
    labels: Sequence[str],
    eps: Sequence[float],
    tried: Sequence[Sequence[float]] | None = None,
) -> list[Cumulative]:
    """Attack by attack: what it saw, found and cost. ``outcomes[k]`` knows the first k + 1 attacks.

    Args:
        outcomes: after each attack, in the run's order.
        rows: of each attack.
        labels: of the attacks.
        eps: the run's budgets.
        tried: at which budgets each attack tries a sample until it falls, see :func:`alone`; default: ``eps``.
    """
    last, told = outcomes[-1], []
    right = last.correct
    for k, (outcome, mine, label) in enumerate(zip(outcomes, rows, labels, strict=True)):
        own = alone(last, mine, tried[k] if tried else eps)
        told.append(
            Cumulative(
                label,
                len({row.position for row in mine}),
                int((last.by == k).sum()),
                [float(outcome.robust(e).mean()) if len(outcome) else math.nan for e in eps],
                sum(row.forwards for row in mine),
                sum(row.backwards for row in mine),
                None if own is None or not len(own) else [float((own > e).mean()) for e in eps],
                None if own is None else local_optimality(own[right], last.fallen[right]),
            )
        )
    return told


def certified(outcome: Outcome, rows: Iterable[Row]) -> Floats:
    """Within which radius each sample is proved to keep its label, from the rows of a bound; 0: it is not [N]."""
    labels, radius = dict(zip(outcome.position.tolist(), outcome.label.tolist(), strict=True)), dict[int, float]()
    for row in rows:
        radius[row.position] = row.distance if row.prediction == labels.get(row.position) and not row.flagged else 0.0
    return np.array([radius.get(p, 0.0) for p in outcome.position.tolist()], np.float64)


def certified_steps(radius: Floats) -> dict[str, list[float]]:
    """The share of samples that keep their label for certain, at every budget: where it steps down, and to what.

    >>> certified_steps(np.array([0.0, 0.25, 0.5, 0.25]))
    {'eps': [0.0, 0.25, 0.5], 'value': [0.75, 0.25, 0.0]}
    """
    eps = np.unique(np.concatenate([[0.0], radius[np.isfinite(radius)]]))
    left = len(radius) - np.searchsorted(np.sort(radius), eps, "right")
    return {"eps": eps.tolist(), "value": (left / max(len(radius), 1)).tolist()}


def moved(outcome: Outcome, classes: int) -> Ints:
    """From which class into which samples fall at the smallest budget, [label, class it is taken for]."""
    table = np.zeros((classes, classes), np.int64)
    fell = outcome.by >= 0
    np.add.at(table, (outcome.label[fell], outcome.into[fell]), 1)
    return table


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: infinite and undefined numbers become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

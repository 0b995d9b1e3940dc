"""Statistics of a run, from its stored rows alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
    from scipy.stats import binomtest

    if not 0 <= count <= total:
        raise ValueError(f"count must lie between 0 and total, got {count} of {total}")
    if not total:
        return Share(0, 0, math.nan, 0.0, 1.0)
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return Share(count, total, count / total, float(interval.low), float(interval.high))


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
        stands: Bools = (self.fallen > eps) & (self.unclear > eps)
        return stands


def curve(outcome: Outcome, eps: Sequence[float]) -> list[Share]:
    """The security curve: clean accuracy, then robust accuracy at each budget. It never rises.

    A sample that falls at one budget has fallen at every larger one, and the worst case over all attacks counts.
    Rows whose output is NaN or infinite are in the total, but never robust.
    """
    return [share(int(outcome.correct.sum()), len(outcome))] + [
        share(int(outcome.robust(e).sum()), len(outcome)) for e in eps
    ]


@dataclass(frozen=True)
class Distances:
    """Smallest known adversarial distances of the samples that the model is right about.

    Attributes:
        total: how many samples these are.
        beyond: for how many no adversarial example was found.
        quartiles: the distances that a quarter, half and three quarters of them do not exceed; may be infinite.
    """

    total: int
    beyond: int
    quartiles: tuple[float, ...]


def distances(outcome: Outcome) -> Distances:
    """How far the model's right answers are from wrong ones, as far as was found: upper bounds."""
    d = outcome.fallen[outcome.correct]
    ranked = np.sort(d)  # an order statistic needs no mean, so infinite ones do no harm
    known = [float(ranked[math.ceil(q * len(d)) - 1]) if len(d) else math.nan for q in (0.25, 0.5, 0.75)]
    return Distances(len(d), int(np.isinf(d).sum()), tuple(known))


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples: on how many which of them is right, and the p-value of the difference."""

    both: int
    first_only: int
    second_only: int
    neither: int
    p_value: float


def compare(first: Bools, second: Bools) -> Comparison:
    """Exact McNemar test (1947): are two models right on the same samples equally often?

    Only samples on which they differ count; without a true difference each is as likely to favour the one as the
    other. The p-value is two-sided.

    >>> import numpy as np
    >>> compare(np.array([True] * 6 + [False]), np.array([False] * 6 + [False]))
    Comparison(both=0, first_only=6, second_only=0, neither=1, p_value=0.03125)
    """
    from scipy.stats import binomtest

    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(a, a + b, 0.5).pvalue) if a + b else 1.0
    return Comparison(int((first & second).sum()), a, b, int((~first & ~second).sum()), p)


@dataclass(frozen=True)
class Cumulative:
    """What one attack added to those before it.

    Attributes:
        attack: its label.
        seen: samples that it was tried on.
        nearest: samples whose nearest adversarial example is its.
        accuracy: robust accuracy at each budget when attacks stop here.
        forwards, backwards: rows that went through the model.
    """

    attack: str
    seen: int
    nearest: int
    accuracy: list[float]
    forwards: int
    backwards: int


def cumulative(
    outcomes: Sequence[Outcome], rows: Sequence[Sequence[Row]], labels: Sequence[str], eps: Sequence[float]
) -> list[Cumulative]:
    """Attack by attack: what it saw, found and cost. ``outcomes[k]`` knows the first k + 1 attacks."""
    last, told = outcomes[-1], []
    for k, (outcome, mine, label) in enumerate(zip(outcomes, rows, labels, strict=True)):
        told.append(
            Cumulative(
                label,
                len({row.position for row in mine}),
                int((last.by == k).sum()),
                [float(outcome.robust(e).mean()) if len(outcome) else math.nan for e in eps],
                sum(row.forwards for row in mine),
                sum(row.backwards for row in mine),
            )
        )
    return told


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

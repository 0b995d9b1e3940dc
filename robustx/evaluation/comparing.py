"""Runs compared with one another, sample by sample: which model is more robust, and how sure is that?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.corrections import holm
from .optimality import local_optimality
from .run import Run
from .statistics import Comparison, Distances, Outcome, Share, compare, curve, distances, median_interval, plain


@dataclass(frozen=True)
class Standing:
    """One model of one run, on the samples that all runs share.

    Attributes:
        name: what the comparison calls it: the model's name, with the run's where two have the same.
        run: the run's folder.
        model: the model's name in it.
        accuracy: without any change, then at each budget.
        distances: smallest known distances of the samples that it is right about; upper bounds.
        optimality: how near the attacks of this run come to the best of all runs that attack this very model, see
            :func:`robustx.evaluation.optimality.local_optimality`; None where no other run does.
    """

    name: str
    run: str
    model: str
    accuracy: list[Share]
    distances: Distances
    optimality: float | None


@dataclass(frozen=True)
class Pair:
    """Two models on the same samples at one budget.

    Attributes:
        first, second: their names.
        eps: the budget; 0 for no change.
        result: on how many samples which is right, their difference and its interval, McNemar's p-value.
        adjusted: the p-value corrected for how many pairs there are (Holm).
    """

    first: str
    second: str
    eps: float
    result: Comparison
    adjusted: float


@dataclass(frozen=True)
class Gap:
    """How much further the nearest adversarial example of one model is than another's.

    Attributes:
        first, second: their names.
        samples: those that both are right about.
        cap: the largest distance that was tried for both; what is beyond counts as this.
        median: of the first's distance minus the second's.
        low, high: its confidence interval.
        p_value: of Wilcoxon's signed-rank test: do the differences lie symmetrically about 0?
        adjusted: corrected for how many pairs there are (Holm).
    """

    first: str
    second: str
    samples: int
    cap: float
    median: float
    low: float
    high: float
    p_value: float
    adjusted: float


@dataclass(frozen=True, repr=False)
class Comparisons:
    """What :func:`compare_runs` found.

    Attributes:
        norm: of all runs.
        samples: how many all runs share.
        eps: the budgets that all runs share.
        standings: model by model.
        pairs: each two models at each budget, 0 first.
        gaps: each two models' distances; none where a run did not search for minimal ones.
        notes: what a reader must know before comparing, in words.
    """

    norm: str
    samples: int
    eps: list[float]
    standings: list[Standing]
    pairs: list[Pair]
    gaps: list[Gap]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: null stands for what is infinite or undefined."""
        told: dict[str, Any] = plain(self)
        return told

    def __repr__(self) -> str:
        at = self.eps[-1] if self.eps else 0.0
        told = ", ".join(f"{s.name} {s.accuracy[-1].value:.1%}" for s in self.standings)
        return f"Comparisons({self.samples} samples, {self.norm}; at {at:g}: {told})"


def compare_runs(folders: Sequence[str | Path]) -> Comparisons:
    """Compares all models of one run or more, on the samples that the runs have in common.

    Samples are the same if their inputs are, to the bit, wherever they stand. Every two models are compared at each
    budget that all runs share, by the exact McNemar test, and by their distances, by Wilcoxon's signed-rank test (1945)
    on the samples that both are right about. p-values are corrected (Holm) for the number of pairs, at each budget by
    itself.

    Args:
        folders: of runs; unfinished ones take part with what is finished.

    Raises:
        FileNotFoundError: there is no run in a folder.
        ValueError: fewer than two models in all, a folder that stands twice, runs in different norms or with different
            bounds, no sample in common, or the same input with different labels.
    """
    paths = [Path(folder) for folder in folders]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"folders must be different runs, at least one, got {', '.join(map(str, paths)) or 'none'}")
    runs = [Run(path) for path in paths]
    _alike("norm", runs, [run.spec.norm for run in runs])
    _alike("bounds", runs, [run.data["bounds"] for run in runs])
    tables = [_table(run) for run in runs]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    if not shared:
        told = ", ".join(f"{len(t)} in {str(r.folder)!r}" for t, r in zip(tables, runs, strict=True))
        raise ValueError(f"runs must have finished samples in common to be compared, got {told}, and none in all")
    for key in shared:
        labels = [table[key][1] for table in tables]
        if len(set(labels)) > 1:
            raise ValueError(f"runs must agree on labels, but sample {key[0]} has {', '.join(map(str, labels))}")
    eps = [e for e in runs[0].spec.eps if all(e in run.spec.eps for run in runs)]
    entries = [entry for run, table in zip(runs, tables, strict=True) for entry in _entries(run, runs, table, shared)]
    if len(entries) < 2:
        raise ValueError("a comparison needs at least two models, got one; name another run")
    return Comparisons(
        runs[0].spec.norm,
        len(shared),
        eps,
        [entry.standing(eps, [e for e in entries if e.weights == entry.weights]) for entry in entries],
        [pair for e in (0.0, *eps) for pair in _pairs(entries, e)],
        _gaps(entries),
        list(_notes(runs, tables, entries, len(shared), eps)),
    )


Key = tuple[str, int]
"""A sample: the digest of its input, and how many equal ones stand before it."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """One model, with what became of the shared samples."""

    name: str
    run: Run
    outcome: Outcome

    @property
    def weights(self) -> str:
        """The digest of the model."""
        return str(self.run.about["models"][self.outcome.model]["sha256"])

    def standing(self, eps: Sequence[float], same: Sequence["_Entry"]) -> Standing:
        """Where it stands; ``same`` are the entries of this model, itself too."""
        o = self.outcome
        best = np.min([entry.outcome.fallen[o.correct] for entry in same], axis=0)
        optimality = local_optimality(o.fallen[o.correct], best) if len(same) > 1 else None
        return Standing(self.name, str(self.run.folder), o.model, curve(o, eps), distances(o), optimality)


def _alike(what: str, runs: Sequence[Run], values: Sequence[Any]) -> None:
    if any(value != values[0] for value in values):
        told = ", ".join(f"{value} in {str(run.folder)!r}" for run, value in zip(runs, values, strict=True))
        raise ValueError(f"runs must have the same {what} to be compared, got {told}")


def _table(run: Run) -> dict[Key, tuple[int, int]]:
    """Each finished sample's place among the outcomes, and its label."""
    count: dict[str, int] = {}
    table: dict[Key, tuple[int, int]] = {}
    for place, row in enumerate(run.samples()[: len(run.outcomes[0])]):  # the first model's; all have the same samples
        uid = row["uid"]
        table[uid, count.get(uid, 0)] = (place, row["label"])
        count[uid] = count.get(uid, 0) + 1
    return table


def _entries(
    run: Run, runs: Sequence[Run], table: dict[Key, tuple[int, int]], shared: Sequence[Key]
) -> Iterator[_Entry]:
    names = [o.model for r in runs for o in r.outcomes]
    folders = [r.folder.resolve().name for r in runs]
    mine = run.folder.resolve().name
    where = mine if folders.count(mine) == 1 else str(run.folder)
    rows = np.array([table[key][0] for key in shared], np.int64)
    for o in run.outcomes:
        yield _Entry(o.model if names.count(o.model) == 1 else f"{o.model} ({where})", run, o.at(rows))


def _pairs(entries: Sequence[_Entry], eps: float) -> list[Pair]:
    def right(o: Outcome) -> Any:
        return o.robust(eps) if eps else o.correct

    pairs = list(combinations(entries, 2))
    results = [compare(right(a.outcome), right(b.outcome)) for a, b in pairs]
    adjusted = holm([r.p_value for r in results])
    return [Pair(a.name, b.name, eps, r, p) for (a, b), r, p in zip(pairs, results, adjusted, strict=True)]


def _gaps(entries: Sequence[_Entry]) -> list[Gap]:
    from scipy.stats import wilcoxon

    found = []
    for a, b in combinations(entries, 2):
        if a.run.cap is None or b.run.cap is None:
            continue
        cap, both = min(a.run.cap, b.run.cap), a.outcome.correct & b.outcome.correct
        first, second = (np.minimum(entry.outcome.fallen[both], cap) for entry in (a, b))
        gap = np.sort(first - second)
        moved = gap[gap != 0]
        low, high = median_interval(gap, -cap, cap)
        p = float(wilcoxon(moved).pvalue) if len(moved) else 1.0
        middle = float(np.median(gap)) if len(gap) else float("nan")
        found.append((a.name, b.name, len(gap), cap, middle, low, high, p))
    adjusted = holm([p for *_, p in found])
    return [Gap(*told, p) for told, p in zip(found, adjusted, strict=True)]


def _notes(
    runs: Sequence[Run],
    tables: Sequence[dict[Key, tuple[int, int]]],
    entries: Sequence[_Entry],
    shared: int,
    eps: Sequence[float],
) -> Iterator[str]:
    for run, table in zip(runs, tables, strict=True):
        where = repr(str(run.folder))
        if not run.finished:
            yield f"{where} is not finished; its {len(table)} finished samples take part."
        if len(table) > shared:
            yield f"{len(table) - shared} of the {len(table)} samples of {where} are left out: other runs lack them."
        if more := [e for e in run.spec.eps if e not in eps]:
            yield f"Budgets {', '.join(f'{e:g}' for e in more)} of {where} are left out: other runs lack them."
        if run.cap is None:
            yield f"{where} did not search for minimal distances, so its distances are not compared."
    if any((run.spec.attacks, run.spec.seed) != (runs[0].spec.attacks, runs[0].spec.seed) for run in runs):
        told = "; ".join(f"{', '.join(a.label for a in run.spec.attacks)} in {str(run.folder)!r}" for run in runs)
        yield f"The runs attack differently ({told}; or options, or seeds): part of what differs may be the attacks'."
    for a, b in combinations(entries, 2):
        if a.weights == b.weights:
            yield f"{a.name} and {b.name} are the same model: whatever differs comes from the attacks."

"""``robustx compare``: which model of which run is more robust, and how sure is that?"""

from argparse import Namespace

from ..evaluation import Share
from ..evaluation.comparing import Comparisons, compare_runs
from . import DONE
from .show import as_json, table


def run(asked: Namespace) -> int:
    """Compare the models of the runs."""
    found = compare_runs(asked.runs)
    print(as_json(found.to_dict()) if asked.json else words(found))
    return DONE


def words(found: Comparisons) -> str:
    """The comparison as people read it."""
    budgets = ["clean", *(f"at {e:g}" for e in found.eps)]
    parts = [
        f"{found.samples} samples, {found.norm}",
        table(
            [
                [
                    s.name,
                    *map(_percent, s.accuracy),
                    _size(s.distances.quartiles[1]),
                    _between(s.distances.median_interval),
                    "" if s.optimality is None else s.optimality,
                ]
                for s in found.standings
            ],
            ["model", *budgets, "median distance", "95% interval", "attacks' optimality"],
        ),
        "Accuracy of the first minus that of the second (p: exact McNemar test, corrected for the number of pairs)",
        table(
            [
                [
                    f"{p.eps:g}" if p.eps else "clean",
                    p.first,
                    p.second,
                    f"{100 * p.result.difference:+.1f}",
                    f"{100 * p.result.low:+.1f} to {100 * p.result.high:+.1f}",
                    f"{p.result.first_only}:{p.result.second_only}",
                    _chance(p.adjusted),
                ]
                for p in found.pairs
            ],
            ["at", "first", "second", "points", "95% interval", "only one right", "p"],
        ),
    ]
    if found.gaps:
        parts += [
            "Distance of the first minus that of the second where both are right (p: Wilcoxon's signed ranks)",
            table(
                [
                    [g.first, g.second, g.samples, f"{g.median:+.3g}", _between((g.low, g.high)), _chance(g.adjusted)]
                    for g in found.gaps
                ],
                ["first", "second", "samples", "median", "95% interval", "p"],
            ),
        ]
    return "\n\n".join([*parts, *(["\n".join(f"Note: {note}" for note in found.notes)] if found.notes else [])])


def _percent(share: Share) -> str:
    return f"{share.value:.1%}"


def _size(distance: float) -> str:
    return "beyond" if distance == float("inf") else f"{distance:.3g}"


def _between(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {_size(ends[1])}"


def _chance(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"

"""Comparisons of runs: the same samples wherever they stand, tests against enumeration, and what is refused."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from robustx import zoo
from robustx.evaluation import AttackSpec, Run, Spec, compare, evaluate, share
from robustx.evaluation.comparing import compare_runs

ATTACKS = (AttackSpec("fgsm"), AttackSpec("bisection", {"steps": 2, "rounds": 3}))


@pytest.fixture(scope="module")
def digits():
    return replace(zoo.data("digits", limit=24), name="data")


def run_of(folder, data, names=("digits",), **changes):
    spec = {"eps": (0.1, 0.3), "attacks": ATTACKS, "explain": 0, "soundness": False, "norm": "Linf"} | changes
    return evaluate({n: zoo.model(n) for n in names}, data, Spec(models=names, data="data", **spec), folder)


@pytest.fixture(scope="module")
def both(digits, tmp_path_factory):
    """Two models in one run."""
    return run_of(tmp_path_factory.mktemp("runs") / "both", digits, ("digits", "digits-robust"))


@pytest.fixture(scope="module")
def apart(digits, tmp_path_factory):
    """The same models in two runs: other samples besides the shared ones, in another order, one budget more."""
    folder = tmp_path_factory.mktemp("apart")
    backwards = digits[torch.arange(19, -1, -1)]
    return run_of(folder / "a", digits[:22]), run_of(folder / "b", backwards, ("digits-robust",), eps=(0.1, 0.2, 0.3))


def test_models_of_one_run(both):
    got = compare_runs([both.folder])
    first, second = both.outcomes
    assert (got.samples, got.norm, got.eps, got.notes) == (24, "Linf", [0.1, 0.3], [])
    assert [s.name for s in got.standings] == ["digits", "digits-robust"]
    for s, o in zip(got.standings, both.outcomes, strict=True):
        assert s.accuracy[0] == share(int(o.correct.sum()), 24)
        assert s.accuracy[1:] == [share(int(o.robust(e).sum()), 24) for e in (0.1, 0.3)]
    assert [p.eps for p in got.pairs] == [0.0, 0.1, 0.3]
    for p in got.pairs[1:]:
        assert p.result == compare(first.robust(p.eps), second.robust(p.eps))
        assert p.adjusted == p.result.p_value  # there is one pair


def test_runs_apart_say_what_one_run_says(both, apart):
    got = compare_runs([run.folder for run in apart])
    assert (got.samples, got.eps) == (20, [0.1, 0.3])
    kept = [o.at(np.arange(20)) for o in both.outcomes]
    for s, o in zip(got.standings, kept, strict=True):
        assert [a.count for a in s.accuracy] == [o.correct.sum(), *(o.robust(e).sum() for e in (0.1, 0.3))]
        assert s.distances.quartiles == pytest.approx(
            [float(np.sort(o.fallen[o.correct])[math.ceil(q * o.correct.sum()) - 1]) for q in (0.25, 0.5, 0.75)],
            abs=0.02,
        )
    told = " ".join(got.notes)
    assert "2 of the 22 samples of" in told and "Budgets 0.2 of" in told
    assert "attack differently" not in told and "same model" not in told


def test_distances_differ_as_signed_ranks_say(both):
    (gap,) = compare_runs([both.folder]).gaps
    a, b = both.outcomes
    right = a.correct & b.correct
    d = np.minimum(a.fallen, 0.6)[right] - np.minimum(b.fallen, 0.6)[right]
    assert (gap.samples, gap.cap, gap.median) == (right.sum(), 0.6, np.median(d))
    assert gap.low <= gap.median <= gap.high < 0 and gap.p_value < 1e-3  # the robust one is further away


def test_signed_ranks_against_all_signs(both, monkeypatch):
    a, b = both.outcomes
    few = np.flatnonzero(a.correct & b.correct)[:8]
    monkeypatch.setattr(Run, "outcomes", property(lambda self: [a.at(few), b.at(few)]))
    monkeypatch.setattr(
        Run, "samples", lambda self: [{"uid": str(i), "label": int(a.label[n])} for i, n in enumerate(few)]
    )
    (gap,) = compare_runs([both.folder]).gaps
    d = np.minimum(a.fallen[few], 0.6) - np.minimum(b.fallen[few], 0.6)
    d = d[d != 0]
    ranks = np.array([(np.abs(d) < x).sum() + ((np.abs(d) == x).sum() + 1) / 2 for x in np.abs(d)])
    sums = [abs((np.array(s) * ranks).sum()) for s in itertools.product((-1, 1), repeat=len(d))]
    seen = abs((np.sign(d) * ranks).sum())
    assert gap.p_value == pytest.approx(np.mean([s >= seen for s in sums]))


def test_the_same_model_under_other_attacks_is_told(both, digits, tmp_path):
    weak = run_of(tmp_path / "weak", digits, attacks=(AttackSpec("fgsm"),))
    got = compare_runs([both.folder, weak.folder])
    assert [s.name for s in got.standings] == ["digits (both)", "digits-robust", "digits (weak)"]
    assert len(got.pairs) == 9 and [(g.first, g.second) for g in got.gaps] == [("digits (both)", "digits-robust")]
    for e in (0.0, 0.1, 0.3):
        here = [p for p in got.pairs if p.eps == e]
        assert all(p.result.p_value <= p.adjusted <= min(1, 3 * p.result.p_value) for p in here)
        least = min(here, key=lambda p: p.result.p_value)
        assert least.adjusted == min(1, 3 * least.result.p_value)
    told = " ".join(got.notes)
    assert [s.optimality is None for s in got.standings] == [False, True, False]
    fallen, weaker = both.outcomes[0].fallen, weak.outcomes[0].fallen
    best = np.minimum(fallen, weaker)  # none of the digits is mistaken without an attack
    end = best[np.isfinite(best)].max()
    for s, d in zip(got.standings[::2], (fallen, weaker), strict=True):
        assert s.optimality == pytest.approx(np.maximum(end - d, 0).sum() / np.maximum(end - best, 0).sum())
    assert got.standings[2].optimality < got.standings[0].optimality
    assert "fgsm, bisection in" in told and "digits (both) and digits (weak) are the same model" in told
    assert "did not search for minimal distances" in told


def test_the_same_input_twice_counts_twice(digits, tmp_path):
    twice = run_of(tmp_path / "twice", digits[torch.tensor([0, 1, 2, 0])])
    once = run_of(tmp_path / "once", digits[:3], ("digits-robust",))
    assert compare_runs([twice.folder, once.folder]).samples == 3
    again = run_of(tmp_path / "again", digits[torch.tensor([0, 0, 1, 2])], ("digits-robust",))
    assert compare_runs([twice.folder, again.folder]).samples == 4


@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        (lambda d: d, {"norm": "L2", "eps": (0.5,)}, "the same norm to be compared, got Linf in .*, L2 in"),
        (lambda d: replace(d, bounds=(0.0, 2.0)), {}, "the same bounds to be compared"),
        (
            lambda d: replace(d, x=1 - d.x),
            {},
            "samples in common to be compared, got 24 in .*, 4 in .*, and none in all",
        ),
        (lambda d: replace(d, y=(d.y + 1) % 10), {}, "agree on labels, but sample [0-9a-f]+ has"),
    ],
    ids=["norm", "bounds", "samples", "labels"],
)
def test_what_cannot_be_compared_is_refused(both, digits, tmp_path, change, changes, said):
    run_of(tmp_path, change(digits[:4]), **changes)
    with pytest.raises(ValueError, match=said):
        compare_runs([both.folder, tmp_path])


def test_one_model_or_one_run_twice_is_refused(both, apart):
    with pytest.raises(ValueError, match="at least two models, got one"):
        compare_runs([apart[0].folder])
    with pytest.raises(ValueError, match="different runs, at least one, got"):
        compare_runs([both.folder, both.folder])
    with pytest.raises(ValueError, match="at least one, got none"):
        compare_runs([])

"""Statistics against closed forms, and the laws of the security curve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustx.engine.corrections import holm
from robustx.evaluation import Outcome, Row, compare, curve, distances, moved, share
from robustx.evaluation.optimality import global_optimality, local_optimality
from robustx.evaluation.statistics import (
    CONFIDENCE,
    alone,
    cost,
    cumulative,
    median_interval,
    per_class,
    plain,
    steps,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (7, 10), (450, 450), (1, 3)])
def test_wilson_interval(k, n):
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    s = share(k, n)
    assert (s.count, s.total, s.value) == (k, n, p)
    assert s.low == pytest.approx(max(middle - half, 0), abs=1e-9)
    assert s.high == pytest.approx(min(middle + half, 1), abs=1e-9)


def test_share_of_nothing_and_of_nonsense():
    assert math.isnan(share(0, 0).value) and (share(0, 0).low, share(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="between 0 and total, got 3 of 2"):
        share(3, 2)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (6, 0), (1, 8), (5, 5), (30, 12)])
def test_exact_mcnemar(a, b):
    first = np.array([True] * a + [False] * b + [True, False])
    second = np.array([False] * a + [True] * b + [True, False])
    n, low = a + b, min(a, b)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(low + 1)) / 2**n)
    got = compare(first, second)
    assert (got.both, got.first_only, got.second_only, got.neither) == (1, a, b, 1)
    assert got.p_value == pytest.approx(exact)
    assert got.difference == pytest.approx(first.mean() - second.mean())
    assert got.low <= got.difference <= got.high


@pytest.mark.parametrize(("p10", "p01"), [(0.0, 0.0), (0.1, 0.1), (0.3, 0.05), (0.6, 0.2)])
def test_the_interval_of_a_difference_holds_what_it_promises(p10, p01):
    n, covered = 20, 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            chance = math.comb(n, a) * math.comb(n - a, b) * p10**a * p01**b * (1 - p10 - p01) ** (n - a - b)
            if chance > 1e-9:
                s = compare(np.arange(n) < a, (np.arange(n) >= a) & (np.arange(n) < a + b))
                covered += chance * (s.low <= p10 - p01 <= s.high)
    assert covered > 0.94


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_corrects_as_stepping_down_does(p):
    corrected = holm(p)
    for i, mine in enumerate(p):
        before = [q for q in sorted(p) if q <= mine]  # refused no later than this one, itself the last
        stepwise = [min(1, q * sum(r >= q for r in p)) for q in before]
        assert corrected[i] == pytest.approx(max(stepwise))
    assert all(mine <= c <= 1 for mine, c in zip(p, corrected, strict=True))


def row(position, eps, success, distance=None, into=1, flagged=False):
    return Row(
        position, eps, success, flagged, into, None if flagged else 1.0, eps if distance is None else distance, 1, 1
    )


def clean(wrong=(), flagged=(), n=5):
    return [
        Row(i, 0.0, i in wrong, i in flagged, -1 if i in flagged else 0, None if i in flagged else -2.0, 0.0, 1, 0)
        for i in range(n)
    ]


def test_what_falls_once_has_fallen_at_every_larger_budget():
    first = [row(0, 0.1, True), row(1, 0.1, False), row(2, 0.1, False), row(1, 0.2, True, distance=0.15)]
    second = [row(2, 1.0, True, distance=0.05, into=3), row(1, 0.15, False)]
    o = Outcome.of("m", [0] * 5, clean(wrong=[4]), [first, second])
    assert o.fallen.tolist() == [0.1, 0.15, 0.05, math.inf, 0.0]
    assert o.by.tolist() == [0, 0, 1, -1, -1] and o.into.tolist() == [1, 1, 3, -1, -1]
    assert o.correct.tolist() == [True, True, True, True, False]
    assert [s.count for s in curve(o, (0.04, 0.05, 0.1, 0.12, 0.15, 9.0))] == [4, 4, 3, 2, 2, 1, 1]


def test_a_distance_beyond_its_budget_by_rounding_counts_within():
    o = Outcome.of("m", [0], clean(n=1), [[row(0, 0.1, True, distance=float(np.float32(0.1)))]])
    assert float(np.float32(0.1)) > 0.1
    assert not o.robust(0.1)[0]


def test_flagged_rows_are_neither_robust_nor_fooled():
    o = Outcome.of("m", [0] * 3, clean(flagged=[0], n=3), [[row(1, 0.1, False), row(1, 0.2, False, flagged=True)]])
    assert o.flagged.tolist() == [True, False, False]
    assert o.correct.tolist() == [False, True, True]
    assert [s.count for s in curve(o, (0.1, 0.2, 0.3))] == [2, 2, 1, 1]
    assert moved(o, 2).sum() == 0


SOME = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0.1, 0.2, 0.4]), st.booleans(), st.booleans()), max_size=12
)


@given(SOME, SOME, st.sets(st.integers(0, 4)))
def test_the_curve_never_rises_and_more_attacks_never_help(a, b, wrong):
    attacks = [[row(p, e, s and not f, flagged=f) for p, e, s, f in part if p not in wrong] for part in (a, b)]
    eps = (0.05, 0.1, 0.2, 0.4, 0.8)
    upto = [Outcome.of("m", [0] * 5, clean(wrong), attacks[: k + 1]) for k in range(2)]
    curves = [[s.value for s in curve(o, eps)] for o in upto]
    for values in curves:
        assert values[0] == (5 - len(wrong)) / 5
        assert values == sorted(values, reverse=True)
    assert all(x >= y for x, y in zip(*curves, strict=True))
    steps = cumulative(upto, attacks, ["a", "b"], eps)
    assert [s.accuracy for s in steps] == [c[1:] for c in curves]
    assert sum(s.nearest for s in steps) == (upto[-1].by >= 0).sum() == moved(upto[-1], 2).sum()


@given(st.lists(st.floats(0.01, 1) | st.just(math.inf), min_size=1, max_size=30))
def test_quartiles_with_samples_that_never_fall(sizes):
    rows = [row(i, 2.0, True, distance=d) for i, d in enumerate(sizes) if math.isfinite(d)]
    d = distances(Outcome.of("m", [0] * len(sizes), clean(n=len(sizes)), [rows]))
    assert (d.total, d.beyond) == (len(sizes), sum(map(math.isinf, sizes)))
    for q, value in zip((0.25, 0.5, 0.75), d.quartiles, strict=True):
        assert sum(s <= value for s in sizes) >= q * len(sizes)  # so many fall by then
        assert sum(s < value for s in sizes) < q * len(sizes)  # and no smaller distance does it


def test_nothing_right_has_no_distances():
    d = distances(Outcome.of("m", [0], clean(wrong=[0], n=1), [[]]))
    assert d.total == 0 and all(map(math.isnan, d.quartiles))


@pytest.mark.parametrize("n", [1, 5, 6, 10, 37])
def test_the_interval_of_a_median_is_the_narrowest_that_the_binomial_allows(n):
    low, high = median_interval(np.arange(1.0, n + 1), 0.0, math.inf)
    below = [sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n + 2)]  # fewer than k below the median
    r, s = (0 if low == 0 else int(low)), (n + 1 if math.isinf(high) else int(high))
    assert r + s == n + 1
    assert below[r] <= 0.025 < below[r + 1]  # one rank further in, either end errs too often


@given(SOME, st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_the_curve_at_every_budget(attack, wrong, flagged):
    rows = [row(p, e, s and not f, e * 0.75, flagged=f) for p, e, s, f in attack if p not in wrong | flagged]
    o = Outcome.of("m", [0] * 5, clean(wrong - flagged, flagged), [rows])
    got = steps(o)
    assert (got.total, got.count[0], got.eps[0]) == (5, o.correct.sum(), 0.0)
    assert got.eps == sorted(set(got.eps)) and got.count == sorted(set(got.count), reverse=True)
    for e in np.linspace(0, 1, 41).tolist():
        i = max(k for k, at in enumerate(got.eps) if at <= e)
        (pointwise,) = curve(o, [e])[1:]
        assert got.count[i] == pointwise.count and got.value[i] == pointwise.value
        assert (got.low[i], got.high[i]) == (pointwise.low, pointwise.high)
        assert got.band_low[i] <= got.value[i] <= got.band_high[i]


def test_the_band_holds_the_whole_curve_as_often_as_it_promises():
    rng, n, held = np.random.default_rng(0), 40, 0
    half = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * n))
    for _ in range(400):
        d = rng.uniform(size=n)  # robust accuracy of the source at budget e: 1 - e
        got = steps(Outcome.of("m", [0] * n, clean(n=n), [[row(i, 2.0, True, x) for i, x in enumerate(d)]]))
        at, value = np.array(got.eps), np.array(got.value)
        held += bool(np.all(np.abs(value - (1 - at)) <= half) and np.all(np.abs(value[:-1] - (1 - at[1:])) <= half))
        assert got.band_low == pytest.approx(np.maximum(value - half, 0))
        assert got.band_high == pytest.approx(np.minimum(value + half, 1))
    assert held >= 0.95 * 400  # the inequality is nearly sharp for continuous distances


def test_no_samples_have_no_curve():
    got = steps(Outcome.of("m", [], [], [[]]))
    assert (got.eps, got.count, got.band_low, got.band_high) == ([0.0], [0], [0.0], [1.0])


def test_classes_one_by_one():
    labels = [0, 0, 2, 2, 2]
    o = Outcome.of("m", labels, clean(wrong=[4]), [[row(0, 0.1, True), row(2, 0.2, True), row(3, 0.2, True)]])
    told = per_class(o, (0.1, 0.2), ["cat", "dog", "bird"])
    assert [(c["label"], c["name"]) for c in told["classes"]] == [(0, "cat"), (2, "bird")]
    for c in told["classes"]:
        mine = np.array(labels) == c["label"]
        assert c["clean"] == vars(share(int(o.correct[mine].sum()), int(mine.sum())))
        assert c["robust"] == [
            {"eps": e, **vars(share(int(o.robust(e)[mine].sum()), int(mine.sum())))} for e in (0.1, 0.2)
        ]
    assert [(w["eps"], w["name"], w["count"]) for w in told["worst"]] == [
        (0.0, "bird", 2),
        (0.1, "cat", 1),
        (0.2, "bird", 0),
    ]
    for w in told["worst"]:  # chosen from two classes: a wider interval
        assert {k: w[k] for k in ("low", "high")} == {
            k: getattr(share(w["count"], w["total"], 0.975), k) for k in ("low", "high")
        }
    assert per_class(o.at(o.label > 5), (0.1,), []) == {"classes": [], "worst": []}


def test_cost_by_part_and_in_total():
    def spent(position, eps, up, down):
        return Row(position, eps, False, False, 0, -1.0, 0.0, up, down)

    parts = {
        "clean": [spent(0, 0, 1, 0), spent(1, 0, 1, 0)],
        "pgd": [spent(0, 0.1, 5, 4), spent(0, 0.2, 7, 6)],
        "x": [],
    }
    got = {c.attack: c for c in cost(parts)}
    assert list(got) == ["clean", "pgd", "x", "total"]
    assert (got["pgd"].samples, got["pgd"].forwards, got["pgd"].backwards, got["pgd"].per_sample) == (1, 12, 10, 22)
    assert (got["x"].samples, got["x"].forwards, got["x"].most) == (0, 0, 0) and math.isnan(got["x"].per_sample)
    assert (got["total"].samples, got["total"].per_sample, got["total"].most) == (2, 12, 23)


DISTANCE = st.sampled_from([0.25, 0.5, 0.75, 1.0, 2.0, math.inf])


def areas(distance, end):
    """Under the curve, rectangle by rectangle between the places where it falls."""
    at = sorted({0.0, end, *(d for d in distance if d < end)})
    heights = [sum(d > a for d in distance) / len(distance) for a in at[:-1]]
    return sum(h * (b - a) for h, a, b in zip(heights, at[:-1], at[1:], strict=True))


@given(st.lists(st.tuples(DISTANCE, DISTANCE, DISTANCE) | st.just((0.0,) * 3), min_size=1, max_size=10))
def test_local_optimality_against_the_definition(distances):
    attacks = np.array(distances).T
    best = attacks.min(0)
    known = [d for d in best if 0 < d < math.inf]
    if not known or max(known) == min(known):
        assert math.isnan(local_optimality(best, best))
        return
    end, rho = max(known), (best > 0).mean()
    for own in attacks:
        got = local_optimality(own, best)
        assert got == pytest.approx((rho * end - areas(own, end)) / (rho * end - areas(best, end)))
        assert 0 <= got <= 1
        further = np.where(own == 0.25, 0.5, own)
        assert local_optimality(further, best) <= got
    assert local_optimality(best, best) == 1
    assert local_optimality(np.where(best > 0, math.inf, 0), best) == 0


def test_global_optimality_is_a_mean_over_models_that_all_know_it():
    assert global_optimality([0.5, 1.0, 0.75]) == 0.75
    assert math.isnan(global_optimality([0.5, math.nan])) and math.isnan(global_optimality([]))


def test_what_one_attack_does_alone_is_told_where_no_other_had_a_say():
    pgd = [row(0, 0.1, True, 0.09), row(1, 0.1, False), row(1, 0.2, True), row(2, 0.1, False), row(2, 0.2, False)]
    near = [row(0, 0.09, True, 0.05), row(1, 0.2, False), row(2, 0.4, True, 0.3)]
    whole = [row(0, 0.4, True, 0.06), row(1, 0.4, True, 0.15), row(2, 0.4, False)]
    o = Outcome.of("m", [0] * 4, clean(wrong=[3], n=4), [pgd, near, whole])
    assert alone(o, pgd, (0.1, 0.2)).tolist() == [0.09, 0.2, math.inf, 0.0]
    assert alone(o, near, (0.4,)) is None  # it began from what PGD had found
    assert alone(o, whole, (0.4,)).tolist() == [0.06, 0.15, math.inf, 0.0]
    assert alone(o, [r for r in pgd if r.eps != 0.1], (0.1, 0.2)) is None  # it was spared a budget
    assert alone(o, pgd[1:], (0.1, 0.2)) is None  # and here a sample
    upto = [Outcome.of("m", [0] * 4, clean(wrong=[3], n=4), [pgd, near, whole][: k + 1]) for k in range(3)]
    told = cumulative(upto, [pgd, near, whole], ["pgd", "near", "whole"], (0.1, 0.2), [(0.1, 0.2), (0.4,), (0.4,)])
    assert [t.alone for t in told] == [[0.5, 0.25], None, [0.5, 0.25]]
    best = 0.25 + 0.15  # how far below 0.3, the largest of 0.05, 0.15 and 0.3, the best stays
    assert told[0].optimality == pytest.approx((0.21 + 0.1) / best) and told[1].optimality is None
    assert told[2].optimality == pytest.approx((0.24 + 0.15) / best)


def test_json_without_infinity():
    assert plain({"a": (math.inf, 1.0, math.nan), "b": share(0, 0)})["a"] == [None, 1.0, None]
    assert plain(share(0, 0))["value"] is None

"""Statistics against closed forms, and the laws of the security curve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustx.evaluation import Outcome, Row, compare, curve, distances, moved, share
from robustx.evaluation.statistics import cumulative, plain


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


def test_json_without_infinity():
    assert plain({"a": (math.inf, 1.0, math.nan), "b": share(0, 0)})["a"] == [None, 1.0, None]
    assert plain(share(0, 0))["value"] is None

"""Benchmarks: the numbers are those of a single evaluation, and intervals are the bootstrap's."""

import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from robustx.counterfactual import Benchmark, CounterfactualExplainer, benchmark, evaluate

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=DRAW)
MOVE = torch.randn(12, 3, generator=DRAW) * 2
NAMES = ["valid", "l0", "l1", "n_redundant"]


def model(x):
    return torch.stack([x.sum(1) * 0, x @ torch.tensor([1.0, -2.0, 0.5])], 1)


def far(x):
    return x + MOVE[: len(x)] * 3


def some(x):
    out = x + MOVE[: len(x)]
    out[::4] = torch.nan
    return out


def test_rows_are_those_of_an_evaluation():
    rows = benchmark({"far": far, "some": some}, model, X, metrics=NAMES).rows
    assert list(rows) == ["data", "method", "example", *NAMES, "seconds"] and (rows.seconds > 0).all()
    for name, method in (("far", far), ("some", some)):
        told = rows[rows.method == name].set_index("example")[NAMES]
        pd.testing.assert_frame_equal(told, evaluate(model, X, method(X), metrics=NAMES))


def test_means_and_intervals():
    table = benchmark({"far": far, "some": some}, model, X, metrics=NAMES).summary(against="far", resamples=500, seed=3)
    assert list(table.method) == ["far"] * 5 + ["some"] * 5 and list(table.metric[:5]) == [*NAMES, "seconds"]
    table = table.set_index(["method", "metric"])
    mine, other = (evaluate(model, X, method(X), metrics=NAMES) for method in (some, far))
    assert table["count"]["some", "l1"] == 9 and table["count"]["some", "valid"] == 12  # missing ones are not valid

    def interval(v):
        draw = np.random.default_rng(3)
        return stats.bootstrap((v.dropna(),), np.mean, method="percentile", n_resamples=500, random_state=draw)

    for name in NAMES:
        row = table.loc["some", name]
        assert row["mean"] == pytest.approx(mine[name].mean())
        assert (row.low, row.high) == pytest.approx(tuple(interval(mine[name]).confidence_interval))
        apart = mine[name] - other[name]
        assert row.difference == pytest.approx(apart.mean()) and row.pairs == apart.count()
        assert (row.difference_low, row.difference_high) == pytest.approx(tuple(interval(apart).confidence_interval))
        assert row.low <= row["mean"] <= row.high and table.loc["far", name][["difference", "pairs"]].isna().all()
    assert table.difference_high["some", "l1"] < 0  # a third as far


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw, inside = np.random.default_rng(0), 0
    for _ in range(120):
        rows = pd.DataFrame({"data": "", "method": "a", "example": range(40), "l1": draw.exponential(2.0, 40)})
        told = Benchmark(rows).summary(resamples=150, seed=1).iloc[0]
        inside += told.low <= 2.0 <= told.high
    assert 0.87 <= inside / 120 <= 0.99


def test_several_counterfactuals_of_an_example_count_as_one():
    def three(x):
        return torch.stack([far(x), x, torch.full_like(x, torch.nan)], 1)

    told = benchmark({"three": three, "far": far}, model, X, metrics=["valid", "l1"])
    assert len(told.rows) == 36 + 12 and told.rows.counterfactual[told.rows.method == "far"].isna().all()
    table = told.summary().set_index(["method", "metric"])
    assert table["count"]["three", "l1"] == 12
    assert table["mean"]["three", "l1"] == pytest.approx(table["mean"]["far", "l1"] / 2)
    assert table["mean"]["three", "valid"] == pytest.approx(table["mean"]["far", "valid"] / 3)


def test_benchmarks_join():
    first = benchmark({"far": far}, model, X, metrics="l1", data_name="all")
    second = benchmark({"some": some}, model, X, metrics="l1", data_name="all")
    other = benchmark({"far": far, "some": some}, model, X[:5], metrics="l1", data_name="few")
    one = Benchmark.cat([first, second, other]).summary(against="far").set_index(["method", "metric"])
    assert one["count"]["far", "l1"] == 12 + 5 and one["pairs"]["some", "l1"] == 9 + 3
    whole = benchmark({"far": far, "some": some}, model, X, metrics="l1", data_name="all")
    two = Benchmark.cat([whole, other]).summary(against="far").set_index(["method", "metric"])
    pd.testing.assert_frame_equal(one.drop("seconds", level="metric"), two.drop("seconds", level="metric"))


def test_one_row_at_a_time():
    asked = []

    def slow(x):
        asked.append(len(x))
        time.sleep(0.05 if x[0, 0] == X[2, 0] else 0)
        return x + 1

    told = benchmark({"slow": slow}, model, X[:4], metrics=["valid", "linf"], alone=True)
    assert asked == [1] * 4 and told.rows.seconds.idxmax() == 2 and np.allclose(told.rows.linf, 1, atol=1e-6)
    together = benchmark({"slow": slow}, model, X[:4], metrics=["valid", "linf"])
    assert asked[4:] == [4] and together.rows.seconds.nunique() == 1
    pd.testing.assert_frame_equal(told.rows.drop(columns="seconds"), together.rows.drop(columns="seconds"))


def test_what_searches_tell_of_their_cost():
    explainer = CounterfactualExplainer(model, bounds=(-3, 3))
    rows = benchmark({"guided": explainer.generate, "far": far}, model, X, metrics="valid").rows
    result = explainer.generate(X)
    guided = rows[rows.method == "guided"]
    assert (
        guided.forwards.tolist() == result.forwards.tolist() and guided.backwards.tolist() == result.backwards.tolist()
    )
    assert rows[rows.method == "far"].forwards.isna().all() and guided.valid.tolist() == result.valid.double().tolist()


def test_claims_are_not_believed():
    def boasts(x):
        return SimpleNamespace(counterfactual=x, valid=torch.ones(len(x), dtype=torch.bool), alternatives=())

    assert benchmark({"boasts": boasts}, model, X, metrics="valid").summary()["mean"][0] == 0


def test_methods_are_run_again_only_if_asked():
    runs = []

    def method(x):
        runs.append(x.clone())
        x += 1  # in place
        return x

    rows = benchmark({"m": method}, model, X, sigma=0.1).rows
    assert len(runs) == 1 and "lipschitz" not in rows and "invalidation" in rows
    rows = benchmark({"m": method}, model, X, metrics="lipschitz", sigma=0.1).rows
    assert len(runs) == 3 and not torch.equal(runs[1], runs[2]) and torch.equal(runs[0], X)
    np.testing.assert_allclose(rows.lipschitz, 1, rtol=1e-4)


def test_few_rows():
    told = benchmark({"far": far}, model, X[:1], metrics="l1").summary(against="far")
    assert told["count"].tolist() == [1, 1] and told[["low", "high"]].isna().all(axis=None)
    empty = benchmark({"far": far}, model, X[:0], metrics="l1").summary()
    assert not len(empty) and list(empty) == ["method", "metric", "mean", "low", "high", "count"]


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="methods must name at least one"):
        benchmark({}, model, X)
    with pytest.raises(ValueError, match="against must be one of 'far', got 'near'"):
        benchmark({"far": far}, model, X, metrics="l1").summary(against="near")
    with pytest.raises(ValueError, match="x_cf of shape"):
        benchmark({"narrow": lambda x: x[:, :2]}, model, X)

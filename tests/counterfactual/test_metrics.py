"""Metrics of counterfactuals: each against a slow computation of its own, on data with awkward columns and gaps."""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from counterfactual_cases import credit, credit_schema
from scipy import ndimage, stats
from scipy.integrate import quad
from scipy.spatial import distance as apart
from scipy.special import expit, softmax
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from torch import nn

from robustx.counterfactual import Change, CounterfactualExplainer
from robustx.counterfactual.metrics import METRICS, Langevin, Metric, evaluate
from robustx.counterfactual.metrics.evaluation import NEEDS
from robustx.counterfactual.metrics.robustness import trials
from robustx.engine import BlackBox
from robustx.engine.randomness import Noise
from robustx.perturb import Between, Leave, Reach, Surely
from robustx.perturb.goals import Whose

K = 4  # neighbours


def mlp(d, classes, seed, data):
    """A network of random weights, whose answers to some data are of all kinds."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, classes)).to(data.dtype)
    with torch.no_grad():
        out = net(data)
        net[2].bias -= out.mean(0)
        net[2].weight /= out.std()
        net[2].bias /= out.std()
    return net.eval()


def plain():
    """Numbers without a schema: one column is constant, one nearly always 0; one counterfactual is missing."""
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(60, 5, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1, 1, 1])
    data[:, 3] = 2.0
    data[10:, 4] = 0
    x = data[:9].clone()
    x_cf = x + torch.randn(9, 5, generator=draw, dtype=torch.float64) * data.std(0).clamp(min=0.5) * 1.5
    x_cf = torch.where(torch.rand(9, 5, generator=draw) < 0.3, x, x_cf)
    x_cf[:, 0] += 1e-7  # less than the tolerance
    x_cf[4] = torch.nan
    return SimpleNamespace(model=mlp(5, 3, 0, data), data=data, x=x, x_cf=x_cf)


PLAIN = plain()
AUTO = {c: mlp(5, 5, 10 + i, PLAIN.data) for i, c in enumerate([0, 1, "all"])}  # class 2 has none
OTHERS = [mlp(5, 3, s, PLAIN.data) for s in (1, 2, 3)]


def asked(case, model=None, **more):
    options = {"data": case.data, "neighbours": K, "sampler": Langevin(count=4, keep=3, steps=5)} | more
    return evaluate(model or case.model, case.x, case.x_cf, **options)


def answer(model, z):
    return model(torch.as_tensor(z)[None]).detach()[0].numpy()


class Row:
    """One counterfactual, and what a slow computation can know of it."""

    def __init__(self, case, i):
        self.case, self.data = case, case.data.numpy()
        self.x, self.z = case.x[i].numpy(), case.x_cf[i].numpy()
        self.own = int(np.argmax(self(self.x)))
        self.valid = int(np.argmax(self(self.z))) != self.own
        others = [c for c in range(3) if c != self.own]
        self.target = max(others, key=lambda c: self(self.z)[c])
        self.answers = np.array([np.argmax(self(r)) for r in self.data])
        self.changed = [j for j in range(len(self.x)) if abs(self.z[j] - self.x[j]) > 1e-5]

    def __call__(self, z):
        return answer(self.case.model, z)

    def reaches(self, z):
        return int(np.argmax(self(z))) != self.own

    def mixed(self, keep):
        return np.array([self.z[j] if j in keep else self.x[j] for j in range(len(self.x))])

    def nearest(self, among, k=K, to=None, metric=apart.euclidean):
        to = self.z if to is None else to
        return sorted(metric(to, r) for r in among)[:k]

    def gower_terms(self, a, b):
        spans = np.ptp(self.data, 0)
        return [abs(u - v) / s if s > 0 else float(u != v) for u, v, s in zip(a, b, spans, strict=True)]

    def settled(self):
        """The counterfactual, where it differs by more than the tolerance."""
        return self.mixed(self.changed)


def _usual(among):
    """The mean distance of rows to their nearest others."""
    return np.mean(
        [np.mean(sorted(apart.euclidean(r, s) for j, s in enumerate(among) if j != i)[:K]) for i, r in enumerate(among)]
    )


def _lof(data, z, k=20):
    """Breunig et al., definitions 3 to 7, of one further point."""

    def neighbours(p, itself=None):
        return sorted((np.linalg.norm(p - q), j) for j, q in enumerate(data) if j != itself)[:k]

    reach = {j: neighbours(q, j)[-1][0] for j, q in enumerate(data)}

    def dense(p, itself=None):
        return 1 / np.mean([max(d, reach[j]) for d, j in neighbours(p, itself)])

    return np.mean([dense(data[j], j) for _, j in neighbours(z)]) / dense(z)


def _density(row):
    unit = row.data.std(0)
    unit[unit == 0] = 1
    n, d = row.data.shape
    width = n ** (-1 / (d + 4))
    return np.log(
        np.mean([stats.multivariate_normal.pdf(row.z / unit, r / unit, width**2 * np.eye(d)) for r in row.data])
    )


@cache
def _forest():
    return IsolationForest(random_state=0).fit(PLAIN.data.numpy())


def _shift(row, j):
    """Percentiles after and before, out of N + 1."""
    n = len(row.data)
    weak = [stats.percentileofscore(row.data[:, j], v, "weak") / 100 for v in (row.settled()[j], row.x[j])]
    return [p * n / (n + 1) for p in weak]


def _connected(row):
    meant = [r for r, a in zip(row.data, row.answers, strict=True) if a == row.target]
    end = min(meant, key=lambda r: apart.euclidean(row.z, r))
    return float(all(row.reaches(row.z + t * (end - row.z)) for t in np.linspace(0, 1, 21)))


def _repair(row, c):
    return answer(AUTO[c], row.z) if c in AUTO else np.full(5, np.nan)


def _cout(row):
    order = np.argsort(-np.abs(row.z - row.x), kind="stable")
    curve = [softmax(row(row.mixed(set(order[:t])))) for t in range(6)]
    way = [np.trapezoid([p[c] for p in curve], dx=1 / 5) for c in (row.target, row.own)]
    return way[0] - way[1]


def _meant(row):
    return row.data[row.answers == row.target]


ORACLES = {
    "returned": lambda r: 1.0,
    "valid": lambda r: float(r.valid),
    "margin": lambda r: max(v for c, v in enumerate(r(r.z)) if c != r.own) - r(r.z)[r.own],
    "probability": lambda r: softmax(r(r.z))[r.target],
    "l0": lambda r: len(r.changed),
    "share_changed": lambda r: len(r.changed) / 5,
    "l1": lambda r: apart.cityblock(r.x, r.z),
    "l2": lambda r: apart.euclidean(r.x, r.z),
    "linf": lambda r: apart.chebyshev(r.x, r.z),
    "mad_l1": lambda r: sum(
        abs(a - b) / (stats.median_abs_deviation(column) or 1)
        for a, b, column in zip(r.settled(), r.x, r.data.T, strict=True)
    ),
    "gower": lambda r: np.mean(r.gower_terms(r.settled(), r.x)),
    "heom": lambda r: np.sqrt(np.sum(np.square(r.gower_terms(r.settled(), r.x)))),
    "mahalanobis": lambda r: apart.mahalanobis(r.x, r.z, np.linalg.inv(LedoitWolf().fit(r.data).covariance_)),
    "percentile_shift": lambda r: sum(abs(np.log((1 - a) / (1 - b))) for a, b in (_shift(r, j) for j in range(5))),
    "max_percentile_shift": lambda r: max(abs(a - b) for a, b in (_shift(r, j) for j in range(5))),
    "n_redundant": lambda r: sum(r.reaches(r.mixed(set(range(5)) - {j})) for j in r.changed) if r.valid else np.nan,
    "n_sufficient": lambda r: sum(r.reaches(r.mixed({j})) for j in r.changed),
    "knn": lambda r: np.mean(r.nearest(_meant(r))),
    "knn_ratio": lambda r: np.mean(r.nearest(_meant(r))) / _usual(_meant(r)),
    "implausibility": lambda r: np.mean(r.nearest(_meant(r), 100, metric=apart.cityblock)),
    "lof": lambda r: _lof(r.data, r.z),
    "isolation": lambda r: _forest().decision_function(r.z[None])[0],
    "ynn": lambda r: np.mean(
        [r.answers[i] == r.target for i in np.argsort([apart.euclidean(r.z, s) for s in r.data])[:K]]
    ),
    "gower_knn": lambda r: np.mean(r.nearest(r.data, to=r.settled(), metric=lambda a, b: np.mean(r.gower_terms(a, b)))),
    "trust": lambda r: min(r.nearest(r.data[r.answers != r.target], 1)) / min(r.nearest(_meant(r), 1)),
    "connected": _connected,
    "log_density": _density,
    "im1": lambda r: np.sum((r.z - _repair(r, r.target)) ** 2) / np.sum((r.z - _repair(r, r.own)) ** 2),
    "im2": lambda r: np.sum((_repair(r, r.target) - _repair(r, "all")) ** 2) / np.sum(np.abs(r.z)),
    "ensemble_valid": lambda r: np.mean([np.argmax(answer(m, r.z)) != r.own for m in OTHERS]),
    "survives": lambda r: float(r.valid and all(np.argmax(answer(m, r.z)) != r.own for m in OTHERS)),
    "energy": lambda r: r(r.x)[r.target] - r(r.z)[r.target],
    "cout": _cout,
}
ELSEWHERE = {  # tested on their own below
    "unique", "cost", "n_violations", "dpp", "pairwise", "count_diversity", "unfaithfulness", "invalidation",
    "invalidation_linear", "stability", "set_distance", "lipschitz", "area", "components", "delta_valid",
    "delta_robust",
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return asked(PLAIN, autoencoders=AUTO, ensemble=OTHERS, metrics=list(ORACLES))


def test_every_metric_has_a_computation_of_its_own():
    assert ORACLES.keys() | ELSEWHERE == METRICS.keys() and not ORACLES.keys() & ELSEWHERE
    assert all(name == metric.name and metric.better in ("more", "less", "neither") for name, metric in METRICS.items())


def test_the_cases_are_of_all_kinds(table):
    assert table.valid.sum() not in (0, len(table)) and table.returned.tolist() == [1] * 4 + [0] + [1] * 4
    assert table.n_redundant.max() > 0 and len(set(table.l0.dropna())) > 1
    assert 0 < table.survives.sum() < table.ensemble_valid.gt(0).sum() and 0 < table.connected.mean() < 1


@pytest.mark.parametrize("name", ORACLES)
def test_against_a_slow_computation(name, table):
    expected = [ORACLES[name](Row(PLAIN, i)) for i in range(9) if i != 4]
    told = table[name].to_numpy()
    np.testing.assert_allclose(np.delete(told, 4), expected, rtol=1e-8, atol=1e-12)
    assert np.array_equal(told[4], METRICS[name].missing, equal_nan=True)


def test_spaces():
    d = (PLAIN.x_cf - PLAIN.x).numpy()
    for space, unit in {"range": np.ptp(PLAIN.data.numpy(), 0), "std": PLAIN.data.numpy().std(0)}.items():
        unit[unit == 0] = 1
        told = asked(PLAIN, space=space, metrics=["l1", "l2", "linf"])
        for name, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
            np.testing.assert_allclose(told[name], np.linalg.norm(d / unit, order, axis=1))


# --- tables ---------------------------------------------------------------------------------------------------

FRAME = credit(120)
SCHEMA = credit_schema(FRAME, costs={"income": 2.0, "job": 0.5})


def credit_case():
    x = SCHEMA.encode(FRAME[:7])
    data = SCHEMA.encode(FRAME)
    draw = torch.Generator().manual_seed(1)
    moved = SCHEMA.project(x + torch.randn(x.shape, generator=draw) * 0.6, x)
    moved[5] = torch.nan
    return SimpleNamespace(model=mlp(12, 2, 5, data), x=x, x_cf=moved, data=data)


CREDIT = credit_case()
NUMBERS = ["age", "worked", "income", "rate", "loan"]


def test_tables_are_read_as_people_read_them():
    told = asked(CREDIT, schema=SCHEMA).drop(5)
    kept = [0, 1, 2, 3, 4, 6]
    before = FRAME.loc[kept]
    after = SCHEMA.decode(CREDIT.x_cf[kept], before).set_index(before.index)
    differ = pd.DataFrame({c: before[c] != after[c] for c in before})
    assert (
        (told.l0 == differ.sum(axis=1)).all()
        and (told.share_changed == told.l0 / 9).all()
        and not told.n_violations.any()
    )
    assert told.l0.max() > told.l0.min() and differ.job.any() and differ.school.any()
    order = {c: i for i, c in enumerate(SCHEMA["school"].categories)}
    numbers = {c: (after[c] - before[c]).abs() for c in NUMBERS}
    numbers["school"] = (after.school.map(order).astype(float) - before.school.map(order).astype(float)).abs()
    columns = {c: FRAME[c] for c in NUMBERS} | {"school": FRAME.school.map(order).astype(float)}
    ranges = {c: np.ptp(v) for c, v in columns.items()}
    others = differ[["job", "home", "sex"]].astype(float)
    terms = pd.DataFrame({c: d / ranges[c] for c, d in numbers.items()}).join(others)
    np.testing.assert_allclose(told.gower, terms.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(told.heom, np.sqrt((terms**2).sum(axis=1)), rtol=1e-6)
    mad = {c: stats.median_abs_deviation(v) for c, v in columns.items()}
    by_mad = sum((d / (mad[c] or 1) for c, d in numbers.items()), start=others.sum(axis=1))
    np.testing.assert_allclose(told.mad_l1, by_mad, rtol=1e-6)
    spans = {c: SCHEMA[c].range[1] - SCHEMA[c].range[0] for c in numbers}
    cost = others @ [0.5, 1, 1] + sum(d / spans[c] * SCHEMA[c].cost for c, d in numbers.items())
    np.testing.assert_allclose(told.cost, cost, rtol=1e-6)
    near = []
    for i in kept:
        here = {c: after.loc[i, c] if c != "school" else order[after.loc[i, c]] for c in numbers}
        away = sum(((columns[c] - here[c]).abs() / ranges[c] for c in numbers), start=0.0)
        away = away + sum((FRAME[c] != after.loc[i, c]).astype(float) for c in others)
        near.append(np.mean(sorted(away / 9)[:K]))
    np.testing.assert_allclose(told.gower_knn, near, rtol=1e-5, atol=1e-7)


def test_without_data_a_schema_knows_the_ranges():
    told = evaluate(CREDIT.model, CREDIT.x, CREDIT.x_cf, schema=SCHEMA)
    assert {"gower", "cost", "n_violations"} <= set(told) and "mad_l1" not in told and "knn" not in told
    by_range = evaluate(CREDIT.model, CREDIT.x, CREDIT.x_cf, schema=SCHEMA, space="range", metrics="l1")
    by_input = evaluate(CREDIT.model, CREDIT.x, CREDIT.x_cf, schema=SCHEMA, metrics="l1")
    np.testing.assert_allclose(by_range, by_input, rtol=1e-6)  # encoded by range already
    raw = evaluate(CREDIT.model, CREDIT.x, CREDIT.x_cf, schema=SCHEMA, space="raw", metrics="linf")
    income = (SCHEMA.decode(CREDIT.x_cf[:5], FRAME[:5]).income - FRAME.income[:5]).abs()
    np.testing.assert_allclose(raw.linf[:5], np.maximum(income, raw.linf[:5]), rtol=1e-6)  # nothing else is as large


def test_broken_rules_are_counted():
    x = SCHEMA.encode(FRAME[:4])
    x_cf = x.clone()
    x_cf[1, 11] = 1 - x_cf[1, 11]  # sex is fixed
    x_cf[2, 0] -= 0.2  # age only grows, and has whole years
    x_cf[3, 6:10] = torch.tensor([0.5, 0.5, 0.0, 0.0]) if x[3, 6] else torch.tensor([0.5, 0.0, 0.0, 0.0]) + x[3, 6:10]
    told = evaluate(CREDIT.model, x, x_cf, schema=SCHEMA, metrics=["n_violations", "l0"])
    assert told.n_violations[0] == 0 and told.n_violations[1] == 1 and told.n_violations[2] >= 2
    assert told.n_violations[3] == 1 and told.l0.tolist() == [0, 1, 1, 1]


def test_costs_of_plain_columns():
    d = (PLAIN.x_cf - PLAIN.x).abs().numpy()
    d[d < 1e-5] = 0
    np.testing.assert_allclose(asked(PLAIN, costs=[1, 2, 3, 4, 5], metrics="cost").cost, d @ [1, 2, 3, 4, 5])


def test_groups_are_features():
    mask = torch.tensor([0, 0, 1, 1, 1])
    told = asked(PLAIN, feature_mask=mask, metrics=["l0", "share_changed", "n_redundant", "n_sufficient", "valid"])
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        row = Row(PLAIN, i)
        groups = {(0, 0, 1, 1, 1)[j] for j in row.changed}
        members = {0: {0, 1}, 1: {2, 3, 4}}
        assert told.l0[i] == len(groups) and told.share_changed[i] == len(groups) / 2
        back = sum(row.reaches(row.mixed(set(range(5)) - members[g])) for g in groups)
        assert np.array_equal(told.n_redundant[i], back if row.valid else np.nan, equal_nan=True)
        assert told.n_sufficient[i] == sum(row.reaches(row.mixed(members[g])) for g in groups)


# --- several of one example -----------------------------------------------------------------------------------


def test_several():
    draw = torch.Generator().manual_seed(3)
    x = PLAIN.x[:4]
    x_cf = x[:, None] + torch.randn(4, 3, 5, generator=draw, dtype=torch.float64) * 3
    x_cf[1, 0] = x_cf[1, 2] = PLAIN.data[PLAIN.model(PLAIN.data).argmax(1) != PLAIN.model(x).argmax(1)[1]][0]
    x_cf[2, :2] = torch.nan
    x_cf[3] = torch.nan
    names = ["returned", "valid", "unique", "n_redundant", "l1", "knn", "dpp", "pairwise", "count_diversity"]
    told = evaluate(PLAIN.model, x, x_cf, data=PLAIN.data, metrics=names)
    assert told.index.names == ["example", "counterfactual"] and told.returned.sum() == 7
    for i in range(2):
        z = x_cf[i].numpy()
        kernel = 1 / (1 + apart.squareform(apart.pdist(z, "cityblock")))
        np.testing.assert_allclose(told.dpp[i], np.linalg.det(kernel), atol=1e-12)
        np.testing.assert_allclose(told.pairwise[i], apart.pdist(z, "cityblock").mean())
        pairs = [(0, 1), (0, 2), (1, 2)]
        np.testing.assert_allclose(told.count_diversity[i], np.mean([(z[a] != z[b]).mean() for a, b in pairs]))
    assert told.loc[2:, ["dpp", "pairwise", "count_diversity"]].isna().all(axis=None)
    valid = told.valid.copy()
    valid[1, 2] = 0  # the same as another
    assert (told.unique == valid).all() and told.valid[1, 0] == told.valid[1, 2] == 1
    alone = evaluate(PLAIN.model, x, x_cf[:, 0], data=PLAIN.data, metrics=["valid", "n_redundant", "l1", "knn"])
    together = told.xs(0, level="counterfactual")[alone.columns]
    pd.testing.assert_frame_equal(alone, together, rtol=1e-9, check_names=False)


# --- noise, other inputs, the model's own idea ----------------------------------------------------------------


def line(weight, bias):
    """A linear model of two classes, whose second logit is w x + b and the first 0."""
    w = torch.tensor(weight, dtype=torch.float64)
    return lambda x: torch.stack([torch.zeros_like(x[:, 0]), x @ w + bias], 1)


def test_noise_on_a_linear_model_against_the_normal_distribution():
    model, x = line([1.0, -2.0], 0.5), torch.zeros(4, 2, dtype=torch.float64)  # all of class 1
    x_cf = torch.tensor([[-1.0, 0], [-1, 0.1], [-0.4, 0], [-3, 3]], dtype=torch.float64)
    sigma = torch.tensor([0.5, 0.1], dtype=torch.float64)
    draws = 500
    told = evaluate(
        model, x, x_cf, sigma=sigma, draws=draws, metrics=["invalidation", "invalidation_linear", "stability"]
    )
    spread = np.hypot(0.5, 0.2)
    logits = model(x_cf)[:, 1].numpy()
    exact = stats.norm.cdf(logits / spread)  # the margin is -logit
    np.testing.assert_allclose(told.invalidation_linear, exact, rtol=1e-8)
    assert (np.abs(told.invalidation - exact) <= 4 * np.sqrt(exact * (1 - exact) / draws) + 1e-12).all()
    for logit, r in zip(logits, told.stability, strict=True):
        m = expit(-logit)
        there = lambda e, logit=logit, m=m: (
            (expit(-(logit + e)) - abs(m - expit(-(logit + e)))) * stats.norm.pdf(e, 0, spread)
        )
        assert r == pytest.approx(quad(there, -8 * spread, 8 * spread, points=[0])[0], abs=0.02)


def test_weights_that_move_in_a_linear_model_against_the_triangular_distribution():
    model = nn.Linear(1, 1).double()
    model.load_state_dict({"weight": torch.tensor([[1.0]]), "bias": torch.tensor([0.0])})
    x = torch.full((6, 1), -1.0, dtype=torch.float64)
    x_cf = torch.tensor([[1.0], [1.0], [1.0], [-0.1], [9.0], [torch.nan]], dtype=torch.float64)
    told = evaluate(model, x, x_cf, delta=0.75, rate=0.998, metrics=["valid", "delta_valid", "delta_robust"])
    # at 1 the margin is 1 + 0.75 (u + v), with u and v uniform in [-1, 1]; at 9 it is 9 - 0.75 * 10 at least
    lost = (2 - 1 / 0.75) ** 2 / 8
    n = trials(0.99, 0.998)
    np.testing.assert_allclose(told.delta_valid[:3], 1 - lost, rtol=0, atol=4 * np.sqrt(lost * (1 - lost) / n))
    assert told.delta_valid[[4, 5]].tolist() == [1, 0] and told.delta_valid[:3].nunique() == 1  # of the same models
    assert 0 < told.delta_valid[3] < 0.5 and told.valid.tolist() == [1, 1, 1, 0, 1, 0]
    assert told.delta_robust.tolist() == [0, 0, 0, 0, 1, 0]
    still = evaluate(model, x, x_cf, delta=0, metrics=["valid", "delta_valid", "delta_robust"])
    assert (still.delta_valid == still.valid).all() and (still.delta_robust == still.valid).all()
    other = evaluate(model, x, x_cf, delta=0.75, rate=0.998, seed=1, metrics="delta_valid")
    assert (other.delta_valid != told.delta_valid).any()


@pytest.mark.parametrize(("confidence", "rate"), [(0.75, 0.5), (0.9, 0.1), (0.99, 0.99), (0.999, 0.995), (0.1, 0.2)])
def test_as_many_models_as_tell(confidence, rate):
    n = trials(confidence, rate)
    assert rate**n <= (1 - confidence) * (1 + 1e-12) and (n == 1 or rate ** (n - 1) > 1 - confidence)


def test_weights_that_several_layers_share_move_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.plus = nn.Linear(1, 1, bias=False).double()
            self.minus = nn.Linear(1, 1, bias=False).double()
            self.minus.weight = self.plus.weight

        def forward(self, x):
            return 1 + self.plus(x) - self.minus(x) - (x < 0) * 2

    x, x_cf = torch.full((1, 1), -5.0, dtype=torch.float64), torch.full((1, 1), 5.0, dtype=torch.float64)
    assert evaluate(Twice(), x, x_cf, delta=10.0, metrics="delta_robust").delta_robust.tolist() == [1]


def test_a_method_that_stretches():
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]

    def method(x):
        return 3 * x @ turn + 1

    case = SimpleNamespace(model=PLAIN.model, x=PLAIN.x, x_cf=method(PLAIN.x), data=None)
    told = asked(case, method=method, sigma=0.1, metrics=["lipschitz", "set_distance"])
    np.testing.assert_allclose(told.lipschitz, 3)
    assert told.set_distance.nunique() == 9 and (told.set_distance < 3 * 0.1 * 5).all()


def test_sets_of_counterfactuals_apart():
    x = torch.zeros(2, 1, dtype=torch.float64)
    before = torch.tensor([[[0.0], [4.0]], [[1.0], [torch.nan]]], dtype=torch.float64)
    after = torch.tensor([[[1.0], [1.5]], [[torch.nan], [torch.nan]]], dtype=torch.float64)
    told = evaluate(line([1.0], 0.5), x, before, method=lambda _: after, sigma=1.0, metrics="set_distance").set_distance
    assert told[0].tolist() == [((1 + 2.5) / 2 + (1 + 1.5) / 2) / 2] * 2 and told[1].isna().all()


def test_langevin_draws_from_the_model():
    centre, width = torch.tensor([0.4, -1.0]), torch.tensor([0.1, 0.4])

    def model(x):
        return torch.stack([torch.zeros(len(x)), -((x - centre) / width).square().sum(1) / 2], 1)

    from robustx.engine import Door, Output

    f = Door.open(torch.zeros(1, 2)).probe(model, Output(1))
    sampler = Langevin(count=600, keep=600, steps=200, step=0.0007)
    low, high = torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 1.0])
    z = sampler.draw(f, torch.zeros(600, dtype=torch.long), low, high, Noise(0, "test", [str(i) for i in range(600)]))
    torch.testing.assert_close(z.mean(0), centre, rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), width, rtol=0.15, atol=0)
    few = Langevin(count=600, keep=60, steps=200, step=0.0007)
    best = few.draw(f, torch.zeros(600, dtype=torch.long), low, high, Noise(0, "test", [str(i) for i in range(600)]))
    assert best.std(0).max() < 0.3 * width.max() and len(best) == 60


def test_what_the_model_takes_for_the_class_is_faithful():
    data = torch.tensor([[-4.0, -4.0], [4.0, 4.0]])

    def model(x):
        return torch.stack([-((x + 2) * 3).square().sum(1), -((x - 2) * 3).square().sum(1)], 1)

    x, x_cf = torch.full((3, 2), -2.0), torch.tensor([[2.0, 2.0], [0.5, 0.5], [3.5, 2.0]])
    told = evaluate(
        model, x, x_cf, data=data, metrics="unfaithfulness", sampler=Langevin(steps=200, step=0.0005)
    ).unfaithfulness
    assert told[0] < 0.4
    np.testing.assert_allclose(told, [told[0], 3, 1.5 + told[0] / 2], atol=0.15)


# --- pictures -------------------------------------------------------------------------------------------------


def test_pictures():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 9, 8, generator=draw)
    mask = torch.rand(4, 1, 9, 8, generator=draw) < torch.tensor([0.1, 0.2, 0.4, 0.0])[:, None, None, None]
    one = torch.arange(3)[:, None, None] == 1
    x_cf = torch.where(mask & one, 1 - x, x)  # one channel is enough
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 72, 4)).eval()
    told = evaluate(model, x, x_cf, metrics=["area", "components", "cout"])
    np.testing.assert_allclose(told.area, mask.double().mean((1, 2, 3)))
    assert told.components.tolist() == [ndimage.label(m[0], np.ones((3, 3)))[1] for m in mask.numpy()]
    assert told.components[3] == 0 and told.components[1] > 1
    scores = model(x_cf).detach()
    for i in range(4):
        own = int(model(x[i : i + 1]).argmax())
        target = int(scores[i].scatter(0, torch.tensor(own), -torch.inf).argmax())
        order = (x_cf - x)[i].abs().sum(0).flatten().argsort(descending=True, stable=True)
        curve = []
        for t in range(51):
            some = torch.zeros(72, dtype=torch.bool)
            some[order[: int(np.ceil(t * 72 / 50))]] = True
            curve.append(model(torch.where(some.reshape(9, 8), x_cf[i], x[i])[None]).softmax(1)[0].detach().numpy())
        way = np.trapezoid(np.array(curve), dx=1 / 50, axis=0)
        assert told.cout[i] == pytest.approx(way[target] - way[own], abs=1e-5)
    assert told.cout.min() >= -1 and told.cout.max() <= 1


# --- goals, forms and gaps ------------------------------------------------------------------------------------


def test_goals_without_classes():
    def model(x):
        return x.sum(1)

    goal = Between(low=3.0, high=6.0)
    told = asked(PLAIN, model, target=goal)
    sums = PLAIN.data.sum(1).numpy()
    some = PLAIN.data[torch.from_numpy((sums > 3) & (sums < 6))].numpy()
    for i in (0, 1, 2, 3, 5):
        z = PLAIN.x_cf[i].numpy()
        assert told.valid[i] == (3 < z.sum() < 6)
        assert told.knn[i] == pytest.approx(np.mean(sorted(apart.euclidean(z, s) for s in some)[:K]))
    lacking = {n for n, m in METRICS.items() if "classes" in m.needs}
    assert lacking and not lacking & set(told)
    each = Between(low=torch.linspace(-3, 5, 9, dtype=torch.float64), high=torch.linspace(2, 9, 9, dtype=torch.float64))
    told = asked(PLAIN, model, target=each, metrics=["knn", "valid"])
    for i in (0, 3, 8):
        some = PLAIN.data[torch.from_numpy((sums > each.low[i].item()) & (sums < each.high[i].item()))].numpy()
        z = PLAIN.x_cf[i].numpy()
        assert told.knn[i] == pytest.approx(np.mean(sorted(apart.euclidean(z, s) for s in some)[:K]))


def test_targets():
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    told = asked(PLAIN, target=y, metrics=["valid", "probability", "knn"])
    for i in (0, 1, 2, 3, 5):
        row = Row(PLAIN, i)
        assert told.valid[i] == (np.argmax(row(row.z)) == y[i])
        assert told.probability[i] == pytest.approx(softmax(row(row.z))[y[i]])
        assert told.knn[i] == pytest.approx(np.mean(row.nearest(row.data[row.answers == int(y[i])])))


def test_some_rows_of_a_larger_question():
    rows = torch.tensor([7, 0, 5, 2])
    some = SimpleNamespace(model=PLAIN.model, x=PLAIN.x[rows], x_cf=PLAIN.x_cf[rows], data=PLAIN.data)
    each = Between(torch.linspace(-3, 5, 9, dtype=torch.float64), torch.linspace(2, 9, 9, dtype=torch.float64), 1)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    for goal in (Leave(y), Reach(y, loss="ce"), Surely(y, least=0.4), Surely(y, least=0.6, leave=True), each):
        names = ["valid", "knn", "ynn", "connected", "n_redundant", "invalidation", "invalidation_linear"]
        names += [] if goal is each else ["probability", "stability", "unfaithfulness"]
        told, all_ = (
            asked(c, target=g, sigma=0.2, draws=9, metrics=names) for c, g in ((some, Whose(rows, goal)), (PLAIN, goal))
        )
        expected = all_.loc[rows.tolist()].reset_index(drop=True)
        pd.testing.assert_frame_equal(told, expected, check_names=False, check_index_type=False, rtol=1e-9)


def test_probabilities_and_changes():
    sure, any_ = (asked(PLAIN, min_prob=p, metrics=["valid", "probability", "margin"]) for p in (0.6, None))
    assert ((sure.probability > 0.6) == (sure.valid == 1)).all() and sure.valid.sum() < any_.valid.sum()
    second = asked(PLAIN, target="runner-up", metrics=["valid", "probability"])
    for i in (0, 1, 2, 3, 5):
        row = Row(PLAIN, i)
        runner = int(np.argsort(row(row.x))[-2])
        assert second.probability[i] == pytest.approx(softmax(row(row.z))[runner])
    rise = asked(PLAIN, lambda x: x.sum(1), target=Change(1.0), metrics=["valid", "margin"])
    np.testing.assert_allclose(rise.margin, (PLAIN.x_cf - PLAIN.x).sum(1) - 1)


def test_labels_count_where_there_are_some():
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(7))
    told, by_model = (asked(PLAIN, labels=w, metrics=["knn", "trust", "ynn"]) for w in (labels, None))
    for i in (0, 1, 5):
        row = Row(PLAIN, i)
        assert told.knn[i] == pytest.approx(np.mean(row.nearest(row.data[labels.numpy() == row.target])))
    assert (told.ynn.dropna() == by_model.ynn.dropna()).all() and not (
        told.trust.dropna() == by_model.trust.dropna()
    ).all()


def test_results_of_searches():
    reach = 0.6 * PLAIN.data.std(0)
    result = CounterfactualExplainer(PLAIN.model, bounds=(PLAIN.x - reach, PLAIN.x + reach)).generate(PLAIN.x)
    told = evaluate(PLAIN.model, PLAIN.x, result, metrics=["returned", "valid", "l0"])
    assert told.returned.tolist() == told.valid.tolist() == result.valid.double().tolist() and 0 < told.valid.sum() < 9
    assert told.l0[result.valid.numpy()].tolist() == result.n_changed[result.valid].tolist()


def test_results_measure_themselves():
    result = CounterfactualExplainer(CREDIT.model, SCHEMA).generate(CREDIT.x, min_prob=0.55, n=2)
    names = ["valid", "l0", "gower", "n_violations", "count_diversity", "knn"]
    told = result.evaluate(data=CREDIT.data, metrics=names)
    want = evaluate(CREDIT.model, CREDIT.x, result, min_prob=0.55, schema=SCHEMA, data=CREDIT.data, metrics=names)
    pd.testing.assert_frame_equal(told, want)
    assert told.valid.sum() > 7 and not told.n_violations.any() and told.count_diversity.max() > 0
    some = result.at([4, 1]).evaluate(data=CREDIT.data, metrics=names)
    assert np.array_equal(some, told.loc[[4, 1]], equal_nan=True)


def test_alternatives_are_further_counterfactuals():
    first, second = (
        SimpleNamespace(counterfactual=z, valid=v, alternatives=())
        for z, v in ((PLAIN.x_cf, PLAIN.x_cf.isfinite().all(1)), (PLAIN.x + 1, torch.arange(9) > 2))
    )
    first.alternatives = (second,)
    told = evaluate(PLAIN.model, PLAIN.x, first, metrics=["returned", "linf"])
    assert told.returned.unstack().sum().tolist() == [8, 6] and (told.linf.unstack()[1].dropna() - 1).abs().max() < 1e-9


def test_tables_in_their_own_units():
    after = SCHEMA.decode(CREDIT.x_cf[:5], FRAME[:5]).astype({"loan": float})
    after.loc[2, "income"] = np.nan
    read = evaluate(CREDIT.model, FRAME[:5], after, schema=SCHEMA, data=FRAME, metrics=["l0", "gower", "margin", "lof"])
    gap = CREDIT.x_cf[:5].clone()
    gap[2] = torch.nan
    told = evaluate(CREDIT.model, CREDIT.x[:5], gap, schema=SCHEMA, data=CREDIT.data, metrics=list(read))
    pd.testing.assert_frame_equal(read, told, rtol=1e-6)


def test_several_tensors():
    def model(a, b):
        return PLAIN.model(torch.cat([a, b[:, :, 0]], 1))

    def cut(t):
        return {"a": t[:, :2], "b": t[:, 2:, None]}

    def ordered(a, b):
        return model(a, b)

    want = asked(PLAIN, metrics=["valid", "l1", "n_redundant", "knn", "invalidation"], sigma=0.5)
    for given in (cut, lambda t: tuple(cut(t).values())):
        told = evaluate(
            ordered,
            given(PLAIN.x),
            given(PLAIN.x_cf),
            data=given(PLAIN.data),
            neighbours=K,
            sigma=0.5,
            metrics=list(want),
        )
        pd.testing.assert_frame_equal(told, want)


def test_numpy_and_densities():
    mixture = GaussianMixture(2, random_state=0, reg_covar=1e-2).fit(PLAIN.data.numpy())
    told = evaluate(PLAIN.model, PLAIN.x, PLAIN.x_cf.numpy(), density=mixture, metrics="log_density").log_density
    assert told[0] == pytest.approx(mixture.score_samples(PLAIN.x_cf[:1].numpy())[0]) and np.isnan(told[4])
    told = evaluate(PLAIN.model, PLAIN.x, PLAIN.x_cf, density=lambda z: -z.square().sum(1)).log_density
    assert told[8] == pytest.approx(-PLAIN.x_cf[8].square().sum().item())


@pytest.mark.parametrize("x", [PLAIN.x[:0], PLAIN.x[:1], PLAIN.x], ids=["no example", "one", "none returned"])
def test_nothing_returned(x):
    told = evaluate(
        PLAIN.model, x, torch.full_like(x, torch.nan), data=PLAIN.data, metrics=["valid", "l1", "knn", "lof"]
    )
    assert len(told) == len(x) and not told.valid.any() and told[["l1", "knn", "lof"]].isna().all(axis=None)


def test_one_row_of_data():
    told = evaluate(
        PLAIN.model, PLAIN.x[:2], PLAIN.x_cf[:2], data=PLAIN.data[:1], metrics=["lof", "knn_ratio", "mad_l1", "gower"]
    )
    assert told[["lof", "knn_ratio"]].isna().all(axis=None) and (told.mad_l1 > 0).all() and (told.gower > 0).all()


# --- invariances ----------------------------------------------------------------------------------------------

EVERYTHING = {"autoencoders": AUTO, "ensemble": OTHERS, "sigma": 0.3, "draws": 20, "delta": 0.1, "rate": 0.8}


def test_order_and_batches_do_not_matter():
    told = asked(PLAIN, **EVERYTHING)
    order = [3, 8, 0, 4]
    some = SimpleNamespace(model=PLAIN.model, x=PLAIN.x[order], x_cf=PLAIN.x_cf[order], data=PLAIN.data)
    pd.testing.assert_frame_equal(
        asked(some, batch_size=3, **EVERYTHING),
        told.loc[order].reset_index(drop=True),
        rtol=1e-9,
        check_names=False,
        check_index_type=False,
    )


def test_order_of_columns_does_not_matter():
    order = torch.tensor([2, 4, 0, 1, 3])
    back = order.argsort()
    turned = SimpleNamespace(
        model=lambda x: PLAIN.model(x[:, back]),
        x=PLAIN.x[:, order],
        x_cf=PLAIN.x_cf[:, order],
        data=PLAIN.data[:, order],
    )
    drawn = {"isolation", "unfaithfulness"}  # by column
    told = asked(PLAIN).drop(columns=drawn)
    pd.testing.assert_frame_equal(asked(turned)[told.columns], told, rtol=1e-8)


def test_units_do_not_matter_where_that_is_claimed():
    unit = torch.tensor([2.0, 0.01, 5.0, 3.0, 1.0], dtype=torch.float64)
    other = SimpleNamespace(
        model=lambda x: PLAIN.model(x / unit), x=PLAIN.x * unit, x_cf=PLAIN.x_cf * unit, data=PLAIN.data * unit
    )
    for space in ("range", "std"):
        names = ["valid", "n_redundant", "gower", "heom", "percentile_shift"]
        pd.testing.assert_frame_equal(
            *(asked(c, space=space, metrics=names, tolerance=1e-9) for c in (other, PLAIN)), rtol=1e-8
        )
    # nobody knows the unit of a column that never varies
    vary = [0, 1, 2, 4]
    names = ["l1", "l2", "linf", "knn", "lof", "log_density"]
    for space in ("range", "std"):
        told = []
        for u in (torch.ones(4, dtype=torch.float64), unit[vary]):
            x, x_cf, data = (t[:, vary] * u for t in (PLAIN.x, PLAIN.x_cf, PLAIN.data))
            model = lambda x, u=u: (x / u)[:, :2]  # the same in other units
            told.append(evaluate(model, x, x_cf, data=data, target=0, space=space, tolerance=1e-9, metrics=names))
        pd.testing.assert_frame_equal(*told, rtol=1e-8)


def test_nothing_else_is_touched():
    x_cf, state, drawn = PLAIN.x_cf.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    model = nn.Sequential(PLAIN.model, nn.BatchNorm1d(3).double()).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (asked(PLAIN, model, **EVERYTHING) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == drawn).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(x_cf.nan_to_num(), PLAIN.x_cf.nan_to_num()) and all(p.grad is None for p in model.parameters())


# --- what is not there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.needs], ids=lambda m: m.name)
def test_what_is_needed_is_asked_for(metric: Metric):
    def black(z):
        return (z > 0).sum(1) * 1.0  # no classes, no gradients

    goal = {} if set(metric.needs) <= {"gradients"} else {"target": Between(low=2.5)}
    with pytest.raises(ValueError, match=f"metric '{metric.name}' needs {re.escape(NEEDS[metric.needs[0]][1])}"):
        evaluate(BlackBox(lambda z: black(z)), PLAIN.x, PLAIN.x_cf, metrics=metric.name, **goal)


def test_black_boxes_have_all_that_needs_no_gradients():
    box = BlackBox(lambda z: PLAIN.model(torch.from_numpy(z)).detach().numpy())
    told, full = asked(PLAIN, box, **EVERYTHING), asked(PLAIN, **EVERYTHING)
    assert set(full) - set(told) == {"unfaithfulness", "invalidation_linear", "delta_valid", "delta_robust"}
    pd.testing.assert_frame_equal(told, full[told.columns])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": "l7"}, "no metric is called 'l7'; known are 'all' and returned"),
        ({"space": "miles"}, "space must be one of 'input', 'raw', 'range', 'std', got 'miles'"),
        ({"space": "raw"}, "space 'raw' needs a schema"),
        ({"space": "std", "data": None}, "space 'std' needs data"),
        ({"labels": [0, 1]}, "one class for each row of data, got 2 for 60 rows of data"),
        ({"labels": torch.zeros(60)}, "labels must hold classes as integers, got torch.float32"),
        ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
        ({"costs": [1, 2]}, "costs must be one for each of the 5 columns, got 2"),
        ({"delta": -1}, "delta must be at least 0, got -1"),
        ({"rate": 1}, "rate must lie between 0 and 1, and be neither, got 1"),
        ({"confidence": 0.0}, "confidence must lie between 0 and 1, and be neither, got 0.0"),
        ({"sigma": -1}, "sigma must be above 0, got -1"),
        ({"sigma": torch.ones(3)}, "sigma must be a number or of an example's shape"),
        ({"data": PLAIN.data[:, :2]}, "data of shape .60, 2. do not fit inputs of shape .9, 5."),
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1, got 0"),
        ({"schema": SCHEMA}, "schema is for encoded rows .B, 12."),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_mistakes_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        asked(PLAIN, **options)


@pytest.mark.parametrize("shape", [(9, 4), (8, 5), (9, 2, 4)], ids=["narrow", "few", "several narrow"])
def test_counterfactuals_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="x_cf of shape .* does not fit inputs"):
        evaluate(PLAIN.model, PLAIN.x, torch.zeros(shape))


def test_the_page_lists_all():
    page = (Path(__file__).parents[2] / "docs/counterfactual_metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (more|less|-) \|.*\|$", page, re.MULTILINE))
    assert rows == {name: m.better.replace("neither", "-") for name, m in METRICS.items()}

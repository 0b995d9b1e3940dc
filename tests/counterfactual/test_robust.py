"""Counterfactuals that survive other models and noise, on linear models whose answer is known."""

from statistics import NormalDist

import pytest
import torch
from torch import nn

from robustx.counterfactual import CounterfactualExplainer, Ensemble, Feature, FeatureSchema, Noisy
from robustx.perturb import Steady, Until

X = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
UP = Until(lambda out: out)


def line(*weights):
    w = torch.tensor(weights, dtype=torch.float64)
    return lambda x: x @ w - 1.3


MODELS = [line(1.0, 0.2, 0.1, 0.0), line(0.1, 1.0, 0.0, 0.2), line(0.3, 0.3, 0.3, 0.3)]


def test_all_models_of_an_ensemble_are_convinced_and_no_feature_is_changed_in_vain():
    model, *others = MODELS
    box = (0.0, 2.0)
    alone = CounterfactualExplainer(model, bounds=box).generate(X, UP)
    result = CounterfactualExplainer(model, bounds=box, robust=Ensemble(others)).generate(X, UP)
    assert result.valid.all()
    assert result.verify().all()
    for m in MODELS:
        assert (m(result.counterfactual) > 0).all()
    assert result.robustness(others).tolist() == [1.0] * 5
    assert (alone.robustness(MODELS) < 1).any()
    assert (result.n_changed >= alone.n_changed).all()
    for i in range(5):
        for j in result.changed[i].nonzero().flatten():
            z = result.counterfactual[i].clone()
            z[j] = X[i, j]
            assert min(float(m(z)) for m in MODELS) < 1e-3


def test_the_least_change_for_an_ensemble_is_that_of_a_linear_programme():
    linprog = pytest.importorskip("scipy.optimize").linprog
    result = CounterfactualExplainer(
        MODELS[0], bounds=(0.0, 2.0), robust=Ensemble(MODELS[1:]), distance="l1", scale=1.0, by=1e-6
    ).generate(X, UP)
    eye = torch.eye(4, dtype=torch.float64)
    w = torch.stack([m(eye) + 1.3 for m in MODELS])
    for x, cost in zip(X, result.cost, strict=True):
        ends = [*((0, 2 - v) for v in x.tolist()), *((0, v) for v in x.tolist())]
        short = (w @ x - 1.3 - 1e-6).numpy()
        best = linprog([1] * 8, A_ub=torch.cat([-w, w], 1).numpy(), b_ub=short, bounds=ends)
        assert best.fun * (1 - 1e-6) <= cost <= best.fun * 1.25  # a search, not a solver


def test_noise_asks_for_the_margin_that_its_share_takes():
    model, sigma, draws = MODELS[0], 0.2, 100
    result = CounterfactualExplainer(
        model, bounds=(0.0, 3.0), robust=Noisy(sigma, share=0.9, draws=draws), distance="l1", scale=1.0
    ).generate(X[:3], UP)
    assert result.valid.all()
    lost = model(sigma * Steady(UP, torch.ones(1, 4, dtype=torch.float64), draws=draws).moves) + 1.3
    want = -lost.sort().values[draws - 90]  # ninety of them are no worse
    assert (result.before < want).all()
    torch.testing.assert_close(result.margin, want.expand(3), atol=2e-3, rtol=0)
    deviation = sigma * float((model(torch.eye(4, dtype=torch.float64)) + 1.3).norm())
    told = torch.tensor([NormalDist(0, deviation).cdf(m) for m in result.margin.tolist()], dtype=torch.float64)
    torch.testing.assert_close(result.robustness(sigma=sigma, draws=1000), told, atol=0.04, rtol=0)


def test_noise_leaves_categories_alone_and_robustness_says_what_of():
    schema = FeatureSchema([Feature("a", "continuous", range=(0, 3)), Feature("d", "categorical", ("p", "q"))])
    model = lambda z: z[:, 0] + z[:, 2] - 1.5
    x = {"a": [0.2], "d": ["p"]}
    result = CounterfactualExplainer(model, schema, robust=Noisy(0.05, draws=10)).generate(x, UP)
    assert result.valid.all()
    assert result.robustness(sigma=1e-9).tolist() == [1.0]
    with pytest.raises(ValueError, match="against something"):
        result.robustness()
    other = lambda z: z[:, 0] * 0 - 1
    assert result.robustness([model, other]).tolist() == [0.5]
    assert result.robustness([other], sigma=0.1, draws=3).tolist() == [0.0]


def test_models_are_left_as_they_were_and_kept_in_mind_by_verify():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double().eval() for _ in range(3)
    ]
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in nets]
    explainer = CounterfactualExplainer(nets[0], bounds=(-3, 3), robust=[Ensemble(nets[1:]), Noisy(0.01, draws=4)])
    result = explainer.generate(X, torch.ones(5, dtype=torch.long))
    assert torch.equal(result.verify(), result.valid)
    for net, kept in zip(nets, before, strict=True):
        assert all(torch.equal(kept[k], v) for k, v in net.state_dict().items())
    done = result.valid
    assert all((n(result.counterfactual[done]).argmax(1) == 1).all() for n in nets)


def test_rows_alone_are_as_in_the_batch():
    explainer = CounterfactualExplainer(
        MODELS[0], bounds=(0.0, 2.0), robust=[Ensemble(MODELS[1:]), Noisy(0.05, draws=5)]
    )
    whole = explainer.generate(X, UP)
    alone = explainer.generate(X[2:3], UP)
    torch.testing.assert_close(alone.counterfactual[0], whole.counterfactual[2])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Ensemble([]), "needs models"),
        (lambda: Ensemble([1]), "each of them callable"),
        (lambda: Noisy(0.1, share=0), "share must lie"),
        (lambda: Noisy(0.1, draws=0), "draws"),
        (lambda: CounterfactualExplainer(MODELS[0], bounds=(0, 1), robust=0.5), "Noisy"),
        (lambda: CounterfactualExplainer(MODELS[0], bounds=(0, 2), robust=Noisy(-1.0)).generate(X, UP), "negative"),
    ],
    ids=["none", "no model", "share", "draws", "number", "sigma"],
)
def test_bad_demands_are_named(make, told):
    with pytest.raises((ValueError, TypeError), match=told):
        make()

"""Plausibility as a constraint: limits against their definitions, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from robustx import zoo
from robustx.counterfactual import (
    LOF,
    CounterfactualExplainer,
    Feature,
    FeatureSchema,
    Neighbours,
    Prototype,
    Quantiles,
)
from robustx.counterfactual.known import Known
from robustx.counterfactual.plausible import Crowd
from robustx.engine import Probe
from robustx.engine.scores import Everything
from robustx.perturb import Reach

DRAW = torch.Generator().manual_seed(0)
UP = torch.randn(40, 3, dtype=torch.float64, generator=DRAW) * 0.5 + 1  # the class that is to be reached
DOWN = torch.randn(30, 3, dtype=torch.float64, generator=DRAW) * 0.5 - 1
DATA = torch.cat([UP, DOWN])
HOME = DOWN[:4]


def side(x):
    """Class 1 where the sum is above 0."""
    return torch.stack([-x.sum(1), x.sum(1)], 1)


GOAL = Reach(torch.ones(4, dtype=torch.long))
LIMITS = [Quantiles(0.1, 0.9), Neighbours(3, 0.9), LOF(1.3, 7), Prototype()]


def crowd(schema=None):
    f = Probe(side, (HOME,), GOAL)
    return Crowd.of(Known(Probe(side, (DATA,), Everything())).to(f), f, schema)


def members():
    return DATA[side(DATA).argmax(1) == 1]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda v: type(v).__name__)
def test_all_that_is_found_keeps_to_the_limit_and_a_row_alone_does_as_in_a_batch(limit):
    explainer = CounterfactualExplainer(side, bounds=(-4, 4), plausible=limit).fit(DATA)
    result = explainer.generate(HOME)
    assert result.valid.all()
    assert torch.equal(result.verify(), result.valid)
    assert (limit.limit(crowd())((result.counterfactual,), torch.arange(4)) >= 0).all()
    free = CounterfactualExplainer(side, bounds=(-4, 4)).generate(HOME)
    assert (limit.limit(crowd())((free.counterfactual,), torch.arange(4)) < 0).any()  # it does not hold by itself
    assert (result.n_changed >= free.n_changed).all()
    alone = explainer.generate(HOME[2:3])
    torch.testing.assert_close(alone.counterfactual[0], result.counterfactual[2])


def test_changed_values_lie_between_the_quantiles_of_what_reaches_the_goal():
    result = CounterfactualExplainer(side, bounds=(-4, 4), plausible=Quantiles(0.25, 0.75)).fit(DATA).generate(HOME)
    low, high = np.quantile(members(), 0.25, axis=0), np.quantile(members(), 0.75, axis=0)
    z = result.counterfactual.numpy()
    inside = (z >= low - 1e-12) & (z <= high + 1e-12)
    assert (inside | ~result.changed.numpy()).all()
    assert torch.equal(result.counterfactual[~result.changed], HOME[~result.changed])
    # the sum has to rise above 0: the fewest features that can do it, each as high as it may be
    gain = (torch.from_numpy(high) - HOME).sort(1, descending=True).values.cumsum(1)
    fewest = (gain <= -HOME.sum(1, keepdim=True)).sum(1) + 1
    assert torch.equal(result.n_changed, fewest)
    torch.testing.assert_close(result.cost, ((result.counterfactual - HOME).abs() / 8).sum(1))


@pytest.mark.parametrize("limit", LIMITS, ids=lambda v: type(v).__name__)
def test_where_a_search_finds_nothing_known_examples_are_taken_over_and_pruned(limit):
    nothing = CounterfactualExplainer(side, bounds=(-4, 4), plausible=limit, strategy=lambda task: None).fit(DATA)
    result = nothing.generate(HOME)
    assert result.valid.all()
    assert (limit.limit(crowd())((result.counterfactual,), torch.arange(4)) >= 0).all()
    for i, j in result.changed.nonzero().tolist():  # without any one of the changes it is not plausible, or not valid
        z = result.counterfactual[i : i + 1].clone()
        z[0, j] = HOME[i, j]
        assert min(float(z.sum()), float(limit.limit(crowd())((z,), torch.tensor([i])))) < 1e-3


def test_a_limit_may_leave_nothing_and_that_is_not_found():
    far = DATA + 100
    result = CounterfactualExplainer(side, bounds=(-4, 4), plausible=Quantiles()).fit(far).generate(HOME)
    assert not result.valid.any()
    assert torch.equal(result.counterfactual, HOME)
    for limit in LIMITS:  # nothing that is known reaches the goal
        nothing = CounterfactualExplainer(side, bounds=(-4, 4), plausible=limit).fit(DOWN[DOWN.sum(1) < 0])
        assert set(nothing.generate(HOME).status) <= {"not found", "infeasible"}


def test_the_local_outlier_factor_is_scikit_learns():
    from sklearn.neighbors import LocalOutlierFactor

    told, unit = members().numpy(), DATA.std(0, correction=0).numpy()
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    want = -LocalOutlierFactor(7, novelty=True).fit(told / unit).score_samples(z.numpy() / unit)
    got = LOF(k=7).factors(crowd())((z,), torch.arange(4))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_neighbours_are_no_farther_than_the_known_ones_are_from_one_another():
    from sklearn.neighbors import NearestNeighbors

    told, unit = members().numpy(), DATA.std(0, correction=0).numpy()
    near = NearestNeighbors(n_neighbors=3).fit(told / unit)
    most = np.quantile(near.kneighbors()[0].mean(1), 0.9)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    want = 1 - near.kneighbors(z.numpy() / unit)[0].mean(1) / most
    np.testing.assert_allclose(Neighbours(3, 0.9).limit(crowd())((z,), torch.arange(4)), want, rtol=1e-9)


def test_prototypes_cut_space_in_two():
    up, down, unit = members().mean(0), DATA[side(DATA).argmax(1) == 0].mean(0), DATA.std(0, correction=0)
    limit = Prototype().limit(crowd())
    torch.testing.assert_close(
        limit((torch.stack([up, down, (up + down) / 2]),), torch.arange(3)), torch.tensor([1.0, -1, 0]).double()
    )
    result = (
        CounterfactualExplainer(side, bounds=(-4, 4), plausible=Prototype(), distance="l2", scale=1.0)
        .fit(DATA)
        .generate(HOME)
    )
    way = (up - down) / unit.square()
    short = ((up + down) / 2 - HOME) @ way  # how far each is from the plane between them
    least = short / way.norm()
    other = -HOME.sum(1) / 3**0.5
    assert (result.cost >= torch.maximum(least, other).clamp(min=0) - 1e-6).all()
    assert (result.cost <= 1.1 * torch.maximum(least, other) + 0.05).all()


def test_functions_of_the_inputs_are_limits_too_and_several_hold_at_once():
    inside = lambda x: 1.2 - x.abs().amax(1)
    result = CounterfactualExplainer(side, bounds=(-4, 4), plausible=[inside, lambda x: x[:, 0] - x[:, 1]]).generate(
        HOME
    )
    z = result.counterfactual[result.valid]
    assert len(z)
    assert (z.abs() <= 1.2).all()
    assert (z[:, 0] >= z[:, 1]).all()


def test_categories_must_occur_and_tables_keep_to_their_rules():
    schema = FeatureSchema([Feature("a", "integer", range=(0, 20)), Feature("d", "categorical", ("p", "q", "r"))])
    rows = {"a": [1, 2, 3, 9, 10, 11, 12, 13], "d": ["p", "p", "q", "p", "q", "p", "q", "q"]}
    model = lambda z: z[:, 0] / 10 + 0.7 * z[:, 2] + 0.9 * z[:, 3] - 0.85  # "r" alone would do, but nobody has it
    explainer = CounterfactualExplainer(model, schema, plausible=Quantiles(0.0, 1.0)).fit(rows)
    result = explainer.generate({"a": [3], "d": ["p"]}, torch.tensor([1]))
    assert result.valid.all()
    table = schema.decode(result.counterfactual)
    assert table["d"][0] != "r"
    free = CounterfactualExplainer(model, schema).generate({"a": [3], "d": ["p"]}, torch.tensor([1]), immutable="a")
    assert schema.decode(free.counterfactual)["d"][0] == "r"


def test_minimal_changes_are_less_plausible_and_limits_mend_that():
    from sklearn.neighbors import LocalOutlierFactor

    model, data = zoo.load("breast-cancer")
    x = data.x[:6]
    usual = LocalOutlierFactor(20, novelty=True).fit(data.x.numpy())
    factor = lambda r: -usual.score_samples(r.counterfactual[r.valid].numpy()).mean()
    free = CounterfactualExplainer(model, bounds=(0, 1)).generate(x)
    held = CounterfactualExplainer(model, bounds=(0, 1), plausible=Quantiles(0.25, 0.75)).fit(data.x).generate(x)
    assert held.valid.all()
    assert factor(held) < factor(free)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Quantiles(0.5, 0.5), "low < high"),
        (lambda: Neighbours(0), "k must"),
        (lambda: Neighbours(quantile=2), "quantile must"),
        (lambda: LOF(0), "most must"),
        (lambda: CounterfactualExplainer(side, bounds=(-4, 4), plausible=3), "plausible must"),
        (lambda: CounterfactualExplainer(side, bounds=(-4, 4), plausible=LOF()).generate(HOME), "fit\\(X\\) first"),
    ],
    ids=["quantiles", "k", "share", "factor", "number", "nothing known"],
)
def test_bad_limits_are_named(make, told):
    with pytest.raises((ValueError, TypeError), match=told):
        make()


def test_the_explainer_is_cloned_with_its_limits():
    from sklearn.base import clone

    model = nn.Linear(3, 2)
    explainer = CounterfactualExplainer(model, bounds=(-1, 1), plausible=[Quantiles(), LOF()])
    other = clone(explainer)
    assert other.plausible == [Quantiles(), LOF()]
    assert other.get_params().keys() == explainer.get_params().keys()

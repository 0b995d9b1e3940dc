"""Necessity and sufficiency: against all sets of features of a linear model, in a box and by hand."""

from itertools import combinations

import pytest
import torch

from robustx.counterfactual import CounterfactualExplainer, Feature, FeatureSchema, necessity, sufficiency

W, LIMIT = torch.tensor([1.0, -2.0, 4.0, 0.5], dtype=torch.float64), 2.2
X = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 1], [0, 0.5, 0, 1], [0.2, 1, 0.4, 0]], dtype=torch.float64)
EVERY = [list(s) for size in range(5) for s in combinations(range(4), size)]


def model(x):
    return x @ W - LIMIT


def within_reach(which):
    """Whether the best corner of the box gets there, if only these elements may go to it [B]."""
    best = X.clone()
    best[:, which] = (W[which] > 0).double()
    return (model(best) > 0).double()


@pytest.mark.parametrize("features", EVERY, ids=lambda s: "".join(map(str, s)) or "none")
def test_against_the_best_corner(features):
    assert (model(X) < 0).all()
    explainer = CounterfactualExplainer(model, bounds=(0, 1))
    others = [i for i in range(4) if i not in features]
    assert necessity(explainer, X, features).tolist() == within_reach(features).tolist()
    left = within_reach(range(4)) - within_reach(others)
    assert sufficiency(explainer, X, features).tolist() == left.tolist()


def test_what_is_immutable_stays_so():
    explainer, names = CounterfactualExplainer(model, bounds=(0, 1)), ["a", "b", "c", "d"]
    assert necessity(explainer, X[:1], ["a", "c"], names=names).tolist() == [1]
    assert necessity(explainer, X[:1], ["a", "c"], names=names, immutable="c").tolist() == [0]
    assert sufficiency(explainer, X[:1], "a", names=names, immutable=2).tolist() == [0]  # nothing is found at all


def test_of_several_for_each_example():
    explainer = CounterfactualExplainer(lambda x: x.sum(1) - 0.9, bounds=(0, 1))
    x = torch.zeros(1, 3)
    assert necessity(explainer, x, [0, 1], n=4).tolist() == [2 / 4]  # each of them alone is enough
    assert sufficiency(explainer, x, [0, 1], n=3).tolist() == [3 / 3 - 1 / 3]


def test_features_are_known_by_their_ids_and_names():
    mask, names = torch.tensor([7, 7, 3, 9]), ["second", "first", "third"]  # in the order of their ids
    explainer = CounterfactualExplainer(model, bounds=(0, 1))
    assert necessity(explainer, X[:1], "feature 3", feature_mask=mask).tolist() == [1]
    for features in (3, "second", ["second"], [9, "second"]):
        assert necessity(explainer, X[:1], features, feature_mask=mask, names=names).tolist() == [1]
    assert necessity(explainer, X[:1], [7, "third"], feature_mask=mask, names=names).tolist() == [0]
    with pytest.raises(ValueError, match="features names 'fourth', which is no feature"):
        necessity(explainer, X[:1], "fourth", feature_mask=mask, names=names)


def test_several_inputs():
    explainer = CounterfactualExplainer(lambda a, b: model(torch.cat([a, b], 1)), bounds=(0, 1))
    parts = X[:, :2], X[:, 2:]
    assert necessity(explainer, parts, [2]).tolist() == within_reach([2]).tolist()


def test_tables():
    schema = FeatureSchema([Feature("age", "integer", range=(18, 99)), Feature("job", "categorical", ("a", "b", "c"))])
    table = {"age": [20, 30], "job": ["a", "b"]}
    explainer = CounterfactualExplainer(lambda x: x[:, 3] - 0.5, schema)  # whose job is c
    assert necessity(explainer, table, "job").tolist() == [1, 1] == sufficiency(explainer, table, "job").tolist()
    assert necessity(explainer, table, "age").tolist() == [0, 0] == sufficiency(explainer, table, "age").tolist()

"""Models that mislead a search: sets that work while larger ones do not, no gradients, thresholds; against all sets."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch

from robustx.counterfactual import CounterfactualExplainer, FeatureSchema
from robustx.engine import BlackBox

CORNERS = torch.tensor(list(product((0.0, 1.0), repeat=4)))  # all examples of four switches
REACHED = {  # the switches with which the answer is yes
    "one, or three of them": [(1, 0, 0, 0), (1, 1, 1, 0)],
    "xor": [b for b in product((0, 1), repeat=4) if b[0] != b[1]],
    "parity": [b for b in product((0, 1), repeat=4) if sum(b) % 2],
    "these and no others": [(1, 0, 1, 1)],
    "two of four": [b for b in product((0, 1), repeat=4) if sum(b) == 2],
    "all or none": [(0, 0, 0, 0), (1, 1, 1, 1)],
}


def switched(reached):
    """A model that is asked for switches above one half, and has no gradient."""
    table = torch.tensor(reached)

    def model(z):
        yes = ((z > 0.5).long()[:, None] == table).all(2).any(1)
        return torch.stack([torch.full_like(z[:, 0], 0.5), yes.to(z)], 1)

    return model


def in_a_box(model):
    return CounterfactualExplainer(model, bounds=(0, 1)), CORNERS


def by_reference(model):
    return CounterfactualExplainer(model, reference=1 - CORNERS), CORNERS


def of_a_list(model):
    return CounterfactualExplainer(model, values=[0.0, 0.5, 1.0]), CORNERS


def in_a_table(model):
    schema = FeatureSchema.from_dataframe({n: ["no", "yes"] for n in "abcd"})
    rows = {n: [("no", "yes")[int(v)] for v in column] for n, column in zip("abcd", CORNERS.T, strict=True)}
    return CounterfactualExplainer(model, schema), rows


@pytest.mark.parametrize("reached", REACHED.values(), ids=REACHED.keys())
@pytest.mark.parametrize("domain", [in_a_box, by_reference, of_a_list, in_a_table])
def test_switches_are_as_few_as_there_can_be(domain, reached):
    explainer, x = domain(switched(reached))
    result = explainer.generate(x, 1)
    away = (CORNERS[:, None] != torch.tensor(reached)).sum(2)
    assert result.n_changed.tolist() == away.amin(1).tolist()
    assert torch.equal(result.verify(), torch.ones(16, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["steep", "saturated"])
def test_probabilities_without_a_gradient(scale, dtype):
    def model(z):
        lead = scale * (z[:, 0] * z[:, 1] - 0.5)
        return torch.softmax(torch.stack([-lead, lead], 1).to(dtype), 1)

    x = torch.tensor([[0.0, 0.0, 0.5], [0.2, 0.9, 0.1], [0.6, 0.6, 0.0]])
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(x)
    assert result.n_changed.tolist() == [2, 1, 1]
    cost = [2 * 0.5**0.5, 0.5 / 0.9 - 0.2, 0.5 / 0.6 - 0.6]
    torch.testing.assert_close(result.cost, torch.tensor(cost), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["tree", "forest", "boosted"])
def test_trees_are_as_good_as_all_their_cells(kind):
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    make = {
        "tree": DecisionTreeClassifier(max_depth=5, random_state=0),
        "forest": RandomForestClassifier(6, max_depth=4, random_state=0),
        "boosted": GradientBoostingClassifier(n_estimators=8, max_depth=2, random_state=0),
    }
    data = np.random.default_rng(0).random((300, 4)).astype(np.float32)
    a, b, c, d = data.T
    forest = make[kind].fit(data, ((a > 0.6) & (b < 0.4)) | (c + d > 1.5))
    x = data[:10]
    trees = np.ravel(getattr(forest, "estimators_", [forest]))
    cells = []
    for j in range(4):
        ends = sorted({0.0, 1.0, *(t for e in trees for t in e.tree_.threshold[e.tree_.feature == j])})
        cells.append([(low + high) / 2 for low, high in pairwise(ends)])
    fewest = []
    for row in x:
        own = forest.predict_proba(row[None])[0].argmax()
        for which in (w for k in range(1, 5) for w in combinations(range(4), k)):
            every = list(product(*(cells[j] if j in which else row[j : j + 1] for j in range(4))))
            if forest.predict_proba(every)[:, own].min() < 0.5 - 1e-4:  # a tie is no other answer
                fewest.append(len(which))
                break
    explainer = CounterfactualExplainer(BlackBox(forest.predict_proba), bounds=(0, 1)).fit(torch.from_numpy(data[10:]))
    result = explainer.generate(torch.from_numpy(x))
    assert result.n_changed.tolist() == fewest


def test_a_hard_threshold_is_crossed_and_hardly_more():
    w = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model = lambda z: torch.stack([torch.full_like(z[:, 0], 0.5), (z @ w > 0.55).to(z)], 1)
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.3], [0.9, 0.1, 0.4, 0.4]])
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(x, 1)
    short = 0.55 - x @ w
    gains = ((1 - x) * w).sort(1, descending=True).values.cumsum(1)
    assert result.n_changed.tolist() == ((gains <= short[:, None]).sum(1) + 1).tolist()
    assert (result.counterfactual @ w).max() < 0.55 + 2e-3

"""Features that take listed values, against all combinations of them."""

from itertools import product

import pytest
import torch
from torch import nn

from robustx.counterfactual import CounterfactualExplainer


def scores(seed, d, k=3):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, k)).double().requires_grad_(False)
    usual = net(torch.rand(99, d, dtype=torch.float64)).mean(0)  # no class wins everywhere
    return lambda z: net(z) - usual


def every_choice(x, options):
    """All points in which each element is its own or one of the options [n, d], and how many differ [n]."""
    points = torch.tensor(list(product(*[[v, *options] for v in x.tolist()])), dtype=x.dtype)
    return points, (points != x).sum(1)


@pytest.mark.parametrize("seed", range(3))
def test_as_few_as_any_combination_of_listed_numbers(seed):
    model, options = scores(seed, 5), [0.0, 0.5, 1.0]
    x = torch.rand(12, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    result = CounterfactualExplainer(model, values=options, by=1e-9).generate(x)
    fewest = []
    for row, own in zip(x, y, strict=True):
        points, count = every_choice(row, options)
        good = model(points).argmax(1) != own
        fewest.append(int(count[good].min()) if good.any() else -1)
    fewest = torch.tensor(fewest)
    assert torch.equal(result.valid, fewest >= 0)
    assert (fewest > 0).any()
    assert (result.n_changed == fewest)[result.valid].double().mean() >= 0.9
    assert (result.n_changed >= fewest)[result.valid].all()
    listed = (result.counterfactual[..., None] == torch.tensor(options, dtype=torch.float64)).any(2)
    assert (listed | (result.counterfactual == x)).all()
    assert torch.equal(result.changed, result.counterfactual != x)


def test_the_cheapest_of_single_changes():
    """With one feature to change, the alternative that moves least is taken."""
    model = lambda z: torch.stack([torch.full_like(z[:, 0], 0.4), z.amax(1)], 1)
    x = torch.tensor([[0.1, 0.3, 0.2]])
    result = CounterfactualExplainer(model, values=[0.0, 0.5, 0.9]).generate(x)
    assert torch.equal(result.counterfactual, torch.tensor([[0.1, 0.5, 0.2]]))
    assert result.cost.tolist() == pytest.approx([0.2])


def test_tokens_and_alternatives_of_an_examples_shape():
    torch.manual_seed(1)
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    tokens = torch.randint(1, 9, (6, 5))
    result = CounterfactualExplainer(words, values=[0, 3, 5]).generate(tokens)
    assert result.counterfactual.dtype == torch.long
    assert (words(result.counterfactual).argmax(1) != words(tokens).argmax(1))[result.valid].all()
    assert result.valid.any()
    assert torch.isin(result.counterfactual[result.changed], torch.tensor([0, 3, 5])).all()

    model = scores(0, 4)
    x, others = torch.rand(5, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    found = CounterfactualExplainer(model, values=others).generate(x)
    for i, j in found.changed.nonzero().tolist():
        assert found.counterfactual[i, j] in others[:, j]
    assert found.valid.any()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([], "at least one"),
        (torch.zeros(2, 3), "do not broadcast"),
        (0.5, "must be a list"),
        (([0.0], [1.0]), "for each of 1"),
    ],
)
def test_bad_values_are_named(values, told):
    with pytest.raises(ValueError, match=told):
        CounterfactualExplainer(scores(0, 5), values=values).generate(torch.rand(2, 5, dtype=torch.float64))

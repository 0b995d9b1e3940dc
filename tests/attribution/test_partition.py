"""Owen values within a budget."""

import pytest
import torch
from models import mlp
from torch.testing import assert_close

from robustx.attribution import OwenValues
from robustx.engine import Each

TREES = [None, ((0, 1), (2, (3, 4))), (0, 1, (2, 3, 4)), ((((4, 3), 2), 1), 0), ((0,), (1, 2), (3, 4))]
X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def counted(model):
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize("target", [1, None, Each([2, 0])], ids=["one", "every", "each"])
def test_exact_if_the_budget_is_enough(tree, target):
    """And then it asks for the same sets."""
    model = mlp()
    rows = counted(model)
    exact = OwenValues(model).attribute(X, target=target, hierarchy=tree)
    sets = sum(rows) // 3
    rows.clear()
    found = OwenValues(model).attribute(X, target=target, hierarchy=tree, max_evals=sets)
    assert sum(rows) == 3 * sets
    assert_close(found, exact)
    assert_close(OwenValues(model).attribute(X, target=target, hierarchy=tree, max_evals=10_000), exact)


@pytest.mark.parametrize("budget", [*range(2, 30, 3)])
@pytest.mark.parametrize("tree", TREES, ids=str)
def test_values_add_up_and_the_budget_is_kept(tree, budget):
    model = mlp()
    rows = counted(model)
    found = OwenValues(model).attribute(X, target=1, hierarchy=tree, max_evals=budget)
    assert 2 * 3 <= sum(rows) <= budget * 3
    assert_close(found.sum(1), (model(X) - model(torch.zeros_like(X)))[:, 1].detach())


def test_the_least_budget_shares_out_equally():
    """Equally among the parts of each union, as nothing is known of them."""
    found = OwenValues(lambda x: x.prod(1)).attribute(torch.ones(1, 5), hierarchy=((0, 1), (2, (3, 4))), max_evals=2)
    assert_close(found, torch.tensor([[1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8]]))


def test_what_matters_is_found_first():
    """One of 16 is all that counts: on the way down to it each union is met with and without its neighbours."""
    x = torch.zeros(1, 16)
    x[0, 11] = 1
    found = OwenValues(lambda x: x[:, 11]).attribute(x, max_evals=2 + 2 * (1 + 2 + 4 + 8))
    assert_close(found, x)


def test_examples_are_taken_apart_each_for_itself():
    model = mlp()
    together = OwenValues(model).attribute(X, target=1, max_evals=9)
    alone = torch.cat([OwenValues(model).attribute(x[None], target=1, max_evals=9) for x in X])
    assert_close(together, alone)


def test_a_whole_batch_and_no_batch():
    found = OwenValues(lambda x: x.prod()).attribute(torch.full((2, 3), 2.0), max_evals=100)
    assert_close(found, OwenValues(lambda x: x.prod()).attribute(torch.full((2, 3), 2.0)))
    assert OwenValues(mlp()).attribute(X[:0], target=1, max_evals=5).shape == (0, 5)


@pytest.mark.parametrize(
    "options", [{"max_evals": 1}, {"max_evals": 9, "n_samples": 4}, {"max_evals": 9, "return_intervals": True}], ids=str
)
def test_bad_budgets(options):
    with pytest.raises(ValueError, match="max_evals"):
        OwenValues(mlp()).attribute(X, target=1, **options)

"""The words of dice-ml: the same questions, and scikit-learn's clone."""

import pytest
import torch
from sklearn.base import clone
from torch import nn

from robustx.counterfactual import CounterfactualExplainer
from robustx.perturb import Between
from tests.counterfactual.counterfactual_cases import credit, credit_schema

torch.manual_seed(0)
MODEL = nn.Linear(4, 3).requires_grad_(False)
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
NAMES = ["a", "b", "c", "d"]


def same(one, two):
    for a, b in zip(one.all, two.all, strict=True):
        torch.testing.assert_close(a.counterfactual, b.counterfactual)
        assert a.status == b.status


def test_the_same_question_has_the_same_answer():
    explainer = CounterfactualExplainer(MODEL, bounds=(-2, 2))
    same(explainer.generate_counterfactuals(X, total_CFs=2), explainer.generate(X, n=2))
    same(explainer.generate_counterfactuals(X, desired_class=2), explainer.generate(X, torch.full((5,), 2)))
    same(
        explainer.generate_counterfactuals(X, features_to_vary=["b", "d"], names=NAMES),
        explainer.generate(X, immutable=["a", "c"], names=NAMES),
    )
    same(explainer.generate_counterfactuals(X, features_to_vary=[1, 3]), explainer.generate(X, immutable=[0, 2]))
    same(explainer.generate_counterfactuals(X, stopping_threshold=0.6), explainer.generate(X, min_prob=0.6))
    number = CounterfactualExplainer(lambda x: MODEL(x)[:, 0], bounds=(-2, 2))
    same(number.generate_counterfactuals(X, desired_range=(0.3, 0.4)), number.generate(X, Between(0.3, 0.4)))


def test_permitted_ranges_narrow_boxes_and_leave_the_explainer_as_it_is():
    explainer = CounterfactualExplainer(MODEL, bounds=(-2, 2))
    result = explainer.generate_counterfactuals(X, permitted_range={"a": (0, 1), 2: (-1, 0.5)}, names=NAMES)
    z = result.counterfactual
    assert ((z[:, 0] >= 0) & (z[:, 0] <= 1)).all()
    assert (z[:, 2] >= -1).all()
    assert (z[:, 2] <= X[:, 2].clamp(min=0.5)).all()
    assert explainer.bounds == (-2, 2)


def test_permitted_ranges_narrow_schemas():
    table = credit(6)
    schema = credit_schema(credit())
    model = nn.Linear(schema.width, 2)
    explainer = CounterfactualExplainer(model, schema)
    ranges = {"rate": (0, 5), "job": ["full", "own"]}
    result = explainer.generate_counterfactuals(table, features_to_vary=["rate", "job", "loan"], permitted_range=ranges)
    made = schema.decode(result.counterfactual, table)
    moved = (made["rate"] != table["rate"]) & result.valid.numpy()
    assert (made["rate"][moved] <= 5).all()
    assert set(made["job"][made["job"] != table["job"]]) <= {"full", "own"}
    untouched = [n for n in schema.names if n not in ("rate", "job", "loan")]
    assert (made[untouched] == table[untouched]).all().all()
    assert result.valid.any()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"features_to_vary": ["z"], "names": NAMES}, "features_to_vary names 'z'"),
        ({"permitted_range": {"z": (0, 1)}, "names": NAMES}, "permitted_range names 'z'"),
        ({"permitted_range": {7: (0, 1)}}, "permitted_range names 7"),
        ({"desired_class": "best"}, "target must be"),
    ],
    ids=["vary", "name", "number", "class"],
)
def test_what_is_not_there_is_named(told, why):
    with pytest.raises(ValueError, match=why):
        CounterfactualExplainer(MODEL, bounds=(-2, 2)).generate_counterfactuals(X, **told)


def test_clones_ask_the_same():
    explainer = CounterfactualExplainer(MODEL, bounds=(-2, 2), distance="l1", steps=5)
    other = clone(explainer)
    assert other.forward_func is not explainer.forward_func
    same(other.generate(X), explainer.generate(X))
    with pytest.raises(ValueError, match="distance"):
        other.set_params(distance="l7")

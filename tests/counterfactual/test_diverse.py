"""Several counterfactuals of one example: their sets of features, by enumeration and by closed form."""

from itertools import combinations

import pytest
import torch
from torch import nn

from robustx.counterfactual import CounterfactualExplainer, Feature, FeatureSchema
from robustx.counterfactual.diverse import apart
from robustx.counterfactual.exact import exact
from robustx.counterfactual.guided import guided, keeping_clear


def line(d=5, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(d, 2).double().requires_grad_(False)


X = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sets_of(result, row):
    return [frozenset(r.changed[row].nonzero().flatten().tolist()) for r in result.all if r.status[row] == "valid"]


def minimal(model, x, y, low=0.0, high=1.0):
    """All irreducible sets with which a linear model's answer can be changed inside a box, the smallest first."""
    w = (model.weight[1 - y] - model.weight[y]) * 1.0
    lead = float(model(x)[y] - model(x)[1 - y])
    gain = torch.where(w > 0, w * (high - x), w * (low - x))
    found = []
    for size in range(1, len(x) + 1):
        for s in combinations(range(len(x)), size):
            if float(gain[list(s)].sum()) > lead and not any(f <= set(s) for f in found):
                found.append(frozenset(s))
    return found


@pytest.mark.parametrize("strategy", ["guided", "exact"])
def test_alternatives_of_a_linear_model_are_the_irreducible_sets_smallest_first(strategy):
    model = line()
    result = CounterfactualExplainer(model, bounds=(0, 1), strategy=strategy, by=1e-9).generate(X, n=4)
    for i, y in enumerate(model(X).argmax(1).tolist()):
        every, told = minimal(model, X[i], y), sets_of(result, i)
        assert len(set(told)) == len(told)
        assert set(told) <= set(every)  # none contains another, and none can do without one of its features
        assert [len(s) for s in told] == [len(s) for s in every][: len(told)]
        assert len(told) == min(4, len(every))
    assert len({len(sets_of(result, i)) for i in range(6)}) > 1  # of some there are no four


def test_where_no_set_is_left_that_is_proved_if_all_were_tried():
    model = lambda x: torch.stack([x.sum(1), 0 * x.sum(1) + 2.5], 1)
    result = CounterfactualExplainer(model, reference=0.0).generate(torch.ones(1, 3), n=5)
    assert [r.status[0] for r in result.all] == ["valid"] * 3 + ["infeasible"] * 2  # any one, and never two
    assert {tuple(r.changed[0].tolist()) for r in result.all[:3]} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert torch.equal(result.all[4].counterfactual, torch.ones(1, 3))


def test_a_strategy_that_knows_nothing_of_bans_is_run_without_one_feature_of_each():
    model = lambda x: torch.stack([x.sum(1), 0 * x.sum(1) + 1.5], 1)
    plain = lambda task: guided(task)
    result = CounterfactualExplainer(model, reference=0.0, strategy=plain).generate(torch.ones(1, 4), n=6)
    assert [r.status[0] for r in result.all] == ["valid"] * 4 + ["infeasible"] * 2  # three of four, and never all
    assert len(set(sets_of(result, 0))) == 4


def test_alternatives_do_not_depend_on_the_batch():
    model = line(seed=3)
    explainer = CounterfactualExplainer(model, bounds=(0, 1))
    whole = explainer.generate(X, n=3)
    for i in (1, 4):
        alone = explainer.generate(X[i : i + 1], n=3)
        for a, b in zip(alone.all, whole.all, strict=True):
            torch.testing.assert_close(a.counterfactual[0], b.counterfactual[i])
            assert a.status[0] == b.status[i]


def test_each_alternative_counts_its_own_passes_and_all_are_listed():
    pytest.importorskip("pandas")
    result = CounterfactualExplainer(line(), bounds=(0, 1)).generate(X, n=3)
    assert len(result.alternatives) == 2
    assert (result.alternatives[1].forwards > 0).all()
    frame = result.to_dataframe()
    changes = sum(int(r.changed.sum()) for r in result.all)
    assert len(frame) == changes
    assert set(frame["rank"]) == {r for r, one in enumerate(result.all) if one.changed.any()}
    assert len(result.at([2, 0]).alternatives[1]) == 2


def test_tables_keep_to_their_rules_in_every_alternative():
    kinds = [
        Feature(n, "integer", range=(0, 9), direction=d) for n, d in zip("abc", ("any", "increase", "any"), strict=True)
    ]
    schema = FeatureSchema([*kinds, Feature("d", "categorical", ("p", "q", "r"))])
    model = lambda z: z @ torch.tensor([0.1, 0.1, 0.1, 0.0, 0.4, 0.8]) - 1.7
    x = {"a": [4], "b": [4], "c": [4], "d": ["p"]}
    result = CounterfactualExplainer(model, schema).generate(x, torch.tensor([1]), n=4)
    assert [r.status[0] for r in result.all].count("valid") >= 3
    home = schema.codes(x)
    for r in result.all:
        assert not len(schema.violations(home, schema.decoded(r.counterfactual, home)))
    assert len(set(sets_of(result, 0))) == len(sets_of(result, 0))


def test_rankings_give_up_a_feature_of_every_banned_set():
    hope = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    banned = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0]], [[0, 0, 0, 0], [0, 0, 0, 1]]]).bool()
    least, most = keeping_clear([hope], banned)
    assert (least == -torch.inf).tolist() == [[False, True, False, False], [False, False, False, True]]
    assert (most == -torch.inf).tolist() == [[True, True, False, False], [False, False, False, True]]
    for told in (least, most):
        assert ((told == -torch.inf)[:, None] & banned).any(2)[banned.any(2)].all()


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_how_many_is_a_number_from_one_on(n):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        CounterfactualExplainer(line(), bounds=(0, 1)).generate(X, n=n)


def test_an_exact_strategy_run_apart_proves_what_it_proves_alone():
    model, strategy = line(seed=2), apart(exact)
    first = CounterfactualExplainer(model, bounds=(0, 1), strategy=exact).generate(X)
    again = CounterfactualExplainer(model, bounds=(0, 1), strategy=strategy).generate(X, n=2)
    assert again.proved == first.proved
    heeding = CounterfactualExplainer(model, bounds=(0, 1), strategy=exact).generate(X, n=2)
    assert torch.equal(again.alternatives[0].n_changed, heeding.alternatives[0].n_changed)
    torch.testing.assert_close(again.alternatives[0].cost, heeding.alternatives[0].cost, atol=1e-5, rtol=1e-5)

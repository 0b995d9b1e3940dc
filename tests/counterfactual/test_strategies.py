"""What every strategy must keep to, whatever it looks for: rules, rows, columns, units, labels and random states."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from counterfactual_cases import credit, credit_schema
from torch import nn

from robustx.counterfactual import STRATEGIES, CounterfactualExplainer, FeatureSchema
from robustx.engine import ArgumentError

OTHERS = {"alma", "ddn", "fab-t", "pdpgd"}  # differ from "fmn" by an attack alone, which has laws of its own
DRAWING = {"growing-spheres", "dice"}  # draws are keyed by what stands in the columns: others' are other draws
FRAME = credit(60)
SCHEMA = credit_schema(FRAME)
ROWS = FRAME.iloc[:6]


def net(weight=None, classes=(0, 1, 2)):
    """A small network of three classes, of which the table has some each."""
    torch.manual_seed(1)
    first, last = nn.Linear(SCHEMA.width, 8), nn.Linear(8, 3)
    with torch.no_grad():
        first.weight *= 3
        last.bias -= last(first(SCHEMA.encode(FRAME)).relu()).median(0).values
        last.weight[:], last.bias[:] = last.weight[list(classes)], last.bias[list(classes)]
        if weight is not None:
            first.weight = nn.Parameter(weight(first.weight))
            first.in_features = first.weight.shape[1]
    return nn.Sequential(first, nn.ReLU(), last).requires_grad_(False)


MODEL = net()


def asked(strategy, model=MODEL, schema=SCHEMA, frame=FRAME, rows=ROWS, **told):
    explainer = CounterfactualExplainer(model, schema, strategy=strategy, steps=3, budget=16)
    return explainer.fit(frame).generate(rows, **told)


@cache
def answer(strategy):
    return asked(strategy)


@pytest.fixture(params=sorted(set(STRATEGIES) - OTHERS))
def strategy(request):
    return request.param


def test_every_rule_of_the_table_holds_to_the_last_bit(strategy):
    result = answer(strategy)
    assert torch.equal(result.verify(), result.valid)
    assert result.valid.any()
    table = SCHEMA.decode(result.counterfactual, ROWS)
    assert SCHEMA.violations(ROWS, table).empty
    assert torch.equal(SCHEMA.encode(table), result.counterfactual)
    assert table.sex.tolist() == ROWS.sex.tolist()
    for i, name in enumerate(SCHEMA.names):
        assert ((table[name] != ROWS[name].to_numpy()).to_numpy() == result.changed[:, i].numpy()).all()
    assert torch.equal(result.counterfactual[~result.valid], SCHEMA.encode(ROWS)[~result.valid])


def test_what_is_found_changes_no_more_than_it_may(strategy):
    result = asked(strategy, immutable=["income", "job"], max_changes=2)
    fixed = [SCHEMA.names.index(n) for n in ("income", "job", "sex")]
    assert not result.changed[:, fixed].any()
    assert result.n_changed.max() <= 2
    assert SCHEMA.violations(ROWS, SCHEMA.decode(result.counterfactual, ROWS)).empty


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - DRAWING))
def test_neither_order_nor_a_column_without_meaning_matters(strategy):
    names = [*SCHEMA.names[::-1][:4], "noise", *SCHEMA.names[::-1][4:]]
    frame = FRAME.assign(noise=1.0)[names]
    schema = credit_schema(frame.assign(noise=np.linspace(0, 2, len(frame))))
    columns = torch.cat(
        [torch.arange(schema.width)[schema.places[schema.names.index(n)].columns] for n in SCHEMA.names]
    )
    model = net(lambda w: torch.zeros(len(w), schema.width).index_copy(1, columns, w))
    result, plain = asked(strategy, model, schema, frame, frame.iloc[:6]), answer(strategy)
    torch.testing.assert_close(result.counterfactual[:, columns], plain.counterfactual)
    assert result.status == plain.status
    if strategy != "nearest-unlike":
        assert not result.changed[:, schema.names.index("noise")].any()


def test_units_names_of_classes_other_rows_and_random_states_do_not_matter(strategy):
    def scaled(f, p):
        if f.name != "income":
            return f, p
        low, high = f.range
        return (
            replace(f, range=(100 * low, 100 * high), max_change=100 * f.max_change),
            replace(p, offset=100 * p.offset, scale=100 * p.scale),
        )

    pairs = [scaled(f, p) for f, p in zip(SCHEMA.features, SCHEMA.places, strict=True)]
    sums = [
        replace(c, coefficients={n: v / (100 if n == "income" else 1) for n, v in c.coefficients.items()})
        for c in SCHEMA.constraints
    ]
    cents = FeatureSchema([f for f, _ in pairs], [p for _, p in pairs], sums)
    frame, some = FRAME.assign(income=FRAME.income * 100), [4, 1]
    model, plain = net(classes=(2, 0, 1)), answer(strategy)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    result = asked(strategy, model, cents, frame, frame.iloc[some])
    torch.testing.assert_close(result.counterfactual, plain.counterfactual[some])
    torch.testing.assert_close(result.cost, plain.cost[some])
    assert result.status == tuple(plain.status[i] for i in some)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_what_is_so_already_and_what_cannot_be(strategy):
    there = asked(strategy, target=MODEL(SCHEMA.encode(ROWS)).argmax(1))
    assert there.status == ("already valid",) * 6
    assert torch.equal(there.counterfactual, SCHEMA.encode(ROWS))
    never = asked(strategy, immutable=SCHEMA.names)
    assert not never.valid.any()
    assert set(never.status) <= {"not found", "infeasible"}
    assert torch.equal(never.counterfactual, SCHEMA.encode(ROWS))


def test_rows_of_numbers_stay_in_their_box(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().requires_grad_(False)
    x, data = torch.rand(5, 5).double(), torch.rand(50, 5).double()
    explainer = CounterfactualExplainer(model, bounds=(x - 0.4, 1.2), strategy=strategy, budget=16).fit(data)
    result = explainer.generate(x, immutable=[2])
    assert torch.equal(result.verify(), result.valid)
    assert result.valid.any()
    assert torch.equal(result.changed, result.counterfactual != x)
    assert not result.changed[:, 2].any()
    assert ((result.counterfactual >= x - 0.4) & (result.counterfactual <= 1.2)).all()


def test_features_that_give_way_do_so_whole_or_the_strategy_says_that_they_cannot(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    x = torch.rand(4, 1, 6, 6)
    mask = (torch.arange(36) // 6).reshape(1, 1, 6, 6)
    explainer = CounterfactualExplainer(model, reference=0.0, strategy=strategy)
    told = ""
    try:
        result = explainer.generate(x, feature_mask=mask)
    except ArgumentError as e:
        told = str(e)
    if told:
        assert "bounds or a schema" in told
        return
    assert result.valid.any()
    assert torch.equal(result.verify(), result.valid)
    for i in range(4):
        gone = torch.isin(mask[0], result.changed[i].nonzero().squeeze(1))
        assert torch.equal(result.counterfactual[i], torch.where(gone, 0.0, x[i]))

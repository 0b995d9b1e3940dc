"""Known examples against what they are by definition."""

import numpy as np
import pytest
import torch
from counterfactual_cases import credit, credit_schema
from torch import nn

from robustx.counterfactual import CounterfactualExplainer, FeatureSchema
from robustx.counterfactual.domain import Move
from robustx.counterfactual.known import Known
from robustx.counterfactual.table import Table
from robustx.engine import Everything, Probe
from robustx.perturb import Between, Leave, elements, from_masks


def net(d=4, k=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, k)).double().requires_grad_(False)


def known(model, data, x, goal, y=None):
    return Known(Probe(model, (data,), Everything()), y).to(Probe(model, (x,), goal))


def test_reach_is_asked_of_the_outputs_once():
    model, calls = net(), []
    data, x = torch.rand(40, 4).double() * 4 - 2, torch.rand(6, 4).double()

    def watched(z):
        calls.append(len(z))
        return model(z)

    y = model(x).argmax(1)
    told = known(watched, data, x, Leave(y))
    rows = torch.tensor([3, 0, 3, 5])
    assert torch.equal(told.reach(rows), model(data).argmax(1)[None] != y[rows, None])
    told.reach(rows)
    assert calls == [40]
    number = known(lambda z: model(z)[:, 0], data, x, Between(torch.linspace(-1, 1, 6), 2.0))
    value = model(data)[:, 0][None]
    assert torch.equal(number.reach(rows), (value > torch.linspace(-1, 1, 6)[rows, None]) & (value < 2))
    assert told.reach(rows[:0]).shape == (0, 40)


def test_nearest_in_a_box_is_found_by_sorting():
    model = net()
    data, x = torch.rand(40, 4).double() * 4 - 2, torch.rand(6, 4).double()
    y, unit = model(x).argmax(1), torch.tensor([[1.0, 2.0, 0.5, 1.0]]).double()
    told = known(model, data, x, Leave(y), y=(right := model(data).argmax(1)).where(torch.arange(40) % 5 > 0, 0))
    domain = Move(Probe(model, (x,), Leave(y)), elements(4), x - 9, x + 9, unit)
    found = told.nearest(domain, torch.arange(6), 3)
    every = told.nearest(domain, torch.arange(6), 40)
    for i in range(6):
        trusted = (right != y[i]) & (told.y == right)
        order = sorted(
            trusted.nonzero().squeeze(1).tolist(), key=lambda j: float(((data[j] - x[i]) / unit).abs().sum())
        )
        assert found[i].tolist() == order[:3]
        assert every[i].tolist() == order + [-1] * (40 - len(order))
    like = known(model, torch.cat([data, x]), x, Leave(y)).nearest(domain, torch.arange(6), 1, unlike=False)
    assert (like[:, 0] != torch.arange(40, 46)).all()  # none is its own neighbour


def test_nearest_rows_of_a_table_are_measured_by_their_costs():
    frame = credit()
    schema = credit_schema(frame, costs={"job": 3.0})
    data = schema.encode(frame)
    model = nn.Linear(data.shape[1], 2)
    x = data[:5]
    f = Probe(model, (x,), Leave(model(x).argmax(1)))
    domain = Table(f, from_masks(schema.feature_mask, (x,)), schema)
    codes = schema.decoded(data)
    found = known(model, data, x, f.of).nearest(domain, f.everyone, 5)
    span = torch.tensor([p.span for p in schema.features], dtype=torch.float64)
    cost = torch.tensor([p.cost for p in schema.features], dtype=torch.float64)
    other = model(data).argmax(1)
    for i in range(5):
        move = (codes - codes[i]).abs() / span
        move[:, schema.names.index("job")] = (codes - codes[i])[:, schema.names.index("job")].ne(0).double()
        away = (move * cost).sum(1)
        away[other == other[i]] = torch.inf
        torch.testing.assert_close(away[found[i]], away.sort().values[:5], atol=1e-5, rtol=0)


def test_fit_keeps_examples_and_says_what_does_not_fit():
    model, x = net(), torch.rand(5, 4).double()
    explainer = CounterfactualExplainer(model, bounds=(0, 1))
    assert explainer.fit(x, np.zeros(5, dtype=int)) is explainer
    assert explainer.generate(x).valid.shape == (5,)
    with pytest.raises(ValueError, match="one class for each of 5"):
        explainer.fit(x, [0.5] * 5)
    with pytest.raises(ValueError, match="at least one example"):
        explainer.fit(x[:0])
    with pytest.raises(ValueError, match="whole numbers"):
        explainer.fit(x, ["yes"] * 5)
    with pytest.raises(ValueError, match="fit again"):
        explainer.fit(torch.rand(5, 3).double()).generate(x)
    with pytest.raises(ValueError, match="additional_forward_args"):
        CounterfactualExplainer(lambda z, w: model(z) + w, bounds=(0, 1)).fit(x).generate(
            x, additional_forward_args=torch.zeros(5, 1).double()
        )


def test_values_of_known_examples_find_what_no_grid_meets():
    narrow = lambda z: torch.stack([0 * z[:, 0] + 0.5, ((z[:, 1] > 0.41) & (z[:, 1] < 0.43)).float()], 1)
    x, data = torch.zeros(2, 4), torch.linspace(0, 1, 201)[:, None].expand(-1, 4).clone()
    blind = CounterfactualExplainer(narrow, bounds=(0, 1))
    assert not blind.generate(x).valid.any()
    found = blind.fit(data).generate(x)
    assert found.changed.tolist() == [[False, True, False, False]] * 2
    frame = {"a": data[:, 0].tolist(), "b": data[:, 1].tolist(), "c": ["u", "v", "w"] * 67}
    schema = FeatureSchema.from_dataframe(frame)
    table = CounterfactualExplainer(narrow, schema).fit(frame)
    start = {"a": [0.0, 1.0], "b": [0.0, 1.0], "c": ["u", "w"]}
    assert table.generate(start).changed.tolist() == [[False, True, False]] * 2

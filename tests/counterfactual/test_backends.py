"""Searches that stand on attacks: how near the best they come, and what they must keep to."""

from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import test_attack_contract as contract
import torch
from attack_cases import BUDGET, Case, affine, examples, mlp
from counterfactual_cases import credit, credit_schema
from exact_relu import stored
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustx.counterfactual import STRATEGIES, CounterfactualExplainer
from robustx.counterfactual.masked import MaskedPGD, numbers, pareto
from robustx.counterfactual.nearest import nearest
from robustx.engine import ArgumentError
from robustx.perturb import NORMS

KEPT = Path(__file__).parents[1] / "fixtures" / "relu_counterfactuals.npz"
BOXES = [f"{name}/{box}" for name in ("wine", "breast-cancer") for box in ("all", "near")]
DATA = {"breast-cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}


# --- how near the best they come --------------------------------------------------------------------------


@cache
def linear(name):
    """A logistic regression on the data [B, D], scaled to [0, 1], and some of its rows."""
    x, y = DATA[name](return_X_y=True)
    x = (x - x.min(0)) / np.where(np.ptp(x, 0) > 0, np.ptp(x, 0), 1)
    told = LogisticRegression(max_iter=3000).fit(x, y)
    weight, bias = (torch.from_numpy(t) for t in (told.coef_, told.intercept_))
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
    model = nn.Linear(*weight.shape[::-1]).double()
    model.load_state_dict({"weight": weight, "bias": bias})
    return model.requires_grad_(False), torch.from_numpy(x[-12:])


@pytest.mark.parametrize("distance", ["l0+l1", "l0+l2", "l0+linf", "l1", "l2", "linf"])
@pytest.mark.parametrize("name", sorted(DATA))
def test_of_linear_models_the_default_finds_the_best(name, distance):
    """The way to each rival's half-space in a box, from the definitions."""
    model, x = linear(name)
    by = 1e-4
    result = CounterfactualExplainer(model, bounds=(0, 1), distance=distance, by=by).generate(x)
    assert result.valid.all()
    y = model(x).argmax(1)
    for i, own in enumerate(x):
        best = np.inf
        for k in set(range(len(model.weight))) - {int(y[i])}:
            slope = model.weight[k] - model.weight[y[i]]
            need = by - float(slope @ own + model.bias[k] - model.bias[y[i]])
            room = torch.where(slope > 0, 1 - own, own)
            best = min(best, least(slope.abs(), room, need, distance))
        if distance.startswith("l0"):
            assert result.n_changed[i] == best
        else:
            assert float(result.distance[distance.title()][i]) == pytest.approx(best, rel=1e-5)
    assert set(result.proved) == {"smallest" if distance.startswith("l0") else "optimal"}


def least(a, room, need, distance):
    """The least that gains ``need`` when moves v between 0 and ``room`` gain a @ v; of a count the whole features."""
    if float(a @ room) < need:
        return np.inf
    if distance.startswith("l0"):
        gains = (a * room).sort(descending=True).values.cumsum(0)
        return int((gains < need).sum()) + 1
    if distance == "l1":
        order = a.argsort(descending=True)
        spent, cost = 0.0, 0.0
        for j in order.tolist():
            move = min(float(room[j]), (need - spent) / float(a[j])) if a[j] > 0 else 0.0
            spent, cost = spent + move * float(a[j]), cost + move
            if spent >= need * (1 - 1e-12):
                return cost
    way, size = (a, torch.linalg.vector_norm) if distance == "l2" else (torch.ones_like(a), torch.amax)
    low, high = 0.0, float((room / way.clamp(min=1e-12)).max())
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if float(a @ torch.minimum(t * way, room)) < need else (low, t)
    return float(size(torch.where(a > 0, torch.minimum(high * way, room), 0), dim=0))


@cache
def truth(at):
    with np.load(KEPT) as kept:
        told = {k.removeprefix(f"{at}/"): torch.from_numpy(kept[k]) for k in kept if k.startswith(f"{at}/")}
    layers = []
    for i in range(sum(k.startswith("weight") for k in told)):
        layer = nn.Linear(*told[f"weight{i}"].shape[::-1]).double()
        layer.load_state_dict({"weight": told[f"weight{i}"], "bias": told[f"bias{i}"]})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False), told


def found(at, distance):
    """What the default finds: counts, costs, and where a solver has proved what is the best."""
    model, told = truth(at)
    explainer = CounterfactualExplainer(model, bounds=(told["low"], told["high"]), distance=distance, scale=1.0)
    result = explainer.generate(told["x"])
    count, cost = told[f"{distance}/count"], told[f"{distance}/cost"]
    assert result.valid[cost.isfinite()].all()
    assert not result.valid[cost.isinf()].any()
    sure = cost.isfinite()
    return result.n_changed[sure], result.cost[sure], count[sure], cost[sure]


def test_the_fewest_features_of_small_networks_are_found():
    parts = [found(at, "l0+l1") for at in BOXES]
    excess = torch.cat([n - count for n, _, count, _ in parts])
    ratio = torch.cat([(c / cost)[n == count] for n, c, count, cost in parts])
    assert len(excess) >= 30
    assert (excess >= 0).all()
    assert (excess == 0).double().mean() >= 0.95
    assert excess.mean() <= 0.05
    assert ratio.mean() <= 1.1


@pytest.mark.parametrize(("distance", "most"), [("l1", 1.02), ("linf", 1.01)])
def test_the_least_costs_of_small_networks_are_met(distance, most):
    for at in BOXES:
        _, cost, _, least = found(at, distance)
        ratio = cost / least
        assert (ratio > 1 - 1e-6).all()
        assert ratio.mean() <= most


@pytest.mark.parametrize(("distance", "most"), [("L1", 1.02), ("Linf", 1.01)])
@pytest.mark.parametrize("name", ["plain", "robust"])
def test_the_least_costs_are_those_of_another_solver(name, distance, most):
    net = stored(name)
    x = torch.from_numpy(net.x).reshape(-1, 1, 8, 8)[:4]
    explainer = CounterfactualExplainer(net.model, bounds=(0, 1), distance=distance.lower(), scale=1.0, by=1e-6)
    result = explainer.generate(x)
    assert result.valid.all()
    ratio = result.cost / torch.from_numpy(net.distance[distance])[:4]
    assert (ratio > 1 - 1e-6).all()
    assert ratio.mean() <= most


@pytest.mark.parametrize("strategy", ["auto", "fmn"])
@pytest.mark.parametrize("distance", ["l1", "linf"])
def test_nothing_moves_for_nothing(distance, strategy):  # a whole number that overshoots may make other moves needless
    frame = credit(60)
    schema = credit_schema(frame)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(schema.width, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
    usual = model(schema.encode(frame)).median().item()
    explainer = CounterfactualExplainer(lambda z: model(z) - usual, schema, distance=distance, strategy=strategy)
    result = explainer.generate(frame[:8])
    assert result.valid.all()
    assert "nothing" not in result.proved


# --- each by itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fmn", "alma", "pdpgd", "fab-t"])
def test_an_attack_leads_to_the_nearest_boundary(strategy):
    model, told = truth("wine/all")
    x = told["x"]
    explainer = CounterfactualExplainer(model, bounds=(0, 1), distance="l1", scale=1.0, strategy=strategy)
    result = explainer.generate(x)
    assert result.valid.all()
    sure = told["l1/cost"].isfinite()
    ratio = (result.cost / told["l1/cost"])[sure]
    assert (ratio > 1 - 1e-6).all()
    assert ratio.median() <= 1.05


def test_a_norm_that_an_attack_does_not_know_is_said():
    model, told = truth("wine/all")
    with pytest.raises(ValueError, match="DDN knows .L2., got L1"):
        CounterfactualExplainer(model, bounds=(0, 1), distance="l1", strategy="ddn").generate(told["x"])
    unknown = CounterfactualExplainer(model, bounds=(0, 1), strategy=partial(nearest, attack="pgdd"))
    with pytest.raises(ValueError, match="no attack is called 'pgdd'"):
        unknown.generate(told["x"])


@pytest.mark.parametrize("strategy", ["auto", "fmn", "proximal", "masked-pgd"])
def test_no_more_features_than_may(strategy):
    model, told = truth("wine/near")
    bounds, most = (told["low"][:4], told["high"][:4]), 5
    explainer = CounterfactualExplainer(model, bounds=bounds, distance="linf", scale=1.0, strategy=strategy)
    held = explainer.generate(told["x"][:4], max_changes=most)
    can = told["l0+l1/count"][:4] <= most
    assert held.valid.any()
    assert not held.valid[~can].any()
    assert held.n_changed.max() <= most
    assert (held.cost >= told["linf/cost"][:4])[held.valid].all()


def test_prices_make_changes_smaller_than_the_fewest_features_and_fewer_than_the_least_cost():
    model, told = truth("breast-cancer/all")
    few, priced, least = (
        CounterfactualExplainer(model, bounds=(0, 1), strategy=s, distance=d).generate(told["x"][:5])
        for s, d in (("auto", "l0+l1"), ("proximal", "l0+l1"), ("auto", "l1"))
    )
    assert priced.valid.all()
    assert few.n_changed.sum() <= priced.n_changed.sum() <= least.n_changed.sum()
    assert least.cost.sum() <= priced.cost.sum()


def test_features_that_give_way_are_no_matter_for_attacks():
    model = nn.Linear(3, 2)
    for strategy in ("fmn", "proximal", "masked-pgd"):
        with pytest.raises(ArgumentError, match="needs bounds or a schema"):
            CounterfactualExplainer(model, reference=0.0, strategy=strategy).generate(torch.ones(1, 3))
    assert CounterfactualExplainer(model, reference=0.0).strategy == "auto"
    assert STRATEGIES["auto"] is not STRATEGIES["guided"]


# --- few features and a small change ----------------------------------------------------------------------


def test_the_front_falls_to_the_least_cost():
    model, told = truth("wine/near")
    explainer = CounterfactualExplainer(model, bounds=(told["low"], told["high"]), distance="linf", scale=1.0)
    front = pareto(explainer, told["x"])
    least = told["linf/cost"]
    some = least.isfinite()
    assert front.counts == tuple(range(1, 14))
    assert (front.cost.diff(dim=1).nan_to_num(0) <= 0).all()
    assert (front.cost[some, -1] >= least[some] * (1 - 1e-6)).all()
    assert (front.cost[some, -1] / least[some]).median() <= 1.05
    assert front.cost[~some].isinf().all()
    fewest = told["l0+l1/count"]
    for i in range(len(least)):
        points = front.points(i)
        assert all(k < j and c > d for (k, c), (j, d) in pairwise(points))
        if points:
            assert points[0][0] >= fewest[i]


def test_numbers_of_features_end_with_all():
    assert [numbers(n) for n in (0, 1, 3, 9)] == [[], [1], [1, 2, 3], [1, 2, 3, 4, 6, 8, 9]]


# --- the masked attack ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masked(Case):
    """The attack as the laws of all attacks ask for it."""

    name: str = "pgd"
    norm: str = "Linf"
    told: str = "masked"
    options: dict = field(default_factory=lambda: {"steps": 8, "features": 12})

    def __call__(self, model, **options):
        usual = {"bounds": (0, 1), "norm": self.norm, "eps": BUDGET[self.norm]}
        return MaskedPGD(model, **{**usual, **self.options, **options})


LAWS = [
    contract.test_equivariant_to_the_order_of_rows,
    contract.test_alone_as_in_a_batch,
    contract.test_no_budget_no_move,
    contract.test_examples_that_are_there_already_are_left_alone,
    contract.test_no_examples,
    contract.test_mask,
    contract.test_several_inputs_are_one,
]


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_the_masked_attack_stays_where_it_may_and_tells_the_truth(norm):
    model = mlp()
    x, y = examples(model)
    case = Masked(norm=norm)
    result = case(model).run(x, y)
    contract.check(case, model, x, result, lambda moved: contract.answers(model, moved) != y)
    assert ((result.adversarial != x).flatten(1).sum(1) <= 12).all()
    assert result.success.sum() > 2  # those that were wrong before, and more


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_masked_attack_keeps_the_laws_of_attacks(law):
    told = {"form": "dict"} if law is contract.test_several_inputs_are_one else {}
    law(Masked(), **told)


def test_of_a_linear_model_the_masked_attack_moves_the_features_that_gain_most():
    model = affine(18, 2)
    x, y = examples(model, wrong=0)
    mask = (torch.arange(18) // 3).reshape(1, 2, 3, 3)
    result = MaskedPGD(model, bounds=(0, 1), eps=0.05, features=2, feature_mask=mask, early_stop=False).run(x, y)
    weight = model[1].weight.detach()
    slope = (weight[1 - y] - weight[y]).reshape(x.shape)
    room = torch.where(slope > 0, 1 - x, x).clamp(max=0.05)
    best = (slope.abs() * room).flatten(1).reshape(-1, 6, 3).sum(2).topk(2, dim=1)
    moved = (result.adversarial != x).flatten(1).reshape(-1, 6, 3).any(2)
    assert torch.equal(moved.nonzero()[:, 1].reshape(-1, 2), best.indices.sort(1).values)
    start = model(x).gather(1, (1 - y)[:, None]) - model(x).gather(1, y[:, None])
    torch.testing.assert_close(result.margin, start.squeeze(1).detach() + best.values.sum(1))

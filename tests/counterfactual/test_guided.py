"""The counterfactual search against closed forms, exhaustive enumeration and the model itself."""

from itertools import combinations, permutations

import pytest
import torch
from contest import Counter
from torch import nn

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer
from robustx.engine import Probe
from robustx.perturb import Between, blur, superpixels, through


@pytest.fixture(scope="module")
def table():
    model, data = zoo.load("breast-cancer")
    x = data.x[:20]
    return (
        model,
        data,
        x,
        CounterfactualExplainer(model, bounds=(0, 1)).generate(x, names=[c.name for c in data.columns]),
    )


def net(d=6, k=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, k)).double()


def test_table_all_valid_few_features_and_explained(table):
    model, data, x, result = table
    assert result.valid.all()
    assert (model(result.counterfactual).argmax(1) != model(x).argmax(1)).all()
    assert torch.equal(result.changed, result.counterfactual != x)  # what is not named did not move, to the bit
    assert result.n_changed.double().mean() <= 2.3
    assert (result.counterfactual >= 0).all()
    assert (result.counterfactual <= 1).all()
    assert (result.contributions[~result.changed] == 0).all()

    def lead(z):  # the class left is behind by this much
        y = model(x).argmax(1, keepdim=True)
        out = model(z)
        return (out.gather(1, 1 - y) - out.gather(1, y)).squeeze(1)

    torch.testing.assert_close(
        result.contributions.sum(1).float(), lead(result.counterfactual) - lead(x), atol=1e-5, rtol=0
    )


def test_table_none_reducible_row_by_row(table):
    model, _, x, result = table
    for i in range(len(x)):
        for j in result.changed[i].nonzero().squeeze(1):
            z = result.counterfactual[i : i + 1].clone()
            z[0, j] = x[i, j]
            assert model(z).argmax(1) == model(x[i : i + 1]).argmax(1), (i, int(j))


def test_why_names_the_changed_features_best_first(table):
    _, data, _, result = table
    i = int(result.n_changed.argmax())
    told = result.why(i)
    assert {name for name, _ in told} == {data.columns[j].name for j in result.changed[i].nonzero().squeeze(1).tolist()}
    assert [v for _, v in told] == sorted((v for _, v in told), reverse=True)
    assert "20 of 20 found" in repr(result)


@pytest.mark.parametrize("seed", range(4))
def test_fewest_features_of_a_linear_model_is_the_closed_form(seed):
    torch.manual_seed(seed)
    model = nn.Linear(12, 2).double()
    x = torch.rand(16, 12, dtype=torch.float64) * 0.6 + 0.2
    result = CounterfactualExplainer(model, bounds=(0, 1), by=1e-9).generate(x)
    w = model.weight[1] - model.weight[0]
    lead = (model(x)[:, 1] - model(x)[:, 0]).detach()
    w = torch.where(lead[:, None] > 0, -w, w).detach()  # towards the other class
    gains = (w.abs() * torch.where(w > 0, 1 - x, x)).sort(1, descending=True).values.cumsum(1)
    fewest = (gains <= lead.abs()[:, None]).sum(1) + 1
    possible = fewest <= 12
    assert torch.equal(result.valid, possible)
    assert torch.equal(result.n_changed[possible], fewest[possible])


@pytest.mark.parametrize(
    ("reference", "other", "possible"),
    [("blur", blur(3.0), True), (0.0, through(0.0), True), (blur(1.0), blur(1.0), False)],
    ids=["blur", "zero", "too little blur"],
)
def test_replaced_superpixels_against_all_subsets(reference, other, possible):
    model, data = zoo.load("digits-robust")
    x = data.x[:6]
    mask = superpixels(x, "grid", 9)
    n = int(mask.max()) + 1
    result = CounterfactualExplainer(model, reference=reference).generate(x, feature_mask=mask)
    (other,) = other(Probe(model, (x,)))
    y = model(x).argmax(1)
    for i in range(len(x)):
        sizes = []
        for k in range(1, n + 1):
            sets = list(combinations(range(n), k))
            shut = torch.stack([torch.isin(mask[i], torch.tensor(s)) for s in sets])
            if (model(torch.where(shut, other[i], x[i])).argmax(1) != y[i]).any():
                sizes.append(k)
                break
        if not sizes:
            assert not result.valid[i]
            assert torch.equal(result.counterfactual[i], x[i])
            continue
        assert result.valid[i]
        assert result.n_changed[i] >= sizes[0]
        if result.proved[i] == "smallest":
            assert result.n_changed[i] == sizes[0]
        shut = torch.isin(mask[i], result.changed[i].nonzero().squeeze(1))
        torch.testing.assert_close(result.counterfactual[i], torch.where(shut, other[i], x[i]))
    assert ("smallest" in result.proved) == possible


def test_contributions_are_shapley_values_by_definition():
    model = net().requires_grad_(False)
    x = torch.rand(3, 6, dtype=torch.float64)
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(x, immutable=[0])
    y = model(x).argmax(1)

    def lead(z, y):
        out = model(z[None])[0]
        return float(out[[c for c in range(3) if c != y]].max() - out[y])

    for i in range(3):
        players = result.changed[i].nonzero().squeeze(1).tolist()
        share = dict.fromkeys(players, 0.0)
        orders = list(permutations(players))
        for order in orders:
            z, before = x[i].clone(), lead(x[i], y[i])
            for p in order:
                z[p] = result.counterfactual[i, p]
                share[p] += (lead(z, y[i]) - before) / len(orders)
                before = lead(z, y[i])
        for p in players:
            assert result.contributions[i, p] == pytest.approx(share[p], abs=1e-9)


def test_many_changes_are_shared_out_completely():
    model = lambda x: torch.stack([x.sum(1) * 0 + 13.5, x.sum(1)], 1)
    x = torch.zeros(2, 15)
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(x)
    assert result.n_changed.tolist() == [14, 14]
    torch.testing.assert_close(result.contributions.sum(1).float(), result.margin - result.before)


def test_constraints_hold_and_an_impossible_goal_is_said_to_be():
    model = net()
    x = torch.rand(8, 6, dtype=torch.float64)
    low, high = x - 0.3, x + 0.3
    result = CounterfactualExplainer(model, bounds=(low, high)).generate(x, immutable=["feature 2", 4])
    assert not result.changed[:, [2, 4]].any()
    assert torch.equal(result.counterfactual[:, [2, 4]], x[:, [2, 4]])
    assert ((result.counterfactual >= low) & (result.counterfactual <= high)).all()
    stuck = CounterfactualExplainer(model, bounds=(x - 1e-6, x + 1e-6)).generate(x)
    assert not stuck.valid.any()
    assert torch.equal(stuck.counterfactual, x)
    assert stuck.proved == ("nothing",) * 8
    assert (stuck.nearest >= stuck.before).all()


def test_goals_targets_and_examples_that_are_there_already():
    model = net()
    x = torch.rand(8, 6, dtype=torch.float64)
    start = model(x).argmax(1)
    reach = CounterfactualExplainer(model, bounds=(-3, 3)).generate(x, torch.full((8,), 1))
    assert (model(reach.counterfactual).argmax(1)[reach.valid] == 1).all()
    assert reach.valid.all()
    assert (reach.n_changed[start == 1] == 0).all()
    assert torch.equal(reach.counterfactual[start == 1], x[start == 1])
    value = lambda z: model(z)[:, 0]
    goal = Between(float(value(x).max().detach()) + 0.1, float(value(x).max().detach()) + 0.2)
    band = CounterfactualExplainer(value, bounds=(-3, 3)).generate(x, goal)
    inside = (value(band.counterfactual) > goal.low) & (value(band.counterfactual) < goal.high)
    assert torch.equal(inside, band.valid)
    assert band.valid.all()


def test_rows_do_not_depend_on_their_batch_nor_on_its_order():
    model = net()
    x = torch.rand(5, 6, dtype=torch.float64)
    explainer = CounterfactualExplainer(model, bounds=(0, 1))
    whole, order = explainer.generate(x), torch.tensor([3, 1, 4, 0, 2])
    shuffled = explainer.generate(x[order])
    torch.testing.assert_close(shuffled.counterfactual, whole.counterfactual[order])
    for i in range(5):
        alone = explainer.generate(x[i : i + 1])
        torch.testing.assert_close(alone.counterfactual[0], whole.counterfactual[i])
        assert torch.equal(alone.changed[0], whole.changed[i])


def test_a_batch_costs_each_row_what_it_costs_alone_and_few_more_calls():
    model, data = zoo.load("breast-cancer", limit=6)
    calls = Counter(model)

    def ask(x):
        calls.calls = 0
        box = (x - 0.15).clamp(min=0), (x + 0.15).clamp(max=1)
        with calls:
            result = CounterfactualExplainer(model, bounds=box).generate(x)
        return calls.calls, result.forwards, result.backwards

    together, forwards, backwards = ask(data.x)
    alone = [ask(data.x[i : i + 1]) for i in range(6)]
    assert together <= 1.5 * max(called for called, *_ in alone)
    for i, (_, forward, backward) in enumerate(alone):
        assert abs(int(forwards[i] - forward)) <= 0.02 * int(forward) + 12
        assert abs(int(backwards[i] - backward)) <= 0.02 * int(backward)


def test_tuples_dicts_tokens_and_no_examples():
    two = lambda a, b: torch.stack([a.sum(1) + b.flatten(1).sum(1), 1 + 0 * a.sum(1)], 1)
    a, b = torch.full((3, 2), 0.6), torch.full((3, 2, 2), 0.1)
    result = CounterfactualExplainer(two, bounds=(0, 1)).generate((a, b))
    assert result.valid.all()
    assert isinstance(result.counterfactual, tuple)
    assert result.changed.shape == (3, 6)
    named = CounterfactualExplainer(lambda *, b, a: two(a, b), bounds=(0, 1)).generate({"a": a, "b": b})
    torch.testing.assert_close(named.counterfactual["a"], result.counterfactual[0])

    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    tokens = torch.randint(1, 9, (6, 5))
    swapped = CounterfactualExplainer(words, reference=0).generate(tokens)
    assert (words(swapped.counterfactual).argmax(1) != words(tokens).argmax(1))[swapped.valid].all()
    assert ((swapped.counterfactual == 0) == swapped.changed).all()
    assert swapped.valid.any()

    empty = CounterfactualExplainer(two, bounds=(0, 1)).generate((a[:0], b[:0]))
    assert len(empty) == 0
    assert empty.counterfactual[1].shape == (0, 2, 2)


def test_the_model_is_left_as_it_was():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    CounterfactualExplainer(model, bounds=(0, 1)).generate(
        torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator())
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(rng, torch.get_rng_state())


X = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "call", "told"),
    [
        ({}, {}, "bounds=\\(0, 1\\)"),
        ({"reference": "paint"}, {}, "'inpaint'"),
        ({"bounds": (0, torch.inf)}, {}, "finite"),
        ({"bounds": (0.9, 1)}, {}, "inside the bounds"),
        ({"bounds": (0, 1), "by": "a little"}, {}, "a number above 0"),
        ({"bounds": (0, 1), "by": 0}, {}, "above 0"),
        ({"bounds": (0, 1)}, {"immutable": ["age"]}, "no feature"),
        ({"bounds": (0, 1)}, {"immutable": [17]}, "no feature"),
        ({"bounds": (0, 1)}, {"names": ["a"]}, "each of the 6"),
        ({"bounds": (0, 1)}, {"target": "best"}, "'runner-up'"),
        ({"bounds": (0, 1)}, {"target": 7}, "target must hold classes from 0 to 2"),
        ({"bounds": (0, 1)}, {"target": torch.ones(2)}, r"use target.long\(\)"),
        ({"bounds": (0, 1)}, {"min_prob": 2}, "between 0 and 1"),
        ({"bounds": (0, 1)}, {"target": Between(0, 1, 0), "min_prob": 0.5}, "of a class"),
        ({"bounds": (0, 1)}, {"time_limit": 0}, "above 0 seconds"),
        ({"bounds": (0, 1), "distance": "l3"}, {}, "'l0\\+l1'"),
        ({"bounds": (0, 1), "strategy": "magic"}, {}, "'guided'"),
        ({"bounds": (0, 1), "steps": 0}, {}, "steps must be a whole number of at least 1, got 0"),
        ({"bounds": (0, 1)}, {"names": list("abcdea")}, "names must differ from one another, got 'a' twice"),
    ],
)
def test_bad_input_is_named(make, call, told):
    with pytest.raises(ValueError, match=told):
        CounterfactualExplainer(net(), **make).generate(X, **call)


def test_a_box_is_no_schema():
    with pytest.raises(TypeError, match="schema must be a FeatureSchema, .* got tuple; a box is given by name"):
        CounterfactualExplainer(net(), (0, 1))


@pytest.mark.parametrize("how", [{"bounds": (0, 1)}, {"reference": 0.0}, {"values": [0.0, 1.0]}], ids=["m", "r", "v"])
@pytest.mark.parametrize("x", [X, X[:, :0]], ids=["all fixed", "no columns"])
def test_where_nothing_may_change_nothing_can_be_done_which_is_proved(how, x):
    model = lambda z: torch.stack([z.sum(1) + 1, z.sum(1)], 1)
    result = CounterfactualExplainer(model, **how).generate(x, immutable=range(x.shape[1]))
    assert result.status == ("infeasible", "infeasible")
    assert CounterfactualExplainer(model, **how).generate(x, 0, immutable=range(x.shape[1])).proved == ("smallest",) * 2


@pytest.mark.parametrize("strategy", ["guided", "fmn", "proximal", "masked-pgd", "wachter", "growing-spheres"])
def test_one_feature_is_the_fewest_whoever_finds_it(strategy):
    model = lambda z: torch.stack([1 - 0.6 * z[:, 0], 0.1 + z[:, 1]], 1)
    result = CounterfactualExplainer(model, bounds=(0, 1), strategy=strategy).generate(torch.full((2, 2), 0.1))
    assert result.valid.all()
    assert [p == "smallest" for p in result.proved] == (result.n_changed == 1).tolist()


@pytest.mark.parametrize("distance", ["l0+l1", "l2"])
def test_flat_ground_behind_the_boundary_is_no_news(distance):  # warnings are errors here
    cliff = lambda z: torch.where(z.sum(1) < 1, z.sum(1) - 1.5, 0.5 + 0 * z.sum(1))
    result = CounterfactualExplainer(cliff, bounds=(0, 1), distance=distance).generate(X[:, :2] / 3, lambda out: out)
    assert result.valid.all()


def test_masks_go_by_the_names_of_the_inputs_and_goals_may_be_functions():
    two = lambda a, b: torch.stack([a.sum(1) + b.sum(1), 1 + 0 * a.sum(1)], 1)
    x = {"a": torch.full((3, 3), 0.2), "b": torch.full((3, 3), 0.05)}
    masks = {"b": torch.tensor([[1, 2, 3]]), "a": torch.tensor([[0, 0, 0]])}
    result = CounterfactualExplainer(two, bounds=(0, 1)).generate(x, feature_mask=masks, immutable=[1, 2, 3])
    assert result.valid.all()
    assert (result.counterfactual["a"] != x["a"]).any(1).all()  # one block, and nothing of b
    assert torch.equal(result.counterfactual["b"], x["b"])
    with pytest.raises(ValueError, match="feature_mask is for a, q, but the inputs are a, b"):
        CounterfactualExplainer(two, bounds=(0, 1)).generate(x, feature_mask={"a": masks["a"], "q": masks["b"]})
    small = CounterfactualExplainer(lambda z: z.sum(1) * 1e-4, bounds=(0, 1)).generate(x["a"], lambda out: out - 2e-4)
    assert small.valid.all()
    with pytest.raises(ValueError, match="bounds and reference"):
        CounterfactualExplainer(two, bounds=(0, 1), reference=0.0)


def test_whole_numbers_are_told_how_they_may_change():
    with pytest.raises(TypeError, match="give values="):
        CounterfactualExplainer(lambda z: z.double(), bounds=(0, 5)).generate(torch.tensor([[1, 3]]))

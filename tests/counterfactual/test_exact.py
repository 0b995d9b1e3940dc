"""The exact strategy against slow, obvious truth: closed forms, every pattern of ReLUs, every row of a table."""

from functools import partial
from itertools import combinations, pairwise, product

import exact as linear_truth
import exact_relu as relu_truth
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustx.counterfactual import CounterfactualExplainer, Feature, FeatureSchema, Linear
from robustx.counterfactual.exact import exact
from robustx.counterfactual.programme import Space, answer
from robustx.engine import Everything, Probe
from robustx.engine.affine import Unreadable, read
from robustx.perturb.goals import Between, Leave

NORMS = {"l1": "L1", "l2": "L2", "linf": "Linf", "l0+l1": "L0"}
BY = 1e-4


def explained(model, x, target="other", strategy=exact, **more):
    settings = {"bounds": (0.0, 1.0), "by": BY, "scale": 1.0} | more
    asked = {k: settings.pop(k) for k in ("immutable", "max_changes", "feature_mask", "time_limit") if k in settings}
    return CounterfactualExplainer(model, strategy=strategy, **settings).generate(x, target, **asked)


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(*sizes, seed=0):
    """Steep enough for answers to change inside the unit box."""
    torch.manual_seed(seed)
    parts = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    for m in parts[::2]:
        nn.init.normal_(m.weight, std=3 / m.in_features**0.5), nn.init.normal_(m.bias, std=0.5)
    return nn.Sequential(*parts).double()


def layers(model):
    return [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]


# --- linear models ----------------------------------------------------------------------------------------


def logistic(name):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    low, high = x.min(0), x.max(0)
    x = (x - low) / np.where(high > low, high - low, 1)
    told = LogisticRegression(max_iter=2000).fit(x, y)
    weight, bias = told.coef_, told.intercept_
    if len(weight) == 1:
        weight, bias = np.r_[-weight, weight] / 2, np.r_[-bias, bias] / 2
    model = nn.Linear(x.shape[1], len(weight)).double()
    model.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return model, torch.from_numpy(x[:: len(x) // 4][:4])


def truth(model, x, norm, low=0.0, high=1.0):
    """By BY, so its own class has that much more."""
    weight, bias, y = model.weight.detach().numpy(), model.bias.detach().numpy(), model(x).argmax(1)
    ends = [np.broadcast_to(end, x.shape) for end in (low, high)]
    found = []
    for i in range(len(x)):
        own = bias + BY * (np.arange(len(bias)) == int(y[i]))
        found += list(linear_truth.distances(weight, own, x[i : i + 1], y[i : i + 1], norm, ends[0][i], ends[1][i]))
    return np.array(found)


@pytest.mark.parametrize("distance", NORMS)
@pytest.mark.parametrize("name", ["breast_cancer", "wine", "digits"])
def test_linear_models_are_left_by_the_least_change(name, distance):
    model, x = logistic(name)
    result = explained(model, x, distance=distance)
    move = result.counterfactual - x
    size = {"l1": move.abs().sum(1), "l2": move.norm(dim=1), "linf": move.abs().amax(1), "l0+l1": (move != 0).sum(1)}
    np.testing.assert_allclose(size[distance].numpy(), truth(model, x, NORMS[distance]), rtol=1e-9)
    assert set(result.proved) == {"optimal"}


@pytest.mark.parametrize("distance", ["l1", "l2", "linf", "l0+l1"])
def test_one_logit_is_two_classes(distance):
    model, x = logistic("breast_cancer")
    single = lambda z: (model(z)[:, 1] - model(z)[:, 0])[:, None]
    one, two = (explained(m, x, distance=distance) for m in (single, model))
    torch.testing.assert_close(one.counterfactual, two.counterfactual)
    assert one.proved == two.proved


@pytest.mark.parametrize("distance", NORMS)
def test_what_a_linear_model_cannot_do_is_told(distance):
    model, x = logistic("wine")
    low, high = (x - 0.12).clamp(min=0), (x + 0.12).clamp(max=1)
    least = truth(model, x, NORMS[distance], low.numpy(), high.numpy())
    result = explained(model, x, distance=distance, bounds=(low, high))
    assert 0 < np.isinf(least).sum() < len(x)
    assert [s == "infeasible" for s in result.status] == np.isinf(least).tolist()
    assert torch.equal(result.valid, torch.from_numpy(np.isfinite(least)))


@pytest.mark.parametrize("distance", ["l1", "l2", "linf"])
def test_a_class_is_reached_by_the_least_change_between_all_others(distance):
    model, x = logistic("wine")
    result = explained(model, x, (model(x).argmax(1) + 1) % 3, distance=distance)
    weight, bias = layers([model])[0]
    for i in range(len(x)):
        y = (int(model(x[i]).argmax()) + 1) % 3
        a = np.array([weight[r] - weight[y] for r in range(3) if r != y])
        b = np.array([bias[y] - bias[r] - BY for r in range(3) if r != y])
        assert result.proved[i] == "optimal"
        size = float(np.linalg.norm(result.counterfactual[i] - x[i], {"l1": 1, "l2": 2, "linf": np.inf}[distance]))
        if distance == "l2":  # no point nearer in all of a fine sample of the ball, and the gradient of the nearest
            nearest = _projected(a, b, x[i].numpy())
            assert size == pytest.approx(nearest, rel=1e-5)
        else:
            assert size == pytest.approx(_least(a, b, x[i].numpy(), distance), rel=1e-6)


def _least(a, b, x, distance):
    """min |d| with a @ (x + d) <= b and x + d in the unit box, as a linear programme."""
    d = len(x)
    far = np.eye(d) if distance == "l1" else np.ones((d, 1))
    sizes = far.shape[1]
    rows = np.r_[np.c_[a, np.zeros((len(a), sizes))], np.c_[np.eye(d), -far], np.c_[-np.eye(d), -far]]
    told = linprog(
        np.r_[np.zeros(d), np.ones(sizes)],
        rows,
        np.r_[b, x, -x],
        bounds=np.r_[np.tile([0, 1], (d, 1)), np.tile([0, np.inf], (sizes, 1))],
    )
    return told.fun if told.status == 0 else np.inf


def _projected(a, b, x, rounds=20000):
    """Dykstra's alternating projections (1983) onto the half-spaces and the box."""
    z, left = x.copy(), np.zeros((len(a) + 1, len(x)))
    for _ in range(rounds):
        before = z
        for j in range(len(a) + 1):
            y = z + left[j]
            if j < len(a):
                z = y - max(a[j] @ y - b[j], 0) / (a[j] @ a[j]) * a[j]
            else:
                z = y.clip(0, 1)
            left[j] = y - z
        if abs(z - before).max() < 1e-14:
            break
    return np.linalg.norm(z - x)


# --- ReLU networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["l1", "linf"])
@pytest.mark.parametrize("sizes", [(6, 5, 5, 3), (6, 10, 2)])
def test_relu_networks_are_left_by_what_another_programme_finds(sizes, distance):
    model, x = network(*sizes), uniform(2, sizes[0])
    result = explained(model, x, distance=distance, by=1e-9)
    for i in range(len(x)):
        near, _, _ = relu_truth.nearest(layers(model), x[i].numpy(), int(model(x[i]).argmax()), NORMS[distance], 3.0)
        size = np.linalg.norm((result.counterfactual - x)[i], {"l1": 1, "linf": np.inf}[distance])
        assert size == pytest.approx(near, rel=1e-5)
        assert result.proved[i] == "optimal"


def patterns(model, x, y, movable, box=(0.0, 1.0)):
    """Least L1 with only ``movable`` free: one linear programme for every pattern of ReLUs and every rival."""
    parts, d, best = layers(model), len(x), np.inf
    hidden = [len(b) for _, b in parts[:-1]]
    bounds = [box if j in movable else (x[j], x[j]) for j in range(d)] + [(0, None)] * d
    far = np.r_[np.c_[np.eye(d), -np.eye(d)], np.c_[-np.eye(d), -np.eye(d)]]
    for on in product([0.0, 1.0], repeat=sum(hidden)):
        slope, shift, rows, most, at = np.eye(d), np.zeros(d), [], [], 0
        for weight, bias in parts[:-1]:
            slope, shift, now = weight @ slope, weight @ shift + bias, np.array(on[at : at + len(bias)])
            rows, most, at = (
                [*rows, *((1 - 2 * now)[:, None] * slope)],
                [*most, *((2 * now - 1) * shift)],
                at + len(bias),
            )
            slope, shift = now[:, None] * slope, now * shift
        slope, shift = parts[-1][0] @ slope, parts[-1][0] @ shift + parts[-1][1]
        for rival in set(range(len(shift))) - {y}:
            a = np.array([*rows, slope[y] - slope[rival]])
            told = linprog(
                np.r_[np.zeros(d), np.ones(d)],
                np.r_[np.c_[a, np.zeros_like(a)], far],
                np.r_[most, shift[rival] - shift[y] - BY, x, -x],
                bounds=bounds,
            )
            best = min(best, told.fun if told.status == 0 else np.inf)
    return best


@pytest.mark.filterwarnings("ignore::robustx.attacks.base.ZeroGradientWarning")  # some are flat where they start
@pytest.mark.parametrize("seed", range(2))
def test_the_fewest_features_and_then_the_least_are_those_of_every_subset(seed):
    model, x = network(4, 3, 2, 2, seed=seed), uniform(3, 4, seed=seed)
    result = explained(model, x)
    for i in range(len(x)):
        y = int(model(x[i]).argmax())
        for size in range(1, 5):
            least = min(patterns(model, x[i].numpy(), y, s) for s in combinations(range(4), size))
            if np.isfinite(least):
                break
        if np.isinf(least):
            assert result.status[i] == "infeasible"
        else:
            assert result.proved[i] == "optimal"
            assert result.n_changed[i] == size
            assert float((result.counterfactual - x)[i].abs().sum()) == pytest.approx(least, rel=1e-6)


def test_what_is_said_holds_for_all_that_may_be_asked():
    model, x = network(6, 6, 3), uniform(3, 6)
    few = explained(model, x, immutable=[0, 3], max_changes=2, distance="l0+linf")
    assert not few.changed[:, [0, 3]].any()
    assert torch.equal(few.counterfactual[:, [0, 3]], x[:, [0, 3]])
    assert (few.n_changed <= 2).all()
    assert set(few.status) <= {"valid", "infeasible"}
    grouped = explained(model, x, feature_mask=torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert grouped.changed.shape == (3, 3)
    single = explained(model, x)
    assert (grouped.n_changed <= single.n_changed)[single.valid].all()
    tight = explained(model, x, bounds=(x - 1e-3, x + 1e-3))
    assert tight.status == ("infeasible",) * 3
    assert torch.equal(tight.counterfactual, x)


def test_an_interval_and_a_function_of_ones_own_are_reached():
    model, x = network(4, 5, 1), uniform(2, 4)
    value = lambda z: model(z)[:, 0]
    low = value(x).max().item() + 0.01
    band = explained(value, x, Between(low, low + 0.01), distance="l1")
    own = explained(value, x, lambda out: torch.minimum(out - low, low + 0.01 - out), distance="l1")
    assert band.status == own.status
    assert "valid" in band.status
    for result in (band, own):
        there = value(result.counterfactual)[result.valid]
        assert ((there > low) & (there < low + 0.01)).all()
    torch.testing.assert_close(band.counterfactual, own.counterfactual, atol=1e-6, rtol=0)
    first = explained(
        lambda z: model(z).repeat(1, 2), x, Between(low, low + 0.01, lambda out: out[:, 1]), distance="l1"
    )
    torch.testing.assert_close(band.counterfactual, first.counterfactual, atol=1e-6, rtol=0)


def test_float32_models_keep_what_was_proved():
    model, x = network(5, 5, 3).float(), uniform(4, 5).float()
    result = explained(model, x)
    wide = explained(network(5, 5, 3), x.double())
    assert torch.equal(result.valid, wide.valid)
    assert torch.equal(result.n_changed, wide.n_changed)
    assert (result.margin >= BY)[result.valid].all()
    assert result.counterfactual.dtype == torch.float32


@pytest.mark.parametrize("aim", ["L1", "Linf"])
def test_units_costs_and_sums_are_those_of_a_linear_programme(aim):
    draw, statuses = np.random.default_rng(0), []
    part = np.array([0, 0, 1, 2, 2])
    for _ in range(20):
        home, room = draw.uniform(-50, 50, 5), draw.uniform(0, 30, (2, 5))
        sums = draw.normal(size=(2, 5))
        least = sums @ home - draw.uniform(0, 5, 2)
        cost, slope, far = draw.uniform(0.1, 2, 5), draw.normal(size=5), draw.uniform(0, 60)
        model = nn.Linear(5, 1).double()
        model.load_state_dict({"weight": torch.from_numpy(slope)[None], "bias": torch.tensor([-slope @ home])})
        net = read(Probe(model, (torch.zeros(1, 5, dtype=torch.float64),), Everything()))
        way = net.out.weight.numpy(), net.out.bias.numpy() - far
        movable = draw.random(5) < 0.85
        space = Space(home, home - room[0], home + room[1], np.arange(5), movable, cost, part, sums=(sums, least))
        told = answer(net, space, [way], 0.0, False, aim)
        ways = np.r_[slope[None], sums]  # over the parts of a move that go up, and those that go down
        above, most, sizes = -np.c_[ways, -ways], -np.r_[far, least - sums @ home], np.r_[cost, cost]
        ends = np.c_[np.zeros(10), np.r_[room[1] * movable, room[0] * movable]]
        if aim == "Linf":
            member = np.equal.outer(np.arange(3), part) * cost
            above = np.r_[np.c_[above, np.zeros((3, 1))], np.c_[member, member, -np.ones((3, 1))]]
            most, sizes, ends = np.r_[most, np.zeros(3)], np.r_[np.zeros(10), 1], np.r_[ends, [[0, np.inf]]]
        truth = linprog(sizes, above, most, bounds=ends)
        statuses.append(told.status)
        assert (told.status == "infeasible") == (truth.status == 2)
        if told.x is not None:
            assert space.size(told.x, aim) == pytest.approx(truth.fun, rel=1e-7)
            assert told.least == pytest.approx(truth.fun, rel=1e-6)
            assert (sums @ told.x >= least - 1e-7).all()
    assert set(statuses) == {"optimal", "infeasible"}


# --- other ways to change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_table_changes_by_the_best_of_all_its_rows(seed):
    schema = FeatureSchema(
        [
            Feature("age", "integer", range=(20, 24), direction="increase", cost=2),
            Feature("worked", "integer", range=(0, 4)),
            Feature("rate", range=(0, 1), step=0.25),
            Feature("school", "ordinal", ("low", "middle", "high"), max_change=1),
            Feature("job", "categorical", ("none", "part", "full"), transitions={"full": ["part"]}),
        ],
        dtype=torch.float64,
    ).add_constraint(Linear({"age": 1, "worked": -1}, ">=", 19))
    rows = {
        "age": [20, 22, 21, 20],
        "worked": [1, 3, 0, 1],
        "rate": [0.25, 0.5, 1.0, 0.3],
        "school": ["low", "high", "middle", "low"],
        "job": ["full", "none", "part", "part"],
    }
    x, scaled = schema.encode(rows), torch.tensor([0.2, 0.3, 1.0, 0.5, 1, 1, 1], dtype=torch.float64)
    inner = network(7, 6, 3, seed=seed)
    model = lambda z: inner((z - torch.tensor([20.0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)) * scaled)
    result = CounterfactualExplainer(model, schema, strategy=exact, by=BY).generate(x)
    every = torch.tensor(
        list(product(range(20, 25), range(5), np.arange(0, 1.25, 0.25), range(3), range(3))), dtype=torch.float64
    )
    cost = torch.tensor([2 / 4, 1 / 4, 1.0, 1 / 2])
    for i, home in enumerate(schema.codes(rows)):
        y = int(model(x[i : i + 1]).argmax())
        found = torch.cat([torch.where(torch.tensor(w), every, home) for w in product([False, True], repeat=5)])
        allowed = schema.violations(home.expand_as(found), found).row.unique()
        good = torch.ones(len(found), dtype=torch.bool)
        good[torch.from_numpy(allowed)] = False
        out = model(schema.encoded(found))
        good &= out.scatter(1, torch.full((len(out), 1), y), -torch.inf).amax(1) - out[:, y] > BY
        move = (found - home).abs()
        size = move[:, :4] @ cost.double() + (move[:, 4] > 0)
        count = (move > 0).sum(1)
        if not good.any():
            assert result.status[i] == "infeasible"
            continue
        fewest = count[good].min()
        least = size[good & (count == fewest)].min()
        assert result.proved[i] == "optimal"
        assert result.n_changed[i] == fewest
        there = (schema.decoded(result.counterfactual[i : i + 1], home[None]) - home).abs()[0]
        assert float(there[:4] @ cost.double() + (there[4] > 0)) == pytest.approx(float(least), abs=1e-9)
    assert "optimal" in result.proved


@pytest.mark.parametrize("seed", range(2))
def test_features_that_give_way_whole_are_the_surest_of_the_smallest_sets(seed):
    model, x = network(8, 7, 3, seed=seed), uniform(4, 8, seed=seed)
    result = CounterfactualExplainer(model, reference=0.0, strategy=exact, by=BY).generate(x, n=2)
    sets = torch.tensor(list(product([False, True], repeat=8)))
    for i in range(len(x)):
        y = int(model(x[i]).argmax())
        out = model(torch.where(sets, 0.0, x[i])).detach()
        margin = out.scatter(1, torch.full((len(out), 1), y), -torch.inf).amax(1) - out[:, y]
        good = margin > BY
        for one in (result, *result.alternatives):
            if not good.any():
                assert one.status[i] == "infeasible"
                break
            fewest = sets.sum(1)[good].min()
            assert one.n_changed[i] == fewest
            assert one.proved[i] == "optimal"
            surest = margin[good & (sets.sum(1) == fewest)].max()
            assert float(one.margin[i]) == pytest.approx(float(surest), abs=1e-6)
            good &= (sets & one.changed[i]).sum(1) < fewest  # the next one contains not all of these


def test_features_take_the_nearest_of_the_listed_values():
    model, x, values = network(5, 6, 3), uniform(3, 5), [0.0, 0.5, 1.0]
    result = CounterfactualExplainer(model, values=values, strategy=exact, by=BY).generate(x)
    for i in range(len(x)):
        own = [[float(v), *values] for v in x[i]]
        every = torch.tensor(list(product(*own)), dtype=torch.float64)
        y = int(model(x[i]).argmax())
        out = model(every).detach()
        good = out.scatter(1, torch.full((len(out), 1), y), -torch.inf).amax(1) - out[:, y] > BY
        count, size = (every != x[i]).sum(1), (every - x[i]).abs().sum(1)
        fewest = count[good].min()
        assert result.proved[i] == "optimal"
        assert result.n_changed[i] == fewest
        least = size[good & (count == fewest)].min()
        assert float((result.counterfactual - x)[i].abs().sum()) == pytest.approx(float(least))


# --- limits -----------------------------------------------------------------------------------------------


def test_without_time_there_is_what_the_search_finds_and_no_proof():
    model, x = network(10, 16, 16, 3), uniform(2, 10)
    hasty = explained(model, x, strategy=partial(exact, seconds=0.0), distance="l1")
    usual = explained(model, x, strategy="auto", distance="l1")
    torch.testing.assert_close(hasty.counterfactual, usual.counterfactual)
    assert "optimal" not in hasty.proved
    assert "infeasible" not in hasty.status
    stopped = explained(network(20, 60, 60, 3), uniform(2, 20), distance="l1", time_limit=1.0)
    assert stopped.status[1] in ("valid", "out of time")
    assert stopped.proved[1] != "optimal"


@pytest.mark.parametrize(
    ("model", "told", "more"),
    [
        (lambda z: network(4, 3, 2)(z).softmax(1), "softmax", {}),
        (lambda z: network(4, 3, 2)(z).tanh(), "tanh", {}),
        (network(4, 3, 2), "norm L2", {"distance": "l2"}),
        (nn.Linear(4, 2).double(), "norm L2", {"distance": "l0+l2"}),
    ],
    ids=["probabilities", "smooth", "L2", "fewest and L2"],
)
def test_what_has_no_exact_answer_is_refused(model, told, more):
    with pytest.raises(Unreadable, match=told):
        explained(model, uniform(2, 4), **more)


def test_probabilities_of_two_classes_are_exact_and_of_more_refused():
    model, x = network(4, 5, 2), uniform(3, 4)
    y = model(x).argmax(1)
    sure = CounterfactualExplainer(model, bounds=(-2.0, 2.0), strategy=exact, distance="l1").generate(
        x, 1 - y, min_prob=0.7
    )
    p = model(sure.counterfactual).softmax(1).gather(1, 1 - y[:, None]).squeeze(1)
    assert sure.valid.any()
    torch.testing.assert_close(p[sure.valid], torch.full_like(p[sure.valid], 0.7), atol=1e-4, rtol=0)
    with pytest.raises(Unreadable, match="several classes"):
        CounterfactualExplainer(network(4, 5, 3), bounds=(0.0, 1.0), strategy=exact).generate(x, 1, min_prob=0.7)


def test_rows_do_not_depend_on_their_batch_and_no_rows_are_none():
    model, x = network(6, 6, 3), uniform(3, 6)
    whole = explained(model, x)
    alone = explained(model, x[1:2])
    torch.testing.assert_close(alone.counterfactual[0], whole.counterfactual[1])
    assert len(explained(model, x[:0])) == 0
    there = explained(model, x, Leave((model(x).argmax(1) + 1) % 3))
    assert there.status == ("already valid",) * 3

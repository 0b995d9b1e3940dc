"""Shapley's family against its definitions, its axioms, captum, and the spread of its own draws."""

from itertools import chain, combinations, pairwise, permutations
from math import factorial

import captum.attr
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import nn
from torch.futures import Future
from torch.testing import assert_close

import robustx.attribution
from robustx.attribution import (
    BanzhafValues,
    OwenValues,
    ShapleyInteractions,
    ShapleyValues,
    ShapleyValueSampling,
    shapley_values,
)
from robustx.attribution.coalitions import Coalitions
from robustx.attribution.shapley import STRATA, Paths, mirrored, stratified_orders
from robustx.engine import Each, Layer, Output, Probe
from robustx.perturb import columns, here

pytestmark = pytest.mark.filterwarnings("ignore:Feature mask is missing some integers:UserWarning")  # captum's

SAMPLINGS = ["permutation", "antithetic", "stratified"]
EXACT = {
    "exact": (ShapleyValues, {}),
    "owen": (OwenValues, {}),
    "owen flat": (OwenValues, {"hierarchy": "flat"}),
}
DRAWN = {s: (ShapleyValueSampling, {"n_samples": 5, "seed": 3, "sampling": s}) for s in SAMPLINGS}
DRAWN["owen drawn"] = (OwenValues, {"n_samples": 3, "seed": 3})


class Game(nn.Module):
    """A cooperative game: players are there where the input is 1, and each set has a value of its own."""

    def __init__(self, values):
        super().__init__()
        self.values, self.n = values, len(values).bit_length() - 1

    def forward(self, x):
        return self.values[(x.round().long() << torch.arange(self.n)).sum(1)]


def game(n, seed=0):
    torch.manual_seed(seed)
    return Game(torch.randn(2**n, dtype=torch.float64))


def everyone(n):
    return torch.ones(1, n, dtype=torch.float64)


def asked(way, f, n):
    """What a method says of the game."""
    method, options = way
    if options.get("hierarchy") == "flat":
        options = options | {"hierarchy": tuple(range(n)) if n > 1 else 0}
    return method(f).attribute(everyone(n), **options)[0]


def value(f, members):
    return f.values[sum(1 << i for i in members)].item()


def subsets(of):
    return chain.from_iterable(combinations(of, k) for k in range(len(of) + 1))


def by_orders(f, n, orders):
    """Mean gains over given orders: the definition."""
    found = torch.zeros(n, dtype=torch.float64)
    for order in orders:
        for k, i in enumerate(order):
            found[i] += (value(f, order[: k + 1]) - value(f, order[:k])) / len(orders)
    return found


def arrangements(tree):
    """All orders in which what stands together comes together."""
    if isinstance(tree, int):
        return [(tree,)]
    found = []
    for parts in permutations(tree):
        ways = [()]
        for part in parts:
            ways = [w + a for w in ways for a in arrangements(part)]
        found += ways
    return found


# --- the definitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_all_sets_are_all_orders(n):
    f = game(n)
    assert_close(asked(EXACT["exact"], f, n), by_orders(f, n, list(permutations(range(n)))), rtol=0, atol=1e-12)


TREES = [((0, 1), (2, (3, 4))), (0, 1, (2, 3, 4)), ((((4, 3), 2), 1), 0), ((0,), (1, 2), (3, 4)), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_owen_values_are_means_over_nested_orders(tree):
    f = game(5)
    found = OwenValues(f).attribute(everyone(5), hierarchy=tree)[0]
    assert_close(found, by_orders(f, 5, arrangements(tree)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 7))
def test_banzhaf_values_are_means_over_sets(n):
    f = game(n)
    expected = [
        sum(value(f, (*s, i)) - value(f, s) for s in subsets(set(range(n)) - {i})) / 2 ** (n - 1) for i in range(n)
    ]
    assert_close(asked((BanzhafValues, {}), f, n).tolist(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 7))
def test_interactions_by_their_definition(n):
    f = game(n)
    found = asked((ShapleyInteractions, {}), f, n)
    for i, j in combinations(range(n), 2):
        index = 0.0
        for s in subsets(set(range(n)) - {i, j}):
            weight = factorial(n - len(s) - 2) * factorial(len(s)) / factorial(n - 1)
            index += weight * (value(f, (*s, i, j)) - value(f, (*s, i)) - value(f, (*s, j)) + value(f, s))
        assert found[i, j].item() == pytest.approx(index, abs=1e-12)
        assert found[j, i] == found[i, j]
    alone = asked(EXACT["exact"], f, n) - (found.sum(1) - found.diagonal()) / 2
    assert_close(found.diagonal(), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
def test_all_pairs_are_neighbours_once(n):
    paths = Paths(torch.stack([torch.randperm(n) for _ in range(6)]).reshape(2, 3, n)).orders
    even = n + n % 2
    for unit in paths.flatten(0, 1):
        assert all(sorted(path) == list(range(even)) for path in unit.tolist())
        pairs = sorted(tuple(sorted(p)) for path in unit.tolist() for p in pairwise(path))
        assert pairs == sorted(combinations(range(even), 2))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_stratified_orders(n, seed):
    """Orders, as likely each; a feature that comes early in one comes late in another."""
    f = game(n)
    players = Coalitions(Probe(f, (everyone(n).expand(2, n),)), columns([], n), here(0.0))
    orders = stratified_orders(players, seed)(range(400), torch.arange(2))
    assert orders.shape == (2, 400, STRATA, n)
    assert (orders.sort(-1).values == torch.arange(n)).all()
    assert torch.equal(mirrored(orders).orders, torch.cat([orders, orders.flip(-1)], 2))
    place = orders[0].argsort(-1).double()
    counts = torch.stack([(place[:, 0] == k).double().mean(0) for k in range(n)])  # of each feature in the first walk
    assert (counts - 1 / n).abs().max() < 4.5 * (1 / n / 400) ** 0.5
    spread, alone = place.mean(1).var(0), place.var((0, 1)) / STRATA
    assert n == 1 or (spread < 0.7 * alone).all()


# --- the axioms -------------------------------------------------------------------------------------------

every = pytest.mark.parametrize("way", [*EXACT.values(), *DRAWN.values()], ids=[*EXACT, *DRAWN])
exact = pytest.mark.parametrize("way", EXACT.values(), ids=EXACT)
some_game = given(st.integers(1, 6), st.integers(0, 2**31))


@every
@settings(max_examples=8, deadline=None)
@some_game
def test_efficiency(way, n, seed):
    """However few orders are drawn."""
    f = game(n, seed)
    rise = value(f, range(n)) - value(f, ())
    assert asked(way, f, n).sum().item() == pytest.approx(rise, abs=1e-10)


@pytest.mark.parametrize("options", [{}, {"n_samples": 1}, {"n_samples": 3}], ids=str)
@settings(max_examples=8, deadline=None)
@some_game
def test_interactions_add_up(options, n, seed):
    f = game(n, seed)
    found = asked((ShapleyInteractions, options), f, n)
    assert found.triu().sum().item() == pytest.approx(value(f, range(n)) - value(f, ()), abs=1e-10)


@every
@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_linearity(way, n, seed):
    f, g = game(n, seed), game(n, seed + 1)
    both = asked(way, Game(2 * f.values - 3 * g.values), n)
    assert_close(both, 2 * asked(way, f, n) - 3 * asked(way, g, n), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "way", [*EXACT.values(), *DRAWN.values(), (BanzhafValues, {})], ids=[*EXACT, *DRAWN, "banzhaf"]
)
@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_a_dummy_gets_what_it_brings_alone(way, n, seed):
    f, there = game(n, seed), torch.arange(2**n) & 1
    f.values = f.values[torch.arange(2**n) & ~1] + 0.7 * there.double()
    assert asked(way, f, n)[0].item() == pytest.approx(0.7, abs=1e-10)


@pytest.mark.parametrize(
    "way", [EXACT["exact"], EXACT["owen flat"], (BanzhafValues, {})], ids=["exact", "flat", "banzhaf"]
)
@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_symmetry(way, n, seed):
    """Players that can stand in for one another get the same."""
    f = game(n, seed)
    numbers = torch.arange(2**n)
    one, other = numbers & 1, numbers >> 1 & 1
    swapped = numbers - one - 2 * other + other + 2 * one
    f.values = (f.values + f.values[swapped]) / 2
    found = asked(way, f, n)
    assert found[0].item() == pytest.approx(found[1].item(), abs=1e-10)


# --- captum -----------------------------------------------------------------------------------------------


def mlp(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


torch.manual_seed(1)
X, B = torch.randn(3, 5).double(), torch.randn(3, 5).double()
MASK = torch.tensor([[0, 1, 1, 2, 0]])
FORMS = {
    "elements": (mlp(), {"target": 1}),
    "baselines": (mlp(), {"target": [0, 2, 1], "baselines": B}),
    "mask": (mlp(), {"target": 1, "feature_mask": MASK, "baselines": 0.5}),
    "a mask each": (
        mlp(),
        {"target": 1, "feature_mask": torch.tensor([[0, 1, 1, 2, 0], [2, 2, 1, 0, 0], [0, 0, 1, 2, 2]])},
    ),
    "outputs": (mlp(), {}),
    "more outputs": (lambda x, net=mlp(6): net(x).unflatten(1, (2, 3)), {"feature_mask": MASK}),
    "one number for all": (lambda x, net=mlp(): net(x).sum(), {"feature_mask": MASK}),
    "a python number": (lambda x, net=mlp(): net(x).sum().item(), {}),
    "numbers for all": (lambda x, net=mlp(2): net(x).mean(0), {"feature_mask": MASK}),
    "a row for all": (lambda x, net=mlp(): net(x).mean(0, True), {"feature_mask": MASK}),
}


@pytest.mark.parametrize("name", ["ShapleyValues", "ShapleyValueSampling"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per", [1, 4])
def test_captum_says_the_same(name, form, per):
    """The same orders, if drawn from the same state of the same generator."""
    model, options = FORMS[form]
    if "all" in form or "python" in form:
        per = 1
    found = []
    for room in (captum.attr, None):
        torch.manual_seed(7)
        method = getattr(room, name) if room else {c.__name__: c for c in (ShapleyValues, ShapleyValueSampling)}[name]
        found.append(method(model).attribute(X, perturbations_per_eval=per, **options))
        state = torch.get_rng_state()
        found.append(state)
    theirs, after, ours, too = found
    assert ours.shape == theirs.shape
    assert_close(ours, theirs, rtol=0, atol=1e-6, check_dtype=False)  # captum adds up in float32
    assert torch.equal(after, too)


def test_captum_says_the_same_of_two_inputs_that_share_a_feature():
    net = mlp()
    f = lambda a, b: net(torch.cat([a, b], 1))
    pair, mask = (X[:, :2], X[:, 2:]), (torch.tensor([[0, 1]]), torch.tensor([[1, 2, 3]]))
    for ours, theirs in (
        (ShapleyValues, captum.attr.ShapleyValues),
        (ShapleyValueSampling, captum.attr.ShapleyValueSampling),
    ):
        found = []
        for method in (ours, theirs):
            torch.manual_seed(2)
            found.append(method(f).attribute(pair, target=0, feature_mask=mask))
        for a, b in zip(*found, strict=True):
            assert_close(a, b, rtol=0, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_keyed_draws_are_as_good_as_captums(sampling):
    """Over 20 seeds, both are centred on the exact values, and ours lie no further out."""
    model, x = mlp(), X[:1]
    truth = ShapleyValues(model).attribute(x, target=0)
    ours = torch.stack(
        [ShapleyValueSampling(model).attribute(x, target=0, n_samples=20, seed=s, sampling=sampling) for s in range(20)]
    )
    theirs = []
    for s in range(20):
        torch.manual_seed(s)
        theirs.append(captum.attr.ShapleyValueSampling(model).attribute(x, target=0, n_samples=20).double())
    theirs = torch.stack(theirs)
    for found in (ours, theirs):
        z = (found.mean(0) - truth) / (found.std(0) / 20**0.5)
        assert z.abs().max() < norm.ppf(1 - 1e-4 / 2)
    assert (ours - truth).square().mean() < 1.5 * (theirs - truth).square().mean()


def answered(f):
    def model(*args):
        answer = Future()
        answer.set_result(f(*args))
        return answer

    return model


def test_futures():
    model = mlp()
    torch.manual_seed(4)
    expected = ShapleyValueSampling(model).attribute(X, target=1)
    torch.manual_seed(4)
    theirs = captum.attr.ShapleyValueSampling(answered(model)).attribute_future(X, target=1)
    torch.manual_seed(4)
    ours = ShapleyValueSampling(answered(model)).attribute_future(X, target=1)
    assert isinstance(ours, Future)
    assert_close(ours.wait(), expected, rtol=0, atol=0)
    assert_close(ours.wait(), theirs.wait(), rtol=0, atol=1e-6, check_dtype=False)


# --- what is drawn ----------------------------------------------------------------------------------------

ESTIMATES = {
    **{s: (ShapleyValueSampling, {"sampling": s}, 32, ShapleyValues) for s in SAMPLINGS},
    "owen": (OwenValues, {}, 32, OwenValues),
    "banzhaf": (BanzhafValues, {}, 64, BanzhafValues),
    "interactions": (ShapleyInteractions, {}, 12, ShapleyInteractions),
}


def estimate(way, f, n, seed, **options):
    method, own, count, _ = ESTIMATES[way]
    return method(f).attribute(
        everyone(n), seed=seed, **{"n_samples": count, "return_intervals": True, **own, **options}
    )


@pytest.mark.parametrize("way", ESTIMATES)
def test_intervals_cover_the_truth_as_often_as_they_say(way):
    n = 6 if way != "stratified" else 4
    f, runs, confidence = game(n, 5), 100, 0.8
    truth = ESTIMATES[way][3](f).attribute(everyone(n))
    covered = torch.zeros_like(truth)
    total = torch.zeros_like(truth)
    for seed in range(runs):
        found, half = estimate(way, f, n, seed, confidence=confidence)
        covered += ((found - truth).abs() <= half + 1e-12).double()
        total += found / runs
    low = binom.ppf(1e-5, runs, confidence)
    assert (covered >= low).all()
    assert (covered.mean() <= runs * 0.97).all()
    assert (total - truth).abs().max() < 0.25 * truth.abs().max()


@pytest.mark.parametrize("way", ESTIMATES)
def test_precision_is_reached_and_not_much_more(way):
    f, n = game(5, 2), 5
    truth = ESTIMATES[way][3](f).attribute(everyone(n))
    rough, before = estimate(way, f, n, 1)
    want = before.max().item() / 3
    found, half = estimate(way, f, n, 1, precision=want)
    assert half.max() <= want < before.max()
    assert (found - truth).abs().max() <= 3 * want
    assert_close(estimate(way, f, n, 1, precision=10.0), (rough, before))


def test_examples_stop_by_themselves():
    """One that is sure at once is asked no more, and none depends on its company."""
    net, rows = mlp(), []

    def model(x):
        rows.append(len(x))
        return net(x)

    x = torch.cat([torch.zeros(1, 5).double(), X])
    options = {"target": 0, "seed": 3, "precision": 0.01, "n_samples": 10, "return_intervals": True}
    found, half = ShapleyValueSampling(model).attribute(x, **options)
    together = sum(rows)
    assert (half <= 0.01).all() and (found[0] == 0).all()
    rows.clear()
    for i in range(4):
        alone, width = ShapleyValueSampling(model).attribute(x[i : i + 1], **options)
        assert_close(alone[0], found[i], rtol=0, atol=1e-12)
        assert_close(width[0], half[i], rtol=1e-6, atol=1e-12)
    assert sum(rows) == together


def test_reversed_orders_are_exact_where_only_pairs_interact():
    torch.manual_seed(0)
    a = torch.randn(5, 5).double()
    f = lambda x: torch.einsum("bi,ij,bj->b", x, a, x)
    found, half = ShapleyValueSampling(f).attribute(
        X, n_samples=4, seed=0, sampling="antithetic", return_intervals=True
    )
    assert_close(found, ShapleyValues(f).attribute(X), rtol=0, atol=1e-12)
    assert half.max() < 1e-12
    rough = ShapleyValueSampling(f).attribute(X, n_samples=4, seed=0)
    assert (rough - found).abs().max() > 0.01


def test_a_single_group_has_no_interval():
    found, half = ShapleyValueSampling(mlp()).attribute(X, target=0, n_samples=1, return_intervals=True)
    assert half.isinf().all() and found.isfinite().all()


def test_draws_by_key_leave_the_generator_alone():
    method = ShapleyValueSampling(mlp())
    state = torch.get_rng_state()
    assert torch.equal(method.attribute(X, target=0, seed=1), method.attribute(X, target=0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(method.attribute(X, target=0), method.attribute(X, target=0))


# --- forms ------------------------------------------------------------------------------------------------


def test_token_ids():
    torch.manual_seed(0)
    table = torch.randn(10, dtype=torch.float64)
    ids = torch.randint(10, (4, 3))
    f = lambda ids: table[ids].prod(1)
    found = ShapleyValues(f).attribute(ids, baselines=0)
    drawn, half = ShapleyValueSampling(f).attribute(ids, baselines=0, seed=0, n_samples=60, return_intervals=True)
    assert found.dtype == torch.float64
    assert_close(found.sum(1), f(ids) - f(torch.zeros_like(ids)))
    assert ((drawn - found).abs() <= 3 * half + 1e-12).all() and half.max() < 0.5 * found.abs().max()
    assert_close(
        found[:, :1], captum.attr.ShapleyValues(f).attribute(ids, baselines=0)[:, :1].double(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("method", [ShapleyValues, OwenValues, BanzhafValues])
def test_several_outputs_are_as_many_games(method):
    model = mlp(6)
    f = lambda x: model(x).unflatten(1, (2, 3))
    found = method(f).attribute(X)
    assert found.shape == (3, 2, 3, 5)
    each = method(f).attribute(X, target=Each([(0, 1), (1, 2)]))
    for k, target in enumerate([(0, 1), (1, 2)]):
        assert_close(found[:, target[0], target[1]], method(f).attribute(X, target=target))
        assert_close(each[:, k], found[:, target[0], target[1]])
    pairs = ShapleyInteractions(f).attribute(X, feature_mask=MASK)
    assert pairs.shape == (3, 2, 3, 3, 3)
    assert_close(pairs[:, 1, 2], ShapleyInteractions(f).attribute(X, target=(1, 2), feature_mask=MASK))


def test_dtype_is_that_of_the_output():
    x = torch.rand(2, 3)
    assert ShapleyValues(lambda x: x.double().sum(1)).attribute(x).dtype == torch.float64
    assert ShapleyValues(lambda x: (x.sum(1) * 4).long()).attribute(x).dtype == torch.float32
    half = nn.Linear(3, 2).to(torch.bfloat16)
    assert ShapleyValueSampling(half).attribute(x.bfloat16(), target=0, seed=0).dtype == torch.bfloat16


def test_the_function_takes_any_place_and_any_features():
    """Pairs of hidden units, set to zero, in front of a linear layer: each brings its own."""
    model = mlp()
    f = Probe(model, (X,), Output(2), Layer(model[1]))
    found = shapley_values(Coalitions(f, columns([(0, 1), (2, 3), (4, 5), (6, 7)], 8), here(0.0)))
    hidden = (model[:2](X) * model[2].weight[2]).detach()
    assert_close(found, hidden.reshape(3, 4, 2).sum(2))


def test_passes():
    """Ends are shared, and every set is asked once."""
    rows = []

    def model(x):
        rows.append(len(x))
        return x.prod(1)

    for method, options, each in (
        (ShapleyValues, {}, 2**5),
        (ShapleyValueSampling, {"n_samples": 7}, 7 * 4 + 2),
        (OwenValues, {"hierarchy": (0, 1, 2, 3, 4)}, 2**5),
        (OwenValues, {"hierarchy": ((0, 1), (2, 3, 4))}, 4 + 2 * 2 + 2 * 6),
    ):
        rows.clear()
        method(model).attribute(X, **options)
        assert sum(rows) == 3 * each


def test_each_example_may_have_a_hierarchy_of_its_own():
    model, trees = mlp(), [((0, 1), (2, 3), 4), (0, (1, (2, (3, 4)))), (4, 3, 2, 1, 0)]
    for options in ({}, {"n_samples": 4}):
        found = OwenValues(model).attribute(X, target=1, hierarchy=trees, **options)
        for i, tree in enumerate(trees):
            alone = OwenValues(model).attribute(X[i : i + 1], target=1, hierarchy=tree, **options)
            assert_close(found[i : i + 1], alone)
    masks = torch.tensor([[3, 3, 8, 8, 8], [1, 1, 1, 3, 3], [8, 3, 1, 1, 1]])
    found = OwenValues(model).attribute(X, target=1, feature_mask=masks, hierarchy=[(3, 8), (1, 3), ((1, 8), 3)])
    assert_close(found[:1], ShapleyValues(model).attribute(X[:1], target=1, feature_mask=masks[:1]))


# --- mistakes ---------------------------------------------------------------------------------------------


def test_many_features_are_warned_about_and_more_refused():
    f, x = (lambda x: x.sum(1)), torch.ones(1, 17)
    with pytest.warns(UserWarning, match=r"17 features have 131072 sets.*ShapleyValueSampling"):
        assert_close(ShapleyValues(f).attribute(x), x)
    with pytest.raises(ValueError, match=r"2\^31 sets of 31 features.*feature_mask"):
        ShapleyValues(f).attribute(torch.ones(1, 31))
    with pytest.raises(ValueError, match="sets in this hierarchy.*n_samples"):
        OwenValues(f).attribute(torch.ones(1, 40), hierarchy=tuple(range(40)))
    assert_close(OwenValues(f).attribute(torch.ones(1, 40), hierarchy=tuple(range(40)), n_samples=2), torch.ones(1, 40))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1, got 0"),
        ({"precision": 0.0}, "precision must be above 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"sampling": "antithetical"}, "sampling must be one of 'permutation', 'antithetic', 'stratified'"),
    ],
)
def test_options_that_are_none(options, words):
    with pytest.raises(ValueError, match=words):
        ShapleyValueSampling(mlp()).attribute(X, target=0, **options)


@pytest.mark.parametrize(
    "tree, words",
    [
        ((0, 1, 2, 3), "lacks 4"),
        ((0, 1, 2, 3, 4, 9), "9 of what it names are none"),
        ((0, 1, 2, 3, 4, 4), "each of the 5 features once"),
        ([(0, 1, 2, 3, 4)], "one entry for each of the 3 examples, got 1"),
    ],
)
def test_hierarchies_that_do_not_fit(tree, words):
    with pytest.raises(ValueError, match=words):
        OwenValues(mlp()).attribute(X, target=0, hierarchy=tree)
    with pytest.raises(ValueError, match="with how many to begin"):
        OwenValues(mlp()).attribute(X, target=0, precision=0.1)


@pytest.mark.parametrize("name", ["ShapleyValueSampling", "ShapleyValues"])
@pytest.mark.parametrize("function", [lambda a, b: a.sum() ** 2 * b.sum(), lambda a, b: a.sum(1) * (1 + b.prod())])
@pytest.mark.parametrize("second", [torch.tensor([1.0, 2.0, 0.5, 2.0, 1.5]), torch.rand(5, 2)], ids=["ids", "table"])
def test_inputs_with_different_numbers_of_rows(name, function, second):
    inputs, found = (torch.randn(3, 4), second), []
    for library in (robustx.attribution, captum.attr):
        torch.manual_seed(0)
        found.append(getattr(library, name)(function).attribute(inputs))
    for mine, its in zip(*found, strict=True):
        assert_close(mine, its, rtol=0, atol=1e-4)


def test_no_intervals_for_inputs_with_different_numbers_of_rows():
    with pytest.raises(ValueError, match="return_intervals"):
        ShapleyValueSampling(lambda a, b: a.sum() + b.sum()).attribute(
            (torch.ones(3, 2), torch.ones(4)), return_intervals=True
        )

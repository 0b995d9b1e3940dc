"""Sets of features that suffice: by brute force on few features, rules that were planted, precisions by sampling."""

import itertools

import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from torch import nn
from torch.testing import assert_close

from robustx.attribution import Anchors, SufficientInputSubsets
from robustx.attribution.sufficient import Rule, best_rules
from robustx.engine import BlackBox
from robustx.perturb import mean, superpixels

# --- sufficient input subsets -----------------------------------------------------------------------------


def mlp(d):
    torch.manual_seed(d)
    return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0)).double()


def kept(model, x, reference, subset):
    """The score when only these features stay."""
    z = reference.clone()
    z[list(subset)] = x[list(subset)]
    with torch.no_grad():
        return model(z[None]).item()


def by_the_book(model, x, reference, threshold):
    """Carter et al., algorithms 1 to 3, word by word for one example."""
    found, alive = [], list(range(len(x)))
    while alive and kept(model, x, reference, alive) >= threshold:
        left, order = list(alive), []
        while left:
            best = max(left, key=lambda i: kept(model, x, reference, [j for j in left if j != i]))
            left.remove(best)
            order.append(best)
        subset = []
        while kept(model, x, reference, subset) < threshold:
            subset.append(order.pop())
        found.append(sorted(subset))
        if not subset:
            break
        alive = [i for i in alive if i not in subset]
    return found


@pytest.mark.parametrize("d", [4, 5, 7])
def test_the_algorithm(d):
    model, x, reference = mlp(d), torch.randn(6, d).double(), 0.3 * torch.randn(d).double()
    scores = model(x).detach()
    threshold = torch.lerp(model(reference[None]).detach().expand(6), scores, 0.9).clone()
    threshold[0] = scores[0] + 1  # out of reach
    found = SufficientInputSubsets(model).find(x, threshold, baselines=reference)
    assert found.features == [by_the_book(model, row, reference, t) for row, t in zip(x, threshold, strict=True)]
    assert found.features[0] == [] and max(len(s) for subsets in found.features for s in subsets) > 1


@pytest.mark.parametrize("seed", range(4))
def test_sets_suffice_and_nothing_can_be_left_out(seed):
    """Of a score that grows with every feature no subset of a set suffices; sets are disjoint."""
    torch.manual_seed(seed)
    weight, x = torch.rand(6).double(), torch.rand(5, 6).double()

    def model(x):
        return (x @ weight) ** 2

    threshold = 0.3 * model(x)
    found = SufficientInputSubsets(model).find(x, threshold)
    for i, subsets in enumerate(found.features):
        assert subsets
        for subset in subsets:
            assert kept(model, x[i], torch.zeros(6).double(), subset) >= threshold[i]
            for smaller in itertools.chain(*(itertools.combinations(subset, k) for k in range(len(subset)))):
                assert kept(model, x[i], torch.zeros(6).double(), smaller) < threshold[i]
        members = [j for s in subsets for j in s]
        assert len(members) == len(set(members))
        rest = [j for j in range(6) if j not in members]
        assert kept(model, x[i], torch.zeros(6).double(), rest) < threshold[i]
        for number, subset in enumerate(subsets):
            assert (found.maps[i] == number + 1).nonzero().flatten().tolist() == subset
        smallest = min(  # of all sets that suffice
            k for k in range(7) for s in itertools.combinations(range(6), k)
            if kept(model, x[i], torch.zeros(6).double(), s) >= threshold[i]
        )  # fmt: skip
        assert len(subsets[0]) == smallest


def test_nothing_suffices_where_the_reference_does():
    found = SufficientInputSubsets(lambda x: x.sum(1) + 9).find(torch.rand(2, 3), 5.0)
    assert found.features == [[[]], [[]]] and (found.maps == 0).all()
    assert SufficientInputSubsets(lambda x: x.sum(1)).find(torch.rand(0, 3), 5.0).features == []
    assert SufficientInputSubsets(lambda x: x.sum(1)).find(torch.ones(1, 6), 2.0, most=2).features[0] == [
        [4, 5],
        [2, 3],
    ]


def test_sets_of_superpixels_and_pairs():
    x = torch.zeros(2, 1, 8, 8)
    x[0, :, :4, 4:] = x[1, :, 4:, :4] = 1
    ids = superpixels(x, "grid", 4)
    found = SufficientInputSubsets(lambda x: x.flatten(1).sum(1)).find(x, 10, feature_mask=ids)
    assert found.features == [[[1]], [[2]]] and torch.equal(found.maps, x.long())
    pair = {"a": x[:, 0, 0, 4:], "b": torch.ones(2, 1)}
    found = SufficientInputSubsets(lambda a, b: a.sum(1) + 4 * b[:, 0]).find(pair, 3.5)
    assert found.features == [[[4], [0, 1, 2, 3]], [[4]]] and list(found.maps) == ["a", "b"]


def test_a_batch_is_its_examples():
    model, x = mlp(5), torch.randn(4, 5).double()
    reach = (model(x) - 0.2).detach()
    together = SufficientInputSubsets(model).find(x, reach, perturbations_per_eval=1)
    for i in range(4):
        assert SufficientInputSubsets(model).find(x[i : i + 1], reach[i : i + 1]).features == [together.features[i]]


# --- anchors ----------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """Class 1 where features 1 and 4 are both high, whatever the others are."""

    def forward(self, x):
        high = torch.minimum(x[:, 1], x[:, 4]) - 0.5
        return torch.stack([-high, high], 1)


def test_a_planted_rule_is_found():
    x = torch.rand(3, 6)
    x[:, [1, 4]] = 0.9
    x[2, 1] = 0.1
    both, _, one = Anchors(Planted()).find(x)
    assert (both.features, both.precision, both.coverage, both.decision) == ([1, 4], 1.0, 0.25, 1)
    assert both.at_least >= 0.95
    assert one.decision == 0 and one.features in ([1], [])  # 0 stays 0 if feature 1 stays low, or always


def test_precision_holds_on_samples_drawn_anew():
    """Of all rules but those whose bound failed, whose share is at most delta."""
    torch.manual_seed(0)
    weight, x = torch.randn(8).double(), torch.randn(12, 8).double()

    def model(x):
        return torch.stack([x @ weight, x.new_zeros(len(x))], 1)

    rules = Anchors(model).find(x, threshold=0.8, delta=0.1)
    failed, sizes = 0, []
    for row, rule in zip(x, rules, strict=True):
        stays = torch.rand(20_000, 8) < 0.5
        stays[:, rule.features] = True
        precision = ((row * stays) @ weight > 0).double().mean()
        precision = precision if rule.decision == 0 else 1 - precision
        failed += precision < 0.8
        assert rule.at_least >= 0.8 and abs(precision - rule.precision) < 0.1
        sizes.append(len(rule.features))
    assert failed <= 4  # 1.2 expected at most: more has a probability below 1 %
    assert len(set(sizes)) > 1


def test_a_forest_on_a_table():
    """Precision against rows of the data, coverage by counting rows."""
    data, y = (torch.from_numpy(v) for v in load_iris(return_X_y=True))
    forest = RandomForestClassifier(20, random_state=0).fit(data.numpy(), y.numpy())
    ask = BlackBox(forest.predict_proba)
    x = data[[0, 75, 140]]
    rules = Anchors(ask).find(x, data=data, threshold=0.9)
    quarters = torch.quantile(data, torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
    for row, rule in zip(x, rules, strict=True):
        others = data.clone()
        others[:, rule.features] = row[rule.features]
        assert (ask(others).argmax(1) == rule.decision).double().mean() > 0.88
        bins, own = (data[:, None] > quarters).sum(1), (row > quarters).sum(0)
        assert rule.coverage == pytest.approx((bins == own)[:, rule.features].all(1).double().mean().item())
        assert 0 < len(rule.features) < 4 and rule.coverage > 0.02


def test_words_and_superpixels():
    """Token ids give way to another id; superpixels to grey, as features of their own."""
    ids = torch.tensor([[3, 7, 2, 7]])

    def negated(ids):
        bad = (ids == 3).any(1) & (ids == 2).any(1)
        return torch.stack([~bad, bad], 1).double()

    [rule] = Anchors(negated).find(ids, baselines=0)
    assert rule.features == [0, 2] and rule.decision == 1
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, :4] = 1
    mask = superpixels(x, "grid", 4)
    lit = mask[x[:, :1].bool()].unique().tolist()
    [rule] = Anchors(lambda x: x.flatten(1).mean(1)).find(
        x, mean(torch.zeros(5, 3, 8, 8)), feature_mask=mask, decide=lambda out: out > 0.45
    )
    assert rule.features == lit and rule.decision == 1


def test_a_rule_does_not_depend_on_the_batch():
    x = torch.randn(4, 6)
    weight = torch.randn(6, generator=torch.Generator().manual_seed(3))

    def model(x):
        return torch.stack([x @ weight, x @ weight.flip(0)], 1)

    state = torch.get_rng_state()
    together = Anchors(model).find(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert Anchors(model).find(x[2:3], perturbations_per_eval=7) == together[2:3]
    assert Anchors(model).find(x[:0]) == []


def test_bounds_are_those_of_kullback_and_leibler():
    rule = Rule((0,), 200, 150)
    for upper in (False, True):
        q = rule.bound(3.0, upper)
        assert 200 * (0.75 * torch.tensor(0.75 / q).log() + 0.25 * torch.tensor(0.25 / (1 - q)).log()) == pytest.approx(
            3.0, rel=1e-4
        )
        assert (q > 0.75) == upper
    assert Rule((0,), 50, 50).bound(1.0, upper=False) == pytest.approx(2.718281828 ** (-1 / 50))
    assert (Rule(()).bound(1.0, upper=False), Rule(()).bound(1.0, upper=True)) == (0.0, pytest.approx(1.0))


def test_the_best_arms_are_found():
    """Within the tolerance, and with most samples where it is close."""
    means = [0.1, 0.5, 0.85, 0.9, 0.3]
    rules, g = [Rule((i,)) for i in range(5)], torch.Generator().manual_seed(0)

    def sample(some):
        for r in some:
            r.asked, r.kept = r.asked + 50, r.kept + int((torch.rand(50, generator=g) < means[r.features[0]]).sum())

    best = best_rules(rules, 2, sample, 0.05, 0.05)
    assert {r.features[0] for r in best} == {2, 3}
    assert rules[0].asked <= rules[4].asked <= rules[1].asked


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda x: SufficientInputSubsets(torch.sum).find(x, torch.ones(5), target=0), r"one for each example \[2\]"),
        (lambda x: Anchors(lambda x: x.sum(1)).find(x), r"shape \(2,\) has no classes .* decide="),
        (lambda x: Anchors(Planted()).find(x, threshold=1.0), "threshold must be above 0 and below 1, got 1.0"),
        (lambda x: Anchors(Planted()).find(x, beam=0), "beam must be a whole number of at least 1, got 0"),
        (lambda x: Anchors(Planted()).find(x, data=torch.rand(4, 5)), "do not fit input 0"),
        (lambda x: Anchors(3).find(x), "forward_func must be callable, got int"),
    ],
)
def test_what_does_not_fit_is_told(ask, words):
    with pytest.raises((ValueError, TypeError), match=words):
        ask(torch.rand(2, 6))


@pytest.mark.parametrize(
    "ask", [lambda m, x: SufficientInputSubsets(m).find(x, 0.0, target=1), lambda m, x: Anchors(m).find(x)]
)
def test_models_in_train_mode_are_refused(ask):
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout())
    with pytest.raises(ValueError, match="train mode"):
        ask(model, torch.rand(2, 6))


def test_maps_are_integers():
    found = SufficientInputSubsets(lambda x: x.sum(1)).find(torch.ones(1, 4), 2.0)
    assert_close(found.maps, torch.tensor([[2, 2, 1, 1]]))

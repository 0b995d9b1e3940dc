"""Curves, correlations, shapes and places: closed forms, brute force over every step, and laws."""

import pytest
import scipy.stats
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, IntegratedGradients, superpixels
from robustx.attribution.metrics import (
    Curve,
    completeness,
    complexity,
    deletion,
    effective_complexity,
    faithfulness_correlation,
    faithfulness_estimate,
    insertion,
    monotonicity,
    pointing_game,
    relevance_mass,
    relevance_rank,
    road,
    sparseness,
)
from robustx.engine import NonFiniteError, Predicted, Probability
from robustx.perturb import Windows


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture
def x():
    return torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def by_hand(model, x, a, score, back, away):
    """One place after another, one example after another; no two places are attributed the same."""
    curves = []
    for i, picture in enumerate(x):
        order = a[i].sum(0).flatten().argsort(descending=True)
        scores = []
        for k in range(len(order) + 1):
            gone = torch.zeros(len(order), dtype=torch.bool)
            gone[order[:k]] = True
            z = torch.where((~gone if back else gone).reshape(picture.shape[1:]), away, picture)
            scores.append(score(model(z[None])[0], i))
        curves.append(torch.stack(scores))
    return torch.stack(curves)


@pytest.mark.parametrize("back", [False, True], ids=["deletion", "insertion"])
@pytest.mark.parametrize("most", [None, 2], ids=["in budget", "two rows"])
def test_curves_are_those_of_single_steps(net, x, back, most):
    y, a = torch.tensor([2, 0, 1]), torch.randn(x.shape)
    found = (insertion if back else deletion)(
        net, x, a, Probability(y), baselines=0.25, steps=36, max_examples_per_batch=most
    )
    with torch.no_grad():
        expected = by_hand(net, x, a, lambda out, i: out.softmax(0)[y[i]], back, 0.25)
    assert_close(found.scores, expected, atol=1e-5, rtol=1e-4)
    assert_close(found.shares, torch.arange(37) / 36)
    assert found.forwards.tolist() == [37] * 3  # as they are, and each further step, once
    widths = torch.full((36,), 1 / 36)
    assert_close(found.area, ((expected[:, 1:] + expected[:, :-1]) / 2) @ widths, atol=1e-5, rtol=1e-4)
    assert_close(
        found.aopc, torch.stack([expected[:, 0] - expected[:, k] for k in range(37)]).mean(0), atol=1e-5, rtol=1e-4
    )


def test_of_a_linear_model_the_true_attributions_have_the_steepest_curve_of_all_orders():
    torch.manual_seed(0)
    w, x = torch.randn(5), torch.rand(1, 5)
    model = lambda x: x @ w
    best = deletion(model, x, x * w)
    assert_close(
        best.scores[0],
        (x * w)[0].sum() - torch.cat([torch.zeros(1), (x * w)[0].sort(descending=True).values.cumsum(0)]),
    )
    for order in torch.rand(20, 1, 5):
        assert best.area <= deletion(model, x, order).area + 1e-6
        assert insertion(model, x, x * w).area >= insertion(model, x, order).area - 1e-6
    assert deletion(model, x, -x * w, order="least").area == best.area
    assert deletion(model, x, x * w, order="least").area >= best.area
    absolute = deletion(model, x, (x * w).abs())
    assert_close(deletion(model, x, x * w, order="magnitude").scores, absolute.scores)


def test_insertion_is_deletion_seen_from_the_other_end(net, x):
    a = torch.randn(x.shape)
    there = insertion(net, x, a, 1, steps=12)
    away = deletion(net, x, -a, 1, steps=12)
    assert_close(there.scores, away.scores.flip(1), atol=1e-5, rtol=1e-4)


def test_features_give_way_whole_and_in_steps(net, x):
    mask = superpixels(x, "grid", 9)
    found = deletion(net, x, torch.randn(x.shape), 0, feature_mask=mask)
    assert found.scores.shape == (3, 10)
    assert deletion(net, x, x, 0, steps=4).shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert_close(deletion(net, x, x, 0, steps=[0.1, 0.5]).shares, torch.tensor([4 / 36, 0.5]))
    windows = Windows.over((x,), (2, 3, 3), (2, 3, 3))
    assert deletion(net, x, x, 0, feature_mask=windows).scores.shape == (3, 5)


def test_a_mean_over_features_does_not_prefer_the_large_ones():
    x, mask = torch.ones(1, 5), torch.tensor([[0, 0, 0, 0, 1]])
    shown = torch.tensor([[2.0, 2.0, 2.0, 2.0, 3.0]])  # what each feature is worth
    worth = lambda x: 2 * x[:, 0] + 3 * x[:, 4]
    assert deletion(worth, x, shown, feature_mask=mask, pool="mean").scores.tolist() == [[5, 2, 0]]
    assert deletion(worth, x, shown, feature_mask=mask).scores.tolist() == [[5, 3, 0]]


def test_ties_are_broken_by_key_and_not_by_place(net, x):
    flat = torch.zeros_like(x)
    first, again, other = (deletion(net, x, flat, 0, seed=s).scores for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert_close(deletion(net, x.flip(0), flat, 0).scores, first.flip(0))  # nor by the place in the batch
    shares = torch.stack(
        [
            deletion(lambda x: x[..., 0, 0].sum(1), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), seed=s).area[0]
            for s in range(40)
        ]
    )
    assert shares.unique().numel() == 4


def test_tokens_named_inputs_and_maps_of_one_channel(net, x):
    table = torch.tensor([0.0, 1.0, 4.0, 9.0])
    ids = torch.tensor([[1, 3, 2]])
    assert deletion(lambda ids: table[ids].sum(1), {"ids": ids}, {"ids": ids.float()}).scores.tolist() == [
        [14, 5, 1, 0]
    ]
    one = torch.rand(3, 1, 6, 6)
    assert_close(deletion(net, x, one, 0).scores, deletion(net, x, one.expand_as(x), 0).scores)


def test_road_scores_whether_the_class_is_kept(net, x):
    y = net(x).argmax(1)
    found = road(net, x, torch.rand(x.shape), y)
    assert_close(found.shares, (torch.arange(10) * 3.6).round() / 36)
    assert (found.scores[:, 0] == 1).all() and found.scores.unique().tolist() in ([0, 1], [1])
    soft = road(net, x, torch.rand(x.shape), Probability(y))
    assert_close(soft.scores[:, 0], net(x).softmax(1).amax(1).detach())
    assert_close(Predicted(y).value(net(x), torch.arange(3)), torch.ones(3))
    with pytest.raises(ValueError, match="takes no baselines"):
        road(net, x, x, y, baselines=0)
    with pytest.raises(ValueError, match="Inpainted is for pictures"):
        road(lambda x: x, torch.rand(2, 4), torch.rand(2, 4), 0)


def test_a_table_of_a_curve():
    table = Curve(torch.tensor([0.0, 1.0]), torch.tensor([[3.0, 1.0], [2.0, 0.0]]), torch.tensor([2, 2])).to_pandas()
    assert table.to_dict("list") == {"example": [0, 0, 1, 1], "share": [0, 1, 0, 1], "score": [3, 1, 2, 0]}


def test_correlations_are_those_of_the_falls(net, x):
    """Of single features all falls are known; random sets of one feature each draw from them."""
    mask = superpixels(x, "grid", 9)
    falls = FeatureAblation(net).attribute(x, target=1, feature_mask=mask)
    a = torch.randn(x.shape)
    sums = torch.zeros(3, 9).scatter_add_(1, mask.expand(3, 2, 6, 6).flatten(1), a.flatten(1))
    told = torch.zeros(3, 9).scatter_(1, mask.expand(3, 2, 6, 6).flatten(1), falls.flatten(1))
    expected = torch.tensor([scipy.stats.pearsonr(*pair).statistic for pair in zip(sums, told.detach(), strict=True)])
    assert_close(faithfulness_estimate(net, x, a, 1, feature_mask=mask), expected.double(), atol=1e-5, rtol=1e-4)
    some = faithfulness_correlation(net, x, a, 1, feature_mask=mask, size=1, samples=400)
    assert_close(some, expected.double(), atol=0.15, rtol=0)


@pytest.mark.parametrize("size", [1, 0.5, 3], ids=["one", "half", "three"])
def test_exact_attributions_of_an_affine_model_correlate_fully(size):
    torch.manual_seed(0)
    w, x, b = torch.randn(6), torch.rand(4, 6), torch.rand(4, 6)
    found = faithfulness_correlation(lambda x: x @ w + 3, x, (x - b) * w, baselines=b, size=size, samples=20)
    assert_close(found, torch.ones(4, dtype=torch.float64), atol=1e-4, rtol=0)
    against = faithfulness_correlation(lambda x: x @ w + 3, x, (b - x) * w, baselines=b, size=size, samples=20)
    assert_close(against, -found, atol=1e-4, rtol=0)
    assert (faithfulness_correlation(lambda x: x @ w, x, torch.ones(4, 6), size=size, samples=20) == 0).all()
    one = faithfulness_correlation(lambda x: x.square() @ w, x, x, size=size)
    alone = [
        faithfulness_correlation(lambda x: x.square() @ w, x[i : i + 1], x[i : i + 1], size=size) for i in range(4)
    ]
    assert_close(one, torch.cat(alone), atol=1e-4, rtol=1e-4)  # sets belong to the example


def test_monotonicity_counts_the_steps_that_do_not_fall():
    w, x = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.ones(1, 4)
    model = lambda x: x @ w
    assert monotonicity(model, x, w.abs()[None]).tolist() == [0.5]
    assert monotonicity(lambda x: x @ w.abs(), x, w[None]).tolist() == [1]


def test_completeness_is_what_is_missing(net, x):
    a = IntegratedGradients(net).attribute(x, target=2, n_steps=60)
    small = completeness(net, x, a, 2)
    assert (small < 0.05).all()
    rise = (net(x) - net(torch.zeros_like(x)))[:, 2].detach()
    assert_close(completeness(net, x, torch.zeros_like(x), 2), rise.abs(), atol=1e-5, rtol=1e-4)


def test_sparseness_and_complexity_have_their_closed_forms():
    n, k = 12, 3
    some = torch.zeros(1, n)
    some[0, :k] = torch.tensor([2.0, -2.0, 2.0])  # k of n alike
    assert_close(sparseness(some), torch.tensor([1 - k / n], dtype=torch.float64))
    assert_close(complexity(some), torch.tensor([3.0], dtype=torch.float64).log())
    assert effective_complexity(some).tolist() == [k]
    a = torch.randn(5, n)
    gaps = (a.abs()[:, :, None] - a.abs()[:, None, :]).abs().mean((1, 2)) / (2 * a.abs().mean(1))  # half the mean gap
    assert_close(sparseness(a), gaps.double(), atol=1e-6, rtol=1e-5)
    assert_close(complexity(a), torch.from_numpy(scipy.stats.entropy(a.abs().double().numpy(), axis=1)))
    for metric in (sparseness, complexity, effective_complexity):
        assert metric(torch.zeros(2, 4)).tolist() == [0, 0]
        assert_close(metric(3 * a), metric(a))
        assert_close(metric((a[:, :5], {"rest": a[:, 5:]}["rest"].reshape(5, 1, 7))), metric(a))


def test_localisation_counts_places():
    torch.manual_seed(0)
    a, mask = torch.rand(4, 2, 5, 5), torch.rand(4, 5, 5) < 0.4
    heat, there = a.sum(1).flatten(1), mask.flatten(1)
    assert pointing_game(a, mask).tolist() == [bool(t[h.argmax()]) for h, t in zip(heat, there, strict=True)]
    assert_close(relevance_mass(a, mask), ((heat * there).sum(1) / heat.sum(1)).double())
    ranks = [
        len(set(h.topk(int(t.sum())).indices.tolist()) & set(t.nonzero()[:, 0].tolist())) / int(t.sum())
        for h, t in zip(heat, there, strict=True)
    ]
    assert_close(relevance_rank(a, mask), torch.tensor(ranks, dtype=torch.float64))
    assert_close(relevance_mass(torch.ones(4, 5, 5), mask, weighted=True), torch.ones(4, dtype=torch.float64))
    assert_close(relevance_rank(torch.ones(4, 5, 5), mask), there.double().mean(1))  # equals are shared
    inside = torch.where(mask[:, None], a, -a)
    for metric in (pointing_game, relevance_mass, relevance_rank):
        assert metric(inside, mask[:, None]).tolist() == [1] * 4


def test_the_pointing_game_forgives_a_near_miss():
    a, mask = torch.zeros(1, 7, 7), torch.zeros(1, 7, 7)
    a[0, 1, 1] = mask[0, 3, 3] = 1
    assert [bool(pointing_game(a, mask, t)) for t in (0, 1, 2)] == [False, False, True]


class Counting(nn.Module):
    """Counts its passes, draws, and takes a number and a shift for each example."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(36, 3)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x, scale, shift=None):
        self.passes += 1
        out = self.head(x[:, 0].flatten(1)).tanh() * scale[:, None]
        return out if shift is None else out + shift[:, None] * x.mean((1, 2, 3))[:, None]


ASKING = {
    "deletion": lambda *a, **k: deletion(*a, **k).scores,
    "insertion": lambda *a, **k: insertion(*a, steps=7, **k).scores,
    "road": lambda *a, **k: road(*a, **k).scores,
    "faithfulness correlation": faithfulness_correlation,
    "faithfulness estimate": faithfulness_estimate,
    "monotonicity": monotonicity,
    "completeness": completeness,
}


@pytest.mark.parametrize("name", list(ASKING))
def test_examples_are_judged_alone_and_leave_no_trace(x, name):
    torch.manual_seed(0)
    model, a, y = Counting(), torch.randn(x.shape), torch.tensor([2, 0, 1])
    scale, shift = torch.rand(3), torch.rand(3)
    state = torch.get_rng_state()

    def ask(rows, most=None):
        further = {"additional_forward_args": scale[rows], "additional_forward_kwargs": {"shift": shift[rows]}}
        return ASKING[name](model, x[rows], a[rows], y[rows], max_examples_per_batch=most, **further)

    found = ask(slice(0, 3))
    assert_close(torch.cat([ask(slice(i, i + 1)) for i in range(3)]), found, atol=1e-5, rtol=1e-4)
    assert_close(ask(torch.tensor([2, 0, 1]), most=4), found[[2, 0, 1]], atol=1e-5, rtol=1e-4)
    assert model.passes == 0 and model.head.weight.grad is None and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"model.eval\(\) first"):
        ASKING[name](nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(72, 3)), x, a, y)


BAD = {
    "attributions of another shape": (lambda m, x: deletion(m, x, x[..., :3], 0), "LayerAttribution.interpolate"),
    "attributions that are no numbers": (lambda m, x: deletion(m, x, x / 0 * 0, 0), "attributions contain NaN"),
    "one of two": (lambda m, x: deletion(m, (x, x), x, 0), "one tensor for each of 2 inputs"),
    "an unknown order": (lambda m, x: deletion(m, x, x, 0, order="first"), "order must be 'most'"),
    "an unknown pool": (lambda m, x: deletion(m, x, x, 0, pool="max"), "pool must be 'sum' or 'mean'"),
    "no steps": (lambda m, x: deletion(m, x, x, 0, steps=0), "steps must be a whole number"),
    "steps in disorder": (lambda m, x: deletion(m, x, x, 0, steps=[0.5, 0.1]), "ascending shares"),
    "steps that are one": (lambda m, x: deletion(m, x, x, 0, steps=[0.5, 0.501]), "choose shares further apart"),
    "sets of all": (
        lambda m, x: faithfulness_correlation(m, x, x, 0, size=36),
        "size must be a number of features from 1 to 35",
    ),
    "no such baseline": (lambda m, x: deletion(m, x, x, 0, baselines="grey"), "reference must be 'blur'"),
    "masks of other pictures": (lambda m, x: pointing_game(x, x[:, 0, :3]), "must be of the same pictures"),
    "no object": (lambda m, x: relevance_mass(x, 0 * x), "no object in example 0"),
    "no attributions": (lambda m, x: sparseness(()), "tensors .* got none"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_does_not_fit_is_told(net, x, case):
    ask, words = BAD[case]
    with pytest.raises((ValueError, NonFiniteError), match=words):
        ask(net, x)

"""Sanity checks and the table of many methods."""

from functools import partial

import pytest
import scipy.stats
import torch
from torch import nn
from torch.testing import assert_close

from robustx import plot
from robustx.attribution import (
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    Saliency,
    superpixels,
)
from robustx.attribution.metrics import (
    METRICS,
    Metric,
    compare_methods,
    completeness,
    complexity,
    data_randomisation,
    deletion,
    faithfulness_correlation,
    insertion,
    parameter_randomisation,
    pointing_game,
    rank_correlation,
    road,
    sensitivity_max,
    sparseness,
    structural_similarity,
)
from robustx.engine import Probability


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 3)
    ).eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_gradient_forgets_and_what_looks_at_the_input_alone_does_not(net, x):
    class Edges:
        """Looks like an explanation, and asks no model."""

        def __init__(self, model):
            self.forward_func = model

        def attribute(self, inputs, target):
            return inputs.diff(dim=3, append=inputs[..., :1])

    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    found = parameter_randomisation(Saliency(net), x, target=0, absolute=True)
    assert found.layers == ("6", "4", "1", "0") and found.similarity.shape == (4, 5)
    assert found.similarity[-1].mean() < 0.5
    assert (parameter_randomisation(Edges(net), x, target=0).similarity > 0.999).all()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # neither the model nor the draws moved
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(parameter_randomisation(Saliency(net), x, target=0, absolute=True).similarity, found.similarity)


def test_layers_alone_and_in_cascade(net, x):
    cascade = parameter_randomisation(Saliency(net), x, target=1, layers=["6", "4"])
    alone = parameter_randomisation(Saliency(net), x, target=1, layers=["6", "4"], cascade=False)
    assert_close(cascade.similarity[0], alone.similarity[0])
    assert not torch.allclose(cascade.similarity[1], alone.similarity[1])
    assert repr(alone).startswith("Randomised one by one: 6 ")
    assert alone.to_pandas()["layer"].tolist() == ["6"] * 5 + ["4"] * 5


def test_a_layer_method_and_one_that_draws_are_copied_whole(net, x):
    cam = parameter_randomisation(LayerGradCam(net, net[2]), x, target=0, cascade=False)
    assert (cam.similarity < 0.999).any()
    shap = GradientShap(net)
    same = parameter_randomisation(
        shap,
        x,
        target=0,
        baselines=torch.zeros(2, 1, 8, 8),
        layers=["0"],
        similarity=lambda a, b: (a - b).abs().flatten(1).amax(1),
    )
    assert (same.similarity > 0).all()
    free = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), Scaled(), nn.Linear(144, 2))
    found = parameter_randomisation(GradientShap(free), x, target=0, baselines=torch.zeros(2, 1, 8, 8))
    assert found.layers == ("3", "2", "0")


class Scaled(nn.Module):
    """Has parameters that it does not know how to initialise."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(144))

    def forward(self, x):
        return x * self.scale


def test_new_parameters_of_no_known_kind_keep_their_mean_and_spread():
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(), nn.Linear(144, 1))
    seen = []

    class Spy(Saliency):
        def attribute(self, inputs, **kwargs):
            seen.append(self.forward_func[0].scale.detach().clone())
            return super().attribute(inputs, **kwargs)

    parameter_randomisation(Spy(model), torch.rand(2, 144), layers=["0"])
    first, then = seen
    assert not torch.equal(first, then)
    assert abs(first.mean() - then.mean()) < 0.1 and abs(first.std() - then.std()) < 0.1


def test_explanations_of_shuffled_labels(x):
    labels = (x.flatten(1)[:, :32].sum(1) > x.flatten(1)[:, 32:].sum(1)).long()
    given = []

    def train(labels):
        given.append(labels)
        model = nn.Linear(64, 2)
        nn.init.constant_(model.weight, float(labels[0]) + 1)
        return nn.Sequential(nn.Flatten(), model)

    right = train(labels)
    found = data_randomisation(Saliency, right, train, x, labels=torch.arange(5), target=0)
    assert sorted(given[1].tolist()) == [0, 1, 2, 3, 4] and found.shape == (5,)
    assert_close(data_randomisation(IntegratedGradients, right, right, x, target=0), torch.ones(5, dtype=torch.float64))
    mirrored = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    mirrored[1].weight.data = -right[1].weight.data
    against = data_randomisation(IntegratedGradients, right, mirrored, x, target=0)
    assert_close(against, -torch.ones(5, dtype=torch.float64))
    assert_close(data_randomisation(IntegratedGradients, right, mirrored, x, target=0, absolute=True), -against)


def test_similarities_are_scipys_and_scikit_images(x):
    a, b = torch.randn(4, 1, 8, 8).round(decimals=1), torch.randn(4, 1, 8, 8).round(decimals=1)  # with ties
    expected = [scipy.stats.spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(a, b, strict=True)]
    assert_close(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float64))
    assert_close(structural_similarity(a, 3 * a), torch.ones(4, dtype=torch.float64))  # of any scale
    assert (structural_similarity(a, b) < 0.5).all()


METHODS = ("saliency", "times input", "given", "function")


@pytest.fixture
def methods(net, x):
    return {
        "saliency": Saliency(net),
        "times input": InputXGradient(net),
        "given": torch.randn(x.shape, generator=torch.Generator().manual_seed(2)),
        "function": partial(IntegratedGradients(net).attribute, n_steps=20),
    }


def test_a_table_holds_what_its_metrics_say_one_by_one(net, x, methods):
    y = net(x).argmax(1)
    asked = {"baselines": 0.5, "feature_mask": superpixels(x, "grid", 16)}
    names = ("deletion", "insertion", "faithfulness", "completeness", "sparseness", "complexity", "road")
    table = compare_methods(net, x, y, methods, names, steps=8, samples=30, **asked)
    assert table.methods == METHODS and table.values.shape == (4, 7, 5)
    for i, method in enumerate(methods.values()):
        a = method if isinstance(method, torch.Tensor) else getattr(method, "attribute", method)(x, target=y)
        single = [
            deletion(net, x, a, y, steps=8, **asked).area,
            insertion(net, x, a, y, steps=8, **asked).area,
            faithfulness_correlation(net, x, a, y, samples=30, size=0.2, **asked),
            completeness(net, x, a, y, **asked),
            sparseness(a),
            complexity(a),
            road(net, x, a, y, feature_mask=asked["feature_mask"]).scores.mean(1),
        ]
        assert_close(table.values[i], torch.stack([s.double() for s in single]), atol=1e-5, rtol=1e-4)
    rows = dict(zip(names, table.forwards.tolist(), strict=True))
    assert rows["deletion"] == [4 * 8 + 1] * 5  # the pictures as they are, once for all methods
    assert rows["faithfulness"] == [30] * 5  # the same sets for all
    assert rows["sparseness"] == [0] * 5


def test_a_score_may_be_asked_for_in_place_of_a_target(net, x):
    y = net(x).argmax(1)
    soft = compare_methods(net, x, Probability(y), [Saliency(net)], ["deletion", "road"])
    a = Saliency(net).attribute(x, target=Probability(y))
    assert_close(soft.values[0, 0].float(), deletion(net, x, a, Probability(y), steps=20).area)
    assert_close(soft.values[0, 1].float(), road(net, x, a, y).scores.mean(1))


def test_metrics_that_explain_again(net, x):
    methods = [Saliency(net), Saliency(net), GuidedBackprop(net)]
    table = compare_methods(net, x, 1, methods, ["sensitivity", "randomisation", "infidelity"])
    assert table.methods == ("Saliency", "Saliency 2", "Guided Backprop")
    assert_close(table.values[0], table.values[1])
    assert_close(table.values[0, 0].float(), sensitivity_max(Saliency(net).attribute, x, target=1, seed=0))
    assert_close(
        table.values[2, 1], parameter_randomisation(GuidedBackprop(net), x, target=1, absolute=True).similarity[-1]
    )
    exact = compare_methods(lambda x: x.sum((1, 2, 3)), x, methods=[x, -x, 0 * x], metrics=["infidelity"])
    assert_close(exact.values[:2, 0], torch.zeros(2, 5, dtype=torch.float64), atol=1e-6, rtol=0)  # up to a factor
    assert (exact.values[2] > 1).all()


def test_ranks_and_differences_are_those_of_the_numbers(x):
    mask = x.sum(1) > 0.5
    own = Metric("pointing", lambda t: pointing_game(t.attributions[0], mask), high=True)
    last = Metric("last", lambda t: t.attributions[0][:, 0, 0, 0], high=False)
    methods = {"low": x - 2, "high": x, "same": x.clone()}
    table = compare_methods(lambda x: x.sum((1, 2, 3)), x, methods=methods, metrics=[own, last])
    assert_close(table.means[:, 1], torch.stack([m[:, 0, 0, 0].mean() for m in methods.values()]).double())
    assert table.ranks[:, 1].tolist() == [1, 2.5, 2.5]
    against, _, tie = table.differences("last")
    assert (against.first, against.second, tie.second) == ("low", "high", "same")
    assert_close(torch.tensor([against.low, against.mean, against.high]), torch.full((3,), -2.0), atol=1e-5, rtol=0)
    assert against.clear and not tie.clear
    noise = torch.randn(5, 1, 8, 8)
    noisy = compare_methods(lambda x: x.sum((1, 2, 3)), x, methods={"a": x, "b": x + noise}, metrics=[last])
    (gap,) = noisy.differences("last", 0.9)
    expected = scipy.stats.ttest_1samp(-noise[:, 0, 0, 0].double(), 0).confidence_interval(0.9)
    assert_close((gap.low, gap.high), tuple(map(float, expected)), atol=1e-5, rtol=1e-4)
    assert len(table.to_pandas()) == 3 * 2 * 5 and table.to_pandas()["value"].iloc[5] == table.values[0, 1, 0]


def test_a_table_reads_and_draws(net, x):
    table = compare_methods(net, x, 0, [Saliency(net), FeatureAblation(net)])
    head, *rows = repr(table).split("\n")
    assert head.split() == ["deletion", "↓", "insertion", "↑", "faithfulness", "↑", "sparseness", "↑", "mean", "rank"]
    assert [r.split("  ")[0] for r in rows] == ["Saliency", "Feature Ablation"]
    assert sum(r.count("*") for r in rows) == 4 and len({len(r) for r in (head, *rows)}) == 1
    panels = table.plot("which one").axes
    assert [a.get_title() for a in panels] == [m.title for m in table.metrics]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == list(table.methods)
    single = compare_methods(net, x[:1], 0, [Saliency(net)])  # no interval of one example, but a picture
    assert len(single.plot().axes) == 4


def test_curves_are_drawn_over_their_shares(net, x):
    curve = deletion(net, x, x, 0, steps=4)
    (axes,) = plot.curves(curve.shares.tolist(), {"x": curve.scores.mean(0).tolist()}, "", "removed", "score").axes
    assert_close(torch.tensor(axes.lines[0].get_ydata()).float(), curve.scores.mean(0).detach())
    assert axes.lines[0].get_xdata().tolist() == [0, 0.25, 0.5, 0.75, 1] and axes.get_xlabel() == "removed"


BAD = {
    "no methods": (lambda m, x: compare_methods(m, x, 0, []), "at least, got none"),
    "an unknown metric": (lambda m, x: compare_methods(m, x, 0, [x], ["beauty"]), "must be among deletion, insertion"),
    "a number": (lambda m, x: compare_methods(m, x, 0, {"five": 5}), "attributions, got int"),
    "sensitivity of attributions": (lambda m, x: compare_methods(m, x, 0, {"x": x}, ["sensitivity"]), "give a method"),
    "a new model for attributions": (
        lambda m, x: compare_methods(m, x, 0, {"x": x}, ["randomisation"]),
        "give a method",
    ),
    "the class of one score": (
        lambda m, x: compare_methods(lambda x: x.sum((1, 2, 3)), x, None, {"x": x}, ["road"]),
        r"\[N, K\]",
    ),
    "an unknown column": (lambda m, x: compare_methods(m, x, 0, {"x": x}).differences("road"), "must be 'deletion'"),
    "a function's model": (
        lambda m, x: parameter_randomisation(Saliency(lambda x: m(x)), x, target=0),
        "keeps your own",
    ),
    "no model": (lambda m, x: parameter_randomisation(Saliency(torch.sin), x), "made of a module, such as"),
    "no such layer": (
        lambda m, x: parameter_randomisation(Saliency(m), x, layers=["9"]),
        "must own parameters: 0, 1, 4, 6",
    ),
    "no such similarity": (
        lambda m, x: parameter_randomisation(Saliency(m), x, similarity="hog"),
        "'spearman', 'ssim'",
    ),
    "ssim of a table": (lambda m, x: structural_similarity(x[0, 0], x[0, 0]), "ssim is for pictures"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_does_not_fit_is_told(net, x, case):
    ask, words = BAD[case]
    with pytest.raises((ValueError, TypeError), match=words):
        ask(net, x)


def test_every_metric_has_a_number_for_each_example(net, x):
    table = compare_methods(net, x, 2, [Saliency(net)], list(METRICS), steps=4, samples=5)
    assert table.values.shape == (1, len(METRICS), 5) and table.values.isfinite().all()

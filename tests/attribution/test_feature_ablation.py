"""Feature ablation: what falls when a feature goes, by whatever means it is said which features there are."""

import captum.attr
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import (
    FeatureAblation,
    LayerFeatureAblation,
    NeuronFeatureAblation,
    Occlusion,
    feature_ablation,
)
from robustx.attribution.coalitions import Coalitions
from robustx.engine import Layer, Output, OutputError, Probe
from robustx.perturb import Windows, columns, here, through, words


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def one_at_a_time(model, x, baseline, target, ids):
    """The definition, feature by feature and example by example."""
    found = torch.zeros_like(x)
    for i in range(len(x)):
        for k in ids[i].unique():
            gone = torch.where(ids[i] == k, baseline[i], x[i])
            found[i][ids[i] == k] = (model(x[i : i + 1]) - model(gone[None]))[0, target].detach()
    return found


@pytest.mark.parametrize("mask", [None, [[0, 1, 1, 9, 0]], [[5, 5, 5, 5, 5]]])
def test_the_definition(model, mask):
    x, b = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    mask = None if mask is None else torch.tensor(mask)
    ids = torch.arange(5).expand(4, 5) if mask is None else mask.expand(4, 5)
    found = FeatureAblation(model).attribute(x, b, target=1, feature_mask=mask)
    assert_close(found, one_at_a_time(model, x, b, 1, ids))


def test_examples_may_be_cut_differently(model):
    x, b = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    ids = torch.tensor([[0, 0, 1, 1, 2], [2, 1, 0, 0, 0], [0, 0, 0, 0, 0], [3, 3, 7, 7, 7]])
    found = FeatureAblation(model).attribute(x, b, target=1, feature_mask=ids)
    assert_close(found, one_at_a_time(model, x, b, 1, ids))


def test_an_affine_model():
    """The fall is weight times way, and elements of a feature share its fall."""
    model = nn.Linear(4, 2).double()
    x = torch.randn(3, 4).double()
    w = model.weight[0].detach()
    assert_close(FeatureAblation(model).attribute(x, target=0), x * w)
    pair = FeatureAblation(model).attribute(x, target=0, feature_mask=torch.tensor([0, 0, 1, 2]))
    assert_close(pair[:, :2], (x * w)[:, :2].sum(1, keepdim=True).expand(3, 2))


def test_a_dict_of_masks(model):
    x = torch.randn(3, 5).double()
    masks = {"right": torch.tensor([1, 1]), "left": torch.tensor([0, 0, 1])}

    def named(left, right):
        return model(torch.cat([left, right], 1))

    named_parts = FeatureAblation(named).attribute({"left": x[:, :3], "right": x[:, 3:]}, target=0, feature_mask=masks)
    whole = FeatureAblation(model).attribute(x, target=0, feature_mask=torch.tensor([0, 0, 1, 1, 1]))
    assert_close(torch.cat([named_parts["left"], named_parts["right"]], 1), whole)


def test_the_function_takes_any_place_and_any_features(model):
    """Pairs of hidden units, set to zero."""
    x = torch.randn(3, 5).double()
    f = Probe(model, (x,), Output(2), Layer(model[1]))
    falls = feature_ablation(Coalitions(f, columns([(0, 1), (2, 3), (4, 5), (6, 7)], 8), here(0.0)))
    hidden = model[:2](x).detach() * model[2].weight[2].detach()
    assert_close(falls, hidden.reshape(3, 4, 2).sum(2))
    same = feature_ablation(Coalitions(f, columns([], 8), through(x.flip(0))))
    assert_close(same, (hidden - hidden.flip(0)))


@pytest.mark.parametrize("outputs", [(), (3,), (2, 3)])
@pytest.mark.parametrize("examples", [0, 1, 4])
def test_a_map_for_each_output(outputs, examples):
    """[examples * outputs, ...], the outputs of an example together; also where there is none of either."""
    x = torch.randn(examples, 5).double()
    weight = torch.randn(5, *outputs).double()
    found = FeatureAblation(lambda x: torch.tensordot(x, weight, 1)).attribute(x)
    maps = torch.einsum("nd,dm->nmd", x, weight.reshape(5, -1))
    assert_close(found, maps.reshape(-1, 5) if examples else found)
    assert found.shape[1:] == (5,) and (len(found) == len(maps) * maps.shape[1] or not examples)


def test_dtype_is_that_of_the_output():
    """As in Captum: integers in, the output's floats out."""
    weight = torch.randn(4, dtype=torch.float64)
    found = FeatureAblation(lambda ids: ids.double() @ weight).attribute(torch.tensor([[3, 0, 1, 2]]))
    assert_close(found, torch.tensor([[3, 0, 1, 2]]) * weight)


def test_progress_is_told_on_standard_error(model, capsys):
    x = torch.randn(4, 5).double()
    FeatureAblation(model).attribute(x, target=0, show_progress=True)
    told = capsys.readouterr()
    assert "Feature Ablation attribution: 100%" in told.err and not told.out
    FeatureAblation(model).attribute(x, target=0)
    assert capsys.readouterr().err == ""


def test_passes(model):
    """Each feature of each example once, and the examples as they are; as many at once as may be."""
    x, rows = torch.randn(4, 5).double(), []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    FeatureAblation(model).attribute(x, target=0)
    assert sum(rows) == 4 + 4 * 5
    rows.clear()
    FeatureAblation(model).attribute(
        x, target=0, feature_mask=torch.tensor([[0, 0, 1, 1, 1]]), perturbations_per_eval=1
    )
    assert sum(rows) == 4 + 4 * 2 and max(rows) == 4


def test_corners_are_made_batch_by_batch():
    """Never all features times all features at once."""
    n, largest = 2_000, []

    def model(x):
        largest.append(x.numel())
        return x.sum(1)

    x = torch.rand(1, n, dtype=torch.float64)
    assert_close(FeatureAblation(model).attribute(x, perturbations_per_eval=50), x)
    assert max(largest) == 50 * n  # the first batch is smaller, to be weighed


def test_as_many_numbers_for_the_whole_batch_as_examples():
    """They look like one for each; captum, too, takes them for the whole batch's only pass by pass."""
    x = torch.randn(3, 4).double()
    weight = torch.randn(4, 3).double()
    for per in (None, 2):
        with pytest.raises(OutputError, match="set perturbations_per_eval=1"):
            FeatureAblation(lambda x: (x @ weight).sum(0)).attribute(x, perturbations_per_eval=per)
    found = FeatureAblation(lambda x: (x @ weight).sum(0)).attribute(x, perturbations_per_eval=1)
    assert_close(found, x.sum(0) * weight.T)


def test_features_of_ones_own(model):
    """Whatever cuts an example up may stand for a mask."""
    x = torch.randn(4, 5).double()
    table = columns({"block": ["c", "a"]}, ["a", "b", "c", "d", "e"])
    found = FeatureAblation(model).attribute(x, target=0, feature_mask=table)
    assert_close(found, FeatureAblation(model).attribute(x, target=0, feature_mask=torch.tensor([0, 1, 0, 2, 3])))
    halves = (x[:, :2], x[:, 2:])
    windows = Windows.over(halves, (1, 2))
    joined = FeatureAblation(lambda a, b: model(torch.cat([a, b], 1))).attribute(halves, target=0, feature_mask=windows)
    occluded = Occlusion(lambda a, b: model(torch.cat([a, b], 1))).attribute(halves, (1, 2), target=0)
    assert_close(joined, occluded)
    with pytest.raises(ValueError, match="feature_mask cuts 5 elements of an example, but the inputs have 4"):
        FeatureAblation(model).attribute(x[:, :4], target=0, feature_mask=table)


def test_words_of_tokens():
    """A word's tokens give way together, the special ones and padding too."""
    weight = torch.randn(6, 4).double()
    ids = torch.tensor([[0, 3, 4, 5, 1], [0, 2, 1, 1, 1]])
    spans = [[(0, 0), (0, 4), (4, 7), (8, 9), (0, 0)], [(0, 0), (0, 2), (0, 0), (0, 0), (0, 0)]]
    model = lambda ids: weight[ids].sum((1, 2))
    found = FeatureAblation(model).attribute(ids, 1, feature_mask=words(spans))
    of_each = weight[ids].sum(2) - weight[1].sum()
    expected = torch.stack([of_each[0, [0, 1, 1, 3, 0]], of_each[1]])
    expected[0, [0, 4]] = of_each[0, [0, 4]].sum()
    expected[0, [1, 2]] = of_each[0, [1, 2]].sum()
    expected[1, [0, 2, 3, 4]] = of_each[1, [0, 2, 3, 4]].sum()
    assert_close(found, expected)


# --- at layers, for neurons, later ------------------------------------------------------------------------


def test_a_layer_is_ablated_as_the_rest_of_the_model_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, mask = torch.randn(4, 5).double(), torch.tensor([0, 7, 7, 2])
    hidden = model[:3](x).detach()
    for baseline in (None, 0.5, hidden[:1], hidden.flip(0)):
        options = {"target": [0, 2, 1, 1]}
        expected = FeatureAblation(model[3:]).attribute(hidden, baseline, feature_mask=mask, **options)
        found = LayerFeatureAblation(model, model[2]).attribute(x, baseline, layer_mask=mask, **options)
        assert_close(found, expected)
        into = LayerFeatureAblation(model, model[3])
        assert_close(into.attribute(x, baseline, layer_mask=mask, attribute_to_layer_input=True, **options), expected)


def test_what_comes_before_a_layer_runs_once():
    """Each feature costs the layers behind it only."""
    first, last = nn.Linear(5, 6), nn.Linear(6, 3)
    model, rows = nn.Sequential(first, last), {}
    for name, layer in (("first", first), ("last", last)):
        layer.register_forward_pre_hook(
            lambda _, args, name=name: rows.update({name: rows.get(name, 0) + len(args[0])})
        )
    LayerFeatureAblation(model, first).attribute(torch.randn(4, 5), target=0)
    assert rows["first"] <= 2 * 4 and rows["last"] == 2 * 4 + 4 * 6


def test_layers_of_several_tensors_and_lists_of_layers():
    class Halves(nn.Module):
        def forward(self, x):
            return x[:, :2] * 2, x[:, 2:]

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.halves, self.last = Halves(), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(torch.cat(self.halves(x), 1))

    model, x = Joined().double(), torch.randn(4, 5).double()
    weight = model.last.weight[1].detach()
    a, b = LayerFeatureAblation(model, model.halves).attribute(x, target=1)
    assert_close((a, b), (2 * x[:, :2] * weight[:2], x[:, 2:] * weight[2:]))
    across = (torch.tensor([0, 1]), torch.tensor([1, 1, 2]))
    a, b = LayerFeatureAblation(model, model.halves).attribute(x, (0.0, 1.0), target=1, layer_mask=across)
    joint = 2 * x[:, 1] * weight[1] + ((x[:, 2:4] - 1) * weight[2:4]).sum(1)
    assert_close(a[:, 1], joint)
    assert_close(b[:, :2], joint[:, None].expand(-1, 2))
    (inner, outer) = LayerFeatureAblation(model, [model.halves, model.last]).attribute(x, target=1)
    assert_close(outer, LayerFeatureAblation(model, model.last).attribute(x, target=1))
    assert all((part == 0).all() for part in inner)  # what came of it is written over behind


def test_a_neuron_is_ablated_as_a_model_that_ends_there(model):
    x, mask = torch.randn(4, 5).double(), torch.tensor([3, 3, 0, 1, 0])
    for selector, score in ((2, lambda h: h[:, 2]), ((slice(1, 4),), lambda h: h[:, 1:4].sum(1))):
        found = NeuronFeatureAblation(model, model[1]).attribute(x, selector, 0.5, feature_mask=mask)
        plain = FeatureAblation(lambda x, score=score: score(model[:2](x))).attribute(x, 0.5, feature_mask=mask)
        assert_close(found, plain)


def later(function):
    """A function that answers by a future."""

    def asked(*args):
        answer = torch.futures.Future()
        answer.set_result(function(*args))
        return answer

    return asked


@pytest.mark.parametrize("aggregate", [False, True])
def test_models_that_answer_later(model, aggregate):
    x = torch.randn(4, 5).double()
    function = (lambda x: model(x)[:, 1].sum()) if aggregate else (lambda x: model(x)[:, 1])
    options = {"feature_mask": torch.tensor([[0, 0, 1, 2, 1]])}  # captum wants the batch axis
    answer = FeatureAblation(later(function)).attribute_future(x, **options)
    assert isinstance(answer, torch.futures.Future)
    assert_close(answer.wait(), FeatureAblation(function).attribute(x, **options))
    per = 1 if aggregate else 2
    theirs = captum.attr.FeatureAblation(later(function)).attribute_future(x, perturbations_per_eval=per, **options)
    assert_close(answer.wait(), theirs.wait())


def test_futures_and_values_are_told_apart(model):
    x = torch.randn(4, 5).double()
    with pytest.raises(AssertionError, match="attribute_future is for a model that returns futures, got Tensor"):
        FeatureAblation(model).attribute_future(x, target=0)
    with pytest.raises(AssertionError, match=r"got a Future; a few methods have attribute_future"):
        FeatureAblation(later(model)).attribute(x, target=0)


def test_what_is_not_used_is_named(model):
    x = torch.randn(4, 5).double()
    with pytest.warns(UserWarning, match="attribute makes no use of feature_masks"):
        FeatureAblation(model).attribute(x, target=0, feature_masks=torch.tensor([0, 0, 1, 1, 1]))


def scalar(table, ids):
    return table.sum() ** 2 + ids.sum()


def of_rows(table, ids):
    return table.sum(1) * (1 + ids.sum())


def of_columns(table, ids):
    return torch.stack([table.sum(1), table.sum(1) * ids.sum()], 1)


UNEVEN = {
    "none": torch.zeros(0),
    "some": torch.tensor([1.0, 7.0, 2.0, 4.0, 5.0]),
    "none of two": torch.zeros(0, 2),
    "some of two": torch.tensor([[1.0, 7.0], [2.0, 4.0], [5.0, 3.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize("second", UNEVEN)
@pytest.mark.parametrize("function, target", [(scalar, None), (of_rows, None), (of_columns, 1)])
@pytest.mark.parametrize("more", [{}, {"baselines": (0.5, 1)}, {"masked": True}], ids=str)
def test_inputs_with_different_numbers_of_rows(second, function, target, more):
    torch.manual_seed(0)
    inputs = torch.randn(3, 4), UNEVEN[second]
    options = {k: v for k, v in more.items() if k != "masked"}
    if more.get("masked"):
        width = inputs[1].shape[1:]
        options["feature_mask"] = torch.tensor([[0, 0, 1, 2]]), 2 + torch.arange(width.numel()).reshape(1, *width)
    ours = FeatureAblation(function).attribute(inputs, target=target, **options)
    theirs = captum.attr.FeatureAblation(function).attribute(inputs, target=target, **options)
    for mine, its in zip(ours, theirs, strict=True):
        assert_close(mine, its, rtol=0, atol=2e-5)

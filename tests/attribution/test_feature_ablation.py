"""Feature ablation: what falls when a feature goes, by whatever means it is said which features there are."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, feature_ablation
from robustx.attribution.coalitions import Coalitions
from robustx.engine import Layer, Output, Probe
from robustx.perturb import columns, here, through


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

"""Layout: the same numbers, sooner; and whoever cannot take channels last is asked as ever."""

import pytest
import torch
from models import mlp
from torch import nn
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, KernelShap
from robustx.engine import BlackBox
from robustx.engine.layout import MANY, ChannelsLast, channels_last


class Seen(nn.Module):
    """A convolution, and what makes rows of it; notes how pictures lay."""

    def __init__(self, rows):
        super().__init__()
        self.conv, self.head, self.rows, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2), rows, []

    def forward(self, x):
        self.last.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.rows(self.conv(x).relu()))


FLAT = {"flatten": lambda x: x.flatten(1), "reshape": lambda x: x.reshape(len(x), -1)}


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("method", [FeatureAblation, KernelShap])
def test_many_pictures_lie_with_channels_last(flat, method):
    model, x = Seen(FLAT[flat]), torch.rand(2, 3, 8, 8)
    mask = torch.arange(64).reshape(8, 8) // 4
    options = {"target": 1, "feature_mask": mask} | ({"n_samples": 40} if method is KernelShap else {})
    torch.manual_seed(0)
    found = method(model).attribute(x, **options)
    assert any(model.last)
    model.last.clear()
    torch.manual_seed(0)
    few = method(model).attribute(x, perturbations_per_eval=4, **options)
    assert not any(model.last)
    assert_close(found, few, rtol=0, atol=1e-5)


def test_views_are_asked_plainly_from_then_on():
    model, x = Seen(lambda x: x.view(len(x), -1)), torch.rand(MANY, 3, 8, 8)
    quick = ChannelsLast(model)
    for _ in range(2):
        assert_close(quick(x), model(x), rtol=0, atol=0)
    assert quick.plain and model.last == [True, False, False, False, False]


def test_errors_are_those_of_the_model():
    quick = ChannelsLast(Seen(lambda x: x))
    with pytest.raises(RuntimeError, match="mat1 and mat2|shapes"):
        quick(torch.rand(MANY, 3, 8, 8))


@pytest.mark.parametrize(
    "model",
    [mlp(), nn.Conv2d(3, 2, 3).double(), lambda x: x, BlackBox(lambda x: x)],
    ids=["table", "float64", "function", "black box"],
)
def test_others_are_left_alone(model):
    assert channels_last(model) is model


def test_functions_of_models_have_them_too():
    model = Seen(FLAT["flatten"])
    assert isinstance(channels_last(lambda x: model(x)), ChannelsLast)

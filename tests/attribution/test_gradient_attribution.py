"""Saliency: the gradient itself, however large the batch, from one pass forward and one back."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import Saliency, saliency
from robustx.engine import Layer, Neuron, Output, Probe


def quadratic(x):
    """Its gradient is (A + A') x, different in every row."""
    return (x @ A * x).sum(1)


A = torch.arange(16.0).reshape(4, 4).double() / 10 - 1


@pytest.mark.parametrize("abs", [True, False])
def test_a_quadratic(abs):
    x = torch.randn(50, 4).double()
    slope = x @ (A + A.T)
    assert_close(Saliency(quadratic).attribute(x, abs=abs), slope.abs() if abs else slope)


def test_it_is_autograds():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 5)).double()
    x, y = torch.randn(7, 2, 4, 4).double(), torch.randint(5, (7,))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[torch.arange(7), y].sum(), leaf)
    assert_close(Saliency(model).attribute(x, y, abs=False), expected)


def test_one_pass_each_way():
    model, x, rows = nn.Linear(4, 3), torch.randn(9, 4), []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    Saliency(model).attribute(x, 1)
    assert sum(rows) == 9


def test_the_function_takes_any_place_and_any_score():
    """The slope of a hidden unit with respect to another layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(3, 4).double()
    f = Probe(model, (x,), Neuron(Layer(model[2]), 4), Layer(model[1]))
    assert_close(saliency(f), model[2].weight[4].detach().expand(3, 5))
    plain = saliency(Probe(model, (x,), Output(1)))
    assert_close(plain, Saliency(model).attribute(x, 1, abs=False))


def test_a_score_may_stand_for_a_target():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    x = torch.randn(3, 4).double()
    assert_close(
        Saliency(model).attribute(x, Neuron(Layer(model[0]), 2), abs=False), model[0].weight[2].detach().expand(3, 4)
    )

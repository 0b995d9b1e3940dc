"""Integrated gradients: the published numbers, the rules of quadrature, layers and neurons as places of one method."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import (
    IntegratedGradients,
    LayerIntegratedGradients,
    NeuronIntegratedGradients,
    integrated_gradients,
    quadrature_of,
)
from robustx.attribution.path import RULES, mean_grad, mean_grad_within
from robustx.engine import Layer, Output, Probe
from robustx.perturb import here, through


class Toy(nn.Module):
    """The model of Captum's README."""

    def __init__(self):
        super().__init__()
        self.lin1, self.relu, self.lin2 = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)
        self.lin1.weight = nn.Parameter(torch.arange(-4.0, 5.0).view(3, 3))
        self.lin1.bias = nn.Parameter(torch.zeros(1, 3))
        self.lin2.weight = nn.Parameter(torch.arange(-3.0, 3.0).view(2, 3))
        self.lin2.bias = nn.Parameter(torch.ones(1, 2))

    def forward(self, input):
        return self.lin2(self.relu(self.lin1(input)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_published_numbers(dtype):
    model = Toy().to(dtype).eval()
    torch.manual_seed(123)
    np.random.seed(123)
    input, baseline = torch.rand(2, 3).to(dtype), torch.zeros(2, 3, dtype=dtype)
    ig = IntegratedGradients(model)
    attributions, delta = ig.attribute(input, baseline, target=0, return_convergence_delta=True)
    published = torch.tensor([[-0.5922, -1.5497, -1.0067], [0.0000, -0.2219, -5.1991]], dtype=dtype)
    assert_close(attributions, published, rtol=0, atol=5e-5)
    assert delta.abs().max() < 1e-6


# --- quadrature -------------------------------------------------------------------------------------------


def integral(rule, steps, power):
    """Of t ** power over [0, 1], by the rule; the truth is 1 / (power + 1)."""
    nodes, weights = quadrature_of(rule, steps)
    return float((weights * nodes**power).sum())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 3, 10, 50])
def test_weights_add_up_to_one(rule, steps):
    nodes, weights = quadrature_of(rule, steps)
    assert nodes.dtype == weights.dtype == torch.float64 and len(nodes) == len(weights) == steps
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert (nodes >= 0).all() and (nodes <= 1).all() and (nodes.diff() > 0).all()


@pytest.mark.parametrize("rule, exact", [("gausslegendre", 19), ("riemann_middle", 1), ("riemann_trapezoid", 1)])
def test_rules_are_exact_for_polynomials(rule, exact):
    for power in range(exact + 1):
        assert integral(rule, 10, power) == pytest.approx(1 / (power + 1), abs=1e-13)
    assert integral(rule, 10, exact + 1) != pytest.approx(1 / (exact + 2), abs=1e-13)


@pytest.mark.parametrize("rule, order", [("riemann_left", 1), ("riemann_right", 1), ("riemann_middle", 2)])
def test_rules_converge(rule, order):
    errors = [abs(integral(rule, n, 5) - 1 / 6) for n in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


# --- closed forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_an_affine_model_in_any_rule_and_any_number_of_steps(rule):
    model = nn.Linear(4, 3).double()
    x, b = torch.randn(5, 4).double(), torch.randn(1, 4).double()
    for steps in (2, 7):
        found = IntegratedGradients(model).attribute(x, b, target=1, n_steps=steps, method=rule)
        assert_close(found, ((x - b) * model.weight[1]).detach(), rtol=0, atol=1e-12)


def test_a_polynomial():
    """f = x^3 y: the integral of the gradient along the way from zero is known, and two Gauss points are enough."""
    x = torch.randn(6, 2).double()
    found = IntegratedGradients(lambda z: z[:, 0] ** 3 * z[:, 1]).attribute(x, n_steps=2)
    whole = x[:, 0] ** 3 * x[:, 1]
    assert_close(found, torch.stack([0.75 * whole, 0.25 * whole], 1), rtol=0, atol=1e-12)


def test_slopes_alone_without_the_way():
    x, b = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    f = lambda z: (z**2).sum(1)
    local = IntegratedGradients(f, multiply_by_inputs=False)
    assert_close(local.attribute(x, b), x + b, rtol=0, atol=1e-12)
    assert_close(IntegratedGradients(f).attribute(x, b), x**2 - b**2, rtol=0, atol=1e-12)
    assert not local.multiplies_by_inputs and IntegratedGradients(f).multiplies_by_inputs


def test_implementation_invariance():
    """The same function, written otherwise: an output that is a sum of two layers, or one layer of their sum."""
    one, two = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    both = nn.Linear(4, 3).double()
    both.load_state_dict({"weight": one.weight + two.weight, "bias": one.bias + two.bias})
    x = torch.randn(5, 4).double()
    a = IntegratedGradients(lambda x: torch.tanh(one(x) + two(x))).attribute(x, target=0)
    assert_close(a, IntegratedGradients(lambda x: torch.tanh(both(x))).attribute(x, target=0))


# --- places -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.second = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        return self.second(self.act(self.first(x)))


def test_a_layer_is_the_model_behind_it():
    model, x, b = Net(), torch.randn(6, 4).double(), torch.randn(1, 4).double()
    behind = IntegratedGradients(lambda h: model.second(model.act(h)))
    start, end = model.first(b).detach(), model.first(x).detach()
    expected = behind.attribute(end, start, target=2)
    for layer, to_input in ((model.first, False), (model.act, True), (Layer(model.act), True)):
        found = LayerIntegratedGradients(model, layer).attribute(x, b, target=2, attribute_to_layer_input=to_input)
        assert_close(found, expected, rtol=0, atol=1e-12)
    found = LayerIntegratedGradients(model, Layer(model.act, "input")).attribute(x, b, target=2)
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_model_itself_as_a_layer_is_its_output():
    model, x = Net(), torch.randn(6, 4).double()
    found = LayerIntegratedGradients(model, model).attribute(x, target=2)
    rise = (model(x) - model(torch.zeros_like(x))).detach()
    assert_close(found, torch.stack([0 * rise[:, 0], 0 * rise[:, 1], rise[:, 2]], 1), rtol=0, atol=1e-12)


def test_a_neuron_is_the_model_up_to_it():
    model, x = Net(), torch.randn(6, 4).double()
    expected = IntegratedGradients(model.first).attribute(x, 0.5, target=3)
    for layer, options in ((model.first, {}), (model.act, {"attribute_to_neuron_input": True})):
        for selector in (3, (3,), lambda h: h[:, 3]):
            found = NeuronIntegratedGradients(model, layer).attribute(x, selector, 0.5, **options)
            assert_close(found, expected, rtol=0, atol=1e-12)


def test_several_neurons_are_summed():
    model, x = Net(), torch.randn(6, 4).double()
    neurons = NeuronIntegratedGradients(model, model.first)
    apart = sum(neurons.attribute(x, i) for i in (1, 2, 3))
    assert_close(neurons.attribute(x, (slice(1, 4),)), apart, rtol=0, atol=1e-12)


class Twice(Net):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(5, 4).double()

    def forward(self, x):
        return super().forward(super().forward(x))


def test_a_layer_that_is_used_twice_must_be_told_apart():
    model, x = Twice(), torch.randn(6, 4).double()
    with pytest.raises(ValueError, match="2 times.*call=0"):
        LayerIntegratedGradients(model, model.act).attribute(x, target=0)

    def second_hidden(x):
        return model.act(model.first(Net.forward(model, x))).detach()

    later = LayerIntegratedGradients(model, Layer(model.act, call=1)).attribute(x, target=0)
    behind = IntegratedGradients(model.second)
    expected = behind.attribute(second_hidden(x), second_hidden(torch.zeros_like(x)), target=0)
    assert_close(later, expected, rtol=0, atol=1e-12)
    early = LayerIntegratedGradients(model, Layer(model.act, call=0)).attribute(x, target=0)
    assert (early - later).abs().max() > 1e-3


def test_embeddings():
    """Token ids stay what they are; each token's share is the sum over its embedding, and they add up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    ids, pad = torch.randint(1, 10, (3, 3)), torch.zeros(1, 3, dtype=torch.long)
    found, delta = LayerIntegratedGradients(model, model[0]).attribute(
        ids, pad, target=1, return_convergence_delta=True
    )
    assert found.shape == (3, 3, 4) and delta.abs().max() < 1e-6
    assert_close(found.sum((1, 2)), (model(ids) - model(pad.expand(3, 3)))[:, 1].detach(), rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="token ids work at the embedding layer"):
        IntegratedGradients(model).attribute(ids, target=1)


def test_the_function_takes_any_place_and_any_reference():
    """At a layer from a constant there, which no input need produce."""
    model, x = Net(), torch.randn(6, 4).double()
    f = Probe(model, (x,), Output(1), Layer(model.act))
    found = integrated_gradients(f, here(0.0), quadrature_of("gausslegendre", 5))
    hidden = model.act(model.first(x)).detach()
    assert_close(found, hidden * model.second.weight[1].detach(), rtol=0, atol=1e-12)
    same = integrated_gradients(f, through(x.flip(0)), quadrature_of("gausslegendre", 5), multiply=False)
    assert_close(same, model.second.weight[1].detach().expand(6, 5), rtol=0, atol=1e-12)


# --- work -------------------------------------------------------------------------------------------------


def test_steps_are_what_it_costs():
    """One forward and one backward a step; nothing more, unless the delta is asked for."""
    model, x = Net(), torch.randn(6, 4).double()
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    IntegratedGradients(model).attribute(x, target=0, n_steps=20)
    assert sum(rows) == 20 * 6
    rows.clear()
    IntegratedGradients(model).attribute(x, target=0, n_steps=20, return_convergence_delta=True)
    assert sum(rows) == 20 * 6 + 2 * 6


# --- as closely as it takes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-8)], ids=["single", "double"])
def test_kinks_are_found_until_the_rise_is_explained(dtype, error):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)).to(dtype)
    f = Probe(net, (torch.rand(6, 12, dtype=dtype) * 4,), Output(1))
    start, way = -f.point, 2 * f.point
    mean, missed = mean_grad_within(f, start, way, torch.full((6,), error))
    spent, rise = int(f.meter.take().backward.max()), (net(f.point) - net(start))[:, 1]
    assert missed.abs().max() <= error
    assert_close((way * mean).sum(1) - missed, rise.double(), check_dtype=False)
    fixed = mean_grad(f, start, way, RULES["riemann_middle"](spent))
    assert ((way * fixed).sum(1) - rise).abs().min() > missed.abs().max()  # as many equal steps do worse everywhere
    assert_close(mean, mean_grad(f, start, way, RULES["riemann_middle"](20_000)).double(), atol=1e-3, rtol=0)


def test_a_smooth_path_is_one_piece_and_a_jump_is_missed_whole():
    x = torch.rand(5, 3, dtype=torch.float64) + 0.5
    cube, start = Probe(lambda z: z.pow(3).sum(1), (x,)), torch.zeros_like(x)
    mean, missed = mean_grad_within(cube, start, x, torch.full((5,), 1e-6))
    assert_close(mean, x**2)
    assert missed.abs().max() < 1e-12
    assert cube.meter.backward.tolist() == [4] * 5
    step = Probe(lambda z: (z.sum(1) > 1).double() + 0 * z.sum(1), (x,))
    mean, missed = mean_grad_within(step, start, x, torch.full((5,), 1e-6))
    assert not mean.any()
    assert_close(missed, -torch.ones(5).double())

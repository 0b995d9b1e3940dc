"""Conductance and influence: captum's numbers in the same run, the definition written out slowly, and what adds up."""

import weakref
from itertools import pairwise

import captum.attr
import pytest
import torch
from attribution_cases import FlatPair as Pair
from hypothesis import given
from hypothesis import strategies as st
from models import Nested, Reused, Weighed, mlp
from test_integrated_gradients import Toy
from torch import nn
from torch.testing import assert_close

from robustx.attribution import IntegratedGradients
from robustx.attribution.conductance import (
    InternalInfluence,
    LayerConductance,
    NeuronConductance,
    internal_influence,
    layer_conductance,
)
from robustx.attribution.path import RULES, quadrature_of
from robustx.engine import Each, Layer, ModelError, Output, Pace, Probe, TargetError
from robustx.perturb import through

LAYERS = (LayerConductance, InternalInfluence)
METHODS = (*LAYERS, NeuronConductance)
SUM_TO_ONE = [r for r in RULES if r != "riemann_trapezoid"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Internal batch size cannot be less than"),
    pytest.mark.filterwarnings("ignore:This method computes finite differences"),
    pytest.mark.filterwarnings("ignore:The neuron_selector provided is a callable"),
]
named = {"ids": lambda v: getattr(v, "__name__", None)}
layers = pytest.mark.parametrize("method", LAYERS, **named)
every = pytest.mark.parametrize("method", METHODS, **named)


class CNN(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]; batch norm, a ReLU in place behind the layer, pooling."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 4)
        self.act = nn.ReLU(inplace=True)
        self.double().eval()

    def forward(self, x):
        return self.head(nn.functional.avg_pool2d(self.act(self.norm(self.layer(x))), 2).flatten(1))


class MLP(nn.Module):
    """[B, 5] -> [B, 4]."""

    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.layer = self.body[2]

    def forward(self, x):
        return self.body(x)


class Maps(MLP):
    """[B, 5] -> [B, 2, 2]."""

    def forward(self, x):
        return self.body(x).unflatten(1, (2, 2))


SHAPES = {MLP: [(5,)], Maps: [(5,)], CNN: [(2, 6, 6)], Pair: [(5,), (2, 3)]}
NEURON = {MLP: 3, Maps: 3, CNN: (1, 2, 3), Pair: (3,)}
models = pytest.mark.parametrize("model", [MLP, CNN, Pair], **named)


def case(model):
    """The model, and random inputs for it: a tensor, or a tuple of two."""
    tensors = tuple(torch.randn(4, *s).double() for s in SHAPES[model])
    return model(), tensors if len(tensors) > 1 else tensors[0]


def start_of(x, form):
    """Baselines of the form."""
    if isinstance(x, tuple):
        return tuple(start_of(t, form) for t in x)
    return {"number": 0.3, "row": torch.randn_like(x[:1]), "rows": torch.randn_like(x)}[form]


def tensors(v):
    return (v,) if isinstance(v, torch.Tensor) else tuple(v)


def assert_same(a, b, tolerance=1e-10):
    assert type(a) is type(b)
    for one, other in zip(tensors(a), tensors(b), strict=True):
        assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)


def assert_agree(ours, model, x, /, *args, at=(), **options):
    """With captum, whose steps are of single precision."""
    found, theirs = (
        room(model, model.layer, *at).attribute(x, *args, **options)
        for room in (ours, getattr(captum.attr, ours.__name__))
    )
    assert_same(found, theirs, 1e-6)
    assert all(t.abs().sum() > 0 for t in tensors(found))


# --- captum, in the same run ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_published_numbers(dtype):
    """Of Captum's README."""
    model = Toy().to(dtype).eval()
    torch.manual_seed(123)
    x = torch.rand(2, 3).to(dtype)
    found = NeuronConductance(model, model.lin1).attribute(x, neuron_selector=1, target=0)
    published = torch.tensor([[0.0, 0.0, 0.0], [1.3358, 0.0, -1.6811]], dtype=dtype)
    assert_close(found, published, rtol=0, atol=5e-5)


@every
def test_what_a_method_says_about_itself(method):
    model = MLP()
    mine, theirs = (room(model, model.layer) for room in (method, getattr(captum.attr, method.__name__)))
    assert mine.get_name() == theirs.get_name()
    assert mine.has_convergence_delta() == theirs.has_convergence_delta()
    assert mine.multiplies_by_inputs == theirs.multiplies_by_inputs


@layers
@models
@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("rule", SUM_TO_ONE)
@pytest.mark.parametrize("steps", [2, 9])
def test_layers(method, model, rule, to_input, steps):
    options = {"n_steps": steps, "method": rule, "attribute_to_layer_input": to_input}
    assert_agree(method, *case(model), target=1, **options)


@models
@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("rule", SUM_TO_ONE)
@pytest.mark.parametrize("multiply", [True, False])
def test_neurons(model, rule, to_input, multiply):
    options = {"n_steps": 9, "method": rule, "attribute_to_neuron_input": to_input}
    assert_agree(NeuronConductance, *case(model), NEURON[model], target=1, at=(None, multiply), **options)


@models
def test_trapezoids(model):
    """Weights add up to one for influence, as captum's do for the conductance of neurons; that of layers has none."""
    model, x = case(model)
    options = {"target": 1, "n_steps": 5, "method": "riemann_trapezoid"}
    assert_agree(LayerConductance, model, x, **options)
    assert_agree(NeuronConductance, model, x, NEURON[type(model)], **options)
    found = InternalInfluence(model, model.layer).attribute(x, **options)
    theirs = captum.attr.InternalInfluence(model, model.layer).attribute(x, **options)
    assert_same(found, theirs * 5 / 4, 1e-6)


TARGETS = {
    "tensor": torch.tensor([3, 0, 2, 2]),
    "list": [0, 3, 1, 1],
    "tuple": (1, 0),
    "list of tuples": [(0, 1), (1, 0), (1, 1), (0, 0)],
}


@every
@pytest.mark.parametrize("target", TARGETS)
def test_targets(method, target):
    neuron = (3,) if method is NeuronConductance else ()
    model = Maps if "tuple" in target else MLP
    assert_agree(method, *case(model), *neuron, target=TARGETS[target], n_steps=4)


@every
@pytest.mark.parametrize("form", ["number", "row", "rows"])
@pytest.mark.parametrize("model", [MLP, Pair], **named)
def test_baselines_and_chunks(method, model, form):
    model, x = case(model)
    neuron = (3,) if method is NeuronConductance else ()
    for batch in (None, 9, 3):
        assert_agree(method, model, x, *neuron, start_of(x, form), target=1, n_steps=6, internal_batch_size=batch)


@every
def test_further_arguments(method):
    model, x = case(Pair)
    neuron = (3,) if method is NeuronConductance else ()
    assert_agree(method, model, x, *neuron, target=1, additional_forward_args=torch.randn(4, 1).double())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["number", "row", "rows"])
def test_deltas(form, rule):
    model, x = case(Pair)
    start = start_of(x, form)
    options = {"target": [0, 3, 1, 1], "n_steps": 3, "method": rule, "return_convergence_delta": True}
    (found, delta), (theirs, other) = (
        room.attribute(x, start, **options)
        for room in (LayerConductance(model, model.layer), captum.attr.LayerConductance(model, model.layer))
    )
    assert_same(found, theirs, 1e-6)
    assert_same(delta, other, 1e-6)
    assert delta.abs().max() > 1e-3
    assert_same(LayerConductance(model, model.layer).compute_convergence_delta(found, start, x, [0, 3, 1, 1]), delta)


@layers
def test_a_layer_with_several_tensors(method):
    """A tuple of tensors gives a tuple of attributions."""

    class Split(nn.Module):
        def forward(self, x):
            return x[:, :2].sin(), x[:, 2:].exp()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = Split(), mlp()

        def forward(self, x):
            return self.head(torch.cat(self.layer(x), 1))

    model, x = Model(), torch.randn(4, 5).double()
    assert [a.shape for a in method(model, model.layer).attribute(x, target=1)] == [(4, 2), (4, 3)]
    assert_agree(method, model, x, target=1, n_steps=6)
    assert_agree(NeuronConductance, model, x, lambda parts: parts[1][:, 2], target=1, n_steps=6)


# --- the definition, written out --------------------------------------------------------------------------


def slowly(model, layer, x, start, target, nodes):
    """For one example: the layer's value, the score's gradient there, and d value / d input, at each node."""
    seen = []
    for node in nodes.tolist():
        z = (start + node * (x - start))[None].requires_grad_()
        with layer.register_forward_hook(lambda _, __, out: seen.append(out)):
            score = model(z)[0, target]
        here = seen.pop()
        (g,) = torch.autograd.grad(score, here, retain_graph=True)
        jacobian = [torch.autograd.grad(unit, z, retain_graph=True)[0][0] for unit in here[0]]
        yield here[0].detach(), g[0], torch.stack(jacobian)


def by_definition(method, model, layer, x, start, target, rule, steps):
    """Row by row, node by node; the conductance of each input by each unit [B, L, D] for neurons."""
    nodes, weights = quadrature_of(rule, steps + (method is LayerConductance))
    rows = []
    for one, zero in zip(x, start, strict=True):
        seen = list(slowly(model, layer, one, zero, target, nodes))
        if method is LayerConductance:
            pairs = pairwise(seen)
            rows.append(sum(g * (after - before) for (before, g, _), (after, _, _) in pairs))
        elif method is InternalInfluence:
            rows.append(sum(w * g for w, (_, g, _) in zip(weights, seen, strict=True)))
        else:
            rows.append((one - zero) * sum(w * g[:, None] * j for w, (_, g, j) in zip(weights, seen, strict=True)))
    return torch.stack(rows)


@every
@given(
    rule=st.sampled_from(SUM_TO_ONE),
    steps=st.integers(1, 5),
    count=st.integers(1, 4),
    batch=st.none() | st.integers(1, 30),
    which=st.integers(0, 3),
)
def test_by_definition_in_chunks_of_any_size(method, rule, steps, count, batch, which):
    """For any number of nodes and examples, and however they are cut into passes."""
    torch.manual_seed(0)
    model, x, start = mlp(), torch.randn(4, 5).double()[:count], torch.randn(4, 5).double()[:count]
    expected = by_definition(method, model, model[which], x, start, 2, rule, steps)
    options = {"target": 2, "n_steps": steps, "method": rule, "internal_batch_size": batch}
    if method is NeuronConductance:
        unit = expected.shape[1] - 2
        found, expected = method(model, model[which]).attribute(x, unit, start, **options), expected[:, unit]
    else:
        found = method(model, model[which]).attribute(x, start, **options)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_layer_that_is_used_twice():
    model, x = Reused(), torch.randn(3, 5).double()

    class Told(nn.Module):  # the second use of the layer has a name
        def __init__(self):
            super().__init__()
            self.again = nn.Linear(5, 5).double()
            self.again.load_state_dict(model.again.state_dict())

        def forward(self, x):
            return model.head(model.act(self.again(model.act(model.again(model.first(x))))))

    told = Told()
    for method in LAYERS:
        found = method(model, Layer(model.again, call=1)).attribute(x, target=0, n_steps=4)
        assert_same(found, method(told, told.again).attribute(x, target=0, n_steps=4))
    found = NeuronConductance(model, Layer(model.again, call=1)).attribute(x, 1, target=0)
    assert_same(found, NeuronConductance(told, told.again).attribute(x, 1, target=0))
    for method in METHODS:
        with pytest.raises(ValueError, match="2 times.*call=0"):
            method(model, model.again).attribute(x, *((1,) if method is NeuronConductance else ()), target=0)


# --- what adds up -----------------------------------------------------------------------------------------


@models
def test_the_neurons_of_a_layer_share_integrated_gradients_out(model):
    """Exactly, for no path leads around it; taken together or one by one."""
    model, x = case(model)
    start, options = start_of(x, "rows"), {"target": 1, "n_steps": 4, "method": "gausslegendre"}
    whole = IntegratedGradients(model).attribute(x, start, **options)
    neurons = NeuronConductance(model, model.layer)
    inner = {MLP: (8,), Pair: (6,), CNN: (3, 4, 4)}[type(model)]
    assert_same(neurons.attribute(x, (slice(None),) * len(inner), start, **options), whole)
    each = [neurons.attribute(x, tuple(i.tolist()), start, **options) for i in torch.ones(inner).nonzero()]
    for i, t in enumerate(tensors(whole)):
        assert_close(sum(tensors(e)[i] for e in each), t, rtol=0, atol=1e-10)


def test_a_layers_conductance_adds_up_as_steps_grow():
    """To the score's rise, at the first order: half the step, half of what is missing."""
    model, x = case(Pair)
    start, missing = start_of(x, "rows"), []
    for steps in (200, 400, 800):
        options = {"target": 1, "n_steps": steps, "method": "riemann_trapezoid", "return_convergence_delta": True}
        a, delta = LayerConductance(model, model.layer).attribute(x, start, **options)
        rise = (model(*x) - model(*start))[:, 1].detach()
        assert_close(a.sum(1) - delta, rise, rtol=0, atol=1e-12)
        missing.append(delta)
    for coarse, fine in pairwise(missing):
        assert_close(coarse / fine, torch.full_like(fine, 2), rtol=0.05, atol=0)


def test_the_inputs_of_a_neuron_share_its_conductance_out():
    model, x = case(MLP)
    layer = LayerConductance(model, model.layer).attribute(x, target=1, n_steps=20_000, method="riemann_trapezoid")
    for unit in (0, 5):
        neuron = NeuronConductance(model, model.layer).attribute(x, unit, target=1, method="gausslegendre")
        assert_close(neuron.sum(1), layer[:, unit], rtol=0, atol=1e-4)


class Around(nn.Module):
    """Affine, and a path leads around the layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.skip = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        return self.head(self.layer(x)) + self.skip(x)


@pytest.mark.parametrize("rule", RULES)
def test_what_leads_around_the_layer_is_left_out(rule):
    """An affine model: closed forms, for any rule that reaches both ends or whose weights add up to one."""
    model, x, start = Around(), torch.randn(5, 3).double(), torch.randn(1, 3).double()
    w, v = model.layer.weight.detach(), model.head.weight[1].detach()
    options = {"target": 1, "n_steps": 6, "method": rule}
    nodes, _ = quadrature_of(rule, 7)
    reach = float(nodes[-1] - nodes[0])
    found = LayerConductance(model, model.layer).attribute(x, start, **options)
    assert_close(found, reach * ((x - start) @ w.T) * v, rtol=0, atol=1e-12)
    found = InternalInfluence(model, model.layer).attribute(x, start, **options)
    assert_close(found, v.expand(5, 4), rtol=0, atol=1e-12)
    short = 5 / 6 if rule == "riemann_trapezoid" else 1
    for unit in range(4):
        found = NeuronConductance(model, model.layer).attribute(x, unit, start, **options)
        assert_close(found, short * (x - start) * w[unit] * v[unit], rtol=0, atol=1e-12)


# --- which neuron -----------------------------------------------------------------------------------------


def test_functions_select_neurons():
    """The unit that a function picks, which may be another one for each point; or several, each with its weight."""
    model, x = case(MLP)
    method, options = NeuronConductance(model, model.layer), {"target": 1, "n_steps": 7}
    units = [method.attribute(x, unit, **options) for unit in range(8)]
    assert_same(method.attribute(x, lambda h: h[:, 5], **options), units[5])
    assert_same(method.attribute(x, lambda h: 2 * h[:, 5] - h[:, 1], **options), 2 * units[5] - units[1])
    one = {**options, "n_steps": 1, "method": "riemann_right"}  # at the inputs alone
    top = model.body[:3](x).argmax(1)
    expected = torch.stack([method.attribute(x[i : i + 1], int(top[i]), **one)[0] for i in range(4)])
    assert_same(method.attribute(x, lambda h: h.amax(1), **one), expected)


@pytest.mark.parametrize("selector, words", [(8, "neuron_selector 8"), ((1, 1), "2 indices.*1 axes"), ("3", "3")])
def test_neurons_that_are_none(selector, words):
    model, x = case(MLP)
    with pytest.raises(TargetError, match=words):
        NeuronConductance(model, model.layer).attribute(x, selector, target=1)


# --- several at once --------------------------------------------------------------------------------------


@every
def test_several_scores_at_once(method):
    model, x = case(Pair)
    neuron = (2,) if method is NeuronConductance else ()
    options = {"n_steps": 5, "internal_batch_size": 7}
    found = method(model, model.layer).attribute(x, *neuron, target=Each([3, 0]), **options)
    apart = [method(model, model.layer).attribute(x, *neuron, target=t, **options) for t in (3, 0)]
    for i, t in enumerate(tensors(found)):
        assert_close(t, torch.stack([tensors(a)[i] for a in apart], 1), rtol=0, atol=1e-12)


def test_the_deltas_of_several_scores():
    model, x = case(MLP)
    options = {"n_steps": 5, "return_convergence_delta": True}
    _, deltas = LayerConductance(model, model.layer).attribute(x, target=Each([3, 0]), **options)
    apart = [LayerConductance(model, model.layer).attribute(x, target=t, **options)[1] for t in (3, 0)]
    assert_close(deltas, torch.stack(apart, 1), rtol=0, atol=1e-12)


@layers
def test_a_list_of_layers(method):
    """From one pass for all, also where one stands behind another."""
    model, x = Weighed(), torch.randn(4, 5).double()
    some = [model.body[2], model.body[0], Layer(model.body[3], "input")]
    found = method(model, some).attribute(x, target=1, n_steps=4)
    passes = sum(model.passes)
    assert isinstance(found, list)
    for one, layer in zip(found, some, strict=True):
        model.passes.clear()
        assert_same(one, method(model, layer).attribute(x, target=1, n_steps=4))
        assert sum(model.passes) == passes


@layers
def test_values_of_any_nesting(method):
    model, x = Nested(), torch.randn(4, 5).double()
    found = method(model, model.split).attribute(x, target=1, n_steps=9, method="riemann_trapezoid")
    assert [a.shape for a in found] == [(4, 2), (4, 3), (4,)]
    if method is LayerConductance:  # affine behind the layer
        rise = (model(x) - model(torch.zeros_like(x)))[:, 1].detach()
        assert_close(sum(a.reshape(4, -1).sum(1) for a in found), rise, rtol=0, atol=1e-12)


# --- work -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("batch", [None, 8, 11])
def test_no_more_rows_than_captum(method, batch):
    rows = []
    for room in (method, getattr(captum.attr, method.__name__)):
        model, x = Weighed(), torch.randn(4, 5).double()
        neuron = (3,) if method is NeuronConductance else ()
        options = {"return_convergence_delta": True} if method is LayerConductance else {}
        room(model, model.body[2]).attribute(x, *neuron, target=1, n_steps=10, internal_batch_size=batch, **options)
        rows.append(sum(model.passes))
    assert rows[0] == 4 * 10 + (4 * 3 if method is LayerConductance else 0) <= rows[1]


@layers
def test_no_more_than_a_batch_of_the_path_is_held(method):
    model, x, held, most = Weighed(), torch.randn(4, 5).double(), [], 0

    class Watched(Probe):
        def locals(self, n, query):
            nonlocal most
            for at in super().locals(n, query):
                held.extend((weakref.ref(at.here), weakref.ref(at.grad)))
                most = max(most, sum(t() is not None for t in held))
                yield at

    method = layer_conductance if method is LayerConductance else internal_influence
    f = Watched(model, (x,), Output(1), Layer(model.body[2]), pace=Pace(6))
    method(f, through(None), quadrature_of("gausslegendre", 60))
    assert len(held) == 2 * 40 and most <= 2 * 3
    assert max(model.passes) == 6


# --- bad input --------------------------------------------------------------------------------------------


@every
def test_token_ids_do_not_walk(method):
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    neuron = ((0, 0),) if method is NeuronConductance else ()
    with pytest.raises(TypeError, match="int64.*embedding"):
        method(model, model[0]).attribute(torch.ones(2, 3, dtype=torch.long), *neuron, target=1)


@every
def test_a_layer_that_the_output_does_not_depend_on(method):
    class Beside(Around):
        def forward(self, x):
            self.layer(x)
            return self.skip(x)

    model, x = Beside(), torch.randn(2, 3).double()
    neuron = (1,) if method is NeuronConductance else ()
    with pytest.raises(ModelError, match="no gradient"):
        method(model, model.layer).attribute(x, *neuron, target=1)


@every
@pytest.mark.parametrize("steps", [0, 1.5, True, "many"])
def test_steps(method, steps):
    model, x = case(MLP)
    neuron = (1,) if method is NeuronConductance else ()
    with pytest.raises(ValueError, match=r"n_steps must be a whole number of at least \d, got"):
        method(model, model.layer).attribute(x, *neuron, target=1, n_steps=steps)


@every
def test_what_captum_would_pass_to_autograd(method):
    model, x = case(MLP)
    neuron = (1,) if method is NeuronConductance else ()
    plain = method(model, model.layer).attribute(x, *neuron, target=1)
    assert_same(method(model, model.layer).attribute(x, *neuron, target=1, grad_kwargs={"allow_unused": True}), plain)
    with pytest.raises(ValueError, match="grad_kwargs may hold 'allow_unused' alone"):
        method(model, model.layer).attribute(x, *neuron, target=1, grad_kwargs={"create_graph": True})

"""Gradients at one point, of inputs, layers and neurons: captum's numbers, closed forms, one pass each way."""

import captum.attr
import pytest
import torch
from attribution_cases import FlatNet as Net
from attribution_cases import FlatPair as Pair
from attribution_cases import inputs_of, parts
from models import InPlaceCNN, Nested, Reused
from test_captum_parity import CNN, INNER, MLP, PLAIN, Maps, Tokens, Two, assert_same, built, given
from torch import nn
from torch.testing import assert_close

from robustx.attribution.gradient import (
    InputXGradient,
    LayerActivation,
    LayerGradientXActivation,
    NeuronGradient,
    Saliency,
    gradient_x_activation,
    input_x_gradient,
)
from robustx.engine import Each, Input, Layer, ModelError, Output, Probe, TargetError

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")

METHODS = (InputXGradient, LayerActivation, LayerGradientXActivation, NeuronGradient)
named = {"ids": lambda v: getattr(v, "__name__", None)}
every = pytest.mark.parametrize("method", METHODS, **named)
models = pytest.mark.parametrize("model", [MLP, CNN, Two], **named)
sides = pytest.mark.parametrize("to_input", [False, True])


def case(model):
    """In double precision."""
    return built(model, torch.float64), given(model, dtype=torch.float64)


def bound(method, model, *at):
    """Ours or captum's."""
    return method(model, *([] if method.__name__ == "InputXGradient" else [model.layer]), *at)


def ask(method, model, x, **options):
    """About output 1, or neuron 1."""
    what = {
        InputXGradient: {"target": 1},
        LayerGradientXActivation: {"target": 1},
        NeuronGradient: {"neuron_selector": 1},
    }
    return bound(method, model).attribute(x, **what.get(method, {}), **options)


def assert_agree(method, model, x, /, *args, at=(), **options):
    """With captum, in the same run."""
    rooms = method, getattr(captum.attr, method.__name__)
    ours, theirs = (bound(room, model, *at).attribute(x, *args, **options) for room in rooms)
    assert_same(ours, theirs, 1e-10)
    return ours


# --- captum, in the same run ------------------------------------------------------------------------------


@every
def test_what_a_method_says_about_itself(method):
    ours, theirs = (bound(room, MLP()) for room in (method, getattr(captum.attr, method.__name__)))
    assert ours.get_name() == theirs.get_name()
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs


@models
@pytest.mark.parametrize("target", PLAIN)
def test_targets(model, target):
    assert_agree(InputXGradient, *case(model), PLAIN[target])
    assert_agree(LayerGradientXActivation, *case(model), PLAIN[target])


@pytest.mark.parametrize("target", INNER)
def test_targets_in_larger_outputs(target):
    assert_agree(InputXGradient, *case(Maps), INNER[target])
    assert_agree(LayerGradientXActivation, *case(Maps), INNER[target])


@models
@sides
def test_at_a_layer(model, to_input):
    assert_agree(LayerActivation, *case(model), attribute_to_layer_input=to_input)
    for multiply in (True, False):
        options = {"target": [0, 3, 1, 1], "attribute_to_layer_input": to_input}
        assert_agree(LayerGradientXActivation, *case(model), at=(None, multiply), **options)


@pytest.mark.parametrize("method, what", [(m, () if m is LayerActivation else (1,)) for m in METHODS], **named)
def test_further_arguments(method, what):
    """What has a row for each example follows it, by place or by keyword."""
    model, x, more = Pair(), inputs_of(Pair()), torch.linspace(-1, 1, 5).double()[:, None]
    found = assert_agree(method, model, x, *what, additional_forward_args=more)
    assert_agree(method, model, x, *what, additional_forward_args=(0.5,))
    shifted = {"more": more, "shift": 3.0}
    assert_same(bound(method, model).attribute(x, *what, additional_forward_kwargs=shifted), found, 1e-12)


@sides
def test_several_layers(to_input):
    """A list of them, from one pass."""
    model, x = case(CNN)[0], given(CNN, 5, torch.float64)
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for method, options in ((LayerActivation, {}), (LayerGradientXActivation, {"target": 2})):
        layers, options = [model.norm, model.layer, model.head], options | {"attribute_to_layer_input": to_input}
        found = method(model, layers).attribute(x, **options)
        assert sum(rows) == len(x)
        theirs = getattr(captum.attr, method.__name__)(model, layers).attribute(x, **options)
        assert type(found) is list and len(theirs) == 3
        for layer, a, b in zip(layers, found, theirs, strict=True):
            assert_same(a, b, 1e-10)
            assert_same(a, method(model, layer).attribute(x, **options), 1e-12)
        rows.clear()


class Split(nn.Module):
    """[B, 5] -> [B, 4]; its layer has two tensors."""

    class Halves(nn.Module):
        def forward(self, x):
            return x[:, :2] * 2, x[:, 2:].exp()

    def __init__(self):
        super().__init__()
        self.layer, self.head = Split.Halves(), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.tanh(torch.cat(self.layer(x), 1)))


def test_a_layer_with_several_values():
    model, x = built(Split, torch.float64), given(MLP, dtype=torch.float64)
    assert [a.shape for a in assert_agree(LayerActivation, model, x)] == [(4, 2), (4, 3)]
    assert [a.shape for a in assert_agree(LayerGradientXActivation, model, x, 1)] == [(4, 2), (4, 3)]
    assert_agree(NeuronGradient, model, x, lambda halves: halves[1].sum(1) - halves[0][:, 0])


def test_token_ids():
    """Integers have an activation, and their embedding a gradient."""
    model, ids = built(Tokens, torch.float64), given(Tokens)
    assert torch.equal(LayerActivation(model, model.layer).attribute(ids, attribute_to_layer_input=True), ids)
    assert_agree(LayerActivation, model, ids)
    assert_agree(LayerGradientXActivation, model, ids, 1)
    with pytest.raises(ModelError, match="no gradient"):
        LayerGradientXActivation(model, model.layer).attribute(ids, 1, attribute_to_layer_input=True)


SELECTORS = {
    MLP: [0, (1,), (slice(2, 6),), lambda out: out[:, :3].square().sum(1)],
    Pair: [0, (5,), (slice(None),), lambda out: out.amax(1)],
    CNN: [(1, 2, 3), (1, 2, slice(0, 3)), (slice(0, 2), 0, slice(1, 3)), lambda out: out[:, 0].amax((1, 2))],
}


@sides
@pytest.mark.parametrize("model, which", [(m, i) for m, several in SELECTORS.items() for i in range(len(several))])
def test_neurons(model, which, to_input):
    net, x = case(model) if model is not Pair else (Pair(), inputs_of(Pair()))
    assert_agree(NeuronGradient, net, x, SELECTORS[model][which], attribute_to_neuron_input=to_input)


def test_neurons_that_do_not_see_an_input():
    """It gets nothing, where autograd would complain."""
    model, (a, b) = case(Two)
    unseen, seen = NeuronGradient(model, model.layer).attribute((a, b), 1)
    assert (unseen == 0).all() and unseen.shape == a.shape
    assert_close(seen.flatten(1), model.layer.weight[1].detach().expand(4, 6))


# --- closed forms and laws --------------------------------------------------------------------------------

A = torch.arange(16.0).reshape(4, 4).double() / 10 - 1


def test_a_quadratic():
    """Of x'Ax the gradient is (A + A')x; a score of second degree is half the sum of input times gradient."""
    x = torch.randn(50, 4).double()
    found = InputXGradient(lambda x: (x @ A * x).sum(1)).attribute(x)
    assert_close(found, x * (x @ (A + A.T)))
    assert_close(found.sum(1) / 2, (x @ A * x).sum(1))


def test_of_a_linear_model_it_adds_up():
    model, x = nn.Linear(4, 3, bias=False).double(), torch.randn(7, 4).double()
    assert_close(InputXGradient(model).attribute(x, 2).sum(1), model(x)[:, 2].detach())


def test_two_layers_by_hand():
    """Of v tanh(Wx + b): here is tanh(Wx + b), the gradient there v."""
    w, v = nn.Linear(5, 6).double(), nn.Linear(6, 4).double()
    model, x = nn.Sequential(w, nn.Tanh(), v), torch.randn(8, 5).double()
    hidden = torch.tanh(x @ w.weight.T + w.bias).detach()
    slope = v.weight.detach()[3]
    assert_close(LayerActivation(model, model[1]).attribute(x), hidden)
    assert_close(LayerGradientXActivation(model, model[1]).attribute(x, 3), hidden * slope)
    before = LayerGradientXActivation(model, model[1], multiply_by_inputs=False)
    assert_close(before.attribute(x, 3, attribute_to_layer_input=True), (1 - hidden**2) * slope)
    assert_close(NeuronGradient(model, model[1]).attribute(x, 2), (1 - hidden[:, 2:3] ** 2) * w.weight.detach()[2])


def test_a_layer_that_changes_nothing_is_the_input():
    """LayerGradientXActivation there is InputXGradient; its neurons' gradients are unit vectors."""
    model, x = nn.Sequential(nn.Identity(), built(MLP, torch.float64)), given(MLP, dtype=torch.float64)
    assert_close(LayerGradientXActivation(model, model[0]).attribute(x, 1), InputXGradient(model).attribute(x, 1))
    assert torch.equal(NeuronGradient(model, model[0]).attribute(x, 3), torch.eye(5).double()[3].expand_as(x))


@models
def test_neurons_add_up_to_slices(model):
    """The gradient is linear in what is selected."""
    net, x = case(model)
    method = NeuronGradient(net, net.layer)
    place = (1, 2) if model is CNN else ()
    whole = parts(method.attribute(x, (slice(1, 3), *place)))
    one, other = (parts(method.attribute(x, (i, *place))) for i in (1, 2))
    by_function = parts(method.attribute(x, lambda out: out[(slice(None), slice(1, 3), *place)].sum(1)))
    for a, b, c, d in zip(whole, one, other, by_function, strict=True):
        assert_close(a, b + c)
        assert_close(a, d)


def test_the_chain_rule():
    """The score's slope at a layer times the layer's Jacobian is the score's slope at the input."""
    model, x = case(MLP)
    at_layer = LayerGradientXActivation(model, model.layer, multiply_by_inputs=False).attribute(x, 1)  # [B, 8]
    units = torch.stack([NeuronGradient(model, model.layer).attribute(x, k) for k in range(8)], 1)  # [B, 8, 5]
    assert_close(torch.einsum("bk,bkd->bd", at_layer, units), Saliency(model).attribute(x, 1, abs=False))


@pytest.mark.parametrize("method", [InputXGradient, LayerGradientXActivation], **named)
def test_several_scores_at_once(method):
    """[B, T, ...]: what each of them says on its own."""
    for model in (Net(), Pair()):
        x = inputs_of(model)
        rows = []
        handle = model.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        several = parts(bound(method, model).attribute(x, Each([3, (0,), [0, 1, 2, 3, 0]])))
        handle.remove()
        assert sum(rows) == 5
        single = [parts(bound(method, model).attribute(x, t)) for t in (3, 0, [0, 1, 2, 3, 0])]
        for found, *alone in zip(several, *single, strict=True):
            assert_close(found, torch.stack(alone, 1))
        everything = parts(bound(method, model).attribute(x, Each()))
        assert all(a.shape[:2] == (5, 4) for a in everything)


# --- whatever the model does ------------------------------------------------------------------------------


def test_in_place_behind_and_before_the_layer():
    """What stands at the layer is what came out of it, not what was made of it since."""
    model, x = InPlaceCNN(), torch.randn(3, 2, 4, 4).double()
    kept = x.clone()
    conv = model.conv((x - 0.25) * 2).detach()
    assert_close(LayerActivation(model, model.conv).attribute(x), conv)
    assert_close(LayerActivation(model, model.norm).attribute(x, attribute_to_layer_input=True), conv + 0.5)
    leaf = conv.clone().requires_grad_()
    pooled = torch.max_pool2d(torch.relu(model.norm(leaf + 0.5)), 2) * 1.5
    (slope,) = torch.autograd.grad(model.head(pooled.flatten(1))[:, 2].sum(), leaf)
    assert_close(LayerGradientXActivation(model, model.conv).attribute(x, 2), conv * slope)
    assert torch.equal(x, kept)


class Skip(nn.Module):
    """[B, 5] -> [B, 5]: a layer, and a path around it, that may be closed in place behind it."""

    def __init__(self, closed=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer, self.closed = nn.Linear(5, 5), nn.Linear(5, 5), closed
        self.double()

    def forward(self, x):
        h = self.stem(x)
        out = self.layer(h)
        return out + h.mul_(0 if self.closed else 10)


def test_what_goes_around_a_layer_is_no_part_of_it():
    """Whether parameters are frozen or not, and whatever is done to it behind the layer."""
    for closed in (False, True):
        for frozen in (True, False):
            model, x = Skip(closed).requires_grad_(not frozen), torch.randn(3, 5).double()
            options = {"attribute_to_layer_input": True}
            slope = LayerGradientXActivation(model, model.layer, multiply_by_inputs=False).attribute(x, 1, **options)
            assert_close(slope, model.layer.weight[1].detach().expand(3, 5))
            assert_close(LayerActivation(model, model.layer).attribute(x, **options), model.stem(x).detach())


def test_a_layer_that_is_used_twice():
    model, x = Reused(), torch.randn(3, 5).double()
    for method, what in ((LayerActivation, ()), (LayerGradientXActivation, (1,)), (NeuronGradient, (1,))):
        with pytest.raises(ValueError, match="call=0"):
            method(model, model.again).attribute(x, *what)
    once = model.act(model.again(model.first(x))).detach()
    twice = model.act(model.again(once)).detach()
    assert_close(LayerActivation(model, Layer(model.act, call=0)).attribute(x), once)
    assert_close(LayerActivation(model, Layer(model.act, call=1)).attribute(x), twice)
    found = LayerGradientXActivation(model, [Layer(model.act, call=0), Layer(model.act, call=1)]).attribute(x, 1)
    slope = model.head.weight[1].detach()
    assert_close(found[1], twice * slope)
    assert_close(found[0], once * (((1 - twice**2) * slope) @ model.again.weight.detach()))


def test_a_layer_with_nested_values():
    """Tensors in their order, without what is none."""
    model, x = Nested(), torch.randn(3, 5).double()
    found = LayerActivation(model, model.split).attribute(x)
    slopes = LayerGradientXActivation(model, model.split).attribute(x, 1)
    assert type(found) is tuple and [a.shape for a in found] == [s.shape for s in slopes]


@every
def test_frozen_parameters(method):
    expected = ask(method, Net(), inputs_of(Net()))
    found = ask(method, Net().requires_grad_(False), inputs_of(Net()))
    for a, b in zip(parts(found), parts(expected), strict=True):
        assert torch.equal(a, b)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(method, dtype):
    exact, found = ask(method, Net(), *inputs_of(Net())), ask(method, Net(dtype), *inputs_of(Net(), dtype=dtype))
    assert found.dtype == dtype
    assert_close(found.double(), exact, rtol=0, atol=50 * torch.finfo(dtype).eps * exact.abs().max().item())


@every
@pytest.mark.parametrize("count", [0, 1, 20])
def test_any_number_of_examples(method, count):
    """More than the first pass takes, one, none; in batches of three or all at once."""
    for model in (Net(), Pair()):
        x = inputs_of(model, count)
        whole, chunked = (parts(ask(method, model, x, internal_batch_size=n)) for n in (None, 3))
        shapes = [(count, 6)] if method in METHODS[1:3] else [t.shape for t in x]
        assert [a.shape for a in whole] == [torch.Size(s) for s in shapes]
        for a, b in zip(whole, chunked, strict=True):
            assert_close(a, b)


def counted(model):
    """The same model, with lists of the rows that went through it, forward and back."""
    ahead, back = [], []

    class Tally(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            ahead.append(len(out))
            return out.clone()

        @staticmethod
        def backward(ctx, g):
            back.append(len(g))
            return g

    return model.register_forward_hook(lambda _, __, out: Tally.apply(out)), ahead, back


@every
@pytest.mark.parametrize("count", [1, 20])
def test_one_pass_each_way(method, count):
    model = Net()
    handle, ahead, back = counted(model.layer if method is NeuronGradient else model)
    ask(method, model, inputs_of(model, count))
    handle.remove()
    assert sum(ahead) == count and sum(back) == (0 if method is LayerActivation else count)
    assert len(ahead) <= 2  # the first few are weighed


def test_what_the_meter_says():
    """The functions behind the classes: one row forward and one back for each example."""
    model, (x,) = Net(), inputs_of(Net(), 20)
    inputs = Probe(model, (x,), Output(1))
    layer = inputs.to(at=Layer(model.layer))
    (one,), other = gradient_x_activation(layer.to(at=Input())), input_x_gradient(inputs)
    assert_close(one.flatten(1), other)
    assert inputs.meter.forward.tolist() == inputs.meter.backward.tolist() == [2] * 20
    assert gradient_x_activation(layer)[0].shape == (20, 6)
    assert inputs.meter.forward.tolist() == inputs.meter.backward.tolist() == [3] * 20


def test_a_gradient_of_the_users_own():
    model, x = case(MLP)
    method = InputXGradient(model)
    method.gradient_func = lambda forward, inputs, target, more: tuple(torch.full_like(t, 3.0) for t in inputs)
    assert_close(method.attribute(x, 1), 3 * x)


def test_activations_ask_for_no_gradient_and_no_output():
    class Odd(Net):
        def forward(self, x):
            return {"logits": super().forward(x).detach() * float("nan")}

    x = inputs_of(Net())
    found, expected = (LayerActivation(m, m.layer).attribute(x) for m in (Odd(), Net()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", [InputXGradient, LayerGradientXActivation], **named)
def test_gradients_ask_for_both(method):
    class Cut(Net):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ModelError, match="no gradient"):
        ask(method, Cut(), inputs_of(Net()))


def test_mistakes():
    model, (x,) = Net(), inputs_of(Net())
    for method, what in ((LayerActivation, ()), (LayerGradientXActivation, (1,)), (NeuronGradient, (1,))):
        with pytest.raises(ValueError, match="called 0 times"):
            method(model, nn.Linear(2, 2)).attribute(x, *what)
        with pytest.raises(TypeError, match="layer must be a module"):
            method(model, "layer")
    for selector, words in ((6, "6"), ((1, 1), "2 indices"), ("first", "first")):
        with pytest.raises(TargetError, match=words):
            NeuronGradient(model, model.layer).attribute(x, selector)
    with pytest.raises(ValueError, match="grad_kwargs may hold 'allow_unused' alone, got retain_graph"):
        LayerGradientXActivation(model, model.layer).attribute(x, 1, grad_kwargs={"retain_graph": True})
    plain = LayerGradientXActivation(model, model.layer).attribute(x, 1)
    same = LayerGradientXActivation(model, model.layer, memory_efficient=True)
    assert torch.equal(same.attribute(x, 1, grad_kwargs={"allow_unused": True}), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's
@pytest.mark.parametrize("method", METHODS, **named)
def test_compiled_models(method):
    """Also those that ran before."""
    model, x = Net(), inputs_of(Net(), 20)
    expected = ask(method, model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x[0])
    with torch.no_grad():
        compiled(x[0])
    assert_same(ask(method, compiled, x), expected, 1e-12)

"""Guided backpropagation and deconvolution: captum's numbers, the rules written out, every way to write a ReLU."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import Net, Pair, inputs_of, parts
from test_captum_parity import assert_same
from torch import nn
from torch.testing import assert_close

from robustx.attribution.gradient import NeuronGradient, Saliency
from robustx.attribution.guided import Deconvolution, GuidedBackprop, NeuronDeconvolution, NeuronGuidedBackprop
from robustx.engine import Each, Layer, ModelError, TargetError
from robustx.engine.rules import RuleError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations"),
]

INPUTS, NEURONS = (GuidedBackprop, Deconvolution), (NeuronGuidedBackprop, NeuronDeconvolution)
named = {"ids": lambda v: getattr(v, "__name__", None)}
inputs = pytest.mark.parametrize("method", INPUTS, **named)
neurons = pytest.mark.parametrize("method", NEURONS, **named)
every = pytest.mark.parametrize("method", INPUTS + NEURONS, **named)
sides = pytest.mark.parametrize("to_input", [False, True])

PASS = {  # (gradient behind a ReLU, what went into it) -> gradient before it
    "Backprop": lambda g, x: g * (g > 0) * (x > 0),
    "Deconvolution": lambda g, x: g * (g > 0),
}


def rule(method):
    return next(f for name, f in PASS.items() if method.__name__.endswith(name))


class CNN(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]; ReLU modules, batch norm, a shift of the head's input; its layer is [B, 5, 2, 2]."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()
        self.layer, self.relu, self.head = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(20, 4)
        nn.init.normal_(self.norm.running_mean)
        self.double().eval().to(dtype)

    def forward(self, x, shift=0.0):
        return self.head(self.relu(self.layer(self.act(self.norm(self.conv(x))))).flatten(1) + shift)


class Two(nn.Module):
    """[B, 5] and [B, 2, 3] -> [B, 4]; its layer sees both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.one, self.other = nn.Linear(5, 6), nn.Linear(6, 6), nn.ReLU(), nn.ReLU()
        self.layer, self.last, self.head = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)
        self.double()

    def forward(self, a, b):
        return self.head(self.last(self.layer(self.one(self.a(a)) - self.other(self.b(b.flatten(1))))))


def given(model, count=5, dtype=torch.float64):
    torch.manual_seed(1)
    tensors = tuple(
        torch.randn(count, *s).to(dtype) for s in ([(2, 6, 6)] if isinstance(model, CNN) else [(5,), (2, 3)])
    )
    return tensors if len(tensors) > 1 else tensors[0]


def ask(method, model, x, target=None, **options):
    """About output 1, or about neuron (1, 1, 0) or 1."""
    if method in INPUTS:
        return method(model).attribute(x, 1 if target is None else target, **options)
    return method(model, model.layer).attribute(x, 1 if isinstance(model, Two) else (1, 1, 0), **options)


# --- captum, in the same run ------------------------------------------------------------------------------


@every
def test_what_a_method_says_about_itself(method):
    model = CNN()
    layer = (model.layer,) if method in NEURONS else ()
    ours, theirs = (room(model, *layer) for room in (method, getattr(captum.attr, method.__name__)))
    assert ours.get_name() == theirs.get_name()
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs


def assert_agree(method, model, x, *args, layer=None, **options):
    at = () if method in INPUTS else (layer or model.layer,)
    rooms = method, getattr(captum.attr, method.__name__)
    ours, theirs = (room(model, *at).attribute(x, *args, **options) for room in rooms)
    assert_same(ours, theirs, 1e-10)
    return ours


TARGETS = {
    "int": 2,
    "0-d tensor": torch.tensor(2),
    "tuple": (2,),
    "list": [0, 3, 1, 1, 2],
    "tensor": torch.tensor([3, 0, 2, 2, 1]),
    "list of tuples": [(0,), (3,), (1,), (1,), (2,)],
}


@inputs
@pytest.mark.parametrize("target", TARGETS)
def test_targets(method, target):
    for model in (CNN(), Two()):
        found = assert_agree(method, model, given(model), TARGETS[target])
        plain = Saliency(model).attribute(given(model), TARGETS[target], abs=False)
        for a, b in zip(parts(found), parts(plain), strict=True):
            assert (a - b).abs().max() > 1e-3


@inputs
def test_tuples_of_one_stay_tuples(method):
    assert_agree(method, CNN(), (given(CNN()),), 1)


@every
def test_further_arguments(method):
    """What has a row for each example follows it, by place or by keyword."""
    model, what, shift = CNN(), 1 if method in INPUTS else 2, torch.linspace(-1, 1, 5).double()[:, None]
    found = assert_agree(method, model, given(model), what, shift, layer=model.head)
    assert_agree(method, model, given(model), what, (0.5,), layer=model.head)
    bound = method(model, *([] if method in INPUTS else [model.head]))
    assert_close(bound.attribute(given(model), what, additional_forward_kwargs={"shift": shift}), found)


SELECTORS = [(1, 1, 0), (slice(0, 3), 0, slice(None)), (slice(1, 3),) * 3, lambda out: out[:, 0].amax((1, 2))]


@neurons
@sides
@pytest.mark.parametrize("which", range(len(SELECTORS)))
def test_neurons(method, to_input, which):
    model = CNN()
    for layer in (model.layer, model.relu, model.act):  # a ReLU's output is behind it, its input before it
        assert_agree(method, model, given(model), SELECTORS[which], None, to_input, layer=layer)


@neurons
@pytest.mark.parametrize("selector", [0, (5,), (slice(None),)])
def test_neurons_of_two_inputs(method, selector):
    assert_agree(method, Two(), given(Two()), selector)


# --- the rules, written out -------------------------------------------------------------------------------


@inputs
def test_layer_by_layer(method):
    """Back through three linear layers and the two ReLUs between them."""
    torch.manual_seed(0)
    w = [nn.Linear(5, 9).double(), nn.Linear(9, 7).double(), nn.Linear(7, 4).double()]
    x, act = torch.randn(20, 5).double(), nn.ReLU()
    first = w[0](x).detach()
    second = w[1](act(first)).detach()
    g = w[2].weight[3].detach().expand(20, 7)
    g = rule(method)(g, second) @ w[1].weight.detach()
    expected = rule(method)(g, first) @ w[0].weight.detach()
    model = nn.Sequential(w[0], nn.ReLU(), w[1], nn.ReLU(), w[2])
    assert_close(method(model).attribute(x, 3), expected)
    before = method(nn.Sequential(*model[1:])).attribute(first, 3)
    assert_close(before, rule(method)(g, first))


@inputs
def test_where_a_relu_is_shut_for_good_and_open_for_good(method):
    """Guided: nothing passes a shut one. Deconvolution: it does not matter. Neither lets anything negative pass."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    up, down = (lambda x, by=by: F.relu(x + by) @ weight for by in (100, -100))
    x = torch.randn(3, 2).double()
    passed = torch.tensor([0.0, 3.0]).double().expand(3, 2)
    assert_close(method(up).attribute(x, 1), passed)
    assert_close(method(down).attribute(x, 1), passed * 0 if method is GuidedBackprop else passed)


@every
def test_without_relu_it_is_the_gradient(method):
    for model in (Net(), Pair()):
        x = inputs_of(model)
        if method in INPUTS:
            found, expected = method(model).attribute(x, 1), Saliency(model).attribute(x, 1, abs=False)
        else:
            found, expected = (
                m(model, model.layer).attribute(x, lambda here: here.flatten(1)[:, 1]) for m in (method, NeuronGradient)
            )
        for a, b in zip(parts(found), parts(expected), strict=True):
            assert_close(a, b)


def test_where_everything_is_positive_guided_is_the_gradient():
    model, x = CNN(), given(CNN())
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    assert_close(GuidedBackprop(model).attribute(x, 1), Saliency(model).attribute(x, 1, abs=False))


# --- every way to write a ReLU ----------------------------------------------------------------------------


class Written(nn.Module):
    """[B, 5] -> [B, 4]: two ReLUs behind linear layers, written as ``way`` says."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.way, self.act, self.other, self.inplace = way, nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True)
        self.double()

    def forward(self, x):
        x = WAYS[self.way](self, self.first(x), 0)
        return self.head(WAYS[self.way](self, self.layer(x), 1))


def view(model, v, i):
    """Half of it, then the other half, in place."""
    v[:, :3].relu_()
    v[:, 3:].relu_()
    return v


def wrapped(model, v, i):
    class Ours(nn.ReLU):
        def forward(self, v):
            return super().forward(v) * 1.0

    return Ours()(v)


WAYS = {
    "modules": lambda model, v, i: (model.act, model.other)[i](v),
    "one module, used twice": lambda model, v, i: model.act(v),
    "a module in place, used twice": lambda model, v, i: model.inplace(v),
    "F.relu": lambda model, v, i: F.relu(v),
    "F.relu in place": lambda model, v, i: F.relu(v, inplace=True),
    "F.relu by keyword": lambda model, v, i: F.relu(input=v, inplace=bool(i)),
    "F.relu_": lambda model, v, i: F.relu_(v),
    "torch.relu": lambda model, v, i: torch.relu(v),
    "torch.relu_": lambda model, v, i: torch.relu_(v),
    "x.relu": lambda model, v, i: v.relu(),
    "x.relu_": lambda model, v, i: v.relu_(),
    "aten": lambda model, v, i: torch.ops.aten.relu(v),
    "of views, in place": view,
    "a subclass": wrapped,
    "mixed": lambda model, v, i: F.relu(v) if i else model.inplace(v),
}


@inputs
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_it(method, way):
    """Captum sees modules only, each used once."""
    x = torch.randn(20, 5).double()
    theirs = getattr(captum.attr, method.__name__)(Written("modules")).attribute(x, 1)
    model = Written(way)
    assert_close(method(model).attribute(x, 1), theirs)
    model.requires_grad_(False)
    assert_close(method(model).attribute(x, 1), theirs)


@neurons
@pytest.mark.parametrize("way", WAYS)
def test_neurons_however_it_is_written(method, way):
    x, modules, model = torch.randn(20, 5).double(), Written("modules"), Written(way)
    theirs = getattr(captum.attr, method.__name__)(modules, modules.layer).attribute(x, 2)
    assert_close(method(model, model.layer).attribute(x, 2), theirs)


@neurons
def test_neurons_of_one_call_of_many(method):
    """The second call of a ReLU that is used twice."""
    x, modules, model = torch.randn(20, 5).double(), Written("modules"), Written("one module, used twice")
    theirs = getattr(captum.attr, method.__name__)(modules, modules.other).attribute(x, 2)
    assert_close(method(model, Layer(model.act, call=1)).attribute(x, 2), theirs)
    with pytest.raises(ValueError, match="call=0"):
        method(model, model.act).attribute(x, 2)


@inputs
def test_inside_layers_of_pytorchs_own(method):
    """A transformer's feed-forward ReLU, against the same with a function whose way back is the rule."""

    class Ruled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return v.relu()

        @staticmethod
        def backward(ctx, g):
            return rule(method)(g, *ctx.saved_tensors)

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double().eval()
    x = torch.randn(5, 3, 4).double()
    found = method(model).attribute(x, 1)
    layer.activation, layer.activation_relu_or_gelu = Ruled.apply, 0
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert_close(found, expected)


OTHERS = {
    "ReLU6": nn.ReLU6(inplace=True),
    "SiLU": nn.SiLU(inplace=True),
    "Hardswish": nn.Hardswish(inplace=True),
    "ELU": nn.ELU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(0.1, inplace=True),
    "clamp_": lambda v: v.clamp_(0, 1),
    "mul_": lambda v: v.mul_(torch.sigmoid(v)),
    "sigmoid_": lambda v: v.sigmoid_(),
    "an item": lambda v: (v.__setitem__((slice(None), 0), v[:, 1] * 2), v)[1],
}


@inputs
@pytest.mark.parametrize("other", OTHERS)
def test_other_operations_in_place_pass_gradients_as_ever(method, other):
    torch.manual_seed(0)
    first, head = nn.Linear(5, 8).double(), nn.Linear(8, 4).double()

    def model(x):
        return head(OTHERS[other](first(x)))

    x = torch.randn(20, 5).double()
    assert_close(method(model).attribute(x, 1), Saliency(model).attribute(x, 1, abs=False))


# --- several scores, passes, dtypes, traces ---------------------------------------------------------------


@inputs
def test_several_scores_at_once(method):
    """[B, T, ...]: what each of them says on its own, from one pass."""
    for model in (CNN(), Two()):
        x, rows = given(model), []
        handle = model.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        several = parts(method(model).attribute(x, Each([3, (0,), [0, 1, 2, 3, 0]])))
        handle.remove()
        assert sum(rows) == 5
        alone = [parts(method(model).attribute(x, t)) for t in (3, 0, [0, 1, 2, 3, 0])]
        for found, *single in zip(several, *alone, strict=True):
            assert_close(found, torch.stack(single, 1))


@every
@pytest.mark.parametrize("count", [0, 1, 20])
def test_any_number_of_examples(method, count):
    """More than the first pass takes, one, none; in batches of three or all at once."""
    for model in (CNN(), Two()):
        x = given(model, count)
        whole, chunked = (parts(ask(method, model, x, internal_batch_size=n)) for n in (None, 3))
        for t, a, b in zip(parts(x), whole, chunked, strict=True):
            assert a.shape == t.shape
            assert_close(a, b)


@every
@pytest.mark.parametrize("count", [1, 20])
def test_one_pass_each_way(method, count):
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

    model = CNN()
    model.conv.register_forward_hook(lambda _, __, out: Tally.apply(out))
    ask(method, model, given(model, count))
    assert sum(ahead) == sum(back) == count


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(method, dtype):
    expected, found = (ask(method, m, given(m, dtype=d)) for m, d in ((CNN(), torch.float64), (CNN(dtype), dtype)))
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps * expected.abs().max().item())


class Listening(nn.Module):
    """Hooks a tensor on its way, as explanations that are built into a model do."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 4).double(), []

    def forward(self, x):
        hidden = self.layer(x)
        if hidden.requires_grad:
            hidden.register_hook(self.seen.append)
            hidden.retain_grad()
        return hidden.relu()


@inputs
def test_models_may_hook_their_tensors(method):
    torch.manual_seed(0)
    model, x = Listening(), torch.randn(2, 3).double()
    attributions = method(model).attribute(x, lambda out: out.sum(1))
    assert attributions.any()
    assert_close(attributions, model.seen[0] @ model.layer.weight)


@every
def test_leaves_no_trace(method):
    """On the model, on what it computes next, or after it broke."""
    model, x = CNN(), given(CNN())
    kept, before = x.clone(), Saliency(model).attribute(x, 1)
    ask(method, model, x)
    model.head.forward = lambda v: torch.ones(2, 2) @ v  # the last step fails
    with pytest.raises(ModelError):
        method(model, *([] if method in INPUTS else [model.head])).attribute(x, 1)
    del model.head.forward
    assert torch.equal(x, kept) and not x.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(Saliency(model).attribute(x, 1), before)


@every
def test_compiled_models(method):
    """They run as they are written, also if they ran before."""
    model, x = CNN(), given(CNN(), 20)
    expected = ask(method, model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    compiled.layer = model.layer
    assert_close(ask(method, compiled, x), expected)


# --- mistakes ---------------------------------------------------------------------------------------------


@inputs
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_hides_its_relus(method):
    scripted = torch.jit.trace(CNN(), given(CNN()))
    for model in (scripted, nn.Sequential(scripted), lambda x: scripted(x)):
        with pytest.raises(RuleError, match="TorchScript.*use the model it came from"):
            method(model).attribute(given(CNN()), 1)


def test_mistakes():
    model, x = CNN(), given(CNN())
    for method in NEURONS:
        with pytest.raises(TargetError, match="1 indices.*3 axes"):
            method(model, model.layer).attribute(x, 1)
        with pytest.raises(ValueError, match="called 0 times"):
            method(model, nn.ReLU()).attribute(x, 1)
    for method in INPUTS:
        with pytest.raises(TargetError, match="7"):
            method(model).attribute(x, 7)
        with pytest.raises(ModelError, match="no gradient"):
            method(lambda x: model(x).detach()).attribute(x, 1)

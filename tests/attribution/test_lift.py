"""DeepLIFT adds up through everything that has a rule, names what has none, and is captum's where captum is right."""

import inspect
import threading
from functools import partial

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import GRU, OPERATIONS, SHAPE, TABLE, other, points, score, size, two
from test_captum_parity import assert_same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close
from torchvision.models import VisionTransformer, resnet18, vit_b_16

from robustx.attribution import (
    DeepLift,
    DeepLiftShap,
    LayerDeepLift,
    LayerDeepLiftShap,
    NeuronDeepLift,
    NeuronDeepLiftShap,
    Saliency,
)
from robustx.engine import Each, ModelError
from robustx.engine.rules import RuleError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes"),
]

LIFTS = (DeepLift, DeepLiftShap, LayerDeepLift, LayerDeepLiftShap, NeuronDeepLift, NeuronDeepLiftShap)
lifts = pytest.mark.parametrize("method", LIFTS, ids=lambda m: m.__name__)


def over_many(method):
    return method.__name__.endswith("Shap")


# --- every operation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name):
    """Adds up, against one baseline each and against several; is the gradient in the limit; rows are apart."""
    f = partial(score, OPERATIONS[name])
    x, there, several = points(4, 1), points(4, 2), points(3, 3)
    a, missing = DeepLift(f).attribute(x, there, return_convergence_delta=True)
    scale = a.abs().sum((1, 2)).max().clamp(min=1)
    assert missing.abs().max() <= 1e-10 * scale
    assert_close(a.sum((1, 2)), f(x) - f(there), rtol=0, atol=1e-10 * scale.item())
    shap, missing = DeepLiftShap(f).attribute(x, several, return_convergence_delta=True)
    assert missing.abs().max() <= 1e-10 * scale
    each = [DeepLift(f).attribute(x, several[i : i + 1]) for i in range(3)]
    assert_close(shap, torch.stack(each).mean(0), rtol=1e-8, atol=1e-8)
    assert_close(DeepLift(f).attribute(x[1:2], there[1:2]), a[1:2], rtol=1e-9, atol=1e-9)
    slope = Saliency(f).attribute(x, abs=False)
    assert_close(DeepLift(f, multiply_by_inputs=False).attribute(x, x.clone()), slope, rtol=1e-8, atol=1e-8)
    near = x + 1e-7 * points(4, 4)
    assert_close(DeepLift(f, multiply_by_inputs=False).attribute(x, near), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("f", [torch.tanh, F.gelu, torch.exp, lambda x: x.amax(1, keepdim=True)])
def test_differences_that_are_rounding_tell_nothing(f):
    """The slope is taken there; also where differences are below what the user calls one."""
    x = points(4, 1) + 3
    slope = Saliency(lambda x: score(f, x)).attribute(x, abs=False)
    for eps, there in ((1e-10, torch.nextafter(x, x + 1)), (1.5, x + 1)):
        method = DeepLift(lambda x: score(f, x), multiply_by_inputs=False, eps=eps)
        assert_close(method.attribute(x, there), slope, rtol=1e-9, atol=1e-9)


UNARY = [
    torch.tanh,
    torch.relu,
    F.gelu,
    F.silu,
    lambda x: x.softmax(-1),
    lambda x: F.layer_norm(x, (6,)),
    lambda x: x.clamp(-1, 1),
    lambda x: F.max_pool1d(x, 3, 1, 1),
    lambda x: x - x.amax(1, keepdim=True),
    lambda x: x.roll(1, -1) * 0.5,
    lambda x: x.clone().mul_(0.5).relu_() - 0.1,
    lambda x: torch.where(TABLE > 0, x, 0.3),
    lambda x: x / size(x).sum(-1, keepdim=True),
    other,
]
BINARY = [
    torch.add,
    torch.sub,
    lambda x, y: torch.tanh(x) * y.sigmoid(),
    torch.maximum,
    lambda x, y: x / (1 + y * y),
    lambda x, y: (x @ y.mT).softmax(-1) @ x,
    lambda x, y: torch.cat([x[:, :2], y[:, 2:]], 1),
    lambda x, y: torch.einsum("bij,bij->bi", x, y)[..., None].tanh().expand_as(x),
]
steps = st.lists(
    st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(0, 1000), st.integers(1, 4), st.integers(1, 9))
def test_programs_of_operations(steps, seed, count, references):
    """Any of them behind any other: values are used again, branches meet."""

    def program(x):
        values = [x]
        for f, i, j in steps:
            at = (values[-1 - i % len(values)], values[j % len(values)])
            values.append(f(*at) if f in BINARY else f(at[0]))
        return score(lambda v: v, values[-1])

    x, there = points(count, seed), points(references, seed + 1)
    a, missing = DeepLiftShap(program).attribute(x, there, return_convergence_delta=True)
    assert missing.shape == (count * references,)
    assert missing.abs().max() <= 1e-9 * a.abs().sum((1, 2)).max().clamp(min=1)
    assert_close(a.sum((1, 2)), program(x) - program(there).mean(), rtol=1e-8, atol=1e-8)


def test_softmax_does_not_see_other_rows():
    """Captum's rule subtracts a mean over the batch."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Softmax(1)).double()
    x = torch.randn(3, 6).double()
    together, first = (DeepLift(model).attribute(v, target=2)[:1] for v in (x, x[:1]))
    assert_close(together, first, rtol=0, atol=1e-14)
    theirs = [captum.attr.DeepLift(model).attribute(v, target=2)[:1] for v in (x, x[:1])]
    assert (theirs[0] - theirs[1]).abs().max() > 1e-4


# --- whole networks ---------------------------------------------------------------------------------------


class Functional(nn.Module):
    """[B, 5] -> [B, 4], with ``act`` after each of three layers."""

    def __init__(self, act=torch.relu, norm=nn.Identity):
        super().__init__()
        self.one, self.layer, self.three = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.norm, self.head, self.act = norm(), nn.Linear(12, 4), act

    def forward(self, x):
        for step in (self.one, self.layer, self.three):
            x = self.act(self.norm(step(x)))
        return self.head(x)


class Pooled(nn.Module):
    """[B, 2, 11, 11] -> [B, 4]; batch norm, pools that overlap, are padded, reach beyond the edge; a sum."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.layer = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.pools = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.AdaptiveMaxPool2d(2))
        self.head = nn.Linear(16, 4)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        x = self.layer(F.relu(self.norm(self.one(x)), inplace=True))
        x = self.pools(x + F.elu(x))
        x += 0.3
        return self.head(x.flatten(1))


class Sequence(nn.Module):
    """[B, 4, 6] -> [B, 4], through something that has a sequence."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.middle, self.head = nn.Linear(6, 6), layer, nn.Linear(width, 4)

    def forward(self, x):
        x = self.middle(self.layer(x).tanh())
        return self.head((x[0] if isinstance(x, tuple) else x)[:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def residual():
    model = resnet18(num_classes=4)
    model.layer = model.layer2
    return model


def vision(build, **how):
    model = build(num_classes=4, **how)
    nn.init.normal_(model.heads.head.weight)  # zero by default
    model.layer = model.encoder.layers[0]
    return model


NETS = {
    "functional ReLU": (Functional, (5,)),
    "one ReLU used three times": (lambda: Functional(nn.ReLU()), (5,)),
    "ReLU in place": (lambda: Functional(nn.ReLU(inplace=True)), (5,)),
    "GELU and LayerNorm": (lambda: Functional(nn.GELU(), lambda: nn.LayerNorm(12)), (5,)),
    "SiLU in place and RMSNorm": (lambda: Functional(nn.SiLU(inplace=True), lambda: nn.RMSNorm(12)), (5,)),
    "pools": (Pooled, (2, 11, 11)),
    "LSTM": (lambda: Sequence(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), 10), SHAPE),
    "GRU": (lambda: Sequence(nn.GRU(6, 5, batch_first=True), 5), SHAPE),
    "attention": (lambda: Sequence(Attending(), 6), SHAPE),
    "transformer": (lambda: Sequence(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 6), SHAPE),
    "resnet18": (residual, (3, 32, 32)),
    "vision transformer": (
        lambda: vision(
            VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24
        ),
        (3, 32, 32),
    ),
}


def net(name, dtype=torch.float64, count=3):
    """The model, inputs, and one baseline for each of them."""
    build, shape = NETS[name]
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    return model, torch.randn(count, *shape, dtype=dtype), torch.randn(count, *shape, dtype=dtype)


def neuron(here):
    """What is asked of a layer by the methods for neurons."""
    return here.flatten(1)[:, :3].square().sum(1)


def asked(method, model, x, baselines, **options):
    """Attributions of output 1, or of what ``neuron`` makes of the layer."""
    if method.__name__.startswith("Neuron"):
        return method(model, model.layer).attribute(x, neuron, baselines, **options)
    layer = (model.layer,) if method.__name__.startswith("Layer") else ()
    return method(model, *layer).attribute(x, baselines, 1, **options)


def value(method, model, x):
    """What :func:`asked` asks about [B]."""
    if not method.__name__.startswith("Neuron"):
        return model(x)[:, 1].detach()
    seen = []
    handle = model.layer.register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    model(x)
    handle.remove()
    return neuron(seen[0])


@lifts
@pytest.mark.parametrize("name", NETS)
def test_networks(method, name):
    """Contributions add up to the rise, to rounding; the deltas say so."""
    model, x, baselines = net(name)
    baselines = baselines[:2] if over_many(method) else baselines
    rise = value(method, model, x)
    there = value(method, model, baselines)
    rise = rise - (there.mean() if over_many(method) else there)
    a = asked(method, model, x, baselines)
    assert ((a.flatten(1).sum(1) - rise).abs() <= 1e-9 * rise.abs()).all()
    if not method.__name__.startswith("Neuron"):
        same, missing = asked(method, model, x, baselines, return_convergence_delta=True)
        assert torch.equal(same, a)
        assert missing.shape == (6,) if over_many(method) else (3,)
        assert missing.abs().max() <= 1e-9 * rise.abs().max()


@pytest.mark.parametrize("name", ["functional ReLU", "GELU and LayerNorm", "resnet18", "vision transformer"])
def test_networks_in_single_precision(name):
    model, x, baselines = net(name, torch.float32)
    rise = (model(x) - model(baselines))[:, 1].detach()
    found = DeepLift(model).attribute(x, baselines, 1).flatten(1).sum(1)
    assert ((found - rise).abs() <= 1e-4 * rise.abs()).all()


def test_vit_b_16():
    torch.manual_seed(0)
    model = vision(vit_b_16, image_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    rise = (model(x) - model(torch.zeros(1, 3, 32, 32)))[:, 1].detach()
    found = DeepLift(model).attribute(x, target=1).flatten(1).sum(1)
    assert ((found - rise).abs() <= 1e-4 * rise.abs()).all()


@pytest.mark.parametrize("name", ["attention", "transformer"])
def test_fast_paths(name):
    """PyTorch fuses these where nothing needs a gradient; what is explained is the same."""
    model, x, baselines = net(name)
    model.requires_grad_(False)
    with torch.no_grad():
        a = DeepLift(model).attribute(x, baselines, 1)
        assert_close(a.sum((1, 2)), (model(x) - model(baselines))[:, 1], rtol=1e-9, atol=1e-12)


@lifts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(method, dtype):
    """In and out; as in double precision, to what the numbers carry."""
    for name in ("GELU and LayerNorm", "pools"):
        exact, x, baselines = net(name)
        x, baselines = x.to(dtype), baselines[:1].to(dtype)
        model = net(name)[0].to(dtype)
        for p, q in zip(exact.state_dict().values(), model.state_dict().values(), strict=True):
            p.copy_(q)
        found, expected = asked(method, model, x, baselines), asked(method, exact, x.double(), baselines.double())
        assert found.dtype == dtype
        assert_close(found.double(), expected, rtol=0, atol=100 * torch.finfo(dtype).eps * expected.abs().max().item())


# --- the paper, written out -------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [torch.relu, torch.sigmoid, F.softplus], ids=lambda f: f.__name__)
def test_the_rescale_rule_unit_by_unit(act):
    """Section 3.5.1 and the chain rule for multipliers (eq. 3), with loops over units."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5).double(), nn.Linear(5, 4).double(), nn.Linear(4, 2).double()]
    x, x0 = torch.randn(3).double(), torch.randn(3).double()
    before, after, here, there = [], [], x, x0
    for layer in layers[:-1]:
        here, there = layer(here), layer(there)
        before.append((here.tolist(), there.tolist()))
        here, there = act(here), act(there)
        after.append((here.tolist(), there.tolist()))
    m = layers[-1].weight[1].tolist()
    for layer, (z, z0), (y, y0) in zip(layers[1::-1], before[::-1], after[::-1], strict=True):
        m = [m[k] * (y[k] - y0[k]) / (z[k] - z0[k]) for k in range(len(m))]
        w = layer.weight.tolist()
        m = [sum(m[k] * w[k][i] for k in range(len(m))) for i in range(len(w[0]))]

    def model(x):
        return layers[2](act(layers[1](act(layers[0](x)))))

    found = DeepLift(model, multiply_by_inputs=False).attribute(x[None], x0[None], 1)
    assert_close(found[0], torch.tensor(m, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    shares = DeepLift(model).attribute(x[None], x0[None], 1)
    assert_close(shares[0], torch.tensor(m, dtype=torch.float64) * (x - x0), rtol=1e-12, atol=1e-12)


def test_products_and_quotients():
    x, x0 = torch.tensor([[3.0, 2.0]]).double(), torch.tensor([[1.0, 4.0]]).double()
    product = DeepLift(lambda v: v[:, 0] * v[:, 1]).attribute(x, x0)
    assert_close(product, torch.tensor([[2 * 3.0, -2 * 2.0]]).double())  # 6 - 4, each move times the other's mean
    quotient = DeepLift(lambda v: v[:, 0] / v[:, 1]).attribute(x, x0)
    assert_close(quotient, torch.tensor([[2 / 3, 2 * 0.875 / 3]]).double())  # 1.5 - 0.25


def test_what_wins_and_what_won():
    """Of a maximum: what was won goes to the winner here, what was lost to the winner there."""
    x = torch.tensor([[5.0, 1.0, 0.0], [1.0, 2.0, 0.0]]).double()
    x0 = torch.tensor([[0.0, 3.0, 1.0], [4.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]).double()
    for f in (lambda v: v.amax(1), lambda v: F.max_pool1d(v[:, None], 3).flatten(), lambda v: v.max(1).values):
        assert_close(DeepLift(f).attribute(x, x0), expected)


# --- captum, in the same run ------------------------------------------------------------------------------


class Modules(nn.Module):
    """[B, 2, 8, 8] -> [B, 4], of modules that are used once each, with linear ones between, as Captum needs them."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.act, self.two, self.pool = nn.Conv2d(2, 3, 3), act(), nn.Conv2d(3, 3, 3), nn.MaxPool2d(2)
        self.layer, self.other, self.head = nn.Linear(12, 6), act(), nn.Linear(6, 4)
        self.double()

    def forward(self, x, shift=0.0):
        return self.head(self.other(self.layer(self.pool(self.two(self.act(self.one(x)))).flatten(1)) + shift))


class Pair(nn.Module):
    """[B, 5] and [B, 2, 3] -> [B, 4]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.one, self.layer = nn.Linear(5, 6), nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 6)
        self.two, self.head = nn.Tanh(), nn.Linear(6, 4)
        self.double()

    def forward(self, a, b):
        return self.head(self.two(self.layer(self.one(self.a(a) - self.b(b.flatten(1))))))


def drawn(*shapes, seed=1):
    torch.manual_seed(seed)
    return tuple(torch.randn(*s).double() for s in shapes)


def assert_agree(method, model, x, *args, layer=None, init=(), **options):
    """With captum's, whose deltas are those of each pair of input and baseline."""
    at = () if method in LIFTS[:2] else (layer or model.layer,)
    ours, theirs = (m(model, *at, *init).attribute(x, *args, **options) for m in (method, _theirs(method)))
    if options.get("return_convergence_delta"):
        assert_close(ours[1], theirs[1], rtol=0, atol=1e-9)
        ours, theirs = ours[0], theirs[0]
    assert_same(ours, theirs, 1e-9)


def _theirs(method):
    return getattr(captum.attr, method.__name__)


ACTS = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)


@lifts
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("multiply", [True, False])
def test_captum(method, act, multiply):
    model, (x, b) = Modules(act), drawn((5, 2, 8, 8), (3, 2, 8, 8))
    what = (lambda out: out[:, 3],) if method.__name__.startswith("Neuron") else ()
    how = {} if what else {"target": [0, 3, 1, 1, 2], "return_convergence_delta": True}
    assert_agree(method, model, x, *what, b if over_many(method) else b[:1], init=(multiply,), **how)
    if not over_many(method):
        assert_agree(method, model, x, *what, init=(multiply,), **how)
        assert_agree(method, model, x, *what, x.roll(1, 0), init=(multiply,), **how)


@pytest.mark.parametrize("method", [LayerDeepLift, LayerDeepLiftShap])
@pytest.mark.parametrize("to_input", [False, True])
def test_captum_at_layers(method, to_input):
    model, (x, b) = Modules(nn.ELU), drawn((5, 2, 8, 8), (3, 2, 8, 8))
    b = b if over_many(method) else b[:1]
    acts = (model.act, model.pool, model.other)
    for layer in (model.one, model.two, model.layer, model.head, *(() if to_input else acts)):
        assert_agree(method, model, x, b, 2, attribute_to_layer_input=to_input, layer=layer)
    for layer in acts if to_input else ():  # there captum's fall short of the rise, as it says itself
        how = {"attribute_to_layer_input": True, "return_convergence_delta": True}
        ours, theirs = (m(model, layer).attribute(x, b, 2, **how)[1] for m in (method, _theirs(method)))
        assert ours.abs().max() < 1e-12 and theirs.abs().max() > 1e-3


@pytest.mark.parametrize("method", [NeuronDeepLift, NeuronDeepLiftShap])
@pytest.mark.parametrize("selector", [(1, 0, 2), (slice(0, 2), 1, slice(None)), lambda out: out[:, 2].mean((1, 2))])
def test_captum_for_neurons(method, selector):
    model, (x, b) = Modules(nn.Tanh), drawn((5, 2, 8, 8), (3, 2, 8, 8))
    b = b if over_many(method) else b[:1]
    assert_agree(method, model, x, selector, b, layer=model.one)
    assert_agree(method, model, x, selector, b, attribute_to_neuron_input=True, layer=model.pool)


def test_captum_of_two_inputs():
    model, x = Pair(), drawn((5, 5), (5, 2, 3))
    for b in (None, (0.5, 1), (x[0][:1], 0.2), (x[0].flip(0), x[1].flip(0)), (0, x[1].flip(0))):
        assert_agree(DeepLift, model, x, b, 1, return_convergence_delta=True)
    many = drawn((3, 5), (3, 2, 3), seed=2)
    for b in (many, lambda: many, lambda inputs: tuple(t[:2] + 1 for t in inputs)):
        assert_agree(DeepLiftShap, model, x, b, 1, return_convergence_delta=True)


@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_captum_with_further_arguments(method):
    model, (x, b, shift) = Modules(nn.Softplus), drawn((5, 2, 8, 8), (3, 2, 8, 8), (5, 1))
    b = b if over_many(method) else b[:1]
    assert_agree(method, model, x, b, 2, (0.7,), return_convergence_delta=True)
    assert_agree(method, model, x, b, 2, (shift,), return_convergence_delta=True)


CUSTOM = [
    lambda m: tuple(v.abs() for v in m),
    lambda m, x: tuple(v * t for v, t in zip(m, x, strict=True)),
    lambda m, x, b: tuple(v * (t - r) ** 2 for v, t, r in zip(m, x, b, strict=True)),
]


@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap, LayerDeepLift, LayerDeepLiftShap])
@pytest.mark.parametrize("which", range(3))
def test_captum_with_a_function_of_ones_own(method, which):
    model, (x, b) = Modules(nn.Sigmoid), drawn((5, 2, 8, 8), (3, 2, 8, 8))
    b = b if over_many(method) else b[:1]
    assert_agree(method, model, x, b, 2, custom_attribution_func=CUSTOM[which])


def test_functions_of_ones_own_at_neurons():
    model, (x, b) = Modules(nn.Sigmoid), drawn((5, 2, 8, 8), (3, 2, 8, 8))
    for method in (NeuronDeepLift, NeuronDeepLiftShap):
        c = b if over_many(method) else b[:1]
        assert_agree(method, model, x, 1, c, custom_attribution_func=CUSTOM[2])
    with pytest.raises(TypeError, match="custom_attribution_func must be a function, got int"):
        DeepLift(model).attribute(x, target=0, custom_attribution_func=3)


def test_several_scores_at_once():
    model, x, b = net("GELU and LayerNorm")
    a, missing = DeepLiftShap(model).attribute(x, b, Each([0, 3]), return_convergence_delta=True)
    for i, k in enumerate((0, 3)):
        alone = DeepLiftShap(model).attribute(x, b, k)
        assert_close(a[:, i], alone, rtol=1e-10, atol=1e-12)
    assert missing.abs().max() < 1e-12


# --- references: alone, together, with the examples --------------------------------------------------------


def counted(model):
    """Rows of each call of a model."""
    rows = []

    def call(x, *args):
        rows.append(len(x))
        return model(x, *args)

    return call, rows


def test_shared_references_run_once():
    """One row for a baseline of all, S for a distribution, in a few passes; one back for each pair."""
    model, x, b = net("functional ReLU", count=20)
    for method, baselines, expected in (
        (DeepLift, None, [20, 1]),
        (DeepLift, b, [20, 20]),
        (DeepLift, b[:1].expand_as(b), [20, 1]),
        (DeepLiftShap, b[:10], [20, 8, 2]),
    ):
        call, rows = counted(model)
        method(call).attribute(x, baselines, 1, internal_batch_size=20)
        assert rows == expected


def per_row(model, x):
    """As many numbers as examples on the way: their own number among them."""
    return x[torch.arange(len(x)), 0] * model(x)[:, 1]


def in_rows(x):
    """Every token is a row of its own meanwhile."""
    return torch.tanh(x.reshape(-1, 6) @ torch.ones(6, 6).double()).relu().reshape(x.shape).sum((1, 2))


def across(x):
    """The batch is the last axis meanwhile."""
    return torch.softmax(x.permute(1, 2, 0), 1).square().sum((0, 1))


def one_by_one(x):
    """As many operations as examples."""
    return torch.stack([torch.tanh(row).sum() for row in x])


def squares(x):
    """[B, B] would be the batch with itself; here [B, 4, 4] is each example with itself."""
    return F.softmax(x @ x.mT, -1).max(-1).values.sum(1)


ROOMS = {"in rows": in_rows, "across": across, "squares": squares, "one by one": one_by_one}


@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize("count", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("references", [1, 2, 4, 6, 9])
def test_references_are_told_from_examples(name, count, references):
    """However many there are of each, and whatever axis they stand in: as each pair by itself."""
    f, x, b = ROOMS[name], points(count, 1), points(references, 2)
    found, missing = DeepLiftShap(f).attribute(x, b, return_convergence_delta=True)
    pairs = torch.stack([DeepLift(f).attribute(x, b[i : i + 1].expand_as(x).clone()) for i in range(references)])
    assert_close(found, pairs.mean(0), rtol=1e-9, atol=1e-11)
    assert missing.abs().max() < 1e-10


def test_constants_with_a_row_for_each_example():
    """Of which a pass of the references alone has another number."""
    model, x, b = net("functional ReLU", count=7)
    f = partial(per_row, model)
    a, missing = DeepLiftShap(f).attribute(x, b[:3], return_convergence_delta=True)
    assert missing.abs().max() < 1e-12 and a.shape == x.shape


def test_together_or_one_by_one(monkeypatch):
    model, x, b = net("transformer", count=11)
    whole = DeepLiftShap(model).attribute(x, b, 1)
    assert_close(DeepLiftShap(model).attribute(x, b, 1, internal_batch_size=4), whole, rtol=1e-9, atol=1e-12)
    shift = torch.zeros(11, 1).double()  # a row for each example: references cannot run without them
    call, rows = counted(lambda x, shift: model(x) + shift)
    assert_close(DeepLiftShap(call).attribute(x, b, 1, shift, internal_batch_size=11), whole, rtol=1e-9, atol=1e-12)
    assert rows == [11] * 12
    for together in (1, 3):
        monkeypatch.setattr(inspect.getmodule(DeepLift), "TOGETHER", together)
        assert_close(DeepLiftShap(model).attribute(x, b, 1), whole, rtol=1e-9, atol=1e-12)


def test_fewer_references_at_once_when_memory_runs_out():
    model, x, b = net("functional ReLU", count=4)
    whole, rows = DeepLiftShap(model).attribute(x, b.repeat(3, 1), 1), []

    def small(v):
        rows.append(len(v))
        if not torch.is_grad_enabled() and len(v) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return model(v)

    assert_close(DeepLiftShap(small).attribute(x, b.repeat(3, 1), 1), whole, rtol=1e-12, atol=1e-12)
    assert rows[:4] == [4, 8, 4, 2] or rows[:4] == [4, 8, 3, 1]


def test_deltas_are_example_by_example():
    """[B * S]: the pairs of the first example first; they miss as much as each pair by itself."""
    net, (x, b) = Modules(nn.Tanh), drawn((4, 2, 8, 8), (3, 2, 8, 8))
    rough = {"custom_attribution_func": lambda m: m}
    _, missing = DeepLiftShap(net).attribute(x, b, 1, return_convergence_delta=True, **rough)
    for i in range(4):
        for s in range(3):
            own = DeepLift(net).attribute(x[i : i + 1], b[s : s + 1], 1, return_convergence_delta=True, **rough)[1]
            assert_close(missing[3 * i + s], own[0], rtol=1e-9, atol=1e-11)
    assert missing.abs().min() > 1e-6


# --- what is refused, and what leaves no trace -------------------------------------------------------------


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.sigmoid() * (1 - x.sigmoid())


NO_RULE = {
    "cumprod": lambda x: x.cumprod(1),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, -1).values,
    "fft_fft": lambda x: torch.fft.fft(x).real,
    "linalg_inv": lambda x: torch.linalg.inv(x @ x.mT + torch.eye(4).double()),
    "prod": lambda x: x.prod(-1),
    "atan2": two(torch.atan2),
    "pow": two(lambda x, y: size(x) ** y),
    "einsum": two(lambda x, y: torch.einsum("bij,bij,bij->bi", x, y, x * y)),
    "grid_sample": lambda x: F.grid_sample(x[:, None], x[:, None, :, :2].tanh(), align_corners=True),
    "matrix norm 'nuc'": lambda x: torch.linalg.matrix_norm(x, "nuc"),
    "pack_padded_sequence": lambda x: pad_packed_sequence(
        GRU(pack_padded_sequence(x, [4] * len(x), batch_first=True))[0], batch_first=True
    )[0],
    "Own": Own.apply,
}


@pytest.mark.parametrize("name", NO_RULE)
def test_what_has_no_rule_is_named(name):
    with pytest.raises((RuleError, ModelError), match=f"{name}"):
        DeepLift(partial(score, NO_RULE[name])).attribute(points(3, 1), points(3, 2))


MOVED = {
    "mul": lambda x: x * (x > 0),
    "add": lambda x: x + (x.round() - x).detach(),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.5),
    "gather": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
    "getitem": lambda x: x[torch.arange(len(x)), x[:, :, 0].argmax(1)],
    "max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
    "clamp": lambda x: x.clamp(max=x.detach().mean((1, 2), keepdim=True)),
    "index_add": lambda x: x.index_add(0, torch.arange(len(x)), (x > 0).double()),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_what_moves_without_a_gradient_is_named(method, name):
    """It would be taken for a constant, and what it does would be missing."""
    f = partial(score, MOVED[name])
    with pytest.raises((RuleError, ModelError), match=f"'{name}'"):
        method(f).attribute(points(3, 1), points(2, 2) if over_many(method) else points(3, 2))
    assert DeepLift(f, otherwise="gradient").attribute(points(3, 1), points(3, 1)).shape == (3, *SHAPE)


def test_constants_may_change_on_the_way():
    """In place, the same for inputs and baselines."""

    def counting(x):
        place = torch.zeros(4, 1).double()
        for _ in range(3):
            x = torch.tanh(x + place)
            place += 1
        return score(torch.tanh, x)

    assert (
        DeepLift(counting).attribute(points(3, 1), points(3, 2), return_convergence_delta=True)[1].abs().max() < 1e-12
    )


def test_another_way():
    """Through other operations for the baseline than for the input."""

    def forked(x):
        return score(torch.tanh if x.sum() > 0 else torch.exp, x)

    with pytest.raises(RuleError, match="another way for the baseline"):
        DeepLift(forked).attribute(points(2, 1).abs(), -points(2, 2).abs())


@pytest.mark.parametrize("name", ["cumprod", "sort", "fft_fft", "matrix norm 'nuc'", "pack_padded_sequence", "Own"])
def test_its_gradient_passes_if_asked(name):
    """Alone, it is the gradient times the way; behind something that has a rule, that rule holds."""
    f, x, there = NO_RULE[name], points(3, 1), points(3, 2)
    found = DeepLift(partial(score, f), otherwise="gradient").attribute(x, there)
    assert_close(found, (x - there) * Saliency(partial(score, f)).attribute(x, abs=False))
    behind = DeepLift(lambda x: score(f, torch.tanh(x)), otherwise="gradient").attribute(x, there)
    slope = Saliency(partial(score, f)).attribute(torch.tanh(x), abs=False)
    assert_close(behind, (torch.tanh(x) - torch.tanh(there)) * slope, rtol=1e-9, atol=1e-9)


def test_bad_settings():
    for method in LIFTS:
        layer = () if method in LIFTS[:2] else (nn.Tanh(),)
        with pytest.raises(ValueError, match="otherwise must be 'error' or 'gradient', got 'linear'"):
            method(nn.Tanh(), *layer, otherwise="linear")


def test_a_way_around_a_layer_is_not_its_own():
    """What leads around the layer is part of the rise, but of none of its contributions."""
    block, (x, b, w) = nn.Linear(5, 5).double(), drawn((3, 5), (3, 5), (5,))
    found = LayerDeepLift(lambda x: (x + 2 * block(x)) @ w + (x > 0).sum(1), block).attribute(x, b)
    assert_close(found, 2 * w * (block(x) - block(b)).detach(), rtol=1e-12, atol=1e-12)


@lifts
def test_leaves_no_trace(method):
    """On the model, or after it broke, in its first pass or in that of the references."""
    model, x, b = net("pools")
    b = b[:2] if over_many(method) else b
    state, kept = {k: v.clone() for k, v in model.state_dict().items()}, (x.clone(), b.clone())
    first, calls = asked(method, model, x, b), []

    def breaks(*_):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("no more")

    for at in (1, 2):  # noqa: B007, the hook reads it
        calls.clear()
        handle = model.layer.register_forward_hook(breaks)
        with pytest.raises(ModelError, match="no more"):
            asked(method, model, x, b)
        handle.remove()
    assert torch.equal(x, kept[0]) and torch.equal(b, kept[1]) and not x.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(asked(method, model, x, b), first)


@lifts
def test_two_threads_on_one_model(method):
    model, x, b = net("pools", count=4)
    b = b[:2] if over_many(method) else b
    inputs = [x + i for i in range(4)]
    expected, found = [asked(method, model, v, b) for v in inputs], [None] * 4

    def work(k):
        for i in (k, k + 2):
            found[i] = asked(method, model, inputs[i], b)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, e in zip(found, expected, strict=True):
        assert torch.equal(a, e)

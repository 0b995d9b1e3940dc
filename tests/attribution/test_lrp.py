"""LRP conserves relevance through whatever a model is made of, keeps to the papers' rules, and changes nothing."""

import gc
import threading
from copy import deepcopy

import captum.attr as theirs
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as their_rules
from captum.attr._utils.custom_modules import Addition_Module
from models import Busy, Reused
from torch import nn
from torch.testing import assert_close
from torchvision.models import VisionTransformer, get_model, resnet18, vit_b_16

from robustx.attribution import (
    LRP,
    Alpha1_Beta0_Rule,
    AlphaBetaRule,
    AttnLRP,
    EpsilonRule,
    FlatRule,
    FreeRule,
    GammaRule,
    IdentityRule,
    InputXGradient,
    LayerAttnLRP,
    LayerLRP,
    PropagationRule,
    WSquareRule,
    ZBoxRule,
)
from robustx.engine import Each, Layer
from robustx.engine.rules import RuleError

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")  # captum's


def unbiased(model):
    """The model without any constant that would take relevance, in double precision."""
    for name, p in model.named_parameters():
        if name.endswith(("bias", "pos_embedding", "class_token")) or "bias_" in name:
            nn.init.zeros_(p)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 2)
    return model.double().eval()


def sums(attributions, leading=1):
    return attributions.flatten(leading).sum(-1)


class Function(nn.Module):
    """A function of layers."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def ends(model, x):
    """The model with a linear layer behind it, and its inputs."""
    torch.manual_seed(2)
    width = model.double().eval()(x).flatten(1).shape[1]
    return unbiased(nn.Sequential(model, nn.Flatten(), nn.Linear(width, 4))), x


def vector(d=6):
    return torch.randn(3, d, dtype=torch.float64)


def image(*size):
    return torch.randn(3, 4, *size, dtype=torch.float64)


ACTIVATIONS = {
    name: getattr(F, name)
    for name in (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softsign", "tanhshrink"),
        *("hardtanh", "hardswish", "tanh"),
    )
}

NETS = {
    "functional ReLU": lambda: ends(Function(lambda m, x: F.relu(m.a(x)), a=nn.Linear(6, 8)), vector()),
    "in place": lambda: ends(nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True)), vector()),
    "used again": lambda: (unbiased(Reused()), torch.randn(3, 5, dtype=torch.float64)),
    "residual": lambda: ends(Function(lambda m, x: x + F.gelu(m.a(x)), a=nn.Linear(6, 6)), vector()),
    "residual in place": lambda: ends(Function(lambda m, x: m.a(x).tanh_().add_(x), a=nn.Linear(6, 6)), vector()),
    "concatenation": lambda: ends(Function(lambda m, x: torch.cat([x, m.a(x)], 1), a=nn.Linear(6, 6)), vector()),
    "product": lambda: ends(
        Function(lambda m, x: F.silu(m.a(x)) * m.b(x), a=nn.Linear(6, 8), b=nn.Linear(6, 8)), vector()
    ),
    "quotient": lambda: ends(
        Function(lambda m, x: m.a(x) / (1 + x.square().sum(1, True)), a=nn.Linear(6, 8)), vector()
    ),
    "largest": lambda: ends(
        Function(lambda m, x: torch.maximum(m.a(x), m.b(x)), a=nn.Linear(6, 8), b=nn.Linear(6, 8)), vector()
    ),
    "switch": lambda: ends(Function(lambda m, x: torch.where(x > 0, m.a(x), 0.1 * x), a=nn.Linear(6, 6)), vector()),
    "matmul": lambda: ends(Function(lambda m, x: x @ m.a.weight.T, a=nn.Linear(6, 8)), vector()),
    "einsum": lambda: ends(
        Function(lambda m, x: torch.einsum("ni,oi->no", x, m.a.weight), a=nn.Linear(6, 8)), vector()
    ),
    "conv1d": lambda: ends(nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.ReLU()), image(9)),
    "conv2d": lambda: ends(nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, dilation=2), nn.ReLU()), image(9, 9)),
    "conv3d": lambda: ends(nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.ReLU()), image(4, 4, 4)),
    "conv_transpose1d": lambda: ends(
        nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU()), image(5)
    ),
    "conv_transpose2d": lambda: ends(
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU()), image(4, 4)
    ),
    "conv_transpose3d": lambda: ends(nn.Sequential(nn.ConvTranspose3d(4, 6, 2), nn.ReLU()), image(3, 3, 3)),
    "batch norm": lambda: ends(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), image(6, 6)),
    "batch norm first": lambda: ends(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3)), image(6, 6)),
    "batch norm of a linear layer": lambda: ends(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ELU()), vector()),
    "layer norm": lambda: ends(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8)), vector()),
    "group norm": lambda: ends(nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.SiLU()), image(6, 6)),
    "instance norm": lambda: ends(nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6), nn.ELU()), image(6, 6)),
    "rms norm": lambda: ends(nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.SELU()), vector()),
    "max pools": lambda: ends(
        nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(4, 4, 3), nn.AdaptiveMaxPool2d(2)), image(12, 12)
    ),
    "average pools": lambda: ends(
        nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(2)),
        image(12, 12),
    ),
    "pools of lines": lambda: ends(
        nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(4, 4, 3), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)), image(16)
    ),
    "pools of volumes": lambda: ends(nn.Sequential(nn.MaxPool3d(2), nn.AvgPool3d(2)), image(8, 8, 8)),
    "upsampling": lambda: ends(
        nn.Sequential(nn.Conv2d(4, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear")), image(6, 6)
    ),
    "LSTM": lambda: ends(
        Function(lambda m, x: m.a(x)[0][:, -1], a=nn.LSTM(6, 5, batch_first=True)),
        torch.randn(3, 4, 6, dtype=torch.float64),
    ),
    "GRU": lambda: ends(
        Function(lambda m, x: m.a(x)[0], a=nn.GRU(6, 5, batch_first=True, bidirectional=True)),
        torch.randn(3, 4, 6, dtype=torch.float64),
    ),
    "attention": lambda: ends(
        Function(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
        torch.randn(3, 5, 8, dtype=torch.float64),
    ),
    **{
        f"encoder {kind}": lambda first=first, act=act: ends(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first, activation=act),
            torch.randn(3, 5, 8, dtype=torch.float64),
        )
        for kind, first, act in (("norm last", False, "relu"), ("norm first", True, "gelu"))
    },
    **{
        name: lambda f=f: ends(Function(lambda m, x: f(m.a(x)), a=nn.Linear(6, 8)), vector())
        for name, f in ACTIVATIONS.items()
    },
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- conservation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_relevance_is_conserved(net):
    """All of it arrives, where no bias takes any."""
    model, x = NETS[net]()
    a, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    assert_close(sums(a), model(x)[:, 1].detach(), rtol=1e-9, atol=1e-9)
    assert_close(delta, model(x)[:, 1].detach() - sums(a))
    assert a.abs().sum() > 0


RULES = {
    "epsilon": EpsilonRule(),
    "gamma": GammaRule(0.25),
    "alpha 2 beta 1": AlphaBetaRule(),
    "alpha 1 beta 0": AlphaBetaRule(1, 0),
}
BROAD = ("conv2d", "conv3d", "batch norm", "average pools")  # every sum has terms of both signs, which alpha, beta need
NARROW = ("residual", "concatenation", "matmul", "einsum", "conv1d", "conv_transpose1d", "conv_transpose2d")
NARROW += ("conv_transpose3d", "batch norm of a linear layer", "encoder norm first", "GRU")


@pytest.mark.parametrize(
    "net, rule", [(n, r) for n in BROAD for r in RULES] + [(n, r) for n in NARROW for r in ("epsilon", "gamma")]
)
def test_rules_conserve_relevance(net, rule):
    """Whatever the signs of inputs and weights; sums near zero lose what epsilon takes."""
    model, x = NETS[net]()
    a, delta = LRP(model, {nn.Module: RULES[rule]}).attribute(x, target=1, return_convergence_delta=True)
    assert_close(sums(a), model(x)[:, 1].detach(), rtol=1e-4, atol=1e-4)
    assert_close(delta, model(x)[:, 1].detach() - sums(a))
    if rule != "epsilon":
        assert (a - LRP(model).attribute(x, target=1)).abs().max() > 1e-3


def big(net):
    if net == "resnet18":
        return unbiased(resnet18(num_classes=10)), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    vit = vit_b_16(image_size=32) if net == "vit_b_16" else VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=10)
    nn.init.normal_(vit.heads.head.weight, std=0.05)  # zero by default
    return unbiased(vit), torch.randn(1 if net == "vit_b_16" else 2, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("net", ["resnet18", "vit_b_16", "vit"])
def test_relevance_is_conserved_in_real_networks(net):
    model, x = big(net)
    a = LRP(model).attribute(x, target=3)
    assert_close(sums(a), model(x)[:, 3].detach(), rtol=1e-9, atol=1e-9)
    single = LRP(model.float()).attribute(x.float(), target=3)
    assert_close(sums(single), model(x.float())[:, 3].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("squeezenet1_1", 64), ("mobilenet_v3_small", 32), ("swin_t", 32)])
def test_relevance_is_conserved_in_published_networks(name, size):
    model = unbiased(get_model(name, weights=None))
    for p in model.parameters():
        if p.ndim > 1:  # so that something is left of the input after many layers
            nn.init.kaiming_normal_(p, nonlinearity="linear")
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    a = LRP(model).attribute(x, target=3)
    assert_close(sums(a), model(x)[:, 3].detach(), rtol=1e-8, atol=0)


def test_composites_on_a_residual_network():
    model, x = big("resnet18")
    first = {"box": ZBoxRule(-5, 5), "flat": FlatRule(), "w square": WSquareRule()}
    found = {}
    for name, rule in first.items():
        rules = {"conv1": rule, nn.Conv2d: AlphaBetaRule(), nn.Linear: EpsilonRule(1e-9)}
        found[name] = LRP(model, rules).attribute(x, target=3)
        assert_close(sums(found[name]), model(x)[:, 3].detach(), rtol=1e-4, atol=1e-4)
    assert_close(found["flat"][:, 0], found["flat"][:, 1])  # each channel alike
    assert (found["box"] - found["w square"]).abs().max() > 1e-3


def test_biases_take_relevance():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), vector(3)
    a, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    here = (model[0](x) > 0) * model[2].weight[1]
    taken = model[2].bias[1] + (here * model[0].bias).sum(1)
    assert_close(delta, taken.detach())
    assert_close(a, (x * (here @ model[0].weight)).detach())


def test_without_rules_relu_networks_get_input_times_gradient():
    """Ancona et al. (ICLR 2018), proposition 1."""
    model, x = NETS["batch norm"]()
    assert_close(LRP(model).attribute(x, target=1), InputXGradient(model).attribute(x, target=1))


# --- the papers' rules, slowly ----------------------------------------------------------------------------


def epsilon(a, w, b, r, e=0.3):
    z = w @ a + b
    return sum((r[k] / (z[k] + e * (1 if z[k] >= 0 else -1))) * w[k] * a for k in range(len(r)))


def gamma(a, w, b, r, g=0.25):
    more = w + g * w.clamp(min=0)
    return sum(more[k] * a / (more[k] @ a + b[k]) * r[k] for k in range(len(r)))


def alpha_beta(a, w, b, r, alpha=2, beta=1):
    z, total = w * a, 0
    for k in range(len(r)):
        up, down = z[k].clamp(min=0), z[k].clamp(max=0)
        total = total + alpha * up / (up.sum() + b[k].clamp(min=0)).clamp(min=1e-300) * r[k]  # may be 0 / 0
        total = total - beta * down / (down.sum() + b[k].clamp(max=0)).clamp(max=-1e-300) * r[k]
    return total


def positive(a, w, b, r):
    more = w.clamp(min=0)
    return sum(more[k] * a / (more[k] @ a + b[k]) * r[k] for k in range(len(r)))


def w_square(a, w, b, r):
    return sum(w[k] ** 2 / (w[k] ** 2).sum() * r[k] for k in range(len(r)))


def flat(a, w, b, r):
    return sum(torch.ones_like(a) / len(a) * r[k] for k in range(len(r)))


def box(a, w, b, r, low=-4.0, high=5.0):
    z = w * a - low * w.clamp(min=0) - high * w.clamp(max=0)
    return sum(z[k] / z[k].sum() * r[k] for k in range(len(r)))


SLOW = {
    epsilon: EpsilonRule(0.3),
    gamma: GammaRule(0.25),
    alpha_beta: AlphaBetaRule(2, 1),
    positive: Alpha1_Beta0_Rule(),
    w_square: WSquareRule(),
    flat: FlatRule(),
    box: ZBoxRule(-4.0, 5.0),
}


@pytest.mark.parametrize("slow", SLOW, ids=lambda f: f.__name__)
def test_rules_are_the_papers(slow):
    """For one layer and for the first of two, one example and one unit at a time."""
    first, second = nn.Linear(5, 6).double(), nn.Linear(6, 4).double()
    model, x = nn.Sequential(first, nn.ReLU(), second), vector(5)
    x[:, 2] = 0
    single = LRP(first, {"": SLOW[slow]}).attribute(x, target=1)
    both = LRP(model, {"0": SLOW[slow], "2": EpsilonRule(0.3)}).attribute(x, target=1)
    with torch.no_grad():
        for i in range(len(x)):
            out = first(x[i])
            assert_close(single[i], slow(x[i], first.weight[[1]], first.bias[[1]], out[[1]]), rtol=1e-5, atol=1e-7)
            r = epsilon(out.relu(), second.weight[[1]], second.bias[[1]], model(x[i])[[1]])
            assert_close(both[i], slow(x[i], first.weight, first.bias, r), rtol=1e-5, atol=1e-7)


def test_attention_is_the_papers():
    """AttnLRP, propositions 3.1 and 3.3, for one head, one example and one element at a time."""
    q, k, v = (nn.Linear(4, 4, bias=False).double() for _ in range(3))
    model = Function(lambda m, x: (m.q(x) @ m.k(x).mT / 2).softmax(-1) @ m.v(x), q=q, k=k, v=v)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    a = AttnLRP(model).attribute(x, target=(0, 2))
    plain = LRP(model).attribute(x, target=(0, 2))
    with torch.no_grad():
        for i, e in enumerate(x):
            qs, ks, vs = e @ q.weight.T, e @ k.weight.T, e @ v.weight.T
            scores = qs @ ks.T / 2
            w = scores.softmax(-1)
            out = (w @ vs)[0, 2]
            r_w = torch.stack([w[0, j] * vs[j, 2] / (2 * out) * out for j in range(5)])
            r_v = r_w.clone()
            r_s = scores[0] * (r_w - w[0] * r_w.sum())
            r_q, r_k = torch.zeros_like(e), torch.zeros_like(e)
            for j in range(5):
                for d in range(4):
                    half = qs[0, d] * ks[j, d] / 2 / (2 * scores[0, j]) * r_s[j]
                    r_q[0, d] += half
                    r_k[j, d] += half
            total = torch.zeros_like(e)
            for r, values, layer in ((r_q, qs, q), (r_k, ks, k)):
                for t in range(5):
                    for d in range(4):
                        total[t] += e[t] * layer.weight[d] / values[t, d] * r[t, d]
            by_values = torch.stack([e[t] * v.weight[2] / vs[t, 2] * r_v[t] for t in range(5)])
            assert_close(a[i], total + by_values, rtol=1e-6, atol=1e-8)
            assert_close(plain[i], 2 * by_values, rtol=1e-6, atol=1e-8)  # all of it, where the weights stand still


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_of_elements_hand_on_what_they_get(name):
    f, x = ACTIVATIONS[name], torch.linspace(-3, 3, 13, dtype=torch.float64)[None]
    assert_close(LRP(lambda x: f(x).sum(1)).attribute(x), f(x))


# --- agreement with captum --------------------------------------------------------------------------------


class Small(nn.Module):
    """[B, 2, 8, 8]; what Captum's LRP knows: each layer a module of its own, used once; a residual sum as a module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()
        )
        self.around, self.add = nn.Conv2d(4, 4, 1), Addition_Module()
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5))
        self.hidden, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x):
        x = self.body[2](self.body[1](self.body[0](x)))
        x = self.add(self.body[4](self.body[3](x)), self.around(x))
        return self.last(self.relu(self.hidden(self.head(x).flatten(1))))


SHARED = {
    "none": lambda room: None,
    "epsilon": lambda room: room.EpsilonRule(0.1),
    "gamma": lambda room: room.GammaRule(0.3),
    "gamma without bias": lambda room: room.GammaRule(0.3, set_bias_to_zero=True),
    "alpha 1 beta 0": lambda room: room.Alpha1_Beta0_Rule(),
    "alpha 1 beta 0 without bias": lambda room: room.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}


class Ours:
    EpsilonRule, GammaRule, Alpha1_Beta0_Rule, IdentityRule = EpsilonRule, GammaRule, Alpha1_Beta0_Rule, IdentityRule
    PropagationRule = PropagationRule


def alike(rule):
    """The same model twice, with our rules and with captum's."""
    torch.manual_seed(7)
    ours, captum = Small(), Small()
    captum.load_state_dict(ours.state_dict())
    for model, room in ((ours, Ours), (captum, their_rules)):
        for layer in (model.body[0], model.body[3], model.around, model.hidden, model.last):
            if (given := SHARED[rule](room)) is not None:
                layer.rule = given
    return ours, captum, torch.rand(3, 2, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("rule", SHARED)
@pytest.mark.parametrize("target", [1, [0, 2, 1]])
def test_agrees_with_captum(rule, target):
    ours, captum, x = alike(rule)
    a, delta = LRP(ours).attribute(x, target=target, return_convergence_delta=True)
    b, other = theirs.LRP(captum).attribute(x, target=target, return_convergence_delta=True)
    assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)
    assert_close(delta, other.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["none", "epsilon", "gamma"])
@pytest.mark.parametrize("to_input", [False, True])
def test_layers_agree_with_captum(rule, to_input):
    ours, captum, x = alike(rule)
    options = {"attribute_to_layer_input": to_input, "return_convergence_delta": True}
    for name in ("body.0", "hidden") if to_input else ("body.0", "body.3", "around", "hidden"):
        # Captum's relevance of what goes into body.3 counts what goes around it as well
        a, delta = LayerLRP(ours, ours.get_submodule(name)).attribute(x, 1, **options)
        _, other, _ = alike(rule)
        b, expected = theirs.LayerLRP(other, other.get_submodule(name)).attribute(x, 1, **options)
        b = b[0] if isinstance(b, tuple | list) else b
        assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)
        assert_close(delta, expected.detach(), rtol=1e-4, atol=1e-6)
    several = [ours.body[3], ours.hidden]
    found, deltas = LayerLRP(ours, several).attribute(x, 1, **options)
    for layer, a, delta in zip(several, found, deltas, strict=True):
        one, single = LayerLRP(ours, layer).attribute(x, 1, **options)
        assert_close((a, delta), (one, single))


def test_rules_of_ones_own_are_captums():
    """A subclass that changes a module's weights in Captum's hook; here it changes a copy."""

    def halves(base):
        class Halves(base):
            def _manipulate_weights(self, module, inputs, outputs):
                module.weight.data = module.weight.data / 2 + module.weight.data.clamp(max=0)
                module.bias.data = torch.zeros_like(module.bias.data)

        return Halves()

    ours, captum, x = alike("none")
    before = deepcopy(ours.state_dict())
    ours.hidden.rule, captum.hidden.rule = halves(PropagationRule), halves(their_rules.PropagationRule)
    assert_close(LRP(ours).attribute(x, 1), theirs.LRP(captum).attribute(x, 1).detach(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


def test_identity_is_captums():
    models = []
    for room in (Ours, their_rules):
        torch.manual_seed(5)
        layers = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        models.append(nn.Sequential(*layers).double())
        models[-1][1].rule = room.IdentityRule()
    x = torch.rand(3, 4, dtype=torch.float64)
    assert_close(LRP(models[0]).attribute(x, 1), theirs.LRP(models[1]).attribute(x, 1).detach(), rtol=1e-4, atol=1e-6)


# --- batch norm -------------------------------------------------------------------------------------------


def folded(conv, norm):
    """One layer for two, by hand."""
    one = deepcopy(conv)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    one.weight.data = conv.weight * scale.reshape([-1 if d == axis else 1 for d in range(conv.weight.ndim)])
    one.bias = nn.Parameter((0 if conv.bias is None else conv.bias) * scale + norm.bias - norm.running_mean * scale)
    return one


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ConvTranspose2d(4, 6, 3), nn.Linear(5, 6)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize(
    "rule", [GammaRule(0.5), AlphaBetaRule(), Alpha1_Beta0_Rule(), FlatRule(), ZBoxRule(-9, 9)], ids=repr
)
def test_batch_norm_is_folded(layer, rule):
    """A layer and the batch norm behind it share by their common weights."""
    layer = layer.double()
    flat = isinstance(layer, nn.Linear)
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(6).double()
    for t in (norm.weight.data, norm.bias.data, norm.running_mean):
        nn.init.normal_(t)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    head = nn.Linear(6, 3).double()
    pool = nn.Identity() if flat else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    two = nn.Sequential(layer, norm, nn.ReLU(), pool, head).eval()
    one = nn.Sequential(folded(layer, norm), nn.ReLU(), pool, head).eval()
    x = vector(5) if flat else image(5, 5)
    assert_close(two(x), one(x))
    assert_close(LRP(two, {"0": rule}).attribute(x, 1), LRP(one, {"0": rule}).attribute(x, 1))


def test_batch_norm_is_not_folded_where_others_look_between():
    conv, norm, head = nn.Conv2d(4, 4, 1).double(), nn.BatchNorm2d(4).double(), nn.Linear(4, 3).double()
    nn.init.uniform_(norm.running_var, 0.5, 2)

    def run(m, x):
        here = m.conv(x)
        return m.head((m.norm(here) + 0.5 * here).mean((2, 3)))

    model = Function(run, conv=conv, norm=norm, head=head).eval()
    x, scale = image(3, 3), (norm.running_var + norm.eps).rsqrt()
    a = LRP(model, {"conv": GammaRule(0.5)}).attribute(x, 1)
    more = conv.weight + 0.5 * conv.weight.clamp(min=0)
    z, y = F.conv2d(x, more, conv.bias), conv(x)
    g = (head.weight[1] * (scale + 0.5) / 9)[:, None, None] * y / z
    assert_close(a, (x * F.conv_transpose2d(g, more)).detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("elsewhere", [{}, {"0": FlatRule()}], ids=["alone", "beside a free rule"])
def test_epsilon_is_folded_too(elsewhere):
    """What epsilon takes depends on the sums: on those behind the batch norm, whatever rules other layers have."""
    layers = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    two = nn.Sequential(*layers).double().eval()
    nn.init.uniform_(two[3].running_var, 0.5, 2)
    nn.init.normal_(two[3].weight)
    one = nn.Sequential(*two[:2], folded(two[2], two[3]), *two[4:])
    x, rules = vector(5), {"2": EpsilonRule(0.5), **elsewhere}
    assert_close(LRP(two, rules).attribute(x, 1), LRP(one, rules).attribute(x, 1))
    assert_close(LayerLRP(two, two[1], rules).attribute(x, 1), LayerLRP(one, one[1], rules).attribute(x, 1))


@pytest.mark.parametrize("layer", [nn.Linear(4, 5, bias=False), nn.Linear(4, 6, bias=False)], ids=str)
@pytest.mark.parametrize("rule", [EpsilonRule(), GammaRule(0.25)], ids=repr)
def test_batch_norm_over_tokens_is_no_scale_of_units(layer, rule):
    model = unbiased(nn.Sequential(layer, nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(5 * layer.out_features, 2)))
    nn.init.zeros_(model[1].running_mean)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    a = LRP(model, {"0": rule}).attribute(x, 1)
    assert_close(sums(a), model(x)[:, 1].detach(), rtol=1e-5, atol=1e-6)


def test_rules_of_ones_own_see_batch_norm_folded():
    class Positive(PropagationRule):
        def _manipulate_weights(self, module, inputs, outputs):
            module.weight.data = module.weight.data.clamp(min=0)

    layers = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    model, x = nn.Sequential(*layers).double().eval(), image(5, 5)
    nn.init.normal_(model[1].weight)
    a = LRP(model, {"0": Positive()}).attribute(x, 1)
    assert_close(a, LRP(model, {"0": Alpha1_Beta0_Rule()}).attribute(x, 1))


# --- rules, where they hold -------------------------------------------------------------------------------


def test_a_rule_is_the_nearest_one():
    """The module's own, else by name, else by type, in the order in which they stand; of modules, the innermost."""
    model, x = NETS["batch norm"]()
    gamma = LRP(model, {"0.0": GammaRule(0.5)}).attribute(x, 1)
    for rules in (
        {"0.*": GammaRule(0.5)},
        {nn.Conv2d: GammaRule(0.5)},
        {"0": GammaRule(0.5)},  # the block that holds the convolution
        {"0.0": GammaRule(0.5), nn.Conv2d: FlatRule()},
        {"0": FlatRule(), "0.0": GammaRule(0.5)},
    ):
        assert_close(LRP(model, rules).attribute(x, 1), gamma)
    model[0][0].rule = rule = GammaRule(0.5)
    assert_close(LRP(model, {"0.0": FlatRule()}).attribute(x, 1), gamma)
    assert model[0][0].rule is rule  # Captum's takes it away


def test_functions_within_a_module_have_its_rule():
    inner = Function(lambda m, x: F.linear(x, m.w), w=nn.Parameter(torch.randn(4, 6, dtype=torch.float64)))
    model, plain = nn.Sequential(inner, nn.ReLU(), nn.Linear(4, 2).double()), nn.Linear(6, 4, bias=False).double()
    plain.weight.data = inner.w.data
    same, x = nn.Sequential(plain, *model[1:]), vector()
    rules = {"0": AlphaBetaRule()}
    assert_close(LRP(model, rules).attribute(x, 1), LRP(same, rules).attribute(x, 1))


def test_the_same_module_in_two_places():
    model, x = unbiased(Reused()), torch.randn(3, 5, dtype=torch.float64)
    twice = deepcopy(model)
    twice.more = deepcopy(twice.again)
    twice.forward = lambda x: twice.head(twice.act(twice.more(twice.act(twice.again(twice.first(x))))))
    rules = {"again": GammaRule(0.4), "first": FlatRule()}
    a = LRP(model, rules).attribute(x, 1)
    assert_close(a, LRP(twice, rules | {"more": GammaRule(0.4)}).attribute(x, 1))


def test_zeros_get_relevance_by_free_rules_alone():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double(), vector()
    x[:, :3] = 0
    assert (LRP(model).attribute(x, 1)[:, :3] == 0).all()
    for rule in (FlatRule(), WSquareRule(), ZBoxRule(-5, 5)):
        assert (LRP(model, {"0": rule}).attribute(x, 1)[:, :3] != 0).all()


@pytest.mark.parametrize("rule", [FlatRule(), WSquareRule()], ids=repr)
def test_free_relevance_goes_on_to_the_inputs(rule):
    """Through what stands before the layer: moves and functions of elements hand it on, sums share it."""
    layer, tail = nn.Linear(6, 5).double(), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)).double()
    x = vector()
    alone = LRP(nn.Sequential(layer, tail), {"0": rule})

    def share(x, r):  # of x + x.flip(1), by what each of the two is
        part = r / (x + x.flip(1))
        return x * (part + part.flip(1))

    before = {
        "normalised": (lambda x: (x - 0.3) / 0.2, lambda x, r: r),
        "squashed": (lambda x: torch.tanh(2 * x), lambda x, r: r),
        "flipped": (lambda x: x.flip(1), lambda x, r: r.flip(1)),
        "repeated": (lambda x: x[:, :3].repeat(1, 2), lambda x, r: F.pad(r[:, :3] + r[:, 3:], (0, 3))),
        "added": (lambda x: x + x.flip(1), share),
    }
    for first, back in before.values():
        model = Function(lambda m, x, first=first: m.tail(m.layer(first(x))), layer=layer, tail=tail)
        a = LRP(model, {"layer": rule}).attribute(x, 1)
        assert_close(a, back(x, alone.attribute(first(x), 1)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", [FlatRule(), WSquareRule(), GammaRule(0.4)], ids=repr)
def test_sums_in_place_are_sums(rule):
    """What a layer took is what stood there before the model wrote over it."""
    a, b, head = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.Linear(6, 3).double()

    def written(m, x):
        x = m.b(x)
        x += F.relu(m.a(x))
        return m.head(x)

    apart = Function(lambda m, x: m.head(m.b(x) + F.relu(m.a(m.b(x)))), a=a, b=b, head=head)
    x = vector()
    over = Function(written, a=a, b=b, head=head)
    assert_close(LRP(over, {"a": rule}).attribute(x, 1), LRP(apart, {"a": rule}).attribute(x, 1))


class AsIf(FreeRule):
    """Epsilon = 0, said in relevances."""

    def relevance(self, at, r):
        z, back = at.shares(at.x, at.weight, at.bias)
        return at.x * back(r / z)


@pytest.mark.parametrize("method", [LRP, AttnLRP])
def test_free_rules_hand_on_what_others_would(method):
    """A free rule that shares as epsilon = 0 does gives the same relevance, through all that stands before it."""
    head = nn.Linear(6, 3).double()
    firsts = {
        "softmax": lambda m, x: m.head(x.softmax(-1)),
        "mean": lambda m, x: m.head(x - x.mean(1, keepdim=True)),
        "cumulated": lambda m, x: m.head(x.cumsum(1)),
        "attention": lambda m, x: m.head(((x[:, :, None] * x[:, None]).softmax(-1) @ x[:, :, None])[..., 0]),
        "norm": lambda m, x: m.head(F.layer_norm(x, (6,))),
        "pool": lambda m, x: m.head(F.max_pool1d(x[:, None], 2, 1, padding=1)[:, 0, :6]),
    }
    for name, run in firsts.items():
        if name == "softmax" and method is LRP:
            continue  # it is held still there
        model, x = Function(run, head=head), vector()
        plain = method(model).attribute(x, 1)
        assert_close(method(model, {"head": AsIf()}).attribute(x, 1), plain, rtol=1e-5, atol=1e-7)


def test_weights_made_before_the_pass_are_constants():
    p = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
    made, head = p * 2, nn.Linear(6, 3).double()
    model = Function(lambda m, x: m.head(F.relu(F.linear(x, made))), head=head)
    same, x = nn.Sequential(nn.Linear(6, 6, bias=False).double(), nn.ReLU(), head), vector()
    same[0].weight.data = made.data
    assert_close(LRP(model).attribute(x, 1), LRP(same).attribute(x, 1))
    for rule in (EpsilonRule(0.1), GammaRule(0.3), FlatRule()):
        layer = Function(lambda m, x: F.linear(x, made))
        whole = nn.Sequential(layer, nn.ReLU(), head)
        assert_close(LRP(whole, {"0": rule}).attribute(x, 1), LRP(same, {"0": rule}).attribute(x, 1))
    assert p.grad is None and made.requires_grad


def test_what_is_weight_and_what_is_input_must_be_clear():
    x = torch.randn(3, 4, dtype=torch.float64)
    one, a, b = (torch.randn(4, 4, dtype=torch.float64) for _ in range(3))
    turned = Function(lambda m, x: F.linear(one, x).T)
    three = Function(lambda m, x: torch.einsum("bi,ij,jk->bk", x, a, b))
    for model, name in ((turned, "linear"), (three, "einsum")):
        whole = nn.Sequential(model)
        with pytest.raises(RuleError, match=f"layer '0'.*{name}.*without a rule"):
            LRP(whole, {"0": GammaRule()}).attribute(x, 1)
        assert_close(LRP(whole).attribute(x, 1), InputXGradient(whole).attribute(x, 1))


def test_several_targets_at_once():
    model, x = NETS["batch norm"]()
    for rules in ({}, {nn.Conv2d: GammaRule(0.5)}, {nn.Conv2d: FlatRule()}):
        many, delta = LRP(model, rules).attribute(x, Each([0, 2]), return_convergence_delta=True)
        for i, k in enumerate((0, 2)):
            one, missed = LRP(model, rules).attribute(x, k, return_convergence_delta=True)
            assert_close((many[:, i], delta[:, i]), (one, missed))


def test_embeddings():
    ids = torch.tensor([[1, 2, 3], [4, 4, 0]])
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = unbiased(nn.Sequential(nn.Embedding(9, 4), encoder, nn.Flatten(), nn.Linear(12, 2)))
    a = LayerLRP(model, model[0]).attribute(ids, 1)
    assert a.shape == (2, 3, 4)
    assert_close(sums(a), model(ids)[:, 1].detach(), rtol=1e-9, atol=1e-9)
    assert (LayerAttnLRP(model, model[0]).attribute(ids, 1) - a).abs().max() > 1e-6


def test_layers_conserve_relevance_at_any_depth():
    model, x = big("resnet18")
    found = LayerLRP(model, [model.layer1, Layer(model.layer3[0], "input"), model.avgpool]).attribute(x, 3)
    for a in found:
        assert_close(sums(a), model(x)[:, 3].detach(), rtol=1e-9, atol=1e-9)


# --- what it leaves, and what it refuses ------------------------------------------------------------------


def test_leaves_no_trace():
    model, x = big("resnet18")
    before, versions = deepcopy(model.state_dict()), [p._version for p in model.parameters()]
    LRP(model, {"conv1": FlatRule(), nn.Conv2d: GammaRule()}).attribute(x, 3, verbose=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "rule") for m in model.modules())
    broken = Busy(fails=1)
    with pytest.raises(RuntimeError, match="breaks down"):
        LRP(broken, {nn.Linear: GammaRule()}).attribute(vector(5), 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.modules())


RULED = {
    "none": {},
    "epsilon": {nn.Module: EpsilonRule(0.1)},
    "gamma": {nn.Conv2d: GammaRule()},
    "flat": {"0": FlatRule()},
}


@pytest.mark.parametrize("rules", RULED)
def test_keeps_nothing_alive(rules):
    """No graph outlives a call, whether it ends well or not, even without the garbage collector."""
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    lrp, x = LRP(net.double().eval(), RULED[rules]), image(5, 5)

    def broken(*_):
        raise RuntimeError("the model breaks down")

    def calls():
        lrp.attribute(x, 1)
        with pytest.raises(ValueError, match="target"):
            lrp.attribute(x, 7)
        handle = net[5].register_forward_hook(broken)
        with pytest.raises(RuntimeError, match="breaks down"):
            lrp.attribute(x, 1)
        handle.remove()

    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gc.collect()
    gc.freeze()  # what others left behind is neither counted nor looked through
    try:
        calls()
        before = alive()
        for _ in range(3):
            calls()
        assert alive() == before
        gc.disable()
        lrp.attribute(x, 1)
        assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) == before
    finally:
        gc.enable()
        gc.unfreeze()


def test_two_threads_with_rules_of_their_own():
    model, x = NETS["batch norm"]()
    rules = [{nn.Conv2d: GammaRule(0.5)}, {nn.Conv2d: FlatRule()}, {}]
    alone = [LRP(model, r).attribute(x, 1) for r in rules]
    together = [[], [], []]

    def work(i):
        for _ in range(5):
            together[i].append(LRP(model, rules[i]).attribute(x, 1))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for found, expected in zip(together, alone, strict=True):
        assert len(found) == 5
        for a in found:
            assert_close(a, expected)


def test_one_pass_each_way():
    model, x = NETS["batch norm"]()
    rows = []
    model.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    LRP(model, {nn.Conv2d: GammaRule()}).attribute(x, 1)
    assert sum(rows) == len(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_precisions(dtype):
    model, x = NETS["batch norm"]()
    exact = LRP(model, {nn.Conv2d: GammaRule(0.5)}).attribute(x, 1)
    a = LRP(deepcopy(model).to(dtype), {nn.Conv2d: GammaRule(0.5)}).attribute(x.to(dtype), 1)
    assert a.dtype == dtype
    assert_close(a.double(), exact, rtol=0, atol=200 * torch.finfo(dtype).eps * exact.abs().max().item())


@pytest.mark.parametrize("name", ["cumprod", "sort", "logsumexp"])
def test_what_has_no_rule_is_named(name):
    def model(x):
        out = getattr(x, name)(1)
        return (out[0] if isinstance(out, tuple) else out).reshape(len(x), -1).sum(1)

    with pytest.raises(RuleError, match=f"{name}.*otherwise='gradient'"):
        LRP(model).attribute(vector())
    with pytest.raises(TypeError):
        LRP(model).attribute(vector())
    a = LRP(model, otherwise="gradient").attribute(vector())
    assert a.shape == (3, 6)


def test_softmax_at_the_end_is_refused():
    model = nn.Sequential(nn.Linear(6, 3).double(), nn.Softmax(1))
    with pytest.raises(RuleError, match="softmax.*logits"):
        LRP(model).attribute(vector(), 1)
    logs = nn.Sequential(model[0], nn.LogSoftmax(1))
    x = vector()
    assert_close(LRP(logs).attribute(x, 1), LRP(model[0]).attribute(x, 1))  # what it takes off is a constant


def test_mistakes_show_before_any_work():
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU()).double()
    with pytest.raises(ValueError, match="'conv1'.*layers are 0, 1"):
        LRP(model, {"conv1": GammaRule()})
    with pytest.raises(ValueError, match="'conv1'.*the model itself"):
        LRP(model[0], {"conv1": GammaRule()})
    with pytest.raises(TypeError, match=r"PropagationRules.*'gamma' for '0'"):
        LRP(model, {"0": "gamma"})
    with pytest.raises(ValueError, match="otherwise.*'ignore'"):
        LRP(model, otherwise="ignore")
    model[0].rule = "gamma"
    with pytest.raises(TypeError, match="layer '0'.*a rule of robustx.attribution"):
        LRP(model)
    for make in (lambda: EpsilonRule(-1), lambda: GammaRule(float("nan")), lambda: AlphaBetaRule(2, 2)):
        with pytest.raises(ValueError, match="must be"):
            make()
    del model[0].rule
    with pytest.raises(ValueError, match=r"between 0.0 and 1.0.*reach from"):
        LRP(model, {"0": ZBoxRule()}).attribute(vector() - 5, 1)
    with pytest.raises(ValueError, match="IdentityRule.*shape.*EpsilonRule"):
        LRP(model, {"0": IdentityRule()}).attribute(vector(), 1)


def test_says_which_rules_it_uses(capsys):
    model, x = NETS["batch norm"]()
    LRP(model, {nn.Conv2d: GammaRule(0.5)}).attribute(x, 1, verbose=True)
    assert capsys.readouterr().out == "Applied GammaRule(gamma=0.5, set_bias_to_zero=False) on layer 0.0: conv2d\n"

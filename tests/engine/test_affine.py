"""Affine maps and ReLUs: what is read is what the model computes, or it is refused with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from robustx.engine import Everything, Output, Probe
from robustx.engine.affine import Unreadable, read

D, K = 6, 3


class Awkward(nn.Module):
    """[B, 1, 4, 4]: in place, reused, residual, functional, normalised, pooled, with a ReLU of what is constant."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.again, self.act = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.ReLU(inplace=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, K)
        self.scale = nn.Parameter(torch.rand(2, 1, 1))
        nn.init.normal_(self.norm.running_mean), nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        x -= 0.5
        a = self.act(self.norm(self.first(x)))
        b = a + torch.relu(self.again(a)) * self.scale.relu()
        b *= 1.5
        c = self.again(b).clamp(min=0) - b
        buffer = torch.zeros(len(x), 8)
        buffer[:, :8] = F.avg_pool2d(c.relu_(), 2).flatten(1)
        return self.head(self.drop(buffer.view(-1, 8))) / 3 + 1


def probe(model, x):
    return Probe(model, (x,), Everything())


def points(*shape, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def layer(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(D, K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_any_network_of_affine_maps_and_relus_is_read(seed, dtype):
    torch.manual_seed(seed)
    model = Awkward().eval().to(dtype)
    if dtype == torch.float64:
        torch.set_default_dtype(torch.float64)  # for the model's own buffer
    try:
        net = read(probe(model, points(2, 1, 4, 4).to(dtype)))
        x = points(50, 1, 4, 4).to(dtype)
        assert net.units == 32 * 4 and net.size == 16 and net.shape == (K,)
        with torch.no_grad():
            assert_close(net(x), model(x.clone()).double(), atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_coefficients_keep_their_digits_whatever_the_precision():
    model = layer()
    with torch.no_grad():
        model.bias.fill_(1e6)  # in float32 the coefficients would be lost beside it
        net = read(probe(model, torch.zeros(1, D)))
        assert_close(net.out.weight, model.weight.double(), atol=1e-9, rtol=0)
        assert_close(net.out.bias, model.bias.double(), atol=0, rtol=0)


def test_several_inputs_keywords_and_scores_of_the_output():
    first, second = layer(), layer(1)

    def model(*, b, a, shift):
        return first(a).relu() - second(b.flatten(1)) + shift

    a, b = points(4, D), points(4, 2, 3)
    inputs = Probe(model, (a, b), Output(lambda out: out[:, 0] - out[:, 1]), names=("a", "b"), kwargs={"shift": 0.5})
    net = read(inputs)
    out = model(a=a, b=b, shift=0.5)
    assert net.shape == () and net.units == K
    assert_close(net(torch.cat([a, b.flatten(1)], 1)).float(), (out[:, 0] - out[:, 1]).detach())


MADE_OF_RELUS = {
    "relu6": F.relu6,
    "hardtanh": lambda z: F.hardtanh(z, -0.3, 0.7),
    "clamp": lambda z: z.clamp(-0.2, 0.4),
    "clamp from below": lambda z: torch.clamp_min(z, 0.1),
    "clamp from above": lambda z: torch.clamp_max(z, 0.1),
    "leaky": lambda z: F.leaky_relu(z, 0.2, inplace=True),
    "abs": torch.abs,
    "threshold": lambda z: F.threshold(z, 0.0, 0.0),
    "maximum": lambda z: torch.maximum(z[:, 0], z[:, 1]),
    "minimum": lambda z: torch.minimum(z[:, 0], -z[:, 1]),
    "relu of another shape": lambda z: F.relu(z.reshape(-1, 1)).reshape(z.shape),
    "none": lambda z: z,
}


@pytest.mark.parametrize("name", MADE_OF_RELUS)
def test_what_is_made_of_relus_is_read_as_such(name):
    model = nn.Sequential(layer(), _Then(MADE_OF_RELUS[name]))
    x = points(40, D)
    assert_close(read(probe(model, x[:1]))(x).float(), model(x).detach(), atol=1e-5, rtol=1e-5)


class _Then(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.sign()

    @staticmethod
    def backward(ctx, g):
        return g


REFUSED = {
    "softmax": (lambda z: z.softmax(1), "'softmax'.*logits"),
    "sigmoid": (lambda z: torch.sigmoid(z), "'sigmoid'"),
    "max pool": (lambda z: F.max_pool1d(z[:, None], 3), "'max_pool1d'"),
    "product": (lambda z: z * z.flip(1), "multiplies"),
    "square": (lambda z: z**2, "'pow'"),
    "quotient": (lambda z: torch.ones(1) / z, "divides"),
    "reciprocal": (lambda z: 1 / z, "'reciprocal'"),
    "layer norm": (lambda z: F.layer_norm(z, (K,)), "multiplies|divides"),
    "mask by hand": (lambda z: z * (z > 0), "'gt'"),
    "choice by hand": (lambda z: z if z.sum() > 0 else -z, "'gt'"),
    "a number": (lambda z: z * float(z.sum().item() > 0), "'item'"),
    "detached": (lambda z: z + z.detach(), "'detach'"),
    "numpy": (lambda z: torch.from_numpy(z.numpy()), "leaves PyTorch"),
    "own function": (Sign.apply, "'sign'"),
    "sorted": (lambda z: z.sort(1).values, "'sort'"),
    "a jump": (lambda z: F.threshold(z, 0.5, 0.0), "jumps"),
    "batch not first": (lambda z: z.T.relu().T, "batch must come first"),
    "constant": (lambda z: torch.ones(len(z), K), "does not depend"),
    "no gradient": (torch.no_grad()(lambda z: z * 2), "values that depend"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_with_the_reason(name):
    function, told = REFUSED[name]
    with pytest.raises(Unreadable, match=told):
        read(probe(nn.Sequential(layer(), _Then(function)), points(2, D)))


def test_what_hides_from_the_operations_shows_in_the_comparison():
    class Hidden(nn.Module):
        """Multiplies by what it saw last: its operations look affine."""

        def forward(self, x):
            with torch._C.DisableTorchFunction():
                return x.relu()

    with pytest.raises(Unreadable, match="not what its operations say"):
        read(probe(nn.Sequential(layer(), Hidden(), nn.Linear(K, 2)), points(5, D)))


def test_size_is_limited_and_further_arguments_must_be_the_same_for_all():
    model = nn.Sequential(layer(), nn.ReLU())
    with pytest.raises(Unreadable, match="more than 8 inputs and ReLUs"):
        read(probe(model, points(2, D)), most=8)
    with pytest.raises(Unreadable, match="more than 5 inputs"):
        read(probe(model, points(2, D)), most=5)
    shifted = Probe(lambda x, by: model(x) + by, (points(2, D),), Everything(), args=(torch.ones(2, 1),))
    with pytest.raises(Unreadable, match="one at a time"):
        read(shifted)
    words = nn.Sequential(nn.Embedding(5, 2), nn.Flatten())
    with pytest.raises(Unreadable, match="whole numbers"):
        read(probe(words, torch.ones(2, 3, dtype=torch.long)))


def test_the_model_is_left_as_it_was_and_nothing_is_counted():
    torch.manual_seed(0)
    model = Awkward().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    f = probe(model, points(2, 1, 4, 4))
    read(f)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert f.meter.forward.tolist() == [0, 0]

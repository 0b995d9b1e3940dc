"""Bounds: nothing in a region beats one, they are exact for affine models, and what has none is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from robustx.engine.affine import Unreadable
from robustx.engine.intervals import Ranges
from robustx.engine.probe import Probe
from robustx.engine.units import LARGEST, RELU, SIGMOID, TANH
from robustx.perturb import NORMS, Region
from robustx.perturb.bounds import Leads
from robustx.zoo import Normalized

B, K = 5, 3
SHAPE = 1, 6, 6


class Residual(nn.Module):
    """In place, reused, residual, normalised, written into a buffer, with a constant that is turned."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.again, self.act = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.ReLU(inplace=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(18, K)
        self.scale = nn.Parameter(torch.randn(2, 1, 1))
        nn.init.normal_(self.norm.running_mean), nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        x -= 0.5
        a = self.act(self.norm(self.first(x)))
        b = 1 - a + torch.relu(self.again(a)) * self.scale.relu()
        b *= -1.5
        c = self.again(b).clamp(min=0) - b
        c += a
        buffer = torch.zeros(len(x), 18, dtype=x.dtype)
        buffer[:, :18] = F.avg_pool2d(c.relu_(), 2).flatten(1)
        return self.head(self.drop(buffer.view(-1, 18))) / 3 + 1


class Written(nn.Module):
    """Every other way to write a piecewise linear function or an affine one, and two branches that meet again."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(36, 8))
        self.head = nn.Linear(16, K)

    def forward(self, x):
        z = torch.addmm(x.new_ones(8), x.flatten(1).to(x.dtype), self.weight, alpha=0.3)
        a = F.leaky_relu(z, 0.1) + F.hardtanh(z) - F.relu6(z) + z.abs()
        b = torch.maximum(z, a.neg()).minimum(torch.full_like(z, 2.0)) + torch.einsum("bi,ij->bj", z, self.weight[:8])
        b.mul_(0.3).sub_(a, alpha=2)
        return self.head(torch.cat([a, b.float()], 1)) + torch.rsub(z, 1).mean(1, keepdim=True)


class Deep(nn.Module):
    """Windows that overlap, are padded, spread or left over, before and after what turns."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, K)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 3, stride=1, padding=1).relu()
        x = F.max_pool2d(x, 2, 2, 0, 1, True).flatten(2)
        x = torch.cat([x, F.pad(x, (1, 1))[..., 1:-1]], 2)
        return self.head(nn.MaxPool1d(2, 2, dilation=2)(x).sum(2))


def mlp(act):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), act, nn.Linear(8, 8), act, nn.Linear(8, K))


MODELS = {
    "affine": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, K)),
    "relu": lambda: mlp(nn.ReLU()),
    "sigmoid": lambda: mlp(nn.Sigmoid()),
    "tanh": lambda: mlp(nn.Tanh()),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4, K),
    ),
    "residual": Residual,
    "written": Written,
    "pools": Deep,
    "normalised": lambda: Normalized(mlp(nn.ReLU()), [0.4], [0.2]),
    "one logit": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0)),
}


def made(name):
    torch.manual_seed(sum(map(ord, name)))
    return MODELS[name]().eval()


def asked(model, norm, radius, low=0.0, high=1.0):
    """Examples, the model's answers for them [B], its logits, and regions around them."""
    x = torch.rand(B, *SHAPE, dtype=torch.float64)
    out = logits(model, x)
    ends = (torch.full((1, 1), v, dtype=torch.float64) for v in (low, high))
    region = Region(x.flatten(1), NORMS[norm], torch.full((len(x),), radius, dtype=torch.float64), *ends)
    return x, out.argmax(1), out, region


def logits(model, x):
    out = model.double()(x.clone())
    model.float()
    return torch.stack([-out / 2, out / 2], 1).detach() if out.ndim == 1 else out.detach()


def bound(model, x, y, region, classes, lines=True):
    return Leads(model, x, y, classes, lines)(region, torch.arange(len(x)))


def lead(out, y):
    return (out.gather(1, y[:, None]) - out).scatter(1, y[:, None], torch.inf)


def corners(region, count):
    """Points of each region [count, B, D], half of them as far out as can be."""
    some = torch.randn(count, *region.centre.shape, dtype=torch.float64)
    some[: count // 2].sign_()
    scale = region.radius[:, None] * torch.rand(count, 1, 1, dtype=torch.float64).clamp(min=0.3) * 4
    return torch.stack([region.project(region.centre + d) for d in some * scale])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_in_the_region_beats_a_bound_and_lines_are_no_worse_than_intervals(name, norm):
    model = made(name)
    for radius in ({"Linf": (0.02, 0.4), "L2": (0.5,), "L1": (0.3,)})[norm]:
        x, y, out, region = asked(model, norm, radius)
        low, near = (bound(model, x, y, region, out.shape[1], lines) for lines in (False, True))
        points = corners(region, 40)
        told = logits(model, points.reshape(-1, *SHAPE))
        there = lead(told, y.repeat(len(points))).reshape(len(points), B, -1).amin(0)
        assert (near <= there + 1e-6).all()  # a model may go through float32 on its way
        assert (near >= low - 1e-9).all()
        at, g = slopes(model, x, y)
        climbed = region.project(
            region.centre + region.norm.steepest(-g, region.radius, region.room(region.centre, -g))
        )
        assert (near <= lead(logits(model, climbed.reshape(x.shape)), y) + 1e-6).all()


def slopes(model, x, y):
    """The gradient of the lead over the best rival."""
    z = x.clone().requires_grad_()
    out = model.double()(z * 1)
    out = torch.stack([-out / 2, out / 2], 1) if out.ndim == 1 else out
    value = lead(out, y).amin(1)
    g = torch.autograd.grad(value.sum(), z)[0].flatten(1)
    model.float()
    return value.detach(), g


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_where_nothing_can_move_the_bound_is_the_lead(name, lines):
    model = made(name)
    x, y, out, region = asked(model, "Linf", 0.0)
    assert_close(bound(model, x, y, region, out.shape[1], lines), lead(out, y), atol=2e-6, rtol=0)


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_bounds_of_an_affine_model_are_attained(norm, lines):
    model = made("affine")
    x, y, out, region = asked(model, norm, 0.3)
    found = bound(model, x, y, region, K, lines)
    weight = model[1].weight.detach().double()
    for k in range(K):
        g = weight[y] - weight[k]
        worst = region.centre + region.norm.steepest(-g, region.radius, region.room(region.centre, -g))
        there = lead(logits(model, worst.reshape(x.shape)), y)[:, k]
        assert_close(found[:, k], there)
        free = region.to(low=region.low - 9, high=region.high + 9)
        far = lead(out, y)[:, k] - 0.3 * region.norm.dual(g)
        assert_close(bound(model, x, y, free, K, lines)[:, k], torch.where(y == k, torch.inf, far))


def test_one_hidden_layer_is_bounded_by_the_best_lines_there_are():
    """CROWN of one layer, written unit by unit from the paper's theorem 3.2, with ends by the dual norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, K)).eval()
    x, y, _, region = asked(model, "L2", 0.2, low=-9.0, high=9.0)
    (w, b), (v, c) = ((m.weight.detach().double(), m.bias.detach().double()) for m in (model[1], model[3]))
    found = bound(model, x, y, region, K)
    for i in range(B):
        middle, reach = w @ x[i].flatten() + b, 0.2 * w.norm(dim=1)
        for k in set(range(K)) - {int(y[i])}:
            slope, level = torch.zeros(36, dtype=torch.float64), c[y[i]] - c[k]
            for unit, weight in enumerate(v[y[i]] - v[k]):
                low, high = middle[unit] - reach[unit], middle[unit] + reach[unit]
                if high <= 0:
                    continue
                if low >= 0:
                    line = 1.0, 0.0
                elif weight > 0:
                    line = float(high > -low), 0.0
                else:
                    line = high / (high - low), -low * high / (high - low)
                slope = slope + weight * line[0] * w[unit]
                level = level + weight * (line[0] * b[unit] + line[1])
            by_hand = slope @ x[i].flatten() + level - 0.2 * slope.norm()
            by_intervals = bound(model, x[i : i + 1], y[i : i + 1], region.at(torch.tensor([i])), K, False)[0, k]
            assert_close(found[i, k], torch.maximum(by_hand, by_intervals))


def test_intervals_of_what_goes_into_the_first_units_are_attained():
    model = made("conv")
    x, _, _, region = asked(model, "Linf", 0.1)
    score = Ranges(model)
    ends = torch.cat([region.clip(region.centre - 0.1), region.clip(region.centre + 0.1)], 1)
    first = score.apart(Probe(model, (x, x), score).value(ends))[0]
    weight, bias = model[0].weight.detach().double(), model[0].bias.detach().double()
    low, high = (t.reshape(x.shape) for t in ends.chunk(2, 1))
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    assert_close(first.low, F.conv2d(low, up, bias) + F.conv2d(high, down))
    assert_close(first.high, F.conv2d(high, up, bias) + F.conv2d(low, down))


UNITS = {"relu": RELU, "sigmoid": SIGMOID, "tanh": TANH, "largest": LARGEST}


@pytest.mark.parametrize("name", UNITS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-9, 1e-3, 1.0, 50.0]))
def test_lines_are_on_their_sides_between_the_ends(name, seed, size):
    unit, draw = UNITS[name], torch.Generator().manual_seed(seed)
    low, high = (size * torch.randn(2, 16, 3, generator=draw, dtype=torch.float64)).sort(0).values
    for lines in (unit.lines(low, high), unit.flat(low, high)):
        for share in torch.rand(9, 16, 3, generator=draw, dtype=torch.float64).mul(1.5).sub(0.25).clamp(0, 1):
            x = low + share * (high - low)
            under, over = lines.under * x, lines.over * x
            under, over = (under.sum(-1), over.sum(-1)) if unit.picks else (under, over)
            assert (under + lines.under_at <= unit(x) + (1e-15 + 1e-12 * size)).all()
            assert (over + lines.over_at >= unit(x) - (1e-15 + 1e-12 * size)).all()


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g


REFUSED = {
    "softmax": (lambda x: x.softmax(1), "softmax"),
    "gelu": (F.gelu, "gelu"),
    "layer_norm": (lambda x: F.layer_norm(x, (36,)), "layer_norm"),
    "product": (lambda x: x * x.sum(1, keepdim=True), "mul"),
    "quotient": (lambda x: 1 / (1 + x), "reciprocal"),
    "own divisor": (lambda x: x / (1 + x), "divides"),
    "comparison": (lambda x: torch.where(x > 0.5, x, 0 * x), "gt"),
    "detach": (lambda x: x + x.detach(), "detach"),
    "half": (lambda x: x.half().float(), "half"),
    "to half": (lambda x: x.to(torch.bfloat16).float(), "32 bits"),
    "dropout": (lambda x: F.dropout(x, 0.5, True), "random"),
    "its own function": (lambda x: Custom.apply(x) * 1, "sin"),
    "indices": (lambda x: F.max_pool1d(x, 2, return_indices=True)[0], "indices"),
    "batch behind": (lambda x: x.T.relu().T, "batch must come first"),
    "two weights": (lambda x: torch.einsum("bi,i,i->bi", x, x.new_ones(36), x.new_ones(36)), "einsum"),
    "into a tensor": (lambda x: torch.neg(x, out=torch.empty(0)), "neg"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_refused_by_name(name):
    function, told = REFUSED[name]
    head = nn.Linear(36, K)

    def model(x):
        y = function(x.flatten(1))
        return head(F.pad(y, (0, 36 - y.shape[1])))

    x = torch.rand(B, *SHAPE, dtype=torch.float64)
    region = Region(
        x.flatten(1), NORMS["Linf"], torch.full((B,), 0.1, dtype=torch.float64), *torch.tensor([[[0.0]], [[1.0]]])
    )
    with pytest.raises(Unreadable, match=told):
        bound(model, x, torch.zeros(B, dtype=torch.long), region, K)


@pytest.mark.parametrize("name", ["residual", "pools"])
def test_rows_are_bounded_alone_as_in_a_batch_of_any_size(name):
    model = made(name)
    x, y, out, region = asked(model, "Linf", 0.05)
    whole = bound(model, x, y, region, K)
    small = Leads(model, x, y, K, True, limit=2)(region, torch.arange(B))
    alone = [bound(model, x[i : i + 1], y[i : i + 1], region.at(torch.tensor([i])), K) for i in range(B)]
    assert_close(small, whole, atol=1e-10, rtol=0)
    assert_close(torch.cat(alone), whole, atol=1e-10, rtol=0)
    some = torch.tensor([3, 1])
    assert_close(Leads(model, x, y, K)(region.at(some), some), whole[some], atol=1e-10, rtol=0)

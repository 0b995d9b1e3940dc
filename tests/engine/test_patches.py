"""Patches: the same answers as plainly, whatever the model does, from no more than changes reach."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.models import densenet121, mobilenet_v3_small, resnet18

from robustx.attribution import FeatureAblation, Occlusion
from robustx.engine import Output, Pace, Probe
from robustx.engine.patches import Patched, Patches

Conv, Norm = nn.Conv2d, nn.BatchNorm2d


class Net(nn.Module):
    """Some layers, then what is written here, then a linear layer."""

    def __init__(self, forward, *layers):
        super().__init__()
        self.layers, self.way, self.head = nn.ModuleList(layers), forward, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.way(x, *self.layers).flatten(1))


def chain(*layers):
    return Net(lambda x, *layers: nn.Sequential(*layers)(x), *layers)


def block(x, one, norm, two, other):
    y = F.relu_(norm(one(x)))
    return (two(y).add_(other(x))).relu_().mean((2, 3))


def squeeze(x, one, two):
    x = one(x)
    return two(x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


def indices(x, one):
    out, where = F.max_pool2d(one(x), 2, return_indices=True)
    return out + where / 100


def written(x, one):
    y = one(x)
    y[:, 0] += 1
    return y.relu()


MODELS = {
    "a chain": chain(Conv(2, 4, 3), nn.ReLU(), Conv(4, 3, 5, padding=2), nn.SiLU(inplace=True), nn.Flatten()),
    "strides": chain(Conv(2, 4, 3, 2, 1), nn.ReLU(True), Conv(4, 4, 5, (3, 2), (2, 1)), nn.GELU()),
    "no overlap": chain(Conv(2, 4, 2, 3), nn.Tanh(), Conv(4, 4, 1, 2)),
    "dilation": chain(Conv(2, 4, 3, dilation=2, padding=2), Conv(4, 4, (3, 1), dilation=(3, 1), bias=False)),
    "groups": chain(Conv(2, 4, 3, groups=2, padding=1), Norm(4), nn.Hardswish(), Conv(4, 4, 3, groups=4)),
    "pooling": chain(
        Conv(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(3)
    ),
    "ceil": chain(Conv(2, 4, 4), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "reflection": chain(Conv(2, 4, 3, padding=1, padding_mode="reflect"), Conv(4, 4, 3, padding="same")),
    "transposed": chain(Conv(2, 4, 3, 2), nn.ConvTranspose2d(4, 2, 2, 2), Conv(2, 4, 3)),
    "residual": Net(block, Conv(2, 4, 3, 2, 1), Norm(4), Conv(4, 4, 3, padding=1), Conv(2, 4, 1, 2)),
    "channels": Net(
        lambda x, a, b: torch.cat([a(x), b(x), x], 1).relu(), Conv(2, 3, 3, padding=1), Conv(2, 3, 5, padding=2)
    ),
    "constants": Net(lambda x, a: a((x - torch.ones(2, 1, 1)) / 2) * 3 + torch.ones(1, 4, 1, 1), Conv(2, 4, 3)),
    "from a constant": Net(lambda x, a: 1 - a(torch.ones(2, 1, 1).double() * x), Conv(2, 4, 3)),
    "the same layer again": Net(lambda x, a: a(a(x).relu()) + a(x), Conv(2, 2, 3, padding=1)),
    "squeeze": Net(squeeze, Conv(2, 4, 3), Conv(4, 2, 3)),
    "written to": Net(written, Conv(2, 4, 3)),
    "a copy": Net(lambda x, a: a(x).clone().relu_() + a(x).detach(), Conv(2, 4, 3)),
    "indices": Net(indices, Conv(2, 4, 3)),
    "sizes": Net(lambda x, a: a(x).reshape(x.size(0), -1)[:, : x.shape[2]], Conv(2, 4, 3)),
    "numbers": Net(lambda x, a: a(x) * (float(x.sum()) > -1e9), Conv(2, 4, 3)),
    "weights made anew": Net(lambda x, a: F.conv2d(x, a.weight * 2) + F.conv2d(x, a.weight * 3), Conv(2, 40, 3)),
}
LEFT_ALONE = "indices", "weights made anew"


def made(name, b):
    torch.manual_seed(0)
    net = MODELS[name].double().eval()
    x = torch.randn(b, 2, 23, 20, dtype=torch.float64)
    net(x)
    for norm in (m for m in net.modules() if isinstance(m, Norm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.requires_grad_(False), x


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("window, stride", [(5, 4), ((2, 1, 1), (2, 6, 7)), ((1, 9, 4), (1, 7, 4))], ids=str)
def test_the_same_answers(name, b, window, stride):
    net, x = made(name, b)
    model, queries, whose = Patches(net, x, 1 << 27), windows(x, window, stride), torch.arange(b)
    rows = whose.repeat(len(queries))
    found = torch.cat([model.of(whose)(x), model.of(rows)(torch.cat(queries)), model.of(whose)(queries[1])])
    assert model.plain == (name in LEFT_ALONE)
    assert_close(found, net(torch.cat([x, *queries, queries[1]])))


def windows(x, window, stride):
    """Pictures [B, C, H, W] with a window of each gone, and some unchanged ones in between."""
    axes = zip(x.shape[1:], *((v,) * 3 if isinstance(v, int) else v for v in (window, stride)), strict=True)
    (c, y, z), found = ([range(0, n, s) for n, _, s in axes]), [x]
    a = (window,) * 3 if isinstance(window, int) else window
    for i in c:
        for j in y:
            for k in z:
                gone = x.clone()
                gone[:, i : i + a[0], j : j + a[1], k : k + a[2]] = 0.5
                found.append(gone)
    return found


@pytest.mark.parametrize("make", [resnet18, densenet121, mobilenet_v3_small], ids=lambda m: m.__name__)
def test_known_networks(make):
    torch.manual_seed(0)
    net, x = make().double().eval().requires_grad_(False), torch.rand(2, 3, 64, 72, dtype=torch.float64)
    for norm in (m for m in net.modules() if isinstance(m, Norm)):
        norm.running_mean.normal_(0, 0.1)
    queries = windows(x, (3, 9, 11), (3, 23, 25))
    model, rows = Patches(net, x, 1 << 27), torch.arange(2).repeat(len(queries))
    found = model.of(rows)(torch.cat(queries))
    assert not model.plain
    assert_close(found, net(torch.cat(queries)))


def test_no_more_is_computed_than_changes_reach():
    net, x = made("a chain", 1)
    seen = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _, args, out: seen.append(getattr(out, "part", out).shape[2:]))
    model, gone = Patches(net, x, 1 << 27), x.repeat(3, 1, 1, 1)
    gone[0, :, 9:11, 7:10] = gone[1, :, 0:2, 0:3] = gone[2, :, 21:23, 17:20] = 0
    model.of(torch.zeros(3, dtype=torch.long))(gone)
    assert seen[len(net.layers) :][:4] == [(4, 5), (4, 5), (8, 9), (8, 9)]  # a window of 3 shows it 2 further, of 5 4


def test_the_examples_are_left_as_they_were():
    net, x = made("written to", 2)
    before = x.clone()
    queries = windows(x, 5, 4)
    Patches(net, x, 1 << 27).of(torch.arange(2).repeat(len(queries)))(torch.cat(queries))
    assert torch.equal(x, before)


@pytest.mark.parametrize("room", [1 << 27, 200_000, 1], ids=["enough", "for some", "for none"])
def test_examples_are_looked_at_in_groups_that_fit(room):
    net, x = made("strides", 5)
    model = Patches(net, x, room)
    assert torch.equal(torch.cat(list(model.groups)), torch.arange(5))
    assert (len(model.groups) == 1) == (room == 1 << 27)
    for group in model.groups:
        queries = torch.cat(windows(x[group], 5, 4))
        rows = group.repeat(len(queries) // len(group))
        assert_close(model.of(rows)(queries), net(queries))
    assert model.plain == (room == 1)


class Wide(nn.Module):
    """Tells how much of the pictures it was given."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.given = Conv(3, 4, 5, 2).double(), nn.Linear(4, 2).double(), []

    def forward(self, x, *more):
        self.given.append(getattr(x, "part", x).shape)
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("b", [1, 3, 40])
def test_ablation_of_large_pictures(b):
    """Beside the same by a function of several arguments, which is asked plainly; rows are counted once."""
    model, x = Wide(), torch.rand(b, 3, 64, 64, dtype=torch.float64)
    options = {"sliding_window_shapes": (3, 20, 20), "strides": (3, 15, 20), "target": 1}
    found = Occlusion(model).attribute(x, **options)
    whole, *changed = [shape[2:] for shape in model.given]
    assert whole == (64, 64) and all(max(size) <= 20 for size in changed)
    model.given.clear()
    assert_close(found, Occlusion(model).attribute(x, additional_forward_args=(1,), **options))
    assert {shape[2:] for shape in model.given} == {(64, 64)}
    mask = torch.arange(64).div(16, rounding_mode="floor").add(torch.arange(64)[:, None] // 32 * 4)
    model.given.clear()
    found = FeatureAblation(model).attribute(x, target=0, feature_mask=mask)
    assert sum(shape[0] for shape in model.given) == b * 9
    assert_close(found, FeatureAblation(lambda x: model(x)).attribute(x, target=0, feature_mask=mask))


@pytest.mark.parametrize("size", [63, 64])
def test_small_pictures_are_asked_plainly(size):
    f = Probe(Wide(), (torch.rand(1, 3, size, size),), Output(0), pace=Pace())
    assert isinstance(f.patched().model, Patches) == (size == 64)


def test_maps_that_a_model_hands_on_are_whole():
    net, x = Conv(3, 2, 3).double(), torch.rand(1, 3, 20, 20, dtype=torch.float64)
    queries = torch.cat(windows(x, (3, 4, 4), (3, 6, 6)))
    found = Patches(net, x, 1 << 27).of(torch.zeros(len(queries), dtype=torch.long))(queries)
    assert type(found) is torch.Tensor and not isinstance(found, Patched)
    assert_close(found, net(queries))

"""Class activation maps: captum's numbers in the same run, the papers' formulas written out slowly, closed forms."""

import itertools
from functools import partial

import captum.attr
import pytest
import torch
from attribution_cases import Net, Pair, inputs_of
from test_captum_parity import INNER, MLP, PLAIN, Maps, Two, assert_same, built, given
from told import told
from torch import nn
from torch.testing import assert_close

from robustx.attribution.cam import (
    GuidedGradCam,
    LayerCam,
    LayerGradCam,
    LayerGradCamPlusPlus,
    LayerHiResCam,
    activation_maps,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
)
from robustx.attribution.gradient import LayerGradientXActivation
from robustx.attribution.guided import GuidedBackprop
from robustx.engine import Each, Layer, ModelError, Output, Probe

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations"),
]

WEIGH = {
    LayerGradCam: grad_cam,
    LayerGradCamPlusPlus: grad_cam_plus_plus,
    LayerHiResCam: hires_cam,
    LayerCam: layer_cam,
}
METHODS = tuple(WEIGH)
named = {"ids": lambda v: getattr(v, "__name__", None)}
every = pytest.mark.parametrize("method", METHODS, **named)
guided_too = pytest.mark.parametrize("method", (*METHODS, GuidedGradCam), **named)
weighs = pytest.mark.parametrize("weigh", WEIGH.values(), **named)
sides = pytest.mark.parametrize("to_input", [False, True])


class CNN(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]; ReLU modules, batch norm; the layer is [B, 3, 4, 4], the first ReLU's output."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.layer = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()
        self.more, self.act, self.head = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5 * 2 * 2, 4)
        self.double().eval().to(dtype)

    def forward(self, x, shift=0.0):
        return self.head(self.act(self.more(self.layer(self.norm(self.conv(x)))) + shift).flatten(1))


class Pooled(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]: convolution, ReLU, the mean of each channel, one linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Linear(7, 4)
        self.double()

    def forward(self, x):
        return self.head(self.layer(self.conv(x)).mean((2, 3)))


def pictures(count=5, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(count, 2, 6, 6, dtype=torch.float64).to(dtype)


def here_and_grad(model, layer, x, target):
    """What a layer's output is, and the score's gradient there, by hooks."""
    seen = []
    with layer.register_forward_hook(lambda _, __, out: seen.append(out)):
        score = model(x)[:, target]
    (grad,) = torch.autograd.grad(score.sum(), seen)
    return seen[0].detach(), grad


# --- captum, in the same run ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LayerGradCam, GuidedGradCam], **named)
def test_what_a_method_says_about_itself(method):
    ours, theirs = (room(CNN(), CNN().layer) for room in (method, getattr(captum.attr, method.__name__)))
    assert ours.get_name() == theirs.get_name()
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs


def assert_agree(method, model, x, *args, layer=None, **options):
    rooms = method, getattr(captum.attr, method.__name__)
    ours, theirs = (room(model, layer or model.layer).attribute(x, *args, **options) for room in rooms)
    assert_same(ours, theirs, 1e-10)
    return ours


@pytest.mark.parametrize("method", [LayerGradCam, GuidedGradCam], **named)
@pytest.mark.parametrize("target", PLAIN)
@sides
def test_targets(method, target, to_input):
    found = assert_agree(method, CNN(), pictures(4), PLAIN[target], attribute_to_layer_input=to_input)
    assert found.shape == ((4, 1, 4, 4) if method is LayerGradCam else (4, 2, 6, 6))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("over_channels", [False, True])
def test_signs_and_channels(relu, over_channels):
    options = {"relu_attributions": relu, "attr_dim_summation": over_channels}
    found = assert_agree(LayerGradCam, CNN(), pictures(), 1, **options)
    assert found.shape == (5, 1 if over_channels else 3, 4, 4)
    assert (found < 0).any() != relu


@pytest.mark.parametrize("model", [MLP, Two], **named)
@sides
def test_layers_without_positions(model, to_input):
    """[B, C]: the channels' shares, added up to one number."""
    net, x = built(model, torch.float64), given(model, dtype=torch.float64)
    found = assert_agree(LayerGradCam, net, x, [0, 3, 1, 1], attribute_to_layer_input=to_input)
    assert found.shape[1] == 1
    shares = LayerGradientXActivation(net, net.layer).attribute(x, [0, 3, 1, 1], None, to_input)
    assert_close(found, shares.sum(1, keepdim=True))


@pytest.mark.parametrize("target", INNER)
def test_targets_in_larger_outputs(target):
    assert_agree(LayerGradCam, built(Maps, torch.float64), given(Maps, dtype=torch.float64), INNER[target])


@pytest.mark.parametrize("method", [LayerGradCam, GuidedGradCam], **named)
def test_further_arguments(method):
    shift = torch.linspace(-1, 1, 5).double()[:, None, None, None]
    found = assert_agree(method, CNN(), pictures(), 1, shift)
    assert_agree(method, CNN(), pictures(), 1, (0.5,))
    model = CNN()
    by_keyword = method(model, model.layer).attribute(pictures(), 1, additional_forward_kwargs={"shift": shift})
    assert_close(by_keyword, found)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_positions_of_any_number_of_axes(axes):
    conv, pool = getattr(nn, f"Conv{axes}d"), getattr(nn, f"AdaptiveAvgPool{axes}d")
    model = nn.Sequential(conv(2, 3, 2), nn.Tanh(), conv(3, 4, 2), nn.Tanh(), pool(1), nn.Flatten()).double()
    x = torch.randn(3, 2, *(5, 6, 4)[:axes]).double()
    found = assert_agree(LayerGradCam, model, x, 1, layer=model[1])
    assert found.shape == (3, 1, *(4, 5, 3)[:axes])
    assert_agree(GuidedGradCam, model, x, 1, layer=model[1])


class Halves(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]; its layer has two tensors, of 2 channels and of 3."""

    class Split(nn.Module):
        def forward(self, v):
            return v[:, :2] * 2, v[:, 2:, 1:].exp()

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(2, 5, 3), Halves.Split(), nn.Linear(5, 4)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(torch.cat([v.square().mean((2, 3)) for v in self.layer(self.conv(x))], 1)))


def test_layers_with_several_values():
    found = assert_agree(LayerGradCam, Halves(), pictures(), 1)
    assert [a.shape for a in found] == [(5, 1, 4, 4), (5, 1, 3, 4)]


@every
def test_several_layers(method):
    """A list of them gives a list of maps."""
    model, x = CNN(), pictures()
    found = method(model, [model.act, model.layer]).attribute(x, 1)
    assert type(found) is list
    for layer, a in zip((model.act, model.layer), found, strict=True):
        assert_close(a, method(model, layer).attribute(x, 1))


# --- guided Grad-CAM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area", "nearest-exact"])
@sides
def test_modes(mode, to_input):
    assert_agree(GuidedGradCam, CNN(), pictures(), 1, None, mode, to_input)


class Mixed(nn.Module):
    """A picture [B, 2, 6, 6], a line [B, 2, 6] and numbers [B, 5] -> [B, 4]."""

    def __init__(self):
        super().__init__()
        self.net, self.line, self.numbers = CNN(), nn.Linear(12, 4).double(), nn.Linear(5, 4).double()
        self.layer = self.net.layer

    def forward(self, picture, line, numbers):
        return self.net(picture) * self.line(line.flatten(1)) * self.numbers(numbers)


def test_inputs_out_of_the_maps_reach_are_left_empty():
    x = (pictures(), torch.randn(5, 2, 6).double(), torch.randn(5, 5).double())
    model = Mixed()
    with pytest.warns(UserWarning, match="empty tensor") as caught:
        found = GuidedGradCam(model, model.layer).attribute(x, 1)
    assert [str(w.message).split(" of ")[0] for w in caught] == ["input 1", "input 2"]
    assert all(w.filename == __file__ for w in caught)
    with pytest.warns(UserWarning, match="interpolate"):
        theirs = captum.attr.GuidedGradCam(model, model.layer).attribute(x, 1)
    assert [a.shape for a in found] == [t.shape for t in theirs] == [(5, 2, 6, 6), (0,), (0,)]
    assert_close(found[0], theirs[0])
    model = CNN()
    with pytest.warns(UserWarning, match=r"input 0 of shape \(5, 2, 6, 6\).*\(4, 4\).*'linear'"):
        found = GuidedGradCam(model, model.layer).attribute(pictures(), 1, interpolate_mode="linear")
    assert found.shape == (0,)


def test_it_is_the_product():
    """Of guided backpropagation, and of the map's positive part at each pixel."""
    model, x = CNN(), pictures()
    cam = LayerGradCam(model, model.more).attribute(x, 1, relu_attributions=True)  # [B, 1, 2, 2]
    slope = GuidedBackprop(model).attribute(x, 1)
    found = GuidedGradCam(model, model.more).attribute(x, 1)
    for b, c, i, j in itertools.product(range(5), range(2), range(6), range(6)):
        assert found[b, c, i, j] == slope[b, c, i, j] * cam[b, 0, i // 3, j // 3]
    named = GuidedGradCam(lambda picture: model(picture), model.more).attribute({"picture": x}, 1)
    assert_close(named["picture"], found)


# --- closed forms -----------------------------------------------------------------------------------------


def test_behind_a_mean_and_a_linear_layer_grad_cam_is_cam():
    """Zhou et al. (CVPR 2016): the head's weights times the channels; the mean divides it by the positions."""
    model, x = Pooled(), pictures()
    here = model.layer(model.conv(x)).detach()
    for target in range(4):
        cam = torch.einsum("c,bchw->bhw", model.head.weight[target].detach(), here)[:, None]
        for method in (LayerGradCam, LayerHiResCam):
            assert_close(method(model, model.layer).attribute(x, target) * 16, cam)
        positive = LayerGradCam(model, model.layer).attribute(x, target, relu_attributions=True)
        assert_close(positive * 16, cam.relu())


def test_hires_cam_shows_what_each_place_contributes():
    """Behind the layer a linear layer: leave a place out, and the score falls by what stands on the map."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(2, 3, 3).double(), nn.Linear(3 * 4 * 4, 4).double()
    model, x = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), pictures()
    found = LayerHiResCam(model, model[1]).attribute(x, 2)
    here, score = model[:2](x).detach(), model(x)[:, 2].detach()
    assert_close(found.sum((1, 2, 3)), score - head.bias[2].detach())
    for i, j in itertools.product(range(4), range(4)):
        without = here.clone()
        without[:, :, i, j] = 0
        assert_close(score - head(without.flatten(1))[:, 2].detach(), found[:, 0, i, j])
    other = LayerGradCam(model, model[1]).attribute(x, 2)
    assert (other - found).abs().max() > 0.01  # which Grad-CAM does not
    assert_close(LayerGradientXActivation(model, model[1]).attribute(x, 2).sum(1, keepdim=True), found)


def test_grad_cam_plus_plus_by_its_definition():
    """From the second and third derivatives of exp(score), by autograd, one element after the other."""
    torch.manual_seed(0)
    model = Pooled()
    model.head.weight.data *= 20  # so that the factors of eq. 19 matter
    x, target = pictures(2), 1
    here = model.layer(model.conv(x)).detach()
    expected = torch.zeros(2, 4, 4).double()
    for b, k in itertools.product(range(2), range(7)):
        weight = 0
        for i, j in itertools.product(range(4), range(4)):

            def exponential(a, b=b, k=k, i=i, j=j):
                moved = here[b].clone()
                moved[k, i, j] = a
                return model.head(moved.mean((1, 2)))[target].exp()

            a, derivatives = here[b, k, i, j].clone().requires_grad_(), []
            value = exponential(a)
            for _ in range(3):
                (value,) = torch.autograd.grad(value, a, create_graph=True)
                derivatives.append(value.detach())
            first, second, third = derivatives
            alpha = second / (2 * second + here[b, k].sum() * third)
            weight += alpha * first.relu() / exponential(a).detach()  # but for the factor that is one for all
        expected[b] += weight * here[b, k]
    found = LayerGradCamPlusPlus(model, model.layer).attribute(x, target)
    assert_close(found[:, 0], expected)
    assert_close(
        LayerGradCamPlusPlus(model, model.layer).attribute(x, target, relu_attributions=True)[:, 0], expected.relu()
    )


def test_layer_cam_by_its_definition():
    model, x = CNN(), pictures()
    here, grad = here_and_grad(model, model.layer, x, 3)
    expected = torch.zeros(5, 1, 4, 4).double()
    for b, k, i, j in itertools.product(range(5), range(3), range(4), range(4)):
        expected[b, 0, i, j] += max(grad[b, k, i, j], 0) * here[b, k, i, j]
    assert_close(LayerCam(model, model.layer).attribute(x, 3), expected)
    assert (grad < 0).any()


# --- laws of the formulas ---------------------------------------------------------------------------------


def random_layer():
    here, grad = torch.randn(2, 6, 3, 8).double().unbind(0)
    return here.relu(), grad  # [6, C, P]


@weighs
def test_places_may_be_read_in_any_order(weigh):
    (here, grad), order = random_layer(), torch.randperm(8)
    assert_close(weigh(here[..., order], grad[..., order]), weigh(here, grad)[..., order])


@weighs
def test_channels_do_not_see_one_another(weigh):
    here, grad = random_layer()
    whole = weigh(here, grad)
    for k in range(3):
        assert_close(weigh(here[:, k : k + 1], grad[:, k : k + 1]), whole[:, k : k + 1])


@weighs
def test_what_is_nothing_or_moves_nothing_adds_nothing(weigh):
    here, grad = random_layer()
    assert (weigh(here, grad)[here == 0] == 0).all() and (here == 0).any()
    assert (weigh(here, torch.zeros_like(grad)) == 0).all()


@pytest.mark.parametrize("weigh", [grad_cam, hires_cam, layer_cam], **named)
def test_twice_the_score_twice_the_map(weigh):
    here, grad = random_layer()
    assert_close(weigh(here, 2 * grad), 2 * weigh(here, grad))


def test_where_the_gradient_is_the_same_everywhere_three_are_one():
    here, grad = random_layer()
    grad = grad[..., :1].abs().expand_as(here)
    for weigh in (grad_cam, layer_cam):
        assert_close(weigh(here, grad), hires_cam(here, grad))


def test_poles_of_grad_cam_plus_plus():
    """1 / (2 + g A) where g A is -2: no weight, rather than infinity."""
    here, grad = torch.tensor([[-2.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.5, -1.0]])
    assert_close(grad_cam_plus_plus(here, grad), here * (0.5 / (2 - 0.5 * 2)))


# --- layouts ----------------------------------------------------------------------------------------------


class Arranged(nn.Module):
    """Between two convolutions a layer [B, 3, 4, 5], or the same with channels last, or as tokens behind others."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.layer, self.form = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Identity(), form
        self.double()

    def forward(self, x):
        v = torch.tanh(self.first(x))
        others = x.sum((1, 2, 3))[:, None, None].expand(-1, 5, 3)  # tokens that count, but stand nowhere
        if self.form == "channels":
            v = self.layer(v)
        elif self.form == "channels last":
            v = self.layer(v.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            tokens = self.layer(torch.cat([others[:, : self.form], v.flatten(2).transpose(1, 2)], 1))
            others = torch.cat([tokens[:, : self.form], others[:, self.form :]], 1)
            v = tokens[:, self.form :].transpose(1, 2).unflatten(2, (4, 5))
        return self.second(v + others.sum((1, 2))[:, None, None, None]).square().mean((2, 3))


ARRANGEMENTS = {
    "channels last": {"layout": "tokens"},
    0: {"layout": "tokens", "grid": (4, 5)},
    1: {"layout": "tokens", "grid": (4, 5), "class_token": 1},
    5: {"layout": "tokens", "grid": (4, 5), "class_token": 5},
}


@guided_too
@pytest.mark.parametrize("form", ARRANGEMENTS)
@pytest.mark.parametrize("target", [1, Each([2, [0, 1, 2, 3, 0]])], ids=["one", "several"])
def test_the_arrangement_does_not_matter(method, form, target):
    x, plain, other = torch.randn(5, 2, 6, 7).double(), Arranged("channels"), Arranged(form)
    found = method(other, other.layer, **ARRANGEMENTS[form]).attribute(x, target)
    assert_close(found, method(plain, plain.layer).attribute(x, target))


def test_tokens_that_stay_in_line():
    model, x = Arranged(1), torch.randn(5, 2, 6, 7).double()
    at = partial(LayerGradCam, model, model.layer, layout="tokens", class_token=1)
    grid, line = (at(grid=g).attribute(x, 1) for g in ((4, 5), False))
    assert line.shape == (5, 1, 20)
    assert torch.equal(line.unflatten(2, (4, 5)), grid)
    apart = at(grid=(2, 10)).attribute(x, 1, attr_dim_summation=False)
    assert apart.shape == (5, 3, 2, 10)
    assert_close(apart.sum(1).flatten(1), line[:, 0])


@pytest.fixture(scope="module")
def vit():
    """Of torchvision, and small: 16 patches and a class token, 8 channels."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(8, 2, 2, 2, 8, 16, num_classes=4)
    nn.init.normal_(model.heads.head.weight)  # which starts as zero
    return model.double().eval()


@every
def test_a_transformer_by_hand(vit, method):
    """At the last block's first norm, where pictures' tokens still reach the class token."""
    x, layer = torch.randn(3, 3, 8, 8).double(), vit.encoder.layers[-1].ln_1
    here, grad = (t[:, 1:] for t in here_and_grad(vit, layer, x, 2))  # [B, 16, 8], without the class token
    if method is LayerGradCam:
        weights = grad.mean(1, keepdim=True)
    elif method is LayerGradCamPlusPlus:
        alpha = grad**2 / (2 * grad**2 + grad**3 * here.sum(1, keepdim=True))
        weights = (alpha * grad.relu()).sum(1, keepdim=True)
    else:
        weights = grad.relu() if method is LayerCam else grad
    expected = (weights * here).sum(2).reshape(3, 1, 4, 4)
    cam = method(vit, layer, layout="tokens", class_token=1)
    assert_close(cam.attribute(x, 2), expected)
    assert_close(cam.attribute(x, 2, relu_attributions=True), expected.relu())
    over = method.interpolate(expected, (8, 8))
    assert over.shape == (3, 1, 8, 8)


def test_guided_grad_cam_of_a_transformer(vit):
    """It has no ReLU, so that the plain gradient is what shows."""
    x, layer = torch.randn(3, 3, 8, 8).double(), vit.encoder.layers[-1].ln_1
    cam = LayerGradCam(vit, layer, layout="tokens", class_token=1).attribute(x, 2, relu_attributions=True)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(vit(leaf)[:, 2].sum(), leaf)
    found = GuidedGradCam(vit, layer, layout="tokens", class_token=1).attribute(x, 2)
    assert_close(found, slope * cam.repeat_interleave(2, 2).repeat_interleave(2, 3))


# --- several scores, passes, dtypes -----------------------------------------------------------------------


@guided_too
@pytest.mark.parametrize("over_channels", [True, False])
def test_several_scores_at_once(method, over_channels):
    """[B, T, ...]: what each of them says on its own."""
    options = {} if method is GuidedGradCam else {"attr_dim_summation": over_channels, "relu_attributions": True}
    model, x = CNN(), pictures()
    cam = method(model, model.layer)
    several = cam.attribute(x, Each([3, (0,), [0, 1, 2, 3, 0]]), **options)
    alone = [cam.attribute(x, t, **options) for t in (3, 0, [0, 1, 2, 3, 0])]
    assert_close(several, torch.stack(alone, 1))
    assert cam.attribute(x, Each(), **options).shape == (5, 4, *alone[0].shape[1:])


@every
def test_several_scores_at_layers_without_positions(method):
    for model in (Net(), Pair()):
        cam, x = method(model, model.layer), inputs_of(model)
        assert_close(cam.attribute(x, Each([3, 0])), torch.stack([cam.attribute(x, t) for t in (3, 0)], 1))


@guided_too
@pytest.mark.parametrize("count", [0, 1, 20])
def test_any_number_of_examples(method, count):
    """More than the first pass takes, one, none; in batches of three or all at once."""
    model, x = CNN(), pictures(count)
    whole, chunked = (method(model, model.layer).attribute(x, 1, internal_batch_size=n) for n in (None, 3))
    assert whole.shape == ((count, 2, 6, 6) if method is GuidedGradCam else (count, 1, 4, 4))
    assert_close(whole, chunked)
    if count == 20:
        assert_close(whole[11:12], method(model, model.layer).attribute(x[11:12], 1))


@guided_too
@pytest.mark.parametrize("count", [1, 20])
def test_one_pass_each_way(method, count):
    """Of guided Grad-CAM two: one with the rule for ReLU, one without."""
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
    model.register_forward_hook(lambda _, __, out: Tally.apply(out))
    method(model, model.layer).attribute(pictures(count), 1)
    passes = 2 if method is GuidedGradCam else 1
    assert sum(ahead) == sum(back) == passes * count


@weighs
def test_what_the_meter_says(weigh):
    model = CNN()
    f = Probe(model, (pictures(20),), Output(1), Layer(model.layer))
    (found,) = activation_maps(f, weigh)
    assert f.meter.forward.tolist() == f.meter.backward.tolist() == [1] * 20
    assert found.shape == (20, 1, 4, 4)


@guided_too
def test_frozen_parameters(method):
    model, x = CNN(), pictures()
    expected = method(model, model.layer).attribute(x, 1)
    model.requires_grad_(False)
    assert torch.equal(method(model, model.layer).attribute(x, 1), expected)


@guided_too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(method, dtype):
    exact, model = CNN(), CNN(dtype)
    expected = method(exact, exact.layer).attribute(pictures(), 1)
    found = method(model, model.layer).attribute(pictures(dtype=dtype), 1)
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps * expected.abs().max().item())


def test_small_gradients_in_half_precision():
    """Third powers of a thousandth are nothing in float16; their quotients are numbers like any other."""
    here, grad = torch.rand(1, 3, 8).half(), torch.full((1, 3, 8), 1e-3).half()
    assert grad.pow(3).max() == 0
    found = grad_cam_plus_plus(here, grad)
    assert_close(found.double(), grad_cam_plus_plus(here.double(), grad.double()), rtol=0.01, atol=0)
    assert (found > 0).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's
@pytest.mark.parametrize("method", (LayerGradCam, GuidedGradCam), **named)
def test_compiled_models(method):
    """Also those that ran before."""
    model, x = CNN(), pictures(20)
    expected = method(model, model.layer).attribute(x, 1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert_close(method(compiled, model.layer).attribute(x, 1), expected)


# --- mistakes ---------------------------------------------------------------------------------------------


@guided_too
@pytest.mark.parametrize(
    "options, words",
    [
        ({"layout": "pixels"}, ["layout", "'channels'", "'tokens'", "'pixels'"]),
        ({"class_token": 1}, ["class_token", "layout='tokens'"]),
        ({"grid": (4, 4)}, ["grid", "layout='tokens'"]),
        ({"layout": "tokens", "grid": 4}, ["grid", "(rows, columns)", "got 4"]),
        ({"layout": "tokens", "grid": "4x4"}, ["grid", "(rows, columns)", "'4x4'"]),
        ({"layout": "tokens", "class_token": -1}, ["class_token", "at least 0", "-1"]),
        ({"layout": "tokens", "class_token": 1.5}, ["class_token", "whole number", "1.5"]),
    ],
)
def test_layouts_that_are_none(method, options, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        method(CNN(), CNN().layer, **options)
    told(caught.value, words)


@guided_too
@pytest.mark.parametrize(
    "options, words",
    [
        ({"class_token": 0}, ["17 tokens", "4 x 4", "class_token=1", "grid=(rows, columns)", "grid=False"]),
        ({"class_token": 1, "grid": (3, 5)}, ["17 tokens", "1 left out", "3 x 5"]),
        ({"class_token": 40}, ["17 tokens", "40 left out"]),
        ({"class_token": 17, "grid": False}, ["17 tokens", "17 left out"]),
    ],
)
def test_tokens_that_fill_no_grid(vit, method, options, words):
    cam = method(vit, vit.encoder.layers[-1].ln_1, layout="tokens", **options)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        cam.attribute(torch.randn(2, 3, 8, 8).double(), 1)
    told(caught.value, words)


def test_mistakes():
    model, halves, x = CNN(), Halves(), pictures()
    with pytest.raises(ValueError, match="grad_kwargs may hold 'allow_unused' alone, got retain_graph"):
        LayerGradCam(model, model.layer).attribute(x, 1, grad_kwargs={"retain_graph": True})
    with pytest.raises(ValueError, match="interpolate_mode must be one of nearest.*'cubic'"):
        GuidedGradCam(model, model.layer).attribute(x, 1, interpolate_mode="cubic")
    with pytest.raises(TypeError, match="layer must be one layer, got a list of 2"):
        GuidedGradCam(model, [model.layer, model.act])
    with pytest.raises(ValueError, match="layer must have a single tensor, but it has 2"):
        GuidedGradCam(halves, halves.layer).attribute(x, 1)
    sums = nn.Sequential(nn.Flatten(), Sum(), nn.Identity())
    for method in (LayerGradCam, GuidedGradCam):
        with pytest.raises(ValueError, match="needs a layer with channels"):
            method(sums, sums[1]).attribute(x)
        with pytest.raises(ValueError, match="called 0 times"):
            method(model, nn.ReLU()).attribute(x, 1)
    with pytest.raises(ModelError, match="no gradient"):
        LayerGradCam(lambda x: model(x).detach(), model.layer).attribute(x, 1)


class Sum(nn.Module):
    """[B, D] -> [B]"""

    def forward(self, x):
        return x.sum(1)

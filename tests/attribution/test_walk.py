"""Guided, blurred and straight paths, and what happens on them: the papers written out slowly, and their laws."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from told import told
from torch import nn
from torch.testing import assert_close

from robustx.attribution import IntegratedGradients, NoiseTunnel
from robustx.attribution.walk import (
    IDGI,
    BlurIG,
    GuidedIG,
    LayerGuidedIG,
    LayerIDGI,
    ScaleSpace,
    blurred_path,
    guided_path,
    important_directions,
    path_integral,
    straight_path,
)
from robustx.engine import Each, Layer, Neuron, Output, Probe
from robustx.perturb import through


class Wavy(nn.Module):
    """[B, D] -> [B, 3]: smooth, and steep in other places for other elements; does not see the last ``idle`` ones."""

    def __init__(self, d=8, idle=0):
        super().__init__()
        torch.manual_seed(4)
        self.d, self.first, self.head = d - idle, nn.Linear(d - idle, 10), nn.Linear(10, 3)
        self.double()

    def forward(self, x):
        return self.head(torch.sin(2 * self.first(x[:, : self.d])))


class Rectified(nn.Module):
    """[B, 1, 6, 6] -> [B, 3], with ReLUs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)
        self.double()

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def probe(model, x, target=0):
    return Probe(model, (x,), Output(target))


def nodes_of(path, f, steps):
    """Every example's nodes [S + 1, B, D], and the gradients there."""
    at, grad = (torch.full((steps + 1, *f.point.shape), torch.nan, dtype=torch.float64) for _ in range(2))
    for node in path(f, steps):
        at[node.step, node.rows], grad[node.step, node.rows] = node.at, node.grad
    assert not at.isnan().any()
    return at, grad


def heat(x, sigma, axes):
    """scipy: the discrete Gaussian of Lindeberg, exp(-t) I_n(t) with t = sigma ** 2, mirrored at the edges."""
    reach = np.arange(-int(12 * sigma + 12), int(12 * sigma + 12) + 1)
    kernel = special.ive(np.abs(reach), sigma**2)
    for axis in axes:
        x = ndimage.convolve1d(x, kernel, axis, mode="reflect")
    return x


def blur(x, sigma=3.0):
    axes = range(min(2, x.ndim - 1), x.ndim)
    return torch.from_numpy(heat(x.numpy(), sigma, axes))


PATHS = {
    "straight": straight_path,
    "guided": partial(guided_path, max_dist=0.2),
    "guided freely": partial(guided_path, max_dist=1.0, fraction=0.1),
    "guided between anchors": partial(guided_path, anchors=2),
    "blurred": lambda _: blurred_path(3.0),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


# --- the guided path --------------------------------------------------------------------------------------


def guided_slowly(f, start, x, steps, fraction, max_dist):
    """One example's path as the paper tells it [S + 1, D]: in each step groups of the least gradients, one by one."""
    way = x - start
    z, passed = start.copy(), [start.copy()]
    for step in range(1, steps + 1):
        effort = np.abs(f(z))
        alpha = step / steps
        low, high = start + max(alpha - max_dist, 0) * way, start + min(alpha + max_dist, 1) * way
        behind = np.abs(z - x) > np.abs(low - x)
        z[behind] = low[behind]
        while True:
            too_far = np.abs(z - x).sum() - np.abs(way).sum() * (1 - alpha)
            if too_far < 1e-12:
                break
            effort[np.abs(z - high) < 1e-14] = np.inf
            group = effort <= np.quantile(effort, fraction, method="lower")
            share = too_far / np.abs(z - high)[group].sum()
            z[group] += min(share, 1) * (high - z)[group]
        passed.append(z.copy())
    return np.array(passed)


@pytest.mark.parametrize("fraction", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("max_dist", [0.05, 0.3, 1.0])
def test_the_guided_path_is_the_papers(fraction, max_dist):
    model, x, start = Wavy(11, idle=4), draw(3, 11), draw(1, 11)
    at, _ = nodes_of(guided_path(through(start), fraction, max_dist), probe(model, x), 12)
    for i in range(3):

        def slopes(z):
            z = torch.from_numpy(z)[None].requires_grad_()
            return torch.autograd.grad(model(z)[0, 0], z)[0][0].numpy()

        slow = guided_slowly(slopes, start[0].numpy(), x[i].numpy(), 12, fraction, max_dist)
        assert_close(at[:, i], torch.from_numpy(slow), rtol=0, atol=1e-9)


@pytest.mark.parametrize("max_dist, anchors", [(0.02, 0), (0.15, 0), (1.0, 0), (1.0, 3), (0.1, 6), (0.0, 0)])
def test_laws_of_the_guided_path(max_dist, anchors):
    model, x, start = Wavy(), draw(6, 8), draw(6, 8)
    x[0, 2:5] = start[0, 2:5]  # elements that do not move
    at, grad = nodes_of(guided_path(through(start), 0.25, max_dist, anchors), probe(model, x), 15)
    way, alpha = x - start, torch.linspace(0, 1, 16, dtype=torch.float64)[:, None, None]
    assert torch.equal(at[0], start) and torch.equal(at[-1], x)
    gone = torch.where(way == 0, alpha, (at - start) / way)
    assert (gone.diff(dim=0) > -1e-12).all()  # nothing turns back
    assert (gone - alpha).abs().max() <= max_dist + 1e-12  # nothing leaves the straight way further than it may
    walked = (at - start).abs().sum(-1) / way.abs().sum(-1)
    assert_close(walked, alpha[..., 0].expand(16, 6), rtol=0, atol=1e-12)  # equal parts of the whole length
    for k in range(anchors + 2):
        step = round(k * 15 / (anchors + 1))
        assert_close(at[step], start + step / 15 * way, rtol=0, atol=1e-12)
    if max_dist >= 0.15 and not anchors:  # and it is not the straight way: steep elements wait
        moved = gone.diff(dim=0).gather(2, grad[:-1].abs().argsort(2))[:8]
        assert moved[..., :2].mean() > 1.5 * moved[..., -2:].mean()


def test_flat_elements_go_first_and_steep_ones_last():
    """f = x0 + 10 x1 with the length of the way 2: one element after the other."""
    f = probe(lambda z: z @ torch.tensor([1.0, 10.0], dtype=torch.float64), torch.ones(1, 2).double(), None)
    at, _ = nodes_of(guided_path(through(0), 0.5, 1.0), f, 4)
    assert_close(at[:, 0], torch.tensor([[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1.0]]).double())


def test_equal_gradients_move_together():
    f = probe(lambda z: z.sum(1), torch.rand(2, 6).double(), None)
    at, _ = nodes_of(guided_path(through(0), 0.1, 1.0), f, 5)
    assert_close(at, torch.linspace(0, 1, 6).double()[:, None, None] * f.point)


@pytest.mark.parametrize("options", [{}, {"max_dist": 1.0}, {"anchors": 4}], ids=str)
def test_guided_gradients_of_a_linear_model_are_integrated_gradients(options):
    model, x, b = nn.Linear(7, 3).double(), draw(5, 7), draw(1, 7)
    found, delta = GuidedIG(model, **options).attribute(x, b, 1, n_steps=9, return_convergence_delta=True)
    assert_close(found, IntegratedGradients(model).attribute(x, b, 1), rtol=0, atol=1e-12)
    assert delta.abs().max() < 1e-12


def test_without_distance_it_is_the_straight_way():
    model, x, b = Wavy(), draw(5, 8), draw(5, 8)
    same = IntegratedGradients(model).attribute(x, b, 1, n_steps=21, method="riemann_trapezoid")
    assert_close(GuidedIG(model, max_dist=0).attribute(x, b, 1, n_steps=20), same, rtol=0, atol=1e-12)


def test_the_guided_path_meets_less_noise():
    """What the paper is for: gradients that are steep by chance are gone around, so less of them is gathered."""
    model, x = Wavy(40), draw(4, 40)
    there_and_back = lambda m: m.attribute(x, n_steps=400, target=0).abs().sum(1)
    assert (there_and_back(GuidedIG(model, max_dist=1.0)) < there_and_back(IntegratedGradients(model))).all()


# --- what happens on the way ------------------------------------------------------------------------------


@every_path
def test_path_integrals_add_up_as_steps_get_shorter(path):
    """Halving the steps of a smooth path takes a quarter of the error; a guided path has corners."""
    model, x = Wavy(8), draw(6, 8)
    error = {}
    for steps in (32, 64, 512):
        total, risen = path_integral(probe(model, x), path(through(0.5)), steps)
        error[steps] = float((total.sum(1) - risen).abs().max())
    start = 0.5 if path is not PATHS["blurred"] else blur(x)
    assert_close(risen, (model(x) - model(torch.zeros_like(x) + start))[:, 0].detach(), rtol=0, atol=1e-10)
    assert error[512] < 2e-3 and error[512] < error[32] / 20
    if path in (PATHS["straight"], PATHS["blurred"]):
        assert error[32] / error[64] == pytest.approx(4, rel=0.15)


@every_path
def test_a_path_integral_is_written_out(path):
    model, x = Wavy(), draw(3, 8)
    at, grad = nodes_of(path(through(-0.2)), probe(model, x), 7)
    expected = sum((at[k + 1] - at[k]) * (grad[k] + grad[k + 1]) / 2 for k in range(7))
    assert_close(path_integral(probe(model, x), path(through(-0.2)), 7)[0], expected, rtol=0, atol=1e-12)


@every_path
def test_important_directions_are_written_out(path):
    """Algorithm 1 of the paper, for each example by itself."""
    model, x = Wavy(), draw(3, 8)
    at, grad = nodes_of(path(through(-0.2)), probe(model, x), 7)
    expected = torch.zeros_like(x)
    for i in range(3):
        for k in range(7):
            g, d = grad[k, i], (model(at[k + 1, i][None]) - model(at[k, i][None]))[0, 0].detach()
            expected[i] += g * g / (g @ g) * d
    assert_close(important_directions(probe(model, x), path(through(-0.2)), 7)[0], expected, rtol=0, atol=1e-12)


@every_path
@pytest.mark.parametrize("steps", [3, 4, 17])
def test_important_directions_add_up_with_any_number_of_steps(path, steps):
    model, x = Rectified(), draw(5, 1, 6, 6)
    found, delta = IDGI(model, path).attribute(x, 0.3, 2, n_steps=steps, return_convergence_delta=True)
    start = torch.full_like(x, 0.3) if path is not PATHS["blurred"] else blur(x)
    assert_close(found.flatten(1).sum(1), (model(x) - model(start))[:, 2].detach(), rtol=0, atol=1e-12)
    assert delta.abs().max() < 1e-12


def hinge(at):
    """Flat up to ``at`` of the way, then 3 x0 + x1 beyond."""
    return lambda z: torch.relu(3 * z[:, 0] + z[:, 1] - 4 * at)


def test_what_rises_out_of_the_flat_goes_to_the_first_gradient():
    x = torch.ones(1, 2).double()
    found, delta = IDGI(hinge(0.55)).attribute(x, n_steps=4, return_convergence_delta=True)
    assert_close(found, 1.8 * torch.tensor([[0.9, 0.1]]).double())
    assert delta.abs().max() < 1e-12


def test_what_rises_into_the_flat_goes_to_the_last_gradient():
    x = torch.ones(1, 2).double()
    plateau = lambda z: -hinge(0)(1 - z)
    found = IDGI(lambda z: plateau(z / 0.55)).attribute(x, n_steps=4)
    assert_close(found, 4 * torch.tensor([[0.9, 0.1]]).double())


def test_where_no_node_has_a_gradient_nothing_is_given_and_the_delta_says_so():
    x = torch.ones(3, 2).double()
    step = lambda z: torch.sigmoid(1e5 * (z.sum(1) - 1.1))
    found, delta = IDGI(step).attribute(x, n_steps=4, return_convergence_delta=True)
    assert (found == 0).all()
    assert_close(delta, torch.full_like(delta, -1.0))


def test_tiny_gradients_are_no_zeros():
    """Their squares are less than the least float."""
    x = torch.tensor([[1.0, 2.0]])
    found = IDGI(lambda z: (z @ torch.tensor([3.0, 1.0])) * 1e-30).attribute(x, n_steps=3)
    assert_close(found * 1e30, torch.tensor([[4.5, 0.5]]))


def test_slopes_do_not_move_what_directions_share_out():
    """For a linear model important directions are the rise, shared out by squared weights; unlike integrated ones."""
    model, x = nn.Linear(4, 2).double(), draw(3, 4)
    w = model.weight[1].detach()
    expected = (x @ w)[:, None] * w**2 / (w @ w)
    assert_close(IDGI(model).attribute(x, target=1), expected, rtol=0, atol=1e-12)


# --- blur -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 9), (4, 2, 7), (4, 3, 6, 5), (4, 2, 4, 3, 5), (4, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.5, 8.0])
def test_blur_is_scipys(shape, sigma):
    x = draw(*shape)
    found = ScaleSpace(x).blur(draw(4).fill_(sigma), torch.arange(4))
    assert_close(found, blur(x, sigma), rtol=0, atol=1e-10)
    if sigma >= 2.5:  # where the kernel is wide, the sampled Gaussian is as good
        widths = (0,) * min(2, len(shape) - 1) + (sigma,) * (len(shape) - min(2, len(shape) - 1))
        sampled = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), widths, mode="reflect", truncate=8))
        assert_close(found, sampled, rtol=0, atol=0.02)


def test_laws_of_blur():
    x, rows = draw(3, 2, 9, 6), torch.tensor([2, 0, 2, 1])
    scales, sigma = ScaleSpace(x), torch.tensor([0.4, 3.0, 1.5, 100.0]).double()
    found = scales.blur(sigma, rows)
    for i in range(4):  # each row has its own width
        assert_close(found[i : i + 1], ScaleSpace(x[rows[i : i + 1]]).blur(sigma[i : i + 1], torch.tensor([0])))
    assert_close(found.mean((2, 3)), x[rows].mean((2, 3)))  # nothing is lost at the edges
    assert_close(found[3], x[1].mean((1, 2), keepdim=True).expand(2, 9, 6))
    for s in (0.2, 0.5, 2.0):  # no new extremes
        once = scales.blur(draw(3).fill_(s), torch.arange(3))
        assert (once.amax((2, 3)) <= x.amax((2, 3))).all() and (once.amin((2, 3)) >= x.amin((2, 3))).all()
    twice = ScaleSpace(scales.blur(draw(3).fill_(3.0), torch.arange(3)))
    at_once = scales.blur(draw(3).fill_(5.0), torch.arange(3))
    assert_close(twice.blur(draw(3).fill_(4.0), torch.arange(3)), at_once)


def test_blurred_gradients_are_the_papers():
    """Its integral over the width of the blur, by scipy's blur and a derivative by differences, in many steps."""
    model, x, widest, steps = Wavy(25), draw(2, 1, 5, 5), 2.0, 1500
    picture = lambda z: model(z.flatten(1))
    expected = torch.zeros_like(x)
    for k in range(steps):
        sigma, h = (k + 0.5) * widest / steps, 1e-5
        here = blur(x, sigma).requires_grad_()
        (g,) = torch.autograd.grad(picture(here)[:, 1].sum(), here)
        expected -= g * (blur(x, sigma + h) - blur(x, sigma - h)) / (2 * h) * widest / steps
    found = BlurIG(picture, max_sigma=widest).attribute(x, target=1, n_steps=600)
    assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_linear_model_and_its_blurred_input():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).double(), draw(3, 2, 6, 5)
    found, delta = BlurIG(model, 3.0).attribute(x, target=1, n_steps=4, return_convergence_delta=True)
    w = model[1].weight[1].reshape(2, 6, 5).detach()
    assert_close(found, w * (x - blur(x)), rtol=0, atol=1e-10)
    assert delta.abs().max() < 1e-12


def test_constant_pictures_have_no_details():
    x = torch.rand(3, 1, 1, 1).double().expand(3, 1, 6, 6)
    assert BlurIG(Rectified()).attribute(x, target=0).abs().max() < 1e-12


# --- at any place, of several scores ----------------------------------------------------------------------


class Tower(nn.Module):
    """Tokens [B, L] -> [B, 2]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.embedding, self.mix, self.head = nn.Embedding(12, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.double()

    def top(self, here):
        return self.head(torch.tanh(self.mix(here)).mean(1))

    def forward(self, tokens):
        return self.top(self.embedding(tokens))


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("layered, plain", [(LayerGuidedIG, GuidedIG), (LayerIDGI, IDGI)])
def test_at_a_layer_it_is_the_method_of_what_comes_after(layered, plain, at_input):
    model, tokens, pad = Tower(), torch.randint(12, (5, 3)), torch.zeros(1, 3, dtype=torch.long)
    method = layered(model, model.mix if at_input else model.embedding)
    options = {"target": 1, "n_steps": 6, "return_convergence_delta": True}
    found = method.attribute(tokens, pad, **options, attribute_to_layer_input=at_input)
    assert found[0].shape == (5, 3, 4)
    here, there = model.embedding(tokens).detach(), model.embedding(pad).detach()
    assert_close(found, plain(model.top).attribute(here, there, **options))
    rise = (model(tokens) - model(pad))[:, 1]
    assert_close(found[0].sum((1, 2)) - found[1], rise.detach())


def test_layers_together():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 2)).double(), draw(3, 4)
    (found,) = LayerIDGI(model, [model[1]]).attribute(x, target=0, n_steps=5)
    assert_close(found, LayerIDGI(model, model[1]).attribute(x, target=0, n_steps=5))


METHODS = {
    "guided": GuidedIG,
    "important": IDGI,
    "important on a guided path": partial(IDGI, path=partial(guided_path, max_dist=0.5)),
    "blurred": BlurIG,
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every
def test_several_scores_at_once(method):
    model, x = Rectified(), draw(4, 1, 6, 6)
    method = method(model)
    alone = [method.attribute(x, target=t, n_steps=5, return_convergence_delta=True) for t in range(3)]
    a, delta = method.attribute(x, target=Each(), n_steps=5, return_convergence_delta=True)
    assert_close(a, torch.stack([one for one, _ in alone], 1), rtol=0, atol=1e-12)
    assert_close(delta, torch.stack([d for _, d in alone], 1), rtol=0, atol=1e-12)
    some = method.attribute(x, target=Each([2, [0, 1, 2, 0], lambda out: out[:, 1]]), n_steps=5)
    assert_close(some[:, [0, 2]], a[:, [2, 1]], rtol=0, atol=1e-12)
    assert_close(some[:, 1], a[torch.arange(4), [0, 1, 2, 0]], rtol=0, atol=1e-12)


@every
def test_a_neuron_is_a_score(method):
    model, x = Rectified(), draw(4, 1, 6, 6)
    found = method(model).attribute(x, target=Neuron(Layer(model.conv), (2, 1, 1)), n_steps=5)
    alone = method(lambda z: model.conv(z)[:, 2, 1, 1]).attribute(x, n_steps=5)
    assert_close(found, alone, rtol=0, atol=1e-12)
    assert found.abs().max() > 0


@every
def test_passes(method):
    """One gradient for each node of each example, in batches as large as they may be."""
    model, x, sizes = Rectified(), draw(4, 1, 6, 6), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found = method(model).attribute(x, target=0, n_steps=9)
    assert sum(sizes) == 40
    sizes.clear()
    assert_close(method(model).attribute(x, target=0, n_steps=9, internal_batch_size=3), found, rtol=0, atol=1e-12)
    assert sum(sizes) == 40 and max(sizes) == 3


# --- noise around it --------------------------------------------------------------------------------------


class Recorded:
    """A method that keeps what it was asked about, and what it said."""

    def __init__(self, method):
        self.method, self.forward_func, self.asked, self.said = method, method.forward_func, [], []
        self.has_convergence_delta, self.multiplies_by_inputs = method.has_convergence_delta, True

    def attribute(self, inputs, **options):
        self.asked.append(inputs)
        self.said.append(self.method.attribute(inputs, **options))
        return self.said[-1]


@pytest.mark.parametrize("method", [IntegratedGradients, *METHODS.values()], ids=["integrated", *METHODS])
def test_smoothed_is_the_mean_over_noisy_inputs(method):
    model, x = Rectified(), draw(3, 1, 6, 6)
    recorded = Recorded(method(model))
    options = {"nt_samples": 8, "stdevs": 0.2, "seed": 7, "target": 1, "n_steps": 4}
    found = NoiseTunnel(recorded).attribute(x, nt_samples_batch_size=3, **options)
    noisy = torch.cat([t.unflatten(0, (3, -1)) for t in recorded.asked], 1)
    assert noisy.shape == (3, 8, 1, 6, 6) and (noisy - x[:, None]).std() == pytest.approx(0.2, rel=0.1)
    each = [method(model).attribute(noisy[:, s], target=1, n_steps=4) for s in range(8)]
    assert_close(found, torch.stack(each).mean(0), rtol=0, atol=1e-12)
    assert_close(NoiseTunnel(method(model)).attribute(x, **options), found, rtol=0, atol=1e-12)  # drawn by key


def test_smoothed_integrated_gradients_add_up_to_the_mean_rise():
    model, x = Wavy(), draw(3, 8)
    recorded = Recorded(IDGI(model))
    found = NoiseTunnel(recorded).attribute(x, nt_samples=6, stdevs=0.3, seed=1, target=2, n_steps=4)
    noisy = recorded.asked[0].detach()
    rise = (model(noisy) - model(torch.zeros_like(noisy)))[:, 2].unflatten(0, (3, 6)).mean(1)
    assert_close(found.sum(1), rise.detach(), rtol=0, atol=1e-12)


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda: GuidedIG(Wavy(), fraction=0), ["fraction", "above 0", "got 0"]),
        (lambda: GuidedIG(Wavy(), fraction=1.5), ["fraction", "at most 1", "1.5"]),
        (lambda: LayerGuidedIG(Wavy(), nn.Identity(), max_dist=-0.1), ["max_dist", "between 0", "-0.1"]),
        (lambda: GuidedIG(Wavy(), anchors=1.5), ["anchors", "whole number", "1.5"]),
        (lambda: GuidedIG(Wavy(), anchors=5).attribute(draw(2, 8), target=0, n_steps=5), ["5 anchors", "6 steps"]),
        (lambda: BlurIG(Wavy(), 0), ["max_sigma", "positive", "got 0"]),
        (lambda: BlurIG(Wavy(), float("inf")), ["max_sigma", "inf"]),
        (lambda: IDGI(Wavy()).attribute(draw(2, 8), target=0, n_steps=0), ["n_steps", "at least 1", "got 0"]),
        (lambda: BlurIG(Wavy()).attribute(draw(2, 8), target=0, n_steps=2.5), ["n_steps", "2.5"]),
    ],
)
def test_mistakes(ask, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        ask()
    told(caught.value, words)

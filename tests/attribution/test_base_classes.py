"""Methods of a user's own, written for captum's base classes, run on ours as they are and say the same."""

import captum.attr
import pytest
import torch
from test_captum_properties import CNN, MLP, Two, leaves
from torch import nn
from torch.testing import assert_close

from robustx import attribution
from robustx.attribution import (
    GradientAttribution,
    IntegratedGradients,
    LayerAttribution,
    LayerIntegratedGradients,
    NeuronAttribution,
    NeuronGradient,
    PerturbationAttribution,
    Saliency,
)

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")


def halfway(room):
    """The gradient half of the way from the baselines, times the way."""

    class Halfway(room.GradientAttribution):
        def __init__(self, forward_func, share=0.5):
            room.GradientAttribution.__init__(self, forward_func)
            self.share = share

        def has_convergence_delta(self):
            return True

        def attribute(self, inputs, baselines=0.0, target=None, additional_forward_args=None):
            one = isinstance(inputs, torch.Tensor)
            ends = (inputs,) if one else inputs
            starts = tuple(t * 0 + b for t, b in zip(ends, (baselines,) if one else baselines, strict=True))
            points = tuple((a + self.share * (b - a)).requires_grad_() for a, b in zip(starts, ends, strict=True))
            grads = self.gradient_func(self.forward_func, points, target, additional_forward_args)
            found = tuple(g * (b - a) for g, a, b in zip(grads, starts, ends, strict=True))
            delta = self.compute_convergence_delta(
                found[0] if one else found,
                baselines,
                inputs,
                additional_forward_args=additional_forward_args,
                target=target,
            )
            return found[0] if one else found, delta

    return Halfway


def scaled_activation(room):
    """What the layer makes of the inputs, times a factor, watched by a hook of its own."""

    class ScaledActivation(room.LayerAttribution):
        def __init__(self, forward_func, layer, device_ids=None, factor=2.0):
            room.LayerAttribution.__init__(self, forward_func, layer, device_ids)
            self.factor = factor

        def attribute(self, inputs):
            seen = []
            hook = self.layer.register_forward_hook(lambda _, args, out: seen.append(out.detach()))
            try:
                self.forward_func(inputs)
            finally:
                hook.remove()
            assert self.device_ids is None
            return self.interpolate(seen[0] * self.factor, (7, 9), "bilinear")

    return ScaledActivation


def unit(room):
    """The slope of a unit of the layer, by the user's own pass."""

    class Unit(room.NeuronAttribution):
        def attribute(self, inputs, neuron_selector):
            seen, x = [], inputs.clone().requires_grad_()
            hook = self.layer.register_forward_hook(lambda _, args, out: seen.append(out))
            self.forward_func(x)
            hook.remove()
            return torch.autograd.grad(seen[0][:, neuron_selector].sum(), x)[0]

    return Unit


ROOMS = (attribution, captum.attr)


@pytest.mark.parametrize("model", [MLP, CNN, Two])
@pytest.mark.parametrize("form", ["number", "row", "rows"])
def test_a_gradient_method(model, form):
    net = model("classes")
    given = tuple(torch.randn(3, *s) for s in model.shapes)
    start = {"number": [0.5] * 2, "row": [t[:1] * 0.1 for t in given], "rows": [t.flip(0) for t in given]}[form]
    single = len(given) == 1
    given, start = (given[0], start[0]) if single else (given, tuple(start[: len(given)]))
    further = (torch.randn(3, 1), 2.0)
    answers = [halfway(room)(net).attribute(given, start, [0, 3, 1], further) for room in ROOMS]
    for ours, theirs in zip(*map(leaves, answers), strict=True):
        assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
        assert theirs.any()


def test_what_is_set_on_an_instance():
    """``forward_func`` and ``gradient_func`` are the user's to replace."""
    net, x = MLP("classes"), torch.randn(3, 5)

    def doubled(forward_fn, inputs, target_ind=None, additional_forward_args=None):
        with torch.enable_grad():
            out = forward_fn(*inputs if isinstance(inputs, tuple) else (inputs,))
            return tuple(2 * g for g in torch.autograd.grad(out[:, target_ind].sum(), inputs))

    for make, options in ((lambda r: r.Saliency(net), {}), (lambda r: r.IntegratedGradients(net), {"n_steps": 5})):
        ours, theirs = (make(room) for room in ROOMS)
        plain = ours.attribute(x, target=1, **options)
        for method in (ours, theirs):
            method.gradient_func = doubled
        found, expected = (method.attribute(x, target=1, **options) for method in (ours, theirs))
        assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
        assert_close(found, 2 * plain)
        ours.forward_func = lambda x: net(x) * 3
        assert_close(ours.attribute(x, target=1, **options), 6 * plain)


@pytest.mark.parametrize("target", [[0, 3, 1], torch.tensor([0, 3, 1]), 1, (1,)], ids=str)
def test_what_a_gradient_function_is_told(target):
    """Targets and tensors with a row for each example follow them; lists, numbers and words are passed on."""
    net, x, more = MLP("classes"), torch.randn(3, 5), torch.randn(3, 1)

    def model(x, more, factors, word):
        assert factors == [2.0, 0.5] and word == "word"
        return net(x, more, factors[0] * factors[1])

    def ask(room, **options):
        method = room.IntegratedGradients(model)
        own = method.gradient_func
        method.gradient_func = lambda *args, **kwargs: tuple(3 * g for g in own(*args, **kwargs))
        return method.attribute(x, 0.5, target, (more, [2.0, 0.5], "word"), n_steps=4, **options)

    theirs = ask(captum.attr).detach()
    for size in (None, 1, 5):
        assert_close(ask(attribution, internal_batch_size=size), theirs, rtol=1e-5, atol=1e-6)


def test_a_layer_method():
    net, x = CNN("classes"), torch.randn(2, 2, 6, 6)
    ours, theirs = (scaled_activation(room)(net, net.layer).attribute(x) for room in ROOMS)
    assert_close(ours, theirs)
    assert ours.shape == (2, 3, 7, 9)


def test_a_neuron_method():
    net, x = MLP("classes"), torch.randn(3, 5)
    ours, theirs = (unit(room)(net, net.layer).attribute(x, 4) for room in ROOMS)
    assert_close(ours, theirs)
    assert_close(ours, NeuronGradient(net, net.layer).attribute(x, 4))


def test_a_noise_tunnel_over_ones_own():
    net, x = MLP("classes"), torch.randn(3, 5)

    class Mine(GradientAttribution):
        def attribute(self, inputs, target=None):
            return self.gradient_func(self.forward_func, inputs.requires_grad_(), target)[0]

    found = attribution.NoiseTunnel(Mine(net)).attribute(x, stdevs=0.2, target=1, seed=0)
    slopes = attribution.NoiseTunnel(Saliency(net)).attribute(x, stdevs=0.2, target=1, abs=False, seed=0)
    assert_close(found, slopes)


@pytest.mark.parametrize("axes, to, mode", [(3, 9, "linear"), (3, (4,), "nearest"), (4, (5, 7), "bicubic")])
@pytest.mark.parametrize("of", [LayerAttribution, LayerIntegratedGradients])
def test_interpolation(of, axes, to, mode):
    a = torch.randn(2, 3, *(6,) * (axes - 2))
    assert_close(of.interpolate(a, to, mode), captum.attr.LayerAttribution.interpolate(a, to, mode))


def test_what_the_base_classes_keep():
    net = CNN("classes")
    for cls in (LayerIntegratedGradients, NeuronGradient):
        method = cls(net, net.layer, [0])
        assert method.forward_func is net and method.layer is net.layer and method.device_ids == [0]
    assert LayerIntegratedGradients(net, [net.layer, net.act]).layer == [net.layer, net.act]
    with pytest.raises(TypeError, match="layer must be a module of the model"):
        NeuronGradient(net, [net.layer, net.act])
    with pytest.raises(TypeError, match="layer must be a module of the model"):
        LayerIntegratedGradients(net, "layer")


@pytest.mark.parametrize("base", [GradientAttribution, PerturbationAttribution, LayerAttribution, NeuronAttribution])
def test_a_method_without_attribute_is_none(base):
    with pytest.raises(TypeError, match="abstract"):
        base(*[nn.Linear(1, 1)] * (1 if base in (GradientAttribution, PerturbationAttribution) else 2))


def test_get_name_of_ones_own():
    assert halfway(attribution).get_name() == halfway(captum.attr).get_name() == "Halfway"
    assert IntegratedGradients.get_name() == captum.attr.IntegratedGradients.get_name() == "Integrated Gradients"

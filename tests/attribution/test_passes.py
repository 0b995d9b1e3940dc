"""What a method costs, counted and not timed: rows through the model, and tensors held at once, beside captum's."""

import captum.attr
import pytest
import torch
from contest import Held, apart, count, peak
from torch import nn

from robustx import attribution
from robustx.engine.memory import CPU_BUDGET

pytestmark = [  # captum's
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (
        "Input Tensor .* did not already require gradients",
        "Setting forward, backward hooks and attributes",
        "Setting backward hooks on ReLU activations",
        "The neuron_selector provided is a callable",
    )
]

B, S, R = 4, 6, 3  # examples, steps (or samples), references


class Chain(nn.Module):
    """[B, 5] -> [B, 4]; every activation a module of its own, which captum's DeepLift asks for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(5, 8), nn.Linear(8, 4)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), self.layer, nn.ReLU(), self.head)

    def forward(self, x):
        return self.body(x)


def unit(out):
    return out[:, 1]


STEPS, REFERENCES = {"n_steps": S}, {"baselines": torch.rand(R, 5)}
SAMPLES = REFERENCES | {"n_samples": S}
NOISY = SAMPLES | {"stdevs": 0.1}
COSTS = [
    ("Saliency", {}, 1, 1),
    ("InputXGradient", {}, 1, 1),
    ("GuidedBackprop", {}, 1, 1),
    ("Deconvolution", {}, 1, 1),
    ("IntegratedGradients", STEPS, S, S),
    ("GradientShap", SAMPLES, S, S),
    ("GradientShap", NOISY, S, S),
    ("DeepLift", {}, 1 + 1 / B, 1),  # the reference is one for all
    ("DeepLiftShap", REFERENCES, 1 + R / B, R),
    ("LayerActivation", None, 1, 0),
    ("LayerGradientXActivation", {}, 1, 1),
    ("LayerGradCam", {}, 1, 1),
    ("LayerIntegratedGradients", STEPS, S + 2, S),
    ("LayerConductance", STEPS, S + 1, S + 1),
    ("InternalInfluence", STEPS, S, S),
    ("LayerDeepLift", {}, 1 + 1 / B, 1),
    ("LayerDeepLiftShap", REFERENCES, 1 + R / B, R),
    ("LayerGradientShap", SAMPLES, S + 1 + R / B, S),  # each input and each reference is read at the layer once
    ("LayerGradientShap", NOISY, 2 * S + R / B, S),
    ("NeuronGradient", None, 1, 0),  # gradients start at the neuron, not at the output
    ("NeuronIntegratedGradients", STEPS, S, 0),
    ("NeuronConductance", STEPS, S, S),
]


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("name, options, forward, backward", COSTS)
def test_rows_through_the_model(name, options, forward, backward, delta):
    """For each example, exactly these, and never more than captum's."""
    model, x, counted = Chain(), torch.randn(B, 5), []
    for room in (attribution, captum.attr):
        method = getattr(room, name)
        method = method(model, *[model.layer] * name.startswith(("Layer", "Internal", "Neuron")))
        if delta and not method.has_convergence_delta():
            return
        at = {"neuron_selector": unit} if name.startswith("Neuron") else {}
        at |= {"target": 1} if options is not None and name != "NeuronIntegratedGradients" else {}
        at |= {"return_convergence_delta": True} if delta else {}
        torch.manual_seed(3)
        counted.append(count(model, lambda m=method, at=at: m.attribute(x, **at, **(options or {})))[0])
    ours, theirs = counted
    if not delta:
        assert (ours.forward / B, ours.backward / B) == (forward, backward)
    assert ours.forward <= theirs.forward
    assert ours.backward <= theirs.backward


def test_pictures_as_wide_as_the_batch_are_read_once():
    """Only what may have the batch second is read again, to tell which it is."""
    model, x = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(64, 2)), torch.rand(4, 1, 4, 4)
    assert count(model, lambda: attribution.LayerActivation(model, model[0]).attribute(x))[0].forward == 4


def test_equal_rows_with_arguments_of_their_own_are_asked_apart():
    """Where a further argument follows the examples, equal inputs of two examples are two questions."""

    class Shifted(Chain):
        def forward(self, x, shift):
            return self.head(torch.tanh(self.layer(x + shift)))

    model, x, shift = Shifted(), torch.zeros(B, 5), torch.randn(B, 5)
    at = {"baselines": torch.ones(R, 5), "target": 1, "n_samples": S}
    found = attribution.LayerGradientShap(model, model.layer).attribute(x, additional_forward_args=shift, seed=0, **at)
    one = attribution.LayerGradientShap(model, model.layer)
    for i in range(B):
        alone = one.attribute(x[i : i + 1], additional_forward_args=shift[i : i + 1], seed=0, **at)
        assert apart(alone, found[i : i + 1]) < 1e-5


class Wide(nn.Module):
    """[B, 3, 32, 32] -> [B, 4]; cheap, and all activations."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        convolutions = [m for a in (3, 32, 32) for m in (nn.Conv2d(a, 32, 1), nn.ReLU())]
        self.layer = convolutions[4]
        self.body = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))

    def forward(self, x):
        return self.body(x)


def tunnel(room, model):
    return room.NoiseTunnel(room.IntegratedGradients(model))


HEAVY = {
    "IntegratedGradients": (8, lambda room, m, x: room.IntegratedGradients(m).attribute(x, target=1)),
    "GradientShap": (96, lambda room, m, x: room.GradientShap(m).attribute(x, x[:5], target=1)),
    "NoiseTunnel": (2, lambda room, m, x: tunnel(room, m).attribute(x, target=1, stdevs=0.1)),
    "DeepLiftShap": (32, lambda room, m, x: room.DeepLiftShap(m).attribute(x, x[:5], target=1)),
    "LayerConductance": (8, lambda room, m, x: room.LayerConductance(m, m.layer).attribute(x, target=1)),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_quarter_of_the_memory_by_default(name):
    """Of the tensors held at once."""
    examples, attribute = HEAVY[name]
    model, x, answers = Wide(), torch.rand(examples, 3, 32, 32), []

    def ask(room):
        torch.manual_seed(1)
        answers.append(attribute(room, model, x))

    ours, theirs = peak(lambda: ask(attribution)), peak(lambda: ask(captum.attr))
    assert 4 * ours < theirs, f"{ours:.0f} of {theirs:.0f} MiB"
    assert [a.shape for a in answers] == [answers[0].shape] * 2


@pytest.mark.parametrize("steps", [100, 1000])
def test_memory_is_bounded_however_much_there_is_to_do(steps):
    """What is held at once keeps to the budget for all that one pass makes."""
    model, x = Wide(), torch.rand(1, 3, 32, 32)
    assert (
        peak(lambda: attribution.IntegratedGradients(model).attribute(x, target=1, n_steps=steps)) < CPU_BUDGET / 2**20
    )


def test_held_tensors_are_counted_to_the_byte():
    a = torch.zeros(10)
    with Held() as held:
        b = a + 1  # 40 bytes
        c = b[2:]  # a view
        b = b * 2  # 40 more, while c holds the first
        assert held.now == 80
        del c
        assert held.now == 40
        b += 1
        del b
    assert (held.now, held.most) == (0, 80)

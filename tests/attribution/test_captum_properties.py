"""Whatever is asked, in whatever form, the captum package in the same run answers the same, to 1e-4."""

import inspect

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from robustx import attribution

pytestmark = pytest.mark.filterwarnings("ignore")  # captum's advice


class Net(nn.Module):
    """Its last axes: classes [B, 4], maps [B, 3, 2], a column [B, 1] or one number each [B].

    Activations are modules, used once and apart from one another, and nothing is multiplied: what captum sees. The
    layer is linear, since captum's DeepLIFT leaves out a layer whose input is asked about.
    """

    def __init__(self, ends):
        super().__init__()
        self.ends, self.head = ends, nn.Linear(6, {"classes": 4, "maps": 6, "column": 1, "one": 1}[ends])

    def end(self, hidden, more, scale):
        out = self.head(hidden if more is None else hidden + more) * scale
        return {"maps": lambda: out.unflatten(1, (3, 2)), "one": lambda: out[:, 0]}.get(self.ends, lambda: out)()


class MLP(Net):
    """[B, 5]; the layer is [B, 6]."""

    shapes = ((5,),)

    def __init__(self, ends):
        super().__init__(ends)
        self.first, self.relu, self.layer, self.act = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh()

    def forward(self, x, more=None, scale=1.0):
        return self.end(self.act(self.layer(self.relu(self.first(x)))), more, scale)


class CNN(Net):
    """[B, 2, 6, 6]; the layer is [B, 3, 4, 4]."""

    shapes = ((2, 6, 6),)

    def __init__(self, ends):
        super().__init__(ends)
        self.layer, self.pool, self.second, self.act = nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Linear(12, 6), nn.ReLU()

    def forward(self, x, more=None, scale=1.0):
        return self.end(self.act(self.second(self.pool(self.layer(x)).flatten(1))), more, scale)


class Two(Net):
    """[B, 5] and [B, 2, 3]; the layer is [B, 6]."""

    shapes = ((5,), (2, 3))

    def __init__(self, ends):
        super().__init__(ends)
        self.sides = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6)])
        self.sigmoid, self.layer, self.act = nn.Sigmoid(), nn.Linear(6, 6), nn.ELU()

    def forward(self, a, b, more=None, scale=1.0):
        hidden = self.sides[0](a) + self.sides[1](b.flatten(1))
        return self.end(self.act(self.layer(self.sigmoid(hidden))), more, scale)


class Halves(nn.Module):
    def forward(self, x):
        return x[:, :2] * 2, x[:, 2:] - x[:, :1]


class Split(Net):
    """[B, 5]; the layer gives [B, 2] and [B, 3]."""

    shapes = ((5,),)

    def __init__(self, ends):
        super().__init__(ends)
        self.first, self.layer, self.second, self.act = nn.Linear(5, 5), Halves(), nn.Linear(5, 6), nn.ReLU()

    def forward(self, x, more=None, scale=1.0):
        return self.end(self.act(self.second(torch.cat(self.layer(self.first(x)), 1))), more, scale)


MODELS = (MLP, CNN, Two, Split)
NAMES = (
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "FeatureAblation",
    "GradientShap",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "IntegratedGradients",
    "InternalInfluence",
    "LayerActivation",
    "LayerConductance",
    "LayerDeepLift",
    "LayerDeepLiftShap",
    "LayerFeatureAblation",
    "LayerGradCam",
    "LayerGradientShap",
    "LayerGradientXActivation",
    "LayerIntegratedGradients",
    "NeuronConductance",
    "NeuronDeconvolution",
    "NeuronDeepLift",
    "NeuronDeepLiftShap",
    "NeuronFeatureAblation",
    "NeuronGradient",
    "NeuronGradientShap",
    "NeuronGuidedBackprop",
    "NeuronIntegratedGradients",
    "Saliency",
)
"""Noise tunnels, LRP, and further methods that need values only have tests of their own."""

CUSTOM = (
    None,
    lambda m: tuple(2 * t for t in m),
    lambda m, x: tuple(t * a for t, a in zip(m, x, strict=True)),
    lambda m, x, b: tuple(t * (a + c) for t, a, c in zip(m, x, b, strict=True)),
)
RULES = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")


class Question:
    """What is asked, drawn from all that the signatures of a class of captum's take."""

    def __init__(self, name, draw):
        self.name, self.draw = name, draw
        takes = [set(inspect.signature(f).parameters) for f in (self.theirs.__init__, self.theirs.attribute)]
        kinds = (CNN,) if name == "GuidedGradCam" else MODELS[:3] if name == "LayerGradCam" else MODELS
        kind = draw(st.sampled_from(kinds), "model")
        ends = (
            draw(st.sampled_from(["classes", "maps", "column", "one"]), "ends") if "target" in takes[1] else "classes"
        )
        torch.manual_seed(draw(st.integers(0, 99), "seed"))
        self.dtype = draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
        self.model = kind(ends).to(self.dtype)
        self.count = draw(st.integers(1, 4), "examples")
        self.tensors = [self.random(self.count, *s) for s in kind.shapes]
        self.single = len(self.tensors) == 1 and draw(st.booleans(), "single")
        self.inputs = self.tensors[0] if self.single else tuple(self.tensors)
        self.made = {"multiply_by_inputs": draw(st.booleans())} if "multiply_by_inputs" in takes[0] else {}
        self.at = () if "layer" not in takes[0] else (self.layers(draw),)
        forms = {
            "target": lambda: self.target(ends),
            "neuron_selector": lambda: self.neuron(kind),
            "baselines": lambda: self.distribution() if "Shap" in name else self.baselines(),
            "layer_baselines": lambda: draw(st.sampled_from([None, 0, 0.5])),
            "feature_mask": self.mask,
            "additional_forward_args": self.further,
            "n_steps": lambda: draw(st.integers(2, 9)),
            "method": lambda: draw(st.sampled_from(RULES)),
            "internal_batch_size": lambda: draw(st.sampled_from([None, 1, 3, 8, 50])),
            "n_samples": lambda: draw(st.integers(1, 4)),
            "stdevs": lambda: draw(st.sampled_from([0.0, 0.3, tuple(0.1 * i for i in range(len(self.tensors)))])),
            "interpolate_mode": lambda: draw(st.sampled_from(["nearest", "bilinear"])),
            "perturbations_per_eval": lambda: draw(st.sampled_from([1, 3])),
            "custom_attribution_func": lambda: draw(st.sampled_from(CUSTOM)),
            "grad_kwargs": lambda: draw(st.sampled_from([None, {"allow_unused": True}])),
        }
        flags = (
            "abs",
            "return_convergence_delta",
            "attribute_to_layer_input",
            "attribute_to_neuron_input",
            "relu_attributions",
            "attr_dim_summation",
        )
        self.asked = {k: form() for k, form in forms.items() if k in takes[1]}
        self.asked |= {k: draw(st.booleans(), k) for k in flags if k in takes[1]}

    @property
    def theirs(self):
        return getattr(captum.attr, self.name)

    def random(self, *shape):
        return torch.randn(shape).to(self.dtype)

    def layers(self, draw):
        several = self.name in ("LayerActivation", "LayerGradientXActivation", "LayerIntegratedGradients")
        if not several or draw(st.booleans(), "a layer"):
            return self.model.layer
        return list(self.model.sides) if isinstance(self.model, Two) else [self.model.layer]

    def target(self, ends):
        if ends in ("column", "one"):
            return None
        sizes = {"classes": (4,), "maps": (3, 2)}[ends]
        one = st.tuples(*(st.integers(-n, n - 1) for n in sizes))
        rows = self.draw(st.lists(one, min_size=self.count, max_size=self.count), "target")
        forms = [lambda: rows[0], lambda: rows, lambda: (slice(1, 2), *rows[0][1:])]
        if ends == "classes":
            columns = [r[0] for r in rows]
            forms += [
                lambda: columns[0],
                lambda: torch.tensor(columns[0]),
                lambda: torch.tensor(columns[:1]),
                lambda: [c % 4 for c in columns],
                lambda: torch.tensor(columns) % 4,  # gathered: captum takes none from the end
            ]
        return self.draw(st.sampled_from(forms), "form of the target")()

    def neuron(self, kind):
        shape = (2, 4, 4) if kind is CNN else (5,)  # of the layer's input as well
        place = tuple(self.draw(st.integers(0, n - 1)) for n in shape)
        forms = [lambda here: torch.cat([t.flatten(1) for t in leaves(here)], 1)[:, 3]]
        if kind is not Split:  # whose layer has two tensors
            forms += [place, (slice(0, 2), *place[1:])]
        return self.draw(st.sampled_from([*forms, place[0]] if kind in (MLP, Two) else forms), "selector")

    def further(self):
        more = self.random(self.count, 1)
        forms = [None, (more,), (more, 2.0), (None, 0.5), (more, torch.tensor(0.5))]
        if "DeepLiftShap" not in self.name:  # captum's takes a tensor for a tuple of its rows
            forms.append(more)
        return self.draw(st.sampled_from(forms), "further")

    def formed(self, parts):
        """One value for each input, as the inputs come; numbers and None may stand for all."""
        alone = self.single and self.draw(st.booleans(), "alone")
        return parts[0] if alone else tuple(parts)

    def baselines(self):
        if self.draw(st.booleans(), "none"):
            return None

        def one(t):
            forms = [0, 1, 0.5, self.random(*t.shape), self.random(1, *t.shape[1:])]
            return self.draw(st.sampled_from(forms), "baseline")

        return self.formed([one(t) for t in self.tensors])

    def mask(self):
        rows = self.draw(st.sampled_from([None, 1, self.count]), "rows of masks")
        if rows is None:
            return None
        return self.formed([torch.randint(0, 4, (rows, *t.shape[1:])) for t in self.tensors])

    def distribution(self):
        rows = self.draw(st.integers(2, 5), "rows")
        made = self.formed([self.random(rows, *t.shape[1:]) for t in self.tensors])
        return self.draw(st.sampled_from([made, lambda: made]), "distribution")

    def answer(self, room, **instead):
        """What is answered, and what the global generators give next."""
        torch.manual_seed(7)
        np.random.seed(7)
        method = getattr(room, self.name)(self.model, *self.at, **self.made)
        return method.attribute(self.inputs, **self.asked | instead), torch.rand(1), np.random.rand(1)

    def expected(self):
        """Captum's answer, mended where it is known to be wrong."""
        answer, *after = self.answer(captum.attr)
        selector, steps = self.asked.get("neuron_selector"), self.asked.get("n_steps")
        if self.name == "NeuronConductance" and isinstance(selector, tuple) and isinstance(selector[0], slice):
            # the units' sum: captum multiplies the sum of their slopes by the sum of their gradients
            units = [self.answer(captum.attr, neuron_selector=(i, *selector[1:]))[0] for i in range(2)]
            answer = sum(units) if self.single else tuple(map(sum, zip(*units, strict=True)))
        if self.asked.get("method") == "riemann_trapezoid" and self.name in SHORT:
            if self.asked.get("return_convergence_delta"):
                found, delta = answer
                missing = sum(t.flatten(1).sum(1) for t in leaves(found)) / (steps - 1)
                answer = scaled(found, steps / (steps - 1)), delta + missing
            else:
                answer = scaled(answer, steps / (steps - 1))
        return answer, *after


SHORT = ("IntegratedGradients", "LayerIntegratedGradients", "NeuronIntegratedGradients", "InternalInfluence")
"""Methods whose trapezoid weights add up to (n - 1) / n in captum."""


def scaled(v, factor):
    return v * factor if isinstance(v, torch.Tensor) else type(v)(scaled(part, factor) for part in v)


def leaves(v):
    return [v] if isinstance(v, torch.Tensor) else [t for part in v for t in leaves(part)]


def form(v):
    return tuple(v.shape) if isinstance(v, torch.Tensor) else (type(v), [form(part) for part in v])


def difference(a, b):
    """Relative to the largest element; deltas of nothing count as equal."""
    return (a - b).abs().max() / b.abs().max().clamp(min=1e-2) if len(b) else 0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_it_says_what_captum_says(name, data):
    question = Question(name, data.draw)
    (ours, *after), (theirs, *expected) = question.answer(attribution), question.expected()
    assert form(ours) == form(theirs)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert difference(a, b) <= 1e-4
        assert a.dtype == b.dtype or not len(b)
    assert after == expected


@settings(max_examples=80)
@given(data=st.data())
def test_noise_tunnels_say_what_captums_say(data):
    """Over any method, whatever that is asked; but for what captum's answers differently without noise."""
    name = data.draw(st.sampled_from([n for n in NAMES if "Shap" not in n]), "name")
    question = Question(name, data.draw)
    asked = question.asked | ({"method": "riemann_left"} if "method" in question.asked else {})
    selector = asked.get("neuron_selector")
    assume(not (name == "NeuronConductance" and isinstance(selector, tuple) and isinstance(selector[0], slice)))
    assume(not any(isinstance(layer, list) for layer in question.at))
    kind = data.draw(st.sampled_from(["smoothgrad", "smoothgrad_sq", "vargrad"]), "kind")
    assume(question.dtype is torch.float64 or kind != "vargrad")  # captum's has few digits left
    count = data.draw(st.integers(2, 4), "samples")
    asked["nt_samples_batch_size"] = data.draw(st.sampled_from([None, 1, 2, count]), "at once")
    whole = asked["nt_samples_batch_size"] in (None, count)
    if "return_convergence_delta" in asked:
        asked["return_convergence_delta"] &= whole  # captum's deltas stand batch by batch
    stdevs = data.draw(st.sampled_from([0.3, (0.2, 1.0)[: len(question.tensors)]]), "stdevs")

    def answer(room):
        torch.manual_seed(7)
        method = room.NoiseTunnel(getattr(room, name)(question.model, *question.at, **question.made))
        return method.attribute(question.inputs, kind, count, stdevs=stdevs, **asked), torch.rand(1)

    (ours, after), (theirs, expected) = answer(attribution), answer(captum.attr)
    assert form(ours) == form(theirs)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert difference(a, b) <= 1e-4
    assert after == expected


@pytest.mark.parametrize("layer", [False, True], ids=["a ReLU before a pool", "into a ReLU"])
def test_where_captum_loses_the_sum(layer):
    """DeepLIFT's contributions add up to the rise, where captum's do not."""
    relu = nn.ReLU()
    pool = [] if layer else [nn.MaxPool2d(2)]
    model = nn.Sequential(nn.Conv2d(2, 3, 3), relu, *pool, nn.Flatten(), nn.Linear(48 if layer else 12, 4)).double()
    x, start = torch.randn(3, 2, 6, 6).double(), torch.randn(1, 2, 6, 6).double()
    missing = []
    for room in (attribution, captum.attr):
        method = room.LayerDeepLift(model, relu) if layer else room.DeepLift(model)
        options = {"attribute_to_layer_input": True} if layer else {}
        found = method.attribute(x, start, target=1, **options)
        missing.append((found.flatten(1).sum(1) - (model(x) - model(start))[:, 1]).abs().max())
    assert missing[0] < 1e-12 and missing[1] > 1e-2


MISTAKES = {
    "target": (None, 9, -9, (1, 1), (9,), [0, 1], [(0,), (1,)], torch.zeros(2).long(), torch.zeros(3, 2).long(), "1"),
    "baselines": (torch.zeros(2, 4), (torch.zeros(1, 5),) * 2, "zero", [0.5, 0.5]),
    "method": ("trapezoid", None),
    "n_steps": (-1,),
    "neuron_selector": (9, (9,), (1, 2), (1, 2, 3)),
    "perturbations_per_eval": (0, -1, 2.5, "all"),
    "inputs": ("inputs", (1.0,), torch.zeros(3, 5).numpy()),
}


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_caught_as_captums(name):
    """What is an AssertionError or an IndexError there is one here as well."""
    theirs = getattr(captum.attr, name)
    model, given = (
        (CNN("classes"), torch.randn(3, 2, 6, 6)) if "GradCam" in name else (MLP("classes"), torch.randn(3, 5))
    )
    at = (model.layer,) if "layer" in inspect.signature(theirs.__init__).parameters else ()
    takes = inspect.signature(theirs.attribute).parameters
    right = {
        "inputs": given,
        "target": 1,
        "neuron_selector": 2,
        "baselines": torch.zeros(2, *given.shape[1:]) if "Shap" in name else None,
    }
    right = {k: v for k, v in right.items() if k in takes}

    def raised(room, **wrong):
        try:
            getattr(room, name)(model, *at).attribute(**right | wrong)
        except Exception as e:
            return type(e)

    assert raised(attribution) is raised(captum.attr) is None
    told = 0
    for argument in MISTAKES.keys() & takes.keys():
        for value in MISTAKES[argument]:
            ours, expected = (raised(room, **{argument: value}) for room in (attribution, captum.attr))
            if expected in (AssertionError, IndexError):
                assert ours is not None and issubclass(ours, expected), (argument, value, ours, expected)
                assert issubclass(ours, ValueError | TypeError)
                told += 1
    assert told >= 2 or name == "LayerActivation"  # it has no argument that can be wrong

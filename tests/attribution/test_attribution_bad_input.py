"""A mistake gets one clear sentence: which argument, what came, what was expected, the way out."""

import pytest
import torch
from attribution_cases import CASES, Net, Pair, inputs_of
from models import Bare, NotANumber, Rounding
from models import Pair as ReturnsAPair
from told import told
from torch import nn

from robustx.attribution import (
    FeatureAblation,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from robustx.engine import Layer, ModelError, NonFiniteError, OutputError, TargetError

every = pytest.mark.parametrize("case", CASES, ids=str)
targeted = pytest.mark.parametrize("case", [c for c in CASES if c.target == "target"], ids=str)
nan, inf = float("nan"), float("inf")


def spoilt(x, value):
    x = x.clone()
    x[1, 0, 1, 1] = value
    return x


X = inputs_of(Net())[0]
INPUTS = {
    "a wrong shape": (torch.ones(2, 5).double(), ModelError, ", 5)", "batch first"),
    "a wrong dtype": (X.float(), ModelError, "float32", "parameters are float64", ".to("),
    "NaN": (spoilt(X, nan), NonFiniteError, "NaN", "example 1"),
    "infinity": (spoilt(X, inf), NonFiniteError, "infinity", "example 1"),
    "no batch": (torch.tensor(1.0), ValueError, "batch axis", "x[None]"),
    "no tensor": ([[1.0, 2.0]], TypeError, "list", "tensor"),
    "a number": (3.0, TypeError, "float", "tensor"),
    "nothing": ((), ValueError, "none"),
    "different lengths": ((X, X[:2]), ValueError, "first axis", "(2, 2, 3, 3)"),
}


UNEVEN = "FeatureAblation", "ShapleyValueSampling", "ShapleyValues"  # leave it to the model what belongs to what


@every
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(case, name):
    given, error, *words = INPUTS[name]
    if name == "different lengths" and case.method.__name__ in UNEVEN:
        error, words = TypeError, ["positional argument"]
    with pytest.raises(error) as caught:
        case(Net(), given)
    told(caught.value, words)


def trained(layer):
    model = Net()
    model.first = nn.Sequential(nn.Linear(12, 8), layer).double()
    return model.train()


class Counting(Net):
    def forward(self, x):
        return super().forward(x.double())


@pytest.mark.parametrize("case", [c for c in CASES if c.at_input and c.meets("gradient")], ids=str)
def test_integers_have_no_gradient(case):
    with pytest.raises(TypeError) as caught:
        case(Counting(), X.long())
    told(caught.value, ["int64", "additional_forward_args"])


TRAINED = {"dropout": (nn.Dropout(), "Dropout"), "batch norm": (nn.BatchNorm1d(8), "BatchNorm1d")}


@every
@pytest.mark.parametrize("name", TRAINED)
def test_models_in_train_mode(case, name):
    layer, word = TRAINED[name]
    with pytest.raises(ValueError, match="train mode") as caught:
        case(trained(layer), X)
    told(caught.value, ["train mode", word, "model.eval()"])


class Wrapped(nn.Module):
    """A model made of another one's output, with a layer to name."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = Net(), change
        self.layer = self.net.layer

    def forward(self, x):
        return self.change(self.net(x))


OUTPUTS = {
    "a tuple": (lambda out: (out, out), OutputError, "tuple of 2", "model(x)[0]"),
    "NaN": (lambda out: out * nan, NonFiniteError, "output", "example 0", "rows"),
    "rows lost": (lambda out: out[1:], OutputError, ", 4)", "rows", "batch must come first"),
}


@targeted
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(case, name):
    change, error, *words = OUTPUTS[name]
    with pytest.raises(error) as caught:
        case(Wrapped(change), X)
    told(caught.value, words)


class Cut(Net):
    def forward(self, x):
        return super().forward(x.detach()).detach()


@pytest.mark.parametrize("case", [c for c in CASES if c.meets("gradient") and c.meets("words")], ids=str)
def test_models_without_a_gradient(case):
    with pytest.raises(ModelError) as caught:
        case(Cut(), X)
    told(caught.value, ["no gradient", "detach", "values only"])


def test_models_without_a_gradient_can_be_ablated():
    x = torch.tensor([[0.31, 0.52]], dtype=torch.float64)
    found = FeatureAblation(Rounding()).attribute(x, target=1)
    assert found.tolist() == [[0.0, 5.0]]
    assert FeatureAblation(Bare()).attribute(x.detach(), target=0).shape == (1, 2)


TARGETS = {
    "too large": (7, "7", ", 4)"),
    "negative beyond": (-5, "-5", ", 4)"),
    "too few": ([0, 1], "2 targets", "5 examples"),
    "too many": (torch.zeros(9, dtype=torch.long), "9 targets", "5 examples"),
    "of floats": (torch.tensor([0.5] * 5), "float32", "integers"),
    "a matrix": (torch.zeros(5, 2, dtype=torch.long), "(5, 2)"),
    "too deep": ((1, 2), "(1, 2)", ", 4)"),
    "a word": ("first", "str"),
    "one of several too large": ([0, 1, 2, 3, 4], ", 4)"),
}


@targeted
@pytest.mark.parametrize("name", TARGETS)
def test_targets(case, name):
    target, *words = TARGETS[name]
    with pytest.raises(TargetError) as caught:
        case(Net(), X, target)
    told(caught.value, words)


@pytest.mark.parametrize("case", [c for c in CASES if c.target == "target" and c.meets("one")], ids=str)
def test_no_target_for_several_numbers(case):
    with pytest.raises(TargetError, match="Target not provided when necessary.*multiple outputs"):
        case(Net(), X, None)


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("neuron_selector")], ids=str)
@pytest.mark.parametrize(
    "selector, words",
    [((6, 0, 0), ["6"]), ((1, 1), ["2 indices", "3 axes"]), (1, ["1 indices"]), ("first", ["first"])],
)
def test_neurons(case, selector, words):
    with pytest.raises(TargetError) as caught:
        case(Net(), X, neuron_selector=selector)
    told(caught.value, ["neuron_selector", *words])


def test_layers():
    model, other = Net(), nn.Linear(8, 6).double()
    with pytest.raises(ValueError, match="called 0 times"):
        LayerIntegratedGradients(model, other).attribute(X, target=1)
    with pytest.raises(ValueError, match="called 1 times"):
        LayerIntegratedGradients(model, Layer(model.layer, call=1)).attribute(X, target=1)
    with pytest.raises(TypeError, match=r"layer must be a module.*'layer'"):
        LayerIntegratedGradients(model, "layer")


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("baselines")], ids=str)
@pytest.mark.parametrize(
    "baselines, error, words",
    [
        (torch.zeros(1, 2, 3, 2), ValueError, ["(1, 2, 3, 2)"]),
        ((0, 0), ValueError, ["1 inputs", "2"]),
        ("black", TypeError, ["str"]),
        ({"x": 0}, ValueError, ["x"]),
    ],
)
def test_baselines(case, baselines, error, words):
    with pytest.raises(error) as caught:
        case(Net(), X, baselines=baselines)
    told(caught.value, ["baselines", *words])


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("baselines") and not c.distribution], ids=str)
def test_numbers_of_baselines(case):
    with pytest.raises(ValueError, match="baselines") as caught:
        case(Net(), X, baselines=torch.zeros(3, 2, 3, 3))
    told(caught.value, ["(3, 2, 3, 3)", *(["(5, 2, 3, 3)", "[1, ...] or [5, ...]"] if case.over is None else [])])


@every
@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_batch_sizes(case, size):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        case(Net(), X, **{case.chunk: size})
    told(caught.value, ["whole number of at least 1", repr(size)])


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("method")], ids=str)
@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "simpson"}, ["method", "'simpson'", "'gausslegendre'", "'riemann_trapezoid'"]),
        ({"n_steps": 0, "method": "gausslegendre"}, ["n_steps", "at least 1", "0"]),
        ({"n_steps": 2.5}, ["n_steps", "whole number", "2.5"]),
    ],
)
def test_rules(case, options, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        case(Net(), X, **options)
    told(caught.value, words)


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("method") and c.meets("ends")], ids=str)
def test_a_trapezoid_has_two_ends(case):
    with pytest.raises(ValueError, match="n_steps must be a whole number of at least 2, got 1"):
        case(Net(), X, n_steps=1, method="riemann_trapezoid")


@pytest.mark.parametrize(
    "model, mask, words",
    [
        (Net, torch.zeros(2, 3, 3), ["integers", "float32", "mask.long()"]),
        (Net, torch.zeros(4, 4, dtype=torch.long), ["(4, 4)", "(5, 2, 3, 3)"]),
        (Net, (torch.zeros(3, dtype=torch.long),) * 2, ["1 inputs", "2"]),
        (Pair, torch.zeros(1, 5, dtype=torch.long), ["2 inputs", "1"]),
        (Net, {"x": torch.zeros(3, dtype=torch.long)}, ["x", "no dict"]),
    ],
)
def test_masks(model, mask, words):
    model = model()
    given = inputs_of(model)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        FeatureAblation(model).attribute(given if len(given) > 1 else given[0], target=1, feature_mask=mask)
    told(caught.value, ["feature_mask", *words])


class Nothing(int):
    """No model, though there is a layer to name."""

    layer = nn.Linear(1, 1)


@every
def test_no_model(case):
    with pytest.raises(TypeError, match="forward_func must be callable, got Nothing"):
        case.bind(Nothing())


def test_nan_on_the_way_is_told_about():
    x = torch.tensor([[0.5, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="NaN"):
        IntegratedGradients(NotANumber()).attribute(x, -x, target=0)
    with pytest.raises(OutputError, match="tuple of 2"):
        FeatureAblation(ReturnsAPair()).attribute(x)


def test_what_captum_would_pass_to_autograd():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    method, x = LayerIntegratedGradients(model, model[0]), torch.rand(2, 3)
    plain = method.attribute(x, target=0)
    assert torch.equal(method.attribute(x, target=0, grad_kwargs={"allow_unused": True}), plain)
    with pytest.raises(ValueError, match="grad_kwargs may hold 'allow_unused' alone, got retain_graph"):
        method.attribute(x, target=0, grad_kwargs={"retain_graph": True})

"""The captum package, in the same run: the same numbers to 1e-5, the same forms, the same names."""

import inspect

import captum.attr
import pytest
import torch
from test_captum_properties import NAMES
from torch import nn
from torch.testing import assert_close

from robustx import attribution

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Internal batch size cannot be less than the number of input examples"),
]

GRADIENTS = ("Saliency", "IntegratedGradients")
INPUTS = (*GRADIENTS, "FeatureAblation")


class MLP(nn.Module):
    """[B, 5] -> [B, 4]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
        self.layer = self.body[2]
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x))


class CNN(nn.Module):
    """[B, 2, 6, 6] -> [B, 4]; batch norm, pooling, a functional activation."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 4)
        nn.init.uniform_(self.norm.running_mean)

    def forward(self, x):
        return self.head(nn.functional.max_pool2d(torch.relu(self.norm(self.layer(x))), 2).flatten(1))


class Maps(nn.Module):
    """[B, 5] -> [B, 3, 2]."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x))).unflatten(1, (3, 2))


class Two(nn.Module):
    """[B, 5], [B, 2, 3], a number for each example, a scale for all -> [B, 4]."""

    def __init__(self):
        super().__init__()
        self.a, self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, a, b, shift=0.0, scale=1.0):
        return self.head(torch.tanh(self.a(a)) * torch.tanh(self.layer(b.flatten(1))) + shift) * scale


class Tokens(nn.Module):
    """Token ids [B, 6] -> [B, 4]; an embedding and an LSTM."""

    def __init__(self):
        super().__init__()
        self.layer, self.lstm, self.head = nn.Embedding(12, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, ids):
        return self.head(self.lstm(self.layer(ids))[0][:, -1])


SHAPES = {MLP: [(5,)], CNN: [(2, 6, 6)], Maps: [(5,)], Two: [(5,), (2, 3)]}


def built(model, dtype=torch.float32):
    torch.manual_seed(0)
    return model().to(dtype).eval()


def given(model, count=4, dtype=torch.float32):
    """Random inputs: a tensor, or a tuple of two."""
    torch.manual_seed(1)
    if model is Tokens:
        return torch.randint(1, 12, (count, 6))
    tensors = tuple(torch.randn(count, *s).to(dtype) for s in SHAPES[model])
    return tensors if len(tensors) > 1 else tensors[0]


def both(name, model, *args, at=(), **kwargs):
    """What we say and what captum says, with the same words."""
    layer = (model.layer,) if "Layer" in name or "Neuron" in name else ()
    return [getattr(room, name)(model, *layer, *at).attribute(*args, **kwargs) for room in (attribution, captum.attr)]


def assert_same(ours, theirs, tolerance=1e-5):
    assert type(ours) is type(theirs)
    for a, b in zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (ours, theirs)), strict=True):
        assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)
        assert b.abs().sum() > 0


def assert_agree(*args, **kwargs):
    ours, theirs = both(*args, **kwargs)
    assert_same(ours, theirs)


# --- names ------------------------------------------------------------------------------------------------

NAMES = (*NAMES, "NoiseTunnel", "LRP", "LayerLRP")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_says_about_itself(name):
    model = built(MLP)
    layer = (model.layer,) if "layer" in inspect.signature(getattr(captum.attr, name).__init__).parameters else ()
    ours, theirs = (
        getattr(room, name)(*(room.IntegratedGradients(model),) if name == "NoiseTunnel" else (model, *layer))
        for room in (attribution, captum.attr)
    )
    assert ours.get_name() == theirs.get_name()
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs


# --- models and targets -----------------------------------------------------------------------------------

PLAIN = {
    "int": 2,
    "0-d tensor": torch.tensor(2),
    "one-element tensor": torch.tensor([2]),
    "tuple of one": (2,),
    "list": [0, 3, 1, 1],
    "tensor": torch.tensor([3, 0, 2, 2]),
    "list of tuples": [(0,), (3,), (1,), (1,)],
}
INNER = {"tuple": (1, 0), "list of tuples": [(0, 1), (2, 0), (1, 1), (1, 0)]}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("model", [MLP, CNN, Two])
@pytest.mark.parametrize("target", PLAIN)
def test_targets(name, model, target):
    assert_agree(name, built(model), given(model), target=PLAIN[target])


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("target", INNER)
def test_targets_in_larger_outputs(name, target):
    assert_agree(name, built(Maps), given(Maps), target=INNER[target])


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("column", [True, False])
def test_no_target_for_one_number_each(name, column):
    model = built(MLP)
    assert_agree(name, lambda x: model(x)[:, 1:2] if column else model(x)[:, 1], given(MLP))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("model", [MLP, CNN, Two])
def test_in_double_precision(name, model):
    ours, theirs = both(name, built(model, torch.float64), given(model, dtype=torch.float64), target=1)
    assert_same(ours, theirs, 1e-6)  # captum's steps are of single precision


@pytest.mark.parametrize("name", INPUTS)
def test_tuples_of_one_stay_tuples(name):
    assert_agree(name, built(MLP), (given(MLP),), target=1)


@pytest.mark.parametrize("abs", [True, False])
def test_saliency_signed_or_not(abs):
    ours, theirs = both("Saliency", built(Two), given(Two), 1, abs)
    assert_same(ours, theirs)
    assert all((a < 0).any() != abs for a in ours)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("args", [torch.linspace(-1, 1, 4)[:, None], (torch.linspace(-1, 1, 4)[:, None], 2.0)])
def test_further_arguments(name, args):
    assert_agree(name, built(Two), given(Two), target=1, additional_forward_args=args)


# --- baselines --------------------------------------------------------------------------------------------

torch.manual_seed(2)
A, B = torch.randn(4, 5), torch.randn(4, 2, 3)
BASELINES = {
    "none": (None, None),
    "numbers": (1, 0.5),
    "rows": (A[:1], B[:1]),
    "tensors": (A, B),
    "of every kind": (0.5, B),
}


@pytest.mark.parametrize("name", ["IntegratedGradients", "FeatureAblation"])
@pytest.mark.parametrize("form", BASELINES)
def test_baselines(name, form):
    a, b = BASELINES[form]
    pair = None if form == "none" else (a, b)
    assert_agree(name, built(Two), given(Two), pair, target=1)
    assert_agree(name, built(MLP), given(MLP), a, target=1)


# --- integrated gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle"])
def test_rules(method, steps):
    for model in (MLP, Two):
        assert_agree("IntegratedGradients", built(model), given(model), target=1, n_steps=steps, method=method)


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_the_trapezoid_is_captums_without_its_bias(steps):
    """Captum's weights sum to (n - 1) / n; ours to one."""
    options = {"target": 1, "n_steps": steps, "method": "riemann_trapezoid"}
    ours, theirs = both("IntegratedGradients", built(MLP), given(MLP), **options)
    assert_same(ours, theirs * steps / (steps - 1))


@pytest.mark.parametrize("at", [(True,), (False,)])
@pytest.mark.parametrize("batch", [None, 1, 3, 8])
def test_deltas_and_chunks(at, batch):
    options = {"target": 1, "n_steps": 20, "internal_batch_size": batch, "return_convergence_delta": True}
    for model, start in ((MLP, A), (Two, (A[:1], 0.5))):
        (ours, delta), (theirs, other) = both(
            "IntegratedGradients", built(model), given(model), start, at=at, **options
        )
        assert_same(ours, theirs)
        assert_close(delta, other, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("start", [0.0, 0.5, "row", "rows"])
def test_deltas_of_given_attributions(start):
    model, (a, b) = built(Two), given(Two)
    start = {"row": (A[:1], B[:1]), "rows": (A, B)}.get(start, (start, start))
    ours, theirs = (
        room.IntegratedGradients(model).compute_convergence_delta((a, b), start, (a, b), 1)
        for room in (attribution, captum.attr)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("model", [MLP, CNN, Two])
def test_at_a_layer(model, to_input):
    for options in ({}, {"method": "riemann_right", "n_steps": 7, "internal_batch_size": 4}):
        options |= {"target": [0, 3, 1, 1], "attribute_to_layer_input": to_input, "return_convergence_delta": True}
        name = "LayerIntegratedGradients"
        (ours, delta), (theirs, other) = both(
            name, built(model), given(model), 0.1 if model is not Two else None, **options
        )
        assert_same(ours, theirs)
        assert_close(delta, other, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert_agree(name, built(model), given(model), target=1, at=(None, False), attribute_to_layer_input=to_input)


@pytest.mark.parametrize("baseline", [0, torch.zeros(1, 6, dtype=torch.long), torch.arange(24).reshape(4, 6) % 12])
def test_at_an_embedding(baseline):
    assert_agree("LayerIntegratedGradients", built(Tokens), given(Tokens), baseline, target=1)


def test_at_a_layer_with_several_values():
    """A tuple of tensors gives a tuple of attributions."""

    class Split(nn.Module):
        def forward(self, x):
            return x[:, :2] * 2, x[:, 2:].exp()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = Split(), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(torch.tanh(torch.cat(self.layer(x), 1)))

    ours, theirs = both("LayerIntegratedGradients", built(Model), given(MLP), target=1)
    assert [a.shape for a in ours] == [(4, 2), (4, 3)]
    assert_same(ours, theirs)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("model, selector", [(MLP, 0), (MLP, (1,)), (CNN, (1, 2, 3)), (CNN, (1, 2, slice(0, 3)))])
def test_neurons(model, selector, to_input):
    name, x = "NeuronIntegratedGradients", given(model)
    options = {"attribute_to_neuron_input": to_input, "n_steps": 20, "method": "riemann_middle"}
    assert_agree(name, built(model), x, selector, **options)
    assert_agree(name, built(model), x, selector, 0.3, at=(None, False), internal_batch_size=6, **options)


def test_neurons_by_a_function():
    assert_agree("NeuronIntegratedGradients", built(CNN), given(CNN), lambda out: out[:, 0].amax((1, 2)))


# --- feature ablation -------------------------------------------------------------------------------------

MASKS = {
    "one for all": torch.tensor([[0, 0, 1, 2, 1]]),
    "without a batch": torch.tensor([0, 0, 1, 2, 1]),
    "gaps": torch.tensor([[7, 7, 0, 3, 0]]),
    "one feature": torch.tensor([[0]]),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("per", [1, 2, 100])
def test_masks(mask, per):
    given_mask = MASKS[mask] if per == 1 else torch.atleast_2d(MASKS[mask])  # where captum wants the batch axis
    options = {"feature_mask": given_mask, "perturbations_per_eval": per}
    assert_agree("FeatureAblation", built(MLP), given(MLP), target=1, **options)


@pytest.mark.parametrize("shared", [False, True])
def test_masks_of_two_inputs(shared):
    """The same id in both is one feature."""
    first, second = torch.tensor([[0, 0, 1, 2, 1]]), torch.tensor([[[3, 4, 4], [5, 5, 3]]])
    mask = (first, second - 3 if shared else second)
    ours, theirs = both("FeatureAblation", built(Two), given(Two), target=1, feature_mask=mask)
    assert_same(ours, theirs)
    if shared:
        assert torch.equal(ours[0][:, 0], ours[1][:, 0, 0])


def test_masks_of_each_example():
    mask = torch.stack([torch.randperm(5) // 2 for _ in range(4)])
    assert_agree("FeatureAblation", built(MLP), given(MLP), 0.5, target=1, feature_mask=mask)


def test_masks_of_images():
    """Superpixels, one number for all channels."""
    mask = (torch.arange(6)[:, None] // 3 * 2 + torch.arange(6) // 3)[None, None]
    assert_agree("FeatureAblation", built(CNN), given(CNN), target=1, feature_mask=mask)


@pytest.mark.parametrize("per", [1, 3])
def test_several_outputs(per):
    """One map for each number of each example."""
    for model in (MLP, Maps):
        x = given(model)
        options = {"perturbations_per_eval": per}
        ours, theirs = both("FeatureAblation", built(model), x, **options)
        assert_same(ours, theirs)
        assert ours.shape == (len(x) * (4 if model is MLP else 6), 5)
    ours, theirs = both("FeatureAblation", built(Two), given(Two), **options)
    assert_same(ours, theirs)
    assert [a.shape for a in ours] == [(16, 5), (16, 2, 3)]


@pytest.mark.parametrize(
    "aggregate",
    [lambda out: out.sum(), lambda out: out.sum().item(), lambda out: out.mean(0)[:3], lambda out: out.mean(0, True)],
    ids=["0-d", "number", "vector", "row"],
)
def test_outputs_of_the_whole_batch(aggregate):
    model = built(MLP)
    for options in ({}, {"feature_mask": torch.tensor([[0, 0, 1, 2, 1]])}):
        ours, theirs = both("FeatureAblation", lambda x: aggregate(model(x)), given(MLP), **options)
        assert_same(ours, theirs)
        assert ours.shape[1:] == (5,)


def test_token_ids_may_be_ablated():
    assert_agree("FeatureAblation", built(Tokens), given(Tokens), target=1)
    assert_agree("FeatureAblation", built(Tokens), given(Tokens), torch.tensor([[3, 1, 4, 1, 5, 9]]), target=1)


def test_inputs_of_mixed_dtypes():
    tokens, mlp = built(Tokens), built(MLP)
    assert_agree("FeatureAblation", lambda ids, a: tokens(ids) * mlp(a), (given(Tokens), A), (3, 0.5), target=1)

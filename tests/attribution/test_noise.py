"""Averages over random draws: captum's numbers from the same generators, and what draws by key do not depend on."""

from inspect import signature
from itertools import pairwise

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx import attribution
from robustx.attribution import (
    Attribution,
    DeepLiftShap,
    ExpectedGradients,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerGradientShap,
    LayerIntegratedGradients,
    NeuronGradientShap,
    NoiseTunnel,
    Saliency,
    noise,
)
from robustx.engine import Each, TargetError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations"),
]


class Two(nn.Module):
    """[B, 5], [B, 2, 3] and a number for each example -> [B, 4]; its layer is [B, 6]; every activation is a module."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.layer, self.mix = nn.Linear(11, 6), nn.ReLU(), nn.Linear(6, 6)
        self.act, self.head = nn.Tanh(), nn.Linear(6, 4)
        self.to(dtype)

    def forward(self, a, b, more=0.0, *, shift=0.0):
        hidden = self.layer(self.body(torch.cat([a, b.flatten(1)], 1)) + more)
        return self.head(self.act(self.mix(hidden))) + shift


def inputs(count=5):
    return torch.randn(count, 5).double(), torch.randn(count, 2, 3).double()


def references(count=7):
    return torch.randn(count, 5).double(), torch.randn(count, 2, 3).double()


def one(model):
    """The model of the first input alone."""
    b = torch.linspace(-1, 1, 6).double().view(1, 2, 3)
    return lambda a: model(a, b.expand(len(a), 2, 3))


class Linear(nn.Module):
    """[B, 5] -> [B, 4]."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.to(dtype)

    @property
    def weight(self):
        return self.head.weight @ self.layer.weight

    def forward(self, x):
        return self.head(self.layer(x))


def seeded(ask):
    """What is answered, and what the global generators give next."""
    torch.manual_seed(1)
    np.random.seed(1)
    return ask(), torch.rand(2), np.random.rand(2)


def both(make, *args, **options):
    """What we say and what captum says, with the same words and seeds; the generators are left alike."""
    ours, theirs = (
        seeded(lambda room=room: make(room).attribute(*args, **options)) for room in (attribution, captum.attr)
    )
    assert torch.equal(ours[1], theirs[1]) and np.array_equal(ours[2], theirs[2])
    return ours[0], theirs[0]


def leaves(v):
    return [v] if isinstance(v, torch.Tensor) else [t for part in v for t in leaves(part)]


def assert_same(ours, theirs, tolerance=1e-9):
    assert type(ours) is type(theirs)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)


# --- noise on the inputs: captum --------------------------------------------------------------------------

METHODS = {
    "Saliency": {},
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 4},
    "DeepLift": {},
    "GuidedBackprop": {},
    "FeatureAblation": {},
    "LayerActivation": {},
    "LayerGradientXActivation": {},
    "LayerIntegratedGradients": {"n_steps": 4},
    "LayerDeepLift": {},
    "LayerDeepLiftShap": {"baselines": references},
    "LayerConductance": {"n_steps": 4},
    "InternalInfluence": {"n_steps": 4},
    "LayerGradCam": {},
    "LRP": {},
    "GradientShap": {"baselines": references},
    "DeepLiftShap": {"baselines": references},
    "NeuronGradient": {"neuron_selector": 2},
    "NeuronConductance": {"neuron_selector": 2, "target": 1, "n_steps": 4},
    "NeuronGuidedBackprop": {"neuron_selector": 2},
    "NeuronIntegratedGradients": {"neuron_selector": 2, "n_steps": 4},
    "NeuronDeepLift": {"neuron_selector": 2},
}


def over(name, model):
    """A noise tunnel over the method, of any room."""

    def make(room):
        layer = (model.layer,) if "layer" in signature(getattr(captum.attr, name).__init__).parameters else ()
        return room.NoiseTunnel(getattr(room, name)(model, *layer))

    return make


@pytest.mark.parametrize("kind", noise.TUNNELS)
@pytest.mark.parametrize("name", METHODS)
def test_over_methods_with_captum(name, kind):
    options = {k: v(5) if callable(v) else v for k, v in METHODS[name].items()}
    if "Neuron" not in name and name != "LayerActivation":
        options["target"] = [0, 3, 1, 1, 2]
    ours, theirs = both(over(name, Two()), inputs(), kind, 4, None, 1.5, **options)
    assert_same(ours, theirs, 1e-6 if "n_steps" in options or name == "LRP" else 1e-9)  # captum's steps are float32
    assert all(t.any() for t in leaves(theirs))


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("size", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("stdevs", [0.2, (0.1, 0.4), (0.0, 1.5)])
def test_batches_of_samples_with_captum(size, stdevs, draw):
    """And all that follows the examples."""
    model, given, more = Two(), inputs(), torch.randn(5, 1).double()
    start = references() if draw else (0.3, given[1].flip(0))
    options = {"target": [(0,), (3,), (1,), (1,), (2,)], "additional_forward_args": more, "baselines": start}
    make = over("DeepLift", model)
    (ours, delta), (theirs, _) = both(
        make, given, "smoothgrad", 4, size, stdevs, draw, return_convergence_delta=True, **options
    )
    assert_same(ours, theirs)
    assert delta.shape == (20,) and delta.abs().max() < 1e-12


@pytest.mark.parametrize("size", [None, 5, 2])
def test_deltas_of_samples(size):
    """Example by example, whatever the batches: captum's are batch by batch."""
    x = torch.randn(3, 5).double()
    make = over("IntegratedGradients", one(Two()))
    options = {"target": 1, "n_steps": 2, "return_convergence_delta": True, "stdevs": 0.7}
    (_, delta), (_, theirs) = both(make, x, nt_samples_batch_size=size, **options)
    of_batches = theirs.split([3 * n for n in {None: (5,), 5: (5,), 2: (2, 2, 1)}[size]])
    expected = torch.cat([d.view(3, -1) for d in of_batches], 1).flatten()
    assert delta.abs().max() > 1e-3
    assert_close(delta, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [None, 2])
def test_deltas_of_samples_and_references(size):
    model, given, start = Two(), inputs(), references(3)
    options = {"nt_samples": 4, "stdevs": 0.3, "target": 1, "baselines": start, "return_convergence_delta": True}
    found, delta = NoiseTunnel(DeepLiftShap(model)).attribute(given, nt_samples_batch_size=size, seed=0, **options)
    plain = NoiseTunnel(DeepLiftShap(model)).attribute(given, seed=0, **options | {"return_convergence_delta": False})
    assert_same(found, plain)
    assert delta.shape == (5 * 4 * 3,) and delta.abs().max() < 1e-12


def test_masks_with_captum():
    """One for all, or one for each example."""
    (a, b), model = inputs(), Two()
    masks = (torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[[3, 4, 3], [4, 4, 0]]]))
    for mask in (masks, (masks[0], torch.randint(3, 6, (5, 2, 3)))):
        assert_same(*both(over("FeatureAblation", model), (a, b), stdevs=0.3, target=1, feature_mask=mask))


@pytest.mark.parametrize("target", [1, (1,), torch.tensor(1), torch.tensor([3, 0, 1, 1, 2]), [3, 0, 1, 1, 2]], ids=str)
def test_targets_with_captum(target):
    assert_same(*both(over("Saliency", Two()), inputs(), stdevs=0.3, target=target))


@pytest.mark.parametrize("shape, count", [((3,), 7), ((2, 3, 3), 33), ((1,), 40), ((4, 4), 9), ((17,), 11)])
@pytest.mark.parametrize("budget", [1, 500, 4000])
def test_copies_that_do_not_fit_at_once(monkeypatch, shape, count, budget):
    """They draw what captum draws at once; the method sees no more than fits."""
    d, seen = int(np.prod(shape)), []
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, start = torch.randn(count, *shape).double(), torch.randn(9, *shape).double()
    monkeypatch.setattr(noise, "BUDGET", budget)
    options = {"stdevs": 0.5, "target": 1, "baselines": start, "draw_baseline_from_distrib": True}
    assert_same(*both(over("IntegratedGradients", model), x, nt_samples=5, n_steps=3, **options), 1e-6)
    assert_same(*both(lambda room: room.GradientShap(model), x, start, 5, 0.5, 1, None, True))

    class Looking(Attribution):
        def attribute(self, inputs):
            seen.append(len(inputs))
            return inputs

    NoiseTunnel(Looking(model)).attribute(x)
    at_once = max(16, budget // (8 * d))
    assert sum(seen) == 5 * count and max(seen) < at_once + 16


def test_a_captum_method_inside():
    """Ours over captum's, and captum's over ours."""
    model, given = Two(), inputs()
    results = [
        seeded(lambda outer=outer, inner=inner: outer(inner(model)).attribute(given, stdevs=0.3, target=1))[0]
        for outer in (NoiseTunnel, captum.attr.NoiseTunnel)
        for inner in (InputXGradient, captum.attr.InputXGradient, Saliency, captum.attr.Saliency)
    ]
    for i, result in enumerate(results):
        assert_same(result, results[i % 4 // 2 * 2])


# --- noise on the inputs: laws ----------------------------------------------------------------------------


class Mine(Attribution):
    """A user's own, without ``__wrapped__``: rows times a factor of their own."""

    def attribute(self, inputs, additional_forward_args=None):
        return inputs * additional_forward_args


def test_over_a_method_of_the_users_own():
    x, factor = torch.randn(3, 4).double(), torch.tensor([[1.0], [2.0], [3.0]]).double()
    found = NoiseTunnel(Mine(Linear())).attribute(x, stdevs=0.0, additional_forward_args=factor)
    assert_close(found, x * factor, rtol=1e-15, atol=0)
    spread = NoiseTunnel(Mine(Linear())).attribute(
        x, "vargrad", 4000, stdevs=0.5, seed=0, additional_forward_args=factor
    )
    assert_close(spread, (0.25 * factor.square()).expand(3, 4), rtol=0.12, atol=0)  # five standard errors


@pytest.mark.parametrize("size", [None, 3, 50])
def test_what_is_made_of_the_samples(size):
    """Mean, mean square and variance of the very same samples, as numpy has them."""
    model, given, samples = Two(), inputs(), []

    class Kept(InputXGradient):
        def attribute(self, *args, **options):
            samples.append(super().attribute(*args, **options)[1])
            return samples[-1]

    results = {}
    for kind in noise.TUNNELS:
        samples.clear()
        results[kind] = NoiseTunnel(Kept(model)).attribute(given, kind, 50, size, stdevs=0.5, target=1, seed=0)
    kept = np.concatenate([s.reshape(5, -1, 2, 3).numpy() for s in samples], 1)
    assert kept.shape[1] == 50
    expected = {"smoothgrad": kept.mean(1), "smoothgrad_sq": (kept**2).mean(1), "vargrad": kept.var(1)}
    for kind, value in expected.items():
        np.testing.assert_allclose(results[kind], value, rtol=1e-12, err_msg=kind)


def test_a_variance_beside_a_large_mean():
    """Of float32 samples, where the mean of squares less the square of the mean has no digit left."""
    model, x = Linear(torch.float32), torch.full((2, 5), 3e4)
    exact = Linear().weight[1].square() * 0.01  # of the gradient times noise of deviation 0.1
    found = NoiseTunnel(InputXGradient(model)).attribute(x, "vargrad", 2000, 500, 0.1, target=1, seed=0)
    assert_close(found, exact.float().expand(2, 5), rtol=0.2, atol=0)  # six standard errors
    theirs = captum.attr.NoiseTunnel(captum.attr.InputXGradient(model)).attribute(
        x, "vargrad", 2000, 500, 0.1, target=1
    )
    assert ((theirs - exact).abs() > exact).any()


@pytest.mark.parametrize("kind", noise.TUNNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_floats(kind, dtype):
    """Noise, means and variances are of single precision: captum's model refuses its noise."""
    model, exact = Two(dtype), Two(dtype).double()
    given = tuple(t.to(dtype) for t in inputs())
    options = {"nt_type": kind, "nt_samples": 20, "stdevs": 0.5, "target": 1}
    found = seeded(lambda: NoiseTunnel(IntegratedGradients(model)).attribute(given, **options))[0]
    wide = tuple(t.double() for t in given)
    expected = seeded(lambda: NoiseTunnel(IntegratedGradients(exact)).attribute(wide, **options))[0]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a.double(), b, rtol=0, atol=30 * torch.finfo(dtype).eps * b.abs().max().item())
    with pytest.raises(RuntimeError, match="same dtype"):
        captum.attr.NoiseTunnel(captum.attr.IntegratedGradients(model)).attribute(given, **options)


def test_inputs_that_are_integers():
    """Stay as they are where their noise is 0, so that token ids may stand beside numbers."""
    words, model = nn.Embedding(9, 3).double(), nn.Linear(3, 2).double()

    def net(ids, x):
        return model((words(ids) * x).tanh())

    ids, x = torch.tensor([1, 8, 3]), torch.randn(3, 3).double()
    tunnel = NoiseTunnel(LayerIntegratedGradients(net, words))
    smooth = tunnel.attribute((ids, x), stdevs=(0, 0.5), target=1, seed=0)
    plain = tunnel.attribute((ids, x), stdevs=(0, 0.0), target=1)
    assert smooth.shape == plain.shape == (3, 3) and not torch.equal(smooth, plain)
    assert_close(plain, LayerIntegratedGradients(net, words).attribute((ids, x), target=1), rtol=1e-12, atol=0)


def test_a_seed_makes_noise_of_the_content():
    """It depends neither on the batch, nor on the place in it, nor on batch sizes; no global generator is asked."""
    model, given, more = Two(), inputs(), torch.randn(5, 1).double()
    tunnel = NoiseTunnel(GradientShap(model))

    def ask(rows, **options):
        return tunnel.attribute(
            tuple(t[rows] for t in given),
            nt_samples=6,
            stdevs=(0.3, 0.1),
            target=[[0, 3, 1, 1, 2][i] for i in rows],
            baselines=references_,
            additional_forward_args=more[rows],
            **options,
        )

    references_ = references()
    whole, a, b = seeded(lambda: ask([0, 1, 2, 3, 4], seed=7))
    assert torch.equal(a, seeded(lambda: None)[1]) and np.array_equal(b, seeded(lambda: None)[2])
    for size in (1, 4, 100):
        assert_same(ask([0, 1, 2, 3, 4], seed=7, nt_samples_batch_size=size), whole)
    for rows in ([3], [4, 1], [2, 0, 1]):
        assert_same(ask(rows, seed=7), tuple(t[rows] for t in whole))
    assert not torch.equal(ask([0], seed=8)[0], whole[0][:1])
    assert not torch.equal(seeded(lambda: ask([0]))[0][0], ask([0])[0])  # drawn anew


def test_several_targets_at_once():
    model, given = Two(), inputs()
    every = NoiseTunnel(InputXGradient(model)).attribute(given, stdevs=0.3, seed=0, target=Each([2, [0, 3, 1, 1, 2]]))
    for i, target in enumerate((2, [0, 3, 1, 1, 2])):
        alone = NoiseTunnel(InputXGradient(model)).attribute(given, stdevs=0.3, seed=0, target=target)
        assert_same(tuple(t[:, i] for t in every), alone)


def test_dicts():
    model, (a, b) = Two(), inputs()
    options = {"target": 1, "seed": 0, "nt_samples": 3}
    named = NoiseTunnel(IntegratedGradients(model)).attribute(
        {"b": b, "a": a},
        stdevs={"a": 0.1, "b": 0.4},
        baselines={"a": a.flip(0), "b": 0.5},
        additional_forward_kwargs={"shift": torch.randn(5, 1).double()},
        **options,
    )
    assert list(named) == ["b", "a"]
    in_order = NoiseTunnel(IntegratedGradients(lambda b, a: model(a, b))).attribute(
        (b, a), stdevs=(0.4, 0.1), baselines=(0.5, a.flip(0)), **options
    )
    assert_same((named["b"], named["a"]), in_order)


def test_no_samples_of_no_examples():
    (ours, delta) = NoiseTunnel(IntegratedGradients(Two())).attribute(
        inputs(0), target=1, stdevs=0.1, return_convergence_delta=True
    )
    assert [t.shape for t in ours] == [(0, 5), (0, 2, 3)] and delta.shape == (0,)


def test_what_a_tunnel_says_about_itself():
    model = Two()
    for name in METHODS:
        ours, theirs = (over(name, model)(room) for room in (attribution, captum.attr))
        assert ours.has_convergence_delta() == theirs.has_convergence_delta()
        assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs
        assert ours.get_name() == theirs.get_name() == "Noise Tunnel"
    assert repr(NoiseTunnel(Saliency(model))) == "NoiseTunnel(Saliency(Two))"


# --- random references: captum ----------------------------------------------------------------------------

SHAPS = ("GradientShap", "LayerGradientShap", "NeuronGradientShap")


def shap(name, model, **options):
    layer = () if name == "GradientShap" else (model.layer,)
    return lambda room: getattr(room, name)(model, *layer, **options)


def usual(name, **options):
    """Arguments that the method needs; those it does not take are left out."""
    if name == "NeuronGradientShap":
        options.pop("target", None), options.pop("return_convergence_delta", None)
        return {"neuron_selector": 2, **options}
    return {"target": [0, 3, 1, 1, 2], **options}


FORMS = {
    "rows": lambda: references(),
    "one row": lambda: references(1),
    "as many as there are inputs": lambda: references(5),
    "each its own number": lambda: (references(7)[0], references(2)[1]),
    "drawn": lambda: lambda: references(3),
    "of the inputs": lambda: lambda given: tuple(t[:3].flip(0) + torch.randn_like(t[:3]) for t in given),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPS)
def test_references_with_captum(name, form):
    given, start = inputs(), FORMS[form]()
    options = usual(name, stdevs=(0.1, 0.4), n_samples=4, return_convergence_delta=True)
    ours, theirs = both(shap(name, Two()), given, baselines=start, **options)
    assert_same(ours, theirs)
    assert all(t.any() for t in leaves(theirs))


@pytest.mark.parametrize("name", SHAPS)
def test_a_number_beside_references(name):
    """Stands for a tensor of it. Captum's layer hands it to the model as it is."""
    (a, b), model, given = references(), Two(), inputs()
    options = usual(name, n_samples=4)
    found, expected = (
        seeded(lambda start=start: shap(name, model)(attribution).attribute(given, baselines=start, **options))
        for start in ((a, 0.5), (a, torch.full_like(b[:1], 0.5)))
    )
    assert_same(found[0], expected[0])
    if name != "LayerGradientShap":
        assert_same(*both(shap(name, model), given, baselines=(a, 0.5), **options))


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("stdevs", [0.0, 0.3])
@pytest.mark.parametrize("name", SHAPS)
def test_samples_and_noise_with_captum(name, stdevs, count, multiply):
    more = torch.randn(5, 1).double()
    options = usual(name, baselines=references(), stdevs=stdevs, n_samples=count, additional_forward_args=more)
    assert_same(*both(shap(name, Two(), multiply_by_inputs=multiply), inputs(), **options))


@pytest.mark.parametrize("name", SHAPS[1:])
def test_what_goes_into_a_layer_with_captum(name):
    of_input = "attribute_to_layer_input" if name == "LayerGradientShap" else "attribute_to_neuron_input"
    options = usual(name, baselines=references(), stdevs=0.2, **{of_input: True})
    assert_same(*both(shap(name, Two()), inputs(), **options))


def test_one_input_in_single_precision_with_captum():
    model, x, start = Linear(torch.float32), torch.randn(6, 5), torch.randn(4, 5)
    for given in (x, (x,)):
        ours, theirs = both(lambda room: room.GradientShap(model), given, start, 7, 0.2, 1, None, True)
        assert_same(ours, theirs, 1e-5)


# --- random references: laws ------------------------------------------------------------------------------

RANDOM = (GradientShap, ExpectedGradients)
random = pytest.mark.parametrize("method", RANDOM, ids=lambda m: m.__name__)


@random
def test_each_sample_is_complete_for_a_linear_model(method):
    model, x = Linear(), torch.randn(3, 5).double()
    start = torch.randn(4, 5).double()
    a, delta = method(model).attribute(x, start, 8, target=1, return_convergence_delta=True, seed=0)
    assert delta.shape == (24,) and delta.abs().max() < 1e-12
    at_layer, delta = LayerGradientShap(model, model.layer).attribute(
        x, start, 8, target=1, return_convergence_delta=True, seed=0
    )
    assert delta.shape == (24,) and delta.abs().max() < 1e-12
    if method is GradientShap:  # the same samples
        assert_close(at_layer.sum(1), a.sum(1))


@random
def test_deltas_are_those_of_samples(method):
    """Example by example; of each example they add up to what the mean misses of the mean rise."""
    model, x, start = one(Two()), torch.randn(3, 5).double(), torch.randn(4, 5).double()
    a, delta = method(model).attribute(x, start, 8, target=1, return_convergence_delta=True, seed=0)
    start_of_each = torch.stack([t.repeat(2, 1) for t in [start] * 3])  # a hypercube takes each of four twice
    if method is ExpectedGradients:
        rise = model(x)[:, 1] - model(start_of_each.flatten(0, 1))[:, 1].view(3, 8).mean(1)
        assert_close(a.sum(1) - rise, delta.view(3, 8).mean(1))
    for i in range(3):
        alone = method(model).attribute(x[i : i + 1], start, 8, target=1, return_convergence_delta=True, seed=0)
        assert_close(delta.view(3, 8)[i], alone[1])


@pytest.mark.parametrize("method", [*RANDOM, LayerGradientShap, NeuronGradientShap], ids=lambda m: m.__name__)
def test_a_seed_makes_draws_of_the_content(monkeypatch, method):
    model, given, start = Two(), inputs(), references()
    noisy = {} if method is ExpectedGradients else {"stdevs": (0.3, 0.1)}

    def ask(rows, seed=3, **options):
        layer = () if method in RANDOM else (model.layer,)
        what = {"neuron_selector": 2} if method is NeuronGradientShap else {"target": 1}
        some = tuple(t[rows] for t in given)
        found = method(model, *layer).attribute(
            some, baselines=start, n_samples=6, seed=seed, **noisy, **what, **options
        )
        return tuple(leaves(found))

    whole, a, b = seeded(lambda: ask([0, 1, 2, 3, 4]))
    assert torch.equal(a, seeded(lambda: None)[1]) and np.array_equal(b, seeded(lambda: None)[2])
    for rows in ([3], [4, 1], [2, 0, 1]):
        assert_same(ask(rows), tuple(t[rows] for t in whole))
    for size in (1, 4, 100):
        assert_same(ask([0, 1, 2, 3, 4], internal_batch_size=size), whole)
    monkeypatch.setattr(noise, "BUDGET", 600)
    assert_same(ask([0, 1, 2, 3, 4]), whole)
    assert not torch.equal(ask([0], seed=4)[0], whole[0][:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@random
def test_references_in_short_floats(method, dtype):
    model, exact = Two(dtype), Two(dtype).double()
    given, start = (tuple(t.to(dtype) for t in v) for v in (inputs(), references()))
    wide = [tuple(t.double() for t in v) for v in (given, start)]
    found, expected = (
        method(m).attribute(*v, n_samples=20, target=1, seed=0) for m, v in ((model, (given, start)), (exact, wide))
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a.double(), b, rtol=0, atol=30 * torch.finfo(dtype).eps * b.abs().max().item())


def exact_gradients(model, x, start, target):
    """Expected gradients of each example: the integral over the way, averaged over the references."""
    ig = IntegratedGradients(model)
    return torch.stack([ig.attribute(x, s[None], target, n_steps=400, method="riemann_middle") for s in start]).mean(0)


@random
def test_the_mean_is_the_expected_gradient(method):
    """No element's mean over many seeds is off by more than five standard errors, nor is each mean the same."""
    model, x = one(Two()), torch.randn(2, 5).double()
    start = torch.randn(6, 5).double()
    exact = exact_gradients(model, x, start, 1)
    found = torch.stack([method(model).attribute(x, start, 10, target=1, seed=s) for s in range(60)])
    z = (found.mean(0) - exact) / (found.std(0) / 60**0.5)
    assert found.std(0).min() > 0 and z.abs().max() < 5
    off = found.sum(-1) - (model(x) - model(start).mean(0))[:, 1]
    assert (off.mean(0) / (off.std(0) / 60**0.5)).abs().max() < 5


def test_even_draws_vary_less():
    """A Latin hypercube's mean has the smaller error, and it shrinks faster than one over the root of the samples."""
    model, x, start = one(Two()), torch.randn(4, 5).double(), torch.randn(6, 5).double()
    exact = exact_gradients(model, x, start, 1)

    def error(method, count):
        found = [method(model).attribute(x, start, count, target=1, seed=s) - exact for s in range(12)]
        return torch.stack(found).square().mean().sqrt()

    errors = [[error(method, count) for count in (6, 24, 96)] for method in RANDOM]
    assert all(even < 0.5 * by_chance for by_chance, even in zip(*errors, strict=True))
    assert all(b < a for row in errors for a, b in pairwise(row))


def test_expected_gradients_of_a_linear_model_are_exact():
    """Where the samples are a multiple of the references: each stands for its share."""
    model, x, start = Linear(), torch.randn(4, 5).double(), torch.randn(6, 5).double()
    for count in (6, 18):
        found = ExpectedGradients(model).attribute(x, start, count, target=[0, 3, 1, 2])
        assert_close(found, (x - start.mean(0)) * model.weight[[0, 3, 1, 2]])
    local = ExpectedGradients(model, multiply_by_inputs=False).attribute(x, start, 1, target=2)
    assert_close(local, model.weight[2].expand(4, 5))


def test_references_that_fit_one_another():
    """Expected gradients and DeepLIFT take one row of all inputs; a single row or a number stands beside any."""
    model, given, (a, b) = Two(), inputs(), references()
    for method in (ExpectedGradients, DeepLiftShap):
        alone = method(model).attribute(given, (a, b[:1].expand_as(b)), target=1)
        assert_same(method(model).attribute(given, (a, b[:1]), target=1), alone)
        assert_same(
            method(model).attribute(given, (a, 0.5), target=1),
            method(model).attribute(given, (a, torch.full_like(b, 0.5)), target=1),
        )
        with pytest.raises(ValueError, match="one number of rows, got 7, 2"):
            method(model).attribute(given, (a, b[:2]), target=1)


@pytest.mark.parametrize("name", ["DeepLiftShap", "LayerDeepLiftShap", "NeuronDeepLiftShap", "GradientShap"])
def test_functions_draw_anew_each_time(name):
    """As captum's do: what they draw from the global generators is not given back."""
    model, given = Two(), inputs()
    layer = () if name in ("DeepLiftShap", "GradientShap") else (model.layer,)
    what = {"neuron_selector": 2} if "Neuron" in name else {"target": 1}

    def make(room):
        return getattr(room, name)(model, *layer)

    ours, theirs = both(make, given, baselines=lambda: references(3), **what)
    assert_same(ours, theirs)
    again = make(attribution).attribute(given, baselines=lambda: references(3), **what)
    assert not torch.equal(leaves(again)[0], leaves(ours)[0])


def test_a_model_that_fails_draws_nothing():
    """The generators are given back as they were, and what the model draws is no draw of ours."""

    def failing(x):
        torch.rand(3), np.random.rand(3)
        raise RuntimeError("the model breaks down")

    def drawing(x):
        torch.rand(3), np.random.rand(3)
        return linear(x)

    x, linear = torch.randn(3, 5).double(), Linear()
    untouched = seeded(lambda: None)

    def fails():
        with pytest.raises(RuntimeError, match="breaks down"):
            LayerGradientShap(failing, linear).attribute(x, x, target=1)

    for after, before in zip(seeded(fails), untouched, strict=True):
        assert np.array_equal(after, before)
    ours = seeded(lambda: GradientShap(drawing).attribute(x, x, stdevs=0.1, target=1))
    same = seeded(lambda: GradientShap(linear).attribute(x, x, stdevs=0.1, target=1))
    assert all(np.array_equal(a, b) for a, b in zip(ours, same, strict=True))


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, AssertionError])  # captum's are AssertionErrors
@pytest.mark.parametrize(
    "options, words",
    [
        ({"nt_type": "smooth"}, "nt_type must be one of 'smoothgrad', 'smoothgrad_sq', 'vargrad', got 'smooth'"),
        ({"stdevs": (0.1,)}, "one for each of 2 inputs, got 1"),
        ({"stdevs": -1.0}, "at least 0"),
        ({"stdevs": float("nan")}, "finite numbers"),
        ({"stdevs": "0.1"}, "finite numbers"),
        ({"baselines": (None, torch.zeros(2, 2, 3))}, "do not fit input 1"),
    ],
)
def test_arguments_that_do_not_fit(kind, options, words):
    with pytest.raises(kind, match=words):
        NoiseTunnel(IntegratedGradients(Two())).attribute(inputs(), target=1, **options)


@pytest.mark.parametrize("name", ["nt_samples", "nt_samples_batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_numbers_of_samples(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        NoiseTunnel(Saliency(Two())).attribute(inputs(), target=1, **{name: value})
    with pytest.raises((ValueError, TypeError), match="n_samples"):
        GradientShap(Two()).attribute(inputs(), references(), value, target=1)


def test_other_mistakes():
    model, given = Two(), inputs()
    with pytest.raises(TypeError, match="attribution_method must be an attribution.*Linear"):
        NoiseTunnel(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="no noise can be added"):
        NoiseTunnel(Saliency(lambda a, b: model(a.double(), b))).attribute((given[0].long(), given[1]), target=1)
    with pytest.raises(TargetError, match="3 targets for 5 examples"):
        NoiseTunnel(Saliency(model)).attribute(given, target=[1, 2, 3])
    with pytest.raises(ValueError, match="no rows to draw from"):
        NoiseTunnel(IntegratedGradients(model)).attribute(
            given, target=1, baselines=(references(0)[0], 0.0), draw_baseline_from_distrib=True
        )
    with pytest.raises(ValueError, match="choose another nt_samples_batch_size"):
        NoiseTunnel(FeatureAblation(model)).attribute(given, target=1, additional_forward_args=torch.zeros(25, 1))
    with pytest.raises(TypeError, match="got NoneType"):
        GradientShap(model).attribute(given, None, target=1)
    with pytest.raises(TypeError, match="inputs walk from random baselines, but input 0"):
        GradientShap(lambda a, b: model(a.double(), b)).attribute((given[0].long(), given[1]), references(), target=1)


def test_a_method_that_loses_rows():
    class Lossy(Attribution):
        def attribute(self, inputs):
            return inputs[:-1]

    with pytest.raises(ValueError, match=r"shape \(24, 5\) for 25 copies of 5 examples"):
        NoiseTunnel(Lossy(Two())).attribute(inputs()[0])

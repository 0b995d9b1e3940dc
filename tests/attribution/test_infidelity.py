"""Infidelity and sensitivity: their laws, and Captum's numbers from the same draws."""

import captum.attr
import captum.metrics
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, GradientShap, IntegratedGradients, Saliency
from robustx.attribution.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max


class Two(nn.Module):
    """[B, 4], [B, 2, 3], a number for each example -> [B, 3]."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, y, scale=None):
        out = self.head(torch.tanh(self.a(x)) * torch.sigmoid(self.b(y.flatten(1))))
        return out if scale is None else out * scale[:, None]


@pytest.fixture
def two():
    torch.manual_seed(0)
    return Two().eval(), (torch.rand(5, 4), torch.rand(5, 2, 3)), torch.rand(5)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.rand(6, 4)


def noisy(inputs, baselines=None):
    """Captum's users draw from torch's generator; a tuple for several."""
    several = isinstance(inputs, tuple)
    noise = tuple(0.1 * torch.randn(t.shape) for t in (inputs if several else (inputs,)))
    left = tuple(t - n for t, n in zip(inputs if several else (inputs,), noise, strict=True))
    return (noise, left) if several else (noise[0], left[0])


def both(ours, theirs, *args, **kwargs):
    """The same call of two functions, each from the same state of the generator, which both leave at the same place."""
    torch.manual_seed(3)
    mine, next_mine = ours(*args, **kwargs), torch.rand(1)
    torch.manual_seed(3)
    other, next_other = theirs(*args, **kwargs), torch.rand(1)
    assert_close(next_mine, next_other)
    return mine, other


TARGETS = {"one": 1, "list": [0, 1, 2, 0, 1], "tensor": torch.tensor([2, 1, 0, 2, 1])}


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("most", [None, 10, 3], ids=["at once", "two copies", "less than the batch"])
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.filterwarnings("ignore:`max_examples_per_batch` must be at least equal")
def test_infidelity_is_captums(two, normalize, most, target):
    model, x, scale = two
    asked = {"target": TARGETS[target], "additional_forward_args": scale, "normalize": normalize}
    a = Saliency(model).attribute(x, target=TARGETS[target], additional_forward_args=scale)
    mine, theirs = both(
        infidelity,
        captum.metrics.infidelity,
        model,
        noisy,
        x,
        a,
        max_examples_per_batch=most,
        n_perturb_samples=7,
        **asked,
    )
    assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("baselines", [None, 0.5, "rows"], ids=["none", "number", "rows"])
@pytest.mark.parametrize("multiply", [True, False], ids=["global", "local"])
def test_the_decorator_is_captums(net, baselines, multiply):
    model, x = net
    b = torch.rand(6, 4) if baselines == "rows" else baselines

    def left(inputs, baselines=None):
        away = torch.zeros_like(inputs) if baselines is None else baselines
        return torch.where(torch.rand(inputs.shape) < 0.5, inputs, away)

    pairs = [
        d(multiply)(left) for d in (infidelity_perturb_func_decorator, captum.metrics.infidelity_perturb_func_decorator)
    ]
    a = IntegratedGradients(model).attribute(x, baselines=b, target=2)
    for ours, theirs in zip(*(both(p, p, x, b) for p in pairs), strict=True):
        assert_close(ours, theirs)
    mine, theirs = both(
        lambda pair: infidelity(model, pair, x, a, baselines=b, target=2),
        lambda pair: captum.metrics.infidelity(model, pair, x, a, baselines=b, target=2),
        pairs[0],
    )
    assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_infidelity_of_exact_explanations_is_zero_and_of_none_the_mean_square_of_the_falls():
    torch.manual_seed(0)
    w, x = torch.randn(4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    noise = torch.randn(30, 4, dtype=torch.float64)
    exact = infidelity(lambda x: x @ w, lambda x: (noise, x - noise), x, w.expand(3, 4))
    assert_close(exact, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    twice = infidelity(lambda x: x @ w, lambda x: (noise, x - noise), x, 2 * w.expand(3, 4), normalize=True)
    assert_close(twice, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    none = infidelity(lambda x: x @ w, lambda x: (noise, x - noise), x, torch.zeros(3, 4), normalize=True)
    assert_close(none, (noise @ w).square().reshape(3, 10).mean(1))


def test_token_ids_and_names_go_through():
    table = torch.tensor([0.0, 1.0, 4.0, 9.0])
    ids, scale = torch.tensor([[1, 2, 3], [3, 3, 1]]), torch.tensor([[2.0], [1.0]])
    model = lambda ids, scale: table[ids].sum(1) * scale[:, 0]
    a = FeatureAblation(model).attribute({"ids": ids, "scale": scale})

    def drop_one(inputs):
        gone = torch.zeros_like(inputs["ids"]).scatter(1, torch.randint(3, (len(inputs["ids"]), 1)), 1)
        return (
            {"ids": gone, "scale": torch.zeros_like(inputs["scale"])},
            {"ids": torch.where(gone == 1, 0, inputs["ids"]), "scale": inputs["scale"]},
        )

    assert_close(infidelity(model, drop_one, {"ids": ids, "scale": scale}, a), torch.zeros(2))


def test_what_does_not_fit_is_refused(net):
    model, x = net
    with pytest.raises(ValueError, match="attributions must be shaped like the inputs"):
        infidelity(model, noisy, x, x[:, :2], target=0)
    with pytest.raises(ValueError, match="perturb_func must return .*decorator"):
        infidelity(model, lambda x: x, x, x, target=0)
    with pytest.raises(ValueError, match="perturbed inputs must be shaped"):
        infidelity(model, lambda x: (x, x[:1]), x, x, target=0)
    with pytest.raises(TypeError, match="explanation_func must be .*the attribute of a method, got Saliency"):
        sensitivity_max(Saliency(model), x, target=0)
    with pytest.raises(TypeError, match="perturb_func must be a function"):
        infidelity(model, None, x, x, target=0)
    with pytest.raises(ValueError, match="norm_ord must be 'fro' or the order of a norm.*got 'nuc'"):
        sensitivity_max(Saliency(model).attribute, x, norm_ord="nuc", target=0)
    with pytest.raises(ValueError, match="perturb_radius must be at least 0"):
        sensitivity_max(Saliency(model).attribute, x, perturb_radius=-1, target=0)
    with pytest.raises(ValueError, match="seed is for the default"):
        sensitivity_max(Saliency(model).attribute, x, lambda x: x, target=0, seed=0)


@pytest.mark.parametrize("order", ["fro", 1, float("inf")], ids=["fro", "L1", "Linf"])
@pytest.mark.parametrize("most", [None, 10], ids=["at once", "two copies"])
def test_sensitivity_is_captums(two, order, most):
    model, x, scale = two
    for target in TARGETS.values():
        mine, theirs = both(
            lambda m, **k: sensitivity_max(IntegratedGradients(m).attribute, **k),
            lambda m, **k: captum.metrics.sensitivity_max(captum.attr.IntegratedGradients(m).attribute, **k),
            model,
            inputs=x,
            n_perturb_samples=5,
            norm_ord=order,
            max_examples_per_batch=most,
            target=target,
            additional_forward_args=(scale,),
            baselines=(torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 2, 3)),
            n_steps=8,
        )
        assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_feature_masks_and_named_arguments_follow_the_examples(two):
    model, x, scale = two
    masks = (
        torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0], [3, 2, 1, 0]]),
        torch.full((5, 2, 3), 4),
    )
    asked = {"target": 1, "feature_mask": masks, "additional_forward_kwargs": {"scale": scale}}
    found = sensitivity_max(FeatureAblation(model).attribute, x, seed=0, **asked)
    one_by_one = [
        sensitivity_max(
            FeatureAblation(model).attribute,
            tuple(t[i : i + 1] for t in x),
            seed=0,
            target=1,
            feature_mask=tuple(m[i : i + 1] for m in masks),
            additional_forward_kwargs={"scale": scale[i : i + 1]},
        )
        for i in range(5)
    ]
    assert_close(found, torch.cat(one_by_one), atol=1e-6, rtol=1e-5)  # and draws by key know no batch
    assert_close(
        sensitivity_max(FeatureAblation(model).attribute, x, seed=0, max_examples_per_batch=10, **asked), found
    )


def test_sensitivity_grows_with_the_radius_up_to_the_furthest_that_a_slope_can_move():
    x = torch.rand(4, 3, dtype=torch.float64) + 1
    square = lambda x: x.square().sum(1) / 2  # its gradient is x itself
    found = [
        sensitivity_max(Saliency(square).attribute, x, perturb_radius=r, norm_ord=float("inf"), seed=0)
        for r in (0.1, 0.2)
    ]
    assert_close(found[1], 2 * found[0])
    assert (found[0] <= 0.1 / x.amax(1)).all() and (found[0] > 0.05 / x.amax(1)).all()


def test_keyed_draws_leave_the_generators_alone_and_others_move_them(net):
    model, x = net
    before = torch.get_rng_state()
    sensitivity_max(Saliency(model).attribute, x, target=0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    sensitivity_max(GradientShap(model).attribute, x, target=0, baselines=torch.zeros(2, 4))
    assert not torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(before)

    def failing(x):
        torch.rand(3)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        infidelity(model, failing, x, x, target=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_by_name_are_moved_by_default_and_what_comes_back_must_fit():
    x = {"a": torch.rand(3, 4), "b": torch.rand(3, 2)}

    def explained(inputs):
        return tuple(t.square() for t in inputs.values())

    assert (sensitivity_max(explained, x) > 0).all()
    with pytest.raises(ValueError, match="perturbed inputs must be shaped like the inputs"):
        sensitivity_max(lambda t: t, torch.rand(3, 4), lambda t: t[:1])
    with pytest.raises(ValueError, match="max_examples_per_batch must be a whole number"):
        sensitivity_max(lambda t: t, torch.rand(3, 4), max_examples_per_batch=-1)

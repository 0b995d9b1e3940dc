"""Certified radii: exact for affine models, below every exact distance and every attack; smoothing by closed forms."""

import numpy as np
import pytest
import torch
from exact import distances as exact
from exact_relu import stored
from scipy.stats import binom, norm
from torch import nn
from torch.testing import assert_close

from robustx.attacks import make
from robustx.engine.affine import Unreadable
from robustx.evaluation import Block, Smoothed, Spec, certify, leads
from robustx.evaluation.certified import bound_block
from robustx.perturb import NORMS

D, K = 6, 3


@pytest.fixture
def linear():
    return nn.Linear(D, K)


@pytest.mark.parametrize("method", ["crown", "ibp"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_radius_of_an_affine_model_is_its_distance(linear, norm, method):
    x = torch.rand(24, D)
    y = linear(x).argmax(1)
    y[0] = (y[0] + 1) % K
    true = torch.from_numpy(exact(linear.weight.detach(), linear.bias.detach(), x, y, norm))
    told = certify(linear, x, y, method, norm=norm, bounds=(0, 1), tolerance=1e-4)
    assert torch.isfinite(true).all()
    assert_close(told.radius, true, rtol=2e-4, atol=1e-5)
    assert told.radius[0] == 0 and told.prediction.tolist() == [-1, *y[1:].tolist()]
    assert told.abstained.tolist() == [True, *[False] * 23]
    linear.bias.data[0] += 9  # no way leads from here to another class
    assert certify(linear, x, method=method, norm=norm, bounds=(0, 1)).radius.isinf().all()


def test_without_bounds_the_radius_is_the_lead_over_the_dual_norm(linear):
    x = torch.randn(9, D)
    y, out = linear(x).argmax(1), linear(x).detach().double()
    for name in ("Linf", "L2", "L1"):
        told = certify(linear, x, norm=name, tolerance=1e-4).radius
        w = linear.weight.double()
        far = torch.stack([lead(out, y)[:, k] / NORMS[name].dual(w[y] - w[k]) for k in range(K)], 1)
        assert_close(told, far.nan_to_num(torch.inf).amin(1).detach(), rtol=2e-4, atol=1e-5)


def lead(out, y):
    return (out.gather(1, y[:, None]) - out).scatter(1, y[:, None], torch.inf)


@pytest.mark.parametrize("network", ["plain", "robust"])
def test_certified_is_at_most_exact_and_exact_at_most_attacked(network):
    kept = stored(network)
    n = 4
    x, y = torch.from_numpy(kept.x[:n]), torch.from_numpy(kept.y[:n])
    for name in ("Linf", "L1"):
        crown, ibp = (certify(kept.model, x, y, m, norm=name, bounds=(0, 1)) for m in ("crown", "ibp"))
        true = torch.from_numpy(kept.bound[name][:n])
        attack = make("bisection", kept.model, norm=name, bounds=(0, 1), loss_func="margin").run(x, y)
        assert (crown.radius <= true + 1e-9).all() and (true <= attack.distance + 1e-9).all()
        assert (ibp.radius <= crown.radius * 1.01).all() and (ibp.radius > 0).all()
        assert (crown.radius > true * 0.2).all()  # and it says something


def test_nothing_is_found_within_what_is_certified():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, K))
    x = torch.rand(6, 1, 6, 6)
    y = model(x).argmax(1)
    for name in ("Linf", "L2", "L1"):
        told = certify(model, x, y, norm=name, bounds=(0, 1))
        eps = told.radius.clamp(max=36).float()
        for attack in ("pgd", "fmn"):
            found = make(attack, model, norm=name, bounds=(0, 1), eps=eps).run(x, y)
            assert not found.success.any()
        beyond = make("fmn", model, norm=name, bounds=(0, 1)).run(x, y)
        assert (told.radius <= beyond.distance.double()).all()


def test_a_lead_that_holds_is_what_makes_a_radius(linear):
    x = torch.rand(5, D)
    radius = certify(linear, x, method="ibp", norm="L2", tolerance=1e-4).radius
    assert (leads(linear, x, radius, method="ibp", norm="L2").amin(1) > 0).all()
    assert (leads(linear, x, radius * 1.001, method="ibp", norm="L2").amin(1) < 1e-5).all()


def test_the_model_is_left_as_it_was_and_passes_are_counted(linear):
    calls = []
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(K, K), nn.BatchNorm1d(K)).eval()
    model.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(7, D)
    state = torch.get_rng_state()
    told = certify(model, x, bounds=(0, 1))
    assert int(told.forwards.sum()) == sum(calls) and (told.backwards > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)

    def failing(x):
        raise Unreadable("no")

    with pytest.raises(Unreadable):
        certify(failing, x)


def test_rows_are_independent_and_the_batch_size_does_not_matter():
    model = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, K))
    x = torch.rand(6, D)
    whole = certify(model, x).radius
    assert_close(certify(model, x.flip(0), batch_size=3).radius.flip(0), whole, rtol=1e-6, atol=0)
    assert_close(torch.cat([certify(model, t[None]).radius for t in x]), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"method": "lp"}, "method must be"),
        ({"sigma": 1}, "'crown' takes no option 'sigma'; known are tolerance, batch_size"),
        ({"norm": "L0"}, "norm must be"),
        ({"tolerance": 0}, "tolerance"),
        ({"y": [K] * 2}, "classes"),
        ({"bounds": (0.9, 1)}, "inside the bounds"),
        ({"method": "smoothing", "sigma": 0}, "sigma"),
        ({"method": "smoothing", "alpha": 1}, "alpha"),
        ({"method": "smoothing", "n": 0}, "n must be"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_wrong_arguments_are_named(linear, told, message):
    with pytest.raises(ValueError, match=message):
        certify(linear, torch.full((2, D), 0.5), **told)


def two(weight):
    """A classifier of two classes whose boundary is a plane."""
    model = nn.Linear(len(weight), 2, bias=False)
    model.weight.data = torch.stack([torch.tensor(weight), -torch.tensor(weight)])
    return model


def test_smoothing_of_a_linear_model_comes_near_its_distance_from_below():
    model, sigma = two([3.0, -4.0]), 0.5
    x = torch.tensor([[0.5, 0.0], [0.0, 0.25], [-0.2, -0.1], [0.0, 0.0]])
    far = (x @ torch.tensor([0.6, -0.8])).abs().double()
    told = Smoothed(model, sigma).certify(x, n=20_000)
    sure = norm.cdf(far.numpy() / sigma)  # the probability of the class: the smoothed boundary is the same plane
    assert told.prediction.tolist() == [0, 1, 1, -1] or told.abstained.tolist()[2:] == [True, True]
    assert (told.radius <= far + 1e-9).all() and (told.probability.numpy() <= sure + 1e-9).all()
    # the interval's own width, five deviations of the count and its confidence
    width = 8 * np.sqrt(sure * (1 - sure) / 20_000) + 8 / 20_000
    assert (told.probability.numpy() >= sure - width).all()
    assert_close(told.radius[:2], sigma * torch.from_numpy(norm.ppf(told.probability[:2].numpy())))
    assert told.radius[told.abstained].eq(0).all()
    for name, share in (("Linf", 2**-0.5), ("L1", 1.0)):
        other = certify(model, x, method="smoothing", norm=name, sigma=sigma, n=20_000)
        assert_close(other.radius, told.radius * share)


def test_the_interval_of_smoothing_covers_what_it_says():
    """The bound is above the true probability in at most a share alpha of runs, by a binomial test of 300 of them."""
    model, x, sigma, alpha = two([1.0, 0.0]), torch.tensor([[0.2, 0.0]]), 0.4, 0.2
    runs = torch.cat([x + 0 * i for i in range(1)])
    true = norm.cdf(0.2 / sigma)
    missed = sum(
        float(Smoothed(model, sigma, alpha, seed=s).certify(runs, n0=50, n=60).probability[0]) > true
        for s in range(300)
    )
    assert missed <= binom.ppf(1 - 1e-6, 300, alpha)
    assert missed > 10  # and it is no wider than it must be


def test_smoothing_predicts_the_likeliest_class_or_abstains():
    model = two([1.0, 0.0])
    x = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.0]])
    assert Smoothed(model, 0.5).predict(x, 500).tolist() == [0, 1, -1]


def test_smoothing_draws_by_seed_and_sample_alone():
    model, x = two([1.0, 0.5]), torch.randn(4, 2)
    told = Smoothed(model, 0.7, seed=3).certify(x, n=999)
    small = Smoothed(model, 0.7, seed=3, batch_size=17).certify(x.flip(0), n=999)
    assert torch.equal(small.probability.flip(0), told.probability)
    assert not torch.equal(Smoothed(model, 0.7, seed=4).certify(x, n=999).probability, told.probability)
    assert told.forwards.tolist() == [1099] * 4


def test_outputs_that_are_not_finite_vote_for_no_class():
    linear = two([1.0, 0.0])

    def model(x):
        return torch.where(x[:, :1] > 0.2, linear(x), torch.nan)

    told = Smoothed(model, 0.1).certify(torch.tensor([[0.2, 0.0]]), n=2000)
    assert told.abstained.item() and told.probability.item() < 0.5


@pytest.mark.parametrize("name", ["crown", "ibp", "smoothing"])
def test_a_block_has_a_row_for_each_sample_and_the_same_again(linear, name):
    x = torch.rand(5, D)
    y = linear(x).argmax(1)
    y[1] = (y[1] + 1) % K
    block = Block(x, y, range(10, 15), (0.0, 1.0))
    spec = Spec(models=("m",), data="d", norm="L2", eps=(0.1,))
    options = {"n": 500} if name == "smoothing" else {}
    done = bound_block(linear, block, name, options, spec)
    told = certify(linear, x, y, name, norm="L2", bounds=(0, 1), **options)
    assert [r.position for r in done.rows] == list(range(10, 15))
    assert [r.distance for r in done.rows] == told.radius.tolist()
    assert [r.prediction for r in done.rows] == told.prediction.tolist()
    assert not any(r.success or r.flagged or r.eps for r in done.rows) and all(r.margin is None for r in done.rows)
    assert [r.forwards for r in done.rows] == [1 + n for n in told.forwards.tolist()]
    assert done.rows == bound_block(linear, block, name, options, spec).rows
    assert name == "smoothing" or (done.rows[1].prediction, done.rows[1].distance) == (-1, 0.0)


def test_samples_without_a_finite_output_are_flagged(linear):
    def model(x):
        return linear(x) / (x[:, :1].detach() * 0 + 1)

    x = torch.rand(3, D)
    block = Block(x, linear(x).argmax(1), range(3), (0.0, 1.0))
    spec = Spec(models=("m",), data="d", norm="Linf", eps=(0.1,))
    broken = nn.Linear(D, K)
    broken.weight.data[0, 0] = torch.nan
    done = bound_block(broken, block, "crown", {}, spec)
    assert [(r.flagged, r.prediction, r.distance) for r in done.rows] == [(True, -1, 0.0)] * 3
    unknown = bound_block(model, block, "crown", {}, spec)
    assert [(r.flagged, r.prediction, r.distance) for r in unknown.rows] == [(False, -1, 0.0)] * 3
    assert "detach" in unknown.notes[0]

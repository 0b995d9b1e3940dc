"""FAB and FAB-T: exact where the model is affine, no farther than the library's own, and no pass too many."""

import numpy as np
import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from peers import adv_lib
from test_exact_affine import exact, problem
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import FAB, ZeroGradientWarning, make
from robustx.attacks.fab import onto
from robustx.perturb import NORMS, Region

every = pytest.mark.parametrize("norm", FAB.norms)
both = pytest.mark.parametrize("targets", [None, 4], ids=["fab", "fab-t"])
P = {"L1": 1, "L2": 2, "Linf": float("inf")}
EPS = {"L1": 0.5, "L2": 0.2, "Linf": 0.05}


def inside(classes=5, count=32):
    """An affine model, and inputs that stand away from the walls of [0, 1]."""
    model, x = affine(48, classes, dtype=torch.float32).eval(), 0.2 + 0.6 * torch.rand(count, 3, 4, 4)
    return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def digits():
    """The adversarially trained network and images that it knows."""
    model, data = zoo.load("digits-robust")
    x, y = torch.as_tensor(data.x[:40]), torch.as_tensor(data.y[:40]).long()
    right = model(x).argmax(1) == y
    return model, x[right], y[right]


@every
@both
@pytest.mark.parametrize("walls", [False, True])
def test_least_distances_of_an_affine_model(norm, targets, walls):
    model, x, y = problem(5) if walls else inside()
    truth = exact(model, x, y, norm)
    result = FAB(model, bounds=(0, 1), norm=norm, steps=30, targets=targets).run(x, y)
    ratio = result.distance.numpy() / truth
    assert result.success.all() and (ratio >= 1 - 1e-6).all()
    assert np.median(ratio) <= 1.0005 and np.quantile(ratio, 0.95) <= 1.02


@every
@both
def test_in_a_box_of_each_feature(norm, targets):
    """Whatever the box allows is found."""
    model, x, y = problem(5, dtype=torch.float64)
    low, high = x - 0.2 * torch.rand(1, 3, 4, 4).double(), x + 0.2 * torch.rand_like(x)
    truth = exact(model, x, y, norm, low=low.flatten(1), high=high.flatten(1))
    result = FAB(model, bounds=(low, high), norm=norm, steps=30, targets=targets).run(x, y)
    can = np.isfinite(truth)
    assert result.success.tolist() == can.tolist() and 5 < can.sum() < 32
    ratio = result.distance.numpy()[can] / truth[can]
    assert (ratio >= 1 - 1e-9).all() and np.median(ratio) <= 1.002 and ratio.max() <= 1.03


@every
@pytest.mark.parametrize("of", ["affine", "digits"])
def test_no_farther_than_the_library(norm, of, request):
    """adv-lib's FAB at as many steps; it asks the model twice in each."""
    model, x, y = inside() if of == "affine" else request.getfixturevalue("digits")
    theirs = NORMS[norm].size((adv_lib.attacks.fab(model, x, y, norm=P[norm], n_iter=20) - x).flatten(1))
    ours = FAB(model, bounds=(0, 1), norm=norm, steps=20).run(x, y)
    targeted = make("fab-t", model, bounds=(0, 1), norm=norm, steps=20, targets=4).run(x, y)
    assert ours.success.all() and targeted.success.all()
    assert ours.distance.mean() <= theirs.mean() and targeted.distance.mean() <= theirs.mean()


@every
@pytest.mark.parametrize("targets, rivals", [(None, 5), (1, 1), (3, 3), (9, 5)])
def test_one_pass_forward_a_step(norm, targets, rivals):
    """And one back for each rival: of all of them at once, or of one in each run."""
    net = mlp(6)
    x, y = examples(net)
    model = Counted(net, len(x))
    attack = FAB(model, bounds=(0, 1), norm=norm, steps=7, targets=targets)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist()
    assert result.backwards.tolist() == model.backwards.tolist()
    moved = result.distance > 0
    assert moved.sum() == 10 and (result.backwards[moved] == 7 * rivals).all()
    drawn_back = 2 + 9 + (0 if targets is None else 1)  # first and last look, the way back, who the rivals are
    assert (result.forwards[moved] <= (7 + 1) * (1 if targets is None else rivals) + drawn_back).all()


@every
@both
def test_with_early_stop_whatever_falls_within_the_budget_falls_sooner(norm, targets):
    net = mlp()
    x, y = examples(net, count=24)
    options = {"bounds": (0, 1), "norm": norm, "steps": 20, "targets": targets, "eps": EPS[norm]}
    full, quick = (FAB(net, early_stop=stop, **options).run(x, y) for stop in (False, True))
    assert 4 < quick.success.sum() < 22 and (quick.success <= full.success).all()
    assert (full.success & ~quick.success).sum() <= 1  # only the way back at the end makes a difference
    moved = quick.distance > 0
    assert (quick.distance <= EPS[norm] * (1 + 1e-9)).all() and (quick.distance >= full.distance)[moved].all()
    assert (quick.backwards <= full.backwards).all()
    assert quick.backwards[moved].sum() < full.backwards[moved].sum() / 2
    with pytest.raises(ValueError, match="eps is missing"):
        FAB(net, bounds=(0, 1), norm=norm, early_stop=True).run(x, y)


@every
def test_restarts_only_bring_nearer(norm, digits):
    model, x, y = (t[:16] if isinstance(t, torch.Tensor) else t for t in digits)
    few, more = (FAB(model, bounds=(0, 1), norm=norm, steps=8, restarts=n).run(x, y) for n in (1, 3))
    assert (more.distance <= few.distance * 1.0001).all() and (more.distance < 0.99 * few.distance).any()
    assert (more.backwards == 3 * few.backwards).all()


@every
def test_from_a_plateau_by_a_sure_start(norm):
    """Where the gradient is zero at the input, the boundary is found from a point beyond it."""

    def model(x):
        rise = (x[:, 0] - 0.6).clamp(min=0) + 0 * x.sum(1)
        return torch.stack([0 * rise + 0.1, rise], 1)

    x = torch.full((4, 3), 0.2, dtype=torch.float64)
    with pytest.warns(ZeroGradientWarning):
        result = FAB(model, bounds=(0, 1), norm=norm, steps=60).run(x, torch.zeros(4, dtype=torch.long))
    assert result.success.all()
    assert_close(result.distance, torch.full_like(result.distance, 0.5), rtol=1e-2, atol=0)


@every
def test_views_are_left_alone(norm):
    """What is handed in, a slice of something larger, is no tensor to work on."""
    net = mlp(dtype=torch.float32)
    whole = torch.rand(24, 2, 3, 3).requires_grad_()
    kept, x = whole.detach().clone(), whole[::2].transpose(2, 3)
    FAB(net, bounds=(0, 1), norm=norm, steps=3).run(x, torch.arange(12) % 4)
    assert torch.equal(whole, kept) and x.grad_fn is not None and whole.grad is None


@every
def test_onto_a_boundary_from_either_side(norm):
    torch.manual_seed(0)
    x, slope, lead = torch.rand(40, 6).double(), torch.randn(40, 6).double(), torch.randn(40).double() / 4
    region = Region(
        x, NORMS[norm], torch.full((40,), torch.inf).double(), torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    )
    move = onto(region, x, lead, slope)
    left = lead + (slope * move).sum(1)
    blocked = (left.abs() > 1e-9).nonzero().squeeze(1)
    assert len(blocked) < 10 and (lead < 0).any() and (lead > 0).any()
    assert torch.equal(region.clip(x + move), (x + move).clamp(0, 1))
    away = torch.where((lead > 0)[:, None] == (slope > 0), 0.0, 1.0).double()[blocked]  # the corner that comes closest
    assert_close((x + move)[blocked], away)


def test_options_are_checked():
    model = affine(4, 3)
    for options, told in (
        ({"backward": 1.5}, "backward must be a share between 0 and 1, got 1.5"),
        ({"bias": -0.1}, "bias must be a share"),
        ({"overshoot": -1}, "overshoot must be a share"),
        ({"targets": 0}, "targets"),
        ({"norm": "L0"}, "knows .Linf, L2, L1., got L0"),
    ):
        with pytest.raises(ValueError, match=told):
            FAB(model, **options)
    with pytest.raises(ValueError, match="targets=... is for untargeted attacks"):
        FAB(model, targets=2, bounds=(0, 1)).run(torch.rand(2, 4).double(), torch.tensor([0, 1]), targeted=True)

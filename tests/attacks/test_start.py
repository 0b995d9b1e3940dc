"""Where a search for the nearest point begins: at a point that reaches the goal, drawn back straight to the centre."""

import pytest
import torch
from attack_cases import affine, examples, mlp
from exact import distances
from torch.testing import assert_close

from robustx.attacks import Found
from robustx.attacks.found import shrunk, way_back
from robustx.attacks.search import sure
from robustx.engine import Noise, Probe
from robustx.engine.randomness import identities
from robustx.perturb import NORMS, Between, Leave, Region, Until

every = pytest.mark.parametrize("norm", NORMS)
infinite = -torch.inf, torch.inf


def region(x, norm, low=0.0, high=1.0, free=None):
    x = x.flatten(1)
    ends = (torch.full((1, 1), v, dtype=x.dtype) for v in (low, high))
    return Region(x, NORMS[norm], torch.full_like(x[:, 0], torch.inf), *ends, free)


def begin(model, x, goal, norm, **limits):
    f = Probe(model, (x,), goal, strict=False)
    near = region(x, norm, **limits)
    return sure(f, near, f.everyone, Noise(0, "test", identities(near.centre))), near, f


CURVES = {
    "line": lambda t: 3 * (t - 0.3),
    "bend": lambda t: t**2 - 0.3**2,
    "sharp bend": lambda t: t**8 - 0.3**8,
    "step": lambda t: torch.where(t > 0.3, 1.0, -1.0) + 0 * t,
    "saturated": lambda t: torch.tanh(200 * (t - 0.3)),
    "steep": lambda t: 1e6 * (t - 0.3).clamp(min=-1e-6),
    "ruled out": lambda t: torch.where(t > 0.3, t, -torch.inf),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("told", [True, False])
def test_way_back_ends_just_beyond_the_crossing(curve, told):
    """Whatever the margin does: as near as halving comes with one round less, and much nearer where it is smooth."""
    home, away = torch.zeros(3, 2).double(), torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 5.0]]).double()
    f = Probe(lambda z: CURVES[curve](z[:, 0]), (home,), Until(lambda out: out), strict=False)
    for rounds in (3, 6, 12):
        z = way_back(f, f.everyone, home, away, rounds, f.value(away) if told else None)
        off = 1e-8 if curve in ("line", "bend") and rounds == 12 else 2.0 ** (1 - rounds)
        assert (z[:, 0] > 0.3).all() and (z[:, 0] <= 0.3 + off * away[:, 0]).all()
        assert_close(z[:, 1] / z[:, 0], away[:, 1] / away[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_way_back_leaves_what_another_batch_may_round(dtype):
    """A regression: points found on the very boundary were on the other side of it when they were asked for again."""
    home, away = torch.zeros(3, 1, dtype=dtype), torch.tensor([[1.0], [2.0], [5.0]], dtype=dtype)
    f = Probe(lambda z: 4 * z[:, 0] - 1, (home,), Until(lambda out: out))
    margin = f.value(way_back(f, f.everyone, home, away, 30))
    assert (margin > 8 * torch.finfo(dtype).eps).all() and (margin < 2e-5).all()


@every
def test_no_point_moves_away(norm):
    """Points that are as near as they can be come back, and so do those that miss the goal."""
    x = torch.zeros(3, 2).double()
    f = Probe(lambda z: z[:, 0] - 0.5, (x,), Until(lambda out: out))
    near = region(x, norm)
    z = torch.tensor([[0.5 + 1e-12, 0.0], [1.0, 0.0], [0.4, 0.0]], dtype=torch.float64)
    found = shrunk(f, near, f.everyone, Found(z, f.value(z), near.size(z)))
    assert found.success.tolist() == [True, True, False]
    assert_close(found.z[[0, 2]], z[[0, 2]], rtol=0, atol=1e-12)
    assert found.z[1, 0] == 1 if norm == "L0" else found.z[1, 0] < 0.501


@every
def test_everything_that_can_be_fooled_is_a_start(norm):
    """An affine model and a box of each example: a start exists exactly where the least distance is finite."""
    model = affine(18, 5)
    x, y = examples(model, wrong=0)
    low, high = (x - 0.1).clamp(min=0).flatten(1), (x + 0.1).clamp(max=1).flatten(1)
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    truth = torch.from_numpy(distances(weight, bias, x.flatten(1), y, norm, low=low, high=high))
    f = Probe(model, (x,), Leave(y), strict=False)
    near = Region(x.flatten(1), NORMS[norm], torch.full_like(truth, torch.inf), low, high)
    found = sure(f, near, f.everyone, Noise(0, "test", identities(near.centre)))
    assert found.success.tolist() == truth.isfinite().tolist() and 2 < found.success.sum() < len(x)
    assert ((found.z >= low) & (found.z <= high)).all()
    assert (found.size[found.success] >= truth[found.success] * (1 - 1e-9)).all()
    assert_close(found.margin, f.value(found.z))


@every
@pytest.mark.parametrize("goal", ["leave", "between"])
def test_a_row_starts_where_it_would_alone(norm, goal):
    model = mlp()
    x, y = examples(model, wrong=0)
    goals = {"leave": lambda y: Leave(y), "between": lambda y: Between(low=0.0, target=1)}
    together, _, f = begin(model, x, goals[goal](y), norm)
    assert together.success.sum() > len(x) / 2
    for i in range(0, len(x), 4):
        alone, _, g = begin(model, x[i : i + 1], goals[goal](y[i : i + 1]), norm)
        assert_close(alone.z[0], together.z[i])
        assert g.meter.forward == f.meter.forward[i] and g.meter.backward == f.meter.backward[i]


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_without_bounds(norm):
    model = mlp()
    x = 4 * torch.randn(12, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    found, _, _ = begin(model, x, Leave(y), norm, low=-torch.inf, high=torch.inf)
    assert found.success.all() and found.z.isfinite().all()


@every
def test_rivals_are_tried_where_the_nearest_is_out_of_reach(norm):
    """Class 1 is close and climbs, but never wins; class 2 does, far away in another direction."""

    def model(x):
        return torch.stack([0 * x[:, 0], x[:, 0] - 1.5, 2 * x[:, 1] - 1.9], 1)

    x = torch.zeros(2, 2).double()
    found, near, _ = begin(model, x, Leave(torch.zeros(2, dtype=torch.long)), norm)
    assert found.success.all() and (found.z[:, 1] > 0.95).all()
    stuck, _, _ = begin(lambda x: model(x)[:, :2], x, Leave(torch.zeros(2, dtype=torch.long)), norm)
    assert not stuck.success.any()


@every
def test_where_no_gradient_leads(norm):
    """A plateau: only a draw can find the rest of the box. What may not move stays, and a constant stays unfooled."""
    x = torch.full((3, 4), 0.5).double()
    free = torch.tensor([[True, True, False, True]]).expand(3, 4)
    step = Until(lambda out: torch.where(out > 0.6, 1.0, -1.0) + 0 * out)
    found, _, _ = begin(lambda x: x[:, 0], x, step, norm, free=free)
    assert found.success.all() and (found.z[:, 2] == 0.5).all() and (found.z[:, 0] > 0.6).all()
    found, _, _ = begin(lambda x: 0 * x[:, :2] + torch.tensor([1.0, 0.0]), x, Leave(torch.zeros(3).long()), norm)
    assert not found.success.any() and found.z.isfinite().all()

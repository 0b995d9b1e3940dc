"""The point-wise best of several attacks: never below the truth, hardly above it, and it says who found what."""

import numpy as np
import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from exact_relu import stored
from test_exact_affine import exact, problem
from torch.testing import assert_close

from robustx.attacks import CW, DDN, FAB, FMN, PGD, Found, Portfolio, minimal_distance
from robustx.attacks.portfolio import polished
from robustx.engine import Probe
from robustx.perturb import NORMS, Leave, Region, Until

every = pytest.mark.parametrize("norm", NORMS)


@pytest.mark.parametrize("name", ["plain", "robust"])
@pytest.mark.parametrize("norm, most", [("Linf", 1.05), ("L1", 1.10)])
def test_least_distances_of_relu_networks(name, norm, most):
    """Those that mixed-integer programmes have proved."""
    net = stored(name)
    result = minimal_distance(net.model, torch.from_numpy(net.x), torch.from_numpy(net.y), norm, bounds=(0, 1))
    ratio = result.distance.numpy() / net.distance[norm]
    assert result.success.all() and (ratio >= 1 - 1e-6).all()
    assert ratio.max() <= most and np.median(ratio) <= 1 + 1e-5


@every
@pytest.mark.parametrize("walls", [False, True])
def test_least_distances_of_an_affine_model(norm, walls):
    model, x, y = problem(5, dtype=torch.float64)
    x = x if walls else x.clamp(0.2, 0.8)
    y = model(x).argmax(1)
    truth = exact(model, x, y, norm)
    result = minimal_distance(model, x, y, norm, bounds=(0, 1), steps=40)
    ratio = result.distance.numpy() / truth
    assert result.success.all() and (ratio >= 1 - 1e-9).all()
    assert np.median(ratio) <= 1 + 2e-6 and ratio.max() <= (1.5 if norm == "L0" else 1.002)


@every
def test_no_part_does_better_alone(norm):
    """And the one that is named does as well, before it is polished at most a little farther."""
    model = mlp()
    x, y = examples(model)
    whole = Portfolio(model, bounds=(0, 1), norm=norm, steps=16)
    result = whole.run(x, y)
    alone = {}
    for name, part in whole.parts.items():
        part.lower_bound, part.upper_bound = 0, 1
        alone[name] = part.run(x, y).distance
        assert (result.distance <= alone[name] * (1 + 1e-9)).all()
    assert result.by is not None and set(result.by[:-2]) <= set(whole.parts) and result.by[-2:] == ("", "")
    named = torch.stack([alone[name][i] for i, name in enumerate(result.by[:-2])])
    assert (named <= 1.2 * result.distance[:-2] + (norm == "L0")).all()


def test_who_found_what_follows_the_examples():
    """One part is good at half of the examples, the other at the rest; each is named where it is the better one."""

    class Half(FAB):
        def __init__(self, *args, first, **options):
            super().__init__(*args, **options)
            self.first = first

        def search(self, f, region, rows, noise):
            found = super().search(f, region, rows, noise)
            good = (rows < 5) == self.first
            return Found(found.z, torch.where(good, found.margin, -1.0), found.size)

    model = mlp()
    x, y = examples(model)
    parts = {name: Half(model, norm="L2", steps=5, first=name == "early") for name in ("late", "early")}
    attack = Portfolio(model, bounds=(0, 1), norm="L2", attacks=parts)
    expected = ("early",) * 5 + ("late",) * 5 + ("", "")
    result = attack.run(x, y)
    assert result.by == expected and result.success.all()
    assert attack.run(x, y, eps=0.0).by == ("",) * 12
    near = float(result.distance[:10].median())
    wide, tight = attack.run(x, y, eps=[1.0, near])
    assert wide.by == expected
    assert tight.by == tuple(b if d <= near else "" for b, d in zip(expected, wide.distance.tolist(), strict=True))
    order = torch.randperm(len(x))
    assert result.at(order).by == tuple(expected[i] for i in order)
    assert set(result.to_pandas()["by"]) == {"early", "late", ""}


@every
def test_every_pass_is_counted(norm):
    net = mlp()
    x, y = examples(net)
    model = Counted(net, len(x))
    attack = Portfolio(model, bounds=(0, 1), norm=norm, steps=8)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist()
    assert result.backwards.tolist() == model.backwards.tolist()


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_polishing_ends_at_the_nearest_point_of_the_boundary_around(norm):
    """From a poor point: exact for a model that is affine; of a count, what is not needed is put back."""
    model, x, y = problem(2, dtype=torch.float64)
    f = Probe(model, (x,), Leave(y), strict=False)
    low, high = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    region = Region(f.point, NORMS[norm], torch.full((32,), torch.inf).double(), low, high)
    far = (f.point + 0.9 * (model[1].weight.diff(dim=0) * torch.where(y == 0, 1, -1)[:, None]).sign()).clamp(0, 1)
    poor = Found(far.detach(), f.value(far), region.size(far.detach()))
    assert poor.success.all()
    found, truth = polished(f, region, f.everyone, poor), exact(model, x, y, norm)
    np.testing.assert_allclose(found.size, truth, rtol=1e-4)
    assert (poor.size.numpy() > 1.5 * truth).all()
    missed = Found(f.point, f.value(f.point), region.size(f.point))
    assert torch.equal(polished(f, region, f.everyone, missed).z, f.point)


def test_other_goals_and_a_mask():
    model = mlp()
    x, y = examples(model, wrong=0)
    goal = (y + 1) % 4
    options = {"norm": "L2", "bounds": (0, 1), "steps": 20}
    reached = minimal_distance(model, x, goal, targeted=True, **options)
    assert reached.success.all() and torch.equal(model(reached.adversarial).argmax(1), goal)
    same = minimal_distance(model, x, goal=Until(lambda out: out[:, 1] - out[:, [0, 2, 3]].amax(1)), **options)
    at = goal == 1
    assert at.any()
    assert_close(same.distance[at], reached.distance[at], rtol=1e-3, atol=1e-6)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0]])
    held = minimal_distance(model, x, y, mask=mask, **options)
    assert not (held.adversarial != x)[..., mask == 0].any() and held.success.any()
    free = minimal_distance(model, x, y, **options)
    assert (held.distance >= free.distance * (1 - 1e-6))[held.success].all()


def test_attacks_of_ones_own():
    model = mlp()
    x, y = examples(model)
    attacks = {"ddn": DDN(model, steps=20), "cw": CW(model, norm="L2", steps=20, rounds=2)}
    result = minimal_distance(model, x, y, "L2", bounds=(0, 1), attacks=attacks)
    assert result.success.all() and set(result.by) <= {"ddn", "cw", ""}
    for wrong in (PGD(model, norm="L2"), FMN(model, norm="L1")):
        with pytest.raises(ValueError, match="attacks must look for nearest points in L2, but 'mine' is"):
            Portfolio(affine(18, 4), norm="L2", attacks={"mine": wrong})


def test_further_arguments_reach_the_model():
    model, (x, y) = mlp(), examples(mlp())
    shift = torch.zeros(len(x), 4, dtype=torch.float64)
    found = minimal_distance(
        lambda x, shift, scale: (model(x) + shift) * scale,
        x,
        y,
        "L2",
        bounds=(0, 1),
        additional_forward_args=shift,
        additional_forward_kwargs={"scale": 1.0},
        steps=5,
    )
    assert_close(found.distance, minimal_distance(model, x, y, "L2", bounds=(0, 1), steps=5).distance)


def test_minimal_distance_keeps_the_history_on_request():
    model, x = (lambda x: x), torch.tensor([[0.8, 0.4], [0.6, 0.5]])
    asked, plain = (minimal_distance(model, x, 0, "L2", steps=4, history=h) for h in (True, False))
    assert plain.history is None and (asked.history > 0).any(1).all()

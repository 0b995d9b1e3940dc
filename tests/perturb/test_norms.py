"""The laws of every norm, in a box and without: a new one is a line in NORMS and an oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least, most, nearest
from scipy.stats import beta, chisquare, kstest
from torch.testing import assert_close

from robustx.engine import Noise
from robustx.perturb import NORMS, Linf, Norm, norm_of

every = pytest.mark.parametrize("name", NORMS)
convex = pytest.mark.parametrize("name", [n for n in NORMS if n != "L0"])
shapes = pytest.mark.parametrize("n, d", [(64, 7), (9, 1), (3, 400), (0, 4), (4, 0), (0, 0)])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

numbers = st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0]) | st.floats(-3, 3, allow_subnormal=False)  # ties and zeros
rooms = st.sampled_from([0.0, 0.5, np.inf]) | st.floats(0, 2, allow_subnormal=False)
radii = st.sampled_from([0.0, 1.0, 2.0, 3.0]) | st.floats(0, 6, allow_subnormal=False)


@st.composite
def problems(draw, boxed):
    """A vector, a radius and a box around zero; without ``boxed``, an infinite one."""
    n = draw(st.integers(1, 5))
    low, high = (draw(st.lists(rooms, min_size=n, max_size=n)) if boxed else [np.inf] * n for _ in range(2))
    vector = draw(st.lists(numbers, min_size=n, max_size=n))
    return np.array(vector), draw(radii), -np.array(low), np.array(high)


def room(way, low, high):
    """What a box means to a norm: how far each element may go its way."""
    return torch.where(way > 0, torch.as_tensor(high), -torch.as_tensor(low))


def batch(n, d, dtype=torch.float64):
    torch.manual_seed(0)
    z = torch.randn(n, d, dtype=dtype).round(decimals=1)
    return z, 3 * torch.rand(n, dtype=dtype), torch.rand(n, d, dtype=dtype)


def noise(n, method="test"):
    return Noise(0, method, [str(i) for i in range(n)])


@every
@pytest.mark.parametrize("boxed", [True, False])
def test_projection_is_the_nearest_point(name, boxed):
    @settings(max_examples=150)
    @given(problems(boxed))
    def check(problem):
        d, radius, low, high = problem
        z, r = torch.tensor(d)[None], torch.tensor([radius], dtype=torch.float64)
        p = NORMS[name].project(z, r, room(z, low, high) if boxed else None)[0].numpy()
        best = nearest(name, d, radius, low, high)
        assert (low <= p).all() and (p <= high).all()
        if name == "L0":
            assert (p != 0).sum() <= radius
            assert np.linalg.norm(d - p) == pytest.approx(best, abs=1e-12)
        else:
            assert p == pytest.approx(best, abs=1e-6)

    check()


@every
@pytest.mark.parametrize("boxed", [True, False])
def test_steepest_gains_most(name, boxed):
    @settings(max_examples=150)
    @given(problems(boxed))
    def check(problem):
        d, length, low, high = problem
        low, high = (low, high) if name != "L0" else (low.clip(-1), high.clip(max=1))  # L0 without a box has no best
        g, r = torch.tensor(d)[None], torch.tensor([length], dtype=torch.float64)
        v = NORMS[name].steepest(g, r, room(g, low, high) if boxed else None)[0].numpy()
        length = np.ceil(length) if name == "L0" else length
        assert (low <= v).all() and (v <= high).all()
        assert np.linalg.norm(v, float(name[1:])) <= length * (1 + 1e-12) + 1e-12
        assert g[0].numpy() @ v == pytest.approx(most(name, d, length, low, high), rel=1e-6, abs=1e-6)

    check()


@every
@pytest.mark.parametrize("boxed", [True, False])
def test_least_is_the_smallest_move_that_gains_enough(name, boxed):
    @settings(max_examples=150)
    @given(problems(boxed))
    def check(problem):
        d, gain, low, high = problem
        d = d.round(2)  # smaller slopes are beyond what the linear programme resolves
        g, need = torch.tensor(d)[None], torch.tensor([gain], dtype=torch.float64)
        v = NORMS[name].least(g, need, room(g, low, high) if boxed else None)[0].numpy()
        best = least(name, d, gain, low, high)
        assert (low <= v).all() and (v <= high).all()
        if np.isfinite(best):
            assert d @ v == pytest.approx(gain, rel=1e-6, abs=1e-9)
            assert np.linalg.norm(v, float(name[1:])) == pytest.approx(best, rel=1e-5, abs=1e-6)
        else:
            far = np.where(d == 0, 0, np.where(d > 0, high, low))
            assert d @ v == pytest.approx(d @ far, abs=1e-12)

    check()


@every
@pytest.mark.parametrize("boxed", [True, False])
@shapes
@dtypes
def test_least_is_the_inverse_of_steepest(name, boxed, n, d, dtype):
    norm, (g, length, there) = NORMS[name], batch(n, d, dtype)
    length = length.ceil() if name == "L0" else length
    there = there if boxed else torch.ones_like(there)
    gained = (g * norm.steepest(g, length, there)).sum(1) * (1 - 1e-6)  # a count is not for rounding to raise
    move = norm.least(g, gained, there)
    assert move.shape == g.shape and move.dtype == dtype
    assert_close((g * move).sum(1), gained)
    assert (norm.size(move) <= length * (1 + 1e-5) + 1e-6).all()
    assert (norm.least(g, -gained, there) == 0).all()


def test_least_in_units_of_each_element():
    """Linf with units: the same as without, in coordinates in which each unit is one."""
    g, gain, there = batch(16, 5)[0], torch.linspace(0, 2, 16, dtype=torch.float64), 3 * batch(16, 5)[2]
    scale = torch.tensor([1.0, 10.0, 0.1, 2.0, 3.0], dtype=torch.float64)
    plain = Linf().least(g * scale, gain, there / scale) * scale
    assert_close(Linf(scale).least(g, gain, there), plain)


@every
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30])
def test_least_ignores_the_scale_of_the_gradient(name, scale):
    norm, (g, gain, there) = NORMS[name], batch(16, 5)
    for limits in (None, there):
        assert_close(norm.least(g * scale, gain * scale, limits), norm.least(g, gain, limits))


def test_what_is_left_free_may_be_tiny_beside_what_is_not():
    g, r = torch.tensor([[0.5, 2.7e-186]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    v = NORMS["L2"].steepest(g, r, room(g, np.zeros(2), np.array([0.0, np.inf])))
    assert_close(v, torch.tensor([[0.0, 2.0]], dtype=torch.float64))


@every
@shapes
@dtypes
def test_prox_is_the_best_bargain(name, n, d, dtype):
    """No point does better, near or far; and nothing is left exactly where the dual norm is at most the weight."""
    norm = NORMS[name]
    z, weight, _ = batch(n, d, dtype)

    def cost(v):
        price = weight if name != "L0" else weight.square() / 2
        return (v - z).square().sum(1) / 2 + price * norm.size(v)

    p = norm.prox(z, weight)
    assert p.shape == z.shape and p.dtype == dtype
    others = [z, 0 * z, p * 0.99, p * 1.01, *(p + s * torch.randn_like(p) for s in (1e-2, 1e-1, 1, 10))]
    others += [torch.where(torch.rand_like(p) < 0.5, p, v) for v in (z, 0 * z)]
    for v in others:
        assert (cost(p) <= cost(v) * (1 + 1e-6) + 1e-6).all()
    rounding = 1e-5 * (1 + weight)
    assert not p[norm.dual(z) <= weight - rounding].any() and p[norm.dual(z) > weight + rounding].any(1).all()
    assert_close(norm.prox(z, 0 * weight), z)


@convex
@shapes
def test_prox_and_the_projection_onto_the_dual_ball_add_up(name, n, d):
    dual = NORMS[{"L1": "Linf", "L2": "L2", "Linf": "L1"}[name]]
    z, weight, _ = batch(n, d)
    assert_close(NORMS[name].prox(z, weight) + dual.project(z, weight), z)


def test_prox_in_units_of_each_element():
    """Against a search over the level at which everything is cut."""
    units = torch.tensor([1.0, 10.0, 0.1, 2.0], dtype=torch.float64)
    z, weight, _ = batch(16, 4)
    level = torch.linspace(0, 40, 200_001, dtype=torch.float64)[:, None]
    for row, w, p in zip(z * units, weight, Linf(units).prox(z * units, weight), strict=True):
        cut = row.sign() * torch.minimum(row.abs(), level * units)
        best = ((cut - row).square().sum(1) / 2 + w * level.squeeze(1)).argmin()
        assert_close(p, cut[best], rtol=0, atol=3e-3)


@every
@shapes
def test_outside_are_elements_of_rows_that_are_outside(name, n, d):
    """Some in each of them, and none in the others; drawn in, they are outside no more."""
    z, radius, _ = batch(n, d)
    for norm in (NORMS[name], Linf(torch.linspace(0.1, 2, d)) if name == "Linf" else NORMS[name]):
        outside = norm.outside(z, radius)
        assert outside.any(1).tolist() == (norm.size(z) > radius).tolist()
        assert not norm.outside(torch.where(outside, 0, z), radius).any()


@every
@shapes
@dtypes
def test_size_is_the_norm_of_each_row(name, n, d, dtype):
    z = batch(n, d, dtype)[0]
    expected = [np.linalg.norm(row, float(name[1:])) if d else 0.0 for row in z.numpy()]
    assert_close(NORMS[name].size(z), torch.tensor(expected, dtype=dtype).reshape(n))


@every
@pytest.mark.parametrize("boxed", [True, False])
@shapes
@dtypes
def test_projection_is_inside_and_at_rest(name, boxed, n, d, dtype):
    norm, (z, radius, there) = NORMS[name], batch(n, d, dtype)
    there = there if boxed else None
    radius[::2] = norm.size(z)[::2]  # half of the rows lie on the surface, or are cut by the box alone
    p = norm.project(z, radius, there)
    assert p.shape == z.shape and p.dtype == z.dtype
    assert (norm.size(p) <= radius * (1 + 1e-5) + 1e-6).all()
    assert not boxed or (p.abs() <= there).all()
    assert (p * z >= 0).all() and (p.abs() <= z.abs()).all()
    assert_close(norm.project(p, radius, there), p)
    assert_close(norm.project(z, norm.size(z), None), z)
    assert (norm.project(z, torch.zeros_like(radius), there) == 0).all()
    free = norm.project(z, torch.full_like(radius, torch.inf), there)
    assert_close(free, z if there is None else z.sign() * torch.minimum(z.abs(), there))


@convex
@shapes
def test_moreau(name, n, d):
    """A point p of the ball is the nearest exactly if <p, z - p> = radius * dual(z - p)."""
    norm, (z, radius, _) = NORMS[name], batch(n, d)
    rest = z - (p := norm.project(z, radius))
    assert_close((p * rest).sum(1), radius * norm.dual(rest))


@every
@shapes
@dtypes
def test_steepest_attains_the_dual_norm(name, n, d, dtype):
    norm, (g, length, _) = NORMS[name], batch(n, d, dtype)
    if name == "L0":
        length = torch.ones_like(length)
    v = norm.steepest(g, length)
    assert_close((g * v).sum(1), length * norm.dual(g))
    assert (v[g == 0] == 0).all()


@every
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30])
def test_steepest_ignores_the_scale_of_the_gradient(name, scale):
    norm, (g, length, there) = NORMS[name], batch(16, 5)
    for limits in (None, there):
        assert_close(norm.steepest(g * scale, length, limits), norm.steepest(g, length, limits))


@every
def test_rows_do_not_see_one_another(name):
    norm, (z, radius, there) = NORMS[name], batch(20, 6)
    for ask in (norm.project, norm.steepest):
        alone = [ask(z[i : i + 1], radius[i : i + 1], there[i : i + 1]) for i in range(20)]
        assert torch.equal(ask(z, radius, there), torch.cat(alone))


@every
def test_float32_projects_like_float64(name):
    z, radius, there = batch(64, 50, torch.float32)
    z += 1e-3 * torch.rand_like(z)  # without ties, which may fall either way in L0
    precise = NORMS[name].project(z.double(), radius.double(), there.double())
    assert_close(NORMS[name].project(z, radius, there).double(), precise, atol=1e-6, rtol=1e-6)


def test_l0_moves_first_what_brings_most():
    z, there = torch.tensor([[3.0, -2.0, 1.0]]), torch.tensor([[0.1, 2.0, 1.0]])
    two = torch.tensor([2.9])
    assert torch.equal(NORMS["L0"].project(z, two), torch.tensor([[3.0, -2.0, 0.0]]))
    assert torch.equal(NORMS["L0"].project(z, two, there), torch.tensor([[0.0, -2.0, 1.0]]))
    assert torch.equal(NORMS["L0"].steepest(z, torch.tensor([0.2]), there), torch.tensor([[0.0, -2.0, 0.0]]))


@pytest.mark.parametrize("boxed", [True, False])
@dtypes
def test_linf_in_units_of_each_element(boxed, dtype):
    """The largest change where each element is told in units of its own."""
    units = torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    norm, (z, radius, there) = Linf(units), batch(32, 4, dtype)
    edge = radius[:, None] * units.to(dtype)
    free = torch.full_like(there, torch.inf)
    for way in (z, z * units.to(dtype)):
        p = norm.project(way, radius, there if boxed else None)
        v = norm.steepest(way, radius, there if boxed else None)
        assert_close(p, torch.clamp(way, -edge, edge).clamp(*(t * there if boxed else t * free for t in (-1, 1))))
        assert_close(v, way.sign() * torch.minimum(edge, there if boxed else free))
        assert p.dtype == v.dtype == dtype
        assert_close(norm.size(way), (way / units.to(dtype)).abs().amax(1))
        assert_close(norm.dual(way) * radius, (way * norm.steepest(way, radius)).sum(1))
    box = torch.zeros(32, 4, dtype=dtype)
    assert_close(norm.draw(noise(32), radius, box, box), Linf().draw(noise(32), radius, box, box) * units.to(dtype))


@every
def test_a_budget_is_spent_in_whole_units(name):
    budget = torch.tensor([0.0, 0.4, 1.0, 2.7, 5.0])
    whole = torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0])
    assert torch.equal(NORMS[name].spendable(budget), whole if name == "L0" else budget)


# ---- random points

MARGINALS = {  # of |v_1| / radius in three dimensions
    "L1": beta(1, 3).cdf,
    "L2": lambda t: beta(0.5, 2).cdf(t**2),
    "Linf": lambda t: t,
}


@convex
@dtypes
def test_draws_are_uniform_in_the_ball(name, dtype):
    n, norm = 4000, NORMS[name]
    radius = torch.linspace(0.5, 2, n, dtype=dtype)
    box = torch.zeros(n, 3, dtype=dtype)
    v = norm.draw(noise(n), radius, box, box) / radius[:, None]
    assert v.dtype == dtype
    assert (norm.size(v) <= 1 + 1e-6).all()
    v = v.double().numpy()
    assert kstest(norm.size(torch.tensor(v)) ** 3, "uniform").pvalue > 1e-3  # volume grows with the third power
    for i in range(3):
        assert kstest(abs(v[:, i]), MARGINALS[name]).pvalue > 1e-3
    octants = np.bincount((v > 0) @ [1, 2, 4], minlength=8)
    assert chisquare(octants).pvalue > 1e-3
    assert abs(np.corrcoef(abs(v).T)[0, 1] - np.corrcoef(abs(v).T)[1, 2]) < 0.06  # no element is special


def test_draws_in_l0_choose_any_elements_and_go_anywhere():
    n, low, high = 3000, -1.0, 3.0
    box = [torch.full((n, 4), b, dtype=torch.float64) for b in (low, high)]
    v = NORMS["L0"].draw(noise(n), torch.full((n,), 2.5).double(), *box).numpy()
    assert ((v != 0).sum(1) == 2).all()
    pairs = np.bincount((v != 0) @ [1, 2, 4, 8], minlength=16)
    assert chisquare(pairs[pairs > 0]).pvalue > 1e-3 and (pairs > 0).sum() == 6
    assert kstest((v[v != 0] - low) / (high - low), "uniform").pvalue > 1e-3


@every
def test_draws_of_no_size_and_of_nothing(name):
    norm = NORMS[name]
    assert (norm.draw(noise(5), torch.zeros(5), -torch.ones(5, 3), torch.ones(5, 3)) == 0).all()
    for n, d in [(0, 3), (3, 0)]:
        assert norm.draw(noise(n), torch.ones(n), -torch.ones(n, d), torch.ones(n, d)).shape == (n, d)


# ---- names


@pytest.mark.parametrize("name", NORMS)
def test_norms_by_name(name):
    order = float(name[1:])
    for spelt in (name, name.lower(), name[1:], order, int(order) if order < 9 else np.inf, NORMS[name]):
        assert norm_of(spelt) is NORMS[name]
    assert str(NORMS[name]) == name and isinstance(NORMS[name], Norm)


@pytest.mark.parametrize("wrong", ["L3", 3, -1, "", "euclid", None, True])
def test_unknown_norms(wrong):
    with pytest.raises(ValueError, match=r"norm must be one of L0, L1, L2, Linf.*got"):
        norm_of(wrong)

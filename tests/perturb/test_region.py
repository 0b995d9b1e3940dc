"""The laws of regions, for every norm, every kind of box, and with elements that may not move."""

import numpy as np
import pytest
import torch
from oracles import most, nearest
from torch.testing import assert_close

from robustx.engine import Noise, Packing, Probe
from robustx.perturb import NORMS, Region
from robustx.perturb.region import box, packed

N, D = 24, 5
BOXES = ["numbers", "features", "rows", "one-sided", "infinite"]
REGIONS = [(n, b, f) for n in NORMS for b in BOXES for f in (False, True) if n != "L0" or b not in BOXES[3:]]
every = pytest.mark.parametrize("case", REGIONS, ids=lambda c: f"{c[0]}-{c[1]}-{'fixed' if c[2] else 'free'}")


def region(case, n=N, d=D, dtype=torch.float64):
    """A region with a radius for each row (0 and an infinite one among them), and points around it."""
    norm, kind, fixed = case
    torch.manual_seed(0)
    low, high = -torch.rand(n, d, dtype=dtype), torch.rand(n, d, dtype=dtype)
    low, high = {
        "numbers": (low[:1, :1], high[:1, :1]),
        "features": (low[:1], high[:1]),
        "rows": (low, high),
        "one-sided": (low[:1], torch.full((1, 1), torch.inf, dtype=dtype)),
        "infinite": (torch.full((1, 1), -torch.inf, dtype=dtype), torch.full((1, 1), torch.inf, dtype=dtype)),
    }[kind]
    part = torch.rand(n, d, dtype=dtype).masked_fill(torch.rand(n, d) < 0.2, 0)  # some stand at the box's edge
    span = high.clamp(max=1) - low.clamp(min=-1)
    centre = (low.clamp(min=-1) + part * span).expand(n, d)
    radius = 2 * torch.rand(n, dtype=dtype) if norm != "L0" else torch.arange(n, dtype=dtype) % (d + 1)
    if n > 1:
        radius[0], radius[1] = 0, torch.inf
    free = torch.rand(n, d) < 0.6 if fixed else None
    return Region(centre, NORMS[norm], radius, low, high, free), centre + 2 * torch.randn(n, d, dtype=dtype)


def assert_allowed(r, z):
    assert torch.isfinite(z).all()
    assert (r.norm.size(z - r.centre) <= r.radius * (1 + 1e-12) + 1e-12).all()
    assert ((z >= r.low) & (z <= r.high)).all()
    assert r.free is None or torch.equal(z[~r.free], r.centre[~r.free])


def moves(r):
    """How far each element may go down and up, as the oracles take it."""
    free = torch.ones_like(r.centre, dtype=torch.bool) if r.free is None else r.free
    return (torch.where(free, b - r.centre, 0).numpy() for b in (r.low, r.high))


@every
def test_projection_is_the_nearest_allowed_point(case):
    r, z = region(case)
    p = r.project(z)
    assert_allowed(r, p)
    assert_close(r.project(p), p, atol=1e-12, rtol=0)
    assert_close(r.project(r.centre), r.centre, atol=0, rtol=0)
    for i, (d, low, high) in enumerate(zip((z - r.centre).numpy(), *moves(r), strict=True)):
        radius = min(float(r.radius[i]), 99.0)
        best = nearest(case[0], d, radius, low, high)
        here = (p - r.centre)[i].numpy()
        if case[0] == "L0":
            assert np.linalg.norm(d - here) == pytest.approx(best, abs=1e-9)
        else:
            assert here == pytest.approx(best, abs=1e-6)


@every
def test_one_step_of_the_whole_radius_is_the_linear_optimum(case):
    r, g = region(case)
    r = r.to(radius=r.radius.clamp(max=3))
    z = r.step(r.centre, g, r.radius)
    if case[0] == "L0":
        r = r.to(radius=r.radius.ceil())
    assert_allowed(r, z)
    for i, (way, low, high) in enumerate(zip(g.numpy(), *moves(r), strict=True)):
        best = most(case[0], way, float(r.radius[i]), low, high)
        assert way @ (z - r.centre)[i].numpy() == pytest.approx(best, abs=1e-6)


@every
def test_steps_never_leave(case):
    r, _ = region(case)
    r = r.to(radius=r.radius.clamp(max=3))
    z, length = r.centre, 0.3 * r.radius + 0.1
    for _ in range(6):
        z = r.step(z, torch.randn_like(z), length)
        assert_allowed(r, z)
    assert (z != r.centre)[r.radius > 1].any()


@every
def test_usable_is_where_an_element_can_move(case):
    r, way = region(case)
    way[:, 0] = 0
    z = r.project(way)
    usable = r.usable(z, way)
    for i in range(N):
        for j in range(D):
            low, high = (b.expand_as(z)[i, j] for b in (r.low, r.high))
            blocked = z[i, j] >= high if way[i, j] > 0 else z[i, j] <= low
            fixed = r.free is not None and not r.free[i, j]
            assert usable[i, j] == (0 if blocked or fixed else way[i, j])


@every
def test_room_is_the_way_to_the_box(case):
    r, z = region(case)
    up, down = r.room(z, torch.ones_like(z)), r.room(z, -torch.ones_like(z))
    free = torch.ones_like(z, dtype=torch.bool) if r.free is None else r.free
    assert (up[~free] == 0).all() and (down[~free] == 0).all()
    for room, beyond, wall in ((up, z > r.high, r.high), (down, z < r.low, r.low)):  # some points are outside
        assert_close(room[free], torch.where(beyond, 0, (wall - z).abs())[free])


@every
def test_draws_are_allowed_and_keyed_by_row(case):
    r, _ = region(case)
    r = r.to(radius=r.radius.clamp(max=3))
    noise = Noise(3, "test", [str(i) for i in range(N)])
    z = r.draw(noise.again(0))
    assert_allowed(r, z)
    able = (r.radius >= 1) & (r.free is None or r.free.sum(1) > 2)
    assert (z != r.centre).any(1)[able].all()
    some = torch.tensor([7, 2, 7, 19])
    assert torch.equal(r.at(some).draw(noise.at(some)), z[some])


@every
@pytest.mark.parametrize("rows", [torch.tensor([3, 0, 3, 21]), torch.arange(N) % 3 == 0, torch.tensor([]).long()])
def test_a_part_is_what_the_whole_says_of_it(case, rows):
    r, z = region(case)
    part, g, length = r.at(rows), z.flip(0), torch.full((N,), 0.7, dtype=z.dtype)
    assert torch.equal(part.project(z[rows]), r.project(z)[rows])
    assert torch.equal(part.usable(z[rows], g[rows]), r.usable(z, g)[rows])
    assert torch.equal(part.step(r.centre[rows], g[rows], length[rows]), r.step(r.centre, g, length)[rows])
    assert torch.equal(part.size(z[rows]), r.size(z)[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_one_example_keeps_its_own_box_and_is_not_confused_with_a_shared_one(norm):
    r, z = region((norm, "rows", True), n=1)
    r = r.to(radius=torch.full_like(r.radius, 2.0))
    twice = r.at(torch.tensor([0, 0]))
    assert torch.equal(twice.project(z.repeat(2, 1)), r.project(z).repeat(2, 1))


@pytest.mark.parametrize("norm", NORMS)
def test_size_is_measured_finely(norm):
    centre = torch.full((1, 3), 1e3)
    r = Region(centre, NORMS[norm], torch.ones(1), centre - 1, centre + 1)
    z = centre + torch.tensor([[0.25, 0.0, 2.0**-13]])
    expected = np.linalg.norm([0.25, 0.0, 2.0**-13], float(norm[1:]))
    assert r.size(z).dtype == torch.float32 and float(r.size(z)) == pytest.approx(expected, rel=1e-7)


# ---- what is handed back, in the inputs' own dtypes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def settled(norm, dtypes, scale, d):
    """Points on the surface of balls of many sizes, around inputs of many magnitudes; and what is handed back."""
    torch.manual_seed(0)
    n, shapes = 60, [(d,), (2, 3)][: len(dtypes)]
    x = tuple((scale * torch.randn(n, *s)).to(t) for s, t in zip(shapes, dtypes, strict=True))
    packing = Packing.of(x)
    centre = packing.pack(x)
    radius = torch.logspace(-3, 0.5, n).to(centre) * scale
    if norm == "L0":
        radius = torch.arange(n).to(centre) % 5
    infinite = torch.full((1, 1), 8 * scale if norm == "L0" else torch.inf).to(centre)
    r = Region(centre, NORMS[norm], radius, -infinite, infinite)
    z = r.step(centre, torch.randn_like(centre) ** 3, radius)
    return r, x, z, r.settle(z, packing), packing.unpack(z)


def measured(norm, x, held):
    moves = torch.cat([(h.double() - t.double()).flatten(1) for h, t in zip(held, x, strict=True)], 1)
    return torch.linalg.vector_norm(moves, float(norm[1:]), dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtypes", [*([t] for t in DTYPES), [torch.float16, torch.float32]], ids=str)
@pytest.mark.parametrize("scale", [1.0, 256.0, 2.0**-10])
@pytest.mark.parametrize("d", [4, 3000])
def test_what_is_handed_back_never_leaves_the_ball(norm, dtypes, scale, d):
    r, x, z, held, rounded = settled(norm, dtypes, scale, d)
    assert [h.dtype for h in held] == dtypes and [h.shape for h in held] == [t.shape for t in x]
    assert (measured(norm, x, held) <= r.radius.double()).all()
    kept = measured(norm, x, rounded) <= r.radius.double()
    for h, t in zip(held, rounded, strict=True):
        assert torch.equal(h[kept], t[kept])
    if norm != "L0" and dtypes == [torch.float32]:
        assert not kept.all()  # else this test could not fail
        assert (measured(norm, x, held) >= 0.9 * r.radius.double()).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_what_is_handed_back_never_leaves_the_box(norm, dtype):
    x = (torch.full((50, 4), 0.2, dtype=dtype),)
    packing, away = Packing.of(x), torch.tensor([[1.0, 1.0, -1.0, -1.0]]).expand(50, 4)
    low, high = torch.linspace(0, 0.19, 50)[:, None], torch.linspace(0.21, 1, 50)[:, None]  # few are numbers of float16
    r = Region(packing.pack(x), NORMS[norm], torch.full((50,), 4.0), low, high)
    z = r.step(r.centre, away, r.radius)
    assert_close(z, torch.where(away > 0, high, low))
    (held,) = r.settle(z, packing)
    assert ((held.double() >= low.double()) & (held.double() <= high.double())).all()
    assert_close(held.float(), z, rtol=torch.finfo(dtype).eps, atol=0)


def test_settling_leaves_what_it_is_given():
    x = (torch.rand(3, 4),)
    packing = Packing.of(x)
    centre = packing.pack(x)
    r = Region(centre, NORMS["Linf"], torch.full((3,), 0.1), centre - 1, centre + 1)
    z = centre + 0.2
    before = z.clone()
    r.settle(z, packing)
    assert torch.equal(z, before) and torch.equal(x[0], centre)


# ---- the box, as its user gives it


def two(names=None):
    torch.manual_seed(0)
    return Probe(lambda a, b: a.sum(1), (torch.rand(3, 2), torch.rand(3, 2, 2)), names=names)


@pytest.mark.parametrize(
    "high, expected",
    [
        (2, [[2.0]]),
        ((2, 3), [[2, 2, 3, 3, 3, 3]] * 3),
        ((torch.tensor([2.0, 3.0]), torch.tensor([[4.0], [5.0]])), [[2, 3, 4, 4, 5, 5]] * 3),
        ([torch.tensor([[2.0], [3.0], [4.0]]), 5], [[2, 2, 5, 5, 5, 5], [3, 3, 5, 5, 5, 5], [4, 4, 5, 5, 5, 5]]),
        ({"b": 3, "a": 2}, [[2, 2, 3, 3, 3, 3]] * 3),
    ],
    ids=str,
)
def test_bounds_in_every_form(high, expected):
    f = two(("a", "b") if isinstance(high, dict) else None)
    low, found = box(f, -torch.inf, high)
    assert torch.equal(found, torch.tensor(expected)) and found.dtype == f.point.dtype
    assert (low == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_bounds_are_numbers_of_the_inputs_dtype(dtype):
    """Inputs at the bound are inside, though the bound itself is no number of their dtype."""
    f = Probe(lambda x: x.sum(1), (torch.full((2, 3), 0.3, dtype=dtype),))
    for high in (0.3, torch.tensor(0.3), torch.tensor([[0.3], [0.3]])):
        assert (box(f, 0, high)[1].double() == float(torch.tensor(0.3, dtype=dtype))).all()
        assert (box(f, high, 1)[0].double() == float(torch.tensor(0.3, dtype=dtype))).all()


@pytest.mark.parametrize(
    "low, high, finite, words",
    [
        (1, 0, False, "bounds must be .lowest, highest., but somewhere the lowest is above the highest, or NaN"),
        (0, float("nan"), False, "above the highest, or NaN"),
        ((0, torch.tensor([[0.0], [2.0]])), 1.5, False, "bounds must be .lowest, highest."),
        (0, torch.inf, True, r"bounds must be finite here .*; use bounds=\(0, 1\)"),
        (0, (torch.tensor([1.0, torch.inf]), 1), True, "bounds must be finite here"),
        (0, 0.5, False, "x must lie inside the bounds, but example 0 spans .* to .*; scale the inputs"),
        (
            0,
            (1, 1, 1),
            False,
            r"bounds of shape \[\(\), \(\), \(\)\] does not broadcast to the inputs \[\(3, 2\), \(3, 2, 2\)\]",
        ),
        (0, (torch.ones(3), 1), False, r"bounds of shape \[\(3,\), \(\)\] does not broadcast"),
        (0, {"a": 1}, False, "bounds is for a, but the inputs are no dict"),
    ],
    ids=str,
)
def test_bounds_that_do_not_fit(low, high, finite, words):
    with pytest.raises(ValueError, match=words):
        box(two(), low, high, finite)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="mask is for a, c, but the inputs are a, b"):
        packed({"a": 1, "c": 0}, two(("a", "b")), "mask")


def test_no_larger_than_the_box():
    centre = torch.tensor([[0.2, 0.5], [0.9, 0.1]], dtype=torch.float64)
    low, high = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    free = torch.tensor([[True, True], [True, False]])
    region = Region(centre, NORMS["L1"], torch.tensor([torch.inf, 0.5], dtype=torch.float64), low, high, free)
    assert_close(region.reachable().radius, torch.tensor([1.3, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="eps must be finite"):
        region.to(high=torch.full_like(high, torch.inf)).reachable()


@every
def test_anywhere_is_any_point_of_the_box(case):
    """Shares 0 and 1 are its ends, where it has any, and only what is free moves."""
    r, _ = region(case)
    free = torch.ones_like(r.centre, dtype=torch.bool) if r.free is None else r.free
    u = torch.rand(N, D, dtype=torch.float64)
    for share, end in ((0 * u, r.low), (0 * u + 1, r.high)):
        z, wall = r.anywhere(share), end.expand(N, D)
        assert z.isfinite().all() and torch.equal(z[~free], r.centre[~free])
        there = free & wall.isfinite()
        assert_close(z[there], wall[there])
    z = r.anywhere(u)
    assert torch.equal(z, r.clip(z)) and torch.equal(z[~free], r.centre[~free]) and (z != r.centre)[free].any()

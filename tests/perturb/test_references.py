"""What features give way to."""

import pytest
import torch
from models import Keywords, TwoInputs, linear, mlp
from torch.testing import assert_close

from robustx.engine import Layer, Probe
from robustx.perturb import among, blur, here, mean, through

B = 4


def rand(*shape):
    return torch.rand(B, *shape, dtype=torch.float64)


def one():
    return Probe(linear(), (rand(5),))


def two():
    return Probe(TwoInputs(), (rand(5), rand(2, 3)))


def named():
    return Probe(Keywords(), (rand(5), rand(2, 3)), names=("a", "b"))


ROW, ROWS = torch.rand(1, 5, dtype=torch.float64), torch.rand(B, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    "make, baselines, first, second",
    [
        (one, None, 0, None),
        (one, 2, 2, None),
        (one, 0.25, 0.25, None),
        (one, ROW, ROW, None),
        (one, ROW[0], ROW, None),
        (one, ROWS, ROWS, None),
        (one, (ROWS.float(),), ROWS.float().double(), None),
        (two, None, 0, 0),
        (two, 1.5, 1.5, 1.5),
        (two, (None, 3), 0, 3),
        (two, [ROWS, 0.5], ROWS, 0.5),
        (named, {"b": 2.0, "a": ROW}, ROW, 2.0),
        (named, {"b": 2.0}, 0, 2.0),
        (named, (ROW, 2.0), ROW, 2.0),
    ],
)
def test_baselines_in_every_form(make, baselines, first, second):
    f = make()
    found = through(baselines)(f)
    for t, x, b in zip(found, f.inputs, (first, second), strict=False):
        assert t.dtype == x.dtype and torch.equal(t, torch.as_tensor(b, dtype=x.dtype).expand_as(x))


def test_baselines_for_integers_are_integers():
    f = Probe(lambda ids, x: x, (torch.ones(B, 2, dtype=torch.long), rand(3)))
    ids, x = through((3, 0.5))(f)
    assert ids.dtype == torch.long and (ids == 3).all() and (x == 0.5).all()


def test_baselines_bring_no_graph():
    assert not through(ROWS.clone().requires_grad_())(one())[0].requires_grad


def test_at_a_layer_inputs_go_through_and_constants_stay():
    model, x = mlp(), rand(5)
    f = Probe(model, (x,), at=Layer(model[1]))
    assert_close(through(ROW)(f)[0], model[:2](ROW).expand(B, -1).detach())
    assert torch.equal(here(0.5)(f)[0], torch.full((B, 8), 0.5).double())
    assert f.meter.forward.tolist() == [2] * B  # the layer's shape, and the reference


@pytest.mark.parametrize(
    "make, baselines, words",
    [
        (one, torch.rand(2, 5), r"baselines of shape \(2, 5\) do not fit input 0 of shape \(4, 5\).*\[1, ...\] or \[4"),
        (one, torch.rand(4, 6), r"baselines of shape \(4, 6\)"),
        (two, (None,), "baselines must have one entry for each of the 2 inputs, got 1"),
        (two, torch.rand(1, 5), "baselines must have one entry for each of the 2 inputs, got 1"),
        (named, {"c": 0}, "baselines name c, but the inputs are a, b"),
        (one, {"a": 0}, "baselines name a, but the inputs are no dict"),
    ],
)
def test_baselines_that_do_not_fit(make, baselines, words):
    with pytest.raises(ValueError, match=words):
        through(baselines)(make())


def test_baselines_of_another_type():
    with pytest.raises(TypeError, match="baselines must be None, numbers or tensors, got str for input 1"):
        through((0, "black"))(two())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_mean_of_a_data_set(dtype):
    data = (1000 + torch.randn(50, 5).double()).to(dtype)
    f = Probe(linear(), (torch.rand(B, 5).to(dtype),))
    (m,) = mean(data)(f)
    exact = sum(data.double()) / 50
    assert m.shape == (B, 5) and m.dtype == dtype
    assert_close(m.double(), exact.expand(B, 5), rtol=torch.finfo(dtype).eps, atol=0)
    first, second = mean((data, torch.arange(6).reshape(1, 2, 3)))(two())
    assert_close(first, exact.expand(B, 5).to(dtype).double()) and second.shape == (B, 2, 3)


def test_blur_is_a_gaussian_of_each_channel_of_each_picture():
    x = torch.zeros(2, 3, 31, 31, dtype=torch.float64)
    x[0, 1, 15, 15] = 1.0
    x[1, 2] = 0.7
    (b,) = blur(2.0)(Probe(lambda t: t, (x,)))
    spot = b[0, 1]
    steps = torch.arange(-3, 4, dtype=torch.float64)
    bell = torch.exp(-steps.square() / 8)
    assert_close(spot[12:19, 12:19] / spot[15, 15], bell[:, None] * bell)
    assert float(spot.sum()) == pytest.approx(1, abs=1e-12)
    assert (b[0, [0, 2]] == 0).all() and (b[1, :2] == 0).all()
    assert_close(b[1, 2], x[1, 2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_blur_keeps_the_dtype_and_leaves_the_picture(dtype):
    x = torch.rand(2, 1, 8, 8).to(dtype)
    before = x.clone()
    (b,) = blur(1.0)(Probe(lambda t: t, (x,)))
    assert b.dtype == dtype and b.shape == x.shape and torch.equal(x, before) and b.std() < x.std()


def test_among_draws_rows_by_content():
    data, x = torch.rand(7, 5, dtype=torch.float64), torch.rand(60, 5, dtype=torch.float64)
    model, state = linear(), torch.get_rng_state()

    def drawn(x, seed=0):
        return among(data, seed)(Probe(model, (x,)))[0]

    rows = drawn(x)
    assert all((row == data).all(1).any() for row in rows)
    assert len(rows.unique(dim=0)) == 7
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(drawn(x[order]), rows[order])
    assert not torch.equal(drawn(x, seed=1), rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_among_keeps_the_tensors_of_an_example_together():
    data = (torch.arange(9.0).reshape(9, 1).expand(9, 5), torch.arange(9.0).reshape(9, 1, 1).expand(9, 2, 3))
    first, second = among(data)(two())
    assert torch.equal(first[:, 0], second[:, 0, 0])


def test_a_table_is_not_blurred():
    with pytest.raises(ValueError, match=r"for pictures \[B, C, H, W\], got shape \(4, 5\)"):
        blur(1.0)(Probe(linear(), (ROWS,)))

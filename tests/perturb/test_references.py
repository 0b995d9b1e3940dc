"""What features give way to."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from models import Keywords, TwoInputs, linear, mlp
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, IntegratedGradients
from robustx.engine import Layer, Probe
from robustx.perturb import (
    Between,
    Gates,
    Inpainted,
    Leave,
    Neighbours,
    Reach,
    among,
    blur,
    by,
    colour,
    columns,
    elements,
    from_masks,
    gated,
    here,
    mean,
    named,
    nearest_unlike,
    noise,
    static,
    through,
)

B = 4


def rand(*shape):
    return torch.rand(B, *shape, dtype=torch.float64)


def one():
    return Probe(linear(), (rand(5),))


def two():
    return Probe(TwoInputs(), (rand(5), rand(2, 3)))


def keyed():
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
        (keyed, {"b": 2.0, "a": ROW}, ROW, 2.0),
        (keyed, {"b": 2.0}, 0, 2.0),
        (keyed, (ROW, 2.0), ROW, 2.0),
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
        (keyed, {"c": 0}, "baselines name c, but the inputs are a, b"),
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


def test_a_reference_is_a_baseline():
    """For every method, and at the very site."""
    x, data = rand(5), torch.rand(9, 5, dtype=torch.float64)
    model, told = linear(), mean(data)
    for method in (FeatureAblation, IntegratedGradients):
        found = method(model).attribute(x, told, target=1)
        assert_close(found, (x - data.mean(0)) * model.weight[1].detach())
    assert torch.equal(here(told)(one())[0], told(one())[0])


def test_a_function_of_the_users_is_given_copies_of_the_inputs():
    def swapped(a, b):
        a.mul_(2)
        return a, b.flip(2)

    for f in (two(), keyed()):
        before = [t.clone() for t in f.inputs]
        a, b = by(swapped)(f)
        assert torch.equal(a, 2 * before[0]) and torch.equal(b, before[1].flip(2))
        assert all(map(torch.equal, f.inputs, before))


def test_noise_is_normal_and_drawn_by_content():
    x, state = torch.rand(200, 50, dtype=torch.float64), torch.get_rng_state()

    def drawn(x, **options):
        return noise(2.0, 3.0, **options)(Probe(lambda t: t, (x,)))[0]

    z = drawn(x)
    assert abs(z.mean() - 3) < 5 * 2 / 1e2 and abs(z.std() - 2) < 5 * 2 / (2e4**0.5)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(drawn(x[order]), z[order])
    assert not torch.equal(drawn(x, seed=1), z)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_colour_of_a_picture_is_the_mean_of_each_channel():
    x = torch.rand(3, 2, 5, 7, dtype=torch.float64)
    (found,) = colour()(Probe(lambda t: t, (x,)))
    assert found.shape == x.shape
    for b, c in ((0, 0), (0, 1), (2, 1)):
        assert_close(found[b, c], torch.full((5, 7), sum(x[b, c].flatten().tolist()) / 35, dtype=torch.float64))


def test_static_is_uniform_in_the_range_of_each_channel_and_drawn_by_content():
    x, state = torch.rand(6, 2, 20, 20, dtype=torch.float64), torch.get_rng_state()
    x[:, 1] = 10 + 5 * x[:, 1]
    x[5] = 0.25  # nothing to draw from

    def drawn(x, seed=0):
        return static(seed)(Probe(lambda t: t, (x,)))[0]

    z = drawn(x)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    assert (z >= low).all() and (z <= high).all() and (z[5] == 0.25).all()
    share = ((z - low) / (high - low))[:5].flatten(2)
    assert (share.mean(2) - 0.5).abs().max() < 5 * (1 / 12 / 400) ** 0.5
    assert (share.var(2) - 1 / 12).abs().max() < 5 * (1 / 180 / 400) ** 0.5
    assert share[:, 0].corrcoef().fill_diagonal_(0).abs().max() < 5 / 20
    order = torch.tensor([4, 0, 2])
    assert torch.equal(drawn(x[order]), z[order]) and not torch.equal(drawn(x, 1), z)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name, same", [("blur", blur()), ("mean", colour()), ("noise", static())], ids=lambda v: str(v)[:5]
)
def test_pictures_have_references_by_name(name, same):
    f = Probe(lambda t: t, (torch.rand(2, 3, 8, 8),))
    assert torch.equal(named(name)(f)[0], same(f)[0])
    with pytest.raises(ValueError, match=rf"reference '{name}' is for pictures \[B, C, H, W\], got shape \(4, 5\)"):
        named(name)(one())


def test_what_is_no_name_is_a_reference_already():
    assert named("inpaint") == Inpainted()
    assert torch.equal(named(0.5)(one())[0], through(0.5)(one())[0])
    told = blur(2)
    assert named(told) is told
    with pytest.raises(ValueError, match="reference must be 'blur', 'mean', 'inpaint', 'noise', a number.*got 'blurr'"):
        named("blurr")


@pytest.mark.parametrize("goal", ["leave", "reach", "between"])
@pytest.mark.parametrize("labelled", [False, True], ids=["any", "right"])
def test_the_nearest_unlike_row_by_its_definition(goal, labelled):
    """Row by row: of the rows that reach this example's goal (and are taken for what they are) the nearest."""
    model = mlp()
    x, data = torch.randn(30, 5, dtype=torch.float64), torch.randn(50, 5, dtype=torch.float64)
    out = model(data).detach()
    labels = torch.where(torch.arange(50) % 3 == 0, (out.argmax(1) + 1) % out.shape[1], out.argmax(1))
    y = torch.arange(30) % out.shape[1]
    low = torch.linspace(-1, 1, 30, dtype=torch.float64)
    of = {"leave": Leave(y), "reach": Reach(y), "between": Between(low, target=0)}[goal]
    (found,) = nearest_unlike(data, labels if labelled else None)(Probe(model, (x,), of))
    reached = {
        "leave": lambda i, m: out[m].argmax() != y[i],
        "reach": lambda i, m: out[m].argmax() == y[i],
        "between": lambda i, m: out[m, 0] > low[i],
    }[goal]
    some, none = 0, 0
    for i in range(30):
        fit = [m for m in range(50) if reached(i, m) and not (labelled and m % 3 == 0)]
        row = data[min(fit, key=lambda m: ((data[m] - x[i]) ** 2).sum())] if fit else x[i]
        assert torch.equal(found[i], row)
        some, none = some + bool(fit), none + (not fit)
    assert some > 5 and (none > 0 or goal != "between")


def test_the_nearest_unlike_row_of_several_tensors_is_one_row_of_the_data():
    data = (
        rand(5).repeat(5, 1),
        rand(2, 3).repeat(5, 1, 1) + torch.linspace(0, 1, 20, dtype=torch.float64)[:, None, None],
    )
    f = two().to(of=Between(-torch.inf, target=0))
    a, b = nearest_unlike(data)(f)
    for i in range(B):
        assert ((data[0] == a[i]).all(1) & (data[1] == b[i]).all((1, 2))).any()


def test_the_nearest_unlike_row_at_a_layer_and_what_it_costs():
    model, data = mlp(), torch.randn(50, 5, dtype=torch.float64)
    f = Probe(model, (rand(5),), Reach(torch.zeros(B, dtype=torch.long)), Layer(model[1]))
    f.here  # noqa: B018 read once, as any search does
    before = f.meter.forward.clone()
    (found,) = nearest_unlike(data)(f)
    (rows,) = nearest_unlike(data)(f.to(at=Probe(model, f.inputs).at))
    assert_close(found, model[:2](rows).detach())
    assert (f.meter.forward - before).tolist() == [1] * B  # to the layer; the data are no example's


# --- what depends on the features that stay ---------------------------------------------------------------


def filled(x, filling, gone):
    """What stands at the inputs when the elements ``gone`` [N, D] of example 0, 1, ... have given way."""
    g = gated(Probe(lambda t: t, (x,)), elements(x[0].numel()), filling)
    return g.at.blend(gone.to(x.dtype), torch.arange(len(gone)))[0]


@pytest.mark.parametrize("method", ["smooth", "linear", "biharmonic"])
def test_inpainting(method):
    """What stays is as it was; what goes does not matter, and lies within what stays around it."""
    x, gone = torch.rand(6, 3, 7, 9, dtype=torch.float64), torch.rand(6, 189) < 0.6
    found = filled(x, Inpainted(method), gone).flatten(1)
    assert torch.equal(found[~gone], x.flatten(1)[~gone])
    other = torch.where(gone, torch.rand(6, 189), x.flatten(1)).reshape(x.shape)
    assert_close(filled(other, Inpainted(method), gone).flatten(1), found)
    stays = x.flatten(2).masked_fill(gone.reshape(6, 3, -1), float("nan")).double()
    low, high = stays.nan_to_num(nan=2).amin(2), stays.nan_to_num(nan=-1).amax(2)
    inside = (found.reshape(6, 3, -1) >= low[..., None] - 1e-12) & (found.reshape(6, 3, -1) <= high[..., None] + 1e-12)
    assert inside.all()
    flat = torch.full_like(x, 0.25)
    assert_close(filled(flat, Inpainted(method), gone), flat)
    nothing = filled(x, Inpainted(method), torch.ones_like(gone))
    assert_close(nothing, x.mean((2, 3), keepdim=True).expand_as(x))


def test_smooth_inpainting_knows_its_surroundings():
    """A ramp with a hole is painted nearer to the ramp than by its mean, at once for all and picture by picture."""
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64).expand(2, 1, 16, 16)
    gone = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    gone[0, :, 4:9, 2:7] = gone[1, :, 1:4, 10:14] = True
    found = filled(ramp, Inpainted(), gone.flatten(1))
    assert ((found - ramp)[gone]).abs().max() < 0.15 < 0.3 < ((ramp.mean() - ramp)[gone]).abs().max()
    for i in range(2):
        assert_close(filled(ramp[i : i + 1], Inpainted(), gone[i : i + 1].flatten(1)), found[i : i + 1])


def test_linear_inpainting_solves_its_equations():
    """Written element by element, as in the paper, and solved by scipy."""
    x, gone = torch.rand(2, 2, 6, 7, dtype=torch.float64), torch.rand(2, 84) < 0.7
    found = filled(x, Inpainted("linear"), gone)
    for (i, c), hole in zip([(0, 0), (0, 1), (1, 0), (1, 1)], gone.reshape(4, 6, 7), strict=True):
        matrix, right = scipy.sparse.lil_matrix((42, 42)), np.zeros(42)
        for place, (row, column) in enumerate(np.ndindex(6, 7)):
            matrix[place, place] = 1
            if not hole[row, column]:
                right[place] = x[i, c, row, column]
                continue
            around = [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
            around = [(r, k) for r, k in around if 0 <= r < 6 and 0 <= k < 7]
            weights = [1 / 12 if r != row and k != column else 1 / 6 for r, k in around]
            for (r, k), weight in zip(around, weights, strict=True):
                matrix[place, 7 * r + k] = -weight / sum(weights)
        solved = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
        assert_close(found[i, c], torch.from_numpy(solved).reshape(6, 7))


def test_inpainting_noise_is_on_what_is_painted_and_belongs_to_the_example():
    x, gone = torch.rand(3, 2, 20, 20), torch.rand(3, 800) < 0.5
    noisy = filled(x, Inpainted("linear", noise=0.1), gone)
    added = (noisy - filled(x, Inpainted("linear"), gone)).flatten(1)
    assert (added[~gone] == 0).all()
    assert abs(float(added[gone].std()) - 0.1) < 0.01
    assert_close(filled(x[1:], Inpainted("linear", noise=0.1), gone[1:]), noisy[1:])
    assert not torch.equal(filled(x, Inpainted("linear", noise=0.1, seed=1), gone), noisy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_inpainting_keeps_the_dtype(dtype):
    x = torch.rand(1, 2, 5, 5).to(dtype)
    assert filled(x, Inpainted(), torch.eye(50)[:1]).dtype == dtype


def nearest(x, data, stays, k):
    """The definition: row by row."""
    unit = data.std(0, correction=0)
    near = []
    for row, stay in zip(x, stays, strict=True):
        away = (((data - row) / unit)[:, stay] ** 2).sum(1)
        near.append({i for i in range(len(data)) if (away < away[i] - 1e-9).sum() < k})
    return near


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours(k):
    data = torch.randn(40, 6, dtype=torch.float64) * torch.tensor([1, 10, 0.1, 1, 1, 1])
    x, gone = torch.randn(100, 6, dtype=torch.float64), torch.rand(100, 6) < 0.5
    gone[:3] = True  # nothing stays: any row
    found, drawn = filled(x, Neighbours(data, k), gone), set()
    for i, near in enumerate(nearest(x, data, ~gone, k)):
        fits = ((data == found[i]) | ~gone[i]).all(1).nonzero().flatten().tolist()
        assert not gone[i].any() or near & set(fits)
        drawn.add(len(near))
    assert torch.equal(found[~gone], x[~gone])
    assert drawn >= {k, 40}
    order = torch.arange(99, -1, -1)
    assert torch.equal(filled(x[order], Neighbours(data, k), gone[order]), found[order])


def test_all_neighbours_are_drawn():
    data, x = torch.arange(10.0)[:, None], torch.rand(400, 1)
    for k, rows in ((10, 10), (4, 4)):
        found = filled(torch.cat([x, x], 1), Neighbours(torch.cat([data, data], 1), k), torch.tensor([[1, 0]] * 400))
        assert len(found[:, 0].unique()) == rows


def test_neighbours_stay_together_and_may_hold_integers():
    """Tensors of an example are one row of the data; what differs is counted in each one's own unit."""
    ids, floats = torch.tensor([[1, 5], [2, 6], [3, 7]]), torch.tensor([[1.0], [2.0], [3.0]])
    f = Probe(lambda a, b: b, (torch.tensor([[3, 6]]), torch.tensor([[1.4]])))
    g = gated(f, columns([(0,), (1, 2)], 3), Neighbours((ids, floats)))
    a, b = g.at.blend(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert a.tolist() == [[3, 7], [2, 6]] and b.tolist() == [[3.0], [pytest.approx(1.4)]]


def test_neighbours_at_a_layer():
    x, data = rand(5), torch.rand(9, 5, dtype=torch.float64)
    model = mlp()
    f = Probe(model, (x,), at=Layer(model[1]))
    g = gated(f, elements(8), Neighbours(data))
    assert isinstance(g.at, Gates)
    (found,) = g.at.blend(torch.eye(8, dtype=torch.float64)[:1], torch.tensor([0]))
    hidden = model[:2](data).detach()
    assert (hidden[:, 0] == found[0, 0]).any() and torch.equal(found[0, 1:], f.here[0][0, 1:])


def test_ablation_by_what_stays():
    """In a table of equal columns what gives way is known from what stays; the example itself is no neighbour."""
    data = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None].expand(11, 3)
    for x, fall in ((data[[2, 7]] + 0.03, 0.03), (torch.cat([data[:1], data[-1:]]), 0.1)):
        found = FeatureAblation(lambda x: x.sum(1)).attribute(x, Neighbours(data))
        assert_close(found.abs(), torch.full_like(x, fall))
    picture = torch.full((2, 1, 4, 4), 0.5)
    mask = from_masks(torch.arange(4).repeat_interleave(4).reshape(1, 1, 4, 4), (picture,)).ids.reshape(1, 1, 4, 4)
    found = FeatureAblation(lambda x: x.flatten(1).sum(1)).attribute(picture, Inpainted(), feature_mask=mask)
    assert_close(found, torch.zeros_like(picture))


def unlike(data, labels=None, args=()):
    f = Probe(lambda x, *_: x.flatten(1), (torch.rand(2, 1, 4, 4),), Leave(torch.tensor([0, 1])), args=args)
    return nearest_unlike(data, labels)(f)


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda x: IntegratedGradients(torch.nn.Flatten()).attribute(x, Inpainted(), target=0), "which features stay"),
        (lambda x: filled(x[:, 0], Inpainted(), torch.zeros(2, 16)), r"pictures \[B, C, H, W\] of floats, got"),
        (lambda x: Inpainted("telea"), "method must be 'smooth', 'linear', 'biharmonic', got 'telea'"),
        (lambda x: nearest_unlike(x)(Probe(torch.nn.Flatten(), (x,))), "is no goal but Output; take it for counterf"),
        (lambda x: unlike(x[:, :, 0]), r"baselines of shape \(2, 1, 4\) do not fit input 0"),
        (lambda x: unlike(x, torch.zeros(3)), r"labels must be one for each of 2 rows, got shape \(3,\)"),
        (
            lambda x: unlike(x, args=(torch.ones(2),)),
            "for which the additional_forward_args of the examples say nothing",
        ),
        (lambda x: filled(x, Neighbours(x, 3), torch.zeros(2, 16)), "number of rows in data, 2, got 3"),
        (lambda x: filled(x, Neighbours(x[:, 0]), torch.zeros(2, 16)), "do not fit input 0"),
    ],
)
def test_what_does_not_fit_is_told(ask, words):
    with pytest.raises((ValueError, TypeError), match=words):
        ask(torch.rand(2, 1, 4, 4))

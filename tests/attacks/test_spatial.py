"""Rotations and shifts: against torchvision and by hand; the grid against trying all of it."""

import math

import pytest
import torch
from peers import foolbox
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from robustx import zoo
from robustx.attacks import SpatialGrid, SpatialResult, pgd
from robustx.attacks.spatial import Warp, worst_of
from robustx.engine import Probe
from robustx.perturb import Leave, Linf, Region

PADDINGS = ["zeros", "reflection", "border"]
every = pytest.mark.parametrize("padding", PADDINGS)


def z(*row, n=1):
    return torch.tensor([row] * n, dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    model, data = zoo.load("digits", limit=40)
    return model, data.x, data.y


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_writing_what_was_read_changes_nothing(padding, dtype):
    x = torch.rand(3, 2, 7, 12).to(dtype)
    f = Probe(lambda t: t, (x,), at=Warp(padding))
    assert f.point.shape == (3, 3) and bool((f.point == 0).all())
    assert torch.equal(f.outputs(f.point), x)


@every
def test_shifts_by_whole_pixels(padding):
    x = torch.rand(1, 2, 6, 9, dtype=torch.float64)
    seen = Warp(padding).show(x, z(0, 2, -1))  # two to the right, one up
    assert_close(seen[:, :, :-1, 2:], x[:, :, 1:, :-2])
    beyond = {"zeros": torch.zeros(()), "border": x[:, :, 1:, 0], "reflection": x[:, :, 1:, 1]}[padding]
    assert_close(seen[:, :, :-1, 0], beyond.to(x).expand_as(seen[:, :, :-1, 0]))


@every
def test_quarter_turns(padding):
    x = torch.rand(1, 3, 7, 7, dtype=torch.float64)
    for turns in (-1, 1, 2, 3):
        assert_close(Warp(padding).show(x, z(90 * turns, 0, 0)), torch.rot90(x, turns, (2, 3)))


@pytest.mark.parametrize("angle, right, down", [(17, 0, 0), (-30, 2, -3), (5, -1, 4)])
def test_torchvision_does_the_same(angle, right, down):
    x = torch.rand(2, 3, 12, 17, dtype=torch.float64)
    theirs = affine(x, -angle, [right, down], 1.0, [0.0], InterpolationMode.BILINEAR)
    ours = Warp().show(x, z(angle, right, down, n=2))
    assert_close(ours[:, :, 4:-4, 4:-4], theirs[:, :, 4:-4, 4:-4], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # theirs
def test_foolbox_falls_to_the_same_rotations(digits):
    model, x, y = digits
    theirs = foolbox.attacks.SpatialAttack(max_translation=0, max_rotation=25, num_translations=1, num_rotations=11)
    _, _, fooled = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y)
    ours = SpatialGrid(model, range(-25, 26, 5), (0,)).run(x, y)
    assert torch.equal(ours.success, fooled) and 0 < int(fooled.sum()) < len(x)


def test_gradients_are_those_of_small_moves():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(81, 3)).double()
    x, y = torch.rand(4, 1, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    f = Probe(model, (x,), Leave(y), Warp())
    at = torch.rand(4, 3, dtype=torch.float64) * torch.tensor([20.0, 2.0, 2.0])
    g = f.grad(at)[1]
    for k, step in enumerate((1e-5, 1e-6, 1e-6)):
        move = torch.zeros_like(at).index_fill_(1, torch.tensor(k), step)
        assert_close((f.value(at + move) - f.value(at - move)) / (2 * step), g[:, k], rtol=1e-4, atol=1e-6)
    assert bool((f.grad(f.point)[1] != 0).all())  # also where the picture is left as it is


@every
def test_the_worst_of_a_grid_is_what_trying_all_of_it_finds(digits, padding):
    model, x, y = digits
    attack = SpatialGrid(model, (-20, 0, 10, 30), (-1, 0, 1), padding=padding, worst=True)
    result, points = attack.run(x, y), attack.grid(x)
    assert len(points) == 36 and bool((points[0] == 0).all())
    margins = torch.stack([margin(model(Warp(padding).show(x, p.float().expand(len(x), 3))), y) for p in points])
    assert_close(result.margin, margins.amax(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(result.success, margins.amax(0) > 0)
    assert_close(margin(model(result.adversarial), y), result.margin, rtol=1e-4, atol=1e-4)
    assert result.forwards.tolist() == [37] * len(x) and not bool(result.backwards.any())


def margin(out, y):
    own = out.gather(1, y[:, None]).squeeze(1)
    return (out.scatter(1, y[:, None], -torch.inf).amax(1) - own).detach()


def test_what_fell_leaves_and_the_mildest_counts(digits):
    model, x, y = digits
    attack = SpatialGrid(model, range(-20, 21, 4), (-0.5, 0, 0.5))
    seen = []

    def watched(x):
        seen.append(len(x))
        return model(x)

    attack.forward_func = watched
    result, points = attack.run(x, y), attack.grid(x)
    assert 0 < int(result.success.sum()) < len(x) and sum(seen) == int(result.forwards.sum())
    margins = torch.stack([margin(model(Warp().show(x, p.float().expand(len(x), 3))), y) for p in points])
    for i, success in enumerate(result.success.tolist()):
        first = int((margins[:, i] > 0).int().argmax()) if success else int(margins[:, i].argmax())
        assert_close(result.transformation[i].double(), points[first])
        assert result.forwards[i] == 1 + (min(len(points), 16 * (first // 16 + 1)) if success else len(points))
    share = (result.transformation.abs() / torch.tensor([20.0, 0.5, 0.5])).amax(1)
    assert_close(result.distance, share)
    assert bool((result.distance <= result.eps).all())


def test_examples_do_not_depend_on_one_another(digits):
    model, x, y = digits
    attack = SpatialGrid(model, (-20, 0, 20), (-1, 0, 1))
    whole = attack.run(x[:6], y[:6])
    one_by_one = [attack.run(x[i : i + 1], y[i : i + 1]) for i in range(6)]
    joined = SpatialResult.cat(one_by_one)
    assert torch.equal(joined.transformation, whole.transformation)
    assert torch.equal(joined.forwards, whole.forwards)
    assert repr(joined) == repr(whole) and repr(whole).startswith("SpatialResult(")
    assert torch.equal(whole.at([4, 2]).transformation, whole.transformation[[4, 2]])
    assert len(attack.run(x[:0], y[:0]).transformation) == 0


def test_the_usual_grid(digits):
    model, x, _ = digits
    points = SpatialGrid(model).grid(torch.zeros(1, 3, 32, 32))
    assert points.shape == (775, 3) and len(points.unique(dim=0)) == 775
    assert_close(points.abs().amax(0), torch.tensor([30.0, 3.0, 3.0]).double())
    shares = (points.abs() / torch.tensor([30.0, 3.0, 3.0])).amax(1)
    assert bool((shares.diff() >= 0).all())  # the mildest first
    assert len(SpatialGrid(model, (10,), (0,)).grid(x)) == 2  # the picture as it is belongs to it


def test_any_search_can_stand_there(digits):
    model, x, y = digits
    reach = torch.tensor([30.0, 1.0, 1.0])
    f = Probe(model, (x,), Leave(y), Warp())
    far = torch.full((1, 1), torch.inf)
    region = Region(f.point, Linf(reach), torch.ones(len(x)), -far, far)
    found = pgd(f, region, f.everyone, 10, torch.full((len(x),), 0.3))
    assert bool((found.z.abs() <= reach + 1e-5).all())
    assert bool((found.margin >= f.score).all()) and int(found.success.sum()) > int((f.score > 0).sum())


def test_what_is_nan_proves_nothing():
    x = torch.rand(3, 1, 8, 8)
    y = torch.zeros(3, dtype=torch.long)

    def shy(t):  # answers about the pictures as they are alone
        known = (t[:, None] == x[None]).flatten(2).all(2).any(1)
        return torch.where(known[:, None], torch.tensor([1.0, 0.0]), torch.nan)

    result = SpatialGrid(shy, (-10, 0, 10), (0,)).run(x, y)
    assert not bool(result.success.any()) and bool((result.transformation == 0).all())
    assert torch.equal(result.adversarial, x)


def test_goals_and_keywords(digits):
    model, x, y = digits
    goal = SpatialGrid(model, (-30, 0, 30), (0,), worst=True)
    towards = goal.run(x, torch.full_like(y, 8), targeted=True)
    assert torch.equal(towards.success, model(towards.adversarial).argmax(1) == 8)
    sure = goal.run(x, goal=lambda out: 5 - out.amax(1))
    assert torch.equal(sure.success, model(sure.adversarial).amax(1) < 5)
    assert torch.equal(SpatialGrid(model, (0,), (0,))({"input": x}, y)["input"], x)


def test_a_table_and_a_picture(digits):
    model, x, y = digits
    result = SpatialGrid(model, (-30, 0, 30), (-1, 0, 1)).run(x, y)
    frame = result.to_pandas()
    assert list(frame)[-3:] == ["angle", "right", "down"] and len(frame) == len(x)
    assert frame["angle"].tolist() == result.transformation[:, 0].tolist()
    assert result.plot(slice(3)).axes


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: SpatialGrid(3), "forward_func must be callable"),
        (lambda: SpatialGrid(torch.nn.Flatten(), (math.nan,)), "rotations must be finite numbers"),
        (lambda: SpatialGrid(torch.nn.Flatten(), shifts=()), "shifts must be finite numbers, at least one"),
        (lambda: SpatialGrid(torch.nn.Flatten(), padding="reflect"), "padding must be one of 'zeros', 'reflection'"),
        (lambda: SpatialGrid(torch.nn.Linear(4, 2)).run(torch.rand(2, 4), torch.zeros(2).long()), "is for pictures"),
    ],
    ids=["model", "nan", "none", "padding", "table"],
)
def test_errors_say_what_to_do(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()


def test_the_worst_of_some_points_of_any_site():
    x = torch.tensor([[0.0], [1.0]])
    f = Probe(lambda t: torch.cat([t, 2 - t], 1), (x,), Leave(torch.zeros(2, dtype=torch.long)))
    points = torch.linspace(0, 2, 33)[:, None]
    assert worst_of(f, points, Linf(), f.everyone, stop=False).z.tolist() == [[0.0], [0.0]]
    first = worst_of(f, points.flip(0), Linf(), f.everyone)
    assert_close(first.z, torch.full((2, 1), 0.9375))

"""Square beyond the laws: what it tries, query by query, and that values are all it asks for."""

import pytest
import torch
from attack_cases import Counted, examples, mlp
from models import Rounding
from torch.testing import assert_close

from robustx.attacks.square import HALVINGS, Bumps, Canvas, Square, bumps, inside
from robustx.engine.packing import Packing

NORMS = ("Linf", "L2", "L1")
EPS = {"Linf": 0.05, "L2": 0.3, "L1": 0.8}


def size(d, norm):
    return torch.linalg.vector_norm(d.flatten(1), {"L1": 1, "L2": 2, "Linf": torch.inf}[norm], 1)


class Watched(torch.nn.Module):
    """Keeps what it is asked."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.model(x)


def picture(shape=(2, 11, 9), classes=3, seed=0):
    """A model of pictures, one of them, and its class, of which it is sure."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(torch.Size(shape).numel(), classes)).double()
    x = torch.rand(1, *shape, dtype=torch.float64)
    y = model(x).argmax(1)
    model[1].bias.data[y] += 1
    return model, x, y


# --- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, canvas",
    [((3, 8, 6), (3, 8, 6)), ((8, 6), (1, 8, 6)), ((2, 3, 8, 6), (6, 8, 6)), ((30,), (1, 1, 30)), ((), (1, 1, 1))],
)
def test_canvas_of_any_shape(shape, canvas):
    assert Canvas.of(Packing.of([torch.zeros(4, *shape)])) == Canvas(*canvas)


def test_several_inputs_are_one_line():
    assert Canvas.of(Packing.of([torch.zeros(4, 1, 3, 3), torch.zeros(4, 5)])) == Canvas(1, 1, 14)


@pytest.mark.parametrize("height, width", [(32, 32), (8, 8), (4, 50), (50, 4), (1, 30), (30, 1), (1, 1)])
def test_windows_hold_the_share_that_they_should(height, width):
    """As near as whole sides allow; squares where they fit; never nothing."""
    canvas = Canvas(3, height, width)
    for share in (1.0, 0.8, 0.4, 0.1, 0.01, 1e-4):
        down, right = canvas.sides(share)
        assert 1 <= down <= height and 1 <= right <= width
        area = share * height * width
        assert down in (right, height) or right == width
        assert abs(down * right - area) <= max(1.0, area**0.5 + 0.25)
    assert canvas.sides(1.0) == (height, width)


def test_every_place_of_a_window_is_as_likely():
    canvas = Canvas(1, 4, 5)
    u = torch.cartesian_prod(torch.linspace(0, 1, 13)[:-1] + 1e-6, torch.linspace(0, 1, 13)[:-1] + 1e-6)
    there = inside(canvas.windows((2, 2), u), (2, 2))
    assert there.shape == (144, 1, 4, 5) and (there.sum((1, 2, 3)) == 4).all()
    places, counts = there.flatten(1).unique(dim=0, return_counts=True)
    assert len(places) == 12 and (counts == 12).all()
    edge = inside(canvas.windows((2, 2), torch.ones(1, 2)), (2, 2))  # what rounds to 1 is the last place
    assert edge[0, 0, 2:, 3:].all()


# --- bumps ------------------------------------------------------------------------------------------------


def slow_bump(height, width):
    """Equation 2 of the paper, as it stands there."""
    n = max(height // 2 + 1, width // 2 + 1)
    out = torch.zeros(height, width, dtype=torch.float64)
    for k in range(n):  # rings around the middle, from the smallest
        for i in range(height):
            for j in range(width):
                if max(abs(i - height // 2), abs(j - width // 2)) <= k:
                    out[i, j] += 1 / (k + 1) ** 2
    return out / out.norm()


@pytest.mark.parametrize("side", [3, 5, 6, 7])
def test_bumps_are_those_of_the_paper(side):
    places = torch.arange(side)
    one, other = bumps(
        (side, side), torch.tensor([0.9, 0.1], dtype=torch.float64), places[None, :, None], places[None, None]
    )
    expected = torch.cat([slow_bump(side, side // 2), -slow_bump(side, side - side // 2)], 1)
    assert_close(one[0], expected)
    assert_close(other[0], expected.T)


@pytest.mark.parametrize("sides", [(1, 7), (7, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("u", [0.1, 0.9])
def test_bumps_of_any_window(sides, u):
    """Never empty, and of both signs where there are two elements."""
    down, right = (torch.arange(n) for n in sides)
    field = bumps(sides, torch.tensor([u]), down[None, :, None], right[None, None])
    assert field.shape == (1, 1, *sides) and (field != 0).all()
    if max(sides) > 1:
        assert (field > 0).any() and (field < 0).any()


# --- what it tries ----------------------------------------------------------------------------------------


def queries(norm, shape=(2, 11, 9), steps=40, **options):
    """All points that are tried for one example, the first of which is itself, and the last what comes back."""
    net, x, y = picture(shape)
    model = Watched(net)
    result = Square(model, bounds=(0, 1), norm=norm, eps=1e-3, steps=steps, **options).run(x, y)
    assert not result.success.any()
    return net, y, torch.cat(model.seen)


def test_stripes_at_first():
    _, _, seen = queries("Linf")
    move = (seen[1] - seen[0]).sign()
    inner = ((seen[0] > 1e-3) & (seen[0] < 1 - 1e-3)).all()
    assert inner and (move == move[:, :1]).all() and (move != 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(2, 11, 9), (30,), (2, 3, 17)], ids=str)
def test_each_query_differs_from_the_best_before_it_in_windows(norm, shape):
    """In one in Linf, in two in L2; and in all of these the budget is spent."""
    net, y, seen = queries(norm, shape)
    canvas = Canvas.of(Packing.of([seen]))
    lead = -net(seen).gather(1, y[:, None].expand(len(seen), 1)).squeeze(1)
    lead += net(seen).scatter(1, y[:, None].expand(len(seen), 1), -torch.inf).amax(1)
    best = 1
    steps = len(seen) - 2  # without the example itself and what comes back
    for step in range(1, steps):
        now = seen[1 + step]
        share = 0.8 / 2 ** sum(10_000 * step // steps > h for h in HALVINGS)
        sides = Bumps.sides(canvas, share) if norm != "Linf" else canvas.sides(share)
        changed = canvas.fields((now - seen[best]).flatten()[None])[0].abs().gt(1e-12).any(0)
        if norm == "Linf":
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert changed.any()  # no query is wasted on what is known
            assert rows.max() - rows.min() < sides[0] and columns.max() - columns.min() < sides[1]
        if norm == "L2":
            assert changed.sum() <= 2 * sides[0] * sides[1]
        if lead[1 + step] > lead[best]:
            best = 1 + step
    inner = ((seen[0] > 1e-3) & (seen[0] < 1 - 1e-3)).all()
    if inner:
        assert_close(size(seen[1:-1] - seen[0], norm), torch.full((steps,), 1e-3, dtype=torch.float64))
    assert_close(seen[-1], seen[best], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_one_pass_a_query(norm):
    """An example that resists costs its queries and one pass before and after; no gradient is ever asked for."""
    net = mlp()
    x, y = examples(net, wrong=0)
    model = Counted(net, len(x))
    attack = Square(model, bounds=(0, 1), norm=norm, eps=1e-6, steps=9, restarts=3)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert not result.success.any()
    assert (result.forwards == 3 * 9 + 2).all() and (model.forwards == 29).all() and model.calls == 29
    assert not result.backwards.any() and not model.backwards.any()


@pytest.mark.parametrize("norm", NORMS)
def test_who_has_fallen_leaves(norm):
    net = mlp()
    x, y = examples(net, count=32, wrong=0)
    model = Counted(net, len(x))
    attack = Square(model, bounds=(0, 1), norm=norm, eps=EPS[norm], steps=60)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert (result.forwards[~result.success] == 62).all() and (result.forwards[result.success] < 62).all()
    assert 3 < result.success.sum() < 32 and result.forwards.tolist() == model.forwards.tolist()


def test_a_model_without_gradients():
    """It rounds on the way, so that attacks by gradients see nothing."""
    model, x = Rounding(), torch.rand(20, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    result = Square(model, bounds=(0, 1), eps=0.2, steps=50).run(x, y)
    assert result.success.sum() > 10
    assert torch.equal(model(result.adversarial).argmax(1) != y, result.success)


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_lose_nothing(norm):
    """The first queries of a longer run are not those of a shorter one, but both keep the best of what they saw."""
    net = mlp()
    x, y = examples(net, count=32, wrong=0)
    runs = [Square(net, bounds=(0, 1), norm=norm, eps=EPS[norm] / 4, steps=s).run(x, y) for s in (1, 8, 100)]
    means = [r.margin.mean() for r in runs]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_lose_nothing(norm):
    net = mlp()
    x, y = examples(net, wrong=0)
    few, many = (
        Square(net, bounds=(0, 1), norm=norm, eps=EPS[norm] / 2, steps=4, restarts=r).run(x, y) for r in (1, 6)
    )
    assert (many.margin >= few.margin)[~few.success].all() and (few.success <= many.success).all()
    assert many.margin.mean() > few.margin.mean()


@pytest.mark.parametrize(
    "options, told", [({"steps": 0}, "steps"), ({"p_init": 0}, "p_init"), ({"p_init": 2}, "p_init")]
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        Square(mlp(), **options)

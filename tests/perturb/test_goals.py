"""Goals: a margin above zero says that the goal is reached, and losses lead there."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import D, Pair, Rounding, linear, mlp
from torch import nn
from torch.testing import assert_close

from robustx.engine import OutputError, Probe, TargetError
from robustx.perturb import LOSSES, Between, Leave, Reach, Until, as_logits
from robustx.perturb.goals import Boundaries, Climb, Progress, class_goal, labels

K, N = 5, 12
GOALS = {"leave": Leave, "reach": Reach}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def logits(n=N, k=K, scale=3.0):
    torch.manual_seed(0)
    return scale * torch.randn(n, k, dtype=torch.float64), torch.arange(n) % k


def all_rows(n=N):
    return torch.arange(n)


def slope(goal, out, rows=None):
    """The gradient of the pull with respect to the model's output."""
    out = out.detach().requires_grad_()
    return torch.autograd.grad(goal.pull(out, all_rows(len(out)) if rows is None else rows).sum(), out)[0]


row = st.lists(
    st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-50, 50, allow_subnormal=False), min_size=2, max_size=6
)


@given(row, st.integers(0, 5), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_margin_is_positive_exactly_where_the_goal_is_reached(values, y, dtype):
    out = torch.tensor([values], dtype=dtype)
    y = y % len(values)
    own, others = float(out[0, y]), [float(v) for i, v in enumerate(out[0]) if i != y]
    label = torch.tensor([y])
    assert bool(Leave(label).value(out, all_rows(1)) > 0) == (max(others) > own)
    assert bool(Reach(label).value(out, all_rows(1)) > 0) == (own > max(others))


@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
@every_loss
def test_the_margin_does_not_depend_on_the_loss_and_follows_the_rows(goal, loss):
    out, y = logits()
    rows = torch.tensor([4, 4, 0, 11])
    expected = torch.stack([max(v for i, v in enumerate(o) if i != c) - o[c] for o, c in zip(out, y, strict=True)])
    expected = expected if goal is Leave else -expected
    assert_close(goal(y, loss).value(out, all_rows()), expected)
    assert_close(goal(y, loss, by=0.5).value(out[rows], rows), expected[rows] - 0.5)
    assert_close(goal(y, loss).pull(out[rows], rows), goal(y, loss).pull(out, all_rows())[rows])


def test_cross_entropy_by_hand():
    out, y = logits()
    expected = torch.stack([torch.log(o.exp().sum() / o[c].exp()) for o, c in zip(out, y, strict=True)])
    assert_close(Leave(y, "ce").pull(out, all_rows()), expected)
    assert_close(Reach(y, "ce").pull(out, all_rows()), -expected)
    assert_close(slope(Leave(y, "ce"), out), out.softmax(1) - torch.eye(K).double()[y])


def test_difference_of_logits_ratio_by_hand():
    out, y = torch.tensor([[3.0, 1, 0, -2], [3, 1, 0, -2]]), torch.tensor([0, 2])
    assert_close(Leave(y, "dlr").pull(out, all_rows(2)), torch.tensor([-2 / 3, 3 / 3]))
    assert_close(Reach(y, "dlr").pull(out, all_rows(2)), torch.tensor([2.0, -3.0]) / (3 - (0 - 2) / 2))
    towards = Leave(torch.tensor([0, 2]), "dlr", toward=torch.tensor([1, 3]))
    assert_close(towards.pull(out, all_rows(2)), torch.tensor([-2.0, -2.0]) / (3 - (0 - 2) / 2))


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("make", [Reach, lambda y, loss: Leave((y + 1) % 4, loss, toward=y)], ids=["reach", "toward"])
def test_difference_of_logits_ratio_leads_to_a_class_of_any_rank(make, rank):
    """Peers' untargeted ratio is constant where the class ranks third."""
    out = torch.tensor([[3.0, 1, 0, -2]])
    goal = make(torch.tensor([rank]), "dlr")
    g = slope(goal, out)
    assert g.abs().max() > 0.1
    assert goal.pull(out + 0.01 * g, all_rows(1)) > goal.pull(out, all_rows(1))


@pytest.mark.parametrize("classes", [2, 3])
def test_difference_of_logits_ratio_of_too_few_classes_is_the_margin(classes):
    out, rows = torch.randn(6, classes, dtype=torch.float64), all_rows(6)
    y = rows % classes
    other = (y + 1) % classes
    assert_close(Reach(y, "dlr").pull(out, rows), Reach(y, "margin").pull(out, rows))
    assert_close(Leave(y, "dlr", toward=other).pull(out, rows), Leave(y, "margin", toward=other).pull(out, rows))
    if classes == 2:
        assert_close(Leave(y, "dlr").pull(out, rows), Leave(y, "margin").pull(out, rows))


def test_margin_of_probabilities_by_hand():
    out, y = logits()
    p = out.exp() / out.exp().sum(1, keepdim=True)
    expected = torch.stack([max(v for i, v in enumerate(q) if i != c) - q[c] for q, c in zip(p, y, strict=True)])
    for scores in (out, p):  # probabilities are taken as they are
        assert_close(Leave(y, "pma").pull(scores, all_rows()), expected)
        assert_close(Reach(y, "pma").pull(scores, all_rows()), -expected)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_difference_of_logits_ratio_ignores_shift_and_scale(scale, shift):
    out, y = logits()
    for goal in (Leave(y, "dlr"), Reach(y, "dlr"), Leave(y, "dlr", toward=(y + 1) % K)):
        assert_close(goal.pull(out * scale + shift, all_rows()), goal.pull(out, all_rows()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_difference_of_logits_ratio_of_equal_logits_is_finite(dtype):
    out, y = torch.zeros(2, 4, dtype=dtype), torch.tensor([0, 3])
    for goal in (Leave(y, "dlr"), Leave(y, "dlr", toward=torch.tensor([1, 1]))):
        assert torch.equal(goal.pull(out, all_rows(2)), torch.zeros(2, dtype=dtype))


@every_loss
def test_towards_one_other_class(loss):
    out, y = logits()
    t = (y + 2) % K
    goal = Leave(y, loss, toward=t)
    assert_close(goal.value(out, all_rows()), Leave(y).value(out, all_rows()))  # any other class is a success
    chosen, own, p = torch.eye(K).double()[t], torch.eye(K).double()[y], out.softmax(1)
    top = out.sort(dim=1, descending=True).values
    expected = {
        "ce": (chosen * p).sum(1).log(),
        "margin": ((chosen - own) * out).sum(1),
        "dlr": ((chosen - own) * out).sum(1) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2),
        "pma": ((chosen - own) * p).sum(1),
    }
    assert_close(goal.pull(out, all_rows()), expected[loss])


@pytest.mark.parametrize("loss", LOSSES)
def test_copies_climb_towards_classes_of_their_own(loss):
    out, y = logits()
    goal = Leave(y, loss, by=torch.linspace(0, 1, N, dtype=torch.float64))
    whose = torch.tensor([3, 0, 3, 1])
    toward = (y[whose] + torch.tensor([1, 1, 2, 3])) % K
    copies = goal.copies(whose, toward)
    assert_close(copies.value(out[whose], all_rows(4)), goal.value(out[whose], whose))
    for i in range(4):
        one = replace(goal, toward=toward[i].expand(N))
        assert_close(copies.pull(out[whose], all_rows(4))[i], one.pull(out, all_rows())[whose[i]])


# ---- probabilities instead of logits


@pytest.mark.parametrize(
    "make",
    [
        *(lambda y, loss=loss: Leave(y, loss) for loss in LOSSES),
        *(lambda y, loss=loss: Reach(y, loss) for loss in LOSSES),
        *(lambda y, loss=loss: Leave(y, loss, toward=(y + 1) % K) for loss in LOSSES),
    ],
)
def test_probabilities_ask_the_same_as_their_logits(make):
    model, x = mlp(6, K), torch.randn(N, 6, dtype=torch.float64)
    y = torch.arange(N) % K
    raw, soft = Probe(model, (x,), make(y)), Probe(nn.Sequential(model, nn.Softmax(1)), (x,), make(y))
    for one, other in zip(raw.grad(x), soft.grad(x), strict=True):
        assert_close(one, other, atol=1e-9, rtol=1e-7)
    pulls = [f.of.pull(f.outputs(), f.everyone) for f in (raw, soft)]
    assert_close(*pulls, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [2, 10, 1000])
def test_probabilities_are_recognised_in_every_dtype(dtype, k):
    out = torch.randn(50, k, dtype=torch.float64).mul(2).softmax(1).to(dtype)
    assert_close(as_logits(out, all_rows(50)), out.clamp(min=torch.finfo(dtype).tiny).log())
    y = torch.arange(50) % k
    lost = out.amax(1) > out.gather(1, y[:, None]).squeeze(1)
    assert torch.equal(Leave(y).value(out, all_rows(50)) > 0, lost)
    certain = torch.eye(3, dtype=dtype)
    found = as_logits(certain, all_rows(3))
    assert torch.isfinite(found).all() and (found.argmax(1) == torch.arange(3)).all() and (found.diagonal() == 0).all()


@pytest.mark.parametrize(
    "out",
    [
        [[1.2, -0.1, -0.1], [0.5, 0.5, 0.5]],
        [[-0.5, 0.5, 1.0]],
        [[0.2, 0.3, 0.4]],
        [[3.0, -1.0, 0.0]],
        [[0.0, 0.0, 0.0]],
    ],
)
def test_logits_stay_as_they_are(out):
    out = torch.tensor(out)
    assert torch.equal(as_logits(out, all_rows(len(out))), out)


def test_gradients_pass_both_kinds_of_rows():
    out = torch.tensor([[0.0, 0.3, 0.7], [-5.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    for goal in (Leave(torch.tensor([2, 2, 0]), loss) for loss in LOSSES):
        assert torch.isfinite(slope(goal, out)).all()


# ---- other goals


@given(st.floats(-10, 10), st.floats(-5, 5), st.floats(0.1, 5))
def test_between(v, low, width):
    out = torch.tensor([[0.0, v]], dtype=torch.float64)
    for goal, reached in [
        (Between(low, low + width, target=1), low < v < low + width),
        (Between(low=low, target=1), v > low),
        (Between(high=low, target=1), v < low),
    ]:
        margin = goal.value(out, all_rows(1))
        assert margin.shape == (1,) and bool(margin > 0) == reached and torch.isfinite(margin).all()


def test_between_for_one_number_per_example_and_for_targets_that_follow():
    assert_close(Between(0, 1).value(torch.tensor([0.2, 0.9, 3.0]), all_rows(3)), torch.tensor([0.2, 0.1, -2.0]))
    goal = Between(0, target=[0, 1])
    assert_close(goal.value(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])), torch.tensor([2.0, 3.0]))


def test_until_asks_the_whole_output():
    goal = Until(lambda out: out[0].sum(1) - out[1])
    out = (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([1.0, 5.0]))
    assert goal.value(out, all_rows(2)).tolist() == [2.0, -4.0] == goal.pull(out, all_rows(2)).tolist()
    assert Probe(Pair(), (torch.ones(2, 3),), Until(lambda out: out[1].sum(1) - 2)).score.tolist() == [1.0, 1.0]


def test_climb_has_a_direction_and_targets_that_follow():
    out, y = logits()
    rows = torch.tensor([3, 1])
    loss = nn.CrossEntropyLoss(reduction="none")
    expected = -out.log_softmax(1)[rows, y[rows]]
    assert_close(Climb(loss, y).value(out[rows], rows), expected)
    assert_close(Climb(loss, y, -1.0).pull(out[rows], rows), -expected)
    assert_close(Climb(lambda o, t: o[:, t], 2).value(out[rows], rows), out[rows, 2])


def test_a_loss_of_ones_own_gets_the_raw_output_and_the_labels():
    out, y = logits()
    out, rows = out.softmax(1), torch.tensor([5, 2])

    def loss(o, labels):
        assert torch.equal(o, out[rows]) and torch.equal(labels, y[rows])
        return o[:, 0] * labels

    assert_close(Leave(y, loss).pull(out[rows], rows), out[rows, 0] * y[rows])
    assert_close(Reach(y, loss).pull(out[rows], rows), -out[rows, 0] * y[rows])


@pytest.mark.parametrize(
    "goal",
    [
        Leave(torch.arange(N) % K, "ce"),
        Reach(torch.arange(N) % K, "dlr"),
        Between(-1, 2, target=1),
        Until(lambda out: out[:, 0]),
        Climb(nn.CrossEntropyLoss(reduction="none"), torch.arange(N) % K),
    ],
    ids=lambda goal: type(goal).__name__,
)
def test_a_firmer_goal_asks_for_more_and_leads_the_same_way(goal):
    out, rows = logits()[0], torch.tensor([7, 0, 7, 3])
    each = torch.linspace(0, 1, N, dtype=torch.float64)
    before = goal.value(out[rows], rows)
    assert_close(goal.firm(0.5).value(out[rows], rows), before - 0.5)
    assert_close(goal.firm(each).value(out[rows], rows), before - each[rows])
    assert_close(goal.firm(0.5).firm(each).value(out[rows], rows), before - 0.5 - each[rows])
    assert_close(slope(goal.firm(each), out[rows], rows), slope(goal, out[rows], rows))
    assert_close(goal.value(out[rows], rows), before)


def test_the_models_own_answer_is_left():
    model, x = linear(), torch.randn(6, 5, dtype=torch.float64)
    f = Probe(model, (x,))
    goal = class_goal(f, None)
    assert isinstance(goal, Leave) and torch.equal(goal.y, model(x).argmax(1))
    assert (f.to(of=goal).score < 0).all()
    for y in (2, torch.tensor(2), [2], torch.full((6,), 2), torch.full((6,), 2, dtype=torch.uint8)):
        goal = class_goal(f, y, targeted=True, loss="ce")
        assert isinstance(goal, Reach) and goal.y.tolist() == [2] * 6 and goal.y.dtype == torch.long
    assert class_goal(Probe(model, (x[:0],)), None).y.shape == (0,)


# ---- bad input


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("kind", [Leave, Reach])
def test_one_logit_is_that_of_class_1_against_class_0(kind, loss):
    z, y = torch.tensor([-3.0, 0.5, 2.0, -0.1], dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    both, goal = torch.stack([-z / 2, z / 2], 1), kind(y, loss)
    for one in (z, z[:, None]):
        goal.check(one, all_rows(4))
        for told in (goal.value, goal.pull):
            assert_close(told(one, all_rows(4)), told(both, all_rows(4)))
    assert_close(Leave(y).value(z, all_rows(4)), torch.where(y == 0, z, -z))
    assert class_goal(Probe(lambda x: x.sum(1), (z[:, None],)), None).y.tolist() == [0, 1, 1, 0]


def test_one_probability_is_told_from_one_logit():
    with pytest.warns(UserWarning, match=r"lies between 0 and 1 for all of 3 examples .* torch.stack"):
        Leave(torch.tensor([0, 1, 0])).check(torch.tensor([0.2, 0.7, 0.4]), all_rows(3))


@pytest.mark.parametrize(
    "goal, out, error, words",
    [
        (Leave, torch.rand(3, 2, 2), OutputError, r"class scores \[B, K\], or one logit .*, got shape \(3, 2, 2\)"),
        (Leave, (torch.rand(3, 2),), OutputError, r"must return one tensor, got a tuple of 1; wrap it"),
        (Leave, torch.rand(4, 2), OutputError, r"one row per example, got shape \(4, 2\) for 3 rows"),
        (lambda y: Until(lambda o: o), torch.rand(3, 2), TargetError, r"3 rows gave \(3, 2\)"),
        (
            lambda y: Leave(y, lambda o, y: o),
            torch.rand(3, 2),
            ValueError,
            "one number per row, got shape .* use reduction='none'",
        ),
        (lambda y: Between(0, 1), torch.rand(3, 2), TargetError, "choose one number per row"),
    ],
)
def test_outputs_that_do_not_fit(goal, out, error, words):
    with pytest.raises(error, match=words):
        goal(torch.tensor([0, 1, 0])).pull(out, all_rows(3))


@pytest.mark.parametrize("wrong", [4, -1, 7])
def test_labels_that_are_no_class(wrong):
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, wrong, 2])
    f = Probe(linear(), (x,), Leave(y))
    for ask in (lambda: f.score, lambda: f.grad(x), lambda: f.jacobian(x, [Leave(y)])):
        with pytest.raises(ValueError, match=rf"y must hold classes from 0 to 3.*4 outputs.*got {wrong} for example 2"):
            ask()


@pytest.mark.parametrize(
    "y, targeted, words",
    [
        (None, True, "targeted=True needs y"),
        (torch.tensor([0.0, 1, 2]), False, r"y must hold classes as integers, got torch.float32; use y.long\(\)"),
        (torch.tensor([True, False, True]), False, "got torch.bool"),
        (torch.tensor([0, 1]), False, r"one class or one per example \[3\], got shape \(2,\)"),
        (torch.zeros(3, 1, dtype=torch.long), False, r"got shape \(3, 1\)"),
        ([(0, 1)] * 3, False, "one class per example.*give a goal"),
    ],
)
def test_labels_that_do_not_fit(y, targeted, words):
    with pytest.raises(ValueError, match=words):
        class_goal(Probe(linear(), (torch.randn(3, 5, dtype=torch.float64),)), y, targeted)


def test_unknown_losses_and_empty_intervals():
    with pytest.raises(ValueError, match="loss must be one of 'ce', 'margin', 'dlr', 'pma' or a function, got 'hinge'"):
        Leave(torch.tensor([0]), "hinge")
    with pytest.raises(ValueError, match="low must be less than high, got 2 and 1"):
        Between(2, 1)
    with pytest.raises(ValueError, match="low must be less than high, got nan"):
        Between(float("nan"), 1)


def test_a_model_that_rounds_has_margins_but_no_gradient():
    f = Probe(Rounding(), (torch.rand(3, 4, dtype=torch.float64),), Leave(torch.tensor([0, 1, 2])))
    assert f.score.shape == (3,)
    with pytest.raises(RuntimeError, match="no gradient with respect to its input"):
        f.grad(f.point)
    assert labels(1, f).tolist() == [1, 1, 1]


def test_bounds_of_a_score_may_differ_from_example_to_example():
    out, rows = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0, 1])
    goal = Between(torch.tensor([0.0, 5.0, 2.0]), torch.tensor([2.0, 9.0, 4.0]), target=0)
    assert_close(goal.value(out[rows], rows), torch.tensor([1.0, 1.0, -3.0]))


def test_the_little_more_that_a_search_asks_for():
    """In logits the same everywhere; in units of one's own a share of what is missing; never nothing."""
    before = torch.tensor([-5.0, -1e-3, 0.0])
    assert_close(Leave(torch.zeros(3).long()).hair(before), torch.full((3,), 1e-4))
    assert_close(Until(lambda out: out).hair(before), torch.tensor([1e-4, 1e-7, 1e-4]))


@pytest.mark.parametrize("count", [None, 1, 3])
def test_boundaries_are_the_leads_of_the_rivals(count):
    """The margin, and each rival's lead beyond what is asked; the largest lead is the margin."""
    out, y = logits()
    by = torch.linspace(0, 0.5, N, dtype=torch.float64)
    told = Boundaries(Leave(y, by=by), count).value(out, all_rows())
    leads = torch.stack([o[[k for k in range(K) if k != c]] - o[c] for o, c in zip(out, y, strict=True)]) - by[:, None]
    least = leads.sort(1, descending=True).values[:, (count or K - 1) - 1, None]
    expected = leads[leads >= least].reshape(N, -1)  # in the order of the classes
    assert_close(told, torch.cat([leads.amax(1, keepdim=True), expected], 1))
    rows = torch.tensor([4, 4, 0])
    assert_close(Boundaries(Leave(y, by=by), count).value(out[rows], rows), told[rows])


def test_boundaries_of_other_goals():
    """Towards one rival, its lead alone; of any other goal, its margin."""
    out, y = logits()
    toward = (y + 2) % K
    leave, reach, until = Leave(y, toward=toward, by=0.1), Reach(y, by=0.1), Until(lambda out: out[:, 0])
    lead = (out.gather(1, toward[:, None]) - out.gather(1, y[:, None])).squeeze(1) - 0.1
    for goal, expected in ((leave, lead), (reach, reach.value(out, all_rows())), (until, out[:, 0])):
        told = Boundaries(goal).value(out, all_rows())
        assert_close(told, torch.stack([goal.value(out, all_rows()), expected], 1))


def test_boundaries_cost_one_pass_forward_and_one_back_for_each():
    model, x = linear(), torch.rand(6, D, dtype=torch.float64)
    f = Probe(model, (x,), Boundaries(Leave(torch.zeros(6, dtype=torch.long)), 3))
    leads, slopes = f.grad(f.point)
    assert (f.meter.forward == 1).all() and (f.meter.backward == 3).all()
    assert leads.shape == (6, 4) and slopes.shape == (6, 3, D)
    assert_close(slopes, (model.weight[1:] - model.weight[0]).expand(6, 3, D))


@every_loss
def test_progress_is_the_margin_beside_what_is_climbed(loss):
    out, y = logits()
    for goal in (Leave(y, loss, by=0.1), Reach(y, loss)):
        told = Progress(goal).value(out, all_rows())
        assert_close(told, torch.stack([goal.value(out, all_rows()), goal.pull(out, all_rows())], 1))

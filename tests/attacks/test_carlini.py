"""Carlini's and Wagner's attacks and EAD: exact optima of affine classifiers, other libraries, units of any size."""

import functools

import numpy as np
import pytest
import torch
from attack_cases import affine, examples, mlp
from peers import adv_lib, foolbox
from test_exact_affine import exact, problem
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import CW, EAD
from robustx.attacks.adam import Adaptive
from robustx.attacks.carlini import HAIR, Wave
from robustx.perturb import NORMS, Region

inf = torch.inf


@functools.cache
def truth(norm):
    return exact(*problem(5), norm)


def ratios(attack, norm):
    """How many times as far as the nearest point each example went; all of them arrived, and none fell short of it."""
    model, x, y = problem(5)
    result = attack(model, bounds=(0, 1)).run(x, y)
    assert result.success.all()
    ratio = result.distance.numpy() / truth(norm)
    assert (ratio >= 1 - 1e-6).all()
    return ratio


def robust_digits(count=12):
    model, data = zoo.load("digits-robust", limit=count)
    return model, data.x, data.y


def sizes(norm, model, x, y, moved):
    """Distances [B], infinite where the model is not fooled."""
    with torch.no_grad():
        fooled = model(moved).argmax(1) != y
    return torch.where(fooled, NORMS[norm].size((moved - x).flatten(1)), inf)


# --- exact optima -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack, norm, median, most",
    [
        (functools.partial(CW, norm="L2", steps=100), "L2", 1.0005, 1.05),
        (functools.partial(CW, norm="Linf", steps=100), "Linf", 1.01, 1.1),
        (functools.partial(CW, norm="L0", steps=30), "L0", 1.6, 3.0),
        (functools.partial(EAD, steps=50), "L1", 1.05, 1.15),
    ],
    ids=["L2", "Linf", "L0", "ead"],
)
def test_near_the_nearest_point_of_affine_classifiers(attack, norm, median, most):
    ratio = ratios(attack, norm)
    assert np.median(ratio) <= median and np.quantile(ratio, 0.95) <= most


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_a_corner_of_the_box_is_left(norm):
    """All elements stand at the walls: the nearest point of another class is still found."""
    model = affine(18, 2)
    x, y = examples(model, wrong=0)
    x = x.round()
    y = model(x).argmax(1)
    result = CW(model, bounds=(0, 1), norm=norm, steps=100).run(x, y)
    least = exact(model, x, y, norm)
    can = np.isfinite(least)
    assert result.success.tolist() == can.tolist() and can.sum() > 8
    assert (result.distance.numpy()[can] <= least[can] * 1.01).all()


# --- other libraries ----------------------------------------------------------------------------------------


def foolbox_attack(attack):
    return lambda model, x, y: attack(foolbox.PyTorchModel(model.eval(), bounds=(0, 1)), x, y, epsilons=None)[1]


STEPS = 30
PEERS = {
    "cw-L2, adv-lib": (
        functools.partial(CW, steps=STEPS),
        functools.partial(adv_lib.attacks.carlini_wagner_l2, max_iterations=STEPS),
        "L2",
    ),
    "cw-L2, foolbox": (
        functools.partial(CW, steps=STEPS),
        foolbox_attack(foolbox.attacks.L2CarliniWagnerAttack(steps=STEPS)),
        "L2",
    ),
    "cw-Linf, adv-lib": (
        functools.partial(CW, norm="Linf", steps=STEPS),
        functools.partial(adv_lib.attacks.carlini_wagner_linf, max_iterations=STEPS),
        "Linf",
    ),
    "ead, foolbox": (
        functools.partial(EAD, steps=STEPS),
        foolbox_attack(foolbox.attacks.EADAttack(steps=STEPS, decision_rule="L1")),
        "L1",
    ),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("of", [functools.partial(problem, 5), robust_digits], ids=["affine", "digits"])
def test_no_farther_than_other_libraries(name, of):
    """At as many steps a round, and no more rounds (adv-lib's in Linf are as many as it likes)."""
    attack, other, norm = PEERS[name]
    model, x, y = of()
    ours = attack(model, bounds=(0, 1)).run(x, y)
    theirs = sizes(norm, model, x, y, other(model, x, y))
    assert ours.success.all() and ours.forwards.max() <= 9 * STEPS + 100
    assert ours.distance.median() <= theirs.median() and ours.distance.mean() <= theirs.mean()


# --- laws ---------------------------------------------------------------------------------------------------

BINDS = {
    "cw-L2": functools.partial(CW, norm="L2"),
    "cw-Linf": functools.partial(CW, norm="Linf"),
    "cw-L0": functools.partial(CW, norm="L0"),
    "ead": EAD,
    "ead, elastic": functools.partial(EAD, rule="EN"),
}
every = pytest.mark.parametrize("attack", BINDS.values(), ids=BINDS)


@every
@pytest.mark.parametrize("logits", [1e-3, 1.0, 1e3])
def test_units_do_not_matter(attack, logits):
    """Neither those of inputs nor those of logits: weights and steps come from the first gradient."""
    model = mlp()
    x, y = examples(model)
    usual = attack(model, bounds=(0, 1), steps=30, rounds=5).run(x, y)
    scaled = attack(lambda z: logits * model((z + 3) / 255), bounds=(-3, 252), steps=30, rounds=5).run(255 * x - 3, y)
    assert usual.success.all() and scaled.success.all()
    unit = 1 if "L0" in str(attack) else 255
    assert_close(scaled.distance, usual.distance * unit, rtol=2e-2, atol=0)


@every
def test_confidence(attack):
    model = mlp()
    x, y = examples(model, wrong=0)
    plain, bold = (attack(model, bounds=(0, 1), steps=30, confidence=c).run(x, y) for c in (0.0, 0.5))
    assert plain.success.all() and bold.success.sum() > 8
    assert (bold.margin[bold.success] >= 0.5).all() and (plain.margin < 0.5).any()
    assert (bold.distance >= plain.distance)[bold.success].all()


@every
def test_finished_rows_leave(attack):
    model = mlp()
    x, y = examples(model)
    result = attack(model, bounds=(0, 1), steps=30, rounds=20).run(x, y)
    assert (result.forwards[:10] < 20 * 30).all() and result.forwards[:10].unique().numel() > 1


def test_the_rules_of_the_elastic_net():
    """Each rule finds what it looks for, or at least no less of it than the other rule."""
    model, x, y = problem(5)
    least, elastic = (EAD(model, bounds=(0, 1), steps=50, beta=0.3, rule=r).run(x, y) for r in ("L1", "EN"))
    square = [(r.adversarial - x).flatten(1).square().sum(1) for r in (least, elastic)]
    assert least.distance.mean() < elastic.distance.mean() and square[1].mean() < square[0].mean()
    with pytest.raises(ValueError, match="rule must be 'L1' or 'EN', got 'L2'"):
        EAD(model, rule="L2")
    with pytest.raises(ValueError, match="beta must be a number of at least 0, got -1"):
        EAD(model, beta=-1)


# --- parts --------------------------------------------------------------------------------------------------


def region(low, high, free=None):
    centre = torch.tensor([[0.0, 0.3, 1.0, 0.5], [1.0, 0.0, 0.5, 0.9]], dtype=torch.float64)
    ends = (torch.as_tensor(v, dtype=torch.float64).expand_as(centre) for v in (low, high))
    return Region(centre, NORMS["L2"], torch.full((2,), inf), *ends, free)


def test_a_wave_covers_the_box():
    wave = Wave(region(0.0, 1.0))
    w = torch.linspace(-9, 9, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    z = wave.point(w)
    assert ((z >= 0) & (z <= 1)).all()
    assert_close(torch.autograd.grad(z.sum(), w)[0], wave.slope(w))
    assert_close(wave.point(wave.at(wave.region.centre)), wave.region.centre, rtol=0, atol=HAIR)
    walls = torch.tensor([[0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert (wave.slope(wave.at(walls)).abs() > 1e-3).all()  # from where one can get away
    assert_close(wave.point(torch.pi / 2 * torch.tensor([[-1, 1.0, -3, 5]]).double()), walls.expand(2, 4))


def test_a_wave_is_the_point_itself_where_the_box_has_no_end():
    wave = Wave(region([-inf, 0.0, 0.0, 0.5], [inf, inf, 1.0, 0.5], torch.tensor([[True] * 4, [False] * 4])))
    w = torch.tensor([[-7.0, -7.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    assert_close(wave.point(w), torch.tensor([[-7.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.9]], dtype=torch.float64))
    assert_close(wave.at(wave.region.centre)[:, :2], wave.region.centre[:, :2])
    assert wave.slope(w)[:, :2].eq(1).all() and wave.slope(w)[:, 3].eq(0).all()


def test_adam_is_adam_for_rows_that_come_and_go():
    torch.manual_seed(0)
    goal, start = torch.randn(5, 7).double(), torch.zeros(5, 7).double()
    theirs = [start[i].clone().requires_grad_() for i in range(5)]
    adams = [torch.optim.Adam([p], lr=0.1, eps=0) for p in theirs]
    away = torch.full((1, 1), inf).double()
    a = Adaptive.fresh(torch.arange(5), Region(start, NORMS["L2"], away[0].expand(5), -away, away), None)
    for step in range(12):
        if step == 6:
            a = a.at(torch.tensor([True, False, True, True, False]))
        a, move = a.told(a.z - goal[a.rows], 0.1)
        a = a.to(z=a.z + move)
        for i in a.rows.tolist():
            theirs[i].grad = theirs[i].detach() - goal[i]
            adams[i].step()
    assert a.rows.tolist() == [0, 2, 3]
    assert_close(a.z, torch.stack([theirs[i].detach() for i in (0, 2, 3)]))

"""Auto-PGD beyond the laws: against the papers' algorithms one row at a time, exact optima, and other libraries."""

import math

import numpy as np
import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from peers import adv_lib, torchattacks
from test_exact_affine import exact, problem
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import APGD, ZeroGradientWarning, make
from robustx.attacks.apgd import apgd, checkpoints
from robustx.engine import Probe
from robustx.perturb import NORMS, Leave, Region
from robustx.perturb.goals import margin

# --- the papers' algorithms, slow and obvious -------------------------------------------------------------


def test_checkpoints_are_the_papers():
    """p_1 = 0.22, then spans 0.03 shorter each, at least 0.06; rounded up."""
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(40) == (9, 17, 23, 28, 32, 35, 38, 40)
    for steps in (1, 7, 1000):
        assert list(checkpoints(steps)) == sorted(checkpoints(steps)) and checkpoints(steps)[-1] <= steps


def algorithm_1(loss, project, steepest, x0, eps, steps):
    """Croce, Hein (ICML 2020), algorithm 1, for one point."""
    marks = [0, *checkpoints(steps)]
    best_at_mark, halved = [], [False]

    def slope(x):
        x = x.detach().requires_grad_()
        v = loss(x)
        return v.item(), torch.autograd.grad(v, x)[0]

    eta, x, before = 2 * eps, x0, x0
    v, g = slope(x)
    rises, best = [], (v, x, g)
    best_at_mark.append(v)
    for k in range(steps):
        if k in marks[1:]:
            since = k - marks[marks.index(k) - 1]
            few = sum(rises[-since:]) < 0.75 * since
            still = not halved[-1] and best[0] == best_at_mark[-1]
            halved.append(few or still)
            best_at_mark.append(best[0])
            if halved[-1]:
                eta = eta / 2
                v, x, g = best
        z = project(x + steepest(g, eta))
        new = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x = x, new
        higher, g = slope(x)
        rises.append(higher > v)
        v = higher
        if v > best[0]:
            best = (v, x, g)
    return best[1]


def algorithm_l1(loss, project, x0, centre, eps, steps):
    """Croce, Hein (ICML 2021), section 3.1: sign steps of a sparsity and a length that follow the best point."""
    span, d = max(1, int(0.04 * steps)), x0.numel()

    def slope(x):
        x = x.detach().requires_grad_()
        v = loss(x)
        return v.item(), torch.autograd.grad(v, x)[0]

    x, length, k = x0, eps, d / 5
    changed = (x0 != centre).sum().item()
    v, g = slope(x)
    best = (v, x, g)
    for i in range(steps):
        if i and i % span == 0:
            now = (best[1] != centre).sum().item()
            if now < 0.95 * changed:
                length, (v, x, g) = eps, best
            else:
                length = max(length / 1.5, eps / 10)
            k, changed = now / 1.5, now
        keep = g.abs().argsort(descending=True)[: max(1, int(k))]
        move = torch.zeros_like(g)
        move[keep] = g[keep].sign() * length / len(keep)
        x = project(x + move)
        v, g = slope(x)
        if v > best[0]:
            best = (v, x, g)
    return best[1]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("steps", [23, 60])
def test_climbs_as_the_paper_does(norm, steps):
    """Many rows in one batch, each as if it were alone; none leaves."""
    model = mlp()
    x = torch.rand(6, 18, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = {"Linf": 0.2, "L2": 0.7, "L1": 2.0}[norm] * torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    box = torch.full((1, 1), torch.inf, dtype=torch.float64)
    region = Region(x, NORMS[norm], eps, -box, box)
    f = Probe(model, (x,), Leave(y))
    start = region.project(x + 0.3 * torch.randn_like(x))
    found = apgd(f, region, f.everyone, steps, start, stop=False)
    for i in range(6):
        near = region.at(torch.tensor([i]))
        loss = lambda z, i=i: margin(model(z[None]), y[i : i + 1]).squeeze()
        project = lambda z, near=near: near.project(z[None])[0]
        if norm == "L1":
            expected = algorithm_l1(loss, project, start[i], x[i], eps[i].item(), steps)
        else:
            unit = (lambda g: g.sign()) if norm == "Linf" else (lambda g: g / g.norm())
            steepest = lambda g, eta, unit=unit: unit(g) * eta
            expected = algorithm_1(loss, project, steepest, start[i], eps[i].item(), steps)
        assert_close(found.margin[i], loss(expected).detach())
        assert_close(found.z[i], expected, rtol=0, atol=1e-6)  # a summit is flat: its place is known by half the digits


def test_the_steps_are_the_rows_own():
    """A peer takes the first row's step length for the whole batch: rows of other budgets then stand still or jump."""
    model, (x, y) = mlp(), examples(mlp(), wrong=0)
    eps = torch.logspace(-3, 0, len(x))
    for norm in ("Linf", "L2", "L1"):
        together = make("apgd-t", model, norm=norm, bounds=(0, 1), steps=20).run(x, y, eps=eps)
        for i in (0, 5, 11):
            alone = make("apgd-t", model, norm=norm, bounds=(0, 1), steps=20).run(
                x[i : i + 1], y[i : i + 1], eps=eps[i]
            )
            assert_close(alone.adversarial[0], together.adversarial[i], rtol=0, atol=1e-9)


# --- what it costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, forwards, backwards",
    [
        ({}, 21, 20),
        ({"restarts": 3}, 3 * 21, 3 * 20),
        ({"targets": 2}, 1 + 2 * 21, 2 * 20),
        ({"targets": 9}, 1 + 3 * 21, 3 * 20),  # of four classes
        ({"eot_iter": 5}, 5 * 21, 5 * 20),
        ({"norm": "L1", "large_eps": True}, 3 + 23, 2 + 20),  # a tenth of the steps to begin with
    ],
)
def test_one_forward_serves_success_loss_and_gradient(options, forwards, backwards):
    """Counted from outside, for examples that cannot fall: one pass to look, one to confirm, and no last gradient."""
    net = mlp()
    x, y = examples(net, wrong=0)
    model = Counted(net, len(x))
    result = APGD(model, bounds=(0, 1), eps=1e-6, steps=20, **options).run(
        x, y, additional_forward_args=torch.arange(len(x))
    )
    assert not result.success.any()
    assert (model.forwards == 1 + forwards + 1).all() and (model.backwards == backwards).all()


def test_fooled_rows_cost_little():
    model, x, y = problem(5)
    result = make("apgd-ce", model, bounds=(0, 1), eps=0.5).run(x, y)
    assert result.success.all() and (result.backwards <= 3).all()
    result = APGD(model, bounds=(0, 1), norm="L1", eps=12.0, large_eps=True).run(x, y)
    assert result.success.all() and (result.backwards <= 10).all()


def test_copies_of_a_row_leave_together():
    """Once one class is reached, the climbs towards the others end; the first class is tried alone."""
    model, x, y = problem(5)
    truth = exact(model, x, y, "Linf")
    result = make("apgd-t", model, bounds=(0, 1), eps=float(np.median(truth)) * 1.001).run(x, y)
    fell = result.success
    assert fell.any() and not fell.all()
    assert (result.backwards[fell] < 400).all() and (result.backwards[~fell] == 400).all()


# --- few classes, flat losses, random models --------------------------------------------------------------


@pytest.mark.parametrize("name", ["apgd-dlr", "apgd-t"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_exact_for_two_classes(name, norm):
    """Where the ratio of logits is not defined the margin takes its place."""
    model, x, y = problem(2, dtype=torch.float64)
    truth = exact(model, x, y, norm)
    eps = float(np.median(truth))
    assert (
        make(name, model, bounds=(0, 1), norm=norm, eps=eps * 1.001).run(x, y).success.tolist()
        == (truth <= eps * 1.001).tolist()
    )


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("classes", [3, 5])
def test_robust_accuracy_is_the_exact_one(norm, seed, classes):
    model, x, y = problem(classes, seed=seed)
    truth = exact(model, x, y, norm)
    eps = float(np.median(truth))
    for large in {False, norm == "L1"}:
        result = make("apgd-t", model, bounds=(0, 1), norm=norm, eps=eps, large_eps=large).run(x, y)
        robust = (truth > eps).sum()
        assert 8 < robust < 24
        assert robust <= (~result.success).sum() <= robust + 1


def test_a_saturated_loss_is_told_of_and_the_ratio_is_not_saturated():
    net = affine(18, 4, dtype=torch.float32)
    x, y = examples(net, dtype=torch.float32, wrong=0)

    def sharp(x):
        return net(x) * 1e4

    with pytest.warns(ZeroGradientWarning):
        ce = make("apgd-ce", sharp, bounds=(0, 1), eps=0.2).run(x, y)
    dlr = make("apgd-dlr", sharp, bounds=(0, 1), eps=0.2).run(x, y)
    assert dlr.success.sum() > ce.success.sum()


def test_a_row_that_starts_beyond_the_boundary_is_no_flat_one():
    """The untargeted ratio is constant where the label ranks third; but then the goal is reached."""
    logits = torch.tensor([[0.0, -1.0, 4.0, 3.0]]).double()

    def model(x):
        return logits * (1 + x.flatten(1).sum(1, keepdim=True)) - 9 * (x.flatten(1).sum(1, keepdim=True) < 0.5).double()

    x = torch.zeros(1, 4, dtype=torch.float64)

    def shifted(x):  # class 0 leads at the input alone
        return model(x) + 20 * (x.abs().sum(1, keepdim=True) == 0) * torch.tensor([1.0, 0, 0, 0]).double()

    assert make("apgd-dlr", shifted, bounds=(0, 1), eps=0.5, steps=5).run(x, torch.tensor([0])).success.all()


class Drawing(nn.Module):
    """Noise of its own in every pass, one draw for the whole batch."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.3 * torch.randn(1, *x.shape[1:], dtype=x.dtype))


def test_the_mean_of_many_passes_is_climbed():
    """With an affine model below, the mean margin is the clean one: what falls on average is known."""
    net = affine(18, 2)
    x, y = examples(net, count=40, wrong=0)
    truth = net(x).gather(1, y[:, None]).squeeze(1) - net(x).gather(1, 1 - y[:, None]).squeeze(1)
    eps = 0.1

    def mistakes(draws):
        moved = make("apgd-ce", Drawing(net), bounds=(-9, 9), eps=eps, eot_iter=draws, steps=10).run(x, y).adversarial
        lead = net(moved).gather(1, 1 - y[:, None]) - net(moved).gather(1, y[:, None])
        w = net[1].weight[1] - net[1].weight[0]
        return ((lead.squeeze(1) > 0) != (truth < eps * w.abs().sum())).sum()

    assert mistakes(60) < mistakes(1)


# --- other libraries, in the same run ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust():
    """The adversarially trained network of the zoo, and digits that it knows."""
    model, data = zoo.load("digits-robust")
    x, y = torch.as_tensor(data.x)[:160], torch.as_tensor(data.y)[:160]
    with torch.no_grad():
        right = model(x).argmax(1) == y
    return model, x[right], y[right]


def standing(model, x, y, moved, norm, eps):
    """How many resist, by a fresh pass; what was moved must be in ball and box, in float64."""
    d = (moved.double() - x.double()).flatten(1)
    assert (torch.linalg.vector_norm(d, {"Linf": math.inf, "L2": 2, "L1": 1}[norm], dim=1) <= eps * (1 + 1e-5)).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    with torch.no_grad():
        return int((model(moved).argmax(1) == y).sum())


@pytest.mark.parametrize("norm, eps", [("Linf", 0.2), ("L2", 1.0), ("L1", 2.0)])
def test_no_weaker_than_other_libraries(robust, norm, eps):
    """At equal steps and by either loss; as all starts are random, two examples of 320 are no difference."""
    model, x, y = robust
    options = {"bounds": (0, 1), "norm": norm, "eps": eps, "steps": 50, "large_eps": norm == "L1"}
    p = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]

    def ours(loss):
        return make(f"apgd-{loss}", model, **options)(x, y)

    def adv_libs(loss):
        return adv_lib.attacks.apgd(model, x, y, eps, p, n_iter=50, loss_function=loss, use_large_reps=norm == "L1")

    def torchattackss(loss):
        return torchattacks.APGD(model, norm=norm, eps=eps, steps=50, loss=loss, seed=0)(x, y)

    def robust_to(attack):
        return sum(standing(model, x, y, attack(loss), norm, eps) for loss in ("ce", "dlr"))

    left = robust_to(ours)
    assert 0 < left < 2 * len(x)
    for attack in [adv_libs] if norm == "L1" else [adv_libs, torchattackss]:
        assert left <= robust_to(attack) + 2

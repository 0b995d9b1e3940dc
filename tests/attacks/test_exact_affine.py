"""Affine classifiers in a box: the true answers are known, and attacks and searches must agree with them."""

import numpy as np
import pytest
import torch
from attack_cases import CASES, affine
from exact import distances

from robustx.attacks import FGSM, PGD, Bisection

NORMS = ("L0", "L1", "L2", "Linf")
MOST = {"L0": 48.0, "L1": 20.0, "L2": 5.0, "Linf": 1.0}  # enough for every example


def problem(classes, count=32, seed=0, dtype=torch.float32):
    """A random affine classifier, examples inside the box [0, 1], some of their elements at its walls, own labels."""
    model = affine(48, classes, seed, dtype)
    x = (0.2 + 0.6 * torch.rand(count, 3, 4, 4)).to(dtype)
    x[torch.rand_like(x) < 0.1] = 0.0
    x[torch.rand_like(x) < 0.1] = 1.0
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def exact(model, x, y, norm, **box):
    return distances(model[1].weight.detach(), model[1].bias.detach(), x.flatten(1), y, norm, **box)


def assert_minimal(found, truth, norm, over=0.01, slack=0.0):
    """Never below the truth, and hardly above; a count may be one too many where ``slack`` says so."""
    rounding = 0.0 if found.dtype == np.float64 else 1e-6
    assert (found >= truth * (1 - 1e-6) - rounding).all()
    assert (found <= (truth + slack if norm == "L0" else truth * (1 + over) + rounding)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes, dtype", [(5, torch.float32), (5, torch.float64), (2, torch.float64)], ids=str)
def test_minimal_distances(norm, classes, dtype):
    model, x, y = problem(classes, dtype=dtype)
    targets = classes - 1 if classes > 2 else None
    attack = Bisection(model, "margin", bounds=(0, 1), norm=norm, eps=MOST[norm], steps=20, targets=targets)
    result = attack.run(x, y)
    assert result.success.all()
    assert_minimal(result.distance.numpy(), exact(model, x, y, norm), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_minimal_distances_in_a_box_of_each_feature(norm):
    model, x, y = problem(5, dtype=torch.float64)
    low, high = x - 0.2 * torch.rand(1, 3, 4, 4).double(), x + 0.2 * torch.rand_like(x)
    truth = exact(model, x, y, norm, low=low.flatten(1), high=high.flatten(1))
    result = Bisection(model, "margin", bounds=(low, high), norm=norm, eps=MOST[norm], targets=4).run(x, y)
    can = np.isfinite(truth)
    assert result.success.tolist() == can.tolist() and 5 < can.sum() < 32
    assert_minimal(result.distance.numpy()[can], truth[can], norm, slack=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_robust_accuracy_of_pgd(norm, seed):
    model, x, y = problem(5, seed=seed)
    truth = exact(model, x, y, norm)
    eps = float(np.median(truth))
    result = PGD(model, "margin", bounds=(0, 1), norm=norm, eps=eps, steps=40, targets=4).run(x, y)
    robust = (truth > eps).sum()
    assert 8 < robust < 24
    assert robust <= (~result.success).sum() <= robust + 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_fgsm_is_exact_for_two_classes(norm, loss):
    model, x, y = problem(2, dtype=torch.float64)
    truth = exact(model, x, y, norm)
    for eps in np.quantile(truth, [0.25, 0.5, 0.75]) * (1 + 1e-9):
        result = FGSM(model, loss, bounds=(0, 1), norm=norm, eps=eps).run(x, y)
        assert result.success.tolist() == (truth <= eps).tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_beats_the_truth(case):
    """Every attack's successes lie at least as far as the nearest point of another class."""
    model, x, y = problem(5, dtype=torch.float64)
    truth = exact(model, x, y, case.norm)
    result = case(model, eps=1.5 * np.median(truth)).run(x, y)
    fell = result.success.numpy()
    assert fell.any() and (result.distance.numpy()[fell] >= truth[fell] * (1 - 1e-6)).all()

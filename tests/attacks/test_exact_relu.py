"""ReLU networks whose least distances are known: the stored ones are right, and attacks must agree with them."""

import numpy as np
import pytest
import torch
from attack_cases import CASES
from exact import distances
from exact_relu import logits, nearest, stored

from robustx.attacks import PGD, make

NAMES, NORMS = ("plain", "robust"), ("L1", "Linf")
every = pytest.mark.parametrize("name, norm", [(name, norm) for name in NAMES for norm in NORMS])


def size(d, norm):
    return {"L1": abs(d).sum(-1), "Linf": abs(d).max(-1)}[norm]


def tensors(net):
    return net.model, torch.from_numpy(net.x).view(-1, 1, 8, 8), torch.from_numpy(net.y)


# --- the truth itself -------------------------------------------------------------------------------------


@every
def test_the_stored_points_are_as_near_as_they_say(name, norm):
    """Each is in the box, another class is level there, and the solver has proved that none is nearer."""
    net = stored(name)
    point, distance = net.point[norm], net.distance[norm]
    assert (point >= 0).all() and (point <= 1).all()
    np.testing.assert_allclose(size(point - net.x, norm), distance, rtol=1e-9)
    for x, z, y in zip(net.x, point, net.y, strict=True):
        assert logits(net.layers, x).argmax() == y
        scores = logits(net.layers, z)
        assert np.delete(scores, y).max() >= scores[y] - 1e-9
    np.testing.assert_allclose(net.bound[norm], distance, rtol=2e-5)


@every
def test_solved_anew_the_stored_distances_come_out(name, norm):
    """From a radius a tenth too large, so that the solver has to find them again."""
    net = stored(name)
    for i in np.argsort(net.distance[norm])[:2]:
        radius = 1.1 * net.distance[norm][i]
        distance, bound, _ = nearest(net.layers, net.x[i], int(net.y[i]), norm, radius)
        np.testing.assert_allclose([distance, bound], net.distance[norm][i], rtol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_solver_agrees_where_another_way_is_known(norm):
    """A network without hidden layers is affine; one whose ReLUs never cut is, too."""
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(4, 10)), rng.normal(size=4), rng.uniform(size=(5, 10))
    y = (x @ weight.T + bias).argmax(1)
    truth = distances(weight, bias, x, y, norm)
    shifted = [(np.eye(10), np.full(10, 0.5)), (weight, bias - 0.5 * weight.sum(1))]
    for layers in ([(weight, bias)], shifted):
        found = [nearest(layers, *v)[0] for v in zip(x, y.tolist(), [norm] * 5, 1.3 * truth, strict=True)]
        np.testing.assert_allclose(found, truth, rtol=1e-6)
    with pytest.raises(ValueError, match="no point within"):
        nearest(shifted, x[0], int(y[0]), norm, 0.9 * truth[0])


# --- what attacks say of it -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", [c for c in CASES if c.norm in NORMS], ids=str)
def test_nothing_beats_the_truth(case, name):
    """Every attack's successes lie at least as far as the nearest point of another class."""
    net = stored(name)
    model, x, y = tensors(net)
    truth = net.distance[case.norm]
    result = case(model, eps=(4 if case.by_values else 1.5) * np.median(truth)).run(x, y)
    fell = result.success.numpy()
    assert fell.any() and (result.distance.numpy()[fell] >= truth[fell] * (1 - 1e-6)).all()


NEAR = {  # the median and the largest ratio to the truth
    "bisection": ({"steps": 20, "targets": 9, "rounds": 6, "loss_func": "margin"}, 1.01, 1.2),
    "fmn": ({}, 1.001, 1.35),
    "superdeepfool": ({}, 1.01, 1.5),
    "deepfool": ({}, 1.1, 2.8),
    "fab-t": ({"steps": 20}, 1.01, 1.35),
}


@every
@pytest.mark.parametrize("attack", NEAR)
def test_minimal_distances(name, norm, attack):
    """All are found, never below the truth; most at the nearest boundary, a few on a face of the network next to it."""
    net = stored(name)
    model, x, y = tensors(net)
    options, median, most = NEAR[attack]
    result = make(attack, model, bounds=(0, 1), norm=norm, **options).run(x[:8], y[:8])
    ratio = result.distance.numpy() / net.distance[norm][:8]
    assert result.success.all() and (ratio >= 1 - 1e-6).all()
    assert np.median(ratio) <= median and ratio.max() <= most


@every
def test_robust_accuracy_of_pgd(name, norm):
    """Halfway between the eighth distance and the ninth, half of the examples fall: all of them, or all but one."""
    net = stored(name)
    near, far = np.sort(net.distance[norm])[[7, 8]]
    attack = PGD(net.model, "margin", bounds=(0, 1), norm=norm, eps=(near + far) / 2, steps=40, targets=9)
    assert 8 <= (~attack.run(*tensors(net)[1:]).success).sum() <= 9

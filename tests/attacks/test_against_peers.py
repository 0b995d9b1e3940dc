"""Strength beside other libraries' implementations, on the adversarially trained digits CNN, in the same run.

At equal steps (queries). Climbs in a fixed budget, DeepFool and FAB are compared in their own files.
"""

import pytest
import torch
from peers import adv_lib, foolbox, torchattacks

from robustx import zoo
from robustx.attacks import make

P = {"L0": 0, "L1": 1, "L2": 2, "Linf": torch.inf}


@pytest.fixture(scope="module")
def robust():
    model, data = zoo.load("digits-robust", limit=100)
    return model, data.x, data.y


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def distances(model, x, y, moved, norm):
    """How far each example was moved [B]; infinitely far, if that was in vain."""
    d = (moved - x).flatten(1).abs()
    size = (d > 1e-6).sum(1).double() if norm == "L0" else torch.linalg.vector_norm(d.double(), P[norm], 1)
    return torch.where(wrong(model, moved, y), size, torch.inf)


@pytest.mark.parametrize("norm, eps", [("Linf", 0.15), ("L2", 1.0)])
def test_square_leaves_at_most_one_percent_more_than_torchattacks(robust, norm, eps):
    """At 150 queries, over three seeds."""
    model, x, y = robust
    left = torch.zeros(3, 2)
    for seed in range(3):
        ours = make("square", model, bounds=(0, 1), norm=norm, eps=eps, steps=150, seed=seed).run(x, y)
        theirs = torchattacks.Square(model, norm=norm, eps=eps, n_queries=149, seed=seed)(x, y)  # and one at first
        left[seed] = torch.stack([(~ours.success).float().mean(), 1 - wrong(model, theirs, y).float().mean()])
        assert ours.forwards.max() <= 152
    ours, theirs = left.mean(0)
    assert ours <= theirs + 0.01, left
    assert 0.1 < ours < 0.95


def foolboxs(attack):
    return lambda model, x, y: attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)[1]


def adv_libs(name, **options):
    return lambda model, x, y: getattr(adv_lib.attacks, name)(model, x, y, **options)


FMN = {
    "L0": foolbox.attacks.L0FMNAttack,
    "L1": foolbox.attacks.L1FMNAttack,
    "L2": foolbox.attacks.L2FMNAttack,
    "Linf": foolbox.attacks.LInfFMNAttack,
}
MINIMAL = [
    *(
        (
            "fmn",
            norm,
            50,
            {"adv-lib": adv_libs("fmn", norm=P[norm], steps=50), "foolbox": foolboxs(FMN[norm](steps=50))},
        )
        for norm in P
    ),
    (
        "ddn",
        "L2",
        50,
        {"adv-lib": adv_libs("ddn", steps=50, levels=None), "foolbox": foolboxs(foolbox.attacks.DDNAttack(steps=50))},
    ),
    (
        "cw",
        "L2",
        40,
        {
            "adv-lib": adv_libs("carlini_wagner_l2", max_iterations=40),
            "foolbox": foolboxs(foolbox.attacks.L2CarliniWagnerAttack(steps=40)),
            "torchattacks": lambda model, x, y: torchattacks.CW(model, steps=40)(x, y),
        },
    ),
    ("sigma-zero", "L0", 50, {"adv-lib": adv_libs("sigma_zero", num_steps=50)}),
    (
        "ead",
        "L1",
        25,
        {
            "foolbox": foolboxs(foolbox.attacks.EADAttack(steps=25)),
            "torchattacks": lambda model, x, y: torchattacks.EADL1(model, max_iterations=25)(x, y),
        },
    ),
]


@pytest.mark.parametrize("name, norm, steps, peers", MINIMAL, ids=lambda v: v if isinstance(v, str) else "")
def test_minimal_distances_are_at_most_those_of_peers(robust, name, norm, steps, peers):
    """In the median and in the sum over what both find, and never is less found."""
    model, x, y = (v[:32] if isinstance(v, torch.Tensor) else v for v in robust)
    result = make(name, model, bounds=(0, 1), norm=norm, steps=steps).run(x, y)
    ours = distances(model, x, y, result.adversarial, norm)
    assert torch.equal(ours.isfinite(), result.success)
    for peer, attack in peers.items():
        theirs = distances(model, x, y, attack(model, x, y), norm)
        both = ours.isfinite() & theirs.isfinite()
        assert result.success.sum() >= theirs.isfinite().sum(), peer
        assert ours.median() <= theirs.median() * (1 + 1e-4), peer
        assert ours[both].sum() <= theirs[both].sum() * (1 + 1e-4), peer

"""FGSM and PGD beyond the laws: what they are, step by step, and that ``perturb`` speaks Captum."""

import inspect

import captum.robust
import pytest
import torch
import torch.nn.functional as F
from attack_cases import Counted, affine, examples, mlp
from torch import nn
from torch.testing import assert_close

from robustx import attacks
from robustx.attacks import FGSM, PGD, make
from robustx.perturb import Linf

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")  # Captum's
NORMS = ("L0", "L1", "L2", "Linf")
SIZE = {"L0": 0, "L1": 1, "L2": 2, "Linf": torch.inf}


def loss(out, y):
    return F.cross_entropy(out, y, reduction="none")


def size(d, norm):
    return torch.linalg.vector_norm(d.flatten(1), SIZE[norm], 1)


@pytest.fixture
def case():
    model = mlp()
    return model, *examples(model, dtype=torch.float64)


# --- Captum's words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, method", [(n, m) for n in ("FGSM", "PGD") for m in ("__init__", "perturb")])
def test_signatures_are_captums(name, method):
    """Captum's arguments by position, in its order, with its defaults; what is ours comes after, by keyword."""
    theirs = inspect.signature(getattr(getattr(captum.robust, name), method)).parameters
    ours = inspect.signature(getattr(getattr(attacks, name), method)).parameters
    assert [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == list(theirs)
    for n, p in theirs.items():
        assert p.default in (p.empty, ours[n].default) or n == "norm"  # ours: that of the attack, which is Linf


# --- FGSM, number by number -------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("bounds", [(-torch.inf, torch.inf), (0.0, 1.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_fgsm_is_captums(case, targeted, bounds, masked):
    model, x, y = case
    mask = (torch.rand_like(x) < 0.5).double() if masked else None
    theirs = captum.robust.FGSM(model, loss, *bounds).perturb(x, 0.1, y, targeted=targeted, mask=mask)
    assert_close(FGSM(model, loss, *bounds).perturb(x, 0.1, y, targeted=targeted, mask=mask), theirs, rtol=0, atol=1e-7)
    assert_close(FGSM(model, "ce", *bounds).perturb(x, 0.1, y, None, targeted, mask), theirs, rtol=0, atol=1e-7)


def two(left, right, scale=1.0):
    return mlp()(torch.cat([left, right], 1)) * scale


@pytest.mark.parametrize("method", ["FGSM", "PGD"])
def test_tuples_and_further_arguments_are_captums(case, method):
    model, x, y = case
    given, scale = (x[:, :1], x[:, 1:]), torch.rand(len(x), 1, dtype=torch.float64) + 0.5
    mask = tuple((torch.rand_like(t) < 0.5).double() for t in given)
    options = {"epsilon": 0.1} if method == "FGSM" else {"radius": 0.1, "step_size": 0.2, "step_num": 1}
    options |= {"target": y, "additional_forward_args": scale, "mask": mask}
    ours, theirs = (getattr(room, method)(two, loss, 0.0, 1.0) for room in (attacks, captum.robust))
    found = ours.perturb(given, **options)
    assert isinstance(found, tuple)
    for a, b in zip(found, theirs.perturb(given, **options), strict=True):
        assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_the_steepest_move(norm):
    """On an affine model: no other move of that size in the box gains more."""
    model = affine(18, 2)
    x, y = examples(model, count=6)
    eps = {"L0": 3, "L1": 1.0, "L2": 0.5, "Linf": 0.1}[norm]
    moved = FGSM(model, "margin", norm=norm, bounds=(0, 1)).perturb(x, eps, y)
    assert (size(moved - x, norm) <= eps * (1 + 1e-12)).all()
    best = loss(model(moved), y)
    for _ in range(200):
        other = torch.randn_like(x)
        if norm == "L0":
            other *= torch.rand_like(x).flatten(1).argsort(1).argsort(1).reshape(x.shape) < eps
            other = (x + 9 * other).clamp(0, 1)
        else:
            other = (x + other * eps / size(other, norm)[:, None, None, None]).clamp(0, 1)
        assert (loss(model(other), y) <= best + 1e-12).all()


# --- PGD --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "radius, step_size, step_num", [(0.2, 0.03, 10), (0.05, 0.03, 3), (0.3, 0.05, 4), (0.1, 0.1, 0)]
)
def test_pgd_is_captums_where_the_loss_only_grows(targeted, masked, radius, step_size, step_num):
    """Captum returns the last point and we the best one: on an affine model with two classes these are the same."""
    model = affine(18, 2)
    x, y = examples(model)
    mask = (torch.rand_like(x) < 0.5).double() if masked else None
    options = {"target": y, "targeted": targeted, "mask": mask}
    theirs = captum.robust.PGD(model, loss, 0.0, 1.0).perturb(x, radius, step_size, step_num, **options)
    for f in (loss, "ce", "margin"):
        assert_close(PGD(model, f, 0.0, 1.0).perturb(x, radius, step_size, step_num, **options), theirs)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_keeps_the_best_point(case, norm):
    """More steps never lose what fewer found; and the loss never falls below that of the inputs."""
    model, x, y = case
    radius, step = {"L0": (3, 1), "L1": (1.0, 0.4), "L2": (0.5, 0.2), "Linf": (0.1, 0.05)}[norm]
    best = loss(model(x), y)
    for steps in (0, 1, 2, 5, 20):
        moved = PGD(model, loss, 0.0, 1.0).perturb(x, radius, step, steps, y, norm=norm)
        assert (size(moved - x, norm) <= radius * (1 + 1e-12)).all() and ((moved >= 0) & (moved <= 1)).all()
        now = loss(model(moved), y)
        assert (now >= best - 1e-12).all()
        best = now
    assert (best > loss(model(x), y) + 0.05).all()


def test_perturb_moves_examples_that_are_wrong_already(case):
    model, x, y = case
    for moved in (FGSM(model).perturb(x, 0.1, y), PGD(model).perturb(x, 0.1, 0.05, 3, y)):
        assert (moved != x).flatten(1).any(1).all()
        assert (loss(model(moved), y) > loss(model(x), y)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_perturb_with_numbers_for_each_example(case, norm):
    model, x, y = case
    radius = torch.linspace(0.5, 2, len(x), dtype=torch.float64) * (2 if norm == "L0" else 0.1)
    step = radius / torch.linspace(2, 4, len(x), dtype=torch.float64)
    attack = PGD(model, bounds=(0, 1))
    together = attack.perturb(x, radius, step, 3, y, norm=norm)
    alone = [attack.perturb(x[i : i + 1], radius[i], step[i], 3, y[i : i + 1], norm=norm) for i in range(len(x))]
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)
    assert isinstance(attack.norm, Linf)  # the norm was for that call


@pytest.mark.parametrize("norm", NORMS)
def test_random_start(case, norm):
    """Inside, everywhere else for another seed, and without a step as random as can be."""
    model, x, y = case
    radius = 3 if norm == "L0" else 0.5
    starts = [
        PGD(model, seed=s, bounds=(0, 1)).perturb(x, radius, 0.1, 0, y, random_start=True, norm=norm) for s in (0, 1)
    ]
    for moved in starts:
        distance = size(moved - x, norm)
        assert (distance <= radius * (1 + 1e-12)).all() and (distance > 0).all()
        assert ((moved >= 0) & (moved <= 1)).all()
    assert (starts[0] != starts[1]).flatten(1).any(1).all()


@pytest.mark.parametrize("method", ["FGSM", "PGD"])
@pytest.mark.parametrize("targeted", [False, True])
def test_a_loss_of_ones_own_on_numbers_that_are_no_classes(method, targeted):
    """A regression: away from its target, or towards it, one per example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x, wanted = torch.rand(6, 2, 3, 3, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    attack = getattr(attacks, method)(model, lambda out, t: (out - t) ** 2, 0.0, 1.0)
    options = (0.05,) if method == "FGSM" else (0.05, 0.02, 5)
    with torch.no_grad():
        before = (model(x) - wanted).abs()
        after = (model(attack.perturb(x, *options, wanted, targeted=targeted)) - wanted).abs()
    assert (after < before).all() if targeted else (after > before).all()


@pytest.mark.parametrize("attack, numbers", [(FGSM, (0.1,)), (PGD, (0.1, 0.05, 2))])
def test_perturb_leaves_things_as_they_are(case, attack, numbers):
    """Without examples, inside any mode, and with the generators of the process."""
    model, x, y = case
    assert attack(model).perturb(x[:0], *numbers, y[:0]).shape == x[:0].shape
    state, expected = torch.get_rng_state(), attack(model).perturb(x, *numbers, y)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(attack(model).perturb(x.clone(), *numbers, y), expected)
    assert torch.equal(torch.get_rng_state(), state) and not expected.requires_grad
    assert all(p.grad is None for p in model.parameters())


# --- options ----------------------------------------------------------------------------------------------


def test_all_rivals_find_what_one_misses():
    """An affine model with six classes: the likeliest other class is not always the nearest."""
    model = affine(18, 6, seed=1)
    x, y = examples(model, count=64, wrong=0)

    def fallen(loss, targets):
        return PGD(model, loss, bounds=(0, 1), norm="L2", eps=0.2, steps=10, targets=targets).run(x, y).success

    usual, one, every, more = fallen("ce", None), fallen("margin", 1), fallen("margin", 5), fallen("margin", 9)
    assert (usual | one <= every).all() and usual.sum() < every.sum() and one.sum() < every.sum()
    assert torch.equal(every, more)  # there are only five


def test_restarts_lose_nothing(case):
    model, x, y = case
    few, many = (
        PGD(model, bounds=(0, 1), eps=0.04, steps=3, random_start=True, restarts=n, early_stop=False).run(x, y)
        for n in (1, 6)
    )
    assert (many.margin >= few.margin - 1e-12).all() and (many.margin > few.margin + 1e-3).any()


def test_step_size_of_its_own(case):
    model, x, y = case
    moved = PGD(model, bounds=(0, 1), eps=0.5, steps=1, step_size=0.01, early_stop=False)(x, y)
    assert_close((moved - x).abs().amax((1, 2, 3))[:10], torch.full((10,), 0.01, dtype=torch.float64))
    usual = PGD(model, bounds=(0, 1), eps=0.1, steps=8)
    same = PGD(model, bounds=(0, 1), eps=0.1, steps=8, step_size=2.5 * 0.1 / 8)
    assert torch.equal(usual(x, y), same(x, y))


def test_one_pass_a_step():
    """An example that resists costs steps + 2 forwards (before, each step, after) and steps backwards."""
    net = mlp()
    x, y = examples(net, wrong=0)
    model = Counted(net, len(x))
    result = PGD(model, bounds=(0, 1), eps=1e-6, steps=7).run(x, y, additional_forward_args=torch.arange(len(x)))
    assert not result.success.any()
    assert (result.backwards == 7).all() and (model.backwards == 7).all()
    assert (result.forwards == 1 + 7 + 1 + 1).all() and (model.forwards == 10).all()  # ... and the last point


@pytest.mark.parametrize("name", ["pgd", "PGD"])
def test_by_name(case, name):
    model, x, y = case
    by_name = make(name, model, bounds=(0, 1), norm=2, eps=0.2, steps=3)
    assert type(by_name) is PGD
    assert torch.equal(by_name(x, y), PGD(model, bounds=(0, 1), norm="L2", eps=0.2, steps=3)(x, y))
    told = repr(by_name)
    assert told.startswith("PGD(Sequential, loss_func=ce") and "norm=L2" in told and "eps=0.2" in told


def test_budget_of_a_call_comes_before_that_of_the_attack(case):
    model, x, y = case
    assert torch.equal(
        FGSM(model, bounds=(0, 1), eps=0.5).run(x, y, eps=0.1).adversarial, FGSM(model, bounds=(0, 1), eps=0.1)(x, y)
    )


def test_perturb_takes_the_attacks_own_norm_unless_told():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 3), torch.rand(5, 6)
    y = model(x).argmax(1)
    for named, norm in ((None, "L2"), ("L2", "Linf")):
        moved = PGD(model, norm=norm).perturb(x, 0.3, 0.1, 10, y, **({"norm": named} if named else {}))
        torch.testing.assert_close((moved - x).norm(dim=1), torch.full((5,), 0.3))


def test_a_budget_without_end_reaches_the_box():
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)), torch.rand(9, 6)
    for norm in ("L0", "L1", "L2", "Linf"):
        endless, box = (
            PGD(model, "margin", bounds=(0, 1), norm=norm, eps=e, step_size=1.0).run(x) for e in (torch.inf, 6.0)
        )
        assert torch.equal(endless.success, box.success) or norm != "L0"
        assert endless.success.any() and endless.adversarial.isfinite().all()


def test_targets_in_a_list_follow_their_rows_through_a_loss_of_ones_own():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 3), torch.rand(20, 6)
    y = model(x).argmax(1)
    attack = FGSM(model, lambda out, t: torch.nn.functional.cross_entropy(out, torch.as_tensor(t), reduction="none"))
    assert torch.equal(attack.perturb(x, 0.1, y.tolist()), attack.perturb(x, 0.1, y))

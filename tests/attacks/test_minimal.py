"""Descents to the nearest point: exact optima of affine classifiers, other libraries in the same run, their bugs."""

import functools

import numpy as np
import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from peers import adv_lib, foolbox
from test_exact_affine import exact, problem
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import ATTACKS, Found, alma, ddn, fmn, make, pdgd, pdpgd, trust_region
from robustx.attacks.dual import _p2
from robustx.engine import Probe
from robustx.perturb import NORMS, Leave, Region, Until

inf = torch.inf
P = {"L0": 0, "L1": 1, "L2": 2, "Linf": inf}
NAMES = ("fmn", "ddn", "alma", "trust-region", "pdpgd", "pdgd")
EVERY = [(name, norm) for name in NAMES for norm in NORMS if norm in ATTACKS[name].norms]
every = pytest.mark.parametrize("name, norm", EVERY)


@functools.cache
def truth(classes, norm, dtype=torch.float64):
    return exact(*problem(classes, dtype=dtype), norm)


def sizes(norm, model, x, y, moved):
    """Distances [B], infinite where the model is not fooled."""
    with torch.no_grad():
        fooled = model(moved).argmax(1) != y
    return torch.where(fooled, NORMS[norm].size((moved - x).flatten(1).double()), inf)


# --- exact optima -------------------------------------------------------------------------------------------


@every
def test_affine_classifiers_in_a_box(name, norm):
    """All fall, none nearer than the truth, half within a thousandth of it and nearly all within a hundredth."""
    model, x, y = problem(5, dtype=torch.float64)
    result = make(name, model, bounds=(0, 1), norm=norm, steps=300).run(x, y)
    assert result.success.all()
    ratio = result.distance.numpy() / truth(5, norm)
    assert (ratio >= 1 - 1e-9).all()
    assert np.median(ratio) <= 1.001 and np.quantile(ratio, 0.95) <= 1.01


FUNCTIONS = {
    "fmn": lambda f, region, start: fmn(f, region, f.everyone, 300, start, 2.0, 0.05),
    "ddn": lambda f, region, start: ddn(f, region, f.everyone, 100, start, 16.0, 0.05),
    "alma": lambda f, region, start: alma(f, region, f.everyone, 300, start, 2.0),
    "trust-region": lambda f, region, start: trust_region(f, region, f.everyone, 100, 0.03, None),
    "pdpgd": lambda f, region, start: pdpgd(f, region, f.everyone, 300, start, 1.0),
    "pdgd": lambda f, region, start: pdgd(f, region, f.everyone, 300, start, 1.0),
}


@pytest.mark.parametrize("name, norm", [case for case in EVERY if case != ("pdpgd", "L0")])
def test_from_a_bad_start_too(name, norm):
    """From anywhere in the box, where the goal may be reached or not, the descent itself finds the way."""
    model, x, y = problem(2, dtype=torch.float64)
    f, centre = Probe(model, (x,), Leave(y)), x.flatten(1)
    region = Region(centre, NORMS[norm], torch.full((len(x),), inf).double(), torch.zeros(1, 1), torch.ones(1, 1))
    found = FUNCTIONS[name](f, region, torch.rand_like(centre))
    assert found.success.all()
    ratio = found.size.numpy() / truth(2, norm)
    assert (ratio >= 1 - 1e-9).all()
    assert np.median(ratio) <= {"L0": 1.35, "L1": 1.1, "L2": 1.05, "Linf": 1.05}[norm]


def test_the_slope_of_the_penalty():
    """P2 of Rony et al. (2021): two branches that meet at zero."""
    y = torch.linspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    for rho, mu in [(1.0, 1.0), (0.3, 2.0), (4.0, 0.1)]:
        missed = mu * y + mu * rho * y**2 + rho**2 * y**3 / 6
        penalty = torch.where(y >= 0, missed, mu * y / (1 - rho * y.clamp(max=0)))
        slope = torch.autograd.grad(penalty.sum(), y)[0]
        assert_close(_p2(y.detach(), torch.tensor(rho), torch.tensor(mu)), slope, check_dtype=False)


# --- beside other libraries ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust():
    model, data = zoo.load("digits-robust", limit=128)
    with torch.no_grad():
        return model, data.x, model(data.x).argmax(1)


PEERS = {
    "alma": lambda m, x, y, norm, steps: adv_lib.attacks.alma(
        m, x, y, num_steps=steps, distance=norm.lower(), init_lr_distance=1 if norm == "L2" else 0.5
    ),
    "trust-region": lambda m, x, y, norm, steps: adv_lib.attacks.tr(
        m, x.clone(), y, iter=steps, p=P[norm], adaptive=True
    ),
    "pdpgd": lambda m, x, y, norm, steps: adv_lib.attacks.pdpgd(
        m, x, y, P[norm], num_steps=steps, proximal_operator=23 if norm == "L0" else None
    ),
    "pdgd": lambda m, x, y, norm, steps: adv_lib.attacks.pdgd(m, x, y, num_steps=steps),
    "fmn": lambda m, x, y, norm, steps: adv_lib.attacks.fmn(m, x, y, P[norm], steps=steps),
    "ddn": lambda m, x, y, norm, steps: adv_lib.attacks.ddn(m, x, y, steps=steps, levels=None),
}


@every
@pytest.mark.parametrize("where", ["affine", "robust digits"])
def test_no_farther_than_adv_lib(name, norm, where, robust):
    """At equal steps: all fall, and neither the median nor the mean over what both find is half a percent larger."""
    model, x, y = robust if where == "robust digits" else problem(5)
    result = make(name, model, bounds=(0, 1), norm=norm, steps=50).run(x, y)
    theirs = sizes(norm, model, x, y, PEERS[name](model, x, y, norm, 50))
    ours, both = sizes(norm, model, x, y, result.adversarial), theirs.isfinite()
    assert result.success.all() and ours.isfinite().all()
    assert ours.median() <= 1.005 * theirs.median()
    assert not both.any() or ours[both].mean() <= 1.005 * theirs[both].mean()


# --- what went wrong elsewhere ------------------------------------------------------------------------------


def test_a_projection_that_projects():
    """foolbox's L2 attack never does, so that its points stay far outside."""
    model, x, y = problem(5)
    theirs = foolbox.attacks.L2FMNAttack(steps=100)(
        foolbox.PyTorchModel(model.eval(), bounds=(0, 1)), x, y, epsilons=None
    )[1]
    best = truth(5, "L2", torch.float32)
    far = sizes("L2", model, x, y, theirs).numpy() / best
    ours = make("fmn", model, bounds=(0, 1), norm="L2").run(x, y).distance.numpy() / best
    assert np.median(far) > 1.5 and ours.max() < 1.01


def test_a_count_of_all_elements():
    """Where every element must move, the radius is the whole input; foolbox's L0 attack fails to index one more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    weight = torch.stack([-torch.ones(6), torch.ones(6)])
    model.load_state_dict({"1.weight": weight, "1.bias": torch.tensor([11.0, 0.0])})  # the sum must exceed 5.5
    x = torch.zeros(3, 1, 2, 3).double()
    result = make("fmn", model, bounds=(0, 1), norm="L0", steps=30).run(x, torch.zeros(3, dtype=torch.long))
    assert result.success.all() and (result.distance == 6).all()


@every
def test_channels_last_is_no_other_problem(name, norm):
    """adv-lib's in-place projections are lost on a copy: without an error, fifty times as far."""
    model, x, y = problem(5)
    given = x.to(memory_format=torch.channels_last)
    assert not given.is_contiguous()
    attack = make(name, model, bounds=(0, 1), norm=norm, steps=20)
    assert_close(attack.run(given, y).distance, attack.run(x, y).distance, rtol=1e-4, atol=1e-5)


@every
def test_a_view_of_other_data_can_be_attacked_and_stays_as_it_is(name, norm):
    """adv-lib's trust region asks the caller's own tensor for gradients."""
    model, x, y = problem(5)
    whole = torch.cat([x, x]).requires_grad_()
    given, kept = whole[:32], whole.detach().clone()
    result = make(name, model, bounds=(0, 1), norm=norm, steps=5).run(given, y)
    assert result.distance.any() and torch.equal(whole, kept) and whole.grad is None


# --- what they share ----------------------------------------------------------------------------------------


@every
def test_without_a_budget_all_fall(name, norm):
    """However short the descent: where it finds nothing, a sure search does."""
    model = mlp()
    x, y = examples(model, count=16, wrong=0)
    for steps in (0, 1):
        assert make(name, model, bounds=(0, 1), norm=norm, steps=steps).run(x, y).success.all()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_who_is_fooled_leaves_the_trust_region(norm):
    net = mlp()
    x, y = examples(net, count=16, wrong=0)
    model = Counted(net, len(x))
    result = make("trust-region", model, bounds=(0, 1), norm=norm, steps=200).run(
        x, y, additional_forward_args=torch.arange(len(x))
    )
    assert result.success.all() and (model.backwards < 100).all()


def test_one_element_is_the_least_there_is():
    """Rows for which one is enough leave."""
    model = affine(18, 2)
    x, y = examples(model, count=16, wrong=0)
    result = make("fmn", model, bounds=(0, 1), norm="L0", steps=50).run(x, y)
    one = result.distance == 1
    assert one.any() and not one.all()
    assert (result.backwards[one] < 50).all() and (result.backwards[~one] >= 50).all()


def test_a_start_beyond_what_can_be_used():
    """A margin that is NaN there: the radius shrinks until there is one, and none of it gets into what is found."""
    x = torch.full((4, 6), 0.5).double()
    f = Probe(
        lambda z: torch.where(z.sum(1) > 5, inf, z.sum(1) - 3.5) * torch.where(z.sum(1) > 5, 0, 1),
        (x,),
        Until(lambda v: v),
        strict=False,
    )
    region = Region(x, NORMS["L2"], torch.full((4,), inf).double(), torch.zeros(1, 1), torch.ones(1, 1))
    assert f.value(torch.ones_like(x)).isnan().all()
    found = fmn(f, region, f.everyone, 150, torch.ones_like(x), 2.0, 0.05)
    assert isinstance(found, Found) and found.success.all() and found.z.isfinite().all()
    assert_close(found.size, torch.full((4,), 0.5 / 6**0.5).double(), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "options, told",
    [({"steps": -1}, "steps must be"), ({"steps": 1.5}, "steps must be"), ({"candidates": 0}, "candid")],
)
def test_options_are_checked(options, told):
    with pytest.raises(ValueError, match=told):
        make("fmn", mlp(), bounds=(0, 1), **options)

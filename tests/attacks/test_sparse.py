"""Sparse attacks: exact counts of affine classifiers, other libraries, and the parts that attacks share."""

import functools

import numpy as np
import pytest
import torch
from attack_cases import affine, examples, mlp
from peers import adv_lib, torchattacks
from test_carlini import robust_digits, sizes
from test_exact_affine import exact, problem
from torch.testing import assert_close

from robustx.attacks import CW, JSMA, VFGA, Found, SigmaZero, SparseFool
from robustx.attacks.sparse import fewer, jsma, ranks
from robustx.engine import Probe
from robustx.perturb import NORMS, Leave, Reach, Region

# --- exact counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack, median, most",
    [
        (functools.partial(SigmaZero, steps=100), 1.0, 1.5),
        (VFGA, 1.0, 1.41),
        (JSMA, 1.0, 1.41),
        (functools.partial(SparseFool, norm="L0"), 1.0, 1.5),
    ],
    ids=["sigma-zero", "vfga", "jsma", "sparsefool"],
)
@pytest.mark.parametrize("classes", [2, 5])
def test_near_the_least_count_of_affine_classifiers(attack, median, most, classes):
    model, x, y = problem(classes)
    result = attack(model, bounds=(0, 1)).run(x, y)
    ratio = result.distance.numpy() / exact(model, x, y, "L0")
    assert result.success.all() and (ratio >= 1).all()
    assert np.median(ratio) <= median and np.quantile(ratio, 0.95) <= most


@pytest.mark.parametrize("norm, most", [("L0", 1.0), ("L1", 1.02)])
def test_sparsefool_is_exact_where_the_plane_is_the_boundary(norm, most):
    """With two classes and no boldness, but for DeepFool's overshoot: on one plane, within the box."""
    model, x, y = problem(2, dtype=torch.float64)
    result = SparseFool(model, bounds=(0, 1), norm=norm, boldness=1).run(x, y)
    truth = exact(model, x, y, norm)
    assert result.success.all() and (result.distance.numpy() >= truth * (1 - 1e-6)).all()
    assert (result.distance.numpy() <= most * truth * (1 + 1e-6)).all()
    with pytest.raises(ValueError, match="boldness must be a number of at least 1, got 0.5"):
        SparseFool(model, boldness=0.5)


def test_the_papers_loss_leads_there_too():
    model, x, y = problem(5)
    result = JSMA(model, "ce", bounds=(0, 1)).run(x, y)
    assert result.success.all() and (result.distance.numpy() / exact(model, x, y, "L0")).max() <= 2


# --- other libraries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack, other",
    [
        (functools.partial(SigmaZero, steps=100), functools.partial(adv_lib.attacks.sigma_zero, num_steps=100)),
        (VFGA, functools.partial(adv_lib.attacks.vfga, targeted=False)),
    ],
    ids=["sigma-zero", "vfga"],
)
@pytest.mark.parametrize("of", [functools.partial(problem, 5), robust_digits], ids=["affine", "digits"])
def test_no_more_elements_than_adv_lib(attack, other, of):
    model, x, y = of()
    torch.manual_seed(0)
    ours, theirs = attack(model, bounds=(0, 1)).run(x, y), sizes("L0", model, x, y, other(model, x, y))
    assert ours.success.all()
    assert ours.distance.median() <= theirs.median() and ours.distance.mean() <= theirs.mean()


def test_no_more_elements_than_torchattacks():
    """Its JSMA goes from y to y + 1, of ten classes."""
    model, x, y = robust_digits(8)
    target = (y + 1) % 10
    ours = JSMA(model, bounds=(0, 1)).run(x, target, targeted=True)
    moved = torchattacks.JSMA(model, theta=1.0, gamma=0.5)(x, y)
    with torch.no_grad():
        theirs = torch.where(model(moved).argmax(1) == target, (moved != x).flatten(1).sum(1), torch.inf)
    assert ours.success.all() and (ours.distance <= theirs).all() and (ours.distance < theirs).any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sparsefool_is_sparser_than_that_of_torchattacks():
    model, x, y = robust_digits(8)
    ours = SparseFool(model, bounds=(0, 1), norm="L0").run(x, y)
    theirs = sizes("L0", model, x, y, torchattacks.SparseFool(model)(x, y))
    assert ours.success.all()
    assert ours.distance.median() <= theirs.median() and ours.distance.mean() < theirs.mean()


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", [functools.partial(SigmaZero, steps=30), VFGA, JSMA], ids=["sigma-zero", "vfga", "jsma"]
)
@pytest.mark.parametrize("logits", [1e-3, 1e3])
def test_units_do_not_matter(attack, logits):
    """Neither those of inputs nor those of logits."""
    model = mlp()
    x, y = examples(model)
    usual = attack(model, bounds=(0, 1)).run(x, y)
    scaled = attack(lambda z: logits * model(z / 256), bounds=(0, 256)).run(256 * x, y)
    assert usual.success.all() and scaled.success.all()
    if attack is VFGA:  # its draws belong to what examples hold
        assert (scaled.distance - usual.distance).abs().max() <= 1
    else:
        assert_close(scaled.distance, usual.distance)


def test_draws_belong_to_examples_and_to_the_seed():
    model, x, y = problem(5)
    one, again, other = (VFGA(model, bounds=(0, 1), draws=1, seed=s).run(x, y) for s in (1, 1, 2))
    assert torch.equal(one.adversarial, again.adversarial) and not torch.equal(one.adversarial, other.adversarial)
    alone = VFGA(model, bounds=(0, 1), draws=1, seed=1).run(x[5:6], y[5:6])
    assert_close(alone.adversarial, one.adversarial[5:6])


def test_more_draws_find_fewer_elements():
    model, x, y = problem(5)
    counts = [VFGA(model, bounds=(0, 1), draws=d).run(x, y).distance.mean() for d in (1, 30)]
    assert counts[1] < counts[0]


def test_short_moves_take_more_elements_or_as_many():
    model = mlp()
    x, y = examples(model)
    bold, shy = (JSMA(model, bounds=(0, 1), theta=t).run(x, y) for t in (1.0, 0.25))
    assert bold.success.all() and shy.success.all() and bold.distance.sum() <= shy.distance.sum()
    for theta in (0, 1.5):
        with pytest.raises(ValueError, match="theta must be a share of the box"):
            JSMA(model, theta=theta)


def test_more_targets_cost_no_more_elements():
    model, x, y = problem(5)
    counts = [JSMA(model, bounds=(0, 1), targets=t).run(x, y).distance for t in (1, 2, 4)]
    assert (counts[0] >= counts[1]).all() and (counts[1] >= counts[2]).all() and (counts[0] > counts[2]).any()


@pytest.mark.parametrize("attack", [CW, SigmaZero, VFGA, JSMA, SparseFool])
def test_no_element_can_be_spared(attack):
    """Of an affine model: without the least important of the elements that moved, the goal is missed."""
    model, x, y = problem(2, dtype=torch.float64)
    result = attack(model, bounds=(0, 1), norm="L0").run(x, y)
    move = result.adversarial - x
    weight = (model[1].weight[1] - model[1].weight[0]).reshape(3, 4, 4).detach()
    gain = torch.where(move == 0, torch.inf, (1 - 2 * y[:, None, None, None]) * weight * move).flatten(1)
    back = torch.where(torch.arange(48) == gain.argmin(1)[:, None], x.flatten(1), result.adversarial.flatten(1))
    assert (model(back).argmax(1) == y).all()


# --- parts --------------------------------------------------------------------------------------------------


def setting(model, x, y, norm="L0"):
    low, high = torch.zeros(1, 1, dtype=x.dtype), torch.ones(1, 1, dtype=x.dtype)
    f = Probe(model, (x,), of=Leave(y), strict=False)
    return f, Region(x.flatten(1), NORMS[norm], torch.full((len(x),), torch.inf, dtype=x.dtype), low, high)


def test_what_can_be_spared_is_put_back():
    """The same as by trying every number of elements in the order of what they gain."""
    model = affine(18, 4)
    x, y = examples(model, wrong=0)
    f, region = setting(model, x, y)
    torch.manual_seed(1)
    z = torch.where(torch.rand(12, 18) < 0.8, torch.rand(12, 18).double(), region.centre)
    found = Found(z, f.value(z), region.size(z))
    less = fewer(f, region, f.everyone, found)
    place = ranks(f, region, f.everyone, z)
    assert 2 < found.success.sum() < 12
    for i in range(12):
        trials = [torch.where(place[i] < k, z[i], region.centre[i]) for k in range(19)]
        fooled = [bool(model(t[None]).argmax(1) != y[i]) for t in trials]
        if found.success[i]:
            k = int(less.size[i])
            assert torch.equal(less.z[i], trials[k]) and fooled[k] and not fooled[k - 1]
        else:
            assert torch.equal(less.z[i], z[i])


def test_the_most_salient_pair_of_all_pairs():
    """Against the saliency map of the paper, eq. 10, over all pairs, from the Jacobian of the probabilities."""
    model = mlp()
    x = torch.zeros(6, 2, 3, 3, dtype=torch.float64)  # from where elements can only rise, as in the paper
    x += 1e-9 * torch.arange(6)[:, None, None, None]
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0].softmax(0)))(x).flatten(2)  # [6, 4, 18]
    seen = []

    def watched(z):
        seen.append(z.detach().clone())
        return model(z)

    f, region = setting(watched, x, target)
    f = f.to(of=Reach(target, "ce"))
    jsma(f, region.to(radius=torch.full((6,), 2.0).double()), f.everyone, 1.0)
    still = f.value(region.centre) > 0
    assert len(seen[0]) == 6 and not still.all()
    moved = seen[1].flatten(1) > 0.5
    for k, i in enumerate((~still).nonzero().squeeze(1).tolist()):
        a = jacobian[i, target[i]]
        b = jacobian[i].sum(0) - a
        rise, fall = a[:, None] + a, b[:, None] + b
        salient = torch.where((rise > 0) & (fall < 0) & ~torch.eye(18, dtype=torch.bool), -rise * fall, -torch.inf)
        assert sorted(divmod(int(salient.argmax()), 18)) == moved[k].nonzero().squeeze(1).tolist()

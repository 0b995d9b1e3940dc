"""DeepFool and SuperDeepFool: exact where the model is affine, and no farther than the libraries' own elsewhere."""

import numpy as np
import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from exact import distances
from peers import adv_lib, foolbox
from test_exact_affine import exact, problem
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import DeepFool, SuperDeepFool
from robustx.attacks.deepfool import nearest
from robustx.perturb import NORMS, Region

every = pytest.mark.parametrize("norm", DeepFool.norms)
wide = -torch.inf, torch.inf
P = {"L2": 2, "Linf": float("inf")}


@pytest.fixture(scope="module")
def digits():
    """The adversarially trained network and images that it knows."""
    model, data = zoo.load("digits-robust")
    x, y = torch.as_tensor(data.x[:100]), torch.as_tensor(data.y[:100]).long()
    right = model(x).argmax(1) == y
    return model, x[right], y[right]


@every
@pytest.mark.parametrize("overshoot", [0.0001, 0.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exactly_one_and_the_overshoot_for_an_affine_model(norm, overshoot, dtype):
    """Where no bound is met; then one step is enough."""
    model, x, y = problem(5, dtype=dtype)
    result = DeepFool(model, bounds=wide, norm=norm, overshoot=overshoot).run(x, y)
    truth = exact(model, x, y, norm, low=-100.0, high=100.0)
    assert result.success.all()
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4  # rounding takes its share of small margins
    np.testing.assert_allclose(result.distance.numpy() / truth, 1 + overshoot, rtol=tolerance)
    assert (result.backwards <= 2 * 4).all()


@every
@pytest.mark.parametrize("attack", [DeepFool, SuperDeepFool], ids=lambda a: a.__name__)
def test_in_a_box_of_each_feature_no_farther_than_that(norm, attack):
    """The walls are met by most; an example is fooled wherever the box allows it."""
    model, x, y = problem(5, dtype=torch.float64)
    low, high = x - 0.2 * torch.rand(1, 3, 4, 4).double(), x + 0.2 * torch.rand_like(x)
    truth = exact(model, x, y, norm, low=low.flatten(1), high=high.flatten(1))
    result = attack(model, bounds=(low, high), norm=norm, overshoot=0.02).run(x, y)
    can = np.isfinite(truth)
    assert result.success.tolist() == can.tolist() and 5 < can.sum() < 32
    ratio = result.distance.numpy()[can] / truth[can]
    assert (ratio >= 1 - 1e-9).all() and (ratio <= 1.0205).all()


@every
@pytest.mark.parametrize("bounds", [(0, 255), (-3, 5)])
def test_units_of_the_inputs_do_not_matter(norm, bounds):
    """A step multiplied by the width of the box would be 255 times too long."""
    model, x, y = problem(5, dtype=torch.float64)
    low, width = bounds[0], bounds[1] - bounds[0]
    usual = DeepFool(model, bounds=(0, 1), norm=norm).run(x, y)
    scaled = DeepFool(lambda z: model((z - low) / width), bounds=bounds, norm=norm).run(x * width + low, y)
    assert_close(scaled.distance, usual.distance * width)
    assert_close(scaled.adversarial, usual.adversarial * width + low)


@every
def test_one_pass_forward_a_step_and_one_back_for_each_rival(norm):
    net = mlp(6)
    x, y = examples(net)
    for candidates, rivals in ((None, 5), (2, 2), (50, 5)):
        model = Counted(net, len(x))
        attack = DeepFool(model, bounds=(0, 1), norm=norm, steps=7, candidates=candidates)
        result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
        assert result.forwards.tolist() == model.forwards.tolist()
        assert result.backwards.tolist() == model.backwards.tolist()
        moved = result.distance > 0
        steps = result.backwards[moved] / rivals
        more = result.forwards[moved] - steps  # the input first, what is returned last, and perhaps a last step cut
        assert ((more == 2) | (more == 3)).all() and (steps <= 8).all()


@every
def test_the_nearest_boundary_is_that_of_the_least_move(norm):
    """Of several half-spaces the one with the least distance in the box; one that cannot be reached only at last."""
    torch.manual_seed(0)
    x, slopes = torch.rand(40, 6).double(), torch.randn(40, 4, 6).double()
    leads = -4 * torch.rand(40, 4).double()
    region = Region(x, NORMS[norm], torch.full((40,), torch.inf).double(), torch.zeros(1, 1), torch.ones(1, 1))
    found = nearest(region, x, leads, slopes)
    alone = np.stack(
        [
            np.r_[
                0, [distances(np.stack([0 * s, s]), [0, v - s @ z], [z], [0], norm)[0] for v, s in zip(*b, strict=True)]
            ]
            for z, *b in zip(x.numpy(), leads.numpy(), slopes.numpy(), strict=True)
        ]
    )[:, 1:]
    assert 0 < np.isinf(alone).all(1).sum() < 20
    assert (alone[np.arange(40), found] == alone.min(1)).all()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("of", ["affine", "digits"])
def test_no_farther_than_the_libraries(norm, of, request):
    """adv-lib's and foolbox's DeepFool, adv-lib's SuperDeepFool, at as many steps.

    On average; a median is the distance of one example, which may have come to another rival.
    """
    if of == "affine":  # inside the bounds, where all know what a step should be
        model, x = affine(48, 5, dtype=torch.float32).eval(), 0.2 + 0.6 * torch.rand(32, 3, 4, 4)
        y = model(x).argmax(1)
    else:
        model, x, y = request.getfixturevalue("digits")
    attack = {"L2": foolbox.attacks.L2DeepFoolAttack, "Linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    theirs = {
        "adv-lib": adv_lib.attacks.df(model, x, y, steps=50, norm=P[norm]),
        "foolbox": attack(steps=50)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)[1],
    }
    ours = DeepFool(model, bounds=(0, 1), norm=norm).run(x, y)
    assert ours.success.all()
    for moved in theirs.values():
        size = NORMS[norm].size((moved.detach() - x).flatten(1))
        assert ours.distance.mean() <= size.mean() and ours.distance.median() <= size.median() * 1.005
    if norm == "L2":
        moved = adv_lib.attacks.sdf(model, x, y, steps=50)
        size = NORMS[norm].size((moved - x).flatten(1))
        ours = SuperDeepFool(model, bounds=(0, 1), norm=norm).run(x, y)
        assert ours.success.all()
        assert ours.distance.mean() <= size.mean() and ours.distance.median() <= size.median() * 1.005


@every
def test_a_right_angle_is_nearer(norm, digits):
    model, x, y = digits
    plain, super_ = (a(model, bounds=(0, 1), norm=norm).run(x, y) for a in (DeepFool, SuperDeepFool))
    assert plain.success.all() and super_.success.all()
    assert super_.distance.median() < 0.95 * plain.distance.median()


@pytest.mark.parametrize("attack", [DeepFool, SuperDeepFool], ids=lambda a: a.__name__)
def test_options_are_checked(attack):
    with pytest.raises(ValueError, match="overshoot must be a share of the way, 0 or more, got -1"):
        attack(affine(4, 3), overshoot=-1)
    with pytest.raises(ValueError, match="candidates"):
        attack(affine(4, 3), candidates=0)
    with pytest.raises(ValueError, match="knows .L2, Linf, L1., got L0"):
        attack(affine(4, 3), norm="L0")

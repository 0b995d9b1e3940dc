"""The search for the smallest budget: never worse than the attack it searches with, and honest about what it found."""

import itertools

import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from exact import distances
from torch.testing import assert_close

from robustx.attacks import PGD, Bisection, Found, bisect, fgsm
from robustx.engine import Probe
from robustx.perturb import NORMS, Leave, Region, Until

MOST = {"L0": 6.0, "L1": 3.0, "L2": 1.0, "Linf": 0.3}


@pytest.mark.parametrize("norm", NORMS)
def test_smaller_than_what_the_attack_finds(norm):
    model = mlp()
    x, y = examples(model, count=16)
    once = PGD(model, "margin", bounds=(0, 1), norm=norm, eps=MOST[norm], steps=10).run(x, y)
    least = Bisection(model, "margin", bounds=(0, 1), norm=norm, eps=MOST[norm], steps=10).run(x, y)
    assert (once.success <= least.success).all() and least.success.sum() > 8
    both = once.success
    assert (least.distance[both] <= once.distance[both]).all()
    if norm != "L0":
        assert (least.distance[both] < once.distance[both]).any()


@pytest.mark.parametrize("norm", [n for n in NORMS if n != "L0"])
def test_without_a_round_it_still_draws_back(norm):
    """What the attack found is moved straight back, to a 256th of the way."""
    model = mlp()
    x, y = examples(model, count=16, wrong=0)
    options = {"bounds": (0, 1), "norm": norm, "eps": MOST[norm], "steps": 3, "step_size": MOST[norm]}
    once = PGD(model, "margin", **options).run(x, y)
    back = Bisection(model, "margin", rounds=0, **options).run(x, y)
    share = back.distance / once.distance
    fell = once.success
    assert fell.sum() > 8 and (share[fell] < 0.9).any()
    line = torch.lerp(x, once.adversarial, share[:, None, None, None])
    assert_close(back.adversarial[fell], line[fell])
    before = torch.lerp(x, once.adversarial, (share - 1 / 255)[:, None, None, None])
    assert (model(before).argmax(1) == y)[fell].all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_belong_to_examples(norm):
    model = mlp()
    x, y = examples(model)
    attack = Bisection(model, bounds=(0, 1), norm=norm, eps=MOST[norm] / 3, steps=3, rounds=4, random_start=True)
    together = attack.run(x, y)
    alone = torch.cat([attack(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    assert_close(together.adversarial, alone, rtol=0, atol=1e-5)
    assert together.success.sum() > 2


@pytest.mark.parametrize("norm", [n for n in NORMS if n != "L0"])
def test_stands_on_the_boundary(norm):
    """Drawn back by a thousandth more, the point no longer reaches the goal."""
    model = mlp()
    x, y = examples(model, count=16, wrong=0)
    result = Bisection(model, "margin", bounds=(0, 1), norm=norm, eps=MOST[norm], steps=10).run(x, y)
    back = torch.lerp(x, result.adversarial, 0.999)
    fell = result.success
    assert fell.sum() > 8 and (model(back).argmax(1) == y)[fell].all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_rounds_come_nearer(norm):
    model = mlp()
    x, y = examples(model, count=16)
    runs = [
        Bisection(model, "margin", bounds=(0, 1), norm=norm, eps=MOST[norm], steps=6, rounds=r).run(x, y)
        for r in (0, 1, 4, 12)
    ]
    for few, many in itertools.pairwise(runs):
        assert few.success.tolist() == many.success.tolist()
        assert (many.distance[few.success] <= few.distance[few.success] + 1e-12).all()
    assert runs[0].distance.sum() > runs[-1].distance.sum() or norm == "L0"


@pytest.mark.parametrize("norm", NORMS)
def test_who_resists_comes_back_unchanged(norm):
    model = mlp()
    x, y = examples(model, wrong=0)
    eps = MOST[norm] / 10 if norm != "L0" else 1
    least = Bisection(model, "margin", bounds=(0, 1), norm=norm, eps=eps, steps=6).run(x, y)
    resisted = ~least.success
    assert resisted.any() and torch.equal(least.adversarial[resisted], x[resisted])
    assert not least.distance[resisted].any() and (least.margin[resisted] < 0).all()


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
def test_without_a_budget_any_point_will_do_to_begin_with():
    """The gradient is zero at the inputs and almost everywhere else; drawn points find the corner."""
    x = torch.rand(6, 4, dtype=torch.float64) / 3

    def model(x):
        lead = (x.sum(1) - 2).relu() - 0.1
        return torch.stack([-lead, lead], 1)

    attack = Bisection(model, "margin", bounds=(0, 1), steps=10)
    assert not attack.run(x, eps=1.0).success.any()
    result = attack.run(x)
    assert result.success.all() and (result.distance >= (2.1 - x.sum(1)) / 4).all()


def test_finished_examples_leave():
    """Those that are wrong already are looked at once, those that resist are tried at the largest budget only."""
    net = mlp()
    x, y = examples(net)
    model = Counted(net, len(x))
    result = Bisection(model, "margin", bounds=(0, 1), eps=0.04, steps=6).run(
        x, y, additional_forward_args=torch.arange(len(x))
    )
    assert result.forwards.tolist() == model.forwards.tolist()
    there, resisted = result.success & (result.distance == 0), ~result.success
    assert (result.backwards[there] == 0).all() and (result.backwards[resisted] == 6).all()
    assert (result.backwards[~there & ~resisted] > 6).all()


def test_any_search_can_be_bisected():
    """Nothing is asked of a search but a point for each row: here each row has its own radius where the goal begins."""
    centre, wanted = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0.1, 0.35, 0.8, 2.0], dtype=torch.float64)
    f = Probe(lambda z, wanted: z - wanted[:, None], (centre,), Until(lambda out: out[:, 0]), args=(wanted,))
    asked = []

    def search(region, rows, start):
        asked.append(rows.tolist())
        z = torch.zeros_like(region.centre)
        z[:, 0] = region.radius
        return Found(z, f.value(z, rows), region.size(z))

    low, high = torch.tensor([[-5.0]]).double(), torch.tensor([[5.0]]).double()
    found = bisect(search, f, Region(centre, NORMS["Linf"], torch.ones_like(wanted), low, high), f.everyone, 20)
    assert found.success.tolist() == [True, True, True, False]
    assert (found.size[:3] > wanted[:3]).all() and (found.size[:3] < 1.001 * wanted[:3]).all()
    assert asked[0] == [0, 1, 2, 3] and all(3 not in rows for rows in asked[1:])


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_is_enough_for_an_affine_model(norm):
    """FGSM is exact for two classes, at any budget: bisected, it finds the least one."""
    model = affine(48, 2)
    x, y = examples(model, count=32, shape=(48,), wrong=0)
    low, high = x - 0.2 * torch.rand(1, 48).double(), x + 0.2 * torch.rand_like(x)
    truth = torch.from_numpy(distances(model[1].weight.detach(), model[1].bias.detach(), x, y, norm, low, high))
    f = Probe(model, (x,), Leave(y))
    region = Region(x, NORMS[norm], torch.full_like(truth, 48), low.expand_as(x), high)
    found = bisect(lambda near, rows, start: fgsm(f, near, rows), f, region, f.everyone, 20)
    can = truth.isfinite()
    assert found.success.tolist() == can.tolist() and can.sum() > 16
    assert_close(found.size[can], truth[can], rtol=0 if norm == "L0" else 1e-3, atol=0)

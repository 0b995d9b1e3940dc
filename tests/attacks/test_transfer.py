"""Parts of a climb, each against the paper's formula and, step by step, against torchattacks where that is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_cases import examples, mlp
from peers import adv_lib, foolbox, torchattacks
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import FGSM, PGD, TransferPGD, make
from robustx.attacks.momentum import Climbing, Momentum, Translation
from robustx.attacks.views import Diversity, Scales, Viewed
from robustx.engine import Door, Noise, identities
from robustx.perturb import NORMS, Leave, Region

LIKE = torch.zeros(0, dtype=torch.float64)


def loss(out, y):
    return F.cross_entropy(out, y, reduction="none")


@pytest.fixture
def case():
    model = mlp()
    return model, *examples(model, wrong=0)


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    x = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


# --- the same steps as torchattacks -----------------------------------------------------------------------

PEERS = {
    "bim": (lambda m, s: torchattacks.BIM(m, 0.06, 0.02, s), PGD, {}),
    "mi": (lambda m, s: torchattacks.MIFGSM(m, 0.06, 0.02, s, decay=0.9), TransferPGD, {"momentum": 0.9}),
    "ni": (lambda m, s: torchattacks.NIFGSM(m, 0.06, 0.02, s), TransferPGD, {"nesterov": True}),
    "si-ni": (
        lambda m, s: torchattacks.SINIFGSM(m, 0.06, 0.02, s, m=4),
        TransferPGD,
        {"nesterov": True, "scales": 4},
    ),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_are_torchattacks(case, name, steps):
    """Its last point is our best one where the loss only grows, as it does on this smooth network."""
    model, x, y = case
    peer, attack, options = PEERS[name]
    ours = attack(model, loss, 0.0, 1.0, **options).perturb(x, 0.06, 0.02, steps, y)
    assert_close(ours, peer(model, steps)(x, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_variance_tuning_is_torchattacks_of_the_same_neighbours(case, nesterov, monkeypatch):
    """Our draws are put into the mouth of its generator: each step's neighbours, one after the other."""
    model, x, y = case
    noise, drawn, count, spread = Noise(0, "TransferPGD", identities(x.flatten(1))), [], 3, 1.5

    def uniform_(t, low, high):
        step, which = divmod(len(drawn), count)
        copies = replace(noise, draw=step).copies(torch.arange(len(x)), torch.full((len(x),), which))
        drawn.append(t)
        return t.copy_(low + (high - low) * copies.uniform(t[0].numel(), t).reshape(t.shape))

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)
    peer = torchattacks.VNIFGSM if nesterov else torchattacks.VMIFGSM
    theirs = peer(model, 0.06, 0.02, 4, decay=1.0, N=count, beta=spread)(x, y)
    monkeypatch.undo()
    attack = TransferPGD(model, loss, 0.0, 1.0, neighbours=count, spread=spread, nesterov=nesterov)
    assert_close(attack.perturb(x, 0.06, 0.02, 4, y), theirs, rtol=0, atol=1e-12)
    plain = TransferPGD(model, loss, 0.0, 1.0, nesterov=nesterov).perturb(x, 0.06, 0.02, 4, y)
    assert not torch.allclose(plain, theirs) and len(drawn) == 4 * count


@pytest.mark.parametrize("size", [7, 15])
def test_translation_is_torchattacks(pictures, size):
    """Alone: theirs enlarges and pads as well, unless it is told not to."""
    model, x, y = pictures
    peer = torchattacks.TIFGSM(model, 0.06, 0.02, 3, decay=1.0, len_kernel=size, diversity_prob=0.0)
    ours = TransferPGD(model, loss, 0.0, 1.0, kernel=size).perturb(x, 0.06, 0.02, 3, y)
    theirs = peer(x, y)
    assert (
        (ours - theirs).abs() < 1e-6
    ).float().mean() > 0.998  # where the blurred gradient rounds to 0, signs may differ
    plain = TransferPGD(model, loss, 0.0, 1.0).perturb(x, 0.06, 0.02, 3, y)
    assert ((plain - theirs).abs() < 1e-6).float().mean() < 0.9


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_torchattacks_to_the_bit(pictures, targeted):
    """But where rounding took theirs out of the ball: there ours is the next number towards the input."""
    model, x, y = pictures
    x = 0.9 * x  # off the grid on which 8/255 happens to round inwards
    peer = torchattacks.FGSM(model, eps=0.03)
    if targeted:
        peer.set_mode_targeted_by_label(quiet=True)
    theirs = peer(x, y)
    radius = torch.tensor(0.03).double()
    outside = (theirs.double() - x.double()).abs() > radius
    expected = torch.where(outside, torch.nextafter(theirs, x), theirs)
    assert torch.equal(FGSM(model, bounds=(0, 1)).perturb(x, 0.03, y, targeted=targeted), expected)
    assert outside.any() and not outside.all()


# --- the papers' formulas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_momentum_is_the_fading_sum_of_normalised_gradients(norm):
    """Not of signs: g_t = mu g_(t-1) + grad / |grad|_1, up to one factor for all."""
    torch.manual_seed(1)
    region = Region(torch.zeros(3, 7), NORMS[norm], torch.ones(3), torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    gradients, total = torch.randn(4, 3, 7) * torch.tensor([1e-3, 1.0, 1e4])[:, None], torch.zeros(3, 7)
    a = Climbing.of(torch.arange(3), region, None, torch.ones(3), None)
    for g in gradients:
        total = 0.7 * total + g / g.abs().sum(1, keepdim=True)
        way, a = Momentum(0.7).turn(None, a, g)
        assert_close(way / 7, total)
    assert Momentum(0.7).ahead(a, a.z) is a.z
    ahead = Momentum(0.7, nesterov=True).ahead(a, a.z)
    assert_close(F.normalize(ahead, dim=1), F.normalize(total, dim=1))
    assert (region.norm.size(ahead) > 0).all()


def test_random_steps_are_those_of_the_paper(case):
    """x' = x + eps/2 sign(noise), then x' + eps/2 sign(gradient at x'): one step, where torchattacks takes ten."""
    model, x, y = case
    noise = Noise(0, "PGD", identities(x.flatten(1)))
    attack = make("r-fgsm", model, loss_func=loss, bounds=(0, 1), eps=0.1)
    start = (x + 0.05 * noise.normal(18, LIKE).sign().reshape(x.shape)).clamp(0, 1).requires_grad_()
    (g,) = torch.autograd.grad(loss(model(start), y).sum(), start)
    end = (start + 0.05 * g.sign()).clamp(0, 1).detach()
    better = loss(model(end), y) > loss(model(start), y)
    assert better.all()
    assert_close(attack.perturb(x, 0.1, 0.05, 1, y, random_start=True), end, rtol=0, atol=1e-12)


def test_fast_fgsm_steps_farther_than_its_budget(case):
    """From anywhere in the ball by 1.25 eps, and back into it."""
    model, x, y = case
    noise = Noise(0, "PGD", identities(x.flatten(1)))
    start = (x + 0.1 * (2 * noise.uniform(18, LIKE) - 1).reshape(x.shape)).clamp(0, 1).requires_grad_()
    (g,) = torch.autograd.grad(loss(model(start), y).sum(), start)
    end = torch.minimum(torch.maximum(start + 0.125 * g.sign(), x - 0.1), x + 0.1).clamp(0, 1).detach()
    attack = make("ffgsm", model, loss_func=loss, bounds=(0, 1), eps=0.1)
    assert (attack.steps, attack.random_start, attack.reach) == (1, True, 1.25)
    assert_close(attack.perturb(x, 0.1, 0.125, 1, y, random_start=True), end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [(8, 8), (6, 11)])
@pytest.mark.parametrize("enlarge", [1.1, 1.5, 2.3])
def test_diversity_enlarges_pads_and_comes_back(side, enlarge):
    """As by torch's own interpolation, one picture after the other."""
    torch.manual_seed(0)
    x, noise = torch.rand(40, 2, *side, dtype=torch.float64), Noise(0, "views", [str(i) for i in range(40)])
    draws = replace(noise).uniform(4, LIKE).numpy()
    (shown,) = Diversity(0.7, enlarge).show((x,), torch.zeros(40, dtype=torch.long), noise)
    most, larger = [int(np.ceil(s * enlarge)) for s in side], 0
    for t, s, (whether, size, *at) in zip(x, shown, draws, strict=True):
        if whether >= 0.7:
            assert torch.equal(t, s)
            continue
        now = [n + int(size * (m - n)) for n, m in zip(side, most, strict=True)]
        top, left = (int(u * (m - n + 1)) for u, m, n in zip(at, most, now, strict=True))
        wide = F.interpolate(t[None], now, mode="bilinear", align_corners=False)
        wide = F.pad(wide, (left, most[1] - now[1] - left, top, most[0] - now[0] - top))
        assert_close(s, F.interpolate(wide, side, mode="bilinear", align_corners=False)[0])
        larger += now != list(side)
    assert larger > 5 or enlarge == 1.1


def probe(model, x, y):
    return Door.open(x).probe(model, Leave(y, loss))


def test_scales_are_means_over_halves(case):
    model, x, y = case
    f = probe(model, x, y)
    seen = Viewed.of_probe(f, f.everyone, Noise(0, "views", identities(f.point)), [Scales(3)])
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(loss(model(z / 2**i), y).sum() for i in range(3)) / 3, z)
    value, g = seen.grad(f.point)
    assert_close(g, expected.flatten(1))
    assert_close(value, f.value(f.point))  # one pass tells the margin of the point itself, too
    assert (f.meter.forward == 3 + 1).all() and (f.meter.backward == 3).all()


@pytest.mark.parametrize("limit", [1, 5, None])
def test_views_of_views_are_one_question_whatever_the_batch(case, limit):
    """Values are those of the point; draws depend neither on the batches, nor on who else is asked."""
    model, x, y = case
    calls = []
    f = Door.open(x).probe(lambda t: (calls.append(len(t)), model(t))[1], Leave(y, loss), limit=limit)
    noise = Noise(0, "views", identities(f.point))

    def ask(rows):
        seen = Viewed.of_probe(f, rows, noise.at(rows), [Scales(2), Diversity(0.6, 1.7)])
        return [seen.grad(f.point[rows], rows) for _ in range(2)]

    few = torch.tensor([7, 2])
    (value, first), (_, second) = ask(f.everyone)
    assert_close(value, f.value(f.point))
    assert not torch.allclose(first, second)  # drawn anew each time
    for whole, part in zip((first, second), ask(few), strict=True):
        assert_close(part[1], whole[few], rtol=0, atol=1e-12)
    assert limit is None or max(calls) <= limit


def test_translation_keeps_the_sum_of_a_distant_spot():
    """A kernel that adds up to one, symmetric, around the same pixel."""
    f = probe(lambda t: t.flatten(1)[:, :3], torch.rand(1, 2, 9, 9), torch.tensor([0]))
    spot = torch.zeros(1, 2, 9, 9)
    spot[0, 1, 4, 4] = 1
    blurred = Translation(5).turn(f, None, spot.flatten(1))[0].reshape(spot.shape)
    assert_close(blurred.sum(), torch.tensor(1.0))
    assert not blurred[0, 0].any() and blurred[0, 1].argmax() == 4 * 9 + 4
    assert_close(blurred, blurred.flip(2)), assert_close(blurred, blurred.mT)


@pytest.mark.parametrize("options", [{"diversity": 0.5}, {"kernel": 3}])
def test_what_needs_pictures_says_so(options):
    attack = TransferPGD(nn.Linear(5, 3), bounds=(0, 1), eps=0.1, **options)
    with pytest.raises(ValueError, match=r"(diversity|kernel) is for pictures \[B, C, H, W\].*\(5,\)"):
        attack.run(torch.rand(2, 5))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kernel": 4}, "kernel must be odd.*4"),
        ({"diversity": 1.5}, "diversity must be a probability.*1.5"),
        ({"scales": 0}, "scales must be a whole number of at least 1"),
        ({"neighbours": -1}, "neighbours must be a whole number"),
        ({"enlarge": 0.9}, "enlarge must be at least 1, got 0.9"),
        ({"spread": -1.0}, "spread must be at least 0"),
        ({"momentum": float("nan")}, "momentum must be at least 0, got nan"),
        ({"reach": -1}, "reach must be at least 0"),
    ],
)
def test_numbers_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        TransferPGD(nn.Linear(5, 3), **options)


# --- what it costs, what it is good for -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, forwards, backwards",
    [
        ({}, 1 + 4 + 1 + 1, 4),
        ({"nesterov": True}, 1 + 2 * 4 - 1 + 1 + 1, 4),  # the first step looks nowhere ahead
        ({"scales": 3}, 1 + 3 * 4 + 1 + 1, 3 * 4),
        ({"diversity": 1.0}, 1 + 2 * 4 + 1 + 1, 4),
        ({"kernel": 3}, 1 + 4 + 1 + 1, 4),
        ({"neighbours": 5}, 1 + 4 + 5 * 3 + 1 + 1, 4 + 5 * 3),  # those of the last step would steer nothing
    ],
)
def test_passes(case, options, forwards, backwards):
    model, x, y = case
    result = TransferPGD(model, bounds=(0, 1), eps=0.02, steps=4, precision=None, **options).run(x, y)
    assert result.forwards.unique().tolist() == [forwards] and result.backwards.unique().tolist() == [backwards]


def test_copies_are_one_question(case):
    """Neighbours and scales are batches, not loops."""
    model, x, y = case
    calls = []
    attack = TransferPGD(
        lambda t: (calls.append(len(t)), model(t))[1],
        bounds=(0, 1), eps=0.02, steps=2, scales=3, neighbours=4, batch_size=999, precision=None,
    )  # fmt: skip
    attack.run(x, y)
    n = len(x)
    assert sum(calls) == n + 3 * n + 3 * n + 3 * 4 * n + n + n
    assert len(calls) <= 6 + 1  # one question may be split, so that its first part can be weighed


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"scales": 3}, {"diversity": 1.0}, {"neighbours": 4}])
def test_the_history_is_that_of_the_points_themselves(case, options):
    """Of the start and each step, and of the answer: not of copies, neighbours and what lies ahead."""
    model, x, y = case
    result = TransferPGD(model, bounds=(0, 1), eps=0.05, steps=4, precision=None, **options).run(x, y, history=True)
    assert result.history.shape == (len(x), 4 + 1 + 1)
    assert_close(result.history[:, :-1].amax(1), result.history[:, -1], rtol=0, atol=1e-9)
    assert_close(result.history[:, 0], Leave(y).value(model(x), torch.arange(len(x))).detach(), rtol=0, atol=1e-9)


def test_transfer_attacks_go_on_beyond_the_first_success(case):
    model, x, y = case
    go_on, stop = (
        TransferPGD(model, bounds=(0, 1), eps=0.1, early_stop=stop, precision=None).run(x, y) for stop in (False, True)
    )
    assert go_on.success.sum() >= stop.success.sum() > 3
    assert (go_on.margin[stop.success] > stop.margin[stop.success]).any()
    assert stop.backwards.sum() < go_on.backwards.sum()


@pytest.fixture(scope="module")
def robust():
    """The adversarially trained digits CNN, and some of its test set."""
    model, data = zoo.model("digits-robust"), zoo.data("digits")
    return model, data.x[:200], data.y[:200]


STRENGTH = {
    "Linf": {
        "torchattacks": lambda m, x, y, eps, a, n: torchattacks.PGD(m, eps, a, n, random_start=False)(x, y),
        "adv_lib": lambda m, x, y, eps, a, n: adv_lib.attacks.pgd_linf(
            m, x, y, eps, steps=n, random_init=False, absolute_step_size=a
        ),
        "foolbox": foolbox.attacks.LinfPGD,
    },
    "L2": {
        "torchattacks": lambda m, x, y, eps, a, n: torchattacks.PGDL2(m, eps, a, n, random_start=False)(x, y),
        "foolbox": foolbox.attacks.L2PGD,
    },
    "L1": {"foolbox": foolbox.attacks.L1PGD, "foolbox, sparse": foolbox.attacks.SparseL1DescentAttack},
}


@pytest.mark.parametrize(
    "norm, eps", [*(("Linf", e) for e in (0.05, 0.1, 0.2, 0.3)), ("L2", 0.5), ("L2", 1.0), ("L1", 2.0), ("L1", 4.0)]
)
def test_robust_accuracy_is_at_most_that_of_peers(robust, norm, eps):
    """At equal steps of equal length, from the same start."""
    model, x, y = robust
    steps, length = 20, 2.5 * eps / 20
    fmodel, left = foolbox.PyTorchModel(model, (0, 1)), {}
    for name, peer in STRENGTH[norm].items():
        if name.startswith("foolbox"):
            attack = peer(abs_stepsize=length, steps=steps, random_start=False)
            moved = attack(fmodel, x, y, epsilons=eps)[1]
        else:
            moved = peer(model, x, y, eps, length, steps)
        with torch.no_grad():
            left[name] = int((model(moved).argmax(1) == y).sum())
    result = PGD(model, bounds=(0, 1), norm=norm, eps=eps, steps=steps, step_size=length).run(x, y)
    ours = int((~result.success).sum())
    assert all(ours <= n for n in left.values()), (ours, left)
    assert 0 < ours < 200

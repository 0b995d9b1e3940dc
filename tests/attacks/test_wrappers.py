"""Expectation over transformation, and functions that have another one's gradient."""

import pytest
import torch
import torch.nn.functional as F
from attack_cases import Counted, affine, examples, mlp
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import BPDA, EOT, FGSM, PGD, AutoAttack, Bisection, ZeroGradientWarning
from robustx.attacks.views import Draws, Viewed
from robustx.engine import Door, Noise, Output, identities
from robustx.perturb import Leave
from robustx.perturb.goals import Boundaries


def jitter(x):
    return x + 0.05 * torch.randn_like(x)


def rolled(x):
    """A random shift, which the network has never seen."""
    return x.roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))


@pytest.fixture
def case():
    model = mlp()
    return model, *examples(model, wrong=0)


def seen(model, x, y, transform, draws, rows=None, limit=None):
    f = Door.open(x).probe(model, Leave(y, "ce"), limit=limit)
    rows = f.everyone if rows is None else rows
    noise = Noise(0, "EOT", identities(f.point)).at(rows)
    return f, Viewed.of_probe(f, rows, noise, shown=[Draws(transform, draws)])


# --- expectation over transformation ----------------------------------------------------------------------


def test_the_mean_of_a_transformation_whose_mean_is_known(case):
    """Brightness drawn from 0, 1, 2: thirds of each in the long run, and exactly the mean of what was drawn."""
    model, x, y = case
    drawn = []

    def bright(t):
        drawn.append(int(torch.randint(0, 3, ())))
        return t * drawn[-1]

    f, g = seen(model, x[:1], y[:1], bright, 600)
    value, slope = g.grad(f.point)
    counts = torch.tensor(drawn).bincount(minlength=3)
    z, expected, margin = f.point, 0, 0
    for scale, count in enumerate(counts):
        v, s = f.grad(z * scale)
        expected, margin = expected + count / 600 * scale * s, margin + count / 600 * v
    assert_close(slope, expected), assert_close(value, margin)
    assert ((counts / 600 - 1 / 3).abs() < 0.1).all()


@pytest.mark.parametrize("limit", [1, 7, None])
def test_draws_depend_on_the_example_alone(case, limit):
    """Not on the batch, nor on who else is asked; and each question is answered by new ones."""
    model, x, y = case
    state, some = torch.get_rng_state(), torch.tensor([8, 3, 5])
    whole = [seen(model, x, y, jitter, 4)[1]]
    part = seen(model, x, y, jitter, 4, some, limit)[1]
    f = whole[0]
    answers = [(f.grad(f.point), part.grad(f.point[some], some)) for _ in range(2)]
    answers += [((f.value(f.point),), (part.value(f.point[some], some),))]
    for together, alone in answers:
        for a, b in zip(together, alone, strict=True):
            assert_close(a[some], b, rtol=0, atol=1e-12)
    assert not torch.allclose(answers[0][0][1], answers[1][0][1])
    assert torch.equal(torch.get_rng_state(), state)


def test_all_gradients_at_once_are_those_of_each_score(case):
    model, x, y = case
    scores, f = [Output(0), Output(2)], seen(model, x, y, jitter, 3)[1]
    values, slopes = f.jacobian(f.point, scores)
    for i, score in enumerate(scores):
        g = seen(model, x, y, jitter, 3)[1].to(of=score)  # asked for the first time, so by the same draws
        value, slope = g.grad(g.point)
        assert_close(values[:, i], value), assert_close(slopes[:, i], slope)
    leads, ways = seen(model, x, y, jitter, 3)[1].to(of=Boundaries(Leave(y))).grad(f.point)
    margin = seen(model, x, y, jitter, 3)[1].value(f.point)
    assert_close(leads[:, 0], margin)
    assert ways.shape == (len(x), 3, 18)


def test_one_transformation_after_another(case):
    """An expectation of an expectation draws from both."""
    model, x, y = case
    drawn = [0, 0]

    def counting(which):
        def transform(t):
            drawn[which] += 1
            return jitter(t)

        return transform

    attack = EOT(PGD(model, bounds=(0, 1), eps=0.1, steps=2), counting(0), draws=3)
    result = EOT(attack, counting(1), draws=2).run(x, y)
    assert drawn[0] == drawn[1] == result.forwards.sum() and (result.forwards % 6 == 0).all()


def mean_margin(model, x, y, transform, count):
    """Over so many draws, example by example [B]."""
    torch.manual_seed(1)
    shifted = torch.stack([torch.cat([transform(t[None]) for t in x]) for _ in range(count)])
    with torch.no_grad():
        out = torch.stack([model(s) for s in shifted])
    own = y[None, :, None].expand(count, -1, 1)
    return (out.scatter(2, own, -torch.inf).amax(2) - out.gather(2, own).squeeze(2)).mean(0)


def test_attacks_last_through_transformations():
    """What fools the model on average over shifts; the usual attack fools it where it stands."""
    model, data = zoo.model("digits"), zoo.data("digits")
    x, y = data.x[:16], data.y[:16]
    plain = PGD(model, bounds=(0, 1), eps=0.1, steps=10, early_stop=False)
    usual, ours = (mean_margin(model, a(x, y), y, rolled, 50) for a in (plain, EOT(plain, rolled, draws=24)))
    held = mean_margin(model, x, y, rolled, 50) < 0
    assert ours[held].mean() > usual[held].mean() + 0.2
    assert (ours[held] > 0).sum() > (usual[held] > 0).sum()


def test_success_is_that_of_fresh_draws(case):
    model, x, y = case
    attack = EOT(PGD(model, bounds=(0, 1), eps=0.08, steps=6), rolled, draws=64)
    result = attack.run(x, y)
    assert 0 < result.success.sum() < len(x)
    assert result.success.tolist() == (result.margin > 0).tolist()
    margin = mean_margin(model, result.adversarial, y, rolled, 400)
    assert_close(result.margin, margin, rtol=0, atol=0.3)


def test_the_same_seed_alone_and_in_a_batch(case):
    model, x, y = case

    def run(x, y, seed=0):
        return EOT(PGD(model, bounds=(0, 1), eps=0.05, steps=4, seed=seed), jitter, draws=3).run(x, y)

    together = run(x, y)
    for i in (0, 5):
        alone = run(x[i : i + 1], y[i : i + 1])
        assert_close(alone.adversarial, together.adversarial[i : i + 1], rtol=0, atol=1e-12)
        assert_close(alone.margin, together.margin[i : i + 1], rtol=0, atol=1e-12)
    assert not torch.equal(run(x, y, seed=1).adversarial, together.adversarial)


def test_passes_are_counted_for_each_draw(case):
    net, x, y = case
    model = Counted(net, len(x))
    attack = EOT(PGD(model, bounds=(0, 1), eps=1e-4, steps=3), jitter, draws=5)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist() and result.backwards.tolist() == model.backwards.tolist()
    assert (result.backwards % 5 == 0).all() and (result.forwards % 5 == 0).all()
    assert model.calls <= 2 * 6


def test_models_that_draw_by_themselves(case):
    """A linear model behind noise: its mean gradient is that of the linear model, so one step is the best."""
    _, x, y = case
    net = affine(18, 2)
    y = net(x).argmax(1)
    state = torch.get_rng_state()
    noisy = lambda t: net(t + 0.02 * torch.randn_like(t))
    moved = EOT(FGSM(noisy, "margin", bounds=(0, 1), eps=0.05), draws=4).run(x, y)
    expected = FGSM(net, "margin", bounds=(0, 1), eps=0.05).run(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    still = moved.backwards == 0  # fooled by noise alone
    assert_close(moved.adversarial[~still], expected.adversarial[~still])
    assert (~still).sum() > 6


def test_models_that_draw_once_for_a_batch(case):
    """Two draws in one batch would be one; here the mean of two passes is that of a fair coin and its other side."""
    net, x, y = case
    sides = []

    def coin(t):
        sides.append(1 - sides[-1] if sides else 0)
        return net(t if sides[-1] else 1 - t)

    f = Door.open(x).probe(coin, Leave(y, "ce"))
    g = Viewed.of_probe(f, f.everyone, Noise(0, "EOT", identities(f.point)), times=2)
    plain = Door.open(x).probe(net, Leave(y, "ce"))
    (one, way), (other, back) = plain.grad(f.point), plain.grad(1 - f.point)
    value, slope = g.grad(f.point)
    assert_close(value, (one + other) / 2), assert_close(slope, (way - back) / 2)
    assert_close(g.value(f.point), value)
    values, slopes = g.jacobian(f.point, [Output(1)])
    (one, way), (other, back) = (plain.to(of=Output(1)).grad(z) for z in (f.point, 1 - f.point))
    assert_close(values[:, 0], (one + other) / 2), assert_close(slopes[:, 0], (way - back) / 2)


def test_several_inputs_are_transformed_together(case):
    net, x, y = case
    shifts = []

    def transform(left, right):
        shifts.append(int(torch.randint(0, 3, ())))
        return left.roll(shifts[-1], 3), right

    two = lambda left, right: net(torch.cat([left, right], 1))
    result = EOT(PGD(two, bounds=(0, 1), eps=0.05, steps=2), transform, draws=3).run((x[:, :1], x[:, 1:]), y)
    assert [t.shape for t in result.adversarial] == [(12, 1, 3, 3)] * 2 and len(set(shifts)) == 3


def test_what_cannot_be_averaged_is_told(case):
    model, x, y = case
    attack = PGD(model, bounds=(0, 1), eps=0.1, steps=1)
    with pytest.raises(ValueError, match=r"keep the shapes \[\(2, 3, 3\)\].*got \[\(2, 1, 1\)\]"):
        EOT(attack, lambda t: F.adaptive_avg_pool2d(t, 1)).run(x, y)
    with pytest.raises(ValueError, match="draws must be a whole number of at least 1, got 0"):
        EOT(attack, jitter, draws=0)
    with pytest.raises(ValueError, match="attack must have a budget, but Bisection looks for the nearest point"):
        EOT(Bisection(model, bounds=(0, 1)), jitter)
    with pytest.raises(TypeError, match="attack must be one bound to a model.*got Sequential"):
        EOT(model, jitter)


# --- another function's gradient --------------------------------------------------------------------------


def quantise(x):
    return (8 * x).round() / 8


def test_forward_to_the_bit_and_backward_as_the_other():
    x = torch.rand(5, 3, requires_grad=True)
    plain, other = BPDA(quantise)(x), BPDA(quantise, lambda t: t**3)(x)
    assert torch.equal(plain, quantise(x)) and torch.equal(other, plain)
    g = torch.randn(5, 3)
    assert torch.equal(torch.autograd.grad(plain, x, g)[0], g)
    assert_close(torch.autograd.grad(other, x, g)[0], 3 * x.detach() ** 2 * g)
    assert torch.equal(BPDA(torch.Tensor.round_)(x), x.round())  # in place on what is not its own
    assert not BPDA(quantise)(x.detach()).requires_grad


def test_several_inputs_of_one_function():
    x, y = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
    out = BPDA(lambda a, b: torch.maximum(a, b).round(), lambda a, b: a * b)(x, y)
    assert torch.equal(out, torch.maximum(x, y).round())
    gx, gy = torch.autograd.grad(out.sum(), (x, y))
    assert_close(gx, y.detach()), assert_close(gy, x.detach())
    assert_close(torch.autograd.grad(BPDA(lambda a, b: a.round())(x, y.detach()).sum(), x)[0], torch.ones(4))


def test_attacks_see_through_a_quantised_input(case):
    """Whose own gradient is zero everywhere; what is found fools the quantised model itself."""
    net, x, y = case
    y = net(quantise(x)).argmax(1)
    with pytest.warns(ZeroGradientWarning):
        blind = PGD(lambda t: net(quantise(t)), bounds=(0, 1), eps=0.2, steps=10).run(x, y)
    assert not blind.success.any()
    model = nn.Sequential(BPDA(quantise), net)
    result = PGD(model, bounds=(0, 1), eps=0.2, steps=10).run(x, y)
    assert result.success.sum() > 6
    with torch.no_grad():
        assert result.success.tolist() == (net(quantise(result.adversarial)).argmax(1) != y).tolist()


def test_modules_inside_are_found():
    model = nn.Sequential(BPDA(nn.Sequential(nn.Linear(5, 5), nn.Dropout())), nn.Linear(5, 3)).train()
    with pytest.raises(ValueError, match="Dropout"):
        PGD(model, bounds=(0, 1), eps=0.1).run(torch.rand(2, 5))


def test_functions_that_do_not_match():
    x = torch.rand(3, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), got \(3,\)"):
        torch.autograd.grad(BPDA(quantise, lambda t: t.sum(1))(x).sum(), x)
    with pytest.raises(TypeError, match="forward must be a function of tensors, got int"):
        BPDA(3)
    with pytest.raises(TypeError, match="backward must be a function of tensors, got str"):
        BPDA(quantise, "identity")


@pytest.mark.parametrize(
    "make",
    [
        lambda model: PGD(model, norm="L2", eps=1.0, steps=5),
        lambda model: EOT(PGD(model, norm="L2", eps=1.0, steps=5), draws=2),
        lambda model: Bisection(model, norm="L2", eps=3.0, steps=5),
        lambda model: AutoAttack(model, norm="L2", eps=1.0, steps=3, bounds=(-3, 3), verbose=False, flags=False),
    ],
    ids=["pgd", "eot", "bisection", "autoattack"],
)
def test_an_attack_on_another_model_is_the_same_attack(make):
    first, second = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    x, y = torch.randn(8, 6).clamp(-3, 3), torch.arange(8) % 4
    attack = make(first)
    moved, own = attack.on(second), make(second)
    assert torch.equal(moved.run(x, y).adversarial, own.run(x, y).adversarial)
    assert torch.equal(attack.run(x, y).adversarial, make(first).run(x, y).adversarial)
    if isinstance(attack, AutoAttack):
        assert torch.equal(moved.run_standard_evaluation(x, y), own.run_standard_evaluation(x, y))

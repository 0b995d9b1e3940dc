"""Is an evaluation sound? Indicators in closed form, problems with known solutions, models that hide gradients."""

import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from told import told
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attacks import BPDA, EOT, FGSM, PGD, AutoAttack, Square
from robustx.engine import Door, Noise, identities
from robustx.evaluation import Block, Spec
from robustx.evaluation.active import NEAR as EDGE
from robustx.evaluation.active import active_test, head_of, readouts
from robustx.evaluation.indicators import NEAR, by_values, cascade, gradients, instability, rise, silent, unfinished
from robustx.evaluation.soundness import LIMITS, Soundness, assess, soundness_of
from robustx.perturb import Leave, Region, norm_of

EPS = 0.1


@pytest.fixture(scope="module", params=["digits-robust", "digits"])
def honest(request):
    return zoo.load(request.param, limit=14)


@pytest.fixture(scope="module")
def robust():
    return zoo.load("digits-robust", limit=14)


def usual(model, **options):
    """What a run tries by default, without its search for the nearest point."""
    given = {"bounds": (0, 1), "eps": EPS, "steps": 10, **options}
    return [PGD(model, "ce", restarts=2, **given), PGD(model, "margin", targets=4, **given)]


def look(model, data, attacks=None, **options):
    given = {"limit": 10, "queries": 60, **options}
    return assess(model, data.x, data.y, usual(model) if attacks is None else attacks, **given)


@cache
def hidden(hiding):
    """What is found of the robust network when it hides so."""
    net, data = zoo.load("digits-robust", limit=14)
    return look(HIDING[hiding][0](net), data)


def names(found):
    return {flag.name for flag in found.flags}


def problem(model, x, y, eps=EPS, norm="Linf"):
    f = Door.open(x).probe(model).to(of=Leave(y))
    low, high = torch.zeros(1, 1, dtype=x.dtype), torch.ones(1, 1, dtype=x.dtype)
    region = Region(f.point, norm_of(norm), torch.full_like(f.point[:, 0], eps), low, high)
    return f, region, Noise(0, "test", identities(x))


# --- models that hide what an attack needs ----------------------------------------------------------------


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)


def rounded(x):
    return (x * 8).round() / 8


def with_dropout(net):
    model = nn.Sequential(nn.Dropout(0.2), net)
    model[0].train()
    return model


def inward(net):
    def model(x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            g = torch.autograd.grad(net(z).logsumexp(1).sum(), z)[0]
        return net(x - 0.001 * g)

    return model


HIDING = {  # what hides: the model, the flag that tells, how grave it is
    "quantised input": (lambda net: lambda x: net(rounded(x)), "zero-gradient", "invalid"),
    "logits x 1000": (lambda net: lambda x: net(x) * 1000, "saturated-loss", "weak"),
    "softmax output": (lambda net: lambda x: net(x).softmax(1), "probabilities", "weak"),
    "random noise": (lambda net: lambda x: net(x + 0.1 * torch.randn_like(x)), "random-outputs", "invalid"),
    "random dropout": (lambda net: lambda x: net(F.dropout(x, 0.1)), "random-outputs", "invalid"),
    "detached": (lambda net: lambda x: net(x.detach()), "no-gradient", "invalid"),
    "argmax": (lambda net: lambda x: F.one_hot(net(x).argmax(1), 10) * 2.0, "no-gradient", "invalid"),
    "zero backward": (lambda net: lambda x: net(NoWayBack.apply(x)), "zero-gradient", "invalid"),
    "dropout left on": (with_dropout, "train-mode", "invalid"),
    "not a number": (
        lambda net: lambda x: net(x) + 0 * x.sqrt().flatten(1).sum(1, True),
        "nonfinite-gradient",
        "invalid",
    ),
    "another gradient": (lambda net: BPDA(net, lambda x: net(x.flip(3))), "wrong-gradient", "weak"),
    "rough": (
        lambda net: lambda x: net(x) + 20 * torch.sin(3000 * x.flatten(1)[:, :10]),
        "unstable-predictions",
        "invalid",
    ),
    "gradients inside": (inward, "dynamic", "weak"),
}


@pytest.mark.parametrize("hiding", HIDING)
def test_a_model_that_hides_is_told_by_its_flag(hiding):
    _, name, severity = HIDING[hiding]
    found = hidden(hiding)
    assert found.verdict != "VALID"
    flag = next(f for f in found.flags if f.name == name)
    assert flag.severity in (severity, "invalid") and flag.value > flag.threshold
    assert flag.reason and flag.next and flag.reason in repr(found)


@pytest.mark.parametrize("hiding", ["quantised input", "zero backward"])
def test_an_attack_that_sees_no_gradient_fails_the_problems_that_have_a_solution(hiding):
    found = hidden(hiding)
    assert {"active-test", "unconstrained-failure"} <= names(found)
    assert found.measured["active-test"] == 1 and found.measured["active-random"] < 0.2


def test_an_honest_model_under_fit_attacks_raises_no_flag(honest):
    net, data = honest
    found = look(net, data)
    assert found.verdict == "VALID" and not found.flags
    assert found.measured["active-problems"] == found.samples == 10
    assert found.measured["active-test"] == 0 and found.measured["gradient-correlation"] > 0.8


def test_autoattack_raises_no_flag(robust):
    net, data = robust
    found = look(net, data, AutoAttack(net, eps=EPS, steps=10, verbose=False))
    assert found.verdict == "VALID" and "square" in found.measured


WEAK = {
    "one step": (lambda net: FGSM(net, bounds=(0, 1), eps=EPS), {"incomplete-optimisation"}),
    "steps of next to nothing": (
        lambda net: PGD(net, bounds=(0, 1), eps=EPS, steps=10, step_size=1e-5),
        {"incomplete-optimisation", "active-test", "unconstrained-failure"},
    ),
    "no steps": (lambda net: PGD(net, bounds=(0, 1), eps=EPS, steps=0), {"active-test", "unconstrained-failure"}),
}


@pytest.mark.parametrize("weak", WEAK)
def test_a_weak_attack_on_an_honest_model_is_told(weak, honest):
    net, data = honest
    make, flags = WEAK[weak]
    found = look(net, data, make(net))
    assert found.verdict == "INVALID" and flags <= names(found)


# --- what the flags say to try, helps ---------------------------------------------------------------------


def test_bpda_and_square_make_up_for_rounding(robust):
    net, data = robust
    assert look(nn.Sequential(BPDA(rounded), net).eval(), data).verdict == "VALID"
    square = Square(net, bounds=(0, 1), eps=EPS, steps=300)
    assert look(lambda x: net(rounded(x)), data, square).verdict == "VALID"


def test_eot_makes_up_for_noise(robust):
    net, data = robust
    noisy = lambda x: net(x + 0.1 * torch.randn_like(x))
    found = look(noisy, data, EOT(PGD(noisy, "margin", bounds=(0, 1), eps=EPS, steps=10), draws=10))
    assert not {"random-outputs", "wrong-gradient", "unstable-predictions"} & names(found)
    assert found.verdict != "INVALID"


def test_the_margin_makes_up_for_a_cross_entropy_that_is_saturated(robust):
    net, data = robust
    steep = lambda x: net(x) * 1000
    assert look(steep, data, usual(steep)[:1]).verdict == "INVALID"
    assert names(look(steep, data, usual(steep)[1:])) == {"saturated-loss"}


def test_few_classes_are_flagged_where_a_ratio_of_logits_is_asked_for():
    net, data = zoo.load("breast-cancer", limit=8)
    ratio, plain = (look(net, data, PGD(net, loss, bounds=(0, 1), eps=0.02)) for loss in ("dlr", "margin"))
    assert names(ratio) == {"few-classes"} and not plain.flags


def test_a_surrogate_has_to_be_near(robust):
    net, data = robust
    far = zoo.model("digits")
    options = {"attacks": usual(net, eps=0.3), "eps": 0.3}
    near = look(lambda x: net(NoWayBack.apply(x)), data, surrogate=net, **options)
    assert near.measured["transfer-failure"] == 0 and near.verdict == "VALID"
    found = look(net, data, surrogate=far, **options)
    assert "transfer-failure" in names(found) and found.verdict != "VALID"


# --- the indicators, in closed form ----------------------------------------------------------------------


def two_classes(dtype=torch.float64):
    """Margin w.x + b of class 1 over class 0, with w = (1, -2)."""
    net = nn.Linear(2, 2).to(dtype)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
        net.bias.copy_(torch.tensor([0.0, -5.0]))
    return net, torch.tensor([[0.5, 0.5], [0.4, 0.6]], dtype=dtype), torch.tensor([0, 0])


@pytest.mark.parametrize("length, still", [(0.05, True), (0.1, True), (0.21, False), (0.5, False)])
def test_a_search_is_unfinished_until_it_stands_in_the_corner(length, still):
    """On a linear model each step gains the same until the corner of the ball is reached."""
    net, x, y = two_classes()
    attack = PGD(net, "margin", bounds=(0, 1), steps=8, step_size=length * 0.2, eps=0.2)
    tried = cascade([attack], x, y, torch.full((2,), 0.2, dtype=x.dtype))
    _, gain, late = rise(tried.results[0][2].history)
    assert_close(gain, torch.full_like(gain, 3 * 0.2 * min(1.0, 8 * length)))
    assert_close(late, torch.full_like(late, 3 * 0.2 * 2 * length) if still else torch.zeros_like(late))
    assert unfinished(tried).all() if still else not unfinished(tried).any()
    other = PGD(net, "margin", bounds=(0, 1), steps=8, eps=0.2)
    assert not unfinished(cascade([attack, other], x, y, torch.full((2,), 0.2, dtype=x.dtype))).any()


def test_a_later_attempt_that_comes_further_was_not_interrupted():
    """The window is that of one attempt: what its last steps add to the best of all that went before."""
    climb = [-4.0, -3.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0]
    history = torch.tensor([[*climb, *(c + 1 for c in climb), -1.0]])
    assert rise(history, 8)[2] == 0 and rise(torch.tensor([[*climb, -1.0, -1.0]]), 8)[2] == 1


def test_gradients_of_a_linear_model_are_right_and_foretell_everything():
    found = gradients(*problem(*two_classes()))
    assert found.broken is None and found.zero == found.saturated == found.nonfinite == found.wrong == 0
    assert found.error < 1e-6 and found.correlation == pytest.approx(1)


def test_a_gradient_of_half_the_size_is_off_by_half_and_still_leads_somewhere():
    net, x, y = two_classes()
    half = lambda x: net(x.detach() / 2 + x / 2)
    found = gradients(*problem(half, x, y))
    assert found.error == pytest.approx(0.5) and found.correlation == pytest.approx(1) and found.wrong == 0


def test_instability_is_the_mean_change_by_uniform_noise():
    """Of one element with slope w: w r / 2 of a margin m, with uniform noise of radius r."""
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [3.0]]))
        net.bias.copy_(torch.tensor([0.0, -2.0]))
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    found = instability(*problem(net, x, torch.tensor([0])))
    assert found == pytest.approx(3 * NEAR / 2 / 0.5, rel=0.2)


def test_silent_success_needs_a_model_that_changes_its_mind(robust):
    net, data = robust
    x, y = data.x[:8], data.y[:8]
    noisy = lambda x: net(x + 0.3 * torch.randn_like(x))
    eps = torch.full((8,), EPS)
    attack = PGD(net, "margin", bounds=(0, 1), eps=EPS, steps=10)
    assert not silent(cascade([attack], x, y, eps)).any()
    tried = cascade([attack.on(noisy)], x, y, eps)
    history = tried.results[0][2].history
    assert torch.equal(silent(tried), (history > 0).any(1) & ~tried.success) and silent(tried).any()


def test_what_fell_to_values_is_told_from_what_fell_to_gradients():
    net, x, y = two_classes()
    eps = torch.ones(2, dtype=x.dtype)
    net.bias.data[1] = -0.1  # (1, 0) is of class 1
    steps, square = PGD(net, "margin", bounds=(0, 1), steps=5), Square(net, bounds=(0, 1), steps=50)
    assert not by_values(cascade([steps, square], x, y, eps)).any()
    assert by_values(cascade([square, steps], x, y, eps)).all()
    masked = lambda x: net(rounded(x))
    both = AutoAttack(masked, steps=3, verbose=False, flags=False)
    assert by_values(cascade([both], x, y, eps)).all()


# --- the problems that have a solution -------------------------------------------------------------------


def test_a_readout_puts_its_boundary_near_the_last_point():
    """Of points on a line: 90 % of the way from the outermost of the others to the last."""
    phi = torch.tensor([[[0.0], [-1.0], [2.0], [4.0]], [[1.0], [1.0], [1.0], [1.0]]], dtype=torch.float64)
    weight, bias = readouts(phi)
    assert -bias[0] / weight[0, 0] == pytest.approx(2 + EDGE * 2)
    read = (phi * weight[:, None]).sum(2) + bias[:, None]
    assert float(read[0].max() - read[0].min()) == pytest.approx(1)
    assert not weight[1].any() and not bias[1].any()  # nothing tells these apart


def test_points_that_no_line_tells_apart_have_no_readout():
    draw = torch.Generator().manual_seed(0)
    phi = torch.randn(1, 65, 8, generator=draw).mul(1000)
    phi = torch.cat([phi, phi.mean(1, keepdim=True)], 1)  # the last lies amid the others
    weight, bias = readouts(phi)
    assert not weight.any() and not bias.any()


@pytest.mark.parametrize("norm, eps", [("Linf", 0.1), ("L2", 0.3), ("L1", 0.5), ("L0", 3.0)])
def test_a_step_that_is_exact_solves_all_problems_of_a_linear_model(norm, eps):
    x = torch.rand(6, 24, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 3)).double()
    y = net(x).argmax(1)
    f, region, noise = problem(net, x, y, eps, norm)
    options = {"bounds": (0, 1), "norm": norm, "eps": eps}
    found = active_test(f, region, noise, [FGSM(net, **options)])
    assert found.problems == 6 and found.success == 1 and found.random < 1
    assert found.forwards > 0 and found.backwards == 6
    assert active_test(f, region, noise, [PGD(net, steps=0, **options)]).success == 0


def test_a_model_that_is_flat_gives_no_problem():
    x = torch.rand(4, 3)
    flat = lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2)
    found = active_test(*problem(flat, x, torch.zeros(4).long()), [FGSM(flat, bounds=(0, 1), eps=EPS)])
    assert found.problems == 0


def test_the_head_is_the_last_linear_layer_that_makes_the_scores():
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 2])
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    idle = nn.ModuleDict({"net": net, "idle": nn.Linear(4, 3)})
    twice = nn.Linear(3, 3)
    for model, head in (
        (net, net[2]),
        (lambda x: net(x).softmax(1), net[2]),
        (lambda x: idle["net"](x), net[2]),
        (lambda x: twice(twice(x[:, :3])), None),
        (lambda x: x[:, :3] ** 2, None),
    ):
        assert head_of(problem(model, x, y)[0]) is head


# --- the face --------------------------------------------------------------------------------------------


def test_the_same_every_time_and_no_trace(robust):
    net, data = robust
    model = lambda x: net(x + 0.05 * torch.randn_like(x))
    options = {"limit": 4, "queries": 20}
    before = torch.get_rng_state(), [m.training for m in net.modules()]
    first = look(model, data, **options)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == [m.training for m in net.modules()]
    assert all(p.grad is None for p in net.parameters())
    torch.randn(7)
    second = look(model, data, **options)
    assert first.to_dict() == second.to_dict()
    assert first.forwards > 0 and first.backwards > 0


def test_a_run_gets_a_note_that_json_holds(robust):
    net, data = robust
    spec = Spec(models=("digits-robust",), data="digits", eps=(0.05, EPS, 0.2))
    block = Block(data.x[:6], data.y[:6], range(6), data.bounds)
    made = soundness_of(net, block, spec)
    assert not made.rows and not made.tensors
    (note,) = json.loads(json.dumps(made.notes))
    assert note["verdict"] == "VALID" and note["flags"] == [] and note["samples"] == 6
    assert made.notes == soundness_of(net, block, spec).notes


def test_what_is_told_can_be_stored():
    found = hidden("quantised input")
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["verdict"] == found.verdict == "INVALID"
    assert set(stored["flags"][0]) == {"name", "severity", "value", "threshold", "reason", "next"}
    assert repr(found).startswith("Soundness(INVALID; 10 samples, ")


def test_a_model_that_is_not_finite_beside_the_samples_gets_a_verdict():
    x = torch.tensor([[0.25, 0.75], [0.75, 0.25]])

    def model(z):
        return torch.where((z == 0.25).any(1, keepdim=True), 3 * z, torch.nan)

    found = assess(model, x, x.argmax(1), "fgsm", eps=0.1)
    assert (found.verdict, names(found)) == ("WEAK", {"nonfinite-outputs"}) and found.samples == 2
    assert "near the samples the model's output for example 0 is NaN or infinite" in found.flags[0].reason


def test_noise_speaks_against_gradients_but_not_against_values():
    steep = torch.nn.Linear(2, 2, bias=False)
    steep.weight.data = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    x = 0.5 + torch.tensor([[0.02, 0.0], [0.0, 0.02]])  # next to the boundary, so that noise upsets the answers
    by_gradients, by_values = (assess(steep, x, x.argmax(1), name, eps=0.1) for name in ("fgsm", "square"))
    assert by_gradients.measured["unstable-predictions"] == by_values.measured["unstable-predictions"] > 0.1
    assert "unstable-predictions" in names(by_gradients) - names(by_values)


def test_nothing_that_is_right_is_nothing_to_miss(robust):
    net, data = robust
    found = assess(net, data.x, (net(data.x).argmax(1) + 1) % 10, usual(net))
    assert found.verdict == "VALID" and found.samples == 0


def test_the_gravest_flag_decides():
    weak, invalid = (LIMITS["square"].judge("square", value) for value in (0.1, 0.5))
    verdicts = [Soundness(tuple(flags)).verdict for flags in ([], weak, [*weak, *invalid])]
    assert verdicts == ["VALID", "WEAK", "INVALID"]
    assert not LIMITS["square"].judge("square", 0.0)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"attacks": []}, ["attacks", "none", "pgd"]),
        ({"attacks": "pgd"}, ["eps", "None", "eps=0.1"]),
        ({"eps": -1.0}, ["eps", "-1.0"]),
        ({"norm": "L2"}, ["norm", "Linf", "L2"]),
        ({"limit": 0}, ["limit", "at least 1"]),
        ({"attacks": [3]}, ["attacks", "int"]),
    ],
    ids=["no attack", "no budget", "negative", "two norms", "no samples", "no attack at all"],
)
def test_errors_say_how_to_mend(change, words, robust):
    net, data = robust
    with pytest.raises((ValueError, TypeError)) as caught:
        look(net, data, **{"attacks": usual(net), **change})
    told(caught.value, words)

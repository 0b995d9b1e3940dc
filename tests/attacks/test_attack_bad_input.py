"""A mistake gets one clear sentence, before any work: which argument, what came, what was expected, the way out."""

import pytest
import torch
from attack_cases import CASES as CASES_OF_ALL
from attack_cases import Counted
from models import Bare, NotANumber, Pair, Rounding
from told import told
from torch import nn

from robustx.attacks import ATTACKS, FGSM, PGD, MinParamPerturbation, ZeroGradientWarning, make
from robustx.engine import ModelError, NonFiniteError, OutputError
from robustx.perturb import Until

X, Y = torch.linspace(0.05, 0.95, 15).reshape(3, 5).double(), torch.tensor([0, 1, 2])
nan, inf = float("nan"), float("inf")


def net():
    torch.manual_seed(0)
    return nn.Linear(5, 4).double()


def run(model=None, x=X, y=Y, targeted=False, attack="pgd", bounds=(0, 1), eps=0.1, how=None, **options):
    """One attack, all of whose arguments are well but for those of a case."""
    return make(attack, net() if model is None else model, bounds=bounds, eps=eps, **options).run(
        x, y, targeted, **(how or {})
    )


def trained(layer):
    return nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(5, 4)).double().train()


def with_(x, value, at=(1, 2)):
    x = x.clone()
    x[at] = value
    return x


CASES = {
    # inputs
    "x of a wrong shape": ({"x": torch.rand(3, 6).double()}, ModelError, "(3, 6)", "batch first"),
    "x of a wrong dtype": ({"x": X.float()}, ModelError, "float32", "parameters are float64", ".to("),
    "x of integers": ({"x": torch.ones(3, 5, dtype=torch.long)}, TypeError, "int64", "floating-point"),
    "x without a batch": ({"x": torch.tensor(0.5)}, ValueError, "batch axis", "x[None]"),
    "x that is no tensor": ({"x": [[0.5] * 5] * 3}, TypeError, "list", "tensor"),
    "x that is a number": ({"x": 0.5}, TypeError, "float", "tensor"),
    "x with NaN": ({"x": with_(X, nan)}, NonFiniteError, "NaN", "example 1"),
    "x with infinity": ({"x": with_(X, -inf)}, NonFiniteError, "infinity", "example 1"),
    "parts of different lengths": ({"x": (X, X[:2])}, ValueError, "(3, 5)", "(2, 5)", "first axis"),
    "x outside the bounds": ({"x": with_(X, 1.5)}, ValueError, "inside the bounds", "example 1", "1.5"),
    "x in other units": ({"x": X * 255}, ValueError, "inside the bounds", "example 0", "scale"),
    # bounds
    "bounds reversed": ({"bounds": (1, 0)}, ValueError, "bounds", "(lowest, highest)"),
    "bounds reversed somewhere": ({"bounds": (X - 0.1, X - 0.2)}, ValueError, "bounds", "(lowest, highest)"),
    "bounds of NaN": ({"bounds": (nan, 1)}, ValueError, "bounds"),
    "bounds of a wrong shape": ({"bounds": (0, torch.ones(3, 4))}, ValueError, "bounds", "(3, 4)", "(3, 5)"),
    "bounds that are no pair": ({"bounds": 1}, ValueError, "bounds", "pair", "(0, 1)"),
    "bounds with three parts": ({"bounds": (0, 1, 2)}, ValueError, "bounds", "pair", "(0, 1)"),
    "bounds twice": ({"lower_bound": -1.0}, ValueError, "bounds", "lower_bound and upper_bound"),
    "no bounds for L0": ({"bounds": (-inf, inf), "norm": "L0"}, ValueError, "bounds", "finite", "(0, 1)"),
    # budgets
    "eps negative": ({"eps": -0.1}, ValueError, "eps", "negative", "-0.1"),
    "eps NaN": ({"eps": nan}, ValueError, "eps", "NaN"),
    "eps NaN somewhere": ({"eps": torch.tensor([0.1, nan, 0.1])}, ValueError, "eps", "NaN"),
    "eps missing": ({"eps": None}, ValueError, "eps is missing", "eps=..."),
    "eps of a wrong length": ({"eps": torch.ones(2)}, ValueError, "eps", "(2,)", "[3]", "torch.full"),
    "eps of a wrong shape": ({"eps": torch.ones(3, 1)}, ValueError, "eps", "(3, 1)", "[3]"),
    "eps of a call": ({"how": {"eps": -1}}, ValueError, "eps", "negative", "-1"),
    "eps of each example in a list": ({"how": {"eps": [torch.ones(3), 0.1]}}, ValueError, "numbers", "once for each"),
    "eps without end": ({"eps": inf, "bounds": (-inf, inf)}, ValueError, "eps must be finite", "bounds"),
    "eps without end, in one step": (
        {"attack": "fgsm", "eps": inf, "bounds": (-inf, inf)},
        ValueError,
        "eps must be finite",
    ),
    "mask of a wrong shape": ({"how": {"mask": torch.ones(2, 5)}}, ValueError, "mask", "(2, 5)", "(3, 5)"),
    "mask of too many parts": ({"how": {"mask": (torch.ones(5),) * 2}}, ValueError, "mask", "(5,)", "(3, 5)"),
    "step_size negative": ({"step_size": -1.0}, ValueError, "step_size", "negative"),
    # labels
    "y too large": ({"y": torch.tensor([0, 9, 2])}, ValueError, "y", "0 to 3", "9", "example 1"),
    "y negative": ({"y": torch.tensor([0, 1, -1])}, ValueError, "y", "0 to 3", "-1", "example 2"),
    "y too large for a target": ({"y": 4, "targeted": True}, ValueError, "y", "0 to 3", "4"),
    "y of floats": ({"y": Y.float()}, ValueError, "y", "float32", "integers", "y.long()"),
    "y of booleans": ({"y": Y > 0}, ValueError, "y", "bool", "integers"),
    "y one-hot": ({"y": torch.eye(4, dtype=torch.long)[:3]}, ValueError, "y", "(3, 4)", "[3]"),
    "y too short": ({"y": Y[:2]}, ValueError, "y", "(2,)", "[3]"),
    "y of positions": ({"y": [(0, 1)] * 3}, ValueError, "y", "one class per example", "goal"),
    "no y to reach": ({"y": None, "targeted": True}, ValueError, "targeted=True needs y"),
    "a goal and a class to reach": (
        {"targeted": True, "how": {"goal": lambda out: out[:, 0]}},
        ValueError,
        "targeted=True",
        "goal",
    ),
    # models
    "a model that returns a tuple": ({"model": Pair()}, OutputError, "tuple of 2", "model(x)[0]"),
    "a model with two axes": ({"model": lambda x: x[:, :, None], "y": Y * 0}, OutputError, "(3, 5, 1)", "one logit"),
    "a model with one number": ({"model": lambda x: x.sum()}, OutputError, "one row per example", "()"),
    "a model that returns NaN": (
        {"model": NotANumber(), "x": with_(X, -0.5, (1, 0)), "bounds": (-1, 1)},
        NonFiniteError,
        "example 1",
    ),
    "dropout in train mode": ({"model": trained(nn.Dropout())}, ValueError, "train mode", "Dropout", "model.eval()"),
    "batch norm in train mode": (
        {"model": trained(nn.BatchNorm1d(5))},
        ValueError,
        "train mode",
        "BatchNorm1d",
        "model.eval()",
    ),
    "a model that fails": ({"model": nn.Linear(7, 4).double()}, ModelError, "(3, 5)"),
    "no gradient": ({"model": lambda x: Bare()(x.detach()), "y": None}, ModelError, "no gradient", "detach"),
    "integers on the way": ({"model": Rounding(), "y": None}, ModelError, "no gradient", "rounding"),
    "no model": ({"model": 3}, TypeError, "forward_func", "callable", "int"),
    # names and numbers
    "an unknown attack": ({"attack": "pgdd"}, ValueError, "'pgdd'", "did you mean 'pgd'?", "fgsm"),
    "an unknown norm": ({"norm": "L3"}, ValueError, "norm", "'L3'", "L0, L1, L2, Linf"),
    "an unknown loss": ({"loss_func": "crossentropy"}, ValueError, "loss", "'crossentropy'", "'ce', 'margin', 'dlr'"),
    "steps negative": ({"steps": -1}, ValueError, "steps", "whole number", "-1"),
    "steps a float": ({"steps": 2.5}, ValueError, "steps", "whole number", "2.5"),
    "no restarts": ({"restarts": 0}, ValueError, "restarts", "at least 1", "0"),
    "no rounds": ({"attack": "bisection", "rounds": -1}, ValueError, "rounds", "at least 0", "-1"),
    "no rivals": ({"targets": 0}, ValueError, "targets", "at least 1", "0"),
    "batch_size zero": ({"batch_size": 0}, ValueError, "batch size", "at least 1", "0"),
    "rivals of a target": ({"targeted": True, "targets": 2}, ValueError, "targets", "untargeted"),
    "rivals of a goal": ({"how": {"goal": Until(lambda out: out[:, 0] - 9)}, "targets": 2}, ValueError, "targets"),
}


@pytest.mark.parametrize("name", CASES)
def test_says_what_is_wrong(name):
    options, error, *words = CASES[name]
    with pytest.raises(error) as caught:
        run(**options)
    told(caught.value, words)


WORK = [
    "eps negative",
    "bounds reversed",
    "y too large",
    "x outside the bounds",
    "mask of a wrong shape",
    "eps of a wrong length",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", WORK)
def test_before_any_work(attack, name):
    """At most one look at the examples, which is what tells how many classes there are."""
    options, error, *_ = CASES[name]
    model = Counted(net(), 3)
    how = {"additional_forward_args": torch.arange(3), **options.get("how", {})}
    with pytest.raises(error):
        run(model, attack=attack, **{**options, "how": how})
    assert model.calls <= 1 and not model.backwards.any()


@pytest.mark.parametrize("case", [c for c in CASES_OF_ALL if ATTACKS[c.name].needs == "gradients"], ids=str)
def test_a_rounding_model_is_told_about(case):
    """It has a gradient, but it is zero everywhere: that is no robustness."""
    model = nn.Sequential(Round(), nn.Flatten(), net())
    with pytest.warns(ZeroGradientWarning, match="'margin' or an attack without gradients"):
        case(model, eps=2).run(X.reshape(3, 1, 1, 5))


class Round(nn.Module):
    def forward(self, x):
        return (x * 4).round()


@pytest.mark.parametrize("attack, arguments", [(FGSM, (0.1,)), (PGD, (0.1, 0.05, 3))])
@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"inputs": with_(X, nan)}, NonFiniteError, ["NaN", "example 1"]),
        ({"inputs": X + 1}, ValueError, ["inside the bounds"]),
        ({"target": torch.tensor([0, 1, 7])}, ValueError, ["0 to 3", "7"]),
        ({"mask": torch.ones(4, 5)}, ValueError, ["mask", "(4, 5)"]),
    ],
)
def test_perturb_says_so_too(attack, arguments, options, error, words):
    options = {"target": Y} | options
    with pytest.raises(error) as caught:
        attack(net(), bounds=(0, 1)).perturb(options.pop("inputs", X), *arguments, **options)
    told(caught.value, words)


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((-0.1, 0.1, 3), {}, ["-0.1"]),
        ((0.1, nan, 3), {}, ["step_size", "NaN"]),
        ((0.1, 0.1, -3), {}, ["step_num", "-3"]),
        ((0.1, 0.1, 2.5), {}, ["step_num", "2.5"]),
        ((0.1, 0.1, 3), {"norm": "L7"}, ["norm", "'L7'"]),
        ((0.1, 0.1, 3), {"norm": "L0", "bounds": (-inf, inf)}, ["finite"]),
    ],
)
def test_pgd_perturb_checks_its_numbers(arguments, options, words):
    attack = PGD(net(), bounds=options.pop("bounds", (0, 1)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are looked for below
        attack.perturb(X, *arguments, target=Y, **options)
    told(caught.value, words)


SEARCH = {
    "no value to search": ({"arg_min": 0.0, "arg_max": 0.1, "arg_step": 0.2}, ValueError, "arg_step", "0.2"),
    "a step of zero": ({"arg_step": 0.0}, ValueError, "arg_step", "0.0"),
    "an unknown mode": ({"mode": "ternary"}, ValueError, "mode", "'ternary'", "'linear' or 'binary'"),
    "no attempts": ({"num_attempts": 0}, ValueError, "num_attempts", "at least 1", "0"),
    "no target": ({"target": None}, ValueError, "target is missing"),
    "a target of floats": ({"target": Y.float()}, ValueError, "integers", "float32"),
    "no classes": ({"forward_func": lambda x: x.sum(1)}, ValueError, "correct_fn", "[B, K]"),
    "a model in train mode": ({"forward_func": trained(nn.Dropout())}, ValueError, "train mode", "model.eval()"),
    "NaN inputs": ({"inputs": with_(X, nan)}, NonFiniteError, "NaN", "example 1"),
}


@pytest.mark.parametrize("name", SEARCH)
def test_the_search_for_a_parameter_says_so(name):
    options, error, *words = SEARCH[name]
    options = {"arg_min": 0.0, "arg_max": 1.0, "arg_step": 0.1, "forward_func": net()} | options
    how = {"inputs": options.pop("inputs", X), "target": options.pop("target", Y)}
    with pytest.raises(error) as caught:
        MinParamPerturbation(attack=lambda x, size: x + size, arg_name="size", **options).evaluate(**how)
    told(caught.value, words)


def test_an_option_that_no_attack_has():
    with pytest.raises(TypeError, match=r"PGD has no argument 'step'; did you mean 'steps'\?"):
        make("pgd", nn.Linear(2, 2), step=3)

"""AutoAttack: RobustBench's words, the published algorithm's costs, flags, evaluations that go on where they ended."""

import inspect
import math
import pickle
import re
import sys
import warnings

import pytest
import torch
from attack_cases import affine, examples, mlp
from peers import torchattacks
from test_exact_affine import exact, problem
from torch import nn

from robustx import zoo
from robustx.attacks import APGD, AutoAttack, Square, ZeroGradientWarning, checks, make
from robustx.engine import Door
from robustx.perturb import Leave


@pytest.fixture(scope="module")
def robust():
    """The adversarially trained network of the zoo, and some digits."""
    model, data = zoo.load("digits-robust")
    return model, torch.as_tensor(data.x)[:40], torch.as_tensor(data.y)[:40]


@pytest.fixture(scope="module")
def undefended():
    model, data = zoo.load("digits")
    return model, torch.as_tensor(data.x)[:40], torch.as_tensor(data.y)[:40]


def size(moved, x, norm):
    d = (moved.double() - x.double()).flatten(1)
    return torch.linalg.vector_norm(d, {"Linf": math.inf, "L2": 2, "L1": 1}[norm], dim=1)


def right(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


# --- RobustBench's words ----------------------------------------------------------------------------------


def test_called_as_robustbench_calls_it():
    """Names, order and defaults of the original's arguments; what is ours comes after, by keyword."""
    theirs = {"model": inspect.Parameter.empty, "norm": "Linf", "eps": 0.3, "seed": None, "verbose": True}
    theirs |= {"attacks_to_run": (), "version": "standard", "is_tf_model": False, "device": "cuda", "log_path": None}
    ours = inspect.signature(AutoAttack).parameters
    assert {n: p.default for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD} == theirs
    calls = ["x_orig", "y_orig", "bs", "return_labels", "state_path"]
    for method, names in (("run_standard_evaluation", calls), ("run_standard_evaluation_individual", calls[:4])):
        named = inspect.signature(getattr(AutoAttack, method)).parameters
        assert list(named)[1:] == names and named["bs"].default == 250


def test_lines_are_the_originals(robust, capsys, tmp_path):
    model, x, y = robust
    y = y.clone()
    y[:2] = (y[:2] + 1) % 10  # two are wrong before
    log = tmp_path / "log.txt"
    adversary = AutoAttack(model, norm="Linf", eps=0.2, device="cpu", log_path=log, steps=4, flags=False)
    moved, answers = adversary.run_standard_evaluation(x, y, bs=30, return_labels=True)
    said = capsys.readouterr().out
    assert log.read_text() == said
    left = float(right(model, moved, y).double().mean())
    fell = int((right(model, x, y) & ~right(model, moved, y)).sum())
    for pattern in (
        r"using standard version including apgd-ce, apgd-t, fab-t, square\.\n",
        rf"initial accuracy: {float(right(model, x, y).double().mean()):.2%}\n",
        r"apgd-ce - 1/2 - \d+ out of 30 successfully perturbed\n",
        r"apgd-ce - 2/2 - \d+ out of \d successfully perturbed\n",
        r"robust accuracy after APGD-CE: \d\d\.\d\d% \(total time \d+\.\d s\)\n",
        r"square - 1/1 - \d+ out of \d+ successfully perturbed\n",
        rf"robust accuracy after SQUARE: {left:.2%} \(total time \d+\.\d s\)\n",
        r"max Linf perturbation: 0\.20000, nan in tensor: 0, max: 1\.00000, min: 0\.00000\n",
        rf"robust accuracy: {left:.2%}\n$",
    ):
        assert re.search(pattern, said), (pattern, said)
    assert sum(int(n) for n in re.findall(r"(\d+) out of", said)) == fell
    assert torch.equal(answers, model(moved).argmax(1))
    assert torch.equal(
        moved[right(model, moved, y)], x[right(model, moved, y)]
    )  # what resists is handed back as it was
    AutoAttack(model, eps=0.2, verbose=False, steps=1, flags=False).run_standard_evaluation(x[:4], y[:4])
    assert not capsys.readouterr().out


def test_each_attack_by_itself(robust, capsys):
    model, x, y = robust
    adversary = AutoAttack(
        model, "L2", 1.0, version="custom", attacks_to_run=["apgd-ce", "square"], steps=4, device="cpu"
    )
    found = adversary.run_standard_evaluation_individual(x, y)
    said = capsys.readouterr().out
    for name, moved in found.items():
        alone = make(name, model, norm="L2", eps=1.0, bounds=(0, 1), steps={"square": 200}.get(name, 4)).run(x, y)
        assert (right(model, moved, y) == ~alone.success).all()
        assert f"robust accuracy by {name.upper()}: {float((~alone.success).double().mean()):.2%}" in said
    labelled = adversary.run_standard_evaluation_individual(x, y, return_labels=True)
    assert all(torch.equal(m, found[n]) and torch.equal(a, model(m).argmax(1)) for n, (m, a) in labelled.items())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"is_tf_model": True}, "PyTorch"),
        ({"version": "fast"}, "'standard', 'plus', 'rand', 'custom'"),
        ({"attacks_to_run": ["square"]}, "version='custom'"),
        ({"attacks_to_run": ["pgd"], "version": "custom"}, "'pgd'"),
        ({"norm": "L0"}, "Linf, L2, L1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_says_what_is_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        AutoAttack(affine(18, 4), **options)


def test_attacks_may_be_chosen_and_changed_later(robust):
    """As users of the original do: names in attacks_to_run, settings on the attacks."""
    model, x, y = robust
    adversary = AutoAttack(model, eps=0.2, version="custom", verbose=False, steps=3)
    adversary.attacks_to_run = ["apgd-dlr"]
    adversary.parts["apgd-dlr"].restarts = 2
    alone = APGD(model, "dlr", bounds=(0, 1), eps=0.2, steps=3, restarts=2).run(x, y)
    moved = adversary.run_standard_evaluation(x, y)
    assert (right(model, moved, y) == ~alone.success).all()
    adversary.attacks_to_run = ["apgd"]
    with pytest.raises(ValueError, match="'apgd'"):
        adversary.run_standard_evaluation(x, y)


# --- what it finds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("Linf", 0.2), ("L2", 1.0), ("L1", 2.0)])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_both_ways_of_asking_find_the_same(robust, norm, eps, version):
    """And all of it is inside ball and box in float64, and wrong in a fresh pass."""
    model, x, y = robust
    x, y = x[:12], y[:12]
    adversary = AutoAttack(model, norm, eps, version=version, verbose=False, steps=4, seed=3, flags=False)
    moved, result = adversary.run_standard_evaluation(x, y, bs=5), adversary.run(x, y)
    fell = ~right(model, moved, y)
    assert fell.tolist() == result.success.tolist() and fell.any() and not fell.all()
    torch.testing.assert_close(moved[fell], result.adversarial[fell], rtol=0, atol=1e-5)
    assert (size(moved, x, norm) <= eps * (1 + 1e-7)).all() and ((moved >= 0) & (moved <= 1)).all()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [2, 5])
def test_robust_accuracy_is_the_exact_one(norm, classes):
    model, x, y = problem(classes)
    truth = torch.as_tensor(exact(model, x, y, norm))
    eps = float(truth.median()) * 1.0001
    adversary = AutoAttack(model, norm, eps, verbose=False, steps=40, flags=False)
    adversary.parts["square"].steps = 40
    result = adversary.run(x, y)
    robust = int((truth > eps).sum())
    assert robust <= int((~result.success).sum()) <= robust + 1


def test_a_budget_for_each_example(robust):
    model, x, y = robust
    eps = torch.linspace(0, 0.4, len(x))
    moved = AutoAttack(model, "Linf", eps, verbose=False, steps=4, flags=False).run_standard_evaluation(x, y, bs=7)
    assert (size(moved, x, "Linf") <= eps.double()).all() and right(model, moved, y)[:4].any()
    assert not right(model, moved, y)[-4:].any()


def test_targets_and_goals(robust):
    """Rivals are for untargeted attacks; towards a class all parts climb as far as they can."""
    model, x, y = robust
    goal = (y + 1) % 10
    result = make("autoattack", model, eps=0.4, steps=5, flags=False).run(x, goal, targeted=True)
    assert right(model, result.adversarial[result.success], goal[result.success]).all()
    assert result.success.sum() > len(x) / 2


# --- what it costs ----------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts rows from the outside, forward and backward."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x):
        self.rows += len(x)
        if x.requires_grad:
            x.register_hook(self.back)
        return self.model(x)

    def back(self, g):
        self.rows += len(g)


def published(model, x, y, found, steps, norm):
    """Rows that the published algorithm takes for the same falls: all attacks run to the end for what stands before.

    For each: what the evaluation asks first (and for flags), the attack, the evaluation's own look at what came.
    """
    phases, restarts, targets = (3, 5, 5) if norm == "L1" else (1, 1, 9)
    climb = 2 * (steps + phases)  # the first point of each climb, too, has a gradient
    cost = {
        "apgd-ce": 1 + climb + 1,
        "apgd-t": targets * (1 + climb) + 1,
        "fab-t": 9 * (2 * steps + 1 + steps) + 1,
        "square": 1 + 50 * steps + 1,
    }
    total, standing = len(x) + 7 * len(x), right(model, x, y)
    for name, each in cost.items():
        total += each * int(standing.sum())
        standing = standing & right(model, found[name], y)
        if name == "apgd-ce":
            total += (restarts - 1) * climb * int(standing.sum())
    return total


@pytest.mark.parametrize(
    "which, norm, eps, factor",
    [
        ("undefended", "Linf", 0.3, 2),
        ("undefended", "L1", 6.0, 2),
        ("robust", "Linf", 0.1, 1),
        ("robust", "L1", 0.8, 1),
    ],
    ids=str,
)
def test_fewer_rows_than_published(request, which, norm, eps, factor):
    """At least half of them on a model without a defence, and never more on a robust one; counted from outside."""
    model, x, y = request.getfixturevalue(which)
    x, y, steps = x[:12], y[:12], 10
    counting, left, found = Counting(model), None, {}
    adversary = AutoAttack(counting, norm, eps, verbose=False, steps=steps)
    adversary.run_standard_evaluation(x, y)
    ours, told = counting.rows, AutoAttack(model, norm, eps, verbose=False, steps=steps, flags=False)
    for name in told.attacks_to_run:
        one = AutoAttack(model, norm, eps, verbose=False, steps=steps, flags=False, version="custom")
        one.attacks_to_run = list(told.attacks_to_run[: told.attacks_to_run.index(name) + 1])
        found[name] = left = one.run_standard_evaluation(x, y)
    assert right(model, left, y).any() == (which == "robust")
    assert ours * factor <= published(model, x, y, found, steps, norm)
    if (
        which == "robust" and norm == "Linf"
    ):  # the same attacks of torchattacks, each with as many steps, on what stands
        peer = Counting(model)
        attacks = [
            torchattacks.APGD(peer, eps=eps, steps=steps, loss="ce", seed=0),
            torchattacks.APGDT(peer, eps=eps, steps=steps, n_classes=10, seed=0),
            torchattacks.FAB(peer, eps=eps, steps=steps, multi_targeted=True, n_classes=10, seed=0),
            torchattacks.Square(peer, eps=eps, n_queries=50 * steps, seed=0),
        ]
        moved = torchattacks.MultiAttack(attacks)(x, y)
        assert ours <= peer.rows and right(model, left, y).sum() <= right(model, moved, y).sum()


def test_each_attack_sees_only_what_still_stands(robust):
    model, x, y = robust
    result = make("autoattack", model, eps=0.2, steps=4, flags=False).run(x, y)
    ce = make("apgd-ce", model, eps=0.2, steps=4, bounds=(0, 1)).run(x, y)
    assert ce.success.any() and (result.success | ~ce.success).all()
    assert torch.equal(result.adversarial[ce.success], ce.adversarial[ce.success])
    assert [by == "apgd-ce" for by in result.by] == (ce.success & (ce.distance > 0)).tolist()
    assert [by == "" for by in result.by] == (~result.success | (result.distance == 0)).tolist()
    assert (result.forwards == ce.forwards)[ce.success].all() and (result.forwards > 100)[~result.success].all()


# --- evaluations that go on where they ended --------------------------------------------------------------


class Failing(nn.Module):
    """The lights go out after so many passes."""

    def __init__(self, model, passes):
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, x):
        self.passes -= 1
        if self.passes < 0:
            raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.parametrize("passes", [30, 150])
def test_goes_on_where_it_ended(robust, tmp_path, passes):
    model, x, y = robust
    path = tmp_path / "state.safetensors"
    options = {"eps": 0.2, "verbose": False, "steps": 3, "flags": False}
    whole = AutoAttack(Failing(model, 10**6), **options).run_standard_evaluation(x, y, bs=16)
    model = Failing(model, passes)
    with pytest.raises(KeyboardInterrupt):
        AutoAttack(model, **options).run_standard_evaluation(x, y, bs=16, state_path=path)
    assert [p.name for p in tmp_path.iterdir()] in ([], [path.name])
    model.passes = 10**6
    again = AutoAttack(model, **options).run_standard_evaluation(x, y, bs=16, state_path=path)
    assert torch.equal(again, whole)
    model.passes = 1  # all is done: one look for labels at most
    assert torch.equal(AutoAttack(model, **options).run_standard_evaluation(x, y, state_path=path), whole)
    for other in ({"eps": 0.1}, {"steps": 5}, {"seed": 1}):
        with pytest.raises(ValueError, match="another evaluation"):
            AutoAttack(model, **options | other).run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(ValueError, match="another evaluation"):
        AutoAttack(model, **options).run_standard_evaluation(x, (y + 1) % 10, state_path=path)


def test_no_pass_has_more_rows_than_asked_for():
    """Neither those of the attacks nor the looks before and behind them."""
    net, sizes = mlp(dtype=torch.float32), []
    x, y = examples(net, dtype=torch.float32)
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    adversary = AutoAttack(net, eps=0.03, verbose=False, steps=2, batch_size=3)
    adversary.run_standard_evaluation(x, y, bs=5, return_labels=True)
    assert max(sizes) == 3


def test_does_not_go_on_with_another_model(tmp_path):
    """Nor with budgets that differ in digits that are not printed; functions have the weights of what they call."""
    net, path = mlp(dtype=torch.float32), tmp_path / "state.safetensors"
    x, y = examples(net, dtype=torch.float32)
    eps = torch.full((len(x),), 0.03)

    def evaluate(eps):
        adversary = AutoAttack(lambda x: net(x), eps=eps, verbose=False, steps=2, flags=False)
        return adversary.run_standard_evaluation(x, y, state_path=path)

    done = evaluate(eps)
    assert torch.equal(evaluate(eps), done)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(eps.index_fill(0, torch.tensor([3]), 0.030001))
    with torch.no_grad():
        net[1].bias[0] += 1e-6
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(eps)


def test_no_examples(robust):
    model, x, y = robust
    assert AutoAttack(model, verbose=False).run_standard_evaluation(x[:0], y[:0]).shape == x[:0].shape


# --- flags ------------------------------------------------------------------------------------------------


def test_attacks_one_by_one_are_flagged_for_all_of_them():
    model = mlp(3, dtype=torch.float32)
    x, y = examples(model, dtype=torch.float32)
    with pytest.warns(checks.FewClassesWarning, match="apgd-t"):
        AutoAttack(model, eps=0.03, verbose=False, steps=2).run_standard_evaluation_individual(x, y)


def flagged(model, eps=0.03, **options):
    """The kinds of warnings that an evaluation gives, either way."""
    x = torch.rand(12, 2, 3, 3)
    y = model(x).argmax(1)
    kinds = []
    for run in ("run", "run_standard_evaluation"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(AutoAttack(model, eps=eps, verbose=False, steps=3, **options), run)(x, y)
        kinds.append({w.category for w in caught})
    assert kinds[0] == kinds[1]
    return kinds[0]


class Optimising(nn.Module):
    """Moves its input downhill before it answers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            g = torch.autograd.grad(self.net(z).logsumexp(1).sum(), z)[0]
        return self.net(x - 0.01 * g)


class Steps(nn.Module):
    """Rounds, with a gradient of zero."""

    def forward(self, x):
        return (x * 8).round() / 8


def test_a_plain_model_is_not_flagged():
    assert flagged(mlp(5, torch.float32)) == set()


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_random_models(scale):
    net = mlp(5, torch.float32)
    model = lambda x: net(x + scale * torch.randn_like(x))
    assert checks.RandomizedWarning in flagged(model)
    assert checks.RandomizedWarning not in flagged(model, version="rand")


def test_probabilities():
    assert flagged(nn.Sequential(mlp(5, torch.float32), nn.Softmax(1))) == {checks.ProbabilitiesWarning}


def test_gradients_within_a_pass():
    before = sys.gettrace()
    assert flagged(Optimising(mlp(5, torch.float32))) == {checks.DynamicWarning}
    assert sys.gettrace() is before


def test_zero_gradients():
    """And values alone find what they hide."""
    model = nn.Sequential(Steps(), mlp(5, torch.float32))
    assert ZeroGradientWarning in flagged(model, eps=0.001)
    assert {ZeroGradientWarning, checks.SquareWarning} <= flagged(model, eps=0.2)


def test_a_saturated_cross_entropy_alone_is_no_flag():
    """The others are there to make up for it; where there are none, it is told of."""
    net = mlp(5, torch.float32)
    model = lambda x: net(x) * 1e5
    assert flagged(model) == set()
    alone = flagged(model, version="custom", attacks_to_run=["apgd-ce"])
    assert alone == {ZeroGradientWarning}


@pytest.mark.parametrize("classes, named", [(2, "apgd-t"), (3, "apgd-t"), (4, None)])
def test_few_classes(classes, named):
    kinds = flagged(mlp(classes, torch.float32, seed=3))
    assert kinds == ({checks.FewClassesWarning} if named else set())


def test_flags_can_be_left_out():
    assert flagged(nn.Sequential(mlp(5, torch.float32), nn.Softmax(1)), flags=False) == set()


def test_parts_are_the_published_ones():
    """Restarts, rivals, passes and queries of each version, as the papers and the authors' code have them."""
    model = affine(18, 10)
    plus, sparse, rand = (
        AutoAttack(model, verbose=False, **o) for o in ({"version": "plus"}, {"norm": "L1"}, {"version": "rand"})
    )
    usual = AutoAttack(model, verbose=False)
    assert usual.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert plus.attacks_to_run == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert rand.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    assert all(a.parts[n].steps == 100 for a in (usual, plus, rand) for n in a.parts if n != "square")
    assert isinstance(usual.parts["square"], Square) and usual.parts["square"].steps == 5000
    assert [a.parts["apgd-ce"].restarts for a in (usual, plus, sparse, rand)] == [1, 5, 5, 1]
    assert [a.parts["apgd-t"].targets for a in (usual, plus, sparse)] == [9, 9, 5]
    assert [a.parts["fab-t"].targets for a in (usual, plus, sparse)] == [9, 9, 9]
    assert plus.parts["fab"].restarts == 5 and rand.parts["apgd-ce"].eot_iter == 20
    assert sparse.parts["apgd-ce"].large_eps and not usual.parts["apgd-ce"].large_eps


def test_any_callable_and_any_integers():
    """A model without a module around it, labels in int32; what is wrong already comes back as it was."""
    net = mlp()
    x, y = examples(net)
    moved = AutoAttack(lambda t: net(t), eps=0.1, verbose=False, steps=3).run_standard_evaluation(x, y.to(torch.int32))
    assert torch.equal(moved[-2:], x[-2:])


def test_flags_can_be_read():
    """The same signs as data: what was seen, what to try, how much of what is allowed."""
    net = mlp(3, torch.float32)
    x = torch.rand(4, 2, 3, 3)
    f = Door.open(x).probe(lambda t: (net(t) + 0.1 * torch.randn(len(t), 3)).softmax(1), Leave(torch.zeros(4).long()))
    found = checks.signs(f, f.point, f.everyone, ["apgd-t"])
    assert [type(s) for s in found] == [checks.RandomizedWarning, checks.ProbabilitiesWarning, checks.FewClassesWarning]
    for sign in found:
        assert sign.value > sign.threshold and str(sign) == f"{sign.seen}; {sign.mend}"
        assert str(pickle.loads(pickle.dumps(sign))) == str(sign)
    assert [s.value for s in checks.led_further(10, 9, 100)] == [0.01] and not checks.led_further(1000, 998, 1000)

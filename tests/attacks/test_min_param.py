"""MinParamPerturbation: for each example what Captum finds when it is asked about that one alone."""

import inspect
import math

import captum.robust
import pytest
import torch
from attack_cases import examples, mlp
from torch.testing import assert_close

from robustx.attacks import FGSM, PGD, MinParamPerturbation


@pytest.fixture
def case():
    model = mlp()
    return model, *examples(model, count=8, wrong=1)


class Calls:
    """Counts how often a function is called, and with how many rows in all."""

    def __init__(self, function):
        self.function, self.calls, self.rows = function, 0, 0

    def __call__(self, x, *args, **kwargs):
        self.calls += 1
        self.rows += len(x) if isinstance(x, torch.Tensor) else 1
        return self.function(x, *args, **kwargs)


def one_by_one(make, x, y, row_kwargs=None, **options):
    """Captum's answers, example by example: values with NaN for None, and the perturbed inputs."""
    found, values = [], []
    for i in range(len(x)):
        kwargs = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in (row_kwargs or {}).items()}
        moved, value = make().evaluate(x[i : i + 1], target=y[i : i + 1], attack_kwargs=kwargs or None, **options)
        assert (moved is None) == (value is None)
        found.append(x[i : i + 1] if moved is None else moved)
        values.append(math.nan if value is None else float(value))
    return torch.cat(found), torch.tensor(values, dtype=torch.float64)


def assert_as_captum(ours, theirs):
    assert_close(ours[1], theirs[1], rtol=0, atol=1e-9, equal_nan=True)
    assert_close(ours[0], theirs[0], rtol=0, atol=1e-9)


def away(inputs, size, target):
    return FGSM(mlp(), lower_bound=0.0, upper_bound=1.0).perturb(inputs, size, target)


def shift(inputs, size):
    """Pays no heed to classes, so that some examples never fall."""
    return inputs + size


@pytest.mark.parametrize("method", ["__init__", "evaluate"])
def test_signature_is_captums(method):
    ours, theirs = (
        inspect.signature(getattr(m, method)).parameters
        for m in (MinParamPerturbation, captum.robust.MinParamPerturbation)
    )
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("mode", ["linear", "binary", "Binary"])
@pytest.mark.parametrize(
    "grid", [(0.0, 0.25, 1 / 128), (0.0, 0.1, 0.01), (0.02, 0.1, 0.03), (0, 1, 0.3), (0.0, 0.01, 0.004)]
)
def test_one_search_for_each_example(case, mode, grid):
    model, x, y = case
    kwargs = {"target": y}
    theirs = one_by_one(lambda: captum.robust.MinParamPerturbation(model, away, "size", *grid, mode=mode), x, y, kwargs)
    search = MinParamPerturbation(model, away, "size", *grid, mode=mode)
    assert_as_captum(search.evaluate(x, target=y, attack_kwargs=kwargs), theirs)
    assert theirs[1][-1] == grid[0]  # the one that is wrong already
    if grid == (0.0, 0.1, 0.01):
        assert 1 < theirs[1].isnan().sum() < 7


def test_linear_does_not_need_monotony(case):
    """The first value that fools, though larger ones do not."""
    model, x, y = case

    def back_and_forth(inputs, size, target):
        return away(inputs, size if round(size * 100) % 3 == 0 else 0.0, target)

    theirs = one_by_one(
        lambda: captum.robust.MinParamPerturbation(model, back_and_forth, "size", 0.0, 0.2, 0.01), x, y, {"target": y}
    )
    ours = MinParamPerturbation(model, back_and_forth, "size", 0.0, 0.2, 0.01)
    assert_as_captum(ours.evaluate(x, target=y, attack_kwargs={"target": y}), theirs)


@pytest.mark.parametrize("mode", ["linear", "binary"])
def test_one_example_is_answered_as_by_captum(case, mode):
    model, x, y = case
    for low, high in ((0.0, 0.2), (0.0, 0.002)):
        for i in (0, 7):
            options = {"target": y[i], "attack_kwargs": {"target": y[i]}}
            ours, theirs = (
                m(model, away, "size", low, high, 0.0005, mode).evaluate(x[i : i + 1], **options)
                for m in (MinParamPerturbation, captum.robust.MinParamPerturbation)
            )
            assert (ours[0] is None) == (theirs[0] is None)
            if theirs[0] is not None:
                assert isinstance(ours[1], float) and ours[1] == pytest.approx(theirs[1])
                assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("mode", ["linear", "binary"])
def test_an_attack_may_stand_for_its_perturb(case, mode):
    model, x, y = case
    for attack, name, more in (
        (FGSM(model), "epsilon", {}),
        (PGD(model), "radius", {"step_size": 0.02, "step_num": 5}),
    ):
        values = [
            MinParamPerturbation(model, a, name, 0.0, 0.2, 0.02, mode).evaluate(
                x, target=y, attack_kwargs={"target": y, **more}
            )[1]
            for a in (attack, attack.perturb)
        ]
        assert_close(*values, equal_nan=True)
        assert len(values[0].unique()) > 3


@pytest.mark.parametrize("mode", ["linear", "binary"])
@pytest.mark.parametrize("before", [False, True])
def test_preprocessing(case, mode, before):
    """Attacked before it or after it; what comes back is what the attack made."""
    model, x, y = case
    raw = x * 255

    def attack(inputs, size):
        return shift(inputs, size * (255 if before else 1))

    options = {"preproc_fn": lambda t: t / 255, "apply_before_preproc": before, "mode": mode}
    ours, theirs = (
        make(model, attack, "size", 0.0, 0.5, 0.05, **options)
        for make in (MinParamPerturbation, captum.robust.MinParamPerturbation)
    )
    values = ours.evaluate(raw, target=y)
    found = one_by_one(lambda: theirs, raw, y)
    told = ~found[1].isnan()
    assert 1 < told.sum() < 8
    assert_as_captum((values[0][told], values[1]), (found[0][told], found[1]))
    assert_close(values[0][~told], (raw if before else x)[~told], rtol=0, atol=0)  # the others: what was attacked


@pytest.mark.parametrize("before", [False, True])
def test_raw_inputs(case, before):
    """One example that is no tensor, such as a file's name."""
    model, x, y = case
    names = {"first": x[:1]}

    def attack(inputs, size):
        return (inputs[0], size) if before else inputs + size

    def read(inputs):
        return names[inputs[0]] + inputs[1] if isinstance(inputs, tuple) else names[inputs]

    given = ("first", 0.0) if before else "first"
    ours, theirs = (
        make(model, attack, "size", 0.0, 1.0, 0.05, "linear", 1, read, before).evaluate(given, target=y[:1])
        for make in (MinParamPerturbation, captum.robust.MinParamPerturbation)
    )
    assert ours[1] == pytest.approx(theirs[1]) and ours[1] > 0
    if before:
        assert ours[0] == theirs[0]
    else:
        assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("mode", ["linear", "binary"])
@pytest.mark.parametrize("attempts", [1, 3, 4])
def test_attempts(case, mode, attempts):
    """An attack that works at its third try only, each example with tries of its own."""
    model, x, y = case

    def flaky(tries):
        def attack(inputs, size, target, which):
            reached = []
            for w in which.tolist():
                tries[w, size] = tries.get((w, size), 0) + 1
                reached.append(tries[w, size] == 3)
            full = away(inputs, size, target)
            return torch.where(torch.tensor(reached)[:, None, None, None], full, inputs)

        return attack

    kwargs, options = {"target": y, "which": torch.arange(len(x))}, (1 / 64, 0.25, 1 / 64, mode, attempts)
    theirs = one_by_one(lambda: captum.robust.MinParamPerturbation(model, flaky({}), "size", *options), x, y, kwargs)
    ours = MinParamPerturbation(model, flaky({}), "size", *options).evaluate(x, target=y, attack_kwargs=kwargs)
    assert_as_captum(ours, theirs)
    assert theirs[1][:-1].isnan().all() == (attempts < 3)


FORMS = {
    "one for the batch": lambda right: bool(right.all()),
    "a tensor for the batch": lambda right: right.all(),
    "one per row": lambda right: right,
    "a column": lambda right: right[:, None],
    "a list": lambda right: right.tolist(),
    "an array": lambda right: right.numpy(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["linear", "binary"])
def test_a_judge_of_ones_own(case, form, mode):
    """Right if the true logit leads by a margin, which may be each example's own."""
    model, x, y = case
    lead = torch.linspace(0, 0.2, len(x), dtype=torch.float64)

    def judge(out, target, lead):
        own = out.gather(1, target[:, None]).squeeze(1)
        return FORMS[form](own - out.scatter(1, target[:, None], -9e9).amax(1) > lead)

    kwargs = {"target": y}
    search = MinParamPerturbation(model, away, "size", 0.0, 0.2, 0.01, mode, correct_fn=judge)
    ours = search.evaluate(x, target=y, attack_kwargs=kwargs, correct_fn_kwargs={"lead": lead})
    plain = MinParamPerturbation(model, away, "size", 0.0, 0.2, 0.01, mode).evaluate(x, target=y, attack_kwargs=kwargs)
    assert (ours[1].nan_to_num(9) <= plain[1].nan_to_num(9)).all() and not torch.equal(ours[1], plain[1])
    for i in range(len(x)):
        theirs = captum.robust.MinParamPerturbation(
            model,
            away,
            "size",
            0.0,
            0.2,
            0.01,
            mode,
            correct_fn=lambda out, target, lead: bool(torch.as_tensor(judge(out, target, lead)).all()),
        ).evaluate(
            x[i : i + 1],
            target=y[i : i + 1],
            attack_kwargs={"target": y[i : i + 1]},
            correct_fn_kwargs={"lead": lead[i : i + 1]},
        )
        assert ours[1][i].item() == pytest.approx(math.nan if theirs[1] is None else theirs[1], nan_ok=True)


@pytest.mark.parametrize("form", ["one number for each example", "a map for each example"])
def test_a_judge_sees_what_the_model_returns(case, form):
    _, x, _ = case

    def whole(x):
        mean = x.mean((1, 2, 3))
        return mean if form.startswith("one") else mean[:, None, None] * torch.ones(2, 3)

    def largest(out):
        shapes.append(out.shape[1:])
        return out.reshape(len(out), -1).amax(1)

    shapes = []
    limit = largest(whole(x + 0.5)).median()
    search = MinParamPerturbation(whole, shift, "size", 0.0, 1.0, 0.1, correct_fn=lambda out: largest(out) < limit)
    assert search.evaluate(x)[1].unique().numel() > 1 and len(shapes) > 2 and len(set(shapes)) == 1


@pytest.mark.parametrize("target", ["tensor", "list", "int"])
def test_forms_of_targets(case, target):
    model, x, y = case
    y = torch.full_like(y, 1) if target == "int" else y
    given = {"tensor": y.to(torch.uint8), "list": y.tolist(), "int": 1}[target]
    search = MinParamPerturbation(model, shift, "size", 0.0, 0.5, 0.05)
    assert_close(search.evaluate(x, target=given)[1], search.evaluate(x, target=y)[1], equal_nan=True)


def test_tuples_and_further_arguments(case):
    """Each example's own argument follows it; the parts are searched as if they were one tensor."""
    model, x, y = case
    scale = torch.linspace(0.5, 2, len(x), dtype=torch.float64)[:, None]

    def two(left, right, bias):
        return model(torch.cat([left, right], 1)) + bias * torch.tensor([0.0, 0.1, 0.0, 0.0])

    def one(x, bias):
        return model(x) + bias * torch.tensor([0.0, 0.1, 0.0, 0.0])

    y = one(x, scale).argmax(1)
    whole = MinParamPerturbation(one, shift, "size", 0.0, 0.5, 0.02).evaluate(x, scale, y)
    split = MinParamPerturbation(two, lambda t, size: tuple(v + size for v in t), "size", 0.0, 0.5, 0.02)
    parts, values = split.evaluate((x[:, :1], x[:, 1:]), scale, y)
    assert_close(values, whole[1], rtol=0, atol=0, equal_nan=True)
    assert isinstance(parts, tuple)
    assert_close(torch.cat(parts, 1), whole[0], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["linear", "binary"])
def test_fewer_calls_than_captum(case, mode):
    """As many rows, but together: at most one call of model and attack for each value."""
    model, x, y = case
    theirs, ours = Calls(model), Calls(model)
    attack = Calls(shift)
    one_by_one(lambda: captum.robust.MinParamPerturbation(theirs, shift, "size", 0.0, 0.5, 1 / 64, mode), x, y)
    search = MinParamPerturbation(ours, attack, "size", 0.0, 0.5, 1 / 64, mode)
    search.evaluate(x, target=y)
    assert attack.calls <= len(search.values) == 32
    assert attack.rows == ours.rows <= theirs.rows
    assert ours.calls < theirs.calls / 3 or (mode == "binary" and ours.calls < theirs.calls)


def test_rows_in_one_pass(case):
    model, x, y = case
    ours = Calls(model)
    values = MinParamPerturbation(ours, shift, "size", 0.0, 0.5, 1 / 64).evaluate(
        x, target=y, perturbations_per_eval=1
    )[1]
    usual = MinParamPerturbation(model, shift, "size", 0.0, 0.5, 1 / 64).evaluate(x, target=y)[1]
    assert_close(values, usual, equal_nan=True)
    assert ours.rows / ours.calls <= len(x)


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_no_examples(case, form):
    model, x, y = case
    given = x[:0] if form == "tensor" else (x[:0, :1], x[:0, 1:])
    moved, values = MinParamPerturbation(model, shift, "size", 0.0, 0.5, 0.1).evaluate(given, target=y[:0])
    assert values.shape == (0,)
    assert moved.shape == (0, 2, 3, 3) if form == "tensor" else [t.shape[0] for t in moved] == [0, 0]


def test_an_attacks_own_settings_can_be_searched_too():
    """Any scalar argument: of perturb, or of the constructor; one call a round where it may differ by example."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 3), torch.rand(40, 6)
    y = model(x).argmax(1)
    by_call = MinParamPerturbation(model, FGSM(model), "epsilon", 0.0, 1.0, 0.01, mode="binary")
    moved, values = by_call.evaluate(x, target=y, attack_kwargs={"target": y})
    by_setting = MinParamPerturbation(model, FGSM(model, eps=1.0), "eps", 0.0, 1.0, 0.01, mode="binary")
    same, again = by_setting.evaluate(x, target=y, attack_kwargs={"y": y})
    torch.testing.assert_close(again, values, equal_nan=True)
    calls = []
    counted = FGSM(lambda z: (calls.append(len(z)), model(z))[1])
    MinParamPerturbation(model, counted, "epsilon", 0.0, 1.0, 0.01, mode="binary").evaluate(
        x, target=y, attack_kwargs={"target": y}
    )
    plain = FGSM(model)
    alone = MinParamPerturbation(
        model, lambda z, epsilon, target: plain.perturb(z, epsilon, target), "epsilon", 0, 1, 0.01, "binary"
    )
    torch.testing.assert_close(alone.evaluate(x, target=y, attack_kwargs={"target": y})[1], values, equal_nan=True)
    assert sum(calls) <= 7 * 40 * 3  # seven rounds halve a hundred values
    with pytest.raises(ValueError, match="'strength' is no argument of FGSM"):
        MinParamPerturbation(model, FGSM(model), "strength", 0, 1, 0.1)
    with pytest.raises(TypeError, match="attack must be callable, got int"):
        MinParamPerturbation(model, 3, "epsilon", 0, 1, 0.1)

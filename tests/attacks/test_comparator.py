"""AttackComparator: Captum's results, and what Captum gets wrong."""

import inspect
from typing import NamedTuple

import captum.robust
import pytest
import torch
from attack_cases import examples, mlp
from torch.testing import assert_close

from robustx import attacks
from robustx.attacks import FGSM, PGD, AttackComparator

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")  # Captum's


class Both(NamedTuple):
    right: torch.Tensor
    lead: torch.Tensor


def right(out, target):
    return (out.argmax(1) == target).float()


def lead(out, target):
    own = out.gather(1, target[:, None]).squeeze(1)
    return own - out.scatter(1, target[:, None], -9e9).amax(1)


METRICS = {
    "one for each example": right,
    "one for the batch": lambda out, target: right(out, target).mean().item(),
    "a tensor for the batch": lambda out, target: lead(out, target).mean(0, keepdim=True),
    "a tuple": lambda out, target: (right(out, target), lead(out, target).mean().item()),
    "a named tuple": lambda out, target: Both(right(out, target), lead(out, target)),
}


def shifting():
    """A perturbation that differs from attempt to attempt, in the same way for both libraries."""
    calls = []

    def shift(x, size=0.1):
        calls.append(1)
        return x + size * len(calls) / 4

    return shift


def fill(comparator, model, room):
    comparator.add_attack(shifting(), "shift", num_attempts=3)
    comparator.add_attack(shifting(), "after", apply_before_preproc=False, attack_kwargs={"size": 0.4})
    comparator.add_attack(
        room.FGSM(model, lower_bound=0.0, upper_bound=1.0, **loss(room)),
        attack_kwargs={"epsilon": 0.1},
        additional_attack_arg_names=["target"],
    )
    return comparator


def loss(room):
    return {"loss_func": torch.nn.CrossEntropyLoss(reduction="none")} if room is captum.robust else {}


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)  # Captum's own order is that of a set: another in each process
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert_equal(ours[key], value)
        elif isinstance(value, tuple):
            assert isinstance(ours[key], tuple) and getattr(value, "_fields", 0) == getattr(ours[key], "_fields", 0)
            assert_close(tuple(ours[key]), tuple(value), check_dtype=False)
        else:
            assert_close(ours[key], value, check_dtype=False)


@pytest.fixture
def case():
    model = mlp()
    return model, *examples(model)


@pytest.mark.parametrize("method", ["__init__", "add_attack", "evaluate", "summary", "reset"])
def test_signatures_are_captums(method):
    ours, theirs = (
        inspect.signature(getattr(c, method)).parameters for c in (AttackComparator, captum.robust.AttackComparator)
    )
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("together", [1, 2, 4, 9])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_results_are_captums(case, metric, together, preprocessed):
    model, x, y = case
    preproc = (lambda t: t.sqrt()) if preprocessed else None
    results = []
    for room in (captum.robust, attacks):
        compare = fill(room.AttackComparator(model, METRICS[metric], preproc), model, room)
        first = compare.evaluate(x, None, together, target=y)
        second = compare.evaluate(x.flip(0), None, together, target=y.flip(0))
        results.append((first, second, compare.summary()))
        compare.reset()
        assert compare.summary() == {}
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_equal(ours, theirs)


def test_further_arguments_follow_the_examples(case):
    net, x, y = case
    shift = torch.randn(len(x), 4, dtype=torch.float64)

    def model(t, shift, scale):
        assert len(t) == len(shift)
        return scale * (net(t) + shift)

    results = []
    for compare in (captum.robust.AttackComparator(model, right), AttackComparator(model, right)):
        compare.add_attack(shifting(), "shift", num_attempts=4)
        results.append([compare.evaluate(x, (shift, 2.0), n, target=y) for n in (1, 3)])
    for theirs, ours in zip(*results, strict=True):
        assert_equal(ours, theirs)


def test_the_model_is_asked_together(case):
    model, x, y = case
    calls = []
    compare = AttackComparator(lambda t: (calls.append(len(t)), model(t))[1], right)
    compare.add_attack(shifting(), "shift", num_attempts=5)
    compare.evaluate(x, perturbations_per_eval=4, target=y)
    assert calls == [4 * len(x), 2 * len(x)]


# --- what Captum gets wrong -------------------------------------------------------------------------------


def test_the_summary_is_the_mean_over_examples(case):
    """Captum's is that over batches: one example in the last weighs as much as eleven in the first."""
    model, x, y = case
    compare = AttackComparator(model, right)
    compare.add_attack(shifting(), "shift")
    for part in (slice(0, 11), slice(11, 12)):
        compare.evaluate(x[part], target=y[part])
    assert_close(compare.summary()["Original"]["mean"], right(model(x), y).mean())


def test_several_inputs_are_the_models_arguments(case):
    """As everywhere else in Captum; its comparator hands the model one tuple."""
    net, x, y = case
    two = lambda left, right: net(torch.cat([left, right], 1))
    compare = AttackComparator(two, right)
    compare.add_attack(FGSM(two, bounds=(0, 1)), "FGSM", 1, True, {"epsilon": 0.1}, ["target"])
    for together in (1, 2):
        result = compare.evaluate((x[:, :1], x[:, 1:]), perturbations_per_eval=together, target=y)
        moved = FGSM(net, bounds=(0, 1)).perturb(x, 0.1, y)
        assert_close(result["Original"], right(net(x), y))
        assert_close(result["FGSM"]["mean"], right(net(moved), y))


def test_attempts_of_attacks_draw_anew(case):
    """And any attack will do, by its own arguments."""
    model, x, y = case
    seen = []
    compare = AttackComparator(lambda t: (seen.append(t), model(t))[1], lambda out, y: lead(out, y))
    attack = PGD(model, bounds=(0, 1), eps=0.3, steps=1, step_size=0.0, random_start=True, seed=5)
    compare.add_attack(attack, num_attempts=3, additional_attack_arg_names=["y"])
    result = compare.evaluate(x, y=y)["PGD"]
    assert attack.seed == 5 and torch.equal(seen[1], attack(x, y))
    assert (result["min"] < result["mean"]).any() and not torch.equal(seen[1], seen[2])


def test_booleans_and_gradients_are_no_trouble(case):
    model, x, y = case
    compare = AttackComparator(model, lambda out, target: out.argmax(1) == target)
    compare.add_attack(shifting(), num_attempts=2)
    result = compare.evaluate(x.requires_grad_(), target=y)
    assert_close(result["Original"], right(model(x), y))
    assert not result["shift"]["mean"].requires_grad
    assert set(compare.summary()) == {"Original", "shift Mean Attempt", "shift Min Attempt", "shift Max Attempt"}


def test_raw_inputs(case):
    """Words, say: one example at a time, through the preprocessing."""
    compare = AttackComparator(
        lambda t: t.sum(1), lambda out: out, lambda words: torch.tensor([[len(w) for w in words]])
    )
    compare.add_attack(lambda words: [w[::2] for w in words], "drop letters")
    assert compare.evaluate(["some", "words"])["Original"].item() == 9
    assert compare.summary()["drop letters"]["mean"].item() == 5


def test_what_it_refuses(case):
    model, x, y = case
    compare = fill(AttackComparator(model, right), model, attacks)
    with pytest.raises(RuntimeError, match="'FGSM' already"):
        compare.add_attack(FGSM(model))
    with pytest.raises(RuntimeError, match="'Original' already"):
        compare.add_attack(FGSM(model), "Original")
    with pytest.raises(ValueError, match="num_attempts must be a whole number of at least 1, got 0"):
        compare.add_attack(FGSM(model), "other", 0)
    with pytest.raises(ValueError, match="perturbations_per_eval must be a whole number"):
        compare.evaluate(x, perturbations_per_eval=0, target=y)
    compare = AttackComparator(model, lambda out: out.mean())
    compare.add_attack(FGSM(model), attack_kwargs={"epsilon": 0.1, "target": 1}, additional_attack_arg_names=["mask"])
    with pytest.warns(UserWarning, match="Additional sample arg mask not provided for FGSM"):
        compare.evaluate(x)

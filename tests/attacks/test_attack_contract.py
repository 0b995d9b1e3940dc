"""The laws of every attack, in every norm: a new one is a line in the registry and meets them all."""

import itertools
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from attack_cases import BUDGET, CASES, Counted, affine, examples, mlp
from torch import nn
from torch.testing import assert_close

from robustx.attacks import ZeroGradientWarning
from robustx.perturb import NORMS, Between, Until

every = pytest.mark.parametrize("case", CASES, ids=str)
any_shape = pytest.mark.parametrize("case", [c for c in CASES if not c.pictures_only], ids=str)
in_three = pytest.mark.parametrize("case", [c for c in CASES if c.norm != "L0"], ids=str)


def size(norm, moved, x):
    """How far, from the definitions and in float64 [B]."""
    d = (moved.double() - x.double()).flatten(1).abs()
    return {"L0": (d > 0).sum(1).double(), "L1": d.sum(1), "L2": d.square().sum(1).sqrt(), "Linf": d.amax(1)}[norm]


def answers(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def check(case, model, x, result, reached, eps=None, low=0.0, high=1.0):
    """What must hold for every result, whatever was asked."""
    eps = BUDGET[case.norm] if eps is None else eps
    moved = result.adversarial
    assert moved.shape == x.shape and moved.dtype == x.dtype and not moved.requires_grad
    assert ((moved >= low) & (moved <= high)).all()
    distance = size(case.norm, moved, x)
    assert (distance <= torch.as_tensor(eps).double() * (1 + 1e-6)).all()
    assert_close(result.distance.double(), distance, rtol=1e-6, atol=0)
    assert result.success.tolist() == reached(moved).tolist()
    assert result.success.tolist() == (result.margin > 0).tolist()


def improbability(out, y):
    """A loss of one's own."""
    return 1 - out.softmax(1).gather(1, y[:, None]).squeeze(1)


def assert_same(result, other, **tolerance):
    tolerance = tolerance or {"rtol": 0, "atol": 1e-5}
    assert_close(result.adversarial, other.adversarial, **tolerance)
    assert_close(result.margin, other.margin, **tolerance)
    assert_close(result.distance, other.distance, **tolerance)
    assert result.success.tolist() == other.success.tolist()


# --- what is found ----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stays_in_ball_and_box_and_tells_the_truth(case, dtype):
    model = mlp(dtype=dtype)
    x, y = examples(model, dtype=dtype)
    result = case(model).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y)
    assert 2 < result.success.sum() < len(x)  # some fell, some resist: both halves of the law were met
    assert torch.equal(case(model)(x, y), result.adversarial)


@every
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_any_number_of_classes(case, classes):
    model = mlp(classes, seed=3)
    x, y = examples(model)
    check(case, model, x, case(model).run(x, y), lambda moved: answers(model, moved) != y)


@every
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", improbability])
def test_any_loss(case, loss):
    model = mlp()
    x, y = examples(model)
    result = case(model, loss_func=loss).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y)
    assert result.success.sum() > 2  # the two that were wrong before, and more


@pytest.mark.parametrize("case", [c for c in CASES if not c.untargeted_only], ids=str)
def test_targeted(case):
    model = mlp()
    x, y = examples(model, wrong=0)
    eps = 2 * BUDGET[case.norm]
    goal = answers(model, x.flip(0))  # other examples' answers; some are there already
    result = case(model, eps=eps).run(x, goal, targeted=True)
    check(case, model, x, result, lambda moved: answers(model, moved) == goal, eps=eps)
    assert (goal == y).any() and (result.success & (goal != y)).any()


@pytest.mark.parametrize("case", [c for c in CASES if not c.untargeted_only], ids=str)
@pytest.mark.parametrize("goal", [Between(low=0.0, target=1), Until(lambda out: out[:, 1])], ids=["between", "until"])
def test_any_goal(case, goal):
    model = mlp()
    x, _ = examples(model)
    result = case(model).run(x, goal=goal)
    with torch.no_grad():
        check(case, model, x, result, lambda moved: model(moved)[:, 1] > 0)
        assert result.success.sum() > (model(x)[:, 1] > 0).sum()


@every
def test_examples_that_are_there_already_are_left_alone(case):
    model = mlp()
    x, y = examples(model, wrong=5)
    result = case(model).run(x, y)
    assert torch.equal(result.adversarial[-5:], x[-5:])
    assert result.success[-5:].all() and (result.distance[-5:] == 0).all()
    assert (result.forwards[-5:] == 1).all() and (result.backwards[-5:] == 0).all()


@every
def test_where_all_are_there_already_one_pass_is_all(case):
    model = mlp()
    x, y = examples(model, wrong=12)
    counted = Counted(model, len(x))
    result = case(counted).run(x, y, additional_forward_args=torch.arange(len(x)))
    assert torch.equal(result.adversarial, x) and result.success.all() and not result.distance.any()
    assert counted.calls == 1 and (counted.forwards == 1).all() and not counted.backwards.any()


@every
def test_no_budget_no_move(case):
    model = mlp()
    x, y = examples(model)
    result = case(model, eps=0).run(x, y)
    assert torch.equal(result.adversarial, x)
    assert (result.distance == 0).all() and result.success.tolist() == [False] * 10 + [True] * 2


@every
def test_a_larger_budget_loses_nothing(case):
    """On an affine model with two classes, where the best move of every size is known."""
    model = affine(18, 2)
    x, y = examples(model, count=16)
    case = case.but(targets=None)
    fallen = [case(model, eps=r * BUDGET[case.norm]).run(x, y).success for r in (0.5, 1, 2, 4)]
    for less, more in itertools.pairwise(fallen):
        assert (less <= more).all()
    assert fallen[0].sum() < fallen[-1].sum()


@every
def test_a_budget_beyond_the_box(case):
    """Everything may move as far as the box reaches, and no further; nothing overflows."""
    model = affine(18, 3)
    x, y = examples(model, wrong=0)
    result = case(model, eps=1e9).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y, eps=1e9)
    assert result.adversarial.isfinite().all() and result.margin.isfinite().all()
    assert result.success.any()


# --- rows do not see one another --------------------------------------------------------------------------


@every
def test_equivariant_to_the_order_of_rows(case):
    model = mlp()
    x, y = examples(model)
    order = torch.randperm(len(x))
    assert_same(case(model).run(x[order], y[order]), case(model).run(x, y).at(order))


@every
def test_alone_as_in_a_batch(case):
    model = mlp()
    x, y = examples(model)
    together = case(model).run(x, y)
    for i in range(len(x)):
        alone = case(model).run(x[i : i + 1], y[i : i + 1])
        assert_same(alone, together.at(torch.tensor([i])))
        assert alone.forwards.item() == together.forwards[i] and alone.backwards.item() == together.backwards[i]


@every
@pytest.mark.parametrize("rows", [1, 5])
def test_batch_size_changes_nothing(case, rows):
    model = mlp()
    x, y = examples(model)
    whole, sizes = case(model).run(x, y), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert_same(case(model, batch_size=rows).run(x, y), whole)
    assert max(sizes) == rows


@every
def test_a_budget_for_each_example(case):
    model = mlp()
    x, y = examples(model)
    eps = torch.linspace(0.5, 2, len(x)) * BUDGET[case.norm]
    together = case(model).run(x, y, eps=eps)
    check(case, model, x, together, lambda moved: answers(model, moved) != y, eps=eps)
    for i in (0, 4, 9):
        alone = case(model, eps=eps[i]).run(x[i : i + 1], y[i : i + 1])
        assert_same(alone, together.at(torch.tensor([i])))


@every
def test_no_examples(case):
    model = mlp()
    x, y = examples(model)
    for labels in (y[:0], None):
        result = case(model).run(x[:0], labels)
        assert result.adversarial.shape == (0, 2, 3, 3)
        told = ("success", "distance", "margin", "forwards", "backwards")
        assert all(len(getattr(result, name)) == 0 for name in told)
        assert repr(result) == "AttackResult(no examples)"


# --- where it may go --------------------------------------------------------------------------------------


@every
def test_bounds_of_each_feature(case):
    model = mlp()
    x, y = examples(model)
    low = x.amin(0, keepdim=True) * torch.rand(1, 2, 3, 3, dtype=torch.float64)
    high = (x + 0.1).clamp(max=1)  # of each example
    high[:, 0] = x[:, 0]  # half of them may only fall
    result = case(model, bounds=(low, high)).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y, low=low, high=high)
    assert result.distance.any()


@every
def test_mask(case):
    model = mlp()
    x, y = examples(model)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0]])
    result = case(model).run(x, y, mask=mask)
    check(case, model, x, result, lambda moved: answers(model, moved) != y)
    moved = result.adversarial != x
    assert moved[..., mask == 1].any() and not moved[..., mask == 0].any()
    assert torch.equal(case(model).run(x, y, mask=torch.zeros(1)).adversarial, x)


@in_three
def test_without_bounds(case):
    model = mlp()
    x = 4 * torch.randn(12, 2, 3, 3, dtype=torch.float64)
    y, eps = answers(model, x), 10 * BUDGET[case.norm]
    result = case(model, bounds=(-torch.inf, torch.inf), eps=eps).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y, eps, low=-torch.inf, high=torch.inf)
    assert result.success.any()


@every
@pytest.mark.parametrize("bounds", [(-1, 1), (0, 255), (0.1, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_box(case, bounds, dtype):
    """The box is that of the inputs' own dtype, in which 0.1 and 0.7 are other numbers."""
    low, high = torch.tensor(bounds, dtype=dtype)
    net = mlp(dtype=dtype)
    scale = high - low

    def model(x):
        return net((x - low) / scale)

    x = (low + torch.rand(12, 2, 3, 3) * scale).to(dtype).clamp(low, high)
    x[0], x[1] = low, high
    y = answers(model, x)
    eps = BUDGET[case.norm] * (1 if case.norm == "L0" else float(scale))
    result = case(model, bounds=bounds, eps=eps).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y, eps=eps, low=low, high=high)
    assert result.distance.any()


@every
def test_corners_of_the_box_can_move(case):
    """From 0 and 1 half of all directions are blocked: an attack that spends its budget on them gets nowhere."""
    model = mlp()
    x = (torch.rand(12, 2, 3, 3) > 0.5).double()
    y = answers(model, x)
    result = case(model, eps=2 * BUDGET[case.norm]).run(x, y)
    check(case, model, x, result, lambda moved: answers(model, moved) != y, eps=2 * BUDGET[case.norm])
    assert result.success.any()


# --- what can come in -------------------------------------------------------------------------------------


class Two(nn.Module):
    """The same network on two inputs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, left, right):
        return self.net(torch.cat([left, right.flatten(1)[:, :, None, None].reshape(-1, 1, 3, 3)], 1))


@any_shape
@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_inputs_are_one(case, form):
    net = mlp()
    x, y = examples(net)
    two = Two(net)
    left, right = x[:, :1], x[:, 1:].flatten(1)
    given = (left, right) if form == "tuple" else {"left": left, "right": right}
    whole, result = case(net).run(x, y), case(two).run(given, y)
    assert type(result.adversarial) is type(given)
    parts = result.adversarial if form == "tuple" else tuple(result.adversarial.values())
    assert [p.shape for p in parts] == [left.shape, right.shape]
    assert_close(torch.cat([p.flatten(1) for p in parts], 1), whole.adversarial.flatten(1))
    assert_close(result.distance, whole.distance)


@any_shape
def test_bounds_and_masks_of_each_input(case):
    """By place or by name, in any order of names."""
    net = mlp()
    x, _ = examples(net)
    x[:, 1:] = x[:, 1:].clamp(max=0.9)
    y = answers(net, x)
    two, (left, right) = Two(net), (x[:, :1], x[:, 1:].flatten(1))
    low, high, mask = (left - 0.1).clamp(min=0), torch.full((9,), 0.9, dtype=x.dtype), torch.arange(9) % 2
    bounds = torch.cat([low, 0 * low], 1), torch.tensor([1.0, 0.9], dtype=x.dtype)[:, None, None]
    both = torch.stack([torch.ones(3, 3), mask.reshape(3, 3)])
    whole = case(net, bounds=bounds).run(x, y, mask=both)
    placed = case(two, bounds=((low, 0.0), (1.0, high))).run((left, right), y, mask=(torch.ones(1), mask))
    named = case(two, bounds=({"right": 0.0, "left": low}, {"right": high, "left": 1.0})).run(
        {"left": left, "right": right}, y, mask={"right": mask, "left": torch.ones(1)}
    )
    assert_close(placed.adversarial, tuple(named.adversarial.values()))
    assert_close(torch.cat([p.flatten(1) for p in placed.adversarial], 1), whole.adversarial.flatten(1))
    assert whole.distance.any()


@every
def test_inputs_of_different_dtypes(case):
    """Each part comes back in its own dtype, and the ball holds for what comes back."""
    net = mlp(dtype=torch.float32)
    x = torch.rand(8, 2, 3, 3).bfloat16()
    given = (x[:, :1], x[:, 1:].float())
    two = lambda left, right: net(torch.cat([left.float(), right], 1))
    y = two(*given).argmax(1)
    result = case(two).run(given, y)
    left, right = result.adversarial
    assert (left.dtype, right.dtype) == (torch.bfloat16, torch.float32)
    distance = size(case.norm, torch.cat([left.double(), right.double()], 1), x)
    assert (distance <= BUDGET[case.norm] * (1 + 1e-6)).all() and distance.any()
    assert result.success.tolist() == (two(left, right).argmax(1) != y).tolist()


@every
def test_further_arguments_follow_the_examples(case):
    net = mlp()
    x, y = examples(net)
    shift = torch.randn(len(x), 4, dtype=torch.float64)

    def model(x, shift, scale=1.0, *, sign=None):
        return (net(x) + shift) * scale * (1 if sign is None else sign)

    sign, eps = torch.ones(len(x), 1, dtype=torch.float64), 2 * BUDGET[case.norm]
    y = answers(lambda x: model(x, shift), x)
    further = {"additional_forward_args": (shift, 2.0), "additional_forward_kwargs": {"sign": sign}}
    result = case(model, eps=eps).run(x, y, **further)
    check(case, model, x, result, lambda moved: answers(lambda x: model(x, shift), moved) != y, eps=eps)
    assert result.success.any()


@every
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64], ids=str)
def test_labels_of_any_integer_dtype(case, dtype):
    model = mlp()
    x, y = examples(model)
    assert_same(case(model).run(x, y.to(dtype)), case(model).run(x, y), rtol=0, atol=0)


@every
def test_without_labels_the_models_own_answers(case):
    model = mlp()
    x, y = examples(model, wrong=0)
    assert_same(case(model).run(x), case(model).run(x, y), rtol=0, atol=0)


@every
def test_one_label_for_all(case):
    model = mlp()
    x, y = examples(model)
    same = case(model).run(x, torch.full_like(y, 2))
    for label in (2, torch.tensor(2), torch.tensor([2])):
        assert_same(case(model).run(x, label), same, rtol=0, atol=0)


@every
@pytest.mark.parametrize("mode", ["requires_grad", "no_grad", "inference_mode"])
def test_inputs_of_any_mode(case, mode):
    model = mlp()
    x, y = examples(model)
    expected = case(model).run(x, y)
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with modes.get(mode, nullcontext)():
        given = x.clone().requires_grad_(mode == "requires_grad")
        result = case(model).run(given, y.clone())
    assert_same(result, expected, rtol=0, atol=0)
    assert not result.adversarial.requires_grad and given.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@every
@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_inputs_of_any_layout(case, layout):
    model = mlp()
    x, y = examples(model)
    if layout == "channels_last":
        given = x.to(memory_format=torch.channels_last)
    else:
        given = torch.stack([x, x], -1)[..., 0]
    assert not given.is_contiguous()
    result = case(model).run(given, y)
    assert_same(result, case(model).run(x, y), rtol=0, atol=1e-12)
    assert torch.equal(given, x)
    if layout == "channels_last":
        assert result.adversarial.is_contiguous(memory_format=torch.channels_last)


# --- awkward models ---------------------------------------------------------------------------------------


@every
def test_probabilities_are_as_good_as_logits(case):
    net = mlp()
    x, y = examples(net)
    result = case(lambda x: net(x).softmax(1)).run(x, y)
    assert_same(result, case(net).run(x, y), rtol=0, atol=1e-6)


@every
def test_one_logit_is_as_good_as_two(case):
    net = mlp(2, seed=3)
    x, y = examples(net)
    case = case.but(targets=None)

    def lead(x):
        return net(x).diff(dim=1)

    result = case(lead).run(x, y)
    assert_same(result, case(lambda x: torch.cat([-lead(x), lead(x)], 1) / 2).run(x, y), rtol=0, atol=1e-9)
    check(case, lead, x, result, lambda moved: (lead(moved).squeeze(1) > 0).long() != y)
    assert result.success.sum() > 2


@every
def test_a_constant_model_is_told_and_survived(case):
    logits = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    x = torch.rand(4, 2, 3, 3, dtype=torch.float64)
    told = pytest.warns(ZeroGradientWarning, match="exactly zero for 4 of 4")
    with nullcontext() if case.by_values else told:
        result = case(lambda x: x.flatten(1).sum(1, keepdim=True) * 0 + logits).run(x, torch.ones(4, dtype=torch.long))
    assert not result.success.any() and (result.margin == -2).all()
    assert torch.equal(result.adversarial, x) or case.starts_at_random


@every
def test_a_model_that_breaks_on_the_way(case):
    """NaN near the inputs is no success, and no reason to hand out NaN."""
    net = mlp()
    x, y = examples(net, wrong=0)
    mean = x.mean((1, 2, 3), keepdim=True)

    def model(x, mean):  # defined only where the mean has not grown
        return net(x) + (1e-4 + mean - x.mean((1, 2, 3), keepdim=True)).sqrt().flatten(1) * 0

    result = case(model).run(x, y, additional_forward_args=mean)
    with torch.no_grad():
        logits = model(result.adversarial, mean)
    sound = logits.isfinite().all(1)
    assert result.adversarial.isfinite().all()
    assert result.success.tolist() == (sound & (logits.argmax(1) != y)).tolist()


@every
def test_single_precision_is_enough(case):
    """What is found in float32 is what is found in float64, but for what hangs on the last digits."""
    double = mlp(dtype=torch.float32).double()
    single = mlp(dtype=torch.float32)
    x, y = examples(single, dtype=torch.float32)
    fine, rough = case(double).run(x.double(), y), case(single).run(x, y)
    clear = (fine.margin.abs() > 1e-4) | ~fine.success
    assert fine.success[clear].tolist() == rough.success[clear].tolist()
    assert_close(rough.distance.double()[clear], fine.distance[clear], rtol=1e-2, atol=1e-3)


@any_shape
def test_a_function_without_parameters(case):
    """No module, nothing to read a device or a dtype off, on rows of a table."""

    def function(x):
        return torch.stack([x.square().sum(1), 1.4 * x.sin().prod(1) + 1, 2 * x.cos().prod(1) + 1.2], 1)

    x, eps = torch.rand(24, 5), 3 * BUDGET[case.norm]
    y = answers(function, x)
    result = case(function, eps=eps).run(x, y)
    check(case, function, x, result, lambda moved: answers(function, moved) != y, eps=eps)
    assert len(y.unique()) > 1 and result.success.any()


class Frozen(nn.Module):
    """Made for training, with a batch norm that stays as it is; gradients of the parameters are under way."""

    def __init__(self):
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(2).double(), mlp()
        nn.init.uniform_(self.norm.running_mean, -0.1, 0.1)
        self.train()
        self.norm.eval()
        for p in self.parameters():
            p.grad = torch.ones_like(p)

    def forward(self, x):
        return self.net(self.norm(x))


@every
def test_a_frozen_batch_norm_in_a_model_that_trains(case):
    """Modes and gradients stay as they are, and so does what the batch norm has seen."""
    model = Frozen()
    x, y = examples(model)
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    result = case(model).run(x, y)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    check(case, model, x, result, lambda moved: answers(model, moved) != y)
    assert result.success.sum() > 2


class Awkward(nn.Module):
    """In-place on its input, a layer used twice, its only parameters frozen, a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.net = mlp().requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.net(x.mul_(2)) + self.net(x.relu_())


@every
def test_leaves_no_trace(case):
    model = Awkward()
    x, y = examples(lambda x: model(x.clone()))
    model.seen.zero_()
    kept, state = x.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    result = case(model).run(x, y)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(x, kept) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    check(case, model, x, result, lambda moved: answers(model, moved.clone()) != y)


# --- counts -----------------------------------------------------------------------------------------------


@every
def test_counts_are_exact_for_each_example(case):
    net = mlp()
    x, y = examples(net)
    model = Counted(net, len(x))
    result = case(model).run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist()
    assert result.backwards.tolist() == model.backwards.tolist()
    assert (result.forwards[:10] > 1).all() and ((result.backwards[:10] > 0) != case.by_values).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"targets": 3}, {"restarts": 3}, {"random_start": True}], ids=str)
def test_fooled_examples_leave_the_batch(norm, options):
    net = mlp()
    x, y = examples(net)
    case = next(c for c in CASES if c.told == "pgd" and c.norm == norm)

    def run(early_stop):
        model = Counted(net, len(x))
        result = case(model, early_stop=early_stop, **options).run(x, y, additional_forward_args=torch.arange(len(x)))
        assert result.forwards.sum() == model.forwards.sum()
        return result

    stopped, full = run(True), run(False)
    assert stopped.success.tolist() == full.success.tolist()
    fell, resisted = stopped.success & (stopped.distance > 0), ~stopped.success
    assert fell.any() and resisted.any()
    assert (stopped.forwards <= full.forwards).all() and stopped.forwards[fell].sum() < full.forwards[fell].sum()
    assert (stopped.forwards[resisted] == full.forwards[resisted]).all()
    assert (stopped.margin <= full.margin + 1e-12).all()  # who goes on may find something stronger


# --- randomness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_the_seed_decides(norm):
    case = next(c for c in CASES if c.told == "pgd, random" and c.norm == norm)
    model = mlp()
    x, y = examples(model, wrong=0)
    one, again, other = (case(model, seed=s, eps=2 * BUDGET[norm]).run(x, y) for s in (1, 1, 2))
    assert_same(one, again, rtol=0, atol=0)
    assert not torch.equal(one.adversarial, other.adversarial)

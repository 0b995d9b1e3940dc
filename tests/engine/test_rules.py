"""Rules: every operation is seen however it is written, and passes gradients as it is told."""

import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from operations import OPERATIONS, TABLE, points, score
from torch import nn
from torch.testing import assert_close

from robustx.engine.operations import CHOICES, ELEMENTWISE, PARTS, PLAIN, POOLS, PRODUCTS, SOFTMAX, SWITCHES
from robustx.engine.rules import Ruled, RuleError, known, name_of, tensors_in

RULED = ELEMENTWISE | PRODUCTS | POOLS | CHOICES | SOFTMAX | SWITCHES | {"div"}
every = pytest.mark.parametrize("name", OPERATIONS)


def as_ever(op, g):
    return op.pull_back(g)


def doubled(op, g):
    return tuple(None if b is None else 2 * b for b in op.pull_back(g))


def slope(f, x, mode=None):
    """Values and gradient of a function, under a mode if any."""
    leaf = x.clone().requires_grad_()
    here = leaf.clone()
    if mode is None:
        out = f(here)
    else:
        with mode:
            out = f(here)
    return out.detach(), torch.autograd.grad(out.sum(), leaf)[0]


class Log(Ruled):
    """Writes down what it is told."""

    def __init__(self, *how, **more):
        super().__init__(*how, **more)
        self.mets, self.passes, self.runs = [], [], []

    def met(self, op):
        self.mets.append(op)

    def passed(self, name, order, tensors):
        self.passes.append((name, order, len(tensors)))

    def ran(self, name, arguments, out):
        self.runs.append(name)


# --- operations -------------------------------------------------------------------------------------------


@every
def test_rules_that_change_nothing_change_nothing(name):
    """Through every operation, by its plain gradient, and by those of its parts."""
    f, x = partial(score, OPERATIONS[name]), points(5, 1)
    values, gradient = slope(f, x)
    mode = Ruled(dict.fromkeys(RULED, as_ever), frozenset(), PARTS, PLAIN, "error")
    found = slope(f, x, mode)
    assert_close(found[0], values, rtol=1e-10, atol=1e-10)
    assert_close(found[1], gradient, rtol=1e-9, atol=1e-9)


@every
def test_without_rules_it_is_the_gradient(name):
    """Composite operations are looked into, those in place stay in place."""
    f, x = partial(score, OPERATIONS[name]), points(5, 2)
    for found, expected in zip(slope(f, x, Ruled({})), slope(f, x), strict=True):
        assert_close(found, expected, rtol=1e-10, atol=1e-10)


NAMES = {
    "relu": [F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.ops.aten.relu, nn.functional.relu],
    "relu again": [torch.ops.aten.relu_, torch.ops.aten.relu.default, torch.ops.aten.relu_.default],
    "add": [torch.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.add_],
    "div": [torch.true_divide, torch.divide, torch.Tensor.__truediv__, torch.Tensor.div_],
    "mul": [torch.multiply, torch.Tensor.__mul__, torch.Tensor.__imul__],
    "sub": [torch.subtract, torch.Tensor.__sub__],
    "sigmoid": [torch.special.expit, torch.sigmoid, torch.Tensor.sigmoid_, F.sigmoid],
    "softmax": [torch.special.softmax, F.softmax, torch.Tensor.softmax],
    "clamp": [torch.clip, torch.Tensor.clamp_],
    "max_pool2d": [F.max_pool2d, torch.max_pool2d],
    "get T": [torch.Tensor.T.__get__],
}


def seen(func):
    """The name of the operation that a mode sees."""
    names = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(name_of(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        func()
    return names


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    for func in NAMES[name]:
        if name == "get T":
            assert name_of(func) == name
            continue
        x = torch.rand(2, 3, 4)
        more = {"softmax": (-1,), "clamp": (0.2, 0.5), "max_pool2d": (2,)}.get(name, ())
        if name in ("add", "div", "mul", "sub"):
            more = (torch.rand(2, 3, 4),)
        assert seen(lambda func=func, x=x, more=more: func(x, *more))[0] == name.removesuffix(" again")


@pytest.mark.parametrize("name", ["max", "min", "median", "aminmax"])
def test_results_keep_their_names(name):
    """As in x.max(1).values."""
    x, f = points(3, 1), getattr(torch, name)
    leaf = x.clone().requires_grad_()
    here = leaf.clone()
    with Ruled({name: as_ever}):
        out = f(here, dim=1)
    expected = f(x, dim=1)
    assert type(out) is type(expected)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(torch.autograd.grad(out[0].sum(), leaf)[0], slope(lambda x: f(x, dim=1)[0], x)[1])


# --- rules ------------------------------------------------------------------------------------------------


def test_a_rule_is_asked_at_each_call():
    """Doubled at each of three: eight times as much."""
    act, x = nn.Tanh(), points(3, 1)
    f = lambda x: act(torch.tanh(act(x)))
    assert_close(slope(f, x, Ruled({"tanh": doubled}))[1], 8 * slope(f, x)[1])


def test_joint_rules_matter_where_several_tensors_depend():
    x, w = points(3, 1), nn.Parameter(TABLE.clone())
    mode = Log({"mul": doubled}, frozenset({"mul"}))
    assert_close(slope(lambda x: (x * w) * 3, x, mode)[1], slope(lambda x: x * w * 3, x)[1])
    assert [p[:2] for p in mode.passes] == [("mul", 0), ("mul", 1)] and not mode.mets
    assert_close(slope(lambda x: x * (x + w), x, Ruled({"mul": doubled}, frozenset({"mul"})))[1], 2 * (2 * x + w))
    assert_close(slope(lambda x: x * w, x, Ruled({"mul": doubled}))[1], 2 * w.expand_as(x))
    assert w.grad is None


def test_parameters_are_constants():
    layer, x = nn.Linear(6, 2).double(), points(3, 1)
    here = x.clone().requires_grad_() * 1
    with Ruled({}):
        assert not layer(x).requires_grad
        out = layer(here).sum()
    out.backward()
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())


def test_what_an_operation_tells():
    """Its arguments, cut from the graph and safe from what happens to them later."""
    mode = Log(dict.fromkeys(("clamp", "where", "mul"), as_ever))
    x, mask, half = points(2, 1), TABLE > 0, torch.tensor(0.5).double()

    def f(x):
        y = torch.where(mask, x.clamp(-1.0, max=half), half)
        return x.mul_(y).add_(7)

    slope(f, x, mode)
    clamp, where, mul = mode.mets
    assert [op.name for op in mode.mets] == ["clamp", "where", "mul"] and [op.order for op in mode.mets] == [0, 1, 2]
    assert (
        clamp.argument(1, "min") == -1
        and torch.equal(clamp.argument(2, "max"), half)
        and clamp.argument(3, "no", 5) == 5
    )
    assert clamp.needs == (True, False) and where.needs == (True, False) and mul.needs == (True, True)
    assert len(where.tensors) == 2 and where.all_tensors[0] is mask and len(where.all_tensors) == 3
    assert not any(t.requires_grad for op in mode.mets for t in op.tensors)
    expected = torch.where(mask, x.clamp(-1, 0.5), half)
    assert torch.equal(mul.tensors[0], x) and torch.equal(mul.tensors[1], expected)
    assert torch.equal(mul(*mul.tensors), x * expected) and torch.equal(mul(x, x), x * x)
    back = mul.pull_back(torch.ones_like(x), (x, 2 * x))
    assert torch.equal(back[0], 2 * x) and torch.equal(back[1], x)
    assert clamp.pull_back(torch.ones_like(x), instead=lambda x, half: 3 * x + half)[1] is None
    assert mode.runs.count("add") == 1 and mode.runs.index("clamp") < mode.runs.index("mul")


def test_in_place_means_in_place():
    """The tensor that was there holds the result, whatever passes the gradient."""
    for rules in ({}, {"relu": as_ever}):
        x = (points(2, 1)).requires_grad_() * 1
        with Ruled(rules):
            here = x + 0
            before = here.detach().clone()
            for out in (F.relu(here, inplace=True), here.relu_(), torch.relu_(here)):
                assert out is here
        assert torch.equal(here, before.relu())


# --- what belongs to whom ---------------------------------------------------------------------------------


def test_the_innermost_owner_counts():
    inner = nn.Sequential(nn.Tanh(), nn.Sigmoid())
    model = nn.Sequential(nn.Tanh(), inner, nn.Tanh())
    mode = Log(dict.fromkeys(("tanh", "sigmoid"), as_ever))
    with mode.inside({model: "model", inner: "inner", inner[1]: "last"}):
        slope(model, points(2, 1), mode)
    assert [op.owner for op in mode.mets] == ["model", "inner", "last", "model"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_owners_of_another_thread_are_its_own():
    model, mode = nn.Sequential(nn.Tanh(), nn.Tanh()), Log({"tanh": as_ever})
    with mode.inside({model[0]: "first"}):
        other = threading.Thread(target=lambda: model[0](points(1, 2)))
        other.start()
        other.join()
        slope(model, points(2, 1), mode)
    assert [op.owner for op in mode.mets] == ["first", None] and mode.owners == []


def test_nothing_is_left_after_an_error():
    model, mode = nn.Sequential(nn.Tanh(), nn.Tanh()), Ruled({"tanh": as_ever})
    model[1].register_forward_hook(lambda *_: 1 / 0)
    x = points(2, 1)
    with pytest.raises(ZeroDivisionError), mode.inside({model: 1}), mode.over(model):
        model(x)
    assert not model[0]._forward_hooks and not model._forward_hooks and not model._forward_pre_hooks
    assert not torch.overrides._get_current_function_mode_stack()


# --- what is refused --------------------------------------------------------------------------------------


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def test_what_nothing_is_said_about():
    x = points(2, 1)
    with pytest.raises(RuleError, match="no rule for the operation 'cumprod'.*otherwise='gradient'"):
        slope(lambda x: x.cumprod(1), x, Ruled({}, plain=PLAIN, otherwise="error"))
    passed = slope(lambda x: x.cumprod(1), x, Ruled({}, plain=PLAIN, otherwise="gradient"))
    assert_close(passed[1], slope(lambda x: x.cumprod(1), x)[1])
    slope(lambda x: x + torch.ones(4, 6).double().cumprod(1), x, Ruled({}, plain=PLAIN, otherwise="error"))
    with pytest.raises(ValueError, match="otherwise must be 'error' or 'gradient', got 'no'"):
        Ruled({}, otherwise="no")


def test_functions_of_the_models_own():
    x = points(2, 1).requires_grad_() * 1
    with Ruled({"tanh": as_ever}):
        fine, own = torch.tanh(x), torch.tanh(Own.apply(x))
    known(fine)
    known((1, fine.sum()))
    with pytest.raises(RuleError, match="'Own', an autograd function of the model's own"):
        known({"out": own})


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript():
    scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(RuleError, match="is TorchScript.*use the model it came from"):
        Ruled({}).over(nn.Sequential(scripted)).__enter__()


def test_tensors_in_anything():
    a, b, c = (torch.rand(1) for _ in range(3))
    assert tensors_in((a, [1, (b, "no")], {"x": {"y": c}, "z": None})) == [a, b, c]

"""No trace: the model, its gradients, flags, buffers and hooks, and the random state are as they were.

Asked of every public method: a new attribution or attack is found by its class or its name, and meets these laws.
"""

import functools
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event
from time import sleep

import numpy as np
import pytest
import torch
from attack_cases import QUICK
from attribution_cases import CASES
from models import Busy
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.testing import assert_close
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from robustx.attacks import ATTACKS, FGSM, MinParamPerturbation, make
from robustx.attribution import IntegratedGradients
from robustx.counterfactual import CounterfactualExplainer
from robustx.engine import ModelError, untouched
from robustx.engine.guard import Shared, Turns, modules_of

FEW = QUICK | {"pgd": {"steps": 2, "restarts": 2}, "bisection": {"steps": 2, "rounds": 2}}
PICTURES = {"di-fgsm", "ti-fgsm"}  # the loop is that of the others, but inputs here are no pictures


def gap(model, x):
    method = IntegratedGradients(model)
    return method.compute_convergence_delta(method.attribute(x, target=1), torch.zeros_like(x), x, target=1)


def attacked(name):
    norm = "L2" if "L2" in ATTACKS[name].norms else ATTACKS[name].norms[0]
    eps = 2 if norm == "L0" else 0.5
    return lambda model, x: (
        make(name, model, bounds=(-9, 9), norm=norm, eps=eps, **FEW.get(name, {})).run(x).adversarial
    )


def searched(model, x):
    attack = FGSM(model).perturb
    return MinParamPerturbation(model, attack, "epsilon", 0.0, 4.0, 0.5, "binary").evaluate(
        x, target=torch.tensor([0, 1])
    )[0]


WAYS = {str(case): case for case in CASES} | {"delta": gap}
WAYS |= {f"{name}.run": attacked(name) for name in ATTACKS if name not in PICTURES}
WAYS |= {
    "fgsm.perturb": lambda model, x: make("fgsm", model).perturb(x, 0.3, torch.tensor([0, 1])),
    "pgd.perturb": lambda model, x: make("pgd", model).perturb(x, 0.3, 0.1, 3, torch.tensor([0, 1]), random_start=True),
    "MinParamPerturbation": searched,
    "CounterfactualExplainer": lambda model, x: (
        CounterfactualExplainer(model, bounds=(-9, 9)).generate(x).counterfactual
    ),
}
every = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def busy(fails=None):
    """A model in a state that is easily disturbed, and two examples."""
    torch.manual_seed(0)
    model = Busy(fails)
    model.first.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.norm.train().eval()
    model.head.train()  # harmless, and not to be tidied up
    model.act.register_forward_hook(lambda *_: None)
    return model, torch.randn(2, 1, 5, dtype=torch.float64, requires_grad=True)


def state(model, x):
    """Everything that must not change, as one comparable list."""
    listed = [("x", x.tolist(), x.requires_grad, x.grad is None)]
    listed += [(n, b is None or (id(b), b.tolist())) for n, b in model.named_buffers()]
    listed += [
        (n, id(p), p.tolist(), p.requires_grad, p.grad is None or p.grad.tolist()) for n, p in model.named_parameters()
    ]
    for n, m in model.named_modules():
        hooked = [list(v) for k, v in vars(m).items() if k.endswith("_hooks")]
        listed.append((n, type(m), m.training, hooked, list(m._buffers), list(m._modules)))
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    inside = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
    return [*listed, *modes, *inside, random.getstate(), np.random.get_state()[1:3], torch.get_rng_state().tolist()]


def assert_same(before, after):
    for b, a in zip(before, after, strict=True):
        assert str(b) == str(a)


@every
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_left_behind(way, mode):
    model, x = busy()
    with mode():
        before = state(model, x)
        found = way(model, x)
        assert_same(before, state(model, x))
    assert model.passes > 0 and not found.requires_grad and not found.is_inference()
    again = way(*busy())
    assert_close(found, again, atol=0, rtol=0)  # and the mode made no difference


@every
def test_nothing_is_left_behind_by_a_failure_in_any_pass(way):
    model, x = busy()
    way(model, x)
    for n in range(1, min(model.passes, 12) + 1):
        model, x = busy(fails=n)
        before = state(model, x)
        with pytest.raises(ModelError, match="the model breaks down"):
            way(model, x)
        assert_same(before, state(model, x))


@pytest.mark.parametrize("beside", ["itself", "another"])
@pytest.mark.parametrize("i", range(len(WAYS)), ids=list(WAYS))
def test_two_threads_use_one_model(i, beside):
    ways = list(WAYS.values())
    one, other = ways[i], ways[i if beside == "itself" else i - 1]
    model, x = busy()
    y = torch.randn_like(x)
    alone = one(busy()[0], x), other(busy()[0], y)
    model.first.register_forward_hook(lambda *_: sleep(0.002))  # in the middle of each pass the other one goes on
    before, start = state(model, x), Barrier(2)
    with ThreadPoolExecutor(2, initializer=start.wait) as threads:
        found = [threads.submit(way, model, z) for way, z in ((one, x), (other, y))]
        found = [f.result() for f in found]
    assert_same(before, state(model, x))
    for f, a in zip(found, alone, strict=True):
        assert_close(f, a, atol=0, rtol=0)


@every
def test_inputs_of_inference_mode_are_let_in(way):
    model, x = busy()
    expected = way(model, x)
    with torch.inference_mode():
        x = x.detach().clone()
        assert_close(way(model, x), expected, atol=0, rtol=0)
    assert_close(way(model, x), expected, atol=0, rtol=0)


@every
def test_train_mode_is_refused_before_anything_happens(way):
    model, x = busy()
    model.train()
    before = state(model, x)
    with pytest.raises(ValueError, match=r"model is in train mode: BatchNorm1d 'norm'.*call model.eval\(\) first"):
        way(model, x)
    assert_same(before, state(model, x))


# ---- what the whole process shares


def test_a_setting_stays_while_any_thread_needs_it():
    setting, seen, met, left = [], [], Barrier(2), Event()

    @contextmanager
    def change():
        setting.append("changed")
        yield
        setting.pop()

    shared = Shared(change)

    def use(stays):
        with shared.on():
            met.wait(10)
            if stays:
                left.wait(10)
            seen.append(list(setting))
        left.set()

    with ThreadPoolExecutor(2) as threads:
        for f in [threads.submit(use, stays) for stays in (True, False)]:
            f.result()
    assert seen == [["changed"], ["changed"]] and setting == []
    with pytest.raises(KeyError), shared.on():
        raise KeyError
    assert setting == [] and shared.count == 0


# ---- which modules are refused


def refused(model):
    try:
        with untouched(model):
            return None
    except ValueError as e:
        return str(e)


SEES = "rows of a batch would see one another; call model.eval"
RANDOM = "results would be random; call model.eval"


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.BatchNorm2d(2), SEES),
        (nn.SyncBatchNorm(2), SEES),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2, affine=False)), "BatchNorm1d '1' is training"),
        (nn.Dropout(0.1), RANDOM),
        (nn.Sequential(nn.Sequential(nn.AlphaDropout(0.1))), "AlphaDropout '0.0' is training"),
        (nn.Dropout2d(0.5), RANDOM),
        (nn.RReLU(), RANDOM),
        (nn.LSTM(2, 2, 2, dropout=0.3), RANDOM),
        (nn.MultiheadAttention(2, 1, dropout=0.3), RANDOM),
        (nn.TransformerEncoderLayer(4, 1, 4), RANDOM),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), "keeps no running statistics"),
        (nn.Dropout(0.0), None),
        (nn.LSTM(2, 2, 2), None),
        (nn.MultiheadAttention(2, 1), None),
        (nn.InstanceNorm2d(2, track_running_stats=True), None),
        (nn.LayerNorm(2), None),
        (nn.GroupNorm(1, 2), None),
        (nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout(0.5).eval(), nn.ReLU()), None),
        (nn.BatchNorm1d(2).eval(), None),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_that_mix_rows_or_draw_at_random(module, words):
    told = refused(module)
    assert told is None if words is None else words in told


def closure(model):
    return lambda x: model(x).softmax(1)


def outer(model):
    inner = closure(model)
    return lambda x: inner(x)


def default(model):
    return lambda x, m=model: m(x)


def keyword(model):
    def call(x, *, m=model):
        return m(x)

    return call


def ensemble(model):
    models = [model, model]
    return lambda x: sum(m(x) for m in models) / 2


def by_name(model):
    models = {"only": model}
    return lambda x: models["only"](x)


class Holder:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model(x)

    def predict(self, x):
        return self.model(x)


CALLABLES = {
    "module": lambda m: m,
    "forward": lambda m: m.forward,
    "closure": closure,
    "closure of a closure": outer,
    "default": default,
    "keyword default": keyword,
    "partial": lambda m: functools.partial(m),
    "partial of a function": lambda m: functools.partial(lambda model, x: model(x), m),
    "partial by keyword": lambda m: functools.partial(lambda x, model: model(x), model=m),
    "list": ensemble,
    "dict": by_name,
    "object": Holder,
    "method": lambda m: Holder(m).predict,
    "closure of an object": lambda m: closure(Holder(m)),
}


@pytest.mark.parametrize("wrap", CALLABLES.values(), ids=CALLABLES)
def test_models_are_found_in_what_calls_them(wrap):
    model, x = busy()
    call = wrap(model)
    before = state(model, x)
    with untouched(call):
        call(x)
        assert model.in_place == model.replaced == model.behind
        assert model.replaced > 0
    assert_same(before, state(model, x))
    model.train()
    assert "BatchNorm1d" in refused(call)


def test_callables_without_a_model():
    for call in (torch.relu, len, lambda x: x, functools.partial(torch.sum, dim=1), np.sin, nn.ReLU):
        assert refused(call) is None


def test_what_is_not_changed_is_not_written():
    """Writing a buffer, even with its own value, would invalidate a graph that its user still holds."""
    model, x = busy()
    pending = (model.norm.running_mean * x.sum()).sum()
    with untouched(model):
        model(x)
    pending.backward()


def test_an_exception_passes_through():
    for error in (KeyError("k"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told, untouched(nn.ReLU()):
            raise error
        assert told.value is error


def test_only_what_a_function_really_uses_is_looked_at():
    """An attribute called like a global module is not that module."""
    namespace = {
        "head": nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train(),
        "net": nn.ModuleDict({"head": nn.Linear(3, 2)}),
    }
    exec("def f(x):\n    return net.head(x)", namespace)
    assert modules_of(namespace["f"]) == [namespace["net"]]


def test_draws_take_turns_with_a_guarded_model():
    """They go on where the last one left off; the model goes on likewise, and is given back what was before it."""

    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed(n):
        random.seed(n), np.random.seed(n), torch.manual_seed(n)

    model = nn.Linear(1, 1)
    seed(3)
    in_a_row = [draws() for _ in range(4)]
    seed(3)
    turns, own, models = Turns(), [], []
    with untouched(model):
        for _ in range(3):
            with turns.drawing():
                own.append(draws())
            models.append(draws())
    assert own == models == in_a_row[:3]
    assert draws() == in_a_row[0]  # as it was before
    turns.leave()
    assert draws() == in_a_row[3]

"""The laws of every attribution method: a new one stands in the room and meets them all."""

import inspect
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from attribution_cases import CASES, Net, Pair, inputs_of, parts
from torch import nn
from torch.testing import assert_close

from robustx.attribution import IntegratedGradients
from robustx.engine import TargetError

every = pytest.mark.parametrize("case", CASES, ids=str)
at_inputs = pytest.mark.parametrize("case", [c for c in CASES if c.at_input], ids=str)
complete = pytest.mark.parametrize("case", [c for c in CASES if c.bind(Net()).has_convergence_delta()], ids=str)
with_baselines = pytest.mark.parametrize("case", [c for c in CASES if c.takes("baselines")], ids=str)


def assert_same(a, b, atol=1e-10):
    for one, other in zip(parts(a), parts(b), strict=True):
        assert_close(one, other, rtol=0, atol=atol)


# --- the form of what comes back --------------------------------------------------------------------------


@every
def test_comes_back_in_the_form_of_the_inputs(case):
    net, pair = Net(), Pair()
    (x,), two = inputs_of(net), inputs_of(pair)
    single, one, both = case(net, x), case(net, (x,)), case(pair, two)
    if case.at_input:
        assert isinstance(single, torch.Tensor) and type(one) is tuple and type(both) is tuple
        named = case(lambda a, b: pair(a, b), {"a": two[0], "b": two[1]}) if not case.neuron else None
        assert named is None or (type(named) is dict and list(named) == ["a", "b"])
    for found, given in ((single, (x,)), (one, (x,)), (both, two)):
        assert [a.shape for a in parts(found)] == [torch.Size(s) for s in case.shapes(given)]
        assert not any(a.requires_grad for a in parts(found))
    assert_same(single, one)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(case, dtype):
    exact = case(Net(), *inputs_of(Net()))
    found = case(Net(dtype), *inputs_of(Net(), dtype=dtype))
    assert found.dtype == dtype
    assert_close(found.double(), exact, rtol=0, atol=50 * torch.finfo(dtype).eps * exact.abs().max().item())


@every
@pytest.mark.parametrize("form", ["channels_last", "strided", "expanded"])
def test_layouts(case, form):
    net, (x,) = Net(), inputs_of(Net())
    given = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": torch.stack([x, x], -1)[..., 0],
        "expanded": x[:1].expand_as(x),
    }[form]
    assert not given.is_contiguous()
    assert_same(case(net, given), case(net, given.contiguous()))


@at_inputs
def test_dicts_are_tuples_with_names(case):
    pair, (a, b) = Pair(), inputs_of(Pair())
    if case.takes("baselines"):
        named = case(pair, {"b": b, "a": a}, baselines={"a": 0.5, "b": a.new_ones(1, 2, 3)})
        same = case(pair, (a, b), baselines=(0.5, a.new_ones(1, 2, 3)))
    else:
        named, same = case(pair, {"b": b, "a": a}), case(pair, (a, b))
    assert list(named) == ["b", "a"]
    assert_same((named["a"], named["b"]), same)


# --- rows -------------------------------------------------------------------------------------------------


@every
def test_rows_do_not_see_one_another(case):
    pair, given = Pair(), inputs_of(Pair(), 6)
    more = torch.randn(6, 1, dtype=torch.float64)
    together = parts(case(pair, given, additional_forward_args=more))
    order = torch.tensor([4, 0, 3, 5, 2, 1])
    turned = case(pair, tuple(t[order] for t in given), additional_forward_args=more[order])
    assert_same(turned, tuple(t[order] for t in together))
    for i in range(6):
        alone = case(pair, tuple(t[i : i + 1] for t in given), additional_forward_args=more[i : i + 1])
        assert_same(alone, tuple(t[i : i + 1] for t in together))


@every
def test_no_examples(case):
    for model in (Net(), Pair()):
        given = inputs_of(model, 0)
        assert [a.shape for a in parts(case(model, given))] == [torch.Size(s) for s in case.shapes(given)]


@every
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_chunks_change_nothing(case, rows):
    pair, given = Pair(), inputs_of(Pair())
    whole, sizes = case(pair, given), []
    pair.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert_same(case(pair, given, **{case.chunk: rows}), whole)
    assert max(sizes) <= (rows * len(given[0]) if case.chunk == "perturbations_per_eval" else rows)


# --- what is attributed -----------------------------------------------------------------------------------


@at_inputs
def test_what_the_model_does_not_use_gets_nothing(case):
    net, (x,) = Net(), inputs_of(Net())
    found = case(net, x)
    assert (found[..., 2] == 0).all() and found[..., :2].abs().sum() > 0
    if not case.neuron:  # a whole input that is not used
        whole, idle = case(lambda x, idle: net(x), (x, x[:, 0]))
        assert_same(whole, found)
        assert (idle == 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.linear and not c.neuron], ids=str)
def test_linear_in_the_score(case):
    pair, given = Pair(), inputs_of(Pair())
    one, other = parts(case(pair, given, 0)), parts(case(pair, given, 3))
    both = case(pair, given, lambda out: 2 * out[:, 0] - 3 * out[:, 3])
    assert_same(both, tuple(2 * a - 3 * b for a, b in zip(one, other, strict=True)))


@pytest.mark.parametrize("case", [c for c in CASES if not c.neuron], ids=str)
def test_a_target_for_each_example(case):
    pair, given = Pair(), inputs_of(Pair())
    classes = torch.tensor([3, 0, 1, 1, 2])
    found = parts(case(pair, given, classes))
    for k in range(4):
        own = parts(case(pair, given, k))
        assert_same(tuple(f[classes == k] for f in found), tuple(o[classes == k] for o in own))


@every
def test_further_arguments(case):
    """By place or by keyword; what has a row for each example follows it, whatever is repeated."""
    pair, given = Pair(), inputs_of(Pair())
    more, doubled = torch.randn(5, 1, dtype=torch.float64), Pair(scale=2.0)
    by_keyword = case(pair, given, additional_forward_kwargs={"more": more, "shift": torch.randn(5, 1).double()})
    assert_same(case(pair, given, additional_forward_args=(more,)), by_keyword)
    assert_same(case(pair, given, additional_forward_args=more), by_keyword)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(case(pair, given), by_keyword)
    if not case.neuron:
        assert_same(case(doubled, given), tuple(2 * a for a in parts(case(pair, given))))


@with_baselines
@pytest.mark.parametrize("form", ["zero", "one", "number", "row", "rows"])
def test_forms_of_baselines(case, form):
    net, (x,) = Net(), inputs_of(Net())
    row = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    given, full = {
        "zero": (None, torch.zeros_like(x)),
        "one": (1, torch.ones_like(x)),
        "number": (0.3, torch.full_like(x, 0.3)),
        "row": (row, row.expand_as(x).clone()),
        "rows": (row * x, row * x),
    }[form]
    assert_same(case(net, x, baselines=given), case(net, x, baselines=full))
    assert_same(case(net, (x,), baselines=(given,)), case(net, x, baselines=full))


@with_baselines
def test_nothing_happened_where_the_input_is_its_baseline(case):
    pair, given = Pair(), inputs_of(Pair())
    for found in parts(case(pair, given, baselines=given)):
        assert (found == 0).all()


def score(case, pair, given):
    """What is attributed: output 2, or neuron 2 of the layer."""
    seen = []
    with pair.layer.register_forward_hook(lambda _, __, out: seen.append(out)):
        out = pair(*given)
    return (seen[0] if case.neuron else out)[:, 2].detach()


@complete
def test_completeness(case):
    """Attributions add up to the score's rise from the baseline, and the delta says by how much they miss."""
    pair, given = Pair(), inputs_of(Pair())
    start = tuple(0.5 * torch.randn_like(t[:1]) for t in given)
    found = case(pair, given, baselines=start)
    rise = score(case, pair, given) - score(case, pair, [s.expand_as(t) for s, t in zip(start, given, strict=True)])
    assert_close(sum(a.flatten(1).sum(1) for a in parts(found)), rise, rtol=0, atol=1e-6)
    if case.takes("return_convergence_delta"):
        same, delta = case(pair, given, baselines=start, return_convergence_delta=True)
        assert_same(same, found)
        assert delta.shape == (5,) and delta.abs().max() < 1e-6
        again = case.bind(pair).compute_convergence_delta(found, start, given, 2)
        assert_close(delta, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c.takes("return_convergence_delta")], ids=str)
def test_deltas_tell_what_is_missing(case):
    """With one step on a curved path something is missing; row by row, and for a dict too."""
    pair, given = Pair(), inputs_of(Pair())
    found, delta = case(pair, given, n_steps=1, method="riemann_left", return_convergence_delta=True)
    total = sum(a.flatten(1).sum(1) for a in parts(found))
    rise = (pair(*given) - pair(*(torch.zeros_like(t) for t in given)))[:, 2]
    assert_close(delta, (total - rise).detach(), rtol=0, atol=1e-12)
    assert delta.abs().min() > 1e-4
    if case.at_input:
        named = dict(zip(("a", "b"), given, strict=True))
        attributions = dict(zip(("a", "b"), found, strict=True))
        again = case.bind(pair).compute_convergence_delta(attributions, None, named, 2)
        assert_close(delta, again, rtol=0, atol=1e-12)


# --- around it --------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None])
def test_modes(case, mode):
    net, (x,) = Net(), inputs_of(Net())
    expected = case(net, x)
    with (mode or nullcontext)():
        given = x.clone().requires_grad_(mode is None)
        assert_same(case(net, given), expected, 0)
    assert given.grad is None and given.requires_grad == (mode is None)


class Busy(nn.Module):
    """In place on its input, a buffer that counts, draws from every generator; or the same without."""

    def __init__(self, quiet=False):
        super().__init__()
        self.net, self.quiet = Net(), quiet
        self.layer = self.net.layer
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.quiet:
            return self.net(x * 2 - 0.5)
        self.seen += 1
        torch.rand(2), np.random.rand(2), random.random()
        return self.net(x.mul_(2).sub_(0.5))


@every
def test_leaves_no_trace(case):
    model, (x,) = Busy(), inputs_of(Net())
    kept = x.clone()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = case(model, x)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    assert torch.equal(x, kept) and model.seen == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert_same(found, case(Busy(quiet=True), x))


@pytest.mark.parametrize("case", [c for c in CASES if not c.takes("layer") and c.at_input and not c.neuron], ids=str)
def test_a_plain_function_will_do(case):
    x = torch.randn(4, 3, dtype=torch.float64)
    assert_close(case(lambda x: x.square().sum(1), x, None), case(nn.Sequential(Squares()), x, None))


class Squares(nn.Module):
    def forward(self, x):
        return x.square().sum(1)


@every
def test_captums_wrappers_can_wrap_it(case):
    """They look for ``attribute.__wrapped__`` and print ``get_name()``."""
    method = case.bind(Net())
    assert method.attribute.__wrapped__ is not method.attribute
    assert "".join(method.get_name().split()) == type(method).__name__
    assert repr(method) == f"{type(method).__name__}(Net)"
    assert "additional_forward_args" in inspect.signature(method.attribute).parameters


@every
def test_a_target_that_does_not_fit_is_an_assertion_error_too(case):
    for bad in (7, [0, 1], torch.tensor([0.5]), None) if not case.neuron else (7, (0, 1)):
        if bad is None and case.method.__name__ == "FeatureAblation":
            continue  # several numbers per example are several maps there
        with pytest.raises(TargetError) as caught:
            case(Net(), *inputs_of(Net()), bad)
        assert isinstance(caught.value, AssertionError) and isinstance(caught.value, ValueError)


def test_the_list_is_the_room():
    assert len(CASES) >= 6 and IntegratedGradients in [c.method for c in CASES]

"""The laws of every attribution method: a new one stands in the room and meets them all.

That none leaves a trace on the model, also after a failure and beside another thread, is in engine/test_guard.py.
"""

import copy
import inspect
import pickle
from contextlib import nullcontext

import captum._utils.gradient
import captum.attr
import pytest
import torch
from attribution_cases import CASES, METHODS, Net, Pair, inputs_of, parts, some, unit
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from robustx.attribution import Attribution, IntegratedGradients, PerturbationAttribution
from robustx.engine import Each, TargetError


def law(wanted=lambda case: True, *names):
    """The cases that are wanted, and meet the laws that are named."""
    cases = [c for c in CASES if wanted(c) and all(map(c.meets, names))]
    return pytest.mark.parametrize("case", cases, ids=str)


every = law()
targeted = law(lambda c: c.target == "target")
with_baselines = law(lambda c: c.takes("baselines") and not c.distribution)


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
    for found, model, given in ((single, net, (x,)), (one, net, (x,)), (both, pair, two)):
        assert [a.shape for a in parts(found)] == case.shapes(model, given)
        assert not any(a.requires_grad for a in parts(found))
    assert_same(single, one)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(case, dtype):
    (x,) = inputs_of(Net(), dtype=dtype)
    exact, found = case(Net(), x.double()), case(Net(dtype), x)
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


@every
def test_dicts_are_tuples_with_names(case):
    pair, (a, b) = Pair(), inputs_of(Pair())
    given = {"a": a, "b": b} if case.drawn else {"b": b, "a": a}  # draws are a function of all inputs in their order
    named, same = case(pair, given), case(pair, (a, b))
    if case.takes("baselines") and not case.distribution:
        named = case(pair, given, baselines={"a": 0.5, "b": b.new_ones(1, 2, 3)})
        same = case(pair, (a, b), baselines=(0.5, b.new_ones(1, 2, 3)))
    if case.at_input:
        assert type(named) is dict and list(named) == list(given)
        named = named["a"], named["b"]
    assert_same(named, same)


class Widening(Pair):
    """Its second input may be in a narrower dtype."""

    def forward(self, a, b):
        return super().forward(a, b.double())


@law(lambda c: c.at_input)
def test_each_input_keeps_its_dtype(case):
    a, b = inputs_of(Pair())
    found, exact = case(Widening(), (a, b.float())), case(Pair(), (a, b.float().double()))
    by_values = issubclass(case.method, PerturbationAttribution)  # they are in the output's dtype
    narrow = torch.float64 if by_values else torch.float32
    assert [f.dtype for f in found] == [torch.float64, narrow]
    assert_same([f.double() for f in found], exact, 1e-6)


class Spare(Pair):
    """A third input without a single element."""

    shapes = (*Pair.shapes, (1, 0))

    def forward(self, a, b, empty):
        return super().forward(a, b)


@every
def test_inputs_may_be_empty(case):
    found = case(Spare(), inputs_of(Spare()))
    if case.at_input:
        assert found[2].shape == (5, 1, 0)
    assert_same(found[:2] if case.at_input else found, case(Pair(), inputs_of(Pair())))


# --- rows -------------------------------------------------------------------------------------------------


@every
def test_rows_do_not_see_one_another(case):
    pair, given = Pair(), inputs_of(Pair(), 6)
    more = torch.randn(6, 1, dtype=torch.float64)
    together = parts(case(pair, given, additional_forward_args=more))
    order = torch.tensor([4, 0, 3, 5, 2, 1])
    turned = case(pair, tuple(t[order] for t in given), additional_forward_args=more[order])
    assert_same(turned, tuple(t[order] for t in together))
    for i in range(6) if case.meets("alone") else ():
        alone = case(pair, tuple(t[i : i + 1] for t in given), additional_forward_args=more[i : i + 1])
        assert_same(alone, tuple(t[i : i + 1] for t in together))


@every
def test_no_examples(case):
    for model in (Net(), Pair()):
        given = inputs_of(model, 0)
        assert [a.shape for a in parts(case(model, given))] == case.shapes(model, given)


@every
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_chunks_change_nothing(case, rows):
    pair, given = Pair(), inputs_of(Pair())
    whole, sizes = case(pair, given), []
    pair.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert_same(case(pair, given, **{case.chunk: rows}), whole)
    assert max(sizes) <= (rows * len(given[0]) if case.chunk == "perturbations_per_eval" else rows)


# --- what is attributed -----------------------------------------------------------------------------------


class Idle(nn.Module):
    """A net beside an input that it does not use."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.layer = self.net.layer

    def forward(self, x, idle):
        return self.net(x)


@law(lambda c: c.at_input, "unused")
def test_what_the_model_does_not_use_gets_nothing(case):
    (x,) = inputs_of(Net())
    found = case(Net(), x)
    tiny = 1e-15 if issubclass(case.method, PerturbationAttribution) else 0.0  # what is left of sums of scores
    assert (found[..., 2].abs() <= tiny).all() and found[..., :2].abs().sum() > 0
    whole, idle = case(Idle(), (x, x.flip(0)))
    assert whole.abs().sum() > 0 and (idle.abs() <= tiny).all()
    if not case.drawn and case.meets("idle"):  # else draws are a function of all inputs
        assert_same(whole, found)


@law(lambda c: c.target == "target", "linear")
def test_linear_in_the_score(case):
    pair, given = Pair(), inputs_of(Pair())
    one, other = parts(case(pair, given, 0)), parts(case(pair, given, 3))
    both = case(pair, given, lambda out: 2 * out[:, 0] - 3 * out[:, 3])
    assert_same(both, tuple(2 * a - 3 * b for a, b in zip(one, other, strict=True)))
    assert_same(case(Pair(scale=2.0), given), tuple(2 * a for a in parts(case(pair, given))))


@targeted
def test_a_target_for_each_example(case):
    pair, given = Pair(), inputs_of(Pair())
    classes = torch.tensor([3, 0, 1, 1, 2])
    found = parts(case(pair, given, classes))
    assert_same(case(pair, given, classes.tolist()), found)
    assert_same(case(pair, given, [(k,) for k in classes.tolist()]), found)
    for k in range(4):
        own = parts(case(pair, given, k))
        assert_same(tuple(f[classes == k] for f in found), tuple(o[classes == k] for o in own))
        assert_same(case(pair, given, torch.tensor(k)), own)


@targeted
def test_any_number_that_is_made_of_the_output(case):
    pair, given = Pair(), inputs_of(Pair())
    assert_same(case(pair, given, lambda out: out[:, 1]), case(pair, given, 1))
    curved = case(pair, given, lambda out: out.square().sum(1))
    for found, plain in zip(parts(curved), parts(case(pair, given, 1)), strict=True):
        assert found.shape == plain.shape and not torch.allclose(found, plain)


@targeted
def test_several_targets_in_one_call(case):
    pair, given, several = Pair(), inputs_of(Pair()), [0, torch.tensor([3, 0, 1, 1, 2]), lambda out: out.sum(1)]
    together = parts(case(pair, given, Each(several)))
    for i, target in enumerate(several):
        alone = parts(case(pair, given, target))
        assert [t.shape for t in together] == [torch.Size((5, 3, *a.shape[1:])) for a in alone]
        assert_same(tuple(t[:, i] for t in together), alone)
    if case.takes("return_convergence_delta"):
        deltas = case(pair, given, Each(several), return_convergence_delta=True)[1]
        if case.takes("baselines") and case.over is None and not case.distribution:
            assert_same(case.bind(pair).compute_convergence_delta(together, None, given, Each(several)), deltas)
        for i, target in enumerate(several):
            assert_same(deltas[:, i], case(pair, given, target, return_convergence_delta=True)[1])


@law(lambda c: True, "shift")
def test_further_arguments(case):
    """By place or by keyword; what has a row for each example follows it, whatever is repeated."""
    pair, given = Pair(), inputs_of(Pair())
    more = torch.randn(5, 1, dtype=torch.float64)
    by_keyword = case(pair, given, additional_forward_kwargs={"more": more, "shift": torch.randn(5, 1).double()})
    assert_same(case(pair, given, additional_forward_args=(more,)), by_keyword)
    assert_same(case(pair, given, additional_forward_args=more), by_keyword)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(case(pair, given), by_keyword)


@law(lambda c: c.layered)
def test_what_goes_into_a_layer_comes_out_of_the_one_before(case):
    net, (x,) = Net(), inputs_of(Net())
    before, behind = case.bind(net), case.method(net, net.next)
    side = next(n for n in ("attribute_to_layer_input", "attribute_to_neuron_input") if case.takes(n))
    assert_same(case.ask(behind, x, **{side: True}), case.ask(before, x), 0)


@law(lambda c: not c.at_input and c.layered)
def test_a_list_of_layers_gives_a_list(case):
    """Of layers in a row the last one is what all went through."""
    net, (x,) = Net(), inputs_of(Net())
    found = case.ask(case.method(net, [net.layer, net.next]), x)
    assert type(found) is list and [f.shape for f in found] == 2 * case.shapes(net, (x,))
    if case.meets("idle"):
        assert_same(found[1], case.ask(case.method(net, net.next), x))


@every
def test_frozen_models_are_models_too(case):
    net, (x,) = Net(), inputs_of(Net())
    assert_same(case(net.requires_grad_(False), x), case(Net(), x), 0)
    assert not any(p.requires_grad for p in net.parameters())


@law(lambda c: hasattr(c.method, "gradient_func"))
def test_gradients_may_be_replaced(case):
    """Where plain gradients at the inputs are all that it asks for; else it says so."""
    net, (x,), asked = Net(), inputs_of(Net()), []

    def plain(*args):
        asked.append(args)
        return captum._utils.gradient.compute_gradients(*args)

    method = case.bind(net)
    method.gradient_func = plain
    if case.at_input and not case.neuron and case.meets("plain"):
        assert_same(case.ask(method, x), case(net, x))
        assert asked
    else:
        with pytest.raises(TypeError, match="leave gradient_func as it is"):
            case.ask(method, x)


@law(lambda c: c.over is None)
def test_the_model_may_be_replaced(case):
    """As captum's own methods do with ``forward_func``; a layer that is named must be part of the new one."""
    pair, given = Pair(), inputs_of(Pair())
    method = copy.copy(case.bind(pair))
    method.forward_func = lambda *args: pair(*args, more=0.5)
    assert_same(case.ask(method, given), case(pair, given, additional_forward_kwargs={"more": 0.5}))


# --- what it is compared with -----------------------------------------------------------------------------


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


@law(lambda c: c.distribution)
def test_forms_of_distributions(case):
    """Tensors, or a function that makes them: of the inputs, in the form in which these came, or of nothing."""
    net, (x,), pair, (a, b) = Net(), inputs_of(Net()), Pair(), inputs_of(Pair())
    data, (of_a, of_b) = some(x), some((a, b))
    found = case(net, x, baselines=data)
    for model, inputs, baselines, expected in (
        (net, x, lambda: data, found),
        (net, x, lambda x: x.new_tensor(data.tolist()), found),
        (net, (x,), (data,), found),
        (net, (x,), lambda inputs: (inputs[0].new_tensor(data.tolist()),), found),
        (pair, (a, b), (of_a, of_b), case(pair, (a, b))),
        (pair, {"b": b, "a": a}, {"b": of_b, "a": of_a}, case(pair, {"b": b, "a": a})),
        (pair, {"b": b, "a": a}, lambda inputs: {k: some(v) for k, v in inputs.items()}, case(pair, {"b": b, "a": a})),
    ):
        again = case(model, inputs, baselines=baselines)
        assert_same(tree_leaves(again), tree_leaves(expected))


@law(lambda c: c.takes("baselines"), "start")
def test_nothing_happened_where_the_input_is_its_baseline(case):
    pair, given = Pair(), inputs_of(Pair(), 1 if case.distribution else 5)
    quiet = {"stdevs": 0.0} if "stdevs" in case.usual else {}
    found = parts(case(pair, given, baselines=given, **quiet))
    assert_same(found, [torch.zeros_like(f) for f in found], 1e-15)


def score(case, pair, given):
    """What is attributed: output 2, or neuron 2 of the layer."""
    seen = []
    with pair.layer.register_forward_hook(lambda _, __, out: seen.append(unit(out))):
        out = pair(*given)
    return (seen[0] if case.neuron else out[:, 2]).detach()


@law(lambda c: c.exact is not None)
def test_completeness(case):
    """Attributions add up to the score's rise from the baseline, or from the mean over several."""
    pair, given = Pair(), inputs_of(Pair())
    start = tuple(0.5 * torch.randn(3 if case.distribution else 1, *s, dtype=torch.float64) for s in pair.shapes)
    found = case(pair, given, baselines=start, **case.exact)
    rise = score(case, pair, given) - score(case, pair, start).mean()
    assert_close(sum(a.flatten(1).sum(1) for a in parts(found)), rise, rtol=0, atol=case.within)


@every
def test_says_whether_it_adds_up(case):
    says = case.bind(Net()).has_convergence_delta()
    assert says == case.takes("return_convergence_delta")
    assert not says or case.exact is not None or not case.meets("complete")


@law(lambda c: c.takes("baselines") and c.takes("return_convergence_delta"))
def test_deltas_tell_what_is_missing(case):
    """Row by row, and for a dict too; of several samples of an example, in the mean."""
    pair, given = Pair(), inputs_of(Pair())
    start = tuple(0.5 * torch.randn(1, *s, dtype=torch.float64) for s in pair.shapes)
    options = {"baselines": start, **(case.coarse or {})}
    found, delta = case(pair, given, return_convergence_delta=True, **options)
    assert_same(case(pair, given, **options), found)
    total = sum(a.flatten(1).sum(1) for a in parts(found))
    missing = total - (score(case, pair, given) - score(case, pair, start))
    assert_close(delta.unflatten(0, (5, -1)).mean(1), missing, rtol=0, atol=1e-12)
    assert case.coarse is None or delta.abs().max() > 1e-3
    given, start = dict(zip("ab", given, strict=True)), dict(zip("ab", start, strict=True))
    found = dict(zip("ab", found, strict=True)) if case.at_input else found
    again = case.bind(pair).compute_convergence_delta(found, start, given, 2)
    assert_close(again, missing, rtol=0, atol=1e-12)


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


class InPlace(nn.Module):
    """Works in place on its very input; or the same without."""

    def __init__(self, quiet=False):
        super().__init__()
        self.net, self.quiet = Net(), quiet
        self.layer = self.net.layer

    def forward(self, x):
        return self.net(x * 2 - 0.5 if self.quiet else x.mul_(2).sub_(0.5))


@every
def test_models_may_work_in_place(case):
    (x,) = inputs_of(Net())
    kept = x.clone()
    assert_same(case(InPlace(), x), case(InPlace(quiet=True), x))
    assert torch.equal(x, kept)


class Squares(nn.Module):
    def forward(self, x):
        return x.square().sum(1)


@law(lambda c: c.at_input and not c.layered and c.over is None)
def test_a_plain_function_will_do(case):
    x = torch.randn(4, 3, dtype=torch.float64)
    assert_close(case(lambda x: x.square().sum(1), x, None), case(Squares(), x, None))


@every
def test_copies_are_apart(case):
    """Also through a file: a copy has a model of its own, and the layer that belongs to it."""
    net, (x,) = Net(), inputs_of(Net())
    method, expected = case.bind(net), case(net, x)
    for copied in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert type(copied) is type(method) and repr(copied) == repr(method)
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        assert_same(case.ask(copied, x), expected, 0)
        net.load_state_dict(Net().state_dict())


@every
def test_captums_wrappers_can_wrap_it(case):
    """They look for ``attribute.__wrapped__`` and print ``get_name()``."""
    method = case.bind(Net())
    assert method.attribute.__wrapped__ is not method.attribute
    assert "".join(method.get_name().split()) == type(method).__name__
    assert case.takes("additional_forward_args")
    if type(method).attribute_future is Attribution.attribute_future:
        words, error = f"not implemented for {type(method).__name__}", NotImplementedError
    else:
        words, error = "for a model that returns futures, got Tensor", TypeError
    with pytest.raises(error, match=f"attribute_future is {words}"):
        method.attribute_future(*inputs_of(Net()))


def parameters(function):
    return [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]


@law(lambda c: hasattr(captum.attr, c.method.__name__))
def test_is_called_as_captums(case):
    """The same arguments in the same places, with the same defaults; what is new has a default, or comes by keyword."""
    theirs = getattr(captum.attr, case.method.__name__)
    for name in ("__init__", "attribute"):
        ours, old = parameters(getattr(case.method, name)), parameters(getattr(theirs, name))
        assert [p.name for p in ours][: len(old)] == [p.name for p in old]
        for p, q in zip(ours, old, strict=False):
            assert p.kind in (q.kind, p.POSITIONAL_OR_KEYWORD)
            own = p.name in ("perturbations_per_eval", "perm_func")  # ours fills the memory, and is a function of ours
            assert q.default in (p.default, q.empty) or own
        assert all(p.default is not p.empty for p in ours[len(old) :])
    if case.over is None:
        ours, old = case.bind(Net()), theirs(Net(), *([Net().layer] if case.layered else []))
        assert ours.multiplies_by_inputs == old.multiplies_by_inputs
        assert ours.has_convergence_delta() == old.has_convergence_delta()
        assert ours.get_name() == old.get_name()


def test_captums_noise_tunnel_wraps_it():
    net, (x,) = Net(), inputs_of(Net())
    options = {"nt_samples": 4, "nt_samples_batch_size": 2, "stdevs": 0.1, "target": 1, "n_steps": 9}
    found = []
    for method in (IntegratedGradients(net), captum.attr.IntegratedGradients(net)):
        torch.manual_seed(5)
        found.append(captum.attr.NoiseTunnel(method).attribute(x, return_convergence_delta=True, **options))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-7)  # captum's weights are float32


@every
def test_says_what_it_is(case):
    net = Net()
    name, layer = type(case.bind(net)).__name__, ", layer" if case.layered else ""
    if case.over is None:
        assert repr(case.bind(net)) == f"{name}(Net{layer})"
    else:
        assert repr(case.bind(net)) == f"{name}({case.over.bind(net)!r})"


@law(lambda c: c.target is not None)
def test_a_target_that_does_not_fit_is_an_assertion_error_too(case):
    for bad in (7, [0, 1], torch.tensor([0.5]), None) if not case.neuron else (7, (0, 1)):
        if bad is None and not case.meets("one"):
            continue
        with pytest.raises(TargetError) as caught:
            case(Net(), *inputs_of(Net()), bad)
        assert isinstance(caught.value, AssertionError) and isinstance(caught.value, ValueError)


def test_the_list_is_the_room():
    assert {c.method for c in CASES} == set(METHODS) and IntegratedGradients in METHODS

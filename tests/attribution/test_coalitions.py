"""The evaluator that all methods of coalitions share."""

import captum.attr
import pytest
import torch
from models import mlp
from torch.testing import assert_close

import robustx.attribution
from robustx.attribution import FeatureAblation, KernelShap, Lime, Occlusion, ShapleyValueSampling
from robustx.attribution.coalitions import Coalitions, alone
from robustx.engine import Output, Pace, Probe
from robustx.engine.scores import OutputError, TargetError
from robustx.perturb import through
from robustx.perturb.features import elements


def players(b=3, target=1, limit=None):
    torch.manual_seed(0)
    f = Probe(mlp(), (torch.randn(b, 5, dtype=torch.float64),), Output(target), pace=Pace(limit))
    return Coalitions(f, elements(5), through(None))


def outputs(model, x):
    """By hand: the score of each example without each element [B, F]."""
    return torch.stack([model(x.index_fill(1, torch.tensor([i]), 0))[:, 1] for i in range(5)], 1).detach()


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 7, 18, 100])
@pytest.mark.parametrize("first", ["the sets", "the examples"])
def test_the_examples_are_asked_once_whoever_comes_first(limit, first):
    p = players(limit=limit)
    if first == "the examples":
        assert_close(p.all_there, p.f.model(p.f.inputs[0])[:, 1].detach())
    found = torch.full((3, 5), torch.nan, dtype=torch.float64)
    for a in p.ask(5, alone(5)):
        found[a.rows, a.sets] = a.values
        assert_close(a.absent, torch.eye(5, dtype=torch.float64)[a.sets])
    assert_close(found, outputs(p.f.model, p.f.inputs[0]))
    assert_close(p.all_there, p.f.model(p.f.inputs[0])[:, 1].detach())
    assert p.f.meter.forward.tolist() == [6] * 3


@pytest.mark.parametrize("count, rows", [(0, None), (4, torch.tensor([], dtype=torch.long))])
def test_no_sets(count, rows):
    p = players()
    assert list(p.ask(count, alone(5), rows=rows)) == []
    assert_close(p.all_there, p.f.model(p.f.inputs[0])[:, 1].detach())


def test_sets_of_some_examples():
    p = players()
    (a,) = p.ask(2, alone(5), rows=torch.tensor([2, 0]))
    assert a.rows.tolist() == [2, 0, 2, 0] and a.sets.tolist() == [0, 0, 1, 1]
    assert_close(a.values, outputs(p.f.model, p.f.inputs[0])[a.rows, a.sets])
    assert_close(p.all_there, p.f.model(p.f.inputs[0])[:, 1].detach())


METHODS = [
    (FeatureAblation, {}, 5),
    (Occlusion, {"sliding_window_shapes": 2}, 4),
    (ShapleyValueSampling, {"n_samples": 2}, 9),
    (KernelShap, {"n_samples": 32}, 31),
    (Lime, {"n_samples": 9}, 9),
]


@pytest.mark.parametrize("method, options, sets", METHODS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("b", [1, 3])
def test_small_jobs_go_at_once(method, options, sets, b):
    """In one pass, and those that know the score of nobody there before anything else in two."""
    model, passes, x = mlp(), [], torch.randn(b, 5, dtype=torch.float64)
    model.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    method(model).attribute(x, target=1, **options)
    assert sum(passes) == b * (1 + sets) and len(passes) == 1 + (method is ShapleyValueSampling)


def test_an_answer_for_the_whole_batch_is_refused_where_one_of_each_example_was_named():
    with pytest.raises(OutputError, match="one row per example") as e:
        FeatureAblation(lambda x: x.sum(0, keepdim=True)).attribute(torch.randn(3, 5), target=1)
    assert "perturbations_per_eval" not in str(e.value)


SEVERAL = [1, (slice(0, 2), 1), [(0,), (1,), (1,)], (slice(None), slice(1, None))]


@pytest.mark.parametrize("target", SEVERAL, ids=str)
@pytest.mark.parametrize("name", ["FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues"])
def test_targets_that_leave_several_numbers(name, target):
    x, weight = torch.randn(3, 4), torch.randn(4, 6)

    def model(x):
        return (x @ weight).unflatten(1, (2, 3)).tanh()

    found = []
    for library in (robustx.attribution, captum.attr):
        torch.manual_seed(0)
        found.append(getattr(library, name)(model).attribute(x, target=target))
    assert found[0].numel() > x.numel()
    assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [KernelShap, Lime], ids=lambda m: m.__name__)
def test_surrogates_want_one_number(method):
    with pytest.raises(TargetError, match="choose one number per row"):
        method(lambda x: x[:, None].expand(-1, 2, -1)).attribute(torch.randn(3, 4), target=1)

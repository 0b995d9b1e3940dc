"""Goals that ask for more: against what they are made of, asked apart."""

import pytest
import torch
from torch import nn

from robustx.engine import Probe
from robustx.perturb import Everywhere, Leave, Reach, Steady, Until, Within


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


X = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def limit(inputs, rows):
    return 0.6 - inputs[0][:, 0] + rows / 100


def test_the_least_of_all_margins_counts_and_gradients_follow_what_is_missed():
    models, goal, f = [net(s) for s in range(3)], Leave(Y), Probe(net(0), (X,))
    both = Within(Everywhere(goal, tuple(models[1:])), (limit,))
    parts = [Probe(m, (X,), goal) for m in models] + [Probe(lambda x: limit((x,), torch.arange(6)), (X,), Until(id_))]
    want = torch.stack([p.score for p in parts])
    got, g = f.to(of=both).grad(X)
    torch.testing.assert_close(got, want.amin(0))
    grads = torch.stack([p.grad(X)[1] for p in parts])
    everyone = torch.arange(6)
    worst, model = want[:-1].amin(0), grads[want[:-1].argmin(0), everyone]
    missed = (worst < 0).double()[:, None] * model + (want[-1] < 0).double()[:, None] * grads[-1]
    alone = grads[want.argmin(0), everyone]
    torch.testing.assert_close(g, torch.where((got > 0)[:, None], alone, missed))
    assert len(want.argmin(0).unique()) > 1  # not always the same one
    assert f.to(of=both.firm(0.25)).score.equal(got - 0.25)
    assert both.plain is goal


def id_(out):
    return out


def test_passes_are_counted_for_all_that_is_asked():
    f = Probe(net(0), (X,))
    asked = f.to(of=Everywhere(Steady(Reach(Y), torch.ones(1, 4).double(), draws=5), (net(1),)))
    asked.value(X)
    assert f.meter.forward.tolist() == [12] * 6
    assert f.meter.backward.tolist() == [0] * 6


@pytest.mark.parametrize(("share", "least"), [(0.5, 10), (0.75, 15), (1.0, 20)])
def test_under_noise_the_margin_is_above_zero_exactly_where_enough_draws_reach_the_goal(share, least):
    f, sigma = Probe(net(0), (X,)), torch.full((1, 4), 0.5, dtype=torch.float64)
    steady = Steady(Leave(Y), sigma, share, draws=20)
    score = f.to(of=steady).score
    reached = torch.stack([f.to(of=steady.goal).value(X + sigma * m) > 0 for m in steady.moves]).sum(0)
    assert torch.equal(score > 0, (reached >= least) & (f.to(of=steady.goal).score > 0))


def test_noise_is_the_same_for_every_point_and_batch():
    f = Probe(net(0), (X,)).to(of=Steady(Leave(Y), torch.full((1, 4), 0.5, dtype=torch.float64)))
    rows = torch.tensor([3, 0, 3])
    torch.testing.assert_close(f.value(X[rows], rows), f.score[rows])


def test_further_arguments_reach_the_other_models_too():
    model = lambda x, k: x.sum(1) + k
    other = lambda x, k: x.sum(1) - k
    k = torch.arange(6.0).double()
    f = Probe(model, (X,), Everywhere(Until(id_), (other,)), args=(k,))
    rows = torch.tensor([5, 2])
    torch.testing.assert_close(f.value(X[rows], rows), X[rows].sum(1) - k[rows])

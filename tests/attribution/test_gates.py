"""Stochastic gates: captum's with the same draws, closed forms against draws, and features that a label needs."""

import captum.module
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from robustx import attribution
from robustx.attribution import BinaryConcreteStochasticGates, GaussianStochasticGates, StochasticGatesBase
from robustx.engine import ArgumentError, ArgumentTypeError

KINDS = ["BinaryConcreteStochasticGates", "GaussianStochasticGates"]
MASK = torch.tensor([[0, 0, 1], [2, 1, 0]])


def pair(kind, *args, **kwargs):
    """Ours and captum's with the same parameters."""
    torch.manual_seed(3)
    ours = getattr(attribution, kind)(*args, **kwargs)
    torch.manual_seed(3)
    return ours, getattr(captum.module, kind)(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "each"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_the_same_as_captum_with_the_same_draws(kind, training, masked, reduction):
    ours, theirs = pair(
        kind, 3 if masked else 6, mask=MASK if masked else None, reg_weight=0.3, reg_reduction=reduction
    )
    x = torch.randn(7, 2, 3)
    results = []
    for gates in (ours, theirs):
        gates.train(training)
        torch.manual_seed(5)
        gated, penalty = gates(x)
        # captum's penalty has no gradient without a reduction: it is scaled in place
        (gated.square().sum() + (penalty.sum() if reduction != "none" else 0)).backward()
        (p,) = gates.parameters()
        results.append((gated, penalty, p, p.grad, gates.get_gate_values(), gates.get_gate_values(clamp=False)))
        results[-1] += (gates.get_gate_active_probs(),)
    assert_close(*results)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())


def made(kind):
    p = torch.tensor([-2.0, -0.3, 0.0, 0.4, 3.0])
    if kind == "GaussianStochasticGates":
        return GaussianStochasticGates.from_pretrained(p, std=0.7)
    return BinaryConcreteStochasticGates.from_pretrained(p, temperature=0.5, lower_bound=-0.2, upper_bound=1.3)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_the_expected_number_by_draws(kind):
    gates, n = made(kind), 40000
    drawn = gates(torch.ones(n, 5))[0].detach()
    p = gates.get_gate_active_probs()
    sure = 4 * (p * (1 - p) / n).sqrt()
    assert ((drawn > 0).float().mean(0) - p).abs().le(sure).all()
    penalty = gates(torch.ones(1, 5))[1]
    assert_close(penalty, p.sum())
    assert ((drawn > 0).sum(1).float().mean() - penalty).abs() <= 4 * (p * (1 - p)).sum().sqrt() / n**0.5
    assert drawn.min() == 0 and drawn.max() == 1  # both ends are reached


def test_normal_gates_in_closed_form():
    gates = made("GaussianStochasticGates")
    at, std = gates.mu.detach(), 0.7
    normal = Normal(0.0, 1.0)
    assert_close(gates.get_gate_active_probs(), normal.cdf(at / std))
    (slope,) = torch.autograd.grad(gates(torch.ones(1, 5))[1], gates.mu)
    assert_close(slope, normal.log_prob(at / std).exp() / std)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_for_each_gate_has_gradients(kind):
    gates = made(kind)
    (truth,) = torch.autograd.grad(gates(torch.ones(1, 5))[1], gates.parameters())
    gates.reg_reduction, gates.reg_weight = "none", 2.0
    (slope,) = torch.autograd.grad(gates(torch.ones(1, 5))[1].sum(), gates.parameters())
    assert_close(slope, 2 * truth)


def test_concrete_gates_in_closed_form():
    gates = made("BinaryConcreteStochasticGates")
    # stretched below zero where u is below this
    shut = torch.sigmoid(torch.logit(torch.tensor(0.2 / 1.5)) * 0.5 - gates.log_alpha_param.detach())
    assert_close(gates.get_gate_active_probs(), 1 - shut)


@pytest.mark.parametrize("kind", KINDS)
def test_each_example_has_its_draws_and_a_feature_one_gate(kind):
    gates = getattr(attribution, kind)(3, mask=MASK)
    gated = gates(torch.ones(50, 2, 3))[0]
    assert len(gated.flatten(1).unique(dim=0)) > 40
    for k in range(3):
        of = gated[:, k == MASK]
        assert (of == of[:, :1]).all()
    assert gates(torch.ones(0, 2, 3))[0].shape == (0, 2, 3)
    assert gates.double()(torch.ones(2, 2, 3, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_gates_stay_open_for_what_a_label_needs(kind):
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    y = (x[:, 2] - x[:, 5] > 0).long()
    gates, model = getattr(attribution, kind)(8, reg_weight=0.1), nn.Linear(8, 2)
    adam = torch.optim.Adam([*gates.parameters(), *model.parameters()], 0.05)
    for _ in range(300):
        adam.zero_grad()
        gated, penalty = gates(x)
        (nn.functional.cross_entropy(model(gated), y) + penalty).backward()
        adam.step()
    assert set(gates.get_gate_active_probs().topk(2).indices.tolist()) == {2, 5}
    assert (gates.get_gate_values() > 0).nonzero().flatten().tolist() == [2, 5]
    assert (model(gates.eval()(x)[0]).argmax(1) == y).float().mean() > 0.95


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="n_gates"):
        GaussianStochasticGates(0)
    with pytest.raises(ArgumentError, match="reg_reduction"):
        GaussianStochasticGates(2, reg_reduction="max")
    with pytest.raises(ArgumentError, match=r"mask must name each of the 3 gates, 0 to 2, and no other; got \[0, 2\]"):
        GaussianStochasticGates(3, mask=torch.tensor([0, 2]))  # captum takes it
    with pytest.raises(ArgumentTypeError, match="integers"):
        GaussianStochasticGates(2, mask=torch.tensor([0.0, 1.0]))
    with pytest.raises(ArgumentError, match="std"):
        GaussianStochasticGates(2, std=0)
    with pytest.raises(ArgumentError, match="temperature"):
        BinaryConcreteStochasticGates(2, temperature=1)
    with pytest.raises(ArgumentError, match="lower_bound"):
        BinaryConcreteStochasticGates(2, lower_bound=0)
    for shape in ((4, 3), (2,)):
        with pytest.raises(ArgumentError, match="an element for each of the 2 gates"):
            GaussianStochasticGates(2)(torch.ones(shape))
    assert issubclass(GaussianStochasticGates, StochasticGatesBase)

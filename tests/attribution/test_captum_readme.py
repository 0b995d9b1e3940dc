"""Captum's README example runs with one import changed: the published numbers, and captum's in the same run."""

import numpy as np
import pytest
import torch
from test_integrated_gradients import Toy
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore")  # captum's advice

EXAMPLE = """
from {room} import (
    DeepLift,
    DeepLiftShap,
    GradientShap,
    IntegratedGradients,
    LayerConductance,
    NeuronConductance,
    NoiseTunnel,
)

model.eval()
torch.manual_seed(123)
np.random.seed(123)
input = torch.rand(2, 3)
baseline = torch.zeros(2, 3)
ig = IntegratedGradients(model)
integrated, integrated_delta = ig.attribute(input, baseline, target=0, return_convergence_delta=True)

baseline_dist = torch.randn(10, 3) * 0.001
shap, shap_delta = GradientShap(model).attribute(
    input, stdevs=0.09, n_samples=4, baselines=baseline_dist, target=0, return_convergence_delta=True
)
lift, lift_delta = DeepLift(model).attribute(input, baseline, target=0, return_convergence_delta=True)
lift_shap, lift_shap_delta = DeepLiftShap(model).attribute(
    input, baseline_dist, target=0, return_convergence_delta=True
)
smooth, smooth_delta = NoiseTunnel(ig).attribute(
    input, nt_type="smoothgrad", stdevs=0.02, nt_samples=4, baselines=baseline, target=0, return_convergence_delta=True
)
neuron = NeuronConductance(model, model.lin1).attribute(input, neuron_selector=1, target=0)
layer, layer_delta = LayerConductance(model, model.lin1).attribute(
    input, baselines=baseline, target=0, return_convergence_delta=True
)
drawn_next = torch.rand(2), torch.from_numpy(np.random.rand(2))
"""

SHAPES = {"integrated_delta": 2, "shap_delta": 8, "lift_delta": 2, "lift_shap_delta": 20, "smooth_delta": 8}

PUBLISHED = {
    "integrated": [[-0.5922, -1.5497, -1.0067], [0.0, -0.2219, -5.1991]],
    "shap": [[-0.1542, -1.6229, -1.5835], [-0.3916, -0.2836, -4.6851]],
    "lift": [[-0.5922, -1.5497, -1.0067], [0.0, -0.2219, -5.1991]],
    "smooth": [[-0.4574, -1.5493, -1.0893], [0.0, -0.2647, -5.1619]],
    "neuron": [[0.0, 0.0, 0.0], [1.3358, 0.0, -1.6811]],
}


def run(room):
    """What the example's names stand for in the end."""
    names = {"torch": torch, "np": np, "model": Toy()}
    before = set(names)
    exec(EXAMPLE.format(room=room), names)
    return {name: v for name, v in names.items() if name not in before and isinstance(v, torch.Tensor | tuple)}


def test_published_numbers():
    found = run("robustx.attribution")
    for name, numbers in PUBLISHED.items():
        assert_close(found[name], torch.tensor(numbers), rtol=0, atol=5e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert {name: len(found[name]) for name in SHAPES} == SHAPES
    assert not found["lift_delta"].any()
    for name, most in (("integrated_delta", 1e-6), ("lift_shap_delta", 1e-5), ("layer_delta", 1e-2)):
        assert found[name].abs().max() < most, name


def test_every_step_with_captum():
    """Down to what the global generators give next."""
    ours, theirs = run("robustx.attribution"), run("captum.attr")
    assert ours.keys() == theirs.keys() and len(ours) == 17
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert not isinstance(ours[name], torch.Tensor) or not ours[name].requires_grad

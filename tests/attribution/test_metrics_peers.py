"""Metrics of explanations beside Quantus (tests/peers.txt), in the same run and on the same attributions."""

import numpy as np
import pytest
import quantus
import torch
from torch import nn
from torch.testing import assert_close

from robustx.attribution import metrics

QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.fixture(scope="module")
def asked():
    """A network, pictures of one channel (a place is an element), its answers, attributions and objects."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.rand(6, 1, 8, 8, generator=generator)
    a, mask = torch.randn(x.shape, generator=generator), torch.rand(x.shape, generator=generator) < 0.3
    return net, x, net(x).argmax(1), a, mask


def told(metric, asked, positive=False, **kwargs):
    net, x, y, a, mask = asked
    a = a.clamp(min=0) if positive else a
    arrays = {"x_batch": x.numpy(), "y_batch": y.numpy(), "a_batch": a.numpy(), "s_batch": mask.numpy()}
    return metric(model=net, channel_first=True, softmax=False, device="cpu", **arrays, **kwargs)


@pytest.mark.parametrize("step", [1, 16], ids=["one by one", "in quarters"])
def test_pixel_flipping(asked, step):
    net, x, y, a, _ = asked
    theirs = told(quantus.PixelFlipping(features_in_step=step, perturb_baseline=0.25, **QUIET), asked)
    ours = metrics.deletion(net, x, a, y, baselines=0.25, steps=64 // step)
    assert_close(ours.scores[:, 1:], torch.tensor(np.array(theirs)).to(x), atol=1e-5, rtol=1e-4)


def test_faithfulness(asked):
    net, x, y, a, _ = asked
    pearson = quantus.similarity_func.correlation_pearson
    same = {"similarity_func": pearson, "perturb_baseline": 0.25, **QUIET}
    ours = metrics.faithfulness_estimate(net, x, a, y, baselines=0.25)
    assert_close(ours, torch.tensor(told(quantus.FaithfulnessEstimate(**same), asked)).double(), atol=1e-5, rtol=1e-4)
    np.random.seed(0)
    theirs = told(quantus.FaithfulnessCorrelation(subset_size=12, nr_runs=600, return_aggregate=False, **same), asked)
    sampled = metrics.faithfulness_correlation(net, x, a, y, baselines=0.25, size=12, samples=600)
    assert_close(sampled, torch.tensor(theirs).double(), atol=0.2, rtol=0)  # each errs by 0.04 (one deviation)


def test_road(asked):
    net, x, y, a, _ = asked
    shares = [0.25, 0.5, 0.75]
    theirs = told(quantus.ROAD(percentages=[25, 50, 75], noise=0.0, **QUIET), asked)
    ours = metrics.road(net, x, a, y, noise=0.0, steps=shares).scores.mean(0)
    assert_close(ours, torch.tensor([theirs[p] for p in (25, 50, 75)]).to(ours))


SHAPES = {
    "sparseness": (quantus.Sparseness, {}, metrics.sparseness),
    "complexity": (quantus.Complexity, {}, metrics.complexity),
    "effective complexity": (quantus.EffectiveComplexity, {"eps": 0.1}, lambda a: metrics.effective_complexity(a, 0.1)),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes(asked, name):
    metric, options, ours = SHAPES[name]
    *_, a, _ = asked
    whole = a / a.abs().amax((1, 2, 3), keepdim=True)  # theirs divides by the greatest of the whole batch
    theirs = told(metric(normalise=False, **options, **QUIET), (*asked[:3], whole, asked[4]))
    assert_close(ours(a).double(), torch.tensor(theirs).double(), atol=1e-5, rtol=1e-4)


PLACES = {
    "pointing game": (quantus.PointingGame, metrics.pointing_game, {}),
    "relevance mass": (quantus.RelevanceMassAccuracy, metrics.relevance_mass, {}),
    "relevance rank": (quantus.RelevanceRankAccuracy, metrics.relevance_rank, {}),
    "attribution localisation": (
        quantus.AttributionLocalisation,
        metrics.relevance_mass,
        {"positive_attributions": True, "abs": False},
    ),
}


@pytest.mark.parametrize("name", list(PLACES))
def test_places(asked, name):
    metric, ours, options = PLACES[name]
    *_, a, mask = asked
    positive = name == "relevance mass"  # theirs lets negative attributions count against it
    theirs = np.array(told(metric(**options, **QUIET), asked, positive=positive)).astype(float).reshape(-1)
    assert_close(ours(a, mask).double(), torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)

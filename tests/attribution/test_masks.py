"""Masks over many features at once: closed forms for models that are linear in the mask, analytic Sobol indices,
evidence that was planted."""

import itertools
from math import pi

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from torch.testing import assert_close

from robustx.attribution import RISE, ExtremalPerturbation, SobolAttribution
from robustx.attribution.masks import Shifted
from robustx.engine import BlackBox, Each
from robustx.perturb import Grid, blocks, superpixels

# --- random masks -----------------------------------------------------------------------------------------


def one_mask(drawn, shift, shape, cells, keep):
    """Petsiuk et al., section 3.2, with an enlargement by PyTorch."""
    size = [-(-n // c) for n, c in zip(shape, cells, strict=True)]
    grid = (drawn < keep).double().reshape(1, 1, *(c + 1 for c in cells))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    large = interpolate(grid, [s * (c + 1) for s, c in zip(size, cells, strict=True)], mode=mode)[0, 0]
    start = [int(u * s) for u, s in zip(shift, size, strict=True)]
    return large[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]


@pytest.mark.parametrize("shape", [(9,), (7, 10), (3, 8), (4, 5, 6)])
def test_masks_of_places(shape):
    cells = [min(4, n) for n in shape]
    masks = Shifted((torch.zeros(2, 3, *shape),), 4, 0.4)
    u = torch.rand(6, masks.draws, dtype=torch.float64)
    found = masks(u).reshape(6, *shape)
    many = masks.draws - len(shape)
    for row, mask in zip(u, found, strict=True):
        assert_close(mask, one_mask(row[:many], row[many:], shape, cells, 0.4))


def test_each_tensor_has_a_mask():
    """Pictures a smooth one, tables one of columns; as many gates as there are places."""
    inputs = torch.zeros(1, 3, 6, 6), torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 2, 0)
    masks = Shifted(inputs, 3, 0.5)
    found = masks(torch.rand(50, masks.draws, dtype=torch.float64))
    assert found.shape == (50, blocks(inputs).count) == (50, 36 + 4 + 1)
    assert found[:, 36:].unique().tolist() == [0, 1] and len(found[:, :36].unique()) > 10


def affine(weight):
    return lambda x: 0.5 + (x * weight).flatten(1).sum(1)


def test_rise_of_an_affine_model_and_single_features():
    """E[f] + (1 - p) times what the feature adds, within four standard errors."""
    torch.manual_seed(0)
    weight, x, p, n = torch.randn(6).double(), torch.rand(3, 6).double(), 0.3, 4000
    found = RISE(affine(weight)).attribute(x, n_samples=n, keep=p, feature_mask=torch.arange(6))
    adds = x * weight
    expected = 0.5 + p * adds.sum(1, keepdim=True) + (1 - p) * adds
    largest = (0.5 + adds.abs().sum(1)).max() / p  # what an average of is taken
    assert (found - expected).abs().max() < 4 * largest * p**0.5 / n**0.5
    coarser = RISE(affine(weight)).attribute(x, n_samples=n, keep=p)
    assert_close(coarser, found)  # the columns of a table are its features


def test_rise_of_an_affine_model_and_smooth_masks():
    """E[f m] / p, with the covariances of an enlarged grid and all its shifts, made cell by cell."""
    torch.manual_seed(0)
    weight, p, n = torch.randn(2, 6, 4).double(), 0.5, 4000
    x = torch.rand(2, 2, 6, 4).double()
    cells, u = [3, 3], torch.eye(16).double()  # one cell of 4 x 4 stays at a time: (1 - eye) is below no threshold
    moments = torch.zeros(24, 24).double()
    for shift in itertools.product((0, 0.5), (0, 0.5)):
        each = torch.stack([one_mask(1 - row, shift, (6, 4), cells, 0.5).flatten() for row in u])
        total = each.sum(0)
        assert_close(total, torch.ones(24).double())
        moments += (p * (1 - p) * each.T @ each + p**2 * torch.outer(total, total)) / 4
    adds = (x * weight).sum(1).flatten(1)
    expected = (0.5 + adds @ moments / p).reshape(2, 1, 6, 4).expand(2, 2, 6, 4)
    found = RISE(affine(weight)).attribute(x, n_samples=n, cells=3)
    assert (found - expected).abs().max() < 4 * (0.5 + adds.abs().sum(1)).max() / p / n**0.5
    assert (found - expected).square().mean().sqrt() < 0.1 * expected.std()


def test_rise_is_the_mean_of_score_times_mask():
    """The formula, from the masks that the model sees."""
    seen, x = [], torch.ones(2, 1, 5, 5).double()

    def model(x):
        seen.append(x.clone())
        return x.flatten(1).square().sum(1) + 1

    found = RISE(model).attribute(x + torch.tensor([0.0, 0.0]).reshape(2, 1, 1, 1), n_samples=40, cells=2)
    masks = torch.cat(seen[1:])[::2]  # the first pass has all there
    assert len(masks) == 40
    expected = ((masks.flatten(1).square().sum(1) + 1)[:, None, None, None] * masks).sum(0) / (40 * 0.5)
    assert_close(found[0], expected)


def test_rise_draws_by_content_and_seed():
    x, model = torch.rand(4, 1, 6, 6), affine(torch.rand(1, 6, 6))
    state = torch.get_rng_state()
    found = RISE(model).attribute(x, n_samples=20)
    assert_close(RISE(model).attribute(x[2:3], n_samples=20), found[2:3])
    assert not torch.allclose(RISE(model).attribute(x, n_samples=20, seed=1), found)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls, options", [(RISE, {"n_samples": 30}), (SobolAttribution, {"n_samples": 8, "cells": 2})])
def test_several_outputs_and_whole_batches(cls, options):
    """A map for each number; a model that answers for the whole batch has one set of maps."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double(), torch.rand(2, 2, 4, 4).double()
    every = cls(model).attribute(x, **options)
    each = cls(model).attribute(x, target=Each(), **options)
    assert every.shape == (6, 2, 4, 4) and each.shape == (2, 3, 2, 4, 4)
    assert_close(every.reshape(2, 3, 2, 4, 4), each)
    for k in range(3):
        assert_close(cls(model).attribute(x, target=k, **options), each[:, k])
    total = cls(lambda x: model(x).sum(0)).attribute(x, **options)
    assert total.shape == (3, 2, 4, 4)
    again = cls(lambda x: model(x).sum(0)[0]).attribute(x, **options)
    assert_close(again[0], total[0])


@pytest.mark.parametrize("cls, options", [(RISE, {}), (SobolAttribution, {})])
def test_token_ids_and_black_boxes(cls, options):
    ids = torch.tensor([[3, 0, 5, 1]])
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 50.0]).double()
    model = BlackBox(lambda ids: weight.numpy()[ids].sum(1))
    found = cls(model).attribute(ids, n_samples=256, **options)
    assert found.dtype == torch.float64 and found[0].argmax() == 2


# --- quasi-random masks -----------------------------------------------------------------------------------


def ishigami(x):
    """On gates u in [0, 1]^3, of which x = 1 - u is what stays; Ishigami, Homma (1990)."""
    z = pi * (2 * x - 1)
    return z[:, 0].sin() + 7 * z[:, 1].sin() ** 2 + 0.1 * z[:, 2] ** 4 * z[:, 0].sin()


def test_sobol_indices_of_ishigamis_function():
    a, b = 7, 0.1
    variance = a**2 / 8 + b * pi**4 / 5 + b**2 * pi**8 / 18 + 0.5
    alone = torch.tensor([0.5 * (1 + b * pi**4 / 5) ** 2, a**2 / 8, 0.0])
    together = 8 * b**2 * pi**8 / 225  # of the first and the third
    expected = ((alone + torch.tensor([together, 0, together])) / variance).double()
    x = torch.ones(1, 3, dtype=torch.float64)
    errors = []
    for n in (64, 4096):
        found = SobolAttribution(ishigami).attribute(x, n_samples=n)
        errors.append((found[0] - expected).abs().max().item())
    assert errors[1] < 0.01 < errors[0] < 0.5


def test_sobol_indices_of_an_additive_model():
    """Variances of single features, whatever they give way to."""
    torch.manual_seed(0)
    weight, x, b = torch.randn(5).double(), torch.rand(4, 5).double(), torch.rand(4, 5).double()
    found = SobolAttribution(lambda x: x @ weight).attribute(x, b, n_samples=1024)
    parts = ((x - b) * weight).square()
    assert_close(found, parts / parts.sum(1, keepdim=True), rtol=0, atol=0.01)
    assert (found >= 0).all()
    joined = SobolAttribution(lambda x: x @ weight).attribute(
        x, b, n_samples=1024, feature_mask=torch.tensor([4, 4, 9, 9, 9])
    )
    parts = torch.stack([((x - b) * weight)[:, :2].sum(1), ((x - b) * weight)[:, 2:].sum(1)], 1).square()
    assert_close(joined[:, [0, 4]], parts / parts.sum(1, keepdim=True), rtol=0, atol=0.01)


def test_sobol_masks_are_blocks_of_places():
    weight = torch.zeros(1, 8, 8).double()
    weight[0, :4, 4:] = 1
    found = SobolAttribution(affine(weight)).attribute(torch.ones(1, 3, 8, 8).double(), cells=4)
    assert_close(found[0, 0], found[0, 2])
    tiles = found[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    assert (tiles == tiles[..., :1]).all()
    assert (found[0, 0] > 0).equal(weight[0] > 0)


def test_a_score_that_does_not_vary_has_no_index():
    assert (SobolAttribution(lambda x: x[:, 0] * 0 + 3).attribute(torch.rand(2, 4)) == 0).all()


def test_passes():
    rows = []

    def model(x):
        rows.append(len(x))
        return x.sum(1)

    SobolAttribution(model).attribute(torch.rand(3, 5), n_samples=8)
    assert sum(rows) == 3 + 3 * 8 * (5 + 1)
    rows.clear()
    RISE(model).attribute(torch.rand(3, 5), n_samples=20, perturbations_per_eval=2)
    assert sum(rows) == 3 + 3 * 20 and max(rows) == 6


# --- the best mask ----------------------------------------------------------------------------------------


class Spots(nn.Module):
    """How much of the light on its spot a picture has, whatever else is there; saturating."""

    def __init__(self, places):
        super().__init__()
        self.register_buffer("spot", pad(torch.ones(1, 5, 5), (0, 11, 0, 11)).double())
        self.spot = torch.cat([self.spot.roll(p, (1, 2)) for p in places])

    def forward(self, x):
        return torch.tanh(torch.einsum("bchw,khw->bk", x, self.spot) / 20)


@pytest.mark.parametrize("area", [25 / 256, 0.25])
def test_the_area_is_kept_and_evidence_found(area):
    places = [(2, 3), (9, 8)]
    model, x = Spots(places), torch.ones(2, 2, 16, 16).double() + 0.1 * torch.rand(2, 1, 16, 16).double()
    masks = ExtremalPerturbation(model).attribute(x, target=torch.tensor([0, 1]), area=area)
    assert masks.shape == x.shape and torch.equal(masks[:, 0], masks[:, 1])
    assert (masks >= 0).all() and (masks <= 1).all()
    assert ((masks.mean((1, 2, 3)) - area).abs() < 0.15 * area).all()
    assert (((masks > 0.1) & (masks < 0.9)).double().mean((1, 2, 3)) < 0.2).all()  # nearly all there or all gone
    for mask, spot in zip(masks[:, 0], model.spot, strict=True):
        held = (mask * spot).sum()
        assert held > 0.8 * min(25, area * 256)
    score = model(x * masks).diagonal()
    assert (score > 0.85 * model(x).diagonal()).all()


def test_the_best_features_of_an_affine_model():
    """The largest shares, as many as fit."""
    torch.manual_seed(0)
    weight, x = torch.randn(20).double(), torch.rand(3, 20).double()
    masks = ExtremalPerturbation(lambda x: x @ weight).attribute(x, area=0.25)
    best = (x * weight).topk(5, 1).indices
    assert_close(masks, torch.zeros_like(x).scatter(1, best, 1), rtol=0, atol=0.05)


def test_features_stay_or_go_as_a_whole():
    x = torch.rand(2, 3, 8, 8).double()
    ids = superpixels(x, "grid", 16)
    masks = ExtremalPerturbation(lambda x: x[:, :, :4, :4].flatten(1).sum(1)).attribute(x, feature_mask=ids, area=0.25)
    assert all(len(masks[i][:, ids[i, 0] == k].unique()) == 1 for i in range(2) for k in range(16))
    assert (masks[:, :, :4, :4] > 0.9).all()


def test_soft_sides():
    """They share out each place, and are PyTorch's enlargement."""
    x = torch.zeros(1, 2, 9, 6)
    soft = Grid.of((x, torch.zeros(1, 3)), 3)
    gates = torch.rand(4, soft.count, dtype=torch.float64)
    found = soft.spread(gates)
    picture = interpolate(gates[:, :9].reshape(4, 1, 3, 3), (9, 6), mode="bilinear").expand(4, 2, 9, 6)
    assert_close(found[:, :108], picture.flatten(1))
    assert torch.equal(found[:, 108:], gates[:, 9:])
    assert_close(soft.spread(torch.ones_like(gates)), torch.ones(4, 111).double())
    values = torch.rand(4, 111, dtype=torch.float64)
    assert_close((soft.gather(values) * gates).sum(1), (values * found).sum(1))  # each is the other, turned
    assert_close(soft.gather(torch.ones_like(values)).sum(1), torch.full((4,), 111.0).double())


def test_blocks_share_channels():
    ids = blocks((torch.zeros(2, 3, 4, 5), torch.zeros(2, 2), torch.zeros(2)), 2).ids
    assert len(ids) == 63 and ids.unique().tolist() == list(range(7))
    assert torch.equal(ids[:20], ids[20:40]) and ids[60:].tolist() == [4, 5, 6]
    assert len(blocks((torch.zeros(2, 3, 4, 5),)).ids.unique()) == 20


@pytest.mark.parametrize(
    "cls, options, words",
    [
        (RISE, {"keep": 1.0}, "keep must be between 0 and 1, got 1.0"),
        (RISE, {"n_samples": 0}, "n_samples must be a whole number of at least 1, got 0"),
        (RISE, {"cells": 0}, "cells must be a whole number of at least 1, got 0"),
        (SobolAttribution, {"n_samples": 24}, "n_samples must be a power of two, .* got 24"),
        (SobolAttribution, {"cells": 0}, "cells must be a whole number of at least 1, got 0"),
        (SobolAttribution, {"cells": 128}, "got 16384 features; join them"),
        (ExtremalPerturbation, {"area": 10}, "area must be above 0 and below 1, got 10"),
        (ExtremalPerturbation, {"sigma": 0}, "sigma must be above 0, got 0"),
        (ExtremalPerturbation, {"n_steps": 0}, "n_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_told(cls, options, words):
    with pytest.raises(ValueError, match=words):
        cls(lambda x: x.flatten(1).sum(1)).attribute(torch.rand(1, 1, 128, 128), **options)

"""Superpixels, by every method."""

import pytest
import torch

from robustx.perturb import superpixels

METHODS = ["slic", "grid", "felzenszwalb", "quickshift", "watershed"]
every = pytest.mark.parametrize("method", METHODS)
OPTIONS = {"felzenszwalb": {"min_size": 5}, "quickshift": {"kernel_size": 3, "max_dist": 6}}


def halves(channels=3, b=2, size=16):
    """Pictures whose left half is dark and whose right half is bright, at different scales."""
    x = torch.zeros(b, channels, size, size)
    x[..., size // 2 :] = 1.0
    return x * torch.linspace(1, 200, b)[:, None, None, None] - 3


@every
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_ids_are_whole_consecutive_and_fit_the_pictures(method, channels):
    x = halves(channels)
    mask = superpixels(x, method, 8, **OPTIONS.get(method, {}))
    assert mask.shape == (2, 1, 16, 16) and mask.dtype == torch.long
    for m in mask:
        assert m.unique().tolist() == list(range(int(m.max()) + 1)) and m.max() > 0
    assert torch.equal(mask[0], mask[1])
    assert torch.equal(superpixels(x[1], method, 8, **OPTIONS.get(method, {})), mask[1:])


@every
def test_scale_and_offset_do_not_matter(method):
    x = (torch.rand(1, 3, 16, 16) * 64).round() / 64  # so that what follows is exact
    options = OPTIONS.get(method, {})
    assert torch.equal(superpixels(256 * x - 3, method, 8, **options), superpixels(x - 0.5, method, 8, **options))


@pytest.mark.parametrize("method", ["slic", "felzenszwalb", "quickshift"])
def test_superpixels_keep_to_edges(method):
    mask = superpixels(halves(), method, 8, **OPTIONS.get(method, {}))[0, 0]
    assert not set(mask[:, :8].unique().tolist()) & set(mask[:, 8:].unique().tolist())


@pytest.mark.parametrize("segments, h, w", [(1, 5, 7), (4, 8, 8), (6, 4, 9), (35, 5, 7), (1000, 5, 7), (3, 1, 6)])
def test_a_grid_is_made_of_rectangles_of_about_equal_size(segments, h, w):
    mask = superpixels(torch.rand(1, 1, h, w), "grid", segments)[0, 0]
    assert mask.unique().tolist() == list(range(int(mask.max()) + 1))
    sizes = []
    for i in mask.unique():
        rows, cols = (mask == i).nonzero().T
        sizes.append((int(rows.max() - rows.min()) + 1, int(cols.max() - cols.min()) + 1))
        assert sizes[-1][0] * sizes[-1][1] == int((mask == i).sum())
    for axis in zip(*sizes, strict=True):
        assert max(axis) - min(axis) <= 1
    assert len(sizes) <= h * w and (segments >= h * w) == (len(sizes) == h * w)
    assert segments > h * w or 0.5 * segments <= len(sizes) <= 1.5 * segments


@every
def test_awkward_pictures(method):
    options = OPTIONS.get(method, {})
    assert superpixels(torch.full((1, 3, 9, 9), 0.5), method, 4, **options).shape == (1, 1, 9, 9)  # one colour
    assert superpixels(torch.rand(0, 3, 9, 9), method, 4, **options).shape == (0, 1, 9, 9)
    x = torch.rand(1, 3, 9, 9, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    assert torch.equal(superpixels(x, method, 4, **options), superpixels(before.float(), method, 4, **options))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_bad_input():
    with pytest.raises(ValueError, match=r"method must be 'slic', 'grid'.* got 'voronoi'"):
        superpixels(torch.rand(1, 1, 4, 4), "voronoi")
    with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\].* got shape \(4, 4\)"):
        superpixels(torch.rand(4, 4))

"""Hierarchies: every feature once, and together what belongs together."""

import pytest
import torch

from robustx.perturb import halves, linked, nested, superpixel_hierarchy, superpixels
from robustx.perturb.hierarchy import leaves, nodes


def unions(tree):
    """The sets of features that a hierarchy holds together."""
    return {frozenset(leaves(node)) for node in nodes(tree)}


@pytest.mark.parametrize("n", range(1, 20))
def test_halves_are_even(n):
    ids = torch.randperm(50)[:n].tolist()
    tree = halves(ids)
    assert leaves(tree) == ids
    for node in nodes(tree):
        if not isinstance(node, int):
            one, other = (len(leaves(part)) for part in node)
            assert abs(one - other) <= 1


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_near_points_are_joined_first(n):
    torch.manual_seed(n)
    points = torch.cat([torch.randn(n, 2), torch.randn(n, 2) + 100])
    ids = torch.randperm(2 * n).tolist()
    tree = linked(points, ids)
    assert sorted(leaves(tree)) == list(range(2 * n))
    assert {frozenset(ids[:n]), frozenset(ids[n:])} <= unions(tree)
    with pytest.raises(ValueError, match="each of the"):
        linked(points, ids[1:])


def test_superpixels_of_one_colour_are_joined_first():
    """Four stripes, the outer ones dark and the inner ones bright; ids may have gaps."""
    image = torch.zeros(3, 8, 8)
    image[:, :, 2:6] = 1.0
    mask = torch.tensor([4, 9, 2, 7]).repeat_interleave(2).expand(1, 8, 8)
    by_colour, by_place = superpixel_hierarchy(image, mask, 0.0), superpixel_hierarchy(torch.ones(3, 8, 8), mask)
    assert {frozenset({9, 2}), frozenset({4, 7})} <= unions(by_colour)
    assert frozenset({4, 7}) not in unions(by_place)
    with pytest.raises(ValueError, match="one example at a time"):
        superpixel_hierarchy(image[None], mask)


@pytest.mark.parametrize("method", ["slic", "grid"])
def test_every_superpixel_once(method):
    torch.manual_seed(0)
    image = torch.rand(3, 24, 24)
    mask = superpixels(image, method, 9)[0]
    assert sorted(leaves(superpixel_hierarchy(image, mask))) == mask.unique().tolist()


def test_grids_within_grids():
    image = torch.rand(1, 1, 8, 8)
    coarse, middle, fine = (superpixels(image, "grid", n) for n in (1, 4, 16))
    tree = nested(coarse, middle, fine)
    assert sorted(leaves(tree)) == list(range(16)) and len(tree) == 4
    for part in middle.unique():
        assert frozenset(fine[middle == part].tolist()) in unions(tree)
    assert nested(fine) == tuple(range(16))
    with pytest.raises(ValueError, match="lies in two features of a coarser mask"):
        nested(fine, coarse)
    with pytest.raises(ValueError, match="one shape"):
        nested(fine, coarse[0])

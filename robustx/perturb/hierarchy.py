"""Hierarchies: which features belong together, more and more closely."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import ArgumentError

Hierarchy: TypeAlias = int | tuple["Hierarchy", ...]
"""A feature's id, or a tuple of such parts: ((0, 1), (2, (3, 4)))."""


def nodes(hierarchy: Hierarchy) -> Iterator[Hierarchy]:
    """The whole, its parts, their parts... down to features."""
    yield hierarchy
    for part in () if isinstance(hierarchy, int) else hierarchy:
        yield from nodes(part)


def leaves(hierarchy: Hierarchy) -> list[int]:
    """The features in it."""
    return [node for node in nodes(hierarchy) if isinstance(node, int)]


def halves(ids: Sequence[int]) -> Hierarchy:
    """Neighbours in a row belong together: the row cut in halves again and again.

    >>> halves(range(5))
    ((0, 1), (2, (3, 4)))
    """
    if len(ids) < 2:
        return tuple(ids) if not ids else ids[0]
    middle = len(ids) // 2
    return halves(ids[:middle]), halves(ids[middle:])


def linked(points: Tensor, ids: Sequence[int] | None = None, method: str = "ward") -> Hierarchy:
    """Features that lie close together belong together: pairs of nearest clusters are joined, one after another.

    Args:
        points: what is known of each feature [F, d].
        ids: what they are called; default: 0, 1, ...
        method: of :func:`scipy.cluster.hierarchy.linkage`.

    >>> linked(torch.tensor([[0.0], [10.0], [1.0], [12.0]]))
    ((0, 2), (1, 3))
    """
    from scipy.cluster.hierarchy import linkage

    parts: list[Hierarchy] = list(range(len(points)) if ids is None else ids)
    if len(parts) != len(points):
        raise ArgumentError(f"ids must name each of the {len(points)} points, got {len(parts)}")
    for a, b in linkage(points.detach().double().cpu().numpy(), method)[:, :2].astype(int) if len(parts) > 1 else ():
        parts.append((parts[a], parts[b]))
    return parts[-1] if parts else ()


def superpixel_hierarchy(image: Tensor, mask: Tensor, compactness: float = 1.0) -> Hierarchy:
    """Superpixels of like colour that lie close together belong together, by :func:`linked`.

    Args:
        image: [C, H, W].
        mask: their ids [H, W] or [1, H, W], any.
        compactness: how much places weigh beside colours; both are taken in units of their own spread.
    """
    if image.ndim != 3 or mask.shape[-2:] != image.shape[-2:] or mask.numel() != image[0].numel():
        raise ArgumentError(
            f"image must be [C, H, W] and mask [H, W] or [1, H, W], got {tuple(image.shape)} and {tuple(mask.shape)}; "
            "give one example at a time"
        )
    ids, which = np.unique(mask.cpu().numpy(), return_inverse=True)
    h, w = image.shape[1:]
    places = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij")).reshape(2, -1)
    colours = image.detach().double().cpu().numpy().reshape(len(image), -1)

    def means(of: np.ndarray, weight: float) -> np.ndarray:
        found = np.stack([np.bincount(which.ravel(), row) for row in of], 1) / np.bincount(which.ravel())[:, None]
        spread = np.sqrt(of.var(1).sum())
        return found * (weight / spread if spread > 0 else 0.0)

    points = np.concatenate([means(colours, 1.0), means(places, compactness)], 1)
    return linked(torch.from_numpy(points), ids.tolist())


def nested(*masks: Tensor) -> Hierarchy:
    """Features within coarser features: masks of one shape, from coarse to fine; ids are those of the last.

    Raises:
        ValueError: a feature lies in two of a coarser mask.

    >>> nested(torch.tensor([0, 0, 0, 1]), torch.tensor([5, 6, 6, 7]))
    ((5, 6), 7)
    """
    if not masks or len({m.shape for m in masks}) > 1:
        raise ArgumentError(f"masks must have one shape, got {', '.join(str(tuple(m.shape)) for m in masks) or 'none'}")
    paths = torch.stack([m.flatten() for m in masks], 1).unique(dim=0).tolist()
    last = [path[-1] for path in paths]
    if len(set(last)) < len(last):
        twice = next(i for i in last if last.count(i) > 1)
        raise ArgumentError(f"feature {twice} lies in two features of a coarser mask; cut it in two")

    def under(paths: list[list[int]]) -> Hierarchy:
        if len(paths) == 1:
            return int(paths[0][-1])
        groups: dict[int, list[list[int]]] = {}
        for first, *rest in paths:
            groups.setdefault(first, []).append(rest or [first])
        parts = tuple(under(group) for group in groups.values())
        return parts[0] if len(parts) == 1 else parts

    return under(paths)

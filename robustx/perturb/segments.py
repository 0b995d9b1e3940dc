"""Segments: pictures cut into superpixels, by scikit-image."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Method = Literal["slic", "grid", "felzenszwalb", "quickshift", "watershed"]


def superpixels(images: Tensor, method: Method = "slic", segments: int = 50, **options: Any) -> Tensor:
    """A feature mask [B, 1, H, W] for images [B, C, H, W] (or [C, H, W]): one id per superpixel, from 0.

    Args:
        images: floats; each is stretched to [0, 1] before it is cut.
        method: an algorithm of :mod:`skimage.segmentation`, or ``"grid"`` (rectangles).
        segments: about how many (slic, grid, watershed).
        options: passed on to scikit-image.

    Raises:
        ValueError: no such method, or not a picture.

    >>> superpixels(torch.rand(2, 3, 8, 8), "grid", 4)[0, 0, ::4, ::4]
    tensor([[0, 1],
            [2, 3]])
    """
    if images.ndim not in (3, 4):
        raise ValueError(f"images must be [B, C, H, W] or [C, H, W], got shape {tuple(images.shape)}")
    batch = images.detach().float().cpu().reshape(-1, *images.shape[-3:])
    masks = [_cut(np.moveaxis(_stretched(i.numpy()), 0, -1), method, segments, options) for i in batch]
    found = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *batch.shape[-2:], dtype=torch.long)
    return found.long()[:, None].to(images.device)


def _cut(image: np.ndarray, method: str, segments: int, options: dict[str, Any]) -> np.ndarray:
    h, w, _ = image.shape
    if method == "grid":
        down = max(1, min(h, round((segments * h / w) ** 0.5)))
        across = max(1, min(w, round(segments / down)))
        return np.asarray(np.add.outer(np.arange(h) * down // h * across, np.arange(w) * across // w))
    from skimage import filters, segmentation

    if method == "slic":
        labels = segmentation.slic(image, segments, **{"start_label": 0, "channel_axis": -1} | options)
    elif method == "felzenszwalb":
        labels = segmentation.felzenszwalb(image, **{"channel_axis": -1} | options)
    elif method == "quickshift":
        colour = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1)
        labels = segmentation.quickshift(colour, **{"channel_axis": -1} | options)
    elif method == "watershed":
        labels = segmentation.watershed(filters.sobel(image.mean(-1)), markers=segments, **options)
    else:
        raise ValueError(f"method must be 'slic', 'grid', 'felzenszwalb', 'quickshift' or 'watershed', got {method!r}")
    return np.unique(labels, return_inverse=True)[1].reshape(h, w)


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return np.asarray((image - low) / (high - low if high > low else 1))

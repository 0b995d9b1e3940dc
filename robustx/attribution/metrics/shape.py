"""Shape: how many elements an explanation rests on, whatever the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, at_least
from ...engine.packing import finest, flat


def sparseness(attributions: Any) -> Tensor:
    """The Gini index of the attributions' magnitudes [B]: 0 where all are alike, near 1 where one has all.

    Chalasani, Chen, Chowdhury, Wu, Jha (ICML 2020). All elements of an example count, of all its tensors.
    Zero where there is nothing but zeros.

    >>> sparseness(torch.tensor([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 5.0, 0.0]]))
    tensor([0.0000, 0.7500], dtype=torch.float64)
    """
    size = magnitudes(attributions).sort(1).values
    n, total = size.shape[1], size.sum(1)
    weights = 2 * torch.arange(1, n + 1, device=size.device, dtype=size.dtype) - n - 1
    index: Tensor = (size @ weights) / (n * torch.where(total == 0, 1, total))
    return index


def complexity(attributions: Any) -> Tensor:
    """The entropy of the attributions' magnitudes as shares of their sum [B], in nats.

    Bhatt, Weller, Moura (IJCAI 2020). Zero where one element has all, or there is nothing but zeros.

    >>> complexity(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    size = magnitudes(attributions)
    total = size.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(size / torch.where(total == 0, 1, total)).sum(1)
    return entropy


def effective_complexity(attributions: Any, threshold: float = 0.01) -> Tensor:
    """How many elements are attributed more than a share ``threshold`` of the greatest magnitude [B].

    After Nguyen, Martinez (arXiv:2007.07584, 2020), who take what may be left out without changing the score.

    Args:
        attributions: a tensor [B, ...], or a tuple or dict of these.
        threshold: from 0 to below 1.

    >>> effective_complexity(torch.tensor([[0.5, -1.0, 0.001], [0.0, 0.0, 0.0]]))
    tensor([2, 0])
    """
    at_least("threshold", threshold, 0)
    size = magnitudes(attributions)
    return (size > threshold * size.amax(1, keepdim=True)).sum(1)


def magnitudes(attributions: Any) -> Tensor:
    """What an example's elements are attributed, without sign, in one row [B, D].

    Raises:
        ValueError: no tensors, of different numbers of examples, or without elements.
    """
    parts = list(attributions.values()) if isinstance(attributions, Mapping) else attributions
    parts = [parts] if isinstance(parts, Tensor) else list(parts)
    if not parts or len({len(t) for t in parts}) > 1 or not sum(flat(t).shape[1] for t in parts):
        told = ", ".join(str(tuple(t.shape)) for t in parts) or "none"
        raise ArgumentError(f"attributions must be tensors [B, ...] of the same examples, got {told}")
    return torch.cat([finest(flat(t.detach())).abs() for t in parts], 1)

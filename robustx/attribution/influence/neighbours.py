"""Nearest neighbours: the stored vectors with the highest inner products with others."""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, whole
from ...engine.packing import flat
from .base import most_influential


class NearestNeighbors(ABC):
    """Finds, among stored tensors, those with the highest inner product with each of some others.

    An index of your own derives this class and goes into
    :class:`robustx.attribution.influence.fast.TracInCPFastRandProj`.
    """

    @abstractmethod
    def setup(self, data: Tensor) -> None:
        """Stores ``data`` [N, ...]."""

    @abstractmethod
    def get_nearest_neighbors(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of each of ``query`` [M, ...] the k nearest: their places (long) and inner products [M, k], highest first."""


class ExactNearestNeighbors(NearestNeighbors):
    """Looks at all stored tensors, some at a time: no neighbour is ever missed.

    Args:
        batch: how many stored tensors are looked at at once.

    >>> nearest = ExactNearestNeighbors()
    >>> nearest.setup(torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    >>> nearest.get_nearest_neighbors(torch.tensor([[1.0, 0.5]]), 2)
    (tensor([[1, 2]]), tensor([[1.5000, 1.5000]]))
    """

    def __init__(self, batch: int = 1 << 16) -> None:
        self.batch = whole("batch", batch, 1)
        self.data: Tensor | None = None

    def setup(self, data: Tensor) -> None:
        self.data = flat(data)

    def get_nearest_neighbors(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.data is None:
            raise ArgumentError("nothing is stored yet: call setup(data) first")
        found = most_influential((flat(query) @ part.T for part in self.data.split(self.batch)), k)
        return found.indices, found.influence_scores


class AnnoyNearestNeighbors(NearestNeighbors):
    """Trees of the ``annoy`` package, which find most neighbours, and only on a CPU.

    Args:
        num_trees: more trees miss fewer neighbours and take longer to build.

    Raises:
        ImportError: annoy is not installed; :class:`ExactNearestNeighbors` needs nothing.
    """

    def __init__(self, num_trees: int = 10) -> None:
        self.num_trees = whole("num_trees", num_trees, 1)
        try:
            self._annoy: Any = import_module("annoy")
        except ModuleNotFoundError:
            raise ImportError(
                "AnnoyNearestNeighbors needs a package that is not installed; run: pip install annoy, or take "
                "ExactNearestNeighbors, which needs none"
            ) from None

    def setup(self, data: Tensor) -> None:
        rows = flat(data).cpu()
        self._index = self._annoy.AnnoyIndex(rows.shape[1], "dot")
        self._index.set_seed(0)
        for i, row in enumerate(rows):
            self._index.add_item(i, row)
        self._index.build(self.num_trees, n_jobs=1)

    def get_nearest_neighbors(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found = [self._index.get_nns_by_vector(row, k, include_distances=True) for row in flat(query).cpu()]
        indices, products = zip(*found, strict=True)
        return torch.tensor(indices), torch.tensor(products)

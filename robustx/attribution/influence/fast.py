"""TracIn of the last layer alone, exactly or by random projections that can be searched."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, whole
from ...engine.memory import PASSING
from ...engine.randomness import Noise
from ...engine.weights import Block, Dense, Outer, Weights, layer_of
from .base import Inputs, KMostInfluentialResults, Loss, TrainData, device_of, groups, probe_of
from .checkpoints import borrowed, load_checkpoint
from .neighbours import ExactNearestNeighbors, NearestNeighbors
from .tracin import ROOM, TracInCPBase


class TracInCPFast(TracInCPBase):
    """:class:`robustx.attribution.influence.tracin.TracInCP` with respect to the weight of one linear layer.

    Pruthi et al. (NeurIPS 2020, arXiv:2002.08484), appendix F: the product of two gradients is that of what entered
    the layer times that of the gradients where it left, so no gradient is written out, and the way back ends there.

    Args:
        model, train_dataset, checkpoints, checkpoints_load_func, loss_fn, batch_size, test_loss_fn: see
            :class:`robustx.attribution.influence.tracin.TracInCPBase`.
        final_fc_layer: the layer or its name; it need not be the last one.
        vectorize: accepted for Captum's sake.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x, y = torch.randn(4, 2), torch.zeros(4, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> fast = TracInCPFast(model, "2", data, [model.state_dict()], loss_fn=torch.nn.MSELoss())
    >>> fast.influence((x, y), k=2).indices.shape
    torch.Size([4, 2])
    """

    _room = ROOM // PASSING  # nothing is kept of the passes but what enters the layer

    def __init__(
        self,
        model: nn.Module,
        final_fc_layer: nn.Module | str,
        train_dataset: TrainData,
        checkpoints: Any,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        test_loss_fn: Loss = None,
        vectorize: bool = False,
    ) -> None:
        super().__init__(model, train_dataset, checkpoints, checkpoints_load_func, loss_fn, batch_size, test_loss_fn)
        self.final_fc_layer = layer_of(model, final_fc_layer)
        self.vectorize = vectorize
        _ = self._weights  # refuses what is no linear layer

    def _chosen(self) -> Weights:
        layer = self.final_fc_layer
        if not isinstance(layer, nn.Linear):
            raise ArgumentError(
                f"final_fc_layer must be a Linear, got {type(layer).__name__}; TracInCP takes any layers"
            )
        name = next(n for n, p in self.model.named_parameters() if p is layer.weight)
        return Weights(self.model, {name: layer.weight})


class TracInCPFastRandProj(TracInCPFast):
    """:class:`TracInCPFast` with a vector for each training example, kept in memory and searched.

    The vector of an example is, for each checkpoint, the outer product of what entered the layer and of the gradient
    where it left, each projected at random to ``sqrt(projection_dim)`` numbers (Pruthi et al., appendix F), so that
    products are right in the mean. Without ``projection_dim`` they are exact. A call then needs one pass of the test
    examples alone.

    Args:
        others: see :class:`TracInCPFast`.
        nearest_neighbors: how the highest products are found; None searches all of them,
            :class:`robustx.attribution.influence.neighbours.AnnoyNearestNeighbors` a part.
        projection_dim: most numbers for an example and a checkpoint; None for no projection.
        seed: of the projections, which are drawn by key.
    """

    def __init__(
        self,
        model: nn.Module,
        final_fc_layer: nn.Module | str,
        train_dataset: TrainData,
        checkpoints: Any,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        test_loss_fn: Loss = None,
        vectorize: bool = False,
        nearest_neighbors: NearestNeighbors | None = None,
        projection_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            final_fc_layer,
            train_dataset,
            checkpoints,
            checkpoints_load_func,
            loss_fn,
            batch_size,
            test_loss_fn,
            vectorize,
        )
        self.nearest_neighbors = nearest_neighbors or ExactNearestNeighbors()
        self.projection_dim = projection_dim if projection_dim is None else whole("projection_dim", projection_dim, 1)
        self.projection_quantities = self._projections(seed)
        self.src_intermediate_quantities = self._vectors(self.train_dataloader, self.loss_fn)
        self.nearest_neighbors.setup(self.src_intermediate_quantities)

    def influence(  # type: ignore[override]  # what is searched knows no aggregate
        self, inputs: Inputs | None = None, k: int | None = 5, proponents: bool = True
    ) -> Tensor | KMostInfluentialResults:
        """The k highest products (without proponents: lowest) of M test examples' vectors with all N, or all [M, N].

        Args:
            inputs: one batch (inputs..., labels), or a loader of batches.
            k: so many, five as in Captum; None for all.
            proponents: False asks for the lowest.
        """
        if inputs is None:
            raise ArgumentError("inputs must be a batch or a loader of batches")
        vectors = self._vectors(inputs, self.test_loss_fn)
        if k is None:
            return vectors @ self.src_intermediate_quantities.T
        sign = 1 if proponents else -1
        indices, products = self.nearest_neighbors.get_nearest_neighbors(sign * vectors, whole("k", k, 1))
        return KMostInfluentialResults(indices, sign * products)

    def self_influence(
        self, inputs: Inputs | None = None, show_progress: bool = False, outer_loop_by_checkpoints: bool = False
    ) -> Tensor:
        """Not told: :class:`TracInCPFast` tells it exactly, as fast and without keeping anything."""
        raise NotImplementedError("self influences need no projection: take TracInCPFast")

    def compute_intermediate_quantities(self, inputs: Inputs, aggregate: bool = False) -> Tensor:
        """The vectors whose products are influences [N, C * D]; their sum [1, C * D] with ``aggregate``."""
        vectors = self._vectors(inputs, self.loss_fn)
        return vectors.sum(0, keepdim=True) if aggregate else vectors

    def _projections(self, seed: int) -> tuple[Tensor, Tensor] | None:
        """Of the gradients where the layer is left [O, o] and of what enters [I, i], if they are to shrink at all."""
        (weight,) = self._weights.parameters.values()
        o, i = weight.shape
        if self.projection_dim is None or o * i <= self.projection_dim:
            return None
        drawn = []
        for side, size in (("out", o), ("in", i)):
            small = min(int(self.projection_dim**0.5), size)
            noise = Noise(seed, f"TracIn {side}", list(map(str, range(size))))
            drawn.append(noise.normal(small, weight.detach()) / small**0.5)
        return drawn[0], drawn[1]

    def _vectors(self, inputs: Inputs, loss_fn: Loss) -> Tensor:
        with borrowed(self.model):
            return torch.cat(list(self._rows(inputs, loss_fn)))

    def _rows(self, inputs: Inputs, loss_fn: Loss) -> Iterator[Tensor]:
        for group in groups(inputs, device_of(self.model)):
            columns = []
            for rate in self._rates():
                probe = probe_of(self.model, group, loss_fn, self._pace)
                parts = [block for _, (block,) in self._weights.blocks(probe, compact=False)]
                columns.append(rate**0.5 * torch.cat([self._small(block).dense() for block in parts]))
            yield torch.cat(columns, 1)

    def _small(self, block: Block) -> Block:
        if self.projection_quantities is None:
            return block
        left, entered = self.projection_quantities
        if isinstance(block, Outer):
            return Outer(block.a @ entered, block.g @ left)
        rows = block.dense().unflatten(1, (len(left), len(entered)))  # what the layer's weight was else used for
        return Dense((left.T @ rows @ entered).flatten(1))

"""TracIn: the influence of a training example is how much steps on its loss lowered the loss of a test example."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError
from ...engine.memory import Pace
from ...engine.probe import Probe
from ...engine.progress import progress
from ...engine.weights import Block, Dense, Weights, dot
from .base import (
    DataInfluence,
    Inputs,
    KMostInfluentialResults,
    Layers,
    Loss,
    TrainData,
    checked_loss,
    count_of,
    device_of,
    gathered,
    groups,
    loader_of,
    probe_of,
)
from .checkpoints import borrowed, checkpoints_of, load_checkpoint

Told = Callable[[int], object]


def gradient_products(weights: Weights, tests: list[list[Block]], train: Probe, told: Told) -> Tensor:
    """The inner products of test gradients with those of the examples of a probe [M, N], in the weights' order.

    One checkpoint's part of eq. 2 of Pruthi et al. (NeurIPS 2020, arXiv:2002.08484), without the learning rate.

    Args:
        weights: with respect to what gradients are taken.
        tests: the test gradients, in some parts of one block for each parameter.
        train: asked for the loss of the training examples.
        told: how many examples are done.
    """
    columns = []
    for part, blocks in weights.blocks(train):
        columns.append(torch.cat([_product(test, blocks) for test in tests]))
        told(part.stop - part.start)
    return torch.cat(columns, 1)


def _product(tests: list[Block], blocks: list[Block]) -> Tensor:
    return torch.stack([dot(a, b) for a, b in zip(tests, blocks, strict=True)]).sum(0)


def squared_lengths(weights: Weights, probe: Probe, told: Told) -> Tensor:
    """The inner product of each example's gradient with itself [N]."""
    rows = []
    for part, blocks in weights.blocks(probe):
        rows.append(torch.stack([b.square() for b in blocks]).sum(0))
        told(part.stop - part.start)
    return torch.cat(rows)


ROOM = 1 << 25  # bytes for what a pass makes on a CPU: gradients of each example take more than larger batches save


class TracInCPBase(DataInfluence):
    """What the classes of this family share: data, losses and checkpoints.

    Training data come in batches (inputs..., labels): ``model(*batch[:-1])`` makes the outputs, ``loss_fn(outputs,
    batch[-1])`` the loss; see :class:`robustx.attribution.influence.base.Losses`. Batches are joined and split as
    memory allows, whatever ``batch_size`` is; each is taken from its loader once, so a loader may shuffle. The model is
    given back with the weights, flags, gradients and modes that it has.

    Args:
        model: a module in eval mode.
        train_dataset: a data set, or a loader of batches.
        checkpoints: a folder, a list of files, or whatever ``checkpoints_load_func`` takes.
        checkpoints_load_func: (model, checkpoint) -> learning rate, loads weights in place; by default
            :func:`robustx.attribution.influence.checkpoints.load_checkpoint`.
        loss_fn: (outputs, labels) -> losses; None takes the outputs for them.
        batch_size: of the loader that is made for a data set.
        test_loss_fn: the loss of test examples, if it is another one.

    Raises:
        ValueError: no checkpoints, or a loss with a reduction of another name.
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoints: Any,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        test_loss_fn: Loss = None,
    ) -> None:
        self.model = model
        self.checkpoints = checkpoints
        self.checkpoints_load_func = checkpoints_load_func
        self.loss_fn = checked_loss(loss_fn, "loss_fn")
        self.test_loss_fn = self.loss_fn if test_loss_fn is None else checked_loss(test_loss_fn, "test_loss_fn")
        self.batch_size = batch_size
        self.train_dataloader = loader_of(train_dataset, batch_size)

    _room = ROOM

    @property
    def checkpoints(self) -> list[Any]:
        """All of them, in the order in which they are loaded."""
        return self._checkpoints

    @checkpoints.setter
    def checkpoints(self, given: Any) -> None:
        self._checkpoints = checkpoints_of(given)

    @cached_property
    def _pace(self) -> Pace:
        """Shared by all passes, so that rows are weighed once."""
        place = device_of(self.model)
        return Pace(budget=self._room if place is None or place.type == "cpu" else None)

    @cached_property
    def _weights(self) -> Weights:
        """With respect to what gradients are taken; what is found out about a model holds for all its checkpoints."""
        return self._chosen()

    @abstractmethod
    def _chosen(self) -> Weights:
        """The layers' parameters."""

    def influence(
        self,
        inputs: Inputs,
        k: int | None = None,
        proponents: bool = True,
        show_progress: bool = False,
        aggregate: bool = False,
    ) -> Tensor | KMostInfluentialResults:
        """The influence of N training examples on M test examples [M, N], or the most influential ones.

        Args:
            inputs: one batch (inputs..., labels), or a loader of batches.
            k: None for all influences; else the k highest, with their indices.
            proponents: False asks for the k lowest.
            show_progress: draws a bar of the training examples, at each checkpoint.
            aggregate: on all test examples together [1, N].
        """
        if inputs is None:
            raise ArgumentError("inputs must be a batch or a loader; for self influence there is self_influence")
        return gathered(self._pieces(inputs, show_progress, aggregate), k, proponents)

    def self_influence(
        self, inputs: Inputs | None = None, show_progress: bool = False, outer_loop_by_checkpoints: bool = False
    ) -> Tensor:
        """The influence of each example on itself [N]: high where an example is not like the others, or mislabelled.

        Args:
            inputs: a batch or a loader; None for the training data.
            show_progress: draws a bar of the examples, at each checkpoint.
            outer_loop_by_checkpoints: keep all examples in memory, so that each checkpoint is loaded once, however many
                there are. The results are the same.
        """
        data = self.train_dataloader if inputs is None else inputs
        return torch.cat(list(self._squares(data, show_progress, outer_loop_by_checkpoints)))

    def compute_intermediate_quantities(self, inputs: Inputs, aggregate: bool = False) -> Tensor:
        """Vectors whose inner product is the influence of one example on another [N, C * P], for C checkpoints.

        Each checkpoint's gradients times the square root of its learning rate (Captum: times the rate itself, whose
        product is none). For two different losses take ``influence``.

        Args:
            inputs: a batch or a loader.
            aggregate: the sum over all examples [1, C * P].
        """
        with self._at_work(inputs, "intermediate quantities", False) as (weights, told):
            rows = []
            for group in groups(inputs, device_of(self.model)):
                columns = []
                for rate in self._rates():
                    probe = probe_of(self.model, group, self.loss_fn, self._pace)
                    made = weights.total(probe)[None] if aggregate else weights.dense(probe)
                    columns.append(rate**0.5 * made)
                    told(probe.examples)
                rows.append(torch.cat(columns, 1))
        whole = torch.cat(rows)
        return whole.sum(0, keepdim=True) if aggregate else whole

    def _pieces(self, inputs: Inputs, show: bool, aggregate: bool) -> Iterator[Tensor]:
        """Influences of some training examples after the other [M, n]."""
        tests = list(groups(inputs, device_of(self.model)))
        with self._at_work(self.train_dataloader, "influence", show) as (weights, told):
            for group in groups(self.train_dataloader, device_of(self.model)):
                parts = []
                for rate in self._rates():
                    sides = self._tests(weights, tests, aggregate)
                    probe = probe_of(self.model, group, self.loss_fn, self._pace)
                    parts.append(rate * gradient_products(weights, sides, probe, told))
                yield torch.stack(parts).sum(0)

    def _tests(self, weights: Weights, tests: list[tuple[Any, ...]], aggregate: bool) -> list[list[Block]]:
        probes = [probe_of(self.model, group, self.test_loss_fn, self._pace) for group in tests]
        if not aggregate:
            return [blocks for probe in probes for _, blocks in weights.blocks(probe)]
        total = torch.stack([weights.total(probe) for probe in probes]).sum(0)
        sizes = [p.numel() for p in weights.parameters.values()]
        return [[Dense(t[None]) for t in total.split(sizes)]]

    def _squares(self, data: Inputs, show: bool, together: bool) -> Iterator[Tensor]:
        most = {"most": float("inf")} if together else {}
        with self._at_work(data, "self influence", show) as (weights, told):
            for group in groups(data, device_of(self.model), **most):
                parts = []
                for rate in self._rates():
                    parts.append(
                        rate * squared_lengths(weights, probe_of(self.model, group, self.loss_fn, self._pace), told)
                    )
                yield torch.stack(parts).sum(0)

    @contextmanager
    def _at_work(self, data: Inputs, what: str, show: bool) -> Iterator[tuple[Weights, Told]]:
        examples = count_of(data)
        total = None if examples is None else examples * len(self.checkpoints)
        with borrowed(self.model), progress(total, f"{self.get_name()} {what}", show, "example") as told:
            yield self._weights, told

    def _rates(self) -> Iterator[float]:
        """Learning rates of the checkpoints, each while it stands in the model."""
        for checkpoint in self.checkpoints:
            rate = self.checkpoints_load_func(self.model, checkpoint)
            yield 1.0 if rate is None else float(rate)


class TracInCP(TracInCPBase):
    """TracIn at checkpoints: the influence of one example on another is the sum, over checkpoints, of the learning
    rate times the inner product of the gradients of their losses.

    Pruthi, Liu, Sundararajan, Kale (NeurIPS 2020, arXiv:2002.08484), section 3. All gradients of a batch come of one
    backward pass, whatever the layers, and their products as far as possible without writing gradients out; see
    :class:`robustx.engine.weights.Weights`.

    Args:
        model, train_dataset, checkpoints, checkpoints_load_func, loss_fn, batch_size, test_loss_fn: see
            :class:`TracInCPBase`.
        layers: layers, or their names, to whose parameters gradients are taken; None for all that require gradients.
        sample_wise_grads_per_batch: accepted for Captum's sake; there is only the fast way, for all reductions.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.zeros(3, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> tracin = TracInCP(model, data, [model.state_dict()], loss_fn=torch.nn.MSELoss())
    >>> tracin.influence((x[:2], y[:2])).shape, tracin.self_influence().shape
    (torch.Size([2, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoints: Any,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        test_loss_fn: Loss = None,
        sample_wise_grads_per_batch: bool = False,
    ) -> None:
        super().__init__(model, train_dataset, checkpoints, checkpoints_load_func, loss_fn, batch_size, test_loss_fn)
        self.layers = layers
        self.sample_wise_grads_per_batch = sample_wise_grads_per_batch
        _ = self._weights  # refuses what is no layer

    def _chosen(self) -> Weights:
        return Weights.of(self.model, self.layers)

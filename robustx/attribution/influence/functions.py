"""Influence functions: what leaving a training example out would do to a loss, by the training loss's curvature."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, at_least, whole
from ...engine.curvature import hessian, hessian_products
from ...engine.memory import Pace
from ...engine.probe import Probe
from ...engine.progress import progress
from ...engine.randomness import Noise
from ...engine.weights import Block, Weights
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
from .checkpoints import borrowed, load_checkpoint
from .tracin import ROOM

Product = Callable[[Tensor], Tensor]
Told = Callable[[int], object]


def inverse_root(h: Tensor, k: int | None, reg: float, tol: float) -> Tensor:
    """R [P, d] with ``R @ R.T`` the inverse of a symmetric matrix [P, P] on its highest eigenvectors.

    Args:
        h: the matrix.
        k: at most so many eigenvectors, those of the highest eigenvalues; None for all.
        reg: added to all eigenvalues.
        tol: eigenvectors whose eigenvalue is not above it are left out: away from a minimum there are negative ones,
            and directions that nothing depends on have zeros.

    Raises:
        ValueError: none is left.

    >>> inverse_root(torch.diag(torch.tensor([4.0, 0.0, 1.0])), None, reg=0.0, tol=1e-5).abs()
    tensor([[0.0000, 0.5000],
            [0.0000, 0.0000],
            [1.0000, 0.0000]])
    """
    values, vectors = torch.linalg.eigh(h.double())  # float32 would take rounding for small eigenvalues
    values = values + reg
    kept = values > tol
    if not kept.any():
        raise ArgumentError(
            f"the Hessian has no eigenvalue above {tol:g} (the highest is {float(values.max()):.3g}), so it has no "
            "inverse; take a higher hessian_reg, or a model that was trained"
        )
    values, vectors = values[kept], vectors[:, kept]
    if k is not None:
        values, vectors = values[-k:], vectors[:, -k:]
    root: Tensor = vectors / values.sqrt()
    return root.to(h.dtype)


def arnoldi(product: Product, start: Tensor, n: int, tol: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis Q [k, P] of a Krylov space of a symmetric matrix, and the matrix in that basis [k, k].

    Arnoldi (1951); Schioppa et al. (AAAI 2022, arXiv:2112.03052), algorithm 1. Each new direction is made orthogonal
    to all before, twice, so that rounding does not bring them back.

    Args:
        product: (v [1, P]) -> the matrix times v [1, P].
        start: the first direction [P].
        n: most directions.
        tol: ends where less than this is left of a new direction.
    """
    basis = (start / start.norm())[None]
    inside = start.new_zeros(n, n)
    for j in range(n):
        v = product(basis[j : j + 1])[0].to(start)
        for _ in range(2):
            along = basis @ v
            inside[: j + 1, j] += along
            v = v - along @ basis
        length = v.norm()
        if length < tol or j + 1 == n:
            break
        basis = torch.cat([basis, (v / length)[None]])
    k = len(basis)
    upper = inside[:k, :k].triu()
    return basis, upper + upper.triu(1).T


class Again:
    """Batches that are gone through many times: kept if they fit one group, else loaded anew each time."""

    def __init__(self, data: Inputs, device: torch.device | None) -> None:
        self.data, self.device = data, device
        self.kept: list[tuple[Any, ...]] | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        found = iter(self.kept or groups(self.data, self.device))
        first = list(islice(found, 2))
        if len(first) == 1:
            self.kept = first
        yield from first
        yield from found


class InfluenceFunctionBase(DataInfluence):
    """What influence functions share: the gradient of a test loss, through the inverse of the Hessian of the training
    loss, times the gradient of a training loss.

    Koh and Liang (ICML 2017, arXiv:1703.04730), section 2: to first order, by how much the test loss rises if a
    training example is left out and the model trained again; so positive for examples that help. The Hessian is that of
    the **sum** of losses over ``hessian_dataset``. A penalty of ``c / 2 * |w|^2`` on that sum has the Hessian ``c``,
    which is what ``hessian_reg`` adds.

    Data, losses and layers are as for :class:`robustx.attribution.influence.tracin.TracInCPBase`. The model is given
    back with the weights, flags, gradients and modes that it has (Captum leaves the checkpoint in it).

    Args:
        model: a module in eval mode.
        train_dataset: a data set, or a loader of batches (inputs..., labels).
        checkpoint: what ``checkpoints_load_func`` takes; None for the weights that the model has.
        checkpoints_load_func: (model, checkpoint) -> learning rate, loads weights in place.
        layers: layers, or their names, to whose parameters gradients are taken; None for all that require gradients.
        loss_fn: (outputs, labels) -> losses; None takes the outputs for them.
        batch_size: of the loaders that are made for data sets.
        hessian_dataset: the data of the Hessian; None for the training data.
        test_loss_fn: the loss of test examples, if it is another one.
        sample_wise_grads_per_batch: accepted for Captum's sake; there is only the fast way, for all reductions.
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoint: Any = None,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        hessian_dataset: TrainData | None = None,
        test_loss_fn: Loss = None,
        sample_wise_grads_per_batch: bool = False,
    ) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.checkpoints_load_func = checkpoints_load_func
        self.layers = layers
        self.loss_fn = checked_loss(loss_fn, "loss_fn")
        self.test_loss_fn = self.loss_fn if test_loss_fn is None else checked_loss(test_loss_fn, "test_loss_fn")
        self.batch_size = batch_size
        self.train_dataloader = loader_of(train_dataset, batch_size)
        own = hessian_dataset is not None
        self.hessian_dataloader = loader_of(hessian_dataset, batch_size) if own else self.train_dataloader
        self.sample_wise_grads_per_batch = sample_wise_grads_per_batch
        _ = self._weights  # refuses what is no layer

    @cached_property
    def _pace(self) -> Pace:
        """Shared by all passes, so that rows are weighed once."""
        place = device_of(self.model)
        return Pace(budget=ROOM if place is None or place.type == "cpu" else None)

    @cached_property
    def _weights(self) -> Weights:
        return Weights.of(self.model, self.layers)

    @cached_property
    def _curved(self) -> Again:
        """The data of the Hessian."""
        return Again(self.hessian_dataloader, device_of(self.model))

    def influence(
        self, inputs: Inputs, k: int | None = None, proponents: bool = True, show_progress: bool = False
    ) -> Tensor | KMostInfluentialResults:
        """The influence of N training examples on M test examples [M, N], or the most influential ones.

        Args:
            inputs: one batch (inputs..., labels), or a loader of batches.
            k: None for all influences; else the k highest, with their indices.
            proponents: False asks for the k lowest.
            show_progress: draws a bar of the training examples.
        """
        if inputs is None:
            raise ArgumentError("inputs must be a batch or a loader; for self influence there is self_influence")
        return gathered(self._pieces(inputs, show_progress), k, proponents)

    def self_influence(self, inputs_dataset: Inputs | None = None, show_progress: bool = False) -> Tensor:
        """The influence of each example on itself [N]: high where an example is not like the others, or mislabelled.

        Args:
            inputs_dataset: a batch or a loader; None for the training data.
            show_progress: draws a bar of the examples.
        """
        data = self.train_dataloader if inputs_dataset is None else inputs_dataset
        return torch.cat(list(self._squares(data, show_progress)))

    @abstractmethod
    def _pieces(self, inputs: Inputs, show: bool) -> Iterator[Tensor]:
        """Influences of some training examples after the other [M, n]."""

    @abstractmethod
    def _squares(self, data: Inputs, show: bool) -> Iterator[Tensor]:
        """Influences of some examples after the other on themselves [n]."""

    @contextmanager
    def _at_work(self, total: int | None, what: str, show: bool, unit: str = "example") -> Iterator[Told]:
        """The model with the weights of the checkpoint."""
        with borrowed(self.model), progress(total, f"{self.get_name()} {what}", show, unit) as told:
            if self.checkpoint is not None:
                self.checkpoints_load_func(self.model, self.checkpoint)
            yield told

    def _probes(self, data: Iterable[tuple[Any, ...]], loss_fn: Loss) -> Iterator[Probe]:
        return (probe_of(self.model, group, loss_fn, self._pace) for group in data)

    def _asked(self, data: Inputs, loss_fn: Loss) -> Iterator[Probe]:
        return self._probes(groups(data, device_of(self.model)), loss_fn)

    def _product(self, v: Tensor) -> Tensor:
        """The Hessian of the training loss times each of some directions [m, P]."""
        probes = self._probes(self._curved, self.loss_fn)
        return sum((hessian_products(self._weights, probe, v) for probe in probes), torch.zeros_like(v))

    def _direction(self, what: str, seed: int) -> Tensor:
        """One direction [P], drawn by key."""
        like = next(iter(self._weights.parameters.values())).detach()
        return Noise(seed, self.get_name(), [what]).normal(self._weights.size, like)[0]


class IntermediateQuantitiesInfluenceFunction(InfluenceFunctionBase):
    """Influence functions whose inverse Hessian is a product R @ R.T: each example has a short vector, and influence is
    the inner product of two.

    A subclass sets ``R`` [P, d] in its constructor.
    """

    R: Tensor

    def compute_intermediate_quantities(
        self,
        inputs_dataset: Inputs,
        aggregate: bool = False,
        show_progress: bool = False,
        return_on_cpu: bool = True,
        test: bool = False,
    ) -> Tensor:
        """Vectors whose inner product is the influence of one example on another [N, d].

        Args:
            inputs_dataset: a batch or a loader.
            aggregate: their sum over all examples [1, d].
            show_progress: draws a bar of the examples.
            return_on_cpu: False leaves them where the model stands.
            test: take ``test_loss_fn``.
        """
        loss_fn = self.test_loss_fn if test else self.loss_fn
        with self._at_work(count_of(inputs_dataset), "intermediate quantities", show_progress) as told:
            found = []
            for probe in self._asked(inputs_dataset, loss_fn):
                if aggregate:
                    found.append(self._small(self._weights.total(probe)[None]))
                    told(probe.examples)
                else:
                    found += self._vectors(probe, told)
        made = torch.cat(found)
        made = made.sum(0, keepdim=True) if aggregate else made
        return made.cpu() if return_on_cpu else made

    def _small(self, rows: Tensor) -> Tensor:
        return rows @ self.R.to(rows)

    def _vectors(self, probe: Probe, told: Told) -> Iterator[Tensor]:
        for part, blocks in self._weights.blocks(probe):
            yield self._small(written(blocks))
            told(part.stop - part.start)

    def _pieces(self, inputs: Inputs, show: bool) -> Iterator[Tensor]:
        tests = self.compute_intermediate_quantities(inputs, test=True)
        with self._at_work(count_of(self.train_dataloader), "influence", show) as told:
            for probe in self._asked(self.train_dataloader, self.loss_fn):
                yield from (tests @ rows.cpu().T for rows in self._vectors(probe, told))

    def _squares(self, data: Inputs, show: bool) -> Iterator[Tensor]:
        with self._at_work(count_of(data), "self influence", show) as told:
            for probe in self._asked(data, self.loss_fn):
                yield from (rows.square().sum(1).cpu() for rows in self._vectors(probe, told))


def written(blocks: list[Block]) -> Tensor:
    """Gradients with respect to all parameters, written out [n, P]."""
    return torch.cat([b.dense() for b in blocks], 1)


class NaiveInfluenceFunction(IntermediateQuantitiesInfluenceFunction):
    """Influence functions by the whole Hessian, on its highest eigenvectors.

    Koh and Liang (ICML 2017, arXiv:1703.04730), section 2. The Hessian [P, P] is written out: for models, or
    ``layers``, of some thousand parameters.

    Args:
        others: see :class:`InfluenceFunctionBase`.
        projection_dim: so many eigenvectors; None for all.
        seed: accepted for Captum's sake; nothing is drawn.
        hessian_reg: added to all eigenvalues.
        hessian_inverse_tol: eigenvectors whose eigenvalue is not above it are left out.
        projection_on_cpu: keep ``R`` in the processor's memory.
        show_progress: draws a bar of the examples while the Hessian is made.

    Raises:
        ValueError: no eigenvalue is high enough.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.ones(3, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> naive = NaiveInfluenceFunction(model, data, loss_fn=torch.nn.MSELoss(), batch_size=3)
    >>> naive.influence((x[:1], y[:1])).shape, naive.R.abs().max(1).values  # one over the roots of 2 and 20
    (torch.Size([1, 3]), tensor([0.7071, 0.2236]))
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoint: Any = None,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        hessian_dataset: TrainData | None = None,
        test_loss_fn: Loss = None,
        sample_wise_grads_per_batch: bool = False,
        projection_dim: int | None = 50,
        seed: int = 42,
        hessian_reg: float = 1e-6,
        hessian_inverse_tol: float = 1e-5,
        projection_on_cpu: bool = True,
        show_progress: bool = False,
    ) -> None:
        super().__init__(
            *(model, train_dataset, checkpoint, checkpoints_load_func, layers, loss_fn, batch_size, hessian_dataset),
            *(test_loss_fn, sample_wise_grads_per_batch),
        )
        self.projection_dim = projection_dim if projection_dim is None else whole("projection_dim", projection_dim, 1)
        self.seed = seed
        at_least("hessian_reg", hessian_reg, 0)
        at_least("hessian_inverse_tol", hessian_inverse_tol, 0)
        self.hessian_reg, self.hessian_inverse_tol = hessian_reg, hessian_inverse_tol
        with self._at_work(count_of(self.hessian_dataloader), "Hessian", show_progress) as told:
            parts = []
            for probe in self._probes(self._curved, self.loss_fn):
                parts.append(hessian(self._weights, probe))
                told(probe.examples)
            root = inverse_root(sum(parts[1:], parts[0]), self.projection_dim, hessian_reg, hessian_inverse_tol)
        self.R = root.cpu() if projection_on_cpu else root


class ArnoldiInfluenceFunction(IntermediateQuantitiesInfluenceFunction):
    """Influence functions by the Hessian on a Krylov space, of which only products with directions are asked.

    Schioppa, Zablotskaia, Vilar, Sokolov (AAAI 2022, arXiv:2112.03052), section 3: Arnoldi's iteration from one random
    direction finds the highest eigenvectors; the vectors of all examples are told by these. One pass of
    ``hessian_dataset`` for each direction. With as many directions as there are parameters it is
    :class:`NaiveInfluenceFunction`.

    Args:
        others: see :class:`InfluenceFunctionBase`.
        projection_dim: so many eigenvectors; None for all that were found.
        seed: of the first direction, which is drawn by key.
        arnoldi_dim: so many directions.
        arnoldi_tol: ends where less than this is left of a new direction.
        hessian_reg: added to all eigenvalues.
        hessian_inverse_tol: eigenvectors whose eigenvalue is not above it are left out.
        projection_on_cpu: keep the directions and ``R`` in the processor's memory.
        show_progress: draws a bar of the directions while they are made.

    Raises:
        ValueError: no eigenvalue is high enough.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.ones(3, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> function = ArnoldiInfluenceFunction(model, data, loss_fn=torch.nn.MSELoss(), hessian_reg=0.0)
    >>> function.R @ function.R.T
    tensor([[0.5000, 0.0000],
            [0.0000, 0.0500]])
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoint: Any = None,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        hessian_dataset: TrainData | None = None,
        test_loss_fn: Loss = None,
        sample_wise_grads_per_batch: bool = False,
        projection_dim: int | None = 50,
        seed: int = 0,
        arnoldi_dim: int = 200,
        arnoldi_tol: float = 0.1,
        hessian_reg: float = 1e-3,
        hessian_inverse_tol: float = 1e-4,
        projection_on_cpu: bool = True,
        show_progress: bool = False,
    ) -> None:
        super().__init__(
            *(model, train_dataset, checkpoint, checkpoints_load_func, layers, loss_fn, batch_size, hessian_dataset),
            *(test_loss_fn, sample_wise_grads_per_batch),
        )
        self.projection_dim = projection_dim if projection_dim is None else whole("projection_dim", projection_dim, 1)
        self.seed = seed
        self.arnoldi_dim = whole("arnoldi_dim", arnoldi_dim, 1)
        for name, value in (
            ("arnoldi_tol", arnoldi_tol),
            ("hessian_reg", hessian_reg),
            ("hessian_inverse_tol", hessian_inverse_tol),
        ):
            at_least(name, value, 0)
        self.arnoldi_tol, self.hessian_reg, self.hessian_inverse_tol = arnoldi_tol, hessian_reg, hessian_inverse_tol
        start = self._direction("start", seed)
        home = start.device
        most = min(self.arnoldi_dim, self._weights.size)
        with self._at_work(most, "directions", show_progress, "direction") as told:

            def product(v: Tensor) -> Tensor:
                told(1)
                return self._product(v.to(home))

            basis, inside = arnoldi(product, start.cpu() if projection_on_cpu else start, most, arnoldi_tol)
        self.R = basis.T @ inverse_root(inside, self.projection_dim, hessian_reg, hessian_inverse_tol)

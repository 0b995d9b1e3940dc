"""Influence functions that solve for the test examples' gradients instead of turning a matrix round."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from warnings import warn

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, at_least, whole
from ...engine.curvature import hessian_products
from ...engine.probe import Probe
from ...engine.randomness import Noise
from ...engine.weights import Block, Dense
from .base import Inputs, Layers, Loss, TrainData, count_of
from .checkpoints import load_checkpoint
from .functions import InfluenceFunctionBase, Product, arnoldi, written
from .tracin import gradient_products


def conjugate_gradients(product: Product, b: Tensor, tol: float, steps: int) -> Tensor:
    """x [m, P] with ``A x = b`` for each row, A symmetric and positive definite.

    Hestenes and Stiefel (1952). Rows go on together, each by its own steps, until what is missing of b is less than
    ``tol`` of it.

    Args:
        product: (v [n, P]) -> A times each row [n, P].
        b: right-hand sides [m, P].
        tol: relative.
        steps: most of them; a warning tells what is missing then.

    Raises:
        ValueError: A is not positive definite.

    >>> conjugate_gradients(lambda v: v * torch.tensor([2.0, 4.0]), torch.ones(1, 2), tol=1e-6, steps=5)
    tensor([[0.5000, 0.2500]])
    """
    x, r = torch.zeros_like(b), b.clone()
    p, size = r.clone(), r.square().sum(1)
    enough = tol**2 * size
    for _ in range(steps):
        left = (size > enough).nonzero()[:, 0]
        if not len(left):
            return x
        ahead = p[left]
        pulled = product(ahead)
        curved = (ahead * pulled).sum(1)
        if not (curved > 0).all():
            raise ArgumentError(
                "the Hessian is not positive definite: it curves down in some direction, as away from a minimum; "
                "take a higher hessian_reg, EKFACInfluence, or NaiveInfluenceFunction, which leaves such directions out"
            )
        step = (size[left] / curved)[:, None]
        x[left] += step * ahead
        r[left] -= step * pulled
        now = r[left].square().sum(1)
        p[left] = r[left] + (now / size[left])[:, None] * ahead
        size[left] = now
    if (size > enough).any():
        missing = float((size / b.square().sum(1).clamp_min(torch.finfo(b.dtype).tiny)).max().sqrt())
        warn(
            f"conjugate gradients miss {missing:.1e} of a gradient after {steps} steps; allow more of them",
            stacklevel=2,
        )
    return x


class Solver(Protocol):
    """A way to solve ``A x = b`` for rows b, where ``product`` is exact and ``estimate`` sees some examples only."""

    def __call__(self, product: Product, estimate: Callable[[Tensor, int], Tensor], b: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ConjugateGradients:
    """Exact solutions by :func:`conjugate_gradients`.

    Args:
        tol: relative to each right-hand side.
        steps: most of them.
    """

    tol: float = 1e-5
    steps: int = 500

    def __post_init__(self) -> None:
        at_least("tol", self.tol, 0)
        whole("steps", self.steps, 1)

    def __call__(self, product: Product, estimate: Callable[[Tensor, int], Tensor], b: Tensor) -> Tensor:
        return conjugate_gradients(product, b, self.tol, self.steps)


@dataclass(frozen=True)
class LiSSA:
    """Solutions by a series in which each step sees some examples only.

    Agarwal, Bullins, Hazan (JMLR 2017); Koh and Liang (ICML 2017), section 3: ``x <- b + x - A_j x / scale`` with an
    estimate A_j of A, and the mean of the last half of the steps, divided by the scale.

    Args:
        steps: of them; the smallest eigenvalues need about ``scale`` over each.
        scale: above the highest eigenvalue of every A_j; None takes twice that of A, estimated by ten directions.
    """

    steps: int = 1000
    scale: float | None = None

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)

    def __call__(self, product: Product, estimate: Callable[[Tensor, int], Tensor], b: Tensor) -> Tensor:
        scale = self.scale
        if scale is None:
            start = Noise(0, "LiSSA", ["scale"]).normal(b.shape[1], b)[0]
            _, inside = arnoldi(product, start, min(10, b.shape[1]), tol=0.0)
            scale = 2 * float(torch.linalg.eigvalsh(inside.double()).max())
        x, mean, kept = b.clone(), torch.zeros_like(b), 0
        for step in range(self.steps):
            x = b + x - estimate(x, step) / scale
            if 2 * step >= self.steps:
                kept += 1
                mean += (x - mean) / kept
        if not torch.isfinite(x).all():
            raise ArgumentError(
                f"LiSSA went to infinity: scale={scale:.3g} is too low for some examples' Hessian; take a higher one, "
                "or more examples in each step"
            )
        return mean / scale


class SolvedInfluenceFunction(InfluenceFunctionBase):
    """Influence functions that put the inverse Hessian to test gradients once, and then ask for plain products."""

    @abstractmethod
    def _solve(self, rows: Tensor) -> Tensor:
        """The inverse Hessian times each gradient [n, P]."""

    def _pieces(self, inputs: Inputs, show: bool) -> Iterator[Tensor]:
        with self._at_work(count_of(self.train_dataloader), "influence", show) as told:
            tests = [self._solved(probe) for probe in self._asked(inputs, self.test_loss_fn)]
            for probe in self._asked(self.train_dataloader, self.loss_fn):
                yield gradient_products(self._weights, tests, probe, told)

    def _solved(self, probe: Probe) -> list[Block]:
        rows = self._solve(self._weights.dense(probe))
        return [Dense(t) for t in rows.split([p.numel() for p in self._weights.parameters.values()], 1)]

    def _squares(self, data: Inputs, show: bool) -> Iterator[Tensor]:
        with self._at_work(count_of(data), "self influence", show) as told:
            for probe in self._asked(data, self.loss_fn):
                for part, blocks in self._weights.blocks(probe):
                    rows = written(blocks)
                    yield (rows * self._solve(rows)).sum(1)
                    told(part.stop - part.start)


class IterativeInfluenceFunction(SolvedInfluenceFunction):
    """Influence functions by the whole Hessian of any number of parameters, solved for each test example.

    Koh and Liang (ICML 2017, arXiv:1703.04730), section 3. Nothing of the Hessian is written out or left out, so where
    the loss is convex the answer is that of the inverse. All test examples are solved for together: one pass of
    ``hessian_dataset`` for each step.

    Args:
        others: see :class:`robustx.attribution.influence.functions.InfluenceFunctionBase`.
        hessian_reg: added to all eigenvalues, which must be positive then.
        solver: :class:`ConjugateGradients` or :class:`LiSSA`.
        sample: examples in each step of LiSSA, of one group of 128 MiB after the other; more data than that are read
            anew in each step, and conjugate gradients need fewer of them.
        seed: of these, which are drawn by key.

    >>> from robustx.attribution import NaiveInfluenceFunction
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.ones(3, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> function = IterativeInfluenceFunction(model, data, loss_fn=torch.nn.MSELoss())
    >>> naive = NaiveInfluenceFunction(model, data, loss_fn=torch.nn.MSELoss())
    >>> torch.allclose(function.influence(data[:2]), naive.influence(data[:2]), rtol=1e-2, atol=1e-5)
    True
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
        *,
        hessian_reg: float = 1e-3,
        solver: Solver | None = None,
        sample: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            *(model, train_dataset, checkpoint, checkpoints_load_func, layers, loss_fn, batch_size, hessian_dataset),
            test_loss_fn,
        )
        at_least("hessian_reg", hessian_reg, 0)
        self.hessian_reg = hessian_reg
        self.solver = solver or ConjugateGradients()
        self.sample, self.seed = whole("sample", sample, 1), seed

    def _solve(self, rows: Tensor) -> Tensor:
        return self.solver(self._damped, self._estimate, rows)

    def _damped(self, v: Tensor) -> Tensor:
        return self._product(v) + self.hessian_reg * v

    def _estimate(self, v: Tensor, step: int) -> Tensor:
        """The same of some examples, of one group of batches after the other, scaled up to all of them."""
        batches = list(self._curved)
        (draw,) = Noise(self.seed, "LiSSA", ["sample"], restart=step).generators()
        (probe,) = self._probes([batches[step % len(batches)]], self.loss_fn)
        n = probe.examples
        rows = torch.from_numpy(draw.permutation(n)[: self.sample]).to(probe.device)
        found = hessian_products(self._weights, probe, v, rows)
        return found * (len(batches) * n / len(rows)) + self.hessian_reg * v

"""TRAK: influence by random projections of gradients, as if the model were linear in its parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, ArgumentTypeError, at_least, whole
from ...engine.memory import Pace
from ...engine.probe import Probe
from ...engine.progress import progress
from ...engine.randomness import Noise
from ...engine.scores import OutputError, Score
from ...engine.weights import Weights
from .base import (
    DataInfluence,
    Inputs,
    KMostInfluentialResults,
    Layers,
    TrainData,
    count_of,
    device_of,
    gathered,
    groups,
    loader_of,
    probe_of,
)
from .checkpoints import borrowed, checkpoints_of, load_checkpoint
from .functions import written

Margin = Callable[[Any, Any], Tensor]
HASHES = 4  # places that each element goes to


@dataclass(frozen=True, eq=False)
class Sketch:
    """A random projection of long rows to short ones that keeps inner products in the mean.

    Kane and Nelson (JACM 2014), the block construction of the sparse Johnson-Lindenstrauss transform: each element goes
    to one place in each of four blocks, with a random sign; so it costs four additions for each element, and nothing
    as large as the rows times their projections is ever written.

    Args:
        places: [4, P], into the short rows.
        signs: [4, P], over the root of four.
        dim: how long the short rows are.

    >>> sketch = Sketch.draw(1000, 64, seed=0, like=torch.zeros(1))
    >>> sketch(torch.ones(2, 1000)).shape
    torch.Size([2, 64])
    """

    places: Tensor
    signs: Tensor
    dim: int

    @classmethod
    def draw(cls, size: int, dim: int, seed: int, like: Tensor, name: str = "sketch") -> "Sketch":
        """One for rows of ``size`` elements, drawn by key, with the dtype and device of ``like``.

        Args:
            dim: a multiple of four.
            name: what tells it from others with the same seed.
        """
        if dim % HASHES:
            raise ArgumentError(f"projection_dim must be a multiple of {HASHES}, got {dim}")
        (draw,) = Noise(seed, name, [str(size)]).generators()
        block = dim // HASHES
        places = torch.from_numpy(draw.integers(block, size=(HASHES, size))) + block * torch.arange(HASHES)[:, None]
        signs = torch.from_numpy(draw.integers(2, size=(HASHES, size)) * 2 - 1).to(like.dtype) / HASHES**0.5
        return cls(places.to(like.device), signs.to(like.device), dim)

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, P] -> [n, dim]."""
        out = rows.new_zeros(len(rows), self.dim)
        for places, signs in zip(self.places, self.signs, strict=True):
            out.index_add_(1, places, rows * signs)
        return out


def log_odds(out: Any, labels: Tensor) -> Tensor:
    """The logarithm of the odds of each label [N], by logits [N, K] (Park et al., 2023, eq. 5)."""
    if not isinstance(out, Tensor) or out.ndim != 2:
        told = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise OutputError(f"logits must be [N, K], got {told}; hand in margin= and slope= for other outputs")
    label = labels.long()[:, None]
    others = out.masked_fill(torch.zeros_like(out, dtype=torch.bool).scatter(1, label, True), -torch.inf)
    return out.gather(1, label)[:, 0] - others.logsumexp(1)


def log_odds_slope(out: Tensor, labels: Tensor) -> Tensor:
    """By how much the cross-entropy falls for each bit of log odds: one less the label's probability [N]."""
    return 1 - out.softmax(1).gather(1, labels.long()[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Labelled(Score):
    """A function of outputs and labels, one number for each row [N]."""

    of: Margin
    labels: Any

    def value(self, out: Any, rows: Tensor) -> Tensor:
        found = self.of(out, self.labels[rows])
        if not isinstance(found, Tensor) or found.shape != (len(rows),):
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise OutputError(f"margin must be one number for each of {len(rows)} examples, got {told}")
        return found


class TRAK(DataInfluence):
    """Influence of training examples on a model's outputs, by projected gradients of several models.

    Park, Georgiev, Ilyas, Leclerc, Madry (ICML 2023, arXiv:2303.14186), algorithm 1 and section 3.2: with ``g`` the
    projected gradient of an example's margin, ``G`` those of all training examples, ``q`` the slopes of their losses,
    the influence on a test example is ``g (G'G)^-1 g_i q_i``; products and slopes are each averaged over the models. It
    orders training examples by how much leaving them out lowers the test example's margin. One model says little:
    several, trained from other starts or on other halves of the data, say more.

    Args:
        model: a module in eval mode, a classifier that returns logits unless margin and slope say otherwise.
        train_dataset: a data set, or a loader of batches (inputs..., labels), that keeps its order.
        checkpoints: the models: a folder, a list of files, or whatever ``checkpoints_load_func`` takes; None for the
            weights that the model has.
        checkpoints_load_func: (model, checkpoint) -> learning rate, which is not used; loads weights in place.
        layers: layers, or their names, to whose parameters gradients are taken; None for all that require gradients.
        batch_size: of the loader that is made for a data set.
        projection_dim: how long a projected gradient is, a multiple of four; best well below the number of examples.
        damping: added to the eigenvalues of G'G, as a share of their mean.
        margin: (outputs, labels) -> what is explained, one number for each example; None for the log odds.
        slope: (outputs, labels) -> minus the derivative of each example's loss by its margin; None for cross-entropy.
        seed: of the projections, which are drawn by key, another for each checkpoint.
        show_progress: draws a bar of training examples while they are projected.

    >>> model = torch.nn.Linear(5, 3)
    >>> x, y = torch.randn(20, 5), torch.arange(20) % 3
    >>> trak = TRAK(model, torch.utils.data.TensorDataset(x, y), projection_dim=8)
    >>> trak.influence((x[:4], y[:4])).shape, trak.self_influence().shape
    (torch.Size([4, 20]), torch.Size([20]))
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoints: Any = None,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        batch_size: int | None = 1,
        *,
        projection_dim: int = 512,
        damping: float = 1e-3,
        margin: Margin | None = None,
        slope: Margin | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> None:
        if (margin is None) != (slope is None):
            raise ArgumentError("margin and slope belong together: hand in both or neither")
        at_least("damping", damping, 0)
        self.model = model
        self.checkpoints: Sequence[Any] = [None] if checkpoints is None else checkpoints_of(checkpoints)
        self.checkpoints_load_func = checkpoints_load_func
        self.layers = layers
        self.train_dataloader = loader_of(train_dataset, batch_size)
        self.projection_dim, self.damping, self.seed = whole("projection_dim", projection_dim, HASHES), damping, seed
        self.margin, self.slope = margin or log_odds, slope or log_odds_slope
        self._pace = Pace()
        self.features, slopes = self._prepared(show_progress)
        self.slopes = torch.stack(slopes).mean(0)

    @cached_property
    def _weights(self) -> Weights:
        return Weights.of(self.model, self.layers)

    def _prepared(self, show: bool) -> tuple[list[Tensor], list[Tensor]]:
        """For each model, projected gradients times (G'G)^-1 [N, d], and slopes [N]."""
        total = count_of(self.train_dataloader)
        features, slopes = [], []
        with self._at_work(None if total is None else total * len(self.checkpoints), "projections", show) as told:
            for sketch in self._models():
                rows, steep = [], []
                for probe in self._asked(self.train_dataloader, self.margin):
                    rows.append(self._projected(probe, sketch))
                    told(probe.examples)
                for probe in self._asked(self.train_dataloader, self.slope):
                    steep.append(probe.score)
                g = torch.cat(rows)
                kernel = (g.T @ g).double()
                kernel += (
                    self.damping * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype).to(kernel)
                )
                features.append((g.double() @ torch.linalg.pinv(kernel, hermitian=True)).to(g))
                slopes.append(torch.cat(steep))
        return features, slopes

    def influence(
        self, inputs: Inputs, k: int | None = None, proponents: bool = True, show_progress: bool = False
    ) -> Tensor | KMostInfluentialResults:
        """The influence of N training examples on M test examples [M, N], or the most influential ones.

        Args:
            inputs: one batch (inputs..., labels), or a loader of batches that keeps its order.
            k: None for all influences; else the k highest, with their indices.
            proponents: False asks for the k lowest.
            show_progress: draws a bar of the test examples, at each checkpoint.
        """
        if inputs is None:
            raise ArgumentError("inputs must be a batch or a loader; for self influence there is self_influence")
        parts = [g @ features.T for g, features in self._both(inputs, show_progress)]
        return gathered([torch.stack(parts).mean(0) * self.slopes], k, proponents)

    def self_influence(self, show_progress: bool = False) -> Tensor:
        """The influence of each training example on itself [N]."""
        parts = [(g * features).sum(1) for g, features in self._both(self.train_dataloader, show_progress)]
        return torch.stack(parts).mean(0) * self.slopes

    def _both(self, inputs: Inputs, show: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """For each model, projected gradients of some inputs, and what they are multiplied with."""
        n = count_of(inputs)
        with self._at_work(None if n is None else n * len(self.checkpoints), "influence", show) as told:
            for sketch, features in zip(self._models(), self.features, strict=True):
                rows = []
                for probe in self._asked(inputs, self.margin):
                    rows.append(self._projected(probe, sketch))
                    told(probe.examples)
                yield torch.cat(rows), features

    def _models(self) -> Iterator[Sketch]:
        """The projection of each checkpoint, while it stands in the model."""
        like = next(iter(self._weights.parameters.values())).detach()
        for i, checkpoint in enumerate(self.checkpoints):
            if checkpoint is not None:
                self.checkpoints_load_func(self.model, checkpoint)
            yield Sketch.draw(self._weights.size, self.projection_dim, self.seed, like, f"TRAK {i}")

    def _asked(self, data: Inputs, of: Margin) -> Iterator[Probe]:
        for group in groups(data, device_of(self.model)):
            if not isinstance(group[-1], Tensor):
                raise ArgumentTypeError(f"labels must be a tensor, got {type(group[-1]).__name__}")
            yield probe_of(self.model, group, None, self._pace).to(of=Labelled(of, group[-1]))

    def _projected(self, probe: Probe, sketch: Sketch) -> Tensor:
        return torch.cat([sketch(written(blocks)) for _, blocks in self._weights.blocks(probe)])

    @contextmanager
    def _at_work(self, total: int | None, what: str, show: bool) -> Iterator[Callable[[int], object]]:
        with borrowed(self.model), progress(total, f"{self.get_name()} {what}", show, "example") as told:
            yield told

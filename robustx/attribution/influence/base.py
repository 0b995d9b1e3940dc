"""What all ways to share a prediction out over training examples have in common: data, losses, checkpoints, results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from ...engine.checks import ArgumentError, ArgumentTypeError, whole
from ...engine.memory import Pace, out_of_memory
from ...engine.packing import flat
from ...engine.probe import Door, Probe
from ...engine.scores import OutputError, Score

GROUP = 1 << 27  # bytes of examples that are taken from a loader at once

Loss = Callable[..., Any] | None


class DataInfluence(ABC):
    """What training examples, or any others, have to do with what a model makes of some inputs."""

    @abstractmethod
    def influence(self, *args: Any, **kwargs: Any) -> Any:
        """The influence of the examples on some inputs, which come first."""

    @classmethod
    def get_name(cls) -> str:
        """The name of the class."""
        return cls.__name__

    def __repr__(self) -> str:
        models = [type(m).__name__ for name, m in vars(self).items() if name in ("model", "module")]
        return f"{self.get_name()}({', '.join(models)})"


class KMostInfluentialResults(NamedTuple):
    """The training examples with the most influence on each of M test examples: ``indices`` and scores [M, k]."""

    indices: Tensor
    influence_scores: Tensor


@dataclass(frozen=True, eq=False)
class Losses(Score):
    """The loss of each row [N].

    A loss that reduces a batch to one number is asked about each row alone, a batch of one: so a mean is a mean over
    what one example has of outputs, and labels to ignore in other rows change nothing. A loss with ``reduction="none"``
    is asked once, and what it returns of one row is summed. Without a loss the outputs are.

    Args:
        loss_fn: (outputs, labels) -> loss, or None.
        labels: one for each example, [B, ...] or a sequence.

    Raises:
        ValueError: no loss for each row, or not one number for a batch.
    """

    loss_fn: Loss
    labels: Any = None

    def value(self, out: Any, rows: Tensor) -> Tensor:
        if self.loss_fn is None:
            return _each(out, len(rows), "the model's output")
        loss, labels = self.loss_fn, self._labels(rows)
        if each_row(loss):
            return _each(loss(out, labels), len(rows), "a loss_fn without reduction")
        if (plain := _unreduced(loss, out, labels)) is not None:
            each = flat(plain(out, labels))
            return each.sum(1) if loss.reduction == "sum" else each.mean(1)  # type: ignore[attr-defined]  # a _Loss has it

        def alone(out: Any, labels: Any) -> Tensor:
            found = loss(out, labels)
            if not isinstance(found, Tensor) or found.numel() != 1:
                told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise OutputError(
                    f"loss_fn must make one number of a batch, got {told} for one example; with one number for each "
                    "example let it have loss_fn.reduction = 'none'"
                )
            return found.reshape(())

        if all(isinstance(t, Tensor) for t in tree_leaves((out, labels))):
            try:
                return torch.vmap(lambda *one: alone(*tree_map(lambda t: t[None], one)))(out, labels)
            except OutputError:
                raise
            except Exception as e:  # whatever a loss does that cannot be done for all rows at once
                if out_of_memory(e):
                    raise

        def part(value: Any, i: int) -> Any:  # what a model returns beside its tensors stays
            return tree_map(lambda t: t[i : i + 1] if isinstance(t, Tensor) else t, value)

        return torch.stack(
            [alone(part(out, i), None if labels is None else labels[i : i + 1]) for i in range(len(rows))]
        )

    def _labels(self, rows: Tensor) -> Any:
        if isinstance(self.labels, Tensor):
            return self.labels[rows]
        return None if self.labels is None else [self.labels[i] for i in rows.tolist()]


def _unreduced(loss: Callable[..., Any], out: Any, labels: Any) -> Callable[..., Any] | None:
    """A loss of PyTorch's own that tells those of all elements, where these tell the loss of a batch of one."""
    if not isinstance(out, Tensor) or not isinstance(labels, Tensor) or getattr(loss, "weight", None) is not None:
        return None
    classes = type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss) and labels.ndim == 1  # else positions may be left out
    if not classes and not (type(loss) in _ELEMENTWISE and out.shape == labels.shape):
        return None
    each = copy(loss)
    each.reduction = "none"  # type: ignore[attr-defined]  # a _Loss has it
    return each


_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


def _each(values: Any, n: int, what: str) -> Tensor:
    if not isinstance(values, Tensor) or not values.ndim or len(values) != n:
        told = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise OutputError(f"{what} must have one row for each of {n} examples, got {told}")
    return flat(values).sum(1)


def each_row(loss_fn: Callable[..., Any]) -> bool:
    """Whether a loss tells the loss of each example, by its ``reduction``; without one it makes one number of a batch.

    Raises:
        ValueError: its reduction is neither "none" nor "sum" nor "mean".
    """
    reduction = getattr(loss_fn, "reduction", "sum")
    if reduction not in ("none", "sum", "mean"):
        raise ArgumentError(f"the reduction of loss_fn must be 'none', 'sum' or 'mean', got {reduction!r}")
    return bool(reduction == "none")


def checked_loss(loss_fn: Loss, name: str) -> Loss:
    """Raises what :func:`each_row` does, and TypeError for what cannot be called."""
    if loss_fn is not None:
        if not callable(loss_fn):
            raise ArgumentTypeError(f"{name} must be a function of outputs and labels, got {type(loss_fn).__name__}")
        each_row(loss_fn)
    return loss_fn


def loader_of(data: Any, batch_size: int | None) -> DataLoader[Any]:
    """A loader of a data set, in its order.

    Raises:
        ValueError: no batch size for a data set.
    """
    if isinstance(data, DataLoader):
        return data
    if batch_size is None:
        raise ArgumentError("since train_dataset is a Dataset, batch_size must be an int")
    return DataLoader(data, whole("batch_size", batch_size, 1), shuffle=False)


def count_of(data: Any) -> int | None:
    """How many examples some inputs hold, as far as that is known."""
    if not isinstance(data, DataLoader):
        return _length(data[0]) if isinstance(data, tuple | list) and data else None
    return len(data.dataset) if isinstance(data.dataset, Sized) else None


def groups(data: Any, device: torch.device | None = None, most: float = GROUP) -> Iterator[tuple[Any, ...]]:
    """Batches, (inputs..., labels) each, joined to as large ones as shapes allow; in order, and each taken once.

    Args:
        data: one batch, or a loader of batches.
        device: where tensors are brought.
        most: bytes of tensors in one group.

    Raises:
        TypeError: a batch is no tuple or list of inputs and labels.
        ValueError: there are no examples.
    """
    held: list[tuple[Any, ...]] = []
    size = 0
    for batch in data if isinstance(data, DataLoader) else [data]:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ArgumentTypeError(
                f"a batch must be a tuple of the model's inputs and, last, the labels, got {type(batch).__name__}"
                + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            )
        if isinstance(batch[0], Tensor | Mapping) and not _length(batch[0]):
            continue
        batch = tuple(tree_map(lambda t: t.detach().to(device) if isinstance(t, Tensor) else t, v) for v in batch)
        weight = sum(t.numel() * t.element_size() for t in tree_leaves(batch) if isinstance(t, Tensor))
        if held and (size + weight > most or not _alike(held[0], batch)):
            yield _joined(held)
            held, size = [], 0
        held.append(batch)
        size += weight
    if not held:
        raise ArgumentError("there are no examples: the data set, loader or batch is empty")
    yield _joined(held)


def _length(value: Any) -> int:
    return len(next(iter(value.values())) if isinstance(value, Mapping) else value)


def _alike(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    """Whether two batches can be joined."""

    def form(batch: tuple[Any, ...]) -> list[Any]:
        n = _length(batch[0])
        follow = (isinstance(t, Tensor) and t.ndim and len(t) == n for t in tree_leaves(batch))
        return [(t.shape[1:], t.dtype) if ok else None for t, ok in zip(tree_leaves(batch), follow, strict=True)]

    a, b = form(one), form(two)
    return None not in a and a == b


def _joined(batches: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return batches[0] if len(batches) == 1 else tree_map(lambda *t: torch.cat(t), *batches)


def probe_of(model: nn.Module, batch: tuple[Any, ...], loss_fn: Loss, pace: Pace | None = None) -> Probe:
    """The model on a batch, asked for each example's loss; a shared pace weighs rows once for all batches."""
    first, *rest, labels = batch
    if not isinstance(first, Tensor | Mapping):
        raise ArgumentTypeError(f"the first of the model's inputs must be a tensor, got {type(first).__name__}")
    return Door.open(first).probe(model, Losses(loss_fn, labels), tuple(rest)).to(pace=pace or Pace())


class Best:
    """The k highest (or lowest) of scores [M, N] that come in pieces [M, n], of which only k are kept.

    Of equal scores the first come first.

    Args:
        k: how many.
        proponents: False keeps the lowest.

    >>> best = Best(2)
    >>> best.add(torch.tensor([[3.0, 1.0]])), best.add(torch.tensor([[2.0]]))
    (None, None)
    >>> best.result().indices
    tensor([[0, 2]])
    """

    def __init__(self, k: int, proponents: bool = True) -> None:
        self.k, self.proponents = whole("k", k, 1), proponents
        self.seen = 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def add(self, piece: Tensor) -> None:
        """Scores of the next n."""
        scores, indices = piece, torch.arange(self.seen, self.seen + piece.shape[1], device=piece.device)
        indices = indices.expand_as(piece)
        self.seen += piece.shape[1]
        if self.kept is not None:
            scores, indices = torch.cat([self.kept[0], scores], 1), torch.cat([self.kept[1], indices], 1)
        at = scores.argsort(dim=1, descending=self.proponents, stable=True)[:, : self.k]
        self.kept = scores.gather(1, at), indices.gather(1, at)

    def result(self) -> KMostInfluentialResults:
        """Raises ValueError if nothing was added."""
        if self.kept is None:
            raise ArgumentError("there are no training examples")
        return KMostInfluentialResults(self.kept[1], self.kept[0])


def most_influential(pieces: Iterable[Tensor], k: int, proponents: bool = True) -> KMostInfluentialResults:
    """The :class:`Best` of some pieces."""
    best = Best(k, proponents)
    for piece in pieces:
        best.add(piece)
    return best.result()


def gathered(pieces: Iterable[Tensor], k: int | None, proponents: bool) -> Tensor | KMostInfluentialResults:
    """All scores [M, N] of some pieces [M, n], or with ``k`` the :class:`Best` of them."""
    return torch.cat(list(pieces), 1) if k is None else most_influential(pieces, k, proponents)


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model stands, if in one place."""
    places = {p.device for p in model.parameters()}
    return places.pop() if len(places) == 1 else None


TrainData = Dataset[Any] | DataLoader[Any]
Inputs = tuple[Any, ...] | DataLoader[Any]
Layers = Sequence[nn.Module | str]

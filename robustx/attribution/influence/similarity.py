"""Similarity: the examples whose activations at a layer are like those of some inputs."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...engine.checks import ArgumentError, ArgumentTypeError, whole
from ...engine.files import digest, put, read, write
from ...engine.guard import untouched
from ...engine.packing import flat
from ...engine.weights import layer_of
from ..gradient import LayerActivation
from .base import Best, DataInfluence

Metric = Callable[[Tensor, Tensor], Tensor]
"""Activations of N inputs and of M examples [N, ...], [M, ...] -> their likeness or distance [N, M]."""


def euclidean_distance(test: Tensor, train: Tensor) -> Tensor:
    """The distances of N activations from M others [N, M].

    >>> euclidean_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([[5.]])
    """
    return torch.cdist(flat(test), flat(train))


def cosine_similarity(test: Tensor, train: Tensor, replace_nan: float = 0) -> Tensor:
    """The cosines of the angles between N activations and M others [N, M].

    Args:
        replace_nan: what stands in place of the cosine where one of the two is zero.

    >>> cosine_similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]), replace_nan=-2)
    tensor([[ 1., -2.]])
    """
    test, train = flat(test), flat(train)
    n, m = test.norm(dim=1), train.norm(dim=1)
    found = nn.functional.normalize(test, eps=0) @ nn.functional.normalize(train, eps=0).T
    return found.masked_fill((n == 0)[:, None] | (m == 0), replace_nan)


class SimilarityInfluence(DataInfluence):
    """The examples of a data set whose activations at some layers are most like those of an input.

    The data set goes through the model once, all layers together, and only the best so far are kept. With an
    ``activation_dir`` its activations are kept in safetensors files and read again as long as the model's weights, the
    layers, the number of examples, the first and the last of them are the same.

    Args:
        module: the model.
        layers: a layer or some, by name or themselves.
        influence_src_dataset: of inputs, or of tuples with the inputs first (several inputs: a tuple of them).
        activation_dir: where activations are kept; None keeps none.
        model_id: a folder in there for this model and data set.
        similarity_metric: (activations [N, ...], activations [M, ...]) -> [N, M].
        similarity_direction: ``"max"`` if alike is high, ``"min"`` for distances.
        batch_size: examples that go through the model at once.
        replace_nan: what cosine similarity tells of activations that are zero; by default less than of any other.

    Raises:
        ValueError: the direction is neither, no such layer.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> examples = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> near = SimilarityInfluence(
    ...     model, "0", examples, None, similarity_metric=euclidean_distance, similarity_direction="min"
    ... )
    >>> near.influence(torch.tensor([[0.9, 0.1]]))["0"][0]
    tensor([[1]])
    """

    def __init__(
        self,
        module: nn.Module,
        layers: str | nn.Module | Sequence[str | nn.Module],
        influence_src_dataset: Dataset[Any],
        activation_dir: str | Path | None = None,
        model_id: str = "",
        similarity_metric: Metric = cosine_similarity,
        similarity_direction: str = "max",
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        if similarity_direction not in ("max", "min"):
            raise ArgumentError(f"similarity_direction must be 'max' or 'min', got {similarity_direction!r}")
        self.module = module
        self.layers = [layers] if isinstance(layers, str | nn.Module) else list(layers)
        self._modules = [layer_of(module, layer) for layer in self.layers]
        names = {m: n for n, m in module.named_modules()}
        self._names = [names[m] for m in self._modules]
        self.influence_src_dataset = influence_src_dataset
        self.activation_dir, self.model_id = activation_dir, model_id
        self.similarity_direction = similarity_direction
        self.batch_size = whole("batch_size", batch_size, 1)
        self.replace_nan: float | None = None
        if similarity_metric is cosine_similarity:
            self.replace_nan = kwargs.pop("replace_nan", -2 if similarity_direction == "max" else 2)
            similarity_metric = partial(cosine_similarity, replace_nan=self.replace_nan)
        if kwargs:
            raise ArgumentTypeError(f"unknown arguments {', '.join(kwargs)}; replace_nan goes with cosine_similarity")
        self.similarity_metric = similarity_metric

    def influence(
        self,
        inputs: Any,
        top_k: int = 1,
        additional_forward_args: Any = None,
        load_src_from_disk: bool = True,
    ) -> dict[Any, Any]:
        """For each layer, as it was given, the ``top_k`` examples most like each input: places and scores [N, k].

        Where cosine similarity met activations that are zero, an entry ``"zero_acts-<layer>"`` holds the pairs (input,
        example) [P, 2] that it could not tell.

        Args:
            inputs: as the model takes them, a tensor or a tuple of tensors.
            top_k: how many examples.
            additional_forward_args: of the model, for the inputs; examples go through it without.
            load_src_from_disk: False makes the activations of the examples anew.
        """
        best = [Best(whole("top_k", top_k, 1), self.similarity_direction == "max") for _ in self.layers]
        untold: list[list[Tensor]] = [[] for _ in self.layers]
        with untouched(self.module):  # a loader draws from the global generator even if it does not shuffle
            self._compare(self._activations(inputs, additional_forward_args), load_src_from_disk, best, untold)
        found: dict[Any, Any] = {}
        for layer, name, kept, pairs in zip(self.layers, self._names, best, untold, strict=True):
            result = kept.result()
            found[layer] = (result.indices, result.influence_scores)
            if sum(map(len, pairs)):
                found[f"zero_acts-{name}"] = torch.cat(pairs)
                warn(
                    f"layer {name!r} has activations that are all zero, whose cosine similarity is nothing; the pairs "
                    f"(input, example) stand under 'zero_acts-{name}'",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return found

    def _compare(self, tests: list[Tensor], load: bool, best: list[Best], untold: list[list[Tensor]]) -> None:
        """Adds all examples to the best of each layer, and the pairs that cannot be told."""
        seen = 0
        for examples in self._examples(load):
            for i, (test, train) in enumerate(zip(tests, examples, strict=True)):
                likeness = self.similarity_metric(test, train.to(test.device))
                if likeness.shape != (len(test), len(train)):
                    raise ArgumentError(
                        f"similarity_metric must return [inputs, examples], here {(len(test), len(train))}, "
                        f"got {tuple(likeness.shape)}"
                    )
                best[i].add(likeness)
                if self.replace_nan is not None:
                    untold[i].append(_zero_pairs(test, train.to(test.device), seen))
            seen += len(examples[0])

    def _activations(self, inputs: Any, args: Any = None) -> list[Tensor]:
        found = LayerActivation(self.module, self._modules).attribute(inputs, args)
        for name, here in zip(self._names, found, strict=True):
            if not isinstance(here, Tensor):
                raise ArgumentTypeError(f"the layer {name!r} returns several tensors; choose one that returns one")
        return list(found)

    def _examples(self, load: bool) -> Iterator[list[Tensor]]:
        """Activations of the examples, batch by batch, one tensor for each layer."""
        folder = None if self.activation_dir is None else Path(self.activation_dir) / self.model_id / "src"
        index = folder and folder / "index.json"
        identity = self._identity if index else {}
        if index and load and index.is_file() and json.loads(index.read_text()) == identity:
            yield from self._read(index.parent)
            return
        if index:
            index.unlink(missing_ok=True)  # what is half written is never read
        for i, batch in enumerate(DataLoader(self.influence_src_dataset, self.batch_size, shuffle=False)):
            first = batch[0] if isinstance(batch, tuple | list) else batch
            found = self._activations(tuple(first) if isinstance(first, list) else first)
            if folder:
                write(folder / f"{i}.safetensors", {str(j): t for j, t in enumerate(found)}, {})
            yield found
        if index:
            put(index, json.dumps(identity).encode())

    def _read(self, folder: Path) -> Iterator[list[Tensor]]:
        for i in range(-(-len(self.influence_src_dataset) // self.batch_size)):  # type: ignore[arg-type]  # it has a length
            found = read(folder / f"{i}.safetensors")
            yield [found[str(j)] for j in range(len(self.layers))]

    @property
    def _identity(self) -> dict[str, Any]:
        """What activations depend on, as far as it can be told without going through the data."""
        examples: Any = self.influence_src_dataset
        ends = [examples[i] for i in ((0, len(examples) - 1) if len(examples) else ())]
        return {
            "weights": digest(self.module.state_dict()),
            "layers": self._names,
            "examples": len(examples),
            "first and last": digest(ends),
            "batch_size": self.batch_size,
        }


def _zero_pairs(test: Tensor, train: Tensor, seen: int) -> Tensor:
    """Pairs (input, example) of which one is zero [P, 2]."""
    n, m = (flat(t).norm(dim=1) == 0 for t in (test, train))
    pairs: Tensor = (n[:, None] | m).nonzero()
    return pairs + torch.tensor([0, seen], device=n.device)

"""Concepts: something people have a word for, told by examples."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ...engine.checks import ArgumentError


class Concept:
    """Something that people have a word for, such as stripes, told by examples of it.

    Args:
        id: a number of its own.
        name: its name.
        data_iter: batches of inputs, such as a data loader; or all examples, as one tensor [N, ...]. None for a concept
            that is only named.

    >>> Concept(0, "stripes").identifier
    'stripes-0'
    """

    def __init__(self, id: int, name: str, data_iter: Iterable[Any] | Tensor | None = None) -> None:
        self.id, self.name, self.data_iter = id, name, data_iter

    @property
    def identifier(self) -> str:
        """The name and the number."""
        return f"{self.name}-{self.id}"

    def batches(self) -> Iterator[Any]:
        """Its examples, as the model takes them, batch by batch.

        Raises:
            ValueError: it has none.
        """
        if self.data_iter is None:
            raise ArgumentError(f"{self!r} has no examples; give it data_iter, batches of inputs")
        yield from [self.data_iter] if isinstance(self.data_iter, Tensor) else self.data_iter

    def __repr__(self) -> str:
        return f"Concept({self.id!r}, {self.name!r})"


class ConceptInterpreter(ABC):
    """Explains a model by concepts.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"

    @abstractmethod
    def interpret(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """What concepts have to do with the model's answers for some inputs."""


def concepts_to_str(concepts: Sequence[Concept]) -> str:
    """The numbers of some concepts, by which results for them are found.

    >>> concepts_to_str([Concept(3, "stripes"), Concept(0, "random")])
    '3-0'
    """
    return "-".join(str(c.id) for c in concepts)

"""Models that answer later: many questions may be under way at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.futures import Future

from .checks import ArgumentTypeError

T = TypeVar("T")


@dataclass(frozen=True)
class Later:
    """A model that returns futures, as a model whose answers are waited for."""

    model: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask(*args, **kwargs).wait()

    def ask(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """The answer to come.

        Raises:
            TypeError: the model returns something else.
        """
        out = self.model(*args, **kwargs)
        if not isinstance(out, Future):
            raise ArgumentTypeError(f"attribute_future is for a model that returns futures, got {type(out).__name__}")
        return out


def in_turn(asked: Iterable[tuple[T, Future[Any]]], most: int) -> Iterator[tuple[T, Any]]:
    """What was asked and its answer, in the order of the questions, of which up to ``most`` are under way."""
    under_way: deque[tuple[T, Future[Any]]] = deque()
    for question in asked:
        under_way.append(question)
        if len(under_way) >= most:
            what, answer = under_way.popleft()
            yield what, answer.wait()
    for what, answer in under_way:
        yield what, answer.wait()

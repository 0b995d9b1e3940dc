"""Running statistics, element by element, of any number of tensors that need not be kept. Captum's names and keys.

Means and variances by the recurrences of Welford (Technometrics 1962).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..engine.packing import finest

StatValue = Tensor | int | float
Summary = dict[str, StatValue | None]
S = TypeVar("S", bound="Stat")
Fold = Callable[[Tensor, Tensor], Tensor]


class Stat:
    """A statistic of the tensors it is updated with; it may build on others of the same tensors.

    Two are equal when their class and ``kwargs`` are: a summarizer keeps one of them.

    Args:
        name: the key in a summary; by default the class's name and ``kwargs``.
        kwargs: what else sets it apart from others of its class.

    >>> class Range(Stat):
    ...     def init(self):
    ...         self.low, self.high = self._get_stat(Min()), self._get_stat(Max())
    ...
    ...     def get(self):
    ...         return self.high.get() - self.low.get()
    >>> ranges = Summarizer([Range()])
    >>> for x in (1.0, 5.0, 3.0):
    ...     ranges.update(x)
    >>> ranges.summary["range"].item()
    4.0
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        self.params = kwargs
        self._name = name
        self._other_stats: SummarizerSingleTensor | None = None

    def init(self) -> None:
        """Called once, before any tensor: the place to ask for others by ``_get_stat``."""

    def _get_stat(self, stat: S) -> S:
        """The statistic equal to ``stat``, which is updated before this one."""
        assert self._other_stats is not None, "ask for other statistics in init(), which a summarizer calls"
        return self._other_stats.take(stat)

    def update(self, x: Tensor) -> None:
        """Take one more tensor in; nothing to do where all follows from other statistics."""

    def get(self) -> StatValue | None:
        """The value so far."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Stat) and self.params == other.params

    def __hash__(self) -> int:
        return hash(type(self))

    @property
    def name(self) -> str:
        return self._name or type(self).__name__.lower() + (f"({self.params})" if self.params else "")


class Count(Stat):
    """How many tensors came."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.n = 0

    def update(self, x: Tensor) -> None:
        self.n += 1

    def get(self) -> int | None:
        return self.n or None


class _Kept(Stat):
    """What is its own record of the tensors."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.value: Tensor | None = None

    def get(self) -> Tensor | None:
        return self.value


class Mean(_Kept):
    """The mean, in float32 at least; of integers in float64."""

    def init(self) -> None:
        self.count = self._get_stat(Count())

    def update(self, x: Tensor) -> None:
        x = _wide(x)
        self.value = x.clone() if self.value is None else self.value + (x - self.value) / self.count.n


class MSE(_Kept):
    """The sum (Captum's name notwithstanding) of squared deviations from the mean."""

    def init(self) -> None:
        self.mean, self.count = self._get_stat(Mean()), self._get_stat(Count())

    def update(self, x: Tensor) -> None:
        mean, n = self.mean.value, self.count.n
        assert mean is not None
        if self.value is None:
            self.value = torch.zeros_like(mean)
        else:  # Welford's (x - mean before) * (x - mean), where the mean before is gone
            self.value = self.value + (_wide(x) - mean).square() * (n / (n - 1))


class _Ordered(Stat):
    """What has an order, as moments of samples have."""

    word: str

    def __init__(self, name: str | None = None, order: int = 0) -> None:
        names = {0: self.word, 1: f"sample_{self.word}"}
        super().__init__(name or names.get(order, f"{self.word}({order})"), order=order)
        self.order = order


class Var(_Ordered):
    """The variance, squared deviations over n - ``order``, in float64; zero up to n = ``order``."""

    word = "variance"

    def init(self) -> None:
        self.mse, self.count = self._get_stat(MSE()), self._get_stat(Count())

    def get(self) -> Tensor | None:
        squares, n = self.mse.value, self.count.n - self.order
        if squares is None:
            return None
        return finest(squares) / n if n > 0 else torch.zeros_like(finest(squares))


class StdDev(_Ordered):
    """The standard deviation, the root of :class:`Var`."""

    word = "std_dev"

    def init(self) -> None:
        self.var = self._get_stat(Var(order=self.order))

    def get(self) -> Tensor | None:
        var = self.var.get()
        return None if var is None else var.sqrt()


class _Folded(_Kept):
    """fn(value so far, x)."""

    def __init__(self, name: str | None, fn: Fold) -> None:
        super().__init__(name or type(self).__name__.lower())
        self.params = {"fn": fn}

    def update(self, x: Tensor) -> None:
        self.value = x.clone() if self.value is None else self.params["fn"](self.value, x)


class Min(_Folded):
    """The least."""

    def __init__(self, name: str | None = None, min_fn: Fold = torch.min) -> None:
        super().__init__(name, min_fn)


class Max(_Folded):
    """The greatest."""

    def __init__(self, name: str | None = None, max_fn: Fold = torch.max) -> None:
        super().__init__(name, max_fn)


class Sum(_Folded):
    """The sum, in float32 at least; of integers in int64."""

    def __init__(self, name: str | None = None, add_fn: Fold = torch.add) -> None:
        super().__init__(name, add_fn)

    def update(self, x: Tensor) -> None:
        super().update(_wide(x) if x.is_floating_point() else x.long())


def CommonStats() -> list[Stat]:
    """Mean, sample variance and deviation, least and greatest."""
    return [Mean(), Var(order=1), StdDev(order=1), Min(), Max()]


class SummarizerSingleTensor:
    """Statistics of tensors of one shape; each is updated after those it builds on, which need not be listed.

    Args:
        stats: the statistics.
        summary_stats_indices: which of them the summary shows.

    Raises:
        TypeError, ValueError: one is no statistic, or different ones have the same name.

    >>> spread = SummarizerSingleTensor([StdDev(), Mean()], summary_stats_indices=[0])
    >>> for x in (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])):
    ...     spread.update(x)
    >>> spread.summary
    {'std_dev': tensor([0., 1.], dtype=torch.float64)}
    """

    def __init__(self, stats: Sequence[Stat], summary_stats_indices: Sequence[int]) -> None:
        self._stats: dict[Stat, Stat] = {}  # in the order of their updates
        self._shown: dict[str, Stat] = {}
        self._begun = False
        for stat in stats:
            self.take(stat)
        for stat in (stats[i] for i in summary_stats_indices):
            if self._shown.setdefault(stat.name, stat) != stat:
                raise ValueError(f"stats holds two different ones named {stat.name!r}; give one another name=...")

    def take(self, stat: S) -> S:
        """The one equal to ``stat``, which is taken up if there is none.

        Raises:
            RuntimeError: there is none, and it would have missed tensors.
        """
        if not isinstance(stat, Stat):
            raise TypeError(f"stats must be statistics such as Mean(), got {stat!r}")
        if stat not in self._stats:
            if self._begun:
                raise RuntimeError(f"{stat.name} has missed the tensors before; ask for it in init()")
            stat._other_stats = self
            stat.init()
            self._stats[stat] = stat
        return self._stats[stat]  # type: ignore[return-value]  # equal ones share a class

    def get(self, stat: S) -> S | None:
        """The one equal to ``stat``, if there is one."""
        return self._stats.get(stat)  # type: ignore[return-value]  # likewise

    def update(self, x: Tensor) -> None:
        """Take ``x`` into each statistic, without its graph."""
        self._begun, x = True, x.detach()
        for stat in self._stats.values():
            stat.update(x)

    @property
    def summary(self) -> Summary:
        """Name to value."""
        return {name: self._stats[stat].get() for name, stat in self._shown.items()}


class Summarizer:
    """Statistics of tensors or numbers, or of tuples of these, each place of the tuple by itself.

    Args:
        stats: what to keep; see :class:`SummarizerSingleTensor` for what is raised.

    >>> summary = Summarizer([Mean(), Max()])
    >>> for x in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])):
    ...     summary.update(x)
    >>> summary.summary
    {'mean': tensor([2., 1.]), 'max': tensor([3., 2.])}
    """

    def __init__(self, stats: Sequence[Stat]) -> None:
        self._given = stats
        self._summarizers: list[SummarizerSingleTensor] = []
        self._form: Any = None  # the shape of each update, in a list for a tuple
        self._fresh()  # what is wrong with them shows now

    def _fresh(self) -> SummarizerSingleTensor:
        return SummarizerSingleTensor(deepcopy(self._given), range(len(self._given)))

    def update(self, x: float | Tensor | tuple[float | Tensor, ...]) -> None:
        """Take ``x`` in; python numbers become float64.

        Raises:
            TypeError, ValueError: it holds something else, or differs in form or shape from the first.
        """
        parts = [_tensor(v) for v in (x if isinstance(x, tuple) else (x,))]
        shapes = [tuple(t.shape) for t in parts]
        form = shapes if isinstance(x, tuple) else shapes[0]
        if self._form is None:
            self._form, self._summarizers = form, [self._fresh() for _ in parts]
        if form != self._form:
            raise ValueError(
                f"x must keep the shape of the first update, {self._form}, got {form}; lists are for tuples"
            )
        for s, t in zip(self._summarizers, parts, strict=True):
            s.update(t)

    @property
    def summary(self) -> Summary | list[Summary] | None:
        """Name to value; for tuples a list of these; None before the first update."""
        summaries = [s.summary for s in self._summarizers]
        return summaries if isinstance(self._form, list) else summaries[0] if summaries else None


class ClassSummarizer(Summarizer):
    """Statistics of all examples, and of those of each class.

    Args:
        stats: as for :class:`Summarizer`.

    >>> by_class = ClassSummarizer([Mean()])
    >>> by_class.update(torch.tensor([1.0, 2.0, 6.0]), labels=["cat", "cat", "dog"])
    >>> by_class.summary, by_class.class_summaries["cat"]
    ([{'mean': tensor(3.)}], [{'mean': tensor(1.5000)}])
    """

    def __init__(self, stats: Sequence[Stat]) -> None:
        super().__init__(stats)
        self.summaries: dict[Any, Summarizer] = defaultdict(partial(Summarizer, stats))

    def update(self, x: Any, labels: Any = None) -> None:
        """Take each example of a tensor [B, ...], or of a tuple of these, into its class; summaries become lists.

        Args:
            x: the examples; without ``labels`` one observation, of no class.
            labels: one for all, or a list or tensor of one or B; what can be a key of a dict.

        Raises:
            ValueError: the tensors and the labels do not go together.
        """
        if labels is None:
            return super().update(x)
        parts = x if isinstance(x, tuple) else (x,)
        shapes = [tuple(getattr(t, "shape", ())) for t in parts]
        lengths = {s[0] if s else None for s in shapes}
        b = lengths.pop() if len(lengths) == 1 else None
        labels = _plain(labels)
        keys = [_key(v) for v in labels] if isinstance(labels, list) else [_key(labels)]
        if b is None or len(keys) not in (1, b):
            raise ValueError(
                f"x must be tensors [B, ...] of one length and labels one or B of them, got shapes {shapes} and "
                f"{len(keys)} labels"
            )
        for i in range(b):
            row = tuple(t[i] for t in parts)
            super().update(row)
            self.summaries[keys[i % len(keys)]].update(row)

    @property
    def class_summaries(self) -> dict[Any, Summary | list[Summary] | None]:
        """Label to summary."""
        return {key: s.summary for key, s in self.summaries.items()}


def _wide(x: Tensor) -> Tensor:
    """In a dtype that sums can be kept in."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else finest(x)


def _tensor(v: Any) -> Tensor:
    if not isinstance(v, Tensor | Real):
        raise TypeError(f"x must be a tensor, a number or a tuple of these, got {type(v).__name__}")
    return v if isinstance(v, Tensor) else torch.tensor(float(v), dtype=torch.float64)


def _plain(label: Any) -> Any:
    return label.tolist() if hasattr(label, "tolist") else label  # a tensor's hash is its identity


def _key(label: Any) -> Any:
    label = _plain(label)
    return tuple(map(_key, label)) if isinstance(label, list) else label

"""Columns: what one feature of a table is, where it stands in a model's input, and sums that several must keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import ArgumentError

Kind = Literal["continuous", "integer", "ordinal", "categorical", "binary"]
KINDS = ("continuous", "integer", "ordinal", "categorical", "binary")
SENSES: dict[str, tuple[float, ...]] = {">=": (1.0,), "<=": (-1.0,), "==": (1.0, -1.0)}


@dataclass(frozen=True)
class Feature:
    """One column of a table, in the units that people use, and what may happen to it.

    Args:
        name: what it is called.
        kind: ``"continuous"``; ``"integer"``; ``"ordinal"`` and ``"binary"``, whose ``categories`` have an order;
            ``"categorical"``, whose have none and stand as a block of ones and zeros.
        categories: its values, for the last three kinds.
        range: the least and the greatest value it may be given.
        mutable: whether it may change at all.
        direction: ``"any"``, ``"increase"`` or ``"decrease"`` (of ordinal ones: in the order of their categories).
        max_change: the largest change; in steps of the order, for ordinal ones.
        step: the grid of its values, counted from the range's lower end; 1 for integers, from 0.
        unit: what its values are counted in.
        cost: what a change of its whole range costs, beside other features.
        transitions: which categories each category may become (itself always); one that is not named may become any.
    """

    name: str
    kind: Kind = "continuous"
    categories: tuple[Any, ...] = ()
    range: tuple[float, float] = (-np.inf, np.inf)
    mutable: bool = True
    direction: Literal["any", "increase", "decrease"] = "any"
    max_change: float = np.inf
    step: float | None = None
    unit: str = ""
    cost: float = 1.0
    transitions: Mapping[Any, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def refuse(what: str) -> None:
            raise ArgumentError(f"feature {self.name!r}: {what}")

        if self.kind not in KINDS:
            refuse(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.listed != bool(self.categories):
            refuse(f"{self.kind} features {'need their' if self.listed else 'have no'} categories")
        if len(set(self.categories)) != len(self.categories):
            refuse(f"categories must differ from one another, got {self.categories!r}")
        if self.kind == "binary" and len(self.categories) != 2:
            refuse(f"binary features have two categories, got {len(self.categories)}")
        if self.listed:
            object.__setattr__(self, "range", (0.0, len(self.categories) - 1.0))
        elif not self.range[0] <= self.range[1]:
            refuse(f"range must be (lowest, highest), got {self.range!r}")
        if self.direction not in ("any", "increase", "decrease"):
            refuse(f"direction must be 'any', 'increase' or 'decrease', got {self.direction!r}")
        if self.kind == "categorical" and (self.direction != "any" or self.max_change != np.inf):
            refuse("categories without an order know no direction and no largest change; use transitions, or ordinal")
        if self.step is not None and (self.listed or not self.step > 0):
            refuse(f"step must be above 0, and is for numbers, got {self.step!r}")
        if not self.max_change >= 0 or not self.cost >= 0:
            refuse(f"max_change and cost must be at least 0, got {self.max_change!r} and {self.cost!r}")
        named = [*self.transitions, *(v for vs in self.transitions.values() for v in vs)]
        strangers = [v for v in named if v not in self.categories]
        if strangers:
            refuse(f"transitions names {strangers[0]!r}, which is no category; they are {self.categories!r}")

    @property
    def listed(self) -> bool:
        """Whether its values are a list of categories."""
        return self.kind in ("ordinal", "categorical", "binary")

    @property
    def grid(self) -> tuple[float, float] | None:
        """Where its values start and how far they are apart; None if it may have any."""
        if self.listed or (self.kind == "integer" and self.step is None):
            return 0.0, 1.0
        if self.step is None:
            return None
        return self.range[0] if np.isfinite(self.range[0]) else 0.0, self.step

    @property
    def span(self) -> float:
        """How long its range is; 1 if it has no ends."""
        span = self.range[1] - self.range[0]
        return span if 0 < span < np.inf else 1.0

    def snapped(self, code: Tensor) -> Tensor:
        """The nearest values on its grid."""
        if self.grid is None:
            return code
        start, step = self.grid
        return start + ((code - start) / step).round() * step

    def may_become(self) -> Tensor:
        """Which category (row) may become which (column)."""
        c = self.categories
        allowed = [[b == a or a not in self.transitions or b in self.transitions[a] for b in c] for a in c]
        return torch.tensor(allowed)


@dataclass(frozen=True)
class Linear:
    """A sum over features that must hold: ``Linear({"age": 1, "years employed": -1}, ">=", 18)``.

    Coefficients and bound are in the features' own units; ordinal and binary features count 0, 1, ...
    """

    coefficients: Mapping[str, float]
    sense: Literal[">=", "<=", "=="]
    bound: float

    def __post_init__(self) -> None:
        if self.sense not in SENSES:
            raise ArgumentError(f"sense must be one of {', '.join(SENSES)}, got {self.sense!r}")
        if not self.coefficients:
            raise ArgumentError("a linear constraint needs at least one coefficient")

    def __str__(self) -> str:
        told = " + ".join(f"{c:g} {n}" for n, c in self.coefficients.items())
        return f"{told} {self.sense} {self.bound:g}"


@dataclass(frozen=True)
class Place:
    """Where a feature stands in the model's input, and how: a block of categories, or (value - offset) / scale."""

    start: int
    width: int = 1
    offset: float = 0.0
    scale: float = 1.0
    block: bool = False

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.width)

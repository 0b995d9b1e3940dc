"""Goals that ask for more: that inputs keep within limits, that other models agree, that noise does not undo it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..engine.packing import Tensors
from ..engine.randomness import Noise
from ..engine.scores import Ask
from .goals import Goal

Limit = Callable[[Tensors, Tensor], Tensor]
"""The model's inputs and the examples [N] they are seen from -> margins [N], at least 0 where the limit is kept to."""


@dataclass(frozen=True, eq=False)
class Demand(Goal):
    """A goal that is reached where another one is and something else holds as well: the least of several margins.

    Args:
        goal: the other one.
    """

    goal: Goal

    @property
    def plain(self) -> Goal:
        return self.goal.plain

    @property
    def passes(self) -> int:
        return self.goal.passes

    @abstractmethod
    def own(self, out: Any) -> Any:
        """What of it the other goal reads."""

    def check(self, out: Any, rows: Tensor) -> None:
        self.goal.check(self.own(out), rows)

    def hair(self, before: Tensor) -> Tensor:
        return self.goal.hair(before)

    def size(self, out: Any, rows: Tensor) -> Tensor:
        return self.goal.size(self.own(out), rows)


@dataclass(frozen=True, eq=False)
class Within(Demand):
    """A goal that counts only where the model's inputs keep to some limits.

    Args:
        limits: see :data:`Limit`; theirs are margins of their own, for a search to climb beside that of the goal.

    >>> from robustx.engine import Probe
    >>> from robustx.perturb import Until
    >>> f = Probe(lambda x: x.sum(1), (torch.tensor([[1.0, 2.0], [3.0, 0.0]]),))
    >>> f.to(of=Within(Until(lambda out: out - 2), (lambda x, rows: 1.5 - x[0][:, 1],))).score
    tensor([-0.5000,  1.0000])
    """

    limits: tuple[Limit, ...]

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Any:
        return self.goal.ask(call, inputs, rows), inputs

    def own(self, out: Any) -> Any:
        return out[0]

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return torch.stack(self._margins(out, rows)).amin(0)

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        margins = torch.stack(self._margins(out, rows)) - (self.by[rows] if isinstance(self.by, Tensor) else self.by)
        return torch.where((margins > 0).all(0), margins.amin(0), margins.clamp(max=0).sum(0))

    def _margins(self, out: Any, rows: Tensor) -> list[Tensor]:
        margin = self.goal.value(out[0], rows)
        return [margin, *(limit(out[1], rows).to(margin) for limit in self.limits)]


@dataclass(frozen=True, eq=False)
class Everywhere(Demand):
    """A goal that counts only where other models reach it as well.

    Args:
        models: they take what the model takes.

    >>> from robustx.engine import Probe
    >>> from robustx.perturb import Until
    >>> f = Probe(lambda x: x.sum(1), (torch.tensor([[1.0, 2.0], [3.0, 0.0]]),))
    >>> f.to(of=Everywhere(Until(lambda out: out - 2), (lambda x: x[:, 0],))).score
    tensor([-1.,  1.])
    """

    models: tuple[Callable[..., Any], ...]

    @property
    def passes(self) -> int:
        return (1 + len(self.models)) * self.goal.passes

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Any:
        calls = (call, *(partial(call, instead=m) for m in self.models))
        return tuple(self.goal.ask(c, inputs, rows) for c in calls)

    def own(self, out: Any) -> Any:
        return out[0]

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return torch.stack([self.goal.value(o, rows) for o in out]).amin(0)


@dataclass(frozen=True, eq=False)
class Steady(Demand):
    """A goal that counts only where it is reached for a share of the points around, too, under Gaussian noise.

    The same draws are taken for all points and all examples, so that one question has one answer.

    Args:
        sigma: the deviation of the noise, in the units of the inputs: packed like them [1, D] or [B, D].
        share: of the draws.
        draws: how many.
        seed: of the draws.

    >>> from robustx.engine import Probe
    >>> from robustx.perturb import Until
    >>> f = Probe(lambda x: x.sum(1), (torch.tensor([[1.0, 2.0], [4.0, 4.0]]),))
    >>> f.to(of=Steady(Until(lambda out: out - 2.9), torch.ones(1, 2))).score > 0
    tensor([False,  True])
    """

    sigma: Tensor
    share: float = 0.95
    draws: int = 20
    seed: int = 0

    @property
    def passes(self) -> int:
        return (1 + self.draws) * self.goal.passes

    @cached_property
    def moves(self) -> Tensor:
        """Standard normal draws [S, D]."""
        return Noise(self.seed, "steady", list(map(str, range(self.draws)))).normal(self.sigma.shape[1], self.sigma)

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Any:
        sigma = self.sigma if len(self.sigma) == 1 else self.sigma[rows]
        sizes = [t[0].numel() if len(t) else 0 for t in inputs]
        asked = [self.goal.ask(call, inputs, rows)]
        for move in self.moves if len(rows) else ():
            parts = (sigma * move).split_with_sizes(sizes, 1)
            moved = (t + p.reshape(-1, *t.shape[1:]).to(t) for t, p in zip(inputs, parts, strict=True))
            asked.append(self.goal.ask(call, tuple(moved), rows))
        return tuple(asked)

    def own(self, out: Any) -> Any:
        return out[0]

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        here, around = self._margins(out, rows)
        return torch.minimum(here, around[-1]) if len(around) else here

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        here, around = self._margins(out, rows)
        return torch.minimum(here, around.mean(0)) if len(around) else here

    def _margins(self, out: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """That of the point itself [N], and those of the least favourable draws, of which the last decides."""
        here, *around = (self.goal.value(o, rows) for o in out)
        if not around:
            return here, here[None][:0]
        worst = len(around) - ceil(self.share * len(around)) + 1
        return here, torch.stack(around).topk(min(worst, len(around)), dim=0, largest=False).values

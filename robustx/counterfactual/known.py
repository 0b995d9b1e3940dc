"""Known examples: data that a search may take its values from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.packing import finest
from ..engine.probe import Probe
from ..perturb.goals import Goal, as_logits

if TYPE_CHECKING:
    from .domain import Graded

PAIRS = 2**22  # numbers that are held at once for pairs of an example and a known one


@dataclass(frozen=True, eq=False)
class Known:
    """Examples that are known, M of them, and what the model makes of them, which it is asked once.

    Args:
        f: the model at the known examples, whose score is its whole output [M, ...].
        y: their classes [M]: of an example that the model takes for another one no search takes values.
        goal: of the examples that are asked about.

    Raises:
        ArgumentError: labels that are no classes.

    >>> from robustx.engine import Everything
    >>> from robustx.perturb import Reach
    >>> model = lambda x: torch.cat([x, 1 - x], 1)
    >>> known = Known(Probe(model, (torch.tensor([[0.1], [0.7], [0.9]]),), Everything()))
    >>> asked = known.to(Probe(model, (torch.tensor([[0.2]]),), Reach(torch.tensor([0]))))
    >>> asked.reach(torch.tensor([0]))
    tensor([[False,  True,  True]])
    """

    f: Probe
    y: Tensor | None = None
    goal: Goal | None = None

    def __post_init__(self) -> None:
        if self.y is None:
            return
        if self.y.is_floating_point() or self.y.shape != (len(self),):
            raise ArgumentError(
                f"y must be one class for each of {len(self)} examples, got shape {tuple(self.y.shape)} of "
                f"{self.y.dtype}; leave it out if there are none"
            )

    def __len__(self) -> int:
        return self.f.examples

    def to(self, f: Probe) -> Self:
        """The same examples, for those of ``f`` and its goal.

        Raises:
            ArgumentError: they have other shapes; the model has further arguments for each example.
            ArgumentTypeError: the probe's score is no goal.
        """
        there, here = ([tuple(t.shape[1:]) for t in g.inputs] for g in (self.f, f))
        if there != here or self.f.names != f.names:
            raise ArgumentError(f"fit was given examples of shapes {there}, but the inputs have {here}: fit again")
        if f.follows:
            raise ArgumentError(
                "known examples are asked of the model without the additional_forward_args of others, which say "
                "nothing of them; wrap the model, or do without fit"
            )
        if not isinstance(f.of, Goal):
            raise ArgumentTypeError(f"known examples are there for goals, got {type(f.of).__name__}")
        same = self.f.model is f.model and not f.args and not f.kwargs  # then it has been asked already
        return replace(self, f=self.f if same else self.f.to(model=f.model, args=f.args, kwargs=f.kwargs), goal=f.of)

    @property
    def z(self) -> Tensor:
        """Packed like the model's inputs [M, D]."""
        return self.f.point

    @property
    def outputs(self) -> Tensor:
        """What the model makes of them [M, ...]."""
        return self.f.score

    @cached_property
    def right(self) -> Tensor:
        """Which of them the model takes for what they are, as far as that is known [M]."""
        if self.y is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.f.device)
        return as_logits(self.outputs, self.f.everyone).argmax(1) == self.y.to(self.f.device)

    def reach(self, rows: Tensor) -> Tensor:
        """Which of them reach the goal of which of some examples [n, M]; the model is not asked again."""
        parts = [reached for _, reached in self._reaching(rows)]
        return torch.cat(parts) if parts else self.right.expand(0, -1)

    def _reaching(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.goal is not None
        out, m = self.outputs, len(self)
        width = max(out.numel(), self.z.numel(), 1)
        for some in rows.split(max(1, PAIRS // width)) if len(rows) else ():
            pairs = out.repeat(len(some), *(1,) * (out.ndim - 1)), some.repeat_interleave(m)
            yield some, (self.goal.value(*pairs) > 0).reshape(len(some), m) & self.right

    def nearest(self, domain: "Graded", rows: Tensor, k: int, unlike: bool = True) -> Tensor:
        """The ``k`` that would cost each of some examples least, those first [n, k]; -1 where there are no more.

        Args:
            domain: what costs are measured in.
            rows: the examples [n].
            k: how many.
            unlike: only such as reach the example's goal; else all that are not the example itself.
        """
        k, m, near = min(k, len(self)), len(self), [rows.new_zeros(0, min(k, len(self)))]
        for some, reached in self._reaching(rows):
            pairs = some.repeat_interleave(m)
            cost = finest(domain.cost(domain.points(self.z.repeat(len(some), 1), pairs), pairs)).reshape(len(some), m)
            cost = cost.masked_fill(~reached if unlike else cost == 0, torch.inf)
            least, which = cost.sort(dim=1, stable=True)
            near.append(torch.where(least < torch.inf, which, -1)[:, :k])
        return torch.cat(near)

"""What a counterfactual is to reach, in the words of its user."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..engine.checks import ArgumentError
from ..engine.probe import Probe
from ..engine.scores import Everything, Output, Target
from ..perturb.goals import Between, Goal, Leave, Reach, Surely, aim, as_logits, labels


@dataclass(frozen=True)
class Change:
    """A number read off the output is to change by at least ``low`` and less than ``high``, seen from where it is.

    Args:
        low, high: in the units of the output, or as a share of its size where ``relative``: ``Change(0.07,
            relative=True)`` is at least 7 % more, ``Change(high=-2)`` at least 2 less.
        relative: whether they are shares.
        target: which number, as Captum's ``target``.

    Raises:
        ArgumentError: no change is asked for.
    """

    low: float = -torch.inf
    high: float = torch.inf
    relative: bool = False
    target: Target = None

    def __post_init__(self) -> None:
        if not self.low < self.high or self.low <= 0 <= self.high:
            raise ArgumentError(
                f"Change needs low < high, and both on one side of 0, got {self.low} and {self.high}; "
                "Change(0.5) asks for at least 0.5 more, Change(high=-0.5) for at least 0.5 less"
            )

    def goal(self, f: Probe) -> Goal:
        """As an interval for each example."""
        now = f.to(of=Output(self.target)).score
        unit = now.abs() if self.relative else torch.ones_like(now)
        return Between(now + self.low * unit, now + self.high * unit, self.target)


Aim: TypeAlias = Literal["other", "runner-up"] | int | Tensor | Goal | Callable[[Any], Tensor] | Change


def aimed(f: Probe, target: Any, min_prob: float | None) -> Goal:
    """The goal of each example.

    Args:
        f: the model at the inputs.
        target: ``"other"`` (any other class than the model's), ``"runner-up"``, one class or one per example, a
            :class:`Change`, a goal, or a function from outputs to margins.
        min_prob: the probability that a class is to reach.

    Raises:
        ArgumentError: no such target, or a probability that is none.
    """
    if isinstance(target, str) and target not in ("other", "runner-up"):
        raise ArgumentError(
            f"target must be 'other', 'runner-up', classes, a Change, a goal or a function, got {target!r}"
        )
    if isinstance(target, Change):
        goal: Goal = target.goal(f)
    elif isinstance(target, Goal) or callable(target):
        goal = aim(f, target, None)
    elif isinstance(target, str):
        out = f.to(of=Everything(), strict=False).score
        logits = as_logits(out, f.everyone) if f.examples else out.new_zeros(0, 2)
        top = logits.topk(2, dim=1).indices if logits.shape[1] > 1 else logits.argmax(1, keepdim=True).expand(-1, 2)
        goal = Leave(top[:, 0]) if target == "other" else Reach(top[:, 1])
    else:
        goal = Reach(labels(target, f, "target"), told="target")
    if min_prob is None:
        return goal
    if not 0 < min_prob < 1:
        raise ArgumentError(f"min_prob must lie between 0 and 1, got {min_prob!r}")
    if not isinstance(goal, Leave | Reach):
        raise ArgumentError("min_prob is the probability of a class: give target='other', 'runner-up' or classes")
    return Surely(goal.y, least=min_prob, leave=isinstance(goal, Leave))

"""Goals: scores that say when a search has found what it looks for, and losses that lead there."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.packing import Tensors
from ..engine.probe import Probe
from ..engine.scores import Ask, Everything, Output, OutputError, Score, Target, one_each, tensor_output

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [N, K], labels [N]) -> [N]; grows as the label loses its lead."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the log-probability of ``y`` [N]; at least 0."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best other logit minus that of ``y`` [N]: above 0 exactly where ``y`` has lost (Carlini, Wagner 2017)."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the gap of first and third logit [N]; of two classes the margin.

    Invariant to shift and scale of the logits. Croce, Hein (ICML 2020), eq. 6.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / _not_zero(top[:, 0] - top[:, 2])


def _targeted_ratio(lead: Tensor, logits: Tensor) -> Tensor:
    """A lead over the gap of the first logit and the mean of third and fourth [N]; the lead, of less than four classes.

    Croce, Hein (ICML 2020), eq. 7: no logit that a lead is made of stands alone in the gap, so the ratio is never
    constant, as eq. 6 is where a class ranks third.
    """
    if logits.shape[1] < 4:
        return lead
    top = logits.topk(4, dim=1).values
    return lead / _not_zero(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin of the probabilities [N]: what is far from a boundary hardly pulls. Xie et al. (arXiv 2411.15210)."""
    return margin(logits.softmax(1), y)


def _not_zero(gap: Tensor) -> Tensor:
    return gap.clamp(min=max(1e-12, torch.finfo(gap.dtype).tiny))  # 1e-12 is 0 in float16


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": logits_ratio, "pma": probability_margin}


def as_logits(out: Any, rows: Tensor) -> Tensor:
    """Class scores [N, K] as logits: rows that are probabilities (in [0, 1], sum 1) become log-probabilities.

    One number per row, [N] or [N, 1], is the logit of class 1 against class 0: -z/2 and z/2, so that the margin is z.

    Raises:
        OutputError: there are no class scores.
    """
    scores = tensor_output(out, rows)
    if scores.ndim == 1 or scores.shape[1:] == (1,):
        half = scores.reshape(len(scores), 1) / 2
        return torch.cat([-half, half], 1)
    if scores.ndim != 2 or not scores.shape[1]:
        raise OutputError(
            f"model must return class scores [B, K], or one logit for each example, got shape {tuple(scores.shape)}; "
            "return one row of scores for each example, or give a goal"
        )
    tolerance = 1e-5 if scores.dtype in (torch.float32, torch.float64) else 1e-2
    add_up = (scores.sum(1) - 1).abs() < tolerance
    if not bool(add_up.any()):  # logits, nearly always
        return scores
    probabilities = (scores >= 0).all(1) & (scores <= 1).all(1) & add_up
    return torch.where(probabilities[:, None], scores.clamp(min=torch.finfo(scores.dtype).tiny).log(), scores)


@dataclass(frozen=True, eq=False)
class Goal(Score):
    """A score whose value is a signed margin: above 0 exactly where the goal is reached.

    Args:
        by: how much more than that it takes: one number, or one per example [B]. Where rounding in another batch
            must not undo what was found, a search asks for a little more than its user did.
    """

    by: float | Tensor = field(default=0.0, kw_only=True)

    @abstractmethod
    def lead(self, out: Any, rows: Tensor) -> Tensor:
        """The margin itself [N]."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return self.lead(out, rows) - (self.by[rows] if isinstance(self.by, Tensor) else self.by)

    def size(self, out: Any, rows: Tensor) -> Tensor:
        """How large the numbers are that the margin is made of [N], of which rounding takes a share; 0 for infinite.

        Of a margin of which no more is known, 1 and its own size.
        """
        return (1 + self.lead(out, rows).abs()).nan_to_num(1, 1, 1)

    def leads(self, out: Any, rows: Tensor, count: int | None = None) -> Tensor:
        """What has to rise above 0 for the goal, where any one of several will do [N, T]: see :class:`Boundaries`."""
        return self.value(out, rows)[:, None]

    def hair(self, before: Tensor) -> Tensor:
        """A little more that a search may ask for [B]: a share of the margins at the start, whatever their units."""
        return torch.where(before == 0, 1e-4, 1e-4 * before.abs().clamp(max=1))

    @property
    def plain(self) -> "Goal":
        """The goal as a user names it, without what else is demanded."""
        return self

    def noted(self, value: Tensor) -> Tensor:
        return value

    def firm(self, by: float | Tensor) -> Self:
        """The same goal, by so much more."""
        return replace(self, by=self.by + by)


@dataclass(frozen=True, eq=False)
class _ClassGoal(Goal):
    """A goal about the class with the largest output.

    Args:
        y: one class per example [B].
        loss: what is climbed: ``"ce"``, ``"margin"``, ``"dlr"``, ``"pma"``, or a function of (outputs, y) -> [N].
        told: as which argument the classes came, for what is said of wrong ones.
    """

    y: Tensor
    loss: str | Loss = "margin"
    told: str = field(default="y", kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))} or a function, got {self.loss!r}")

    def check(self, out: Any, rows: Tensor) -> None:
        """Raises ValueError if a label is not a class of the model; warns of one probability taken for a logit."""
        y, classes = self.y[rows], as_logits(out, rows).shape[1]
        if out.numel() == len(rows) > 1 and bool(((out >= 0) & (out <= 1)).all()):
            warnings.warn(
                f"the model's only output lies between 0 and 1 for all of {len(rows)} examples and is taken for the "
                "logit of class 1; for a probability p return torch.stack([1 - p, p], 1)",
                UserWarning,
                stacklevel=2,
            )
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
            bad = int(((y < 0) | (y >= classes)).nonzero()[0])
            raise ValueError(
                f"{self.told} must hold classes from 0 to {classes - 1} (the model has {classes} outputs), "
                f"got {int(y[bad])} for example {int(rows[bad])}"
            )

    def hair(self, before: Tensor) -> Tensor:
        return torch.full_like(before, 1e-4)  # logits: also where the margin is small, rounding is not

    def size(self, out: Any, rows: Tensor) -> Tensor:
        logits, y = as_logits(out, rows), self.y[rows][:, None]
        rival = logits.scatter(1, y, -torch.inf).argmax(1, keepdim=True)
        large = logits.abs().nan_to_num(0, 0, 0)
        pair = large.gather(1, torch.cat([y, rival], 1)).sum(1, keepdim=True)
        near = torch.where(large <= 100 * pair, large, 0)  # what rules a class out may be any number
        return torch.cat([near, pair], 1).amax(1)

    def climb(self, out: Any, rows: Tensor) -> Tensor:
        """The loss away from ``y`` [N]."""
        if callable(self.loss):
            return per_example(self.loss(out, self.y[rows]), rows)
        return LOSSES[self.loss](as_logits(out, rows), self.y[rows])


@dataclass(frozen=True, eq=False)
class Leave(_ClassGoal):
    """Not be classified as ``y``. With ``toward`` [B], climb towards that one other class."""

    toward: Tensor | None = None

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return margin(as_logits(out, rows), self.y[rows])

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        if self.toward is None:
            return self.climb(out, rows)
        y, t = self.y[rows][:, None], self.toward[rows][:, None]
        if callable(self.loss):
            return -per_example(self.loss(out, t.squeeze(1)), rows)
        logits = as_logits(out, rows)
        if self.loss == "ce":
            return -cross_entropy(logits, t.squeeze(1))
        scores = logits.softmax(1) if self.loss == "pma" else logits
        lead = (scores.gather(1, t) - scores.gather(1, y)).squeeze(1)
        return _targeted_ratio(lead, logits) if self.loss == "dlr" else lead

    def copies(self, whose: Tensor, toward: Tensor) -> "Leave":
        """The goal of copies of the examples ``whose`` [N], each climbing towards another class of its own [N]."""
        by = self.by[whose] if isinstance(self.by, Tensor) else self.by
        return replace(self, y=self.y[whose], by=by, toward=toward)

    def leads(self, out: Any, rows: Tensor, count: int | None = None) -> Tensor:
        """By how much each of the ``count`` likeliest other classes leads (or that one towards which it climbs).

        In the order of the classes: where all are told, each keeps its place.
        """
        logits, y = as_logits(out, rows), self.y[rows][:, None]
        if self.toward is None:
            others = min(count or logits.shape[1], logits.shape[1] - 1)
            rivals = logits.detach().scatter(1, y, -torch.inf).topk(others, dim=1).indices.sort(1).values
        else:
            rivals = self.toward[rows][:, None]
        by = self.by[rows][:, None] if isinstance(self.by, Tensor) else self.by
        return logits.gather(1, rivals) - logits.gather(1, y) - by


@dataclass(frozen=True, eq=False)
class Reach(_ClassGoal):
    """Be classified as ``y``."""

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return -margin(as_logits(out, rows), self.y[rows])

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        if self.loss == "dlr":
            logits = as_logits(out, rows)
            return _targeted_ratio(-margin(logits, self.y[rows]), logits)
        return -self.climb(out, rows)


@dataclass(frozen=True, eq=False)
class Surely(_ClassGoal):
    """Give class ``y``, or with ``leave`` any one class but ``y``, more than the probability ``least``.

    The margin is in logits: the class's log-odds less those of ``least``, which do not saturate as probabilities do.
    """

    least: float = 0.5
    leave: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least < 1:
            raise ValueError(f"least must be a probability between 0 and 1, got {self.least!r}")

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        logits, y = as_logits(out, rows), self.y[rows][:, None]
        odds = math.log(self.least / (1 - self.least))
        if not self.leave:
            return logits.gather(1, y).squeeze(1) - logits.scatter(1, y, -torch.inf).logsumexp(1) - odds
        best = logits.scatter(1, y, -torch.inf).argmax(1, keepdim=True)
        return logits.gather(1, best).squeeze(1) - logits.scatter(1, best, -torch.inf).logsumexp(1) - odds


@dataclass(frozen=True, eq=False)
class Between(Goal):
    """A number read off the output (as ``target`` says) lies strictly between ``low`` and ``high``: numbers, or one
    per example [B].
    """

    low: float | Tensor = -torch.inf
    high: float | Tensor = torch.inf
    target: Target = None

    def __post_init__(self) -> None:
        if not bool(torch.as_tensor(self.low < self.high).all()):
            raise ValueError(f"low must be less than high, got {self.low} and {self.high}: nothing lies between them")

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        v = Output(self.target).value(out, rows)
        low, high = (b[rows] if isinstance(b, Tensor) and b.ndim else b for b in (self.low, self.high))
        return torch.minimum(v - low, high - v)

    def size(self, out: Any, rows: Tensor) -> Tensor:
        v, lead = Output(self.target).value(out, rows), self.lead(out, rows)
        return (v.abs() + lead.abs()).nan_to_num(0, 0, 0)


@dataclass(frozen=True, eq=False)
class Until(Goal):
    """Any goal of one's own: a function from the model's output to margins [N], above 0 where it is reached.

    It sees some rows at a time; what differs from example to example belongs to :class:`Between`.
    """

    margin: Callable[[Any], Tensor]

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return one_each(self.margin(out), rows)


@dataclass(frozen=True, eq=False)
class Whose(Goal):
    """The goal of some of its examples, which go by other numbers here.

    Args:
        rows: which example of the goal each one is [b].
        goal: theirs.
    """

    rows: Tensor
    goal: Goal

    @property
    def plain(self) -> Goal:
        return replace(self, goal=self.goal.plain)

    @property
    def passes(self) -> int:
        return self.goal.passes

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Any:
        return self.goal.ask(call, inputs, self.rows[rows])

    def check(self, out: Any, rows: Tensor) -> None:
        self.goal.check(out, self.rows[rows])

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        return self.goal.value(out, self.rows[rows])

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        return self.goal.pull(out, self.rows[rows])

    def size(self, out: Any, rows: Tensor) -> Tensor:
        return self.goal.size(out, self.rows[rows])

    def leads(self, out: Any, rows: Tensor, count: int | None = None) -> Tensor:
        return self.goal.leads(out, self.rows[rows], count)

    def hair(self, before: Tensor) -> Tensor:
        return self.goal.hair(before)


@dataclass(frozen=True, eq=False)
class _Beside(Score):
    """A goal's margin first, and beside it what else a search wants to know of the same pass [N, ...]."""

    goal: Goal

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Any:
        return self.goal.ask(call, inputs, rows)

    @property
    def passes(self) -> int:
        return self.goal.passes

    def check(self, out: Any, rows: Tensor) -> None:
        self.goal.check(out, rows)

    def noted(self, value: Tensor) -> Tensor:
        return value[:, 0]


@dataclass(frozen=True, eq=False)
class Boundaries(_Beside):
    """The boundaries beyond which a goal is reached, side by side: its margin and each lead [N, 1 + T].

    What is differentiated are the T leads: one forward pass tells whether the goal is reached, and where all boundaries
    lie to first order. The goal is reached where one of the leads is above 0.

    Args:
        goal: the goal.
        count: of how many rivals, the likeliest first; None: of all.
    """

    count: int | None = None

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return torch.cat([self.goal.value(out, rows)[:, None], self.pull(out, rows)], 1)

    def pull(self, out: Any, rows: Tensor) -> Tensor:
        return self.goal.leads(out, rows, self.count)


@dataclass(frozen=True, eq=False)
class Sized(_Beside):
    """A goal's margin and the size of the numbers that it is made of, side by side [N, 2]."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return torch.stack([self.goal.value(out, rows), self.goal.size(out, rows)], 1)


@dataclass(frozen=True, eq=False)
class Progress(_Beside):
    """A goal's margin and what is climbed towards it, side by side [N, 2]: for searches by values only."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return torch.stack([self.goal.value(out, rows), self.goal.pull(out, rows)], 1)


@dataclass(frozen=True, eq=False)
class Climb(Goal):
    """No goal but a direction: make a loss (outputs [N, ...], target) -> [N] as large (small) as can be.

    Its value is the loss itself, so that the best point can be kept; nothing counts as reached.
    """

    loss: Callable[[Any, Any], Tensor]
    target: Any = None
    sign: float = 1.0

    def lead(self, out: Any, rows: Tensor) -> Tensor:
        t = self.target
        if isinstance(t, list) and len(t) > 1:
            t = [t[r] for r in rows.tolist()]
        elif isinstance(t, Tensor) and t.ndim and len(t) > 1:
            t = t[rows.to(t.device)]
        return self.sign * per_example(self.loss(out, t), rows)


def per_example(loss: Any, rows: Tensor) -> Tensor:
    """What a loss of the user's own returned [N].

    Raises:
        ValueError: it is not one number per row.
    """
    if not isinstance(loss, Tensor) or loss.numel() != len(rows):
        told = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_func must return one number per row, got {told} for {len(rows)} rows; use reduction='none'"
        )
    return loss.reshape(len(rows))


def aim(f: Probe, goal: Any, y: Any, targeted: bool = False, loss: str | Loss = "margin") -> Goal:
    """The goal itself, if there is one (a function from outputs to margins will do), else that of the classes ``y``."""
    if goal is None:
        return class_goal(f, y, targeted, loss)
    if targeted:
        raise ValueError(
            "targeted=True is about the classes y, but there is a goal of its own; leave out one of the two"
        )
    if not isinstance(goal, Goal) and not callable(goal):
        raise TypeError(f"goal must be a Goal or a function from outputs to margins, got {type(goal).__name__}")
    return goal if isinstance(goal, Goal) else Until(goal)


def class_goal(f: Probe, y: Any, targeted: bool = False, loss: str | Loss = "margin") -> Goal:
    """Leave the classes ``y`` (reach them, if ``targeted``); None leaves the model's own answers.

    Raises:
        ValueError: no classes where they are needed, or unfit ones.
    """
    if y is None:
        if targeted:
            raise ValueError("targeted=True needs y, the classes to be reached")
        out = f.to(of=Everything(), strict=False).score  # a class may be ruled out by -inf; the margin is checked
        y = as_logits(out, f.everyone).argmax(1) if f.examples else f.everyone
    return (Reach if targeted else Leave)(labels(y, f), loss)


def labels(y: Any, f: Probe, told: str = "y") -> Tensor:
    """One class per example [B], as int64 on the device of the inputs; ``told`` is the argument as which they came.

    Raises:
        ValueError: not whole numbers, or not one (or B) of them.
    """
    if isinstance(y, tuple) or (isinstance(y, list) and y and isinstance(y[0], tuple)):
        raise ValueError(
            f"{told} must hold one class per example, got {y!r}; for positions in larger outputs give a goal"
        )
    try:
        given: Tensor = torch.as_tensor(y, device=f.device)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"{told} must hold classes as integers, got {type(y).__name__} of something else") from None
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(
            f"{told} must hold classes as integers, got {given.dtype}; use {told}.long() (argmax for one-hot rows)"
        )
    if given.numel() not in (1, f.examples) or given.ndim > 1:
        raise ValueError(f"{told} must be one class or one per example [{f.examples}], got shape {tuple(given.shape)}")
    return given.long().reshape(-1).expand(f.examples)

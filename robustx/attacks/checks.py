"""Flags: what makes an evaluation by AutoAttack doubtful, each a warning of its own, to be given or to be read.

The cases are those of the authors of AutoAttack (Croce, Hein, ICML 2020, and Croce et al., NeurIPS 2021, appendix).
"""

import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor

from ..engine.probe import Probe
from ..engine.scores import Everything
from ..perturb.goals import Goal, Leave, Reach, as_logits

LOOKS = 5
"""Passes that are compared to see whether a model draws at random."""

APART, LOWERED = 1e-4, 0.002
"""Share of its outputs by which a model may differ from pass to pass, and of examples that only values may fool."""

BACKWARD = ("grad", "backward", "_make_grads")
"""Functions of torch whose call means that a gradient is computed."""


class EvaluationWarning(UserWarning):
    """Something about the model, or about what was found, makes an evaluation doubtful.

    Args:
        seen: what was seen.
        mend: what to try next.
        value: what was measured.
        threshold: what it must not exceed.
    """

    def __init__(self, seen: str, mend: str = "", value: float = 1.0, threshold: float = 0.0) -> None:
        super().__init__(f"{seen}; {mend}" if mend else seen)
        self.seen, self.mend, self.value, self.threshold = seen, mend, value, threshold


class RandomizedWarning(EvaluationWarning):
    """The model answers the same question differently from time to time."""


class ProbabilitiesWarning(EvaluationWarning):
    """The model returns probabilities where logits are expected."""


class DynamicWarning(EvaluationWarning):
    """The model computes gradients while it answers."""


class FewClassesWarning(EvaluationWarning):
    """The model has too few classes for a loss."""


class SquareWarning(EvaluationWarning):
    """Values alone led further than gradients."""


def look(f: Probe, z: Tensor, rows: Tensor, losses: Collection[str], randomized: bool = True) -> None:
    """Warns of :func:`signs`."""
    for sign in signs(f, z, rows, losses, randomized):
        warnings.warn(sign, stacklevel=2)


def square_helped(before: int, after: int, examples: int) -> None:
    """Warns of :func:`led_further`."""
    for sign in led_further(before, after, examples):
        warnings.warn(sign, stacklevel=2)


def signs(
    f: Probe, z: Tensor, rows: Tensor, losses: Collection[str], randomized: bool = True
) -> list[EvaluationWarning]:
    """What some examples [N] show about the model; with ``randomized`` in five passes, else in one.

    ``losses``: names of attacks whose losses need more classes than there may be.
    """
    if not len(rows):
        return []
    assert isinstance(f.of, Goal)
    classes = isinstance(f.of, Leave | Reach)
    g = f.to(of=Everything()) if classes else f
    called: set[str] = set()
    with _watched(called):
        out = g.value(z, rows)
    found: list[EvaluationWarning] = []
    if called:
        found.append(
            DynamicWarning(
                f"the model computes gradients while it answers ({', '.join(sorted(called))}): what it does then is "
                "not differentiated, so its robustness may be overestimated",
                "write an attack for this model",
            )
        )
    if randomized:
        found.extend(_look_again([out, *(g.value(z, rows) for _ in range(LOOKS - 1))], f, rows, classes))
    if classes:
        found.extend(_look_at_outputs(out, rows, losses))
    return found


def led_further(before: int, after: int, examples: int) -> list[EvaluationWarning]:
    """Whether values took the robust accuracy down by more than 0.2 % points, after all that gradients had found."""
    lowered = (before - after) / max(examples, 1)
    if lowered <= LOWERED:
        return []
    return [
        SquareWarning(
            f"Square lowered the robust accuracy by {lowered:.2%}, after all that gradients had found: these may be "
            "masked, and the robustness overestimated",
            "give Square more steps and restarts, or write an attack for this model",
            lowered,
            LOWERED,
        )
    ]


def _look_again(outs: list[Tensor], f: Probe, rows: Tensor, classes: bool) -> list[EvaluationWarning]:
    first = outs[0].reshape(len(rows), -1)
    scale = first.norm(dim=1).clamp(min=1e-10)
    apart = max(float(((o.reshape(len(rows), -1) - first).norm(dim=1) / scale).max()) for o in outs)
    reached = {int(((f.of.value(o, rows) if classes else o) > 0).sum()) for o in outs}
    if apart <= APART and len(reached) == 1:
        return []
    return [
        RandomizedWarning(
            f"the model answers differently from pass to pass (by up to {apart:.2g} of its outputs)",
            "use version='rand', or EOT around another attack, which follow the mean gradient of many passes",
            apart,
            APART,
        )
    ]


def _look_at_outputs(out: Tensor, rows: Tensor, losses: Collection[str]) -> list[EvaluationWarning]:
    found: list[EvaluationWarning] = []
    if out.ndim == 2 and bool(((out > -1e-5) & (out < 1 + 1e-5)).all() & ((out.sum(1) - 1).abs() < 1e-5).all()):
        found.append(
            ProbabilitiesWarning(
                "the model returns probabilities: their logarithms are attacked, but where they are rounded to 0 or 1 "
                "gradients are lost",
                "hand in the model without its softmax",
            )
        )
    count = as_logits(out, rows).shape[1]
    short = [name for name, least in (("apgd-dlr", 3), ("apgd-t", 4)) if name in losses and count < least]
    if short:
        found.append(
            FewClassesWarning(
                f"the ratio of logits of {' and '.join(short)} is not defined for {count} classes, and the margin "
                "takes its place",
                "ask for loss_func='margin' or 'ce'",
                len(short),
            )
        )
    return found


@contextmanager
def _watched(called: set[str]) -> Iterator[None]:
    """Notes which functions that compute gradients are called meanwhile; a debugger's trace comes back after it."""

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_code.co_name
        if name in BACKWARD and str(frame.f_globals.get("__name__")).partition(".")[0] == "torch":
            called.add(name)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)

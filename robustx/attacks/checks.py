"""Flags: what makes an evaluation by AutoAttack doubtful, each a warning of its own.

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

BACKWARD = ("grad", "backward", "_make_grads")
"""Functions of torch whose call means that a gradient is computed."""


class EvaluationWarning(UserWarning):
    """Something about the model, or about what was found, makes an evaluation doubtful."""


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
    """Warns of what some examples [N] show about the model; with ``randomized`` in five passes, else in one.

    ``losses``: names of attacks whose losses need more classes than there may be.
    """
    if not len(rows):
        return
    assert isinstance(f.of, Goal)
    classes = isinstance(f.of, Leave | Reach)
    g = f.to(of=Everything()) if classes else f
    called: set[str] = set()
    with _watched(called):
        out = g.value(z, rows)
    if called:
        _warn(
            DynamicWarning,
            f"the model computes gradients while it answers ({', '.join(sorted(called))}): what it does then is not "
            "differentiated, so its robustness may be overestimated; write an attack for this model",
        )
    if randomized:
        _look_again([out, *(g.value(z, rows) for _ in range(LOOKS - 1))], f, rows, classes)
    if classes:
        _look_at_outputs(out, rows, losses)


def _look_again(outs: list[Tensor], f: Probe, rows: Tensor, classes: bool) -> None:
    first = outs[0].reshape(len(rows), -1)
    scale = first.norm(dim=1).clamp(min=1e-10)
    apart = max(float(((o.reshape(len(rows), -1) - first).norm(dim=1) / scale).max()) for o in outs)
    reached = {int(((f.of.value(o, rows) if classes else o) > 0).sum()) for o in outs}
    if apart > 1e-4 or len(reached) > 1:
        _warn(
            RandomizedWarning,
            f"the model answers differently from pass to pass (by up to {apart:.2g} of its outputs): use "
            "version='rand', which follows the mean gradient of many passes",
        )


def _look_at_outputs(out: Tensor, rows: Tensor, losses: Collection[str]) -> None:
    if out.ndim == 2 and bool(((out > -1e-5) & (out < 1 + 1e-5)).all() & ((out.sum(1) - 1).abs() < 1e-5).all()):
        _warn(
            ProbabilitiesWarning,
            "the model returns probabilities: their logarithms are attacked, but where they are rounded to 0 or 1 "
            "gradients are lost; hand in the model without its softmax",
        )
    count = as_logits(out, rows).shape[1]
    short = [name for name, least in (("apgd-dlr", 3), ("apgd-t", 4)) if name in losses and count < least]
    if short:
        _warn(
            FewClassesWarning,
            f"the ratio of logits of {' and '.join(short)} is not defined for {count} classes; the margin takes its "
            "place",
        )


def square_helped(before: int, after: int, examples: int) -> None:
    """Warns if Square took the robust accuracy down by more than 0.2 % points."""
    if before - after > 0.002 * examples:
        _warn(
            SquareWarning,
            f"Square lowered the robust accuracy by {(before - after) / examples:.2%}, after all that gradients had "
            "found: these may be masked, and the robustness overestimated; give Square more steps and restarts, or "
            "write an attack for this model",
        )


def _warn(kind: type[EvaluationWarning], told: str) -> None:
    warnings.warn(told, kind, stacklevel=3)


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

"""Callbacks: what is told of a run while it goes on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .run import Run
from .spec import Spec
from .store import Work


@dataclass(frozen=True)
class Step:
    """A finished block, and how far that leaves one attack on one model.

    Attributes:
        work: which model, attack (or other part of the run) and block.
        eps: the budget that ``value`` speaks of.
        samples: how many have come so far in this part of the run, on this model.
        value: the share of these that the model withstands by now: of the clean pass the accuracy, of an attack the
            robust accuracy after it and all before it, of a bound the certified one, of a corruption the accuracy.
        seconds: that the block took; 0 where it was found finished.
    """

    work: Work
    eps: float
    samples: int
    value: float
    seconds: float


class Callback:
    """Is told what happens; override what you need. Whatever it raises ends the run, which can be resumed."""

    def started(self, spec: Spec, totals: dict[str, int]) -> None:
        """Before the first block; ``totals``: how many blocks each part of the run has, all models together.

        Where nothing is left to do there are none, and no steps.
        """

    def step(self, step: Step) -> None:
        """A block is finished, and kept."""

    def ended(self, run: Run) -> None:
        """After the last block of this process, whether others are still at work or not; never after an error."""

    def closed(self) -> None:
        """At the very end, after an error too."""


class Bars(Callback):
    """One bar per attack on standard error, with the share of samples that each model withstands so far."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}
        self.told: dict[str, dict[str, str]] = {}

    def started(self, spec: Spec, totals: dict[str, int]) -> None:
        from tqdm.auto import tqdm

        wide = max(map(len, totals), default=0)
        self.bars = {
            label: tqdm(
                total=total, desc=f"{label:{wide}}", unit="block", file=sys.stderr, position=k, dynamic_ncols=True
            )
            for k, (label, total) in enumerate(totals.items())
        }

    def step(self, step: Step) -> None:
        label, bar = step.work.attack, self.bars[step.work.attack]
        told = self.told.setdefault(label, {})
        told[step.work.model] = f"{step.value:.1%}"
        at = f" at {step.eps:g}" if step.eps else ""
        bar.set_postfix_str(" | ".join(f"{m} {v}" for m, v in told.items()) + at, refresh=False)
        bar.update()

    def closed(self) -> None:
        for bar in self.bars.values():
            bar.close()


def tell(callbacks: Sequence[Callback], what: str, *args: Any) -> None:
    """The same to all of them."""
    for callback in callbacks:
        getattr(callback, what)(*args)

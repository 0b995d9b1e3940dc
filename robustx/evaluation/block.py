"""Blocks: what one attack does to one model on one block of samples. Pure functions; they store nothing."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..attacks import AttackResult
from ..engine.guard import untouched
from ..engine.packing import flat
from ..engine.probe import Door, NonFiniteError
from ..engine.scores import Score
from ..perturb.goals import Leave, as_logits, margin
from ..zoo.dataset import Bound
from .spec import AttackSpec, Spec
from .store import Row


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a run.

    Args:
        x: inputs [B, ...] on the model's device.
        y: labels [B].
        positions: of the samples in the run.
        bounds: the least and greatest inputs.
    """

    x: Tensor
    y: Tensor
    positions: range
    bounds: tuple[Bound, Bound]

    def __len__(self) -> int:
        return len(self.positions)

    def halves(self) -> tuple[Self, Self]:
        """The first half, which may be longer by one, and the second."""
        n = -(-len(self) // 2)
        first = replace(self, x=self.x[:n], y=self.y[:n], positions=self.positions[:n])
        return first, replace(self, x=self.x[n:], y=self.y[n:], positions=self.positions[n:])


@dataclass(frozen=True)
class Finished:
    """What came out of a block: rows for the table, tensors for the file, notes in words.

    Where memory ran out, ``micro_batch`` tells how many samples went at once.
    """

    rows: list[Row] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[Any] = field(default_factory=list)
    micro_batch: int | None = None

    def __add__(self, other: "Finished") -> "Finished":
        """What came out of two parts of a block."""
        tensors = {name: torch.cat([t, other.tensors[name]]) for name, t in self.tensors.items()}
        notes = [*self.notes, *(n for n in other.notes if n not in self.notes)]
        return Finished([*self.rows, *other.rows], tensors, notes)


class Logits(Score):
    """Each row's class scores as logits [N, K]; labels must be among the classes.

    Args:
        y: labels [B].
    """

    def __init__(self, y: Tensor) -> None:
        self.goal = Leave(y)

    def value(self, out: Any, rows: Tensor) -> Tensor:
        logits = as_logits(out, rows)
        self.goal.check(logits, rows)
        return logits


def clean_block(model: Callable[..., Any], block: Block) -> Finished:
    """The model's answers to the samples as they are.

    A row whose output is not finite is flagged: it counts neither as right nor as fooled, and nothing attacks it.
    Tensors: ``logits`` [B, K].

    Raises:
        ValueError: labels that are no classes of the model, a model in train mode, inputs that are not finite.
    """
    logits = logits_of(model, block.x, block.y, block.positions)
    finite = torch.isfinite(logits).all(1)
    prediction = torch.where(finite, logits.argmax(1), -1)
    lead = margin(logits, block.y).double().where(finite, torch.nan)
    wrong = finite & (prediction != block.y)
    table = zip(block.positions, wrong.tolist(), finite.tolist(), prediction.tolist(), lead.tolist(), strict=True)
    rows = [Row(i, 0.0, w, not ok, p, m if ok else None, 0.0, 1, 0) for i, w, ok, p, m in table]
    return Finished(rows, {"logits": logits})


def attack_block(model: Callable[..., Any], block: Block, attack: AttackSpec, spec: Spec, fallen: Tensor) -> Finished:
    """One attack at all budgets of a run, on the samples that still stand.

    The budgets are tried in ascending order, and a sample that falls at one is not attacked at larger ones. A search
    for minimal distances sees every sample that was right at first; the smallest budget at which one is known to
    fall is the largest that it tries there.

    Args:
        fallen: the smallest budget at which each sample is known to fall so far [B], infinite if there is none, and
            0 for samples that are not to be attacked (the model is wrong without).

    Tensors: ``adversarial`` [n, ...] of all successes, their ``position`` [n] and the ``eps`` [n] of the search that
    found them. Notes: the warnings that the attack gave.
    """
    bound = attack.bind(model, bounds=block.bounds, norm=spec.norm, seed=spec.seed)
    done = Finished([], {"adversarial": block.x[:0], "position": fallen[:0].long(), "eps": fallen[:0]})
    fallen, budgets = fallen.clone(), trials(attack, spec, fallen)
    for tried in budgets:
        here = standing(attack, fallen, tried)
        if not len(here):
            continue
        x, y, eps = block.x[here], block.y[here], tried[here]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = bound.run(x, y, eps=eps.to(x.device))
        done.notes.extend(f"{w.category.__name__}: {w.message}" for w in caught)
        positions = [block.positions[i] for i in here.tolist()]
        success, rows = _rows(model, result, y, positions, eps.tolist())
        done.rows.extend(rows)
        won = success.nonzero().squeeze(1)
        within = torch.minimum(result.distance.double().cpu(), eps)
        fallen[here[won]] = torch.minimum(fallen[here], within)[won]
        for name, more in (
            ("adversarial", result.adversarial[won.to(x.device)]),
            ("position", torch.tensor(positions, dtype=torch.long)[won]),
            ("eps", eps[won]),
        ):
            done.tensors[name] = torch.cat([done.tensors[name], more])
    return done


def trials(attack: AttackSpec, spec: Spec, fallen: Tensor) -> list[Tensor]:
    """The budgets of each sample, one after the other [B] each: the run's, or the largest that a search tries."""
    if attack.minimal:
        return [fallen.clamp(max=float(attack.options.get("eps", spec.cap)))]
    return [torch.full_like(fallen, e) for e in attack.eps or spec.eps]


def standing(attack: AttackSpec, fallen: Tensor, budgets: Tensor) -> Tensor:
    """The numbers of the samples that an attack sees at these budgets [n], by where each is known to fall [B]."""
    return (fallen > (0 if attack.minimal else budgets)).nonzero().squeeze(1)


def logits_of(model: Callable[..., Any], x: Tensor, y: Tensor, positions: range | list[int]) -> Tensor:
    """Logits [B, K], finite or not; errors name samples by their position in the run."""
    try:
        door = Door.open(x)
    except NonFiniteError:
        bad = int((~torch.isfinite(flat(x)).all(1)).nonzero()[0])
        raise NonFiniteError(f"sample {positions[bad]} is NaN or infinite; leave it out or mend it") from None
    with untouched(model):
        f = door.probe(model, Logits(y))
        return f.to(strict=False).score


def _rows(
    model: Callable[..., Any], result: AttackResult, y: Tensor, positions: list[int], eps: list[float]
) -> tuple[Tensor, list[Row]]:
    """Which samples fell [n], and a row for each. What did not end in a finite output proves nothing."""
    logits = logits_of(model, result.adversarial, y, positions)
    finite = (torch.isfinite(result.margin) & torch.isfinite(logits).all(1)).cpu()
    success = result.success.cpu() & finite
    others = logits.scatter(1, y[:, None], -torch.inf).argmax(1)  # the class that took the lead, also by a hair
    prediction = torch.where(success, others.cpu(), torch.where(finite, y.cpu(), -1))
    columns = (success, ~finite, prediction, result.margin, result.distance.double(), result.forwards, result.backwards)
    table = zip(positions, eps, *(c.tolist() for c in columns), strict=True)
    rows = [Row(p, e, s, f, k, m if math.isfinite(m) else None, d, up, down) for p, e, s, f, k, m, d, up, down in table]
    return success, rows

"""What an attack is, how it is called, and what it hands back."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ..engine.guard import guarded, untouched
from ..engine.memory import Pace
from ..engine.packing import Tensors, finest
from ..engine.prepare import PRECISIONS, faithful, prepare, rounding
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise, identities
from ..perturb.goals import LOSSES, Climb, Goal, Loss, aim, class_goal
from ..perturb.norms import Norm, norm_of
from ..perturb.region import Region, box, packed


class ZeroGradientWarning(UserWarning):
    """The gradient is zero where an attack starts, so it has nowhere to go: that is no robustness."""


@dataclass(frozen=True, eq=False)
class Found:
    """The best point of each row [N, D], its margin (> 0: the goal is reached) and size [N]."""

    z: Tensor
    margin: Tensor
    size: Tensor

    @classmethod
    def nothing(cls, z: Tensor) -> "Found":
        """``z``, not found to be good for anything yet."""
        return cls(z, torch.full_like(z[:, 0], -torch.inf), torch.full_like(z[:, 0], torch.inf))

    @property
    def success(self) -> Tensor:
        return self.margin > 0

    def at(self, rows: Tensor) -> "Found":
        return Found(self.z[rows], self.margin[rows], self.size[rows])

    def where(self, win: Tensor, other: "Found") -> "Found":
        """``other`` in the rows that win."""
        return Found(
            torch.where(win[:, None], other.z, self.z),
            torch.where(win, other.margin, self.margin),
            torch.where(win, other.size, self.size),
        )

    def stronger(self, other: "Found") -> "Found":
        """The point with the larger margin, row by row."""
        return self.where(other.margin > self.margin, other)

    def smaller(self, other: "Found") -> "Found":
        """The smaller of the points that reach the goal, row by row."""
        return self.where(other.success & (~self.success | (other.size < self.size)), other)

    def put(self, rows: Tensor, part: "Found") -> "Found":
        """With ``part`` in some of the rows."""
        return Found(
            self.z.index_copy(0, rows, part.z),
            self.margin.index_copy(0, rows, part.margin),
            self.size.index_copy(0, rows, part.size),
        )


@dataclass(frozen=True, eq=False)
class Active:
    """What an iterative attack holds of the rows that are still under way; all of it leaves together.

    A method that holds more (a velocity, a step length of each row) says so in a subclass: what it adds is tensors of n
    rows, or anything else that :meth:`at` is asked of.

    Args:
        index: their places among the rows that the search was given [n].
        rows: the examples that they belong to [n].
        region: theirs.
        z: where they are [n, D].
    """

    index: Tensor
    rows: Tensor
    region: Region
    z: Tensor

    @classmethod
    def of(cls, rows: Tensor, region: Region, start: Tensor | None = None, *more: Any) -> Self:
        """All of ``rows``, at the centre unless they ``start`` elsewhere; ``more`` is what a subclass adds."""
        return cls(
            torch.arange(len(rows), device=rows.device), rows, region, region.centre if start is None else start, *more
        )

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def at(self, keep: Tensor) -> Self:
        """Some of them (indices or booleans); the same object if all stay."""
        if keep.dtype == torch.bool:
            if bool(keep.all()):
                return self
            keep = keep.nonzero().squeeze(1)
        kept: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                kept[f.name] = value[keep]
            elif isinstance(value, Region | Noise | Found | Active):
                kept[f.name] = value.at(keep)
        return replace(self, **kept)


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, example by example.

    Attributes:
        adversarial: in the form, shapes and dtypes of the inputs. Examples that reached the goal before are
            returned unchanged; where nothing was found, the best try is (the input, from attacks that look for the
            nearest point).
        success: whether the returned tensors reach the goal, asked of the model once more [B].
        distance: how far they are from the inputs in the attack's norm [B].
        margin: by how much the goal is reached (below 0: missed) [B].
        forwards, backwards: how often each example went through the model [B].
    """

    adversarial: Any
    success: Tensor
    distance: Tensor
    margin: Tensor
    forwards: Tensor
    backwards: Tensor

    def __repr__(self) -> str:
        n = len(self.success)
        if not n:
            return "AttackResult(no examples)"
        share = self.success.double().mean()
        near = self.distance[self.success]
        told = f", median distance {near.median():.4g}" if len(near) else ""
        return (
            f"AttackResult({int(self.success.sum())} of {n} reached the goal ({share:.1%}){told}; "
            f"{self.forwards.double().mean():.1f} forwards and {self.backwards.double().mean():.1f} backwards each)"
        )


class Attack(ABC):
    """Looks in a region for points where a goal is reached.

    ``attack(x, y)`` gives the adversarial tensors, ``attack.run(x, y)`` the whole :class:`AttackResult`.

    Args:
        forward_func: the model, any callable that returns class scores [B, K] (logits or probabilities).
        loss_func: what is climbed: ``"ce"`` (cross-entropy, default), ``"margin"``, ``"dlr"``, or a function
            (outputs [N, ...], labels [N]) -> [N].
        lower_bound, upper_bound: the box of allowed inputs; numbers, or tensors that broadcast to the inputs.
        bounds: the same as a pair, ``(0, 1)``.
        norm: ``"L0"``, ``"L1"``, ``"L2"``, ``"Linf"`` or a :class:`robustx.perturb.Norm`; None takes the first that the
            attack knows. It measures all tensors of an example together.
        eps: the budget in input units (a count of elements for L0); a number, or one per example [B]. Attacks that look
            for the nearest point need none: for them it is the largest distance that counts.
        seed: random draws are functions of it and of each example's content, never of a global generator.
        batch_size: most rows in one pass; None fills the memory budget.
        precision: how the model is asked during the search: ``"exact"``, with batch norms folded into what comes before
            them; ``"fast"``, in bfloat16 too; None, as it is. Whatever is found counts only if the model itself, in
            its own precision, confirms it; what it does not is searched again by the model itself. See
            :mod:`robustx.engine.prepare`.
    """

    minimal: ClassVar[bool] = False
    """Whether it looks for the nearest point; then ``eps`` is the largest distance that counts, none by default."""

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1", "L0")
    """The norms that it knows; the first is its default."""

    needs: ClassVar[Literal["gradients", "scores"]] = "gradients"
    """What it asks of the model."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        norm: str | float | Norm | None = None,
        eps: float | Tensor | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: str | None = "exact",
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise ValueError(f"bounds must be a pair (lowest, highest), such as (0, 1), got {bounds!r}")
            lower_bound, upper_bound = bounds
        if not callable(loss_func) and loss_func is not None and loss_func not in LOSSES:
            raise ValueError(
                f"loss_func must be one of {', '.join(map(repr, LOSSES))} or a function, got {loss_func!r}"
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be 'exact', 'fast' or None, got {precision!r}")
        Pace(batch_size)  # refuses what is no batch size
        self.forward_func = forward_func
        self.loss_func = "ce" if loss_func is None else loss_func
        self.lower_bound, self.upper_bound = lower_bound, upper_bound
        self.norm = norm_of(self.norms[0] if norm is None else norm)
        if str(self.norm) not in self.norms:
            raise ValueError(
                f"norm must be one that {type(self).__name__} knows ({', '.join(self.norms)}), got {self.norm}"
            )
        self.eps, self.seed, self.batch_size, self.precision = eps, seed, batch_size, precision

    @classmethod
    def arguments(cls) -> set[str]:
        """Names of what the constructor takes."""
        inits = [vars(c)["__init__"] for c in cls.__mro__[:-1] if "__init__" in vars(c)]
        return {
            n
            for i in inits
            for n, p in signature(i).parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }

    @abstractmethod
    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        """The best points found for the examples ``rows`` [N]; region and noise have their N rows."""

    def __call__(self, x: Any, y: Any = None, **options: Any) -> Any:
        """``run(x, y, ...).adversarial``."""
        return self.run(x, y, **options).adversarial

    @guarded
    def run(
        self,
        x: Any,
        y: Tensor | int | None = None,
        targeted: bool = False,
        *,
        eps: float | Tensor | None = None,
        goal: Goal | Callable[[Any], Tensor] | None = None,
        mask: Any = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> AttackResult:
        """Attacks every example; those that reach the goal already are left alone.

        Args:
            x: a tensor [B, ...], or a tuple or dict of tensors, inside the bounds.
            y: true classes [B], or target classes if ``targeted``; None takes the model's own answers.
            targeted: reach class y instead of leaving it.
            eps: overrides the constructor's budget; a number, or one per example [B].
            goal: any other goal instead of y, or a function from outputs to margins [N].
            mask: where inputs may change (non-zero), broadcastable to them.
            additional_forward_args, additional_forward_kwargs: passed on to the model.

        Raises:
            ValueError: a budget that is negative or NaN, inputs outside the bounds, labels that are no classes of
                the model, a model in train mode, NaN or infinite inputs or outputs.
        """
        door = Door.open(x)
        f = door.probe(
            self.forward_func, None, additional_forward_args, additional_forward_kwargs, limit=self.batch_size
        )
        want = aim(f, goal, y, targeted, self.loss_func)
        f = f.to(of=want)
        region = self._region(f, self.eps if eps is None else eps, mask)
        quick = prepare(f, self.precision)
        margin = f.score
        left = (~(margin > 0)).nonzero().squeeze(1)
        start = best = Found(region.centre, margin, torch.zeros_like(margin))
        noise = Noise(self.seed, type(self).__name__, identities(region.centre))
        if len(left):
            quick = quick if faithful(quick, margin[left], left) else f
            best = self._sought(quick, want, region, left, noise, start)
        held = region.settle(best.z, f.packing)
        told, best = best, self._verified(f, region, held, margin, left)
        lost = (told.success & ~best.success).nonzero().squeeze(1)
        if len(lost) and quick is not f:
            held = region.settle(
                best.put(lost, self._sought(f, want, region, lost, noise, start).at(lost)).z, f.packing
            )
            best = self._verified(f, region, held, best.margin, lost)
        assert f.meter is not None
        return AttackResult(
            door.out(held),
            best.success,
            best.size,
            best.margin,
            f.meter.forward.clone(),
            f.meter.backward.clone(),
        )

    def _sought(self, f: Probe, want: Goal, region: Region, rows: Tensor, noise: Noise, start: Found) -> Found:
        """``start`` [B], with what a search by ``f`` finds for some rows."""
        margin = start.margin
        slack = rounding(f, margin.dtype) * (1 + margin.abs())
        found = self.search(f.to(of=want.firm(slack), strict=False), region.at(rows), rows, noise.at(rows))
        found = Found(found.z, found.margin.to(margin), found.size.to(margin))
        if self.minimal:  # what is not near enough is not found, and then the input itself comes back
            found = start.at(rows).where(found.success & (found.size <= region.radius[rows]), found)
        return start.put(rows, found)

    def _verified(self, f: Probe, region: Region, held: Tensors, known: Tensor, rows: Tensor) -> Found:
        """What the returned tensors really do, where margins are not ``known`` [B]: in those ``rows`` that moved."""
        z = f.packing.pack(held)
        moved = rows[(z != region.centre)[rows].any(1)]
        margin = known.clone()
        if len(moved):
            margin[moved] = f.to(strict=False).value(z[moved], moved)
        return Found(z, margin, region.size(z))

    def _region(self, f: Probe, eps: float | Tensor | None, mask: Any = None) -> Region:
        if eps is None and self.minimal:
            eps = torch.inf
        if eps is None:
            raise ValueError(f"eps is missing: give {type(self).__name__}(..., eps=...) or run(..., eps=...)")
        low, high = box(f, self.lower_bound, self.upper_bound, finite=self.norm.unit > 0)
        free = None if mask is None else packed(mask, f, "mask").expand(f.point.shape) != 0
        return Region(f.point, self.norm, self.norm.spendable(per_row(eps, f, "eps")), low, high, free)

    def __repr__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in vars(self).items() if k != "forward_func" and not callable(v))
        model = getattr(self.forward_func, "__name__", type(self.forward_func).__name__)
        return f"{type(self).__name__}({model}, {told})"


class Perturbation(Attack):
    """An attack that also speaks Captum: ``perturb`` moves every example as far as it goes, fooled or not."""

    @abstractmethod
    def perturb(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Captum's call."""

    def _perturb(
        self,
        inputs: Any,
        radius: float | Tensor,
        target: Any,
        further: Any,
        targeted: bool,
        mask: Any,
        search: Callable[[Probe, Region, Tensor, Noise], Found],
    ) -> Any:
        with untouched(self.forward_func):
            door = Door.open(inputs)
            f = door.probe(self.forward_func, None, further, limit=self.batch_size)
            if callable(self.loss_func):
                goal: Goal = Climb(self.loss_func, target, -1.0 if targeted else 1.0)
            else:
                goal = class_goal(f, target, targeted, self.loss_func)
            f = f.to(of=goal)
            region = self._region(f, radius, mask)
            noise = Noise(self.seed, type(self).__name__, identities(region.centre))
            found = search(f, region, f.everyone, noise)
            return door.out(region.settle(found.z, f.packing))


def per_row(value: float | Tensor, f: Probe, name: str) -> Tensor:
    """A budget as one number per example [B].

    Raises:
        ValueError: a wrong shape, NaN, or below zero.
    """
    try:
        t = torch.as_tensor(value, dtype=finest(f.point[:0]).dtype, device=f.device).detach().to(f.point.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number or one per example, got {value!r}") from None
    if t.numel() not in (1, f.examples) or t.ndim > 1:
        raise ValueError(
            f"{name} must be one number or one per example [{f.examples}], got shape {tuple(t.shape)}; "
            f"use torch.full(({f.examples},), {name}) for the same everywhere"
        )
    if not (t >= 0).all():
        raise ValueError(
            f"{name} must not be negative or NaN, got {t[~(t >= 0)].flatten()[0]:g}; 0 leaves inputs alone"
        )
    return t.reshape(-1).expand(f.examples)


def warn_if_flat(margin: Tensor, g: Tensor) -> None:
    """Warns if gradients [N, D] are zero where there is a margin [N] at all."""
    warn_of(flat(margin, g))


def flat(margin: Tensor, g: Tensor) -> Tensor:
    """Where gradients [N, D] are zero, though there is a margin [N]."""
    return (g == 0).all(1) & ~margin.isnan()


def warn_of(flat: Tensor) -> None:
    """Warns if there are examples whose gradients were ``flat`` [N]."""
    count = int(flat.sum())
    if count:
        warnings.warn(
            f"the gradient is exactly zero for {count} of {len(flat)} examples: their loss is saturated or the model "
            "rounds, which hides weaknesses rather than removing them; try loss_func='margin' or an attack without "
            "gradients",
            ZeroGradientWarning,
            stacklevel=3,
        )

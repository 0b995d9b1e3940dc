"""What an attack is, how it is called, and what it hands back."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.guard import guarded, untouched
from ..engine.memory import Pace
from ..engine.packing import finest
from ..engine.prepare import PRECISIONS, faithful, prepare, rough, rounding
from ..engine.probe import Door, Meter, Probe
from ..engine.randomness import Noise, identities
from ..perturb.goals import LOSSES, Climb, Goal, Leave, Loss, Reach, Sized, aim, class_goal
from ..perturb.norms import Norm, norm_of
from ..perturb.region import Region, box, packed
from .found import Found, shrunk
from .result import AttackResult


class ZeroGradientWarning(UserWarning):
    """The gradient is zero where an attack starts, so it has nowhere to go: that is no robustness."""


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


class Attack(ABC):
    """Looks in a region for points where a goal is reached.

    ``attack(x, y)`` gives the adversarial tensors, ``attack.run(x, y)`` the whole :class:`AttackResult`.

    Args:
        forward_func: the model, any callable that returns class scores [B, K] (logits or probabilities).
        loss_func: what is climbed: ``"ce"`` (cross-entropy, default), ``"margin"``, ``"dlr"``, ``"pma"`` (the margin
            of the probabilities), or a function (outputs [N, ...], labels [N]) -> [N].
        lower_bound, upper_bound: the box of allowed inputs; numbers, or tensors that broadcast to the inputs.
        bounds: the same as a pair, ``(0, 1)``.
        norm: ``"L0"``, ``"L1"``, ``"L2"``, ``"Linf"`` or a :class:`robustx.perturb.Norm`; None takes the first that the
            attack knows. It measures all tensors of an example together.
        eps: the budget in input units (a count of elements for L0); a number, or a tensor with one per example [B];
            or a list of budgets, see :meth:`run`. Attacks that look for the nearest point need none: for them it is
            the largest distance that counts.
        levels: how many evenly spaced values an element can take between its bounds, such as 256 for images of 8 bits:
            what changes is rounded to them before it is judged. None: any value.
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

    parts: Mapping[str, "Attack"] = {}
    """The attacks that it is made of, by name, in the order of ``Found.by``."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        norm: str | float | Norm | None = None,
        eps: float | Tensor | Sequence[float] | None = None,
        levels: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: str | None = "exact",
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise ValueError(f"bounds must be a pair (lowest, highest), such as (0, 1), got {bounds!r}")
            if _told(lower_bound, -torch.inf) or _told(upper_bound, torch.inf):
                raise ValueError("bounds say what lower_bound and upper_bound would: give the one or the others")
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
        if levels is not None:
            whole("levels", levels, 2)
        self.levels = levels
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

    def on(self, model: Callable[..., Any]) -> Self:
        """The same attack, with the same settings, on another model; so are those that it is made of."""

        def bound(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: bound(v) for k, v in value.items()}
            return value.on(model) if isinstance(value, Attack) else value

        other = copy(self)
        vars(other).update({k: bound(v) for k, v in vars(self).items()} | {"forward_func": model})
        return other

    @abstractmethod
    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        """The best points found for the examples ``rows`` [N]; region and noise have their N rows."""

    def _posed(self, f: Probe) -> Probe:
        """The model as it is asked, during the search and about its result."""
        return f

    def search_within(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        """:meth:`search` as a part of another attack: with its own loss, and the draws that it has when it runs alone.

        Where no class is left, there are no rivals to climb towards, and ``targets`` has no say.
        """
        part = self
        if isinstance(f.of, Leave | Reach):
            f = f.to(of=replace(f.of, loss=self.loss_func))
        if not isinstance(f.of, Leave) and getattr(self, "targets", None) is not None:
            part = copy(self)
            vars(part).update(targets=None)
        return part.search(f, region, rows, replace(noise, method=type(self).__name__))

    def __call__(self, x: Any, y: Any = None, **options: Any) -> Any:
        """``run(x, y, ...).adversarial``."""
        return self.run(x, y, **options).adversarial

    @overload
    def run(
        self, x: Any, y: Any = None, targeted: bool = False, *, eps: list[float] | tuple[float, ...], **more: Any
    ) -> list[AttackResult]: ...

    @overload
    def run(
        self, x: Any, y: Any = None, targeted: bool = False, *, eps: float | Tensor | None = None, **more: Any
    ) -> AttackResult: ...

    @guarded  # type: ignore[misc]  # the overloads are short: **more is what both take
    def run(
        self,
        x: Any,
        y: Tensor | int | None = None,
        targeted: bool = False,
        *,
        eps: float | Tensor | Sequence[float] | None = None,
        goal: Goal | Callable[[Any], Tensor] | None = None,
        mask: Any = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
        history: bool = False,
    ) -> AttackResult | list[AttackResult]:
        """Attacks every example; those that reach the goal already are left alone.

        Args:
            x: a tensor [B, ...], or a tuple or dict of tensors, inside the bounds.
            y: true classes [B], or target classes if ``targeted``; None takes the model's own answers.
            targeted: reach class y instead of leaving it.
            eps: overrides the constructor's budget; a number, or a tensor with one per example [B]. A list of numbers
                asks for one result each, in its order: the largest is tried first, what it finds counts for all others
                that it fits, and an example that withstands a budget is not attacked within a smaller one.
            goal: any other goal instead of y, or a function from outputs to margins [N].
            mask: where inputs may change (non-zero), broadcastable to them.
            additional_forward_args, additional_forward_kwargs: passed on to the model.
            history: keep the margin each time that the model is asked for it.

        Raises:
            ValueError: a budget that is negative or NaN, inputs outside the bounds, labels that are no classes of
                the model, a model in train mode, NaN or infinite inputs or outputs.
        """
        door = Door.open(x)
        f = self._posed(
            door.probe(
                self.forward_func, None, additional_forward_args, additional_forward_kwargs, limit=self.batch_size
            )
        )
        aimed = aim(f, goal, y, targeted, self.loss_func)
        f, sized = f.to(of=aimed), f.to(of=Sized(aimed))
        eps = self.eps if eps is None else eps
        several = isinstance(eps, list | tuple)
        budgets: list[Any] = list(eps) if isinstance(eps, list | tuple) else [eps]
        if several and any(isinstance(e, Tensor) and e.numel() != 1 for e in budgets):
            raise ValueError("a list of budgets must hold numbers; for budgets of each example call run once for each")
        regions = [self._region(f, e, mask) for e in budgets]
        quick = prepare(sized, self.precision)
        quick = f if quick is sized else quick.to(of=aimed)
        margin, size = sized.score.reshape(-1, 2).unbind(1)
        rows = (~(margin > 0)).nonzero().squeeze(1)
        if len(rows) and not faithful(quick, margin[rows], rows):
            quick = f
        assert f.meter is not None
        untried = best = Found(f.point, margin, f.point.new_zeros(f.examples))
        found: dict[int, Found] = {}
        told: dict[int, Meter] = {}
        for i in sorted(range(len(regions)), key=lambda i: -float(regions[i].radius.sum())):
            f.meter.asked = [] if history else None
            if found:
                best, rows = self._carried(f, regions[i], best, untried)
            best = found[i] = self._attempt(f, quick, regions[i], best, untried, rows, size)
            told[i] = f.meter.take()
        results = {
            i: AttackResult(
                door.out(f.packing.unpack(found[i].z)),
                found[i].success,
                found[i].size,
                found[i].margin,
                told[i].forward,
                told[i].backward,
                inputs=x,
                norm=str(self.norm),
                eps=regions[i].radius,
                history=told[i].history(),
                by=self._credits(found[i]),
            )
            for i in range(len(regions))
        }
        return list(results.values()) if several else results[0]

    def _credits(self, found: Found) -> tuple[str, ...] | None:
        """Which of its parts found the point of each example; no name where none did."""
        if found.by is None:
            return None
        names = (*self.parts, "")
        return tuple(names[k] for k in found.by.tolist())

    def _attempt(
        self, f: Probe, quick: Probe, region: Region, best: Found, untried: Found, rows: Tensor, size: Tensor
    ) -> Found:
        """``best`` [B], with what a search finds for some rows: asked by ``quick``, confirmed by ``f`` itself.

        A search asks for a little more than the goal, as rounding may take some of numbers of that ``size`` [B]; what
        a rough one found is drawn back by ``f``.
        """
        noise = Noise(self.seed, type(self).__name__, identities(region.centre[rows]))
        for g in (quick, f):
            if not len(rows):
                break
            near, before = region.at(rows), untried.at(rows)
            part = self.search(_firm(g, size), near, rows, noise)
            part = Found(part.z, part.margin.to(size), part.size.to(part.z), part.by)
            if self.minimal and rough(g):
                part = replace(shrunk(_firm(f, size), near, rows, part), by=part.by)
            if self.levels is not None:
                part = self._graded(f, near, rows, part)
            if self.minimal:  # what is not near enough is not found, and then the input itself comes back
                part = before.where(part.success & (part.size <= near.radius), part)
            true = replace(self._confirmed(f, near, rows, part.z, before.margin), by=part.by)
            best, lost = best.put(rows, true), part.success & ~true.success
            rows, noise = rows[lost], noise.at(lost.nonzero().squeeze(1))
            if g is f:
                break
        return best

    def _confirmed(self, f: Probe, region: Region, rows: Tensor, z: Tensor, still: Tensor) -> Found:
        """What the tensors that come back really do [N]; those that did not move have the margins of before."""
        z, margin = f.packing.pack(region.settle(z, f.packing)), still.clone()
        moved = (z != region.centre).any(1).nonzero().squeeze(1)
        if len(moved):
            margin[moved] = f.to(strict=False).value(z[moved], rows[moved])
        return Found(z, margin, region.size(z))

    def _carried(self, f: Probe, region: Region, known: Found, untried: Found) -> tuple[Found, Tensor]:
        """What a larger budget found, as it counts in a smaller region [B], and the rows that are left to attack.

        Where it found nothing, its best try is drawn into the region.
        """
        fits = known.success & (known.size <= region.radius)
        best = untried.where(fits, known)
        if self.minimal:  # there is nothing nearer
            return best, f.everyone[:0]
        held = (~known.success).nonzero().squeeze(1)
        near = region.at(held)
        drawn = self._confirmed(f, near, held, near.project(known.z[held]), untried.margin[held])
        return best.put(held, drawn), (known.success & ~fits).nonzero().squeeze(1)

    def _graded(self, f: Probe, region: Region, rows: Tensor, found: Found) -> Found:
        """Points [N] whose changed elements stand on the levels: the nearest ones, or the next outward or inward,
        whichever serves best.
        """
        assert self.levels is not None
        home, step = region.centre, (region.high - region.low) / (self.levels - 1)
        at, start = ((t - region.low) / step.clamp(min=torch.finfo(step.dtype).tiny) for t in (found.z, home))
        outward, inward = (torch.where((at > start) == up, at.ceil(), at.floor()) for up in (True, False))
        best = Found.nothing(home)
        for level in (at.round(), outward, inward):
            passed = (found.z == home) | ((level > start) != (at > start))  # it did not change, or would turn around
            share = level / (self.levels - 1)  # of 256 levels in [0, 1] it is to the bit what is read from a file
            there = torch.minimum(region.low + (region.high - region.low) * share, region.high)
            z = torch.where(passed, home, there)
            size = region.size(z)
            inside = size <= region.radius * (1 + 1e-5)  # rounding is drawn back when it is confirmed
            tried = Found(z, torch.where(inside, f.to(strict=False).value(z, rows), -torch.inf), size)
            best = best.smaller(tried) if self.minimal else best.stronger(tried)
        return replace(best, by=found.by)

    def _region(self, f: Probe, eps: Any, mask: Any = None) -> Region:
        if eps is None and self.minimal:
            eps = torch.inf
        if eps is None:
            raise ValueError(f"eps is missing: give {type(self).__name__}(..., eps=...) or run(..., eps=...)")
        low, high = box(f, self.lower_bound, self.upper_bound, finite=self.norm.unit > 0 or self.levels is not None)
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
            if self.levels is not None:
                found = self._graded(f, region, f.everyone, found)
            return door.out(region.settle(found.z, f.packing))


def _firm(f: Probe, size: Tensor) -> Probe:
    """``f``, asking for so much more than its goal as rounding may take of numbers of that ``size`` [B]."""
    assert isinstance(f.of, Goal)
    return f.to(of=f.of.firm(rounding(f, size.dtype) * size), strict=False)


def _told(bound: Any, usual: float) -> bool:
    """Whether a bound is another than the usual."""
    return not isinstance(bound, int | float) or bound != usual


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

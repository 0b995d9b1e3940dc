"""Lower bounds: how far no attack can succeed, whatever it tries."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..attacks.base import per_row
from ..engine.affine import Unreadable
from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.guard import untouched
from ..engine.packing import finest
from ..engine.probe import Door, Probe
from ..perturb.bounds import Leads
from ..perturb.goals import Leave, as_logits, labels, margin
from ..perturb.norms import NORMS, Norm, norm_of
from ..perturb.region import Region, box
from .block import Block, Finished, logits_of
from .smoothing import Smoothed
from .spec import BOUNDS, Spec
from .store import Row

HALVINGS = 24  # of a first guess, before a radius counts as none
DOUBLINGS = 24  # of it, where there is no box to end in
DIGITS = 64  # in the last place of the largest logit, by which a lead must exceed zero: the model's own rounding
LEAST = 1e-11  # of that logit, where it computes in float64: the rounding here


@dataclass(frozen=True)
class Certified:
    """What is proved of each example.

    Args:
        radius: no point nearer than that, inside the bounds, is given another class [B]; infinite where none is at all,
            0 where nothing is proved.
        prediction: the class of which that is proved [B], -1 where nothing is.
        forwards, backwards: rows that went through the model [B].
    """

    radius: Tensor
    prediction: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def abstained(self) -> Tensor:
        """Where nothing is proved [B]."""
        return self.prediction < 0


def certify(
    model: Callable[..., Any],
    x: Tensor,
    y: Any = None,
    method: str = "crown",
    *,
    norm: str | float | Norm | None = None,
    bounds: tuple[Any, Any] = (-torch.inf, torch.inf),
    **options: Any,
) -> Certified:
    """How far each example is safe from every attack, at least.

    ``"crown"`` (Zhang et al., NeurIPS 2018) and ``"ibp"`` (Gowal et al., 2018) look for the largest radius at which
    a bound below the class's lead is above zero. They are for networks of affine operations, ReLUs and other
    piecewise linear functions, sigmoid, tanh and max pooling, and compute in float64, as with real numbers; a lead
    must exceed what rounding in the model's own precision may take. ``"smoothing"`` (Cohen, Rosenfeld, Kolter, ICML
    2019) is for any model, but of the model under Gaussian noise, and true with probability 1 - alpha for each
    example: see :class:`Smoothed`.

    Args:
        model: any callable that returns class scores [B, K], or one logit per example.
        x: examples [B, ...], inside the bounds.
        y: their classes [B]: an example that the model gives another one has a radius of 0. None takes the model's own
            answers, and smoothing always does.
        method: ``"crown"``, ``"ibp"`` or ``"smoothing"``.
        norm: ``"Linf"`` (default), ``"L2"`` (smoothing's) or ``"L1"``. What smoothing proves in L2 holds in L1, and in
            Linf within so much less (the square root of the number of elements).
        bounds: the box of allowed inputs.
        options: for crown and ibp ``tolerance`` (by what share a radius may be smaller than the bound could show, 0.01)
            and ``batch_size``; for smoothing the arguments of :class:`Smoothed` and ``n0`` and ``n``.

    Raises:
        ValueError: an unknown method or norm, options that do not fit, inputs outside the bounds, labels that are no
            classes, an operation that no bound is known for (Unreadable, which names it).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> x = torch.rand(4, 2)
    >>> crown, ibp = (certify(model, x, method=m, bounds=(0, 1)) for m in ("crown", "ibp"))
    >>> bool((crown.radius >= ibp.radius * 0.99).all() and (ibp.radius > 0).all())
    True
    """
    if method not in BOUNDS:
        raise ArgumentError(f"method must be one of {', '.join(BOUNDS)}, got {method!r}")
    for option in options:
        if option not in BOUNDS[method]:
            raise ArgumentError(f"{method!r} takes no option {option!r}; known are {', '.join(BOUNDS[method])}")
    norm = _norm(norm if norm is not None else "L2" if method == "smoothing" else "Linf")
    if method == "smoothing":
        return _smoothed(model, x, norm, **options)
    with _asked(model, x, y, method, norm, bounds, options.pop("batch_size", None)) as asked:
        return asked.radii(**options)


def leads(
    model: Callable[..., Any],
    x: Tensor,
    eps: float | Tensor,
    y: Any = None,
    method: str = "crown",
    *,
    norm: str | float | Norm = "Linf",
    bounds: tuple[Any, Any] = (-torch.inf, torch.inf),
    batch_size: int | None = None,
) -> Tensor:
    """Bounds below the lead of each example's class over every other [B, K], wherever it goes within ``eps``.

    In float64; infinite for the class itself. Other arguments are those of :func:`certify`.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> leads(model, torch.tensor([[0.75, 0.25]]), 0.125, bounds=(0, 1))
    tensor([[ inf, 0.2500]], dtype=torch.float64)
    """
    with _asked(model, x, y, method, _norm(norm), bounds, batch_size) as asked:
        f = asked.f
        return asked.leads(asked.region.to(radius=finest(per_row(eps, f, "eps"))), f.everyone)


def bound_block(model: Callable[..., Any], block: Block, name: str, options: dict[str, Any], spec: Spec) -> Finished:
    """A lower bound for each sample of a block, in the norm of a run; one row each, without tensors.

    ``prediction`` is the class that is proved and ``distance`` within which radius, -1 and 0.0 where none is. Of
    smoothing it may be another class than the label. Samples whose output is not finite are flagged. Where the model
    does what no bound is known for, nothing is proved, and the note says so.

    Args:
        name, options: method and options of :func:`certify`.
    """
    given = {"seed": spec.seed} | options if name == "smoothing" else options
    clean = logits_of(model, block.x, block.y, block.positions)
    notes = []
    try:
        told = certify(model, block.x, block.y, name, norm=spec.norm, bounds=block.bounds, **given)
    except Unreadable as e:
        none = torch.zeros(len(block), dtype=torch.long)
        told, notes = Certified(none.double(), none - 1, none, none), [str(e)]
    flagged = ~torch.isfinite(clean).all(1)
    columns = (flagged, told.prediction, told.radius, told.forwards + 1, told.backwards)
    table = zip(block.positions, *(c.tolist() for c in columns), strict=True)
    return Finished([Row(i, 0.0, False, f, k, None, r, up, down) for i, f, k, r, up, down in table], notes=notes)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A model and examples that bounds are asked for.

    Args:
        f: asks the model itself.
        region: where examples may go; its radius is the farthest that there is.
        y: their classes [B].
        lead: of them [B]; NaN where the output is not finite.
        rounding: what the model's own precision may take of it [B].
        leads: makes the bounds.
    """

    f: Probe
    region: Region
    y: Tensor
    lead: Tensor
    rounding: Tensor
    leads: Leads

    def radii(self, tolerance: float = 0.01) -> Certified:
        """The largest radius of each example at which the bound is above zero, all of them searched for at once.

        Regula falsi between a radius that holds and one that does not (the Illinois variant: Dowell, Jarratt, BIT 11,
        1971), which keeps off both so far that either answer counts.
        """
        if not 0 < tolerance < 1:
            raise ArgumentError(f"tolerance must lie between 0 and 1, got {tolerance!r}")
        found = torch.zeros_like(self.region.radius)
        rows = (self.lead > self.rounding).nonzero().squeeze(1)
        most, needed = self.region.radius[rows], self.rounding[rows]
        trial = torch.minimum(self._guess(rows), most)
        least, farthest = trial * 2.0**-HALVINGS, trial * 2.0**DOUBLINGS
        low, high = torch.zeros_like(trial), torch.full_like(trial, torch.inf)
        above, below = self.lead[rows] - needed, torch.full_like(trial, -torch.inf)
        before = torch.zeros_like(trial, dtype=torch.bool)  # which way the last trial went
        while len(rows):
            lead = self.leads(self.region.at(rows).to(radius=trial), rows, needed).amin(1) - needed
            held = lead > 0
            again = held == before
            low, high = torch.where(held, trial, low), torch.where(held, high, trial)
            above, below = (
                torch.where(held, lead, torch.where(again, above / 2, above)),
                torch.where(held, torch.where(again, below / 2, below), lead),
            )
            found[rows] = low
            share = (above / (above - below)).nan_to_num(0.1).clamp(0.1, 0.9)
            off = torch.minimum(tolerance * low * 0.6, (high - low) / 2)
            between = torch.clamp(low + share * (high - low), low + off, high - off)
            trial = torch.where(high.isinf(), torch.minimum(2 * low, most), between)
            on = (low < most) & (high - low > tolerance * low) & (trial > least) & (trial < farthest)
            state = (rows, most, needed, trial, least, farthest, low, high, above, below, held)
            rows, most, needed, trial, least, farthest, low, high, above, below, before = (t[on] for t in state)
        found = torch.where((found > 0) & (found >= self.region.radius), torch.inf, found)
        meter = self.f.meter
        assert meter is not None
        return Certified(found, torch.where(found > 0, self.y, -1), meter.forward, meter.backward)

    def _guess(self, rows: Tensor) -> Tensor:
        """How far the class holds if the model were affine."""
        value, g = self.f.to(of=Leave(self.y), strict=False).grad(self.f.point[rows], rows)
        guess = finest(-value) / self.region.norm.dual(finest(g))
        return torch.where(guess.isfinite() & (guess > 0), guess, 1)


@contextmanager
def _asked(
    model: Callable[..., Any], x: Tensor, y: Any, method: str, norm: Norm, bounds: Any, limit: int | None
) -> Iterator[_Asked]:
    if method not in ("crown", "ibp"):
        raise ArgumentError(f"method must be 'crown' or 'ibp' (certify knows 'smoothing', too), got {method!r}")
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"x must be one tensor [B, ...] for a bound, got {type(x).__name__}")
    with untouched(model):
        f = Door.open(x).probe(model, limit=limit)
        logits = as_logits(f.to(strict=False).score, f.everyone)
        y = logits.argmax(1) if y is None else labels(y, f)
        Leave(y).check(logits, f.everyone)
        finite = torch.isfinite(logits).all(1)
        lead = torch.where(finite, -margin(logits, y), torch.nan).to(finest(logits).dtype)
        rounding = max(DIGITS * torch.finfo(logits.dtype).eps, LEAST) * finest(logits).abs().amax(1)
        low, high = (finest(t) for t in box(f, *bounds))
        centre = finest(f.point)
        region = Region(centre, norm, norm.size(torch.maximum(high - centre, centre - low)), low, high)
        bound = Leads(f.model, finest(f.inputs[0]), y, logits.shape[1], method == "crown", limit, f.meter)
        yield _Asked(f, region, y, lead, rounding, bound)


def _norm(norm: str | float | Norm) -> Norm:
    known = norm_of(norm)
    if known not in (NORMS["Linf"], NORMS["L2"], NORMS["L1"]):
        raise ArgumentError(f"norm must be 'Linf', 'L2' or 'L1' for what is certified, got {norm!r}")
    return known


def _smoothed(
    model: Callable[..., Any], x: Tensor, norm: Norm, n0: int = 100, n: int = 100_000, **how: Any
) -> Certified:
    told = Smoothed(model, **how).certify(x, n0, n)
    inside = prod(x.shape[1:]) ** -0.5 if norm is NORMS["Linf"] else 1.0  # of L2's ball; that of L1 lies in it
    return Certified(told.radius * inside, told.prediction, told.forwards, torch.zeros_like(told.forwards))

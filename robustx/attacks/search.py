"""Searches for the least: the smallest budget of an attack, the smallest argument of any perturbation."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.guard import guarded
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise
from ..perturb.goals import Boundaries, Goal, Leave, labels
from ..perturb.region import Region
from .base import Active, Attack, Perturbation
from .found import Found, shrunk
from .gradient import PGD, pgd, rivals

Search = Callable[[Region, Tensor, Tensor | None], Found]
"""(region, rows, start points) -> the best points of these rows."""


def bisect(search: Search, f: Probe, region: Region, rows: Tensor, rounds: int) -> Found:
    """The smallest radius at which a search still succeeds, row by row, and the point found there.

    Halves the interval between the largest radius that failed and the smallest size that succeeded; each trial starts
    from the best point so far, drawn into the smaller region. Rows whose interval is closed leave.
    """
    best = search(region, rows, None)
    best = best.smaller(shrunk(f, region, rows, best))
    low = torch.zeros_like(region.radius)
    for _ in range(rounds):
        high = best.size
        left = (best.success & (high - low > torch.clamp(1e-4 * high, min=region.norm.unit))).nonzero().squeeze(1)
        if not len(left):
            break
        middle = region.norm.spendable((low + high)[left] / 2)
        near = region.at(left).to(radius=middle)
        found = search(near, rows[left], near.project(best.z[left]))
        found = found.smaller(shrunk(f, near, rows[left], found))
        low[left] = torch.where(found.success, low[left], middle)
        best = best.put(left, best.at(left).smaller(found))
    return best


def sure(f: Probe, region: Region, rows: Tensor, noise: Noise, steps: int = 8, draws: int = 16) -> Found:
    """A point that reaches the goal for every row for which one is found at all, however far away: where to begin.

    First across the boundaries, the goal's own and then each rival's, by the least moves that do so to first order,
    each twice as bold as the one before; then at random anywhere in the box. Each row is searched for itself, until
    it has been found, and its point is then drawn back straight towards the centre. The radius does not matter.
    """
    best = stride(f, region, rows, steps)
    left = (~best.success).nonzero().squeeze(1)
    for g in rivals(f, rows[left], sys.maxsize) if isinstance(f.of, Leave) and len(left) else ():
        left = left[~best.success[left]]
        if not len(left):
            break
        best = best.put(left, best.at(left).stronger(stride(g, region.at(left), rows[left], steps)))
    for draw in range(draws):
        left = (~best.success).nonzero().squeeze(1)
        if not len(left):
            break
        near = region.at(left)
        z = near.anywhere(noise.again(draw).at(left).uniform(near.centre.shape[1], near.centre))
        best = best.put(left, best.at(left).stronger(Found(z, f.value(z, rows[left]), near.size(z))))
    return shrunk(f, region, rows, best)


def assured(f: Probe, region: Region, rows: Tensor, noise: Noise, found: Found) -> Found:
    """What a search found, and a sure point where it found nothing."""
    left = (~found.success).nonzero().squeeze(1)
    return found.put(left, sure(f, region.at(left), rows[left], noise.at(left))) if len(left) else found


def stride(f: Probe, region: Region, rows: Tensor, steps: int) -> Found:
    """Steps across the nearest boundary to first order, each twice as bold as the one before; the best point."""
    assert isinstance(f.of, Goal)
    best = Found.nothing(region.centre)
    a, g = Active.of(rows, region), f.to(of=Boundaries(f.of, count=1))
    for step in range(steps + 1):
        leads, slopes = g.grad(a.z, a.rows) if step < steps else (g.value(a.z, a.rows), a.z[:, None])
        margin = leads[:, 0]
        best = best.put(a.index, best.at(a.index).stronger(Found(a.z, margin, a.region.size(a.z))))
        going = ~(margin > 0) & slopes.any(2).any(1)
        a, need, slopes = a.at(going), -leads[going, 1], slopes[going, 0]
        if step == steps or not len(a):
            break
        bold = a.region.norm.least(slopes, 2.0 ** (step + 1) * need.clamp(min=0), a.region.room(a.z, slopes))
        a = a.to(z=a.region.clip(a.z + bold))
    return best


class Bisection(Attack):
    """The smallest perturbation that PGD finds: its budget is bisected, example by example, all at once.

    ``eps`` is the largest budget that is tried (as far as the bounds reach, by default); examples that resist it come
    back unchanged, without success. The distances are upper bounds on the true ones.

    Args:
        rounds: halvings of the interval (each at most one run of PGD).

    Further arguments as for :class:`PGD`.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.2]])
    >>> result = Bisection(model, "margin", bounds=(0, 1), norm="Linf", eps=1.0).run(x, torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.3
    """

    minimal = True

    def __init__(self, *args: Any, rounds: int = 12, **options: Any) -> None:
        self.pgd = p = PGD(*args, **options)
        super().__init__(
            p.forward_func,
            p.loss_func,
            p.lower_bound,
            p.upper_bound,
            norm=p.norm,
            eps=p.eps,
            seed=p.seed,
            batch_size=p.batch_size,
            precision=p.precision,
            levels=p.levels,
        )
        self.rounds = whole("rounds", rounds, 0)

    @classmethod
    def arguments(cls) -> set[str]:
        return super().arguments() | PGD.arguments()

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        unlimited, region = region.radius.isinf(), region.reachable()
        place = torch.full_like(f.everyone, -1).index_copy(0, rows, torch.arange(len(rows), device=rows.device))

        def attempt(near: Region, some: Tensor, start: Tensor | None) -> Found:
            found = self.pgd.search(f, near, some, noise.at(place[some]))
            if start is None:  # without a budget, any point at all is one to begin with
                left = (~found.success & unlimited).nonzero().squeeze(1)
                draws = noise.at(place[some[left]])
                return found.put(left, assured(f, near.at(left), some[left], draws, found.at(left)))
            if bool(found.success.all()):
                return found
            left = (~found.success).nonzero().squeeze(1)
            warm = pgd(
                f,
                near.at(left),
                some[left],
                self.pgd.steps,
                self.pgd.length(f, near.at(left), some[left]),
                start[left],
            )
            return found.put(left, found.at(left).stronger(warm))

        return bisect(attempt, f, region, rows, self.rounds)


class MinParamPerturbation:
    """The smallest value of one argument of any perturbation at which the model goes wrong, example by example.

    Captum's constructor and call. Captum looks for one value at which some example of the batch goes wrong; here each
    example has its own search, and all are searched together: one attack and one forward pass for each value
    that some example still has to try, or for all of them where the attack takes one value per example.

    Args:
        forward_func: the model.
        attack: a function (inputs, **{arg_name: value}, **attack_kwargs) -> perturbed inputs, or an attack: its
            ``perturb`` is called, or, where that does not know the argument, the attack itself.
        arg_name: the argument that is searched over: of that call, or of an attack's constructor.
        arg_min, arg_max, arg_step: its values: arg_min + k * arg_step, below arg_max.
        mode: ``"linear"`` tries them in order; ``"binary"`` bisects, which assumes that larger is stronger.
        num_attempts: tries for each value, for attacks that draw at random.
        preproc_fn: applied to inputs before the model sees them.
        apply_before_preproc: attack the raw inputs instead of the preprocessed ones.
        correct_fn: (output, target, **correct_fn_kwargs) -> whether the model is right: one boolean per row,
            or one for the whole batch (then it is asked row by row). Default: the largest output is the target's.

    >>> import torch
    >>> from robustx.attacks import FGSM
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.2], [0.6, 0.5]])
    >>> search = MinParamPerturbation(model, FGSM(model), "epsilon", 0.0, 1.0, 0.01, mode="binary")
    >>> search.evaluate(x, target=torch.tensor([0, 0]), attack_kwargs={"target": torch.tensor([0, 0])})[1]
    tensor([0.3100, 0.0600], dtype=torch.float64)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        attack: Callable[..., Any],
        arg_name: str,
        arg_min: float,
        arg_max: float,
        arg_step: float,
        mode: str = "linear",
        num_attempts: int = 1,
        preproc_fn: Callable[..., Any] | None = None,
        apply_before_preproc: bool = False,
        correct_fn: Callable[..., Any] | None = None,
    ) -> None:
        for name, value in (("forward_func", forward_func), ("attack", attack)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        if not (arg_step > 0 and arg_max > arg_min + arg_step):
            raise ValueError(
                f"arg_min, arg_max, arg_step must leave more than one value, got {arg_min}, {arg_max}, {arg_step}"
            )
        if str(mode).lower() not in ("linear", "binary"):
            raise ValueError(f"mode must be 'linear' or 'binary', got {mode!r}")
        whole("num_attempts", num_attempts, 1)
        self.forward_func, self.attack, self.arg_name = forward_func, attack, arg_name
        self.perturb = _mover(attack, arg_name)
        self.arg_min, self.arg_max, self.arg_step = arg_min, arg_max, arg_step
        self.mode, self.num_attempts = str(mode).lower(), num_attempts
        self.preproc_fn, self.apply_before_preproc = preproc_fn, apply_before_preproc
        self.correct_fn = correct_fn

    @property
    def values(self) -> list[float]:
        """The values that are tried, ascending."""
        count = math.ceil((self.arg_max - self.arg_min) / self.arg_step - 1e-9)
        return [self.arg_min + k * self.arg_step for k in range(count)]

    @guarded
    def evaluate(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        target: Any = None,
        perturbations_per_eval: int | None = None,
        attack_kwargs: Mapping[str, Any] | None = None,
        correct_fn_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        """The perturbed inputs and the value that made each go wrong.

        For one example as in Captum: (perturbed, value), or (None, None). For a batch: (inputs in their form, with the
        examples that resisted unchanged; values [B] in float64, NaN for these).

        Args:
            inputs: a tensor [B, ...], a tuple of tensors, or one raw example of any type.
            additional_forward_args, attack_kwargs, correct_fn_kwargs: passed on; what has B rows follows the examples.
            target: classes, one or [B].
            perturbations_per_eval: most rows in one forward pass, per example; None fills the memory budget.
        """
        raw = not (isinstance(inputs, Tensor) or (isinstance(inputs, tuple) and isinstance(inputs[0], Tensor)))
        base = inputs if self.apply_before_preproc or self.preproc_fn is None else self.preproc_fn(inputs)
        count = 1 if raw else len(inputs if isinstance(inputs, Tensor) else inputs[0])
        further = () if additional_forward_args is None else additional_forward_args
        further = further if isinstance(further, tuple) else (further,)
        limit = None if perturbations_per_eval is None else perturbations_per_eval * max(count, 1)
        best: list[tuple[float, Any] | None] = [None] * count

        def wrong(tried: dict[int, float]) -> set[int]:
            """Which rows go wrong at the values tried; keeps their perturbed inputs."""
            gone: set[int] = set()
            for _ in range(self.num_attempts):
                left = [r for r in tried if r not in gone]
                if not left:
                    break
                several = len({tried[r] for r in left}) > 1
                value = torch.tensor([tried[r] for r in left]) if several else tried[left[0]]
                moved = self.perturb(
                    _rows(base, left, count), **_kwargs(attack_kwargs, left, count), **{self.arg_name: value}
                )
                seen = self.preproc_fn(moved) if self.apply_before_preproc and self.preproc_fn else moved
                right = self._right(seen, left, count, further, target, correct_fn_kwargs, limit)
                for i, r in enumerate(left):
                    if not right[i]:
                        gone.add(r)
                        best[r] = tried[r], _rows(moved, [i], len(left))
            return gone

        walk = self._linear if self.mode == "linear" else self._binary
        walk(count, wrong)
        if count == 1:
            return (best[0][1], best[0][0]) if best[0] else (None, None)
        values = torch.tensor([b[0] if b else torch.nan for b in best], dtype=torch.float64)
        return _together([b[1] if b else _rows(base, [r], count) for r, b in enumerate(best)], base), values

    def _linear(self, count: int, wrong: Callable[[dict[int, float]], set[int]]) -> None:
        left = set(range(count))
        for value in self.values:
            left -= wrong(dict.fromkeys(sorted(left), value))

    def _binary(self, count: int, wrong: Callable[[dict[int, float]], set[int]]) -> None:
        values = self.values
        spans = {r: (0, len(values)) for r in range(count)}  # the first wrong value is in [low, high]
        while spans:
            middle = {r: (low + high) // 2 for r, (low, high) in spans.items()}
            together = isinstance(self.attack, Attack) and self.arg_name in PER_EXAMPLE
            for ks in [set(middle.values())] if together else [{k} for k in sorted(set(middle.values()))]:
                tried = {r: values[k] for r, k in middle.items() if k in ks}
                gone = wrong(tried)
                for r in tried:
                    spans[r] = (spans[r][0], middle[r]) if r in gone else (middle[r] + 1, spans[r][1])
            spans = {r: (low, high) for r, (low, high) in spans.items() if low < high}

    def _right(
        self,
        seen: Any,
        rows: list[int],
        count: int,
        further: tuple[Any, ...],
        target: Any,
        kwargs: Mapping[str, Any] | None,
        limit: int | None,
    ) -> list[bool]:
        if isinstance(seen, Tensor) or (isinstance(seen, tuple) and all(isinstance(t, Tensor) for t in seen)):
            args = tuple(_rows(a, rows, count) for a in further)
            f = Door.open(seen).probe(self.forward_func, None, args, limit=limit)
            out = f.score
        else:
            f, out = None, self.forward_func(seen, *further)
        if self.correct_fn is None:
            if f is None or out.ndim != 2:
                raise ValueError("correct_fn is needed where the model does not take tensors to class scores [B, K]")
            if target is None:
                raise ValueError("target is missing: give the classes, or a correct_fn that needs none")
            right = (out.argmax(1) == labels(_rows(target, rows, count), f)).tolist()
        else:
            more = {} if target is None else {"target": _rows(target, rows, count)}
            more |= _kwargs(kwargs, rows, count)
            right = _flags(self.correct_fn(out, **more))
            if len(right) != len(rows) > 1:
                one = [_kwargs(more, [i], len(rows)) for i in range(len(rows))]
                right = [all(_flags(self.correct_fn(out[i : i + 1], **k))) for i, k in enumerate(one)]
        return right if len(rows) > 1 else [all(right)]


PER_EXAMPLE = ("eps", "epsilon", "radius", "step_size")
"""Arguments for which an attack takes one value per example."""


def _mover(attack: Callable[..., Any], arg_name: str) -> Callable[..., Any]:
    if isinstance(attack, Perturbation) and arg_name in signature(attack.perturb).parameters:
        return attack.perturb
    if not isinstance(attack, Attack):
        return attack
    if not hasattr(attack, arg_name):
        raise ValueError(f"arg_name {arg_name!r} is no argument of {type(attack).__name__}, nor of its call")

    def move(inputs: Any, **kwargs: Any) -> Any:
        other = copy(attack)
        setattr(other, arg_name, kwargs.pop(arg_name))
        return other(inputs, **kwargs)

    return move


def _flags(told: Any) -> list[bool]:
    """What a judge said, whatever it said it with."""
    return [bool(t) for t in np.asarray(told.tolist() if isinstance(told, Tensor) else told).reshape(-1)]


def _rows(value: Any, rows: Sequence[int], count: int) -> Any:
    """Some rows of everything in ``value`` that has ``count`` of them."""
    if isinstance(value, tuple):
        return tuple(_rows(v, rows, count) for v in value)
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[torch.as_tensor(rows, device=value.device)]
    return [value[r] for r in rows] if isinstance(value, list) and len(value) == count else value


def _kwargs(kwargs: Mapping[str, Any] | None, rows: Sequence[int], count: int) -> dict[str, Any]:
    return {k: _rows(v, rows, count) for k, v in (kwargs or {}).items()}


def _together(parts: Iterator[Any] | list[Any], like: Any) -> Any:
    parts = list(parts)
    if not parts:
        return like
    if isinstance(like, tuple):
        return tuple(torch.cat([p[i] for p in parts]) for i in range(len(like)))
    return torch.cat(parts)

"""Indicators of attack failure: what a search's own record, and a few more passes, say about it.

Pintor et al. (NeurIPS 2022), arXiv 2106.09947. Beside these six stands whether gradients are those of the function that
they are said to belong to.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack, AttackResult
from ..engine.memory import out_of_memory
from ..engine.packing import finest
from ..engine.prepare import rounding
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Goal, Leave, Sized
from ..perturb.norms import Linf
from ..perturb.region import Region

HAIR, NEAR = 1e-3, 8 / 255
"""How far finite differences and the noise of unstable predictions go, as shares of the range of inputs."""

WAYS, DRAWS = 8, 64
"""Random directions of the former, random points of the latter."""

WINDOW, RISING = 10, 0.05
"""The last steps of a search, and the share of all that it has gained which it must no longer gain in these."""

OFF, ASTRAY = 0.1, 0.3
"""A gradient is wrong if it is off by this share of finite differences, and correlates less than this with changes."""


@dataclass(frozen=True)
class Gradients:
    """What gradients are worth at some samples; shares of these, or medians over them.

    Attributes:
        broken: why there is none, or None; then all else is 0.
        zero: where that of the margin is exactly zero.
        saturated: where that of the cross-entropy is exactly zero, and that of the margin is not.
        nonfinite: where it has elements that are NaN or infinite.
        error: how far it is from central differences along random directions (median).
        correlation: of what it foretells with what happens at random points of the region (median).
        wrong: where both say that it is none.
    """

    broken: str | None = None
    zero: float = 0.0
    saturated: float = 0.0
    nonfinite: float = 0.0
    error: float = 0.0
    correlation: float = 0.0
    wrong: float = 0.0


def gradients(f: Probe, region: Region, noise: Noise) -> Gradients:
    """Looks at the gradients of samples [B] that are classified correctly; ``f`` climbs their margin.

    Finite differences are those of a hair's breadth, within the box. They alone would call every gradient wrong that
    stands in for one (:class:`robustx.attacks.BPDA`), so what counts is also whether it leads anywhere in the region.
    """
    assert isinstance(f.of, Leave)
    step = HAIR * _range(region)
    middle = torch.minimum(torch.maximum(region.centre, region.low + step), region.high - step)
    try:
        margin, g = f.grad(region.centre)
        _, _, entropy = f.to(of=replace(f.of, loss="ce")).climb(region.centre)
        _, slope = f.grad(middle)
    except RuntimeError as e:  # the model's own backward pass may fail in any way
        if out_of_memory(e):
            raise
        return Gradients(broken=str(e).splitlines()[0])
    zero = (g == 0).all(1)
    error = _errors(f, middle, slope, noise, step).median(0).values
    correlation = _correlation(f, region, margin, g, noise)
    wrong = ~zero & (error > OFF) & (correlation < ASTRAY)
    return Gradients(
        zero=share(zero),
        saturated=share((entropy == 0).all(1) & ~zero),
        nonfinite=share(~torch.isfinite(g).all(1)),
        error=float(error.median()),
        correlation=float(correlation.median()),
        wrong=share(wrong),
    )


def _errors(f: Probe, z: Tensor, g: Tensor, noise: Noise, step: Tensor) -> Tensor:
    """Relative errors of gradients [B, D] along diagonals of a cube; what rounding explains is none [WAYS, B]."""
    assert isinstance(f.of, Goal)
    way = torch.stack([torch.where(noise.uniform(z.shape[1], z) < 0.5, -step, step) for _ in range(WAYS)])
    rows = f.everyone.repeat(2 * WAYS)
    ends = torch.cat([z + way, z - way]).flatten(0, 1)
    value, size = f.to(of=Sized(f.of)).value(ends, rows).reshape(2, WAYS, -1, 2).unbind(3)
    told, seen = (finest(g.nan_to_num()) * way).sum(2), finest(value[0] - value[1]) / 2
    off = ((told - seen).abs() - rounding(f, size.dtype) * size[0]).clamp(min=0)
    return off / torch.maximum(told.abs(), seen.abs()).clamp(min=torch.finfo(off.dtype).tiny)


def _correlation(f: Probe, region: Region, margin: Tensor, g: Tensor, noise: Noise) -> Tensor:
    """Of changes of the margin at random points of the region with those that the gradient foretells [B]."""
    z, rows = drawn(region, noise)
    told = (finest(g.nan_to_num())[rows] * (z - region.centre[rows])).sum(1)
    seen = finest(f.value(z, rows) - margin[rows])
    a, b = (t.reshape(DRAWS, -1).T for t in (told, seen))
    sizes = a.square().sum(1) * b.square().sum(1)
    return (a * b).sum(1) / sizes.sqrt().clamp(min=torch.finfo(a.dtype).tiny)


def instability(f: Probe, region: Region, noise: Noise) -> float:
    """By what share of itself the margin changes under noise that should not matter (median over samples).

    Pintor et al., indicator 2: the mean over uniform noise of 8/255 of the range of inputs, at most 1. It is the margin
    and not the loss, which is next to nothing where a model is sure; and the median, because a sample at the boundary
    has a margin of next to nothing, too.
    """
    z, rows = drawn(region.to(norm=Linf(_range(region)), radius=torch.full_like(region.radius, NEAR)), noise)
    changes = (f.value(z, rows) - f.score[rows]).abs() / f.score[rows].abs()
    return float(changes.reshape(DRAWS, -1).mean(0).clamp(max=1).median())


def drawn(region: Region, noise: Noise) -> tuple[Tensor, Tensor]:
    """Random points of each region, one of each after the other [DRAWS * B, D], and whose they are."""
    rows = torch.arange(len(region.centre), device=region.centre.device).repeat(DRAWS)
    return torch.cat([region.draw(noise) for _ in range(DRAWS)]), rows


def _range(region: Region) -> Tensor:
    """The range of each element: that of the box, or of the samples where it has no end [D]."""
    box = region.high - region.low
    seen = region.centre.amax() - region.centre.amin()
    return torch.where(box.isfinite(), box, seen).amax(0).expand(region.centre.shape[1])


@dataclass(frozen=True)
class Tried:
    """What attacks, one after the other, did to samples; each saw those that withstood the ones before it.

    Args:
        success: which fell [B].
        by: the attack that each fell to, -1 for none [B].
        results: of each attack, with the samples that it saw.
    """

    success: Tensor
    by: Tensor
    results: list[tuple[Attack, Tensor, AttackResult]] = field(default_factory=list)

    @property
    def passes(self) -> tuple[int, int]:
        """Forwards and backwards in all."""
        told = [(int(r.forwards.sum()), int(r.backwards.sum())) for _, _, r in self.results]
        return sum(up for up, _ in told), sum(down for _, down in told)


def cascade(attacks: Sequence[Attack], x: Tensor, y: Tensor, eps: Tensor, further: Any = None) -> Tried:
    """Attacks samples [B, ...] within budgets [B]; attacks keep their records, and their warnings to themselves."""
    tried = Tried(torch.zeros_like(y, dtype=torch.bool), torch.full_like(y, -1))
    for k, attack in enumerate(attacks):
        left = (~tried.success).nonzero().squeeze(1)
        if not len(left):
            break
        more = None if further is None else tuple(t[left] for t in further)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = attack.run(x[left], y[left], eps=eps[left], additional_forward_args=more, history=True)
        tried.success[left] = result.success
        tried.by[left] = torch.where(result.success, k, -1)
        tried.results.append((attack, left, result))
    return tried


def by_values(tried: Tried) -> Tensor:
    """Which samples fell to an attack, or to a part of one, that asks for values only, after all gradients [B]."""
    fell = torch.zeros_like(tried.success)
    for attack, rows, result in tried.results:
        parts = [attack.parts[b] if b else attack for b in result.by or [""] * len(rows)]
        fell[rows] = result.success & torch.tensor([p.needs == "scores" for p in parts], device=rows.device)
    return fell


def silent(tried: Tried) -> Tensor:
    """Which samples were fooled at some step of a search, though what it returned does not fool the model [B].

    Indicator 3. Attacks here keep the best point that they see, so this happens where the model answers the same
    question differently. Searches that leave the region on their way are left out.
    """
    found = torch.zeros_like(tried.success)
    for _, rows, result in _inside(tried):
        assert result.history is not None
        found[rows] |= (result.history > 0).any(1) & ~result.success
    return found & ~tried.success


def unfinished(tried: Tried) -> Tensor:
    """Which samples stand although a search of them was still getting on when it ended, and no other came as far [B].

    Indicator 4, on the margin: its running maximum rises by more than 5 % of all that it gained within the last ten
    steps, or the last quarter of shorter attempts. A search that was at rest makes up for it if it came as far, but for
    5 %. Searches that leave the region on their way are left out: what they reach there does not count.
    """
    high = torch.full(tried.success.shape, -torch.inf, dtype=torch.double, device=tried.success.device)
    calm, rising = high.clone(), high.clone()  # how far searches came that were at rest, and that were not, less 5 %
    for attack, rows, result in _inside(tried):
        assert result.history is not None
        reached, gain, late = rise(result.history, getattr(attack, "steps", None))
        on = late > RISING * gain
        calm[rows] = torch.maximum(calm[rows], torch.where(on, -torch.inf, reached))
        rising[rows] = torch.maximum(rising[rows], torch.where(on, reached - RISING * gain, -torch.inf))
    return (rising > calm) & ~tried.success


def _inside(tried: Tried) -> Iterator[tuple[Attack, Tensor, AttackResult]]:
    """Attacks whose record is of points within the budget; others look for the nearest point, or begin further out."""
    for attack, rows, result in tried.results:
        if not any(type(p).minimal or getattr(p, "large_eps", False) for p in (attack, *attack.parts.values())):
            yield attack, rows, result


def rise(history: Tensor, steps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The highest margin of each search [B, T], how much it gained, and how much of that in its last steps [B].

    The last number of a history is what came back, and no step. NaN behind the last. ``steps`` are those of one
    attempt, where there are several.

    >>> rise(torch.tensor([[-4.0, -2.0, -1.0, -1.5, -1.0, -1.0], [-4.0, -3.0, -2.0, -1.0, 0.0, 0.0]]))[1:]
    (tensor([3., 4.], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    if not history.shape[1]:
        none = history.new_zeros(len(history), dtype=torch.double)
        return none - torch.inf, none, none
    known = history.isfinite()
    curve = torch.where(known, history.double(), -torch.inf).cummax(1).values
    order = torch.arange(history.shape[1], device=history.device)
    ends = (torch.where(known, order, -1).amax(1) - 1).clamp(min=0)
    attempt = ends if steps is None else ends.clamp(max=steps)
    window = ((attempt + 3) // 4).clamp(min=1, max=WINDOW)
    last, before, first = (
        curve.gather(1, i[:, None]).squeeze(1) for i in (ends, (ends - window).clamp(min=0), torch.zeros_like(ends))
    )
    return last, (last - first).nan_to_num(0), (last - before).nan_to_num(0)


def widened(attack: Attack, times: float) -> Attack:
    """The same attack for balls that are ``times`` as large: a length of steps that was set by hand grows, too."""
    length = getattr(attack, "step_size", None)
    if length is None:
        return attack
    wide = attack.on(attack.forward_func)
    vars(wide)["step_size"] = length * times
    return wide


def share(flags: Tensor) -> float:
    """Of those that are set; 0 of none."""
    return float(flags.double().mean()) if len(flags) else 0.0

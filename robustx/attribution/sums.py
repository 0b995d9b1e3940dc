"""Sums of the scores of sets of features, with weights: over all sets, or over sets that are drawn.

What is drawn comes in independent units, whose spread tells how far off their mean may be.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..engine.checks import ArgumentError
from ..engine.guard import untouched
from ..engine.packing import finest, flat
from ..engine.randomness import Noise
from .coalitions import Coalitions

MOST = 30  # features beyond whom it is refused to ask all their sets
HELD = 1 << 22  # numbers that are held at once for weights, orders and unfinished sums

Weights = Callable[[Tensor], Tensor]
"""Which features are gone [n, F], 1 each -> how much the score of such a set counts for each value [n, C]."""


# --- all sets ---------------------------------------------------------------------------------------------


class Tally:
    """Sums of scores with weights: for each of ``rows`` numbers [width], or as many for each of several outputs."""

    def __init__(self, players: Coalitions, rows: int, width: int) -> None:
        outputs = players.all_there.shape[1:]
        self.shape, self.width = (rows, width, *outputs), width
        self.total = finest(players.all_there.new_zeros(rows * width, prod(outputs)))

    def add(self, values: Tensor, rows: Tensor, slots: Tensor, weights: Tensor) -> None:
        """Adds scores [n, ...] of ``rows`` [n] to K ``slots`` each [n, K], times ``weights`` [n, K]."""
        values, weights = flat(values).to(self.total), weights.to(self.total)
        size = max(1, HELD // max(slots.shape[1] * values.shape[1], 1))
        parts = (t.split(size) for t in (values, rows, slots, weights))
        for v, r, s, w in zip(*parts, strict=True):
            self.total.index_add_(0, (r[:, None] * self.width + s).flatten(), (w[..., None] * v[:, None]).flatten(0, 1))

    @property
    def sums(self) -> Tensor:
        """[rows, width, ...]"""
        return self.total.reshape(self.shape)


def by_sets(
    players: Coalitions,
    count: int,
    gone: Callable[[Tensor], Tensor],
    weights: Callable[[Tensor], Tensor],
    what: str = "",
    show: bool = False,
    rows: Tensor | None = None,
) -> Tensor:
    """The weighted sums over ``count`` sets of features [R, C, ...], for each example or for ``rows`` alone.

    Args:
        gone: numbers of sets [n] -> which features are gone [n, F]; none is in number 0, whose score is known.
        weights: numbers of sets [n] -> how much the score of each counts for each of C values [n, C]; over all sets
            that comes to nothing, so that a score may be taken as the difference from the one with all there.
    """
    rows = everyone(players) if rows is None else rows
    place = _places(players, rows)
    width = weights(rows[:0]).shape[1]
    answers = players.ask(count - 1, lambda k, _: gone(k + 1), what, show, rows)
    tally, slots = Tally(players, len(rows), width), torch.arange(width, device=rows.device)
    for a in answers:
        w = weights(a.sets + 1)
        tally.add(finest(a.values) - finest(players.all_there[a.rows]), place[a.rows], slots.expand_as(w), w)
    return tally.sums


def by_subsets(
    players: Coalitions, weights: Weights, what: str = "", show: bool = False, rows: Tensor | None = None
) -> Tensor:
    """:func:`by_sets` over all 2^F of them.

    Raises:
        ValueError: there are more than 30 features.
    """
    n = players.features.count
    if n > MOST:
        raise ArgumentError(
            f"there are 2^{n} sets of {n} features, too many to ask them all; join features by feature_mask, or draw "
            "some sets: ShapleyValueSampling, n_samples="
        )

    def gone(k: Tensor) -> Tensor:
        return (k[:, None] >> torch.arange(n, device=k.device)) & 1

    return by_sets(players, 2**n, gone, lambda k: weights(gone(k)), what, show, rows)


# --- sets that are drawn ----------------------------------------------------------------------------------


class Units(ABC):
    """Sets of features drawn at random, in G independent units for each of R examples.

    In what follows ``i`` [n] are places among the R, ``g`` [n] units, ``j`` [n] sets within a unit. Shares are slots
    of a sum and weights [n, K] each.
    """

    asked: int
    """Sets in a unit whose scores are to be asked for."""

    @abstractmethod
    def absent(self, i: Tensor, g: Tensor, j: Tensor) -> Tensor:
        """The features that are gone [n, F]."""

    @abstractmethod
    def shares(self, i: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """What the score of a set counts in the unit's estimate."""

    def ends(self, i: Tensor, g: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """What the score with all features there counts, and what the one with all gone does, if they count."""
        return ()


@dataclass
class Estimate:
    """Means over independent units, some for each example: ``values`` [R, C, ...], like ``squares``.

    ``squares`` are the sums of squared distances of the units' own estimates from their mean, of ``units`` [R] units.
    """

    values: Tensor
    squares: Tensor
    units: Tensor

    def add(self, place: Tensor, more: Tensor) -> None:
        """Takes in further units [N, G, C, ...] of the examples ``place`` [N]; Chan, Golub, LeVeque (1979)."""
        mean, before, g = more.mean(1), _column(self.units[place], more[:, 0]), more.shape[1]
        far = mean - self.values[place]
        self.squares[place] += (more - mean[:, None]).square().sum(1) + far.square() * before * g / (before + g)
        self.values[place] += far * g / (before + g)
        self.units[place] += g

    def half(self, confidence: float) -> Tensor:
        """Half the widths of Student's intervals around the values, each of which holds with this confidence.

        Infinite after a single unit.
        """
        from scipy.stats import t

        quantile = torch.from_numpy(t.ppf((1 + confidence) / 2, (self.units - 1).clamp(min=1).cpu().numpy()))
        n = _column(self.units, self.values)
        error = (self.squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt()
        return torch.where(n > 1, error * _column(quantile.to(error), error), torch.inf)


def sampled(
    players: Coalitions,
    draw: Callable[[range, Tensor], Units],
    width: int,
    count: int,
    *,
    precision: float | None = None,
    confidence: float = 0.95,
    what: str = "",
    show: bool = False,
    rows: Tensor | None = None,
) -> Estimate:
    """Estimates [R, width, ...] from ``count`` units for each example, or for ``rows`` alone.

    With a ``precision``, examples go on, half as many units again each time, until :meth:`Estimate.half` of all that
    is estimated is as small.

    Args:
        draw: (numbers of units, examples [R]) -> the units. It may draw from the global generators: it is asked in
            their order, outside the guard of the model.
    """
    f = players.f
    with untouched(f.model):
        rows = everyone(players) if rows is None else rows
        ones = torch.ones(1, players.features.count, dtype=torch.long, device=rows.device)
        answers = players.ask(1, lambda k, _: ones.expand(len(k), -1), rows=rows)
        none_there = torch.cat([players.all_there[:0], *(a.values for a in answers)])
    sums = Tally(players, len(rows), width).sums
    found, home = Estimate(sums, torch.zeros_like(sums), torch.zeros_like(rows)), _places(players, rows)

    def asked(units: range, rows: Tensor) -> Tensor:
        """[R, G, width, ...]"""
        made, g, place = draw(units, rows), len(units), _places(players, rows)
        tally = Tally(players, len(rows) * g, width)
        each = torch.arange(len(rows) * g, device=rows.device)
        with untouched(f.model):
            ends = made.ends(each // g, each % g)
            for known, share in zip((players.all_there[rows], none_there[home[rows]]), ends, strict=False):
                tally.add(known[each // g], each, *share)

            def absent(k: Tensor, of: Tensor) -> Tensor:
                return made.absent(place[of], k // made.asked, k % made.asked)

            for a in players.ask(g * made.asked, absent, what, show, rows):
                i, unit = place[a.rows], a.sets // made.asked
                tally.add(a.values, i * g + unit, *made.shares(i, unit, a.sets % made.asked))
        return tally.sums.reshape(len(rows), g, *tally.shape[1:])

    done = 0
    while len(rows) and width:
        size = max(1, HELD // (len(rows) * sums[0].numel()))
        for start in range(done, count, size):
            found.add(home[rows], asked(range(start, min(start + size, count)), rows))
        if precision is None:
            break
        rough = found.half(confidence)[home[rows]].flatten(1).amax(1) > precision
        done, count, rows = count, count + (count + 1) // 2, rows[rough]
    return found


def everyone(players: Coalitions) -> Tensor:
    """The examples [B]; one for a whole batch."""
    return torch.arange(players.examples, device=players.f.device)


def _places(players: Coalitions, rows: Tensor) -> Tensor:
    """Where among ``rows`` each example stands [B]."""
    place = torch.zeros(players.examples, dtype=torch.long, device=rows.device)
    return place.scatter(0, rows, torch.arange(len(rows), device=rows.device))


def _column(numbers: Tensor, like: Tensor) -> Tensor:
    """[R] as [R, 1, ...]."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def uniforms(players: Coalitions, seed: int, method: str) -> Callable[[range, Tensor, int], Tensor]:
    """(numbers of units, examples [R], d) -> numbers on [0, 1), drawn by key [R, G, d]."""
    with untouched(players.f.model):
        noise = Noise(seed, method, players.names)

    def drawn(units: range, rows: Tensor, d: int) -> Tensor:
        like = finest(torch.zeros((), device=rows.device))
        return torch.stack([replace(noise.at(rows), draw=u).uniform(d, like) for u in units], 1)

    return drawn

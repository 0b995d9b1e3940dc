"""What a search has found, and the way back from there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.prepare import rounding
from ..engine.probe import Probe
from ..perturb.goals import Goal, Sized
from ..perturb.region import Region


@dataclass(frozen=True, eq=False)
class Found:
    """The best point of each row [N, D], its margin (> 0: the goal is reached) and size [N].

    Where several attacks look, ``by`` [N] says which of them found it, and -1 that it is as it was.
    """

    z: Tensor
    margin: Tensor
    size: Tensor
    by: Tensor | None = None

    @classmethod
    def nothing(cls, z: Tensor) -> "Found":
        """``z``, not found to be good for anything yet."""
        return cls(z, torch.full_like(z[:, 0], -torch.inf), torch.full_like(z[:, 0], torch.inf))

    @property
    def success(self) -> Tensor:
        return self.margin > 0

    def at(self, rows: Tensor) -> "Found":
        return Found(self.z[rows], self.margin[rows], self.size[rows], None if self.by is None else self.by[rows])

    def where(self, win: Tensor, other: "Found") -> "Found":
        """``other`` in the rows that win."""
        return Found(
            torch.where(win[:, None], other.z, self.z),
            torch.where(win, other.margin, self.margin),
            torch.where(win, other.size, self.size),
            None if self.by is None and other.by is None else torch.where(win, other._by, self._by),
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
            self.margin.index_copy(0, rows, part.margin.to(self.margin)),  # a model may answer in another dtype
            self.size.index_copy(0, rows, part.size.to(self.size)),
            None if self.by is None and part.by is None else self._by.index_copy(0, rows, part._by),
        )

    @property
    def _by(self) -> Tensor:
        return torch.full_like(self.size, -1, dtype=torch.long) if self.by is None else self.by


def shrunk(f: Probe, region: Region, rows: Tensor, found: Found, rounds: int = 7) -> Found:
    """Each point that succeeded, moved straight back towards the centre as far as it still succeeds; values only."""
    left = found.success.nonzero().squeeze(1)
    if not len(left) or region.norm.unit:  # a count does not shrink along a line
        return found
    region, best = region.at(left), found.at(left)
    z = way_back(f, rows[left], region.centre, best.z, rounds, best.margin)
    return found.put(left, best.smaller(Found(z, f.value(z, rows[left]), region.size(z))))


def way_back(f: Probe, rows: Tensor, home: Tensor, away: Tensor, rounds: int, margin: Tensor | None = None) -> Tensor:
    """The nearest to ``home`` [N, D] of the points on the line to ``away`` that still reach the goal; values only.

    ITP of Oliveira and Takahashi (ACM TOMS 47, 2020): false position, drawn towards the middle of the interval that is
    left, and never so far from it that halving would do better by more than one round. ``margin`` [N] is that of
    ``away``, where it is known.
    """
    low, high = torch.zeros_like(rows, dtype=home.dtype), torch.ones_like(rows, dtype=home.dtype)
    assert isinstance(f.of, Goal)
    below, size = f.to(of=Sized(f.of)).value(home, rows).reshape(-1, 2).unbind(1)
    least = rounding(f, size.dtype) * size  # another batch rounds otherwise
    below, above = below - least, (f.value(away, rows) if margin is None else margin) - least
    for r in range(rounds):
        width, middle = high - low, (low + high) / 2
        share = (below / (below - above)).to(home.dtype)
        t = low + width * torch.where(share.isfinite(), share, 0.5)
        inward = torch.minimum(0.2 * width.square(), (middle - t).abs())
        most = (2.0**-r - width / 2).clamp(min=0)
        t = middle + (t + (middle - t).sign() * inward - middle).clamp(-most, most)
        now = f.value(torch.lerp(home, away, t[:, None]), rows) - least
        good = now > 0
        below, above = torch.where(good, below, now), torch.where(good, now, above)
        low, high = torch.where(good, low, t), torch.where(good, t, high)
    return torch.where((high < 1)[:, None], torch.lerp(home, away, high[:, None]), away)

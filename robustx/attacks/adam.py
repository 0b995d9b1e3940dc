"""Adam for rows that come and go: each has moments and a count of steps of its own, which leave with it."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..perturb.region import Region
from .base import Active


@dataclass(frozen=True, eq=False)
class Adaptive(Active):
    """Rows that descend by Adam (Kingma, Ba; ICLR 2015, algorithm 1).

    Args:
        mean, square: running means of each row's gradients and of their squares [n, D].
        taken: steps so far [n, 1].
    """

    mean: Tensor
    square: Tensor
    taken: Tensor

    @classmethod
    def fresh(cls, rows: Tensor, region: Region, start: Tensor | None, *more: object) -> Self:
        """All of ``rows``, before their first step; ``more`` is what a subclass adds."""
        still = torch.zeros_like(region.centre)
        return cls.of(rows, region, start, still, still, still[:, :1], *more)

    def told(self, g: Tensor, rate: float | Tensor) -> tuple[Self, Tensor]:
        """The rows after a look at ``g`` [n, D], and the move against it, of at most about ``rate`` per element."""
        taken = self.taken + 1
        mean, square = torch.lerp(g, self.mean, 0.9), torch.lerp(g.square(), self.square, 0.999)
        spread = (square / (1 - 0.999**taken)).sqrt()
        way = mean / (1 - 0.9**taken) / spread.clamp(min=torch.finfo(g.dtype).tiny ** 0.5)
        return self.to(mean=mean, square=square, taken=taken), -rate * way


def fading(step: int, steps: int) -> float:
    """From 1 to nearly 0 by half a cosine."""
    return (1 + math.cos(math.pi * step / steps)) / 2

"""Domains: in what way a feature may change."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attacks.base import Found
from ..attacks.gradient import pgd
from ..attacks.search import shrunk, way_back
from ..attribution.ablation import feature_ablation
from ..attribution.coalitions import Coalitions
from ..attribution.path import gauss_legendre, integrated_gradients, mean_grad
from ..engine.packing import Tensors
from ..engine.probe import ModelError, Probe
from ..perturb.features import Features
from ..perturb.gates import Gates, gated
from ..perturb.norms import Linf
from ..perturb.references import Reference, through
from ..perturb.region import Region

NODES = gauss_legendre(16)  # enough to rank features, which is all that is asked of it


class Domain(ABC):
    """What a set of features can be turned into, and which features matter most.

    Points are rows ``z`` [N, Z] in coordinates of the domain's own; rows not in a set are exactly at home.
    """

    features: Features

    @property
    @abstractmethod
    def home(self) -> Tensor:
        """The points of the unchanged examples [B, Z]."""

    @property
    @abstractmethod
    def probe(self) -> Probe:
        """The goal as a function of such points."""

    @abstractmethod
    def rankings(self) -> list[Tensor]:
        """Attributions [B, F] towards what the domain allows: the more, the sooner a feature should be tried."""

    @abstractmethod
    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        """The best point of each row [N] when only its set [N, F] may change; looked for from ``start`` too."""

    @abstractmethod
    def cost(self, found: Found, rows: Tensor) -> Tensor:
        """What decides between sets of the same size: the less, the better [N]."""

    @abstractmethod
    def back(self, z: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        """``z`` with the features ``which`` [N, F] taken home."""

    @abstractmethod
    def inputs(self, z: Tensor) -> Tensors:
        """The model's inputs at the points of all examples [B, Z]."""

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """A nearer point that still reaches the goal, without leaving the sets."""
        return z


@dataclass(frozen=True, eq=False)
class Move(Domain):
    """Features move anywhere inside a finite box; points are packed inputs [N, D]."""

    f: Probe
    features: Features
    low: Tensor
    high: Tensor
    steps: int = 12

    @property
    def home(self) -> Tensor:
        return self.f.point

    @property
    def probe(self) -> Probe:
        return self.f

    @cached_property
    def width(self) -> Tensor:
        """Of the box, where it is widest [D]."""
        return (self.high - self.low).amax(0).clamp(min=1e-12)

    @cached_property
    def box(self) -> Region:
        """Everything that the box allows, measured in its widths."""
        return Region(self.home, Linf(self.width), torch.ones_like(self.home[:, 0]), self.low, self.high)

    def rankings(self) -> list[Tensor]:
        # Towards what the constraints allow, not towards zero: a zero baseline is a poor guide to what can be done.
        everyone, free = self.f.everyone, self.box
        g = self.f.grad(self.home)[1]
        corner = free.step(self.home, g, free.radius)
        most = pgd(self.f, free, everyone, self.steps, 2.5 * free.radius / self.steps, stop=False).z
        tries = [self._towards(most), self._towards(corner), g * (corner - self.home)]
        return [self.features.gather(a, everyone) for a in tries]

    def _towards(self, end: Tensor) -> Tensor:
        there = self.f.to(inputs=self.f.packing.unpack(end))
        return integrated_gradients(there, through(self.f.inputs), NODES)

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        near = self.box.at(rows).to(free=self.features.spread(sets.to(start), rows) > 0)
        length = 2.5 * near.radius / self.steps
        best = pgd(self.f, near, rows, self.steps, length)
        left = (~best.success & (start != near.centre).any(1)).nonzero().squeeze(1)
        if len(left):
            some = near.at(left)
            warm = pgd(self.f, some, rows[left], self.steps, length[left], some.project(start[left]))
            best = best.put(left, best.at(left).stronger(warm))
        return shrunk(self.f, near, rows, best)

    def cost(self, found: Found, rows: Tensor) -> Tensor:
        return ((found.z - self.home[rows]) / self.width).abs().sum(1)

    def back(self, z: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        return torch.where(self.features.spread(which.to(z), rows) > 0, self.home[rows], z)

    def inputs(self, z: Tensor) -> Tensors:
        return self.f.packing.unpack(z)

    def refine(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        """All features straight back together, then each on its own, each as far as the goal stays reached."""
        z = self._nearer(z, rows, sets)
        for j in range(min(int(sets.sum(1).max()), 8) if len(sets) else 0):
            nth = sets & (sets.cumsum(1) == j + 1)
            z = self._nearer(z, rows, nth)
        return z

    def _nearer(self, z: Tensor, rows: Tensor, sets: Tensor) -> Tensor:
        return way_back(self.f, rows, self.back(z, rows, sets), z, rounds=12)


@dataclass(frozen=True, eq=False)
class Replace(Domain):
    """Features give way to a reference, whole; points are gates [N, F]."""

    f: Probe
    features: Features
    reference: Reference

    @cached_property
    def probe(self) -> Probe:
        return gated(self.f, self.features, self.reference)

    @property
    def home(self) -> Tensor:
        return self.probe.point

    def rankings(self) -> list[Tensor]:
        alone = -feature_ablation(Coalitions(self.f, self.features, self.reference))
        try:
            return [mean_grad(self.probe, self.home, torch.ones_like(self.home), NODES), alone]
        except ModelError:  # no gradients here: tokens, or a black box
            return [alone]

    def attempt(self, rows: Tensor, sets: Tensor, start: Tensor) -> Found:
        z = sets.to(self.home)
        return Found(z, self.probe.value(z, rows), z.sum(1))

    def cost(self, found: Found, rows: Tensor) -> Tensor:
        return -found.margin  # of as many, those that make it surest

    def back(self, z: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        return torch.where(which, 0, z)

    def inputs(self, z: Tensor) -> Tensors:
        assert isinstance(self.probe.at, Gates)
        return self.probe.at.blend(z, self.f.everyone)

"""Regions: which perturbed points are allowed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..engine.packing import Packing, Tensors, finest
from ..engine.probe import Probe, by_name
from ..engine.randomness import Noise
from .norms import Norm


@dataclass(frozen=True, eq=False)
class Region:
    """Near the centre, inside the box, moving only where free; row by row.

    Args:
        centre: [B, D], inside the box.
        norm: how far is measured.
        radius: [B], in input units (a count for L0).
        low, high: the box, broadcastable to [B, D]; may be infinite.
        free: [B, D] booleans, where elements may move; None: everywhere.
    """

    centre: Tensor
    norm: Norm
    radius: Tensor
    low: Tensor
    high: Tensor
    free: Tensor | None = None

    def to(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def at(self, rows: Tensor) -> Self:
        """The region of some rows (indices or booleans)."""

        def some(t: Tensor) -> Tensor:
            return t[rows] if t.ndim == 2 and len(t) == len(self.centre) else t

        free = None if self.free is None else self.free[rows]
        return self.to(
            centre=self.centre[rows],
            radius=self.radius[rows],
            low=some(self.low),
            high=some(self.high),
            free=free,
        )

    def room(self, z: Tensor, way: Tensor) -> Tensor:
        """How far each element of ``z`` may go in the direction of ``way``'s sign before it meets the box [N, D]."""
        room = torch.where(way > 0, self.high - z, z - self.low).clamp(min=0)
        return room if self.free is None else torch.where(self.free, room, 0)

    def reachable(self) -> Self:
        """The same region with no larger radius than its box leaves room for.

        Raises:
            ValueError: neither the radius nor the box is finite.
        """
        free = torch.ones_like(self.centre, dtype=torch.bool) if self.free is None else self.free
        farthest = torch.maximum(self.high - self.centre, self.centre - self.low)
        most = self.norm.size(torch.where(free, farthest, 0))
        radius = torch.minimum(self.radius, most)
        if not bool(torch.isfinite(radius).all()):
            raise ValueError("eps must be finite where the bounds are not: give eps=..., or bounds=(lowest, highest)")
        return self.to(radius=radius)

    def project(self, z: Tensor) -> Tensor:
        """The nearest allowed point to each row of ``z``."""
        move = z - self.centre
        return self.clip(self.centre + self.norm.project(move, self.radius, self.room(self.centre, move)))

    def clip(self, z: Tensor) -> Tensor:
        """The nearest point inside the box to each row of ``z``, near the centre or not."""
        return torch.minimum(torch.maximum(z, self.low), self.high)

    def held(self, z: Tensor) -> Tensor:
        """``z`` [N, D], with what is not free where it stands at the centre."""
        return z if self.free is None else torch.where(self.free, z, self.centre)

    def anywhere(self, u: Tensor) -> Tensor:
        """The point of the box at the shares ``u`` [N, D] of its sides, near the centre or not, moved only where free.

        Where the box has no end, a hundred times the size of the centre's elements stands in for it.
        """
        far = 100 * self.centre.abs().amax(1, keepdim=True).clamp(min=1)
        low = torch.where(self.low.isfinite(), self.low, self.centre - far)
        high = torch.where(self.high.isfinite(), self.high, self.centre + far)
        return self.held(self.clip(torch.lerp(low, high, u)))

    def usable(self, z: Tensor, way: Tensor) -> Tensor:
        """The part of a direction along which ``z`` can move at all: free, and not blocked by the box."""
        return torch.where(self.room(z, way) > 0, way, 0)

    def step(self, z: Tensor, way: Tensor, length: Tensor) -> Tensor:
        """The move of ``length`` [N] that climbs most along ``way`` inside the box, and back into the ball."""
        return self.project(z + self.norm.steepest(way, length, self.room(z, way)))

    def draw(self, noise: Noise) -> Tensor:
        """A random allowed point for each row (uniform in the ball, then the nearest allowed one)."""
        low, high = self.low - self.centre, self.high - self.centre
        return self.project(self.centre + self.norm.draw(noise, self.radius, low, high))

    def size(self, z: Tensor) -> Tensor:
        """How far ``z`` is from the centre [N], measured in the finest dtype of the device."""
        return self.norm.size(finest(z) - finest(self.centre)).to(z.dtype)

    def settle(self, z: Tensor, packing: Packing) -> Tensors:
        """``z`` unpacked, as its own dtypes can hold it: what rounding took out of the ball or the box is drawn back.

        Addition and conversion round, so a point on the ball's surface may end outside by the last digit; its
        elements then move to the next number towards the centre.
        """
        held, home = packing.unpack(z), packing.unpack(self.centre)
        centre, radius, low, high = (finest(t) for t in (packing.pack(home), self.radius, self.low, self.high))
        for _ in range(4):
            now = finest(packing.pack(held))
            over = (now < low) | (now > high) | self.norm.outside(now - centre, radius)
            if not over.any():
                break
            held = tuple(
                torch.where(o & (h != c), torch.nextafter(h, c), h)
                for o, h, c in zip(packing.split(over), held, home, strict=True)
            )
        return held


def box(f: Probe, low: Any, high: Any, finite: bool = False) -> tuple[Tensor, Tensor]:
    """The box of allowed inputs, packed like the probe's point: [1, 1] or [B, D] each.

    Raises:
        ValueError: it is empty somewhere, infinite where it must not be, or some example is outside.
    """
    assert f.point.is_floating_point()  # integers are refused here, before their bounds are
    low, high = packed(low, f, "bounds"), packed(high, f, "bounds")
    if not bool((low <= high).all()):
        raise ValueError("bounds must be (lowest, highest), but somewhere the lowest is above the highest, or NaN")
    if finite and not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise ValueError(
            "bounds must be finite here (in norm L0, with levels, and for counterfactuals): otherwise one element "
            "could go anywhere; use bounds=(0, 1) or those of your data"
        )
    outside = ((f.point < low) | (f.point > high)).any(1)
    if outside.any():
        worst = f.point[outside][0]
        raise ValueError(
            f"x must lie inside the bounds, but example {int(outside.nonzero()[0])} spans {worst.min():.4g} to "
            f"{worst.max():.4g}; scale the inputs, or give the bounds of your data"
        )
    return low, high


def packed(value: Any, f: Probe, name: str) -> Tensor:
    """A number, or tensors that broadcast to the inputs, packed like them: [1, 1], or [1 or B, D].

    Raises:
        ValueError: they do not broadcast.
    """
    like = f.inputs[0]
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if value is None:
        raise ValueError(f"{name} must be a number or a tensor, got None; use torch.inf where there is no bound")
    if not isinstance(value, Tensor | tuple | list | Mapping) and len(set(f.packing.dtypes)) == 1:
        one = torch.as_tensor(float(value), dtype=like.dtype, device=f.device)  # as the inputs' own dtype can hold it
        return one.to(f.point.dtype).reshape(1, 1)
    value = by_name(value, f.names, name)
    parts = tuple(value) if isinstance(value, tuple | list) else (value,) * len(f.inputs)
    try:
        full = [torch.as_tensor(p).detach().to(t).expand(t.shape) for p, t in zip(parts, f.inputs, strict=True)]
    except (RuntimeError, ValueError):
        shapes = [tuple(torch.as_tensor(p).shape) for p in parts]
        raise ValueError(
            f"{name} of shape {shapes} does not broadcast to the inputs {[tuple(t.shape) for t in f.inputs]}; "
            "a tuple or list holds one entry for each input, a tensor one for each element"
        ) from None
    return f.packing.pack(full)

"""Gates: the one way in which features give way to a reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.packing import Packing, Tensors
from ..engine.probe import Probe
from ..engine.sites import Call, Input, Site
from .features import Features
from .references import Filling, Giver, Reference


@dataclass(frozen=True, eq=False)
class Gates(Site):
    """Features as a site: its value is a gate per feature [N, F]; 0: as it was, 1: the reference.

    Only the gates are packed, so the tensors below may have any dtypes (token ids beside floats).
    """

    features: Features
    start: Tensors
    reference: Tensors | Giver
    under: Site = Input()

    @property
    def late(self) -> bool:
        return self.under.late

    @property
    def entry(self) -> bool:
        return self.under.entry

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        floats = [t for t in self.start if t.is_floating_point()]
        like = floats[0] if floats else torch.empty(0, device=self.start[0].device)
        return (like.new_zeros(len(inputs[0]), self.features.count),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return self.under.write(call, inputs, self.blend(z[0], rows), rows)

    def blend(self, gates: Tensor, rows: Tensor) -> Tensors:
        """What stands below when the gates [N, F] are so far open."""
        shut = Packing.of(self.start).split(self.features.spread(gates, rows))
        away = self.reference(gates, rows) if callable(self.reference) else tuple(_of(b, rows) for b in self.reference)
        return tuple(_mix(a[rows], b, g) for a, b, g in zip(self.start, away, shut, strict=True))


def gated(f: Probe, features: Features, reference: Reference | Callable[[Probe], Giver]) -> Probe:
    """``f`` as a function of one gate per feature."""
    if isinstance(reference, Filling):
        return f.to(at=Gates(features, f.here, _given(reference, f, features), f.at))
    return f.to(at=Gates(features, f.here, reference(f), f.at))


def _given(filling: Filling, f: Probe, features: Features) -> Giver:
    fill, packing = filling.bound(f), Packing.of(f.here)
    return lambda gates, rows: fill(packing.split(features.spread(gates, rows)), rows)


def _of(reference: Tensor, rows: Tensor) -> Tensor:
    """The rows; a single one if all are the same one, expanded."""
    return reference[:1] if len(reference) and reference.stride(0) == 0 else reference[rows]


def _mix(start: Tensor, reference: Tensor, gate: Tensor) -> Tensor:
    if not start.is_floating_point():
        return torch.where(gate < 0.5, start, reference)
    return torch.lerp(start, reference, gate.to(start.dtype))  # exact at both ends

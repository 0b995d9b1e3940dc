"""Latent search: what is moved are the codes of an encoder, and the model sees what a decoder makes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.packing import Tensors, flat
from ..engine.probe import Probe
from ..engine.sites import Call, Input, Site
from ..perturb.features import elements
from ..perturb.norms import Norm
from ..perturb.region import box, packed
from .domain import Move, Moved


@dataclass(frozen=True, eq=False)
class Latent:
    """The inside of an autoencoder, in which counterfactuals are looked for: what changes, changes as the data do.

    After Joshi et al. (arXiv 1907.09615), REVISE. What the decoder cannot make stays as it is: the model sees
    x + decode(z) - decode(encode(x)), so that x itself is where the search begins.

    Args:
        encode: from inputs [N, ...] to codes [N, ...], a tensor.
        decode: from codes to inputs, a tensor; differentiable.
        bounds: (lowest, highest) values of codes, numbers or tensors that broadcast to the codes.
        scale: what a code's move is measured in; None: the width of its bounds.
        clip: (lowest, highest) values of inputs, to which they are clipped.

    Raises:
        ArgumentTypeError: something that cannot be called.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    bounds: tuple[float | Tensor, float | Tensor] = (-3.0, 3.0)
    scale: float | Tensor | None = None
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.encode) or not callable(self.decode):
            raise ArgumentTypeError("Latent needs encode and decode, two functions")

    def domain(self, f: Probe, norm: Norm, steps: int) -> "Coded":
        """The codes of the examples, and how they may move; each of them is a feature.

        Raises:
            ArgumentError: codes that lie outside the bounds; inputs that are not one tensor, or a decoder of others.
        """
        if len(f.inputs) != 1:
            raise ArgumentError(f"a latent search is for models of one input, got {len(f.inputs)}")
        x = f.inputs[0]
        with torch.no_grad():
            made = self.decode(self.encode(x))
        if made.shape != x.shape:
            raise ArgumentError(f"decode must give inputs of shape {tuple(x.shape)}, got {tuple(made.shape)}")
        f = f.to(at=Codes(self, x, made))
        codes = f.to(inputs=f.here, at=Input())
        low, high = (end.expand(-1, f.point.shape[1]) for end in box(codes, *self.bounds, finite=True))
        unit = high - low if self.scale is None else packed(self.scale, codes, "scale")
        features = elements(f.point.shape[1], f.device)
        return Coded(f, features, low, high, unit.clamp(min=1e-12), norm, steps)


@dataclass(frozen=True, eq=False)
class Codes(Site):
    """The codes of the inputs.

    Args:
        latent: the autoencoder.
        start: the inputs [B, ...].
        made: what the decoder makes of their codes [B, ...].
    """

    latent: Latent
    start: Tensor
    made: Tensor

    entry = True

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return (self.latent.encode(inputs[0]),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call((self.seen(z[0], rows),))

    def seen(self, codes: Tensor, rows: Tensor) -> Tensor:
        """What the model sees [N, ...]."""
        x = self.start[rows] + (self.latent.decode(codes) - self.made[rows])
        x = x.to(self.start.dtype)  # a decoder may be finer than the model
        return x if self.latent.clip is None else x.clamp(*self.latent.clip)


@dataclass(frozen=True, eq=False)
class Recoded(Moved):
    """Codes, told by how far each has moved."""

    codes: Codes

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call((self.inputs(z[0], rows),))

    def inputs(self, z: Tensor, rows: Tensor) -> Tensor:
        """What the model sees [N, ...]; where nothing moved, the examples to the last digit."""
        (codes,) = self.packing.unpack(self.there(z, rows))
        still = (z == 0).all(1).reshape(-1, *(1,) * (self.codes.start.ndim - 1))
        seen = self.codes.seen(codes, rows)
        return torch.where(still, self.codes.start[rows] + (seen - seen.detach()), seen)  # with the gradient kept


@dataclass(frozen=True, eq=False)
class Coded(Move):
    """Codes move inside a box; points are their moves [N, Z], in units of their own."""

    @cached_property
    def probe(self) -> Probe:
        codes = self.f.at
        assert isinstance(codes, Codes)
        return self.f.to(at=Recoded(self.f.point, self.unit, self.low, self.high, self.f.packing, codes))

    def points(self, x: Tensor, rows: Tensor) -> Tensor:
        codes = self.f.at
        assert isinstance(codes, Codes)
        with torch.no_grad():
            return super().points(flat(codes.latent.encode(x.reshape(-1, *codes.start.shape[1:]))), rows)

    def inputs(self, z: Tensor) -> Tensors:
        site = self.probe.at
        assert isinstance(site, Recoded)
        with torch.no_grad():
            return (site.inputs(z, self.f.everyone),)

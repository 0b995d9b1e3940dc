"""Parts of a climb: what steers its steps besides the gradient where it stands. Each is a few lines; they add up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.probe import Probe
from ..engine.randomness import Noise
from .base import Active
from .found import Found
from .views import unheard


@dataclass(frozen=True, eq=False)
class Climbing(Active):
    """Rows on their way up, each by steps of its own ``length`` [n].

    Args:
        length: of a step [n].
        best: the best points so far; their sizes are told at the end.
        noise: where parts draw from.
        velocity: the sum of past gradients [n, D], see :class:`Momentum`.
        before, gradient: where they were a step before, and the gradient there [n, D], see :class:`Variance`.
    """

    length: Tensor
    best: Found
    noise: Noise | None = None
    velocity: Tensor | None = None
    before: Tensor | None = None
    gradient: Tensor | None = None


class Part:
    """Something that a climb is made of: it may move the point that is asked about, and turn the way that is gone."""

    def ahead(self, a: Climbing, z: Tensor) -> Tensor:
        """Where the gradient is asked for instead of at ``z`` [n, D]; ``z`` itself if that is the place."""
        return z

    def turn(self, f: Probe, a: Climbing, way: Tensor) -> tuple[Tensor, Climbing]:
        """The way [n, D] that is gone instead of ``way``, and what is held of the rows by then."""
        return way, a


@dataclass(frozen=True)
class Momentum(Part):
    """Gradients, each divided by the mean size of its elements, add up; older ones fade by ``decay`` a step.

    Dong et al. (CVPR 2018), arXiv 1710.06081, eq. 6. With ``nesterov`` the gradient is asked for where the momentum is
    about to lead: Lin et al. (ICLR 2020), arXiv 1908.06281, eq. 6; beyond Linf a velocity is as large as the norm says
    that it is, in units of a move of all elements by one.
    """

    decay: float = 1.0
    nesterov: bool = False

    def ahead(self, a: Climbing, z: Tensor) -> Tensor:
        if not self.nesterov or a.velocity is None:
            return z
        unit = a.region.norm.size(torch.ones_like(z[:1]))
        return z + (self.decay * a.length / unit)[:, None] * a.velocity

    def turn(self, f: Probe, a: Climbing, way: Tensor) -> tuple[Tensor, Climbing]:
        way = way / way.abs().mean(1, keepdim=True).clamp(min=torch.finfo(way.dtype).tiny)
        way = way if a.velocity is None else way + self.decay * a.velocity
        return way, a.to(velocity=way)


@dataclass(frozen=True)
class Translation(Part):
    """The gradient of pictures is blurred, as if it were taken of many slightly shifted ones.

    Dong et al. (CVPR 2019), arXiv 1904.02884, eq. 7, with its Gaussian of ``size`` pixels that ends at three standard
    deviations.
    """

    size: int = 15

    def turn(self, f: Probe, a: Climbing, way: Tensor) -> tuple[Tensor, Climbing]:
        bell = torch.exp(-0.5 * torch.linspace(-3, 3, self.size).square()) if self.size > 1 else torch.ones(1)
        kernel = torch.outer(bell, bell).to(way) / bell.sum().square()
        blurred = []
        for t in f.packing.split(way):
            flat = t.reshape(-1, 1, *t.shape[2:])
            blurred.append(F.conv2d(flat, kernel[None, None], padding="same").reshape(len(t), -1))
        return torch.cat(blurred, 1), a


@dataclass(frozen=True)
class Variance(Part):
    """The gradient, tuned by how much the mean gradient of ``neighbours`` differed from it a step before.

    Wang, He (CVPR 2021), arXiv 2103.15571, algorithm 1. Neighbours are drawn from the ball of ``spread`` times the
    budget around the point; all of them are one question to the model, asked once it is needed.
    """

    neighbours: int = 20
    spread: float = 1.5

    def turn(self, f: Probe, a: Climbing, way: Tensor) -> tuple[Tensor, Climbing]:
        tuned = way
        if a.before is not None and a.gradient is not None:
            tuned = way + self.around(f, a, a.before) - a.gradient
        return tuned, a.to(before=a.z, gradient=way)

    def around(self, f: Probe, a: Climbing, z: Tensor) -> Tensor:
        """The mean gradient [n, D] of neighbours of ``z``."""
        assert a.noise is not None, "neighbours are drawn"
        count, mean, noise = self.neighbours, torch.zeros_like(z), a.noise

        def whose(part: slice) -> tuple[Tensor, Tensor]:
            i = torch.arange(part.start, part.stop, device=z.device)
            return i // count, i % count

        def query(part: slice) -> tuple[Tensor, Tensor]:
            own, which = whose(part)
            near, here = a.region.at(own), z[own]
            move = near.norm.draw(
                noise.copies(own, which), self.spread * near.radius, near.low - here, near.high - here
            )
            return near.held(here + move), a.rows[own]

        with unheard(f):
            for part, _, g in f.grads(len(a) * count, query):
                mean.index_add_(0, whose(part)[0], g / count)
        noise.draw += 1
        return mean


def steered(f: Probe, a: Climbing, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Margins [n] of the points themselves, and gradients [n, D] where the parts want them."""
    at = a.z
    for part in parts:
        at = part.ahead(a, at)
    if at is a.z:
        return f.grad(at, a.rows)
    with unheard(f):
        _, g = f.grad(at, a.rows)
    return f.value(a.z, a.rows), g

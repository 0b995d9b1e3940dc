"""Randomness by key: a draw is a function of what it is for, never of a global generator."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .packing import flat


@dataclass
class Noise:
    """Random rows, each a function of (seed, method, restart, sample, draw) alone.

    A sample is known by its content, so its draws do not depend on the batch it comes in, its
    place there, or the number of workers. Numbers come from numpy's counter-based Philox
    generator, keyed by SHA-256 of the five words, are made on the CPU in float64 and then moved, so
    that every device and dtype starts from the same points.

    Args:
        seed: any integer.
        method: the name of the algorithm that draws.
        samples: one identity per row, see :func:`identities`.
        restart: which attempt this is.
    """

    seed: int
    method: str
    samples: list[str]
    restart: int = 0
    draw: int = 0

    def at(self, rows: Tensor) -> "Noise":
        """The source of some of the rows."""
        return replace(self, samples=[self.samples[i] for i in rows.tolist()])

    def copies(self, rows: Tensor, *told: Tensor) -> "Noise":
        """The source of some of the rows, each as often as wanted: copies are told apart by numbers [n]."""
        keys = zip(rows.tolist(), *(t.tolist() for t in told), strict=True)
        return replace(self, samples=["/".join(map(str, (self.samples[i], *key))) for i, *key in keys])

    def again(self, restart: int) -> "Noise":
        """The source of another attempt."""
        return replace(self, restart=restart, draw=0)

    def uniform(self, d: int, like: Tensor) -> Tensor:
        """[N, d], uniform on [0, 1), with the dtype and device of ``like``."""
        return self._rows(lambda g: g.random(d), d, like)

    def normal(self, d: int, like: Tensor) -> Tensor:
        """[N, d], standard normal."""
        return self._rows(lambda g: g.standard_normal(d), d, like)

    def exponential(self, d: int, like: Tensor) -> Tensor:
        """[N, d], exponential of rate one."""
        return self._rows(lambda g: g.standard_exponential(d), d, like)

    def generators(self) -> list[np.random.Generator]:
        """A generator for each row, for draws of other kinds or of a number that is not known before."""
        words = (f"{self.seed}/{self.method}/{self.restart}/{sample}/{self.draw}" for sample in self.samples)
        keys = [hashlib.sha256(word.encode()).digest() for word in words]
        self.draw += 1
        return [np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64))) for key in keys]

    def _rows(self, make: Callable[[np.random.Generator], np.ndarray], d: int, like: Tensor) -> Tensor:
        out = np.empty((len(self.samples), d))
        for row, generator in zip(out, self.generators(), strict=True):
            row[:] = make(generator)
        return torch.from_numpy(out).to(like.dtype).to(like.device)


def identities(*tensors: Tensor) -> list[str]:
    """A name for each row of some tensors [N, ...], made of all that it holds, in float32."""
    same = torch.cat([flat(t.detach()).float() for t in tensors], 1) + 0.0  # -0 and 0 are equal, but not in their bytes
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in same.cpu().numpy()]

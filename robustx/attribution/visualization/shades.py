"""Attributions of one sign as shades of one scale."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from torch import Tensor

from ...engine.checks import ArgumentError
from ...plot import ADDS, SIGNED, SIZES, TAKES

Numbers = NDArray[np.float64]
E = TypeVar("E", bound=Enum)


class VisualizeSign(Enum):
    """Which attributions are shown: those of one sign, all by their sizes, or all."""

    positive = 1
    absolute_value = 2
    negative = 3
    all = 4


# the scale, whether it has two sides, and what it says
SCALES: dict[VisualizeSign, tuple[str | Colormap, bool, str]] = {
    VisualizeSign.positive: (ADDS, False, "what adds"),
    VisualizeSign.absolute_value: (SIZES, False, "sizes,\nof either sign"),
    VisualizeSign.negative: (TAKES, False, "what takes away"),
    VisualizeSign.all: (SIGNED, True, "red adds,\nblue takes away"),
}


@dataclass(frozen=True, eq=False)
class Shaded:
    """Values on a scale of colours from ``low`` to ``high``, and what the scale says."""

    values: Numbers
    low: float
    high: float
    cmap: str | Colormap
    label: str

    @property
    def shares(self) -> Numbers:
        """Values in shares of the scale's end."""
        return self.values / self.high


def named(kind: type[E], argument: str, given: str | E) -> E:
    """A member of ``kind``, also by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(given, kind):
        return given
    if given not in kind.__members__:
        raise ArgumentError(f"{argument} must be one of {', '.join(kind.__members__)}, got {given!r}")
    return kind[str(given)]


def numbers(name: str, given: Any) -> NDArray[Any]:
    """A tensor of any device and dtype, an array, a picture of PIL, a list: as an array.

    Raises:
        ValueError: it is empty, or holds NaN or infinities.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given if given.dtype != torch.bfloat16 else given.float()).numpy()
    array = np.asarray(given)
    if not array.size or not np.isfinite(array).all():
        what = "is empty" if not array.size else "holds NaN or infinities"
        raise ArgumentError(f"{name} {what}; there is nothing to draw it by")
    return array


def shaded(values: Any, sign: VisualizeSign, outlier_perc: float | None, cmap: str | Colormap | None = None) -> Shaded:
    """Values of one sign in shares of a size beyond which no more than ``outlier_perc`` percent of their sum lie.

    Values beyond that size are drawn as it is. Negative values are shown by their size, if alone.

    Args:
        values: of any shape.
        sign: which are shown; the others are zero.
        outlier_perc: None: values as they are, on a scale up to the largest.
        cmap: a scale of one's own, from nothing to the largest; for all signs from the smallest to the largest.

    Raises:
        ValueError: ``outlier_perc`` is no percentage.
    """
    own, two_sided, told = SCALES[sign]
    if sign is VisualizeSign.positive:
        values = np.maximum(values, 0)
    elif sign is VisualizeSign.negative:
        values = np.maximum(-values, 0)
    elif sign is VisualizeSign.absolute_value:
        values = np.abs(values)
    most = float(np.abs(values).max())
    if outlier_perc is None:
        high, unit = most or 1.0, "attribution"
    else:
        if not 0 <= outlier_perc <= 100:
            raise ArgumentError(f"outlier_perc must be from 0 to 100, or None for values as they are: {outlier_perc!r}")
        most = _beneath(np.abs(values).ravel(), 1 - outlier_perc / 100)
        values = np.clip(values / most, -1, 1) if most else np.sign(values)  # beyond a size of 0 is all but 0 itself
        high, unit = 1.0, f"attribution / {most:.2g}" if most else "attribution"
    if cmap is not None and two_sided:
        told = "above 0 adds,\nbelow takes away"
    return Shaded(values, -high if two_sided else 0.0, high, own if cmap is None else cmap, f"{unit}\n{told}")


def _beneath(sizes: Numbers, share: float) -> float:
    """The size up to which, from the smallest on, sizes make up this share of their sum."""
    sizes = np.sort(sizes)
    sums = sizes.cumsum()
    return float(sizes[min(np.searchsorted(sums, sums[-1] * share), len(sizes) - 1)])

"""What pictures of language models' attributions share."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...plot import draw_outlines

LONG = 50  # characters of a label


def figure(show: bool, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A white figure of so many inches: one of pyplot's own only if it is to be shown at once."""
    options: dict[str, Any] = {"figsize": size, "facecolor": "white", "layout": "constrained"}
    if not show:
        fig = Figure(**options)
        return fig, fig.subplots()
    from matplotlib import pyplot

    return pyplot.subplots(**options)


def shown(fig: Figure, axes: Axes, show: bool) -> tuple[Figure, Axes] | None:
    """Figure and axes; None once they have been shown."""
    if not show:
        return fig, axes
    from matplotlib import pyplot

    pyplot.show()
    return None


def label(token: str) -> str:
    """A token on one line, with its spaces and breaks as they are written in code."""
    told = repr(token)[1:-1]
    return told if len(told) <= LONG else told[: LONG - 3] + "..."


def mark(axes: Axes, mask: Tensor, width: float, colour: Any, name: str) -> None:
    """Draws the border of a part of a picture [H, W], and writes its name in its middle."""
    if not mask.any():
        return
    if width > 0:
        draw_outlines(axes, torch.where(mask, 0, -1), colour, width)
    if name:
        down, across = np.argwhere(mask.numpy()).mean(0)
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        axes.text(across, down, name, ha="center", va="center", fontsize=9, bbox=box)

"""What pictures of language models' attributions share."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...plot import draw_outlines, new_figure, show_figures
from ..visualization import draw_mask_legend

LONG = 50  # characters of a label


def figure(show: bool, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A white figure of so many inches: one of pyplot's own only if it is to be shown at once."""
    fig, axes = new_figure(size, show)
    fig.set_facecolor("white")
    return fig, axes


def shown(fig: Figure, axes: Axes, show: bool) -> tuple[Figure, Axes] | None:
    """Figure and axes; None once they have been shown."""
    if not show:
        return fig, axes
    show_figures()
    return None


def label(token: str) -> str:
    """A token on one line, with its spaces and breaks as they are written in code."""
    told = repr(token)[1:-1]
    return told if len(told) <= LONG else told[: LONG - 3] + "..."


def mark(axes: Axes, mask: Tensor, width: float, colour: Any, name: str) -> None:
    """Draws the border of a part of a picture [H, W], in points, and writes its name in its middle."""
    if width > 0 and mask.any():
        draw_outlines(axes, torch.where(mask, 0, -1), colour, width)
    if name:
        draw_mask_legend(axes, mask, name, 9, "black", "white", 0.7)

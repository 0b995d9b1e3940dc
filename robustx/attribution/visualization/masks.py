"""Parts of a picture, marked."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from scipy.ndimage import binary_erosion, distance_transform_edt

from ...engine.checks import ArgumentError, whole


def draw_mask_border(ax: Axes, mask: Any, border_width: int = 1, border_color: Any = "black") -> None:
    """Draws the border of a part of a picture, on the part's own pixels; nothing for an empty one.

    Args:
        ax: where the picture is.
        mask: the part [H, W].
        border_width: in pixels of the picture.
        border_color: by name, or three or four numbers.

    Raises:
        ValueError: ``mask`` is no [H, W], or ``border_width`` is no whole number from 1 on.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_mask_border(axes, np.ones((3, 3), bool))
    >>> axes.images[0].get_array()[..., 3].astype(int).tolist()  # how opaque it is
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    inside, width = _part(mask), whole("border_width", border_width, 1)
    if inside.any():
        border = inside & ~binary_erosion(inside, iterations=width)
        ax.imshow(border[..., None] * np.array(to_rgba(border_color)), interpolation="nearest")


def draw_mask_legend(
    ax: Axes,
    mask: Any,
    label: str,
    fontsize: int = 10,
    text_color: Any = "white",
    bbox_facecolor: Any = "black",
    bbox_alpha: float = 0.6,
) -> None:
    """Writes a label in the middle of a part of a picture [H, W]; nothing for an empty one.

    Where the middle is outside or at the edge, as in a ring or an angle, at the pixel that is farthest from the edge.

    Raises:
        ValueError: ``mask`` is no [H, W].

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_mask_legend(axes, np.eye(3), "diagonal")
    >>> axes.texts[0].get_position()
    (1.0, 1.0)
    """
    inside = _part(mask)
    if not inside.any():
        return
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]  # to the next pixel outside
    middle = np.argwhere(inside).mean(0)
    down, across = np.rint(middle).astype(int)
    if depth[down, across] < depth.max() / 2:
        middle = np.array(np.unravel_index(depth.argmax(), depth.shape), float)
    box = {"boxstyle": "round,pad=0.2", "facecolor": bbox_facecolor, "alpha": bbox_alpha, "edgecolor": "none"}
    down, across = middle.tolist()
    ax.text(across, down, label, color=text_color, fontsize=fontsize, ha="center", va="center", bbox=box)


def _part(mask: Any) -> Any:
    inside = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask).astype(bool)
    if inside.ndim != 2:
        raise ArgumentError(f"mask must be one part of a picture [H, W], got {inside.shape}")
    return inside

"""Attributions of pictures."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ...engine.checks import ArgumentError
from ...plot import bar_beneath, draw_image, draw_values, new_figure, show_figures
from .shades import VisualizeSign, named, numbers, shaded

Picture = NDArray[Any] | Tensor


class ImageVisualizationMethod(Enum):
    """How attributions of a picture are shown."""

    heat_map = 1
    blended_heat_map = 2
    original_image = 3
    masked_image = 4
    alpha_scaling = 5


def visualize_image_attr(
    attr: Picture | None,
    original_image: Picture | None = None,
    method: str | ImageVisualizationMethod = "heat_map",
    sign: str | VisualizeSign = "absolute_value",
    plt_fig_axis: tuple[Figure, Axes] | None = None,
    outlier_perc: float | None = 2,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.5,
    show_colorbar: bool | None = None,
    title: str | None = None,
    fig_size: tuple[float, float] = (6, 6),
    use_pyplot: bool = False,
) -> tuple[Figure, Axes]:
    """One picture's attributions: their sum over the channels, in colours or as a veil over the picture.

    A **tensor** has its channels first, as in PyTorch, an **array** last, as in Captum: [C, H, W] or [H, W, C]; [H, W]
    has none, and a batch of one picture is that picture.

    Args:
        attr: attributions; None with ``"original_image"``.
        original_image: from 0 to 1, or from 0 to 255 if it reaches 2; one that has negative values is shown from its
            least to its largest. Of one channel or three; of any other number the mean is shown.
        method: ``"heat_map"``; ``"blended_heat_map"``, over the picture in grey; ``"original_image"`` alone;
            ``"masked_image"``, darker where attributions are small; ``"alpha_scaling"``, more transparent there.
        sign: ``"positive"``, ``"negative"``, ``"absolute_value"`` or ``"all"``, which the last two methods do not show.
        plt_fig_axis: where to draw; a new figure, if there is none.
        outlier_perc: attributions are shares of a size, and this percentage of their sum lies beyond and is cut off;
            None: no shares, attributions as they are.
        cmap: another scale of colours. The common one is red for what adds, blue for what takes away and purple for
            sizes, which people who see colours differently can tell apart.
        alpha_overlay: how far a heat map covers the picture.
        show_colorbar: the scale beneath, with what it says; None: in a new figure.
        title: above.
        fig_size: of a new figure, in inches.
        use_pyplot: make the figure by pyplot, which keeps it, and show it.

    Returns:
        Figure and axes.

    Raises:
        ValueError: shapes do not fit, an argument is missing, or values are not finite.

    >>> figure, axes = visualize_image_attr(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), sign="all", outlier_perc=0)
    >>> axes.images[0].get_array().tolist()
    [[0.0, 1.0], [-0.5, 0.0]]
    >>> axes.child_axes[0].get_xlabel()
    'attribution / 2\\nred adds,\\nblue takes away'
    """
    how, of = named(ImageVisualizationMethod, "method", method), named(VisualizeSign, "sign", sign)
    image: Any = None
    shades = None
    if how is not ImageVisualizationMethod.heat_map:
        if original_image is None:
            raise ArgumentError(f"original_image is None: {how.name} shows it; only heat_map does without")
        image = _shown(_channels_first("original_image", original_image))
    if how is not ImageVisualizationMethod.original_image:
        if attr is None:
            raise ArgumentError(f"attr is None: {how.name} shows it; only original_image does without")
        summed = _channels_first("attr", attr).sum(0, dtype=np.float64)
        if image is not None and summed.shape != image.shape[1:]:
            raise ArgumentError(
                f"attr {summed.shape} and original_image {tuple(image.shape[1:])} must have the same height and width; "
                "LayerAttribution.interpolate stretches a layer's; a tensor has its channels first, an array last"
            )
        shades = shaded(summed, of, outlier_perc, cmap)
    veil = how in (ImageVisualizationMethod.masked_image, ImageVisualizationMethod.alpha_scaling)
    if veil and of is VisualizeSign.all:
        raise ArgumentError(f"{how.name} shows one sign: sign must be positive, negative or absolute_value, got all")

    figure, axes = new_figure(fig_size, use_pyplot) if plt_fig_axis is None else plt_fig_axis
    axes = axes[0] if isinstance(axes, list) else axes
    heat = None
    if shades is None:
        draw_image(axes, image, (0, 1))
    elif how is ImageVisualizationMethod.masked_image:
        draw_image(axes, image * torch.from_numpy(shades.shares), (0, 1))
    elif how is ImageVisualizationMethod.alpha_scaling:
        draw_image(axes, image, (0, 1), alpha=shades.shares)
    else:
        blended = how is ImageVisualizationMethod.blended_heat_map
        if blended:
            draw_image(axes, image.mean(0, keepdim=True), (0, 1))
        alpha = alpha_overlay if blended else 1.0
        heat = draw_values(axes, torch.from_numpy(shades.values), shades.low, shades.high, shades.cmap, alpha)
    if heat is not None and shades is not None and (plt_fig_axis is None if show_colorbar is None else show_colorbar):
        bar_beneath(axes, heat, shades.label)
    if title:
        axes.set_title(title, fontsize=10)
    if use_pyplot:
        show_figures()
    return figure, axes


def visualize_image_attr_multiple(
    attr: Picture | None,
    original_image: Picture | None,
    methods: Sequence[str | ImageVisualizationMethod],
    signs: Sequence[str | VisualizeSign],
    titles: Sequence[str] | None = None,
    fig_size: tuple[float, float] = (8, 6),
    use_pyplot: bool = False,
    **kwargs: Any,
) -> tuple[Figure, Axes | list[Axes]]:
    """One picture's attributions in several ways, side by side.

    Args:
        attr, original_image, fig_size, use_pyplot: as in :func:`visualize_image_attr`.
        methods, signs, titles: one for each picture.
        kwargs: what else :func:`visualize_image_attr` takes, for all of them.

    Returns:
        Figure and a list of axes; of one method, its axes.

    Raises:
        ValueError: numbers of methods, signs and titles differ, or as in :func:`visualize_image_attr`.

    >>> image, attr = torch.rand(3, 8, 8), torch.randn(3, 8, 8)
    >>> figure, axes = visualize_image_attr_multiple(attr, image, ["original_image", "heat_map"], ["all", "all"])
    >>> len(axes)
    2
    """
    if not len(methods) == len(signs) == len(methods if titles is None else titles) > 0:
        told = "" if titles is None else f" and {len(titles)} titles"
        raise ArgumentError(f"methods need a sign each, and a title if any: {len(methods)}, {len(signs)} signs{told}")
    figure, grid = new_figure(fig_size, use_pyplot, ncols=len(methods), squeeze=False)
    options = {"show_colorbar": True, **kwargs}
    for axes, how, of, title in zip(grid[0], methods, signs, titles or [""] * len(methods), strict=True):
        visualize_image_attr(attr, original_image, how, of, (figure, axes), title=title, **options)
    if use_pyplot:
        show_figures()
    return figure, grid[0, 0] if len(methods) == 1 else grid[0].tolist()


def _channels_first(name: str, picture: Any) -> NDArray[Any]:
    """One picture as [C, H, W]."""
    array = numbers(name, picture)
    shape = tuple(array.shape)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        hint = f"; draw one of the batch: {name}[0]" if array.ndim == 4 else ""
        raise ArgumentError(
            f"{name} must be one picture: a tensor [C, H, W], an array [H, W, C], or [H, W]; got {shape}{hint}"
        )
    if array.ndim == 2:
        return array[None]
    return array if isinstance(picture, Tensor) else np.moveaxis(array, -1, 0)


def _shown(image: NDArray[Any]) -> Tensor:
    """A picture [C, H, W] from 0 to 1."""
    if len(image) == 4:
        raise ArgumentError("original_image has four channels: leave its transparency out, image[:3] or image[..., :3]")
    low, high = float(image.min()), float(image.max())
    if low >= 0:
        low, high = 0.0, 1.0 if high < 2 else 255.0  # noise may lead a little beyond 1
    return torch.from_numpy((image.astype(np.float64) - low) / (high - low or 1.0))

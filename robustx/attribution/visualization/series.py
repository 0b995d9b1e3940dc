"""Attributions of time series."""

from collections.abc import Sequence
from enum import Enum
from typing import Any
from warnings import warn

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ...engine.checks import ArgumentError
from ...plot import bar_beneath, new_figure, show_figures
from .shades import Numbers, VisualizeSign, named, numbers, shaded

Series = NDArray[Any] | Tensor


class TimeseriesVisualizationMethod(Enum):
    """How attributions of a time series are shown."""

    overlay_individual = 1
    overlay_combined = 2
    colored_graph = 3


def visualize_timeseries_attr(
    attr: Series,
    data: Series,
    x_values: Any = None,
    method: str | TimeseriesVisualizationMethod = "overlay_individual",
    sign: str | VisualizeSign = "absolute_value",
    channel_labels: Sequence[str] | None = None,
    channels_last: bool = True,
    plt_fig_axis: tuple[Figure, Any] | None = None,
    outlier_perc: float | None = 2,
    cmap: str | Colormap | None = None,
    alpha_overlay: float = 0.7,
    show_colorbar: bool | None = None,
    title: str | None = None,
    fig_size: tuple[float, float] = (6, 6),
    use_pyplot: bool = False,
    **pyplot_kwargs: Any,
) -> tuple[Figure, Any]:
    """One time series and its attributions, point by point.

    Args:
        attr: attributions [N, C] of N points in C channels.
        data: the series [N, C].
        x_values: where its points are [N], in ascending order; None: 0, 1, 2, ...
        method: ``"overlay_individual"``, colours behind each channel; ``"overlay_combined"``, all channels in one, with
            the sum of their attributions; ``"colored_graph"``, coloured lines.
        sign: as in :func:`visualize_image_attr`, as are ``outlier_perc``, ``cmap``, ``show_colorbar``, ``title``,
            ``fig_size`` and ``use_pyplot``.
        channel_labels: names of the channels.
        channels_last: False: ``attr`` and ``data`` are [C, N].
        plt_fig_axis: where to draw: a figure and as many axes as there are channels, or one.
        alpha_overlay: how dense the colours behind the lines are.
        pyplot_kwargs: of the lines, such as ``linewidth=2``.

    Returns:
        Figure and an array of axes; of one, these axes.

    Raises:
        ValueError: shapes do not fit, or values are not finite.

    >>> data = np.sin(np.linspace(0, 6, 40))[:, None]
    >>> figure, axes = visualize_timeseries_attr(data**2, data, channel_labels=["height"])
    >>> axes.get_ylabel()
    'height'
    """
    how = named(TimeseriesVisualizationMethod, "method", method)
    of = named(VisualizeSign, "sign", sign)
    values, lines = _channels("attr", attr, channels_last), _channels("data", data, channels_last)
    if values.shape != lines.shape:
        raise ArgumentError(f"attr and data must be of one shape, got {np.shape(attr)} and {np.shape(data)}")
    channels, points = lines.shape
    if channels > points:
        warn(f"there are more channels, {channels}, than points, {points}: is channels_last right?", stacklevel=2)
    x = np.arange(points, dtype=np.float64) if x_values is None else numbers("x_values", x_values).astype(np.float64)
    if x.shape != (points,) or bool((np.diff(x) <= 0).any()):
        raise ArgumentError(f"x_values must be {points} numbers in ascending order, got {x.shape}; sort the points")
    names: Sequence[str | None] = channel_labels if channel_labels is not None else [None] * channels
    if len(names) != channels:
        raise ArgumentError(f"channel_labels must name {channels} channels, got {len(names)}")
    together = how is TimeseriesVisualizationMethod.overlay_combined
    panels = 1 if together else channels
    shades = shaded(values.sum(0, keepdims=True) if together else values, of, outlier_perc, cmap)

    if plt_fig_axis is None:
        figure, given = new_figure(fig_size, use_pyplot, nrows=panels, sharex=True)
    else:
        figure, given = plt_fig_axis
    axes: list[Axes] = np.atleast_1d(np.asarray(given, dtype=object)).ravel().tolist()
    if len(axes) != panels:
        raise ArgumentError(f"plt_fig_axis must have {panels} axes for this method, got {len(axes)}")

    scale = Normalize(shades.low, shades.high)
    colours = ScalarMappable(scale, shades.cmap)
    middles = (x[1:] + x[:-1]) / 2
    reach = np.diff(x)[[0, -1]] / 2 if points > 1 else np.array([0.5, 0.5])
    edges = np.concatenate([[x[0] - reach[0]], middles, [x[-1] + reach[1]]])
    if together:
        axes[0].set_prop_cycle(color=colormaps["Dark2"].colors)  # type: ignore[attr-defined]  # a list has colours
    for i, line in enumerate(lines):
        one = axes[0 if together else i]
        if how is TimeseriesVisualizationMethod.colored_graph:
            _coloured(one, x, line, shades.values[i], colours, pyplot_kwargs)
        else:
            one.plot(x, line, label=names[i], **({} if together else {"color": "0.2"}) | pyplot_kwargs)
        if not together and names[i] is not None:
            one.set_ylabel(str(names[i]))
    if how is not TimeseriesVisualizationMethod.colored_graph:
        for one, row in zip(axes, shades.values, strict=True):
            limits = one.get_ylim()  # of the lines alone
            one.pcolormesh(
                edges,
                [0, 1],
                row[None],
                norm=scale,
                cmap=colours.cmap,
                alpha=alpha_overlay,
                zorder=0,
                transform=one.get_xaxis_transform(),
            )
            one.set_ylim(limits)
    if together and channel_labels is not None:
        axes[0].legend(loc="best", fontsize=9)
    for one in axes:
        one.set_xlim(edges[0], edges[-1])
        one.set_facecolor("white")  # what is pale is near zero, also in a dark style
    if plt_fig_axis is None if show_colorbar is None else show_colorbar:
        alpha = None if how is TimeseriesVisualizationMethod.colored_graph else alpha_overlay
        bar_beneath(axes[-1], colours, shades.label, gap=0.35, alpha=alpha)
    if title:
        axes[0].set_title(title, fontsize=10)
    if use_pyplot:
        show_figures()
    return figure, given


def _channels(name: str, series: Any, last: bool) -> NDArray[Any]:
    """A series as [C, N]."""
    array = numbers(name, series).astype(np.float64)
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2:
        hint = f"; draw one of the batch: {name}[0]" if array.ndim == 3 else ""
        raise ArgumentError(f"{name} must be one series {'[N, C]' if last else '[C, N]'}, got {array.shape}{hint}")
    return array.T if last else array


def _coloured(
    axes: Axes, x: Numbers, y: Numbers, values: Numbers, colours: ScalarMappable, options: dict[str, Any]
) -> None:
    """A line whose colour changes half-way between points, over a grey one, which is there where colours are pale."""
    points = np.stack([x, y], 1)  # [N, 2]
    middles = (points[1:] + points[:-1]) / 2
    parts = np.stack([np.concatenate([points[:1], middles]), points, np.concatenate([middles, points[-1:]])], 1)
    width = options.get("linewidth", options.get("linewidths", 2.5))
    axes.plot(x, y, color="0.6", linewidth=width + 1.2, zorder=1)
    line = LineCollection(
        list(parts), **{"linewidths": width, "capstyle": "butt"} | options, norm=colours.norm, cmap=colours.cmap
    )
    line.set_array(values)
    axes.add_collection(line)

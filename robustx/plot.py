"""Pictures of images, changes and attributions, drawn without pyplot and so without any global state."""

from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from torch import Tensor
from torch.nn.functional import pad

Bounds = tuple[float | Tensor, float | Tensor]

MOST = 30  # samples on one sheet
ACROSS = 10
TIGHT: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}  # how figures are saved
BENEATH: dict[str, Any] = {"location": "bottom", "shrink": 0.9, "aspect": 12, "format": "%.2g", "panchor": False}
SIGNED = "RdBu_r"  # red adds, blue takes away, white is nothing
ADDS = ListedColormap(colormaps[SIGNED](np.linspace(0.5, 1, 256)), "adds")  # its halves, away from white
TAKES = ListedColormap(colormaps[SIGNED](np.linspace(0.5, 0, 256)), "takes")
SIZES = "Purples"  # neither red nor blue: nothing is said of the sign
RED, BLUE = "#b2182b", "#2166ac"
WIDE = 40  # characters in a line of a label


def contact_sheet(
    before: Tensor, after: Tensor, captions: Sequence[str], found: Sequence[bool], bounds: Bounds, title: str
) -> Figure:
    """Images [N, C, H, W] as they were, as they are and what changed, one sample a column; at most 30."""
    n = min(len(before), MOST)
    across, bands = min(n, ACROSS), ceil(n / ACROSS)
    figure = Figure(figsize=(1.8 + 1.0 * across, 0.6 + bands * 3.6), dpi=110, layout="constrained")
    heights = [1, 1, 1, 0.15] * bands  # a gap after each band
    grid = figure.subplots(len(heights), across, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    change = (after - before)[:n]
    most = float(change.abs().max()) or 1.0
    shown: Any = None
    for i in range(n):
        column = grid[i // ACROSS * 4 : i // ACROSS * 4 + 3, i % ACROSS]
        column[0].set_title(captions[i], fontsize=9, color=RED if found[i] else "0.45")
        draw_image(column[0], before[i], bounds)
        draw_image(column[1], after[i], bounds)
        shown = draw_signed(column[2], change[i].mean(0), most)
    for band in range(bands):
        for k, word in enumerate(("before", "after", "change")):
            axes = grid[band * 4 + k, 0]
            axes.text(-0.12, 0.5, word, rotation=90, ha="right", va="center", fontsize=9, transform=axes.transAxes)
    if shown is not None:
        figure.colorbar(shown, ax=grid, shrink=0.6 / bands, aspect=20, anchor=(0, 1), label="change, in input units")
    figure.suptitle(title, fontsize=11)
    return figure


def attribution_maps(
    images: Tensor,
    maps: Mapping[str, Tensor],
    bounds: Bounds,
    title: str,
    label: str,
    names: Sequence[str] = (),
    one_scale: bool = True,
) -> Figure:
    """Images [N, C, H, W], one a row and named by ``names``, beside their attributions [N, h, w], one method a column.

    With ``one_scale`` all maps can be compared with one another; else each column has a scale of its own, for methods
    whose numbers are of different kinds. White is zero on every scale.
    """
    n = len(images)
    figure = Figure(
        figsize=(1.4 + 1.2 * (1 + len(maps)), 0.8 + 1.25 * n + 0.6 * (not one_scale)), dpi=110, layout="compressed"
    )
    grid = figure.subplots(n, 1 + len(maps), squeeze=False)
    strongest = {name: float(a.abs().max()) for name, a in maps.items()}
    if one_scale:
        strongest = dict.fromkeys(maps, max(strongest.values()))
    for i, image in enumerate(images):
        draw_image(grid[i, 0], image, bounds)
        if names:
            beside = grid[i, 0].transAxes
            grid[i, 0].text(-0.08, 0.5, names[i], ha="right", va="center", fontsize=9, transform=beside)
    grid[0, 0].set_title("input", fontsize=9)
    for column, (name, a) in zip(grid.T[1:], maps.items(), strict=True):
        most = strongest[name] or 1.0
        for axes, values in zip(column, a, strict=True):
            shown = draw_signed(axes, values, most)
        column[0].set_title(name, fontsize=9)
        if not one_scale:
            bar = figure.colorbar(shown, ax=list(column), **BENEATH)
            bar.set_ticks([-most, 0, most])
            bar.ax.tick_params(labelsize=8)
    if one_scale:
        bar = figure.colorbar(shown, ax=grid, shrink=0.9, aspect=12 * n, label=label)
        bar.ax.tick_params(labelsize=8)
    else:
        figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def image_attribution(
    x: Tensor, a: Tensor, bounds: Bounds, title: str, label: str, mask: Tensor | None = None
) -> Figure:
    """An image [C, H, W], its attribution [H, W], and one laid over the other; `mask` draws its outlines."""
    figure = Figure(figsize=(9.2, 3.4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    most = float(a.abs().max()) or 1.0
    draw_image(left, x, bounds)
    left.set_title("input", fontsize=10)
    shown = draw_signed(middle, a, most)
    middle.set_title("attribution", fontsize=10)
    draw_image(right, x.mean(0, keepdim=True), bounds, alpha=0.35)
    draw_signed(right, a, most, alpha=0.7)
    right.set_title("both", fontsize=10)
    if mask is not None:
        for axes in (left, middle, right):
            draw_outlines(axes, mask[0, 0])
    figure.colorbar(shown, ax=[middle, right], shrink=0.8, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def image_counterfactual(
    before: Tensor, after: Tensor, shares: Tensor, outlines: Tensor, bounds: Bounds, titles: Sequence[str]
) -> Figure:
    """:func:`image_counterfactuals` of a single image [C, H, W]; `titles`: of all, before and after."""
    title, *captions = titles
    return image_counterfactuals(before[None], after[None], shares[None], outlines[None], bounds, title, [captions])


def image_counterfactuals(
    before: Tensor,
    after: Tensor,
    shares: Tensor,
    regions: Tensor,
    bounds: Bounds,
    title: str,
    captions: Sequence[Sequence[str]],
    names: Sequence[str] = (),
    label: str = "margin won, in logits",
) -> Figure:
    """Images [N, C, H, W] before and after, what changed, and what each region did; one a row, named by ``names``.

    Args:
        shares: what the region around each pixel did [N, H, W].
        regions: which region each pixel belongs to [N, H, W]; those that changed are outlined.
        captions: for each image what is said of it before and after: the classes and their scores, in words.
        label: what the shares are counted in.
    """
    n = len(before)
    figure = Figure(figsize=(12 if n == 1 else 9.6, 0.6 + (2.6 if n == 1 else 2.1) * n), dpi=110, layout="constrained")
    grid = figure.subplots(n, 4, squeeze=False)
    change = (after - before).mean(1)
    most = [float(t.abs().max()) or 1.0 for t in (change, shares)]
    shown: list[Any] = [None, None]
    for i, axes in enumerate(grid):
        changed = [k for k in regions[i].unique().tolist() if bool((after[i] != before[i])[:, regions[i] == k].any())]
        outlines = torch.where(torch.isin(regions[i], regions.new_tensor(changed)), regions[i], -1)
        for one, picture, caption in zip(axes, (before[i], after[i]), captions[i], strict=False):
            draw_image(one, picture, bounds)
            draw_outlines(one, outlines, colour="#f5a300", width=1.8)
            one.set_title(caption, fontsize=9)
        shown = [draw_signed(one, v[i], top) for one, v, top in zip(axes[2:], (change, shares), most, strict=True)]
        for one in axes[2:]:
            draw_outlines(one, outlines, colour="0.25", width=1.2)
        if names:
            axes[0].text(-0.08, 0.5, names[i], ha="right", va="center", fontsize=9, transform=axes[0].transAxes)
    for column, mappable, word, unit in zip(
        grid.T[2:], shown, ("change", "what each region did"), ("input units", label), strict=True
    ):
        figure.colorbar(mappable, ax=list(column), shrink=0.75 if n == 1 else 0.5, aspect=20, label=unit)
        column[0].set_title(word, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def ranked_bars(names: Sequence[str], values: Sequence[float], title: str, label: str) -> Figure:
    """Named numbers as horizontal bars, the first on top; red adds, blue takes away."""
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(names)), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = [RED if v > 0 else BLUE for v in values]
    axes.barh(range(len(names)), values, height=0.7, color=colours)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel(label, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11)
    return figure


def waterfall(names: Sequence[str], values: Sequence[float], start: float, title: str, label: str) -> Figure:
    """From a number below zero to one above it, step by step: the first one on top, each from where the last one ended.

    Args:
        names: of the steps; long ones are wrapped.
        values: what each adds; red adds, blue takes away.
        start: where it begins.
        label: what is counted.
    """
    told = ["before", *map(_wrapped, names), "after"]
    lines = [t.count("\n") + 1 for t in told]
    middles = np.cumsum([0.5 * (a + b) + 0.9 for a, b in zip([0, *lines], [*lines, 0], strict=True)])[: len(lines)]
    figure = Figure(figsize=(8, 1.5 + 0.155 * float(middles[-1])), dpi=110, layout="constrained")
    axes = figure.subplots()
    ends = start + np.concatenate([[0.0], np.cumsum(values)])
    spread = float(max(ends.max(), 0) - min(ends.min(), 0)) or 1.0
    bars = [(start, 0.0), *zip(values, ends[:-1], strict=True), (float(ends[-1]), 0.0)]
    for i, (width, left) in enumerate(bars):
        step = 0 < i <= len(values)
        colour = (RED if width > 0 else BLUE) if step else "0.6"
        axes.barh(middles[i], width, left=left, height=1.1, color=colour)
        right = width > 0 or (width == 0 and left >= 0)
        shown = f"{width:+.3g}" if step else f"{width:.3g}"
        place = (left + width + (0.012 if right else -0.012) * spread, middles[i])
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the line at zero may pass there
        axes.text(*place, shown, ha="left" if right else "right", va="center", fontsize=9, color="0.1", bbox=behind)
        if i < len(bars) - 1:
            end = left + width
            axes.plot([end, end], [middles[i] + 0.55, middles[i + 1] - 0.55], color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.2", linewidth=1.0, zorder=0)
    axes.set_xlim(min(ends.min(), 0) - 0.13 * spread, max(ends.max(), 0) + 0.13 * spread)
    axes.set_ylim(float(middles[-1]) + 1.1, float(middles[0]) - 1.1)
    axes.set_yticks(middles, told, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(_wrapped(title, 80), fontsize=11)
    return figure


def words_table(
    blocks: Sequence[Sequence[Sequence[str]]], heads: Sequence[str], title: str, notes: Sequence[str]
) -> Figure:
    """Cells of words in columns, in blocks of rows with a note beneath each; the last column holds signed numbers."""
    blocks = [[[_wrapped(cell) for cell in row] for row in block] for block in blocks]
    columns = zip(*(heads, *(row for block in blocks for row in block)), strict=True)
    widths = np.array([max(map(_inches, column)) + 0.3 for column in columns])
    widths[-2] += max(0.0, 5.0 - float(widths.sum()))
    edges = 0.2 + np.concatenate([[0.0], np.cumsum(widths)])
    width = float(edges[-1]) + 0.1
    rows: list[tuple[Sequence[str], str]] = [(heads, "head")]
    for block, note in zip(blocks, notes, strict=True):
        rows += [*((row, "row") for row in block), ([_wrapped(note, int(13 * width))], "note")]
    heights = [0.1 + 0.15 * max(cell.count("\n") + 1 for cell in row) for row, _ in rows]
    title = _wrapped(title, int(11 * width))
    above = 0.25 + 0.2 * (1 + title.count("\n"))
    height = above + sum(heights) + 0.1
    figure = Figure(figsize=(width, height), dpi=110)
    y = height - above
    for (row, kind), tall in zip(rows, heights, strict=True):
        colour, style = {"head": ("0.4", "normal"), "row": ("0.1", "normal"), "note": ("0.35", "italic")}[kind]
        for j, cell in enumerate(row):
            last = j == len(heads) - 1
            x, align = (edges[-1] - 0.1, "right") if last else (edges[j], "left")
            if last and kind == "row":
                colour = BLUE if cell.startswith("-") else RED
            place = (x / width, (y - tall / 2) / height)
            figure.text(*place, cell, ha=align, va="center", fontsize=9, color=colour, style=style)
        y -= tall
        if kind != "row":
            line = ([0.2 / width, 1 - 0.2 / width], [y / height] * 2)
            figure.add_artist(Line2D(*line, color="0.6" if kind == "head" else "0.85", linewidth=0.8))
    figure.suptitle(title, fontsize=11, x=0.2 / width, ha="left", y=1 - 0.12 / height, va="top")
    return figure


def ways(straight: Sequence[float], walk: Sequence[float], names: Sequence[str], title: str, label: str) -> Figure:
    """How a number moves along the straight way to a point, and along a walk of single steps to the same point.

    Args:
        straight: at equal distances from the beginning to the end; none, where there is nothing between.
        walk: before the first step and behind each, from above downwards.
        names: of the steps; long ones are wrapped.
        label: what is shown.
    """
    told = ["before", *(_wrapped(f"+ {n}") for n in names)]
    figure = Figure(figsize=(8, 1.7 + 0.34 * len(told)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.2", linewidth=1.0)
    if len(straight):
        at = np.linspace(0, len(names), len(straight))
        axes.plot(straight, at, color="0.45", linewidth=1.6, label="all together, straight")
    axes.plot(walk, range(len(walk)), color=RED, marker="o", markersize=4, linewidth=1.2, label="one after the other")
    axes.set_yticks(range(len(told)), told, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(_wrapped(title, 80), fontsize=11)
    return figure


def front(points: Mapping[str, Sequence[tuple[float, float]]], title: str, across: str, label: str) -> Figure:
    """Pairs of numbers of which both should be small, one colour for each name; those that nothing beats are joined."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, pairs in points.items():
        told = sorted(pairs)
        best = [p for i, p in enumerate(told) if all(p[1] < q[1] for q in told[:i])]
        (line,) = axes.plot(*zip(*best, strict=True), drawstyle="steps-post", linewidth=1.2, label=name)
        axes.plot(*zip(*told, strict=True), "o", color=line.get_color(), markersize=5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if len(points) > 1:
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(_wrapped(title, 80), fontsize=11)
    return figure


def means(
    names: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    half: Sequence[Sequence[float]],
    title: str,
) -> Figure:
    """Means with their intervals, a row for each name and a panel for each column.

    Args:
        names: of the rows, the first on top.
        columns: titles of the panels.
        values: for each row one in each panel.
        half: how far the intervals reach to each side, likewise; none is drawn where that is not finite.
    """
    figure = Figure(figsize=(2.4 + 1.9 * len(columns), 1.2 + 0.32 * len(names)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for k, (axes, word) in enumerate(zip(panels, columns, strict=True)):
        for i, (v, h) in enumerate(zip(values, half, strict=True)):
            axes.errorbar(v[k], i, xerr=h[k] if np.isfinite(h[k]) else None, fmt="o", color=BLUE, markersize=4)
        axes.set_title(word, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(_wrapped(title, 80), fontsize=11)
    return figure


def curves(
    across: Sequence[float], heights: Mapping[str, Sequence[float]], title: str, along: str, label: str
) -> Figure:
    """Curves over the same points, a colour and a dash for each name."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(heights.items()):
        axes.plot(across, values, linewidth=1.4, linestyle=("-", "--", ":", "-.")[i % 4], label=name)
    axes.set_xlabel(along, fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(_wrapped(title, 80), fontsize=11)
    return figure


def _wrapped(text: str, width: int = WIDE) -> str:
    return "\n".join(wrap(text, width)) or text


def _inches(text: str) -> float:
    """How wide a cell is; its longest line."""
    paths = [TextPath((0, 0), line, size=9) for line in text.split("\n") if line.strip()]
    return max([0.0, *(float(p.get_extents().width) / 72 for p in paths)])


def new_figure(size: tuple[float, float], pyplot: bool = False, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, known to pyplot, and so kept until it is closed, only if asked."""
    if pyplot:
        from matplotlib import pyplot as shared

        figure = shared.figure(figsize=size, layout="constrained")
    else:
        figure = Figure(figsize=size, dpi=110, layout="constrained")
    return figure, figure.subplots(subplot_kw={"anchor": "S"}, **subplots)  # so that room beneath is seen


def show_figures() -> None:
    """Shows pyplot's figures, as :func:`new_figure` makes them if asked."""
    from matplotlib import pyplot as shared

    shared.show()


def draw_image(axes: Axes, image: Tensor, bounds: Bounds, alpha: Any = 1.0) -> None:
    """One image [C, H, W]: colours for three channels, else the mean as grey (ink dark on light).

    ``alpha``: how far it covers what is beneath, one number or [H, W].
    """
    low, high = (b.mean().item() if isinstance(b, Tensor) else float(b) for b in bounds)
    if not np.isfinite(high - low) or high <= low:
        low, high = float(image.min()), float(image.max())
    shown = ((image.detach().float().cpu() - low) / (high - low or 1)).clamp(0, 1)
    if len(shown) == 3:
        axes.imshow(shown.permute(1, 2, 0).numpy(), alpha=alpha, interpolation="nearest")
    else:
        axes.imshow(shown.mean(0).numpy(), cmap="gray", vmin=0, vmax=1, alpha=alpha, interpolation="nearest")
    axes.set_axis_off()


def draw_signed(axes: Axes, values: Tensor, most: float, alpha: float = 1.0) -> Any:
    """Signed values [H, W] on a scale that is white at 0."""
    return draw_values(axes, values, -most, most, SIGNED, alpha)


def draw_values(
    axes: Axes, values: Tensor, low: float, high: float, cmap: str | Colormap, alpha: float = 1.0
) -> AxesImage:
    """Values [H, W] in colours, from those of ``low`` to those of ``high``."""
    shown = axes.imshow(
        values.detach().float().cpu().numpy(), cmap=cmap, vmin=low, vmax=high, alpha=alpha, interpolation="nearest"
    )
    axes.set_axis_off()
    return shown


def bar_beneath(axes: Axes, shown: ScalarMappable, label: str, gap: float = 0.08, **options: Any) -> None:
    """The scale of what is shown, as wide as its picture, and so many inches beneath it, whose size it leaves."""
    corner = ScaledTranslation(0, 0, axes.transAxes)  # type: ignore[arg-type]  # any transform will do
    inches = axes.figure.dpi_scale_trans + corner
    beneath = blended_transform_factory(axes.transAxes, inches)
    place = axes.inset_axes((0, -gap - 0.12, 1, 0.12), transform=beneath, facecolor="white")
    low, high = shown.get_clim()
    bar = axes.figure.colorbar(shown, cax=place, orientation="horizontal", format="{x:.3g}", **options)
    bar.set_ticks([low, (low + high) / 2, high])
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)


def draw_outlines(axes: Axes, labels: Tensor, colour: str = "0.55", width: float = 0.7) -> None:
    """The borders between regions of equal labels [H, W], also at the edge unless the label there is -1."""
    labels = pad(labels.detach().cpu(), (1, 1, 1, 1), value=-1)
    below, beside = torch.nonzero(labels[1:] != labels[:-1]), torch.nonzero(labels[:, 1:] != labels[:, :-1])
    lines = [((c - 1.5, r - 0.5), (c - 0.5, r - 0.5)) for r, c in below.tolist()]
    lines += [((c - 0.5, r - 1.5), (c - 0.5, r - 0.5)) for r, c in beside.tolist()]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="projecting"), autolim=False)

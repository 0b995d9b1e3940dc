"""Pictures of images, changes and attributions, drawn without pyplot and so without any global state."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

Bounds = tuple[float | Tensor, float | Tensor]

MOST = 30  # samples on one sheet
ACROSS = 10
TIGHT: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}  # how figures are saved
BENEATH: dict[str, Any] = {"location": "bottom", "shrink": 0.9, "aspect": 12, "format": "%.2g", "panchor": False}
SIGNED = "RdBu_r"  # red adds, blue takes away, white is nothing


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
        column[0].set_title(captions[i], fontsize=9, color="#b2182b" if found[i] else "0.45")
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
    colours = ["#b2182b" if v > 0 else "#2166ac" for v in values]
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


def draw_image(axes: Axes, image: Tensor, bounds: Bounds, alpha: float = 1.0) -> None:
    """One image [C, H, W]: colours for three channels, else the mean as grey (ink dark on light)."""
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
    shown = axes.imshow(
        values.detach().float().cpu().numpy(), cmap=SIGNED, vmin=-most, vmax=most, alpha=alpha, interpolation="nearest"
    )
    axes.set_axis_off()
    return shown


def draw_outlines(axes: Axes, labels: Tensor, colour: str = "0.55", width: float = 0.7) -> None:
    """The borders between regions of equal labels [H, W], also at the edge unless the label there is -1."""
    labels = pad(labels.detach().cpu(), (1, 1, 1, 1), value=-1)
    below, beside = torch.nonzero(labels[1:] != labels[:-1]), torch.nonzero(labels[:, 1:] != labels[:, :-1])
    lines = [((c - 1.5, r - 0.5), (c - 0.5, r - 0.5)) for r, c in below.tolist()]
    lines += [((c - 0.5, r - 1.5), (c - 0.5, r - 0.5)) for r, c in beside.tolist()]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="projecting"), autolim=False)

"""Figures of the report: matplotlib makes SVG, which takes its colours from the page around it.

Colours are written as placeholders and then replaced by CSS variables, so that one picture serves light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.statistics import CONFIDENCE, Outcome, curve, steps
from . import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{c: f"series-{i}" for i, c in enumerate(SERIES)}}

MARKS = ("o", "s", "^", "D", "v", "P")  # the page's keys show the same: SIGNS
SIGNS = (("●", "○"), ("■", "□"), ("▲", "△"), ("◆", "◇"), ("▼", "▽"), ("✚", "✛"))
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3)), (0, (3, 3)))

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustx",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def security_curves(
    outcomes: Sequence[Outcome], eps: Sequence[float], axis: str, certified: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """Accuracy against budget, all models in one picture, as SVG.

    A curve steps down at every smallest distance that was found, inside the band that holds for all of it at once;
    marks stand at the budgets of the run. Below it, what is ``certified`` (by model, as a run's summary has it): the
    truth lies between the two.
    """
    import matplotlib

    told = []
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _figure(4.2, 2.9, 1)
        for k, o in enumerate(outcomes):
            colour, shares, s = SERIES[k % len(SERIES)], curve(o, eps), steps(o)
            x = np.array([*s.eps, max(eps[-1], s.eps[-1])])
            y, low, high = (100 * np.array([*v, v[-1]]) for v in (s.value, s.band_low, s.band_high))
            ax.fill_between(x, low, high, step="post", color=colour, alpha=0.13, linewidth=0)
            ax.step(x, y, where="post", color=colour, linewidth=1.6, linestyle=DASHES[k % len(DASHES)])
            ax.plot([0, *eps], [100 * s.value for s in shares], MARKS[k % len(MARKS)], markersize=4.5, color=colour)
            told.append(f"{o.model}: {_points([0, *eps], [s.value for s in shares])}")
            for c in certified.get(o.model, ()):
                at, value = [p["eps"] for p in c["accuracy"]], [p["value"] for p in c["accuracy"]]
                steps_at, left = ([*c["curve"][name], c["curve"][name][-1]] for name in ("eps", "value"))
                steps_at[-1] = max(eps[-1], steps_at[-1])
                dots: dict[str, Any] = {"linestyle": (0, (1, 1.6)), "linewidth": 1.4, "color": colour}
                ax.step(steps_at, [100 * v for v in left], where="post", **dots)
                hollow: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "none", "color": colour}
                ax.plot(at, [100 * v for v in value], MARKS[k % len(MARKS)], **hollow)
                told.append(f"{o.model}, proved by {c['label']}: {_points(at, value)}")
        ax.set(xlabel=axis, ylabel="accuracy, %", ylim=(-2, 102), xlim=(-0.015 * eps[-1], 1.02 * eps[-1]))
        return _svg(figure, f"Accuracy against budget, with a {CONFIDENCE:.0%} band. {'; '.join(told)}.", "curve")


def _points(eps: Sequence[float], values: Sequence[float]) -> str:
    return ", ".join(f"{100 * v:.0f}% at {e:g}" for e, v in zip(eps, values, strict=True))


def distance_histograms(outcomes: Sequence[Outcome], axis: str, cap: float) -> str:
    """How many right answers fall at which smallest distance, one row per model, as SVG."""
    import matplotlib

    found = np.concatenate([o.fallen[o.correct & np.isfinite(o.fallen)] for o in outcomes])
    top = float(found.max()) * 1.02 if len(found) else cap
    whole = len(found) > 0 and bool((found == np.round(found)).all()) and top > 2  # counts of elements, in L0
    edges = np.arange(0.5, top + 1) if whole and top <= 60 else np.linspace(0, top, 37)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 0.7 + 0.95 * len(outcomes), len(outcomes))
        told = []
        for k, (ax, o) in enumerate(zip(axes, outcomes, strict=True)):
            d = o.fallen[o.correct]
            beyond = int(np.isinf(d).sum())
            ax.hist(d[np.isfinite(d)], edges.tolist(), color=SERIES[k % len(SERIES)], alpha=0.8)
            half = float(np.sort(d)[(len(d) + 1) // 2 - 1]) if len(d) else np.nan
            if np.isfinite(half):
                ax.axvline(half, color=INK, linewidth=1.4)
            middle = f"median {half:.3g}" if np.isfinite(half) else "median not reached"
            none = f", none found for {beyond} of {len(d)}" if beyond else ""
            ax.set_title(f"{words.short(o.model)}: {middle}{none}", loc="left", pad=3)
            ax.set(ylabel="samples", xlim=(0, edges[-1]))
            ax.locator_params(axis="y", nbins=3, integer=True)
            told.append(f"{o.model}: {middle}{none}")
        axes[-1].set_xlabel(axis)
        return _svg(figure, f"Histogram of smallest adversarial distances. {'; '.join(told)}.", "distances")


def _figure(width: float, height: float, rows: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure  # no pyplot: it keeps figures, and state, for the whole process

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def _svg(figure: "Figure", alt: str, name: str) -> str:
    """The figure as an SVG element for a page: its colours are the page's, its ids its own, and it has words."""
    from markupsafe import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = re.sub(
        r"font-family:[^;\"]+;?|font: ([\d.]+px)[^;\"]*", lambda m: f"font-size: {m[1]}" if m[1] else "", text
    )
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}" class="figure">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text)

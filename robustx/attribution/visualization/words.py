"""Attributions of texts: as HTML, and in letters for terminals."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from shutil import get_terminal_size
from typing import Any
from unicodedata import bidirectional, category, east_asian_width

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ...engine.checks import ArgumentError
from ...plot import SIGNED
from .shades import numbers

HEADS = ("True Label", "Predicted Label", "Attribution Label", "Attribution Score", "Word Importance")
CELL = "padding: 0.3em 0.8em; text-align: start; vertical-align: top"
MARK = "padding: 0.1em 0.15em; border-radius: 0.2em; white-space: pre-wrap"
TURNS = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # they change the order of what follows


@dataclass(eq=False, slots=True)
class VisualizationDataRecord:
    """A text, its words' attributions, and what a model says of it.

    Args:
        word_attributions: one number for each word, from -1 (takes away) to 1 (adds).
        pred_prob: probability of the predicted class.
        pred_class: the class predicted, or its name.
        true_class: the right one.
        attr_class: the one that is explained.
        attr_score: the sum of the attributions.
        raw_input_ids: the words.
        convergence_score: by how much the attributions miss the score.

    >>> VisualizationDataRecord([0.5, -0.2], 0.9, "good", "good", "good", 0.3, ["very", "bad"], 0.0).pred_class
    'good'
    """

    word_attributions: Any
    pred_prob: float
    pred_class: int | str
    true_class: int | str
    attr_class: int | str
    attr_score: float
    raw_input_ids: Sequence[str]
    convergence_score: float


@dataclass(frozen=True, eq=False)
class MarkedText:
    """Texts with their words' attributions: HTML in a notebook, letters anywhere else.

    >>> record = VisualizationDataRecord([0.5, 0.0], 0.9, 1, 1, 1, 0.5, ["<b>", "bold"], 0.0)
    >>> print(MarkedText((record,)).to_text(colour=False))
    true 1, predicted 1 (0.90), explained 1, score 0.50
    #b(+0.50) bold
    """

    records: tuple[VisualizationDataRecord, ...]
    legend: bool = True

    @property
    def data(self) -> str:
        """A table in HTML, one row for each text."""
        heads = "".join(f'<th scope="col" style="{CELL}">{head}</th>' for head in HEADS)
        return f'{LEGEND if self.legend else ""}<table style="width: 100%"><tr>{heads}</tr>{self._rows()}</table>'

    def _repr_html_(self) -> str:
        return self.data

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, colour: bool | None = None, width: int | None = None) -> str:
        """The texts for a terminal.

        Args:
            colour: colours behind the words, by escape sequences; else the numbers behind them. None: where the output
                is a terminal and NO_COLOR is not set.
            width: of a line, in letters; None: the terminal's.
        """
        if colour is None:
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = get_terminal_size().columns if width is None else width
        blocks = []
        for r in self.records:
            head = (
                f"true {_seen(r.true_class)}, predicted {_seen(r.pred_class)} ({r.pred_prob:.2f}), "
                f"explained {_seen(r.attr_class)}, score {float(r.attr_score):.2f}"
            )
            blocks.append("\n".join([head, *_lines(_pairs(r.raw_input_ids, r.word_attributions), colour, width)]))
        return "\n\n".join(blocks)

    def _rows(self) -> str:
        rows = (
            (
                format_classname(r.true_class),
                format_classname(f"{r.pred_class} ({r.pred_prob:.2f})"),
                format_classname(r.attr_class),
                format_classname(f"{float(r.attr_score):.2f}"),
                format_word_importances(r.raw_input_ids, r.word_attributions),
            )
            for r in self.records
        )
        return "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)


def visualize_text(
    datarecords: Iterable[VisualizationDataRecord], legend: bool = True, *, show: bool = False
) -> MarkedText:
    """Texts with their words' attributions, as a table in a notebook and as lines in a terminal.

    Args:
        datarecords: the texts.
        legend: say what the colours mean.
        show: show it at once: by IPython where it runs, else as lines.

    Returns:
        What a notebook shows as a table and ``print`` in letters; its ``data`` is the HTML.

    >>> record = VisualizationDataRecord([0.9, -0.3, 0.0], 0.8, "good", "good", "good", 0.6, ["a", "fine", "day"], 0.0)
    >>> text = visualize_text([record])
    >>> print(text.to_text(colour=False))
    true good, predicted good (0.80), explained good, score 0.60
    a(+0.90) fine(-0.30) day
    >>> "<table" in text.data
    True
    """
    text = MarkedText(tuple(datarecords), legend)
    if show:
        if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
            import_module("IPython.display").display(text)
        else:
            print(text)
    return text


def format_classname(classname: str | int) -> str:
    """A class as a cell of the table.

    >>> format_classname("a < b").count("a &lt; b")
    1
    """
    return f'<td style="{CELL}"><b>{escape(_seen(classname))}</b></td>'


def format_special_tokens(token: str) -> str:
    """A token such as ``<pad>``, told from a word by a hash.

    >>> format_special_tokens("<pad>"), format_special_tokens("pad")
    ('#pad', 'pad')
    """
    return "#" + token.strip("<>") if token.startswith("<") and token.endswith(">") else token


def format_tooltip(item: str, text: str) -> str:
    """A word that tells more under the pointer.

    >>> format_tooltip("word", "+0.5")
    '<span title="+0.5">word</span>'
    """
    return f'<span title="{escape(text)}">{escape(item)}</span>'


def format_word_importances(words: Sequence[str], importances: Any) -> str:
    """Words as a cell of the table, each in the colour of its attribution; red adds, blue takes away.

    Args:
        words: in the order of reading, also from right to left.
        importances: one number for each, from -1 to 1; those behind the last word are left out.

    Raises:
        ValueError: there are fewer numbers than words, or they are not finite.

    >>> cell = format_word_importances(["good"], [1.0])
    >>> 'title="+1.00"' in cell and "good</mark>" in cell
    True
    """
    pairs = _pairs(words, importances)
    marks = (
        f'<bdi><mark title="{value:+.2f}" style="background-color: {back}; color: {ink}; {MARK}">'
        f"{escape(word)}</mark></bdi>"
        for word, value in pairs
        for back, ink in [_colours(value)]
    )
    return f'<td dir="{_direction(words)}" style="{CELL}; line-height: 1.75">{" ".join(marks)}</td>'


def _pairs(words: Sequence[str], importances: Any) -> list[tuple[str, float]]:
    if importances is None or len(importances) == 0:
        return []
    values = numbers("importances", importances)
    if values.ndim != 1 or len(values) < len(words):
        raise ArgumentError(f"importances must be a number for each of {len(words)} words, got {values.shape}")
    return [(_seen(format_special_tokens(w)), float(v)) for w, v in zip(words, values, strict=False)]


def _seen(word: str | int) -> str:
    """A word as it can be shown: with names for what steers a terminal, or turns the letters around it."""
    return "".join(c.encode("unicode_escape").decode() if category(c) == "Cc" or c in TURNS else c for c in str(word))


def _direction(words: Sequence[str]) -> str:
    """Which way a text runs: that of most of its letters; names of special tokens do not count."""
    letters = [bidirectional(c) for w in words if format_special_tokens(w) == w and not _bracketed(w) for c in w]
    return "rtl" if sum(d in ("R", "AL") for d in letters) > letters.count("L") else "ltr"


def _bracketed(word: str) -> bool:
    return word.startswith("[") and word.endswith("]")


def _colours(value: float) -> tuple[str, str]:
    """The colour behind a word, and one for its letters that can be read on it."""
    back = np.array(colormaps[SIGNED](0.5 + 0.5 * np.clip(value, -1, 1))[:3])
    linear = np.where(back <= 0.04045, back / 12.92, ((back + 0.055) / 1.055) ** 2.4)
    light = float(linear @ [0.2126, 0.7152, 0.0722])
    return to_hex(
        (float(back[0]), float(back[1]), float(back[2]))
    ), "#000000" if light > 0.179 else "#ffffff"  # where both have the same contrast (WCAG 2)


def _lines(pairs: list[tuple[str, float]], colour: bool, width: int) -> list[str]:
    """Words in lines of ``width`` letters."""
    lines: list[list[str]] = [[]]
    room = width
    for word, value in pairs:
        told = word if colour or abs(value) < 0.005 else f"{word}({value:+.2f})"
        size = sum(2 if east_asian_width(c) in "WF" else category(c) not in ("Mn", "Me", "Cf") for c in told)
        if lines[-1] and size > room:
            lines.append([])
            room = width
        lines[-1].append(_painted(told, value) if colour else told)
        room -= size + 1
    return [" ".join(line) for line in lines]


def _painted(word: str, value: float) -> str:
    back, ink = (";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in _colours(value))
    return f"\x1b[48;2;{back};38;2;{ink}m{word}\x1b[0m"


def _swatch(value: float, told: str) -> str:
    back, ink = _colours(value)
    return f'<span style="background-color: {back}; color: {ink}; {MARK}">{told}</span>'


LEGEND = (
    '<div style="padding: 0.3em 0.8em"><b>Legend:</b> '
    + " ".join(_swatch(v, t) for v, t in ((-1, "takes away"), (0, "nothing"), (1, "adds")))
    + "</div>"
)

"""How results look on a terminal and in files."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def bars(asked: Namespace) -> bool:
    """Whether progress is shown: on a terminal, unless it was asked to be quiet."""
    return not asked.quiet and sys.stderr.isatty()


def table(rows: Sequence[Sequence[object]], heads: Sequence[str], indent: str = "  ") -> str:
    """Rows as aligned columns: numbers to the right, words to the left; a column with nothing in it is left out."""
    kept = [i for i in range(len(heads)) if not rows or any(row[i] != "" for row in rows)]
    heads, rows = [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]
    cells = [list(heads), *([_word(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    right = [all(map(_number, column)) for column in zip(*cells[1:], strict=True)] or [False] * len(heads)
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in cells
    ]
    return "\n".join((indent + line).rstrip() for line in lines)


def _word(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(word: str) -> bool:
    try:
        float(word.removesuffix("%"))
    except ValueError:
        return False
    return True


def as_json(result: Mapping[str, Any]) -> str:
    """JSON that any reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(result), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One line a row, under the names of the first."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def share(count: int, of: int) -> str:
    """A count as a percentage."""
    return f"{count / of:.1%}" if of else "-"


def files(place: Path, names: Iterable[str]) -> str:
    """A line that says what was written."""
    return f"Written to {place}: {', '.join(names)}"

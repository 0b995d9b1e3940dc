"""Export: the tables of a run, for other programs."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.checks import optional
from ..engine.files import put
from .run import Run
from .store import Store

if TYPE_CHECKING:
    import pandas as pd

TABLES: dict[str, dict[str, str]] = {
    "result": {
        "model": "string",
        "attack": "string",
        "position": "int64",
        "eps": "float64",
        "success": "bool",
        "flagged": "bool",
        "prediction": "int64",
        "margin": "float64",
        "distance": "float64",
        "forwards": "int64",
        "backwards": "int64",
    },
    "sample": {"position": "int64", "idx": "int64", "uid": "string", "label": "int64"},
    "block": {
        "model": "string",
        "attack": "string",
        "block": "int64",
        "file": "string",
        "bytes": "int64",
        "sha256": "string",
        "notes": "string",
        "seconds": "float64",
        "micro_batch": "Int64",
    },
    "samples": {
        "model": "string",
        "position": "int64",
        "index": "int64",
        "uid": "string",
        "label": "int64",
        "class": "string",
        "prediction": "Int64",
        "predicted_class": "string",
        "lead": "float64",
        "correct": "bool",
        "flagged": "bool",
        "distance": "float64",
        "falls_at": "float64",
        "by": "string",
        "into": "Int64",
        "into_class": "string",
    },
}
"""Columns of each table, and what they hold, in the words of pandas (an Int64 may be missing, an int64 never is).

``result``, ``sample`` and ``block`` are those of the store, whatever the number of its files; ``samples`` is
:meth:`robustx.evaluation.Run.samples`, one row for each model and sample.
"""


def records(folder: str | Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of a table; None stands for what there is not.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: no such table.
    """
    columns = _columns(table)
    if table == "samples":
        yield from Run(folder).samples()
        return
    with Store(folder) as store:
        if table == "sample":
            for position, sample in enumerate(store.samples()):
                yield dict(zip(columns, (position, *sample), strict=True))
        elif table == "block":
            for work in sorted(store.done()):
                yield {c: store.told(work, f'"{c}"') for c in columns}
        else:
            for model, attack in sorted({work[:2] for work in store.done()}):
                for row in store.rows(model, attack):
                    yield {"model": model, "attack": attack, **row._asdict()}


def frame(folder: str | Path, table: str = "result") -> "pd.DataFrame":
    """A table as a pandas frame: a number that there is not is NaN, or NA among whole numbers.

    Raises:
        FileNotFoundError, ValueError: see :func:`records`.
        ImportError: pandas is not installed.
    """
    pandas = optional("pandas", "tables")
    rows = list(records(folder, table))
    made: pd.DataFrame = pandas.DataFrame(
        {name: pandas.Series([r[name] for r in rows], dtype=kind) for name, kind in _columns(table).items()}
    )
    return made


def encoded(folder: str | Path, to: str, table: str = "result") -> bytes:
    """A table as the content of a file.

    ``csv``
        Missing is an empty field, an infinite number ``inf``; True and False; numbers to their last digit.
    ``jsonl``
        One object a line. JSON has no infinite numbers: they become null, as what is missing.
    ``parquet``
        Missing is null, infinite numbers stay.

    Raises:
        FileNotFoundError, ValueError: see :func:`records`; no such format.
        ImportError: pyarrow, which writes Parquet, is not installed.

    >>> import tempfile, torch
    >>> from robustx.evaluation import Spec, evaluate
    >>> spec = Spec(models=("linear",), data="data", eps=0.1, explain=0, soundness=False)
    >>> xy = (torch.rand(20, 4), torch.arange(20) % 3)
    >>> run = evaluate({"linear": torch.nn.Linear(4, 3)}, xy, spec, tempfile.mkdtemp())
    >>> encoded(run.folder, "csv", "sample").decode().splitlines()[0]
    'position,idx,uid,label'
    >>> run.to_pandas("samples").shape
    (20, 16)
    """
    if to not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {to!r}")
    return FORMATS[to](_columns(table), records(folder, table))


def export(folder: str | Path, to: str, table: str = "result", out: str | Path | None = None) -> Path:
    """Writes a table to a file, by default to ``TABLE.FORMAT`` in the run folder; returns where. See :func:`encoded`.

    Raises:
        FileNotFoundError, ValueError, ImportError: see :func:`encoded`.
        OSError: it cannot be written; what stood there is as before.
    """
    content = encoded(folder, to, table)
    path = Path(folder) / f"{table}.{to}" if out is None else Path(out)
    put(path, content)
    return path


def _columns(table: str) -> dict[str, str]:
    if table not in TABLES:
        raise ValueError(f"the table must be one of {', '.join(TABLES)}, got {table!r}")
    return TABLES[table]


def _csv(columns: dict[str, str], rows: Iterator[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _jsonl(columns: dict[str, str], rows: Iterator[dict[str, Any]]) -> bytes:
    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    told = ({name: known(row[name]) for name in columns} for row in rows)
    return "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in told).encode()


def _parquet(columns: dict[str, str], rows: Iterator[dict[str, Any]]) -> bytes:
    arrow, files = optional("pyarrow", "tables"), optional("pyarrow.parquet", "tables")
    kinds = {"string": arrow.string(), "bool": arrow.bool_(), "float64": arrow.float64()}
    schema = arrow.schema([(name, kinds.get(kind, arrow.int64())) for name, kind in columns.items()])
    content = io.BytesIO()
    files.write_table(arrow.Table.from_pylist(list(rows), schema), content)
    return content.getvalue()


FORMATS: dict[str, Callable[[dict[str, str], Iterator[dict[str, Any]]], bytes]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
"""How a table is written."""

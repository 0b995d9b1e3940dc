"""``robustx export``: the tables of a run, for other programs."""

import sys
from argparse import Namespace

from ..evaluation.export import encoded, export
from . import DONE
from .show import as_json


def run(asked: Namespace) -> int:
    """Write a table to a file, or to standard output."""
    if asked.out == "-":
        if asked.to == "parquet":
            raise ValueError("--out - is for csv and jsonl, as Parquet is no text; name a file")
        sys.stdout.write(encoded(asked.run, asked.to, asked.table).decode())
        return DONE
    path = export(asked.run, asked.to, asked.table, asked.out)
    print(as_json({"file": str(path), "table": asked.table, "format": asked.to}) if asked.json else f"Written: {path}")
    return DONE

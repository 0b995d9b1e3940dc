"""Export: every form holds what the store holds, and says in its own way what is missing or infinite."""

import csv
import io
import json
import math
import sqlite3
import sys

import pandas as pd
import pytest
import torch

from robustx.evaluation import AttackSpec, Row, Run, Spec, Store, Work, evaluate
from robustx.evaluation.export import FORMATS, TABLES, encoded, export, frame, records

X, Y = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two writers, of a model that knows no answer to some samples; one number is infinite."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3)

    def picky(x):
        return torch.where(x[:, :1] > 0.6, torch.nan, net(x))

    spec = Spec(
        models=("one", "two"),
        data="data",
        eps=(0.1, 0.4),
        attacks=(AttackSpec("fgsm"), AttackSpec("bisection", {"steps": 2, "rounds": 2})),
        block_size=4,
        explain=0,
        soundness=False,
    )
    folder = tmp_path_factory.mktemp("run")
    for k in (0, 1):
        run = evaluate({"one": net, "two": picky}, (X, Y), spec, folder, shard=(k, 2))
    with Store(folder, "1-of-2") as store:
        work = Work("one", "clean", 1)
        rows = [r._replace(distance=math.inf) if r.position == 4 else r for r in store.rows_of(work)]
        store.finish(work, rows, store.tensors(work))
    assert run.finished
    return folder


def truth(folder):
    """All rows, read from the files of both writers by SQL."""
    found = []
    for path in folder.glob("results-*.sqlite"):
        with sqlite3.connect(path) as db:
            found += db.execute(f"SELECT {', '.join(TABLES['result'])} FROM result").fetchall()
        db.close()
    return sorted(found, key=lambda r: r[:4])


def test_all_rows_of_all_writers(made):
    rows = [tuple(r.values()) for r in records(made, "result")]
    assert rows == truth(made) and len(rows) > 30
    assert list(TABLES["result"]) == ["model", "attack", *Row._fields]
    assert [r["uid"] for r in records(made, "sample")] == [s["uid"] for s in Run(made).samples()[:10]]
    blocks = list(records(made, "block"))
    assert len(blocks) == 2 * 3 * 3 and all((made / b["file"]).stat().st_size == b["bytes"] for b in blocks)
    assert list(TABLES["samples"]) == list(Run(made).samples()[0])


@pytest.mark.parametrize("table", TABLES)
def test_every_form_holds_the_same(made, table):
    rows = list(records(made, table))
    read = pd.read_parquet(io.BytesIO(encoded(made, "parquet", table)))
    assert list(read) == list(TABLES[table]) == list(rows[0]) and len(read) == len(rows)
    lines = [json.loads(line) for line in encoded(made, "jsonl", table).decode().splitlines()]
    fields = list(csv.DictReader(io.StringIO(encoded(made, "csv", table).decode())))
    table_frame = frame(made, table)
    for k, row in enumerate(rows):
        for name, value in row.items():
            cells = [read[name][k], table_frame[name][k]]
            if value is None:
                assert fields[k][name] == "" and lines[k][name] is None and all(pd.isna(c) for c in cells)
            elif isinstance(value, float) and math.isinf(value):
                assert fields[k][name] == "inf" and lines[k][name] is None and cells == [math.inf] * 2
            else:
                assert fields[k][name] == str(value) and lines[k][name] == value and all(c == value for c in cells)
                assert type(lines[k][name]) is type(value)


def test_what_the_rows_of_this_run_show(made):
    rows = list(records(made, "result"))
    assert any(r["margin"] is None for r in rows) and any(math.isinf(r["distance"]) for r in rows)
    assert {str(t) for t in frame(made, "result").dtypes} >= {"int64", "bool", "float64"}
    assert str(Run(made).to_pandas("samples")["into"].dtype) == "Int64"
    assert Run(made).to_pandas().equals(frame(made, "result"))


def test_the_store_is_one_line_away_from_pandas(tmp_path):
    spec = Spec(models=("m",), data="data", eps=0.1, attacks=(AttackSpec("fgsm"),), explain=0, soundness=False)
    torch.manual_seed(0)
    run = evaluate({"m": torch.nn.Linear(4, 3)}, (X, Y), spec, tmp_path)
    with sqlite3.connect(tmp_path / "results-main.sqlite") as db:
        read = pd.read_sql("SELECT * FROM result", db)
    db.close()
    assert read.groupby("attack").size()["clean"] == 10
    assert read.eval("attack == 'clean' and success == 0").sum() == run.outcomes[0].correct.sum()


def test_files(made, tmp_path):
    before = (made / "samples.csv").read_bytes()
    assert encoded(made, "csv", "samples") == before
    assert export(made, "jsonl", out=tmp_path / "new" / "rows.jsonl").read_bytes() == encoded(made, "jsonl")
    path = export(made, "csv")
    assert path == made / "result.csv" and path.read_bytes() == encoded(made, "csv", "result")
    path.unlink()


def test_what_there_is_not(made, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="table must be one of result, sample, block, samples, got 'rows'"):
        export(made, "csv", "rows")
    with pytest.raises(ValueError, match=f"format must be one of {', '.join(FORMATS)}, got 'xlsx'"):
        export(made, "xlsx")
    with pytest.raises(FileNotFoundError, match="there is no run"):
        export(tmp_path, "csv")
    for module in ("pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'robustx\[tables\]'"):
        export(made, "parquet", out=tmp_path / "x.parquet")
    with pytest.raises(ImportError, match=r"pip install 'robustx\[tables\]'"):
        frame(made)
    assert list(tmp_path.iterdir()) == []

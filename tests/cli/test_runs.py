"""`robustx verify`, `merge`, `export` and `ls`: what is done with run folders afterwards."""

import json
import shutil
import sqlite3

import pytest
from torch import nn

from robustx import zoo
from robustx.evaluation import Run, Spec, evaluate
from robustx.evaluation.export import encoded

SPEC = """\
models = ["digits"]
data = "digits"
eps = [0.1, 0.2]
limit = 12
block_size = 4
explain = 1
soundness = false
attacks = [{ name = "fgsm" }, { name = "bisection", options = { steps = 2, rounds = 2 } }]
"""


@pytest.fixture
def here(tmp_path, run):
    """The folder in which commands run, with a specification and two shards of its run."""
    (tmp_path / "spec.toml").write_text(SPEC)
    for k in (0, 1):
        said = run("evaluate", "spec.toml", "--shard", f"{k}/2", "--out", f"runs/part-{k}")
        assert (said.code, said.err) == (0, "")
    return tmp_path


def test_from_shards_to_a_verified_whole(here, run):
    said = run("merge", "runs/part-0", "runs/part-1", "--out", "runs/whole")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("9 of 9 steps are in runs/whole\nAll blocks are there; ")
    assert "(explanation)" in said.out and said.out.endswith("  robustx resume runs/whole\n")
    assert run("resume", "runs/whole").code == 0
    told = json.loads(run("merge", "runs/part-1", "--out", "runs/whole", "--json").out)
    assert told == {**told, "folder": "runs/whole", "done": 9, "of": 9, "finished": True}
    assert told["fingerprint"] == Run("runs/whole").fingerprint
    said = run("merge", "runs/part-1", "--out", "runs/half")
    assert said.out.splitlines()[0] == "3 of 9 steps are in runs/half" and said.out.count("2 blocks of samples") == 1

    said = run("verify", "runs/whole")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("Everything comes out as it is stored in runs/whole\n")
    kinds = {line.split()[0]: line.split()[1:] for line in said.out.splitlines()[1:] if len(line.split()) == 3}
    assert int(kinds["ball"][0]) > 0 and all(differ == "0" for _, differ in kinds.values())
    assert "7 steps are not finished" in run("verify", "runs/half").out

    with sqlite3.connect("runs/whole/results-merged.sqlite") as db:
        db.execute("UPDATE result SET distance = distance / 2 WHERE attack = 'bisection' AND success = 1")
    db.close()
    said = run("verify", "runs/whole")
    assert said.code == 1 and "  distance (digits, bisection, sample " in said.out
    assert "Not everything (" in said.out and "--json tells all" in said.out
    told = json.loads(run("verify", "runs/whole", "--json").out)
    assert not told["ok"] and {"distance", "summary"} <= {d["kind"] for d in told["differences"]}
    assert any(
        "bisection" in line and "attack" in line for line in run("verify", "runs/whole", "--again").out.split("\n")
    )


def test_what_does_not_belong_together(here, run):
    (here / "other.toml").write_text(SPEC.replace("0.2", "0.3"))
    assert run("evaluate", "other.toml", "--shard", "1/2", "--out", "runs/other").code == 0
    said = run("merge", "runs/part-0", "runs/other", "--out", "runs/whole")
    assert (
        said.code == 2 and "two different runs, which differ in spec.eps: [0.1, 0.2] before, [0.1, 0.3] now" in said.err
    )


def test_a_run_of_objects_says_what_to_do(tmp_path, run):
    data = zoo.data("digits", limit=3)
    spec = Spec(models=("mine",), data="digits", eps=0.1, explain=0, soundness=False)
    evaluate({"mine": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, data, spec, "runs/mine")
    said = run("verify", "runs/mine")
    assert said.code == 2 and "'mine'" in said.err and "call robustx.evaluation.verify with the objects" in said.err


def test_export(here, run):
    said = run("export", "runs/part-0", "--to", "csv", "--out", "-")
    assert (said.code, said.out.encode()) == (0, encoded("runs/part-0", "csv"))
    said = run("export", "runs/part-0", "--to", "parquet", "--table", "samples")
    assert said.out == "Written: runs/part-0/samples.parquet\n"
    assert (here / "runs/part-0/samples.parquet").read_bytes() == encoded("runs/part-0", "parquet", "samples")
    told = json.loads(run("export", "runs/part-0", "--to", "jsonl", "--out", "rows.jsonl", "--json").out)
    assert told == {"file": "rows.jsonl", "table": "result", "format": "jsonl"} and (here / "rows.jsonl").exists()
    said = run("export", "runs/part-0", "--to", "parquet", "--out", "-")
    assert said.code == 2 and "Parquet is no text" in said.err


def test_ls(here, run):
    shutil.copytree("runs/part-0", "runs/deep/old")
    about = json.loads((here / "runs/deep/old/run.json").read_text())
    (here / "runs/deep/old/run.json").write_text(json.dumps({**about, "format": 1}))
    (here / "runs/broken").mkdir()
    (here / "runs/broken/run.json").write_text("{")
    evaluate({"digits": zoo.model("digits")}, zoo.data("digits"), Spec.read("spec.toml"), "runs/whole")
    said = run("ls")
    assert (said.code, said.err) == (0, "")
    head, *rows = said.out.splitlines()
    assert head.split()[:4] == ["run", "models", "data", "norm"] and max(map(len, rows[:5])) <= 120
    lines = {row.split()[0]: row for row in rows[:5]}
    assert list(lines) == ["broken", "deep/old", "part-0", "part-1", "whole"]
    assert "6/10" in lines["part-0"] and "unfinished" in lines["part-0"]
    share = Run("runs/whole").summary()["models"][0]["robust"][1]
    assert "10/10" in lines["whole"] and f"{share['value']:.1%}" in lines["whole"] and "0.2" in lines["whole"]
    assert "of another format" in lines["deep/old"] and rows[5].startswith("broken: ") and "has format 1" in rows[6]
    told = json.loads(run("ls", "runs/whole", "--json").out)["runs"]
    assert len(told) == 1 and (told[0]["run"], told[0]["state"]) == ("whole", "finished")
    assert told[0]["robust"] == [share["value"]]
    (here / "empty").mkdir()
    assert run("ls", "empty").out == "No runs in empty\n"
    said = run("ls", "nowhere")
    assert said.code == 2 and "there is no folder 'nowhere'" in said.err

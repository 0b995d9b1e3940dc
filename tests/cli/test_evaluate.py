"""``robustx evaluate`` and ``robustx report``: runs, their exit codes, and going on after an interrupt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustx import evaluation
from robustx.evaluation import Run
from robustx.evaluation import work as work_module

QUICK = ("--limit", 10, "--steps", 4, "--eps", "0.1,0.2", "--explain", 0)


def test_both_models_are_evaluated_and_reported(run, tmp_path):
    said = run("evaluate", "digits", *QUICK, "--out", "here")
    assert said.code == 0 and not said.err
    summary = Run("here").summary()
    assert [m["name"] for m in summary["models"]] == ["digits", "digits-robust"] and summary["samples"] == 10
    for model in summary["models"]:
        line = next(line for line in said.out.splitlines() if line.split()[:1] == [model["name"]])
        assert line.split()[1:4] == [f"{s['value']:.1%}" for s in (model["clean"], *model["robust"])]
    assert "here/report.html" in said.out and (tmp_path / "here" / "report.html").stat().st_size > 10_000


def test_a_question_has_one_folder(run):
    folders = []
    for more in ((), (), ("--seed", 1)):
        told = json.loads(run("evaluate", "breast-cancer", *QUICK, *more, "--json").out)
        folders.append((told["folder"], told["fingerprint"]))
    assert folders[0] == folders[1] and folders[0][0] != folders[2][0]


def test_required_robustness_is_an_exit_code(run):
    argv = ("evaluate", "digits-robust", *QUICK, "--out", "here")
    assert run(*argv, "--require", "0.3@0.1").code == 0
    said = run(*argv, "--require", 1)
    assert said.code == 1 and "Missed: digits-robust" in said.out
    assert json.loads(run(*argv, "--require", 1, "--json").out)["missed"]


def test_your_own_models(run):
    said = run(
        "evaluate",
        "--model",
        "mine:net",
        "--model",
        "mine:net?hidden=9",
        "--data",
        "mine:images",
        *QUICK,
        "--out",
        "here",
    )
    assert said.code == 0, said.err
    assert Run("here").spec.names == ("mine:net", "mine:net?hidden=9")


def test_a_specification_from_a_file(run, tmp_path):
    (tmp_path / "spec.toml").write_text(
        'models = ["mine:net"]\ndata = "mine:images"\nnorm = "L2"\neps = [0.1]\nexplain = 0\nsoundness = false\n'
        'attacks = [{ name = "pgd", options = { steps = 3 } }]\n'
    )
    assert run("evaluate", "spec.toml", "--eps", 0.2, "--out", "here").code == 0
    spec = Run("here").spec
    assert (spec.norm, spec.eps, [a.label for a in spec.attacks]) == ("L2", (0.2,), ["pgd"])


def test_an_interrupted_run_goes_on_and_ends_the_same(run, monkeypatch):
    argv = ("evaluate", "digits-robust", "--limit", 80, "--steps", 3, "--eps", "0.1,0.2", "--explain", 2)
    whole = json.loads(run(*argv, "--out", "whole", "--json").out)
    attack, calls = work_module.attack_block, []

    def stop_at_the_sixth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return attack(*args, **kwargs)

    monkeypatch.setattr(work_module, "attack_block", stop_at_the_sixth)
    said = run(*argv, "--out", "cut")
    assert said.code == 130 and "7 finished steps are kept in cut" in said.err
    report = run("report", "cut")
    assert report.code == 0 and "not finished" in report.out
    told = json.loads(run(*argv, "--out", "cut", "--json").out)
    assert len(calls) == 6 + 3  # nothing is done twice
    assert told["fingerprint"] == whole["fingerprint"]


def test_report_is_made_again(run, tmp_path):
    run("evaluate", "breast-cancer", *QUICK, "--out", "here")
    page = tmp_path / "here" / "report.html"
    before = page.read_text()
    page.unlink()
    assert run("report", "here").code == 0
    assert page.read_text() == before
    said = run("report", "here", "--format", "md", "--out", "-")
    assert said.code == 0 and said.out.startswith("# How robust is breast-cancer?\n")
    assert run("report", "here", "--format", "json", "--out", "numbers.json").code == 0
    assert (tmp_path / "numbers.json").read_text() == (tmp_path / "here" / "summary.json").read_text()


def test_two_shards_make_one_run(run):
    argv = ("evaluate", "digits-robust", "--limit", 24, "--steps", 3, "--eps", "0.1,0.2", "--explain", 2)
    argv = (*argv, "--block-size", 8)
    whole = json.loads(run(*argv, "--out", "whole", "--json").out)
    first = run(*argv, "--out", "both", "--shard", "0/2")
    assert first.code == 0 and "Share 0 of 2 is done; of the run, 10 of" in first.out and not first.err
    assert not Run("both").finished and not Path("both/report.html").exists()
    second = json.loads(run("resume", "both", "--shard", "1/2", "--json").out)
    assert second["fingerprint"] == whole["fingerprint"] and second["report"]
    assert Path("both/summary.json").read_bytes() == Path("whole/summary.json").read_bytes()
    assert json.loads(run("resume", "both", "--json").out)["fingerprint"] == whole["fingerprint"]


def test_what_cannot_be_opened_again_says_so(run):
    x, y = torch.rand(6, 4), torch.arange(6) % 2
    spec = evaluation.Spec(models=("net",), data="data", eps=0.1, explain=0)
    evaluation.evaluate({"net": torch.nn.Linear(4, 2)}, (x, y), spec, "here")
    said = run("resume", "here")
    assert said.code == 2 and "'here' cannot be opened from their names" in said.err and "out=" in said.err


@pytest.mark.slow
def test_the_main_job_tells_the_models_apart(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "robustx", "evaluate", "digits", "--limit", "200", "--out", str(tmp_path / "digits")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,  # only against hanging: a busy machine is no failure
    )
    assert done.returncode == 0 and not done.stderr
    normal, robust = evaluation.Run(tmp_path / "digits").summary()["models"]
    assert normal["clean"]["value"] > 0.97 and robust["clean"]["value"] > 0.95
    assert robust["robust"][2]["value"] > normal["robust"][2]["value"] + 0.1

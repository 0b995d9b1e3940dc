"""The same bytes from one process and from many, however they were started and whoever died."""

import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from disturbed import VICTIM, digests, spec

from robustx.cli import main
from robustx.evaluation import Callback, Store, evaluate, launch, opened

HERE = Path(__file__).parent
SPEC = spec("disturbed:mortal", "disturbed:noise")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run by one process that nobody disturbed."""
    models, data = opened(SPEC)
    return evaluate(models, data, SPEC, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def victim(tmp_path, monkeypatch):
    """The process that removes this file dies by SIGKILL, in the midst of its work."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv(VICTIM, str(tmp_path / "victim"))
    (tmp_path / "victim").touch()
    return tmp_path / "victim"


class Everything(Callback):
    """Remembers what it is told."""

    def __init__(self):
        self.told, self.works = [], []

    def started(self, spec, totals):
        self.told.append(totals)

    def step(self, step):
        self.works.append(step.work)
        self.last = step

    def ended(self, run):
        self.told.append(run.finished)

    def closed(self):
        self.told.append("closed")

    def agrees_with(self, whole):
        with Store(whole.folder) as store:
            blocks = {w for w in store.done() if w.attack != "explanation"}
        assert len(self.works) == len(blocks) and set(self.works) == blocks
        assert self.told == [{"clean": 6, "fgsm": 6, "pgd": 6, "bisection": 6}, True, "closed"]


def test_shards_in_any_order(whole, tmp_path):
    models, data = opened(SPEC)
    for k in (2, 0, 1):
        run = evaluate(models, data, SPEC, tmp_path / "run", shard=(k, 3))
        assert run.finished == (k == 1)
    assert digests(run.folder) == digests(whole.folder)
    assert sorted(p.name for p in run.folder.glob("*.sqlite")) == [f"results-{k}-of-3.sqlite" for k in range(3)]


def test_a_share_is_done_by_whoever_is_asked_and_twice(whole, tmp_path):
    for shard in ((0, 2), (0, 2), (1, 2), (3, 7)):
        launch.work_on(SPEC.to_json(), tmp_path / "run", shard)
    assert digests(tmp_path / "run") == digests(whole.folder)


@pytest.mark.slow
def test_torchrun_starts_a_killed_worker_again(whole, victim, tmp_path):
    told = Everything()
    run = launch.local(SPEC, tmp_path / "run", 2, callbacks=[told])
    assert not victim.exists()
    assert digests(run.folder) == digests(whole.folder)
    assert len(list(run.folder.glob("*.sqlite"))) >= 4  # of this process, of two, and of those that came after
    told.agrees_with(whole)


@pytest.mark.slow
def test_torchrun_with_three_workers(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    run = launch.local(SPEC, tmp_path / "run", 3)
    assert digests(run.folder) == digests(whole.folder)


def test_where_the_workers_fail_this_process_does_the_rest(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    told = Everything()
    with pytest.warns(RuntimeWarning, match="ended with code 1, see .*workers.log'; this one goes on alone"):
        run = launch.local(SPEC, tmp_path / "run", 2, callbacks=[told])
    assert digests(run.folder) == digests(whole.folder)
    told.agrees_with(whole)


def test_what_cannot_be_opened_is_said_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match="no-such-model"):
        launch.local(spec("no-such-model"), tmp_path / "run", 2)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        launch.local(SPEC, tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


ENGINE = """
import sys, warnings
from disturbed import spec
from robustx.evaluation import launch
from test_launch import Everything
if __name__ == "__main__":
    told, run = Everything(), getattr(launch, sys.argv[1])
    run(spec("disturbed:mortal", "disturbed:noise"), sys.argv[2], tasks=3, callbacks=[told])
    assert len(told.works) == len(set(told.works)) == 24, told.works
    assert told.told[1:] == [True, "closed"], told.told
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_engines_start_a_killed_worker_again(whole, victim, tmp_path, engine):
    if not importlib.util.find_spec({"ray": "ray", "dask": "distributed"}[engine]):
        pytest.skip(f"{engine} is not installed")
    (tmp_path / "program.py").write_text(ENGINE)
    subprocess.run([sys.executable, tmp_path / "program.py", f"{engine}_run", tmp_path / "run"], check=True)
    assert not victim.exists()
    assert digests(tmp_path / "run") == digests(whole.folder)


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_without_an_engine_the_way_to_it_is_named(tmp_path, monkeypatch, engine):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "dask": "distributed"}[engine], None)
    with pytest.raises(ImportError, match=rf"robustx\[{engine}\]"):
        getattr(launch, f"{engine}_run")(SPEC, tmp_path / "run")


@pytest.mark.parametrize(
    ("rank", "world", "share"),
    [("1", "4", (1, 4)), ("0", "1", (0, 1)), (None, "4", None), ("1", None, None), ("4", "4", None), ("-1", "4", None)],
)
def test_the_environment_of_torchrun(monkeypatch, rank, world, share):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert launch.environment() == share


def test_processes_share_out_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [launch.own_device(d) for d in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda", "cuda:3"]
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert [launch.own_device(d) for d in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda:2", "cuda:3"]


def test_an_interrupt_ends_the_workers_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), launch._process(["sleep", "60"], tmp_path / "log") as process:
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM


def test_the_command_line_takes_its_share_from_torchrun(whole, tmp_path, monkeypatch, capsys):
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    begin = ["evaluate", str(tmp_path / "spec.json"), "--out", str(tmp_path / "run")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(begin) == 0
    assert "Share 1 of 2 is done; of the run, 12 of 25 steps are." in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert digests(tmp_path / "run") == digests(whole.folder)


@pytest.mark.filterwarnings("always::RuntimeWarning")
def test_the_command_line_hands_a_run_to_workers(whole, tmp_path, monkeypatch, capsys):
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    command = ["evaluate", str(tmp_path / "spec.json"), "--out", str(tmp_path / "run"), "--workers", "2"]
    assert main(command) == 0
    assert "warning: the processes ended with code 1, see" in capsys.readouterr().err
    assert digests(tmp_path / "run") == digests(whole.folder)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--shard", "0/2"])
    assert "not allowed with" in capsys.readouterr().err

"""Runs under torture: killed, without space, without memory, with torn files. Nothing that was kept is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import digests, spec

from robustx import zoo
from robustx.evaluation import Run, Store, attack_block, evaluate, opened
from robustx.evaluation import work as work_module

SEED = 7


def disturb(place: Path, *torments: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    driver = Path(__file__).with_name("disturbed.py")
    done = subprocess.run(
        [*before, sys.executable, driver, place, str(SEED), *torments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"seed {SEED}: {done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """What the driver did; the words of an error where anything was lost or came out otherwise."""
    return disturb(tmp_path_factory.mktemp("disturbed"), "kills", "signals", "small_files")


@pytest.mark.slow
def test_sixty_kills_lose_nothing(disturbed):
    told = disturbed["kills"]
    assert isinstance(told, dict), f"seed {SEED}: {told}"
    assert told["killed"] == 60 and told["runs"] >= 1


@pytest.mark.slow
def test_ctrl_c_and_sigterm_end_the_command_line_and_lose_nothing(disturbed):
    assert disturbed["signals"] == [130, 143, 130, 143, 130], f"seed {SEED}: {disturbed['signals']}"


@pytest.mark.slow
def test_files_that_cannot_grow_lose_nothing(disturbed):
    told = disturbed["small_files"]
    assert isinstance(told, int) and told >= 4, f"seed {SEED}: {told}"


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path):
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')
    if not shutil.which("unshare") or subprocess.run([*mount, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("no small file system can be made here")
    told = disturb(tmp_path, "full_disk", before=(*mount, str(tmp_path)))["full_disk"]
    assert isinstance(told, int) and told >= 4, f"seed {SEED}: {told}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not disturbed."""
    models, data = opened(spec())
    return evaluate(models, data, spec(), tmp_path_factory.mktemp("runs") / "whole")


def test_a_transaction_that_was_cut_off_is_rolled_back_by_whoever_reads(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    writer = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # so that pages are written before the end of the transaction
db.execute("BEGIN IMMEDIATE")
db.execute("DELETE FROM result WHERE attack = 'pgd'")
db.execute("UPDATE block SET notes = hex(zeroblob(2000))")
db.execute("INSERT INTO block SELECT model, 'more-' || attack, block, file, bytes, sha256, notes, 0.0, NULL FROM block")
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = folder / "results-main.sqlite"
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", writer, path])
    assert path.with_name("results-main.sqlite-journal").stat().st_size and path.read_bytes() != before
    assert digests(folder) == digests(whole.folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 7, -1], ids=["empty", "head", "all-but-one"])
def test_a_torn_file_is_made_again(whole, tmp_path, kept):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    torn = folder / "tensors/digits/pgd/block-000003.safetensors"
    torn.write_bytes(torn.read_bytes()[:kept])
    assert not Run(folder).finished
    models, data = opened(spec())
    evaluate(models, data, spec(), folder)
    assert digests(folder) == digests(whole.folder)


class Small(torch.nn.Module):
    """A model on a device that holds so many rows."""

    def __init__(self, rows):
        super().__init__()
        self.net, self.rows = zoo.model("digits"), rows

    def forward(self, x):
        if len(x) > self.rows:
            raise torch.OutOfMemoryError(f"out of memory with {len(x)} rows")
        return self.net(x)


def nearly(run, other):
    """Two runs that differ in rounding at most."""
    with Store(run.folder) as a, Store(other.folder) as b:
        for label in ("clean", *(s.label for s in run.spec.attacks)):
            for one, two in zip(a.rows("digits", label), b.rows("digits", label), strict=True):
                assert one[:2] == two[:2] and one.flagged == two.flagged
                assert one.success == two.success and one.prediction == two.prediction
                assert one.margin == pytest.approx(two.margin, abs=1e-2)
                assert one.distance == pytest.approx(two.distance, abs=1e-4)
    return True


def test_batches_are_halved_where_memory_runs_out_and_the_run_says_so(whole, tmp_path):
    _, data = opened(spec())
    run = evaluate({"digits": Small(3)}, data, spec(), tmp_path)
    assert nearly(run, whole)
    with Store(tmp_path) as store:
        assert set(store.blocks("digits", "clean", "micro_batch")) == {2}
        assert all(n in (1, 2, 3) for n in store.blocks("digits", "bisection", "micro_batch"))
    assert run.summary()["models"][0]["divided"] >= 18
    assert whole.summary()["models"][0]["divided"] == 0


def test_blocks_are_halved_where_an_attack_needs_too_much_memory(whole, tmp_path, monkeypatch):
    models, data = opened(spec())

    def heavy(model, block, attack, *rest):
        if attack.label == "pgd" and len(block) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attack_block(model, block, attack, *rest)

    monkeypatch.setattr(work_module, "attack_block", heavy)
    run = evaluate(models, data, spec(), tmp_path)
    assert nearly(run, whole)
    with Store(tmp_path) as store:
        assert store.blocks("digits", "pgd", "micro_batch") == [1] * 6
        assert set(store.blocks("digits", "bisection", "micro_batch")) == {None}
    assert run.summary()["models"][0]["divided"] == 6

"""Merging: shards become the run that one process would have made; what does not fit together is refused by name."""

import shutil
import sqlite3

import pytest
import torch

from robustx.evaluation import AttackSpec, Run, Spec, Store, evaluate, merge, verify

XY = (torch.rand(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
SPEC = Spec(
    models=("m",),
    data="data",
    eps=(0.05, 0.1),
    attacks=(AttackSpec("fgsm"), AttackSpec("bisection", {"steps": 2, "rounds": 2})),
    block_size=4,
    explain=1,
    soundness=False,
)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {"m": torch.nn.Linear(6, 3)}


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    """A whole run, and two shards of it in folders of their own."""
    folder = tmp_path_factory.mktemp("runs")
    evaluate(models, XY, SPEC, folder / "whole")
    for k in (0, 1):
        evaluate(models, XY, SPEC, folder / f"{k}", shard=(k, 2))
    return folder


@pytest.fixture
def copies(made, tmp_path):
    """Copies, to spoil."""
    return shutil.copytree(made, tmp_path / "runs")


def sql(folder, command):
    (path,) = folder.glob("results-*.sqlite")
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute(command).rowcount > 0
    db.close()


def state(folder):
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.suffix == ".safetensors"}


def test_shards_become_the_run_of_one_process(made, models, tmp_path):
    before = [state(made / k) for k in "01"]
    run = merge([made / "0", made / "1"], tmp_path)
    assert not run.finished and not (tmp_path / "summary.json").exists()  # samples are not explained yet
    kept = state(tmp_path)
    assert len(kept) == 5 * 3
    assert merge([made / "1", made / "0"], tmp_path).fingerprint == run.fingerprint and state(tmp_path) == kept
    done = evaluate(models, XY, SPEC, tmp_path)
    assert done.fingerprint == Run(made / "whole").fingerprint
    assert (tmp_path / "summary.json").read_bytes() == (made / "whole" / "summary.json").read_bytes()
    assert verify(tmp_path, models, XY).ok
    assert before == [state(made / k) for k in "01"]


def test_a_whole_run_and_its_shards_fit_together(copies, made):
    run = merge([copies / "0", copies / "whole", copies / "1"], copies / "0")  # into one of them
    assert run.finished and run.fingerprint == Run(made / "whole").fingerprint
    assert (copies / "0" / "samples.csv").read_bytes() == (made / "whole" / "samples.csv").read_bytes()


@pytest.mark.parametrize("after", [0, 7])
def test_interrupted_and_called_again(made, tmp_path, monkeypatch, after):
    adopt, count = Store.adopt, []

    def impatient(self, *given):
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt
        adopt(self, *given)

    monkeypatch.setattr(Store, "adopt", impatient)
    with pytest.raises(KeyboardInterrupt):
        merge([made / "0", made / "1"], tmp_path)
    assert len(state(tmp_path)) == after
    kept = state(tmp_path)
    monkeypatch.undo()
    run = merge([made / "0", made / "1"], tmp_path)
    assert kept.items() <= state(tmp_path).items() and len(run.outcomes[0]) == 20


CONFLICTS = {
    "a number": (
        "UPDATE result SET margin = 7, forwards = 3 WHERE attack = 'fgsm' AND position = 1 AND eps = 0.05",
        r"'fgsm' on 'm', sample 1 at 0.05: margin -?[\d.]+, forwards \d in the first, margin 7.0, forwards 3 in",
    ),
    "a row": (
        "DELETE FROM result WHERE attack = 'clean' AND position = 2",
        "block 0 of 'clean' on 'm', sample 2 at 0: only the first has a row",
    ),
    "notes": (
        "UPDATE block SET notes = '[1]' WHERE attack = 'clean' AND block = 2",
        r"block 2 of 'clean' on 'm': notes \[\] in the first, \[1\] in the second",
    ),
    "tensors": ("UPDATE block SET sha256 = 'abc' WHERE attack = 'clean' AND block = 2", "sha256 .* abc in the second"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_two_copies_of_a_block_must_be_the_same(copies, name):
    command, said = CONFLICTS[name]
    sql(copies / "0", command)
    with pytest.raises(ValueError, match=f"differ in .*{said}"):
        merge([copies / "whole", copies / "0"], copies / "out")


def test_a_damaged_block_is_not_copied(copies):
    file = copies / "1/tensors/m/clean/block-000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="1/tensors/m/clean/block-000001.safetensors' is damaged"):
        merge([copies / "0", copies / "1"], copies / "out")


def test_other_samples_are_refused(copies):
    sql(copies / "1", "UPDATE sample SET label = 2 WHERE position = 0")
    with pytest.raises(ValueError, match="1' has other samples than"):
        merge([copies / "0", copies / "1"], copies / "out")


def test_other_runs_are_refused(made, models, tmp_path):
    torch.manual_seed(1)
    other = evaluate({"m": torch.nn.Linear(6, 3)}, XY, SPEC, tmp_path / "other", shard=(1, 2))
    with pytest.raises(ValueError, match=r"two different runs, which differ in models\.m\.sha256"):
        merge([made / "0", other.folder], tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds another run, which differs in models\.m\.sha256"):
        merge([made / "0"], other.folder)
    with pytest.raises(FileNotFoundError, match="there is no run"):
        merge([made / "0", made], tmp_path / "out")
    with pytest.raises(ValueError, match="at least one run folder, got none"):
        merge([], tmp_path / "out")
    assert not (tmp_path / "out").exists()

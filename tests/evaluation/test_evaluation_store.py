"""The run folder: what is written is whole, what is whole is found again, and no two runs share a folder."""

import json
import sqlite3

import pytest
import torch

from robustx.engine.files import put
from robustx.evaluation import Row, Store, Work
from robustx.evaluation.identity import describe_model, differences
from robustx.evaluation.store import slug

IDENTITY = {"spec": {"eps": [0.1], "block_size": 8}, "spec_sha256": "x", "models": {"m": {"sha256": "1"}}}
SAMPLES = [(7, "aa", 0), (9, "bb", 1)]
WORK = Work("m", "pgd", 0)
ROWS = [Row(0, 0.1, True, False, 1, 0.5, 0.1, 3, 2), Row(1, 0.1, False, True, -1, None, 0.0, 3, 2)]


@pytest.fixture
def store(tmp_path):
    with Store.start(tmp_path / "run", IDENTITY, SAMPLES) as store:
        yield store


def test_what_was_finished_is_found_again(store):
    tensors = {"adversarial": torch.rand(1, 3), "position": torch.tensor([0])}
    store.finish(WORK, ROWS, tensors, ["a note"], 1.5)
    with Store(store.folder) as again:
        assert again.done() == {WORK}
        assert again.rows("m", "pgd") == ROWS
        assert again.rows("m", "pgd", range(1, 2)) == ROWS[1:]
        assert again.rows("m", "fgsm") == []
        assert again.notes("m", "pgd") == [["a note"]] and again.seconds("m", "pgd") == 1.5
        assert again.samples() == SAMPLES
        assert {k: v.tolist() for k, v in again.tensors(WORK).items()} == {k: v.tolist() for k, v in tensors.items()}


def test_twice_is_once(store):
    store.finish(WORK, ROWS, {"x": torch.ones(2)}, seconds=1.0)
    before = store.fingerprint()
    store.finish(WORK, ROWS, {"x": torch.ones(2)}, seconds=2.0)
    assert store.fingerprint() == before
    store.finish(WORK, ROWS, {"x": torch.zeros(2)})
    assert store.fingerprint() != before


def test_a_block_comes_whole_or_not_at_all(store):
    bad = [*ROWS, Row(5, 0.1, False, False, 0, 0.0, 0.0, 1, 1)]  # sample 5 is none of this run's
    with pytest.raises(sqlite3.IntegrityError):
        store.finish(WORK, bad, {"x": torch.ones(2)})
    assert store.done() == set() and store.rows("m", "pgd") == []
    store.finish(WORK, ROWS, {"x": torch.ones(2)})
    assert store.done() == {WORK}


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 37), reason="this SQLite knows no strict tables")
def test_the_tables_are_strict(store):
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT"):
        store.finish(WORK, [ROWS[0]._replace(prediction="two")], {})


def test_a_block_without_its_tensors_is_not_done(store):
    store.finish(WORK, ROWS, {"x": torch.ones(2)})
    path = store.folder / "tensors/m/pgd/block-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    store.refresh()
    assert store.done() == set()
    with pytest.raises(ValueError, match="is damaged .* evaluate again"):
        store.tensors(WORK)
    path.unlink()
    store.refresh()
    assert store.done() == set()
    with pytest.raises(FileNotFoundError, match="evaluate again in the same folder"):
        store.tensors(WORK)


def test_a_block_whose_tensors_were_changed_is_damaged(store):
    store.finish(WORK, ROWS, {"x": torch.ones(2)})
    path = store.folder / "tensors/m/pgd/block-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="damaged .its content is not what was written"):
        store.tensors(WORK)


def test_writers_have_a_file_each_and_see_one_another(store):
    two = WORK._replace(block=1)
    late = [(i, "cc", 0) for i in range(16)]
    with Store.start(store.folder, IDENTITY, late, "other") as other:
        store.finish(WORK, ROWS, {"x": torch.ones(2)}, ["mine"], 1.0)
        other.finish(two, [Row(9, 0.1, True, False, 1, 0.5, 0.1, 3, 2)], {"x": torch.ones(1)}, ["theirs"], 2.0)
        other.finish(WORK, ROWS, {"x": torch.ones(2)}, ["mine"], 5.0)  # twice, by another
        assert store.done() == {WORK}
        store.refresh()
        assert store.done() == {WORK, two}
        assert [r.position for r in store.rows("m", "pgd")] == [0, 1, 9]
        assert store.rows("m", "pgd", range(8, 16)) == store.rows("m", "pgd")[2:]
        assert store.notes("m", "pgd") == [["mine"], ["theirs"]] and store.seconds("m", "pgd") == 3.0
        assert len(list(store.folder.glob("results-*.sqlite"))) == 2
        together = store.fingerprint()
    with Store.start(store.folder.parent / "alone", IDENTITY, late) as alone:
        alone.finish(two, [Row(9, 0.1, True, False, 1, 0.5, 0.1, 3, 2)], {"x": torch.ones(1)}, ["theirs"], 0.1)
        alone.finish(WORK, ROWS, {"x": torch.ones(2)}, ["mine"], 0.1, micro_batch=1)
        assert alone.fingerprint() == together


def test_a_writer_that_has_just_begun_says_nothing(store):
    store.finish(WORK, ROWS, {"x": torch.ones(2)})
    sqlite3.connect(store.folder / "results-new.sqlite").close()
    with Store(store.folder) as reader:
        assert reader.done() == {WORK} and reader.samples() == SAMPLES


def test_a_full_disk_is_told_as_a_file_that_cannot_be_written(store):
    db = store._files[store._name]
    db.execute("PRAGMA max_page_count = " + str(db.execute("PRAGMA page_count").fetchone()[0]))
    rows = [Row(0, e / 10_000, True, False, 1, 0.5, 0.1, 3, 2) for e in range(10_000)]
    with pytest.raises(OSError, match="results-main.sqlite' cannot be written: database or disk is full"):
        store.finish(WORK, rows, {"x": torch.ones(2)})
    store.refresh()
    assert store.done() == set()
    db.execute("PRAGMA max_page_count = 100000")
    store.finish(WORK, rows, {"x": torch.ones(2)})
    assert len(store.rows("m", "pgd")) == 10_000


def test_another_run_is_refused_by_what_differs(store):
    other = {
        "spec": {"eps": [0.2], "block_size": 8},
        "spec_sha256": "y",
        "models": {"m": {"sha256": "1"}, "n": {"sha256": "2"}},
    }
    with pytest.raises(
        ValueError, match=r"another run.*spec\.eps: \[0\.1\] before, \[0\.2\] now; models\.n: None before"
    ):
        Store.start(store.folder, other, SAMPLES)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds no run but 'thesis.tex'"):
        Store.start(tmp_path, IDENTITY, SAMPLES)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_left_when_it_was_just_begun(tmp_path):
    (tmp_path / ".run.json.tmp").write_bytes(b"{")
    with Store.start(tmp_path, IDENTITY, SAMPLES) as store:
        assert store.about["spec"] == IDENTITY["spec"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged .JSONDecodeError"),
        ("[]", "damaged .TypeError"),
        ('{"format": 99}', "has format 99.*reads format 2"),
    ],
)
def test_a_damaged_folder_says_so(store, text, said):
    (store.folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        Store(store.folder)


def test_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in .* no run.json"):
        Store(tmp_path)


def test_run_json_is_never_changed(store):
    before = (store.folder / "run.json").read_bytes()
    Store.start(store.folder, IDENTITY, SAMPLES).close()
    assert (store.folder / "run.json").read_bytes() == before
    assert json.loads(before)["surroundings"]["python"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    put(path, b"one")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        put(path, b"two")
    assert path.read_bytes() == b"one"


def test_names_of_folders():
    names = [
        "digits",
        "Digits",
        "a/b",
        "a-b",
        "../../etc",
        "..",
        "",
        "ü",
        "torchvision:resnet18@V1",
        "x" * 99,
        "x" * 98,
    ]
    slugs = [slug(n) for n in names]
    assert slugs[0] == "digits" and len(set(slugs)) == len(names)
    assert all(len(s) <= 60 and set(s) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and s for s in slugs)


def test_differences_are_named():
    before, now = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1], "e": "x" * 100}
    assert differences(before, now) == ["a.c: 2 before, 3 now", f"e: None before, {'x' * 57}... now"]


def test_a_model_is_known_by_weights_buffers_and_structure():
    def sha(change=lambda m: None):
        torch.manual_seed(0)
        m = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        m.register_buffer("hidden", torch.ones(1), persistent=False)
        change(m)
        return describe_model(m)["sha256"]

    assert sha() == sha()
    changes = [
        lambda m: m[0].weight.data[0, 0].add_(1e-7),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.hidden.add_(1),
        lambda m: m.double(),
        lambda m: m.append(torch.nn.ReLU()),
    ]
    assert len({sha(), *map(sha, changes)}) == 6
    net = torch.nn.Linear(2, 3)
    assert describe_model(lambda x: net(x))["parameters"] == 9

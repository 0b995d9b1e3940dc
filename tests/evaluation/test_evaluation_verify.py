"""Verification: a true run has no difference, and every way to forge one is told by the check that sees it."""

import hashlib
import json
import shutil
import sqlite3

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustx import zoo
from robustx.evaluation import AttackSpec, BoundSpec, Spec, Store, Work, evaluate, verify

ATTACKS = (
    AttackSpec("fgsm"),
    AttackSpec("pgd", {"steps": 3}),
    AttackSpec("bisection", {"steps": 3, "rounds": 2}),
)
PGD = "tensors/m/pgd/block-000000.safetensors"


@pytest.fixture(scope="module")
def digits():
    return zoo.data("digits", limit=12)


@pytest.fixture(scope="module")
def model():
    return zoo.model("digits")


@pytest.fixture(scope="module")
def true(digits, model, tmp_path_factory):
    """A run that nobody touched."""
    spec = Spec(models=("m",), data="digits", eps=(0.1, 0.2), attacks=ATTACKS, block_size=8, explain=1, soundness=False)
    return evaluate({"m": model}, digits, spec, tmp_path_factory.mktemp("runs") / "true")


@pytest.fixture
def forged(true, tmp_path):
    """A copy, to forge."""
    return shutil.copytree(true.folder, tmp_path / "forged")


def sql(folder, *commands):
    db = sqlite3.connect(folder / "results-main.sqlite", isolation_level=None)
    for command in commands:
        assert db.execute(command).rowcount > 0
    db.close()


def rewrite(folder, name, change):
    """Changes the tensors of a file, and its digest in the table too."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    content = (folder / name).read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    sql(folder, f"UPDATE block SET sha256 = '{sha}', bytes = {len(content)} WHERE file = '{name}'")


def kinds(folder, model, data, **more):
    return {d.kind for d in verify(folder, {"m": model}, data, **more).differences}


@pytest.mark.parametrize("again", [False, True], ids=["proofs", "again"])
def test_a_true_run_has_no_difference(true, digits, model, again, capsys):
    before = {f: f.read_bytes() for f in true.folder.rglob("*") if f.is_file()}
    checked = verify(true.folder, {"m": model}, digits, again=again, show_progress=again)
    assert checked.ok and checked.unfinished == 0, checked
    assert {"box", "ball", "distance", "success", "prediction", "margin", "summary", "table"} <= checked.checks.keys()
    with Store(true.folder) as store:
        won = sum(r.success for a in ATTACKS for r in store.rows("m", a.label))
        assert won and all(checked.checks[k] == won for k in ("box", "ball", "distance", "example"))
        assert checked.checks["success"] == won + 12
    assert ("attack" in checked.checks, "explanation" in checked.checks) == (again, again)
    assert "no difference" in repr(checked) and bool(capsys.readouterr().err) == again
    assert before == {f: f.read_bytes() for f in true.folder.rglob("*") if f.is_file()}


def test_a_changed_element_is_seen_by_the_digest(forged, digits, model):
    content = bytearray((forged / PGD).read_bytes())
    content[-1] ^= 1
    (forged / PGD).write_bytes(content)
    checked = verify(forged, {"m": model}, digits)
    assert [(d.kind, d.attack) for d in checked.differences] == [("file", "pgd")] and not checked.ok


def test_a_file_of_another_length_is_missed(forged, digits, model):
    (forged / PGD).write_bytes((forged / PGD).read_bytes()[:-1])
    checked = verify(forged, {"m": model}, digits)
    assert {"file", "summary"} <= {d.kind for d in checked.differences} and checked.unfinished == 1


def outward(t, by):
    """The first example, with each element further from the sample by as much, where the box has room."""
    x = zoo.data("digits", limit=12).x[t["position"][0]]
    a = t["adversarial"][0]
    way = torch.where(a == x, (a < 0.5).to(a) * 2 - 1, (a - x).sign())
    t["adversarial"][0] = (a + by * way).clamp(0, 1)


FORGED_EXAMPLES = {
    "beyond the bounds": (lambda t: t["adversarial"][0].view(-1)[0].fill_(1.0001), {"box"}),
    "out of the ball by 1e-4": (lambda t: outward(t, 1e-4), {"ball", "distance"}),
    "not a number": (lambda t: t["adversarial"][0].view(-1)[0].fill_(torch.nan), {"box", "ball", "distance"}),
    "the sample itself": (
        lambda t: t["adversarial"][0].copy_(zoo.data("digits", limit=12).x[t["position"][0]]),
        {"success", "distance", "margin", "prediction"},
    ),
    "of another sample": (lambda t: t["position"][0].add_(5), {"example"}),
    "of another budget": (lambda t: t["eps"][0].mul_(1.5), {"example"}),
    "left out": (lambda t: t.update({k: v[1:].clone() for k, v in t.items()}), {"example"}),
    "twice": (lambda t: t.update({k: torch.cat([v[:1], v]) for k, v in t.items()}), {"example"}),
    "in double precision": (lambda t: t.update(adversarial=t["adversarial"].double()), {"example"}),
    "without budgets": (lambda t: t.pop("eps"), {"example"}),
}


@pytest.mark.parametrize("name", FORGED_EXAMPLES)
def test_a_forged_example_with_its_digest_forged_too(forged, digits, model, name):
    change, seen = FORGED_EXAMPLES[name]
    rewrite(forged, PGD, change)
    checked = verify(forged, {"m": model}, digits)
    found = {d.kind for d in checked.differences}
    assert seen <= found and "file" not in found
    assert all(d.attack == "pgd" for d in checked.differences if d.kind in seen)


def test_forged_logits(forged, digits, model):
    rewrite(forged, "tensors/m/clean/block-000001.safetensors", lambda t: t["logits"][2, 3].add_(0.01))
    told = [str(d) for d in verify(forged, {"m": model}, digits).differences if d.kind == "margin"]
    assert told == ["margin (m, clean): stored a tensor logits, recomputed 1 of 40 elements differ"]


WON = "model = 'm' AND attack = 'pgd' AND success = 1"
LOST = "attack = 'fgsm' AND success = 0"
FORGED_ROWS = {
    "success": (f"UPDATE result SET success = 0 WHERE {WON}", {"row", "example"}),
    "failure": (f"UPDATE result SET success = 1 WHERE {LOST}", {"row", "example"}),
    "distance": (f"UPDATE result SET distance = distance * 0.9999 WHERE {WON}", {"distance"}),
    "distance of a failure": (f"UPDATE result SET distance = 1 WHERE {LOST}", {"row"}),
    "margin": (f"UPDATE result SET margin = margin + 0.02 WHERE {WON}", {"margin"}),
    "prediction": (f"UPDATE result SET prediction = (prediction + 1) % 10 WHERE {WON}", {"prediction"}),
    "flag": (f"UPDATE result SET flagged = 1, prediction = -1, margin = NULL WHERE {LOST}", set()),
    "half a flag": (f"UPDATE result SET flagged = 1 WHERE {LOST}", {"row"}),
    "budget": (f"UPDATE result SET eps = 0.15 WHERE {LOST} AND eps = 0.1", {"row"}),
    "a row of an attack removed": (f"DELETE FROM result WHERE {LOST}", {"row"}),
    "a clean row removed": ("DELETE FROM result WHERE attack = 'clean' AND position = 3", {"row"}),
    "clean answer": (
        "UPDATE result SET prediction = (prediction + 1) % 10 WHERE attack = 'clean' AND position = 3",
        {"prediction"},
    ),
    "clean success": ("UPDATE result SET success = 1 - success WHERE attack = 'clean' AND position = 3", {"success"}),
    "clean cost": ("UPDATE result SET forwards = 2 WHERE attack = 'clean' AND position = 3", {"row"}),
    "a block of no attack": (
        "INSERT INTO block SELECT model, 'other', block, file, bytes, sha256, notes, seconds, micro_batch FROM block "
        "WHERE attack = 'clean'",
        {"row"},
    ),
    "label": ("UPDATE sample SET label = (label + 1) % 10 WHERE position = 3", {"sample"}),
    "digest of a sample": ("UPDATE sample SET uid = 'abc' WHERE position = 3", {"sample"}),
    "a sample removed": ("DELETE FROM sample WHERE position = 11", {"sample"}),
}


@pytest.mark.parametrize("name", FORGED_ROWS)
def test_forged_rows(forged, digits, model, name):
    command, seen = FORGED_ROWS[name]
    sql(forged, command)
    assert seen | ({"summary"} if name != "a sample removed" else set()) <= kinds(forged, model, digits)


def test_a_hidden_success_is_seen_where_the_attacks_are_made_again(forged, digits, model):
    """Whoever takes an example away and calls the attack a failure is only seen by making the attack again."""
    tensors = load_file(forged / "tensors/m/bisection/block-000000.safetensors")
    p = int(tensors["position"][0])
    rewrite(
        forged,
        "tensors/m/bisection/block-000000.safetensors",
        lambda t: t.update({k: v[1:].clone() for k, v in t.items()}),
    )
    label = int(digits.y[p])
    sql(
        forged,
        f"UPDATE result SET success = 0, prediction = {label}, distance = 0, margin = -1 "
        f"WHERE attack = 'bisection' AND position = {p}",
    )
    for name in ("summary.json", "samples.csv"):
        (forged / name).unlink()
    assert kinds(forged, model, digits) == set()
    assert "attack" in kinds(forged, model, digits, again=True)


def test_edited_files(forged, digits, model):
    summary = json.loads((forged / "summary.json").read_text())
    summary["models"][0]["robust"][1]["count"] += 1
    (forged / "summary.json").write_text(json.dumps(summary))
    table = (forged / "samples.csv").read_text().splitlines()
    table[2] = table[2].replace("True", "False", 1)
    (forged / "samples.csv").write_text("\n".join(table))
    summary_edited, table_edited = verify(forged, {"m": model}, digits).differences
    assert "models.0.robust.1.count" in summary_edited.stored
    assert (table_edited.kind, table_edited.model, table_edited.sample) == ("table", "m", 1)
    (forged / "summary.json").write_text("{")
    (forged / "samples.csv").write_text("\n".join(table[:-1]))
    assert [d.kind for d in verify(forged, {"m": model}, digits).differences][:2] == ["summary", "table"]


def test_two_processes_that_finished_the_same_block(forged, digits, model):
    shutil.copy(forged / "results-main.sqlite", forged / "results-other.sqlite")
    checked = verify(forged, {"m": model}, digits)
    assert checked.ok and checked.checks["copy"] == 2 * (2 * 4 + 1)
    db = sqlite3.connect(forged / "results-other.sqlite", isolation_level=None)
    db.execute("UPDATE result SET margin = margin + 1 WHERE attack = 'pgd' AND position = 9")
    db.close()
    (found,) = verify(forged, {"m": model}, digits).differences
    assert (found.kind, found.attack, found.stored) == ("copy", "pgd", "results-other.sqlite")
    assert found.recomputed.startswith("block 1 of 'pgd' on 'm', sample 9 at")


def test_an_edited_specification(forged, digits, model):
    about = json.loads((forged / "run.json").read_text())
    about["spec"]["eps"] = [0.1, 0.3]
    (forged / "run.json").write_text(json.dumps(about))
    assert {"specification", "row"} <= kinds(forged, model, digits)


def test_a_run_that_was_made_elsewhere(forged, digits, model):
    about = json.loads((forged / "run.json").read_text())
    about["versions"]["torch"] = "2.11.0"
    (forged / "run.json").write_text(json.dumps(about))
    (forged / "summary.json").unlink()  # tells the versions too
    checked = verify(forged, {"m": model}, digits)
    assert checked.ok and checked.elsewhere == (f"versions.torch: 2.11.0 before, {torch.__version__} now",)


def test_another_model_and_other_data(true, digits, model):
    robust = zoo.model("digits-robust")
    assert {"model", "success", "margin"} <= kinds(true.folder, robust, digits)
    other = zoo.data("digits", limit=24)[12:]
    assert {"data", "sample", "ball", "distance"} <= kinds(true.folder, model, other)
    fewer = verify(true.folder, {"m": model}, digits[:6])
    assert "data" in {d.kind for d in fewer.differences} and "row" not in fewer.checks


def test_what_cannot_be_asked_says_so(true, digits, model):
    with pytest.raises(ValueError, match="spec.models names 'm', but models does not"):
        verify(true.folder, {"n": model}, digits)
    with pytest.raises(RuntimeError, match="float64: convert"):
        verify(true.folder, {"m": zoo.model("digits").double()}, digits)
    with pytest.raises(FileNotFoundError, match="there is no run"):
        verify(true.folder / "tensors", {"m": model}, digits)


def test_an_unfinished_run_is_checked_as_far_as_it_is(true, digits, model, tmp_path):
    folder = shutil.copytree(true.folder, tmp_path / "part", ignore=shutil.ignore_patterns("summary.json", "*.csv"))
    sql(folder, "DELETE FROM block WHERE block = 1")
    checked = verify(folder, {"m": model}, digits)
    assert checked.ok and checked.unfinished == 4
    assert checked.checks["success"] < verify(true.folder, {"m": model}, digits).checks["success"]


def test_outputs_that_are_not_finite(digits, tmp_path):
    net = zoo.model("digits")

    def picky(x):
        return torch.where((x.flatten(1).sum(1, keepdim=True) * 7 % 1 < 0.3), torch.nan, net(x))

    spec = Spec(models=("m",), data="digits", eps=0.2, attacks=ATTACKS, explain=0, soundness=False)
    run = evaluate({"m": picky}, digits, spec, tmp_path)
    with Store(tmp_path) as store:
        assert any(r.flagged for a in ("clean", "fgsm") for r in store.rows("m", a))
        assert store.tensors(Work("m", "pgd", 0))["position"].numel()
    assert verify(run.folder, {"m": picky}, digits).ok
    sql(tmp_path, "UPDATE result SET flagged = 0, prediction = 1, margin = 1 WHERE attack = 'clean' AND flagged = 1")
    assert "prediction" in kinds(tmp_path, picky, digits)


def test_half_precision_counts_are_checked_with_its_own_rounding(tmp_path):
    x, net = torch.rand(8, 5).bfloat16(), torch.nn.Linear(5, 3).bfloat16()
    spec = Spec(models=("m",), data="data", norm="L2", eps=(0.2, 0.6), attacks=ATTACKS, explain=0, soundness=False)
    run = evaluate({"m": net}, (x, net(x).argmax(1)), spec, tmp_path)
    checked = verify(run.folder, {"m": net}, (x, net(x).argmax(1)))
    assert checked.ok and checked.checks["ball"], checked


def test_what_is_made_again_as_a_whole(digits, model, tmp_path):
    spec = Spec(
        models=("m",),
        data="digits",
        eps=0.1,
        attacks=(AttackSpec("fgsm"),),
        bounds=(BoundSpec("ibp"),),
        corruptions=("gaussian_noise",),
        severities=(3,),
        explain=0,
    )
    run = evaluate({"m": model}, digits[:4], spec, tmp_path)
    quick, whole = (verify(run.folder, {"m": model}, digits[:4], again=again) for again in (False, True))
    assert quick.ok and whole.ok, (quick, whole)
    assert {"bound", "corruption"} <= quick.checks.keys() and "soundness" in whole.checks.keys() - quick.checks.keys()
    sql(
        tmp_path,
        "UPDATE result SET distance = distance * 1.01 + 0.001 WHERE attack = 'bound-ibp' AND position = 2",
        "UPDATE result SET margin = margin + 0.1 WHERE attack = 'corruption-gaussian_noise' AND position = 1",
        """UPDATE block SET notes = replace(notes, 'VALID', 'WEAK') WHERE attack = 'soundness'""",
    )
    found = {(d.kind, d.sample) for d in verify(run.folder, {"m": model}, digits[:4], again=True).differences}
    assert {("bound", 2), ("corruption", 1), ("soundness", None), ("summary", None)} <= found

"""Whole runs: the same bytes however often they stop, refusal of what does not belong, and what they tell."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from robustx import report, zoo
from robustx.engine import ModelError
from robustx.evaluation import (
    AttackSpec,
    BoundSpec,
    Outcome,
    Run,
    Spec,
    Store,
    Work,
    evaluate,
    instructive,
    standard_attacks,
    verify,
)
from robustx.evaluation.statistics import curve

ATTACKS = (
    AttackSpec("fgsm"),
    AttackSpec("pgd", {"steps": 3, "restarts": 2}),
    AttackSpec("bisection", {"steps": 3, "rounds": 2}),
)


def models():
    return {n: zoo.model(n) for n in ("digits", "digits-robust")}


def spec(**changes):
    given = {"eps": (0.1, 0.3), "attacks": ATTACKS, "block_size": 8, "explain": 3, "seed": 5, "soundness": False}
    return Spec(models=("digits", "digits-robust"), data="digits", **{**given, **changes})


@pytest.fixture(scope="module")
def digits():
    return zoo.data("digits", limit=20)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run that was not disturbed."""
    return evaluate(models(), digits, spec(), tmp_path_factory.mktemp("runs") / "whole")


def bytes_of(folder: Path) -> dict[str, str]:
    """Digests of everything that must not depend on how a run went: tensors, rows, exports."""
    files = [*folder.rglob("*.safetensors"), folder / "summary.json", folder / "samples.csv"]
    told = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}
    with Store(folder) as store:
        return told | {"": store.fingerprint()}


def test_the_same_bytes_again(whole, digits, tmp_path):
    again = evaluate(models(), digits, spec(), tmp_path / "again")
    assert bytes_of(again.folder) == bytes_of(whole.folder)
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize("passes", [3, 90])  # two are tried before anything is done
def test_interrupted_and_resumed_ends_in_the_same_bytes(whole, digits, tmp_path, passes):
    class Impatient(torch.nn.Sequential):
        count = 0

        def forward(self, x):
            Impatient.count += 1
            if Impatient.count == passes:
                raise KeyboardInterrupt
            return super().forward(x)

    Impatient.__qualname__ = "Sequential"  # it is the same model, but for its patience
    made = models()
    for m in made.values():
        m.__class__ = Impatient
        m._get_name = lambda: "Sequential"
    with pytest.raises(KeyboardInterrupt):
        evaluate(made, digits, spec(), tmp_path)
    with Store(tmp_path) as store:
        kept = store.done()
        before = {w: (tmp_path / store._file(w)).stat().st_mtime_ns for w in kept}
    assert bool(kept) == (passes > 3)
    run = evaluate(models(), digits, spec(), tmp_path)
    assert bytes_of(run.folder) == bytes_of(whole.folder)
    with Store(tmp_path) as store:  # what was finished was not done again
        assert before == {w: (tmp_path / store._file(w)).stat().st_mtime_ns for w in kept}


def test_killed_and_resumed_ends_in_the_same_bytes(whole, digits, tmp_path):
    folder = tmp_path / "killed"
    program = (
        "import sys; sys.path.insert(0, 'tests/evaluation')\n"
        "from test_evaluation_run import *\n"
        f"evaluate(models(), zoo.data('digits', limit=20), spec(), {str(folder)!r})"
    )
    here = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program], cwd=here, env={**os.environ, "PYTHONPATH": str(here)})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(list(folder.rglob("*.safetensors"))) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store(folder) as store:
        assert store.done()
    assert bytes_of(evaluate(models(), digits, spec(), folder).folder) == bytes_of(whole.folder)


def test_a_lost_tensor_file_is_made_again(whole, digits, tmp_path):
    run = evaluate(models(), digits, spec(), tmp_path)
    (tmp_path / "tensors/digits/pgd/block-000001.safetensors").unlink()
    assert not Run(tmp_path).finished
    assert len(Run(tmp_path).outcomes[0]) == 12  # the block of eight is left out
    evaluate(models(), digits, spec(), tmp_path)
    assert bytes_of(run.folder) == bytes_of(whole.folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m, d, s: (m, d, spec(eps=(0.1, 0.2))), r"spec\.eps: \[0\.1, 0\.3\] before, \[0\.1, 0\.2\] now"),
        (lambda m, d, s: (m, d, spec(seed=6)), r"spec\.seed: 5 before, 6 now"),
        (lambda m, d, s: (m, d[:10], s), r"data\.count: 20 before, 10 now"),
        (lambda m, d, s: ({**m, "digits": m["digits-robust"]}, d, s), r"models\.digits\.sha256"),
    ],
    ids=["budgets", "seed", "data", "weights"],
)
def test_another_run_in_the_same_folder_is_refused(whole, digits, change, said):
    before = bytes_of(whole.folder)
    with pytest.raises(ValueError, match=f"holds another run, which differs in .*{said}"):
        evaluate(*change(models(), digits, spec()), whole.folder)
    assert bytes_of(whole.folder) == before


def test_independent_attacks_see_every_sample_and_end_in_the_same_accuracies(digits, tmp_path):
    changes = {
        "attacks": (AttackSpec("pgd", {"steps": 2}), AttackSpec("fgsm")),
        "explain": 0,
        "eps": (0.05, 0.1, 0.2, 0.3),
    }
    after, beside = (
        evaluate(models(), digits, spec(independent=i, **changes), tmp_path / str(i)).summary() for i in (False, True)
    )
    for a, b in zip(after["models"], beside["models"], strict=True):
        assert a["robust"] == b["robust"] and [n["seen"] for n in b["attacks"]] == [b["clean"]["count"]] * 2
        assert a["attacks"][1]["optimality"] is None and 0 < b["attacks"][1]["optimality"] < 1
    assert after["optimality"]["fgsm"] is None
    both = [m["attacks"][1]["optimality"] for m in beside["models"]]
    assert beside["optimality"]["fgsm"] == pytest.approx(sum(both) / 2)
    assert f"fgsm {50 * sum(both):.1f}%" in report.render(Run(tmp_path / "True"))
    assert verify(tmp_path / "True", models(), digits).ok


def test_models_are_left_as_they_were(digits, tmp_path):
    model = zoo.model("digits")
    model.train().requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(
        {"m": model}, digits[:5], Spec(models=("m",), data="digits", eps=0.1, attacks=ATTACKS, explain=1), tmp_path
    )
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_run_tells(whole, digits):
    assert whole.finished and [o.model for o in whole.outcomes] == ["digits", "digits-robust"]
    s = whole.summary()
    assert s == json.loads((whole.folder / "summary.json").read_text())
    assert (s["samples"], s["norm"], s["finished"]) == (20, "Linf", True)
    for m, o in zip(s["models"], whole.outcomes, strict=True):
        right = zoo.model(m["name"])(digits.x).argmax(1) == digits.y
        assert m["clean"]["count"] == int(right.sum())
        assert [r["count"] for r in m["robust"]] == [c.count for c in curve(o, (0.1, 0.3))[1:]]
        assert m["distances"]["largest_tried"] == 0.6 and m["flagged"] == 0
        assert [a["attack"] for a in m["attacks"]] == ["fgsm", "pgd", "bisection"]
    assert [(c["first"], c["eps"]) for c in s["comparisons"]] == [("digits", e) for e in (0.0, 0.1, 0.3)]
    assert repr(whole).splitlines()[0].endswith("20 samples of digits, Linf)")
    assert "digits-robust  clean" in repr(whole)
    assert set(whole.seconds("digits")) == {"clean", "fgsm", "pgd", "bisection", "explanation"}


def test_the_table_of_samples(whole, digits):
    with open(whole.folder / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 == len(whole.samples())
    for row, told in zip(rows, whole.samples(), strict=True):
        assert int(row["index"]) == digits.index[int(row["position"])] and row["class"] == str(told["label"])
        assert (row["distance"] == "") == (told["by"] is None)
        if told["falls_at"] is not None:
            assert told["distance"] <= told["falls_at"]


def test_every_number_follows_from_the_stored_tensors(whole, digits):
    with Store(whole.folder) as store:
        for work in store.done():
            t = store.tensors(work)
            if work.attack in ("clean", "explanation"):
                continue
            x, y = digits.x[t["position"]], digits.y[t["position"]]
            assert (zoo.model(work.model)(t["adversarial"]).argmax(1) != y).all()
            assert ((t["adversarial"] - x).double().abs().flatten(1).amax(1) <= t["eps"] + 1e-7).all()
            assert (t["adversarial"] >= 0).all() and (t["adversarial"] <= 1).all()


@pytest.mark.parametrize("k", [0, 1])
def test_explanations_fit_the_models(whole, digits, k):
    mean, outcome = digits.x.mean(0, keepdim=True), whole.outcomes[k]
    model = zoo.model(outcome.model)
    notes, t = whole.explanation(outcome.model)
    assert [n["position"] for n in notes] == t["position"].tolist() and all(n["why"] for n in notes)
    y, rival, each = digits.y[t["position"]], t["rival"], torch.arange(len(notes))

    def lead(x):
        out = model(x).detach()
        return out[each, y] - out[each, rival]

    assert torch.equal(t["x"], digits.x[t["position"]])
    for maps, x in (("attribution", t["x"]), ("attribution_adversarial", t["adversarial"])):
        torch.testing.assert_close(t[maps].flatten(1).sum(1), lead(x) - lead(mean.expand_as(x)), atol=0.1, rtol=0.05)
    for i in range(len(notes)):
        assert t["attacked"][i] == (outcome.by[t["position"][i]] >= 0)
        if t["attacked"][i]:
            size = (t["adversarial"][i] - t["x"][i]).abs().max()
            assert size == pytest.approx(outcome.fallen[t["position"][i]], abs=1e-6)
        if t["valid"][i]:
            answer = int(model(t["counterfactual"][i : i + 1]).argmax())
            assert (answer == y[i]) == (notes[i]["goal"] == "reach")
            assert float(t["contributions"][i].sum()) == pytest.approx(float(t["gain"][i]), abs=1e-3)
            changed = (t["counterfactual"][i] != t["x"][i]).any(0)
            assert set(t["mask"][i][0][changed].tolist()) <= set(t["changed"][i].nonzero().flatten().tolist())


def outcome(name, fallen, lead):
    clean = torch.tensor(lead) > 0
    n = len(fallen)
    return Outcome(
        name,
        *(torch.tensor(v).numpy() for v in (range(n), [0] * n, [0] * n)),
        torch.tensor(lead, dtype=torch.float64).numpy(),
        torch.tensor([f if c else 0 for f, c in zip(fallen, clean, strict=True)], dtype=torch.float64).numpy(),
        torch.where(torch.isnan(torch.tensor(lead)), 0.0, torch.inf).numpy(),
        torch.tensor([0 if c and f < 9 else -1 for f, c in zip(fallen, clean, strict=True)]).numpy(),
        torch.zeros(n, dtype=torch.long).numpy(),
    )


def test_which_samples_teach_most():
    inf, nan = torch.inf, torch.nan
    a = outcome("a", [0.5, 0.01, 0.1, 0.40, inf, 0.0, 0.3, 0.2], [9.0, 0.1, 8.0, 1.0, 9.0, -5.0, nan, 1.0])
    b = outcome("b", [0.5, 0.30, 0.1, 0.39, inf, 0.5, 0.3, 0.9], [1.0, 2.0, 2.0, 9.0, 9.0, 1.0, 2.0, 0.5])
    told = instructive([a, b], 5)
    assert [p for p, _ in told] == [7, 2, 1, 4, 5]
    assert [w.split(":")[0] for _, w in told] == [
        "here b resists most compared with a",
        "a is surer here than on most, and yet little change fools it",
        "b is surer here than on most, and yet little change fools it",
        "the hardest to fool",
        "a is clearly wrong without any attack",
    ]
    assert 6 not in dict(instructive([a, b], 99)) and len(instructive([a, b], 99)) == 7
    assert instructive([a, b], 0) == []
    assert [p for p, _ in instructive([a], 1)] == [2]


def test_a_model_without_gradients_on_the_way_still_has_a_report_of_itself(digits, tmp_path):
    net = zoo.model("digits")

    def picky(x):  # NaN off the data: on the path of integrated gradients
        out = net(x)
        return torch.where(((x * 16) % 1 != 0).flatten(1).any(1, keepdim=True), torch.nan, out)

    s = Spec(models=("picky",), data="digits", eps=0.1, attacks=[AttackSpec("fgsm")], explain=2, soundness=False)
    run = evaluate({"picky": picky}, digits[:6], s, tmp_path)
    notes, tensors = run.explanation("picky")
    assert "NaN or infinite" in notes[0]["no_attribution"] and "attribution" not in tensors
    assert run.summary()["models"][0]["robust"][0]["count"] == 0  # nothing is known there
    assert run.summary()["models"][0]["attacks"][0]["nearest"] == 0


def test_a_model_that_knows_nothing_at_all(digits, tmp_path):
    s = Spec(models=("nan",), data="digits", eps=0.1, attacks=ATTACKS, explain=2, soundness=False)
    run = evaluate({"nan": lambda x: torch.full((len(x), 10), torch.nan)}, digits[:4], s, tmp_path)
    m = run.summary()["models"][0]
    assert (m["clean"]["count"], m["flagged"], m["distances"]["quartiles"]) == (0, 4, [None] * 3)
    assert [a["seen"] for a in m["attacks"]] == [0, 0, 0] and run.explanation("nan") == ([], {})


def test_half_precision(tmp_path):
    x = torch.rand(6, 5).bfloat16()
    net = torch.nn.Linear(5, 3).bfloat16()
    s = Spec(models=("half",), data="data", eps=(0.1, 0.4), attacks=ATTACKS, explain=2)
    run = evaluate({"half": net}, (x, net(x).argmax(1)), s, tmp_path)
    assert run.summary()["models"][0]["clean"]["count"] == 6
    with Store(tmp_path) as store:
        t = store.tensors(Work("half", "bisection", 0))
    assert t["adversarial"].dtype == torch.bfloat16 and len(t["position"])
    assert ((t["adversarial"].double() - x[t["position"]].double()).abs().amax(1) <= t["eps"] + 1e-9).all()


def test_tables_and_other_inputs(tmp_path):
    model, data = zoo.load("breast-cancer", limit=12)
    s = Spec(models=("m",), data="breast-cancer", eps=0.05, attacks=ATTACKS, explain=2)
    run = evaluate({"m": model}, data, s, tmp_path / "table")
    assert run.explanation("m")[1]["changed"].shape == (2, 30) and len(run.data["columns"]) == 30
    sequences = (torch.rand(6, 3, 5), torch.arange(6) % 2)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 2))
    s = Spec(models=("m",), data="data", eps=0.05, attacks=ATTACKS, explain=1)
    assert evaluate({"m": net}, sequences, s, tmp_path / "other").finished


def test_without_a_specification(tmp_path):
    x, y = torch.rand(5, 4), torch.arange(5) % 2
    run = evaluate({"m": torch.nn.Linear(4, 2)}, (x, y), out=tmp_path)
    assert run.spec == Spec(models=("m",), data="data") and run.spec.attacks == standard_attacks()


def test_the_limit_and_progress(digits, tmp_path, capsys):
    s = spec(limit=10, explain=0)
    run = evaluate(models(), digits, s, tmp_path, show_progress=True)
    assert run.summary()["samples"] == 10 and run.explanation("digits") is None
    said = capsys.readouterr().err
    for label, models_then in (("clean", run.summary()["models"]), ("bisection", None)):
        last = [line for line in said.replace("\r", "\n").splitlines() if line.startswith(label)][-1]
        assert "100%" in last
        if models_then:
            assert last.endswith(" | ".join(f"{m['name']} {m['clean']['value']:.1%}" for m in models_then) + "]")
        else:
            shares = [m["robust"][1]["value"] for m in run.summary()["models"]]
            assert last.endswith(f"digits {shares[0]:.1%} | digits-robust {shares[1]:.1%} at 0.3]")
    evaluate(models(), digits, s, tmp_path)
    assert capsys.readouterr() == ("", "")


LINEAR = torch.nn.Linear(4, 3)
XY = (torch.rand(6, 4), torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("given", "data", "named", "error", "said"),
    [
        ({"m": LINEAR}, XY, ("n",), ValueError, "spec.models names 'n', but models does not"),
        ({"m": LINEAR, "n": LINEAR}, XY, ("m",), ValueError, "models names 'n', but spec.models does not"),
        ({"m": 3}, XY, ("m",), TypeError, "model 'm' must be callable, got int"),
        ({"m": LINEAR}, (XY[0][:0], XY[1][:0]), ("m",), ValueError, "at least one sample"),
        ({"m": LINEAR}, (XY[0], XY[1] + 1), ("m",), ValueError, "model 'm', sample 2: y must hold classes from 0 to 2"),
        ({"m": LINEAR}, (XY[0] * 2, XY[1]), ("m",), ValueError, "leaves its bounds"),
        ({"m": LINEAR}, (XY[0].double(), XY[1]), ("m",), RuntimeError, "float32: convert"),
        ({"m": lambda x: (LINEAR(x), x)}, XY, ("m",), ValueError, "must return one tensor, got a tuple"),
        ({"m": lambda x: LINEAR(x)[:, :, None]}, XY, ("m",), ValueError, r"class scores \[B, K\]"),
        ({"m": torch.nn.Sequential(torch.nn.Dropout(), LINEAR)}, XY, ("m",), ValueError, "train mode"),
    ],
    ids=[
        "missing",
        "unnamed",
        "not callable",
        "empty",
        "labels",
        "outside",
        "dtype",
        "tuple",
        "1-d",
        "train",
    ],
)
def test_bad_input_says_so(given, data, named, error, said, tmp_path):
    with pytest.raises(error, match=said):
        evaluate(given, data, Spec(models=named, data="data", eps=0.1, attacks=ATTACKS), tmp_path)


def test_what_would_fail_in_the_end_fails_at_the_beginning(tmp_path):
    y = XY[1].clone()
    y[5] = 7  # in the last block
    s = Spec(models=("m",), data="data", eps=0.1, attacks=ATTACKS, block_size=2)
    with pytest.raises(ValueError, match="model 'm', sample 5: .* got 7"):
        evaluate({"m": LINEAR}, (XY[0], y), s, tmp_path)
    s = Spec(models=("m",), data="data", eps=0.1, attacks=ATTACKS, corruptions=("fog",))
    with pytest.raises(ValueError, match=r"corruptions are for pictures: x must be pictures .* got shape \(1, 4\)"):
        evaluate({"m": LINEAR}, XY, s, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_fails_on_the_way_says_where_and_leaves_what_was_done(tmp_path):
    failing = torch.nn.Sequential(torch.nn.Linear(4, 3))
    s = Spec(models=("m",), data="data", eps=0.1, attacks=ATTACKS[:1], block_size=2, soundness=False, explain=0)

    def fail(module, args):
        if torch.equal(args[0], XY[0][2:4]):
            raise RuntimeError("no more")

    handle = failing.register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match="clean of model 'm', block 1: the model failed on .*no more"):
        evaluate({"m": failing}, XY, s, tmp_path)
    with Store(tmp_path) as store:
        assert store.done() == {Work("m", "clean", 0), Work("m", "fgsm", 0)}
    handle.remove()
    assert evaluate({"m": failing}, XY, s, tmp_path).finished


def test_what_no_bound_is_known_for_is_told_and_the_run_goes_on(tmp_path):
    gelu = torch.nn.Sequential(LINEAR, torch.nn.GELU())
    data = XY[0], gelu(XY[0]).argmax(1)
    bounds = (BoundSpec("crown"), BoundSpec("smoothing", {"n": 99, "sigma": 0.01}))
    s = Spec(models=("m",), data="data", eps=0.1, attacks=ATTACKS[:1], bounds=bounds, explain=0, soundness=False)
    run = evaluate({"m": gelu}, data, s, tmp_path)
    crown, smoothing = run.summary()["models"][0]["certified"]
    assert (crown["accuracy"][0]["count"], smoothing["notes"]) == (0, []) and smoothing["accuracy"][0]["count"] > 0
    assert "no bound for the operation 'gelu'" in crown["notes"][0]
    assert run.finished and verify(tmp_path, {"m": gelu}, data).ok
    page = report.render(run)
    assert "Nothing is proved by crown: there is no bound" in page and "(crown)" not in page.split("<section")[1]
    assert "Nothing is proved by crown: there is no bound" in report.render(run, "md")


def test_what_is_of_another_kind_or_name_or_nan(digits, tmp_path):
    with pytest.raises(TypeError, match="models must map names to models, .* got Linear"):
        evaluate(LINEAR, XY)
    with pytest.raises(TypeError, match=r"spec must be a Spec, such as Spec.read\('spec.toml'\), got dict"):
        evaluate({"m": LINEAR}, XY, {"eps": 0.1})
    with pytest.raises(NotADirectoryError, match="is a file; name a new"):
        evaluate({"m": LINEAR}, XY, out=__file__)
    with pytest.raises(ValueError, match="for data 'digits', got 'data'"):
        evaluate(models(), XY, spec(), tmp_path)
    bad = zoo.Data("digits", digits.x.clone(), digits.y, digits.index, digits.classes, kind="image")
    bad.x[4, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="sample 4 of 'digits' is not finite or leaves the bounds"):
        evaluate(models(), bad, spec(), tmp_path)
    assert not list(tmp_path.iterdir())

"""``robustx attack``: what it prints and writes is what happened."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from robustx import zoo
from robustx.attacks import PGD
from robustx.cli import attack as command


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_hold_what_was_found(run, tmp_path):
    said = run("attack", "digits", "--limit", 20, "--out", "found")
    assert said.code == 0 and not said.err
    model, data = zoo.load("digits", limit=20)
    tensors = load_file(tmp_path / "found" / "adversarial.safetensors")
    result = PGD(model, "ce", bounds=(0, 1), norm="Linf", eps=0.1).run(data.x, data.y)
    assert torch.equal(tensors["adversarial"], result.adversarial)
    assert torch.equal(tensors["x"], data.x) and torch.equal(tensors["index"], data.index)
    lines, totals = (
        rows(tmp_path / "found" / "samples.csv"),
        json.loads((tmp_path / "found" / "attack.json").read_text()),
    )
    after = model(tensors["adversarial"]).argmax(1)
    assert [line["after"] for line in lines] == [str(int(k)) for k in after]
    assert [line["state"] == "fooled" for line in lines] == result.success.tolist()
    assert [float(line["Linf"]) for line in lines] == pytest.approx(result.distance.tolist())
    assert totals["fooled"] == int(result.success.sum()) > 0
    assert totals["forwards"] == int(result.forwards.sum())
    assert f"{totals['fooled']} of 20" in said.out
    assert (tmp_path / "found" / "adversarial.png").read_bytes().startswith(b"\x89PNG")


def test_results_do_not_depend_on_how_samples_are_batched(run):
    one, other = (
        json.loads(run("attack", "digits", "--limit", 10, "--batch-size", n, "--json").out)["samples"] for n in (3, 64)
    )
    assert [s["state"] for s in one] == [s["state"] for s in other]
    assert [s["L2"] for s in one] == pytest.approx([s["L2"] for s in other], abs=1e-4)


def test_nothing_found_is_exit_code_1(run):
    said = run("attack", "digits", "--limit", 5, "--eps", 0)
    assert said.code == 1 and "0 of 5" in said.out


def test_a_target_is_reached_or_not(run):
    told = json.loads(run("attack", "digits", "--target", 3, "--norm", "L2", "--eps", 3, "--limit", 12, "--json").out)
    fooled = [s for s in told["samples"] if s["state"] == "fooled"]
    assert fooled and all(s["after"] == "3" != s["before"] for s in fooled)
    assert all(s["L2"] <= 3 + 1e-6 for s in told["samples"])


def test_settings_reach_the_attack(run):
    options = ("--attack", "bisection", "--eps", 1, "--set", "rounds=3", "--steps", 5, "--loss", "margin")
    told = json.loads(run("attack", "digits", "--limit", 4, *options, "--json").out)
    assert told["attack"] == "Bisection" and told["settings"]["rounds"] == 3 and told["settings"]["steps"] == 5
    assert 0 < told["median_distance"] < 0.5


@pytest.mark.parametrize("norm", command.EPS)
def test_every_norm_has_a_default_budget(norm, run):
    assert run("attack", "digits", "--limit", 6, "--norm", norm).code == 0


@pytest.mark.parametrize("data", ["images", "series", "table"])
def test_your_own_model_and_data(data, run, tmp_path):
    said = run("attack", "--model", "mine:net", "--data", f"mine:{data}", "--eps", "8/255", "--out", "found")
    assert said.code == 0, said.err
    assert (tmp_path / "found" / "adversarial.png").exists() == (data == "images")


@pytest.mark.filterwarnings("default")
def test_your_own_weights(run, tmp_path):
    from safetensors.torch import save_file

    zeros = {k: torch.zeros(s) for k, s in {"1.weight": (8, 12), "1.bias": 8, "3.weight": (3, 8), "3.bias": 3}.items()}
    save_file(zeros, str(tmp_path / "zeros.safetensors"))
    options = ("--model", "mine:net?hidden=8", "--data", "mine:images", "--weights", "zeros.safetensors", "--json")
    said = run("attack", *options)
    told = json.loads(said.out)
    assert said.code == 1 and "gradient is exactly zero" in said.err
    assert {s["before"] for s in told["samples"]} == {"0"}


def test_an_interrupt_keeps_finished_samples(run, tmp_path, monkeypatch):
    attack, calls = PGD.run, []

    def stop_at_the_third(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, *args, **kwargs)

    monkeypatch.setattr(PGD, "run", stop_at_the_third)
    said = run("attack", "digits", "--limit", 20, "--batch-size", 5, "--out", "found")
    assert said.code == 130 and "10 of 20 samples" in said.err and "found" in said.err
    assert len(rows(tmp_path / "found" / "samples.csv")) == 10
    calls[:] = [1, 1]
    said = run("attack", "digits", "--limit", 20, "--batch-size", 5)
    assert said.code == 130 and "nothing was finished" in said.err and not said.out

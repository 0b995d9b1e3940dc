"""``robustx explain`` and ``robustx counterfactual``: what they print and write is what happened."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from robustx import zoo
from robustx.attribution import FeatureAblation, IntegratedGradients, Saliency


@pytest.mark.parametrize("method", ["integrated-gradients", "saliency", "feature-ablation"])
@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_attributions_are_those_of_the_class(name, method, run, tmp_path):
    said = run("explain", name, "--row", 3, "--method", method, "--out", "why")
    assert said.code == 0 and not said.err
    model, data = zoo.load(name)
    x, target = data.x[3:4], int(model(data.x[3:4]).argmax())
    expected = {
        "integrated-gradients": lambda: IntegratedGradients(model).attribute(x, target=target),
        "saliency": lambda: Saliency(model).attribute(x, target=target, abs=False),
        "feature-ablation": lambda: FeatureAblation(model).attribute(x, target=target),
    }[method]()
    found = load_file(tmp_path / "why" / "attribution.safetensors")["attribution"]
    torch.testing.assert_close(found, expected)
    with (tmp_path / "why" / "attribution.csv").open(newline="") as file:
        parts = [float(line["attribution"]) for line in csv.DictReader(file)]
    assert parts == sorted(parts, key=abs, reverse=True)
    assert sorted(parts) == pytest.approx(sorted(expected.flatten().tolist()), abs=1e-6)
    assert (tmp_path / "why" / "attribution.png").read_bytes().startswith(b"\x89PNG")


def test_integrated_gradients_say_what_they_miss(run):
    told = json.loads(run("explain", "digits", "--baseline", "mean", "--steps", 300, "--json").out)
    assert told["sum"] + told["missing"] == pytest.approx(told["output"] - told["output_at_baseline"])
    assert abs(told["missing"]) < 0.05 and len(told["parts"]) == 10


def test_a_table_is_explained_in_its_units(run):
    said = run("explain", "breast-cancer", "--row", 3, "--top", 30)
    units = zoo.data("breast-cancer").to_units(zoo.data("breast-cancer").x[3:4])[0]
    line = next(line for line in said.out.splitlines() if line.startswith("  worst area"))
    assert f"{float(units[23]):.4g}" in line and "square length units" in line


def test_superpixels_are_named_and_counted(run):
    told = json.loads(
        run("explain", "digits", "--method", "feature-ablation", "--segments", 9, "--json", "--top", 99).out
    )
    assert sum(p["pixels"] for p in told["parts"]) == 64


def test_data_that_are_neither_image_nor_table(run):
    said = run("explain", "--model", "mine:net", "--data", "mine:series", "--target", 2, "--out", "why")
    assert said.code == 0 and "axis 0" in said.out


def test_a_counterfactual_in_units(run, tmp_path):
    said = run("counterfactual", "breast-cancer", "--row", 3, "--out", "other")
    assert said.code == 0 and not said.err
    told = json.loads((tmp_path / "other" / "counterfactual.json").read_text())
    model, data = zoo.load("breast-cancer")
    after = load_file(tmp_path / "other" / "counterfactual.safetensors")["counterfactual"]
    assert data.classes[model(after).argmax()] == told["counterfactual_answer"] == "malignant"
    moved = (after != data.x[3:4])[0].nonzero().flatten().tolist()
    assert [data.columns[i].name for i in moved] == [c["feature"] for c in told["changes"]]
    change, i = told["changes"][0], moved[0]
    assert change["to"] == pytest.approx(float(data.to_units(after)[0, i]))
    assert f"{change['from']:.4g}" in said.out and change["unit"] in said.out
    assert sum(c["contribution"] for c in told["changes"]) == pytest.approx(
        told["margin"] - told["margin_before"], abs=1e-4
    )
    assert (tmp_path / "other" / "counterfactual.png").exists()


def test_what_is_kept_stays(run):
    first = json.loads(run("counterfactual", "breast-cancer", "--row", 3, "--json").out)["changes"][0]["feature"]
    told = json.loads(run("counterfactual", "breast-cancer", "--row", 3, "--keep", first, "--margin", 1, "--json").out)
    assert told["found"] and first not in [c["feature"] for c in told["changes"]]
    assert told["margin"] >= 1 - 1e-4


def test_a_counterfactual_of_an_image(run, tmp_path):
    said = run("counterfactual", "digits", "--row", 5, "--replace", 0, "--target", 4, "--out", "other")
    assert said.code == 0 and "superpixel" in said.out
    tensors = load_file(tmp_path / "other" / "counterfactual.safetensors")
    changed = tensors["x"] != tensors["counterfactual"]
    assert changed.any() and (tensors["counterfactual"][changed] == 0).all()
    assert (tmp_path / "other" / "counterfactual.png").read_bytes().startswith(b"\x89PNG")


def test_no_counterfactual_is_exit_code_1(run, tmp_path):
    said = run("counterfactual", "breast-cancer", "--row", 3, "--replace", 0, "--out", "other")
    assert said.code == 1 and "Nothing was found" in said.out
    assert not (tmp_path / "other" / "counterfactual.png").exists()


def test_several_counterfactuals_each_with_other_features(run, tmp_path):
    said = run("counterfactual", "breast-cancer", "--row", 3, "--count", 3, "--margin", 0.5, "--out", "other")
    told = json.loads((tmp_path / "other" / "counterfactual.json").read_text())
    assert said.code == 0 and said.out.count("Or else it would be malignant") == 2
    model, data = zoo.load("breast-cancer")
    tensors = load_file(tmp_path / "other" / "counterfactual.safetensors")
    out = model(data.x[3:4])[0].detach()
    assert told["margin_before"] == pytest.approx(float(out[0] - out[1]), abs=1e-5)
    every, sets = [told, *told["alternatives"]], set()
    for k, one in enumerate(every):
        out = model(tensors["counterfactual" + (f"_{k}" if k else "")])[0].detach()
        assert one["margin"] == pytest.approx(float(out[0] - out[1]), abs=1e-5) and one["margin"] >= 0.5
        sets.add(frozenset(c["feature"] for c in one["changes"]))
    assert len(sets) == 3 and not any(a < b for a in sets for b in sets)
    with (tmp_path / "other" / "changes.csv").open(newline="") as file:
        lines = [(int(line["rank"]), line["feature"]) for line in csv.DictReader(file)]
    assert lines == [(k, c["feature"]) for k, one in enumerate(every) for c in one["changes"]]


def test_a_probability_a_distance_and_a_number_of_changes_are_kept_to(run):
    asked = ("counterfactual", "breast-cancer", "--row", 5, "--json", "--min-prob", 0.9)
    few, near = (json.loads(run(*asked, "--distance", d).out) for d in ("l0+l2", "l2"))
    assert few["counterfactual_probability"] > 0.9 and near["counterfactual_probability"] > 0.9
    assert len(few["changes"]) <= len(near["changes"])
    one = json.loads(run(*asked, "--max-changes", len(few["changes"]) - 1 or 1).out)
    assert len(one["changes"]) <= (len(few["changes"]) - 1 or 1)


def test_what_was_not_found_is_said_in_words(run):
    said = run("counterfactual", "breast-cancer", "--row", 3, "--min-prob", 0.99, "--replace", 0)
    assert said.code == 1
    assert "another answer than benign with more than 0.99. Not found: the nearest try was" in said.out
    said = run("counterfactual", "digits", "--row", 3, "--replace", 0, "--segments", 1, "--min-prob", 0.9999999)
    assert said.code == 1 and "Infeasible: no allowed change reaches the goal, which is proved" in said.out
    told = json.loads(run("counterfactual", "digits", "--replace", 0, "--segments", 1, "--count", 2, "--json").out)
    assert told["alternatives"][0]["status"] == "infeasible"
    said = run("counterfactual", "digits", "--row", 3, "--time-limit", 1e-9)
    assert said.code == 1 and "Out of time" in said.out


@pytest.mark.parametrize("data", ["images", "series", "table"])
def test_counterfactuals_of_your_own(data, run):
    assert run("counterfactual", "--model", "mine:net", "--data", f"mine:{data}").code in (0, 1)

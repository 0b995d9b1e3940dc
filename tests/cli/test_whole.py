"""The whole command line, one command after the other, as on somebody's own pictures: a network of torchvision with
random weights, and a folder of photographs that come with scikit-image.
"""

import json
from pathlib import Path

import pytest
from PIL import Image
from skimage import data as pictures

from robustx.evaluation import Run

SHOTS = {"animal": ("chelsea", "hubble_deep_field"), "thing": ("coffee", "rocket")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for each class."""
    place = tmp_path_factory.mktemp("photographs")
    for label, names in SHOTS.items():
        (place / label).mkdir()
        for name in names:
            Image.fromarray(getattr(pictures, name)()).resize((96, 80)).save(place / label / f"{name}.png")
    return place


@pytest.mark.slow
def test_every_command_on_a_network_and_a_folder_of_ones_own(run, folder):
    argv = ["--model", "torchvision:resnet18@none", "--data", f"folder:{folder}?size=32"]
    argv += ["--eps", "2/255,8/255", "--steps", 2, "--explain", 1, "--block-size", 2, "--corruptions", "fog"]
    first = run("evaluate", *argv, "--severities", 3, "--shard", "0/2", "--out", "one")
    assert first.code == 0 and "Share 0 of 2 is done" in first.out, first.err
    assert run("evaluate", *argv, "--severities", 3, "--shard", "1/2", "--out", "two").code == 0
    merged = run("merge", "one", "two", "--out", "both")
    assert merged.code == 0 and "robustx resume both" in merged.out
    told = json.loads(run("resume", "both", "--json").out)
    assert told["finished"] and told["samples"] == 4 and told["models"][0]["soundness"]["verdict"]
    verified = run("verify", "both")
    assert verified.code == 0, verified.out
    listed = run("ls", ".")
    assert listed.code == 0 and "both" in listed.out
    assert run("report", "both").code == 0 and run("report", "both", "--format", "md").code == 0
    assert "<script" not in Path("both/report.html").read_text()
    assert run("export", "both", "--to", "jsonl").code == 0
    same = run("compare", "both", "both")
    assert same.code in (0, 2)
    explained = run("explain", *argv[:4], "--row", 1, "--steps", 4, "--out", "why")
    assert explained.code == 0 and Path("why/attribution.png").exists(), explained.err
    attacked = run("attack", *argv[:4], "--eps", "8/255", "--steps", 2, "--out", "found")
    assert attacked.code in (0, 1) and Path("found/adversarial.safetensors").exists(), attacked.err
    assert Run("both").summary()["data"]["name"] == f"folder:{folder}?size=32"

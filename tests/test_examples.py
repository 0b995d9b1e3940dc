"""The examples run, as a reader would run them, with their defaults cut short and with a model of one's own."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]

OWN = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def test():
    x = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return x, net()(x).argmax(1)
"""

RUNS = {  # name: arguments, what is printed, what is written
    "generate_adversarial": (["--limit", "8"], "right before: 8 of 8", "adversarial/adversarial.png"),
    "find_counterfactual": ([], "radius error", "counterfactual/counterfactual.png"),
    "explain_prediction": (["--steps", "50"], "attributions add up to", "explanation/explanation.png"),
    "evaluate_robustness": (
        ["--limit", "8", "--steps", "3", "--eps", "0.1"],
        "still right",
        "runs/example/report.html",
    ),
}
MINE = ["--model", "mine:net", "--data", "mine:test"]
MORE = [
    ("generate_adversarial", [*MINE, "--eps", "0.3"], "becomes", "adversarial/adversarial.png"),
    ("find_counterfactual", [*MINE, "--row", "0"], "becomes", "counterfactual/counterfactual.png"),
    ("find_counterfactual", ["--model", "digits"], "6 becomes", "counterfactual/counterfactual.png"),
    ("find_counterfactual", ["--keep", "radius error"], "becomes malignant", None),
    ("explain_prediction", [*MINE, "--row", "0"], "integrated", "explanation/explanation.png"),
    ("explain_prediction", ["--model", "breast-cancer"], "worst", None),
    ("gradients_and_paths", [], "ten pixels at random", "explanation/gradients_and_paths.png"),
    ("deeplift_and_lrp", [], "adds up to", "explanation/deeplift_and_lrp.png"),
    ("layers_and_neurons", [], "conductances add up to", "explanation/layers_and_neurons.png"),
    ("activation_maps", [], "guided Grad-CAM", "explanation/activation_maps.png"),
    ("visualize_attributions", [], "explained good, score", "explanation/visualize_series.png"),
    ("coalitions", [], "squares at random", "explanation/coalitions.png"),
    ("compare_explanations", ["--samples", "8"], "is more faithful than chance", "explanation/deletion_curves.png"),
    ("influence", ["--rows", "3"], "chance", "influence/influence.png"),
    ("concepts", ["--random", "8"], "means something", "explanation/concepts.png"),
    ("llm_attribution", ["--steps", "30"], "goes to", "explanation/llm_attribution.png"),
    ("vision_transformer", ["--epochs", "3"], "patches at random", "explanation/transformers.png"),
    ("activation_maps", ["--layer", "relu1", "--rows", "0"], "on the ink", "explanation/activation_maps.png"),
    ("layers_and_neurons", ["--model", "digits-robust"], "answer 6", "explanation/layers_and_neurons.png"),
    ("sound_evaluation", ["--samples", "6", "--steps", "10"], "as it is              fools   0%  VALID", None),
    ("attack_families", ["--samples", "6"], "sigma-zero in L0", "families/attacks_auto.png"),
    (
        "digits_counterfactual",
        ["--squares", "3"],
        "squares, proved: smallest",
        "counterfactual/digits_counterfactual.png",
    ),
    (
        "image_counterfactual",
        ["--size", "32", "--segments", "6", "--budget", "16", "--reference", "noise"],
        "become something else",
        "counterfactual/rocket.png",
    ),
    ("corruptions", ["--samples", "6", "--size", "64"], "mean of fifteen", "corruptions/corruptions.jpg"),
    ("rotations", ["--samples", "20"], "digits-robust   ", "rotations/attacks_spatial.png"),
    ("attack_folder", ["--size", "64", "--steps", "5"], "read back, 4 of 4", "changed/astronaut.png"),
    ("attack_table", ["--keep", "alcohol", "--norm", "L0"], "row 1: 0 becomes 1 at L0 1", None),
    ("attack_table", ["wine.csv", "--norm", "Linf", "--rows", "2"], "learnt 100% of 4 rows", None),
    ("loan_counterfactual", [], "It would have been a yes", "loan/loan_waterfall.png"),
    ("evaluate_robustness", [*MINE, "--steps", "3", "--eps", "0.1"], "mine:net", "runs/example/report.html"),
]


@pytest.mark.parametrize("name, run", RUNS.items(), ids=RUNS)
def test_an_example_runs(name, run, tmp_path):
    arguments, printed, written = run
    done = subprocess.run(
        [sys.executable, str(HERE / "examples" / f"{name}.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    if written:
        assert (tmp_path / written).stat().st_size > 1000


@pytest.mark.parametrize("name, arguments, printed, written", MORE)
def test_an_example_takes_other_models_and_arguments(name, arguments, printed, written, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "wine.csv").write_text("age,pay,grade\n1,2,0\n2,1,0\n5,9,1\n6,7,1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(HERE / "examples" / f"{name}.py"), run_name="__main__")
    sys.modules.pop("mine", None)
    assert printed in capsys.readouterr().out
    if written:
        assert (tmp_path / written).stat().st_size > 1000


def test_every_example_is_run():
    elsewhere = {"train_zoo", "photograph_report"}  # the second where there is a browser: tests/report
    assert {*RUNS, *(name for name, *_ in MORE), *elsewhere} == {p.stem for p in (HERE / "examples").glob("*.py")}


@pytest.mark.parametrize("path", sorted((HERE / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_an_example_says_how_it_is_run(path):
    assert f"python examples/{path.name}" in path.read_text()

"""RobustBench's two numbers from runs whose rows were written by hand, so that every number is known."""

import pytest
import torch

from robustx.evaluation import AttackSpec, Row, Run, Spec, Store, Work
from robustx.evaluation.identity import identity
from robustx.evaluation.robustbench import robustbench_json
from robustx.zoo import Data

AUTO, PGD = AttackSpec("autoattack"), AttackSpec("pgd")


def row(position, eps, success):
    return Row(position, eps, success, False, 1 if success else 0, 0.5 if success else -0.5, eps, 1, 1)


def run_of(folder, rows, attacks=(AUTO, PGD), eps=(8 / 255,), names=("m",), data="torchvision:CIFAR10"):
    """Eight samples, the last of which the models get wrong; ``rows`` of each attack, the same for each model."""
    spec = Spec(models=names, data=data, eps=eps, attacks=attacks, explain=0, soundness=False)
    x, y = torch.arange(8.0)[:, None] / 8, torch.zeros(8, dtype=torch.long)
    model = torch.nn.Linear(1, 2)
    held = Data(data, x, y, torch.arange(8), ("a", "b"))
    about = identity(spec, dict.fromkeys(names, model), held, torch.device("cpu"))
    with Store.start(folder, about, [(i, str(i), 0) for i in range(8)]) as store:
        for m in names:
            store.finish(Work(m, "clean", 0), [row(i, 0.0, i == 7) for i in range(8)], {})
            for attack, found in zip(attacks, rows, strict=True):
                store.finish(Work(m, attack.label, 0), found, {})
    return Run(folder)


def tried(fooled, seen=range(7), eps=8 / 255):
    return [row(i, eps, i in fooled) for i in seen]


def test_the_two_numbers(tmp_path):
    about = {"name": "A model", "architecture": "Linear", "reported": "60.00"}
    got = robustbench_json(run_of(tmp_path, [tried({0, 1}), tried(set(), range(2, 7))]), about=about)
    assert got == {
        "name": "A model",
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "architecture": "Linear",
        "eps": "8/255",
        "clean_acc": "87.50",
        "reported": "60.00",
        "autoattack_acc": "62.50",
        "footnote": "Measured on 8 of 10000 samples.",
    }
    assert list(got).index("eps") < list(got).index("clean_acc") < list(got).index("autoattack_acc")


def test_what_others_find_beside_autoattack_is_external(tmp_path):
    got = robustbench_json(run_of(tmp_path, [tried({0, 1}), tried({2}, range(2, 7))]))
    assert (got["autoattack_acc"], got["external"]) == ("62.50", "50.00")


def test_an_autoattack_that_was_spared_samples_is_no_figure(tmp_path):
    run = run_of(tmp_path, [tried({0}), tried({1}, range(1, 7))], attacks=(PGD, AUTO))
    with pytest.raises(ValueError, match="spared it samples; name 'autoattack' first"):
        robustbench_json(run)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"version": "rand"}, "got with options {'version': 'rand'}"), ({"steps": 5}, "got with options {'steps': 5}")],
    ids=["version", "steps"],
)
def test_another_autoattack_is_no_standard_one(tmp_path, options, said):
    run = run_of(tmp_path, [tried({0})], attacks=(AttackSpec("autoattack", options),))
    with pytest.raises(ValueError, match=f"in its standard version, {said}"):
        robustbench_json(run)
    without = run_of(tmp_path / "none", [tried({0})], attacks=(PGD,))
    with pytest.raises(ValueError, match="in its standard version, got none"):
        robustbench_json(without)


def test_the_budget_is_the_leaderboards_or_named(tmp_path):
    both = [*tried({0}, eps=0.1), *tried({1}, range(1, 7), eps=0.2)]
    run = run_of(tmp_path, [both], (AUTO,), (0.1, 0.2), data="moons")
    with pytest.raises(ValueError, match=r"eps must be one of the run's budgets 0\.1, 0\.2, got None"):
        robustbench_json(run)
    got = robustbench_json(run, eps=0.2)
    assert (got["eps"], got["autoattack_acc"]) == ("0.2", "62.50")
    assert got["footnote"] == "Measured on 8 samples; there is no leaderboard of these data in Linf."
    assert robustbench_json(run, eps=0.1)["autoattack_acc"] == "75.00"
    assert robustbench_json(run, eps=0.2, about={"dataset": "imagenet"})["footnote"] == (
        "Measured on 8 of 5000 samples. The leaderboard's budget is 4/255."
    )


def test_what_is_measured_cannot_be_claimed(tmp_path):
    run = run_of(tmp_path, [tried({0})], (AUTO,), names=("m", "n"))
    with pytest.raises(ValueError, match="about may hold link, name, .*, got 'autoattack_acc'"):
        robustbench_json(run, "m", about={"autoattack_acc": "99.00"})
    with pytest.raises(ValueError, match="model must be one of 'm', 'n', got None"):
        robustbench_json(run)
    assert robustbench_json(run, "n", about={"footnote": "Mine."})["footnote"] == "Mine."


def test_an_evaluation_that_is_not_valid_makes_the_figure_unreliable(tmp_path, monkeypatch):
    run = run_of(tmp_path, [tried({0})], (AUTO,))
    assert "unreliable" not in robustbench_json(run)
    told = run.summary()
    told["models"][0]["soundness"] = {"verdict": "WEAK", "flags": []}
    monkeypatch.setattr(Run, "summary", lambda self: told)
    assert robustbench_json(run)["unreliable"] is True

"""`robustx compare`: runs that evaluate wrote, compared for people and for machines."""

import json

import pytest
import torch

from robustx.evaluation import AttackSpec, Spec, evaluate
from robustx.evaluation.comparing import compare_runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    x, y = torch.rand(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 2
    torch.manual_seed(0)
    folder, models = tmp_path_factory.mktemp("runs"), {"one": torch.nn.Linear(6, 2), "two": torch.nn.Linear(6, 2)}
    attacks = (AttackSpec("fgsm"), AttackSpec("bisection", {"steps": 1, "rounds": 3}))
    for name, model in models.items():
        spec = Spec(models=(name,), data="data", eps=(0.05, 0.1), attacks=attacks, explain=0, soundness=False)
        evaluate({name: model}, (x, y), spec, folder / name)
    return folder / "one", folder / "two"


def test_compares_for_people_and_for_machines(run, folders):
    said = run("compare", *folders, "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == compare_runs(folders).to_dict()
    said = run("compare", *folders)
    told = compare_runs(folders)
    assert said.code == 0 and said.out.startswith("20 samples, Linf\n")
    for pair in told.pairs:
        start = [f"{pair.eps:g}" if pair.eps else "clean", pair.first, pair.second]
        (line,) = [x for x in said.out.splitlines() if x.split()[:3] == start]
        assert f"{100 * pair.result.difference:+.1f}" in line
        assert line.endswith("<0.0001" if pair.adjusted < 1e-4 else f"{pair.adjusted:.4f}")
    for s in told.standings:
        assert any(x.split()[:2] == [s.name, f"{s.accuracy[0].value:.1%}"] for x in said.out.splitlines())
    assert max(map(len, said.out.splitlines())) <= 120


def test_one_model_alone_is_nothing_to_compare(run, folders):
    said = run("compare", folders[0])
    assert said.code == 2 and said.err.strip() == (
        "robustx compare: a comparison needs at least two models, got one; name another run"
    )
    assert run("compare", "nowhere").code == 2

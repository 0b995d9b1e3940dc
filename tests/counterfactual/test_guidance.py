"""The ablation of rankings counts what it says, and runs."""

import guidance
import torch

from robustx.counterfactual import CounterfactualExplainer


def test_leading_features_are_counted_as_a_linear_model_needs_them():
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(9, generator=draw).double(), torch.rand(20, 9, generator=draw).double()
    ranking = torch.rand(20, 9, generator=draw).double()
    limit = (x @ weight).max() + weight.abs().sum() / 8
    gain = torch.where(weight > 0, 1 - x, -x) * weight  # the most that each feature can add in the box
    orders = [ranking.argsort(1, descending=True), ranking.argsort(1)]
    reached = [(x @ weight)[:, None] + gain.gather(1, o).cumsum(1) > limit + 1e-4 for o in orders]
    counted = []

    def strategy(task):
        counted.append(guidance.smallest(task.domain, torch.stack([ranking, -ranking]), torch.arange(20)))

    explainer = CounterfactualExplainer(lambda z: z @ weight - limit, bounds=(0, 1), strategy=strategy, by=1e-4)
    explainer.generate(x, lambda out: out)
    assert torch.equal(counted[0], 10 - torch.stack(reached).sum(2))
    assert len(counted[0].unique()) > 1


def test_the_ablation_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # the other tests keep theirs
    guidance.main(["--rows", "4", "--rounds", "1", "--only", "wine", "--picture", str(tmp_path / "told.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 * (1 + 12)
    features = {line.split(" | ")[0][2:]: float(line.split(" | ")[1].split(";")[0]) for line in lines[1:13]}
    assert all(1 <= features[guidance.OWN] <= features[name] <= 14 for name in guidance.TOWARDS if "IG" in name)
    assert (tmp_path / "told.png").stat().st_size > 0

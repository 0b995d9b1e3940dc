"""What a search asks for beside its goal: as much as rounding may take, whatever the units of the outputs."""

import pytest
import torch
from attack_cases import affine, examples, mlp
from torch import nn
from torch.testing import assert_close

from robustx.attacks import make
from robustx.perturb import Between, Leave, Reach, Surely, Until

NEAREST = {
    "deepfool-L2": ("deepfool", {"norm": "L2"}),
    "deepfool-Linf": ("deepfool", {"norm": "Linf"}),
    "fmn-L1": ("fmn", {"norm": "L1", "steps": 50}),
    "fmn-L2": ("fmn", {"norm": "L2", "steps": 50}),
    "cw-L2": ("cw", {"norm": "L2"}),
    "bisection-Linf": ("bisection", {"norm": "Linf", "loss_func": "margin", "steps": 5, "rounds": 6}),
}
nearest = pytest.mark.parametrize("name, options", NEAREST.values(), ids=NEAREST)


class Times(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.fixture(scope="module")
def problem():
    model = mlp(dtype=torch.float32)
    return model, *examples(model, dtype=torch.float32)


@nearest
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_nearest_points_do_not_depend_on_the_units_of_logits(problem, name, options, factor):
    model, x, y = problem
    plain, scaled = (make(name, m, bounds=(0, 1), **options).run(x, y) for m in (model, Times(model, factor)))
    assert plain.success.all() and scaled.success.all()
    assert_close(scaled.distance, plain.distance, rtol=2e-3, atol=0)


@nearest
@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_what_a_fast_search_finds_is_drawn_back_by_the_model_itself(problem, name, options, factor):
    model, x, y = problem
    exact, fast = (
        make(name, Times(model, factor), bounds=(0, 1), precision=p, **options).run(x, y) for p in ("exact", "fast")
    )
    assert fast.success.all()
    share = fast.distance / exact.distance.clamp(min=1e-9)
    assert share.median() <= 1.01 and share.max() <= 1.03  # a rough search may end at another boundary


def test_the_size_of_what_is_compared():
    """Not of classes that are ruled out, by whatever number; 1 and the margin where no more is known."""
    rows, out = torch.arange(2), torch.tensor([[3.0, -5.0, -1e9], [0.5, 0.25, -torch.inf]])
    for goal in (Leave(rows), Reach(rows), Surely(rows)):
        assert goal.size(out, rows).tolist() == [8.0, 0.75]
        assert goal.size(out.clamp(min=-9), rows).tolist() == [9.0, 9.0]
    assert Between(low=7.0, target=0).size(out, rows).tolist() == [3 + 4, 0.5 + 6.5]
    assert Until(lambda out: out[:, 1]).size(out, rows).tolist() == [6.0, 1.25]
    assert Leave(rows * 0).size(torch.full((2, 3), -torch.inf), rows).tolist() == [0.0, 0.0]
    assert Leave(rows * 0).size(torch.tensor([4.0, -6.0]), rows).tolist() == [4.0, 6.0]  # halves of the one logit


def test_masked_classes_cost_nothing():
    """A class that -1e4 rules out does not count as one whose rounding matters."""
    model = affine(18, 4, dtype=torch.float32)
    x, y = examples(model, dtype=torch.float32, wrong=0)
    mask = torch.tensor([0.0, 0.0, 0.0, -1e4])
    y = (model(x) + mask).argmax(1)
    masked, without = (
        make("fmn", m, bounds=(0, 1), norm="L2").run(x, y)
        for m in (lambda x: model(x) + mask, lambda x: model(x)[:, :3])
    )
    assert masked.success.equal(without.success)
    assert_close(masked.distance, without.distance, rtol=1e-3, atol=1e-6)

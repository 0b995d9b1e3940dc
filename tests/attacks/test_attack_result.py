"""Several budgets in one call, values that a file can hold, and what a result tells."""

import pytest
import torch
from attack_cases import Counted, affine, examples, mlp
from torch.testing import assert_close

from robustx.attacks import AttackResult, make
from robustx.perturb import NORMS

BUDGETS = {"L0": [1, 2, 4, 8], "L1": [0.1, 0.3, 1, 3], "L2": [0.05, 0.14, 0.4, 1], "Linf": [0.02, 0.04, 0.1, 0.3]}
every_norm = pytest.mark.parametrize("norm", NORMS)


@every_norm
@pytest.mark.parametrize("name", ["pgd", "bisection"])
def test_several_budgets_in_any_order(norm, name):
    model = mlp()
    x, y = examples(model, count=24)
    attack = make(name, model, bounds=(0, 1), norm=norm, steps=6)
    order = [2, 0, 3, 1]
    results = [attack.run(x, y, eps=[BUDGETS[norm][i] for i in order])[order.index(i)] for i in range(4)]
    fallen = torch.stack([r.success for r in results])
    assert (fallen[:-1] <= fallen[1:]).all() and fallen[0].sum() < fallen[-1].sum()
    for result, eps in zip(results, BUDGETS[norm], strict=True):
        assert (result.distance <= eps).all() and (result.eps == eps).all()
        assert result.success.tolist() == (model(result.adversarial).argmax(1) != y).tolist()
    alone = attack.run(x, y, eps=BUDGETS[norm][3])
    assert torch.equal(alone.adversarial, results[3].adversarial)


@every_norm
def test_several_budgets_lose_nothing_where_the_best_move_is_known(norm):
    """Two affine classes: each budget's answer is exact, alone or with others."""
    model = affine(18, 2)
    x, y = examples(model, count=16)
    attack = make("fgsm", model, bounds=(0, 1), norm=norm)
    for result, eps in zip(attack.run(x, y, eps=BUDGETS[norm]), BUDGETS[norm], strict=True):
        assert result.success.tolist() == attack.run(x, y, eps=eps).success.tolist()


def test_what_several_budgets_cost():
    """An example that withstands a budget is attacked once in all: the smaller ones are not tried."""
    net = mlp()
    x, y = examples(net, count=24)
    model = Counted(net, len(x))
    attack = make("pgd", model, bounds=(0, 1), steps=6)
    results = attack.run(x, y, eps=[0.01, 0.02, 0.04, 0.1], additional_forward_args=torch.arange(len(x)))
    assert sum(r.forwards for r in results).tolist() == model.forwards.tolist()
    assert sum(r.backwards for r in results).tolist() == model.backwards.tolist()
    stood = ~results[3].success
    assert stood.any() and (sum(r.backwards for r in results)[stood] == 6).all()
    minimal = make("bisection", net, bounds=(0, 1), steps=6).run(x, y, eps=[0.02, 0.1])
    assert not minimal[0].backwards.any() and minimal[1].backwards.any()


@every_norm
@pytest.mark.parametrize("name", ["pgd", "bisection"])
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_levels(norm, name, levels):
    model = mlp()
    x, y = examples(model, count=24, wrong=0)
    x = (x * (levels - 1)).round() / (levels - 1) if levels > 2 else x
    y = model(x).argmax(1)
    low, high = (0, 1)
    eps = BUDGETS[norm][3]
    result = make(name, model, bounds=(low, high), norm=norm, eps=eps, steps=6, levels=levels).run(x, y)
    z = result.adversarial
    changed = z != x
    assert_close((z * (levels - 1))[changed], (z * (levels - 1)).round()[changed], rtol=0, atol=1e-9)
    assert (result.distance <= eps).all() and ((z >= 0) & (z <= 1)).all()
    assert result.success.tolist() == (model(z).argmax(1) != y).tolist()
    assert result.success.sum() > 8 or levels == 2


@pytest.mark.parametrize("way", ["run", "perturb"])
def test_levels_are_those_of_files_to_the_bit(way):
    """What changed is k / 255 as it is read from a file of 8 bits, so that a picture that was saved fools as well."""
    model = mlp(dtype=torch.float32)
    x, y = examples(model, count=24, dtype=torch.float32)
    attack = make("pgd", model, bounds=(0, 1), eps=0.2, steps=6, levels=256)
    z = attack(x, y) if way == "run" else attack.perturb(x, 0.2, 0.05, 6, y)
    changed = z != x
    assert changed.any() and torch.equal(z[changed], ((z * 255).round() / 255)[changed])
    assert ((z - x).abs() <= 0.2).all()


def test_rounding_does_not_undo_what_can_be_kept():
    """One weight for all: the nearest level may fall short of the boundary, the next one outward does not."""
    model = affine(4, 2, dtype=torch.float64)
    model[1].weight.data = torch.tensor([[-1.0] * 4, [1.0] * 4]).double()
    model[1].bias.data = torch.tensor([1.2, -1.2]).double()  # class 1 where the sum is above 1.2
    x = torch.full((1, 4), 0.25, dtype=torch.float64)
    result = make("bisection", model, bounds=(0, 1), norm="Linf", steps=5, levels=101).run(x, torch.tensor([0]))
    assert result.success.all()
    assert_close(result.adversarial, torch.full((1, 4), 0.31, dtype=torch.float64))


def test_levels_need_a_finite_box():
    with pytest.raises(ValueError, match="bounds must be finite here"):
        make("pgd", mlp(), eps=0.1, levels=256).run(torch.rand(2, 2, 3, 3).double(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="levels must be a whole number of at least 2"):
        make("pgd", mlp(), eps=0.1, levels=1)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_history(batch_size):
    """The margins that the search saw: the first are those of the inputs, the last those of what came back."""
    net = mlp()
    x, y = examples(net)
    attack = make("pgd", net, bounds=(0, 1), eps=0.04, steps=6, batch_size=batch_size, precision=None)
    result = attack.run(x, y, history=True)
    clean = net(x).scatter(1, y[:, None], -torch.inf).amax(1) - net(x).gather(1, y[:, None]).squeeze(1)
    standing = clean <= 0
    assert result.history.shape[0] == len(x) and not result.history[~standing].isfinite().any()
    assert_close(result.history[standing, 0], clean[standing], rtol=0, atol=1e-9)
    seen = result.history.isfinite().sum(1)
    assert seen[~result.success].tolist() == [6 + 1 + 1] * int((~result.success).sum())
    last = result.history.gather(1, (seen - 1).clamp(min=0)[:, None]).squeeze(1)
    assert_close(last[standing], result.margin[standing], rtol=0, atol=1e-9)
    best = result.history.nan_to_num(-torch.inf).amax(1)
    assert_close(best[standing], result.margin[standing], rtol=0, atol=1e-6)
    assert attack.run(x, y).history is None


def test_a_history_of_examples_that_are_all_fooled_is_empty():
    net = torch.nn.Linear(3, 2)
    x = torch.rand(4, 3)
    result = make("pgd", net, bounds=(0, 1), eps=0.1).run(x, 1 - net(x).argmax(1), history=True)
    assert result.success.all() and result.history.shape == (4, 0)


@pytest.mark.parametrize("name", ["pgd", "square", "deepfool", "fab"])
def test_a_history_has_every_pass_of_the_search(name):
    net = mlp()
    x, y = examples(net)
    result = make(name, net, bounds=(0, 1), eps=0.04, steps=6).run(x, y, history=True)
    assert result.history.isfinite().sum(1).tolist() == (result.forwards - 1).tolist()  # the first one is no search
    last = result.history.isfinite().sum(1) - 1
    moved = result.distance > 0
    assert moved.any()
    assert_close(result.history[moved, last[moved]], result.margin[moved], rtol=0, atol=1e-9)


def test_parts_and_wholes():
    model = mlp()
    x, y = examples(model)
    attack = make("pgd", model, bounds=(0, 1), eps=0.04, steps=4)
    whole = attack.run(x, y, history=True)
    joined = AttackResult.cat([attack.run(x[part], y[part], history=True) for part in (slice(0, 5), slice(5, 12))])
    for name in ("adversarial", "success", "distance", "margin", "forwards", "backwards", "inputs", "eps"):
        assert_close(getattr(joined, name), getattr(whole, name), rtol=0, atol=1e-9)
    assert_close(joined.history, whole.history, rtol=0, atol=1e-9, equal_nan=True)
    assert torch.equal(whole.at(whole.success).adversarial, whole.adversarial[whole.success])
    assert len(whole.at([2, 0])) == 2 and torch.equal(whole.at([2, 0]).margin, whole.margin[[2, 0]])
    with pytest.raises(ValueError, match="all in the same norm, got no results"):
        AttackResult.cat([])
    with pytest.raises(ValueError, match="got L2, Linf"):
        AttackResult.cat([whole, make("pgd", model, bounds=(0, 1), eps=0.1, norm="L2").run(x, y)])
    with pytest.raises(ValueError, match="history=True in each"):
        AttackResult.cat([whole, attack.run(x, y)])


def test_parts_of_several_inputs():
    net = mlp()
    x, _ = examples(net)
    a, b = x[:, :1], x[:, 1:]

    def model(a, b):
        return net(torch.cat([a, b], 1))

    result = make("pgd", model, bounds=(0, 1), eps=0.04, steps=3).run((a, b))
    both = AttackResult.cat([result.at(slice(0, 4)), result.at(slice(4, 12))])
    assert all(torch.equal(t, u) for t, u in zip(both.adversarial, result.adversarial, strict=True))


def test_table():
    model = mlp()
    x, y = examples(model)
    result = make("pgd", model, bounds=(0, 1), eps=0.04, steps=4).run(x, y)
    table = result.to_pandas()
    assert list(table.columns) == ["success", "distance", "eps", "margin", "forwards", "backwards"]
    assert table.success.tolist() == result.success.tolist() and table.forwards.tolist() == result.forwards.tolist()
    assert_close(torch.tensor(table.distance.to_numpy()), result.distance.double())


def test_picture():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    x = torch.rand(5, 3, 8, 8)
    result = make("pgd", net, bounds=(0, 1), eps=0.1, steps=4).run(x)
    figure = result.plot()
    shown = [im.get_array() for axes in figure.axes for im in axes.get_images()]
    assert_close(torch.as_tensor(shown[5]).float(), result.adversarial[0].permute(1, 2, 0), rtol=0, atol=0.01)
    assert f"{int(result.success.sum())} of 5 reached the goal" in figure.get_suptitle()
    with pytest.raises(ValueError, match=r"plot shows images .*\(5, 192\); use to_pandas"):
        make("fgsm", net[1], bounds=(0, 1), eps=0.1).run(x.flatten(1)).plot()

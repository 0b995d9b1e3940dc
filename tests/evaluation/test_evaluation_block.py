"""One block: exact answers on linear models, only what still stands is attacked, and nothing is made up."""

import pytest
import torch
from exact import distances as exact

from robustx.engine import NonFiniteError
from robustx.evaluation import AttackSpec, Block, Spec, attack_block, clean_block, standard_attacks

N, D, K = 24, 6, 3
BOUNDS = (0.0, 1.0)


@pytest.fixture
def model():
    return torch.nn.Linear(D, K)


@pytest.fixture
def block(model):
    x = torch.rand(N, D)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % K  # one that is wrong without any attack
    return Block(x, y, range(100, 100 + N), BOUNDS)


def spec(norm, eps, *attacks):
    return Spec(models=("m",), data="d", norm=norm, eps=eps, attacks=attacks or standard_attacks())


def untouched(block):
    fallen = torch.full((len(block.x),), torch.inf, dtype=torch.float64)
    fallen[0] = 0
    return fallen


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_robust_accuracy_of_a_linear_model_is_exact(model, block, norm):
    true = torch.from_numpy(exact(model.weight.detach(), model.bias.detach(), block.x, block.y, norm))
    eps = tuple(true[1:].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist())
    s = spec(norm, eps, AttackSpec("pgd", {"loss_func": "margin", "targets": 2, "steps": 40}))
    done = attack_block(model, block, s.attacks[0], s, untouched(block))
    fell = {e: {r.position for r in done.rows if r.success and r.eps <= e} for e in eps}
    for e in eps:
        sure = {100 + i for i in range(1, N) if true[i] < e * 0.999}
        never = {100 + i for i in range(1, N) if true[i] > e}
        assert sure <= fell[e] and not (never & fell[e])


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_minimal_distances_of_a_linear_model(model, block, norm):
    true = torch.from_numpy(exact(model.weight.detach(), model.bias.detach(), block.x, block.y, norm))
    s = spec(
        norm, (float(true[torch.isfinite(true)].max()),), AttackSpec("bisection", {"loss_func": "margin", "targets": 2})
    )
    done = attack_block(model, block, s.attacks[0], s, untouched(block))
    assert [r.position for r in done.rows] == list(range(101, 100 + N))
    for r in done.rows:
        if torch.isfinite(true[r.position - 100]):
            assert r.success
            assert true[r.position - 100] * (1 - 1e-5) <= r.distance <= 1.05 * true[r.position - 100] + 1e-4


def test_only_what_stands_is_attacked(model, block):
    seen = []

    def watched(x):
        seen.append(len(x))
        return model(x)

    s = spec("Linf", (0.01, 0.1, 0.5), AttackSpec("pgd", {"steps": 5}))
    fallen = untouched(block)
    fallen[1:9] = 0.1
    done = attack_block(watched, block, s.attacks[0], s, fallen)
    tried = {e: {r.position for r in done.rows if r.eps == e} for e in s.eps}
    fell = {e: {r.position for r in done.rows if r.success and r.eps == e} for e in s.eps}
    assert tried[0.01] == set(range(101, 100 + N))
    assert tried[0.1] == set(range(109, 100 + N)) - fell[0.01]
    assert tried[0.5] == tried[0.1] - fell[0.1]
    assert sum(r.forwards for r in done.rows) + sum(map(len, tried.values())) == sum(seen)  # and one look at the end


def test_tensors_are_the_successes_and_prove_them(model, block):
    s = spec("L2", (0.05, 0.2, 1.0))
    for attack in s.attacks:
        done = attack_block(model, block, attack, s, untouched(block))
        won = [r for r in done.rows if r.success]
        t = done.tensors
        assert sorted(zip(t["position"].tolist(), t["eps"].tolist(), strict=True)) == sorted(
            (r.position, r.eps) for r in won
        )
        rows = t["position"] - 100
        assert (model(t["adversarial"]).argmax(1) != block.y[rows]).all()
        assert ((t["adversarial"] - block.x[rows]).double().norm(dim=1) <= t["eps"] + 1e-6).all()
        assert (t["adversarial"] >= 0).all() and (t["adversarial"] <= 1).all()
        by = {(r.position, r.eps): r for r in won}
        for a, p, e in zip(t["adversarial"], t["position"].tolist(), t["eps"].tolist(), strict=True):
            assert int(model(a[None]).argmax()) == by[p, e].prediction


def test_a_search_for_the_least_starts_from_what_is_known(model, block):
    s = spec("Linf", (0.1,), AttackSpec("bisection", {"steps": 5}))
    fallen = untouched(block)
    fallen[5] = 0.07
    done = attack_block(model, block, s.attacks[0], s, fallen)
    assert {r.position - 100: r.eps for r in done.rows}[5] == 0.07
    assert {r.eps for r in done.rows} == {0.07, 0.2}
    far = spec("Linf", (0.1,), AttackSpec("bisection", {"steps": 5, "eps": 0.5}))
    assert {r.eps for r in attack_block(model, block, far.attacks[0], far, fallen).rows} == {0.07, 0.5}


def test_clean_rows(model, block):
    done = clean_block(model, block)
    assert [r.success for r in done.rows] == [True] + [False] * (N - 1)
    assert [r.prediction for r in done.rows] == model(block.x).argmax(1).tolist()
    assert done.rows[0].margin > 0 > done.rows[1].margin
    assert torch.equal(done.tensors["logits"], model(block.x))


def test_a_constant_model_is_not_always_right(block):
    done = clean_block(lambda x: torch.zeros(len(x), K), block)
    assert sum(not r.success for r in done.rows) == int((block.y == 0).sum()) < N


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_flagged(model, block, value):
    def broken(x):
        out = model(x)
        return torch.where(x[:, :1] > 0.8, value, out)

    done = clean_block(broken, block)
    bad = (block.x[:, 0] > 0.8).tolist()
    assert any(bad) and [r.flagged for r in done.rows] == bad
    assert all((r.prediction, r.margin, r.success) == (-1, None, False) for r in done.rows if r.flagged)


def test_an_attack_that_ends_in_nan_proves_nothing(model, block):
    s = spec("Linf", (0.3,), AttackSpec("fgsm"))
    home = block.x.clone()

    def shy(x):  # finite on the samples alone
        known = (x[:, None] == home[None]).all(2).any(1)
        return torch.where(known[:, None], model(x), torch.nan)

    done = attack_block(shy, block, s.attacks[0], s, untouched(block))
    assert all(r.flagged and not r.success and r.prediction == -1 for r in done.rows)
    assert not len(done.tensors["position"])


def test_warnings_are_noted_not_given(block):
    def rounding(x):
        return torch.stack([(x.sum(1) * 4).round() + 0 * x.sum(1), x.sum(1) * 0, x.sum(1) * 0], 1)

    y = torch.zeros(N, dtype=torch.long)
    s = spec("Linf", (0.3,), AttackSpec("fgsm"))
    done = attack_block(rounding, Block(block.x, y, block.positions, BOUNDS), s.attacks[0], s, untouched(block))
    assert done.notes and all(n.startswith("ZeroGradientWarning: the gradient is exactly zero") for n in done.notes)


def test_bad_samples_are_named_by_their_position(model, block):
    x = block.x.clone()
    x[3, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 103 is NaN or infinite"):
        clean_block(model, Block(x, block.y, block.positions, BOUNDS))
    with pytest.raises(ValueError, match="y must hold classes from 0 to 2 .* got 3 for example 5"):
        clean_block(model, Block(block.x, block.y.index_fill(0, torch.tensor(5), 3), block.positions, BOUNDS))
    with pytest.raises(ValueError, match="train mode"):
        clean_block(torch.nn.Sequential(torch.nn.Dropout(), model), block)

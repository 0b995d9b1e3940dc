"""Named strategies against slow versions of their papers, row by row."""

import pytest
import torch
from counterfactual_cases import credit, credit_schema
from torch import nn

from robustx.counterfactual import Change, CounterfactualExplainer, Latent
from robustx.engine import BlackBox
from robustx.perturb import Between

BY = 1e-4


def net(d=5, k=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 12), nn.Tanh(), nn.Linear(12, k)).double().requires_grad_(False)


MODEL = net()
X = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).double() * 4 - 2
DATA = torch.rand(60, 5, generator=torch.Generator().manual_seed(2)).double() * 4 - 2
UNIT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]).double()


def lead(z, y):
    """By how much another class is ahead of ``y``, and what is asked for more."""
    out = MODEL(z)
    return out.index_fill(-1, torch.tensor(y), -torch.inf).amax(-1) - out[..., y] - BY


def asked(strategy, model=MODEL, x=X, data=DATA, bounds=(-2, 2), **told):
    explainer = CounterfactualExplainer(model, bounds=bounds, strategy=strategy, by=BY, scale=UNIT)
    return explainer.fit(data).generate(x, **told)


def neighbours(x):
    y = int(MODEL(x).argmax())
    other = DATA[MODEL(DATA).argmax(1) != y]
    return y, other[((other - x).abs() / UNIT).sum(1).argsort()]


def test_nearest_unlike_is_the_nearest_that_reaches_the_goal():
    result = asked("nearest-unlike")
    for i, x in enumerate(X):
        y, near = neighbours(x)
        torch.testing.assert_close(result.counterfactual[i], near[lead(near, y) > 0][0])
    held = asked("nearest-unlike", immutable=[0, 3])
    for i, x in enumerate(X):
        y, near = neighbours(x)
        near[:, [0, 3]] = x[[0, 3]]
        good = (lead(near, y) > 0).nonzero()
        assert held.valid[i] == (len(good) > 0)
        if len(good):
            torch.testing.assert_close(held.counterfactual[i], near[int(good[0])])


@pytest.mark.parametrize("near", [False, True], ids=["nice", "nice-proximity"])
def test_nice_takes_over_what_gains_most(near):
    result = asked("nice-proximity" if near else "nice")
    for i, x in enumerate(X):
        y, others = neighbours(x)
        there, z = others[lead(others, y) > 0][0], x.clone()
        while lead(z, y) <= 0:
            best = None
            for j in range(5):
                tried = z.clone()
                tried[j] = there[j]
                if (tried == z).all():
                    continue
                gain = lead(tried, y) - lead(z, y)
                if near:
                    gain /= (tried - x).abs().div(UNIT).sum() - (z - x).abs().div(UNIT).sum()
                if best is None or gain > best[0]:
                    best = gain, tried
            z = best[1]
        torch.testing.assert_close(result.counterfactual[i], z)


def test_sedc_extends_the_best_set_first():
    model = net(8, 3, seed=8)
    x = torch.rand(12, 8, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    result = CounterfactualExplainer(model, reference=0.0, strategy="sedc", by=BY).generate(x)
    assert result.n_changed.max() >= 3

    def ahead(i, which):
        z = x[i].clone()
        z[list(which)] = 0
        out, y = model(z), int(model(x[i]).argmax())
        return float(out.index_fill(0, torch.tensor(y), -torch.inf).max() - out[y] - BY)

    for i in range(12):
        frontier, done, best = {frozenset(): ahead(i, ())}, set(), None
        for _ in range(16):
            if best or not frontier:
                break
            chosen = max(frontier, key=frontier.get)
            frontier.pop(chosen)
            done.add(chosen)
            children = {chosen | {j}: ahead(i, chosen | {j}) for j in range(8) if j not in chosen}
            reached = {s: v for s, v in children.items() if v > 0}
            best = max(reached, key=reached.get) if reached else None
            frontier |= {s: v for s, v in children.items() if s not in done and len(s) < 8}
        assert set(result.changed[i].nonzero().squeeze(1).tolist()) == set(best or ())
        assert result.valid[i] == (best is not None)


def test_sedc_of_a_table_gives_way_to_the_mean():
    result, mean = asked("sedc"), DATA.mean(0)
    assert result.valid.any()
    expected = torch.where(result.changed, mean, X)
    torch.testing.assert_close(result.counterfactual, expected)


def test_growing_spheres_end_where_the_smallest_move_is_needed():
    result = asked("growing-spheres")
    assert result.valid.all()
    for i, x in enumerate(X):
        y, z = int(MODEL(x).argmax()), result.counterfactual[i].clone()
        least = ((z - x).abs() / UNIT).where(z != x, torch.inf).argmin()
        z[least] = x[least]
        assert lead(z, y) <= 0
    again = asked("growing-spheres")
    assert torch.equal(again.counterfactual, result.counterfactual)
    seeded = CounterfactualExplainer(MODEL, bounds=(-2, 2), strategy="growing-spheres", seed=1).generate(X)
    assert (seeded.counterfactual != result.counterfactual).any()


def test_growing_spheres_come_near_the_nearest_point_of_a_linear_model():
    model = nn.Linear(3, 2).double().requires_grad_(False)
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    result = CounterfactualExplainer(model, bounds=(-5, 5), scale=1.0, strategy="growing-spheres").generate(x)
    out, w = model(x), (model.weight[0] - model.weight[1]).norm()
    nearest = (out[:, 0] - out[:, 1]).abs() / w
    away = (result.counterfactual - x).norm(dim=1)
    assert result.valid.all()
    assert (away >= nearest).all()
    assert (away <= 2 * nearest + 0.05).all()


def test_wachter_comes_near_the_least_of_a_linear_model():
    model = nn.Linear(4, 2).double().requires_grad_(False)
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).double()
    result = CounterfactualExplainer(model, bounds=(-5, 5), scale=1.0, strategy="wachter").generate(x)
    out, w = model(x), (model.weight[0] - model.weight[1]).abs().max()
    least = (out[:, 0] - out[:, 1]).abs() / w
    assert result.valid.all()
    assert (result.cost >= least - 1e-9).all()
    assert (result.cost <= 3 * least).all()


def test_moves_are_weighed_by_what_is_usual():
    model = lambda z: torch.stack([0.8 - z.sum(1), 0 * z.sum(1)], 1)
    x = torch.zeros(2, 2).double()
    data = torch.tensor([[-4.0, -0.1], [0.0, 0.0], [4.0, 0.1]]).double()  # the first column varies, the second hardly
    explainer = CounterfactualExplainer(model, bounds=(-5, 5), scale=1.0, strategy="wachter")
    even, told = explainer.generate(x), explainer.fit(data).generate(x)
    torch.testing.assert_close(even.counterfactual[:, 0], even.counterfactual[:, 1])
    assert (told.counterfactual[:, 0] > 4 * told.counterfactual[:, 1]).all()


@pytest.mark.parametrize("strategy", ["dice", "wachter"])
def test_gradients_serve_any_goal_and_their_lack_is_told(strategy):
    some = MODEL(X).argsort(1)[:, 1]
    towards = asked(strategy, target=some)
    assert towards.valid.all()
    assert torch.equal(MODEL(towards.counterfactual).argmax(1), some)
    value = lambda z: MODEL(z)[:, 0]
    more = asked(strategy, value, target=Change(0.1, 0.3))
    assert more.valid.all()
    gain = value(more.counterfactual) - value(X)
    assert ((gain >= 0.1) & (gain < 0.3)).all()
    band = asked(strategy, value, target=Between(float(value(X).max()) + 0.01))
    assert (value(band.counterfactual) > value(X).max())[band.valid].all()
    with pytest.raises(ValueError, match="no gradient"):
        asked(strategy, BlackBox(lambda z: MODEL(torch.from_numpy(z)).numpy()))


@pytest.mark.parametrize("strategy", ["nearest-unlike", "nice", "nice-proximity", "sedc"])
def test_known_examples_are_asked_for(strategy):
    with pytest.raises(ValueError, match=r"fit\(X\)"):
        CounterfactualExplainer(MODEL, bounds=(-2, 2), strategy=strategy).generate(X)


def test_what_moved_less_than_is_usual_goes_home():
    frame = credit()
    schema = credit_schema(frame)
    z = schema.encode(frame)
    torch.manual_seed(0)
    model = nn.Linear(z.shape[1], 2).requires_grad_(False)
    model.bias -= model(z).median(0).values
    explainer = CounterfactualExplainer(model, schema, strategy="dice")
    rough, fine = explainer.generate(frame.iloc[:8]), explainer.fit(frame).generate(frame.iloc[:8])
    assert torch.equal(rough.valid, fine.valid)
    assert fine.n_changed.sum() < rough.n_changed.sum()


@pytest.mark.parametrize("strategy", ["nearest-unlike", "nice", "sedc", "wachter", "dice", "growing-spheres"])
def test_codes_of_known_examples_serve_where_codes_move(strategy):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 3).double()).Q
    latent = Latent(lambda x: x @ basis, lambda z: z @ basis.T, bounds=(-9, 9))
    result = CounterfactualExplainer(MODEL, latent=latent, strategy=strategy).fit(DATA).generate(X)
    assert result.valid.any()
    assert torch.equal(result.verify(), result.valid)
    away = result.counterfactual - X
    torch.testing.assert_close(away @ basis @ basis.T, away)  # nothing moves but what the decoder makes

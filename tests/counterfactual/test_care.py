"""Pruning, certificates and explanations of any counterfactual, against enumeration and definitions."""

from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
import torch
from counterfactual_cases import credit, credit_schema
from sklearn.ensemble import RandomForestClassifier
from torch import nn
from torch.testing import assert_close

from robustx import zoo
from robustx.attribution import FeatureAblation, IntegratedGradients, Saliency, ShapleyValues
from robustx.counterfactual import CounterfactualExplainer, Pairs, certify, explain_change, prune, refine
from robustx.engine import ArgumentError, ArgumentTypeError, BlackBox, ModelError
from robustx.perturb import Between, superpixels

F = 16
BITS = (torch.arange(1 << F)[:, None] >> torch.arange(F)) & 1 == 1  # all sets of features
SIZES = BITS.sum(1)


def net(d=F, k=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, k)).double().requires_grad_(False)


def lead(model, z, y):
    """Of the best class other than y [N]."""
    out = model(z)
    return out.index_fill(1, torch.tensor([y]), -torch.inf).amax(1) - out[:, y]


@pytest.fixture(scope="module")
def told():
    """Counterfactuals that change 6 to 16 of 16 features, and which sets of features do the same: by enumeration."""
    model, draw = net(), torch.Generator().manual_seed(1)
    x = torch.rand(18, F, generator=draw, dtype=torch.float64)
    other = 5 * torch.rand(18, F, generator=draw, dtype=torch.float64) - 2
    x_cf = torch.where(torch.rand(18, F, generator=draw) < torch.linspace(0.4, 1, 18)[:, None], other, x)
    works = [lead(model, torch.where(BITS, b, a), int(model(a).argmax())) > 0 for a, b in zip(x, other, strict=True)]
    return model, x, x_cf, other, torch.stack(works)  # of x_cf by its subsets


def sets_of(changed):
    return (changed * (1 << torch.arange(F))).sum(-1)


def subsets(changed):
    """All sets within one [2^F booleans]."""
    return ~(BITS & ~changed).any(1)


def test_pruned_counterfactuals_are_the_smallest_sets_within_the_changes(told):
    model, x, x_cf, _, works = told
    given = Pairs(model, x, x_cf, by=0)
    assert torch.equal(given.valid, works[torch.arange(len(x)), sets_of(given.changed)])
    assert 4 < given.valid.sum() < len(x)
    every, quick = given.prune(1 << F), given.prune(1)
    for i in range(len(x)):
        if not given.valid[i]:
            assert torch.equal(every.counterfactual[i], x_cf[i])
            continue
        inside = works[i] & subsets(given.changed[i])
        assert every.n_changed[i] == SIZES[inside].min()
        for found in (every, quick):
            assert inside[sets_of(found.changed[i])]  # nothing added, and it works
            assert torch.equal(found.counterfactual[i], torch.where(found.changed[i], x_cf[i], x[i]))
            without = [inside[sets_of(found.changed[i]) - (1 << int(j))] for j in found.changed[i].nonzero()]
            assert not any(without)
    assert quick.forwards.max() < 6 * F


@pytest.mark.parametrize("level", ["single", "subset", "cardinality"])
def test_certificates_are_true_by_enumeration(told, level):
    model, x, x_cf, other, works = told
    pruned = prune(model, x, x_cf, 1, by=0)
    for pairs in (pruned.counterfactual, x_cf):
        proof = certify(model, x, pairs, level, by=0, reference=other if level == "cardinality" else None)
        ranks = {"invalid": 0, "valid": 0, "single": 1, "subset": 2, "cardinality": 3}
        for i in range(len(x)):
            changed = pairs[i] != x[i]
            mine = subsets(changed)
            truth = {
                "single": not (works[i] & mine & (changed.sum() - 1 == SIZES)).any(),
                "subset": not (works[i] & mine & (changed.sum() > SIZES)).any(),
                "cardinality": not (works[i] & (changed.sum() > SIZES)).any(),
            }
            if not works[i, sets_of(x_cf[i] != x[i])]:
                assert (proof.level[i], bool(proof.refuted[i]), bool(proof.holds[i])) == ("invalid", False, False)
                continue
            assert proof.holds[i] == truth[level]
            assert proof.refuted[i] != truth[level]
            for name, rank in ranks.items():
                assert rank > ranks[proof.level[i]] or rank == 0 or truth[name], (i, name, proof.level[i])
            if proof.refuted[i]:
                counter = proof.counterexample[i]
                assert works[i][sets_of(counter)]
                assert counter.sum() < changed.sum()
    assert set(proof.level) > {"invalid"}


def test_a_certificate_that_the_budget_did_not_allow_says_so():
    x = torch.zeros(2, F)
    x_cf = (torch.arange(F) < torch.tensor([[4], [6]])).float()
    need = torch.tensor([[3.5], [5.5]])
    model = lambda z, need: torch.stack([0 * z[:, 0], z.sum(1) - need[:, 0]], 1)
    options = {"reference": 1.0, "additional_forward_args": need}
    short = certify(model, x, x_cf, "cardinality", budget=20, **options)
    assert short.level == ("subset", "single")  # 4 + 6 sets, and 6 + 15 + ...
    assert short.tried.tolist() == [1, 1]  # 16 of one feature, 120 of two
    assert not short.holds.any()
    assert not short.refuted.any()
    told = "no proper subset of the 4 changes works; all sets of up to 1 features were tried, for more the budget"
    assert short.says(0).startswith(told)
    full = certify(model, x, x_cf, "cardinality", **options)
    assert full.level == ("cardinality", "cardinality")
    assert (
        full.says(1)
        == "no set of less than 6 of 16 features works (features either as in the input or as in the reference)"
    )
    for i, k in enumerate((4, 6)):
        sets = 2**k - 2 + sum(comb(F, size) for size in range(1, k))
        assert full.evaluations[i] == sets + 1  # and the input
    most = certify(model, x, x_cf, "cardinality", immutable=range(6, F), **options)
    assert most.among.tolist() == [6, 6]
    assert most.holds.all()


def bits(works):
    """A model that reaches class 1 exactly where some bits are set."""
    return lambda x: torch.stack([0 * x[:, 0], works(*x.round().bool().T) * 2.0 - 1], 1)


TRAPS = {
    "one of three, or all": (bits(lambda a, b, c, d: b & (c == d) & ~a), [0, 1, 1, 1], [1], True),
    "exclusive or": (bits(lambda a, b, c, d: a ^ b), [1, 0, 1, 1], [0], False),
    "two together": (bits(lambda a, b, c, d: a & d), [1, 1, 1, 1], [0, 3], False),
    "hard threshold": (bits(lambda a, b, c, d: 1 * a + 2 * b + 4 * c + 8 * d > 10), [1, 1, 1, 1], [2, 3], False),
    "saturated softmax": (
        lambda x: torch.stack([50 - 40 * x[:, 2] - 90 * x[:, 0], 0 * x[:, 0]], 1).softmax(1),
        [1, 0, 1, 1],
        [0],
        False,
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps(name):
    model, end, needed, irreducible = TRAPS[name]
    x, x_cf = torch.zeros(1, 4), torch.tensor([end]).float()
    found = prune(model, x, x_cf)
    assert found.valid.all()
    assert found.changed[0].nonzero().squeeze(1).tolist() == needed
    assert bool(certify(model, x, x_cf, "single").holds) == irreducible
    refuted = certify(model, x, x_cf, "subset")
    assert refuted.refuted.all()
    assert model(torch.where(refuted.counterexample, x_cf, x)).argmax(1) == 1
    for level in ("single", "subset"):
        assert certify(model, x, found.counterfactual, level).holds.all()
    why = explain_change(model, x, x_cf)
    assert why.methods == ("shapley",)
    assert why.convergence_delta.abs().max() < 1e-5
    assert not why.values[x == x_cf].any()


def test_a_forest_is_asked_for_values_only():
    model, data = zoo.load("breast-cancer")
    x, y = data.x.numpy(), data.y.numpy()
    forest = RandomForestClassifier(20, random_state=0).fit(x, y)
    box = BlackBox(forest.predict_proba)
    start = data.x[:12].double()
    other = torch.stack([data.x[forest.predict(x) != c][i].double() for i, c in enumerate(forest.predict(x[:12]))])
    found = prune(box, start, other)
    assert (forest.predict(found.counterfactual) != forest.predict(start)).all()
    assert (found.n_changed < 10).all()
    assert certify(box, start, found.counterfactual).holds.all()
    why = explain_change(box, start, other)  # up to 30 changes, and no gradients
    assert "shapley-sampled" in why.methods
    assert why.convergence_delta.abs().max() < 1e-9
    nearer = found.refine()
    assert nearer.valid.all()
    assert not (nearer.changed & ~found.changed).any()


def shapley(value, players):
    """By definition: the mean gain over all orders."""
    share = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        here = frozenset()
        for p in order:
            share[p] += (value(here | {p}) - value(here)) / len(orders)
            here |= {p}
    return share


def test_explanations_are_shapley_values_by_definition():
    model = net(7)
    x, x_cf = torch.rand(3, 7, dtype=torch.float64), torch.rand(3, 7, dtype=torch.float64)
    x_cf[0, 2], x_cf[1, 0], x_cf[2, :4] = x[0, 2], x[1, 0], x[2, :4]
    mask = torch.tensor([[0, 1, 2, 3, 4, 5, 5]])
    why = explain_change(model, x, x_cf, feature_mask=mask, target=2)
    for i in range(3):

        def value(there, i=i):
            out = model(torch.where(torch.isin(mask[0], torch.tensor(list(there), dtype=torch.long)), x_cf[i], x[i]))
            return float(out[2] - out[:2].max())

        players = why.changed[i].nonzero().squeeze(1).tolist()
        for p, share in shapley(value, players).items():
            assert why.values[i, p] == pytest.approx(share, abs=1e-12)
        assert [n for n, _ in why.why(i)] == [f"feature {j}" for j in why.order[i, : len(players)].tolist()]
    assert (why.values[~why.changed] == 0).all()
    assert why.convergence_delta.abs().max() < 1e-12


def test_explanations_of_many_changes_are_complete_by_every_method():
    model = net(20, seed=3)
    x, x_cf = torch.rand(4, 20, dtype=torch.float64), 2 * torch.rand(4, 20, dtype=torch.float64)
    x_cf[0, 5:] = x[0, 5:]
    methods = {
        "auto": ("shapley", "ig", "ig", "ig"),
        "ig": ("ig",) * 4,
        "shapley": ("shapley",) + ("shapley-sampled",) * 3,
    }
    for method, told in methods.items():
        why = explain_change(model, x, x_cf, method)
        assert why.methods == told
        assert (why.convergence_delta.abs() <= 1e-5 * why.delta.abs().clamp(min=1)).all()
        assert (why.values[0, 5:] == 0).all()
    exact = explain_change(model, x[:1], x_cf[:1])
    gradients = explain_change(model, x, x_cf, IntegratedGradients(model))
    assert_close(gradients.values, explain_change(model, x, x_cf, "ig").values, atol=0.05, rtol=0)
    mask = torch.arange(20)[None] // 4
    for method in (ShapleyValues(model), FeatureAblation(model)):
        why = explain_change(model, x[:1], x_cf[:1], method, feature_mask=mask)
        assert why.methods == (type(method).__name__,)
        assert (why.values[0, 2:] == 0).all()
    grouped = explain_change(model, x[:1], x_cf[:1], feature_mask=mask)
    assert_close(explain_change(model, x[:1], x_cf[:1], ShapleyValues(model), feature_mask=mask).values, grouped.values)
    assert "20" not in repr(exact)


def test_rows_stand_alone_and_features_may_come_in_any_order(told):
    model, x, x_cf, other, _ = told
    x, x_cf, other = x[::4], x_cf[::4], other[::4]
    whole = prune(model, x, x_cf)
    proof = certify(model, x, whole.counterfactual, "cardinality", reference=other)
    why = explain_change(model, x, whole.counterfactual)
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = prune(model, x[one], x_cf[one])
        assert torch.equal(alone.counterfactual, whole.counterfactual[one])
        assert (
            certify(model, x[one], alone.counterfactual, "cardinality", reference=other[one]).level[0] == proof.level[i]
        )
        assert_close(explain_change(model, x[one], alone.counterfactual).values, why.values[one])
    turn = torch.randperm(F, generator=torch.Generator().manual_seed(0))
    turned = lambda z: model(z[:, turn.argsort()])
    found = prune(turned, x[:, turn], x_cf[:, turn])
    assert torch.equal(found.counterfactual, whole.counterfactual[:, turn])
    assert certify(turned, x[:, turn], found.counterfactual, "subset").holds.equal(
        certify(model, x, whole.counterfactual, "subset").holds
    )


def test_refined_points_are_nearer_within_the_same_features(told):
    model, x, x_cf, _, _ = told
    found = prune(model, x, x_cf)
    for norm, p in (("L1", 1), ("L2", 2)):
        near = found.refine(norm)
        assert torch.equal(near.valid, found.valid)
        assert not (near.changed & ~found.changed).any()
        before, after = ((c.counterfactual - x).norm(p, 1) for c in (found, near))
        assert (after <= before + 1e-12).all()
        assert (after < 0.9 * before)[found.valid].any()
        assert torch.equal(near.counterfactual[~found.valid], found.counterfactual[~found.valid])
        low, high = torch.minimum(x, x_cf), torch.maximum(x, x_cf)
        assert ((near.counterfactual >= low) & (near.counterfactual <= high)).all()
    line = lambda z: torch.stack([z.sum(1) * 0 + 2, z @ torch.tensor([1.0, 3.0])], 1)
    best = refine(line, torch.zeros(1, 2), torch.ones(1, 2), by=1e-6).counterfactual
    assert_close(best, torch.tensor([[0.0, 2 / 3]]), atol=2e-3, rtol=0)  # the cheaper feature alone, by the closed form


def test_superpixels_and_tuples_and_tokens():
    model, data = zoo.load("digits-robust")
    x = data.x[:8]
    mask = superpixels(x, "grid", 16)
    end = torch.stack([x[int((model(x).argmax(1) != model(x[i : i + 1]).argmax(1)).nonzero()[0])] for i in range(8)])
    found = prune(model, x, end, feature_mask=mask)
    assert (model(found.counterfactual).argmax(1) != model(x).argmax(1)).all()
    assert (found.n_changed < found.changed.shape[1]).all()
    proof = certify(model, x, found.counterfactual, "cardinality", reference=end, feature_mask=mask)
    small = (found.n_changed <= 3).nonzero().squeeze(1).tolist()
    assert small
    for i in small:
        few = [c for k in range(int(found.n_changed[i])) for c in combinations(range(16), k)]
        shut = torch.stack([torch.isin(mask.expand(8, *mask.shape[1:])[i], torch.tensor(c)) for c in few])
        fewer = (model(torch.where(shut, end[i], x[i])).argmax(1) != model(x[i : i + 1]).argmax(1)).any()
        assert proof.holds[i] == ~fewer

    two = lambda *, a, b: torch.stack([a.sum(1) + b.flatten(1).sum(1), 0.95 + 0 * a.sum(1)], 1)
    named = {"a": torch.full((3, 2), 0.6), "b": torch.full((3, 2, 2), 0.1)}
    gone = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2, 2)}
    kept = prune(two, named, gone)
    assert kept.n_changed.tolist() == [2, 2, 2]  # both of a, or one of a and all of b
    assert kept.counterfactual["b"].shape == (3, 2, 2)
    assert_close(explain_change(two, named, gone).values.sum(1), torch.full((3,), 1.6).double())

    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    tokens = torch.randint(1, 9, (6, 5))
    blank = torch.zeros_like(tokens)
    few = prune(words, tokens, blank)
    assert ((few.counterfactual == 0) == few.changed).all()
    assert (words(few.counterfactual).argmax(1) != words(tokens).argmax(1)).equal(few.valid)
    assert explain_change(words, tokens, blank).convergence_delta.abs().max() < 1e-5
    with pytest.raises(TypeError, match="int64"):
        few.refine()


def test_what_gives_way_may_depend_on_what_stays():
    model, data = zoo.load("digits-robust")
    x = data.x[:4]
    mask = superpixels(x, "grid", 9)
    found = CounterfactualExplainer(model, reference="inpaint").generate(x, feature_mask=mask)
    proof = certify(model, x, found.counterfactual, "cardinality", reference="inpaint", feature_mask=mask)
    assert found.valid.any()
    for i in found.valid.nonzero().squeeze(1).tolist():
        assert proof.holds[i] == (found.proved[i] == "smallest")


def test_tables_keep_to_their_schema():
    frame = credit()
    schema = credit_schema(frame)
    x = schema.encode(frame)[:10]
    torch.manual_seed(0)
    model = nn.Linear(x.shape[1], 2).requires_grad_(False)
    home = schema.decoded(x)
    away = home.clone()
    away[:, schema.names.index("job")] = (home[:, schema.names.index("job")] + 1) % 4
    away[:, schema.names.index("home")] = 1 - home[:, schema.names.index("home")]
    away[:, schema.names.index("income")] += 15000
    x_cf = schema.encoded(away)
    target = 1 - model(x).argmax(1)
    gain = model(x_cf) - model(x)
    pairs = Pairs(model, x, x_cf, Between(0, 1e9, target=1), schema=schema)
    assert pairs.names == schema.names
    why = explain_change(model, x, x_cf, schema=schema, target=target)
    sign = 2.0 * target - 1
    assert_close(why.values.sum(1), (sign * (gain[:, 1] - gain[:, 0])).double())
    assert {n for n, _ in why.why(0)} == {"job", "home", "income"}
    frames = Pairs(
        model, frame[:10], schema.table(away), Between(0, 1e9, target=1), schema=schema
    )  # as people have them
    assert torch.equal(frames.after[0], x_cf)
    near = pairs.prune().refine()
    assert torch.equal(near.valid, pairs.valid)
    blocks = schema.feature_mask[0] == schema.names.index("job")
    assert (near.counterfactual[:, blocks].sum(1) == 1).all()


def test_missing_rows_other_tools_rounding_and_inputs_that_are_there_already(told):
    model, x, x_cf, _, _ = told
    valid = Pairs(model, x, x_cf).valid
    rows = valid.nonzero().squeeze(1)[:3]
    x, x_cf = x[rows], x_cf[rows].clone()
    x_cf[1, 4] = torch.nan
    holes = prune(model, x, x_cf)
    assert holes.valid.tolist() == [True, False, True]
    assert torch.equal(holes.counterfactual[1], x[1])
    assert certify(model, x, x_cf).level[1] == "invalid"
    shaky = x_cf.nan_to_num(0) + 1e-9
    shaky[0] = torch.where(x_cf[0] == x[0], x[0] + 1e-9, x_cf[0])
    assert Pairs(model, x, shaky, tolerance=1e-8).changed[0].equal(x_cf[0] != x[0])
    assert Pairs(model, x, shaky).changed[0].all()
    edge = lambda z: torch.stack([0 * z[:, 0], z.sum(1) - 1], 1)
    hair = torch.tensor([[1.0, 1e-6, 0.0], [2.0, 1e-6, 0.0]], dtype=torch.float64)
    kept = Pairs(edge, torch.zeros_like(hair), hair, tolerance=1e-5)
    assert kept.valid.all()
    assert kept.n_changed.tolist() == [2, 1]  # the first one needs what the second can do without
    assert kept.prune().n_changed.tolist() == [2, 1]
    reached = prune(model, x, x_cf, target=model(x).argmax(1))  # where they are already
    assert (reached.n_changed[reached.valid] == 0).all()
    there = certify(model, x[:1], x_cf[:1], target=model(x[:1]).argmax(1), by=0.0)
    assert there.refuted.any() or there.level[0] == "invalid"
    again = certify(model, x[:1], x[:1], target=model(x[:1]).argmax(1))
    assert again.says(0).startswith("nothing has to change")


def test_no_examples():
    model = net(4)
    none = torch.zeros(0, 4, dtype=torch.float64)
    assert len(prune(model, none, none)) == 0
    assert len(certify(model, none, none, "subset")) == 0
    assert explain_change(model, none, none).values.shape == (0, 4)
    assert refine(model, none, none).counterfactual.shape == (0, 4)


BAD = {
    "shape": (lambda m, x: prune(m, x, x[:1]), ArgumentError, "shaped like x"),
    "level": (lambda m, x: certify(m, x, x, "best"), ArgumentError, "'single', 'subset', 'cardinality'"),
    "no reference": (lambda m, x: certify(m, x, x, "cardinality"), ArgumentError, "give the reference"),
    "another reference": (
        lambda m, x: certify(m, x, x + 1, "cardinality", reference=0.0),
        ArgumentError,
        "as in the reference",
    ),
    "immutable": (
        lambda m, x: certify(m, x, 0 * x, "cardinality", reference=0.0, immutable=[1]),
        ArgumentError,
        "immutable names",
    ),
    "no such feature": (
        lambda m, x: certify(m, x, 0 * x, "cardinality", reference=0.0, immutable="age"),
        ArgumentError,
        "no feature",
    ),
    "method": (lambda m, x: explain_change(m, x, x, "lime"), ArgumentError, "'auto', 'shapley', 'ig'"),
    "no baselines": (lambda m, x: explain_change(m, x, x, Saliency(m)), ArgumentTypeError, "explains a point"),
    "no gradient": (
        lambda m, x: explain_change(lambda z: m(z.detach()), x, 0 * x, "ig"),
        ModelError,
        "no gradient",
    ),
    "names": (lambda m, x: prune(m, x, x, names=["a"]), ArgumentError, "each of the 4"),
    "tolerance": (lambda m, x: prune(m, x, x, tolerance=-1), ArgumentError, "tolerance"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, error, told = BAD[name]
    with pytest.raises(error, match=told):
        call(net(4), torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def test_the_model_and_the_global_generators_are_left_alone():
    model, states = net(8), (torch.get_rng_state(), np.random.get_state()[1].copy())
    x = torch.rand(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = prune(model, x, 1 - x).refine()
    certify(model, x, found.counterfactual, "subset")
    explain_change(model, x, 1 - x)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()

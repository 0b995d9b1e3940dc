"""Concepts: captum in the same run, closed forms, and concepts that were planted in a training."""

from itertools import combinations
from pathlib import Path

import captum.concept
import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients as CaptumsLayerIntegratedGradients
from scipy.stats import ttest_ind
from sklearn.linear_model import SGDClassifier
from sklearn.svm import LinearSVC
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution import (
    CAV,
    TCAV,
    Concept,
    DefaultClassifier,
    FastCAV,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from robustx.attribution.concept.significance import kim_test, outlier_test, rank_test
from robustx.engine import ArgumentError, ArgumentTypeError, Each, Noise, identities
from robustx.engine.corrections import holm


def net(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)).to(
        dtype
    )


def examples(number, n=12, dtype=torch.float32):
    """Pictures that are brighter in one place of four."""
    x = 0.5 * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(number), dtype=dtype)
    x[:, :, number % 4] += 1
    return x


def concepts(*numbers, kind=Concept, dtype=torch.float32):
    return [kind(k, f"row {k}", DataLoader(examples(k, dtype=dtype), batch_size=5)) for k in numbers]


def labelled(*rows, batch=4):
    """A loader of (activations, numbers) as classifiers get it; ``rows`` are [N, D], numbered from 3 on."""
    x, y = torch.cat(rows), torch.cat([torch.full((len(r),), 3 + i) for i, r in enumerate(rows)])
    return DataLoader(TensorDataset(x, y), batch_size=batch)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("sets", [[(0, 1)], [(0, 1), (2, 0, 1), (2, 3)]], ids=["one", "of several sizes"])
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("target", [1, [0, 2, 1, 1, 0, 2]], ids=["one", "each"])
def test_captums_scores_with_the_same_vectors(tmp_path, sets, of_input, target):
    model, x, layers = net(), torch.randn(6, 1, 6, 6), ["1", "3"]
    theirs = concepts(0, 1, 2, 3, kind=captum.concept.Concept)
    other = captum.concept.TCAV(
        model, layers, classifier=FastCAV(), attribute_to_layer_input=of_input, save_path=str(tmp_path)
    )
    truth = other.interpret(x, [[theirs[k] for k in s] for s in sets], target)
    mine = concepts(0, 1, 2, 3)
    tcav = TCAV(model, layers, classifier=FastCAV(), attribute_to_layer_input=of_input)
    found = tcav.interpret(x, [[mine[k] for k in s] for s in sets], target)
    assert set(found) == set(truth)
    for key, at in truth.items():
        assert set(found[key]) == set(at) == set(layers)
        for layer, scores in at.items():
            assert_close(found[key][layer]["sign_count"], scores["sign_count"])
            assert_close(found[key][layer]["magnitude"], scores["magnitude"], atol=1e-4, rtol=1e-4)
    vectors = other.cavs["0-1"]["3"].stats["weights"]
    assert_close(tcav.cavs["0-1"]["3"].stats["weights"], vectors, atol=1e-5, rtol=1e-4)


def test_scores_are_those_of_the_definition():
    model, x = net(torch.float64), torch.randn(6, 1, 6, 6, dtype=torch.float64)
    pair = concepts(0, 1, dtype=torch.float64)
    tcav = TCAV(model, model[3], classifier=FastCAV())
    found = tcav.interpret(x, [pair], 2)["0-1"]["3"]
    v = tcav.cavs["0-1"]["3"].directions()
    here = model[:4](x).detach()
    step = 1e-5
    rise = torch.stack([model[4:](here + step * w)[:, 2] - model[4:](here - step * w)[:, 2] for w in v], 1) / (2 * step)
    assert_close(found["magnitude"], rise.mean(0), atol=1e-8, rtol=1e-6)
    assert_close(found["sign_count"], (rise > 0).double().mean(0))
    assert 0 < found["sign_count"][0] < 1 or found["sign_count"].sum() == 1  # the vectors of a pair are opposite


def test_another_method_takes_the_gradients_place(tmp_path):
    model, x = net(), torch.randn(4, 1, 6, 6)
    of = concepts(0, 1)
    plain = TCAV(model, ["1", "3"], classifier=FastCAV()).interpret(x, [of], 0)
    same = LayerGradientXActivation(model, model[0], multiply_by_inputs=False)
    again = TCAV(model, ["1", "3"], classifier=FastCAV(), layer_attr_method=same).interpret(x, [of], 0)
    assert_close(again, plain)
    assert same.layer is model[0]  # the user's own is left as it was
    method = LayerIntegratedGradients(model, model[0], multiply_by_inputs=False)
    found = TCAV(model, ["3"], classifier=FastCAV(), layer_attr_method=method).interpret(x, [of], 0, n_steps=7)
    captums = CaptumsLayerIntegratedGradients(model, None, multiply_by_inputs=False)
    theirs = concepts(0, 1, kind=captum.concept.Concept)
    other = captum.concept.TCAV(
        model, ["3"], classifier=FastCAV(), layer_attr_method=captums, save_path=str(tmp_path)
    ).interpret(x, [theirs], 0, n_steps=7)
    assert_close(found["0-1"]["3"]["magnitude"], other["0-1"]["3"]["magnitude"], atol=1e-4, rtol=1e-4)


def test_several_scores_at_once():
    model, x, of = net(), torch.randn(4, 1, 6, 6), concepts(0, 1, 2)
    tcav = TCAV(model, "1", classifier=FastCAV())
    both = tcav.interpret(x, [of], Each([0, 2]))["0-1-2"]["1"]
    alone = [tcav.interpret(x, [of], t)["0-1-2"]["1"] for t in (0, 2)]
    for score in ("sign_count", "magnitude"):
        assert_close(both[score], torch.stack([a[score] for a in alone]))


def test_batches_do_not_matter():
    model, x, of = net(), torch.randn(7, 1, 6, 6), concepts(0, 1)
    tcav = TCAV(model, ["1", "3"], classifier=FastCAV())
    assert_close(tcav.interpret(x, [of], 1, internal_batch_size=2), tcav.interpret(x, [of], 1))


def test_what_else_the_model_takes():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, y, shift=0.0, *, scale=1.0):
            return self.b(torch.tanh(self.a(x * y)) * scale + shift) ** 2

    model = Shifted()
    of = [Concept(k, f"{k}", [(torch.randn(5, 3) + k, torch.ones(5, 3)) for _ in range(2)]) for k in (0, 1)]
    x = torch.randn(6, 3), torch.randn(6, 3)
    tcav = TCAV(model, model.a, classifier=FastCAV())
    shift = torch.randn(6, 1)
    found = tcav.interpret(x, [of], 1, shift, additional_forward_kwargs={"scale": 2.0})["0-1"]["a"]["magnitude"]
    here = model.a(x[0] * x[1]).detach().requires_grad_()
    (slope,) = torch.autograd.grad((model.b(torch.tanh(here) * 2 + shift) ** 2)[:, 1].sum(), here)
    assert_close(found, (slope @ tcav.cavs["0-1"]["a"].directions().T).mean(0))


# ---------------------------------------------------------------- classifiers


def test_directions_of_means_by_hand():
    rows = [torch.randn(n, 4, dtype=torch.float64) + k for k, n in enumerate((5, 7, 3))]
    classifier = FastCAV()
    told = classifier.train_and_eval(labelled(*rows))
    ways = torch.stack([r.mean(0) for r in rows]) - torch.cat(rows).mean(0)
    assert_close(classifier.weights(), ways / ways.norm(dim=1, keepdim=True))
    assert classifier.classes() == [3, 4, 5]

    right = 0
    for k, mine in enumerate(rows):
        for i, x in enumerate(mine):
            rest = [torch.cat([r[:i], r[i + 1 :]]) if j == k else r for j, r in enumerate(rows)]
            centre = torch.cat(rest).mean(0)
            ways = torch.stack([r.mean(0) - centre for r in rest])
            right += int(((ways / ways.norm(dim=1, keepdim=True)) @ (x - centre)).argmax()) == k
    assert_close(told["accs"], torch.tensor(right / 15))


def test_means_agree_with_a_support_vector_machine_where_scatter_is_alike():
    torch.manual_seed(3)
    way = torch.randn(6)
    a, b = torch.randn(3000, 6), torch.randn(3000, 6) + 2 * way / way.norm()
    fast = FastCAV()
    fast.train_and_eval(labelled(a, b, batch=1000))
    machine = LinearSVC(C=0.01).fit(torch.cat([a, b]).numpy(), [0] * 3000 + [1] * 3000).coef_[0]
    assert np.dot(fast.weights()[1].numpy(), machine / np.linalg.norm(machine)) > 0.99
    assert torch.dot(fast.weights()[1], way / way.norm()) > 0.99


def test_an_example_alone_is_not_told():
    classifier = FastCAV()
    told = classifier.train_and_eval(labelled(torch.tensor([[0.0], [0.1]]), torch.tensor([[1.0]])))
    assert_close(told["accs"], torch.tensor(2 / 3))


def test_the_default_is_scikit_learns_on_whole_arrays():
    torch.manual_seed(0)
    rows = [torch.randn(20, 4) + 2 * k for k in range(3)]
    classifier = DefaultClassifier(seed=7)
    assert classifier.train_and_eval(labelled(*rows), test_split_ratio=0) == {}
    x, y = torch.cat(rows), torch.arange(3, 6).repeat_interleave(20)
    drawn = Noise(7, "DefaultClassifier", identities(x)).uniform(1, x)[:, 0].argsort()
    other = SGDClassifier(alpha=0.01, max_iter=1000, tol=1e-3, random_state=7).fit(x[drawn].numpy(), y[drawn])
    assert_close(classifier.weights(), torch.from_numpy(other.coef_))
    assert classifier.classes() == [3, 4, 5]

    told = classifier.train_and_eval(labelled(*rows))
    assert told["accs"] > 0.8
    weights = classifier.weights()
    shuffled = torch.randperm(60)
    again = DefaultClassifier(seed=7)
    again.train_and_eval(DataLoader(TensorDataset(x[shuffled], y[shuffled]), batch_size=9))
    assert_close(again.weights(), weights)  # drawn by content


def test_the_two_directions_of_a_pair_are_opposite(tmp_path):
    for classifier in (FastCAV(), DefaultClassifier()):
        classifier.train_and_eval(labelled(torch.randn(9, 3), torch.randn(9, 3) + 1))
        a, b = classifier.weights()
        assert_close(a, -b)


# ---------------------------------------------------------------- vectors and disk


def test_vectors_come_back_from_disk(tmp_path):
    stats = {"weights": torch.randn(2, 3), "classes": np.array([4, 2]), "accs": torch.tensor(0.5), "note": "by hand"}
    a, b = Concept(2, "a"), Concept(4, "b")
    CAV([a, b], "conv", stats, tmp_path, "net").save()
    found = CAV.load(tmp_path, "net", [a, b], "conv")
    assert_close(found.stats["weights"], stats["weights"])
    assert_close(found.directions(), stats["weights"][[1, 0]])  # in the order of the concepts
    assert found.stats["note"] == "by hand"
    assert [found.layer, found.model_id, found.save_path] == ["conv", "net", tmp_path]
    assert CAV.load(tmp_path, "net", [b, a], "conv") is None
    assert CAV.load(tmp_path, "net", [Concept(2, "another"), b], "conv") is None  # captum takes it for the same
    with pytest.raises(ArgumentTypeError, match="stats"):
        CAV([a, b], "conv", {"weights": object()}, tmp_path, "net").save()
    with pytest.raises(ArgumentError, match="knows nothing of"):
        CAV([a, Concept(9, "c")], "conv", stats).directions()


class Counted(nn.Sequential):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_nothing_is_learned_twice_until_the_weights_change(tmp_path, on_disk):
    model, x, of = Counted(*net()), torch.randn(4, 1, 6, 6), concepts(0, 1, 2)
    folder = tmp_path if on_disk else None
    tcav = TCAV(model, ["1", "3"], save_path=folder)
    found = tcav.interpret(x, [of[:2]], 0)
    assert bool(list(Path(tmp_path).rglob("*.safetensors"))) is on_disk
    vectors = dict(tcav.cavs["0-1"])
    model.calls = 0
    again = TCAV(model, ["1", "3"], save_path=folder) if on_disk else tcav
    assert_close(again.interpret(x, [of[:2]], 0), found)
    assert model.calls == 1  # the inputs alone
    assert again.interpret(x, [of[:2], of[1:]], 0).keys() == {"0-1", "1-2"}
    if not on_disk:
        assert model.calls == 2 + 3  # only the new concept's three batches
        assert tcav.cavs["0-1"] == vectors
    with torch.no_grad():
        model[3].weight.neg_()
    other = TCAV(model, ["1", "3"], save_path=folder) if on_disk else tcav
    fresh = TCAV(model, ["1", "3"]).interpret(x, [of[:2]], 0)
    assert_close(other.interpret(x, [of[:2]], 0), fresh)
    model.calls = 0
    tcav.compute_cavs([of[:2]], force_train=True)
    assert model.calls == (0 if on_disk else 6)  # on disk each batch is compared with what was seen


def test_memory_and_disk_and_threads_agree(tmp_path):
    model, x, of = net(), torch.randn(4, 1, 6, 6), concepts(0, 1, 2)
    sets = [[a, b] for a, b in combinations(of, 2)]
    truth = TCAV(model, ["1", "3"]).interpret(x, sets, 0)
    assert_close(TCAV(model, ["1", "3"], save_path=tmp_path).interpret(x, sets, 0), truth)
    assert_close(TCAV(model, ["1", "3"]).interpret(x, sets, 0, processes=3), truth)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_the_model_and_the_random_state_are_left_alone(tmp_path, on_disk):
    model, x = net(), torch.randn(4, 1, 6, 6)
    of = [Concept(k, f"{k}", DataLoader(examples(k), batch_size=5, shuffle=True)) for k in (0, 1)]
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    TCAV(model, ["1", "3"], save_path=tmp_path if on_disk else None).interpret(x, [of], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_mistakes_are_named():
    model, x, of = net(), torch.randn(4, 1, 6, 6), concepts(0, 1)
    with pytest.raises(ArgumentError, match="no layer 'conv'; its layers are 0, 1"):
        TCAV(model, "conv")
    with pytest.raises(ArgumentError, match="model_id"):
        TCAV(model, "1", model_id="")
    tcav = TCAV(model, "1", classifier=FastCAV())
    with pytest.raises(ArgumentError, match="two concepts or more"):
        tcav.interpret(x, [of[:1]], 0)
    for flat in (of, of[0]):
        with pytest.raises(ArgumentTypeError, match="one set of them is"):
            tcav.interpret(x, flat, 0)
    assert repr(tcav) == "TCAV(Sequential)"
    with pytest.raises(ArgumentError, match="numbers of their own"):
        tcav.interpret(x, [[of[0], Concept(0, "b", examples(1))]], 0)
    with pytest.raises(ArgumentError, match="has no examples"):
        tcav.interpret(x, [[of[0], Concept(5, "b")]], 0)
    with pytest.raises(ArgumentError, match="attribute_to_layer_input"):
        tcav.interpret(x, [of], 0, attribute_to_layer_input=True)
    with pytest.raises(ArgumentTypeError, match="n_steps"):
        tcav.interpret(x, [of], 0, n_steps=3)
    with pytest.raises(ArgumentError, match="of fewer than two concepts"):
        DefaultClassifier().train_and_eval(labelled(torch.randn(2, 3), torch.randn(2, 3)), test_split_ratio=0.9)
    with pytest.raises(ArgumentError, match="two at least"):
        FastCAV().train_and_eval(labelled(torch.randn(4, 3)))
    with pytest.raises(ArgumentError, match="nothing leads towards it"):
        FastCAV().train_and_eval(labelled(torch.ones(4, 3), torch.ones(4, 3)))


# ---------------------------------------------------------------- significance


def plain(number, n=40):
    return 0.5 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(number))


def striped(number, n=40):
    x = plain(number, n)
    x[torch.arange(n), 0, torch.randint(1, 7, (n,), generator=torch.Generator().manual_seed(-number))] = 1
    return x


@pytest.fixture(scope="module")
def model():
    """It learned to tell pictures with a stripe, wherever it is, from those without."""
    x, y = torch.cat([striped(1000, 200), plain(1001, 200)]), torch.arange(2).flip(0).repeat_interleave(200)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.Tanh(), nn.Linear(16, 2))
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.97
    return model


@pytest.mark.parametrize("classifier", [FastCAV, DefaultClassifier])
def test_a_planted_concept_is_found_and_a_random_one_rejected(model, classifier):
    random = [Concept(2 + i, f"random {i}", plain(2 + i)) for i in range(20)]
    of = Concept(0, "stripes", striped(100)), Concept(1, "nothing", plain(101))
    tcav = TCAV(model, "1", classifier=classifier())

    def found(test, score):
        tested = tcav.significance(striped(102), of, random, target=1, test=test, score=score)
        both = [tested[c]["1"] for c in ("stripes", "nothing")]
        assert [s.adjusted for s in both] == holm([s.p_value for s in both])
        return [s.p_value for s in both]

    stripes, nothing = found("t", "magnitude")
    assert stripes < 0.001 and nothing > 0.05
    stripes, nothing = found("permutation", "magnitude")
    assert stripes == 1 / 21 and nothing > 0.05
    assert found("kim", "sign_count")[0] < 0.01
    assert tcav.cavs["0-2"]["1"].stats["accs"] > 0.9


def test_random_concepts_are_found_no_more_often_than_said(model):
    of = [Concept(i, f"random {i}", plain(i, 20)) for i in range(20)]
    tcav, x = TCAV(model, "1", classifier=FastCAV()), striped(102, 30)

    def found(test):
        """p-values of each as the concept, among all others."""
        return torch.tensor(
            [
                tcav.significance(x, c, [r for r in of if r is not c], target=1, test=test)[c.name]["1"].p_value
                for c in of
            ]
        )

    ranks, t = found("permutation"), found("t")
    for level in (0.05, 0.1, 0.25, 0.5):
        assert (ranks <= level + 1e-9).float().mean() <= level + 1e-6  # exact: each has its turn
    assert (t <= 0.05).float().mean() <= 0.15
    assert (found("kim") <= 0.05).float().mean() > 0.2  # the paper's takes what depends for independent


def test_scores_of_a_test_are_those_of_interpret(model):
    stripes, random = Concept(9, "stripes", striped(9)), [Concept(i, "random", plain(i)) for i in range(3)]
    tcav, x = TCAV(model, "4", classifier=DefaultClassifier()), striped(102, 9)
    sets = [[stripes, r] for r in random] + list(combinations(random, 2))
    told = {}
    for a, b in sets:
        scores = tcav.interpret(x, [[a, b]], 1)[f"{a.id}-{b.id}"]["4"]["magnitude"]
        told[a, b], told[b, a] = scores / tcav.cavs[f"{a.id}-{b.id}"]["4"].directions().norm(dim=1)

    found = tcav.significance(x, stripes, random, target=1)["stripes"]["4"]
    everyone = [stripes, *random]
    means = [torch.stack([told[a, b] for b in everyone if b is not a]).mean() for a in everyone]
    assert_close(found.scores, torch.stack([told[stripes, r] for r in random]))
    assert_close(found.random, torch.stack(means[1:]))
    assert found.p_value == found.adjusted == outlier_test(found.scores, found.random)

    found = tcav.significance(x, stripes, random, target=1, test="kim", score="sign_count")["stripes"]["4"]
    sets = [[stripes, r] for r in random] + [[random[1], random[0]], [random[2], random[1]], [random[0], random[2]]]
    truth = torch.stack([s["4"]["sign_count"][0] for s in tcav.interpret(x, sets, 1).values()])
    assert_close(torch.cat([found.scores, found.random]), truth)
    assert found.p_value == kim_test(found.scores, found.random)

    with pytest.raises(ArgumentError, match="three at least"):
        tcav.significance(x, stripes, random[:2], target=1)
    with pytest.raises(ArgumentError, match="test must be one of"):
        tcav.significance(x, stripes, random, target=1, test="z")
    with pytest.raises(ArgumentError, match="one score, target asks for 2"):
        tcav.significance(x, stripes, random, target=Each([0, 1]))
    with pytest.raises(ArgumentError, match="names of their own"):
        tcav.significance(x, random, random, target=1)


def test_an_outlier_by_simulation():
    draw = np.random.default_rng(0)
    null = draw.standard_normal((4000, 6))
    p = [outlier_test(torch.tensor(row[:1]), torch.tensor(row[1:])) for row in null]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * (level * (1 - level) / 4000) ** 0.5)


def test_ranks_by_hand():
    random = torch.tensor([0.0, 1.0, 2.0, 7.0])
    assert rank_test(torch.tensor([0.0, 0.0]), random) == 3 / 5  # the mean is 2: two are as far as 2
    assert rank_test(torch.tensor([-9.0]), random) == 1 / 5
    assert rank_test(torch.tensor([2.5]), random) == 1.0


def test_scores_without_spread():
    one, half = torch.ones(4), torch.full((4,), 0.5)
    assert kim_test(one, half) == outlier_test(one, half) == 0.0
    assert kim_test(one, one) == outlier_test(one, one) == rank_test(one, one) == 1.0
    assert rank_test(one, half) == 1 / 5


def test_the_papers_test_is_welchs():
    a, b = torch.rand(5), torch.rand(7)
    assert kim_test(a, b) == pytest.approx(ttest_ind(a.double(), b.double(), equal_var=False).pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]

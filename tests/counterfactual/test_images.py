"""Superpixels that give way, against enumeration of all their sets."""

import pytest
import torch

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer
from robustx.engine import Probe
from robustx.perturb import Leave, Reach, blur, named, nearest_unlike, superpixels

BY = 1e-4  # how much more than a tie a counterfactual is to reach
MODEL, TEST = zoo.load("digits")
TRAIN = zoo.data("digits", split="train")
SETS = ((torch.arange(2**16)[:, None] >> torch.arange(16)) & 1).bool()  # of 16 squares, all sets
SETS = SETS[SETS.sum(1).argsort(stable=True)]
SIZES = SETS.sum(1)


def asked(reference, x, target):
    """The search's answer, and for any sets of one example's squares whether they reach the goal."""
    squares = superpixels(x, "grid", 16)
    result = CounterfactualExplainer(MODEL, reference=reference, by=BY).generate(x, target, feature_mask=squares)
    top = MODEL(x).topk(2).indices
    goal = Leave(top[:, 0]) if target == "other" else Reach(top[:, 1])
    (there,) = named(reference)(Probe(MODEL, (x,), goal))

    def reach(i, sets):
        shut = sets[:, squares[i, 0]][:, None]
        out = MODEL(torch.where(shut, there[i], x[i]))
        return goal.value(out, torch.full((len(out),), i)) > BY

    return result, torch.inference_mode()(reach)


def fewest(result, reach):
    """The size of the smallest set of squares that reaches each example's goal; 17 where none does."""
    found = []
    for i in range(len(result)):
        most = int(result.n_changed[i]) if result.valid[i] else 16
        smaller = SETS[most > SIZES] if result.valid[i] else SETS
        good = reach(i, smaller)
        found.append(int(SIZES[: len(smaller)][good].min()) if good.any() else most + (not result.valid[i]))
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("reference", "target"),
    [(0.0, "other"), ("blur", "other"), (nearest_unlike(TRAIN.x, TRAIN.y), "runner-up")],
    ids=["black", "blur", "patch of the nearest unlike"],
)
def test_the_fewest_squares_are_found_and_none_is_too_many(reference, target):
    result, reach = asked(reference, TEST.x[:10], target)
    exact = fewest(result, reach)
    assert torch.equal(result.valid, exact <= 16) and result.valid.all()
    assert torch.equal(result.n_changed, exact)
    for i, changed in enumerate(result.changed):
        assert reach(i, changed[None]).all()
        each = changed.nonzero()
        assert not reach(i, changed.expand(len(each), -1).scatter(1, each, False)).any()
        assert result.proved[i] in ("smallest", "irreducible")


def test_sets_are_found_that_no_ranking_leads_to():
    """A weak blur: only some sets of several squares do, and what is added on top of them takes it back."""
    rows = torch.tensor([11, 13, 20, 30])
    result, reach = asked(blur(1.2), TEST.x[rows], "other")
    assert result.valid.all() and torch.equal(result.n_changed, fewest(result, reach))
    assert not any(reach(i, SETS[SIZES == 16]).any() for i in range(4))


def test_what_cannot_be_is_known_once_all_sets_were_tried():
    x = TEST.x[[0, 2]]
    squares = superpixels(x, "grid", 9)
    for budget, status in ((126, "infeasible"), (125, "not found")):  # 126 sets of four or of five: the most
        result = CounterfactualExplainer(MODEL, reference=blur(0.5), budget=budget).generate(x, feature_mask=squares)
        assert result.status == (status,) * 2
    sets = ((torch.arange(2**9)[:, None] >> torch.arange(9)) & 1).bool()
    (there,) = blur(0.5)(Probe(MODEL, (x,)))
    for i in range(2):
        out = MODEL(torch.where(sets[:, squares[i, 0]][:, None], there[i], x[i]))
        assert (out.argmax(1) == MODEL(x)[i].argmax()).all()


@pytest.mark.parametrize("name", ["blur", "mean", "inpaint", "noise"])
def test_a_reference_by_name_replaces_whole_squares(name):
    x = TEST.x[:4]
    squares = superpixels(x, "grid", 16)
    result = CounterfactualExplainer(MODEL, reference=name).generate(x, feature_mask=squares)
    assert result.valid.any()
    shut = result.changed.gather(1, squares.flatten(1)).reshape(x.shape)
    assert torch.equal(result.counterfactual[~shut], x[~shut])
    assert torch.equal(result.verify(), result.valid)
    torch.testing.assert_close(result.contributions.sum(1).to(result.margin), result.margin - result.before)


def test_pictures_that_are_cut_into_fewer_parts_than_others_are_told_of_one_by_one():
    x = TEST.x[:3]
    parts = torch.cat([superpixels(x[i : i + 1], "grid", n) for i, n in enumerate((16, 4, 9))])
    result = CounterfactualExplainer(MODEL, reference=0.0).generate(x, feature_mask=parts)
    assert result.valid.all()
    for i, n in enumerate((16, 4, 9)):
        pairs = result.at([i]).pairs
        assert pairs.names == result.names[:n] and torch.equal(pairs.changed[0], result.changed[i, :n])
        shown = [axes.images[0].get_array() for axes in result.plot("image", i).axes[:4]]
        assert torch.allclose(torch.tensor(shown[1]), result.counterfactual[i, 0])
        did = torch.tensor(shown[3])
        assert torch.allclose(did, result.contributions[i][parts[i, 0]].to(did.dtype))

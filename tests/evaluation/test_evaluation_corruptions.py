"""Corruptions in a run: rows that recompute, and the paper's formulas by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from robustx import zoo
from robustx.evaluation import Block, Spec
from robustx.evaluation.corruptions import (
    ALEXNET,
    Baseline,
    corrupted,
    corruption_block,
    errors,
    summarise_corruptions,
)
from robustx.evaluation.store import Row
from robustx.perturb import CORRUPTIONS, corrupt

SPEC = Spec(models=("digits",), data="digits", norm="L2", seed=4)


@pytest.fixture(scope="module")
def digits():
    model, data = zoo.load("digits", limit=24)
    return model, Block(data.x, data.y, range(100, 124), (0.0, 1.0))


def answers(eps, wrong, flagged=0, count=10):
    return [Row(i, eps, i < wrong, wrong <= i < wrong + flagged, 0, 0.0, 0.0, 1, 0) for i in range(count)]


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "pixelate"])
def test_rows_are_the_answers_to_the_corrupted_pictures(digits, name):
    model, block = digits
    done = corruption_block(model, block, name, (1, 5), SPEC)
    assert [(r.eps, r.position) for r in done.rows] == [(s, p) for s in (1.0, 5.0) for p in range(100, 124)]
    assert not done.tensors and all((r.forwards, r.backwards) == (1, 0) for r in done.rows)
    for severity, rows in ((1, done.rows[:24]), (5, done.rows[24:])):
        x = corrupt(block.x, name, severity, seed=4)
        out = model(x)
        assert [r.success for r in rows] == (out.argmax(1) != block.y).tolist()
        assert [r.prediction for r in rows] == out.argmax(1).tolist()
        assert_close(torch.tensor([r.distance for r in rows]), (x - block.x).flatten(1).norm(dim=1))
        assert all((r.margin > 0) == r.success for r in rows)


def test_rows_do_not_depend_on_the_block(digits):
    model, block = digits
    whole = corruption_block(model, block, "snow", (3,), SPEC).rows
    parts = [r for half in block.halves() for r in corruption_block(model, half, "snow", (3,), SPEC).rows]
    assert [r._replace(margin=0) for r in parts] == [r._replace(margin=0) for r in whole]


def test_answers_that_are_not_finite_are_flagged_and_count_as_errors(digits):
    _, block = digits

    def broken(x):
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.5, torch.nan, torch.zeros(len(x), 10))

    rows = corruption_block(broken, block, "brightness", (5,), SPEC).rows
    bad = (corrupt(block.x, "brightness", 5).mean((1, 2, 3)) > 0.5).tolist()
    assert any(bad) and [r.flagged for r in rows] == bad
    assert errors(rows)[5].count == sum(b or y != 0 for b, y in zip(bad, block.y.tolist(), strict=True))


def test_pictures_on_another_scale_are_corrupted_alike():
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for name in ("contrast", "impulse_noise"):
        other = corrupted(2 * x - 1, (-1.0, 1.0), name, 3, 0)
        assert torch.equal(corrupted(x, (0.0, 1.0), name, 3, 0), corrupt(x, name, 3))
        assert float(other.min()) >= -1 and float(other.max()) <= 1
    assert_close(corrupted(2 * x - 1, (-1.0, 1.0), "contrast", 3, 0), 2 * corrupt(x, "contrast", 3) - 1)
    with pytest.raises(ValueError, match="bounds must be black and white of the pictures"):
        corrupted(x, (-torch.inf, torch.inf), "fog", 1, 0)


def test_what_is_no_picture_is_refused(digits):
    table = Block(torch.rand(3, 30), torch.zeros(3, dtype=torch.long), range(3), (0.0, 1.0))
    with pytest.raises(ValueError, match="x must be pictures"):
        corruption_block(torch.nn.Linear(30, 2), table, "fog", (1,), SPEC)


def test_the_mean_corruption_error_by_hand():
    mine = {"fog": answers(1.0, 2) + answers(2.0, 6), "snow": answers(1.0, 3) + answers(2.0, 3, flagged=2)}
    other = {"fog": answers(1.0, 5) + answers(2.0, 5), "snow": answers(1.0, 6) + answers(2.0, 10)}
    baseline = Baseline.of("other", answers(0.0, 2), other)
    assert (baseline.clean, baseline.errors, baseline.severities) == (0.2, {"fog": 0.5, "snow": 0.8}, (1, 2))
    told = summarise_corruptions(answers(0.0, 1), mine, baseline)
    fog, snow = told.each
    assert_close(fog.ce, (0.2 + 0.6) / (0.5 + 0.5))
    assert_close(snow.ce, (0.3 + 0.5) / (0.6 + 1.0))
    assert_close(fog.relative, (0.1 + 0.5) / (0.3 + 0.3))
    assert_close(snow.relative, (0.2 + 0.4) / (0.4 + 0.8))
    assert_close((told.error, told.mce, told.relative_mce), (0.4, (0.8 + 0.5) / 2, (1.0 + 0.5) / 2))
    assert [e.count for e in snow.errors] == [3, 5] and told.clean.count == 1 and told.baseline == "other"


def test_a_model_is_its_own_measure():
    mine = {"fog": answers(1.0, 2), "jpeg_compression": answers(1.0, 7)}
    told = summarise_corruptions(answers(0.0, 1), mine, Baseline.of("me", answers(0.0, 1), mine))
    assert_close((told.mce, told.relative_mce), (1.0, 1.0))


def test_those_held_back_for_validation_are_not_in_the_mean():
    mine = {"fog": answers(1.0, 2), "saturate": answers(1.0, 9)}
    assert summarise_corruptions(answers(0.0, 1), mine).error == 0.2
    assert summarise_corruptions(answers(0.0, 1), {"saturate": answers(1.0, 9)}).error == 0.9


def test_without_a_measure_there_is_no_relative_number():
    told = summarise_corruptions(answers(0.0, 0), {"fog": answers(1.0, 2)})
    assert math.isnan(told.mce) and math.isnan(told.relative_mce) and told.error == 0.2
    assert told.baseline == "" and told.without == ()


def test_where_the_measure_makes_no_error_there_is_nothing_to_measure_by():
    theirs = {"fog": answers(1.0, 0), "snow": answers(1.0, 5)}
    perfect = Baseline.of("other", answers(0.0, 0), theirs)
    told = summarise_corruptions(answers(0.0, 1), {"fog": answers(1.0, 2), "snow": answers(1.0, 2)}, perfect)
    assert math.isnan(told.each[0].ce) and math.isnan(told.each[0].relative) and told.without == ("fog",)
    assert_close((told.error, told.mce, told.relative_mce), (0.2, 0.4, 0.2))


def test_alexnet_is_the_published_measure():
    assert tuple(ALEXNET.errors) == CORRUPTIONS and 0.43 < ALEXNET.clean < 0.44
    mine = {"fog": [Row(0, float(s), s > 1, False, 0, 0.0, 0.0, 1, 0) for s in range(1, 6)]}
    told = summarise_corruptions([Row(0, 0.0, False, False, 0, 0.0, 0.0, 1, 0)], mine, ALEXNET)
    assert_close(told.mce, 0.8 / 0.819324)
    assert_close(told.relative_mce, 0.8 / (0.819324 - 0.43478))


def test_a_measure_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"'AlexNet' is of severities \(1, 2, 3, 4, 5\), but 'fog' was tried at \(2,\)"
    ):
        summarise_corruptions(answers(0.0, 1), {"fog": answers(2.0, 2)}, ALEXNET)
    with pytest.raises(ValueError, match="'other' says nothing of 'snow'; try it on the same corruptions"):
        summarise_corruptions(answers(0.0, 1), {"snow": answers(1.0, 2)}, Baseline("other", 0.1, {}, (1,)))

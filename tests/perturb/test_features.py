"""The laws of features, for every way of making them."""

import pytest
import torch
from torch.testing import assert_close

from robustx.perturb import Partition, Windows, columns, elements, features_of, from_masks, superpixels, words

B = 3
LONG = torch.long


def masked(shapes, masks):
    return from_masks(masks, tuple(torch.rand(B, *s) for s in shapes))


FEATURES = {
    "elements": lambda: elements(6),
    "shared, odd ids": lambda: Partition(torch.tensor([7, -2, 7, 100, -2, 7])),
    "one for each example": lambda: Partition(torch.tensor([[0, 0, 1, 1], [5, 1, 5, 5], [9, 9, 9, 9]])),
    "columns": lambda: columns([[0, 3], [2]], 6),
    "no mask": lambda: masked([(4,), (2, 2)], None),
    "one mask": lambda: masked([(2, 3)], torch.tensor([[[0, 0, 4]]])),
    "across tensors": lambda: masked([(4,), (2, 2)], (torch.tensor([0, 0, 3, 8]), torch.tensor([[3], [8]]))),
    "scalar mask": lambda: masked([(4,), ()], (torch.tensor(3), torch.tensor(3))),
    "mixed": lambda: masked([(2,), (2,)], (torch.tensor([[0, 1]]), torch.tensor([[0, 2], [2, 2], [1, 0]]))),
    "superpixels": lambda: masked([(1, 6, 6)], superpixels(torch.rand(B, 1, 6, 6), "grid", 4)),
    "nothing": lambda: elements(0),
}
every = pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES)


def ids_of(f):
    """The ids of each example's elements, as a list of lists."""
    ids = f.ids if f.ids.ndim == 2 else f.ids[None]
    return (ids.expand(B, -1) if len(ids) == 1 else ids).tolist()


@every
def test_spread_and_gather_do_what_a_loop_does(make):
    f = make()
    ids, known = ids_of(f), f.known.tolist()
    assert known == sorted({i for row in ids for i in row}) and f.count == len(known)
    gates, values = torch.rand(B, f.count), torch.rand(B, len(ids[0]))
    spread, gathered = f.spread(gates), f.gather(values)
    assert spread.shape == values.shape and gathered.shape == gates.shape
    for b in range(B):
        assert spread[b].tolist() == [gates[b, known.index(i)] for i in ids[b]]
        for k, i in enumerate(known):
            total = sum(float(v) for v, j in zip(values[b], ids[b], strict=True) if j == i)
            assert float(gathered[b, k]) == pytest.approx(total, abs=1e-6)


@every
def test_gathering_spread_ones_counts(make):
    f = make()
    counts = torch.tensor([[row.count(i) for i in f.known.tolist()] for row in ids_of(f)]).reshape(B, f.count)
    ones = torch.ones(B, f.count)
    assert torch.equal(f.gather(f.spread(ones)), counts.float())
    gates = torch.rand(B, f.count)
    assert_close(f.gather(f.spread(gates)), gates * counts)


@every
def test_queries_follow_their_examples(make):
    f, rows = make(), torch.tensor([2, 0, 0, 1, 2])
    gates = torch.rand(B, f.count)
    spread = f.spread(gates)
    assert torch.equal(f.spread(gates[rows], rows), spread[rows])
    assert torch.equal(f.gather(spread[rows], rows), f.gather(spread)[rows])


@every
def test_gather_is_the_transpose_of_spread(make):
    f = make()
    gates = torch.rand(B, f.count, dtype=torch.float64, requires_grad=True)
    spread = f.spread(gates)
    values = torch.rand_like(spread)
    (g,) = torch.autograd.grad((spread * values).sum(), gates)
    assert_close(g, f.gather(values))


def test_elements_are_their_own_features_in_order():
    z = torch.rand(B, 5)
    assert torch.equal(elements(5).spread(z), z) and torch.equal(elements(5).gather(z), z)


def test_columns_in_groups_and_alone():
    f = columns([[4, 1], [2]], 6, names=["block", "two", "zero", "three", "five"])
    assert torch.equal(f.gather(torch.tensor([[1.0, 2, 4, 8, 16, 32]])), torch.tensor([[18.0, 4, 1, 8, 32]]))
    assert f.names == ("block", "two", "zero", "three", "five")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool], ids=str)
def test_masks_of_any_integers(dtype):
    mask = torch.tensor([[0, 1, 1, 0]]).to(dtype)
    f = from_masks(mask, (torch.rand(B, 4),))
    assert torch.equal(f.gather(torch.ones(B, 4)), torch.full((B, 2), 2.0))


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 3), (0,)])
def test_no_examples(shape):
    d = torch.rand(1, *shape[1:]).numel()
    for mask in (None, torch.zeros(1, *shape[1:], dtype=LONG)):
        f = from_masks(mask, (torch.rand(shape),))
        assert f.count == (d if mask is None else 1)
        assert f.spread(torch.rand(0, f.count)).shape == (0, d)


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.zeros(1, 4), "feature_mask must hold integers, got torch.float32; use mask.long()"),
        (torch.zeros(1, 5, dtype=LONG), r"feature_mask of shape \(1, 5\) does not broadcast to \(3, 4\)"),
        (torch.zeros(2, 4, dtype=LONG), r"feature_mask of shape \(2, 4\) does not broadcast to \(3, 4\)"),
        ((torch.zeros(4, dtype=LONG),) * 2, "feature_mask must have one tensor for each of the 1 inputs, got 2"),
    ],
)
def test_masks_that_do_not_fit(mask, words):
    with pytest.raises(ValueError, match=words):
        masked([(4,)], mask)


@pytest.mark.parametrize(
    "groups, names, words",
    [
        ([[0, 6]], None, r"groups name column 6, but there are 6 columns \(0 to 5\)"),
        ([[-1]], None, "groups name column -1"),
        ([[0, 1], [1]], None, "groups name column 1 twice"),
        ([[0, 1]], ["a", "b"], "names must have one entry for each of the 5 features, got 2"),
    ],
)
def test_columns_that_do_not_fit(groups, names, words):
    with pytest.raises(ValueError, match=words):
        columns(groups, 6, names)


def test_columns_by_name():
    """Groups and columns of a table by what they are called, mixed with numbers; a dict names the features."""
    called = ["age", "city_Rome", "income", "city_Oslo", "sex"]
    f = columns({"city": ["city_Rome", "city_Oslo"], "person": ["sex", 0]}, called)
    assert f.names == ("city", "person", "income")
    assert torch.equal(f.gather(torch.tensor([[1.0, 2, 4, 8, 16]])), torch.tensor([[10.0, 17, 4]]))
    assert columns([["city_Rome", 3]], called).names is None
    with pytest.raises(ValueError, match="groups name column 'town', but the columns are age, city_Rome"):
        columns({"city": ["town"]}, called)
    with pytest.raises(ValueError, match="groups name column city_Rome twice"):
        columns([["city_Rome"], ["city_Rome"]], called)


SPANS = {
    "pieces": ([(0, 4), (4, 7), (8, 11)], None, [1, 1, 2]),
    "special ones between": ([(0, 0), (0, 2), (3, 5), (0, 0), (0, 4), (0, 0), (0, 0)], None, [0, 1, 2, 0, 3, 0, 0]),
    "a space within": ([(0, 5), (5, 8), (8, 11), (11, 13)], "Hello myown x", [1, 2, 2, 3]),
    "a space within, not told": ([(0, 5), (5, 8)], None, [1, 1]),
    "nothing": ([(0, 0), (0, 0)], None, [0, 0]),
}


@pytest.mark.parametrize("case", SPANS)
def test_words_join_tokens_without_a_gap(case):
    spans, text, expected = SPANS[case]
    assert words(spans, text).tolist() == [expected]
    assert words([spans, spans], None if text is None else [text, text]).tolist() == [expected] * 2


@pytest.mark.parametrize("spans, text", [([1, 2], None), ([[(0, 1, 2)]], None), ([(0, 1)], ["a", "b"])])
def test_spans_that_do_not_fit(spans, text):
    with pytest.raises(ValueError, match=r"spans must be \[B, T, 2\] or \[T, 2\], with one text for each row"):
        words(spans, text)


def test_features_follow_the_inputs_to_their_device():
    x, elsewhere = torch.zeros(2, 4), torch.zeros(2, 4, device="meta")
    for f, tensors in ((columns([[0, 1]], 4), lambda f: [f.ids]), (Windows.over((x,), (2,)), lambda f: f.sides[0])):
        assert {t.device.type for t in tensors(features_of(f, (x,)))} == {"cpu"}
        assert {t.device.type for t in tensors(features_of(f, (elsewhere,)))} == {"meta"}

"""Baselines that are drawn: captum's draws from the same state, and the product they come from."""

import random
from itertools import product

import captum.attr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import told

from robustx.attribution.baselines import ProductBaselines

VALUES = st.lists(st.integers() | st.text() | st.none(), min_size=1, max_size=4)
PAIRS = st.lists(st.tuples(st.integers(), st.text()), min_size=1, max_size=4)


@given(st.lists(VALUES, max_size=5) | st.dictionaries(st.text(), VALUES, min_size=1), st.integers())
def test_captums_draws(values, seed):
    assert_captums_draws(values, seed)


@given(PAIRS, VALUES, st.integers())
def test_captums_draws_of_groups(pairs, values, seed):
    assert_captums_draws({"a": values, ("b", "c"): pairs, "d": values}, seed)


def assert_captums_draws(values, seed):
    """And nothing else from the generator."""
    drawn, states = [], []
    for room in (ProductBaselines, captum.attr.ProductBaselines):
        baselines = room(values)
        random.seed(seed)
        drawn.append([baselines(), baselines.sample(), baselines()])
        states.append(random.getstate())
    assert drawn[0] == drawn[1]
    assert all(type(a) is type(b) and list(a) == list(b) for a, b in zip(*drawn, strict=True))
    assert states[0] == states[1]


def test_all_of_the_product_and_no_more():
    values = [[1, 2], "xy", [None, 0.5, True]]
    baselines = ProductBaselines([list(v) for v in values])
    assert {tuple(baselines()) for _ in range(500)} == set(product(*values))


def test_groups_are_drawn_together():
    pairs = [(1, "one"), (2, "two"), (3, "three")]
    baselines = ProductBaselines({("number", "word"): pairs, "other": [4, 5]})
    drawn = [baselines() for _ in range(200)]
    assert {(d["number"], d["word"], d["other"]) for d in drawn} == {(*p, o) for p, o in product(pairs, [4, 5])}


def test_of_no_features():
    assert ProductBaselines([])() == [] and ProductBaselines({})() == {}


@pytest.mark.parametrize(
    "kind, values, words",
    [
        (TypeError, {"name": "Bob"}, ("'name'", "list", "'Bob'", "brackets")),
        (TypeError, [[1], 2], ("1", "list", "2")),
        (ValueError, {"age": []}, ("'age'", "empty")),
        (ValueError, {("a", "b"): [(1, 2), (3,)]}, ("('a', 'b')", "tuples of 2", "(3,)")),
        (ValueError, {("a", "b"): ["xy"]}, ("tuples of 2", "'xy'")),
    ],
)
def test_bad_input(kind, values, words):
    with pytest.raises(kind) as error:
        ProductBaselines(values)
    told(error.value, words)

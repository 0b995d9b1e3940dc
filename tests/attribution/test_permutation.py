"""Feature permutation: captum's numbers from the same draws, and what holds for draws by key."""

import random

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from robustx.attribution import FeaturePermutation, LayerFeaturePermutation, permuted
from robustx.engine import Each

pytestmark = pytest.mark.filterwarnings("ignore:Skipping feature group")


class Two(nn.Module):
    """[B, 4] and [B, 2, 2] to [B, 3]; its layer is [B, 6]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, a, b, more=0.0):
        return self.head(torch.tanh(self.layer(torch.cat([a, b.flatten(1)], 1)) + more))


def both(of, asked):
    """What both rooms answer from the same draws, and what the generator gives next."""
    found = []
    for method in (of, getattr(captum.attr, of.__name__)):
        torch.manual_seed(7)
        found.append((asked(method), torch.rand(1)))
    return found


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-9)


def turned(x, feature_mask):
    """A shuffle of one's own: two places on."""
    return torch.where(feature_mask.bool(), x.roll(2, 0), x)


MASKS = {
    "none": None,
    "shared": (torch.tensor([[0, 0, 1, 2]]), torch.tensor([[[3, 4], [4, 3]]])),
    "across": (torch.tensor([[0, 1, 1, 2]]), torch.tensor([[[0, 3], [1, 2]]])),
    "for each example": (torch.randint(0, 2, (5, 4)), torch.randint(1, 3, (5, 2, 2))),
}


@settings(max_examples=60)
@given(data=st.data())
def test_it_says_what_captum_says(data):
    draw, model = data.draw, Two()
    torch.manual_seed(draw(st.integers(0, 99), "seed"))
    examples = draw(st.integers(1, 5), "examples")
    inputs = torch.randn(examples, 4).double(), torch.randn(examples, 2, 2).double()
    names = list(MASKS) if examples == 5 else list(MASKS)[:3]
    whole = draw(st.booleans(), "whole")
    names = names[:3] if whole else names  # captum's masks are shared then
    options = {"feature_mask": MASKS[draw(st.sampled_from(names), "mask")]}
    if not whole:
        options["target"] = draw(st.sampled_from([None, 1, (2,), [0, 2, 1, 1, 0][:examples]]), "target")
        options["additional_forward_args"] = draw(
            st.sampled_from([None, torch.randn(examples, 1).double(), 0.5]), "more"
        )
    made = draw(st.sampled_from([(), (turned,)]), "shuffle")
    function = (lambda a, b: model(a, b).sum(0)[:2]) if whole and examples != 2 else model
    function = (lambda a, b: model(a, b).sum()) if whole and examples == 2 else function
    ours, theirs = both(
        FeaturePermutation, lambda method: quietly(method(function, *made).attribute, inputs, **options)
    )
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]  # as many draws


def quietly(attribute, inputs, **options):
    """One example has a warning of its own; captum's is logged."""
    if len(inputs[0]) > 1 or "captum" in attribute.__module__:
        return attribute(inputs, **options)
    with pytest.warns(UserWarning, match="a single example has no other to take values from"):
        return attribute(inputs, **options)


def test_one_input_and_integers():
    x = torch.randint(0, 9, (6, 5))
    weight = torch.randn(5).double()
    ours, theirs = both(FeaturePermutation, lambda m: m(lambda x: x.double() @ weight).attribute(x))
    assert_same(ours[0], theirs[0])


def test_batches_change_nothing():
    """Draws follow features, not batches; captum's follow its batches."""
    model, inputs = Two(), (torch.randn(5, 4).double(), torch.randn(5, 2, 2).double())
    found = []
    for per in (None, 1, 3, 100):
        torch.manual_seed(3)
        found.append(FeaturePermutation(model).attribute(inputs, 1, perturbations_per_eval=per))
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-12, atol=1e-12)


def test_each_call_draws_on_and_the_model_draws_the_same():
    """As with any drawing: a second call draws other orders; what the model draws is no part of that."""
    torch.manual_seed(0)
    x, seen = torch.randn(8, 3).double(), []

    def noisy(x):
        seen.append(torch.rand(1).item())
        return x.square().sum(1)

    method = FeaturePermutation(noisy)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    one, models = method.attribute(x), tuple(seen)
    seen.clear()
    after = torch.get_rng_state()
    two = method.attribute(x)
    assert not torch.equal(one, two)
    torch.manual_seed(1)
    again = FeaturePermutation(lambda x: x.square().sum(1)).attribute(x)
    assert torch.equal(one, again) and torch.equal(torch.get_rng_state(), after)
    assert len(models) == len(seen)


def test_a_failure_draws_nothing():
    x, before = torch.randn(3, 2), torch.get_rng_state()

    def fails(x):
        raise KeyError(torch.rand(1))

    with pytest.raises(KeyError):
        FeaturePermutation(fails).attribute(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_permutation_is_another_order():
    x = torch.arange(3.0)[:, None].expand(3, 2)
    for _ in range(20):
        found = permuted(x, torch.tensor([[True, False]]))
        assert torch.equal(found[:, 1], x[:, 1])
        assert sorted(found[:, 0].tolist()) == [0, 1, 2] and not torch.equal(found[:, 0], x[:, 0])
    with pytest.raises(AssertionError, match="a permutation needs two examples at least, got 1"):
        permuted(x[:1], torch.tensor([[True, False]]))


# --- by key -----------------------------------------------------------------------------------------------


def test_by_key_every_example_takes_another_ones_value():
    """All of a feature from a single other one, across inputs too; no generator moves."""
    a = torch.arange(6.0)[:, None].expand(6, 3).double()
    b = a[:, :2] * 10
    masks = torch.tensor([0, 0, 1]), torch.tensor([0, 2])
    states = torch.get_rng_state(), np.random.get_state()[1].copy()

    class Seen(nn.Module):
        def forward(self, a, b):
            return torch.cat([a, b], 1)

    falls = FeaturePermutation(Seen()).attribute((a, b), feature_mask=masks, seed=4)
    moved = -torch.cat([f.unflatten(0, (6, 5)).flatten(2) for f in falls], 2)  # [B, output, element]
    first = moved[:, [0, 1, 3]][:, :, 0]
    assert (first[:, 0] == first[:, 1]).all() and (first[:, 0] * 10 == first[:, 2]).all()
    taken = first[:, 0] + a[:, 0]
    assert (taken != a[:, 0]).all() and sorted(taken.tolist()) == list(range(6))
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


def test_by_key_the_order_of_the_batch_does_not_matter():
    model, inputs = Two(), (torch.randn(7, 4).double(), torch.randn(7, 2, 2).double())
    found = FeaturePermutation(model).attribute(inputs, 2, seed=1)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    again = FeaturePermutation(model).attribute(tuple(t[order] for t in inputs), 2, seed=1)
    for a, b in zip(found, again, strict=True):
        assert_close(a[order], b)
    other = FeaturePermutation(model).attribute(inputs, 2, seed=2)
    assert not torch.equal(found[0], other[0])


def test_by_key_the_mean_is_that_of_captums_draws():
    """Over many draws each example's fall tends to its score less the mean over the other ones' values."""
    x = torch.randn(5, 2).double()
    score = lambda x: x[:, 0].exp() * x[:, 1]
    draws = torch.stack([FeaturePermutation(score).attribute(x, seed=s) for s in range(400)])
    others = torch.stack([torch.cat([x[:i, 0], x[i + 1 :, 0]]).exp().mean() * x[i, 1] for i in range(5)])
    expected = score(x) - others
    error = draws[..., 0].std(0) / 400**0.5
    assert ((draws[..., 0].mean(0) - expected).abs() < 4 * error).all()


# --- at a layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [{}, {"perm_func": turned}], ids=["drawn", "one's own"])
def test_at_a_layer(made):
    """As the rest of the model's inputs; captum's own wants a model without a target, and takes no shuffle."""
    model = Two()
    inputs = torch.randn(5, 4).double(), torch.randn(5, 2, 2).double()
    hidden = model.layer(torch.cat([inputs[0], inputs[1].flatten(1)], 1)).detach()
    rest = lambda h: model.head(torch.tanh(h))[:, 1]
    options = {"perturbations_per_eval": 1}
    for mask in (None, torch.tensor([[0, 0, 1, 2, 2, 1]])):
        torch.manual_seed(2)
        found = LayerFeaturePermutation(model, model.layer, **made).attribute(inputs, 1, layer_mask=mask, **options)
        torch.manual_seed(2)
        plain = captum.attr.FeaturePermutation(rest, **made).attribute(hidden, feature_mask=mask, **options)
        assert_close(found, plain)
    if not made:

        class Ends(nn.Module):
            def __init__(self):
                super().__init__()
                self.two, self.layer = model, model.layer

            def forward(self, a, b):
                return self.two(a, b)[:, 1]

        ours, theirs = both(LayerFeaturePermutation, lambda m: m(Ends(), model.layer).attribute(inputs))
        assert_same(ours, theirs)


def test_several_scores_at_once():
    model, inputs = Two(), (torch.randn(5, 4).double(), torch.randn(5, 2, 2).double())
    found = FeaturePermutation(model).attribute(inputs, Each([2, 0]), seed=0)
    for i, k in enumerate((2, 0)):
        alone = FeaturePermutation(model).attribute(inputs, k, seed=0)
        assert_close(tuple(t[:, i] for t in found), alone)


def test_baselines_mean_nothing_and_other_words_are_named():
    x = torch.randn(4, 3)
    method = FeaturePermutation(lambda x: x.sum(1))
    assert torch.equal(method.attribute(x, baselines=3, seed=0), method.attribute(x, seed=0))
    with pytest.warns(UserWarning, match="attribute makes no use of mask"):
        method.attribute(x, mask=3, seed=0)


def test_models_that_answer_later():
    x = torch.randn(4, 3)

    def later(x):
        answer = torch.futures.Future()
        answer.set_result(x.square().sum(1))
        return answer

    ours, theirs = both(FeaturePermutation, lambda m: m(later).attribute_future(x).wait())
    assert_same(ours, theirs)
    assert ours[0].abs().sum() > 0


def test_progress_is_told_on_standard_error(capsys):
    FeaturePermutation(lambda x: x.sum(1)).attribute(torch.rand(3, 2), show_progress=True)
    assert "Feature Permutation attribution: 100%" in capsys.readouterr().err


def test_rows_beside_captums():
    """As many, in far fewer passes; and no more of them is held than a batch."""
    rows, x = [], torch.randn(6, 40)

    def model(x):
        rows.append(len(x))
        return x.sum(1)

    counted = []
    for of in (FeaturePermutation, captum.attr.FeaturePermutation):
        rows.clear()
        of(model).attribute(x)
        counted.append((sum(rows), len(rows)))
    assert counted[0][0] == counted[1][0] == 6 + 6 * 40
    assert counted[1][1] == 41 and counted[0][1] <= 6

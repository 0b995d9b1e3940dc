"""Occlusion: the definition, window by window; captum's package in the same run; and how little it costs."""

from itertools import product

import captum.attr
import pytest
import torch
from contest import count, peak
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from told import told
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from robustx.attribution import FeatureAblation, Occlusion
from robustx.engine import Each, ModelError, Probe
from robustx.engine.checks import ArgumentError
from robustx.perturb import Windows, blur


def starts(size, length, stride):
    """Where windows begin: from the border on, until one reaches the other border."""
    found = [0]
    while found[-1] + length < size:
        found.append(found[-1] + stride)
    return found


def window_by_window(score, x, baseline, lengths, strides):
    """The definition, for one input of float64 and a score [B]."""
    total, covered = torch.zeros_like(x), torch.zeros_like(x)
    for corner in product(*(starts(*of) for of in zip(x.shape[1:], lengths, strides, strict=True))):
        at = (slice(None), *(slice(c, c + n) for c, n in zip(corner, lengths, strict=True)))
        gone = x.clone()
        gone[at] = baseline[at]
        total[at] += (score(x) - score(gone)).reshape(-1, *[1] * (x.ndim - 1))
        covered[at] += 1
    return total / covered


class Score(nn.Module):
    """Any inputs to numbers [B, *outputs]; every pair of elements matters."""

    def __init__(self, sizes, outputs=(), dtype=torch.float64):
        super().__init__()
        self.outputs, self.first, self.last = (
            outputs,
            nn.Linear(sum(sizes), 6),
            nn.Linear(6, torch.Size(outputs).numel()),
        )
        self.to(dtype)

    def forward(self, *inputs):
        out = self.last(torch.tanh(self.first(torch.cat([t.flatten(1) for t in inputs], 1))))
        return out.unflatten(1, self.outputs) if self.outputs else out[:, 0]


class Windowed:
    """Inputs of one to three axes, and windows and strides that fit them, in any form that captum knows."""

    def __init__(self, draw):
        self.draw = draw
        self.examples = draw(st.integers(1, 3), "examples")
        shapes = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=2), "shapes")
        self.shapes = [tuple(s) for s in shapes]
        self.lengths = [tuple(draw(st.integers(1, n)) for n in s) for s in self.shapes]
        self.strides = [
            tuple(draw(st.integers(1, a if a < n else n + 1)) for a, n in zip(of, s, strict=True))
            for of, s in zip(self.lengths, self.shapes, strict=True)
        ]
        torch.manual_seed(draw(st.integers(0, 99), "seed"))
        self.inputs = [torch.randn(self.examples, *s).double() for s in self.shapes]
        self.single = len(shapes) == 1 and draw(st.booleans(), "single")

    def formed(self, parts):
        return parts[0] if self.single else tuple(parts)

    def stride_forms(self):
        least = min(s for of in self.strides for s in of)
        forms = [None, self.formed(self.strides), tuple(self.strides), tuple([least] * len(self.strides))]
        return self.draw(st.sampled_from([*forms, least] if len(self.shapes) == 1 else forms), "strides")

    def baselines(self):
        parts = [
            self.draw(st.sampled_from([0, 0.5, torch.randn_like(t), torch.randn_like(t[:1])]), "baseline")
            for t in self.inputs
        ]
        return self.draw(st.sampled_from([None, self.formed(parts)]), "baselines")


@settings(max_examples=100)
@given(data=st.data())
def test_it_says_what_captum_says(data):
    """Any windows and strides, clipped at the border; one input or several; whatever the model returns."""
    asked, draw = Windowed(data.draw), data.draw
    model = Score([t[0].numel() for t in asked.inputs], draw(st.sampled_from([(), (1,), (3,), (2, 2)]), "outputs"))
    whole = draw(st.booleans(), "whole")
    assume(not whole or model.outputs[:1] != (asked.examples,))  # else it looks like a row for each example
    options = {"strides": asked.stride_forms(), "baselines": asked.baselines()}
    if model.outputs == (3,) and not whole:
        forms = [None, 1, [2, 0, 1][: asked.examples], torch.tensor([1, 0, 2])[: asked.examples], (2,)]
        options["target"] = draw(st.sampled_from(forms), "target")
    given = asked.inputs[0] if asked.single else tuple(asked.inputs)
    lengths = asked.formed(asked.lengths)
    function = (lambda *inputs: model(*inputs).sum(0)) if whole else model
    ours = Occlusion(function).attribute(given, lengths, **options)
    per = 1 if whole else draw(st.sampled_from([1, 3]), "at once")
    theirs = captum.attr.Occlusion(function).attribute(given, lengths, perturbations_per_eval=per, **options)
    assert type(ours) is type(theirs)
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert a.dtype == torch.float64 and b.dtype == torch.float32  # captum's means are of single precision
        assert_close(a.float(), b, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    "shape, lengths, strides",
    [
        ((7,), (3,), (2,)),
        ((2, 5), (2, 2), (5, 1)),
        ((3, 6, 5), (3, 4, 2), (1, 3, 2)),
        ((2, 2, 3, 3), (1, 2, 2, 3), (1, 1, 2, 1)),
    ],
)
def test_the_definition(shape, lengths, strides):
    x, away = torch.randn(3, *shape).double(), torch.randn(3, *shape).double()
    model = Score([x[0].numel()])
    found = Occlusion(model).attribute(x, lengths, strides, away)
    assert_close(
        found, window_by_window(lambda v: model(v).detach(), x, away, lengths, strides), rtol=1e-12, atol=1e-12
    )


def test_windows_of_one_element_are_ablation():
    x = torch.randn(3, 2, 4).double()
    model = Score([8], (3,))
    assert_close(Occlusion(model).attribute(x, 1, target=2), FeatureAblation(model).attribute(x, target=2))
    assert_close(Occlusion(model).attribute(x, (1, 1)), FeatureAblation(model).attribute(x))


def test_a_number_is_as_long_as_an_axis_at_most():
    """So a square covers all channels of a picture."""
    x = torch.randn(2, 3, 6, 5).double()
    model = Score([90])
    assert_close(Occlusion(model).attribute(x, 4, 2), Occlusion(model).attribute(x, (3, 4, 4), (1, 2, 2)))
    two = (x, torch.randn(2, 2).double())
    model = Score([90, 2])
    found = Occlusion(model).attribute(two, 4, 2)
    assert_close(found, Occlusion(model).attribute(two, ((3, 4, 4), (2,)), ((3, 2, 2), (2,))))


def test_a_dict_of_windows():
    a, b = torch.randn(3, 4).double(), torch.randn(3, 2, 3).double()
    model = Score([4, 6])
    named = Occlusion(lambda a, b: model(a, b)).attribute(
        {"b": b, "a": a}, {"a": (2,), "b": (1, 2)}, {"a": 2, "b": (1, 1)}, {"a": 0.5, "b": b.flip(0)}
    )
    in_turn = Occlusion(model).attribute((a, b), ((2,), (1, 2)), (2, (1, 1)), (0.5, b.flip(0)))
    assert list(named) == ["b", "a"]
    assert_close((named["a"], named["b"]), in_turn)


def test_several_scores_at_once():
    x = torch.randn(3, 6).double()
    model = Score([6], (4,))
    found = Occlusion(model).attribute(x, (3,), 2, target=Each([1, 3]))
    assert found.shape == (3, 2, 6)
    for i, k in enumerate((1, 3)):
        assert_close(found[:, i], Occlusion(model).attribute(x, (3,), 2, target=k))


def test_integers_give_way_too():
    weight = torch.randn(5).double()
    ids = torch.tensor([[3, 0, 1, 2, 4], [1, 1, 0, 0, 9]])
    found = Occlusion(lambda ids: ids.double() @ weight).attribute(ids, (2,), 2)
    one = ids * weight
    pairs = torch.stack([one[:, 0] + one[:, 1], one[:, 2] + one[:, 3], one[:, 4]], 1)
    assert_close(found, pairs[:, [0, 0, 1, 1, 2]])
    counts = Occlusion(lambda ids: (ids > 0).sum(1)).attribute(ids, (2,))
    assert_close(counts[0], torch.tensor([1, 1, 1.5, 2, 2]))  # means of whole numbers


def test_pictures_may_be_blurred_in_a_window():
    x = torch.rand(2, 1, 8, 8).double()
    model = Score([64])
    (soft,) = blur(2.0)(Probe(model, (x,)))
    assert_close(
        Occlusion(model).attribute(x, (1, 4, 4), 4, blur(2.0)), Occlusion(model).attribute(x, (1, 4, 4), 4, soft)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtype_is_that_of_the_output(dtype):
    x = torch.randn(2, 5).to(dtype)
    found = Occlusion(Score([5], dtype=dtype)).attribute(x, (3,))
    assert found.dtype == dtype and found.isfinite().all()


def test_progress_is_told_on_standard_error(capsys):
    Occlusion(lambda x: x.sum(1)).attribute(torch.rand(2, 5), (2,), show_progress=True)
    assert "Occlusion attribution: 100%" in capsys.readouterr().err


WRONG = {
    "longer than the input": ({"sliding_window_shapes": (2, 7)}, "(2, 7)", "(2, 6)"),
    "too many axes": ({"sliding_window_shapes": (1, 2, 2)}, "one for each axis of (2, 6)"),
    "gaps": ({"sliding_window_shapes": (1, 2), "strides": (1, 3)}, "(1, 3)", "gaps"),
    "of two inputs": ({"sliding_window_shapes": ((1, 2), (1, 2))}, "sliding_window_shapes", "(1, 2)"),
    "no length": ({"sliding_window_shapes": (1, 0)}, "at least 1", "0"),
    "no stride": ({"sliding_window_shapes": (1, 2), "strides": 0}, "strides", "at least 1"),
    "strides of another input": ({"sliding_window_shapes": (1, 2), "strides": (1, 1, 1)}, "strides", "(2, 6)"),
    "half a window": ({"sliding_window_shapes": (1, 1.5)}, "sliding_window_shapes", "1.5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_windows_that_do_not_fit(case):
    wrong, *words = WRONG[case]
    with pytest.raises(ArgumentError) as caught:
        Occlusion(lambda x: x.flatten(1).sum(1)).attribute(torch.rand(2, 2, 6), **wrong)
    told(caught.value, words)
    assert isinstance(caught.value, AssertionError)  # as captum raises


def test_a_model_that_fails_says_so():
    with pytest.raises(ModelError, match="batch first"):
        Occlusion(nn.Linear(4, 2)).attribute(torch.rand(2, 5), (2,), target=0)


# --- what it costs ----------------------------------------------------------------------------------------


class Cheap(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return (x * self.weight).flatten(1).sum(1)


def test_calls_and_rows_beside_captums():
    """Never more rows, and far fewer passes."""
    model, x = Cheap((3, 8, 8)), torch.rand(4, 3, 8, 8)
    calls = []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    counted = []
    for room in (Occlusion, captum.attr.Occlusion):
        calls.clear()
        room(model).attribute(x, (3, 3, 3))
        counted.append((len(calls), sum(calls)))
    (passes, rows), (their_passes, their_rows) = counted
    assert rows == their_rows == 4 + 4 * 36
    assert their_passes == 37 and passes <= 6


def test_memory_does_not_grow_with_the_windows():
    """4900 windows of 3072 elements would fill 60 MiB for each example."""
    model, x = Cheap((3, 32, 32)), torch.rand(1, 3, 32, 32)
    held = [
        peak(lambda s=s: Occlusion(model).attribute(x, (1, 2, 2), (1, s, s), perturbations_per_eval=16)) for s in (2, 1)
    ]
    assert held[1] < held[0] + 1 and held[1] < 4


def test_passes_are_counted_once():
    model, x = Cheap((2, 6)), torch.rand(3, 2, 6)
    counted, _ = count(model, lambda: Occlusion(model).attribute(x, (2, 3), (2, 3)))
    assert counted.forward == 3 + 3 * 2 and counted.backward == 0


def test_windows_are_features():
    """Their laws: gathering spread ones counts the elements of each, and sums are transposed."""
    windows = Windows.over((torch.zeros(2, 5), torch.zeros(2, 2, 4)), ((3,), (2, 3)), (2, 2))
    assert windows.count == 2 + 2 and windows.size == 13 and windows.shared
    ones = torch.ones(1, windows.count)
    assert windows.gather(windows.spread(ones)).tolist() == [[3, 3, 6, 4]]  # the last one is cut off
    for k in range(windows.count):
        gate = torch.zeros(1, windows.count).index_fill(1, torch.tensor([k]), 0.5)
        values = torch.randn(1, 13)
        assert_close((windows.spread(gate) * values).sum(), 0.5 * windows.gather(values)[0, k])
    assert_close(windows.shown(ones * 7), torch.full((1, 13), 7.0))

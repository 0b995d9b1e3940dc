"""Scores: what is read off the output, in every form of target that Captum knows, and off neurons."""

import captum.attr
import pytest
import torch
from models import InPlaceCNN, NotANumber, Pair, Recurrent, Reused, linear, mlp
from torch import nn
from torch.testing import assert_close

from robustx.engine import Each, Everything, Input, Layer, Neuron, Output, OutputError, Probe, Score, TargetError
from robustx.engine.scores import one_each

B, S = 4, slice(None)


class Shaped(nn.Module):
    """Outputs of any shape [B, *shape]."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.body = shape, mlp(5, torch.Size(shape).numel())

    def forward(self, x):
        return self.body(x).reshape(len(x), *self.shape)


FORMS = [  # shape behind the batch, target, and its index for example n
    ((), None, lambda n: ()),
    ((1,), None, lambda n: (0,)),
    ((1, 1), None, lambda n: (0, 0)),
    ((3,), 2, lambda n: (2,)),
    ((3,), -1, lambda n: (2,)),
    ((3,), torch.tensor(1), lambda n: (1,)),
    ((3,), torch.tensor([1]), lambda n: (1,)),
    ((3,), (2,), lambda n: (2,)),
    ((3,), [0, 2, 1, 1], lambda n: ([0, 2, 1, 1][n],)),
    ((3,), torch.tensor([0, 2, 1, 1]), lambda n: ([0, 2, 1, 1][n],)),
    ((3,), torch.tensor([0, 2, 1, 1], dtype=torch.int32), lambda n: ([0, 2, 1, 1][n],)),
    ((3,), [(0,), (2,), (1,), (1,)], lambda n: ([0, 2, 1, 1][n],)),
    ((3, 2), (2, 1), lambda n: (2, 1)),
    ((3, 1), (2,), lambda n: (2, 0)),
    ((3, 2), [(0, 1), (2, 0), (1, 1), (0, 0)], lambda n: [(0, 1), (2, 0), (1, 1), (0, 0)][n]),
    ((2, 3, 2), (1, 2, 0), lambda n: (1, 2, 0)),
]
every = pytest.mark.parametrize("shape, target, index", FORMS, ids=lambda v: str(v) if not callable(v) else "")


@every
def test_targets_in_every_form(shape, target, index):
    model, x = Shaped(*shape), torch.randn(B, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([model(x)[n][index(n)].reshape(()) for n in range(B)])
    f = Probe(model, (x,), Output(target))
    assert_close(f.score, expected)
    rows = torch.tensor([3, 0, 0])
    assert_close(f.value(x[rows], rows), expected[rows])
    value, g = f.grad(x)
    assert_close(value, expected)
    theirs = captum.attr.Saliency(model).attribute(x.clone().requires_grad_(), target=target, abs=False)
    assert_close(g, theirs)


def test_slices_and_functions_beyond_captum():
    model, x = Shaped(3, 2), torch.randn(B, 5, dtype=torch.float64)
    out = model(x).detach()
    assert_close(Probe(model, (x,), Output((slice(1, 2), 0))).score, out[:, 1, 0])
    assert_close(Probe(model, (x,), Output(lambda o: o.square().sum((1, 2)))).score, out.square().sum((1, 2)))
    assert_close(Probe(Pair(), (x,), Output(lambda o: o[1][:, 2])).score, x[:, 2])


@pytest.mark.parametrize(
    "score",
    [
        Output(lambda o: o.square().sum(1)),
        Output(1),
        Output([0, 2, 1, 1]),
        Each([lambda o: o.exp()[:, 0], 2, [0, 2, 1, 1]]),
        Each(),
        Neuron(Layer(nn.Identity()), lambda h: h.prod(1)),
        Neuron(Layer(nn.Identity()), 1),
    ],
)
def test_functions_may_be_made_before_the_value_is_read(score):
    rows = torch.arange(4)
    out = torch.randn(4, 3, dtype=torch.float64)
    out = (out,) if isinstance(score, Neuron) else out
    made = score.made(out)
    assert_close(score.value(made, rows), score.value(out, rows), rtol=0, atol=0)


def test_several_scores_one_by_one():
    x = torch.randn(3, 5, dtype=torch.float64)
    f = Probe(linear(), (x,), Each())
    for score in (Each(), Each([2, lambda o: o[:, 1], [0, 1, 2]])):
        together = f.to(of=score).score
        alone = [f.to(of=one).score for one in score.apart(together.shape[1])]
        assert_close(torch.stack(alone, 1), together, rtol=0, atol=0)


def test_everything_keeps_the_shape():
    model, x = Shaped(3, 2), torch.randn(B, 5, dtype=torch.float64)
    assert_close(Probe(model, (x,), Everything()).score, model(x).detach())


@pytest.mark.parametrize(
    "shape, target, words",
    [
        (
            (3,),
            None,
            r"Target not provided when necessary.*4 rows gave \(4, 3\); choose one number per row with target",
        ),
        ((3, 2), 1, r"4 rows gave \(4, 2\)"),
        ((3,), 3, r"Cannot choose target column with output shape \(4, 3\) and target 3"),
        ((3,), -4, "Cannot choose target column"),
        ((3,), [0, 1, 2, 3], r"Cannot choose target column.*target \[0, 1, 2, 3\]: index 3 is out of bounds"),
        ((3,), [0, 1, 2, -4], "with size 3"),
        ((3,), [(0,), (5,), (0,), (0,)], "Cannot choose target column"),
        ((3,), (0, 0), "2 indices for an output with 1 axes behind the batch"),
        ((), 0, "1 indices for an output with 0 axes behind the batch"),
        ((3, 2), [0, 1, 1, 0], r"Output must be 2D to select tensor of targets, got shape \(4, 3, 2\)"),
        ((3,), [0.5, 1, 1, 1], r"target list must hold ints, or tuples of ints, got \[0.5"),
        ((3,), [(0,), 1, 1, 1], "target list must hold ints, or tuples of ints"),
        ((3,), [0, (1,), 1, 1], "target list must hold ints, or tuples of ints"),
        ((3,), "cat", "target must be None, int, tuple, list, tensor or a function, got str"),
        ((3,), 0.5, "target must be None, int, tuple, list, tensor or a function, got float"),
        (
            (3,),
            torch.tensor([0.0] * 4),
            r"Tensor target dimension \(4,\) \(torch.float32\) is not valid; give integers",
        ),
        ((3,), torch.zeros(4, 1, dtype=torch.long), r"Tensor target dimension \(4, 1\)"),
        ((3,), lambda o: o, r"choose one number per row"),
    ],
    ids=lambda v: str(v).split(" at 0x")[0],
)
def test_targets_that_do_not_fit(shape, target, words):
    f = Probe(Shaped(*shape), (torch.randn(B, 5, dtype=torch.float64),), Output(target))
    for error in (ValueError, AssertionError, TargetError):  # Captum raises the second
        with pytest.raises(error, match=words):
            f.grad(f.point)
        with pytest.raises(error, match=words):
            f.value(f.point)


@pytest.mark.parametrize(
    "target", [[0, 1], [(0,)] * 5, torch.tensor([0, 1, 2])], ids=lambda v: str(v).split(" at 0x")[0]
)
def test_targets_of_another_length(target):
    with pytest.raises(TargetError, match=f"{len(target)} targets for 4 examples"):
        Output(target).fits(B)


@pytest.mark.parametrize(
    "model, words",
    [
        (Pair(), r"model must return one tensor, got a tuple of 2; wrap it, for example: lambda x: model\(x\)\[0\]"),
        (lambda x: {"logits": x}, "model must return one tensor, got a dict"),
        (lambda x: x.sum(), r"one row per example, got shape \(\) for 4 rows; the batch must come first"),
        (lambda x: x[:2], r"one row per example, got shape \(2, 5\) for 4 rows"),
        (lambda x: None, "model must return one tensor, got a NoneType"),
    ],
)
@pytest.mark.parametrize("score", [Output(0), Output(None), Everything()], ids=lambda s: type(s).__name__)
def test_outputs_that_no_score_can_be_read_off(model, words, score):
    with pytest.raises(OutputError, match=words):
        Probe(model, (torch.randn(B, 5),), score).score.sum()


# ---- neurons

NEURONS = [  # model, layer, side, selector, by hand from the layer's value
    (lambda: mlp(), lambda m: m[1], "output", 3, lambda v: v[:, 3]),
    (lambda: mlp(), lambda m: m[1], "output", (3,), lambda v: v[:, 3]),
    (lambda: mlp(), lambda m: m[1], "output", (slice(2, 5),), lambda v: v[:, 2:5].sum(1)),
    (lambda: mlp(), lambda m: m[1], "input", -1, lambda v: v[:, -1]),
    (lambda: mlp(), lambda m: m[1], "output", lambda v: v.square().sum(1), lambda v: v.square().sum(1)),
    (InPlaceCNN, lambda m: m.conv, "output", (1, 2, 0), lambda v: v[:, 1, 2, 0]),
    (InPlaceCNN, lambda m: m.relu, "output", (1, S, slice(1, 3)), lambda v: v[:, 1, :, 1:3].sum((1, 2))),
    (InPlaceCNN, lambda m: m.relu, "input", (0, 0, 0), lambda v: v[:, 0, 0, 0]),
]


@pytest.mark.parametrize("make, layer, side, selector, by_hand", NEURONS)
def test_neurons_in_every_form(make, layer, side, selector, by_hand):
    model = make()
    shape = (2, 4, 4) if isinstance(model, InPlaceCNN) else (5,)
    x, kept = torch.randn(B, *shape, dtype=torch.float64), []
    hook = {"output": lambda m, i, o: kept.append(o.clone()), "input": lambda m, i: kept.append(i[0].clone())}[side]
    handle = getattr(layer(model), {"output": "register_forward_hook", "input": "register_forward_pre_hook"}[side])(
        hook
    )
    z = x.clone().requires_grad_()
    model(z.clone())
    handle.remove()
    expected = by_hand(kept[0])
    (slope,) = torch.autograd.grad(expected.sum(), z)
    value, g = Probe(model, (x,), Neuron(Layer(layer(model), side), selector)).grad(x.flatten(1))
    assert_close(value, expected.detach())
    assert_close(g, slope.flatten(1))


def test_a_neuron_sees_what_is_written_at_its_own_layer():
    model, x = mlp(), torch.randn(B, 5, dtype=torch.float64)
    for side in ("input", "output"):
        where = Layer(model[1], side)
        f = Probe(model, (x,), Neuron(where, 2), where)
        value, g = f.grad(f.point + 1)
        assert_close(value, f.point[:, 2] + 1)
        assert_close(g, torch.eye(8).double()[2].expand(B, -1))


def test_a_neuron_before_the_site_does_not_depend_on_it():
    model, x = mlp(), torch.randn(B, 5, dtype=torch.float64)
    f = Probe(model, (x,), Neuron(Layer(model[0]), 2), Layer(model[2]))
    assert_close(f.value(f.point + 1), model[0](x)[:, 2].detach())
    with pytest.raises(RuntimeError, match="no gradient with respect to its input"):
        f.grad(f.point)


def test_neurons_of_several_tensors():
    model, x = Recurrent(), torch.randn(B, 3, 5, dtype=torch.float64)
    last = model.lstm(x)[0][:, -1].detach()
    f = Probe(model, (x,), Neuron(Layer(model.lstm), lambda tensors: tensors[0][:, -1, 2]))
    assert_close(f.score, last[:, 2])
    assert f.grad(f.point)[1].shape == (B, 15)
    with pytest.raises(TargetError, match=r"neuron_selector 0 does not say which of the 3 tensors .*give a function"):
        Probe(model, (x,), Neuron(Layer(model.lstm), 0)).score.sum()


@pytest.mark.parametrize(
    "selector, words",
    [
        (8, r"neuron_selector 8 does not fit \(8,\)"),
        ((0, 0), r"neuron_selector \(0, 0\) has 2 indices, but the layer Tanh \(output\) has 1 axes .*\(8,\)"),
        (lambda v: v, r"4 rows gave \(4, 8\)"),
    ],
)
def test_neurons_that_do_not_fit(selector, words):
    model = mlp()
    with pytest.raises(TargetError, match=words):
        Probe(model, (torch.randn(B, 5, dtype=torch.float64),), Neuron(Layer(model[1]), selector)).score.sum()


def test_reused_layers_of_neurons_are_never_guessed():
    model, x = Reused(), torch.randn(B, 5, dtype=torch.float64)
    first = model.act(model.again(model.first(x))).detach()
    assert_close(Probe(model, (x,), Neuron(Layer(model.act, call=0), 1)).score, first[:, 1])
    with pytest.raises(ValueError, match="called 2 times in one pass"):
        Probe(model, (x,), Neuron(Layer(model.act), 1)).score.sum()


def test_a_score_of_ones_own():
    class Largest(Score):
        def value(self, out, rows):
            return one_each(out.amax(1), rows)

    model, x = linear(), torch.randn(B, 5, dtype=torch.float64)
    f = Probe(model, (x,), Largest(), Input())
    value, g = f.grad(x)
    assert_close(value, model(x).amax(1).detach())
    assert_close(g, model.weight[model(x).argmax(1)].detach())


def test_scores_that_are_not_numbers():
    x = torch.tensor([[1.0, 2], [3, 4], [-1, 2], [5, 6]])
    f = Probe(NotANumber(), (x,), Output(0))
    with pytest.raises(ValueError, match=r"output for example 2 is NaN or infinite \(1 of 4 rows\)"):
        f.score.sum()
    with pytest.raises(ValueError, match=r"example 2 is NaN or infinite \(2 of 3 rows\)"):
        f.grad(x[[0, 2, 2]], torch.tensor([0, 2, 2]))
    value, g = f.to(strict=False).grad(x)
    assert value.isnan().tolist() == [False, False, True, False] and torch.isfinite(g).all()
    good = torch.tensor([0, 1, 3])
    assert_close(g[good], 2 * x[good])
    values, slopes = f.to(strict=False).jacobian(x, [Output(0), Output(2)])
    assert_close(values[:, 0], value, equal_nan=True)
    assert torch.isfinite(slopes).all() and torch.equal(slopes[:, 0], g)
    with pytest.raises(ValueError, match="example 2 is NaN or infinite"):
        f.jacobian(x, [Output(0), Output(2)])

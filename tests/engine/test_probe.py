"""The probe: one number per row, and its gradient, whatever the batch looks like."""

import pytest
import torch
from models import Bare, Failing, InPlaceCNN, Keywords, Pair, Recurrent, Reused, Rounding, TwoInputs, function, mlp
from torch import nn
from torch.testing import assert_close

from robustx.engine import (
    Door,
    Everything,
    Input,
    Layer,
    ModelError,
    Neuron,
    NonFiniteError,
    Output,
    OutputError,
    Pace,
    Probe,
    Site,
)
from robustx.perturb import Leave

B, T = 4, 1  # examples, and the target
ROWS = torch.tensor([2, 0, 0, 3, 2, 1, 2])  # a query names an example once, often or not at all
N = len(ROWS)


def rand(*shape):
    return torch.randn(B, *shape, dtype=torch.float64)


def at_input():
    m = mlp()
    return Probe(m, (rand(5),), Output(T)), lambda z, n: m(z)[:, T]


def by_function():
    return Probe(function, (rand(5),), Output(2)), lambda z, n: z.prod(1)


def in_place():
    m = InPlaceCNN()
    return Probe(m, (rand(2, 4, 4),), Output(T)), lambda z, n: m(z.reshape(1, 2, 4, 4).clone())[:, T]


def two_inputs():
    m, scale, shift = TwoInputs(), torch.rand(B, 1).double(), torch.rand(4).double()
    f = Probe(m, (rand(5), rand(2, 3)), Output([0, 1, 2, 3]), args=(scale,), kwargs={"shift": shift[:, None]})
    return f, lambda z, n: (m(z[:, :5], z[:, 5:].reshape(1, 2, 3))[:, n] * scale[n]) + shift[n]


def by_keyword():
    m = Keywords()
    f = Probe(m, (rand(2, 3), rand(5)), Output(T), names=("b", "a"), kwargs={"shift": 0.5})
    return f, lambda z, n: m(a=z[:, 6:], b=z[:, :6].reshape(1, 2, 3))[:, T] + 0.5


def out_of_a_layer():
    m = mlp()
    return Probe(m, (rand(5),), Output(T), Layer(m[1])), lambda z, n: m[2:](z)[:, T]


def into_a_layer():
    m = mlp()
    return Probe(m, (rand(5),), Output(T), Layer(m[2], "input")), lambda z, n: m[2:](z)[:, T]


def second_use():
    m, x = Reused(), rand(5)
    return Probe(m, (x,), Output(T), Layer(m.again, call=1)), lambda z, n: m.head(m.act(z))[:, T]


def a_neuron():
    m = mlp()
    return Probe(m, (rand(5),), Neuron(Layer(m[1]), 3)), lambda z, n: m[:2](z)[:, 3]


def a_neuron_from_a_layer():
    m = mlp()
    return Probe(m, (rand(5),), Neuron(Layer(m[3]), 3), Layer(m[0])), lambda z, n: m[1:4](z)[:, 3]


def a_goal():
    m, y = mlp(), torch.tensor([0, 1, 2, 3])

    def ce(z, n):
        return -m(z).log_softmax(1)[:, y[n]]

    return Probe(m, (rand(5),), Leave(y, "ce")), ce


def after_an_lstm():
    m = Recurrent()
    return Probe(m, (rand(3, 5),), Output(T)), lambda z, n: m(z.reshape(1, 3, 5))[:, T]


PROBES = [at_input, by_function, in_place, two_inputs, by_keyword, out_of_a_layer, into_a_layer, second_use]
PROBES += [a_neuron, a_neuron_from_a_layer, a_goal, after_an_lstm]
every = pytest.mark.parametrize("make", PROBES, ids=lambda p: p.__name__)


def queries(f):
    return f.point[ROWS] + 0.3 * torch.randn(N, f.point.shape[1], dtype=torch.float64)


@every
def test_gradients_are_those_of_autograd_one_row_at_a_time(make):
    f, by_hand = make()
    z = queries(f)
    value, g = f.grad(z, ROWS)
    for i, n in enumerate(ROWS.tolist()):
        one = z[i : i + 1].clone().requires_grad_()
        pull = by_hand(one, n)
        assert_close(g[i : i + 1], torch.autograd.grad(pull.sum(), one)[0])
        expected = pull if not isinstance(f.of, Leave) else f.of.value(f.model(one), torch.tensor([n]))
        assert_close(value[i : i + 1], expected.detach())
    assert_close(f.value(z, ROWS), value)
    assert_close(f.value(f.point), f.score)
    assert (g.abs().sum(1) > 0).all()


@every
@pytest.mark.parametrize("limit", [1, 2, 3, N, 100])
def test_nothing_depends_on_how_queries_are_batched(make, limit):
    f, _ = make()
    z = queries(f)
    cut = f.to(pace=Pace(limit))
    for one, other in zip((f.value(z, ROWS), *f.grad(z, ROWS)), (cut.value(z, ROWS), *cut.grad(z, ROWS)), strict=True):
        assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert_close(cut.to(inputs=cut.inputs).point, f.point, atol=1e-12, rtol=1e-12)  # read again, in parts
    assert_close(cut.score, f.score, atol=1e-12, rtol=1e-12)


@every
def test_nothing_depends_on_order_or_neighbours(make):
    f, _ = make()
    z, order = queries(f), torch.tensor([5, 3, 1, 6, 4, 0])
    wild = z.clone()
    wild[2] *= 1e3  # the one that is left out below
    value, g = f.grad(wild, ROWS)
    other, h = f.grad(z[order], ROWS[order])
    assert_close(value[order], other, atol=1e-12, rtol=1e-12)
    assert_close(g[order], h, atol=1e-12, rtol=1e-12)


@every
@pytest.mark.parametrize("limit", [None, 2])
def test_passes_are_counted_exactly(make, limit):
    f, _ = make()
    z, asked = queries(f), torch.bincount(ROWS, minlength=B)
    f = f.to(pace=Pace(limit))
    start = f.meter.forward.clone()
    assert torch.equal(start, torch.ones(B).long() * isinstance(f.at, Layer))  # the reading of the layer
    f.value(z, ROWS)
    assert torch.equal(f.meter.forward - start, asked) and (f.meter.backward == 0).all()
    f.grad(z, ROWS)
    assert torch.equal(f.meter.forward - start, 2 * asked) and torch.equal(f.meter.backward, asked)
    f.jacobian(z, [f.of] * 3, ROWS)
    assert torch.equal(f.meter.forward - start, 3 * asked) and torch.equal(f.meter.backward, 4 * asked)
    assert f.score is f.score  # asked once
    assert torch.equal(f.meter.forward - start, 3 * asked + 1)


@every
@pytest.mark.parametrize("limit", [None, 2])
def test_many_scores_at_once_are_as_many_questions(make, limit):
    f, _ = make()
    f = f.to(pace=Pace(limit))
    tap = f.of.tap
    scores = [Neuron(tap, k) for k in range(3)] if tap else [Output(k) for k in range(4)] + [Leave(torch.arange(B))]
    z = queries(f)
    values, slopes = f.jacobian(z, scores, ROWS)
    assert values.shape == (N, len(scores)) and slopes.shape == (N, len(scores), z.shape[1])
    for k, score in enumerate(scores):
        value, g = f.to(of=score).grad(z, ROWS)
        assert_close(values[:, k], value)
        assert_close(slopes[:, k], g)


@pytest.mark.parametrize("limit", [None, 3])
def test_what_is_climbed_comes_with_the_score(limit):
    m, x, y = mlp(), rand(5), torch.tensor([0, 1, 2, 1])
    f = Probe(m, (x,), Leave(y, "ce"), pace=Pace(limit))
    z = x[ROWS] + 0.1 * torch.randn(N, 5, dtype=torch.float64)
    value, pull, g = f.climb(z, ROWS)
    assert_close((value, g), f.grad(z, ROWS))
    assert_close(pull, nn.functional.cross_entropy(m(z), y[ROWS], reduction="none").detach())
    assert all(len(t) == 0 for t in f.climb(z[:0], ROWS[:0]))


@pytest.mark.parametrize("limit", [None, 3])
def test_copies_of_examples_have_scores_of_their_own(limit):
    """Inputs, further arguments and counts are those of the examples."""
    m, scale, shift = TwoInputs(), torch.rand(B, 1).double(), torch.rand(4).double()
    f = Probe(m, (rand(5), rand(2, 3)), Output(0), args=(scale,), kwargs={"shift": shift[:, None]}, pace=Pace(limit))
    whose, columns = torch.tensor([0, 1, 3] * 2), torch.tensor([0, 0, 0, 2, 2, 1])
    copies = f.copies(whose, Output(columns))
    z = torch.randn(6, 11, dtype=torch.float64)
    value, g = copies.grad(z, torch.arange(6))
    for column in range(3):
        rows = columns == column
        assert_close((value[rows], g[rows]), f.to(of=Output(column)).grad(z[rows], whose[rows]))
    assert f.meter.forward.tolist() == f.meter.backward.tolist() == [4, 4, 0, 4]
    assert_close(copies.value(z[[5, 3]], torch.tensor([5, 3])), value[[5, 3]])
    again = copies.copies(torch.tensor([5, 0]), Output(1))  # copies of copies
    assert_close(again.value(z[:2], torch.arange(2)), f.to(of=Output(1)).value(z[:2], torch.tensor([3, 0])))


@every
def test_what_is_asked_leaves_no_trace(make):
    f, _ = make()
    z = queries(f).requires_grad_()
    kept = [t.clone() for t in (z, *f.inputs, f.point)]
    for found in (f.value(z, ROWS), *f.grad(z, ROWS), f.score, f.point, *f.jacobian(z, [f.of], ROWS)):
        assert not found.requires_grad
    assert z.grad is None and z.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(kept, (z, *f.inputs, f.point), strict=True))
    if isinstance(f.model, nn.Module):
        assert all(p.grad is None for p in f.model.parameters())


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_gradients_need_no_permission(make, mode):
    f, _ = make()
    with mode():
        value, g = f.grad(f.point)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert (g != 0).any() and not value.requires_grad


@pytest.mark.parametrize("make", [at_input, two_inputs, out_of_a_layer, a_neuron], ids=lambda p: p.__name__)
def test_no_examples(make):
    f, _ = make()
    d, empty = f.point.shape[1], torch.tensor([], dtype=torch.long)
    value, g = f.grad(f.point[:0], empty)
    values, slopes = f.jacobian(f.point[:0], [f.of] * 3, empty)
    assert value.shape == (0,) and g.shape == (0, d) and values.shape == (0, 3) and slopes.shape == (0, 3, d)
    none = Probe(f.model, tuple(t[:0] for t in f.inputs), f.of, f.at)
    assert none.score.shape == (0,) and none.point.shape == (0, d) and none.grad(none.point)[1].shape == (0, d)


@pytest.mark.parametrize("b", [1, 2, 33, 200])
def test_any_number_of_examples(b):
    m, x = mlp(), torch.randn(b, 5, dtype=torch.float64, requires_grad=True)
    f = Probe(m, (x.detach(),), Output(T))
    (expected,) = torch.autograd.grad(m(x)[:, T].sum(), x)
    assert_close(f.grad(f.point)[1], expected)
    assert f.meter.forward.tolist() == [1] * b


DTYPES = {torch.float16: 3e-2, torch.bfloat16: 2e-1, torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", ["input", "layer"])
def test_dtypes(dtype, at):
    m = mlp().to(dtype)
    x = rand(5).to(dtype)
    exact = mlp()
    exact.load_state_dict(m.double().state_dict())
    m = m.to(dtype)
    f = Probe(m, (x,), Output(T), **({"at": Layer(m[1])} if at == "layer" else {}))
    true = Probe(exact, (x.double(),), Output(T), **({"at": Layer(exact[1])} if at == "layer" else {}))
    assert all(t.dtype == dtype for t in f.here)
    value, g = f.grad(f.point)
    assert g.dtype == f.point.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.dtype == dtype
    tolerance = {"atol": DTYPES[dtype], "rtol": DTYPES[dtype]}
    assert_close(value.double(), true.score, **tolerance)
    assert_close(g.double(), true.grad(true.point)[1], **tolerance)


def test_mixed_dtypes_reach_the_model_as_they_came():
    def model(a, b):
        assert a.dtype == torch.float16 and b.dtype == torch.float64
        return a.double().sum(1) * b.sum(1)

    a, b = rand(2).half(), rand(3)
    f = Probe(model, (a, b))
    g = f.grad(f.point)[1]
    assert g.dtype == torch.float64
    assert_close(g[:, 2:], a.double().sum(1, keepdim=True).expand(-1, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.clone().requires_grad_(),
    ],
)
def test_memory_formats_do_not_matter(change):
    m, x = InPlaceCNN(), rand(2, 4, 4)
    for at in (Input(), Layer(m.conv)):
        f, g = (Probe(m, Door.open(t).inputs, Output(T), at) for t in (x, change(x)))
        assert_close(f.grad(f.point), g.grad(g.point))


def test_arguments_follow_their_examples():
    seen = []

    def model(x, each, same, *, kept, listed, one):
        seen.append((each, same, kept, one))
        assert listed == [1, 2, 3, 4]
        return x.sum(1) + each + same.sum() + kept[:, 0] + one

    each, same, kept = torch.arange(4.0), torch.ones(3), torch.arange(8.0).reshape(4, 2)
    further = {"kept": kept, "listed": [1, 2, 3, 4], "one": torch.tensor(2.0)}
    f = Probe(model, (torch.zeros(4, 2),), args=(each, same), kwargs=further)
    rows = torch.tensor([3, 3, 1, 0, 2])
    assert f.value(torch.zeros(5, 2), rows).tolist() == [3.0 + 6 + 5, 3 + 6 + 5, 1 + 2 + 5, 0 + 0 + 5, 2 + 4 + 5]
    assert [t.shape for t in seen[0]] == [(5,), (3,), (5, 2), ()]


def test_queries_are_made_when_their_turn_comes():
    f, made = at_input()[0].to(pace=Pace(3)), []

    def query(part):
        made.append(part)
        return f.point[ROWS[part]], ROWS[part]

    answers = f.grads(N, query)
    assert made == []
    next(answers)
    assert made == [slice(0, 3)]
    assert [part for part, *_ in answers] == [slice(3, 5), slice(5, 7)] == made[1:]


def test_changes_share_the_meter_and_what_is_known():
    f, _ = out_of_a_layer()
    point = f.point
    g = f.to(of=Output(0))
    assert g.meter is f.meter and g.pace is f.pace and g.point is point
    other = f.to(inputs=(f.inputs[0] + 1,))
    assert other.meter is f.meter and not torch.equal(other.point, point)
    assert not torch.equal(f.to(at=Layer(f.model[2])).point, point)
    m = mlp()
    assert not torch.equal(f.to(model=m, at=Layer(m[1])).point, point)


def test_a_site_that_needs_no_pass_is_not_counted():
    class Known(Site):
        def read(self, call, inputs):
            return (inputs[0][:, :2],)

        def write(self, call, inputs, z, rows):
            return call((torch.cat([z[0], inputs[0][:, 2:]], 1),))

    f = Probe(mlp(), (rand(5),), Output(T), Known())
    whole = Probe(f.model, f.inputs, Output(T))
    assert_close(f.grad(f.point)[1], whole.grad(whole.point)[1][:, :2])
    assert f.meter.forward.tolist() == [1] * B


# ---- bad input


@pytest.mark.parametrize(
    "model, x, words",
    [
        (
            lambda: mlp(),
            lambda: rand(6),
            r"the model failed on inputs of shape \(4, 6\) float64 on cpu.*It said: .*mat1 and mat2",
        ),
        (lambda: mlp(), lambda: rand(5).float(), "the model's parameters are float64: convert one of the two with .to"),
        (lambda: mlp().to("meta"), lambda: rand(5), "the model's parameters are on meta: move one of the two with .to"),
        (lambda: Failing(), lambda: rand(5), "inputs of shape .4, 5.*It said: the model breaks down"),
    ],
)
def test_a_model_that_fails_says_on_what(model, x, words):
    with pytest.raises(ModelError, match=words) as told:
        Probe(model(), (x(),), Output(T)).score.sum()
    assert isinstance(told.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [KeyError("no such word"), ValueError("no such thing"), KeyboardInterrupt()])
def test_other_errors_of_a_model_are_its_own(error):
    def model(x):
        raise error

    with pytest.raises(type(error)) as told:
        Probe(model, (rand(5),)).score.sum()
    assert told.value is error


@pytest.mark.parametrize(
    "model",
    [Rounding(), lambda x: x.detach().sum(1), lambda x: torch.from_numpy(x.detach().numpy().sum(1)), nn.Linear(1, 1)],
)
def test_a_model_without_a_gradient(model):
    if isinstance(model, nn.Linear):  # has one, but not with respect to its input

        def model(x, m=model):
            return m(torch.ones(len(x), 1))[:, 0]

    of = Output(0 if isinstance(model, Rounding) else None)
    f = Probe(model, (rand(5),), of)
    assert f.score.shape == (B,)
    for ask in (lambda: f.grad(f.point), lambda: f.jacobian(f.point, [of, of])):
        with pytest.raises(
            ModelError, match="no gradient with respect to its input.*detach.*rounding.*FeatureAblation"
        ):
            ask()


def test_a_layer_without_rows():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Flatten(0)

        def forward(self, x):
            return self.stack(x).reshape(x.shape)[:, 0]

    m = Mixed()
    with pytest.raises(OutputError, match=r"layer Flatten \(output\) has 20 rows for 4 examples \(shape \(20,\)\)"):
        Probe(m, (rand(5),), at=Layer(m.stack)).point.sum()


def test_integers_cannot_be_moved():
    with pytest.raises(TypeError, match="tensor 0 has dtype torch.int64"):
        Probe(Bare(), (torch.ones(2, 3).long(),), Output(0)).point.sum()


# ---- the door


@pytest.mark.parametrize(
    "given, names, shapes",
    [
        (torch.zeros(2, 3), None, [(2, 3)]),
        ((torch.zeros(2, 3), torch.zeros(2)), None, [(2, 3), (2,)]),
        ([torch.zeros(2, 3, 4)], None, [(2, 3, 4)]),
        ({"b": torch.zeros(2), "a": torch.zeros(2, 3)}, ("b", "a"), [(2,), (2, 3)]),
        (torch.zeros(0, 3), None, [(0, 3)]),
        ((torch.zeros(2, 3), torch.zeros(2, 4).long()), None, [(2, 3), (2, 4)]),
    ],
)
def test_results_go_out_as_inputs_came_in(given, names, shapes):
    door = Door.open(given)
    assert door.names == names and [t.shape for t in door.inputs] == shapes
    out = door.out([t + 1 for t in door.inputs])
    if isinstance(given, torch.Tensor):
        assert torch.equal(out, given + 1)
    elif isinstance(given, dict):
        assert out.keys() == given.keys() and all(torch.equal(out[k], given[k] + 1) for k in given)
    else:
        assert isinstance(out, tuple) and all(torch.equal(a, b + 1) for a, b in zip(out, given, strict=True))


def test_results_go_out_laid_out_as_inputs_came_in():
    picture, volume = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4, 4)
    last = picture.to(memory_format=torch.channels_last), volume.to(memory_format=torch.channels_last_3d)
    both = Door.open(last).out((picture, volume))
    assert both[0].is_contiguous(memory_format=torch.channels_last) and torch.equal(both[0], picture)
    assert both[1].is_contiguous(memory_format=torch.channels_last_3d) and torch.equal(both[1], volume)
    assert Door.open(last[0]).out((volume,)) is volume  # more axes than the inputs have
    assert Door.open(picture).out((picture,)) is picture
    grey = picture[:, :1].contiguous()  # laid out both ways at once
    assert Door.open(grey).out((grey,)) is grey


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "given, error, words",
    [
        (None, TypeError, "inputs must be a tensor or a tuple or dict of tensors, got NoneType"),
        (3.0, TypeError, "got float"),
        ("text", TypeError, "got str at 0"),
        ([[1.0, 2.0]], TypeError, "got list at 0 of a list; torch.as_tensor makes a tensor of numbers"),
        ({"a": 1}, TypeError, "got int at 0"),
        ((torch.zeros(2), None), TypeError, "got NoneType at 1"),
        (torch.tensor(1.0), ValueError, r"inputs need a batch axis, got a 0-dimensional tensor at 0; use x\[None\]"),
        ((), ValueError, "inputs must agree in their first axis .* got none"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), ValueError, r"first axis .* got \(2, 3\) on cpu, \(3, 3\) on cpu"),
        ((torch.zeros(2), torch.zeros(2, device="meta").long()), ValueError, r"device, got .* on cpu, .* on meta"),
        (torch.tensor([[1.0], [NAN]]), NonFiniteError, "inputs contain NaN or infinity, first in example 1; clean"),
        (torch.tensor([[1.0, 2.0], [NAN, 1.0]]), NonFiniteError, "first in example 1"),
        (torch.tensor([INF, 1.0]), NonFiniteError, "first in example 0"),
        ((torch.zeros(2), torch.tensor([[0.0], [-INF]]).half()), NonFiniteError, "first in example 1"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit(given, error, words):
    with pytest.raises(error, match=words):
        Door.open(given)


def test_probes_from_the_door():
    x, each = rand(5), torch.rand(B).double()
    door = Door.open({"x": x.clone().requires_grad_()})

    def model(scale, x, shift=0.0):
        return (x.sum(1) * scale + shift)[:, None].expand(-1, 2)

    f = door.probe(model, Output(1), each, {"shift": each.clone().requires_grad_()}, 3)
    assert_close(f.score, x.sum(1) * each + each)
    assert not f.score.requires_grad and f.pace.limit == 3
    assert torch.equal(Door.open(x).probe(lambda x: x).score, x)
    with pytest.raises(TypeError, match="forward_func must be callable, got str"):
        door.probe("resnet", Output())
    with pytest.raises(ValueError, match="2 targets for 4 examples"):
        door.probe(model, Output([0, 1]))
    with pytest.raises(ValueError, match="a batch size must be a whole number of at least 1, got 0"):
        door.probe(model, Output(0), limit=0)


@pytest.mark.parametrize("make", [at_input, out_of_a_layer, a_neuron], ids=lambda p: p.__name__)
def test_tensors_of_inference_mode_are_let_in(make):
    f, _ = make()
    expected = f.grad(f.point)[1]
    with torch.inference_mode():
        x, each = f.inputs[0].clone(), torch.ones(B)
    assert x.is_inference()
    g = Door.open(x).probe(f.model, f.of, at=f.at)
    assert_close(g.grad(g.point)[1], expected)
    h = Door.open(x).probe(lambda x, s: f.model(x)[:, T] * s, Output(), each)
    assert torch.isfinite(h.grad(h.point)[1]).all()


def test_whole_outputs():
    m, x = Pair(), rand(5)
    f = Probe(m, (x,))
    logits, same = f.outputs()
    assert torch.equal(same, x) and torch.equal(logits, m(x)[0])
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(f.outputs(x[rows] + 1, rows)[1], x[rows] + 1)
    assert f.meter.forward.tolist() == [2, 3, 1, 1]
    assert torch.equal(f.to(of=Everything(), model=Bare()).score, Bare()(x))

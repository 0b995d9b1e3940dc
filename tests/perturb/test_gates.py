"""Gates: closed they change nothing, open they give exactly the reference; at inputs and at layers."""

from functools import partial

import pytest
import torch
from models import InPlaceCNN, Nested, Recurrent, TwoInputs, linear, mlp
from torch import nn
from torch.testing import assert_close

from robustx.engine import Layer, Output, Probe
from robustx.perturb import Gates, elements, from_masks, gated, here, through

B = 4


class Tokens(nn.Module):
    """Token ids beside floats."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 3).double(), linear(8, 4)

    def forward(self, ids, x):
        return self.head(torch.cat([self.embedding(ids).flatten(1), x], 1)).tanh()


def rand(*shape):
    return torch.randn(B, *shape, dtype=torch.float64)


def ids():
    return torch.randint(4, (B, 2))  # the reference is 9 - ids: all of them change


def beside_ones(model, ids):
    return model(ids, torch.ones(len(ids), 2).double())


SITUATIONS = {  # model, inputs, where the gates stand
    "linear": lambda: (linear(), (rand(5),), None),
    "in place": lambda: (InPlaceCNN(), (rand(2, 4, 4),), None),
    "two inputs": lambda: (TwoInputs(), (rand(5), rand(2, 3)), None),
    "ids beside floats": lambda: (Tokens(), (ids(), rand(2)), None),
    "ids alone": lambda: (partial(beside_ones, Tokens()), (ids(),), None),
    "a layer": lambda: (m := mlp(), (rand(5),), Layer(m[1])),
    "into a layer": lambda: (m := mlp(), (rand(5),), Layer(m[2], "input")),
    "an embedding": lambda: (m := Tokens(), (ids(), rand(2)), Layer(m.embedding)),
    "a nested layer": lambda: (m := Nested(), (rand(5),), Layer(m.split)),
    "after an LSTM": lambda: (m := Recurrent(), (rand(3, 5),), Layer(m.head)),
}
every = pytest.mark.parametrize("make", SITUATIONS.values(), ids=SITUATIONS)


def situation(make):
    """A probe, a feature for each element, other inputs as reference, and the probe of these."""
    model, inputs, layer = make()
    f = Probe(model, inputs, Output(1), **({"at": layer} if layer else {}))
    d = sum(t[0].numel() for t in f.here)
    other = tuple(t.flip(0) + 1 if t.is_floating_point() else 9 - t for t in inputs)
    return f, elements(d), through(other), f.to(inputs=other)


@every
def test_closed_gates_change_nothing_and_open_ones_give_the_reference(make):
    f, features, reference, other = situation(make)
    g = gated(f, features, reference)
    shut, wide = torch.zeros_like(g.point), torch.ones_like(g.point)
    assert g.point.shape == (B, features.count) and torch.equal(g.point, shut)
    floats = any(t.is_floating_point() for t in f.here)
    assert g.point.dtype == (torch.float64 if floats else torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(g.at.blend(shut, f.everyone), f.here, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(g.at.blend(wide, f.everyone), other.here, strict=True))
    assert_close(g.value(shut), f.score)
    assert_close(g.score, f.score)
    expected = f.value(other.point) if isinstance(f.at, Layer) else other.score
    assert_close(g.value(wide), expected)
    assert (f.score - expected).abs().min() > 1e-6  # else this test could not fail


@every
def test_one_gate_opens_one_feature(make):
    f, features, reference, other = situation(make)
    g = gated(f, features, reference)
    rows, which = torch.tensor([2, 0, 0]), torch.tensor([0, features.count - 1, 1])
    one = torch.zeros(3, features.count, dtype=torch.float64).scatter(1, which[:, None], 1)
    for n, (row, k) in enumerate(zip(rows.tolist(), which.tolist(), strict=True)):
        parts = [t[row : row + 1].clone() for t in f.here]
        place = 0
        for part, new in zip(parts, other.here, strict=True):
            if 0 <= k - place < part.numel():
                part.view(-1)[k - place] = new[row].flatten()[k - place]
            place += part.numel()
        assert all(torch.equal(a[n], p[0]) for a, p in zip(g.at.blend(one, rows), parts, strict=True))
    assert_close(g.value(one, rows), torch.cat([g.value(one[n : n + 1], rows[n : n + 1]) for n in range(3)]))


def test_gradients_of_gates_are_the_chain_rule():
    model, x, away = linear(), rand(5), rand(5)
    features = from_masks(torch.tensor([[3, 0, 3, 0, 9]]), (x,))
    g = gated(Probe(model, (x,), Output(2)), features, through(away))
    gates = torch.rand(B, 3, dtype=torch.float64)
    value, slope = g.grad(gates)
    way = (away - x) * model.weight[2].detach()
    assert_close(slope, torch.stack([way[:, [1, 3]].sum(1), way[:, [0, 2]].sum(1), way[:, 4]], 1))
    assert_close(value, model(x)[:, 2].detach() + (slope * gates).sum(1))


def test_integers_switch_half_way():
    start, reference = (torch.tensor([[1, 2], [3, 4]]),), (torch.tensor([[7, 8], [9, 0]]),)
    site = Gates(elements(2), start, reference)
    (mixed,) = site.blend(torch.tensor([[0.4, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
    assert mixed.dtype == torch.int64 and mixed.tolist() == [[3, 0], [7, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_ends_are_exact_in_every_dtype(dtype):
    start, reference = torch.tensor([[3e4, 1e-3, -0.1]], dtype=dtype), torch.tensor([[1e-4, 3e4, 0.3]], dtype=dtype)
    site = Gates(elements(3), (start,), (reference,))
    for gate, expected in [(0.0, start), (1.0, reference)]:
        (mixed,) = site.blend(torch.full((1, 3), gate), torch.tensor([0]))
        assert mixed.dtype == dtype and torch.equal(mixed, expected)


def test_a_constant_at_a_layer_is_no_constant_at_the_input():
    model, x = mlp(), rand(5)
    f = Probe(model, (x,), Output(0), Layer(model[2]))
    g = gated(f, elements(8), here(0.3))
    assert_close(
        g.value(torch.ones(B, 8, dtype=torch.float64)), model[3:](torch.full((B, 8), 0.3).double())[:, 0].detach()
    )


def test_queries_are_counted_for_their_examples():
    f, features, reference, _ = situation(SITUATIONS["two inputs"])
    g = gated(f, features, reference)
    rows = torch.tensor([3, 3, 1])
    g.value(torch.zeros(3, features.count), rows)
    g.grad(torch.zeros(3, features.count, dtype=torch.float64), rows)
    assert f.meter.forward.tolist() == [0, 2, 0, 4] and f.meter.backward.tolist() == [0, 1, 0, 2]

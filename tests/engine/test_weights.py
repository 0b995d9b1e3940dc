"""Gradients of each example with respect to parameters, against autograd one example at a time."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from robustx.engine import ArgumentError, ArgumentTypeError, Output, Pace, Probe, Score, untouched
from robustx.engine.weights import Dense, Outer, Rows, Weights, dot


class Model(nn.Module):
    """A module of given parts, whose ``forward`` is a function of them."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.how = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args) -> Tensor:
        return self.how(self, *args)


class Rounded(nn.Module):
    """Refuses to be done for all rows at once: it asks a number of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([r @ self.w * (2.0 if float(r[0]) > 0 else 1.0) for r in x])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))


def vector(n: int = 5) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3),)


def sequence(n: int = 5) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, 4),)


def picture(n: int = 5) -> tuple[Tensor, ...]:
    return (torch.randn(n, 2, 6, 6),)


def seconds_first(m: Model, x: Tensor) -> Tensor:  # [N, T, D] inside as [T, N, D], with T = 3
    return m.b(m.n(m.a(x.transpose(0, 1)).tanh())).sum(0)


class Hidden(torch.autograd.Function):
    """A product whose operations nobody sees."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


def in_place(m: Model, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x).mul_(2.0), inplace=True))


def flattened(m: Model, x: Tensor) -> Tensor:
    return m.a(x.reshape(-1, 4)).reshape(len(x), -1).square()


def tied() -> Model:
    table = nn.Embedding(7, 4, padding_idx=0)
    head = nn.Linear(4, 7, bias=False)
    head.weight = table.weight
    return Model(lambda m, i: m.head(m.table(i).mean(1).tanh()), table=table, head=head)


# name: (model, inputs, parameters whose gradients follow from one pass: all of them, or these names are left over)
CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), vector, ()),
    "linear on sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Flatten(), nn.Linear(15, 3)),
        sequence,
        (),
    ),
    "batch second": (
        lambda: Model(seconds_first, a=nn.Linear(4, 4), n=nn.LayerNorm(4), b=nn.Linear(4, 3)),
        sequence,
        (),
    ),
    "in place": (lambda: Model(in_place, a=nn.Linear(3, 4), b=nn.Linear(4, 3)), vector, ()),
    "used twice": (lambda: Model(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(3, 3)), vector, ()),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding="same", dilation=2), nn.Flatten()), sequence, ()),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 6, (2, 1), groups=2), nn.Flatten()),
        picture,
        (),
    ),
    "conv2d with one wide side": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), nn.Flatten()),
        picture,
        (),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, (1, 3, 2), (1, 2, 1)), nn.Flatten()),
        picture,
        (),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2), nn.Flatten()), picture, ()),
    "norms": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(2),
            nn.GroupNorm(2, 2),
            nn.PReLU(2),
            nn.InstanceNorm2d(2, affine=True),
            nn.Flatten(),
            nn.BatchNorm1d(72),
            nn.LayerNorm(72),
            nn.RMSNorm(72),
            nn.Linear(72, 3),
        ),
        picture,
        (),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3)),
        lambda n=5: (torch.randint(0, 7, (n, 3)),),
        (),
    ),
    "sparse embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)),
        lambda n=5: (torch.randint(0, 7, (n, 3)),),
        (),
    ),
    "two looks at a table": (
        lambda: Model(
            lambda m, i: m.b((m.a(i[:, :2]) * m.a(i[:, 1:])).flatten(1)), a=nn.Embedding(40, 4), b=nn.Linear(8, 3)
        ),
        lambda n=5: (torch.randint(0, 7, (n, 3)),),
        (),
    ),
    "tied": (tied, lambda n=5: (torch.randint(0, 7, (n, 3)),), ()),
    "affine": (
        lambda: Model(
            lambda m, x: m.b(m.s * x + m.p),
            s=nn.Parameter(torch.randn(4)),
            p=nn.Parameter(torch.randn(1, 3, 4)),
            b=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        ),
        sequence,
        (),
    ),
    "two inputs": (
        lambda: Model(lambda m, x, y: m.a(x) * m.b(y), a=nn.Linear(3, 4), b=nn.Linear(4, 4)),
        lambda n=5: (torch.randn(n, 3), torch.randn(n, 4)),
        (),
    ),
    "unused": (lambda: Model(lambda m, x: m.a(x), a=nn.Linear(3, 4), b=nn.Linear(2, 2)), vector, ()),
    "rows in one": (lambda: Model(flattened, a=nn.Linear(4, 2)), sequence, ()),
    "own operation": (
        lambda: Model(lambda m, x: torch.einsum("ni,ij->nj", x, m.w).tanh(), w=nn.Parameter(torch.randn(3, 4))),
        vector,
        ("w",),
    ),
    "a number": (  # such as a temperature that was learnt
        lambda: Model(lambda m, x: m.a(x) * m.t.exp(), a=nn.Linear(3, 4), t=nn.Parameter(torch.randn(()))),
        vector,
        ("t",),
    ),
    "a number, not for all rows at once": (
        lambda: Model(lambda m, x: m.a(x) * (m.t * m.t.item()), a=nn.Linear(3, 4), t=nn.Parameter(torch.randn(()))),
        vector,
        ("t",),
    ),
    "hidden": (
        lambda: Model(lambda m, x: m.a(Hidden.apply(x, m.w)), w=nn.Parameter(torch.randn(3, 4)), a=nn.Linear(4, 2)),
        vector,
        ("w",),
    ),
    "not for all rows at once": (Rounded, vector, ("w",)),
    "recurrent": (
        lambda: Model(lambda m, x: m.b(m.a(x)[0][:, -1]), a=nn.LSTM(4, 3, batch_first=True), b=nn.Linear(3, 3)),
        sequence,
        ("a.weight_ih_l0", "a.weight_hh_l0", "a.bias_ih_l0", "a.bias_hh_l0"),
    ),
    "attention": (encoder, sequence, ()),
    "weights behind": (
        lambda: Model(
            lambda m, x: (torch.addmm(m.b, x.view(-1, 4), m.w) @ m.v).tanh().view(len(x), -1),
            b=nn.Parameter(torch.randn(5)),
            w=nn.Parameter(torch.randn(4, 5)),
            v=nn.Parameter(torch.randn(5, 2)),
        ),
        sequence,
        (),
    ),
    "a token of one's own": (
        lambda: Model(
            lambda m, x: m.b(torch.cat([m.c.expand(len(x), -1, -1), x], 1).tanh()),
            c=nn.Parameter(torch.randn(1, 1, 4)),
            b=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        ),
        sequence,
        (),
    ),
}


def score(out: Tensor) -> Tensor:
    return out.reshape(len(out), -1).square().sum(1)


def one_by_one(model: nn.Module, inputs: tuple[Tensor, ...], parameters: list[Tensor]) -> Tensor:
    """Autograd, one example at a time, on a copy of the model."""
    rows = []
    for i in range(len(inputs[0])):
        grads = torch.autograd.grad(score(model(*(t[i : i + 1] for t in inputs))).sum(), parameters, allow_unused=True)
        grads = [None if g is None else g.to_dense() for g in grads]
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
            )
        )
    return torch.stack(rows)


def case(name: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    make, inputs, left = CASES[name]
    model = make().to(dtype).eval()
    return model, tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs()), left


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_example_at_a_time(name):
    model, inputs, left = case(name)
    probe, weights = Probe(model, inputs, Output(score)), Weights.of(model)
    truth = one_by_one(model, inputs, list(model.parameters()))
    assert_close(weights.dense(probe), truth)
    assert weights._understood(probe).others == set(left)
    assert_close(weights.total(probe), truth.sum(0))


def test_gradients_that_depend_on_the_batch_are_those_of_an_example_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3)).double()
    ids = torch.tensor([[0, 1, 2], [0, 3, 4], [0, 0, 5], [6, 6, 6]])
    truth = one_by_one(model, (ids,), list(model.parameters()))
    assert_close(Weights.of(model).dense(Probe(model, (ids,), Output(score))), truth)


@pytest.mark.parametrize(
    "name", ["conv2d", "linear on sequences", "used twice", "two looks at a table", "tied", "norms"]
)
def test_products_lengths_and_sums_need_no_gradients_written_out(name):
    model, inputs, _ = case(name)
    weights = Weights.of(model)
    truth = weights.dense(Probe(model, inputs, Output(score)))
    few = Probe(model, tuple(t[:2] for t in inputs), Output(score))
    for compact in (False, True):
        (_, blocks), (_, others) = (
            next(weights.blocks(p, compact)) for p in (Probe(model, inputs, Output(score)), few)
        )
        assert_close(sum(dot(a, b) for a, b in zip(blocks, others, strict=True)), truth @ truth[:2].T)
        assert_close(sum(b.square() for b in blocks), truth.square().sum(1))
        assert_close(torch.cat([b.sum() for b in blocks]), truth.sum(0))
        assert_close(torch.cat([b.dense() for b in blocks], 1), truth)


@pytest.mark.parametrize(("t", "s", "o"), [(1, 1, 9), (2, 3, 9), (30, 20, 2)])
def test_outer_products_agree_with_what_they_stand_for_whichever_way_is_cheaper(t, s, o):
    torch.manual_seed(0)
    one = Outer(torch.randn(4, 2, t, 5), torch.randn(4, 2, t, o))
    two = Outer(torch.randn(3, 2, s, 5), torch.randn(3, 2, s, o))
    d, e = (torch.einsum("ngto,ngti->ngoi", b.g, b.a).flatten(1) for b in (one, two))
    assert_close(one.dense(), d)
    assert_close(dot(one, two), d @ e.T)
    assert_close(dot(one, Dense(e)), d @ e.T)
    assert_close(dot(Dense(d), two), d @ e.T)
    assert_close(one.square(), d.square().sum(1))
    assert_close(one.sum(), d.sum(0))
    kept = one.compact()
    assert_close(kept.dense(), d)
    numbers = sum(v.numel() for v in vars(kept).values())
    assert numbers <= min(d.numel(), one.a.numel() + one.g.numel())


def test_rows_of_a_table_agree_with_what_they_stand_for():
    torch.manual_seed(0)
    one, two = (Rows(torch.randint(0, 6, (n, t)), torch.randn(n, t, 2), 6) for n, t in ((4, 5), (3, 2)))
    d, e = (torch.einsum("ntv,ntd->nvd", F.one_hot(b.ids, 6).float(), b.g).flatten(1) for b in (one, two))
    assert_close(one.dense(), d)
    for a in (one, Dense(d)):
        for b in (two, Dense(e)):
            assert_close(dot(a, b), d @ e.T)
    assert_close(one.square(), d.square().sum(1))
    assert_close(one.sum(), d.sum(0))
    assert isinstance(one.compact(), Dense)
    assert isinstance(two.compact(), Rows)
    assert_close(one.compact().dense(), d)


def test_batches_and_single_rows_give_the_same():
    model, inputs, _ = case("conv2d")
    weights = Weights.of(model)
    probes = [Probe(model, inputs, Output(score), pace=Pace(limit)) for limit in (None, 1, 2)]
    whole, *others = (weights.dense(p) for p in probes)
    for other in others:
        assert_close(other, whole)
    assert weights.dense(Probe(model, tuple(t[:0] for t in inputs), Output(score))).shape == (0, weights.size)


def test_single_precision_and_further_arguments():
    model, inputs, _ = case("two inputs", torch.float32)
    truth = one_by_one(model, inputs, list(model.parameters()))
    rows = Weights.of(model).dense(Probe(model, inputs[:1], Output(score), args=inputs[1:]))
    assert rows.dtype == torch.float32
    assert_close(rows, truth)


def test_another_way_through_the_model_than_on_the_first_rows_is_noticed():
    torch.manual_seed(0)

    def either(m: Model, x: Tensor) -> Tensor:
        return m.b(m.a(x)) if len(x) <= 3 else m.a(m.b(x)).tanh()

    model = Model(either, a=nn.Linear(3, 3), b=nn.Linear(3, 3)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    rows = Weights.of(model).dense(Probe(model, (x,), Output(score)))
    assert_close(rows, one_by_one(model, (x,), list(model.parameters())))  # one row goes the first way, as a row does


@pytest.mark.parametrize("name", ["rows in one", "attention", "hidden"])
def test_a_first_example_without_a_gradient_decides_nothing(name):
    model, inputs, _ = case(name)

    class Margin(Score):  # as of a hinge that is met
        def value(self, out: Tensor, rows: Tensor) -> Tensor:
            return score(out) * (rows > 0)

    truth = one_by_one(model, inputs, list(model.parameters()))
    truth[0] = 0
    assert_close(Weights.of(model).dense(Probe(model, inputs, Margin())), truth)


def test_the_model_is_left_as_it_was():
    model, inputs, _ = case("norms")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kept = [(p, p.data_ptr(), p.requires_grad) for p in model.parameters()]
    with untouched(model):
        Weights.of(model).dense(Probe(model, inputs, Output(score)))
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p is q and p.data_ptr() == d and p.requires_grad is r and p.grad is None
               for q, (p, d, r) in zip(model.parameters(), kept, strict=True))  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_layers_are_chosen_by_name_or_themselves_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert list(Weights.of(model, ["2"]).parameters) == ["2.weight", "2.bias"]
    assert list(Weights.of(model, [model[2], "0"]).parameters) == ["2.weight", "2.bias", "0.weight", "0.bias"]
    model[0].requires_grad_(False)
    assert list(Weights.of(model).parameters) == ["2.weight", "2.bias"]
    assert list(Weights.of(model.requires_grad_(False)).parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = torch.randn(4, 3)
    rows = Weights.of(model, ["2"]).dense(Probe(model, (x,), Output(0)))
    hidden = model[1](model[0](x)).detach()
    ones, none = torch.ones(4, 1), torch.zeros(4, 1)
    assert_close(rows, torch.cat([hidden, torch.zeros(4, 4), ones, none], 1))  # a linear map's gradient is its input


def test_what_cannot_be_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(ArgumentError, match="no layer 'two'; its layers are 0, 1"):
        Weights.of(model, ["two"])
    with pytest.raises(ArgumentError, match="no part of the model"):
        Weights.of(model, [nn.Linear(1, 1)])
    with pytest.raises(ArgumentError, match="no parameters"):
        Weights.of(model, ["1"])
    with pytest.raises(ArgumentTypeError, match=r"torch\.nn\.Module"):
        Weights.of(torch.relu)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["conv2d", "norms", "attention", "tied", "recurrent"])
def test_a_gpu_tells_the_same(name):
    model, inputs, _ = case(name)
    truth = Weights.of(model).dense(Probe(model, inputs, Output(score)))
    model, inputs = model.cuda(), tuple(t.cuda() for t in inputs)
    assert_close(Weights.of(model).dense(Probe(model, inputs, Output(score))).cpu(), truth)

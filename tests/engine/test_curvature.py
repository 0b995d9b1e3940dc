"""Second derivatives with respect to parameters, against autograd's whole Hessian."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from robustx.engine import ArgumentError, Output, Pace, Probe, untouched
from robustx.engine.curvature import hessian, hessian_products
from robustx.engine.weights import Weights


class Stop(torch.autograd.Function):
    """The cube, whose second derivative asks for numbers and so cannot be taken in many directions at once."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return Square.apply(x) * g


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 3 * x**2

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 6 * x * torch.tensor(g.tolist(), dtype=g.dtype)


class Cubes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * Stop.apply(self.linear(x))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(12, 2))


CASES = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "convolution": (convolution, (1, 3, 3)),
    "attention": (encoder, (3, 4)),
    "one direction at a time": (Cubes, (4,)),
}


@pytest.fixture(params=CASES)
def asked(request) -> tuple[nn.Module, Tensor, Output]:
    make, shape = CASES[request.param]
    model = make().double().eval()
    return (
        model,
        torch.randn(6, *shape, dtype=torch.float64),
        Output(lambda out: F.cross_entropy(out, torch.zeros(len(out), dtype=int), reduction="none")),
    )


def reference(model: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    parameters = dict(model.named_parameters())
    shapes = [parameters[n].shape for n in names]

    def loss(flat: Tensor) -> Tensor:
        parts = [t.view(s) for t, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        out = functional_call(model, parameters | dict(zip(names, parts, strict=True)), (x,))
        return F.cross_entropy(out, torch.zeros(len(x), dtype=int), reduction="sum")

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, torch.cat([parameters[n].detach().flatten() for n in names]))


def test_products_and_the_whole_are_those_of_autograd(asked):
    model, x, of = asked
    weights = Weights.of(model)
    truth = reference(model, x, list(weights.parameters))
    for pace in (Pace(), Pace(2)):
        probe = Probe(model, (x,), of, pace=pace)
        with untouched(model):
            assert_close(hessian(weights, probe), truth)
            v = torch.randn(3, weights.size, dtype=torch.float64)
            assert_close(hessian_products(weights, probe, v), v @ truth)
    assert all(p.grad is None for p in model.parameters())


def test_of_some_parameters_and_of_none_that_matter():
    model = convolution().double().eval()
    x = torch.randn(3, 1, 3, 3, dtype=torch.float64)
    weights = Weights.of(model, ["3"])
    of = Output(lambda out: F.cross_entropy(out, torch.zeros(len(out), dtype=int), reduction="none"))
    assert_close(hessian(weights, Probe(model, (x,), of)), reference(model, x, ["3.weight", "3.bias"]))
    constant = Probe(model, (x,), Output(lambda out: torch.ones(len(out), dtype=out.dtype)))
    assert not hessian(weights, constant).any()
    straight = Probe(model, (x,), Output(0))  # outputs are linear in the last layer
    assert not hessian(weights, straight).any()
    with pytest.raises(ArgumentError, match=r"v must be directions \[m, 27\], got \(27,\)"):
        hessian_products(weights, straight, torch.ones(27))
    assert hessian_products(weights, straight, torch.ones(0, 27).double()).shape == (0, 27)


def test_of_some_examples_each_as_often_as_it_is_named():
    model = convolution().double().eval()
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    weights, v = Weights.of(model), torch.randn(2, 37, dtype=torch.float64)
    of = Output(lambda out: F.cross_entropy(out, torch.zeros(len(out), dtype=int), reduction="none"))
    rows = torch.tensor([3, 0, 3])
    found = hessian_products(weights, Probe(model, (x,), of), v, rows)
    assert_close(found, hessian_products(weights, Probe(model, (x[rows],), of), v))

"""What the laws of attributions are asked of: every method of the room, on models with a layer to name."""

from dataclasses import dataclass
from inspect import isabstract, isclass, signature

import torch
from torch import nn

from robustx import attribution
from robustx.attribution import Attribution
from robustx.attribution.base import LayerAttribution, NeuronAttribution

METHODS = [c for c in vars(attribution).values() if isclass(c) and issubclass(c, Attribution) and not isabstract(c)]


class Pair(nn.Module):
    """Two inputs, [B, 5] and [B, 2, 3], and a number for each example; smooth, [B, 4]; its layer is [B, 6]."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.scale = scale
        self.double()

    def forward(self, a, b, more=0.0, *, shift=0.0):
        hidden = self.layer(torch.tanh(self.a(a)) * torch.tanh(self.b(b.flatten(1))) * (1 + more))
        return self.head(torch.tanh(hidden)) * self.scale + shift


class Net(nn.Module):
    """One input [B, 2, 3, 3]; smooth, [B, 4]; its layer is [B, 6], and does not see the input's last column."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.layer, self.head = nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        self.double().to(dtype)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.first(x[..., :2].flatten(1))))))


@dataclass(frozen=True)
class Case:
    """A method; ``case(model, inputs, ...)`` is its attribution of output 2 (of neuron 2, for a neuron's method)."""

    method: type[Attribution]
    linear: bool = True  # in the score
    usual: tuple = ()  # arguments that make it so

    def bind(self, model):
        return self.method(model, model.layer) if issubclass(self.method, LayerAttribution) else self.method(model)

    def __call__(self, model, inputs, target=2, **options):
        return self.bind(model).attribute(inputs, **{self.target: target}, **dict(self.usual), **options)

    def takes(self, name):
        return name in signature(self.method.attribute).parameters

    @property
    def target(self):
        return "neuron_selector" if self.neuron else "target"

    @property
    def neuron(self):
        return issubclass(self.method, NeuronAttribution)

    @property
    def at_input(self):
        return not issubclass(self.method, LayerAttribution) or self.neuron

    @property
    def chunk(self):
        """The argument that caps what goes through the model at once."""
        return next(n for n in ("internal_batch_size", "perturbations_per_eval") if self.takes(n))

    def shapes(self, inputs):
        """Of the attributions."""
        return [t.shape for t in inputs] if self.at_input else [(len(inputs[0]), 6)]

    def __str__(self):
        return self.method.__name__ + (" signed" if self.usual == (("abs", False),) else "")


CASES = [Case(m, linear=m is not attribution.Saliency) for m in METHODS] + [
    Case(attribution.Saliency, usual=(("abs", False),))
]


def inputs_of(model, count=5, dtype=torch.float64, seed=3):
    """Random inputs, as a tuple."""
    torch.manual_seed(seed)
    shapes = [(5,), (2, 3)] if isinstance(model, Pair) else [(2, 3, 3)]
    return tuple(torch.randn(count, *s, dtype=torch.float64).to(dtype) for s in shapes)


def parts(attributions):
    return (attributions,) if isinstance(attributions, torch.Tensor) else tuple(attributions)

"""Small models, most of them with one awkward habit; built anew by each test, from its seed."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

D, K = 5, 4  # what goes in, and what comes out, unless a model says otherwise


def linear(d=D, k=K):
    return nn.Linear(d, k).double()


def mlp(d=D, k=K):
    """Smooth, so that gradients change everywhere."""
    return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, k)).double()


class InPlaceCNN(nn.Module):
    """[B, 2, 4, 4]; works in place on its very input and after every layer; batch norm in eval mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(12, K)
        nn.init.normal_(self.norm.running_mean)
        self.double().eval()

    def forward(self, x):
        x.sub_(0.25).mul_(2.0)
        x = self.conv(x)
        x += 0.5
        x = F.max_pool2d(self.relu(self.norm(x)), 2)
        x *= 1.5
        return self.head(x.flatten(1))


class TwoInputs(nn.Module):
    """[B, 5] and [B, 2, 3]; further arguments that follow the examples, by place and by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, K)
        self.double()

    def forward(self, a, b, scale=1.0, *, shift=0.0):
        hidden = self.mix(torch.tanh(self.a(a)) * torch.tanh(self.b(b.flatten(1))))
        return hidden * scale + shift


class Keywords(TwoInputs):
    """The same, called by keyword only."""

    def forward(self, *, a, b, shift=0.0):
        return super().forward(a, b, shift=shift)


class Reused(nn.Module):
    """One activation and one layer, each used twice in a pass; and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.act = nn.Linear(D, D), nn.Linear(D, D), nn.Tanh()
        self.head, self.idle = nn.Linear(D, K), nn.Linear(D, K)
        self.double()

    def forward(self, x):
        x = self.act(self.again(self.first(x)))
        return self.head(self.act(self.again(x)))


class Nested(nn.Module):
    """A layer that returns tensors inside a dict inside a tuple, beside things that are no tensors."""

    def __init__(self):
        super().__init__()
        self.split, self.head = _Split(), nn.Linear(D, K).double()

    def forward(self, x):
        left, more, told, _ = self.split(x, note="a word")
        assert told == "a word"
        return self.head(torch.cat([left, more["right"][0]], 1)) + more["sum"][:, None]


class _Split(nn.Module):
    def forward(self, x, note):
        return x[:, :2].sin(), {"right": [x[:, 2:].exp()], "sum": x.sum(1)}, note, None


class Recurrent(nn.Module):
    """[B, 3, 5] through an LSTM, whose output is (tensor, (tensor, tensor)) with the batch second in two of them."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(D, 4, batch_first=True), nn.Linear(4, K)
        self.double()

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Busy(nn.Module):
    """[B, 1, 5]; its layer is [B, 2, 3], three positions that attend to one another.

    Changes buffers in every way, draws from every global generator, and raises from its n-th pass on if told to.
    """

    def __init__(self, fails=None):
        super().__init__()
        self.first, self.norm, self.act = nn.Linear(D, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True)
        self.layer, self.drop, self.head = nn.Unflatten(1, (2, 3)), nn.Dropout(0.5), nn.Linear(6, K)
        for name in ("in_place", "replaced", "behind"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("nothing", None)
        self.fails, self.passes = fails, 0
        self.double().eval()

    def forward(self, x):
        self.passes += 1
        self.in_place += 1
        self.replaced = self.replaced + 1
        self.behind.data.add_(1)
        torch.rand(3), np.random.rand(3), random.random()
        tokens = self.layer(self.act(self.norm(self.first(x.flatten(1))))).mT
        hidden = (tokens @ tokens.mT).softmax(-1) @ tokens
        if self.fails is not None and self.passes >= self.fails:
            raise RuntimeError("the model breaks down")
        return self.head(self.drop(hidden.flatten(1)))


class Bare(nn.Module):
    """No parameters."""

    def forward(self, x):
        return torch.stack([x.square().sum(1), x.sin().sum(1), x.prod(1), x[:, 0] * x[:, 1]], 1)


def function(x):
    """No module at all."""
    return Bare()(x)


class Rounding(nn.Module):
    """Has no gradient: it rounds to integers on the way."""

    def forward(self, x):
        return (x * 10).long().double()


class NotANumber(nn.Module):
    """NaN for every example whose first element is negative."""

    def forward(self, x):
        return function(x) + torch.where(x[:, :1] < 0, torch.nan, 0)


class Pair(nn.Module):
    """Returns a tuple."""

    def forward(self, x):
        return function(x), x


class Weighed(nn.Module):
    """Notes how many rows each pass has, and runs out of memory above ``most``."""

    def __init__(self, most=None, error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        super().__init__()
        self.body, self.most, self.error, self.passes = mlp(), most, error, []

    def forward(self, x):
        if self.most is not None and len(x) > self.most:
            raise self.error
        self.passes.append(len(x))
        return self.body(x)


class Failing(nn.Module):
    """Breaks down."""

    def forward(self, x):
        raise RuntimeError("the model breaks down")

"""The active test of an evaluation: problems of which it is known that an attack has to succeed.

Zimmermann, Brendel, Tramer, Carlini (NeurIPS 2022), arXiv 2206.13991. The last linear layer of a model is replaced, for
each sample, by a read-out that tells points well inside the sample's ball from one point on its surface. That point is
an adversarial example of the new model, so an attack which finds none is too weak for what lies before the read-out.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..engine.checks import ArgumentError
from ..engine.guard import modules_of
from ..engine.packing import flat
from ..engine.probe import ModelError, Probe
from ..engine.randomness import Noise
from ..engine.scores import Everything, Output, OutputError
from ..engine.sites import Layer
from ..perturb.goals import Leave
from ..perturb.region import Region
from .indicators import cascade, share

INNER, WITHIN = 64, 0.95
"""Points inside each ball, and as what share of its radius they are within."""

TURNS = 10_000
"""Most steps to a read-out: where features do not tell the points apart, there is no end to them."""

NEAR = 0.9
"""Where the read-out's boundary lies on the way from the points inside (0) to the one on the surface (1)."""


class Features(nn.Module):
    """What a model's last linear layer reads [N, F], or the model's output where there is no such layer.

    Args:
        model: any callable.
        head: that layer; see :func:`head_of`.
    """

    def __init__(self, model: Callable[..., Any], head: nn.Linear | None) -> None:
        super().__init__()
        self.model, self.site = model, None if head is None else Layer(head, "input")

    def forward(self, x: Tensor) -> Tensor:
        if self.site is None:
            return flat(self.model(x))
        with self.site.watch() as seen:
            self.model(x)
        features: Tensor = seen.value[0]
        return features


class Readout(nn.Module):
    """A model of two classes, with a read-out of its own for each example: above 0 is class 1.

    >>> import torch
    >>> model = Readout(Features(torch.nn.Identity(), None))
    >>> model(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]), torch.tensor([-1.0]))
    tensor([[-2.,  2.]])
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        half = ((self.features(x) * weight).sum(1) + bias) / 2
        return torch.stack([-half, half], 1)


@dataclass(frozen=True)
class Solved:
    """How an attack did.

    Args:
        problems: how many there were.
        success: the share of them that it solved.
        random: the share that the best of as many random points as there are inside would have solved.
        forwards, backwards: of the attack, in all.
    """

    problems: int
    success: float
    random: float
    forwards: int
    backwards: int


def active_test(f: Probe, region: Region, noise: Noise, attacks: Sequence[Attack]) -> Solved:
    """Whether attacks solve problems that have a solution, one for each of the samples [B] of a probe.

    Samples of which no read-out tells the points apart, as where the model rounds them all to one, give no problem. All
    problems are attacked at once: the read-outs follow their samples as further arguments of one model of two classes.
    """
    features = Features(f.model, head_of(f))
    inner, edge = _points(region, noise)
    points = torch.cat([region.centre[:, None], inner, edge[:, None]], 1)  # [B, P, D]
    whose = f.everyone.repeat_interleave(points.shape[1])
    phi = f.to(model=features, of=Everything()).value(points.flatten(0, 1), whose).reshape(*points.shape[:2], -1)
    weight, bias = readouts(phi)
    model, nobody = Readout(features), torch.zeros_like(f.everyone)
    g = f.to(model=model, of=Leave(nobody), args=(weight, bias), strict=False)
    rows = ((g.score < 0) & (g.value(edge) > 0)).nonzero().squeeze(1)
    if not len(rows):
        return Solved(0, 0.0, 0.0, 0, 0)
    near = region.at(rows)
    draws = torch.cat([near.draw(noise.at(rows).again(k + 1)) for k in range(INNER)])
    lucky = (g.value(draws, rows.repeat(INNER)) > 0).reshape(INNER, -1).any(0)
    x = f.packing.unpack(f.point[rows])[0]
    tried = cascade([a.on(model) for a in attacks], x, nobody[rows], near.radius, (weight[rows], bias[rows]))
    return Solved(len(rows), share(tried.success), share(lucky), *tried.passes)


def readouts(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, F] and biases [B] that tell the last of some points from all others, by their features [B, P, F].

    Of the widest margin (scikit-learn's linear support vectors), with the boundary near the last point, so that it is
    not met by chance; scaled so that what is read of the points spans one unit. Zero where there is none.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    vectors = SVC(kernel="linear", C=1e6, max_iter=TURNS)
    weights, biases = np.zeros((len(phi), phi.shape[2])), np.zeros(len(phi))
    last = np.arange(phi.shape[1]) == phi.shape[1] - 1
    for i, points in enumerate(phi.detach().double().cpu().numpy()):
        apart = np.abs(points - points[0]).max()
        if not 0 < apart < np.inf:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # whether it tells them apart is looked at below
            w = vectors.fit((points - points[0]) / apart, last).coef_[0]
        read = points @ w
        inside, there = read[:-1].max(), read[-1]
        if there > inside:
            span = there - read.min()
            weights[i], biases[i] = w / span, -(inside + NEAR * (there - inside)) / span
    return torch.from_numpy(weights).to(phi), torch.from_numpy(biases).to(phi)


def head_of(f: Probe) -> nn.Linear | None:
    """The linear layer that makes the model's class scores of one row of features, if it can be told.

    It has as many outputs as there are scores, takes part once in a pass, and what it reads has a gradient; of several,
    the last that was made.
    """
    one = f.everyone[:1]
    classes = f.to(of=Everything()).value(f.point[one], one)[0].numel()
    layers = [m for top in modules_of(f.model) for m in top.modules() if isinstance(m, nn.Linear)]
    for layer in reversed(layers):
        if layer.out_features != classes:
            continue
        try:
            total = f.to(model=Features(f.model, layer), of=Output(_total))
            total.grad(total.point[one], one)
        except (ArgumentError, OutputError, ModelError):  # not used, or more than once, not by rows, out of reach
            continue
        return layer
    return None


def _total(features: Tensor) -> Tensor:
    return features.sum(1)


def _points(region: Region, noise: Noise) -> tuple[Tensor, Tensor]:
    """Random points well inside each ball [B, P, D], and one on its surface [B, D].

    The latter is the steepest step along a random direction: a corner of a cube, where random points hardly come.
    """
    edge = region.step(region.centre, noise.normal(region.centre.shape[1], region.centre), region.radius)
    within = region.to(radius=WITHIN * region.radius)
    return torch.stack([within.draw(noise) for _ in range(INNER)], 1), edge

"""What a counterfactual is to survive: other models of the same thing, and noise on what is carried out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, ArgumentTypeError, whole
from ..engine.probe import Probe
from ..engine.randomness import Noise, identities
from ..perturb.demands import Everywhere, Steady
from ..perturb.goals import Goal
from ..perturb.region import packed
from .schema import FeatureSchema


class Robust(ABC):
    """Something that a counterfactual is to survive."""

    @abstractmethod
    def demand(self, goal: Goal, f: Probe, schema: FeatureSchema | None, seed: int) -> Goal:
        """The goal, as far as it survives."""


class Ensemble(Robust):
    """The goal is reached for all of some other models as well, such as the same one trained anew.

    Args:
        models: they take what the model takes, and return what it returns.
    """

    def __init__(self, models: Sequence[Callable[..., Any]]) -> None:
        self.models = tuple(models)
        if not self.models or not all(map(callable, self.models)):
            raise ArgumentTypeError("Ensemble needs models, each of them callable")

    def __repr__(self) -> str:
        return f"Ensemble({len(self.models)} models)"

    def demand(self, goal: Goal, f: Probe, schema: FeatureSchema | None, seed: int) -> Goal:
        return Everywhere(goal, self.models)


@dataclass(frozen=True, eq=False)
class Noisy(Robust):
    """The goal is reached for a share of the points around as well, under Gaussian noise.

    The search asks each point about the same draws. So the share among others is what it is about, not to the last
    draw: :meth:`CounterfactualResult.robustness` tells that of fresh ones.

    Args:
        sigma: the deviation, in the units of the inputs: a number, or a tensor that broadcasts to them. Columns of
            categories have no noise.
        share: of the draws.
        draws: how many; as many more passes.
    """

    sigma: float | Tensor
    share: float = 0.95
    draws: int = 20

    def __post_init__(self) -> None:
        whole("draws", self.draws, 1)
        if not 0 < self.share <= 1:
            raise ArgumentError(f"share must lie between 0 and 1, got {self.share!r}")

    def demand(self, goal: Goal, f: Probe, schema: FeatureSchema | None, seed: int) -> Goal:
        return Steady(goal, spread(self.sigma, f, schema), self.share, self.draws, seed)


def spread(sigma: float | Tensor, f: Probe, schema: FeatureSchema | None) -> Tensor:
    """The deviation of each element [1, D] or [B, D]; 0 for categories."""
    told = packed(sigma, f, "sigma").to(f.point)
    if not bool((told >= 0).all()):
        raise ArgumentError(f"sigma must not be negative, got {float(told.min()):g}")
    told = told.expand(-1, f.point.shape[1]).clone()
    for p in schema.places if schema is not None else ():
        if p.block:
            told[:, p.columns] = 0
    return told


def survival(
    f: Probe,
    z: Tensor,
    rows: Tensor,
    models: Sequence[Callable[..., Any]] | None,
    sigma: Tensor | None,
    draws: int,
    seed: int,
) -> Tensor:
    """For what share of models and of fresh draws of noise points [N, D] still reach the goal [N].

    Args:
        f: the goal at the inputs.
        z, rows: the points, and whose they are.
        models: None: the model itself.
        sigma: the deviation of the noise [1, D] or [B, D]; None: without.
        draws: of the noise.
        seed: of the draws, which differ from those that a search has seen.
    """
    noise = Noise(seed, "survival", identities(z))
    shares = []
    for model in (f.model,) if models is None else models:
        g = f.to(model=model, strict=False)
        for move in [torch.zeros_like(z)] if sigma is None else (noise.normal(z.shape[1], z) for _ in range(draws)):
            width = 0 if sigma is None else sigma if len(sigma) == 1 else sigma[rows]
            shares.append(g.value(z + width * move, rows) > 0)
    return torch.stack(shares).double().mean(0)

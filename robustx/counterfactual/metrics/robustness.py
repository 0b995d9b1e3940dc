"""Whether a counterfactual lasts: under other models, other weights, noise on it, and other inputs."""

from dataclasses import replace
from math import ceil, log, log1p

import torch
from torch import Tensor

from ...engine.checks import ArgumentError
from ...engine.randomness import Noise, identities
from ...perturb.goals import Goal, Leave, Reach, Whose
from .case import Case, told


def ensemble_valid(case: Case) -> Tensor:
    """The share of other models for which it reaches the goal."""
    return _elsewhere(case).mean(1)


def survives(case: Case) -> Tensor:
    """Whether it reaches the goal for the model and for every one of the others (validity after retraining)."""
    return (_elsewhere(case).all(1) & (case.margin > 0)).double()


def delta_valid(case: Case) -> Tensor:
    """The share of models that reach the goal there, each weight moved uniformly by at most ``delta``."""
    return case.drifted


def delta_robust(case: Case) -> Tensor:
    """Whether the model reaches the goal there, and so does every model of which :func:`delta_valid` is the share.

    Marzari et al. (ECAI 2024), who count models where Jiang et al. (AAAI 2023) prove it of all (Delta-robustness). With
    n of :func:`trials`: were the goal reached for less than the share ``rate`` of these models, this would be 1 with a
    probability of at most 1 - ``confidence``.
    """
    return ((case.drifted == 1) & (case.margin > 0)).double()


def trials(confidence: float, rate: float) -> int:
    """How many models are drawn: ``ceil(ln(1 - confidence) / ln(rate))``, so that ``rate^n <= 1 - confidence``.

    Raises:
        ArgumentError: either does not lie between 0 and 1.

    >>> trials(0.999, 0.995)
    1379
    """
    for name, value in (("confidence", confidence), ("rate", rate)):
        if not 0 < value < 1:
            raise ArgumentError(f"{name} must lie between 0 and 1, and be neither, got {value!r}")
    return max(1, ceil(log1p(-confidence) / log(rate) - 1e-9))  # a whole number may come out a little above itself


def invalidation(case: Case) -> Tensor:
    """How often Gaussian noise on it loses the goal: the mean over draws.

    Pawelczyk et al. (ICLR 2023). All elements are shaken, fixed ones and blocks of categories too.
    """
    return (case.shaken[0] <= 0).double().mean(1)


def invalidation_linear(case: Case) -> Tensor:
    """The same to first order: the chance that a Gaussian takes the margin below 0.

    Pawelczyk et al. (ICLR 2023): ``1 - Phi(margin / |sigma * gradient|)``.
    """
    from scipy.special import ndtr  # torch's is 0 in the far tail

    assert case.sigma is not None and isinstance(case.f.of, Goal)
    margin, g = case.f.to(of=_by_margin(case.f.of.plain)).grad(case.z, case.rows)
    spread = told(case.sigma * g).square().sum(1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.from_numpy(ndtr((-told(margin) / spread).numpy()))


def stability(case: Case) -> Tensor:
    """The mean over draws of Gaussian noise of ``m(shaken) - |m(it) - m(shaken)|``, with m the target's probability.

    Hamman et al. (ICML 2023): at most 1; the larger, the likelier other models agree.
    """
    shaken = case.shaken[1]
    assert shaken is not None
    there = case.scores.softmax(1).gather(1, case.target[:, None])
    return (shaken - (there - shaken).abs()).mean(1)


def set_distance(case: Case) -> Tensor:
    """How far the counterfactuals of an input and of the same with Gaussian noise are apart, as sets.

    Half the mean distance to the nearest of the other set, from either side; Euclidean, in the space chosen. NaN where
    either has none.
    """
    return _moved(case)[0]


def lipschitz(case: Case) -> Tensor:
    """:func:`set_distance` over the length of the noise; of one counterfactual ``|CF(x) - CF(x + e)| / |e|``."""
    apart, length = _moved(case)
    return apart / length


def _by_margin(goal: Goal) -> Goal:
    """The same goal, whose pull is its margin."""
    if isinstance(goal, Whose):
        return replace(goal, goal=_by_margin(goal.goal))
    return replace(goal, loss="margin") if isinstance(goal, Leave | Reach) else goal


def _elsewhere(case: Case) -> Tensor:
    """Whether each reaches the goal for each of the other models [R, M], as 0 and 1."""
    others = (case.f.to(model=m, meter=None).value(case.z, case.rows) for m in case.ensemble)
    return torch.stack([told(v > 0) for v in others], 1)


def _moved(case: Case) -> tuple[Tensor, Tensor]:
    """:func:`set_distance` [R], and the length of the noise on the input in the space chosen [R]."""
    assert case.again is not None and case.sigma is not None
    start = case.f.point
    other = start + case.sigma * Noise(case.seed, "moved", identities(start)).normal(start.shape[1], start)
    got = case.again(other)
    here, there = (torch.from_numpy(case.scaled(z)) for z in (case.z, got.z))
    length = torch.from_numpy(case.scaled(other) - case.scaled(start)).norm(dim=1)
    apart = torch.full((case.f.examples,), torch.nan, dtype=torch.float64)
    for i in range(case.f.examples):
        pairs = torch.cdist(here[(case.rows == i).cpu()], there[(got.rows == i).cpu()])
        if pairs.numel():
            apart[i] = (pairs.amin(0).mean() + pairs.amin(1).mean()) / 2
    return apart[case.rows.cpu()], length[case.rows.cpu()]

"""Faithfulness: whether the score falls as far as attributions say, and whether they add up."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, whole
from ...engine.guard import untouched
from ...engine.packing import finest
from ...engine.randomness import Noise
from ...perturb.references import named
from ..ablation import feature_ablation
from ..base import rise
from ..coalitions import Coalitions
from .case import Asked, Case, correlation, scores_of
from .curves import removal


def removals(
    players: Coalitions, values: Sequence[Tensor], samples: int, size: int, seed: int
) -> tuple[list[Tensor], Tensor]:
    """For random sets of ``size`` features: what each attribution gives them together, and how far the score falls.

    Sets are drawn by key, uniformly; the same for all attributions.

    Args:
        players: what gives way to what.
        values: what each feature is attributed [B, F], once or several times.

    Returns:
        [B, S] for each of ``values``, and [B, S].
    """
    draws, like = Noise(seed, "subsets", players.names), values[0]
    said = [v.new_zeros(len(v), samples) for v in values]

    def absent(k: Tensor, rows: Tensor) -> Tensor:
        gone = draws.copies(rows, k).uniform(like.shape[1], like).argsort(1).argsort(1) < size
        for told, v in zip(said, values, strict=True):
            told[rows, k] = (gone * v[rows]).sum(1)
        return gone

    scores = scores_of(players, samples, absent)
    return said, finest(players.all_there)[:, None] - finest(scores)


def faithfulness_correlation(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    *,
    samples: int = 100,
    size: int | float = 0.2,
    seed: int = 0,
    **asked: Unpack[Asked],
) -> Tensor:
    """Correlation of what random sets of features are attributed with how far the score falls without them [B].

    Bhatt, Weller, Moura (IJCAI 2020). With one ``size`` after another it is sensitivity-n of Ancona,
    Ceolini, Öztireli, Gross (ICLR 2018). Zero where either is constant.

    Args:
        samples: how many sets.
        size: features in a set: a number, or a share below one.
        seed: of the sets, drawn by key.
        forward_func, inputs, attributions, target, asked: see :func:`robustx.attribution.metrics.deletion`.

    Raises:
        ValueError: an argument does not fit.

    >>> w, x = torch.tensor([3.0, -2.0, 1.0, 0.5]), torch.ones(1, 4)
    >>> found = faithfulness_correlation(lambda x: x @ w, x, w[None], size=2, samples=20)
    >>> bool(found > 0.999)
    True
    """
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        number, each = whole("samples", samples, 2), set_size(size, case.values.shape[1])
        (said,), falls = removals(case.players, [case.values], number, each, seed)
        return correlation(said, falls)


def set_size(size: int | float, features: int) -> int:
    """How many features a set has: a number, or a share of them, one at least.

    Raises:
        ValueError: it is none, or all of them.
    """
    number = max(1, round(size * features)) if isinstance(size, float) and 0 < size < 1 else size
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < features:
        raise ArgumentError(f"size must be a number of features from 1 to {features - 1}, or a share, got {size!r}")
    return number


def faithfulness_estimate(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Correlation of what each feature is attributed with how far the score falls without it alone [B].

    Alvarez-Melis, Jaakkola (NeurIPS 2018). Zero where either is constant.

    Args, raises: see :func:`robustx.attribution.metrics.deletion`.

    >>> w, x = torch.tensor([3.0, -2.0, 1.0]), torch.ones(1, 3)
    >>> faithfulness_estimate(lambda x: x @ w, x, w[None]).round(decimals=4)
    tensor([1.], dtype=torch.float64)
    """
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        return correlation(case.values, feature_ablation(case.players))


def monotonicity(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    *,
    seed: int = 0,
    **asked: Unpack[Asked],
) -> Tensor:
    """The share of steps at which the score does not fall while features come back, least relevant first [B].

    The metric of AI Explainability 360 (Arya et al., 2019) asks whether it is one.

    Args, raises: see :func:`robustx.attribution.metrics.deletion`.

    >>> w, x = torch.tensor([3.0, -2.0, 1.0]), torch.ones(1, 3)
    >>> monotonicity(lambda x: x @ w, x, w[None])  # the second takes away
    tensor([0.6667])
    """
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        counts = torch.arange(case.values.shape[1] + 1, device=case.values.device)
        scores = removal(case, case.order(-case.values, seed), counts, back=True)
        return (scores.diff(dim=1) >= 0).float().mean(1)


def completeness(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """By how much attributions miss adding up to the score's rise from the baselines [B], in units of the score.

    Sundararajan, Taly, Yan (ICML 2017), proposition 1.

    Args:
        forward_func, inputs, attributions, target, asked: see :func:`robustx.attribution.metrics.deletion`; what counts
            are the elements, so attributions are shaped like the inputs, and ``feature_mask`` and ``pool`` do nothing.

    Raises:
        ValueError: an argument does not fit.

    >>> from robustx.attribution import IntegratedGradients
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 1)), torch.rand(2, 3)
    >>> bool((completeness(model, x, IntegratedGradients(model).attribute(x)) < 1e-4).all())
    True
    """
    asked["feature_mask"], asked["pool"] = None, "sum"
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        risen = rise(case.f, named(asked.get("baselines")))
        return (case.values.sum(1) - finest(risen)).abs().to(risen.dtype)

"""Curves: the score while features give way, or come back, in the order in which attributions rank them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, optional, whole
from ...engine.guard import untouched
from ...engine.scores import Predicted
from ...perturb.references import Inpainted
from .case import Asked, Case, scores_of

Order = Literal["most", "least", "magnitude"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores along a way on which features give way or come back, example by example.

    Args:
        shares: of the features that have given way, or come back, ascending [S].
        scores: [B, S].
        forwards: rows that went through the model for each example [B].

    >>> curve = Curve(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([3]))
    >>> curve.area, curve.aopc
    (tensor([0.5000]), tensor([0.5000]))
    """

    shares: Tensor
    scores: Tensor
    forwards: Tensor

    @property
    def area(self) -> Tensor:
        """The mean height, by the trapezoid rule [B]: the area where shares go from zero to one."""
        return torch.trapezoid(self.scores, self.shares.to(self.scores), dim=1) / (self.shares[-1] - self.shares[0])

    @property
    def aopc(self) -> Tensor:
        """How far the score has fallen in the mean over all steps, the start among them [B].

        Samek, Binder, Montavon, Lapuschkin, Müller (IEEE TNNLS 2017), eq. 12: the area over the perturbation curve.
        """
        return (self.scores[:, :1] - self.scores).mean(1)

    def to_pandas(self) -> Any:
        """A table with a row for each example and step: example, share, score."""
        pandas = optional("pandas", "tables")
        b, s = self.scores.shape
        return pandas.DataFrame(
            {
                "example": torch.arange(b).repeat_interleave(s).numpy(),
                "share": self.shares.repeat(b).cpu().numpy(),
                "score": self.scores.flatten().cpu().numpy(),
            }
        )


def removal(case: Case, order: Tensor, counts: Tensor, back: bool = False) -> Tensor:
    """The scores when the first ``counts`` features have given way, or all others [B, S].

    Petsiuk, Das, Saenko (BMVC 2018): deletion and insertion. The examples as they are, are asked about once.

    Args:
        case: the attributions and the model.
        order: each feature's place [B, F].
        counts: how many at each step, ascending [S].
        back: all have given way, and the first ones come back.
    """
    whole_again = counts == (order.shape[1] if back else 0)
    asked = (~whole_again).nonzero().squeeze(1)

    def absent(k: Tensor, rows: Tensor) -> Tensor:
        first = order[rows] < counts[asked[k], None]
        return ~first if back else first

    scores = scores_of(case.players, len(asked), absent)
    found = case.players.all_there[:, None].repeat(1, len(counts))
    found[:, asked] = scores.to(found)
    return found


def deletion(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    *,
    steps: int | Sequence[float] = 50,
    order: Order = "most",
    seed: int = 0,
    **asked: Unpack[Asked],
) -> Curve:
    """The score while the features that attributions rank first give way; a steep fall, a small area, is faithful.

    Petsiuk et al. (BMVC 2018); pixel flipping, of Bach et al. (PLOS ONE 2015) and Samek et al. (2017), is
    the same curve, summed up by :attr:`Curve.aopc`.

    Args:
        forward_func, inputs: see :class:`robustx.attribution.Attribution`; inputs may hold integers.
        attributions: shaped like the inputs, or with a single channel; any numbers that rank.
        target: which output, or a score: the papers take ``robustx.engine.Probability(target)``.
        steps: how many at most, evenly spaced; or the shares of the features to give way, ascending.
        order: "most" relevant first, "least" relevant first, or by "magnitude", the greatest first.
        seed: of the order among equals, drawn by key.
        asked: what metrics share, see :class:`robustx.attribution.metrics.Asked`.

    Raises:
        ValueError: an argument does not fit.

    >>> w = torch.tensor([3.0, 2.0, 1.0])
    >>> curve = deletion(lambda x: x @ w, torch.ones(1, 3), w[None])
    >>> curve.scores, curve.area
    (tensor([[6., 3., 1., 0.]]), tensor([2.3333]))
    """
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        return _curve(case, steps, order, seed)


def insertion(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    *,
    steps: int | Sequence[float] = 50,
    order: Order = "most",
    seed: int = 0,
    **asked: Unpack[Asked],
) -> Curve:
    """The score while all features have given way and those ranked first come back; a large area is faithful.

    Petsiuk et al. (BMVC 2018), where pictures come back from a blur (``baselines="blur"``).

    Args, raises: see :func:`deletion`.

    >>> w = torch.tensor([3.0, 2.0, 1.0])
    >>> insertion(lambda x: x @ w, torch.ones(1, 3), w[None]).scores
    tensor([[0., 3., 5., 6.]])
    """
    with untouched(forward_func):
        case = Case.of(forward_func, inputs, attributions, target, **asked)
        return _curve(case, steps, order, seed, back=True)


TENTHS = tuple(i / 10 for i in range(10))


def road(
    forward_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    target: Any = None,
    *,
    steps: int | Sequence[float] = TENTHS,
    order: Order = "most",
    noise: float = 0.01,
    seed: int = 0,
    **asked: Unpack[Asked],
) -> Curve:
    """Whether pictures keep their class while the places ranked first are painted in from their surroundings.

    Rong, Leemann, Borisov, Kasneci, Kasneci (ICML 2022): remove and debias. What is painted does not betray which
    places are missing, as constants do, so that no model has to be trained anew. The mean of ``scores`` over examples
    is the accuracy.

    Args:
        target: the class of each example, or of all; or a score of your own, such as ``Probability(target)``.
        steps: how many at most, evenly spaced; or the shares of the places to give way, ascending.
        noise: the standard deviation of noise on what is painted, in input units.
        forward_func, inputs, attributions, order, seed, asked: see :func:`deletion`; without ``baselines``.

    Raises:
        ValueError: an argument does not fit, or inputs are no pictures.

    >>> bright = lambda x: torch.stack([x.mean((1, 2, 3)), 0.5 - x.mean((1, 2, 3))], 1)
    >>> x = torch.zeros(1, 1, 8, 8)
    >>> x[..., :4] = 1
    >>> road(bright, x, x, 0, steps=[0, 0.25, 0.5]).scores
    tensor([[1., 1., 0.]])
    """
    if "baselines" in asked:
        raise ArgumentError("road paints what is missing and takes no baselines; take deletion for others")
    asked["baselines"] = Inpainted("linear", noise, seed)
    score = Predicted(target) if isinstance(target, int | Tensor | list) else target
    return deletion(forward_func, inputs, attributions, score, steps=steps, order=order, seed=seed, **asked)


def _curve(case: Case, steps: int | Sequence[float], order: str, seed: int, back: bool = False) -> Curve:
    signs: Mapping[str, Callable[[Tensor], Tensor]] = {
        "most": lambda v: v,
        "least": lambda v: -v,
        "magnitude": lambda v: v.abs(),
    }
    if order not in signs:
        raise ArgumentError(f"order must be {', '.join(map(repr, signs))}, got {order!r}")
    counts = stops(steps, case.players.features.count).to(case.f.device)
    scores = removal(case, case.order(signs[order](case.values), seed), counts, back)
    return Curve(counts / max(case.players.features.count, 1), scores, case.forwards)


def stops(steps: int | Sequence[float], features: int) -> Tensor:
    """How many features have moved at each step, ascending, each number once [S]."""
    if isinstance(steps, int):
        shares = torch.linspace(0, 1, whole("steps", steps, 1) + 1, dtype=torch.float64)
    else:
        shares = torch.as_tensor(steps, dtype=torch.float64)
        if (
            shares.ndim != 1
            or len(shares) < 2
            or not ((shares[1:] > shares[:-1]).all() and 0 <= shares[0] <= shares[-1] <= 1)
        ):
            raise ArgumentError(f"steps must be a number, or ascending shares from 0 to 1, got {steps!r}")
    counts: Tensor = (shares * features).round().long().unique()
    if len(counts) < 2:
        raise ArgumentError(f"steps {steps!r} all stop at the same of {features} features; choose shares further apart")
    return counts

"""Randomised smoothing: the class that a model gives most often under Gaussian noise, and how far that one holds.

Cohen, Rosenfeld, Kolter (ICML 2019), arXiv 1902.02918, algorithms PREDICT and CERTIFY.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise, identities
from ..engine.scores import Score
from ..perturb.goals import as_logits

NUMBERS = 1 << 18  # that come from one key at most; fixed, so that draws do not depend on what fits into memory


class _Vote(Score):
    """One for the class of each row, 0 for the others [N, K]; no vote where the output is not finite."""

    def value(self, out: Any, rows: Tensor) -> Tensor:
        logits = as_logits(out, rows)
        return F.one_hot(logits.argmax(1), logits.shape[1]) * torch.isfinite(logits).all(1, keepdim=True)


@dataclass(frozen=True)
class Radii:
    """What is known of each example.

    Args:
        prediction: the class [B], -1 where the model abstains.
        radius: within which the smoothed model's class does not change, in L2 [B]; 0 where it abstains.
        probability: a lower bound on that of the class under noise [B].
        forwards: rows that went through the model [B].
    """

    prediction: Tensor
    radius: Tensor
    probability: Tensor
    forwards: Tensor

    @property
    def abstained(self) -> Tensor:
        """[B] booleans."""
        return self.prediction < 0


class Smoothed:
    """A model under Gaussian noise: it answers the class that is most likely then, or abstains.

    What is certified holds for this model, not for the one that it is made of. Each answer is wrong with a
    probability of at most ``alpha``; noise goes by seed and sample, so the same call draws the same.

    Args:
        forward_func: the model, any callable that returns class scores [B, K].
        sigma: of the noise, in input units.
        alpha: how likely an answer may be wrong.
        seed: of the noise.
        batch_size: most rows in one pass; None fills the memory budget.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> told = Smoothed(model, sigma=0.5).certify(torch.tensor([[0.4, 0.0], [0.0, 0.0]]), n=10_000)
    >>> told.prediction.tolist(), bool(0.37 < told.radius[0] < 0.4)
    ([0, -1], True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        sigma: float = 0.25,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        if not 0 < sigma < float("inf"):
            raise ArgumentError(f"sigma must be above 0 and finite, got {sigma!r}")
        if not 0 < alpha < 1:
            raise ArgumentError(f"alpha must lie between 0 and 1, got {alpha!r}")
        self.forward_func, self.sigma, self.alpha, self.seed, self.batch_size = (
            forward_func,
            sigma,
            alpha,
            seed,
            batch_size,
        )

    @guarded
    def predict(self, x: Tensor, n: int = 1000) -> Tensor:
        """The class of each example [B], -1 where the two likeliest of ``n`` draws are too near to tell."""
        from scipy.stats import binomtest

        f = self._probe(x)
        top = self._counts(f, whole("n", n, 1), "predict").topk(2, 1)
        (first, second), best = top.values.unbind(1), top.indices[:, 0]
        sure = [
            binomtest(a, a + b, 0.5).pvalue <= self.alpha for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]
        return torch.where(torch.tensor(sure, device=best.device), best, -1)

    @guarded
    def certify(self, x: Tensor, n0: int = 100, n: int = 100_000) -> Radii:
        """The class of each example, and its certified radius in L2: sigma times the normal quantile of pA.

        Args:
            x: [B, ...].
            n0: draws by which the class is chosen.
            n: draws by which its probability pA is bounded from below (Clopper and Pearson's interval, one-sided).
        """
        from scipy.stats import beta, norm

        f = self._probe(x)
        chosen = self._counts(f, whole("n0", n0, 1), "select").argmax(1)
        seen = self._counts(f, whole("n", n, 1), "estimate").gather(1, chosen[:, None])[:, 0].cpu().double()
        least = torch.from_numpy(beta.ppf(self.alpha, seen.numpy(), n - seen.numpy() + 1)).nan_to_num(0)
        held = least > 0.5
        radius = torch.where(held, self.sigma * torch.from_numpy(norm.ppf(least.clamp(min=0.5).numpy())), 0)
        assert f.meter is not None
        return Radii(
            torch.where(held.to(chosen.device), chosen, -1), radius.to(x.device), least.to(x.device), f.meter.forward
        )

    def _probe(self, x: Tensor) -> Probe:
        return Door.open(x).probe(self.forward_func, _Vote(), limit=self.batch_size).to(strict=False)

    def _counts(self, f: Probe, n: int, what: str) -> Tensor:
        """How often each class comes out for each example under ``n`` draws [B, K]."""
        noise = Noise(self.seed, f"smoothing/{what}", identities(f.point))
        d = f.point.shape[1]
        many = max(1, min(n, NUMBERS // max(d, 1)))  # draws of one key

        def drawn(start: int, stop: int) -> Iterator[Tensor]:
            """The noise of queries: ``n`` for each example, one example after the other."""
            while start < stop:
                example, draw = divmod(start, n)
                key, first = divmod(draw, many)
                end = min(first + stop - start, many, n - key * many)
                source = replace(noise.at(torch.tensor([example])), draw=key)
                yield source.normal(end * d, f.point).reshape(end, d)[first:]
                start += end - first

        def query(part: slice) -> tuple[Tensor, Tensor]:
            rows = torch.arange(part.start, part.stop, device=f.device) // n
            return torch.cat(list(drawn(part.start, part.stop))).mul_(self.sigma).add_(f.point[rows]), rows

        counts: Tensor | None = None
        for part, votes in f.values(f.examples * n, query):
            rows = torch.arange(part.start, part.stop, device=f.device) // n
            counts = votes.new_zeros(f.examples, votes.shape[1]) if counts is None else counts
            counts.index_add_(0, rows, votes)
        return f.everyone.new_zeros(0, 2) if counts is None else counts

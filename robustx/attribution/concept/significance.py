"""Significance: whether a concept's scores are other than those of concepts that are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Test = Callable[[Tensor, Tensor], float]
"""Scores of a concept and scores of random concepts [R] each -> p-value."""


def outlier_test(scores: Tensor, random: Tensor) -> float:
    """Whether the concept's mean is of the random concepts' kind, two-sided, by Student's t for one more observation.

    With means of about normal distribution, ``(mean(scores) - mean(random)) / (s * sqrt(1 + 1 / R))`` has R - 1 degrees
    of freedom, s being the random concepts' standard deviation. The concept counts once, however many scores it has.

    >>> import torch
    >>> random = torch.tensor([-1.0, 0.0, 1.0])
    >>> round(outlier_test(torch.tensor([5.0, 5.0, 5.0]), random), 4)  # t = 4.33
    0.0494
    """
    from scipy.stats import t

    at, null = float(scores.double().mean()), random.double()
    spread = float(null.std()) * (1 + 1 / len(null)) ** 0.5
    way = abs(at - float(null.mean()))
    return 2 * float(t.sf(way / spread, len(null) - 1)) if spread else float(way == 0)


def rank_test(scores: Tensor, random: Tensor) -> float:
    """The share of all R + 1 concepts whose mean is as far from the mean of all as this one's; exact, two-sided.

    If the concept is random too, it might as well be any of the others: a permutation test, for which nothing is
    assumed of the distribution. It never says less than 1 / (R + 1).

    >>> import torch
    >>> rank_test(torch.tensor([5.0, 5.0, 5.0]), torch.tensor([-1.0, 0.0, 1.0]))
    0.25
    """
    at, null = scores.double().mean(), random.double()
    centre = (at + null.sum()) / (len(null) + 1)
    way = (at - centre).abs()
    return (1 + int(((null - centre).abs() >= way * (1 - 1e-9)).sum())) / (len(null) + 1)


def kim_test(scores: Tensor, random: Tensor) -> float:
    """Whether two lots of scores have different means, two-sided, by Student's t for unequal variances (Welch).

    Kim et al. (ICML 2018), section 3.5. It takes a concept's scores for independent of one another, which they are not:
    all are told by the same examples of the concept. So it finds random concepts significant too often.

    >>> import torch
    >>> round(kim_test(torch.tensor([0.9, 1.0, 1.0, 0.8]), torch.tensor([0.4, 0.6, 0.5, 0.3])), 4)
    0.0014
    """
    from scipy.stats import ttest_ind_from_stats

    a, b = ((float(s.mean()), float(s.std()), len(s)) for s in (scores.double(), random.double()))
    return float(ttest_ind_from_stats(*a, *b, equal_var=False).pvalue) if a[1] or b[1] else float(a[0] == b[0])


TESTS: Mapping[str, Test] = {"t": outlier_test, "permutation": rank_test, "kim": kim_test}


@dataclass(frozen=True)
class Significance:
    """What a test said of a concept at a layer.

    Attributes:
        scores: the concept's, told apart from each random concept [R].
        random: what they are compared with [R]: the mean score of each random concept, told apart from all others; for
            Kim's test its score, told apart from one other.
        p_value: the chance of such a difference, or a greater one, if the concept were random too.
        adjusted: corrected for how many concepts and layers were asked for together (Holm).
    """

    scores: Tensor
    random: Tensor
    p_value: float
    adjusted: float

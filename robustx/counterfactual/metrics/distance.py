"""How far a counterfactual is, how much of it there is, and whether all of it is needed."""

import numpy as np
import torch
from torch import Tensor

from .case import Case, chance, told


def returned(case: Case) -> Tensor:
    """Whether there is a counterfactual at all: its mean is the coverage."""
    return torch.ones(len(case.z), dtype=torch.float64)


def valid(case: Case) -> Tensor:
    """Whether the goal is reached, asked of the model anew; what is missing is not valid."""
    return (case.margin > 0).double()


def unique(case: Case) -> Tensor:
    """Whether it is valid, and none before it of the same example is the same: the mean is DiCE's share of valid ones.

    Mothilal, Sharma, Tan (FAT* 2020).
    """
    fresh = case.margin > 0
    for i in fresh.nonzero().squeeze(1).tolist():
        before = fresh[:i] & (case.rows[:i] == case.rows[i]).cpu()
        near = (told(case.z[:i][before.to(case.z.device)]) - told(case.z[i])).abs().amax(1) <= case.tolerance
        fresh[i] = not bool(near.any())
    return fresh.double()


def margin(case: Case) -> Tensor:
    """By how much the goal is reached; below 0 where it is missed. In logits, for classes."""
    return case.margin


def probability(case: Case) -> Tensor:
    """The probability of the target class, by softmax: at least tau where validity at tau is asked for."""
    return chance(case.scores, case.target)


def l0(case: Case) -> Tensor:
    """How many features differ by more than the tolerance; a group of elements (a one-hot block) is one feature."""
    return told(case.changed.sum(1))


def share_changed(case: Case) -> Tensor:
    """The share of features that differ."""
    return told(case.changed.sum(1)) / max(case.features.count, 1)


def l1(case: Case) -> Tensor:
    """The sum of the sizes of all differences, element by element, in the space chosen."""
    return (case.delta / case.unit).abs().sum(1)


def l2(case: Case) -> Tensor:
    """The Euclidean length of the difference, in the space chosen."""
    return (case.delta / case.unit).square().sum(1).sqrt()


def linf(case: Case) -> Tensor:
    """The largest difference of one element, in the space chosen."""
    return (case.delta / case.unit).abs().amax(1)


def mad_l1(case: Case) -> Tensor:
    """The sum of differences of numbers over their median absolute deviation in the data; 1 for another category.

    Wachter, Mittelstadt, Russell (2017). Where the deviation is 0, it is taken as 1.
    """
    mad = _median((case.crowd - _median(case.crowd)).abs())
    return _terms(case, torch.where(mad > 0, mad, 1)).sum(1)


def gower(case: Case) -> Tensor:
    """The mean over columns of differences over ranges (numbers), or of whether they differ (others, and constants).

    Gower (Biometrics 1971).
    """
    return _terms(case, case.span).mean(1)


def heom(case: Case) -> Tensor:
    """The Euclidean length of Gower's terms. Wilson, Martinez (JAIR 1997)."""
    return _terms(case, case.span).square().sum(1).sqrt()


def mahalanobis(case: Case) -> Tensor:
    """The length of the difference in units of the data's covariance, shrunk so that it has an inverse.

    Ledoit, Wolf (Journal of Multivariate Analysis 2004).
    """
    from sklearn.covariance import LedoitWolf

    assert case.data is not None
    precision = LedoitWolf(store_precision=True).fit(told(case.data).numpy()).precision_
    d = case.delta.numpy()
    return torch.from_numpy(np.sqrt(np.maximum(np.einsum("rd,de,re->r", d, precision, d), 0)))


def cost(case: Case) -> Tensor:
    """The sum of differences of columns, each times its cost: of a unit, or for a schema of its whole range.

    Other categories cost the whole.
    """
    if case.costs is not None:
        return (_terms(case, torch.ones(len(case.numeric), dtype=torch.float64)) * case.costs).sum(1)
    assert case.schema is not None
    span, of = (
        torch.tensor([(f.span, f.cost) for f in case.schema.features], dtype=torch.float64).reshape(-1, 2).unbind(1)
    )
    return (_terms(case, span) * of).sum(1)


def percentile_shift(case: Case) -> Tensor:
    """The sum over numbers of ``|log((1 - Q(after)) / (1 - Q(before)))|``, where Q tells the percentile in the data.

    Ustun, Spangher, Liu (FAT* 2019), whose sum has no bars. Q counts rows out of N + 1, so that it never is 1.
    """
    after, before = _percentiles(case)
    return ((1 - after) / (1 - before)).log().abs().sum(1)


def max_percentile_shift(case: Case) -> Tensor:
    """The largest difference of percentiles among the numbers. Ustun, Spangher, Liu (FAT* 2019)."""
    after, before = _percentiles(case)
    return (after - before).abs().amax(1) if case.numeric.any() else torch.zeros(len(after), dtype=torch.float64)


def n_redundant(case: Case) -> Tensor:
    """How many changed features can be taken back alone while it stays valid: 0 where it is irreducible.

    NaN where it is not valid, so that nothing can stay.
    """
    of, then = case.one_by_one(alone=False)
    return torch.where(case.margin > 0, _counted(of[then > 0], len(case.z)), torch.nan)


def n_sufficient(case: Case) -> Tensor:
    """How many changed features reach the goal alone."""
    of, then = case.one_by_one(alone=True)
    return _counted(of[then > 0], len(case.z))


def n_violations(case: Case) -> Tensor:
    """How many rules of the schema it breaks; a block that is not one category breaks one."""
    schema = case.schema
    assert schema is not None
    broken = _counted(torch.tensor(schema.violations(case.before, case.after)["row"].to_numpy(int)), len(case.z))
    off = (told(schema.encoded(schema.decoded(case.z))) - told(case.z)).abs() > case.tolerance
    for p in schema.places:
        if p.block:
            broken += off[:, p.columns].any(1)
    return broken


def _terms(case: Case, unit: Tensor) -> Tensor:
    """Differences of columns [R, J]: of numbers in these units [J], of others (or with unit 0) whether they differ."""
    d = (case.after - case.before).abs()
    return torch.where(case.numeric & (unit > 0), d / torch.where(unit > 0, unit, 1), (d > 0).double())


def _median(columns: Tensor) -> Tensor:
    """[N, J] -> [J]; of an even number the mean of the two in the middle."""
    return torch.from_numpy(np.median(columns.numpy(), 0))


def _percentiles(case: Case) -> tuple[Tensor, Tensor]:
    """The share of the data, out of N + 1, that is not above each number: after and before [R, numbers]."""
    ranked = case.crowd[:, case.numeric].sort(0).values.T.contiguous()

    def share(columns: Tensor) -> Tensor:
        count = torch.searchsorted(ranked, columns[:, case.numeric].T.contiguous(), right=True)
        return count.T.double() / (ranked.shape[1] + 1)

    return share(case.after), share(case.before)


def _counted(of: Tensor, n: int) -> Tensor:
    return of.bincount(minlength=n).double()

"""How much several counterfactuals of one example differ from one another: the same number for each of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Case


def dpp(case: Case) -> Tensor:
    """The determinant of 1 / (1 + distance) of all pairs, by L1 in the space chosen: 0 if two are the same, at most 1.

    Mothilal, Sharma, Tan (FAT* 2020).
    """
    z = torch.from_numpy(case.scaled(case.z))
    return _sets(case, lambda of: (1 / (1 + torch.cdist(z[of], z[of], p=1))).det())


def pairwise(case: Case) -> Tensor:
    """The mean distance of all pairs, by L1 in the space chosen."""
    z = torch.from_numpy(case.scaled(case.z))
    return _sets(case, lambda of: torch.nn.functional.pdist(z[of], p=1).mean())


def count_diversity(case: Case) -> Tensor:
    """The mean share of features in which pairs differ by more than the tolerance.

    Mothilal, Sharma, Tan (FAT* 2020).
    """

    def share(of: Tensor) -> Tensor:
        first, second = torch.combinations(of, 2).unbind(1)
        away = ((case.z[first] - case.z[second]).abs() > case.tolerance).to(case.z)
        differ = case.features.gather(away, case.rows[first]) > 0
        return differ.double().mean()

    return _sets(case, share)


def _sets(case: Case, of: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function makes of the counterfactuals of one example, told to each of them [R]; NaN where there is one."""
    out = torch.full((len(case.z),), torch.nan, dtype=torch.float64)
    for i in case.rows.unique():
        which = (case.rows == i).nonzero().squeeze(1).cpu()
        if len(which) > 1:
            out[which] = of(which).double().cpu()
    return out

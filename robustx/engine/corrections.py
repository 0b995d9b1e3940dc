"""Corrections: p-values where many questions are asked at once."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for the chance of any false alarm among them, however they depend on one another.

    Holm, Scandinavian Journal of Statistics 6 (1979): the i-th smallest of m is multiplied by m - i + 1, and none comes
    out below a smaller one.

    >>> holm([0.5, 0.125, 0.25])
    [0.5, 0.375, 0.5]
    """
    m, corrected, so_far = len(p_values), [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected

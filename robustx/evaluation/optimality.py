"""How near an attack comes to the best that is known: AttackBench's optimality."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def local_optimality(own: Floats, best: Floats) -> float:
    """How much of what the best of all attacks achieves one attack achieves, from 0 to 1.

    Cinà et al., AttackBench (AAAI 2025, arXiv 2404.19460): with e the largest finite distance of the best and r the
    clean accuracy, (r e - area of the attack) / (r e - area of the best), where the area is that under the security
    curve from 0 to e. A sample at distance d contributes min(d, e) to its area, so the sums here are exact. The best
    itself has 1, an attack that finds nothing below e has 0, and it never rises when a distance grows.

    Args:
        own: the attack's distance for each sample: infinite where it found nothing, 0 where the model is wrong
            without [N].
        best: the smallest distance that is known of each sample, over all attacks, this one too [N].

    Returns:
        The optimality; NaN where nothing was found at all, or all that was found is equally far, so that there is
        nothing to compare with.

    >>> local_optimality(np.array([1.0, 3.0, np.inf]), np.array([1.0, 1.0, 3.0]))
    0.5
    """
    right = best > 0
    end = float(best[right & np.isfinite(best)].max(initial=0))
    won, most = (float(np.maximum(end - d[right], 0).sum()) for d in (own, best))
    return won / most if most > 0 else math.nan


def global_optimality(local: Sequence[float]) -> float:
    """The mean of an attack's local optimality over models (AttackBench, same section); NaN if it is not known of all.

    >>> global_optimality([1.0, 0.5])
    0.75
    """
    return sum(local) / len(local) if local else math.nan

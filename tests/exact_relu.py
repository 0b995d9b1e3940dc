"""The exact answer for small ReLU networks: how near the closest point of another class lies, in L1 and Linf.

A network of affine layers with ReLUs between them is a mixed-integer linear programme: one binary for each unit whose
sign is not settled (Tjeng, Xiao, Tedrake, ICLR 2019). An attack's distance bounds the search from above, which settles
most units; linear programmes settle more. Written from the mathematics, in float64, for scipy's HiGHS.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array
from torch import nn


class Programme:
    """Points x of the box within ``radius`` of ``centre``, and what each layer makes of them.

    Variables: x [D], how far |x - centre| [D] (L1) or its largest [1] (Linf), then the units' outputs, layer by layer.
    """

    def __init__(self, layers, centre, norm, radius, low=0.0, high=1.0):
        self.centre, self.norm, d = centre, norm, len(centre)
        self.below = np.maximum(low, centre - radius), np.minimum(high, centre + radius)
        sizes = d if norm == "L1" else 1
        self.cost = np.r_[np.zeros(d), np.ones(sizes)]
        self.lower = np.r_[self.below[0], np.zeros(sizes)]
        self.upper = np.r_[self.below[1], np.full(sizes, radius)]
        self.whole = np.zeros(d + sizes)
        self.rows, self.least = [], []  # rows @ variables >= least
        far = np.eye(d) if norm == "L1" else np.ones((d, 1))
        self.require(np.c_[-np.eye(d), far], -centre)
        self.require(np.c_[np.eye(d), far], centre)
        self.require(np.r_[np.zeros(d), -np.ones(sizes)][None], [-radius])
        here = np.arange(d)  # where the layer's inputs stand among the variables
        for weight, bias in layers[:-1]:
            here = self.relu(*self.affine(weight, bias, here))
        self.out = self.affine(*layers[-1], here)

    def require(self, rows, least):
        self.rows += list(rows)
        self.least += list(least)

    def affine(self, weight, bias, here):
        """What is before a layer's ReLUs, as rows over all variables, and constants."""
        rows = np.zeros((len(weight), len(self.cost)))
        rows[:, here] = weight
        return rows, bias

    def relu(self, rows, bias):
        """Adds a unit for each row: max(0, row @ variables + bias)."""
        ends = [self.ends(r, b) for r, b in zip(rows, bias, strict=True)]
        first, n = len(self.cost), len(rows)
        open_ = [i for i, (low, high) in enumerate(ends) if low < 0 < high]
        self.lower = np.r_[self.lower, np.maximum([low for low, _ in ends], 0), np.zeros(len(open_))]
        self.upper = np.r_[self.upper, np.maximum([high for _, high in ends], 0), np.ones(len(open_))]
        self.whole = np.r_[self.whole, np.zeros(n), np.ones(len(open_))]
        self.cost = np.r_[self.cost, np.zeros(n + len(open_))]
        for i, (low, high) in enumerate(ends):
            unit = np.zeros(len(self.cost))
            unit[first + i] = 1
            before = np.pad(rows[i], (0, len(self.cost) - rows.shape[1]))
            if low >= 0:
                self.require([before - unit, unit - before], [-bias[i], bias[i]])
            elif high > 0:
                on = np.zeros(len(self.cost))
                on[first + n + open_.index(i)] = 1
                self.require([unit - before, before - unit + low * on], [bias[i], low - bias[i]])
                self.require([high * on - unit], [0])
        return np.arange(first, first + n)

    def matrix(self):
        return np.array([np.pad(r, (0, len(self.cost) - len(r))) for r in self.rows])

    def ends(self, row, bias):
        """The least and the largest value of a row, as far as the linear relaxation tells."""
        rows, box = -self.matrix(), np.c_[self.lower, self.upper]
        found = [linprog(s * row, rows, -np.array(self.least), bounds=box, method="highs") for s in (1, -1)]
        low, high = (s * f.fun + bias for s, f in zip((1, -1), found, strict=True))
        return low - 1e-7, high + 1e-7

    def nearest(self, own, rival, within, seconds):
        """The nearest point at which ``rival`` is not behind ``own``, and a bound on its distance; None if none is."""
        rows, bias = self.out
        lead = np.pad(rows[rival] - rows[own], (0, len(self.cost) - rows.shape[1]))
        told = milp(
            self.cost,
            integrality=self.whole,
            bounds=Bounds(self.lower, self.upper),
            constraints=LinearConstraint(
                csr_array(np.r_[self.matrix(), [lead, -self.cost]]), [*self.least, bias[own] - bias[rival], -within]
            ),
            options={"time_limit": seconds, "mip_rel_gap": 1e-9},
        )
        if told.status == 2:
            return None
        if told.status != 0:
            raise TimeoutError(f"no proof in {seconds} seconds: {told.message}")
        bound = told.fun if told.mip_dual_bound is None else told.mip_dual_bound  # None: no unit was left open
        return told.x[: len(self.centre)], bound


def logits(layers, x):
    for weight, bias in layers[:-1]:
        x = np.maximum(weight @ x + bias, 0)
    return layers[-1][0] @ x + layers[-1][1]


def polished(layers, centre, norm, own, rival, near, low=0.0, high=1.0):
    """The nearest point to ``centre`` at which ``rival`` is level, where all ReLUs stand as they do at ``near``.

    A linear programme: what a mixed-integer solver's tolerances leave open is gone. None if there is no such point.
    """
    d, x = len(centre), near
    slope, shift, rows, least = np.eye(d), np.zeros(d), [], []
    for weight, bias in layers[:-1]:
        slope, shift = weight @ slope, weight @ shift + bias
        on = slope @ x + shift > 0
        sign = np.where(on, 1, -1)
        rows, least = [*rows, *(sign[:, None] * slope)], [*least, *(-sign * shift)]
        slope, shift = on[:, None] * slope, on * shift
    slope, shift = layers[-1][0] @ slope, layers[-1][0] @ shift + layers[-1][1]
    rows, least = np.array([*rows, slope[rival] - slope[own]]), np.array([*least, shift[own] - shift[rival]])
    far = np.eye(d) if norm == "L1" else np.ones((d, 1))
    sizes = far.shape[1]
    above = np.r_[np.c_[-rows, np.zeros((len(rows), sizes))], np.c_[np.eye(d), -far], np.c_[-np.eye(d), -far]]
    cost = np.r_[np.zeros(d), np.ones(sizes)]
    box = np.r_[np.tile([low, high], (d, 1)), np.tile([0, np.inf], (sizes, 1))]
    told = linprog(cost, above, np.r_[-least, centre, -centre], bounds=box, method="highs")
    return told.x[:d] if told.status == 0 else None


def nearest(layers, centre, own, norm, radius, seconds=60.0, rivals=None):
    """The least distance from ``centre`` [D] to a point at which ``own`` does not lead, and a proved bound for it.

    Args:
        layers: (weight, bias) of each affine layer, in float64; ReLUs stand between them.
        norm: ``"L1"`` or ``"Linf"``; the box is [0, 1].
        radius: what an attack has found: an upper bound.
        seconds: the most for each rival class.
        rivals: the classes that may win; all others, unless given.

    Returns:
        The distance, the bound (at most the distance, up to the solver's tolerance), and the point.

    Raises:
        TimeoutError: the solver did not finish.
        ValueError: nothing was found within the radius.
    """
    programme = Programme(layers, centre, norm, radius * (1 + 1e-6))
    scores = logits(layers, centre)
    size = (lambda d: abs(d).sum()) if norm == "L1" else (lambda d: abs(d).max())
    best, bound, point = radius * (1 + 1e-6), np.inf, None
    for rival in sorted(set(range(len(scores))) - {own} if rivals is None else rivals, key=lambda k: -scores[k]):
        found = programme.nearest(own, rival, best, seconds)
        if found is None:
            continue
        better = polished(layers, centre, norm, own, rival, found[0])
        better = found[0] if better is None else better
        bound = min(bound, found[1])
        if point is None or size(better - centre) < best:
            best, point = size(better - centre), better
    if point is None:
        raise ValueError(f"no point within {radius} of the centre; the radius must be that of a real one")
    return best, min(bound, best), point


@dataclass(frozen=True)
class Stored:
    """A network of ``fixtures/relu_networks.npz`` in float64, digits that it knows, and the truth in each norm."""

    layers: list
    x: np.ndarray
    y: np.ndarray
    distance: dict
    bound: dict
    point: dict

    @property
    def model(self):
        """On images [B, 1, 8, 8]."""
        linear = [nn.utils.skip_init(nn.Linear, *w.shape[::-1], dtype=torch.float64) for w, _ in self.layers]
        for m, (weight, bias) in zip(linear, self.layers, strict=True):
            m.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        return nn.Sequential(nn.Flatten(), *[m for one in linear for m in (one, nn.ReLU())][:-1])


def stored(name):
    """The network called ``"plain"`` or ``"robust"``."""
    with np.load(Path(__file__).parent / "fixtures" / "relu_networks.npz") as kept:
        count = sum(k.startswith(f"{name}/weight") for k in kept)
        layers = [tuple(kept[f"{name}/{part}{i}"].astype(float) for part in ("weight", "bias")) for i in range(count)]
        truth = [{n: kept[f"{name}/{n}/{told}"] for n in ("L1", "Linf")} for told in ("distance", "bound", "point")]
        return Stored(layers, kept[f"{name}/x"].astype(float), kept[f"{name}/y"], *truth)

"""The exact answer for affine classifiers: how near the closest point of another class lies, inside a box.

Written from the mathematics, in float64, one example and one rival class at a time. A rival wins on a half-space, so
its distance is the least size of a move d with w @ d >= need and low <= x + d <= high: a linear programme for L1 and
Linf, a one-dimensional root for L2 (the KKT conditions), a count of the largest gains for L0.
"""

import numpy as np
from scipy.optimize import brentq, linprog


def least_l0(a, room, need):
    """How many elements must move, those first that gain most."""
    return int((np.sort(a * room)[::-1].cumsum() < need).sum()) + 1


def least_l1(a, room, need):
    """min sum(d) subject to a @ d >= need, 0 <= d <= room."""
    return linprog(np.ones_like(a), -a[None], [-need], bounds=np.c_[0 * room, room]).fun


def least_l2(a, room, need):
    """The optimum is min(t a, room), with the multiplier t that just meets the need."""
    t = brentq(lambda t: a @ np.minimum(t * a, room) - need, 0, room.max() / a[a > 0].min(), xtol=1e-15)
    return np.linalg.norm(np.minimum(t * a, room))


def least_linf(a, room, need):
    """min r subject to a @ d >= need, 0 <= d <= min(r, room)."""
    n = len(a)
    below = np.c_[np.eye(n), -np.ones(n)]
    objective = np.r_[np.zeros(n), 1]
    bounds = np.c_[np.zeros(n + 1), np.r_[room, room.max()]]
    return linprog(objective, np.r_[[np.r_[-a, 0]], below], np.r_[-need, np.zeros(n)], bounds=bounds).fun


LEAST = {"L0": least_l0, "L1": least_l1, "L2": least_l2, "Linf": least_linf}


def distances(weight, bias, x, y, norm, low=0.0, high=1.0):
    """Each example's least distance to a point of another class [B]; 0 if it is there already, inf if there is none.

    weight [K, D], bias [K], x [B, D], y [B], low and high broadcast to [B, D]; anything numpy can read.
    """
    weight, bias, x = (np.asarray(v, dtype=np.float64) for v in (weight, bias, x))
    low, high = np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape)
    found = np.full(len(x), np.inf)
    for i, own in enumerate(np.asarray(y)):
        for rival in set(range(len(weight))) - {int(own)}:
            w = weight[rival] - weight[own]
            need = -(w @ x[i] + bias[rival] - bias[own])  # what w @ d must reach
            room = np.where(w > 0, high[i] - x[i], x[i] - low[i])
            if need <= 0:
                found[i] = 0
            elif abs(w) @ room > need:
                found[i] = min(found[i], LEAST[norm](abs(w), room, need))
    return found

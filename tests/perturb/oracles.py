"""The questions a norm answers, put to scipy (L0: to every subset) for one row, with the box in full."""

from itertools import combinations

import numpy as np
from scipy.optimize import brentq, linprog, minimize


def nearest(norm, d, radius, low, high):
    """The point of the ball inside the box that is nearest to d; for L0, where several may be, its distance alone."""
    if norm == "L0":
        return min(np.linalg.norm(d - v) for v in _subsets(len(d), radius, np.clip(d, low, high)))
    return _solve(norm, lambda v: ((v - d) ** 2).sum() / 2, lambda v: v - d, np.clip(d, low, high), radius, low, high)


def most(norm, g, length, low, high):
    """How much a move of this length inside the box gains along g, at most."""
    if norm == "L0":
        return max(g @ v for v in _subsets(len(g), length, np.where(g > 0, high, low)))
    if norm == "L2":
        low, high = np.maximum(low, -length), np.minimum(high, length)
        return g @ _solve(norm, lambda v: -g @ v, lambda v: -g, 0 * g, length, low, high)
    there = {"Linf": length, "L1": np.inf}[norm]
    bounds = np.r_[np.c_[0 * g, np.minimum(high, there)], np.c_[0 * g, np.minimum(-low, there)]]
    sums = {} if norm == "Linf" else {"A_ub": np.ones((1, 2 * len(g))), "b_ub": [length]}
    return -linprog(np.r_[-g, g], bounds=bounds, **sums).fun


def least(norm, g, gain, low, high):
    """The least size of a move inside the box that gains so much along g; infinite where none does."""
    best = np.where(g > 0, high, low)
    most = np.where(g == 0, 0, g * np.where(g == 0, 0, best))
    if gain <= 0:
        return 0.0
    if most.sum() < gain:
        return np.inf
    if norm == "L0":
        return 1 + int((np.sort(most)[::-1].cumsum() < gain).sum())
    if norm == "L2":  # the multiplier of the only constraint, from the conditions of optimality
        move = lambda t: np.clip(t * g, low, high)
        last = 1.0
        while g @ move(last) < gain * (1 - 1e-9):
            last *= 2
        return np.linalg.norm(move(brentq(lambda t: g @ move(t) - gain * (1 - 1e-9), 0, last, xtol=1e-14)))
    n = len(g)
    if norm == "L1":
        bounds = np.r_[np.c_[0 * g, high], np.c_[0 * g, -low]]
        return linprog(np.ones(2 * n), -np.r_[g, -g][None], [-gain], bounds=bounds).fun
    one = np.ones((n, 1))
    rows = np.r_[np.c_[np.eye(n), -one], np.c_[-np.eye(n), -one], np.c_[-g[None], 0]]
    bounds = np.r_[np.c_[low, high], [[0, np.inf]]]
    return linprog(np.r_[0 * g, 1], rows, np.r_[np.zeros(2 * n), -gain], bounds=bounds).fun


def _subsets(n, radius, v):
    for chosen in combinations(range(n), min(n, int(radius))):
        yield np.where(np.isin(np.arange(n), chosen), v, 0)


def _solve(norm, cost, slope, start, radius, low, high):
    """SLSQP; in L1 over the parts of v above and below zero, whose sums are linear."""
    if norm == "Linf":
        bounds, more = np.c_[np.maximum(low, -radius), np.minimum(high, radius)], []
    if norm == "L2":
        if radius == 0:
            return np.zeros_like(start)
        bounds = np.c_[low, high]
        more = [{"type": "ineq", "fun": lambda v: (radius**2 - v @ v) / radius, "jac": lambda v: -2 * v / radius}]
    if norm == "L1":
        both = np.r_[np.eye(len(start)), -np.eye(len(start))]
        found = minimize(
            lambda u: cost(u @ both),
            np.r_[start.clip(0), -start.clip(None, 0)],
            jac=lambda u: both @ slope(u @ both),
            bounds=np.r_[np.c_[0 * start, high], np.c_[0 * start, -low]],
            constraints=[{"type": "ineq", "fun": lambda u: radius - u.sum(), "jac": lambda u: -np.ones_like(u)}],
            method="SLSQP",
            options={"ftol": 1e-16, "maxiter": 500},
        )
        return found.x @ both
    return minimize(
        cost, start, jac=slope, bounds=bounds, constraints=more, method="SLSQP", options={"ftol": 1e-16, "maxiter": 500}
    ).x

"""Programmes: one example's question, written down for a solver of mixed-integer linear programmes.

All in float64 numbers and moves: a column's move is told in shares of its box, so that 0 is home and figures of a
table's own units do not spoil the solver's tolerances.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..engine.affine import Piecewise

Array = NDArray[Any]
NEARLY = 1e-9
"""What of a box or a step is nothing."""
SOON = 10.0
"""Seconds that a linear programme never takes."""

Ends = list[tuple[Array, Array]]
"""The least and the greatest value that goes into each ReLU, layer by layer."""

Aim = Literal["count", "L1", "Linf", "margin"]
"""What is made small: the number of features, a cost; or large: the margin."""


@dataclass(frozen=True, eq=False)
class Space:
    """What one example may be turned into.

    Args:
        home: where it is [D].
        low, high: the box [D], finite; home lies in it.
        group: the feature that each column belongs to [D], from 0.
        movable: which features may change [F].
        weight: what a move of each column by one costs [D].
        part: columns with equal numbers add up before a norm is taken [D]; each alone unless given.
        choices: (columns [c], values [m, c]): if their feature changes, the columns together take one of the values.
        grids: column -> (start, step): if its feature changes, it is start + a whole number of steps.
        sums: coefficients [n, D] and what ``coefficients @ x`` must not be below [n].
        banned: sets of features [q, F] of which not all may change.
    """

    home: Array
    low: Array
    high: Array
    group: Array
    movable: Array
    weight: Array
    part: Array | None = None
    choices: Sequence[tuple[Array, Array]] = ()
    grids: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    sums: tuple[Array, Array] | None = None
    banned: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def free(self) -> Array:
        """The columns that can move at all [D]."""
        return self.movable[self.group] & (self.high > self.low)

    @property
    def box(self) -> tuple[Array, Array]:
        """Where columns can be [D]."""
        return np.where(self.free, self.low, self.home), np.where(self.free, self.high, self.home)

    def changed(self, x: Array) -> Array:
        """Which features differ from home [F]."""
        return np.bincount(self.group, x != self.home, len(self.movable)) > 0

    def size(self, x: Array, aim: Aim) -> float:
        """What a point costs, in ``"L1"`` or ``"Linf"``."""
        move = self.weight * abs(x - self.home)
        if self.part is not None:
            move = np.bincount(self.part, move)
        return float(move.sum() if aim == "L1" else move.max(initial=0.0))

    def within(self, cost: float) -> "Space":
        """The part of the box in which no column alone costs more."""
        with np.errstate(divide="ignore"):
            far = np.where(self.weight > 0, cost / self.weight, np.inf)
        return replace(self, low=np.maximum(self.low, self.home - far), high=np.minimum(self.high, self.home + far))


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solver says: the variables (None if it has none), the least that the aim can be, whether it is sure."""

    v: Array | None
    bound: float
    done: bool

    @property
    def infeasible(self) -> bool:
        return self.done and self.v is None


class Programme:
    """Variables with bounds, some of them whole, and sums over them that must not be below their bounds."""

    def __init__(self) -> None:
        self.low, self.high, self.whole = np.empty(0), np.empty(0), np.empty(0)
        self._parts: list[tuple[Array, Array, Array]] = []
        self._least: list[Array] = []
        self._count = 0

    def add(self, low: Any, high: Any, whole: bool = False) -> Array:
        """New variables; where they stand."""
        low, high = np.broadcast_arrays(np.atleast_1d(np.asarray(low, float)), np.asarray(high, float))
        at = np.arange(len(self.low), len(self.low) + len(low))
        self.low, self.high = np.r_[self.low, low], np.r_[self.high, high]
        self.whole = np.r_[self.whole, np.full(len(low), float(whole))]
        return at

    def require(self, least: Any, *terms: tuple[Any, Array]) -> None:
        """The sum of coefficients [n, c] times variables [c], over all terms, is at least ``least`` [n].

        Coefficients [n] belong to one variable in each sum.
        """
        least = np.atleast_1d(np.asarray(least, float))
        for coefficients, at in terms:
            a = np.asarray(coefficients, float)
            if a.ndim < 2:
                rows, cols, values = np.arange(len(at)), at, np.broadcast_to(a, len(at))
            else:
                rows, cols = np.nonzero(a)
                values, cols = a[rows, cols], at[cols]
            self._parts.append((rows + self._count, cols, values))
        self._least.append(least)
        self._count += len(least)

    def relu(self, weight: Array, bias: Array, v: Array, low: Array, high: Array) -> Array:
        """New variables max(0, weight @ v + bias), where the sum lies between ``low`` and ``high``.

        Tjeng, Xiao, Tedrake (ICLR 2019), eq. 5: one whole variable for each whose sign is open.
        """
        h = self.add(np.maximum(low, 0), np.maximum(high, 0))
        some = high > 0
        self.require(bias[some], (np.ones(some.sum()), h[some]), (-weight[some], v))
        on = low >= 0
        self.require(-bias[on], (-np.ones(on.sum()), h[on]), (weight[on], v))
        open_ = some & ~on
        a = self.add(np.zeros(open_.sum()), 1, whole=True)
        self.require((low - bias)[open_], (-np.ones(len(a)), h[open_]), (weight[open_], v), (low[open_], a))
        self.require(np.zeros(len(a)), (-np.ones(len(a)), h[open_]), (high[open_], a))
        return h

    def solve(self, cost: Array, seconds: float, relaxed: bool = False) -> Solved:
        """The least of ``cost @ variables``; ``relaxed``, none of them need be whole."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        if seconds <= 0:
            return Solved(None, -np.inf, False)
        rows, cols, values = (np.concatenate(t) if t else np.empty(0, int) for t in zip(*self._parts, strict=True))
        matrix = csr_array((values, (rows, cols)), (self._count, len(self.low)))
        told = milp(
            np.pad(cost, (0, len(self.low) - len(cost))),
            integrality=None if relaxed else self.whole,
            bounds=Bounds(self.low, self.high),
            constraints=LinearConstraint(matrix, np.concatenate(self._least)) if self._count else None,
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
        if told.status == 2:
            return Solved(None, np.inf, True)
        if told.status == 0:
            return Solved(told.x, told.fun if told.mip_dual_bound is None else told.mip_dual_bound, True)
        return Solved(told.x, -np.inf if told.mip_dual_bound is None else told.mip_dual_bound, False)


def span(weight: Array, bias: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Between what values weight @ v + bias lies, for v between ``low`` and ``high``."""
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    return up @ low + down @ high + bias, up @ high + down @ low + bias


def layers(net: Piecewise) -> list[tuple[Array, Array]]:
    """Weights and biases of what goes into the ReLUs, and last of the output."""
    return [(a.weight.numpy(), a.bias.numpy()) for a in (*net.relus, net.out)]


def ends(net: Piecewise, low: Array, high: Array, deadline: float) -> Ends:
    """Between what values the inputs of all ReLUs lie, for inputs in a box: by intervals, then by linear programmes."""
    programme, found = Programme(), []
    v = programme.add(low, high)
    for weight, bias in layers(net)[:-1]:
        least, most = span(weight, bias, programme.low[v], programme.high[v])
        deep = len(v) > net.size
        for i in np.flatnonzero((least < 0) & (most > 0)) if deep else ():
            cost = np.zeros(len(programme.low))
            cost[v] = weight[i]
            slack = 1e-6 * (1 + abs(bias[i]) + max(-least[i], most[i]))  # of the solver
            told = [programme.solve(sign * cost, deadline - monotonic(), relaxed=True) for sign in (1, -1)]
            below, above = (t.bound if t.done and t.v is not None else -np.inf for t in told)
            least[i], most[i] = max(least[i], below + bias[i] - slack), min(most[i], bias[i] - above + slack)
        found.append((least, most))
        v = np.r_[v, programme.relu(weight, bias, v, least, most)]
    return found


Forms = tuple[Array, Array]
"""Affine forms of a network's variables: weights [n, V] and constants [n]."""


class Question:
    """The best point of a space at which all forms of one alternative are at least ``by``, as a programme.

    Args:
        net: the model.
        space: what may be changed, and how.
        ways: the alternatives: of each, what must be reached.
        by: how far above 0.
        between: bounds of what goes into the ReLUs, see :func:`ends`.
        aim: what is made small or large.
        most: no more features than this may change.
    """

    def __init__(
        self,
        net: Piecewise,
        space: Space,
        ways: Sequence[Forms],
        by: float,
        between: Ends,
        aim: Aim,
        most: int | None = None,
    ) -> None:
        self.net, self.space, self.ways, self.by, self.aim = net, space, ways, by, aim
        self.programme = p = Programme()
        self.unit = np.where(space.free, space.box[1] - space.box[0], 1.0)
        self.y = self._moves(p)
        self.picks: list[Array] = []
        counted = aim == "count" or most is not None or space.choices or space.grids or len(space.banned)
        self.z = self._features() if counted else None
        if self.z is not None:
            p.require(1.0 - space.banned.sum(1), (-1.0 * space.banned, self.z))
        if self.z is not None and most is not None:
            p.require(-most, (-np.ones((1, len(self.z))), self.z))
        v = self.y
        for (weight, bias), (low, high) in zip(layers(net)[:-1], between, strict=True):
            v = np.r_[v, p.relu(*self._moved(weight, bias), v, low, high)]
        self.more = self._reach(v)
        self.cost = self._costs(p, self.y)

    def _moves(self, p: Programme) -> Array:
        """The moves of all columns, as the box and the sums allow them."""
        space = self.space
        low, high = space.box
        y = p.add((low - space.home) / self.unit, (high - space.home) / self.unit)
        if space.sums is not None:
            a, least = space.sums
            p.require(least - a @ space.home, (a * self.unit, y))
        return y

    def _moved(self, weight: Array, bias: Array) -> Forms:
        """Affine forms of inputs and units as such of moves and units."""
        d = self.net.size
        return np.c_[weight[:, :d] * self.unit, weight[:, d:]], bias + weight[:, :d] @ self.space.home

    def _features(self) -> Array:
        """A whole variable for each feature, 1 if it changes, and what a change may be."""
        p, space, features = self.programme, self.space, len(self.space.movable)
        z = p.add(np.zeros(features), np.bincount(space.group, space.free, features) > 0, whole=True)
        left = space.free.copy()
        for columns, values in space.choices:
            own, one = (values == space.home[columns]).all(1), z[space.group[columns]]
            pick = p.add(np.zeros(len(values)), ~own, whole=True)
            self.picks.append(pick)
            p.require([0, 0], (np.outer([1, -1], np.ones(len(pick))), pick), ([[-1], [1]], one[:1]))
            moves = (values - space.home[columns]).T / self.unit[columns][:, None]
            for sign in (1, -1):
                p.require(np.zeros(len(columns)), (sign, self.y[columns]), (-sign * moves, pick))
            left[columns] = False
        for column, (start, step) in space.grids.items():
            y, one = self.y[[column]], z[space.group[[column]]]
            first = np.ceil((space.box[0][[column]] - start) / step - NEARLY)
            last = np.floor((space.box[1][[column]] - start) / step + NEARLY)
            n = p.add(np.minimum(first, 0), np.maximum(last, 0), whole=True)
            p.require(0, (1.0, n), (-first, one))
            p.require(0, (-1.0, n), (last, one))
            for sign in (1, -1):  # unit * y = step * n + (start - home) * one
                unit, shift = self.unit[[column]], start - space.home[[column]]
                p.require(0, (sign * unit, y), (-sign * step, n), (-sign * shift, one))
            left[column] = False
        y, one, zero = self.y[left], z[space.group[left]], np.zeros(left.sum())
        p.require(zero, (-1.0, y), (p.high[y], one))
        p.require(zero, (1.0, y), (-p.low[y], one))
        return z

    def _reach(self, v: Array) -> Array | None:
        """One alternative is reached; where the margin counts, by how much more than ``by``."""
        p = self.programme
        forms = [self._moved(*way) for way in self.ways]
        spans = [span(*form, p.low[v], p.high[v]) for form in forms]
        best = max(float(high.min()) for _, high in spans) - self.by
        more = p.add(0, max(best, 0)) if self.aim == "margin" else None
        which = p.add(np.zeros(len(forms)), 1, whole=True)
        p.require(1, (np.ones((1, len(which))), which))
        for i, ((weight, bias), (low, _)) in enumerate(zip(forms, spans, strict=True)):
            off = np.maximum(self.by - low, 0)
            terms: list[tuple[Any, Array]] = [(weight, v)]
            if more is not None:
                off = off + p.high[more]
                terms.append((-np.ones((len(bias), 1)), more))
            if len(which) > 1:
                terms.append((-off[:, None], which[i : i + 1]))
            p.require(self.by - bias - (off if len(which) > 1 else 0), *terms)
        return more

    def _costs(self, p: Programme, y: Array) -> Array:
        """The coefficients of what is made small, with what variables it takes."""
        space = self.space
        if self.more is not None:
            cost = np.zeros(len(p.low))
            cost[self.more] = -1
            return cost
        if self.aim == "count" and p is self.programme:
            cost = np.zeros(len(p.low))
            cost[self.z] = 1
            return cost
        at = np.flatnonzero(space.free & (space.weight > 0))
        weight = (space.weight * self.unit)[at]
        sizes = d = p.add(np.zeros(len(at)), weight)
        for sign in (1, -1):
            p.require(np.zeros(len(at)), (1.0, d), (sign * -weight, y[at]))
        if self.aim == "Linf":
            part = at if space.part is None else space.part[at]
            member = np.equal.outer(np.unique(part), part)
            sizes = p.add(0, weight.sum())
            p.require(np.zeros(len(member)), (-1.0 * member, d), (np.ones((len(member), 1)), sizes))
        cost = np.zeros(len(p.low))
        cost[sizes] = 1
        return cost

    def solve(self, seconds: float) -> Solved:
        return self.programme.solve(self.cost, seconds)

    def point(self, v: Array) -> Array:
        """The best point where all ReLUs and whole variables stand as they do at ``v`` [D]: free of the solver's slack.

        What a whole variable decides is put there exactly; columns that move by degrees are a linear programme.
        """
        space = self.space
        moves = space.free if self.z is None else v[self.z][space.group] > 0.5
        x = np.where(moves & space.free, space.home + self.unit * v[self.y], space.home)
        left = moves & space.free
        for (columns, values), pick in zip(space.choices, self.picks, strict=True):
            x[columns] = values[v[pick].argmax()] if moves[columns[0]] else space.home[columns]
            left[columns] = False
        for column, (start, step) in space.grids.items():
            if left[column]:
                x[column], left[column] = start + step * np.round((x[column] - start) / step), False
        return np.clip(self._nearest(x, left) if left.any() else x, *space.box)

    def _nearest(self, x: Array, left: Array) -> Array:
        """The columns ``left`` anew, the others as they are at ``x``, where all ReLUs stand as they do there."""
        p, here = Programme(), (x - self.space.home) / self.unit
        y = self._moves(p)
        p.low[y], p.high[y] = np.where(left, p.low[y], here), np.where(left, p.high[y], here)
        slope, shift = np.eye(len(x)), np.zeros(len(x))  # of all variables, as they stand
        for layer in layers(self.net)[:-1]:
            weight, bias = self._moved(*layer)
            weight, bias = weight @ slope, weight @ shift + bias
            on = weight @ here + bias > 0
            sign = np.where(on, 1.0, -1.0)
            p.require(-sign * bias, (sign[:, None] * weight, y))
            slope, shift = np.r_[slope, on[:, None] * weight], np.r_[shift, on * bias]
        forms = [(weight @ slope, weight @ shift + bias) for weight, bias in (self._moved(*way) for way in self.ways)]
        weight, bias = max(forms, key=lambda form: float((form[0] @ here + form[1]).min()))
        p.require(self.by - bias, (weight, y))
        told = p.solve(self._costs(p, y), SOON)
        if told.v is None:  # it stands on the border of another piece: what the first solver said will do
            return x
        move = np.where(abs(told.v[y]) > NEARLY, told.v[y], 0)
        return np.where(left, self.space.home + self.unit * move, x)


@dataclass(frozen=True, eq=False)
class Bound:
    """A point that reaches the goal: its features and its cost are bounds for a better one."""

    count: int
    cost: float


@dataclass(frozen=True, eq=False)
class Answer:
    """The best point of one example, if there is one, and what is proved.

    Attributes:
        x: [D]; None if there is none, none was found, or none that is better than what was known.
        status: ``"optimal"`` (also of what was known), ``"infeasible"`` or ``"time"``.
        fewest: fewer features than this cannot do it; one more than there are: none can.
        least: less than this it cannot cost; where the fewest come first: with as few.
    """

    x: Array | None
    status: Literal["optimal", "infeasible", "time"]
    fewest: int
    least: float


def answer(
    net: Piecewise,
    space: Space,
    ways: Sequence[Forms],
    by: float,
    few: bool,
    aim: Aim,
    most: int | None = None,
    known: Bound | None = None,
    seconds: float = 60.0,
    between: Callable[[Space, float], Ends] | None = None,
) -> Answer:
    """The fewest features that reach one alternative (if they are to be ``few``), and then the least cost.

    Args:
        net, space, ways, by, most: as for :class:`Question`.
        few: whether fewer features come before less cost.
        aim: what the cost is: ``"L1"``, ``"Linf"`` or minus the margin.
        known: a point to be better than.
        seconds: for all; then what was found and proved comes back.
        between: bounds of what goes into the ReLUs, in a space and by a time; :func:`ends` unless given.

    >>> from robustx.engine import Everything, Probe
    >>> from robustx.engine.affine import read
    >>> import torch
    >>> model = torch.nn.Linear(3, 1, bias=False).double()
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0]])})
    >>> net = read(Probe(model, (torch.zeros(1, 3).double(),), Everything()))
    >>> home, box = np.zeros(3), np.ones(3)
    >>> space = Space(home, home, box, np.arange(3), np.ones(3, bool), box)
    >>> found = answer(net, space, [(net.out.weight.numpy(), net.out.bias.numpy() - 5)], 0.0, True, "L1")
    >>> found.x.tolist(), found.status, found.fewest
    ([0.0, 0.5, 1.0], 'optimal', 2)
    """
    deadline, features = monotonic() + seconds, len(space.movable)
    bounds = between or (lambda s, until: ends(net, *s.box, until))
    fewest, x = 0, None

    def ask(space: Space, aim: Aim, most: int | None) -> tuple[Question, Solved]:
        third = monotonic() + (deadline - monotonic()) / 3  # bounds are a means only
        question = Question(net, space, ways, by, bounds(space, third), aim, most)
        return question, question.solve(deadline - monotonic())

    if few:
        question, told = ask(space, "count", most if known is None else known.count - 1)
        if told.infeasible and known is None:
            return Answer(None, "infeasible", features + 1, np.inf)
        if told.infeasible and known is not None:
            fewest = known.count
        else:
            fewest = max(0, int(np.ceil(told.bound - 1e-6))) if np.isfinite(told.bound) else 0
        if told.v is not None:
            x = question.point(told.v)
            known = Bound(round(float(question.cost @ told.v)), space.size(x, aim))
        if known is None:
            return Answer(None, "time", fewest, -np.inf)
        most = known.count
    sure = not few or (known is not None and fewest >= known.count)
    near = space if known is None or aim == "margin" else space.within(known.cost * (1 + 1e-6))
    question, told = ask(near, aim, most)
    if told.infeasible and known is None:
        return Answer(None, "infeasible", features + 1, np.inf)
    if told.v is not None:
        x = question.point(told.v)
    elif told.infeasible and known is not None:  # but for rounding, what is known is the best
        return Answer(x, "optimal" if sure else "time", fewest, known.cost if sure else -np.inf)
    return Answer(x, "optimal" if sure and told.done else "time", fewest, told.bound if sure else -np.inf)

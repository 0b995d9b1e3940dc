"""The exact strategy: models that are affine maps and ReLUs are solved, and what is found is proved to be the best."""

from collections.abc import Callable
from dataclasses import replace
from math import isfinite, log
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from ..engine.affine import Piecewise, Unreadable, forms, read
from ..engine.probe import OutOfTime, Probe
from ..engine.scores import Everything, Output
from ..perturb.goals import Between, Leave, Reach, Surely, Until
from ..perturb.norms import L1, L2, Linf, Norm
from .best import Task
from .choice import Choose
from .domain import Domain, Move, Replace
from .guided import guided
from .nearest import least
from .programme import Aim, Array, Bound, Ends, Forms, Space, answer, ends
from .table import Table

POINTS = 64  # of the boxes, where the model is compared with what was read
TRIES = 5  # at a point that misses the goal by rounding

Ways = Callable[[int], list[Forms]]
"""For an example: the alternatives, of which each is affine forms of the network's variables that must be above 0."""


def exact(task: Task, seconds: float = 60.0) -> None:
    """The smallest set of features that reaches the goal and the least costly change of as few (or that alone), proved.

    The model is read as affine maps with ReLUs between them. Least changes of linear models in a box have closed
    forms; for the rest the default search finds bounds and mixed-integer linear programmes are solved, one example
    after the other (Tjeng, Xiao, Tedrake, ICLR 2019), for ``seconds`` each at most. What is found counts once the model
    itself has confirmed it; what is proved holds to the solver's tolerance of 1e-6.

    Raises:
        Unreadable: the model, the goal, the domain or the cost cannot be written so; says why.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    >>> x = torch.full((2, 4), 0.5, dtype=torch.float64)
    >>> result = CounterfactualExplainer(model, bounds=(0, 1), strategy=exact).generate(x)
    >>> set(result.proved) <= {"optimal", "nothing"}
    True
    """
    todo, spaces = task.todo, _spaces(task)
    if not len(todo):
        return
    net, ways = wanted(_model(task.domain), _points(task, spaces, todo))
    if _linear(task, net, ways, spaces):
        return
    norm = task.domain.norm if isinstance(task.domain, Move | Table | Choose) else None
    if norm is not None and not isinstance(norm, L1 | Linf):
        raise Unreadable(
            f"in the norm {norm} there is an exact answer for linear models in a box only, however many features "
            "change; take the distance 'l1' or 'linf', or 'l0+l1' or 'l0+linf' for the fewest first"
        )
    (guided if task.few or isinstance(task.domain, Choose | Replace) else least)(task, todo)
    aim: Aim = "margin" if norm is None else "L1" if isinstance(norm, L1) else "Linf"
    between = _Between(net)
    for row in todo.tolist():
        _solved(task, row, spaces(row), net, ways(row), aim, seconds, between)


def linear(task: Task) -> bool:
    """Proves what can be proved of a linear model in a box without a solver; whether that settles the task.

    The least cost alone has a closed form. The fewest features are those that gain most, each as far as it may go; if
    these miss the goal, no others reach it. Their number is proved, and their point offered.
    """
    try:
        spaces = _spaces(task)
        read = wanted(_model(task.domain), _points(task, spaces, task.todo)) if len(task.todo) else None
    except Unreadable:
        return False
    return read is None or _linear(task, *read, spaces)


def _linear(task: Task, net: Piecewise, ways: Ways, spaces: "Spaces") -> bool:
    domain, best = task.domain, task.best
    if net.relus or not isinstance(domain, Move) or task.banned is not None:
        return False
    if not (task.few or task.most):
        closed(task, domain, net, ways, spaces)
        return True
    never = task.movable.shape[1] + 1
    for row in task.todo.tolist():
        space = spaces(row)
        few, x = min((_fewest(space, way, _slack(domain.f, net, space.home)) for way in ways(row)), key=lambda t: t[0])
        best.fewest[row] = never if few > (task.most or never) else few
        rows = torch.tensor([row], device=domain.home.device)
        best.offer(rows, task.at(_there(domain, x, space, rows), rows))
    return False


def _fewest(space: Space, way: Forms, slack: float) -> tuple[int, Array]:
    """How many features must move at least for a linear model to reach a goal, and those that gain most at their ends.

    One more than there are if all are not enough.
    """
    weight, bias = way
    now = weight @ space.home + bias
    slope, (low, high) = weight[now.argmin()], space.box
    ends = np.where(slope > 0, high, low)
    gain = np.maximum(slope * (ends - space.home), 0)  # a box that leaves out home may have nothing to gain
    gains = np.bincount(space.group, gain, len(space.movable))
    order = np.argsort(-gains, kind="stable")
    reached = np.r_[0, np.cumsum(gains[order])] >= (-now.min() - slack) * (1 - 1e-12)
    count = int(reached.argmax()) if reached.any() else len(order) + 1
    return count, np.where(np.isin(space.group, order[:count]) & (gain > 0), ends, space.home)


def _solved(
    task: Task, row: int, space: Space, net: Piecewise, ways: list[Forms], aim: Aim, seconds: float, between: "_Between"
) -> None:
    """One example: what is better than what is known is offered, and what is proved is noted."""
    domain, best, f = task.domain, task.best, _model(task.domain)
    rows = torch.tensor([row], device=domain.home.device)
    slack, by = _slack(f, net, space.home), 0.0
    for _ in range(TRIES):
        by += slack
        until = torch.inf if f.meter is None else f.meter.until
        known = Bound(int(best.count[row]), float(best.cost[row])) if bool(best.found[row]) else None
        left = min(seconds, 0.9 * (until - monotonic()))  # the model is to be asked in time
        told = answer(net, space, ways, by, task.few, aim, task.most, known, left, between)
        if told.x is None:
            break
        tried = task.at(_there(domain, told.x, space, rows), rows)
        best.offer(rows, tried)
        if bool(tried.found):
            break
        slack = slack - 2 * float(tried.margin)
    best.fewest[row] = max(int(best.fewest[row]), told.fewest)
    if bool(best.found[row]):
        best.fewest[row] = min(best.fewest[row], best.count[row])
        best.least[row] = best.cost[row] if told.status == "optimal" else min(told.least, float(best.cost[row]))
    if told.status == "time" and left < seconds:
        raise OutOfTime("time is up")


def closed(task: Task, domain: Move, net: Piecewise, ways: Ways, spaces: "Spaces") -> None:
    """The least change of a linear model in a box: to the nearest of some half-spaces, or of their intersections.

    To one half-space it is :meth:`robustx.perturb.norms.Norm.least`; to several at once it is that to the one missed
    most, if the others are reached there as well, and otherwise a linear programme or the least distance of a
    polyhedron.
    """
    best, rows = task.best, task.todo
    told = [(row, spaces(row), way) for row in rows.tolist() for way in ways(row)]
    whose = torch.tensor([row for row, *_ in told], device=rows.device)
    home, low, high, weight = (
        torch.from_numpy(np.array(t)) for t in zip(*((s.home, *s.box, s.weight) for _, s, _ in told), strict=True)
    )
    nearest = [min(zip(a @ s.home + c, a, strict=True), key=lambda form: form[0]) for _, s, (a, c) in told]
    need = -torch.tensor([now for now, _ in nearest], dtype=torch.float64)
    way = torch.from_numpy(np.array([slope for _, slope in nearest])) / weight
    room = torch.where(way > 0, high - home, home - low) * weight
    slack = torch.tensor([_slack(domain.f, net, s.home) for _, s, _ in told], dtype=torch.float64)
    by, left = torch.zeros_like(slack), torch.ones_like(whose, dtype=torch.bool)
    for _ in range(TRIES):
        by = torch.where(left, by + slack, by)
        move = domain.norm.least(way, need + by, room)
        can = (way * move).sum(1) >= (need + by) * (1 - 1e-12)
        for i in (left & can).nonzero().flatten().tolist():
            _, space, (a, c) = told[i]
            if len(c) > 1 and (a @ (home + move / weight)[i].numpy() + c).min() < 0:
                found = _between_all(domain.norm, net, space, (a, c), float(by[i]))
                can[i] = found is not None
                if found is not None:
                    move[i] = (torch.from_numpy(found) - home[i]) * weight[i]
        size = torch.where(can, domain.norm.size(move), torch.inf).to(best.least)
        some = (left & can).nonzero().flatten()
        which = whose[some.to(whose.device)]
        tried = task.at(move[some].to(domain.home), which)
        best.offer(which, tried)
        left = left & can
        left[some] = ~tried.found.cpu()
        slack[some] -= 2 * tried.margin.clamp(max=0).cpu().double()
        if not bool(left.any()):
            break
    best.least[rows] = torch.full_like(best.least, torch.inf).scatter_reduce(0, whose, size, "amin")[rows]
    best.fewest[rows] = torch.where(best.least[rows] < torch.inf, 1, task.movable.shape[1] + 1)
    best.least[rows] = torch.where(best.found[rows], torch.minimum(best.least, best.cost)[rows], best.least[rows])


def _between_all(norm: Norm, net: Piecewise, space: Space, way: Forms, by: float) -> Array | None:
    """The nearest point of a box at which all forms of a linear model are at least ``by``; None if there is none.

    In L2 the least distance of a polyhedron: Lawson, Hanson (1974), chapter 23, by non-negative least squares.
    """
    if not isinstance(norm, L2):
        return answer(net, space, [way], by, False, "L1" if isinstance(norm, L1) else "Linf").x
    from scipy.optimize import nnls

    (weight, bias), free, d = way, space.free, int(space.free.sum())
    unit, (low, high) = 1 / space.weight[free], space.box
    far = np.r_[by - bias - weight @ space.home, (low - space.home)[free] / unit, (space.home - high)[free] / unit]
    a = np.c_[np.r_[weight[:, free] * unit, np.eye(d), -np.eye(d)], far].T
    u, missed = nnls(a, np.eye(d + 1)[d])
    if missed < 1e-9:
        return None
    r = a @ u - np.eye(d + 1)[d]
    x = space.home.copy()
    x[free] = np.clip(space.home[free] - unit * r[:d] / r[d], low[free], high[free])
    return x


# --- what is asked ----------------------------------------------------------------------------------------


def wanted(f: Probe, points: Tensor | None = None) -> tuple[Piecewise, Ways]:
    """The model of a probe whose score is a goal, and what its variables must fulfil for the goal.

    Args:
        f: at the inputs.
        points: where the model is compared with what was read [N, D].

    Raises:
        Unreadable: the model is no network of affine maps and ReLUs, or the goal is not made of its outputs likewise.
    """
    goal = f.of
    if isinstance(goal, Leave | Reach | Surely):
        net = read(f.to(of=Everything()), points)
        weight, bias = net.out.weight.numpy(), net.out.bias.numpy()
        if len(bias) == 1:  # the logit of class 1 against class 0
            weight, bias = np.r_[-weight, weight] / 2, np.r_[-bias, bias] / 2
        if isinstance(goal, Surely) and len(bias) > 2:
            raise Unreadable("the probability of one of several classes is not made of ReLUs; leave out min_prob")
        return net, _classes(goal, weight, bias)
    if isinstance(goal, Between):
        return _interval(f, goal, points)
    if isinstance(goal, Until):
        net = read(f.to(of=replace(goal, by=0.0)), points)
        weight, bias = net.out.weight.numpy(), net.out.bias.numpy()
        return net, lambda row: [(weight, bias - _of(goal.by, row))]
    raise Unreadable(f"there is no exact answer for the goal {type(goal).__name__}")


def _classes(goal: Leave | Reach | Surely, weight: Array, bias: Array) -> Ways:
    def ways(row: int) -> list[Forms]:
        y, by = int(goal.y[row]), _of(goal.by, row)
        leave = isinstance(goal, Leave)
        if isinstance(goal, Surely):
            leave, by = goal.leave, by + log(goal.least / (1 - goal.least))
        others = np.arange(len(bias)) != y
        lead, apart = weight[others] - weight[y], bias[others] - bias[y]
        if leave:
            return [(lead[i : i + 1], apart[i : i + 1] - by) for i in range(len(lead))]
        return [(-lead, -apart - by)]

    return ways


def _interval(f: Probe, goal: Between, points: Tensor | None) -> tuple[Piecewise, Ways]:
    number = Output(goal.target)
    own = callable(goal.target)
    net = read(f.to(of=number if own else Everything()), points)
    shown = torch.cat([net.out.bias[None], net.out.bias + net.out.weight.T]).reshape(-1, *net.shape)

    def ways(row: int) -> list[Forms]:
        v = shown if own else number.value(shown, torch.full((len(shown),), row))
        form = forms(v.reshape(-1, 1), len(shown) - 1)
        w, c, by = form.weight.numpy(), form.bias.numpy(), _of(goal.by, row)
        ends = [(sign, sign * _of(end, row)) for sign, end in ((1, goal.low), (-1, goal.high))]
        told = [(sign * w, sign * c - end - by) for sign, end in ends if isfinite(end)]
        return [(np.concatenate([w for w, _ in told]), np.concatenate([c for _, c in told]))]

    return net, ways


def _of(value: float | Tensor, row: int) -> float:
    return float(value[row]) if isinstance(value, Tensor) and value.ndim else float(value)


def _slack(f: Probe, net: Piecewise, home: Array) -> float:
    """By how much rounding may change a margin."""
    size = float(net(torch.from_numpy(home)[None]).abs().max())
    return 4 * float(torch.finfo(f.point.dtype).eps) * max(size, 1e-3)


class _Between:
    """Bounds of what goes into a network's ReLUs, made once for each box."""

    def __init__(self, net: Piecewise) -> None:
        self.net = net
        self.known: dict[bytes, Ends] = {}

    def __call__(self, space: Space, until: float) -> Ends:
        low, high = space.box
        key = low.tobytes() + high.tobytes()
        if key not in self.known:
            self.known[key] = ends(self.net, low, high, until)
        return self.known[key]


# --- domains as plain numbers -----------------------------------------------------------------------------

Spaces = Callable[[int], Space]


def _model(domain: Domain) -> Probe:
    """The goal at the inputs."""
    if not isinstance(domain, Move | Table | Replace | Choose):
        raise Unreadable(f"there is no exact answer in the domain {type(domain).__name__}")
    norm = L1() if isinstance(domain, Replace) else domain.norm
    if not isinstance(norm, L1 | L2 | Linf) or (isinstance(norm, Linf) and norm.scale is not None):
        raise Unreadable(
            f"there is no exact answer in the norm {norm}; take L1, L2 or Linf, and the units of the domain"
        )
    if not all(t.is_floating_point() for t in domain.f.inputs):
        raise Unreadable("its inputs are whole numbers")
    return domain.f


def _spaces(task: Task) -> Spaces:
    """What each example may be turned into.

    Raises:
        Unreadable: the domain is not known, or has no ends.
    """
    domain, f, features = task.domain, _model(task.domain), task.movable.cpu().numpy()
    if task.banned is not None:
        banned, allowed = task.banned.cpu().numpy(), _spaces(replace(task, banned=None))
        return lambda i: replace(allowed(i), banned=banned[i][banned[i].any(1)])
    labels = domain.features.labels(f.examples).cpu().numpy()
    home = f.point.cpu().double().numpy()
    if isinstance(domain, Replace):
        there = f.packing.pack(domain.inputs(torch.ones_like(domain.home))).cpu().double().numpy()
        return lambda i: _listed(home[i], there[i : i + 1], labels[i], features[i], 0.0)
    if isinstance(domain, Choose):
        values = f.packing.pack(domain.alternatives).cpu().double().numpy()
        return lambda i: _listed(home[i], values, labels[i], features[i], 1.0)
    if isinstance(domain, Table):
        return _rows(domain, features)
    assert isinstance(domain, Move)
    low, high = (end.expand(f.point.shape).cpu().double().numpy() for end in (domain.low, domain.high))
    weight = 1 / domain.unit.expand(f.point.shape).cpu().double().numpy()
    return lambda i: Space(home[i], low[i], high[i], labels[i], features[i], weight[i])


def _listed(home: Array, values: Array, group: Array, movable: Array, weight: float) -> Space:
    """Features that stay or take what one of several rows [m, D] has in their place."""
    every = np.concatenate([home[None], values])
    choices = [(at, values[:, at]) for at in (np.flatnonzero(group == g) for g in range(len(movable))) if len(at)]
    return Space(home, every.min(0), every.max(0), group, movable, np.full(len(home), weight), choices=choices)


def _rows(domain: Table, movable: Array) -> Spaces:
    """Rows of a table, from their codes: what is exact there is not to suffer from how the model takes it."""
    schema, codes = domain.schema, domain.codes
    ends = schema.limits(codes)
    for feature, *bounds in zip(schema.features, *(end.unbind(1) for end in ends), strict=True):
        if feature.mutable and not all(bool(b.isfinite().all()) for b in bounds):
            raise Unreadable(f"feature {feature.name!r} has no end: give it a range")
    offset, scale, weight = (
        np.zeros(schema.width),
        np.ones(schema.width),
        1 / domain.relaxed.unit[0].cpu().double().numpy(),
    )
    grids: dict[int, tuple[float, float]] = {}
    choices: list[tuple[Array, Array]] = []
    where = np.zeros(schema.width, int)
    for i, (feature, place) in enumerate(zip(schema.features, schema.places, strict=True)):
        where[place.columns] = i
        if place.block:
            choices.append((np.arange(place.start, place.start + place.width), np.eye(place.width)))
            continue
        offset[place.start], scale[place.start] = place.offset, place.scale
        if feature.grid is not None:
            start, step = feature.grid
            grids[place.start] = (start - place.offset) / place.scale, abs(step / place.scale)
    told = schema.sums()
    sums = None
    if told:
        a = np.stack([c.numpy() for c, _, _ in told])[:, where]
        sums = a * scale, np.array([bound for _, bound, _ in told]) - a @ offset

    def space(row: int) -> Space:
        home, low, high = np.zeros(schema.width), np.zeros(schema.width), np.zeros(schema.width)
        for i, (feature, place) in enumerate(zip(schema.features, schema.places, strict=True)):
            own = codes[row, i]
            if place.block:
                may = feature.may_become()[int(own)].double().numpy()
                home[place.start + int(own)] = 1
                high[place.columns] = may if feature.mutable else home[place.columns]
                low[place.start + int(own)] = high[place.columns].sum() == 1
            else:
                home[place.start] = (float(own) - place.offset) / place.scale
                here = sorted((float(end[row, i]) - place.offset) / place.scale for end in ends)
                low[place.start], high[place.start] = here
        return Space(home, low, high, where, movable[row], weight, where, choices, grids, sums)

    return space


def _there(domain: Domain, x: Array, space: Space, rows: Tensor) -> Tensor:
    """A point of the domain [1, Z], from what the model is to see [D]."""
    sets = torch.from_numpy(space.changed(x))[None].to(rows.device)
    if isinstance(domain, Replace):
        return sets.to(domain.home)
    if isinstance(domain, Choose):
        return _choice(domain, x, space).to(domain.home)
    if isinstance(domain, Table):
        there = torch.from_numpy(x)[None].to(domain.home)
        moved = torch.where(domain.features.spread(sets.to(there), rows) > 0, there, domain.home[rows])
        return domain.allowed(moved, rows, sets)
    return torch.from_numpy((x - space.home) * space.weight)[None].to(domain.home)


def _choice(domain: Choose, x: Array, space: Space) -> Tensor:
    """Which alternative each feature has [1, F]; 0: its own."""
    told = torch.zeros(1, len(space.movable))
    changed = space.changed(x)
    for columns, values in space.choices:
        g = space.group[columns[0]]
        if changed[g]:
            told[0, g] = 1 + abs(values - x[columns]).sum(1).argmin()
    return told


def _points(task: Task, spaces: Spaces, rows: Tensor) -> Tensor:
    """Random points of some examples' boxes, drawn by key."""
    noise = replace(task.noise, method="exact")
    width = _model(task.domain).point
    draws = -(-POINTS // len(rows))
    u = torch.stack([noise.uniform(width.shape[1], width.double()) for _ in range(draws)])
    boxes = [spaces(row).box for row in rows.tolist()[:POINTS]]
    low, high = (torch.from_numpy(np.array(end)).to(u) for end in zip(*boxes, strict=True))
    return torch.lerp(low, high, u[:, rows[: len(boxes)]]).flatten(0, 1)

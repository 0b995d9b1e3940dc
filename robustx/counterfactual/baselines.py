"""Named strategies: what others have proposed, in plain form, for every goal and within the same constraints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..attacks.carlini import weigh
from ..attacks.found import Found
from ..engine.checks import ArgumentError
from ..engine.packing import finest
from ..engine.randomness import Noise
from .best import Strategy, Task
from .domain import Domain, Move, Moved, Replace
from .known import Known
from .table import Table, box_of, graded, moves_of, settled

NEAR = 32  # known examples that are tried in the place of an example
HALVINGS = 12  # of a sphere's radius
DRAWN = 2**22  # numbers that are drawn at once
LONG = 8  # times as many steps as for a set of features has the descent with all of them
RATE = 0.05  # of the room that there is: how far a step goes at first
RAISES = 6  # of a weight, ten times as much each
TOGETHER = 4  # counterfactuals of an example that are looked for together


# --- from known examples ------------------------------------------------------------------------------------


def nearest_unlike(task: Task) -> None:
    """The nearest known example that reaches the goal, or as much of it as the constraints let an example become.

    The nearest unlike neighbour: Keane, Smyth (ICCBR 2020). Where the constraints keep it from reaching the goal, the
    next one is tried.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> explainer = CounterfactualExplainer(model, bounds=(0, 2), strategy="nearest-unlike")
    >>> explainer.fit(torch.tensor([[0.1, 0.2], [1.9, 0.8], [1.2, 0.3]])).generate(torch.zeros(1, 2)).counterfactual
    tensor([[1.2000, 0.3000]])
    """
    domain, rows = graded(task.domain, "nearest-unlike"), task.todo
    found = _unlike(task, domain, "nearest-unlike")
    task.best.offer(rows, task.at(found.z, rows, found.margin))


def nice(task: Task, name: str = "nice", near: bool = False) -> None:
    """Features of the nearest unlike neighbour are taken over one by one until the goal is reached, the best first.

    Brughmans, Leyman, Martens (Data Mining and Knowledge Discovery 38, 2024), section 3: the best is what gains most,
    or with ``near`` what gains most for what it costs. Where features can only be taken over together, all are.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> explainer = CounterfactualExplainer(model, bounds=(0, 2), strategy="nice")
    >>> explainer.fit(torch.tensor([[0.1, 0.2], [1.9, 0.8], [1.2, 0.3]])).generate(torch.zeros(1, 2)).counterfactual
    tensor([[1.2000, 0.0000]])
    """
    domain, rows = graded(task.domain, name), task.todo
    there = _unlike(task, domain, name)
    whole, index = torch.ones_like(there.success), there.success.nonzero().squeeze(1)
    now = Found(domain.home[rows], task.best.margin[rows], task.best.cost[rows]).at(index)
    for _ in range(task.movable.shape[1]):
        r, goal = rows[index], there.z[index]
        left = domain.changed(goal, r) & ~domain.changed(now.z, r)
        n, which = _one_each(left)
        tried = _seen(domain, domain.put(now.z[n], r[n], which, goal[n]), r[n])
        gain = finest(tried.margin) - finest(now.margin[n])
        if near:
            gain = gain / (finest(tried.size) - finest(now.size[n])).clamp(min=1e-12)
        some = left.any(1)
        now, index = tried.at(_largest(gain.nan_to_num(-torch.inf), left)[some]), index[some]
        good = now.success
        task.best.offer(rows[index[good]], task.at(now.z[good], rows[index[good]], now.margin[good]))
        whole[index[good]] = False
        now, index = now.at(~good), index[~good]
        if not len(index):
            break
    task.best.offer(rows[whole], task.at(there.z[whole], rows[whole], there.margin[whole]))


def _unlike(task: Task, domain: Move | Table, name: str) -> Found:
    """What becomes of each example still looked for in the place of the nearest known one that reaches its goal."""
    if task.known is None:
        raise ArgumentError(f"strategy {name!r} takes values from known examples: call fit(X) first")
    best = Found.nothing(domain.home[task.todo])
    for pick in task.known.nearest(domain, task.todo, NEAR).unbind(1):
        left = (~best.success & (pick >= 0)).nonzero().squeeze(1)
        if not len(left):
            break
        r = task.todo[left]
        z = domain.allowed(domain.points(task.known.z[pick[left]], r), r, task.movable[r])
        best = best.put(left, best.at(left).stronger(_seen(domain, z, r)))
    return best


# --- by drawing ---------------------------------------------------------------------------------------------


def growing_spheres(task: Task) -> None:
    """The least costly of random points that reach the goal; then what moved least goes home, while the goal stays.

    Laugel et al. (IPMU 2018), algorithms 1 and 2: a sphere is halved until no point drawn in it reaches the goal, and
    then the layer around it is searched. ``budget`` points each (fewer of very large examples), keyed by example, in
    the units of costs; within a schema they are put where it holds before they are tried.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> explainer = CounterfactualExplainer(model, bounds=(0, 2), strategy="growing-spheres")
    >>> explainer.generate(torch.zeros(1, 2)).valid
    tensor([True])
    """
    domain, rows = graded(task.domain, "growing-spheres"), task.todo
    region = box_of(domain).within(rows, task.movable[rows])
    room = region.held(torch.maximum(-region.low, region.high))
    radius, best = torch.linalg.vector_norm(room, dim=1), Found.nothing(domain.home[rows])
    left = (radius > 0).nonzero().squeeze(1)
    noise = task.noise.at(rows)
    for k in range(HALVINGS):
        found = _drawn(task, domain, rows[left], 0 * radius[left], radius[left], noise.at(left).again(k))
        before = best.at(left)
        best = best.put(left, before.where(~before.success, before.stronger(found)).smaller(found))
        left = left[found.success | ~before.success]
        radius[left] /= 2
    left = best.success.nonzero().squeeze(1)
    found = _drawn(task, domain, rows[left], radius[left], 2 * radius[left], noise.at(left).again(HALVINGS))
    best = best.put(left, best.at(left).smaller(found))
    z = _sparser(domain, best, rows)
    task.best.offer(rows, task.at(z, rows))


def _drawn(task: Task, domain: Move | Table, rows: Tensor, low: Tensor, high: Tensor, noise: Noise) -> Found:
    """The least costly of points that are drawn between two spheres and reach the goal; else the one nearest to it."""
    d = box_of(domain).home.shape[1]
    n, best = max(1, min(task.budget, DRAWN // d)), [Found.nothing(domain.home[rows[:0]])]
    free = domain.features.spread(task.movable.to(low))
    for some in torch.arange(len(rows), device=rows.device).split(max(1, DRAWN // (n * d))):
        draws, own = noise.at(some), free[rows[some]][:, None]
        way = draws.normal(n * d, low).reshape(-1, n, d) * own
        share = draws.uniform(n, low)[..., None]
        size, shell = own.sum(2, keepdim=True).clamp(min=1), (low / high)[some][:, None, None]
        away = high[some][:, None, None] * (share + (1 - share) * shell**size) ** (1 / size)
        moves = away * way / torch.linalg.vector_norm(way, dim=2, keepdim=True).clamp(min=torch.finfo(way.dtype).tiny)
        every = rows[some].repeat_interleave(n)
        found = _seen(domain, settled(domain, moves.flatten(0, 1), every, task.movable[every]), every)
        margin, cost = found.margin.reshape(-1, n), found.size.reshape(-1, n)
        cost = torch.where(margin > 0, cost, torch.inf)
        pick = torch.where((margin > 0).any(1), cost.argmin(1), margin.argmax(1))
        best.append(found.at(torch.arange(len(some), device=rows.device) * n + pick))
    return Found(*(torch.cat([getattr(b, name).to(best[-1].z) for b in best]) for name in ("z", "margin", "size")))


def _sparser(domain: Move | Table, found: Found, rows: Tensor, may: Tensor | None = None) -> Tensor:
    """The features that moved least go home one after the other, until the goal would be lost [N, Z].

    Laugel et al. (IPMU 2018), algorithm 2; Mothilal et al. (FAT* 2020), section 3.4. Only those go that ``may`` [N, F].
    """
    z, left = found.z.clone(), found.success.nonzero().squeeze(1)
    for _ in range(domain.features.count):
        r = rows[left]
        size = domain.features.gather(moves_of(domain, z[left], r).abs(), r)
        movable = domain.changed(z[left], r) if may is None else domain.changed(z[left], r) & may[left]
        left, size, movable = (t[movable.any(1)] for t in (left, size, movable))
        least = size.masked_fill(~movable, torch.inf).argmin(1, keepdim=True)
        home = domain.back(z[left], rows[left], torch.zeros_like(movable).scatter(1, least, True))
        good = domain.probe.value(home, rows[left]) > 0
        left = left[good]
        z[left] = home[good]
        if not len(left):
            break
    return z


# --- evidence taken away ------------------------------------------------------------------------------------


def sedc(task: Task) -> None:
    """Features give way, in the order of a best-first search over sets of them, until the goal is reached.

    Martens, Provost (MIS Quarterly 38, 2014); Vermeire et al. (Pattern Analysis and Applications 25, 2022), for
    pictures, and with a class to reach. The set with the largest margin is extended by each other feature alone; of the
    first sets that reach the goal the surest is taken. All examples and extensions are one batch; no more than twice as
    many sets are extended as there are features.

    They give way to the reference of the domain; where features move, to the mean of known examples.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> explainer = CounterfactualExplainer(model, reference=0.0, strategy="sedc")
    >>> explainer.generate(torch.tensor([[0.6, 0.9]])).counterfactual
    tensor([[0.6000, 0.0000]])
    """
    domain, rows = task.domain, task.todo
    give, f = _giving(task), domain.features.count
    best, index = Found.nothing(domain.home[rows]), torch.arange(len(rows), device=rows.device)
    chosen = torch.zeros_like(task.movable[rows])
    parents, worth = chosen[:, None, :][:, :0], domain.home.new_zeros(len(rows), 0, f)
    for _ in range(2 * f if len(rows) else 0):
        r = rows[index]
        left = task.movable[r] & ~chosen
        n, which = _one_each(left)
        z = give(r[n], chosen[n] | which)
        value = domain.probe.value(z, r[n]).to(worth).nan_to_num(-torch.inf)
        found = Found(z, value, -value)
        margin = torch.full(left.shape, -torch.inf).to(worth)
        margin[left] = value
        some = left.any(1)
        surest = found.at(_largest(value, left)[some])
        best = best.put(index[some], best.at(index[some]).stronger(surest))
        size = chosen.sum(1) + 1
        margin[size >= (f if task.most is None else task.most)] = -torch.inf
        parents, worth = torch.cat([parents, chosen[:, None]], 1), torch.cat([worth, margin[:, None]], 1)
        most, at = worth.flatten(1).max(1)
        done = index[best.success[index]]
        task.best.offer(rows[done], task.at(best.z[done], rows[done], best.margin[done]))
        going = ~best.success[index] & (most > -torch.inf)
        index, parents, worth, at = index[going], parents[going], worth[going], at[going]
        if not len(index):
            break
        chosen = parents[torch.arange(len(index)), at // f].scatter(1, (at % f)[:, None], True)
        ways = ~(parents & ~chosen[:, None]).any(2) & (parents.sum(2) + 1 == chosen.sum(1)[:, None])  # to the same set
        worth = worth.masked_fill(ways[..., None] & (chosen[:, None] & ~parents), -torch.inf)
    left = (~best.success).nonzero().squeeze(1)
    task.best.offer(rows[left], task.at(best.z[left], rows[left], best.margin[left]))


def _giving(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """(rows [N], sets [N, F]) -> points at which these features have given way."""
    domain = task.domain
    if isinstance(domain, Replace):
        return lambda rows, sets: sets.to(domain.home)
    moved = graded(domain, "sedc")
    if task.known is None:
        raise ArgumentError("strategy 'sedc' lets features give way to the mean of known examples: call fit(X) first")
    mean = task.known.z.mean(0, keepdim=True)
    return lambda rows, sets: moved.allowed(moved.points(mean.expand(len(rows), -1), rows), rows, sets)


# --- by gradients -------------------------------------------------------------------------------------------


def wachter(task: Task) -> None:
    """The nearest point on the way down a distance plus what misses the goal, whose weight rises until it is reached.

    Wachter, Mittelstadt, Russell (Harvard Journal of Law & Technology 31, 2018), eq. 2: moves are weighed by the
    inverse of their features' median absolute deviation (of known examples, if there are any). A hinge on the margin
    stands for their squared error, as goals have margins.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> explainer = CounterfactualExplainer(model, bounds=(0, 2), strategy="wachter")
    >>> explainer.generate(torch.tensor([[0.2, 0.2]])).counterfactual.sum(1).round(decimals=1)
    tensor([1.])
    """
    domain, rows = graded(task.domain, "wachter"), task.todo
    rare, weight, best = _rarity(task, domain, rows), _weight(task, rows), Found.nothing(domain.home[rows])
    for _ in range(RAISES):
        left = (~best.success & task.movable[rows].any(1)).nonzero().squeeze(1)
        if not len(left):
            break
        start, slope = box_of(domain).home[rows[left]], partial(_cost_slope, rare[left])
        found = _descended(task, domain, rows[left], start, weight[left], slope)
        best = best.put(left, best.at(left).stronger(found))
        task.best.offer(rows[left], task.at(found.z, rows[left], found.margin))
        weight[left] *= 10


def _cost_slope(rare: Tensor, moves: Tensor) -> Tensor:
    return rare * moves.sign()


def dice(task: Task) -> None:
    """Several counterfactuals of an example at once, near to it and far from one another; the best of them.

    Mothilal, Sharma, Tan (FAT* 2020), eq. 4 with its weights: a hinge on the margin, distances weighed by the inverse
    of features' median absolute deviation (of known examples, if there are any), and the determinant of similarities;
    then section 3.4: what moved less than is usual goes home, while the goal stays reached. Here for any goal and
    within constraints, and all examples and all their counterfactuals are one batch.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = lambda x: torch.stack([x.sum(1), 1 + 0 * x.sum(1)], 1)
    >>> CounterfactualExplainer(model, bounds=(0, 2), strategy="dice").generate(torch.zeros(1, 2)).valid
    tensor([True])
    """
    domain, rows = graded(task.domain, "dice"), task.todo
    copy = torch.arange(TOGETHER, device=rows.device).repeat(len(rows))
    place = torch.arange(len(rows), device=rows.device).repeat_interleave(TOGETHER)
    every, noise = rows[place], task.noise.at(rows).copies(place, copy)
    near, rare = box_of(domain).within(every, task.movable[every]), _rarity(task, domain, every)
    start = near.anywhere(noise.uniform(near.centre.shape[1], near.centre))
    found = _descended(task, domain, every, start, _weight(task, every), partial(_apart, rare))
    z = found.z if task.known is None else _sparser(domain, found, every, _slight(task, domain, found.z, every))
    task.best.offer(every, task.at(z, every))


def _apart(rare: Tensor, moves: Tensor) -> Tensor:
    """The gradient of half the mean weighed distance less the determinant of similarities, for ``TOGETHER`` points."""
    with torch.enable_grad():
        d = moves.detach().requires_grad_()
        points = (d * rare / d.shape[1]).reshape(-1, TOGETHER, d.shape[1])
        apart = (points[:, :, None] - points[:, None]).abs().sum(3)
        alike = torch.linalg.det(1 / (1 + apart) + 1e-4 * torch.eye(TOGETHER).to(apart))
        (g,) = torch.autograd.grad(points.abs().sum() / 2 - TOGETHER * alike.sum(), d)
    return g


@dataclass(frozen=True, eq=False)
class Kept(Moved):
    """Moves of a table that are put where its schema holds; gradients pass as if they had stayed where they were.

    Args:
        table: whose moves they are.
        movable: which features may change [B, F].
    """

    table: Table
    movable: Tensor

    def there(self, z: Tensor, rows: Tensor) -> Tensor:
        there = super().there(z, rows)
        return self.table.allowed(there.detach(), rows, self.movable[rows]) + (there - there.detach())


def _descended(
    task: Task, domain: Move | Table, rows: Tensor, start: Tensor, weight: Tensor, away: Callable[[Tensor], Tensor]
) -> Found:
    """What Adam finds from ``start`` [N, D] down a distance plus ``weight`` [N] times what misses the goal."""
    box = box_of(domain)
    if box.slope is None:
        raise ArgumentError("there is no gradient to follow here; choose another strategy, such as 'growing-spheres'")
    f = box.probe
    if isinstance(domain, Table):
        at = f.at
        assert isinstance(at, Moved)
        f = f.to(at=Kept(at.start, at.unit, at.low, at.high, at.packing, domain, task.movable))
    region = box.within(rows, task.movable[rows]).to(norm=box.norm)
    found = weigh(f, region, rows, start, weight, RATE * region.radius, away, LONG * box.steps)
    z = torch.where(found.success[:, None], found.z, start)
    return _seen(domain, settled(domain, z, rows, task.movable[rows]), rows)


def _weight(task: Task, rows: Tensor) -> Tensor:
    """What a goal weighs that is missed by as much as at home: 1 [N]."""
    return 1 / task.best.margin[rows].abs().clamp(min=1e-6).to(task.domain.home)


def _rarity(task: Task, domain: Move | Table, rows: Tensor) -> Tensor:
    """How many median absolute deviations a move by one unit is [N, D]; 1 where that is not known, or is none."""
    if task.known is None:
        return torch.ones_like(box_of(domain).home[rows])
    usual = _deviation(task.known, domain).median(0, keepdim=True).values
    return torch.where(usual > 0, _units(domain, rows) / usual, 1)


def _slight(task: Task, domain: Move | Table, z: Tensor, rows: Tensor) -> Tensor:
    """Which features moved by less than the median deviation of known examples, and than nine tenths of them [N, F]."""
    assert task.known is not None
    away = _deviation(task.known, domain)
    low = away.masked_fill(away == 0, torch.nan).nanquantile(0.1, dim=0).nan_to_num(0)
    least = torch.minimum(away.median(0).values, low)
    moved = (moves_of(domain, z, rows) * _units(domain, rows)).abs()
    return domain.features.gather((moved >= least).to(z), rows) == 0


def _deviation(known: Known, domain: Move | Table) -> Tensor:
    """How far known examples are from their median, in the first example's units [M, D]."""
    told = box_of(domain).points(known.z, torch.zeros_like(known.f.everyone))
    return (told - told.median(0).values).abs()


def _units(domain: Move | Table, rows: Tensor) -> Tensor:
    """What examples' moves are counted in, in the first example's units [N, D]."""
    unit = box_of(domain).unit
    return (unit / unit[:1]).expand(len(domain.home), -1)[rows]


# --- what they share ----------------------------------------------------------------------------------------


def _seen(domain: Domain, z: Tensor, rows: Tensor) -> Found:
    margin = domain.probe.value(z, rows).to(domain.home).nan_to_num(-torch.inf)
    return Found(z, margin, domain.cost(z, rows).to(domain.home))


def _one_each(sets: Tensor) -> tuple[Tensor, Tensor]:
    """Every member of some sets [n, F] alone: whose it is [m], and the set of it [m, F]."""
    n, j = sets.nonzero(as_tuple=True)
    return n, torch.zeros_like(sets[n]).scatter(1, j[:, None], True)


def _largest(worth: Tensor, sets: Tensor) -> Tensor:
    """Which of the members is worth most in each of some sets [n, F]; ``worth`` [m] in their order."""
    table = torch.full(sets.shape, -torch.inf).to(worth)
    table[sets] = worth
    place = sets.flatten().cumsum(0).reshape(sets.shape) - 1
    return place.gather(1, table.masked_fill(~sets, -torch.inf).argmax(1, keepdim=True)).squeeze(1)


BASELINES: dict[str, Strategy] = {
    "nearest-unlike": nearest_unlike,
    "nice": nice,
    "nice-proximity": partial(nice, name="nice-proximity", near=True),
    "growing-spheres": growing_spheres,
    "sedc": sedc,
    "dice": dice,
    "wachter": wachter,
}

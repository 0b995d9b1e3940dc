"""The guided search: attributions towards what the constraints allow choose the features that change."""

from collections.abc import Iterator
from dataclasses import replace
from math import comb

import torch
from torch import Tensor

from .best import Best, Task
from .domain import members
from .pairs import picks_of

NEAR = 12  # leading features among which whole sets are chosen where not all can be tried


def guided(task: Task, todo: Tensor | None = None) -> None:
    """The smallest set of features that reaches the goal, and the least costly change of as few.

    Attributions towards what the domain allows rank the features; the leading ones are tried together, few or
    many, for all rankings in one batch; what can be taken back is taken back. Then smaller sets are tried and others
    of the same size: all of them while there are at most ``budget``, else those of which attributions promise most.
    Where features give way whole, sets are grown as well, one feature after the other. At last values go back as far as
    the goal stays reached, also for sets with one feature exchanged.

    Args:
        todo: examples to look for [n], also if something has been found; those where nothing has, unless given.
    """
    domain, best, todo = task.domain, task.best, task.todo if todo is None else todo
    if not len(todo):
        return
    hopes = [a.masked_fill(~task.movable, -torch.inf) for a in domain.rankings()]
    clear = keeping_clear(hopes, task.banned)
    for end in domain.farthest():  # from where searches within a set begin, if they fail from home
        z = domain.back(end[todo], todo, ~task.movable[todo])
        best.offer(todo, task.at(z, todo))
    _leading(task, todo, clear)
    drop(task)
    _others(task, todo, clear)
    if domain.whole:
        _climb(task, todo[(best.count > best.fewest)[todo]])
    else:
        _exchange(task, todo, hopes)
    finish(task)


def finish(task: Task) -> None:
    """Values go back as far as the goal stays reached, and features go home that turn out not to be needed."""
    left = task.best.found.nonzero().squeeze(1)
    while len(left):
        refine(task, left)
        left = revert(task, left)


def spare(task: Task) -> None:
    """Takes features home that cost nothing and that the others can do without, as there are under a largest move.

    For the end: while a search for the least cost goes on, what moves for nothing still makes room.
    """
    best = task.best
    fewer = replace(best, few=True)  # of the same points
    left = best.found.nonzero().squeeze(1)
    while len(left):
        before = best.count[left]
        for n, out in members(best.sets[left], best.z.shape[1]):
            rows = left[n]
            trial = task.at(task.domain.back(best.z[rows], rows, out), rows)
            as_good = trial.cost <= best.cost[rows]
            fewer.offer(rows[as_good], trial.at(as_good))
        left = left[best.count[left] < before]


def attempt(task: Task, rows: Tensor, sets: Tensor) -> Tensor:
    """Tries some sets [N, F] of the examples ``rows`` [N]; the margin of each, -inf where it must be kept clear of."""
    domain, best = task.domain, task.best
    margin = torch.full_like(best.margin[rows], -torch.inf)
    size = max(1, 2**24 // max(domain.home.shape[1], 1))  # rows of points held at once
    for some in best.clear(rows, sets).nonzero().squeeze(1).split(size):
        r, s = rows[some], sets[some]
        found = domain.attempt(r, s, domain.back(best.z[r], r, ~s))
        best.offer(r, task.at(found.z, r, found.margin))
        margin[some] = found.margin.to(margin)
    return margin


def _leading(task: Task, todo: Tensor, hopes: list[Tensor]) -> None:
    """Doubles the number of leading features until they do, then bisects between."""
    movable, best = task.movable, task.best
    never = movable.shape[1]
    ranks = [h.argsort(1, descending=True).argsort(1).masked_fill(h == -torch.inf, never) for h in hopes]
    low = torch.zeros_like(best.count)  # failed
    high = torch.full_like(low, movable.shape[1] + 1)  # worked
    top = movable.sum(1) if task.most is None else movable.sum(1).clamp(max=task.most)
    k = torch.ones_like(low)
    left = todo[top[todo] > 0]
    while len(left):
        sets = torch.stack([rank[left] < k[left, None] for rank in ranks])
        again = torch.stack([(sets[:i] == sets[i]).all(2).any(0) for i in range(len(sets))])  # as told by another
        i, n = (~again).nonzero(as_tuple=True)
        attempt(task, left[n], sets[i, n])
        worked = best.count[left] <= k[left]
        high[left] = torch.where(worked, torch.minimum(best.count[left], k[left]), high[left])
        low[left] = torch.where(worked, low[left], k[left])
        bound = torch.minimum(high, top + 1)
        open_ = bound - low > 1
        k = torch.where(high <= movable.shape[1], (low + bound) // 2, torch.minimum(2 * low, top))
        left = left[open_[left] & (low[left] < top[left])]


def drop(task: Task) -> None:
    """Takes one feature out of each set, as long as the rest can still do it."""
    best = task.best
    left = best.found.nonzero().squeeze(1)
    while len(left := left[best.count[left] > 1]):
        before = best.count[left]
        pairs = best.sets[left].nonzero()
        rows = left[pairs[:, 0]]
        attempt(task, rows, best.sets[rows].scatter(1, pairs[:, 1:], False))
        left = left[best.count[left] < before]


def keeping_clear(hopes: list[Tensor], banned: Tensor | None) -> list[Tensor]:
    """Attributions that give up one feature of every banned set [B, q, F]: the one of least promise, or of most."""
    if banned is None:
        return hopes
    told = []
    for hope in hopes:
        for most in (False, True):
            clear = hope.clone()
            for sets in banned.unbind(1):
                left = (sets.any(1) & ~(sets & (clear == -torch.inf)).any(1)).nonzero().squeeze(1)
                sign = -1 if most else 1
                worst = (sign * hope).masked_fill(~sets, torch.inf).argmin(1)
                clear[left, worst[left]] = -torch.inf
            told.append(clear)
    return told


def _others(task: Task, todo: Tensor, hopes: list[Tensor]) -> None:
    """Tries sets of one feature, of two..., up to as many as an example needs by now."""
    movable, whole, best = task.movable, task.domain.whole, task.best
    can = movable.sum(1)
    most = movable.shape[1] if task.most is None else task.most
    known = torch.zeros_like(can)  # all sets of up to so many were tried
    silent = ~torch.stack([(h > 0).any(1) for h in hopes]).any(0)  # no feature does anything alone
    for size in range(1, most + 1):
        left = todo[(best.count[todo] >= size) & (can[todo] >= size)]
        if not len(left):
            break
        # elsewhere a point for each set takes many passes, which are for examples that no ranking leads anywhere
        most_sets = task.budget if whole else task.budget // 8
        few = torch.tensor([comb(c, size) <= most_sets for c in can[left].tolist()], device=left.device)
        few &= known[left] == size - 1 if whole else (silent | ~best.found)[left]
        every, some = left[few], left[~few]
        for rows, sets in _every(every, movable, size):
            attempt(task, rows, sets)
        known[every] = size
        some = some[best.count[some] <= size + 1]
        attempt(task, *_promising(task, some, hopes, size, max(1, task.budget // 20)))
    if whole:
        proved = torch.where(known >= can, movable.shape[1] + 1, known + 1)
        proved = torch.where(best.found, torch.minimum(proved, best.count), proved)
    else:
        proved = torch.ones_like(known)
    best.fewest[todo] = torch.maximum(best.fewest, proved)[todo]  # more may be known of the model


def _climb(task: Task, rows: Tensor) -> None:
    """Adds one feature after the other to the strongest sets of each example, until the goal is reached.

    Where the effects of features depend on one another, no ranking leads to sets that such a beam finds.
    """
    movable, best = task.movable, task.best
    count = movable.shape[1]
    if count > task.budget:  # not even all features may be tried side by side
        return
    width = max(1, task.budget // (4 * count))
    who, sets = rows, torch.zeros_like(movable[rows])
    for size in range(1, (count if task.most is None else task.most) + 1):
        left = best.count[who] > size
        who, sets = who[left], sets[left]
        parent, feature = (movable[who] & ~sets).nonzero(as_tuple=True)
        if not len(parent):
            break
        grown = sets[parent].scatter(1, feature[:, None], True)
        once = torch.cat([who[parent, None], grown.to(who)], 1).unique(dim=0)  # two sets may grow into the same one
        who, sets = once[:, 0], once[:, 1:] > 0
        order = attempt(task, who, sets).nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        order = order[who[order].argsort(stable=True)]
        of_each = who.bincount(minlength=len(best))
        place = torch.arange(len(who), device=who.device) - (of_each.cumsum(0) - of_each)[who[order]]
        who, sets = who[order[place < width]], sets[order[place < width]]
    drop(task)


def _every(rows: Tensor, movable: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All sets of so many movable features of some examples; those with as many of them at once."""
    counts = movable[rows].sum(1)
    for c in counts.unique().tolist():
        some = rows[counts == c]
        picks = picks_of(c, size).to(rows.device)
        places = movable[some].nonzero()[:, 1].reshape(len(some), c)
        members = places[:, picks].flatten(0, 1)
        sets = torch.zeros(len(members), movable.shape[1], dtype=torch.bool, device=rows.device)
        yield some.repeat_interleave(len(picks)), sets.scatter(1, members, True)


def _promising(task: Task, rows: Tensor, hopes: list[Tensor], size: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` sets of ``size`` of which an attribution promises most, if it is half of what is missing at least.

    Attributions towards a point share out what the margin gains on the way there. Sets are made of leading features.
    """
    width = hopes[0].shape[1]
    near = min(NEAR, width)
    if size > near or not len(rows):
        return rows[:0], task.movable[:0]
    hope = torch.stack([h[rows] for h in hopes])
    rank = hope.argsort(2, descending=True).argsort(2).amin(0)
    place = rank.argsort(1)[:, :near]
    picks = picks_of(near, size).to(rows.device)
    promised = hope.gather(2, place.expand(len(hopes), -1, -1))[:, :, picks].sum(3).amax(0)
    missing = -task.domain.probe.value(task.domain.home[rows], rows)
    best, which = promised.topk(min(count, len(picks)), dim=1)
    n, k = (best > missing[:, None].to(best) / 2).nonzero(as_tuple=True)
    members = place[n[:, None], picks[which[n, k]]]
    return rows[n], torch.zeros(len(n), width, dtype=torch.bool, device=rows.device).scatter(1, members, True)


def _exchange(task: Task, todo: Tensor, hopes: list[Tensor], rounds: int = 3) -> None:
    """Exchanges one feature of each set for another, and refines what comes of it, while that costs less."""
    domain, best = task.domain, task.best
    refine(task, todo[best.found[todo]])
    left = todo[best.found[todo] & (best.count[todo] > 1)]  # of one feature, others were tried
    for _ in range(rounds):
        before = best.cost.clone()
        rows, sets = _neighbours(best, left, hopes, max(1, task.budget // 32))
        found = domain.attempt(rows, sets, domain.back(best.z[rows], rows, ~sets))
        trial = task.at(found.z, rows, found.margin)
        good = (trial.found & (trial.count <= best.count[rows])).nonzero().squeeze(1)
        rows = rows[good]
        best.offer(rows, task.at(domain.refine(trial.z[good], rows, trial.sets[good]), rows))
        left = left[(best.cost < before)[left]]
        if not len(left):
            return


def _neighbours(best: Best, rows: Tensor, hopes: list[Tensor], each: int) -> tuple[Tensor, Tensor]:
    """Sets with one feature exchanged for one of which attributions promise most; about ``each`` of an example."""
    sets = best.sets[rows]
    hope = torch.stack([h[rows].argsort(1, descending=True).argsort(1) for h in hopes]).amin(0)
    hope, order = hope.masked_fill(sets | torch.isinf(hopes[0][rows]), hope.shape[1] + 1).sort(1)
    place = torch.arange(min(each, hope.shape[1]), device=rows.device)
    others = each // sets.sum(1, keepdim=True).clamp(min=1, max=each)  # for each member
    others = (place < others) & (hope[:, : len(place)] <= hope.shape[1])
    i, out, into = (sets[:, :, None] & others[:, None]).nonzero(as_tuple=True)
    return rows[i], sets[i].scatter(1, out[:, None], False).scatter(1, order[i, into][:, None], True)


def refine(task: Task, rows: Tensor) -> None:
    """Looks for cheaper points of some examples inside the sets that were found."""
    best = task.best
    best.offer(rows, task.at(task.domain.refine(best.z[rows], rows, best.sets[rows]), rows))


def revert(task: Task, rows: Tensor) -> Tensor:
    """Takes home features of some examples whose change turns out not to be needed; those that had any."""
    best = task.best
    before = best.count[rows]
    for n, out in members(best.sets[rows], best.z.shape[1]):
        of = rows[n]
        best.offer(of, task.at(task.domain.back(best.z[of], of, out), of))
    return rows[best.count[rows] < before]

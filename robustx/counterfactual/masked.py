"""Projected gradient ascent of the features that attributions promise most of: a strategy, a front and an attack."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD, Found, bisect, pgd
from ..attribution.path import mean_grad
from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.features import from_masks
from ..perturb.region import Region
from .best import Best, Task
from .domain import NODES
from .guided import drop, guided
from .nearest import everywhere, polish, steep
from .table import box_of, graded, settled

ROUNDS = 10  # of halving a radius


def masked_pgd(task: Task) -> None:
    """Only the features move that an attribution promises most of, few or many, and each time as little as suffices.

    Projected gradient ascent (Madry et al., ICLR 2018) with all but the leading features masked, for every ranking and
    ever larger numbers of features, its radius bisected in the norm of the costs: see :class:`Front`.

    Raises:
        ArgumentError: features do not move, but give way.
    """
    rows = task.todo
    for part, tried in _fronts(task):
        task.best.offer(part, tried)
    if len(task.todo):
        guided(task)
    if task.few:
        drop(task)
    polish(task, rows)


def numbers(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16... and ``most``: the numbers of features that are tried.

    >>> numbers(10)
    [1, 2, 3, 4, 6, 8, 10]
    """
    halves = {2**j for j in range(most.bit_length())} | {3 * 2**j for j in range(most.bit_length())}
    return sorted({k for k in halves if k < most} | {most}) if most else []


def _fronts(task: Task) -> list[tuple[Tensor, Best]]:
    """For each number of features: examples, and the nearest points found with the leading ones free; as offers."""
    domain = graded(task.domain, "masked-pgd")
    box, most = box_of(domain), int(task.movable.sum(1).max()) if len(task.movable) else 0
    rows = task.todo
    rows = rows[steep(box)[rows] & task.movable[rows].any(1)]
    if not len(rows):
        return []
    hopes = [hope.masked_fill(~task.movable, -torch.inf)[rows] for hope in box.rankings()]
    ranks = torch.stack([hope.argsort(1, descending=True).argsort(1) for hope in hopes])

    def search(region: Region, some: Tensor, start: Tensor | None) -> Found:
        return pgd(box.probe, region, some, box.steps, 2.5 * region.radius / box.steps, start, quiet=True)

    told = []
    for k in numbers(most if task.most is None else min(most, task.most)):
        each = rows.repeat(len(ranks))
        free = (ranks < k).flatten(0, 1) & task.movable[each]
        region = everywhere(box, each, free, box.norm).reachable()
        found = bisect(search, box.probe, region, each, ROUNDS)
        z = settled(domain, found.z, each, free)
        told.append((each, task.at(z, each)))
    return told


@dataclass(frozen=True, eq=False)
class Front:
    """What a change costs when more or fewer features may change.

    Attributes:
        counts: numbers of features.
        cost: the least that was found with no more than so many [B, K]; infinite where nothing was.

    >>> Front((1, 2, 4), torch.tensor([[torch.inf, 0.5, 0.5]])).points(0)
    [(2, 0.5)]
    """

    counts: tuple[int, ...]
    cost: Tensor

    def points(self, example: int) -> list[tuple[int, float]]:
        """The pairs (number of features, cost) of an example of which none is better in both."""
        told: list[tuple[int, float]] = []
        for k, cost in zip(self.counts, self.cost[example].tolist(), strict=True):
            if cost < (told[-1][1] if told else torch.inf):
                told.append((k, cost))
        return told


def pareto(explainer: Any, x: Any, target: Any = "other", **options: Any) -> Front:
    """The trade between few features and a small change, by :func:`masked_pgd`.

    Args:
        explainer: a :class:`CounterfactualExplainer` with bounds or a schema; costs are measured in its distance.
        x, target, options: as for its ``generate``.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[2.0, 2.0, 4.0]])})
    >>> explainer = CounterfactualExplainer(lambda x: model(x) - 4, bounds=(0, 1), distance="linf")
    >>> [(k, round(cost, 2)) for k, cost in pareto(explainer, torch.zeros(1, 3)).points(0)]
    [(2, 0.67), (3, 0.5)]
    """
    kept: list[tuple[int, list[tuple[Tensor, Best]]]] = []

    def trade(task: Task) -> None:
        kept.append((task.movable.shape[1], _fronts(task)))
        for part, tried in kept[-1][1]:
            task.best.offer(part, tried)

    result = explainer.with_(strategy=trade).generate(x, target, **options)
    features, fronts = kept[0]
    counts = tuple(range(1, features + 1))
    cost = torch.full((len(result), features + 1), torch.inf, dtype=torch.float64)
    for part, tried in fronts:
        good = tried.found
        at = part[good] * (features + 1) + tried.count[good]
        cost.view(-1).scatter_reduce_(0, at.cpu(), tried.cost[good].double().cpu(), "amin")
    return Front(counts, cost.cummin(1).values[:, 1:])


class MaskedPGD(PGD):
    """Projected gradient descent on few features: those that an attribution promises most of within the budget.

    Integrated gradients towards the point with the largest margin that ball and box allow rank the features; the others
    stay as they are. Further arguments as for :class:`robustx.attacks.PGD`.

    Args:
        features: so many move at most.
        feature_mask: integers that broadcast to the inputs; equal ones move together. None: each element for itself.

    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> moved = MaskedPGD(model, bounds=(0, 1), eps=0.5, features=2)(x, y)
    >>> bool(((moved != x).sum(1) <= 2).all())
    True
    """

    def __init__(self, *args: Any, features: int = 1, feature_mask: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.features, self.feature_mask = whole("features", features, 1), feature_mask

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        near, groups = region.reachable(), from_masks(self.feature_mask, f.inputs, f.names)
        most = pgd(f, near, rows, self.steps, self.length(f, near, rows), stop=False, quiet=True).z
        way = most - near.centre
        hope = groups.gather(way * mean_grad(f, near.centre, way, NODES, rows), rows)
        leading = hope.argsort(dim=1, descending=True, stable=True).argsort(1) < self.features
        free = groups.spread(leading.to(way), rows) > 0
        free = free if region.free is None else free & region.free
        return super().search(f, region.to(free=free), rows, noise)

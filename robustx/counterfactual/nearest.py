"""The least costly change: attacks that look for nearest points, as strategies."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import ATTACKS, Found, make
from ..attacks.portfolio import Portfolio, polished
from ..perturb.norms import Norm, norm_of
from ..perturb.region import Region
from .best import Strategy, Task
from .domain import Move
from .guided import drop, finish, guided, spare
from .table import Table, box_of, graded, moves_of, settled


def nearest(task: Task, attack: str = "portfolio", **options: Any) -> None:
    """What an attack for nearest points finds in the box of what is allowed, then on the nearest boundary around it.

    Where the fewest features come first, the attack counts elements, if it can; else it measures what costs do. An
    example for which it finds nothing starts from what :func:`robustx.counterfactual.guided.guided` finds. Within a
    schema points are put where it holds. What can be spared is taken back.

    Args:
        attack: its name in :data:`robustx.attacks.ATTACKS`, such as ``"fmn"``, ``"ddn"`` or ``"pdpgd"``.
        options: of the attack.

    Raises:
        ArgumentError: features do not move, but give way.
        ValueError: there is no such attack, or it does not know the norm of the costs.

    >>> from functools import partial
    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0]])})
    >>> strategy = partial(nearest, attack="fmn", steps=50)
    >>> explainer = CounterfactualExplainer(lambda x: model(x) - 5, bounds=(0, 1), distance="l1", strategy=strategy)
    >>> [[round(v, 2) for v in row] for row in explainer.generate(torch.zeros(1, 3)).counterfactual.tolist()]
    [[0.0, 0.5, 1.0]]
    """
    rows = task.todo
    _attacked(task, rows, attack, options)
    if len(task.todo):
        guided(task)
    if task.few:
        drop(task)
    polish(task, rows)
    spare(task)


def least(task: Task, todo: Tensor | None = None) -> None:
    """The least that a portfolio of attacks finds, or the way from the guided search's point to the nearest boundary.

    Neither always ends at the nearest of all points, but they seldom miss it together.
    """
    rows = task.todo if todo is None else todo
    guided(task, rows)
    polish(task, rows)
    _attacked(task, rows, "portfolio", {})
    finish(task)
    spare(task)


def _attacked(task: Task, rows: Tensor, attack: str, options: dict[str, Any]) -> None:
    """Offers what an attack finds for some rows: with all features free, and with no more than may change."""
    domain = graded(task.domain, attack)
    box, norm = box_of(domain), _norm(task, attack)
    f = box.probe
    search = make(attack, f.model, norm=norm, **options)
    rows = rows[task.movable[rows].any(1) & steep(box)[rows]]
    if not len(rows):
        return
    free = task.movable[rows]

    def found(free: Tensor) -> Found:
        region = everywhere(box, rows, free, norm)
        told = search.search_within(f, region, rows, task.noise.at(rows))
        if not isinstance(search, Portfolio):  # which has done so
            told = polished(f, region, rows, told)
        offer(task, rows, told)
        return told

    moves = found(free).z
    if task.most is not None:
        size = domain.features.gather(moves.abs(), rows)
        size = size.masked_fill(task.best.sets[rows] & task.best.found[rows, None], torch.inf)
        found(free & (size.argsort(1, descending=True).argsort(1) < task.most))


def polish(task: Task, rows: Tensor, steps: int = 10) -> None:
    """Offers the nearest points of the boundaries around what has been found for some rows, and what these can spare.

    Where the fewest features come first, or too many may move, only those move that do so already.
    """
    domain = graded(task.domain, "nearest")
    box = box_of(domain)
    f, norm, rows = box.probe, box.norm, rows[task.best.found[rows] & steep(box)[rows]]
    if not len(rows):
        return
    z = moves_of(domain, task.best.z[rows], rows)
    free = task.best.sets[rows] if task.few or task.most is not None else task.movable[rows]
    found = Found(z, f.value(z, rows), norm.size(z))
    offer(task, rows, polished(f, everywhere(box, rows, free, norm), rows, found, steps))
    finish(task)


def offer(task: Task, rows: Tensor, found: Found) -> None:
    """Offers moves; of those that reached the goal but not where everything holds, what their features can do."""
    domain = graded(task.domain, "nearest")
    rows, z = rows[found.success], found.z[found.success]
    sets = domain.features.gather((z != 0).to(z), rows) > 0
    here = settled(domain, z, rows, sets)
    offered = task.at(here, rows)
    task.best.offer(rows, offered)
    lost = (~offered.found & (offered.margin > -torch.inf)).nonzero().squeeze(1)
    if len(lost) and isinstance(domain, Table):
        again = domain.attempt(rows[lost], sets[lost], here[lost])
        task.best.offer(rows[lost], task.at(again.z, rows[lost], again.margin))


def steep(box: Move) -> Tensor:
    """Which examples have a gradient that attacks can follow [B]."""
    none = torch.zeros(len(box.home), dtype=torch.bool, device=box.home.device)
    return none if box.slope is None else (box.slope != 0).any(1)


def everywhere(box: Move, rows: Tensor, free: Tensor, norm: Norm) -> Region:
    """Wherever some rows may go, as far as it is, when only some features are free [N, F]."""
    return box.within(rows, free).to(norm=norm, radius=torch.full_like(rows, torch.inf, dtype=box.home.dtype))


def _norm(task: Task, attack: str) -> Norm:
    """What an attack measures: costs; where the fewest features come first, elements or what else it can."""
    norm, named = box_of(graded(task.domain, attack)).norm, ATTACKS.get(attack)
    if not task.few or named is None:
        return norm
    return norm_of("L0" if "L0" in named.norms else str(norm) if str(norm) in named.norms else named.norms[0])


ATTACKING: dict[str, Strategy] = {
    name: partial(nearest, attack=name) for name in ("fmn", "ddn", "alma", "pdpgd", "sigma-zero", "fab-t")
}
"""Attacks that are strategies by name; others are ``partial(nearest, attack=..., **options)``."""

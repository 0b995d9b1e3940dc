"""Attributions as prices: what promises much costs little, and shrinking steps find what to buy."""

from dataclasses import replace

import torch

from ..attacks import Found, ead
from ..attacks.portfolio import polished
from ..perturb.norms import L1
from .best import Task
from .guided import drop, guided
from .nearest import everywhere, offer, polish, steep
from .table import box_of, graded


def proximal(task: Task, steps: int = 100, rounds: int = 9, beta: float = 10.0, floor: float = 0.1) -> None:
    """The least change when each feature has a price, the lower the more an attribution promises of it.

    Prices are 1 / (a / max a + ``floor``) for the integrated gradients a towards the point with the largest margin that
    the constraints allow. What the features' changes cost in all (L1) is made least by proximal gradient steps: FISTA
    (Beck, Teboulle, SIAM J. Imaging Sci. 2009) down this cost and the goal's hinge, whose weight is bisected as in the
    elastic-net attack; then on the nearest boundary. What can be spared is taken back, and the rest is refined.

    Args:
        steps, rounds, beta: as for :class:`robustx.attacks.EAD`.
        floor: the larger, the less prices differ.

    Raises:
        ArgumentError: features do not move, but give way.

    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0]])})
    >>> explainer = CounterfactualExplainer(lambda x: model(x) - 5, bounds=(0, 1), strategy="proximal")
    >>> [[round(v, 2) for v in row] for row in explainer.generate(torch.zeros(1, 3)).counterfactual.tolist()]
    [[0.0, 0.5, 1.0]]
    """
    domain, rows = graded(task.domain, "proximal"), task.todo
    box = box_of(domain)
    rows = rows[task.movable[rows].any(1) & steep(box)[rows]]
    if len(rows):
        worth = box.rankings()[0].masked_fill(~task.movable, 0).abs()
        price = 1 / (worth / worth.amax(1, keepdim=True).clamp(min=torch.finfo(worth.dtype).tiny) + floor)
        price = box.features.spread(price, box.probe.everyone)
        priced = replace(box, unit=box.unit / price)
        f, near = priced.probe, everywhere(priced, rows, task.movable[rows], L1())
        found = polished(f, near, rows, ead(f, near, rows, steps, rounds, beta, False))
        offer(task, rows, Found(found.z / price[rows], found.margin, found.size))
    if len(task.todo):
        guided(task)
    drop(task)
    polish(task, rows)

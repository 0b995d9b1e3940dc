"""The default: for each question the search that fits it."""

from .best import Task
from .domain import Move
from .exact import linear
from .guided import guided
from .nearest import least, polish, steep
from .table import Table, box_of

STEPS = 3  # across the boundary around what was found


def auto(task: Task) -> None:
    """The guided search where the fewest features come first, and what attacks find for the least cost alone.

    Both end on the nearest boundary around what they found, within the same features or among all.

    Linear models in a box are recognised: their least costs have closed forms, and how few features it takes is proved.
    Without gradients the guided search is all there is.

    >>> import torch
    >>> from robustx.counterfactual import CounterfactualExplainer
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0]])})
    >>> explainer = CounterfactualExplainer(lambda x: model(x) - 5, bounds=(0, 1), distance="l2", strategy=auto)
    >>> result = explainer.generate(torch.zeros(1, 3))
    >>> [round(v, 2) for v in result.counterfactual[0].tolist()], result.proved
    ([0.24, 0.48, 0.95], ('optimal',))
    """
    domain, todo = task.domain, task.todo
    moves = isinstance(domain, Move | Table) and bool(steep(box_of(domain)).any())
    if moves and linear(task):
        return
    if moves and not task.few:
        least(task, todo)
        return
    guided(task, todo)
    if moves:
        polish(task, todo, STEPS)

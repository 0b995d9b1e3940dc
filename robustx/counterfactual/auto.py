"""The default: for each question the search that fits it."""

from .best import Task
from .domain import Move
from .exact import linear
from .guided import guided
from .nearest import least
from .table import Table, box_of


def auto(task: Task) -> None:
    """The guided search where the fewest features come first, and the least that attacks find for the least cost alone.

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
    moves = isinstance(domain, Move | Table) and box_of(domain).slope is not None
    if moves and linear(task):
        return
    if moves and not task.few:
        least(task, todo)
    else:
        guided(task, todo)

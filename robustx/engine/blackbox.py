"""Black boxes: functions of numpy arrays, asked as if they were models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .checks import ArgumentTypeError


class BlackBox:
    """A function of numpy arrays as a model: tensors in, a tensor out on the device of the first.

    Floats come back in their own dtype, whole numbers and booleans (predicted classes, say) in torch's default. There
    are no gradients: methods that need some say so.

    Args:
        function: takes an array [N, ...] for each input, and returns one with N rows; scikit-learn's
            ``predict_proba`` and ``decision_function`` do.

    Raises:
        ArgumentTypeError: ``function`` is none (an estimator, say, and not its method), or returns no numbers.

    >>> from sklearn.linear_model import LogisticRegression
    >>> model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    >>> BlackBox(model.predict_proba)(torch.tensor([[0.5], [9.0]])).round(decimals=1)
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ArgumentTypeError(
                f"function must be callable, got {type(function).__name__}; of a scikit-learn estimator take a method, "
                "such as model.predict_proba"
            )
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        device = next((v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        args, kwargs = tree_map(_array, (args, kwargs))
        out = np.asarray(self.function(*args, **kwargs))
        if out.dtype.kind not in "fiub":
            raise ArgumentTypeError(f"function must return an array of numbers, got {out.dtype}")
        found = torch.tensor(out, device=device)
        return found if found.is_floating_point() else found.to(torch.get_default_dtype())


def _array(v: Any) -> Any:
    if not isinstance(v, Tensor):
        return v
    return (v.float() if v.dtype == torch.bfloat16 else v).detach().cpu().numpy()  # numpy has no bfloat16

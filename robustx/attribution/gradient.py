"""Methods that need the gradient at one point."""

from typing import Any

from torch import Tensor

from ..engine.guard import guarded
from ..engine.probe import Probe
from .base import GradientAttribution


def saliency(f: Probe) -> Tensor:
    """The gradient of the score at the point [B, D]."""
    return f.grad(f.point)[1]


class Saliency(GradientAttribution):
    """How strongly the score reacts to each element: the size of its gradient.

    Simonyan, Vedaldi, Zisserman (2013), arXiv 1312.6034, section 3.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> a = Saliency(model).attribute(torch.rand(4, 3), target=1)
    >>> torch.allclose(a, model.weight[1].abs().expand(4, 3))
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Gradients shaped like the inputs; their sizes, or signed with ``abs=False``."""
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        g = saliency(f)
        return door.out(f.packing.unpack(g.abs() if abs else g))

"""Layout: how pictures lie in memory, which changes no number but how soon a convolution is done."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .guard import modules_of
from .memory import out_of_memory
from .patches import Patched

MANY = 32  # pictures from which on it pays


class ChannelsLast:
    """A model that is given pictures with channels last in memory; one that cannot take them is called as ever."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model, self.plain = model, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.plain:
            try:
                return self.model(*tree_map_only(Tensor, _last, args), **tree_map_only(Tensor, _last, kwargs))
            except RuntimeError as e:  # such as a view of what does not lie in one piece
                if out_of_memory(e):
                    raise
                self.plain = True
        return self.model(*args, **kwargs)


def channels_last(model: Callable[..., Any]) -> Callable[..., Any]:
    """:class:`ChannelsLast` of a model with convolutions in single precision on a CPU; other models as they are."""
    convolutions = (m for top in modules_of(model) for m in top.modules() if isinstance(m, nn.Conv2d))
    weights = {(m.weight.dtype, m.weight.device.type) for m in convolutions}
    return ChannelsLast(model) if weights == {(torch.float32, "cpu")} else model


def _last(t: Tensor) -> Tensor:
    picture = t.ndim == 4 and len(t) >= MANY and t.dtype == torch.float32 and not isinstance(t, Patched)
    return t.contiguous(memory_format=torch.channels_last) if picture else t

"""Class activation maps: where at a layer a score finds its evidence."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..engine.checks import whole
from ..engine.guard import guarded
from ..engine.packing import Tensors
from ..engine.probe import Probe
from ..engine.sites import Layer
from .base import GradientAttribution, LayerAttribution, only_unused
from .guided import GuidedBackprop, Passing

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(values, gradients) of C channels at P positions [..., C, P] -> what each value adds to the map [..., C, P]."""


def grad_cam(here: Tensor, grad: Tensor) -> Tensor:
    """Each channel weighs what its gradient is on average. Selvaraju et al. (ICCV 2017), eq. 1 and 2."""
    return grad.mean(-1, keepdim=True) * here


def grad_cam_plus_plus(here: Tensor, grad: Tensor) -> Tensor:
    """Each channel weighs the sum of its positive gradients, each with a weight of its own.

    Chattopadhyay et al. (WACV 2018), eq. 19, for the exponential of the score: a position's gradient g has the weight
    g² / (2 g² + g³ sum(A)) in a channel A. Written without the powers, which would underflow, and without the factor
    exp(score), which is one for the whole map. The formula has poles where A may be negative; a gradient on one has no
    weight.
    """
    spread = 2 + grad * here.sum(-1, keepdim=True)
    return (grad.relu() / spread.where(spread != 0, torch.inf)).sum(-1, keepdim=True) * here


def hires_cam(here: Tensor, grad: Tensor) -> Tensor:
    """Each value weighs what its own gradient is. Draelos, Carin (2020), arXiv 2011.08891."""
    return grad * here


def layer_cam(here: Tensor, grad: Tensor) -> Tensor:
    """Each value weighs what its own gradient is, where that is positive. Jiang et al. (TIP 2021)."""
    return grad.relu() * here


@dataclass(frozen=True)
class Layout:
    """How one example's value at a layer is read as C channels at P positions, and these as a map.

    Args:
        name: ``"channels"``: channels first, positions behind them; ``"tokens"``: positions first.
        class_token: how many leading tokens have no place on the map.
        grid: of tokens in one line: rows and columns; None: a square; False: they stay in line.
    """

    name: str = "channels"
    class_token: int = 0
    grid: tuple[int, ...] | Literal[False] | None = None

    def __post_init__(self) -> None:
        if self.name not in ("channels", "tokens"):
            raise ValueError(f"layout must be 'channels' [B, C, ...] or 'tokens' [B, T, C], got {self.name!r}")
        whole("class_token", self.class_token, 0)
        if self.name == "channels" and (self.class_token or self.grid is not None):
            raise ValueError("class_token and grid are for layout='tokens' [B, T, C], but layout is 'channels'")
        if self.grid and not (isinstance(self.grid, tuple) and all(isinstance(n, int) for n in self.grid)):
            raise ValueError(f"grid must be (rows, columns), None for a square or False for none, got {self.grid!r}")

    def read(self, t: Tensor, shape: torch.Size) -> Tensor:
        """[..., *shape] -> [..., C, P]."""
        if self.name == "tokens":
            t = t.movedim(-1, -len(shape))
        lead, (channels, *positions) = t.shape[: -len(shape)], t.shape[-len(shape) :]
        return t.reshape(*lead, channels, prod(positions))[..., self.class_token :]

    def positions(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of a map of values [B, *shape].

        Raises:
            ValueError: there are no channels, or the tokens do not fill the grid.
        """
        if not shape:
            raise ValueError("a map needs a layer with channels, but this one has a single number for each example")
        if self.name == "channels":
            return shape[1:]
        *line, _ = shape
        count = prod(line) - self.class_token
        if self.grid:
            grid = self.grid
        elif self.grid is None and len(line) == 1:
            grid = (isqrt(max(count, 0)),) * 2
        else:
            grid = (count,) if self.class_token else tuple(line)
        if count < 1 or prod(grid) != count:
            raise ValueError(
                f"the layer's {prod(line)} tokens, {self.class_token} left out, do not fill a grid of "
                f"{' x '.join(map(str, grid))}; say class_token=1 if the first one stands for the class, "
                "grid=(rows, columns) if the picture is no square, or grid=False for no grid"
            )
        return grid


def activation_maps(
    f: Probe, weigh: Weigh, layout: Layout = Layout(), over_channels: bool = True, positive: bool = False
) -> Tensors:
    """Maps of what stands where f stands, from one pass: [B, 1, ...] for each tensor, added up over its channels.

    [B, T, 1, ...] for several scores. Not ``over_channels``: [B, C, ...]; ``positive``: without what is negative.
    """
    at = f.local()
    here = at.here if at.grad.ndim == 2 else at.here[:, None]  # for several scores

    def one(here: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
        positions = layout.positions(shape)
        shares = weigh(layout.read(here, shape), layout.read(grad, shape))
        shares = shares.sum(-2, keepdim=True) if over_channels else shares
        return (shares.relu() if positive else shares).reshape(*shares.shape[:-1], *positions)

    parts = zip(at.packing.split(here), at.packing.split(at.grad), at.packing.shapes, strict=True)
    return tuple(one(*p).to(dtype) for p, dtype in zip(parts, at.packing.dtypes, strict=True))


class LayerGradCam(LayerAttribution):
    """Grad-CAM: a layer's channels, weighed by their mean gradients and added up to one map.

    Selvaraju et al. (ICCV 2017), arXiv 1610.02391, whose maps leave out what is negative (``relu_attributions``). Law:
    with a global mean and one linear layer behind the layer, P positions, the map is the class activation map over P.

    Args:
        forward_func, layer, device_ids: see :class:`robustx.attribution.base.LayerAttribution`.
        layout: ``"channels"`` for a layer [B, C, ...]; ``"tokens"`` for one [B, T, C] of a transformer (or any with
            channels last), whose tokens are the positions.
        class_token: how many leading tokens are left out, because they have no place in the picture.
        grid: (rows, columns) of the other tokens; None: a square; False: they stay in line, [B, 1, T].

    >>> import torch
    >>> features, head = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(3, 2, bias=False)
    >>> model = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head)
    >>> x = torch.rand(5, 1, 6, 6)
    >>> a = LayerGradCam(model, features).attribute(x, target=1)
    >>> cam = (features(x) * head.weight[1][:, None, None]).sum(1, keepdim=True)
    >>> torch.allclose(a * 16, cam, atol=1e-6)
    True
    """

    weigh: ClassVar[Weigh] = staticmethod(grad_cam)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        *,
        layout: Literal["channels", "tokens"] = "channels",
        class_token: int = 0,
        grid: tuple[int, ...] | Literal[False] | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self.layout = Layout(layout, class_token, grid)

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """A map [B, 1, ...] of the layer's positions; see :class:`Attribution` for the other arguments.

        Args:
            relu_attributions: leave out what is negative, as the papers do.
            attr_dim_summation: False leaves the channels apart, [B, C, ...].
            grad_kwargs: see :func:`robustx.attribution.base.only_unused`.
        """
        only_unused(grad_kwargs)
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return self._out(site, activation_maps(f, type(self).weigh, self.layout, attr_dim_summation, relu_attributions))


class LayerGradCamPlusPlus(LayerGradCam):
    """Grad-CAM++: channels count by their positive gradients, so that several objects of a class all show.

    Chattopadhyay, Sarkar, Howlader, Balasubramanian (WACV 2018), arXiv 1710.11063. Made for a layer whose values are
    not negative, behind a ReLU.

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    ... )
    >>> LayerGradCamPlusPlus(model, model[1]).attribute(torch.rand(5, 1, 6, 6), target=1).shape
    torch.Size([5, 1, 4, 4])
    """

    weigh: ClassVar[Weigh] = staticmethod(grad_cam_plus_plus)


class LayerHiResCam(LayerGradCam):
    """HiResCAM: each value of a layer times its own gradient, added up over the channels.

    Draelos, Carin (2020), arXiv 2011.08891. Law: where all that is behind the layer is linear (a mean, a head), each
    place shows what it contributes, and the map adds up to the score without the bias.

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    ... )
    >>> x = torch.rand(5, 1, 6, 6)
    >>> a = LayerHiResCam(model, model[1]).attribute(x, target=1)
    >>> torch.allclose(a.sum((1, 2, 3)), model(x)[:, 1] - model[3].bias[1], atol=1e-6)
    True
    """

    weigh: ClassVar[Weigh] = staticmethod(hires_cam)


class LayerCam(LayerGradCam):
    """LayerCAM: each value of a layer times its own gradient where that is positive; sharp in early layers too.

    Jiang, Zhang, Hou, Cheng, Wei (IEEE Transactions on Image Processing 2021).

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    ... )
    >>> a = LayerCam(model, model[1]).attribute(torch.rand(5, 1, 6, 6), target=1)
    >>> a.shape, bool((a >= 0).all())
    (torch.Size([5, 1, 4, 4]), True)
    """

    weigh: ClassVar[Weigh] = staticmethod(layer_cam)


MODES: dict[str, tuple[int, ...]] = dict.fromkeys(("nearest", "nearest-exact", "area"), (1, 2, 3)) | {
    "linear": (1,),
    "bilinear": (2,),
    "bicubic": (2,),
    "trilinear": (3,),
}
"""Ways to resize a map, and of how many axes."""


class GuidedGradCam(GradientAttribution):
    """Guided backpropagation, where Grad-CAM's map (resized to the inputs, without what is negative) lets it show.

    Selvaraju et al. (ICCV 2017), arXiv 1610.02391, section 3.3. Two passes each way.

    Args:
        model: the model.
        layer, device_ids, layout, class_token, grid: see :class:`LayerGradCam`; the layer has a single tensor.

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    ... )
    >>> GuidedGradCam(model, model[1]).attribute(torch.rand(5, 1, 6, 6), target=1).shape
    torch.Size([5, 1, 6, 6])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: nn.Module | Layer,
        device_ids: list[int] | None = None,
        *,
        layout: Literal["channels", "tokens"] = "channels",
        class_token: int = 0,
        grid: tuple[int, ...] | Literal[False] | None = None,
    ) -> None:
        super().__init__(model)
        self.grad_cam = LayerGradCam(model, layer, device_ids, layout=layout, class_token=class_token, grid=grid)
        if isinstance(self.grad_cam.layer, list):
            raise TypeError(f"layer must be one layer, got a list of {len(self.grad_cam.layer)}; ask once for each")

    def _layers(self) -> list[Layer]:
        return self.grad_cam._layers()

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; see :class:`Attribution` for the arguments.

        An input that the map cannot be resized to, because it has not as many axes behind the channels, gets an empty
        tensor and a warning.

        Args:
            interpolate_mode: how the map is resized, in the words of :func:`torch.nn.functional.interpolate`.
        """
        if interpolate_mode not in MODES:
            raise ValueError(f"interpolate_mode must be one of {', '.join(MODES)}, got {interpolate_mode!r}")
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        maps = activation_maps(
            f.to(at=self.grad_cam._site(attribute_to_layer_input)), grad_cam, self.grad_cam.layout, positive=True
        )
        if len(maps) != 1:
            raise ValueError(f"layer must have a single tensor, but it has {len(maps)}; choose one behind or before it")
        at = f.to(rules=Passing(f.model, GuidedBackprop.rules)).local()
        shown = []
        for i, (slope, x) in enumerate(zip(at.packing.split(at.grad), f.inputs, strict=True)):
            shown.append(_shown(slope, x, maps[0], interpolate_mode, i))
        return door.out(shown)


def _shown(slope: Tensor, x: Tensor, cam: Tensor, mode: str, i: int) -> Tensor:
    """The slope of input i under the map, resized; empty where it cannot be."""
    lead = slope.shape[: slope.ndim - x.ndim + 1]  # [B], or [B, T] for several scores
    shape, size = tuple(cam.shape[len(lead) + 1 :]), tuple(x.shape[2:])
    if 0 in size:
        return slope.to(x.dtype)
    if len(shape) != len(size) or len(size) not in MODES[mode]:
        warnings.warn(
            f"input {i} of shape {tuple(x.shape)} gets an empty tensor: a map of shape {shape} cannot be resized to "
            f"{size} by {mode!r}",
            stacklevel=4,
        )
        return slope.new_empty(0)
    over = LayerAttribution.interpolate(cam.flatten(0, len(lead) - 1), size, mode)
    return (slope * over.reshape(*lead, *over.shape[1:])).to(x.dtype)

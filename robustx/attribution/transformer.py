"""Attribution to the tokens of a transformer, by its attention weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engine.checks import whole
from ..engine.guard import guarded
from ..engine.operations import PARTS
from ..engine.packing import Tensors, times
from ..engine.probe import Probe
from ..engine.rules import Ruled, name_of
from ..engine.sites import Call, Site
from .base import Attribution

FUSIONS: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
"""Ways to make one attention of several heads."""


@dataclass(frozen=True, eq=False)
class Weights(Site):
    """The weights of a model's self-attention, one tensor [n, heads, T, T] for each layer, in order.

    They are caught as an operation, a softmax over the last of three axes or more, however the model is written;
    fused attention runs in its parts meanwhile. A fourth axis is the heads'; else the heads of an example stand side
    by side, [n * heads, T, T].

    Args:
        model: it runs as it is written, see :meth:`Ruled.over`.
        within: only attention inside these modules counts; none: all.
        fold: what is made of the weights where they are read and not followed.
    """

    model: Any
    within: tuple[nn.Module, ...] = ()
    fold: Callable[[Tensors], Tensors] = tuple

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return self.fold(self.follow(call, inputs)[0])

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        raise TypeError("attention weights are read and followed, not written")

    def follow(self, call: Call, inputs: Tensors) -> tuple[Tensors, Any]:
        mode = _Catch(len(inputs[0]), not self.within)
        with mode.inside(dict.fromkeys(self.within, True)), mode.over(self.model):
            out = call(inputs)
        if not mode.weights:
            raise ValueError(
                f"no self-attention was seen in {'within' if self.within else 'the model'}; only what is written with "
                "PyTorch's softmax or scaled_dot_product_attention, over [B, heads, T, T] or [B * heads, T, T], can be"
            )
        if len(lengths := {w.shape[-1] for w in mode.weights}) > 1:
            told = ", ".join(map(str, sorted(lengths)))
            raise ValueError(f"layers must share their tokens, but there are {told} of them; {_WAY_OUT}")
        return tuple(mode.weights), out


class _Catch(Ruled):
    """Keeps the weights of self-attention."""

    def __init__(self, examples: int, everywhere: bool) -> None:
        fused = "scaled_dot_product_attention"
        super().__init__({}, parts={fused: PARTS[fused]})
        self.examples, self.everywhere = examples, everywhere
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        if name == "multi_head_attention_forward" and self.everywhere and _crosses(*args[:2]):
            raise ValueError(f"the model attends from one sequence to another; {_WAY_OUT}")
        out = super().__torch_function__(func, types, args, kwargs)
        opened = isinstance(func, FunctionType)  # F.softmax, which shows the one inside
        if name != "softmax" or opened or out.ndim < 3 or not (self.everywhere or self.owners):
            return out
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        return self._caught(out) if axis in (-1, out.ndim - 1) else out

    def _caught(self, w: Tensor) -> Tensor:
        n, count = self.examples, w.shape[-1]
        heads = len(w) // n if n and w.ndim == 3 else 1
        if w.ndim > 4 or len(w) != n * heads or w.shape[-2] != count:
            raise ValueError(
                f"a softmax of shape {tuple(w.shape)} is no attention of tokens to the same tokens, [B, heads, T, T] "
                f"or [B * heads, T, T] with B={n}; if it is none, or of windows, or to another sequence, {_WAY_OUT}"
            )
        if torch.is_grad_enabled() and not w.requires_grad:
            w.requires_grad_()  # the graph starts here: inputs may be token ids
        kept = w.unflatten(0, (n, heads)) if w.ndim == 3 else w
        self.weights.append(kept)
        return kept.reshape(w.shape).clone()  # a model may work in place on what it is given


def _crosses(query: Tensor | None = None, key: Tensor | None = None) -> bool:
    """Whether these are known to be different sequences."""
    return query is not None and key is not None and query is not key and not torch.equal(query, key)


_WAY_OUT = "name the modules whose self-attention counts with within=, such as within=model.encoder"


@dataclass(frozen=True)
class Tokens:
    """Which token's view of the others is asked for, and where these have their places.

    Args:
        class_token: the token that the model's output is read off, negative from the end; None: the mean over all.
        leave_out: how many leading tokens have no place.
        grid: of the others: rows and columns; True: a square; False: they stay in line.
    """

    class_token: int | None = 0
    leave_out: int = 1
    grid: tuple[int, int] | bool = False

    def __post_init__(self) -> None:
        whole("leave_out", self.leave_out, 0)
        if not (self.class_token is None or type(self.class_token) is int):
            raise ValueError(f"class_token must be a token's place, or None for all, got {self.class_token!r}")
        pair = isinstance(self.grid, tuple) and len(self.grid) == 2 and all(type(v) is int and v > 0 for v in self.grid)
        if not (pair or isinstance(self.grid, bool)):
            raise ValueError(f"grid must be (rows, columns), True for a square or False for none, got {self.grid!r}")

    def flow(self, layers: Sequence[Tensor]) -> Tensor:
        """The token's row of the product of all layers' matrices [..., T, T], the last one first: [..., places]."""
        eye = identity(layers[0])
        count = len(eye)
        if self.class_token is not None and not -count <= self.class_token < count:
            raise ValueError(f"class_token must be one of {count} tokens, got {self.class_token}")
        self._shape(count - self.leave_out)
        row = eye.mean(0, keepdim=True) if self.class_token is None else eye[self.class_token][None]
        for layer in reversed(layers):
            row = row @ layer
        return row[..., 0, self.leave_out :]

    def placed(self, row: Tensor) -> Tensor:
        """[..., places] -> [..., 1, rows, columns], if there is a grid."""
        return row.reshape(*row.shape[:-1], 1, *self._shape(row.shape[-1])) if self.grid else row

    def _shape(self, places: int) -> tuple[int, ...]:
        square = (isqrt(max(places, 0)),) * 2
        shape = square if self.grid is True else self.grid or (places,)
        if places < 1 or prod(shape) != places:
            raise ValueError(
                f"{places + self.leave_out} tokens, the first {self.leave_out} left out, do not fill a grid of "
                f"{' x '.join(map(str, shape))}; choose leave_out, grid=(rows, columns) or grid=False"
            )
        return shape


def identity(w: Tensor) -> Tensor:
    """What passes an attention's residual connection [T, T]."""
    return torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)


def mixed(w: Tensor, fuse: Callable[..., Tensor], discard: float) -> Tensor:
    """How a layer mixes its tokens, half by attention [n, heads, T, T], half by residual: [n, T, T], rows add up to 1.

    Abnar, Zuidema (ACL 2020), section 3.
    """
    w = fuse(w.to(torch.promote_types(w.dtype, torch.float32)), 1)
    if discard:
        least = w.flatten(1).kthvalue(int(discard * w.shape[1] ** 2) + 1).values  # [n]
        w = w.where(w >= least[:, None, None], 0)
    w = w + identity(w)
    return w / w.sum(-1, keepdim=True)


def relevance(f: Probe, tokens: Tokens) -> Tensor:
    """R <- R + mean over heads of (gradient times weight, where positive) R, from layer to layer, one row of it.

    Chefer, Gur, Wolf (ICCV 2021), eq. 5 and 6. f stands at :class:`Weights`. Returns [B, T], [B, S, T] for S scores.
    """
    rows = []
    for at in f.locals(f.examples, lambda part: (None, f.everyone[part])):
        gains = at.packing.split(times(at.here, at.grad))  # [n, heads, T, T] each
        rows.append(tokens.flow([g.relu().mean(-3) + identity(g) for g in gains]).to(at.packing.dtypes[0]))
    return torch.cat(rows)


class _ByAttention(Attribution):
    def __init__(self, model: Callable[..., Any], within: nn.Module | Iterable[nn.Module] | None) -> None:
        super().__init__(model)
        self.within = (within,) if isinstance(within, nn.Module) else tuple(within or ())
        for m in self.within:
            if not isinstance(m, nn.Module):
                raise TypeError(f"within must be a module of the model or several, got {type(m).__name__}")


class AttentionRollout(_ByAttention):
    """How much of each token arrives at the class token, if attention mixed the tokens and nothing else did.

    Abnar, Zuidema (ACL 2020), arXiv 2005.00928. It knows of no target: one answer for all classes. Law: it adds up to 1
    over all tokens. One forward pass.

    Args:
        model: any transformer, however written; see :class:`Weights`.
        head_fusion: ``"mean"`` of the heads, as in the paper, ``"max"`` or ``"min"``.
        discard_ratio: the share of each layer's weights, the smallest, that count as none (ties stay); in the paper 0.
        within: the module (or modules) whose self-attention counts, such as the encoder of a model that has a decoder
            too; None: all. Attention from one sequence to another is an error where it shows; between sequences of one
            length it shows in PyTorch's own module only.

    >>> import torch
    >>> encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> a = AttentionRollout(encoder).attribute(torch.rand(3, 5, 8), leave_out=0)
    >>> a.shape, torch.allclose(a.sum(1), torch.ones(3))
    (torch.Size([3, 5]), True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        head_fusion: Literal["mean", "max", "min"] = "mean",
        discard_ratio: float = 0.0,
        *,
        within: nn.Module | Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(model, within)
        if head_fusion not in FUSIONS:
            raise ValueError(f"head_fusion must be one of {', '.join(FUSIONS)}, got {head_fusion!r}")
        if not 0 <= discard_ratio < 1:
            raise ValueError(f"discard_ratio must be at least 0 and below 1, got {discard_ratio!r}")
        self.head_fusion, self.discard_ratio = head_fusion, discard_ratio

    @guarded
    def attribute(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        *,
        class_token: int | None = 0,
        leave_out: int = 1,
        grid: tuple[int, int] | bool = False,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Tensor:
        """Shares of the tokens [B, T] without the first ``leave_out``; maps [B, 1, rows, columns] with a grid.

        To resize maps to the picture, see :meth:`LayerAttribution.interpolate`; for the other arguments,
        :class:`Attribution`. Inputs may be integers, such as token ids.

        Args:
            class_token, leave_out, grid: see :class:`Tokens`.

        Raises:
            ValueError: there is no self-attention, or layers of several lengths, or tokens do not fill the grid.
        """
        tokens = Tokens(class_token, leave_out, grid)

        def fold(weights: Tensors) -> Tensors:
            layers = [mixed(w, FUSIONS[self.head_fusion], self.discard_ratio) for w in weights]
            return (tokens.flow(layers).to(weights[0].dtype),)

        site = Weights(self.forward_func, self.within, fold)
        _, f = self._bind(
            inputs, None, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return tokens.placed(f.here[0])


class TransformerRelevance(_ByAttention):
    """How much each token matters to a target: attention weighed by the score's gradient, layer upon layer.

    Chefer, Gur, Wolf (ICCV 2021), arXiv 2103.15679, for self-attention (eq. 5 and 6). Not negative; 1 for the class
    token itself, in addition to what it gives itself. One forward and one backward pass.

    Args:
        model, within: see :class:`AttentionRollout`.

    >>> import torch
    >>> encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> model = lambda x: encoder(x)[:, 0]
    >>> TransformerRelevance(model).attribute(torch.rand(3, 5, 8), target=1, grid=True).shape
    torch.Size([3, 1, 2, 2])
    """

    def __init__(self, model: Callable[..., Any], *, within: nn.Module | Iterable[nn.Module] | None = None) -> None:
        super().__init__(model, within)

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        class_token: int | None = 0,
        leave_out: int = 1,
        grid: tuple[int, int] | bool = False,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
    ) -> Tensor:
        """Relevances of the tokens; see :meth:`AttentionRollout.attribute`."""
        tokens = Tokens(class_token, leave_out, grid)
        site = Weights(self.forward_func, self.within)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        return tokens.placed(relevance(f, tokens))

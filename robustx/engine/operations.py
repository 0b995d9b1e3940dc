"""What is known of PyTorch's operations: which are linear, which act element by element, what the others are made of.

Names are those of :func:`robustx.engine.rules.name_of`. Rules that must hold everywhere (contributions that add up)
start from these lists; what is in none of them is an error, never linear in silence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from .packing import Tensors
from .rules import RuleError


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


LINEAR = _words(
    "add sub rsub neg positive sum mean nanmean nansum cumsum diff sum_to_size trace dropout dropout1d dropout2d",
    "dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout batch_norm native_batch_norm",
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample",
    "upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d",
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d grid_sample grid_sampler grid_sampler_2d",
    "grid_sampler_3d embedding embedding_bag deg2rad rad2deg",
)
"""Linear in what depends on the site."""

MOVES = _words(
    "diag diagonal diag_embed tril triu cat concat concatenate stack hstack vstack dstack column_stack split",
    "split_with_sizes tensor_split chunk unbind unsafe_chunk unsafe_split hsplit vsplit view view_as reshape",
    "reshape_as flatten unflatten squeeze unsqueeze permute transpose t swapaxes swapdims movedim moveaxis expand",
    "expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile flip fliplr flipud roll rot90 unfold fold",
    "narrow select slice getitem setitem index_select gather take take_along_dim scatter scatter_add index_add",
    "index_copy index_fill slice_scatter select_scatter as_strided clone contiguous to type type_as float",
    "double half bfloat16 cpu cuda requires_grad detach alias copy fill zero pad constant_pad_nd pixel_shuffle",
    "pixel_unshuffle channel_shuffle max_unpool1d max_unpool2d max_unpool3d real meshgrid",
    "atleast_1d atleast_2d atleast_3d ravel block_diag nan_to_num index_put masked_scatter",
    "masked_select nll_loss nll_loss_nd nll_loss2d",
) | {f"get {name}" for name in ("T", "mT", "H", "mH", "real", "data")}
"""What depends on the site, moved elsewhere."""

PLAIN = LINEAR | MOVES

ELEMENTWISE = _words(
    "relu relu6 leaky_relu prelu rrelu elu selu celu silu mish gelu softplus softsign tanhshrink softshrink hardshrink",
    "hardtanh hardswish hardsigmoid threshold logsigmoid log_sigmoid sigmoid tanh exp exp2 expm1 log log1p log2 log10",
    "sqrt rsqrt reciprocal square pow float_power abs sign sgn round floor ceil trunc fix frac sin cos tan asin arcsin",
    "acos arccos atan arctan sinh cosh asinh arcsinh acosh arccosh atanh arctanh erf erfc erfinv logit sinc clamp",
    "clamp_min clamp_max remainder fmod",
)
"""A number in, a number out: one of their tensors depends on the site, the others are constants."""

PRODUCTS = _words(
    "mul matmul mm bmm mv dot inner vdot outer ger einsum tensordot linear bilinear conv1d conv2d conv3d",
    "conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc kron vecdot linalg_vecdot linalg_matmul",
    "cross linalg_cross",
)
"""Linear in each of their tensors."""

POOLS = _words("max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
CHOICES = _words("max min amax amin maximum minimum fmax fmin")
SWITCHES = _words("where masked_fill")
SOFTMAX = _words("softmax log_softmax logsumexp")


Hold = Callable[[Tensor], Tensor]
"""What is made of a norm's deviation before it divides."""


Step = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""A recurrent layer's step: (input, state, weights) -> state, whose first is also what comes out."""


def _layer_norm(
    hold: Hold,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Centred, divided by its deviation."""
    return _affine(_standard(hold, x, tuple(range(-len(tuple(shape)), 0)), eps), weight, bias)


def _rms_norm(hold: Hold, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / hold(((x * x).mean(tuple(range(-len(tuple(shape)), 0)), keepdim=True) + eps).sqrt())
    return _affine(y, weight, None)


def _group_norm(
    hold: Hold,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    n, c = x.shape[:2]
    y = _standard(hold, x.reshape(n, num_groups, -1), (-1,), eps).reshape(x.shape)
    return _affine(y, *(_channels(p, c, x.ndim) for p in (weight, bias)))


def _instance_norm(
    hold: Hold,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    c = x.shape[1]
    if use_input_stats:
        y = _standard(hold, x, tuple(range(2, x.ndim)), eps)
    else:
        assert running_mean is not None and running_var is not None, "PyTorch would have refused"
        mean, deviation = (_channels(t, c, x.ndim) for t in (running_mean, (running_var + eps).sqrt()))
        y = (x - mean) / deviation
    return _affine(y, *(_channels(p, c, x.ndim) for p in (weight, bias)))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot products, softmax, mean of the values. Vaswani et al. (2017), arXiv 1706.03762, eq. 1."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    weights = (query * (1 / sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(-1) @ value


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


def _vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The Euclidean one as the root of a sum of squares; others by powers of sizes."""
    x = x if dtype is None else x.to(dtype)
    dims = tuple(range(x.ndim)) if dim is None else dim
    if ord == 2:
        return (x * x).sum(dims, keepdim=keepdim).sqrt()
    return x.abs().sum(dims, keepdim=keepdim) if ord == 1 else _power_norm(x, ord, dims, keepdim)


def _norm(
    x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, out: None = None, dtype: Any = None
) -> Tensor:
    if ord is None or ord == "fro":  # of vectors or of matrices, it is the root of a sum of squares
        return _vector_norm(x, 2, dim, keepdim, dtype=dtype)
    if not isinstance(dim, int) and (x.ndim > 1 or dim is not None):
        raise RuleError(f"there is no rule for the matrix norm {ord!r}; the Frobenius norm has one")
    return _vector_norm(x, ord, dim, keepdim, dtype=dtype)


def _matrix_norm(x: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **rest: Any) -> Tensor:
    return _norm(x, ord, dim, keepdim, **rest)


def _var(x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Tensor:
    if isinstance(dim, bool):  # the older call, var(unbiased)
        dim, unbiased = None, dim
    less = correction if correction is not None else 1 if unbiased is None else int(unbiased)
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    centred = x - x.mean(dims, keepdim=True)
    return (centred * centred).sum(dims, keepdim=keepdim) / max(prod(x.shape[d] for d in dims) - less, 0)


def _var_mean(
    x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensors:
    mean = x.mean(None if isinstance(dim, bool) else dim, keepdim=keepdim)
    return _var(x, dim, unbiased, keepdim, correction=correction), mean


def _std_mean(*args: Any, **kwargs: Any) -> Tensors:
    var, mean = _var_mean(*args, **kwargs)
    return var.sqrt(), mean


def _std(*args: Any, **kwargs: Any) -> Tensor:
    return _var(*args, **kwargs).sqrt()


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a * b)


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a / b)


def _addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * (a @ b)


def _addr(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * torch.outer(a, b)


def _lerp(x: Tensor, end: Tensor, weight: Any) -> Any:
    return x + weight * (end - x)


def _cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = [(t * t).sum(dim).sqrt().clamp(min=eps) for t in (a, b)]
    return (a * b).sum(dim) / (lengths[0] * lengths[1])


def _lstm_step(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Hochreiter, Schmidhuber (1997), with forget gates."""
    h, c = state
    w_in, w_h, *rest = weights
    gates = x @ w_in.T + h @ w_h.T
    for b in rest[:2] if len(rest) > 1 else ():
        gates = gates + b
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return [h @ rest[-1].T if len(rest) % 2 else h, c]


def _gru_step(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Cho et al. (2014), arXiv 1406.1078."""
    (h,), (w_in, w_h, *biases) = state, weights
    b_in, b_h = biases or (0, 0)
    (xr, xz, xn), (hr, hz, hn) = (x @ w_in.T + b_in).chunk(3, -1), (h @ w_h.T + b_h).chunk(3, -1)
    z = (xz + hz).sigmoid()
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return [n + z * (h - n)]


def _tanh_step(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Elman (1990)."""
    return [_summed(x, state, weights).tanh()]


def _relu_step(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [_summed(x, state, weights).relu()]


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return (a * a + b * b).sqrt()


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(a, b), -1).logsumexp(-1)


def _distance(a: Tensor, b: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return _vector_norm(a - b + eps, p, -1, keepdim)


def _distances(a: Tensor, b: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Tensor:
    return _vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


def _lstm(*args: Any) -> Tensors:
    return _recurrent(_lstm_step, *args)


def _gru(*args: Any) -> Tensors:
    return _recurrent(_gru_step, *args)


def _rnn_tanh(*args: Any) -> Tensors:
    return _recurrent(_tanh_step, *args)


def _rnn_relu(*args: Any) -> Tensors:
    return _recurrent(_relu_step, *args)


def _lstm_cell(x: Tensor, state: list[Tensor], *weights: Tensor) -> Tensors:
    return tuple(_lstm_step(x, state, list(weights)))


def _cell(step: Step, x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    return step(x, [h], list(weights))[0]


def norms(hold: Hold) -> dict[str, Callable[..., Any]]:
    """The norms of :data:`PARTS`, with something made of the deviation that they divide by."""
    known: dict[str, Callable[..., Any]] = {
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
    }
    return {name: partial(norm, hold) for name, norm in known.items()}


PARTS: dict[str, Callable[..., Any]] = {
    **norms(lambda deviation: deviation),
    "scaled_dot_product_attention": _attention,
    "glu": _glu,
    "linalg_vector_norm": _vector_norm,
    "linalg_norm": _norm,
    "linalg_matrix_norm": _matrix_norm,
    "pairwise_distance": _distance,
    "cdist": _distances,
    "hypot": _hypot,
    "logaddexp": _logaddexp,
    "floor_divide": lambda a, b: (a / b).floor(),
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "addmm": _addmm,
    "addmv": _addmm,
    "addbmm": lambda x, a, b, *, beta=1, alpha=1: beta * x + alpha * (a @ b).sum(0),
    "baddbmm": _addmm,
    "addr": _addr,
    "lerp": _lerp,
    "softmin": lambda x, dim, *_, **__: (-x).softmax(dim),
    "cosine_similarity": _cosine_similarity,
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "lstm_cell": _lstm_cell,
    "gru_cell": partial(_cell, _gru_step),
    "rnn_tanh_cell": partial(_cell, _tanh_step),
    "rnn_relu_cell": partial(_cell, _relu_step),
}
"""Operations that are no single step: the same, written in the steps above."""


def _standard(hold: Hold, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / hold(((centred * centred).mean(dims, keepdim=True) + eps).sqrt())


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _channels(p: Tensor | None, c: int, ndim: int) -> Any:
    return None if p is None else p.reshape(1, c, *(1,) * (ndim - 2))


def _power_norm(x: Tensor, ord: Any, dims: Any, keepdim: bool) -> Tensor:
    if abs(ord) == float("inf"):
        return (x.abs().amax if ord > 0 else x.abs().amin)(dims, keepdim=keepdim)
    if ord == 0:
        raise RuleError("there is no rule for the number of elements that are not zero")
    return x.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1 / ord)


def _summed(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    w_in, w_h, *biases = weights
    a = x @ w_in.T + state[0] @ w_h.T
    for b in biases:
        a = a + b
    return a


def _recurrent(cell: Step, x: Tensor, hx: Any, *rest: Any) -> Tensors:
    """Layers and directions of a recurrent network; returns the sequence and the last state, as PyTorch does."""
    if isinstance(rest[0], bool) or not isinstance(rest[0], list | tuple):
        raise RuleError("packed sequences have no rules yet; pass padded ones")
    weights, biased, layers, _, _, both_ways, batch_first = rest
    states = [hx] if isinstance(hx, Tensor) else list(hx)
    directions = 2 if both_ways else 1
    per = len(weights) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    last: list[list[Tensor]] = []
    for layer in range(layers):
        ways = []
        for way in range(directions):
            k = layer * directions + way
            state, own, outs = [s[k] for s in states], weights[k * per : (k + 1) * per], []
            for step in x.unbind(0) if way == 0 else reversed(x.unbind(0)):
                state = cell(step, state, own)
                outs.append(state[0])
            ways.append(torch.stack(outs if way == 0 else outs[::-1]))
            last.append(state)
        x = torch.cat(ways, -1)
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(s) for s in zip(*last, strict=True))

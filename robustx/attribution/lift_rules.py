"""DeepLIFT's rules: how differences from a reference pass an operation, so that they add up exactly.

Each rule gives multipliers m with sum(m * (x - x0)) = f(x) - f(x0), for the operation f, its tensors x here and x0
there. Chained, they add up for the whole model. Shrikumar, Greenside, Kundaje (ICML 2017), arXiv 1704.02685.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.operations import CHOICES, ELEMENTWISE, PARTS, PLAIN, POOLS, PRODUCTS, SOFTMAX, SWITCHES
from ..engine.packing import Tensors
from ..engine.rules import Back, Op, Rule, Ruled, RuleError

There = Callable[[Op], Tensors]
"""The tensors of an operation in the reference's pass, in the order of ``op.all_tensors``."""


def lifted(there: There, eps: float) -> Mapping[str, Rule]:
    """The rules of all operations that are not linear, for a reference."""
    kinds = (
        (ELEMENTWISE, partial(rescale, eps=eps)),
        (PRODUCTS, product),
        ({"div"}, partial(quotient, eps=eps)),
        (POOLS, partial(pool, eps=eps)),
        (CHOICES, partial(choice, eps=eps)),
        (SOFTMAX, softmax),
        (SWITCHES, switch),
        ({"grid_sample"}, sampled),
    )
    return {name: rule for names, one in kinds for rule in (partial(_asked, one, there),) for name in names}


def ruled(rules: Mapping[str, Rule], otherwise: str, kind: type[Ruled]) -> Ruled:
    """A mode under which differences pass every operation."""
    return kind(rules, PRODUCTS, PARTS, PLAIN, otherwise)


def rescale(op: Op, g: Tensor, there: Tensors, eps: float) -> Back:
    """f(x) - f(x0) over x - x0; the slope where these are the same to rounding (section 3.5.1)."""
    i = _only(op)
    x, x0 = op.tensors[i], there[i]
    y, y0 = op(*op.tensors), op(*op.tensors[:i], x0, *op.tensors[i + 1 :])
    if y.shape != x.shape:
        raise RuleError(f"the operation {op.name!r} makes {tuple(y.shape)} of {tuple(x.shape)}: expand it before")
    way = x - x0
    close = _close(way, x, eps)
    m = (y - y0) / way
    if close.any():
        slope = op.pull_back(torch.ones_like(y))[i]
        assert slope is not None, "it depends on the site"
        m = torch.where(close, slope, m)
    return _at(op, i, g * m)


def product(op: Op, g: Tensor, there: Tensors) -> Back:
    """ab - a0 b0 = (a - a0)(b + b0)/2 + (b - b0)(a + a0)/2: each factor half way."""
    if sum(op.needs) > 2:
        raise RuleError(
            f"{op.name!r} multiplies {sum(op.needs)} tensors that depend on the site; multiply two at a time"
        )
    return op.pull_back(g, _half_way(op, there))


def quotient(op: Op, g: Tensor, there: Tensors, eps: float) -> Back:
    """a/b - a0/b0 = ((a - a0) - q (b - b0)) / d, with the means q of both quotients and d of both divisors.

    It is the rule of the product a = (a/b) b, solved for the quotient: what it gives stays of the quotients' size,
    however small a divisor was. Where divisors have opposite signs the product with the reciprocal is halved instead.
    """
    if op.kwargs.get("rounding_mode") is not None:
        raise RuleError("there is no rule for a division that rounds")
    if len(op.tensors) == 1:
        return op.pull_back(g) if isinstance(op.args[0], Tensor) else rescale(op, g, there, eps)
    (a, b), (a0, b0) = op.tensors, there
    same = b * b0 > 0
    d = torch.where(same, (b + b0) / 2, 1)
    by_a = torch.where(same, 1 / d, (1 / b + 1 / b0) / 2)
    by_b = torch.where(same, -(a / b + a0 / b0) / 2 / d, -(a + a0) / 2 / (b * b0))
    return op.pull_back(g, instead=lambda a, b: a * by_a + b * by_b)


def pool(op: Op, g: Tensor, there: Tensors, eps: float) -> Back:
    """Max pooling: see :func:`_picked`; the elements of a window are the candidates."""
    spatial = int(op.name[-2])
    places = op.args[1 : 2 if op.name.startswith("adaptive") else 6]
    again = partial(getattr(F, op.name), **{**op.kwargs, "return_indices": True})
    (y, i), (y0, i0) = again(op.tensors[0], *places), again(there[0], *places)
    i, i0 = (k.flatten(-spatial).expand(*g.shape[:-spatial], -1) for k in (i, i0))
    x, x0, y, y0 = (t.flatten(-spatial) for t in (op.tensors[0], there[0], y, y0))
    pick = _picked(x, x0, y, y0, i, i0, eps)
    return op.pull_back(g, instead=lambda x: pick(x.flatten(-spatial)).reshape(g.shape))


def choice(op: Op, g: Tensor, there: Tensors, eps: float) -> Back:
    """The largest (smallest) of two tensors, or along axes: see :func:`_picked`."""
    sign = -1 if "min" in op.name else 1

    def candidates(*tensors: Tensor) -> Tensor:
        if len(tensors) == 2:
            return sign * torch.stack(torch.broadcast_tensors(*tensors), -1)
        x, dim = tensors[0], op.argument(1, "dim")
        dims = tuple(range(x.ndim)) if dim is None or dim == () else (dim,) if isinstance(dim, int) else tuple(dim)
        return sign * x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))

    x, x0 = candidates(*op.tensors), candidates(*there[: len(op.tensors)])
    x0 = x0.expand_as(x)
    (y, i), (y0, i0) = x.max(-1, keepdim=True), x0.max(-1, keepdim=True)
    pick = _picked(x, x0, y, y0, i, i0, eps)
    return op.pull_back(g, instead=lambda *tensors: sign * pick(candidates(*tensors)).reshape(g.shape))


def _picked(
    x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, i: Tensor, i0: Tensor, eps: float
) -> Callable[[Tensor], Tensor]:
    """The largest of several: what it won is owed to the winner here, what it lost to the winner there.

    With the cross maximum t = max(y, y0), the winner x[i] is given t - y0 and the former one, x[i0], y - t; as SHAP's
    and Captum's rule for max pooling, but for overlapping windows too.
    """
    top = torch.maximum(y, y0)
    shares = []
    for k, won, otherwise in ((i, top - y0, 1), (i0, y - top, 0)):
        here = x.gather(-1, k)
        way = here - x0.expand_as(x).gather(-1, k)
        close = _close(way, here, eps)
        shares.append(torch.where(close, otherwise, won / torch.where(close, 1, way)))
    return lambda x: x.gather(-1, i) * shares[0] + x.gather(-1, i0) * shares[1]


def softmax(op: Op, g: Tensor, there: Tensors) -> Back:
    """Softmax, its logarithm and log-sum-exp, by logarithmic means L of the probabilities here and there.

    A probability p = exp(l) moves by L (l - l0), where L = (p - p0) / (l - l0), and l = x - lse(x), whose second term
    moves by the mean of the moves of x with weights L / sum(L), because probabilities go on adding up to one. So the
    multipliers are L_i (delta_ij - w_j): bounded, the same whatever is added to all x, and the plain gradient in the
    limit. All stays within a row. (Ang's logarithmic mean Divisia decomposition, Energy Policy 32, 2004.)
    """
    dim = op.argument(1, "dim")
    x, x0 = (t.to(g.dtype) for t in (op.tensors[0], there[0]))
    log, log0 = (t - t.logsumexp(dim, keepdim=True) for t in (x, x0))
    p, p0 = log.exp(), log0.exp()
    way = torch.where((p == 0) & (p0 == 0), 0, log - log0).abs()  # masked: both are infinitely far down
    # (p - p0) / (l - l0) without their differences, whose digits cancel where they are near
    mean = torch.maximum(p, p0) * torch.where(way == 0, 1, -torch.expm1(-way) / way)
    weights = mean / mean.sum(dim, keepdim=True)
    if op.name == "softmax":
        return (mean * g - weights * (mean * g).sum(dim, keepdim=True),)
    if op.name == "log_softmax":
        return (g - weights * g.sum(dim, keepdim=True),)
    return (weights * g.reshape(p.sum(dim, keepdim=True).shape),)


def switch(op: Op, g: Tensor, there: Tensors) -> Back:
    """One of two tensors by a mask, which must be the same here and there."""
    masks = zip(op.all_tensors, there, strict=True)
    if any((a != b).any() for a, b in masks if a.dtype == torch.bool):
        raise RuleError(
            f"{op.name!r} takes another branch for the baseline than for the input, which no difference passes; write "
            "it with relu, clamp or maximum, or let its plain gradient pass with otherwise='gradient'"
        )
    return op.pull_back(g)


def sampled(op: Op, g: Tensor, there: Tensors) -> Back:
    """Interpolation, linear in what is sampled at fixed places."""
    if op.needs[1]:
        raise RuleError("there is no rule for grid_sample at places that depend on the site")
    return op.pull_back(g)


def _asked(rule: Callable[[Op, Tensor, Tensors], Back], there: There, op: Op, g: Tensor) -> Back:
    tensors = there(op)
    return rule(op, g, tensors if rule is switch else tuple(t for t in tensors if t.is_floating_point()))


def _half_way(op: Op, there: Tensors) -> Tensors:
    return tuple((t + t0) / 2 if n else t for t, t0, n in zip(op.tensors, there, op.needs, strict=True))


def _close(way: Tensor, x: Tensor, eps: float) -> Tensor:
    """Whether the way to ``x`` is rounding, and tells nothing."""
    return way.abs() <= eps + 4 * torch.finfo(x.dtype).eps * x.abs()


def _only(op: Op) -> int:
    if sum(op.needs) > 1:
        raise RuleError(f"there is no rule for {op.name!r} of several tensors that depend on the site")
    return op.needs.index(True)


def _at(op: Op, i: int, g: Tensor) -> Back:
    return tuple(g if k == i else None for k in range(len(op.needs)))

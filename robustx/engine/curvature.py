"""Curvature: second derivatives of scores with respect to a model's parameters, never written out unless asked for."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import ArgumentError
from .memory import out_of_memory
from .probe import Probe
from .weights import Weights

NUMBERS = 1 << 18  # in directions that share one pass of the model, 8 to 256 of them


def hessian_products(weights: Weights, probe: Probe, v: Tensor, rows: Tensor | None = None) -> Tensor:
    """The Hessian of the sum of all examples' pulls times each of some directions [m, P].

    Pearlmutter (Neural Computation 1994): the gradient of the gradient's product with a direction. Several directions
    share one pass of the model and the way back of their examples.

    Args:
        weights: with respect to what; of the probe's model.
        probe: the model on its inputs, with the score whose pull is differentiated.
        v: the directions [m, P], in the order of the weights.
        rows: the examples that count; None for all.

    Raises:
        ValueError: directions of another size.

    >>> from robustx.engine import Output, Probe
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> square = lambda out: out[:, 0] ** 2
    >>> probe = Probe(model, (torch.tensor([[1.0, 2.0], [0.0, 1.0]]),), Output(square))
    >>> hessian_products(Weights.of(model), probe, torch.tensor([[1.0, 0.0]]))
    tensor([[2., 4.]])
    """
    if v.ndim != 2 or v.shape[1] != weights.size:
        raise ArgumentError(f"v must be directions [m, {weights.size}], got {tuple(v.shape)}")
    rows = probe.everyone if rows is None else rows
    together = min(max(NUMBERS // weights.size, 8), 256)
    return torch.cat([_products(weights, probe, some, rows) for some in v.split(together)]) if len(v) else v.clone()


def hessian(weights: Weights, probe: Probe) -> Tensor:
    """The Hessian of the sum of all examples' pulls [P, P]."""
    like = next(iter(weights.parameters.values()))
    found = hessian_products(weights, probe, torch.eye(weights.size, dtype=like.dtype, device=like.device))
    return (found + found.T) / 2


def _products(weights: Weights, probe: Probe, v: Tensor, whose: Tensor) -> Tensor:
    def work(part: slice) -> Tensor:
        rows = whose[part]
        leaves = weights._leaves()
        wanted = [leaves[n] for n in weights.parameters]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            pull = weights._pull(probe, leaves, rows)
            if not pull.requires_grad:
                return torch.zeros_like(v)
            grads = torch.autograd.grad(pull.sum(), wanted, create_graph=True, allow_unused=True)
            found = _back(grads, wanted, v)
        probe._count(rows, backward=1 + len(v))
        return found

    kind = ("hessian", probe._size, len(v), *weights.parameters)
    return sum((t for _, t in probe._batches(len(whose), work, kind)), torch.zeros_like(v))


def _back(grads: tuple[Tensor | None, ...], wanted: list[Tensor], v: Tensor) -> Tensor:
    """The gradients of the product of the gradients with each direction [m, P]."""
    parts = v.split([p.numel() for p in wanted], 1)
    sides = [part.reshape(len(v), *p.shape) for part, p in zip(parts, wanted, strict=True)]
    pairs = [(g, side) for g, side in zip(grads, sides, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    given = [g for g, _ in pairs]

    def ask(along: list[Tensor], together: bool) -> list[Tensor]:
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "is_grads_batched": together}
        found = torch.autograd.grad(given, wanted, along, **options)
        shape = (len(along[0]),) if together else ()
        return [p.new_zeros(*shape, *p.shape) if t is None else t for t, p in zip(found, wanted, strict=True)]

    if len(v) > 1:
        try:
            rows = ask([side for _, side in pairs], True)
            return torch.cat([t.detach().reshape(len(v), -1) for t in rows], 1)
        except Exception as e:  # whatever on the way back cannot be done for all directions at once
            if out_of_memory(e):
                raise
    each = (ask([side[i] for _, side in pairs], False) for i in range(len(v)))
    return torch.stack([torch.cat([t.detach().flatten() for t in rows]) for rows in each])


__all__ = ["hessian", "hessian_products"]

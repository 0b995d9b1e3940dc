"""References: what features give way to."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.packing import Tensors, finest
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise, identities
from ..engine.sites import Input

Reference = Callable[[Probe], Tensors]
"""Asked with a probe: tensors that can stand at its site, one row for each example."""

Giver = Callable[[Tensor, Tensor], Tensors]
"""(gates [n, F], examples [n]) -> what the features of each query give way to, where that depends on the query."""


def through(baselines: Any) -> Reference:
    """Reference inputs; at a layer, what the layer makes of them. This is Captum's ``baselines``.

    Args:
        baselines: None (zero), a number, a tensor [1 or B, ...] or without the batch axis, or a tuple (dict)
            of these, one for each input.
    """
    return lambda f: f.to(inputs=_like_inputs(baselines, f)).here


def here(baselines: Any) -> Reference:
    """Baselines in the forms of :func:`through`, but at the very site."""
    return lambda f: _like_inputs(baselines, f.to(inputs=f.here, names=None, at=Input()))


def mean(data: Tensor | tuple[Tensor, ...]) -> Reference:
    """The mean of a data set [M, ...]."""
    data = (data,) if isinstance(data, Tensor) else data
    return through(tuple(finest(t).mean(0, keepdim=True).to(t.dtype) for t in data))


def blur(sigma: float = 3.0) -> Reference:
    """The pictures themselves, blurred by a Gaussian of ``sigma`` pixels (Fong, Vedaldi, ICCV 2017)."""

    def blurred(t: Tensor) -> Tensor:
        from scipy.ndimage import gaussian_filter

        if t.ndim != 4:
            raise ValueError(
                f"reference 'blur' is for pictures [B, C, H, W], got shape {tuple(t.shape)}; choose another"
            )
        widths = (0.0,) * (t.ndim - 2) + (sigma,) * 2
        return torch.from_numpy(gaussian_filter(t.detach().double().cpu().numpy(), widths)).to(t)

    return lambda f: through(tuple(blurred(t) for t in f.inputs))(f)


def among(data: Tensor | tuple[Tensor, ...], seed: int = 0) -> Reference:
    """A row of a data set [M, ...] for each example, drawn by key (the marginal distribution)."""
    data = (data,) if isinstance(data, Tensor) else data

    def drawn(f: Probe) -> Tensors:
        point = f.to(at=Input()).point
        pick = (Noise(seed, "reference", identities(point)).uniform(1, point.double()) * len(data[0])).long().squeeze(1)
        return through(tuple(t.to(f.device)[pick] for t in data))(f)

    return drawn


def given_by(baselines: Any, inputs: Any) -> Any:
    """Baselines as they are; of a function, what it makes of the inputs in their own form, or of no argument.

    It may draw from the global generators, so it is to be asked where these are not given back.
    """
    if not callable(baselines):
        return baselines
    Door.open(inputs)  # what is wrong with them is told before a function stumbles over it
    return baselines(inputs) if signature(baselines).parameters else baselines()


def distribution(baselines: Any, f: Probe, together: bool = True) -> Tensors:
    """Reference inputs of any number of rows, [S, ...] each: Captum's ``baselines`` where they are a distribution.

    Args:
        baselines: a tensor [S, ...], or a tuple (dict) of these, one for each input; a number is one row.
        f: a probe of the inputs.
        together: one draw serves all inputs, so all must have one number of rows, or a single one.

    Raises:
        TypeError, ValueError: they are none of these, or do not fit the inputs.
    """
    parts = [_rows(b, x, i) for i, (b, x) in enumerate(zip(_each_input(baselines, f), f.inputs, strict=True))]
    most = max(map(len, parts))
    if together and not {len(b) for b in parts} <= {1, most}:
        raise ArgumentError(f"baselines must have one number of rows, got {', '.join(str(len(b)) for b in parts)}")
    return tuple(b.expand(most, *b.shape[1:]) if together else b for b in parts)


def _rows(b: Any, x: Tensor, i: int) -> Tensor:
    """[S, ...] for input ``i``."""
    if isinstance(b, int | float):
        return x.new_full((1, *x.shape[1:]), b)
    if not isinstance(b, Tensor):
        raise ArgumentTypeError(
            f"baselines must be tensors [S, ...], numbers or a function that makes them, got {type(b).__name__}"
        )
    if b.ndim != x.ndim or b.shape[1:] != x.shape[1:] or not len(b):
        raise ArgumentError(
            f"baselines of shape {tuple(b.shape)} do not fit input {i} of shape {tuple(x.shape)}; expected "
            f"[S, {', '.join(map(str, x.shape[1:]))}] with any number S of rows"
        )
    return b.detach().to(x)


def _each_input(baselines: Any, f: Probe) -> tuple[Any, ...]:
    """One entry for each input."""
    if isinstance(baselines, Mapping):
        names = f.names or ()
        if not baselines.keys() <= set(names):
            raise ArgumentError(
                f"baselines name {', '.join(baselines)}, but the inputs are {', '.join(names) or 'no dict'}"
            )
        baselines = tuple(baselines.get(n) for n in names)
    if not isinstance(baselines, tuple | list):
        baselines = (baselines,) * (len(f.inputs) if not isinstance(baselines, Tensor) else 1)
    if len(baselines) != len(f.inputs):
        raise ArgumentError(
            f"baselines must have one entry for each of the {len(f.inputs)} inputs, got {len(baselines)}"
        )
    return tuple(baselines)


def _like_inputs(baselines: Any, f: Probe) -> Tensors:
    parts = _each_input(baselines, f)
    return tuple(_like(b, x, i) for i, (b, x) in enumerate(zip(parts, f.inputs, strict=True)))


def _like(b: Any, x: Tensor, i: int) -> Tensor:
    if b is None or isinstance(b, int | float):
        return torch.full_like(x, b or 0)
    if not isinstance(b, Tensor):
        raise ArgumentTypeError(f"baselines must be None, numbers or tensors, got {type(b).__name__} for input {i}")
    try:
        return b.detach().to(x).expand(x.shape)
    except RuntimeError:
        raise ArgumentError(
            f"baselines of shape {tuple(b.shape)} do not fit input {i} of shape {tuple(x.shape)}; "
            f"expected a number, [1, ...] or [{len(x)}, ...]"
        ) from None

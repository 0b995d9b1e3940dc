"""Infidelity and sensitivity: what explanations say of perturbations, and how they bear them. Captum's two metrics."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ...engine.checks import ArgumentError, ArgumentTypeError, at_least, whole
from ...engine.guard import Turns, undrawn_on_error, untouched
from ...engine.packing import Tensors, finest, flat, row_sums
from ...engine.probe import Door, by_name
from ...engine.randomness import Noise, identities
from ...engine.scores import Output
from ...engine.sites import Given


def infidelity(
    forward_func: Callable[..., Any],
    perturb_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    baselines: Any = None,
    additional_forward_args: Any = None,
    target: Any = None,
    n_perturb_samples: int = 10,
    max_examples_per_batch: int | None = None,
    normalize: bool = False,
    *,
    additional_forward_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """The mean square by which attributions miss how far the score falls under perturbations [B].

    Yeh, Hsieh, Suggala, Inouye, Ravikumar (NeurIPS 2019), definition 2.1: E (I . a - (f(x) - f(x - I)))^2.

    Args:
        forward_func, inputs, additional_forward_args, target: see :class:`robustx.attribution.Attribution`; inputs may
            hold integers.
        perturb_func: takes the inputs, each example repeated so many times in a row, and ``baselines`` if there are
            any; returns (I, the perturbed inputs), shaped like them. For attributions that contain the way from a
            baseline I says which share of the way was taken back. All copies are made at once.
        attributions: shaped like the inputs.
        baselines: handed to ``perturb_func``; tensors of B rows follow the examples.
        n_perturb_samples: perturbations of each example.
        max_examples_per_batch: most rows in one pass, and for how many ``perturb_func`` is asked at once (for all
            examples at least). Default: passes fill the memory budget.
        normalize: scale attributions by the factor that fits best, example by example, before.

    Raises:
        ValueError: shapes do not fit.

    >>> model = torch.nn.Linear(3, 1)
    >>> def noisy(x):
    ...     noise = 0.1 * torch.randn(x.shape)
    ...     return noise, x - noise
    >>> bool((infidelity(model, noisy, torch.rand(2, 3), model.weight.expand(2, 3)) < 1e-10).all())  # exact
    True
    """
    n = whole("n_perturb_samples", n_perturb_samples, 1)
    _called("perturb_func", perturb_func, "(inputs) -> (perturbations, perturbed inputs)")
    with undrawn_on_error():
        turns = Turns()
        with untouched(forward_func):
            door = Door.open(inputs)
            f = door.probe(
                forward_func,
                Output(target),
                additional_forward_args,
                additional_forward_kwargs,
                max_examples_per_batch,
            )
            shares = _shaped("attributions", attributions, door, door.inputs)
            b = max(f.examples, 1)
            each = n if max_examples_per_batch is None else min(max(max_examples_per_batch // b, 1), n)
            sums = finest(f.score).new_zeros(3, f.examples)  # of squares of what is told, products, squares of what is
            for start in range(0, n, each):
                count = min(each, n - start)
                with turns.drawing():
                    told, perturbed = _perturbed(perturb_func, door, baselines, count)
                given, at = f.to(at=Given(perturbed)), f.everyone.repeat_interleave(count)
                number = torch.arange(len(at), device=at.device)[:, None]
                value = given.value(number, at)
                fall = finest(f.score[at] - value)
                said = row_sums([finest(i * a[at]) for i, a in zip(told, shares, strict=True)]).to(fall)
                sums += torch.stack([said * said, said * fall, fall * fall]).unflatten(1, (-1, count)).sum(2)
        turns.leave()
    squares, products, falls = sums / n
    if normalize:
        scale = products / torch.where(squares == 0, 1, squares)
        squares, products = scale * scale * squares, scale * products
    missed: Tensor = squares - 2 * products + falls
    return missed.clamp(min=0).to(torch.promote_types(f.score.dtype, torch.float32))


def _called(name: str, given: Any, wanted: str) -> None:
    if not callable(given):
        raise ArgumentTypeError(f"{name} must be a function, such as {wanted}, got {type(given).__name__}")


def _perturbed(perturb_func: Callable[..., Any], door: Door, baselines: Any, count: int) -> tuple[Tensors, Tensors]:
    """What was taken away and what is left, of ``count`` copies of each example."""
    copies = tuple(t.repeat_interleave(count, 0) for t in door.inputs)
    many = len(door.inputs[0])

    def follow(v: Any) -> Any:
        return v.repeat_interleave(count, 0) if isinstance(v, Tensor) and v.ndim and len(v) == many > 1 else v

    further: tuple[Any, ...] = ()
    if isinstance(baselines, Mapping):
        further = ({k: follow(v) for k, v in baselines.items()},)
    elif baselines is not None:
        parts = tuple(map(follow, baselines if isinstance(baselines, tuple) else (baselines,)))
        further = (parts[0] if len(parts) == 1 else parts,)
    made = perturb_func(_in_form(copies, door), *further)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise ArgumentError(
            "perturb_func must return (perturbations, perturbed inputs), got "
            f"{type(made).__name__}; infidelity_perturb_func_decorator makes a pair of the perturbed inputs alone"
        )
    told, left = (
        _shaped(what, v, door, copies) for what, v in zip(("perturbations", "perturbed inputs"), made, strict=True)
    )
    return told, left


def _in_form(tensors: Tensors, door: Door) -> Any:
    """Tensors in the form of the inputs; the only one of a tuple by itself."""
    return tensors[0] if len(tensors) == 1 and door.names is None else door.out(tensors)


def _shaped(what: str, given: Any, door: Door, like: Tensors) -> Tensors:
    """Tensors that were given in the form of the inputs, if they are shaped like ``like``."""
    given = by_name(given, door.names, what)
    tensors = (given,) if isinstance(given, Tensor) else tuple(given)
    shapes, expected = [tuple(t.shape) for t in tensors], [tuple(t.shape) for t in like]
    if shapes != expected:
        raise ArgumentError(f"{what} must be shaped like the inputs, {expected}, got {shapes}")
    return tuple(t.detach().to(x.device) for t, x in zip(tensors, like, strict=True))


def infidelity_perturb_func_decorator(
    multiply_by_inputs: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., tuple[Tensors, Tensors]]]:
    """Makes a ``perturb_func`` of :func:`infidelity` from one that returns the perturbed inputs alone.

    Args:
        multiply_by_inputs: the attributions contain the way from the baseline (or zero): perturbations are the share of
            it that was taken back, (x - x') / (x - b), and x - x' where there is no way. Otherwise x - x'.

    >>> @infidelity_perturb_func_decorator()
    ... def halved(x):
    ...     return x / 2
    >>> halved(torch.tensor([[2.0, 0.0]]))
    ((tensor([[0.5000, 0.0000]]),), (tensor([[1., 0.]]),))
    """

    def decorate(perturb_func: Callable[..., Any]) -> Callable[..., tuple[Tensors, Tensors]]:
        @wraps(perturb_func)
        def pair(inputs: Any, baselines: Any = None) -> tuple[Tensors, Tensors]:
            left = perturb_func(inputs) if baselines is None else perturb_func(inputs, baselines)
            names = tuple(inputs) if isinstance(inputs, Mapping) else None
            parts, after = (_parts(v, names) for v in (inputs, left))
            before = _parts(baselines, names) if baselines is not None else (0,) * len(parts)
            told = []
            for x, z, b in zip(parts, after, before, strict=True):
                way = x - b if multiply_by_inputs else torch.ones_like(x)
                told.append((x - z) / torch.where(way == 0, 1, way))
            return tuple(told), after

        return pair

    return decorate


def _parts(given: Any, names: tuple[str, ...] | None) -> tuple[Any, ...]:
    given = by_name(given, names, "what perturb_func returns")
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def default_perturb_func(inputs: Any, perturb_radius: float = 0.02) -> Tensors:
    """Each element moved by up to ``perturb_radius``, uniformly, by torch's global generator; always a tuple."""
    given = inputs.values() if isinstance(inputs, Mapping) else inputs
    tensors = (given,) if isinstance(given, Tensor) else tuple(given)
    return tuple(t + torch.empty(t.shape).uniform_(-perturb_radius, perturb_radius).to(t) for t in tensors)


EXAMPLE_WISE = ("target", "additional_forward_args", "additional_forward_kwargs", "baselines", "feature_mask")
"""Arguments of explanations whose tensors (and a list of targets) have a row for each example."""


def sensitivity_max(
    explanation_func: Callable[..., Any],
    inputs: Any,
    perturb_func: Callable[..., Any] = default_perturb_func,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: Any = "fro",
    max_examples_per_batch: int | None = None,
    *,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """How far an explanation moves at most when the inputs move a little, as a share of its own size [B].

    Yeh et al. (NeurIPS 2019), section 3: the greatest of ``n_perturb_samples``, so a bound from below.

    Args:
        explanation_func: such as the ``attribute`` of a method, yours or Captum's.
        inputs: as it takes them.
        perturb_func: takes the inputs, each example repeated so many times in a row, and ``perturb_radius`` if it has
            room for it; returns them perturbed. Default: uniformly within the radius, element by element.
        perturb_radius: in input units.
        n_perturb_samples: perturbations of each example.
        norm_ord: which norm of the explanation, as for ``torch.linalg.vector_norm``; "fro" is 2.
        max_examples_per_batch: most rows in one call of ``explanation_func``, for all examples at least.
        seed: draws the default's perturbations by key; without it they come from torch's global generator.
        kwargs: for ``explanation_func``. Tensors of B rows among ``target``, ``additional_forward_args``,
            ``additional_forward_kwargs``, ``baselines`` and ``feature_mask`` follow the examples.

    Raises:
        ValueError: a number is out of range, or ``seed`` is given for a ``perturb_func`` of one's own.

    >>> from robustx.attribution import Saliency
    >>> sensitivity_max(Saliency(torch.nn.Linear(3, 1)).attribute, torch.rand(2, 3))  # its slopes are the same anywhere
    tensor([0., 0.])
    """
    n, order = whole("n_perturb_samples", n_perturb_samples, 1), 2 if norm_ord == "fro" else norm_ord
    _called("explanation_func", explanation_func, "the attribute of a method")
    _called("perturb_func", perturb_func, "(inputs, perturb_radius) -> perturbed inputs")
    if isinstance(order, bool) or not isinstance(order, int | float):
        raise ArgumentError(
            f"norm_ord must be 'fro' or the order of a norm, such as 1 or float('inf'), got {norm_ord!r}"
        )
    if perturb_func is default_perturb_func:
        at_least("perturb_radius", perturb_radius, 0)
    if seed is not None and perturb_func is not default_perturb_func:
        raise ArgumentError("seed is for the default perturbations; draw your own from a generator of your own")
    door = Door.open(inputs)
    b = len(door.inputs[0])
    limit = n * b if max_examples_per_batch is None else whole("max_examples_per_batch", max_examples_per_batch, 1)
    each = min(max(limit // max(b, 1), 1), n)
    with undrawn_on_error():
        start = _explained(explanation_func, door.out(door.inputs), kwargs)
        size = torch.linalg.vector_norm(start, order, 1)
        most = torch.zeros_like(size)
        for first in range(0, n, each):
            count = min(each, n - first)
            copies = tuple(t.repeat_interleave(count, 0) for t in door.inputs)
            if seed is None:
                takes = (_in_form(copies, door), perturb_radius)
                moved = perturb_func(*takes[: min(len(signature(perturb_func).parameters), 2)])
            else:
                moved = _moved(copies, perturb_radius, seed, first, count, door)
            moved = _shaped("perturbed inputs", moved, door, copies)
            repeated = {k: _repeated(v, b, count) if k in EXAMPLE_WISE else v for k, v in kwargs.items()}
            there = _explained(explanation_func, _in_form(moved, door), repeated)
            way = torch.linalg.vector_norm(there - start.repeat_interleave(count, 0), order, 1)
            most = torch.maximum(most, way.unflatten(0, (b, count)).amax(1))
    return most / torch.where(size == 0, 1, size)


def _explained(explanation_func: Callable[..., Any], inputs: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """The explanation, its tensors joined in one row an example [N, D]."""
    found = explanation_func(inputs, **kwargs)
    if isinstance(found, Mapping):
        found = tuple(found.values())
    parts: Sequence[Tensor] = (found,) if isinstance(found, Tensor) else found
    return torch.cat([flat(t.detach()) for t in parts], 1)


def _moved(copies: Tensors, radius: float, seed: int, first: int, count: int, door: Door) -> Tensors:
    """Copies that moved uniformly within the radius, drawn by example and number."""
    draws = Noise(seed, "sensitivity", identities(*door.inputs))
    rows = torch.arange(len(copies[0])) // count
    numbers = first + torch.arange(len(copies[0])) % count
    u = draws.copies(rows, numbers).uniform(sum(flat(t).shape[1] for t in copies), copies[0])
    parts = u.split_with_sizes([flat(t).shape[1] for t in copies], 1)
    return tuple(t + (radius * (2 * p - 1)).reshape(t.shape) for t, p in zip(copies, parts, strict=True))


def _repeated(value: Any, examples: int, count: int) -> Any:
    """A value whose tensors of so many rows, and a list of so many, repeat each of them in a row."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, 0) if value.ndim and len(value) == examples else value
    if isinstance(value, Mapping):
        return {k: _repeated(v, examples, count) for k, v in value.items()}
    if isinstance(value, list) and len(value) == examples and all(isinstance(v, int | tuple) for v in value):
        return [v for v in value for _ in range(count)]
    return type(value)(_repeated(v, examples, count) for v in value) if type(value) in (tuple, list) else value

"""Sanity: whether explanations depend on what the model has learnt, or would look the same without it."""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, ArgumentTypeError, optional
from ...engine.guard import modules_of, untouched
from ...engine.packing import finest, flat
from ...engine.randomness import Noise
from .case import correlation

Similarity = str | Callable[[Tensor, Tensor], Tensor]
"""How alike two explanations are: "spearman", "ssim", or a function of both [B, ...] -> [B]."""


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of examples [B, ...], of which equals share their ranks; [B].

    >>> rank_correlation(torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[2.0, 3.0, 100.0]])).round(decimals=4)
    tensor([1.], dtype=torch.float64)
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(finest(flat(t)).cpu().numpy(), axis=1)) for t in (a, b)]
    return correlation(*ranks)


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean structural similarity of pictures [B, C, H, W], summed over channels, each scaled by its greatest; [B].

    Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 2004), by scikit-image with its windows of 7 pixels, or as many as fit.

    >>> x = torch.rand(2, 1, 8, 8)
    >>> structural_similarity(x, x)
    tensor([1., 1.], dtype=torch.float64)
    """
    from skimage.metrics import structural_similarity as ssim

    if a.ndim != 4:
        raise ArgumentError(f"ssim is for pictures [B, C, H, W], got shape {tuple(a.shape)}; take spearman")
    maps = [finest(t).sum(1) for t in (a, b)]
    scaled = [t / t.abs().amax((1, 2), keepdim=True).clamp(min=1e-300) for t in maps]
    side = min(7, (min(a.shape[2:]) - 1) // 2 * 2 + 1)
    each = [ssim(p, q, win_size=side, data_range=2.0) for p, q in zip(*(t.cpu().numpy() for t in scaled), strict=True)]
    return torch.tensor(each, dtype=torch.float64)


SIMILARITIES = {"spearman": rank_correlation, "ssim": structural_similarity}


@dataclass(frozen=True, eq=False)
class Randomised:
    """How alike explanations stay while layers lose what they have learnt.

    Args:
        layers: their names, in the order in which they lost it.
        similarity: to the explanation of the model as it is [L, B].
        cascade: whether those before have lost it too.

    >>> Randomised(("3", "1"), torch.tensor([[0.5, 0.7], [0.1, 0.3]]), True)
    Randomised by cascade: 3 0.60, 1 0.20
    """

    layers: tuple[str, ...]
    similarity: Tensor
    cascade: bool

    def to_pandas(self) -> Any:
        """A table with a row for each layer and example: layer, example, similarity."""
        pandas = optional("pandas", "tables")
        count, b = self.similarity.shape
        return pandas.DataFrame(
            {
                "layer": [name for name in self.layers for _ in range(b)],
                "example": list(range(b)) * count,
                "similarity": self.similarity.flatten().cpu().numpy(),
            }
        )

    def __repr__(self) -> str:
        told = (f"{n} {m:.2f}" for n, m in zip(self.layers, self.similarity.mean(1).tolist(), strict=True))
        return f"Randomised {'by cascade' if self.cascade else 'one by one'}: {', '.join(told)}"


def parameter_randomisation(
    method: Any,
    inputs: Any,
    *,
    layers: Sequence[str] | None = None,
    cascade: bool = True,
    similarity: Similarity = "spearman",
    absolute: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Randomised:
    """How alike explanations stay while the model's layers are initialised anew, from the output down.

    Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim (NeurIPS 2018): an explanation that stays the same does
    not depend on what the model has learnt. A copy of the method and its model is randomised, never your own.

    Args:
        method: an object with ``attribute``, made of a module (and its layers).
        inputs: for ``attribute``, as are ``kwargs``.
        layers: names of modules that own parameters, in the order in which they are randomised. Default: all, the last
            one first.
        cascade: all layers down to this one, or this one alone.
        similarity: "spearman", "ssim", or a function of two explanations [B, ...] -> [B]; of the first tensor.
        absolute: compare magnitudes.
        seed: of the new parameters, drawn by layer: by its own ``reset_parameters``, or normally with each
            parameter's own mean and deviation. Methods that draw do so from the same state each time.

    Raises:
        ValueError, TypeError: the method cannot be copied together with its model, or there is no such layer.

    >>> from robustx.attribution import Saliency
    >>> model = torch.nn.Sequential(torch.nn.Linear(30, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
    >>> found = parameter_randomisation(Saliency(model), torch.rand(4, 30), target=1)
    >>> found.layers, found.similarity.shape
    (('2', '0'), torch.Size([2, 4]))
    """
    alike = _similarity(similarity, absolute)
    if not hasattr(method, "attribute") or not modules_of(getattr(method, "forward_func", None)):
        raise ArgumentTypeError(
            "method must be an object with attribute, made of a module, such as Saliency(model), got "
            f"{type(method).__name__}"
        )
    known = list(_owners(method))
    names = known[::-1] if layers is None else list(layers)
    for name in names:
        if name not in known:
            raise ArgumentError(f"layers must own parameters: {', '.join(known)}; got {name!r}")
    found = []
    with untouched(method.forward_func):
        start = _explained(method, inputs, kwargs, seed)
        copied = _copied(method)
        for name in names:
            copied = copied if cascade else _copied(method)
            _redraw(_owners(copied)[name], name, seed)
            found.append(alike(start, _explained(copied, inputs, kwargs, seed)))
    return Randomised(tuple(names), torch.stack(found), cascade)


def data_randomisation(
    build: Callable[[Any], Any],
    model: Any,
    other: Any,
    inputs: Any,
    *,
    labels: Tensor | None = None,
    similarity: Similarity = "spearman",
    absolute: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    """How alike the explanations are of a model and of one that was trained on shuffled labels [B].

    Adebayo et al. (NeurIPS 2018): an explanation that stays the same does not depend on how inputs and
    labels belong together.

    Args:
        build: makes a method of a model, such as ``Saliency``.
        model, other: the two. Or, with ``labels``, ``other`` trains a model on those that it is given and returns it.
        inputs, kwargs: for ``attribute``.
        labels: of the training data [M]; they are shuffled by key.
        similarity, absolute: see :func:`parameter_randomisation`.
        seed: of the order of the labels; methods that draw do so from the same state both times.

    >>> from robustx.attribution import Saliency
    >>> one, two = torch.nn.Linear(30, 2), torch.nn.Linear(30, 2)
    >>> found = data_randomisation(
    ...     Saliency, one, lambda labels: two, torch.rand(3, 30), labels=torch.arange(5), target=0
    ... )
    >>> bool((found < 0.9).all())
    True
    """
    alike = _similarity(similarity, absolute)
    if labels is not None:
        order = Noise(seed, "shuffled labels", [""]).generators()[0].permutation(len(labels))
        other = other(labels[torch.from_numpy(order).to(labels.device)])
    methods = build(model), build(other)
    with untouched([m.forward_func for m in methods]):
        return alike(*(_explained(m, inputs, kwargs, seed) for m in methods))


def _similarity(given: Similarity, absolute: bool) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(given, str) and given not in SIMILARITIES:
        raise ArgumentError(f"similarity must be {', '.join(map(repr, SIMILARITIES))} or a function, got {given!r}")
    alike = SIMILARITIES[given] if isinstance(given, str) else given
    return (lambda a, b: alike(a.abs(), b.abs())) if absolute else alike


def _owners(method: Any) -> dict[str, nn.Module]:
    """The modules that own parameters, by their names in the model, the first one first."""
    tops = modules_of(method.forward_func)
    named = ((name, m) for top in tops for name, m in top.named_modules())
    return {name: m for name, m in named if next(m.parameters(recurse=False), None) is not None}


def _copied(method: Any) -> Any:
    copied = deepcopy(method)
    ours = {id(m) for top in modules_of(method.forward_func) for m in top.modules()}
    if any(id(m) in ours for top in modules_of(copied.forward_func) for m in top.modules()):
        raise ArgumentTypeError(
            "method must be made of a module, as its copy is randomised; a function that holds the model keeps your "
            "own: make a module of it"
        )
    return copied


def _explained(method: Any, inputs: Any, kwargs: dict[str, Any], seed: int) -> Tensor:
    _seeded(seed)
    found = method.attribute(inputs, **kwargs)
    first = found if isinstance(found, Tensor) else next(iter(found.values() if isinstance(found, dict) else found))
    return first.detach()


def _redraw(module: nn.Module, name: str, seed: int) -> None:
    """Initialises a module's own parameters anew, by key."""
    (words,) = Noise(seed, "randomised parameters", [name]).generators()
    _seeded(int(words.integers(2**31)))
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    with torch.no_grad():
        if reset is not None:
            reset()
            return
        for p in module.parameters(recurse=False):
            p.copy_(p.mean() + (p.std(correction=0) * torch.randn(p.shape)).to(p))


def _seeded(seed: int) -> None:
    """The global generators start anew; to be used where they are given back."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)

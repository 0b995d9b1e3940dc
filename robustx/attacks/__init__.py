"""Attacks: inputs near the given ones at which the model changes its mind."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from .base import Attack, AttackResult, Found, Perturbation, ZeroGradientWarning
from .gradient import FGSM, PGD, fgsm, pgd
from .search import Bisection, MinParamPerturbation, bisect

ATTACKS: dict[str, type[Attack]] = {"fgsm": FGSM, "pgd": PGD, "bisection": Bisection}


def make(name: str, model: Callable[..., Any], **options: Any) -> Attack:
    """The attack of that name, bound to a model; options as its class takes them.

    Raises:
        ValueError: there is none of that name.

    >>> import torch
    >>> make("pgd", torch.nn.Linear(4, 3), bounds=(0, 1), eps=0.1, steps=10)  # doctest: +ELLIPSIS
    PGD(Linear, ...)
    """
    try:
        return ATTACKS[name.lower()](model, **options)
    except KeyError:
        near = get_close_matches(name, ATTACKS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no attack is called {name!r}; {hint}known are {', '.join(ATTACKS)}") from None


__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Bisection",
    "Found",
    "MinParamPerturbation",
    "Perturbation",
    "ZeroGradientWarning",
    "bisect",
    "fgsm",
    "make",
    "pgd",
]

"""Attacks: inputs near the given ones at which the model changes its mind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from .apgd import APGD
from .auto import AutoAttack
from .base import Active, Attack, Perturbation, ZeroGradientWarning
from .carlini import CW, EAD, cw_l0, cw_l2, cw_linf, ead
from .compare import AttackComparator
from .deepfool import DeepFool, SuperDeepFool
from .dual import ALMA, PDGD, PDPGD, alma, pdgd, pdpgd
from .fab import FAB
from .found import Found
from .gradient import FGSM, PGD, TransferPGD, fgsm, pgd
from .minimal import DDN, FMN, TrustRegion, ddn, fmn, trust_region
from .portfolio import Portfolio, minimal_distance
from .result import AttackResult
from .search import Bisection, MinParamPerturbation, bisect, sure
from .sparse import JSMA, VFGA, SigmaZero, SparseFool, jsma, sigma_zero, sparsefool, vfga
from .spatial import SpatialGrid, SpatialResult
from .square import Square
from .wrappers import BPDA, EOT


@dataclass(frozen=True)
class Named:
    """An attack as the papers call it: a class, and the options that make it that one.

    Calling it binds a model; options given then go before its own.
    """

    attack: type[Attack]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: Callable[..., Any], **options: Any) -> Attack:
        known = self.arguments()
        for name in options.keys() - known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{self.attack.__name__} has no argument {name!r}{hint}")
        return self.attack(model, **{**self.options, **options})

    @property
    def norms(self) -> tuple[str, ...]:
        """Those it knows; the first is its default."""
        return self.attack.norms

    @property
    def minimal(self) -> bool:
        """Whether it looks for the nearest point, rather than for any within a budget."""
        return self.attack.minimal

    @property
    def needs(self) -> str:
        """What it asks of the model: ``"gradients"`` or ``"scores"``."""
        return self.attack.needs

    def arguments(self) -> set[str]:
        """Names of the options it takes."""
        return self.attack.arguments()


ATTACKS: dict[str, Named] = {
    "fgsm": Named(FGSM),
    "r-fgsm": Named(PGD, {"steps": 1, "random_start": True, "random_step": 0.5, "reach": 0.5}),
    "ffgsm": Named(PGD, {"steps": 1, "random_start": True, "reach": 1.25}),
    "bim": Named(PGD, {"steps": 10, "reach": 1.25}),
    "pgd": Named(PGD),
    "apgd-ce": Named(APGD, {"loss_func": "ce"}),
    "apgd-dlr": Named(APGD, {"loss_func": "dlr"}),
    "apgd-t": Named(APGD, {"loss_func": "dlr", "targets": 9}),
    "mi-fgsm": Named(TransferPGD),
    "ni-fgsm": Named(TransferPGD, {"nesterov": True}),
    "si-ni-fgsm": Named(TransferPGD, {"nesterov": True, "scales": 5}),
    "di-fgsm": Named(TransferPGD, {"diversity": 0.5}),
    "ti-fgsm": Named(TransferPGD, {"kernel": 15}),
    "vmi-fgsm": Named(TransferPGD, {"neighbours": 20}),
    "vni-fgsm": Named(TransferPGD, {"neighbours": 20, "nesterov": True}),
    "deepfool": Named(DeepFool),
    "superdeepfool": Named(SuperDeepFool),
    "fmn": Named(FMN),
    "ddn": Named(DDN),
    "alma": Named(ALMA),
    "trust-region": Named(TrustRegion),
    "pdpgd": Named(PDPGD),
    "pdgd": Named(PDGD),
    "cw": Named(CW),
    "ead": Named(EAD),
    "sigma-zero": Named(SigmaZero),
    "vfga": Named(VFGA),
    "jsma": Named(JSMA),
    "sparsefool": Named(SparseFool),
    "fab": Named(FAB),
    "fab-t": Named(FAB, {"targets": 9}),
    "bisection": Named(Bisection),
    "portfolio": Named(Portfolio),
    "square": Named(Square),
    "autoattack": Named(AutoAttack, {"verbose": False}),
}


def make(name: str, model: Callable[..., Any], **options: Any) -> Attack:
    """The attack of that name (see :func:`names`), bound to a model; options as its class takes them.

    Raises:
        ValueError: there is none of that name.

    >>> import torch
    >>> make("pgd", torch.nn.Linear(4, 3), bounds=(0, 1), eps=0.1, steps=10)  # doctest: +ELLIPSIS
    PGD(Linear, ...)
    """
    known = ATTACKS.get(name.lower())
    if known is None:
        near = get_close_matches(name.lower(), ATTACKS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no attack is called {name!r}; {hint}known are {', '.join(ATTACKS)}")
    return known(model, **options)


def names(norm: str | None = None, minimal: bool | None = None) -> list[str]:
    """What :func:`make` knows: all names, or those of attacks in a norm, or of minimal ones (fixed-budget ones: False).

    >>> "pgd" in names("Linf"), "pgd" in names(minimal=True)
    (True, False)
    """
    return [
        name
        for name, known in ATTACKS.items()
        if (norm is None or norm in known.norms) and (minimal is None or minimal == known.minimal)
    ]


__all__ = [
    "ALMA",
    "APGD",
    "ATTACKS",
    "BPDA",
    "CW",
    "DDN",
    "EAD",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "JSMA",
    "PDGD",
    "PDPGD",
    "PGD",
    "VFGA",
    "Active",
    "Attack",
    "AttackComparator",
    "AttackResult",
    "AutoAttack",
    "Bisection",
    "DeepFool",
    "Found",
    "MinParamPerturbation",
    "Named",
    "Perturbation",
    "Portfolio",
    "SigmaZero",
    "SparseFool",
    "SpatialGrid",
    "SpatialResult",
    "Square",
    "SuperDeepFool",
    "TransferPGD",
    "TrustRegion",
    "ZeroGradientWarning",
    "alma",
    "bisect",
    "cw_l0",
    "cw_l2",
    "cw_linf",
    "ddn",
    "ead",
    "fgsm",
    "fmn",
    "jsma",
    "make",
    "minimal_distance",
    "names",
    "pdgd",
    "pdpgd",
    "pgd",
    "sigma_zero",
    "sparsefool",
    "sure",
    "trust_region",
    "vfga",
]

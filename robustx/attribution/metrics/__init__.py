"""Metrics of explanations: how faithful, how sensitive, how sparse, how well placed they are."""

from .case import Asked
from .curves import Curve, deletion, insertion, road
from .faithfulness import completeness, faithfulness_correlation, faithfulness_estimate, monotonicity
from .perturbed import default_perturb_func, infidelity, infidelity_perturb_func_decorator, sensitivity_max
from .places import pointing_game, relevance_mass, relevance_rank
from .shape import complexity, effective_complexity, sparseness

__all__ = [
    "Asked",
    "Curve",
    "completeness",
    "complexity",
    "default_perturb_func",
    "deletion",
    "effective_complexity",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "infidelity_perturb_func_decorator",
    "insertion",
    "monotonicity",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sensitivity_max",
    "sparseness",
]

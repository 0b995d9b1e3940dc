"""Metrics of explanations: how faithful, how sensitive, how sparse, how well placed they are."""

from .case import Asked
from .compare import METRICS, Difference, MethodTable, Metric, Trial, compare_methods
from .curves import Curve, deletion, insertion, road
from .faithfulness import completeness, faithfulness_correlation, faithfulness_estimate, monotonicity
from .perturbed import default_perturb_func, infidelity, infidelity_perturb_func_decorator, sensitivity_max
from .places import pointing_game, relevance_mass, relevance_rank
from .sanity import (
    Randomised,
    data_randomisation,
    parameter_randomisation,
    rank_correlation,
    structural_similarity,
)
from .shape import complexity, effective_complexity, sparseness

__all__ = [
    "METRICS",
    "Asked",
    "Curve",
    "Difference",
    "MethodTable",
    "Metric",
    "Randomised",
    "Trial",
    "compare_methods",
    "completeness",
    "complexity",
    "data_randomisation",
    "default_perturb_func",
    "deletion",
    "effective_complexity",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "infidelity_perturb_func_decorator",
    "insertion",
    "monotonicity",
    "parameter_randomisation",
    "pointing_game",
    "rank_correlation",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sensitivity_max",
    "sparseness",
    "structural_similarity",
]

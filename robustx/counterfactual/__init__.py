"""Counterfactuals: the few features that would have to differ for another answer, and what each one does."""

from .aims import Change
from .columns import Feature, Linear
from .explainer import STRATEGIES, CounterfactualExplainer
from .result import CounterfactualResult
from .schema import FeatureSchema

__all__ = [
    "STRATEGIES",
    "Change",
    "CounterfactualExplainer",
    "CounterfactualResult",
    "Feature",
    "FeatureSchema",
    "Linear",
]

"""Counterfactuals: the few features that would have to differ for another answer, and what each one does."""

from .aims import Change
from .certificate import Certificate, certify
from .columns import Feature, Linear
from .explain import ChangeExplanation, explain_change
from .explainer import STRATEGIES, CounterfactualExplainer
from .pairs import Pairs, prune, refine
from .result import CounterfactualResult
from .schema import FeatureSchema

__all__ = [
    "STRATEGIES",
    "Certificate",
    "Change",
    "ChangeExplanation",
    "CounterfactualExplainer",
    "CounterfactualResult",
    "Feature",
    "FeatureSchema",
    "Linear",
    "Pairs",
    "certify",
    "explain_change",
    "prune",
    "refine",
]

"""Counterfactuals: the few features that would have to differ for another answer, and what each one does."""

from .aims import Change
from .benchmarking import Benchmark, benchmark
from .certificate import Certificate, certify
from .columns import Feature, Linear
from .explain import ChangeExplanation, explain_change
from .explainer import STRATEGIES, CounterfactualExplainer
from .metrics import METRICS, Langevin, Metric, evaluate
from .pairs import Pairs, prune, refine
from .result import CounterfactualResult
from .schema import FeatureSchema

__all__ = [
    "METRICS",
    "STRATEGIES",
    "Benchmark",
    "Certificate",
    "Change",
    "ChangeExplanation",
    "CounterfactualExplainer",
    "CounterfactualResult",
    "Feature",
    "FeatureSchema",
    "Langevin",
    "Linear",
    "Metric",
    "Pairs",
    "benchmark",
    "certify",
    "evaluate",
    "explain_change",
    "prune",
    "refine",
]

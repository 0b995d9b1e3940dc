"""Counterfactuals: the few features that would have to differ for another answer, and what each one does."""

from .aims import Change
from .benchmarking import Benchmark, benchmark
from .certificate import Certificate, certify
from .columns import Feature, Linear
from .explain import ChangeExplanation, explain_change
from .explainer import STRATEGIES, CounterfactualExplainer
from .latent import Latent
from .masked import Front, MaskedPGD, pareto
from .metrics import METRICS, Langevin, Metric, evaluate
from .pairs import Pairs, prune, refine
from .plausible import LOF, Neighbours, Plausible, Prototype, Quantiles
from .result import CounterfactualResult
from .robust import Ensemble, Noisy, Robust
from .roles import necessity, sufficiency
from .schema import FeatureSchema

__all__ = [
    "LOF",
    "METRICS",
    "STRATEGIES",
    "Benchmark",
    "Certificate",
    "Change",
    "ChangeExplanation",
    "CounterfactualExplainer",
    "CounterfactualResult",
    "Ensemble",
    "Feature",
    "FeatureSchema",
    "Front",
    "Langevin",
    "Latent",
    "Linear",
    "MaskedPGD",
    "Metric",
    "Neighbours",
    "Noisy",
    "Pairs",
    "Plausible",
    "Prototype",
    "Quantiles",
    "Robust",
    "benchmark",
    "certify",
    "evaluate",
    "explain_change",
    "necessity",
    "pareto",
    "prune",
    "refine",
    "sufficiency",
]

"""Counterfactuals: the few features that would have to differ for another answer, and what each one does."""

from .columns import Feature, Linear
from .guided import Guided
from .result import CounterfactualResult
from .schema import FeatureSchema

__all__ = ["CounterfactualResult", "Feature", "FeatureSchema", "Guided", "Linear"]

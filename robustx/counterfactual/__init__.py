"""Counterfactuals: the least that must change, guided and explained by attributions."""

from .guided import Guided
from .result import CounterfactualResult

__all__ = ["CounterfactualResult", "Guided"]

"""Influence: which training examples a prediction is owed to. Captum's names and signatures."""

from .base import DataInfluence, KMostInfluentialResults
from .tracin import TracInCP, TracInCPBase

__all__ = ["DataInfluence", "KMostInfluentialResults", "TracInCP", "TracInCPBase"]

"""Metrics: counterfactuals of any origin, measured."""

from .case import Langevin
from .evaluation import METRICS, Metric, evaluate

__all__ = ["METRICS", "Langevin", "Metric", "evaluate"]

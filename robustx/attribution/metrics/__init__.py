"""Metrics of explanations: how faithful, how sensitive, how sparse, how well placed they are."""

from .perturbed import default_perturb_func, infidelity, infidelity_perturb_func_decorator, sensitivity_max

__all__ = [
    "default_perturb_func",
    "infidelity",
    "infidelity_perturb_func_decorator",
    "sensitivity_max",
]

"""Attribution: which parts of the input (or of a layer) a score is owed to. Captum's names and signatures."""

from .ablation import FeatureAblation, feature_ablation
from .base import Attribution
from .gradient import Saliency, saliency
from .path import (
    IntegratedGradients,
    LayerIntegratedGradients,
    NeuronIntegratedGradients,
    integrated_gradients,
    quadrature_of,
)

__all__ = [
    "Attribution",
    "FeatureAblation",
    "IntegratedGradients",
    "LayerIntegratedGradients",
    "NeuronIntegratedGradients",
    "Saliency",
    "feature_ablation",
    "integrated_gradients",
    "quadrature_of",
    "saliency",
]

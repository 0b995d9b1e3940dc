"""Concepts: what people have words for, and whether a model's answers rest on it. Captum's names and signatures."""

from .base import Concept, ConceptInterpreter
from .cav import CAV
from .classifier import Classifier, DefaultClassifier, FastCAV
from .significance import Significance
from .tcav import TCAV, concept_sensitivity

__all__ = [
    "CAV",
    "TCAV",
    "Classifier",
    "Concept",
    "ConceptInterpreter",
    "DefaultClassifier",
    "FastCAV",
    "Significance",
    "concept_sensitivity",
]

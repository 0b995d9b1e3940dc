"""Influence: which training examples a prediction is owed to. Captum's names and signatures."""

from .base import DataInfluence, KMostInfluentialResults
from .fast import TracInCPFast, TracInCPFastRandProj
from .neighbours import AnnoyNearestNeighbors, ExactNearestNeighbors, NearestNeighbors
from .similarity import SimilarityInfluence, cosine_similarity, euclidean_distance
from .tracin import TracInCP, TracInCPBase

__all__ = [
    "AnnoyNearestNeighbors",
    "DataInfluence",
    "ExactNearestNeighbors",
    "KMostInfluentialResults",
    "NearestNeighbors",
    "SimilarityInfluence",
    "TracInCP",
    "TracInCPBase",
    "TracInCPFast",
    "TracInCPFastRandProj",
    "cosine_similarity",
    "euclidean_distance",
]

"""Influence: which training examples a prediction is owed to. Captum's names and signatures."""

from .base import DataInfluence, KMostInfluentialResults
from .ekfac import EKFACInfluence
from .fast import TracInCPFast, TracInCPFastRandProj
from .functions import (
    ArnoldiInfluenceFunction,
    InfluenceFunctionBase,
    IntermediateQuantitiesInfluenceFunction,
    NaiveInfluenceFunction,
)
from .neighbours import AnnoyNearestNeighbors, ExactNearestNeighbors, NearestNeighbors
from .similarity import SimilarityInfluence, cosine_similarity, euclidean_distance
from .solved import ConjugateGradients, IterativeInfluenceFunction, LiSSA
from .tracin import TracInCP, TracInCPBase
from .trak import TRAK

__all__ = [
    "TRAK",
    "AnnoyNearestNeighbors",
    "ArnoldiInfluenceFunction",
    "ConjugateGradients",
    "DataInfluence",
    "EKFACInfluence",
    "ExactNearestNeighbors",
    "InfluenceFunctionBase",
    "IntermediateQuantitiesInfluenceFunction",
    "IterativeInfluenceFunction",
    "KMostInfluentialResults",
    "LiSSA",
    "NaiveInfluenceFunction",
    "NearestNeighbors",
    "SimilarityInfluence",
    "TracInCP",
    "TracInCPBase",
    "TracInCPFast",
    "TracInCPFastRandProj",
    "cosine_similarity",
    "euclidean_distance",
]

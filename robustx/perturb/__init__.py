"""The perturbation pipeline: norms and regions, features and gates, references and goals."""

from .features import Features, Grid, Partition, Windows, blocks, columns, elements, features_of, from_masks, words
from .gates import Gates, gated
from .goals import LOSSES, Between, Goal, Leave, Reach, Until, as_logits
from .hierarchy import Hierarchy, halves, linked, nested, superpixel_hierarchy
from .norms import L0, L1, L2, NORMS, Linf, Norm, norm_of
from .references import Filling, Inpainted, Neighbours, Reference, among, blur, by, here, mean, noise, through
from .region import Region
from .segments import superpixels

__all__ = [
    "L0",
    "L1",
    "L2",
    "LOSSES",
    "NORMS",
    "Between",
    "Features",
    "Filling",
    "Gates",
    "Goal",
    "Grid",
    "Hierarchy",
    "Inpainted",
    "Leave",
    "Linf",
    "Neighbours",
    "Norm",
    "Partition",
    "Reach",
    "Reference",
    "Region",
    "Until",
    "Windows",
    "among",
    "as_logits",
    "blocks",
    "blur",
    "by",
    "columns",
    "elements",
    "features_of",
    "from_masks",
    "gated",
    "halves",
    "here",
    "linked",
    "mean",
    "nested",
    "noise",
    "norm_of",
    "superpixel_hierarchy",
    "superpixels",
    "through",
    "words",
]

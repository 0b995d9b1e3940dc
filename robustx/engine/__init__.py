"""The gradient engine: where (:class:`Site`), what (:class:`Score`), how (:class:`Probe`)."""

from .blackbox import BlackBox
from .checks import ArgumentError, ArgumentTypeError
from .guard import guarded, untouched
from .memory import Pace
from .packing import Packing, Tensors
from .probe import Door, Meter, ModelError, NonFiniteError, Probe
from .randomness import Noise, identities
from .scores import (
    Each,
    Everything,
    Neuron,
    Output,
    OutputError,
    Part,
    Predicted,
    Probability,
    Score,
    Target,
    TargetError,
)
from .sites import Input, Layer, Site, Together

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BlackBox",
    "Door",
    "Each",
    "Everything",
    "Input",
    "Layer",
    "Meter",
    "ModelError",
    "Neuron",
    "Noise",
    "NonFiniteError",
    "Output",
    "OutputError",
    "Pace",
    "Packing",
    "Part",
    "Predicted",
    "Probability",
    "Probe",
    "Score",
    "Site",
    "Target",
    "TargetError",
    "Tensors",
    "Together",
    "guarded",
    "identities",
    "untouched",
]

"""Evaluation: how robust models are, measured block by block into a run folder. See :func:`evaluate`.

A run is a :class:`Spec` and a folder. The folder holds ``run.json`` (what was run: the specification, fingerprints
of models and data, versions), ``results-*.sqlite`` (a row per sample, attack and budget; one file per process),
``tensors/`` (adversarial examples, block by block), and at the end ``summary.json``, ``samples.csv`` and the report.
"""

from .block import Block, Finished, attack_block, clean_block
from .callbacks import Callback, Step
from .certified import Certified, bound_block, certify, leads
from .comparing import Comparisons, compare_runs
from .explanations import explain, instructive
from .loggers import MLflowLogger, TensorBoardLogger, WandbLogger
from .merging import merge
from .run import Run
from .smoothing import Smoothed
from .soundness import Flag, Soundness, assess, soundness_of
from .sources import opened
from .spec import BUDGETS, AttackSpec, BoundSpec, DataSpec, ModelSpec, Spec, standard_attacks
from .statistics import Comparison, Distances, Outcome, Share, compare, curve, distances, moved, share
from .store import Row, Store, Work
from .verifying import Difference, Verification, verify
from .work import evaluate

__all__ = [
    "BUDGETS",
    "AttackSpec",
    "Block",
    "BoundSpec",
    "Callback",
    "Certified",
    "Comparison",
    "Comparisons",
    "DataSpec",
    "Difference",
    "Distances",
    "Finished",
    "Flag",
    "MLflowLogger",
    "ModelSpec",
    "Outcome",
    "Row",
    "Run",
    "Share",
    "Smoothed",
    "Soundness",
    "Spec",
    "Step",
    "Store",
    "TensorBoardLogger",
    "Verification",
    "WandbLogger",
    "Work",
    "assess",
    "attack_block",
    "bound_block",
    "certify",
    "clean_block",
    "compare",
    "compare_runs",
    "curve",
    "distances",
    "evaluate",
    "explain",
    "instructive",
    "leads",
    "merge",
    "moved",
    "opened",
    "share",
    "soundness_of",
    "standard_attacks",
    "verify",
]

"""``robustx resume``: go on with a run."""

from argparse import Namespace

from ..evaluation import Run
from ..evaluation.launch import own_device
from .evaluate import work
from .opening import of_run


def run(asked: Namespace) -> int:
    """Do what is left of a run, from what its folder says of it."""
    begun = Run(asked.run)
    instead = "robustx.evaluation.evaluate again with the objects and the same out="
    found = None if asked.workers else of_run(begun, own_device(asked.device), instead)
    return work(asked, begun.spec, found, begun.folder)

"""``robustx resume``: go on with a run."""

from argparse import Namespace

from ..evaluation import Run
from .evaluate import work
from .opening import of_run


def run(asked: Namespace) -> int:
    """Do what is left of a run, from what its folder says of it."""
    begun = Run(asked.run)
    models, data = of_run(begun, asked.device, "robustx.evaluation.evaluate again with the objects and the same out=")
    return work(asked, begun.spec, models, data, begun.folder)

"""``robustx resume``: go on with a run."""

from argparse import Namespace

from .. import evaluation
from ..evaluation import Run
from .evaluate import work
from .opening import device


def run(asked: Namespace) -> int:
    """Do what is left of a run, from what its folder says of it."""
    begun = Run(asked.run)
    try:
        models, data = evaluation.opened(begun.spec, device(asked.device))
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise type(error)(
            f"the models or data of {asked.run!r} cannot be opened from their names: {error}; resume where they can, "
            "or call robustx.evaluation.evaluate again with the objects and the same out="
        ) from None
    return work(asked, begun.spec, models, data, begun.folder)

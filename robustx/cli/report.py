"""``robustx report``: the report of a run, made again, in the form that is asked for."""

from argparse import Namespace

from .. import report
from ..evaluation import Run
from . import DONE
from .show import as_json


def run(asked: Namespace) -> int:
    """Make the report from what the run folder holds."""
    done = Run(asked.run)
    if asked.out == "-":
        print(report.render(done, asked.format), end="")
        return DONE
    path = report.write(done, asked.format, asked.out)
    if asked.json:
        print(as_json({"folder": str(done.folder), "report": str(path), "finished": done.finished}))
        return DONE
    if not done.finished:
        print(f"The run is not finished; the report shows the {len(done.outcomes[0])} samples that are.")
    print(f"Report: {path}")
    return DONE

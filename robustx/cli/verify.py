"""``robustx verify``: does a run come out as it is stored?"""

from argparse import Namespace
from collections import Counter
from dataclasses import asdict

from .. import evaluation
from ..evaluation import Run, Verification
from . import DONE, NO
from .opening import of_run, set_threads
from .show import as_json, bars, table

SHOWN = 20  # differences; --json has all


def run(asked: Namespace) -> int:
    """Compute the numbers of a run again, and say what differs."""
    made = Run(asked.run)
    models, data = of_run(made, asked.device, "robustx.evaluation.verify with the objects")
    set_threads(asked.threads, list(models.values()))
    found = evaluation.verify(made.folder, models, data, again=asked.again, show_progress=bars(asked))
    if asked.json:
        print(as_json({"ok": found.ok, **asdict(found), "folder": str(found.folder)}))
    else:
        print(_told(found))
    return DONE if found.ok else NO


def _told(found: Verification) -> str:
    wrong = Counter(d.kind for d in found.differences)
    rows = [[kind, count, wrong[kind]] for kind, count in found.checks.items()]
    lines = [table(rows, ["check", "made", "differ"]), ""]
    lines += [f"  {d}" for d in found.differences[:SHOWN]]
    if len(found.differences) > SHOWN:
        lines.append(f"  and {len(found.differences) - SHOWN} more; --json tells all")
    if found.unfinished:
        lines.append(f"  {found.unfinished} steps are not finished; nothing is said of them")
    lines += [f"  made elsewhere: {told}" for told in found.elsewhere]
    count = len(found.differences)
    told = "Everything comes" if found.ok else f"Not everything ({count} differences) comes"
    return "\n".join([*lines, f"{told} out as it is stored in {found.folder}"])

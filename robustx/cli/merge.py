"""``robustx merge``: one run folder from several of the same run."""

from argparse import Namespace

from .. import evaluation
from ..evaluation import Store
from ..evaluation.plan import closing, plan
from . import DONE
from .opening import folder
from .show import as_json


def run(asked: Namespace) -> int:
    """Merge the folders, and say what is missing and how to go on."""
    merged = evaluation.merge(asked.runs, folder(asked.out))
    blocks = plan(merged.spec, merged.data["count"])
    with Store(merged.folder) as store:
        there = store.done()
    missing = [w for w in blocks if w not in there]
    if asked.json:
        told = {"folder": str(merged.folder), "done": len(blocks) - len(missing), "of": len(blocks)}
        print(as_json({**told, "finished": merged.finished, "fingerprint": merged.fingerprint}))
        return DONE
    print(f"{len(blocks) - len(missing)} of {len(blocks)} steps are in {merged.folder}")
    if missing:
        samples = len({w.block for w in missing})
        print(f"{samples} blocks of samples are not finished: merge the folders that have them, or go on here with")
    elif not merged.finished:
        left = " and ".join(sorted({w.attack for w in closing(merged.spec)}))
        print(f"All blocks are there; what is done once, after them ({left}), needs the models:")
    print(f"  robustx {'report' if merged.finished else 'resume'} {merged.folder}")
    return DONE

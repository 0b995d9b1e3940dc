"""``robustx ls``: which runs are there?"""

import json
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..evaluation import Run, Store
from ..evaluation.plan import closing, plan
from . import DONE
from .show import as_json, table


def run(asked: Namespace) -> int:
    """Show the run folders below a folder."""
    top = Path(asked.dir)
    if not top.is_dir():
        raise FileNotFoundError(f"there is no folder {asked.dir!r}; name one with runs in it, such as: robustx ls .")
    found = [_about(path.parent, top) for path in sorted(top.rglob("run.json"))]
    if asked.json:
        print(as_json({"runs": found}))
    elif found:
        print("\n".join([table([_row(told) for told in found], HEADS, indent=""), *_unread(found)]))
    else:
        print(f"No runs in {top}")
    return DONE


def _about(folder: Path, top: Path) -> dict[str, Any]:
    """What a run is and how far; of one that cannot be read, why."""
    name = folder.name if folder == top else str(folder.relative_to(top))
    try:
        made = Run(folder)
        works = [*plan(made.spec, made.data["count"]), *closing(made.spec)]
        with Store(folder) as store:
            done = len(store.done().intersection(works))
        finished, path = done == len(works), folder / "summary.json"
        summary = json.loads(path.read_bytes()) if finished and path.exists() else made.summary()
        models = summary["models"]
        changed = max(file.stat().st_mtime for file in [folder / "run.json", *folder.glob("results-*.sqlite")])
        return {
            "run": name,
            "models": list(made.spec.names),
            "data": made.spec.samples.name,
            "norm": made.spec.norm,
            "done": done,
            "of": len(works),
            "state": "finished" if finished else "unfinished",
            "verdicts": [m["soundness"]["verdict"] for m in models if "soundness" in m],
            "eps": made.spec.quoted,
            "robust": [next(r["value"] for r in m["robust"] if r["eps"] == made.spec.quoted) for m in models],
            "changed": datetime.fromtimestamp(changed).isoformat(" ", "minutes"),
        }
    except (ValueError, LookupError, TypeError) as error:
        other = "has format" in str(error)
        return {"run": name, "state": "of another format" if other else "damaged", "why": " ".join(str(error).split())}


HEADS = ["run", "models", "data", "norm", "steps", "state", "verdict", "robust", "at", "last change"]


def _row(told: dict[str, Any]) -> list[str]:
    if "why" in told:
        return [told["run"], *[""] * 4, told["state"], *[""] * 4]
    shares = ", ".join("-" if value is None else f"{value:.1%}" for value in told["robust"])
    steps = f"{told['done']}/{told['of']}"
    what = [told["run"], ", ".join(told["models"]), told["data"], told["norm"], steps, told["state"]]
    return [*what, ", ".join(told["verdicts"]), shares, f"{told['eps']:g}", told["changed"]]


def _unread(found: list[dict[str, Any]]) -> list[str]:
    return [f"{told['run']}: {told['why']}" for told in found if "why" in told]

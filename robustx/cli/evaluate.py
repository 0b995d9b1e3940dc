"""``robustx evaluate``: how robust is a model?"""

import hashlib
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec

from .. import evaluation, report, zoo
from ..evaluation import Run, Spec, standard_attacks
from . import DONE, NO, Interrupted
from .opening import folder, subjects
from .parser import MANNER, parse
from .show import as_json, bars, table


def run(asked: Namespace) -> int:
    """Evaluate the models on the data, write the report, and show what it says in short."""
    given = Spec.read(asked.spec) if asked.spec else None
    if given is not None:
        asked.model = asked.model or ([] if asked.name else list(given.names))
        asked.data = asked.data or (None if asked.name else given.samples.name)
    found = subjects(asked, asked.model or _models_of(asked.name))
    data = found[0].data
    spec = _spec(asked, given, tuple(s.name for s in found), data.name)
    required = _required(asked, spec)
    out = folder(asked.out or _folder(asked, spec))
    try:
        done = evaluation.evaluate({s.name: s.model for s in found}, data, spec, out, bars(asked))
        page = report.write(out)
    except KeyboardInterrupt:
        raise Interrupted(_kept(out)) from None
    summary = done.summary()
    missed = _missed(summary, *required) if required else []
    if asked.json:
        print(as_json({**summary, "folder": str(out), "report": str(page), "missed": missed}))
    else:
        print(_told(done, summary))
        for line in missed:
            print(f"Missed: {line}")
        print(f"Report: {page}\nAll numbers and adversarial examples: {out}{os.sep}")
    return NO if missed else DONE


def _models_of(name: str | None) -> list[str]:
    """All embedded models that are made for the data of that name; else the model of that name."""
    if name is None:
        return []
    return [model for model, (_, data) in zoo.embedded.MODELS.items() if data == name] or [name]


def _spec(asked: Namespace, given: Spec | None, models: tuple[str, ...], data: str) -> Spec:
    """The specification: what was asked for, else what its file says, else the default."""
    changes: dict[str, Any] = {"models": models, "data": data}
    changes |= {k: getattr(asked, k) for k in ("norm", "seed", "explain") if getattr(asked, k) is not None}
    if asked.eps is not None:
        changes["eps"] = tuple(asked.eps)
    elif asked.norm is not None:
        changes["eps"] = ()  # those of the norm
    if asked.steps is not None:
        changes["attacks"] = standard_attacks(asked.steps)
    return Spec(**changes) if given is None else msgspec.structs.replace(given, **changes)


def _required(asked: Namespace, spec: Spec) -> tuple[float, float] | None:
    """The least robust accuracy that was asked for, and at which budget."""
    if asked.require is None:
        return None
    least, eps = asked.require
    eps = spec.eps[-1] if eps is None else eps
    if eps not in spec.eps:
        known = ", ".join(f"{e:g}" for e in spec.eps)
        raise ValueError(f"--require names the budget {eps:g}, which is not evaluated; there are {known} (see --eps)")
    return least, eps


def _missed(summary: dict[str, Any], least: float, eps: float) -> list[str]:
    """One sentence for each model that is less robust than required."""
    told = []
    for model in summary["models"]:
        value = next(r["value"] for r in model["robust"] if r["eps"] == eps)
        if not value >= least:
            told.append(f"{model['name']} has robust accuracy {value:.1%} at {eps:g}, required is {least:.1%}")
    return told


def _told(done: Run, summary: dict[str, Any]) -> str:
    """The security curve and the median distance of each model, as a table."""
    spec, rows = done.spec, []
    for model in summary["models"]:
        shares = [model["clean"], *model["robust"]]
        rows.append([model["name"], *(f"{s['value']:.1%}" for s in shares), _distance(model["distances"])])
    heads = ["model", "clean", *(f"{e:.3g}" for e in spec.eps), "median distance"]
    split = f" {done.data['split']}" if done.data["split"] else ""
    attacks = ", ".join(a.label for a in spec.attacks)
    lines = [
        f"Accuracy on {summary['samples']} samples of {spec.samples.name}{split}: clean, and under {spec.norm} changes up to",
        "",
        table(rows, heads),
        "",
        f"  Attacks: {attacks}. What they did not find may still exist.",
    ]
    for model in summary["models"]:
        kinds = {
            re.sub(r"\d+", "", w): w for w in reversed(model["warnings"])
        }  # the first of those that differ in numbers
        lines += [f"  {model['name']}: {warning}" for warning in kinds.values()]
        if model["flagged"]:
            lines.append(
                f"  {model['name']}: {model['flagged']} samples gave NaN or infinite outputs; none counts as robust"
            )
    return "\n".join(lines) + "\n"


def _distance(distances: dict[str, Any]) -> str:
    middle = distances["quartiles"][1]
    if middle is not None:
        return f"{middle:.3g}"
    most = distances["largest_tried"]
    return "-" if most is None or not distances["total"] else f"above {most:.3g}"


def _kept(out: Path) -> str:
    """What a run folder holds after an interrupt, and how to go on (a step is one attack on one block of samples)."""
    try:
        with evaluation.Store(out) as store:
            blocks = len(store.done())
    except (OSError, ValueError):
        blocks = 0
    if not blocks:
        return f"nothing was finished yet; the same command starts again in {out}"
    return f"{blocks} finished steps are kept in {out}; the same command goes on from there"


def _folder(asked: Namespace, spec: Spec) -> str:
    """The run folder where none is named: the same for the same question, another for another."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in asked.name or asked.model[0])
    plain = parse(["evaluate", *([asked.name] if asked.name else [])])
    options = {k: v for k, v in vars(asked).items() if k not in MANNER and v != getattr(plain, k)}
    if not options:
        return str(Path("runs", name))
    told = repr((sorted(options.items()), spec.sha256))
    return str(Path("runs", f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"))

"""``robustx evaluate``: how robust is a model?"""

import hashlib
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from .. import evaluation, report, zoo
from ..evaluation import AttackSpec, BoundSpec, DataSpec, ModelSpec, Run, Spec, standard_attacks
from ..evaluation.launch import environment, local, own_device
from ..zoo import Data
from . import DONE, NO, Interrupted
from .opening import device, folder, set_threads
from .parser import MANNER, parse
from .show import as_json, bars, table


def run(asked: Namespace) -> int:
    """Evaluate the models on the data, write the report, and show what it says in short."""
    spec = _spec(asked)
    required = _required(asked, spec)
    found = None if asked.workers else evaluation.opened(spec, device(own_device(asked.device)))
    return work(asked, spec, found, folder(asked.out or _folder(asked, spec)), required)


def work(
    asked: Namespace,
    spec: Spec,
    found: tuple[dict[str, nn.Module], Data] | None,
    out: Path,
    required: tuple[float, float] | None = None,
) -> int:
    """Work off a run, or this process's share of it, and tell what came out.

    Args:
        found: models and data; None where other processes open them.
    """
    shard = asked.shard or environment() or (0, 1)
    try:
        if found is None:
            threads = asked.threads or 1
            done = local(spec, out, asked.workers, device=asked.device, threads=threads, show_progress=bars(asked))
        else:
            set_threads(asked.threads, list(found[0].values()))
            told = bars(asked) and (asked.shard is not None or shard[0] == 0)  # one process tells for all
            done = evaluation.evaluate(*found, spec, out, told, shard=shard)
        if not done.finished:
            return _left(asked, done, *shard)
        page = report.write(out)
    except KeyboardInterrupt as stop:
        raise Interrupted(_kept(out), getattr(stop, "code", Interrupted.code)) from None
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


def _spec(asked: Namespace) -> Spec:
    """The specification: what was asked for, else what its file says, else the default."""
    if asked.name and asked.name.endswith((".toml", ".json")):
        return _changed(asked, Spec.read(asked.name))
    names = asked.model or _models_of(asked.name)
    if not names:
        raise ValueError(
            "no model is named; try robustx evaluate digits, or give yours with --model package.module:callable "
            "--data package.module:callable, or a specification: robustx evaluate spec.toml"
        )
    data = asked.data or _data_of(asked.name) or _data_of(names[0])
    if data is None:
        raise ValueError(f"{names[0]!r} brings no data of its own; give some with --data, such as --data digits")
    return _changed(asked, None, models=tuple(names), data=data)


def _changed(asked: Namespace, given: Spec | None, **changes: Any) -> Spec:
    if given is not None and asked.model:
        changes["models"] = tuple(asked.model)
    if asked.weights:
        models = changes.get("models") or given.subjects  # type: ignore[union-attr]  # one of the two is there
        if len(models) > 1:
            raise ValueError(
                f"--weights belongs to one model, got {len(models)}; name files as package.module:name@FILE"
            )
        one = models[0] if isinstance(models[0], ModelSpec) else ModelSpec(models[0])
        if "@" in (one.source or one.name) or one.weights:
            raise ValueError(f"the weights of {one.name!r} are named twice, there and as --weights {asked.weights!r}")
        changes["models"] = (msgspec.structs.replace(one, weights=asked.weights),)
    samples = DataSpec(changes["data"]) if given is None else given.samples
    if given is not None and asked.data:
        samples = DataSpec(asked.data)
    told = {k: getattr(asked, k) for k in ("split", "root", "bounds") if getattr(asked, k) is not None}
    changes["data"] = msgspec.structs.replace(samples, **told)
    options = ("norm", "seed", "explain", "limit", "block_size", "corruptions", "severities")
    changes |= {k: getattr(asked, k) for k in options if getattr(asked, k) is not None}
    if asked.eps is not None:
        changes["eps"] = tuple(asked.eps)
    elif asked.norm is not None:
        changes["eps"] = ()  # those of the norm
    if asked.attacks is not None:
        changes["attacks"] = tuple(AttackSpec(name) for name in asked.attacks)
    elif asked.steps is not None:
        changes["attacks"] = standard_attacks(asked.steps)
    if asked.certify is not None:
        changes["bounds"] = tuple(BoundSpec(name) for name in asked.certify)
    if asked.no_soundness:
        changes["soundness"] = False
    return Spec(**changes) if given is None else msgspec.structs.replace(given, **changes)


def _models_of(name: str | None) -> list[str]:
    """All embedded models that are made for the data of that name; else the model of that name."""
    if name is None:
        return []
    return [model for model, (_, data) in zoo.embedded.MODELS.items() if data == name] or [name]


def _data_of(name: str | None) -> str | None:
    """The data that an embedded model brings."""
    if name is None or ":" in name:
        return None
    return zoo.embedded.MODELS[name][1] if name in zoo.embedded.MODELS else name  # the zoo explains unknown names


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
        elif model.get("soundness", {}).get("verdict") == "INVALID":
            told.append(f"{model['name']} has robust accuracy {value:.1%} at {eps:g}, but the evaluation is invalid")
    return told


def _told(done: Run, summary: dict[str, Any]) -> str:
    """The security curve and the median distance of each model, as a table."""
    spec, rows = done.spec, []
    for model in summary["models"]:
        shares = [model["clean"], *model["robust"]]
        rows.append([model["name"], *(f"{s['value']:.1%}" for s in shares), _distance(model["distances"])])
        for bound in model.get("certified", ()):
            proved = [f"{s['value']:.1%}" for s in bound["accuracy"]]
            rows.append([f"  proved by {bound['label']}", *proved, f"{bound['median']:.3g}"])
    heads = ["model", "clean", *(f"{e:.3g}" for e in spec.eps), "median distance"]
    split = f" {done.data['split']}" if done.data["split"] else ""
    attacks = ", ".join(a.label for a in spec.attacks)
    lines = [
        f"Accuracy on {summary['samples']} samples of {spec.samples.name}{split}: clean, and under {spec.norm} changes "
        "up to",
        "",
        table(rows, heads),
        "",
        f"  Attacks: {attacks}. What they did not find may still exist.",
    ]
    for model in summary["models"]:
        for bound in model.get("certified", ()):
            lines += [f"  {model['name']}: nothing is proved by {bound['label']}: {note}" for note in bound["notes"]]
        lines += _doubts(model)
        if model["flagged"]:
            lines.append(
                f"  {model['name']}: {model['flagged']} samples gave NaN or infinite outputs; none counts as robust"
            )
    return "\n".join(lines) + "\n"


def _doubts(model: dict[str, Any]) -> list[str]:
    """Whether the evaluation of a model can be believed: the verdict, and why; else the warnings of its attacks."""
    found, name = model.get("soundness"), model["name"]
    kinds = {re.sub(r"\d+", "", w): w for w in reversed(model["warnings"])}  # the first that differ in numbers alone
    if found is None:
        return [f"  {name}: {warning}" for warning in kinds.values()]
    if not found["flags"]:
        return [
            f"  {name}: the evaluation is {found['verdict']}: nothing speaks against it.",
            *(f"    {w}" for w in kinds.values()),
        ]
    reasons = [f"    {f['name']}: {f['reason']}. Next: {f['next']}" for f in found["flags"]]
    return [f"  {name}: the evaluation is {found['verdict']}.", *reasons]


def _distance(distances: dict[str, Any]) -> str:
    middle = distances["quartiles"][1]
    if middle is not None:
        return f"{middle:.3g}"
    most = distances["largest_tried"]
    return "-" if most is None or not distances["total"] else f"above {most:.3g}"


def _left(asked: Namespace, done: Run, rank: int, world: int) -> int:
    """What is said where other processes have not finished their share."""
    told = done.progress
    if asked.json:
        print(as_json({"folder": str(done.folder), "finished": False, "shard": [rank, world], **told}))
    else:
        print(
            f"Share {rank} of {world} is done; of the run, {told['done']} of {told['steps']} steps are. The last share "
            f"to end completes it, or: robustx resume {done.folder}"
        )
    return DONE


def _kept(out: Path) -> str:
    """What a run folder holds after an interrupt, and how to go on (a step is one attack on one block of samples)."""
    try:
        with evaluation.Store(out) as store:
            blocks = len(store.done())
    except (OSError, ValueError):
        blocks = 0
    if not blocks:
        return f"nothing was finished yet; the same command starts again in {out}"
    return f"{blocks} finished steps are kept in {out}; the same command, or robustx resume {out}, goes on from there"


def _folder(asked: Namespace, spec: Spec) -> str:
    """The run folder where none is named: the same for the same question, another for another."""
    name = Path(asked.name).stem if asked.name else asked.model[0]
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    plain = parse(["evaluate", *([asked.name] if asked.name else [])])
    options = {k: v for k, v in vars(asked).items() if k not in MANNER and v != getattr(plain, k)}
    if not options and not (asked.name or "").endswith((".toml", ".json")):
        return str(Path("runs", name))
    told = repr((sorted(options.items()), spec.sha256))
    return str(Path("runs", f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"))

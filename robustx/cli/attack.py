"""``robustx attack``: which inputs fool a model?"""

import time
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import attacks
from ..attacks import Attack, AttackResult
from ..engine.packing import finest
from ..engine.progress import progress
from ..evaluation import share as confidence
from ..perturb import NORMS, norm_of
from ..zoo import class_name
from . import DONE, NO, Interrupted
from .opening import Subject, class_of, folder, subject
from .show import as_json, bars, files, share, table, write_csv

EPS = {"Linf": 0.1, "L2": 1.0, "L1": 4.0, "L0": 4.0}
SHOWN = 10


def run(asked: Namespace) -> int:
    """Attack the samples block by block; what was finished is shown and written, also after an interrupt."""
    place = folder(asked.out) if asked.out else None
    s = subject(asked)
    attack = _attack(asked, s)
    y = s.data.y
    if asked.target is not None:
        y = torch.full_like(y, class_of(asked.target, s.data.classes, s.answers(s.data.x[:1]).shape[1]))
    parts: list[AttackResult] = []
    started, stopped = time.perf_counter(), False
    try:
        with progress(len(s.data), type(attack).__name__, bars(asked), "sample") as more:
            for x, goal in zip(s.data.x.split(asked.batch_size), y.split(asked.batch_size), strict=True):
                parts.append(attack.run(x, goal, targeted=asked.target is not None))
                more(len(x))
    except KeyboardInterrupt:
        stopped = True
        if not parts:
            raise
    seconds = time.perf_counter() - started
    done = Subject(s.name, s.model, s.data[: sum(len(p.success) for p in parts)])
    result = AttackResult.cat(parts)
    samples = _samples(done, result, None if asked.target is None else int(y[0]))
    totals = _totals(asked, attack, done, samples, seconds)
    written = [] if place is None else _write(place, done, result, samples, totals)
    if asked.json:
        print(as_json({**totals, "samples": samples}))
    else:
        print(_told(totals, samples))
        if place is not None:
            print(files(place, written))
    if stopped:
        kept = f"what was finished is in {place}" if place else "what was finished is shown"
        raise Interrupted(f"{len(done.data)} of {len(s.data)} samples were attacked; {kept}")
    return DONE if totals["fooled"] else NO


def _attack(asked: Namespace, s: Subject) -> Attack:
    kind = attacks.ATTACKS.get(asked.attack.lower())
    known_norms = ("Linf",) if kind is None or "Linf" in kind.norms else kind.norms
    norm = str(norm_of(asked.norm or known_norms[0]))
    eps = asked.eps if asked.eps is not None or (kind is not None and kind.minimal) else EPS[norm]
    if eps is not None and 0 < eps < norm_of(norm).unit:
        raise ValueError(f"--eps counts elements in {norm} and must be 0 or at least 1, got {eps:g}")
    options: dict[str, Any] = {k: getattr(asked, k) for k in ("steps", "restarts") if getattr(asked, k) is not None}
    options |= dict(asked.options)
    if kind is not None:
        known = kind.arguments()
        for name in options.keys() - known:
            what = kind.attack.__name__
            raise ValueError(f"attack {asked.attack!r} has no argument {name!r}; {what} takes {_list(known)}")
    fixed = {
        "bounds": s.data.bounds,
        "norm": norm,
        "eps": eps,
        "seed": asked.seed,
    }
    if asked.loss is not None:
        options["loss_func"] = asked.loss
    for name in options.keys() & {*fixed, "batch_size"}:
        raise ValueError(f"--set {name}=... has an option of its own or follows the data; see robustx attack --help")
    return attacks.make(asked.attack, s.model, **fixed, **options)


def _budget(totals: dict[str, Any]) -> str:
    return f"{totals['norm']}" + ("" if totals["eps"] is None else f" up to {totals['eps']:.4g}")


def _list(known: set[str]) -> str:
    hidden = {"self", "args", "options", "forward_func", "loss_func", "lower_bound", "upper_bound", "bounds", "norm"}
    return ", ".join(sorted(known - hidden - {"eps", "seed", "batch_size"})) or "no more"


def _samples(s: Subject, r: AttackResult, target: int | None) -> list[dict[str, Any]]:
    """One line a sample: what the model said before and after, and how far apart the two inputs are."""
    before, after = s.answers(s.data.x).argmax(1), s.answers(r.adversarial, strict=False).argmax(1)
    there = before != s.data.y if target is None else before == target
    d = finest(r.adversarial.flatten(1)) - finest(s.data.x.flatten(1))
    sizes = {name: norm.size(d).tolist() for name, norm in NORMS.items()}
    names, already = s.data.classes, "wrong before" if target is None else "there before"
    return [
        {
            "row": i,
            "index": int(s.data.index[i]),
            "label": class_name(names, int(s.data.y[i])),
            "before": class_name(names, int(before[i])),
            "after": class_name(names, int(after[i])),
            "state": already if there[i] else "fooled" if r.success[i] else "stands",
            "margin": float(r.margin[i]),
            **{name: size[i] for name, size in sizes.items()},
            "forwards": int(r.forwards[i]),
            "backwards": int(r.backwards[i]),
        }
        for i in range(len(s.data))
    ]


def _totals(
    asked: Namespace, attack: Attack, s: Subject, samples: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    norm, n = str(attack.norm), len(samples)
    state = [one["state"] for one in samples]
    far = [one[norm] for one in samples if one["state"] == "fooled"]
    interval = confidence(state.count("stands"), n)
    return {
        "attack": type(attack).__name__,
        "model": s.name,
        "data": s.data.name,
        "split": s.data.split,
        "norm": norm,
        "eps": float(attack.eps) if isinstance(attack.eps, float | int) else None,
        "settings": {k: v for k, v in vars(attack).items() if k in ("steps", "restarts", "seed", "loss_func")}
        | {k: getattr(asked, k) for k in ("steps", "restarts") if getattr(asked, k) is not None}
        | dict(asked.options),
        "target": asked.target,
        "samples": n,
        "already": n - state.count("fooled") - state.count("stands"),
        "fooled": state.count("fooled"),
        "stand": state.count("stands"),
        "low": interval.low,
        "high": interval.high,
        "median_distance": median(far) if far else None,
        "forwards": sum(one["forwards"] for one in samples),
        "backwards": sum(one["backwards"] for one in samples),
        "seconds": round(seconds, 3),
    }


def _told(t: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    n, right = t["samples"], t["samples"] - t["already"]
    split = f" {t['split']}" if t["split"] else ""
    what = f"{t['attack']} on {t['model']}, {n} sample{'s'[: n != 1]} of {t['data']}{split}"
    goal = "" if t["target"] is None else f", towards class {t['target']}"
    between = f"95% interval {t['low']:.1%} to {t['high']:.1%}"
    near = "" if t["median_distance"] is None else f", median {t['norm']} distance {t['median_distance']:.4g}"
    first = "right before" if t["target"] is None else "not there before"
    lines = [
        f"{what}; {_budget(t)}{goal}",
        "",
        f"  {first + ':':17} {right} of {n} ({share(right, n)})",
        f"  {'fooled:':17} {t['fooled']} of {right} ({share(t['fooled'], right)}){near}",
        f"  {'still standing:':17} {t['stand']} of {n} ({share(t['stand'], n)}; {between})",
        f"  {'passes a sample:':17} {t['forwards'] / n:.1f} forward, {t['backwards'] / n:.1f} backward; "
        f"{t['seconds']:.1f} s in all",
    ]
    found = [one for one in samples if one["state"] == "fooled"]
    if found:
        columns = ("row", "label", "before", "after", t["norm"], "margin")
        lines += ["", table([[one[c] for c in columns] for one in found[:SHOWN]], columns)]
        if len(found) > SHOWN:
            lines.append(f"  ... and {len(found) - SHOWN} more")
    return "\n".join(lines) + "\n"


def _write(
    place: Path, s: Subject, r: AttackResult, samples: list[dict[str, Any]], totals: dict[str, Any]
) -> list[str]:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {
        "x": s.data.x,
        "adversarial": r.adversarial,
        "label": s.data.y,
        "index": s.data.index,
        "success": r.success,
    }
    (place / "adversarial.safetensors").write_bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    write_csv(place / "samples.csv", samples)
    (place / "attack.json").write_text(as_json(totals) + "\n", encoding="utf-8")
    written = ["adversarial.safetensors", "samples.csv", "attack.json"]
    if s.data.kind == "image" and len(samples):
        _sheet(place / "adversarial.png", s, r, samples, totals)
        written.append("adversarial.png")
    return written


def _sheet(file: Path, s: Subject, r: AttackResult, samples: list[dict[str, Any]], totals: dict[str, Any]) -> None:
    from ..plot import TIGHT, contact_sheet

    order = {"fooled": 0, "stands": 1}
    chosen = sorted(range(len(samples)), key=lambda i: order.get(samples[i]["state"], 2))
    found = [samples[i]["state"] == "fooled" for i in chosen]
    told = [f"{samples[i]['before']} → {samples[i]['after']}" for i in chosen]
    captions = [
        arrow if yes else f"{samples[i]['after']} {samples[i]['state']}"
        for i, yes, arrow in zip(chosen, found, told, strict=True)
    ]
    title = f"{totals['attack']}, {_budget(totals)}, on {s.name}: {sum(found)} of {len(samples)} fooled"
    contact_sheet(s.data.x[chosen], r.adversarial[chosen], captions, found, s.data.bounds, title).savefig(file, **TIGHT)

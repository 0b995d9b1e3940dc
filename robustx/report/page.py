"""The page: what a run folder holds, arranged for a reader who did not make the run."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor

from ..engine.files import put
from ..evaluation.run import Run
from ..evaluation.spec import BOUND, CORRUPTION
from ..evaluation.statistics import Outcome, moved
from ..zoo import class_name
from . import figures, pictures, words

if TYPE_CHECKING:
    from jinja2 import Environment

Form = Literal["html", "md", "json"]

MOST_CLASSES = 12  # all classes and pairs of them are shown up to here, the weakest and the commonest above
PAIRS = 10
TOP = 6  # columns of a table that are shown for their attribution


def write(run: Run | str | Path, form: Form = "html", out: str | Path | None = None) -> Path:
    """Writes the report of a run into a file and returns its path.

    It is made from what the run's folder holds, so an unfinished run has one too.

    Args:
        run: the run, or its folder.
        form: ``"html"``: one page without scripts that needs no network; ``"md"``: the same in short, as Markdown;
            ``"json"``: the numbers, :meth:`robustx.evaluation.Run.summary`.
        out: the file; default: ``report.html``, ``report.md`` or ``report.json`` in the run's folder.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run is damaged, or no block of it is finished.
    """
    run = run if isinstance(run, Run) else Run(run)
    path = run.folder / f"report.{form}" if out is None else Path(out)
    put(path, render(run, form).encode())
    return path


def render(run: Run, form: Form = "html") -> str:
    """The report, as text. The same run gives the same text, but for the times that it took."""
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    summary = run.summary()
    if not summary["samples"]:
        raise ValueError(f"no block of the run in {str(run.folder)!r} is finished yet; let it evaluate first")
    if form == "json":
        return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    told = _told(run, summary)
    if form == "html":
        told |= _shown(run, summary)
    return _templates(form).get_template(f"report.{form}").render(told)


@cache
def _templates(form: Form) -> "Environment":
    """Templates in which every value is text: markup in a name is shown, never obeyed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustx.report"),
        autoescape=form == "html",
        finalize=words.markdown if form == "md" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "number": words.number,
        "signed": words.signed,
        "between": words.between,
        "code": words.code,
        "fence": words.fence,
    }
    return environment


def _told(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What every form of the report says."""
    kind, norm, spec = run.data["kind"], run.spec.norm, run.spec
    return {
        "title": f"How robust {'is' if len(spec.names) == 1 else 'are'} {words.listed(spec.names)}?",
        "run": run,
        "spec": spec,
        "summary": summary,
        "kind": kind,
        "samples": words.SAMPLES[kind],
        "quoted": len(spec.eps) // 2,
        "verdicts": [words.verdict(summary, m, kind) for m in summary["models"]],
        "compared": words.compared(summary, kind),
        "judged": [words.judged(m) for m in summary["models"]],
        "budget": words.budget(spec.eps[len(spec.eps) // 2], norm, kind),
        "scale": words.scale(norm, kind, run.data["bounds"]),
        "proved": _proved(summary, spec.eps),
        "attack_words": {a.label: words.attack_words(a) for a in spec.attacks},
        "warnings": {m["name"]: _kinds(m["warnings"]) for m in summary["models"]},
        "specification": words.toml(run.about["spec"]),
        "command": "robustx evaluate spec.toml --out again",
    }


def _shown(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows beyond words."""
    kind, norm, spec = run.data["kind"], run.spec.norm, run.spec
    axis = f"largest change allowed ({words.axis(norm, kind)})"
    far = f"smallest change that fools the model ({words.axis(norm, kind)})"
    certified = {m["name"]: m.get("certified", ()) for m in summary["models"]}
    return {
        "element": words.ELEMENTS[kind],
        "signs": figures.SIGNS,
        "curve": figures.security_curves(run.outcomes, spec.eps, axis, certified),
        "histograms": figures.distance_histograms(run.outcomes, far, run.cap or spec.eps[-1]),
        "reasons": [_reason(o, norm, spec.eps) for o in run.outcomes],
        "per": words.per(norm, kind, _step(norm, spec.eps)),
        "costs": [_cost(m, run.seconds(m["name"])) for m in summary["models"]],
        "classes": [_weakest(m, len(spec.eps) // 2) for m in summary["models"]],
        "confusions": [_confusions(o, run.data["classes"]) for o in run.outcomes],
        "gallery": _gallery(run),
    }


def _proved(summary: Mapping[str, Any], eps: Sequence[float]) -> list[list[dict[str, Any]]]:
    """For each model, its lower bounds: the label of each, and what it proves without change and at each budget."""
    return [
        [
            {
                "label": c["label"],
                "method": c["method"],
                "shares": [{p["eps"]: p for p in c["accuracy"]}.get(e) for e in (0.0, *eps)],
                "notes": c["notes"],
            }
            for c in m.get("certified", ())
        ]
        for m in summary["models"]
    ]


def _kinds(warnings: Sequence[str]) -> list[str]:
    """One warning of each kind: those that differ in their numbers alone are one."""
    return list({re.sub(r"\d+", "", w): w for w in reversed(warnings)}.values())


def _reason(outcome: Outcome, norm: str, eps: Sequence[float]) -> dict[str, float]:
    """By how much right answers lead, and how much of it a change costs on the way to the nearest mistake (medians)."""
    right, fell = outcome.correct, outcome.correct & (outcome.by >= 0) & (outcome.fallen > 0)
    lost = outcome.lead[fell] / outcome.fallen[fell] * _step(norm, eps)
    return {
        "lead": float(np.median(outcome.lead[right])) if right.any() else math.nan,
        "lost": float(np.median(lost)) if fell.any() else math.nan,
    }


def _cost(m: Mapping[str, Any], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """What each part of a run cost: all corruptions are one part, and lower bounds go by their labels."""
    parts: dict[str, dict[str, Any]] = {}
    for c in m.get("cost", ()):
        label: str = c["attack"]
        name = "corruptions" if label.startswith(CORRUPTION) else label.removeprefix(BOUND)
        took = seconds.get(label, math.nan) if label != "total" else sum(seconds.values())
        known = parts.setdefault(name, {"samples": c["samples"]})
        for what, value in (*((k, c[k]) for k in ("forwards", "backwards", "per_sample", "most")), ("seconds", took)):
            known[what] = known.get(what, 0) + (value or 0)
    return [{"part": name, **told} for name, told in parts.items()]


def _weakest(m: Mapping[str, Any], quoted: int) -> list[dict[str, Any]]:
    """What a summary says of the classes of a model: in their order, or, of too many, the weakest first."""
    told: list[dict[str, Any]] = m["per_class"]["classes"] if "per_class" in m else []
    if len(told) <= MOST_CLASSES:
        return told
    return sorted(told, key=lambda c: (c["robust"][quoted]["value"], c["clean"]["value"]))[:MOST_CLASSES]


def _step(norm: str, eps: Sequence[float]) -> float:
    """A round piece of change, of the order of the budgets; one element in L0."""
    return 1.0 if norm == "L0" else 10.0 ** math.floor(math.log10(eps[-1]))


def _confusions(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any]:
    """Where samples go when they fall: a table for few classes, the commonest pairs for many."""
    count = max(len(classes), int(outcome.into.max(initial=-1)) + 1)
    table = moved(outcome, count)
    names = [class_name(list(classes), k) for k in range(count)]
    order = np.argsort(-table, axis=None, kind="stable")[:PAIRS]
    pairs = [(names[i // count], names[i % count], int(table.flat[i])) for i in order.tolist() if table.flat[i]]
    return {
        "model": outcome.model,
        "names": names,
        "table": table.tolist() if count <= MOST_CLASSES else None,
        "most": int(table.max(initial=1)) or 1,
        "fell": int(table.sum()),
        "pairs": pairs,
    }


def _gallery(run: Run) -> list[dict[str, Any]]:
    """The explained samples, with what each model makes of them."""
    made = {m: run.explanation(m) for m in run.spec.names}
    known = {m: e for m, e in made.items() if e is not None and e[0]}
    if not known:
        return []
    rows = {(r["model"], r["position"]): r for r in run.samples()}
    notes = next(iter(known.values()))[0]
    cards = []
    for k, note in enumerate(notes):
        views = []
        for model, (told, tensors) in known.items():
            views.append(_view(run, rows[model, note["position"]], told[k], _of(tensors, k)))
        row = rows[next(iter(known)), note["position"]]
        cards.append({"label": row["class"], "index": row["index"], "why": note["why"], "views": views})
    return cards


def _of(tensors: Mapping[str, Tensor], k: int) -> dict[str, Any]:
    rows = {name: t[k] for name, t in tensors.items()}
    return {name: (row.double() if row.is_floating_point() else row).numpy() for name, row in rows.items()}


def _view(run: Run, row: Mapping[str, Any], note: Mapping[str, Any], t: Mapping[str, Any]) -> dict[str, Any]:
    """What one model makes of one sample: in words, in pictures or in a table."""
    classes, kind, norm = run.data["classes"], run.data["kind"], run.spec.norm
    label, rival = row["label"], int(t["rival"])

    def lead(logits: Any) -> float:
        return float(logits[label] - np.delete(logits, label).max())

    view = {
        "model": row["model"],
        "label": row["class"],
        "rival": class_name(classes, rival),
        "answer": row["predicted_class"],
        "correct": row["correct"],
        "lead": lead(t["logits"]),
        "attacked": bool(t["attacked"]),
        "size": words.size(row["distance"], norm, kind) if row["distance"] is not None else "",
        "by": row["by"],
        "lead_adversarial": lead(t["logits_adversarial"]),
        "no_attribution": note.get("no_attribution"),
        "no_counterfactual": note.get("no_counterfactual"),
        "counterfactual": None,
        "pictures": [],
        "table": [],
    }
    if "counterfactual" in t:
        view["counterfactual"] = _counterfactual(run, note, t)
    if kind == "image":
        view["pictures"] = _pictures(run, view, t)
    elif run.data["columns"]:
        view["table"] = _table(run, t)
    return view


def _counterfactual(run: Run, note: Mapping[str, Any], t: Mapping[str, Any]) -> dict[str, Any]:
    """What must change for another answer, and what each change did."""
    changed = np.flatnonzero(t["changed"])
    order = sorted(changed.tolist(), key=lambda f: -t["contributions"][f])
    image, columns = "mask" in t, run.data["columns"]
    unit = "patch" if image else "column" if columns else "input"
    count = len(np.unique(t["mask"])) if image else len(t["changed"])
    name = "patch {}" if image or not columns else ""
    return {
        "valid": bool(t["valid"]),
        "goal": note["goal"],
        "answer": class_name(run.data["classes"], int(t["logits_counterfactual"].argmax())),
        "count": len(order),
        "of": count,
        "unit": unit if len(order) == 1 else f"{unit}es" if unit == "patch" else f"{unit}s",
        "units": f"{unit}es" if unit == "patch" else f"{unit}s",
        "proved": note["proved"],
        "gain": float(t["gain"]),
        "shares": [
            (name.format(n + 1) if name else columns[f]["name"], float(t["contributions"][f]))
            for n, f in enumerate(order)
        ],
        "features": order,
    }


def _pictures(run: Run, view: Mapping[str, Any], t: Mapping[str, Any]) -> list[dict[str, Any]]:
    low, high = (b if b is not None else edge for b, edge in zip(run.data["bounds"], (0.0, 1.0), strict=True))
    x, a, label, rival = t["x"], t["adversarial"], view["label"], view["rival"]
    shown = [
        _picture(x, pictures.photo(x, low, high), "the sample", f"A {label}, which the model reads as {view['answer']}")
    ]
    if view["attacked"]:
        change, factor = pictures.difference(x, a, low, high)
        shown.append(
            _picture(
                a, pictures.photo(a, low, high), f"read as {rival}", f"The nearest adversarial example, read as {rival}"
            )
        )
        times = f"change × {factor}" if factor > 1 else "the change"
        shown.append(
            _picture(
                a, change, times, f"What was changed, {factor} times as strong; grey is unchanged, brighter is more"
            )
        )
    if "attribution" in t:
        before, after = t["attribution"], t["attribution_adversarial"]
        most = pictures.strongest(before, *([after] if view["attacked"] else []))
        words_ = f"red speaks for {label}, blue for {rival}"
        shown.append(
            _picture(
                x,
                pictures.heat(before, most),
                "evidence before" if view["attacked"] else "evidence",
                f"Attribution of the sample: {words_}",
            )
        )
        if view["attacked"]:
            shown.append(
                _picture(
                    x, pictures.heat(after, most), "evidence after", f"Attribution of the adversarial example: {words_}"
                )
            )
    cf = view["counterfactual"]
    if cf and cf["valid"] and cf["count"]:
        mask = t["mask"][0]
        marks = [(n + 1, *pictures.middle(mask, f)) for n, f in enumerate(cf["features"])]
        shown.append(
            _picture(
                x,
                pictures.photo(t["counterfactual"], low, high),
                f"counterfactual: {cf['answer']}",
                f"The counterfactual, read as {cf['answer']}: {cf['count']} {cf['unit']} changed, outlined",
                pictures.outline(mask, np.array(cf["features"])),
                marks if len(marks) > 1 else [],
            )
        )
    return shown


def _picture(
    x: Any, source: str, caption: str, alt: str, path: str = "", marks: Sequence[tuple[int, float, float]] = ()
) -> dict[str, Any]:
    height, width = x.shape[-2:]
    return {
        "src": source,
        "caption": caption,
        "alt": alt,
        "width": width,
        "height": height,
        "path": path,
        "marks": list(marks),
        "sharp": max(width, height) <= 64,
    }


def _table(run: Run, t: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns that matter: those that the counterfactual changes, and those with the strongest attributions."""
    columns = run.data["columns"]
    weight = np.abs(t["attribution"]) if "attribution" in t else np.abs(t["adversarial"] - t["x"])
    changed = t["changed"] if "changed" in t else np.zeros(len(columns), bool)
    chosen = set(np.flatnonzero(changed).tolist()) | set(np.argsort(-weight, kind="stable")[:TOP].tolist())

    def units(values: Any, f: int) -> float:
        low, high = columns[f]["low"], columns[f]["high"]
        return float(low + float(values[f]) * (high - low))

    return [
        {
            "name": columns[f]["name"],
            "unit": columns[f]["unit"],
            "x": units(t["x"], f),
            "adversarial": units(t["adversarial"], f) if t["attacked"] else None,
            "attribution": float(t["attribution"][f]) if "attribution" in t else None,
            "counterfactual": units(t["counterfactual"], f) if changed[f] else None,
            "contribution": float(t["contributions"][f]) if changed[f] else None,
        }
        for f in sorted(chosen, key=lambda f: (not changed[f], -weight[f]))
    ]

"""``robustx counterfactual``: what would have to be different for another answer?"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..counterfactual import CounterfactualExplainer, CounterfactualResult
from ..counterfactual.aims import Aim
from ..counterfactual.words import PROVED, Step
from ..perturb import superpixels
from ..zoo import Data, class_name
from ..zoo.address import near
from . import DONE, NO
from .opening import Subject, class_of, folder, sample, subject
from .show import as_json, files, table, write_csv


def run(asked: Namespace) -> int:
    """Find the fewest features whose change gives another answer for one sample, and say what each did."""
    place = folder(asked.out) if asked.out else None
    s = subject(asked)
    one = sample(s.data, asked.row)
    scores = s.answers(one.x)[0]
    answer = int(scores.argmax())
    target = None if asked.target is None else class_of(asked.target, one.classes, len(scores))
    if target == answer:
        raise ValueError(f"--target {asked.target!r} is the answer for row {asked.row} already; name another class")
    mask, names = _features(one, asked.segments)
    for name in asked.keep:
        if name not in names:
            raise ValueError(f"--keep names {name!r}, which is no feature{near(name, names)}; there are {_some(names)}")
    if asked.replace == "blur" and one.kind != "image":
        raise ValueError(f"--replace blur is for images, and {one.name!r} is of kind {one.kind!r}; give a number")
    bounds = one.bounds if asked.replace is None else None
    options = {k: v for k, v in (("strategy", asked.strategy), ("distance", asked.distance)) if v is not None}
    search = CounterfactualExplainer(s.model, bounds=bounds, reference=asked.replace, by=asked.margin, **options)
    if asked.strategy is not None:  # some learn from known samples
        search.fit(s.data.x, s.data.y)
    want: Aim = "other" if target is None else target
    found = search.generate(
        one.x,
        want,
        min_prob=asked.min_prob,
        feature_mask=mask,
        names=names,
        immutable=asked.keep,
        max_changes=asked.max_changes,
        time_limit=asked.time_limit,
        n=asked.count,
    )
    told = [_counterfactual(s, one, r, mask) for r in (found, *found.alternatives)]
    result: dict[str, Any] = {
        "model": s.name,
        "data": one.name,
        "row": asked.row,
        "label": class_name(one.classes, int(one.y)),
        "answer": class_name(one.classes, answer),
        "probability": float(scores.softmax(0)[answer]),
        "target": None if target is None else class_name(one.classes, target),
        "min_prob": asked.min_prob,
        "margin_before": float(found.before[0]),
        "features": len(names),
        **told[0],
        "alternatives": told[1:],
    }
    written = [] if place is None else _write(place, one, found, mask, result)
    print(as_json(result) if asked.json else _told(result))
    if place is not None and not asked.json:
        print(files(place, written))
    return DONE if result["found"] else NO


def _counterfactual(s: Subject, one: Data, r: CounterfactualResult, mask: Tensor | None) -> dict[str, Any]:
    """What is told of one counterfactual."""
    after = s.answers(r.counterfactual)[0]
    there = int(after.argmax())
    return {
        "found": bool(r.valid[0]),
        "status": r.status[0],
        "message": "" if r.valid[0] else r.message(0),
        "counterfactual_answer": class_name(one.classes, there),
        "counterfactual_probability": float(after.softmax(0)[there]),
        "margin": float(r.margin[0]),
        "nearest": float(r.nearest[0]),
        "proved": r.proved[0],
        "changes": _changes(one, r, mask),
        "forwards": int(r.forwards[0]),
        "backwards": int(r.backwards[0]),
    }


def _features(one: Data, segments: int) -> tuple[Tensor | None, list[str]]:
    """The feature mask, and what the features are called: columns, superpixels, or elements."""
    if one.kind == "table":
        return None, [c.name for c in one.columns]
    if one.kind == "image":
        mask = superpixels(one.x, segments=segments)
        return mask, [f"superpixel {k}" for k in mask.unique().tolist()]
    return None, [f"element {k}" for k in range(one.x.numel())]


def _changes(one: Data, r: CounterfactualResult, mask: Tensor | None) -> list[dict[str, Any]]:
    """One line for each feature that changes, the most helpful first."""
    changed = r.changed[0].nonzero().squeeze(1).tolist()
    before, after = one.x[0], r.counterfactual[0]
    found = []
    for i in sorted(changed, key=lambda i: -float(r.contributions[0, i])):
        line: dict[str, Any] = {"feature": r.names[i]}
        if one.kind == "table":
            line["from"], line["to"] = (float(one.to_units(v[None])[0, i]) for v in (before, after))
            line["unit"] = one.columns[i].unit
        elif mask is not None:
            here = mask[0, 0] == mask.unique()[i]
            line |= {
                "pixels": int(here.sum()),
                "from": float(before[:, here].mean()),
                "to": float(after[:, here].mean()),
            }
        else:
            line["from"], line["to"] = (float(v.flatten()[i]) for v in (before, after))
        found.append({**line, "contribution": float(r.contributions[0, i])})
    return found


def _told(r: dict[str, Any]) -> str:
    lines = [
        f"{r['model']}, {r['data']} row {r['row']}: label {r['label']}, answer {r['answer']} ({r['probability']:.1%})"
    ]
    wanted = f"the answer {r['target']}" if r["target"] else f"another answer than {r['answer']}"
    if r["min_prob"] is not None:
        wanted += f" with more than {r['min_prob']:.4g}"
    if not r["found"]:
        return "\n".join([*lines, "", f"Nothing was found that gives {wanted}. {r['message'].capitalize()}.", ""])
    lines += _listed("It would be", r, r["margin_before"], r["features"])
    lines += [f"  (a margin above 0 is {wanted}; contributions add up to its rise, in logits)"]
    for other in r["alternatives"]:
        if other["found"]:
            lines += ["", *_listed("Or else it would be", other, r["margin_before"], r["features"])]
        else:
            lines += ["", f"No further one without all of these changes: {other['message']}."]
    return "\n".join(lines) + "\n"


def _listed(begin: str, r: dict[str, Any], before: float, features: int) -> list[str]:
    n = len(r["changes"])
    return [
        f"{begin} {r['counterfactual_answer']} ({r['counterfactual_probability']:.1%}) "
        f"with {n} of {features} features changed:",
        "",
        table([list(c.values()) for c in r["changes"]], list(r["changes"][0])),
        "",
        f"  margin {before:.4g} before, {r['margin']:.4g} after; proved: {PROVED[r['proved']]}",
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def _write(place: Path, one: Data, r: CounterfactualResult, mask: Tensor | None, result: dict[str, Any]) -> list[str]:
    from safetensors.torch import save

    tensors = {"x": one.x}
    for k, other in enumerate((r, *r.alternatives)):
        number = f"_{k}" if k else ""
        tensors |= {f"{n}{number}": getattr(other, n) for n in ("counterfactual", "changed", "contributions")}
    if mask is not None:
        tensors["feature_mask"] = mask
    (place / "counterfactual.safetensors").write_bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    (place / "counterfactual.json").write_text(as_json(result) + "\n", encoding="utf-8")
    every = enumerate((result, *result["alternatives"]))
    write_csv(place / "changes.csv", [{"rank": k, **change} for k, told in every for change in told["changes"]])
    written = ["counterfactual.safetensors", "counterfactual.json", "changes.csv"]
    if not result["found"]:
        return written
    from ..plot import TIGHT, image_counterfactual, waterfall

    before, after = (f"{result[k]} ({result[p]:.1%})" for k, p in BEFORE_AND_AFTER)
    title = f"{result['model']}, row {result['row']}: from {result['answer']} to {result['counterfactual_answer']}"
    changes = result["changes"]
    if mask is not None:
        cells = mask[0, 0]
        shares = torch.zeros(cells.shape, device=cells.device)
        for k, v in zip(mask.unique(), r.contributions[0], strict=True):
            shares[cells == k] = float(v)
        figure = image_counterfactual(one.x[0], r.counterfactual[0], shares, cells, one.bounds, (title, before, after))
    else:
        steps = [Step(*(c.get(k, "") for k in ("feature", "from", "to", "unit", "contribution"))) for c in changes]
        names, won = [f"{c.feature}: {c.arrow}" for c in steps], [c.contribution for c in steps]
        figure = waterfall(names, won, result["margin_before"], title, "margin in logits: above 0 it is reached")
    figure.savefig(place / "counterfactual.png", **TIGHT)
    return [*written, "counterfactual.png"]


BEFORE_AND_AFTER = (("answer", "probability"), ("counterfactual_answer", "counterfactual_probability"))

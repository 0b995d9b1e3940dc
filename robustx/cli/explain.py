"""``robustx explain``: what does a model's answer rest on?"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import attribution
from ..engine import Door, Output
from ..perturb import superpixels
from ..zoo import Data, class_name
from . import DONE
from .opening import Subject, class_of, folder, sample, subject
from .show import as_json, files, table, write_csv

METHODS = {  # what each one's numbers are
    "integrated-gradients": "share of the output",
    "saliency": "slope of the output",
    "feature-ablation": "fall of the output",
}


def run(asked: Namespace) -> int:
    """Attribute one output for one sample, and list the parts by how much they did."""
    place = folder(asked.out) if asked.out else None
    s = subject(asked)
    one = sample(s.data, asked.row)
    scores = s.answers(one.x)[0]
    target = int(scores.argmax()) if asked.target is None else class_of(asked.target, s.data.classes, len(scores))
    method = _method(asked)
    base = s.data.x.mean(0, keepdim=True) if asked.baseline == "mean" else torch.full_like(one.x, asked.baseline)
    if asked.segments and one.kind != "image":
        raise ValueError(f"--segments cuts images, and {one.name!r} is of kind {one.kind!r}; leave it out")
    mask = superpixels(one.x, segments=asked.segments) if asked.segments else None
    a, sums = _attributed(method, asked, s, one, target, base, mask)
    parts = _parts(a[0], one, mask)
    result: dict[str, Any] = {
        "method": method,
        "model": s.name,
        "data": one.name,
        "row": asked.row,
        "label": class_name(one.classes, int(one.y)),
        "answer": class_name(one.classes, int(scores.argmax())),
        "probability": float(scores.softmax(0).max()),
        "explained": class_name(one.classes, target),
        "baseline": asked.baseline,
        **sums,
    }
    written = [] if place is None else _write(place, one, a, mask, result, parts)
    if asked.json:
        print(as_json({**result, "parts": parts[: asked.top]}))
        return DONE
    print(_told(result, parts[: asked.top], len(parts)))
    if place is not None:
        print(files(place, written))
    return DONE


def _method(asked: Namespace) -> str:
    name: str = asked.method.lower().replace("_", "-").replace(" ", "-")
    if name not in METHODS:
        from ..zoo.address import near

        raise ValueError(f"no method is called {asked.method!r}{near(name, METHODS)}; known are {', '.join(METHODS)}")
    if asked.steps is not None and name != "integrated-gradients":
        raise ValueError(f"--steps is for integrated-gradients, got --method {name}; leave it out")
    if asked.segments is not None and name != "feature-ablation":
        raise ValueError(f"--segments is for feature-ablation, got --method {name}; leave it out")
    if asked.baseline != 0 and name == "saliency":
        raise ValueError("saliency compares with nothing; leave --baseline out")
    return name


def _attributed(
    method: str, asked: Namespace, s: Subject, one: Data, target: int, base: Tensor, mask: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """The attribution [1, ...], and the numbers that say what it adds up to."""
    if method == "saliency":
        return attribution.Saliency(s.model).attribute(one.x, target, abs=False), {}
    both = Door.open(torch.cat([one.x, base.to(one.x)])).probe(s.model, Output(target))
    here, there = both.score.tolist()
    told = {"output": here, "output_at_baseline": there}
    if method == "feature-ablation":
        return attribution.FeatureAblation(s.model).attribute(one.x, base, target, feature_mask=mask), told
    a = attribution.IntegratedGradients(s.model).attribute(one.x, base, target, n_steps=asked.steps or 50)
    return a, {**told, "sum": float(a.double().sum()), "missing": here - there - float(a.double().sum())}


def _parts(a: Tensor, one: Data, mask: Tensor | None) -> list[dict[str, Any]]:
    """One line for each part of the input, the most important first."""
    x = one.x[0]
    if one.kind == "table":
        units = one.to_units(one.x)[0]
        found = [
            {"part": c.name, "value": float(u), "unit": c.unit, "input": float(v), "attribution": float(w)}
            for c, u, v, w in zip(one.columns, units, x, a, strict=True)
        ]
    elif mask is not None:
        found = [
            {
                "part": f"superpixel {k}",
                "pixels": int((mask == k).sum()),
                "input": float(x[:, mask[0, 0] == k].mean()),
                "attribution": float(a[:, mask[0, 0] == k][0, 0]),
            }
            for k in mask.unique().tolist()
        ]
    else:
        names = ("channel", "y", "x") if one.kind == "image" else tuple(f"axis {i}" for i in range(x.dim()))
        places = torch.nonzero(torch.ones_like(x)).tolist()
        found = [
            {**dict(zip(names, p, strict=True)), "input": float(x[tuple(p)]), "attribution": float(a[tuple(p)])}
            for p in places
        ]
        if one.kind == "image" and len(x) == 1:
            for f in found:
                del f["channel"]
    return sorted(found, key=lambda f: -abs(f["attribution"]))


def _told(r: dict[str, Any], parts: list[dict[str, Any]], of: int) -> str:
    lines = [
        f"{r['method'].replace('-', ' ')} of the output for {r['explained']}: {r['model']}, {r['data']} row {r['row']}",
        "",
        f"  label {r['label']}, answer {r['answer']} ({r['probability']:.1%})",
    ]
    if "output" in r:
        lines.append(
            f"  output {r['output']:.4g} here, {r['output_at_baseline']:.4g} at the baseline ({r['baseline']})"
        )
    if "sum" in r:
        lines.append(f"  attributions add up to {r['sum']:.6g} and miss the difference by {abs(r['missing']):.1g}")
    shown = [c for c in parts[0] if c != "input" or "value" not in parts[0]]  # a table is read in its own units
    lines += ["", table([[p[c] for c in shown] for p in parts], shown), f"  {len(parts)} of {of} parts"]
    return "\n".join(lines) + "\n"


def _write(
    place: Path, one: Data, a: Tensor, mask: Tensor | None, r: dict[str, Any], parts: list[dict[str, Any]]
) -> list[str]:
    from safetensors.torch import save

    tensors = {"x": one.x, "attribution": a, "label": one.y, "index": one.index}
    (place / "attribution.safetensors").write_bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    write_csv(place / "attribution.csv", parts)
    (place / "attribution.json").write_text(as_json(r) + "\n", encoding="utf-8")
    written = ["attribution.safetensors", "attribution.csv", "attribution.json"]
    title = (
        f"{r['model']}, row {r['row']}: label {r['label']}, answer {r['answer']} ({r['probability']:.1%})\n"
        f"{r['method'].replace('-', ' ')} of the output for {r['explained']}"
    )
    from ..plot import TIGHT, image_attribution, ranked_bars

    if one.kind == "image":
        here = a[0].sum(0) if mask is None else a[0, 0]  # each channel shows what its whole superpixel did
        figure = image_attribution(one.x[0], here, one.bounds, title, METHODS[r["method"]], mask)
    elif one.kind == "table":
        top = parts[:15]
        names = [f"{p['part']} = {p['value']:.4g} {p['unit']}".strip() for p in top]
        figure = ranked_bars(names, [p["attribution"] for p in top], title, METHODS[r["method"]])
    else:
        return written
    figure.savefig(place / "attribution.png", **TIGHT)
    return [*written, "attribution.png"]

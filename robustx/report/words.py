"""Words: numbers and settings of a run as people say them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.spec import AttackSpec

ELEMENTS = {"image": "pixel", "table": "column", "other": "input"}
SAMPLES = {"image": "images", "table": "rows", "other": "samples"}

LOSSES = {
    "ce": "cross-entropy",
    "margin": "margin",
    "dlr": "ratio of logit differences",
    "pma": "margin of probabilities",
}


def percent(value: float | None, digits: int = 1) -> str:
    """0.533 as 53.3%."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, and a true minus sign."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-9 < abs(value) < 1e9:  # people read 0.00001 more easily than 1e-05
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{places}f}".rstrip("0") if places else f"{value:.0f}"
    return text.replace("-", "−")


def between(share: Mapping[str, Any]) -> str:
    """The interval of a share."""
    return f"{percent(share['low'])} to {percent(share['high'])}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, plus too."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def probability(p: float) -> str:
    """A p-value, without false precision."""
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def budget(eps: float, norm: str, kind: str) -> str:
    """What a budget lets an attacker do."""
    e, element = number(eps), ELEMENTS[kind]
    return {
        "Linf": f"change every {element} by up to {e}{' of its range' if kind == 'table' else ''}",
        "L2": f"make changes of Euclidean length up to {e}",
        "L1": f"make changes that add up to {e}",
        "L0": f"change up to {e} {element}{'' if eps == 1 else 's'} at will",
    }[norm]


def size(distance: float, norm: str, kind: str) -> str:
    """How large one change is."""
    d, element = number(distance), ELEMENTS[kind]
    return {
        "Linf": f"no {element} changed by more than {d}{' of its range' if kind == 'table' else ''}",
        "L2": f"a change of Euclidean length {d}",
        "L1": f"changes that add up to {d}",
        "L0": f"{d} {element}{'' if distance == 1 else 's'} changed",
    }[norm]


def axis(norm: str, kind: str) -> str:
    """What a budget is measured in, for the axis of a figure."""
    return f"L0: changed {ELEMENTS[kind]}s" if norm == "L0" else f"{norm}, in input units"


def per(norm: str, kind: str, step: float) -> str:
    """For each so much change."""
    return f"per changed {ELEMENTS[kind]}" if norm == "L0" else f"per {number(step)} of change"


def scale(norm: str, kind: str, bounds: Sequence[float | None]) -> str:
    """What a change of one tenth, say, is a tenth of."""
    low, high = bounds
    if low is None or high is None:
        return "Changes are measured in the units of the model's inputs."
    span = f"from {number(low)} to {number(high)}"
    if norm == "L0":
        return f"A changed value may be anything {span}."
    if kind == "image":
        tenth = number((high - low) / 10)
        return f"Pixel values run {span} (black to white), so {tenth} is a tenth of the way from black to white."
    if kind == "table":
        return f"Each column runs {span}, which stands for its least and greatest known value."
    return f"Inputs run {span}."


def attack_words(attack: AttackSpec) -> str:
    """What an attack does, in a few words."""
    o = attack.options
    loss = o.get("loss_func") or "ce"
    loss = LOSSES.get(loss, loss)
    targets = o.get("targets")
    towards = f", towards each of up to {targets} likeliest other classes" if targets else ""
    steps, restarts = o.get("steps", 40), o.get("restarts", 1)
    if attack.name.lower() == "fgsm":
        return f"one step along the gradient of the {loss}"
    if attack.name.lower() == "pgd":
        starts = f", {restarts} starts" if restarts > 1 else ""
        return f"{steps} gradient steps on the {loss}{towards}{starts}"
    if attack.name.lower() == "bisection":
        return (
            f"the nearest adversarial example: budget halved {o.get('rounds', 12)} times, {steps} steps each{towards}"
        )
    return ", ".join(f"{k} {v}" for k, v in o.items())


def short(name: str, most: int = 32) -> str:
    """A name with its middle left out, if it is too long for a picture."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


SOUND = {
    "VALID": "nothing suggests that the attacks were too weak for it",
    "WEAK": "a stronger attack may well lower its numbers",
    "INVALID": "its numbers under attack say nothing, and should not be quoted",
}
"""What a verdict about the evaluation itself means for a model's numbers."""


def verdict(summary: Mapping[str, Any], m: Mapping[str, Any], kind: str) -> str:
    """What was found for one model of a run's summary: how a sentence that begins with its name goes on.

    The accuracy quoted is that at the middle one of the budgets, whatever it shows.
    """
    norm, several = summary["norm"], SAMPLES[kind]
    clean, robust, d = m["clean"], m["robust"][len(m["robust"]) // 2], m["distances"]
    text = (
        f"is right about {percent(clean['value'])} of the {summary['samples']} {several}. An attacker who may "
        f"{budget(robust['eps'], norm, kind)} leaves {percent(robust['value'])} right (95% interval "
        f"{between(robust)})."
    )
    proofs = [
        (p, c) for c in m.get("certified", ()) for p in c["accuracy"] if p["eps"] == robust["eps"] and not c["notes"]
    ]
    if proofs:
        most, by = max(proofs, key=lambda found: found[0]["value"])
        text += f" {percent(most['value'])} are proved to withstand any such change ({by['label']})."
    half = d["quartiles"][1]
    if half is not None:
        text += f" Half of its right answers fall with {size(half, norm, kind)}."
    elif d["largest_tried"] and d["total"]:
        text += f" More than half of its right answers withstood all changes up to {number(d['largest_tried'])}."
    return text


def judged(m: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the evaluation of a model is sound: the verdict, what it means, its reasons; None if it was not checked.

    Warnings of attacks stand in for a verdict where nothing else looked: they make it WEAK.
    """
    found: Mapping[str, Any] | None = m.get("soundness")
    if found is None:
        if not m["warnings"]:
            return None
        found = {"verdict": "WEAK", "flags": [], "measured": {}}
    return {**found, "means": SOUND[found["verdict"]]}


def compared(summary: Mapping[str, Any], kind: str) -> tuple[str, str] | None:
    """How two models compare at the budget that is quoted: whom a sentence is about, and how it goes on."""
    models = summary["models"]
    if len(models) != 2:
        return None
    robust = models[0]["robust"]
    at = next(c for c in summary["comparisons"] if c["eps"] == robust[len(robust) // 2]["eps"])
    doubtful = {m["name"] for m in models if (judged(m) or {"verdict": "VALID"})["verdict"] != "VALID"}
    return _compared(at, SAMPLES[kind], doubtful)


def _compared(c: Mapping[str, Any], several: str, doubtful: set[str]) -> tuple[str, str]:
    a, b, p = c["first_only"], c["second_only"], c["p_value"]
    if p >= 0.05:
        return c["first"], (
            f"and {c['second']} are not told apart by these {several} at that budget: {c['first']} alone withstands on "
            f"{a}, {c['second']} alone on {b} (exact McNemar test, p = {probability(p)})."
        )
    more, less = (c["first"], c["second"]) if a > b else (c["second"], c["first"])
    claim = "looks more robust, but the attacks on it failed in part" if more in doubtful else "is the more robust one"
    return more, (
        f"{claim}: at that budget it withstands on {max(a, b)} {several} where {less} does not, and "
        f"{less} on {min(a, b) or 'none'} where {more} does not (exact McNemar test, p "
        f"{'' if p < 1e-4 else '= '}{probability(p)})."
    )


class Verbatim(str):
    """Markdown that is meant as such."""


def markdown(value: Any) -> Any:
    """A value as Markdown shows it: text is escaped, and stays in its line."""
    if not isinstance(value, str) or isinstance(value, Verbatim):
        return value
    text = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|#~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def code(text: str) -> Verbatim:
    """Markdown's code, in a line."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return Verbatim(f"{ticks}{' ' if len(ticks) > 1 else ''}{text}{' ' if len(ticks) > 1 else ''}{ticks}")


def fence(text: str, language: str = "") -> Verbatim:
    """Markdown's code, as a block."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Verbatim(f"{ticks}{language}\n{text.rstrip()}\n{ticks}")


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML, which has no null: what is None is left out, and so is its default again."""
    import tomli_w

    return tomli_w.dumps(_set(settings))


def _set(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _set(v) for k, v in value.items() if v is not None}
    return [_set(v) for v in value] if isinstance(value, list | tuple) else value

"""Pictures of counterfactuals: what changed, what each change did, and the way there."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..engine.checks import ArgumentError
from ..engine.packing import finest
from ..engine.probe import Door
from ..engine.scores import Everything
from ..perturb.gates import gated
from ..perturb.goals import Leave, Reach, Surely, as_logits
from .pairs import Pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import CounterfactualResult

Kind = Literal["table", "waterfall", "image", "path", "pareto"]
POINTS = 65  # of a straight way
MOST = 30  # changes that are drawn one by one


def usual(result: "CounterfactualResult", example: int) -> Kind:
    """The picture that shows most of an example."""
    if _picture(result):
        return "image"
    return "waterfall" if result.valid[example] and not result.alternatives else "table"


def table(result: "CounterfactualResult", example: int, title: str | None) -> "Figure":
    """What changes, in the user's units, and what became of the example; its alternatives beneath."""
    from ..plot import words_table

    blocks, notes = [], []
    for one in (result, *result.alternatives):
        blocks.append([[feature, change, f"{won:+.3g}"] for feature, change, won in _drawn(one, example)])
        notes.append(_note(one, example))
    return words_table(blocks, ["feature", "change", "margin won"], title or result.summary(example), notes)


def waterfall(result: "CounterfactualResult", example: int, title: str | None) -> "Figure":
    """From the margin at the input to that at the counterfactual, one change after the other."""
    from ..plot import waterfall as drawn

    steps = _drawn(result, example)
    names, won = [f"{feature}: {change}".removesuffix(": ") for feature, change, _ in steps], [w for *_, w in steps]
    return drawn(names, won, float(result.before[example]), title or result.summary(example), MARGIN)


def path(result: "CounterfactualResult", example: int, title: str | None) -> "Figure":
    """The margin on the straight way to the counterfactual, and on the walk of single changes, most helpful first."""
    from ..plot import ways

    names, order = [feature for feature, *_ in _drawn(result, example)], result.order(example)
    some = result.at([example])
    pairs = Pairs(**some.asked(some.goal))
    gates = gated(pairs.f, pairs.features, lambda _: pairs.after)
    home = gates.point
    walk = home.repeat(len(names) + 1, 1)
    for i, feature in enumerate(order):
        walk[min(i + 1, len(names)) :, feature] = 1
    straight = walk[:0]
    if all(t.is_floating_point() for t in pairs.after):
        straight = torch.linspace(0, 1, POINTS, device=home.device, dtype=home.dtype)[:, None] * pairs.changed
    z = torch.cat([straight, walk])
    margins = finest(gates.value(z, torch.zeros(len(z), dtype=torch.long, device=z.device))).tolist()
    on, behind = margins[: len(straight)], margins[len(straight) :]
    return ways(on, behind, names, title or result.summary(example), MARGIN)


def pareto(
    result: "CounterfactualResult",
    example: int,
    title: str | None,
    beside: Mapping[str, Sequence[tuple[float, float]]],
) -> "Figure":
    """How many features change against the cost of it: an example, its alternatives, and what else is known."""
    from ..plot import front

    found = [r for r in (result, *result.alternatives) if r.valid[example]]
    points = {"found": [(float(r.n_changed[example]), float(r.cost[example])) for r in found], **beside}
    told = {name: pairs for name, pairs in points.items() if pairs}
    return front(told, title or result.summary(example), "features that change", "cost of the change")


def image(
    result: "CounterfactualResult", examples: Sequence[int], title: str | None, classes: Sequence[str], bounds: Any
) -> "Figure":
    """Before, after, what changed and what each region did, one example a row."""
    from ..plot import image_counterfactuals

    if not _picture(result):
        raise ArgumentError(
            "kind='image' is for images [B, C, H, W] with one or three channels; kind='waterfall' shows any change"
        )
    some = result.at(examples)
    before, after = (Door.open(t).inputs[0] for t in (some.inputs, some.counterfactual))
    shape = before.shape[1:]
    shares = some.features.spread(some.contributions, some.rows).reshape(len(some), *shape).mean(1)
    regions = some.features.labels(len(some), some.rows).reshape(len(some), *shape)[:, 0]
    if bounds is None:
        low, high = (float(f(torch.cat([before, after]))) for f in (torch.min, torch.max))
        bounds = (0, 1) if low >= 0 and high <= 1 else (low, high)
    title = title or (result.summary(examples[0]) if len(some) == 1 else "what would have to be different")
    names = [] if len(some) == 1 else [f"example {i}" for i in examples]
    won = "margin won, in logits" if _of_classes(some) else "margin won"
    return image_counterfactuals(before, after, shares, regions, bounds, title, _answers(some, classes), names, won)


MARGIN = "margin of the goal: above 0 it is reached"
DRAWN: dict[str, Callable[["CounterfactualResult", int, str | None], "Figure"]] = {
    "table": table,
    "waterfall": waterfall,
    "path": path,
}


def _drawn(result: "CounterfactualResult", example: int) -> list[tuple[str, str, float]]:
    """What each change is, in words, and what it won; the least helpful ones together where there are too many."""
    steps = [(s.feature, s.arrow, s.contribution) for s in result.steps(example)]
    if len(steps) <= MOST:
        return steps
    rest = steps[MOST - 1 :]
    return [*steps[: MOST - 1], (f"{len(rest)} more", "", sum(won for *_, won in rest))]


def _note(result: "CounterfactualResult", example: int) -> str:
    if not result.valid[example] or not result.changed[example].any():
        return result.message(example)
    before, after = (f"{float(v[example]):.3g}" for v in (result.before, result.margin))
    return f"{result.summary(example).partition('; ')[2]}; margin {before} before, {after} after"


def _picture(result: "CounterfactualResult") -> bool:
    inputs = Door.open(result.inputs).inputs
    return len(inputs) == 1 and inputs[0].ndim == 4 and inputs[0].shape[1] in (1, 3)


def _of_classes(result: "CounterfactualResult") -> bool:
    return isinstance(result.goal, Leave | Reach | Surely)


def _answers(result: "CounterfactualResult", classes: Sequence[str]) -> list[list[str]]:
    """What the model says of each example before and after: a class and its probability, or how far the goal is."""
    if not _of_classes(result):
        both = zip(result.before.tolist(), result.margin.tolist(), strict=True)
        return [[f"margin {v:.3g}" for v in pair] for pair in both]
    pairs = result.pairs
    told: list[list[str]] = []
    for inputs in (pairs.f.inputs, pairs.after):
        f = pairs.f.to(of=Everything(), inputs=inputs)
        most, top = as_logits(f.score, f.everyone).softmax(1).max(1)
        names = [classes[k] if k < len(classes) else str(k) for k in top.tolist()]
        told.append([f"{n} ({p:.1%})" for n, p in zip(names, most.tolist(), strict=True)])
    return [list(pair) for pair in zip(*told, strict=True)]

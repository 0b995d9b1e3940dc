"""Explanations: which samples of a run teach most, and what each model makes of them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks import ZeroGradientWarning
from ..attribution import IntegratedGradients
from ..counterfactual import CounterfactualExplainer
from ..engine.probe import ModelError, NonFiniteError
from ..engine.scores import Score
from ..perturb.goals import Leave, Reach, as_logits
from ..perturb.segments import superpixels
from ..zoo import Data
from .block import Finished, logits_of
from .spec import Spec
from .statistics import Bools, Floats, Outcome

SMALL = 32  # images whose shorter side is below this are cut into rectangles: superpixels need texture


def instructive(outcomes: Sequence[Outcome], count: int) -> list[tuple[int, str]]:
    """The samples that teach most [at most ``count``], by position in the run, and why each was chosen.

    Taken in turn: on which the models' smallest distances differ most; which falls to the smallest change though the
    model is surer of it than of most, model by model; which is hardest for all; which is the clearest mistake without
    any attack; which is typical. Rows whose output is not finite are left out, and a sample is chosen once.
    """
    chosen: dict[int, str] = {}
    kinds = _kinds(outcomes)
    while kinds:
        for kind in kinds[:]:
            pick = next((p for p in kind if p[0] not in chosen), None)
            if pick is None:
                kinds.remove(kind)
            elif len(chosen) < count:
                chosen[pick[0]] = pick[1]
            else:
                return list(chosen.items())
    return list(chosen.items())


def _kinds(outcomes: Sequence[Outcome]) -> list[Iterator[tuple[int, str]]]:
    """For each way to teach, the samples that do it best, first, with the reason."""
    models, position = [o.model for o in outcomes], outcomes[0].position
    lead, fallen = np.stack([o.lead for o in outcomes]), np.stack([o.fallen for o in outcomes])  # [models, N]
    usable = np.logical_and.reduce(np.isfinite(lead))
    right = usable & np.logical_and.reduce([o.correct for o in outcomes])
    found = fallen[np.isfinite(fallen)]
    d = np.minimum(fallen, 2 * found.max() if len(found) else 1.0)  # what never fell is far away

    def least(key: Floats, among: Bools, why: Callable[[int], str]) -> Iterator[tuple[int, str]]:
        rows = np.flatnonzero(among)
        order = rows[np.lexsort((position[rows], key[rows]))]
        return ((int(position[i]), why(int(i))) for i in order)

    def differs(i: int) -> str:
        return f"here {models[d[:, i].argmax()]} resists most compared with {models[d[:, i].argmin()]}"

    def fools(k: int) -> Iterator[tuple[int, str]]:
        o = outcomes[k]
        seen = usable & o.correct
        sure = seen & (o.by >= 0) & (o.lead >= (np.median(o.lead[seen]) if seen.any() else 0.0))
        return least(d[k], sure, lambda _: f"{o.model} is surer here than on most, and yet little change fools it")

    gap, middle = d.max(0) - d.min(0), np.median(d[:, right], axis=1) if right.any() else np.zeros(len(d))
    return [
        least(-gap, right & (gap > 0), differs),
        *(fools(k) for k in range(len(outcomes))),
        least(-d.min(0), right, lambda _: "the hardest to fool"),
        least(
            lead.min(0),
            usable & (lead.min(0) < 0),
            lambda i: f"{models[lead[:, i].argmin()]} is clearly wrong without any attack",
        ),
        least(np.abs(d - middle[:, None]).sum(0), right, lambda _: "typical: close to the median distance"),
    ]


class Lead(Score):
    """By how much one class leads another: the difference of two logits per example.

    Args:
        first, second: the classes [B].
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def value(self, out: Any, rows: Tensor) -> Tensor:
        logits = as_logits(out, rows)
        a, b = (logits.gather(1, t[rows][:, None]).squeeze(1) for t in (self.first, self.second))
        return a - b


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that an attack has given already: they stand with its results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradientWarning)
        yield


@_quiet()
def explain(
    model: Callable[..., Any],
    data: Data,
    positions: list[int],
    fallen: Mapping[int, tuple[Tensor, int]],
    spec: Spec,
    baseline: Tensor,
) -> Finished:
    """What one model makes of some samples: attributions before and after the nearest attack, and a counterfactual.

    Integrated gradients (from ``baseline`` [1, ...]) share out the lead of the label over its rival: the class that
    the attack ended in, or else the best other one. A counterfactual is the fewest superpixels (columns) that make
    the model leave the label, or, where it is wrong, reach it.

    Args:
        data: the samples of the run, on the model's device.
        positions: which of them.
        fallen: the nearest adversarial example of a position and the class it is taken for, where there is one.

    Tensors, [k, ...] in the order of ``positions``: ``x``, ``adversarial`` (``attacked`` [k] tells where there is one),
    ``rival`` [k], ``logits`` and ``logits_adversarial`` [k, K], ``attribution`` and ``attribution_adversarial``, and of
    the counterfactual ``counterfactual``, ``logits_counterfactual``, ``valid``, ``gain`` (in the margin), ``changed``
    and ``contributions`` [k, F] and, for images, the superpixels ``mask`` [k, 1, H, W]. Notes: one dict per sample with
    what was ``proved`` of the counterfactual, and what could not be made and why.
    """
    x, y = data.x[positions], data.y[positions]
    attacked = torch.tensor([p in fallen for p in positions], dtype=torch.bool)
    logits = logits_of(model, x, y, positions)
    runner_up = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    rival = torch.tensor([fallen[p][1] if p in fallen else int(r) for p, r in zip(positions, runner_up, strict=True)])
    adversarial = torch.stack([fallen[p][0].to(x) if p in fallen else one for p, one in zip(positions, x, strict=True)])
    notes: list[dict[str, Any]] = [{} for _ in positions]
    tensors = {
        "position": torch.tensor(positions),
        "x": x,
        "adversarial": adversarial,
        "attacked": attacked,
        "rival": rival,
        "logits": logits,
        "logits_adversarial": logits_of(model, adversarial, y, positions),
    }
    method, score = IntegratedGradients(model), Lead(y, rival.to(y))
    try:
        tensors["attribution"] = method.attribute(x, baseline, score)
        tensors["attribution_adversarial"] = method.attribute(adversarial, baseline, score)
    except (ModelError, NonFiniteError) as e:  # no gradients, or NaN on the way: robustness is known all the same
        tensors.pop("attribution", None)
        for note in notes:
            note["no_attribution"] = str(e)
    if spec.counterfactual:
        try:
            tensors |= _counterfactuals(model, data, x, y, logits, spec, positions, notes)
        except (ModelError, NonFiniteError) as e:
            for note in notes:
                note["no_counterfactual"] = str(e)
    return Finished([], tensors, notes)


def _counterfactuals(
    model: Callable[..., Any],
    data: Data,
    x: Tensor,
    y: Tensor,
    logits: Tensor,
    spec: Spec,
    positions: list[int],
    notes: list[dict[str, Any]],
) -> dict[str, Tensor]:
    if not all(bool(torch.isfinite(torch.as_tensor(b)).all()) for b in data.bounds):
        for note in notes:
            note["no_counterfactual"] = f"the data have no finite bounds ({data.bounds})"
        return {}
    mask = None
    if data.kind == "image":
        small = min(x.shape[-2:]) < SMALL
        mask = superpixels(x, "grid" if small else "slic", spec.segments)
    features = x[:1].numel() if mask is None else int(mask.max()) + 1
    out = {
        "counterfactual": x.clone(),
        "valid": torch.zeros(len(x), dtype=torch.bool),
        "gain": torch.zeros(len(x), dtype=torch.float64),
        "changed": torch.zeros(len(x), features, dtype=torch.bool),
        "contributions": torch.zeros(len(x), features, dtype=torch.float64),
    }
    right = (logits.argmax(1) == y).cpu()
    method = CounterfactualExplainer(model, bounds=data.bounds)
    for targeted in (False, True):
        rows = (~right if targeted else right).nonzero().squeeze(1)
        if not len(rows):
            continue
        goal = (Reach if targeted else Leave)(y[rows])
        result = method.generate(x[rows], goal, feature_mask=None if mask is None else mask[rows])
        count = result.changed.shape[1]
        out["counterfactual"][rows] = result.counterfactual
        out["valid"][rows] = result.valid.cpu()
        out["gain"][rows] = (result.margin - result.before).double().cpu()
        out["changed"][rows, :count] = result.changed.cpu()
        out["contributions"][rows, :count] = result.contributions.double().cpu()
        for row, proved in zip(rows.tolist(), result.proved, strict=True):
            notes[row] |= {"proved": proved, "goal": "reach" if targeted else "leave"}
    out["logits_counterfactual"] = logits_of(model, out["counterfactual"], y, positions)
    if mask is not None:
        out["mask"] = mask
    return out


def centre(data: Data) -> Tensor:
    """The mean of the samples [1, ...], with which attributions compare."""
    return (
        data.x.double().mean(0, keepdim=True).to(data.x.dtype) if len(data) else data.x.new_zeros(1, *data.x.shape[1:])
    )

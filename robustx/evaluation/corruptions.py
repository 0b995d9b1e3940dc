"""Common corruptions in a run: how often a model errs when pictures are corrupted, and the mean corruption error.

Hendrycks and Dietterich (ICLR 2019), arXiv 1903.12261, section 4. The corruptions themselves are in
:mod:`robustx.perturb.corruptions`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor

from ..engine.packing import finest, flat
from ..perturb.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ..perturb.norms import norm_of
from ..zoo.dataset import Bound
from .block import Block, Finished, clean_block
from .spec import Spec
from .statistics import Share, share
from .store import Row


def corruption_block(
    model: Callable[..., Any], block: Block, name: str, severities: Sequence[int], spec: Spec
) -> Finished:
    """A model's answers to corrupted samples: a row for each sample and severity, which stands as its ``eps``.

    Success is that the model is wrong there; a row whose output is not finite is flagged. The distance is that from
    the sample in the run's norm. There are no tensors: :func:`corrupted` makes the same pictures again.

    Raises:
        ValueError: an unknown corruption or severity, or samples that are no pictures.
    """
    norm, rows = norm_of(spec.norm), []
    for severity in severities:
        x = corrupted(block.x, block.bounds, name, severity, spec.seed)
        away = norm.size(finest(flat(x)) - finest(flat(block.x))).tolist()
        answers = clean_block(model, replace(block, x=x)).rows
        rows += [row._replace(eps=float(severity), distance=d) for row, d in zip(answers, away, strict=True)]
    return Finished(rows)


def corrupted(x: Tensor, bounds: tuple[Bound, Bound], name: str, severity: int, seed: int) -> Tensor:
    """Pictures between ``bounds``, corrupted as those between 0 and 1 are, see :func:`robustx.perturb.corrupt`.

    Raises:
        ValueError: infinite bounds, and what ``corrupt`` raises.
    """
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise ValueError(
            f"bounds must be black and white of the pictures that are corrupted, got {bounds}; use (0, 1) for pictures"
        )
    light = ((x - low) / (high - low)).clamp(0, 1)
    return torch.minimum(torch.maximum(low + (high - low) * corrupt(light, name, severity, seed), low), high)


@dataclass(frozen=True)
class Baseline:
    """The model that corruption errors are measured by.

    Args:
        name: of the model.
        clean: its error without any corruption.
        errors: by corruption, the mean of its errors over the severities.
        severities: these.
    """

    name: str
    clean: float
    errors: Mapping[str, float]
    severities: tuple[int, ...] = SEVERITIES

    @classmethod
    def of(cls, name: str, clean: Iterable[Row], rows: Mapping[str, Iterable[Row]]) -> Self:
        """A model of the run, from its rows without corruption and under each."""
        told = {c: errors(r) for c, r in rows.items()}
        severities = {s for by_severity in told.values() for s in by_severity}
        means = {c: _mean(e.value for e in by_severity.values()) for c, by_severity in told.items()}
        return cls(name, _error(list(clean)).value, means, tuple(sorted(severities)))


ALEXNET = Baseline(
    "AlexNet",
    1 - 0.56522,
    {
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    },
)
"""AlexNet on ImageNet and ImageNet-C at 224 pixels: the errors that published mean corruption errors are divided by
(the authors' repository, github.com/hendrycks/robustness); the clean one is torchvision's, of the same weights.
They are those of the authors' files: corruptions made here resemble them, but are not the same pictures."""


@dataclass(frozen=True)
class Corruption:
    """What one corruption does to a model.

    Attributes:
        name: of the corruption.
        severities: those tried.
        errors: the share of samples that the model is not right about, at each.
        ce: the corruption error, formula (1): the sum of the errors over that of the baseline's; NaN without one, or
            where it makes none.
        relative: likewise what the errors add to the clean one, formula (2); below 1 where the model loses less.
    """

    name: str
    severities: tuple[int, ...]
    errors: tuple[Share, ...]
    ce: float
    relative: float

    @property
    def error(self) -> float:
        """The mean of the errors over the severities."""
        return _mean(e.value for e in self.errors)


@dataclass(frozen=True)
class CorruptionSummary:
    """What the corruptions of a run do to a model.

    Attributes:
        clean: its error without any.
        each: what each does.
        error: the mean of their mean errors.
        mce, relative_mce: the means of their corruption errors, plain and relative, where they are defined; else NaN.
        baseline: the name of the model that they are measured by; "" without one.
        without: where that makes no error, so that there is nothing to measure by: left out of both means.

    Means are over the fifteen, where they are among those tried: the four others are for validation.
    """

    clean: Share
    each: tuple[Corruption, ...]
    error: float
    mce: float
    relative_mce: float
    baseline: str = ""
    without: tuple[str, ...] = ()


def errors(rows: Iterable[Row]) -> dict[int, Share]:
    """By severity, the share of samples that a model is not right about; flagged ones are among them."""
    at: dict[int, list[Row]] = {}
    for row in rows:
        at.setdefault(int(row.eps), []).append(row)
    return {severity: _error(at[severity]) for severity in sorted(at)}


def summarise_corruptions(
    clean: Iterable[Row], rows: Mapping[str, Iterable[Row]], baseline: Baseline | None = None
) -> CorruptionSummary:
    """From a model's rows without corruption, and under each corruption, by name.

    Raises:
        ValueError: the baseline is of other severities, or lacks one of the fifteen that was tried.

    >>> from robustx.evaluation.store import Row
    >>> def answers(eps, wrong):  # of ten samples
    ...     return [Row(i, eps, i < wrong, False, 0, 0.0, 0.0, 1, 0) for i in range(10)]
    >>> told = summarise_corruptions(
    ...     answers(0.0, 1), {"fog": answers(1.0, 2) + answers(2.0, 6)}, Baseline("other", 0.2, {"fog": 0.5}, (1, 2))
    ... )
    >>> round(told.error, 3), round(told.mce, 3), round(told.relative_mce, 3)
    (0.4, 0.8, 1.0)
    """
    at_first = _error(list(clean))
    each = tuple(_corruption(name, errors(r), at_first.value, baseline) for name, r in rows.items())
    counted = [c for c in each if c.name in CORRUPTIONS] or list(each)
    error, mce, relative = (_mean(getattr(c, what) for c in counted) for what in ("error", "ce", "relative"))
    if baseline is None:
        return CorruptionSummary(at_first, each, error, mce, relative)
    without = tuple(c.name for c in counted if math.isnan(c.ce))
    return CorruptionSummary(at_first, each, error, mce, relative, baseline.name, without)


def _corruption(name: str, found: dict[int, Share], clean: float, baseline: Baseline | None) -> Corruption:
    severities, values = tuple(found), [e.value for e in found.values()]
    ce = relative = math.nan
    if baseline is not None and name in baseline.errors:
        if severities != baseline.severities:
            raise ValueError(
                f"baseline {baseline.name!r} is of severities {baseline.severities}, but {name!r} was tried at "
                f"{severities}; try the same ones"
            )
        theirs = baseline.errors[name]
        ce = _ratio(_mean(values), theirs)
        relative = _ratio(_mean(values) - clean, theirs - baseline.clean)
    elif baseline is not None and name in CORRUPTIONS:
        raise ValueError(f"baseline {baseline.name!r} says nothing of {name!r}; try it on the same corruptions")
    return Corruption(name, severities, tuple(found.values()), ce, relative)


def _error(rows: Sequence[Row]) -> Share:
    return share(sum(row.success or row.flagged for row in rows), len(rows))


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _mean(values: Iterable[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return fmean(defined) if defined else math.nan

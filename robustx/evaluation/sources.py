"""Sources: the models and the samples that a specification names."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import zoo
from ..zoo import Data
from .spec import ModelSpec, Spec


def opened(spec: Spec, device: str | torch.device = "cpu") -> tuple[dict[str, nn.Module], Data]:
    """The models of a specification by name, and its samples, on a device.

    Random weights, where a source has such, are the same every time. Images are made as the first model wants them.

    Raises:
        ValueError, TypeError, OSError, ImportError: they cannot be had; see :func:`robustx.zoo.model` and
            :func:`robustx.zoo.data`.

    >>> models, data = opened(Spec(models=("digits", "digits-robust"), data="digits", limit=20))
    >>> list(models), len(data)
    (['digits', 'digits-robust'], 20)
    """
    samples, (first, *others) = spec.samples, spec.subjects
    named: dict[str, Any] = {
        "split": samples.split,
        "root": samples.root,
        "limit": spec.limit,
        "bounds": samples.bounds,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = zoo.load(_source(first), samples.name, **named, **_options(first))
        models = {first.name: model.to(device)}
        for m in others:
            torch.manual_seed(0)
            models[m.name] = zoo.model(_source(m), **_options(m)).to(device)
    low, high = (b.to(device) if isinstance(b, Tensor) else b for b in data.bounds)
    data = replace(data, name=samples.name)  # a callable may return data that bear a name of their own
    return models, replace(data, x=data.x.to(device), y=data.y.to(device), bounds=(low, high))


def _source(m: ModelSpec) -> str:
    return m.source or m.name


def _options(m: ModelSpec) -> dict[str, Any]:
    return {"weights": m.weights, "mean": m.mean or None, "std": m.std or None}

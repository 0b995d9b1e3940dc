"""Identities: what a run is a run of. Two runs with the same identity give the same bytes."""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from .. import __version__
from ..engine.files import content
from ..engine.guard import modules_of
from ..zoo import Data
from .spec import Spec


def identity(spec: Spec, models: Mapping[str, Callable[..., Any]], data: Data, device: torch.device) -> dict[str, Any]:
    """Everything that decides a run's numbers, as plain JSON."""
    return {
        "spec": json.loads(spec.to_json()),
        "spec_sha256": spec.sha256,
        "models": {name: describe_model(models[name]) for name in spec.names},
        "data": describe_data(data),
        "device": device_of_run(device),
        "versions": {"robustx": __version__, "torch": torch.__version__},
    }


def describe_model(model: Callable[..., Any]) -> dict[str, Any]:
    """What kind of model it is, how many parameters it has, and a digest of its weights and structure.

    Buffers count, also those that are not saved with the model. Of a plain function only the modules that it refers
    to can be seen, and its name.
    """
    modules = modules_of(model)
    name = getattr(model, "__qualname__", type(model).__qualname__)
    sha = hashlib.sha256(name.encode())
    for m in modules:
        sha.update(repr(m).encode())
        for key, t in [*m.named_parameters(remove_duplicate=False), *m.named_buffers(remove_duplicate=False)]:
            sha.update(f"{key} {t.dtype} {tuple(t.shape)}".encode())
            sha.update(content(t))
    return {
        "kind": name,
        "parameters": sum(p.numel() for m in modules for p in m.parameters()),
        "sha256": sha.hexdigest(),
    }


def describe_data(data: Data) -> dict[str, Any]:
    """What the samples are, what people need to read them, and a digest of all of it."""
    low, high = (torch.as_tensor(b, dtype=torch.float64) for b in data.bounds)
    columns = [{"name": c.name, "unit": c.unit, "low": c.low, "high": c.high} for c in data.columns]
    sha = hashlib.sha256(repr((data.x.dtype, tuple(data.x.shape), data.classes, columns)).encode())
    for t in (data.x, data.y, data.index, low, high):
        sha.update(content(t))
    return {
        "name": data.name,
        "split": data.split,
        "kind": data.kind,
        "count": len(data),
        "shape": list(data.x.shape[1:]),
        "classes": list(data.classes),
        "bounds": [b if math.isfinite(b) else None for b in (float(low.min()), float(high.max()))],
        "columns": columns,
        "sha256": sha.hexdigest(),
    }


def device_of_run(device: torch.device) -> str:
    """``cpu``, or what an accelerator calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def surroundings() -> dict[str, str]:
    """What else is worth knowing of where a run was started; decides nothing."""
    import numpy as np

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def differences(before: Any, now: Any) -> list[str]:
    """Where two identities differ: ``data.count: 300 before, 200 now``."""
    return [f"{at}: {short(a)} before, {short(b)} now" for at, a, b in differing(before, now)]


def differing(before: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two pieces of JSON differ, place by place: the place, and what stands there in either; None: nothing.

    Lists of equal length are looked into where they hold more than numbers and words.

    >>> list(differing({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1]}))
    [('a.b', 1, 2)]
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys: Iterable[str] = [*before, *(k for k in now if k not in before)]
        pairs = [(k, before.get(k), now.get(k)) for k in keys]
    elif _deep(before) and _deep(now) and len(before) == len(now):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(before, now, strict=True))]
    else:
        if before != now:
            yield at, before, now
        return
    for key, a, b in pairs:
        yield from differing(a, b, f"{at}.{key}" if at else key)


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _deep(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, dict | list) for v in value)

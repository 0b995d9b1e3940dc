"""What a command is about: models and data, as its arguments name them."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import zoo
from ..engine import Door
from ..perturb import as_logits
from ..zoo import Data
from ..zoo.address import near
from ..zoo.checkpoints import load_weights

if TYPE_CHECKING:
    from ..evaluation import Run

SMALL = 1_000_000  # parameters; below it a second thread costs more than it brings


@dataclass(frozen=True)
class Subject:
    """A model and data for it, on one device."""

    name: str
    model: nn.Module
    data: Data

    def answers(self, x: Tensor, strict: bool = True) -> Tensor:
        """The class scores as logits [N, K]; NaN and infinite ones are refused, unless ``strict`` is False."""
        f = Door.open(x).probe(self.model).to(strict=strict)
        return as_logits(f.score, f.everyone)


def subject(asked: Namespace) -> Subject:
    """The model and data that the arguments name; ValueError where they do not say enough."""
    if len(asked.model) > 1:
        raise ValueError(f"robustx {asked.command} takes one --model, got {len(asked.model)}: {', '.join(asked.model)}")
    return subjects(asked, asked.model or ([asked.name] if asked.name else []))[0]


def subjects(asked: Namespace, names: Sequence[str]) -> list[Subject]:
    """The models of these names, with the one data set that the arguments name for them."""
    if not names:
        raise ValueError(
            f"no model is named; try robustx {asked.command} digits, or give yours with "
            "--model package.module:callable --data package.module:callable"
        )
    if asked.weights and len(names) > 1:
        raise ValueError(f"--weights belongs to one model, got {len(names)}; name files as package.module:name@FILE")
    there = device(asked.device)
    bounds = None if asked.bounds is None else (asked.bounds[0], asked.bounds[1])
    found: list[Subject] = []
    for name in names:
        source: Any = found[0].data if found else asked.data or _data_of(asked.name) or _data_of(name)
        if source is None:
            raise ValueError(f"{name!r} brings no data of its own; give some with --data, such as --data digits")
        options = {} if found else {"split": asked.split, "root": asked.root, "limit": asked.limit, "bounds": bounds}
        with torch.random.fork_rng(devices=[]):  # random weights are the same every time
            torch.manual_seed(0)
            model, data = zoo.load(_with_weights(name, asked.weights), source, **options)
        if asked.weights and ":" not in name:
            load_weights(model, asked.weights)
        found.append(Subject(name, model.to(there), data if found else _moved(data, there)))
    if not len(found[0].data):
        raise ValueError(f"the data {found[0].data.name!r} hold no samples; there is nothing to do")
    set_threads(asked.threads, [s.model for s in found])
    return found


def of_run(run: "Run", name: str, call: str) -> tuple[dict[str, nn.Module], Data]:
    """The models and the data that a run names, on a device; an error also says what to ``call`` instead."""
    from ..evaluation import opened  # which loads attributions and more, that other commands do without

    try:
        return opened(run.spec, device(name))
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise type(error)(
            f"the models or data of {str(run.folder)!r} cannot be opened from their names: {error}; ask where they "
            f"can, or call {call}"
        ) from None


def sample(data: Data, row: int) -> Data:
    """The one sample ``row``. Raises ValueError where there is none."""
    if not 0 <= row < len(data):
        raise ValueError(f"--row must be 0 to {len(data) - 1}, as {data.name!r} has {len(data)} samples, got {row}")
    return data[row]


def class_of(name: str, classes: Sequence[str], count: int) -> int:
    """A class by its name or its number, of the model's `count`. Raises ValueError where there is none."""
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    known = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    if count > len(classes):
        known += f" and numbers to {count - 1}"
    hint = "" if name.isdecimal() else near(name, classes)
    raise ValueError(f"--target must be a class{hint}, got {name!r}; there are {known}")


def folder(path: str) -> Path:
    """A folder to write to, made where it is missing. Raises ValueError where something else stands there."""
    place = Path(path).expanduser()
    if place.exists() and not place.is_dir():
        raise ValueError(f"--out must be a folder, and {path!r} is a file; name another")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _data_of(name: str | None) -> str | None:
    """The data that an embedded model brings."""
    if name is None or ":" in name:
        return None
    return zoo.embedded.MODELS[name][1] if name in zoo.embedded.MODELS else name  # the zoo explains unknown names


def _with_weights(name: str, weights: str | None) -> str:
    """An address with the weights of a file; embedded models get theirs once they are open."""
    if weights is None or ":" not in name:
        return name
    head, asked, tail = name.partition("?")
    if "@" in head:
        raise ValueError(f"the weights of {name!r} are named twice, there and as --weights {weights!r}; drop one")
    return f"{head}@{weights}{asked}{tail}"


def device(name: str) -> torch.device:
    """A device by name. Raises ValueError where there is none."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {name!r} cannot be used here ({str(error).splitlines()[0]}); robustx doctor lists the devices"
        ) from None
    return found


def _moved(data: Data, device: torch.device) -> Data:
    low, high = (b.to(device) if isinstance(b, Tensor) else b for b in data.bounds)
    return replace(data, x=data.x.to(device), y=data.y.to(device), bounds=(low, high))


def set_threads(asked: int | None, models: Sequence[nn.Module]) -> None:
    """As many CPU threads as were asked for; else one, where all models are small."""
    if asked is not None:
        torch.set_num_threads(asked)
    elif "OMP_NUM_THREADS" not in os.environ and all(sum(p.numel() for p in m.parameters()) < SMALL for m in models):
        torch.set_num_threads(1)

"""Checkpoints: the weights a model had on its way through training, and the model given back as it was."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, ArgumentTypeError
from ...engine.files import about, read
from ...engine.guard import untouched


def checkpoints_of(given: Any) -> list[Any]:
    """All files of a directory or of a list, sorted by the numbers in their names; anything else as it comes.

    Raises:
        ValueError: there are none.
    """
    found: list[Any]
    if isinstance(given, str | Path):
        found = sorted((str(p) for p in Path(given).expanduser().glob("*") if p.is_file()), key=_natural)
    else:
        found = list(given)
        if all(isinstance(c, str) for c in found):
            found.sort(key=_natural)
    if not found or any(c is None for c in found):
        raise ArgumentError(f"checkpoints must be a folder with files, or some files or objects, got {given!r}")
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", Path(name).name)]


def load_checkpoint(model: nn.Module, checkpoint: Any) -> float:
    """Loads weights into a model and tells the learning rate that was saved with them, 1.0 if none was.

    Never runs what stands in a file: it is a ``.safetensors`` file (a learning rate stands in its metadata) or one of
    tensors and numbers that ``torch.load(weights_only=True)`` takes: a state_dict, with or without an entry
    ``learning_rate``, or a dict with a state_dict under ``state_dict``, ``model_state_dict`` or ``model``. Names may
    have the ``module.`` of a DataParallel. A state_dict itself is taken as well.

    Raises:
        ValueError: the weights do not fit the model, or the file is of another kind.
        FileNotFoundError: there is no such file.
    """
    state, rate = _opened(checkpoint)
    ours, theirs = _prefix(model.state_dict()), _prefix(state)
    try:
        model.load_state_dict({ours + n.removeprefix(theirs): t for n, t in state.items()})
    except RuntimeError as error:
        told = checkpoint if isinstance(checkpoint, str | Path) else "the checkpoint"
        reason = " ".join(str(error).split())
        raise ArgumentError(f"the weights in {told} do not fit {type(model).__name__}: {reason}") from None
    return rate


def _prefix(state: Mapping[str, Any]) -> str:
    return "module." if all(name.startswith("module.") for name in state) else ""


def _opened(checkpoint: Any) -> tuple[Mapping[str, Tensor], float]:
    """The weights of a checkpoint, and its learning rate."""
    found, told = checkpoint, ""
    if isinstance(checkpoint, str | Path):
        path = Path(checkpoint).expanduser()
        told = f" in {str(path)!r}"
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {str(path)!r}; paths start at {str(Path.cwd())!r}")
        found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if not isinstance(found, Mapping):
        raise ArgumentTypeError(f"a checkpoint must be a file or a state_dict, got {type(found).__name__}{told}")
    rest = dict(found)
    rate = rest.pop("learning_rate", 1.0)
    nested = [rest[name] for name in ("state_dict", "model_state_dict", "model") if isinstance(rest.get(name), Mapping)]
    state = nested[0] if nested else rest
    if not all(isinstance(t, Tensor) for t in state.values()):
        others = [name for name, t in state.items() if not isinstance(t, Tensor)]
        raise ArgumentError(
            f"a checkpoint must hold weights by name, but {', '.join(map(repr, others[:4]))}{told} are none; save "
            "{'state_dict': model.state_dict(), 'learning_rate': rate}, or hand in a checkpoints_load_func"
        )
    return state, float(rate)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return {"learning_rate": about(path).get("learning_rate", 1.0), "state_dict": read(path)}
    except SafetensorError as error:
        raise ArgumentError(f"{str(path)!r} is not a whole safetensors file ({error}); save it anew") from None


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ArgumentError(
            f"{str(path)!r} holds more than weights and was not loaded: a pickle can run code; save "
            "model.state_dict(), or load what you trust in a checkpoints_load_func of your own"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ArgumentError(f"{str(path)!r} is not a whole checkpoint ({error}); save it anew") from None


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Gives a model back with the weights, flags and modes it has now, whatever is loaded into it meanwhile."""
    modules = list(model.modules())
    homes = [(m, dict(m._parameters), m.training) for m in modules]
    values = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    with untouched(model):
        try:
            yield
        finally:
            for m, parameters, training in homes:
                m._parameters.clear()
                m._parameters.update(parameters)
                m.training = training
            with torch.no_grad():
                for p, value, wanted, grad in values:
                    p.requires_grad_(wanted)
                    if not torch.equal(p, value):
                        p.copy_(value)
                    p.grad = grad

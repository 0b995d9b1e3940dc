"""Weights out of files and downloads, without ever running what stands in them."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

PATIENCE = 10.0  # seconds to wait for a host that says nothing


def load_weights(net: nn.Module, file: str | Path) -> nn.Module:
    """The same model with the weights of a ``.safetensors``, ``.pt`` or ``.pth`` file, in place.

    A ``.pt`` or ``.pth`` file must hold a plain state_dict and is read with ``weights_only``, whatever the environment
    says; nothing else is ever tried.

    Raises FileNotFoundError, and ValueError for another format or for weights that do not fit the model.
    """
    path = _weight_file(file)
    try:
        if path.suffix == ".safetensors":
            _load_safetensors(net, path)
        else:
            net.load_state_dict(_state_dict(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the weights in {str(path)!r} do not fit {type(net).__name__}: {reason}") from None
    return net


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return dict(sorted((opened.metadata() or {}).items()))  # stored in any order


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Force ``weights_only=True`` on every ``torch.load`` within; libraries do not always ask for it."""
    forced, lifted = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (forced, lifted)}
    os.environ[forced] = "1"
    try:
        yield
    finally:
        del os.environ[forced]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """No download within waits for ever: Python's own sockets give up after ``PATIENCE`` seconds of silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reachable(url: str) -> bool:
    """Whether the host of a URL answers; asked before libraries that would try again for minutes.

    Where a proxy stands between, it is taken to answer.
    """
    place = urlsplit(url)
    if {place.scheme, "all"} & set(getproxies()):
        return True
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _load_safetensors(net: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(net, path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file ({error}); save it anew") from None


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    convert = "convert one you trust with safetensors.torch.save_model(model, file)"
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(
            f"{str(path)!r} holds more than weights and was not loaded: a pickle can run code; {convert}"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a whole checkpoint ({error}); save it anew") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{str(path)!r} must hold a state_dict, got {type(found).__name__}; {convert}")
    others = [str(key) for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise ValueError(
            f"{str(path)!r} must hold a plain state_dict, tensors by name, but has {', '.join(others[:4])} as well; "
            "save only the weights: torch.save(model.state_dict(), file)"
        )
    return found


def _weight_file(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(
            f"weights must be a .safetensors file, or a .pt or .pth file of a state_dict, got {str(file)!r}: a pickled "
            "checkpoint can run code when it is loaded; convert one you trust with "
            "safetensors.torch.save_model(model, file)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {str(path)!r}; paths start at {str(Path.cwd())!r}")
    return path

"""The models of RobustBench by the names of its leaderboards."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from .address import Address, near
from .checkpoints import load_weights, patience, reachable, weights_only

DRIVE = "https://drive.google.com"
MEND = {  # what RobustBench 1.1 imports without asking pip for it
    "pkg_resources": "pip install 'setuptools<81', the last with it",
    "autoattack": "pip install git+https://github.com/fra31/auto-attack",
}
OTHERWISE = "pip install robustbench 'setuptools<81'"
OPTIONS = ("dataset", "threat_model", "model_dir")


def robustbench_model(address: Address) -> nn.Module:
    """The model ``robustbench:THREAT/DATASET/NAME[@none|@file]``, as RobustBench builds it: it takes [0, 1].

    ``robustbench:NAME?dataset=cifar10&threat_model=Linf`` is the same, and these are the defaults. The weights are the
    file that RobustBench keeps in the folder `model_dir` ("models" unless given) and fetches on first use; it is read
    with ``weights_only``, so a checkpoint that holds more than weights is refused.

    Raises ValueError for unknown names, ConnectionError where the file cannot be fetched, ImportError where
    RobustBench cannot be imported.
    """
    unknown = [o for o in address.options if o not in OPTIONS]
    if unknown:
        raise ValueError(f"{address.text!r} has the option {unknown[0]!r}; RobustBench takes {', '.join(OPTIONS)}")
    threat, dataset, name = _parts(address)
    every = _robustbench("robustbench.model_zoo").model_dicts
    room = _pick(address, "data set", dataset, {d.value: threats for d, threats in every.items()})
    entry = _pick(address, "model", name, _pick(address, "threat model", threat, {t.value: m for t, m in room.items()}))
    if address.weights:
        net: nn.Module = entry["model"]()
        return net if address.weights == "none" else load_weights(net, address.weights)
    folder = Path(str(address.options.get("model_dir", "models")))
    missing = [str(file) for file in _files(folder / dataset / threat / f"{name}.pt", entry) if not file.is_file()]
    if missing and not reachable(DRIVE):
        raise ConnectionError(
            f"{address.text!r} needs {', '.join(missing)}, which cannot be fetched from Google Drive (id "
            f"{entry['gdrive_id']}); fetch it where there is a network and put it there, or give a file as "
            "'@file.safetensors'"
        )
    utils = _robustbench("robustbench.utils")
    try:
        with weights_only(), patience():
            net = utils.load_model(name, folder, dataset, threat)
    except UnpicklingError:
        raise ValueError(
            f"the checkpoint of {address.text!r} in {str(folder)!r} holds more than weights and was not loaded: a "
            "pickle can run code; convert it where you trust it and give it as '@file.safetensors'"
        ) from None
    except URLError as error:  # of the models that timm keeps for RobustBench; torch.hub has told their URL
        raise ConnectionError(
            f"the weights of {address.text!r} could not be fetched ({error.reason}); put the file that was named above "
            f"into {str(Path(torch.hub.get_dir()) / 'checkpoints')!r}"
        ) from None
    return net


def _parts(address: Address) -> tuple[str, str, str]:
    """Threat model, data set and name."""
    parts = address.name.split("/")
    options = address.options
    if len(parts) == 1:
        return str(options.get("threat_model", "Linf")), str(options.get("dataset", "cifar10")), parts[0]
    if len(parts) != 3 or "threat_model" in options or "dataset" in options:
        raise ValueError(
            "a model of RobustBench reads 'robustbench:THREAT/DATASET/NAME' or "
            f"'robustbench:NAME?dataset=...&threat_model=...', got {address.text!r}"
        )
    return parts[0], parts[1], parts[2]


def _pick(address: Address, what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        shown = ", ".join(known) if len(known) < 8 else f"one of {len(known)}"
        raise ValueError(
            f"RobustBench has no {what} {name!r}{near(name, known)} for {address.text!r}; expected {shown}"
        )
    return known[name]


def _files(file: Path, entry: Mapping[str, Any]) -> list[Path]:
    """The checkpoints that a model is made of; none where another library keeps them."""
    drive = entry.get("gdrive_id")
    if isinstance(drive, list):
        return [file.with_name(f"{file.name}_m{i}.pt") for i in range(len(drive))]
    return [file] if drive else []


def _robustbench(module: str) -> Any:
    """A module of RobustBench, or an ImportError that says how to mend the installation."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        mend = (
            f"models of RobustBench need {error.name}, which is not installed: {MEND.get(error.name or '', OTHERWISE)}"
        )
        raise ImportError(mend) from None

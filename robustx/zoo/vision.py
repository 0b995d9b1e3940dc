"""torchvision's models and data sets by their own names, with inputs in [0, 1]."""

import importlib
import os
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from .address import Address, call, near, parameters
from .checkpoints import load_weights, patience, weights_only
from .images import Prepare, preparation
from .networks import Normalized


def torchvision_model(address: Address) -> Normalized:
    """The image classifier ``torchvision:name[@weights]`` behind its own normalisation.

    The weights are one of torchvision's names (``IMAGENET1K_V1``), ``DEFAULT`` (the same as to name none),
    ``none`` (random, from the global generator) or a safetensors file. torchvision's are fetched on first use
    and loaded with ``weights_only``. Raises ValueError for unknown names and ConnectionError where they
    cannot be fetched.
    """
    models = _torchvision("models")
    known = models.list_models(module=models)
    if address.name not in known:
        raise ValueError(
            f"torchvision has no classifier {address.name!r}{near(address.name, known)} "
            f"(it has {len(known)}: torchvision.models.list_models(module=torchvision.models))"
        )
    weights = _weights(address)
    net = _build(models.get_model_builder(address.name), address, weights)
    entry = weights or models.get_model_weights(address.name).DEFAULT
    preset = entry.transforms()
    if weights is None and address.weights and address.weights.lower() != "none":
        load_weights(net, address.weights)
    pixels = entry.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the model normalises
    return Normalized(net, preset.mean, preset.std, Prepare(pixels))


def torchvision_data(address: Address, split: str | None, root: str | None, prepare: Prepare | None) -> Any:
    """The data set ``torchvision:Name?options``, giving tensors in [0, 1] and labels.

    `root` is its folder. `split` ("test" unless given) goes to whichever of ``split`` and ``train`` the data
    set takes. `prepare` makes pictures as a model wants them, unless the options `size` or `mode` say otherwise and are
    not the data set's own.
    """
    datasets = _torchvision("datasets")
    if address.name not in datasets.__all__:
        raise ValueError(f"torchvision has no data set {address.name!r}{near(address.name, datasets.__all__)}")
    maker = getattr(datasets, address.name)
    takes = parameters(maker)
    made, address = preparation(address, prepare, takes)
    extra: dict[str, Any] = {"transform": made or _torchvision("transforms.functional").to_tensor}
    if "root" in takes and "root" not in address.options:
        if root is None:
            raise ValueError(f"{address.text!r} lies in a folder; give it as root=...")
        extra["root"] = root
    if split is None and takes & {"split", "train"}:
        split = "test"
    extra |= split_options(takes, address, split)
    try:
        return call(maker, address, **extra)
    except (RuntimeError, OSError) as error:
        where = extra.get("root", address.options.get("root"))
        mend = "; fetch it there with '?download=True'" if "download" in takes else ""
        raise FileNotFoundError(f"{address.text!r} is not under root={where!r} ({error}){mend}") from None


def split_options(takes: frozenset[str], address: Address, split: str | None) -> dict[str, Any]:
    """The split, if any, as an argument of whatever takes these arguments; the address's options win."""
    if split is None or {"train", "split"} & set(address.options):
        return {}
    if "train" in takes:
        return {"train": split == "train"}
    if "split" in takes:
        return {"split": split}
    raise ValueError(f"{address.text!r} knows no splits, got split={split!r}; leave it out")


def _torchvision(part: str) -> Any:
    """A module of torchvision, or an ImportError that says how to mend the installation."""
    try:
        return importlib.import_module(f"torchvision.{part}")
    except ModuleNotFoundError as error:
        if error.name not in ("torchvision", f"torchvision.{part}"):
            raise
        raise ImportError("torchvision is not installed; run: pip install torchvision") from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ImportError(
            f"the installed torchvision was built for another torch than {torch.__version__} ({error}); "
            "install both from one index: pip install --force-reinstall torch torchvision"
        ) from None


def _weights(address: Address) -> Any:
    """The member of torchvision's weights that an address names; None for no weights or for a file."""
    known = _torchvision("models").get_model_weights(address.name)
    members = known.__members__
    name = (address.weights or "DEFAULT").removeprefix(f"{known.__name__}.")
    if name not in members:
        if name.lower() == "none" or "." in name:
            return None
        raise ValueError(
            f"{address.name!r} has no weights {name!r}{near(name, members)}; "
            f"expected {', '.join(members)}, none or a .safetensors file"
        )
    return members[name]


def _build(builder: Any, address: Address, weights: Any) -> nn.Module:
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    try:
        with weights_only(), patience():
            net: nn.Module = call(builder, address, weights=weights)
    except UnpicklingError:
        raise ValueError(
            f"the stored file of {weights.url} in {folder!r} holds more than weights and was not loaded; "
            "delete it to fetch it anew"
        ) from None
    except (URLError, TimeoutError) as error:
        raise ConnectionError(
            f"the weights of {address.text!r} could not be fetched ({getattr(error, 'reason', error)}); put "
            f"{weights.url} into {folder!r}, give a file as '@file.safetensors', or take random weights with '@none'"
        ) from None
    return net

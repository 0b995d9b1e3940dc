"""Models of timm and of the Hugging Face Hub, and the Hub's data sets, with inputs in [0, 1].

Weights are safetensors, or read with ``weights_only``; code that lies beside them is never run.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from ..engine.checks import optional
from .address import Address, near
from .checkpoints import load_weights, patience, reachable, weights_only
from .images import Prepare, preparation
from .networks import Logits, Normalized


def timm_model(address: Address) -> Normalized:
    """The image classifier ``timm:name[@none|@file]`` behind the normalisation of its weights.

    Without weights it takes the ones that timm names first, from the Hub or its cache; ``none`` are random, from the
    global generator. Options go to ``timm.create_model``. Raises ValueError for unknown names and options, and
    ConnectionError where the weights cannot be had.
    """
    timm = optional("timm", "timm")
    _refuse(address, ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "in_chans"))
    remote = address.name.startswith(("hf_hub:", "hf-hub:", "local-dir:"))
    architecture = address.name.partition(".")[0]
    if not (remote or timm.is_model(architecture)):
        raise ValueError(
            f"timm has no model {address.name!r}{near(architecture, timm.list_models())}; see timm.list_models()"
        )
    fetched = address.weights is None
    if fetched and not remote:
        known = timm.list_pretrained(architecture)
        if not known or ("." in address.name and address.name not in known):
            raise ValueError(
                f"timm has no weights {address.name!r}{near(address.name, known)}; it has "
                f"{', '.join(known) or 'none'}, and random ones as '@none'"
            )
        if "num_classes" in address.options:
            raise ValueError(f"{address.text!r} would have a last layer without weights; say '@none' or '@file'")
    with _hub(address, _repository(timm, address.name)), weights_only():
        try:
            net = timm.create_model(address.name, pretrained=fetched, **address.options)
        except TypeError as error:
            raise ValueError(f"{address.text!r} has an option that does not fit: {error}") from None
    if address.weights and address.weights != "none":
        load_weights(net, address.weights)
    config = timm.data.resolve_model_data_config(net)
    pixels = timm.data.create_transform(**config | {"mean": (0.0,) * 3, "std": (1.0,) * 3})  # the model normalises
    return Normalized(net, config["mean"], config["std"], Prepare(pixels))


def hf_model(address: Address) -> Normalized:
    """The image classifier ``hf:owner/name[@revision|@none|@file]``, or of a local folder ``hf:./folder``.

    Its logits alone, behind the normalisation of its image processor; float32. The weights must be safetensors and
    complete: a last layer that they leave random is refused. Options go to ``from_pretrained``, which is never allowed
    to run code that lies beside the weights.
    """
    transformers = optional("transformers", "hf")
    _refuse(address, ("trust_remote_code", "use_safetensors", "weights_only", "dtype", "torch_dtype", "revision"))
    place, local = _place(address)
    weights = address.weights or ""
    file = weights if Path(weights).suffix in (".safetensors", ".pt", ".pth") else None
    fetched = file is None and weights != "none"
    named = {"trust_remote_code": False, **({"revision": weights} if fetched and weights else {})}
    with _hub(address, place, local), _quiet(transformers.utils.logging):
        processor = transformers.AutoImageProcessor.from_pretrained(place, **named)
        classifier = transformers.AutoModelForImageClassification
        if fetched:
            net, told = classifier.from_pretrained(
                place, **named, **address.options, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            if told["missing_keys"]:
                raise ValueError(
                    f"the weights of {address.text!r} leave {', '.join(sorted(told['missing_keys'])[:4])} random; name "
                    "a model that was trained to classify"
                )
        else:
            config = transformers.AutoConfig.from_pretrained(place, **named, **address.options)
            net = classifier.from_config(config, trust_remote_code=False).float()
    if file:
        load_weights(net, file)
    return Normalized(Logits(net), *_normalisation(processor, address), Prepare(Processed(processor)))


def hf_data(address: Address, split: str | None, prepare: Prepare | None) -> Any:
    """The pictures of the data set ``hf:owner/name[@revision]``, or of a local folder ``hf:./folder``.

    The columns are found by what they are: one of images, one of class labels; or by the options `image` and `label`.
    The split is "test" unless given. For the options `size` and `mode` see `preparation`; others go to
    ``datasets.load_dataset``.
    """
    datasets = optional("datasets", "hf")
    _refuse(address, ("trust_remote_code", "split", "streaming"))
    made, address = preparation(address, prepare)
    options = dict(address.options)
    columns = options.pop("image", None), options.pop("label", None)
    place, local = _place(address)
    with _hub(address, f"datasets/{place}", local):
        try:
            if local and any((Path(place) / f).is_file() for f in ("state.json", "dataset_dict.json")):
                table = datasets.load_from_disk(place)
                table = table[split or "test"] if isinstance(table, datasets.DatasetDict) else table
            else:
                table = datasets.load_dataset(place, split=split or "test", revision=address.weights, **options)
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{address.text!r} cannot be read with split={split or 'test'!r}: {reason}") from None
    image = _column(table, address, columns[0], "image", datasets.Image)
    label = _column(table, address, columns[1], "label", datasets.ClassLabel)
    classes = getattr(table.features[label], "names", ())
    return Rows(table, image, label, tuple(classes), made)


@dataclass(frozen=True)
class Rows:
    """The rows of a Hub data set as pairs of a picture and its label."""

    table: Any
    image: str
    label: str
    classes: tuple[str, ...]
    prepare: Prepare | None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        row = self.table[i]
        return (self.prepare(row[self.image]) if self.prepare else row[self.image]), row[self.label]


@dataclass(frozen=True)
class Processed:
    """A PIL image to a tensor in [0, 1], by an image processor that leaves the normalisation to the model."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        pixels: Tensor = self.processor(images=image, do_normalize=False, return_tensors="pt")["pixel_values"]
        return pixels[0]


def _normalisation(processor: Any, address: Address) -> tuple[list[float], list[float]]:
    """Mean and std of a processor, checked on black and white: what it does must be theirs, and nothing else."""
    from PIL import Image

    normalises = getattr(processor, "do_normalize", False)
    mean = [float(m) for m in (processor.image_mean if normalises else (0.0,) * 3)]
    std = [float(s) for s in (processor.image_std if normalises else (1.0,) * 3)]
    plain = [Image.new("RGB", (32, 32), color) for color in ("black", "white")]
    pixels = torch.stack([processor(images=p, return_tensors="pt")["pixel_values"][0] for p in plain])
    expected = (torch.tensor([[0.0], [1.0]]) - torch.tensor(mean)) / torch.tensor(std)  # [2, C]
    if pixels.shape[:2] != expected.shape or not torch.allclose(pixels, expected[:, :, None, None], atol=1e-4):
        raise ValueError(
            f"the image processor of {address.text!r} does more to colours than to subtract its mean and divide by its "
            "std, so budgets would not be in pixels; wrap the model yourself and name it as 'package.module:name'"
        )
    return mean, std


def _column(table: Any, address: Address, named: str | None, what: str, kind: type) -> str:
    features = table.features
    if named is not None and named not in features:
        raise ValueError(
            f"{address.text!r} has no column {named!r}{near(named, features)}; it has {', '.join(features)}"
        )
    fit = [name for name, feature in features.items() if isinstance(feature, kind)]
    if named is None and len(fit) != 1 and what not in features:
        raise ValueError(
            f"{address.text!r} has {len(fit)} columns of kind {kind.__name__}; name one of {', '.join(features)} as "
            f"'?{what}=...'"
        )
    return named or (fit[0] if len(fit) == 1 else what)


def _place(address: Address) -> tuple[str, bool]:
    """What the libraries call a repository or a folder, and whether it is a folder."""
    path = Path(address.name).expanduser()
    if path.is_dir():
        return str(path.absolute()), True  # "parquet" alone would name a format
    if address.name.startswith((".", "~", "/")) or address.name.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {str(path)!r}; paths start at {str(Path.cwd())!r}")
    return address.name, False


def _repository(timm: Any, name: str) -> str:
    """Where timm has weights from: a repository of the Hub, or a URL."""
    if ":" in name:
        return name.partition(":")[2]
    found = timm.get_pretrained_cfg(name)
    return str((found and (found.hf_hub_id or found.url)) or name)


def _refuse(address: Address, ours: tuple[str, ...]) -> None:
    taken = [o for o in address.options if o in ours]
    if taken:
        raise ValueError(f"{address.text!r} may not set {taken[0]!r}: the zoo decides it")


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without the progress bars of transformers, which it shows for files that are already there."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _hub(address: Address, wanted: str, local: bool = False) -> Iterator[None]:
    """The Hub as it is, or where its host does not answer its cache alone; errors name what was wanted and where.

    Without this, every file that is missing is asked for over and over, for minutes.
    """
    constants = optional("huggingface_hub", "hf").constants
    holders = [constants]
    if "datasets" in sys.modules:
        holders.append(sys.modules["datasets"].config)  # keeps a copy of its own
    before = [held.HF_HUB_OFFLINE for held in holders]
    offline = local or any(before) or not reachable(constants.ENDPOINT)
    for held in holders:
        held.HF_HUB_OFFLINE = offline
    try:
        with patience():
            yield
    except (UnpicklingError, RuntimeError) as error:
        if not isinstance(error, UnpicklingError) and not isinstance(error.__cause__, UnpicklingError):
            raise
        raise ValueError(
            f"the weights of {address.text!r} hold more than weights and were not loaded: a pickle can run code"
        ) from None
    except (OSError, URLError) as error:
        reason = " ".join(str(error).split())
        if local:
            raise ValueError(f"{wanted!r} cannot be read as {address.text!r}: {reason}") from None
        raise ConnectionError(
            f"{address.text!r} needs {wanted} of {constants.ENDPOINT}, which is not in the cache "
            f"{constants.HF_HUB_CACHE!r} and cannot be fetched ({reason}); where there is a network run 'hf download "
            f"{_download(wanted)}' and copy the cache here, or give a file or folder of yours"
        ) from None
    finally:
        for held, was in zip(holders, before, strict=True):
            held.HF_HUB_OFFLINE = was


def _download(wanted: str) -> str:
    kind, _, name = wanted.partition("/")
    return f"--repo-type dataset {name}" if kind == "datasets" else wanted

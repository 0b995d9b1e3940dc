"""Models and data by name: one door to the embedded default, to other libraries and hubs, and to the user's own.

=========================================  =================================================================
name of a model                            what it opens
=========================================  =================================================================
``digits``, ``digits-robust``              a small CNN on 8x8 digits, trained normally and adversarially
``breast-cancer``                          a small MLP on a table of 30 measurements
``torchvision:resnet18@IMAGENET1K_V1``     torchvision's model and weights (``@none``: random) on [0, 1]
``timm:resnet18.a1_in1k``                  timm's model and weights (``@none``, ``@file``) on [0, 1]
``hf:owner/name``, ``hf:./folder``         a Hugging Face image classifier (``@revision``, ``@none``) on [0, 1]
``robustbench:Linf/cifar10/Wong2020Fast``  a model of RobustBench's leaderboards
``package.module:name``                    a model, or what returns one
``...@file.safetensors``                   any of these with the weights of a file (or ``.pt``, ``.pth``)
=========================================  =================================================================

=========================================  =================================================================
name of data                               what it opens
=========================================  =================================================================
``digits``, ``breast-cancer``              the data of the embedded models
``torchvision:CIFAR10``                    torchvision's data set, from the folder ``root``
``hf:owner/name``, ``hf:./folder``         pictures and labels of the Hub or of a folder
``folder:PATH``                            pictures: one folder per class, or a CSV file of labels
``FILE.npz``, ``FILE.safetensors``         arrays or tensors ``x`` and ``y``
``FILE.csv``                               a table with a column of classes
``package.module:name``                    data, or what returns them
=========================================  =================================================================

``...?key=value&key=value`` gives arguments to any of them. Models come on the CPU and in eval mode. Nothing is ever
unpickled: the zoo reads safetensors, and other weights with ``weights_only``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from . import embedded, hub, leaderboard, vision
from .address import Address, call, find, is_file, near, parameters, parse, user_model, working_directory
from .checkpoints import load_weights
from .dataset import Bound, Column, Data, as_data, class_name
from .files import file_data
from .images import Prepare, bounded_images, folder_data
from .networks import Normalized, digits_cnn, table_mlp

__all__ = [
    "Column",
    "Data",
    "Entry",
    "Normalized",
    "as_data",
    "class_name",
    "data",
    "digits_cnn",
    "load",
    "model",
    "names",
    "table_mlp",
]


MODELS: dict[str, Callable[[Address], nn.Module]] = {
    "torchvision": vision.torchvision_model,
    "timm": hub.timm_model,
    "hf": hub.hf_model,
    "robustbench": leaderboard.robustbench_model,
}


@dataclass(frozen=True, eq=False)
class Entry:
    """A model with data for it; unpacks as ``model, data = entry``.

    `about` is what the weight file of an embedded model says of itself (script, seed, accuracies).
    """

    name: str
    model: nn.Module = field(repr=False)
    data: Data
    about: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.data))


def names() -> tuple[str, ...]:
    """The embedded models; each brings its data."""
    return tuple(embedded.MODELS)


def load(
    name: str,
    data: Any = None,
    *,
    split: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    bounds: tuple[Bound, Bound] | None = None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Entry:
    """A model and data for it, by name.

    An embedded model brings its own data; any other model needs `data`, which like `split`, `root`, `limit` and
    `bounds` is that of `robustx.zoo.data`. `weights`, `mean` and `std` are those of `robustx.zoo.model`.

    >>> from robustx import zoo
    >>> model, data = zoo.load("digits")
    >>> data
    Data('digits', split='test', 450 of 1x8x8, 10 classes)
    >>> bool((model(data.x).argmax(1) == data.y).float().mean() > 0.97)
    True
    >>> zoo.data("breast-cancer").columns[20]
    Column(name='worst radius', unit='length units', low=7.93, high=36.04)

    Raises ValueError for unknown names, with the nearest known ones, and whatever `model` and `data` raise.
    """
    net = model(name, weights=weights, mean=mean, std=std)
    if data is None:
        if name not in embedded.MODELS:
            raise ValueError(f"{name!r} brings no data of its own; name some: load({name!r}, data='digits')")
        data = embedded.MODELS[name][1]
    samples = _samples(data, split=split, root=root, limit=limit, bounds=bounds, like=net)
    return Entry(name, net, samples, embedded.metadata(name) if name in embedded.MODELS else {})


def model(
    name: str,
    *,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A model by name, on the CPU and in eval mode. The forms of a name stand in `robustx.zoo`.

    `weights` is what may stand in the name after ``@``: a file, ``none``, or a name of the source's own. With `mean`
    and `std`, one number per channel, the model is wrapped in `Normalized` and takes inputs before normalisation; the
    models of torchvision, timm and Hugging Face are wrapped in their own, which the arguments replace. A module named
    by ``package.module:name`` is copied, so that the user's own stays as it is.

    >>> model("digits", mean=[0.5], std=[0.5]).mean
    tensor([0.5000])

    Raises ValueError for unknown names, options that do not fit, and weights that are no safetensors or state_dict or
    do not fit; FileNotFoundError, ModuleNotFoundError; TypeError for what is no model; ConnectionError where weights
    cannot be fetched, with the file that is wanted and where it belongs; ImportError where a library is missing or
    does not match torch.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std come together, got mean={mean} and std={std}; give both or neither")
    prepare: Prepare | None = None
    if ":" not in name:
        if name not in embedded.MODELS:
            raise _unknown("model", name, embedded.MODELS)
        net = embedded.model(name)
        net = load_weights(net, weights) if weights else net
    else:
        address = parse(name)
        if weights and address.weights:
            raise ValueError(f"the weights of {name!r} are named twice, there and as weights={weights!r}; drop one")
        address = replace(address, weights=weights or address.weights)
        open_model = MODELS.get(address.module)
        net = open_model(address) if open_model else user_model(address)
        if isinstance(net, Normalized) and open_model and mean is not None:
            prepare = net.prepare
            net = net.model  # its own normalisation gives way
    if mean is not None and std is not None:
        net = Normalized(net, mean, std, prepare)
    return net.cpu().eval()


def data(
    source: Any,
    *,
    split: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    bounds: tuple[Bound, Bound] | None = None,
    like: nn.Module | None = None,
) -> Data:
    """Labelled samples by name, or from what `as_data` takes (tensors, a Dataset, a DataLoader).

    `split` is "train" or "test" (the default) for the embedded data; elsewhere it goes to a data set or
    callable that takes `split` or `train`, under that source's own names, and of a folder it is a folder within.
    `root` is the folder of a torchvision data set. At most `limit` samples are read; `bounds` are the least and
    greatest input, (0, 1) unless given. Pictures are resized and cropped for the model `like`, if it is one of the
    zoo's that tells how it wants them.

    >>> data("digits", split="train", limit=100)
    Data('digits', split='train', 100 of 1x8x8, 10 classes)

    Raises ValueError for unknown names and splits and for data that do not fit together, FileNotFoundError
    for data that are not where they are said to be, TypeError for what is no data, ConnectionError where they cannot
    be fetched.
    """
    named = isinstance(source, str)
    if root is not None and not (named and source.startswith("torchvision:")):
        raise ValueError(f"root is the folder of a torchvision data set, got root={root!r} for another; leave it out")
    if split is not None and not named:
        raise ValueError(f"split chooses among named data, got split={split!r} with the data themselves; leave it out")
    if not named:
        return as_data(source, limit=limit, bounds=bounds)
    if is_file(source):
        if split is not None:
            raise ValueError(f"{source!r} knows no splits, got split={split!r}; leave it out")
        return file_data(parse(source), limit=limit, bounds=bounds)
    if ":" not in source:
        if source not in embedded.DATA:
            raise _unknown("data", source, embedded.DATA)
        return as_data(embedded.DATA[source](split or "test"), limit=limit, bounds=bounds)
    address, prepare = parse(source), like.prepare if isinstance(like, Normalized) else None
    with working_directory(), bounded_images():
        if address.module == "torchvision":
            found = vision.torchvision_data(address, split, root, prepare)
        elif address.module == "folder":
            found = folder_data(address, split, prepare)
        elif address.module == "hf":
            found = hub.hf_data(address, split, prepare)
        elif address.module in MODELS:
            raise ValueError(f"{source!r} names a model, and data were asked for; name some, such as 'folder:PATH'")
        else:
            found = find(address)
            if callable(found) and not isinstance(found, nn.Module):
                found = call(found, address, **vision.split_options(parameters(found), address, split))
            elif address.options or split:
                raise ValueError(f"{source!r} is data already and takes neither options nor a split")
        return as_data(found, source, limit=limit, bounds=bounds, split=split or "")


_samples = data  # where an argument is called data


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> ValueError:
    forms = [f"'{scheme}:...'" for scheme in (MODELS if what == "model" else ("torchvision", "hf", "folder"))]
    return ValueError(
        f"no {what} is named {name!r}{near(name, known)}; expected {', '.join([*known, *forms])}"
        f"{'' if what == 'model' else ', a .npz, .safetensors or .csv file'} or 'package.module:name'"
    )

"""Activations kept on disk: what layers make of a data set, one file for each batch and layer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..engine.checks import ArgumentError
from ..engine.files import about, digest, read, write
from ..engine.guard import untouched
from ..engine.packing import Tensors
from ..engine.weights import layer_of
from .gradient import LayerActivation

LayerName = str | nn.Module
"""A layer, by its name in the model or itself."""


def named(model: nn.Module, layers: LayerName | Sequence[LayerName]) -> dict[str, nn.Module]:
    """Layers of a model by their names.

    Raises:
        ValueError: the model has no such layer, or it is the model itself, which has no name.
    """
    names = {m: name for name, m in model.named_modules()}
    asked = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    found = {names[m]: m for m in (layer_of(model, v) for v in asked)}
    if "" in found or not found:
        raise ArgumentError(f"layers must name parts of the model, got {layers!r}; for the model itself, its last part")
    return found


def look(
    model: nn.Module, modules: Sequence[nn.Module], inputs: Any, args: Any = None, side: str = "output"
) -> list[Any]:
    """What stands at some layers for some inputs: a tensor for each, or a tuple of them."""
    return list(LayerActivation(model, list(modules)).attribute(inputs, args, side == "input"))


class AV:
    """Activation vectors: what layers make of a data set, kept in ``path/av/model_id/identifier/layer``.

    One safetensors file for each batch and layer. A file knows of which weights and of which examples it is, so that
    :meth:`generate_dataset_activations` goes on where an earlier call was interrupted and makes anew what is of
    another model or other data. There is never more than one batch in memory.

    Arguments that are shared:

    - ``path``: a folder.
    - ``model_id``, ``identifier``: names for a model and for a data set.
    - ``layer``: the layer's name, or itself where the model is given.
    - ``num_id``: which batch.

    Where it may be None, any will do. A name that cannot be a folder's is an ArgumentError.

    >>> import tempfile, torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> batches = DataLoader(torch.rand(5, 2), batch_size=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = AV.generate_dataset_activations(folder, model, "net", "0", batches, return_activations=True)
    ...     [tuple(batch.shape) for batch in found], AV.exists(folder, "net", layer="1")
    ([(2, 3), (2, 3), (1, 3)], False)
    """

    AV_DIR_NAME = "av"

    class AVDataset(Dataset[Any]):
        """Batches of activations, each read when it is asked for; in the order of layers and batches.

        Args:
            path, model_id, identifier, layer, num_id: see :class:`AV`.
        """

        def __init__(
            self,
            path: str | Path,
            model_id: str,
            identifier: str | None = None,
            layer: str | None = None,
            num_id: str | None = None,
        ) -> None:
            self.files = AV.sort_files([str(f) for f in AV._files(path, model_id, identifier, layer, num_id)])

        def __getitem__(self, idx: int) -> Tensor | Tensors:
            """A batch: a tensor, or a tuple of them if the layer has several."""
            try:
                held = read(Path(self.files[idx]))
            except IndexError:
                raise IndexError(f"there are {len(self)} batches of activations, got index {idx}") from None
            return held["0"] if "0" in held else tuple(held[f"part {i}"] for i in range(len(held)))

        def __len__(self) -> int:
            return len(self.files)

        def __iter__(self) -> Iterator[Tensor | Tensors]:
            return (self[i] for i in range(len(self)))

    @staticmethod
    def exists(
        path: str | Path,
        model_id: str,
        identifier: str | None = None,
        layer: str | None = None,
        num_id: str | None = None,
    ) -> bool:
        """Whether any such activations are kept."""
        return any(True for _ in AV._files(path, model_id, identifier, layer, num_id))

    @staticmethod
    def save(
        path: str | Path,
        model_id: str,
        identifier: str,
        layers: str | Sequence[str],
        act_tensors: Tensor | Tensors | Sequence[Tensor | Tensors],
        num_id: str,
        *,
        of: str = "",
    ) -> None:
        """Keeps a batch of activations of one layer, or of several.

        Args:
            layers: a name, or a list of them.
            act_tensors: what stands there; for a list of layers, a list.
            of: of what they are, by :func:`robustx.engine.files.digest`; what does not say so is never made anew.

        Raises:
            ValueError: there are not as many activations as layers.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        tensors = [act_tensors] if isinstance(layers, str) and not isinstance(act_tensors, list) else list(act_tensors)
        if len(names) != len(tensors):
            raise ArgumentError(f"act_tensors must be one for each of {len(names)} layers, got {len(tensors)}")
        for name, here in zip(names, tensors, strict=True):
            parts = {"0": here} if isinstance(here, Tensor) else {f"part {i}": t for i, t in enumerate(here)}
            write(AV._folder(path, model_id, identifier, name) / f"{_plain(num_id)}.safetensors", parts, {"of": of})

    @staticmethod
    def load(
        path: str | Path,
        model_id: str,
        identifier: str | None = None,
        layer: str | None = None,
        num_id: str | None = None,
    ) -> "AV.AVDataset":
        """What is kept, to be read batch by batch.

        Raises:
            RuntimeError: nothing such is kept.
        """
        found = AV.AVDataset(path, model_id, identifier, layer, num_id)
        if not len(found):
            asked = {"identifier": identifier, "layer": layer, "num_id": num_id}
            more = "".join(f", {k} {v!r}" for k, v in asked.items() if v is not None)
            raise RuntimeError(f"no activations of model {model_id!r}{more} are kept in {path}; generate them first")
        return found

    @staticmethod
    def generate_dataset_activations(
        path: str | Path,
        model: nn.Module,
        model_id: str,
        layers: LayerName | Sequence[LayerName],
        dataloader: DataLoader[Any],
        identifier: str = "default",
        load_from_disk: bool = True,
        return_activations: bool = False,
    ) -> "AV.AVDataset | list[AV.AVDataset] | None":
        """Keeps what layers make of a data set; all layers of a batch are looked at in one pass.

        Args:
            dataloader: of batches that are inputs, or a tuple or list with the inputs first (several: a tuple).
            load_from_disk: False makes anew also what is there and still holds.
            return_activations: return them, to be read batch by batch: a data set, or a list for a list of layers.
        """

        def inputs() -> Iterator[Any]:  # no earlier than it is asked, for a loader draws when it begins
            for d in dataloader:
                yield d[0] if isinstance(d, tuple | list) else d

        names = keep(path, model, model_id, layers, inputs(), identifier, anew=not load_from_disk)
        if not return_activations:
            return None
        found = [AV.load(path, model_id, identifier, name) for name in names]
        return found[0] if isinstance(layers, str | nn.Module) else found

    @staticmethod
    def sort_files(files: list[str]) -> list[str]:
        """File names in the order of the numbers in them.

        >>> AV.sort_files(["10.safetensors", "9.safetensors"])
        ['9.safetensors', '10.safetensors']
        """
        return sorted(files, key=lambda f: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split("([0-9]+)", f)])

    @staticmethod
    def _folder(path: str | Path, model_id: str, identifier: str, layer: str) -> Path:
        return Path(path, AV.AV_DIR_NAME, *map(_plain, (model_id, identifier, layer)))

    @staticmethod
    def _files(path: str | Path, model_id: str, *parts: str | None) -> Iterator[Path]:
        folder = Path(path, AV.AV_DIR_NAME, _plain(model_id))
        identifier, layer, num_id = ("*" if p is None else escape(_plain(p)) for p in parts)
        return folder.glob(f"{identifier}/{layer}/{num_id}.safetensors")


def keep(
    path: str | Path,
    model: nn.Module,
    model_id: str,
    layers: LayerName | Sequence[LayerName],
    batches: Iterable[Any],
    identifier: str,
    side: str = "output",
    anew: bool = False,
) -> list[str]:
    """Keeps what layers make of batches of inputs, as far as it is not kept already; the names of the layers.

    Args:
        side: ``"output"`` or ``"input"`` of the layers.
        anew: do not look at what is kept.
    """
    modules = named(model, layers)
    weights = digest(model.state_dict(), side)
    count = 0
    with untouched(model):  # a loader draws from the global generator even if it does not shuffle
        for count, inputs in enumerate(batches, 1):
            of, num_id = digest(weights, inputs), str(count - 1)
            files = {name: AV._folder(path, model_id, identifier, name) / f"{num_id}.safetensors" for name in modules}
            absent = [n for n, f in files.items() if anew or not f.exists() or about(f).get("of", "") not in ("", of)]
            if absent:
                found = look(model, [modules[n] for n in absent], inputs, side=side)
                AV.save(path, model_id, identifier, absent, found, num_id, of=of)
    for name in modules:
        for file in AV._files(path, model_id, identifier, name, None):
            if file.stem.isdigit() and int(file.stem) >= count:
                file.unlink()  # of a longer data set
    return list(modules)


def _plain(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ArgumentError(f"names of models, data sets, layers and batches become folders and files, got {name!r}")
    return name

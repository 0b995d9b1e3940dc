"""Samples out of one file: arrays (``.npz``), tensors (``.safetensors``) and tables (``.csv``)."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from .address import Address, near
from .dataset import MAX_BYTES, Bound, Column, Data, as_data
from .images import labels_of

LABELS = ("label", "target", "class", "y")  # what the column of classes is called, unless it is named


def file_data(address: Address, *, limit: int | None, bounds: tuple[Bound, Bound] | None) -> Data:
    """The samples in a file; nothing in it is unpickled.

    Arrays and tensors are called ``x`` and ``y``, or as the options `x` and `y` say; the option ``layout=NHWC`` tells
    that channels stand last. A table has a header and holds one number per cell; the classes stand in the column of
    the option `label`, or in the one that is called so.

    Raises FileNotFoundError, and ValueError for a torn file, for names that are not in it, and for cells that are no
    numbers.
    """
    path = Path(address.name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; paths start at {str(Path.cwd())!r}")
    if path.suffix == ".csv":
        return _table(path, address, limit, bounds)
    return _arrays(path, address, limit, bounds)


def _arrays(path: Path, address: Address, limit: int | None, bounds: tuple[Bound, Bound] | None) -> Data:
    options = _options(address, ("x", "y", "layout"))
    read = _npz if path.suffix == ".npz" else _safetensors
    x, y = read(path, [str(options.get("x", "x")), str(options.get("y", "y"))])
    if options.get("layout", "NCHW") not in ("NCHW", "NHWC"):
        raise ValueError(f"layout of {address.text!r} must be NCHW or NHWC, got {options['layout']!r}")
    samples = torch.as_tensor(x)
    if options.get("layout") == "NHWC":
        if samples.dim() != 4:
            raise ValueError(f"layout=NHWC needs x of 4 axes, got shape {tuple(samples.shape)}")
        samples = samples.permute(0, 3, 1, 2).contiguous()
    return as_data((samples, y), address.text, limit=limit, bounds=bounds)


def _npz(path: Path, names: list[str]) -> list[Any]:
    try:
        with ZipFile(path) as opened:
            size = sum(part.file_size for part in opened.infolist())
        if size > MAX_BYTES:  # a file of a few kilobytes can unfold to gigabytes
            raise ValueError(f"{str(path)!r} unfolds to {size / 2**30:.1f} GiB; split it")
        with np.load(path, allow_pickle=False) as held:
            _all_there(path, names, held.files)
            arrays = [held[name] for name in names]
    except (BadZipFile, EOFError, OSError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is not a whole .npz file ({error}); save it anew") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{str(path)!r} holds objects, which are pickled and were not loaded; save plain arrays of numbers"
        ) from None
    return [a.astype(a.dtype.newbyteorder("=")) for a in arrays]  # torch takes no other order of bytes


def _safetensors(path: Path, names: list[str]) -> list[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as held:
            _all_there(path, names, list(held.keys()))
            return [held.get_tensor(name) for name in names]
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file ({error}); save it anew") from None


def _table(path: Path, address: Address, limit: int | None, bounds: tuple[Bound, Bound] | None) -> Data:
    options = _options(address, ("label",))
    with path.open(newline="", encoding="utf-8-sig") as text:
        header, *rows = [row for row in csv.reader(text) if row] or [[]]
    wanted = [str(options["label"])] if "label" in options else LABELS
    at = next((i for i, name in enumerate(header) if name.strip() in wanted), None)
    if at is None:
        raise ValueError(
            f"{str(path)!r} has no column {' or '.join(map(repr, wanted))}{near(wanted[0], header)}; name the one of "
            f"the classes as '?label=...': it has {', '.join(header)}"
        )
    names = [name.strip() for i, name in enumerate(header) if i != at]
    uneven = next((n for n, row in enumerate(rows) if len(row) != len(header)), None)
    if uneven is not None:
        raise ValueError(f"row {uneven + 1} of {str(path)!r} has {len(rows[uneven])} cells, its header {len(header)}")
    y, classes = labels_of([row[at].strip() for row in rows], str(path))
    cells = [[cell for i, cell in enumerate(row) if i != at] for row in rows]
    x = np.array([[_number(path, n, *pair) for pair in zip(names, row, strict=True)] for n, row in enumerate(cells)])
    data = as_data((x, np.array(y)), address.text, limit=limit, bounds=bounds, classes=classes)
    return replace(data, columns=tuple(Column(name) for name in names))


def _number(path: Path, row: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(
            f"column {column.strip()!r} of {str(path)!r} holds {cell!r} in row {row + 1} where a number is needed"
        ) from None


def _all_there(path: Path, wanted: list[str], held: list[str]) -> None:
    missing = [name for name in wanted if name not in held]
    if missing:
        raise ValueError(
            f"{str(path)!r} holds {', '.join(sorted(held)) or 'nothing'} but no {missing[0]!r}; say what samples and "
            "classes are called: '?x=...&y=...'"
        )


def _options(address: Address, known: tuple[str, ...]) -> Mapping[str, Any]:
    unknown = [o for o in address.options if o not in known]
    if unknown:
        raise ValueError(f"{address.text!r} has the option {unknown[0]!r}; such a file takes {', '.join(known)}")
    return address.options

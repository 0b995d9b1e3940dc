"""Files: each whole or not there; of tensors, and nothing in them can run."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def put(path: Path, content: bytes, new: bool = False, sync: bool = True) -> None:
    """The file, whole and on the disk, or not at all; its folder is made if need be.

    Who reads meanwhile, or after an interruption, finds the file as it was before or as it is afterwards. With ``sync``
    that holds when the power fails, too; what can be made again does without.

    Raises:
        FileExistsError: there is one, and it must be ``new``.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")  # others, elsewhere too, may write the same
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if new and path.exists():
            raise FileExistsError(f"there is {str(path)!r} already")
        if new and hasattr(os, "link"):
            os.link(unfinished, path)  # of two at the same time, one fails
        else:
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    if sync and os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Puts tensors by name, and words about them, into a safetensors file, as :func:`put` does without ``sync``."""
    from safetensors.torch import save

    put(file, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, dict(about)), sync=False)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    from safetensors.torch import load_file

    return load_file(file)


def about(file: Path) -> dict[str, str]:
    """The words in a file; its tensors are not read."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def content(t: Tensor) -> bytes:
    """The bytes of a tensor's elements, in order."""
    flat = t.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def digest(*values: Any) -> str:
    """A name for all that some values hold: nestings of tensors, and of anything else by its repr.

    >>> digest(torch.ones(2)) == digest(torch.ones(2)) != digest(torch.ones(1, 2))
    True
    """
    found = hashlib.blake2b(digest_size=16)
    for v in tree_leaves(values):
        if isinstance(v, Tensor):
            found.update(f"{v.dtype} {tuple(v.shape)} ".encode())
            found.update(content(v))
        else:
            found.update(f"{v!r} ".encode())
    return found.hexdigest()

"""Files: tensors on disk, each file whole or not there; nothing in them can run."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Puts tensors by name, and words about them, into a safetensors file; its folder is made if need be.

    Who reads meanwhile, or after an interruption, finds the file as it was before or as it is afterwards.
    """
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    partly = file.with_name(f".{file.name}.{os.getpid()}.{get_ident()}")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partly, dict(about))
        partly.replace(file)
    finally:
        partly.unlink(missing_ok=True)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    from safetensors.torch import load_file

    return load_file(file)


def about(file: Path) -> dict[str, str]:
    """The words in a file; its tensors are not read."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def digest(*values: Any) -> str:
    """A name for all that some values hold: nestings of tensors, and of anything else by its repr.

    >>> digest(torch.ones(2)) == digest(torch.ones(2)) != digest(torch.ones(1, 2))
    True
    """
    found = hashlib.blake2b(digest_size=16)
    for v in tree_leaves(values):
        if isinstance(v, Tensor):
            t = v.detach().cpu().contiguous()
            found.update(f"{t.dtype} {tuple(t.shape)} ".encode())
            found.update(t.flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{v!r} ".encode())
    return found.hexdigest()

"""Pictures out of files, as tensors in [0, 1] of the size that a model wants."""

import contextlib
import csv
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .address import Address

MAX_PIXELS = 25_000_000  # an image file of a few kilobytes can unfold to gigabytes


@dataclass(frozen=True)
class Prepare:
    """How a model wants its pictures: made of one colour `mode`, then what `steps` do, to a tensor in [0, 1]."""

    steps: Callable[[Any], Any]
    mode: str = "RGB"

    def __call__(self, image: Any) -> Tensor:
        """A PIL image as a tensor [C, H, W]; what interpolation overshoots is cut off."""
        made = self.steps(image.convert(self.mode))
        if isinstance(made, Tensor):
            return made.clamp(0, 1)
        pixels = torch.as_tensor(np.array(made)).float() / 255  # [H, W] or [H, W, C]
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


@dataclass(frozen=True)
class Fit:
    """Resize a PIL image so that it covers height and width, and keep the middle."""

    height: int
    width: int

    def __call__(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        return ImageOps.fit(image, (self.width, self.height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Pictures:
    """Files with a label each, opened one by one."""

    files: Sequence[tuple[Path, int]]
    classes: Sequence[str]
    prepare: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        file, label = self.files[i]
        return self.prepare(open_image(file)), label


def folder_data(address: Address, split: str | None, prepare: Prepare | None) -> Pictures:
    """The pictures ``folder:PATH``: one folder per class, or one flat folder with a CSV file of labels.

    A `split` is a folder within PATH. Classes are in alphabetical order, as torchvision's ``ImageFolder`` has them.
    The CSV file has a header; its first column names the file, its second the class. It is the one CSV file of the
    folder, or the option `labels`. For the options `size` and `mode` see `preparation`.

    Raises FileNotFoundError, and ValueError for options that do not fit and for a folder without labels.
    """
    made, rest = preparation(address, prepare)
    unknown = [o for o in rest.options if o != "labels"]
    if unknown:
        raise ValueError(f"{address.text!r} has the option {unknown[0]!r}; a folder takes size, mode and labels")
    base = Path(address.name).expanduser()
    root = base / split if split else base
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}; paths start at {str(Path.cwd())!r}")
    tables = sorted(root.glob("*.csv"))
    if "labels" in address.options:
        files, classes = _labelled(root, root / str(address.options["labels"]))
    elif len(tables) == 1 and not any(f.is_dir() for f in root.iterdir()):
        files, classes = _labelled(root, tables[0])
    else:
        files, classes = _by_class(root)
    return Pictures(files, classes, made or Prepare(_same))


def preparation(
    address: Address, prepare: Prepare | None, taken: Collection[str] = ()
) -> tuple[Prepare | None, Address]:
    """How pictures are made, and the address without the options that say so.

    `size` is a number or (height, width), or else what the model wants; `mode` is ``RGB`` or ``L``. Without any of
    them pictures stay as they are: None. Options in `taken` are the data set's own.
    """
    ours = {k: v for k, v in address.options.items() if k in ("size", "mode") and k not in taken}
    rest = replace(address, options={k: v for k, v in address.options.items() if k not in ours})
    mode = ours.get("mode", prepare.mode if prepare else "RGB")
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode of {address.text!r} must be RGB or L, got {mode!r}")
    if "size" not in ours:
        steps = prepare.steps if prepare else _same
        return (Prepare(steps, mode) if prepare or ours else None), rest
    size = ours["size"]
    pair = size if isinstance(size, tuple) else (size, size)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise ValueError(f"size of {address.text!r} must be a number of pixels or (height, width), got {size!r}")
    return Prepare(Fit(*pair), mode), rest


def open_image(file: str | Path) -> Any:
    """The PIL image in a file, decoded. Raises ValueError where the file is torn or no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no whole image ({error}); mend or remove it") from None


def labels_of(words: Sequence[str], name: str) -> tuple[list[int], list[str]]:
    """Classes as numbers, and their names: whole numbers stay, other words are counted in alphabetical order.

    >>> labels_of(["dog", "cat", "dog"], "pets")
    ([1, 0, 1], ['cat', 'dog'])
    >>> labels_of(["2", "0"], "digits")
    ([2, 0], ['0', '1', '2'])
    """
    if not words:
        raise ValueError(f"{name!r} holds no samples")
    if all(w.isdecimal() for w in words):
        numbers = [int(w) for w in words]
        return numbers, [str(k) for k in range(max(numbers) + 1)]
    classes = sorted(set(words))
    return [classes.index(w) for w in words], classes


@contextlib.contextmanager
def bounded_images() -> Iterator[None]:
    """Refuse image files above `MAX_PIXELS` pixels, with ValueError."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"an image is larger than {MAX_PIXELS:,} pixels ({error}); shrink or remove it") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _same(image: Any) -> Any:
    return image


def _by_class(root: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(root, allow_empty=True)
    except FileNotFoundError:
        raise ValueError(
            f"{str(root)!r} must hold one folder per class, or pictures with a CSV file of their labels named as "
            "'?labels=file.csv'"
        ) from None
    return [(Path(file), label) for file, label in found.samples], found.classes


def _labelled(root: Path, table: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    if not table.is_file():
        raise FileNotFoundError(f"there is no file of labels {str(table)!r}")
    with table.open(newline="", encoding="utf-8-sig") as text:
        rows = [row for row in csv.reader(text) if row][1:]
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"{str(table)!r} must name a file and its class in every row")
    files = [root / row[0].strip() for row in rows]
    outside = [f for f in files if not f.resolve().is_relative_to(root.resolve())]
    if outside:
        raise ValueError(f"{str(table)!r} names {str(outside[0])!r}, which is not in the folder {str(root)!r}")
    numbers, classes = labels_of([row[1].strip() for row in rows], str(table))
    return list(zip(files, numbers, strict=True)), classes

"""Pictures of samples: inputs, differences, attributions and changed superpixels, as small inline SVG or PNG."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LONGEST = 320  # pixels of the longer side; larger pictures are shrunk
STEPS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
MAP = "RdBu_r"  # diverging, told apart by colour-blind eyes; white is zero


def photo(x: Array, low: float, high: float) -> str:
    """An image [C, H, W] as a data URI; ``low`` is black and ``high`` is white."""
    return _png((x - low) / (high - low if high > low else 1))


def difference(before: Array, after: Array, low: float, high: float) -> tuple[str, int]:
    """The change between two images, made clearer by a round factor, on mid-grey; and the factor."""
    change = (after - before) / (high - low if high > low else 1)
    most = float(np.abs(change).max())
    factor = max([s for s in STEPS if s * most <= 0.5], default=1) if most > 0 else 1
    return _png(0.5 + factor * change), factor


def heat(values: Array, most: float) -> str:
    """Attributions [C, H, W], summed over channels, from blue (``-most``) over white to red (``most``)."""
    from matplotlib import colormaps

    share = values.sum(0) / (most if most > 0 else 1)
    return _png(np.moveaxis(colormaps[MAP]((share.clip(-1, 1) + 1) / 2)[..., :3], -1, 0))


def strongest(*maps: Array) -> float:
    """The strongest attribution of a pixel, but for one in a hundred, for a scale that several maps share."""
    return max((float(np.quantile(np.abs(m.sum(0)), 0.99)) for m in maps), default=0.0)


def outline(mask: Array, inside: Array) -> str:
    """The border of some superpixels as an SVG path in pixels; ``mask`` [H, W], ``inside`` lists ids."""
    chosen = np.pad(np.isin(mask, inside), 1)
    down, across = chosen[1:, 1:-1] != chosen[:-1, 1:-1], chosen[1:-1, 1:] != chosen[1:-1, :-1]
    lines = [f"M{c} {r}h1" for r, c in np.argwhere(down)] + [f"M{c} {r}v1" for r, c in np.argwhere(across)]
    return "".join(lines)


def middle(mask: Array, which: int) -> tuple[float, float]:
    """Where in a picture (across, down) a superpixel is, in pixels."""
    rows, columns = np.nonzero(mask == which)
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5


def _png(image: Array) -> str:
    """An image [C, H, W] with values from 0 to 1 (others are cut off) as a data URI."""
    from PIL import Image

    shown = image if image.shape[0] in (1, 3) else image.mean(0, keepdims=True)
    pixels = np.moveaxis(np.round(255 * np.clip(np.nan_to_num(shown), 0, 1)).astype(np.uint8), 0, -1)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

"""Textures and trails: what weather and movement do to a picture, drawn by number."""

from math import ceil, cos, log2, pi, sin
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import ImageDraw

Floats = npt.NDArray[np.float64]


def clouds(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """A fractal height map on [0, 1] of at least ``side`` pixels, [S, S] with S the next power of two.

    Diamond-square (Fournier, Fussell, Carpenter, CACM 1982) on a torus: the middle of each square, then that of each
    diamond, is the mean of its four corners and a uniform draw, whose size falls by ``decay`` squared from one scale
    to the next, as in the weather of Hendrycks and Dietterich.
    """
    size = 2 ** max(1, ceil(log2(side)))
    field, step, rough = np.zeros((size, size)), size, 1.0
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        middles = _mean_of(
            corners, np.roll(corners, -1, 0), np.roll(corners, -1, 1), np.roll(corners, (-1, -1), (0, 1))
        )
        middles += rng.uniform(-rough, rough, middles.shape)
        right = _mean_of(corners, np.roll(corners, -1, 1), middles, np.roll(middles, 1, 0))
        below = _mean_of(corners, np.roll(corners, -1, 0), middles, np.roll(middles, 1, 1))
        field[half::step, half::step] = middles
        field[::step, half::step] = right + rng.uniform(-rough, rough, right.shape)
        field[half::step, ::step] = below + rng.uniform(-rough, rough, below.shape)
        step, rough = half, rough / decay**2
    return np.asarray((field - field.min()) / np.ptp(field))


def _mean_of(*corners: Floats) -> Floats:
    return np.asarray(np.mean(corners, 0))


FERNS, DEPTH, SIDEWAYS = 40, 3, pi / 3  # crystals of ice branch at 60 degrees


def frost(height: int, width: int, rng: np.random.Generator) -> Floats:
    """A frozen pane [H, W, 3] on [0, 1]: ferns of ice that branch at 60 degrees, over clouds, in a cold white."""
    from PIL import Image, ImageDraw, ImageFilter

    side = max(height, width)
    ice = Image.new("L", (2 * width, 2 * height))  # twice as large, so that shrinking smooths the strokes
    pen = ImageDraw.Draw(ice)
    for _ in range(FERNS):
        root = rng.random(2) * (2 * width, 2 * height)
        _fern(pen, root, rng.uniform(0, 2 * pi), 2 * side * rng.uniform(0.15, 0.45), DEPTH, 2 * side / 224, rng)
    ice = ice.resize((width, height), Image.Resampling.BOX)
    glow = ice.filter(ImageFilter.GaussianBlur(max(side / 100, 0.5)))
    haze = clouds(side, 1.5, rng)[:height, :width]
    light = rng.uniform(0.15, 0.45) + 0.4 * haze + 0.35 * np.asarray(ice) / 255 + 0.3 * np.asarray(glow) / 255
    return np.clip(light[..., None] * (0.88, 1.0, 1.07), 0, 1)


def _fern(
    pen: "ImageDraw.ImageDraw",
    root: Floats,
    angle: float,
    length: float,
    depth: int,
    unit: float,
    rng: np.random.Generator,
) -> None:
    """A stem with branches on both sides that shorten towards its tip, each of them a fern itself."""
    way = np.array([cos(angle), sin(angle)])
    shade = int(rng.uniform(120, 255))
    pen.line([*root, *(root + length * way)], fill=shade, width=max(1, round(unit * depth / 2)))
    if depth > 1 and length > 12 * unit:
        for at in np.arange(0.15, 0.95, max(0.09, 6 * unit / length)):
            for side in (-1, 1):
                twig = length * (1 - at) * rng.uniform(0.25, 0.55)
                _fern(pen, root + at * length * way, angle + side * SIDEWAYS, twig, depth - 1, unit, rng)


def smeared(x: Floats, reach: int, sigma: float, angle: float) -> Floats:
    """[H, W, C], each pixel the mean of those behind it along ``angle`` (radians), by half a Gaussian.

    Weights are those of 0 to 2 * ``reach`` pixels of distance; beyond the edge stand the pixels of the edge.
    """
    away = np.arange(2 * reach + 1)
    weights = np.exp(-(away**2) / (2 * sigma**2))
    weights /= weights.sum()
    edge = 2 * reach
    padded = np.pad(x, ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    rows, columns = (edge + np.rint(away * way).astype(int) for way in (sin(angle), cos(angle)))
    h, w = x.shape[:2]
    out = np.zeros_like(x)
    for weight, r, c in zip(weights, rows, columns, strict=True):
        out += weight * padded[r : r + h, c : c + w]
    return out


def enlarged(x: Floats, factor: float) -> Floats:
    """[H, W, C], enlarged about its middle, linearly between pixels, and cut to its size again."""
    rows, columns = (_sampled(n, factor) for n in x.shape[:2])
    return np.asarray(np.einsum("ij,jkc,lk->ilc", rows, x, columns, optimize=True))


def _sampled(n: int, factor: float) -> Floats:
    """What each of n pixels takes of each [n, n]."""
    middle = (n - 1) / 2
    at = middle + (np.arange(n) - middle) / factor
    return np.asarray(np.clip(1 - np.abs(at[:, None] - np.arange(n)), 0, None))

"""Textures and trails: what weather and movement do to a picture, drawn by number."""

from math import ceil, cos, log2, pi, sin

import numpy as np
import numpy.typing as npt

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


FERNS, TWIGS, SIDEWAYS = 30, 7, pi / 3  # crystals of ice branch at 60 degrees


def frost(height: int, width: int, rng: np.random.Generator) -> Floats:
    """A frozen pane [H, W, 3] on [0, 1]: ferns of ice that branch at 60 degrees, over clouds, in a cold white."""
    from PIL import Image, ImageDraw, ImageFilter

    side = max(height, width)
    ice = Image.new("L", (2 * width, 2 * height))  # twice as large, so that shrinking smooths the strokes
    pen, unit = ImageDraw.Draw(ice), 2 * side / 224
    for thick, stems in zip((1.5, 1, 0.5), _ferns(2 * width, 2 * height, unit, rng), strict=True):
        for *stroke, shade in stems.tolist():
            pen.line(stroke, fill=int(shade), width=max(1, round(unit * thick)))
    ice = ice.resize((width, height), Image.Resampling.BOX)
    glow = ice.filter(ImageFilter.GaussianBlur(max(side / 100, 0.5)))
    haze = clouds(side, 1.5, rng)[:height, :width]
    light = rng.uniform(0.15, 0.45) + 0.4 * haze + 0.35 * np.asarray(ice) / 255 + 0.3 * np.asarray(glow) / 255
    return np.clip(light[..., None] * (0.88, 1.0, 1.07), 0, 1)


def _ferns(width: int, height: int, unit: float, rng: np.random.Generator) -> list[Floats]:
    """Stems, their branches and the twigs of these: (from x, y, to x, y, shade) [N, 5] each.

    Branches stand on both sides and shorten towards the tip; those of less than two pixels, or 12 units, have no twigs.
    """
    root = rng.random((FERNS, 2)) * (width, height)
    angle = rng.uniform(0, 2 * pi, FERNS)
    length = max(width, height) * rng.uniform(0.15, 0.45, FERNS)
    at = np.linspace(0.15, 0.9, TWIGS)
    drawn = []
    for _ in range(3):
        way = np.stack([np.cos(angle), np.sin(angle)], 1)
        drawn.append(np.c_[root, root + length[:, None] * way, rng.uniform(120, 255, len(root))])
        rich = length > max(12 * unit, 2)
        root, way, length, angle = root[rich], way[rich], length[rich], angle[rich]
        along = (length[:, None] * at)[..., None] * way[:, None]  # [N, T, 2]
        root = np.repeat(root[:, None] + along, 2, 1).reshape(-1, 2)
        length = (length[:, None, None] * (1 - at)[:, None] * rng.uniform(0.25, 0.55, (len(length), TWIGS, 2))).ravel()
        angle = (angle[:, None, None] + np.tile((-SIDEWAYS, SIDEWAYS), (TWIGS, 1))).ravel()
    return drawn


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

"""Common corruptions: what weather, cameras and files do to pictures, in five severities.

The fifteen of ImageNet-C and CIFAR-10-C, and the four that were held back for validation, after Hendrycks and
Dietterich (ICLR 2019), arXiv 1903.12261, section 3 and appendix A. The strengths are theirs, in two tables: those of
pictures of 224 pixels and those of 32. A picture takes the table whose side its shorter side is nearer to by ratio, so
up to 84 pixels that of 32; lengths are pixels, but for elastic transforms, where they are shares of the shorter side.

Nothing is downloaded, and no picture is rounded to 8 bits but by the compression that does so. What differs from the
authors' files is said at each function. Single-channel pictures are corrupted as they are; where colour matters
(brightness, saturation, frost, spatter), they pass as three equal channels and come back as their luminance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.randomness import Noise, identities
from .textures import Floats, clouds, enlarged, smeared
from .textures import frost as frozen

SEVERITIES = (1, 2, 3, 4, 5)
LARGE, SMALL = 224, 32

LUMINANCE = np.array([0.2125, 0.7154, 0.0721])  # ITU-R BT.709
MUD, WATER = np.array([63, 42, 20]) / 255, np.array([175, 238, 238]) / 255

Draw = np.random.Generator


def corrupt(x: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """The pictures, corrupted: same shape, dtype and device, in [0, 1].

    What is drawn at random is a function of the seed, the corruption, its severity and each picture's content alone.

    Args:
        x: pictures [B, C, H, W] in [0, 1], of one or three channels.
        name: one of ``CORRUPTIONS`` or ``EXTRA``.
        severity: 1 to 5.
        seed: any integer.

    Raises:
        ValueError: an unknown name or severity, or no such pictures.

    >>> x = torch.rand(2, 3, 32, 32)
    >>> [round(float((corrupt(x, "contrast", s) - x).abs().mean()), 2) for s in (1, 3, 5)]
    [0.06, 0.15, 0.21]
    """
    if name not in KINDS:
        from difflib import get_close_matches

        near = get_close_matches(str(name), KINDS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no corruption is called {name!r}; {hint}known are {', '.join(KINDS)}")
    if whole("severity", severity, 1) not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity!r}")
    _check(x)
    kind, side = KINDS[name], min(x.shape[2:])
    strengths = (kind.large if side**2 > LARGE * SMALL else kind.small)[severity - 1]
    out = np.empty(x.shape)
    draws = Noise(seed, f"{name}/{severity}", identities(x)).generators()
    for done, picture, draw in zip(out, x.detach().cpu().double().numpy(), draws, strict=True):
        given = picture.transpose(1, 2, 0)
        coloured = kind.coloured and len(picture) == 1
        made = kind.make(given.repeat(3, 2) if coloured else given, draw, *strengths)
        done[:] = np.clip(made @ LUMINANCE[:, None] if coloured else made, 0, 1).transpose(2, 0, 1)
    return torch.from_numpy(out).to(x.dtype).to(x.device)


def _check(x: Any) -> None:
    told = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 2:
        raise ValueError(f"x must be pictures [B, 1 or 3, H, W] of at least 2 by 2 pixels, got {told}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating-point numbers in [0, 1], got {x.dtype}; use x.float() / 255 for 8 bits")
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(
            f"x must lie in [0, 1], got {float(x.min()):.4g} to {float(x.max()):.4g}; "
            "corrupt pictures before they are normalised, which is the model's affair"
        )


def gaussian_noise(x: Floats, draw: Draw, scale: float) -> Floats:
    """Normal noise on every element."""
    return x + draw.normal(0, scale, x.shape)


def shot_noise(x: Floats, draw: Draw, photons: float) -> Floats:
    """Poisson counts, of so many for white."""
    return draw.poisson(x * photons) / photons


def impulse_noise(x: Floats, draw: Draw, share: float) -> Floats:
    """Salt and pepper: this share of the elements becomes 0 or 1, equally often."""
    u = draw.random(x.shape)
    return np.where(u < share / 2, 0, np.where(u < share, 1, x))


def speckle_noise(x: Floats, draw: Draw, scale: float) -> Floats:
    """Normal noise in proportion to the brightness."""
    return x * (1 + draw.normal(0, scale, x.shape))


def gaussian_blur(x: Floats, draw: Draw, sigma: float) -> Floats:
    """A Gaussian blur."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def defocus_blur(x: Floats, draw: Draw, radius: float, soft: float) -> Floats:
    """The mean over a disk, whose edge is softened by a little Gaussian blur."""
    from scipy.ndimage import correlate, gaussian_filter

    reach = int(np.ceil(radius)) + 2
    across = np.arange(-reach, reach + 1)
    disk = (across**2 + across[:, None] ** 2 <= radius**2).astype(float)
    disk = gaussian_filter(disk / disk.sum(), soft, radius=1 if radius <= 8 else 2, mode="constant")
    return np.asarray(correlate(x, disk[..., None], mode="mirror"))


def glass_blur(x: Floats, draw: Draw, sigma: float, reach: int, rounds: int) -> Floats:
    """A blur, pixels that change places with others near them, and a blur again.

    Every pixel changes places with one up to ``reach`` before it or ``reach`` - 1 behind, in rows and in columns. The
    authors' files were made by a program that, by the way numpy hands out rows, wrote one of the two over the other.
    """
    h, w = x.shape[:2]
    place = np.arange(h * w)
    there = np.arange(h * w).reshape(h, w)
    for _ in range(rounds):
        down, across = draw.integers(-reach, reach, (2, h, w))
        rows, columns = (np.arange(h)[:, None] + down).clip(0, h - 1), (np.arange(w) + across).clip(0, w - 1)
        order, others = place.tolist(), there[rows, columns].ravel().tolist()
        for i in range(h * w - 1, -1, -1):
            j = others[i]
            order[i], order[j] = order[j], order[i]
        place = np.array(order)
    shuffled = gaussian_blur(x, draw, sigma).reshape(h * w, -1)[place].reshape(x.shape)
    return gaussian_blur(shuffled, draw, sigma)


def motion_blur(x: Floats, draw: Draw, reach: int, sigma: float) -> Floats:
    """A trail in a random direction, within 45 degrees of the horizontal."""
    return smeared(x, reach, sigma, draw.uniform(-pi / 4, pi / 4))


def zoom_blur(x: Floats, draw: Draw, most: float, step: float) -> Floats:
    """The mean of the picture and of its enlargements by 1, 1 + ``step``... up to ``most``."""
    factors = 1 + step * np.arange(round((most - 1) / step) + 1)
    return np.asarray(np.mean([x, *(enlarged(x, factor) for factor in factors)], 0))


def snow(
    x: Floats,
    draw: Draw,
    level: float,
    scale: float,
    large: float,
    least: float,
    reach: int,
    sigma: float,
    keep: float,
) -> Floats:
    """Flakes that fall in a random direction, over a picture that is whitened."""
    flakes = enlarged(draw.normal(level, scale, (*x.shape[:2], 1)), large)
    flakes = np.where(flakes < least, 0, flakes.clip(0, 1))
    flakes = smeared(flakes, reach, sigma, draw.uniform(-0.75 * pi, -0.25 * pi))
    white = np.maximum(x, 1.5 * _luminance(x)[..., None] + 0.5)
    return keep * x + (1 - keep) * white + flakes + flakes[::-1, ::-1]


def frost(x: Floats, draw: Draw, keep: float, ice: float, shrink: int) -> Floats:
    """The picture behind a frozen pane.

    The authors lay crops of photographs over it. Here the ice is drawn, see :func:`robustx.perturb.textures.frost`,
    as bright and as rich in contrast as theirs on average; ``shrink`` is how much finer it is made.
    """
    h, w = x.shape[:2]
    pane: Floats = frozen(h * shrink, w * shrink, draw).reshape(h, shrink, w, shrink, 3).mean((1, 3))
    return keep * x + ice * pane


def fog(x: Floats, draw: Draw, thick: float, decay: float) -> Floats:
    """Clouds in front of the picture, which keeps its brightest value."""
    h, w = x.shape[:2]
    most = float(x.max())
    return (x + thick * clouds(max(h, w), decay, draw)[:h, :w, None]) * most / (most + thick)


def spatter(
    x: Floats, draw: Draw, level: float, scale: float, sigma: float, least: float, strength: float, mud: bool
) -> Floats:
    """Drops of water, which shine, or of mud, which hides.

    Drops are where blurred noise exceeds ``least``. Water is lit from one side by how far the drop's edge is.
    """
    from scipy.ndimage import gaussian_filter

    liquid: Floats = gaussian_filter(draw.normal(level, scale, x.shape[:2]), sigma, mode="nearest")
    if mud:
        hides: Floats = gaussian_filter((liquid > least).astype(float), strength, mode="nearest")
        hides = np.where(hides < 0.8, 0, hides)[..., None]
        return x * (1 - hides) + hides * MUD
    drops = liquid >= least
    shine: Floats = np.where(drops, liquid, 0) * _shine(drops)
    return x + strength * (shine / max(float(shine.max()), np.finfo(float).tiny))[..., None] * WATER


def _shine(drops: Any) -> Floats:
    """How drops [H, W] reflect a light that comes from one side, on [0, 1]: farther from their edges, by rank."""
    from scipy.ndimage import binary_erosion, convolve, distance_transform_edt, uniform_filter

    edges = drops & ~binary_erosion(drops, border_value=1)
    far = np.floor(uniform_filter(np.minimum(distance_transform_edt(~edges), 20), 3, mode="mirror"))
    _, which, counts = np.unique(far, return_inverse=True, return_counts=True)
    nearer = counts.cumsum() - counts[0]
    ranks = nearer[which] / max(nearer[-1], 1)
    slope = np.array([[2, 1, 0], [1, 1, -1], [0, -1, -2]])
    return np.asarray(uniform_filter(convolve(ranks, slope, mode="mirror").clip(0, 1), 3, mode="mirror"))


def contrast(x: Floats, draw: Draw, keep: float) -> Floats:
    """Each channel nearer to its mean."""
    mean: Floats = x.mean((0, 1))
    return (x - mean) * keep + mean


def brightness(x: Floats, draw: Draw, more: float) -> Floats:
    """More value, in the sense of hue, saturation, value."""
    return _with_hsv(x, 2, 1, more)


def saturate(x: Floats, draw: Draw, times: float, more: float) -> Floats:
    """Less saturation (severities 1 and 2), or more (3 to 5). Grey, which has none, stays at the first three."""
    return _with_hsv(x, 1, times, more)


def jpeg_compression(x: Floats, draw: Draw, quality: int) -> Floats:
    """To a JPEG file of this quality and back, by way of 8 bits."""
    from PIL import Image

    file = BytesIO()
    levels = np.rint(x * 255).astype(np.uint8)
    Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as back:
        return np.asarray(back, dtype=np.float64).reshape(x.shape) / 255


def pixelate(x: Floats, draw: Draw, share: float) -> Floats:
    """Fewer, larger pixels: means over boxes, to this share of the sides, and back."""
    from PIL import Image

    h, w = x.shape[:2]
    box, fewer = Image.Resampling.BOX, (max(1, int(w * share)), max(1, int(h * share)))
    channels = (Image.fromarray(np.float32(c)).resize(fewer, box).resize((w, h), box) for c in x.transpose(2, 0, 1))
    return np.stack([np.asarray(c, dtype=np.float64) for c in channels], 2)


def elastic_transform(x: Floats, draw: Draw, stretch: float, sigma: float, jitter: float) -> Floats:
    """A random affine map, then a smooth random displacement of every pixel; lengths in shares of the shorter side.

    Simard, Steinkraus, Platt (ICDAR 2003), section 2. Both maps are made one, so that the picture is read between its
    pixels only once; the authors do so twice.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    h, w = x.shape[:2]
    side = min(h, w)
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * side / 3 + (h // 2, w // 2)
    moved = corners + draw.uniform(-1, 1, (3, 2)) * jitter * side
    back = np.linalg.solve(
        np.c_[moved, np.ones(3)], corners
    )  # [3, 2]: (row, column, 1) of what is seen -> of the source
    wave = draw.uniform(-1, 1, (2, h, w))
    if sigma:
        wave = gaussian_filter(wave, (0, sigma * side, sigma * side), mode="reflect", truncate=3)
    at = np.indices((h, w)) + stretch * side * wave
    at = np.einsum("jk,jhw->khw", back[:2], at) + back[2][:, None, None]
    channels = (map_coordinates(c, at, order=1, mode="mirror") for c in x.transpose(2, 0, 1))
    return np.stack(list(channels), 2)


def _luminance(x: Floats) -> Floats:
    """[H, W, C] -> [H, W]."""
    return np.asarray(x[..., 0] if x.shape[2] == 1 else x @ LUMINANCE)


def _with_hsv(x: Floats, which: int, times: float, more: float) -> Floats:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(x)
    hsv[..., which] = np.clip(hsv[..., which] * times + more, 0, 1)
    return np.asarray(hsv2rgb(hsv))


@dataclass(frozen=True)
class Kind:
    """A corruption: how it is made, and how strong it is at each severity.

    Args:
        make: (picture [H, W, C], generator, strengths) -> corrupted picture, clipped later.
        large, small: the strengths for pictures of 224 and of 32 pixels.
        coloured: whether it is for three channels only.
    """

    make: Callable[..., Floats]
    large: tuple[tuple[Any, ...], ...]
    small: tuple[tuple[Any, ...], ...]
    coloured: bool = False


def _each(*strengths: float) -> tuple[tuple[float], ...]:
    return tuple((s,) for s in strengths)


SIDE = 244 / 224  # the authors count elastic lengths of pictures of 224 pixels in 244ths

KINDS: Mapping[str, Kind] = {
    "gaussian_noise": Kind(gaussian_noise, _each(0.08, 0.12, 0.18, 0.26, 0.38), _each(0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot_noise": Kind(shot_noise, _each(60, 25, 12, 5, 3), _each(500, 250, 100, 75, 50)),
    "impulse_noise": Kind(impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27), _each(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Kind(
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Kind(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Kind(
        motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    ),
    "zoom_blur": Kind(
        zoom_blur,
        ((1.11, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.15, 0.01), (1.2, 0.01), (1.25, 0.01)),
    ),
    "snow": Kind(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Kind(
        frost,
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        ((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
        coloured=True,
    ),
    "fog": Kind(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Kind(brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5), _each(0.05, 0.1, 0.15, 0.2, 0.3), coloured=True),
    "contrast": Kind(contrast, _each(0.4, 0.3, 0.2, 0.1, 0.05), _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Kind(
        elastic_transform,
        tuple(
            (SIDE * a, SIDE * b, SIDE * c)
            for a, b, c in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Kind(pixelate, _each(0.6, 0.5, 0.4, 0.3, 0.25), _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Kind(jpeg_compression, _each(25, 18, 15, 10, 7), _each(80, 65, 58, 50, 40)),
    "speckle_noise": Kind(speckle_noise, _each(0.15, 0.2, 0.35, 0.45, 0.6), _each(0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Kind(gaussian_blur, _each(1, 2, 3, 4, 6), _each(0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": Kind(
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        coloured=True,
    ),
    "saturate": Kind(
        saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        coloured=True,
    ),
}
"""All of them by name."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Those that the authors hold back for validation: not part of the mean corruption error."""

CORRUPTIONS = tuple(name for name in KINDS if name not in EXTRA)
"""The fifteen that the mean corruption error is over."""

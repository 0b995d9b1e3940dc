"""Common corruptions: closed forms, other libraries, and laws that all of them keep."""

import colorsys
import math
import random

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.stats import norm
from skimage import data
from skimage.transform import resize
from torch.nn.functional import avg_pool2d, conv2d
from torch.testing import assert_close

from robustx.perturb.corruptions import CORRUPTIONS, EXTRA, KINDS, MUD, SEVERITIES, WATER, corrupt
from robustx.perturb.textures import clouds, enlarged, frost, smeared

EVERY = pytest.mark.parametrize("name", KINDS)
DRAWN = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost"}
DRAWN |= {"fog", "elastic_transform", "spatter"}

NOT_BY_DISTANCE = {  # whose published strengths are of different kinds from one severity to the next
    "saturate": "1 and 2 take colour away, 3 to 5 add it",
    "elastic_transform": "the farther pixels move, the less whole pictures do",
    "spatter": "1 to 3 are water, 4 and 5 mud",
    "snow": "from 2 to 3 there are fewer, brighter flakes",
    "frost": "panes differ in brightness, as photographs do",
    "glass_blur": "for 32 pixels, rounds of shuffling are traded for blur",
}


def pictures(side: int) -> torch.Tensor:
    """Two photographs that come with scikit-image [2, 3, side, side]."""
    cut = data.astronaut()[:400, 40:440], data.chelsea()[:300, 75:375]
    small = np.stack([resize(c, (side, side), anti_aliasing=True) for c in cut])
    return torch.from_numpy(small).permute(0, 3, 1, 2).clamp(0, 1).contiguous()


def flat(value: float, side: int, channels: int = 3, count: int = 2) -> torch.Tensor:
    return torch.full((count, channels, side, side), value, dtype=torch.float64)


def spike(side: int) -> torch.Tensor:
    """One white pixel in the middle of black."""
    x = flat(0.0, side, 1, 1)
    x[0, 0, side // 2, side // 2] = 1
    return x


def ramp(side: int) -> torch.Tensor:
    across = 0.5 + 0.5 * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / side
    return across.expand(1, 1, side, side).contiguous()


def strengths(name: str, severity: int, side: int = 32) -> tuple:
    return (KINDS[name].small if side < 85 else KINDS[name].large)[severity - 1]


def test_there_are_fifteen_and_four_at_five_severities():
    assert (len(CORRUPTIONS), len(EXTRA), set(CORRUPTIONS) | set(EXTRA)) == (15, 4, set(KINDS))
    assert all(len(k.large) == len(k.small) == len(SEVERITIES) for k in KINDS.values())


@EVERY
@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 8, 8), (3, 20, 13), (1, 90, 101)], ids=str)
def test_what_comes_back_is_a_picture(name, shape):
    x = torch.stack([torch.rand(shape), torch.zeros(shape), torch.ones(shape), torch.full(shape, 0.3)])
    before, states = x.clone(), (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    for severity in (1, 5):
        z = corrupt(x, name, severity)
        assert z.shape == x.shape and z.dtype == x.dtype and bool(((z >= 0) & (z <= 1)).all())
    assert torch.equal(x, before)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1:] == (
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


@EVERY
def test_a_picture_is_corrupted_alike_in_any_batch(name):
    x = torch.rand(3, 3, 16, 16)
    whole = corrupt(x, name, 4, seed=3)
    assert torch.equal(torch.cat([corrupt(t[None], name, 4, seed=3) for t in x]), whole)
    assert torch.equal(corrupt(x.flip(0), name, 4, seed=3), whole.flip(0))
    assert torch.equal(corrupt(x.double(), name, 4, seed=3).float(), whole)
    assert len(corrupt(x[:0], name, 4)) == 0


@EVERY
def test_the_seed_decides_what_is_drawn(name):
    x = pictures(32)
    same = torch.equal(corrupt(x, name, 5, seed=1), corrupt(x, name, 5, seed=2))
    assert same == (name not in DRAWN)


@EVERY
def test_pictures_lose_more_from_severity_to_severity(name):
    for side in (32, 112):
        x = pictures(side)
        away = [float((corrupt(x, name, s) - x).square().mean().sqrt()) for s in SEVERITIES]
        assert min(away) > 0
        if name not in NOT_BY_DISTANCE and (name, side) != ("fog", 112):  # its clouds are other ones each time
            assert away == sorted(away), away
    if name == "saturate":
        assert away[0] < away[1] and away[2] < away[3] < away[4]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [64, 128])
def test_gaussian_noise_has_the_variance_of_a_clipped_normal(severity, side):
    (scale,) = strengths("gaussian_noise", severity, side)
    z = corrupt(flat(0.5, side), "gaussian_noise", severity) - 0.5
    end = 0.5 / scale
    beyond = norm.sf(end)
    inside = scale**2 * (1 - 2 * beyond - 2 * end * norm.pdf(end))
    assert_close(float(z.square().mean()), inside + 2 * beyond * 0.25, rtol=0.06, atol=0)
    assert abs(float(z.mean())) < 5 * scale / math.sqrt(z.numel())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_that_goes_with_the_light(severity):
    x = flat(0.3, 64)
    (photons,), (scale,) = strengths("shot_noise", severity), strengths("speckle_noise", severity)
    shot, speckle = corrupt(x, "shot_noise", severity), corrupt(x, "speckle_noise", severity)
    assert_close((shot * photons).round(), shot * photons)  # whole photons
    assert_close(float(shot.var()), 0.3 / photons, rtol=0.1, atol=0)
    assert_close(float(speckle.std()), 0.3 * scale, rtol=0.06, atol=0)
    assert_close(float(speckle.mean()), 0.3, rtol=0.02, atol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulses_are_black_and_white_in_equal_shares(severity):
    (share,) = strengths("impulse_noise", severity)
    z = corrupt(flat(0.5, 64), "impulse_noise", severity)
    slack = 5 * math.sqrt(share / z.numel())
    assert abs(float((z == 0).double().mean()) - share / 2) < slack
    assert abs(float((z == 1).double().mean()) - share / 2) < slack
    assert bool(((z == 0) | (z == 1) | (z == 0.5)).all())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_gaussian_blur_spreads_a_spike_as_a_gaussian(severity):
    side = 101
    (sigma,) = strengths("gaussian_blur", severity, side)
    away = np.arange(side) - side // 2
    bell = np.where(np.abs(away) <= 4 * sigma + 0.5, np.exp(-(away**2) / (2 * sigma**2)), 0)
    bell /= bell.sum()
    assert_close(corrupt(spike(side), "gaussian_blur", severity)[0, 0], torch.from_numpy(np.outer(bell, bell)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_spreads_a_spike_over_a_disk(severity):
    side = 101
    radius, soft = strengths("defocus_blur", severity, side)
    reach = 1 if radius <= 8 else 2
    across = torch.arange(side, dtype=torch.float64) - side // 2
    disk = (across**2 + across[:, None] ** 2 <= radius**2).double()
    near = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * soft**2))
    near = torch.outer(near, near) / near.sum() ** 2
    expected = conv2d((disk / disk.sum())[None, None], near[None, None], padding=reach)
    assert_close(corrupt(spike(side), "defocus_blur", severity), expected)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"])
@pytest.mark.parametrize("side", [8, 90])
def test_what_is_blurred_keeps_a_uniform_picture(name, side):
    for severity in SEVERITIES:
        assert_close(corrupt(flat(0.3, side), name, severity), flat(0.3, side))


def test_glass_moves_pixels_and_makes_none():
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    sigma, reach, rounds = strengths("glass_blur", 1)
    assert (sigma, reach, rounds) == (0.05, 1, 1)  # a blur of no pixel
    before, after = (t[0].flatten(1).T for t in (x, corrupt(x, "glass_blur", 1)))
    assert sorted(before.tolist()) == sorted(after.tolist())
    assert float((before != after).any(1).double().mean()) > 0.5


@pytest.mark.parametrize("angle", [0, 1, 2, 3])
def test_a_trail_is_half_a_gaussian(angle):
    reach, sigma, side = 4, 2.5, 31
    bell = np.exp(-(np.arange(2 * reach + 1) ** 2) / (2 * sigma**2))
    x = spike(side)[0, 0].numpy()[..., None]
    z = np.rot90(smeared(x, reach, sigma, angle * math.pi / 2)[..., 0], angle)
    assert_close(z[side // 2, side // 2 - 2 * reach : side // 2 + 1][::-1].copy(), bell / bell.sum())
    assert_close(z.sum(), 1.0)


def test_motion_is_nearly_horizontal():
    for seed in range(8):
        z = corrupt(spike(101), "motion_blur", 5, seed)[0, 0]
        down, across = (float((z.sum(1 - k) * (torch.arange(101) - 50)).sum()) for k in (0, 1))
        assert across < -5 and abs(down) <= abs(across) + 0.5
        assert_close(float(z.sum()), 1.0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_blur_flattens_a_ramp(severity):
    side = 101
    most, step = strengths("zoom_blur", severity, side)
    factors = [1.0, *np.arange(1, most + step / 2, step)]
    flatter = float(np.mean([1 / f for f in factors]))
    assert_close(corrupt(ramp(side), "zoom_blur", severity), 0.5 + (ramp(side) - 0.5) * flatter)
    assert_close(enlarged(ramp(9)[0].numpy().transpose(1, 2, 0), 1.0)[..., 0], ramp(9)[0, 0].numpy())


def test_snow_whitens_and_falls_on_both_sides():
    for severity in SEVERITIES:
        *_, keep = strengths("snow", severity)
        z = corrupt(flat(0.2, 32), "snow", severity)
        assert_close(z, z.flip(2, 3))
        assert_close(float(z.min()), keep * 0.2 + (1 - keep) * 0.8)  # 1.5 * 0.2 + 0.5 where no flake falls
        assert float(z.max()) > float(z.min()) + 0.1


def test_frost_lays_a_pane_over_the_picture():
    panes = np.stack([frost(112, 112, np.random.default_rng(i)) for i in range(8)])
    assert 0.55 < panes.mean() < 0.75 and 0.1 < panes.std((1, 2, 3)).mean() < 0.17  # as photographs of it have
    assert (panes[..., 2] >= panes[..., 0]).all() and panes.min() >= 0 and panes.max() <= 1
    keep, ice, _ = strengths("frost", 3)
    z = corrupt(flat(0.5, 32), "frost", 3)
    assert float(z.min()) >= 0.5 * keep and float(z.max()) <= 0.5 * keep + ice + 1e-12


def test_fog_is_a_fractal_in_front_of_the_picture():
    thick, _ = strengths("fog", 4)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    most = float(x.max())
    mist = (corrupt(x, "fog", 4) * (most + thick) / most - x) / thick
    assert_close(mist, mist[:, :1].expand_as(mist))
    assert_close((float(mist.min()), float(mist.max())), (0.0, 1.0))
    rough = [np.abs(np.diff(clouds(64, decay, np.random.default_rng(0)), axis=0)).mean() for decay in (3, 2, 1.5, 1.1)]
    assert rough == sorted(rough)  # the slower it falls, the more there is of the smallest scale


def hsv_by_hand(x, change):
    seen = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in x[0].flatten(1).T.tolist()]
    return torch.tensor(seen, dtype=torch.float64).T.reshape(x.shape)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_colours_by_hand(severity):
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    (more,), (times, plus) = strengths("brightness", severity), strengths("saturate", severity)
    assert_close(corrupt(x, "brightness", severity), hsv_by_hand(x, lambda h, s, v: (h, s, min(v + more, 1))))
    assert_close(corrupt(x, "saturate", severity), hsv_by_hand(x, lambda h, s, v: (h, min(s * times + plus, 1), v)))
    grey = x[:, :1]
    assert_close(corrupt(grey, "brightness", severity), (grey + more).clamp(max=1))
    dull = corrupt(grey, "saturate", severity)
    assert torch.allclose(dull, grey) if plus == 0 else bool((dull < grey).all())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_about_the_mean_of_each_channel(severity):
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    (keep,) = strengths("contrast", severity)
    z = corrupt(x, "contrast", severity)
    assert_close(z.mean((2, 3)), x.mean((2, 3)))
    assert_close(z.std((2, 3)), keep * x.std((2, 3)))


def test_large_pixels_are_means_of_small_ones():
    x = torch.rand(2, 3, 96, 128, dtype=torch.float64)
    assert strengths("pixelate", 2, 96) == (0.5,)
    blocks = avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(corrupt(x, "pixelate", 2), blocks, rtol=0, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_was_compressed_is_made_of_whole_steps_of_the_standard_table(severity):
    x = 0.3 + 0.4 * pictures(96)[:1, :1]  # far from the ends, so that nothing is clipped
    (quality,) = strengths("jpeg_compression", severity, 96)
    z = (corrupt(x, "jpeg_compression", severity)[0, 0] * 255 - 128).numpy()
    blocks = z.reshape(12, 8, 12, 8).transpose(0, 2, 1, 3)
    first_row = np.array([16, 11, 10, 16, 24, 40, 51, 61])  # ITU-T T.81, table K.1
    steps = np.minimum((first_row * (5000 // quality) + 50) // 100, 255)
    found = dctn(blocks, axes=(2, 3), norm="ortho")[:, :, 0] / steps
    assert (np.abs(found - found.round()) * steps).max() < 4.1 and np.abs(found.round()).max() > 2


def test_an_elastic_transform_without_waves_is_affine():
    assert strengths("elastic_transform", 1)[:2] == (0, 0)
    for seed in range(3):
        z = corrupt(ramp(32), "elastic_transform", 1, seed)[0, 0, 10:22, 10:22]  # away from the mirrored edge
        assert_close(z[2:] + z[:-2], 2 * z[1:-1])
        assert_close(z[:, 2:] + z[:, :-2], 2 * z[:, 1:-1])
        assert not torch.allclose(z, ramp(32)[0, 0, 10:22, 10:22])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_water_shines_and_mud_hides(severity):
    *_, strength, mud = strengths("spatter", severity)
    if mud:
        z = corrupt(flat(1.0, 32), "spatter", severity)
        hides = ((1 - z) / (1 - torch.from_numpy(MUD)[:, None, None]))[:, 0]
        assert_close(z, 1 - hides[:, None] * (1 - torch.from_numpy(MUD)[:, None, None]))
        assert bool(((hides == 0) | (hides >= 0.8 - 1e-9)).all()) and float(hides.max()) > 0.8
    else:
        z = corrupt(flat(0.0, 32), "spatter", severity)
        light = z[:, :1] / float(WATER[0])
        assert_close(z, light * torch.from_numpy(WATER)[:, None, None])
        assert_close(float(light.max()), float(strength))
        assert 0.3 < float((light == 0).double().mean()) < 1


@pytest.mark.parametrize(
    "x, name, severity, said",
    [
        (torch.rand(1, 3, 8, 8), "jpg_compression", 1, "no corruption is called 'jpg_compression'; did you mean 'jpeg"),
        (torch.rand(1, 3, 8, 8), "fog", 6, "severity must be 1 to 5, got 6"),
        (torch.rand(1, 3, 8, 8), "fog", 0, "severity must be a whole number of at least 1, got 0"),
        (torch.rand(3, 8, 8), "fog", 1, r"x must be pictures \[B, 1 or 3, H, W\]"),
        (torch.rand(1, 4, 8, 8), "fog", 1, r"x must be pictures \[B, 1 or 3, H, W\]"),
        (torch.randn(1, 3, 8, 8), "fog", 1, r"x must lie in \[0, 1\], got -.* before they are normalised"),
        (torch.full((1, 3, 8, 8), torch.nan), "fog", 1, r"x must lie in \[0, 1\], got nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "fog", 1, "x must be floating-point .* use x.float"),
    ],
    ids=["name", "above", "below", "no-batch", "channels", "range", "nan", "bytes"],
)
def test_errors_say_what_to_do(x, name, severity, said):
    with pytest.raises(ValueError, match=said):
        corrupt(x, name, severity)

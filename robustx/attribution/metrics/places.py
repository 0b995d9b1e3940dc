"""Places: whether an explanation of a picture lies where the object is."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ...engine.checks import ArgumentError, whole
from ...engine.packing import finest, flat


def pointing_game(attributions: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Whether the place with the greatest attribution lies on the object [B].

    Zhang, Bargal, Lin, Brandt, Shen, Sclaroff (IJCV 2018). Among equals the first place counts.

    Args:
        attributions: [B, C, H, W], summed over the channels first; or [B, H, W].
        masks: where the object is, [B, H, W], [B, 1, H, W] or of all channels; anything but zero is the object.
        tolerance: pixels by which the place may miss it, along each axis; the paper takes 15.

    Raises:
        ValueError: they do not fit each other, or an object has no place.

    >>> a = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]])
    >>> pointing_game(a, torch.tensor([[[False, True], [False, True]]]))
    tensor([True])
    """
    heat, there = _maps(attributions, masks)
    wide = 2 * whole("tolerance", tolerance, 0) + 1
    there = max_pool2d(there.float()[:, None], wide, 1, wide // 2)[:, 0] > 0
    return flat(there).gather(1, flat(heat).argmax(1, keepdim=True)).squeeze(1)


def relevance_mass(attributions: Tensor, masks: Tensor, *, weighted: bool = False) -> Tensor:
    """The share of the positive attribution that lies on the object [B]; zero where nothing is positive.

    Arras, Osman, Samek (Information Fusion 81, 2022); attribution localisation of Kohlbrenner, Bauer, Nakajima,
    Binder, Samek, Lapuschkin (IJCNN 2020).

    Args:
        attributions, masks: see :func:`pointing_game`.
        weighted: times the picture's size over the object's (also theirs): one for what lies anywhere.

    Raises:
        ValueError: they do not fit each other, or an object has no place.

    >>> a, mask = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]]), torch.tensor([[[1, 0], [0, 0]]])
    >>> relevance_mass(a, mask), relevance_mass(a, mask, weighted=True)
    (tensor([0.7500], dtype=torch.float64), tensor([3.], dtype=torch.float64))
    """
    heat, there = (flat(t) for t in _maps(attributions, masks))
    heat = heat.clamp(min=0)
    total = heat.sum(1)
    share = (heat * there).sum(1) / torch.where(total == 0, 1, total)
    return share / there.double().mean(1).to(share) if weighted else share


def relevance_rank(attributions: Tensor, masks: Tensor) -> Tensor:
    """The share of the object's places that are among the highest, as many as it has [B].

    Arras et al. (2022). Of equals, the share of them that lies on the object.

    Args:
        attributions, masks: see :func:`pointing_game`.

    Raises:
        ValueError: they do not fit each other, or an object has no place.

    >>> relevance_rank(torch.tensor([[[3.0, 1.0], [2.0, 0.0]]]), torch.tensor([[[1, 1], [0, 0]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    heat, there = (flat(t) for t in _maps(attributions, masks))
    size = there.sum(1, keepdim=True)
    last = heat.sort(1, descending=True).values.gather(1, size - 1)
    above, level = heat > last, heat == last
    room = (size - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)  # for how many of the equals
    within = (above & there).sum(1, keepdim=True) + room.to(heat) * (level & there).sum(1, keepdim=True)
    return (within / size).squeeze(1)


def _maps(attributions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Attributions of places [B, H, W] and where the object is [B, H, W]."""
    heat = finest(attributions.detach())
    heat = heat.sum(1) if heat.ndim == 4 else heat
    there = masks.to(heat.device) != 0
    there = there.any(1) if there.ndim == 4 else there
    if heat.ndim != 3 or heat.shape != there.shape:
        raise ArgumentError(
            f"attributions [B, C, H, W] and masks [B, H, W] must be of the same pictures, got "
            f"{tuple(attributions.shape)} and {tuple(masks.shape)}"
        )
    empty = ~flat(there).any(1)
    if empty.any():
        raise ArgumentError(f"masks have no object in example {int(empty.nonzero()[0])}; leave it out")
    return heat, there

"""Attacks that walk to the nearest boundary, as far as a linear model of the network knows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Boundaries, Goal, Loss
from ..perturb.region import Region
from .base import Active, Attack, warn_if_flat
from .found import Found, shrunk


def nearest(region: Region, z: Tensor, leads: Tensor, slopes: Tensor) -> Tensor:
    """Which boundary is nearest to ``z`` [N, D] within the box, to first order [N].

    Each boundary is a half-space, to which the least way inside the box is known. Where the box keeps all of them out
    of reach, it is the one of which the largest share can be gained.

    Args:
        leads, slopes: what has to rise above 0 [N, T], and its gradients [N, T, D].
    """
    n, t, d = slopes.shape
    row = torch.arange(n, device=z.device)
    each, g, need = row.repeat_interleave(t), slopes.reshape(n * t, d), leads.reshape(n * t).abs()
    way = torch.where((leads > 0).reshape(n * t, 1), -g, g)
    moves = region.norm.least(way, need, region.at(each).room(z[each], way))
    gained = (way * moves).sum(1)
    there = (gained >= need * (1 - 1e-5)).reshape(n, t) & slopes.any(2)
    size = torch.where(there, region.norm.size(moves).reshape(n, t), torch.inf)
    share = (gained / need).nan_to_num().reshape(n, t)
    return torch.where(there.any(1), size.argmin(1), share.argmax(1))


def theirs(rival: Tensor, leads: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The lead [N] and the slope [N, D] of each row's ``rival``, of those of all boundaries: see :func:`nearest`."""
    row = torch.arange(len(rival), device=rival.device)
    return leads[row, rival], slopes[row, rival]


def toward(region: Region, z: Tensor, lead: Tensor, slope: Tensor, beyond: float, first: Tensor) -> Tensor:
    """The step from ``z`` to a boundary, and a share ``beyond`` of its length further [N, D].

    It is the least step there is without the box, as far as the box allows that, but at least half way: what is missing
    is left to the next step, which knows the gradient there. Once less than a fifth of the ``first`` lead [N] is left,
    it is the least step inside the box that goes all the way. For an affine model these are parts of one path, that of
    the least moves, on which one element after the other meets the box.
    """
    norm, need, room = region.norm, (1 + beyond) * -lead, region.room(z, slope)
    clipped = torch.minimum(norm.least(slope, need).abs(), room)
    gain = torch.maximum((slope.abs() * clipped).sum(1), need / 2)
    return region.clip(z + norm.least(slope, torch.where(-lead <= first / 5, need, torch.minimum(gain, need)), room))


@dataclass(frozen=True, eq=False)
class _Walking(Active):
    """Rows on their way to a boundary, the ``rival``'s [n], whose ``lead`` [n] was that when they set off."""

    rival: Tensor
    lead: Tensor


def deepfool(
    f: Probe, region: Region, rows: Tensor, steps: int, overshoot: float, candidates: int | None = None
) -> Found:
    """Steps onto the nearest boundary of the linearised model, a little beyond it, until the goal is reached.

    Moosavi-Dezfooli, Fawzi, Frossard (CVPR 2016), algorithm 2, and section 3.3 for other norms than L2. Of an affine
    model inside its bounds the result is 1 + overshoot times the least distance. Where the boundary bends, the last
    step may go too far; it is cut to where the rival's leads before and after it say that the boundary was crossed, and
    the overshoot. One forward pass in each step, and one backward pass for each of the ``candidates`` likeliest rivals
    (None: for all); one more forward pass to look at what was cut.
    """
    assert isinstance(f.of, Goal)
    best = Found.nothing(region.centre)
    a = _Walking.of(rows, region, None, torch.zeros_like(rows), best.margin)
    g, first = f.to(of=Boundaries(f.of, candidates)), best.margin
    for step in range(steps + 1):
        told, slopes = g.grad(a.z, a.rows) if step < steps else (g.value(a.z, a.rows), a.z[:, None])
        margin, leads = told[:, 0].to(a.z), told[:, 1:].to(a.z)
        if step == 0:
            first = -margin
            warn_if_flat(margin, slopes.flatten(1))
        last, best = best.at(a.index), best.put(a.index, Found(a.z, margin, a.region.size(a.z)))
        crossed = (1 + overshoot) * a.lead / (a.lead - leads.gather(1, a.rival[:, None]).squeeze(1))
        cut = ((margin > 0) & (crossed > 0) & (crossed < 0.999)).nonzero().squeeze(1)
        if len(cut):
            z = torch.lerp(last.z[cut], a.z[cut], crossed[cut, None].to(a.z))
            shorter = Found(z, f.value(z, a.rows[cut]), a.region.at(cut).size(z))
            best = best.put(a.index[cut], best.at(a.index[cut]).smaller(shorter))
        going = ~(margin > 0) & slopes.any(2).any(1)
        a, leads, slopes = a.at(going), leads[going], slopes[going]
        if step == steps or not len(a):
            break
        rival = nearest(a.region, a.z, leads, slopes)
        lead, slope = theirs(rival, leads, slopes)
        z = toward(a.region, a.z, lead, slope, overshoot, first[a.index])
        a = a.to(z=z, rival=rival, lead=lead)
    return best


def superdeepfool(
    f: Probe,
    region: Region,
    rows: Tensor,
    steps: int,
    overshoot: float,
    candidates: int | None = None,
    start: Tensor | None = None,
) -> Found:
    """DeepFool until the goal is reached, then straight from the centre to the boundary found there, and so on.

    SDF(inf, 1) of Abdollahpoor et al. (arXiv 2303.12481), algorithm 2, in any norm and box. Where the goal is reached,
    the gradient of the winner's lead tells where its boundary is and which way it faces; the least move from the centre
    meets it at a right angle, as the nearest point does. The pass that tells whether the goal is reached serves the
    next step, of either kind. A row leaves when it has come back no nearer than before by a
    thousandth; its best point is then drawn back straight towards the centre. To ``start`` at a point found elsewhere
    is to polish it.
    """
    assert isinstance(f.of, Goal)
    best = Found.nothing(region.centre)
    a, g, first = Active.of(rows, region, start), f.to(of=Boundaries(f.of, candidates)), best.margin
    for step in range(steps + 1):
        leads, slopes = g.grad(a.z, a.rows) if step < steps else (g.value(a.z, a.rows), a.z[:, None])
        now, last = Found(a.z, leads[:, 0], a.region.size(a.z)), best.at(a.index)
        if step == 0:
            first = -now.margin
            warn_if_flat(now.margin, slopes.flatten(1))
        best = best.put(a.index, last.smaller(now))
        going = (~now.success | ~(now.size > 0.999 * last.size)) & slopes.any(2).any(1)
        a, leads, slopes, reached = a.at(going), leads[going, 1:], slopes[going], now.success[going]
        if step == steps or not len(a):
            break
        rival = torch.where(reached, leads.argmax(1), nearest(a.region, a.z, leads, slopes))
        lead, slope = theirs(rival, leads, slopes)
        home, ahead = a.region.centre, toward(a.region, a.z, lead, slope, overshoot, first[a.index])
        gain = (1 + 1e-6) * ((slope * (a.z - home)).sum(1) - lead)  # on which side is not for rounding to say
        back = home + region.norm.least(slope, gain, a.region.room(home, slope))
        a = a.to(z=torch.where(reached[:, None], a.region.clip(back), ahead))
    return shrunk(f, region, rows, best)


class DeepFool(Attack):
    """The nearest boundary, step by step: quick, and a good first estimate of how near another class lies.

    Moosavi-Dezfooli, Fawzi, Frossard (CVPR 2016), arXiv 1511.04599. The steps know the box, and do not depend on the
    units of the inputs.

    Args:
        steps: at most; a row leaves when it has reached the goal.
        overshoot: how much further than to the boundary each step goes, in shares of its length.
        candidates: how many rivals are looked at, the likeliest first, at one backward pass each; None: all.

    Further arguments as for :class:`Attack`; ``loss_func`` plays no part.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.4]])
    >>> result = DeepFool(model, bounds=(0, 1), norm="Linf", overshoot=0.02).run(x, torch.tensor([0]))
    >>> round(float(result.distance), 3)  # 1.02 times 0.2
    0.204
    """

    minimal = True
    norms = ("L2", "Linf", "L1")

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 50,
        overshoot: float = 0.02,
        candidates: int | None = 10,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        whole("steps", steps, 1)
        if candidates is not None:
            whole("candidates", candidates, 1)
        if not 0 <= overshoot < torch.inf:
            raise ValueError(f"overshoot must be a share of the way, 0 or more, got {overshoot}; 0.02 is usual")
        self.steps, self.overshoot, self.candidates = steps, overshoot, candidates

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        return deepfool(f, region, rows, self.steps, self.overshoot, self.candidates)


class SuperDeepFool(DeepFool):
    """DeepFool that returns to the boundary at a right angle: nearer points for a few more steps.

    Abdollahpoor, Moosavi-Dezfooli, Frossard and others, arXiv 2303.12481. Arguments as for :class:`DeepFool`.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.2]])
    >>> result = SuperDeepFool(model, bounds=(0, 1), norm="Linf").run(x, torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.3
    """

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        return superdeepfool(f, region, rows, self.steps, self.overshoot, self.candidates)

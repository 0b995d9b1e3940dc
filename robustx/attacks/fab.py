"""Fast adaptive boundary attacks: along the boundary to the point of it that is nearest to the input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Boundaries, Goal, Loss
from ..perturb.region import Region
from .base import Active, Attack, warn_if_flat
from .deepfool import nearest, theirs
from .found import Found, shrunk
from .gradient import rivals
from .search import sure


def fab(
    f: Probe,
    region: Region,
    rows: Tensor,
    steps: int,
    start: Tensor | None = None,
    candidates: int | None = None,
    overshoot: float = 0.05,
    bias: float = 0.1,
    backward: float = 0.9,
    stop: bool = False,
) -> Found:
    """From where it is, and from the centre, straight to the nearest linearised boundary; the next point lies between.

    Croce, Hein (ICML 2020), algorithm 1, in the box: both moves are the least that reach the half-space, ``overshoot``
    further (their eta - 1). The move from the centre has the weight of the other's share in their lengths, at most
    ``bias`` (their alpha_max). A point that reaches the goal is first drawn back to the share ``backward`` of its way
    (their beta); the gradient at the point itself tells the boundary there, too. So one forward pass in each step is
    enough, and one backward pass for each of the ``candidates`` likeliest rivals (None: for all) or for the only
    boundary. With ``stop`` a row leaves once it has a point within its radius.
    """
    assert isinstance(f.of, Goal)
    best = Found.nothing(region.centre)
    a, g = Active.of(rows, region, start), f.to(of=Boundaries(f.of, candidates))
    for step in range(steps + 1):
        told, slopes = g.grad(a.z, a.rows) if step < steps else (g.value(a.z, a.rows), a.z[:, None])
        now = Found(a.z, told[:, 0].to(a.z), a.region.size(a.z))
        if step == 0 and start is None:
            warn_if_flat(now.margin, slopes.flatten(1))
        best = best.put(a.index, best.at(a.index).smaller(now))
        going = now.success | slopes.any(2).any(1)
        if stop:
            going &= ~(now.success & (now.size <= a.region.radius))
        a, leads, slopes, reached = a.at(going), told[going, 1:].to(a.z), slopes[going], now.success[going]
        if step == steps or not len(a):
            break
        rival = nearest(a.region, a.z, leads, slopes)
        lead, slope = theirs(rival, leads, slopes)
        home = a.region.centre
        z = torch.where(reached[:, None], torch.lerp(home, a.z, backward), a.z)
        here, there = (onto(a.region, p, lead + (slope * (p - a.z)).sum(1), slope) for p in (z, home))
        near, far = region.norm.size(here), region.norm.size(there)
        share = (near / (near + far)).nan_to_num().clamp(max=bias)[:, None]
        z = torch.lerp(z + (1 + overshoot) * here, home + (1 + overshoot) * there, share)
        a = a.to(z=a.region.clip(z))
    return best


def onto(region: Region, z: Tensor, lead: Tensor, slope: Tensor) -> Tensor:
    """The least move in the box from ``z`` [N, D], on either side of it, to where a linear ``lead`` [N] is zero."""
    way = torch.where((lead > 0)[:, None], -slope, slope)
    return region.norm.least(way, lead.abs(), region.room(z, way))


class FAB(Attack):
    """The nearest point of another class, by steps along the boundary; exact for affine models.

    Croce, Hein (ICML 2020), arXiv 1907.02044; with ``targets`` FAB-T of Croce, Hein, "Reliable evaluation" (ICML 2020),
    section 4. What a run finds is drawn back straight towards the input, by values only. Examples of which nothing was
    found are started anew from a point that reaches the goal for sure, where there is one.

    Args:
        steps: of each run.
        restarts: runs; later ones start at random, at half the best distance so far at most.
        targets: look at the boundary to each of this many other classes in turn, the likeliest first, at one backward
            pass in each step, instead of at all of them together.
        candidates: of how many rivals a step looks at the boundaries, the likeliest first; None: of all.
        overshoot: how much further than to the boundary a move goes, in shares of its length.
        bias: the largest weight of the move from the input itself.
        backward: the share of the way from the input at which the search goes on after it has reached the goal.
        early_stop: leave an example alone once a point within ``eps`` is known, for evaluations at one budget: then
            the distance is not the least that it would find, and ``eps`` is needed.

    Further arguments as for :class:`Attack`; ``loss_func`` plays no part.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.2]])
    >>> result = FAB(model, bounds=(0, 1), norm="L1", steps=20).run(x, torch.tensor([0]))
    >>> round(float(result.distance), 3)
    0.6
    """

    minimal = True
    norms = ("Linf", "L2", "L1")

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        restarts: int = 1,
        targets: int | None = None,
        candidates: int | None = None,
        overshoot: float = 0.05,
        bias: float = 0.1,
        backward: float = 0.9,
        early_stop: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        whole("steps", steps, 1)
        whole("restarts", restarts, 1)
        for name, count in (("targets", targets), ("candidates", candidates)):
            if count is not None:
                whole(name, count, 1)
        for name, share, most in (("overshoot", overshoot, torch.inf), ("bias", bias, 1), ("backward", backward, 1)):
            if not 0 <= share <= most:
                raise ValueError(f"{name} must be a share between 0 and {most}, got {share}")
        self.steps, self.restarts, self.targets, self.candidates = steps, restarts, targets, candidates
        self.overshoot, self.bias, self.backward, self.early_stop = overshoot, bias, backward, early_stop
        self.minimal = not early_stop  # type: ignore[misc]  # else it is what all of them are

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = self._run(f, region, rows, Found.nothing(region.centre), None)
        lost = (~best.success).nonzero().squeeze(1)
        if len(lost) and not self.early_stop:
            near = region.at(lost)
            begun = sure(f, near, rows[lost], noise.at(lost))
            best = best.put(lost, self._run(f, near, rows[lost], begun, begun.z))
        for restart in range(1, self.restarts):
            radius = torch.minimum(best.size, region.radius) / 2
            left = radius.isfinite().nonzero().squeeze(1)
            near = region.at(left)
            start = near.to(radius=radius[left]).draw(noise.again(restart).at(left))
            best = best.put(left, self._run(f, near, rows[left], best.at(left), start))
        within = best.success & (best.size <= region.radius)
        return Found.nothing(region.centre).where(within, best) if self.early_stop else best

    def _run(self, f: Probe, region: Region, rows: Tensor, best: Found, start: Tensor | None) -> Found:
        """The nearest points after one more run, or one towards each of the rivals."""
        found = Found.nothing(region.centre)
        for g in [f] if self.targets is None else rivals(f, rows, self.targets):
            within = best.smaller(found)
            left = (~(within.success & (within.size <= region.radius) & self.early_stop)).nonzero().squeeze(1)
            if not len(left):
                break
            part = fab(
                g,
                region.at(left),
                rows[left],
                self.steps,
                None if start is None else start[left],
                self.candidates,
                self.overshoot,
                self.bias,
                self.backward,
                self.early_stop,
            )
            found = found.put(left, found.at(left).smaller(part))
        return best.smaller(found if self.early_stop else shrunk(f, region, rows, found))

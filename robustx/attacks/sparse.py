"""Sparse attacks: as few changed elements as can be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Boundaries, Goal, Leave, Loss
from ..perturb.norms import L2
from ..perturb.region import Region
from .adam import Adaptive, fading
from .base import Active, Attack, warn_if_flat
from .deepfool import deepfool
from .found import Found, shrunk
from .gradient import rivals
from .search import assured


def ranks(f: Probe, region: Region, rows: Tensor, z: Tensor) -> Tensor:
    """The place of each element of ``z`` among those that moved, by what its move gains, the most first [N, D].

    What it gains is its gradient times its move. Elements that did not move come last.
    """
    move = z - region.centre
    gain = torch.where(move == 0, -torch.inf, f.grad(z, rows)[1] * move)
    return gain.argsort(dim=1, descending=True, stable=True).argsort(1)


def fewer(f: Probe, region: Region, rows: Tensor, found: Found) -> Found:
    """Each point that succeeded, with as many elements put back as it can spare, those first whose moves gain least.

    As many as can be are found by bisection: one gradient, and values.
    """
    left = (found.success & (found.z != region.centre).sum(1).gt(1)).nonzero().squeeze(1)
    if not len(left):
        return found
    region, best, some = region.at(left), found.at(left), rows[left]
    rank, low, high = ranks(f, region, some, best.z), torch.zeros_like(some), (best.z != region.centre).sum(1)
    while True:
        open_ = (high - low > 1).nonzero().squeeze(1)
        if not len(open_):
            return found.put(left, best)
        middle = (low + high)[open_] // 2
        near = region.at(open_)
        z = torch.where(rank[open_] < middle[:, None], best.z[open_], near.centre)
        margin = f.value(z, some[open_])
        good = margin > 0
        low[open_], high[open_] = torch.where(good, low[open_], middle), torch.where(good, middle, high[open_])
        best = best.put(open_, best.at(open_).where(good, Found(z, margin, near.size(z))))


@dataclass(frozen=True, eq=False)
class _Thresholding(Adaptive):
    """Rows whose elements are put back where they moved less than ``threshold`` [n] of the box.

    ``scale`` [n] makes the first gradient of each row have a largest entry of one.
    """

    threshold: Tensor
    scale: Tensor


def sigma_zero(f: Probe, region: Region, rows: Tensor, steps: int, sigma: float, threshold: float) -> Found:
    """Descends on max(-margin, 0) + mean u^2 / (u^2 + sigma), a smooth count, and puts back what moved too little.

    Cina et al. (ICLR 2025), algorithm 1; u is a move as a share of the box. The threshold falls while a row does not
    reach the goal and rises while it does. Beside the original, the goal's gradient is scaled by its first largest
    entry, so that the units of logits do not matter. Rows with one changed element leave: there are none with fewer.
    """
    best, d = Found.nothing(region.centre), region.centre.shape[1]
    one = torch.ones_like(region.centre[:, 0])
    a = _Thresholding.fresh(rows, region, None, threshold * one, one)
    for step in range(steps):
        margin, g = f.grad(a.z, a.rows)
        if not step:
            warn_if_flat(margin, g)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, a.region.size(a.z))))
        going = best.size[a.index] > 1
        a, margin, g = a.at(going), margin[going], g[going]
        if not len(a):
            break
        width = a.region.room(a.region.low, torch.ones_like(a.z))
        g = g * width
        if not step:
            a = a.to(scale=g.abs().amax(1).clamp(min=torch.finfo(g.dtype).tiny))
        u = (a.z - a.region.centre) / width.clamp(min=torch.finfo(g.dtype).tiny)
        down = 2 * sigma * u / (u.square() + sigma).square() / d
        down = down - torch.where(margin > 0, 0, 1 / a.scale)[:, None] * g
        down = down / down.abs().amax(1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
        rate = 0.1 + 0.9 * fading(step, steps)
        limit = (a.threshold + torch.where(margin > 0, 0.01, -0.01) * rate).clamp(0, 1)
        a, move = a.told(down, rate)
        z = a.region.clip(a.z + move * width)
        kept = (z - a.region.centre).abs() >= limit[:, None] * width
        a = a.to(z=torch.where(kept, z, a.region.centre), threshold=limit)
    return best


class SigmaZero(Attack):
    """Sigma-zero: as few changed elements as a descent on a smooth count finds.

    Cina et al. (ICLR 2025), arXiv 2402.01879. What it found gives back the elements that it can spare. Arguments as for
    :class:`Attack`; ``loss_func`` is the margin unless another is given.

    Args:
        steps: gradient steps.
        sigma: moves whose square (as a share of the box) is well above it count as one.
        threshold: moves below that share of the box are undone, at first.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    >>> _ = model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> result = SigmaZero(model, bounds=(0, 1), steps=50).run(torch.tensor([[0.8, 0.2, 0.5]]), torch.tensor([0]))
    >>> result.adversarial[0, 2].item(), result.distance.item()
    (0.5, 1.0)
    """

    minimal = True
    norms = ("L0",)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 300,
        sigma: float = 1e-3,
        threshold: float = 0.3,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.steps, self.sigma, self.threshold = whole("steps", steps, 1), sigma, threshold

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        found = sigma_zero(f, region, rows, self.steps, self.sigma, self.threshold)
        return fewer(f, region, rows, assured(f, region, rows, noise, found))


@dataclass(frozen=True, eq=False)
class _Drawing(Active):
    """Rows that change one element after the other, by draws of their own."""

    noise: Noise


def vfga(f: Probe, region: Region, rows: Tensor, noise: Noise, draws: int) -> Found:
    """Changes one element at a time: the best of ``draws`` random moves up of one element, and as many down of another.

    Hajri et al. (arXiv 2011.12423), algorithm 2. The two are those whose moves to the walls of the box would gain most;
    moves are folded normal draws, in units of the room. Rows leave once they reach the goal, or may change no more.
    """
    best, inf = Found.nothing(region.centre), torch.inf
    a = _Drawing.of(rows, region, None, noise)
    for step in range(region.centre.shape[1]):
        margin, g = f.grad(a.z, a.rows)
        if not step:
            warn_if_flat(margin, g)
        still = a.z == a.region.centre
        going = ~(margin > 0) & ((~still).sum(1) < a.region.radius) & a.region.usable(a.z, g).any(1)
        a, g, still = a.at(going), g[going], still[going]
        if not len(a):
            break
        up, down = (a.region.room(a.z, way * torch.ones_like(g)) for way in (1, -1))
        ups = torch.where(still & (up > 0), g * up, -inf).argmax(1, keepdim=True)
        downs = torch.where(still & (down > 0), -g * down, -inf).argmax(1, keepdim=True)
        share = a.noise.normal(2 * draws, g).abs().clamp(max=1)
        element = torch.cat([ups.expand(-1, draws), downs.expand(-1, draws)], 1)
        room = torch.cat([up.gather(1, ups).expand(-1, draws), -down.gather(1, downs).expand(-1, draws)], 1)
        place = a.z.gather(1, element) + share * room

        def moved(
            part: slice, a: _Drawing = a, element: Tensor = element, place: Tensor = place
        ) -> tuple[Tensor, Tensor]:
            of = torch.arange(part.start, part.stop, device=a.rows.device) // (2 * draws)
            z = a.z[of].scatter(1, element.reshape(-1, 1)[part], place.reshape(-1, 1)[part])
            return a.region.at(of).clip(z), a.rows[of]

        margins = torch.cat([v for _, v in f.values(place.numel(), moved)]).reshape(place.shape)
        margin, chosen = margins.nan_to_num(-inf, inf, -inf).max(1, keepdim=True)
        z = a.region.clip(a.z.scatter(1, element.gather(1, chosen), place.gather(1, chosen)))
        a = a.to(z=z)
        best = best.put(a.index, best.at(a.index).smaller(Found(z, margin.squeeze(1), a.region.size(z))))
    return best


class VFGA(Attack):
    """Voting folded Gaussian attack: one element after the other, by the best of random moves.

    Hajri et al., arXiv 2011.12423. What it found gives back the elements that it can spare. Arguments as for
    :class:`Attack`; ``loss_func`` is the margin unless another is given.

    Args:
        draws: random moves that are tried for each of the two elements of a step.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    >>> _ = model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> VFGA(model, bounds=(0, 1)).run(torch.tensor([[0.8, 0.2, 0.5]]), torch.tensor([0])).distance.item()
    1.0
    """

    minimal = True
    norms = ("L0",)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        draws: int = 10,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.draws = whole("draws", draws, 1)

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        return fewer(f, region, rows, vfga(f, region, rows, noise, self.draws))


def jsma(f: Probe, region: Region, rows: Tensor, theta: float) -> Found:
    """Moves the two elements that gain most by ``theta`` of the box, again and again.

    Papernot et al. (EuroS&P 2016), algorithm 3. Of probabilities, what a pair gives to the target it takes from all
    others together, so that the most salient pair are the two with the largest gradients: there is no need to try all
    pairs. Here what counts is the gain within the box, of whatever is climbed; an element goes on in the direction of
    its first move, up or down, and is out at the wall.
    """
    best, a = Found.nothing(region.centre), Active.of(rows, region)
    first = True
    while True:
        margin, g = f.grad(a.z, a.rows)
        if first:
            warn_if_flat(margin, g)
        first, size = False, a.region.size(a.z)
        best = best.put(a.index, best.at(a.index).smaller(Found(a.z, margin, size)))
        g = a.region.usable(a.z, torch.where(g * (a.z - a.region.centre) >= 0, g, 0))
        going = ~(margin > 0) & (size < a.region.radius) & g.any(1)
        a, g = a.at(going), g[going]
        if not len(a):
            return best
        width = a.region.room(a.region.low, torch.ones_like(g))
        length = torch.minimum(theta * width, a.region.room(a.z, g))
        pair = (g.abs() * length).topk(min(2, g.shape[1]), dim=1).indices
        move = torch.zeros_like(g).scatter(1, pair, (g.sign() * length).gather(1, pair))
        a = a.to(z=a.region.clip(a.z + move))


class JSMA(Attack):
    """Jacobian-based saliency map attack: the most salient pair of elements, again and again.

    Papernot et al. (EuroS&P 2016), arXiv 1511.07528. Untargeted, each of the likeliest other classes is a target in
    turn, and the point that cost least is kept; a target is given up once it costs as much. What was found gives
    back the elements that it can spare. Arguments as for :class:`Attack`; ``loss_func`` is the margin unless another is
    given (``"ce"`` is the paper's).

    Args:
        theta: how far an element moves at a time, as a share of the box.
        targets: at most so many other classes, if untargeted.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    >>> _ = model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> JSMA(model, bounds=(0, 1)).run(torch.tensor([[0.8, 0.2, 0.5]]), torch.tensor([0])).distance.item()
    1.0
    """

    minimal = True
    norms = ("L0",)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        theta: float = 1.0,
        targets: int = 9,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        if not 0 < theta <= 1:
            raise ValueError(f"theta must be a share of the box, above 0 and at most 1, got {theta!r}")
        self.theta, self.targets = theta, whole("targets", targets, 1)

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = Found.nothing(region.centre)
        for g in rivals(f, rows, self.targets) if isinstance(f.of, Leave) else [f]:
            most = torch.minimum(region.radius, best.size - 1)  # pairs may be one over, and give it back
            left = (most > 0).nonzero().squeeze(1)
            if not len(left):
                break
            near = region.at(left).to(radius=most[left])
            found = fewer(f, near, rows[left], jsma(g, near, rows[left], self.theta))
            best = best.put(left, best.at(left).smaller(found))
        return best


def sparsefool(
    f: Probe,
    region: Region,
    rows: Tensor,
    steps: int,
    boldness: float,
    inner: int = 50,
    overshoot: float = 0.02,
    candidates: int | None = None,
) -> Found:
    """Goes to the boundary that DeepFool meets, taken for a plane, by the least move in the region's norm and box.

    Modas, Moosavi-Dezfooli, Frossard (CVPR 2019), algorithms 1 and 2: ``boldness`` times as far as to the plane, and on
    from there until the goal is reached. Their walk from coordinate to coordinate, the steepest first and each up to
    the wall, is the least move of L1 to a half-space within a box.
    """
    assert isinstance(f.of, Goal)
    best, a = Found.nothing(region.centre), Active.of(rows, region)
    for _ in range(steps):
        met = deepfool(f, a.region.to(centre=a.z, norm=L2()), a.rows, inner, overshoot, candidates)
        a, z = a.at(met.success), met.z[met.success]
        if not len(a):
            break
        leads, slopes = f.to(of=Boundaries(f.of, candidates)).grad(z, a.rows)
        slope = slopes[torch.arange(len(a), device=z.device), leads[:, 1:].argmax(1)]
        gain = boldness * (slope * (z - a.z)).sum(1)
        z = a.region.clip(a.z + region.norm.least(slope, gain, a.region.room(a.z, slope)))
        margin = f.value(z, a.rows)
        best = best.put(a.index, best.at(a.index).smaller(Found(z, margin, a.region.size(z))))
        a = a.to(z=z).at(~(margin > 0))
        if not len(a):
            break
    return best


class SparseFool(Attack):
    """SparseFool: to the plane that DeepFool's boundary seems to be, by as few elements as that takes.

    Modas, Moosavi-Dezfooli, Frossard (CVPR 2019), arXiv 1811.02248. What it found is drawn back (L1), or gives back the
    elements that it can spare (L0). Arguments as for :class:`Attack`; ``loss_func`` plays no part.

    Args:
        steps: at most so many planes.
        boldness: how many times as far as to the plane a step goes, at least 1; larger ones need fewer steps, and
            more elements.
        candidates: how many rivals DeepFool looks at, the likeliest first; None: all.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    >>> _ = model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> result = SparseFool(model, bounds=(0, 1), norm="L0").run(torch.tensor([[0.8, 0.2, 0.5]]), torch.tensor([0]))
    >>> result.distance.item()
    1.0
    """

    minimal = True
    norms = ("L1", "L0")

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 20,
        boldness: float = 1.5,
        candidates: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        if not boldness >= 1:
            raise ValueError(f"boldness must be a number of at least 1, got {boldness!r}")
        self.steps, self.boldness = whole("steps", steps, 1), boldness
        self.candidates = None if candidates is None else whole("candidates", candidates, 1)

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        found = sparsefool(f, region, rows, self.steps, self.boldness, candidates=self.candidates)
        found = assured(f, region, rows, noise, found)
        return fewer(f, region, rows, found) if region.norm.unit else shrunk(f, region, rows, found)

"""Masks over many features at once: random ones, quasi-random ones, and the best one of a size."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.packing import Tensors, finest
from ..engine.progress import progress
from ..engine.randomness import Noise
from ..engine.scores import Each
from ..perturb.features import Features, Grid, blocks, features_of, hats
from ..perturb.references import through
from .base import Attribution, PerturbationAttribution
from .coalitions import Absent, Coalitions

MOST_DIMENSIONS = 21_201  # of scipy's Sobol sequences
HEAVIEST, GROWTH, LENGTH = 300.0, 4, 0.05  # the weight of the area beside the score, how it grows; steps

# --- random masks -----------------------------------------------------------------------------------------


def rise(players: Coalitions, stays: Absent, samples: int, keep: float, what: str = "", show: bool = False) -> Tensor:
    """The mean score of the masks that keep a feature [B, ..., F]: sum over masks of score times mask, over N E[mask].

    Petsiuk, Das, Saenko (BMVC 2018), eq. 6.

    Args:
        players: who gives way to what.
        stays: the masks, (their numbers [n], examples [n]) -> how far each feature stays there [n, F].
        samples: N, how many masks.
        keep: E[mask], how far a feature stays in the mean.
    """
    answers = players.ask(samples, lambda k, rows: 1 - stays(k, rows), what, show)
    start = players.all_there
    total = start.new_zeros(*start.shape, players.features.count, dtype=torch.promote_types(start.dtype, torch.float32))
    flat = total.view(len(start), prod(start.shape[1:]), players.features.count)
    for a in answers:
        scores = flat.new_zeros(len(a.rows), *flat.shape[:2])  # each answer at its example, so that one product sums up
        scores[torch.arange(len(a.rows)), a.rows] = a.values.to(scores).reshape(scores[:, 0].shape)
        flat += (scores.flatten(1).T @ (1 - a.absent).to(scores)).view_as(flat)
    return (total / (samples * keep)).to(start.dtype if start.is_floating_point() else total.dtype)


@dataclass(frozen=True)
class Shifted:
    """Masks of places: a coarse grid of cells that stay or not, enlarged by interpolation, and cut out at random.

    Petsiuk et al., section 3.2. Tables, which have no places, keep or lose each column by itself. Several tensors have
    a grid each.

    Args:
        inputs: the tensors [B, C, ...].
        cells: of the grid, along each axis.
        keep: the probability that a cell stays.
    """

    inputs: Tensors
    cells: int
    keep: float

    @property
    def draws(self) -> int:
        """U: for each tensor its cells (a row more along each axis, to be cut off), and a shift for each axis."""
        return sum(prod(c + 1 for c in cells) + len(cells) if cells else n for n, cells in self._grids)

    @property
    def _grids(self) -> list[tuple[int, list[int]]]:
        """Elements that a table has, and the cells along each axis of anything else."""
        return [(prod(t.shape[1:]), [min(self.cells, n) for n in t.shape[2:] if n]) for t in self.inputs]

    def __call__(self, u: Tensor) -> Tensor:
        masks = []
        for t, (n, cells) in zip(self.inputs, self._grids, strict=True):
            if not cells:
                drawn, u = u[:, :n], u[:, n:]
                masks.append((drawn < self.keep).to(u))
                continue
            many = prod(c + 1 for c in cells)
            drawn, shifts, u = u[:, :many], u[:, many : many + len(cells)], u[:, many + len(cells) :]
            mask = (drawn < self.keep).to(u).reshape(len(u), *(c + 1 for c in cells))
            for count, length, shift in zip(cells, t.shape[2:], shifts.unbind(1), strict=True):
                size = ceil(length / count)
                places = torch.arange(length, device=u.device) + (shift * size).floor()[:, None] + 0.5
                weights = hats(places / size - 0.5, count + 1)  # [n, cells, places]
                mask = torch.einsum("nc...,ncl->n...l", mask, weights)  # an axis goes, another comes at the end
            masks.append(mask.flatten(1))
        return torch.cat(masks, 1)


class RISE(PerturbationAttribution):
    """The mean score of random masks that keep a place; black boxes are welcome.

    Petsiuk, Das, Saenko (BMVC 2018). What has no effect is shown the mean score of all masks, not zero: compare places,
    or subtract the mean.

    >>> import torch
    >>> spot = torch.zeros(8, 8)
    >>> spot[2:4, 5:7] = 1
    >>> a = RISE(lambda x: (x[:, 0] * spot).sum((1, 2))).attribute(torch.ones(1, 1, 8, 8), n_samples=500, cells=4)
    >>> divmod(int(a[0, 0].argmax()), 8) in [(2, 5), (2, 6), (3, 5), (3, 6)]
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 1000,
        cells: int = 7,
        keep: float = 0.5,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; see :class:`FeatureAblation`.

        Args:
            baselines: what places give way to; Petsiuk et al. take zero.
            feature_mask: features that stay or go as a whole, instead of smooth masks of places.
            n_samples: N, how many masks.
            cells: of the coarse grid, along each axis behind the channels. Few make large, smooth masks.
            keep: the probability that a cell stays.
            seed: of the draws, which depend on an example's content and not on its batch.

        Raises:
            ArgumentError: an argument is out of its range.
        """
        whole("n_samples", n_samples, 1)
        if not 0 < keep < 1:
            raise ArgumentError(f"keep must be between 0 and 1, got {keep!r}")
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        if feature_mask is None:
            features: Features = blocks(f.inputs)
            masks: Callable[[Tensor], Tensor] = (places := Shifted(f.inputs, whole("cells", cells, 1), keep))
            draws = places.draws
        else:
            features = features_of(feature_mask, f.inputs, door.names)
            masks, draws = (lambda u: (u < keep).to(u)), features.count
        players = Coalitions(f, features, through(baselines))
        like = finest(torch.zeros(0, device=f.device))

        def stays(k: Tensor, rows: Tensor) -> Tensor:
            names = [f"{players.names[row]}/{number}" for row, number in zip(rows.tolist(), k.tolist(), strict=True)]
            return masks(Noise(seed, "rise", names).uniform(draws, like))

        return door.out(players.maps(rise(players, stays, n_samples, keep, self._title, show_progress)))


# --- quasi-random masks -----------------------------------------------------------------------------------


def sobol_indices(players: Coalitions, samples: int, seed: int, what: str = "", show: bool = False) -> Tensor:
    """Total Sobol indices [B, ..., F]: which part of the score's variance a feature has a hand in, if all are open at
    random between shut and wide.

    Fel, Cadène, Chalvidal, Cord, Vigouroux, Serre (NeurIPS 2021), section 3.2; Jansen's estimator (Computer Physics
    Communications 117, 1999) on a scrambled Sobol sequence: N (F + 1) scores. Zero where the score does not vary.

    Raises:
        ArgumentError: ``samples`` is no power of two, or there are more than 10600 features.
    """
    n, device = players.features.count, players.f.device
    if 2 * n > MOST_DIMENSIONS:
        raise ArgumentError(
            f"Sobol sequences have up to {MOST_DIMENSIONS} dimensions, two for each feature, got {n} features; join "
            "them by feature_mask, or by fewer cells"
        )
    one, other = (part.to(device) for part in _sequence(2 * n, samples, seed).tensor_split(2, 1))

    def absent(k: Tensor, rows: Tensor) -> Tensor:
        """Number 0, F + 1, ...: a point; each of the F behind it: with a single feature of the other point."""
        point, swapped = k // (n + 1), k % (n + 1) - 1
        there = (swapped[:, None] == torch.arange(n, device=k.device)).to(one)
        return torch.lerp(one[point], other[point], there)

    answers = players.ask(samples * (n + 1), absent, what, show)
    start = players.all_there
    base = finest(start.new_zeros(len(start), samples, *start.shape[1:], dtype=torch.float32))
    squares = torch.zeros_like(base[:, :1]).repeat_interleave(n, 1)  # [B, F, ...]
    for a in answers:
        point, swapped, values = a.sets // (n + 1), a.sets % (n + 1) - 1, a.values.to(base)
        alone = swapped < 0
        base[a.rows[alone], point[alone]] = values[alone]
        changes = (values - base[a.rows, point])[~alone]
        squares.index_put_((a.rows[~alone], swapped[~alone]), changes.square(), accumulate=True)
    spread = (base - base.mean(1, keepdim=True)).square().sum(1, keepdim=True) / (samples - 1)
    found = torch.where(spread > 0, squares / (2 * samples * torch.where(spread > 0, spread, 1)), 0).movedim(1, -1)
    return found.to(start.dtype if start.is_floating_point() else found.dtype)


def _sequence(dimensions: int, count: int, seed: int) -> Tensor:
    """Scrambled points of a Sobol sequence [count, dimensions]."""
    from scipy.stats.qmc import Sobol

    if whole("n_samples", count, 2).bit_count() > 1:
        raise ArgumentError(f"n_samples must be a power of two, for points that fill the cube evenly, got {count}")
    if not dimensions:
        return torch.zeros(count, 0, dtype=torch.float64)
    points = Sobol(dimensions, seed=np.random.default_rng(seed)).random_base2(count.bit_length() - 1)
    return torch.from_numpy(points)


class SobolAttribution(PerturbationAttribution):
    """Which part of the score's variance a feature has a hand in, alone or with others, if all give way at random.

    Fel, Cadène, Chalvidal, Cord, Vigouroux, Serre (NeurIPS 2021). Attributions are not negative; what has no effect has
    zero. Their sum is 1 if features do not interact, and more if they do.

    >>> import torch
    >>> weight = torch.tensor([2.0, 1.0, 0.0])
    >>> SobolAttribution(lambda x: x @ weight).attribute(torch.ones(1, 3), n_samples=1024).round(decimals=2)
    tensor([[0.8000, 0.2000, 0.0000]])
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 32,
        cells: int = 8,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; see :class:`FeatureAblation`.

        Args:
            feature_mask: features; without, blocks of places.
            n_samples: N, a power of two; N (F + 1) scores are asked.
            cells: blocks along each axis behind the channels. Each column of a table is a feature.
            seed: of the points, which are the same for all examples.

        Raises:
            ArgumentError: an argument is out of its range, or there are too many features.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        given = feature_mask is not None
        features = features_of(feature_mask, f.inputs, door.names) if given else blocks(f.inputs, cells)
        players = Coalitions(f, features, through(baselines))
        return door.out(players.maps(sobol_indices(players, n_samples, seed, self._title, show_progress)))


# --- the best mask of a size ------------------------------------------------------------------------------


def extremal(players: Coalitions, area: float, soften: Callable[[Tensor], Tensor], steps: int, show: bool) -> Tensor:
    """How far each feature stays [B, F] in the mask of a given area that keeps the score highest.

    Fong, Patrick, Vedaldi (ICCV 2019), eq. 3: ascent on score(mask) less a growing weight times the distance of the
    mask's sorted values from those of a mask that is 1 on the area and 0 elsewhere. Scores are measured in the
    difference between everything there and nothing, so that weights and steps (Adam's) fit any model.

    Args:
        players: who gives way to what; the score is one number for each example.
        area: which part of the elements stays.
        soften: parameters in [0, 1] to masks, both [B, F].
        steps: of the ascent.
        show: draw a bar.
    """
    f, features = players.f, players.features
    b, d = f.point.shape
    p = f.point.new_ones(b, features.count)
    first, second, rank = torch.zeros_like(p), torch.zeros_like(p), torch.arange(d, device=p.device)
    goal = (rank >= d - round(area * d)).to(p)
    nothing = players.gates.value(torch.ones_like(p)) if b else f.score
    unit = (f.score - nothing).abs().clamp(min=torch.finfo(p.dtype).tiny).to(p)[:, None]
    with progress(steps, "Extremal Perturbation attribution", show) as more:
        for step in range(steps):
            with torch.enable_grad():
                p.requires_grad_()
                mask = soften(p)
                shown = features.spread(mask, f.everyone)
                lost = players.gates.grad(1 - mask.detach())[1] / unit
                height = (shown.detach() * 2**20).round()  # what differs by rounding is equal, and stays if it gains
                order = features.shown(-lost, f.everyone).argsort(dim=1, stable=True)
                order = order.gather(1, height.gather(1, order).argsort(dim=1, stable=True))
                distance = (shown - torch.zeros_like(shown).scatter(1, order, goal.expand(b, -1))).square().mean(1)
                weight = HEAVIEST * (step / steps) ** GROWTH
                (slope,) = torch.autograd.grad((mask * lost).sum() + weight * distance.sum(), p)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            way = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            p = (p.detach() - LENGTH * way).clamp(0, 1)
            more(1)
    return soften(p).detach()


def grown(inputs: Tensors, cells: int, sigma: float) -> Callable[[Tensor], Tensor]:
    """Makes smooth blobs of what stands on the grids of :class:`Grid`: each cell the softened maximum of all
    cells' values, weighed by a Gaussian of their distance.

    Fong et al., eq. 8 and 9, on the grid; temperature 1/20, as there. Tables stay as they are.
    """
    kernels: list[Tensor | None] = []
    for t in inputs:
        counts = [min(cells, n) for n in t.shape[2:]]
        axes = [torch.arange(c, device=t.device, dtype=torch.float32) for c in counts]
        if not axes:
            kernels.append(None)
            continue
        places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        away = (torch.cdist(places, places) - 1).clamp(min=0)
        kernels.append(torch.exp(-0.5 * (away / sigma).square()))

    def soften(p: Tensor) -> Tensor:
        sizes = [len(k) if k is not None else prod(t.shape[1:]) for k, t in zip(kernels, inputs, strict=True)]
        parts = []
        for part, kernel in zip(p.split_with_sizes(sizes, 1), kernels, strict=True):
            if kernel is not None:
                near = part[:, None] * kernel.to(part)  # [B, cell, cell]
                part = ((near * 20).softmax(2) * near).sum(2)
            parts.append(part)
        return torch.cat(parts, 1)

    return soften


class ExtremalPerturbation(Attribution):
    """The smooth mask of a given area that keeps the score highest: 1 where the input stays, 0 where it gives way.

    Fong, Patrick, Vedaldi (ICCV 2019). It needs gradients; see :func:`extremal`.

    >>> import torch
    >>> spot = torch.zeros(8, 8)
    >>> spot[2:5, 4:7] = 1
    >>> a = ExtremalPerturbation(lambda x: (x[:, 0] * spot).sum((1, 2))).attribute(torch.ones(1, 1, 8, 8), area=9 / 64)
    >>> bool((a * spot).sum() > 0.75 * a.sum())
    True
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        area: float = 0.1,
        n_steps: int = 200,
        cells: int = 16,
        sigma: float = 0.5,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Masks shaped like the inputs, in their dtypes.

        Args:
            baselines: what gives way to what; Fong et al. take ``blur()``.
            feature_mask: features that stay or go as a whole, instead of smooth masks of places.
            area: which part of the elements stays, above 0 and below 1.
            n_steps: of the ascent, a forward and a backward pass each.
            cells: of the grid on which the mask is made, along each axis behind the channels.
            sigma: how wide each cell reaches, in cells.
            internal_batch_size: most rows in one pass.

        Raises:
            ArgumentError: an argument is out of its range.
        """
        if not 0 < area < 1:
            raise ArgumentError(f"area must be above 0 and below 1, got {area!r}")
        whole("n_steps", n_steps, 1)
        if not sigma > 0:
            raise ArgumentError(f"sigma must be above 0, got {sigma!r}")
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        if feature_mask is None:
            features: Features = Grid.of(f.inputs, cells)
            soften = grown(f.inputs, cells, sigma)
        else:
            features, soften = features_of(feature_mask, f.inputs, door.names), torch.clone
        scores = f.of.apart(f.score.shape[1]) if isinstance(f.of, Each) and f.examples else [f.of]
        each = [Coalitions(f.to(of=one), features, through(baselines)) for one in scores]
        masks = torch.stack([extremal(players, area, soften, n_steps, show_progress) for players in each], 1)
        shown = features.spread(masks.flatten(0, 1), f.everyone.repeat_interleave(len(each)))
        return door.out(f.packing.unpack(shown.unflatten(0, masks.shape[:2]) if isinstance(f.of, Each) else shown))

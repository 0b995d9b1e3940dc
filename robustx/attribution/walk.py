"""Methods that walk other paths than the straight one, or share out otherwise what happens on the way."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.packing import Tensors, row_sums
from ..engine.probe import Probe
from ..engine.scores import Each
from ..engine.sites import Layer
from ..perturb.references import Reference, through
from .base import GradientAttribution, LayerAttribution
from .path import grid


@dataclass(frozen=True)
class Node:
    """Where the paths of some examples ``rows`` [n] are after ``step`` steps, and the score there.

    ``at`` [n, D], ``value`` [n], ``grad`` [n, D]. For several scores ``value`` is [n, T], ``grad`` [n, T, D] and ``at``
    [n, 1, D], or [n, T, D] where each score has a path of its own.
    """

    step: int
    rows: Tensor
    at: Tensor
    value: Tensor
    grad: Tensor


Path = Callable[[Probe, int], Iterator[Node]]
"""Asked with a probe and a number of steps: the nodes of every example's path in order, both ends included."""


# --- paths ------------------------------------------------------------------------------------------------


def straight_path(reference: Reference) -> Path:
    """From the reference to the examples in equal steps."""

    def walk(f: Probe, steps: int) -> Iterator[Node]:
        start = f.packing.pack(reference(f))
        return _known(f, steps, lambda t, rows: torch.lerp(start[rows], f.point[rows], t[:, None]))

    return walk


def blurred_path(max_sigma: float = 50.0) -> Path:
    """From the examples, blurred by ``max_sigma`` (in pixels), to the examples: details come in, the coarse ones first.

    Xu, Venugopalan, Sundararajan (CVPR 2020), section 3. The width of the blur falls with the square of what is left
    of the way: most of a picture changes where the blur is narrow, and what is integrated does not depend on the pace.

    Raises:
        ArgumentError: ``max_sigma`` is no positive number.
    """
    if not 0 < max_sigma < inf:
        raise ArgumentError(f"max_sigma must be a positive number of pixels, got {max_sigma!r}")

    def walk(f: Probe, steps: int) -> Iterator[Node]:
        scales = [ScaleSpace(t.to(f.packing.dtype)) for t in f.here]
        return _known(
            f, steps, lambda t, rows: f.packing.pack([s.blur(max_sigma * (1 - t) ** 2, rows) for s in scales])
        )

    return walk


def _known(f: Probe, steps: int, point: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Node]:
    """The nodes of a path that is known before: at ``point(t [n], rows [n])`` [n, D], for t from 0 to 1."""
    b = f.examples

    def query(part: slice) -> tuple[Tensor, Tensor]:
        step, rows = grid(part, b, f.point)
        return point(step.to(f.point) / steps, rows), rows

    for part, value, grad in f.grads((steps + 1) * b, query):
        at, rows = query(part)
        at = at.reshape(len(at), *(1,) * (grad.ndim - 2), -1)
        for step in range(part.start // b, -(-part.stop // b)):
            some = slice(max(step * b - part.start, 0), (step + 1) * b - part.start)
            yield Node(step, rows[some], at[some], value[some], grad[some])


class ScaleSpace:
    """Tensors [B, ...], blurred as much as is asked, along every axis behind the channels (or the only one of [B, L]).

    Heat that spreads over the grid and does not leave it (Lindeberg, IEEE TPAMI 1990): the discrete kernel that, like
    the Gaussian, makes no new extremum at any width. With mirrored edges cosines are its eigenvectors.
    """

    def __init__(self, x: Tensor) -> None:
        self.axes = range(min(2, x.ndim - 1), x.ndim) if x.ndim > 1 and x.numel() else range(0)
        self.waves = [_cosines(x.shape[axis]).to(x) for axis in self.axes]
        for axis, waves in zip(self.axes, self.waves, strict=True):
            x = _along(axis, x, waves)
        self.spectrum = x

    def blur(self, sigma: Tensor, rows: Tensor) -> Tensor:
        """Some of the examples, each as if by a Gaussian of its own standard deviation ``sigma`` [n], in elements."""
        x = self.spectrum[rows]
        for axis, waves in zip(self.axes, self.waves, strict=True):
            n = x.shape[axis]
            frequency = torch.arange(n, dtype=sigma.dtype, device=sigma.device) * pi / n
            left = torch.exp(-sigma[:, None].square() * (1 - torch.cos(frequency)))  # of each wave [n, L]
            x = _along(axis, x * left.reshape(len(x), *(1,) * (axis - 1), n, *(1,) * (x.ndim - axis - 1)), waves.T)
        return x


def _cosines(n: int) -> Tensor:
    """The waves of a mirrored grid, one a column [n, n]: an orthonormal basis (DCT-II)."""
    k = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(pi / n * (k[:, None] + 0.5) * k) * sqrt(2 / n)
    waves[:, :1] /= sqrt(2)
    return waves


def _along(axis: int, x: Tensor, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix).movedim(-1, axis)


def guided_path(reference: Reference, fraction: float = 0.25, max_dist: float = 0.02, anchors: int = 0) -> Path:
    """From the reference to the examples, in every step along the elements whose gradients are least just there.

    Kapishnikov, Venugopalan, Avci, Wedin, Terry, Bolukbasi (CVPR 2021), section 4: steep gradients that lie on the
    straight way by chance are noise in what is gathered there. Each step takes an equal part of the L1 distance, and
    every element goes from its reference to the example without turning back.

    Args:
        reference: where the path starts.
        fraction: of the elements, move together; the ones with the smallest gradients first.
        max_dist: how far an element may be ahead of the straight way or behind it, as a part of its own way. 0 is the
            straight way itself, 1 lets the gradients alone decide.
        anchors: points of the straight way, evenly spaced, that the path has to pass.

    Raises:
        ArgumentError: an argument is out of its range, or (asked with a probe) there are fewer steps than stretches
            between anchors.
    """
    if not 0 < fraction <= 1:
        raise ArgumentError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    if not 0 <= max_dist <= 1:
        raise ArgumentError(f"max_dist must be between 0 (the straight way) and 1, got {max_dist!r}")
    whole("anchors", anchors, 0)

    def walk(f: Probe, steps: int) -> Iterator[Node]:
        if anchors >= steps:
            raise ArgumentError(f"{anchors} anchors need at least {anchors + 1} steps, got n_steps={steps}")
        if isinstance(f.of, Each) and f.examples:
            yield from _side_by_side([walk(f.to(of=one), steps) for one in f.of.apart(f.score.shape[1])])
            return
        start = f.packing.pack(reference(f))
        length = (f.point - start).abs()
        gone = torch.zeros_like(start)  # the part of its own way that each element has behind it

        def node(step: int) -> Node:
            at = torch.lerp(start, f.point, gone)
            return Node(step, f.everyone, at, *f.grad(at))

        yield (here := node(0))
        for first, last in pairwise(round(k * steps / (anchors + 1)) for k in range(anchors + 2)):
            for step in range(first + 1, last + 1):
                alpha = step / steps
                low, high = max(first / steps, alpha - max_dist), min(last / steps, alpha + max_dist)
                if step == last:  # where all elements are on the straight way again, also where rounding misses it
                    gone = torch.full_like(gone, alpha)
                else:
                    gone = _easiest_first(gone.clamp(min=low), high, length, here.grad.abs(), fraction, 1 - alpha)
                yield (here := node(step))

    return walk


def _easiest_first(gone: Tensor, high: float, length: Tensor, effort: Tensor, fraction: float, left: float) -> Tensor:
    """``gone`` [B, D], further on until the part ``left`` of each row's whole length is left.

    Elements move up to ``high``, a ``fraction`` of them at a time (more where efforts are equal): those of least
    effort all the way, the last ones that are needed in proportion.
    """
    d = length.shape[1]
    room = (high - gone) * length
    need = ((1 - gone) * length).sum(1, keepdim=True) - left * length.sum(1, keepdim=True)
    effort, order = effort.masked_fill(room <= 0, inf).sort(1)
    reach = nn.functional.pad(room.gather(1, order).cumsum(1), (1, 0))  # if the first 0, 1, ..., D move [B, D + 1]
    begin = torch.zeros_like(order[:, :1])
    while True:
        last = (begin + int(fraction * (d - 1))).clamp(max=d - 1)
        end = torch.searchsorted(effort, effort.gather(1, last), right=True)
        short = (reach.gather(1, end) < need) & (end < d)
        if not short.any():
            break
        begin = torch.where(short, end, begin)
    place = torch.arange(d, device=order.device)
    before, within = reach.gather(1, begin), reach.gather(1, end) - reach.gather(1, begin)
    share = ((need - before) / within).nan_to_num(0).clamp(0, 1)
    moves = torch.where(place < begin, 1, torch.where(place < end, share, 0))
    return torch.lerp(gone, torch.full_like(gone, high), torch.zeros_like(gone).scatter(1, order, moves))


def _side_by_side(walks: Sequence[Iterator[Node]]) -> Iterator[Node]:
    """Several scores' own paths as one path of all of them."""
    for nodes in zip(*walks, strict=True):
        at, value, grad = (torch.stack([getattr(n, name) for n in nodes], 1) for name in ("at", "value", "grad"))
        yield Node(nodes[0].step, nodes[0].rows, at, value, grad)


# --- what happens on the way --------------------------------------------------------------------------------


def path_integral(f: Probe, path: Path, steps: int) -> tuple[Tensor, Tensor]:
    """Gradient times way along a path, by the trapezoid rule, and the score's rise from its start to its end.

    The attributions [B, D] ([B, T, D]) add up to the rise [B] ([B, T]) as steps get shorter, on a smooth path with the
    square of a step. (The papers take each step's first gradient alone.)
    """
    total = at = grad = f.point.new_zeros(0, f.point.shape[1])
    risen = f.point.new_zeros(0)
    for node in path(f, steps):
        rows = node.rows
        if not len(total):
            total, at, grad, risen = (_for_all(f, t) for t in (node.grad, node.at, node.grad, node.value))
        if node.step:
            total[rows] += (node.at - at[rows]) * (grad[rows] + node.grad) / 2
        at[rows], grad[rows] = node.at, node.grad
        _count_rise(risen, node, steps)
    return total, risen


def important_directions(f: Probe, path: Path, steps: int) -> tuple[Tensor, Tensor]:
    """Each step's change of the score, shared out by the squared gradients at its beginning; and the rise altogether.

    Yang, Wang, Bilgic (CVPR 2023), algorithm 1. The attributions [B, D] ([B, T, D]) add up to the rise [B] ([B, T])
    with any number of steps. What changes while the gradient is zero goes with the step before that has one, or else
    with the first; where the gradient is zero at every node there is no direction to give it, and it is missing.
    """
    total = direction = f.point.new_zeros(0, f.point.shape[1])
    since = risen = f.point.new_zeros(0)
    for node in path(f, steps):
        rows = node.rows
        if not len(total):
            total, direction = (_for_all(f, node.grad) for _ in range(2))
            since, risen = (_for_all(f, node.value) for _ in range(2))
        value = node.value.to(since)
        if not node.step:
            since[rows] = value  # the score where the present direction began to hold
        most = node.grad.abs().amax(-1, keepdim=True)
        square = (node.grad / most).square()  # 1 at most: a square of the gradient itself could vanish
        turns, held = most > 0, direction[rows].any(-1)
        total[rows] += torch.where(turns, direction[rows] * (value - since[rows])[..., None], 0)
        since[rows] = torch.where(turns.squeeze(-1) & held, value, since[rows])
        direction[rows] = torch.where(turns, square / square.sum(-1, keepdim=True), direction[rows])
        if node.step == steps:
            total[rows] += direction[rows] * (value - since[rows])[..., None]
        _count_rise(risen, node, steps)
    return total, risen


def _for_all(f: Probe, like: Tensor) -> Tensor:
    """Zeros for every example, shaped like a node's rows and no coarser than what stands at the site."""
    dtype = torch.promote_types(like.dtype, f.packing.dtype)
    return torch.zeros(f.examples, *like.shape[1:], dtype=dtype, device=like.device)


def _count_rise(risen: Tensor, node: Node, steps: int) -> None:
    if node.step in (0, steps):
        risen[node.rows] += node.value if node.step else -node.value


# --- classes ----------------------------------------------------------------------------------------------


class AlongPath(GradientAttribution):
    """What methods share that walk from baselines to inputs: how they are called."""

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    def has_convergence_delta(self) -> bool:
        return True

    @abstractmethod
    def _walk(self, f: Probe, reference: Reference, steps: int) -> tuple[Tensor, Tensor]:
        """Attributions at the site [B, D], and the score's rise from the reference [B]."""

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; with ``return_convergence_delta`` also by how much each example
        misses completeness [B].

        Args:
            inputs, baselines, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            n_steps: steps of the path; one gradient more for each example.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        parts, delta = _with_delta(f, *self._walk(f, through(baselines), whole("n_steps", n_steps, 1)))
        return (door.out(parts), delta) if return_convergence_delta else door.out(parts)


class LayerAlongPath(LayerAttribution, AlongPath):
    """The same at a layer, from what it makes of the baselines to what it makes of the inputs."""

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); otherwise as for the inputs."""
        site = self._site(attribute_to_layer_input)
        _, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        parts, delta = _with_delta(f, *self._walk(f, through(baselines), whole("n_steps", n_steps, 1)))
        return (self._out(site, parts), delta) if return_convergence_delta else self._out(site, parts)


def _with_delta(f: Probe, attributions: Tensor, risen: Tensor) -> tuple[Tensors, Tensor]:
    parts = f.packing.unpack(attributions)
    return parts, row_sums(parts, risen.ndim) - risen


class GuidedIG(AlongPath):
    """Integrated gradients along a path that goes around steep gradients where it can.

    Kapishnikov, Venugopalan, Avci, Wedin, Terry, Bolukbasi (CVPR 2021), arXiv 2106.09788; :func:`guided_path` has the
    path and its arguments. Laws: attributions add up to the score's rise from the baseline as steps get shorter, and
    are those of :class:`IntegratedGradients` for a linear model.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> a, delta = GuidedIG(model).attribute(torch.rand(4, 3), target=1, return_convergence_delta=True)
    >>> a.shape, bool(delta.abs().max() < 1e-3)
    (torch.Size([4, 3]), True)
    """

    def __init__(
        self, forward_func: Callable[..., Any], fraction: float = 0.25, max_dist: float = 0.02, anchors: int = 0
    ) -> None:
        super().__init__(forward_func)
        self._path = partial(guided_path, fraction=fraction, max_dist=max_dist, anchors=anchors)
        self._path(through(None))  # raises for what is out of range

    def _walk(self, f: Probe, reference: Reference, steps: int) -> tuple[Tensor, Tensor]:
        return path_integral(f, self._path(reference), steps)


class LayerGuidedIG(LayerAlongPath, GuidedIG):
    """:class:`GuidedIG` at a layer: for token embeddings, among others.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> LayerGuidedIG(model, model[0]).attribute(torch.tensor([[1, 2, 3]]), target=0).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        fraction: float = 0.25,
        max_dist: float = 0.02,
        anchors: int = 0,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GuidedIG.__init__(self, forward_func, fraction, max_dist, anchors)


class IDGI(AlongPath):
    """Important direction gradient integration: each step's change of the score goes to where the gradient points.

    Yang, Wang, Bilgic (CVPR 2023), arXiv 2303.14242; see :func:`important_directions`. Law: attributions add up to the
    score's rise from the baseline with any number of steps.

    Args:
        forward_func: the model.
        path: makes the path from the baselines: :func:`straight_path`, :func:`guided_path` (with ``functools.partial``
            for its arguments), or ``lambda _: blurred_path(max_sigma)``, which needs no baselines.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> a, delta = IDGI(model).attribute(torch.rand(4, 3), target=1, n_steps=3, return_convergence_delta=True)
    >>> a.shape, bool(delta.abs().max() < 1e-6)
    (torch.Size([4, 3]), True)
    """

    def __init__(self, forward_func: Callable[..., Any], path: Callable[[Reference], Path] = straight_path) -> None:
        super().__init__(forward_func)
        self._path = path

    def _walk(self, f: Probe, reference: Reference, steps: int) -> tuple[Tensor, Tensor]:
        return important_directions(f, self._path(reference), steps)


class LayerIDGI(LayerAlongPath, IDGI):
    """:class:`IDGI` at a layer: for token embeddings, among others.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> LayerIDGI(model, model[0]).attribute(torch.tensor([[1, 2, 3]]), target=0).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        path: Callable[[Reference], Path] = straight_path,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self._path = path


class BlurIG(GradientAttribution):
    """Integrated gradients from a blurred picture to the picture: no baseline has to be chosen.

    Xu, Venugopalan, Sundararajan (CVPR 2020), arXiv 2004.03383; see :func:`blurred_path` for the path. Blurred are the
    axes behind the channels of [B, C, ...], and the only one of [B, L]. Law: attributions add up to score(inputs) -
    score(blurred inputs) as steps get shorter.

    Args:
        forward_func: the model.
        max_sigma: of the widest blur, in pixels.

    >>> import torch
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    ... )
    >>> a, delta = BlurIG(model, max_sigma=8).attribute(torch.rand(4, 1, 8, 8), target=1, return_convergence_delta=True)
    >>> a.shape, bool(delta.abs().max() < 1e-2)
    (torch.Size([4, 1, 8, 8]), True)
    """

    def __init__(self, forward_func: Callable[..., Any], max_sigma: float = 50.0) -> None:
        super().__init__(forward_func)
        blurred_path(max_sigma)  # raises for what is no width
        self.max_sigma = max_sigma

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    def has_convergence_delta(self) -> bool:
        return True

    @guarded
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; with ``return_convergence_delta`` also by how much each example
        misses completeness [B].

        Args:
            inputs, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            n_steps: steps of the path; one gradient more for each example.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        parts, delta = _with_delta(f, *path_integral(f, blurred_path(self.max_sigma), whole("n_steps", n_steps, 1)))
        return (door.out(parts), delta) if return_convergence_delta else door.out(parts)

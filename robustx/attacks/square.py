"""Square: a random search that asks for values only, and changes one window of the input at a time."""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.packing import Packing
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Goal, Loss, Progress
from ..perturb.region import Region
from .base import Active, Attack
from .found import Found

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the share of elements that change at once is halved: section 5 of the paper."""

AT_ONCE = 64
"""For how many queries numbers are drawn together: a generator for each row and query would cost more than a model."""


@dataclass(frozen=True)
class Canvas:
    """How the elements of a row lie beside one another: channels of height and width."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, packing: Packing) -> "Canvas":
        """The last two axes of one input are its height and width; a vector, or several inputs, are one line."""
        if len(packing.shapes) == 1 and len(packing.shapes[0]) >= 2:
            *before, height, width = packing.shapes[0]
            return cls(prod(before), height, width)
        return cls(1, 1, sum(packing.sizes))

    def sides(self, share: float) -> tuple[int, int]:
        """Of a square with a share of each channel's elements, or of the rectangle that still fits."""
        area = share * self.height * self.width
        side = max(round(sqrt(area)), 1)
        return (
            min(max(side, round(area / self.width)), self.height),
            min(max(side, round(area / self.height)), self.width),
        )

    def fields(self, z: Tensor) -> Tensor:
        """[N, D] -> [N, C, H, W]."""
        return z.reshape(-1, self.channels, self.height, self.width)

    def windows(self, sides: tuple[int, int], u: Tensor) -> tuple[Tensor, Tensor]:
        """Where each element stands in a window of its row's, placed by two uniform numbers u [N, 2].

        Rows [N, H, 1] and columns [N, 1, W] from the window's corner; outside they are negative or beyond its sides.
        """
        steps = []
        for full, side, place in zip((self.height, self.width), sides, u.unbind(1), strict=True):
            corner = (place * (full - side + 1)).long().clamp(max=full - side)
            steps.append(torch.arange(full, device=u.device) - corner[:, None])
        return steps[0][:, :, None], steps[1][:, None, :]


def inside(steps: tuple[Tensor, Tensor], sides: tuple[int, int]) -> Tensor:
    """The elements of a window [N, 1, H, W]."""
    (down, right), (height, width) = steps, sides
    return ((down >= 0) & (down < height) & (right >= 0) & (right < width))[:, None]


def signs(u: Tensor) -> Tensor:
    """-1 or 1, by uniform numbers."""
    return torch.where(u < 0.5, -1.0, 1.0).to(u)


class Moves(ABC):
    """How a norm's ball is searched: where to begin, and what is tried next, from ``numbers`` uniform ones a row."""

    @abstractmethod
    def numbers(self, canvas: Canvas) -> tuple[int, int]:
        """How many are needed to begin, and for each further query."""

    @abstractmethod
    def start(self, canvas: Canvas, region: Region, u: Tensor) -> Tensor: ...

    @abstractmethod
    def propose(self, canvas: Canvas, region: Region, z: Tensor, share: float, u: Tensor) -> Tensor: ...


class Squares(Moves):
    """For Linf, algorithm 2: vertical stripes at first, then squares of one colour, always at corners of the ball."""

    def numbers(self, canvas: Canvas) -> tuple[int, int]:
        return canvas.channels * canvas.width, 2 + canvas.channels

    def start(self, canvas: Canvas, region: Region, u: Tensor) -> Tensor:
        stripes = signs(u).reshape(-1, canvas.channels, 1, canvas.width)
        return self.painted(region, region.centre, stripes.expand(-1, -1, canvas.height, -1))

    def propose(self, canvas: Canvas, region: Region, z: Tensor, share: float, u: Tensor) -> Tensor:
        sides = canvas.sides(share)
        square = inside(canvas.windows(sides, u[:, :2]), sides) * signs(u[:, 2:])[:, :, None, None]
        tried = self.painted(region, z, square)
        idle = region.norm.size(tried - z) <= 1e-3 * region.radius  # a square of this colour already is turned over
        return torch.where(idle[:, None], self.painted(region, z, -square), tried) if bool(idle.any()) else tried

    def painted(self, region: Region, z: Tensor, colours: Tensor) -> Tensor:
        """As far towards the colours' signs as the region reaches."""
        return region.project(z + region.norm.steepest(colours.flatten(1), 2 * region.radius))


@dataclass(frozen=True)
class Bumps(Moves):
    """For L2 and L1, algorithm 3: a window takes over the size of another, and what is left, in the shape of two bumps.

    In L1 it takes as much for each channel, and the projection decides what stays (Croce, Hein, ICML 2021, section 4).

    Args:
        power: of the norm.
    """

    power: int

    def numbers(self, canvas: Canvas) -> tuple[int, int]:
        down, right = self.tiles(canvas)
        return 1 + canvas.channels * -(-canvas.height // down) * -(-canvas.width // right), 5 + canvas.channels

    @staticmethod
    def tiles(canvas: Canvas) -> tuple[int, int]:
        """Sides of the first bumps: five fit into each axis."""
        return max(canvas.height // 5, 1), max(canvas.width // 5, 1)

    def size(self, fields: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 1, 1], to the norm's power."""
        return (fields.abs() ** self.power).sum((2, 3), keepdim=True)

    def unit(self, fields: Tensor) -> Tensor:
        """Each channel of size one, but for those that are zero."""
        size = self.size(fields) ** (1 / self.power)
        return fields / size.clamp(min=torch.finfo(size.dtype).tiny)

    def start(self, canvas: Canvas, region: Region, u: Tensor) -> Tensor:
        sides = self.tiles(canvas)
        down, right = (torch.arange(n, device=u.device) for n in (canvas.height, canvas.width))
        shape = bumps(sides, u[:, 0], down[None, :, None] % sides[0], right[None, None, :] % sides[1])
        sign = signs(u[:, 1:]).reshape(len(u), canvas.channels, -(-canvas.height // sides[0]), -1)
        sign = sign[:, :, down // sides[0]][..., right // sides[1]]
        way = (sign * shape).flatten(1)
        length = region.radius / region.norm.size(way).clamp(min=torch.finfo(way.dtype).tiny)
        return region.project(region.centre + way * length[:, None])

    def propose(self, canvas: Canvas, region: Region, z: Tensor, share: float, u: Tensor) -> Tensor:
        sides = self.sides(canvas, share)
        move = canvas.fields(z - region.centre)
        here = canvas.windows(sides, u[:, :2])
        into, other = inside(here, sides), inside(canvas.windows(sides, u[:, 2:4]), sides)
        shape = bumps(sides, u[:, 4], *here)
        new = self.unit(signs(u[:, 5:])[:, :, None, None] * self.unit(shape * into) + self.unit(move * into))
        left = (region.radius**self.power - self.size(move).sum((1, 2, 3))).clamp(min=0)
        size = self.size(move * (into | other)) + left[:, None, None, None] / canvas.channels
        size = size * (canvas.channels if self.power == 1 else 1)
        move = torch.where(into, new * size ** (1 / self.power), torch.where(other, 0, move))
        return region.project(region.centre + move.flatten(1))

    @staticmethod
    def sides(canvas: Canvas, share: float) -> tuple[int, int]:
        """Odd, and at least three, where there is room."""
        height, width = (max(side, 3) // 2 * 2 + 1 for side in canvas.sides(share))
        return min(height, canvas.height), min(width, canvas.width)


def bumps(sides: tuple[int, int], u: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Two bumps of opposite signs, side by side or one above the other as ``u`` [N] says [N, 1, H, W].

    Equation 2 of the paper. ``down`` and ``right`` are places in the window, which outside it do not count.
    """
    height, width = sides
    wide = _halves(height, width)
    tall = _halves(width, height).T
    both = torch.stack([wide if width > 1 else tall, tall if height > 1 else wide]).to(u)
    down, right = down.clamp(0, height - 1), right.clamp(0, width - 1)
    return both[(u < 0.5).long()[:, None, None], down, right][:, None]


def _halves(height: int, width: int) -> Tensor:
    """A bump in the left half and its negative in the right one."""
    return torch.cat([_bump(height, width // 2), -_bump(height, width - width // 2)], 1)


def _bump(height: int, width: int) -> Tensor:
    """Falls from the middle in rings, at each by one over the square of its number."""
    down, right = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (height, width))
    ring = torch.maximum(down.abs()[:, None], right.abs()[None])
    falls = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
    above = falls.flip(0).cumsum(0).flip(0)
    rings = above[ring.long()]
    bump: Tensor = rings / torch.linalg.vector_norm(rings).clamp(min=torch.finfo(rings.dtype).tiny)
    return bump


MOVES: dict[str, Moves] = {"Linf": Squares(), "L2": Bumps(2), "L1": Bumps(1)}


@dataclass(frozen=True, eq=False)
class _Searching(Active):
    """Rows that are still searched for, with what they have climbed to [n], and numbers drawn ahead [n, Q, M]."""

    noise: Noise
    height: Tensor
    drawn: Tensor


def square(f: Probe, region: Region, rows: Tensor, noise: Noise, steps: int, share: float, canvas: Canvas) -> Found:
    """Tries ``steps`` points, of which each differs from the best one so far in a window; values only.

    Andriushchenko, Croce, Flammarion, Hein (ECCV 2020), algorithm 1. ``share`` of the elements change at first, fewer
    and fewer later. A row leaves when it reaches the goal.
    """
    assert isinstance(f.of, Goal)
    region, moves, g = region.reachable(), MOVES[str(region.norm)], f.to(of=Progress(f.of))
    first, further = moves.numbers(canvas)
    best = Found.nothing(region.centre)
    a = _Searching.of(rows, region, None, noise, best.margin, region.centre[:, :0])
    for step in range(steps):
        if step == 0:
            z = moves.start(canvas, a.region, a.noise.uniform(first, a.z))
        else:
            turn = (step - 1) % AT_ONCE
            if turn == 0:
                a = a.to(drawn=a.noise.uniform(AT_ONCE * further, a.z).view(len(a), AT_ONCE, further))
            now = share / 2 ** bisect_left(HALVINGS, int(10_000 * step / steps))
            z = moves.propose(canvas, a.region, a.z, now, a.drawn[:, turn])
        margin, height = g.value(z, a.rows).unbind(1)
        best = best.put(a.index, best.at(a.index).stronger(Found(z, margin, a.region.size(z))))
        higher = height > a.height
        a = a.to(z=torch.where(higher[:, None], z, a.z), height=torch.where(higher, height, a.height))
        a = a.at(~(margin > 0))
        if not len(a):
            break
    return best


class Square(Attack):
    """Square attack: a random search of values, for models whose gradients are missing, broken or masked.

    Andriushchenko, Croce, Flammarion, Hein (ECCV 2020), arXiv 1912.00049; in L1 Croce, Hein (ICML 2021), arXiv
    2103.01208. The last two axes of an input are its height and width; a vector, or several inputs, are one line. Each
    step is one forward pass of the examples that still resist. Further arguments as for :class:`Attack`; the loss that
    is climbed is the margin, unless another is given.

    Args:
        steps: queries per attempt.
        restarts: attempts, each from another random start.
        p_init: the share of the elements that change at once in the beginning.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    >>> result = Square(model, bounds=(0, 1), eps=0.1, steps=50).run(x, y)
    >>> bool((result.distance <= 0.1).all()), int(result.forwards.max() <= 52), int(result.backwards.sum())
    (True, 1, 0)
    """

    norms: ClassVar[tuple[str, ...]] = tuple(MOVES)
    needs: ClassVar[Literal["gradients", "scores"]] = "scores"

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 5000,
        restarts: int = 1,
        p_init: float = 0.8,
        **options: Any,
    ) -> None:
        loss_func = "margin" if loss_func is None else loss_func
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.steps, self.restarts = whole("steps", steps, 1), whole("restarts", restarts, 1)
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init must be a share of the elements, above 0 and at most 1, got {p_init!r}")
        self.p_init = p_init

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = Found.nothing(region.centre)
        for restart in range(self.restarts):
            left = (~best.success).nonzero().squeeze(1)
            if not len(left):
                break
            again = noise.again(restart).at(left)
            found = square(f, region.at(left), rows[left], again, self.steps, self.p_init, Canvas.of(f.packing))
            best = best.put(left, best.at(left).stronger(found))
        return best

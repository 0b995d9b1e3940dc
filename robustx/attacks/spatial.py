"""Rotations and shifts: where a picture stands, as an attack; exhaustive over a grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..engine.checks import optional
from ..engine.guard import guarded
from ..engine.memory import Pace
from ..engine.packing import Tensors
from ..engine.probe import Door, Probe
from ..engine.sites import Call, Site
from ..perturb.goals import Goal, aim
from ..perturb.norms import Linf, Norm
from .found import Found
from .result import AttackResult
from .views import pictures

if TYPE_CHECKING:
    import pandas as pd

Padding = Literal["zeros", "reflection", "border"]

AT_ONCE = 16
"""Points of a grid that an example is tried at before it is known whether it may leave."""


@dataclass(frozen=True, eq=False)
class Warp(Site):
    """How a picture is turned and shifted, as a site: degrees counterclockwise, pixels to the right and down [N, 3].

    The picture is turned about its middle, then shifted; pixels are read bilinearly. Zero leaves it as it is, to the
    bit. Any search can stand here: ``pgd`` in ``Linf(scale)`` is the first-order attack of Engstrom et al.

    Args:
        padding: what is beyond the edge: ``"zeros"``, the mirrored picture (``"reflection"``), or the edge itself
            (``"border"``).
    """

    padding: Padding = "zeros"

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        x = inputs[0]
        return (x.new_zeros(len(x), 3, dtype=torch.promote_types(x.dtype, torch.float32)),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        return call(tuple(self.show(t, z[0]) for t in inputs))

    def show(self, x: Tensor, z: Tensor) -> Tensor:
        """The pictures [N, C, H, W], turned and shifted."""
        if not len(x):  # which grids of torch refuse
            return x
        height, width = x.shape[2:]
        angle, right, down = z.unbind(1)
        cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
        # from where each pixel is seen to where it comes from, on axes that run from -1 to 1 over the picture
        rows = (
            (cos, -sin * height / width, 2 * (sin * down - cos * right) / width),
            (sin * width / height, cos, -2 * (sin * right + cos * down) / height),
        )
        back = torch.stack([torch.stack(row, 1) for row in rows], 1)  # [N, 2, 3]
        at = affine_grid(back, list(x.shape), align_corners=False).to(x.dtype)
        moved = grid_sample(x, at, padding_mode=self.padding, align_corners=False)
        still = (z == 0).all(1)[:, None, None, None]
        return torch.where(still, x + (moved - moved.detach()), moved)  # which has a gradient there all the same


def worst_of(f: Probe, points: Tensor, norm: Norm, rows: Tensor, stop: bool = True) -> Found:
    """For each row, that of some points [P, D] of the probe's site with the largest margin.

    With ``stop``, the first that reaches the goal, where one does: what else is tried depends on no other row. A point
    whose margin is NaN proves nothing.
    """
    f, left = f.to(strict=False), torch.arange(len(rows), device=rows.device)
    found = Found.nothing(points[:1].expand(len(rows), -1).clone())
    for tried in points.split(AT_ONCE):
        if not len(left):
            break
        asked = f.value(tried.repeat(len(left), 1), rows[left].repeat_interleave(len(tried)))
        margin = asked.reshape(len(left), len(tried)).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        best, reached = margin.argmax(1), margin > 0
        if stop:
            best = torch.where(reached.any(1), reached.int().argmax(1), best)
        z = tried[best]
        now = Found(z, margin.gather(1, best[:, None]).squeeze(1).to(found.margin), norm.size(z))
        now = found.at(left).stronger(now)
        found = found.put(left, now)
        if stop:
            left = left[~now.success]
    return found


@dataclass(frozen=True, eq=False, repr=False)
class SpatialResult(AttackResult):
    """What a spatial attack found, see :class:`AttackResult`.

    ``distance`` is the largest share of their reach that the angle and the shifts take, in a budget ``eps`` of 1.

    Attributes:
        transformation: the angle in degrees (counterclockwise), and the shift in pixels to the right and down [B, 3].
    """

    transformation: Tensor = field(default_factory=lambda: torch.zeros(0, 3))

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each example, with ``angle``, ``right`` and ``down`` beside what every result has."""
        frame = super().to_pandas()
        names = ("angle", "right", "down")
        told = zip(names, self.transformation.detach().cpu().double().numpy().T, strict=True)
        return optional("pandas", "tables").concat([frame, type(frame)(dict(told))], axis=1)


class SpatialGrid:
    """Every rotation and shift of a grid: what survives them all is robust to them, not to those between.

    Engstrom et al. (ICML 2019), arXiv 1712.02779, section 3: their grid of 31 angles up to 30 degrees and five shifts
    along each axis up to a tenth of the side is the default, 775 points. Exhaustive search is their strongest attack:
    the loss has too many local maxima for gradients. Points are tried from the mildest on, the picture as it is first.

    It is no :class:`Attack`: its budget is the grid, and how far pixels move has no norm.

    Args:
        forward_func: the model, any callable that returns class scores [B, K].
        rotations: angles in degrees, counterclockwise.
        shifts: in pixels, along either axis; None: five up to a tenth of the shorter side.
        padding: what is beyond the edge: ``"zeros"``, ``"reflection"`` or ``"border"``.
        worst: look for the largest margin, at all points; else an example leaves once it is fooled, and what is
            returned is the mildest transformation of the grid that does it.
        batch_size: most rows in one pass; None fills the memory budget.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    >>> result = SpatialGrid(model, rotations=(-10, 0, 10), shifts=(-1, 0, 1)).run(x, y)
    >>> result.transformation.shape, int(result.forwards.max()) <= 27 + 1
    (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        rotations: Sequence[float] | Tensor | None = None,
        shifts: Sequence[float] | Tensor | None = None,
        *,
        padding: Padding = "zeros",
        worst: bool = False,
        batch_size: int | None = None,
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        if padding not in (known := ("zeros", "reflection", "border")):
            raise ValueError(f"padding must be one of {', '.join(map(repr, known))}, got {padding!r}")
        Pace(batch_size)  # refuses what is no batch size
        self.forward_func, self.padding, self.worst, self.batch_size = forward_func, padding, worst, batch_size
        self.rotations = torch.linspace(-30, 30, 31).double() if rotations is None else _numbers(rotations, "rotations")
        self.shifts = None if shifts is None else _numbers(shifts, "shifts")

    def grid(self, x: Tensor) -> Tensor:
        """The transformations that are tried [P, 3]: degrees, pixels to the right and down; the mildest first."""
        far = round(min(x.shape[2:]) / 10)
        shifts = torch.linspace(-far, far, 5).double() if self.shifts is None else self.shifts
        points = torch.cat([torch.zeros(1, 3).double(), torch.cartesian_prod(self.rotations, shifts, shifts)])
        points = points[1:] if bool((points[1:] == 0).all(1).any()) else points
        return points[_share(points).size(points).argsort(stable=True)]

    def __call__(self, x: Any, y: Any = None, **options: Any) -> Any:
        """``run(x, y, ...).adversarial``."""
        return self.run(x, y, **options).adversarial

    @guarded
    def run(
        self,
        x: Any,
        y: Tensor | int | None = None,
        targeted: bool = False,
        *,
        goal: Goal | Callable[[Any], Tensor] | None = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> SpatialResult:
        """Turns and shifts every example; ``success`` is asked once more of the pictures that are returned.

        Args:
            x: pictures [B, C, H, W].
            y, targeted, goal, additional_forward_args, additional_forward_kwargs: as for :meth:`Attack.run`.

        Raises:
            ValueError: no pictures, labels that are no classes of the model, a model in train mode, NaN or infinite
                inputs or outputs.
        """
        door = Door.open(x)
        f = door.probe(
            self.forward_func, None, additional_forward_args, additional_forward_kwargs, limit=self.batch_size
        )
        pictures(f.packing, type(self).__name__)
        f = f.to(of=aim(f, goal, y, targeted))
        points, site = self.grid(f.inputs[0]), Warp(self.padding)
        g = f.to(at=site)
        found = worst_of(g, points.to(g.point), _share(points), f.everyone, stop=not self.worst)
        moved = tuple(site.show(t, found.z) for t in f.inputs)
        margin = f.to(inputs=moved, strict=False).score
        assert f.meter is not None
        return SpatialResult(
            door.out(moved),
            margin > 0,
            found.size,
            margin,
            f.meter.forward,
            f.meter.backward,
            inputs=x,
            norm="spatial",
            eps=torch.ones_like(found.size),
            transformation=found.z,
        )


def _share(points: Tensor) -> Norm:
    """The largest share of its reach, among some points [P, 3], that a coordinate takes."""
    reach = points.abs().amax(0)
    return Linf(torch.where(reach > 0, reach, 1.0))


def _numbers(given: Sequence[float] | Tensor, name: str) -> Tensor:
    """Raises ValueError unless these are some finite numbers."""
    numbers = torch.as_tensor(given).double().cpu()
    if numbers.ndim != 1 or not len(numbers) or not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"{name} must be finite numbers, at least one, got {given!r}; (0,) for none")
    return numbers

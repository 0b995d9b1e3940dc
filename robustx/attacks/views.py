"""Views: what a model is shown in an example's place, so that a gradient holds for more than the example itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from math import ceil, prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..engine.packing import Packing, Tensors, finest
from ..engine.probe import Probe, Query
from ..engine.randomness import Noise
from ..engine.scores import Score


class View(ABC):
    """Other looks at the same example, each of them differentiable.

    ``copies`` of each query are shown; where the first of them is the query as it is, the view is ``honest``.
    """

    copies: int = 1
    honest: ClassVar[bool] = False

    @abstractmethod
    def show(self, inputs: Tensors, which: Tensor, noise: Noise) -> Tensors:
        """The copies numbered ``which`` [n] of ``inputs`` [n, ...] each; draws come from ``noise``, row by row."""


@dataclass(frozen=True)
class Scales(View):
    """The example divided by 1, 2, 4...: Lin et al. (ICLR 2020), arXiv 1908.06281, section 3.3."""

    copies: int = 5
    honest = True

    def show(self, inputs: Tensors, which: Tensor, noise: Noise) -> Tensors:
        return tuple(t * (0.5 ** which.to(t)).reshape(-1, *(1,) * (t.ndim - 1)) for t in inputs)


@dataclass(frozen=True)
class Diversity(View):
    """Pictures enlarged to a random size of up to ``enlarge`` times their own and padded with zeros at random places,
    with this ``probability``.

    Xie et al. (CVPR 2019), arXiv 1803.06978, section 3.3; what is padded comes back to the size of the picture, as
    many models take no other. One matrix for the rows of each picture and one for its columns do all of it.
    """

    probability: float = 0.5
    enlarge: float = 1.1

    def show(self, inputs: Tensors, which: Tensor, noise: Noise) -> Tensors:
        whether, size, top, left = noise.uniform(4, finest(inputs[0][:0])).unbind(1)
        shown = []
        for t in inputs:
            rows, columns = (
                _resized(n, self.enlarge, size, at) for n, at in zip(t.shape[2:], (top, left), strict=True)
            )
            other = rows.to(t)[:, None] @ t @ columns.to(t)[:, None].mT
            shown.append(torch.where((whether < self.probability)[:, None, None, None], other, t))
        return tuple(shown)


def _resized(side: int, enlarge: float, size: Tensor, at: Tensor) -> Tensor:
    """For each row of shares ``size`` and ``at`` [n] the matrix [n, side, side] that enlarges, pads and comes back."""
    most = ceil(side * enlarge)
    now = (side + (size * (most - side)).floor())[:, None]  # [n, 1]
    place = torch.arange(most, device=size.device) - (at[:, None] * (most - now + 1)).floor()  # [n, most]
    inside = (place >= 0) & (place < now)
    larger = _between((place + 0.5) * side / now - 0.5, side) * inside[:, :, None]
    back = _between((torch.arange(side, device=size.device).to(size) + 0.5) * most / side - 0.5, most)
    return back @ larger


def _between(at: Tensor, side: int) -> Tensor:
    """What each of ``side`` pixels adds to what is read between them at ``at`` [..., n], linearly [..., n, side]."""
    pixels = torch.arange(side, device=at.device)
    return (1 - (at.clamp(0, side - 1)[..., None] - pixels).abs()).clamp(min=0)


@dataclass(frozen=True)
class Draws(View):
    """Draws of a random transformation, see :class:`robustx.attacks.EOT`."""

    transform: Callable[..., Any]
    copies: int = 10

    def show(self, inputs: Tensors, which: Tensor, noise: Noise) -> Tensors:
        seeds = (noise.uniform(1, finest(inputs[0][:0])).squeeze(1) * 2**53).long().tolist()
        on_gpu = [inputs[0].device] if inputs[0].device.type == "cuda" else []
        shown = []
        with torch.random.fork_rng(on_gpu):
            for i, seed in enumerate(seeds):
                torch.manual_seed(seed)
                one = self.transform(*(t[i : i + 1] for t in inputs))
                shown.append(one if isinstance(one, tuple) else (one,))
        for one in shown:
            if [o.shape[1:] for o in one] != [t.shape[1:] for t in inputs]:
                raise ValueError(
                    f"transform must keep the shapes {[tuple(t.shape[1:]) for t in inputs]} of one example, got "
                    f"{[tuple(o.shape[1:]) for o in one]}"
                )
        return tuple(torch.cat(parts) for parts in zip(*shown, strict=True))


@dataclass(frozen=True, eq=False)
class Viewed(Probe):
    """A probe whose gradients are means over views of each query.

    All views of all queries are one question to the model, in batches that fit. What is drawn for a query depends on
    the example, on how often that has been asked, and on the copy alone: not on the batch.

    Args:
        views: for gradients only: values stay those of the query itself, from the same pass if the views are honest.
        shown: for values, too: both are means over these, which are made of the views.
        times: likewise means over so many passes, for a model that draws by itself: maybe once for a whole batch.
        noise: where they draw from; of the examples [B].
        asked: how often each example was asked [B].
    """

    views: tuple[View, ...] = ()
    shown: tuple[View, ...] = ()
    times: int = 1
    noise: Noise = field(default_factory=lambda: Noise(0, "views", []))
    asked: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @classmethod
    def of_probe(
        cls,
        f: Probe,
        rows: Tensor,
        noise: Noise,
        views: Sequence[View] = (),
        shown: Sequence[View] = (),
        times: int = 1,
    ) -> Self:
        """``f``, seen through these views; ``noise`` is that of the examples ``rows`` [n]."""
        samples = [""] * f.examples
        for i, sample in zip(rows.tolist(), noise.samples, strict=True):
            samples[i] = sample
        same: dict[str, Any] = {p.name: getattr(f, p.name) for p in fields(f)}
        if isinstance(f, Viewed):
            views, shown, times = (*views, *f.views), (*shown, *f.shown), times * f.times
        new = {"views": tuple(views), "shown": tuple(shown), "times": times}
        drawn = {"noise": replace(noise, samples=samples), "asked": torch.zeros_like(f.everyone)}
        other = cls(**{**same, **new, **drawn})
        other.__dict__.update({k: v for k, v in f.__dict__.items() if k not in {p.name for p in fields(cls)}})
        return other

    def values(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor]]:
        count = prod(v.copies for v in self.shown)
        if not n or (not self.shown and self.times == 1):
            yield from super().values(n, query)
            return
        total: Tensor | None = None
        asked: list[Tensor] = []

        def look(part: slice) -> tuple[Tensor, Tensor]:
            z, rows, which, _ = self._looks(part, query, count)
            asked.append(rows)
            return self._show(z, rows, which, self.shown), rows

        with unheard(self):
            for _ in range(self.times):
                for part, value in super().values(n * count, look):
                    whose = torch.arange(part.start, part.stop, device=self.device) // count
                    total = value.new_zeros(n, *value.shape[1:]) if total is None else total
                    total.index_add_(0, whose, value / (count * self.times))
        assert total is not None
        self._told(asked)
        self._heard(n, query, total)
        yield slice(0, n), total

    def _climbs(self, n: int, query: Query) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        looks, judged = (prod(v.copies for v in some) for some in ((*self.views, *self.shown), self.shown))
        if not n:
            yield from super()._climbs(n, query)
            return
        graph: list[Tensor] = []
        asked: list[Tensor] = []

        def look(part: slice) -> tuple[Tensor, Tensor]:
            z, rows, which, _ = self._looks(part, query, looks)
            asked.append(rows)
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                seen = self._show(z, rows, which, (*self.shown, *self.views))
            graph[:] = [z, seen]
            return seen.detach(), rows

        totals: list[Tensor] = []
        with unheard(self):
            for _ in range(self.times):
                for part, value, pull, g in super()._climbs(n * looks, look):
                    which = torch.arange(part.start, part.stop, device=self.device)
                    first = (which % looks < judged).reshape(-1, *(1,) * (value.ndim - 1))
                    value = torch.where(first, value * looks / judged, 0)
                    told = value, pull, _back(graph[1], graph[0], g)
                    totals = totals or [t.new_zeros(n, *t.shape[1:]) for t in told]
                    for total, t in zip(totals, told, strict=True):
                        total.index_add_(0, which // looks, t / (looks * self.times))
        value, pull, g = totals
        honest = all(v.honest for v in self.views)
        self._told(asked)
        if honest:
            self._heard(n, query, value)
        else:
            value = torch.cat([v for _, v in self.values(n, query)])
        yield slice(0, n), value, pull, g

    def jacobian(self, z: Tensor, scores: Sequence[Score], rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self.everyone if rows is None else rows
        n, count = len(rows), prod(v.copies for v in self.shown)
        if not n or (not self.shown and self.times == 1):
            return super().jacobian(z, scores, rows)
        given = rows
        z, rows, which, whose = self._looks(slice(0, n * count), lambda part: (z[part], given[part]), count)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            seen = self._show(z, rows, which, self.shown)
        asked = [super(Viewed, self).jacobian(seen.detach(), scores, rows) for _ in range(self.times)]
        self._told([rows])
        value, g = (torch.stack(told).mean(0) for told in zip(*asked, strict=True))
        value, g = (t.new_zeros(n, *t.shape[1:]).index_add(0, whose, t / count) for t in (value, _back(seen, z, g)))
        return value, g

    def _looks(self, part: slice, query: Query, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some of ``count`` looks at each query: z and rows of theirs, which look it is, whose."""
        first, last = part.start // count, -(-part.stop // count)
        z, rows = query(slice(first, last))
        i = torch.arange(part.start, part.stop, device=self.device)
        whose = i // count - first
        return (self.point[rows] if z is None else z)[whose], rows[whose], i % count, whose

    def _show(self, z: Tensor, rows: Tensor, which: Tensor, views: Sequence[View]) -> Tensor:
        """What the model is shown in the place of z [n, D]; the last of the views comes first."""
        own = self.owner(rows)
        noise = self.noise.copies(own, self.asked[own], which)
        copy, shares = which, []
        for view in views:
            shares.append(copy % view.copies)
            copy = copy // view.copies
        inputs = self.packing.unpack(z)
        for view, share in zip(reversed(views), reversed(shares), strict=True):
            inputs = view.show(inputs, share, noise)
        return self.packing.pack(inputs)

    def _told(self, asked: Sequence[Tensor]) -> None:
        rows = self.owner(torch.cat(list(asked)))
        self.asked[rows] = self.asked[rows] + 1

    def _heard(self, n: int, query: Query, scores: Tensor) -> None:
        """Scores of the queries themselves do belong there."""
        assert self.meter is not None
        if self.meter.asked is not None:
            self._count(query(slice(0, n))[1], forward=0, scores=scores)


@contextmanager
def unheard(f: Probe) -> Iterator[None]:
    """Scores of what is only looked at leave no trace in the history of a search."""
    assert f.meter is not None
    kept, f.meter.asked = f.meter.asked, None
    try:
        yield
    finally:
        f.meter.asked = kept


def _back(seen: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """Gradients [n, D] (or of several scores [n, T, D]) of what was ``seen`` instead of ``z`` [n, D], for ``z``."""
    if g.ndim == 2:
        return torch.autograd.grad(seen, z, g)[0]
    return torch.stack([torch.autograd.grad(seen, z, one, retain_graph=True)[0] for one in g.unbind(1)], 1)


def pictures(packing: Packing, who: str) -> None:
    """Raises ValueError if what is to be resized or blurred is no picture."""
    for shape in packing.shapes:
        if len(shape) != 3:
            raise ValueError(f"{who} is for pictures [B, C, H, W], but an example has the shape {tuple(shape)}")

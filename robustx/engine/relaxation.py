"""Relaxation: a line below everything that a model can say, found in one way back.

At each unit a gradient goes on by the slope of the line below where it is positive, of the line above where it is
negative; what is between units is affine and passes it as it is. So the gradient at the input is the slope of a line
below the score, and what the lines miss at the point itself, weighed by the gradient there, adds up to how far below.
Zhang, Weng, Chen, Hsieh, Daniel (NeurIPS 2018), arXiv 1811.00866, theorem 3.2; Xu et al. (NeurIPS 2020), 2002.12920.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .affine import Unreadable
from .intervals import Ends
from .packing import Tensors, flat
from .scores import Ask, Score, tensor_output
from .units import Bounded, Lines, Unit


class _Between(torch.autograd.Function):
    """A unit on the way in, its lines on the way back; ``one`` [n] gathers what they miss at this point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, one: Tensor, unit: Unit, lines: Lines) -> Tensor:
        y = unit(x)
        ctx.picks, ctx.slopes = unit.picks, (lines.under, lines.over)
        products = [slope * x for slope in ctx.slopes]
        under, over = (p.sum(-1) for p in products) if unit.picks else products
        ctx.missed = y - under - lines.under_at, y - over - lines.over_at  # here, before a model goes on in place
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ways = grads[0].clamp(min=0), grads[0].clamp(max=0)
        missed = sum(flat(way * m).sum(1) for way, m in zip(ways, ctx.missed, strict=True))
        if not ctx.needs_input_grad[0]:
            return None, -missed, None, None
        if ctx.picks:
            ways = ways[0][..., None], ways[1][..., None]
        return sum(way * slope for way, slope in zip(ways, ctx.slopes, strict=True)), -missed, None, None


class _Enough(Exception):
    """The model has been run as far as is asked."""


class _Relaxed(Bounded):
    """A model whose units pass gradients by lines."""

    def __init__(self, score: "Below", one: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.score, self.one, self.rows = score, one, rows
        self.count = 0
        self.asked: Tensor | None = None

    def unit(self, unit: Unit, input: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if not self.moves(input):
                return unit(input)
            k, self.count = self.count, self.count + 1
            ends = self.score.units[k]
            if ends.unit is not unit or input.shape != (len(self.rows), *ends.low.shape[1:]):
                raise Unreadable("it does other things for other batches, and bounds for one say nothing of another")
            if k == self.score.unit:
                z = flat(input).gather(1, self.score.element[self.rows])
                self.asked = torch.cat([z, -z], 1)
                raise _Enough
            at = self.score.place[self.rows]
            make = unit.lines
            if self.score.level:
                input, make = input.detach(), unit.flat  # nothing goes on
            out: Tensor = _Between.apply(input, self.one, unit, make(ends.low[at], ends.high[at]))
            return out


@dataclass(eq=False)
class Below(Score):
    """Lines below some of what goes into a unit and below their negatives [N, 2T]; or below leads of a class [N, T].

    A gradient is a line's slope, and at a further input of ones [B] how far it is below at the point itself, with
    a minus.

    Args:
        model: the model.
        units: the ends between which the lines hold, [b, ...] each.
        place: the row of each query in those [N].
        element: which are asked for [N, T]: of the numbers that go into the unit, or rival classes.
        unit: which one; None: what comes out.
        own: the class that leads [b].
        level: let all lines be level: interval arithmetic, but for what is between the last units and the score.
    """

    model: Any
    units: Sequence[Ends]
    place: Tensor
    element: Tensor
    unit: int | None = None
    own: Tensor | None = None
    level: bool = False

    def ask(self, call: Ask, inputs: Tensors, rows: Tensor) -> Tensor:
        x, one = inputs
        mode = _Relaxed(self, one, rows)
        with mode.over(self.model):
            with torch._C.DisableTorchFunction():
                entering = x * 1
            try:
                out = tensor_output(call((entering,)), rows)
            except _Enough:
                assert mode.asked is not None, "raised when it is"
                return mode.asked
        if self.unit is not None or mode.count != len(self.units):
            raise Unreadable("it does other things for other batches, and bounds for one say nothing of another")
        return self.leads(out, rows)

    def leads(self, out: Tensor, rows: Tensor) -> Tensor:
        """By how much the own class leads the rivals [n, T]; one number per row is the logit of class 1."""
        assert self.own is not None, "whose lead"
        if out.ndim == 1 or out.shape[1:] == (1,):
            out = flat(out) * torch.tensor([-0.5, 0.5]).to(out)
        return out.gather(1, self.own[self.place[rows]][:, None]) - out.gather(1, self.element[rows])

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return tensor_output(out, rows)

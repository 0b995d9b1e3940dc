"""Cases: counterfactuals beside what they started from, and all that may be known about both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...engine.checks import ArgumentError
from ...engine.packing import Packing, Tensors
from ...engine.probe import Door, ModelError, Probe, by_name
from ...engine.randomness import Noise, identities
from ...engine.scores import Everything
from ...perturb.features import Features
from ...perturb.goals import Goal, Leave, Reach, Surely, Whose, as_logits
from ..schema import FeatureSchema

Floats = npt.NDArray[np.float64]
Space = Literal["input", "raw", "range", "std"]


@dataclass(frozen=True)
class Langevin:
    """Draws what a model itself takes for a class: stochastic gradient Langevin dynamics over its logit.

    Welling, Teh (ICML 2011). Points start uniformly in the box of the data and stay in it.

    Args:
        count: points drawn for each class.
        keep: how many of them are kept, those with the largest logits (the lowest energies).
        steps: how many steps each point takes.
        step: the length of a step: the variance of its noise, in squared widths of the box.
        temperature: what the logit is divided by; the larger, the wider points spread.
    """

    count: int = 50
    keep: int = 25
    steps: int = 100
    step: float = 0.01
    temperature: float = 1.0

    def draw(self, f: Probe, rows: Tensor, low: Tensor, high: Tensor, noise: Noise) -> Tensor:
        """The points kept [keep, D], as the score of ``f`` (asked as the examples ``rows`` [count]) wants them."""
        width = high - low
        z = low + width * noise.uniform(len(low), low)
        for shake in normals(noise, len(low), self.steps, low):
            g = f.grad(z, rows)[1] / self.temperature
            z = (z + self.step / 2 * width.square() * g + self.step**0.5 * width * shake).clamp(low, high)
        return z[f.value(z, rows).argsort(descending=True, stable=True)[: self.keep]]


class Returned(NamedTuple):
    """Counterfactuals that were returned [R, D], whose they are [R], and where they stood among all asked for [R]."""

    z: Tensor
    rows: Tensor
    place: Tensor
    each: int | None  # how many were asked for, for each example; None: one


def returned(x_cf: Any, door: Door, packing: Packing) -> Returned:
    """Counterfactuals in the forms that people have them.

    Args:
        x_cf: like the inputs [B, ...], or with an axis of several for each example [B, n, ...]; rows that are not
            finite are missing. What a search handed back will do, with its alternatives; what is not ``valid`` there
            is missing.

    Raises:
        ArgumentError: they do not fit the inputs.
    """
    found, more = getattr(x_cf, "valid", None), getattr(x_cf, "alternatives", ())
    tensors = _tensors(x_cf, door)
    if more:
        tensors = [torch.stack(t, 1) for t in zip(tensors, *(_tensors(m, door) for m in more), strict=True)]
        found = torch.stack([m.valid for m in (x_cf, *more)], 1)
    each = tensors[0].shape[1] if tensors[0].ndim > door.inputs[0].ndim else None
    for p, t in zip(tensors, door.inputs, strict=True):
        if p.shape != (t.shape if each is None else (len(t), each, *t.shape[1:])):
            told = ", ".join(map(str, t.shape[1:]))
            raise ArgumentError(
                f"x_cf of shape {tuple(p.shape)} does not fit inputs of shape {tuple(t.shape)}; expected "
                f"[{len(t)}, {told}], or [{len(t)}, n, {told}] for n counterfactuals of each example"
            )
    b, n = len(door.inputs[0]), 1 if each is None else each
    z = packing.pack([p.reshape(b * n, *t.shape[1:]) for p, t in zip(tensors, door.inputs, strict=True)])
    there = torch.isfinite(z).all(1)
    if found is not None:
        there &= torch.as_tensor(found, dtype=torch.bool, device=z.device).reshape(b, -1).expand(b, n).reshape(-1)
    place = there.nonzero().squeeze(1)
    return Returned(z[place], place // max(n, 1), place, each)


def _tensors(x_cf: Any, door: Door) -> list[Tensor]:
    given = by_name(getattr(x_cf, "counterfactual", x_cf), door.names, "x_cf")
    parts = (given,) if door.single else tuple(given)
    if len(parts) != len(door.inputs):
        raise ArgumentError(f"x_cf must have one tensor for each of the {len(door.inputs)} inputs, got {len(parts)}")
    return [torch.as_tensor(p).detach().to(t) for p, t in zip(parts, door.inputs, strict=True)]


@dataclass(frozen=True, eq=False)
class Case:
    """Counterfactuals that were returned, R of them, beside their B examples; N rows of data to compare with.

    Numbers that metrics make of it are float64 on the CPU. What stands in the names: see :func:`evaluate`.
    """

    f: Probe
    got: Returned
    features: Features
    schema: FeatureSchema | None = None
    data: Tensor | None = None
    labels: Tensor | None = None
    space: Space = "input"
    tolerance: float = 1e-5
    neighbours: int = 5
    sigma: Tensor | None = None
    draws: int = 100
    drift: float | None = None
    trials: int = 1
    costs: Tensor | None = None
    ensemble: Sequence[Callable[..., Any]] = ()
    autoencoders: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    density: Any = "kde"
    again: Callable[[Tensor], Returned] | None = None
    sampler: Langevin = Langevin()
    seed: int = 0

    # --- the points ---------------------------------------------------------------------------------------

    @property
    def z(self) -> Tensor:
        """The counterfactuals [R, D]."""
        return self.got.z

    @property
    def rows(self) -> Tensor:
        """Whose they are [R]."""
        return self.got.rows

    @cached_property
    def x(self) -> Tensor:
        """What each of them started from [R, D]."""
        return self.f.point[self.rows]

    @cached_property
    def delta(self) -> Tensor:
        """What differs, in input units [R, D]."""
        return told(self.z) - told(self.x)

    @cached_property
    def changed(self) -> Tensor:
        """Which features differ by more than the tolerance in one of their elements [R, F]."""
        moved = (self.delta.abs() > self.tolerance).to(self.z)
        return self.features.gather(moved, self.rows) > 0

    @cached_property
    def unit(self) -> Tensor:
        """What differences of elements are divided by, in the space chosen [D]; what cannot tell a scale has 1."""
        unit = torch.ones(self.z.shape[1], dtype=torch.float64)
        if self.space in ("range", "std") and self.data is not None:
            crowd = told(self.data)
            unit = crowd.amax(0) - crowd.amin(0) if self.space == "range" else crowd.std(0, correction=0)
        elif self.schema is not None and self.space in ("raw", "range"):
            for f, p in zip(self.schema.features, self.schema.places, strict=True):
                unit[p.columns] = 1 / p.scale if self.space == "raw" else f.span / p.scale
        for p in self.schema.places if self.schema is not None else ():
            if p.block:
                unit[p.columns] = 1
        return torch.where(unit > 0, unit, 1)

    def scaled(self, z: Tensor) -> Floats:
        """Points [n, D] in the space chosen."""
        return np.asarray((told(z) / self.unit).numpy())

    # --- columns: what people read ------------------------------------------------------------------------

    @cached_property
    def before(self) -> Tensor:
        """The columns of what each started from [R, J]: the codes of a schema, or else all elements."""
        return self.read(self.x)

    @cached_property
    def after(self) -> Tensor:
        """The columns of the counterfactuals [R, J]; what differs by no more than the tolerance does not differ."""
        after = self.read(self.z, self.before)
        moved = self.changed.cpu() if self.schema is not None else self.delta.abs() > self.tolerance
        return torch.where(moved, after, self.before)

    def read(self, z: Tensor, home: Tensor | None = None) -> Tensor:
        """The columns of points [n, D] -> [n, J].

        Within the tolerance they are read as the schema reads them, seen from ``home`` [n, J] and kept to its rules;
        what is further off its grid or range is told as it stands.
        """
        if self.schema is None:
            return told(z)
        here, columns = told(z), []
        for p in self.schema.places:
            block = here[:, p.columns]
            columns.append(block.argmax(1).double() if p.block else block[:, 0] * p.scale + p.offset)
        codes = torch.stack(columns, 1)
        for nearest in (self.schema.decoded(z), *([] if home is None else [self.schema.decoded(z, home)])):
            off = (told(self.schema.encoded(nearest)) - here).abs() > self.tolerance
            codes = torch.where(self.features.gather(off.to(z)).cpu() > 0, codes, nearest)
        return codes

    @cached_property
    def crowd(self) -> Tensor:
        """The columns of the data [N, J]."""
        assert self.data is not None
        return self.read(self.data)

    @cached_property
    def numeric(self) -> Tensor:
        """Which columns are numbers, with an order [J]; of the others it counts only whether they differ."""
        if self.schema is None:
            return torch.ones(self.z.shape[1], dtype=torch.bool)
        return torch.tensor([f.kind not in ("categorical", "binary") for f in self.schema.features])

    @cached_property
    def span(self) -> Tensor:
        """The range of each column in the data, or else as the schema knows it [J]; 0 where it has one value."""
        if self.data is not None:
            return self.crowd.amax(0) - self.crowd.amin(0)
        assert self.schema is not None
        return torch.tensor([f.span for f in self.schema.features], dtype=torch.float64)

    # --- what the model says ------------------------------------------------------------------------------

    @cached_property
    def margin(self) -> Tensor:
        """By how much each counterfactual reaches the goal [R]."""
        return told(self.f.value(self.z, self.rows))

    @cached_property
    def goal(self) -> tuple[Goal, Tensor]:
        """The goal as its user names it, and which of its examples each counterfactual belongs to [R]."""
        assert isinstance(self.f.of, Goal)
        goal, rows = self.f.of.plain, self.rows
        while isinstance(goal, Whose):
            rows, goal = goal.rows[rows], goal.goal
        return goal, rows

    @cached_property
    def classes(self) -> bool:
        """Whether the goal is about the class with the largest output."""
        return isinstance(self.goal[0], Leave | Reach | Surely)

    def logits(self, z: Tensor, rows: Tensor) -> Tensor:
        """The model's class scores [n, K]."""
        return told(as_logits(self.f.to(of=Everything()).value(z, rows), rows))

    @cached_property
    def scores(self) -> Tensor:
        """The class scores of the counterfactuals [R, K]."""
        return self.logits(self.z, self.rows)

    @cached_property
    def target(self) -> Tensor:
        """The class that each is meant for [R]: the one to be reached, or the likeliest beside the one to be left."""
        goal, rows = self.goal
        assert isinstance(goal, Leave | Reach | Surely)
        y, leave = goal.y[rows].cpu(), goal.leave if isinstance(goal, Surely) else isinstance(goal, Leave)
        return self.scores.scatter(1, y[:, None], -torch.inf).argmax(1) if leave else y

    @cached_property
    def own(self) -> Tensor:
        """The model's answer to what each started from [R]."""
        return self.logits(self.x, self.rows).argmax(1)

    @cached_property
    def differentiable(self) -> bool:
        """Whether the model has gradients."""
        try:
            self.f.grad(self.z[:1], self.rows[:1])
        except ModelError:
            return False
        return True

    def among(self, data: Tensor) -> Probe:
        """The model, asked about other points [n, D] as examples of their own; passes are not counted."""
        return self.f.to(inputs=self.f.packing.unpack(data), of=Everything(), meter=None)

    @cached_property
    def answers(self) -> Tensor:
        """The model's whole output for the data [N, ...]."""
        assert self.data is not None
        return self.among(self.data).score

    def alike(self, by_model: bool = False) -> Tensor:
        """Which rows of the data belong to what each counterfactual is meant for [R, N].

        Those of its target class by their labels (by the model's answers, if there are none or if asked to); for goals
        that are not about classes, those that reach the goal of its example.
        """
        if self.classes:
            rows = torch.arange(len(self.answers))
            known = self.labels
            if by_model or known is None:
                known = as_logits(self.answers, rows).argmax(1).cpu()
            return self.target[:, None] == known[None]
        goal, rows = self.goal
        every, which = rows.unique(return_inverse=True)
        each = [goal.value(self.answers, i.expand(len(self.answers))) > 0 for i in every]
        return torch.stack(each).cpu()[which.cpu()]

    def sides(self, alike: Tensor) -> Iterator[tuple[Floats, Floats, Tensor]]:
        """Counterfactuals that are meant for the same rows of the data: both, as scaled, and which they are."""
        assert self.data is not None
        here, crowd = self.scaled(self.z), self.scaled(self.data)
        kinds, which = alike.unique(dim=0, return_inverse=True)
        for i, members in enumerate(kinds):
            these = (which == i).nonzero().squeeze(1)
            yield here[these.numpy()], crowd[members.numpy()], these

    def taken(self, of: Tensor, over: Tensor, features: Features) -> Tensor:
        """The inputs of the counterfactuals ``of`` [n], with the features ``over`` [n, F] as in the counterfactuals."""
        return torch.where(features.spread(over.to(self.z), self.rows[of]) > 0, self.z[of], self.x[of])

    def one_by_one(self, alone: bool) -> tuple[Tensor, Tensor]:
        """Each changed feature alone taken over (or alone taken back): whose it is [P], and the margin then [P]."""
        pairs = self.changed.nonzero()

        def query(part: slice) -> tuple[Tensor, Tensor]:
            of, feature = pairs[part].unbind(1)
            one = F.one_hot(feature, self.features.count)
            return self.taken(of, one if alone else 1 - one, self.features), self.rows[of]

        parts = [told(v) for _, v in self.f.values(len(pairs), query)]
        return pairs[:, 0].cpu(), torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    @cached_property
    def shaken(self) -> tuple[Tensor, Tensor | None]:
        """With Gaussian noise around the counterfactuals: margins [R, S], and probabilities of the target [R, S]."""
        assert self.sigma is not None
        noise, everything = Noise(self.seed, "shaken", identities(self.z)), self.f.to(of=Everything())
        goal, rows = self.goal
        margins, probabilities = [], []
        for shake in normals(noise, self.z.shape[1], self.draws, self.z):
            out = everything.value(self.z + self.sigma * shake, self.rows)
            margins.append(told(goal.value(out, rows)))
            if self.classes:
                probabilities.append(chance(told(as_logits(out, self.rows)), self.target))
        return torch.stack(margins, 1), torch.stack(probabilities, 1) if self.classes else None

    @cached_property
    def weighty(self) -> bool:
        """Whether the model has weights that others can take the place of."""
        model = self.f.model
        if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel | torch.jit.ScriptModule):
            return False
        return any(p.is_floating_point() for p in model.parameters())

    @cached_property
    def drifted(self) -> Tensor:
        """The share of models that reach the goal there [R], each weight having moved uniformly by at most the drift.

        All are asked of the same models, which are drawn by the names of the parameters.
        """
        model = self.f.model
        assert isinstance(model, nn.Module) and self.drift is not None
        weights = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
        noise = {name: Noise(self.seed, "drifted", [name]) for name in weights}
        kept = torch.zeros(len(self.z), dtype=torch.float64)
        for _ in range(self.trials):
            moved = {
                name: p + self.drift * (2 * noise[name].uniform(p.numel(), p).reshape(p.shape) - 1)
                for name, p in weights.items()
            }
            kept += told(self.f.to(model=partial(_weighed, model, moved), meter=None).value(self.z, self.rows) > 0)
        return kept / self.trials


def _weighed(model: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """What a model returns with these weights in place of its own."""
    return functional_call(model, weights, args, kwargs)


def normals(noise: Noise, d: int, count: int, like: Tensor) -> Iterator[Tensor]:
    """Standard normal rows [N, d], ``count`` times; drawn many at a time, as each draw by key takes a while."""
    most = max(1, 2**14 // d)
    for start in range(0, count, most):
        n = min(most, count - start)
        yield from noise.normal(n * d, like).reshape(-1, n, d).unbind(1)


def told(t: Tensor) -> Tensor:
    """As numbers are told: float64 on the CPU."""
    return t.detach().cpu().double()


def chance(logits: Tensor, y: Tensor) -> Tensor:
    """The probability of class ``y`` [n], by softmax of class scores [n, K]."""
    return logits.softmax(1).gather(1, y[:, None]).squeeze(1)


def rows_like(door: Door, data: Any) -> Tensors:
    """Rows of data [N, ...], in the form of the inputs.

    Raises:
        ArgumentError: they do not fit, or there are none.
    """
    given = Door.open(by_name(data, door.names, "data")).inputs
    if [t.shape[1:] for t in given] != [t.shape[1:] for t in door.inputs] or not len(given[0]):
        shapes = (", ".join(str(tuple(t.shape)) for t in tensors) for tensors in (given, door.inputs))
        raise ArgumentError("data of shape {} do not fit inputs of shape {}; give rows like them".format(*shapes))
    return tuple(t.to(like) for t, like in zip(given, door.inputs, strict=True))


__all__ = ["Case", "Langevin", "Returned"]

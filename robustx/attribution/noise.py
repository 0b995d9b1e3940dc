"""Methods that average over random draws: noise on the inputs, references from a distribution, points on the way."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from math import gcd, inf, prod
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..engine.checks import ArgumentError, whole
from ..engine.guard import undrawn_on_error, untouched
from ..engine.packing import Packing, Tensors, times
from ..engine.probe import Door, Probe, Query, by_name
from ..engine.randomness import Noise, identities
from ..engine.scores import Each, Everything, Output, TargetError
from ..engine.sites import Input, Layer
from ..perturb.references import distribution, given_by
from .base import Attribution, GradientAttribution, LayerAttribution, NeuronAttribution

P = ParamSpec("P")
R = TypeVar("R")

BUDGET = 1 << 26  # bytes of noisy copies of the inputs that are held at once


def drawing(method: Callable[P, R]) -> Callable[P, R]:
    """Runs a method that draws at random and guards only what it does with the model.

    A guard around it would give the global generators back as they were, and the next call would draw the same: so they
    are given back only where the method fails.
    """

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), undrawn_on_error():
            return method(*args, **kwargs)

    return run


# --- draws ------------------------------------------------------------------------------------------------


class Draws(Protocol):
    """Random numbers for some samples ``k`` [n] of all B * S, which stand example by example; ``i`` counts inputs."""

    def normal(self, k: Tensor, i: int, like: Tensor, std: float) -> Tensor:
        """Noise for the samples of input ``i`` [n, ...], in float32 at least."""

    def index(self, k: Tensor, i: int, count: int) -> Tensor:
        """Which of ``count`` references of input ``i`` each sample gets [n]."""

    def uniform(self, k: Tensor) -> Tensor:
        """Numbers on [0, 1), float64 [n]."""


class GlobalDraws:
    """Draws from the global generators, by Captum's calls: noise from torch's, the rest from numpy's."""

    def normal(self, k: Tensor, i: int, like: Tensor, std: float) -> Tensor:
        return torch.normal(0.0, torch.full((len(k), *like.shape[1:]), std, device=like.device))

    def index(self, k: Tensor, i: int, count: int) -> Tensor:
        return torch.from_numpy(np.random.choice(count, len(k))).to(k.device)

    def uniform(self, k: Tensor) -> Tensor:
        return torch.from_numpy(np.random.uniform(0.0, 1.0, len(k)))


@dataclass(frozen=True)
class KeyedDraws:
    """Draws by key: a function of the seed, what the example holds, and which of its samples it is."""

    seed: int
    method: str
    samples: list[str]

    @classmethod
    def of(cls, inputs: Tensors, count: int, seed: int, method: str) -> "KeyedDraws":
        """``count`` samples of each example."""
        names = identities(*inputs)
        return cls(seed, method, [f"{name}/{s}" for name in names for s in range(count)])

    def _noise(self, what: str, k: Tensor) -> Noise:
        return Noise(self.seed, f"{self.method} {what}", self.samples).at(k)

    def normal(self, k: Tensor, i: int, like: Tensor, std: float) -> Tensor:
        template = like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
        if not std:
            return template.expand(len(k), *like.shape[1:])
        shape = like.shape[1:]
        return std * self._noise(f"noise {i}", k).normal(prod(shape), template).reshape(len(k), *shape)

    def index(self, k: Tensor, i: int, count: int) -> Tensor:
        drawn = self._noise(f"reference {i}", k).uniform(1, torch.zeros((), dtype=torch.float64)).squeeze(1)
        return (drawn * count).long().to(k.device)

    def uniform(self, k: Tensor) -> Tensor:
        return self._noise("point", k).uniform(1, torch.zeros((), dtype=torch.float64)).squeeze(1)


def deviations(stdevs: Any, inputs: Tensors, names: tuple[str, ...] | None) -> tuple[float, ...]:
    """Captum's ``stdevs``: one standard deviation for each input.

    Raises:
        ValueError: they are no finite numbers of at least 0, or not one for each input.
        TypeError: noise is to be added to integers.
    """
    each = by_name(stdevs, names, "stdevs")
    each = tuple(each) if isinstance(each, tuple | list) else (each,) * len(inputs)
    if len(each) != len(inputs):
        raise ArgumentError(f"stdevs must be one number, or one for each of {len(inputs)} inputs, got {len(each)}")
    for s, t in zip(each, inputs, strict=True):
        if not isinstance(s, int | float | np.floating) or not 0 <= s < inf:
            raise ArgumentError(f"stdevs must be finite numbers of at least 0, in input units, got {s!r}")
        if s and not t.is_floating_point():
            raise TypeError(
                f"stdevs are {stdevs}, but an input has dtype {t.dtype}, to which no noise can be added; give it 0, or "
                "pass it as additional_forward_args"
            )
    return tuple(float(s) for s in each)


# --- noise on the inputs ----------------------------------------------------------------------------------


@dataclass
class Moments:
    """How many samples there were of each example, their mean [B, ...] and their squared distances from it, summed up.

    In float32 at least; put together as by Chan, Golub, LeVeque (1983), who never subtract one large square from
    another.
    """

    count: Tensor  # [B, 1, ...]
    mean: Tensor
    spread: Tensor

    @classmethod
    def none(cls, examples: int, like: Tensor) -> "Moments":
        """Of no samples as yet, which will be like these [n, ...]."""
        zero = like.new_zeros(examples, *like.shape[1:], dtype=torch.promote_types(like.dtype, torch.float32))
        return cls(zero.new_zeros(examples, *(1,) * (like.ndim - 1)), zero, zero.clone())

    def add(self, a: Tensor, rows: Tensor) -> None:
        """Samples [n, ...] of the examples ``rows`` [n]: all from the first to the last of them, in order."""
        some = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0)
        before, mean, spread = self.count[some], self.mean[some], self.spread[some]
        a, mine = a.to(mean.dtype), rows - some.start if len(rows) else rows
        count = torch.zeros_like(before).index_add_(0, mine, before.new_ones(len(mine), *before.shape[1:]))
        first = a[torch.searchsorted(mine, mine.unique())]  # measured from there, sums stay small
        a = a - first[mine]
        centre = torch.zeros_like(mean).index_add_(0, mine, a) / count
        off, part = first + centre - mean, count / (before + count)
        spread.index_add_(0, mine, (a - centre[mine]).square()).add_(off.square() * before * part)
        mean.add_(off * part)
        before.add_(count)

    @property
    def variance(self) -> Tensor:
        return self.spread / self.count


TUNNELS: dict[str, Callable[[Moments], Tensor]] = {
    "smoothgrad": lambda m: m.mean,
    "smoothgrad_sq": lambda m: m.variance + m.mean.square(),
    "vargrad": lambda m: m.variance,
}


class NoiseTunnel(Attribution):
    """Attributions of noisy copies of the inputs, put together: their mean, mean square or variance.

    SmoothGrad: Smilkov, Thorat, Kim, Viégas, Wattenberg (2017), arXiv 1706.03825. Its square: Hooker, Erhan,
    Kindermans, Kim (NeurIPS 2019), arXiv 1806.10758. VarGrad: Adebayo et al. (2018), arXiv 1810.03292.

    Args:
        attribution_method: any method, of a layer or a neuron too; also one of captum's, or your own.

    >>> import torch
    >>> from robustx.attribution import IntegratedGradients
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.rand(4, 3)
    >>> a = NoiseTunnel(IntegratedGradients(model)).attribute(x, nt_samples=8, stdevs=0.1, target=1, seed=0)
    >>> a.shape, bool((a - x * model.weight[1]).abs().max() < 0.2)
    (torch.Size([4, 3]), True)
    """

    def __init__(self, attribution_method: Any) -> None:
        if not all(hasattr(attribution_method, name) for name in ("attribute", "forward_func")):
            raise TypeError(
                f"attribution_method must be an attribution, such as Saliency(model), got "
                f"{type(attribution_method).__name__}"
            )
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        return bool(self.attribution_method.has_convergence_delta())

    @drawing
    def attribute(
        self,
        inputs: Any,
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        draw_baseline_from_distrib: bool = False,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the method gives, smoothed; with ``return_convergence_delta`` also its deltas [B * nt_samples],
        example by example.

        Args:
            inputs: as the method takes them.
            nt_type: ``"smoothgrad"`` (mean), ``"smoothgrad_sq"`` (mean of squares) or ``"vargrad"`` (variance).
            nt_samples: noisy copies of each example.
            nt_samples_batch_size: how many of them the method sees at once. None: as many as fit into 64 MiB.
            stdevs: standard deviation of the noise, in input units; a tuple (dict) has one for each input.
            draw_baseline_from_distrib: ``baselines`` hold any number of rows, and each copy gets a random one.
            seed: draw by key, so that an example's noise depends neither on its batch nor on batch sizes; given to
                the method as well if that takes a seed. Without it, torch's global generator draws as for captum.
            kwargs: the method's own arguments. What belongs to the examples (target, baselines, feature_mask,
                additional_forward_args, additional_forward_kwargs) follows their copies.

        Raises:
            ValueError, TypeError: an argument is none of these; and whatever the method raises.
        """
        if nt_type not in TUNNELS:
            raise ArgumentError(f"nt_type must be one of {', '.join(map(repr, TUNNELS))}, got {nt_type!r}")
        n, door = whole("nt_samples", nt_samples, 1), Door.open(inputs)
        if nt_samples_batch_size is not None:
            whole("nt_samples_batch_size", nt_samples_batch_size, 1)
        draws = GlobalDraws() if seed is None else KeyedDraws.of(door.inputs, n, seed, "noise tunnel")
        if seed is not None and "seed" in signature(self.attribution_method.attribute).parameters:
            kwargs["seed"] = seed
        copies = _Copies(
            door, n, deviations(stdevs, door.inputs, door.names), draws, kwargs, draw_baseline_from_distrib
        )

        with_delta = bool(kwargs.get("return_convergence_delta")) and self.has_convergence_delta()
        moments: list[Moments] = []
        deltas: list[Tensor] = []
        order: list[Tensor] = []
        for k, noisy, told in copies.batches(nt_samples_batch_size, reuse=seed is None):
            if hasattr(self.attribution_method, "gradient_func"):  # captum's warn where they have to ask for gradients
                noisy = [t.requires_grad_(t.is_floating_point()) for t in noisy]
            found = self.attribution_method.attribute(door.out(noisy), **told)
            if with_delta:
                found, delta = found
                deltas.append(copies.apart(delta, k))
                order.append(k)
            leaves, form = tree_flatten(found)
            samples = [copies.apart(a, k) for a in leaves]
            moments = moments or [Moments.none(copies.examples, a) for a in samples]
            for m, a in zip(moments, samples, strict=True):
                m.add(a, k // n)
        smooth = [TUNNELS[nt_type](m).flatten(0, 1) for m in moments]
        smooth = [t.to(a.dtype) if a.is_floating_point() else t for t, a in zip(smooth, leaves, strict=True)]
        attributions = tree_unflatten(smooth, form)
        if not with_delta:
            return attributions
        return attributions, torch.cat(deltas)[torch.cat(order).argsort()].flatten(0, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attribution_method!r})"


@dataclass(frozen=True)
class _Copies:
    """Noisy copies of the examples, ``count`` of each, and the arguments that follow them."""

    door: Door
    count: int
    stds: tuple[float, ...]
    draws: Draws
    kwargs: dict[str, Any]
    draw_baselines: bool

    @property
    def examples(self) -> int:
        return len(self.door.inputs[0])

    def batches(self, size: int | None, reuse: bool) -> Iterator[tuple[Tensor, list[Tensor], dict[str, Any]]]:
        """Which copies [n] come next, the inputs' copies, and the arguments for them.

        ``size`` copies of each example at once, or as many as fit, example by example. With ``reuse``, batches of one
        ``size`` share baselines that are drawn, as captum's do.
        """
        inputs = self.door.inputs
        k = torch.arange(self.examples * self.count, device=inputs[0].device)
        parts = _parts(k, inputs) if size is None else [p.flatten() for p in k.view(-1, self.count).split(size, 1)]
        told: dict[str, Any] = {}
        for i, part in enumerate(parts):
            again = reuse and size is not None and i > 0 and len(part) == len(parts[i - 1])
            told = told if again else self._told(part)
            yield part, self._noisy(part), told

    def apart(self, a: Tensor, k: Tensor) -> Tensor:
        """[n * M, ...] -> [n, M, ...]: a method may give several rows for each of its inputs."""
        rows, left = divmod(len(a) if a.ndim else 1, max(len(k), 1))
        if left:
            raise ValueError(
                f"attribution_method gave shape {tuple(a.shape)} for {len(k)} copies of {self.examples} examples; it "
                "must give each of them rows of its own"
            )
        return a.detach().reshape(len(k), rows, *a.shape[1:])

    def _noisy(self, k: Tensor) -> list[Tensor]:
        each = [t[k // self.count] for t in self.door.inputs]
        noise = [self.draws.normal(k, i, t, s) for i, (t, s) in enumerate(zip(each, self.stds, strict=True))]
        return [(t + z).to(t.dtype) if t.is_floating_point() else t for t, z in zip(each, noise, strict=True)]

    def _told(self, k: Tensor) -> dict[str, Any]:
        """The arguments with a row for each copy where they have one for each example."""
        rows, b = k // self.count, self.examples

        def follow(v: Any) -> Any:
            if not isinstance(v, Tensor) or not v.ndim:
                return v
            if len(v) == len(rows) != b:
                raise ValueError(
                    f"additional arguments hold a tensor of shape {tuple(v.shape)}, which would be taken for one row "
                    f"for each of {len(rows)} copies of {b} examples; choose another nt_samples_batch_size"
                )
            return v[rows.to(v.device)] if len(v) == b else v

        def drawn(v: Tensor, i: int) -> Tensor:
            if not len(v):
                raise ArgumentError(f"baselines of shape {tuple(v.shape)} have no rows to draw from; give some")
            return v[self.draws.index(k, i, len(v)).to(v.device)]

        def repeated(v: Tensor, i: int) -> Tensor:
            return v[rows.to(v.device)] if len(v) == b > 1 else v

        change: dict[str, Callable[[Any], Any]] = {
            "additional_forward_args": lambda v: tuple(map(follow, v)) if isinstance(v, tuple) else follow(v),
            "additional_forward_kwargs": lambda v: {name: follow(w) for name, w in v.items()} if v else v,
            "target": lambda v: _targets(v, rows, b),
            "baselines": lambda v: self._each(v, drawn if self.draw_baselines else repeated),
            "feature_mask": lambda v: self._each(v, repeated),
        }
        return {name: change[name](v) if name in change else v for name, v in self.kwargs.items()}

    def _each(self, value: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
        """An argument that may have an entry for each input; what has no batch axis, or is no tensor, stays."""
        inputs = self.door.inputs

        def one(v: Any, i: int) -> Any:
            batched = isinstance(v, Tensor) and i < len(inputs) and v.ndim == inputs[i].ndim
            return change(v, i) if batched else v

        if isinstance(value, Mapping):
            place = {name: i for i, name in enumerate(self.door.names or ())}
            return {name: one(v, place.get(name, len(inputs))) for name, v in value.items()}
        return tuple(one(v, i) for i, v in enumerate(value)) if isinstance(value, tuple | list) else one(value, 0)


def _targets(target: Any, rows: Tensor, b: int) -> Any:
    """A target with one entry for each example, for the examples of ``rows``; others as they are."""
    if isinstance(target, Output):
        return Output(_targets(target.target, rows, b))
    if isinstance(target, Each) and target.targets is not None:
        return Each([_targets(t, rows, b) for t in target.targets])
    if not isinstance(target, list) and not (isinstance(target, Tensor) and target.ndim == 1 and len(target) > 1):
        return target
    if len(target) != b:
        raise TargetError(f"Target list length does not match output! {len(target)} targets for {b} examples")
    return target[rows.to(target.device)] if isinstance(target, Tensor) else [target[i] for i in rows.tolist()]


def _parts(k: Tensor, inputs: Tensors) -> list[Tensor]:
    """Some copies of examples [n], as many at once as fit.

    For a single input they draw what all would draw at once, if torch's generator fills a tensor in order, sixteen
    numbers at a time, as on CPUs; several inputs take turns.
    """
    sizes = [prod(t.shape[1:]) for t in inputs]
    unit = 16 // gcd(16, *sizes)
    each = sum(n * t.element_size() for n, t in zip(sizes, inputs, strict=True))
    parts = list(k.split(max(1, BUDGET // max(1, each) // unit) * unit))
    if len(parts) > 1 and len(parts[-1]) < unit:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


# --- random references ------------------------------------------------------------------------------------


def gradient_shap(
    f: Probe, rows: Tensor, starts: Tensor, ends: Tensor, points: Tensor, multiply: bool = True
) -> Iterator[tuple[slice, Tensor]]:
    """What single ways share out: the gradient at a point of each, times the way [n, L] ([n, T, L]), batch by batch.

    Erion, Janizek, Sturmfels, Lundberg, Lee (Nature Machine Intelligence 2021); Lundberg, Lee (NeurIPS 2017).
    Over random references and points its mean is the expected gradient, which adds up to f(x) - mean f(reference).

    ``starts`` and ``ends`` [N, D] stand at the inputs, with ``points`` [N] between them; ``rows`` [N] are their
    examples. Where f stands at a layer the inputs walk, the gradient is the layer's, and the way is the difference of
    what the layer makes of both ends. Without ``multiply``, the gradient itself.
    """

    def query(part: slice) -> tuple[Tensor, Tensor]:
        return torch.lerp(starts[part], ends[part], points[part, None]), rows[part]

    for part, g in _slopes(f, len(rows), query):
        yield part, times(_way(f, starts[part], ends[part], rows[part]), g) if multiply and len(g) else g


def _slopes(f: Probe, n: int, query: Query) -> Iterator[tuple[slice, Tensor]]:
    """The gradients where f stands, for queries that stand at the inputs."""
    if isinstance(f.at, Input):
        return ((part, g) for part, _, g in f.grads(n, query))
    return ((at.part, at.grad) for at in f.locals(n, query))


def _way(f: Probe, starts: Tensor, ends: Tensor, rows: Tensor) -> Tensor:
    """From what stands where f stands for the starts, to what stands there for the ends [n, L].

    Inputs and references come again and again: of equal ones the model sees one.
    """
    if isinstance(f.at, Input):
        return ends - starts

    def read(*args: Any, **kwargs: Any) -> Tensor:
        here = f.at.read(lambda _: f.model(*args, **kwargs), ())
        return Packing.of(here).pack(here)

    both, rows = torch.cat([starts, ends]), rows.repeat(2)
    keys = torch.cat([both, rows[:, None].to(both)], 1) if f.follows else both
    which = keys.unique(dim=0, return_inverse=True)[1]
    one = torch.zeros_like(which[: which.max() + 1]).scatter_(0, which, torch.arange(len(which), device=which.device))
    there = f.to(model=read, of=Everything(), at=Input()).value(both[one], rows[one])
    return there[which[len(starts) :]].sub_(there[which[: len(starts)]])


class RandomWays(GradientAttribution):
    """Methods that average over random references: gradients on the way from there, times the way.

    Arguments that they share:

    - ``baselines``: the distribution: a tensor [M, ...] with any number of rows, a tuple (dict) of them for several
      inputs, or a function that makes them, without arguments or of the inputs.
    - ``n_samples``: how many are drawn for each example.
    - ``return_convergence_delta``: also by how much each sample misses its rise [B * n_samples], example by example.
    """

    def __init__(self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self._multiply = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        return self._multiply

    def has_convergence_delta(self) -> bool:
        return True

    def _distribution(self, f: Probe, inputs: Any, baselines: Any, together: bool = True) -> Tensors:
        for i, t in enumerate(f.inputs):
            if not t.is_floating_point():
                raise TypeError(
                    f"inputs walk from random baselines, but input {i} has dtype {t.dtype}; take "
                    "LayerIntegratedGradients, which walks at a layer, such as the embedding of token ids, or pass it "
                    "as additional_forward_args"
                )
        return distribution(given_by(baselines, inputs), f, together)

    def _mean(
        self, f: Probe, count: int, ways: Callable[[Tensor], tuple[Tensor, Tensor]], points: Tensor, with_delta: bool
    ) -> tuple[Tensors, Tensor | None]:
        """The mean over ``count`` samples of each example [B, ...], and how much each sample misses [B * count].

        ``ways`` makes both ends of some samples ``k`` [n]; it may draw, so it is asked outside the guard.
        """
        entry, total = f.to(at=Input()), None
        deltas: list[Tensor] = []
        for k in _parts(torch.arange(len(points), device=f.device), f.inputs):
            rows, (starts, ends) = k // count, ways(k)
            with untouched(self.forward_func):
                for part, share in gradient_shap(f, rows, starts, ends, points[k], self._multiply):
                    total = share.new_zeros(f.examples, *share.shape[1:]) if total is None else total
                    total.index_add_(0, rows[part], share, alpha=1 / count)
                    if with_delta and len(share):
                        rise = entry.value(ends[part], rows[part]) - entry.value(starts[part], rows[part])
                        deltas.append(share.sum(-1) - rise)
                    del share
        total = points.new_zeros(0, sum(f.packing.sizes)) if total is None else total
        delta = torch.cat(deltas) if deltas else points.new_zeros(0)
        return f.packing.unpack(total), delta if with_delta else None


class GradientShap(RandomWays):
    """Expected gradients from noisy inputs: each sample has its own noise, reference, and point on the way.

    Lundberg, Lee (NeurIPS 2017), arXiv 1705.07874; see :func:`gradient_shap`. Draws as Captum's class of this name,
    so that the global generators, seeded alike, give the same numbers.

    Args:
        forward_func: the model.
        multiply_by_inputs: False gives the mean gradient, without the factor inputs - baselines.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x, data = torch.rand(4, 3), torch.rand(10, 3)
    >>> a, delta = GradientShap(model).attribute(x, data, n_samples=6, target=1, return_convergence_delta=True)
    >>> a.shape, delta.shape, bool(delta.abs().max() < 1e-5)
    (torch.Size([4, 3]), torch.Size([24]), True)
    """

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; see :class:`RandomWays`.

        Args:
            inputs, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            baselines, n_samples, return_convergence_delta: see :class:`RandomWays`; each of several inputs draws its
                own row.
            stdevs: standard deviation of the noise on the inputs; a tuple (dict) has one for each input.
            seed: draw by key, so that an example's attribution does not depend on its batch. Without it numpy's and
                torch's global generators draw.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        parts, delta = self._shap(f, inputs, baselines, n_samples, stdevs, seed, return_convergence_delta)
        return (door.out(parts), delta) if return_convergence_delta else door.out(parts)

    def _shap(
        self,
        f: Probe,
        inputs: Any,
        baselines: Any,
        n_samples: int,
        stdevs: Any,
        seed: int | None,
        with_delta: bool = False,
    ) -> tuple[Tensors, Tensor | None]:
        count, stds = whole("n_samples", n_samples, 1), deviations(stdevs, f.inputs, f.names)
        data, entry = self._distribution(f, inputs, baselines, together=False), f.to(at=Input())
        draws = GlobalDraws() if seed is None else KeyedDraws.of(f.inputs, count, seed, "gradient shap")
        everyone = torch.arange(f.examples * count, device=f.device)
        drawn = [draws.index(everyone, i, len(d)) for i, d in enumerate(data)]
        points = draws.uniform(everyone).to(entry.point)

        def ways(k: Tensor) -> tuple[Tensor, Tensor]:
            noise = [draws.normal(k, i, t, s) for i, (t, s) in enumerate(zip(f.inputs, stds, strict=True))]
            starts = entry.packing.pack([d[i[k]] for d, i in zip(data, drawn, strict=True)])
            return starts, entry.point[k // count] + entry.packing.pack(noise)

        return self._mean(f, count, ways, points, with_delta)


class LayerGradientShap(LayerAttribution, GradientShap):
    """:class:`GradientShap` at a layer: gradients there while the inputs walk, times what the layer makes of the way.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> x, data = torch.rand(5, 3), torch.zeros(1, 3)
    >>> a = LayerGradientShap(model, model[0]).attribute(x, data, target=1)
    >>> torch.allclose(a, (model[0](x) - model[0](data)) * model[1].weight[1], atol=1e-6)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer | Sequence[nn.Module | Layer],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self._multiply = multiply_by_inputs

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the layer's output (or its input); otherwise as for :class:`GradientShap`."""
        site = self._site(attribute_to_layer_input)
        door, f = self._bind(
            inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size, at=site
        )
        parts, delta = self._shap(f, inputs, baselines, n_samples, stdevs, seed, return_convergence_delta)
        return (self._out(site, parts), delta) if return_convergence_delta else self._out(site, parts)


class NeuronGradientShap(NeuronAttribution, GradientShap):
    """:class:`GradientShap` of a neuron's value.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> a = NeuronGradientShap(model, model[0]).attribute(x, 1, torch.zeros(1, 3))
    >>> torch.allclose(a, x * model[0].weight[1], atol=1e-6)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Layer,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        self._multiply = multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        return False

    @drawing
    def attribute(  # type: ignore[override]  # Captum's order of arguments
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[[Any], Tensor],
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs; otherwise as for :class:`GradientShap`.

        Args:
            neuron_selector, attribute_to_neuron_input: see :class:`NeuronIntegratedGradients`.
        """
        score = self._neuron(neuron_selector, attribute_to_neuron_input)
        door, f = self._bind(inputs, score, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        return door.out(self._shap(f, inputs, baselines, n_samples, stdevs, seed)[0])


class ExpectedGradients(RandomWays):
    """Integrated gradients averaged over a data set of baselines: no single baseline has to be chosen.

    Erion, Janizek, Sturmfels, Lundberg, Lee (Nature Machine Intelligence 2021), arXiv 1906.10670. Attributions add up
    to f(x) - mean f(baselines) in expectation, and exactly for a linear model where ``n_samples`` is a multiple of the
    baselines. References and points on the way are drawn by key as a Latin hypercube (McKay, Beckman, Conover,
    Technometrics 1979): each as if at random, all of them evenly.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x, data = torch.rand(4, 3), torch.rand(10, 3)
    >>> a = ExpectedGradients(model).attribute(x, data, n_samples=20, target=1)
    >>> torch.allclose(a, (x - data.mean(0)) * model.weight[1], atol=1e-6)
    True
    """

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 100,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        seed: int = 0,
    ) -> Any:
        """Attributions shaped like the inputs; see :class:`RandomWays`.

        Args:
            inputs, target, additional_forward_args, internal_batch_size: see :class:`Attribution`.
            baselines, n_samples, return_convergence_delta: see :class:`RandomWays`; several inputs share the row.
            seed: of the draws, which depend on an example's content and not on its batch.
        """
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, internal_batch_size)
        count, data = whole("n_samples", n_samples, 1), self._distribution(f, inputs, baselines)
        entry = f.to(at=Input())
        drawn, points = _hypercube(Noise(seed, "expected gradients", identities(entry.point)), count, len(data[0]))
        drawn, points = drawn.to(f.device), points.to(entry.point)

        def ways(k: Tensor) -> tuple[Tensor, Tensor]:
            return entry.packing.pack([d[drawn[k]] for d in data]), entry.point[k // count]

        parts, delta = self._mean(f, count, ways, points, return_convergence_delta)
        return (door.out(parts), delta) if return_convergence_delta else door.out(parts)


def _hypercube(noise: Noise, count: int, among: int) -> tuple[Tensor, Tensor]:
    """References and points on the way [B * count]: one of each in each of ``count`` strata, paired at random."""
    u = noise.uniform(3 * count, torch.zeros((), dtype=torch.float64)).unflatten(1, (3, count))
    rows = (torch.arange(count) + u[:, 0]) / count * among
    points = (u[:, 1].argsort(1) + u[:, 2]) / count
    return rows.long().clamp(max=among - 1).flatten(), points.flatten()

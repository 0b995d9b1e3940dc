"""References: what features give way to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..engine.checks import ArgumentError, ArgumentTypeError, whole
from ..engine.packing import Tensors, finest, flat
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise, identities
from ..engine.scores import Everything
from ..engine.sites import Input
from .goals import Goal, as_logits

Reference = Callable[[Probe], Tensors]
"""Asked with a probe: tensors that can stand at its site, one row for each example."""

Giver = Callable[[Tensor, Tensor], Tensors]
"""(gates [n, F], examples [n]) -> what the features of each query give way to, where that depends on the query."""

Fill = Callable[[Tensors, Tensor], Tensors]
"""(how far elements have given way [n, ...] each, their examples [n]) -> what stands in their place [n, ...] each."""


class Filling(ABC):
    """What features give way to where it depends on those that stay: a :data:`Reference` at gates, and only there."""

    @abstractmethod
    def bound(self, f: Probe) -> Fill:
        """For the examples of a probe, at its site."""

    def __call__(self, f: Probe) -> Tensors:
        raise ArgumentTypeError(
            f"{type(self).__name__} depends on which features stay, so there is no single point to compare with; use "
            "it where features give way (FeatureAblation and its kin), and elsewhere blur, mean or among"
        )


def through(baselines: Any) -> Reference:
    """Reference inputs; at a layer, what the layer makes of them. This is Captum's ``baselines``.

    Args:
        baselines: None (zero), a number, a tensor [1 or B, ...] or without the batch axis, or a tuple (dict)
            of these, one for each input; or any :data:`Reference`, which it then is.
    """
    return _asked(baselines, lambda f: f.to(inputs=_like_inputs(baselines, f)).here)


def by(function: Callable[..., Any]) -> Reference:
    """What a function of your own makes of the inputs, which it is given as the model is.

    >>> blank = by(lambda x: x.mean(1, keepdim=True))
    >>> blank(Probe(lambda x: x, (torch.tensor([[1.0, 3.0], [2.0, 6.0]]),)))
    (tensor([[2., 2.],
            [4., 4.]]),)
    """

    def made(f: Probe) -> Tensors:
        inputs = tuple(t.clone() for t in f.inputs)
        named = None if f.names is None else dict(zip(f.names, inputs, strict=True))
        return through(function(*inputs) if named is None else function(**named))(f)

    return made


def here(baselines: Any) -> Reference:
    """Baselines in the forms of :func:`through`, but at the very site."""
    return _asked(baselines, lambda f: _like_inputs(baselines, f.to(inputs=f.here, names=None, at=Input())))


def _asked(baselines: Any, otherwise: Reference) -> Reference:
    return baselines if callable(baselines) else otherwise


def mean(data: Tensor | tuple[Tensor, ...]) -> Reference:
    """The mean of a data set [M, ...]."""
    data = (data,) if isinstance(data, Tensor) else data
    return through(tuple(finest(t).mean(0, keepdim=True).to(t.dtype) for t in data))


def blur(sigma: float = 3.0) -> Reference:
    """The pictures themselves, blurred by a Gaussian of ``sigma`` pixels (Fong, Vedaldi, ICCV 2017)."""

    def blurred(t: Tensor) -> Tensor:
        from scipy.ndimage import gaussian_filter

        widths = (0.0,) * 2 + (sigma,) * 2
        return torch.from_numpy(gaussian_filter(t.detach().double().cpu().numpy(), widths)).to(t)

    return lambda f: through(tuple(blurred(t) for t in _pictures("blur", f)))(f)


def colour() -> Reference:
    """The mean of each channel of each picture.

    >>> colour()(Probe(lambda x: x, (torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]),)))
    (tensor([[[[2., 2.],
              [2., 2.]]]]),)
    """

    return lambda f: through(tuple(finest(t).mean((2, 3), keepdim=True).to(t) for t in _pictures("mean", f)))(f)


def static(seed: int = 0) -> Reference:
    """White noise in place of pictures, uniform between the least and the greatest of each channel, drawn by key.

    >>> (told,) = static()(Probe(lambda x: x, (torch.arange(16.0).reshape(1, 1, 4, 4),)))
    >>> bool(told.min() >= 0 and told.max() <= 15)
    True
    """

    def drawn(f: Probe) -> Tensors:
        pictures = _pictures("noise", f)
        draws = Noise(seed, "reference static", identities(*pictures))
        found = []
        for t in pictures:
            low, high = t.amin((2, 3), keepdim=True), t.amax((2, 3), keepdim=True)
            found.append(torch.lerp(low, high, draws.uniform(flat(t).shape[1], t).reshape(t.shape)))
        return through(tuple(found))(f)

    return drawn


def _pictures(name: str, f: Probe) -> Tensors:
    for t in f.inputs:
        if t.ndim != 4 or not t.is_floating_point():
            raise ArgumentError(
                f"reference {name!r} is for pictures [B, C, H, W], got shape {tuple(t.shape)} ({t.dtype}); "
                "choose another, such as a number or a tensor"
            )
    return f.inputs


def among(data: Tensor | tuple[Tensor, ...], seed: int = 0) -> Reference:
    """A row of a data set [M, ...] for each example, drawn by key (the marginal distribution)."""
    data = (data,) if isinstance(data, Tensor) else data

    def drawn(f: Probe) -> Tensors:
        point = f.to(at=Input()).point
        pick = (Noise(seed, "reference", identities(point)).uniform(1, point.double()) * len(data[0])).long().squeeze(1)
        return through(tuple(t.to(f.device)[pick] for t in data))(f)

    return drawn


def noise(std: float = 1.0, mean: float = 0.0, seed: int = 0) -> Reference:
    """Gaussian noise in place of the inputs, drawn by key."""

    def drawn(f: Probe) -> Tensors:
        entry = f.to(at=Input())
        z = Noise(seed, "reference noise", identities(entry.point)).normal(entry.point.shape[1], entry.point)
        return through(entry.packing.unpack(mean + std * z))(f)

    return drawn


def nearest_unlike(data: Tensor | tuple[Tensor, ...], labels: Tensor | None = None) -> Reference:
    """For each example the nearest row of a data set that reaches its goal: the only reference that brings evidence.

    The distractor of Goyal et al. (ICML 2019), section 3.1, found as the nearest unlike neighbour: in the L2 norm of
    the inputs. Whatever gives way to it, the goal can be reached. Where no row reaches it, the example stands for
    itself, and nothing can change. The passes of the data set are not counted, as they are no example's.

    Args:
        data: [M, ...], one tensor for each input.
        labels: their classes [M]: rows that the model takes for another class are left out.

    Raises:
        ArgumentError: asked with a probe whose score is no goal, or that has further arguments for each example; the
            data or the labels do not fit.

    >>> from robustx.perturb import Reach
    >>> model = lambda x: torch.cat([x, 1 - x], 1)
    >>> f = Probe(model, (torch.tensor([[0.1], [0.9]]),), Reach(torch.tensor([0, 1])))
    >>> nearest_unlike(torch.tensor([[0.0], [0.4], [0.6], [0.7]]))(f)
    (tensor([[0.6000],
            [0.4000]]),)
    """

    def found(f: Probe) -> Tensors:
        if not isinstance(f.of, Goal):
            raise ArgumentError(
                f"nearest_unlike asks which rows reach the goal, but the score is no goal but {type(f.of).__name__}; "
                "take it for counterfactuals, and elsewhere among"
            )
        if f.follows:
            raise ArgumentError(
                "nearest_unlike asks the model about rows of other data, for which the additional_forward_args of the "
                "examples say nothing; pass the neighbours themselves, as a tensor"
            )
        rows = distribution(data, f)
        out = f.to(inputs=rows, at=Input(), of=Everything(), meter=None).score
        right = torch.ones(len(out), dtype=torch.bool, device=f.device)
        if labels is not None:
            if labels.shape != right.shape:
                raise ArgumentError(f"labels must be one for each of {len(out)} rows, got shape {tuple(labels.shape)}")
            right = as_logits(out, right).argmax(1) == labels.to(f.device)
        x, z = (torch.cat([flat(finest(t)) for t in tensors], 1) for tensors in (f.inputs, rows))
        near = []
        most = max(1, 2**24 // max(out.numel(), 1))  # pairs of an example and a row are held for so many examples
        for some in f.everyone.split(most):
            pairs = out.repeat(len(some), *(1,) * (out.ndim - 1)), some.repeat_interleave(len(out))
            reached = (f.of.plain.value(*pairs) > 0).reshape(len(some), len(out)) & right
            away = torch.cdist(x[some], z, compute_mode="donot_use_mm_for_euclid_dist")
            near.append(torch.where(reached.any(1), away.masked_fill(~reached, torch.inf).argmin(1), -1))
        pick = torch.cat(near) if near else f.everyone
        none = pick < 0
        return through(
            tuple(
                torch.where(none.reshape(-1, *(1,) * (t.ndim - 1)), t, row[pick])
                for t, row in zip(f.inputs, rows, strict=True)
            )
        )(f)

    return found


@dataclass(frozen=True)
class Inpainted(Filling):
    """Pictures [B, C, H, W] whose missing elements are painted in from those that stay; their mean if none does.

    Args:
        method: "smooth" takes means of what stays around, from ever wider squares until there is some (Gortler et
            al., SIGGRAPH 1996, section 3.4, pull and push), for all pictures at once; "linear" makes each missing
            element the weighted mean of its eight neighbours, missing ones too (Rong, Leemann, Borisov, Kasneci,
            Kasneci, ICML 2022), by scipy; "biharmonic" is scikit-image's ``inpaint_biharmonic``; both picture by
            picture.
        noise: the standard deviation of Gaussian noise on what is painted, in input units, so that smoothness does not
            tell which elements are missing. Drawn by key; an example has the same each time.
        seed: of the noise.

    Raises:
        ArgumentError: no such method; asked with a probe, what stands there is no picture.
    """

    method: Literal["smooth", "linear", "biharmonic"] = "smooth"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in _PAINTERS:
            raise ArgumentError(f"method must be {', '.join(map(repr, _PAINTERS))}, got {self.method!r}")

    def bound(self, f: Probe) -> Fill:
        here = f.here
        for t in here:
            if t.ndim != 4 or not t.is_floating_point():
                raise ArgumentError(
                    f"Inpainted is for pictures [B, C, H, W] of floats, got shape {tuple(t.shape)} ({t.dtype}); "
                    "choose another reference"
                )
        paint = _PAINTERS[self.method]
        wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in here]
        grain: list[Tensor] = []
        if self.noise:
            draws = Noise(self.seed, "inpainted", identities(*here))
            grain = [self.noise * draws.normal(flat(t).shape[1], t).view_as(t) for t in wide]

        def fill(shut: Tensors, rows: Tensor) -> Tensors:
            pictures = [t[rows] for t in wide]
            found = [paint(t, s == 0, t.mean((2, 3), keepdim=True)) for t, s in zip(pictures, shut, strict=True)]
            noisy = [t + g[rows] for t, g in zip(found, grain, strict=True)] if grain else found
            return tuple(t.to(given.dtype) for t, given in zip(noisy, here, strict=True))

        return fill


def _pulled(x: Tensor, known: Tensor, otherwise: Tensor) -> Tensor:
    """``x`` where it is ``known``, elsewhere the same of pictures of half the size; at last ``otherwise``."""
    if known.all():
        return x
    if x[0, 0].numel() == 1:
        return torch.where(known, x, otherwise)
    weight = avg_pool2d(known.to(x), 2, ceil_mode=True)
    halved = avg_pool2d(torch.where(known, x, 0), 2, ceil_mode=True) / torch.where(weight > 0, weight, 1)
    wide = interpolate(_pulled(halved, weight > 0, otherwise), x.shape[2:], mode="bilinear")
    return torch.where(known, x, wide)


def _linear(x: Tensor, known: Tensor, otherwise: Tensor) -> Tensor:
    """``x`` where it is ``known``, elsewhere the weighted mean of its neighbours within the picture.

    The equations of all places are solved at once; those of pictures and channels that miss the same are one system.
    """
    from scipy.sparse import diags, eye, kron
    from scipy.sparse.linalg import splu

    h, w = x.shape[2:]
    rows, columns = (diags([1.0, 2.0, 1.0], [-1, 0, 1], shape=(n, n)) for n in (h, w))
    around = ((kron(rows, columns) - 4 * eye(h * w)) / 12).tocsr()  # 1/6 beside, 1/12 across, nothing for itself
    equations = diags(np.asarray(around.sum(1)).ravel()) - around
    masks, which = known.flatten(0, 1).flatten(1).unique(dim=0, return_inverse=True)
    found = torch.where(known, x, otherwise).flatten(0, 1).flatten(1)
    for i, stays in enumerate(masks.cpu().numpy()):
        gone = ~stays
        if not gone.any() or not stays.any():
            continue
        own = (which == i).nonzero().squeeze(1)
        values = found[own].double().cpu().numpy()
        matrix = equations.tocsr()[gone][:, gone].tocsc()
        solver = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        values[:, gone] = solver.solve(around[gone][:, stays] @ values[:, stays].T).T
        found[own] = torch.from_numpy(values).to(found)
    return found.view_as(x)


def _biharmonic(x: Tensor, known: Tensor, otherwise: Tensor) -> Tensor:
    from skimage.restoration import inpaint_biharmonic

    found = torch.where(known, x, otherwise)
    for i, c in (~known).flatten(2).any(2).nonzero().tolist():
        if known[i, c].any():
            painted = inpaint_biharmonic(x[i, c].double().cpu().numpy(), (~known[i, c]).cpu().numpy())
            found[i, c] = torch.from_numpy(painted).to(x)
    return found


_PAINTERS = {"smooth": _pulled, "linear": _linear, "biharmonic": _biharmonic}


@dataclass(frozen=True, eq=False)
class Neighbours(Filling):
    """A row of a data set that resembles the example in the features that stay: draws from a conditional distribution.

    Aas, Jullum, Løland (Artificial Intelligence 298, 2021), section 3.3, with plain instead of Mahalanobis distances,
    each element measured in its own standard deviations. Of the ``k`` nearest rows (more if several are equally
    near; all if nothing stays) one is drawn by key. A row that equals the example in everything is no neighbour.

    Args:
        data: [M, ...], one tensor for each input; at a layer, what the layer makes of them.
        k: how many neighbours.
        seed: of the draws.

    Raises:
        ArgumentError: asked with a probe, the data do not fit the inputs or have less than ``k`` rows.
    """

    data: Tensor | tuple[Tensor, ...]
    k: int = 1
    seed: int = 0

    def bound(self, f: Probe) -> Fill:
        there = f.to(inputs=distribution(self.data, f), meter=None).here
        z, x = (torch.cat([flat(finest(t)) for t in tensors], 1) for tensors in (there, f.here))
        if whole("k", self.k, 1) > len(z):
            raise ArgumentError(f"k must be at most the number of rows in data, {len(z)}, got {self.k}")
        unit = z.std(0, correction=0)
        z, x = z / torch.where(unit > 0, unit, 1), x / torch.where(unit > 0, unit, 1)
        order = Noise(self.seed, "neighbours", identities(x)).uniform(len(z), x)
        itself = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist") == 0

        def fill(shut: Tensors, rows: Tensor) -> Tensors:
            stays = (torch.cat([flat(s) for s in shut], 1) == 0).to(x)
            size = stays @ z.T.square()  # of each row of the data in what stays [n, M]
            away = (stays * x[rows].square()).sum(1, keepdim=True) + size - 2 * (stays * x[rows]) @ z.T
            away = away.masked_fill(itself[rows], torch.inf)
            least = away.kthvalue(self.k, 1, keepdim=True).values
            near = away <= least + 1e-9 * (1 + size)  # what differs by rounding is equal
            pick = order[rows].masked_fill(~near, -1).argmax(1)
            return tuple(t[pick] for t in there)

        return fill


NAMED: Mapping[str, Callable[[], Reference]] = {"blur": blur, "mean": colour, "inpaint": Inpainted, "noise": static}
"""References of pictures that need nothing but a name."""


def named(given: Any) -> Reference:
    """A reference by its name (:data:`NAMED`), or in any form that :func:`through` takes.

    Raises:
        ArgumentError: no such name.

    >>> named("inpaint")
    Inpainted(method='smooth', noise=0.0, seed=0)
    """
    if not isinstance(given, str):
        return through(given)
    if given not in NAMED:
        raise ArgumentError(
            f"reference must be {', '.join(map(repr, NAMED))}, a number, a tensor or a Reference such as "
            f"nearest_unlike(data), got {given!r}"
        )
    return NAMED[given]()


def given_by(baselines: Any, inputs: Any) -> Any:
    """Baselines as they are; of a function, what it makes of the inputs in their own form, or of no argument.

    It may draw from the global generators, so it is to be asked where these are not given back.
    """
    if not callable(baselines):
        return baselines
    Door.open(inputs)  # what is wrong with them is told before a function stumbles over it
    return baselines(inputs) if signature(baselines).parameters else baselines()


def distribution(baselines: Any, f: Probe, together: bool = True) -> Tensors:
    """Reference inputs of any number of rows, [S, ...] each: Captum's ``baselines`` where they are a distribution.

    Args:
        baselines: a tensor [S, ...], or a tuple (dict) of these, one for each input; a number is one row.
        f: a probe of the inputs.
        together: one draw serves all inputs, so all must have one number of rows, or a single one.

    Raises:
        TypeError, ValueError: they are none of these, or do not fit the inputs.
    """
    parts = [_rows(b, x, i) for i, (b, x) in enumerate(zip(_each_input(baselines, f), f.inputs, strict=True))]
    most = max(map(len, parts))
    if together and not {len(b) for b in parts} <= {1, most}:
        raise ArgumentError(f"baselines must have one number of rows, got {', '.join(str(len(b)) for b in parts)}")
    return tuple(b.expand(most, *b.shape[1:]) if together else b for b in parts)


def _rows(b: Any, x: Tensor, i: int) -> Tensor:
    """[S, ...] for input ``i``."""
    if isinstance(b, int | float):
        return x.new_full((1, *x.shape[1:]), b)
    if not isinstance(b, Tensor):
        raise ArgumentTypeError(
            f"baselines must be tensors [S, ...], numbers or a function that makes them, got {type(b).__name__}"
        )
    if b.ndim != x.ndim or b.shape[1:] != x.shape[1:] or not len(b):
        raise ArgumentError(
            f"baselines of shape {tuple(b.shape)} do not fit input {i} of shape {tuple(x.shape)}; expected "
            f"[S, {', '.join(map(str, x.shape[1:]))}] with any number S of rows"
        )
    return b.detach().to(x)


def _each_input(baselines: Any, f: Probe) -> tuple[Any, ...]:
    """One entry for each input."""
    if isinstance(baselines, Mapping):
        names = f.names or ()
        if not baselines.keys() <= set(names):
            raise ArgumentError(
                f"baselines name {', '.join(baselines)}, but the inputs are {', '.join(names) or 'no dict'}"
            )
        baselines = tuple(baselines.get(n) for n in names)
    if not isinstance(baselines, tuple | list):
        baselines = (baselines,) * (len(f.inputs) if not isinstance(baselines, Tensor) else 1)
    if len(baselines) != len(f.inputs):
        raise ArgumentError(
            f"baselines must have one entry for each of the {len(f.inputs)} inputs, got {len(baselines)}"
        )
    return tuple(baselines)


def _like_inputs(baselines: Any, f: Probe) -> Tensors:
    parts = _each_input(baselines, f)
    return tuple(_like(b, x, i) for i, (b, x) in enumerate(zip(parts, f.inputs, strict=True)))


def _like(b: Any, x: Tensor, i: int) -> Tensor:
    if b is None or isinstance(b, int | float):
        return x.new_full((1,) * x.ndim, b or 0).expand(x.shape)
    if not isinstance(b, Tensor):
        raise ArgumentTypeError(f"baselines must be None, numbers or tensors, got {type(b).__name__} for input {i}")
    try:
        return b.detach().to(x).expand(x.shape)
    except RuntimeError:
        raise ArgumentError(
            f"baselines of shape {tuple(b.shape)} do not fit input {i} of shape {tuple(x.shape)}; "
            f"expected a number, [1, ...] or [{len(x)}, ...]"
        ) from None

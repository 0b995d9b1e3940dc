"""Surrogates: simple models fitted to the scores of coalitions around an example, which explain it in their place."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import isgeneratorfunction
from math import comb
from typing import Any, Literal, Protocol
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from ..engine.checks import ArgumentError, whole
from ..engine.guard import untouched
from ..engine.packing import Packing, Tensors, finest, flat
from ..engine.probe import Door, Probe
from ..engine.progress import progress
from ..engine.randomness import Noise
from ..engine.scores import Each, Everything, Output, Score, TargetError, one_each
from ..engine.sites import Call, Site
from ..perturb.features import Partition, elements, features_of
from ..perturb.gates import Gates
from ..perturb.references import here, through
from .base import PerturbationAttribution
from .coalitions import Absent, Answers, Coalitions
from .linear import LinearModel, SkLearnLasso, SkLearnLinearModel, least_squares
from .noise import BUDGET, drawing


class Surrogate(Protocol):
    """What explains a model in its place, such as any model of :mod:`robustx.attribution.linear`."""

    def fit(self, train_data: DataLoader[Any]) -> Any:
        """Fits it anew to one batch: samples [S, F], scores [S] and weights [S]."""

    def representation(self) -> Tensor:
        """What it explains by: the coefficients of F features, in any shape."""


Weigh = Callable[[Answers, Tensor], Tensor]
"""(answers, the samples [n, F] that they are about) -> how much each counts [n]."""


@dataclass(frozen=True)
class ExponentialKernel:
    """exp(-d² / (2 width²)) of the distance d between an example and its perturbed self.

    Ribeiro, Singh, Guestrin (KDD 2016), section 3.4; see :func:`get_exp_kernel_similarity_function`.
    """

    distance_mode: Literal["cosine", "euclidean"] = "cosine"
    kernel_width: float = 1.0

    def __post_init__(self) -> None:
        if self.distance_mode not in ("cosine", "euclidean"):
            raise ValueError(f"distance_mode must be 'cosine' or 'euclidean', got {self.distance_mode!r}")

    def __call__(self, original: Any, perturbed: Any, interpretable: Any = None, **kwargs: Any) -> float:
        """The weight of one sample, as Captum calls it."""
        one, other = (tuple(t[None] for t in Door.open(v).inputs) for v in (original, perturbed))
        return float(self._weights(one, other))

    def weigh(self, players: Coalitions) -> Weigh:
        """How much sets of players count."""
        features, away = players.features, _gates(players).reference
        if callable(away) or not isinstance(features, Partition):
            return lambda a, samples: self._weights(*_both(players, a))
        # Where elements are there or not, products of examples are sums over features, and nothing has to be perturbed.
        x, r = (torch.cat([finest(flat(t)) for t in v], 1) for v in (players.f.inputs, away))

        def product(u: Tensor, v: Tensor) -> Tensor:
            sums = features.gather(u * v)
            return sums.sum(0, keepdim=True) if players.whole else sums

        stays, crosses, comes, moves = product(x, x), product(x, r), product(r, r), product(x - r, x - r)

        def weights(a: Answers, samples: Tensor) -> Tensor:
            gone, rows = finest(a.absent), a.rows
            if self.distance_mode == "euclidean":
                return self._of((gone * moves[rows]).sum(1).sqrt())
            here = (1 - gone) * stays[rows]
            between, length = (here + gone * crosses[rows]).sum(1), (here + gone * comes[rows]).sum(1)
            return self._of(_angle(between, stays.sum(1)[rows].sqrt(), length.sqrt()))

        return weights

    def _weights(self, examples: Tensors, perturbed: Tensors) -> Tensor:
        """Of examples and their perturbed selves [n, ...]."""
        a, b = (torch.cat([_precise(flat(t)) for t in v], 1) for v in (examples, perturbed))
        if self.distance_mode == "euclidean":
            return self._of((a - b).norm(dim=1))
        return self._of(_angle(torch.linalg.vecdot(a, b), a.norm(dim=1), b.norm(dim=1)))

    def _of(self, distance: Tensor) -> Tensor:
        return (-distance.square() / (2 * self.kernel_width**2)).exp()


def _angle(product: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """1 less the cosine, of vectors with this product and these lengths; 1 if one of them is nothing."""
    return 1 - product / (one.clamp(min=1e-8) * other.clamp(min=1e-8))


def get_exp_kernel_similarity_function(
    distance_mode: Literal["cosine", "euclidean"] = "cosine", kernel_width: float = 1.0
) -> ExponentialKernel:
    """Captum's name for the usual similarity of :class:`Lime`.

    Args:
        distance_mode: ``"cosine"`` (one less the cosine) or ``"euclidean"``, of all elements of an example.
        kernel_width: the distance at which a sample counts exp(-1/2).

    >>> import torch
    >>> kernel = get_exp_kernel_similarity_function("euclidean", 5.0)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> round(kernel(x, torch.zeros(1, 2), None), 4)
    0.6065
    """
    return ExponentialKernel(distance_mode, kernel_width)


# --- the methods ------------------------------------------------------------------------------------------


def lime(players: Coalitions, samples: Sequence[Tensor], model: Surrogate, weigh: Weigh, show: bool = False) -> Tensor:
    """Coefficients of a simple model of the score around each example [B, ..., F], fitted to samples of its features.

    Ribeiro, Singh, Guestrin (KDD 2016), equation 1. A sample's features are there where it is not zero.

    Args:
        players: who is asked about.
        samples: [S, F] for each example, S may differ.
        model: fitted anew to each example, and each score of it.
        weigh: how much a sample counts.
    """
    counts = [len(s) for s in samples]
    drawn = pad_sequence(list(samples), batch_first=True) if samples else torch.empty(0, 0, players.features.count)
    there = drawn.bool()
    answers = players.ask(drawn.shape[1], lambda k, rows: ~there[rows, k], "Lime attribution", show)
    values, weights = [flat(players.all_there)[:0]], [finest(drawn.new_zeros(0, dtype=torch.float32))]
    for a in answers:
        values.append(flat(a.values))
        weights.append(finest(weigh(a, drawn[a.rows, a.sets])))
    y, w = (torch.cat(v).unflatten(0, drawn.shape[1::-1]).transpose(0, 1) for v in (values, weights))
    w = w * (torch.arange(drawn.shape[1], device=w.device) < torch.tensor(counts, device=w.device)[:, None])
    if not (w.sum(1) > 0).all():
        raise ArgumentError("all samples of an example have weight 0: widen the kernel, or mend similarity_func")
    found = [
        _fitted(model, drawn[i : i + n], y[i : i + n], w[i : i + n], counts[i : i + n])
        for i, n in _examples(len(drawn), drawn[:1].numel())
    ]
    coefficients = torch.cat(found) if found else y.new_zeros(0, *y.shape[2:], players.features.count)
    return _like_scores(players, coefficients)


def _fitted(model: Surrogate, samples: Tensor, y: Tensor, w: Tensor, counts: list[int]) -> Tensor:
    """What models fitted to each example and score represent [B, T, R]."""
    if isinstance(model, SkLearnLinearModel) and type(model).fit is SkLearnLinearModel.fit:
        return model.solve(finest(samples), finest(y), w)[0]
    each = [
        [_represented(model, samples[i, :n], y[i, :n, j], w[i, :n]) for j in range(y.shape[2])]
        for i, n in enumerate(counts)
    ]
    return torch.stack([torch.stack([r.flatten() for r in row]) for row in each])


def _represented(model: Surrogate, samples: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """What a model fitted to samples [S, F], scores [S] and weights [S] represents."""
    y = _precise(y)
    model.fit(DataLoader(TensorDataset(samples.to(y), y, w.to(y)), batch_size=len(y)))
    return model.representation()


def kernel_shap(players: Coalitions, sets: Tensor, weights: Tensor | None = None, show: bool = False) -> Tensor:
    """Shapley values by least squares over sets of features [B, ..., F]; they add up to the score's rise.

    Lundberg, Lee (NeurIPS 2017), theorem 2: over :func:`all_sets` they are exact. That they add up is not left to large
    weights: they are the equal shares and what fits best in the plane of shares that add up to nothing (Covert, Lee,
    AISTATS 2021, equation 7).

    Args:
        players: who is asked about.
        sets: who is there [B or 1, S, F]; neither all nor none of them.
        weights: of the sets [S]; None: equal ones, for sets drawn by the Shapley kernel.
    """
    few, place = distinct(sets)
    n, asked = players.features.count, nn.functional.pad(few, (0, 0, 1, 0))  # first, with nobody there
    answers = players.ask(asked.shape[1], lambda k, rows: ~asked[rows % len(asked), k], "Kernel Shap attribution", show)
    values = [flat(players.all_there)[:0]]
    for a in answers:
        values.append(flat(a.values))
    y = finest(torch.cat(values)).unflatten(0, (asked.shape[1], players.examples)).transpose(0, 1)
    nobody, everybody = y[:, :1], finest(players.all_there).reshape(len(y), 1, y.shape[2])
    root = finest(sets.new_ones(sets.shape[1], dtype=torch.float32) if weights is None else weights).sqrt()[:, None]
    found = []
    for i, many in _examples(len(y), sets[:1].numel()):
        rise = (everybody - nobody)[i : i + many]
        there = finest((sets if len(sets) == 1 else sets[i : i + many]).float())
        size = there.mean(2, keepdim=True)
        among = (place if len(place) == 1 else place[i : i + many]).expand(len(rise), -1)
        left = y[i : i + many, 1:].take_along_dim(among[..., None], 1) - nobody[i : i + many] - size * rise
        found.append(rise / n + least_squares(root * (there - size), root * left))
    shares = torch.cat(found).mT if found else y.new_zeros(0, y.shape[2], n)
    return _like_scores(players, shares)


def distinct(sets: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's sets once [B, M, F], for sets [B, S, F], and where each of them stands there [B, S].

    M are the most of one example; others have some of theirs again.
    """
    if not len(sets):
        return sets, torch.zeros(sets.shape[:2], dtype=torch.long, device=sets.device)
    marked = nn.functional.pad(sets, (0, 1))  # sets of no features can be told apart, too
    found, place = zip(*(of.unique(dim=0, return_inverse=True) for of in marked), strict=True)
    most = max(map(len, found))
    filled = [of[torch.arange(most, device=of.device) % max(len(of), 1), :-1] for of in found]
    return torch.stack(filled), torch.stack(place)


def all_sets(n: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """All sets of ``n`` features but the empty and the full one [1, 2^n - 2, n], and their Shapley kernel [2^n - 2].

    Charnes, Golany, Keane, Rousseau (1988); Lundberg, Lee (NeurIPS 2017), theorem 2.
    """
    sets = (torch.arange(1, max(2**n - 1, 1))[:, None] >> torch.arange(n)) & 1
    kernel = torch.tensor([(n - 1) / (comb(n, int(s)) * s * (n - s)) for s in sets.sum(1).tolist()])
    return sets.bool()[None].to(device), kernel.to(device)


def _both(players: Coalitions, a: Answers) -> tuple[Tensors, Tensors]:
    """The examples, and what they were in these sets [n, 1, ...]; [1, B, ...] for the whole batch."""
    f, gates = players.f, _gates(players)
    if players.whole:
        perturbed = gates.blend(a.absent.expand(f.examples, -1), f.everyone)
        return tuple(t[None] for t in f.inputs), tuple(t[None] for t in perturbed)
    return tuple(t[a.rows][:, None] for t in f.inputs), tuple(t[:, None] for t in gates.blend(a.absent, a.rows))


def _gates(players: Coalitions) -> Gates:
    at = players.gates.at
    assert isinstance(at, Gates)
    return at


def _like_scores(players: Coalitions, values: Tensor) -> Tensor:
    """[B, T, F] in the scores' dtype; [B, F] unless several were asked for."""
    score = players.all_there
    values = values.to(score.dtype if score.is_floating_point() else torch.get_default_dtype())
    return values if isinstance(players.f.of, Each) else values[:, 0]


def _examples(count: int, numbers: int) -> Iterator[tuple[int, int]]:
    """So many examples at once (from, how many) that their ``numbers`` in double precision fit."""
    many = max(1, BUDGET // (8 * max(numbers, 1)))
    return ((i, many) for i in range(0, count, many))


def _precise(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


# --- draws ------------------------------------------------------------------------------------------------


def _coins(examples: int, count: int, n: int, model: Surrogate) -> Iterator[Tensor]:
    """Each feature is there or not [S, F], for each example; from the global generator, as by captum."""
    for _ in range(examples):
        yield torch.bernoulli(torch.full((count, n), 0.5))
        _fit_of_captums(n, model)


def _keyed_coins(noise: Noise, count: int, n: int) -> Iterable[Tensor]:
    u = noise.uniform(count * n, torch.zeros((), dtype=torch.float64))
    return list((u < 0.5).float().unflatten(1, (count, n)))


def _shapley_sets(examples: int, count: int, n: int) -> Tensor:
    """Sets drawn by the Shapley kernel [B, S, F]: a size, then members; from the global generator, as by captum."""
    times, scores = torch.empty(examples, count, n), torch.empty(examples, count, n)
    for i in range(examples):
        for time, score in zip(times[i].unbind(), scores[i].unbind(), strict=True):
            time.exponential_()
            score.normal_()
        _fit_of_captums(n)
    sizes = (_odds_of_sizes(n) / times).argmax(-1, keepdim=True)  # who comes first, as torch.multinomial decides
    return _largest(scores, sizes)


def _keyed_shapley_sets(noise: Noise, count: int, n: int) -> Tensor:
    u = noise.uniform(count * (n + 1), torch.zeros((), dtype=torch.float64)).unflatten(1, (count, n + 1))
    steps = _odds_of_sizes(n).double().cumsum(0)
    return _largest(u[..., 1:], torch.searchsorted(steps / steps[-1], u[..., :1].contiguous(), right=True))


def _odds_of_sizes(n: int) -> Tensor:
    """How likely sets of 0 to n - 1 of ``n`` features are, by the Shapley kernel."""
    size = torch.arange(n, dtype=torch.float)
    odds = (n - 1) / (size * (n - size))
    odds[0] = 0
    return odds / odds.sum()


def _largest(scores: Tensor, sizes: Tensor) -> Tensor:
    """Which of scores [..., F] are among the ``sizes`` [..., 1] largest."""
    return scores > scores.sort(-1).values.gather(-1, scores.shape[-1] - sizes - 1)


def _fit_of_captums(n: int, model: Surrogate | None = None) -> None:
    """Draws what captum draws when it fits an example: a seed for its loader, and a layer to write coefficients to."""
    torch.empty((), dtype=torch.int64).random_()
    if model is None or isinstance(model, LinearModel):
        nn.Linear(n, 1)


# --- Captum's classes -------------------------------------------------------------------------------------


class _Samples(Site):
    """Some samples in the place of the inputs: the site's value is a sample's number [N, 1]."""

    def __init__(self) -> None:
        self.samples: list[Tensors] = []

    def read(self, call: Call, inputs: Tensors) -> Tensors:
        return (torch.zeros(len(inputs[0]), 1, device=inputs[0].device),)

    def write(self, call: Call, inputs: Tensors, z: Tensors, rows: Tensor) -> Any:
        whole = len(self.samples[0][0])  # a sample of several examples has a query for each of them
        wanted = [self.samples[int(k)] for k in z[0][::whole, 0]]
        return call(tuple(torch.cat(parts) for parts in zip(*wanted, strict=True)))


@dataclass(frozen=True, eq=False)
class _Sampled(Coalitions):
    """Asks for samples in place of sets."""

    site: _Samples

    @cached_property
    def gates(self) -> Probe:
        return self.f.to(at=self.site)


class LimeBase(PerturbationAttribution):
    """Any simple model, fitted to any samples around an example, explains it in the model's place.

    Ribeiro, Singh, Guestrin (KDD 2016), arXiv 1602.04938. All functions are given what else ``attribute`` is given by
    keyword; "inputs" have the form in which ``attribute`` takes them.

    Args:
        forward_func: the model; for several examples, one that returns one number for all of them.
        interpretable_model: a :class:`Surrogate`; each call fits it anew.
        similarity_func: (inputs, perturbed inputs, sample [1, F]) -> how much it counts.
        perturb_func: (inputs) -> a sample: perturbed inputs, or [1, F]; or a generator function of samples.
        perturb_interpretable_space: whether it makes [1, F].
        from_interp_rep_transform: (sample [1, F], inputs) -> perturbed inputs; their shapes may differ.
        to_interp_rep_transform: (perturbed inputs, inputs) -> sample [1, F].

    >>> import torch
    >>> from robustx.attribution.linear import SkLearnLinearRegression
    >>> weight = torch.tensor([3.0, 0.0, -2.0])
    >>> lime = LimeBase(
    ...     lambda x: x @ weight,
    ...     SkLearnLinearRegression(),
    ...     get_exp_kernel_similarity_function("euclidean"),
    ...     lambda x: x + torch.randn_like(x),
    ...     False,
    ...     None,
    ...     lambda z, x: z - x,
    ... )
    >>> torch.allclose(lime.attribute(torch.zeros(1, 3)), weight, atol=1e-4)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        interpretable_model: Surrogate,
        similarity_func: Callable[..., float | Tensor],
        perturb_func: Callable[..., Any],
        perturb_interpretable_space: bool,
        from_interp_rep_transform: Callable[..., Any] | None,
        to_interp_rep_transform: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__(forward_func)
        needed = "from_interp_rep_transform" if perturb_interpretable_space else "to_interp_rep_transform"
        transform = from_interp_rep_transform if perturb_interpretable_space else to_interp_rep_transform
        if transform is None:
            raise ArgumentError(
                f"{needed} must be given with perturb_interpretable_space={perturb_interpretable_space}"
            )
        self.interpretable_model = interpretable_model
        self.similarity_func = similarity_func
        self.perturb_func = perturb_func
        self.perturb_interpretable_space = perturb_interpretable_space
        self.from_interp_rep_transform = from_interp_rep_transform
        self.to_interp_rep_transform = to_interp_rep_transform

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    @drawing
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        n_samples: int = 50,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """What the interpretable model represents.

        Args:
            inputs, target, additional_forward_args: see :class:`Attribution`; one example, or several of which the
                model makes one number.
            n_samples: how many are drawn; a generator that stops earlier warns.
            perturbations_per_eval: most samples in one pass; None fills the memory budget.
            show_progress: draw a bar on standard error.
            kwargs: for all functions.
        """
        count = whole("n_samples", n_samples, 1)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = _Sampled(f, elements(1, f.device), here(0.0), _Samples())
        with untouched(self.forward_func):
            if players.examples != 1:
                raise TargetError(
                    f"LimeBase explains one example, or one number for all of them, got {players.examples} numbers; "
                    "take Lime, or one example at a time"
                )
            one_each(players.all_there, players.all_there)
        values: list[Tensor] = []
        samples: list[Tensor] = []
        weights: list[float] = []
        with progress(count, self._title, show_progress) as more:
            for part in _parts(self._drawn(door, inputs, count, kwargs)):
                perturbed, z, w = zip(*part, strict=True)
                samples += z
                weights += w
                with untouched(self.forward_func):
                    values.append(_answers(players, perturbed))
                more(len(part))
        like = values[0]
        weighted = torch.tensor(weights, dtype=torch.float64).to(like.device)
        return _represented(self.interpretable_model, torch.cat(samples).to(like.device), torch.cat(values), weighted)

    def _drawn(
        self, door: Door, inputs: Any, count: int, kwargs: dict[str, Any]
    ) -> Iterator[tuple[Tensors, Tensor, float]]:
        """Perturbed inputs, the sample [1, F] and its weight, one after the other."""
        for drawn in _called(self.perturb_func, count, inputs, kwargs):
            if self.perturb_interpretable_space:
                assert self.from_interp_rep_transform is not None
                sample, perturbed = drawn, self.from_interp_rep_transform(drawn, inputs, **kwargs)
            else:
                assert self.to_interp_rep_transform is not None
                sample, perturbed = self.to_interp_rep_transform(drawn, inputs, **kwargs), drawn
            parts = Door.open(perturbed).inputs
            if [len(t) for t in parts] != [len(t) for t in door.inputs]:
                raise ArgumentError(
                    f"perturbed inputs must be as many as the inputs, with as many examples, got shapes "
                    f"{[tuple(t.shape) for t in parts]} for {[tuple(t.shape) for t in door.inputs]}"
                )
            yield parts, sample, float(self.similarity_func(inputs, perturbed, sample, **kwargs))


def _called(perturb: Callable[..., Any], count: int, inputs: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
    """Up to ``count`` samples of a function, or of a generator."""
    if not isgeneratorfunction(perturb):
        yield from (perturb(inputs, **kwargs) for _ in range(count))
        return
    made = 0
    for made, sample in zip(range(1, count + 1), perturb(inputs, **kwargs), strict=False):  # noqa: B007
        yield sample
    if not made:
        raise ArgumentError("perturb_func made no sample; at least one is needed")
    if made < count:
        warn(f"perturb_func stopped after {made} of {count} samples", stacklevel=2)


def _parts(drawn: Iterable[tuple[Tensors, Tensor, float]]) -> Iterator[list[tuple[Tensors, Tensor, float]]]:
    """As many samples at once as fit."""
    part, held = [], 0
    for one in drawn:
        part.append(one)
        held += sum(t.numel() * t.element_size() for t in one[0])
        if held >= BUDGET:
            yield part
            part, held = [], 0
    if part:
        yield part


def _answers(players: _Sampled, samples: Sequence[Tensors]) -> Tensor:
    """The score of each sample [S]; those of one shape go through the model together."""
    players.site.samples = list(samples)
    shapes: dict[tuple[torch.Size, ...], list[int]] = {}
    for k, sample in enumerate(samples):
        shapes.setdefault(tuple(t.shape for t in sample), []).append(k)
    found = players.all_there.new_empty(len(samples))
    for alike in shapes.values():
        numbers = torch.tensor(alike, device=players.f.device)[:, None]
        for a in players.ask(len(alike), _at(numbers)):
            found[numbers[a.sets, 0]] = a.values.flatten()
    return found


def _at(places: Tensor) -> Absent:
    return lambda k, rows: places[k]


class _FeatureSurrogate(PerturbationAttribution):
    """What :class:`Lime` and :class:`KernelShap` share."""

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def _players(
        self, inputs: Any, baselines: Any, target: Any, args: Any, mask: Any, limit: Any, kwargs: Any
    ) -> tuple[Door, Coalitions]:
        score = target if target is None or isinstance(target, Score) else Output(target)
        door, f = self._bind(inputs, score, args, kwargs, limit)
        players = Coalitions(f, features_of(mask, f.inputs, door.names), through(baselines))
        with untouched(self.forward_func):
            if isinstance(f.of, Everything):
                one_each(players.all_there, players.all_there)
        return door, players

    @staticmethod
    def _out(door: Door, players: Coalitions, coefficients: Tensor, shaped: bool) -> Any:
        if not shaped:
            return coefficients
        n = players.features.count
        if coefficients.shape[-1] < n:
            raise ArgumentError(
                f"interpretable_model represents {coefficients.shape[-1]} numbers, but there are {n} features; "
                "use return_input_shape=False to have them as they are"
            )
        return door.out(players.maps(coefficients[..., :n]))


class Lime(_FeatureSurrogate):
    """Coefficients of a sparse linear model of the score, where features are there or not: one model for each example.

    Ribeiro, Singh, Guestrin (KDD 2016), arXiv 1602.04938; see :func:`lime`. Draws as Captum's class of this name, so
    that the global generator, seeded alike, gives the same numbers.

    Args:
        forward_func: the model.
        interpretable_model: a :class:`Surrogate`, ``SkLearnLasso(alpha=0.01)`` if not given. Ridge and linear
            regression are fitted to all examples at once; scikit-learn and your own models to one after the other.
        similarity_func: how much a sample counts, ``get_exp_kernel_similarity_function()`` if not given; or your own
            (inputs of one example, its perturbed inputs, sample [1, F], ``baselines=``, ``feature_mask=``,
            ``num_interp_features=``) -> a number.
        perturb_func: (inputs of one example, the same keywords) -> a sample [1, F], or a generator of samples. If not
            given, each feature is there in half of them.

    >>> import torch
    >>> from robustx.attribution.linear import SkLearnLinearRegression
    >>> model = torch.nn.Linear(4, 2)
    >>> x = torch.rand(3, 4)
    >>> a = Lime(model, SkLearnLinearRegression()).attribute(x, target=1, n_samples=40)
    >>> torch.allclose(a, x * model.weight[1], atol=1e-4)
    True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        interpretable_model: Surrogate | None = None,
        similarity_func: Callable[..., float | Tensor] | None = None,
        perturb_func: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(forward_func)
        self.interpretable_model = interpretable_model or SkLearnLasso(alpha=0.01)
        self.similarity_func = similarity_func or get_exp_kernel_similarity_function()
        self.perturb_func = perturb_func

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int | None = None,
        return_input_shape: bool = True,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; each element shows its feature's.

        Args:
            inputs, baselines, target, additional_forward_args: see :class:`Attribution`; a model that returns one
                number for the whole batch gets one map [1, ...].
            feature_mask, perturbations_per_eval, show_progress: see :class:`FeatureAblation`.
            n_samples: how many are drawn for each example.
            return_input_shape: False gives the coefficients themselves [B, F], features by ascending id.
            seed: draw by key, so that an example's samples do not depend on its batch. Without it the global
                generator draws.

        Raises:
            ValueError: ``seed`` is given although ``perturb_func`` draws.
        """
        count = whole("n_samples", n_samples, 1)
        if seed is not None and self.perturb_func is not None:
            raise ArgumentError("seed is for the usual samples, but perturb_func draws its own; leave one of them out")
        door, players = self._players(
            inputs, baselines, target, additional_forward_args, feature_mask, perturbations_per_eval,
            additional_forward_kwargs,
        )  # fmt: skip
        n, similarity = players.features.count, self.similarity_func
        if self.perturb_func is not None:
            drawn: Iterable[Tensor] = self._own(door, players, count)
        elif seed is None:
            drawn = _coins(players.examples, count, n, self.interpretable_model)
        else:
            drawn = _keyed_coins(Noise(seed, "lime", players.names), count, n)
        samples = [s.to(players.f.device) for s in drawn]
        with untouched(self.forward_func):
            weigher = similarity.weigh if isinstance(similarity, ExponentialKernel) else partial(self._weigh, door)
            found = lime(players, samples, self.interpretable_model, weigher(players), show_progress)
        return self._out(door, players, found, return_input_shape)

    def _own(self, door: Door, players: Coalitions, count: int) -> Iterator[Tensor]:
        """Samples of the user's own [S, F], for each example."""
        assert self.perturb_func is not None
        for i in range(players.examples):
            inputs = door.out([t if players.whole else t[i : i + 1] for t in players.f.inputs])
            found = list(_called(self.perturb_func, count, inputs, _told(door, players, i)))
            yield torch.cat(found).reshape(len(found), players.features.count)
            _fit_of_captums(players.features.count, self.interpretable_model)

    def _weigh(self, door: Door, players: Coalitions) -> Weigh:
        """Asks a similarity of the user's own sample by sample."""

        def weights(a: Answers, samples: Tensor) -> Tensor:
            examples, perturbed = _both(players, a)
            each = [
                self.similarity_func(
                    door.out([t[k] for t in examples]),
                    door.out([t[k] for t in perturbed]),
                    samples[k : k + 1],
                    **_told(door, players, i),
                )
                for k, i in enumerate(a.rows.tolist())
            ]
            return torch.tensor([float(w) for w in each], dtype=torch.float64).to(finest(samples))

        return weights


def _told(door: Door, players: Coalitions, i: int) -> dict[str, Any]:
    """What functions of the user's own are told of example ``i`` by keyword."""
    f, features, away = players.f, players.features, _gates(players).reference
    row = f.everyone[i : i + 1]
    told = {"num_interp_features": features.count}
    if not callable(away):
        told["baselines"] = door.out([t if players.whole else t[row] for t in away])
    if isinstance(features, Partition):
        told["feature_mask"] = door.out(Packing.of(f.inputs).split(features.labels(1, row)))
    return told


class KernelShap(_FeatureSurrogate):
    """Shapley values by least squares over random sets of features; they add up to the score's rise from the baseline.

    Lundberg, Lee (NeurIPS 2017), arXiv 1705.07874; see :func:`kernel_shap`. Draws as Captum's class of this name, so
    that the global generator, seeded alike, gives the same numbers; where ``n_samples`` are enough for all 2^F sets of
    F features, these are asked instead, and the values are exact.

    >>> import torch
    >>> x = torch.tensor([[2.0, 3.0, 4.0]])
    >>> KernelShap(lambda x: x[:, 0] * x[:, 1] + x[:, 2]).attribute(x)
    tensor([[3., 3., 4.]])
    """

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int | None = None,
        return_input_shape: bool = True,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Any:
        """Attributions shaped like the inputs, in the dtype of the output; each element shows its feature's.

        Args:
            inputs, baselines, target, additional_forward_args, return_input_shape, seed: see :class:`Lime`.
            feature_mask, perturbations_per_eval, show_progress: see :class:`FeatureAblation`.
            n_samples: sets that are asked about, at least 2: the full and the empty one are among them.
        """
        count = whole("n_samples", n_samples, 2)
        door, players = self._players(
            inputs, baselines, target, additional_forward_args, feature_mask, perturbations_per_eval,
            additional_forward_kwargs,
        )  # fmt: skip
        n, weights = players.features.count, None
        if n < 2 or 2**n <= count:
            sets, weights = all_sets(n, players.f.device)
        elif seed is None:
            sets = _shapley_sets(players.examples, count - 2, n).to(players.f.device)
        else:
            noise = Noise(seed, "kernel shap", players.names)
            sets = _keyed_shapley_sets(noise, count - 2, n).to(players.f.device)
        with untouched(self.forward_func):
            found = kernel_shap(players, sets, weights, show_progress)
        return self._out(door, players, found, return_input_shape)

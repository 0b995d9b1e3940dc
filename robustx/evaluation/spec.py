"""Specifications: everything that decides the numbers of a run, in a form that a file can hold."""

import hashlib
import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import torch

from ..attacks import ATTACKS, Attack, make
from ..perturb.corruptions import CORRUPTIONS, EXTRA
from ..perturb.goals import Leave
from ..perturb.norms import norm_of

CLEAN, SOUNDNESS, EXPLANATION = "clean", "soundness", "explanation"
RESERVED = (CLEAN, SOUNDNESS, EXPLANATION)  # work that is stored beside the attacks, under these labels
BOUND, CORRUPTION = "bound-", "corruption-"  # labels of lower bounds and of corruptions begin so

BUDGETS: dict[str, tuple[float, ...]] = {
    "Linf": (0.025, 0.05, 0.1, 0.15, 0.2, 0.3),
    "L2": (0.25, 0.5, 1.0, 1.5, 2.0),
    "L1": (1.0, 2.0, 4.0, 8.0, 12.0),
    "L0": (1.0, 2.0, 4.0, 8.0, 16.0),
}
"""Budgets that suit inputs in [0, 1], for each norm."""

BOUNDS = {
    "ibp": ("tolerance", "batch_size"),
    "crown": ("tolerance", "batch_size"),
    "smoothing": ("sigma", "alpha", "seed", "batch_size", "n0", "n"),
}
"""Lower bounds that a run knows, with their options, see :func:`robustx.evaluation.certify`."""

OURS = ("forward_func", "bounds", "lower_bound", "upper_bound", "norm", "seed")  # arguments that the run decides


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model of a run.

    Args:
        name: what tables call it.
        source: where it is found, as :func:`robustx.zoo.model` knows it; default: its name. Models that are handed to
            :func:`evaluate` as objects have none.
        weights: a file of weights for it.
        mean, std: normalise inputs so, channel by channel, inside the model: budgets stay in input units.
    """

    name: str
    source: str = ""
    weights: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a model must have a name, got ''")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(
                f"mean and std of model {self.name!r} must be equally long, std above 0, got {self.mean} and {self.std}"
            )


class DataSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The samples of a run, as :func:`robustx.zoo.data` finds them.

    Args:
        name: of the data; where samples are handed to :func:`evaluate`, the name that they bear.
        split, root: which part of it, and the folder it lies in, for sources that know such.
        bounds: the least and the greatest input; default: those of the source.
    """

    name: str
    split: str | None = None
    root: str | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"data must be a name, got {self.name!r}")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds of data must be a lower and a higher number, got {self.bounds}")


class BoundSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lower bound on the robustness of every sample: no change so small changes the model's mind.

    Args:
        name: ``"ibp"``, ``"crown"`` or ``"smoothing"``.
        options: further arguments of :func:`robustx.evaluation.certify` for that method.
        label: what tables call it; default: its name.
    """

    name: str
    options: dict[str, Any] = {}
    label: str = ""

    def __post_init__(self) -> None:
        if self.name not in BOUNDS:
            raise ValueError(f"a bound must be one of {', '.join(BOUNDS)}, got {self.name!r}")
        taken = BOUNDS[self.name]
        for option in self.options:
            if option not in taken:
                raise ValueError(f"bound {self.name!r} takes no option {option!r}; known are {', '.join(taken)}")
        if not self.label:
            msgspec.structs.force_setattr(self, "label", self.name)


class AttackSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attack of a run.

    Args:
        name: as :func:`robustx.attacks.make` knows it.
        options: arguments of its class. Bounds, norm and seed are the run's. A search for minimal distances takes
            ``eps`` as the largest distance that it tries (default: twice the run's largest budget).
        label: what tables call it, and the name of its folder; default: its name.
        eps: at which of the run's budgets it is tried, if not at all; a search for minimal distances takes none.
    """

    name: str
    options: dict[str, Any] = {}
    label: str = ""
    eps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.label:
            msgspec.structs.force_setattr(self, "label", self.name)

    @property
    def minimal(self) -> bool:
        """Whether it looks for the nearest point, rather than for any within a budget."""
        return ATTACKS[self.name.lower()].minimal

    def bind(self, model: Callable[..., Any], **ours: Any) -> Attack:
        """The attack on a model.

        Raises:
            ValueError: no such attack, or options that it does not take.
        """
        taken = [o for o in self.options if o in OURS]
        if taken:
            raise ValueError(f"attack {self.label!r} may not set {taken[0]!r}: the run decides it for all attacks")
        try:
            attack = make(self.name, model, **self.options, **ours)
        except TypeError as e:
            told = str(e).partition("() ")[2] or str(e)
            raise ValueError(f"attack {self.label!r} has an option that does not fit: {told}") from None
        if "eps" in self.options and not attack.minimal:
            raise ValueError(
                f"attack {self.label!r} may not set 'eps': the run's budgets are tried one after the other; "
                "set eps of the run"
            )
        return attack


def standard_attacks(steps: int = 10) -> tuple[AttackSpec, ...]:
    """What a run tries by default, cheap attacks first: each sees only what the earlier ones left standing.

    One step, PGD on the cross-entropy (from the sample and from a random point), PGD on the margin towards each of
    the four likeliest other classes, and a search for the nearest adversarial example of every sample (with half the
    steps: its rounds start from one another's best points).
    """
    return (
        AttackSpec("fgsm", {"loss_func": "margin"}),
        AttackSpec("pgd", {"loss_func": "ce", "steps": steps, "restarts": 2}),
        AttackSpec("pgd", {"loss_func": "margin", "steps": steps, "targets": 4}, "pgd-targeted"),
        AttackSpec("bisection", {"loss_func": "margin", "steps": max(1, steps // 2), "rounds": 7, "targets": 4}),
    )


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is evaluated, and how. Two runs of one specification give the same bytes.

    Args:
        models: in the order of the report; a :class:`ModelSpec` each, or its name alone.
        data: the samples; a :class:`DataSpec`, or its name alone.
        norm: ``"Linf"``, ``"L2"``, ``"L1"`` or ``"L0"``.
        eps: the budgets of the security curve, in input units (elements for L0); default: see ``BUDGETS``.
        attacks: in the order in which they are tried; default: :func:`standard_attacks`.
        limit: evaluate the first so many samples; None: all.
        block_size: samples that are worked on, and stored, together. Part of the specification because results
            depend on it in their last bits.
        seed: of all random draws.
        bounds: lower bounds on the robustness of each sample.
        corruptions: common corruptions that the models are tried on; ``("all",)``: all of them.
        severities: of these, from 1 to 5.
        soundness: whether the evaluation itself is checked, on a few samples.
        independent: whether every attack sees every sample, so that attacks can be compared with one another; else
            each sees what those before it left standing, which is cheaper and ends in the same accuracies (but for
            searches for minimal distances, which begin where those before them ended).
        explain: how many of the most instructive samples are explained.
        counterfactual: whether they get a counterfactual too.
        segments: about how many superpixels an image is cut into for its counterfactual.

    >>> spec = Spec(models=("digits",), data="digits", norm="l2")
    >>> spec.norm, spec.eps
    ('L2', (0.25, 0.5, 1.0, 1.5, 2.0))
    >>> Spec.parse(spec.to_json()) == spec
    True
    """

    models: tuple[ModelSpec | str, ...]
    data: DataSpec | str
    norm: str = "Linf"
    eps: tuple[float, ...] = ()
    attacks: tuple[AttackSpec, ...] = standard_attacks()
    limit: int | None = None
    block_size: int = 64
    seed: int = 0
    explain: int = 6
    counterfactual: bool = True
    segments: int = 16
    bounds: tuple[BoundSpec, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    soundness: bool = True
    independent: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            msgspec.structs.force_setattr(self, name, value)

        put("models", _models(self.models))
        put("data", self.data if isinstance(self.data, DataSpec) else DataSpec(self.data))
        put("norm", _norm(self.norm))
        put("eps", _budgets(self.eps, self.norm))
        whole = {"block_size": 1, "explain": 0, "segments": 2, "seed": None} | (
            {} if self.limit is None else {"limit": 1}
        )
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
                more = "" if least is None else f" of at least {least}"
                raise ValueError(f"{name} must be a whole number{more}, got {value!r}")
        put("attacks", _attacks(self.attacks, self.norm, self.seed, self.eps))
        put("bounds", _bounds(self.bounds, self.norm))
        put("severities", tuple(sorted(set(self.severities))))
        if not self.severities or not set(self.severities) <= set(range(1, 6)):
            raise ValueError(f"severities must be whole numbers from 1 to 5, got {self.severities}")
        put("corruptions", _corruptions(self.corruptions))

    @property
    def subjects(self) -> tuple[ModelSpec, ...]:
        """:attr:`models`, as they are kept."""
        return cast(tuple[ModelSpec, ...], self.models)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(m.name for m in self.subjects)

    @property
    def samples(self) -> DataSpec:
        """:attr:`data`, as it is kept."""
        return cast(DataSpec, self.data)

    @property
    def quoted(self) -> float:
        """The budget of which the report speaks first: the middle one."""
        return self.eps[len(self.eps) // 2]

    @property
    def cap(self) -> float:
        """The largest distance that a search for minimal distances tries, unless its options say otherwise."""
        return 2 * self.eps[-1]

    def cap_of(self, attack: AttackSpec) -> float:
        """The largest distance that this search for minimal distances tries."""
        return float(attack.options.get("eps", self.cap))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks; the same specification gives the same text."""
        return msgspec.json.encode(self, order="sorted").decode()

    @property
    def sha256(self) -> str:
        """Of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def parse(cls, text: str | bytes, form: Literal["json", "toml"] = "json") -> "Spec":
        """A specification from text.

        Raises:
            ValueError: unknown keys, wrong types or values; the message names the place.
        """
        decode: Callable[..., Spec] = msgspec.toml.decode if form == "toml" else msgspec.json.decode
        try:
            return decode(text, type=cls)
        except msgspec.MsgspecError as e:
            raise ValueError(f"this is no specification of a run: {e}") from None

    @classmethod
    def read(cls, path: str | Path) -> "Spec":
        """A specification from a ``.toml`` or ``.json`` file."""
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise ValueError(f"a specification is a .toml or .json file, got {str(path)!r}")
        try:
            return cls.parse(path.read_bytes(), "toml" if path.suffix == ".toml" else "json")
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None


def _models(given: Any) -> tuple[ModelSpec, ...]:
    if isinstance(given, str) or not given or not all(m and isinstance(m, str | ModelSpec) for m in given):
        raise ValueError(f"models must be at least one name, got {given!r}")
    models = tuple(m if isinstance(m, ModelSpec) else ModelSpec(m) for m in given)
    if len({m.name for m in models}) < len(models):
        raise ValueError(f"models must have different names, got {', '.join(m.name for m in models)}")
    return models


def _norm(name: str) -> str:
    found = str(norm_of(name))
    if found not in BUDGETS:
        raise ValueError(f"norm must be one of {', '.join(BUDGETS)}, got {name!r}")
    return found


def _budgets(eps: Any, norm: str) -> tuple[float, ...]:
    given = tuple(eps) if isinstance(eps, tuple | list) else (eps,)
    for e in given:
        if isinstance(e, bool) or not isinstance(e, int | float) or not (0 < e < math.inf):
            raise ValueError(
                f"eps must hold positive numbers, got {e!r}; accuracy without any change is always part of a run"
            )
    return tuple(sorted({float(e) for e in given})) or BUDGETS[norm]


def _attacks(attacks: Any, norm: str, seed: int, eps: tuple[float, ...]) -> tuple[AttackSpec, ...]:
    given: tuple[AttackSpec, ...] = tuple(attacks)
    if not given or not all(isinstance(a, AttackSpec) for a in given):
        raise ValueError(f"attacks must hold at least one AttackSpec, such as AttackSpec('pgd'), got {attacks!r}")
    labels = [a.label for a in given]
    for a in given:
        reserved = a.label in RESERVED or a.label.startswith((BOUND, CORRUPTION))
        if reserved or labels.count(a.label) > 1:
            why = "is reserved" if reserved else "stands twice"
            raise ValueError(f"an attack's label {a.label!r} {why}; give it another label")
        bound = a.bind(_nothing, bounds=(0, 1), norm=norm, seed=seed)
        Leave(torch.zeros(1, dtype=torch.long), bound.loss_func)  # knows which losses there are
        if a.eps and (a.minimal or not set(a.eps) <= set(eps)):
            told = "looks for the nearest point itself" if a.minimal else f"may only name the run's: {eps}"
            raise ValueError(f"eps of attack {a.label!r} is {a.eps}, but it {told}")
    return given


def _bounds(bounds: Any, norm: str) -> tuple[BoundSpec, ...]:
    given: tuple[BoundSpec, ...] = tuple(bounds)
    if given and norm == "L0":
        raise ValueError("bounds are for norm 'Linf', 'L2' or 'L1', got 'L0'; leave them out")
    labels = [b.label for b in given if isinstance(b, BoundSpec)]
    if len(set(labels)) < len(given):
        raise ValueError(f"bounds must hold BoundSpecs with different labels, such as BoundSpec('crown'), got {bounds}")
    return given


def _corruptions(names: Any) -> tuple[str, ...]:
    known = CORRUPTIONS + EXTRA
    given = (names,) if isinstance(names, str) else tuple(names)
    if given == ("all",):
        return known
    unknown = [n for n in given if n not in known]
    if unknown:
        near = get_close_matches(str(unknown[0]), known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no corruption is called {unknown[0]!r}; {hint}known are all, {', '.join(known)}")
    return tuple(dict.fromkeys(given))


def _nothing(x: Any) -> Any:
    raise AssertionError("stands in for a model while options are checked")

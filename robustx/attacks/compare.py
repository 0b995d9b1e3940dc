"""Attacks side by side: what any metric of the model's output makes of each of them."""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.guard import untouched
from ..engine.probe import Door
from .base import Attack, Perturbation

ORIGINAL_KEY = "Original"


class AttackInfo(NamedTuple):
    """What was said about one attack."""

    attack_fn: Callable[..., Any]
    name: str
    num_attempts: int
    apply_before_preproc: bool
    attack_kwargs: dict[str, Any]
    additional_args: list[str]


@dataclass
class _Running:
    """A mean, and the extremes, of metrics: tensors, numbers, or tuples of them."""

    total: Any = None
    weight: float = 0.0
    low: Any = None
    high: Any = None

    def update(self, value: Any, weight: float = 1.0) -> None:
        weighted = _each(lambda v: v * weight, value)
        first = self.total is None
        self.total = weighted if first else _each(torch.add, self.total, weighted)
        self.low = value if first else _each(torch.minimum, self.low, value)
        self.high = value if first else _each(torch.maximum, self.high, value)
        self.weight += weight

    @property
    def mean(self) -> Any:
        return _each(lambda v: v / self.weight, self.total)


@dataclass
class AttackComparator:
    """Measures any metrics of a model's output under any attacks, perturbations and augmentations.

    Captum's constructor, calls and results. Attacks of this library draw anew for each attempt; their ``perturb`` is
    called, or, where that does not know the arguments, the attack itself. The model is asked without gradients.

    Args:
        forward_func: the model.
        metric: (output, **kwargs of ``evaluate``) -> a number, a tensor with one row for each example (or one for the
            batch), or a (named) tuple of these.
        preproc_fn: applied to inputs before the model sees them.

    >>> import torch
    >>> from robustx.attacks import FGSM
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> compare = AttackComparator(model, lambda out, target: (out.argmax(1) == target).float())
    >>> compare.add_attack(FGSM(model), "FGSM", attack_kwargs={"epsilon": 0.1}, additional_attack_arg_names=["target"])
    >>> _ = compare.evaluate(torch.tensor([[0.8, 0.2], [0.6, 0.5]]), target=torch.tensor([0, 0]))
    >>> compare.summary()
    {'Original': {'mean': tensor(1.)}, 'FGSM': {'mean': tensor(0.5000)}}
    """

    forward_func: Callable[..., Any]
    metric: Callable[..., Any]
    preproc_fn: Callable[..., Any] | None = None
    attacks: dict[str, AttackInfo] = field(default_factory=dict, init=False)
    summary_results: dict[str, _Running] = field(default_factory=dict, init=False, repr=False)

    def add_attack(
        self,
        attack: Callable[..., Any],
        name: str | None = None,
        num_attempts: int = 1,
        apply_before_preproc: bool = True,
        attack_kwargs: dict[str, Any] | None = None,
        additional_attack_arg_names: Sequence[str] | None = None,
    ) -> None:
        """One more attack to compare.

        Args:
            attack: a perturbation, an attack, or any function of the inputs.
            name: its key in the results; None: the name of its class or function.
            num_attempts: how often each evaluation tries it, for those that draw at random.
            apply_before_preproc: attack the raw inputs instead of the preprocessed ones.
            attack_kwargs: further arguments, the same in every evaluation.
            additional_attack_arg_names: keywords of ``evaluate`` that it takes, too, such as ``target``.

        Raises:
            RuntimeError: there is one of that name already.
        """
        if not callable(attack):
            raise TypeError(f"attack must be callable, got {type(attack).__name__}")
        whole("num_attempts", num_attempts, 1)
        name = getattr(attack, "__name__", type(attack).__name__) if name is None else name
        if name in self.attacks or name == ORIGINAL_KEY:
            raise RuntimeError(f"there is an attack called {name!r} already; give another name")
        more = list(additional_attack_arg_names or ())
        self.attacks[name] = AttackInfo(
            attack, name, num_attempts, apply_before_preproc, dict(attack_kwargs or {}), more
        )

    def evaluate(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The metrics of some inputs as they are (``"Original"``), and as each attack leaves them.

        The metrics of an attack are a dict with ``"mean"``; of several attempts, with ``"min"`` and ``"max"``, too.

        Args:
            inputs: a tensor, a tuple of tensors (the model's positional arguments), or raw inputs of any type.
            additional_forward_args: passed on to the model; tensors with as many rows as the inputs follow these.
            perturbations_per_eval: how many sets of perturbed inputs go through the model at once, if they are tensors.
            **kwargs: of the metric, and of the attacks that ask for them.
        """
        whole("perturbations_per_eval", perturbations_per_eval, 1)
        further = () if additional_forward_args is None else additional_forward_args
        further = further if isinstance(further, tuple) else (further,)
        ready = inputs if self.preproc_fn is None else self.preproc_fn(inputs)
        found = {name: _Running() for name in (ORIGINAL_KEY, *self.attacks)}
        waiting: list[tuple[str, Any]] = [(ORIGINAL_KEY, ready)]

        def ask() -> None:
            outputs = self._outputs([given for _, given in waiting], further)
            for (name, _), out in zip(waiting, outputs, strict=True):
                found[name].update(_each(_number, self.metric(out, **kwargs)))
            waiting.clear()

        for info in self.attacks.values():
            more = self._more(info, kwargs)
            for attempt in range(info.num_attempts):
                if len(waiting) == perturbations_per_eval:
                    ask()
                move = _mover(info.attack_fn, more, attempt)
                moved = move(inputs if info.apply_before_preproc else ready, **more)
                if info.apply_before_preproc and self.preproc_fn is not None:
                    moved = self.preproc_fn(moved)
                waiting.append((info.name, moved))
        ask()
        rows = _rows(ready) or 1
        results: dict[str, Any] = {}
        for name, told in found.items():
            several = name != ORIGINAL_KEY and self.attacks[name].num_attempts > 1
            values = {"mean": told.mean} | ({"min": told.low, "max": told.high} if several else {})
            for word, value in values.items():
                key = f"{name} {word.title()} Attempt" if several else name
                mean = _each(lambda v: v.mean(0) if v.ndim else v, value)
                self.summary_results.setdefault(key, _Running()).update(mean, rows)
            results[name] = values["mean"] if name == ORIGINAL_KEY else values
        return results

    def summary(self) -> dict[str, dict[str, Any]]:
        """Mean metrics over all examples evaluated so far, attack by attack.

        Those of an attack with several attempts stand under its name and "Mean Attempt", "Min Attempt", "Max Attempt".
        """
        return {name: {"mean": told.mean} for name, told in self.summary_results.items()}

    def reset(self) -> None:
        """Forgets what was evaluated, not the attacks."""
        self.summary_results = {}

    def _more(self, info: AttackInfo, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in info.additional_args:
            if name not in kwargs:
                warnings.warn(f"Additional sample arg {name} not provided for {info.name}", stacklevel=3)
        return {n: kwargs[n] for n in info.additional_args if n in kwargs} | info.attack_kwargs

    def _outputs(self, given: list[Any], further: tuple[Any, ...]) -> list[Any]:
        """What the model makes of several sets of inputs: tensors go through it together."""
        counts = [_rows(g) for g in given]
        with untouched(self.forward_func), torch.no_grad():
            if None in counts:
                return [self.forward_func(g, *further) for g in given]
            sets = [g if isinstance(g, tuple) else (g,) for g in given]
            together = tuple(torch.cat(parts) for parts in zip(*sets, strict=True)) if len(sets) > 1 else sets[0]
            args = tuple(torch.cat([a] * len(sets)) if _rows(a) == counts[0] else a for a in further)
            out = Door.open(together).probe(self.forward_func, None, args).outputs()
        return [out] if len(sets) == 1 else list(out.split([c for c in counts if c is not None]))


def _rows(given: Any) -> int | None:
    """How many examples a tensor, or a tuple of them, holds; None of anything else."""
    first = given[0] if isinstance(given, tuple) and given else given
    return len(first) if isinstance(first, Tensor) and first.ndim else None


def _mover(attack: Callable[..., Any], kwargs: dict[str, Any], attempt: int) -> Callable[..., Any]:
    """What is called: an attack's ``perturb`` where that takes the arguments, with draws of its own in each attempt."""
    if isinstance(attack, Attack):
        attack = copy(attack)
        attack.seed += attempt
        if isinstance(attack, Perturbation) and kwargs.keys() <= signature(attack.perturb).parameters.keys():
            return attack.perturb
    return attack


def _number(value: Any) -> Tensor:
    number: Tensor = torch.as_tensor(value).detach()
    return number if number.is_floating_point() else number.to(torch.get_default_dtype())


def _each(f: Callable[..., Any], *values: Any) -> Any:
    """A function of numbers or tensors, applied to each entry of (named) tuples of them."""
    first = values[0]
    if not isinstance(first, tuple):
        return f(*values)
    parts = [_each(f, *entries) for entries in zip(*values, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)

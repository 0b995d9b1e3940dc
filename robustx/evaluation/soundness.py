"""Is an evaluation itself sound? Whether its attacks could have found what they did not find.

An attack may fail because the model is robust, or because it is not fit for the model. What tells one from the other is
looked for on a few samples that the model gets right: the flags of AutoAttack (:mod:`robustx.attacks.checks`), the
indicators of attack failure and the worth of gradients (:mod:`robustx.evaluation.indicators`), and problems that are
known to have a solution (:mod:`robustx.evaluation.active`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from ..attacks import EOT, Attack, AutoAttack, Square, checks, make
from ..attacks.views import Viewed
from ..engine.checks import whole
from ..engine.guard import TrainModeError, untouched
from ..engine.probe import Door, NonFiniteError, Probe
from ..engine.randomness import Noise, identities
from ..perturb.goals import Leave
from ..perturb.norms import norm_of
from ..perturb.region import Region
from ..zoo.dataset import Bound
from .active import active_test
from .block import Block, Finished, logits_of
from .indicators import Tried, by_values, cascade, gradients, instability, share, silent, unfinished, widened
from .spec import Spec
from .statistics import plain

SAMPLES, QUERIES, PASSES = 32, 300, 20
"""Samples that are looked at; queries of Square against what gradients leave standing; passes of a model that draws."""

FAR = 1000
"""Where the box has no end, so many budgets stand in for no limit at all."""

ENOUGH = 0.25
"""The active test says something if at least this share of the samples gives a problem."""

Verdict = Literal["VALID", "WEAK", "INVALID"]


@dataclass(frozen=True)
class Flag:
    """One reason to doubt an evaluation.

    Args:
        name: what it is called.
        severity: ``"weak"``: robust accuracy may well be lower; ``"invalid"``: the figures say nothing.
        value: what was measured.
        threshold: what it must not exceed.
        reason: what was seen, in words.
        next: what to try, in words.
    """

    name: str
    severity: Literal["weak", "invalid"]
    value: float
    threshold: float
    reason: str
    next: str

    def __str__(self) -> str:
        return f"{self.name} ({self.severity}): {self.reason}. Next: {self.next}."


@dataclass(frozen=True, repr=False)
class Soundness:
    """What a look at an evaluation found.

    Args:
        flags: reasons for doubt, in the order in which they were looked for.
        measured: all that was measured, also where it is as it should be; what was not looked at is absent.
        samples: how many samples were looked at.
        forwards, backwards: what it cost, in rows.
    """

    flags: tuple[Flag, ...]
    measured: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    forwards: int = 0
    backwards: int = 0

    @property
    def verdict(self) -> Verdict:
        """``"INVALID"`` or ``"WEAK"`` after the gravest of the flags, else ``"VALID"``."""
        found = {f.severity for f in self.flags}
        return "INVALID" if "invalid" in found else "WEAK" if found else "VALID"

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it: null stands for what is infinite or undefined."""
        told: dict[str, Any] = plain({"verdict": self.verdict, **asdict(self)})
        return told

    def __repr__(self) -> str:
        cost = f"{self.samples} samples, {self.forwards} forwards, {self.backwards} backwards"
        return "\n".join([f"Soundness({self.verdict}; {cost})", *(f"  {f}" for f in self.flags)])


@dataclass(frozen=True)
class Limit:
    """Beyond what a measured number is a flag; ``reason`` has a place for it."""

    weak: float
    invalid: float
    reason: str
    next: str

    def judge(self, name: str, value: float) -> list[Flag]:
        severity: Literal["weak", "invalid"] = "invalid" if value > self.invalid else "weak"
        limit = self.invalid if severity == "invalid" else self.weak
        return [Flag(name, severity, value, limit, self.reason.format(value), self.next)] if value > self.weak else []


LIMITS: dict[str, Limit] = {
    "zero-gradient": Limit(
        0.0,
        0.1,
        "the gradient of the margin is exactly zero on {:.0%} of the samples: the model rounds, or hides its gradient",
        "give the function that rounds another one's gradient with BPDA, or attack by values alone: square",
    ),
    "saturated-loss": Limit(
        0.0,
        1.0,
        "the gradient of the cross-entropy is exactly zero on {:.0%} of the samples, and that of the margin is not: "
        "the scores are so large that probabilities round to 0 and 1",
        'loss_func="margin" or "dlr", which do not saturate',
    ),
    "nonfinite-gradient": Limit(
        0.0,
        0.5,
        "the gradient is NaN or infinite on {:.0%} of the samples",
        "mend the operation that divides by zero or takes a root of it, or attack by values alone: square",
    ),
    "wrong-gradient": Limit(
        0.1,
        0.5,
        "on {:.0%} of the samples the gradient is neither that of finite differences nor does it tell what happens "
        "nearby: it belongs to another function than the one that answers",
        "look for a detach, a custom backward pass or noise in the model; EOT for noise, BPDA for a better stand-in, "
        "or attack by values alone: square",
    ),
    "unstable-predictions": Limit(
        0.1,
        0.5,
        "noise of 8/255 of the range of inputs changes the margin by {:.0%} of itself: a gradient says little about "
        "what lies a step away",
        "EOT with small noise, which follows the mean gradient of a neighbourhood, or attack by values alone: square",
    ),
    "silent-success": Limit(
        0.05,
        0.2,
        "searches fooled the model on {:.0%} of the samples, but not with what they returned: the model answers the "
        "same question differently",
        "EOT around the attack, whose best point is best in the mean, or more of its draws",
    ),
    "incomplete-optimisation": Limit(
        0.1,
        0.5,
        "on {:.0%} of the samples the attack was still getting on when its steps ended",
        "more steps, or APGD (apgd-ce, apgd-t), which chooses the length of its steps itself",
    ),
    "square": Limit(
        checks.LOWERED,
        0.25,
        "values alone fooled {:.0%} of the samples after all that gradients had found: these may be masked",
        "add square to the attacks and give it more steps; find out what masks the gradients, and use BPDA there",
    ),
    "unconstrained-failure": Limit(
        0.05,
        0.2,
        "on {:.0%} of the samples the attack fails even with no limit but the bounds: it does not work on this model",
        'another loss (loss_func="margin"), longer steps, more of them, or attack by values alone: square',
    ),
    "transfer-failure": Limit(
        0.05,
        0.5,
        "{:.0%} of what fools the surrogate does not fool the model: the surrogate is not near enough",
        "BPDA inside the model, so that what is judged is the model itself, or a surrogate that is nearer to it",
    ),
    "active-test": Limit(
        0.05,
        0.2,
        "the attack missed {:.0%} of the adversarial examples that are known to exist when the model's last layer is "
        "replaced (binarisation test): what lies before that layer is too much for it",
        "more steps and restarts, APGD, BPDA or EOT where gradients are broken or noisy, or attack by values "
        "alone: square",
    ),
}
"""What is measured as a share of the samples, with the shares from which on it counts; see the page on soundness."""

FINITE = "mend the operation that gives them; the rest could not be looked at"

SIGNS: dict[type[checks.EvaluationWarning], tuple[str, Literal["weak", "invalid"]]] = {
    checks.RandomizedWarning: ("random-outputs", "invalid"),
    checks.ProbabilitiesWarning: ("probabilities", "weak"),
    checks.DynamicWarning: ("dynamic", "weak"),
    checks.FewClassesWarning: ("few-classes", "weak"),
}
"""What AutoAttack's own flags are called here, and how grave they are."""


def assess(
    model: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    attacks: Attack | str | Sequence[Attack | str],
    *,
    eps: float | None = None,
    norm: str | None = None,
    bounds: tuple[Bound, Bound] | None = None,
    seed: int = 0,
    limit: int = SAMPLES,
    queries: int = QUERIES,
    surrogate: Callable[..., Any] | None = None,
) -> Soundness:
    """Whether an evaluation of a model by some attacks can be believed: a verdict, with reasons and what to try next.

    It is about the attacks as much as about the model. Random draws are keyed by seed and sample; what a model draws
    from torch's generators starts from the seed, too.

    Args:
        model: any callable that returns class scores [B, K].
        x, y: samples [B, ...] and their labels [B]; the first ``limit`` that are classified correctly are looked at.
        attacks: those of the evaluation, in their order: attacks with their settings (on whatever model), or names.
        eps: the budget; default: that of the first attack that has one.
        norm, bounds: for attacks by name; default: those of the first other attack, else ``"Linf"`` and (0, 1).
        seed: of all random draws.
        limit: most samples.
        queries: of Square, against what gradients leave standing.
        surrogate: attacks see this model, and what they find is judged by ``model``.

    Raises:
        ValueError: no budget; attacks that disagree in their norm; samples or labels that do not fit the model.

    >>> from robustx import zoo
    >>> from robustx.attacks import PGD
    >>> model, data = zoo.load("digits-robust")
    >>> attack = PGD(model, "margin", bounds=(0, 1), eps=0.1, steps=20)
    >>> assess(model, data.x[:16], data.y[:16], attack).verdict
    'VALID'
    >>> found = assess(lambda x: model((8 * x).round() / 8), data.x[:16], data.y[:16], attack)
    >>> found.verdict, [flag.name for flag in found.flags]
    ('INVALID', ['zero-gradient', 'unconstrained-failure', 'active-test'])
    """
    whole("limit", limit, 1)
    whole("queries", queries, 1)
    bound, budget = _bound(surrogate or model, attacks, eps, norm, bounds, seed)
    try:
        with untouched(model), untouched(surrogate):
            torch.manual_seed(seed)
            logits = logits_of(model, x, y, range(len(x)))
            right = torch.isfinite(logits).all(1) & (logits.argmax(1) == y)
            chosen = right.nonzero().squeeze(1)[:limit]
            if not len(chosen):  # whatever attacks find, there is nothing that they could miss
                return Soundness((), forwards=len(x))
            x, y = x[chosen], y[chosen].long()
            f = Door.open(x).probe(model).to(of=Leave(y, "margin"))
            region = bound[0]._region(f, budget)
            look = _Look(f, x, region, Noise(seed, "soundness", identities(f.point)), bound, surrogate)
            try:
                look.at_outputs()
                if look.at_gradients():
                    look.at_attacks(queries)
            except NonFiniteError as e:
                seen = f"near the samples {str(e).partition(';')[0]}"
                look.flags.append(Flag("nonfinite-outputs", "weak", 1.0, 0.0, seen, FINITE))
    except TrainModeError as e:
        told, _, mend = str(e).partition("; ")
        return Soundness((Flag("train-mode", "invalid", 1.0, 0.0, told, mend),))
    return look.told(len(right))


@dataclass(eq=False)
class _Look:
    """What is looked at, and what has been found so far.

    Args:
        f: the model at the samples [B], climbing their margins.
        x: the samples.
        region: where they may move.
        noise: of these samples.
        attacks: on the model, or on the surrogate.
        surrogate: that, if there is one.
    """

    f: Probe
    x: Tensor
    region: Region
    noise: Noise
    attacks: list[Attack]
    surrogate: Callable[..., Any] | None
    flags: list[Flag] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0

    def told(self, clean: int) -> Soundness:
        """All of it; ``clean`` forwards went before."""
        meter = self.f.meter
        assert meter is not None
        up, down = clean + int(meter.forward.sum()) + self.forwards, int(meter.backward.sum()) + self.backwards
        return Soundness(tuple(self.flags), self.measured, len(self.x), up, down)

    @cached_property
    def asked(self) -> Probe:
        """What the attacks see, as they ask it: where they follow the mean of several passes, the mean."""
        f = self._seen
        for a in self.attacks:
            if isinstance(a, EOT):
                return a._posed(f)
        return Viewed.of_probe(f, f.everyone, self.noise, times=PASSES) if _averages(self.attacks) else f

    @property
    def by_gradients(self) -> bool:
        """Whether any attack needs them."""
        return any(a.needs != "scores" for a in self.attacks)

    @property
    def _seen(self) -> Probe:
        return self.f if self.surrogate is None else self.f.to(model=self.surrogate)

    def judge(self, name: str, value: float) -> None:
        """Notes a number, and flags it if it is beyond its limit."""
        self.measured[name] = value
        self.flags.extend(LIMITS[name].judge(name, value))

    def at_outputs(self) -> None:
        """AutoAttack's flags that need no attack, and whether noise upsets predictions."""
        found = checks.signs(self.f, self.f.point, self.f.everyone, _losses(self.attacks), not _averages(self.attacks))
        for sign in found:
            name, severity = SIGNS[type(sign)]
            self.flags.append(Flag(name, severity, sign.value, sign.threshold, sign.seen, sign.mend))
        unstable = instability(self.asked, self.region, self.noise)
        if self.by_gradients:
            self.judge("unstable-predictions", unstable)
        else:
            self.measured["unstable-predictions"] = unstable

    def at_gradients(self) -> bool:
        """What they are worth, if an attack needs them; whether one can go on."""
        if not self.by_gradients:
            return True
        found = gradients(self.asked, self.region, self.noise)
        if found.broken is not None:
            reason = f"there is no gradient, and attacks that need it fail: {found.broken}"
            mend = "BPDA around the operation that cuts it, or attack by values alone: square"
            self.flags.append(Flag("no-gradient", "invalid", 1.0, 0.0, reason, mend))
            return False
        self.judge("zero-gradient", found.zero)
        self.judge("saturated-loss", found.saturated)
        self.judge("nonfinite-gradient", found.nonfinite)
        self.judge("wrong-gradient", found.wrong)
        self.measured |= {"gradient-error": found.error, "gradient-correlation": found.correlation}
        return True

    def at_attacks(self, queries: int) -> None:
        """What they do: within the budget, without one, and on problems that have a solution."""
        region, y = self.region, self._labels
        attacks = sorted(self.attacks, key=lambda a: a.needs == "scores")  # what gradients find comes first
        tried = self._counted(cascade(attacks, self.x, y, region.radius))
        self.measured["fooled"] = share(tried.success)
        self.judge("silent-success", share(silent(tried)))
        self.judge("incomplete-optimisation", share(unfinished(tried)))
        if self.by_gradients:
            self.judge("square", share(by_values(tried) | self._square(tried, queries)))
        if self.surrogate is not None:
            moved = torch.cat([r.adversarial[r.success] for _, _, r in tried.results])
            whose = torch.cat([rows[r.success] for _, rows, r in tried.results])
            self.judge(
                "transfer-failure", share(~(self.f.to(strict=False).value(self.f.packing.pack((moved,)), whose) > 0))
            )
        self._unlimited(y)
        self._active()

    def _square(self, tried: Tried, queries: int) -> Tensor:
        """What Square fools of what stands [B]; nothing where the attacks ask for values themselves."""
        one, left, fell = self.attacks[0], (~tried.success).nonzero().squeeze(1), torch.zeros_like(tried.success)
        asked = any(p.needs == "scores" for a in self.attacks for p in (a, *a.parts.values()))
        if not asked and str(one.norm) in Square.norms:
            ends = one.lower_bound, one.upper_bound
            square = Square(one.forward_func, bounds=ends, norm=one.norm, seed=one.seed, steps=queries)
            more = self._counted(cascade([square], self.x[left], self._labels[left], self.region.radius[left]))
            fell[left] = more.success
        return fell

    def _unlimited(self, y: Tensor) -> None:
        """The sixth indicator: no limit but the box."""
        region = self.region
        ends = bool(region.low.isfinite().all() & region.high.isfinite().all())
        far = region.to(radius=region.radius * (inf if ends else FAR))
        radius = far.reachable().radius
        wide = [widened(a, float((radius / region.radius).amax())) for a in self.attacks]
        self.judge("unconstrained-failure", share(~self._counted(cascade(wide, self.x, y, radius)).success))

    def _active(self) -> None:
        """The binarisation test of what the attacks see."""
        found = active_test(self._seen, self.region, self.noise.again(1), self.attacks)
        self.forwards, self.backwards = self.forwards + found.forwards, self.backwards + found.backwards
        self.measured["active-problems"] = found.problems
        if found.problems >= ENOUGH * len(self.x):
            self.measured["active-random"] = found.random
            self.judge("active-test", 1 - found.success)

    @property
    def _labels(self) -> Tensor:
        assert isinstance(self.f.of, Leave)
        return self.f.of.y

    def _counted(self, tried: Tried) -> Tried:
        up, down = tried.passes
        self.forwards, self.backwards = self.forwards + up, self.backwards + down
        return tried


def soundness_of(model: Callable[..., Any], block: Block, spec: Spec) -> Finished:
    """The soundness of a run's attacks at its middle budget, on a block of samples: one note, as JSON can hold it."""
    at = [a for a in spec.attacks if not a.eps or spec.quoted in a.eps] or list(spec.attacks)
    attacks = [a.bind(model, bounds=block.bounds, norm=spec.norm, seed=spec.seed) for a in at]
    found = assess(model, block.x, block.y, attacks, eps=spec.quoted, seed=spec.seed)
    return Finished(notes=[found.to_dict()])


def _bound(
    model: Callable[..., Any], given: Any, eps: Any, norm: str | None, bounds: Any, seed: int
) -> tuple[list[Attack], float]:
    """The attacks on the model, and their budget."""
    given = [given] if isinstance(given, Attack | str) else list(given)
    for a in given:
        if not isinstance(a, Attack | str):
            raise TypeError(f"attacks must be attacks or their names, got {type(a).__name__}")
    if not given:
        raise ValueError("attacks must hold at least one attack, such as 'pgd', got none")
    made = [a for a in given if isinstance(a, Attack)]
    own = norm_of(norm) if norm is not None else made[0].norm if made else norm_of("Linf")
    other = [a for a in made if str(a.norm) != str(own)]
    if other:
        raise ValueError(f"norm must be that of all attacks, but one is for {other[0].norm} and another for {own}")
    if bounds is None:
        bounds = (made[0].lower_bound, made[0].upper_bound) if made else (0.0, 1.0)
    if eps is None:
        eps = next((a.eps for a in made if isinstance(a.eps, int | float)), None)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < inf:
        raise ValueError(f"eps must be one budget above 0, got {eps!r}; give assess(..., eps=0.1)")
    named: dict[str, Any] = {"norm": own, "bounds": bounds, "seed": seed}
    return [make(a, model, **named) if isinstance(a, str) else a.on(model) for a in given], float(eps)


def _losses(attacks: Sequence[Attack]) -> set[str]:
    """Names of attacks whose loss is the ratio of logits, as AutoAttack has them."""
    found: set[str] = set()
    for a in attacks:
        if isinstance(a, AutoAttack):
            found.update(a.attacks_to_run)
        elif a.loss_func == "dlr":
            found.add("apgd-dlr" if getattr(a, "targets", None) is None else "apgd-t")
    return found


def _averages(attacks: Sequence[Attack]) -> bool:
    """Whether an attack follows the mean of several passes, so that it is fit for models that draw."""
    return any(
        isinstance(a, EOT) or getattr(a, "eot_iter", 1) > 1 or (isinstance(a, AutoAttack) and a.version == "rand")
        for a in attacks
    )

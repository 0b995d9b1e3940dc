"""The one object that finds counterfactuals: what is asked about, how features may change, and by which strategy."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from time import monotonic
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..attacks.base import ZeroGradientWarning
from ..attribution.shapley import shares_of_change
from ..engine.checks import ArgumentError, ArgumentTypeError, whole
from ..engine.guard import guarded, untouched
from ..engine.probe import Door, OutOfTime, Probe
from ..engine.randomness import Noise, identities
from ..engine.sites import Input
from ..perturb.features import Partition, from_masks
from ..perturb.goals import Between, Goal
from ..perturb.norms import NORMS, Norm
from ..perturb.references import named
from ..perturb.region import box, packed
from .aims import Aim, aimed
from .auto import auto
from .baselines import BASELINES
from .best import Best, Strategy, Task
from .choice import Choose, alternatives
from .diverse import apart
from .domain import Domain, Move, Replace
from .exact import exact
from .guided import guided
from .known import Known
from .latent import Coded, Latent
from .masked import masked_pgd
from .naming import movable_of, names_of
from .nearest import ATTACKING
from .plausible import Limits, Plausible, Wanted, from_known
from .proximal import proximal
from .result import ALREADY, INFEASIBLE, NOT_FOUND, TIME, VALID, CounterfactualResult
from .robust import Ensemble, Robust
from .schema import FeatureSchema
from .spelling import box_of, fixed, permitted
from .table import Table

STRATEGIES: dict[str, Strategy] = {
    "auto": auto,
    "guided": guided,
    "exact": exact,
    "proximal": proximal,
    "masked-pgd": masked_pgd,
    **ATTACKING,
    **BASELINES,
}
"""How counterfactuals are looked for, by name."""

Distance = Literal["l0+l1", "l0+l2", "l0+linf", "l1", "l2", "linf"]
DISTANCES: dict[str, tuple[bool, Norm]] = {
    way + name.lower(): (bool(way), NORMS[name]) for way in ("l0+", "") for name in ("L1", "L2", "Linf")
}


class CounterfactualExplainer:
    """The fewest features that must change for the model to change its mind; which they are, and what each one did.

    Attributions towards what the constraints allow choose the features, a search with gradients finds values for them
    (or a reference replaces them), and Shapley values of the change explain it exactly.

    Args:
        forward_func: the model, any callable that returns class scores [B, K] (or anything, with a goal).
        schema: what the columns of a table are and how they may change; the model takes encoded rows [B, D].
        bounds: the finite box inside which features move; numbers, or tensors that broadcast to the inputs
            (one range per column, or per example and column).
        reference: let features give way to this instead of moving: ``"blur"``, ``"mean"``, ``"inpaint"``,
            ``"noise"``, a number, a tensor that broadcasts to the inputs (another picture, say), or any
            :data:`robustx.perturb.Reference`.
        values: let each feature become one of these: a list of numbers (or token ids) that any element may take, or
            alternatives [m, ...] of an example's shape, of which a feature takes what stands in its place.
        strategy: a name from :data:`STRATEGIES`, or a function of a :class:`Task`. ``"auto"``: what fits the question,
            see :func:`robustx.counterfactual.auto.auto`.
        distance: ``"l0+l1"``: the fewest features, and of as few those that move least in all; ``"l0+l2"``,
            ``"l0+linf"`` likewise; ``"l1"``, ``"l2"``, ``"linf"``: the least move, whatever its number of features.
        scale: what an element's move is measured in: a number, or a tensor that broadcasts to the inputs; None: the
            width of its bounds. (A schema has ranges and costs of its own.)
        by: the least margin by which the goal must be reached (in logits, for classes); above 0, so that rounding in
            another batch does not undo it. Default: 1e-4; with a goal of your own at most that share of the margin at
            the start.
        steps: gradient steps per set of features that is tried.
        budget: how many sets of an example may be tried side by side: all sets of a size, if there are at most this
            many.
        seed: of the draws, where a strategy draws.
        batch_size: most rows in one pass; None fills the memory budget.
        plausible: what counterfactuals must be like: :class:`Quantiles`, :class:`Neighbours`, :class:`LOF`,
            :class:`Prototype` of the examples that ``fit`` was given, or a function of the model's inputs to margins
            [N], above 0 where they will do; one or several. No weight: what is not plausible is not valid.
        robust: what they must survive: :class:`Ensemble`, :class:`Noisy`, or both; for a larger margin give ``by``.
        latent: let the codes of an autoencoder move instead of the inputs, see :class:`Latent`.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), "bias": torch.zeros(2)})
    >>> explainer = CounterfactualExplainer(lambda x: model(x) - 1, bounds=(-1, 1))
    >>> result = explainer.generate(torch.tensor([[0.1, 0.1, 0.5]]))
    >>> result.changed.tolist(), result.proved
    ([[False, False, True]], ('smallest',))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        schema: FeatureSchema | None = None,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        *,
        reference: Any = None,
        values: Any = None,
        strategy: str | Strategy = "auto",
        distance: Distance = "l0+l1",
        scale: float | Tensor | None = None,
        by: float | None = None,
        steps: int = 12,
        budget: int = 512,
        seed: int = 0,
        batch_size: int | None = None,
        plausible: Wanted | Sequence[Wanted] = (),
        robust: Robust | Sequence[Robust] = (),
        latent: Latent | None = None,
    ) -> None:
        if not callable(forward_func):
            raise ArgumentTypeError(f"forward_func must be callable, got {type(forward_func).__name__}")
        given = [
            n
            for n, v in (
                ("schema", schema),
                ("bounds", bounds),
                ("reference", reference),
                ("values", values),
                ("latent", latent),
            )
            if v is not None
        ]
        if len(given) > 1:
            raise ArgumentError(f"give one of schema, bounds, reference, values and latent, got {' and '.join(given)}")
        if not given:
            raise ArgumentError(
                "say how features may change: bounds=(0, 1) lets them move inside a box, reference='blur' (or a "
                "number, a tensor) lets them give way to it, schema=FeatureSchema.from_dataframe(...) is for tables"
            )
        if bounds is not None and (not isinstance(bounds, tuple | list) or len(bounds) != 2):
            raise ArgumentError(f"bounds must be a pair (lowest, highest), such as (0, 1), got {bounds!r}")
        if schema is not None and not isinstance(schema, FeatureSchema):
            raise ArgumentTypeError(
                f"schema must be a FeatureSchema, such as FeatureSchema.from_dataframe(table), got "
                f"{type(schema).__name__}; a box is given by name: bounds=(0, 1)"
            )
        if isinstance(reference, str):
            named(reference)
        if distance not in DISTANCES:
            raise ArgumentError(f"distance must be one of {', '.join(map(repr, DISTANCES))}, got {distance!r}")
        if not callable(strategy) and strategy not in STRATEGIES:
            raise ArgumentError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")
        if by is not None and not (isinstance(by, int | float) and by > 0):
            raise ArgumentError(
                f"by must be a number above 0, got {by!r}: at 0 a counterfactual may not survive rounding"
            )
        whole("steps", steps, 1)
        whole("budget", budget, 1)
        self.forward_func, self.schema, self.bounds, self.reference = forward_func, schema, bounds, reference
        self.values, self.strategy, self.distance, self.scale = values, strategy, distance, scale
        self.by, self.steps, self.budget, self.seed, self.batch_size = by, steps, budget, seed, batch_size
        self.plausible, self.robust, self.latent = plausible, robust, latent
        for one in _several(plausible):
            if not isinstance(one, Plausible) and not callable(one):
                raise ArgumentTypeError(f"plausible must be limits such as Neighbours(), or functions, got {one!r}")
        for other in _several(robust):
            if not isinstance(other, Robust):
                raise ArgumentTypeError(f"robust must be Ensemble(models) or Noisy(sigma), got {other!r}")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Other arguments than those it was made with; as strict about them as the constructor."""
        self.__init__(**self.get_params() | params)  # type: ignore[misc]  # the constructor is what checks them
        return self

    def with_(self, **params: Any) -> Self:
        """The same explainer with other arguments; what it was fitted to it keeps."""
        other = type(self)(**self.get_params() | params)
        vars(other).update({name: value for name, value in vars(self).items() if name.endswith("_")})
        return other

    def __repr__(self) -> str:
        usual = {n: p.default for n, p in signature(type(self)).parameters.items()}
        told = {n: v for n, v in self.get_params().items() if n != "forward_func" and v is not usual[n]}
        name = getattr(self.forward_func, "__name__", type(self.forward_func).__name__)
        return f"CounterfactualExplainer({', '.join([name, *(f'{n}={_brief(v)}' for n, v in told.items())])})"

    def fit(self, X: Any, y: Any = None) -> Self:
        """Keeps known examples, such as those the model was trained on, for what can learn from them.

        Where a model has no gradients, values are taken from them; strategies like ``"nearest-unlike"`` need them. The
        model is asked about them once; fit again when it has changed.

        Args:
            X: as for :meth:`generate`, M of them.
            y: their classes [M]: where the model takes an example for another one, nothing is taken from it.

        Raises:
            ArgumentError: there are no examples; ``y`` holds no classes, or not one for each example.
        """
        door = Door.open(self._encoded(X))
        if not len(door.inputs[0]):
            raise ArgumentError("X must hold at least one example, got none")
        told = None if y is None else np.asarray(y)
        if told is not None and told.dtype.kind not in "biuf":
            raise ArgumentError(f"y must hold classes as whole numbers, got {told.dtype}; leave it out otherwise")
        labels = None if told is None else torch.as_tensor(told, device=door.inputs[0].device)
        self.known_ = Known(door.probe(self.forward_func, limit=self.batch_size), labels)
        return self

    def _encoded(self, x: Any) -> Any:
        return x if self.schema is None or isinstance(x, Tensor) else self.schema.encode(x)

    @guarded
    def generate(
        self,
        x: Any,
        target: Aim = "other",
        *,
        min_prob: float | None = None,
        feature_mask: Any = None,
        names: Sequence[str] | None = None,
        immutable: Iterable[int | str] | int | str = (),
        max_changes: int | None = None,
        time_limit: float | None = None,
        additional_forward_args: Any = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
        n: int = 1,
    ) -> CounterfactualResult:
        """One counterfactual for each example; where none was found, ``status`` says so and nothing is changed.

        Args:
            x: a tensor [B, ...], or a tuple or dict of tensors; with a schema also a table in its own units.
            target: ``"other"``: any other class than the model's own answer; ``"runner-up"``: the second one; classes
                to reach, one or [B]; a :class:`Change` of a number; a goal (``Leave(y)`` for the classes y, an interval
                ``Between(low, high)``), or a function from outputs to margins [N], above 0 where it is reached.
            min_prob: the probability that a class is to reach, kept to as it is given.
            feature_mask: integers that broadcast to the inputs; equal ones change together. Default: each for itself.
            names: what to call the features, in the order of their ids.
            immutable: features that must not change, by id or name.
            max_changes: no more features than this may change.
            time_limit: in seconds; what was found until then is handed back.
            additional_forward_args, additional_forward_kwargs: passed on to the model.
            n: how many counterfactuals of each example; those after the first are its ``alternatives``, each the best
                that is still found. None of them changes all that one before it does.

        Raises:
            ValueError: infinite bounds, inputs outside them, unknown features, labels that are no classes.
        """
        began = monotonic()
        x = self._encoded(x)
        door = Door.open(x)
        f = door.probe(
            self.forward_func, None, additional_forward_args, additional_forward_kwargs, limit=self.batch_size
        )
        goal = aimed(f, target, min_prob)
        f = f.to(of=goal)
        before = f.score
        features, told = self._features(f, feature_mask, door.names, names)
        least = goal.hair(before) if self.by is None else torch.full_like(before, self.by)
        known = self.known_.to(f.to(of=goal.firm(least), strict=False)) if hasattr(self, "known_") else None
        limits = Limits.of(_several(self.plausible), f, known, self.schema)
        demand = limits.demand(self._surviving(goal, f))
        asked = f.to(of=demand, strict=False)
        domain = self._domain(asked.to(of=demand.firm(least)), features, known, limits)
        if domain.features is not features and immutable:
            raise ArgumentError("immutable features cannot be kept where codes move: leave it out, or give bounds")
        few, _ = DISTANCES[self.distance]
        results: list[CounterfactualResult] = []
        banned: list[Tensor] = []
        with untouched(self._others):
            for again in range(whole("n", n, 1)):
                task = Task(
                    domain,
                    movable_of(domain.features, told, immutable, f.everyone),
                    self.budget,
                    Noise(self.seed, "counterfactual", identities(*f.inputs), restart=again),
                    few,
                    None if max_changes is None else whole("max_changes", max_changes, 1),
                    known,
                    torch.stack(banned, 1) if banned else None,
                )
                best, ended = self._sought(task, f, began, time_limit, limits.crowd is not None)
                results.append(self._told(x, door, f, asked, features, told, task, best, least, ended, began))
                banned.append(best.sets & best.found[:, None])
        return replace(results[0], alternatives=tuple(results[1:]))

    def _surviving(self, goal: Goal, f: Probe) -> Goal:
        """The goal, with all that counterfactuals are to survive."""
        for one in _several(self.robust):
            goal = one.demand(goal, f, self.schema, self.seed)
        return goal

    @property
    def _others(self) -> list[Any]:
        """Models beside the one that is asked about."""
        coders = [] if self.latent is None else [self.latent.encode, self.latent.decode]
        return [*coders, *(m for one in _several(self.robust) if isinstance(one, Ensemble) for m in one.models)]

    def generate_counterfactuals(
        self,
        query_instances: Any,
        total_CFs: int = 1,
        desired_class: Any = "opposite",
        desired_range: tuple[float, float] | None = None,
        permitted_range: Mapping[Any, Any] | None = None,
        features_to_vary: Literal["all"] | Sequence[int | str] = "all",
        stopping_threshold: float | None = None,
        **told: Any,
    ) -> CounterfactualResult:
        """:meth:`generate`, for those who know dice-ml's names of its arguments.

        Args:
            query_instances: as ``x``.
            total_CFs: as ``n``.
            desired_class: ``"opposite"`` (any other), or as ``target``.
            desired_range: of a model of numbers, (lowest, highest) output.
            permitted_range: for columns by name or number (lowest, highest), for categories a list of them.
            features_to_vary: the only ones that may change.
            stopping_threshold: as ``min_prob``.
            told: what else :meth:`generate` takes.

        Raises:
            ArgumentError: no such feature; ranges of what is no table.
        """
        explainer, x, names = self, self._encoded(query_instances), told.get("names")
        if permitted_range is not None:
            if self.schema is not None:
                explainer = self.with_(schema=permitted(self.schema, permitted_range))
            elif self.bounds is not None:
                explainer = self.with_(bounds=box_of(self.bounds, permitted_range, x, names))
            else:
                raise ArgumentError("permitted_range is for tables: give bounds or a schema")
        if features_to_vary != "all":
            known = self.schema.names if self.schema is not None else names
            told["immutable"] = fixed(features_to_vary, known, x, told.get("feature_mask"))
        target: Any = Between(*desired_range) if desired_range is not None else desired_class
        target = "other" if isinstance(target, str) and target == "opposite" else target
        return explainer.generate(x, target, n=total_CFs, min_prob=stopping_threshold, **told)

    def _sought(self, task: Task, f: Probe, began: float, limit: float | None, learnt: bool) -> tuple[Best, bool]:
        """The best, and whether the time was enough."""
        assert f.meter is not None
        if limit is not None and not limit > 0:
            raise ArgumentError(f"time_limit must be above 0 seconds, got {limit!r}")
        strategy = self.strategy if callable(self.strategy) else STRATEGIES[self.strategy]
        if getattr(strategy, "func", strategy) not in (auto, guided, exact):  # which heed by themselves what is banned
            strategy = apart(strategy)
        f.meter.until = torch.inf if limit is None else began + limit
        try:
            with warnings.catch_warnings():
                # what flat gradients hide, values are tried for; advice about attacks is none for counterfactuals
                warnings.simplefilter("ignore", ZeroGradientWarning)
                if task.movable.any():
                    strategy(task)
                    if learnt:
                        from_known(task)
            return task.best, True
        except OutOfTime:
            f.meter.until = torch.inf  # what stands at the inputs may still have to be asked
            return task.best, False
        finally:
            f.meter.until = torch.inf

    def _told(
        self,
        x: Any,
        door: Door,
        f: Probe,
        asked: Probe,
        features: Partition,
        names: tuple[str, ...],
        task: Task,
        best: Best,
        least: Tensor,
        ended: bool,
        began: float,
    ) -> CounterfactualResult:
        domain, found = task.domain, best.found[:, None]
        after, miss = (domain.inputs(torch.where(found == good, best.z, domain.home)) for good in (True, False))
        before, margin = (g.score for g in (f, f.to(inputs=after, strict=False)))
        start, end = (before, margin) if asked.of is f.of else (asked.score, asked.to(inputs=after).score)
        sets = best.sets & found
        edge = domain.edge(torch.where(found, domain.home, best.z))
        coded = isinstance(domain, Coded)
        if coded:  # found among codes, told of the features that these change
            moved = f.packing.pack(after) != f.point
            sets = features.gather(moved.to(f.point), f.everyone) > 0
            edge = torch.zeros_like(sets)
        shares = shares_of_change(f.to(at=Input(), strict=False), features, after, sets)
        assert f.meter is not None
        status = _status(best, end, start - least > 0, ended)
        proved = ("nothing",) * len(status) if coded else _proofs(best, end, task.irreducible())
        spent = f.meter.take()
        return CounterfactualResult(
            inputs=x,
            counterfactual=door.out(after),
            status=status,
            valid=end > 0,
            margin=margin,
            before=before,
            nearest=torch.maximum(best.margin + least, start),
            miss=door.out(miss),
            binding=edge,
            changed=sets,
            cost=torch.where(best.found, best.cost, 0),
            contributions=shares.to(before.device),
            proved=proved,
            names=names,
            forwards=spent.forward,
            backwards=spent.backward,
            seconds=monotonic() - began,
            probe=asked,
            rows=f.everyone,
            features=features,
            schema=self.schema,
        )

    def _features(
        self, f: Probe, mask: Any, inputs: tuple[str, ...] | None, names: Sequence[str] | None
    ) -> tuple[Partition, tuple[str, ...]]:
        if self.schema is not None:
            if mask is not None or names is not None:
                raise ArgumentError("feature_mask and names are the schema's, where there is one: leave them out")
            mask, names = self.schema.feature_mask, self.schema.names
            if len(f.inputs) != 1 or f.inputs[0].shape[1:] != mask.shape[1:] or bool((mask < 0).any()):
                raise ArgumentError(
                    f"x must be encoded rows of {mask.shape[1]} columns, each of them a feature's, got "
                    f"{', '.join(str(tuple(t.shape)) for t in f.inputs)}; use schema.encode(table)"
                )
        features = from_masks(mask, f.inputs, inputs)
        return features, names_of(features, names)

    def _domain(self, f: Probe, features: Partition, known: Known | None, limits: Limits) -> Domain:
        _, norm = DISTANCES[self.distance]
        if self.latent is not None:
            return self.latent.domain(f, norm, self.steps)
        if self.reference is not None:
            return Replace(f, features, named(self.reference))
        if self.values is not None:
            return Choose(f, features, alternatives(self.values, f), norm)
        if self.schema is not None:
            return Table(f, features, self.schema, norm, self.steps, known)
        assert self.bounds is not None
        if not all(t.is_floating_point() for t in f.inputs):
            told = ", ".join(str(t.dtype) for t in f.inputs)
            raise ArgumentTypeError(
                f"with bounds features move by degrees, but the inputs are {told}: give values=[...] that whole "
                "numbers may take, a reference that they give way to, or x.float()"
            )
        low, high = (b.expand(-1, f.point.shape[1]) for b in box(f, *self.bounds, finite=True))
        unit = high - low if self.scale is None else packed(self.scale, f, "scale")
        if not bool((unit >= 0).all()):
            raise ArgumentError(f"scale must not be negative, got {float(unit.min()):g}")
        low, high = limits.box(low, high)
        return Move(f, features, low, high, unit.clamp(min=1e-12), norm, self.steps, known)


def _several(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _status(best: Best, margin: Tensor, there: Tensor, ended: bool) -> tuple[str, ...]:
    none = (best.fewest > best.sets.shape[1]).tolist()
    return tuple(
        ALREADY if was else VALID if good else INFEASIBLE if no else NOT_FOUND if ended else TIME
        for was, good, no in zip(there.tolist(), (margin > 0).tolist(), none, strict=True)
    )


def _proofs(best: Best, margin: Tensor, irreducible: Tensor) -> tuple[str, ...]:
    """What was proved of each result, see :class:`CounterfactualResult`."""
    least = (best.cost <= best.least + 1e-6 * best.least.abs()) & ((best.count <= best.fewest) | (not best.few))
    smallest = best.sets.sum(1) <= best.fewest
    words = ("optimal", least), ("smallest", smallest), ("irreducible", irreducible)
    return tuple(
        next((word for word, true in words if good and bool(true[i])), "nothing")
        for i, good in enumerate((margin > 0).tolist())
    )


def _brief(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)

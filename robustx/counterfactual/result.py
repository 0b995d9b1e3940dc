"""What a counterfactual search hands back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..engine.checks import ArgumentError, optional
from ..engine.guard import untouched
from ..engine.packing import finest
from ..engine.probe import Door, Probe
from ..engine.sites import Input
from ..perturb.features import Partition
from ..perturb.goals import Goal, Whose
from ..perturb.norms import Norm
from . import drawing
from .certificate import Certificate, Level, certify
from .explain import ChangeExplanation, Method, explain_change
from .metrics import evaluate
from .pairs import Pairs
from .robust import spread, survival
from .schema import FeatureSchema
from .words import Step

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

VALID, ALREADY, NOT_FOUND, INFEASIBLE, TIME = "valid", "already valid", "not found", "infeasible", "out of time"


@dataclass(frozen=True, eq=False, repr=False)
class CounterfactualResult:
    """One counterfactual for each example, what was proved of it, and why it works.

    Attributes:
        inputs: what was asked about.
        counterfactual: in the form, shapes and dtypes of the inputs; equal to them where none was found.
        status: of each example ``"valid"``; ``"already valid"`` (the goal is reached as it is); ``"not found"``;
            ``"infeasible"`` (proved: there is none); ``"out of time"``.
        valid: whether the goal is reached there, asked of the model once more [B].
        margin, before: by how much the goal is reached there, and was at the inputs (below 0: missed) [B].
        nearest: the largest margin that any try had [B]: where none was found, how near it came.
        miss: where none was found, the try that came nearest, in the form of the inputs.
        binding: the features that stood at an end of what is allowed in that try, so that they may be what is in the
            way [B, F].
        changed: which features differ [B, F].
        cost: of the change, in the norm and units that were asked for [B].
        contributions: what each feature's change did to the margin, Shapley values [B, F]; unchanged features
            have 0 and a row adds up to margin - before.
        proved: for each example ``"optimal"`` (no cheaper one exists), ``"smallest"`` (no smaller set of features can
            do it, by the margin that was asked for), ``"irreducible"`` (taking back any one change loses the goal, so
            understood) or ``"nothing"`` (none was found, or a change could be spared, as some strategies leave them).
        names: what the features are called, F of them.
        forwards, backwards: how often each example went through the model [B].
        seconds: how long all of it took.
        alternatives: further counterfactuals of the same examples, each with another set of features.
        probe, rows: the goal, asked of the model at the inputs, and which of its examples these are [B].
        features: which elements belong to which feature.
        schema: what the columns of a table mean.
    """

    inputs: Any
    counterfactual: Any
    status: tuple[str, ...]
    valid: Tensor
    margin: Tensor
    before: Tensor
    nearest: Tensor
    miss: Any
    binding: Tensor
    changed: Tensor
    cost: Tensor
    contributions: Tensor
    proved: tuple[str, ...]
    names: tuple[str, ...]
    forwards: Tensor
    backwards: Tensor
    seconds: float
    probe: Probe
    rows: Tensor
    features: Partition
    schema: FeatureSchema | None = None
    alternatives: tuple["CounterfactualResult", ...] = field(default=())

    @property
    def n_changed(self) -> Tensor:
        """How many features differ [B]."""
        return self.changed.sum(1)

    @cached_property
    def distance(self) -> dict[str, Tensor]:
        """How far each counterfactual is away [B]: L0 (a count of features), L1, L2 and Linf in the inputs' units.

        Of a table these are the units of its columns, and another category is a change of 1.
        """
        if self.schema is not None:
            home, away = self.codes
            move = (away - home).abs()
            for i, f in enumerate(self.schema.features):
                if f.kind == "categorical":
                    move[:, i] = (move[:, i] > 0).double()
        else:
            before, after = (Door.open(t).inputs for t in (self.inputs, self.counterfactual))
            parts = [
                (finest(a) - finest(b)).abs() if a.is_floating_point() else finest(a != b)
                for a, b in zip(after, before, strict=True)
            ]
            move = torch.cat([p.reshape(len(p), -1) for p in parts], 1)
        norm = {name: torch.linalg.vector_norm(move, p, dim=1) for name, p in NORMS.items()}
        return {"L0": self.n_changed.to(move)} | norm

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """A table's values before and after, as codes [B, F] (see :class:`FeatureSchema`)."""
        assert self.schema is not None
        home = self.schema.decoded(self.inputs)
        return home, self.schema.decoded(self.counterfactual, home)

    def __len__(self) -> int:
        return len(self.valid)

    def why(self, example: int) -> list[tuple[str, float]]:
        """The changed features of one example and what each did, the most helpful first."""
        return [(s.feature, s.contribution) for s in self.steps(example)]

    def steps(self, example: int) -> list[Step]:
        """What becomes of each changed feature of one example, the most helpful first.

        Values are those of the table in its own units where there is a schema, else the mean of the feature's elements.
        """
        return [self._step(example, i) for i in self.order(example)]

    def order(self, example: int) -> list[int]:
        """The changed features of one example, the most helpful first."""
        which = self.changed[example].nonzero().squeeze(1).tolist()
        return sorted(which, key=lambda i: -float(self.contributions[example, i]))

    def _step(self, example: int, feature: int) -> Step:
        before, after = (v[example][feature] for v in self._values)
        unit = "" if self.schema is None else self.schema.features[feature].unit
        return Step(self.names[feature], before, after, unit, float(self.contributions[example, feature]))

    def message(self, example: int) -> str:
        """In words what became of one example: what changes, or how near the search came and what is in the way."""
        status, short = self.status[example], -float(self.nearest[example])
        if status == ALREADY:
            return f"already valid by {float(self.margin[example]):.4g}: nothing has to change"
        if status == VALID:
            return f"valid with {', '.join(s.words for s in self.steps(example))}"
        held = [self.names[i] for i in self.binding[example].nonzero().squeeze(1).tolist()]
        if self.schema is not None:
            miss = self.schema.decoded(self.miss[example : example + 1], self.codes[0][example : example + 1])
            held += map(str, self.schema.tight(miss)[0])
        ends = f"; at the end of what is allowed: {', '.join(held)}" if held else ""
        if status == INFEASIBLE:
            return f"infeasible: no allowed change reaches the goal, which is proved{ends}"
        return f"{status}: the nearest try was {short:.4g} short{ends}"

    def summary(self, example: int) -> str:
        """A few words about one example: how many of the features change, and what is proved of them."""
        if self.status[example] != VALID:
            return self.message(example)
        n = int(self.n_changed[example])
        proof = self.proved[example]
        told = "nothing is proved" if proof == "nothing" else f"proved: {proof}"
        return f"{n} of {len(self.names)} features change{'s' if n == 1 else ''}; {told}"

    def verify(self, forward_func: Callable[..., Any] | None = None) -> Tensor:
        """Whether each counterfactual reaches the goal, asked from scratch and one row at a time [B].

        Args:
            forward_func: another model, such as the same one trained anew; None: the model that was asked.
        """
        f = self.probe if forward_func is None else self.probe.to(model=forward_func)
        with untouched(f.model):
            after = Door.open(self.counterfactual).inputs
            if not all(t.is_floating_point() for t in after):  # ids cannot stand in the place of numbers that move
                after = tuple(t.index_copy(0, self.rows, a) for t, a in zip(f.inputs, after, strict=True))
                return f.to(inputs=after).score[self.rows] > 0
            z = f.packing.pack(after)
            alone = [f.value(z[i : i + 1], self.rows[i : i + 1]) for i in range(len(self))]
            return torch.cat(alone) > 0 if alone else self.valid

    def robustness(
        self,
        models: Sequence[Callable[..., Any]] | None = None,
        sigma: float | Tensor | None = None,
        draws: int = 100,
        seed: int = 0,
    ) -> Tensor:
        """For what share of other models, or of draws of noise, each counterfactual still reaches the goal [B].

        It is 0 where none was found.

        Args:
            models: such as the same one trained anew; None: the model that was asked.
            sigma: the deviation of Gaussian noise on the counterfactual, in the units of the inputs: a number, or a
                tensor that broadcasts to what was asked about; categories have none. None: no noise.
            draws: of the noise, other ones than a search has seen.
            seed: of the draws.

        Raises:
            ArgumentError: neither models nor noise.
        """
        if models is None and sigma is None:
            raise ArgumentError("robustness is against something: give models=[...], sigma=..., or both")
        goal = self.probe.of
        assert isinstance(goal, Goal)
        f = self.probe.to(of=goal.plain)
        around = None if sigma is None else spread(sigma, f, self.schema)
        z = f.packing.pack(Door.open(self.counterfactual).inputs)
        with untouched([f.model, *(models or ())]):
            share = survival(f, z, self.rows, models, around, draws, seed)
        return share * self.valid

    @property
    def all(self) -> tuple["CounterfactualResult", ...]:
        """The counterfactuals and their alternatives."""
        return (self, *self.alternatives)

    def to_dataframe(self, only_changes: bool = True) -> "pd.DataFrame":
        """One row for each feature that changes: ``example``, ``rank``, ``feature``, ``before``, ``after``, ``unit``
        and ``contribution``; rank 0 is the counterfactual, from 1 on come the alternatives.

        Values are those of the table in its own units where there is a schema, else the mean of the feature's elements.

        Args:
            only_changes: False also lists what stays as it is.

        Raises:
            ImportError: pandas is not installed.
        """
        frame: Callable[..., pd.DataFrame] = optional("pandas", "tables").DataFrame
        told: list[tuple[Any, ...]] = []
        for rank, result in enumerate(self.all):
            shown = result.changed if only_changes else torch.ones_like(result.changed)
            told += [(i, rank, *result._step(i, j)) for i, j in shown.nonzero().tolist()]
        return frame(told, columns=["example", "rank", "feature", "before", "after", "unit", "contribution"])

    @property
    def pairs(self) -> Pairs:
        """Inputs and counterfactuals as those of any origin: what of them is needed, and how near they can come."""
        return Pairs(**self.asked(self.probe.of))

    def asked(self, goal: Any) -> dict[str, Any]:
        """What functions of counterfactuals of any origin are told: the question once more, with a goal of all."""
        f, rows = self.probe, self.rows

        def follow(v: Any) -> Any:
            return v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim and len(v) == f.examples else v

        ids = self.features.ids if self.features.shared else self.features.ids[rows]
        mask = f.to(at=Input()).packing.split(ids.reshape(-1, self.features.size))
        left = torch.isin(self.features.known, ids).tolist()  # pictures may be cut into more parts than these are
        own = {"feature_mask": mask, "names": [n for n, here in zip(self.names, left, strict=True) if here]}
        return {
            "forward_func": f.model,
            "x": self.inputs,
            "x_cf": self.counterfactual,
            "target": goal if torch.equal(rows, f.everyone) else Whose(rows, goal),
            "additional_forward_args": tuple(map(follow, f.args)) or None,
            "additional_forward_kwargs": {k: follow(v) for k, v in f.kwargs.items()},
        } | (own if self.schema is None else {"schema": self.schema})

    def prune(self, budget: int = 512) -> Pairs:
        """Without the changes that are not needed, see :func:`prune`."""
        return self.pairs.prune(budget)

    def refine(self, norm: str | Norm = "L1") -> Pairs:
        """Drawn nearer without another feature changing, see :func:`refine`."""
        return self.pairs.refine(norm)

    def certify(self, level: Level = "single", *, reference: Any = None, **told: Any) -> Certificate:
        """What can be proved of the changes by trying sets of them, see :func:`certify`."""
        return certify(level=level, reference=reference, **self.asked(self.probe.of), **told)

    def explain(self, method: Method = "auto", **told: Any) -> ChangeExplanation:
        """What each change does to the margin, by Shapley values or on the way, see :func:`explain_change`."""
        return explain_change(method=method, **self.asked(self.goal), **told)

    def evaluate(self, **told: Any) -> "pd.DataFrame":
        """Measured by any metrics, alternatives as well, see :func:`evaluate`; what was not found is missing."""
        asked = self.asked(self.goal) | {"x_cf": self}
        return evaluate(**{name: v for name, v in asked.items() if name != "names"} | told)

    @property
    def goal(self) -> Goal:
        """What was to be reached, without what else was demanded, such as being plausible."""
        assert isinstance(self.probe.of, Goal)
        return self.probe.of.plain

    def plot(
        self,
        kind: drawing.Kind | None = None,
        example: int | Sequence[int] = 0,
        *,
        title: str | None = None,
        classes: Sequence[str] = (),
        bounds: Any = None,
        beside: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ) -> "Figure":
        """A picture as a matplotlib figure; save it with ``figure.savefig(path, bbox_inches="tight")``.

        Args:
            kind: ``"table"``: what changes, in the user's units, alternatives beneath; ``"waterfall"``: from the margin
                before to that after, change by change; ``"image"``: before, after, change, and what each region did;
                ``"path"``: the margin on the straight way there and on the walk of single changes; ``"pareto"``: how
                many features change against the cost. None: images as images, else what shows most.
            example: which one; for ``"image"`` also several, one a row.
            title: above the picture.
            classes: of images, what the classes are called.
            bounds: of images, (lowest, highest) value; None: 0 and 1, or those that occur.
            beside: for ``"pareto"``, further pairs (number of features, cost) by name, such as those of :func:`pareto`.

        Raises:
            ArgumentError: there is no such kind, no such example, or the inputs are no images.
        """
        some = [example] if isinstance(example, int) else list(example)
        if not some or not all(-len(self) <= i < len(self) for i in some):
            raise ArgumentError(f"example must be one of the {len(self)} of this result, got {example!r}")
        kind = drawing.usual(self, some[0]) if kind is None else kind
        if kind == "image":
            return drawing.image(self, some, title, classes, bounds)
        kinds = (*drawing.DRAWN, "pareto", "image")
        if kind not in kinds:
            raise ArgumentError(f"kind must be one of {', '.join(map(repr, kinds))}, got {kind!r}")
        if len(some) > 1:
            raise ArgumentError(f"kind={kind!r} shows one example, got {len(some)}; kind='image' takes several")
        if kind == "pareto":
            return drawing.pareto(self, some[0], title, beside or {})
        return drawing.DRAWN[kind](self, some[0], title)

    @cached_property
    def _values(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """What each feature was and is [B][F]."""
        if self.schema is not None:
            return tuple(self.schema.rows(c) for c in self.codes)  # type: ignore[return-value]  # a pair
        before, after = (Door.open(t).inputs for t in (self.inputs, self.counterfactual))
        ones = torch.ones(len(self), self.features.size, dtype=finest(self.margin).dtype, device=self.valid.device)
        count = self.features.gather(ones, self.rows)

        def means(tensors: Sequence[Tensor]) -> list[list[Any]]:
            flat = torch.cat([finest(t).reshape(len(t), -1) for t in tensors], 1)
            told: list[list[Any]] = (self.features.gather(flat, self.rows) / count).tolist()
            return told

        return means(before), means(after)

    def at(self, rows: Tensor | slice | Sequence[int]) -> Self:
        """Some of the examples: their numbers, booleans [B] or a slice."""
        index = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows).cpu()]
        held = {n: getattr(self, n) for n in ROWS}
        some: dict[str, Any] = tree_map_only(Tensor, lambda t: t[index.to(t.device)], held)
        some |= {n: tuple(getattr(self, n)[i] for i in index.tolist()) for n in ("status", "proved")}
        return replace(self, **some, alternatives=tuple(a.at(index) for a in self.alternatives))

    def __repr__(self) -> str:
        n = len(self)
        if not n:
            return "CounterfactualResult(no examples)"
        found = int(self.valid.sum())
        told = f"{found} of {n} found"
        if found:
            few = self.n_changed[self.valid].double()
            told += f", {few.mean():.2f} of {len(self.names)} features change on average (at most {int(few.max())})"
        counts = ", ".join(f"{self.proved.count(p)} {p}" for p in PROOFS if p in self.proved)
        others = {s: self.status.count(s) for s in (ALREADY, NOT_FOUND, INFEASIBLE, TIME)}
        rest = "".join(f"; {k} {s}" for s, k in others.items() if k)
        return f"CounterfactualResult({told}{'; proved: ' + counts if counts else ''}{rest})"


NORMS = {"L1": 1, "L2": 2, "Linf": torch.inf}
PROOFS = ("optimal", "smallest", "irreducible")
ROWS = [
    "inputs",
    "counterfactual",
    "valid",
    "margin",
    "before",
    "nearest",
    "miss",
    "binding",
    "changed",
    "cost",
    "contributions",
    "forwards",
    "backwards",
    "rows",
]

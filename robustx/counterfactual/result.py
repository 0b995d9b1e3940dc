"""What a counterfactual search hands back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..engine.checks import optional
from ..engine.guard import untouched
from ..engine.packing import finest
from ..engine.probe import Door, Probe
from ..perturb.features import Partition
from .schema import FeatureSchema

if TYPE_CHECKING:
    import pandas as pd

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
            understood) or ``"nothing"`` (none was found).
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
        which = self.changed[example].nonzero().squeeze(1).tolist()
        told = [(self.names[i], float(self.contributions[example, i])) for i in which]
        return sorted(told, key=lambda t: -t[1])

    def message(self, example: int) -> str:
        """In words what became of one example: what changes, or how near the search came and what is in the way."""
        status, short = self.status[example], -float(self.nearest[example])
        if status == ALREADY:
            return f"already valid by {float(self.margin[example]):.4g}: nothing has to change"
        if status == VALID:
            return f"valid with {int(self.n_changed[example])} changes: {', '.join(n for n, _ in self.why(example))}"
        held = [self.names[i] for i in self.binding[example].nonzero().squeeze(1).tolist()]
        ends = f"; at the end of what is allowed: {', '.join(held)}" if held else ""
        if status == INFEASIBLE:
            return f"infeasible: no allowed change reaches the goal, which is proved{ends}"
        return f"{status}: the nearest try was {short:.4g} short{ends}"

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
        for rank, result in enumerate((self, *self.alternatives)):
            before, after = result._values
            shown = result.changed if only_changes else torch.ones_like(result.changed)
            for i, j in shown.nonzero().tolist():
                unit = "" if self.schema is None else self.schema.features[j].unit
                told.append(
                    (i, rank, self.names[j], before[i][j], after[i][j], unit, float(result.contributions[i, j]))
                )
        return frame(told, columns=["example", "rank", "feature", "before", "after", "unit", "contribution"])

    @property
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

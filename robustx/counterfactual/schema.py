"""Schemas: what the columns of a table mean, how a model takes them, and how they may change."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..engine.checks import ArgumentError, optional
from ..perturb.norms import L2
from . import tables
from .columns import SENSES, Feature, Linear, Place

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 20  # over all linear constraints; what is still broken then cannot be had on the grid


@dataclass(frozen=True)
class _Rules:
    """What the features' codes keep to, [F] each, and where they stand.

    Ranges, largest changes, grids, which may fall or rise, and spans; the first column, how it is scaled, whether it
    begins a block, and which columns are whose [D, F].
    """

    least: Tensor
    most: Tensor
    far: Tensor
    gridded: Tensor
    start: Tensor
    step: Tensor
    falls: Tensor
    rises: Tensor
    span: Tensor
    column: Tensor
    offset: Tensor
    scale: Tensor
    block: Tensor
    owner: Tensor

    def snapped(self, codes: Tensor) -> Tensor:
        """The nearest codes on their grids [B, F]."""
        return torch.where(self.gridded, self.start + ((codes - self.start) / self.step).round() * self.step, codes)


class FeatureSchema:
    """The features of a table: how they are encoded for a model and what may be changed, kept to exactly.

    Values are told as **codes** [B, F] in float64: numbers as they are, categories by their place in the list. An
    encoded row [D] is what the model takes.

    Args:
        features: F of them.
        places: where each stands in the encoded row; one after the other, numbers as they are, by default.
        constraints: sums over several features that must hold.
        dtype: of encoded rows.

    >>> schema = FeatureSchema(
    ...     [
    ...         Feature("age", "integer", range=(18, 99), direction="increase"),
    ...         Feature("job", "categorical", ("none", "part", "full")),
    ...     ]
    ... )
    >>> x = schema.encode({"age": [30], "job": ["part"]})
    >>> x
    tensor([[30.,  0.,  1.,  0.]])
    >>> schema.project(torch.tensor([[24.7, 0.0, 0.2, 0.9]]), x)  # age may not fall; a category is one of the list
    tensor([[30.,  0.,  0.,  1.]])
    """

    def __init__(
        self,
        features: Iterable[Feature],
        places: Iterable[Place] | None = None,
        constraints: Iterable[Linear] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.features = tuple(features)
        self.names = tuple(f.name for f in self.features)
        if len(set(self.names)) != len(self.names):
            raise ArgumentError(f"names of features must differ from one another, got {', '.join(self.names)}")
        self.places = tuple(_in_a_row(self.features)) if places is None else tuple(places)
        self.dtype = dtype
        self.constraints: tuple[Linear, ...] = ()
        for constraint in constraints:
            self.add_constraint(constraint)

    @classmethod
    def from_dataframe(
        cls,
        table: Any,
        *,
        categorical: Iterable[str] = (),
        integer: Iterable[str] = (),
        ordinal: Mapping[str, Sequence[Any]] | None = None,
        target: str | None = None,
        scale: Literal["range", "standard"] | None = "range",
        dtype: torch.dtype = torch.float32,
        **rules: Any,
    ) -> "FeatureSchema":
        """What a DataFrame's columns are, and an encoding to train a model on.

        Args:
            table: a DataFrame, or a dict of columns.
            categorical, integer: columns that are so although they look otherwise. Text, booleans and pandas' own
                categories are categorical (binary, if there are two of them; ordinal, if pandas knows their order);
                whole numbers are integers.
            ordinal: columns whose categories have an order, and that order.
            target: a column that is no feature.
            scale: numbers are encoded from 0 to 1 over their range (``"range"``), to mean 0 and deviation 1
                (``"standard"``), or stay as they are (None).
            dtype: of encoded rows.
            rules: ``immutable``, ``increasing``, ``decreasing`` (names of columns); ``ranges``, ``max_changes``,
                ``steps``, ``units``, ``costs``, ``transitions`` (by name); a range is that of the data unless given.
        """
        features, places = tables.from_dataframe(table, categorical, integer, ordinal or {}, target, scale, rules)
        return cls(features, places, dtype=dtype)

    @classmethod
    def from_array(cls, x: Any, names: Sequence[str] | None = None, **rules: Any) -> "FeatureSchema":
        """Columns of numbers [B, D] that the model takes as they are; ``rules`` as for :meth:`from_dataframe`."""
        dtype = torch.float64 if getattr(x, "dtype", None) in (torch.float64, np.float64) else torch.float32
        return cls(tables.from_array(x, names, rules), dtype=dtype)

    @classmethod
    def from_column_transformer(
        cls, transformer: Any, table: Any, dtype: torch.dtype = torch.float32, **rules: Any
    ) -> "FeatureSchema":
        """What scikit-learn's fitted ColumnTransformer makes of a DataFrame.

        It may scale (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler), number categories (OrdinalEncoder),
        spread them (OneHotEncoder) and pass columns on; ``dtype`` (float64 is what scikit-learn's own models take) and
        ``rules`` as for :meth:`from_dataframe`.

        Raises:
            ArgumentError: it holds anything else.
        """
        features, places = tables.from_column_transformer(transformer, table, rules)
        return cls(features, places, dtype=dtype)

    def __repr__(self) -> str:
        told = ", ".join(f"{f.name} ({f.kind}{'' if f.mutable else ', fixed'})" for f in self.features)
        return f"FeatureSchema({told})"

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        return self.features[self._position(name)]

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise ArgumentError(f"no feature is called {name!r}; known are {', '.join(self.names)}")
        return self.names.index(name)

    def with_(self, name: str, **changes: Any) -> "FeatureSchema":
        """The same schema with something else said of one feature."""
        i = self._position(name)
        changed = (*self.features[:i], replace(self.features[i], **changes), *self.features[i + 1 :])
        return FeatureSchema(changed, self.places, self.constraints, self.dtype)

    def add_constraint(self, constraint: Linear) -> Self:
        """A sum over several features that must hold.

        Raises:
            ArgumentError: it names what is no feature, or has no order.
        """
        for name in constraint.coefficients:
            if self[name].kind == "categorical":
                raise ArgumentError(f"{name!r} has categories without an order and cannot stand in {constraint}")
        self.constraints = (*self.constraints, constraint)
        return self

    @property
    def width(self) -> int:
        """How many columns an encoded row has, D."""
        return max((p.start + p.width for p in self.places), default=0)

    @cached_property
    def feature_mask(self) -> Tensor:
        """The number of the feature that each encoded column belongs to [1, D], as Captum's ``feature_mask``."""
        mask = torch.full((1, self.width), -1)
        for i, p in enumerate(self.places):
            mask[:, p.columns] = i
        return mask

    # --- there and back ---------------------------------------------------------------------------------

    def codes(self, table: Any) -> Tensor:
        """Codes [B, F] of a table in people's units: a DataFrame, a dict of columns, or rows of values.

        Raises:
            ArgumentError: a column is missing, a category unknown, or a number none.
        """
        columns = tables.columns_of(table) if hasattr(table, "keys") else {}
        rows = None if hasattr(table, "keys") else list(table.tolist() if hasattr(table, "tolist") else table)
        told: list[list[float]] = []
        for i, f in enumerate(self.features):
            if rows is None and f.name not in columns:
                raise ArgumentError(f"the table has no column {f.name!r}; it has {', '.join(columns)}")
            values = list(columns[f.name]) if rows is None else [row[i] for row in rows]
            told.append([self._code(f, v, row) for row, v in enumerate(values)])
        return torch.tensor(told, dtype=torch.float64).reshape(len(self), -1).T.contiguous()

    @staticmethod
    def _code(f: Feature, value: Any, row: int) -> float:
        if f.listed:
            if value not in f.categories:
                raise ArgumentError(
                    f"feature {f.name!r} has no category {value!r} (row {row}); known are {f.categories!r}"
                )
            return float(f.categories.index(value))
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not np.isfinite(number):
            raise ArgumentError(
                f"feature {f.name!r} must be a finite number, got {value!r} in row {row}; fill it first"
            )
        return number

    def encode(self, table: Any) -> Tensor:
        """A table in people's units, as the model takes it [B, D]."""
        return self.encoded(self.codes(table))

    def encoded(self, codes: Tensor) -> Tensor:
        """Codes [B, F], as the model takes them [B, D]."""
        r, z = self._rules, codes.new_zeros(len(codes), self.width)
        z[:, r.column[~r.block]] = ((codes - r.offset) / r.scale)[:, ~r.block]
        for i, p in self._blocks:
            z[torch.arange(len(z)), p.start + codes[:, i].long()] = 1
        return z.to(self.dtype)

    def decoded(self, z: Tensor, original: Tensor | None = None) -> Tensor:
        """The nearest codes [B, F] to encoded rows [B, D].

        What is encoded like ``original`` [B, F] decodes to it, and what was clipped to a limit to that limit, to the
        last bit: so whatever :meth:`project` keeps to still holds for what people read.
        """
        r, z = self._rules, z.detach().cpu().double()
        here = z[:, r.column]
        codes = r.snapped(here * r.scale + r.offset).clamp(r.least, r.most)
        for known in (r.least, r.most, *(() if original is None else (original,))):
            same = ((known - r.offset) / r.scale).to(self.dtype).double() == here
            codes = torch.where(same, known, codes)
        for i, p in self._blocks:
            codes[:, i] = z[:, p.columns].argmax(1).double()
        return codes if original is None else self._summed(self._allowed(codes, original), original)

    def decode(self, z: Tensor, original: Any = None) -> "pd.DataFrame":
        """Encoded rows [B, D] as a table in people's units; ``original`` as for :meth:`decoded`, or a table."""
        if original is not None and not isinstance(original, Tensor):
            original = self.codes(original)
        return self.table(self.decoded(z, original))

    def table(self, codes: Tensor) -> "pd.DataFrame":
        """Codes [B, F] as people read them.

        Raises:
            ImportError: pandas is not installed.
        """
        frame: Callable[..., pd.DataFrame] = optional("pandas", "tables").DataFrame
        return frame(self._columns(codes))

    def rows(self, codes: Tensor) -> list[list[Any]]:
        """Codes [B, F] as lists of values that people read, one for each row."""
        columns = self._columns(codes).values()
        return [list(row) for row in zip(*columns, strict=True)]

    def _columns(self, codes: Tensor) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for f, code in zip(self.features, codes.T.tolist(), strict=True):
            if f.listed:
                columns[f.name] = [f.categories[int(c)] for c in code]
            else:
                columns[f.name] = [int(c) for c in code] if f.kind == "integer" and f.step is None else code
        return columns

    # --- what may change --------------------------------------------------------------------------------

    def limits(self, codes: Tensor, free: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The least and the greatest code that each row's features may have [B, F]; its own always lies between.

        With ``free`` [B, F] others may have no other than their own.
        """
        r = self._rules
        low, high = torch.maximum(r.least, codes - r.far), torch.minimum(r.most, codes + r.far)
        low = torch.where(r.gridded, r.start + ((low - r.start) / r.step).ceil() * r.step, low)
        high = torch.where(r.gridded, r.start + ((high - r.start) / r.step).floor() * r.step, high)
        falls, rises = (way if free is None else way & free for way in (r.falls, r.rises))
        return (
            torch.where(falls, torch.minimum(low, codes), codes),
            torch.where(rises, torch.maximum(high, codes), codes),
        )

    @cached_property
    def _rules(self) -> "_Rules":
        def each(values: Iterable[float], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(list(values), dtype=dtype)

        grids = [f.grid or (0.0, 1.0) for f in self.features]
        return _Rules(
            least=each(f.range[0] for f in self.features),
            most=each(f.range[1] for f in self.features),
            far=each(f.max_change for f in self.features),
            gridded=each((f.grid is not None for f in self.features), torch.bool),
            start=each(start for start, _ in grids),
            step=each(step for _, step in grids),
            falls=each((f.mutable and f.direction != "increase" for f in self.features), torch.bool),
            rises=each((f.mutable and f.direction != "decrease" for f in self.features), torch.bool),
            span=each(f.span for f in self.features),
            column=each((p.start for p in self.places), torch.long),
            offset=each(p.offset for p in self.places),
            scale=each(p.scale for p in self.places),
            block=each((p.block for p in self.places), torch.bool),
            owner=(self.feature_mask[0].cpu()[:, None] == torch.arange(len(self))).double(),
        )

    @cached_property
    def _blocks(self) -> list[tuple[int, Place]]:
        return [(i, p) for i, p in enumerate(self.places) if p.block]

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The box in which encoded rows [B, D] may move: as :meth:`limits`, and which categories they may become."""
        codes = self.decoded(x)
        least, most = self.limits(codes)
        low, high = x.clone(), x.clone()
        for i, (f, p) in enumerate(zip(self.features, self.places, strict=True)):
            if not f.mutable:
                continue
            if p.block:
                may = f.may_become()[codes[:, i].long()].to(x.device)
                kept = may.sum(1, keepdim=True) == 1
                low[:, p.columns] = torch.where(kept, x[:, p.columns], 0)
                high[:, p.columns] = torch.where(kept, x[:, p.columns], may.to(x))
            else:
                ends = [((c[:, i] - p.offset) / p.scale).to(x) for c in (least, most)]
                own = x[:, p.start]
                low[:, p.start] = torch.minimum(torch.minimum(*ends), own)
                high[:, p.start] = torch.maximum(torch.maximum(*ends), own)
        return low, high

    def project(self, z: Tensor, x: Tensor, free: Tensor | None = None) -> Tensor:
        """Encoded rows [N, D] moved to where everything holds, seen from ``x`` [N, D]: nothing of it is a penalty.

        Numbers are clipped and put on their grids, blocks become one of the categories allowed, sums are mended by the
        least move. A row whose sums cannot be mended comes back as ``x``. With ``free`` [N, F] only those features
        move at all.
        """
        r, home, free = self._rules, self.decoded(x), None if free is None else free.cpu()
        wide = z.detach().cpu().double()
        codes = wide[:, r.column] * r.scale + r.offset
        moved = (z != x).cpu().double() @ r.owner > 0
        for i, p in self._blocks:
            codes[:, i] = self._category(self.features[i], p, wide, home[:, i])
        codes = torch.where(moved, codes, home)  # what did not move stays, whatever decoding rounds
        codes = self._summed(self._allowed(codes, home, free), home, free)
        new = self.encoded(codes).to(z)
        same = (codes == home).to(z.device)
        return torch.where(same[:, self.feature_mask[0].to(z.device)], x, new)

    def _category(self, f: Feature, p: Place, z: Tensor, own: Tensor) -> Tensor:
        score = z[:, p.columns]
        may = f.may_become()[own.long()]
        score = score.masked_fill(~may, -torch.inf)
        best = score.amax(1)
        mine = score.gather(1, own.long()[:, None]).squeeze(1)
        return torch.where(mine == best, own, score.argmax(1).double())

    def _allowed(self, codes: Tensor, home: Tensor, free: Tensor | None = None) -> Tensor:
        """Codes within the limits of each row and on the grid; what did not change stays, wherever it is."""
        low, high = self.limits(home, free)
        r = self._rules
        kept = torch.where(codes == home, home, r.snapped(codes).clamp(low, high))
        for i, f in enumerate(self.features):
            if f.kind == "categorical":
                may = f.may_become()[home[:, i].long(), codes[:, i].long()] & f.mutable
                may = may if free is None else may & free[:, i]
                kept[:, i] = torch.where(may, codes[:, i], home[:, i])
        return kept

    def sums(self) -> list[tuple[Tensor, float, Linear]]:
        """All sums as coefficients [F] and a bound that they must not be below."""
        told: list[tuple[Tensor, float, Linear]] = []
        for c in self.constraints:
            a = torch.zeros(len(self), dtype=torch.float64)
            for name, value in c.coefficients.items():
                a[self._position(name)] = value
            told.extend((sign * a, sign * c.bound, c) for sign in SENSES[c.sense])
        return told

    def tight(self, codes: Tensor) -> list[list[Linear]]:
        """The sums of each row [B, F] that leave no room: they hold, but only just."""
        rows: list[list[Linear]] = [[] for _ in range(len(codes))]
        for a, bound, constraint in self.sums():
            near = (codes @ a - bound).abs() <= 1e-6 * (codes.abs() @ a.abs() + abs(bound))
            for row in near.nonzero().flatten().tolist():
                if constraint not in rows[row]:
                    rows[row].append(constraint)
        return rows

    def _summed(self, codes: Tensor, home: Tensor, free: Tensor | None = None) -> Tensor:
        sums = self.sums()
        if not sums:
            return codes
        if not any(bool((_short(codes, a, bound) > 0).any()) for a, bound, _ in sums):
            return codes
        low, high = self.limits(home, free)
        r = self._rules
        unit = r.span
        for _ in range(ROUNDS):
            before = codes
            for a, bound, _ in sums:
                short = _short(codes, a, bound)
                if not bool((short > 0).any()):
                    continue
                beyond = 1e-12 * (codes.abs() @ a.abs() + abs(bound))  # as much as adding may round
                way = (a * unit).expand_as(codes)
                room = torch.where(way > 0, high - codes, codes - low).clamp(min=0) / unit
                move = L2().least(way, torch.where(short > 0, short + beyond, 0), room).nan_to_num()
                moved = codes + torch.where((short > 0)[:, None], move * unit, 0)
                # to the next grid point beyond, so that rounding does not break the sum again
                at = ((moved - r.start) / r.step).mul(1e9).round().div(1e9)
                at = r.start + torch.where(a > 0, at.ceil(), at.floor()) * r.step
                moved = torch.where(r.gridded & (moved != codes), at, moved)
                codes = torch.minimum(torch.maximum(moved, low), high)
            if torch.equal(codes, before):
                break
        broken = torch.stack([_broken(codes, a, bound, c) for a, bound, c in sums]).any(0)
        return torch.where(broken[:, None], home, codes)

    def violations(self, x: Any, x_cf: Any) -> "pd.DataFrame":
        """Everything that rows ``x_cf`` break, seen from ``x``: both tables, or codes [B, F].

        One row for each: ``row``, ``feature`` (or the sum), ``rule``, ``before``, ``after``, ``limit``.
        """
        home, codes = (t if isinstance(t, Tensor) else self.codes(t) for t in (x, x_cf))
        if home.shape != codes.shape:
            raise ArgumentError(f"x and x_cf must have the same rows, got {len(home)} and {len(codes)}")
        broken: list[tuple[Any, ...]] = []

        def tell(name: str, rule: str, where: Tensor, before: Tensor, after: Tensor, limit: Any) -> None:
            for row in where.nonzero().flatten().tolist():
                end = limit[row].item() if isinstance(limit, Tensor) else limit
                broken.append((row, name, rule, before[row].item(), after[row].item(), end))

        for i, f in enumerate(self.features):
            own, code = home[:, i], codes[:, i]
            moved, change = code != own, code - own
            if f.grid is not None:
                tell(f.name, "grid", moved & (f.snapped(code) != code), own, code, f.grid[1])
            if not f.mutable:
                tell(f.name, "fixed", moved, own, code, own)
            elif f.kind == "categorical":
                tell(f.name, "transition", ~f.may_become()[own.long(), code.long()], own, code, own)
            tell(f.name, "range", moved & ((code < f.range[0]) & (code < own)), own, code, f.range[0])
            tell(f.name, "range", moved & ((code > f.range[1]) & (code > own)), own, code, f.range[1])
            if f.direction != "any":
                tell(f.name, f.direction, change < 0 if f.direction == "increase" else change > 0, own, code, own)
            least, most = own - f.max_change, own + f.max_change
            tell(f.name, "max_change", (code < least) | (code > most), own, code, f.max_change)
        for a, bound, c in self.sums():
            tell(str(c), "sum", _broken(codes, a, bound, c), home @ a, codes @ a, bound)
        frame: Callable[..., pd.DataFrame] = optional("pandas", "tables").DataFrame
        return frame(broken, columns=["row", "feature", "rule", "before", "after", "limit"])


def _in_a_row(features: Sequence[Feature]) -> Iterable[Place]:
    start = 0
    for f in features:
        block = f.kind == "categorical"
        place = Place(start, len(f.categories) if block else 1, block=block)
        yield place
        start += place.width


def _short(codes: Tensor, a: Tensor, bound: float) -> Tensor:
    """How far each row's sum is below its bound [N]."""
    return (bound - codes @ a).clamp(min=0)


def _broken(codes: Tensor, a: Tensor, bound: float, c: Linear) -> Tensor:
    """Which rows are below [N]; an equality cannot hold to the last bit, and is taken to hold to nine digits."""
    slack = 1e-9 * (codes.abs() @ a.abs() + abs(bound)) if c.sense == "==" else 0.0
    return _short(codes, a, bound) > slack

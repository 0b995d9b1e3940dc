"""Where schemas come from: DataFrames, arrays, and scikit-learn's ColumnTransformer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.checks import ArgumentError
from .columns import Feature, Kind, Place

LISTS = ("immutable", "increasing", "decreasing")
BY_NAME = {
    "ranges": "range",
    "max_changes": "max_change",
    "steps": "step",
    "units": "unit",
    "costs": "cost",
    "transitions": "transitions",
}


def from_dataframe(
    table: Any,
    categorical: Iterable[str],
    integer: Iterable[str],
    ordinal: Mapping[str, Sequence[Any]],
    target: str | None,
    scale: str | None,
    rules: Mapping[str, Any],
) -> tuple[list[Feature], list[Place]]:
    """Features and places, see :meth:`FeatureSchema.from_dataframe`."""
    columns = {name: column for name, column in columns_of(table).items() if name != target}
    categorical, integer = set(categorical), set(integer)
    _known([*categorical, *integer, *ordinal], columns, "categorical, integer and ordinal")
    features, places, start = [], [], 0
    for name, values in columns.items():
        features.append(_feature(name, values, name in categorical, name in integer, ordinal.get(name)))
    features = with_rules(features, rules)
    for feature in features:
        place = Place(start, len(feature.categories), block=True) if feature.kind == "categorical" else Place(start)
        if not feature.listed and scale is not None:
            values = np.asarray(columns[feature.name], dtype=float)
            low, high = feature.range
            offset, unit = (low, high - low) if scale == "range" else (float(values.mean()), float(values.std()))
            place = Place(start, 1, offset, unit or 1.0)
        elif feature.kind == "ordinal" and scale is not None:
            place = Place(start, 1, 0.0, max(len(feature.categories) - 1.0, 1.0))
        places.append(place)
        start += place.width
    return features, places


def columns_of(table: Any) -> dict[str, Any]:
    """The columns of a DataFrame or a dict, by their names as text.

    Raises:
        ArgumentError: two have the same name.
    """
    names = list(table)
    told = list(map(str, names))
    twice = next((n for i, n in enumerate(told) if n in told[:i]), None)
    if twice is not None:
        raise ArgumentError(f"columns must differ in their names, got {twice!r} twice; rename one")
    return {str(name): table[name] for name in names}


def from_array(x: Any, names: Sequence[str] | None, rules: Mapping[str, Any]) -> list[Feature]:
    """Features, see :meth:`FeatureSchema.from_array`."""
    values = np.asarray(x, dtype=float)
    if values.ndim != 2:
        raise ArgumentError(f"x must be rows of numbers [B, D], got shape {values.shape}")
    names = [f"feature {i}" for i in range(values.shape[1])] if names is None else list(names)
    if len(names) != values.shape[1]:
        raise ArgumentError(f"names must name each of the {values.shape[1]} columns, got {len(names)}")
    integer = set(rules.get("integer", ()))
    features = [
        _feature(name, column, False, name in integer, None) for name, column in zip(names, values.T, strict=True)
    ]
    return with_rules(features, {k: v for k, v in rules.items() if k != "integer"})


def from_column_transformer(
    transformer: Any, table: Any, rules: Mapping[str, Any]
) -> tuple[list[Feature], list[Place]]:
    """Features and places, see :meth:`FeatureSchema.from_column_transformer`."""
    if not hasattr(transformer, "transformers_"):
        raise ArgumentError("transformer must be a ColumnTransformer that has been fitted; call fit(table) first")
    features, places, start, columns = [], [], 0, columns_of(table)
    for label, step, chosen in transformer.transformers_:
        if step == "drop":
            continue
        names = (
            [chosen]
            if isinstance(chosen, str)
            else list(np.asarray(list(columns))[chosen] if _by_place(chosen) else chosen)
        )
        for j, (feature, place) in enumerate(_read(label, step, names, columns)):
            features.append(feature)
            places.append(Place(start, place.width, place.offset, place.scale, place.block))
            start += place.width
            assert feature.name == names[j]
    return with_rules(features, rules), places


def _by_place(chosen: Any) -> bool:
    """Whether columns were chosen by number, mask or slice rather than by name."""
    return isinstance(chosen, slice) or (len(chosen) > 0 and not isinstance(chosen[0], str))


def _read(label: str, step: Any, names: list[str], columns: Mapping[str, Any]) -> Iterator[tuple[Feature, Place]]:
    """The features that one step of a ColumnTransformer makes, each at place 0."""
    kind = type(step).__name__
    while kind == "Pipeline" and len(step.steps) == 1:
        step = step.steps[0][1]
        kind = type(step).__name__
    number = [_feature(name, columns[name], False, False, None) for name in names] if _numeric(kind, step) else []
    ones, zeros = np.ones(len(names)), np.zeros(len(names))
    if kind == "StandardScaler":
        offset, unit = step.mean_ if step.with_mean else zeros, step.scale_ if step.with_std else ones
    elif kind == "RobustScaler":
        offset = step.center_ if step.with_centering else zeros
        unit = step.scale_ if step.with_scaling else ones
    elif kind == "MaxAbsScaler":
        offset, unit = zeros, step.scale_
    elif kind == "MinMaxScaler":  # z = x * scale_ + min_
        offset, unit = -step.min_ / step.scale_, 1 / step.scale_
    elif step == "passthrough" or (kind == "FunctionTransformer" and step.func is None):
        offset, unit = zeros, ones
    elif kind == "OneHotEncoder":
        if step.drop is not None or any(g is not None for g in getattr(step, "_infrequent_indices", None) or ()):
            raise ArgumentError(f"step {label!r}: OneHotEncoder must keep all categories (drop=None, none infrequent)")
        for name, categories in zip(names, step.categories_, strict=True):
            yield (
                Feature(name, "categorical", tuple(v.item() if hasattr(v, "item") else v for v in categories)),
                Place(0, len(categories), block=True),
            )
        return
    elif kind == "OrdinalEncoder":
        for name, categories in zip(names, step.categories_, strict=True):
            values = tuple(v.item() if hasattr(v, "item") else v for v in categories)
            yield Feature(name, "binary" if len(values) == 2 else "ordinal", values), Place(0)
        return
    else:
        raise ArgumentError(
            f"step {label!r} is a {kind}, which cannot be undone here; known are StandardScaler, MinMaxScaler, "
            "MaxAbsScaler, RobustScaler, OneHotEncoder, OrdinalEncoder and 'passthrough'"
        )
    for feature, o, u in zip(number, offset, unit, strict=True):
        yield feature, Place(0, 1, float(o), float(u) or 1.0)


def _numeric(kind: str, step: Any) -> bool:
    return kind.endswith("Scaler") or step == "passthrough" or kind == "FunctionTransformer"


def _feature(name: str, column: Any, categorical: bool, integer: bool, order: Sequence[Any] | None) -> Feature:
    """What a column looks like, and what is said of it."""
    values = np.asarray(column)
    own: Any = getattr(column, "dtype", None)
    if order is not None:
        return Feature(name, "ordinal", tuple(order))
    if values.dtype.kind in "mM":
        raise ArgumentError(f"column {name!r} holds dates or times; make numbers of them first, such as years")
    listed = tuple(own.categories.tolist()) if hasattr(own, "categories") else ()  # pandas' own
    if categorical or listed or values.dtype.kind in "OUSb":
        if any(v is None or v != v for v in values.tolist()):
            raise ArgumentError(f"column {name!r} has missing values; fill them first")
        found = listed or tuple(sorted(set(values.tolist()), key=lambda v: (str(type(v)), v)))
        several: Kind = "ordinal" if getattr(own, "ordered", False) else "categorical"
        return Feature(name, "binary" if len(found) == 2 else several, found)
    numbers = values.astype(float)
    if not np.isfinite(numbers).all():
        raise ArgumentError(f"column {name!r} has missing or infinite values; fill them first")
    span = (float(numbers.min()), float(numbers.max())) if len(numbers) else (-np.inf, np.inf)
    return Feature(name, "integer" if integer or values.dtype.kind in "iu" else "continuous", range=span)


def with_rules(features: Iterable[Feature], rules: Mapping[str, Any]) -> list[Feature]:
    """Features with what else is said of some, by name.

    Raises:
        ArgumentError: a rule, or a name in one, is unknown.
    """
    told = {f.name: {k: getattr(f, k) for k in f.__dataclass_fields__} for f in features}
    for rule, given in rules.items():
        if rule not in (*LISTS, *BY_NAME):
            raise ArgumentError(f"no rule is called {rule!r}; known are {', '.join((*LISTS, *BY_NAME))}")
        _known([given] if isinstance(given, str) else list(given), told, rule)
        for name in [given] if isinstance(given, str) else given:
            if rule == "immutable":
                told[name]["mutable"] = False
            elif rule in LISTS:
                told[name]["direction"] = rule.removesuffix("ing") + "e"
            else:
                told[name][BY_NAME[rule]] = given[name]
    return [Feature(**t) for t in told.values()]


def _known(named: Iterable[str], known: Mapping[str, Any], what: str) -> None:
    for name in named:
        if name not in known:
            raise ArgumentError(f"{what} names {name!r}, which is no feature; known are {', '.join(known)}")

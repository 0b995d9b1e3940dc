"""The words that dice-ml has for a question, told in those that we have."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError
from .schema import FeatureSchema


def permitted(schema: FeatureSchema, ranges: Mapping[str, Any]) -> FeatureSchema:
    """The schema, narrowed: (lowest, highest) of numbers, lists of those allowed for categories.

    >>> from robustx.counterfactual import Feature
    >>> schema = FeatureSchema(
    ...     [Feature("age", "integer", range=(18, 99)), Feature("job", "categorical", ("a", "b", "c"))]
    ... )
    >>> narrow = permitted(schema, {"age": (30, 40), "job": ["a", "b"]})
    >>> narrow["age"].range, narrow["job"].transitions["c"]
    ((30, 40), ('a', 'b'))
    """
    for name, allowed in ranges.items():
        feature = schema[name]
        if feature.listed:
            schema = schema.with_(name, transitions=dict.fromkeys(feature.categories, tuple(allowed)))
        else:
            low, high = allowed
            schema = schema.with_(name, range=(low, high))
    return schema


def box_of(bounds: Sequence[Any], ranges: Mapping[int | str, Any], x: Tensor, names: Sequence[str] | None) -> Any:
    """Bounds of the columns of a table [B, D], narrowed for some of them, by number or name; what x has is kept."""
    if x.ndim != 2 or (names is not None and len(names) != x.shape[1]):
        raise ArgumentError("permitted_range is for the columns of a table [B, D]; give bounds as tensors instead")
    low, high = (torch.as_tensor(end).to(x).expand(x.shape).clone() for end in bounds)
    for name, (least, most) in ranges.items():
        column = (
            name if isinstance(name, int) else -1 if names is None or name not in names else list(names).index(name)
        )
        if not 0 <= column < x.shape[1]:
            raise ArgumentError(f"permitted_range names {name!r}, which is no column")
        low[:, column] = torch.minimum(low[:, column].clamp(min=least), x[:, column])
        high[:, column] = torch.maximum(high[:, column].clamp(max=most), x[:, column])
    return low, high


def fixed(vary: Sequence[int | str], known: Sequence[str] | None, x: Any, mask: Any) -> list[int | str]:
    """The features that are not to vary."""
    told = vary if known is None else [known[v] if isinstance(v, int) else v for v in vary]
    every: list[int | str]
    if known is not None:
        every = list(known)
    elif mask is not None:
        every = torch.as_tensor(mask).unique().tolist()
    else:
        every = list(range(prod(x.shape[1:])))
    strangers = [v for v in told if v not in every]
    if strangers:
        raise ArgumentError(f"features_to_vary names {strangers[0]!r}, which is no feature")
    return [e for e in every if e not in told]

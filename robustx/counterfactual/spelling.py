"""The words that dice-ml has for a question, told in those that we have."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError
from ..engine.probe import Door
from ..perturb.features import Partition, from_masks
from .naming import names_of
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


def fixed(
    vary: Sequence[int | str], known: Sequence[str] | None, x: Any, mask: Any, what: str = "features_to_vary"
) -> list[int]:
    """The features that are not to vary, by id; those that are, by id or name.

    >>> fixed([3], None, torch.zeros(1, 3), torch.tensor([7, 7, 3]))
    [7]
    """
    if known is not None and mask is None:
        features = Partition(torch.arange(len(known)))  # also of a table that is not encoded yet
    else:
        door = Door.open(x)
        features = from_masks(mask, door.inputs, door.names)
    ids = features.known.tolist()
    by_name = dict(zip(names_of(features, known), ids, strict=True))
    told = [by_name.get(v, v) if isinstance(v, str) else v for v in vary]
    strangers = [v for v in told if v not in ids]
    if strangers:
        raise ArgumentError(f"{what} names {strangers[0]!r}, which is no feature")
    return [i for i in ids if i not in told]

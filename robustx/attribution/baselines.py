"""Baselines that are drawn."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

Name = str | tuple[str, ...]


class ProductBaselines:
    """Draws a baseline for each feature by itself, from those listed for it, by Python's ``random``.

    Args:
        baseline_values: for each feature the list of its baselines; or a dict from its name. A key that is a tuple of
            names stands for features whose baselines, then tuples too, are drawn together.

    Raises:
        TypeError, ValueError: a feature's baselines are no list, or an empty one, or do not fit the names.

    >>> people = ProductBaselines({("city", "state"): [("Boston", "MA"), ("Reno", "NV")], "age": [20, 30, 40]})
    >>> drawn = people()
    >>> list(drawn), (drawn["city"] == "Reno") == (drawn["state"] == "NV")
    (['city', 'state', 'age'], True)
    """

    def __init__(self, baseline_values: Sequence[Sequence[Any]] | Mapping[Name, Sequence[Any]]) -> None:
        self._named = isinstance(baseline_values, Mapping)
        self._values: dict[Any, Sequence[Any]] = dict(
            baseline_values if isinstance(baseline_values, Mapping) else enumerate(baseline_values)
        )
        for key, values in self._values.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"baselines of {key!r} must be a list, got {values!r}; put a single one in brackets")
            if not values:
                raise ValueError(f"baselines of {key!r} are an empty list; give one at least to draw")
            for v in values if isinstance(key, tuple) else ():
                if not isinstance(v, tuple | list) or len(v) != len(key):
                    raise ValueError(f"baselines of {key!r} must be tuples of {len(key)}, one for each name, got {v!r}")

    def sample(self) -> list[Any] | dict[str, Any]:
        """A baseline for each feature: a list, or a dict from each name."""
        sample: dict[Any, Any] = {}
        for key, values in self._values.items():
            drawn = random.choice(values)
            sample.update(zip(key, drawn, strict=True) if isinstance(key, tuple) else [(key, drawn)])
        return sample if self._named else list(sample.values())

    __call__ = sample

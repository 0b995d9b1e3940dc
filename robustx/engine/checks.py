"""Checks of single arguments."""

from operator import index
from typing import Any


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, also from numpy.

    Raises:
        ValueError: it is none.
    """
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number

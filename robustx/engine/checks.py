"""Checks of single arguments."""

from operator import index
from typing import Any


class ArgumentError(ValueError, AssertionError):
    """An argument does not fit. Also an AssertionError, which is what Captum raises."""


class ArgumentTypeError(TypeError, AssertionError):
    """An argument is of another type than is expected. Also an AssertionError, which is what Captum raises."""


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, also from numpy.

    Raises:
        ArgumentError: it is none.
    """
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def at_least(name: str, value: Any, least: float) -> None:
    """Raises ArgumentError unless ``value`` is a number from ``least`` on."""
    if not value >= least:
        raise ArgumentError(f"{name} must be at least {least:g}, got {value!r}")

"""Checks of single arguments."""

from importlib import import_module
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


def optional(module: str, extra: str) -> Any:
    """A module that robustx can do without, imported when it is needed.

    Raises:
        ImportError: it is not installed; says how to mend that.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module.partition(".")[0]:
            raise
        raise ImportError(f"{e.name} is needed here and not installed; run: pip install 'robustx[{extra}]'") from None

"""Changes as people read them."""

from math import floor, isfinite, log10
from typing import Any, NamedTuple

PROVED = {
    "optimal": "nothing that costs less can do it",
    "smallest": "no smaller set of features can do it",
    "irreducible": "taking back any one of these changes loses it; that fewer cannot do it is the word of a search",
    "nothing": "nothing is proved",
}


class Step(NamedTuple):
    """What becomes of one feature, and what that does to the margin of the goal.

    >>> Step("income", 31000.0, 40000.0, "EUR", 1.25).words
    'income from 31,000 to 40,000 EUR'
    """

    feature: str
    before: Any
    after: Any
    unit: str
    contribution: float

    @property
    def words(self) -> str:
        """Feature, old value, new value and unit."""
        before, after = self.values
        return f"{self.feature} from {before} to {after} {self.unit}".rstrip()

    @property
    def arrow(self) -> str:
        """Old value, new value and unit."""
        return f"{' → '.join(self.values)} {self.unit}".rstrip()

    @property
    def values(self) -> tuple[str, str]:
        """The old and the new value, with as many digits as it takes to tell them apart."""
        for digits in range(4, 18):
            told = number(self.before, digits), number(self.after, digits)
            if told[0] != told[1]:
                break
        return told


def number(value: Any, digits: int = 4) -> str:
    """A value to so many significant digits, whole parts in full; what is no number as it is.

    >>> number(31000.0), number(123456.7), number(0.00123456), number("full")
    ('31,000', '123,457', '0.001235', 'full')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return str(value)
    places = digits - 1 - floor(log10(abs(value))) if value else 0
    if places > digits + 4:
        return f"{value:.{digits - 1}e}"
    told = f"{value:,.{max(places, 0)}f}"
    return told.rstrip("0").rstrip(".") if "." in told else told

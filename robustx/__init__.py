"""robustx: how little must change before the model changes its mind, and why?

Rooms: :mod:`robustx.attacks`, :mod:`robustx.attribution`, :mod:`robustx.counterfactual`,
:mod:`robustx.evaluation` and :mod:`robustx.zoo`, over one engine (:mod:`robustx.engine`) and one
perturbation pipeline (:mod:`robustx.perturb`). A room is loaded when it is first used.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = ("attacks", "attribution", "counterfactual", "engine", "evaluation", "perturb", "plot", "report", "zoo")


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'robustx' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])

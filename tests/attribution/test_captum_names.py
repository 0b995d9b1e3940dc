"""Every public name of captum is here, and is called as there: its arguments, in its order, with its defaults."""

import inspect
from importlib import import_module

import pytest

from robustx import attribution

ROOMS = ("attr", "concept", "influence", "metrics", "module")
NAMES = [(room, name) for room in ROOMS for name in import_module(f"captum.{room}").__all__]

INSIDE = {  # methods of captum's classes that only its own code calls
    "satisfies_attribute_criteria",
    "kernel_shap_perturb_generator",
    "kernel_shap_similarity_kernel",
    "multiply_gradient_acts",
}
OTHER = {  # arguments that are others, each with its reason
    ("TracInCPBase.influence", "unpack_inputs"),  # captum's own subclasses do not take it
}
DEFAULTS = {  # what is something else if nothing is said, each with its reason
    "perturbations_per_eval": None,  # batches fill the memory budget
    "perturbations_per_pass": 64,  # fewer traversals of the data
    "forward_in_tokens": False,  # one pass tells all tokens
    "save_path": None,  # in memory
}


def pairs(name, theirs, ours):
    """The functions of both that are called alike: itself, or its constructor and its methods."""
    if not inspect.isclass(theirs):
        return [(name, theirs, ours)] if inspect.isfunction(theirs) else []
    methods = [n for n, f in inspect.getmembers(theirs, inspect.isfunction) if n == "__init__" or n[0] != "_"]
    assert not [n for n in methods if not hasattr(ours, n) and n not in INSIDE]
    return [(f"{name}.{n}", getattr(theirs, n), getattr(ours, n)) for n in methods if hasattr(ours, n)]


def takes(function):
    """The arguments by name, and those that also go by position; None in place of these if any do."""
    found = inspect.signature(function).parameters.values()
    named = {p.name: p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    free = any(p.kind is p.VAR_POSITIONAL for p in found)
    return named, None if free else [p.name for p in named.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("room, name", NAMES, ids=[f"{room}.{name}" for room, name in NAMES])
def test_is_here_and_is_called_alike(room, name):
    theirs, ours = getattr(import_module(f"captum.{room}"), name), getattr(attribution, name)
    if inspect.ismodule(theirs):
        own = {n for n, f in vars(theirs).items() if getattr(f, "__module__", "") == theirs.__name__ and n[0] != "_"}
        assert len(own) > 5 and own <= set(ours.__all__)
    for what, old, new in pairs(name, theirs, ours):
        (asked, order), (told, places) = takes(old), takes(new)
        order = [n for n in order or () if (what, n) not in OTHER]
        if places is None:  # it hands everything on
            continue
        assert places[: len(order)] == order, what
        assert not [n for n, p in told.items() if n not in asked and p.default is p.empty], what
        for n, p in asked.items():
            if (what, n) in OTHER or p.default is p.empty:
                continue
            function = inspect.isroutine(p.default)  # captum's own, and ours of the same task
            same = told[n].default in (p.default, DEFAULTS.get(n, p.default))
            assert same or (function and callable(told[n].default)), (what, n)


def test_all_rooms_are_read():
    assert len(NAMES) > 80

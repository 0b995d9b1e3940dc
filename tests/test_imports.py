"""Imports are cheap: what a user did not ask for is not loaded."""

import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import pytest

HERE = Path(__file__).parents[1]


@cache
def loaded(*command: str) -> frozenset[str]:
    """The top-level packages that a fresh interpreter imports, without the standard library."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=HERE, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line not in lines)
    tried = {line.rpartition("|")[2].strip().split(".")[0] for line in lines} - sys.stdlib_module_names
    return frozenset(package for package in tried if find_spec(package))  # some are tried and are not there


@pytest.mark.parametrize("module", ["robustx", "robustx.attacks", "robustx.attribution"])
def test_import_loads_torch_and_numpy_only(module):
    # torch brings packages of its own, tqdm among them: what counts is what comes on top of it
    more = loaded("-c", f"import {module}") - loaded("-c", "import numpy, torch")
    assert more == {"robustx"}


def test_help_loads_neither_torch_nor_numpy():
    packages = loaded("-m", "robustx.cli", "--help")
    assert "robustx" in packages
    assert not packages & {"torch", "numpy"}


@pytest.mark.parametrize("room", ["attacks", "attribution", "counterfactual", "engine", "evaluation", "perturb", "zoo"])
def test_no_name_of_a_room_hides_one_of_its_modules(room):
    package = import_module(f"robustx.{room}")
    for module in iter_modules(package.__path__):
        assert import_module(f"robustx.{room}.{module.name}") is getattr(package, module.name)

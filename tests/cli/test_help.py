"""Help teaches, is instant, and tells the truth."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustx import __version__, attacks
from robustx.cli import explain
from robustx.cli.parser import DISTANCES, FILES, TABLES, parse
from robustx.counterfactual import explainer
from robustx.evaluation import export

COMMANDS = (
    "evaluate",
    "resume",
    "attack",
    "counterfactual",
    "explain",
    "report",
    "compare",
    "verify",
    "merge",
    "export",
    "ls",
    "doctor",
)
HERE = Path(__file__).parents[2]


def python(*argv):
    return subprocess.run([sys.executable, *argv], cwd=HERE, capture_output=True, text=True, timeout=120)


def examples(text):
    """The commands that a help text shows, without remarks (behind three blanks) and pipes to other programs."""
    return [line.split() for line in re.findall(r"^  robustx (.+?)(?:   .*| \|.*)?$", text, re.MULTILINE)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_teaches(command, run):
    said = run(command, "--help")
    assert said.code == 0 and not said.err
    assert said.out.startswith(f"usage: robustx {command}")
    assert "examples:" in said.out and "exit codes:" in said.out
    assert max(map(len, said.out.splitlines())) <= 120
    shown = examples(said.out)
    assert shown and all(parse(e).command == command for e in shown if "'" not in " ".join(e))


def test_help_names_all_commands(run):
    said = run("--help")
    assert said.code == 0
    assert all(re.search(rf"^  {c} ", said.out, re.MULTILINE) for c in COMMANDS)
    assert [e[0] for e in examples(said.out)] == ["evaluate", "attack", "counterfactual", "explain"]


def test_help_names_all_attacks_methods_and_strategies(run):
    assert all(name in run("attack", "--help").out for name in attacks.ATTACKS)
    assert all(name in run("explain", "--help").out for name in explain.METHODS)
    assert all(f" {name}" in run("counterfactual", "--help").out for name in explainer.STRATEGIES)
    assert tuple(explainer.DISTANCES) == DISTANCES
    assert (tuple(export.TABLES), tuple(export.FORMATS)) == (TABLES, FILES)


@pytest.mark.parametrize("argv", [("--help",), ("--version",), *((c, "--help") for c in COMMANDS)], ids=" ".join)
def test_help_loads_neither_torch_nor_numpy(argv):
    done = python("-X", "importtime", "-m", "robustx", *argv)
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "robustx" in loaded and not loaded & {"torch", "numpy", "matplotlib", "msgspec"}


@pytest.mark.parametrize("module", ["robustx", "robustx.cli"])
def test_it_runs_as_a_module(module):
    assert python("-m", module, "--version").stdout == f"robustx {__version__}\n"


def test_a_closed_pipe_is_no_error():
    pipe = f"{sys.executable} -m robustx explain digits --top 64 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"{pipe}; echo ${{PIPESTATUS[0]}}"], cwd=HERE, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("\n0\n") and not done.stderr

"""The page for other libraries' users names what there is, there and here."""

import inspect
import re
from pathlib import Path

import pytest
from peers import adv_lib, foolbox, torchattacks

from robustx import attacks

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
PEERS = {"torchattacks": torchattacks, "foolbox": foolbox.attacks, "adv-lib": adv_lib.attacks}


def table(section):
    """Rows of a section's table: (their names, ours)."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]


@pytest.mark.parametrize("library", PEERS)
def test_their_names_are_theirs(library):
    named = [name for theirs, _ in table(library) for name in theirs]
    assert len(named) == len(set(named)) and all(hasattr(PEERS[library], name) for name in named)


def test_nothing_of_torchattacks_is_left_out():
    classes = {name for name, value in vars(torchattacks).items() if inspect.isclass(value)}
    assert classes == {name for theirs, _ in table("torchattacks") for name in theirs}


@pytest.mark.parametrize("library", [*PEERS, "Adversarial Robustness Toolbox"])
def test_our_names_are_ours(library):
    ours = [name for _, row in table(library) for name in row]
    assert len(ours) > 5
    for name in ours:
        known = name in attacks.names() or name.strip('"') in ("L0", "L1", "L2", "Linf") or name.endswith("=")
        assert known or hasattr(attacks, name.rpartition(".")[2]) or name == "robustx.evaluation", name

"""The pages about attacks name all there is, and nothing else."""

import re
from pathlib import Path

import pytest

from robustx import attacks

HERE = Path(__file__).parents[2]
PAGES = {page.stem: page.read_text() for page in (HERE / "docs").glob("attacks*.md")}
TEXT = "\n".join(PAGES.values())
WITHIN = {"__init__", "adam"}  # what is told with other modules


def test_every_module_is_documented():
    modules = {path.stem for path in Path(attacks.__file__).parent.glob("*.py")} - WITHIN
    assert {m.rpartition(".")[2] for m in re.findall(r"automodule:: robustx\.attacks\.(\w+)", TEXT)} == modules


@pytest.mark.parametrize("name", attacks.names())
def test_every_attack_is_told_when_to_take_it(name):
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in row for row in rows) or f"`{name}`" in PAGES["attacks_auto"]


def test_every_page_has_a_picture_and_is_reached():
    for page, text in PAGES.items():
        if page != "attacks":
            assert re.search(r"!\[[^\]]+\]\(pictures/", text) and f"\n{page}\n" in PAGES["attacks"]


def test_the_readme_names_classes_that_exist():
    row = next(line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("| `robustx.attacks`"))
    named = re.findall(r"`(\w+)`", row.split("|")[2])
    assert len(named) > 20 and all(hasattr(attacks, name) for name in named)

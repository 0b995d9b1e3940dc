"""README.md is true: its Python runs and prints what stands below it, its commands and its files exist."""

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from robustx.cli.parser import parse

HERE = Path(__file__).parents[1]
PAGES = [HERE / "README.md", HERE / "docs" / "cli.md", HERE / "docs" / "quickstart.md"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The robustx commands that a page shows, without the environment's folder and comments."""
    lines = [line for kind, text in blocks(page) if kind in ("console", "bash") for line in text.splitlines()]
    found = [re.sub(r"^\$ (\S*/)?(?=robustx )", "", line) for line in lines]
    return [line for line in found if line.startswith("robustx ")]


def test_python_runs_in_order_and_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names, shown = blocks(HERE / "README.md"), {"__name__": "readme"}, 0
    for i, (kind, text) in enumerate(page):
        if kind != "python":
            continue
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(text, f"README.md, block {i}", "exec"), names)
        if out.getvalue():
            assert page[i + 1] == ("text", out.getvalue())
            shown += 1
    assert shown >= 5


@pytest.mark.parametrize("line", sorted({c for page in PAGES for c in commands(page)}))
def test_every_command_shown_is_one(line):
    words = shlex.split(line, comments=True)[1:]
    if words in (["--version"], ["--help"]):
        return
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code == 0
    elif "COMMAND" not in words:
        parse(words)


def test_commands_are_found():
    assert "robustx evaluate digits" in commands(HERE / "README.md")


def test_make_targets_shown_exist():
    makefile = (HERE / "Makefile").read_text()
    targets = re.findall(r"`?make (\w+)", (HERE / "README.md").read_text())
    assert {"demo", "test", "docs"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets if target != "sure")


@pytest.mark.parametrize("page", [HERE / "README.md", HERE / "docs" / "cli.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)\)", page.read_text())
    assert links
    assert not [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]


def test_what_is_named_exists():
    import robustx

    for line in (HERE / "README.md").read_text().split("## What is in it now")[1].split("##")[0].splitlines():
        room, _, holds = line.strip("| ").partition("|")
        if room.strip().startswith("`robustx."):
            module = getattr(robustx, room.strip("` ").split(".")[1])
            for name in re.findall(r"`([A-Z]\w+)`", holds):
                assert hasattr(module, name), f"{room} has no {name}"

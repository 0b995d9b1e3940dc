"""The examples on the pages run: every fenced python block that shows a prompt, page by page."""

import doctest
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PAGES = [page for page in [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))] if page.exists()]


def examples(text: str) -> str:
    """The python blocks alone, each line at its place."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            inside = not inside and fence[1] == "python"
        kept.append(line if inside and not fence else "")
    return "\n".join(kept) + "\n"


@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in examples(p.read_text())], ids=lambda p: p.name)
def test_examples_on_a_page_run(page):
    test = doctest.DocTestParser().get_doctest(examples(page.read_text()), {}, page.name, str(page), 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def test_only_python_blocks_count():
    page = "a\n```python\n>>> 1\n1\n```\nb\n```console\n$ ls\n```\n```python\n>>> 2\n2\n```\n"
    assert examples(page) == "\n\n>>> 1\n1\n\n\n\n\n\n\n>>> 2\n2\n\n"

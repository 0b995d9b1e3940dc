"""Sphinx: the pages are MyST, the API comes from the docstrings, nothing is fetched."""

import re
from typing import Any

import robustx

project = "robustx"
author = "The robustx authors"
copyright = f"2026, {author}"
version = release = robustx.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"robustx {release}"
html_show_sourcelink = False
pygments_style = "friendly"

# literals, links, emphasis that opens and closes, escaped stars; and, last, a mere star
STARS = re.compile(r"``.+?``|`[^`]+`|(?<![\w*])(\*{1,2})(?=\S)[^*]+(?<=\S)\1(?![\w*])|\\?\*")


def plain_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """[N, *shape] and **options in a docstring are Python, not the start of an emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = STARS.sub(lambda m: r"\*" if m[0] == "*" else m[0], line)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain_stars)

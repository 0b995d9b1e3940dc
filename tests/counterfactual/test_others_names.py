"""The page for users of other libraries names what there is here."""

import re
from inspect import signature
from pathlib import Path

import pytest

import robustx
from robustx import attribution, counterfactual, engine
from robustx.counterfactual import STRATEGIES, CounterfactualExplainer, CounterfactualResult, FeatureSchema, tables

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
ARGUMENTS = {
    *signature(CounterfactualExplainer).parameters,
    *signature(CounterfactualExplainer.generate).parameters,
    *signature(FeatureSchema.from_dataframe).parameters,
    *tables.BY_NAME,
}
FIELDS = {*CounterfactualResult.__dataclass_fields__, *dir(CounterfactualResult), *dir(CounterfactualExplainer)}


def ours(section):
    """What is named as ours in a section's table, and in its remarks."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [name for row in rows for cell in row for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("library", ["DiCE", "alibi", "CFNOW", "NICE"])
def test_our_names_are_ours(library):
    names = ours(library)
    assert len(names) > 5
    for name in names:
        if name.endswith("="):
            assert name[:-1] in ARGUMENTS, name
        elif name.startswith('"'):
            assert name.strip('"') in STRATEGIES, name
        else:
            room = {"robustx.engine": engine, "robustx.attribution": attribution}.get(name.rpartition(".")[0], robustx)
            last = name.rpartition(".")[2]
            assert last in FIELDS or hasattr(counterfactual, last) or hasattr(room, last), name

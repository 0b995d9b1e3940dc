"""The tables of docs/attribution.md and docs/captum.md are true: what a method costs, and which name is where."""

import re
from importlib import import_module
from inspect import isabstract, isclass, signature
from pathlib import Path

import captum.attr
import pytest
import torch
from torch import nn

from robustx import attribution

DOCS = Path(__file__).parents[1] / "docs"


def cells(page, heading):
    """The cells of a section's table rows, without their ends, from the second row on."""
    section = (DOCS / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("-")]


def names(cell):
    return re.findall(r"`([\w.]+)`", cell)


# --- what a method costs ----------------------------------------------------------------------------------

COSTS = [(n, row[2], row[3]) for row in cells("attribution.md", "Which method")[1:] for n in names(row[0])]
STEPS, SAMPLES = 6, 5


class Counting(nn.Module):
    """[B, 1, 4, 4] -> [B, 3]; counts the rows that pass it each way."""

    def __init__(self, tokens):
        super().__init__()
        torch.manual_seed(0)
        self.layer = (
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True) if tokens else nn.Conv2d(1, 4, 1)
        )
        self.head = nn.Linear(16 if tokens else 64, 3)
        self.tokens, self.forwards, self.backwards = tokens, 0, 0
        self.eval()

    def forward(self, x):
        self.forwards += len(x)
        here = self.layer(x.squeeze(1) if self.tokens else x)
        out = self.head(torch.relu(here).flatten(1))
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, g):
        self.backwards += len(g)


@pytest.mark.parametrize("name, forward, backward", COSTS)
def test_a_method_costs_what_the_table_says(name, forward, backward):
    model = Counting(tokens=name in ("AttentionRollout", "TransformerRelevance"))
    layer = (model.layer,) if "Cam" in name else ()
    asked = attribution.NoiseTunnel(attribution.Saliency(model)) if name == "NoiseTunnel" else None
    method = asked or getattr(attribution, name)(model, *layer)
    parameters = signature(method.attribute).parameters
    baselines = torch.rand(SAMPLES, 1, 4, 4) if name in ("DeepLiftShap", "ExpectedGradients", "GradientShap") else 0.5
    told = {"target": 1, "baselines": baselines, "n_steps": STEPS, "n_samples": SAMPLES, "nt_samples": SAMPLES}
    told["sliding_window_shapes"] = (1, 2, 2)
    told = {k: v for k, v in told.items() if k in parameters}
    if "n_samples" in told and parameters["n_samples"].default is None:
        del told["n_samples"]  # the table says what all of them cost
    examples = 2 if name == "FeaturePermutation" else 1
    method.attribute(torch.rand(examples, 1, 4, 4), **told, **({"target": 1} if name == "NoiseTunnel" else {}))
    for said, counted in ((forward, model.forwards), (backward, model.backwards)):
        assert eval(said.removesuffix(" times"), {"n": STEPS, "S": SAMPLES, "F": 16, "W": 9}) * examples == counted


def test_the_table_of_costs_is_read():
    assert len(COSTS) > 15


def test_every_module_has_its_section():
    told = re.findall(r"automodule:: ([\w.]+)", (DOCS / "attribution.md").read_text())
    room = Path(attribution.__file__).parent
    assert {f"robustx.attribution.{p.stem}" for p in room.glob("*.py") if p.stem != "__init__"} <= set(told)


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.png")), ids=lambda p: p.stem)
def test_pictures_are_small_and_shown(picture):
    assert picture.stat().st_size < 100_000
    assert any(f"pictures/{picture.name}" in page.read_text() for page in DOCS.glob("*.md"))


# --- Captum's names ---------------------------------------------------------------------------------------

LINES = cells("captum.md", "Line by line")
FAMILIES = [[names(cell) for cell in row[1:]] for row in LINES if len(row) == 3][1:]
MOVED = [pair for row in LINES if len(row) == 2 for pair in zip(*map(names, row), strict=True)]


def found(path):
    room, _, name = path.rpartition(".")
    return getattr(import_module(room), name)


def test_families_name_what_both_have():
    theirs = [name for both, _ in FAMILIES for name in both]
    assert len(theirs) > 40
    assert not [name for name in theirs if not hasattr(captum.attr, name) or not hasattr(attribution, name)]


def test_what_is_here_also_is_not_in_captum():
    ours = [name for _, more in FAMILIES for name in more]
    assert not [name for name in ours if name in captum.attr.__all__ or not hasattr(attribution, name)]


def test_every_class_has_its_place():
    told = {name for row in FAMILIES for cell in row for name in cell} | {path.rpartition(".")[2] for _, path in MOVED}
    classes = {n for n in attribution.__all__ if isclass(c := getattr(attribution, n)) and not isabstract(c)}
    assert not classes - told
    assert not {n for n in captum.attr.__all__ if hasattr(attribution, n)} - told


@pytest.mark.parametrize("theirs, ours", MOVED)
def test_what_moved_is_where_it_is_said_to_be(theirs, ours):
    assert callable(found(theirs)) and callable(found(ours))

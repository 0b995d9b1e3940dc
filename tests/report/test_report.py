"""The report: one file that asks nothing of a network, shows what is stored, and trusts no name."""

import json
import re
import shutil
import sqlite3
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from report_cases import ATTACKS, EVIL

from robustx import report, zoo
from robustx.evaluation import AttackSpec, Row, Run, Spec, evaluate
from robustx.evaluation.corruptions import Baseline, summarise_corruptions
from robustx.evaluation.statistics import cost, per_class, plain
from robustx.report import pictures, words

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What stands in a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        if tag in ("td", "th", "li"):
            self.text += " "

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", self.text)


@cache
def html(run):
    """The page of a run as it is, made once."""
    return report.render(run)


def test_a_page_is_whole_and_needs_nothing(run):
    text = html(run)
    page = Page(text)
    assert text.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    addresses = re.findall(r"https?://[^\s\"'<>]+|//[a-z]+\.[a-z]+", re.sub(r'xmlns(:xlink)?="[^"]+"', "", text))
    assert addresses == []
    for _, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert (attrs.get(key) or "#").startswith(("#", "data:image/png;base64,"))
        assert not any(k.startswith("on") for k in attrs)
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in page.tags}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert any(a.get("name") == "viewport" for a in page.all("meta"))
    assert "prefers-color-scheme: dark" in text


def test_pictures_have_words_and_ids_are_unique(run):
    page = Page(html(run))
    assert all(a.get("aria-label") for a in page.all("svg")) and all(a.get("role") == "img" for a in page.all("svg"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [a["href"][1:] for a in page.all("a")]
    assert set(wanted) <= set(ids)
    used = re.findall(r"url\(#([^)]+)\)", str(page.tags)) + [
        v[1:] for _, a in page.tags for k, v in a.items() if k == "xlink:href" and v.startswith("#")
    ]
    assert used and set(used) <= set(ids)


def test_names_are_text_not_markup(strange):
    text = html(strange)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert EVIL in Page(text).text and f"{EVIL}&" in Page(text).text


def test_the_numbers_are_those_of_the_run(digits):
    words_ = Page(html(digits)).words
    s = digits.summary()
    for m in s["models"]:
        for share in (m["clean"], *m["robust"]):
            assert words.percent(share["value"]) in words_ and words.percent(share["low"]) in words_
        assert words.number(m["distances"]["quartiles"][1]) in words_
    for a in digits.spec.attacks:
        assert words.attack_words(a) in words_
    assert digits.about["spec_sha256"][:16] in words_ and digits.fingerprint[:16] in words_


def test_the_gallery_shows_every_explained_sample_for_every_model(digits):
    page = Page(html(digits))
    notes = digits.explanation("digits")[0]
    assert len(page.all("article")) == len(notes) == 4
    assert all(n["why"] in page.words for n in notes)
    labels = [a["aria-label"] for a in page.all("svg")]
    assert sum(a.startswith("Attribution of the sample") for a in labels) == 8
    assert sum(a.startswith("The counterfactual, read as") for a in labels) == 8
    assert len(page.all("image")) >= 8 * 3


def test_a_table_speaks_in_its_units(table):
    page = Page(html(table))
    data = zoo.data("breast-cancer", limit=16)
    notes, t = table.explanation("m")
    for k in range(len(notes)):
        for f in t["changed"][k].nonzero().flatten().tolist():
            assert data.columns[f].name in page.words
            value = data.to_units(t["counterfactual"][k])[f]
            assert words.number(float(value), 4) in page.words
    assert "length units" in page.words and "of its range" in page.words


def test_half_precision_is_shown(tmp_path):
    x = torch.rand(6, 1, 4, 4).bfloat16()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).bfloat16()
    spec = Spec(models=("half",), data="data", eps=(0.4,), attacks=ATTACKS, explain=2)
    evaluate({"half": net}, (x, net(x).argmax(1)), spec, tmp_path)
    assert len(Page(report.write(tmp_path).read_text()).all("article")) == 2


def test_a_model_that_knows_nothing_has_a_page(tmp_path):
    spec = Spec(models=("nan",), data="data", eps=(0.4,), attacks=ATTACKS, explain=2)
    evaluate(
        {"nan": lambda x: x.sum(1, keepdim=True) * torch.full((3,), torch.nan)},
        (torch.rand(4, 5), [0, 1, 2, 0]),
        spec,
        tmp_path,
    )
    words_ = Page(report.write(tmp_path).read_text()).words
    assert "gave NaN or infinity for 4 of 4 rows" in words_ and "No adversarial example was found." in words_


def test_flagged_rows_are_said(strange):
    words_ = Page(html(strange)).words
    flagged = int(strange.outcomes[0].flagged.sum())
    assert flagged and f"gave NaN or infinity for {flagged} of 9 samples" in words_
    assert "No search for the smallest change was made" in words_


def test_an_unfinished_run_says_so(digits, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(digits.folder, folder)
    (results,) = folder.glob("results-*.sqlite")
    with sqlite3.connect(results) as db:
        db.execute("DELETE FROM block WHERE block = 1 OR attack = 'explanation'")
    db.close()
    page = Page(report.write(folder).read_text())
    assert "Unfinished. 8 of 16 images went through everything so far" in page.words
    assert not page.all("article")
    with sqlite3.connect(results) as db:
        db.execute("DELETE FROM block")
    db.close()
    with pytest.raises(ValueError, match="no block of the run in .* is finished yet"):
        report.write(folder)


def test_warnings_of_attacks_are_said(tmp_path):
    def rounding(x):
        return torch.stack([(x.sum(1) * 4).round() + 0 * x.sum(1), 2 + 0 * x.sum(1)], 1)

    x = torch.rand(8, 3)
    data = (x, rounding(x).argmax(1))
    spec = Spec(models=("a", "b"), data="data", eps=(0.3,), attacks=[AttackSpec("fgsm")], explain=1)
    run = evaluate({"a": rounding, "b": torch.nn.Linear(3, 2)}, data, spec, tmp_path)
    words_ = Page(report.write(tmp_path).read_text()).words
    assert "a INVALID" in words_ and "b INVALID" not in words_ and "zero-gradient, invalid" in words_
    assert "Try next: give the function that rounds another one's gradient with BPDA" in words_
    assert len(run.summary()["models"][0]["warnings"]) == 1 and "**INVALID**" in report.render(run, "md")


def test_where_nothing_was_checked_warnings_of_attacks_stand_in(digits, more):
    run = more(digits, soundness=None, warnings=["ZeroGradientWarning: <1 of 16>", "ZeroGradientWarning: <2 of 16>"])
    words_ = Page(report.render(run)).words
    assert "digits WEAK" in words_ and "a stronger attack may well lower its numbers" in words_
    assert words_.count("ZeroGradientWarning") == 1


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_the_same_run_gives_the_same_report(digits, form):
    assert report.render(Run(digits.folder), form) == (html(digits) if form == "html" else report.render(digits, form))


@pytest.fixture
def more(monkeypatch):
    """A run whose summary says more of its first model."""

    def more(run, **told):
        summary = run.summary()
        summary["models"][0] |= told
        monkeypatch.setattr(run, "summary", lambda: summary)
        return run

    return more


def test_the_verdict_comes_first_with_its_reasons_and_what_to_try(digits, more):
    flag = {"name": "zero-backward", "severity": "invalid", "reason": "<Gradients> vanish.", "next": "Try Square."}
    run = more(digits, soundness={"verdict": "INVALID", "flags": [flag], "measured": {"zero": 0.75}, "samples": 8})
    page = Page(report.render(run)).words
    for words_ in (page, report.render(run, "md").replace("&lt;", "<").replace("&gt;", ">")):
        said = [words_.index(s) for s in ("INVALID", "should not be quoted", "<Gradients> vanish.", "Try Square.")]
        assert said == sorted(said) and said[-1] < words_.index("Accuracy, clean and under attack")
    assert "digits is the more robust" not in page and "on 8 images" in page and "zero 0.75" in page


def test_what_is_proved_lies_below_what_was_not_fooled(table, more):
    shares = [{"eps": e, "value": v, "low": v - 0.1, "high": v + 0.1} for e, v in ((0.0, 0.9), (0.05, 0.456))]
    curve = {"eps": [0.0, 0.04, 0.06], "value": [0.9, 0.456, 0.0]}
    told = {"label": "crown", "method": "crown", "accuracy": shares, "median": 0.05, "curve": curve, "notes": []}
    run = more(table, certified=[told])
    page = Page(report.render(run))
    assert "45.6% 35.6% – 55.6%" in page.words and "The truth lies between the two." in page.words
    (curve,) = [a["aria-label"] for a in page.all("svg") if a["aria-label"].startswith("Accuracy against budget")]
    assert "m, proved by crown: 90% at 0, 46% at 0.05" in curve
    rows = re.findall(r"^\| (\S+).*\| (\S+)[^|]*\|$", report.render(run, "md"), re.MULTILINE)
    assert rows[1:4] == [("none", "90.0%"), ("0.05", "45.6%"), ("0.1", "–")]


def test_the_weakest_class_is_named_and_of_many_the_weakest_are_shown(table, more):
    (o,), eps = table.outcomes, table.spec.eps
    many = replace(o, label=np.arange(len(o)))  # as many classes as samples
    for outcome, shown in ((o, len(set(o.label.tolist()))), (many, 12)):
        told = plain(per_class(outcome, eps, table.data["classes"]))
        run, worst = more(table, per_class=told), told["worst"][-1]
        page = Page(report.render(run))
        assert f"Weakest: {worst['name']}, {words.percent(worst['value'])}" in page.words
        assert sum(a.get("class") == "bar" for a in page.all("span")) == 2 * shown
        assert ("weakest." in page.words) == (outcome is many)
        assert f"is weakest on class {worst['name']}: {words.percent(worst['value'])}" in report.render(run, "md")


def test_the_cost_is_told_part_by_part(table, more):
    told = plain(cost({"clean": [Row(0, 0.0, False, False, 1, -2.0, 0.0, 1, 0)], "fgsm": []}))
    assert "clean 1 1 0 1 1" in Page(report.render(more(table, cost=told))).words


def test_corruptions_are_told_by_severity(table, more):
    def answers(severity, wrong):
        return [Row(i, severity, i < wrong, False, 0, 0.0, 0.0, 1, 0) for i in range(10)]

    baseline = Baseline("other", 0.2, {"gaussian_noise": 0.5}, (1, 2))
    found = summarise_corruptions(answers(0.0, 1), {"gaussian_noise": answers(1.0, 2) + answers(2.0, 6)}, baseline)
    run = more(table, corruptions=plain(found))
    page = Page(report.render(run))
    assert "corruption 1 2 gaussian noise 80% 40%" in page.words
    for words_ in (page.words, report.render(run, "md")):
        assert "60.0%" in words_ and "ean corruption error 80.0%" in words_ and "where 100% is other" in words_


def test_markdown_says_the_same(run):
    text, s = report.render(run, "md"), run.summary()
    for m in s["models"]:
        row = next(line for line in text.splitlines() if line.startswith("| none (clean)"))
        assert f"{words.percent(m['clean']['value'])} ({words.between(m['clean'])})" in row
    assert s["fingerprint"] in text and run.data["sha256"] in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 2 and all(len({row.count("|") for row in t.splitlines()}) == 1 for t in tables)


def test_names_are_text_in_markdown_too(strange):
    text = re.sub(r"^(`{3,})toml.*?^\1$", "", report.render(strange, "md"), flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text


def test_the_specification_that_is_shown_is_the_run_s(run):
    text = report.render(run, "md")
    toml = re.search(r"^(`{3,})toml\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)[2]
    assert Spec.parse(toml, "toml") == run.spec
    assert toml.strip() in Page(html(run)).text


def test_json_is_the_summary(run, tmp_path):
    path = report.write(run, "json", tmp_path / "numbers.json")
    assert path == tmp_path / "numbers.json" and json.loads(path.read_text()) == run.summary()


def test_an_unknown_form_says_so(digits):
    with pytest.raises(ValueError, match="form must be one of html, md, json, got 'pdf'"):
        report.write(digits.folder, "pdf")


def test_markdown_is_escaped():
    assert words.markdown("a|b *c* _d_ e_f\n<g> `h`") == r"a\|b \*c\* \_d\_ e_f &lt;g&gt; \`h\`"
    assert words.code("a`b") == "`` a`b ``" and words.code("ab") == "`ab`" and words.markdown(0.5) == 0.5
    assert words.fence("a\n```\nb\n") == "````\na\n```\nb\n````"


def test_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        report.write(tmp_path)


def test_the_border_of_superpixels():
    mask = np.array([[0, 0, 1], [2, 2, 1]])
    assert pictures.outline(mask, np.array([1])) == "M2 0h1M2 2h1M2 0v1M3 0v1M2 1v1M3 1v1"
    assert pictures.outline(mask, np.array([])) == ""
    assert pictures.middle(mask, 1) == (2.5, 1.0) and pictures.middle(mask, 2) == (1.0, 1.5)


def test_differences_are_amplified_by_a_round_factor():
    x = np.full((1, 4, 4), 0.5)
    factors = [pictures.difference(x, x + d, 0, 1)[1] for d in (0.0, 0.5, 0.26, 0.1, 0.051, 0.0001, 1.0)]
    assert factors == [1, 1, 1, 5, 5, 500, 1]
    assert pictures.difference(x, x + 10, 0, 100)[1] == 5


def test_pictures_are_pixels():
    import base64
    import io

    from PIL import Image

    def pixels(uri):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))

    x = np.array([[[-1.0, 0.0], [1.0, 3.0]]])
    assert pixels(pictures.photo(x, -1, 3)).tolist() == [[0, 64], [128, 255]]
    heat = pixels(pictures.heat(np.array([[[-1.0, 0.0, 1.0]]]), 1.0))[0].astype(int)
    assert heat[0, 2] > heat[0, 0] and heat[2, 0] > heat[2, 2] and heat[1].min() > 240  # blue, white, red
    assert pixels(pictures.photo(np.random.rand(3, 900, 450), 0, 1)).shape == (320, 160, 3)
    assert pixels(pictures.photo(np.random.rand(5, 4, 4), 0, 1)).shape == (4, 4)


def test_words():
    assert [words.number(v) for v in (0.1234, -2.0, 1.5e-5, 123456.0, None)] == [
        "0.123",
        "−2",
        "0.000015",
        "123456",
        "–",
    ]
    assert words.signed(2.0) == "+2" and words.signed(-0.5) == "−0.5"
    assert words.listed(["a", "b", "c"]) == "a, b and c" and words.listed(["a"]) == "a"
    assert words.probability(1e-9) == "below 0.0001" and words.probability(0.2) == "0.20"
    for norm in ("Linf", "L2", "L1", "L0"):
        for kind in ("image", "table", "other"):
            assert words.budget(1.0, norm, kind) and words.size(1.0, norm, kind) and words.scale(norm, kind, (0, None))
    assert words.size(1.0, "L0", "image") == "1 pixel changed" and words.size(2.0, "L0", "table") == "2 columns changed"

"""The report as a browser shows it: for everyone, on any screen, and with nothing but the file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from report_cases import EVIL

from robustx import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
LOOKS = [
    *[("digits", width, scheme) for width in (1280, 390) for scheme in ("light", "dark")],
    *[(run, width, scheme) for run in ("table", "strange") for width, scheme in ((1280, "light"), (390, "dark"))],
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path, such as Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'robustx[test]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file at a width and in a colour scheme; what it asks for, says and shows is kept on the page."""
    contexts = []

    def open_(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda r: page.asked.append(r.url))
        page.on("console", lambda m: page.said.append(m.text))
        page.on("pageerror", lambda e: page.said.append(str(e)))
        page.on("dialog", lambda d: (page.said.append(d.message), d.dismiss()))
        page.goto(path.as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def path(run):
    return written(run)


def written(run):
    """The report of a run, made once."""
    made = run.folder / "report.html"
    return made if made.exists() else report.write(run)


@pytest.mark.parametrize("run, width, scheme", LOOKS, indirect=["run"])
def test_everyone_can_read_it_on_any_screen(path, opened, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = opened(path, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert dark == (scheme == "dark")
    found = axe.Axe().run(page)
    assert not found.violations_count, found.generate_report()
    assert {u for u in page.asked if not u.startswith("data:image/png;")} == {path.as_uri()}
    assert page.said == []


def test_names_that_are_markup_do_nothing(strange, opened):
    page = opened(written(strange))
    assert page.title() == f"How robust is {EVIL}?"
    assert page.locator("img, script").count() == 0
    assert EVIL in page.locator("h1").inner_text() and f"{EVIL}&0" in page.locator("main").inner_text()
    assert page.said == []


def test_pictures_are_shown(digits, opened):
    page = opened(written(digits))
    sizes = page.eval_on_selector_all(
        "svg image",
        """all => Promise.all(all.map(async one => {
            const picture = new Image(); picture.src = one.href.baseVal; await picture.decode();
            return [picture.naturalWidth, one.getBoundingClientRect().width];
        }))""",
    )
    assert len(sizes) >= 40 and all(width == 8 and shown > 60 for width, shown in sizes)


def test_the_keyboard_reaches_what_scrolls(digits, opened):
    page = opened(written(digits), 390)
    scrolls = page.eval_on_selector_all(
        "main *",
        "all => all.filter(one => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX == 'auto')"
        ".map(one => one.tabIndex)",
    )
    assert scrolls and set(scrolls) == {0}


def test_the_picture_of_a_report_is_made_by_an_example(digits, browser, tmp_path):
    written(digits)
    example = Path(__file__).parents[2] / "examples" / "photograph_report.py"
    command = [sys.executable, example, digits.folder, "--height", "300", "--out", tmp_path / "report.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "written to" in done.stdout, done.stderr
    picture = Image.open(tmp_path / "report.png").convert("RGB")
    assert picture.size == (1100 + 24 + 390, 300)
    assert picture.getpixel((2, 2)) == (255, 255, 255) and max(picture.getpixel((1500, 2))) < 50  # light, dark

"""Photograph the report of a run in a browser: its beginning on a desk, and its explained samples on a phone.

    robustx evaluate digits
    python examples/photograph_report.py runs/digits --out docs/pictures/report.png

It needs Chromium on the path (Debian's package chromium) and Playwright (pip install playwright).
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GAP = 24
COLOURS = 256  # of the picture; a report has few, and its file is small then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder that robustx evaluate wrote")
    parser.add_argument("--height", type=int, default=1040, help="of both screens, in pixels")
    parser.add_argument("--out", type=Path, default=Path("report.png"), help="the picture")
    asked = parser.parse_args()
    page = asked.run / "report.html"
    if not page.is_file():
        sys.exit(f"there is no {page}; robustx report {asked.run} makes it")
    desk, phone = photograph(page, [(1100, "light", ""), (390, "dark", "#sample-1")], asked.height)
    both = Image.new("RGB", (desk.width + GAP + phone.width, asked.height), "white")
    both.paste(desk, (0, 0))
    both.paste(phone, (desk.width + GAP, 0))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    both.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(asked.out, optimize=True)
    print(f"written to {asked.out}, {asked.out.stat().st_size // 1024} KB")


def photograph(page: Path, screens: list[tuple[int, str, str]], height: int) -> list[Image.Image]:
    """What screens of some widths show of a page, in a light or dark scheme, from an anchor on."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"there is no Chromium on the path ({', '.join(BROWSERS)}); on Debian, apt-get install chromium")
    pictures = []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as c,
    ):
        for width, scheme, anchor in screens:
            view = c.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            view.goto(page.resolve().as_uri() + anchor)
            pictures.append(Image.open(io.BytesIO(view.screenshot())).convert("RGB"))
    return pictures


if __name__ == "__main__":
    main()

"""Write docs/report.png, a picture of the report of tiny: ``python docs/picture_of_report.py REPORT.html``, with Chromium on PATH.

The report is what ``lutbench report tiny --results results/reference --output REPORT.html`` writes.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]


def picture(report: Path) -> Image.Image:
    """Return the wide table of a report, in light, above its chart of attention, in dark."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        halves = []
        for theme, anchor in (("light", ".grid[data-name=wide]"), ("dark", "figure:has-text('attention by depth')")):
            page = browser.new_page(viewport={"width": 1280, "height": 510}, color_scheme=theme)
            page.goto(report.as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            place = page.locator(anchor).first
            place.evaluate("one => scrollTo(0, one.getBoundingClientRect().top + scrollY - 130)")
            page.wait_for_timeout(800)  # the scrolling is smooth
            halves.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    whole = Image.new("RGB", (halves[0].width, sum(half.height for half in halves)))
    whole.paste(halves[0], (0, 0))
    whole.paste(halves[1], (0, halves[0].height))
    return whole


if __name__ == "__main__":
    target = ROOT / "docs/report.png"
    picture(Path(sys.argv[1]).absolute()).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")

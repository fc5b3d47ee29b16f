"""Pictures of each section of the page, light and dark: ``python -m tests.lab.screenshots runs/demo docs/images``."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from tests.lab.browser import ARGUMENTS, find_browser
from tests.lab.shell import serving

SECTIONS = ("flow", "patches", "attention", "matrix", "change", "gates", "denoise", "compare")
PLAIN = """
    #stay, #contents, .choices-live { position: static !important }
    main > section { padding: 24px !important; border: 0 !important }
"""


def take(run, folder):
    """Write ``lab-SECTION-light.png`` and ``-dark.png`` into the folder."""
    worker = Worker()
    with serving(create_app(Library(run), worker)) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        for theme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": 1200, "height": 1000}, color_scheme=theme, reduced_motion="reduce", bypass_csp=True
            )
            page.goto(f"http://127.0.0.1:{port}/?t=0.3&input=data:0")
            page.get_by_role("heading", level=1).wait_for()
            page.add_style_tag(content=PLAIN)
            for name in SECTIONS:
                part = page.locator(f"#{name}")
                part.scroll_into_view_if_needed()
                page.wait_for_timeout(2000)
                part.screenshot(path=folder / f"lab-{name}-{theme}.png")
            page.close()
        browser.close()
    worker.close()


if __name__ == "__main__":
    take(sys.argv[1], Path(sys.argv[2]))

"""Which browser drives the tests of the page. ``python -m tests.lab.browser`` sees to it that there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser():
    """Path of a Chromium: the machine's own, or the one that Playwright installed; None if there is none."""
    named = os.environ.get("CHROMIUM")
    for name in (named, *NAMES):
        if name and shutil.which(name):
            return shutil.which(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def main():
    """Install a browser through Playwright if there is none, where that works."""
    if find_browser():
        return
    print("no Chromium here: trying playwright install chromium", file=sys.stderr)
    done = subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    if done.returncode:
        print("that did not work: the tests of the page will be skipped. Install Chromium", file=sys.stderr)


if __name__ == "__main__":
    main()

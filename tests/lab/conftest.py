"""Small real runs to look inside, trained once for each worker."""

import os

import pytest

from ditlab.cli.main import main
from ditlab.config import Config
from ditlab.recipes import RECIPES
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from tests.lab.browser import ARGUMENTS, find_browser

EVERY = {"checkpoint_every": 20, "preview_every": 20, "record_every": 10, "log_every": 10}
RUNS = {
    "circles": {"steps": 40, "batch_size": 32, "precision": "fp32"} | EVERY,
    "digits": {"steps": 20, "batch_size": 32, "precision": "fp32"} | EVERY,
    "points": {"steps": 20, "batch_size": 64} | EVERY,
}


class Quiet:
    def notice(self, message):
        pass

    def begin(self, done, steps):
        pass

    def progress(self, step, loss, images_per_s, seconds_left):
        pass


def train_into(folder, config: Config):
    fit(config, RunFolder(folder), watcher=Quiet())
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs circles, digits, points and unet."""
    folder = tmp_path_factory.mktemp("lab") / "runs"
    for name, changes in RUNS.items():
        train_into(folder / name, Config(**(RECIPES[name]().model_dump() | changes)))
    unet = RECIPES["circles"]().model_dump() | {"network": {"kind": "unet", "width": 8}, "steps": 2, "batch_size": 4}
    train_into(folder / "unet", Config(**(unet | {"precision": "fp32"})))
    return folder


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """A folder with tiny runs of digits, one for each kind of conditioning that the others do not have."""
    folder = tmp_path_factory.mktemp("kinds") / "runs"
    for kind in ("film", "in-context", "cross-attention"):
        network = {"kind": "dit", "patch_size": 2, "dim": 32, "depth": 3, "heads": 2, "conditioning": kind}
        changes = {"network": network, "steps": 20, "batch_size": 16, "precision": "fp32", "warmup_steps": 2}
        train_into(folder / kind, Config(**(RECIPES["digits"]().model_dump() | changes)))
    return folder


@pytest.fixture(scope="module")
def chromium():
    path = find_browser()
    if path is None:
        reason = "NO BROWSER: the tests of the page need Chromium (python -m tests.lab.browser)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def exported(runs, tmp_path_factory):
    """The page of the run circles as one file, with fewer inputs and times than users get."""
    out = tmp_path_factory.mktemp("export") / "lesson.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditlab.lab.export.INPUTS", ("data:0", "data:1"))
        patch.setattr("ditlab.lab.export.TIMES", (0.3, 0.5))
        assert main(["lab", str(runs / "circles"), "--export", str(out)]) == 0
    return out

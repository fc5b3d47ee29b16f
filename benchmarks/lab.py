"""How quickly does the lab respond, and what do its recordings cost?

    python benchmarks/lab.py runs/demo          about a minute, with a Chromium

Three figures, each the median of its repetitions:

    first paint     from opening the address to the first frame with the diagram and the patches on it
    click           from pressing on a patch to the first frame that shows its attention
    recordings      of gates and branches, as a share of the time of the training steps between two of them
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from ditlab.bench.training import as_trained
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import TrainState, train
from ditlab.training.recorder import Recorder
from ditlab.training.tracking import Nobody
from tests.lab.browser import ARGUMENTS, find_browser
from tests.lab.shell import serving

OPENED, CLICKS, STEPS, RECORDINGS = 7, 40, 100, 15
WATCH = """
    const painted = () => document.querySelector('#flow svg') && document.querySelector('#patches canvas');
    const frame = () => { if (painted()) window.firstPaint = performance.now(); else requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
    window.clicks = [];
    addEventListener('pointerdown', () => {
        const read = () => document.querySelector('#attention').innerText;
        const [begun, before] = [performance.now(), read()];
        const look = () => {
            if (read() === before) requestAnimationFrame(look);
            else requestAnimationFrame(() => window.clicks.push(performance.now() - begun));
        };
        requestAnimationFrame(look);
    }, { capture: true });
"""


def in_browser(run: str) -> dict[str, float]:
    """Milliseconds to the first paint, and from a click on a patch to its attention."""
    library, worker = Library(run), Worker()
    library.describe(next(iter(library.folders())), None, "ema")
    with serving(create_app(library, worker)) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        paints = []
        for _ in range(OPENED):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.add_init_script(WATCH)
            page.goto(f"http://127.0.0.1:{port}/")
            page.locator("#patches canvas").first.wait_for()
            page.wait_for_timeout(1500)
            paints.append(page.evaluate("firstPaint"))
        clicks = click_around(page)
        browser.close()
    worker.close()
    return {"first_paint_ms": statistics.median(paints), "click_ms": statistics.median(clicks)}


def click_around(page: Page) -> list[float]:
    """Click one patch after the other."""
    grid = page.get_by_role("application", name="The image: choose a patch")
    grid.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)
    box = grid.bounding_box()
    assert box is not None
    side = box["width"] / 4
    for i in range(CLICKS):
        patch = 7 * i % 16
        grid.click(position={"x": (patch % 4 + 0.5) * side, "y": (patch // 4 + 0.5) * side})
        page.wait_for_timeout(250)
    return list(page.evaluate("clicks"))


def recordings() -> dict[str, float]:
    """Time of one recording over that of the training steps between two recordings."""
    config = RECIPES["circles"]().model_copy(update={"precision": "bf16"})
    dataset = build_dataset(config)
    config = as_trained(config, dataset).model_copy(update={"steps": STEPS * (RECORDINGS + 2)})
    state = TrainState(config, dataset)
    loop = train(state, dataset)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        writer = CheckpointWriter(run.checkpoints, state)
        recorder = Recorder(run, state, dataset, None, Nobody(), writer, int)  # type: ignore[arg-type]
        for _ in range(RECORDINGS):
            begun = time.perf_counter()
            for _ in range(STEPS):
                next(loop)
            trained = time.perf_counter()
            recorder._record()
            shares.append((time.perf_counter() - trained) / (trained - begun))
    return {"recordings_share": statistics.median(shares)}


if __name__ == "__main__":
    print(json.dumps({name: round(value, 4) for name, value in {**in_browser(sys.argv[1]), **recordings()}.items()}))

"""Does watching a run slow it down?

    python benchmarks/viewer.py [PAIRS]          about two minutes with the default of 12 pairs, one thread for training

Trains on circles, with ``ditlab lab`` in a process of its own, and divides the training into stretches of steps. In
every second stretch a client follows the run through ``/live``, as the page does, and fetches what it announces. The
script prints the time of a watched stretch over that of its neighbours, as the median over all pairs (the goal is below
1.03), in wall time and in processor time, which other programs hardly disturb. It does the same with a client that
makes the lab compute as fast as it can; that competes with training for the processors like any other program.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ditlab.recipes import RECIPES
from ditlab.runs.folder import RunFolder
from ditlab.train import fit

STRETCH = 50  # steps
WATCHING, COMPUTING = "watched", "computing"


class Client(threading.Thread):
    """Follows a run, or makes the lab compute, until told to stop."""

    def __init__(self, port: int, run: str, kind: str) -> None:
        super().__init__(daemon=True)
        self.port, self.run_name, self.kind = port, run, kind
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        """Send requests until it is over; a connection cut at the end is not an error."""
        base = f"/api/runs/{self.run_name}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self.kind == WATCHING:
                connection.request("GET", f"{base}/live")
                answer = connection.getresponse()
                while not self.over.is_set():
                    answer.readline()
            while self.kind == COMPUTING and not self.over.is_set():
                connection.request("GET", f"{base}/trajectory?steps=25&seed={time.perf_counter_ns() % 10**6}")
                connection.getresponse().read()
        connection.close()


class Alternation:
    """A watcher of the training that starts and stops a client, and measures the times."""

    def __init__(self, begin: Callable[[str], Client]) -> None:
        self.begin_client = begin
        self.seconds: dict[str, list[tuple[float, float]]] = {"alone": [], WATCHING: [], COMPUTING: []}
        self.client: Client | None = None
        self.kind = "warming up"
        self.clocks = time.perf_counter(), time.process_time()

    def begin(self, done: int, steps: int) -> None:
        """Training begins."""

    def notice(self, message: str) -> None:
        """Nothing is shown."""

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        """One stretch is over: record its time, and begin one of another kind."""
        if self.kind in self.seconds:
            wall, own = self.clocks
            self.seconds[self.kind].append((time.perf_counter() - wall, time.process_time() - own))
        if self.client is not None:
            self.client.over.set()
            self.client.join()
            self.client = None
        turn = step // STRETCH
        self.kind = "alone" if turn % 2 else (WATCHING if turn % 4 == 0 else COMPUTING)
        if step <= 2 * STRETCH:
            self.kind = "warming up"
        elif self.kind != "alone":
            self.client = self.begin_client(self.kind)
        self.clocks = time.perf_counter(), time.process_time()


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[tuple[int, str]]:
    """Port and the run's name of ``ditlab lab`` in a process of its own."""
    command = [sys.executable, "-m", "ditlab", "lab", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        port = urlsplit(json.loads(process.stdout.readline())["url"]).port
        assert port is not None
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/api/runs")
        yield port, json.load(connection.getresponse())["runs"][0]["id"]
    finally:
        process.terminate()
        process.wait()


def measure(pairs: int) -> dict[str, float]:
    """Medians of the time of a stretch over the mean of its two neighbours."""
    torch.set_num_threads(1)
    steps = STRETCH * (2 * 2 * pairs + 4)
    every = {"log_every": STRETCH, "record_every": STRETCH, "preview_every": steps, "checkpoint_every": STRETCH}
    config = RECIPES["circles"]().model_copy(update={"steps": steps, "precision": "fp32", "keep_last": 2, **every})
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = RunFolder(Path(temporary) / "run")
        fit(config.model_copy(update={"steps": STRETCH}), folder, watcher=Alternation(lambda _: Client(0, "", "")))
        port, name = stack.enter_context(lab(folder.path))
        watcher = Alternation(lambda kind: Client(port, name, kind))
        fit(config, folder, watcher=watcher, resume=True)
    return _ratios(watcher) | {
        "stretch_seconds": round(statistics.median(wall for wall, _ in watcher.seconds["alone"]), 3),
        "processors": os.cpu_count() or 0,
    }


def _ratios(watcher: Alternation) -> dict[str, float]:
    """Ratios for each kind of stretch, by each clock."""
    alone = watcher.seconds["alone"]
    found = {}
    for kind, first in ((WATCHING, 1), (COMPUTING, 2)):
        for clock, name in enumerate(("", "_processor")):
            ratios = []
            for i, times in enumerate(watcher.seconds[kind]):
                beside = alone[2 * i + first - 1 : 2 * i + first + 1]
                ratios.append(times[clock] / statistics.mean(one[clock] for one in beside))
            found[kind + name] = round(statistics.median(ratios), 4)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 12)))

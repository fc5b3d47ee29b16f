"""How long does it take to list a folder of 2,000 runs, and to read a run with a million lines of metrics?

    python benchmarks/folders.py        some minutes on two CPU cores, and 2 GB of disk meanwhile

Each row is a command in a process of its own, also run with one run or few lines for comparison: wall seconds,
processor seconds, and peak memory. It needs Linux, and uses only ditlab's command line, so PYTHONPATH can name the src
of another version. On two shared cores of an AMD EPYC, in processor seconds beyond the small case, before and after
metrics were streamed and folders listed lazily: start 2.4 and 0.5, another list 0.7 and 0.04, the doctor 11.6 and 5.3,
--resume 21.6 and 0.4, 30 requests 39.8 and 1.4 (6,090 and 16 MB); see docs/lab.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

RUNS, LINES, ASKED, QUESTIONS, LISTS = 2000, 10**6, 200_000, 30, 3
CALL = [sys.executable, "-m", "ditlab"]
TRAIN = ["train", "points", "--name", "run", "--steps", "2", "--checkpoint-every", "2", "--preview-every", "100000000"]
PATIENCE = 600  # seconds


def show(what: str, clock: float, processor: float, megabytes: float) -> None:
    """Print a row."""
    print(f"{what:<44} {clock:8.2f} s {processor:8.2f} s of processor {megabytes:8,.0f} MB", flush=True)


def called(what: str, *words: str) -> None:
    """Run a command to its end, and show what it took."""
    begun = time.perf_counter()
    process = subprocess.Popen([*CALL, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # the doctor exits with 1 if a run is ill
        raise SystemExit(said)
    show(what, time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def with_lines(run: Path, to: Path, count: int, step: int | None) -> Path:
    """A copy of a run with the given number of lines of metrics, all with the same step or numbered."""
    shutil.copytree(run, to)
    with (to / "metrics.jsonl").open("w") as stream:
        for i in range(1, count + 1):
            loss = (1 + i * 7919 % 1000 / 1000) / i**0.1
            stream.write(
                f'{{"step": {step or i}, "loss": {loss}, "lr": 0.001, "grad_norm": 0.53125, "images_per_s": 1234.5, '
                f'"seconds": {i / 8}}}\n'
            )
    return to


@contextmanager
def lab(what: str, path: Path) -> Iterator[tuple[int, str]]:
    """The process and address of a lab, once it answers."""
    begun = time.perf_counter()
    process = subprocess.Popen([*CALL, "lab", str(path), "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = None
        while url is None:
            url = re.search(r"http://\S+", process.stderr.readline())
        show(f"{what}: up", time.perf_counter() - begun, *used_by(process.pid))
        yield process.pid, url[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def used_by(pid: int) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1e3


def fetched(url: str) -> int:
    """Number of bytes in the answer."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return len(answer.read())


def asked(what: str, pid: int, urls: list[str]) -> None:
    """Send all requests at once, and print the cost."""
    begun, before = time.perf_counter(), used_by(pid)[0]
    with ThreadPoolExecutor(len(urls)) as pool:
        largest = max(pool.map(fetched, urls))
    processor, megabytes = used_by(pid)
    show(f"{what} ({largest / 1e3:,.0f} kB)", time.perf_counter() - begun, processor - before, megabytes)


def folder_of_runs(here: Path, run: Path) -> None:
    """Measure a lab on one run, and on many."""
    for count in (1, RUNS):
        runs = here / f"runs-{count}"
        for i in range(count):
            shutil.copytree(run, runs / f"run-{i:04}", ignore=shutil.ignore_patterns("probes", "averages", "samples"))
        time.sleep(3)  # recently changed files are read again
        with lab(f"lab on {count:,} runs", runs) as (pid, url):
            for i in range(LISTS):
                asked(f"lab on {count:,} runs: list {i + 1}", pid, [f"{url}api/runs"])


def long_runs(here: Path, run: Path) -> None:
    """Measure the doctor, a resume and a lab on metrics with many lines."""
    for count in (10, LINES):
        long = with_lines(run, here / f"lines-{count}", count, step=2)
        called(f"doctor on {count:,} lines", "doctor", str(long), "--n", "64")
        called(f"train --resume on {count:,} lines", "train", "--resume", str(long), "--steps", "4")
    for count in (10, ASKED):
        long = with_lines(run, here / f"asked-{count}", count, step=None)
        with lab(f"lab on {count:,} lines", long) as (pid, url):
            name = re.search(rb'"id": ?"(\w+)"', urllib.request.urlopen(f"{url}api/runs").read())
            assert name is not None
            losses = f"{url}api/runs/{name[1].decode()}/losses"
            asked(f"lab on {count:,} lines: {QUESTIONS} questions", pid, [losses] * QUESTIONS)


def main() -> None:
    """Make the folders, and print the cost of each command."""
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        subprocess.run([*CALL, *TRAIN], cwd=here, check=True, capture_output=True)
        folder_of_runs(here, here / "runs" / "run")
        long_runs(here, here / "runs" / "run")


if __name__ == "__main__":
    main()

"""Training that is killed again and again, and ends as if nothing had happened."""

import json
import os
import random
import signal
import time

import pytest

from tests.images import folder_of
from tests.reliability.faults import asked, tree

TINY = ["--batch-size", "4", "--precision", "fp32", "--checkpoint-every", "2", "--keep-last", "3"]
TINY += ["--log-every", "5", "--record-every", "10", "--preview-every", "50", "--sampling.steps", "1"]
DIT = ["--network.dim", "16", "--network.depth", "1", "--network.heads", "2"]
IMAGES = ["--data.path", "photos", "--data.image-size", "8", "--data.flip", "--network.patch-size", "4"]
DATA = {
    "circles": ["circles", *DIT],
    "points": ["points", "--network", "mlp"],
    "images": ["images", *DIT, *IMAGES],
    "images decoded anew": ["images", *DIT, *IMAGES, "--data.cache", "off"],
}


@pytest.fixture(scope="module")
def warm():
    """Ask a process with torch imported to train in a fork of itself; gives the number of the fork."""

    class Warm:
        def start(self, words, log, die_at=None):
            send({"folder": str(log.parent), "words": words, "log": str(log), "die_at": die_at})
            return answer()

        def end(self):
            return answer()

    with asked("tests.reliability.warm") as (send, answer):
        yield Warm()


def seen(log):
    """What was trained on, in order: (draws, data) of each step; a last line may be half written."""
    return [tuple(line.split()) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def train_on(warm, words, log, chance, most):
    """Train, and kill it: before some operation on the disk, or some steps and milliseconds after it began to step."""
    if chance.random() < 0.5:
        warm.start(words, log, die_at=chance.randrange(60))
        return warm.end()
    done = len(seen(log))
    child = warm.start(words, log)
    wanted, deadline = done + chance.randrange(most), time.monotonic() + 60
    while len(seen(log)) < wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(chance.random() * 0.04)
    os.kill(child, signal.SIGKILL)
    return warm.end()


def killed_and_resumed(warm, folder, words, kills, chance):
    """Train a run without and one with kills, and compare all that decides anything."""
    folder_of(folder / "photos")
    steps = 12 * kills
    words = ["train", *words, *TINY, "--steps", str(steps)]
    logs = {name: folder / f"{name}.log" for name in ("whole", "cut")}
    where = {name: folder / "runs" / name for name in logs}
    warm.start([*words, "--name", "whole"], logs["whole"])
    assert warm.end() == 0, logs["whole"].with_suffix(".err").read_text()
    whole = seen(logs["whole"])
    assert len(set(whole)) == steps

    def again():
        return ["train", "--resume", "cut"] if (where["cut"] / "config.json").exists() else [*words, "--name", "cut"]

    for _ in range(kills):
        ended = train_on(warm, again(), logs["cut"], chance, most=5)
        assert ended == -signal.SIGKILL, logs["cut"].with_suffix(".err").read_text()
    warm.start(again(), logs["cut"])
    assert warm.end() == 0, logs["cut"].with_suffix(".err").read_text()

    a, b = tree(where["whole"]), tree(where["cut"])
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name] or name == "metrics.jsonl", name
    lines = ([json.loads(line)["step"] for line in text["metrics.jsonl"].splitlines()] for text in (a, b))
    assert next(lines) == next(lines)
    cut = seen(logs["cut"])
    assert len(cut) > steps  # some were taken again
    assert list(dict.fromkeys(cut)) == whole  # and were, each time, the same ones


@pytest.mark.parametrize(
    ("data", "workers", "kills"),
    [
        ("circles", 0, 3),
        ("images", 0, 2),
        pytest.param("images decoded anew", 2, 2, marks=pytest.mark.slow),
        *[
            pytest.param(data, workers, 20, marks=pytest.mark.slow)
            for data, workers in (
                ("circles", 0),
                ("points", 2),
                ("images", 0),
                ("images decoded anew", 0),
                ("images decoded anew", 2),
            )
        ],
    ],
)
def test_kill_9_in_a_step_or_a_save(warm, tmp_path, data, workers, kills):
    chance = random.Random(f"{data} {workers} {kills}")
    killed_and_resumed(warm, tmp_path, [*DATA[data], "--workers", str(workers)], kills, chance)

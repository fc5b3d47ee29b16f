"""Batches that worker processes prepare: the same ones, no more than are needed, and faults end in a line."""

import time
from contextlib import closing

import pytest
import torch

from ditlab.core.errors import InputError, TrainingError
from ditlab.runs.build import build_dataset
from ditlab.training import watchdog as stacks
from ditlab.training.loader import batches
from tests.reliability.faulty import Faulty, config
from tests.training.test_fit import tiny


def test_workers_prepare_the_same_batches_and_no_more(tmp_path):
    """From a step in the middle to the last, each position asked for once, and nobody left over."""
    diary, made = tmp_path / "diary", config(steps=9, workers=2)
    with closing(batches(Faulty({}, diary), made, 3, tmp_path)) as prepared:
        found = list(prepared)
    assert sorted(map(int, diary.read_text().split())) == [8 * step for step in range(3, 9)]
    assert not stacks.workers()
    assert [path.name for path in tmp_path.iterdir()] == ["diary"]
    expected = list(batches(Faulty({}), config(steps=9), 3))
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a.x0, b.x0) for a, b in zip(found, expected, strict=True))


def test_conditions_come_along_and_leaving_early_leaves_nobody():
    made = tiny("digits", workers=1, steps=1000)
    data = build_dataset(made)
    with closing(batches(data, made, 0)) as prepared:
        for step in range(3):
            batch, expected = next(prepared), data.batch(0, 8 * step, 8)
            assert torch.equal(batch.x0, expected.x0)
            assert torch.equal(batch.cond["label"], expected.cond["label"])
    assert not stacks.workers()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("refuse", InputError, "^this sample is no good: take another$"),
        ("stumble", TrainingError, "^no batch for step 3: ValueError: two"),
        ("die", TrainingError, "^a worker process died while it prepared batches"),
        ("hang", TrainingError, "^no batch came from the worker processes for 1.5 s.*stalled.txt shows where they are"),
    ],
)
def test_faults_of_a_worker_end_in_a_line(tmp_path, fault, error, message):
    made = config(workers=1, stall_after=1.5, steps=3 if fault == "hang" else 8)  # the last batch may hang too
    with closing(batches(Faulty({3: fault}), made, 0, tmp_path)) as prepared:
        if fault != "die":  # which may take along what was ready
            next(prepared), next(prepared)
        begun = time.monotonic()
        with pytest.raises(error, match=message):
            list(prepared)
    assert time.monotonic() - begun < (30 if fault != "die" else 60)
    assert not stacks.workers()
    if fault == "hang":
        text = (tmp_path / "stalled.txt").read_text()
        assert "training process:" in text
        assert "in hang" in text[text.index("worker processes:") :]

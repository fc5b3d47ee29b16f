"""Faults of training in one process, each with what has to come of it."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ditlab.core.errors import Interrupted, TrainingError
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import signals
from tests.reliability.faulty import Faulty, config
from tests.training.test_fit import Nobody, everything, tiny

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def training(folder, **told):
    """A child process that trains points into ``folder``; killed if it is still there at the end."""
    command = [sys.executable, "-m", "tests.reliability.faulty", str(folder), json.dumps({"config": {}, **told})]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def wait_for(child, line):
    """Read on to that line of the child's output."""
    for text in child.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"{line} never came: {child.stderr.read()}")


def told(child, word):
    """The numbers in the child's next line that begins with that word."""
    for text in child.stdout:
        if text.split()[0] == word:
            return [int(number) for number in text.split()[1:]]
    raise AssertionError(f"{word} never came: {child.stderr.read()}")


def ends(child, timeout=60):
    """Status, seconds until the child ended, and its last words."""
    begun = time.monotonic()
    _, err = child.communicate(timeout=timeout)
    assert "Traceback" not in err
    assert "leaked" not in err
    return child.returncode, time.monotonic() - begun, err


def same(one, other, at=""):
    """The same files with the same tensors, those of the step ``at`` alone if given, and the same pictures."""
    (a, pictures, _), (b, others, _) = everything(one), everything(other)
    a, b = ({name: t for name, t in tensors.items() if at in name} for tensors in (a, b))
    assert a.keys() == b.keys() != set()
    for name in a:
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name]), name
    assert pictures == others


def descendants(pid):
    """Processes that the process started, and theirs, but for Python's own tracker of shared resources."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text():
                found += [int(child), *descendants(child)]
    return found


def gone(pids, timeout=30):
    """Whether these processes end by themselves in that time."""
    deadline = time.monotonic() + timeout
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Pulls(Nobody):
    """Stops a run without a word, as a power cut would, once a step was logged."""

    def __init__(self, step):
        self.step = step

    def progress(self, step, *_):
        if step >= self.step:
            raise PowerCut


class PowerCut(BaseException):
    pass


class Heard(Nobody):
    """Remembers what it was told."""

    def __init__(self):
        self.notices = []

    def notice(self, message):
        self.notices.append(message)


def test_sigterm(tmp_path):
    """SIGTERM, SIGINT and SIGHUP at random steps, with a worker and without in turns: each time the step is finished
    and saved, and the end is byte for byte that of a run that nobody stopped."""
    made = {"steps": 300, "checkpoint_every": 300, "preview_every": 100, "log_every": 1}
    chance, last = random.Random(0), 0
    with training(tmp_path / "stopped", config=made, again=True) as child:
        hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup has it ignored
        numbers = 2 * (signals.STOPPING if hangup else signals.STOPPING[:2])
        for step, number in zip(sorted(chance.sample(range(10, 290), len(numbers))), numbers, strict=True):
            while last < step:
                last = told(child, "step")[-1]
            if number == signal.SIGHUP:
                os.kill(child.pid, number)
            else:
                os.killpg(child.pid, number)  # as a terminal does, and a scheduler: the workers get it too
            received, last = told(child, "stopped")
            assert received == number
            assert last >= step
        status, _, err = ends(child)
        assert (status, err) == (0, "")
    fit(config(**made), RunFolder(tmp_path / "whole"), Faulty({}), watcher=Nobody())
    same(tmp_path / "stopped", tmp_path / "whole", at="step-00000300")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_training_that_hangs_at_once(tmp_path, number, status):
    """In the training process, and while it waits for a worker process, which is gone too."""
    workers = int(number == signal.SIGTERM)
    with training(tmp_path, config={"workers": workers}, faults={4: "hang"}) as child:
        wait_for(child, "step 3")
        time.sleep(1)
        children = descendants(child.pid)
        assert bool(children) == bool(workers)
        child.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.send_signal(number)
        ended, seconds, err = ends(child)
    assert ended == status
    assert seconds < 20
    assert err.count("\n") == 1
    assert gone(children)


def test_a_signal_while_the_data_are_prepared(tmp_path):
    with training(tmp_path / "r", prepare=True) as child:
        wait_for(child, "preparing")
        child.send_signal(signal.SIGTERM)
        status, seconds, err = ends(child)
    assert (status, err) == (143, "ditlab: terminated\n")
    assert seconds < 20
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("step", [4, 8])
def test_a_signal_before_a_preview_and_on_the_last_step(tmp_path, step):
    """What is due is still drawn and saved."""

    class Stops(Nobody):
        def progress(self, done, *_):
            if done == step:
                signal.raise_signal(signal.SIGTERM)

    folder = RunFolder(tmp_path / "r")
    with pytest.raises(Interrupted, match="go on with" if step == 4 else "at step 8, the last one") as stop:
        fit(tiny("points", log_every=1, preview_every=4, steps=8), folder, watcher=Stops())
    assert stop.value.signal_number == signal.SIGTERM
    assert folder.step == step
    assert (folder.samples / f"step-0000000{step}.png").exists()
    if step == 4:
        fit(folder.read_config(), folder, watcher=Nobody(), resume=True)
        fit(folder.read_config(), RunFolder(tmp_path / "whole"), watcher=Nobody())
        same(tmp_path / "r", tmp_path / "whole", at="step-00000008")


@pytest.mark.parametrize(
    "workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_other_worker_count(tmp_path, workers):
    """The same bytes whoever prepares the batches, and after a change of who does in the middle."""
    fit(tiny("digits"), RunFolder(tmp_path / "alone"), watcher=Nobody())
    folder = RunFolder(tmp_path / "changed")
    with pytest.raises(PowerCut):
        fit(tiny("digits"), folder, watcher=Pulls(4))
    assert folder.step == 3
    fit(tiny("digits", workers=workers), folder, watcher=Nobody(), resume=True)
    same(tmp_path / "alone", tmp_path / "changed")


def test_nan_inf_and_spike(tmp_path):
    """Steps on broken batches are skipped, said and counted; a resumed run sees the same spikes."""
    faults = {20: "nan", 21: "inf", 110: "everything huge", 125: "huge"}
    data = Faulty(faults)
    made = config(steps=130, checkpoint_every=60, log_every=10, preview_every=200)
    heard = Heard()
    fit(made, RunFolder(tmp_path / "whole"), data, watcher=heard)
    lines = RunFolder(tmp_path / "whole").read_metrics()
    skipped = {line["step"]: line["skipped"] for line in lines if "skipped" in line}
    assert list(skipped) == list(faults)
    assert skipped[20] == "loss is nan"
    assert skipped[110].startswith("spike: loss")
    assert heard.notices[1] == "step 20 was not learned from: loss is nan"
    assert heard.notices[-1] == "4 steps were not learned from (2 spikes, 2 not finite): see metrics.jsonl"
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert max(losses.values()) < 3  # the mean of a line leaves skipped steps out
    for file in (tmp_path / "whole/checkpoints").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
    cut = RunFolder(tmp_path / "cut")
    with pytest.raises(PowerCut):
        fit(made, cut, data, watcher=Pulls(70))
    assert cut.step == 60
    fit(made, cut, data, watcher=Nobody(), resume=True)
    same(tmp_path / "whole", tmp_path / "cut")
    assert [line["step"] for line in cut.read_metrics() if "skipped" in line] == list(faults)


def test_too_many_bad_steps_end_a_run_and_are_kept(tmp_path):
    broken = Faulty({5: "nan", 6: "nan", 7: "nan", 8: "nan"})
    folder = RunFolder(tmp_path / "r")
    with pytest.raises(TrainingError, match=r"3 steps in a row up to step 7 .*step-00000007.json tells") as stop:
        fit(config(bad_steps=3), folder, broken, watcher=Nobody())
    assert "\n" not in str(stop.value)
    assert sorted(path.name for path in folder.failures.iterdir()) == [
        "step-00000007.json",
        "step-00000007.safetensors",
    ]
    told = json.loads((folder.failures / "step-00000007.json").read_text())
    assert [sample["name"] for sample in told["samples"] if sample["loss"] == "nan"] == [f"point {7 * (48 + 3)}"]
    assert folder.step == 4
    fit(config(bad_steps=3), folder, Faulty({}), watcher=Nobody(), resume=True)  # the data mended, it goes on
    assert not list(folder.failures.iterdir())


def test_a_run_saved_before_there_were_guards_goes_on(tmp_path):
    folder = RunFolder(tmp_path / "r")
    fit(tiny("points", steps=4), folder, watcher=Nobody())
    state = folder.checkpoints / "step-00000004/state.json"
    facts = json.loads(state.read_text())
    assert facts.pop("guard")["learned"] == 4
    text = json.dumps(facts)
    manifest = json.loads((state.parent / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    state.write_text(text)
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    assert fit(tiny("points", steps=6), folder, watcher=Nobody(), resume=True).step == 6


@pytest.mark.parametrize(
    "where",
    [
        "in the training process",
        pytest.param("in a worker", marks=pytest.mark.slow),  # the quick one is in tests/training/test_loader.py
        pytest.param("keeping the interpreter", marks=pytest.mark.slow),
    ],
)
def test_hung_worker(tmp_path, where):
    """A batch that never comes: within the time-out everyone's stack is written, and the process ends with status 1."""
    workers, fault = int(where == "in a worker"), "keep" if where == "keeping the interpreter" else "hang"
    limit = 15 if workers else 4  # a worker has to start within it
    with training(tmp_path, config={"workers": workers, "stall_after": limit}, faults={4: fault}) as child:
        wait_for(child, "step 3")
        children = descendants(child.pid)
        status, seconds, err = ends(child)
    assert status == 1
    assert limit - 1 < seconds < 2 * limit + 30
    assert RunFolder(tmp_path).step in (None, 4)
    if fault == "keep":  # no Python runs any more: the system wrote what it could
        assert "in keep_the_interpreter" in err
        return
    assert err.count("\n") == 1
    assert "stalled.txt" in err
    text = (tmp_path / "stalled.txt").read_text()
    assert "in hang" in text[text.index("worker processes:" if workers else "training process:") :]
    assert gone(children)


def test_a_watchdog_hears_every_beat_and_lets_a_stopped_process_sleep(tmp_path):
    """A beat now and then is enough; a process that was stopped for longer than the limit goes on."""
    script = f"""
        import os, time
        from pathlib import Path
        from ditlab.training.watchdog import Watchdog
        with Watchdog(Path({str(tmp_path)!r}), 3.0) as watchdog:
            for i in range(5):
                print("step", i, flush=True)
                time.sleep(1.0)
                watchdog.beat()
        print("done", flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    wait_for(child, "step 0")
    child.send_signal(signal.SIGSTOP)
    time.sleep(4)
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert out.endswith("done\n")
    assert not list(tmp_path.iterdir())


def test_workers_end_with_a_training_that_is_killed(tmp_path):
    with training(tmp_path, config={"workers": 1, "steps": 10**6}, faults={30: "hang"}) as child:
        wait_for(child, "step 3")
        children = descendants(child.pid)
        assert children
        child.kill()
        assert gone(children)

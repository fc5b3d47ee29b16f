"""What a person sees in the first minutes: how long it takes, what is being done, and what to type next."""

import io
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import ditlab
from ditlab.cli import lab
from ditlab.cli.main import guarded, main
from ditlab.cli.progress import Lines, _report
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import compilation as compiled
from ditlab.training import loop
from tests.cli.test_cli import SMALL, call
from tests.training.test_fit import Nobody, tiny


class Watching(Nobody):
    """Remembers what it was told, in order."""

    def __init__(self):
        self.left, self.told = {}, []

    def progress(self, step, loss, images_per_s, seconds_left):
        self.left[step] = (images_per_s, seconds_left)

    def doing(self, what):
        self.told.append(what)

    def begin(self, done, steps):
        self.told.append("begin")


@pytest.fixture
def clock(monkeypatch):
    """Of the recorder: the first step of each training takes 100 s, and each other one 2 s."""
    now = SimpleNamespace(seconds=0.0, steps=0)
    backward = loop._backward

    def slow(*arguments):
        now.seconds += 2.0 if now.steps else 100.0
        now.steps += 1
        return backward(*arguments)

    monkeypatch.setattr("ditlab.training.loop._backward", slow)
    monkeypatch.setattr("ditlab.training.recorder.time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_the_time_left_is_that_of_the_newest_steps_without_compilation(tmp_path, clock):
    """After a resume, too: both first steps take 50 times as long as the others."""
    seen, folder = Watching(), RunFolder(tmp_path / "r")
    config = tiny(steps=6, log_every=2)
    fit(config.model_copy(update={"steps": 4}), folder, watcher=seen)
    assert seen.left[2] == (config.batch_size / 2, 2 * 2.0)
    assert seen.left[4] == (config.batch_size / 2, 0)
    clock.steps, again = 0, Watching()
    fit(config.model_copy(update={"steps": 8}), folder, watcher=again, resume=True)
    assert again.left[6] == (config.batch_size / 2, 2 * 2.0)
    lines = [line for line in folder.read_metrics() if "loss" in line]
    assert [line["seconds"] for line in lines] == [102.0, 106.0, 208.0, 212.0]  # what passed is not smoothed


def test_a_time_left_that_nobody_knows_yet_is_not_told(tmp_path, clock):
    seen = Watching()
    fit(tiny(steps=2, log_every=1), RunFolder(tmp_path / "r"), watcher=seen)
    assert "left" not in _report(0.5, *seen.left[1])
    assert _report(0.5, *seen.left[2]).endswith("0:00 left")


def test_slow_steps_are_shown_between_the_lines_of_metrics(tmp_path, clock):
    seen, folder = Watching(), RunFolder(tmp_path / "r")
    fit(tiny(steps=8, log_every=8, record_every=8), folder, watcher=seen)
    assert list(seen.left) == [1, 4, 7, 8]  # 100 s, then each 6 s
    assert [line["step"] for line in folder.read_metrics() if "loss" in line] == [8]


def test_what_takes_long_before_the_first_step_is_told_before_it_is_done(tmp_path, monkeypatch):
    seen = Watching()
    config = tiny(steps=1, compile=True)
    monkeypatch.setattr("ditlab.training.compilation.why_not", lambda device: None)
    monkeypatch.setattr("ditlab.training.loop.compile_network", lambda network, whole: None)
    fit(config, RunFolder(tmp_path / "a"), watcher=seen)
    assert seen.told == ["compiling the network", "begin", "drawing the first pictures"]
    compiled.remember(config, 41.7)
    again = Watching()
    fit(config, RunFolder(tmp_path / "b"), watcher=again)
    assert again.told[0] == "compiling the network, about 42 s"
    other = Watching()
    fit(config.model_copy(update={"steps": 2}), RunFolder(tmp_path / "a"), watcher=other, resume=True)
    assert other.told[0].startswith("compiling the network, about")


def test_progress_without_a_terminal_is_in_lines(capsys):
    Lines().doing("drawing the first pictures")
    assert capsys.readouterr().err == "drawing the first pictures\n"


def test_training_ends_with_commands_that_can_be_pasted(in_tmp, capsys):
    status, _, err = call(capsys, "train", "circles", "--steps", "2", *SMALL, "--name", "a.b")
    assert status == 0
    assert err.endswith("\nNext:\n  ditlab sample runs/a.b\n  ditlab eval runs/a.b\n  ditlab lab runs/a.b\n")
    run = ditlab.load("a.b")
    assert "\n" not in repr(run)
    assert "runs/a.b" in repr(run)
    assert len(repr(run)) < 120


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["sample"], ["--n", "--label", "--out"]),
        (["eval"], ["--n", "--features"]),
        (["lab"], ["--port", "--export", "--browser"]),
        (["train", "circles"], ["--name", "--steps", "--batch-size", "--lr"]),
    ],
)
def test_help_begins_with_what_is_used_most(capsys, words, first):
    status, out, _ = call(capsys, *words, "--help")
    assert status == 0
    options = re.findall(r"--[a-z-]+", out.partition("--help")[2])
    assert [option for option in options if option in first][: len(first)] == first
    assert options[0] == first[0]


def test_warnings_of_libraries_stay_out_of_the_progress_and_ones_own_are_shown():
    def verb(_):
        warnings.warn_explicit("of torch", UserWarning, torch.__file__, 1)
        warnings.warn_explicit("of mine", UserWarning, "/home/me/features.py", 1)
        return 0

    with pytest.warns(UserWarning, match="of mine") as shown:
        assert guarded(verb, []) == 0
    assert [str(warning.message) for warning in shown] == ["of mine"]


class AtOnce:
    """A thread that is over when it has been started."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)


class Terminal(io.StringIO):
    """Somebody sits there."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("changes", "opened"),
    [({}, 1), ({"DISPLAY": ""}, 0), ({"SSH_CONNECTION": "a"}, 0), ({"stdin": io.StringIO()}, 0)],
)
def test_the_lab_opens_a_browser_where_somebody_sits_at_a_screen(monkeypatch, changes, opened):
    urls, environment = [], {"DISPLAY": ":0", "SSH_CONNECTION": None} | changes
    stdin = environment.pop("stdin", Terminal())
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(lab.webbrowser, "get", lambda: SimpleNamespace(open=urls.append))
    monkeypatch.setattr(lab.threading, "Thread", AtOnce)
    lab.open_browser("http://127.0.0.1/")
    assert urls == ["http://127.0.0.1/"] * opened


def test_the_lab_says_at_once_that_it_starts(in_tmp, capsys, monkeypatch):
    assert call(capsys, "train", "circles", "--steps", "2", *SMALL)[0] == 0
    said, opened = [], []

    def library(*_):
        said.append(capsys.readouterr().err)
        raise ditlab.InputError("far enough")

    monkeypatch.setattr("ditlab.lab.server.library.Library", library)
    monkeypatch.setattr("ditlab.cli.lab.open_browser", opened.append)
    assert main(["lab", "circles", "--no-browser", "--port", "0"]) == 2
    assert said == ["The lab starts: it reads circles.\n"]
    assert opened == []


def test_an_export_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(lab, "LINE_EVERY", 0.0)
    seen = Watching()
    told = lab._counting(seen)
    for path in ("flow", "attention/summary"):
        told(path)
    assert seen.told == [
        "answers of the page computed so far: 1, the last one of flow",
        "answers of the page computed so far: 2, the last one of attention/summary",
    ]

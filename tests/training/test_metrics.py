"""Metrics are read from either end, grow and are cut, whatever is in them; beside what Python's json makes of all."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest

from ditlab.cli.main import main
from ditlab.core.errors import DamagedMetrics, InputError
from ditlab.doctor.report import examine
from ditlab.lab.server.library import Library
from ditlab.lab.server.live import Watch
from ditlab.runs import metrics
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from tests.training.test_fit import Nobody, tiny

GOOD = {"step": 2, "loss": 0.5, "lr": 0.1, "grad_norm": 1.0, "images_per_s": 9.5, "seconds": 1.5}
ODD = [
    '{"step": 2, "loss": 1e999, "seconds": 1.5}',
    '{"step": 2, "loss": NaN, "seconds": 1.5}',
    '{"step": 2, "loss": -Infinity, "seconds": 1.5}',
    '{"step": 2, "loss": "much", "seconds": 1.5}',
    '{"step": 2, "loss": 1' + "0" * 400 + ', "seconds": 1.5}',
    '{"step": 2, "loss": 1' + "0" * 5000 + ', "seconds": 1.5}',
    '{"step": 2, "loss": null, "seconds": 1.5}',
    '{"step": 2, "loss": true, "seconds": 1.5}',
    '{"step": -1, "loss": 0.5, "seconds": 1.5}',
    '{"step": 1' + "0" * 30 + ', "loss": 0.5, "seconds": 1.5}',
    '{"step": 2.5, "loss": 0.5, "seconds": 1.5}',
    '{"step": "2", "loss": 0.5, "seconds": 1.5}',
    '{"step": 2, "loss": 0.5, "seconds": -1}',
    '{"step": 2, "loss": 0.5, "seconds": "long"}',
    '{"step": 2, "loss": 0.5}',
    '{"step": 2, "images_per_s": -1, "seconds": 1.5}',
    '{"step": 2, "grad_norm": [], "seconds": 1.5}',
    '{"step": 2, "skipped": 7, "seconds": 1.5}',
    '{"step": 2, "gates": {"attn": [0.1], "mlp": ["x"]}, "effective_depth": 1.0, "seconds": 1.5}',
    '{"step": 2, "gates": {"attn": [0.1, 0.2], "mlp": [0.1]}, "effective_depth": 1.0, "seconds": 1.5}',
    '{"step": 2, "gates": 7, "seconds": 1.5}',
    "[2, 0.5]",
    '"text"',
    "[" * 100_000,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, saved at 2 and 4, with a line of metrics for each two steps."""
    folder = RunFolder(tmp_path_factory.mktemp("metrics") / "run")
    fit(tiny("points", steps=4, checkpoint_every=2), folder, watcher=Nobody())
    return folder


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def written(file, count, seed=0):
    """Lines of odd lengths, one of them longer than what is read at a time."""
    draw = np.random.default_rng(seed)
    lines = [
        {"step": i, "loss": float(draw.random()), "seconds": i / 8, "more": "x" * n}
        for i, n in enumerate(draw.integers(0, 300, count).tolist())
    ]
    lines[count // 2]["more"] = "y" * (metrics.BLOCK + 7)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_both_ends_tell_the_same(file):
    lines = written(file, 700)
    assert list(metrics.read(file)) == lines
    assert list(metrics.newest(file)) == lines[::-1]
    with file.open("a") as stream:
        stream.write('{"step": 700, "lo')
    assert list(metrics.read(file)) == lines
    assert next(metrics.newest(file)) == lines[-1]
    assert [*metrics.read(file.with_name("none")), *metrics.newest(file.with_name("none"))] == []


@pytest.mark.parametrize("step", [-1, 0, 349, 350, 351, 698, 699])
def test_what_is_cut_is_what_lies_beyond(file, step):
    lines = written(file, 700)
    before = file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns
    with file.open("a") as stream:
        stream.write('{"step": 700, "lo')
    metrics.cut(file, step)
    assert list(metrics.read(file)) == [line for line in lines if line["step"] <= step]
    assert before[0].startswith(file.read_bytes())
    after = file.stat().st_mtime_ns
    metrics.cut(file, step)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before[1], after)
    assert list(file.parent.iterdir()) == [file]


def test_going_on_reads_the_end_of_metrics_alone(file):
    """Sixty gigabytes of nothing lie before two good lines."""
    file.touch()
    os.truncate(file, 60 * 10**9)
    with file.open("a") as stream:
        stream.write("\n")
        for step in (2, 4):
            stream.write(json.dumps(GOOD | {"step": step}) + "\n")
    assert next(metrics.newest(file))["step"] == 4
    metrics.cut(file, 2)
    assert next(metrics.newest(file))["step"] == 2
    watch = metrics.Growing(file)
    watch.pass_over(2)
    metrics.append(file, GOOD | {"step": 6})
    assert [line["step"] for line in watch.added()] == [2, 6]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_figure_that_no_training_writes_is_a_damaged_line(file, text):
    good = json.dumps(GOOD)
    file.write_text(f"{good}\n{text}\n")
    assert list(metrics.read(file)) == [GOOD]
    file.write_text(f"{good}\n{text}\n{good}\n")
    with pytest.raises(InputError, match="line 2, is damaged: delete that line"):
        list(metrics.read(file))
    assert list(metrics.newest(file)) == list(metrics.Growing(file).added()) == [GOOD, GOOD]


def test_odd_metrics_end_no_reader(trained, tmp_path, capsys):
    """Odd lines, and bytes that are no text, between and behind good ones: the doctor, the page, a resumption."""
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    good = folder.metrics_file.read_bytes().splitlines(keepends=True)
    odd = [text.encode() + b"\n" for text in ODD] + [bytes(range(256)), b"\xff\xfe\n", b"\n", b"\0" * 300 + b"\n"]
    folder.metrics_file.write_bytes(b"".join([good[0], *odd, *good[1:], *odd]))
    assert main(["doctor", str(folder.path), "--n", "64"]) in (0, 1)
    assert "line 2, is damaged" in capsys.readouterr().out
    library = Library(folder.path)
    assert library.losses(library.first)["loss_step"].tolist() == [2, 4]
    assert library.describe(library.first, None, "ema")["last_loss"] == 4
    assert [step for step, _ in Watch(folder).look()["losses"]] == [2, 4]
    assert main(["train", "--resume", str(folder.path), "--steps", "6"]) == 0
    assert [line["step"] for line in metrics.newest(folder.metrics_file) if "loss" in line] == [6, 4, 2]
    assert "Traceback" not in capsys.readouterr().err


def test_metrics_that_cannot_be_read_are_kept_and_told_of(trained, tmp_path, capsys):
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    binary = np.random.default_rng(0).bytes(200_000)
    folder.metrics_file.write_bytes(binary)
    assert main(["train", "--resume", str(folder.path), "--steps", "6"]) == 0
    assert "damaged-metrics.jsonl" in capsys.readouterr().err
    assert (folder.path / "damaged-metrics.jsonl").read_bytes() == binary
    assert [line["step"] for line in folder.read_metrics()] == [6]


def test_a_line_that_a_kill_cut_short_is_told_of_by_nobody(file):
    file.write_text(json.dumps(GOOD) + '\n{"step": 4, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedMetrics)
        metrics.cut(file, 4)
    assert file.read_text() == json.dumps(GOOD) + "\n"


def test_metrics_never_change_through_a_link(file, tmp_path):
    """A link is refused; of a copy by hard links, only the run's own is cut."""
    outside = tmp_path / "outside"
    outside.write_text("".join(json.dumps(GOOD | {"step": step}) + "\n" for step in (2, 4)))
    before = outside.read_bytes()
    file.symlink_to(outside)
    for act in (lambda: metrics.append(file, GOOD), lambda: metrics.cut(file, 0), lambda: list(metrics.newest(file))):
        with pytest.raises(InputError, match="is a link"):
            act()
    file.unlink()
    file.hardlink_to(outside)
    metrics.cut(file, 2)
    assert outside.read_bytes() == before
    assert len(list(metrics.read(file))) == 1


def test_a_pipe_in_the_place_of_metrics_is_not_waited_for(trained, tmp_path, capsys):
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "run"))
    folder.metrics_file.unlink()
    os.mkfifo(folder.metrics_file)
    library = Library(folder.path)
    assert library.catalogue()["runs"][0]["step"] == 4
    assert library.describe(library.first, None, "ema")["last_loss"] is None
    with pytest.raises(InputError, match="is a pipe"):
        library.losses(library.first)
    assert main(["train", "--resume", str(folder.path), "--steps", "6"]) == 2
    assert "is a pipe" in capsys.readouterr().err
    assert "is a pipe" in next(c for c in examine(folder.path, 64).checks if c.mark == "unknown").reason

"""What a terminal cannot take fails no training, and what the machine refuses is a line."""

import errno
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import filelock
import pytest

from ditlab.cli import faults, terminal
from ditlab.cli import main as program
from ditlab.cli.main import guarded, main
from ditlab.core import locks
from ditlab.core.errors import Caution, pasted
from tests.cli.test_cli import SMALL, call

FULL_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
FULL_MEMORY += " allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)"
SHORT = ["--steps", "4", *SMALL]


class Broken(io.TextIOBase):
    """A stream of a terminal that is gone."""

    def __init__(self, number=errno.EIO):
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    flush = write_through = lambda self: self.write("")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPIPE, errno.EBADF])
def test_a_terminal_that_went_away_ends_no_training(in_tmp, monkeypatch, number):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(number))
    assert main(["train", "circles", *SHORT]) == 0
    monkeypatch.undo()
    assert (in_tmp / "runs/circles/checkpoints/step-00000004").is_dir()


def test_a_closed_stderr_gives_its_number_to_no_file_of_a_run(in_tmp):
    """Started with stdout and stderr closed: what would be written to 2 lands nowhere."""
    code = "from ditlab.cli.terminal import fill_descriptors as f; f(); import os, sys; s = open('run', 'w'); "
    code += "os.write(2, b'lost'); print('lost', file=sys.stderr, flush=True); print('lost', flush=True); s.close()"
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code], check=False, cwd=in_tmp)
    assert done.returncode == 0
    assert (in_tmp / "run").read_bytes() == b""


def test_results_that_cannot_be_written_are_no_success(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    assert main(["--help"]) == 1
    assert "disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["data"], ["latents", "--help"], ["--version"]])
def test_help_into_a_pipe_that_closes_ends_quietly(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    assert main(words) == 1
    assert capsys.readouterr().err == ""


def test_the_end_of_the_program_does_not_try_a_broken_pipe_again(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(SystemExit) as stop:
        program.leave(1)
    assert stop.value.code == 1
    print("into nothing", flush=True)


def test_an_ascii_terminal_is_told_in_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with terminal.spoken(results_matter=True):
        print("✓ 8×8 → ✗ ╭─╮ é \udcff")
        sys.stdout.flush()
    assert raw.getvalue().decode("ascii") == "+ 8x8 -> x +-+ \\xe9 \\udcff\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 1, "ulimit -n"),
        (RuntimeError("unable to open file <a>: Too many open files (24)"), 1, "ulimit -n"),
        (MemoryError("Unable to allocate 7 TiB for an array"), 1, "--batch-size"),
        (RuntimeError(FULL_MEMORY), 1, "(DefaultCPUAllocator: can't allocate memory: you tried"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0"), 1, "CUDA out of memory)"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1, "Input/output error"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/x"), 2, "cannot use /etc/x"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "disk is full"),
    ],
)
def test_what_the_machine_refuses_is_one_line(capsys, error, status, said):
    def verb(_):
        raise error

    assert guarded(verb, ["train"]) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("ditlab: ")
    assert err.count("\n") == 1


def test_a_fault_of_ditlab_keeps_its_traceback():
    assert faults.in_words(RuntimeError("shapes differ"), "train") is None
    assert faults.in_words(KeyError("x"), "sample") is None


def test_out_of_memory_in_a_training_is_a_line_that_names_the_batch_size(in_tmp, capsys, monkeypatch):
    def too_much(*_):
        raise RuntimeError(FULL_MEMORY)

    monkeypatch.setattr("ditlab.training.loop._backward", too_much)
    status, _, err = call(capsys, "train", "circles", *SHORT, "--name", "large")
    assert status == 1
    assert "--batch-size" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("verb", "flag", "value"),
    [
        ("sample", "--steps", "1000000000000"),
        ("sample", "--n", "1000000000000"),
        ("eval", "--steps", "1000000000000"),
        ("eval", "--n", "1000000000000"),
        ("eval", "--batch-size", "1000000000000"),
        ("eval", "--nll-n", "1000000000000"),
        ("doctor", "--n", "1000000000000"),
    ],
)
def test_numbers_beyond_all_measure_are_refused_at_once(capsys, verb, flag, value):
    status, _, err = call(capsys, verb, "nowhere", flag, value)
    assert status == 2
    assert err.count("\n") == 1
    assert flag.strip("-").replace("-", "_") in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "r", "--steps", "1e12"], "Error parsing --steps: "),
        (["sample", "r", "--stepz", "1"], "Unrecognized options: --stepz, 1; perhaps you meant --steps"),
        (["sample"], "Missing from ditlab sample: RUN"),
        (["eval", "r", "--labels", "x"], "'balanced', 'data'"),
        (["sample", "r", "--n"], "Missing value for argument '--n'"),
        (["train", "circles", "--sampling.stepz", "4"], "perhaps you meant --sampling.steps"),
    ],
)
def test_options_that_are_wrong_get_one_line(capsys, words, said):
    status, out, err = call(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert err.startswith("ditlab: ")
    assert "--help lists its options" in err


def test_more_samples_than_memory_are_refused_before_any_is_drawn(in_tmp, capsys, monkeypatch):
    assert call(capsys, "train", "circles", *SHORT, "--name", "a")[0] == 0
    monkeypatch.setattr("ditlab.core.malloc.physical", lambda: 1e9)
    status, _, err = call(capsys, "sample", "a", "--n", 10**6, "--out", "a.npz")
    assert (status, "GB of memory" in err) == (2, True)
    assert err.count("\n") == 1


def test_who_waits_for_a_lock_says_for_whom(in_tmp, monkeypatch):
    """Another process holds it, and is stopped; the wait begins with a word."""
    lock = in_tmp / "lock"
    code = f"import os,signal,sys,filelock; lock = filelock.FileLock({str(lock)!r}); lock.acquire(); "
    code += "print(1, flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            os.waitid(os.P_PID, other.pid, os.WSTOPPED)
            monkeypatch.setattr(locks, "SILENT", 0.01)
            held = f"runs/a is being trained by process {other.pid} .*kill -CONT"
            with pytest.raises(ValueError, match=held), locks.alone(lock, "runs/a is being trained", patience=0.01):
                pass
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", Caution)
                monkeypatch.setattr(filelock.FileLock, "acquire", freeing(other, filelock.FileLock.acquire))
                with locks.alone(lock, "an index is being written"):
                    pass
            assert f"process {other.pid} (which is stopped" in str(told[0].message)
        finally:
            other.kill()


def freeing(other, acquire):
    """``acquire`` that ends the other process before it waits without a limit."""

    def acquire_or_free(lock, *arguments, **options):
        if options.get("timeout") is None:
            other.kill()
            other.wait()
        return acquire(lock, *arguments, **options)

    return acquire_or_free


def test_run_names_that_are_no_text_are_shown_and_can_be_pasted(in_tmp, capsys):
    assert call(capsys, "train", "circles", *SHORT, "--name", "a")[0] == 0
    odd = os.fsdecode(b"runs/b\xff")
    Path("runs/a").rename(odd)
    status, _, err = call(capsys, "sample", odd)
    assert (status, err.count("\n"), "not UTF-8" in err) == (2, 1, True)
    Path(odd).rename(odd := "runs/é\n\x1b[31m'c")
    for words in (
        ["sample", odd, "--n", "2", "--steps", "1"],
        ["doctor", odd, "--n", "64"],
        ["train", "--resume", odd],
    ):
        status, out, err = call(capsys, *words, *(["--steps", "5"] if words[0] == "train" else []))
        assert status in (0, 1), err
        assert "\x1b" not in out + err
        assert "Traceback" not in err
    shown = err.split("Next:\n  ditlab sample ")[1].split("\n")[0]
    told = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True).stdout
    assert told == os.fsencode(odd)
    assert pasted("runs/a b") == "'runs/a b'"


def test_a_process_that_cannot_join_the_others_says_why(in_tmp, monkeypatch, capfd):
    """The first one does not hear of it."""
    for name, value in {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "points", "--device", "cpu"]) == 2
    assert (
        capfd.readouterr().err == "ditlab: RANK=5 in the environment is not below WORLD_SIZE=2: start with torchrun\n"
    )

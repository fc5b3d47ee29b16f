"""``ditlab VERB ...``: find the verb, run it, and turn what goes wrong into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from ditlab.cli.bench import bench
from ditlab.cli.data import data
from ditlab.cli.doctor import check, doctor
from ditlab.cli.faults import in_words
from ditlab.cli.interop import export, import_
from ditlab.cli.lab import lab
from ditlab.cli.latents import latents
from ditlab.cli.sample import evaluate, sample
from ditlab.cli.terminal import announce_loading, fill_descriptors, hush, spoken
from ditlab.cli.train import demo, ema, train
from ditlab.cli.train_arguments import take
from ditlab.core import plugins
from ditlab.core.errors import Caution, ConfigError, InputError, Interrupted, TrainingError, printable, speaks

VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "demo": (demo, "train the smallest DiT on circles, draw some, measure them"),
    "train": (train, "train a recipe, or resume a run"),
    "sample": (sample, "draw samples from a run"),
    "eval": (evaluate, "measure a run's samples"),
    "ema": (ema, "make weight averages of any length from a run"),
    "doctor": (doctor, "say whether a run is healthy"),
    "check": (check, "check that a run's files are intact"),
    "lab": (lab, "look inside a run, in a browser"),
    "bench": (bench, "measure how fast this machine trains and samples, compared with peers"),
    "data": (data, "check PATH: check images or latents before training"),
    "latents": (latents, "encode images once, for training on their latents"),
    "import": (import_, "make a run from a published checkpoint"),
    "export": (export, "write a run's network in other formats"),
}
TOGETHER = ("train", "sample", "eval", "latents")  # what several processes can share
APART = ("latents",)  # whose processes do not hear of one another's errors
SIGNALLED = ("lab",)  # it takes signals itself; training takes them too, while it can save

LIBRARIES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(__file__).parents[1]))


def usage() -> str:
    """What ``ditlab --help`` prints."""
    lines = "\n".join(f"  {name:<8}{summary}" for name, (_, summary) in VERBS.items())
    return (
        "usage: ditlab VERB [OPTIONS]\n\n"
        "Train, sample, measure and look inside diffusion transformers.\n\n"
        f"{lines}\n\n"
        "ditlab VERB --help lists its options. A first run: ditlab demo\n"
        "--plugin MODULE, with any verb and repeatable: import a module or a .py file first, whose recipes, data\n"
        "sets, networks, processes, solvers, conditionings and losses are then known by name"
    )


def program() -> NoReturn:
    """``ditlab`` as a program: ``main``, and the end of the process."""
    fill_descriptors()
    announce_loading()
    try:
        status = main()
    except SystemExit:  # how tyro ends
        hush()
        raise
    leave(status)


def leave(status: int) -> NoReturn:
    """End the process; one of several at once, for a thread of torch's may abort a job that is done as Python ends."""
    hush()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(status)
    raise SystemExit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0 done, 2 the input is wrong, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 1 anything else.
    """
    arguments, named = without_plugins(sys.argv[1:] if arguments is None else arguments)
    with spoken(results_matter=arguments[:1] != ["train"]):  # whose results are in the run
        return guarded(partial(_chosen, named), arguments)


def _chosen(named: list[str], arguments: Sequence[str]) -> int:
    """Import the plug-ins, and run the verb that is the first word."""
    plugins.load(named)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"ditlab {version('ditlab')}")
        return 0
    if arguments[0] not in VERBS:
        near = get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean 'ditlab {near[0]}'?" if near else f"choose one of {', '.join(VERBS)}"
        raise InputError(f"unknown verb {arguments[0]!r}; {hint}")
    if os.environ.get("WORLD_SIZE", "1") != "1" and arguments[0] not in TOGETHER:
        raise InputError(f"ditlab {arguments[0]} runs in one process: start it without torchrun")
    return VERBS[arguments[0]][0](arguments[1:])


def without_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without ``--plugin MODULE``, and the modules, which may be empty words."""
    words, named = list(arguments), list[str]()
    while (module := take(words, "--plugin")) is not None:
        named.append(module)
    return words, named


def guarded(verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a verb, or whichever the words begin with; what a person can mend ends in one line instead of a traceback."""
    word = arguments[0] if arguments else ""
    apart = word in APART
    try:
        with _warnings_in_one_line(), nullcontext() if word in SIGNALLED else _terminable():
            try:
                return verb(arguments)
            finally:
                sys.stdout.flush()
    except (InputError, ConfigError) as error:
        return complain(str(error), 2, apart)
    except TrainingError as error:
        return complain(str(error), 1)
    except Interrupted as stop:
        return complain(str(stop), 128 + stop.signal_number)
    except _Terminated:
        return complain("terminated", 143)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except BrokenPipeError:
        return 1  # the reader has gone
    except Exception as error:
        told = in_words(error, word)
        if told is None:
            raise
        return complain(*told, apart)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Say our own warnings as everything else is said, and those of a person's own code as Python does.

    Those of libraries, which whoever types a command can do nothing about, are left out, but for Python's option -W.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", Caution)
        show = warnings.showwarning

        def say(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Caution):
                complain(str(message), 0)
            elif sys.warnoptions or not filename.startswith(LIBRARIES):
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = say
        yield


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: to be cleaned up after like Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM be raised where Python is; a second one ends the process."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python delivers no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def complain(message: str, status: int, apart: bool = False) -> int:
    """Print one line to stderr; return the status. What the first of several processes says too is said once.

    The others speak of what is theirs alone, perhaps: status 1, or anything where each works ``apart``.
    """
    if speaks():
        print(f"ditlab: {printable(message)}", file=sys.stderr)
    elif status == 1 or apart:
        print(f"ditlab, process {os.environ['RANK']}: {printable(message)}", file=sys.stderr)
    return status

"""Contestants in processes of their own, which hold the clock while it is their turn.

What one of them does to its process is felt by all that share it: what malloc is told to keep, huge pages, what an
allocator has learned of the sizes that come. So each has on a CPU what it would have alone. On a GPU they share a
process, for each would keep a memory of its own there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from ditlab.bench.rounds import Elsewhere, Work, is_out_of_memory, seconds
from ditlab.bench.sampling import sampling_turns
from ditlab.bench.sizes import Size, Task
from ditlab.bench.training import DEFAULT, Entry, training_turns
from ditlab.training import signals

KILLED = -9  # by Linux, of processes that want more memory than there is


@contextmanager
def apart(entries: list[Entry], task: Task, size: Size) -> Iterator[dict[Entry, Work]]:
    """Turns of these, on the CPU: a process for each contestant, and one for the default; they end with the block."""
    groups: dict[tuple[str, bool], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.contestant, entry.way == DEFAULT), []).append(entry)
    with ExitStack() as stack:
        found = {group: stack.enter_context(_Process(own, task, size)) for group, own in groups.items()}
        yield {e: Elsewhere(partial(found[e.contestant, e.way == DEFAULT].seconds, e)) for e in entries}


class _Process:
    """A process that builds some entries when it is first asked, and times them."""

    def __init__(self, entries: list[Entry], task: Task, size: Size) -> None:
        asked = {"entries": entries, "task": task, "size": asdict(size), "threads": torch.get_num_threads()}
        self.names = ", ".join(" ".join(entry) for entry in entries)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ditlab.bench.apart", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def seconds(self, entry: Entry, calls: int) -> float:
        """Of one call, the mean over so many.

        Raises:
            MemoryError: there was not enough.
            RuntimeError: it failed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps({"entry": entry, "calls": calls}), file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            error = MemoryError if self.process.wait() == KILLED else RuntimeError
            raise error(f"the process of {self.names} ended")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise (MemoryError if answer["memory"] else RuntimeError)(answer["failed"])
        return float(answer["seconds"])


def main() -> None:
    """Time what comes asked on stdin, a line each, until it ends; answers go to stdout."""
    signals.ignore()  # of Ctrl-C the process that asks hears too, and ends this one
    answers, sys.stdout = sys.stdout, sys.stderr
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    device = torch.device("cpu")
    turns: dict[Entry, Work] = {}
    build = sampling_turns if asked["task"] == "sample" else training_turns
    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        try:
            turns = turns or build([Entry(*entry) for entry in asked["entries"]], Size(**asked["size"]), device)
            answer = {"seconds": seconds(turns[Entry(*wanted["entry"])], wanted["calls"], device)}
        except (MemoryError, RuntimeError) as error:
            answer = {"failed": str(error) or type(error).__name__, "memory": is_out_of_memory(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""Time contestants as their users run them: each in its own process, which measures its own turns.

Settings of malloc, huge pages and the state of an allocator affect everything in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from ditlab.bench.rounds import Elsewhere, Work, is_out_of_memory, seconds
from ditlab.bench.sampling import sampling_turns
from ditlab.bench.sizes import Size, Task
from ditlab.bench.training import Entry, training_turns, use_measured_kernels
from ditlab.training import signals

KILLED = -9  # return code of processes that Linux kills for their memory
PATIENCE = 10.0  # seconds to wait for a process to end


@contextmanager
def apart(entries: list[Entry], task: Task, size: Size) -> Iterator[dict[Entry, Work]]:
    """Turns of these entries on the CPU, each in a process that ends with the block."""
    with ExitStack() as stack:
        yield {entry: Elsewhere(stack.enter_context(_Process(entry, task, size)).seconds) for entry in entries}


class _Process:
    """A process that builds an entry when first asked, and times it."""

    def __init__(self, entry: Entry, task: Task, size: Size) -> None:
        asked = {"entry": entry, "task": task, "size": asdict(size), "threads": torch.get_num_threads()}
        self.name = " ".join(entry)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ditlab.bench.apart", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # so it ends, along with the compiler's processes
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def seconds(self, calls: int) -> float:
        """Mean seconds of a call.

        Raises:
            MemoryError: out of memory.
            RuntimeError: it failed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            print(calls, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            error = MemoryError if self.process.wait() == KILLED else RuntimeError
            raise error(f"the process of {self.name} ended")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise (MemoryError if answer["memory"] else RuntimeError)(answer["failed"])
        return float(answer["seconds"])


def main() -> None:
    """Time as many calls as each line of stdin says; answers go to stdout."""
    signals.ignore()  # Ctrl-C reaches the parent too, which ends this process
    answers, sys.stdout = sys.stdout, sys.stderr
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    use_measured_kernels(torch.device("cpu"))
    entry, size, device = Entry(*asked["entry"]), Size(**asked["size"]), torch.device("cpu")
    turns: dict[Entry, Work] = {}
    build = sampling_turns if asked["task"] == "sample" else training_turns
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            turns = turns or build([entry], size, device)
            answer = {"seconds": seconds(turns[entry], int(line), device)}
        except (MemoryError, RuntimeError) as error:
            answer = {"failed": str(error) or type(error).__name__, "memory": is_out_of_memory(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

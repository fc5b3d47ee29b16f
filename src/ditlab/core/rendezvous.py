"""How the processes of a job find one another; while they wait, the missing ones are named."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from ditlab.core.errors import InputError

FIRST_WORD = 10.0  # seconds before the missing ones are named; then again after 60 s, 360 s, ...
AGAIN = 6
BETWEEN_LOOKS = 0.05  # seconds
NAMED = 8  # most processes listed in a message


class Waiting:
    """Reports now and then what is being waited for, and gives up after ``limit`` seconds."""

    def __init__(self, limit: float, say: Callable[[str], None]) -> None:
        self.limit, self.say = limit, say
        self.begun, self.due, self.speaks = time.monotonic(), FIRST_WORD, True

    def on(self, missing: str) -> None:
        """Wait a moment longer for what ``missing`` describes.

        Raises:
            InputError: the limit is over.
        """
        waited = time.monotonic() - self.begun
        if waited > self.limit:
            raise InputError(f"{missing}, within {waited:.0f} s")
        if self.speaks and waited >= self.due:
            self.due = AGAIN * waited
            self.say(f"{missing}, for {waited:.0f} s; waiting for {self.limit - waited:.0f} s more")
        time.sleep(BETWEEN_LOOKS)


def meet(rank: int, world: int, limit: float, say: Callable[[str], None]) -> Store:
    """Wait until all processes of a job have arrived at the store at MASTER_ADDR:MASTER_PORT, and return it.

    Args:
        rank: rank of this process.
        world: number of processes.
        limit: seconds to wait for the others.
        say: called after ten seconds with a line that names the missing ones.

    Raises:
        InputError: a process did not arrive, or the port is invalid.
    """
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isdecimal() and int(port) < 2**16):
        raise InputError(f"MASTER_PORT={port} in the environment is not a port: start with torchrun")
    place, waiting = f"{host}:{port} (MASTER_ADDR:MASTER_PORT)", Waiting(limit, say)
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        _reach(host, int(port), f"process {rank} of {world} finds nobody at {place}", waiting)
    silent = threading.Timer(FIRST_WORD, say, [f"process {rank} of {world}: what listens at {place} does not answer"])
    silent.daemon = True
    silent.start()
    try:
        common = {"timeout": timedelta(seconds=limit), "wait_for_workers": False}
        store: Store = TCPStore(host, int(port), world, serves, multi_tenant=serves, **common)  # type: ignore[arg-type]
    finally:
        silent.cancel()
    store = PrefixStore("ditlab", store)
    store.set(f"here/{rank}", "")
    waiting.speaks = rank == 0  # the others would say the same
    while missing := [other for other in range(world) if not store.check([f"here/{other}"])]:
        waiting.on(f"{_named(missing)} of {world} did not come to {place}")
    return store


def _reach(host: str, port: int, missing: str, waiting: Waiting) -> None:
    """Wait until a process listens at an address."""
    while True:
        try:
            socket.create_connection((host, port), timeout=FIRST_WORD / 2).close()
            return
        except OSError as error:
            waiting.on(f"{missing}: {error.strerror or error}")


def _named(ranks: list[int]) -> str:
    """At most ``NAMED`` processes, in words."""
    shown = ", ".join(map(str, ranks[:NAMED])) + (", ..." if len(ranks) > NAMED else "")
    return f"process {shown}" if len(ranks) == 1 else f"processes {shown}"

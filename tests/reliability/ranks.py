"""A process that has everything imported and no threads, and runs jobs of several processes in forks of itself.

A line on stdin is JSON: ``folder`` to work in, ``words`` of a ``ditlab`` command, how many processes (``world``),
``log``, the beginning of the name of a file for what each of them saw, and ``faults``, any of: ``die_at``, the number
of the operation on the disk before which the first one kills them all; ``nan_at``, [rank, step] of a loss that is made
NaN; ``slow``, seconds that each file takes the first one to write; ``elsewhere``, what the last one's environment says;
``steady``, whether the loss draws nothing; ``others``, what all but the first one do instead; ``apart``, the folder
that each works in; ``newer``, the last one's version of torch; ``dies_drawing``, whether the last one is killed when it
draws; ``patience``, seconds until it is said who is missing; ``alone``, whether the others look for the first one where
it is not. Answers with the numbers of the forks, and later with how they ended.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch._dynamo

import ditlab.cli.progress
import ditlab.evaluation.evaluate
import ditlab.train  # noqa: F401 - so that forks need not import it
from ditlab.cli.main import leave, main
from ditlab.core import disk, rendezvous
from ditlab.diffusion.process import Process
from ditlab.runs import agreement
from tests.reliability.faults import At, torn


def log_steps(file, nan_at, steady):
    """Note for each loss which data it is about to see; spoil one, or let none depend on chance."""
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    losses = Process.loss
    count = 0

    def loss(self, x0, cond=None, *, generator=None):
        nonlocal count
        count += 1
        rows = [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest()[:16] for row in x0]
        os.write(stream, (" ".join(rows) + "\n").encode())
        if steady:
            return (self.network(x0, torch.full((len(x0),), 0.5), cond) - x0).square().mean()
        value = losses(self, x0, cond, generator=generator)
        return value * torch.nan if count == nan_at else value

    Process.loss = loss


def train(rank, port, folder, words, world, log, faults):
    """What a fork does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    own = free_port() if rank and faults.get("alone") else port
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(own)}
    if rank == world - 1:
        os.environ |= faults.get("elsewhere", {})
    os.chdir(faults["apart"][rank] if "apart" in faults else folder)
    with Path(f"{log}.{rank}.err").open("a") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    nan_at = faults.get("nan_at", [None, None])
    log_steps(f"{log}.{rank}", nan_at[1] if nan_at[0] == rank else None, faults.get("steady"))
    if "die_at" in faults and rank == 0:

        def die(operation, path):
            torn(operation, path)
            os.killpg(0, signal.SIGKILL)

        disk.before = At(faults["die_at"], die)
    if "slow" in faults and rank == 0:
        disk.before = lambda operation, _: time.sleep(faults["slow"]) if operation == "write" else None
    if "patience" in faults:
        rendezvous.FIRST_WORD = faults["patience"]
    if rank == world - 1 and "newer" in faults:
        agreement.versions = lambda: {"torch": faults["newer"]}
    if rank == world - 1 and "dies_drawing" in faults:
        Process.sample = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    leave(main(faults["others"] if rank and "others" in faults else words))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        told, port, forks = json.loads(line), free_port(), []
        for rank in range(told["world"]):
            child = os.fork()
            if child == 0:
                sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
                train(rank, port, **told)
            forks.append(child)
            os.setpgid(child, forks[0])
        print(json.dumps(forks), flush=True)
        ended, since = {}, None
        while len(ended) < len(forks):
            for child in set(forks) - set(ended):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    ended[child] = os.waitstatus_to_exitcode(status)
                    since = since or (time.monotonic() if ended[child] else None)
            if since and time.monotonic() - since > 10:  # as torchrun does with what is left of a job
                for child in set(forks) - set(ended):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        print(json.dumps([ended[child] for child in forks]), flush=True)

"""A process that has everything imported and no threads, and trains in forks of itself: one for each line on stdin.

A line is JSON: ``folder`` to work in, ``words`` of a ``ditlab`` command, ``log``, a file for what each step saw, and
``die_at``, the number of the operation on the disk before which the fork kills itself, or null. Answers with the number
of the fork, and later with how it ended.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch._dynamo

import ditlab.cli.progress
import ditlab.evaluation.evaluate
import ditlab.train  # noqa: F401 - so that forks need not import it
from ditlab.cli.main import main
from ditlab.core import disk
from ditlab.diffusion.process import Process
from tests.reliability.faults import At, die


def log_steps(file):
    """Note for each loss, in one write, which draws it is about to make and of what data."""
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    losses = Process.loss

    def loss(self, x0, cond=None, *, generator=None):
        seen = hashlib.sha256(x0.contiguous().numpy().tobytes())
        for name in sorted(cond or {}):
            seen.update(cond[name].contiguous().numpy().tobytes())
        os.write(stream, f"{generator.initial_seed()} {seen.hexdigest()}\n".encode())
        return losses(self, x0, cond, generator=generator)

    Process.loss = loss


def train(folder, words, log, die_at):
    """What a fork does."""
    os.chdir(folder)
    with Path(log).with_suffix(".err").open("a") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    log_steps(log)
    if die_at is not None:
        disk.before = At(die_at, die)
    sys.exit(main(words))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
            train(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

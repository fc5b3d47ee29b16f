"""Many processes: which one this is, what all agree on, and tensors that are sharded over them.

``torchrun`` starts them, or anything that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
Networks and diffusion processes know nothing of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from ditlab.core.errors import Caution, InputError, TrainingError, first_line, speaks
from ditlab.core.rendezvous import meet

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MARGIN = 120.0  # seconds that collectives wait beyond the watchdog, so that it can write its stacks first
LONGEST = 10**9.0  # upper limit of a timeout in seconds
BETWEEN_LOOKS = 0.05  # seconds
DIFFERENCES = 3  # most differences listed in a message
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, which must all make the same calls in the same order; by default a single one."""

    rank: int = 0
    world: int = 1  # number of processes
    store: Store | None = None  # key-value store that they share

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def told(self, values: Sequence[float]) -> list[list[float]]:
        """The values of each process, in order of rank, equal everywhere to the last bit."""
        own = torch.tensor(values, dtype=torch.float64)
        return [own.tolist()] if self.world == 1 else [piece.tolist() for piece in self._gathered(own)]

    def gather(self, tensor: Tensor) -> Tensor:
        """The equally shaped tensors of all processes, concatenated along the first dimension, on the CPU."""
        tensor = tensor.cpu()
        return tensor if self.world == 1 else torch.cat(self._gathered(tensor.contiguous()))

    def collect(self, tensor: Tensor) -> Tensor:
        """As ``gather``, but only in the first process; the others get no rows."""
        tensor = tensor.cpu().contiguous()
        if self.world == 1:
            return tensor
        pieces = [torch.empty_like(tensor) for _ in range(self.world)] if self.first else None
        dist.gather(tensor, pieces)
        return tensor[:0] if pieces is None else torch.cat(pieces)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        pieces = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(pieces, tensor)
        return pieces

    def decided(self, action: Callable[[], T]) -> T:
        """Run an action in the first process; all return its value, or raise its error."""
        if self.world == 1:
            return action()
        outcome: list[Any] = [*_tried(action)] if self.first else [None, None]
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def together(self, action: Callable[[], T]) -> T:
        """Run an action in each process; if one raises an error, all do."""
        if self.world == 1:
            return action()
        value, error = _tried(action)
        _raise_first(error, self.all(error))
        return value

    def all(self, value: T) -> list[T]:
        """The values of all processes, in order of rank; picklable objects, not tensors."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def spread(self, actions: Sequence[Callable[[], T]]) -> list[T]:
        """Divide actions among the processes; all get all values, in order: picklable objects, not tensors."""
        own = {i: actions[i]() for i in range(self.rank, len(actions), self.world)}
        every = {i: value for some in self.all(own) for i, value in some.items()}
        return [every[i] for i in range(len(actions))]

    def share(self, count: int) -> range:
        """This process's share of ``range(count)``. All are equally long, so the last may go beyond it."""
        each = math.ceil(count / self.world)
        return range(self.rank * each, (self.rank + 1) * each)

    def agree(self, facts: Callable[[], Mapping[str, object]]) -> None:
        """Check that all processes were started alike.

        Args:
            facts: returns what must be equal, by name; values are compared as text.

        Raises:
            InputError: something differs; raised in every process, with the first differences.
        """
        if self.world == 1:
            return
        text = {name: str(value) for name, value in self.together(facts).items()}
        digest = hashlib.sha256(repr(sorted(text.items())).encode("utf-8", "surrogatepass")).digest()
        if len(set(self.all(digest))) == 1:
            return
        told = self.all(text)
        other = next(i for i, theirs in enumerate(told) if theirs != told[0])
        names = [name for name in told[0] | told[other] if told[0].get(name) != told[other].get(name)]
        words = [
            f"{name} is {_short(told[0], name)} in process 0 and {_short(told[other], name)} in process {other}"
            for name in names[:DIFFERENCES]
        ]
        more = f" (and {len(names) - DIFFERENCES} more)" if len(names) > DIFFERENCES else ""
        raise InputError(
            f"the {self.world} processes disagree: {'; '.join(words)}{more}: start all with the same command, versions "
            f"and data"
        )

    def at_length(self, name: str, action: Callable[[], T], beat: Callable[[], None] = lambda: None) -> T:
        """``together`` for actions that may take longer than the timeout of collectives.

        The processes wait for each other in the store, without a timeout: if one dies, the launcher ends the others.

        Args:
            name: names this wait, uniquely in a job.
            action: what each process does.
            beat: called again and again while waiting.
        """
        if self.store is None:
            return action()
        value, error = _tried(action)
        self.store.set(f"{name}/{self.rank}", "here")
        while not self.store.check([f"{name}/{rank}" for rank in range(self.world)]):
            beat()
            time.sleep(BETWEEN_LOOKS)
        _raise_first(error, self.all(error))
        return value


def _short(facts: Mapping[str, str], name: str) -> str:
    return facts.get(name, "not given")[:60]


def _tried(action: Callable[[], T]) -> tuple[T, None] | tuple[Any, Exception]:
    """The value of an action and its error, the error in a form that can be pickled."""
    try:
        return action(), None
    except Exception as error:
        return None, _portable(error)


def _raise_first(own: Exception | None, errors: Sequence[Exception | None]) -> None:
    """Raise this process's own error, or else the first one of the others, if there is any."""
    first = next((error for error in errors if error is not None), None)
    if first is not None:
        raise first if own is None else own


def _portable(error: Exception) -> Exception:
    """The error, or one with the same message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


ALONE = Ranks()


def _warn(message: str) -> None:
    warnings.warn(message, Caution, 3)


def join(device: str = "auto", patience: float = 1800.0, say: Callable[[str], None] = _warn) -> Ranks:
    """Connect with the other processes of this job, until this one exits.

    The process group is never destroyed: that can deadlock between a gloo thread that still holds a tensor and the
    holder of Python's lock (torch 2.13).

    Args:
        device: the configured device; on CUDA each process takes the GPU of its LOCAL_RANK.
        patience: seconds that a process may keep the others waiting.
        say: called with a line that names missing processes, after ten seconds, or says why this one cannot join.

    Raises:
        InputError: variables are missing from the environment, a process did not arrive, or has no GPU of its own.
    """
    try:
        return _joined(device, patience, say)
    except InputError as error:
        if not speaks():  # the command line prints the error of the first process only
            say(str(error))
        raise


def _joined(device: str, patience: float, say: Callable[[str], None]) -> Ranks:
    """``join`` without the report."""
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        return ALONE
    if missing := [name for name in NEEDED if name not in os.environ]:
        raise InputError(f"WORLD_SIZE={world}, but {' and '.join(missing)} are not set: start with torchrun")
    on_cuda = device in ("cuda", "auto") and torch.cuda.is_available()
    if on_cuda:
        local = _number("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; use "
                f"--nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local)
    limit, rank = min(2 * patience + MARGIN, LONGEST), _number("RANK", 0)
    if rank >= world:
        raise InputError(f"RANK={rank} in the environment is not below WORLD_SIZE={world}: start with torchrun")
    try:
        shared = meet(rank, world, limit, say)
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        dist.init_process_group(backend, store=shared, rank=rank, world_size=world, timeout=timedelta(seconds=limit))
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the {world} processes of this job cannot be joined: {first_line(error)}") from None
    return Ranks(rank, world, PrefixStore("notes", shared))


def _number(name: str, otherwise: int) -> int:
    """A whole number from the environment."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise InputError(f"{name}={text} in the environment is not a number: start with torchrun")
    return int(text)


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process was lost, or did not answer in time."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


def _is_shared(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether it is a ``DTensor``, whose module takes a second to import."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if _is_shared(tensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """First row and number of rows of this process's shard of a tensor; all rows if it is not sharded."""
    if not _is_shared(tensor):
        return 0, len(tensor)
    (piece,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return piece.offsets[0], piece.sizes[0]


def shared_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's shard of a tensor that all processes have, if ``like`` is sharded."""
    if not _is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

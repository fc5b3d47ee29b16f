"""Training in many processes: which one this is, what all agree on, and how a network is spread over them.

``torchrun`` starts them, or anything that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
Networks and processes (in the sense of diffusion) know nothing of it.
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

from ditlab.core.errors import Caution, InputError, TrainingError, speaks
from ditlab.core.rendezvous import meet

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MARGIN = 120.0  # seconds that the library waits longer than the watchdog, which leaves stacks
LONGEST = 10**9.0  # seconds that a wait may be asked to last
BETWEEN_LOOKS = 0.05  # seconds
DIFFERENCES = 3  # between processes, that are named
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, which see the same calls in the same order; without any argument, the only one.

    Args:
        rank: which one this is, from 0.
        world: how many there are.
        store: what they can leave each other notes in.
    """

    rank: int = 0
    world: int = 1
    store: Store | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def told(self, values: Sequence[float]) -> list[list[float]]:
        """What each process said, in order of rank, the same everywhere to the last bit."""
        own = torch.tensor(values, dtype=torch.float64)
        return [own.tolist()] if self.world == 1 else [piece.tolist() for piece in self._gathered(own)]

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, alike in shape, one after the other along their first dimension, on the CPU."""
        tensor = tensor.cpu()
        return tensor if self.world == 1 else torch.cat(self._gathered(tensor.contiguous()))

    def collect(self, tensor: Tensor) -> Tensor:
        """What ``gather`` gives, in the first process alone; the others get none of it, and hold none of it."""
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
        """What comes of an action that the first process takes: its value, or what it raised, is everyone's."""
        if self.world == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = _portable(error)
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def together(self, action: Callable[[], T]) -> T:
        """What comes of an action that each process takes; what one of them raised is raised by all."""
        if self.world == 1:
            return action()
        value, error = _tried(action)
        _raise_first(error, self.all(error))
        return value

    def all(self, value: T) -> list[T]:
        """The values of all processes, in order of rank: plain things, not tensors."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def spread(self, actions: Sequence[Callable[[], T]]) -> list[T]:
        """The values of actions, in order, of which each process takes some: plain things, not tensors."""
        own = {i: actions[i]() for i in range(self.rank, len(actions), self.world)}
        every = {i: value for some in self.all(own) for i, value in some.items()}
        return [every[i] for i in range(len(actions))]

    def share(self, count: int) -> range:
        """The numbers, of so many, that are this process's to do; all have as many, so some may go beyond the count."""
        each = math.ceil(count / self.world)
        return range(self.rank * each, (self.rank + 1) * each)

    def agree(self, facts: Callable[[], Mapping[str, object]]) -> None:
        """See that all processes are at the same thing.

        Args:
            facts: gives what has to be the same, by name; the values are compared as text.

        Raises:
            InputError: they are not, in every process; some of what differs is named.
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
        """``together`` for what may take longer than the processes have patience for otherwise.

        They meet in the store, where nothing is said of time: whoever dies meanwhile, the launcher ends the others.

        Args:
            name: of this meeting, of which there is one in a job.
            action: what each process does.
            beat: is called now and then while the others are waited for.
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
    """What comes of an action, or what it raised, as another process can read it."""
    try:
        return action(), None
    except Exception as error:
        return None, _portable(error)


def _raise_first(own: Exception | None, errors: Sequence[Exception | None]) -> None:
    """Raise a process's own error or, if it has none, the first of the others'."""
    first = next((error for error in errors if error is not None), None)
    if first is not None:
        raise first if own is None else own


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


ALONE = Ranks()


def _warn(message: str) -> None:
    warnings.warn(message, Caution, 3)


def join(device: str = "auto", patience: float = 1800.0, say: Callable[[str], None] = _warn) -> Ranks:
    """Connect with the other processes of this job, for as long as this one lasts: they part when it ends.

    Nothing is taken down before. While it is, a thread of gloo's that still holds a tensor waits for Python's lock, and
    whoever has that for the thread (torch 2.13).

    Args:
        device: a configuration's; on CUDA each process takes the GPU of its LOCAL_RANK.
        patience: seconds that one may keep the others waiting, in a step for example.
        say: is told after ten seconds which of them are missing, and by any but the first process why it cannot join.

    Raises:
        InputError: the environment says that there are others, but not where; one of them did not come; or there is no
            GPU for each.
    """
    try:
        return _joined(device, patience, say)
    except InputError as error:
        if not speaks():  # what keeps this one away, the first one does not hear of
            say(str(error))
        raise


def _joined(device: str, patience: float, say: Callable[[str], None]) -> Ranks:
    """Connect, or raise what keeps this process from it."""
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
        raise InputError(f"RANK={rank} in the environment is none of WORLD_SIZE={world}: start with torchrun")
    try:
        shared = meet(rank, world, limit, say)
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        dist.init_process_group(backend, store=shared, rank=rank, world_size=world, timeout=timedelta(seconds=limit))
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the {world} processes of this job cannot be joined: {str(error).splitlines()[0]}") from None
    return Ranks(rank, world, PrefixStore("notes", shared))


def _number(name: str, otherwise: int) -> int:
    """A number in the environment.

    Raises:
        InputError: it is none.
    """
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise InputError(f"{name}={text} in the environment is no number: start with torchrun")
    return int(text)


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is that of a process that waited in vain for another."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


# ---- how a network is spread


def _is_shared(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether it is a ``DTensor``, told without importing what takes a second to import."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may have a share."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, or all of one that is not shared."""
    return tensor.to_local() if _is_shared(tensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row of this process's share of a tensor, and how many it has; all rows of one that is not shared."""
    if not _is_shared(tensor):
        return 0, len(tensor)
    (piece,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return piece.offsets[0], piece.sizes[0]


def shared_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's share of a tensor that all processes have, if ``like`` is shared."""
    if not _is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# ---- how its blocks run

"""The rows of a table: each contestant compared with the peer and with the machine's limit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ditlab.bench.apart import apart
from ditlab.bench.ceiling import Ceiling
from ditlab.bench.contestants import OURS, PEER, PLAIN, contestant, forward_operations
from ditlab.bench.memory import peak_memory
from ditlab.bench.rounds import Work, coverage, interleaved, median, ratios
from ditlab.bench.sampling import evaluations, sampling_turns
from ditlab.bench.sizes import Size, Task
from ditlab.bench.training import (
    DEFAULT,
    EAGER,
    Entry,
    default_contestant,
    entries_of,
    resolved_default,
    training_turns,
)
from ditlab.core.malloc import freed_memory_kept
from ditlab.networks.costs import parameter_count

SAID_EVERY = 5.0  # seconds
FORWARD_AND_BACKWARD = 3  # operations of a training step over those of its forward pass
DTYPES = ["fp32", "bf16"]
Key = Entry | str  # an entry, or a ceiling by its dtype


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int = 12  # at most
    least: int = 6  # rounds at least
    budget: float = 40.0  # seconds after which a table begins no further round
    turn: float = 0.25  # least seconds of a contestant's turn
    compiled: bool = True  # compile too, which takes up to a minute for each network and size
    processes: bool = True  # use one for each row's peak memory and, on a CPU, for each default


THOROUGH = Effort()
QUICK = Effort(rounds=3, least=3, turn=0.02, compiled=False, processes=False)
WARM_UP = {"train": 6, "sample": 2}  # calls; see rounds.WARM_UP


@dataclass(frozen=True)
class Table:
    """The rows of one size and task, measured in the same rounds."""

    size: Size
    task: Task
    names: list[str]  # of the contestants
    ways: list[str]  # "eager", and "compiled" if that works
    ceilings: dict[str, Ceiling]  # the fastest product of each dtype, which takes turns too
    device: torch.device
    effort: Effort
    say: Callable[[str], None] = lambda _: None  # called with what is being done
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)  # by dtype, filled by ``speed``

    def speed(self) -> dict[str, dict[str, Any]]:
        """Measure speeds; rows by "contestant way dtype", with ``refused`` where memory ran out."""
        refused: dict[Key, str] = {}
        measured = self._times(refused)
        self.limits.update({dtype: self._limit(dtype, measured) for dtype in self.ceilings if dtype in measured})
        rows = {}
        for entry in [key for key in measured if isinstance(key, Entry)]:
            rows[" ".join(entry)] = self._speed(entry, measured) | self._beside_peer(entry, measured)
        for key, reason in refused.items():
            if isinstance(key, Entry):
                rows[" ".join(key)] = {**key._asdict(), "batch": self.size.batch, "refused": reason}
        return rows

    def memory(self) -> dict[str, dict[str, Any]]:
        """Measure peak memory of the defaults and, for training, of ours and the peer, eager.

        Compiled ones other than the default are left out: the compiler's own memory would dominate.
        """
        names = [name for name in self.names if name != PLAIN]
        entries = entries_of(names, self.size, [EAGER], self.device) if self.task == "train" else []
        found: dict[str, dict[str, Any]] = {}
        for entry in [*entries, *self._defaults]:
            self.say(f"{self.size.name}: {self.task}: peak memory of {' '.join(entry)}")
            try:
                found[" ".join(entry)] = dict(peak_memory(entry, self.task, self.size, self.device))
            except MemoryError as error:
                found[" ".join(entry)] = {"refused": str(error)}
        return found

    @property
    def _as_it_comes(self) -> Entry:
        """The baseline: the peer's default, in fp32 if that is measured."""
        return Entry(PEER, DEFAULT, self.size.dtypes[0])

    @property
    def _defaults(self) -> list[Entry]:
        """What users get without options; ours in the precision chosen here for training."""
        dtype = "fp32" if self.task == "sample" else resolved_default(self.size, self.device).precision
        return [*([self._as_it_comes] if PEER in self.names else []), Entry(OURS, DEFAULT, dtype)]

    def _costs(self, entry: Entry) -> tuple[int, int]:
        """Trainable parameters, and operations of a forward pass of one sample."""
        with torch.device("meta"):
            default = entry.is_our_default
            shapes = default_contestant(self.size) if default else contestant(entry.contestant, self.size)
        return parameter_count(shapes.network, trainable_only=True), forward_operations(shapes, self.size)

    def _times(self, refused: dict[Key, str]) -> dict[Key, list[float]]:
        """Seconds per call of each, in each round."""
        torch.manual_seed(0)
        alike, defaults, effort = entries_of(self.names, self.size, self.ways, self.device), self._defaults, self.effort
        build = sampling_turns if self.task == "sample" else training_turns
        turns: dict[Key, Work] = {}

        def warming(key: Key) -> None:
            name = " ".join(key) if isinstance(key, Entry) else f"the {key} limit"
            self.say(f"{self.size.name}: {self.task}: warming up {name}")

        said = time.monotonic()

        def counting(number: int) -> None:
            nonlocal said
            if time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                self.say(f"{self.size.name}: {self.task}: round {number} of {effort.rounds} at most")

        try:
            with ExitStack() as stack:
                stack.enter_context(freed_memory_kept(self.device.type))
                if effort.processes and self.device.type == "cpu":
                    elsewhere = stack.enter_context(apart(defaults, self.task, self.size))
                    turns.update(build(alike, self.size, self.device, refused).items())
                    turns.update(elsewhere.items())
                else:
                    turns.update(build([*alike, *defaults], self.size, self.device, refused).items())
                turns |= {dtype: ceiling.work(dtype, self.device) for dtype, ceiling in self.ceilings.items()}
                return interleaved(
                    turns,
                    effort.rounds,
                    effort.turn,
                    self.device,
                    WARM_UP[self.task],
                    budget=(effort.least, effort.budget),
                    refused=refused,
                    say=warming,
                    count=counting,
                )
        finally:
            turns.clear()
            torch._dynamo.reset()  # code compiled for one size would be tried for the next
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _limit(self, dtype: str, measured: dict[Key, list[float]]) -> dict[str, Any]:
        """Speed of the limit's product within these rounds, and as a share of its best speed alone."""
        operations, best = self.ceilings[dtype].product.operations, self.ceilings[dtype].flops_per_s
        middle = median(measured[dtype])
        return {
            "flops_per_s": operations / middle.value,
            "flops_per_s_interval": [operations / middle.high, operations / middle.low],
            "share_of_best": operations / middle.value / best,
        }

    def _speed(self, entry: Entry, measured: dict[Key, list[float]]) -> dict[str, Any]:
        """Time and operations of an entry, also as a share of the limit."""
        batch, passes = self.size.batch, FORWARD_AND_BACKWARD if self.task == "train" else evaluations(self.size)
        (parameters, forward), middle = self._costs(entry), median(measured[entry])
        operations, shares = forward * batch * passes, {}
        if entry.dtype in measured:
            share = ratios(measured[entry.dtype], measured[entry])
            times = operations / self.ceilings[entry.dtype].product.operations
            shares = {
                "share_of_ceiling": share.value * times,
                "share_of_ceiling_interval": [share.low * times, share.high * times],
                "share_of_best": operations / middle.value / self.ceilings[entry.dtype].flops_per_s,
            }
        return {
            **entry._asdict(),
            "batch": batch,
            "parameters": parameters,
            "flops": operations,
            "seconds": middle.value,
            "seconds_interval": [middle.low, middle.high],
            "images_per_s": batch / middle.value,
            "flops_per_s": operations / middle.value,
            **shares,
            "coverage": coverage(len(measured[entry])),
            "rounds": measured[entry],
        }

    def _beside_peer(self, entry: Entry, measured: dict[Key, list[float]]) -> dict[str, Any]:
        """Speed-up over the peer run in the same way, and over the peer's default."""
        plain = self._as_it_comes
        alike = plain if entry.way == DEFAULT else entry._replace(contestant=PEER)
        found: dict[str, Any] = {}
        for name, peer in (("ratio", alike), ("ratio_as_it_comes", plain)):
            if peer in measured:
                ratio = ratios(measured[peer], measured[entry])
                found |= {name: ratio.value, f"{name}_interval": [ratio.low, ratio.high]}
        return found

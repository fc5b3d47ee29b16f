"""The rows of the table: what was measured of each contestant, beside the peer and beside the machine's limit."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ditlab.bench.ceiling import Ceiling, work_of
from ditlab.bench.contestants import OURS, PEER, contestant, forward_operations
from ditlab.bench.memory import peak_memory
from ditlab.bench.rounds import Work, interleaved, median, ratios
from ditlab.bench.sampling import EVALUATIONS, sampling_turns
from ditlab.bench.sizes import Size, Task
from ditlab.bench.training import DEFAULT, EAGER, Entry, training_entries, training_turns
from ditlab.networks.counts import parameter_count

FORWARD_AND_BACKWARD = 3  # operations of a training step over those of its forward passes
DTYPES = ["fp32", "bf16"]
AS_IT_COMES = Entry(PEER, EAGER, "fp32")
Key = Entry | str  # an entry, or a ceiling by its dtype


class Effort(NamedTuple):
    """How long to measure.

    Args:
        rounds: of training steps; half as many of samplings.
        turn: seconds of a contestant's turn in a round, at least.
        warm_up: training steps before the first round.
        compiled: whether to compile, which takes a minute for each network and size.
        memory: whether to start a process for each row's peak memory.
    """

    rounds: int = 12
    turn: float = 0.4
    warm_up: int = 7
    compiled: bool = True
    memory: bool = True


THOROUGH = Effort()
QUICK = Effort(rounds=3, turn=0.02, compiled=False, memory=False)


class Costs(NamedTuple):
    """Of a contestant: its parameters, and the operations of a forward pass of one sample."""

    parameters: int
    forward: int


@dataclass(frozen=True)
class Table:
    """The rows of one size and one task, which are measured in the same rounds.

    Args:
        size, task: which.
        names: of the contestants.
        ways: "eager", and "compiled" where that works.
        ceilings: the fastest product of each dtype; it takes its turn too.
        device: where.
        effort: how long.
    """

    size: Size
    task: Task
    names: list[str]
    ways: list[str]
    ceilings: dict[str, Ceiling]
    device: torch.device
    effort: Effort

    def speed(self) -> dict[str, dict[str, Any]]:
        """Measure how fast each is; rows by "contestant way dtype"."""
        costs = {name: self._costs(name) for name in self.names}
        measured = self._times()
        entries = [key for key in measured if isinstance(key, Entry)]
        return {
            " ".join(entry): self._speed(entry, measured, costs[entry.contestant]) | self._beside_peer(entry, measured)
            for entry in entries
        }

    def memory(self) -> dict[str, dict[str, int]]:
        """Measure the peak of all that is not compiled by itself: a compiler's own memory would be the most of it."""
        dtypes = DTYPES if self.task == "train" else DTYPES[:1]
        entries = [*training_entries(self.names, dtypes, [EAGER]), Entry(OURS, DEFAULT, "")]
        return {" ".join(entry).strip(): peak_memory(entry, self.task, self.size, self.device) for entry in entries}

    def _costs(self, name: str) -> Costs:
        entry = contestant(name, self.size)
        return Costs(parameter_count(entry.network), forward_operations(entry, self.size))

    def _times(self) -> dict[Key, list[float]]:
        """Seconds of a call of each, in each round."""
        torch.manual_seed(0)
        if self.task == "sample":
            own = sampling_turns(self.names, self.size, self.device)
        else:
            own = training_turns(training_entries(self.names, DTYPES, self.ways), self.size, self.device)
        turns: dict[Key, Work] = dict(own.items())
        own.clear()
        for dtype, ceiling in self.ceilings.items():
            turns[dtype] = work_of(ceiling.product, dtype, self.device)
        rounds, warm_up = self.effort.rounds, self.effort.warm_up
        if self.task == "sample":  # a call is 49 forward passes
            rounds, warm_up = max(3, rounds // 2), 2
        try:
            return interleaved(turns, rounds, self.effort.turn, self.device, warm_up)
        finally:
            turns.clear()
            torch._dynamo.reset()  # or code that was compiled for one size would be tried for the next
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _speed(self, entry: Entry, measured: dict[Key, list[float]], costs: Costs) -> dict[str, Any]:
        """What it takes, and its operations a second as a share of the limit."""
        batch, passes = self.size.batch, FORWARD_AND_BACKWARD if self.task == "train" else EVALUATIONS
        operations, middle = costs.forward * batch * passes, median(measured[entry])
        share = ratios(measured[entry.dtype], measured[entry])
        times = operations / self.ceilings[entry.dtype].product.operations
        return {
            "contestant": entry.contestant,
            "way": entry.way,
            "dtype": entry.dtype,
            "batch": batch,
            "parameters": costs.parameters,
            "flops": operations,
            "seconds": middle.value,
            "seconds_interval": [middle.low, middle.high],
            "images_per_s": batch / middle.value,
            "flops_per_s": operations / middle.value,
            "share_of_ceiling": share.value * times,
            "share_of_ceiling_interval": [share.low * times, share.high * times],
            "rounds": measured[entry],
        }

    def _beside_peer(self, entry: Entry, measured: dict[Key, list[float]]) -> dict[str, Any]:
        """How many times as fast as the peer run in the same way, and as the peer as it comes: fp32, eager."""
        if AS_IT_COMES not in measured:
            return {}
        alike = AS_IT_COMES if entry.way == DEFAULT else entry._replace(contestant=PEER)
        found: dict[str, Any] = {}
        for name, peer in (("ratio", alike), ("ratio_as_it_comes", AS_IT_COMES)):
            ratio = ratios(measured[peer], measured[entry])
            found |= {name: ratio.value, f"{name}_interval": [ratio.low, ratio.high]}
        return found

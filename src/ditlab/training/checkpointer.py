"""Saving without holding up training: the state is copied, and a thread of its own writes the copy."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.core.distributed import own
from ditlab.core.errors import CheckpointWarning, TrainingError
from ditlab.runs.checkpoint import thin_out, write_checkpoint, write_sharded
from ditlab.runs.weights import network_facts
from ditlab.training.loop import TrainState, advice


class CheckpointWriter:
    """Saves the checkpoints of a training state, one after the other.

    What goes wrong while one is written is raised by the next call of any method, in the thread of the training. As a
    context manager it waits at the end, whatever the end is.

    Args:
        folder: of the checkpoints.
        state: to save; its configuration says how many checkpoints are kept.
        beat: is called after each file, as a sign of life.
    """

    def __init__(self, folder: Path, state: TrainState, beat: Callable[[], None] = lambda: None) -> None:
        self.folder, self.state, self.beat = folder, state, beat
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}

    def save(self) -> None:
        """Copy the state, and begin to write it once the save before is done."""
        self.wait()
        state = self.state
        if state.sharded:
            self._save_shares()
            return
        if not state.ranks.first:
            return
        for part, tensors in state.tensors().items():
            self._copy(part, tensors)
        if state.device.type == "cuda":
            torch.cuda.synchronize(state.device)
        facts = network_facts(state.config) | state.facts()
        # A daemon: a second signal ends the process at once, and a checkpoint half written is none.
        self._thread = threading.Thread(target=self._write, args=(facts,), name="checkpoint", daemon=True)
        self._thread.start()

    def _save_shares(self) -> None:
        """Write the shares of all processes while they wait."""
        state = self.state
        parts = state.tensors()
        state.ranks.together(lambda: self._must_be_finite(state.step, parts))
        facts = network_facts(state.config) | state.facts()
        write_sharded(self.folder, state.step, parts, facts, self.beat, state.ranks)
        state.ranks.decided(self._thin_out)

    def check(self) -> None:
        """Raise what went wrong in a save that is over.

        Raises:
            OSError: it could not be written.
            TrainingError: it was not written, for not all of its numbers were finite.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until everything is on the disk; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None and not issubclass(kind, KeyboardInterrupt):  # a second signal ends at once
            self._thread.join()  # what ended training is told; not what became of this

    def _copy(self, part: str, tensors: dict[str, Tensor]) -> None:
        """Copy tensors to the CPU, into the memory of the last time: touching fresh memory takes longer."""
        kept = self._copies.setdefault(part, {})
        for name, tensor in tensors.items():
            if name not in kept:
                kept[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            kept[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def _write(self, facts: dict[str, Any]) -> None:
        try:
            self._must_be_finite(facts["step"], self._copies)
            write_checkpoint(self.folder, facts["step"], self._copies, facts, self.beat)
            self._thin_out()
        except BaseException as error:
            self._error = error

    def _thin_out(self) -> None:
        try:
            thin_out(self.folder, self.state.config.keep_last, self.state.config.keep_every)
        except OSError as error:  # the next save tries again
            warnings.warn(f"an old checkpoint cannot be deleted yet: {error}", CheckpointWarning, 1)

    def _must_be_finite(self, step: int, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                if not own(tensor).isfinite().all():
                    raise TrainingError(
                        f"{name} ({part}) stopped being finite by step {step}, which was not saved: "
                        f"{advice(self.state.config)}; {self.folder} keeps what was saved before"
                    )

"""What a training leaves behind and shows while it runs: metrics, pictures, recordings, checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch

from ditlab.core.disk import write_atomically
from ditlab.core.errors import TrainingError
from ditlab.core.rng import generator_for, seed_from
from ditlab.data.conditions import Conditions, num_classes
from ditlab.data.dataset import Dataset
from ditlab.inspection.branches import effective_depth, measure_branches, modulated_blocks
from ditlab.runs import metrics
from ditlab.runs.checkpoint import save_tensors, step_name
from ditlab.runs.folder import RunFolder
from ditlab.runs.pictures import false_colors, has_picture, save_picture
from ditlab.runs.sampling import build_drawing, conditioned, draw
from ditlab.training import compilation as compiled
from ditlab.training.bad_batches import save_failure
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import Step, TrainState, hopeless
from ditlab.training.posthoc_ema import write_snapshot
from ditlab.training.spikes import summary
from ditlab.training.tracking import Tracker

NEWEST = 50  # steps that tell the time left
PRINTED_EVERY = 10.0  # seconds between printed lines of progress
SHOWN_EVERY = 5.0  # seconds between looks at a training whose lines of metrics come more slowly
RECORDED_SAMPLES = 32
RECORDED_TIMES = tuple(i / 8 for i in range(1, 8))


@runtime_checkable
class Waiter(Protocol):
    """Someone who is told what takes long before the first step, too."""

    def doing(self, what: str) -> None:
        """This has just begun; it is over with the next call of anything."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """Someone who is shown the progress."""

    def begin(self, done: int, steps: int) -> None:
        """Training is about to go from step ``done`` to step ``steps``."""
        ...

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        """Steps done so far, mean loss and speed since the last line of metrics, and an estimate of what is left.

        The loss is NaN if nothing was learned since then, and the estimate until two steps were taken: the first one
        may have compiled the network.
        """
        ...

    def notice(self, message: str) -> None:
        """Something happened that a person may want to know of."""
        ...


class Printed:
    """A watcher that prints to stderr: what there is to say, and now and then how far it is."""

    def begin(self, done: int, steps: int) -> None:  # noqa: ARG002 - the progress says it
        self.steps, self.printed = steps, time.monotonic()

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        if step == self.steps or time.monotonic() - self.printed > PRINTED_EVERY:
            self.printed = time.monotonic()
            left = "" if step == self.steps or math.isnan(seconds_left) else f", {seconds_left:,.0f} s left"
            self.notice(f"step {step:,} of {self.steps:,}, loss {loss:.4g}, {images_per_s:,.0f} samples/s{left}")

    def notice(self, message: str) -> None:
        print(f"ditlab: {message}", file=sys.stderr, flush=True)


class Recorder:
    """Writes what a run leaves behind, each thing at its own interval; calls ``beat`` between the things.

    ``evaluate`` measures the averaged weights after a step, where ``config.eval_every`` asks for it.

    Of several processes the first one writes. All compute, since each may have but a share of the weights.
    """

    def __init__(
        self,
        folder: RunFolder,
        state: TrainState,
        dataset: Dataset,
        watcher: Watcher,
        tracker: Tracker,
        writer: CheckpointWriter,
        beat: Callable[[], None],
        evaluate: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        self.folder, self.state, self.dataset, self.watcher = folder, state, dataset, watcher
        self.tracker, self.writer, self.beat = tracker, writer, beat
        self.config, self.first = state.config, state.ranks.first
        self.shape, self.conditions = dataset.shape, dataset.conditions
        self.seconds = next(metrics.newest(folder.metrics_file), {"seconds": 0.0})["seconds"]
        self.clock = time.perf_counter()
        self.loss_sum = torch.zeros((), device=state.device)
        self.steps = self.learned = 0  # since the last line
        self.took: deque[float] = deque(maxlen=NEWEST)  # seconds, without the first step
        self.before: float | None = None  # when the last step was seen to
        self.shown = self.clock
        self.has_gates = bool(modulated_blocks(state.network))
        if self.has_gates:
            self.recorded = self._recording_batch(dataset)
        self.evaluate = evaluate

    def _recording_batch(self, dataset: Dataset) -> tuple[Any, ...]:
        """The same noisy samples at every recording: (T, B, *shape), the T times, and the conditions."""
        device, seed = self.state.device, seed_from(self.config.seed, "recordings")
        x0, cond = dataset.batch(seed, 0, RECORDED_SAMPLES)
        times = torch.tensor(RECORDED_TIMES, dtype=torch.float32)
        noise = torch.randn(x0.shape, generator=generator_for(seed, "noise"))
        x = torch.stack([self.state.process.q_sample(x0, t.expand(len(x0)), noise) for t in times])
        return x.to(device), times.to(device), {name: value.to(device) for name, value in cond.items()}

    def at_start(self) -> None:
        """Record the network as it was initialised."""
        tell_doing(self.watcher, "drawing the first pictures")
        self._tell({"step": 0, "seconds": 0.0, **self._record()})
        self.beat()
        self._preview()
        self.beat()
        self.clock = time.perf_counter()

    def after(self, step: Step) -> None:
        """See to whatever is due after this step."""
        self.writer.check()
        config, last = self.config, step.step == self.config.steps
        self.beat()
        self.steps += 1
        if self.before is not None:
            self.took.append(time.perf_counter() - self.before)
        if step.skipped is None:
            self.loss_sum += step.loss
            self.learned += 1
        else:
            self._skipped(step)
        due = {
            name: last or step.step % getattr(config, f"{name}_every") == 0
            for name in ("log", "record", "preview", "checkpoint")
        }
        due["eval"] = self.config.eval_every is not None and (last or step.step % self.config.eval_every == 0)
        due["snapshot"] = bool(config.averages) and (last or step.step % config.snapshot_every == 0)
        if due["log"] or due["record"]:
            self._log(step, due["record"])
            self.beat()
        elif time.perf_counter() - self.shown > SHOWN_EVERY:
            self._show(step.step, *self._now(step.step))
        begun = time.perf_counter()
        if due["preview"]:
            self._preview()
            self.beat()
        if due["eval"] and self.evaluate is not None:  # before the checkpoint, as the snapshot
            self._evaluate(self.evaluate(step.step), self.seconds + begun - self.clock)
            self.beat()
        if due["snapshot"]:  # before the checkpoint: a run that goes on from that one has it
            self._snapshot()
            self.beat()
        if due["checkpoint"]:
            self.writer.save()
            self.beat()
        self.before = time.perf_counter()
        self.clock += self.before - begun  # images_per_s is the speed of training alone

    def at_end(self) -> None:
        """Say how many steps were not learned from, if any."""
        if objections := metrics.skipped(self.folder.metrics_file):
            self.watcher.notice(summary(objections))

    def _tell(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics, and show it wherever else they are shown."""
        if self.first:
            self.folder.append_metrics(line)
            self.tracker.line(line)

    def _skipped(self, step: Step) -> None:
        """Report a step that was not learned from.

        Raises:
            TrainingError: it was one too many; what it was made of is kept.
        """
        seconds = self.seconds + time.perf_counter() - self.clock
        self._tell({"step": step.step, "skipped": step.skipped, "seconds": round(seconds, 3)})
        self.watcher.notice(f"step {step.step} was not learned from: {step.skipped}")
        if self.state.guard.gives_up:
            kept = save_failure(self.folder.failures, self.state, self.dataset, step)
            raise TrainingError(f"{hopeless(self.state, step.skipped)}; {kept} tells which they were")

    def _log(self, step: Step, with_recording: bool) -> None:
        loss, images_per_s, left = self._now(step.step)
        elapsed = time.perf_counter() - self.clock
        recorded = self._record() if with_recording else {}
        self.seconds += elapsed
        figures = {"loss": loss, "lr": step.lr, "grad_norm": float(step.grad_norm)}
        line = {"step": step.step, **{name: value for name, value in figures.items() if math.isfinite(value)}}
        self._tell({**line, "images_per_s": round(images_per_s, 1), "seconds": round(self.seconds, 3), **recorded})
        self._show(step.step, loss, images_per_s, left)
        self.clock, self.steps, self.learned = time.perf_counter(), 0, 0
        self.loss_sum.zero_()

    def _show(self, step: int, loss: float, images_per_s: float, left: float) -> None:
        self.watcher.progress(step, loss, images_per_s, left)
        self.shown = time.perf_counter()

    def _now(self, step: int) -> tuple[float, float, float]:
        """The mean loss and the samples/s since the last line of metrics, and the seconds left."""
        loss = float(self.loss_sum) / self.learned if self.learned else math.nan
        newest = list(self.took)[-self.steps :]  # the first step of all may have compiled the network
        took = sum(newest) / len(newest) if newest else (time.perf_counter() - self.clock) / self.steps
        left = (self.config.steps - step) * median(self.took) if self.took else math.nan
        return loss, self.config.batch_size / took, left

    def _record(self) -> dict[str, Any]:
        """Measure the gates and branches, write them to a file, and return their means for the metrics."""
        if not self.has_gates:
            return {}
        x, t, cond = self.recorded
        with compiled.uncompiled(self.state.network):
            branches = measure_branches(self.state.network, x, t, cond)
        depth = effective_depth(branches.contribution)
        tensors = {"t": t.cpu(), "effective_depth": depth, **branches._asdict()}
        path = self.folder.probes / f"{step_name(self.state.step)}.safetensors"
        if self.first:
            write_atomically(path, lambda temporary: save_tensors(temporary, tensors))
        attn, mlp = branches.gate.mean(0).unbind(1)
        if not (branches.gate.isfinite().all() and depth.isfinite().all()):  # training runs away; the guard ends it
            return {}
        return {"gates": {"attn": attn.tolist(), "mlp": mlp.tolist()}, "effective_depth": float(depth.mean())}

    def _preview(self) -> None:
        if not has_picture(self.shape):
            return
        path = self.folder.samples / f"{step_name(self.state.step)}.png"
        samples, columns = preview(self.state, self.shape, self.conditions)
        samples = samples if self.config.latent_space is None else false_colors(samples)
        if self.first:
            write_atomically(path, lambda temporary: save_picture(temporary, samples, columns))
            self.tracker.picture(self.state.step, path)

    def _evaluate(self, figures: dict[str, Any], seconds: float) -> None:
        if figures:
            self._tell({"step": self.state.step, "seconds": round(seconds, 3), "eval": figures})

    def _snapshot(self) -> None:
        tensors = self.state.averages.snapshot()
        if self.first:
            write_atomically(
                self.folder.snapshot_file(self.state.step), lambda temporary: write_snapshot(temporary, tensors)
            )


def tell_doing(watcher: Watcher, what: str) -> None:
    """Tell a watcher what takes long, if it wants to know."""
    if isinstance(watcher, Waiter):
        watcher.doing(what)


def preview(state: TrainState, shape: tuple[int, ...], conditions: Conditions) -> tuple[torch.Tensor, int | None]:
    """Samples of the averaged weights from noise that is the same at every step, and how many go in a row."""
    process, classes = state.averaged_process, num_classes(conditions)
    n = 1000 if len(shape) == 1 else 64 if classes is None else 6 * min(classes, 10)
    cond = conditioned(conditions, n)
    drawing = build_drawing(state.config.sampling, process, guided=bool(cond))
    return draw(process, n, shape, cond, state.ranks, **drawing), None if classes is None else min(classes, 10)

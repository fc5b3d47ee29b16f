"""Train a configuration into a run folder: the loop, and all that listens to it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from ditlab.build import build_dataset, build_drawing, resolve_device, resolve_precision
from ditlab.chance import generator_for, seed_from
from ditlab.config import Config, ExternalData
from ditlab.data.datasets import Dataset, Prepared
from ditlab.diffusion.process import Process
from ditlab.disk import write_atomically
from ditlab.errors import InputError, Interrupted, TrainingError
from ditlab.inspection.branches import effective_depth, measure_branches, modulated_blocks
from ditlab.midway import Midway
from ditlab.pictures import false_colors, save_picture
from ditlab.run import RunFolder
from ditlab.tracking import Nobody, Tracker, must_be_installed, tracking
from ditlab.training import compiled
from ditlab.training.checkpoint import newest_whole, save_tensors, saved_steps, step_name, verified
from ditlab.training.failures import save_failure
from ditlab.training.guard import summary
from ditlab.training.loader import STARTING
from ditlab.training.loading import load_checkpoint
from ditlab.training.loop import Step, TrainState, hopeless, rehearse, train
from ditlab.training.parallel import ALONE, Ranks, is_lost
from ditlab.training.posthoc import write_snapshot
from ditlab.training.signals import collected
from ditlab.training.stacks import write_stacks
from ditlab.training.watchdog import Watchdog
from ditlab.training.writer import CheckpointWriter

RECORDED_SAMPLES = 32
COMPILER = "install a C++ compiler and Python's headers"
RECORDED_TIMES = tuple(i / 8 for i in range(1, 8))


@runtime_checkable
class Watcher(Protocol):
    """Someone who is shown the progress."""

    def begin(self, done: int, steps: int) -> None:
        """Training is about to go from step ``done`` to step ``steps``."""
        ...

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        """Steps done so far, mean loss and speed since the last call, and an estimate of what is left.

        The loss is NaN if nothing was learned since the last call.
        """
        ...

    def notice(self, message: str) -> None:
        """Something happened that a person may want to know of."""
        ...


@runtime_checkable
class PreparationWatcher(Protocol):
    """Someone who is shown the progress of data that are made ready, too."""

    def preparing(self, done: int, total: int) -> None:
        """So many of so many files are done."""
        ...


def fit(
    folder: RunFolder, config: Config, watcher: Watcher, *, resume: bool = False, ranks: Ranks = ALONE
) -> TrainState:
    """Train until ``config.steps``; leave metrics, checkpoints, pictures and recordings in ``folder``.

    Of several processes each calls this with the same arguments; the first one writes.

    Raises:
        InputError: the network does not go with the data, the data are gone or too many of them cannot be used; there
            are fewer steps than were already done, none of the checkpoints can be used, or another process trains.
        TrainingError: too many steps in a row could not be learned from, a worker process died or hangs, or another of
            the ``ranks`` is gone.
        Interrupted: Ctrl-C or SIGTERM came; the step was finished and saved.
    """
    if isinstance(config.data, ExternalData):
        raise InputError(f"{folder.path} was trained elsewhere: there are no data here to train it on")
    precision = ranks.decided(lambda: resolve_precision(config.precision, resolve_device(config.device)))
    config = config.model_copy(update={"precision": precision})
    dataset = ranks.together(lambda: _reachable_data(config))
    chosen = config.compile == "auto"
    config = config.model_copy(update={"compile": ranks.decided(lambda: _compiled(config, dataset, ranks.world))})
    state = TrainState(config, dataset, ranks)
    _check_null_label(state, dataset)
    if state.sharded and config.sampling.solver == "dopri5":  # each would run the network as often as it likes
        raise InputError("--sampling.solver dopri5 chooses its steps: with --parallel fsdp, draw previews with heun")
    build_drawing(config.sampling, state.process, guided=True)  # refused here rather than at the first picture
    with ExitStack() as stack:
        ranks.decided(lambda: stack.enter_context(folder.locked()))
        if isinstance(dataset, Prepared):
            state.fingerprint = ranks.at_length("prepared", partial(_prepare, folder, dataset, watcher, ranks))
        if resume and not folder.knows_averages:
            watcher.notice(
                f"{folder.path} is of before averages were tracked: it goes on without, and without ditlab ema"
            )
        if chosen and config.compile and (reason := rehearse(state, dataset)) is not None:
            state.run_as_written()
            watcher.notice(f"trains without torch.compile, which would be faster ({COMPILER}): {reason}")
        done = _begin(folder, state, resume)
        watcher.begin(state.step, config.steps)
        with _partners(folder, ranks):
            _train(folder, state, dataset, watcher, done)
    return state


def _compiled(config: Config, dataset: Dataset, world: int) -> bool:
    """Whether the network is compiled: as was said, and else where it pays."""
    if config.compile == "auto":
        return compiled.pays(config, dataset, world)
    if config.compile and (reason := compiled.why_not(resolve_device(config.device))) is not None:
        raise InputError(f"torch.compile does not work here: {COMPILER}, or add --no-compile ({reason})")
    return config.compile


def _reachable_data(config: Config) -> Dataset:
    """The data, once it is clear that nothing else is wanting on this machine."""
    must_be_installed(config.track)
    return build_dataset(config)


def _prepare(folder: RunFolder, dataset: Prepared, watcher: Watcher, ranks: Ranks) -> str:
    """Make data ready, of which the first process tells what could not be used."""
    shown = watcher.preparing if isinstance(watcher, PreparationWatcher) else None
    return dataset.prepare(folder.quarantine_file if ranks.first else None, shown)


def _train(folder: RunFolder, state: TrainState, dataset: Dataset, watcher: Watcher, done: int | None) -> None:
    """The steps, with all that listens to them."""
    config, ranks = state.config, state.ranks
    with (
        tracking(folder, config, done, watcher.notice) if ranks.first else nullcontext(Nobody()) as tracker,
        collected(patient=ranks.world > 1) as received,  # torchrun passes on signals that came to all already
        Watchdog(folder.path, config.stall_after) as watchdog,
        CheckpointWriter(folder.checkpoints, state, watchdog.beat) as writer,
    ):
        recorder = Recorder(folder, state, dataset, watcher, tracker, writer, watchdog.beat)
        if state.step == 0:
            recorder.at_start()
        watchdog.expect(STARTING if config.workers else 0.0)
        with closing(train(state, dataset, folder.path)) as steps:
            for step in steps:
                recorder.after(step)
                if stop := _asked_to_stop(ranks, received):
                    writer.save()
                    ranks.at_length("stopped", writer.wait, watchdog.beat)
                    raise Interrupted(stop, str(folder.path), state.step, config.steps)
    recorder.at_end()


def _asked_to_stop(ranks: Ranks, received: list[int]) -> int:
    """The signal that any of the processes has received, or 0: all stop after the same step."""
    return int(max(told[0] for told in ranks.told([received[0] if received else 0])))


@contextmanager
def _partners(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Say in one line that another process is gone, and leave the stacks of this one."""
    try:
        yield
    except TrainingError:
        raise
    except RuntimeError as error:
        if ranks.world == 1 or not is_lost(error):
            raise
        headline = f"process {ranks.rank} of {ranks.world} has lost another: {error}\n\n{traceback.format_exc()}"
        kept = write_stacks(folder.path, headline)
        raise TrainingError(
            f"another of the {ranks.world} processes is gone: {kept} shows where process {ranks.rank} was; what was "
            f"saved before is whole: ditlab train --resume {folder.path} goes on, in as many processes"
        ) from None


def _begin(folder: RunFolder, state: TrainState, resume: bool) -> int | None:
    """Bring state and folder to where training begins; the step of its checkpoint, or None where it begins anew.

    Nothing is deleted before it is loaded.
    """
    config, ranks = state.config, state.ranks
    done = ranks.decided(lambda: _found(folder, state, resume))
    if done is not None and ranks.world > 1:
        load_checkpoint(folder.checkpoints, state, done, checked=True)

    def begin() -> None:
        folder.write_config(config)
        folder.cut(-1 if done is None else done)

    ranks.decided(begin)
    return done


def _found(folder: RunFolder, state: TrainState, resume: bool) -> int | None:
    """The step of the newest whole checkpoint; where this process is the only one, it is loaded."""
    config = state.config

    def load(step: int) -> int:
        if state.ranks.world == 1:
            load_checkpoint(folder.checkpoints, state, step)
        else:
            verified(folder.checkpoints, step)
        return step

    if not resume and saved_steps(folder.checkpoints):
        raise InputError(f"{folder.path} is there already: go on with ditlab train --resume {folder.path}")
    done = newest_whole(folder.checkpoints, load, as_named=False) if resume else None
    if done is None and folder.trained_beyond(2 * config.checkpoint_every):  # by then the first one was whole
        raise InputError(
            f"{folder.path} was trained, but no checkpoints are in {folder.checkpoints}: bring them back, or remove "
            f"{folder.path} to begin anew"
        )
    if done is not None and config.steps < done:
        raise InputError(f"{folder.path} is at step {done}; --steps {config.steps} lies behind it")
    return done


def _check_null_label(state: TrainState, dataset: Dataset) -> None:
    """Refuse, before anything is written, to train or preview without labels a network that cannot go without."""
    goes_without = state.process.condition_dropout > 0 or state.config.sampling.guidance != 1
    take_away: Any = getattr(state.network, "null_condition", None)
    if dataset.num_classes is not None and goes_without and take_away is not None:
        take_away({"label": torch.zeros(1, dtype=torch.int64, device=state.device)})


class Recorder:
    """Writes what a run leaves behind, each thing at its own interval; calls ``beat`` between the things.

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
    ) -> None:
        self.folder, self.state, self.dataset, self.watcher = folder, state, dataset, watcher
        self.tracker, self.writer, self.beat = tracker, writer, beat
        self.config, self.first = state.config, state.ranks.first
        self.shape, self.num_classes = dataset.shape, dataset.num_classes
        earlier = folder.read_metrics()
        self.seconds = earlier[-1]["seconds"] if earlier else 0.0
        self.clock = time.perf_counter()
        self.loss_sum = torch.zeros((), device=state.device)
        self.steps = self.learned = 0  # since the last line
        self.has_gates = bool(modulated_blocks(state.network))
        if self.has_gates:
            self.recorded = self._recording_batch(dataset)
        self.midway = Midway(state, dataset, watcher.notice, beat) if self.config.eval_every else None

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
        begun = time.perf_counter()
        if due["preview"]:
            self._preview()
            self.beat()
        if due["eval"] and self.midway is not None:  # before the checkpoint, as the snapshot
            self._evaluate(self.midway, self.seconds + begun - self.clock)
            self.beat()
        if due["snapshot"]:  # before the checkpoint: a run that goes on from that one has it
            self._snapshot()
            self.beat()
        if due["checkpoint"]:
            self.writer.save()
            self.beat()
        self.clock += time.perf_counter() - begun  # images_per_s is the speed of training alone

    def at_end(self) -> None:
        """Say how many steps were not learned from, if any."""
        if objections := [line["skipped"] for line in self.folder.read_metrics() if "skipped" in line]:
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
        loss = float(self.loss_sum) / self.learned if self.learned else math.nan
        elapsed = time.perf_counter() - self.clock
        recorded = self._record() if with_recording else {}
        images_per_s = self.steps * self.config.batch_size / elapsed
        self.seconds += elapsed
        figures = {"loss": loss, "lr": step.lr, "grad_norm": float(step.grad_norm)}
        line = {"step": step.step, **{name: value for name, value in figures.items() if math.isfinite(value)}}
        self._tell({**line, "images_per_s": round(images_per_s, 1), "seconds": round(self.seconds, 3), **recorded})
        seconds_left = (self.config.steps - step.step) * elapsed / self.steps
        self.watcher.progress(step.step, loss, images_per_s, seconds_left)
        self.clock, self.steps, self.learned = time.perf_counter(), 0, 0
        self.loss_sum.zero_()

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
        path = self.folder.samples / f"{step_name(self.state.step)}.png"
        samples, columns = preview(self.state, self.shape, self.num_classes)
        samples = samples if self.config.latent_space is None else false_colors(samples)
        if self.first:
            write_atomically(path, lambda temporary: save_picture(temporary, samples, columns))
            self.tracker.picture(self.state.step, path)

    def _evaluate(self, midway: Midway, seconds: float) -> None:
        if figures := midway.figures():
            self._tell({"step": self.state.step, "seconds": round(seconds, 3), "eval": figures})

    def _snapshot(self) -> None:
        tensors = self.state.averages.snapshot()
        if self.first:
            write_atomically(
                self.folder.snapshot_file(self.state.step), lambda temporary: write_snapshot(temporary, tensors)
            )


def preview(state: TrainState, shape: tuple[int, ...], num_classes: int | None) -> tuple[torch.Tensor, int | None]:
    """Samples of the averaged weights from noise that is the same at every step, and how many go in a row."""
    sampling = state.config.sampling
    process: Process = state.averaged_process
    n = 1000 if len(shape) == 1 else 64 if num_classes is None else 6 * min(num_classes, 10)
    own = state.ranks.share(n)
    cond = None if num_classes is None else {"label": torch.tensor(own) % num_classes}
    drawing = build_drawing(sampling, process, guided=cond is not None)
    samples = state.ranks.gather(process.sample(len(own), shape, cond=cond, first=own[0], **drawing))[:n]
    return samples, None if num_classes is None else min(num_classes, 10)

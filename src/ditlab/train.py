"""Train a configuration into a run folder."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ditlab.config import Config, OwnData
from ditlab.core.device import resolve_device
from ditlab.core.distributed import ALONE, Ranks, is_lost
from ditlab.core.errors import CheckpointWarning, InputError, Interrupted, TrainingError
from ditlab.core.malloc import must_have_room
from ditlab.data.dataset import Dataset, External, Prepared
from ditlab.evaluation.in_training import InTraining
from ditlab.machine.resolve import computing_as, settled
from ditlab.runs.agreement import content_of, options_of, versions, weights_of
from ditlab.runs.build import GivenNetwork, GivenProcess, as_given, build_dataset, most_numbers, network_shapes
from ditlab.runs.checkpoint import newest_whole, saved_steps, step_name, verified
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run, ready
from ditlab.runs.sampling import build_drawing
from ditlab.runs.weights import foresee
from ditlab.training import compilation as compiled
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loader import STARTING
from ditlab.training.loop import TrainState, compiled_over_written, rehearse, train
from ditlab.training.optim import scheduled
from ditlab.training.recorder import Printed, Recorder, Watcher, tell_doing
from ditlab.training.resume import load_checkpoint
from ditlab.training.signals import collected
from ditlab.training.tracking import Nobody, must_be_installed, tracking
from ditlab.training.watchdog import Watchdog, write_stacks

SLOWER = 1.1  # how much longer compiled code may take: a busy machine does not time exactly
LARGE = 2**30  # parameters, from which on a network is checked for fitting into memory
RAISED = 2.0  # a jump of the learning rate by this factor is mentioned
COMPILER = "install a C++ compiler and Python's headers"


@runtime_checkable
class PreparationWatcher(Protocol):
    """A watcher that is also shown how far the data are prepared."""

    def preparing(self, done: int, total: int) -> None:
        """``done`` of ``total`` files are prepared."""
        ...


def fit(
    config: Config,
    folder: RunFolder | str | Path,
    dataset: Dataset | None = None,
    network: GivenNetwork | None = None,
    process: GivenProcess | None = None,
    resume: bool = False,
    *,
    watcher: Watcher | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Train until ``config.steps``; leave metrics, checkpoints, pictures and recordings in ``folder``.

    An object that you pass takes the place of that part of the configuration. The run folder records the shape and the
    conditions of your data, so ``ditlab.load`` can sample the run without them; pass your network or process to
    ``ditlab.load`` again. When several processes train together, each calls this with the same arguments, and the first
    one writes. ::

        config = ditlab.recipe("points", steps=500)
        run = ditlab.fit(config, "runs/mine", dataset=ditlab.as_dataset(torch.randn(1000, 2)))
        x = run.draw(16)

    Args:
        config: how to train, as ``ditlab.recipe`` makes it.
        folder: where the run is kept.
        dataset: what to learn; see ``ditlab.as_dataset``.
        network: ``network(x, t, cond)`` with an output shaped like x, which is trained in place; or a function that
            makes one, so that its first weights depend on ``config.seed`` alone.
        process: a function of the network, such as ``lambda net: ditlab.FlowMatching(net, times="uniform")``.
        resume: go on from the newest checkpoint; with the same arguments, training ends with the same bytes.
        watcher: is told about the progress; by default it is printed to stderr.
        ranks: the processes that train together.

    Raises:
        InputError: the network does not fit the data; the data are missing, or too many files cannot be used;
            ``config.steps`` is below the steps already done; no checkpoint is usable; another process trains this run.
        TrainingError: too many steps in a row failed, a worker process died or hangs, or another rank is gone.
        Interrupted: Ctrl-C or SIGTERM arrived; the current step was finished and saved.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    watcher = Printed() if watcher is None else watcher
    asked = config
    ranks.agree(lambda: {"the run": folder.path.name, "--resume": resume, **options_of(asked), **versions()})
    data = ranks.together(lambda: _reachable_data(folder, asked, dataset))
    config = as_given(config, data, dataset is not None, network, process)
    ranks.decided(lambda: _foresee(folder, config, data, resume))
    config, lines = ranks.decided(lambda: settled(config, data.shape, ranks.world))
    with computing_as(config):
        chosen = config.compile == "auto"
        config = config.model_copy(update={"compile": ranks.decided(lambda: _compiled(config, data, ranks.world))})
        state = TrainState(config, data, ranks, network, process)
        _fit(folder, state, data, watcher, resume, chosen, lines)
    return Run(folder, state.config, ready(state.averaged_process), state.step, data)


def _fit(
    folder: RunFolder,
    state: TrainState,
    dataset: Dataset,
    watcher: Watcher,
    resume: bool,
    chosen: bool,
    lines: list[str],
) -> None:
    """Train from the start, or from the newest checkpoint.

    Args:
        folder, state, dataset, watcher, resume: as above.
        chosen: whether this machine chose to compile the network, or the configuration did.
        lines: say what else was chosen for this machine; shown once the run is accepted, or before compiling.
    """
    config, ranks = state.config, state.ranks
    _check_null_label(state, dataset)
    solver = config.sampling.solver
    if state.sharded and state.process.stepper(solver).evaluations(1) is None:  # each would run as often as it likes
        raise InputError(f"--sampling.solver {solver} chooses its steps: with --parallel fsdp, draw previews with heun")
    build_drawing(config.sampling, state.process, guided=True)  # to be refused now, not at the first picture
    with ExitStack() as stack:
        ranks.decided(lambda: stack.enter_context(folder.locked()))
        if isinstance(dataset, Prepared):
            state.fingerprint = ranks.at_length("prepared", partial(_prepare, folder, dataset, watcher, ranks))
        ranks.agree(lambda: content_of(dataset, config))
        if resume and not folder.knows_averages:
            watcher.notice(
                f"{folder.path} predates weight averaging. It resumes without averages, so ditlab ema is not "
                "available for it"
            )
        if config.compile and ranks.world == 1:
            _tell(watcher, lines)
            lines = []
            _compile(state, dataset, watcher, chosen)
        done = _begin(folder, state, watcher, resume)
        _tell(watcher, lines)
        watcher.begin(state.step, config.steps)
        with _partners(folder, ranks):
            _train(folder, state, dataset, watcher, done)


def _foresee(folder: RunFolder, config: Config, dataset: Dataset, resume: bool) -> None:
    """Refuse what does not fit this machine before allocating memory for it."""
    if resume:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # it is given when the checkpoint is loaded
            newest_whole(
                folder.checkpoints,
                lambda step: foresee(config, dataset, folder.checkpoints / step_name(step)),
                as_named=False,
            )
    samples = config.batch_size * math.prod(dataset.shape)
    must_have_room(f"a batch of {config.batch_size:,} samples of shape {dataset.shape} (--batch-size)", samples)
    kind, numbers = config.network.kind, most_numbers(config, dataset)
    if numbers > LARGE and (network := network_shapes(config, dataset)) is not None:
        must_have_room(f"a network of these sizes (--network {kind})", sum(p.numel() for p in network.parameters()))


def _tell(watcher: Watcher, lines: list[str]) -> None:
    for line in lines:
        watcher.notice(line)


def _compile(state: TrainState, dataset: Dataset, watcher: Watcher, chosen: bool) -> None:
    """Compile before the first step. If this machine chose to, keep the code only if it works and is not slower."""
    tell_doing(watcher, compiled.announcement(state.config))
    begun = time.perf_counter()
    reason = rehearse(state, dataset)
    if reason is None:
        compiled.remember(state.config, time.perf_counter() - begun)
    if not chosen:  # an error then shows in the first step
        return
    if reason is not None:
        state.run_as_written()
        watcher.notice(f"trains without torch.compile, which would be faster ({COMPILER}): {reason}")
    elif (ratio := compiled_over_written(state, dataset)) > SLOWER:
        state.run_as_written()
        watcher.notice(f"trains without torch.compile, whose code takes {ratio:.1f} times as long here")


def _compiled(config: Config, dataset: Dataset, world: int) -> bool:
    """Whether to compile the network: as the configuration says; with "auto", when it pays off."""
    if config.compile == "auto":
        return compiled.pays(config, dataset, world)
    if config.compile and (reason := compiled.why_not(resolve_device(config.device))) is not None:
        raise InputError(f"torch.compile does not work here: {COMPILER}, or add --no-compile ({reason})")
    return config.compile


def _reachable_data(folder: RunFolder, config: Config, given: Dataset | None) -> Dataset:
    """The data, after checking that no package is missing."""
    must_be_installed(config.track)
    data = build_dataset(config) if given is None else given
    if isinstance(data, External):
        given_before = isinstance(config.data, OwnData)
        why = (
            "on data given to ditlab.fit: give them again, as dataset="
            if given_before
            else "elsewhere: its data are not here"
        )
        raise InputError(f"{folder.path} was trained {why}")
    return data


def _prepare(folder: RunFolder, dataset: Prepared, watcher: Watcher, ranks: Ranks) -> str:
    """Prepare the data; the first process lists the files that cannot be used."""
    shown = watcher.preparing if isinstance(watcher, PreparationWatcher) else None
    return dataset.prepare(folder.quarantine_file if ranks.first else None, shown)


def _train(folder: RunFolder, state: TrainState, dataset: Dataset, watcher: Watcher, done: int | None) -> None:
    """Take the steps, with everything that watches and records them."""
    config, ranks = state.config, state.ranks
    with (
        tracking(folder, config, done, watcher.notice) if ranks.first else nullcontext(Nobody()) as tracker,
        collected(patient=ranks.world > 1) as received,  # torchrun repeats signals that every process received
        Watchdog(folder.path, config.stall_after) as watchdog,
        CheckpointWriter(folder.checkpoints, state, watchdog.beat) as writer,
    ):
        evaluate = None
        if config.eval_every:
            process, device = state.averaged_process, state.device
            told = watcher.notice, watchdog.beat
            evaluate = InTraining(config, process, dataset, device, ranks, *told).figures
        recorder = Recorder(folder, state, dataset, watcher, tracker, writer, watchdog.beat, evaluate)
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
    """The signal that any process has received, or 0; all processes stop after the same step."""
    return int(max(told[0] for told in ranks.told([received[0] if received else 0])))


@contextmanager
def _partners(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Report in one line that another process is gone, and write down the stacks of this one."""
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


def _begin(folder: RunFolder, state: TrainState, watcher: Watcher, resume: bool) -> int | None:
    """Load the newest checkpoint and cut the folder back to it; its step, or None to start from scratch.

    Nothing is deleted before the checkpoint is loaded.
    """
    config, ranks = state.config, state.ranks
    done = ranks.decided(lambda: _found(folder, state, resume))
    ranks.agree(lambda: weights_of(folder.checkpoints, done))
    if done is not None and ranks.world > 1:
        load_checkpoint(folder.checkpoints, state, done, checked=True)

    def begin() -> None:
        if done and (said := _raised_rate(folder.read_config(), config, done)):
            watcher.notice(said)
        folder.write_config(config)
        folder.cut(-1 if done is None else done)

    ranks.decided(begin)
    return done


def _raised_rate(before: Config, config: Config, done: int) -> str | None:
    """A warning if another number of steps makes the learning rate jump."""
    was, now = (config.lr * scheduled(*place) for place in ((before, done - 1), (config, done)))
    if before.rewarmed_at != config.rewarmed_at or before.steps == config.steps or now < RAISED * was:
        return None
    return (
        f"the learning rate jumps from {was:.2g} to {now:.2g}, for the cosine of {before.steps:,} steps now takes "
        f"{config.steps:,}; with --rewarm it rises over {config.warmup_steps:,} steps, in a schedule of its own"
    )


def _found(folder: RunFolder, state: TrainState, resume: bool) -> int | None:
    """The step of the newest whole checkpoint, which is loaded if this process trains alone."""
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
    if done is None and folder.trained_beyond(2 * config.checkpoint_every):  # by then the first one was written
        raise InputError(
            f"{folder.path} was trained, but {folder.checkpoints} has no checkpoints: bring them back, or remove "
            f"{folder.path} to start again"
        )
    if done is not None and config.steps < done:
        raise InputError(f"{folder.path} is at step {done}; --steps {config.steps} lies behind it")
    return done


def _check_null_label(state: TrainState, dataset: Dataset) -> None:
    """Refuse, before anything is written, dropping labels that the network cannot do without."""
    if "label" in dataset.conditions and state.process.condition_dropout == 0 and state.config.sampling.guidance != 1:
        raise InputError(
            f"--sampling.guidance {state.config.sampling.guidance:g} compares with samples without a label, which "
            f"--process.condition-dropout 0 never trains: drop one of the two"
        )
    goes_without = state.process.condition_dropout > 0 or state.config.sampling.guidance != 1
    take_away: Any = getattr(state.network, "null_condition", None)
    if "label" in dataset.conditions and goes_without and take_away is not None:
        take_away({"label": torch.zeros(1, dtype=torch.int64, device=state.device)})

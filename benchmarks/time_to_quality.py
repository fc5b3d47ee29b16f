"""How long until samples are valid circles? Compares our recipe with the paper's, and measures each change.

    python benchmarks/time_to_quality.py                 35 minutes on two CPU cores: against the paper's recipe
    python benchmarks/time_to_quality.py --take-back     an hour: against ours with one change at a time taken back

Time is counted in the steps of each training, including compilation (each has its own compiler cache, empty at first)
but not drawing and measuring. All take turns of a few seconds in one process, so that a noisy machine disturbs all
equally. A training is checked after a turn if a tenth of its time has passed since its last check, with samples drawn
from the averaged weights. The goal is 0.90 of 1,000 valid circles in two consecutive checks; the first of them counts.
If fewer than 0.85 of 300 are valid, the 1,000 are not drawn. There is one seed each, so the figures do not show how
much another seed would change them.

The paper's recipe (Peebles & Xie 2023): DDPM with 1,000 linear steps, eps, AdamW at a constant 1e-4 without decay or
clipping, averages of 0.9999, MLP ratio 4, sine-cosine positions, tanh GELU, 256 time features.
Differences because the circles are small and have no labels: width 64 and 4 blocks, batch 128 instead of 256, no
latents. Other differences: the variance is not learned, so the loss is that of eps alone; the decay of the averages
grows as (1 + n)/(10 + n), which forgets the first weights sooner; and steps whose loss is a spike are skipped. In its
favour, the best of averaged and last weights and of two samplers counts (250 ancestral steps as published, and 50 of
DDIM), and it uses bf16 products like ours. It runs for the larger of 5 × our time and 15 minutes. With ``--take-back``
each change runs for 3 × our time at most.

Figures are written after each turn, so nothing is lost if it is stopped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ditlab.bench.machine import as_result, write_result
from ditlab.bench.training import as_trained
from ditlab.config import AdamWConfig, Config, DDPMConfig, DiTConfig, FlowConfig, SamplingConfig
from ditlab.diffusion.process import Process
from ditlab.evaluation.metrics.discs import VALID_OVERLAP, disc_overlap
from ditlab.recipes import UNCLIPPED, circles
from ditlab.runs.build import build_dataset
from ditlab.runs.sampling import build_drawing
from ditlab.training.compilation import uncompiled
from ditlab.training.loop import TrainState, train

HERE = Path(__file__).parent
GOAL, SCREEN = 0.90, 0.85
LOOK = 0.1  # share of a training's time between two checks
VERSIONS = 64  # compiled versions of the same code that torch allows: one for each contender
SAMPLES, FEW_SAMPLES = 1000, 300
OURS, PAPER = "ours", "paper"
DDIM = SamplingConfig(solver="ddim", steps=50)
ANCESTRAL = SamplingConfig(solver="ancestral", steps=250)
ENDLESS = 10**7  # steps of a constant schedule


def paper() -> Config:
    """The paper's recipe, for circles."""
    changes: dict[str, Any] = {
        "network": DiTConfig(mlp_ratio=4.0, positions="sincos", gelu="tanh", time_features=256),
        "process": DDPMConfig(),
        "optimizer": AdamWConfig(),
        "lr": 1e-4,
        "warmup_steps": 0,
        "schedule": "constant",
        "steps": ENDLESS,
        "average_every": ENDLESS,
        "grad_clip": UNCLIPPED,
        "ema_decay": 0.9999,
        "averages": (),
    }
    return circles().model_copy(update=changes)


def taken_back() -> dict[str, Config]:
    """Our recipe with one change at a time taken back."""
    ours = circles()
    changes: dict[str, dict[str, Any]] = {
        "flow matching -> DDPM, eps": {"process": DDPMConfig()},
        "times shifted to the data -> uniform": {"process": FlowConfig()},
        "Muon -> AdamW at 2e-3": {"optimizer": AdamWConfig(), "lr": 2e-3},
        "cosine -> constant": {"schedule": "constant", "steps": ENDLESS, "average_every": ENDLESS},
        "averages of 0.995 -> 0.9999": {"ema_decay": 0.9999},
        "MLP ratio 2 -> 4": {"network": DiTConfig(mlp_ratio=4.0)},
        "bf16 -> fp32": {"precision": "fp32"},
    }
    return {name: ours.model_copy(update=change) for name, change in changes.items()}


class Contender:
    """A training with its own clock, and the quality of its samples over time.

    Args:
        name: under which it is reported.
        config: what it trains.
        samplings: how samples are drawn; the best counts.
        generous: whether the best of averaged and last weights counts, instead of only the averaged ones.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        samplings: list[SamplingConfig],
        generous: bool = False,
    ) -> None:
        self.name, self.generous, self.samplings = name, generous, samplings
        self.cache = tempfile.TemporaryDirectory()
        config = config.model_copy(update={"device": "cpu"})
        dataset = build_dataset(config)
        self.config = as_trained(config, dataset)
        self.state = TrainState(self.config, dataset)
        self.steps = train(self.state, dataset)
        self.seconds, self.first_step, self.over = 0.0, 0.0, False
        self.curve: list[dict[str, Any]] = []

    @property
    def arrived(self) -> float | None:
        """Seconds of training at the first of two consecutive measurements that reached the goal."""
        good = [point["valid"] >= GOAL and point["n"] == SAMPLES for point in self.curve]
        twice = zip(self.curve, good, good[1:], strict=False)
        return next((point["seconds"] for point, now, then in twice if now and then), None)

    def advance(self, seconds: float) -> None:
        """Train for the given seconds of its own clock, or to the end of its schedule."""
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.cache.name  # read whenever something is compiled
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            if next(self.steps, None) is None:
                self.over = True
                break
            self.first_step = self.first_step or time.perf_counter() - begun
        self.seconds += time.perf_counter() - begun

    @property
    def due(self) -> bool:
        """Whether a check is due: a tenth of its time has passed since the last one."""
        return self.seconds >= (1 + LOOK) * self.measured

    @property
    def compile_seconds(self) -> float:
        """Time of the first step beyond the mean of the others; 0 if nothing was compiled."""
        if not self.config.compile or self.state.step < 2:
            return 0.0
        return max(0.0, self.first_step - (self.seconds - self.first_step) / (self.state.step - 1))

    @property
    def measured(self) -> float:
        """Seconds of training at the last measurement."""
        return self.curve[-1]["seconds"] if self.curve else 0.0

    def measure(self) -> None:
        """Add a point to the curve."""
        found = self._valid(FEW_SAMPLES)
        if max(found.values()) >= SCREEN:
            found = self._valid(SAMPLES)
        best = max(found, key=lambda way: found[way])
        n = SAMPLES if max(found.values()) >= SCREEN else FEW_SAMPLES
        point = {"seconds": round(self.seconds, 2), "steps": self.state.step, "valid": found[best], "n": n}
        self.curve.append(point | {"drawn_by": best})

    def _valid(self, n: int) -> dict[str, float]:
        processes = {"ema": self.state.averaged_process} | ({"raw": self.state.process} if self.generous else {})
        with uncompiled(self.state.network):  # do not compile for batches that are only sampled
            return {
                f"{sampling.solver}, {sampling.steps} steps, {weights}": valid(process, sampling, n)
                for weights, process in processes.items()
                for sampling in self.samplings
            }

    def report(self) -> dict[str, Any]:
        """What is written."""
        sections = ("network", "process", "optimizer")
        settings = ("batch_size", "lr", "warmup_steps", "schedule", "steps", "ema_decay", "precision", "compile")
        told = self.config.model_dump(mode="json", include={*sections, *settings})
        before = [p["seconds"] for p in self.curve if self.arrived is None or p["seconds"] < self.arrived]
        return {
            "seconds": self.arrived,
            "not_yet_at_seconds": max(before, default=0.0),
            "compile_seconds": round(self.compile_seconds, 2),
            "trained_seconds": round(self.seconds, 2),
            "trained_steps": self.state.step,
            "schedule_ended": self.over,
            "best_valid": max((p["valid"] for p in self.curve), default=0.0),
            "config": told,
            "curve": self.curve,
        }


def valid(process: Process, sampling: SamplingConfig, n: int) -> float:
    """Share of valid circles among n samples."""
    drawing = build_drawing(sampling, process, guided=False)
    samples = process.sample(n, (1, 16, 16), seed=0, **drawing).clamp(-1, 1)
    return float((disc_overlap(samples) >= VALID_OVERLAP).double().mean())


class Race:
    """Contenders that take turns until each has reached the goal or used up its time.

    Args:
        contenders: the first is ours.
        turn: seconds of a turn.
        times, least: others run to the larger of ``times`` × our time and ``least`` seconds.
        minutes: of wall time, after which all end.
    """

    def __init__(self, contenders: list[Contender], turn: float, times: float, least: float, minutes: float) -> None:
        self.ours, self.contenders = contenders[0], contenders
        self.turn, self.times, self.least = turn, times, least
        self.ends = time.monotonic() + 60 * minutes

    def runs_on(self, contender: Contender) -> bool:
        """Whether it takes another turn."""
        if contender.over or contender.arrived is not None or time.monotonic() > self.ends:
            return False
        if contender is self.ours or self.runs_on(self.ours):
            return True
        own = self.ours.arrived or self.ours.seconds
        return contender.seconds < max(self.times * own, self.least)

    def turns(self) -> Iterator[Contender]:
        """Give turns; yields each contender after it was measured."""
        while running := [contender for contender in self.contenders if self.runs_on(contender)]:
            for contender in running:
                contender.advance(self.turn)
                if contender.due or not self.runs_on(contender):
                    contender.measure()
                    yield contender

    def report(self, contender: Contender) -> dict[str, Any]:
        """What is written of a contender: ``times_ours`` is a bound from below where ``censored``."""
        own, figures = self.ours.arrived, contender.report()
        figures["censored"] = contender.arrived is None
        figures["times_ours"] = None if own is None else (contender.arrived or contender.seconds) / own
        return figures


def plot(figures: dict[str, Any], file: Path) -> None:
    """Draw valid circles by seconds of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, run in figures["runs"].items():
        points = [(point["seconds"], point["valid"]) for point in run["curve"]]
        axes.plot(*zip(*points, strict=True), label=name, marker=".", linewidth=2.5 if name == OURS else 1.2)
    axes.axhline(GOAL, color="0.6", linestyle=":", linewidth=1)
    axes.set(xlabel="seconds of training", ylabel="share of valid circles", ylim=(-0.02, 1.02), xscale="log")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    plain.savefig(file, dpi=120)
    pyplot.close(plain)


def contenders(take_back: bool) -> list[Contender]:
    """Our recipe, and those it is compared with."""
    own = circles().sampling
    ours = Contender(OURS, circles(), [own])
    if not take_back:
        return [ours, Contender(PAPER, paper(), [ANCESTRAL, DDIM], generous=True)]
    others = taken_back().items()
    return [ours, *(Contender(n, c, [own, DDIM] if c.process.kind == "ddpm" else [own]) for n, c in others)]


def main() -> None:
    """Race, writing as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take-back", action="store_true", help="take one change at a time back")
    parser.add_argument("--minutes", type=float, default=120.0, help="wall time after which it ends in any case")
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of training at a time")
    parser.add_argument("--least", type=float, help="minimum seconds for the others; 900 for the paper's recipe")
    parser.add_argument("--out", type=Path, help="JSON file to write; the picture goes next to it")
    options = parser.parse_args()
    name = "what_bought_it" if options.take_back else "time_to_quality"
    out = options.out or HERE / "results" / f"{name}.json"
    times, least = (3.0, 0.0) if options.take_back else (5.0, 900.0)
    least = least if options.least is None else options.least
    torch._dynamo.config.recompile_limit = VERSIONS
    race = Race(contenders(options.take_back), options.turn, times, least, options.minutes)
    for last in race.turns():
        point = last.curve[-1]
        print(
            f"{last.name:<38}{point['seconds']:8.1f} s {point['steps']:7,} steps  valid {point['valid']:.3f}",
            flush=True,
        )
        figures = {
            "goal": GOAL,
            "samples": SAMPLES,
            "seeds": 1,
            "look": LOOK,
            "turn_seconds": options.turn,
            "least_seconds": least,
        }
        figures |= {"most_times_ours": times, "runs": {c.name: race.report(c) for c in race.contenders if c.curve}}
        write_result(out, as_result(figures))
        plot(figures, out.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""What does the network do when x_t is almost data, and when it is almost noise?

    python -m studies.time_ends            two or three minutes on two CPU cores; other studies use the three runs, too
    python -m studies.time_ends --full     five to eight

Claim: at t near 0 the network returns x almost unchanged; at t near 1 it predicts the structure of an image. What is
meant by handing on is the denoised image x̂0 that follows from the prediction: here velocity on the linear path, x̂0 =
x_t − t·v, so that near t = 0 any bounded v hands x on, an untrained network's as well. So two more things are measured:
how much of the noise that is there is taken away, and how much of v itself is x_t. Near 1, structure is what x̂0 has
beyond the mean of the data: how much x̂0 varies from sample to sample, and how much of the variance of x0 about that
mean it explains. Both are judged at t = 1, 0.9 and 0.8. Expect: x̂0 differs from x_t by no more than the noise; and yet
that noise is what is taken away. At t = 1 x̂0 is the mean of the data, the same for all noise, and no disc; a little
below it has structure.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.evaluation.metrics.discs import VALID_OVERLAP, disc_overlap
from ditlab.runs.run import Run
from studies.intervals import CONFIRMED, Measured, above, below, curve_over_seeds, every, over_seeds
from studies.plots import COLORS, band, key_below, level, name, page, upright
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
NEAR_DATA = TIMES.index(0.02)
NEAR_NOISE = (1.0, 0.9, 0.8)
HALF = 0.5  # threshold for the noise left, and for the spread and variance of the data
ALMOST = 0.1  # share of x_t that may change while it counts as almost unchanged
SHOWN = (0.02, 0.2, 0.5, 0.8, 0.95, 1.0)
MEAN_OF = 20_000  # images for the mean of the data
SHARES = ("velocity on x_t", "on x_t", "on x0", "valid")  # stay in [0, 1]
Table = dict[str, np.ndarray]  # of one run, (T,) each


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Measure the base runs on the same images and noise at every time."""
    runs = [run.load() for run in workers.train({f"base-{seed}": base(tier, seed) for seed in tier.seeds}).values()]
    images = 4 * tier.images
    x0 = circles(images, generator_for(0, "study of times")).images
    noise = torch.randn(x0.shape, generator=generator_for(0, "study of times", "noise"))
    mean = circles(MEAN_OF, generator_for(0, "study of times", "mean")).images.mean(0)
    seen = [ask(run, x0, noise, mean) for run in runs]
    rows = [
        {
            "t": t,
            "x̂0 − x_t over x_t": str(at(seen, "change", i)),
            "noise left": str(at(seen, "left", i)),
            "v that is x_t": str(at(seen, "velocity on x_t", i)),
            "x̂0 that is x_t": str(at(seen, "on x_t", i)),
            "x̂0 that is x0": str(at(seen, "on x0", i)),
            "spread of x̂0": str(at(seen, "spread", i)),
            "variance of x0 explained": str(at(seen, "variance", i)),
            "valid x̂0": str(at(seen, "valid", i)),
        }
        for i, t in enumerate(TIMES)
    ]
    curves: dict[str, Any] = {"t": list(TIMES)}
    curves |= {each: curve_over_seeds([one[each] for one in seen], share=each in SHARES) for each in seen[0]}
    findings = [handing_on(seen), leaving_noise(seen), *(structure(seen, t) for t in NEAR_NOISE)]
    return Outcome(findings, rows, curves | {"pictures": pictures(runs[0], x0, noise)})


@torch.no_grad()
def ask(run: Run, x0: Tensor, noise: Tensor, mean: Tensor) -> Table:
    """Figures of a run at each time.

    Shares of v and x̂0 are of sums of squares about the mean image of the data, moved along the path to t: the part
    explained by a multiple of another quantity, centred in the same way.
    """
    found: dict[str, list[float]] = {}
    spread = rms(x0 - mean)
    for t in TIMES:
        times = torch.full((len(x0),), t)
        x_t = run.process.q_sample(x0, times, noise)
        velocity = run.process.predict(x_t, times, None)
        denoised = run.process.estimate(x_t, times, None).x0
        middle = mean.expand_as(x0)
        moved = x_t - run.process.q_sample(middle, times, torch.zeros_like(noise))
        figures = {
            "change": rms(denoised - x_t) / rms(x_t),
            "left": rms(denoised - x0) / rms(x_t - x0),
            "velocity on x_t": explained(velocity + middle, moved),  # v = ε − x0, whose mean is −mean
            "on x_t": explained(denoised - middle, moved),
            "on x0": explained(denoised - middle, x0 - middle),
            "to mean": rms(denoised - mean) / spread,
            "spread": rms(denoised - denoised.mean(0)) / spread,
            "variance": 1 - (rms(denoised - x0) / spread) ** 2,
            "valid": float((disc_overlap(denoised) >= VALID_OVERLAP).float().mean()),
        }
        for each, value in figures.items():
            found.setdefault(each, []).append(value)
    return {each: np.array(values) for each, values in found.items()}


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.double().square().mean().sqrt())


def explained(y: Tensor, x: Tensor) -> float:
    """The share of Σy² that the best multiple of x explains: (Σxy)²/(Σx²·Σy²); 0 where y is 0."""
    x, y = x.double().flatten(), y.double().flatten()
    whole = float((x @ x) * (y @ y))
    return float((x @ y).square()) / whole if whole > 0 else 0.0


def at(seen: list[Table], key: str, time: int, comparisons: int = 1) -> Measured:
    """A figure at one time, over seeds."""
    return over_seeds([one[key][time] for one in seen], comparisons, share=key in SHARES)


def handing_on(seen: list[Table]) -> Finding:
    """Is x̂0 almost x_t?"""
    t, change = TIMES[NEAR_DATA], at(seen, "change", NEAR_DATA)
    return Finding(
        claim="At t near 0 the denoised image is x_t almost unchanged.",
        measurement=f"Root mean square of x̂0 − x_t over that of x_t at t = {t}; almost means less than {ALMOST}.",
        verdict=below(change, ALMOST),
        reason=f"x̂0 differs from x_t by {change} of it; by construction, for x̂0 = x_t − t·v: where v = 0, as before "
        "training, x̂0 is x_t at every t",
        figures={f"change at t = {t}": change},
    )


def leaving_noise(seen: list[Table]) -> Finding:
    """Is the remaining noise left unchanged?"""
    t, left = TIMES[NEAR_DATA], at(seen, "left", NEAR_DATA)
    return Finding(
        claim="At t near 0 the network leaves even the noise of x_t as it is.",
        measurement=f"Root mean square of x̂0 − x0 over that of x_t − x0 at t = {t}: 1 if x is handed on, 0 if all of "
        "the noise is taken away; it is left if more than half of it is.",
        verdict=above(left, HALF),
        reason=f"{left} of what separates x_t from the data is left",
        figures={f"noise left at t = {t}": left},
    )


def structure(seen: list[Table], t: float) -> Finding:
    """Is the prediction from almost pure noise more than the mean?"""
    time = TIMES.index(t)
    spread, variance = (at(seen, each, time, comparisons=2) for each in ("spread", "variance"))
    valid, away = (at(seen, each, time) for each in ("valid", "to mean"))
    alone = ", out of noise alone," if t == 1 else ""
    last = {each: latest(seen, each) for each in ("spread", "variance", "valid")}
    return Finding(
        claim=f"At t = {t:g}{alone} the network predicts the structure of an image.",
        measurement="Root mean square of x̂0 about its own mean over samples, over that of x0 about the mean of the "
        f"data; and the share of the variance of x0 about that mean that x̂0 explains. It predicts structure if both "
        f"are above {HALF:g}. Beside them, the share of x̂0 that are valid discs.",
        verdict=every([above(spread, HALF), above(variance, HALF)]),
        reason=f"x̂0 varies by {spread} of the spread of data and explains {variance} of the variance of x0; {valid} of "
        f"x̂0 are valid discs. The largest t looked at where the interval is above {HALF:g}: {last['spread']} for the "
        f"spread, {last['variance']} for the variance explained, {last['valid']} for valid discs",
        figures={
            f"spread of x̂0 at t = {t:g}": spread,
            f"variance of x0 explained at t = {t:g}": variance,
            f"valid x̂0 at t = {t:g}": valid,
            f"distance to the mean at t = {t:g}": away,
        },
    )


def latest(seen: list[Table], key: str) -> str:
    """The largest t at which the whole interval over seeds is above a half."""
    return next(
        (f"{t:g}" for i, t in reversed(list(enumerate(TIMES))) if above(at(seen, key, i), HALF) == CONFIRMED), "none"
    )


@torch.no_grad()
def pictures(run: Run, x0: Tensor, noise: Tensor) -> dict[str, Any]:
    """x_t and x̂0 of one image at some times, to a hundredth."""
    chosen = slice(1, 2)
    rows: dict[str, list[Any]] = {"x_t": [], "x̂0": []}
    for t in SHOWN:
        time = torch.tensor([t])
        x_t = run.process.q_sample(x0[chosen], time, noise[chosen])
        denoised = run.process.estimate(x_t, time, None).x0
        for row, image in (("x_t", x_t), ("x̂0", denoised)):
            rows[row].append([[round(float(value), 2) for value in line] for line in image[0, 0]])
    return {"t": list(SHOWN), **rows}


def draw(told: dict[str, Any]) -> Figure:
    """The remainder of x_t and its noise, the structure, and pictures; bands are intervals over seeds."""
    curves = told["curves"]
    figure, (left, middle, right) = page("What the network makes of x_t near data and near noise", 3, height=3.9)
    near_data = {"change": "x̂0 − x_t over x_t", "left": "error of x̂0 over that of x_t (noise left)"}
    near_noise = {
        "spread": "spread of x̂0 over that of data",
        "variance": "variance of x0 explained",
        "valid": "valid x̂0",
    }
    for axes, lines, shades in ((left, near_data, COLORS), (middle, near_noise, COLORS[2:])):
        for shade, (each, label) in zip(shades, lines.items(), strict=False):
            band(axes, curves["t"], curves[each], shade, label=label, marker="o", markersize=2.5)
        key_below(axes)
    left.set_ylim(0, 1.5)
    level(left, ALMOST, "below: almost unchanged", COLORS[0])
    level(left, HALF, "above: noise is left", COLORS[1], left=True)
    upright(left, TIMES[NEAR_DATA], "judged here", height=0.94)
    name(left, "near data: is x_t handed on?", "t (0: data, 1: noise)")
    middle.set_ylim(-0.03, 1.08)
    level(middle, 1.0, "as the data")
    level(middle, HALF, "above: structure", left=True)
    name(middle, "near noise: is there structure?", "t (0: data, 1: noise)")
    strip(right, curves["pictures"])
    return figure


def strip(axes: Axes, shown: dict[str, Any]) -> None:
    """Pictures in two rows: x_t above, x̂0 below."""
    gap, size = 2, 16
    canvas = np.full((2 * size + gap, len(shown["t"]) * (size + gap) - gap), np.nan)
    for row, kind in enumerate(("x_t", "x̂0")):
        for column, image in enumerate(shown[kind]):
            canvas[row * (size + gap) :, column * (size + gap) :][:size, :size] = image
    axes.imshow(canvas, cmap="gray", vmin=-1, vmax=1)
    middles = [column * (size + gap) + size / 2 for column in range(len(shown["t"]))]
    axes.set_xticks(middles, [str(t) for t in shown["t"]])
    axes.set_yticks([size / 2, 1.5 * size + gap], ["x_t", "x̂0"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    name(axes, "one image", "t")


STUDY = Study(
    "time_ends",
    "At t near 0 the network hands x on almost unchanged; at t near 1 it predicts the structure of an image.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

"""What does the network do where x_t is almost data, and where it is almost noise?

    python -m studies.time_ends            two or three minutes on two CPU cores; the three runs serve other studies too
    python -m studies.time_ends --full     five to eight

Claim: at t near 0 the network hands x on almost unchanged; at t near 1 it predicts the structure of an image.
What is meant by handing on is the denoised image x̂0 that follows from the prediction: here velocity on the linear path,
x̂0 = x_t − t·v, so that near t = 0 any bounded v hands x on, an untrained network's as well. So two more things are
measured: how much of the noise that is there is taken away, and how much of v itself is x_t.
Expect: x̂0 differs from x_t by no more than the noise; and yet that noise is what is taken away. At t = 1 x̂0 is the mean
of the data, the same for all noise, and no disc.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ditlab.chance import generator_for
from ditlab.data.circles import circles
from ditlab.evaluation.shapes import VALID_OVERLAP, disc_overlap
from ditlab.run import Run
from studies.intervals import above, below, over_seeds
from studies.plots import COLORS, key, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
NEAR_DATA, NEAR_NOISE = TIMES.index(0.02), TIMES.index(1.0)
ALMOST = 0.1  # of x_t, that may change where it is handed on almost unchanged
SHOWN = (0.02, 0.2, 0.5, 0.8, 0.95, 1.0)
MEAN_OF = 20_000  # images that the mean of the data is taken over
Table = dict[str, np.ndarray]  # of one run, (T,) each


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Ask the base runs about the same images and noise at every time."""
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
            "x̂0 that is the mean": str(at(seen, "on mean", i)),
            "x̂0 that is x0": str(at(seen, "on x0", i)),
            "valid x̂0": str(at(seen, "valid", i)),
        }
        for i, t in enumerate(TIMES)
    ]
    curves = {"t": list(TIMES)} | {key: np.mean([one[key] for one in seen], axis=0).tolist() for key in seen[0]}
    findings = [handing_on(seen), leaving_noise(seen), being_x(seen), structure(seen)]
    return Outcome(findings, rows, curves | {"pictures": pictures(runs[0], x0, noise)})


@torch.no_grad()
def ask(run: Run, x0: Tensor, noise: Tensor, mean: Tensor) -> Table:
    """Figures of a run at each time; shares are of the sum of squares, explained by a multiple of something."""
    found: dict[str, list[float]] = {}
    spread = rms(x0 - mean)
    for t in TIMES:
        times = torch.full((len(x0),), t)
        x_t = run.process.q_sample(x0, times, noise)
        velocity = run.process.predict(x_t, times, None)
        denoised = run.process.estimate(x_t, times, None).x0
        figures = {
            "change": rms(denoised - x_t) / rms(x_t),
            "left": rms(denoised - x0) / rms(x_t - x0),
            "velocity on x_t": explained(velocity, x_t),
            "on x_t": explained(denoised, x_t),
            "on mean": explained(denoised, mean.expand_as(x0)),
            "on x0": explained(denoised, x0),
            "to mean": rms(denoised - mean) / spread,
            "spread": rms(denoised - denoised.mean(0)) / spread,
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


def at(seen: list[Table], key: str, time: int) -> Any:
    """A figure at a time, over seeds."""
    return over_seeds([one[key][time] for one in seen])


def handing_on(seen: list[Table]) -> Finding:
    """x̂0 is x_t, nearly."""
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
    """The little noise there is stays."""
    t, left = TIMES[NEAR_DATA], at(seen, "left", NEAR_DATA)
    return Finding(
        claim="At t near 0 the network leaves even the noise of x_t as it is.",
        measurement=f"Root mean square of x̂0 − x0 over that of x_t − x0 at t = {t}: 1 if x is handed on, 0 if all of "
        "the noise is taken away; it is left if more than half of it is.",
        verdict=above(left, 0.5),
        reason=f"{left} of what separates x_t from the data is left",
        figures={f"noise left at t = {t}": left},
    )


def being_x(seen: list[Table]) -> Finding:
    """The prediction is made of x_t."""
    t, share = TIMES[NEAR_DATA], at(seen, "velocity on x_t", NEAR_DATA)
    return Finding(
        claim="At t near 0 what the network itself puts out, the velocity, is a multiple of x_t.",
        measurement=f"Share of the sum of squares of v at t = {t} that the best multiple of x_t explains; it is one if "
        "that is more than 0.9.",
        verdict=above(share, 0.9),
        reason=f"{share} of it is explained: v is ε − x0, and ε is another half",
        figures={f"share of v explained by x_t at t = {t}": share},
    )


def structure(seen: list[Table]) -> Finding:
    """What is predicted out of pure noise is an image."""
    valid, spread, away = (at(seen, each, NEAR_NOISE) for each in ("valid", "spread", "to mean"))
    first = [TIMES[max(np.flatnonzero(one["valid"] >= 0.5), default=0)] for one in seen]
    return Finding(
        claim="At t = 1, out of noise alone, the network predicts the structure of an image.",
        measurement="Share of x̂0 at t = 1 that are valid discs; it predicts structure if most are. How much x̂0 varies "
        "with the noise, and how far it is from the mean of the data, both over the spread of the data.",
        verdict=above(valid, 0.5),
        reason=f"{valid} of x̂0 are valid discs: x̂0 varies by {spread.value:.3f} of the spread of data and is "
        f"{away.value:.3f} of it away from their mean; most are valid at t = {max(first):g} and below",
        figures={"valid x̂0 at t = 1": valid, "spread of x̂0 at t = 1": spread, "distance to the mean at t = 1": away},
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
    """What x̂0 is made of, what is left of the noise, and pictures."""
    curves = told["curves"]
    figure, (left, middle, right) = page("What the network makes of x_t near data and near noise", 3)
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.5}
    made_of = {"on x_t": "x_t", "on mean": "the mean of data", "on x0": "x0"}
    for shade, (each, label) in zip(COLORS, made_of.items(), strict=False):
        left.plot(curves["t"], curves[each], color=shade, label=label, **dots)
    left.set_ylim(0, 1.03)
    name(left, "share of x̂0 explained by", "t (0: data, 1: noise)")
    key(left)
    shares = {"left": "error of x̂0 over that of x_t", "spread": "spread of x̂0 over that of data", "valid": "valid x̂0"}
    for shade, (each, label) in zip(COLORS[3:], shares.items(), strict=False):
        middle.plot(curves["t"], curves[each], color=shade, label=label, **dots)
    middle.set_ylim(0, 1.5)
    level(middle, 1.0, "x_t handed on")
    name(middle, "what is left: of the noise, of the data", "t")
    key(middle, loc="upper left")
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

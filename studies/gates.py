"""Do gates open over training, and does the effective depth grow?

    python -m studies.gates            two or three minutes on two CPU cores; other studies use the three runs, too
    python -m studies.gates --full     five to eight

Claim: the gates of adaLN-Zero start shut and open during training, and so does the number of contributing branches.
Expect: gates and effective depth quickly reach an early peak and fall from it. Gates then open again slowly and end
below their peak, and so does the effective depth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.lab.lens.recordings import gate_recordings
from ditlab.runs.folder import RunFolder
from studies.intervals import Measured, above, every, exact, over_seeds
from studies.plots import COLORS, key_below, name, page, upright
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

Series = dict[str, np.ndarray]
DEPTH = "(Σc)²/Σc² over the branches, c being what a branch adds over its input, mean over t"
FOLLOWED: dict[str, Callable[[Series], np.ndarray]] = {
    "gate": lambda one: one["gate"].mean((1, 2)),
    "depth": lambda one: one["depth"],
}


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Read the base runs' recordings of gates and branches."""
    runs = workers.train({f"base-{seed}": base(tier, seed) for seed in tier.seeds})
    seen = [recorded(run) for run in runs.values()]
    steps = seen[0]["step"]
    turns = [turning(one["gate"].mean((1, 2))) for one in seen]
    shown = {
        0,
        1,
        len(steps) // 10,
        len(steps) // 4,
        len(steps) // 2,
        len(steps) - 1,
        *(i for both in turns for i in both),
    }
    rows = [
        {
            "share of training": f"{steps[i] / steps[-1]:.1%}",
            "step": int(steps[i]),
            "mean |gate|": str(over_seeds([one["gate"][i].mean() for one in seen])),
            "effective depth": str(over_seeds([one["depth"][i] for one in seen])),
        }
        for i in sorted(shown)
    ]
    curves = {
        "step": steps.tolist(),
        "gate": [one["gate"].mean((1, 2)).tolist() for one in seen],
        "depth": [one["depth"].tolist() for one in seen],
        "branch": np.stack([one["gate"] for one in seen]).mean(0).reshape(len(steps), -1).T.tolist(),
        "peak": {what: [int(steps[turning(of(one))[0]]) for one in seen] for what, of in FOLLOWED.items()},
    }
    return Outcome([opening(seen), deepening(seen), keeping_on(seen), growing(seen)], rows, curves)


def recorded(run: Trained) -> Series:
    """Means over the recorded t: gates (S, L, 2) and effective depth (S,), at the S recorded steps."""
    tables = gate_recordings(RunFolder(run.folder))
    return {
        "step": tables["step"].numpy(),
        "gate": tables["gate"].mean(1).double().numpy(),
        "depth": tables["effective_depth"].mean(1).double().numpy(),
    }


def opening(seen: list[Series]) -> Finding:
    """Are gates shut at first and open at the end?"""
    first = exact(max(one["gate"][0].max() for one in seen))
    last = over_seeds([one["gate"][-1].mean() for one in seen])
    return Finding(
        claim="The gates start at 0 and are open after training.",
        measurement="Largest mean |gate| of a branch before the first step; mean |gate| of all, over t, at the end.",
        verdict=every([above(last, 0), "confirmed" if first.high == 0 else "contradicted"]),
        reason=f"mean |gate| is {first} before training and {last} after",
        figures={"largest mean |gate| at the start": first, "mean |gate| at the end": last},
    )


def deepening(seen: list[Series]) -> Finding:
    """Do more branches contribute at the end than before?"""
    first, last = (over_seeds([one["depth"][i] for one in seen]) for i in (0, -1))
    change = over_seeds([one["depth"][-1] - one["depth"][0] for one in seen])
    return Finding(
        claim="The effective depth is greater after training than before it.",
        measurement=f"{DEPTH}: at the end less that before the first step.",
        verdict=above(change, 0),
        reason=f"it is {first} before training and {last} after",
        figures={"change from start to end": change, "at the start": first, "at the end": last},
    )


def turning(values: np.ndarray) -> tuple[int, int]:
    """Where a curve was highest before its largest fall, and lowest after it; both 0 if it never fell."""
    falls = values - np.maximum.accumulate(values)
    lowest = int(np.argmin(falls))
    return int(np.argmax(values[: lowest + 1])), lowest


def keeping_on(seen: list[Series]) -> Finding:
    """Are gates further open at the end than at the early peak?"""
    return since_the_peak(
        "After their early peak the gates go on opening: at the end they are open further than at the peak.",
        "Mean |gate| of all branches",
        [FOLLOWED["gate"](one) for one in seen],
        seen[0]["step"],
    )


def growing(seen: list[Series]) -> Finding:
    """Do more branches contribute at the end than at the early peak?"""
    return since_the_peak(
        "After its early peak the effective depth goes on growing: at the end it is greater than at the peak.",
        DEPTH,
        [FOLLOWED["depth"](one) for one in seen],
        seen[0]["step"],
    )


def since_the_peak(claim: str, what: str, curves: list[np.ndarray], steps: np.ndarray) -> Finding:
    """The change from the peak to the end, with the minimum in between."""
    turns = [turning(curve) for curve in curves]

    def change(begin: Callable[[tuple[int, int]], int], end: Callable[[tuple[int, int]], int]) -> Measured:
        return over_seeds([curve[end(both)] - curve[begin(both)] for curve, both in zip(curves, turns, strict=True)])

    whole, fall, rise = (
        change(lambda both: both[0], lambda _: -1),
        change(lambda both: both[0], lambda both: both[1]),
        change(lambda both: both[1], lambda _: -1),
    )
    peaks, lows = ([int(steps[both[i]]) for both in turns] for i in (0, 1))
    fallen = sum(both[1] > both[0] for both in turns)
    course = (
        f"the curve is not monotone in {fallen} of {len(turns)} seeds: from its peak at step {listed(peaks)} it "
        f"changed by {fall} to its lowest after, at step {listed(lows)}, and from there to the end by {rise}"
        if fallen
        else "it rose from one recording to the next in all seeds"
    )
    return Finding(
        claim=claim,
        measurement=f"{what}: its value at the end less that at the early peak, which is where it stood highest before "
        "the largest fall it had (the start, if it never fell); and the change to the lowest after and from there to "
        "the end, which by their making are not above and not below 0.",
        verdict=above(whole, 0),
        reason=f"it changed by {whole} from its early peak to the end; {course}",
        figures={
            "change from early peak to end": whole,
            "change from early peak to lowest after": fall,
            "change from lowest after to end": rise,
            "at the early peak": over_seeds([curve[both[0]] for curve, both in zip(curves, turns, strict=True)]),
            "at the end": over_seeds([curve[-1] for curve in curves]),
        },
    )


def listed(steps: list[int]) -> str:
    """Steps of all seeds, written once if they agree."""
    return f"{steps[0]:,}" if len(set(steps)) == 1 else " / ".join(f"{step:,}" for step in steps)


def draw(told: dict[str, Any]) -> Figure:
    """Gates and effective depth against steps; one line per seed."""
    curves = told["curves"]
    figure, (left, middle, right) = page("How far gates open in training, and how many branches work", 3, height=3.9)
    for axes, series in ((left, "gate"), (right, "depth")):
        for seed, values in zip(told["seeds"], curves[series], strict=True):
            axes.plot(curves["step"], values, color=COLORS[seed % len(COLORS)], linewidth=1.4, label=f"seed {seed}")
        upright(axes, float(np.mean(curves["peak"][series])), "early peak")
        key_below(axes, ncols=len(told["seeds"]))
    for branch, values in enumerate(curves["branch"]):
        color, style = COLORS[branch // 2 % len(COLORS)], "--" if branch % 2 else "-"
        label = f"block {branch // 2}, {'MLP' if branch % 2 else 'attention'}"
        middle.plot(curves["step"], values, linewidth=1.2, color=color, linestyle=style, label=label)
    key_below(middle, ncols=2)
    for axes in (left, middle, right):
        axes.set_ylim(bottom=0)
    name(left, "mean |gate| of all branches", "step")
    name(middle, "mean |gate| by branch, mean of seeds", "step")
    name(right, f"effective depth, of {len(curves['branch'])} branches", "step")
    return figure


STUDY = Study(
    "gates",
    "The gates of adaLN-Zero start shut and open as training goes on, and the effective depth grows with them.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

"""Do gates open over training, and does the effective depth grow?

    python -m studies.gates            two or three minutes on two CPU cores; the three runs serve other studies too
    python -m studies.gates --full     five to eight

Claim: the gates of adaLN-Zero start shut and open as training goes on, and with them the number of branches that work.
Expect: gates and effective depth leap at once. Then, from a tenth of training to its end, neither grows.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.lab.recordings import gate_recordings
from ditlab.run import RunFolder
from studies.intervals import above, differences_over_seeds, every, over_seeds
from studies.plots import COLORS, key, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

EARLY = 0.1  # share of training
Series = dict[str, np.ndarray]


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Look at what the base runs recorded of their gates and branches."""
    runs = workers.train({f"base-{seed}": base(tier, seed) for seed in tier.seeds})
    seen = [recorded(run) for run in runs.values()]
    steps = seen[0]["step"]
    early = int(np.searchsorted(steps, EARLY * tier.steps))
    rows = [
        {
            "share of training": f"{steps[i] / steps[-1]:.1%}",
            "step": int(steps[i]),
            "mean |gate|": str(over_seeds([one["gate"][i].mean() for one in seen])),
            "effective depth": str(over_seeds([one["depth"][i] for one in seen])),
        }
        for i in sorted({0, 1, early, len(steps) // 2, len(steps) - 1})
    ]
    curves = {
        "step": steps.tolist(),
        "gate": [one["gate"].mean((1, 2)).tolist() for one in seen],
        "depth": [one["depth"].tolist() for one in seen],
        "branch": np.stack([one["gate"] for one in seen]).mean(0).reshape(len(steps), -1).T.tolist(),
    }
    return Outcome([opening(seen), keeping_on(seen, early), growing(seen, early)], rows, curves)


def recorded(run: Trained) -> Series:
    """Means over the recorded t: gates (S, L, 2) and effective depth (S,), at the S recorded steps."""
    tables = gate_recordings(RunFolder(run.folder))
    return {
        "step": tables["step"].numpy(),
        "gate": tables["gate"].mean(1).double().numpy(),
        "depth": tables["effective_depth"].mean(1).double().numpy(),
    }


def opening(seen: list[Series]) -> Finding:
    """Shut at first, open at last."""
    first = over_seeds([one["gate"][0].max() for one in seen])
    last = over_seeds([one["gate"][-1].mean() for one in seen])
    return Finding(
        claim="The gates start at 0 and are open after training.",
        measurement="Largest mean |gate| of a branch before the first step; mean |gate| of all, over t, at the end.",
        verdict=every([above(last, 0), "confirmed" if first.high == 0 else "contradicted"]),
        reason=f"mean |gate| is {first} before training and {last} after",
        figures={"largest mean |gate| at the start": first, "mean |gate| at the end": last},
    )


def keeping_on(seen: list[Series], early: int) -> Finding:
    """Further open at the end than early on."""
    change = differences_over_seeds(*([one["gate"][i].mean() for one in seen] for i in (-1, early)))
    rising = over_seeds([np.mean(np.diff(one["gate"].mean((1, 2))[1:]) > 0) for one in seen])
    return Finding(
        claim="The gates go on opening as training goes on.",
        measurement="Mean |gate| at the end less that after a tenth of training; how often it rose.",
        verdict=above(change, 0),
        reason=f"mean |gate| changed by {change} from a tenth of training to its end; {rising.value:.0%} of the "
        f"changes from one recording to the next were rises",
        figures={"change of mean |gate|": change, "share of rises": rising},
    )


def growing(seen: list[Series], early: int) -> Finding:
    """More branches at work at the end than early on."""
    change = differences_over_seeds(*([one["depth"][i] for one in seen] for i in (-1, early)))
    last, most = (over_seeds([pick(one["depth"]) for one in seen]) for pick in (lambda depth: depth[-1], np.max))
    return Finding(
        claim="The effective depth grows as training goes on.",
        measurement="(Σc)²/Σc² over the branches, c being what a branch adds over its input, mean over t: its value at "
        "the end less that after a tenth of training.",
        verdict=above(change, 0),
        reason=f"it changed by {change} from a tenth of training to its end; at its height it was {most}, at the end "
        f"{last}",
        figures={"change of effective depth": change, "effective depth at the end": last, "its height": most},
    )


def draw(told: dict[str, Any]) -> Figure:
    """Gates and effective depth against steps; a line a seed."""
    curves = told["curves"]
    figure, (left, middle, right) = page("How far gates open in training, and how many branches work", 3)
    for axes, series in ((left, "gate"), (right, "depth")):
        for seed, values in zip(told["seeds"], curves[series], strict=True):
            axes.plot(curves["step"], values, color=COLORS[seed % len(COLORS)], linewidth=1.4, label=f"seed {seed}")
        axes.set_ylim(bottom=0)
    for branch, values in enumerate(curves["branch"]):
        color, style = COLORS[branch // 2 % len(COLORS)], "--" if branch % 2 else "-"
        label = "" if branch % 2 else f"block {branch // 2}"
        middle.plot(curves["step"], values, linewidth=1.2, color=color, linestyle=style, label=label)
    middle.set_ylim(bottom=0)
    name(left, "mean |gate| of all branches", "step")
    name(middle, "mean |gate| by block: attention —, MLP - -", "step")
    key(middle, ncols=2, loc="lower right")
    name(right, f"effective depth, of {len(curves['branch'])} branches", "step")
    key(left)
    for axes in (left, middle, right):
        axes.axvline(EARLY * told["steps"], color="#cbd5e1", linewidth=1, linestyle=":")
    return figure


STUDY = Study(
    "gates",
    "The gates of adaLN-Zero start shut and open as training goes on, and the effective depth grows with them.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

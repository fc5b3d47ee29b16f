"""Where do patches look, by layer and time: everywhere, at themselves, at their kind?

    python -m studies.attention            two or three minutes on two CPU cores; the three runs serve other studies too
    python -m studies.attention --full     five to eight

Claim: attention reaches every patch; the diagonal of its map is brightest; patches of the disc look at the disc, and
patches of the background at themselves and their neighbours.
Expect: every cell is above zero, some barely. Few patches look at themselves most. Both kinds look at their own more
than chance would, in every layer.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ditlab import probe
from ditlab.chance import generator_for
from ditlab.data.circles import circles
from ditlab.inspection.statistics import brightness, map_statistics, neighbourhood, query_statistics
from ditlab.networks.dit import DiT
from ditlab.run import Run
from studies.intervals import CONFIRMED, CONTRADICTED, Measured, Verdict, above, every, exact, over_seeds
from studies.plots import COLORS, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
FAINT = 1e-3  # a cell that hands on next to nothing
Table = dict[str, np.ndarray]  # of one run, (T, L) each


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Look into the base runs, at the same images and noise."""
    runs = workers.train({f"base-{seed}": base(tier, seed) for seed in tier.seeds})
    seen = [look(run.load(), tier.images) for run in runs.values()]
    layers = seen[0]["near"].shape[1]
    rows = [
        {
            "layer": layer,
            "in-disc, from the disc": str(by_layer(seen, "inside", layer)),
            "chance": f"{by_layer(seen, 'inside_chance', layer).value:.3g}",
            "near, from background": str(by_layer(seen, "near", layer)),
            "chance ": f"{by_layer(seen, 'near_chance', layer).value:.3g}",
            "near, from all": str(by_layer(seen, "near_all", layer)),
            "itself first": str(by_layer(seen, "diagonal_first", layer)),
            "share of itself": str(by_layer(seen, "diagonal", layer)),
            "smallest cell": f"{min(one['smallest'][:, layer].min() for one in seen):.1e}",
        }
        for layer in range(layers)
    ]
    findings = [reaching(seen), diagonal(seen), in_disc(seen, layers), background(seen, layers)]
    shown = ("inside", "inside_chance", "near", "near_chance", "diagonal_first", "diagonal", "smallest")
    means = {key: np.mean([one[key] for one in seen], axis=0).T.tolist() for key in shown}
    return Outcome(findings, rows, {"t": list(TIMES), **means})


@torch.no_grad()
def look(run: Run, images: int) -> Table:
    """Statistics of the maps of a run, (T, L): of the mean over heads, but ``smallest`` and ``faint`` of all heads."""
    network = run.process.network
    assert isinstance(network, DiT)
    grid = network.patch_embed.grid
    x0 = circles(images, generator_for(0, "study of attention")).images
    noise = torch.randn(x0.shape, generator=generator_for(0, "study of attention", "noise"))
    share = brightness(x0, grid)
    found: list[list[dict[str, float]]] = []
    for t in TIMES:
        times = torch.full((images,), t)
        with probe(network, gates=False) as record:
            network(run.process.q_sample(x0, times, noise), times, None)
        found.append([of_layer(record.attention[layer], share, grid) for layer in sorted(record.attention)])
    return {key: np.array([[layer[key] for layer in row] for row in found]) for key in found[0][0]}


def of_layer(maps: Tensor, share: Tensor, grid: tuple[int, int]) -> dict[str, float]:
    """What is asked of the maps of a layer, (B, h, N, N), over an object's share of each patch, (B, N)."""
    mean = maps.mean(1)
    rows = query_statistics(mean, torch.arange(maps.shape[-1]), grid, share)
    kept = ("diagonal_first", "inside", "inside_chance", "near", "near_chance")
    statistics = map_statistics(rows, grid, share)
    return {key: float(statistics[key].mean()) for key in kept} | {
        "near_all": float(rows["near"].mean()),
        "near_all_chance": float(neighbourhood(grid).mean()),
        "equal": 1 / maps.shape[-1],
        "diagonal": float(mean.diagonal(dim1=-2, dim2=-1).mean()),
        "diagonal_first_head": float((maps.argmax(-1) == torch.arange(maps.shape[-1])).float().mean((0, 2)).max()),
        "smallest": float(maps.min()),
        "faint": float((maps < FAINT).float().mean()),
    }


def by_layer(seen: list[Table], key: str, layer: int, less: str | None = None) -> Measured:
    """The mean over times in a layer, over seeds; less another one."""
    return over_seeds([(one[key] - (0 if less is None else one[less]))[:, layer].mean() for one in seen])


def reaching(seen: list[Table]) -> Finding:
    """Every cell above zero."""
    smallest = min(float(one["smallest"].min()) for one in seen)
    faint = over_seeds([one["faint"].mean() for one in seen])
    return Finding(
        claim="In one attention layer every patch reaches every other: no cell of the map is zero.",
        measurement="The smallest cell of all maps (all heads, layers, times, images and seeds), in fp32; and the "
        f"share of cells below {FAINT:g}.",
        verdict=nowhere_zero(smallest),
        reason=f"the smallest cell is {smallest:.1e}; but {faint.value:.0%} of cells are below {FAINT:g}, and hand on "
        "next to nothing",
        figures={"smallest cell": exact(smallest), f"share of cells below {FAINT:g}": faint},
    )


def nowhere_zero(smallest: float) -> Verdict:
    """Whether no cell is zero."""
    return CONFIRMED if smallest > 0 else CONTRADICTED


def diagonal(seen: list[Table]) -> Finding:
    """Most patches look at themselves most, or not."""
    first = over_seeds([one["diagonal_first"].mean() for one in seen])
    share = over_seeds([one["diagonal"].mean() for one in seen])
    most = max(float(one["diagonal_first"].max()) for one in seen)
    head = max(float(one["diagonal_first_head"].max()) for one in seen)
    return Finding(
        claim="The diagonal is brightest: most patches attend to themselves most.",
        measurement="Share of patches that give no other patch more attention than themselves, in the mean over heads, "
        "over layers, times and images; and the mean share a patch gives itself.",
        verdict=above(first, 0.5),
        reason=f"it is true of {first} of patches, of at most {most:.0%} in any layer, time and seed and {head:.0%} in "
        f"any head; a patch gives itself {share.value:.3f}, where equal shares would be "
        f"{seen[0]['equal'].mean():.3f}",
        figures={
            "share of patches that look at themselves first": first,
            "share a patch gives itself": share,
            "largest share in a layer at a time": exact(most),
            "largest share in a head at a time": exact(head),
        },
    )


def in_disc(seen: list[Table], layers: int) -> Finding:
    """More than chance, in every layer."""
    more = {f"layer {i}": by_layer(seen, "inside", i, "inside_chance") for i in range(layers)}
    share = over_seeds([one["inside"].mean() for one in seen])
    chance = float(np.mean([one["inside_chance"].mean() for one in seen]))
    return Finding(
        claim="Patches in the disc attend to patches in the disc.",
        measurement="Share of the attention of patches of the disc that lands on the disc (patches count by how bright "
        "they are), less what a map that looks everywhere alike would give, by layer, mean over times.",
        verdict=every(above(figure, 0) for figure in more.values()),
        reason=f"{share} of it does, where chance gives {chance:.3f}; the excess by layer is "
        + ", ".join(f"{figure.value:+.3f}" for figure in more.values()),
        figures={"share on the disc": share} | {f"excess, {layer}": figure for layer, figure in more.items()},
    )


def background(seen: list[Table], layers: int) -> Finding:
    """More than chance, in every layer."""
    more = {f"layer {i}": by_layer(seen, "near", i, "near_chance") for i in range(layers)}
    share = over_seeds([one["near"].mean() for one in seen])
    chance = float(np.mean([one["near_chance"].mean() for one in seen]))
    return Finding(
        claim="Patches of the background attend to themselves and their neighbours.",
        measurement="Share of the attention of background patches that lands on themselves and the up to eight patches "
        "around, less what a map that looks everywhere alike would give, by layer, mean over times.",
        verdict=every(above(figure, 0) for figure in more.values()),
        reason=f"{share} of it does, where chance gives {chance:.3f}; the excess by layer is "
        + ", ".join(f"{figure.value:+.3f}" for figure in more.values()),
        figures={"share nearby": share} | {f"excess, {layer}": figure for layer, figure in more.items()},
    )


def draw(told: dict[str, Any]) -> Figure:
    """Three shares against t, a line a layer."""
    curves = told["curves"]
    figure, plots = page("Where patches look, by layer and time: the disc, their surroundings, themselves", 3)
    titles = {
        "inside": "from the disc: on the disc",
        "near": "from the background: on itself and neighbours",
        "diagonal_first": "patches that look at themselves most",
    }
    for axes, (key, title) in zip(plots, titles.items(), strict=True):
        for layer, values in enumerate(curves[key]):
            axes.plot(curves["t"], values, color=COLORS[layer % len(COLORS)], marker="o", markersize=3, label=layer)
        if f"{key}_chance" in curves:
            level(axes, float(np.mean(curves[f"{key}_chance"])), "chance")
        axes.set_ylim(0, 1 if key == "diagonal_first" else None)
        name(axes, title, "t (0: data, 1: noise)", "share")
    level(plots[2], 0.5, "most of them")
    plots[0].legend(title="layer", title_fontsize=8, fontsize=8, frameon=False, ncols=2)
    return figure


STUDY = Study(
    "attention",
    "Attention reaches every patch, its diagonal is brightest, patches of the disc look at the disc, and patches of "
    "the background at themselves and their neighbours.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

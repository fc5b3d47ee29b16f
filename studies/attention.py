"""What do patches attend to, by layer and time: everything, themselves, or patches of their kind?

    python -m studies.attention            two or three minutes on two CPU cores; other studies use the three runs, too
    python -m studies.attention --full     five to eight

Claim: attention reaches every patch; the diagonal of its map is brightest; patches of the disc attend to the disc, and
patches of the background to themselves and their neighbours.

A map that ignores the image and attends to neighbours and the middle hits the disc more often than a uniform map. So a
map's score on the disc of its own image is compared with its scores on the discs of all other images: what remains
comes from the image.

Expect: every cell is above zero, some barely. Few patches attend most to themselves. Most of the attention on the disc
would also hit another image's disc.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ditlab import probe
from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.inspection.probe import attention_layers
from ditlab.inspection.statistics import brightness, map_statistics, neighbourhood, query_statistics
from ditlab.networks.dit import DiT
from ditlab.runs.run import Run
from studies.intervals import (
    CONFIRMED,
    CONTRADICTED,
    Measured,
    Verdict,
    above,
    curve_over_seeds,
    every,
    exact,
    over_seeds,
)
from studies.plots import COLORS, FAINT, band, key_below, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
BARELY = 1e-3  # a cell that passes on next to nothing
Table = dict[str, np.ndarray]  # for one run, (T, L) each


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Measure the base runs on the same images and noise."""
    runs = workers.train({f"base-{seed}": base(tier, seed) for seed in tier.seeds})
    seen = [look(run.load(), tier.images) for run in runs.values()]
    layers = seen[0]["near"].shape[1]
    rows = [
        {
            "layer": layer,
            "in-disc, from the disc": str(by_layer(seen, "inside", layer)),
            "other images' discs": str(by_layer(seen, "inside_others", layer)),
            "chance": f"{by_layer(seen, 'inside_chance', layer).value:.3g}",
            "near, from background": str(by_layer(seen, "near", layer)),
            "chance ": f"{by_layer(seen, 'near_chance', layer).value:.3g}",
            "near, from all": str(by_layer(seen, "near_all", layer)),
            "itself first": str(by_layer(seen, "diagonal_first", layer)),
            "share of itself": str(by_layer(seen, "diagonal", layer)),
            "mean share of another": str(by_layer(seen, "off_diagonal", layer)),
            "smallest cell": power_of_ten(min(one["smallest_log"][:, layer].min() for one in seen)),
        }
        for layer in range(layers)
    ]
    findings = [reaching(seen), diagonal(seen), own_cell(seen, layers), in_disc(seen, layers), background(seen, layers)]
    shown = ("inside", "inside_others", "near", "diagonal_first", "diagonal", "off_diagonal")
    curves: dict[str, Any] = {
        each: [curve_over_seeds([one[each][:, layer] for one in seen], share=True) for layer in range(layers)]
        for each in shown
    }
    chance = {each: float(np.mean([one[each] for one in seen])) for each in ("inside_chance", "near_chance", "equal")}
    return Outcome(findings, rows, {"t": list(TIMES)} | curves | chance)


@torch.no_grad()
def look(run: Run, images: int) -> Table:
    """Statistics of the maps of a run, (T, L), averaged over heads; ``smallest_log`` and ``faint`` over all."""
    network = run.process.network
    assert isinstance(network, DiT)
    grid = network.patch_embed.grid
    x0 = circles(images, generator_for(0, "study of attention")).images
    noise = torch.randn(x0.shape, generator=generator_for(0, "study of attention", "noise"))
    share = brightness(x0, grid)
    found: list[list[dict[str, float]]] = []
    for t in TIMES:
        times = torch.full((images,), t)
        with probe(network, gates=False) as record, smallest_logs(network) as logs:
            network(run.process.q_sample(x0, times, noise), times, None)
        found.append(
            [
                of_layer(record.attention[layer], share, grid) | {"smallest_log": logs[layer]}
                for layer in sorted(record.attention)
            ]
        )
    return {key: np.array([[layer[key] for layer in row] for row in found]) for key in found[0][0]}


@contextmanager
def smallest_logs(network: nn.Module) -> Iterator[list[float]]:
    """The smallest log-probability of each layer's maps: tells a cell far below the range of fp32 from zero."""
    logs: list[float] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        q, k, mask = inputs[0].detach().double(), inputs[1].detach().double(), inputs[3] if len(inputs) > 3 else None
        products = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            products = products.masked_fill(~mask, -torch.inf)
        logs.append(float(products.log_softmax(-1).min()))

    handles = [layer.register_forward_hook(hook) for layer in attention_layers(network)]
    try:
        yield logs
    finally:
        for handle in handles:
            handle.remove()


def of_layer(maps: Tensor, share: Tensor, grid: tuple[int, int]) -> dict[str, float]:
    """Statistics of the maps of a layer, (B, h, N, N), given an object's share of each patch, (B, N)."""
    mean, patches = maps.mean(1), maps.shape[-1]
    rows = query_statistics(mean, torch.arange(patches), grid, share)
    kept = ("diagonal_first", "inside", "inside_chance", "near", "near_chance")
    statistics = map_statistics(rows, grid, share)
    own = float(mean.diagonal(dim1=-2, dim2=-1).mean())
    return {key: float(statistics[key].mean()) for key in kept} | {
        "inside_others": inside_others(mean, share),
        "near_all": float(rows["near"].mean()),
        "near_all_chance": float(neighbourhood(grid).mean()),
        "equal": 1 / patches,
        "diagonal": own,
        "off_diagonal": (1 - own) / (patches - 1),
        "diagonal_first_head": float((maps.argmax(-1) == torch.arange(patches)).float().mean((0, 2)).max()),
        "faint": float((maps < BARELY).float().mean()),
    }


def inside_others(maps: Tensor, share: Tensor) -> float:
    """The value of ``inside`` for a map, (B, N, N), paired with the disc of another image, (B, N).

    The mean over all B·(B − 1) such pairs of the attention from a disc's patches to that disc.
    """
    landed = torch.einsum("bqk,ck->bcq", maps, share)  # of map b, on disc c
    scores = (landed * share).sum(-1) / share.sum(-1).clamp_min(1e-12)  # (B, B)
    images = len(share)
    return float((scores.sum() - scores.diagonal().sum()) / (images * (images - 1)))


def by_layer(seen: list[Table], key: str, layer: int) -> Measured:
    """A share by layer: the mean over times, then over seeds."""
    return over_seeds([one[key][:, layer].mean() for one in seen], share=True)


def excess(seen: list[Table], key: str, less: str, layers: int) -> dict[str, Measured]:
    """By layer, one share minus another, averaged over times; intervals hold for all layers together."""
    return {
        f"layer {layer}": over_seeds([(one[key] - one[less])[:, layer].mean() for one in seen], comparisons=layers)
        for layer in range(layers)
    }


def reaching(seen: list[Table]) -> Finding:
    """Is every cell above zero?"""
    smallest = min(float(one["smallest_log"].min()) for one in seen)
    faint = over_seeds([one["faint"].mean() for one in seen], share=True)
    return Finding(
        claim="In one attention layer every patch reaches every other: no cell of the map is zero.",
        measurement="The smallest cell of all maps (all heads, layers, times, images and seeds), as a log-probability "
        f"in fp64, where small cells do not vanish as in fp32; and the share of cells below {BARELY:g}.",
        verdict=nowhere_zero(smallest),
        reason=f"the smallest cell is {power_of_ten(smallest)}: softmax gives each key that is not masked a share, by "
        f"construction; but {faint.value:.0%} of cells are below {BARELY:g}, and hand on next to nothing",
        figures={"log10 of the smallest cell": log10_of(smallest), f"share of cells below {BARELY:g}": faint},
    )


def nowhere_zero(smallest_log: float) -> Verdict:
    """Whether no cell is zero: the log of a masked cell is −∞."""
    return CONFIRMED if np.isfinite(smallest_log) else CONTRADICTED


def log10_of(log: float) -> Measured:
    """A natural logarithm in powers of ten; for a zero cell, a number that JSON can hold."""
    return exact(max(log / np.log(10), -1e6))


def power_of_ten(log: float) -> str:
    """e to a power, even if too small for a float."""
    if not np.isfinite(log):
        return "0"
    exponent = int(np.floor(log / np.log(10)))
    return f"{10 ** (log / np.log(10) - exponent):.1f}e{exponent:+03d}"


def diagonal(seen: list[Table]) -> Finding:
    """Do most patches attend most to themselves?"""
    first = over_seeds([one["diagonal_first"].mean() for one in seen], share=True)
    most = max(float(one["diagonal_first"].max()) for one in seen)
    head = max(float(one["diagonal_first_head"].max()) for one in seen)
    return Finding(
        claim="The diagonal is brightest: most patches attend to themselves most.",
        measurement="Share of patches that give no other patch more attention than themselves, in the mean over heads, "
        "over layers, times and images.",
        verdict=above(first, 0.5),
        reason=f"it is true of {first} of patches, of at most {most:.0%} in any layer, time and seed and {head:.0%} in "
        "any head",
        figures={
            "share of patches that look at themselves first": first,
            "largest share in a layer at a time": exact(most),
            "largest share in a head at a time": exact(head),
        },
    )


def own_cell(seen: list[Table], layers: int) -> Finding:
    """The weaker claim: is the own cell brighter than the mean of the others?"""
    more = excess(seen, "diagonal", "off_diagonal", layers)
    own, other = (over_seeds([one[each].mean() for one in seen], share=True) for each in ("diagonal", "off_diagonal"))
    return Finding(
        claim="The diagonal is brighter than the rest on average: in every layer a patch gives itself more than it "
        "gives another patch in the mean.",
        measurement="The share a patch gives itself less the mean share it gives another, by layer, mean over heads, "
        "times and images.",
        verdict=every(above(figure, 0) for figure in more.values()),
        reason=f"a patch gives itself {own} and another {other}, where equal shares would be "
        f"{seen[0]['equal'].mean():.3f}; the difference by layer is {listed(more)}",
        figures={"share a patch gives itself": own, "mean share it gives another": other}
        | {f"difference, {layer}": figure for layer, figure in more.items()},
    )


def in_disc(seen: list[Table], layers: int) -> Finding:
    """Is it more than on the discs of other images, in every layer?"""
    more = excess(seen, "inside", "inside_others", layers)
    whole = over_seeds([(one["inside"] - one["inside_others"]).mean() for one in seen])
    share, others = (over_seeds([one[each].mean() for one in seen], share=True) for each in ("inside", "inside_others"))
    chance = float(np.mean([one["inside_chance"].mean() for one in seen]))
    return Finding(
        claim="In every layer patches in the disc attend to the disc of their own image more than their place alone "
        "would make them.",
        measurement="Share of the attention of patches of the disc that lands on the disc (patches count by how bright "
        "they are), less what the same maps give for the discs of all other images in its place, by layer, mean over "
        "times. Place alone, as looking nearby, gives 0.",
        verdict=every(above(figure, 0) for figure in more.values()),
        reason=f"{share} of it does; for other images' discs it would be {others}, and if all patches were looked at "
        f"alike {chance:.3f}; the excess over other discs is {whole}, by layer {listed(more)}",
        figures={
            "share on the disc": share,
            "share on other images' discs": others,
            "chance": exact(chance),
            "excess, mean of layers": whole,
        }
        | {f"excess, {layer}": figure for layer, figure in more.items()},
    )


def background(seen: list[Table], layers: int) -> Finding:
    """Is it more than chance, in every layer?"""
    more = excess(seen, "near", "near_chance", layers)
    share = over_seeds([one["near"].mean() for one in seen], share=True)
    chance = float(np.mean([one["near_chance"].mean() for one in seen]))
    return Finding(
        claim="In every layer patches of the background attend to themselves and their neighbours more than chance "
        "would.",
        measurement="Share of the attention of background patches that lands on themselves and the up to eight patches "
        "around, less what a map that looks everywhere alike would give, by layer, mean over times.",
        verdict=every(above(figure, 0) for figure in more.values()),
        reason=f"{share} of it does, where chance gives {chance:.3f}; the excess by layer is {listed(more)}",
        figures={"share nearby": share, "chance": exact(chance)}
        | {f"excess, {layer}": figure for layer, figure in more.items()},
    )


def listed(figures: dict[str, Measured]) -> str:
    """Figures by layer, with their intervals."""
    return ", ".join(f"{each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f})" for each in figures.values())


def draw(told: dict[str, Any]) -> Figure:
    """Shares against t, one line per layer, with bands for their intervals."""
    curves = told["curves"]
    figure, plots = page(
        "Where patches look, by layer and time, bands 95 % over seeds; below each title what its verdict hangs on",
        4,
        width=3.6,
        height=4.0,
    )
    titles = {
        "inside": ("from the disc: — on its own disc  ··· on another image's", "is — above ··· in every layer?"),
        "near": ("from the background: on itself and around", "is it above chance in every layer?"),
        "diagonal_first": ("patches that look at themselves most", "is it above one half, over all layers?"),
        "diagonal": ("share a patch gives: — itself  ··· another, mean", "is — above ··· in every layer?"),
    }
    beside = {"inside": "inside_others", "diagonal": "off_diagonal"}
    for axes, (key, (title, more)) in zip(plots, titles.items(), strict=True):
        for layer, figures in enumerate(curves[key]):
            color = COLORS[layer % len(COLORS)]
            band(axes, curves["t"], figures, color, marker="o", markersize=3, label=f"layer {layer}")
            if key in beside:
                values = curves[beside[key]][layer]["value"]
                axes.plot(curves["t"], values, color=color, linewidth=1.2, linestyle=":")
        axes.set_ylim(0, 1)
        name(axes, f"{title}\n{more}", "t (0: data, 1: noise)", "share")
    for axes, each in ((plots[0], "inside_chance"), (plots[1], "near_chance")):
        level(axes, curves[each], "chance: all patches alike", FAINT)
    level(plots[2], 0.5, "most of them")
    key_below(plots[0], ncols=2)
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

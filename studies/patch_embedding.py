"""Does a convolutional patch embedding equal cutting out patches and a linear layer, and is it faster?

    python -m studies.patch_embedding            about a minute on two CPU cores
    python -m studies.patch_embedding --full     some minutes

Claim: a Conv2d whose kernel equals its stride computes what reshape and Linear compute, and, on a CPU, does it more
efficiently. GPUs are not measured here.

Processes differ in speed for reasons that affect all of their rounds, so times are taken in several fresh processes,
and the interval is over these.

Expect: equal except for rounding, forward and backward; on a CPU, reshape and Linear is faster.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab import PatchEmbed
from studies.intervals import CONFIRMED, CONTRADICTED, Measured, Verdict, above, every, exact, over_seeds
from studies.plots import COLORS, FAINT, bars, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}  # of a sum of few products, relative to the largest
SPENT = {"smoke": (2, 2, 0.2), "quick": (5, 15, 10.0), "full": (10, 40, 10.0)}  # processes, rounds, ms of a turn
WHATS = ("forward", "training")
Ratios = dict[tuple[str, str], Measured]  # by size and what is timed


class Size(NamedTuple):
    """Size of a patch embedding and of its input."""

    image: int
    patch: int
    channels: int
    dim: int
    batch: int


SIZES = {
    "lesson": Size(16, 4, 1, 64, 128),
    "S/4": Size(32, 4, 4, 384, 32),
    "XL/2": Size(32, 2, 4, 1152, 8),
}


class Convolved(PatchEmbed):
    """``PatchEmbed`` as computed on a GPU, by a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).flatten(2).transpose(1, 2).contiguous()


class Cut(nn.Module):
    """The other way: cut out, flatten, multiply; with the same weights."""

    def __init__(self, conv: Convolved) -> None:
        super().__init__()
        self.patch_size = conv.patch_size
        self.weight = nn.Parameter(conv.projection.weight.detach().flatten(1).clone())  # (D, C·p²)
        bias = conv.projection.bias
        assert bias is not None
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        return F.linear(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p), self.weight, self.bias)


def measure(tier: Tier, workers: Workers) -> Outcome:  # noqa: ARG001 - nothing is trained
    """Compare numbers, then times."""
    processes, rounds, turn = SPENT[tier.name]
    apart = {(size, dtype): difference(SIZES[size], dtype) for size in SIZES for dtype in ROUNDING}
    ratios = in_processes(processes, rounds, turn)
    rows = [
        {
            "size": f"{size}: {s.image}×{s.image}×{s.channels}, p = {s.patch}, D = {s.dim}, batch {s.batch}",
            "difference fp32": f"{apart[size, torch.float32]:.1e}",
            "difference fp64": f"{apart[size, torch.float64]:.1e}",
            "forward: Linear / Conv2d": str(ratios[size, "forward"]),
            "forward and backward: Linear / Conv2d": str(ratios[size, "training"]),
        }
        for size, s in SIZES.items()
    ]
    curves = {what: {size: ratios[size, what]._asdict() for size in SIZES} for what in WHATS}
    return Outcome([same(apart), faster(ratios)], rows, curves)


def same(apart: dict[tuple[str, torch.dtype], float]) -> Finding:
    """Are they equal except for rounding?"""
    worst = {dtype: max(value for (_, one), value in apart.items() if one == dtype) for dtype in ROUNDING}
    return Finding(
        claim="Conv2d with kernel = stride computes what reshape and Linear compute.",
        measurement="Largest difference of outputs and of gradients (weight, bias, input) over the largest value, the "
        "weights being the same.",
        verdict=equal(worst),
        reason=f"they differ by at most {worst[torch.float32]:.1e} in fp32 and {worst[torch.float64]:.1e} in fp64: by "
        "the order of sums",
        figures={f"largest relative difference, {str(d).removeprefix('torch.')}": exact(v) for d, v in worst.items()},
    )


def equal(worst: dict[torch.dtype, float]) -> Verdict:
    """Whether nothing differs by more than rounding."""
    return CONFIRMED if all(worst[dtype] <= most for dtype, most in ROUNDING.items()) else CONTRADICTED


def faster(ratios: Ratios) -> Finding:
    """Is the convolution faster at every size, forward and in training?"""
    return Finding(
        claim="On a CPU, Conv2d is the more efficient of the two.",
        measurement="CPU time of reshape and Linear over that of Conv2d, both to a contiguous (B, N, D), one thread, "
        "in turns, fp32, median of the rounds of a fresh process, over processes; forward alone, and forward and "
        "backward. A GPU was not measured.",
        verdict=every(above(figure, 1) for figure in ratios.values()),
        reason="reshape and Linear takes "
        + ", ".join(f"{figure} × at {size} ({what})" for (size, what), figure in ratios.items())
        + " of Conv2d's time",
        figures={f"Linear / Conv2d, {size}, {what}": figure for (size, what), figure in ratios.items()},
    )


def pair(size: Size, dtype: torch.dtype = torch.float32) -> tuple[Convolved, Cut, Tensor]:
    """Both, with the same weights, and an input."""
    torch.manual_seed(0)
    conv = Convolved(size.image, size.patch, size.channels, size.dim).to(dtype)
    nn.init.normal_(conv.projection.bias)  # type: ignore[arg-type]
    x = torch.randn(size.batch, size.channels, size.image, size.image, dtype=dtype)
    return conv, Cut(conv), x


def difference(size: Size, dtype: torch.dtype) -> float:
    """The largest relative difference of outputs and gradients."""
    conv, cut, x = pair(size, dtype)
    pull = torch.randn(size.batch, (size.image // size.patch) ** 2, size.dim, dtype=dtype)
    results = []
    for module in (conv, cut):
        given = x.clone().requires_grad_()
        output = module(given)
        output.backward(pull)
        weight, bias = (p.grad for p in module.parameters())
        assert weight is not None
        results.append((output.detach(), weight.flatten(1), bias, given.grad))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results, strict=True))


def in_processes(processes: int, rounds: int, turn: float) -> Ratios:
    """Ratios of times over fresh processes, run one after the other so that none disturbs another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, context, initializer=torch.set_num_threads, initargs=(1,), max_tasks_per_child=1
    ) as pool:
        told = [future.result() for future in [pool.submit(all_ratios, rounds, turn) for _ in range(processes)]]
    comparisons = len(told[0])
    return {each: over_seeds([one[each] for one in told], comparisons, of="processes") for each in told[0]}


def all_ratios(rounds: int, turn: float) -> dict[tuple[str, str], float]:
    """Ratios for all sizes, in this process."""
    return {(size, what): ratio(SIZES[size], what, rounds, turn) for size in SIZES for what in WHATS}


def ratio(size: Size, what: str, rounds: int, turn: float) -> float:
    """Time of ``Cut`` over time of ``Convolved``: the median over rounds of turns of the given milliseconds."""
    conv, cut, x = pair(size)
    sides = [work(module, x, training=what == "training") for module in (conv, cut)]
    calls = [max(1, round(turn / 1e3 / clock(side, 5))) for side in sides]
    times = [[clock(side, n) for side, n in zip(sides, calls, strict=True)] for _ in range(rounds)]
    return statistics.median(other / ours for ours, other in times)


def work(module: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    """The timed function; in training the gradient of the input, the image, is not needed.

    Both return a contiguous (B, N, D), even where one could leave that to the next layer, and the gradient is
    contiguous too.
    """
    with torch.no_grad():
        pull = torch.ones_like(module(x).contiguous())

    def forward() -> None:
        with torch.no_grad():
            module(x).contiguous()

    def both() -> None:
        module.zero_grad()
        module(x).contiguous().backward(pull)

    return both if training else forward


def clock(side: Callable[[], object], calls: int) -> float:
    """Processor seconds for one call: other work on the machine does not count."""
    begun = time.process_time()
    for _ in range(calls):
        side()
    return (time.process_time() - begun) / calls


def draw(told: dict[str, Any]) -> Figure:
    """Ratios of times with their intervals; the colour shows which is faster."""
    figure, plots = page("Reshape and Linear gives what Conv2d gives. Does Conv2d take less time?", 2, height=3.6)
    titles = ("forward", "forward and backward")
    top = max(each["high"] for what in WHATS for each in told["curves"][what].values())
    for axes, what, title in zip(plots, WHATS, titles, strict=True):
        figures = told["curves"][what]
        bars(axes, list(figures), list(figures.values()), [color_of(each) for each in figures.values()])
        name(axes, title, "CPU, one thread; below 1: reshape + Linear is faster", "time of Linear / time of Conv2d")
        level(axes, 1.0, "as fast as Conv2d")
        axes.set_ylim(0, 1.1 * max(top, 1.0))
    patches = [Patch(color=color, label=label) for label, color in FASTER.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


FASTER = {"Conv2d is faster": COLORS[0], "reshape + Linear is faster": COLORS[1], "not shown which": FAINT}


def color_of(figure: dict[str, Any]) -> str:
    """The colour of the faster one, if the interval decides."""
    conv, linear, neither = FASTER.values()
    return conv if figure["low"] > 1 else linear if figure["high"] < 1 else neither


STUDY = Study(
    "patch_embedding",
    "A patch embedding as Conv2d is the same as reshape and Linear and, on a CPU, more efficient.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

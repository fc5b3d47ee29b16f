"""Grids: the falling times that a sampling trajectory visits, by name.

A continuous grid places times anywhere on the path. The node grids, ``"respaced"`` and ``"leading"``, are made of
DDPM's published steps, t = (k + 1)/steps. All end at t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, repeat

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.diffusion.paths import DiscreteVP, Path
from ditlab.diffusion.times import shifted

Grid = Callable[[Path, float, int], Tensor]  # (path, start, steps) -> steps + 1 falling times, from start to 0

RHO, SIGMA_MAX, SIGMA_MIN = 7, 80.0, 0.002  # Karras et al. 2022, table 1


def uniform(path: Path, start: float, steps: int) -> Float[Tensor, " N"]:
    """Evenly spaced in t."""
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64)


def quadratic(path: Path, start: float, steps: int) -> Float[Tensor, " N"]:
    """t ∝ i², denser near the data (Song et al. 2021, appendix D.3); on a discrete path never below its first step."""
    if path.first == 0:
        return torch.linspace(math.sqrt(start), 0, steps + 1, dtype=torch.float64) ** 2
    return _then_data(start, torch.linspace(math.sqrt(start), math.sqrt(path.first), steps, dtype=torch.float64) ** 2)


def karras(path: Path, start: float, steps: int) -> Float[Tensor, " N"]:
    """σ = s/a from 80 to 0.002, evenly in σ^(1/7) (Karras et al. 2022, eq. 5), within what the path was trained on.

    The first time is the process's own start.
    """
    first, last = (path(torch.tensor(t, dtype=torch.float64)) for t in (path.first, start))
    low, high = max(SIGMA_MIN, float(first.s / first.a)), min(SIGMA_MAX, float(last.s / last.a))
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    return _then_data(start, path.time_at(sigma.atan()))


def respaced(path: Path, start: float, steps: int) -> Float[Tensor, " N"]:
    """Published steps, evenly spaced from the first to the last one, both included (Nichol & Dhariwal 2021, section 4).

    One step starts from the last. The spacing is added up and then rounded, as the published sampler does: at 1000
    published steps that makes another k than rounding the exact i·(K − 1)/(N − 1) for some N. On a continuous path:
    ``uniform``.
    """
    if not isinstance(path, DiscreteVP):
        return uniform(path, start, steps)
    usable = _usable(path, start, steps)
    if steps == 1:
        return _nodes(path, [usable - 1])
    stride = (usable - 1) / (steps - 1)
    return _nodes(path, [round(k) for k in accumulate(repeat(stride, steps - 1), initial=0.0)])


def leading(path: Path, start: float, steps: int) -> Float[Tensor, " N"]:
    """Published steps k = 0, d, 2d … with d = ⌊K/N⌋ (DDIM's linear τ; diffusers' default); none on other paths."""
    if not isinstance(path, DiscreteVP):
        raise ValueError("the grid 'leading' is made of published steps, which only DDPM has; choose 'uniform'")
    usable = _usable(path, start, steps)
    return _nodes(path, [i * (usable // steps) for i in range(steps)])


def _then_data(start: float, times: Tensor) -> Tensor:
    """The times with the very start as the first, and 0 after the last."""
    return torch.cat([times.new_tensor([start]), times[1:], times.new_zeros(1)])


def _usable(path: DiscreteVP, start: float, steps: int) -> int:
    """How many published steps there are up to ``start``."""
    usable = math.floor(start * path.steps + 1e-6)
    if steps > usable:
        raise ValueError(
            f"steps={steps} is more than the {usable} published steps to sample with: use at most {usable}, "
            f"or grid='uniform'"
        )
    return usable


def _nodes(path: DiscreteVP, k: list[int]) -> Tensor:
    """From rising published indices to falling times that end at 0."""
    return torch.tensor([*((i + 1) / path.steps for i in reversed(k)), 0], dtype=torch.float64)


GRIDS: dict[str, Grid] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "respaced": respaced,
    "leading": leading,
}


def sampling_times(
    grid: str | Grid | Tensor, path: Path, start: float, steps: int, shift: float = 1.0
) -> Float[Tensor, " N"]:
    """The times of a trajectory, falling, in float64 on the CPU.

    Args:
        grid: a name, a function (path, start, steps) -> times, or the times themselves, whatever ``steps`` says.
        path, start: the path, and the time to begin at.
        steps: how many steps; there is one time more.
        shift: above 1 moves the times towards the noise, as large images need (``times.shifted``).

    Raises:
        ValueError: an unknown name, more steps than were published, a shift of published steps, times that do not fall.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift={shift} must be above 0")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}; choose one of {', '.join(GRIDS)}")
        if shift != 1 and grid in ("respaced", "leading") and isinstance(path, DiscreteVP):
            raise ValueError(
                f"the grid {grid!r} is made of published steps, which shift={shift} would leave: drop the shift, or "
                f"choose grid='uniform'"
            )
        grid = GRIDS[grid]
    times = (grid if isinstance(grid, Tensor) else grid(path, start, steps)).detach().cpu().double()
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or times[0] > 1 or times[-1] < 0:
        raise ValueError("a grid is at least two falling times between 1 and 0")
    return times if shift == 1 else times[0] * shifted(times / times[0], shift)

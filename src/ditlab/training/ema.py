"""Averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.core.distributed import full
from ditlab.core.errors import TrainingError
from ditlab.runs.weights import tensor_name


class EMA:
    """An exponential moving average of a network's weights, in a frozen copy of it in evaluation mode.

    The decay grows as (1 + n)/(10 + n) to its final value, so that the first weights are soon forgotten. Saved buffers,
    such as a batch norm's running statistics, are copied: most are averages already.

    Args:
        network: whose weights are averaged.
        decay: final decay a step.
        spread: what becomes of the copy, and later of the network: each process then averages its own share.
    """

    def __init__(self, network: nn.Module, decay: float, spread: Callable[[nn.Module], object] | None = None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if spread is not None:
            spread(self.network)
        self.decay = decay
        self._source = network
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None
        self._buffers: tuple[list[Tensor], list[Tensor]] = [], []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after the ``step``-th optimizer step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._pairs is None:  # not before the first update: until then sharding may replace parameters
            self._pairs = list(self.network.parameters()), list(self._source.parameters())
            self._buffers = saved_buffers(self.network), saved_buffers(self._source)
        torch._foreach_lerp_(*self._pairs, 1 - decay)
        for own, latest in zip(*self._buffers, strict=True):
            own.copy_(latest)


def saved_buffers(network: nn.Module) -> list[Tensor]:
    """The buffers that a checkpoint holds, such as a batch norm's running statistics: forward passes change them."""
    saved = network.state_dict(keep_vars=True).values()
    return [tensor for tensor in saved if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)]


DENSE = 13  # of how many steps, as a power of two times γ + 1, each is taken in


def exponent(sigma_rel: float) -> float:
    """The γ ≥ 0 of a relative width in (0, 12^(-1/2)]: (γ + 1)/((γ + 2)²(γ + 3)) = σ_rel², a cubic when multiplied out.

    Karras et al. 2024, section 3.1.
    """
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(roots.real))


def relative_width(exponent: float) -> float:
    """The standard deviation of the profile (γ + 1)/t^(γ+1) · τ^γ on [0, t], over t."""
    return float(((exponent + 1) / (exponent + 3)) ** 0.5 / (exponent + 2))


def interval(step: int, exponent: float) -> int:
    """Steps between the updates up to that one: 1 up to 8,192·(γ + 1) steps at least, and from there doubled with them.

    An update moves θ̂ by 1 − β ≈ K·(γ + 1)/t of what θ is away. With K = 1 that falls until fp32, which has 24 bits,
    rounds all of it away: at t = 7·10⁶ and γ = 7 whatever moves a weight by less than 5 %. With this K, a power of two,
    it stays above 2^-14. It doubles behind steps that are powers of two themselves, which it divides: so the update
    before that of step t is always that of step t − K, and nothing need be remembered.
    """
    return int(2 ** max(0, (step - 1).bit_length() - DENSE - math.ceil(math.log2(exponent + 1))))


class PowerAverages:
    """Power-function averages of a network's parameters, one for each relative width, updated as training goes on.

    Args:
        network: whose parameters are averaged.
        widths: relative widths; there may be none.
    """

    def __init__(self, network: nn.Module, widths: Sequence[float]) -> None:
        parameters = dict(network.named_parameters())
        self.exponents = {width: exponent(width) for width in widths}
        self._latest = [p.detach() for p in parameters.values()]
        self._averaged = {width: [p.clone() for p in self._latest] for width in widths}
        self._names = list(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the ``step``-th optimizer step, counted from 1: β = (1 − K/t)^(γ+1).

        They count for the last K = ``interval`` steps; in between nothing is done.
        """
        for width, averaged in self._averaged.items():
            every = interval(step, self.exponents[width])
            if step % every == 0:
                kept = (1 - every / step) ** (self.exponents[width] + 1)
                torch._foreach_lerp_(averaged, self._latest, 1 - kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under "width/parameter", such as "0.05/final.linear.weight"."""
        return {
            tensor_name(width, name): tensor
            for width, averaged in self._averaged.items()
            for name, tensor in zip(self._names, averaged, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])

    def snapshot(self) -> dict[str, Tensor]:
        """What snapshots keep of the averages: fp16, on the CPU.

        Raises:
            TrainingError: a number is not finite, or too large for fp16.
        """
        rounded = {}
        for name, tensor in self.state_dict().items():
            whole = full(tensor)
            rounded[name] = whole.half().cpu()
            if not rounded[name].isfinite().all():
                raise TrainingError(_unfit(name, whole))
        return rounded


def _unfit(name: str, average: Tensor) -> str:
    """Why an average cannot be kept in fp16."""
    if not average.isfinite().all():
        return f"{name} (averages) stopped being finite: in a new run, try a lower --lr"
    return (
        f"{name} (averages) has a weight of {float(average.abs().max()):.4g}, and snapshots, in fp16, hold none above "
        f"{torch.finfo(torch.float16).max:,.0f}: in a new run, try a lower --lr, or --averages alone for none"
    )

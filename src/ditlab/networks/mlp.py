"""The multilayer perceptron of the lesson's two-dimensional examples; it flattens data of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks.conditioner import Cond, Labels, check_conditions, check_scalar
from ditlab.networks.embeddings import SinEmb, check_input, check_sizes
from ditlab.networks.layers import Linear, zero_initialised


class MLPDenoiser(nn.Module):
    """Linear layers and SiLU on the concatenation of x, the sinusoidal features of t and the embedded label.

    Args:
        shape: shape of one sample, such as (2,) or (1, 8, 8).
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        num_classes: number of labels, or None for a network without labels. The null label is ``num_classes``.
        time_features: number of sinusoidal features, and width of the embedded label.
        interval: whether the network takes ``cond["interval"]`` (B,), t − r: MeanFlow's second time. Absent is 0.
        time_scale: the sinusoids see time_scale · t.

    Shapes: ``net(x (B, *shape), t (B,) in [0, 1], cond) -> (B, *shape)``. At initialisation the output is zero.
    """

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        hidden: int = 128,
        depth: int = 2,
        num_classes: int | None = None,
        time_features: int = 64,
        interval: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        check_sizes(shape=min(shape, default=0), hidden=hidden, depth=depth)
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.time_scale = time_scale
        self.sinusoid = SinEmb(time_features)
        self.labels = Labels(num_classes, time_features)
        self.interval = interval
        size = math.prod(self.shape)
        widths = [size + time_features * (1 + (num_classes is not None) + interval), *[hidden] * depth]
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.out = zero_initialised(Linear(widths[-1], size))

    def null_condition(self, cond: Cond) -> dict[str, Tensor]:
        """``cond`` with the null label for each label; an interval stays."""
        self._check(cond, None)
        return {name: self.labels.null(value) if name == "label" else value for name, value in cond.items()}

    def _check(self, cond: Cond | None, batch: int | None) -> None:
        known = {} if self.num_classes is None else {"label": self.labels.check}
        check_conditions(cond, batch, known | ({"interval": check_scalar("interval")} if self.interval else {}))

    def forward(
        self, x: Float[Tensor, "B ..."], t: Float[Tensor, " B"], cond: Cond | None = None
    ) -> Float[Tensor, "B ..."]:
        check_input(self, x, t, self.shape)
        self._check(cond, x.shape[0])
        label = self.labels(cond, x.shape[0])
        parts = [x.flatten(1), self.sinusoid(self.time_scale * t)] + ([] if label is None else [label])
        if self.interval:
            interval = (cond or {}).get("interval")
            parts.append(self.sinusoid(self.time_scale * (torch.zeros_like(t) if interval is None else interval)))
        h = torch.cat([part.to(x.dtype) for part in parts], dim=1)  # (B, size + features)
        for layer in self.hidden:
            h = F.silu(layer(h))  # (B, hidden)
        return self.out(h).view_as(x)  # (B, *shape)


MLPVelocity = MLPDenoiser
"""The same network by the name it has in flow matching: the architecture does not depend on the objective."""

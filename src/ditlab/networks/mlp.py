"""The multilayer perceptron of the lesson's two-dimensional examples; it flattens data of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks.conditioner import (
    Cond,
    Labels,
    ScalarEmbedding,
    check_conditions,
    check_scalar,
    check_scalar_names,
)
from ditlab.networks.embeddings import SinEmb, check_input, check_sizes
from ditlab.networks.layers import Linear, zero_initialised


class MLPDenoiser(nn.Module):
    """Linear layers and SiLU on the concatenation of x, the sinusoidal features of t, and embedded conditions.

    Args:
        shape: of one sample, such as (2,) or (1, 8, 8).
        hidden, depth: width and number of the hidden layers.
        num_classes: number of labels, or None for a network without labels. The null label is ``num_classes``.
        time_features: number of sinusoidal features, and width of the embedded label.
        interval: whether the network takes ``cond["interval"]`` (B,), t − r: MeanFlow's second time. Absent is 0.
        time_scale: the sinusoids see time_scale · t.
        scalars: names of further conditions, one float for each sample, of the order of 1; NaN or absent is unknown.

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
        scalars: Sequence[str] = (),
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
        told = (num_classes is not None) + interval + len(scalars)
        widths = [size + time_features * (1 + told), *[hidden] * depth]
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.out = zero_initialised(Linear(widths[-1], size))
        check_scalar_names(scalars)
        self.scalars = nn.ModuleDict({name: ScalarEmbedding(time_features, time_features) for name in scalars})

    def null_condition(self, cond: Cond) -> dict[str, Tensor]:
        """``cond`` with the null label for each label and NaN for each scalar; an interval stays."""
        self._check(cond, None)
        unknown = {name: torch.full_like(cond[name], torch.nan) for name in self.scalars if name in cond}
        return {**cond, **unknown} | ({"label": self.labels.null(cond["label"])} if "label" in cond else {})

    def _check(self, cond: Cond | None, batch: int | None) -> None:
        known = {} if self.num_classes is None else {"label": self.labels.check}
        names = [*self.scalars, *(["interval"] if self.interval else [])]
        check_conditions(cond, batch, known | {name: check_scalar(name) for name in names})

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
        parts += [embed((cond or {}).get(name), x.shape[0]) for name, embed in self.scalars.items()]
        h = torch.cat([part.to(x.dtype) for part in parts], dim=1)  # (B, size + features)
        for layer in self.hidden:
            h = F.silu(layer(h))  # (B, hidden)
        return self.out(h).view_as(x)  # (B, *shape)


MLPVelocity = MLPDenoiser
"""The same network by the name it has in flow matching: the architecture does not depend on the objective."""

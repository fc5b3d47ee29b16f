"""Five parts of your own in one file, which ditlab then knows by name: data, a network, a process, a solver, a loss.

    ditlab train stripes --plugin examples/plugin.py --network convolutional --process huber \
        --sampling.solver midpoint --auxiliary smooth 0.01 --steps 1000
    ditlab sample stripes --plugin examples/plugin.py --label rising --cond period=4 --n 16
    ditlab eval stripes --plugin examples/plugin.py

Two minutes on two CPU cores. Each part works without the others: leave out the options you don't need.
"""

import math

import torch
from torch import nn

import ditlab
from ditlab.data.dataset import Batch
from ditlab.diffusion.solvers import rebuild

PERIOD = ditlab.Scalar("pixels", mean=6.0, std=1.7)


@ditlab.register("dataset", "stripes")
class Stripes:
    """16×16 images of slanted stripes, with a label for the slant and a scalar for their period, made as needed."""

    shape = (1, 16, 16)
    conditions = {"label": ditlab.Label(("falling", "rising")), "period": PERIOD}

    def batch(self, seed, position, size):
        """The samples after ``position`` were seen: a function of (seed, position), so that a run can be resumed."""
        draws = torch.Generator().manual_seed(hash((seed, position)) % 2**63)
        label = torch.randint(2, (size,), generator=draws)
        period = 3 + 6 * torch.rand(size, generator=draws)
        phase = torch.rand(size, generator=draws)
        pixels = torch.arange(16.0)
        across = pixels[None, :, None] * (2 * label - 1)[:, None, None] + pixels[None, None, :]
        waves = torch.sin(2 * math.pi * (across / period[:, None, None] + phase[:, None, None]))
        return Batch(waves[:, None], {"label": label, "period": (period - PERIOD.mean) / PERIOD.std})


@ditlab.register("network", "convolutional")
class Convolutional(nn.Module):
    """Convolutions of growing reach; time, label and scalars are added to their channels."""

    def __init__(self, shape, num_classes, scalars=(), width=48, depth=5):
        super().__init__()
        self.num_classes, self.scalars = num_classes, scalars
        self.labels = nn.Embedding((num_classes or 0) + 1, width)  # the last row means "no label"
        self.numbers = nn.Linear(1 + 2 * len(scalars), width)  # the time; each scalar, and whether it is known
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        reach = [2 ** (i % 3) for i in range(depth)]
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=r, dilation=r) for r in reach)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)

    def null_condition(self, cond):
        """The conditions taken away: with this, training drops some of them and sampling can be guided."""
        null = {name: torch.full_like(value, torch.nan) for name, value in cond.items() if name != "label"}
        return null | {"label": torch.full_like(cond["label"], self.num_classes)}

    def forward(self, x, t, cond=None):
        cond = cond or {}
        label = cond.get("label", torch.full_like(t, self.labels.num_embeddings - 1, dtype=torch.int64))
        scalars = [cond.get(name, torch.full_like(t, torch.nan)) for name in self.scalars]
        known = [value.isfinite().to(t.dtype) for value in scalars]
        numbers = torch.stack([t, *(value.nan_to_num() for value in scalars), *known], dim=1)
        told = (self.labels(label) + self.numbers(numbers))[:, :, None, None]
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x + told))
        return self.last(x)


@ditlab.register("process", "huber")
class Huber(ditlab.FlowMatching):
    """Flow matching with the pseudo-Huber loss √(e² + c²) − c, which outliers move less (Song & Dhariwal 2023)."""

    def __init__(self, network, c=0.1, **parts):
        super().__init__(network, **parts)
        self.c = c

    def distance(self, error):
        """One number (B,) for the errors (B, ...) of each sample."""
        return ((error.square() + self.c**2).sqrt() - self.c).flatten(1).mean(1)


@ditlab.register("solver", "midpoint")
class Midpoint:
    """Half a step of Euler, and from there the slope for the whole step; for the straight path of flow matching."""

    order = 2

    def step(self, denoise, path, x, t, r, state, noise):
        middle = (t + r) / 2
        there = denoise(rebuild(path, denoise(x, t), middle), middle)
        return x + (r - t) * (there.eps - there.x0), None

    def evaluations(self, steps):
        return 2 * steps


@ditlab.register("loss", "smooth")
class Smooth:
    """Neighbouring pixels of the network's first channels should differ little."""

    activations = ("first",)

    def __call__(self, seen, activations):
        first = activations["first"]
        return (first[..., 1:] - first[..., :-1]).square().flatten(1).mean(1)

"""The loss of a network at each time on fixed samples, and that of predictors without training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.data.dataset import Batch, Dataset, HeldOut
from ditlab.diffusion.paths import match
from ditlab.diffusion.process import Process
from ditlab.diffusion.targets import compose

BINS = 8  # of [0, 1]
AT_ONCE = 256  # samples in a batch


class Trials(NamedTuple):
    """Samples with times and noise, always the same, to compare networks on."""

    x0: Float[Tensor, "n ..."]
    cond: dict[str, Tensor]
    t: Float[Tensor, " n"]
    noise: Float[Tensor, "n ..."]

    @property
    def bins(self) -> Int[Tensor, " n"]:
        """The bin of each sample's time."""
        return (self.t * BINS).long().clamp(max=BINS - 1)

    def labelled(self, label: Tensor) -> Trials:
        """The same with other labels."""
        return self._replace(cond={**self.cond, "label": label})


def trials(batches: Iterable[Batch]) -> Trials:
    """Draw a time and noise for each sample; those of the first batches do not depend on how many follow."""
    pieces = []
    for number, (x0, cond) in enumerate(batches):
        generator, n = generator_for("doctor", "trials", number), len(x0)
        t = (torch.arange(n) % BINS + torch.rand(n, generator=generator)) / BINS
        pieces.append(Trials(x0, cond, t, torch.randn(x0.shape, generator=generator)))
    cond = {name: torch.cat([piece.cond[name] for piece in pieces]) for name in pieces[0].cond}
    x0, t, noise = (torch.cat([getattr(piece, name) for piece in pieces]) for name in ("x0", "t", "noise"))
    return Trials(x0, cond, t, noise)


def training_trials(dataset: Dataset, n: int) -> Trials:
    """``n`` training samples, the same for all runs on the same data."""
    return trials(dataset.batch(0, first, min(AT_ONCE, n - first)) for first in range(0, n, AT_ONCE))


def held_out_trials(dataset: HeldOut, n: int) -> Trials:
    """Up to ``n`` held-out samples."""
    x0, cond = dataset.held_out(0, n)
    cuts = [slice(first, first + AT_ONCE) for first in range(0, len(x0), AT_ONCE)]
    return trials(Batch(x0[cut], {name: value[cut] for name, value in cond.items()}) for cut in cuts)


@torch.no_grad()
def squared_errors(process: Process, drawn: Trials) -> Float[Tensor, " n"]:
    """Unweighted mean squared error of the target for each trial."""
    device, pieces = process.like().device, []
    for first in range(0, len(drawn.t), AT_ONCE):
        here = slice(first, first + AT_ONCE)
        x0, noise, t = (value[here].to(device) for value in (drawn.x0, drawn.noise, drawn.t))
        t = t.clamp(min=process.path.first)
        cond = {name: value[here].to(device) for name, value in drawn.cond.items()}
        said = process.predict(process.q_sample(x0, t, noise), t, cond)
        wanted = compose(process.target, process.path(t), x0, noise)
        pieces.append((said - wanted).square().flatten(1).mean(1).float().cpu())
    return torch.cat(pieces)


def by_bin(values: Float[Tensor, " n"], bins: Int[Tensor, " n"]) -> list[float]:
    """Mean of the values in each bin."""
    return [float(values[bins == b].mean()) for b in range(BINS)]


class Bounds(NamedTuple):
    """Mean squared errors of predictors without training on the same trials, by bin of the time."""

    nothing: list[float]  # always predicts 0
    linear: list[float]  # the least-squares line through each coordinate of x_t


def bounds(process: Process, drawn: Trials) -> Bounds:
    """The errors that a network has to be below.

    For x_t = a·x0 + s·eps, the target y = p·x0 + q·eps and a coordinate of x0 with mean m and variance v, the
    least-squares line is

        y = p·m + Cov(y, x_t)/Var x_t · (x_t − a·m),    Cov(y, x_t) = a·p·v + s·q,    Var x_t = a²·v + s².
    """
    x0, noise = drawn.x0.flatten(1), drawn.noise.flatten(1)
    t = drawn.t.clamp(min=process.path.first)
    c = process.path(t)
    p, q = (match(value, x0) for value in process.target(c))
    a, s = match(c.a, x0), match(c.s, x0)
    m, v = x0.mean(0), x0.var(0, correction=0)
    y, x_t = p * x0 + q * noise, a * x0 + s * noise
    line = p * m + (a * p * v + s * q) / (a.square() * v + s.square()).clamp(min=1e-12) * (x_t - a * m)
    errors = (y.square().mean(1), (y - line).square().mean(1))
    return Bounds(*(by_bin(error, drawn.bins) for error in errors))

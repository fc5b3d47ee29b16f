"""Checks of the weights: how far the averaged ones lag behind, and how noisy the gradient is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ditlab.config import Config
from ditlab.core.rng import generator_for
from ditlab.data.dataset import Dataset
from ditlab.doctor.checks import Check, unknown
from ditlab.doctor.evidence import Weights
from ditlab.training.optim import scheduled

BEHIND, FAR_BEHIND = 1.5, 2.0  # lag over the expected lag; at most 0.73 in healthy runs
LITTLE = 0.05  # lag that is always allowed
PIECES = 1000  # of an integral over the learning rate
PARTS, LARGEST_PART = 16, 32  # batches for the gradient noise, and most samples in each


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Euclidean distance between all floating-point tensors."""
    pairs = [(value, other[name]) for name, value in one.items() if value.is_floating_point()]
    return float(sum(((a.cpu().double() - b.cpu().double()).square().sum() for a, b in pairs), torch.zeros(()))) ** 0.5


def expected_lag(config: Config, step: int) -> float:
    """Upper bound of the lag of an average over the last W steps, as a share of the way from the initial weights.

    W is 1/(1 − decay), with the decay (1 + n)/(10 + n) of early steps. Weights that move straight lag by the share of
    the summed learning rate in these steps; weights on a random walk by its square root, which is larger.
    """
    decay = min(config.ema_decay, (1 + step) / (10 + step))
    begin = max(0.0, step - 1 / (1 - decay))

    def moved_since(first: float) -> float:
        pieces = [first + (step - first) * (i + 0.5) / PIECES for i in range(PIECES)]
        return (step - first) * sum(scheduled(config, int(piece)) for piece in pieces) / PIECES

    return float((moved_since(begin) / moved_since(0)) ** 0.5)


def averaged_weights(config: Config, weights: Weights) -> Check:
    """Do the averaged weights follow the raw ones?

    The lag is ‖averaged − raw‖ / ‖raw − initial‖: 0 if they are equal, 1 if the averaged ones never moved.
    """
    name = "averaged weights"
    if weights.sigma_rel is not None:
        why = f"ditlab ema made them after training, an average of relative width {weights.sigma_rel:g}"
        return unknown(name, f"{why}: examine the run that it was made from")
    averaged, raw = weights.averaged.network.state_dict(), weights.raw.network.state_dict()
    initial = weights.initial.state_dict()
    travelled = distance(raw, initial)
    if not 0 < travelled < float("inf"):
        return unknown(name, "the weights have not moved" if travelled == 0 else "the weights are not finite")
    lag, moved = distance(averaged, raw) / travelled, distance(averaged, initial) / travelled
    value = {"lag": lag, "moved": moved}
    most, far = (factor * expected_lag(config, weights.step) + LITTLE for factor in (BEHIND, FAR_BEHIND))
    figure = f"{lag:.3g} of the way behind the raw ones"
    found = Check(name, "ok", figure, value, f"at most {most:.2g} of the way")
    advice = "the averaged weights are useless: sample with --weights raw, and fix what updates them"
    if moved == 0 and config.ema_decay < 1:
        return found.marked("bad", "they never moved from the initial ones: frozen", advice)
    if weights.earlier is not None:
        before, its_averaged, its_raw = weights.earlier
        value |= {"since": before, "averaged_moved": distance(averaged, its_averaged) / travelled}
        if value["averaged_moved"] == 0 and distance(raw, its_raw) > 0:
            reason = f"they have not moved since step {before}, while the raw ones have: frozen"
            return found.marked("bad", reason, advice)
    if lag > most:
        reason = "they lag more than such an average should: they stopped moving, or the weights jump"
        return found.marked("bad" if lag > far else "warning", reason, advice)
    return found


def gradient_noise(config: Config, dataset: Dataset, weights: Weights, n: int) -> Check:
    """The simple noise scale tr Σ / |G|² (McCandlish et al. 2018, eq. 2.9); larger batches than that gain little.

    From the gradients g of 16 batches of b samples and their mean ḡ, the gradient of B = 16·b samples (appendix A.1,
    eqs. A.2 and A.3):

        |G|² ≈ (B·|ḡ|² − b·mean|g|²)/(B − b),        tr Σ ≈ (mean|g|² − |ḡ|²)/(1/b − 1/B).

    B is the least of 512, ``n`` and four training batches.
    """
    name, small = "gradient noise", max(1, min(LARGEST_PART, config.batch_size // 4, n // PARTS))
    process, large = weights.raw, PARTS * small
    device, squares, total = process.like().device, [], torch.zeros(())
    parameters = [p for p in process.network.parameters() if p.is_floating_point()]
    for p in parameters:
        p.requires_grad_(True)
    try:
        for part in range(PARTS):
            x0, cond = dataset.batch(0, part * small, small)
            generator = generator_for("doctor", "noise", part, device=device)
            loss = process.loss(x0.to(device), {k: v.to(device) for k, v in cond.items()}, generator=generator)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            flat = torch.cat([g.flatten() for g in found if g is not None])
            squares.append(float(flat.square().sum()))
            total = flat if part == 0 else total.add_(flat)
            del found
    finally:
        process.requires_grad_(False)
    of_small, of_large = sum(squares) / PARTS, float((total / PARTS).square().sum())
    signal = (large * of_large - small * of_small) / (large - small)
    noise = (of_small - of_large) / (1 / small - 1 / large)
    if not 0 < noise < float("inf"):
        return unknown(name, "the gradients are not finite, or the batches do not differ")
    if signal <= 0:
        return unknown(name, f"the gradient vanishes in the noise of {large} samples: the scale is above {large}")
    scale = noise / signal
    value = {"scale": scale, "batch_size": config.batch_size}
    return Check(name, "info", f"scale {scale:,.3g} samples, batch {config.batch_size:,}", value)

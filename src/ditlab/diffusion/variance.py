"""The learned variance of a DDPM step and the bound that trains it (Nichol & Dhariwal 2021, section 3.1)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.diffusion.paths import DiscreteVP, match
from ditlab.diffusion.targets import Estimate

LEAST_PROBABILITY = 1e-12  # of a pixel's level: beyond it the loss is flat, so that one odd pixel cannot rule a batch

FAR = 30.0  # standard deviations: well beyond that probability, and the slope of log_ndtr can still be computed


def log_variance(fraction: Tensor, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    """f·log β + (1 − f)·log β̃ (eq. 15), shaped like the fraction."""
    upper, lower = match(beta.log(), fraction), match(beta_tilde.log(), fraction)
    return fraction * upper + (1 - fraction) * lower


def variational_bound(
    path: DiscreteVP,
    t: Float[Tensor, " B"],
    x0: Float[Tensor, "B ..."],
    eps: Float[Tensor, "B ..."],
    guess: Estimate,
    first_term: Literal["pixels", "density"],
) -> Float[Tensor, " B"]:
    """The term of the variational bound that step k contributes, in bits per dimension (eqs. 4 to 7).

    For k ≥ 1 it is KL(q(x_{k−1} | x_k, x0) ‖ p(x_{k−1} | x_k)), both Gaussian. For k = 0 it is −log p(x0 | x_1): of
    8-bit pixels in [−1, 1], or of a density. There β̃ is 0, and that of k = 1 stands in for it, as published.

    Args:
        path: the table of betas.
        t: times of published steps; others are taken as the nearest one.
        x0, eps: what x_t was mixed from.
        guess: what the network makes of x_t, with the learned fraction as its variance.
        first_term: ``"pixels"``, or ``"density"`` for data that are no 8-bit pixels, such as latents.
    """
    assert guess.variance is not None
    node = (t * path.steps).round().long().clamp(min=1)
    beta, beta_tilde = _variances(path, node)
    known = torch.where(node == 1, _variances(path, node.clamp(min=2))[1], beta_tilde)
    log_p, log_q = log_variance(guess.variance, beta, known), match(known.log(), x0)
    log_alpha_bar = path.table(t.device)[node - 1]
    kept = torch.sqrt((-torch.expm1(log_alpha_bar) - beta_tilde).clamp(min=0))
    apart = match((log_alpha_bar / 2).exp(), x0) * (x0 - guess.x0) + match(kept, x0) * (eps - guess.eps)
    divergence = (log_p - log_q - 1 + torch.exp(log_q - log_p) + apart.square() * torch.exp(-log_p)) / 2
    first = match(node == 1, x0).bool()
    mean, log_p = torch.where(first, guess.x0, x0), torch.where(first, log_p, torch.zeros_like(log_p))
    surprise = pixel_surprise(x0, mean, log_p) if first_term == "pixels" else density_surprise(x0, mean, log_p)
    return torch.where(first, surprise, divergence).flatten(1).mean(1) / math.log(2)


def _variances(path: DiscreteVP, node: Tensor) -> tuple[Tensor, Tensor]:
    """β and β̃ of the steps to the nodes before these, β̃ being 0 at the first (Ho et al. 2020, eq. 7)."""
    table = path.table(node.device)
    beta = -torch.expm1(table[node] - table[node - 1])
    return beta, beta * torch.expm1(table[node - 1]) / torch.expm1(table[node])


def density_surprise(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log of a Gaussian's density at x, in nats."""
    return (math.log(2 * math.pi) + log_variance + (x - mean).square() * torch.exp(-log_variance)) / 2


def log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x), of the normal distribution function; torch's own but on Apple's GPUs, which have no kernel for it.

    There it is −x²/2 + log(erfcx(−x/√2)/2) where x < 0, and log(1 − erfc(x/√2)/2) elsewhere.
    """
    if x.device.type != "mps":
        return torch.special.log_ndtr(x)
    low, high = x.clamp(max=0), x.clamp(min=0)
    tail = torch.log(torch.special.erfcx(-low / math.sqrt(2)) / 2) - low.square() / 2
    return torch.where(x < 0, tail, torch.log1p(-torch.erfc(high / math.sqrt(2)) / 2))


def pixel_surprise(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log of the probability a Gaussian gives to the 8-bit level of x, in nats (Ho et al. 2020, eq. 13).

    The 256 levels −1 … 1 are 2/255 apart; the first and the last take all that lies beyond them.
    """
    rate = torch.exp(-log_variance / 2)
    lower, upper = (((x - mean + edge) * rate).clamp(-FAR, FAR) for edge in (-1 / 255, 1 / 255))
    flip = lower + upper > 0  # the upper tail is read as the lower one, where small differences are exact
    below = log_ndtr(torch.where(flip, -upper, lower))
    above = log_ndtr(torch.where(flip, -lower, upper))
    between = above + torch.log(-torch.expm1((below - above).clamp(max=-1e-7)))
    log_probability = torch.where(x < -0.999, log_ndtr(upper), torch.where(x > 0.999, log_ndtr(-lower), between))
    return -log_probability.clamp(min=math.log(LEAST_PROBABILITY))

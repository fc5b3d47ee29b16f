"""Whole loops as the papers publish them: written out here from respaced betas, or run by diffusers."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import ditlab
from ditlab.core.rng import SampleNoise, generator_for
from ditlab.diffusion.paths import named_betas
from ditlab.diffusion.solvers import Euler

SHAPE, N, SCALE = (4, 4, 4), 3, 1.5
BETAS = named_betas("linear", 1000)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


class LearnedRange(torch.nn.Module):
    """Some smooth noise prediction and a fraction between, that depend on the time and the label; in float64."""

    learned_variance = True

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Parameter(0.5 * torch.randn(8, 4, dtype=torch.float64, generator=generator_for("mix")))

    def null_condition(self, cond):
        return {"label": torch.full_like(cond["label"], 9)}

    def forward(self, x, t, cond):
        shift = (cond["label"].double() / 3 + t).reshape(-1, 1, 1, 1)
        return torch.tanh(torch.einsum("oc,bchw->bohw", self.mix, x) + shift)

    def at_index(self, x, k, label):
        return self(x, torch.full((len(x),), (k + 1) / 1000, dtype=torch.float64), {"label": label})


LABELS = torch.tensor([0, 4, 7])


def guided(network, x, k):
    """Twice the batch, the first three channels guided, the rest as the conditional pass has it."""
    strong = network.at_index(x, k, LABELS)
    weak = network.at_index(x, k, torch.full_like(LABELS, 9))
    mixed = weak[:, :3] + SCALE * (strong[:, :3] - weak[:, :3])
    return torch.cat([mixed, strong[:, 3:4]], dim=1), strong[:, 4:]


def published_indices(steps):
    """Evenly spaced from 0 to 999 by repeated addition, then rounded."""
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += 999 / (steps - 1)
    return kept


def draws(seed=0):
    return SampleNoise(seed, range(N), SHAPE, torch.empty(0, dtype=torch.float64))


@pytest.mark.parametrize("steps", [50, 21])
def test_ancestral_sampling_is_the_published_update(steps):
    """Ho et al. 2020, eq. 7, with the betas of the steps kept, and Nichol & Dhariwal 2021, eq. 15."""
    network, indices, noise = LearnedRange(), published_indices(steps), draws()
    kept = ALPHA_BAR[indices]
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    betas = 1 - kept / before
    beta_tilde = betas * (1 - before) / (1 - kept)
    x = noise()
    for i in reversed(range(steps)):
        eps, raw = guided(network, x, indices[i])
        x0 = (x - (1 - kept[i]).sqrt() * eps) / kept[i].sqrt()
        mean = before[i].sqrt() * betas[i] / (1 - kept[i]) * x0
        mean = mean + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - kept[i]) * x
        x = mean
        if i > 0:
            fraction = (raw + 1) / 2
            log_variance = fraction * betas[i].log() + (1 - fraction) * beta_tilde[i].log()
            x = mean + torch.exp(log_variance / 2) * noise()
    guidance = ditlab.ClassifierFree(SCALE, channels=3)
    ours = ditlab.DDPM(network).sample(N, SHAPE, {"label": LABELS}, steps=steps, solver="ancestral", guidance=guidance)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [50, 21])
def test_ddim_sampling_is_the_published_update(steps):
    """Song et al. 2021, eq. 12, without noise."""
    network, indices = LearnedRange(), published_indices(steps)
    x = draws()()
    for i in reversed(range(steps)):
        eps, _ = guided(network, x, indices[i])
        now = ALPHA_BAR[indices[i]]
        before = ALPHA_BAR[indices[i - 1]] if i else torch.ones((), dtype=torch.float64)
        x = before.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - before).sqrt() * eps
    guidance = ditlab.ClassifierFree(SCALE, channels=3)
    ours = ditlab.DDPM(network).sample(N, SHAPE, {"label": LABELS}, steps=steps, solver="ddim", guidance=guidance)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-9, atol=1e-9)


def leading(kind, **options):
    scheduler = kind(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="leading",
        **options,
    )
    scheduler.set_timesteps(40)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_with_leading_steps_is_diffusers(eta):
    network, noise = LearnedRange(), draws()
    x, scheduler = noise(), leading(DDIMScheduler)
    for i, k in enumerate(scheduler.timesteps):
        fresh = noise() if eta and i < 39 else torch.zeros_like(x)
        x = scheduler.step(network.at_index(x, k, LABELS)[:, :4], k, x, eta=eta, variance_noise=fresh).prev_sample
    ours = ditlab.DDPM(network).sample(N, SHAPE, {"label": LABELS}, steps=40, solver=Euler(eta=eta), grid="leading")
    torch.testing.assert_close(ours, x.detach(), rtol=1e-4, atol=1e-4)  # theirs multiplies alphas in fp32


def test_ancestral_with_leading_steps_is_diffusers():
    """With a learned range; diffusers draws its own noise, from a generator that is given."""
    network, x = LearnedRange(), draws()()
    scheduler = leading(DDPMScheduler, variance_type="learned_range")
    generator = torch.Generator().manual_seed(3)
    for k in scheduler.timesteps:
        x = scheduler.step(network.at_index(x, k, LABELS), k, x, generator=generator).prev_sample

    generator.manual_seed(3)
    ddpm = ditlab.DDPM(network)
    ours, state = draws()(), None
    denoise = ddpm.denoiser({"label": LABELS})
    times = ddpm.sampling_times(40, "leading")
    for t, r in pairwise(times):

        def noise():
            return torch.randn(N, *SHAPE, dtype=torch.float64, generator=generator)

        ours, state = Euler(eta=1.0).step(denoise, ddpm.path, ours, t, r, state, noise)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)

"""Our schedules, forward process and solvers against diffusers' schedulers, on the same predictions and noise."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from ditlab.core.rng import generator_for
from ditlab.diffusion.ddpm import DDPM
from ditlab.diffusion.solvers import DPMSolverPlusPlus, Euler, integrate

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
STEPS = 25


def peer(kind, schedule="linear", target="eps", **options):
    return kind(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=SCHEDULES[schedule],
        prediction_type=PREDICTIONS[target],
        timestep_spacing="trailing",
        **options,
    )


def network(x, t, cond=None):
    """Some smooth prediction that depends on both."""
    return torch.tanh(x + t.reshape(-1, *[1] * (x.dim() - 1)))


def peer_loop(scheduler, x, **options):
    scheduler.set_timesteps(STEPS)
    for k in scheduler.timesteps:
        t = ((k + 1) / 1000).expand(len(x)).to(x)
        x = scheduler.step(network(x, t), k, x, **options).prev_sample
    return x


def our_loop(solver, x, noise, **process):
    ddpm = DDPM(network, **process)
    grid = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    *_, (_, x) = integrate(solver, ddpm.denoiser(), ddpm.path, x, grid, noise)
    return x


def start():
    return torch.randn(4, 3, 8, 12, dtype=torch.float64, generator=generator_for("start"))


def drawing(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(4, 3, 8, 12, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample(schedule):
    x0, noise = torch.randn(2, 1000, 2, generator=generator_for(0))
    k = torch.arange(1000)
    theirs = peer(DDPMScheduler, schedule).add_noise(x0, noise, k)
    ours = DDPM(network, schedule=schedule).q_sample(x0, k, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)  # theirs multiplies alphas in fp32


@pytest.mark.parametrize("target", PREDICTIONS)
def test_ddim(target):
    theirs = peer_loop(peer(DDIMScheduler, target=target, clip_sample=False), start())
    torch.testing.assert_close(our_loop(Euler(), start(), drawing(0), target=target), theirs, rtol=1e-3, atol=1e-3)


def test_ddim_with_eta():
    generator = torch.Generator().manual_seed(3)
    theirs = peer_loop(peer(DDIMScheduler, clip_sample=False), start(), eta=0.6, generator=generator)
    torch.testing.assert_close(our_loop(Euler(eta=0.6), start(), drawing(3)), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", PREDICTIONS)
def test_ancestral(target):
    generator = torch.Generator().manual_seed(5)
    scheduler = peer(DDPMScheduler, target=target, clip_sample=False, variance_type="fixed_small")
    theirs = peer_loop(scheduler, start(), generator=generator)
    torch.testing.assert_close(
        our_loop(Euler(eta=1.0), start(), drawing(5), target=target), theirs, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("target", PREDICTIONS)
def test_dpm_solver_plus_plus(target):
    scheduler = peer(DPMSolverMultistepScheduler, target=target, solver_order=2, final_sigmas_type="zero")
    theirs = peer_loop(scheduler, start())
    torch.testing.assert_close(
        our_loop(DPMSolverPlusPlus(), start(), drawing(0), target=target), theirs, rtol=1e-3, atol=1e-3
    )

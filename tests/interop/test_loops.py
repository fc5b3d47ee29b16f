"""Whole loops of imported networks against the published update, done by diffusers' scheduler on diffusers' network."""

import torch
from diffusers import DDPMScheduler

import ditlab
from ditlab.config import SamplingConfig
from ditlab.diffusion.solvers import integrate
from ditlab.interop.imports import import_checkpoint
from ditlab.runs.sampling import build_drawing
from tests.interop.peers import diffusers_dit, facebook_state, relative
from tests.interop.test_imports import noise, saved

LABEL = torch.tensor([3, 9])
STEPS = 10


def published_guidance(peer, x, k, scale):
    """facebookresearch/DiT guides the first three channels; the others, and the variance, are those with the label."""
    t, none = torch.full((len(x),), k), torch.full_like(LABEL, 10)
    strong, weak = (peer(x, t, label).sample for label in (LABEL, none))
    guided = weak[:, :3] + scale * (strong[:, :3] - weak[:, :3])
    return torch.cat([guided, strong[:, 3:]], dim=1)


def test_the_ancestral_loop_of_an_imported_dit_is_the_published_one(tmp_path):
    """Respaced steps, a learned variance and guidance 4 on three channels, as the import records them."""
    state = facebook_state(dim=32, depth=2, patch=2, size=8, rows=11)
    run = import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", heads=4).folder
    run = ditlab.load(run.path)
    own = run.config.sampling
    assert (own.solver, own.steps, own.guidance, own.guidance_channels) == ("ancestral", 250, 4.0, 3)
    drawing = build_drawing(SamplingConfig(**{**own.model_dump(), "steps": STEPS}), run.process, guided=True)
    fresh = [noise(2, size=8), *torch.randn(STEPS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))]
    draws = iter(fresh[1:])
    grid = run.process.sampling_times(STEPS, drawing["grid"])
    denoise = run.process.denoiser({"label": LABEL}, drawing["guidance"])
    with torch.no_grad():
        *_, (_, ours) = integrate(drawing["solver"], denoise, run.process.path, fresh[0], grid, lambda: next(draws))

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False)
    steps = [round(i * 999 / (STEPS - 1)) for i in reversed(range(STEPS))]
    scheduler.set_timesteps(timesteps=steps)
    x, peer = fresh[0], diffusers_dit(state, 4)
    for k, z in zip(steps, fresh[1:], strict=True):
        out = published_guidance(peer, x, k, 4.0)
        mean = scheduler.step(out, k, x, generator=torch.Generator().manual_seed(0)).prev_sample
        if k:  # the scheduler drew noise of its own: take it out, and put ours in
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            deviation = scheduler._get_variance(k, predicted_variance=out[:, 4:]).mul(0.5).exp()
            mean = mean + deviation * (z - drawn)
        x = mean
    assert relative(ours, x) < 1e-4

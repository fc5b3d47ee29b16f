"""What a scheduler of diffusers says of the process, and of how samples are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from ditlab.config import DDPMConfig, SamplingConfig
from ditlab.config.values import GridName
from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.diffusion.paths import named_betas
from ditlab.interop.safe_load import choice, class_name, number, shown, whole

SCHEDULERS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
SCHEDULES: dict[str, Literal["linear", "cosine"]] = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
TARGETS: dict[str, Literal["eps", "x0", "v"]] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
GRIDS: dict[str, GridName] = {"leading": "leading", "trailing": "uniform", "linspace": "respaced"}
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
}
PLAIN: dict[str, Any] = {"clip_sample": False, "thresholding": False, "steps_offset": 0, "set_alpha_to_one": True}
STEPS, GUIDANCE = 50, 4.0  # DiTPipeline's


def read_scheduler(file: Path | None) -> tuple[DDPMConfig, SamplingConfig, tuple[str, ...]]:
    """The DDPM that a scheduler describes and DDIM as it draws, with notes on what is drawn in another way here.

    Args:
        file: a scheduler_config.json; None is the published DDPM.

    Raises:
        InputError: no scheduler of DDPM, or a schedule or a prediction that DDPM has not here, by name.
    """
    if file is None:
        return DDPMConfig(), _sampling(DDPMConfig(), "leading"), ()
    given = read_json(file)
    kind = class_name(given, file)
    if kind not in SCHEDULERS:
        raise InputError(
            f"{file} describes a {kind}, and {', '.join(SCHEDULERS)} can be read; the network alone, with the "
            f"published DDPM, is imported from {file.parent.parent / 'transformer'}"
        )
    settings = DEFAULTS | {name: given[name] for name in DEFAULTS if name in given}
    process = _process(settings, file)
    spacing = choice(settings, "timestep_spacing", file, GRIDS)
    sampling = _sampling(process, GRIDS[spacing])
    return process, sampling, _notes(given, kind, spacing, process.steps, sampling.steps)


def _process(settings: dict[str, Any], file: Path) -> DDPMConfig:
    schedule = choice(settings, "beta_schedule", file, SCHEDULES)
    target = choice(settings, "prediction_type", file, TARGETS)
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if settings[name]:
            raise InputError(f"{file}: {name} is not supported: the betas must follow {', '.join(SCHEDULES)}")
    steps = whole(settings, "num_train_timesteps", file, 21, 10**5)
    if schedule == "linear":
        given = [number(settings, name, file) for name in ("beta_start", "beta_end")]
        published = named_betas("linear", steps)[[0, -1]]
        if not torch.allclose(torch.tensor(given, dtype=torch.float64), published, rtol=1e-6):
            first, last = published.tolist()
            raise InputError(
                f"{file}: betas from {given[0]:g} to {given[1]:g} are not the published ones, {first:g} to {last:g}"
            )
    return DDPMConfig(steps=steps, schedule=SCHEDULES[schedule], target=TARGETS[target])


def _sampling(process: DDPMConfig, grid: GridName) -> SamplingConfig:
    return SamplingConfig(solver="ddim", steps=min(STEPS, process.steps), grid=grid, guidance=GUIDANCE)


def _notes(given: dict[str, Any], kind: str, spacing: str, published: int, steps: int) -> tuple[str, ...]:
    """What its sampler does and ours does not. The network means the same, so none of it is refused."""
    notes = []
    if kind.startswith("DDPM"):
        notes.append(
            f"{kind} draws with new noise in each step, and this run with DDIM: --solver ancestral does so too"
        )
    plain = PLAIN if kind.startswith("DDIM") else PLAIN | {"set_alpha_to_one": given.get("set_alpha_to_one", True)}
    usual = plain | {"clip_sample": True}  # of the class, where the file says nothing
    for name, value in plain.items():
        own = given.get(name, usual[name])
        if own != value:
            notes.append(f"the scheduler's {name} is {shown(own)}; samples are drawn here as with {value}")
    if spacing == "linspace" or (spacing == "trailing" and published % steps):
        notes.append(f"the scheduler's timestep_spacing is {spacing}; the grid {GRIDS[spacing]} is near it, not equal")
    return tuple(notes)

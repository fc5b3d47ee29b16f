"""Read the process and sampling settings from a diffusers scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ditlab.config import DDPMConfig, SamplingConfig
from ditlab.config.values import GridName
from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.diffusion.paths import named_betas
from ditlab.interop.safe_load import Number, Settings, shown, validated

SCHEDULERS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
SCHEDULES: dict[str, Literal["linear", "cosine"]] = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
TARGETS: dict[str, Literal["eps", "x0", "v"]] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
GRIDS: dict[str, GridName] = {"leading": "leading", "trailing": "uniform", "linspace": "respaced"}
PLAIN: dict[str, Any] = {"clip_sample": False, "thresholding": False, "steps_offset": 0, "set_alpha_to_one": True}
STEPS, GUIDANCE = 50, 4.0  # DiTPipeline's


class SchedulerSettings(Settings):
    """scheduler_config.json of a DDPM, with diffusers' defaults."""

    num_train_timesteps: Annotated[int, Field(ge=21, le=10**5)] = 1000
    beta_start: Number = 1e-4
    beta_end: Number = 0.02
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Any = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: Any = False
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"


def read_scheduler(file: Path | None) -> tuple[DDPMConfig, SamplingConfig, tuple[str, ...]]:
    """The DDPM that a scheduler describes, DDIM sampling like its own, and notes on differences.

    Args:
        file: a scheduler_config.json; None is the published DDPM.

    Raises:
        InputError: not a DDPM scheduler, or a schedule or prediction type that is not supported.
    """
    if file is None:
        return DDPMConfig(), _sampling(DDPMConfig(), "leading"), ()
    given = read_json(file)
    if "_class_name" not in given:
        raise InputError(f"{file} has no _class_name")
    kind = str(given["_class_name"])[:60]
    if kind not in SCHEDULERS:
        raise InputError(
            f"{file} describes a {kind}, but only {', '.join(SCHEDULERS)} can be read; to import the network with "
            f"the published DDPM, give {file.parent.parent / 'transformer'}"
        )
    settings = validated(SchedulerSettings, given, file)
    process, spacing = _process(settings, file), settings.timestep_spacing
    sampling = _sampling(process, GRIDS[spacing])
    return process, sampling, _notes(given, kind, spacing, process.steps, sampling.steps)


def _process(settings: SchedulerSettings, file: Path) -> DDPMConfig:
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if getattr(settings, name):
            raise InputError(f"{file}: {name} is not supported: the betas must follow {', '.join(SCHEDULES)}")
    steps, schedule = settings.num_train_timesteps, settings.beta_schedule
    if schedule == "linear":
        given = torch.tensor([settings.beta_start, settings.beta_end], dtype=torch.float64)
        published = named_betas("linear", steps)[[0, -1]]
        if not torch.allclose(given, published, rtol=1e-6):
            (own, last), (first, end) = given.tolist(), published.tolist()
            raise InputError(f"{file}: betas from {own:g} to {last:g} are not the published ones, {first:g} to {end:g}")
    return DDPMConfig(steps=steps, schedule=SCHEDULES[schedule], target=TARGETS[settings.prediction_type])


def _sampling(process: DDPMConfig, grid: GridName) -> SamplingConfig:
    return SamplingConfig(solver="ddim", steps=min(STEPS, process.steps), grid=grid, guidance=GUIDANCE)


def _notes(given: dict[str, Any], kind: str, spacing: str, published: int, steps: int) -> tuple[str, ...]:
    """How sampling differs from the scheduler's; the network is the same, so nothing is refused."""
    notes = []
    if kind.startswith("DDPM"):
        notes.append(f"{kind} adds new noise in each step; this run uses DDIM, unless you give --solver ancestral")
    plain = PLAIN if kind.startswith("DDIM") else PLAIN | {"set_alpha_to_one": given.get("set_alpha_to_one", True)}
    usual = plain | {"clip_sample": True}  # defaults of the class
    for name, value in plain.items():
        own = given.get(name, usual[name])
        if own != value:
            notes.append(f"the scheduler's {name} is {shown(own)}; sampling here uses {value}")
    if spacing == "linspace" or (spacing == "trailing" and published % steps):
        notes.append(f"the scheduler's timestep_spacing is {spacing}; the grid {GRIDS[spacing]} is similar, not equal")
    return tuple(notes)

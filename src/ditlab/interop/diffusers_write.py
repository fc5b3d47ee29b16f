"""Write a run's DiT as the folder of a diffusers ``DiTPipeline``, without needing diffusers."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ditlab.config import Config, DDPMConfig, DiTConfig, LatentSpace
from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.core.rng import SampleNoise
from ditlab.data.latents.vae import vae_folder
from ditlab.diffusion.paths import named_betas
from ditlab.interop.conventions import DIFFUSERS, expressed
from ditlab.interop.diffusers_read import GELU, AutoencoderSettings
from ditlab.interop.diffusers_scheduler import SCHEDULES, TARGETS
from ditlab.interop.safe_load import validated
from ditlab.networks.keymaps import diffusers_names, to_theirs, with_own_embedders
from ditlab.runs.checkpoint import save_tensors
from ditlab.runs.run import Run

VERSION = {"_diffusers_version": "0.35.0"}  # the oldest that reads these folders
NULL_CLASS = 1000  # hard-coded in DiTPipeline
LEAST_NOTED = 0.001  # relative difference of the outputs
COMPARED_AT = (0.0, 0.01, 0.1, 0.5, 1.0)  # shares of the steps


def write_pipeline(run: Run, folder: Path, vae: str | Path | None) -> tuple[str, ...]:
    """Write ``model_index.json``, ``transformer``, ``scheduler`` and, if available, ``vae``; return notes.

    Raises:
        InputError: diffusers cannot represent the run, or ``vae`` holds no autoencoder.
    """
    tensors = expressed(run, DIFFUSERS)
    network, space = run.config.network, run.config.latent_space
    assert isinstance(network, DiTConfig)
    if network.embedders == "shared":
        tensors = with_own_embedders(tensors, network.depth)
    autoencoder = space.vae if vae is None and space is not None else vae
    source = None if autoencoder is None else _autoencoder(autoencoder, run)

    model = folder / "transformer"
    model.mkdir(parents=True)
    theirs = to_theirs(tensors, diffusers_names(network.depth))
    save_tensors(model / "diffusion_pytorch_model.safetensors", {name: value.clone() for name, value in theirs.items()})
    _write(model / "config.json", _model_config(run, network))
    _write(folder / "scheduler" / "scheduler_config.json", _scheduler_config(run.config))
    _write(folder / "model_index.json", _index(source is not None))
    if source is not None:
        _copy_autoencoder(source, folder / "vae", space)
    return _notes(run, network, model, source)


def _model_config(run: Run, network: DiTConfig) -> dict[str, Any]:
    channels = run.shape[0]
    return {
        "_class_name": "DiTTransformer2DModel",
        **VERSION,
        "num_attention_heads": network.heads,
        "attention_head_dim": network.dim // network.heads,
        "in_channels": channels,
        "out_channels": 2 * channels if network.learned_variance else channels,
        "num_layers": network.depth,
        "attention_bias": True,
        "sample_size": run.shape[1],
        "patch_size": network.patch_size,
        "activation_fn": next(theirs for theirs, ours in GELU.items() if ours == network.gelu),
        "num_embeds_ada_norm": run.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    }


def _scheduler_config(config: Config) -> dict[str, Any]:
    """DDIM on the run's betas, to clean data, without clipping."""
    process = config.process
    assert isinstance(process, DDPMConfig)
    settings: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        **VERSION,
        "num_train_timesteps": process.steps,
        "beta_schedule": next(theirs for theirs, ours in SCHEDULES.items() if ours == process.schedule),
        "prediction_type": next(theirs for theirs, ours in TARGETS.items() if ours == process.target),
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    }
    if process.schedule == "linear":
        settings["beta_start"], settings["beta_end"] = named_betas("linear", process.steps)[[0, -1]].tolist()
    return settings


def _index(with_vae: bool) -> dict[str, Any]:
    return {
        "_class_name": "DiTPipeline",
        **VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"] if with_vae else [None, None],
    }


def _autoencoder(path: str | Path, run: Run) -> Path:
    """The folder of the autoencoder, which must have the run's number of latent channels."""
    source = vae_folder(path)
    file = source / "config.json"
    channels = validated(AutoencoderSettings, read_json(file), file).latent_channels
    if channels != run.shape[0]:
        raise InputError(
            f"the autoencoder in {path} has {channels} latent channels; {run.folder.path} has {run.shape[0]}"
        )
    if not any(source.glob("*.safetensors")):
        raise InputError(f"{source} holds no safetensors: save the autoencoder with safe_serialization=True")
    return source


def _copy_autoencoder(source: Path, target: Path, space: LatentSpace | None) -> None:
    """Copy the safetensors, and the configuration with the run's scale and shift."""
    target.mkdir()
    for file in (*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")):
        shutil.copyfile(file, target / file.name)
    config = read_json(source / "config.json")
    if space is not None:
        config["scaling_factor"] = space.scale
    if space is not None and space.shift:
        config["shift_factor"] = space.shift
    _write(target / "config.json", config)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def _notes(run: Run, network: DiTConfig, model: Path, vae: Path | None) -> tuple[str, ...]:
    notes = []
    if vae is None:
        notes.append(
            "it has no autoencoder, which DiTPipeline needs: give --vae FOLDER, or load it with "
            "DiTPipeline.from_pretrained(PATH, vae=AutoencoderKL.from_pretrained(...))"
        )
    if run.num_classes != NULL_CLASS:
        notes.append(
            f"DiTPipeline uses {NULL_CLASS} as the null label, but here it is {run.num_classes}: pass guidance_scale=1"
        )
    difference = _difference(run, model) if network.time_frequency_shift == 0 else 0.0
    if difference is None or difference >= LEAST_NOTED:
        size = "" if difference is None else f", which changes its output by up to {difference:.1%}"
        notes.append(
            f"diffusers divides the time frequencies by half − 1, this network by half{size}; correct that "
            "after loading: for block in pipe.transformer.transformer_blocks: "
            "block.norm1.emb.time_proj.downscale_freq_shift = 0"
        )
    return tuple(notes)


@torch.no_grad()
def _difference(run: Run, model: Path) -> float | None:
    """Largest relative difference between diffusers' output and ours; None if diffusers is not installed."""
    if find_spec("diffusers") is None:
        return None
    from diffusers import DiTTransformer2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load: Any = DiTTransformer2DModel.from_pretrained
    peer = load(model, local_files_only=True, use_safetensors=True).eval()
    process = run.config.process
    assert isinstance(process, DDPMConfig)
    network = run.process.network
    weight = next(network.parameters())
    x = SampleNoise(0, range(len(COMPARED_AT)), run.shape, weight)()
    k = torch.tensor([round(part * (process.steps - 1)) for part in COMPARED_AT])
    label = torch.arange(len(k)) % (run.num_classes or 1)
    ours = network(x, ((k + 1) / process.steps).to(weight), {"label": label.to(weight.device)}).cpu()
    theirs = peer(x.cpu(), timestep=k, class_labels=label).sample
    return float(((theirs - ours).flatten(1).norm(dim=1) / ours.flatten(1).norm(dim=1).clamp(min=1e-12)).max())

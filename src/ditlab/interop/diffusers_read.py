"""The folders of diffusers' ``DiTTransformer2DModel``: the model's own, or a pipeline's with ``transformer`` inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ditlab.config import Config, DiTConfig, ExternalData
from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.interop.diffusers_scheduler import read_scheduler
from ditlab.interop.imported_network import STABLE_DIFFUSION_SCALE, Imported, check_shapes, external_data, ratio
from ditlab.interop.safe_load import as_weights, choice, class_name, number, read_model_folder, shortened, shown, whole
from ditlab.networks.embeddings import sincos_positions
from ditlab.networks.keymaps import (
    DIFFUSERS_BLOCK,
    block_count,
    differences,
    diffusers_names,
    to_ours,
    with_shared_embedders,
)

MODEL_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
GELU: dict[str, Literal["exact", "tanh"]] = {"gelu-approximate": "tanh", "gelu": "exact"}
MOST_NORM_EPS = 1e-5  # diffusers' default; above it the output changes


def read_diffusers(folder: Path, frequency_shift: int) -> Imported:
    """A model's folder, or a pipeline's, as a run that speaks our conventions.

    Args:
        folder: holds config.json and safetensors; or model_index.json and a folder ``transformer`` that does.
        frequency_shift: 1 for the frequencies that diffusers computes with, 0 for those that weights from
            facebookresearch/DiT were trained with.

    Raises:
        InputError: whatever is wrong with it, in its own words.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, and diffusers keeps a model in one")
    pipeline = (folder / "transformer" / "config.json").is_file()
    home = folder / "transformer" if pipeline else folder
    if not (home / "config.json").is_file():
        raise InputError(f"{folder} is no model of diffusers: there is neither config.json nor transformer/config.json")
    settings = _model_settings(home / "config.json")
    content = read_model_folder(home)
    size = sum(file.stat().st_size for file in home.glob("*.safetensors"))
    depth = block_count(content, DIFFUSERS_BLOCK)
    names = diffusers_names(depth)
    if depth == 0 or (problems := differences(content, names)):
        problems = ["no tensor is named transformer_blocks.0..."] if depth == 0 else problems
        raise InputError(f"{home} is not laid out as DiTTransformer2DModel: {shortened(problems)}")
    if depth != settings["num_layers"]:
        raise InputError(f"{home}: config.json says num_layers={settings['num_layers']}, and the weights have {depth}")
    theirs = as_weights(content, home, size)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    process, sampling, notes = read_scheduler(scheduler if pipeline else None)
    data = _data(settings, folder)
    network, tensors = _network(settings, to_ours(theirs, names), depth, process.steps, frequency_shift)
    side = settings["sample_size"] // settings["patch_size"]
    tensors["positions"] = sincos_positions((side, side), network.dim)
    check_shapes(tensors, network, data, names, home)
    config = Config(data=data, network=network, process=process, sampling=sampling, steps=1)
    return Imported(config, tensors, tensors, (*_notes(settings), *notes))


def _model_settings(file: Path) -> dict[str, Any]:
    """The settings of the model, looked at."""
    given = read_json(file)
    settings = {name: given.get(name, default) for name, default in MODEL_DEFAULTS.items()}
    settings["out_channels"] = settings["out_channels"] or settings["in_channels"]
    kind = class_name(given, file)
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise InputError(f"{file} describes a {kind}, not a DiTTransformer2DModel")
    wanted = {"attention_bias": True, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    for name, value in wanted.items():
        if settings[name] != value:
            raise InputError(f"{file}: {name}={shown(settings[name])} is no DiT; a DiT has {value!r}")
    choice(settings, "activation_fn", file, GELU)
    if not 0 < number(settings, "norm_eps", file) <= MOST_NORM_EPS:
        raise InputError(f"{file}: norm_eps={shown(settings['norm_eps'])} is not above 0 and at most {MOST_NORM_EPS:g}")
    for name in (*(name for name, default in MODEL_DEFAULTS.items() if type(default) is int), "out_channels"):
        whole(settings, name, file, 1, 2**20)
    if settings["out_channels"] not in (settings["in_channels"], 2 * settings["in_channels"]):
        raise InputError(f"{file}: out_channels={settings['out_channels']} is neither in_channels nor twice as many")
    side, rest = divmod(settings["sample_size"], settings["patch_size"])
    if rest or side > 256:
        raise InputError(f"{file}: sample_size={settings['sample_size']} is not 1 to 256 times the patch_size")
    return settings


def _network(
    settings: dict[str, Any], own: dict[str, Tensor], depth: int, steps: int, frequency_shift: int
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """The network, with one set of embedders if those of all blocks are equal."""
    shared = with_shared_embedders(own, depth)
    dim = settings["num_attention_heads"] * settings["attention_head_dim"]
    width = len(own["patch_embed.projection.bias"])
    if dim != width or dim % 4:
        raise InputError(f"config.json says a width of {dim}, and the weights {width}; it must be divisible by 4")
    network = DiTConfig(
        patch_size=settings["patch_size"],
        dim=dim,
        depth=depth,
        heads=settings["num_attention_heads"],
        mlp_ratio=ratio(len(own["blocks.0.mlp.0.weight"]), dim),
        positions="sincos",
        learned_variance=settings["out_channels"] == 2 * settings["in_channels"],
        gelu=GELU[settings["activation_fn"]],
        time_features=256,
        time_scale=float(steps),
        time_offset=-1.0,
        time_frequency_shift=frequency_shift,
        embedders="per-block" if shared is None else "shared",
    )
    return network, own if shared is None else shared


def _data(settings: dict[str, Any], folder: Path) -> ExternalData:
    """Shape and labels; and the autoencoder and its scale, where the pipeline has one."""
    shape = (settings["in_channels"], settings["sample_size"], settings["sample_size"])
    vae = folder / "vae"
    if not (vae / "config.json").is_file():
        return external_data(shape, settings["num_embeds_ada_norm"])
    file = vae / "config.json"
    given = {"scaling_factor": STABLE_DIFFUSION_SCALE} | read_json(file)
    scale = number(given, "scaling_factor", file)
    if scale <= 0:
        raise InputError(f"{file}: scaling_factor={scale:g} must be above 0")
    return external_data(shape, settings["num_embeds_ada_norm"], scale, vae)


def _notes(settings: dict[str, Any]) -> tuple[str, ...]:
    if settings["norm_eps"] == 1e-6:
        return ()
    return (
        f"norm_eps={settings['norm_eps']:g} in front of the MLPs is taken as 1e-6, as in the paper's code and in the "
        "other norms",
    )

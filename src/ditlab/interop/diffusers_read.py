"""Read folders of diffusers' ``DiTTransformer2DModel``, or of a pipeline that contains one as ``transformer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ditlab.config import Config, DiTConfig, ExternalData
from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.interop.diffusers_scheduler import read_scheduler
from ditlab.interop.imported_network import STABLE_DIFFUSION_SCALE, Imported, check_shapes, external_data, ratio
from ditlab.interop.safe_load import Count, Settings, as_weights, read_model_folder, shortened, validated
from ditlab.networks.embeddings import sincos_positions
from ditlab.networks.keymaps import (
    DIFFUSERS_BLOCK,
    block_count,
    differences,
    diffusers_names,
    to_ours,
    with_shared_embedders,
)

GELU: dict[str, Literal["exact", "tanh"]] = {"gelu-approximate": "tanh", "gelu": "exact"}


class ModelSettings(Settings):
    """config.json of a DiTTransformer2DModel, with diffusers' defaults; a larger norm_eps would change the output."""

    kind: Literal["DiTTransformer2DModel", "Transformer2DModel"] = Field(alias="_class_name")
    num_attention_heads: Count = 16
    attention_head_dim: Count = 72
    in_channels: Count = 4
    out_channels: Count | None = None
    num_layers: Count = 28
    attention_bias: Literal[True] = True
    sample_size: Count = 32
    patch_size: Count = 2
    activation_fn: Literal["gelu-approximate", "gelu"] = "gelu-approximate"
    num_embeds_ada_norm: Count = 1000
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: Annotated[float, Field(gt=0, le=1e-5)] = 1e-5


class AutoencoderSettings(Settings):
    """config.json of an AutoencoderKL, with diffusers' defaults."""

    latent_channels: Count = 4
    scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = STABLE_DIFFUSION_SCALE


def read_diffusers(folder: Path, frequency_shift: int) -> Imported:
    """Read the folder of a model, or of a pipeline, in our conventions.

    Args:
        folder: contains config.json and safetensors, or a folder ``transformer`` with these.
        frequency_shift: 1 for the time frequencies of diffusers, 0 for those of facebookresearch/DiT.

    Raises:
        InputError: what is wrong with it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, as a diffusers model is")
    pipeline = (folder / "transformer" / "config.json").is_file()
    home = folder / "transformer" if pipeline else folder
    if not (home / "config.json").is_file():
        raise InputError(f"{folder} is not a diffusers model: it has neither config.json nor transformer/config.json")
    settings = _model_settings(home / "config.json")
    content = read_model_folder(home)
    size = sum(file.stat().st_size for file in home.glob("*.safetensors"))
    depth = block_count(content, DIFFUSERS_BLOCK)
    names = diffusers_names(depth)
    if depth == 0 or (problems := differences(content, names)):
        problems = ["no tensor is named transformer_blocks.0..."] if depth == 0 else problems
        raise InputError(f"{home} is not laid out as DiTTransformer2DModel: {shortened(problems)}")
    if depth != settings.num_layers:
        raise InputError(f"{home}: config.json says num_layers={settings.num_layers}, but the weights have {depth}")
    theirs = as_weights(content, home, size)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    process, sampling, notes = read_scheduler(scheduler if pipeline else None)
    data = _data(settings, folder)
    network, tensors = _network(settings, to_ours(theirs, names), depth, process.steps, frequency_shift)
    side = settings.sample_size // settings.patch_size
    tensors["positions"] = sincos_positions((side, side), network.dim)
    check_shapes(tensors, network, data, names, home)
    config = Config(data=data, network=network, process=process, sampling=sampling, steps=1)
    return Imported(config, tensors, tensors, (*_notes(settings), *notes))


def _model_settings(file: Path) -> ModelSettings:
    settings = validated(ModelSettings, read_json(file), file)
    if settings.out_channels not in (None, settings.in_channels, 2 * settings.in_channels):
        raise InputError(f"{file}: out_channels={settings.out_channels} is neither in_channels nor twice as many")
    side, rest = divmod(settings.sample_size, settings.patch_size)
    if rest or side > 256:
        raise InputError(f"{file}: sample_size={settings.sample_size} is not 1 to 256 times the patch_size")
    return settings


def _network(
    settings: ModelSettings, own: dict[str, Tensor], depth: int, steps: int, frequency_shift: int
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """The network, with one set of embedders if those of all blocks are equal."""
    shared = with_shared_embedders(own, depth)
    dim = settings.num_attention_heads * settings.attention_head_dim
    width = len(own["patch_embed.projection.bias"])
    if dim != width or dim % 4:
        raise InputError(f"config.json says a width of {dim}, and the weights {width}; it must be divisible by 4")
    network = DiTConfig(
        patch_size=settings.patch_size,
        dim=dim,
        depth=depth,
        heads=settings.num_attention_heads,
        mlp_ratio=ratio(len(own["blocks.0.mlp.0.weight"]), dim),
        positions="sincos",
        learned_variance=settings.out_channels == 2 * settings.in_channels,
        gelu=GELU[settings.activation_fn],
        time_features=256,
        time_scale=float(steps),
        time_offset=-1.0,
        time_frequency_shift=frequency_shift,
        embedders="per-block" if shared is None else "shared",
    )
    return network, own if shared is None else shared


def _data(settings: ModelSettings, folder: Path) -> ExternalData:
    """Shape and labels, and the pipeline's autoencoder and its scale, if it has one."""
    shape = (settings.in_channels, settings.sample_size, settings.sample_size)
    vae = folder / "vae"
    if not (vae / "config.json").is_file():
        return external_data(shape, settings.num_embeds_ada_norm)
    given = validated(AutoencoderSettings, read_json(vae / "config.json"), vae / "config.json")
    return external_data(shape, settings.num_embeds_ada_norm, given.scaling_factor, vae)


def _notes(settings: ModelSettings) -> tuple[str, ...]:
    if settings.norm_eps == 1e-6:
        return ()
    return (f"norm_eps={settings.norm_eps:g} before the MLPs is replaced by 1e-6, as in the paper's code",)

"""The state dicts of facebookresearch/DiT and of SiT: one layout, two meanings.

A DiT (Peebles & Xie 2023) takes the published index k and predicts the noise. A SiT (Ma et al. 2024) takes a time in
[0, 1] with the data at 1 and predicts the velocity towards the data, so it is our network at 1 − t with the sign
reversed; with a learned variance it has 2C output channels, and never uses the second half. The SiT of REPA (Yu et al.
2025) takes a time in [0, 1] with the noise at 1 and predicts eps − x0, as ours does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ditlab.config import Config, DDPMConfig, DiTConfig, ExternalData, FlowConfig, ProcessConfig, SamplingConfig
from ditlab.core.errors import InputError
from ditlab.interop.imported_network import Imported, check_shapes, external_data, ratio
from ditlab.interop.nesting import Part, state_dicts
from ditlab.interop.safe_load import as_weights, read_safetensors, read_torch, shortened, unpacked_size
from ditlab.networks.embeddings import sincos_positions
from ditlab.networks.keymaps import FACEBOOK_BLOCK, block_count, differences, facebook_names, to_ours
from ditlab.networks.presets import PRESETS, preset

HEADS = {preset(name)["dim"]: preset(name)["heads"] for name in PRESETS}
TIME = {"facebook-dit": (1000.0, -1.0), "sit": (-1.0, 1.0), "repa": (1.0, 0.0)}  # time_scale, time_offset
Layout = Literal["facebook-dit", "sit", "repa"]
ROUND = (10, 100, 1000)  # label tables with so many rows have no null label
OTHERS = {  # tensor names that identify other networks
    "transformer_blocks.": "a diffusers network; import its DiT as a folder with --format diffusers",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "input_blocks.": "a U-Net",
    ".mlp.w12.": "LightningDiT",
    ".attn.q_norm.": "a DiT with QK-norm",
}


def read_facebook(path: Path, layout: Layout, name: str | None, heads: int | None, classes: int | None) -> Imported:
    """Read a state dict, or a training checkpoint with one or two of them, in our conventions.

    Args:
        path: a file of ``torch.save`` or of safetensors.
        layout: how to interpret it, which the file does not tell.
        name: a preset such as "DiT-XL/2" that the weights must fit; it decides the number of heads.
        heads: number of heads, which no tensor tells; None is the published one for the width.
        classes: number of labels. None is the checkpoint's own argument; otherwise the number of rows of the label
            table if it is 10, 100 or 1000, or one less, as the last row is the null label.

    Raises:
        InputError: what is wrong with the file.
    """
    wanted = None if name is None else _preset(name)
    heads = heads if wanted is None else wanted["heads"]
    read = _read(path, layout)
    weights, notes = read.weights, read.notes
    first = next(iter(weights.values()))
    if classes is None:
        classes, notes = _told_classes(len(first["conditioner.labels.table.weight"]), read)
    network = _network(first, layout, path, heads, classes, read.rounding)
    if wanted is not None:
        _must_fit(network, wanted, f"{path} is not a {name}")
    data = _data(first, network, path, classes)
    process, sampling = _process(layout, network)
    if layout == "sit":
        weights = {part: _reversed(tensors, data.shape[0], network.patch_size) for part, tensors in weights.items()}
    for tensors in weights.values():
        check_shapes(tensors, network, data, facebook_names(network.depth), path)
    config = Config(data=data, network=network, process=process, sampling=sampling, steps=1)
    either = next(iter(weights.values()))
    return Imported(config, weights.get("model", either), weights.get("ema", either), notes)


class _Read(NamedTuple):
    """Weights under our names, notes, their relative rounding error, and the trainer's number of classes."""

    weights: dict[Part, dict[str, Tensor]]
    notes: tuple[str, ...]
    rounding: float
    num_classes: int | None


def _read(path: Path, layout: Layout) -> _Read:
    """The sets of weights in a file."""
    plain = path.suffix == ".safetensors"
    content, held = (read_safetensors(path), path.stat().st_size) if plain else (read_torch(path), unpacked_size(path))
    found = state_dicts(content, path)
    notes, named = [], {}
    if found.prefixes:
        notes.append(f"the prefix {' and '.join(found.prefixes)}, which wrappers add to all names, is removed")
    for part, tensors in found.parts.items():
        named[part] = {name: tensor for name, tensor in tensors.items() if not name.startswith("projectors.")}
        if (left := len(tensors) - len(named[part])) and layout != "repa":
            raise InputError(
                f"{path} has projectors, so it is a SiT of REPA, whose time runs from the data to the noise: use "
                f"--format repa"
            )
        if left and part == next(iter(found.parts)):
            notes.append(f"the projectors of REPA, {left} tensors needed only in training, are left out")
    depths = {part: block_count(tensors, FACEBOOK_BLOCK) for part, tensors in named.items()}
    if len(set(depths.values())) > 1:
        raise InputError(f"{path}: its model has {depths['model']} blocks and its ema {depths['ema']}")
    kinds = [tensors["pos_embed"].dtype for tensors in named.values() if "pos_embed" in tensors]
    rounding = max([torch.finfo(kind).eps for kind in kinds if kind.is_floating_point], default=0.0)
    weights = {part: _ours(tensors, path, held) for part, tensors in named.items()}
    return _Read(weights, tuple(notes), max(1e-5, rounding), found.num_classes)


def _told_classes(rows: int, read: _Read) -> tuple[int | None, tuple[str, ...]]:
    """The number of classes, as its trainer says, or all rows of a round number; None if all rows but one."""
    if read.num_classes in (rows, rows - 1):
        return read.num_classes, read.notes
    if rows not in ROUND:
        return None, read.notes
    note = f"all {rows} rows of the label table are taken as classes; if the last one is the null label, use"
    return rows, (*read.notes, f"{note} --num-classes {rows - 1}")


def _ours(tensors: dict[str, Tensor], path: Path, held: int) -> dict[str, Tensor]:
    depth = block_count(tensors, FACEBOOK_BLOCK)
    other = next((whose for sign, whose in OTHERS.items() if any(sign in name for name in tensors)), None)
    if depth == 0:
        looks = f"; this looks like {other}" if other else ""
        raise InputError(
            f"{path} holds no DiT in the layout of facebookresearch/DiT: no tensor is named blocks.0...{looks}"
        )
    names = facebook_names(depth)
    if problems := differences(tensors, names):
        looks = f", but looks like {other}" if other else ""
        raise InputError(f"{path} is not laid out as facebookresearch/DiT{looks}: {shortened(problems)}")
    return to_ours(as_weights(tensors, path, held), names)


def _network(
    tensors: dict[str, Tensor], layout: Layout, path: Path, heads: int | None, classes: int | None, rounding: float
) -> DiTConfig:
    """Derive the network's settings from the shapes, whose consistency is checked later.

    ``rounding`` is the tolerance for recognising sine-cosine positions.
    """
    projection, positions = tensors["patch_embed.projection.weight"], tensors["positions"]
    table, hidden = tensors["conditioner.labels.table.weight"], tensors["blocks.0.mlp.0.weight"]
    features = tensors["conditioner.time.mlp.0.weight"]
    for theirs, tensor, axes in (
        ("x_embedder.proj.weight", projection, 4),
        ("pos_embed", positions, 3),
        ("y_embedder.embedding_table.weight", table, 2),
        ("blocks.0.mlp.fc1.weight", hidden, 2),
        ("t_embedder.mlp.0.weight", features, 2),
        ("final_layer.linear.weight", tensors["final.linear.weight"], 2),
    ):
        if tensor.dim() != axes or 0 in tensor.shape:
            raise InputError(f"{path}: {theirs} has the shape {tuple(tensor.shape)}, which no DiT has")
    dim, channels, patch = projection.shape[0], projection.shape[1], projection.shape[2]
    outputs = len(tensors["final.linear.weight"]) // patch**2
    if heads is None and dim not in HEADS:
        raise InputError(f"no published DiT has the width {dim}, and no tensor tells the number of heads: use --heads")
    rows, scale_offset = len(table), TIME[layout]
    if classes not in (None, rows, rows - 1):
        raise InputError(f"--num-classes {classes}: the label table has {rows} rows, with or without a null label")
    side = math.isqrt(positions.shape[1])
    table_fits = side**2 == positions.shape[1] and dim % 4 == 0 and positions.shape[2] == dim
    sincos = table_fits and torch.allclose(positions, sincos_positions((side, side), dim), rtol=0, atol=rounding)
    return DiTConfig(
        patch_size=patch,
        dim=dim,
        depth=block_count(tensors, FACEBOOK_BLOCK),  # our blocks have the same prefix
        heads=HEADS[dim] if heads is None else heads,
        mlp_ratio=ratio(len(hidden), dim),
        positions="sincos" if sincos else "learned",
        learned_variance=layout == "facebook-dit" and outputs == 2 * channels,
        gelu="tanh",
        time_features=features.shape[1],
        time_scale=scale_offset[0],
        time_offset=scale_offset[1],
        null_label=classes != rows,
    )


def _preset(name: str) -> dict[str, Any]:
    try:
        return preset(name.replace("SiT-", "DiT-"))
    except ValueError as error:
        raise InputError(f"--preset: {error}") from None


def _must_fit(network: DiTConfig, wanted: dict[str, Any], refusal: str) -> None:
    """Refuse weights of another size, and say which size they have."""
    sizes = ("depth", "dim", "patch_size")
    own = [getattr(network, size) for size in sizes]
    if own != [wanted[size] for size in sizes]:
        same = [other for other in PRESETS if [preset(other)[size] for size in sizes] == own]
        looks = f"--preset {same[0]}" if same else "not a published size: leave out --preset and use --heads"
        raise InputError(
            f"{refusal}: it has {own[0]} blocks of width {own[1]} and patches of {own[2]}, which is {looks}"
        )


def _data(tensors: dict[str, Tensor], network: DiTConfig, path: Path, classes: int | None) -> ExternalData:
    tokens = tensors["positions"].shape[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise InputError(f"{path}: pos_embed has {tokens} positions, which is not a square number")
    channels = tensors["patch_embed.projection.weight"].shape[1]
    size = side * network.patch_size
    rows = len(tensors["conditioner.labels.table.weight"])
    classes = rows - network.null_label if classes is None else classes
    if classes < 1:
        raise InputError(f"{path}: the label table has a single row; use --num-classes 1 if it is a class")
    return external_data((channels, size, size), classes)


def _process(layout: Layout, network: DiTConfig) -> tuple[ProcessConfig, SamplingConfig]:
    """The process, and its authors' sampling: 250 evaluations, guidance 4 on three channels (REPA: 1.8, t ≤ 0.7)."""
    guidance = SamplingConfig(guidance=4.0, guidance_channels=3) if network.null_label else SamplingConfig()
    if layout == "repa" and network.null_label:
        guidance = SamplingConfig(guidance=1.8, guidance_interval=(0.0, 0.7))
    if layout != "facebook-dit":
        return FlowConfig(), guidance.model_copy(update={"solver": "heun", "steps": 125})
    return DDPMConfig(), guidance.model_copy(update={"solver": "ancestral", "steps": 250})


def _reversed(tensors: dict[str, Tensor], channels: int, patch: int) -> dict[str, Tensor]:
    """Remove the unused half of a SiT's last layer, rows (p, q, c) with c ≥ C, and reverse its sign to eps − x0."""
    turned = dict(tensors)
    for name in ("final.linear.weight", "final.linear.bias"):
        rows = tensors[name]
        if len(rows) == 2 * patch**2 * channels:
            rows = rows.reshape(patch**2, 2 * channels, *rows.shape[1:])[:, :channels].flatten(0, 1)
        turned[name] = -rows
    return turned

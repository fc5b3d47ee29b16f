"""The state dicts of facebookresearch/DiT and of SiT: one layout, two meanings.

A DiT (Peebles & Xie 2023) predicts the noise at the published index k, which it is given as it is. A SiT (Ma et al.
2024) is given a time in [0, 1] with the data at 1 and predicts the velocity towards the data, so it is our network at
1 − t with the sign turned; with a learned variance it has 2C channels out, of which it never uses the second half.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ditlab.config import Config, DDPMConfig, DiTConfig, ExternalData, FlowConfig, ProcessConfig, SamplingConfig
from ditlab.errors import InputError
from ditlab.interop.files import as_weights, named_tensors, read_torch, shortened, unpacked_size
from ditlab.interop.imported import Imported, check_shapes, external_data, ratio
from ditlab.networks.embeddings import sincos_positions
from ditlab.networks.keymaps import FACEBOOK_BLOCK, block_count, differences, facebook_names, to_ours
from ditlab.networks.published import PRESETS, preset

HEADS = {preset(name)["dim"]: preset(name)["heads"] for name in PRESETS}
TIME = {"facebook-dit": (1000.0, -1.0), "sit": (-1.0, 1.0)}  # time_scale, time_offset
Layout = Literal["facebook-dit", "sit"]
PARALLEL = "module."


def read_facebook(path: Path, layout: Layout, name: str | None, heads: int | None, classes: int | None) -> Imported:
    """A state dict, or a training checkpoint with "model" and "ema", as a run that speaks our conventions.

    Args:
        path: a file of ``torch.save``.
        layout: which of the two meanings it has; the file does not say.
        name: a preset such as "DiT-XL/2", that the weights are to fit; it tells the number of heads.
        heads: the number of heads, which no tensor tells; None is the published one for the width.
        classes: number of labels; None is one less than the rows of the label table, whose last is the null label.

    Raises:
        InputError: whatever is wrong with the file, in its own words.
    """
    wanted = None if name is None else _preset(name)
    heads = heads if wanted is None else wanted["heads"]
    weights, notes = _parts(path)
    first = next(iter(weights.values()))
    network = _network(first, layout, path, heads, classes)
    if wanted is not None:
        _must_fit(network, wanted, f"{path} is no {name}")
    data = _data(first, network, path, classes)
    process, sampling = _process(layout, network)
    if layout == "sit":
        weights = {part: _turned(tensors, data.shape[0], network.patch_size) for part, tensors in weights.items()}
    for tensors in weights.values():
        check_shapes(tensors, network, data, facebook_names(network.depth), path)
    config = Config(data=data, network=network, process=process, sampling=sampling, steps=1)
    either = next(iter(weights.values()))
    return Imported(config, weights.get("model", either), weights.get("ema", either), notes)


def _parts(path: Path) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """The sets of weights in a file, under our names, and notes."""
    content, held = read_torch(path), unpacked_size(path)
    if isinstance(content, dict):
        content = dict(dict.items(content))
    trained = isinstance(content, dict) and {"model", "ema"} & content.keys()
    parts = {part: content[part] for part in ("model", "ema") if content.get(part) is not None} if trained else {}
    if not trained:
        parts = {"model": content}
    if not parts:
        raise InputError(f"{path} holds no state dict: its model and its ema are None")
    named = {part: named_tensors(value, path) for part, value in parts.items()}
    prefixed = [part for part, tensors in named.items() if all(name.startswith(PARALLEL) for name in tensors)]
    for part in prefixed:
        named[part] = {name.removeprefix(PARALLEL): tensor for name, tensor in named[part].items()}
    depths = {part: block_count(tensors, FACEBOOK_BLOCK) for part, tensors in named.items()}
    if len(set(depths.values())) > 1:
        raise InputError(f"{path}: its model has {depths['model']} blocks and its ema {depths['ema']}")
    weights = {part: _ours(tensors, path, held) for part, tensors in named.items()}
    return weights, (f"{PARALLEL} in front of all names, which DataParallel adds, is left out",) if prefixed else ()


def _ours(tensors: dict[str, Tensor], path: Path, held: int) -> dict[str, Tensor]:
    depth = block_count(tensors, FACEBOOK_BLOCK)
    if depth == 0:
        raise InputError(f"{path} holds no DiT in the layout of facebookresearch/DiT: no tensor is named blocks.0...")
    names = facebook_names(depth)
    if problems := differences(tensors, names):
        raise InputError(f"{path} is not laid out as facebookresearch/DiT: {shortened(problems)}")
    return to_ours(as_weights(tensors, path, held), names)


def _network(
    tensors: dict[str, Tensor], layout: Layout, path: Path, heads: int | None, classes: int | None
) -> DiTConfig:
    """What the shapes tell of the network; that they agree with one another is checked later."""
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
        raise InputError(f"no published DiT has the width {dim}, and no tensor tells the number of heads: give --heads")
    rows, scale_offset = len(table), TIME[layout]
    if classes not in (None, rows, rows - 1):
        raise InputError(f"--num-classes {classes}: the label table has {rows} rows, with or without one for no label")
    side = math.isqrt(positions.shape[1])
    table_fits = side**2 == positions.shape[1] and dim % 4 == 0 and positions.shape[2] == dim
    sincos = table_fits and torch.allclose(positions, sincos_positions((side, side), dim), rtol=0, atol=1e-5)
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
    """Say what the weights look like when they are not of the size wanted."""
    sizes = ("depth", "dim", "patch_size")
    own = [getattr(network, size) for size in sizes]
    if own != [wanted[size] for size in sizes]:
        same = [other for other in PRESETS if [preset(other)[size] for size in sizes] == own]
        looks = f"--preset {same[0]}" if same else "no published size: leave --preset out and give --heads"
        raise InputError(
            f"{refusal}: it has {own[0]} blocks of width {own[1]} and patches of {own[2]}, which is {looks}"
        )


def _data(tensors: dict[str, Tensor], network: DiTConfig, path: Path, classes: int | None) -> ExternalData:
    tokens = tensors["positions"].shape[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise InputError(f"{path}: pos_embed has {tokens} positions, which make no square image")
    channels = tensors["patch_embed.projection.weight"].shape[1]
    size = side * network.patch_size
    rows = len(tensors["conditioner.labels.table.weight"])
    classes = rows - network.null_label if classes is None else classes
    if classes < 1:
        raise InputError(f"{path}: the label table has a single row; with --num-classes 1 it is a class")
    return external_data((channels, size, size), classes)


def _process(layout: Layout, network: DiTConfig) -> tuple[ProcessConfig, SamplingConfig]:
    """How the network was trained, and how its authors draw: 250 evaluations, guidance 4 on three channels."""
    guidance = SamplingConfig(guidance=4.0, guidance_channels=3) if network.null_label else SamplingConfig()
    if layout == "sit":
        return FlowConfig(), guidance.model_copy(update={"solver": "heun", "steps": 125})
    return DDPMConfig(), guidance.model_copy(update={"solver": "ancestral", "steps": 250})


def _turned(tensors: dict[str, Tensor], channels: int, patch: int) -> dict[str, Tensor]:
    """A SiT's last layer without its dead half, and with the sign of our velocity, eps − x0.

    Its rows run in the order (p, q, c); those of the channels c ≥ C are never used.
    """
    turned = dict(tensors)
    for name in ("final.linear.weight", "final.linear.bias"):
        rows = tensors[name]
        if len(rows) == 2 * patch**2 * channels:
            rows = rows.reshape(patch**2, 2 * channels, *rows.shape[1:])[:, :channels].flatten(0, 1)
        turned[name] = -rows
    return turned

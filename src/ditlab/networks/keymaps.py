"""The names that published checkpoints give to the tensors of a DiT. No file is read or written here.

A map goes from our name of a tensor to theirs: to one name, or to several whose tensors, stacked on the first axis, are
ours. facebookresearch/DiT and SiT share one layout, here "facebook"; the other is that of diffusers'
``DiTTransformer2DModel``, in which each block owns embedders of time and label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Names = Mapping[str, tuple[str, ...]]

FACEBOOK_BLOCK = re.compile(r"blocks\.(\d+)\.")
DIFFUSERS_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")

_FACEBOOK = {
    "patch_embed.projection": ("x_embedder.proj",),
    "conditioner.time.mlp.0": ("t_embedder.mlp.0",),
    "conditioner.time.mlp.2": ("t_embedder.mlp.2",),
    "final.modulation": ("final_layer.adaLN_modulation.1",),
    "final.linear": ("final_layer.linear",),
}
_FACEBOOK_IN_BLOCK = {
    "modulation.linear": ("adaLN_modulation.1",),
    "attn.qkv": ("attn.qkv",),
    "attn.out": ("attn.proj",),
    "mlp.0": ("mlp.fc1",),
    "mlp.2": ("mlp.fc2",),
}
_DIFFUSERS = {
    "patch_embed.projection": ("pos_embed.proj",),
    "final.modulation": ("proj_out_1",),
    "final.linear": ("proj_out_2",),
}
_DIFFUSERS_IN_BLOCK = {
    "modulation.linear": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.out": ("attn1.to_out.0",),
    "mlp.0": ("ff.net.0.proj",),
    "mlp.2": ("ff.net.2",),
}
_DIFFUSERS_EMBEDDER = {
    "time.mlp.0": ("norm1.emb.timestep_embedder.linear_1",),
    "time.mlp.2": ("norm1.emb.timestep_embedder.linear_2",),
}


def facebook_names(depth: int) -> dict[str, tuple[str, ...]]:
    """The layout of facebookresearch/DiT and SiT for a network of ``depth`` blocks."""
    layers: dict[str, tuple[str, ...]] = dict(_FACEBOOK)
    for i in range(depth):
        layers |= _inside(f"blocks.{i}", f"blocks.{i}", _FACEBOOK_IN_BLOCK)
    labels = ("y_embedder.embedding_table.weight",)
    return {"positions": ("pos_embed",), "conditioner.labels.table.weight": labels} | _with_parameters(layers)


def diffusers_names(depth: int) -> dict[str, tuple[str, ...]]:
    """The layout of ``DiTTransformer2DModel`` for a network of ``depth`` blocks, each with its own embedders.

    It has no positions: diffusers computes them.
    """
    layers: dict[str, tuple[str, ...]] = dict(_DIFFUSERS)
    tables: dict[str, tuple[str, ...]] = {}
    for i in range(depth):
        block, embedder = f"transformer_blocks.{i}", embedder_name(i)
        layers |= _inside(f"blocks.{i}", block, _DIFFUSERS_IN_BLOCK) | _inside(embedder, block, _DIFFUSERS_EMBEDDER)
        tables[f"{embedder}.labels.table.weight"] = (f"{block}.norm1.emb.class_embedder.embedding_table.weight",)
    return tables | _with_parameters(layers)


def _inside(here: str, there: str, names: Names) -> dict[str, tuple[str, ...]]:
    return {f"{here}.{ours}": tuple(f"{there}.{name}" for name in theirs) for ours, theirs in names.items()}


def embedder_name(block: int) -> str:
    """The module with the embedders of a block in a DiT where each block has its own."""
    return "conditioner" if block == 0 else f"block_conditioners.{block - 1}"


def _with_parameters(layers: Names) -> dict[str, tuple[str, ...]]:
    """The weight and the bias of each layer."""
    return {
        f"{ours}.{p}": tuple(f"{name}.{p}" for name in theirs)
        for ours, theirs in layers.items()
        for p in ("weight", "bias")
    }


def block_count(names: Mapping[str, object], pattern: re.Pattern[str]) -> int:
    """How many blocks a checkpoint with these names has."""
    return len({found[1] for name in names if (found := pattern.match(name))})


def differences(tensors: Mapping[str, object], names: Names) -> list[str]:
    """Names that a checkpoint lacks, and names it has beyond the layout."""
    known = [name for theirs in names.values() for name in theirs]
    missing = [f"missing {name}" for name in known if name not in tensors]
    return missing + [f"unexpected {name}" for name in sorted(set(tensors) - set(known))]


def to_ours(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Their tensors under our names; nothing may be missing."""
    return {
        ours: tensors[theirs[0]] if len(theirs) == 1 else torch.cat([tensors[name] for name in theirs])
        for ours, theirs in names.items()
    }


def to_theirs(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our tensors under their names; nothing may be missing."""
    return {
        name: part
        for ours, theirs in names.items()
        for name, part in zip(theirs, tensors[ours].chunk(len(theirs)), strict=True)
    }


def with_shared_embedders(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor] | None:
    """One set of embedders in place of each block's own, or None if they differ."""
    own = [name for name in tensors if name.startswith("conditioner.")]
    if not all(torch.equal(tensors[name], tensors[_of_block(name, i)]) for i in range(1, depth) for name in own):
        return None
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("block_conditioners.")}


def with_own_embedders(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A copy of the shared embedders for each block."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("conditioner.")}
    copies = {_of_block(name, i): tensor for i in range(1, depth) for name, tensor in own.items()}
    return {**tensors, **copies}


def _of_block(name: str, block: int) -> str:
    return f"{embedder_name(block)}.{name.removeprefix('conditioner.')}"

"""Our DiT is the published one: diffusers' DiTTransformer2DModel with our weights gives our output."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

import ditlab
from ditlab.core.rng import generator_for
from ditlab.networks.presets import Published
from tests.diffusion.test_process import shaken


def to_peer(network, size, patch, channels, heads):
    """diffusers' DiT with the weights of ours."""
    depth, dim = len(network.blocks), network.positions.shape[-1]
    peer = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=channels,
        out_channels=network.out_channels,
        num_layers=depth,
        sample_size=size,
        patch_size=patch,
        num_embeds_ada_norm=network.num_classes,
        norm_eps=1e-6,
    ).eval()
    state = {
        "pos_embed.proj": network.patch_embed.projection,
        "proj_out_1": network.final.modulation,
        "proj_out_2": network.final.linear,
    }
    tensors = {f"{name}.{p}": getattr(layer, p) for name, layer in state.items() for p in ("weight", "bias")}
    for i, block in enumerate(network.blocks):
        names = ["to_q", "to_k", "to_v"]
        qkv = zip(names, block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        prefix = f"transformer_blocks.{i}"
        for name, weight, bias in qkv:
            tensors |= {f"{prefix}.attn1.{name}.weight": weight, f"{prefix}.attn1.{name}.bias": bias}
        time = network.conditioner.time.mlp
        layers = {
            "attn1.to_out.0": block.attn.out,
            "ff.net.0.proj": block.mlp[0],
            "ff.net.2": block.mlp[2],
            "norm1.linear": block.modulation.linear,
            "norm1.emb.timestep_embedder.linear_1": time[0],
            "norm1.emb.timestep_embedder.linear_2": time[2],
        }
        tensors |= {f"{prefix}.{n}.{p}": getattr(layer, p) for n, layer in layers.items() for p in ("weight", "bias")}
        tensors[f"{prefix}.norm1.emb.class_embedder.embedding_table.weight"] = network.conditioner.labels.table.weight
    missing, unexpected = peer.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not missing
    for block in peer.transformer_blocks:
        # diffusers divides the exponents of the frequencies by half − 1; the published network, and ours, by half
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return peer


@pytest.mark.parametrize("learned_variance", [False, True])
def test_same_output_as_diffusers(learned_variance):
    network = shaken(
        ditlab.DiT(
            image_size=8,
            patch_size=2,
            channels=4,
            dim=48,
            depth=3,
            heads=4,
            mlp_ratio=4,
            positions="sincos",
            num_classes=10,
            learned_variance=learned_variance,
            published=Published(gelu="tanh", time_features=256, time_offset=-1.0),
        )
    )
    peer = to_peer(network, 8, 2, 4, 4)
    x = torch.randn(6, 4, 8, 8, generator=generator_for(0))
    k, label = torch.tensor([0, 1, 10, 250, 500, 999]), torch.tensor([0, 1, 5, 9, 10, 10])
    with torch.no_grad():
        theirs = peer(x, timestep=k, class_labels=label).sample
        ours = network(x, (k + 1) / 1000, {"label": label})
    assert (ours - theirs).norm() / theirs.norm() < 1e-5

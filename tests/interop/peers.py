"""Checkpoints of others, made here from their shapes, and others' own code to compare with."""

import math

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from ditlab.core.rng import generator_for
from ditlab.networks.presets import preset


def facebook_state(
    name="DiT-S/2", depth=None, rows=1001, outputs=8, seed=0, channels=4, size=32, dim=None, patch=None, ratio=4
):
    """Random weights in the layout of facebookresearch/DiT, from its shapes alone."""
    published = preset(name)
    dim, patch = dim or published["dim"], patch or published["patch_size"]
    shapes = {
        "x_embedder.proj": (dim, channels, patch, patch),
        "t_embedder.mlp.0": (dim, 256),
        "t_embedder.mlp.2": (dim, dim),
        "final_layer.linear": (patch * patch * outputs, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
    }
    for i in range(depth or published["depth"]):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * dim, dim),
            f"blocks.{i}.attn.proj": (dim, dim),
            f"blocks.{i}.mlp.fc1": (ratio * dim, dim),
            f"blocks.{i}.mlp.fc2": (dim, ratio * dim),
            f"blocks.{i}.adaLN_modulation.1": (6 * dim, dim),
        }
    generator = generator_for("weights", seed)
    state = {}
    for layer, shape in shapes.items():
        state[f"{layer}.weight"] = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        state[f"{layer}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    state["y_embedder.embedding_table.weight"] = torch.randn(rows, dim, generator=generator)
    side = size // patch
    state["pos_embed"] = get_2d_sincos_pos_embed(dim, side, base_size=side, output_type="pt").float()[None]
    return state


def diffusers_state(state):
    """The same weights as ``DiTTransformer2DModel`` names and cuts them."""
    single = {"x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out_2"}
    single["final_layer.adaLN_modulation.1"] = "proj_out_1"
    inner = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    inner["adaLN_modulation.1"] = "norm1.linear"
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    theirs = {}
    for p in ("weight", "bias"):
        theirs |= {f"{new}.{p}": state[f"{old}.{p}"] for old, new in single.items()}
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            theirs |= {f"{block}.{new}.{p}": state[f"blocks.{i}.{old}.{p}"] for old, new in inner.items()}
            q, k, v = state[f"blocks.{i}.attn.qkv.{p}"].chunk(3)
            theirs |= {f"{block}.attn1.to_{name}.{p}": part for name, part in zip("qkv", (q, k, v), strict=True)}
            for j in (1, 2):
                theirs[f"{block}.norm1.emb.timestep_embedder.linear_{j}.{p}"] = state[f"t_embedder.mlp.{2 * j - 2}.{p}"]
    for i in range(depth):
        table = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        theirs[table] = state["y_embedder.embedding_table.weight"]
    return theirs


def diffusers_dit(state, heads, frequency_shift=0):
    """diffusers' DiT with those weights, by default with the frequencies of facebookresearch/DiT."""
    dim, channels, patch, _ = state["x_embedder.proj.weight"].shape
    theirs = {name: tensor.clone() for name, tensor in diffusers_state(state).items()}  # none in common memory
    with torch.device("meta"):
        peer = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=dim // heads,
            in_channels=channels,
            out_channels=len(state["final_layer.linear.bias"]) // patch**2,
            num_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            sample_size=int(state["pos_embed"].shape[1] ** 0.5) * patch,
            patch_size=patch,
            num_embeds_ada_norm=len(state["y_embedder.embedding_table.weight"]) - 1,
            norm_eps=1e-6,
        )
    missing, unexpected = peer.load_state_dict(theirs, strict=False, assign=True)
    assert (missing, unexpected) == ([], [])
    peer.pos_embed.pos_embed = state["pos_embed"]
    return with_frequencies(peer, frequency_shift).eval().requires_grad_(False)


def with_frequencies(peer, shift):
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift
    return peer


def random_diffusers(seed=0, **settings):
    """A randomly initialised ``DiTTransformer2DModel``, whose blocks differ in their embedders."""
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "sample_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiTTransformer2DModel(**{**small, "out_channels": 8, "num_embeds_ada_norm": 10, **settings}).eval()


def random_vae(folder, channels=4, scale=0.18215):
    """A small autoencoder with four times the resolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=channels,
            norm_num_groups=4,
            scaling_factor=scale,
        ).eval()
    vae.save_pretrained(folder)
    return vae


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())

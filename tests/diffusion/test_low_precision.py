"""Networks whose weights are in bf16, fp16 or fp64: times stay exact, states are in fp32 at least."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.rng import generator_for
from ditlab.diffusion.likelihood import log_likelihood
from ditlab.diffusion.meanflow import MeanFlow
from ditlab.networks.embeddings import TimeEmbedding
from ditlab.networks.presets import Published
from tests.diffusion.test_process import shaken

LOW = [torch.bfloat16, torch.float16]
DTYPES = [*LOW, torch.float64]
SMALL = {"num_classes": 3, "dim": 16, "heads": 2, "depth": 1, "interval": True}
TOLD = {"scalars": ("age",), "text_dim": 6}
KINDS = ("adaln-zero", "adaln", "film", "in-context", "cross-attention")
PARTS = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "published": Published(embedders="per-block")}
NETWORKS = {kind: partial(ditlab.DiT, **SMALL, **TOLD, conditioning=kind) for kind in KINDS} | {
    "other parts": partial(ditlab.DiT, **SMALL, **PARTS),
    "U-Net": partial(ditlab.UNet, num_classes=3, width=16),
    "MLP": partial(ditlab.MLPDenoiser, (1, 16, 16), num_classes=3, interval=True),
}
X = torch.randn(4, 1, 16, 16, generator=generator_for(0))
LABEL = {"label": torch.tensor([0, 1, 2, 1])}
EVERYTHING = LABEL | {"age": torch.tensor([0.1, 0.9, torch.nan, 0.5]), "text": torch.ones(4, 2, 6)}


@pytest.mark.parametrize("dtype", LOW)
def test_sinusoids_are_exact_and_rounded_once(dtype):
    """At all published times; 1000·t in bf16 would be off by up to 4, and rates in bf16 no better."""
    t = (torch.arange(1000) + 1) / 1000
    embed, seen = TimeEmbedding(16, 64).to(dtype), []
    embed.mlp[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embed(t)
    angles = np.arange(1, 1001)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    wanted = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert seen[0].dtype == dtype
    np.testing.assert_allclose(seen[0].double().numpy(), wanted, rtol=0, atol=torch.finfo(dtype).eps / 2 + 3e-4)
    assert torch.equal(seen[0], TimeEmbedding(16, 64).sinusoid(1000 * t).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_and_samples_within_rounding_of_fp32(name, dtype):
    """Losses, samples and guided samples, and a state that is given in the network's own type."""
    cond = EVERYTHING if name in KINDS else LABEL
    within = 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for make in (ditlab.FlowMatching, ditlab.DDPM, MeanFlow)[: 2 if name == "U-Net" else 3]:
        network = shaken(NETWORKS[name](time_scale=1.0) if make is MeanFlow else NETWORKS[name]())
        a, b = make(network), make(copy.deepcopy(network).to(dtype))
        loss = b.loss(X, cond, generator=generator_for(1))
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(a.loss(X, cond, generator=generator_for(1)).item(), rel=within)
        assert b.loss(X.to(dtype), cond).dtype == torch.promote_types(dtype, torch.float32)
        for options in ({"steps": 3}, {"steps": 2, "solver": "heun", "guidance": 2.0}):
            one, two = (p.sample(4, (1, 16, 16), cond=cond, **options) for p in (a, b))
            assert two.dtype == torch.promote_types(dtype, torch.float32)
            assert (one - two).norm() < within * one.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_network_is_given_x_in_its_type_and_exact_times(dtype):
    """DDPM's published times, in training and in sampling, with a network of anybody's own."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.times = nn.Linear(2, 2), []

        def forward(self, x, t, cond=None):
            self.times.append(t.double())
            return self.linear(x)

    process = ditlab.DDPM(Own().to(dtype))
    process.loss(torch.randn(50, 2), generator=generator_for(2))
    process.sample(3, shape=(2,), steps=7)
    t = torch.cat(process.network.times)
    torch.testing.assert_close(t, (t * 1000).round() / 1000, rtol=0, atol=6e-8)


@pytest.mark.parametrize("dtype", LOW)
def test_the_probe_looks_inside_and_the_likelihood_says_what_to_do(dtype):
    network = shaken(ditlab.DiT(dim=16, heads=2, depth=1)).to(dtype)
    process = ditlab.FlowMatching(network)
    with ditlab.probe(network) as record:
        process.sample(2, shape=(1, 16, 16), steps=1, solver="euler")
    torch.testing.assert_close(record.attention[0].float().sum(-1), torch.ones(2, 2, 16), rtol=0, atol=0.02)
    with pytest.raises(InputError, match=r"resolves: call network.float\(\) first"):
        log_likelihood(process, X)


def test_weights_of_several_types_are_given_x_as_it_is():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
            self.body = torch.nn.Linear(4, 4)

        def forward(self, x, t, cond=None):
            return self.body(x) + self.frozen(x.bfloat16()).float()

    process = ditlab.FlowMatching(Mixed())
    process.loss(torch.randn(3, 4)).backward()
    assert process.sample(2, shape=(4,), steps=2).dtype == torch.float32

"""The quick ways of products and attention on a CPU are the plain ones but for rounding, and step aside for others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ditlab
from ditlab.networks.layers import GELU, Linear, ScaledDotProductAttention
from tests.diffusion.test_process import shaken


def plain(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 24)])
def test_products_without_gradients_equal_those_with(shape):
    layer, x = Linear(24, 40), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer(x.transpose(0, -2)), plain(layer, x.transpose(0, -2)), rtol=1e-5, atol=1e-6)
        assert torch.jit.trace(layer, (x,))(x).equal(plain(layer, x))
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(layer(x), plain(layer, x))
    assert torch.equal(layer(x), plain(layer, x))


def test_products_that_someone_differentiates_maps_or_counts_are_torchs_own():
    layer, x = Linear(24, 40).requires_grad_(False), torch.randn(3, 24)
    tangent = torch.randn_like(x)
    with torch.no_grad():
        out, moved = torch.func.jvp(layer, (x,), (tangent,))
        torch.testing.assert_close(torch.func.vmap(layer)(x), plain(layer, x), rtol=1e-5, atol=1e-6)
        with FlopCounterMode(display=False) as counter:
            layer(x)
    torch.testing.assert_close(moved, tangent @ layer.weight.T, rtol=1e-5, atol=1e-6)
    assert torch.equal(out, plain(layer, x))
    assert counter.get_total_flops() == 2 * 3 * 24 * 40
    assert torch.autograd.functional.jacobian(layer, x[0]).equal(layer.weight)
    assert layer.double()(x.double()).dtype == torch.float64


def test_a_network_draws_the_same_samples_by_either_product(monkeypatch):
    process = ditlab.FlowMatching(shaken(ditlab.DiT()))
    quick = process.sample(5, (1, 16, 16), steps=6)
    monkeypatch.setattr(Linear, "forward", nn.Linear.forward)
    torch.testing.assert_close(quick, process.sample(5, (1, 16, 16), steps=6), rtol=0, atol=1e-4)


def test_a_frozen_weight_leaves_the_bias_its_gradient():
    layer = Linear(4, 3)
    layer.weight.requires_grad_(False)
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.bias.grad.tolist() == [2, 2, 2]


def test_short_attention_without_gradients_is_torchs_but_for_rounding():
    q, k, v = (torch.randn(2, 3, 16, 8) for _ in range(3))
    with torch.no_grad():
        torch.testing.assert_close(
            ScaledDotProductAttention()(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [16, 600])
def test_attention_under_autocast_is_that_of_fp32_but_for_rounding(masked, tokens):
    q, k, v = (torch.randn(2, 3, tokens, 16) for _ in range(3))
    mask = None
    if masked:
        mask = torch.ones(2, 1, 1, tokens, dtype=torch.bool)
        mask[0, ..., tokens // 2 :] = False
        mask[1] = tokens > 512  # of few, all: who may read nothing reads 0
    exact = F.scaled_dot_product_attention(q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = ScaledDotProductAttention()(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    torch.testing.assert_close(coarse.float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gelu_is_the_same_where_it_is_compiled(approximate, dtype):
    x = torch.linspace(-9, 9, 300, dtype=dtype, requires_grad=True)
    own = torch.compile(GELU(approximate), backend="aot_eager", dynamic=False)(x)
    plain = F.gelu(x, approximate=approximate)
    torch.testing.assert_close(own, plain)
    torch.testing.assert_close(torch.autograd.grad(own.sum(), x), torch.autograd.grad(plain.sum(), x))

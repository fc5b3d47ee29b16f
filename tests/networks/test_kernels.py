"""Which kernel computes changes nothing but the rounding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ditlab.core.rng import generator_for
from ditlab.networks import kernels
from ditlab.networks.dit import DiT
from ditlab.networks.kernels import Kernels, attention, layer_norm, linear, product, using
from ditlab.networks.layers import EPS

ALL = [Kernels(None, 0, 0, 0), Kernels(0, 512, 512, 512)]


def drawn(*shape):
    return torch.randn(shape, generator=generator_for("kernels", *shape))


@pytest.mark.parametrize("chosen", ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(chosen, bias):
    layer, x = nn.Linear(8, 12, bias=bias), drawn(3, 5, 8)
    expected = F.linear(x, layer.weight, layer.bias)
    with using(chosen), torch.no_grad():
        torch.testing.assert_close(linear(layer, x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(product(x, layer.weight, layer.bias), expected)


def test_onednn_is_asked_from_the_size_that_was_chosen():
    layer, x = nn.Linear(8, 12), drawn(4, 8)  # 384 multiply-accumulates
    for least, taken in ((384, True), (385, False), (None, False)):
        with using(Kernels(onednn_from=least)), torch.no_grad():
            assert kernels._takes_onednn(layer, x) == (taken and kernels.ONEDNN)
    with using(Kernels(onednn_from=0)):
        assert not kernels._takes_onednn(layer, x)  # a gradient is wanted


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(grad, autocast, masked):
    q, k, v = (drawn(2, 3, 7, 4) + i for i in range(3))
    mask = torch.tensor([True, False, True, True, True, False, True])[None, None, None] if masked else None
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask).float()
    for chosen in ALL:
        with using(chosen), torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = attention(q, k, v, mask).float()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.03 if autocast else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layer_norm(dtype):
    x = (drawn(3, 5, 16) * 3 + 1).to(dtype)
    found = layer_norm(x, EPS)
    assert found.dtype == dtype
    wide = x.double()
    expected = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


def test_a_norm_made_without_gradients_can_be_differentiated_later():
    with torch.inference_mode():
        layer_norm(drawn(2, 11), EPS)
    x = drawn(2, 11).requires_grad_()
    layer_norm(x, EPS).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_nobody_changes_what_a_training_uses():
    with using(ALL[0]):
        kernels.use(ALL[1])
        assert kernels._used is ALL[0]


def test_a_program_of_any_batch_is_exported_without_gradients(unchecked):
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(DiT(), (drawn(4, 1, 16, 16), drawn(4)), dynamic_shapes=({0: batch}, {0: batch}))
        assert program.module()(drawn(7, 1, 16, 16), drawn(7)).shape == (7, 1, 16, 16)


def test_torchs_defaults_do_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        layer_norm(torch.randn(2, 13, dtype=torch.float32), EPS)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_was_used_before_comes_back():
    before = kernels._used
    with pytest.raises(RuntimeError, match="stop"), using(ALL[0]):
        raise RuntimeError("stop")
    assert kernels._used is before

"""Norm and modulation in one step equal autograd's, keep one tensor instead of two, and step aside for others."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from ditlab.networks.kernels import ModulatedLayerNorm, modulated
from ditlab.networks.layers import EPS, layer_norm, rms_norm
from ditlab.networks.modulation import Modulation, modulate


def by_definition(x, shift, scale):
    return (1 + scale)[:, None] * layer_norm(x) + shift[:, None]


def in_one_step(x, shift, scale):
    return ModulatedLayerNorm.apply(x, shift, scale, EPS)


def by_autograd(x, shift, scale):
    return modulated(layer_norm(x), shift, scale)


def given(samples=3, dtype=torch.float32):
    """x (3, 5, 8), shift and scale (samples, 8)."""
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in [(3, 5, 8), (samples, 8), (samples, 8)]]


def gradients(call, inputs):
    y = call(*inputs)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, 120).view(3, 5, 8)).sum(), inputs)]


def in_a_block(x, shift, scale):
    return modulate(x, Modulation(shift, scale))


@pytest.mark.parametrize("samples", [3, 1])
def test_value_and_gradients_are_those_of_the_definition(samples):
    inputs = given(samples)
    torch.testing.assert_close(gradients(in_a_block, inputs), gradients(by_definition, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [3, 1])
def test_value_and_gradients_are_autograds_to_the_bit_on_a_cpu(samples):
    inputs = given(samples)
    ours, theirs = gradients(in_a_block, inputs), gradients(by_autograd, inputs)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(in_a_block(*inputs), ours[0])


def test_tokens_cut_from_a_longer_sequence():
    _, shift, scale = given()
    longer = torch.randn(3, 9, 8, requires_grad=True)

    def cut(call):
        return gradients(lambda *inputs: call(inputs[0][:, :5], *inputs[1:]), [longer, shift, scale])

    torch.testing.assert_close(cut(in_a_block), cut(by_definition), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [3, 1])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 2)])
def test_gradients_and_their_gradients_are_the_differences(samples, frozen):
    inputs = given(samples, torch.float64)
    for index in frozen:
        inputs[index].requires_grad_(False)
    assert gradcheck(in_one_step, inputs)
    assert gradgradcheck(in_one_step, inputs)


def test_gradients_of_gradients_where_the_tokens_depend_on_the_modulation():
    inputs = given(3, torch.float64)

    def twice(call):
        return lambda x, shift, scale: call(call(x, shift, scale).tanh(), shift, scale)

    def slopes(call):
        y = twice(call)(*inputs)
        return torch.autograd.grad(y.square().sum(), inputs, create_graph=True)

    torch.testing.assert_close(slopes(in_one_step), slopes(by_definition))
    assert gradgradcheck(twice(in_one_step), inputs)


def test_several_gradients_at_once():
    inputs, weights = given(), torch.randn(4, 3, 5, 8)

    def batched(call):
        return torch.autograd.grad(call(*inputs), inputs, weights, is_grads_batched=True)

    torch.testing.assert_close(batched(in_a_block), batched(by_definition), rtol=1e-5, atol=1e-5)


def test_half_precision_is_left_to_autograd():
    x, shift, scale = given()
    y = modulate(x.bfloat16(), Modulation(shift.bfloat16(), scale.bfloat16()))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(shift.grad, torch.full((3, 8), 5.0))


def test_only_x_is_kept():
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x, shift, scale = given()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = in_a_block(x, shift, scale)
    assert [tensor.data_ptr() for tensor in kept.values() if tensor.shape == x.shape] == [x.data_ptr()]
    y.sum().backward()
    assert x.grad is not None


def test_who_maps_or_differentiates_in_another_way_gets_the_definition():
    x, shift, scale = (each.detach() for each in given())
    tangents = (torch.randn_like(x), torch.randn_like(shift), torch.randn_like(scale))
    expected = torch.func.jvp(by_definition, (x, shift, scale), tangents)
    torch.testing.assert_close(torch.func.jvp(in_a_block, (x, shift, scale), tangents), expected, rtol=1e-5, atol=1e-5)

    with dual_level():
        dual = in_a_block(*map(make_dual, (x, shift, scale), tangents))
        torch.testing.assert_close(tuple(unpack_dual(dual)), expected, rtol=1e-5, atol=1e-5)

    def loss_of_one(call):
        return lambda x, shift, scale: call(x[None], shift[None], scale[None]).square().sum()

    each = [
        torch.func.vmap(torch.func.grad(loss_of_one(call)))(x, shift, scale) for call in (in_a_block, by_definition)
    ]
    torch.testing.assert_close(*each, rtol=1e-5, atol=1e-5)


def test_a_trace_holds_the_definition():
    inputs = given()
    traced = torch.jit.trace(in_a_block, inputs)
    assert "PythonOp" not in str(traced.graph)
    torch.testing.assert_close(gradients(traced, inputs), gradients(by_definition, inputs), rtol=1e-5, atol=1e-5)


def test_other_norms_are_modulated_as_they_are():
    x, shift, scale = given()
    expected = (1 + scale)[:, None] * rms_norm(x) + shift[:, None]
    torch.testing.assert_close(modulate(x, Modulation(shift, scale), rms_norm), expected)

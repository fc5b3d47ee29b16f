import pytest
import torch

import ditlab
from ditlab.core.rng import generator_for
from ditlab.inspection.branches import effective_depth, measure_branches
from ditlab.inspection.interventions import intervened
from tests.diffusion.test_process import shaken


@pytest.fixture
def setting():
    network = shaken(ditlab.DiT(depth=3))
    return network, torch.randn(5, 1, 16, 16, generator=generator_for(0)), torch.linspace(0.1, 0.9, 5)


def test_a_probe_changes_no_bit(setting):
    network, x, t = setting
    plain = network(x, t)
    with ditlab.probe(network):
        probed = network(x, t)
    assert torch.equal(probed, plain)
    assert torch.equal(network(x, t), plain)
    assert not any(m._forward_hooks for m in network.modules())


def test_maps_are_the_attention_that_was_used(setting):
    """Rows sum to 1, and map @ v is what the fused kernel gave."""
    network, x, t = setting
    used = {}
    for i, block in enumerate(network.blocks):
        block.attn.attention.register_forward_hook(lambda m, qkv, out, i=i: used.__setitem__(i, (qkv[2], out)))
    with ditlab.probe(network) as record:
        network(x, t)
    assert sorted(record.attention) == [0, 1, 2]
    for i, attention in record.attention.items():
        assert attention.shape == (5, 4, 16, 16)
        assert attention.dtype == torch.float32
        assert not attention.requires_grad
        torch.testing.assert_close(attention.sum(-1), torch.ones(5, 4, 16))
        torch.testing.assert_close(attention @ used[i][0], used[i][1], rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for(setting):
    network, x, t = setting
    with ditlab.probe(network) as whole:
        network(x, t)
    with ditlab.probe(network, layers=[2], heads=[1, 3], queries=[0, 7, 9], gates=False) as part:
        network(x, t)
    assert list(part.attention) == [2]
    assert part.gates == {}
    torch.testing.assert_close(part.attention[2], whole.attention[2][:, [1, 3]][:, :, [0, 7, 9]])


def test_queries_of_narrowed_attention_are_rows_of_its_map(setting):
    network, x, t = setting
    with intervened(network, "local:1.1"):
        with ditlab.probe(network, layers=[1]) as whole:
            network(x, t)
        for queries in ([3, 4], [3]):
            with ditlab.probe(network, layers=[1], queries=queries) as part:
                network(x, t)
            torch.testing.assert_close(part.attention[1], whole.attention[1][:, :, queries])


def test_gates_are_the_modulation(setting):
    network, x, t = setting
    with ditlab.probe(network) as record:
        network(x, t)
    c = network.conditioner(t, None).vector
    for i, block in enumerate(network.blocks):
        six = block.modulation.linear(torch.nn.functional.silu(c)).chunk(6, dim=1)
        torch.testing.assert_close(record.gates[i]["attn"], six[2])
        torch.testing.assert_close(record.gates[i]["mlp"], six[5])


def test_latest_pass_wins_or_all_are_kept(setting):
    network, x, t = setting
    with ditlab.probe(network) as last, ditlab.probe(network, keep="all") as every:
        network(x, t)
        network(x[:2], t[:2])
    assert last.attention[0].shape[0] == 2
    assert [m.shape[0] for m in every.attention[0]] == [5, 2]
    assert torch.equal(every.attention[0][1], last.attention[0])
    assert [g.shape[0] for g in every.gates[0]["attn"]] == [5, 2]
    assert torch.equal(every.gates[0]["attn"][1], last.gates[0]["attn"])


def test_unet_has_attention_but_no_gates():
    network = shaken(ditlab.UNet())
    with ditlab.probe(network) as record:
        network(torch.randn(2, 1, 16, 16), torch.rand(2))
    assert record.attention[0].shape == (2, 4, 64, 64)
    assert record.gates == {}


def test_what_cannot_be_probed_is_said(setting):
    with pytest.raises(ValueError, match="attention=False"), ditlab.probe(ditlab.MLPDenoiser()):
        pass
    with pytest.raises(ValueError, match="layers 0 to 2"), ditlab.probe(setting[0], layers=[3]):
        pass
    with pytest.raises(ValueError, match=r"torch\.compile"), ditlab.probe(torch.compile(setting[0])):
        pass
    compiled_in_place = ditlab.DiT()
    compiled_in_place.compile()
    with pytest.raises(ValueError, match=r"torch\.compile"), ditlab.probe(compiled_in_place):
        pass


def test_branches_by_hand(setting):
    """mean |gate| and ‖gate ⊙ f‖/‖x‖ of each branch, recomputed from the block's formula."""
    network, x, _ = setting
    times = torch.tensor([0.25, 0.75])
    branches = measure_branches(network, torch.stack([x, x]), times, {})
    for i, time in enumerate(times):
        c = network.conditioner(time.expand(5), None)
        tokens = network.patch_embed(x) + network.positions
        for j, block in enumerate(network.blocks):
            for k, (branch, part) in enumerate(zip(block.modulation(c), (block.attn, block.mlp), strict=True)):
                normed = torch.nn.functional.layer_norm(tokens, (64,), eps=1e-6)
                added = branch.gate[:, None] * part((1 + branch.scale[:, None]) * normed + branch.shift[:, None])
                share = (added.flatten(1).norm(dim=1) / tokens.flatten(1).norm(dim=1)).mean()
                torch.testing.assert_close(branches.contribution[i, j, k], share, rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(branches.gate[i, j, k], branch.gate.abs().mean())
                tokens = tokens + added


def test_effective_depth():
    equal, one, none = torch.full((1, 4, 2), 0.3), torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    one[0, 2, 1] = 0.7
    assert effective_depth(torch.cat([equal, one, none])).tolist() == pytest.approx([8, 1, 0])


def test_branches_start_closed():
    x = torch.randn(1, 2, 1, 16, 16)
    branches = measure_branches(ditlab.DiT(), x, torch.tensor([0.5]), {})
    assert not branches.gate.any()
    assert not branches.contribution.any()

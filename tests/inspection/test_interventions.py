"""A network that is changed by hooks, beside a copy whose very weights or modules are changed."""

import copy

import pytest
import torch
from torch import nn

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.rng import generator_for
from ditlab.inspection.interventions import Edits, intervened, single_edits
from ditlab.inspection.statistics import within
from tests.diffusion.test_process import shaken


def inputs(batch=3, size=16):
    return torch.randn(batch, 1, size, size, generator=generator_for(0)), torch.linspace(0.2, 0.8, batch)


def answers(network, edits, *arguments):
    """What the network says with these edits; without, it says what it said before, and no hook is left."""
    before = network(*arguments)
    with intervened(network, edits):
        changed = network(*arguments)
    assert torch.equal(network(*arguments), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    return changed


@pytest.fixture(params=["dit", "in-context", "rotary", "unet"])
def network(request):
    made = {
        "dit": lambda: ditlab.DiT(depth=3),
        "in-context": lambda: ditlab.DiT(depth=3, conditioning="in-context", num_classes=4),
        "rotary": lambda: ditlab.DiT(depth=3, rotary=True, qk_norm=True, conditioning="film"),
        "unet": lambda: ditlab.UNet(width=8),
    }
    return shaken(made[request.param]())


@pytest.fixture
def dit():
    return shaken(ditlab.DiT(depth=3))


def attentions(network):
    return [m for m in network.modules() if type(m).__name__ == "Attention"]


def columns(layer, head):
    width = layer.out.in_features // layer.heads
    return slice(head * width, (head + 1) * width)


@torch.no_grad()
def test_a_head_that_is_off_is_one_whose_output_nobody_reads(network):
    last = len(attentions(network)) - 1
    beheaded = copy.deepcopy(network)
    for head in (1, 3):
        layer = attentions(beheaded)[last]
        layer.out.weight[:, columns(layer, head)] = 0
    changed = answers(network, f"head:{last}.1 head:{last}.3", *inputs())
    torch.testing.assert_close(changed, beheaded(*inputs()), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(changed, network(*inputs()), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("edit", ["uniform:{}", "uniform:{}.2"])
def test_a_head_whose_queries_are_nothing_looks_everywhere_alike(network, edit):
    last = len(attentions(network)) - 1
    blind = copy.deepcopy(network)
    layer = attentions(blind)[last]
    rows = slice(0, layer.out.in_features) if edit.endswith("}") else columns(layer, 2)
    layer.qkv.weight[rows], layer.qkv.bias[rows] = 0, 0
    changed = answers(network, edit.format(last), *inputs())
    torch.testing.assert_close(changed, blind(*inputs()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, network(*inputs()), atol=1e-4)


@torch.no_grad()
def test_a_block_that_is_off_is_not_there(dit):
    shorter = copy.deepcopy(dit)
    del shorter.blocks[1]
    assert torch.equal(answers(dit, "block:1", *inputs()), shorter(*inputs()))


@torch.no_grad()
@pytest.mark.parametrize(("branch", "first"), [("attn", 0), ("mlp", 3)])
def test_a_gate_that_is_shut_is_one_that_was_never_opened(dit, branch, first):
    shut = copy.deepcopy(dit)
    linear = shut.blocks[2].modulation.linear
    rows = slice((first + 2) * 64, (first + 3) * 64)
    linear.weight[rows], linear.bias[rows] = 0, 0
    changed = answers(dit, f"gate:2.{branch}", *inputs())
    assert torch.equal(changed, shut(*inputs()))
    assert not torch.allclose(changed, dit(*inputs()), atol=1e-4)


class Near(nn.Module):
    """Attention in plain loops over patches: each sees those at most so far away, and every token after the patches."""

    def __init__(self, radius, side):
        super().__init__()
        self.radius, self.side = radius, side

    def forward(self, q, k, v, mask=None):
        mixed = torch.empty_like(q)
        total, patches = q.shape[2], self.side**2
        for i in range(total):
            seen = [j for j in range(total) if i >= patches or j >= patches or self.near(i, j)]
            if mask is not None:
                seen = [j for j in seen if mask[0, 0, 0, j]]
            scores = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, seen]) / q.shape[-1] ** 0.5
            mixed[:, :, i] = torch.einsum("bhj,bhjd->bhd", scores.softmax(-1), v[:, :, seen])
        return mixed

    def near(self, i, j):
        rows, columns = abs(i // self.side - j // self.side), abs(i % self.side - j % self.side)
        return max(rows, columns) <= self.radius


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adaln-zero", "in-context", "text"])
def test_local_attention_sees_the_patches_around_and_all_conditions(kind):
    text = {"text_dim": 8} if kind == "text" else {}
    conditioning = "adaln-zero" if kind == "text" else kind
    network = shaken(ditlab.DiT(depth=2, conditioning=conditioning, num_classes=4, **text))
    cond = {"label": torch.tensor([1, 2, 3])}
    if text:
        cond["text"] = torch.randn(3, 2, 8, generator=generator_for(1))
        cond["text_mask"] = torch.tensor([[True, False]] * 3)
    plain = network(*inputs(), cond)
    assert torch.equal(answers(network, "local:1.3", *inputs(), cond), plain)
    for radius in (0, 1):
        slow = copy.deepcopy(network)
        slow.blocks[1].attn.attention = Near(radius, side=4)
        changed = answers(network, f"local:1.{radius}", *inputs(), cond)
        torch.testing.assert_close(changed, slow(*inputs(), cond), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(changed, plain, atol=1e-4)


@torch.no_grad()
def test_local_and_uniform_together_are_means_of_the_neighbours(dit):
    slow = copy.deepcopy(dit)
    slow.blocks[0].attn.qkv.weight[:64], slow.blocks[0].attn.qkv.bias[:64] = 0, 0
    slow.blocks[0].attn.attention = Near(1, side=4)
    changed = answers(dit, "local:0.1 uniform:0", *inputs())
    torch.testing.assert_close(changed, slow(*inputs()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dit", "unet", "mlp"])
def test_time_that_is_held_is_all_the_network_hears(kind):
    network = shaken({"dit": ditlab.DiT, "unet": ditlab.UNet, "mlp": ditlab.MLPDenoiser}[kind]())
    x, t = inputs()
    x = x[:, 0, 0, :2] if kind == "mlp" else x
    held = network(x, torch.full((3,), 0.35))
    assert torch.equal(answers(network, "time:0.35", x, t), held)
    with intervened(network, Edits(time=0.35)):
        assert torch.equal(network(x, t=t, cond=None), held)


@torch.no_grad()
def test_an_interval_ends_at_data_where_time_is_held():
    network = shaken(ditlab.DiT(interval=True))
    x, t = inputs()
    length = torch.tensor([0.1, 0.3, 1.0])
    expected = network(x, torch.full((3,), 0.3), {"interval": torch.tensor([0.1, 0.3, 0.3])})
    assert torch.equal(answers(network, "time:0.3", x, t, {"interval": length}), expected)
    with intervened(network, "time:0.3"):
        assert torch.equal(network(x, t=t, cond={"interval": length}), expected)


@torch.no_grad()
def test_the_coefficients_of_the_path_keep_their_time(dit):
    process = ditlab.FlowMatching(dit)
    x, _ = inputs()
    t = torch.tensor(0.8)
    with intervened(dit, "time:0.2"):
        estimate = process.estimate(x, t, None)
    velocity = dit(x, torch.full((3,), 0.2))
    torch.testing.assert_close(estimate.x0, x - 0.8 * velocity)


@torch.no_grad()
def test_several_edits_are_all_of_them(dit):
    other = copy.deepcopy(dit)
    del other.blocks[1]
    layer = other.blocks[1].attn
    layer.out.weight[:, columns(layer, 0)] = 0
    x, t = inputs()
    changed = answers(dit, "block:1 head:2.0 time:0.5", x, t)
    torch.testing.assert_close(changed, other(x, torch.full_like(t, 0.5)), rtol=1e-5, atol=1e-6)


def test_nothing_is_left_after_an_error(dit):
    with pytest.raises(RuntimeError, match="in between"), intervened(dit, "head:0.0 block:1 local:2.0 time:0.5"):
        raise RuntimeError("in between")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dit.modules())


def test_words_and_edits_are_the_same():
    text = "head:0.3 head:2.1 uniform:0 uniform:1.0 uniform:1.2 local:2.1 gate:0.mlp gate:1.attn block:3 time:0.25"
    edits = Edits.parse(text)
    assert str(edits) == text
    assert Edits.parse(" ".join(reversed(text.split()))) == edits
    assert str(Edits.parse("time:0 head:1.1  head:1.1")) == "head:1.1 time:0"
    assert Edits.parse("") == Edits()


@pytest.mark.parametrize(
    "text",
    [
        *("head", "head:1", "head:1.2.3", "head:-1.0", "head:1.x", "heads:1.1", "block:", "block:1.1", "block:01"),
        *(
            "gate:1",
            "gate:1.qkv",
            "uniform:1.",
            "local:1",
            "time:2",
            "time:nan",
            "time:1e-3",
            "time:-0.1",
            "head:99999.1",
        ),
        *("time:0.1 time:0.2", "local:1.1 local:1.2", "head:1.1,head:1.2", "head:1.1\x00", "block:٣", "block:1٣"),
    ],
)
def test_nonsense_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"use head:LAYER\.HEAD|give time:T") as refusal:
        Edits.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("edits", "word"),
    [
        ("head:3.0", "attention layer 3 is not there"),
        ("head:1.4", "layer 1 has heads 0 to 3"),
        ("uniform:9", "0 to 2"),
        ("local:5.1", "0 to 2"),
        ("block:3", "transformer block 3"),
        ("gate:7.mlp", "transformer block 7"),
    ],
)
def test_what_is_not_there_is_refused(dit, edits, word):
    with pytest.raises(InputError, match=word), intervened(dit, edits):
        pass


def test_what_a_kind_of_network_lacks_is_refused():
    for network, edits, word in (
        (ditlab.DiT(depth=2, conditioning="film"), "gate:1.mlp", "no gates; use block"),
        (ditlab.UNet(width=8), "block:0", "UNet has no transformer block"),
        (ditlab.UNet(width=8), "local:0.1", "use uniform:LAYER"),
        (ditlab.MLPDenoiser(), "head:0.0", "MLPDenoiser has no attention layer"),
    ):
        with pytest.raises(InputError, match=word), intervened(network, edits):
            pass
    with pytest.raises(ValueError, match="compiled"), intervened(torch.compile(ditlab.MLPDenoiser()), "time:0.5"):
        pass


def test_single_edits_are_all_that_can_be_switched_off():
    dit, unet = ditlab.DiT(depth=2, heads=2), ditlab.UNet(width=8)
    assert single_edits(dit)[:4] == ["head:0.0", "head:0.1", "head:1.0", "head:1.1"]
    assert single_edits(dit)[4:] == ["gate:0.attn", "gate:0.mlp", "block:0", "gate:1.attn", "gate:1.mlp", "block:1"]
    assert single_edits(unet) == [f"head:0.{head}" for head in range(4)]
    assert single_edits(ditlab.MLPDenoiser()) == []


def test_within_counts_rows_and_columns():
    near = within((2, 3), 1)
    assert near[0].tolist() == [True, True, False, True, True, False]
    assert near.sum() == 2 * (4 + 6 + 4)

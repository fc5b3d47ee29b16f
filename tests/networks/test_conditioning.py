"""Laws of every kind of conditioning, ditlab's own and one registered here; and of the conditions they carry."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ditlab
from ditlab.core.registry import CONDITIONINGS
from ditlab.core.rng import generator_for
from ditlab.inspection.branches import measure_branches, modulated_blocks
from ditlab.networks.costs import activation_bytes, multiply_accumulates, multiply_accumulates_by_module
from ditlab.networks.embeddings import RotaryPositions
from ditlab.networks.layers import MLP, SwiGLU
from tests.diffusion.test_process import shaken


@ditlab.register_conditioning("scale-and-gate")
class ScaleAndGate(ditlab.Conditioning):
    """A kind from outside: one scale and one gate for both branches."""

    gated = True

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.linear = torch.nn.Linear(dim, 2 * dim)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, conditions):
        scale, gate = self.linear(conditions.vector).chunk(2, dim=1)
        both = ditlab.Modulation(torch.zeros_like(scale), scale, gate)
        return ditlab.BlockModulation(both, both)


OWN = [name for name, kind in CONDITIONINGS.items() if kind.__module__.startswith("ditlab.")]
KINDS = pytest.mark.parametrize("kind", [*OWN, "scale-and-gate"])
MODERN = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "rotary": True}
X, T = torch.randn(4, 1, 16, 16, generator=generator_for(0)), torch.tensor([0.1, 0.4, 0.7, 0.9])
TEXT = torch.randn(4, 3, 5, generator=generator_for(1))
MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()


def small(kind, **options):
    torch.manual_seed(0)
    return ditlab.DiT(dim=16, depth=2, heads=2, conditioning=kind, **options)


def told(kind, **options):
    """A network that takes every condition, after some training, and a batch of conditions."""
    network = shaken(small(kind, num_classes=3, scalars=("radius",), text_dim=5, interval=True, **options))
    label, radius = torch.tensor([0, 1, 2, 3]), torch.tensor([0.2, 0.5, torch.nan, 0.9])
    return network, {"label": label, "radius": radius, "text": TEXT, "text_mask": MASK, "interval": T / 2}


def test_the_kinds_of_the_paper_are_there():
    assert OWN == ["adaln-zero", "adaln", "film", "in-context", "cross-attention"]
    with pytest.raises(ValueError, match="ditlab's own"):
        ditlab.register_conditioning("film")(ScaleAndGate)
    assert ditlab.register_conditioning("scale-and-gate")(ScaleAndGate) is ScaleAndGate
    with pytest.raises(ValueError, match=r"unknown conditioning 'flim'.*film.*scale-and-gate"):
        ditlab.DiT(conditioning="flim")


@pytest.mark.parametrize("options", [{}, MODERN], ids=["plain", "modern"])
@KINDS
def test_laws_of_a_network(kind, options):
    """Zero at first; then time and label matter, every parameter learns, and bf16 is the same but for rounding."""
    network = small(kind, num_classes=3, **options)
    label = {"label": torch.tensor([0, 1, 2, 3])}
    assert torch.equal(network(X, T, label), torch.zeros_like(X))
    shaken(network)
    y = network(X, T, label)
    assert (network(X, T / 2, label) - y).abs().amax((1, 2, 3)).min() > 1e-4
    assert (network(X, T, {"label": torch.tensor([1, 2, 0, 0])}) - y).abs().amax((1, 2, 3)).min() > 1e-5
    y.square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(X, T, label)
    assert (rough - y).norm() / y.norm() < 0.03


@KINDS
def test_what_is_not_known_is_null(kind):
    """Absent, NaN and the null label are one value, whatever ``null_condition`` is asked for."""
    network, cond = told(kind)
    nothing = network(X, T)
    null = network.null_condition(cond)
    assert null.keys() == cond.keys()
    assert all(null[name].shape == cond[name].shape and null[name].dtype == cond[name].dtype for name in cond)
    assert null["interval"] is cond["interval"]
    assert null["text_mask"] is cond["text_mask"]
    torch.testing.assert_close(network(X, T, null | {"interval": torch.zeros(4)}), nothing, atol=1e-6, rtol=0)
    torch.testing.assert_close(network(X, T, {"text": TEXT * torch.nan}), nothing, atol=1e-6, rtol=0)
    torch.testing.assert_close(network(X, T, {"text": TEXT[:, :0]}), nothing, atol=1e-6, rtol=0)
    for name in ("label", "radius", "interval"):
        changed = cond | {name: cond[name].flip(0)}
        assert (network(X, T, changed) - network(X, T, cond)).abs().amax() > 1e-6, name
    changed = cond | {"text": TEXT.flip(0)}
    moved = (network(X, T, changed) - network(X, T, cond)).abs().amax((1, 2, 3))
    assert (moved[:3] > 1e-6).all()
    assert moved[3] < 1e-6  # it reads none of its tokens


@KINDS
def test_nan_leaks_into_nothing(kind):
    network, cond = told(kind)
    cond = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in network.null_condition(cond).items()}
    y = network(X, T, cond)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert all(v.grad is None or v.grad.isfinite().all() for v in cond.values())


@KINDS
def test_text_of_any_length_with_gaps(kind):
    """What is masked is not there: any values, in any order, in any number."""
    network, cond = told(kind)
    y = network(X, T, cond)
    padding = torch.full((4, 6, 5), torch.inf)
    longer = {"text": torch.cat([TEXT, padding], 1), "text_mask": F.pad(MASK, (0, 6))}
    torch.testing.assert_close(network(X, T, cond | longer), y, atol=1e-6, rtol=0)
    as_nan = {"text": TEXT.masked_fill(~MASK[..., None], torch.nan), "text_mask": torch.ones_like(MASK)}
    torch.testing.assert_close(network(X, T, cond | as_nan), y, atol=1e-6, rtol=0)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        network(X, T, cond | {"text": TEXT[:, order], "text_mask": MASK[:, order]}), y, atol=1e-6, rtol=0
    )
    without = {name: value for name, value in cond.items() if name != "text_mask"}
    assert (network(X, T, without) - y).abs().amax() > 1e-6


def test_conditions_of_the_wrong_shape_are_named(unchecked):
    network, _ = told("adaln-zero")
    for cond, message in (
        ({"radius": torch.ones(4, dtype=torch.int64)}, "'radius' must be one float for each of the 4"),
        ({"radius": torch.ones(3)}, "'radius' must be one float"),
        ({"text": torch.ones(4, 3, 6)}, r"shape \(B, L, 5\)"),
        ({"text": torch.ones(3, 3, 5)}, "each of the 4 samples"),
        ({"text": TEXT, "text_mask": torch.ones(4, 3)}, "True or False"),
        ({"text": TEXT, "text_mask": torch.ones(4, 2).bool()}, "same B and L"),
        ({"text_mask": MASK}, "goes with a 'text'"),
        ({"prompt": TEXT}, "takes 'label', 'interval', 'radius', 'text', 'text_mask'"),
    ):
        with pytest.raises(ValueError, match=message):
            network(X, T, cond)


@KINDS
def test_a_process_drops_and_guides_by_any_condition(kind):
    network, cond = told(kind)
    process = ditlab.FlowMatching(network, condition_dropout=0.5)
    assert process.loss(X, cond, generator=generator_for(2)).isfinite()
    weak, strong = (process.denoiser(c)(X, torch.tensor(0.5)).x0 for c in (network.null_condition(cond), cond))
    guided = process.denoiser(cond, guidance=3.0)(X, torch.tensor(0.5)).x0
    torch.testing.assert_close(guided, torch.lerp(weak, strong, 3.0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["plain", "modern"])
@KINDS
def test_the_probe_and_the_network_agree_on_the_tokens(kind, options):
    """Patches come first, maps times v are what was computed, and masked tokens get nothing."""
    network, cond = told(kind, **options)
    used = {}
    for name, module in network.named_modules():
        if name.endswith(".attention"):
            module.register_forward_hook(lambda m, qkv, out, name=name: used.__setitem__(name, (qkv[2], out)))
    plain = network(X, T, cond)
    with ditlab.probe(network) as record:
        assert torch.equal(network(X, T, cond=cond), plain)
    told_of = ("time", "label", "interval", "radius")
    text = ("no text", "text 0", "text 1", "text 2")
    assert list(record.patches) == list(range(16)) == list(network.patches)
    assert record.tokens == {"in-context": told_of + text, "cross-attention": ()}.get(kind, text)
    assert record.cross_tokens == ((told_of + text) if kind == "cross-attention" else ())
    assert bool(record.cross) == (kind == "cross-attention")
    assert bool(record.gates) == (kind in ("adaln-zero", "scale-and-gate"))
    for layer in range(2):
        own, cross = record.attention[layer], record.cross.get(layer)
        assert own.shape == (4, 2, 16 + len(record.tokens), 16 + len(record.tokens))
        v, out = used[f"blocks.{layer}.attn.attention"]
        torch.testing.assert_close(own @ v, out, rtol=1e-4, atol=1e-5)
        keys = own
        if cross is not None:
            assert cross.shape == (4, 2, 16, 8)
            v, out = used[f"blocks.{layer}.modulation.cross.attention"]
            torch.testing.assert_close(cross @ v, out, rtol=1e-4, atol=1e-5)
            keys = cross
        torch.testing.assert_close(keys.sum(-1), torch.ones(keys.shape[:3]))
        read = keys[..., -3:].amax((1, 2)) > 0
        assert torch.equal(read, MASK)


def test_the_patches_of_the_sequence_are_those_of_the_image():
    """In-context: changing patch i changes token i of the first block's input, and no other."""
    network, cond = told("in-context")
    seen = []
    handle = network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(X, T, cond)
    for patch in network.patches:
        row, column = divmod(patch, 4)
        changed = X.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        network(changed, T, cond)
        moved = (seen.pop() - seen[0]).abs().amax((0, 2))
        assert moved.nonzero().flatten().tolist() == [patch]
    handle.remove()


@pytest.mark.parametrize("kind", ["adaln-zero", "scale-and-gate"])
def test_gated_blocks_begin_as_the_identity(kind):
    network = small(kind)
    tokens, c = torch.randn(3, 16, 16, generator=generator_for(3)), torch.randn(3, 16, generator=generator_for(4))
    for block in network.blocks:
        assert torch.equal(block(tokens, ditlab.Embedded(c, (c,), None, None)), tokens)
    branches = measure_branches(shaken(network), X[None], T[:1], {})
    assert branches.gate.min() > 0


@pytest.mark.parametrize("kind", ["adaln", "film", "in-context", "cross-attention"])
def test_kinds_without_gates_say_so(kind):
    network = small(kind)
    assert modulated_blocks(network) == []
    with pytest.raises(ValueError, match="no gates"):
        measure_branches(network, X[None], T[:1], {})


def test_the_modulations_by_hand():
    """Of c: 4·D outputs for adaLN, 2·D that serve both branches for FiLM; of nothing for plain blocks."""
    c = torch.randn(3, 16, generator=generator_for(5))
    conditions = ditlab.Embedded(c, (c,), None, None)
    adaln, film, plain = (shaken(small(kind)).blocks[0].modulation for kind in ("adaln", "film", "in-context"))
    four = (F.silu(c) @ adaln.linear.weight.T + adaln.linear.bias).chunk(4, dim=1)
    (a_shift, a_scale, a_gate), (m_shift, m_scale, m_gate) = adaln(conditions)
    torch.testing.assert_close([a_shift, a_scale, m_shift, m_scale], list(four))
    assert (a_gate, m_gate) == (None, None)
    assert film.linear.out_features == 32
    both = film(conditions)
    assert torch.equal(both.attn.scale, both.mlp.scale)
    assert torch.equal(both.attn.shift, both.mlp.shift)
    assert plain(conditions).attn.scale.shape == (1, 16)


@KINDS
def test_costs_are_counted(kind):
    """Parts add up to the whole, and matrix products are those of the layers' sizes."""
    network = ditlab.DiT(conditioning=kind)
    counts = multiply_accumulates_by_module(network, (1, 16, 16))
    assert counts[""] == multiply_accumulates(network, (1, 16, 16))
    tokens = 17 if kind == "in-context" else 16
    assert counts["blocks.0.mlp"] == tokens * 64 * 128 * 2
    assert counts["blocks.0.attn"] == tokens * 64 * 64 * 4 + 2 * tokens * tokens * 64
    if kind == "cross-attention":
        assert counts["blocks.0.modulation.cross"] == 2 * 64 * 64 * (16 + 1) + 2 * 16 * 64
    more, less = (activation_bytes(network, (1, 16, 16), batch).kept for batch in (16, 8))
    assert more / less == pytest.approx(2, rel=0.01)


def test_a_swiglu_has_as_many_parameters():
    x = torch.randn(2, 3, 48, generator=generator_for(6))
    ours = SwiGLU(48, 192)
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(
        sum(p.numel() for p in MLP(48, 192).parameters()), rel=0.02
    )
    gate, value = ours.gate_and_value(x).split(128, dim=-1)
    torch.testing.assert_close(ours(x), ours.out(gate * torch.sigmoid(gate) * value))


def test_rotary_products_depend_on_differences_alone():
    """q at (r, c) times k at (r′, c′) is the same wherever both are moved, and lengths stay."""
    rotary = RotaryPositions((5, 7), 16)
    q, k = torch.randn(2, 16, generator=generator_for(7))
    turned_q, turned_k = (rotary(v.expand(1, 1, 35, 16))[0, 0].view(5, 7, 16) for v in (q, k))
    products = torch.einsum("rcd,sed->rcse", turned_q, turned_k)
    torch.testing.assert_close(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(5, 7))
    assert (products[0, 0, 0, 1] - products[0, 0, 1, 0]).abs() > 1e-3  # rows and columns are told apart
    rates = 10000.0 ** (-torch.arange(4) / 4)
    by_hand = torch.complex(*q.chunk(2)) * torch.exp(1j * torch.cat([6 * rates, 2 * rates]))  # column 6, row 2
    by_hand = torch.cat([by_hand.real, by_hand.imag])
    torch.testing.assert_close(turned_q[2, 6], by_hand, rtol=1e-4, atol=1e-5)


@KINDS
def test_rotary_positions_are_all_that_tells_patches_apart(kind):
    """Without a table, shuffled patches with their shuffled turns give the shuffled output; with other turns not."""
    network = shaken(small(kind, num_classes=3, **MODERN))
    order = torch.randperm(16, generator=generator_for(8))
    conditions = network.conditioner(T, None)
    tokens = torch.randn(4, 16 + len(network.token_names(None)), 16, generator=generator_for(9))
    everything = torch.cat([order, torch.arange(16, tokens.shape[1])])
    block = network.blocks[0]
    straight, unturned = block(tokens, conditions), block(tokens[:, everything], conditions)
    rotary = block.attn.rotary
    rotary.cos, rotary.sin = rotary.cos[order], rotary.sin[order]
    torch.testing.assert_close(block(tokens[:, everything], conditions), straight[:, everything], rtol=1e-4, atol=1e-5)
    assert (unturned - straight[:, everything]).abs().max() > 1e-5


def test_qk_norm_bounds_the_products():
    """However large the weights: the products of the attention stay below the scales' square times √d."""
    network = small("adaln-zero", qk_norm=True)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight *= 1000
    seen = []
    network.blocks[0].attn.attention.register_forward_hook(lambda _, qkv, __: seen.append(qkv))
    network(X, T)
    q, k, _ = seen[0]
    assert (q @ k.transpose(-1, -2)).abs().max() / 8**0.5 <= 8**0.5 * 1.001
    torch.testing.assert_close(q.square().mean(-1), torch.ones(4, 2, 16), rtol=1e-3, atol=0)


COMPILED = """
import torch, ditlab
from ditlab.core.registry import CONDITIONINGS
torch.manual_seed(0)
x, t, text = torch.randn(2, 1, 16, 16), torch.rand(2), torch.randn(2, 3, 5)
cond = {"label": torch.tensor([0, 3]), "radius": torch.tensor([0.5, torch.nan]), "text": text, "interval": t / 2}
for kind in CONDITIONINGS:
    network = ditlab.DiT(
        dim=16, depth=1, heads=2, conditioning=kind, num_classes=3, scalars=("radius",), text_dim=5, interval=True,
        qk_norm=True, norm="rms", mlp="swiglu", rotary=True,
    )
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    difference = torch.compile(network, fullgraph=True)(x, t, cond) - network(x, t, cond)
    assert difference.abs().max() < 1e-5, kind
"""


@pytest.mark.slow
def test_every_kind_compiles_into_one_graph():
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=600)


def test_the_example_of_the_page_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(CONDITIONINGS.parts, "scale-and-gate")
    page = (Path(__file__).parents[2] / "docs" / "conditioning.md").read_text()
    script = tmp_path / "scale_and_gate.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    words = ["train", "circles", "--network.conditioning", "scale-and-gate", "--dry-run", "--json"]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 185_936  # as many as with FiLM

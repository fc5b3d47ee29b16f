"""What every network of the protocol must do, and the lesson's small claims about the DiT."""

from functools import partial

import pytest
import torch
from einops import rearrange

import ditlab
from ditlab.core.rng import generator_for
from ditlab.networks.costs import activation_bytes, multiply_accumulates, on_meta, parameter_count
from ditlab.networks.dit import PatchTransformer
from ditlab.networks.embeddings import sincos_positions
from ditlab.networks.presets import PRESETS, Published
from tests.diffusion.test_process import shaken

NETWORKS = {
    "dit": (lambda **k: ditlab.DiT(**k), (1, 16, 16)),
    "dit-rectangle": (lambda **k: ditlab.DiT(image_size=(8, 12), channels=3, positions="sincos", **k), (3, 8, 12)),
    "unet": (lambda **k: ditlab.UNet(**k), (1, 16, 16)),
    "unet-rectangle": (lambda **k: ditlab.UNet(image_size=(8, 12), channels=3, **k), (3, 8, 12)),
    "mlp": (lambda **k: ditlab.MLPDenoiser(**k), (2,)),
    "mlp-images": (lambda **k: ditlab.MLPDenoiser(shape=(1, 8, 8), **k), (1, 8, 8)),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def build(name, **options):
    make, shape = NETWORKS[name]
    return make(**options), torch.randn(5, *shape, generator=generator_for(0)), torch.linspace(0.1, 0.9, 5)


@EVERY
def test_output_is_zero_at_initialisation_and_shaped_like_the_input(name):
    network, x, t = build(name)
    assert torch.equal(network(x, t), torch.zeros_like(x))


@EVERY
def test_output_changes_with_time_and_label(name):
    network, x, t = build(name, num_classes=4)
    shaken(network)
    zero, one = (network(x, t, {"label": torch.full((5,), k)}) for k in (0, 1))
    assert (zero - one).abs().max() > 1e-4
    assert (network(x, t) - network(x, t / 2)).abs().max() > 1e-4


@EVERY
def test_every_parameter_gets_a_gradient(name):
    network, x, t = build(name, num_classes=4)
    shaken(network)
    network(x, t, {"label": torch.arange(5) % 4}).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


@EVERY
def test_unlabelled_network_refuses_a_label(name):
    network, x, t = build(name)
    with pytest.raises(ValueError, match="num_classes"):
        network(x, t, {"label": torch.zeros(5, dtype=torch.int64)})


@EVERY
def test_labels_must_be_whole_numbers_one_each(name):
    network, x, t = build(name, num_classes=4)
    for label in (torch.zeros(5), torch.zeros(4, dtype=torch.int64), torch.zeros(5, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="whole numbers"):
            network(x, t, {"label": label})
    with pytest.raises(ValueError, match="it takes 'label'"):
        network(x, t, {"lable": torch.zeros(5, dtype=torch.int64)})


@EVERY
def test_wrong_input_shape_is_named(name):
    network, x, t = build(name)
    with pytest.raises(ValueError, match="shape"):
        network(x[..., :-1], t)


def test_sizes_of_the_lesson():
    assert parameter_count(ditlab.DiT()) == 252_496
    assert parameter_count(ditlab.MLPDenoiser()) == parameter_count(ditlab.MLPVelocity()) == 25_346
    assert abs(parameter_count(ditlab.UNet()) / 252_496 - 1) < 0.02


def test_unet_sized_to_match():
    network = ditlab.UNet.sized(1_000_000, image_size=(8, 12), channels=3)
    assert abs(parameter_count(network) / 1_000_000 - 1) < 0.2


# parameters, trainable ones (Peebles & Xie 2023, with the position table), and the paper's "Gflops"
PUBLISHED = {
    "DiT-S/8": (33_148_160, 33_142_016, 0.36),
    "DiT-S/4": (32_945_024, 32_920_448, 1.41),
    "DiT-S/2": (32_963_360, 32_865_056, 6.06),
    "DiT-B/8": (130_881_536, 130_869_248, 1.42),
    "DiT-B/4": (130_475_648, 130_426_496, 5.56),
    "DiT-B/2": (130_512_416, 130_315_808, 23.01),
    "DiT-L/8": (458_594_816, 458_578_432, 5.01),
    "DiT-L/4": (458_053_760, 457_988_224, 19.70),
    "DiT-L/2": (458_102_816, 457_840_672, 80.71),
    "DiT-XL/8": (675_683_072, 675_664_640, 7.39),
    "DiT-XL/4": (675_074_432, 675_000_704, 29.05),
    "DiT-XL/2": (675_129_632, 674_834_720, 118.64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    total, trainable, cost = PUBLISHED[name]
    network = on_meta(lambda: ditlab.DiT.preset(name, num_classes=1000))
    assert parameter_count(network) == total
    assert parameter_count(network, trainable_only=True) == trainable
    assert round(multiply_accumulates(network, (4, 32, 32)) / 1e9, 2) == pytest.approx(cost, abs=0.0101)


def test_xl_at_512_pixels():
    network = on_meta(lambda: ditlab.DiT.preset("DiT-XL/2", num_classes=1000, image_size=64))
    assert round(multiply_accumulates(network, (4, 64, 64)) / 1e9, 1) == pytest.approx(524.6, abs=0.101)


def test_unknown_preset_lists_the_known():
    assert set(PRESETS) == set(PUBLISHED)
    with pytest.raises(ValueError, match="DiT-XL/2"):
        ditlab.DiT.preset("DiT-XXL/2")


def test_counting_leaves_the_network_as_it_is():
    network = ditlab.DiT()
    assert multiply_accumulates(network, (1, 16, 16)) == 2_393_088
    assert next(network.parameters()).device.type == "cpu"
    assert activation_bytes(network, (1, 16, 16), 64).kept * 2 == activation_bytes(network, (1, 16, 16), 128).kept


def test_patch_embedding_is_reshape_and_linear():
    """One Conv2d with kernel = stride is: cut into patches, flatten, one Linear."""
    embed = ditlab.PatchEmbed((8, 12), 4, 3, 32)
    x = torch.randn(5, 3, 8, 12, generator=generator_for(1))
    patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=4, q=4)
    by_hand = torch.nn.functional.linear(patches, embed.projection.weight.flatten(1), embed.projection.bias)
    assert embed.grid == (2, 3)
    torch.testing.assert_close(embed(x), by_hand)


def test_unpatchify_undoes_patches():
    network = ditlab.DiT(image_size=(8, 12), channels=3, patch_size=2)
    x = torch.randn(5, 3, 8, 12, generator=generator_for(2))
    tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
    assert torch.equal(network.unpatchify(tokens), x)


def test_each_block_is_the_identity_at_initialisation():
    network = ditlab.DiT()
    tokens, c = torch.randn(3, 16, 64, generator=generator_for(3)), torch.randn(3, 64, generator=generator_for(4))
    for block in network.blocks:
        assert torch.equal(block(tokens, ditlab.Embedded(c, (c,), None, None)), tokens)


def test_a_change_in_one_patch_reaches_all_tokens_in_one_layer():
    """And every entry of every attention map is above zero."""
    network = shaken(ditlab.DiT(depth=3))
    x, t = torch.randn(2, 1, 16, 16, generator=generator_for(5)), torch.tensor([0.2, 0.8])
    with ditlab.probe(network) as record:
        network(x, t)
    assert all((m > 0).all() for m in record.attention.values())
    block, c = network.blocks[0], torch.randn(1, 64, generator=generator_for(6))
    conditions = ditlab.Embedded(c, (c,), None, None)
    tokens = torch.randn(1, 16, 64, generator=generator_for(7))
    for patch in range(16):
        changed = tokens.clone()
        changed[:, patch] += torch.randn(64, generator=generator_for(8, patch))
        moved = (block(changed, conditions) - block(tokens, conditions)).abs().amax(-1)
        assert (moved > 0).all()


def test_sincos_positions_equal_diffusers():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    theirs = get_2d_sincos_pos_embed(64, 5, base_size=5).float()
    torch.testing.assert_close(sincos_positions((5, 5), 64)[0], theirs, rtol=1e-5, atol=1e-6)
    rectangle = sincos_positions((3, 5), 64)[0]  # the first three rows of the square
    torch.testing.assert_close(rectangle, theirs[:15], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "patch size that divides 16"),
        ({"image_size": (8, 12), "patch_size": 8}, "divides 4"),
        ({"heads": 3}, "heads=3"),
        ({"positions": "none"}, "learned"),
        ({"conditioning": "film2"}, "adaln-zero"),
        ({"dim": 6, "heads": 2, "positions": "sincos"}, "divisible by 4"),
        ({"num_classes": 0}, "at least 1"),
        ({"depth": -1}, "depth=-1"),
        ({"dim": 0}, "dim=0"),
        ({"mlp_ratio": -1.0}, "mlp_hidden"),
        ({"image_size": 0}, "height=0"),
        ({"published": Published(time_features=3)}, "even"),
        ({"published": Published(embedders="none")}, "per-block"),
        ({"published": Published(embedders="per-block"), "conditioning": "in-context"}, "embedders='shared'"),
        ({"norm": "batch"}, "'layer' or 'rms'"),
        ({"mlp": "relu"}, "swiglu"),
        ({"rotary": True, "dim": 24, "heads": 4}, "6 wide"),
        ({"text_dim": 0}, "text_dim=0"),
        ({"scalars": ("label",)}, "'label' cannot name"),
        ({"scalars": ("a", "a")}, "'a' cannot name"),
    ],
)
def test_wrong_sizes_name_the_fix(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        ditlab.DiT(**options)


@EVERY
def test_times_and_labels_out_of_range_are_named(unchecked, name):
    network, x, t = build(name, num_classes=4)
    for wrong in (t[0], t[:3], torch.arange(5)):
        with pytest.raises(ValueError, match="one float time for each of the 5"):
            network(x, wrong)
    for label in (5, -1):
        with pytest.raises(ValueError, match="0 to 4"):
            network(x, t, {"label": torch.full((5,), label)})


@pytest.mark.parametrize("options", [{"width": 0}, {"multipliers": ()}, {"multipliers": (1, 0)}])
def test_unet_sizes_must_be_above_zero(options):
    with pytest.raises(ValueError, match="above 0"):
        ditlab.UNet(**options)


def test_unet_wants_halves():
    with pytest.raises(ValueError, match="fewer multipliers"):
        ditlab.UNet(image_size=7)


def test_time_features_of_both_conventions():
    """10000^(−i/(half − shift)): with a shift of 1 the slowest turns 10,000 times as slowly as the fastest."""
    for shift in (0, 1):
        rates = ditlab.SinEmb(64, shift).rates.double()
        expected = 10000.0 ** (-torch.arange(32, dtype=torch.float64) / (32 - shift))
        torch.testing.assert_close(rates, expected, rtol=1e-5, atol=0)
    network = ditlab.DiT(published=Published(time_frequency_shift=1))
    assert torch.equal(network.conditioner.time.sinusoid.rates, ditlab.SinEmb(64, 1).rates)
    with pytest.raises(ValueError, match="at least 4"):
        ditlab.SinEmb(2, 1)


def test_embedders_of_their_own_that_are_alike_are_a_shared_one():
    own = shaken(ditlab.DiT(num_classes=4, published=Published(embedders="per-block")))
    shared = ditlab.DiT(num_classes=4)
    assert len(own.block_conditioners) == 3
    assert not shared.block_conditioners
    for other in own.block_conditioners:
        other.load_state_dict(own.conditioner.state_dict())
    shared.load_state_dict({k: v for k, v in own.state_dict().items() if not k.startswith("block_conditioners")})
    x, t, label = torch.randn(3, 1, 16, 16), torch.rand(3), {"label": torch.tensor([0, 3, 4])}
    assert torch.equal(own(x, t, label), shared(x, t, label))
    before = own(x, t, label)
    with torch.no_grad():
        own.block_conditioners[2].labels.table.weight[3] += 1
    changed = (own(x, t, label) - before).abs().amax((1, 2, 3))
    assert (changed > 1e-5).tolist() == [False, True, False]


def test_without_a_null_label_every_sample_needs_one():
    network = ditlab.DiT(num_classes=4, published=Published(null_label=False))
    assert network.conditioner.labels.table.num_embeddings == 4
    x, t = torch.randn(3, 1, 16, 16), torch.rand(3)
    assert network(x, t, {"label": torch.tensor([0, 1, 3])}).shape == x.shape
    for call in (lambda: network(x, t), lambda: network.null_condition({"label": torch.zeros(3, dtype=torch.int64)})):
        with pytest.raises(ditlab.InputError, match=r"null_label=False.*condition_dropout 0"):
            call()
    with pytest.raises(ValueError, match="0 to 3, not"):
        network(x, t, {"label": torch.tensor([0, 1, 4])})
    assert multiply_accumulates(network, (1, 16, 16)) == multiply_accumulates(ditlab.DiT(num_classes=4), (1, 16, 16))
    with pytest.raises(ditlab.InputError, match="without guidance"):
        ditlab.FlowMatching(network).sample(3, (1, 16, 16), {"label": torch.arange(3)}, guidance=2.0, steps=1)


@pytest.mark.parametrize("name", ["dit", "dit-rectangle", "mlp", "mlp-images"])
def test_an_interval_is_a_second_time(unchecked, name):
    network, x, t = build(name, num_classes=4, interval=True)
    shaken(network)
    label = {"label": torch.arange(5) % 4}
    absent, zero = network(x, t, label), network(x, t, {"interval": torch.zeros(5), **label})
    assert torch.equal(absent, zero)
    assert (network(x, t, {"interval": t / 2, **label}) - zero).abs().amax() > 1e-4
    null = network.null_condition({"interval": t, **label})
    assert null["label"].tolist() == [4] * 5
    assert null["interval"] is t
    for wrong in (torch.zeros(5, dtype=torch.int64), torch.zeros(4), torch.zeros(5, 1)):
        with pytest.raises(ValueError, match="'interval' must be one float for each of the 5"):
            network(x, t, {"interval": wrong})
    with pytest.raises(ValueError, match=r"it takes 'label'$"):
        build(name, num_classes=4)[0](x, t, {"interval": t})
    with pytest.raises(ValueError, match="'interval'; build it with num_classes"):
        build(name, interval=True)[0](x, t, label)


def test_an_interval_changes_nothing_at_first():
    """A network that takes an interval, with the weights of one that does not, gives the same."""
    plain, second = shaken(ditlab.DiT()), ditlab.DiT(interval=True)
    second.load_state_dict(plain.state_dict(), strict=False)
    x, t = torch.randn(3, 1, 16, 16), torch.rand(3)
    assert torch.equal(plain(x, t), second(x, t, {"interval": t}))


def test_a_transformer_of_parts_that_were_handed_in():
    """What the parts do is what the whole does: the same weights give the same output, whoever made the parts."""
    dit = shaken(ditlab.DiT(num_classes=4, depth=2))
    parts = PatchTransformer(dit.patch_embed, dit.positions, dit.conditioner, list(dit.blocks), dit.final)
    x, t, label = torch.randn(3, 1, 16, 16), torch.rand(3), {"label": torch.tensor([0, 3, 4])}
    assert list(parts.state_dict()) == list(dit.state_dict())
    assert torch.equal(parts(x, t, label), dit(x, t, label))
    assert (parts.image_size, parts.out_channels, parts.num_classes) == ((16, 16), 1, 4)
    parts.blocks = parts.blocks[:1]
    assert not torch.equal(parts(x, t, label), dit(x, t, label))


@pytest.mark.parametrize(
    "make", [partial(ditlab.MLPDenoiser, (2,)), partial(ditlab.UNet, 4, width=4, heads=2)], ids=["mlp", "unet"]
)
def test_scalars_reach_every_network_and_can_be_taken_away(make):
    torch.manual_seed(0)
    network = make(num_classes=3, scalars=("age",))
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    shape = (2,) if isinstance(network, ditlab.MLPDenoiser) else (1, 4, 4)
    x, t, label = torch.randn(2, *shape), torch.rand(2), torch.tensor([0, 2])
    young, old = (network(x, t, {"label": label, "age": torch.full((2,), age)}) for age in (-1.0, 1.0))
    assert not torch.allclose(young, old)
    null = network.null_condition({"label": label, "age": torch.ones(2)})
    torch.testing.assert_close(network(x, t, null), network(x, t, None))
    torch.testing.assert_close(network(x, t, {"label": label}), network(x, t, {"label": label, "age": null["age"]}))

"""What a dry run says, against formulas of its own and against what torch really keeps."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ditlab.cli.main import main
from ditlab.config import Config, DDPMConfig, DiTConfig, ExternalData, FlowConfig, MeanFlowConfig
from ditlab.networks.costs import activation_bytes
from ditlab.networks.dit import DiT
from ditlab.networks.presets import Published
from ditlab.recipes import circles, digits, imagenet256
from ditlab.runs.build import build_dataset, build_network, build_process
from ditlab.training.estimate import estimate
from ditlab.training.optim import Optimizers, learning_rate_factor

XL, TRAINABLE = 675_129_632, 674_834_720  # parameters of DiT-XL/2: all, and those that are trained
GIGAFLOPS = 118.64  # multiply-accumulates of a forward pass, as published


@pytest.fixture(scope="module")
def xl():
    return estimate(imagenet256(), devices=8, days=14.0, store_bytes=41_981_280_256)


def test_the_published_numbers(xl):
    assert xl["parameters"] == XL
    assert xl["multiply_accumulates"] / 1e9 == pytest.approx(GIGAFLOPS, abs=0.02)
    assert (xl["steps"], xl["samples"]) == (7_000_000, 1_792_000_000)


def test_time(xl):
    """Seven million steps of 256 in fourteen days, six operations for each of the forward pass's products."""
    time = xl["time"]
    assert time["images_per_s"] == pytest.approx(7e6 * 256 / (14 * 24 * 3600))
    assert time["images_per_s_per_device"] == pytest.approx(time["images_per_s"] / 8)
    assert time["training_flops"] == pytest.approx(0.712e12 * 7e6 * 256, rel=1e-3)
    for name, peak in (("H100", 989.4e12), ("A100", 312e12)):
        used = time["images_per_s_per_device"] * 0.712e12 / peak
        assert time["share_of_peak"][name] == pytest.approx(used, rel=1e-3)


def test_memory_of_weights_and_optimizer(xl):
    """Four bytes for each weight, gradient, number of three averages and both of Adam's; an eighth each under FSDP."""
    ddp, fsdp = xl["memory_per_device"]["ddp"], xl["memory_per_device"]["fsdp"]
    expected = {"weights": XL, "gradients": TRAINABLE, "averaged_weights": 3 * XL, "optimizer": 2 * TRAINABLE}
    for name, numbers in expected.items():
        assert ddp[name] == 4 * numbers
        assert fsdp[name] == math.ceil(4 * numbers / 8)
    block = 18 * 1152**2 + (4 + 5 + 6) * 1152  # qkv, out, MLP and modulation, and their biases
    assert fsdp["gathered"] == 3 * 4 * block
    parts = ("weights", "gradients", "averaged_weights", "optimizer", "activations")
    assert ddp["total"] == sum(ddp[part] for part in parts)
    assert fsdp["total"] == sum(fsdp[part] for part in parts) + fsdp["gathered"]
    assert ddp["total"] - ddp["activations"] == ddp["recomputed_total"] - ddp["recomputed_activations"]


def test_under_fsdp_the_gradients_of_parts_are_whole():
    """They are exchanged after the last part alone: until then each process has all of them."""
    network = DiT()
    block, every = (sum(p.numel() for p in part.parameters()) for part in (network.blocks[0], network))
    for accumulate, gradients in ((1, block), (2, every)):
        memory = estimate(circles().model_copy(update={"accumulate": accumulate}), devices=8)["memory_per_device"]
        assert memory["fsdp"]["gathered"] == 4 * (2 * block + gradients)
        assert memory["ddp"]["gradients"] == 4 * every


MEANFLOWS = [{}, {"tangent": "conditional"}, {"flow_share": 0.0}, {"flow_share": 0.75, "guidance": 2.0}]


@pytest.mark.parametrize("process", [FlowConfig(), DDPMConfig(), *(MeanFlowConfig(**m) for m in MEANFLOWS)], ids=str)
def test_passes_are_those_of_a_real_loss_and_its_backward_pass(process):
    """Somewhat fewer, since nothing asks for the gradient of what goes in."""
    config = digits().model_copy(update={"process": process, "network": DiTConfig(patch_size=2, dim=128, depth=4)})
    data = build_dataset(config)
    own = build_process(config, build_network(config, data)).train()
    x0, cond = data.batch(0, 0, 16)
    with FlopCounterMode(display=False) as counter:
        own.loss(x0, cond, generator=torch.Generator().manual_seed(0)).backward()
    counted = counter.get_total_flops() / 16
    costs = estimate(config)
    assert 0.85 < counted / (costs["time"]["training_flops"] / costs["samples"]) < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "mlp", "--recompute"], "no blocks to compute again"),
        (["--devices", "3", "--batch-size", "128"], "--batch-size 128 cannot be divided among 3 processes"),
        (["--devices", "64", "--accumulate", "4", "--batch-size", "128"], "use a multiple of 256"),
        (["--network.learned-variance"], "no variance to learn"),
        (["--process", "ddpm", "--sampling.shift", "2"], "shift"),
        (["--days", "1e-300"], "days=1e-300: should be greater than or equal to 0.001"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(in_tmp, capsys, words, said):
    assert main(["train", "circles", *words, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ditlab: ")
    assert said in line
    assert not list(in_tmp.iterdir())


def test_disk(xl):
    disk = xl["disk"]
    assert disk["checkpoint_bytes"] == 4 * (4 * XL + 2 * TRAINABLE)
    assert disk["checkpoints"] == 3 + 13  # the last three, and those of every half million before them
    assert disk["checkpoints_bytes"] == 16 * disk["checkpoint_bytes"]
    assert disk["checkpoints_peak_bytes"] == 17 * disk["checkpoint_bytes"]  # the last one is written before one goes
    assert disk["latents_bytes"] == 1_281_167 * 4 * 32 * 32 * 2 * 2 * 2
    assert disk["snapshots_bytes"] == 32 * 2 * 2 * XL  # of two widths, in fp16


@pytest.mark.parametrize(("last", "every", "kept"), [(None, None, 10), (3, None, 3), (2, 25, 2 + 1), (20, 10, 10)])
def test_checkpoints_that_are_kept(last, every, kept):
    changes = {"steps": 100, "checkpoint_every": 10, "keep_last": last, "keep_every": every}
    disk = estimate(circles().model_copy(update=changes))["disk"]
    assert disk["checkpoints"] == kept
    assert disk["checkpoints_peak_bytes"] == disk["checkpoint_bytes"] * min(10, kept + 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [2, 6])
@pytest.mark.parametrize("null_label", [True, False])
def test_activations_are_what_torch_keeps(precision, batch_size, null_label):
    """Counted without numbers, and by a forward pass with them: the same bytes."""
    network = DiT(
        image_size=16, patch_size=2, channels=4, dim=64, depth=2, mlp_ratio=4.0, num_classes=10,
        learned_variance=True, published=Published(null_label=null_label),
    )  # fmt: skip
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    x, t = torch.randn(batch_size, 4, 16, 16), torch.rand(batch_size)
    cond = None if null_label else {"label": torch.zeros(batch_size, dtype=torch.int64)}
    with (
        torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        network(x, t, cond)
    counted = activation_bytes(network, (4, 16, 16), batch_size, precision)
    own = sum(size for _, size in kept.values())
    assert abs(counted.kept - own) <= 16 * batch_size  # x and t may be kept once more or less
    assert counted.recomputed < counted.kept


def test_recomputed_activations_grow_by_a_blocks_input():
    """Each block more keeps its input alone, where all else is computed again."""

    def bytes_of(depth):
        return activation_bytes(DiT(depth=depth), (1, 16, 16), 8)

    growth = [bytes_of(depth).recomputed - bytes_of(depth - 1).recomputed for depth in (4, 5, 6)]
    assert growth == [8 * 16 * 64 * 4] * 3
    assert bytes_of(6).kept - bytes_of(5).kept > 4 * growth[0]


def test_optimizer_state_is_what_the_optimizers_keep():
    """Muon keeps one number a parameter and AdamW two: counted against real states after a step."""
    for config in (circles(), circles().model_copy(update={"optimizer": imagenet256().optimizer})):
        network = DiT()
        optimizers = Optimizers(network, config)
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizers.step(0)
        own = sum(4 * value.numel() for name, value in optimizers.state_dict().items() if not name.endswith("/step"))
        assert estimate(config)["memory_per_device"]["ddp"]["optimizer"] == own


def test_a_part_of_a_batch_is_what_is_kept():
    config = circles().model_copy(update={"precision": "fp32"})
    halves = config.model_copy(update={"accumulate": 2})
    ddp = [estimate(c)["memory_per_device"]["ddp"]["activations"] for c in (config, halves)]
    assert ddp[0] == pytest.approx(2 * ddp[1], rel=0.02)
    two = estimate(config, devices=2)["memory_per_device"]["ddp"]["activations"]
    assert two == ddp[1]


def test_several_devices_are_gpus_that_multiply_bf16_unless_told_otherwise(monkeypatch):
    """And what a machine like this one takes is that of its own precision."""
    monkeypatch.setattr(
        "ditlab.training.estimate.resolve_precision", lambda asked, _: "fp32" if asked == "auto" else asked
    )
    one, two = (estimate(circles(), devices=devices) for devices in (1, 2))
    assert (one["precision"], two["precision"]) == ("fp32", "bf16")
    assert one["memory_bytes"] == two["memory_bytes"]
    assert two["memory_per_device"]["ddp"]["activations"] < 0.4 * one["memory_per_device"]["ddp"]["activations"]
    asked = estimate(circles().model_copy(update={"precision": "fp16"}), devices=2)
    assert asked["precision"] == "fp16"
    assert asked["memory_per_device"] == two["memory_per_device"]


def test_the_table_is_short_and_json_has_the_numbers(in_tmp, capsys):
    words = ["train", "imagenet256", "--preset", "DiT-B/4", "--dry-run", "--devices", "4", "--days", "3"]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) <= 8
    assert "130,475,648 parameters" in table[0]
    assert main([*words, "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert (costs["devices"], costs["time"]["days"], costs["precision"]) == (4, 3, "bf16")
    assert not list(in_tmp.iterdir())


def test_data_of_others_have_costs_too():
    config = Config(data=ExternalData(), network=DiTConfig(patch_size=8))
    assert "latents_bytes" not in estimate(config)["disk"]


def test_a_constant_schedule_stays_after_the_warm_up():
    assert [learning_rate_factor(step, 100, 4, "constant") for step in (0, 1, 3, 4, 50, 99)] == [0.25, 0.5, 1, 1, 1, 1]
    assert learning_rate_factor(50, 100, 0, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(50, 100, 0) == learning_rate_factor(50, 100, 0, "cosine")

"""What training a configuration would cost, without training it."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from ditlab.config import Config, LatentsData, MuonConfig
from ditlab.core.device import resolve_device
from ditlab.machine.resolve import resolve_precision
from ditlab.networks.costs import activation_bytes, multiply_accumulates, on_meta, parameter_count
from ditlab.runs.build import build_dataset, build_network, build_process
from ditlab.runs.sampling import build_drawing
from ditlab.training.loop import share_for_each
from ditlab.training.optim import block_matrices
from ditlab.training.sharding import recompute_blocks

PEAKS = {"H100": 989.4e12, "A100": 312e12}  # dense bf16 FLOP/s of the SXM cards, from NVIDIA's data sheets
PASSES = 3  # a step costs three forward passes: the backward pass is two products for each of the forward's
GATHERED = 2  # blocks whose weights are whole at a time under FSDP: one computes while the next one is fetched


def parameters_of(config: Config) -> int:
    """How many parameters the network of a configuration has, fixed tables included."""
    return parameter_count(on_meta(lambda: build_network(config, build_dataset(config))))


def estimate(config: Config, devices: int = 1, days: float = 7.0, store_bytes: int | None = None) -> dict[str, Any]:
    """What a training takes of memory, time and disk.

    Memory of a device: weights, gradients, averaged weights and optimizer state in fp32 (two numbers a parameter for
    AdamW, one for Muon), and what its share of a batch's part keeps for its backward pass in the precision of the run.
    Where that is chosen by the hardware, several devices are taken to be GPUs that multiply bf16, as the H100 and the
    A100 do; one is this machine's.
    Under FSDP the first four are shared out, and two blocks are whole at a time, with the gradient of one or, where a
    batch is run in parts, with all gradients: they are exchanged after its last part. Buffers of communication, of
    libraries and of the allocator come on top, and what a derivative of the network needs while it is computed.

    Args:
        config: what would be trained.
        devices: on how many.
        days: in which time.
        store_bytes: of the latents it is trained on, if any.

    Returns:
        Plain numbers: ``parameters``, ``multiply_accumulates`` of a forward pass per sample, ``memory_bytes`` of
        training on this machine alone (on a CPU with the copy that checkpoints are saved from), ``steps``, ``samples``,
        ``precision``, ``devices``, and the groups ``memory_per_device``, ``time`` and ``disk``.

    Raises:
        InputError: training would refuse the configuration, or so many devices.
    """
    dataset = build_dataset(config)
    network = on_meta(lambda: build_network(config, dataset))
    _must_be_trainable(config, network, devices)
    here = resolve_precision(config.precision, resolve_device(config.device))
    there = "bf16" if config.precision == "auto" and devices > 1 else here
    macs = multiply_accumulates(network, dataset.shape)
    parameters = parameter_count(network)
    checkpoint = 4 * ((2 + len(config.averages)) * parameters + _optimizer_numbers(config, network))
    copied = checkpoint if resolve_device(config.device).type == "cpu" else 0
    one, several = (_memory(config, network, dataset.shape, *each) for each in ((here, 1), (there, devices)))
    return {
        "parameters": parameters,
        "multiply_accumulates": macs,
        "memory_bytes": one["ddp"]["recomputed_total" if config.recompute else "total"] + copied,
        "steps": config.steps,
        "samples": config.steps * config.batch_size,
        "precision": there,
        "devices": devices,
        "memory_per_device": several,
        "time": _time(config, macs, devices, days),
        "disk": _disk(config, checkpoint, parameters, store_bytes),
    }


def _must_be_trainable(config: Config, network: nn.Module, devices: int) -> None:
    """Refuse what training would refuse.

    Raises:
        InputError: it would.
    """
    share_for_each(config, devices)
    build_drawing(config.sampling, build_process(config, network), guided=True)
    if config.recompute:
        recompute_blocks(copy.deepcopy(network))


def _optimizer_numbers(config: Config, network: nn.Module) -> int:
    """Numbers that the optimizers keep: two a trainable parameter for AdamW, one for Muon."""
    trainable = parameter_count(network, trainable_only=True)
    muon = sum(p.numel() for p in block_matrices(network).values()) if isinstance(config.optimizer, MuonConfig) else 0
    return 2 * trainable - muon


def _memory(
    config: Config, network: nn.Module, shape: tuple[int, ...], precision: str, devices: int
) -> dict[str, dict[str, int]]:
    """Bytes of each of several devices, under DDP and under FSDP."""
    parameters, trainable = parameter_count(network), parameter_count(network, trainable_only=True)
    shared = {
        "weights": 4 * parameters,
        "gradients": 4 * trainable,
        "averaged_weights": 4 * (1 + len(config.averages)) * parameters,
        "optimizer": 4 * _optimizer_numbers(config, network),
    }
    samples = share_for_each(config, devices) // config.accumulate
    kept, recomputed = activation_bytes(network, shape, samples, precision)
    largest = max((parameter_count(block) for block in getattr(network, "blocks", ())), default=parameters)
    gradients = largest if config.accumulate == 1 else trainable  # that are whole at a time
    parts = {
        "ddp": shared,
        "fsdp": {name: math.ceil(size / devices) for name, size in shared.items()}
        | {"gathered": 0 if devices == 1 else 4 * (GATHERED * largest + gradients)},
    }
    return {
        kind: own
        | {"activations": kept, "recomputed_activations": recomputed}
        | {"total": sum(own.values()) + kept, "recomputed_total": sum(own.values()) + recomputed}
        for kind, own in parts.items()
    }


def _time(config: Config, macs: int, devices: int, days: float) -> dict[str, Any]:
    """How fast a training has to be to end in time, and how much of a GPU's peak that is."""
    samples, seconds = config.steps * config.batch_size, days * 86_400
    operations = round(2 * (PASSES + config.process.extra_passes) * macs * samples)
    return {
        "days": days,
        "images_per_s": samples / seconds,
        "images_per_s_per_device": samples / seconds / devices,
        "training_flops": operations,
        "share_of_peak": {name: operations / seconds / devices / peak for name, peak in PEAKS.items()},
    }


def _disk(config: Config, checkpoint: int, parameters: int, store_bytes: int | None) -> dict[str, int]:
    """Bytes of a checkpoint, of those that are kept in the end, of the snapshots of averages, and of the latents.

    A checkpoint is whole before an older one is deleted: ``checkpoints_peak_bytes`` has both.
    """
    saved = math.ceil(config.steps / config.checkpoint_every)
    kept = _kept(config, saved)
    disk = {
        "checkpoint_bytes": checkpoint,
        "checkpoints": kept,
        "checkpoints_bytes": kept * checkpoint,
        "checkpoints_peak_bytes": (_kept(config, saved - 1) + 1) * checkpoint,
    }
    if config.averages:
        snapshots = math.ceil(config.steps / config.snapshot_every)
        disk["snapshots_bytes"] = 2 * snapshots * len(config.averages) * parameters  # in fp16
    if isinstance(config.data, LatentsData) and store_bytes is not None:
        disk["latents_bytes"] = store_bytes
    return disk


def _kept(config: Config, saved: int) -> int:
    """How many of so many checkpoints are kept."""
    if config.keep_last is None:
        return saved
    newest = min(saved, config.keep_last)
    return newest + (0 if config.keep_every is None else _kept_besides(config, saved - newest))


def _kept_besides(config: Config, older: int) -> int:
    """How many of the first ``older`` checkpoints are kept for good."""
    assert config.keep_every is not None
    together = math.lcm(config.keep_every, config.checkpoint_every)
    return older * config.checkpoint_every // together


def readable(costs: dict[str, Any]) -> dict[str, str]:
    """The same in a few grouped lines, for people."""
    memory, time, disk = costs["memory_per_device"], costs["time"], costs["disk"]
    devices = f"{costs['devices']:,} device{'' if costs['devices'] == 1 else 's'}"
    peaks = ", ".join(f"{100 * share:.3g} % of an {name}'s" for name, share in time["share_of_peak"].items())
    lines = {
        "network": f"{costs['parameters']:,} parameters, {costs['multiply_accumulates']:,} MACs a sample",
        "training": f"{costs['steps']:,} steps, {costs['samples']:,} samples, {_short(time['training_flops'])}FLOP",
        f"on {devices}": f"memory of each in {costs['precision']}, and with --recompute",
    }
    for kind, name in (("ddp", "DDP"), ("fsdp", "FSDP")):
        own = memory[kind]
        fixed = own["total"] - own["activations"]
        lines[f"  {name}"] = (
            f"{_bytes(own['total'])} = {_bytes(fixed)} + {_bytes(own['activations'])} of activations; "
            f"recomputed {_bytes(own['recomputed_total'])}"
        )
    lines[f"in {time['days']:g} days"] = (
        f"{time['images_per_s']:,.4g} images/s, {time['images_per_s_per_device']:,.4g} a device: {peaks} bf16 peak"
    )
    kept = f"{_bytes(disk['checkpoints_bytes'])} for {disk['checkpoints']:,}"
    if disk["checkpoints_peak_bytes"] > disk["checkpoints_bytes"]:
        kept += f" ({_bytes(disk['checkpoints_peak_bytes'])} while one is written)"
    if "snapshots_bytes" in disk:
        kept += f"; {_bytes(disk['snapshots_bytes'])} of snapshots for ditlab ema"
    lines["disk"] = f"{_bytes(disk['checkpoint_bytes'])} a checkpoint, {kept}" + (
        f"; {_bytes(disk['latents_bytes'])} of latents" if "latents_bytes" in disk else ""
    )
    return lines


def _bytes(size: float) -> str:
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB") if size >= 2**20 else (2**10, "KiB")
    return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"


def _short(number: float) -> str:
    power = min(24, 3 * int(math.log10(max(1, number)) // 3))
    return f"{number / 10**power:.3g} {PREFIXES[power]}"


PREFIXES = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E", 21: "Z", 24: "Y"}

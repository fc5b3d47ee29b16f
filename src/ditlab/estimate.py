"""What training a configuration would cost, without training it."""

from __future__ import annotations

from typing import Any

from ditlab.build import build_dataset, build_network, resolve_device
from ditlab.config import Config, MuonConfig
from ditlab.networks.counts import activation_bytes, multiply_accumulates, on_meta, parameter_count
from ditlab.training.optim import block_matrices


def estimate(config: Config) -> dict[str, Any]:
    """Parameters, multiply-accumulates of a forward pass per sample, bytes of memory, steps and samples.

    Memory in fp32: weights, gradients, averages of the weights, optimizer state (two numbers a parameter for AdamW, one
    for Muon), what a part of the batch keeps for its backward pass and, on a CPU, the copy that checkpoints are saved
    from.
    """
    dataset = build_dataset(config)
    network = on_meta(lambda: build_network(config, dataset))
    parameters = parameter_count(network)
    muon = sum(p.numel() for p in block_matrices(network).values()) if isinstance(config.optimizer, MuonConfig) else 0
    activations = activation_bytes(network, dataset.shape, config.batch_size // config.accumulate)
    saved = (2 + len(config.averages)) * parameters + 2 * (parameters - muon) + muon
    copied = saved if resolve_device(config.device).type == "cpu" else 0
    return {
        "parameters": parameters,
        "multiply_accumulates": multiply_accumulates(network, dataset.shape),
        "memory_bytes": 4 * (parameters + saved + copied) + activations,
        "steps": config.steps,
        "samples": config.steps * config.batch_size,
    }

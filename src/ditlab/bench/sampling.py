"""Samplings to time: each network by 25 steps of Heun on the straight path from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditlab.bench.contestants import OURS, PEER, Contestant, contestant
from ditlab.bench.rounds import Work
from ditlab.bench.sizes import Size
from ditlab.bench.training import DEFAULT, EAGER, Entry, default_config
from ditlab.build import build_process, initial_network
from ditlab.config import ExternalData
from ditlab.data.datasets import External
from ditlab.diffusion.process import FlowMatching
from ditlab.diffusion.solvers import Heun
from ditlab.run import Run, RunFolder

STEPS = 25
EVALUATIONS = Heun().evaluations(STEPS)  # 49: the last step needs one


def peer_sampling(entry: Contestant, size: Size, device: torch.device) -> Work:
    """diffusers' own way: its network, asked by its scheduler for Heun's method."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    label = torch.arange(size.batch, device=device) % size.num_classes

    @torch.no_grad()
    def work() -> Tensor:
        scheduler: Any = FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000)  # type: ignore[no-untyped-call]
        scheduler.set_timesteps(STEPS, device=device)
        x = torch.randn(size.batch, *size.shape, device=device)
        for time in scheduler.timesteps:
            t = (time / 1000).expand(size.batch)
            x = scheduler.step(entry.predict(x, t, label), time, x).prev_sample
        return x

    return work


def plain_sampling(entry: Contestant, size: Size, device: torch.device) -> Work:
    """``FlowMatching.sample`` of a network, eager and in fp32."""
    process = FlowMatching(_by_condition(entry)).to(device)
    label = torch.arange(size.batch) % size.num_classes
    return lambda: process.sample(size.batch, size.shape, cond={"label": label}, steps=STEPS, solver="heun")


def _by_condition(entry: Contestant) -> Any:
    """The network as a process asks it."""
    if entry.name == OURS:
        return entry.network
    return lambda x, t, cond: entry.predict(x, t, cond["label"])


def default_run(size: Size, device: torch.device) -> Run:
    """A run of such a network with fresh weights, as ``ditlab.load`` gives one."""
    data = External(size.shape, size.num_classes)
    scale = None if size.channels in (1, 3) else 1.0
    described = ExternalData(shape=size.shape, num_classes=size.num_classes, latent_scale=scale)
    config = default_config(size, device).model_copy(update={"data": described})
    network = initial_network(config, data).to(device)
    process = build_process(config, network).eval().requires_grad_(False)
    return Run(RunFolder("bench"), config, process, 0, data.num_classes, data.shape)


def sampling_turns(names: list[str], size: Size, device: torch.device) -> dict[Entry, Work]:
    """Samplings of each network as it comes, and of ours as ``ditlab.load(...).sample`` does it."""
    turns = {}
    for name in names:
        entry = contestant(name, size)
        entry.network.to(device).eval()
        way = peer_sampling if name == PEER else plain_sampling
        turns[Entry(name, EAGER, "fp32")] = way(entry, size, device)
    run = default_run(size, device)
    turns[Entry(OURS, DEFAULT, "fp32")] = lambda: run.sample(size.batch)
    return turns

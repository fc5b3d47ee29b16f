"""Samplings to time: each network by a few steps of Heun on the straight path from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditlab.bench.contestants import PEER, Predict, contestant
from ditlab.bench.rounds import Work, refusing
from ditlab.bench.sizes import Size
from ditlab.bench.training import Entry, default_config, predicting
from ditlab.config import ExternalData
from ditlab.data.conditions import labelled
from ditlab.data.dataset import External
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.solvers import Heun
from ditlab.runs.build import build_process, initial_network
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run


def evaluations(size: Size) -> int:
    """How often a sampling asks its network: twice a step, and once in the last."""
    return Heun().evaluations(size.steps)


def peer_sampling(predict: Predict, size: Size, device: torch.device) -> Work:
    """diffusers' own way: its network, asked by its scheduler for Heun's method."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    label = torch.arange(size.batch, device=device) % size.num_classes

    @torch.no_grad()
    def work() -> Tensor:
        scheduler: Any = FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000)  # type: ignore[no-untyped-call]
        scheduler.set_timesteps(size.steps, device=device)
        x = torch.randn(size.batch, *size.shape, device=device)
        for time in scheduler.timesteps:
            t = (time / 1000).expand(size.batch)
            x = scheduler.step(predict(x, t, label), time, x).prev_sample
        return x

    return work


def plain_sampling(predict: Predict, size: Size, device: torch.device) -> Work:
    """``FlowMatching.sample`` of a network."""
    process = FlowMatching(lambda x, t, cond: predict(x, t, cond["label"])).to(device)
    label = torch.arange(size.batch, device=device) % size.num_classes

    def work() -> Tensor:
        return process.sample(size.batch, size.shape, cond={"label": label}, steps=size.steps, solver="heun")

    return work


def default_run(size: Size, device: torch.device) -> Run:
    """A run of such a network with fresh weights, as ``ditlab.load`` gives one."""
    data = External(size.shape, labelled(size.num_classes))
    scale = None if size.channels in (1, 3) else 1.0
    described = ExternalData(shape=size.shape, num_classes=size.num_classes, latent_scale=scale)
    config = default_config(size, device).model_copy(update={"data": described})
    network = initial_network(config, data).to(device)
    process = build_process(config, network).eval().requires_grad_(False)
    return Run(RunFolder("bench"), config, process, 0, data)


def default_sampling(size: Size, device: torch.device) -> Work:
    """What ``ditlab.load(...).sample`` does, but for the number of steps where it is another."""
    run = default_run(size, device)
    return lambda: run.sample(size.batch, steps=size.steps)


def plain_samplings(own: list[Entry], size: Size, device: torch.device) -> dict[Entry, Work]:
    """Samplings of one contestant, eager or compiled, in fp32 or by autocast; they share its weights."""
    entry = contestant(own[0].contestant, size)
    entry.network.to(device).eval()
    way = peer_sampling if entry.name == PEER else plain_sampling

    def work_of(key: Entry) -> Work:
        work = way(predicting(entry, key.way), size, device)

        def cast() -> object:
            with torch.autocast(device.type, torch.bfloat16):
                return work()

        return cast if key.dtype == "bf16" else work

    return {key: work_of(key) for key in own}


def sampling_turns(
    entries: list[Entry], size: Size, device: torch.device, refused: dict[Any, str] | None = None
) -> dict[Entry, Work]:
    """Samplings of these; ``refused`` as of ``interleaved``."""
    turns: dict[Entry, Work] = {}
    plain = [entry for entry in entries if not entry.is_our_default]
    for name in dict.fromkeys(entry.contestant for entry in plain):
        own = [entry for entry in plain if entry.contestant == name]
        with refusing(own, refused):
            turns |= plain_samplings(own, size, device)
    for entry in entries:
        if entry.is_our_default:
            with refusing([entry], refused):
                turns[entry] = default_sampling(size, device)
    return {entry: turns[entry] for entry in entries if entry in turns}

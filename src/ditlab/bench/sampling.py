"""Samplings to time: a few steps of Heun's method on the straight path from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditlab.bench.contestants import PEER, Predict, contestant
from ditlab.bench.rounds import Work
from ditlab.bench.sizes import Size
from ditlab.bench.training import Entry, default_config, predicting, turns_of
from ditlab.config import ExternalData
from ditlab.data.conditions import labelled
from ditlab.data.dataset import External
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.solvers import Heun
from ditlab.runs.build import build_process, initial_network
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run


def evaluations(size: Size) -> int:
    """Network evaluations of a sampling: two per step, and one in the last."""
    return Heun().evaluations(size.steps)


def peer_sampling(predict: Predict, size: Size, device: torch.device) -> Work:
    """diffusers' own way: its network with its scheduler for Heun's method."""
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
    """``FlowMatching.sample`` with a network."""
    process = FlowMatching(lambda x, t, cond: predict(x, t, cond["label"])).to(device)
    label = torch.arange(size.batch, device=device) % size.num_classes

    def work() -> Tensor:
        return process.sample(size.batch, size.shape, cond={"label": label}, steps=size.steps, solver="heun")

    return work


def default_run(size: Size, device: torch.device) -> Run:
    """A run with fresh weights, as ``ditlab.load`` returns it."""
    data = External(size.shape, labelled(size.num_classes))
    scale = None if size.channels in (1, 3) else 1.0
    described = ExternalData(shape=size.shape, num_classes=size.num_classes, latent_scale=scale)
    config = default_config(size, device).model_copy(update={"data": described})
    network = initial_network(config, data).to(device)
    process = build_process(config, network).eval().requires_grad_(False)
    return Run(RunFolder("bench"), config, process, 0, data)


def default_sampling(size: Size, device: torch.device) -> Work:
    """``ditlab.load(...).sample`` with this size's number of steps."""
    run = default_run(size, device)
    return lambda: run.sample(size.batch, steps=size.steps)


def plain_samplings(own: list[Entry], size: Size, device: torch.device) -> dict[Entry, Work]:
    """Samplings of one contestant, eager or compiled, in fp32 or autocast, with the same weights."""
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
    """The samplings of these entries; ``refused`` as of ``interleaved``."""
    return turns_of(
        entries, refused, lambda: default_sampling(size, device), lambda own: plain_samplings(own, size, device)
    )

"""Optimizers, which parameters they move, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ditlab.config import Config, MuonConfig
from ditlab.training.muon import BatchedMuon


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, schedule: Literal["cosine", "constant"] = "cosine"
) -> float:
    """Share of the peak learning rate at ``step`` (from 0): linear warm-up, times 1 or a cosine, 0 at ``steps``."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    if schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def scheduled(config: Config, step: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of a training."""
    begun = config.rewarmed_at
    return learning_rate_factor(max(0, step - begun), config.steps - begun, config.warmup_steps, config.schedule)


def block_matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the linear layers in a transformer's blocks, which Muon moves; none for other networks."""
    inside = ((name, module) for name, module in network.named_modules() if name.startswith("blocks."))
    linear = {f"{name}.weight" for name, module in inside if isinstance(module, nn.Linear)}
    return {name: p for name, p in network.named_parameters() if name in linear and p.requires_grad}


ENTRIES = {"muon": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}  # what they keep of a parameter


class Optimizers:
    """Muon for the matrices of a network's blocks and AdamW for the rest, or AdamW for everything.

    Muon orthogonalises the momentum of a matrix (Jordan et al. 2024). The state is kept under the
    names of the parameters, so that a checkpoint can be read without the optimizers.

    Args:
        network: whose trainable parameters to move; its blocks are those of ``network.blocks``.
        config: ``optimizer``, ``lr``, ``steps``, ``warmup_steps`` and ``schedule`` are used.
    """

    def __init__(self, network: nn.Module, config: Config) -> None:
        self.config = config
        chosen = config.optimizer
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(parameters.values())
        matrices = block_matrices(network)
        self.members: dict[str, Optimizer] = {}
        self.peaks: dict[str, float] = {}
        self.names: dict[str, list[str]] = {}
        if isinstance(chosen, MuonConfig) and matrices:
            self.members["muon"] = BatchedMuon(
                matrices.values(),
                precision="bf16" if chosen.precision == "bf16" else "fp32",
                momentum=chosen.momentum,
                weight_decay=chosen.weight_decay,
            )
            self.peaks["muon"] = config.lr * chosen.matrix_lr_ratio
            self.names["muon"] = list(matrices)
            parameters = {name: p for name, p in parameters.items() if name not in matrices}
        self.members["adamw"] = AdamW(
            parameters.values(), betas=(0.9, chosen.beta2), weight_decay=chosen.weight_decay, fused=True
        )
        self.peaks["adamw"] = config.lr
        self.names["adamw"] = list(parameters)

    def lr(self, step: int) -> float:
        """The learning rate of AdamW at this step, counted from 0."""
        return scheduled(self.config, step) * self.config.lr

    def step(self, step: int) -> None:
        """Move the parameters, at the learning rates of this step, counted from 0."""
        for name, optimizer in self.members.items():
            for group in optimizer.param_groups:
                group["lr"] = scheduled(self.config, step) * self.peaks[name]
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def divide_gradients(self, scale: float) -> None:
        """Take the scale of the loss out of the gradients: exactly, where it is a power of two."""
        torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], 1 / scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state under "optimizer/parameter/entry", such as "adamw/final.linear.weight/exp_avg"."""
        return {
            f"{kind}/{self.names[kind][index]}/{entry}": value
            for kind, optimizer in self.members.items()
            for index, entries in optimizer.state_dict()["state"].items()
            for entry, value in entries.items()
        }

    def like(self, key: str) -> Tensor | None:
        """The parameter that a tensor of the state is shaped and shared like; None for a single number."""
        kind, name, entry = key.split("/")
        if entry == "step":
            return None
        parameters: list[Tensor] = self.members[kind].param_groups[0]["params"]
        return parameters[self.names[kind].index(name)]

    def differences(self, tensors: dict[str, Tensor]) -> list[str]:
        """In what a state differs from one that ``load_state_dict`` can take. One parameter, or all, may have none."""
        shapes = {
            f"{kind}/{name}/{entry}": torch.Size() if entry == "step" else p.shape
            for kind, optimizer in self.members.items()
            for name, p in zip(self.names[kind], optimizer.param_groups[0]["params"], strict=True)
            for entry in ENTRIES[kind]
        }
        begun = {key.rpartition("/")[0] for key in tensors}
        kinds = {key.partition("/")[0] for key in tensors}
        none = [f"no state of {kind}" for kind in self.members if tensors and kind not in kinds]
        missing = [f"missing {key}" for key in shapes if key not in tensors and key.rpartition("/")[0] in begun]
        extra = [f"unexpected {key}" for key in tensors if key not in shapes]
        other = [
            f"{key} is {tuple(tensor.shape)}, not {tuple(shapes[key])}"
            for key, tensor in tensors.items()
            if key in shapes and tensor.shape != shapes[key]
        ]
        return none + sorted([*missing, *extra, *other])

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        for kind, optimizer in self.members.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, name, entry = key.split("/")
                if owner == kind:  # copied, so that nothing depends on the file it may be mapped from
                    state.setdefault(self.names[kind].index(name), {})[entry] = value.clone()
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

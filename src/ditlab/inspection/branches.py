"""How far the gates of a network are open, and how much each branch adds to the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.networks.dit import DiTBlock
from ditlab.networks.modulation import BlockModulation


class Branches(NamedTuple):
    """At T times, for L blocks and the two branches (attention, MLP) of each."""

    gate: Float[Tensor, "T L 2"]  # mean |gate| over samples and channels
    contribution: Float[Tensor, "T L 2"]  # mean over samples of ‖gate ⊙ f‖ / ‖x‖, norms over all tokens


def modulated_blocks(network: nn.Module) -> list[DiTBlock]:
    """The transformer blocks with gates, in order."""
    return [module for module in network.modules() if isinstance(module, DiTBlock) and module.modulation.gated]


def effective_depth(contribution: Float[Tensor, "T L 2"]) -> Float[Tensor, " T"]:
    """(Σc)² / Σc² over the 2L branches: the number of equal contributions that would give this ratio; 0 for none."""
    c = contribution.flatten(1)
    return c.sum(1).square() / c.square().sum(1).clamp(min=torch.finfo(c.dtype).tiny)


@torch.no_grad()
def measure_branches(
    network: nn.Module, x: Float[Tensor, "T B C H W"], t: Float[Tensor, " T"], cond: dict[str, Tensor]
) -> Branches:
    """Run the network on x[i] at time t[i], for each i, and measure every branch of every block, which needs gates."""
    blocks = modulated_blocks(network)
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no gates")
    gates, contributions = [], []
    for x_t, time in zip(x, t, strict=True):
        seen = _forward_with_hooks(network, blocks, x_t, time.expand(len(x_t)), cond)
        gates.append([[m.gate.abs().mean() for m in block["modulation"]] for block in seen])
        contributions.append([_contributions(block) for block in seen])
    shape = (len(t), len(blocks), 2)
    stack = [torch.stack([v for row in table for pair in row for v in pair]) for table in (gates, contributions)]
    return Branches(*(values.float().cpu().reshape(shape) for values in stack))


def _contributions(block: dict[str, Any]) -> list[Tensor]:
    values = []
    for modulation, x, branch in zip(block["modulation"], ("x", "between"), ("attn", "mlp"), strict=True):
        added = modulation.gate[:, None] * block[branch]
        values.append((added.flatten(1).norm(dim=1) / block[x].flatten(1).norm(dim=1)).mean())
    return values


def _forward_with_hooks(
    network: nn.Module, blocks: list[DiTBlock], x: Tensor, t: Tensor, cond: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """For each block in one forward pass: input, modulation, outputs of both branches and the tokens in between."""
    seen: list[dict[str, Any]] = [{} for _ in blocks]

    def keep(store: dict[str, Any], key: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor | BlockModulation) -> None:
            store[key] = inputs[0] if key == "x" else output

        return hook

    def keep_between(store: dict[str, Any], between: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kept(*arguments: Any) -> Tensor:
            store["between"] = between(*arguments)
            return store["between"]

        return kept

    with ExitStack() as stack:
        for block, store in zip(blocks, seen, strict=True):
            vars(block.modulation)["between"] = keep_between(store, block.modulation.between)
            stack.callback(vars(block.modulation).pop, "between")  # the method of its class remains
            parts = {"x": block, "modulation": block.modulation, "attn": block.attn, "mlp": block.mlp}
            for key, module in parts.items():
                stack.callback(module.register_forward_hook(keep(store, key)).remove)
        network(x, t, cond)
    return seen

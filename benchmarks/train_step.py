"""How fast is a training step beside diffusers' DiT? The lesson's sizes, interleaved in one process.

    python benchmarks/train_step.py            about two minutes on two CPU cores

Both networks: 16×16×1 images, patch 4, width 64, 4 blocks, 4 heads, MLP ratio 4 (diffusers knows no other), 10 classes,
batch 128, nothing compiled. Four loops take turns, 25 steps each, so that a noisy machine disturbs all alike:

    diffusers      DiTTransformer2DModel as it comes: fp32, eager, flow-matching loss, torch.optim.AdamW
    ditlab         our DiT in the very same loop: fp32, eager, the same optimizer
    same GELU      likewise, with the tanh approximation of GELU that the peer has and ours has only in published sizes
    default        what ``ditlab train`` runs: our DiT, FlowMatching, Muon + AdamW, clipping, averaged weights,
                   bf16 products where the hardware has them

The figures are medians over rounds of the ratio of step times within a round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from ditlab import DiT
from ditlab.build import resolve_precision
from ditlab.config import Config, DigitsData, DiTConfig
from ditlab.data.datasets import Batch
from ditlab.training.loop import TrainState, train

BATCH, CLASSES, ROUNDS, STEPS, WARM_UP = 128, 10, 12, 25, 10


class RandomImages:
    """16×16 images with labels, so that both sides pay the same for their data: almost nothing."""

    shape: tuple[int, ...] = (1, 16, 16)
    num_classes: int | None = CLASSES

    def __init__(self) -> None:
        self.x0 = torch.randn(BATCH, *self.shape)
        self.label = torch.randint(CLASSES, (BATCH,))

    def batch(self, seed: int, position: int, size: int) -> Batch:
        """The same batch again."""
        return Batch(self.x0, {"label": self.label})


def plain_loop(network: nn.Module, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
    """One step of flow matching with AdamW, as anyone would write it."""
    data, optimizer = RandomImages(), torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        x0, cond = data.batch(0, 0, BATCH)
        t, noise = torch.rand(BATCH), torch.randn_like(x0)
        s = t[:, None, None, None]
        loss = (predict((1 - s) * x0 + s * noise, t, cond["label"]) - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    """Measure, and print one line of JSON after the table."""
    torch.manual_seed(0)
    peer: Any = DiTTransformer2DModel(  # type: ignore[no-untyped-call]
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    )
    peer.train()
    ours, alike = (DiT(mlp_ratio=4.0, num_classes=CLASSES, gelu=gelu) for gelu in ("exact", "tanh"))
    precision = resolve_precision("auto", torch.device("cpu"))
    config = Config(data=DigitsData(), network=DiTConfig(mlp_ratio=4.0), steps=10**6, precision=precision, device="cpu")
    data = RandomImages()
    default = train(TrainState(config, data), data)
    loops: dict[str, Callable[[], object]] = {
        "diffusers": plain_loop(peer, lambda x, t, y: peer(x, timestep=(1000 * t).long(), class_labels=y).sample),
        "ditlab": plain_loop(ours, lambda x, t, y: ours(x, t, {"label": y})),
        "same GELU": plain_loop(alike, lambda x, t, y: alike(x, t, {"label": y})),
        "default": lambda: next(default),
    }
    for step in loops.values():
        for _ in range(WARM_UP):
            step()
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, step in loops.items():
            begun = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[name].append((time.perf_counter() - begun) / STEPS)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, eager, batch {BATCH}, {ROUNDS} rounds of {STEPS} steps")
    print(f"{'loop':<16}{'dtype':<8}{'ms/step':>9}{'images/s':>10}{'× diffusers':>13}")
    ratios = {}
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["diffusers"], measured, strict=True))
        ratios[name] = round(ratio, 3)
        median = statistics.median(measured)
        dtype = precision if name == "default" else "fp32"
        print(f"{name:<16}{dtype:<8}{1e3 * median:>9.1f}{BATCH / median:>10,.0f}{ratio:>13.2f}")
    print(json.dumps({"threads": threads, "compiled": False, "precision": precision, "ratios": ratios}))


if __name__ == "__main__":
    main()

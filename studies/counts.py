"""How many parameters do the two networks have, and do one loss and one sampler work for points and images?

    python -m studies.counts            seconds on two CPU cores
    python -m studies.counts --full     the same

Claim: the MLP for points has about 25 thousand parameters and the DiT for images about 250 thousand, and the same loss
and sampler work for both without changes.
Expect: 25,346 and 252,496; the very same functions run on (B, 2) and on (B, 1, 16, 16), and return the same shapes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from ditlab import DiT, FlowMatching, MLPDenoiser, Process
from ditlab.networks.costs import parameter_count
from studies.intervals import CONFIRMED, CONTRADICTED, Verdict, exact
from studies.plots import COLORS, TEXT, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers

BATCH = 8
NEAR = 0.02  # "about", as a share
SAID = {"MLP": 25_000, "DiT": 250_000}


def measure(tier: Tier, workers: Workers) -> Outcome:  # noqa: ARG001 - nothing is trained
    """Count, and run both networks through the same process."""
    networks = {"MLP": (MLPDenoiser((2,)), (2,)), "DiT": (DiT(), (1, 16, 16))}
    counts = {kind: parameter_count(network) for kind, (network, _) in networks.items()}
    served = {kind: serve(network, shape) for kind, (network, shape) in networks.items()}
    sizes = Finding(
        claim="The MLP has about 25 thousand parameters and the DiT about 250 thousand.",
        measurement="Parameters of both networks as they are built by default, counted.",
        verdict=about(counts),
        reason=" and ".join(f"the {kind} has {count:,}" for kind, count in counts.items()),
        figures={f"parameters of the {kind}": exact(count) for kind, count in counts.items()},
    )
    shared = Finding(
        claim="The loss and the sampler are the same for points and for images.",
        measurement="Which functions run when flow matching trains each network and draws from it, and what they give.",
        verdict=alike(served),
        reason="; ".join(f"{kind}: {each['shape']} in, {each['sample']} out" for kind, each in served.items()),
        figures={f"loss of the untrained {kind}": exact(each["loss"]) for kind, each in served.items()},
    )
    rows = [
        {"network": kind, "data": served[kind]["shape"], "parameters": counts[kind], "loss": served[kind]["loss"]}
        for kind in networks
    ]
    return Outcome([sizes, shared], rows, {"parameters": counts})


def serve(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Train and sample once; which functions ran, and what they returned."""
    process = FlowMatching(network)
    x0 = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
    loss = process.loss(x0, generator=torch.Generator().manual_seed(1))
    loss.backward()  # type: ignore[no-untyped-call]
    samples = process.sample(BATCH, shape, steps=2)
    return {
        "functions": [function.__qualname__ for function in (type(process).loss, type(process).sample)],
        "inherited": all(getattr(type(process), each) is getattr(Process, each) for each in ("loss", "sample")),
        "loss": loss.item(),
        "learned": any(p.grad is not None and bool(p.grad.any()) for p in network.parameters()),
        "shape": str(tuple(x0.shape)).replace(str(BATCH), "B", 1),
        "sample": str(tuple(samples.shape)).replace(str(BATCH), "B", 1),
    }


def about(counts: dict[str, int]) -> Verdict:
    """Whether each count is as claimed, within 2 %."""
    return CONFIRMED if all(abs(counts[kind] / said - 1) <= NEAR for kind, said in SAID.items()) else CONTRADICTED


def alike(served: dict[str, dict[str, Any]]) -> Verdict:
    """Whether both used the same functions, had gradients and gave samples in the shape of their data."""
    one, other = served.values()
    same = one["functions"] == other["functions"] and one["inherited"] and other["inherited"]
    works = all(each["learned"] and each["shape"] == each["sample"] for each in served.values())
    return CONFIRMED if same and works else CONTRADICTED


def draw(told: dict[str, Any]) -> Figure:
    """Two bars."""
    figure, (axes,) = page("Two networks, one loss and one sampler", height=2.0)
    counts = told["curves"]["parameters"]
    axes.barh(list(counts), list(counts.values()), color=COLORS[:2], height=0.55)
    for row, count in enumerate(counts.values()):
        axes.annotate(f" {count:,}", (count, row), va="center", fontsize=9, color=TEXT)
    axes.set_xlim(0, 1.25 * max(counts.values()))
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    name(axes, "parameters")
    return figure


STUDY = Study(
    "counts",
    "The MLP for points has about 25 thousand parameters and the DiT for images about 250 thousand; one loss and one "
    "sampler serve both.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))

"""What each part of a network is worth: how much the loss rises when it is switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.device import widest_float
from ditlab.core.errors import InputError
from ditlab.core.rng import SampleNoise
from ditlab.diffusion.process import Process
from ditlab.diffusion.targets import compose
from ditlab.inspection.interventions import intervened, single_edits
from ditlab.lab.lens.scenes import Scenes, affordable, check_work, joined

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
EXAMPLES = 64
GENERATED = 16  # where there are no examples: each is a trajectory of its own
FEWEST = 4  # images that a standard error is worth computing of


class Costs(NamedTuple):
    """Switches in the order of what they cost, dearest first."""

    edits: list[str]
    images: int
    source: str  # "examples" or "generated"
    arrays: dict[str, Tensor]  # cost (E,), its standard error over images (E,), loss () of the whole network


def measure_costs(process: Process, scenes: Scenes, look: Callable[[], None]) -> Costs:
    """Switch off one head, gate or block after the other; see ``Lens.costs``.

    The loss is the mean squared error of what the network predicts, a mean over images and over t = 0.1, 0.3, … 0.9;
    image i has the same noise at every time and for every switch.

    Raises:
        InputError: there is nothing to switch off, or it would take minutes.
    """
    edits = single_edits(process.network)
    if not edits:
        raise InputError("this network has no heads, gates or blocks to switch off")
    passes = (len(edits) + 1) * len(TIMES) * float(scenes.macs)  # multiply-accumulates for one image
    source, most = ("data", EXAMPLES) if scenes.has_examples else ("sample", GENERATED)
    passes += 0 if scenes.has_examples else scenes.work_of_sample
    device = scenes.like.device
    check_work(FEWEST * passes, device, "switch single parts off and look at the pictures instead")
    images = max(FEWEST, affordable(most, passes, device, share=0.025))
    found = []
    for i in range(images):
        look()
        found.append(scenes.scene(f"{source}:{i}", 0.0, None))
    shown = joined(found)
    noise = SampleNoise(0, range(images), shown.x0.shape[1:], shown.x0)()
    whole = squared_errors(process, shown.x0, noise, shown.cond)  # (B,)
    rises = []
    for edit in edits:
        look()
        with intervened(process.network, edit):
            rises.append(squared_errors(process, shown.x0, noise, shown.cond) - whole)
    rise = torch.stack(rises)  # (E, B)
    order = rise.mean(1).argsort(descending=True)
    error = rise.std(1) / images**0.5
    arrays = {"cost": rise.mean(1)[order], "error": error[order], "loss": whole.mean()}
    return Costs([edits[i] for i in order], images, "examples" if source == "data" else "generated", arrays)


@torch.no_grad()
def squared_errors(
    process: Process, x0: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], cond: dict[str, Tensor] | None
) -> Float[Tensor, " B"]:
    """The mean squared error of the prediction for each image, a mean over ``TIMES``, in ``widest_float``."""
    total = torch.zeros(len(x0), dtype=widest_float(x0.device), device=x0.device)
    for value in TIMES:
        t = torch.full((len(x0),), value, dtype=x0.dtype, device=x0.device)
        prediction = process.predict(process.q_sample(x0, t, noise), t, cond)
        error = prediction - compose(process.target, process.path(t), x0, noise)
        total += error.to(total.dtype).square().flatten(1).mean(1)
    return total / len(TIMES)

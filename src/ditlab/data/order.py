"""Which sample comes when: a pure function of (seed, position), so that a run's place in its data is one integer."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ditlab.chance import generator_for


def sample_order(seed: int, position: int, count: int, size: int) -> Int[Tensor, " count"]:
    """Indices of the ``count`` samples that follow after ``position`` samples were seen.

    Each epoch visits every one of the ``size`` samples once, in an order of its own; a batch may span epochs.
    """
    indices = []
    while count > 0:
        epoch, offset = divmod(position, size)
        permutation = torch.randperm(size, generator=generator_for(seed, "order", epoch))
        piece = permutation[offset : offset + count]
        indices.append(piece)
        position += len(piece)
        count -= len(piece)
    return torch.cat(indices)

"""How fast the machine multiplies matrices: the limit that everything is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ditlab.bench.rounds import Work, seconds
from ditlab.bench.sizes import Size
from ditlab.networks.layers import Linear

SQUARES = {"cpu": (256, 512, 1024, 2048, 4096), "mps": (2048, 4096), "cuda": (4096, 8192, 16384)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIALS = 3
MOST_TURNS = 16  # most turns that a product may take
TELLING = 1e-3  # least seconds of a product whose rate predicts that of larger ones
TORCH, ONEDNN = "torch.nn.functional.linear", "ditlab.networks.layers.Linear"


class Product(NamedTuple):
    """(m, k) · (k, n)."""

    m: int
    k: int
    n: int

    @property
    def operations(self) -> int:
        """Floating-point operations: m·k·n products and sums."""
        return 2 * self.m * self.k * self.n


def products_of(sizes: Iterable[Size], device: torch.device) -> list[Product]:
    """Products of square matrices, and of the linear layers of these sizes."""
    found = [Product(side, side, side) for side in SQUARES[device.type]]
    for size in sizes:
        rows, dim = size.part * size.tokens, size.dim
        found += [Product(rows, dim, 3 * dim), Product(rows, dim, 4 * dim), Product(rows, 4 * dim, dim)]
    return list(dict.fromkeys(found))


def multipliers(dtype: str, device: torch.device) -> list[str]:
    """Who computes a product: torch, and our layer if it may use another library."""
    return [TORCH, ONEDNN] if (dtype, device.type) == ("fp32", "cpu") else [TORCH]


def work_of(product: Product, dtype: str, device: torch.device, by: str = TORCH) -> Work:
    """The product as a linear layer computes it without gradients."""
    left = torch.randn(product.m, product.k, device=device, dtype=DTYPES[dtype])
    layer = Linear(product.k, product.n, bias=False, device=device, dtype=DTYPES[dtype]).requires_grad_(False)
    if by == ONEDNN:
        return torch.no_grad()(lambda: layer(left))
    return torch.no_grad()(lambda: F.linear(left, layer.weight))


class Ceiling(NamedTuple):
    """The fastest product, its operations a second, and who computed it."""

    product: Product
    flops_per_s: float
    by: str = TORCH

    def work(self, dtype: str, device: torch.device) -> Work:
        """The product, to be timed again."""
        return work_of(self.product, dtype, device, self.by)


def find_ceiling(products: Iterable[Product], dtype: str, device: torch.device, turn: float) -> Ceiling:
    """Find the fastest of these products, leaving out those expected to take longer than 16 turns.

    Args:
        products: candidates.
        dtype: "fp32" (as torch multiplies it by default) or "bf16".
        device: device to measure.
        turn: seconds to measure each candidate for, three times.
    """
    best, told = Ceiling(Product(1, 1, 1), 0.0), math.inf
    for product in sorted(products, key=lambda product: product.operations):
        if product.operations > MOST_TURNS * turn * told:
            continue
        for by in multipliers(dtype, device):
            work = work_of(product, dtype, device, by)
            work()
            took = seconds(work, 1, device)
            if took >= TELLING:
                told = product.operations / took
            calls = max(1, round(turn / took))
            for _ in range(TRIALS):
                rate = product.operations / seconds(work, calls, device)
                best = max(best, Ceiling(product, rate, by), key=lambda ceiling: ceiling.flops_per_s)
    return best

"""Attention alone on CUDA: the fastest kernel for a head width, and whether padding the heads pays off.

DiT-XL's heads have width 72. Flash kernels pad to 80, 96 or 128, and refuse widths that are not multiples of 8. Padding
queries, keys and values with zeros does not change the result, if the scale stays that of 72.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditlab.bench.rounds import Work, interleaved, median, ratios
from ditlab.bench.sizes import Size
from ditlab.core.errors import first_line

BACKENDS = {
    "chosen by torch": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PADDED = (80, 96, 128)


class Kernel(NamedTuple):
    """A kernel, and the padded width of the heads."""

    backend: str
    width: int


def attention_work(kernel: Kernel, size: Size, device: torch.device) -> Work:
    """Forward and backward of attention in bf16 on one part of a batch, including padding and cutting."""
    own = size.dim // size.heads
    shape = (size.part, size.heads, size.tokens, own)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape, device=device, dtype=torch.bfloat16)
    backend = BACKENDS[kernel.backend]

    def attend() -> Tensor:
        if kernel.width == own:
            return F.scaled_dot_product_attention(q, k, v)
        wide_q, wide_k, wide_v = (F.pad(tensor, (0, kernel.width - own)) for tensor in (q, k, v))
        return F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=own**-0.5)[..., :own]

    def work() -> None:
        if backend is None:
            out = attend()
        else:
            with sdpa_kernel(backend):
                out = attend()
        torch.autograd.grad(out, (q, k, v), gradient)

    return work


def measure_attention(size: Size, device: torch.device, rounds: int, turn: float) -> list[dict[str, Any]]:
    """A row for each kernel and width; ``ratio`` is the speed-up over torch's own choice without padding."""
    own, turns, refused = size.dim // size.heads, {}, []
    for width in (own, *(width for width in PADDED if width > own)):
        for backend in BACKENDS:
            kernel = Kernel(backend, width)
            work = attention_work(kernel, size, device)
            try:
                work()
            except RuntimeError as error:
                refused.append({"backend": backend, "width": width, "refused": first_line(error)})
                continue
            turns[kernel] = work
    measured = interleaved(turns, rounds, turn, device)
    plain = measured[Kernel("chosen by torch", own)]
    rows = []
    for kernel, times in measured.items():
        ratio = ratios(plain, times)
        figures = {"seconds": median(times).value, "ratio": ratio.value, "ratio_interval": [ratio.low, ratio.high]}
        rows.append({**kernel._asdict(), **figures})
    return rows + refused

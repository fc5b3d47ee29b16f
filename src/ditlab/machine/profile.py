"""Which kernels and precisions are fastest on this processor, measured in a second or two and cached.

Everything runs on one thread, and candidates take turns, so that other work on the machine slows them equally.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ditlab.core import disk
from ditlab.core.errors import Caution, InputError
from ditlab.core.malloc import freed_memory_kept
from ditlab.core.newton_schulz import orthogonal_by_gram, orthogonal_by_matrix
from ditlab.machine.threads import limit, threads
from ditlab.networks.kernels import ONEDNN, Kernels, written_out

VERSION = 1  # of the measurements
UNKEPT = "the profile of this processor cannot be cached, so each process measures it: set DITLAB_CACHE to a folder"
TURN, TURNS = 0.05, 7  # seconds after which a comparison ends, and its most turns
CLEARLY = 1.1  # speed-up required of a choice that costs precision or memory
SIDES = ((16, 64, 64), (128, 64, 64), (512, 64, 64), (2048, 64, 64), (2048, 64, 256), (2048, 384, 384))  # by size
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # emulate another processor

Work = Callable[[], object]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Profile:
    """Speed-ups of one implementation over another on this processor, on one thread.

    ``written_out`` is that of attention in three steps over the fused kernel, with 16 and 256 tokens: "16", "256"
    without gradients, "16 training" with them, and "16 bf16", "256 bf16" with them under autocast.
    """

    processor: str  # its name, and the capability that torch detects
    threads: int  # how many it runs at once (threads.limit)
    bf16: float  # products (2048, 64) · (64, 256) in bf16 over fp32
    muon_bf16: float  # Muon's iteration in bf16 over the iteration on Gram matrices in fp32
    onednn: dict[str, float]  # fp32 products by oneDNN over MKL, by number of multiply-accumulates
    written_out: dict[str, float]
    seconds: float  # that the measurement took

    @property
    def precision(self) -> str:
        """The faster precision of a network's products."""
        return "bf16" if self.bf16 > CLEARLY else "fp32"

    @property
    def muon(self) -> str:
        """The faster precision of Muon's products."""
        return "bf16" if self.muon_bf16 > CLEARLY else "fp32"

    @property
    def kernels(self) -> Kernels:
        """The faster kernels."""
        return Kernels(
            onednn_from=self._onednn_from(),
            written_out=self._keys("16", "256"),
            written_out_training=self._keys("16 training"),
            written_out_bf16=self._keys("16 bf16", "256 bf16"),
        )

    def _onednn_from(self) -> int | None:
        """The size from which using oneDNN gains the most in total; None if it never gains."""
        sizes = sorted(map(int, self.onednn))
        logs = [math.log(max(self.onednn[str(size)], 1e-9)) for size in sizes]
        gains = {size: sum(logs[i:]) for i, size in enumerate(sizes)}
        best = max(gains, key=gains.__getitem__, default=None)
        return best if best is not None and gains[best] > 0 else None

    def _keys(self, few: str, many: str | None = None) -> int:
        """Most keys for which attention is written out: 512, 32 or none. Without bf16 some entries are missing."""
        if many is not None and self.written_out.get(many, 0) > CLEARLY:
            return 512
        return 32 if self.written_out.get(few, 0) > 1 else 0

    def lines(self) -> Iterator[str]:
        """The profile as text."""
        yield f"{self.processor}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"
        yield f"products: {in_words(self.bf16, 'bf16')}; Muon: {in_words(self.muon_bf16, 'bf16')}"
        yield "fp32 products, oneDNN over MKL, by multiply-accumulates: " + _listed(self.onednn)
        yield "attention in three steps over the fused kernel, by tokens: " + _listed(self.written_out)
        chosen = self.kernels
        onednn = "never" if chosen.onednn_from is None else f"from {chosen.onednn_from:,} multiply-accumulates on"
        yield f"chosen: {self.precision} products, Muon in {self.muon}, oneDNN {onednn}"
        drawing, training, in_bf16 = map(_up_to, chosen[1:])
        yield f"attention in three steps: {drawing} in sampling, {training} in fp32 training, {in_bf16} in bf16"


def _up_to(tokens: int) -> str:
    return f"up to {tokens} tokens" if tokens else "never"


def in_words(gain: float, name: str) -> str:
    """A precision's speed compared with fp32."""
    if gain == 0:
        return f"{name} is not available"
    return (
        f"{name} is {gain:.1f} times as fast as fp32"
        if gain >= 1
        else f"{name} is {1 / gain:.1f} times slower than fp32"
    )


def _listed(gains: dict[str, float]) -> str:
    return ", ".join(f"{name}: {gain:.2f} ×" for name, gain in gains.items())


@cache
def profile() -> Profile:
    """This machine's profile, from the cache or measured now. Without a cache, every process measures it."""
    if (kept := _kept()) is not None:
        return kept
    found = measure()
    if not keep(found):
        warnings.warn(UNKEPT, Caution, stacklevel=2)
    return found


def keep(found: Profile) -> bool:
    """Write a profile into the cache; False if that is impossible."""
    try:
        disk.cache_for("machine")
        disk.write_atomically(_file(), lambda path: path.write_text(json.dumps(asdict(found), indent=1) + "\n"))
    except (OSError, InputError):
        return False
    return True


def _kept() -> Profile | None:
    try:
        found = Profile(**json.loads(_file().read_text()))
        return found if found.kernels and found.precision else None
    except (OSError, InputError, ValueError, TypeError, AttributeError, KeyError):
        return None


def _file() -> Path:
    """The cached file, named after everything that decides which choice is fast."""
    variables = [os.environ.get(name) for name in VARIABLES]
    facts = [VERSION, _name(), torch.__version__, limit(), *variables]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return disk.cache_folder() / "machine" / f"{digest}.json"


def cpuinfo(key: str) -> str | None:
    """An entry of Linux's /proc/cpuinfo for the first processor, or None."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def processor() -> str:
    """The processor's name."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def _name() -> str:
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"


def measure() -> Profile:
    """Measure this machine's processor, which takes a second or two."""
    begun = time.perf_counter()
    with (
        threads(1),
        freed_memory_kept("cpu"),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        bf16 = _products_in_bf16()
        return Profile(
            processor=_name(),
            threads=limit(),
            bf16=bf16,
            muon_bf16=_muon_in_bf16(),
            onednn=dict(_onednn()),
            written_out=dict(_attention(bf16 > CLEARLY)),
            seconds=round(time.perf_counter() - begun, 2),
        )


def _gain(candidate: Work, other: Work) -> float:
    """Speed-up of a candidate over another, by their fastest calls; 0 if the candidate fails."""
    try:
        candidate()
    except RuntimeError:  # the library does not support this product here
        return 0.0
    other()
    quickest, begun = [float("inf"), float("inf")], time.perf_counter()
    for turn in range(TURNS):
        for i, work in enumerate((candidate, other)):
            before = time.perf_counter()
            work()
            quickest[i] = min(quickest[i], time.perf_counter() - before)
        if turn and time.perf_counter() - begun > TURN:
            break
    return round(quickest[1] / quickest[0], 3)


def _products_in_bf16() -> float:
    x, w = torch.randn(2048, 64), torch.randn(256, 64)
    x_bf16, w_bf16 = x.bfloat16(), w.bfloat16()
    return _gain(lambda: F.linear(x_bf16, w_bf16), lambda: F.linear(x, w))


def _muon_in_bf16() -> float:
    matrices, options = [torch.randn(64, 256) for _ in range(4)], ((3.4445, -4.775, 2.0315), 5, 1e-7)
    return _gain(lambda: orthogonal_by_matrix(matrices, *options), lambda: orthogonal_by_gram(matrices, *options))


def _onednn() -> Iterator[tuple[str, float]]:
    if not ONEDNN:
        return
    for rows, width, out in SIDES:
        x, w, b = torch.randn(rows, width), torch.randn(out, width), torch.randn(out)

        by_onednn = partial(torch.ops.mkldnn._linear_pointwise, x, w, b, "none", [], "")
        repeats = max(1, 512 // rows)  # so that the clock resolves small products
        gain = _gain(partial(_repeat, by_onednn, repeats), partial(_repeat, partial(F.linear, x, w, b), repeats))
        yield str(rows * width * out), gain


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def _attention(in_bf16: bool) -> Iterator[tuple[str, float]]:
    fused = F.scaled_dot_product_attention
    for tokens, batch, heads, width in ((16, 128, 4, 16), (256, 2, 6, 64)):
        qkv = torch.randn(batch, tokens, 3, heads, width)
        with torch.no_grad():
            yield str(tokens), _gain(_forward(written_out, qkv), _forward(fused, qkv))
        if tokens == 16:
            yield f"{tokens} training", _gain(_differentiated(written_out, qkv), _differentiated(fused, qkv))
        if in_bf16:
            yield f"{tokens} bf16", _gain(_differentiated(written_out, qkv.bfloat16()), _differentiated(fused, qkv))


def _forward(attention: Attention, qkv: Tensor) -> Callable[[], Tensor]:
    """Attention as ``networks.layers.Attention`` computes it."""

    def work() -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return attention(q, k, v).transpose(1, 2).flatten(2)

    return work


def _differentiated(attention: Attention, qkv: Tensor) -> Work:
    """Forward and backward."""
    forward, given = _forward(attention, qkv.requires_grad_()), torch.ones_like(qkv[:, :, 0].flatten(2))

    def work() -> None:
        torch.autograd.grad(forward(), qkv, given)

    return work

"""Peak memory of a training step or a sampling, measured in a process of its own.

Two figures, in bytes:

    tensors     the most that tensors held at a time, weights and optimizer included: what torch's allocator was asked
                for. On CUDA ``max_memory_allocated``; on a CPU the running sum of the profiler's allocations during one
                more call, above what is held before it. The same in every run, and blind to what libraries take
                for themselves.
    resident    what the process took from the machine: on CUDA ``max_memory_reserved``; on Linux the high-water mark
                of its resident memory above where it stood before the network was built, and after the same was
                done with the tiniest network, compiled if the other is, so that imports and the compiler do not
                count. Huge pages do.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ditlab.bench.apart import KILLED
from ditlab.bench.contestants import contestant
from ditlab.bench.rounds import Work, is_out_of_memory, settle
from ditlab.bench.sampling import default_sampling, plain_samplings
from ditlab.bench.sizes import TINY, Size, Task, size_of
from ditlab.bench.training import Entry, PlainLoop, default_step, resolved_default, use_measured_kernels

BETWEEN = 7_654_321  # bytes
CALLS = {"train": 6, "sample": 1}  # a default step has its huge pages after the fifth


def peak_memory(entry: Entry, task: Task, size: Size, device: torch.device) -> dict[str, int]:
    """Start a process that does it, and return what it found.

    Raises:
        MemoryError: there was not enough.
        RuntimeError: it failed; the message is the end of what it said.
    """
    threads = torch.get_num_threads()
    asked = {"entry": entry, "task": task, "size": asdict(size), "device": str(device), "threads": threads}
    command = [sys.executable, "-m", "ditlab.bench.memory", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr.strip() or "killed").splitlines()[-1]
    if done.returncode == KILLED or (done.returncode and is_out_of_memory(RuntimeError(said))):
        raise MemoryError(said)
    if done.returncode:
        raise RuntimeError(f"peak memory of {' '.join(entry)}: {done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(entry: Entry, task: Task, size: Size, device: torch.device) -> dict[str, int]:
    """The figures, of this process."""
    compiled = entry.is_our_default and resolved_default(size, device).compile is True
    _work(entry, task, size_of(TINY, device.type), device, compiled)()  # what is imported and made ready once
    gc.collect()
    before = resident(reset=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    work = _work(entry, task, size, device, compiled)
    for _ in range(CALLS[task]):
        work()
    settle(device)
    if device.type == "cuda":
        return {
            "tensors": torch.cuda.max_memory_allocated(device),
            "resident": torch.cuda.max_memory_reserved(device),
        }
    found = {} if before is None else {"resident": (resident(peak=True) or before) - before}
    return {"tensors": tensors_at_peak(work), **found}


def _work(entry: Entry, task: Task, size: Size, device: torch.device, compiled: bool) -> Work:
    """That entry alone; a default step compiled or not as said, for the tiniest network would not be by itself."""
    if task == "sample":
        return default_sampling(size, device) if entry.is_our_default else plain_samplings([entry], size, device)[entry]
    if entry.is_our_default:
        return default_step(size, device, compiled)
    return PlainLoop(contestant(entry.contestant, size), size, device).step(entry.way, entry.dtype)


def tensors_at_peak(work: Work) -> int:
    """The most bytes that tensors in the memory of a CPU hold at a time during a call, after another one.

    The profiler knows the size of what is freed only if it saw it allocated, as it did then in the call before: the
    gradients of the step before, for example. Between the two calls stands a tensor of a size that nothing else has.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
        gc.collect()
        held = bytes_of_tensors()
        torch.empty(BETWEEN, dtype=torch.uint8)
        work()
    recorded = profiler.profiler.kineto_results.events()
    ordered = sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]")
    changes = [change for _, change in ordered]
    most = now = 0
    for change in changes[changes.index(-BETWEEN) + 1 :]:
        now += change
        most = max(most, now)
    return held + most


def bytes_of_tensors() -> int:
    """What all tensors of this process hold, gradients included, each storage once."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def resident(*, peak: bool = False, reset: bool = False) -> int | None:
    """Bytes of resident memory of this process, now or at its peak since the reset; None where Linux does not tell."""
    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None
    if reset:
        try:
            marks.write_text("5")  # proc(5): forget the high-water mark
        except OSError:
            return None
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Measure what the argument describes, and print the figures."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    use_measured_kernels(torch.device("cpu"))
    found = measure(Entry(*asked["entry"]), asked["task"], Size(**asked["size"]), torch.device(asked["device"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

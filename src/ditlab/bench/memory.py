"""Peak memory of a training step or a sampling, measured in its own process.

Two figures, in bytes:

    tensors     peak of all tensors together, weights and optimizer included. On CUDA ``max_memory_allocated``; on a CPU
                the tensors before one more call, and the running sum of the profiler's allocations in it. The same in
                every run, but without the libraries' own memory.
    resident    memory of the process: on CUDA ``max_memory_reserved``; on Linux the high-water mark of its resident
                memory, minus that before the network was built. Before that, the same is done with the tiniest network
                (compiled if the other is), so that imports and the compiler do not count. Huge pages do.
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
CALLS = {"train": 6, "sample": 1}  # a default step has its huge pages after five calls


def peak_memory(entry: Entry, task: Task, size: Size, device: torch.device) -> dict[str, int]:
    """Measure in a new process.

    Raises:
        MemoryError: out of memory.
        RuntimeError: it failed; the message ends with its output.
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
    """Measure in this process."""
    compiled = entry.is_our_default and resolved_default(size, device).compile is True
    _work(entry, task, size_of(TINY, device.type), device, compiled)()  # imports and initialises everything
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
    """The work of an entry; ``compiled`` holds for default steps, as the tiniest network would not be by itself."""
    if task == "sample":
        return default_sampling(size, device) if entry.is_our_default else plain_samplings([entry], size, device)[entry]
    if entry.is_our_default:
        return default_step(size, device, compiled)
    return PlainLoop(contestant(entry.contestant, size), size, device).step(entry.way, entry.dtype)


def tensors_at_peak(work: Work) -> int:
    """Peak of the bytes that tensors hold in a CPU's memory during a call, after another call.

    The profiler only knows the size of freed memory if it saw the allocation, for example of the last step's gradients,
    hence the first call. A tensor of a unique size marks the boundary.
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
    """Bytes of all tensors of this process, including gradients, each storage once."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def resident(*, peak: bool = False, reset: bool = False) -> int | None:
    """Bytes of resident memory of this process, now or the peak since the reset; None if Linux does not tell."""
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
    """Measure what the argument describes, and print the result."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    use_measured_kernels(torch.device("cpu"))
    found = measure(Entry(*asked["entry"]), asked["task"], Size(**asked["size"]), torch.device(asked["device"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Memory that steps use again and again stays with the process for as long as they are taken, and no longer."""

import subprocess
import sys
import textwrap

import pytest

from ditlab.core import malloc as memory


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is told so on Linux alone")
def test_freed_memory_is_kept_within_and_given_back_after():
    """In a process of its own, for malloc's settings are of a process."""
    script = """
        import resource
        import torch
        from ditlab.core.malloc import freed_memory_kept

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(2**24)  # 64 MiB: more than glibc keeps by itself, whatever else lies in its heap
            return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

        faults()
        usual = faults()
        with freed_memory_kept("cpu"):
            with freed_memory_kept("cpu"):
                faults()
            assert faults() < 10, "the inner block has ended, the outer one has not"
            pages = [int(open("/proc/self/statm").read().split()[1])]
        pages.append(int(open("/proc/self/statm").read().split()[1]))
        print(usual, *pages)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    usual, kept, after = map(float, done.stdout.split())
    assert after < kept, "free pages go back"
    assert usual > 10, "malloc keeps memory by itself here, and this test shows nothing"


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    with memory.freed_memory_kept("cpu"):
        pass


def test_of_a_gpu_s_work_malloc_is_told_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(memory, "_set", told.append)
    with memory.freed_memory_kept("cuda"):
        pass
    assert told == []
    with memory.freed_memory_kept("cpu"):
        pass
    assert told == [memory.KEPT, memory.USUAL]

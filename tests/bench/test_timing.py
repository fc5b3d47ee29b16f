"""Rounds, medians, and the memory of a process of its own."""

import dataclasses
import math
import signal
import time

import pytest
import torch
from scipy.stats import binom

from ditlab.bench import memory
from ditlab.bench.apart import apart
from ditlab.bench.attention import Kernel, attention_work, measure_attention
from ditlab.bench.machine import machine
from ditlab.bench.rounds import coverage, interleaved, median, ratios
from ditlab.bench.rows import QUICK, Table
from ditlab.bench.sampling import evaluations, sampling_turns
from ditlab.bench.sizes import size_of
from ditlab.bench.table import lines
from ditlab.bench.training import (
    Entry,
    PlainLoop,
    contestant,
    default_step,
    entries_of,
    resolved_default,
    training_turns,
)

CPU = torch.device("cpu")
DEFAULTS = [Entry("diffusers", "default", "fp32"), Entry("ditlab", "default", "fp32")]


@pytest.mark.parametrize("n", range(6, 40))
def test_the_interval_of_a_median_covers_it_in_95_percent(n):
    """The true median is below the k-th of n values with the probability of fewer than k heads in n throws."""
    low, high = (int(v) for v in median(range(n))[1:])
    assert low + high == n - 1
    covered = 1 - 2 * binom.cdf(low, n, 0.5)
    narrower = 1 - 2 * binom.cdf(low + 1, n, 0.5)
    assert narrower < 0.95 <= covered
    assert coverage(n) == pytest.approx(covered)


def test_few_values_have_all_of_them_as_interval():
    assert median([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == (2.0, 1.0, 3.0)


def test_rounds_take_turns_and_run_backwards_every_other_time():
    order = []
    turns = {name: lambda name=name: order.append(name) for name in "abc"}
    measured = interleaved(turns, 3, 0.0, CPU, warm_up=1)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in measured.items()} == {"a": 3, "b": 3, "c": 3}


def test_seconds_are_those_of_one_call():
    measured = interleaved({"sleep": lambda: time.sleep(0.004)}, 2, 0.02, CPU, warm_up=2)
    assert min(measured["sleep"]) >= 0.004


def test_tensors_at_peak_counts_what_is_held_at_a_time():
    held = torch.zeros(2**20)  # 4 MiB before
    size = held.untyped_storage().nbytes()

    def work():
        first = held + 1
        second = first + 1
        del first
        return second + 1  # two beside the one that was held

    before = memory.bytes_of_tensors()
    assert before + 2 * size <= memory.tensors_at_peak(work) < before + 2 * size + 100  # a few bytes are the ones


def test_what_the_call_before_left_is_known_when_it_goes():
    """Gradients are freed at the beginning of a step: not to count that would count them twice."""
    left = {}

    def work():
        left.clear()
        left["gradient"] = torch.zeros(2**20)

    work()
    before = memory.bytes_of_tensors()
    assert before <= memory.tensors_at_peak(work) < before + 100


def test_bytes_of_tensors_counts_each_storage_once():
    before = memory.bytes_of_tensors()
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.grad = torch.zeros(1000)
    views = [weight.detach()[:10], weight.detach().reshape(10, 100)]
    assert memory.bytes_of_tensors() - before == 8000
    del views


def test_memory_of_a_process_of_its_own():
    size = size_of("lesson", "cpu")
    entry = Entry("ditlab", "eager", "fp32")
    found = memory.peak_memory(entry, "train", size, CPU)
    weights = 4 * sum(p.numel() for p in contestant("ditlab", size).network.parameters())
    assert found["tensors"] > 4 * weights  # the weights, their gradients and two moments of AdamW, and activations
    assert 0 < found["resident"] < 2**30


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_plain_step_learns(dtype):
    torch.manual_seed(0)
    size = size_of("tiny", "cpu")
    loop = PlainLoop(contestant("ditlab", size), size, CPU)
    before = [p.detach().clone() for p in loop.entry.network.parameters()]
    work = loop.step("eager", dtype)
    for _ in range(3):
        work()
    moved = [not torch.equal(a, b) for a, b in zip(before, loop.entry.network.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_a_default_step_is_one_of_the_loop():
    work = default_step(size_of("tiny", "cpu"), CPU)
    assert work().step == 1
    assert work().step == 2


def test_all_ask_their_network_equally_often():
    asked = {}
    size = size_of("tiny", "cpu")
    counted = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: asked.update({type(module).__name__: asked.get(type(module).__name__, 0) + 1})
    )
    try:
        entries = entries_of(["diffusers", "encoder", "ditlab"], size, ["eager"], CPU)
        for entry, work in sampling_turns(entries, size, CPU).items():
            asked.clear()
            out = work()
            assert torch.isfinite(out).all()
            assert out.shape == (size.batch, *size.shape)
            name = {"diffusers": "DiTTransformer2DModel", "encoder": "PlainDenoiser"}.get(entry.contestant, "DiT")
            assert asked[name] == evaluations(size)
    finally:
        counted.remove()
    assert evaluations(size) == 2 * size.steps - 1


def test_the_table_has_a_line_for_each_row():
    row = {
        "contestant": "ditlab", "way": "eager", "dtype": "fp32", "batch": 4,
        "seconds": 0.01, "images_per_s": 400.0, "flops_per_s": 2e9, "share_of_ceiling": 0.5,
        "ratio": 2.0, "ratio_interval": [1.5, 2.5], "ratio_as_it_comes": 2.0, "ratio_as_it_comes_interval": [1.5, 2.5],
    }  # fmt: skip
    figures = {
        "machine": machine(),
        "ceilings": {"fp32": {"flops_per_s": 4e9, "product": [1, 2, 3], "by": "torch"}},
        "ceilings_in_rounds": {"tiny": {"train": {}, "sample": {}}},
        "sizes": {"tiny": {"batch": 4}},
        "speed": {"tiny": {"train": {"ditlab eager fp32": row}, "sample": {"ditlab eager fp32": row}}},
        "memory": {"tiny": {"train": {"ditlab eager fp32": {"tensors": 2**21}}, "sample": {}}},
        "attention": [
            {"backend": "flash", "width": 72, "seconds": 1e-5, "ratio": 1.0, "ratio_interval": [1.0, 1.0]},
            {"backend": "cudnn", "width": 72, "refused": "no kernel"},
        ],
    }
    printed = "\n".join(lines(figures))
    assert printed.count("ditlab eager fp32  10.0       400        2      50 %  2.00 [1.50, 2.50]") == 2
    assert "MiB resident" not in printed
    assert "not supported" in printed


def test_no_name_of_the_machine_is_told():
    told = machine()
    assert not {"host", "hostname", "node"} & set(told)
    assert told["cores"] >= 1
    assert told["memory_gib"] > 0


@pytest.mark.cuda
def test_training_and_sampling_on_cuda():
    device = torch.device("cuda")
    size = size_of("tiny", "cuda")
    from ditlab.bench.ceiling import find_ceiling, products_of

    ceilings = {dtype: find_ceiling(products_of([size], device), dtype, device, 0.01) for dtype in ("fp32", "bf16")}
    for task in ("train", "sample"):
        rows = Table(size, task, ["encoder", "ditlab"], ["eager"], ceilings, device, QUICK).speed()
        for row in rows.values():
            assert math.isfinite(row["share_of_ceiling"])
    found = memory.peak_memory(Entry("ditlab", "eager", "bf16"), "train", size, device)
    assert 0 < found["tensors"] <= found["resident"]


@pytest.mark.cuda
def test_padding_the_head_changes_no_number():
    device, size = torch.device("cuda"), size_of("XL/2", "cuda")
    q, k, v = (torch.randn(2, 16, 64, 72, device=device, dtype=torch.bfloat16) for _ in range(3))
    wide = [torch.nn.functional.pad(x, (0, 56)) for x in (q, k, v)]
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    padded = torch.nn.functional.scaled_dot_product_attention(*wide, scale=72**-0.5)[..., :72]
    torch.testing.assert_close(plain, padded, rtol=2e-2, atol=2e-2)
    attention_work(Kernel("chosen by torch", 128), size, device)()
    rows = measure_attention(size, device, 3, 0.01)
    assert len(rows) == 16
    assert all(row["ratio"] > 0 for row in rows if "refused" not in row)


def test_a_slow_table_ends_after_its_least_rounds():
    turns = {"sleep": lambda: time.sleep(0.002)}
    assert len(interleaved(dict(turns), 9, 0.0, CPU, warm_up=1, budget=(3, 0.001))["sleep"]) == 3
    assert len(interleaved(dict(turns), 9, 0.0, CPU, warm_up=1, budget=(3, 60.0))["sleep"]) == 9


def test_what_memory_runs_out_for_is_refused_in_any_round():
    calls = []

    def grows():
        calls.append(0)
        if len(calls) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    refused = {}
    measured = interleaved({"grows": grows, "stays": lambda: None}, 4, 0.0, CPU, warm_up=2, refused=refused)
    assert list(measured) == ["stays"]
    assert len(measured["stays"]) == 4
    assert "can't allocate memory" in refused["grows"]
    with pytest.raises(RuntimeError, match="allocate"):
        interleaved({"grows": grows}, 4, 0.0, CPU)
    with pytest.raises(RuntimeError, match="a fault"):
        interleaved({"faulty": _fail}, 4, 0.0, CPU, refused=refused)


def _fail():
    raise RuntimeError("a fault")


@pytest.mark.parametrize("task", ["train", "sample"])
def test_compiled_rows_are_of_ours_and_the_peer_in_one_dtype(task):
    names, size = ["diffusers", "encoder", "ditlab"], size_of("tiny", "cpu")
    build = {"train": training_turns, "sample": sampling_turns}[task]
    entries = [*entries_of(names, size, ["eager", "compiled"], CPU), *DEFAULTS]
    turns = build(entries, size, CPU)
    compiled = [entry for entry in turns if entry.way == "compiled"]
    assert [entry.contestant for entry in compiled] == ["diffusers", "ditlab"]
    assert len({entry.dtype for entry in compiled}) == 1
    assert list(turns) == entries


def test_the_baseline_of_peak_memory_is_compiled_if_the_row_is(monkeypatch):
    asked, size = [], size_of("lesson", "cpu")

    def work(entry, task, size, device, compiled):
        asked.append((size.name, compiled))
        return lambda: torch.zeros(10)

    monkeypatch.setattr(memory, "_work", work)
    compiled = resolved_default(size, CPU).compile
    memory.measure(Entry("ditlab", "default", "fp32"), "train", size, CPU)
    memory.measure(Entry("ditlab", "eager", "fp32"), "train", size, CPU)
    assert asked == [("tiny", compiled), ("lesson", compiled), ("tiny", False), ("lesson", False)]


def test_a_default_step_is_compiled_as_it_is_told(monkeypatch):
    compiled = []
    monkeypatch.setattr("ditlab.training.loop.compile_network", lambda *told: compiled.append(told))
    default_step(size_of("tiny", "cpu"), CPU, False)
    assert compiled == []
    default_step(size_of("tiny", "cpu"), CPU, True)
    assert len(compiled) == 1


def test_the_largest_is_measured_in_bf16_alone():
    size = size_of("XL/2", "cuda")
    assert {entry.dtype for entry in entries_of(["diffusers", "ditlab"], size, ["eager"], CPU)} == {"bf16"}


@pytest.mark.parametrize("task", [pytest.param("train", marks=pytest.mark.slow), "sample"])
def test_defaults_have_processes_of_their_own(task):
    size = size_of("tiny", "cpu")
    with apart(DEFAULTS, task, size) as turns:
        processes = [work.timed.__self__.process for work in turns.values()]
        measured = interleaved(turns, 2, 0.0, CPU, warm_up=2)
        assert [process.poll() for process in processes] == [None, None]
    assert list(measured) == DEFAULTS
    assert all(0 < seconds < 60 for times in measured.values() for seconds in times)
    assert None not in [process.returncode for process in processes]


def test_what_a_process_has_no_memory_for_is_told():
    size = dataclasses.replace(size_of("tiny", "cpu"), batch=2**50, part=2**50)
    with apart([Entry("encoder", "eager", "fp32")], "train", size) as turns:
        (work,) = turns.values()
        for _ in range(2):
            with pytest.raises(MemoryError, match="memory"):
                work()


@pytest.mark.slow
def test_a_process_that_ends_is_told_from_one_that_memory_ran_out_for():
    entry, size = Entry("encoder", "eager", "fp32"), size_of("tiny", "cpu")
    for signal_, error in ((signal.SIGKILL, MemoryError), (signal.SIGSEGV, RuntimeError)):
        with apart([entry], "train", size) as turns:
            process = turns[entry].timed.__self__.process
            turns[entry]()
            process.send_signal(signal_)
            for _ in range(2):
                with pytest.raises(error, match="encoder eager fp32 ended"):
                    turns[entry]()

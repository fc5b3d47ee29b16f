"""What a GPU cannot do is not asked of it, and no step makes host and GPU wait: on a GPU that is not there."""

from collections import Counter

import pytest
import torch

import ditlab
from ditlab.config import DDPMConfig, FlowConfig, MeanFlowConfig
from ditlab.core.device import moved
from ditlab.core.registry import SOLVERS
from ditlab.core.rng import generator_for
from ditlab.diffusion.guidance import ClassifierFree, Interval, Rescaled
from ditlab.diffusion.likelihood import bits_per_dim
from ditlab.diffusion.solvers import DormandPrince, EulerMaruyama
from ditlab.diffusion.variance import log_ndtr
from ditlab.lab.lens.ablations import squared_errors
from ditlab.runs.build import build_dataset
from ditlab.training.loop import TrainState, train
from tests.device import DEVICE, HOST, device, has_kernel
from tests.diffusion.test_process import shaken
from tests.training.test_fit import tiny

SHAPE, COUNT = (2, 8, 8), 4
LABELS = torch.tensor([0, 1, 2, 1])
NOISE = f"a copy of {(COUNT, *SHAPE)} to {DEVICE.type}"
READ = "a number is read"


def dit(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ditlab.DiT(SHAPE[1:], 2, SHAPE[0], dim=16, depth=1, heads=2, num_classes=3, **options)
    return shaken(made)


PROCESSES = {
    "linear": lambda: ditlab.FlowMatching(dit()),
    "cosine": lambda: ditlab.FlowMatching(dit(), path="cosine"),
    "eps": lambda: ditlab.DDPM(dit()),
    "x0": lambda: ditlab.DDPM(dit(), target="x0"),
    "variance": lambda: ditlab.DDPM(dit(learned_variance=True)),
    "meanflow": lambda: ditlab.MeanFlow(dit(interval=True), flow_share=0.5),
}
NOISY = {"ancestral", "euler-maruyama", "sbdm"}
STEPPING = {name: SOLVERS[name]() for name in sorted(set(SOLVERS.own) - {"dopri5", "ddim"})} | {
    "sbdm": EulerMaruyama("sbdm")
}
TOGETHER = [("linear", solver) for solver in STEPPING]
TOGETHER += [(process, solver) for process in PROCESSES if process != "linear" for solver in ("heun", "ancestral")]
RULES = {
    "classifier-free": 2.0,
    "first channel": ClassifierFree(2.0, 1),
    "interval": Interval(3.0, 0.2, 0.8),
    "rescaled": Rescaled(3.0, 0.7),
}


def sampled(process, there, **options):
    """Samples, and what was waited for after the first noise was there."""
    walk = process.trajectory(COUNT, SHAPE, {"label": LABELS}, steps=3, **options)
    next(walk)
    there.waits.clear()
    *_, (_, x) = walk
    waits = list(there.waits)
    return x.to(HOST), waits


def compare(process, tolerance=1e-4, **options):
    """Sample on the device, and on the CPU for comparison; what was waited for."""
    expected = PROCESSES[process]().sample(COUNT, SHAPE, {"label": LABELS}, steps=3, **options)
    with device() as there:
        x, waits = sampled(PROCESSES[process]().to(DEVICE), there, **options)
    torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)
    return waits


@pytest.mark.parametrize(("process", "solver"), TOGETHER)
def test_a_step_of_sampling_waits_for_nothing(process, solver):
    """A solver that draws noise brings that of each step, which comes from the CPU, and nothing else."""
    waits = compare(process, solver=STEPPING[solver])
    assert set(waits) <= ({NOISE} if solver in NOISY else set())
    assert len(waits) <= 2


@pytest.mark.parametrize("rule", RULES)
def test_guidance_waits_for_nothing(rule):
    assert set(compare("variance", solver="ancestral", guidance=RULES[rule])) <= {NOISE}


def test_jumps_wait_for_nothing():
    assert compare("meanflow", solver="average") == []


def test_an_adaptive_solver_needs_no_float64():
    """It may wait: its steps are chosen on the host."""
    compare("linear", solver=DormandPrince(1e-3, 1e-3), tolerance=1e-2)


def test_likelihoods_need_no_float64():
    x0 = torch.randn(2, *SHAPE, generator=generator_for(1)).clamp(-1, 1)
    options = {"cond": {"label": LABELS[:2]}, "rtol": 1e-2, "atol": 1e-2}
    expected = bits_per_dim(PROCESSES["linear"](), x0, 256, **options)
    with device():
        found = bits_per_dim(PROCESSES["linear"]().to(DEVICE), x0, 256, **options).to(HOST)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("process", PROCESSES)
def test_losses_and_their_gradients_wait_for_nothing(process):
    """From the second on: tables are brought once."""
    x0 = torch.randn(COUNT, *SHAPE, generator=generator_for(1)).clamp(-1, 1)
    own = PROCESSES[process]()
    own.loss(x0, {"label": LABELS}, generator_for(2)).backward()
    with device() as there:
        other, batch = PROCESSES[process]().to(DEVICE), (x0.to(DEVICE), {"label": LABELS.to(DEVICE)})
        other.loss(*batch, generator_for(2)).backward()
        other.zero_grad()
        there.waits.clear()
        other.loss(*batch, generator_for(2)).backward()
        assert there.waits == []
        gradients = [p.grad.to(HOST) for p in other.parameters() if p.grad is not None]
    expected = [p.grad for p in own.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-4)


def test_what_parts_are_worth_needs_no_float64():
    x0, noise = torch.randn(2, COUNT, *SHAPE, generator=generator_for(1))
    expected = squared_errors(PROCESSES["linear"](), x0, noise, None)
    with device():
        found = squared_errors(PROCESSES["linear"]().to(DEVICE), x0.to(DEVICE), noise.to(DEVICE), None).to(HOST)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("process", [FlowConfig(), DDPMConfig(), MeanFlowConfig(flow_share=0.5)], ids=lambda p: p.kind)
def test_a_step_of_training_brings_the_batch_and_reads_two_numbers(monkeypatch, process):
    """Docs/decisions/0012: the loss and the norm of the gradient."""
    monkeypatch.setattr("ditlab.training.loop.resolve_device", lambda _: DEVICE)
    monkeypatch.setattr("ditlab.training.loop.generator_for", lambda *parts, device: generator_for(*parts))
    config = tiny("digits", process=process, steps=4)
    data = build_dataset(config)
    with device() as there:
        state = TrainState(config, data)
        steps = train(state, data)
        next(steps)  # brings tables, and makes what optimizers remember
        there.waits.clear()
        next(steps)
        size = config.batch_size
        batch = [f"a copy of {shape} to {DEVICE.type}" for shape in ((size,), (size, *data.shape))]
        assert Counter(there.waits) == Counter([*batch, READ, READ])


def test_log_ndtr_of_a_device_without_it():
    """Against torch's own in fp64, and its slope."""
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    expected = torch.special.log_ndtr(x)
    slope = torch.exp(-x.square() / 2 - expected) / (2 * torch.pi) ** 0.5
    assert not has_kernel("special_log_ndtr")
    with device():
        there = x.float().to(DEVICE).requires_grad_()
        found = log_ndtr(there)
        found.sum().backward()
        found, gradient = found.detach().to(HOST).double(), there.grad.to(HOST).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-7)


@pytest.mark.cuda
@pytest.mark.parametrize("process", PROCESSES)
def test_on_cuda_nothing_is_waited_for(process):
    """Torch itself says so."""
    x0, own = torch.randn(COUNT, *SHAPE), PROCESSES[process]().to("cuda")
    batch = moved(x0, torch.device("cuda")), {"label": LABELS.cuda()}
    assert torch.equal(batch[0].cpu(), x0)
    generator = generator_for(2, device="cuda")
    own.loss(*batch, generator).backward()  # brings tables
    walk = own.trajectory(COUNT, SHAPE, {"label": LABELS}, steps=3, solver="ancestral")
    next(walk)
    torch.cuda.set_sync_debug_mode("error")
    try:
        own.loss(*batch, generator).backward()
        *_, (_, x) = walk
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.isfinite().all()

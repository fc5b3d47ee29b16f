import inspect

import pytest
import torch

from ditlab.chance import generator_for
from ditlab.training.muon import BatchedMuon, orthogonalise

NARROW = [(48, 16), (16, 16), (16, 48), (16, 16), (32, 16), (16, 32), (48, 16)]
WIDE = [(96, 72), (72, 72), (72, 96)]
SHAPES = NARROW + WIDE


OPTIONS = [
    {},
    {"weight_decay": 0.0, "momentum": 0.9},
    {"nesterov": False, "ns_steps": 3},
    {"lr": torch.tensor([0.01])},
    {"ns_coefficients": (2.0, -1.5, 0.5), "eps": 30.0},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "match_rms_adamw"},
]


def test_every_option_of_torch_is_tried():
    assert set(inspect.signature(torch.optim.Muon).parameters) == {"params"}.union(*OPTIONS)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_the_same_steps_as_torch(options):
    """Twenty steps beside torch.optim.Muon: equal but for bf16 rounding in another order, and the same state."""
    ours = [torch.randn(s, generator=generator_for("start", i)).requires_grad_() for i, s in enumerate(SHAPES)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    start = [p.detach().clone() for p in ours]
    a, b = (muon(p, **{"lr": 0.02, **options}) for muon, p in ((BatchedMuon, ours), (torch.optim.Muon, theirs)))
    for step in range(20):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = torch.randn(p.shape, generator=generator_for("gradient", step, i))
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - s).norm()
        torch.testing.assert_close(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])
    assert a.state_dict()["param_groups"] == b.state_dict()["param_groups"]


def test_singular_values_come_near_one():
    x = torch.randn(5, 16, 48, generator=generator_for(0))
    values = torch.linalg.svdvals(orthogonalise(x, (3.4445, -4.7750, 2.0315), 5, 1e-7).float())
    assert values.min() > 0.5
    assert values.max() < 1.5

import inspect

import pytest
import torch

from ditlab.core.newton_schulz import orthogonal_by_gram, orthogonal_by_matrix
from ditlab.core.rng import generator_for
from ditlab.training.muon import BatchedMuon

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_the_same_steps_as_torch(options, precision):
    """Twenty steps beside torch.optim.Muon: equal but for its rounding to bf16, and the same state."""
    ours = [torch.randn(s, generator=generator_for("start", i)).requires_grad_() for i, s in enumerate(SHAPES)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    start = [p.detach().clone() for p in ours]
    options = {"lr": 0.02, **options}
    a, b = BatchedMuon(ours, precision=precision, **options), torch.optim.Muon(theirs, **options)
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


@pytest.mark.parametrize(
    ("orthogonal", "rank", "tolerance"),
    [(orthogonal_by_gram, 16, 1e-3), (orthogonal_by_gram, 3, 1e-3), (orthogonal_by_matrix, 16, 0.1)],
    ids=["gram", "gram of less than full rank", "bf16"],
)
def test_singular_values_go_through_the_polynomial(orthogonal, rank, tolerance):
    """Of U·S·Vᵀ comes U·p(S)·Vᵀ, p from S / ‖S‖ five times over, computed in fp64 from the singular values alone."""
    (a, b, c), steps = (3.4445, -4.7750, 2.0315), 5
    shapes = [(16, 48), (48, 16), (16, 16)]
    draw = generator_for("factors", rank)
    matrices = [torch.randn(m, rank, generator=draw) @ torch.randn(rank, n, generator=draw) for m, n in shapes]
    by_shape = [[m] for m in matrices] if orthogonal is orthogonal_by_matrix else [matrices]
    found = [move for group in by_shape for move in orthogonal(group, (a, b, c), steps, 1e-7)]
    for x, move in zip(matrices, found, strict=True):
        u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
        s = s / s.norm()
        for _ in range(steps):
            s = a * s + b * s**3 + c * s**5
        expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert (move.double() - expected).norm() < tolerance * expected.norm()
        assert move.shape == x.shape


@pytest.mark.parametrize("steps", [7, 8, 12])
def test_many_steps_on_matrices_of_low_rank_stay_finite(steps):
    draw = generator_for("low rank")
    p = torch.zeros(64, 64, requires_grad=True)
    p.grad = torch.randn(64, 2, generator=draw) @ torch.randn(2, 64, generator=draw)
    BatchedMuon([p], lr=1.0, weight_decay=0.0, ns_steps=steps).step()
    assert p.norm() < 20  # at most 64 singular values near 1


@pytest.mark.parametrize("orthogonal", [orthogonal_by_gram, orthogonal_by_matrix])
def test_singular_values_come_near_one(orthogonal):
    x = torch.randn(5, 16, 48, generator=generator_for(0))
    moves = torch.stack(orthogonal(list(x), (3.4445, -4.7750, 2.0315), 5, 1e-7))
    values = torch.linalg.svdvals(moves.float())
    assert values.min() > 0.5
    assert values.max() < 1.5

"""The parts that a process is put together from: densities of times, weights of the loss, auxiliary losses."""

import pytest
import torch
from torch import nn

from ditlab.diffusion.ddpm import DDPM
from ditlab.diffusion.flow_matching import FlowMatching


class Affine(nn.Module):
    """y = w·x + b, whose first half is a module of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, x, t, cond=None):
        return self.last(self.first(x)) + t[:, None]


def drawn(process, **given):
    torch.manual_seed(1)
    x0 = torch.randn(64, 3)
    return x0, process.losses(x0, generator=torch.Generator().manual_seed(2), **given)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.6)])
def test_logit_normal_times_have_the_mean_and_deviation_asked_for(mean, std):
    process = FlowMatching(Affine(), times="logit-normal", times_mean=mean, times_std=std)
    logits = torch.logit(process.draw_times(100_000, torch.Generator().manual_seed(0), "cpu").double())
    assert logits.mean() == pytest.approx(mean, abs=0.02)
    assert logits.std() == pytest.approx(std, abs=0.02)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_a_loss_in_velocity_is_that_of_the_implied_velocity(target):
    """Both velocities are computed from (x0, eps), as the solvers have them, and not by a factor."""
    network = Affine()
    process = DDPM(network, 100, "cosine", target, loss_in="velocity")
    generator = torch.Generator().manual_seed(2)
    x0, losses = drawn(process)
    t = process.draw_times(64, generator, "cpu")
    noise = torch.randn(x0.shape, generator=generator)
    c = process.path(t.double())
    x_t = process.q_sample(x0, t, noise)
    guess = process.estimate(x_t, t, None)
    velocity = [c.da[:, None] * x + c.ds[:, None] * eps for x, eps in ((x0, noise), (guess.x0, guess.eps))]
    expected = (velocity[0] - velocity[1]).square().mean(1).float()
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=1e-4)


def test_min_snr_is_that_of_the_paper():
    """Hang et al. 2023: min(SNR, 5)/SNR for eps, min(SNR, 5) for x0, min(SNR, 5)/(SNR + 1) for v."""
    t = torch.arange(1, 65) / 100
    for target, over in (("eps", lambda snr: snr), ("x0", torch.ones_like), ("v", lambda snr: snr + 1)):
        torch.manual_seed(0)
        plain, weighted = (DDPM(network := Affine(), 100, target=target, weight=w) for w in ("uniform", "min-snr"))
        weighted.network = plain.network = network
        c = plain.path(t)
        snr = c.a**2 / c.s**2
        ratio = drawn(weighted, t=t)[1] / drawn(plain, t=t)[1]
        torch.testing.assert_close(ratio, snr.clamp(max=5) / over(snr), rtol=1e-4, atol=1e-6)


class Size:
    """The mean square of what the first module returned; it keeps what it saw."""

    activations = ("first",)

    def __call__(self, seen, activations):
        self.seen, self.given = seen, activations["first"]
        return self.given.square().mean(1)


def test_an_auxiliary_loss_sees_the_activations_and_trains_them():
    network, size = Affine(), Size()
    plain, process = FlowMatching(network), FlowMatching(network, auxiliary=[(size, 0.5)])
    (x0, base), (_, losses) = drawn(plain), drawn(process)
    torch.testing.assert_close(size.given, network.first(size.seen.x_t))
    torch.testing.assert_close(size.seen.x_t, process.q_sample(x0, size.seen.t, size.seen.noise))
    torch.testing.assert_close(losses, base + 0.5 * size.given.square().mean(1))
    of_both, of_one = (torch.autograd.grad(loss.mean(), network.first.weight)[0] for loss in (losses, base))
    assert not torch.allclose(of_both, of_one)
    assert not network.first._forward_hooks


def test_an_auxiliary_loss_of_a_module_that_is_not_there_names_those_that_are():
    loss = Size()
    loss.activations = ("second",)
    with pytest.raises(ValueError, match=r"'second'.*first, last"):
        drawn(FlowMatching(Affine(), auxiliary=[(loss, 1.0)]))


@pytest.mark.parametrize("unknown", [{"loss_in": "eps"}, {"weight": "snr"}])
def test_unknown_parts_are_named(unknown):
    with pytest.raises(ValueError, match="choose"):
        DDPM(Affine(), **unknown)

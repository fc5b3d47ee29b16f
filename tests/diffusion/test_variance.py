"""The bound that trains a learned variance, against independent formulas."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import ditlab
from ditlab.core.rng import generator_for
from ditlab.diffusion.paths import DiscreteVP, named_betas
from ditlab.diffusion.targets import Estimate
from ditlab.diffusion.variance import density_surprise, pixel_surprise, variational_bound

BETAS = named_betas("linear", 50)


def published_posterior(k, x0, x_t):
    """Mean and variance of q(x_{k−1} | x_k, x0) (Ho et al. 2020, eq. 7)."""
    alpha_bar = torch.cumprod(1 - BETAS, 0)
    now, before, beta = alpha_bar[k], alpha_bar[k - 1], BETAS[k]
    mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t
    return mean, (1 - before) / (1 - now) * beta


@pytest.mark.parametrize("k", [1, 7, 49])
@pytest.mark.parametrize("fraction", [-0.2, 0.0, 0.6, 1.0])
def test_divergence_by_numerical_integration(k, fraction):
    path = DiscreteVP(BETAS)
    x0, eps, guess = torch.tensor([[0.3], [-0.8], [0.25]], dtype=torch.float64)[:, :, None]
    c = path(torch.tensor([(k + 1) / 50], dtype=torch.float64))
    x_t = c.a * x0 + c.s * eps
    estimate = Estimate(guess, (x_t - c.a * guess) / c.s, torch.full((1, 1), fraction, dtype=torch.float64))
    ours = variational_bound(path, torch.tensor([(k + 1) / 50]).double(), x0, eps, estimate, "pixels")

    true_mean, beta_tilde = published_posterior(k, x0, x_t)
    mean, _ = published_posterior(k, guess, x_t)
    spread = math.exp((fraction * math.log(BETAS[k]) + (1 - fraction) * math.log(beta_tilde)) / 2)
    q, p = norm(float(true_mean), math.sqrt(beta_tilde)), norm(float(mean), spread)
    low, high = q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    nats, _ = quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), low, high, epsabs=1e-12, epsrel=1e-12)
    assert float(ours) == pytest.approx(nats / math.log(2), rel=1e-7)


@pytest.mark.parametrize("mean", [-1.2, -1.0, -0.3, 0.9])
@pytest.mark.parametrize("std", [0.002, 0.05, 3.0])
def test_pixel_levels_sum_to_one_and_are_the_gaussians(mean, std):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_variance = torch.full_like(levels, 2 * math.log(std))
    nats = pixel_surprise(levels, torch.full_like(levels, mean), log_variance)
    probability = torch.exp(-nats)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-8)
    edges = torch.cat([torch.tensor([-math.inf]), (levels[1:] + levels[:-1]) / 2, torch.tensor([math.inf])]).numpy()
    expected = norm(mean, std).cdf(edges[1:]) - norm(mean, std).cdf(edges[:-1])
    torch.testing.assert_close(probability, torch.from_numpy(expected).clamp(min=1e-12), rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_never_make_a_gradient_that_is_not_finite(dtype):
    x = torch.linspace(-1, 1, 256, dtype=dtype)
    for mean in (-5.0, 0.1, 40.0):
        for log_variance in (-30.0, -9.0, 0.0, 20.0):
            v = torch.full_like(x, log_variance, requires_grad=True)
            nats = pixel_surprise(x, torch.full_like(x, mean), v)
            nats.sum().backward()
            assert nats.isfinite().all()
            assert v.grad.isfinite().all()


def test_density_term_is_the_gaussians():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    ours = density_surprise(x, torch.full_like(x, 0.3), torch.full_like(x, 2 * math.log(0.4)))
    torch.testing.assert_close(ours, torch.from_numpy(-norm(0.3, 0.4).logpdf(x.numpy())))


class TwoHalves(torch.nn.Module):
    """The best mean for x0 ~ N(0, std²), off by ``offset``, and one fraction for each step."""

    learned_variance = True

    def __init__(self, path, std):
        super().__init__()
        self.path, self.std = path, std
        self.offset = torch.nn.Parameter(torch.tensor(0.1))
        self.raw = torch.nn.Parameter(torch.zeros(path.steps))

    def forward(self, x, t, cond=None):
        c = self.path(t)
        eps = (c.s / (c.a**2 * self.std**2 + c.s**2))[:, None] * x + self.offset
        raw = self.raw[(t * self.path.steps).round().long() - 1]
        return torch.cat([eps, raw[:, None].expand_as(x)], dim=1)


@pytest.mark.parametrize("steps", [20, 1000])
def test_the_bound_trains_the_variance_alone(steps):
    """Its gradient does not reach the mean, and it weighs 0.001·steps beside the squared error."""
    ddpm = ditlab.DDPM(None, steps=steps, schedule="cosine")
    ddpm.network = TwoHalves(ddpm.path, 0.5)
    x0 = 0.5 * torch.randn(64, 2, generator=generator_for(0))
    ddpm.losses(x0, generator=generator_for(1)).mean().backward()
    with_bound = ddpm.network.offset.grad.clone()
    assert ddpm.network.raw.grad.abs().max() > 0

    class MeanAlone(torch.nn.Module):
        def forward(self, x, t, cond):
            return network(x, t)[:, :2]

    network = ddpm.network
    plain = ditlab.DDPM(MeanAlone(), steps=steps, schedule="cosine")
    network.offset.grad = None
    alone = plain.losses(x0, generator=generator_for(1))
    alone.mean().backward()
    assert torch.equal(network.offset.grad, with_bound)

    t = torch.full((64,), 7 / steps)
    generator = generator_for(2)
    noise = torch.randn(x0.shape, generator=generator)
    guess = ddpm.estimate(ddpm.q_sample(x0, t, noise), t, None)
    bound = variational_bound(ddpm.path, t, x0, noise, guess, "pixels")
    extra = ddpm.losses(x0, generator=generator_for(2), t=t) - plain.losses(x0, generator=generator_for(2), t=t)
    torch.testing.assert_close(extra, 0.001 * steps * bound, rtol=1e-4, atol=1e-6)


def test_training_finds_the_best_variance():
    """For x0 ~ N(0, σ²) the best variance is that of x_{k−1} given x_k: β̃ + (weight of x0)²·Var(x0 | x_k)."""
    steps, std = 8, 0.5
    ddpm = ditlab.DDPM(None, steps=steps, schedule="cosine", first_term="density")
    ddpm.network = network = TwoHalves(ddpm.path, std)
    network.offset.requires_grad_(False).zero_()
    optimizer = torch.optim.Adam([network.raw], lr=0.05)
    x0 = std * torch.randn(20_000, 2, generator=generator_for(0))
    t = (torch.arange(len(x0)) % steps + 1) / steps
    for i in range(150):
        optimizer.zero_grad()
        ddpm.losses(x0, generator=generator_for("step", i % 10), t=t).mean().backward()
        optimizer.step()
    betas = named_betas("cosine", steps)
    now = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), now[:-1]]).double()
    beta_tilde = (1 - before) / (1 - now) * betas
    of_x0 = std**2 * (1 - now) / (now * std**2 + 1 - now)
    best = beta_tilde + (before.sqrt() * betas / (1 - now)) ** 2 * of_x0
    low = beta_tilde.clone()
    low[0] = beta_tilde[1]
    fraction = (network.raw.detach().double() + 1) / 2
    learned = fraction * betas.log() + (1 - fraction) * low.log()
    torch.testing.assert_close(learned, best.log(), rtol=0, atol=0.05)


def test_a_dit_learns_its_variance():
    """A real network: the squared error and the bound both fall."""
    torch.manual_seed(0)
    network = ditlab.DiT(image_size=8, patch_size=4, dim=16, depth=1, heads=2, learned_variance=True)
    ddpm = ditlab.DDPM(network, steps=100)
    x0 = torch.randn(256, 1, 8, 8, generator=generator_for(0)).clamp(-1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = ddpm.loss(x0, generator=generator_for("test"))
    for i in range(30):
        optimizer.zero_grad()
        ddpm.loss(x0, generator=generator_for(i)).backward()
        optimizer.step()
    assert ddpm.loss(x0, generator=generator_for("test")) < before
    assert network.final.linear.weight.grad.isfinite().all()
    samples = ddpm.sample(2, (1, 8, 8), steps=5, solver="ancestral")
    assert samples.isfinite().all()
    assert not torch.equal(samples, ditlab.DDPM(network, steps=100).sample(2, (1, 8, 8), steps=5, solver="ddim"))


def test_a_wrong_first_term_is_named(unchecked):
    with pytest.raises(ValueError, match="'pixels' or 'density'"):
        ditlab.DDPM(None, first_term="latents")
    with pytest.raises(ValueError, match="at least 2"):
        ditlab.DDPM(ditlab.DiT(learned_variance=True), steps=1, schedule="cosine")

"""Log-likelihoods beside closed forms: a mixture on every path, a Gaussian in pixels, networks with attention."""

import builtins
import math

import pytest
import torch
from scipy import stats
from torch import nn

import ditlab
from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.diffusion.ddpm import DDPM
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.likelihood import bits_per_dim, chosen_trace, log_likelihood, quantised, rademacher
from ditlab.diffusion.targets import compose
from tests.diffusion.test_process import shaken
from tests.mixture import RING, Mixture


class Best(nn.Module):
    """The closed-form optimum of a process for a mixture, as its network, in float64."""

    def __init__(self, process, mixture=RING):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.process, self.mixture = [process], mixture

    def forward(self, x, t, cond=None):
        process = self.process[0]
        flat = x.flatten(1)
        pair = self.mixture.estimate(process.path, flat, t)[:2]
        x0, eps = (self.one * value.reshape(x.shape) for value in pair)
        return compose(process.target, process.path(t), x0, eps)


def best(process, mixture=RING):
    process.network = Best(process, mixture)
    return process


def smooth(**options):
    """A DiT that changes slowly in t, so that few steps are needed."""
    return ditlab.DiT(depth=1, heads=2, time_scale=5.0, **options)


def log_density(mixture, x):
    components = torch.distributions.Independent(torch.distributions.Normal(mixture.means, mixture.std), 1)
    weights = torch.distributions.Categorical(logits=torch.zeros(len(mixture.means), dtype=torch.float64))
    return torch.distributions.MixtureSameFamily(weights, components).log_prob(x)


PROCESSES = {
    "flow-linear": lambda: FlowMatching(None),
    "flow-cosine": lambda: FlowMatching(None, path="cosine"),
    "ddpm-eps": lambda: DDPM(None),
    "ddpm-x0": lambda: DDPM(None, target="x0"),
    "ddpm-v": lambda: DDPM(None, target="v", schedule="cosine"),
    "ddpm-cosine": lambda: DDPM(None, schedule="cosine"),
    "meanflow": lambda: ditlab.MeanFlow(None),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mixture_to_a_thousandth_of_a_nat(name):
    process = best(PROCESSES[name]())
    x = RING.draw(64, generator_for(0))
    x[0] = torch.tensor([3.0, 2.5])  # a point that is hardly ever drawn
    measured = log_likelihood(process, x, trace="exact")
    torch.testing.assert_close(measured, log_density(RING, x), rtol=0, atol=1e-3)


def test_hutchinson_is_unbiased():
    """Its mean over seeds is the exact value within its standard error, and the error is not zero."""
    process = best(FlowMatching(None))
    x = RING.draw(4, generator_for(1))
    exact = log_likelihood(process, x)
    draws = torch.stack(
        [log_likelihood(process, x.repeat(16, 1), trace="hutchinson", seed=s).reshape(16, 4) for s in range(4)]
    ).flatten(0, 1)
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 1e-4).all()
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()


def test_hutchinsons_noise_is_that_of_a_sample():
    like = torch.empty(5, 1, 4, 4)
    together = rademacher(3, 0, like)
    assert set(together.unique().tolist()) == {-1, 1}
    assert abs(float(rademacher(3, 0, torch.empty(100, 1, 8, 8)).mean())) < 0.05
    assert torch.equal(torch.cat([rademacher(3, i, like[:1]) for i in range(5)]), together)
    process = FlowMatching(shaken(smooth(image_size=4, patch_size=2, dim=16)).double())
    x = torch.randn(3, 1, 4, 4, generator=generator_for(2))
    whole = log_likelihood(process, x, trace="hutchinson", seed=1)
    alone = torch.cat([log_likelihood(process, x[i : i + 1], trace="hutchinson", seed=1, first=i) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-3)


def test_accuracy_does_not_depend_on_easy_neighbours():
    """One hard sample among many easy ones keeps to its tolerance."""
    process = best(FlowMatching(None), Mixture([[2.0, 0.0], [-2.0, 0.0]], 0.02))
    hard = torch.tensor([[2.0, 0.0], [1.97, 0.03]], dtype=torch.float64)
    easy = 8 * torch.ones(200, 2, dtype=torch.float64)
    for x in (hard, torch.cat([hard, easy])):
        measured = log_likelihood(process, x)[:2]
        torch.testing.assert_close(measured, log_density(process.network.mixture, hard), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_through_attention_it_is_the_numeric_jacobian(dtype):
    """log |∂x0/∂noise| of an untrained but not idle DiT, by solving the flow and differencing every coordinate."""
    network = shaken(smooth(image_size=2, patch_size=1, dim=8)).to(dtype).train()
    modes = [(m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()]
    process = FlowMatching(network)
    x0 = 0.5 * torch.randn(1, 1, 2, 2, generator=generator_for(3), dtype=torch.float64).to(dtype)
    measured = log_likelihood(process, x0, trace="exact", rtol=1e-6, atol=1e-6)
    assert measured.dtype == dtype
    assert not measured.requires_grad
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in network.modules()] == modes
    network = network.double().eval()

    def forward(x, steps=64):
        """Data to noise by fourth-order Runge-Kutta."""
        h = 1 / steps
        for i in range(steps):
            t = torch.full((len(x),), i * h, dtype=torch.float64)
            a = network(x, t)
            b = network(x + h / 2 * a, t + h / 2)
            c = network(x + h / 2 * b, t + h / 2)
            d = network(x + h * c, t + h)
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
        return x

    with torch.no_grad():
        around = x0.double() + torch.cat([torch.zeros(1, 4), 1e-5 * torch.eye(4), -1e-5 * torch.eye(4)]).reshape(
            9, 1, 2, 2
        )
        ends = forward(around).flatten(1)
    jacobian = (ends[1:5] - ends[5:]) / 2e-5
    expected = -0.5 * (ends[0].square() + math.log(2 * math.pi)).sum() + torch.linalg.slogdet(jacobian)[1]
    assert float(measured) == pytest.approx(float(expected), abs=2e-4)


def test_labels_condition_it():
    network = shaken(smooth(image_size=2, patch_size=1, dim=8, num_classes=2))
    x, process = torch.randn(4, 1, 2, 2, generator=generator_for(4)), FlowMatching(network)
    labels = torch.tensor([0, 1, 0, 1])
    given = log_likelihood(process, x, {"label": labels})
    other = log_likelihood(process, x, {"label": 1 - labels})
    null = log_likelihood(process, x)
    assert (given - other).abs().min() > 1e-4
    torch.testing.assert_close(log_likelihood(process, x, {"label": torch.full((4,), 2)}), null)


def test_quantised_values_sit_on_their_levels():
    images = circles(20, generator_for(5)).images
    for levels in (2, 17, 256):
        grid = torch.linspace(-1, 1, levels)
        rounded = quantised(images, levels)
        nearest = grid[(images[..., None] - grid).abs().argmin(-1)]
        torch.testing.assert_close(rounded, nearest, rtol=0, atol=1e-6)
        torch.testing.assert_close(quantised(rounded, levels), rounded)


@pytest.mark.parametrize("levels", [9, 256])
def test_bits_of_quantised_gaussian_pixels(levels):
    """Pixels drawn from N(0.1, 0.3²), rounded: the bound is what one number of its kind says it is, and just above the
    true bits, −Σ P log2 P with P the probability of a bin.
    """
    mean, std, width = 0.1, 0.3, 2 / (levels - 1)
    gaussian = stats.norm(mean, std)
    process = best(FlowMatching(None), Mixture([[mean] * 4], std))
    x = (mean + std * torch.randn(600, 1, 2, 2, generator=generator_for(6), dtype=torch.float64)).clamp(-1, 1)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    bins = torch.from_numpy(gaussian.cdf(grid + width / 2) - gaussian.cdf(grid - width / 2))
    level = ((quantised(x, levels) + 1) / width).round().long()
    exact = -bins.log2()[level].mean((1, 2, 3))  # bits per dimension of each image, without a bound
    bits = bits_per_dim(process, x, levels, trace="exact")
    within = (torch.arange(100, dtype=torch.float64) + 0.5) / 100 - 0.5
    bound = -torch.from_numpy(gaussian.logpdf(grid[:, None] + width * within)).mean(1) / math.log(2) - math.log2(width)
    difference = bits - bound[level].mean((1, 2, 3))
    assert abs(difference.mean()) < 4 * difference.std() / len(x) ** 0.5 + 1e-4
    gap = float(bound[level].mean() - exact.mean())
    assert 0 < gap < {9: 0.06, 256: 1e-4}[levels]


def test_dequantisation_is_that_of_a_sample():
    process = best(FlowMatching(None), Mixture([[0.0] * 4], 0.5))
    x = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    whole = bits_per_dim(process, x, 17, seed=2)
    assert whole.unique().numel() == 3
    alone = torch.cat([bits_per_dim(process, x[:1], 17, seed=2, first=i) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-4)


def test_auto_is_exact_in_low_dimension():
    assert [chosen_trace("auto", d) for d in (2, 16, 17, 256)] == ["exact", "exact", "hutchinson", "hutchinson"]
    assert chosen_trace("hutchinson", 2) == "hutchinson"


def test_without_torchdiffeq_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def none_of_it(name, *rest):
        if name == "torchdiffeq":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none_of_it)
    with pytest.raises(ditlab.InputError, match=r"pip install 'ditlab\[ode\]'"):
        log_likelihood(best(FlowMatching(None)), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "message"), [({"trace": "some"}, "hutchinson"), ({"rtol": 0.0}, "above 0"), ({"atol": -1.0}, "above 0")]
)
def test_errors_name_the_fix(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(best(FlowMatching(None)), torch.zeros(1, 2), **options)
    with pytest.raises(ValueError, match="at least 2"):
        bits_per_dim(best(FlowMatching(None)), torch.zeros(1, 2), 1)

"""A Gaussian mixture, whose best denoiser is known in closed form: the independent source of the laws."""

import math

import torch


class Mixture:
    """Equal weights, means (m, d) and one standard deviation."""

    def __init__(self, means, std):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.std = std

    def draw(self, n, generator):
        which = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.std * noise

    def posterior(self, x, a, s):
        """E[x0 | x_t = x] and E[eps | x_t = x] for x_t = a·x0 + s·eps; a and s are () or (B,)."""
        a, s = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (a, s))
        variance = a**2 * self.std**2 + s**2
        offset = x[:, None] - a * self.means  # (B, m, d)
        weight = torch.softmax(-offset.square().sum(-1, keepdim=True) / (2 * variance), dim=1)
        x0 = (weight * (self.means + a * self.std**2 / variance * offset)).sum(1)
        return x0, (weight * s / variance * offset).sum(1)

    def estimate(self, path, x, t):
        from ditlab.diffusion.targets import Estimate

        c = path(t.double())
        return Estimate(*self.posterior(x, c.a, c.s))


RING = Mixture([[1.5 * math.cos(i * math.pi / 2), 1.5 * math.sin(i * math.pi / 2)] for i in range(4)], 0.4)

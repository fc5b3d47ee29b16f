import math

import pytest
import torch
from scipy import stats

from ditlab.core.rng import generator_for
from ditlab.diffusion.times import LogitNormal, Nodes, Stratified, Uniform


@pytest.mark.parametrize(
    ("times", "distribution"),
    [
        (Uniform(), stats.uniform.cdf),
        (LogitNormal(), lambda t: stats.norm.cdf([math.log(v / (1 - v)) for v in t])),
        (LogitNormal(mean=-0.5, std=1.5), lambda t: stats.norm.cdf([math.log(v / (1 - v)) for v in t], -0.5, 1.5)),
        (Uniform(shift=3.0), lambda t: stats.uniform.cdf([v / (3 - 2 * v) for v in t])),
    ],
)
def test_density(times, distribution):
    t = times(5000, generator_for(0), "cpu")
    assert stats.kstest(t.tolist(), distribution).pvalue > 1e-3


def test_stratified_times_visit_every_stratum_once_in_random_order():
    t = Stratified()(128, generator_for(0), "cpu")
    assert sorted((t * 128).long().tolist()) == list(range(128))
    assert t.argsort().tolist() != list(range(128))
    first = torch.stack([Stratified()(8, generator_for(i), "cpu")[0] for i in range(2000)])
    assert stats.kstest(first.tolist(), stats.uniform.cdf).pvalue > 1e-3


def test_nodes_are_the_published_steps():
    t = Nodes(50)(5000, generator_for(0), "cpu")
    torch.testing.assert_close(t.unique(), torch.arange(1, 51) / 50)

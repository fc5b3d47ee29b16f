"""The order of a store too large to be shuffled at once: still a permutation, a function of the position, and mixed."""

import pytest
import torch
from scipy import stats

from ditlab.core.rng import generator_for
from ditlab.data.shuffle import BLOCK, WINDOW, sample_order

BORDERS = [WINDOW, WINDOW + 1, WINDOW + BLOCK - 1, WINDOW + BLOCK, 2 * WINDOW - 1, 2 * WINDOW, 2 * WINDOW + 1, 200_001]


@pytest.mark.parametrize("size", BORDERS)
def test_every_sample_once_an_epoch_of_a_large_store(size):
    whole = sample_order(5, 0, 2 * size, size)
    for epoch in whole.reshape(2, size):
        assert torch.equal(epoch.sort().values, torch.arange(size))
    assert not torch.equal(whole[:size], whole[size:])
    assert not torch.equal(sample_order(6, 0, size, size), whole[:size])


def test_the_last_block_may_be_short_anywhere():
    """Over many epochs the short block falls into every window, the first and the last too."""
    size, where = 3 * WINDOW - 200, set()
    for epoch in range(12):
        order = sample_order(0, epoch * size, size, size)
        assert torch.equal(order.sort().values, torch.arange(size))
        where.add(int((order == size - 1).int().argmax()) // WINDOW)
    assert where == {0, 1, 2}


@pytest.mark.parametrize("size", [898, WINDOW, WINDOW + 77])
def test_a_cut_at_any_position_changes_nothing(size):
    whole = sample_order(2, 0, 2 * size, size).tolist()
    around = [range(border - 300, border + 300) for border in (size // 2, size, size + size // 2)]
    for position in [*range(0, 2 * size - 3, 1 + size // 10_000), *(p for near in around for p in near)]:
        assert sample_order(2, position, 3, size).tolist() == whole[position : position + 3]


@pytest.mark.parametrize("size", [898, WINDOW])
def test_a_store_of_up_to_65536_is_permuted_as_a_whole(size):
    for epoch in (0, 3):
        expected = torch.randperm(size, generator=generator_for(7, "order", epoch))
        assert torch.equal(sample_order(7, epoch * size, size, size), expected)


def test_reads_stay_near_each_other():
    """A window of the order touches at most 256 blocks of 256 neighbours, in a store of 3,907."""
    order = sample_order(1, 0, WINDOW // 2, 10**6)
    assert len((order // BLOCK).unique()) <= 256
    assert order.max() - order.min() > 900_000


@pytest.mark.parametrize("size", [WINDOW + 1, 70_000, 1_000_000])
def test_batches_of_a_store_sorted_by_class_are_mixed(size):
    """Class counts of batches of 128 are as multinomial as an independent draw's: the same chi-square distribution."""
    label = sample_order(1, 0, size // 128 * 128, size) * 10 // size
    counts = torch.nn.functional.one_hot(label.view(-1, 128), 10).sum(1)
    chi_square = ((counts - 12.8) ** 2 / 12.8).sum(1)
    assert stats.kstest(chi_square[::3], stats.chi2(9).cdf).pvalue > 1e-3
    assert chi_square.mean() == pytest.approx(9, abs=0.6)
    assert (counts[-50:].sum(0) / 6400).tolist() == pytest.approx([0.1] * 10, abs=0.02)


def test_a_thousand_million_samples():
    size = 10**9
    first = sample_order(0, 0, 128, size)
    for step in range(1, 200):
        assert sample_order(0, 128 * step, 128, size).shape == first.shape
    last = sample_order(0, size - 64, 128, size)
    assert last.max() < size
    assert len(last.unique()) == 128

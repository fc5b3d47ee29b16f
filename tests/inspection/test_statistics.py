"""What is said of attention maps, against maps whose numbers are known."""

import math

import pytest
import torch

import ditlab
from ditlab.inspection.flow import measure_parts
from ditlab.inspection.statistics import brightness, distances, map_statistics, neighbourhood, query_statistics
from ditlab.networks.costs import multiply_accumulates, multiply_accumulates_by_module, parameter_count

GRID = (3, 4)
N = 12


def statistics(attention, share):
    return query_statistics(attention, torch.arange(N), GRID, share)


def test_a_map_that_looks_everywhere_alike_scores_what_chance_gives():
    share = torch.rand(N, generator=torch.Generator().manual_seed(0))
    found = map_statistics(statistics(torch.full((N, N), 1 / N), share), GRID, share)
    assert found["entropy"] == pytest.approx(math.log2(N), abs=1e-5)
    assert found["inside"] == pytest.approx(float(found["inside_chance"]), abs=1e-6)
    assert found["near"] == pytest.approx(float(found["near_chance"]), abs=1e-6)
    assert found["distance"] == pytest.approx(float(distances(GRID).mean()), abs=1e-5)


def test_a_map_that_looks_at_itself_alone():
    share = torch.rand(N, generator=torch.Generator().manual_seed(1))
    found = map_statistics(statistics(torch.eye(N), share), GRID, share)
    assert found["entropy"] == 0
    assert found["distance"] == 0
    assert found["diagonal_rank"] == 1
    assert found["diagonal_first"] == 1
    assert found["near"] == pytest.approx(1)
    assert found["inside"] == pytest.approx(float((share**2).sum() / share.sum()), abs=1e-6)


def test_statistics_agree_with_a_loop_in_plain_python():
    generator = torch.Generator().manual_seed(2)
    attention = torch.softmax(2 * torch.randn(2, N, N, generator=generator), -1)
    share = torch.rand(N, generator=generator)
    found = statistics(attention, share)
    for head, q in ((0, 0), (1, 7), (0, 11)):
        row = attention[head, q].tolist()
        places = [(k // 4, k % 4) for k in range(N)]
        away = [math.dist(places[q], place) for place in places]
        steps = [max(abs(places[q][0] - r), abs(places[q][1] - c)) for r, c in places]
        assert found["entropy"][head, q] == pytest.approx(-sum(a * math.log2(a) for a in row), abs=1e-5)
        assert found["distance"][head, q] == pytest.approx(sum(a * d for a, d in zip(row, away, strict=True)), abs=1e-5)
        assert found["diagonal_rank"][head, q] == 1 + sum(a > row[q] for a in row)
        assert found["inside"][head, q] == pytest.approx(
            sum(a * m for a, m in zip(row, share.tolist(), strict=True)), abs=1e-6
        )
        assert found["near"][head, q] == pytest.approx(
            sum(a for a, d in zip(row, steps, strict=True) if d <= 1), abs=1e-6
        )


def test_an_image_without_an_object_has_none_to_look_at():
    found = map_statistics(statistics(torch.eye(N), torch.zeros(N)), GRID, torch.zeros(N))
    assert found["inside"] == 0
    assert found["inside_chance"] == 0


def test_brightness_is_how_much_of_a_patch_is_object():
    image = -torch.ones(1, 6, 8)
    image[0, 0:2, 2:4] = 1
    image[0, 2:4, 0] = 1
    share = brightness(image, GRID)
    assert share.tolist() == [0, 1, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0]


def test_a_corner_has_three_neighbours_and_itself():
    assert neighbourhood(GRID).sum(1).tolist() == [4, 6, 6, 4, 6, 9, 9, 6, 4, 6, 6, 4]


@pytest.mark.parametrize("network", [ditlab.DiT(), ditlab.UNet()])
def test_the_parts_of_a_network_are_measured_where_a_batch_passes(network):
    network.eval()
    x, t = torch.randn(2, 1, 16, 16), torch.rand(2)
    modules = {"": network} | {name: child for name, child in network.named_modules() if name.count(".") == 1}
    parts = {part.name: part for part in measure_parts(modules, lambda: network(x, t), passes=2)}
    assert next(iter(parts)) == ""
    assert parts[""].gives == [2, 1, 16, 16]
    assert parts[""].parameters == parameter_count(network)
    assert all(part.milliseconds > 0 for part in parts.values())
    assert parts[""].milliseconds >= max(part.milliseconds for name, part in parts.items() if name)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_multiply_accumulates_of_the_whole_are_those_counted_elsewhere():
    network = ditlab.DiT()
    counts = multiply_accumulates_by_module(network, (1, 16, 16))
    assert counts[""] == multiply_accumulates(network, (1, 16, 16))
    assert counts["blocks.0.mlp"] == 16 * 64 * 128 * 2
    assert counts["blocks.0.attn.attention"] == 2 * 16 * 16 * 64


def test_counting_copies_no_numbers():
    network = ditlab.DiT()
    before = {name: p.clone() for name, p in network.named_parameters()}
    multiply_accumulates(network, (1, 16, 16))
    assert all(p.device.type == "cpu" and torch.equal(p, before[name]) for name, p in network.named_parameters())

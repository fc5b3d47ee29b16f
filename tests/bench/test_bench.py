"""ditlab bench: the figures are of what they say, and are the quotients that they say."""

import io
import json
import math
import statistics
import sys
from contextlib import redirect_stdout

import pytest
import torch
from diffusers import DiTTransformer2DModel

import ditlab
from ditlab.bench.ceiling import Product, find_ceiling, products_of
from ditlab.bench.contestants import OURS, PEER, PLAIN, available, contestant, forward_operations
from ditlab.bench.rounds import coverage
from ditlab.bench.rows import Table
from ditlab.bench.sizes import CUDA_PART, KNOWN, ON_CPU, ON_CUDA, size_of, sizes_of
from ditlab.bench.training import default_contestant, emulates_bf16
from ditlab.cli.main import main
from ditlab.core.errors import InputError
from ditlab.networks.costs import parameter_count
from ditlab.networks.presets import Published

CPU = torch.device("cpu")
NUMBERS = ("seconds", "images_per_s", "flops_per_s", "share_of_ceiling", "share_of_best", "ratio", "ratio_as_it_comes")


WORDS = ["bench", "--quick", "--json", "--sizes", "tiny", "--device", "cpu"]


def every_row(figures):
    """The rows by task, contestant, way and dtype."""
    tasks = figures["speed"]["tiny"].items()
    return {(task, *name.split(" ")): row for task, rows in tasks for name, row in rows.items()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the command wrote, and what it printed."""
    out, printed = tmp_path_factory.mktemp("bench") / "results" / "speed.json", io.StringIO()
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ditlab", *WORDS])
        assert main([*WORDS, "--out", str(out)]) == 0
    return json.loads(out.read_text()), json.loads(printed.getvalue())


def test_the_file_and_the_output_say_the_same(quick):
    written, printed = quick
    assert written == printed
    assert list(written) == [
        "command",
        "machine",
        "sizes",
        "sampler",
        "ceilings",
        "ceilings_in_rounds",
        "speed",
        "memory",
        "notes",
    ]
    assert written["command"] == "ditlab bench --quick --json --sizes tiny --device cpu"
    assert written["machine"]["torch"] == torch.__version__
    assert written["machine"]["threads"] >= 1


def test_there_is_a_row_for_each_contestant_and_way(quick):
    rows = list(every_row(quick[0]))
    dtypes = ["fp32"] if emulates_bf16(torch.device("cpu")) else ["fp32", "bf16"]
    eager = [("train", name, "eager", dtype) for dtype in dtypes for name in (PEER, PLAIN, OURS)]
    n = len(eager)
    assert rows[:n] == eager
    assert rows[n] == ("train", PEER, "default", "fp32")
    assert rows[n + 1][:3] == ("train", OURS, "default")
    assert rows[n + 2 : 2 * n + 2] == [("sample", *row[1:]) for row in eager]
    assert rows[2 * n + 2 :] == [("sample", PEER, "default", "fp32"), ("sample", OURS, "default", "fp32")]


def test_every_number_is_positive_and_finite(quick):
    for row in every_row(quick[0]).values():
        for name in NUMBERS:
            assert math.isfinite(row[name])
            assert row[name] > 0
            if f"{name}_interval" in row:
                low, high = row[f"{name}_interval"]
                assert low <= row[name] <= high


def test_a_ratio_is_the_median_quotient_within_a_round(quick):
    rows = every_row(quick[0])
    for (task, _, way, dtype), row in rows.items():
        plain = rows[task, PEER, "default", "fp32"]["rounds"]
        alike = plain if way == "default" else rows[task, PEER, way, dtype]["rounds"]
        for key, peer in (("ratio", alike), ("ratio_as_it_comes", plain)):
            quotients = [a / b for a, b in zip(peer, row["rounds"], strict=True)]
            assert row[key] == pytest.approx(statistics.median(quotients), rel=1e-12)
        assert row["flops_per_s"] == pytest.approx(row["flops"] / statistics.median(row["rounds"]), rel=1e-12)


def test_work_is_three_forward_passes_a_step_and_one_an_evaluation(quick):
    size = size_of("tiny", "cpu")
    for (task, name, way, _), row in every_row(quick[0]).items():
        entry = default_contestant(size) if (name, way) == (OURS, "default") else contestant(name, size)
        forward = forward_operations(entry, size)
        assert row["parameters"] == parameter_count(entry.network, trainable_only=True)
        assert row["flops"] == forward * size.batch * (3 if task == "train" else 49)


def test_operations_of_the_plain_transformer_are_those_of_its_formula():
    """A linear layer of a tokens by b has 2·a·b, attention 2·2·N·D for each token."""
    size = size_of("lesson", "cpu")
    n, d, values = size.tokens, size.dim, size.patch_size**2 * size.channels
    block = 2 * (3 * d * d + d * d + 4 * d * d + 4 * d * d) + 4 * n * d
    by_hand = n * (2 * values * d + size.depth * block + 2 * d * values) + 2 * (256 * d + d * d)
    assert forward_operations(contestant(PLAIN, size), size) == by_hand


@pytest.mark.parametrize("name", ["tiny", "lesson", "S/8"])
def test_contestants_are_the_networks_they_are_named_after(name):
    size = size_of(name, "cpu")
    peer = contestant(PEER, size).network
    assert type(peer) is DiTTransformer2DModel
    published = ditlab.DiT(
        size.image_size,
        size.patch_size,
        size.channels,
        size.dim,
        size.depth,
        size.heads,
        mlp_ratio=4.0,
        positions="sincos",
        num_classes=size.num_classes,
        published=Published(time_features=256, embedders="per-block"),
    )
    assert parameter_count(peer, trainable_only=True) == parameter_count(published, trainable_only=True)
    ours = contestant(OURS, size)
    assert parameter_count(ours.network, trainable_only=True) == parameter_count(peer, trainable_only=True)
    twice = 2 * (256 * size.dim + size.dim**2)  # the peer embeds the time a second time, for its final layer
    assert forward_operations(contestant(PEER, size), size) - forward_operations(ours, size) == twice
    plain = contestant(PLAIN, size).network
    assert [type(layer) for layer in plain.encoder.layers] == [torch.nn.TransformerEncoderLayer] * size.depth


@pytest.mark.parametrize("name", [PEER, PLAIN, OURS])
def test_a_contestant_depends_on_all_it_is_told(name):
    """Else it would be compared for work that it does not do. Ours begins with a zero output: its weights are moved."""
    size = size_of("tiny", "cpu")
    torch.manual_seed(0)
    entry = contestant(name, size)
    entry.network.eval()
    with torch.no_grad():
        for p in entry.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
        x, t, label = torch.randn(2, *size.shape), torch.tensor([0.3, 0.3]), torch.tensor([1, 1])
        out = entry.predict(x, t, label)
        assert out.shape == x.shape
        for other in (entry.predict(x + 1, t, label), entry.predict(x, t + 0.5, label), entry.predict(x, t, label + 1)):
            assert not torch.allclose(out, other, atol=1e-4)


def test_the_ceiling_is_the_fastest_of_the_products():
    products = [Product(8, 8, 8), Product(256, 256, 256)]
    ceiling = find_ceiling(products, "fp32", CPU, 0.01)
    assert ceiling.product == products[1]
    assert ceiling.flops_per_s > 1e8
    assert products_of([], CPU)[0] == Product(256, 256, 256)
    shapes = products_of([size_of("S/4", "cpu")], CPU)
    assert Product(32 * 64, 384, 4 * 384) in shapes
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "S/3"], "choose from tiny, lesson, S/8"),
        (["--sizes", ""], "choose from tiny, lesson, S/8"),
        (["--sizes", "XL/2", "--device", "cpu"], "needs a CUDA GPU"),
        (["--out", "speed.txt"], "must be a file that ends in .json"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(words, said, capsys):
    assert main(["bench", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_sizes_fit_their_device():
    assert [size.name for size in sizes_of(None, "cpu")] == list(ON_CPU)
    assert [size.name for size in sizes_of(None, "cuda")] == list(ON_CUDA)
    large = size_of("XL/2", "cuda")
    assert (large.batch, large.part, large.tokens, large.dim // large.heads) == (256, CUDA_PART, 256, 72)
    for name in KNOWN:
        size = size_of(name, "cuda")
        assert size.batch % size.part == 0
    with pytest.raises(InputError, match="not known"):
        sizes_of("lesson,large", "cpu")


def test_without_the_peer_its_rows_are_left_out(monkeypatch, capsys):
    assert PEER in available()
    monkeypatch.setitem(sys.modules, "diffusers", None)  # Python then finds it no more
    assert main(WORDS) == 0
    done = capsys.readouterr()
    figures = json.loads(done.out)
    rows = every_row(figures)
    assert {name for _, name, _, _ in rows} == {PLAIN, OURS}
    assert not any("ratio" in row for row in rows.values())
    note, *others = figures["notes"]
    assert len(others) == emulates_bf16(torch.device("cpu"))
    assert f"note: {note}" in done.err.splitlines()
    assert "pip install 'ditlab[latents]'" in note


def test_an_interval_says_how_much_it_covers(quick):
    for row in every_row(quick[0]).values():
        assert row["coverage"] == coverage(3) == pytest.approx(0.75)


def test_the_limit_within_the_rounds_stands_beside_the_best(quick):
    figures = quick[0]
    for limits in figures["ceilings_in_rounds"]["tiny"].values():
        for dtype, limit in limits.items():
            low, high = limit["flops_per_s_interval"]
            assert low <= limit["flops_per_s"] <= high
            best = figures["ceilings"][dtype]["flops_per_s"]
            assert limit["share_of_best"] == pytest.approx(limit["flops_per_s"] / best)


def test_what_was_measured_is_kept_when_the_next_table_fails(tmp_path, monkeypatch):
    real = Table.speed

    def speed(table):
        if table.task == "sample":
            raise ValueError("a fault")
        return real(table)

    monkeypatch.setattr(Table, "speed", speed)
    out = tmp_path / "speed.json"
    with pytest.raises(ValueError, match="a fault"):
        main([*WORDS, "--out", str(out)])
    assert list(json.loads(out.read_text())["speed"]["tiny"]) == ["train"]


def test_a_row_that_memory_runs_out_for_says_so_and_the_others_are_there(monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("ditlab.bench.contestants.PlainDenoiser.forward", full)
    monkeypatch.setattr("ditlab.bench.rows.forward_operations", lambda *_: 1)
    assert main(WORDS) == 0
    for (_, name, _, _), row in every_row(json.loads(capsys.readouterr().out)).items():
        assert ("refused" in row) == (name == PLAIN)
        assert row.get("refused", "out of memory").startswith("out of memory")

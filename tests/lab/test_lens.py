"""The numbers behind the page, against torch's own and against the definitions."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ditlab
from ditlab.config import Config, DigitsData, DiTConfig
from ditlab.core.errors import InputError, Missing
from ditlab.data.dataset import External
from ditlab.lab import Lens
from ditlab.lab.lens.answer import Answer
from ditlab.lab.lens.attention import queries_and_keys
from ditlab.lab.lens.describe import describe
from ditlab.lab.server.library import Library
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run


@pytest.fixture(scope="module")
def lens(runs):
    return Lens(runs / "circles")


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A network with 1,024 tokens, more than a map is shown cell by cell for."""
    torch.manual_seed(0)
    network = ditlab.DiT(image_size=64, patch_size=2, channels=3, dim=32, depth=2, heads=2)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    process = ditlab.FlowMatching(network).eval().requires_grad_(False)
    config = Config(data=DigitsData(), network=DiTConfig())
    folder = RunFolder(tmp_path_factory.mktemp("big"))
    lens = Lens(Run(folder, config, process, step=0, dataset=External((3, 64, 64), {})))
    name = lens.own(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    return lens, name


def direct_map(lens, scene, layer):
    with ditlab.probe(lens.network, layers=[layer]) as record, torch.no_grad():
        lens.network(scene.x, torch.tensor([scene.t]), scene.cond)
    return record.attention[layer][0]  # (h, N, N)


def test_attention_is_that_of_a_probe(lens):
    scene = lens.scenes.scene("data:3", 0.4, None)
    for layer in (0, 3):
        expected = direct_map(lens, scene, layer)
        mean = lens.attention(input="data:3", t=0.4, layer=layer)["map"]
        np.testing.assert_allclose(mean, expected.mean(0), atol=1e-6)
        np.testing.assert_allclose(mean.sum(1), 1, atol=1e-5)
        one = lens.attention(input="data:3", t=0.4, layer=layer, head=2)["map"]
        np.testing.assert_allclose(one, expected[2], atol=1e-6)


def test_a_map_times_v_is_what_the_fused_kernel_makes(lens):
    scene = lens.scenes.scene("data:1", 0.5, None)
    module = lens.network.blocks[1].attn.attention
    seen = {}
    handle = module.register_forward_hook(lambda _, qkv, out: seen.update(v=qkv[2], out=out))
    with torch.no_grad():
        lens.network(scene.x, torch.tensor([scene.t]))
    handle.remove()
    for head in range(4):
        served = torch.from_numpy(lens.attention(input="data:1", t=0.5, layer=1, head=head)["map"])
        torch.testing.assert_close(served @ seen["v"][0, head], seen["out"][0, head], atol=1e-5, rtol=1e-4)


def test_rows_columns_and_thumbnails_are_parts_of_the_map(lens):
    where = {"input": "data:0", "t": 0.6}
    tiles = {way: lens.attention_thumbnails(**where, query=5, direction=way)["thumbnails"] for way in ("from", "to")}
    for layer in range(4):
        for head in range(4):
            whole = lens.attention(**where, layer=layer, head=head)["map"]
            np.testing.assert_allclose(tiles["from"][layer, head].ravel(), whole[5], atol=1e-6)
            np.testing.assert_allclose(tiles["to"][layer, head].ravel(), whole[:, 5], atol=1e-6)
        one = {"layer": layer, "head": "mean", "query": 5}
        whole = lens.attention(**where, layer=layer)["map"]
        np.testing.assert_allclose(lens.attention_row(**where, **one)["row"], whole[5], atol=1e-6)
        np.testing.assert_allclose(lens.attention_row(**where, **one, direction="to")["row"], whole[:, 5], atol=1e-6)


def test_statistics_are_those_of_the_maps(lens):
    table = lens.attention_statistics(input="data:2", t=0.3)
    for layer, head, column in ((0, 1, 1), (2, "mean", 4)):
        answer = lens.attention(input="data:2", t=0.3, layer=layer, head=head)
        m, a = answer["object_share"], answer["map"]
        assert table["entropy"][layer, column] == pytest.approx(-(a * np.log2(a)).sum(1).mean(), abs=1e-4)
        assert table["inside"][layer, column] == pytest.approx((m @ (a @ m)) / m.sum(), abs=1e-5)
        assert table["inside_chance"][layer, column] == pytest.approx(m.mean(), abs=1e-6)
        ranks = 1 + (a > np.diag(a)[:, None]).sum(1)
        assert table["diagonal_rank"][layer, column] == pytest.approx(ranks.mean(), abs=1e-5)
        np.testing.assert_allclose(answer["inside"], a @ m, atol=1e-5)


def test_the_object_share_is_the_disc(lens):
    scene = lens.scenes.scene("data:0", 0.3, None)
    share = lens.attention(input="data:0")["object_share"].reshape(4, 4)
    np.testing.assert_allclose(share, F.avg_pool2d((scene.x0 + 1) / 2, 4)[0, 0], atol=1e-6)


def test_the_summary_is_the_mean_over_images(lens):
    summary = lens.attention_summary()
    assert summary.meta["images"] == "64"
    assert summary["inside"].shape == (9, 4)
    inside = [lens.attention_statistics(input=f"data:{i}", t=0.3)["inside"][:, -1] for i in range(64)]
    np.testing.assert_allclose(summary["inside"][2], np.mean(inside, 0), atol=1e-4)


def test_an_input_is_mixed_as_the_process_says_and_read_as_the_network_says(lens):
    answer = lens.input(input="data:0", t=0.5)
    np.testing.assert_allclose(answer["x"], 0.5 * answer["x0"] + 0.5 * answer["noise"], atol=1e-6)
    x = torch.from_numpy(answer["x"])[None]
    with torch.no_grad():
        velocity = lens.network(x, torch.tensor([0.5]))[0]
    np.testing.assert_allclose(answer["prediction"], velocity, atol=1e-6)
    np.testing.assert_allclose(answer["denoised"], answer["x"] - 0.5 * answer["prediction"], atol=1e-5)
    np.testing.assert_allclose(answer["tokens"], answer["embedded"] + answer["positions"], atol=1e-6)
    assert answer.meta == {"t": "0.5", "a": "0.5", "s": "0.5", "label": "None"}


def test_a_training_example_is_the_one_training_saw(lens):
    batch = lens.run.dataset.batch(lens.run.config.seed, 32, 32)
    np.testing.assert_array_equal(lens.input(input="data:33")["x0"], batch.x0[1])


def test_a_generated_image_is_shown_on_its_trajectory(lens):
    answer = lens.input(input="sample:7", t=0.41)
    states = dict(lens.process.trajectory(1, (1, 16, 16), steps=25, solver="heun", seed=7))
    t = float(answer.meta["t"])
    assert abs(t - 0.41) <= 0.02 + 1e-9
    np.testing.assert_array_equal(answer["x"], states[t][0])
    np.testing.assert_array_equal(answer["x0"], states[0.0][0])


def test_a_generated_image_is_the_one_the_run_draws(runs):
    """Digits are drawn with guidance 2 unless told otherwise."""
    lens = Lens(runs / "digits")
    answer = lens.input(input="sample:13", t=0.0)
    assert answer.meta["label"] == "3"
    walk = lens.trajectory(seed=13, guidance=2.0)
    np.testing.assert_array_equal(answer["x0"], walk["x"][-1, 0])


def test_an_image_of_ones_own_has_no_label_unless_given_one(runs):
    lens = Lens(runs / "digits")
    own = lens.own(np.zeros((1, 8, 8), np.uint8))
    assert lens.input(input=own).meta["label"] == "10"
    assert lens.input(input=own, label=7).meta["label"] == "7"


def test_a_trajectory_too_large_to_hold_is_refused(lens, monkeypatch):
    monkeypatch.setattr("ditlab.lab.lens.lens.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="would hold"):
        lens.trajectory(steps=5)


def test_a_trajectory_ends_where_sampling_ends(runs):
    lens = Lens(runs / "digits")
    walk = lens.trajectory(steps=4, seed=3, label=6, guidance=2.0, n=2)
    expected = lens.process.sample(
        2, (1, 8, 8), {"label": torch.tensor([6, 6])}, steps=4, seed=3, guidance=2.0, solver="heun"
    )
    np.testing.assert_array_equal(walk["x"][-1], expected)
    assert walk["t"].tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert walk.meta["evaluations"] == "14"
    t = walk["t"][:, None, None, None, None]
    np.testing.assert_allclose((1 - t) * walk["x0"] + t * walk["eps"], walk["x"], atol=1e-4)


def test_a_question_in_between_finds_the_network_as_it_was_trained(runs):
    lens = Lens(runs / "circles")
    wanted = {"input": lens.input(t=0.4)["prediction"], "trajectory": lens.trajectory(steps=3)}
    changed = lens.trajectory(steps=3, edits="block:1")
    seen = []

    def look():
        seen.append(lens.input(t=0.4)["prediction"])
        seen.append(lens.trajectory(steps=3)["x"][-1])

    again = lens.trajectory(steps=3, edits="block:1", look=look)
    np.testing.assert_array_equal(again["x"], changed["x"])
    assert again.meta == changed.meta  # counts its own evaluations alone
    drawn = lens.samples(n=2, edits="head:0.0")["samples"]
    np.testing.assert_array_equal(lens.samples(n=2, edits="head:0.0", look=look)["samples"], drawn)
    assert len(seen) > 8
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_array_equal(one, wanted["input"])
        np.testing.assert_array_equal(other, wanted["trajectory"]["x"][-1])


def test_the_null_label_is_a_label(runs):
    lens = Lens(runs / "digits")
    null = lens.input(input="data:0", t=0.5, label=-1)
    with torch.no_grad():
        expected = lens.network(torch.from_numpy(null["x"])[None], torch.tensor([0.5]), None)[0]
    np.testing.assert_allclose(null["prediction"], expected, atol=1e-6)
    assert null.meta["label"] == "10"


def test_a_field_is_the_velocity(runs):
    lens = Lens(runs / "points")
    answer = lens.field(t=0.5, size=5)
    with torch.no_grad():
        expected = lens.network(torch.from_numpy(answer["points"]), torch.full((25,), 0.5))
    np.testing.assert_allclose(answer["velocity"], expected, atol=1e-5)


def test_gates_are_the_runs_own_recordings(lens):
    gates = lens.gates()
    assert gates["step"].tolist() == [0, 10, 20, 30, 40]
    assert gates["gate"].shape == (5, 7, 4, 2)
    assert not gates["gate"][0].any()
    assert (gates["gate"][-1] > 0).all()
    line = next(line for line in lens.run.folder.read_metrics() if line["step"] == 30)
    np.testing.assert_allclose(gates["gate"][3].mean(0)[:, 0], line["gates"]["attn"], rtol=1e-5)
    assert gates.meta["previews"] == "[0, 20, 40]"


def test_the_diagram_adds_up(runs):
    for name in ("circles", "digits", "points", "unet"):
        lens = Lens(runs / name)
        diagram = lens.flow()
        nodes = diagram["nodes"]
        assert [nodes[0]["kind"], nodes[-1]["kind"]] == ["input", "output"]
        assert diagram["parameters"] == sum(p.numel() for p in lens.network.parameters())
        assert sum(node["parameters"] for node in nodes) == diagram["parameters"]
        assert 0.9 * diagram["macs"] <= sum(node["macs"] for node in nodes) <= diagram["macs"]
        assert nodes[-1]["out"] == [1, *lens.run.shape]
        assert sum(node["ms"] for node in nodes) + diagram["between"] == pytest.approx(diagram["ms"], abs=1e-3)
        assert all(node["ms"] >= 0 for node in nodes)
        assert diagram["between"] > 0


def test_large_maps_are_pooled_and_say_so(big):
    lens, name = big
    scene = lens.scenes.scene(name, 0.5, None)
    expected = direct_map(lens, scene, 1)
    answer = lens.attention(input=name, t=0.5, layer=1, head=1)
    assert answer.meta == {"pool": "4", "tokens": "1024"}
    np.testing.assert_allclose(answer["map"], F.avg_pool2d(expected[1][None], 4)[0], atol=1e-7)
    np.testing.assert_allclose(
        lens.attention_row(input=name, t=0.5, layer=1, head="mean", query=700, direction="to")["row"],
        expected.mean(0)[:, 700],
        atol=1e-7,
    )
    tiles = lens.attention_thumbnails(input=name, t=0.5, query=9)
    assert tiles["thumbnails"].shape == (2, 2, 16, 16)
    assert tiles.meta["pool"] == "2"
    assert answer["entropy"].shape == (1024,)


def test_layers_that_nobody_asked_for_are_not_computed(big):
    lens, name = big
    ran = []
    handle = lens.network.blocks[1].register_forward_hook(lambda *_: ran.append(1))
    try:
        kept = queries_and_keys(lens.network, lens._forward(lens.scenes.scene(name, 0.5, None)), [0])
    finally:
        handle.remove()
    assert list(kept) == [0]
    assert not ran


def test_what_would_cost_too_much_is_refused_before_it_starts(big):
    lens, _ = big
    assert lens.scenes.macs > 0  # counted on a copy without numbers
    lens.process.network.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    with pytest.raises(InputError, match="multiply-accumulates"):
        lens.trajectory(steps=200, n=10**6)
    lens.process.network._forward_pre_hooks.clear()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda lens: lens.attention(layer=4), "layers 0 to 3"),
        (lambda lens: lens.attention(head=4), "0 to 3, or mean"),
        (lambda lens: lens.attention_row(query=16), "patches 0 to 15"),
        (lambda lens: lens.input(input="../etc"), "unknown input"),
        (lambda lens: lens.input(input="data:-1"), "unknown input"),
        (lambda lens: lens.input(t=1.5), "between 0"),
        (lambda lens: lens.input(label=1), "without labels"),
        (lambda lens: lens.trajectory(steps=0), "between 1 and 200"),
        (lambda lens: lens.field(), "for points"),
        (lambda lens: lens.own(np.zeros((3, 3), np.uint8)), "uint8"),
    ],
)
def test_what_is_not_there_is_named(lens, question, message):
    with pytest.raises(InputError, match=message):
        question(lens)


def test_networks_without_attention_or_gates_say_so(runs):
    points, unet = Lens(runs / "points"), Lens(runs / "unet")
    with pytest.raises(InputError, match="no images"):
        points.attention()
    assert describe(points)["sections"]["attention"] == "An MLP has no attention."
    with pytest.raises(InputError, match="no gates"):
        unet.gates()
    assert describe(unet)["attention"] == [{"layer": 0, "heads": 4, "grid": [8, 8], "tokens": 64}]
    np.testing.assert_allclose(unet.attention()["map"].sum(1), 1, atol=1e-5)


def test_a_library_names_runs_opaquely_and_forgets_none(runs, tmp_path):
    library = Library(runs)
    names = {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}
    assert set(names) == {"circles", "digits", "points", "unet"}
    assert library.describe(names["circles"], 20, "raw")["step"] == 20
    for name in names.values():  # more than are kept in memory
        library.lens(name)
    assert library.lens(names["circles"]).run.step == 40
    with pytest.raises(Missing, match="no such run"):
        library.lens("circles")
    with pytest.raises(Missing, match="20, 40"):
        library.lens(names["circles"], 30)
    with pytest.raises(InputError, match="no run"):
        Library(tmp_path / "nothing")
    with pytest.raises(InputError, match="device 'tpu' is not available"):
        Library(runs, "tpu")


def test_a_new_run_of_an_old_name_is_looked_at_itself(runs, tmp_path):
    """And one whose checkpoint is thinned out goes on being shown."""
    library = Library(shutil.copytree(runs / "circles", tmp_path / "run"))
    (name,) = library.folders()
    lens = library.lens(name, 20)
    figures = library.quality(name, 20, "ema", 100, 0, lambda: None)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000020")
    assert library.lens(name, 20) is lens
    found = library.describe(name, 20, "ema")
    assert (found["step"], found["checkpoints"]) == (20, [20, 40])
    assert library.describe(name, None, "ema")["checkpoints"] == [40]
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(runs / "digits", tmp_path / "run")
    assert library.lens(name, 20).run.num_classes == 10
    assert library.quality(name, 20, "ema", 100, 0, lambda: None) != figures
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000020")
    shutil.copytree(runs / "circles" / "checkpoints" / "step-00000040", tmp_path / "run/checkpoints/step-00000040")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"seconds": ', '"seconds": 1', 1))
    with pytest.raises(Missing, match="no checkpoint of step 20"):
        library.lens(name, 20)


def test_damaged_runs_and_files_are_left_out(runs, tmp_path):
    shutil.copytree(runs / "circles", tmp_path / "a")
    (tmp_path / "b" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "b" / "config.json").write_text("{}")
    (tmp_path / "a" / "samples" / "step-foo.png").touch()
    (tmp_path / "a" / "probes" / "step-00000020.safetensors").write_bytes(b"short")
    library = Library(tmp_path)
    (entry,) = library.catalogue()["runs"]
    assert library.describe(entry["id"], None, "ema")["previews"] == [0, 20, 40]
    assert library.lens(entry["id"]).gates()["step"].tolist() == [0, 10, 30, 40]
    with pytest.raises(InputError, match=r"config\.json"):
        Library(tmp_path / "b")


def test_answers_are_float32():
    answer = Answer({"x": torch.arange(3)}, word="yes")
    assert answer["x"].dtype == np.float32
    assert answer.meta == {"word": "yes"}


def test_an_adaptive_trajectory_counts_what_it_spent(lens):
    walk = lens.trajectory(solver="dopri5", steps=2)
    assert walk["t"].tolist() == pytest.approx([1, 0.5, 0])
    assert int(walk.meta["evaluations"]) > 2

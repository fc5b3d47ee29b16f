"""Every kind of conditioning from the command line to the lab: it learns circles, and every question has an answer."""

import numpy as np
import pytest
import torch

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import InputError
from ditlab.lab import Lens
from ditlab.lab.lens.describe import describe
from ditlab.runs.build import build_dataset
from tests.networks.test_conditioning import OWN

SMALL = ["--steps", "80", "--batch-size", "32", "--network.dim", "32", "--network.depth", "2", "--network.heads", "2"]
SMALL += ["--record-every", "40", "--preview-every", "80", "--checkpoint-every", "80", "--log-every", "20"]
SMALL += ["--sampling.steps", "4", "--warmup-steps", "10", "--precision", "fp32"]
GATED = ("adaln-zero", "scale-and-gate")


@pytest.fixture(scope="module", params=[*OWN, "scale-and-gate"])
def run(request, tmp_path_factory):
    """A run of that kind, trained by its one word; the last kind is registered by a test, outside the package."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "circles", "--network.conditioning", request.param, *SMALL]) == 0
        assert main(["sample", "circles", "--n", "4", "--out", "a.png"]) == 0
    return ditlab.load(folder / "runs" / "circles")


def test_it_learns_circles(run):
    """The loss ends well below that of the best constant, the mean of the velocity eps − x0."""
    x0 = build_dataset(run.config).batch(1, 0, 2000).x0
    constant = float(1 + x0.var(dim=0).mean())
    losses = [line["loss"] for line in run.folder.read_metrics() if "loss" in line]
    assert losses[-1] < 0.85 * constant
    assert losses[-1] < losses[0]


def test_every_question_of_the_lab_has_an_answer(run):
    lens, kind = Lens(run), run.config.network.conditioning
    where = {"input": "data:0", "t": 0.4}
    assert lens.grids == [(4, 4)] * 2
    assert lens.input(**where)["tokens"].shape == (16, 32)
    assert lens.own(np.zeros((1, 16, 16), np.uint8))
    assert lens.attention_row(**where, query=3)["row"].shape == (16,)
    assert lens.attention_row(**where, query=3, direction="to")["row"].shape == (16,)
    assert lens.attention_thumbnails(**where, query=15)["thumbnails"].shape == (2, 2, 4, 4)
    assert lens.attention_statistics(**where)["entropy"].shape == (2, 3)
    assert lens.attention_summary()["inside"].shape == (9, 2)
    assert lens.trajectory(steps=2)["x"].shape == (3, 1, 1, 16, 16)
    assert lens.previews() == [0, 80]
    with pytest.raises(InputError, match="patches 0 to 15"):
        lens.attention_row(query=16)
    about = describe(lens)
    assert about["attention"][0] == {"layer": 0, "heads": 2, "grid": [4, 4], "tokens": 16}
    assert about["has_gates"] == (kind in GATED)
    if kind in GATED:
        assert lens.gates()["gate"].shape == (3, 7, 2, 2)
        assert about["sections"]["gates"] is None
    else:
        assert about["sections"]["gates"] == f"A DiT with {kind} has no gates."
        with pytest.raises(InputError, match="recorded no gates"):
            lens.gates()


def test_maps_are_those_of_a_probe_cut_to_the_patches(run):
    lens = Lens(run)
    scene = lens.scenes.scene("data:3", 0.4, None)
    with ditlab.probe(lens.network) as record, torch.no_grad():
        lens.network(scene.x, torch.tensor([scene.t]), scene.cond)
    expected = record.attention[1][0, 1]
    shown = lens.attention(input="data:3", t=0.4, layer=1, head=1)["map"]
    np.testing.assert_allclose(shown, expected[:16, :16], atol=1e-6)
    elsewhere = 1 - shown.sum(1)
    np.testing.assert_allclose(elsewhere, expected[:16, 16:].sum(1), atol=1e-5)
    assert (elsewhere > 1e-3).any() == (run.config.network.conditioning == "in-context")


def test_statistics_are_among_patches_and_what_is_left_goes_to_the_conditions(run):
    lens, where = Lens(run), {"input": "data:3", "t": 0.4}
    answer = lens.attention(**where, layer=1, head=1)
    table, summary = lens.attention_statistics(**where), lens.attention_summary()
    a, m = answer["map"].astype(np.float64), answer["object_share"]
    if lens.condition_tokens:
        assert lens.condition_tokens == ("time",)
        np.testing.assert_allclose(answer["to_tokens"].sum(1), 1 - a.sum(1), atol=1e-5)
        assert table["to_tokens"][1, 1] == pytest.approx(1 - a.sum(1).mean(), abs=1e-5)
        assert ((summary["to_tokens"] > 0) & (summary["to_tokens"] < 1)).all()
        a /= a.sum(1, keepdims=True)
    else:
        assert "to_tokens" not in {*answer, *table, *summary}
    np.testing.assert_allclose(a.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(answer["inside"], a @ m, atol=1e-5)
    np.testing.assert_allclose(answer["entropy"], -(a * np.log2(a)).sum(1), atol=1e-4)
    assert table["inside"][1, 1] == pytest.approx(m @ (a @ m) / m.sum(), abs=1e-5)
    assert answer.meta["tokens"] == "16"


def test_cross_attention_is_that_of_a_probe(run):
    lens = Lens(run)
    if run.config.network.conditioning != "cross-attention":
        with pytest.raises(InputError, match="no cross-attention"):
            lens.cross_attention()
        return
    scene = lens.scenes.scene("data:3", 0.4, None)
    with ditlab.probe(lens.network) as record, torch.no_grad():
        lens.network(scene.x, torch.tensor([scene.t]), scene.cond)
    share = lens.cross_attention(input="data:3", t=0.4)["share"]
    np.testing.assert_allclose(share, torch.stack([record.cross[i].mean((0, 1, 2)) for i in range(2)]), atol=1e-6)
    assert lens.cross_tokens == record.cross_tokens == ("time",)


def test_the_diagram_says_what_reaches_what(run):
    diagram, kind = Lens(run).flow(), run.config.network.conditioning
    vector = kind not in ("in-context", "cross-attention")
    for node in diagram["nodes"]:
        if node["kind"] in ("modulation", "final"):
            assert node["steered"] == vector
        if node["block"] is not None:
            assert node["gated"] == (kind in GATED)
    kinds = [node["kind"] for node in diagram["nodes"]]
    assert kinds.count("cross") == (2 if kind == "cross-attention" else 0)
    assert diagram["tokens"] == {
        "sequence": ["time"] if kind == "in-context" else [],
        "cross": ["time"] if kind == "cross-attention" else [],
    }
    if kind == "in-context":
        assert kinds[kinds.index("join") + 1] == "modulation"
        assert kinds[-4:] == ["cut", "final", "unpatchify", "output"]


def test_the_diagram_adds_up(run):
    lens = Lens(run)
    diagram = lens.flow()
    nodes = diagram["nodes"]
    assert diagram["parameters"] == sum(p.numel() for p in lens.network.parameters())
    assert sum(node["parameters"] for node in nodes) == diagram["parameters"]
    assert 0.9 * diagram["macs"] <= sum(node["macs"] for node in nodes) <= diagram["macs"]
    kinds = {node["kind"] for node in nodes}
    assert {"modulation", "attention", "mlp"} <= kinds


def test_an_unknown_kind_is_named(in_tmp, capsys):
    assert main(["train", "circles", "--network.conditioning", "flim"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "choose one of adaln-zero, adaln, film" in said
    assert not (in_tmp / "runs").exists()


def test_a_network_without_a_null_label_trains_and_is_looked_into(in_tmp):
    options = ["--network.no-null-label", "--process.condition-dropout", "0", "--sampling.guidance", "1"]
    sizes = ["--network.dim", "16", "--network.depth", "2", "--network.embedders", "per-block", "--steps", "2"]
    assert main(["train", "digits", *options, *sizes, "--batch-size", "4", "--sampling.steps", "2"]) == 0
    lens = Lens(in_tmp / "runs" / "digits")
    own = lens.own(np.zeros((1, 8, 8), np.uint8))
    assert lens.input(input=own).meta["label"] == "0"
    assert lens.flow()["parameters"] == sum(p.numel() for p in lens.network.parameters())
    with pytest.raises(InputError, match="has no null label"):
        lens.input(input=own, label=-1)

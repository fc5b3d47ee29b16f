"""Parts switched off, through the lens, the routes and the page: what is shown is what a changed copy says."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays

import ditlab
from ditlab.config import Config, DigitsData, DiTConfig
from ditlab.core.errors import InputError
from ditlab.data.dataset import External
from ditlab.inspection.interventions import single_edits
from ditlab.lab import Lens
from ditlab.lab.export import _held_changes
from ditlab.lab.lens.ablations import TIMES
from ditlab.lab.lens.scenes import MAX_WORK
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run
from tests.lab.shell import ask, serving
from tests.lab.test_page import FROM_DISK, chosen, opened, section, serve


@pytest.fixture(scope="module")
def lens(runs):
    return Lens(runs / "circles")


def without_head(network, layer, head):
    """A copy in which nobody reads what that head says."""
    other = copy.deepcopy(network)
    attention = other.blocks[layer].attn
    width = attention.out.in_features // attention.heads
    attention.out.weight[:, head * width : (head + 1) * width] = 0
    return other


def without_block(network, block):
    other = copy.deepcopy(network)
    del other.blocks[block]
    return other


@torch.no_grad()
def predicted(lens, network, name, t):
    """x0 = x_t − t·v, of flow matching."""
    scene = lens.scenes.scene(name, t, None)
    return (scene.x - scene.t * network(scene.x, torch.tensor([scene.t]), scene.cond))[0].numpy()


def test_an_edited_input_is_the_same_image_seen_by_a_changed_network(lens):
    plain = lens.input(input="sample:3", t=0.4)
    changed = lens.input(input="sample:3", t=0.4, edits="head:2.1 block:3")
    for name in ("x0", "x", "noise"):
        np.testing.assert_array_equal(changed[name], plain[name])
    other = without_block(without_head(lens.network, 2, 1), 3)
    np.testing.assert_allclose(changed["denoised"], predicted(lens, other, "sample:3", 0.4), atol=1e-5)
    assert abs(changed["denoised"] - plain["denoised"]).mean() > 1e-3
    again = lens.input(input="sample:3", t=0.4)
    np.testing.assert_array_equal(again["denoised"], plain["denoised"])


def test_edited_samples_and_trajectories_are_drawn_by_the_changed_network(lens):
    drawing = {"steps": lens.run.config.sampling.steps, "seed": 4}
    expected = ditlab.FlowMatching(without_block(lens.network, 0)).eval().sample(3, (1, 16, 16), **drawing)
    drawn = lens.samples(n=3, seed=4, edits="block:0")["samples"]
    np.testing.assert_allclose(drawn, expected.clamp(-1, 1), atol=1e-5)
    walk = lens.trajectory(n=3, edits="block:0", **drawing)
    np.testing.assert_allclose(walk["x"][-1], expected, atol=1e-5)
    plain = lens.samples(n=3, seed=4)["samples"]
    np.testing.assert_array_equal(plain, lens.process.sample(3, (1, 16, 16), **drawing).clamp(-1, 1))
    assert abs(plain - drawn).mean() > 1e-3


def test_samples_of_labels_go_through_the_classes(runs):
    lens = Lens(runs / "digits")
    own = lens.run.config.sampling
    expected = lens.run.sample(12, steps=own.steps, solver=own.solver, guidance=own.guidance, seed=1)
    np.testing.assert_allclose(lens.samples(n=12, seed=1)["samples"], expected, atol=1e-6)
    same = lens.run.sample(2, labels=7, steps=own.steps, solver=own.solver, guidance=own.guidance, seed=1)
    np.testing.assert_allclose(lens.samples(n=2, seed=1, label=7)["samples"], same, atol=1e-6)


@torch.no_grad()
def loss_of(lens, network, images):
    """The loop that the table stands for: the process's own loss at each time, image by image."""
    process = ditlab.FlowMatching(network, condition_dropout=0).eval()
    losses = []
    for i in range(images):
        scenes = [lens.scenes.scene(f"data:{i}", t, None) for t in TIMES]
        errors = [process.predict(s.x, torch.tensor([s.t]), s.cond) - (s.noise - s.x0) for s in scenes]
        losses.append(np.mean([float(error.double().square().mean()) for error in errors]))
    return np.array(losses)


def test_costs_are_those_of_a_direct_loop(lens):
    answer = lens.costs()
    edits, images = answer.meta["edits"].split(), int(answer.meta["images"])
    assert (images, answer.meta["source"]) == (64, "examples")
    assert len(edits) == len(set(edits)) == 4 * 4 + 4 * 2 + 4
    assert (np.diff(answer["cost"]) <= 0).all()
    whole = loss_of(lens, lens.network, images)
    assert answer["loss"] == pytest.approx(whole.mean(), rel=1e-4)
    for word, network in (("head:1.2", without_head(lens.network, 1, 2)), ("block:0", without_block(lens.network, 0))):
        rise = loss_of(lens, network, images) - whole
        place = edits.index(word)
        assert answer["cost"][place] == pytest.approx(rise.mean(), rel=1e-3, abs=1e-5)
        assert answer["error"][place] == pytest.approx(rise.std(ddof=1) / 8, rel=1e-3, abs=1e-6)


def test_costs_are_measured_once_and_can_be_left(runs):
    lens, looks = Lens(runs / "circles"), []
    passes = []

    def left(*_):
        passes.append(any(m._forward_hooks for m in lens.network.modules()))
        if len(passes) == 3 * len(TIMES):  # while the second part is off
            raise TimeoutError

    handle = lens.network.blocks[0].mlp.register_forward_pre_hook(left)
    with pytest.raises(TimeoutError):
        lens.costs()
    handle.remove()
    assert passes[-1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lens.network.modules())
    first = lens.costs(look=lambda: looks.append(1))
    before = len(looks)
    again = lens.costs(look=lambda: looks.append(1))
    assert len(looks) == before
    np.testing.assert_array_equal(first["cost"], again["cost"])


def test_where_there_are_no_examples_costs_are_measured_on_generated_images(runs, monkeypatch):
    monkeypatch.setattr("ditlab.lab.lens.scenes.Scenes.has_examples", False)
    answer = Lens(runs / "unet").costs()
    assert (answer.meta["images"], answer.meta["source"]) == ("16", "generated")
    assert sorted(answer.meta["edits"].split()) == [f"head:0.{head}" for head in range(4)]


def test_work_is_that_of_the_whole_network_and_counts_what_has_to_be_drawn(runs, monkeypatch):
    lens = Lens(runs / "circles")
    lens.samples(n=1, edits="block:0 block:1 head:2.0")
    assert lens.scenes.macs == Lens(runs / "circles").scenes.macs
    monkeypatch.setattr("ditlab.lab.lens.scenes.Scenes.has_examples", False)
    lens = Lens(runs / "unet")
    passes = (len(single_edits(lens.network)) + 1) * len(TIMES) * lens.scenes.macs
    monkeypatch.setitem(MAX_WORK, "cpu", 4 * passes)  # enough for what is measured, if it were there
    with pytest.raises(InputError, match="switch single parts off"):
        lens.costs()


def test_what_is_too_large_or_not_there_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="no heads, gates or blocks"):
        Lens(runs / "points").costs()
    with torch.device("meta"):
        network = ditlab.DiT.preset("DiT-XL/2")
    process = ditlab.DDPM(network.to_empty(device="cpu")).eval()
    config = Config(data=DigitsData(), network=DiTConfig())
    huge = Lens(Run(RunFolder(tmp_path), config, process, step=0, dataset=External((4, 32, 32), {})))
    with pytest.raises(InputError, match="switch single parts off"):
        huge.costs()
    with pytest.raises(InputError, match="fewer samples"):
        huge.samples(n=8)


class Late(torch.nn.Module):
    """A network that takes every time for 0.9."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, cond=None):
        return self.network(x, torch.full_like(t, 0.9), cond)


def test_points_are_told_another_time(runs):
    lens = Lens(runs / "points")
    held = lens.samples(n=50, edits="time:0.9")["samples"]
    expected = ditlab.FlowMatching(Late(lens.network)).eval().sample(50, (2,), steps=lens.run.config.sampling.steps)
    np.testing.assert_allclose(held, expected, atol=1e-6)
    assert abs(held - lens.samples(n=50)["samples"]).mean() > 1e-4


def test_routes_answer_with_changed_networks_and_refuse_nonsense(runs, lens):
    library, worker = Library(runs), Worker()
    names = {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}
    with serving(create_app(library, worker)) as port:

        def get(path, run="circles"):
            return ask(port, f"/api/runs/{names[run]}{path}")

        answer = load_arrays(get("/input?t=0.4&edits=head%3A2.1%20gate%3A0.mlp").body)
        np.testing.assert_array_equal(answer["denoised"], lens.input(t=0.4, edits="head:2.1 gate:0.mlp")["denoised"])
        assert load_arrays(get("/samples?n=2&edits=block%3A1").body)["samples"].shape == (2, 1, 16, 16)
        assert load_arrays(get("/trajectory?steps=2&edits=time%3A0.5").body)["x"].shape == (3, 1, 1, 16, 16)
        costs = load_arrays(get("/costs").body)
        np.testing.assert_array_equal(costs["cost"], lens.costs()["cost"])
        for path, run, word in (
            ("/input?edits=head%3A9.1", "circles", "attention layer 9"),
            ("/input?edits=remove", "circles", "unknown edit"),
            ("/input?edits=" + "head%3A1.1%20" * 1000, "circles", "edits"),
            ("/samples?n=17", "circles", "at most 16"),
            ("/trajectory?edits=gate%3A0.mlp", "unet", "no transformer block"),
            ("/samples?edits=block%3A0", "points", "no transformer block"),
            ("/costs", "points", "no heads"),
        ):
            answer = get(path, run)
            assert answer.status == 400, path
            assert word in json.loads(answer.body)["error"]
    worker.close()


# ---- the page


@pytest.fixture(scope="module")
def address(runs):
    with serve(runs) as url:
        yield url


def change(page):
    return section(page, "Switch parts off")


def near(page, pattern, expected):
    """Wait until the number in a sentence of the section is that one, to the three digits that are shown."""
    for left in range(100, -1, -1):
        found = re.search(pattern, change(page).inner_text())
        if found and float(found[1]) == pytest.approx(expected, rel=6e-3):
            return
        assert left, f"{found and found[0]!r} is not {expected}"
        page.wait_for_timeout(100)


def difference(page, expected):
    """The predictions are as far apart as torch says."""
    near(page, r"([\d.e-]+) is the mean", expected)


def switch(page, name):
    return change(page).get_by_role("switch", name=name, exact=True)


def test_switches_change_the_network_and_the_address(chromium, address, lens, runs):
    plain = predicted(lens, lens.network, "data:1", 0.4)
    with opened(chromium, address + "?t=0.4&input=data:1") as page:
        change(page).scroll_into_view_if_needed()
        change(page).get_by_text("Nothing is changed yet").wait_for()
        switch(page, "head 1 of block 2").click()
        network = without_head(lens.network, 2, 1)
        difference(page, abs(predicted(lens, network, "data:1", 0.4) - plain).mean())
        assert switch(page, "head 1 of block 2").get_attribute("aria-checked") == "false"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Home")
        page.keyboard.press("Space")
        both = abs(predicted(lens, without_block(network, 3), "data:1", 0.4) - plain).mean()
        difference(page, both)
        page.wait_for_url(re.compile(r"edits=head:2\.1.+block:3"))
        assert chosen(page)["edits"] == "head:2.1 block:3"
        page.reload()
        difference(page, both)
        drawn = Lens(runs / "circles").samples(n=8, edits="head:2.1 block:3")["samples"]
        apart = abs(drawn - lens.samples(n=8)["samples"]).mean()
        near(page, r"On average they differ by ([\d.e-]+)", apart)
        change(page).get_by_role("button", name="Put back: head 1 of block 2 off").click()
        difference(page, abs(predicted(lens, without_block(lens.network, 3), "data:1", 0.4) - plain).mean())
        change(page).get_by_role("button", name="Undo all changes").click()
        change(page).get_by_text("Nothing is changed yet").wait_for()
        page.wait_for_timeout(300)
        assert "edits" not in chosen(page)


def test_who_puts_parts_back_by_keyboard_is_not_lost(chromium, address):
    with opened(chromium, address + "?edits=head:2.1+block:3") as page:
        change(page).scroll_into_view_if_needed()
        for name, then in (
            ("Put back: head 1 of block 2 off", "Put back: block 3 off"),
            ("Put back: block 3 off", "block 3"),
        ):
            change(page).get_by_role("button", name=name).press("Enter")
            page.wait_for_function("name => document.activeElement.ariaLabel === name", arg=then)
        switch(page, "block 3").press("Space")
        change(page).get_by_role("button", name="Undo all changes").press("Enter")
        page.wait_for_function("document.activeElement.role === 'switch'")


def test_attention_and_time_are_changed_by_their_controls(chromium, address, lens):
    plain = lens.input(t=0.4)["denoised"]
    with opened(chromium, address + "?t=0.4&input=data:0") as page:
        change(page).scroll_into_view_if_needed()
        looks = change(page).get_by_role("combobox", name="How block 1 looks")
        for choice, edits in (("looks at all equally", "uniform:1"), ("looks at most 1 away", "local:1.1")):
            looks.select_option(choice)
            difference(page, abs(lens.input(t=0.4, edits=edits)["denoised"] - plain).mean())
        looks.select_option("looks as trained")
        change(page).get_by_role("checkbox", name=re.compile("Tell the network one fixed time")).check()
        change(page).get_by_role("slider", name="Time the network is told").fill("16")
        page.wait_for_url(re.compile("edits=time:0.8"))
        difference(page, abs(lens.input(t=0.4, edits="time:0.8")["denoised"] - plain).mean())


def test_the_table_ranks_what_parts_are_worth(chromium, address, lens):
    costs = lens.costs()
    heads = [word for word in costs.meta["edits"].split() if word.startswith("head")]
    with opened(chromium, address) as page:
        change(page).scroll_into_view_if_needed()
        rows = change(page).get_by_role("listitem").locator(".worth-row")
        rows.first.wait_for()
        assert rows.evaluate_all("all => all.map(one => one.dataset.word)") == heads
        layer, head = heads[0].removeprefix("head:").split(".")
        assert rows.first.inner_text().startswith(f"head {head} of block {layer}")
        place = costs.meta["edits"].split().index(heads[0])
        said = re.search(r"([+−][\d.]+) ± ([\d.]+)", rows.first.inner_text())
        assert float(said[1].replace("−", "-")) == pytest.approx(costs["cost"][place], rel=0.05)
        assert float(said[2]) == pytest.approx(costs["error"][place], rel=0.05)
        rows.first.click()
        page.wait_for_url(re.compile(f"edits={heads[0]}"))
        assert switch(page, f"head {head} of block {layer}").get_attribute("aria-checked") == "false"
        change(page).get_by_text("Blocks", exact=True).click()
        assert rows.count() == 4


@pytest.mark.parametrize(("run", "edits"), [("unet", "uniform:0"), ("points", "time:0.5")])
def test_other_networks_have_the_switches_that_apply(chromium, address, runs, run, edits):
    names = {entry["name"]: entry["id"] for entry in Library(runs).catalogue()["runs"]}
    with opened(chromium, f"{address}?run={names[run]}&edits={edits} gate:1.mlp block:0") as page:
        change(page).scroll_into_view_if_needed()
        change(page).get_by_text("On average they differ by").wait_for()
        assert change(page).get_by_role("switch").count() == (4 if run == "unet" else 0)
        page.wait_for_timeout(300)
        assert chosen(page)["edits"] == edits


def test_a_file_holds_single_changes_and_says_what_it_does_not(chromium, exported, lens):
    changed = abs(lens.input(t=0.3, edits="block:1")["denoised"] - lens.input(t=0.3)["denoised"]).mean()
    with opened(chromium, exported.as_uri() + "#t=0.3&edits=head:2.1 block:1", FROM_DISK, offline=True) as page:
        difference(page, changed)
        assert change(page).get_by_role("switch", checked=False).count() == 1
        change(page).get_by_text("one change at a time").wait_for()
        switch(page, "MLP of block 0").click()
        gate = lens.input(t=0.3, edits="gate:0.mlp")["denoised"] - lens.input(t=0.3)["denoised"]
        difference(page, abs(gate).mean())
        change(page).scroll_into_view_if_needed()
        change(page).locator(".worth-row").first.wait_for()
        page.get_by_role("region", name="What is shown").get_by_role("slider", name="Time t").press("ArrowRight")
        change(page).get_by_text(
            re.compile("This file holds changes for example 0 and example 1, at t = 0.3")
        ).wait_for()
        assert "not in this file" not in page.locator("main").inner_text()


def test_what_a_file_holds_of_changes_stays_small(exported):
    words, choices = [f"head:{i // 8}.{i % 8}" for i in range(32)], {"input": ["data:0", "sample:0"], "t": [0.1, 0.3]}
    held = _held_changes(words, {"shape": [1, 16, 16], "draws": 8}, choices)
    assert held == {"edits": words, "input": ["data:0", "sample:0"], "t": [0.3]}
    none = _held_changes(words, {"shape": [3, 64, 64], "draws": 8}, choices)
    assert (none["edits"], none["input"]) == ([], [])
    text = re.search(r'id="embedded">(.*?)</script>', exported.read_text(), re.DOTALL)[1]
    sizes = [len(path) + len(entry["body"]) for path, entry in json.loads(text)["paths"].items() if "edits=" in path]
    assert len(sizes) == 32 * 3
    # With all five images and both times there are ten in the place of two.
    assert sum(sizes) + 4 * sum(size for size in sizes if size < 4000) < 1.5e6

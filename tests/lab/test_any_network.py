"""Networks of all shapes and origins open: rectangular and colour images, latents, imported checkpoints of any size."""

import contextlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ditlab
from ditlab.cli.main import main
from ditlab.config import Config
from ditlab.core.errors import InputError
from ditlab.inspection.probe import attention_map
from ditlab.interop.imports import import_checkpoint
from ditlab.lab import Lens
from ditlab.lab.lens.decoding import Decoding, why_not
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from ditlab.runs.decode import decoder
from ditlab.runs.folder import RunFolder
from tests.images import folder_of
from tests.interop.peers import facebook_state
from tests.lab.conftest import train_into
from tests.lab.shell import ask, eventually, serving
from tests.lab.test_page import opened, section, serve
from tests.latents import encode, images_and_vae

TINY = ["--steps", "2", "--batch-size", "4", "--network.dim", "32", "--network.depth", "2", "--network.heads", "2"]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A folder with runs on rectangular colour images and on latents, and an imported one."""
    root = tmp_path_factory.mktemp("several")
    with contextlib.chdir(root):
        folder_of("photos16x24", size=(16, 24))
        sizes = ["--data.path", "photos16x24", "--data.image-size", "16", "24", "--network.patch-size", "4"]
        assert main(["train", "images", *sizes, *TINY, "--name", "colour"]) == 0
        unet = RunFolder("runs/colour").read_config().model_dump() | {"network": {"kind": "unet", "width": 8}}
        train_into(root / "runs" / "colour-unet", Config(**unet))
        images_and_vae(root)
        assert encode() == 0
        assert main(["train", "latents", "--data.path", "store", *TINY, "--name", "latents"]) == 0
        torch.save(facebook_state(depth=2, rows=11, size=8, dim=64), "small.pt")
        folder = import_checkpoint(root / "small.pt", "facebook-dit", root / "runs" / "imported", heads=4).folder
        config = folder.read_config()  # published: 250 steps
        folder.write_config(config.model_copy(update={"sampling": config.sampling.model_copy(update={"steps": 5})}))
    return root / "runs"


@pytest.mark.parametrize("name", ["colour", "colour-unet", "latents", "imported"])
def test_every_section_opens_or_says_why_not(chromium, several, name):
    names = {entry["name"]: entry["id"] for entry in Library(several).catalogue()["runs"]}
    with serve(several) as url, opened(chromium, f"{url}?run={names[name]}") as page:
        sections = page.locator("main > section")
        sections.nth(5).wait_for()
        for one in sections.all():
            one.scroll_into_view_if_needed()
            busy = one.locator('.panel-body[aria-busy="true"]')
            busy.first.wait_for(state="detached")
            assert [text for text in one.locator(".trouble").all_inner_texts() if text] == []
        text = page.locator("main").inner_text()
        assert ("A U-Net cuts nothing into patches." in text) == (name == "colour-unet")
        assert ("This run was imported" in page.locator("#gates").inner_text()) == (name == "imported")
        assert ("does not say which autoencoder" in text) == (name == "imported")


def test_maps_of_rectangles_are_those_of_a_probe(several):
    lens = Lens(several / "colour")
    assert lens.grids == [(4, 6), (4, 6)]
    scene = lens.scenes.scene("data:1", 0.4, None)
    with ditlab.probe(lens.network) as record, torch.no_grad():
        lens.network(scene.x, torch.tensor([scene.t]), scene.cond)
    row = lens.attention_row(input="data:1", t=0.4, layer=1, head=1, query=7)["row"]
    np.testing.assert_allclose(row, record.attention[1][0, 1, 7], atol=1e-6)
    assert lens.attention_thumbnails(input="data:1", query=23)["thumbnails"].shape == (2, 2, 4, 6)


def test_latents_are_shown_as_the_autoencoder_decodes_them(chromium, several):
    lens = Lens(several / "latents")
    answer = lens.input(input="data:0", t=0.3)
    expected = decoder(lens.run)(torch.from_numpy(answer["x0"])[None])[0]
    with serve(several / "latents") as url, opened(chromium, f"{url}?t=0.3&input=data:0") as page:
        patches = section(page, "From image to tokens")
        picture = patches.get_by_role("img", name="x₀, decoded", exact=True)
        picture.scroll_into_view_if_needed()
        eventually(lambda: picture.get_attribute("width") != "1")
        pixels = picture.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    side = expected.shape[-1]
    shown = np.array(pixels).reshape(side, side, 4)[..., :3].transpose(2, 0, 1)
    np.testing.assert_allclose(shown, (expected.numpy() + 1) * 127.5, atol=1.01)


def test_what_cannot_be_decoded_is_said(several, monkeypatch):
    worker, library = Worker(), Library(several)
    names = {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}

    def send(name, latents):
        path, kind = f"/api/runs/{names[name]}/pictures", ("Content-Type", "application/octet-stream")
        return ask(port, path, "POST", [kind], np.asarray(latents, np.float32).tobytes())

    with serving(create_app(library, worker)) as port:
        latents = np.zeros((2, 4, 2, 2))
        answer = send("latents", latents)
        assert load_arrays(answer.body)["pictures"].shape == (2, 3, 8, 8)
        assert not library._lenses, "the autoencoder alone decodes"
        for name, sent, word in (
            ("latents", latents[0, 0], "one to 4 latents of shape (4, 2, 2), 64 bytes each"),
            ("latents", np.zeros((5, 4, 2, 2)), "one to 4"),
            ("latents", np.full((1, 4, 2, 2), np.nan), "not finite"),
            ("imported", np.zeros((1, 4, 8, 8)), "which autoencoder"),
            ("colour", np.zeros((1, 3, 16, 24)), "no latents"),
        ):
            answer = send(name, sent)
            assert answer.status == 400
            assert word in json.loads(answer.body)["error"]
    worker.close()
    (weights,) = (several.parent / "vae").glob("*.safetensors")
    weights.rename(several.parent / "weights")
    try:
        assert "is not here" in why_not(RunFolder(several / "latents").read_config())
    finally:
        (several.parent / "weights").rename(weights)
    (several.parent / "vae").rename(several.parent / "vae-moved")
    try:
        assert why_not(RunFolder(several / "latents").read_config()) == "the autoencoder is not here: vae"
    finally:
        (several.parent / "vae-moved").rename(several.parent / "vae")


def test_nothing_is_fetched_for_looking(several, tmp_path, monkeypatch):
    asked = []

    def nobody(*place, **_):
        asked.append(place)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", nobody)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = RunFolder(several / "latents")
    config = folder.read_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"vae": "someone/vae"})})
    cached = tmp_path / "models--someone--vae"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    vae, snapshot = several.parent / "vae", cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(vae / "config.json", snapshot)
    assert why_not(config) == "the autoencoder is not here: someone/vae"
    for file in vae.glob("*.safetensors"):
        shutil.copy(file, snapshot)
    assert why_not(config) is None
    body = np.zeros((1, 4, 2, 2), np.float32).tobytes()
    expected = Decoding(folder, folder.read_config()).pictures(body)
    np.testing.assert_array_equal(Decoding(folder, config).pictures(body), expected)
    assert not asked


def test_a_network_too_large_for_its_own_sampling_draws_in_few_steps(several, monkeypatch):
    lens = Lens(several / "imported")
    monkeypatch.setitem(ditlab.lab.lens.scenes.QUICK, "cpu", 2 * 3 * lens.scenes.macs)
    answer = lens.input(input="sample:1", t=0.4)
    assert answer.meta["drawn"] == "3 of euler in place of 5 of ancestral"
    cond = {"label": torch.tensor([1])}
    sampling = lens.run.config.sampling
    guidance = ditlab.ClassifierFree(sampling.guidance, sampling.guidance_channels)
    x0 = lens.process.sample(1, lens.run.shape, cond=cond, steps=3, solver="euler", guidance=guidance, seed=1)
    np.testing.assert_allclose(answer["x0"], x0[0], rtol=1e-5, atol=1e-4)
    a, s = float(answer.meta["a"]), float(answer.meta["s"])
    np.testing.assert_allclose(answer["x"], a * answer["x0"] + s * answer["noise"], rtol=1e-5, atol=1e-4)


class Largest(TorchDispatchMode):
    """Counts the values of the largest tensor that operations make, and of the largest that could be attention maps."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.any, self.maps = tokens, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        }
        for tensor in tree_leaves(made):
            if (
                isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given
            ):  # a view takes no memory
                self.any = max(self.any, tensor.numel())
                if tensor.dim() >= 2 and tensor.shape[-1] == self.tokens and tensor.shape[-2] == self.tokens:
                    self.maps = max(self.maps, tensor.numel())
        return made


def click(lens, layer, **where):
    """What answering ``/attention/row`` makes."""
    (rows, columns), heads = lens.grids[layer], lens.heads[layer]
    tokens = rows * columns
    lens.scenes.scene("sample:0", 0.3, None)  # drawn once, before the first click
    with Largest(tokens) as made:
        row = lens.attention_row(input="sample:0", layer=layer, query=tokens // 2, **where)["row"]
    assert math.isclose(row.sum(), 1, abs_tol=1e-4) or where == {"direction": "to"}
    return made, heads * tokens**2


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An imported network whose attention maps are larger than anything else that it makes."""
    folder = tmp_path_factory.mktemp("wide")
    torch.save(facebook_state(depth=3, rows=11, size=32, dim=96), folder / "small.pt")
    import_checkpoint(folder / "small.pt", "facebook-dit", folder / "run", heads=16)
    return folder / "run"


@pytest.mark.parametrize("where", [{}, {"head": 1}, {"direction": "to"}])
def test_a_click_makes_no_more_than_one_layers_map(wide, where, monkeypatch):
    monkeypatch.setitem(ditlab.lab.lens.scenes.QUICK, "cpu", 1)
    lens = Lens(wide)
    made, one_map = click(lens, 1, **where)
    assert made.maps == 0
    assert made.any <= (one_map / 2 if where == {"direction": "to"} else one_map / 8)  # a column takes half of all rows
    with Largest(256) as all_of_it:  # the count does see a map
        attention_map(torch.zeros(1, 16, 256, 4), torch.zeros(1, 16, 256, 4))
    assert all_of_it.maps == one_map


@pytest.mark.slow
def test_an_imported_xl_opens_and_answers_a_click(tmp_path):
    torch.save(facebook_state("DiT-XL/2"), tmp_path / "xl.pt")
    import_checkpoint(tmp_path / "xl.pt", "facebook-dit", tmp_path / "run", preset="DiT-XL/2")
    library = Library(tmp_path / "run")
    (name,) = library.folders()
    about = library.describe(name, None, "ema")
    assert len(about["attention"]) == 28
    assert about["attention"][0]["heads"] == 16
    lens = library.lens(name)
    made, one_map = click(lens, 27)
    assert made.maps == 0
    assert made.any <= max(one_map, 256 * 4 * 1152)  # the widest layer of the MLP makes more than a map
    with pytest.raises(InputError, match="limit"):
        lens.trajectory(steps=200, guidance=4)

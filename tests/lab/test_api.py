"""The routes over a real socket: what comes back, and what strange questions are answered with."""

import base64
import io
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load as load_arrays

from ditlab.lab import Lens
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from tests.lab.shell import ask, eventually, serving


@pytest.fixture(scope="module")
def lab(runs):
    """(port, name of a run → its opaque id)"""
    library, worker = Library(runs), Worker()
    with serving(create_app(library, worker)) as port:
        yield port, {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}
        eventually(lambda: worker.waiting == 0)
    worker.close()


def get(lab, run, path):
    port, names = lab
    return ask(port, f"/api/runs/{names[run]}{path}")


def error(answer):
    body = json.loads(answer.body)
    assert set(body) == {"error"}
    assert "Traceback" not in body["error"]
    assert "\n" not in body["error"]
    return body["error"]


def test_arrays_are_those_of_the_lens(lab, runs):
    lens = Lens(runs / "circles", step=20, weights="raw")
    answer = get(lab, "circles", "/attention?head=1&input=data%3A2&layer=3&step=20&t=0.7&weights=raw")
    assert answer.status == 200
    assert answer.header("content-type") == "application/octet-stream"
    arrays = load_arrays(answer.body)
    expected = lens.attention(input="data:2", t=0.7, layer=3, head=1)
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_every_question_has_an_answer(lab):
    for run, path in (
        ("circles", ""),
        ("circles", "/flow"),
        ("circles", "/input?input=sample%3A1&t=0.5"),
        ("circles", "/attention/row?query=3"),
        ("circles", "/attention/thumbnails?query=3&direction=to"),
        ("circles", "/attention/summary"),
        ("circles", "/gates"),
        ("circles", "/trajectory?steps=3&solver=dpm-solver%2B%2B"),
        ("circles", "/samples/20"),
        ("digits", "/trajectory?steps=2&guidance=2&label=3"),
        ("points", "/field?t=0.3&size=8"),
        ("points", "/trajectory?steps=2&n=50"),
        ("unet", "/attention"),
    ):
        answer = get(lab, run, path)
        assert answer.status == 200, (run, path, answer.body[:200])
        assert len(answer.body) < 2**20


def test_the_same_answer_is_sent_once(lab):
    first = get(lab, "circles", "/input?t=0.5")
    port, names = lab
    path = f"/api/runs/{names['circles']}/input?t=0.5"
    for _ in range(5):
        again = ask(port, path, headers=[("If-None-Match", first.header("etag"))])
        assert again.status == 304
        assert not again.body
    assert ask(port, path.replace("0.5", "0.6"), headers=[("If-None-Match", first.header("etag"))]).status == 200


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/attention?layer=99", 400, "layers 0 to 3"),
        ("/attention?layer=-1", 400, "layer"),
        ("/attention?t=nan", 400, "finite"),
        ("/attention?t=Infinity", 400, "t:"),
        ("/attention?layer=1&layer=2", 400, "once"),
        ("/attention?lyer=1", 400, "lyer"),
        ("/attention?input=data%3A1e9", 400, "unknown input"),
        ("/attention?input=" + "x" * 5000, 400, "input"),
        ("/attention?input=own%3A0000000000000000", 404, "draw or upload"),
        ("/attention?step=30", 404, "20, 40"),
        ("/attention?weights=pickle", 400, "weights"),
        ("/attention/row", 400, "query"),
        ("/attention/row?query=16", 400, "patches 0 to 15"),
        ("/trajectory?steps=201", 400, "steps"),
        ("/trajectory?n=10000", 400, "n:"),
        ("/trajectory?n=17", 400, "at most 16"),
        ("/trajectory?guidance=NaN", 400, "finite"),
        ("/trajectory?solver=__import__", 400, "solver"),
        ("/trajectory?seed=" + "9" * 400, 400, "seed"),
        ("/field", 400, "points"),
        ("/samples/7", 404, "step 7"),
        ("/samples/../../config.json", 404, ""),
        ("/samples/" + "9" * 5000, 404, "step"),
        ("/samples/%2e%2e%2fconfig.json", 404, ""),
        ("/nothing", 404, ""),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(lab, path, status, word):
    answer = get(lab, "circles", path)
    assert answer.status == status
    assert word in error(answer)


def test_runs_go_by_their_opaque_names_alone(lab, runs):
    port, _ = lab
    for name in ("circles", quote(str(runs / "circles"), safe=""), "..", "%2e%2e", "0" * 12):
        assert ask(port, f"/api/runs/{name}/flow").status == 404


def bring(lab, body, kind, run="circles"):
    port, names = lab
    return ask(port, f"/api/runs/{names[run]}/inputs", "POST", headers=[("Content-Type", kind)], body=body)


def test_a_drawn_image_comes_back_as_it_was_drawn(lab):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    name = json.loads(bring(lab, pixels.tobytes(), "application/octet-stream").body)["input"]
    arrays = load_arrays(get(lab, "circles", f"/input?input={quote(name)}").body)
    np.testing.assert_allclose(arrays["x0"], pixels / 127.5 - 1, atol=1e-6)


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_taken(lab, mode):
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (10, 0, 30, 20))  # the middle, which is what a square keeps, is white
    kind = "JPEG" if mode == "CMYK" else "PNG"
    made = Image.fromarray(np.asarray(picture, np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    answer = bring(lab, encoded(made, kind), f"image/{kind.lower()}")
    assert answer.status == 200, answer.body
    arrays = load_arrays(get(lab, "circles", f"/input?input={quote(json.loads(answer.body)['input'])}").body)
    assert arrays["x0"].min() > 0.9


def bomb():
    """A picture of 400 million pixels in half a megabyte."""
    return encoded(Image.new("L", (20000, 20000)))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (bomb, "image/png", 400),
        (lambda: encoded(Image.new("L", (5000, 5000))), "image/png", 400),
        (lambda: encoded(Image.new("RGB", (64, 64), "red"))[:-40], "image/png", 400),
        (lambda: encoded(Image.new("RGB", (8, 8)), "GIF"), "image/gif", 400),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 400),
        (lambda: b"", "image/png", 400),
        (lambda: b"\0" * 255, "application/octet-stream", 400),
        (lambda: b'{"x": NaN}', "application/json", 415),
        (lambda: b"\0" * 2**20 * 9, "application/octet-stream", 413),
    ],
)
def test_what_is_no_picture_is_refused(lab, body, kind, status):
    answer = bring(lab, body(), kind)
    assert answer.status == status
    assert error(answer)


def test_sixteen_bit_upside_down_and_transparent_pictures_are_put_right(lab):
    picture = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    name = json.loads(bring(lab, encoded(picture, exif=exif), "image/png").body)["input"]
    x0 = load_arrays(get(lab, "circles", f"/input?input={quote(name)}").body)["x0"][0]
    assert x0[:7].max() < -0.9
    assert x0[9:].min() > 0.9


def test_names_are_data_everywhere(runs, tmp_path):
    """A run called like an attack is listed by that name; the page sets it as text."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.symlink_to(runs / "circles")
    entry = Library(tmp_path).catalogue()["runs"][0]
    assert entry["name"] == folder.name
    assert base64.b16decode(entry["id"].upper())

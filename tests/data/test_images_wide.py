"""Values of more than 8 bits, and files of other bands than colours: what is seen of them, said and chosen."""

import io

import numpy as np
import pytest
from PIL import Image

from ditlab.cli.train_arguments import parse_train
from ditlab.core.errors import ConfigError
from ditlab.data.images.check import check
from ditlab.data.images.dataset import Images
from ditlab.data.images.decode import DOUBTFUL, DROPPED, decode
from ditlab.data.images.open import open_source
from ditlab.data.images.source import Unusable
from ditlab.data.images.survey import survey
from tests.images import encoded, folder_of, noise, png16, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))


def values(seed, low, high, shape=(6, 9), dtype=np.uint16):
    """Random numbers that reach from low to high."""
    drawn = np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)
    drawn.flat[:2] = low, high
    return drawn


def seen_of(numbers, low, high):
    """What 0 to 255 show of numbers between two of them, to the nearest."""
    return np.floor((numbers.astype(float).clip(low, high) - low) / (high - low) * 255 + 0.5)


TWELVE = values(0, 0, 4095)


def test_twelve_bits_in_sixteen_are_black_without_a_window_and_it_is_said(tmp_path):
    for i in range(3):
        write(tmp_path / "r" / f"{i}.tif", encoded(Image.fromarray(values(i, 0, 4095)), "TIFF"))
    source = open_source(str(tmp_path / "r"))
    assert decode(source.read(0), (6, 9), 1).pixels.max() <= 16
    note = "3 of 3 images use 0 to 4,095 of the 65,535 that 16 bits can hold, and come out dark: add --data.window "
    assert list(survey(str(tmp_path / "r")).notes) == check(source).notes == [f"{note}auto, or 0 4095"]
    assert not survey(str(tmp_path / "r"), windowed=True).notes
    assert not check(source, window=(0, 4095)).notes


def test_pictures_that_use_their_sixteen_bits_say_nothing(tmp_path):
    write(tmp_path / "r" / "1.png", encoded(Image.fromarray(values(0, 0, 65535))))
    write(tmp_path / "r" / "2.png", encoded(Image.fromarray(values(0, 0, 300))))  # a night among them
    assert not survey(str(tmp_path / "r")).notes


@pytest.mark.parametrize(
    ("numbers", "kind", "window"),
    [
        (TWELVE, "TIFF", (0, 4095)),
        (TWELVE, "PNG", (100, 4000)),
        (values(1, -1024, 3071, dtype=np.int32), "TIFF", (-1024, 3071)),
        (values(2, 0, 10**6, dtype=np.int32), "TIFF", (0, 10**6)),
        (values(3, -0.25, 1.5, dtype=np.float32), "TIFF", (0, 1)),
    ],
    ids=["12 bits", "cut off", "signed", "32 bits", "floating point"],
)
def test_a_window_shows_what_lies_in_it(numbers, kind, window):
    pixels = decode(encoded(Image.fromarray(numbers), kind), numbers.shape, 1, window).pixels
    np.testing.assert_array_equal(pixels[0], seen_of(numbers, *window))


@pytest.mark.parametrize("bands", [3, 4])
def test_a_window_sees_both_bytes_of_colours(bands):
    """Pillow gives the high bytes of 16-bit colours alone, 16 of which 12 bits use."""
    numbers = values(4, 0, 4095, (6, 9, bands))
    for body in (png16(numbers),):
        pixels = decode(body, (6, 9), bands, (0, 4095)).pixels.transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels, seen_of(numbers, 0, 4095))
        assert decode(body, (6, 9), None).header.span == (0, 15 * 257)


def test_pixels_of_eight_bits_are_left_alone_by_a_window():
    pixels = decode(encoded(Image.fromarray(noise(0))), (8, 8), 3, (0, 4095)).pixels
    np.testing.assert_array_equal(pixels, noise(0).transpose(2, 0, 1))


def test_what_is_not_finite_is_refused():
    for odd in (np.nan, np.inf):
        numbers = values(5, 0, 1, dtype=np.float32)
        numbers[0, 0] = odd
        with pytest.raises(Unusable, match=r"^values that are not finite"):
            decode(encoded(Image.fromarray(numbers), "TIFF"), (6, 9), 1, (0, 1))


def test_an_automatic_window_is_found_once_and_kept_in_the_run(tmp_path):
    for i, high in enumerate((3000, 4000)):
        write(tmp_path / "r" / f"{i}.tif", encoded(Image.fromarray(values(i, 100 * i, high)), "TIFF"))
    data = Images(str(tmp_path / "r"), (6, 9), 1, window="auto")
    assert data.window == (0, 4000)
    expected = seen_of(values(0, 0, 3000), 0, 4000) / 127.5 - 1
    np.testing.assert_allclose(data.images([0])[0, 0], expected, rtol=0, atol=1e-6)
    words = ["--data.path", str(tmp_path / "r"), "--data.image-size", "8", "--data.window", "auto"]
    assert parse_train(["images", *words]).config.data.window == (0, 4000)
    words[-1:] = ["-1024", "3071.5"]
    assert parse_train(["images", *words]).config.data.window == (-1024, 3071.5)
    with pytest.raises(ConfigError, match=r"^data.window=\(3.0, 3.0\): the first must be below the second$"):
        parse_train(["images", *words[:-2], "3", "3"])


def test_another_window_is_other_data(tmp_path):
    write(tmp_path / "r" / "1.tif", encoded(Image.fromarray(TWELVE), "TIFF"))
    found = {Images(str(tmp_path / "r"), (6, 9), 1, window=window).prepare() for window in (None, (0, 4095), (0, 999))}
    assert len(found) == 3


def four_bands(fourth, extra, **options):
    """A TIFF of four bands whose tag says what the fourth is: 0 nothing, 2 transparency (TIFF 6.0, ExtraSamples)."""
    bands = [*Image.fromarray(noise(0)).split(), Image.fromarray(fourth)]
    return encoded(Image.merge("RGBA" if extra else "RGBX", bands), "TIFF", tiffinfo={338: extra}, **options)


def test_a_fourth_band_that_is_no_transparency_is_said_and_trained_on(tmp_path):
    infrared = noise(7, channels=1)[:, :, 0].clip(1, 254)
    for extra, remark in ((0, DROPPED), (2, DOUBTFUL)):
        root = tmp_path / str(extra)
        write(root / "1.tif", four_bands(infrared, extra))
        assert list(survey(str(root)).notes) == [f"1 of 1 images have {remark}"]
        write(root / "2.tif", four_bands(infrared, extra, compression="tiff_lzw"))
        data = Images(str(root), (8, 8), 4)
        expected = np.dstack([noise(0), infrared]).transpose(2, 0, 1) / 127.5 - 1
        for image in data.images([0, 1]):
            np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)
    edges = np.where(infrared > 100, 255, 0).astype(np.uint8)
    write(tmp_path / "t" / "1.tif", four_bands(edges, 2))
    assert not survey(str(tmp_path / "t")).notes
    with pytest.raises(Unusable, match=r"other bands: 3, and --data.channels is 4"):
        decode(encoded(Image.fromarray(noise(0))), (8, 8), 4)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_are_images_of_any_number_of_bands(tmp_path, bands, dtype):
    numbers = values(6, 0, 250, (6, 9, bands), dtype)
    for i, array in enumerate((numbers, numbers.transpose(2, 0, 1), np.asfortranarray(numbers))):
        if bands == 1:
            array = numbers[:, :, 0]
        np.save(tmp_path / f"{i}.npy", array)
    write(tmp_path / "notes.txt", b"x")
    seen = survey(str(tmp_path), windowed=True)
    assert (seen.count, seen.size, seen.channels) == (3, (6, 9), 1 if bands == 1 else bands)
    data = Images(str(tmp_path), (6, 9), seen.channels, window=(0, 250))
    expected = numbers if dtype == "uint8" else seen_of(numbers, 0, 250)
    for i in range(3):
        found = (data.images([i])[0].permute(1, 2, 0).numpy() + 1) * 127.5
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_arrays_beside_images_are_left_alone_and_hostile_ones_refused(tmp_path):
    folder_of(tmp_path / "r", ())
    np.save(tmp_path / "r" / "mask.npy", TWELVE)
    assert len(open_source(str(tmp_path / "r")).names) == 6
    good, text = io.BytesIO(), io.BytesIO()
    np.save(good, TWELVE)
    np.save(text, np.array([["a"]]))
    body = good.getvalue()
    claims = body.replace(b"(6, 9)", b"(60000, 90000)").replace(b" " * 8 + b"\n", b"\n")
    for hostile in (body[:-1], body[:20], text.getvalue(), claims, b"\x93NUMPY\x09\x09" + bytes(200)):
        with pytest.raises(Unusable):
            decode(hostile, (8, 8), 1)

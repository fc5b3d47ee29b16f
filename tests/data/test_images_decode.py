"""From bytes to pixels: every mode and size to what was asked for, and whatever is damaged to a reason."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ditlab.data.images import decode as decoding
from ditlab.data.images.decode import MAX_PIXELS, decode
from ditlab.data.images.source import Unusable
from tests.images import empty_png, encoded, noise, png


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_of_the_right_size_keep_their_values(kind, channels):
    pixels = noise(0, (6, 9), channels)
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    body = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    picture = decode(body, (6, 9), channels)
    np.testing.assert_array_equal(picture.pixels, pixels.transpose(2, 0, 1))
    assert picture.pixels.dtype == np.uint8
    assert picture.header.format == kind
    assert picture.header.size == (6, 9)


def test_the_modes_that_files_have():
    """Each against values worked out by hand."""
    two = np.array([[0, 255]], dtype=np.uint8)
    clear = Image.merge("RGBA", [Image.fromarray(two)] * 3 + [Image.fromarray(np.array([[0, 255]], np.uint8))])
    half = Image.merge("LA", [Image.new("L", (2, 1), 0), Image.new("L", (2, 1), 51)])
    palette = Image.fromarray(two // 255).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    sixteen = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    for body, channels, expected in [
        (encoded(clear), 1, [[255, 255]]),  # black but transparent: white shows
        (encoded(half), 1, [[204, 204]]),  # a fifth of black on white
        (encoded(palette), 3, [[255, 0], [0, 0], [0, 255]]),
        (encoded(palette, transparency=0), 3, [[255, 0], [255, 0], [255, 255]]),
        (encoded(sixteen), 1, [[0, 128, 255]]),
        (encoded(sixteen, "TIFF"), 1, [[0, 128, 255]]),
        (encoded(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"), 1, [[0, 255]]),
        (encoded(Image.fromarray(two > 0)), 3, [[0, 255]] * 3),
        (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), 3, [[255] * 2, [0] * 2, [0] * 2]),
        (encoded(Image.new("YCbCr", (2, 1), (255, 128, 128)), "TIFF"), 3, [[255] * 2] * 3),
        (encoded(Image.new("LAB", (2, 1), (255, 128, 128)), "TIFF"), 3, [[255] * 2] * 3),
    ]:
        size = (1, len(expected[0]))
        values = decode(body, size, channels).pixels[:, 0].astype(int)
        assert abs(values - np.array(expected)).max() <= (
            Image.open(io.BytesIO(body)).mode == "LAB"
        )  # cubic roots are rounded


def test_numbers_without_a_known_range_are_refused():
    for values in (np.zeros((2, 2), np.float32), np.array([[0, 70_000]], np.int32), np.array([[0, -1]], np.int32)):
        with pytest.raises(Unusable, match=r"range.*; give --data.window LOW HIGH, or auto"):
            decode(encoded(Image.fromarray(values), "TIFF"), (2, 2), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(orientation):
    """Against the rotations of numpy: what is stored for each orientation comes back as the upright picture."""
    upright = noise(1, (4, 6))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(body, (4, 6), 3).pixels, upright.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_spoils_no_picture():
    pixels = noise(1, (4, 6))
    body = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(body, (4, 6), 3).pixels, pixels.transpose(2, 0, 1))


def test_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        body = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(body, (1, 1), 3).pixels.ravel().tolist() == [255, 0, 0]


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_comes_to_any_other(height, width, size, channels):
    """And a picture of one value stays one: nothing from outside the picture is mixed in."""
    body = encoded(Image.new("RGB", (width, height), (90, 90, 90)))
    pixels = decode(body, size, channels).pixels
    assert pixels.shape == (channels, *size)
    assert (pixels == 90).all()


def test_what_is_kept_is_the_centre_and_is_antialiased():
    stripes = np.zeros((20, 60), dtype=np.uint8)
    stripes[:, 20:40] = 255  # the central square is white, what is cut off is black
    assert (decode(encoded(Image.fromarray(stripes)), (20, 20), 1).pixels == 255).all()
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode(encoded(Image.fromarray(checks)), (16, 16), 1).pixels.astype(int)
    assert abs(small - 127).max() <= 2  # a fine pattern becomes its mean, not one of its values


def test_large_jpegs_are_decoded_at_a_fraction_with_the_same_result():
    """As good as from the whole picture: smooth content comes out the same up to rounding."""
    x, y = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 640))
    smooth = np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)
    whole = Image.fromarray(smooth).resize((16, 16), Image.Resampling.BICUBIC)
    pixels = decode(encoded(Image.fromarray(smooth), "JPEG", quality=95), (16, 16), 3).pixels
    assert abs(pixels.transpose(1, 2, 0).astype(int) - np.asarray(whole)).max() <= 3


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    side = int(MAX_PIXELS**0.5)
    for width, height in ((20_000, 20_000), (side + 1, side), (2**31 - 1, 2**31 - 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(Unusable, match="too many pixels"):
                decode(empty_png(width, height), (8, 8), 3)
    monkeypatch.setattr(decoding, "LARGE", 4)  # what is decoded one at a time comes out the same
    body = png(0)
    assert (decode(body, (8, 8), 3).pixels == noise(0).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "empty file"), (b"text", "no image"), (b"%PDF-1.4", "no image"), (b"\0" * 500, "no image")],
)
def test_what_is_no_image_says_so(body, reason):
    with pytest.raises(Unusable, match=f"^{reason}"):
        decode(body, (8, 8), 3)


def test_other_formats_are_not_even_looked_at():
    """Pillow reads many; those that few people have and many have attacked are left out."""
    for kind in ("ICO", "PCX", "TGA", "SGI", "JPEG2000", "EPS"):
        with pytest.raises(Unusable, match="no image"):
            decode(encoded(Image.new("RGB", (16, 16)), kind), (8, 8), 3)


BODIES = [encoded(Image.fromarray(noise(i, (24, 24))), kind) for i, kind in enumerate(decoding.FORMATS)]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_pixels_or_a_reason(data):
    """Cut anywhere or with bytes changed anywhere, a file ends in an image of the right shape or in one line."""
    body = bytearray(data.draw(st.sampled_from(BODIES)))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    for _ in range(data.draw(st.integers(0, 4)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    reason = ""
    try:
        assert decode(bytes(body), (8, 8), 3).pixels.shape == (3, 8, 8)
    except Unusable as error:
        reason = str(error)
    assert "\n" not in reason
    assert len(reason) < 300


def test_a_file_cut_short_is_damaged():
    for body in BODIES:
        if Image.open(io.BytesIO(body)).format != "GIF":  # whose decoder shows what it has
            with pytest.raises(Unusable):
                decode(body[: len(body) * 2 // 3], (8, 8), 3)

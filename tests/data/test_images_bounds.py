"""What a file asks for is known before its image is decoded, and refused in one line where it is too much."""

import struct
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from ditlab.core.errors import InputError
from ditlab.data.images import bounds
from ditlab.data.images.decode import decode
from ditlab.data.images.source import Unusable
from ditlab.lab.lens.uploads import from_file
from tests.images import encoded, noise, png, progressive


def chunk(name, body=b""):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(*chunks):
    """A PNG with these chunks after its header."""
    body = png(0)
    return body[:33] + b"".join(chunks) + body[33:]


def never_loaded(monkeypatch):
    def load(self):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


def test_a_jpeg_of_thousands_of_scans_occupies_nobody(monkeypatch):
    never_loaded(monkeypatch)
    body = progressive(3000)
    assert len(body) < 200_000
    with pytest.raises(Unusable, match=r"^too many scans: more than 64 in a JPEG; save it anew$"):
        decode(body, (32, 32), 3)
    with pytest.raises(InputError, match="cannot be used: too many scans"):
        from_file(body, (3, 32, 32))


def test_scans_are_bounded_by_their_pixels_too():
    pixels = 256 * 256
    body = progressive(30, (256, 256))
    bounds.refuse_scans(body, pixels, 40 * pixels)
    with pytest.raises(Unusable, match=r"^too many scans: 40 of 65,536 pixels"):
        bounds.refuse_scans(body, pixels, 40 * pixels - 1)


def test_pictures_as_cameras_write_them_have_few_scans():
    """Thumbnails in a segment, several pictures in a file and a film behind it are no scans of the picture."""
    picture = encoded(Image.fromarray(noise(0, (64, 64))), "JPEG", progressive=True)
    thumbnails = b"\xff\xe1" + struct.pack(">H", 60_002) + (b"\xff\xda" * 30_000)
    body = picture[:2] + thumbnails * 3 + picture[2:] + b"\xff\xda" * 10_000
    np.testing.assert_array_equal(decode(body, (64, 64), 3).pixels, decode(picture, (64, 64), 3).pixels)


@pytest.mark.parametrize(
    "body",
    [
        with_chunks(chunk(b"tEXt", b"a\0b") * 1200),
        with_chunks(chunk(b"prVt") * 1200),
        encoded(Image.fromarray(noise(0)), "JPEG").replace(b"\xff\xd8", b"\xff\xd8" + b"\xff\xef\0\x02" * 1200, 1),
        b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe\x01a\0" * 1200,
    ],
    ids=["text", "private chunks", "segments", "comments"],
)
def test_a_header_of_a_million_pieces_is_given_up(body, monkeypatch):
    """With a limit of 1,000 pieces, so that the files stay small."""
    monkeypatch.setattr(bounds.Bounded, "left", 1000)
    with pytest.raises(Unusable, match=f"^too many pieces: .*{bounds.MAX_READS:,}; save it anew"):
        decode(body, (8, 8), 3)
    with pytest.raises(InputError):
        from_file(body, (3, 8, 8))


def test_chunks_that_swell_are_refused_or_left_alone():
    swollen = zlib.compress(bytes(2**27))
    for name in (b"zTXt", b"iCCP"):
        with pytest.raises(Unusable, match=r"damaged: .*too large"):
            decode(with_chunks(chunk(name, b"a\0\0" + swollen)), (8, 8), 3)


@pytest.mark.parametrize(
    ("kind", "plugin", "options"),
    [
        ("GIF", GifImagePlugin.GifImageFile, {}),
        ("PNG", PngImagePlugin.PngImageFile, {}),
        ("TIFF", TiffImagePlugin.TiffImageFile, {}),
        ("WEBP", WebPImagePlugin.WebPImageFile, {"lossless": True}),
    ],
)
def test_of_thousands_of_frames_the_first_alone_is_decoded(kind, plugin, options, monkeypatch):
    frames = [Image.fromarray(noise(i)) for i in range(3)]
    body = encoded(frames[0], kind, save_all=True, append_images=frames[1:] * 50, **options)
    asked = []
    monkeypatch.setattr(plugin, "seek", lambda self, frame: asked.append(frame))
    first = decode(body, (8, 8), 3).pixels
    assert set(asked) <= {0}
    monkeypatch.undo()
    np.testing.assert_array_equal(first, decode(encoded(frames[0], kind, **options), (8, 8), 3).pixels)


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_tags_that_claim_more_than_the_file_has_take_no_memory():
    """4,000 tags that share one value of 200 kB: 0.8 GB, if each had its own."""
    entries, size = 4000, 200_000
    at = 8 + 2 + 12 * entries + 4
    tags = b"".join(struct.pack("<HHII", 40_000 + i, 7, size, at) for i in range(entries))
    exif = b"II*\0" + struct.pack("<IH", 8, entries) + tags + bytes(4) + bytes(size)
    np.testing.assert_array_equal(
        decode(with_chunks(chunk(b"eXIf", exif)), (8, 8), 3).pixels, decode(png(0), (8, 8), 3).pixels
    )
    with pytest.raises(Unusable):
        decode(exif, (8, 8), 3)


def test_what_libtiff_says_stays_out_of_the_terminal(capfd):
    whole = encoded(Image.fromarray(noise(0, (64, 64))), "TIFF", compression="tiff_lzw")
    for at in range(8, len(whole), 97):
        body = bytearray(whole)
        body[at : at + 4] = b"\xff\x00\xfe\x7f"
        try:
            decode(bytes(body), (8, 8), 3)
        except Unusable:
            continue
    assert capfd.readouterr().err == ""

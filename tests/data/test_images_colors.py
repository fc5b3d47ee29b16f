"""Colours of a profile come out as sRGB's, against the closed forms of both spaces; sRGB itself keeps its values."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from ditlab.data.images import colors
from ditlab.data.images.dataset import Images
from ditlab.data.images.decode import BROKEN, CONVERTED, decode
from ditlab.data.images.open import open_source
from ditlab.data.images.source import SUFFIXES
from ditlab.data.images.survey import survey
from ditlab.lab.lens.uploads import from_file
from tests.images import encoded, folder_of, icc, noise, png, write

# IEC 61966-2-1: the primaries of sRGB as columns of D50's XYZ (adapted by Bradford), and its curve
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])


def curve(linear):
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def adobe_in_srgb(pixels):
    """Pixels (..., 3) of Adobe RGB (1998), as real numbers in sRGB."""
    xyz = (pixels / 255.0) ** 2.19921875 @ ADOBE.T
    return curve(xyz @ np.linalg.inv(SRGB).T)


PIXELS = noise(5, (16, 16))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_adobe_rgb_is_no_longer_taken_for_srgb(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    stored = encoded(Image.fromarray(PIXELS), kind, **options)
    tagged = encoded(Image.fromarray(PIXELS), kind, icc_profile=icc(), **options)
    picture = decode(tagged, (16, 16), 3)
    expected = adobe_in_srgb(decode(stored, (16, 16), 3).pixels.transpose(1, 2, 0))
    assert abs(picture.pixels.transpose(1, 2, 0) - expected).max() <= 1.6
    assert abs(PIXELS - expected).mean() > 5  # which is what was wrong before
    assert picture.header.remarks == (CONVERTED,)


def test_grey_and_transparent_pictures_are_converted_too():
    ramp = np.arange(256, dtype=np.uint8)[None]
    body = encoded(Image.fromarray(ramp), icc_profile=icc("GRAY", gamma=1.0))
    for channels in (1, 3):
        assert abs(decode(body, (1, 256), channels).pixels[0, 0] - curve(ramp[0] / 255)).max() <= 1
    clear = Image.fromarray(np.dstack([PIXELS, np.full((16, 16), 51, np.uint8)]))
    pixels = decode(encoded(clear, icc_profile=icc()), (16, 16), 3).pixels.transpose(1, 2, 0)
    assert abs(pixels - (255 * 0.8 + 0.2 * adobe_in_srgb(PIXELS))).max() <= 1.6
    palette = Image.fromarray(PIXELS).quantize(16)
    body = encoded(palette, icc_profile=icc())
    expected = adobe_in_srgb(np.asarray(palette.convert("RGB")))
    assert abs(decode(body, (16, 16), 3).pixels.transpose(1, 2, 0) - expected).max() <= 1.6


def test_cmyk_follows_its_profile():
    """A printer whose profile, a table of the 16 corners of CMYK, knows black ink alone: L* falls evenly with it."""
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + (np.eye(3) * 65536).astype(">i4").tobytes()
    identity = bytes(range(256))
    lut += identity * 4 + bytes([255, 128, 128, 0, 128, 128]) * 8 + identity * 3
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\2\x40\0\0", b"prtrCMYKLab ", b"acsp"
    head[68:80] = np.array([63190, 65536, 54061], ">i4").tobytes()
    at = 128 + 4 + 12
    profile = bytes(head) + b"\0\0\0\1A2B0" + at.to_bytes(4, "big") + len(lut).to_bytes(4, "big") + lut
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    body = encoded(Image.new("CMYK", (4, 4), (200, 10, 30, 60)), "TIFF", icc_profile=profile)
    grey = curve(np.array(((100 * (1 - 60 / 255) + 16) / 116) ** 3))  # CIE 1976: Y of that L*
    assert abs(decode(body, (4, 4), 3).pixels - grey).max() <= 1.5


def test_srgb_and_what_is_no_profile_leave_the_bytes():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    written = icc(gamma=2.2, primaries=SRGB.T)
    for profile, remarks in ((srgb, ()), (b"no profile", (BROKEN,)), (icc()[:150], (BROKEN,)), (icc("GRAY"), ())):
        picture = decode(encoded(Image.fromarray(PIXELS), icc_profile=profile), (16, 16), 3)
        np.testing.assert_array_equal(picture.pixels, PIXELS.transpose(2, 0, 1))
        assert picture.header.remarks == remarks
    assert decode(encoded(Image.fromarray(PIXELS), icc_profile=written), (16, 16), 3).header.remarks == (CONVERTED,)


def test_an_upload_in_the_lab_is_converted_too():
    body = encoded(Image.fromarray(PIXELS), icc_profile=icc())
    assert abs(from_file(body, (3, 16, 16)).transpose(1, 2, 0) - adobe_in_srgb(PIXELS)).max() <= 1.6


def test_profiles_are_told_before_training(tmp_path):
    root = folder_of(tmp_path / "r", ())
    write(root / "adobe.png", encoded(Image.fromarray(noise(1)), icc_profile=icc()))
    write(root / "broken.png", encoded(Image.fromarray(noise(2)), icc_profile=b"none"))
    assert [note for note in survey(str(root)).notes if "profile" in note] == [
        f"1 of 8 images have {CONVERTED}",
        f"1 of 8 images have {BROKEN}",
    ]


def test_a_conversion_makes_other_data_of_a_file(tmp_path, monkeypatch):
    """Of two files of one name and size, one whose profile is converted and one whose is not are told apart."""
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    found = []
    for name, profile in (("left", icc("GRAY")), ("converted", icc())):
        body = encoded(Image.fromarray(noise(0)), "TIFF", icc_profile=profile.ljust(600, b"\0"))
        write(tmp_path / name / "1.tif", body)
        found.append((len(body), Images(str(tmp_path / name), (8, 8)).prepare()))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


@pytest.mark.skipif(".avif" not in SUFFIXES, reason="Pillow without AVIF")
def test_avif_is_read(tmp_path):
    smooth = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    write(tmp_path / "1.avif", encoded(smooth, "AVIF", quality=95))
    write(tmp_path / "2.png", png(0, (32, 32)))
    source = open_source(str(tmp_path))
    assert source.names == ["1.avif", "2.png"]
    picture = decode(source.read(0), (32, 32), 3)
    assert picture.header.format == "AVIF"
    assert abs(picture.pixels.transpose(1, 2, 0).astype(int) - np.asarray(smooth)).max() <= 6


def test_heic_without_its_reader_is_left_out_and_said(tmp_path):
    if ".heic" in SUFFIXES:
        pytest.skip("pillow-heif is installed")
    write(tmp_path / "1.png", png(0))
    write(tmp_path / "2.HEIC", b"\0\0\0\x18ftypheic")
    source = open_source(str(tmp_path))
    assert (source.names, source.rejected) == (["1.png"], [])
    assert source.notes == ["1 HEIC file is left out: pip install 'ditlab[heic]' to read it"]


def test_the_transform_is_made_once_for_a_folder():
    colors._transform.cache_clear()
    for i in range(5):
        decode(encoded(Image.fromarray(noise(i)), icc_profile=icc()), (8, 8), 3)
    assert colors._transform.cache_info().misses == 1

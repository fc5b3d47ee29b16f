"""From the bytes of an image file to pixels, with Pillow, under strict limits. Imports no torch.

Whatever Pillow raises on a damaged or hostile file becomes an ``Unusable`` with a reason. An image is turned upright
as its EXIF says, its first frame is taken, its colours become sRGB's if it has a profile of others, transparency is
laid on white, and it is brought to size: scaled, bicubic and antialiased, until it just covers the wanted size, and
cropped around its centre. An image that has the size and the channels already keeps its values.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging, features

from ditlab.data.images.bounds import Bounded, refuse_scans
from ditlab.data.images.colors import to_srgb
from ditlab.data.images.source import Unusable
from ditlab.data.images.wide import Window, keep_fourth, narrow, read_array, sixteen, span, stored

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
if features.check("avif"):
    FORMATS.append("AVIF")
if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
ARRAY = b"\x93NUMPY"  # what an .npy file begins with
MAX_PIXELS = 2**26
LARGE = 2**22  # pixels, from which on images are decoded one at a time

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the value of EXIF's tag
SIDEWAYS = [UPRIGHT[value] for value in (5, 6, 7, 8)]  # which swap height and width

# Filters for the process, since threads share them. Pillow only warns of images up to twice its own limit; what it
# warns of in damaged tags changes no pixels.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# libtiff prints what it finds odd, past Python, into whatever the terminal shows. Where it is a library of its own it
# is told not to; what it finds damaged is an error all the same.
with suppress(AttributeError, OSError):
    for _kind in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(_imaging.__file__), _kind)(None)

_one_large_image = threading.Lock()

CONVERTED = "a colour profile of other colours than sRGB, and are converted"
BROKEN = "a colour profile that cannot be read, which is ignored"
DROPPED = "a fourth band that is no transparency, which is left out; --data.channels 4 trains on it"
MORE = "more bands than are read, which are left out; arrays (.npy) may have any number of them"
DOUBTFUL = (
    "a fourth band that is laid on white as transparency, though most of its values are neither none nor all; if it is "
    "something else, such as near infrared, --data.channels 4 trains on it"
)


class Header(NamedTuple):
    """What a file says of its image, and what was found in it.

    Attributes:
        format, mode: as Pillow calls them; NPY, and the type of the numbers, for an array.
        size: (height, width) of the upright image.
        span: the least and the largest value, where they have more than 8 bits.
        remarks: what was done to the image that its owner may want to know.
    """

    format: str
    mode: str
    size: tuple[int, int]
    span: Window | None = None
    remarks: tuple[str, ...] = ()


class Picture(NamedTuple):
    """Pixels (C, H, W), uint8, and the header of the file they came from."""

    pixels: np.ndarray
    header: Header


def decode(
    body: bytes, size: tuple[int, int], channels: int | None, window: Window | Literal["own"] | None = None
) -> Picture:
    """The image in a file, as uint8 (channels, *size).

    Args:
        body: the whole file.
        size: height and width to bring it to.
        channels: 1 for grey, 3 for colour; another number is of the bands that the file has, each as it is; None is 3,
            or as many as an array has.
        window: which values of more than 8 bits become 0 and 255, see ``wide.narrow``; "own" is from the least to the
            largest of the image.

    Raises:
        Unusable: no image, one of another format, a damaged one, one of more than 2²⁶ pixels, or one that takes too
            long to decode, whose values have no known range, or that has other bands.
    """
    if not body:
        raise Unusable("empty file")
    with _faults_as_reasons():
        if body.startswith(ARRAY):
            return _array(body, size, channels, window)
        with Image.open(Bounded(body), formats=FORMATS) as image:
            return _picture(image, body, size, channels, window)


def _picture(
    image: Image.Image, body: bytes, size: tuple[int, int], channels: int | None, window: Window | Literal["own"] | None
) -> Picture:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise Unusable(f"too many pixels: {image.width}×{image.height}, and {MAX_PIXELS:,} are the limit")
    refuse_scans(body, pixels)
    with _one_large_image if pixels > LARGE else nullcontext():
        found, header = image, Header(image.format or "?", image.mode, (image.height, image.width))
        bands, order = stored(image)
        values = None if window is None or order is None else sixteen(body, order, channels == 4)
        if channels == 4:
            keep_fourth(image)
        image.draft(None, (2 * max(size), 2 * max(size)))  # JPEG alone can be decoded at a fraction of its size
        image.load()
        if values is None and (image.mode == "F" or image.mode.startswith("I")):
            values = np.asarray(image)
        elif order is not None:
            least, largest = span(np.asarray(image)[:, :, :3])
            header = header._replace(span=(257 * least, 257 * largest))
        profile, turn = image.info.get("icc_profile"), _turn(image)
        if values is not None:
            header = header._replace(span=span(values))
            found = Image.fromarray(narrow(values, header.span if window == "own" else window))
        if turn in SIDEWAYS:
            header = header._replace(size=header.size[::-1])
        upright = found if turn is None else found.transpose(turn)
        if channels not in (None, 1, 3):
            return Picture(_bands(upright, size, channels), header)
        flat, remarks = flatten(upright, profile)
        if "X" in bands:
            remarks = (*remarks, DROPPED if bands == "RGBX" else MORE)
        fitted = _fit(flat.convert("L" if channels == 1 else "RGB"), size)
    return Picture(_channels_first([fitted]), header._replace(remarks=remarks))


def _array(body: bytes, size: tuple[int, int], channels: int | None, window: Window | Literal["own"] | None) -> Picture:
    values = read_array(body, MAX_PIXELS)
    height, width, bands = values.shape
    wide = span(values) if values.dtype.itemsize > 1 else None
    narrowed = narrow(values, wide if window == "own" else window)
    split = [Image.fromarray(np.ascontiguousarray(narrowed[:, :, band])) for band in range(bands)]
    header = Header("NPY", f"{values.dtype}×{bands}", (height, width), wide)
    wanted = {1: 3, 3: 3}.get(bands, bands) if channels is None else channels
    if wanted in (1, 3) and bands in (1, 3):
        merged = split[0] if bands == 1 else Image.merge("RGB", split)
        split = [merged.convert("L" if wanted == 1 else "RGB")]
    elif wanted != bands:
        raise Unusable(f"other bands: {bands}, and --data.channels is {wanted}")
    return Picture(_channels_first([_fit(band, size) for band in split]), header)


def _bands(image: Image.Image, size: tuple[int, int], channels: int | None) -> np.ndarray:
    """Each band of an image by itself (C, *size), whatever it is of."""
    if channels == 4 and image.mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
    bands = image.split()
    if len(bands) != channels:
        raise Unusable(f"other bands: {len(bands)}, and --data.channels is {channels}")
    return _channels_first([_fit(band, size) for band in bands])


def _channels_first(images: list[Image.Image]) -> np.ndarray:
    """Images of one size as one array (C, H, W)."""
    arrays = [np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1) for image in images]
    return np.ascontiguousarray(np.concatenate(arrays, axis=2).transpose(2, 0, 1))


@contextmanager
def _faults_as_reasons() -> Iterator[None]:
    try:
        yield
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"too many pixels: {MAX_PIXELS:,} are the limit") from None
    except UnidentifiedImageError:
        raise Unusable(f"no image: not one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise Unusable("damaged: it asks for more memory than there is") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise Unusable(f"damaged: {(' '.join(str(error).split()) or type(error).__name__)[:200]}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the image upright; damaged EXIF data say nothing about its pixels."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return None


def flatten(image: Image.Image, profile: bytes | None, ground: str = "white") -> tuple[Image.Image, tuple[str, ...]]:
    """An 8-bit image in sRGB, opaque, and in a mode that converts to grey and to colour; and what was done to it.

    ``profile`` is that of its colours, where it has one; ``ground`` shows where the image is transparent.
    """
    layered = image.convert("RGBA") if image.has_transparency_data else None
    between = sum(image.histogram()[769:1023]) if image.mode == "RGBA" else 0  # neither clear nor opaque
    remarks = [DOUBTFUL] if 2 * between > image.width * image.height else []
    converted, more = _converted(image if layered is None or image.mode in ("LA", "La") else layered, profile)
    if layered is not None:
        if converted is not None:
            converted.putalpha(layered.getchannel("A"))
        flat = Image.alpha_composite(Image.new("RGBA", layered.size, ground), converted or layered).convert("RGB")
    else:
        flat = converted or (image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))
    return flat, (*remarks, *more)


def _converted(image: Image.Image, profile: bytes | None) -> tuple[Image.Image | None, list[str]]:
    """The colours of an image in sRGB, RGB; None if they are that already. And what was done."""
    if not profile:
        return None, []
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L", "La": "L"}.get(image.mode, "RGB")
    try:
        converted = to_srgb(image.convert(mode), profile)
    except ValueError:
        return None, [BROKEN]
    return converted, [] if converted is None else [CONVERTED]


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled until it just covers (height, width), and cropped around its centre."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    across, down = min(width * scale, image.width), min(height * scale, image.height)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, min(left + across, image.width), min(top + down, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)

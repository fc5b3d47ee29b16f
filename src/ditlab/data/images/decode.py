"""From the bytes of an image file to pixels, with Pillow, under strict limits. Imports no torch.

Whatever Pillow raises on a damaged or hostile file becomes an ``Unusable`` with a reason. An image is turned upright
as its EXIF says, its first frame is taken, transparency is laid on white, and it is brought to size: scaled, bicubic
and antialiased, until it just covers the wanted size, and cropped around its centre. An image that has the size and
the channels already keeps its values.
"""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ditlab.data.images.source import Unusable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
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

_one_large_image = threading.Lock()


class Header(NamedTuple):
    """What a file says of its image before it is decoded; the size is (height, width) of the upright image."""

    format: str
    mode: str
    size: tuple[int, int]


class Picture(NamedTuple):
    """Pixels (C, H, W), uint8, and the header of the file they came from."""

    pixels: np.ndarray
    header: Header


def decode(body: bytes, size: tuple[int, int], channels: int) -> Picture:
    """The image in a file, as uint8 (channels, *size).

    Args:
        body: the whole file.
        size: height and width to bring it to.
        channels: 1 for grey, 3 for colour.

    Raises:
        Unusable: no image, one of another format, a damaged one, one of more than 2²⁶ pixels, or one whose values have
            no known range.
    """
    if not body:
        raise Unusable("empty file")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            header = Header(image.format or "?", image.mode, (image.height, image.width))
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise Unusable(f"too many pixels: {image.width}×{image.height}, and {MAX_PIXELS:,} are the limit")
            with _one_large_image if pixels > LARGE else nullcontext():
                image.draft(None, (2 * max(size), 2 * max(size)))  # JPEG alone can be decoded at a fraction of its size
                image.load()
                if (turn := _turn(image)) in SIDEWAYS:
                    header = header._replace(size=header.size[::-1])
                upright = image if turn is None else image.transpose(turn)
                fitted = _fit(_flat(upright).convert("L" if channels == 1 else "RGB"), size)
            array = np.asarray(fitted, dtype=np.uint8).reshape(*size, channels)
            return Picture(np.ascontiguousarray(array.transpose(2, 0, 1)), header)
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"too many pixels: {MAX_PIXELS:,} are the limit") from None
    except UnidentifiedImageError:
        raise Unusable(f"no image: not one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise Unusable("damaged: it asks for more memory than there is") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise Unusable(f"damaged: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the image upright; damaged EXIF data say nothing about its pixels."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return None


def _flat(image: Image.Image) -> Image.Image:
    """The image in 8 bits, opaque, and in a mode that converts to grey and to colour."""
    if image.mode == "F":
        raise Unusable("floating-point values: their range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("numbers of 32 bits: those outside 0 to 65,535 have no known range")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


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

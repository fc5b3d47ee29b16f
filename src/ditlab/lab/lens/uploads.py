"""Pictures that people bring: drawn or uploaded, decoded under strict limits, kept under an opaque name."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ditlab.core.errors import InputError
from ditlab.data.images.bounds import Bounded, refuse_scans
from ditlab.data.images.decode import flatten
from ditlab.data.images.source import Unusable
from ditlab.data.images.wide import narrow

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_000_000
MAX_WORK = 2**28  # scans times pixels: two or three seconds, for one worker answers everybody


class OwnImages:
    """The last images that were brought, as uint8 (C, H, W), under names made from their content."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: np.ndarray) -> str:
        """Keep an image and return its name, such as "own:1f2e3d4c5b6a7988"."""
        digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        name = f"own:{digest[:16]}"
        with self._lock:
            self._images[name] = image
            self._images.move_to_end(name)
            while len(self._images) > self.capacity:
                self._images.popitem(last=False)
        return name

    def get(self, name: str) -> np.ndarray | None:
        """The image of that name, or None if it was never there or is forgotten."""
        with self._lock:
            if name in self._images:
                self._images.move_to_end(name)
            return self._images.get(name)


def from_pixels(body: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Raw values, one byte each, channel by channel and row by row.

    Raises:
        InputError: not C·H·W bytes.
    """
    expected = int(np.prod(shape))
    if len(body) != expected:
        raise InputError(f"a drawn image of shape {shape} is {expected} bytes, not {len(body)}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape).copy()


def from_file(body: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A PNG, JPEG or WebP file, turned upright, cropped to the network's proportions and scaled to its size.

    Raises:
        InputError: another format, a damaged file, more than 16 million pixels, one that takes seconds to decode, or
            a network that takes no grey or colour images.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"this network takes data of shape {shape}, which no picture file holds")
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(Bounded(body), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise InputError(
                        f"the picture has {picture.width}×{picture.height} pixels; send one of at most 16 million"
                    )
                refuse_scans(body, picture.width * picture.height, MAX_WORK)
                flat = _opaque(picture).convert("L" if channels == 1 else "RGB")
    except InputError:
        raise
    except Unusable as error:
        raise InputError(f"the picture cannot be used: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError("the picture has too many pixels; send one of at most 16 million") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, MemoryError):
        raise InputError("this is no whole PNG, JPEG or WebP picture") from None
    fitted = ImageOps.fit(flat, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1).copy()


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture upright, in 8 bits and in sRGB, on black where it is transparent."""
    upright = ImageOps.exif_transpose(picture)
    profile = upright.info.get("icc_profile")
    if upright.mode.startswith("I"):
        upright = Image.fromarray(narrow(np.asarray(upright), None))
    return flatten(upright, profile, "black")[0]

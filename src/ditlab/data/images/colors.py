"""From the colours of a file's profile to sRGB, through Pillow's ImageCms. Imports no torch."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 2**23  # bytes; printers' tables have a few million
ALIKE = 2  # of 255: a profile that moves no colour further is sRGB itself, and pixels are left as they are
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # of an image, and as a profile is signed (ICC.1:2022, table 19)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """An image of mode L, RGB or CMYK in sRGB; None where its profile is sRGB, or of another kind of colours.

    A broken profile is a ``ValueError``.
    """
    if len(profile) > MAX_PROFILE:
        raise ValueError(f"a colour profile of {len(profile):,} bytes")
    transform = _transform(profile, image.mode)
    return None if transform is None else transform.apply(image)


@lru_cache(64)  # most images of a folder share a few profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if given.profile.xcolor_space != SPACES[mode]:
            return None
        # Of grey, tables that lcms makes to be quick are off by 10 of 255 in the dark.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
        tried = _colors(mode)
        moved = np.asarray(transform.apply(tried), np.int16) - np.asarray(tried.convert("RGB"), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ValueError(f"a broken colour profile: {error}") from None
    return transform if mode == "CMYK" or abs(moved).max() > ALIKE else None


def _colors(mode: str) -> Image.Image:
    """A picture of many colours: all greys, or a lattice of 17 values in each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    if mode == "CMYK":
        return Image.new("CMYK", (1, 1))
    values = np.linspace(0, 255, 17).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(values, values, values), axis=-1).reshape(1, -1, 3))

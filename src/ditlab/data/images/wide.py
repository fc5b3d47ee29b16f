"""Values of more than 8 bits, and arrays of any number of bands: what of their range is shown. Imports no torch.

16-bit pictures use all of 0 to 65,535 unless a window says otherwise. Instruments keep 12 or 14 bits in them, signed
numbers or fractions: only a window, from which value to which, tells what is black and what is white.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import Image

from ditlab.data.images.bounds import Bounded
from ditlab.data.images.source import Unusable

Window = tuple[float, float]
FULL: Window = (0, 65535)  # of 16 bits
HOW = "give --data.window LOW HIGH, or auto"
MAX_BANDS = 1024
SWAPPED = {";16L": ";16B", ";16B": ";16L"}  # Pillow keeps the high byte of two: what reads the low one
SWAPPED[";16N"] = ";16B" if sys.byteorder == "little" else ";16L"


def span(values: np.ndarray) -> Window:
    """The least and the largest of some values; ``Unusable`` if they are not finite."""
    least, largest = float(values.min()), float(values.max())
    if not np.isfinite([least, largest]).all():
        raise Unusable("values that are not finite")
    return least, largest


def narrow(values: np.ndarray, window: Window | None) -> np.ndarray:
    """Values in 8 bits: those of a window from 0 to 255, others cut off.

    Args:
        values: of any shape and type; 8-bit ones are left as they are.
        window: what becomes 0 and 255; None is 0 and 65,535 for whole numbers within these.

    Raises:
        Unusable: values without a known range, or that are not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    least, largest = span(values)
    if window is None:
        if values.dtype.kind == "f":
            raise Unusable(f"floating-point values: their range is not known; {HOW}")
        if least < FULL[0] or largest > FULL[1]:
            raise Unusable(f"whole numbers outside 0 to 65,535: they have no known range; {HOW}")
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = window
    shown = (np.clip(values.astype(np.float64), low, high) - low) * (255 / (high - low))
    return (shown + 0.5).astype(np.uint8)


def stored(image: Image.Image) -> tuple[str, str | None]:
    """What an image is made of that is opened and not loaded, such as "RGBX"; and of 16 bits the order of the bytes."""
    modes = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    mode = modes.pop() if len(modes) == 1 else ""
    several = mode[-4:] in SWAPPED and not image.mode.startswith("I")
    return mode.partition(";")[0], mode[-4:] if several else None


def keep_fourth(image: Image.Image) -> None:
    """Have an opened image keep a fourth band of no known meaning, which Pillow would leave out."""
    if stored(image)[0] == "RGBX":
        image._mode = "RGBX"


def sixteen(body: bytes, order: str, fourth: bool) -> np.ndarray:
    """The values (H, W, C), uint16, of an image of several bands, of which Pillow gives the high bytes.

    It is read twice, the second time as if the bytes were the other way round; where Pillow knows no such way, the high
    byte stands for the low one, which is off by 255 at most.

    ``order`` is that of its bytes, as ``stored`` tells; ``fourth`` keeps a fourth band of no known meaning.
    """
    with Image.open(Bounded(body), formats=("PNG", "TIFF")) as image:
        if fourth:
            keep_fourth(image)
        image.load()
        high = np.asarray(image).astype(np.uint16)
    with Image.open(Bounded(body), formats=("PNG", "TIFF")) as image:
        if fourth:
            keep_fourth(image)
        image.tile = [_with_raw_mode(tile, _raw_mode(tile)[:-4] + SWAPPED[order]) for tile in image.tile]
        try:
            image.load()
        except ValueError:
            return high * 257
        return high * 256 + np.asarray(image)


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) else args)


def _with_raw_mode(tile: Any, mode: str) -> Any:
    args = tile[3]
    return tile._replace(args=(mode, *args[1:]) if isinstance(args, tuple) else mode)


def read_array(body: bytes, most_pixels: int) -> np.ndarray:
    """The array (H, W, C) in an .npy file; an array (C, H, W), whose first axis is shorter than its last, is turned.

    ``Unusable`` if it is damaged, too large, or of another shape or type.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError:
        raise Unusable("damaged: no header of an .npy file") from None
    if dtype.kind not in "buif" or len(shape) not in (2, 3) or 0 in shape:
        raise Unusable(f"no image: an array of shape {shape} and type {dtype}, and not (H, W) or (H, W, C) of numbers")
    turned = len(shape) == 3 and shape[0] < shape[2]
    height, width = shape[1:] if turned else shape[:2]
    count = int(np.prod([int(side) for side in shape]))
    if height * width > most_pixels or count > most_pixels * MAX_BANDS:
        raise Unusable(f"too many pixels: {width}×{height}, and {most_pixels:,} are the limit")
    if len(body) - stream.tell() < count * dtype.itemsize:
        raise Unusable("damaged: the array is cut short")
    values = np.frombuffer(body, dtype, count, stream.tell()).reshape(shape, order="F" if fortran else "C")
    return values[:, :, None] if len(shape) == 2 else values.transpose(1, 2, 0) if turned else values

"""Image files for the tests: good ones in folders, and the bad ones that people's folders hold."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed, size=(8, 8), channels=3):
    """Random pixels (H, W, C), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    """An image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(seed, size=(8, 8), channels=3):
    """A PNG file of random pixels."""
    pixels = noise(seed, size, channels)
    return encoded(Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]))


def write(path, body):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def folder_of(root, classes=("a", "b"), each=6, size=(8, 8), channels=3):
    """A folder of so many images of each class, or flat if there are none; image i of all has the pixels noise(i)."""
    for i in range(each * max(1, len(classes))):
        name = f"{i:04d}.png"
        write(Path(root, classes[i // each], name) if classes else Path(root, name), png(i, size, channels))
    return Path(root)


def empty_png(width, height):
    """A PNG that claims a size, of a few bytes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(root):
    """Put bad files into a folder; their relative names, with what their reasons begin with.

    Permission bits keep nothing from root, so what cannot be read here is a link to nothing, a folder, a pipe or a
    socket; a refused permission is tested by itself.
    """
    root = Path(root)
    whole = encoded(Image.fromarray(noise(1, (64, 64))), "JPEG")
    bad = {
        "zero.png": (b"", "empty file"),
        "truncated.jpg": (whole[: len(whole) // 2], "damaged"),
        "truncated.png": (png(1, (64, 64))[:2000], "damaged"),
        "huge.png": (empty_png(20_000, 20_000), "too many pixels"),
        "larger.png": (empty_png(9_000, 9_000), "too many pixels"),
        "text.jpg": (b"this is no image\n", "no image"),
        "head.gif": (b"GIF89a", "no image"),
        "float.tiff": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point"),
        "-rf.png": (b"\x89PNG", "no image"),
        "new\nline.png": (b"", "empty file"),
        os.fsdecode(b"odd \xff.png"): (b"", "empty file"),
    }
    for name, (body, _) in bad.items():
        write(root / name, body)
    expected = {name: reason for name, (_, reason) in bad.items()}
    os.mkfifo(root / "pipe.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(root, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/socket.png")  # a socket's path may not be long
        os.close(here)
    expected |= dict.fromkeys(["pipe.png", "loop.png", "gone.png", "folder.png", "socket.png"], "no file")
    return expected


def odd_but_good(root):
    """Put files into a folder that look odd and are good; their relative names."""
    root = Path(root)
    color = Image.fromarray(noise(2, (12, 10)))
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "cmyk.jpg": encoded(color.convert("CMYK"), "JPEG"),
        "la.png": encoded(color.convert("LA")),
        "rgba.png": encoded(color.convert("RGBA")),
        "p.png": encoded(color.quantize(16)),
        "i16.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)),
        "one.png": encoded(color.convert("1")),
        "turned.jpg": encoded(color, "JPEG", exif=turned),
        "animated.gif": encoded(color, "GIF", save_all=True, append_images=[color.rotate(90, expand=False)]),
        "animated.webp": encoded(color, "WEBP", save_all=True, append_images=[color.rotate(90, expand=False)]),
        "tiny.png": png(3, (1, 1)),
        "really-a-png.jpg": png(4),
        "LOUD.PNG": png(5),
        "-dash.png": png(6),
        "two\nlines.png": png(7),
        "😀.png": png(8),
        os.fsdecode(b"caf\xe9.png"): png(9),
    }
    for name, body in good.items():
        write(root / name, body)
    return set(good)


def icc(space="RGB ", gamma=2.19921875, primaries=None):
    """A colour profile with one curve, x ** gamma (ICC.1:2022): of grey, or of primaries whose columns are D50's XYZ.

    The primaries are those of Adobe RGB (1998) as published, unless others are given.
    """
    adobe = [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]]

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz([0.9642, 1.0, 0.8249])}
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, values in zip("rgb", adobe if primaries is None else primaries, strict=True):
            tags[f"{name}XYZ".encode()], tags[f"{name}TRC".encode()] = xyz(values), curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value
    size = at + len(body)
    head = struct.pack(">I4xI", size, 0x02400000) + b"mntr" + space.encode() + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)  # the illuminant D50
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def png16(values):
    """A PNG file of 16 bits of values (H, W, C), for 3 or 4 channels, which Pillow does not write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def progressive(scans, size=(1500, 1500)):
    """A progressive JPEG whose last scan comes again so often: a few bytes each, and a pass over all pixels."""
    body = encoded(Image.new("RGB", size, (200, 30, 90)), "JPEG", progressive=True)
    last, end = body.rindex(b"\xff\xda"), body.rindex(b"\xff\xd9")
    return body[:end] + body[last:end] * scans + body[end:]

"""Samples as pictures: a grid of images, or a scatter plot of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditlab.core.errors import InputError, printable

TILE = 64  # smallest side of an image in a grid, in pixels


def has_picture(shape: Sequence[int]) -> bool:
    """Whether samples of that shape can be shown: points in the plane, and images."""
    return tuple(shape) == (2,) or len(shape) == 3


def save_picture(path: str | Path, samples: Tensor, columns: int | None = None) -> None:
    """Write images (n, C, H, W) as a grid, or points (n, 2) as a scatter plot, as a PNG.

    Of more than three channels the first three are shown, as colours; of two the first.

    Raises:
        InputError: samples of a shape that has no picture.
    """
    samples = samples.detach().float().cpu()
    if samples.shape[1:] == (2,):
        _scatter(samples.numpy(), path)
    elif samples.dim() == 4:
        image_grid(as_colors(samples), columns).save(path)
    else:
        raise InputError(f"samples of shape {tuple(samples.shape[1:])} have no picture; write them with --out FILE.npz")


def save_each(folder: Path, images: Float[Tensor, "n C H W"]) -> None:
    """Write each image into a folder that is there, as a PNG of its own size: 000000.png and so on.

    Channels are shown as ``save_picture`` shows them.
    """
    for i, pixels in enumerate(as_bytes(as_colors(images)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(folder / f"{i:06d}.png")


def as_bytes(images: Float[Tensor, "n C H W"]) -> UInt8[Tensor, "n C H W"]:
    """Images in [−1, 1] as the nearest of 256 levels, from 0 to 255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def as_colors(images: Float[Tensor, "n C H W"]) -> Float[Tensor, "n c H W"]:
    """What a picture shows of any number of channels: the first three as red, green and blue, or the first as grey."""
    return images[:, : 3 if images.shape[1] >= 3 else 1]


def false_colors(latents: Float[Tensor, "n C H W"]) -> Float[Tensor, "n c H W"]:
    """The first three channels of latents as red, green and blue, or the first as grey, from −3 to 3.

    Scaled latents have a standard deviation of about 1. What a picture shows can be told from these colours; the
    autoencoder, which training does without, would make the picture itself.
    """
    return as_colors(latents) / 3


def image_grid(images: Float[Tensor, "n C H W"], columns: int | None = None) -> Image.Image:
    """Images in [−1, 1], grey or colour, row by row with a gap; small ones enlarged without smoothing."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale, gap = max(1, TILE // max(height, width)), 4
    values = as_bytes(images).permute(0, 2, 3, 1).numpy()
    values = values.repeat(scale, axis=1).repeat(scale, axis=2)  # (n, h, w, C)
    h, w = values.shape[1:3]
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, channels), 96, dtype=np.uint8)
    for i, tile in enumerate(values):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = tile
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], tile: int = TILE) -> Image.Image:
    """Rows of images (C, H, W), uint8, each row under a title, all within tiles of ``tile`` pixels."""
    gap, line = 4, 22
    columns = max(len(images) for _, images in rows)
    across = max(columns * (tile + gap) + gap, 3 * tile)
    sheet = Image.new("RGB", (across, len(rows) * (line + tile + gap) + gap), (24, 24, 24))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (title, images) in enumerate(rows):
        top = gap + i * (line + tile + gap)
        draw.text((gap, top + 2), _shown(title), fill=(230, 230, 230), font=font)
        for k, pixels in enumerate(images):
            picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            scale = tile / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
            left = gap + k * (tile + gap)
            sheet.paste(picture, (left + (tile - size[0]) // 2, top + line + (tile - size[1]) // 2))
    return sheet


def _shown(text: str, longest: int = 80) -> str:
    """Text for a picture: in one line, and not too long."""
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _scatter(points: np.ndarray, path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=max(2.0, 3000 / len(points) ** 0.9), alpha=0.6, linewidths=0)
    limit = max(2.2, 1.05 * float(np.abs(points).max()))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=f"{len(points)} samples")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")

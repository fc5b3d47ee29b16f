"""What a store of latents says of itself. Imports neither torch nor numpy.

A finished store is a folder with ``index.json``, ``quarantine.jsonl`` and ``shards/``. While it is made, what is
agreed on and what is done are kept in its ``.encoding/``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditlab.core.disk import read_json
from ditlab.core.errors import InputError

INDEX = "index.json"
MOST_SHARDS = 20_000  # whose index stays below what is read as JSON

Dtype = Literal["float16", "float32"]
Precision = Literal["fp32", "bf16"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VAE(_Entry):
    """Which autoencoder: its class, where it was, and the sha256 of its configuration and weights."""

    kind: str
    name: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.digest[:12]})"


class Plan(_Entry):
    """All that decides the bytes of a store, agreed on before anything is encoded.

    Attributes:
        latent_scale, latent_shift: samples to train on are (z − latent_shift)·latent_scale.
        shape, image_size: of a latent: channels, height, width; of an image in pixels: height, width.
        files: images in the source, usable or not.
        source: sha256 of their names, sizes and labels.
        mirrored: whether each image was encoded mirrored left to right, too.
        dtype, precision: of the numbers that are kept; of the autoencoder's matrix products.
        batch_size: images encoded together.
        shard_size: files of the source that make a shard.
    """

    version: Literal[1] = 1  # of the layout, and of how images are decoded and encoded
    vae: VAE
    latent_scale: float = Field(gt=0)
    latent_shift: float
    shape: tuple[Positive, Positive, Positive]
    image_size: tuple[Positive, Positive]
    classes: tuple[str, ...] | None
    files: Positive
    source: Digest
    mirrored: bool
    dtype: Dtype
    precision: Precision
    batch_size: Positive
    shard_size: Positive
    window: tuple[float, float] | None = None

    @property
    def shard_count(self) -> int:
        return -(-self.files // self.shard_size)

    def numbers(self, shard: int) -> range:
        """The numbers, in the source, of a shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.files))


class Shard(_Entry):
    """A file of a store: its name, how many latents it holds, its bytes and their sha256."""

    file: str = Field(pattern=r"^shards/[0-9]{5}\.arrow$")
    rows: Whole
    bytes: Whole
    sha256: Digest


class Index(Plan):
    """A finished store."""

    count: Positive
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        """Of everything in the store, where the autoencoder lay excepted."""
        content = self.model_dump_json(exclude={"vae": {"name"}})
        return hashlib.sha256(content.encode()).hexdigest()


def shard_file(shard: int) -> str:
    """The name of a shard in its store."""
    return f"shards/{shard:05d}.arrow"


def has_index(path: str | Path) -> bool:
    """Whether a folder is a finished store of latents."""
    return (Path(path) / INDEX).is_file() and (Path(path) / "shards").is_dir()


def read_index(path: str | Path) -> Index:
    """What a finished store says of itself.

    Raises:
        InputError: there is none, it is not finished, or its index is damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"there is no store of latents at {path}: make one with ditlab latents encode --out {path}")
    if not (folder / INDEX).is_file():
        unfinished = (folder / ".encoding").is_dir()
        raise InputError(
            f"{path} is not finished: go on with the ditlab latents encode that began it"
            if unfinished
            else f"{path} is not a store of latents: it has no {INDEX}. Make one with ditlab latents encode"
        )
    try:
        index = Index.model_validate(read_json(folder / INDEX))
    except ValidationError as error:
        raise InputError(f"{folder / INDEX} is damaged: {said(error)}; bring the store back from a copy") from None
    rows = sum(shard.rows for shard in index.shards)
    if len(index.shards) != index.shard_count or rows != index.count:
        raise InputError(f"{folder / INDEX} is damaged: its shards are not those it counts; bring the store back")
    return index


def said(error: ValidationError) -> str:
    """The first thing that is wrong with an index, in a few words."""
    problem: Any = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']}"


def full_path(path: str) -> str:
    """A store's path in full."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path.resolve would follow links

"""What a recipe needs to know of a store of latents, before anything is trained. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from ditlab.data.latents.index import full_path, read_index


@dataclass(frozen=True)
class StoreSurvey:
    """A store, as its index describes it: ``count`` latents, ``bytes`` in all; the rest as in ``LatentsData``.

    ``mirrored`` says whether it has the latents of mirrored images, too; these are not counted.
    """

    path: str
    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    mirrored: bool
    latent_scale: float
    latent_shift: float
    vae: str | None
    vae_digest: str | None
    bytes: int


def survey_store(path: str) -> StoreSurvey:
    """Read a store's index; see ``read_index`` for what it raises."""
    index = read_index(full_path(path))
    found = index.model_dump(include={"count", "shape", "classes", "mirrored", "latent_scale", "latent_shift"})
    size = sum(shard.bytes for shard in index.shards)
    return StoreSurvey(full_path(path), **found, vae=index.vae.name, vae_digest=index.vae.digest, bytes=size)

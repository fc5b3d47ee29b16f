"""What a recipe needs to know of a store of latents, before anything is trained. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from ditlab.data.latents.index import full_path, read_index


@dataclass(frozen=True)
class StoreSurvey:
    """A store, as its index tells of it.

    Attributes:
        path: in full.
        count: of latents, a latent and that of its mirror image as one.
        shape: of a latent: channels, height, width.
        classes: names of the labels, in order; None is without labels.
        mirrored: whether it has the latents of mirrored images, too.
        latent_scale, latent_shift: samples are (z − latent_shift)·latent_scale.
        vae: the autoencoder's folder or its name on the Hub.
        vae_digest: its sha256.
        bytes: of all shards.
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
    """Read a store's index.

    Raises:
        InputError: there is no finished store.
    """
    index = read_index(full_path(path))
    return StoreSurvey(
        full_path(path),
        index.count,
        index.shape,
        index.classes,
        index.mirrored,
        index.latent_scale,
        index.latent_shift,
        index.vae.name,
        index.vae.digest,
        sum(shard.bytes for shard in index.shards),
    )

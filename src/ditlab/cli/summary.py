"""What is said before a run begins: what was seen of a person's own data, and what was chosen for them."""

from __future__ import annotations

from collections.abc import Iterator

from ditlab.config import Config
from ditlab.core.errors import printable
from ditlab.data.images.survey import Survey
from ditlab.data.latents.survey import StoreSurvey
from ditlab.recipes import LARGEST_SMALL, SMALL_LATENT

NOTES = 5  # on images


def announcement(config: Config, seen: Survey | StoreSurvey | None) -> Iterator[str]:
    """Lines for the person who trains; none for data that are made as they are needed."""
    if isinstance(seen, Survey):
        yield from _of_images(config, seen)
    elif isinstance(seen, StoreSurvey):
        yield from _of_latents(config, seen)


def _of_images(config: Config, seen: Survey) -> Iterator[str]:
    data = config.data
    assert data.kind == "images"
    size = f"{data.image_size[0]}×{data.image_size[-1]}"
    grey = {1: "grey", 3: "colour"}.get(data.channels, f"{data.channels}-band")
    noun = "image" if seen.count == 1 else "images"
    captions = f", {seen.captions:,} with captions, which are not used yet" if seen.captions else ""
    other = f"; {seen.other:,} other {'file is' if seen.other == 1 else 'files are'} left out" if seen.other else ""
    bad = f"; {seen.rejected:,} cannot be read" if seen.rejected else ""
    yield printable(f"{seen.count:,} {grey} {noun} of {size} {_classes(data.classes)}{captions}{bad}{other}")
    for note in seen.notes[:NOTES]:
        yield printable(f"note: {note}")
    if len(seen.notes) > NOTES:
        yield f"note: ditlab data check tells {len(seen.notes) - NOTES:,} more"
    yield f"{_chosen(config, seen.count)}; ditlab train images --help tells how to choose otherwise"
    if data.image_size[0] * data.image_size[-1] > LARGEST_SMALL:
        yield "A GPU is recommended at this size; with --data.image-size 32 a CPU trains in minutes"


def _of_latents(config: Config, seen: StoreSurvey) -> Iterator[str]:
    data = config.data
    assert data.kind == "latents"
    shape = "×".join(map(str, data.shape))
    yield printable(f"{seen.count:,} latents of {shape} {_classes(data.classes)}, of the VAE {seen.vae}")
    if not seen.mirrored:
        yield "note: the store has no mirrored latents, so none are drawn"
    yield f"{_chosen(config, seen.count)}; --help tells how to choose otherwise"
    if data.shape[1] * data.shape[2] > SMALL_LATENT:
        yield "A GPU is recommended at this size; on latents of at most 16×16 a CPU trains in minutes"


def _classes(classes: tuple[str, ...] | None) -> str:
    return "without labels" if classes is None else f"in {len(classes):,} classes"


def _chosen(config: Config, count: int) -> str:
    """The network and the training, in words."""
    from ditlab.training.estimate import parameters_of

    network = config.network
    cut = f" on patches of {network.patch_size}×{network.patch_size}" if network.kind == "dit" else ""
    name = network.name if network.kind == "own" else {"dit": "DiT", "unet": "U-Net", "mlp": "MLP"}[network.kind]
    epochs = config.steps * config.batch_size / count
    return (
        f"A {name} of {parameters_of(config):,} parameters{cut}; {config.steps:,} steps of {config.batch_size:,}, "
        f"about {epochs:.1f} epochs"
    )

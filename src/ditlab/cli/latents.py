"""``ditlab latents encode``: images into a store of latents, that training reads without an autoencoder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditlab.cli.options import LatentsEncodeOptions, parse
from ditlab.cli.output import report, say
from ditlab.cli.train_arguments import take_part
from ditlab.core.errors import InputError, pasted, printable

USAGE = (
    "usage: ditlab latents encode --data.path PATH --data.image-size S --vae VAE [OPTIONS]\n\n"
    "ditlab latents encode --help lists its options; ditlab data check STORE checks the result."
)


def latents(arguments: Sequence[str]) -> int:
    """What can be done about latents: ``encode``."""
    rest = take_part(arguments, "encode", USAGE, "ditlab latents encode, or ditlab data check STORE")
    return 0 if rest is None else encode(rest)


def encode(arguments: Sequence[str]) -> int:
    """Make a store of latents, or take part in making it."""
    options = parse(LatentsEncodeOptions, arguments, "ditlab latents encode")
    if len(options.image_size) not in (1, 2) or min(options.image_size) < 1:
        raise InputError("--data.image-size takes one number for a square, or height and width")
    out = Path(options.out if options.out is not None else f"latents/{Path(options.data_path).stem}")
    from ditlab.data.images.open import located, open_source
    from ditlab.data.images.survey import seen_window

    if Path(located(options.data_path)) in (out.absolute(), *out.absolute().parents):
        raise InputError(f"--out {out} lies among the images and would be one of them: choose another place")
    from ditlab.cli.progress import watching
    from ditlab.data.latents.dataset import read_rejected
    from ditlab.data.latents.encode import Encoding
    from ditlab.data.latents.plan import make_plan
    from ditlab.data.latents.vae import load_vae

    begun = time.perf_counter()
    autoencoder = load_vae(options.vae)
    source = open_source(options.data_path, options.image_column)
    if not source.names:
        raise InputError(f"none of the images in {source.location} can be read as a file: ditlab data check tells why")
    window = seen_window(source) if options.window == "auto" else options.window
    plan = make_plan(
        source,
        autoencoder,
        (options.image_size[0], options.image_size[-1]),
        window=window,
        **options.model_dump(include={"scale", "shift", "mirrored", "dtype", "precision", "batch_size", "shard_size"}),
    )
    autoencoder.model.to(_device(options.device))
    with watching() as watcher:
        for note in source.notes:
            watcher.notice(printable(f"note: {note}"))
        encoding = Encoding(out, source, autoencoder, plan, watcher.preparing, watcher.notice)
        index = encoding.run(options.bad_share)
    if os.environ.get("RANK", "0") != "0":
        return 0
    figures: dict[str, Any] = {
        "store": str(out),
        "count": index.count,
        "bad": len(read_rejected(str(out))),
        "shape": list(index.shape),
        "classes": None if index.classes is None else len(index.classes),
        "latent_scale": index.latent_scale,
        "latent_shift": index.latent_shift,
        "vae": str(index.vae) if not options.as_json else index.vae.model_dump(),
        "bytes": sum(shard.bytes for shard in index.shards),
    }
    report(figures, options.as_json)
    say(f"encoded {out} in {time.perf_counter() - begun:.0f} s")
    say(f"\nNext: ditlab train latents --data.path {pasted(out)}")
    return 0


def _device(asked: str) -> Any:
    """Where to encode: of several GPUs each process of a torchrun takes its own."""
    import torch

    from ditlab.core.device import resolve_device

    device = resolve_device(asked)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device

"""``ditlab data check``: look at images before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.options import DataCheckOptions, parse
from ditlab.cli.output import report, say
from ditlab.cli.train_arguments import take_part
from ditlab.core.errors import InputError, pasted, printable
from ditlab.data.latents.index import has_index

if TYPE_CHECKING:
    from ditlab.data.images.cache import Examined
    from ditlab.data.images.check import Report

USAGE = "usage: ditlab data check PATH [OPTIONS]\n\nditlab data check --help lists its options."
ROWS = 40  # classes on the sheet
LISTED = 10  # bad files, in a table


def data(arguments: Sequence[str]) -> int:
    """What can be asked about data: ``check``."""
    rest = take_part(arguments, "check", USAGE, "ditlab data check PATH")
    return 0 if rest is None else check(rest)


def check(arguments: Sequence[str]) -> int:
    """Report on images, draw a contact sheet, and refuse where training would."""
    options = parse(DataCheckOptions, arguments, "ditlab data check")
    if has_index(options.path):
        return _check_store(options)
    if options.image_size is not None and len(options.image_size) not in (1, 2):
        raise InputError("--image-size takes one number for a square, or height and width")
    from ditlab.data.images.cache import caches_of, examine
    from ditlab.data.images.check import check
    from ditlab.data.images.open import located, open_source
    from ditlab.data.images.survey import seen_window

    out = Path(options.out)
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise InputError(f"--out {options.out} must end in .png and lie in a folder that exists")
    if Path(located(options.path)) in out.absolute().parents:
        raise InputError(f"--out {options.out} lies among the images and would be one of them: choose another place")
    size = None if options.image_size is None else (options.image_size[0], options.image_size[-1])
    from ditlab.cli.progress import watching

    with watching() as watcher:
        source = open_source(options.path, options.image_column)
        window = seen_window(source) if options.window == "auto" else options.window
        found = check(source, size, watcher.preparing, options.channels, window, options.scalars)
        caches = [examine(folder, progress=watcher.preparing) for folder in caches_of(found.location)]
    drawn = _draw(found, out)
    report(_figures(found, drawn, options.as_json) | _prepared(caches, options.as_json), options.as_json)
    for cache in caches:
        if cache.damaged:
            raise InputError(f"{cache.damaged[0]}; remove {cache.folder}, and what is needed again is prepared anew")
    if found.bad_share > options.bad_share:
        raise InputError(
            f"{len(found.rejected):,} of {found.usable + len(found.rejected):,} files cannot be used, above the share "
            f"of {options.bad_share:g} that training allows. Fix or remove them"
        )
    say(f"\nNext: {f'look at {drawn}, ' if drawn else ''}ditlab train images {_as_trained(options)}")
    return 0


def _as_trained(options: DataCheckOptions) -> str:
    """The options of training that read the images as they were looked at."""
    words = ["--data.path", pasted(options.path)]
    if options.channels is not None:
        words += ["--data.channels", str(options.channels)]
    if options.window is not None:
        ends = ["auto"] if options.window == "auto" else [repr(end).removesuffix(".0") for end in options.window]
        words += ["--data.window", *ends]
    if options.image_column is not None:
        words += ["--data.image-column", pasted(options.image_column)]
    if options.scalars:
        words += ["--data.scalars", *map(pasted, options.scalars)]
    return " ".join(words)


def _check_store(options: DataCheckOptions) -> int:
    """Report on a store of latents, and refuse where a byte of it is not as it was encoded."""
    from ditlab.cli.progress import watching
    from ditlab.data.latents.check import check_store

    with watching() as watcher:
        found = check_store(options.path, watcher.preparing)
    index = found.index
    figures: dict[str, Any] = {
        "path": options.path if options.as_json else printable(options.path),
        "usable": index.count,
        "bad": found.bad,
        "classes": found.classes if options.as_json else _shortened(found.classes) or "none",
        "shape": list(index.shape),
        "image_size": list(index.image_size),
        "mirrored": index.mirrored,
        "vae": index.vae.model_dump() if options.as_json else str(index.vae),
        "latent_scale": index.latent_scale,
        "latent_shift": index.latent_shift,
        "channel_mean": found.mean if options.as_json else "  ".join(f"{value:.4g}" for value in found.mean),
        "channel_std": found.std if options.as_json else "  ".join(f"{value:.4g}" for value in found.std),
        "posterior_std": found.posterior_std,
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "damaged": found.damaged if options.as_json else len(found.damaged),
    }
    report(figures, options.as_json)
    if found.damaged:
        raise InputError(
            f"{len(found.damaged):,} of {len(index.shards):,} shards are not as they were encoded: {found.damaged[0]}"
        )
    say(f"\nNext: ditlab train latents --data.path {pasted(options.path)}")
    return 0


def _draw(found: Report, out: Path) -> str | None:
    """Write the contact sheet, if there is anything to see."""
    from ditlab.core.disk import write_atomically
    from ditlab.runs.pictures import contact_sheet

    rows = {name: pictures for name, pictures in found.shown.items() if pictures}
    if not rows:
        return None
    everything = f"{found.usable:,} {'image' if found.usable == 1 else 'images'}"
    titled = [(f"{name}  {found.classes[name]:,}" if name else everything, shown) for name, shown in rows.items()]
    sheet = contact_sheet(titled[:ROWS])
    write_atomically(out, sheet.save)
    return str(out)


def _figures(found: Report, drawn: str | None, whole: bool) -> dict[str, Any]:
    """What is printed; ``whole`` for a program, otherwise shortened for people."""
    rejected = [{"path": path, "reason": reason} for path, reason in found.rejected]
    figures: dict[str, Any] = {
        "path": found.location,
        "usable": found.usable,
        "bad": len(found.rejected),
        "bad_share": found.bad_share,
        "reasons": dict(found.reasons.most_common()),
        "classes": found.classes,
        "sizes": dict(found.sizes.most_common()),
        "formats": dict(found.formats.most_common()),
        "modes": dict(found.modes.most_common()),
        "captions": found.captions,
        "scalars": found.scalars,
        "other": {suffix or "without suffix": count for suffix, count in found.other.most_common()},
        "notes": found.notes,
        "rejected": rejected,
        "sheet": drawn,
    }
    if whole:
        return figures
    for name in ("classes", "sizes", "other"):
        figures[name] = {printable(key): count for key, count in _shortened(figures[name]).items()}
    for name, summary in found.scalars.items():
        figures[printable(name)] = "  ".join(f"{figure} {value:,.6g}" for figure, value in summary.items())
    del figures["scalars"]
    figures["rejected"] = printable("; ".join(f"{path}: {reason}" for path, reason in found.rejected[:LISTED]))
    figures["notes"] = printable("; ".join(found.notes))
    figures["path"] = printable(found.location)
    return {name: value for name, value in figures.items() if value not in ({}, "", None)}


def _prepared(caches: list[Examined], whole: bool) -> dict[str, Any]:
    """What is printed of prepared images that are kept, of any size."""
    if whole:
        return {"prepared": [{**cache._asdict(), "folder": str(cache.folder)} for cache in caches]}
    words = [f"{cache.folder}: {'damaged' if cache.damaged else cache.unknown or 'whole'}" for cache in caches]
    return {"prepared": printable("; ".join(words))} if words else {}


def _shortened(counts: dict[str, int], most: int = 20) -> dict[str, int]:
    """The first entries, and the sum of the others."""
    if len(counts) <= most:
        return counts
    first = dict(list(counts.items())[:most])
    return {**first, f"{len(counts) - most:,} others": sum(counts.values()) - sum(first.values())}

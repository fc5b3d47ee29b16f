"""Images into a store of latents: any number of processes share the work, and any of them may be killed.

A shard is a fixed range of the source's images. Whoever holds the lock of a shard encodes it, in batches whose
composition is fixed, and writes it whole or not at all, and then its entry beside the lock: a shard with an entry is
done. The system lets go of a lock when its process ends, however it does. Whoever finds all shards done writes the
index. So the bytes depend neither on the number of processes nor on what happened to them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from ditlab.core import disk, locks
from ditlab.core.errors import InputError
from ditlab.data.images.cache import write_rejected
from ditlab.data.images.decode import Picture
from ditlab.data.images.decode_all import decode_all, refuse_bad
from ditlab.data.images.labels import readable
from ditlab.data.images.source import Progress, Rejected, Source, Unusable
from ditlab.data.latents.index import INDEX, Index, Plan, Shard, has_index, read_index, shard_file
from ditlab.data.latents.plan import compare
from ditlab.data.latents.shards import columns_of, write_shard
from ditlab.data.latents.vae import Autoencoder

WORK = ".encoding"  # in the store, until it is finished
PLAN = "plan.json"  # in that
LOOKED = "images.sha256"  # in that: of the bytes of some images
LOOKS = 16  # images, evenly spread
PAUSE = 0.2  # seconds between looks at what other processes are at


class Encoding:
    """A store that is being made by this process and perhaps by others.

    Args:
        plan: what source and autoencoder make of one another; what was begun must have been begun with it.
        progress: told how many of how many images are done, by all processes.
        notice: told in a line what a person may want to know.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        autoencoder: Autoencoder,
        plan: Plan,
        progress: Progress | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.work = folder, folder / WORK
        self.source, self.autoencoder, self.plan = source, autoencoder, plan
        self.progress, self.notice = progress, notice
        self.index: Index | None = None  # of a store that was finished before

    def run(self, bad_share: float = 0.01) -> Index:
        """Encode what is not encoded yet, wait for what others encode, and see that there is an index.

        ``InputError`` if the store was begun with another plan, or too many images cannot be used.
        """
        self._agree()
        with _reproducible():
            left = [shard for shard in range(self.plan.shard_count) if not self._claim(shard)]
            left = [shard for shard in left if not self._done(shard)]
            if left and self.notice is not None:
                noun = "shard" if len(left) == 1 else "shards"
                holder = locks.holder_of(self._lock(left[0]))
                self.notice(f"waiting for {len(left):,} {noun} that other processes encode: the first by {holder}")
            while left := [shard for shard in left if not self._claim(shard)]:
                time.sleep(PAUSE)
        return self._finish(bad_share)

    def _agree(self) -> None:
        """Write the plan, or see that what is there was begun with the same one."""
        if self.folder.is_dir() and not (self.folder / WORK).exists() and not has_index(self.folder):
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise InputError(f"{self.folder} already exists and is not a store of latents: choose another --out")
        elif self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} already exists and is not a folder: choose another --out")
        if (begun := self._begun()) is None:
            with self._alone("plan.lock"):
                begun = self._begun() or self._begin()
        compare(begun, self.plan, self.folder)
        seen = self.work / LOOKED
        if self.index is None and seen.exists() and seen.read_text() != _looked(self.source):
            raise InputError(
                f"{self.folder} was begun by a process that sees other images under the same names in --data.path: "
                f"give all processes the same images"
            )
        self.plan = self.plan.model_copy(update={"vae": begun.vae})  # which may lie elsewhere now

    def _begun(self) -> Plan | None:
        """The plan that is there; it goes when there is an index, which is therefore looked for afterwards."""
        file = self.work / PLAN
        if file.exists() and not has_index(self.folder):
            try:
                return Plan.model_validate(disk.read_json(file))
            except ValidationError:
                raise InputError(f"{file} is damaged: remove {self.folder} to encode anew") from None
        if not has_index(self.folder):
            return None
        self.index = read_index(self.folder)
        return Plan(**self.index.model_dump(include=set(Plan.model_fields)))

    def _begin(self) -> Plan:
        for left in disk.unfinished(self.work, f"{re.escape(PLAN)}|{re.escape(LOOKED)}"):
            disk.discard(left)
        looked, text = _looked(self.source), self.plan.model_dump_json()
        disk.write_atomically(self.work / LOOKED, lambda path: path.write_text(looked))
        disk.write_atomically(self.work / PLAN, lambda path: path.write_text(text))
        return self.plan

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock, and wait for it."""
        with ExitStack() as held:
            while True:
                disk.make_folder(self.work)
                with suppress(FileNotFoundError):  # whoever has finished the store clears the folder away
                    held.enter_context(locks.alone(self.work / name, f"{self.folder} is being worked on"))
                    break
            yield

    def _claim(self, shard: int) -> bool:
        """Encode a shard unless it is done; False if another process is at it."""
        if self._done(shard):
            return True
        try:
            disk.make_folder(self.work)
            held = FileLock(self._lock(shard), timeout=0).acquire()
        except (Timeout, FileNotFoundError):  # whoever has finished the store clears the folder away
            return False
        with held:
            if not self._done(shard):
                self._encode(shard)
        return True

    def _lock(self, shard: int) -> Path:
        return self.work / f"{shard:05d}.lock"

    def _entry(self, shard: int) -> Path:
        return self.work / f"{shard:05d}.json"

    def _done(self, shard: int) -> bool:
        """Whether a shard is there, of the size that the index or else its entry tells.

        Entries go when there is an index, so that is looked for afterwards.
        """
        if self.index is not None:
            known = self.index.shards[shard]
        elif (entry := _read_entry(self._entry(shard))) is not None:
            known = entry[0]
        else:
            return has_index(self.folder)
        file = self.folder / shard_file(shard)
        return file.is_file() and file.stat().st_size == known.bytes

    def _encode(self, shard: int) -> None:
        """Write a shard and its entry; one that was there before, of a shard that is lost, goes first."""
        file, entry = self.folder / shard_file(shard), self._entry(shard)
        left = [(parent, re.escape(name)) for parent, name in ((file.parent, file.name), (self.work, entry.name))]
        for unfinished in (entry, *(found for where, name in left for found in disk.unfinished(where, name))):
            disk.discard(unfinished)
        kept: list[int] = []
        rejected: list[Rejected] = []
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in columns_of(self.plan)}
        done = self._images_done()
        numbers = self.plan.numbers(shard)
        for first, group in _groups(self.source, self.plan, self.autoencoder.model.config.in_channels, numbers):
            good = [(i, picture) for i, picture in enumerate(group, first) if isinstance(picture, Picture)]
            rejected += [picture for picture in group if isinstance(picture, Rejected)]
            kept += [i for i, _ in good]
            if good:
                pixels = np.stack([picture.pixels for _, picture in good])
                for name, values in self._latents(pixels, [i for i, _ in good]).items():
                    pieces[name].append(values)
            if self.progress is not None:
                self.progress(done + first - numbers.start + len(group), self.plan.files)
        empty = np.empty((0, math.prod(self.plan.shape)), self.plan.dtype)
        latents = {name: np.concatenate([empty, *parts]) for name, parts in pieces.items()}
        names = [readable(self.source.names[i]) for i in kept]
        labels = None if self.source.labels is None else [self.source.labels[i] for i in kept]

        def make(path: Path) -> None:
            write_shard(path, self.plan, kept, names, labels, latents)
            self._compare(shard, len(kept), path)

        disk.write_atomically(file, make)
        made = _described(shard, len(kept), file)
        content = json.dumps({"shard": made.model_dump(), "rejected": rejected})
        disk.write_atomically(entry, lambda path: path.write_text(content))

    def _compare(self, shard: int, rows: int, made: Path) -> None:
        """Refuse a shard that a finished store had lost, and that is not as it was, before it has its name."""
        if self.index is not None and _described(shard, rows, made) != self.index.shards[shard]:
            raise InputError(
                f"{self.folder / shard_file(shard)} was missing, and does not come out as it was, on another machine "
                f"perhaps: choose another --out"
            )

    def _images_done(self) -> int:
        """Images, usable or not, of all shards that have an entry."""
        there = (int(entry.stem) for entry in self.work.glob("[0-9]*.json"))
        return sum(len(self.plan.numbers(shard)) for shard in there)

    @torch.no_grad()
    def _latents(self, pixels: np.ndarray, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Mean and standard deviation of each image's posterior, and of its mirror image's."""
        model, plan = self.autoencoder.model, self.plan
        x = torch.from_numpy(pixels).to(model.device).float().div_(127.5).sub_(1)  # as Images gives them
        found: list[torch.Tensor] = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            for images in (x, x.flip(-1)) if plan.mirrored else (x,):
                posterior = model.encode(images).latent_dist
                found += [posterior.mean.float(), posterior.std.float()]
        if found[0].shape[1:] != plan.shape:
            raise InputError(f"the VAE {plan.vae} gives latents {tuple(found[0].shape[1:])}, not {plan.shape}")
        kept = [values.flatten(1).to(getattr(torch, plan.dtype)) for values in found]
        for i, number in enumerate(numbers):
            if not all(bool(values[i].isfinite().all()) for values in kept):
                finite = all(bool(values[i].isfinite().all()) for values in found)
                mend = "add --dtype float32" if finite else "remove that image, or use --precision fp32"
                raise InputError(
                    f"the latents of {readable(self.source.names[number])} are not finite in {plan.dtype}: {mend}"
                )
        return dict(zip(columns_of(plan), (values.cpu().numpy() for values in kept), strict=True))

    def _finish(self, bad_share: float) -> Index:
        """The index, written by whoever comes first."""
        with self._alone("finish.lock"):
            if not has_index(self.folder):
                self._write_index(bad_share)
        disk.discard(self.work)
        return read_index(self.folder)

    def _write_index(self, bad_share: float) -> None:
        for left in disk.unfinished(self.folder, rf"{re.escape(INDEX)}|quarantine\.jsonl"):
            disk.discard(left)
        found = [_read_entry(self._entry(shard)) for shard in range(self.plan.shard_count)]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            raise InputError(f"something in {self.work} was damaged or removed meanwhile: give the same command again")
        rejected = list(self.source.rejected) + [bad for _, all_bad in entries for bad in all_bad]
        rejected.sort(key=lambda bad: os.fsencode(bad.path))
        write_rejected(self.folder / "quarantine.jsonl", rejected)
        shards = tuple(shard for shard, _ in entries)
        count = sum(shard.rows for shard in shards)
        refuse_bad(rejected, count, bad_share, self.folder / "quarantine.jsonl", "with --bad-share")
        index = Index(**self.plan.model_dump(), count=count, shards=shards)
        text = index.model_dump_json(indent=1) + "\n"
        disk.write_atomically(self.folder / INDEX, lambda path: path.write_text(text, encoding="utf-8"))


def _looked(source: Source) -> str:
    """sha256 of the bytes of some images: whoever encodes others under the same names has another one."""
    digest, last = hashlib.sha256(), len(source.names) - 1
    for i in sorted({round(k * last / (LOOKS - 1)) for k in range(LOOKS)}):
        with suppress(Unusable):
            digest.update(source.read(i))
    return digest.hexdigest()


def sha256_of(file: Path) -> str:
    """In hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _described(shard: int, rows: int, file: Path) -> Shard:
    """A shard whose bytes are in ``file``, which may go by another name yet."""
    return Shard(file=shard_file(shard), rows=rows, bytes=file.stat().st_size, sha256=sha256_of(file))


def _read_entry(file: Path) -> tuple[Shard, list[Rejected]] | None:
    """What was made of a shard, and its images that cannot be used; None if there is no entry or it is damaged."""
    try:
        entry = json.loads(file.read_bytes())
        return Shard(**entry["shard"]), [Rejected(str(path), str(reason)) for path, reason in entry["rejected"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _groups(
    source: Source, plan: Plan, channels: int, numbers: range
) -> Iterator[tuple[int, list[Picture | Rejected]]]:
    """The images of a shard in groups that are encoded together, each with the number of its first one.

    A group is a fixed range of numbers: which of them can be used changes no other group.
    """
    pictures = decode_all(source, plan.image_size, channels, numbers=numbers, window=plan.window)
    for first in numbers[:: plan.batch_size]:
        yield first, list(islice(pictures, plan.batch_size))


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread on a CPU and fixed algorithms on CUDA: sums that do not depend on how many processes there are.

    Convolutions in fp32 are that on CUDA, too, where torch's default is TF32.
    """
    cudnn: Any = torch.backends.cudnn
    threads, deterministic, convolutions = torch.get_num_threads(), cudnn.deterministic, cudnn.conv.fp32_precision
    torch.set_num_threads(1)
    cudnn.deterministic, cudnn.conv.fp32_precision = True, "ieee"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.conv.fp32_precision = deterministic, convolutions

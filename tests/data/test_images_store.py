"""What is prepared is whole or not there, is prepared once, and is prepared anew when anything changed."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from ditlab.core.disk import cache_folder
from ditlab.core.errors import Caution
from ditlab.data.images import cache as stores
from ditlab.data.images import checksums
from ditlab.data.images.cache import Store, Strings, prepare
from ditlab.data.images.folder import Folder
from ditlab.data.images.source import Rejected
from tests.images import folder_of, noise, png, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_pixels_labels_and_names_are_those_of_the_files(tmp_path):
    root = folder_of(tmp_path / "r")
    write(root / "a" / "0001.png", b"spoilt")
    write(root / "a" / "metadata.jsonl", b'{"file_name": "0002.png", "text": "two"}')
    done = []
    store = prepare(Folder(root), (8, 8), 3, progress=lambda *of: done.append(of))
    kept = [i for i in range(12) if i != 1]
    np.testing.assert_array_equal(store.pixels, np.stack([noise(i).transpose(2, 0, 1) for i in kept]))
    assert store.labels.tolist() == [i // 6 for i in kept]
    assert store.kept.tolist() == kept
    assert list(store.names) == [f"{'ab'[i // 6]}/{i:04d}.png" for i in kept]
    assert list(store.captions) == ["", "two", *[""] * 9]
    assert store.rejected == [Rejected("a/0001.png", store.rejected[0].reason)]
    assert done[-1] == (12, 12)
    assert (store.count, store.shape) == (11, (3, 8, 8))


def test_names_of_any_bytes_are_kept_without_being_in_memory(tmp_path):
    strings = ["", "plain", "two\nlines", "😀", os.fsdecode(b"caf\xe9\xff"), ""]
    Strings.write(tmp_path / "names", strings)
    read = Strings(tmp_path / "names")
    assert list(read) == strings
    assert read[-2] == strings[-2]
    assert read[1:3] == strings[1:3]
    with pytest.raises(IndexError):
        read[6]
    write(tmp_path / "names", b"short")
    with pytest.raises(ValueError, match="cut short"):
        Strings(tmp_path / "names")


def test_what_is_prepared_is_found_again_until_something_changes(tmp_path, cache, monkeypatch):
    root = folder_of(tmp_path / "r")
    first = prepare(Folder(root), (8, 8), 3)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "decode_all", None)  # which would be needed to prepare anything
        assert prepare(Folder(root), (8, 8), 3).fingerprint == first.fingerprint
    assert len(folders(cache)) == 1
    os.utime(root / "a" / "0000.png", (1, 1))
    assert prepare(Folder(root), (8, 8), 3).fingerprint == first.fingerprint
    assert len(folders(cache)) == 2
    write(root / "a" / "0000.png", png(99))  # of the same size or not, it was written later
    assert (prepare(Folder(root), (8, 8), 3).pixels[0] == noise(99).transpose(2, 0, 1)).all()
    (root / "a" / "0000.png").rename(root / "b" / "0000.png")
    assert prepare(Folder(root), (8, 8), 3).fingerprint != first.fingerprint
    for size, channels in (((8, 4), 3), ((8, 8), 1)):
        assert prepare(Folder(root), size, channels).shape == (channels, *size)
    assert len(folders(cache)) == 6


def test_a_damaged_cache_is_prepared_anew(tmp_path, cache):
    root = folder_of(tmp_path / "r")
    whole = np.array(prepare(Folder(root), (8, 8), 3).pixels)
    folder = cache / folders(cache)[0]
    for path in sorted(folder.iterdir()):
        for damage in ("cut", "gone"):
            if damage == "gone":
                path.unlink()
            elif path.stat().st_size:
                os.truncate(path, path.stat().st_size // 2)
            else:
                continue
            with pytest.warns(Caution, match=f"prepared in {folder} is damaged: it is prepared anew"):
                again = prepare(Folder(root), (8, 8), 3)
            np.testing.assert_array_equal(again.pixels, whole)


def labels(values, dtype=np.int64):
    return lambda folder: np.save(folder / "labels.npy", np.array(values, dtype))


def index(**changes):
    def change(folder):
        told = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(told | changes))

    return change


RIGHT = [0] * 6 + [1] * 6
BESIDE_THE_PIXELS = {
    "a label less": labels(RIGHT[:-1]),
    "a label more": labels([*RIGHT, 1]),
    "a label out of range": labels([*RIGHT[:-1], 2]),
    "a negative label": labels([-1, *RIGHT[1:]]),
    "another class": labels([1, *RIGHT[1:]]),
    "labels that are no whole numbers": labels(RIGHT, np.float64),
    "labels that are objects": lambda folder: np.save(folder / "labels.npy", np.array([{}] * 12), allow_pickle=True),
    "labels in an archive": lambda folder: np.savez((folder / "labels.npy").open("wb"), a=RIGHT),
    "no labels": index(labels=False),
    "an empty file of labels": lambda folder: (folder / "labels.npy").write_bytes(b""),
    "a number beyond the images": lambda folder: np.save(folder / "kept.npy", np.arange(1, 13)),
    "numbers in another order": lambda folder: np.save(folder / "kept.npy", np.arange(12)[::-1].copy()),
    "names that end before they begin": lambda folder: np.save(folder / "names.ends.npy", np.arange(13)[::-1] * 10),
    "names without ends": lambda folder: np.save(folder / "names.ends.npy", np.zeros(0, np.int64)),
    "too few names": lambda folder: Strings.write(folder / "names", ["x"] * 11),
    "pixels of another type": lambda folder: np.save(folder / "pixels.npy", np.zeros((12, 3, 8, 8), np.float32)),
    "pixels of another size": lambda folder: np.save(folder / "pixels.npy", np.zeros((12, 3, 4, 4), np.uint8)),
    "an index that is a list": lambda folder: (folder / "index.json").write_text("[1]"),
    "an index nested deep": lambda folder: (folder / "index.json").write_text("[" * 100_000),
    "a count of words": index(count="twelve"),
    "a huge count": index(count=10**30),
    "a shape of one number": index(shape=8),
    "a fingerprint of numbers": index(fingerprint=7),
}


@pytest.mark.parametrize("kind", BESIDE_THE_PIXELS)
def test_what_lies_wrong_beside_the_pixels_is_prepared_anew(tmp_path, cache, kind):
    """Labels that are short, long or of no class, and whatever else: never a traceback, and never a wrong label."""
    root = folder_of(tmp_path / "r")
    prepare(Folder(root), (8, 8), 3)
    (folder,) = cache.glob("*/")
    BESIDE_THE_PIXELS[kind](folder)
    with pytest.warns(Caution, match="it is prepared anew"):
        store = prepare(Folder(root), (8, 8), 3)
    assert store.labels.tolist() == RIGHT
    np.testing.assert_array_equal(store.pixels, np.stack([noise(i).transpose(2, 0, 1) for i in range(12)]))
    assert stores.examine(folder, Folder(root)).damaged == []


def test_each_block_of_each_file_has_a_checksum(tmp_path, cache, monkeypatch):
    """Against hashlib, and found by a flip of any bit."""
    monkeypatch.setattr(checksums, "BLOCK", 1000)
    root = folder_of(tmp_path / "r")
    prepare(Folder(root), (8, 8), 3)
    (folder,) = cache.glob("*/")
    told = json.loads((folder / "index.json").read_text())["sha256"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}
    cut = {name: [body[i : i + 1000] for i in range(0, len(body), 1000)] for name, body in files.items()}
    assert told == {name: [hashlib.sha256(b).hexdigest() for b in blocks] for name, blocks in cut.items()}
    assert len(told["pixels.npy"]) == 3
    chance = random.Random(0)
    for name, body in files.items():
        at = chance.randrange(len(body)) if body else 0
        (folder / name).write_bytes(
            body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :] if body else b"x"
        )
        (line,) = stores.examine(folder).damaged
        assert str(folder) in line
        (folder / name).write_bytes(body)
    (folder / "extra").write_bytes(b"")
    assert stores.examine(folder).damaged


def test_pixels_are_kept_where_they_fit(tmp_path, cache, monkeypatch):
    source = Folder(folder_of(tmp_path / "r"))
    assert prepare(source, (8, 8), 3, "off").pixels is None
    monkeypatch.setattr(stores, "LARGEST", 12 * 8 * 8 * 3 - 1)
    assert prepare(source, (8, 8), 3, "auto").pixels is None
    assert not list(cache.rglob("pixels.npy"))
    assert prepare(source, (8, 8), 3, "on").pixels is not None
    assert prepare(source, (8, 8), 3, "auto").pixels is not None  # what is there is used
    assert prepare(source, (8, 8), 3, "off").pixels is None
    monkeypatch.setattr(stores, "LARGEST", 2**34)
    monkeypatch.setattr(stores, "SPARED", 2**60)
    assert prepare(source, (4, 4), 3, "auto").pixels is None


def test_a_full_disk_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    real = stores._write_header

    def full(*arguments):
        real(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "_write_header", full)
    with pytest.raises(OSError, match="No space"):
        prepare(Folder(folder_of(tmp_path / "r")), (8, 8), 3)
    assert not folders(cache)


SLOW = """
    import sys, time
    from ditlab.data.images import decode_all as reading, cache as store
    from ditlab.data.images.folder import Folder

    real = reading.decode
    def slow(*arguments):
        print("decoding", flush=True)
        time.sleep(float(sys.argv[2]))
        return real(*arguments)
    reading.decode = slow
    ready = store.prepare(Folder(sys.argv[1]), (8, 8), 3)
    print(ready.count, ready.fingerprint)
"""


def prepare_elsewhere(root, seconds):
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_while_preparing(tmp_path, cache):
    """What was begun is never taken for whole, and the next one clears it away."""
    root = folder_of(tmp_path / "r")
    child = prepare_elsewhere(root, 30)
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [name.endswith(".tmp") for name in folders(cache)] == [True]
    store = prepare(Folder(root), (8, 8), 3)
    assert store.count == 12
    assert folders(cache) == [name for name in folders(cache) if not name.endswith(".tmp")]


def test_two_processes_at_once_prepare_once(tmp_path, cache):
    root = folder_of(tmp_path / "r")
    children = [prepare_elsewhere(root, 0.05) for _ in range(2)]
    outputs = [child.communicate()[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(lines.count("decoding") for lines in outputs) == 12
    assert outputs[0][-1] == outputs[1][-1]
    assert len(folders(cache)) == 1


def test_under_its_name_it_is_whole_at_every_moment(tmp_path, cache):
    """Watched from outside while it is prepared: a folder with a final name can always be opened."""
    child, seen = prepare_elsewhere(folder_of(tmp_path / "r"), 0.02), 0
    while child.poll() is None:
        for name in folders(cache) if cache.is_dir() else ():
            if not name.endswith(".tmp"):
                Store(cache / name)
                seen += 1
        time.sleep(0.001)
    assert child.returncode == 0
    assert len(folders(cache)) == 1
    assert json.loads((cache / folders(cache)[0] / "index.json").read_text())["count"] == 12


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DITLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ditlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ditlab"

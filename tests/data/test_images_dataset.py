"""Batches of images are a function of (seed, position), whoever asks for them."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data.dataset import Dataset, HeldOut
from ditlab.data.images.dataset import Images
from ditlab.data.shuffle import sample_order
from tests.images import folder_of, noise, png, write


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    return folder_of(tmp_path / "r")


def test_batches_hold_the_files_and_their_labels(root):
    data = Images(str(root), (8, 8), classes=("a", "b"))
    assert isinstance(data, Dataset)
    assert not isinstance(data, HeldOut)
    assert (data.shape, len(data.conditions["label"]), len(data)) == ((3, 8, 8), 2, 12)
    x0, cond = data.batch(3, 5, 20)
    chosen = sample_order(3, 5, 20, 12)
    assert torch.equal(data.indices(3, 5, 20), chosen)
    expected = np.stack([noise(int(i)).transpose(2, 0, 1) for i in chosen]).astype(np.float32) / 127.5 - 1
    torch.testing.assert_close(x0, torch.from_numpy(expected), rtol=0, atol=1e-6)
    assert (x0.dtype, cond["label"].dtype) == (torch.float32, torch.int64)
    assert cond["label"].tolist() == [int(i) // 6 for i in chosen]
    assert [data.name(int(i)) for i in chosen] == [f"{'ab'[i // 6]}/{i:04d}.png" for i in chosen.tolist()]
    values = ((data.images(range(12)) + 1) * 127.5).round()
    assert (
        values.numpy().astype(np.uint8).tobytes()
        == np.stack([noise(i).transpose(2, 0, 1) for i in range(12)]).tobytes()
    )


def test_the_cache_changes_no_number(root):
    on, off = (Images(str(root), (6, 5), flip=True, cache=cache) for cache in ("on", "off"))
    for position in (0, 7, 40):
        assert torch.equal(on.batch(0, position, 9).x0, off.batch(0, position, 9).x0)
    assert on.fingerprint == off.fingerprint


def test_half_are_flipped_by_seed_epoch_and_image_alone(root):
    plain, data = Images(str(root), (8, 8)), Images(str(root), (8, 8), flip=True)

    def flipped(seed, epoch):
        """Whether each image is mirrored, found from the pixels."""
        mirrored = np.zeros(12, dtype=bool)
        for position in range(12 * epoch, 12 * epoch + 12, 4):
            batch = data.batch(seed, position, 4).x0
            for image, i in zip(batch, data.indices(seed, position, 4), strict=True):
                original = plain.images([int(i)])[0]
                mirrored[i] = not torch.equal(image, original)
                assert torch.equal(image, original.flip(-1) if mirrored[i] else original)
        return mirrored

    seen = np.stack([flipped(seed, epoch) for seed in range(4) for epoch in range(5)])
    assert abs(seen.mean() - 0.5) < 0.1  # 240 coins: three standard deviations
    assert abs(np.corrcoef(seen, rowvar=False)[~np.eye(12, dtype=bool)]).mean() < 0.35
    assert len({row.tobytes() for row in seen}) == 20
    assert (flipped(2, 3) == seen[13]).all()
    whole, parts = data.batch(1, 10, 16).x0, [data.batch(1, 10 + i, 1).x0 for i in range(16)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    ("cache", "method"),
    [("on", "fork"), ("off", "fork"), pytest.param("off", "spawn", marks=pytest.mark.slow)],  # spawn imports torch anew
)
def test_worker_processes_give_the_same_batches(root, cache, method):
    data = Images(str(root), (8, 8), classes=("a", "b"), flip=True, cache=cache)
    here = data.batch(0, 8, 8)
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        there = pool.submit(data.batch, 0, 8, 8).result()
    assert torch.equal(here.x0, there.x0)
    assert torch.equal(here.cond["label"], there.cond["label"])
    assert len(pickle.dumps(data)) < 20_000


@pytest.mark.parametrize("cache", ["on", "off"])
def test_another_process_reads_what_was_prepared(root, cache, monkeypatch):
    data = Images(str(root), (8, 8), classes=("a", "b"), cache=cache)
    here = data.batch(0, 3, 8)
    kept = pickle.dumps(data)
    if cache == "on":
        assert str(root / "a").encode() not in kept
        assert b"0003.png" not in kept  # no list of files
    monkeypatch.setattr("ditlab.data.images.dataset.prepare", lambda *_, **__: pytest.fail("prepared again"))
    there = pickle.loads(kept)
    assert torch.equal(there.batch(0, 3, 8).x0, here.x0)
    assert there.fingerprint == data.fingerprint


def test_a_fingerprint_is_of_the_images_and_not_of_when_they_were_written(root, tmp_path):
    def fingerprint(where):
        return Images(str(where), (8, 8)).fingerprint

    first = fingerprint(root)
    assert fingerprint(folder_of(tmp_path / "copy")) == first
    write(root / "a" / "0000.png", b"spoilt")
    assert fingerprint_with(root, bad_share=1) != first
    write(root / "a" / "0000.png", png(0))
    assert fingerprint(root) == first
    (root / "a" / "0000.png").rename(root / "a" / "000.png")
    assert fingerprint(root) != first


def fingerprint_with(root, **options):
    return Images(str(root), (8, 8), **options).fingerprint


def test_shape_and_labels_need_no_images(tmp_path):
    data = Images(str(tmp_path / "gone"), (4, 6), 1, ("x", "y", "z"))
    assert (data.shape, len(data.conditions["label"])) == ((1, 4, 6), 3)
    with pytest.raises(InputError, match=r"images are not at .*gone any more"):
        data.batch(0, 0, 1)


def test_other_classes_are_refused(root):
    with pytest.raises(InputError, match=r"a, b new; c, d gone"):
        Images(str(root), (8, 8), classes=("c", "d")).prepare()
    with pytest.raises(InputError, match="in another order"):
        Images(str(root), (8, 8), classes=("b", "a")).prepare()


def test_a_file_that_changes_while_it_is_needed_is_named(root):
    data = Images(str(root), (8, 8), cache="off")
    data.prepare()
    write(root / "a" / "0003.png", b"spoilt")
    with pytest.raises(InputError, match=r"has changed: a/0003.png could be used before, but now: no image"):
        data.images(range(12))


def test_repeated_classes_come_so_many_times_an_epoch(root):
    """Each epoch has all of them, in another order; mirrored copies of one image are tossed for each by itself."""
    data = Images(str(root), (8, 8), classes=("a", "b"), repeats={"b": 4})
    epochs = [sorted(data.indices(0, start, 30).tolist()) for start in (0, 30, 60)]
    assert epochs == [sorted([*range(6), *(i for i in range(6, 12) for _ in range(4))])] * 3
    assert data.indices(0, 0, 30).tolist() != data.indices(0, 30, 30).tolist()
    batch = data.batch(0, 10, 50)
    assert batch.cond["label"].tolist() == [int(i) // 6 for i in data.indices(0, 10, 50)]
    assert torch.equal(batch.x0, data.images(data.indices(0, 10, 50).numpy()))
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(0, 10, 50).x0, batch.x0)
    assert len(data) == 12
    flipped = Images(str(root), (8, 8), classes=("a", "b"), repeats={"b": 4}, flip=True)
    tossed = {tuple(image.flatten().tolist()) for image in flipped.batch(0, 0, 30).x0}
    assert len(tossed) > 12


def test_repeats_of_an_unknown_class_name_those_that_there_are(root):
    with pytest.raises(InputError, match=r"^--data.repeats names c, d, and the classes are a, b$"):
        Images(str(root), (8, 8), classes=("a", "b"), repeats={"d": 2, "a": 2, "c": 3})
    with pytest.raises(InputError, match=r"the classes are none, for there are no labels"):
        Images(str(root), (8, 8), repeats={"a": 2})

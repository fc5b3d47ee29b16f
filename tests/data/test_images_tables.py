"""Parquet, webdataset tars and the Hub give the images, labels and captions that were written into them."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data.images import arrow
from ditlab.data.images.dataset import Images
from ditlab.data.images.open import open_source
from ditlab.data.images.source import Unusable
from ditlab.data.images.survey import survey
from tests.images import noise, png, write

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))


def rows(n=6):
    return [{"image": {"bytes": png(i), "path": None}, "label": i % 3, "text": f"number {i}"} for i in range(n)]


def parquet(path, entries, **features):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(entries)
    if features and not entries:
        table = datasets.Dataset.from_dict({name: [] for name in features}, datasets.Features(features)).data.table
    elif features:
        table = datasets.Dataset(table).cast(datasets.Features(features)).data.table
    pq.write_table(table, path)
    return path


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as stream:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            stream.addfile(info, io.BytesIO(body))
    return path


def assert_holds(path, labels, classes, captions):
    source = open_source(str(path))
    assert [source.read(i) for i in range(len(labels))] == [png(i) for i in range(len(labels))]
    assert (source.labels, source.classes, source.captions) == (labels, classes, captions)
    assert source.sizes == [len(png(i)) for i in range(len(labels))]
    data = Images(str(path), (8, 8), classes=classes)
    expected = np.stack([noise(i).transpose(2, 0, 1) for i in range(len(labels))])
    np.testing.assert_allclose(data.images(range(len(data))), expected / 127.5 - 1, rtol=0, atol=1e-6)
    return source


def test_parquet(tmp_path):
    texts = {i: f"number {i}" for i in range(6)}
    path = parquet(tmp_path / "a.parquet", rows())
    source = assert_holds(path, [0, 1, 2, 0, 1, 2], ("0", "1", "2"), texts)
    again = open_source(str(path))
    assert (source.stamp, source.names) == (again.stamp, again.names)  # else nothing would be found prepared
    parquet(tmp_path / "f" / "a.parquet", rows()[:4])
    parquet(tmp_path / "f" / "deep" / "b.parquet", rows()[4:])
    write(tmp_path / "f" / "README.md", b"x")
    source = assert_holds(tmp_path / "f", [0, 1, 2, 0, 1, 2], ("0", "1", "2"), texts)
    assert source.other == {".md": 1}


def test_tables_in_a_folder_are_found_as_images_are(tmp_path):
    """In any case, through links, and not where they are hidden."""
    root = tmp_path / "f"
    parquet(root / "A.PARQUET", rows()[:2])
    parquet(tmp_path / "elsewhere" / "b.parquet", rows()[2:4])
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    write(root / ".hidden.parquet", b"garbage")
    write(root / ".cache" / "x.parquet", b"garbage")
    source = open_source(str(root))
    assert [source.read(i) for i in range(len(source.names))] == [png(i) for i in range(4)]


@pytest.mark.parametrize("layout", ["train/0.parquet test/0.parquet", "data/train-0.parquet data/VALIDATION-0.parquet"])
def test_of_several_splits_train_is_used(tmp_path, layout):
    train, other = (tmp_path / "f" / name for name in layout.split())
    parquet(train, rows()[:2])
    parquet(other, rows()[2:])
    source = open_source(str(tmp_path / "f"))
    assert [source.read(i) for i in range(len(source.names))] == [png(0), png(1)]
    assert "1 of 2 files are used: those whose names say train" in source.notes
    other.rename(other.with_name("more.parquet").absolute())
    if "data" in layout:  # a name that tells no split: nothing is told apart
        assert len(open_source(str(tmp_path / "f")).names) == 6


def test_other_columns_of_images_are_named(tmp_path):
    entries = [{"image": png(i), "img": png(9), "jpg": png(9)} for i in range(2)]
    source = open_source(str(parquet(tmp_path / "a.parquet", entries)))
    assert source.read(1) == png(1)
    assert source.notes == ["the images of column image are used, and not those of img, jpg"]


@pytest.mark.parametrize("names", ["img.{}.png", "set-{}.img.png", "cat.{}.png dog.{}.png"])
def test_tars_whose_names_have_several_dots(tmp_path, names):
    """A name ends at its first dot: where that puts all pictures into few samples, it is said; else nothing is lost."""
    members = {name.format(i): png(i) for name in names.split() for i in range(4)}
    path = str(tar(tmp_path / "w.tar", members))
    if names.startswith("set"):
        assert open_source(path).names == [f"set-{i}" for i in range(4)]
    else:
        with pytest.raises(InputError, match=r"names like img.0.png make one sample of many images"):
            open_source(path)


def test_tars_of_class_folders_are_labelled_as_folders_are(tmp_path):
    members = {f"./{name}/{i}.jpg": png(i) for i, name in enumerate(["owls", "ants", "owls/snowy", "ants"])}
    members |= {"README": b"x", "._0.jpg": b"junk", "ants/.hidden.png": b"junk", "ants/notes.md": b"x"}
    source = assert_holds(tar(tmp_path / "w.tar", members), [1, 0, 2, 0], ("ants", "owls", "owls/snowy"), {})
    assert source.names == ["owls/0", "ants/1", "owls/snowy/2", "ants/3"]
    assert source.notes == ["1 of 5 samples have no image"]
    tar(tmp_path / "f" / "0.tar", dict(list(members.items())[:2]))
    tar(tmp_path / "f" / "1.tar", dict(list(members.items())[2:4]))
    assert_holds(tmp_path / "f", [1, 0, 2, 0], ("ants", "owls", "owls/snowy"), {})


def test_tars_of_images_of_several_suffixes_are_read_whole(tmp_path):
    """Pictures are JPEG or PNG as they come; a segmentation beside them is no picture, unless it is asked for."""
    members = {f"{i}.{suffix}": png(i) for i, suffix in enumerate(["jpg", "png", "JPEG", "png"])}
    members |= {f"{i}.seg.png": png(7 + i) for i in range(4)} | {"0.txt": b"first", "0.json": b"{}"}
    path = tar(tmp_path / "w.tar", members)
    source = open_source(str(path))
    assert ([source.read(i) for i in range(4)], source.captions) == ([png(i) for i in range(4)], {0: "first"})
    assert source.notes == [
        "the images .jpg and .png and .jpeg are used, and not 4 .seg.png: --data.image-column chooses"
    ]
    assert source.other == {".json": 1}
    source = open_source(str(path), "seg.png")
    assert [source.read(i) for i in range(4)] == [png(7 + i) for i in range(4)]
    assert survey(str(path), "png").count == 2
    with pytest.raises(InputError, match=r"has no files \*\.webp, but \.seg\.png, \.png"):
        open_source(str(path), "webp")


def test_a_damaged_or_odd_tar_takes_nothing_of_this_machine(tmp_path):
    whole = tar(tmp_path / "w.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    cut = open_source(str(write(tmp_path / "cut.tar", whole[: len(whole) - 10240 - 100])))
    assert len(cut.names) <= 3
    with tarfile.open(tmp_path / "links.tar", "w") as stream:
        for kind, target in (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.LNKTYPE, "/etc/passwd"),
            (tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, target
            stream.addfile(info)
    with pytest.raises(InputError, match="has no rows"):
        open_source(str(tmp_path / "links.tar"))
    with tarfile.open(tmp_path / "z.tar", "w:gz") as stream:
        stream.add(tmp_path / "w.tar", "w.tar")
    with pytest.raises(InputError, match="a compressed tar has to be unpacked first"):
        open_source(str(tmp_path / "z.tar"))


def test_the_column_of_images_goes_by_its_name(tmp_path):
    entries = [{"image": png(i), "thumb": png(9), "picture": png(3 + i)} for i in range(2)]
    path = str(parquet(tmp_path / "a.parquet", entries))
    assert open_source(path, "picture").read(1) == png(4)
    assert Images(path, (8, 8), column="thumb").images([0]).shape == (1, 3, 8, 8)
    assert survey(path, "thumb").count == 2
    with pytest.raises(InputError, match="has no column img, only image, thumb, picture"):
        open_source(path, "img")


def test_labels_that_are_none_say_why(tmp_path):
    for value, name in ((0.5, "float"), ([1, 2], "list")):
        entries = [{"image": png(i), "label": value} for i in range(2)]
        source = open_source(str(parquet(tmp_path / f"{name}.parquet", entries)))
        assert (source.labels, source.notes) == (
            None, [f"label holds {name}, neither whole numbers nor words: trained without labels"]
        )  # fmt: skip


def test_labels_have_names_where_the_table_has_them(tmp_path):
    entries = [{"img": {"bytes": png(i), "path": f"{i}.png"}, "label": i % 2} for i in range(4)]
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "unseen"])}
    source = assert_holds(
        parquet(tmp_path / "n.parquet", entries, **features), [0, 1, 0, 1], ("cat", "dog", "unseen"), {}
    )
    assert source.names == ["0.png", "1.png", "2.png", "3.png"]
    entries = [{"image": png(i), "label": name} for i, name in enumerate(["owl", "ant", "owl"])]
    assert_holds(parquet(tmp_path / "s.parquet", entries), [1, 0, 1], ("ant", "owl"), {})
    entries = [{"image": png(i), "label": label} for i, label in enumerate([0, None, 1])]
    assert open_source(str(parquet(tmp_path / "m.parquet", entries))).notes == [
        "not every row has a label: trained without labels"
    ]


def test_webdataset(tmp_path):
    members = {}
    for i in range(4):
        members |= {f"s{i}.png": png(i), f"s{i}.cls": str(10 - i % 2).encode(), f"s{i}.txt": f"number {i}".encode()}
    source = assert_holds(
        tar(tmp_path / "w.tar", members), [1, 0, 1, 0], ("9", "10"), {i: f"number {i}" for i in range(4)}
    )
    assert source.names == ["s0", "s1", "s2", "s3"]


def test_a_pickle_in_a_tar_is_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    members = {}
    for i in range(2):
        body = pickle.dumps(Payload())
        members |= {f"s{i}.png": png(i), f"s{i}.pyd": body, f"s{i}.pickle": body, f"s{i}.pkl": body, f"s{i}.cls": b"0"}
    assert open_source(str(tar(tmp_path / "w.tar", members))).read(0) == png(0)
    assert not (tmp_path / "ran").exists()


def test_bad_rows_are_listed(tmp_path):
    entries = rows(300)
    entries[5]["image"] = {"bytes": b"spoilt", "path": None}
    entries[7]["image"] = {"bytes": None, "path": "/dev/zero"}
    entries[8]["image"] = {"bytes": None, "path": "https://example.com/x.png"}
    data = Images(str(parquet(tmp_path / "a.parquet", entries)), (8, 8), bad_share=0.02)
    data.prepare(tmp_path / "q.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["reason"].partition(":")[0]) for entry in listed] == [
        ("https://example.com/x.png", "empty row"),  # which is not fetched
        ("row 5", "no image"),
        ("zero", "empty row"),
    ]
    assert len(data) == 297


def test_a_table_reads_no_file_of_this_machine(tmp_path, monkeypatch):
    """Only the Hub's own files, which lie beside its tables, are read by name; links out of there are not followed."""
    arrow_files = tmp_path / "cache" / "arrow"
    secret, fetched = write(tmp_path / "secret.png", png(7)), write(arrow_files / "downloads" / "f.png", png(3))
    link = arrow_files / "downloads" / "link.png"
    link.symlink_to(secret)
    around = f"{arrow_files}/../../secret.png"
    entries = [{"image": {"bytes": None, "path": str(path)}} for path in (fetched, secret, link, around, "f.png")]
    path = parquet(tmp_path / "hub" / "train-0.parquet", entries)
    source = open_source(str(path))
    for i in range(5):
        with pytest.raises(Unusable, match="names a file outside of the table"):
            source.read(i)
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, **how: real(str(tmp_path / "hub"), **how))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", out_of_reach)
    (arrow_files / "owner___name").mkdir()  # as after an earlier download
    source = open_source("owner/name")
    assert source.read(0) == png(3)
    for i in range(1, 5):
        with pytest.raises(Unusable, match="names a file outside of the table"):
            source.read(i)


def test_pickled_tables_read_on(tmp_path):
    data = Images(str(parquet(tmp_path / "a.parquet", rows())), (8, 8), cache="off")
    first = data.batch(0, 0, 6).x0
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(0, 0, 6).x0, first)


def test_what_cannot_be_read_says_so_in_one_line(tmp_path, monkeypatch, capfd):
    with pytest.raises(InputError, match="has no column of images, only label"):
        open_source(str(parquet(tmp_path / "n.parquet", [{"label": 1}])))
    with pytest.raises(InputError, match="column image holds no image files"):
        open_source(str(parquet(tmp_path / "i.parquet", [{"image": 1}])))
    with pytest.raises(InputError, match="cannot read"):
        open_source(str(write(tmp_path / "x.parquet", b"garbage")))
    with pytest.raises(InputError, match="cannot read"):
        open_source(str(write(tmp_path / "x.tar", b"garbage")))
    with pytest.raises(InputError, match=r"e.parquet has no rows"):
        open_source(str(parquet(tmp_path / "e.parquet", [], image=datasets.Image())))
    with pytest.raises(InputError, match=r"e.tar has no rows"):
        open_source(str(tar(tmp_path / "e.tar", {})))
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("DITLAB_CACHE", str(write(tmp_path / "file", b"")))
    with pytest.raises(InputError, match=r"file/arrow: Not a directory; set DITLAB_CACHE to another folder"):
        open_source(str(tmp_path / "n.parquet"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ditlab\[data\]'"):
        open_source(str(tmp_path / "n.parquet"))
    with pytest.raises(InputError, match=r"no folder owner/name.*pip install 'ditlab\[data\]'"):
        open_source("owner/name")


def test_the_hub_out_of_reach_is_one_line(tmp_path):
    """With the Hub switched off by its own variable, which it reads when it is imported."""
    child = subprocess.run(
        [sys.executable, "-m", "ditlab", "train", "images", "--data.path", "owner/name"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert "there is no folder owner/name, and from the Hub: " in child.stderr
    assert "Traceback" not in child.stderr


def loader(folder, asked):
    """The library's own loader, of a folder in the Hub's layout; it notes name and revision."""
    real = datasets.load_dataset

    def load(name, revision=None, **how):
        asked.append((name, revision))
        return real(str(folder), **how)

    return load


def test_a_data_set_of_the_hub_is_read_like_a_table(tmp_path, monkeypatch):
    """The library's own loader for a folder in the Hub's layout stands for the download, which needs the network."""
    parquet(tmp_path / "hub" / "data" / "train-00000.parquet", rows())
    monkeypatch.setattr(datasets, "load_dataset", loader(tmp_path / "hub", asked := []))
    (tmp_path / "cache" / "arrow" / "owner___name").mkdir(parents=True)  # as after an earlier download
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", out_of_reach)
    seen = survey("owner/name")
    assert asked == [("owner/name", None)]
    assert (seen.path, seen.count, seen.classes, seen.captions) == ("owner/name", 6, ("0", "1", "2"), 6)


def out_of_reach(*_, **__):
    raise ConnectionError("nobody answers")


def test_a_data_set_of_the_hub_is_pinned_to_the_commit_that_was_seen(tmp_path, monkeypatch):
    """What was trained on is fetched again, whatever its owner has put in its place meanwhile."""
    parquet(tmp_path / "hub" / "data" / "train-00000.parquet", rows())
    monkeypatch.setattr(datasets, "load_dataset", loader(tmp_path / "hub", asked := []))
    newest = types.SimpleNamespace(sha="a" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: newest)
    path = survey("owner/name").path
    assert path == f"owner/name@{newest.sha}"
    newest.sha = "b" * 40
    assert len(Images(path, (8, 8), 3, ("0", "1", "2"))._opened().names) == 6
    assert asked == [("owner/name", "a" * 40)] * 2
    with pytest.raises(InputError, match="no such folder"):
        survey("owner/name@main")  # a branch moves


def test_a_full_disk_is_no_fault_of_the_table(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("generating failed") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(OSError, match="No space"):
        arrow.Table("x", "parquet", ())

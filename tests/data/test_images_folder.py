"""A folder is walked whole and once, whatever is in it; labels are where an image lies."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.data.images import folder as folders
from ditlab.data.images.folder import Folder
from ditlab.data.images.open import located, open_source
from ditlab.data.images.source import MAX_BYTES, Unusable, read_file
from ditlab.data.images.survey import survey
from tests.images import encoded, folder_of, noise, odd_but_good, png, spoil, write


def test_sub_folders_are_classes_of_any_depth(tmp_path):
    for name in ("b/2.png", "a/deep/1.png", "a/1.png", "b/1.PNG", "a/deep/deeper/1.png", "10/x.webp", "9/x.png"):
        write(tmp_path / name, png(0))
    source = Folder(tmp_path)
    assert source.classes == ("10", "9", "a", "a/deep", "a/deep/deeper", "b")
    assert source.names == sorted(source.names)
    assert [source.classes[label] for label in source.labels] == [str(Path(name).parent) for name in source.names]
    assert source.sizes == [len(png(0))] * 7
    assert source.read(0) == png(0)


def test_a_flat_folder_and_a_single_folder_have_no_labels(tmp_path):
    for root in (folder_of(tmp_path / "flat", ()), folder_of(tmp_path / "single", ("only",))):
        source = Folder(root)
        assert (source.classes, source.labels, len(source.names)) == (None, None, 6)


def test_images_beside_the_classes_are_a_class_of_their_own(tmp_path):
    root = folder_of(tmp_path / "r")
    write(root / "stray.png", png(0))
    source = Folder(root)
    assert source.classes == (".", "a", "b")
    assert source.labels[source.names.index("stray.png")] == 0
    assert "beside" in source.notes[0]


def test_splits_are_pointed_out(tmp_path):
    for split in ("train", "test"):
        folder_of(tmp_path / split)
    source = Folder(tmp_path)
    assert source.classes == ("test/a", "test/b", "train/a", "train/b")
    assert source.notes == ["test and train became classes or parts of them: name one to use it alone"]


def test_what_is_no_image_is_counted(tmp_path):
    root = folder_of(tmp_path / "r")
    for name in ("a/notes.txt", "b/notes.txt", "a/Thumbs.db", "README", "a/._0000.png", ".git/x.png"):
        write(root / name, b"x")
    source = Folder(root)
    assert len(source.names) == 12
    assert source.other == {".txt": 2, ".db": 1, "": 1, "hidden": 2}
    assert not source.rejected


def test_links_are_followed_and_loops_end(tmp_path):
    root = folder_of(tmp_path / "r", each=2)
    elsewhere = folder_of(tmp_path / "elsewhere", (), each=3)
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "other").symlink_to(root / "b")
    (elsewhere / "here").symlink_to(".")
    (elsewhere / "round.png").symlink_to(".")
    write(root / "a" / "x.png", b"").unlink()
    (root / "a" / "x.png").symlink_to(root / "b" / "0002.png")
    source = Folder(root)
    assert source.classes == ("a", "b", "c")
    assert len(source.names) == 2 + 2 + 3 + 1
    assert source.read(source.names.index("a/x.png")) == png(2)
    assert sorted(note.split()[0] for note in source.notes) == ["a/other", "a/up", "c/here"]
    assert source.rejected == [("c/round.png", "no file: a folder")]


def test_odd_names_are_read_as_any(tmp_path):
    good, bad = odd_but_good(tmp_path), spoil(tmp_path)
    source = Folder(tmp_path)
    assert good <= set(source.names)
    assert {path for path, _ in source.rejected} == {name for name, reason in bad.items() if reason == "no file"}
    assert all(source.read(source.names.index(name)) for name in good)
    write(tmp_path / os.fsdecode(b"cl\xffass") / "x.png", png(0))
    assert Folder(tmp_path).classes == (".", "cl\\xffass")


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "sparse", b"")
    os.truncate(tmp_path / "sparse", MAX_BYTES + 1)
    for name, reason in (
        ("pipe", "no file: a named pipe"),
        (".", "no file: a folder"),
        ("none", "cannot be read: No such"),
    ):
        with pytest.raises(Unusable, match=reason):
            read_file(tmp_path / name)
    with pytest.raises(Unusable, match="no file: a device"):
        read_file("/dev/zero")
    with pytest.raises(Unusable, match="too large"):
        read_file(tmp_path / "sparse")


def test_an_unreadable_file_is_a_bad_one_and_a_shortage_is_not(tmp_path, monkeypatch):
    """Root passes every permission bit, so the refusal is given by hand."""
    write(tmp_path / "x.png", png(0))
    for number in (errno.EACCES, errno.EIO):

        def refuse(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(Unusable, match=f"cannot be read: {os.strerror(number)}"):
            read_file(tmp_path / "x.png")
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many")))
    with pytest.raises(OSError, match="too many"):
        read_file(tmp_path / "x.png")


def test_a_folder_that_cannot_be_opened_is_listed(tmp_path, monkeypatch):
    root, real = folder_of(tmp_path / "r"), os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    assert Folder(root).rejected == [("b", "a folder that cannot be read: Permission denied")]
    assert len(Folder(root).names) == 6
    with pytest.raises(InputError, match="cannot open"):
        Folder(root / "b")


def test_captions_are_kept_with_their_images(tmp_path):
    root = folder_of(tmp_path / "r", each=2)
    lines = [
        {"file_name": "0000.png", "text": "a cat"},
        {"file_name": "./0001.png", "caption": "half \ud800 a sign"},
        {"file_name": "none.png", "text": "?"},
        {"file_name": 3, "text": "?"},
        [1],
    ]
    body = "\n".join(map(json.dumps, lines)) + "\nnot json\n"
    write(root / "a" / "metadata.jsonl", body.encode())
    write(root / "metadata.jsonl", b'{"file_name": "b/0003.png", "text": "deeper"}\n')
    source = Folder(root)
    assert source.captions == {0: "a cat", 1: "half ? a sign", 3: "deeper"}
    assert source.notes == ["a/metadata.jsonl: 4 of 6 lines tell nothing of an image here"]
    assert not source.other


def test_a_survey_tells_grey_from_colour_by_the_pixels(tmp_path):
    grey = folder_of(tmp_path / "grey", channels=1)
    assert survey(str(grey)).channels == 1
    values = noise(0, (8, 8), 1).repeat(3, axis=2)
    write(grey / "a" / "rgb.png", encoded_array(values))
    write(grey / "a" / "rgb.jpg", encoded_array(values, "JPEG"))
    assert survey(str(grey)).channels == 1
    write(grey / "b" / "color.png", png(0))
    seen = survey(str(grey))
    assert (seen.channels, seen.size, seen.count, seen.classes) == (3, (8, 8), 15, ("a", "b"))
    write(grey / "b" / "large.png", png(0, (9, 8)))
    assert survey(str(grey)).size is None


def encoded_array(values, kind="PNG"):
    return encoded(Image.fromarray(np.ascontiguousarray(values)), kind)


def test_a_survey_of_nothing_usable_says_why(tmp_path):
    with pytest.raises(InputError, match="no images in"):
        survey(str(tmp_path))
    write(tmp_path / "notes.txt", b"x")
    with pytest.raises(InputError, match=r"1 \.txt"):
        survey(str(tmp_path))
    write(tmp_path / "x.png", b"x")
    with pytest.raises(InputError, match=r"none of the images in .* can be used: no image"):
        survey(str(tmp_path))
    with pytest.raises(InputError, match="is a file"):
        survey(str(tmp_path / "x.png"))


def test_a_path_is_kept_in_full_and_a_name_on_the_hub_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(folder_of(tmp_path / "r").parent)
    assert located("r") == str(tmp_path / "r")
    assert located("r/a") == str(tmp_path / "r" / "a")
    assert located("owner/name") == "owner/name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located("~/r") == str(tmp_path / "r")
    assert len(open_source("r").names) == 12
    with pytest.raises(InputError, match="no such folder or file"):
        located("nowhere")


def test_labels_in_metadata_are_the_classes_where_every_image_has_one(tmp_path):
    """Numbers in their order and words in theirs, from lines of JSON and from a table of spreadsheets."""
    lines = [{"file_name": f"{i:04d}.png", "label": [10, 9, "7"][i % 3]} for i in range(6)]
    write(folder_of(tmp_path / "lines", ()) / "metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    source = Folder(tmp_path / "lines")
    assert (source.classes, source.labels) == (("7", "9", "10"), [2, 1, 0] * 2)
    assert source.notes == ["labels are those of metadata.jsonl"]
    rows = "file_name,text,label\n" + "".join(
        f'{k}/{i:04d}.png,"a, ""b""",{"dog" if i % 2 else "cat"}\n' for i, k in enumerate("aaabbb")
    )
    write(folder_of(tmp_path / "rows", each=3) / "metadata.csv", b"\xef\xbb\xbf" + rows.encode())
    source = Folder(tmp_path / "rows")
    assert (source.classes, source.labels) == (("cat", "dog"), [0, 1] * 3)
    assert source.captions == dict.fromkeys(range(6), 'a, "b"')
    assert survey(str(tmp_path / "rows")).classes == ("cat", "dog")


def test_labels_of_some_images_alone_are_said_and_not_used(tmp_path):
    root = folder_of(tmp_path / "r")
    lines = [{"file_name": "0000.png", "label": "x"}, {"file_name": "0001.png", "label": True}]
    write(root / "a" / "metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    write(root / "metadata.csv", b'file_name,label\nb/0006.png,\n"' + b"x" * 200_000)
    source = Folder(root)
    assert source.classes == ("a", "b")
    assert source.notes == [
        "a/metadata.jsonl: 1 of 2 lines tell nothing of an image here",
        "metadata.csv: line 2 cannot be read: field larger than field limit (131072)",
        "metadata.csv: 1 of 1 lines tell nothing of an image here",
        "1 of 12 images have a label in metadata.csv and metadata.jsonl: these are not used",
    ]


def test_folders_called_like_images_make_no_bad_files(tmp_path):
    """What a network drive or a Mac puts beside pictures is left alone; any other folder is looked into, and said."""
    root = folder_of(tmp_path / "r")
    for name in (
        "a/@eaDir/0000.png/SYNOPHOTO_THUMB_M.png",
        "__MACOSX/a/0000.png",
        "b/cat.png/1.png",
        "b/dog.png/2.png",
    ):
        write(root / name, png(0))
    (root / "a" / "@eaDir" / "0001.png").mkdir()
    source = Folder(root)
    assert source.classes == ("a", "b", "b/cat.png", "b/dog.png")
    assert (source.rejected, source.other) == ([], {"@eaDir": 1, "__MACOSX": 1})
    assert source.notes == ["2 folders are called like images, such as b/cat.png: the images in it are read as any"]

"""``ditlab check``: whatever in a run is not as it was written is named, and nothing is changed to find out."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditlab.cli.main import main
from ditlab.doctor.files import verify
from ditlab.runs.checkpoint import LATEST, MANIFEST, step_name
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.posthoc_ema import write_snapshot
from tests.images import folder_of
from tests.reliability.faults import tree
from tests.reliability.harms import shard_file, sign, split
from tests.reliability.test_damage import truncate
from tests.reliability.test_shards import KEY, rewrite
from tests.training.test_fit import Nobody, tiny

WORDS = ["train", "images", "--data.path", "photos", "--steps", "2", "--batch-size", "4", "--network.dim", "16"]
WORDS += ["--network.depth", "1", "--network.heads", "2", "--precision", "fp32", "--sampling.steps", "1"]
WORDS += ["--averages", "--preview-every", "100", "--threads", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints at steps 2 (of one file a part) and 4 (in shards), snapshots, recordings, pictures."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny(steps=4, checkpoint_every=2, record_every=2, preview_every=4, averages=(0.05, 0.1))
    fit(config, RunFolder(folder / "r"), watcher=Nobody())
    split(folder / "r/checkpoints" / step_name(4))
    return folder


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs / "r", tmp_path / "r")
    return tmp_path / "r"


def checked(capsys, run):
    """The exit status, and what was found by name."""
    before = tree(run)
    capsys.readouterr()
    status = main(["check", str(run), "--json"])
    assert tree(run) == before
    return status, {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


def test_a_whole_run_is_whole(run, capsys):
    status, found = checked(capsys, run)
    assert status == 0
    names = ["configuration", "metrics", "checkpoint 2", "checkpoint 4", "snapshots", "recordings", "pictures"]
    assert {name: check["verdict"] for name, check in found.items()} == dict.fromkeys([*names, "prepared data"], "ok")
    assert found["checkpoint 2"]["value"]["tensors"] == found["checkpoint 4"]["value"]["tensors"] > 50
    assert found["recordings"]["value"] == {"files": 3, "damaged": 0}
    assert main(["check", str(run)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{run} is whole\n")


HARMED = {
    "config.json": "configuration",
    "checkpoints/step-00000002/ema.safetensors": "checkpoint 2",
    "checkpoints/step-00000002/state.json": "checkpoint 2",
    f"checkpoints/step-00000004/averages/{shard_file(1)}": "checkpoint 4",
    f"checkpoints/step-00000004/{MANIFEST}": "checkpoint 4",
    "averages/step-00000004.safetensors": "snapshots",
    "probes/step-00000002.safetensors": "recordings",
    "samples/step-00000004.png": "pictures",
}


@pytest.mark.parametrize("file", HARMED)
def test_a_damaged_file_of_a_run_is_named(run, capsys, file):
    truncate(run / file, random.Random(file))
    status, found = checked(capsys, run)
    assert status == 1
    assert [name for name, check in found.items() if check["verdict"] == "bad"] == [HARMED[file]]
    assert file.partition("/")[0] in found[HARMED[file]]["reason"]
    assert main(["check", str(run)]) == 1
    assert capsys.readouterr().out.endswith(f"\n\n{run} is damaged: {HARMED[file]}\n")


def test_damage_that_checksums_agree_with_is_found_by_what_should_be_there(run, capsys):
    """Gaps in shards, tensors of another network, and files of other runs whose checksums are right."""
    for part in ("ema", "optimizer"):
        checkpoint = run / "checkpoints" / step_name(4)
        rewrite(checkpoint / part / shard_file(0), lambda tensors, offsets, part=part: tensors.pop(KEY[part]))
        sign(checkpoint)
        assert "lacks elements" in checked(capsys, run)[1]["checkpoint 4"]["reason"]
        shutil.rmtree(checkpoint / part)
        sign(checkpoint)
        assert checked(capsys, run)[1]["checkpoint 4"]["verdict"] == "bad"
        shutil.copytree(run / "checkpoints" / step_name(2), checkpoint, dirs_exist_ok=True)
        for other in ("model", "ema", "optimizer", "averages"):
            shutil.rmtree(checkpoint / other, ignore_errors=True)
        facts = json.loads((checkpoint / "state.json").read_text()) | {"step": 4}
        (checkpoint / "state.json").write_text(json.dumps(facts))
        split(checkpoint)
        assert checked(capsys, run)[0] == 0
    config = json.loads((run / "config.json").read_text())
    config["network"]["dim"] = 24
    (run / "config.json").write_text(json.dumps(config))
    status, found = checked(capsys, run)
    assert status == 1
    assert "model does not fit the configuration" in found["checkpoint 2"]["reason"]
    assert "belongs to another run" in found["snapshots"]["reason"]


def test_what_is_no_recording_or_snapshot_of_this_run_is_named(run, capsys):
    save_file({"gate": torch.ones(3)}, run / "probes" / f"{step_name(2)}.safetensors")
    write_snapshot(run / "averages" / f"{step_name(4)}.safetensors", {"0.05/x": torch.ones(1)})
    (run / "checkpoints" / LATEST).write_text("step-00000009\n")
    (run / "metrics.jsonl").write_text("broken\n" + (run / "metrics.jsonl").read_text())
    (run / "eval.json").write_text("[]")
    status, found = checked(capsys, run)
    assert status == 1
    bad = [name for name, check in found.items() if check["verdict"] == "bad"]
    assert bad == ["metrics", "newest", "snapshots", "recordings", "evaluations"]


@pytest.mark.parametrize("place", ["checkpoints", "averages", "probes", "samples", f"samples/{step_name(4)}.png"])
def test_what_is_a_link_out_of_the_run_is_named_and_not_read(run, tmp_path, capsys, place):
    (run / place).rename(tmp_path / "elsewhere")
    (run / place).symlink_to(tmp_path / "elsewhere")
    status, found = checked(capsys, run)
    (bad,) = [check for check in found.values() if check["verdict"] == "bad"]
    assert status == 1
    assert f"{run / place} is a link" in bad["reason"]


def test_metrics_that_are_no_text_are_damaged_and_a_line_that_was_not_finished_is_not(run, capsys):
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines + b'{"step": 5, "lo')
    assert checked(capsys, run)[0] == 0
    for damage in (b"\xff\x00" * 100, b"{}\n"):
        (run / "metrics.jsonl").write_bytes(lines + damage)
        status, found = checked(capsys, run)
        assert (status, found["metrics"]["verdict"]) == (1, "bad")


def test_checkpoints_that_went_away_are_missed(run, capsys):
    for step in (2, 4):
        shutil.rmtree(run / "checkpoints" / step_name(step))
    status, found = checked(capsys, run)
    assert (status, found["checkpoints"]["verdict"]) == (1, "bad")


def test_a_run_that_is_not_there_is_wrong_input(in_tmp, capsys):
    assert main(["check", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("ditlab: no run at nowhere")


def test_a_checkpoint_that_training_deletes_meanwhile_is_no_damage(run, monkeypatch):
    from ditlab.doctor import files

    whole = files.verified

    def gone(folder, step):
        if step == 2:
            shutil.rmtree(folder / step_name(step))
        return whole(folder, step)

    monkeypatch.setattr(files, "verified", gone)
    assert verify(run).damaged == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with images, a run on them and what was prepared of them, and a copy of all to go back to."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "here").mkdir()
        patch.chdir(folder / "here")
        patch.setenv("DITLAB_CACHE", str(folder / "here/cache"))
        folder_of("photos")
        assert main(WORDS) == 0
        shutil.copytree(folder / "here", folder / "kept")
    return folder


@pytest.fixture
def trained(photos, monkeypatch):
    """Where that run's prepared images are; the working folder is theirs."""
    here = photos / "here"
    shutil.rmtree(here)
    shutil.copytree(photos / "kept", here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("DITLAB_CACHE", str(here / "cache"))
    (cache,) = (here / "cache/images").glob("*/")
    return cache


def test_flipped_bytes_in_prepared_pixels_are_noticed(trained, capsys):
    """By each verb that looks: check, doctor and data check; without the folder all is prepared anew."""
    assert checked(capsys, "runs/images")[1]["prepared data"]["verdict"] == "ok"
    chance = random.Random(0)
    content = (trained / "pixels.npy").read_bytes()
    for _ in range(3):
        (trained / "pixels.npy").write_bytes(content)
        array = np.load(trained / "pixels.npy", mmap_mode="r+")
        array[tuple(chance.randrange(size) for size in array.shape)] ^= 1 << chance.randrange(8)
        array.flush()
        status, found = checked(capsys, "runs/images")
        assert status == 1
        assert "pixels.npy is not what was prepared" in found["prepared data"]["reason"]
        assert f"remove {trained}" in found["prepared data"]["advice"]
    assert main(["data", "check", "photos"]) == 2
    assert f"pixels.npy is not what was prepared: 1 of 1 blocks, the first from byte 0 on; remove {trained}" in (
        capsys.readouterr().err
    )
    assert main(["doctor", "images", "--n", "64", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["prepared data"]["verdict"] == "bad"
    shutil.rmtree("cache")
    assert "not prepared here" in checked(capsys, "runs/images")[1]["prepared data"]["reason"]
    assert not Path("cache").exists()
    assert main(["train", "--resume", "images", "--steps", "3"]) == 0
    assert checked(capsys, "runs/images")[0] == 0


def test_damaged_labels_are_prepared_anew_in_a_line(trained, capsys):
    """And where the images have gone, training ends in one."""
    for steps, status in ((3, 0), (4, 2)):
        np.save(trained / "labels.npy", np.array([0, 1, 9]))
        assert checked(capsys, "runs/images")[0] == (1 if status == 0 else 0)
        assert main(["train", "--resume", "images", "--steps", str(steps)]) == status
        err = capsys.readouterr().err
        assert "Traceback" not in err
        if status == 0:
            assert f"ditlab: what was prepared in {trained} is damaged: it is prepared anew" in err
            Path("photos").rename("elsewhere")
        else:
            assert "the images are not at" in err.splitlines()[-1]


def test_data_that_moved_or_changed_are_no_damage(trained, capsys):
    Path("photos/a/0000.png").rename("photos/a/new.png")
    assert main(["data", "check", "photos"]) == 0
    from ditlab.data.images.cache import prepare
    from ditlab.data.images.folder import Folder

    prepare(Folder(Path.cwd() / "photos"), (8, 8), 3)
    capsys.readouterr()
    status, found = checked(capsys, "runs/images")
    assert (status, found["prepared data"]["verdict"]) == (0, "warning")
    Path("photos").rename("elsewhere")
    status, found = checked(capsys, "runs/images")
    assert (status, found["prepared data"]["verdict"]) == (0, "unknown")

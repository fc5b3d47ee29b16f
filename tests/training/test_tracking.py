"""What goes to TensorBoard is what metrics.jsonl says, after a crash too; and no tracker can end a training."""

import json
import sys
import types

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ditlab.cli.main import main
from ditlab.config import Config
from ditlab.core.errors import InputError
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import tracking
from ditlab.training.tracking import Guarded, TensorBoard, WeightsAndBiases, flat
from tests.training.test_fit import Nobody, tiny


class Notes(Nobody):
    """Keeps what it is told."""

    def __init__(self):
        self.notices = []

    def notice(self, message):
        self.notices.append(message)


def events(folder):
    """All scalars in the event files, as {step: {name: value}}, and the steps of the pictures."""
    read = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    found = {}
    for name in read.Tags()["scalars"]:
        for event in read.Scalars(name):
            assert name not in found.setdefault(event.step, {}), "twice"
            found[event.step][name] = event.value
    return found, [event.step for event in (read.Images("preview") if read.Tags()["images"] else ())]


def agrees(folder):
    """The scalars are the lines of the metrics, in fp32; the pictures are the previews."""
    scalars, pictures = events(folder)
    lines = {line["step"]: flat(line) for line in folder.read_metrics()}
    assert set(scalars) == set(lines)
    for step, line in lines.items():
        assert set(scalars[step]) == set(line)
        assert all(scalars[step][name] == pytest.approx(value, rel=1e-6) for name, value in line.items())
    assert pictures == sorted(int(file.stem[5:]) for file in folder.samples.glob("step-*.png"))


class PullsThePlug(Nobody):
    def progress(self, step, loss, images_per_s, seconds_left):
        if step == 4:
            raise SystemExit


def test_tensorboard_has_what_the_metrics_have_and_nothing_twice_after_a_crash(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = tiny(track="tensorboard")
    with pytest.raises(SystemExit):
        fit(config, folder, watcher=PullsThePlug())
    assert 4 in events(folder)[0]  # beyond the checkpoint of step 3
    fit(config.model_copy(update={"log_every": 3}), folder, watcher=Nobody(), resume=True)
    agrees(folder)
    fit(config.model_copy(update={"steps": 9}), folder, watcher=Nobody(), resume=True)
    agrees(folder)
    assert "gates/attn/0" in events(folder)[0][6]


def test_a_run_that_begins_anew_takes_back_what_was_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = tiny(track="tensorboard", checkpoint_every=6)
    with pytest.raises(SystemExit):
        fit(config, folder, watcher=PullsThePlug())
    assert folder.step is None
    fit(config.model_copy(update={"log_every": 3, "record_every": 3}), folder, watcher=Nobody(), resume=True)
    agrees(folder)


def test_tracking_changes_no_number(tmp_path):
    for name, track in (("plain", None), ("tracked", "tensorboard")):
        fit(tiny(track=track), RunFolder(tmp_path / name), watcher=Nobody())
    plain, tracked = (
        (tmp_path / name / "checkpoints/step-00000006/model.safetensors").read_bytes() for name in ("plain", "tracked")
    )
    assert plain == tracked
    assert not (tmp_path / "plain/tensorboard").exists()


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path):
    folder, watcher = RunFolder(tmp_path / "run"), Notes()
    folder.path.mkdir()
    (folder.path / "tensorboard").write_text("in the way")
    fit(tiny(track="tensorboard"), folder, watcher=watcher)
    assert folder.step == 6
    (said,) = [notice for notice in watcher.notices if "tensorboard" in notice]
    assert said.startswith("tensorboard is left out from here on (")
    assert "\n" not in said


def test_a_tracker_that_fails_later_is_left_out_from_there(tmp_path):
    folder, notices = RunFolder(tmp_path / "run"), []
    tracker = Guarded("tensorboard", lambda: TensorBoard(folder, -1), notices.append)
    tracker.line({"step": 1, "loss": 2.0, "skipped": "loss is nan"})
    tracker.picture(1, tmp_path / "missing.png")
    tracker.line({"step": 2, "loss": 1.0})
    tracker.close()
    assert len(notices) == 1
    assert "missing.png" in notices[0]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install 'ditlab\[{kind}\]'"):
        fit(tiny(track=kind), RunFolder(tmp_path / "run"), watcher=Nobody())
    assert not (tmp_path / "run").exists()


def test_the_tracker_may_change_when_a_run_goes_on(in_tmp):
    small = ["--batch-size", "8", "--network.dim", "16", "--network.depth", "1", "--network.heads", "2"]
    small += ["--sampling.steps", "2", "--precision", "fp32"]
    assert main(["train", "circles", "--steps", "2", "--track", "tensorboard", *small]) == 0
    folder = RunFolder("runs/circles")
    agrees(folder)
    assert main(["train", "--resume", "circles", "--steps", "3"]) == 0
    assert folder.read_config().track == "tensorboard"
    agrees(folder)
    assert main(["train", "--resume", "circles", "--steps", "4", "--track", "off"]) == 0
    assert folder.read_config().track is None
    assert max(events(folder)[0]) == 3


def test_files_of_events_are_read_in_the_order_they_were_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for done in range(3):
        tracker = TensorBoard(folder, done)
        tracker.line({"step": done + 1, "loss": float(done)})
        tracker.close()
    names = [file.name for file in (folder.path / "tensorboard").iterdir()]
    assert len({name.split(".")[3] for name in names}) == 3, "within a second their order is a counter's digits"
    assert events(folder)[0] == {step: {"loss": step - 1.0} for step in (1, 2, 3)}


def test_runs_of_before_have_no_tracker():
    told = json.loads(tiny().model_dump_json())
    del told["track"]
    assert Config.model_validate(told).track is None


def test_weights_and_biases_goes_on_under_the_same_identity(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, watcher = RunFolder(tmp_path / "run"), Notes()
    fit(tiny(track="wandb"), folder, watcher=watcher)
    name = (folder.path / "wandb-id").read_text().strip()
    fit(tiny(track="wandb", steps=9), folder, watcher=watcher, resume=True)
    assert [notice for notice in watcher.notices if "wandb" in notice] == []
    assert (folder.path / "wandb-id").read_text().strip() == name
    assert len(list((folder.path / "wandb").glob(f"offline-run-*-{name}"))) == 2


def test_weights_and_biases_keeps_what_it_keeps_where_it_was_told(tmp_path, monkeypatch):
    seen = []
    fake = types.SimpleNamespace(Settings=lambda **_: None, init=lambda **how: seen.append(how["dir"]))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    WeightsAndBiases(RunFolder(tmp_path / "run"), tiny(), False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    WeightsAndBiases(RunFolder(tmp_path / "run"), tiny(), False)
    assert seen == [str(tmp_path / "run"), str(tmp_path / "elsewhere")]


def test_pictures_are_those_of_the_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(tiny(track="tensorboard"), folder, watcher=Nobody())
    read = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"images": 0})
    read.Reload()
    last = read.Images("preview")[-1]
    with Image.open(folder.samples / "step-00000006.png") as picture:
        assert (last.width, last.height) == picture.size

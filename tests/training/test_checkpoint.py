"""Checkpoints: which are kept, what they are checked for, and how they are written beside training."""

import errno
import hashlib
import json
import re
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.config import AdamWConfig, DiTConfig, MLPConfig, UNetConfig
from ditlab.core import disk
from ditlab.core.errors import CheckpointWarning, InputError, TrainingError
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import FILES, MANIFEST, saved_steps, thin_out, verified, write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import TrainState, train
from ditlab.training.resume import load_checkpoint
from tests.reliability.faults import At, full, tree
from tests.training.test_fit import Nobody, tiny


def begun(**changes):
    """A state after one step, and its data."""
    config = tiny(**changes)
    data = build_dataset(config)
    state = TrainState(config, data)
    next(train(state, data))
    return state, data


def tensors(state):
    """Every tensor that decides anything, copied."""
    return [{name: tensor.clone() for name, tensor in part.items()} for part in state.tensors().values()]


def same(a, b):
    return all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in zip(a, b, strict=True)
    )


def save(folder, state):
    with CheckpointWriter(folder, state) as writer:
        writer.save()
    return folder / f"step-{state.step:08d}"


# ---- which are kept


def test_which_checkpoints_are_kept(tmp_path):
    """Against a plain reading of the two settings."""
    for keep_last in (None, 1, 2, 5, 100):
        for keep_every in (None, 1, 4, 6):
            steps = [2, 4, 6, 8, 9, 12, 13]
            for step in steps:
                (tmp_path / f"step-{step:08d}").mkdir(exist_ok=True)
            thin_out(tmp_path, keep_last, keep_every)
            kept = {s for i, s in enumerate(steps) if keep_last is None or i >= len(steps) - keep_last}
            kept |= {s for s in steps if keep_every is not None and s % keep_every == 0}
            assert saved_steps(tmp_path) == sorted(kept), (keep_last, keep_every)
            assert {path.name[:5] for path in tmp_path.iterdir()} == {"step-"}


def test_a_run_keeps_what_it_is_told_to(tmp_path):
    folder = RunFolder(tmp_path / "r")
    fit(tiny(steps=7, checkpoint_every=1, keep_last=2, keep_every=3), folder, watcher=Nobody())
    assert saved_steps(folder.checkpoints) == [3, 6, 7]
    fit(tiny(steps=8, checkpoint_every=1, keep_last=1), folder, watcher=Nobody(), resume=True)
    assert saved_steps(folder.checkpoints) == [8]


# ---- beside training


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The writer is held at its first file; the steps taken meanwhile are not in what it writes."""
    state, data = begun()
    saved = tensors(state)
    held, go = threading.Event(), threading.Event()

    def hold(operation, path):
        held.set()
        assert go.wait(60)

    monkeypatch.setattr(disk, "before", At(0, hold, only="write"))
    with CheckpointWriter(tmp_path, state) as writer:
        writer.save()
        assert held.wait(60)
        for _ in range(2):
            next(train(state, data))
        assert state.step == 3
        assert saved_steps(tmp_path) == []
        go.set()
    assert saved_steps(tmp_path) == [1]
    again = TrainState(tiny(), data)
    load_checkpoint(tmp_path, again, 1)
    assert same(tensors(again), saved)
    assert not same(tensors(state), saved)
    assert again.step == 1


def test_one_save_at_a_time(tmp_path, monkeypatch):
    state, data = begun()
    inside, most = [], []

    def note(operation, path):
        inside.append(threading.get_ident())
        most.append(threading.active_count())

    before = threading.active_count()
    monkeypatch.setattr(disk, "before", note)
    with CheckpointWriter(tmp_path, state) as writer:
        for _ in range(3):
            writer.save()
            next(train(state, data))
    assert saved_steps(tmp_path) == [1, 2, 3]
    assert threading.main_thread().ident not in inside
    assert max(most) == before + 1
    assert threading.active_count() == before


def test_what_goes_wrong_is_raised_where_training_is(tmp_path, monkeypatch):
    """By the next step; training ends there, and the checkpoint before is whole."""
    folder = RunFolder(tmp_path / "r")
    config = tiny(steps=100, checkpoint_every=2, log_every=100, record_every=100, preview_every=100)
    fit(config.model_copy(update={"steps": 2}), folder, watcher=Nobody())
    kept = tree(folder.checkpoints)
    steps = []

    class Counts(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            steps.append(step)

    monkeypatch.setattr(disk, "before", lambda operation, path: path.name == MANIFEST and full(operation, path))
    with pytest.raises(OSError, match="No space left"):
        fit(config.model_copy(update={"log_every": 1}), folder, watcher=Counts(), resume=True)
    monkeypatch.undo()
    assert steps[-1] in (4, 5, 6)
    assert tree(folder.checkpoints) == kept


def test_an_error_in_the_last_save_is_raised_too(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "r")
    monkeypatch.setattr(disk, "before", lambda operation, path: path.name == MANIFEST and full(operation, path))
    with pytest.raises(OSError, match="No space left"):
        fit(tiny(steps=3, checkpoint_every=3), folder, watcher=Nobody())
    assert saved_steps(folder.checkpoints) == []


def test_whatever_ends_training_waits_for_the_save(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "r")
    monkeypatch.setattr(disk, "before", At(0, lambda *_: threading.Event().wait(0.5), only="fsync"))

    class Fails(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tiny(checkpoint_every=1, log_every=2), folder, watcher=Fails())
    assert saved_steps(folder.checkpoints) == [1]
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.parametrize("part", ["model", "ema", "optimizer", "averages"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_saved(tmp_path, part, value):
    state, data = begun()
    save(tmp_path, state)
    kept = tree(tmp_path)
    next(train(state, data))
    poisoned = {
        "model": state.network.patch_embed.projection.bias,
        "ema": state.ema.network.patch_embed.projection.bias,
        "optimizer": state.optimizers.state_dict()["adamw/patch_embed.projection.bias/exp_avg_sq"],
        "averages": state.averages.state_dict()["0.1/patch_embed.projection.bias"],
    }[part]
    with torch.no_grad():
        poisoned[3] = value
    with pytest.raises(
        TrainingError, match=rf"patch_embed.projection.bias.* \({part}\) stopped being finite by step 2.* --lr"
    ):
        save(tmp_path, state)
    assert tree(tmp_path) == kept


# ---- what they are checked for


def refused(folder, state, words):
    """The checkpoint of step 1 is refused, and nothing of the state has changed."""
    before, step = tensors(state), state.step
    with pytest.raises(InputError, match=words) as told:
        load_checkpoint(folder, state, 1)
    assert "\n" not in str(told.value)
    assert same(tensors(state), before)
    assert state.step == step
    return told.value


OTHER_DIT = {
    "patch_size": 8,
    "dim": 24,
    "depth": 3,
    "heads": 4,
    "mlp_ratio": 4.0,
    "positions": "sincos",
    "conditioning": "film",
    "gelu": "tanh",
    "time_features": 32,
    "time_scale": 1.0,
    "time_offset": -1.0,
    "time_frequency_shift": 1,
    "embedders": "per-block",
    "qk_norm": True,
    "norm": "rms",
    "mlp": "swiglu",
    "rotary": True,
}
OTHER = {
    DiTConfig(dim=16, depth=2, heads=2): OTHER_DIT,
    UNetConfig(width=8): {"width": 16, "multipliers": (1, 2, 2), "heads": 2},
    MLPConfig(hidden=16): {"hidden": 24, "depth": 3, "time_scale": 1.0},
}


@pytest.mark.parametrize(("network", "field"), [(network, field) for network in OTHER for field in OTHER[network]])
def test_each_architecture_field_changed(tmp_path, network, field):
    """Also those, such as the number of heads, that change the shape of no tensor."""
    state, _ = begun(network=network)
    save(tmp_path / "r/checkpoints", state)
    changed = tiny(network=network.model_copy(update={field: OTHER[network][field]}))
    other, _ = begun(network=changed.network)
    saved = re.escape(str(network.model_dump(mode="json")[field]))
    refused(tmp_path / "r/checkpoints", other, f"does not fit the configuration: network.{field} is {saved}, not ")
    RunFolder(tmp_path / "r").write_config(changed)
    with pytest.raises(InputError, match=rf"does not fit the configuration: network.{field} is "):
        ditlab.load(tmp_path / "r")


def test_every_architecture_field_is_tried():
    for network, others in OTHER.items():
        assert set(others) | {"kind", "learned_variance", "null_label"} >= set(type(network).model_fields)


def test_another_kind_of_network(tmp_path):
    state, _ = begun(network=MLPConfig(hidden=16))
    save(tmp_path, state)
    refused(tmp_path, begun()[0], "network is mlp, not dit; missing blocks")


def test_another_optimizer(tmp_path):
    muon, _ = begun()
    adamw, _ = begun(optimizer=AdamWConfig())
    save(tmp_path / "muon", muon)
    save(tmp_path / "adamw", adamw)
    refused(tmp_path / "muon", adamw, r"optimizer.safetensors does not fit .*unexpected muon/blocks\.0")
    refused(tmp_path / "adamw", muon, r"no state of muon; unexpected adamw/blocks\.0")


def resaved(checkpoint, **changes):
    """Write files of a checkpoint anew, as someone would who knows about manifests."""
    for name, content in changes.items():
        file = checkpoint / (f"{name}.json" if name in ("state", "manifest") else f"{name}.safetensors")
        save_file(content, file) if isinstance(content, dict) else file.write_bytes(content)
    manifest = {}
    for name in (*FILES, "averages.safetensors"):
        content = (checkpoint / name).read_bytes()
        manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if "manifest" not in changes:
        (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.endswith("projection.bias/step")}, "missing adamw/.*/step"),
        (lambda t: {k: v[:1] if v.ndim == 2 else v for k, v in t.items()}, r"is \(1, "),
        (lambda t: t | {"adamw/a/b/c": torch.ones(1)}, "unexpected adamw/a/b/c"),
        (lambda t: t | {"sgd/x/y": torch.ones(1), "": torch.ones(1)}, "unexpected"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("muon")}, "no state of muon"),
    ],
)
def test_an_optimizer_state_that_does_not_fit(tmp_path, change, words):
    state, _ = begun()
    checkpoint = save(tmp_path, state)
    resaved(checkpoint, optimizer=change(load_file(checkpoint / "optimizer.safetensors")))
    refused(tmp_path, state, words)


def test_a_state_that_never_learned(tmp_path):
    """All steps so far were skipped: the optimizers remember nothing, and training goes on."""
    state = TrainState(tiny(), build_dataset(tiny()))
    assert not state.optimizers.state_dict()
    save(tmp_path, state)
    load_checkpoint(tmp_path, begun()[0], 0)


def test_a_second_signal_does_not_wait_for_a_save(tmp_path, monkeypatch):
    """Whatever else ends training waits for the save that is under way."""
    state, _ = begun()
    go = threading.Event()
    monkeypatch.setattr(disk, "before", lambda *_: go.wait(60))
    for error, waits in ((KeyboardInterrupt, False), (ValueError, True)):
        go.clear()
        if waits:
            threading.Timer(0.5, go.set).start()
        writer = CheckpointWriter(tmp_path, state)
        writer.save()
        writer.__exit__(error, error(), None)
        assert go.is_set() == waits
        go.set()
        writer.wait()


def test_an_old_checkpoint_that_cannot_be_deleted_ends_nothing(tmp_path, monkeypatch):
    """As on a network's disk, where somebody reads it."""
    state, _ = begun(keep_last=1)
    save(tmp_path, state)

    def busy(operation, path):
        if operation == "delete":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    state.step = 2
    monkeypatch.setattr(disk, "before", busy)
    with pytest.warns(CheckpointWarning, match="cannot be deleted yet"):
        save(tmp_path, state)
    monkeypatch.undo()
    verified(tmp_path, 2)
    state.step = 3
    save(tmp_path, state)
    assert saved_steps(tmp_path) == [3]


def test_weights_of_another_kind_of_number(tmp_path):
    state, _ = begun()
    checkpoint = save(tmp_path, state)
    resaved(checkpoint, ema={k: v.half() for k, v in load_file(checkpoint / "ema.safetensors").items()})
    refused(tmp_path, state, "is torch.float16, not torch.float32")


def test_other_data(tmp_path):
    """What a data set says of itself goes with the checkpoint, and training does not go on with another."""

    def state(fingerprint):
        made = TrainState(tiny(), build_dataset(tiny()))
        made.fingerprint = fingerprint
        return made

    trained = state("12 images, abc")
    next(train(trained, build_dataset(tiny())))
    checkpoint = save(tmp_path, trained)
    assert json.loads((checkpoint / "state.json").read_text())["fingerprint"] == "12 images, abc"
    for now in ("13 images, abd", None):
        refused(tmp_path, state(now), f"was 12 images, abc and is {now}")
    again = state("12 images, abc")
    load_checkpoint(tmp_path, again, 1)
    assert same(tensors(again), tensors(trained))


def test_weights_that_are_averaged_in_no_way_are_stored_once(tmp_path):
    """An imported network has one set of weights: two names of one file."""
    state, _ = begun()
    weights = state.network.state_dict()
    checkpoint = write_checkpoint(tmp_path, 0, {"model": weights, "ema": weights, "optimizer": {}})
    assert (checkpoint / "model.safetensors").samefile(checkpoint / "ema.safetensors")

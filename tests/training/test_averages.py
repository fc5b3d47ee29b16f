"""Averages tracked by a run, and those made of its snapshots: real training, faults, and runs that go on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.core import disk
from ditlab.core.errors import ConfigError, InputError, TrainingError
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.ema import PowerAverages
from ditlab.training.loop import TrainState, train
from ditlab.training.make_ema import make_averages
from ditlab.training.posthoc_ema import read_snapshot, write_snapshot
from tests.reliability.faults import At, tree
from tests.training.test_fit import Nobody, tiny

# ---- real training


def test_averages_made_afterwards_are_those_tracked_directly(tmp_path):
    """On a real run: 1e-3 of all weights, and of the largest for any one of them."""
    config = tiny("points", steps=256, log_every=256, preview_every=256, checkpoint_every=256, lr=3e-3)
    folder = RunFolder(tmp_path / "r")
    fit(config, folder, watcher=Nobody())
    assert folder.snapshot_steps == list(range(8, 257, 8))
    data = build_dataset(config)
    state = TrainState(config, data)
    wanted = (0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
    tracked = PowerAverages(state.network, wanted)
    for step in train(state, data):
        tracked.update(step.step)
    own = tracked.state_dict()
    for made in make_averages(folder.path, wanted):
        assert (made.step, made.snapshots, made.raw) == (256, 32, True)
        assert made.expected_error < 1e-3
        found = ditlab.load(made.folder.path).process.network.state_dict()
        names = [name for name in own if name.startswith(f"{made.sigma_rel}/")]
        assert len(names) == len(found)
        a, b = (
            torch.cat([tensors[key].flatten() for key in keys])
            for tensors, keys in ((found, [n.split("/")[1] for n in names]), (own, names))
        )
        assert (a - b).norm() <= 1e-3 * b.norm()
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()
        if made.sigma_rel >= 0.15:  # the last weights would not have passed for the average
            assert (torch.cat([p.flatten() for p in state.network.parameters()]) - b).norm() > 1e-3 * b.norm()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "digits")
    config = tiny("digits", steps=12, checkpoint_every=6, averages=(0.05, 0.1, 0.2), keep_last=2)
    fit(config.model_copy(update={"average_every": 2}), folder, watcher=Nobody())
    return folder.path


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "digits")
    return tmp_path / "digits"


def test_a_tracked_average_is_loaded_by_its_width(run):
    stored = load_file(run / "checkpoints/step-00000012/averages.safetensors")
    for width in (0.05, 0.2):
        own = ditlab.load(run, weights=width).process.network.state_dict()
        assert all(torch.equal(stored[f"{width}/{name}"], tensor) for name, tensor in own.items())
    early = ditlab.load(run, weights=0.05, step=6).process.network.state_dict()
    assert not torch.equal(early["final.linear.weight"], stored["0.05/final.linear.weight"])
    with pytest.raises(InputError, match=r"tracked in .* are 0.05 and 0.1 and 0.2: ditlab ema .* --sigma-rel 0.15"):
        ditlab.load(run, weights=0.15)
    for width, near in ((0.3, 0.28), (0.001, 0.01)):
        with pytest.raises(InputError, match=f"--sigma-rel {near} makes"):
            ditlab.load(run, weights=width)


def test_snapshots_are_the_averages_rounded(run):
    found, stored = read_snapshot(run / "averages/step-00000012.safetensors"), ditlab.load(run, weights=0.1)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert {name.split("/")[0] for name in found} == {"0.05", "0.1", "0.2"}
    for name, tensor in stored.process.network.state_dict().items():
        assert torch.equal(found[f"0.1/{name}"], tensor.half())


def test_a_made_run_is_opened_like_any_other(run):
    (made,) = make_averages(run, [0.15], step=10)
    assert made.folder.path == run.parent / "digits-ema-0.15-step-00000010"
    assert not made.raw
    loaded, last = ditlab.load(made.folder.path), ditlab.load(made.folder.path, weights="raw")
    assert loaded.step == 10
    assert loaded.sample(2, steps=1).isfinite().all()
    names = loaded.process.network.state_dict()
    assert all(torch.equal(tensor, names[name]) for name, tensor in last.process.network.state_dict().items())
    (made,) = make_averages(run, [0.15], out=run.parent / "own")
    raw, own = (ditlab.load(path, weights="raw").process.network.state_dict() for path in (run, made.folder.path))
    assert made.raw
    assert all(torch.equal(raw[name], own[name]) for name in raw)
    assert not torch.equal(
        ditlab.load(made.folder.path).process.network.state_dict()["final.linear.bias"], raw["final.linear.bias"]
    )
    assert ditlab.load(made.folder.path).config.averages == ()


def test_a_made_run_is_not_trained_on(run):
    (made,) = make_averages(run, [0.15])
    config = made.folder.read_config().model_copy(update={"steps": 20})
    before = tree(made.folder.path)
    with pytest.raises(InputError, match=r"an average made from .*digits; resume \S*digits instead"):
        fit(config, made.folder, watcher=Nobody(), resume=True)
    after = tree(made.folder.path)
    assert {name: after[name] for name in before} == before


# ---- faults


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


HARMS = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "another file": lambda file: save_file({"0.05/a": torch.zeros(3)}, file),
    "another name": lambda file: write_snapshot(file, {"0.05/a": torch.zeros(3)}),
    "a name less": lambda file: write_snapshot(file, dict(list(read_snapshot(file).items())[1:])),
    "another width": lambda file: write_snapshot(
        file, {name.replace("0.2/", "0.3/"): tensor for name, tensor in read_snapshot(file).items()}
    ),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("step", [2, 8, 12])
def test_a_damaged_snapshot_is_named_and_can_be_left_out(run, step, harm):
    file = run / f"averages/step-{step:08d}.safetensors"
    HARMS[harm](file)
    before = tree(run.parent)
    with pytest.raises(InputError, match=r"averages/step-\d+\.safetensors .*remove it") as told:
        make_averages(run, [0.15], step=12)
    assert "\n" not in str(told.value)
    assert tree(run.parent) == before
    file.unlink()
    (made,) = make_averages(run, [0.15], step=10 if step == 12 else 12)
    assert made.snapshots == 5
    assert ditlab.load(made.folder.path).step == made.step


def test_shapes_of_another_network_are_refused(run):
    for file in (run / "averages").iterdir():
        tensors = read_snapshot(file)
        write_snapshot(file, {name: tensor[:1] if tensor.ndim else tensor for name, tensor in tensors.items()})
    before = tree(run.parent)
    with pytest.raises(InputError, match="does not fit the configuration: "):
        make_averages(run, [0.15])
    assert tree(run.parent) == before


def test_nothing_is_left_of_what_was_not_made(run, monkeypatch):
    """A disk that is full at each write of the new run in turn."""
    before = tree(run.parent)

    def full(operation, path):
        raise OSError(28, "No space left on device", str(path))

    for n in range(7):  # configuration, three parts, state, manifest, LATEST
        monkeypatch.setattr(disk, "before", At(n, full, only=["write"]))
        with pytest.raises(OSError, match="No space left"):
            make_averages(run, [0.15])
        assert tree(run.parent) == before
        assert [path.name for path in run.parent.iterdir()] == ["digits"]
    fault = At(7, full, only=["write"])
    monkeypatch.setattr(disk, "before", fault)
    make_averages(run, [0.15])
    assert fault.count == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma_rel": [0.15], "step": 7}, "no snapshot of step 7; of those that it has 4, 6, 8 are nearest"),
        ({"sigma_rel": [0.15, 0.2], "out": "x"}, "one folder, and 2 widths"),
        ({"sigma_rel": []}, "names no width"),
        ({"sigma_rel": [0.15, 0.15]}, "twice"),
        ({"sigma_rel": [0.28], "step": 2}, "1 snapshot of .* smaller --average-every"),
    ],
)
def test_what_cannot_be_made_is_said(run, arguments, words):
    before = tree(run.parent)
    with pytest.raises(InputError, match=words):
        make_averages(run, **arguments)
    assert tree(run.parent) == before


def test_a_run_without_snapshots_says_so(run, tmp_path):
    shutil.rmtree(run / "averages")
    with pytest.raises(InputError, match=r"no snapshots of averages .*--averages 0.05 0.1"):
        make_averages(run, [0.15])
    folder = RunFolder(tmp_path / "off")
    fit(tiny("points", averages=()), folder, watcher=Nobody())
    assert not folder.averages.exists()
    assert not list(folder.checkpoints.rglob("averages*"))
    with pytest.raises(InputError, match=r"no snapshots of averages"):
        make_averages(folder.path, [0.15])
    with pytest.raises(InputError, match=r"no averages were tracked in .*'ema' or 'raw'"):
        ditlab.load(folder.path, weights=0.05)


# ---- runs that go on


def test_a_run_of_before_goes_on_without(tmp_path):
    """Its configuration says nothing of averages, and its checkpoints have none: as it was, and said once."""
    folder = RunFolder(tmp_path / "r")
    fit(tiny(averages=()), folder, watcher=Nobody())
    told = json.loads(folder.config_file.read_text())
    del told["averages"], told["average_every"]
    folder.config_file.write_text(json.dumps(told))
    heard = []

    class Hears(Nobody):
        def notice(self, message):
            heard.append(message)

    for steps in (7, 8):
        config = folder.read_config().model_copy(update={"steps": steps})
        assert config.averages == ()
        fit(config, folder, watcher=Hears(), resume=True)
    assert sum("resumes without averages" in line for line in heard) == 1
    assert folder.step == 8
    with pytest.raises(InputError, match=r"has no averages, which config\.json asks for"):
        fit(tiny(steps=9), folder, watcher=Nobody(), resume=True)


def test_snapshots_beyond_the_checkpoint_are_cut_and_made_again(run):
    """Killed after the snapshots of steps 8 and 10, and in the middle of one: they end with the same bytes."""
    whole = tree(run / "averages")
    shutil.rmtree(run / "checkpoints/step-00000012")
    (run / "checkpoints/LATEST").write_text("step-00000006\n")
    (run / "averages/step-00000012.safetensors").unlink()
    flip(run / "averages/step-00000008.safetensors")
    (run / "averages/.step-00000012.safetensors.7.tmp.safetensors").write_bytes(b"half")
    folder = RunFolder(run)
    fit(folder.read_config(), folder, watcher=Nobody(), resume=True)
    assert tree(run / "averages") == whole


def test_other_widths_than_were_tracked_are_refused_on_resume(run):
    folder = RunFolder(run)
    config = folder.read_config().model_copy(update={"averages": (0.05, 0.15, 0.2), "steps": 14})
    before = tree(run / "checkpoints")
    with pytest.raises(InputError, match=r"averages.safetensors does not fit .*missing 0.15/"):
        fit(config, folder, watcher=Nobody(), resume=True)
    assert tree(run / "checkpoints") == before


def test_what_fp16_cannot_hold_is_not_written():
    network = ditlab.MLPDenoiser()
    averages = PowerAverages(network, (0.05,))
    with torch.no_grad():
        network.out.bias[0] = 1e6
    averages.update(1)
    with pytest.raises(TrainingError, match=r"0.05/out.bias \(averages\) has a weight of 1e\+06, .*fp16, .*65,504"):
        averages.snapshot()
    with torch.no_grad():
        network.out.bias[0] = torch.nan
    averages.update(2)
    with pytest.raises(TrainingError, match=r"0.05/out.bias \(averages\) stopped being finite"):
        averages.snapshot()


@pytest.mark.parametrize("widths", [(0.0,), (0.3,), (float("nan"),), (0.1, 0.1), (-0.1,), ("x",)])
def test_widths_that_cannot_be_tracked_are_refused_by_name(widths):
    with pytest.raises(ConfigError, match="averages"):
        tiny(averages=widths)


def test_how_often_snapshots_are_taken():
    for steps, every in ((1, 1), (31, 1), (32, 1), (33, 2), (4000, 125), (7_000_000, 218_750)):
        assert tiny(steps=steps).snapshot_every == every
    assert tiny(average_every=5).snapshot_every == 5

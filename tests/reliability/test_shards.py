"""Checkpoints in shards that lack something, or hold too much: no number is used that was not read from a file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import DamagedCheckpoint, InputError
from ditlab.runs.checkpoint import describe_part, read_part, step_name
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from tests.reliability.harms import PARTS, SHARDS, shard_file, sign, split
from tests.training.test_fit import Nobody, tiny


def rewrite(file, change):
    """A shard with other contents: ``change`` is given its tensors and where they belong, and changes both."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        offsets = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
    tensors = load_file(file)
    change(tensors, offsets)
    save_file(tensors, file, {"DCP_SHARDING_INFO": json.dumps(offsets)})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with one checkpoint, of one file a part, and the same one in shards."""
    folder = tmp_path_factory.mktemp("runs")
    fit(tiny(steps=2, averages=(0.05, 0.1), preview_every=2), RunFolder(folder / "one"), watcher=Nobody())
    shutil.copytree(folder / "one", folder / "many")
    split(folder / "many/checkpoints" / step_name(2))
    return folder


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs / "many", tmp_path / "r")
    return tmp_path / "r"


def test_shards_hold_the_numbers_of_the_whole(runs):
    one, many = (runs / name / "checkpoints" / step_name(2) for name in ("one", "many"))
    for part in PARTS:
        whole, pieces, told = read_part(one, part), read_part(many, part), describe_part(many, part)
        assert whole.keys() == pieces.keys() == told.keys()
        assert all(torch.equal(whole[name], pieces[name]) for name in whole)
        assert all(told[name].like.shape == whole[name].shape for name in whole)
        assert all(told[name].like.dtype == whole[name].dtype for name in whole)


KEY = {
    "model": "final.linear.weight",
    "ema": "final.linear.weight",
    "optimizer": "adamw/final.linear.bias/exp_avg",
    "averages": "0.1/final.linear.weight",
}


def gone(part, tensors, offsets):
    del tensors[KEY[part]]


def shifted(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"][0] += 1


def twice(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"][0] = 0


def negative(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"][0] = -1


def sideways(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"] = [0, 1]


def endless(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"][0] = 10**30


def no_number(part, tensors, offsets):
    offsets[KEY[part]]["saved_offsets"][0] = "1"


def nothing(part, tensors, offsets):
    offsets.clear()
    offsets["x"] = 1


def other_type(part, tensors, offsets):
    tensors[KEY[part]] = tensors[KEY[part]].double()


def shorter(part, tensors, offsets):
    tensors[KEY[part]] = tensors[KEY[part]][:-1].clone()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "change", [gone, shifted, twice, negative, sideways, endless, no_number, nothing, other_type, shorter]
)
def test_nothing_is_loaded_from_shards_that_leave_a_gap_or_overlap(run, part, change):
    """Whose manifest agrees with them: every element of every tensor is there exactly once, or none is used."""
    checkpoint = run / "checkpoints" / step_name(2)
    rewrite(checkpoint / part / shard_file(1), lambda *contents: change(part, *contents))
    sign(checkpoint)
    with pytest.raises(DamagedCheckpoint, match=rf"/{part} is damaged: ") as told:
        read_part(checkpoint, part)
    assert "\n" not in str(told.value)
    weights = {"model": "raw", "ema": "ema", "averages": 0.1}.get(part)
    if weights is not None:
        with pytest.raises(InputError, match=rf"/{part} is damaged: "):
            ditlab.load(run, weights=weights)


@pytest.mark.parametrize("rank", range(SHARDS))
def test_a_shard_that_neither_folder_nor_manifest_has_is_missed(run, capsys, rank):
    """The first, one in the middle, the last: sample ends in a line and draws nothing."""
    checkpoint = run / "checkpoints" / step_name(2)
    (checkpoint / "ema" / shard_file(rank)).unlink()
    sign(checkpoint)
    assert main(["sample", str(run), "--n", "1", "--steps", "1", "--out", str(run / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (run / "x.png").exists()


def test_the_manifest_says_which_shards_there_are(run, runs):
    """A shard beside them is refused by name, one that is hidden (as macOS leaves them) is not read."""
    checkpoint = run / "checkpoints" / step_name(2)
    own = checkpoint / "ema" / shard_file(0)
    shutil.copy(own, checkpoint / "ema" / f"._{own.name}")
    (checkpoint / "ema/.DS_Store").write_bytes(b"junk")
    (checkpoint / "model.safetensors").write_bytes(b"junk that the manifest does not name")
    expected = ditlab.load(runs / "one").process.network.state_dict()
    found = ditlab.load(run).process.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    shutil.copy(own, checkpoint / "ema/other.safetensors")
    with pytest.raises(InputError, match=r"ema/other.safetensors does not belong to its checkpoint"):
        ditlab.load(run)
    for file in [checkpoint / "ema/other.safetensors", *(checkpoint / "ema").glob(".*")]:
        file.unlink()
    sign(checkpoint)  # model whole and in shards
    with pytest.raises(InputError, match="names model both whole and in shards"):
        ditlab.load(run)


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_cut_or_edited_shard_is_named(run, harm):
    file = run / "checkpoints" / step_name(2) / "ema" / shard_file(1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-1] if harm == "cut" else content)
    with pytest.raises(InputError, match=f"ema/{shard_file(1)} is damaged: its content is not what was saved"):
        ditlab.load(run)


@pytest.mark.parametrize("weights", ["ema", "raw", 0.1])
@pytest.mark.parametrize("change", ["a tensor less", "a tensor more"])
def test_a_tensor_too_few_or_too_many_is_named(runs, tmp_path, weights, change):
    """In a file of its own, too, whose manifest agrees with it."""
    shutil.copytree(runs / "one", tmp_path / "r")
    checkpoint = tmp_path / "r/checkpoints" / step_name(2)
    part = {"ema": "ema", "raw": "model"}.get(weights, "averages")
    tensors = load_file(checkpoint / f"{part}.safetensors")
    if change == "a tensor less":
        del tensors[KEY[part]]
    else:
        tensors[KEY[part] + "2"] = torch.ones(1)
    save_file(tensors, checkpoint / f"{part}.safetensors")
    sign(checkpoint)
    words = "missing final.linear.weight" if change == "a tensor less" else "unexpected final.linear.weight2"
    with pytest.raises(InputError, match=rf"{part}.safetensors does not fit the configuration: {words}"):
        ditlab.load(tmp_path / "r", weights=weights)


def test_a_snapshot_of_another_network_makes_no_average(runs, tmp_path):
    """Whole in itself, and with the same names: its shapes are compared before anything is added up."""
    from ditlab.training.make_ema import make_averages
    from ditlab.training.posthoc_ema import read_snapshot, write_snapshot

    shutil.copytree(runs / "one", tmp_path / "r")
    folder = RunFolder(tmp_path / "r")
    tensors = read_snapshot(folder.snapshot_file(2))
    write_snapshot(folder.snapshot_file(1), {name: tensor.reshape(-1)[:1] for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="is no snapshot of averages of"):
        make_averages(tmp_path / "r", [0.08])

"""Latents: stored is what diffusers computes, drawn is a function of what is stored, and other stores are refused."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ditlab.cli.main import main
from ditlab.config import LatentsData
from ditlab.core.errors import InputError
from ditlab.data.images.open import open_source
from ditlab.data.latents.check import check_store
from ditlab.data.latents.dataset import Latents
from ditlab.data.latents.encode import _looked
from ditlab.data.latents.index import Index, read_index
from ditlab.data.latents.shards import OpenShard, write_shard
from ditlab.data.latents.survey import survey_store
from ditlab.recipes import latents as recipe
from tests.images import spoil
from tests.interop.peers import random_vae
from tests.latents import encode, images_and_vae

SCALE = 0.18215


def dataset(path, **changes):
    index = read_index(path)
    settings = {"flip": True, "scale": index.latent_scale, "shift": index.latent_shift, "vae": index.vae.name}
    settings |= {"digest": index.vae.digest, "classes": index.classes, **changes}
    return Latents(str(path), index.shape, **settings)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """``photos``, ``vae`` and ``store``, of twelve images in two classes; and the autoencoder."""
    root = tmp_path_factory.mktemp("latents")
    vae = images_and_vae(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert encode() == 0
    return root, vae


@pytest.fixture
def copied(here, tmp_path, monkeypatch):
    """A copy of them, to work in."""
    for name in ("photos", "vae", "store"):
        shutil.copytree(here[0] / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def posterior(vae, picture):
    """Mean and standard deviation of one image, by diffusers alone."""
    x = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        found = vae.encode(x).latent_dist
    return found.mean[0].flatten().numpy(), found.std[0].flatten().numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_what_is_stored_is_what_diffusers_computes(here, copied, dtype, tolerance):
    """Of each image and of the mirrored image; read by ``datasets``, as anybody would."""
    import datasets

    assert encode("--dtype", dtype, out=f"in-{dtype}") == 0
    files = sorted(Path(f"in-{dtype}/shards").glob("*.arrow"))
    rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    assert [row["name"] for row in rows] == [f"{'ab'[i // 6]}/{i:04d}.png" for i in range(12)]
    assert list(rows["label"]) == [0] * 6 + [1] * 6
    assert list(rows["number"]) == list(range(12))
    assert str(rows.features["mean"].feature.dtype) == dtype
    for row in rows:
        picture = Image.open(Path("photos") / row["name"])
        for prefix, shown in (("", picture), ("mirrored_", ImageOps.mirror(picture))):
            mean, std = posterior(here[1], shown)
            np.testing.assert_allclose(row[f"{prefix}mean"], mean, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(row[f"{prefix}std"], std, rtol=tolerance, atol=tolerance)


def test_bad_images_are_left_out_and_listed(copied, capsys):
    bad = {f"a/{name}" for name in spoil("photos/a")}
    assert encode(out="other") == 2
    assert f"{len(bad)} of {12 + len(bad)} files cannot be used" in capsys.readouterr().err
    assert encode("--bad-share", "0.7", out="other") == 0
    listed = [json.loads(line)["path"] for line in Path("other/quarantine.jsonl").read_text().splitlines()]
    assert set(listed) == bad
    assert len(listed) == len(bad)
    index = read_index("other")
    assert (index.count, index.files) == (12, 12 + len([n for n in bad if not is_no_file(n)]))
    assert [dataset("other").name(i) for i in range(12)] == [f"{'ab'[i // 6]}/{i:04d}.png" for i in range(12)]
    assert not list(Path("other").glob(".*"))


def is_no_file(name):
    return not Path("photos", name).is_file()


def test_images_that_all_are_bad_make_no_store(copied, capsys):
    for file in Path("photos").rglob("*.png"):
        file.write_bytes(b"")
    assert encode("--bad-share", "1", out="other") == 2
    assert "12 of 12 files cannot be used" in capsys.readouterr().err


def test_a_batch_is_a_function_of_each_sample(here):
    """In whatever batch, across epochs, and after a journey to a worker process."""
    data = dataset(here[0] / "store")
    whole = data.batch(3, 7, 20)  # in three epochs of 12
    assert whole.x0.shape == (20, 4, 2, 2)
    assert whole.x0.dtype == torch.float32
    travelled = pickle.loads(pickle.dumps(data))
    for other in (dataset(here[0] / "store"), travelled):
        pieces = [other.batch(3, 7 + i, 1) for i in range(20)]
        assert torch.equal(torch.cat([piece.x0 for piece in pieces]), whole.x0)
        assert torch.equal(torch.cat([piece.cond["label"] for piece in pieces]), whole.cond["label"])
    assert torch.equal(whole.cond["label"], data.indices(3, 7, 20) // 6)
    assert sorted(data.indices(3, 12, 12).tolist()) == list(range(12))
    assert not torch.equal(data.batch(4, 7, 20).x0, whole.x0)


def test_draws_have_the_posteriors_mean_and_deviation(here):
    """Over many epochs, of images and of mirrored images in equal shares: against mean and std by diffusers."""
    root, vae = here
    data, epochs = dataset(root / "store", shift=0.0), 4000
    chosen = np.zeros(epochs, np.int64)
    picture = Image.open(root / "photos/a/0000.png")
    for mirrored, shown in ((False, picture), (True, ImageOps.mirror(picture))):
        mean, std = posterior(vae, shown)
        x0, labels = data.draw(0, np.arange(epochs), chosen, np.full(epochs, mirrored))
        z = x0.flatten(1).numpy() / SCALE
        assert np.abs(z.mean(0) - mean).max() < 4.5 * (std / epochs**0.5).max()
        np.testing.assert_allclose(z.std(0), std, rtol=0.06)
        standard = (z - mean) / std
        assert np.abs(np.corrcoef(standard.T) - np.eye(16)).max() < 0.08  # each number has noise of its own
        assert set(labels) == {0}


def test_half_of_the_draws_are_mirrored(here, monkeypatch):
    """Other ones in each epoch, and none without flip; told by draws that are the posteriors' means."""
    root, vae = here
    turns = (lambda picture: picture, ImageOps.mirror)
    straight, mirrored = (posterior(vae, turn(Image.open(root / "photos/a/0000.png")))[0] for turn in turns)
    monkeypatch.setattr("ditlab.data.latents.dataset.sample_streams", lambda seed, i: [Silent()] * len(i))
    epochs = 400
    for flip, share in ((True, 0.5), (False, 0.0)):
        data = dataset(root / "store", flip=flip)
        z = data.batch(1, 0, 12 * epochs).x0.flatten(1).numpy()[data.indices(1, 0, 12 * epochs).numpy() == 0] / SCALE
        turned = np.abs(z - mirrored).max(1) < 1e-2
        assert (turned | (np.abs(z - straight).max(1) < 1e-2)).all()
        assert turned.mean() == pytest.approx(share, abs=4 * 0.5 / epochs**0.5 * flip)


class Silent:
    """Noise of nothing."""

    def standard_normal(self, count, dtype):
        return np.zeros(count, dtype)


def test_the_scale_and_shift_are_the_autoencoders_unless_given(copied):
    vae = random_vae(Path("shifted"), scale=1.5)
    config = json.loads(Path("shifted/config.json").read_text()) | {"shift_factor": 0.25}
    Path("shifted/config.json").write_text(json.dumps(config))
    assert vae.config.scaling_factor == 1.5
    assert encode("--vae", "shifted", out="own") == 0
    assert encode("--vae", "shifted", "--scale", "3", "--shift", "-1", out="given") == 0
    own, given = survey_store("own"), survey_store("given")
    assert (own.latent_scale, own.latent_shift) == (1.5, 0.25)
    assert (given.latent_scale, given.latent_shift) == (3, -1)
    assert own.vae_digest == given.vae_digest != survey_store("store").vae_digest
    a, b = (dataset(name).batch(0, 0, 4).x0 for name in ("own", "given"))
    torch.testing.assert_close(a / 1.5 + 0.25, b / 3 - 1)


def test_a_digest_is_of_settings_and_weights_alone(copied):
    """A copy that another version of diffusers wrote is the same; one changed weight is not."""
    from ditlab.data.latents.vae import load_vae

    before = load_vae("vae").digest
    shutil.copytree("vae", "elsewhere/vae")
    file = Path("elsewhere/vae/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_diffusers_version": "0.1"}, indent=7))
    copy = load_vae("elsewhere")
    assert copy.digest == before
    next(copy.model.parameters()).data.view(-1)[0] += 1e-3
    assert copy.digest != before


def test_a_digest_does_not_depend_on_which_defaults_are_spelled_out(copied):
    """Each diffusers writes the settings that it knows; what is no default counts."""
    from ditlab.data.latents.vae import load_vae

    before, file = load_vae("vae").digest, Path("vae/config.json")
    config = json.loads(file.read_text())
    defaults = ("shift_factor", "latents_mean", "latents_std", "use_quant_conv", "force_upcast", "latent_channels")
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in defaults}))
    assert load_vae("vae").digest == before
    file.write_text(json.dumps(config | {"of_a_later_diffusers": None}))
    assert load_vae("vae").digest == before
    for name, value in (("act_fn", "relu"), ("norm_num_groups", 2), ("shift_factor", 0.5)):
        file.write_text(json.dumps(config | {name: value}))
        assert load_vae("vae").digest != before


def test_an_autoencoder_that_scales_each_channel_is_refused(copied, capsys):
    file = Path("vae/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": [0.5] * 4}))
    assert encode(out="other") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "vae/config.json gives latents_mean, a number for each channel" in err


def test_encoding_computes_fp32_convolutions_in_fp32(here):
    """On CUDA torch's default is TF32, which comes back afterwards."""
    from ditlab.data.latents.encode import _reproducible

    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    with _reproducible():
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before


CHANGES = [
    (["--vae", "other"], "is of the VAE"),
    (["--scale", "0.3"], "latent_scale 0.18215, and --scale says 0.3"),
    (["--shift", "0.3"], "latent_shift 0.0, and --shift says 0.3"),
    (["--data.image-size", "12"], "image_size 8×8, and --data.image-size says 12×12"),
    (["--no-mirrored"], "mirrored on, and --mirrored or --no-mirrored says off"),
    (["--dtype", "float32"], "dtype float16, and --dtype says float32"),
    (["--batch-size", "4"], "batch_size 3, and --batch-size says 4"),
    (["--data.path", "photos/a"], "is of 12 images"),
]


@pytest.mark.parametrize(("words", "message"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_going_on_with_something_else_is_refused(copied, capsys, words, message, finished):
    """Whether the store is finished or only begun; nothing in it changes."""
    random_vae(Path("other"), scale=0.2)
    if not finished:
        begin_only()
    before = {file: file.read_bytes() for file in Path("store").rglob("*") if file.is_file()}
    assert encode(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "store was begun with " in err or "store is of " in err
    assert message in err
    assert {file: file.read_bytes() for file in Path("store").rglob("*") if file.is_file()} == before


def test_processes_that_encode_other_images_under_the_same_names_do_not(copied, capsys):
    """Another process that takes part sees a file of the same name and size with other bytes."""
    begin_only()
    source = open_source("photos")
    Path("store/.encoding/images.sha256").write_text(_looked(source))
    file = next(Path("photos").rglob("*.png"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert encode() == 2
    err = capsys.readouterr().err
    assert "sees other images under the same names" in err
    assert err.count("\n") == 1


def begin_only():
    """A store of which there is the plan alone."""
    plan = json.loads(Path("store/index.json").read_text())
    shutil.rmtree("store")
    Path("store/.encoding").mkdir(parents=True)
    del plan["count"], plan["shards"]
    Path("store/.encoding/plan.json").write_text(json.dumps(plan))


WRONG = {
    "the VAE": {"digest": "1" * 64},
    "the scale": {"scale": 0.5},
    "the shift": {"shift": 0.5},
    "the classes": {"classes": ("a", "c")},
}


@pytest.mark.parametrize("what", WRONG)
def test_another_store_is_refused_by_name(here, what):
    with pytest.raises(InputError, match=f"is not the one that this run was made for: .*{what}"):
        dataset(here[0] / "store", **WRONG[what]).prepare()


def test_a_store_without_mirrored_latents_is_not_flipped(copied):
    assert encode("--no-mirrored", out="straight") == 0
    assert dataset("straight", flip=False).batch(0, 0, 3).x0.shape == (3, 4, 2, 2)
    with pytest.raises(InputError, match="no mirrored latents"):
        dataset("straight").prepare()
    assert recipe(survey_store("straight")).data.flip is False


def damage(file, how):
    if how == "missing":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        body = bytearray(file.read_bytes())
        body[len(body) // 2] ^= 1
        file.write_bytes(body)


@pytest.mark.parametrize("how", ["missing", "cut short", "flipped"])
def test_a_damaged_shard_is_named_and_made_anew(copied, capsys, how):
    file = Path("store/shards/00001.arrow")
    whole = file.read_bytes()
    damage(file, how)
    if how != "flipped":  # of which the size says nothing
        with pytest.raises(InputError, match=r"shards/00001\.arrow is (missing|damaged)"):
            dataset("store").prepare()
        with pytest.raises(InputError, match=r"shards/00001\.arrow"):
            dataset("store").batch(0, 0, 12)
    assert main(["data", "check", "store", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "1 of 3 shards are not as they were encoded: " in err
    assert "store/shards/00001.arrow" in err.splitlines()[-1]
    assert len(json.loads(out)["damaged"]) == 1
    if how == "flipped":
        file.unlink()  # as the message says
    assert encode() == 0
    assert file.read_bytes() == whole
    assert main(["data", "check", "store"]) == 0


def test_a_shard_that_does_not_come_out_as_it_was_is_refused_each_time(copied, capsys):
    """Here because the index tells of other bytes; nothing is left under its name that could be taken for it."""
    index, file = Path("store/index.json"), Path("store/shards/00001.arrow")
    changed = json.loads(index.read_text())
    changed["shards"][1]["sha256"] = "1" * 64
    index.write_text(json.dumps(changed))
    file.unlink()
    for _ in range(2):
        assert encode() == 2
        assert "store/shards/00001.arrow was missing, and does not come out as it was" in capsys.readouterr().err
        assert sorted(path.name for path in file.parent.iterdir()) == ["00000.arrow", "00002.arrow"]


@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_shard_that_is_lost_before_the_store_is_finished_is_made_anew(copied, how):
    expected = all_but_finished()
    damage(Path("other/shards/00001.arrow"), how)
    assert encode("--bad-share", "0.7", out="other") == 0
    assert shards_of("other") == expected
    assert main(["data", "check", "other"]) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shard": 1}', '{"shard": {"rows": 5}}', '{"rejected": []}', "\xff"])
def test_a_shard_of_which_the_entry_is_damaged_is_made_anew(copied, text):
    expected = all_but_finished()
    Path("other/.encoding/00002.json").write_text(text, encoding="latin-1")
    assert encode("--bad-share", "0.7", out="other") == 0
    assert shards_of("other") == expected


def all_but_finished():
    """Encode into ``other`` all but the index, which is refused for bad images; the bytes of its shards."""
    spoil("photos/a")
    assert encode(out="other") == 2
    assert Path("other/.encoding/00002.json").exists()
    assert not Path("other/index.json").exists()
    return shards_of("other")


def shards_of(store):
    return {file.name: file.read_bytes() for file in Path(store, "shards").iterdir()}


def test_a_damaged_list_of_bad_images_stops_nothing(copied, capsys):
    """It is for information alone; each damaged line is listed as such."""
    lines = [b'{"path": "a/x.png", "reason": "empty"}', b'{"path": 1}', b"[]", b"\xff\xfe", b"null", b""]
    Path("store/quarantine.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert main(["data", "check", "store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == len(lines)
    dataset("store").prepare(quarantine=Path("listed.jsonl"))
    listed = [json.loads(line) for line in Path("listed.jsonl").read_text().splitlines()]
    assert listed[0] == {"path": "a/x.png", "reason": "empty"}
    assert [entry["reason"] for entry in listed[1:]] == [f"line {i} is damaged" for i in range(2, 7)]
    assert encode("--json") == 0
    assert json.loads(capsys.readouterr().out)["bad"] == len(lines)


def test_a_shard_that_is_no_arrow_file_is_named(copied):
    file = Path("store/shards/00000.arrow")
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(InputError, match=r"shards/00000\.arrow is damaged"):
        dataset("store").batch(0, 0, 12)


def relabelled(labels):
    """Write the first shard with other labels, and an index that agrees with it."""
    index = read_index("store")
    file, rows = Path("store/shards/00000.arrow"), index.shards[0].rows
    shard = OpenShard(file, index, rows)
    latents, names = {name: values.copy() for name, values in shard.latents.items()}, [*map(shard.name, range(rows))]
    write_shard(file, index, range(rows), names, labels, latents)
    told = json.loads(index.model_dump_json())
    told["shards"][0] |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    Path("store/index.json").write_text(json.dumps(told))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 2], [-1, 0, 0, 0, 0], [0, 0, None, 0, 0]])
def test_labels_of_no_class_are_named(copied, capsys, unchecked, labels):
    """By training and by a check alike, and not taken for another class."""
    relabelled(labels)
    with pytest.raises(InputError, match=r"shards/00000\.arrow is damaged \(.*: bring it back from a copy, or encode"):
        dataset("store").batch(0, 0, 12)
    assert main(["data", "check", "store"]) == 2
    assert "1 of 3 shards are not as they were encoded: store/shards/00000.arrow is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 11}, "its shards are not those"),
        ({"latent_scale": "x"}, "latent_scale"),
        ({"version": 2}, "version"),
        ({"extra": 1}, "extra"),
        ({"shards": [{"file": "../../etc/passwd", "rows": 1, "bytes": 1, "sha256": "0" * 64}]}, "shards.0.file"),
    ],
)
def test_a_damaged_index_is_named(copied, change, message):
    file = Path("store/index.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_index("store")


def test_a_check_tells_the_moments_of_what_is_trained_on(here):
    """Against the moments of many draws."""
    report = check_store(here[0] / "store")
    data = dataset(here[0] / "store", flip=False)
    x = data.batch(0, 0, 12 * 400).x0.transpose(0, 1).flatten(1)
    np.testing.assert_allclose(report.mean, x.mean(1), atol=0.01)
    np.testing.assert_allclose(report.std, x.std(1), rtol=0.02)
    assert report.classes == {"a": 6, "b": 6}
    assert report.damaged == []


def test_more_shards_than_may_be_open(here, monkeypatch):
    monkeypatch.setattr("ditlab.data.latents.dataset.MOST_OPEN", 1)
    few, many = dataset(here[0] / "store"), dataset(here[0] / "store")
    a = few.batch(0, 0, 24)
    assert len(few._open) == 1
    monkeypatch.undo()
    assert torch.equal(a.x0, many.batch(0, 0, 24).x0)
    assert len(many._open) == 3


def test_training_imports_neither_autoencoder_nor_datasets(copied):
    """And finds the latents without either; the VAE is not even there."""
    shutil.rmtree("vae")
    script = """
        import sys
        from ditlab.cli.main import main
        status = main(["train", "latents", "--data.path", "store", "--steps", "2", "--batch-size", "4", "--data.flip",
            "--network.dim", "16", "--network.depth", "1", "--sampling.steps", "1"])
        assert status == 0
        assert "ditlab.data.latents.dataset" in sys.modules
        assert not {"diffusers", "datasets", "huggingface_hub", "transformers"} & set(sys.modules)
    """
    lines = "\n".join(line[8:] for line in script.splitlines())
    child = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert len(list(Path("runs/latents/samples").glob("*.png"))) == 2


def test_an_index_and_a_configuration_come_back_from_json(here):
    index = read_index(here[0] / "store")
    assert Index.model_validate_json(index.model_dump_json()) == index
    config = recipe(survey_store(str(here[0] / "store")))
    assert isinstance(config.data, LatentsData)
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert config.latent_space == (SCALE, 0.0, str(here[0] / "vae"), index.vae.digest)

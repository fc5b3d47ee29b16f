"""Configurations of absurd size, and checkpoints that do not hold what they say: a line, before memory is taken."""

import json
import shutil

import pytest
import torch

import ditlab
from ditlab.cli.main import main
from ditlab.config import Config, DiTConfig, ExternalData, MLPConfig, PointsData, UNetConfig
from ditlab.config.section import Section
from ditlab.core.errors import ConfigError, InputError
from ditlab.runs.build import build_dataset, build_network, most_numbers, network_shapes
from ditlab.runs.checkpoint import MANIFEST
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import LOOSELY, SMALL, foresee
from ditlab.train import fit
from tests.reliability.test_links import said
from tests.training.test_fit import Nobody, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of circles, with a checkpoint at step 4."""
    folder = tmp_path_factory.mktemp("run") / "r"
    fit(tiny(steps=4, checkpoint_every=4), RunFolder(folder), watcher=Nobody())
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "r")
    return tmp_path / "r"


def sections(section):
    """A section, and those within it."""
    yield section
    for kinds in (field.annotation for field in section.model_fields.values()):
        for kind in getattr(kinds, "__args__", (kinds,)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


def numbers(schema):
    """The parts of a JSON schema that stand for numbers."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"enum", "const"} & schema.keys():
            yield schema
        for part in schema.values():
            yield from numbers(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from numbers(part)


@pytest.mark.parametrize("section", sorted({*sections(Config)} - {Config}, key=lambda kind: kind.__name__), ids=str)
def test_every_number_of_a_configuration_is_bounded(section):
    """Above and below; a setting of a network of one's own is that network's to judge."""
    for name, schema in section.model_json_schema()["properties"].items():
        for number in () if name == "settings" else numbers(schema):
            assert {"maximum", "exclusiveMaximum"} & number.keys(), (section, name)
            assert {"minimum", "exclusiveMinimum"} & number.keys(), (section, name)


ABSURD = {
    "dim": {"network": {"dim": 10**7}},
    "depth": {"network": {"depth": 10**6}},
    "classes": {"data": {"kind": "external", "num_classes": 10**10}},
    "averages": {"averages": [0.01 + 1e-6 * i for i in range(200_000)]},
    "batch_size": {"batch_size": 10**12},
    "steps": {"sampling": {"steps": 10**12}},
    "shape": {"data": {"kind": "external", "shape": [3, 10**6, 10**6]}},
    "workers": {"workers": 10**6},
    "kinds": {"network": "dit" * 10**6},
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_configuration_is_refused_in_a_line(run, capsys, name):
    told = json.loads((run / "config.json").read_text())
    for key, value in ABSURD[name].items():
        told[key] = told[key] | value if isinstance(value, dict) and "kind" not in value else value
    (run / "config.json").write_text(json.dumps(told))
    assert len(said(capsys, "sample", run)) < 600


LARGE = {
    "wide": {"dim": 2**16, "heads": 4},
    "deep": {"depth": 512, "dim": 256},
    "tokens": {"patch_size": 1, "dim": 2**15, "positions": "sincos"},
}


@pytest.mark.parametrize("name", LARGE)
def test_a_network_that_a_checkpoint_does_not_hold_takes_no_memory(run, capsys, monkeypatch, name):
    """Within the bounds, and with a checkpoint that says the same of itself: its headers are compared first."""
    built = []
    monkeypatch.setattr("ditlab.runs.run.build_network", lambda *_: built.append(1))
    monkeypatch.setattr("ditlab.train.TrainState", lambda *_: built.append(1))
    monkeypatch.setattr("ditlab.doctor.evidence.initial_network", lambda *_: built.append(1))
    told = json.loads((run / "config.json").read_text())
    told["network"] |= LARGE[name]
    (run / "config.json").write_text(json.dumps(told))
    for verb in (["sample", run], ["train", "--resume", run, "--steps", 5]):
        line = said(capsys, *verb)
        assert "does not fit the configuration" in line
        assert "missing" in line or "not (" in line
    assert main(["doctor", str(run)]) == 1
    assert "does not fit the configuration" in " ".join(capsys.readouterr().out.split())
    assert not built


def test_a_network_larger_than_memory_is_not_begun(in_tmp, capsys):
    assert "GiB, and this machine has" in said(
        capsys, "train", "circles", "--network.dim", 2**16, "--network.depth", 40
    )
    assert not list(in_tmp.iterdir())


SIZES = [DiTConfig(dim=384, depth=12, heads=6), DiTConfig(dim=1152, depth=28, heads=16, patch_size=2)]
SIZES += [DiTConfig(dim=768, depth=12, conditioning=kind) for kind in ("film", "adaln", "in-context")]
SIZES += [DiTConfig(dim=768, depth=12, heads=12, conditioning="cross-attention", embedders="per-block", mlp="swiglu")]
SIZES += [DiTConfig(dim=512, mlp_ratio=64.0, learned_variance=True), DiTConfig(dim=512, time_features=2**14)]
SIZES += [UNetConfig(width=128), UNetConfig(width=64, multipliers=(1, 2, 4, 8)), MLPConfig(hidden=2048, depth=20)]


@pytest.mark.parametrize("network", SIZES, ids=str)
def test_ordinary_networks_are_known_to_fit_without_the_meta_device(network):
    """The bound is one, and of what a checkpoint in fp32 takes no more than the allowance: loading is as it was."""
    config = Config(data=ExternalData(shape=(3, 64, 64), num_classes=1000), network=network)
    dataset = build_dataset(config)
    there = sum(tensor.numel() for tensor in network_shapes(config, dataset).state_dict().values())
    assert there <= most_numbers(config, dataset) <= max(SMALL, LOOSELY * 4 * there)


def test_loading_draws_what_it_drew(run):
    """The state of torch's own generator afterwards is that of a network that was built and no more."""
    config = RunFolder(run).read_config()
    torch.manual_seed(0)
    build_network(config, build_dataset(config))
    expected = torch.rand(1)
    torch.manual_seed(0)
    ditlab.load(run)
    assert torch.equal(torch.rand(1), expected)


def test_a_checkpoint_in_shards_is_compared_by_its_headers(run):
    """As FSDP leaves one: what it holds is looked at without being read."""
    from safetensors.torch import load_file

    from ditlab.runs import sharded as shards

    checkpoint = run / "checkpoints/step-00000004"
    (checkpoint / "model").mkdir()
    shards.save(checkpoint / "model", load_file(checkpoint / "model.safetensors"))
    (checkpoint / "model.safetensors").unlink()
    config = RunFolder(run).read_config()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["model.safetensors"]
    for file in (checkpoint / "model").iterdir():
        manifest[f"model/{file.name}"] = {"size": file.stat().st_size, "sha256": ""}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    foresee(config, build_dataset(config), checkpoint)
    large = config.model_copy(update={"network": config.network.model_copy(update={"dim": 2**14})})
    with pytest.raises(InputError, match="model does not fit the configuration"):
        foresee(large, build_dataset(large), checkpoint)


def test_a_wrong_batch_or_average_is_named():
    with pytest.raises(ConfigError, match=r"averages=.*at most 32"):
        Config(data=PointsData(), network=MLPConfig(), averages=tuple(0.01 + 1e-4 * i for i in range(40)))

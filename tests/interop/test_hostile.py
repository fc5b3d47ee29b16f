"""Checkpoints made to mislead: too large, in disguise, or with names that write to a terminal."""

import collections
import json
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import InputError, printable
from ditlab.interop.imports import import_checkpoint
from tests.interop.peers import random_diffusers, random_vae
from tests.interop.test_files import refused
from tests.interop.test_imports import saved, small


def with_bias(tensor):
    return small() | {"x_embedder.proj.bias": tensor}


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself a prototype
        return torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({name: torch.ones(1).expand(t.shape) for name, t in small(dim=128).items()}, "claims more numbers"),
        ({f"blocks.0.x{i}": torch.ones(1).expand(10**12) for i in range(2000)}, "not laid out as"),
        ({"ema": None}, "its ema is None"),
        ({"model": None, "ema": None}, "its model and its ema are None"),
        (None, "no state dict"),
        ({"step": torch.tensor(3)}, "no state dict"),
        ({"model": small(), "ema": small(depth=3)}, "its model has 2 blocks and its ema 3"),
        ({"model": small(), "ema": small(rows=12)}, "has inconsistent shapes"),
        (with_bias(torch.zeros(32, device="meta")), "on meta, not dense floats"),
        (with_bias(nested()), "nested, not dense floats"),
        (with_bias(torch.zeros(32, dtype=torch.complex64)), "not dense floats"),
        (small(ratio=70), r"weights.pt: network.mlp_ratio=70"),
    ],
)
def test_what_is_no_dit_is_refused(tmp_path, content, words):
    refused(tmp_path, saved(tmp_path, content), words, heads=4)


class Poisoned:
    """Pickled as a state dict whose own methods are numbers."""

    def __reduce__(self):
        return collections.OrderedDict, (), {"keys": 3, "items": 4}, None, iter(small().items())


def final_layer(path, **told):
    import_checkpoint(path, "facebook-dit", path.parent / "run", heads=4, **told)
    return load_file(path.parent / "run/checkpoints/step-00000000/model.safetensors")["final.linear.weight"]


def test_the_methods_of_a_foreign_dictionary_are_not_called(tmp_path):
    assert torch.equal(final_layer(saved(tmp_path, Poisoned())), small()["final_layer.linear.weight"])


def repacked(path, compression, cut=None):
    """The same archive, packed anew, and one record cut short."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_name("new.pt"), "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if name.endswith(f"data/{cut}") else content)
    return path.with_name("new.pt")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_repacked_archive_is_read_right_or_refused(tmp_path, compression):
    path = saved(tmp_path, small())
    refused(tmp_path, repacked(path, compression, cut=0), "not a checkpoint of tensors", heads=4)
    assert torch.equal(final_layer(repacked(path, compression)), small()["final_layer.linear.weight"])


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    saved(tmp_path, {"blocks.0.x": torch.zeros(10**6)})
    refused(tmp_path, repacked(tmp_path / "weights.pt", zipfile.ZIP_DEFLATED), r"bytes unpack to 4\d{6}$")


def test_a_prefix_of_data_parallel_is_left_out(tmp_path):
    path = saved(tmp_path, {f"module.{name}": tensor for name, tensor in small().items()})
    (note,) = import_checkpoint(path, "facebook-dit", tmp_path / "run", heads=4).imported.notes
    assert note.startswith("the prefix module.")


@pytest.mark.parametrize(
    "text", ["x\nditlab: fine", "\x1b[31mred\x1b[0m", "\u202eright to left", "\udcff", "é − 中 '\\"]
)
def test_a_message_is_one_printable_line(text):
    line = printable(text)
    assert line.isprintable()
    assert (line == text) == text.isprintable()


def test_names_of_a_foreign_file_do_not_reach_the_terminal_raw(tmp_path, capsys):
    path = saved(tmp_path, small() | {"x\n\x1b[31mditlab: all fine": torch.ones(1)})
    assert main(["import", str(path), "--format", "sit", "--heads", "4", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.endswith("unexpected x\\n\\x1b[31mditlab: all fine\n")
    assert err.count("\n") == 1


# ---- diffusers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline's folder, whose files the tests change and put back."""
    folder = tmp_path_factory.mktemp("pipeline")
    random_diffusers().save_pretrained(folder / "transformer")
    random_vae(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return folder


def refused_with(folder, tmp_path, file, content, words):
    original = (folder / file).read_bytes()
    (folder / file).write_bytes(content)
    try:
        refused(tmp_path, folder, words, "diffusers")
    finally:
        (folder / file).write_bytes(original)


MODEL, SCHEDULER, VAE = "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        (MODEL, "norm_eps", "abc", "norm_eps='abc'"),
        (MODEL, "norm_eps", None, "norm_eps=None"),
        (MODEL, "norm_eps", [], r"norm_eps=\[\]"),
        (MODEL, "norm_eps", 1e-3, "norm_eps=0.001; .* less than or equal to"),
        (MODEL, "activation_fn", [], r"activation_fn=\[\]; .* 'gelu'"),
        (MODEL, "activation_fn", {}, "activation_fn={}; .* 'gelu'"),
        (MODEL, "num_layers", 2, "says num_layers=2, but the weights have 3"),
        (MODEL, "_class_name", ["a"], r"_class_name=\['a'\]; .* 'DiTTransformer2DModel'"),
        (SCHEDULER, "beta_schedule", [], r"beta_schedule=\[\]; .* 'linear'"),
        (SCHEDULER, "prediction_type", {}, "prediction_type={}; .* 'epsilon'"),
        (SCHEDULER, "beta_start", 10**400, r"beta_start=10{56}\.\.\."),
        (SCHEDULER, "beta_start", True, "beta_start=True; .* number"),
        (SCHEDULER, "timestep_spacing", "even", "timestep_spacing='even'; .* 'leading'"),
        (SCHEDULER, "_class_name", "FlowMatchEulerDiscreteScheduler", "describes a FlowMatchEulerDiscreteScheduler"),
        (VAE, "scaling_factor", 10**400, "scaling_factor=10"),
        (VAE, "scaling_factor", -1, "scaling_factor=-1; .* greater than 0"),
        (VAE, "scaling_factor", float("nan"), "scaling_factor=nan; .* finite number"),
    ],
)
def test_a_setting_that_means_nothing_is_named(folder, tmp_path, file, name, value, words):
    content = json.loads((folder / file).read_text()) | {name: value}
    refused_with(folder, tmp_path, file, json.dumps(content).encode(), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"num_layers":' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b"{}", "has no _class_name"),
    ],
)
@pytest.mark.parametrize("file", [MODEL, SCHEDULER])
def test_json_made_to_break_its_reader(folder, tmp_path, file, content, words):
    refused_with(folder, tmp_path, file, content, words)


@pytest.mark.parametrize("kind", ["F4", "F8_E8M0", "C64", "I32"])
def test_other_kinds_of_safetensors_are_named(folder, tmp_path, kind):
    size = {"F4": 4, "F8_E8M0": 8, "C64": 64, "I32": 32}[kind]
    header = json.dumps({"a": {"dtype": kind, "shape": [8], "data_offsets": [0, size]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(size)
    file = "transformer/diffusion_pytorch_model.safetensors"
    refused_with(folder, tmp_path, file, content, f"a is {kind}; it must be one of F64, F32, F16, BF16")


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "/etc/passwd", "a\0b", None, 5])
def test_an_index_names_files_beside_it(tmp_path, part):
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": part}}))
    refused(tmp_path, tmp_path, "does not name files beside it", "diffusers")


def test_the_reader_s_own_mistakes_are_one_line_that_keeps_its_cause(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise IndexError("first line\nsecond line")

    monkeypatch.setattr("ditlab.interop.imports.read_diffusers", fail)
    with pytest.raises(InputError, match=r"cannot be read as a diffusers checkpoint: IndexError: first line$") as it:
        ditlab.import_checkpoint(folder, "diffusers", tmp_path / "run")
    assert isinstance(it.value.__cause__, IndexError)

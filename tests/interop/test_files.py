"""Files that are damaged, hostile or something else: one line, nothing executed, no half of a run left."""

import argparse
import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ditlab.core.disk import read_json
from ditlab.core.errors import InputError
from ditlab.interop.imports import import_checkpoint
from ditlab.interop.safe_load import as_weights, read_model_folder, read_safetensors, read_torch
from tests.interop.peers import random_diffusers
from tests.interop.test_imports import saved, small


class Command:
    """What a malicious checkpoint holds: unpickling it runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def refused(tmp_path, path, words, format="facebook-dit", **told):
    """Importing it fails with these words in one line, and leaves nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words) as refusal:
        import_checkpoint(path, format, tmp_path / "run", **told)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 900
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda bad: bad,
        lambda bad: {**small(), "extra": bad},
        lambda bad: {"model": small(), "args": argparse.Namespace(x=bad)},
    ],
    ids=["alone", "in a state dict", "in a namespace"],
)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped, wrap):
    mark = tmp_path / "mark"
    torch.save(wrap(Command(mark)), tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path, tmp_path / "bad.pt", "loading it would call posix.system")
    assert not mark.exists()


def test_the_malicious_pickle_would_run_where_pickles_are_trusted(tmp_path):
    pickle.loads(pickle.dumps(Command(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    for protocol, words in ((2, "loading it would call posix.system"), (4, "not a checkpoint of tensors")):
        (tmp_path / "bad.pt").write_bytes(pickle.dumps(Command(mark), protocol=protocol))
        refused(tmp_path, tmp_path / "bad.pt", words)
    assert not mark.exists()


def test_a_namespace_is_read_and_forgotten(tmp_path):
    """Training checkpoints of facebookresearch/DiT carry their arguments; nothing of them reaches us."""
    hostile = argparse.Namespace(model="DiT-S/2", ema=torch.zeros(3), lr=1e-4)
    vars(hostile).update({"__class__": torch.Size, "__setstate__": torch.Size, "__dict__": {}})
    torch.save({"model": small(), "args": hostile}, tmp_path / "weights.pt")
    args = read_torch(tmp_path / "weights.pt")["args"]
    assert [name for name in dir(args) if not name.startswith("__")] == ["num_classes"]
    assert args.num_classes is None
    assert not hasattr(args, "__dict__")
    import_checkpoint(tmp_path / "weights.pt", "facebook-dit", tmp_path / "run", heads=4)
    with pytest.raises(pickle.UnpicklingError):  # it was allowed for that one file alone
        torch.load(tmp_path / "weights.pt", weights_only=True)


def test_a_pickle_cannot_call_the_stand_in_with_a_function_of_its_own(tmp_path):
    """BUILD asks an object for __setstate__: one that a pickle put on it must not be found."""
    stream = b"\x80\x02cargparse\nNamespace\n)\x81}U\x0c__setstate__ctorch\nSize\nsb(K\x07K\x08tb."
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, stream if name.endswith("data.pkl") else good.read(name))
    assert not hasattr(read_torch(tmp_path / "bad.pt"), "__dict__")
    refused(tmp_path, tmp_path / "bad.pt", "holds no state dict")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_state_dict_is_refused(tmp_path, share, zipped):
    torch.save(small(), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(content[: int(share * len(content))])
    refused(tmp_path, tmp_path / "weights.pt", "not a checkpoint of tensors", heads=4)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9999])
def test_a_truncated_safetensors_is_refused(tmp_path, share):
    random_diffusers().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(tmp_path, tmp_path / "model", "not a whole safetensors file", "diffusers")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "no state dict"),
        ({}, "no state dict"),
        ({"a": 3}, "'a' is not a tensor"),
        ({"a": torch.ones(3)}, "no tensor is named blocks.0"),
        ({"model": {"a": torch.ones(3)}}, "no tensor is named blocks.0"),
        (small() | {"x_embedder.proj.bias": torch.ones(32).to_sparse()}, "not dense floats"),
        (small() | {"x_embedder.proj.bias": torch.ones(32, dtype=torch.int64)}, "not dense floats"),
        (small() | {"x_embedder.proj.bias": torch.ones(1).expand(10**9)}, "claims more numbers than the file holds"),
        (
            small() | {"x_embedder.proj.bias": torch.full((32,), torch.nan)},
            "NaN or infinite weights: x_emb",
        ),
        (small() | {"x_embedder.proj.bias": torch.ones(31)}, r"x_embedder\.proj\.bias is \(31,\), not \(32,\)"),
        (small() | {"x_embedder.proj.weight": torch.ones(32)}, "which no DiT has"),
        (small() | {"pos_embed": torch.ones(1, 15, 32)}, "15 positions"),
        (small(rows=1), "a single row"),
        (small() | {"blocks.999999999.attn.qkv.bias": torch.ones(96)}, "missing blocks.2"),
    ],
)
def test_what_is_no_dit_is_refused(tmp_path, content, words):
    refused(tmp_path, saved(tmp_path, content), words, heads=4)


def test_missing_and_unexpected_tensors_are_named_at_most_five(tmp_path):
    state = small()
    del state["pos_embed"]
    refused(tmp_path, saved(tmp_path, state), r"facebookresearch/DiT: missing pos_embed$", heads=4)
    many = {name: tensor for name, tensor in state.items() if "attn" not in name} | {"foo.bar": torch.ones(1)}
    refused(tmp_path, saved(tmp_path, many), r"(missing [\w.]+; ){4}missing [\w.]+ and 5 more$", heads=4)


def test_a_preset_that_does_not_fit_is_told_what_the_weights_look_like(tmp_path):
    state = small(dim=384, depth=12, patch=4)
    words = re.escape("is not a DiT-B/2: it has 12 blocks of width 384 and patches of 4, which is --preset DiT-S/4")
    refused(tmp_path, saved(tmp_path, state), words, preset="DiT-B/2")
    refused(tmp_path, saved(tmp_path, small()), "width 32, .* use --heads$")
    refused(tmp_path, saved(tmp_path, small()), "not divisible by heads=5", heads=5)
    refused(tmp_path, saved(tmp_path, small()), "not a published size: .* use --heads", preset="DiT-S/2")
    refused(tmp_path, saved(tmp_path, small()), "unknown preset 'DiT-Q/2'", preset="DiT-Q/2")
    refused(tmp_path, saved(tmp_path, small()), "leave --heads out", preset="DiT-S/2", heads=4)


def test_files_and_folders_in_each_others_place(tmp_path):
    file = saved(tmp_path, small())
    refused(tmp_path, tmp_path, "is a folder, and a file is expected")
    refused(tmp_path, file, "is not a folder", "diffusers")
    refused(tmp_path, tmp_path / "nothing", "does not exist", "sit")
    refused(tmp_path, tmp_path, "neither config.json nor transformer/config.json", "diffusers")
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    refused(tmp_path, tmp_path, "there is no diffusion_pytorch_model.safetensors in it", "diffusers")
    (tmp_path / "diffusion_pytorch_model.safetensors").mkdir()
    refused(tmp_path, tmp_path, "is a folder, and a file is expected", "diffusers")
    refused(tmp_path, file, "leave it out", "diffusers", heads=4)
    refused(tmp_path, file, "leave it out", time_frequency_shift=1)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        import_checkpoint(file, "facebook-dit", tmp_path / "there", heads=4)


def test_an_index_names_nothing_outside_its_folder(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "elsewhere.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    index = tmp_path / "model" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    refused(tmp_path, tmp_path / "model", "does not name files beside it", "diffusers")


def test_parts_hold_what_their_index_says_and_nothing_else(tmp_path):
    """No tensor is taken from one part where another part, or none, is said to have it."""
    name = "diffusion_pytorch_model.safetensors"
    places = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    tensors = {key: torch.randn(3) for key in places}
    (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))
    save_file({"a": tensors["a"], "b": tensors["b"]}, tmp_path / "1.safetensors")
    save_file({"c": tensors["c"]}, tmp_path / "2.safetensors")
    read = read_model_folder(tmp_path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    for held in (["c", "a"], ["c", "d"], ["d"]):
        save_file({key: torch.ones(3) for key in held}, tmp_path / "2.safetensors")
        with pytest.raises(InputError, match=rf"2.safetensors does not hold .* {name}.index.json lists: "):
            read_model_folder(tmp_path)


def test_json_that_is_none(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_bytes(b"\xff{")
    for name, words in (("a.json", "does not hold a JSON object"), ("b.json", "not valid JSON"), ("c.json", "no file")):
        with pytest.raises(InputError, match=words):
            read_json(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        read_safetensors(tmp_path / "c.safetensors")


def test_half_precision_becomes_single_exactly(tmp_path):
    half = {"a": torch.randn(10).bfloat16()}
    assert torch.equal(as_weights(half, tmp_path, 10**6)["a"], half["a"].float())

"""Checkpoints made to mislead, with manifests that agree: typed errors, bounded memory, and nothing executed."""

import json
import os
import pickle
import struct
import tracemalloc

import pytest

import ditlab
from ditlab.core.errors import DamagedCheckpoint, InputError
from ditlab.runs.checkpoint import FILES, MANIFEST
from ditlab.runs.folder import RunFolder
from tests.training.test_checkpoint import begun, refused, resaved, save


class Payload:
    """A pickle that would make a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def header(content, length=None):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(first, last, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


HOSTILE = {
    "a pickle": None,
    "nothing": b"",
    "a huge length": header(b"{}", 2**63),
    "a length beyond the file": header(b"{}", 90_000_000),
    "no JSON": header(b"\xff" * 100),
    "nested deep": header(b"[" * 100_000),
    "nested deep inside": header(b'{"__metadata__":' + b"[" * 100_000),
    "overlapping offsets": header({"a": entry(0, 8), "b": entry(4, 12)}) + bytes(12),
    "offsets beyond the file": header({"a": entry(0, 2**40, (2**38,))}) + bytes(12),
    "a shape that overflows": header({"a": entry(0, 8, (2**40, 2**40))}) + bytes(8),
    "a negative shape": header({"a": entry(0, 8, (-2,))}) + bytes(8),
    "an unknown kind of number": header({"a": entry(0, 8, dtype="F99")}) + bytes(8),
    "bytes that no tensor has": header({"a": entry(0, 8)}) + bytes(100),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("part", ["model", "ema", "optimizer", "averages"])
def test_a_hostile_safetensors_header(tmp_path, part, kind):
    """With a manifest that agrees: a typed error in one line, nothing executed, and no memory for what is claimed."""
    state, _ = begun()
    checkpoint = save(tmp_path, state)
    content = HOSTILE[kind]
    resaved(checkpoint, **{part: pickle.dumps(Payload(tmp_path / "pwned")) if content is None else content})
    tracemalloc.start()
    error = refused(tmp_path, state, rf"{part}.safetensors is damaged: ")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert isinstance(error, DamagedCheckpoint)
    assert not (tmp_path / "pwned").exists()


def test_a_malicious_pickle_in_every_file(tmp_path):
    state, _ = begun()
    for name in [*FILES, MANIFEST]:
        checkpoint = save(tmp_path / name, state)
        (checkpoint / name).write_bytes(pickle.dumps(Payload(tmp_path / "pwned")))
        if name != MANIFEST:
            resaved(checkpoint)
        assert isinstance(refused(tmp_path / name, state, name), DamagedCheckpoint)
    assert not (tmp_path / "pwned").exists()


NO_JSON = {
    "garbage": (b"\x00\xff{", "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "nested deep": (b'{"a":' * 100_000, "nested too deep"),
    "huge": (b" " * (2**22 + 1) + b"{}", "larger than"),
    "a huge number": (b'{"step":' + b"1" * 5000 + b"}", "not valid JSON"),
    "a list": (b"[1]", "does not hold a JSON object"),
    "other types": (b'{"step": "one", "model.safetensors": [], "data": 3}', None),
}


@pytest.mark.parametrize("kind", NO_JSON)
@pytest.mark.parametrize("name", ["state", "manifest", "config"])
def test_json_that_is_none(tmp_path, name, kind):
    content, words = NO_JSON[kind]
    run = RunFolder(tmp_path / "r")
    state, _ = begun()
    checkpoint = save(run.checkpoints, state)
    run.write_config(state.config)
    if name == "config":
        run.config_file.write_bytes(content)
    else:
        resaved(checkpoint, **{name: content})
        assert isinstance(refused(run.checkpoints, state, words or "is damaged"), DamagedCheckpoint)
    with pytest.raises(InputError, match=words or name) as told:
        ditlab.load(run.path)
    assert name in str(told.value)
    assert "\n" not in str(told.value)

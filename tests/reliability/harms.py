"""Harms that a run folder may come with, drawn by chance: values, bytes, links, pipes, shards, names like ours."""

import hashlib
import json
import os
import shutil

from safetensors.torch import load_file, save_file

from ditlab.runs.checkpoint import MANIFEST

PARTS = ("model", "ema", "optimizer", "averages")
SHARDS = 3
VALUES = ["0", "-1", "1e999", "-1e999", "NaN", "1e-320", "0.5", "3", str(2**31), str(2**63), str(10**30), "1" * 5000]
VALUES += ['""', '"x"', '"\\ud800"', '"a\\u0000b"', '"' + "x" * 5000 + '"', '"../../home"', "null", "true", "[]", "{}"]
VALUES += ["[" * 50_000, "[[1]]", '{"a": 1}', "[1, 2, 3, 4, 5]"]
PLANTED = [".git/config", ".ssh/id", ".x", "step-00000099", "step-00000099.png", "step-00000099.json", "step-x.png"]
PLANTED += ["step-00000099.safetensors", ".step-00000004.png.7@h.tmp.png", ".tmpAbCdEf", "step-00000003/manifest.json"]
DATA = [
    {"kind": "images", "path": path, "image_size": [16], "channels": 1} for path in ("/dev/zero", "a\0b", "..", "~")
]
DATA += [{"kind": "latents", "path": path, "shape": [1, 16, 16], "latent_scale": 1} for path in ("/nowhere", "/dev")]
DATA += [{"kind": "external", "shape": [1, 16, 16]}, {"kind": "points"}, {"kind": "digits"}]
FOLDERS = ["", "samples", "probes", "averages", "checkpoints", "failures", "checkpoints/step-00000004"]


def files(run):
    """All plain files of a run, in order."""
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())


def sign(checkpoint):
    """A manifest that agrees with the files that are there."""
    there = {file.relative_to(checkpoint).as_posix(): file.read_bytes() for file in files(checkpoint)}
    told = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in there.items()
        if name != MANIFEST
    }
    (checkpoint / MANIFEST).write_text(json.dumps(told))


def shard_file(rank):
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def split(checkpoint):
    """The same checkpoint as FSDP leaves it: so many processes, each with some rows of every tensor."""
    for part in PARTS:
        tensors = load_file(checkpoint / f"{part}.safetensors")
        (checkpoint / f"{part}.safetensors").unlink()
        (checkpoint / part).mkdir()
        for rank in range(SHARDS):
            own, offsets = {}, {}
            for name, tensor in tensors.items():
                if tensor.dim() == 0 and rank:  # a single number is saved by the first
                    continue
                rows = -(-len(tensor) // SHARDS) if tensor.dim() else 0
                first = min(rank * rows, len(tensor)) if tensor.dim() else 0
                own[name] = tensor[first : first + rows].clone() if tensor.dim() else tensor
                offsets[name] = {"saved_offsets": [first, *[0] * (tensor.dim() - 1)] if tensor.dim() else []}
            metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
            save_file(own, checkpoint / part / shard_file(rank), metadata)
    sign(checkpoint)


# ---- what is harmed in a file


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*path, key))


def harmed(text, chance):
    """JSON with another value in one of its places, one left out, or one more."""
    value = json.loads(text)
    *path, last = chance.choice([place for place in places(value) if place] or [("x",)])
    holder = value
    for key in path:
        holder = holder[key]
    deed = chance.random()
    if deed < 0.15:
        del holder[last]
        return json.dumps(value)
    if deed < 0.25 and isinstance(holder, dict):
        last = chance.choice(["x", "", "__class__", "../x", "/etc/passwd"])
    holder[last] = "@@@@"
    return json.dumps(value).replace('"@@@@"', chance.choice(VALUES))


def harm_json(file, chance):
    file.write_text(harmed(file.read_text(), chance))


def harm_header(file, chance):
    """The header of a safetensors file."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = harmed(content[8 : 8 + size], chance).encode(errors="surrogatepass")
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def harm_lines(file, chance):
    """A line of metrics, or one more."""
    lines = file.read_text().splitlines()
    number = chance.randrange(len(lines))
    lines[number] = harmed(lines[number], chance)
    file.write_text("\n".join(lines) + chance.choice(["\n", "\n", "", '\n{"step": 9']))


def harm_bytes(file, chance):
    """Flipped, cut, grown, zeroed, emptied, binary, huge."""
    content = bytearray(file.read_bytes())
    deed = chance.randrange(7)
    if deed == 0 and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif deed == 1:
        del content[chance.randrange(len(content) + 1) :]
    elif deed == 2:
        content += chance.randbytes(chance.randrange(1, 100))
    elif deed == 3:
        content = bytes(len(content))
    elif deed == 4:
        content = b""
    elif deed == 5:
        content = b"\x80\x04cposix\nsystem\n" + chance.randbytes(200)
    file.write_bytes(content)
    if deed == 6:
        os.truncate(file, 2**30)  # sparse


# ---- the kinds of harm


def checkpoint_of(run, chance):
    return run / "checkpoints" / chance.choice(["step-00000002", "step-00000004"])


def config(run, chance):
    harm_json(run / "config.json", chance)


def other_data(run, chance):
    """A configuration of data that are not there, or are none."""
    told = json.loads((run / "config.json").read_text())
    told["data"] = chance.choice(DATA)
    (run / "config.json").write_text(json.dumps(told))


def metrics(run, chance):
    harm_lines(run / "metrics.jsonl", chance)


def manifest(run, chance):
    harm_json(checkpoint_of(run, chance) / MANIFEST, chance)


def state(run, chance):
    checkpoint = checkpoint_of(run, chance)
    harm_json(checkpoint / "state.json", chance)
    sign(checkpoint)


def header(run, chance):
    """Of a part of a checkpoint whose manifest agrees, of a recording, or of a snapshot."""
    checkpoint = checkpoint_of(run, chance)
    there = [file for file in files(run) if file.suffix == ".safetensors"]
    harm_header(chance.choice(there), chance)
    sign(checkpoint)


def shards(run, chance):
    """Of a checkpoint in shards: one is gone, twice there, another's, or put elsewhere; the manifest agrees or not."""
    checkpoint = checkpoint_of(run, chance)
    if not (checkpoint / "model").is_dir():
        split(checkpoint)
    there = [file for file in files(checkpoint) if file.parent != checkpoint]
    file, other = chance.sample(there, 2)
    deed = chance.randrange(5)
    if deed == 0:
        file.unlink()
    elif deed == 1:
        shutil.copyfile(file, file.with_name("shard-00009-model-00001-of-00001.safetensors"))
    elif deed == 2:
        shutil.copyfile(other, file)
    elif deed == 3:
        harm_header(file, chance)
    else:
        content = file.read_bytes()
        file.write_bytes(content.replace(b'saved_offsets\\": [', b'saved_offsets\\": [1', 1))
    if chance.random() < 0.8:
        sign(checkpoint)


def some_bytes(run, chance):
    harm_bytes(chance.choice(files(run)), chance)


def signed_bytes(run, chance):
    """In a file of a checkpoint whose manifest agrees."""
    checkpoint = checkpoint_of(run, chance)
    harm_bytes(chance.choice([file for file in files(checkpoint) if file.name != MANIFEST]), chance)
    if sum(file.stat().st_size for file in files(checkpoint)) < 2**30:
        sign(checkpoint)


def removed(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def link(run, chance):
    """In the place of anything that is there: to something outside, to itself, to nothing, to a device."""
    path = chance.choice(sorted(run.rglob("*")))
    home = run.parent / "home"
    targets = [home, home / path.relative_to(run), home / ".ssh/id", path, run.parent / "nowhere", run, "/dev/zero"]
    removed(path)
    path.symlink_to(chance.choice(targets))


def special(run, chance):
    """A pipe in the place of a file, or a folder in that of a file, or a file in that of a folder."""
    path = chance.choice([*sorted(run.rglob("*")), run / "eval.json", run / "quarantine.jsonl", run / ".lock"])
    was_folder = path.is_dir() and not path.is_symlink()
    removed(path)
    path.parent.mkdir(exist_ok=True)
    if was_folder:
        path.write_text("x")
    elif chance.random() < 0.7:
        os.mkfifo(path)
    else:
        path.mkdir()


def planted(run, chance):
    """Names that look like ours, and names that do not."""
    path = run / chance.choice(FOLDERS) / chance.choice(PLANTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.mkdir() if chance.random() < 0.2 else path.write_text("planted")


HARMS = [
    config,
    other_data,
    metrics,
    manifest,
    state,
    header,
    shards,
    some_bytes,
    signed_bytes,
    link,
    special,
    planted,
]
